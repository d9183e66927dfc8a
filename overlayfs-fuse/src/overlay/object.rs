//! An object of the upper, and the cheapest way to change it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, futimens};
use nix::sys::time::TimeSpec;

use crate::sync::Arc;
use crate::sys;

/// An object of the upper, and how it is reached.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// By an open file: system calls take the descriptor itself.
    Open(Arc<OwnedFd>),
    /// By an `O_PATH` descriptor: they take its path in /proc.
    Path(Arc<OwnedFd>),
}

impl Object {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor().as_fd()
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        let (Self::Open(fd) | Self::Path(fd)) = self;
        fd
    }

    pub(crate) fn chmod(&self, mode: Mode) -> nix::Result<()> {
        match self {
            Self::Open(fd) => fchmod(fd.as_fd(), mode),
            Self::Path(fd) => chmod_path(fd.as_fd(), mode),
        }
    }

    pub(crate) fn set_times(&self, atime: &TimeSpec, mtime: &TimeSpec) -> nix::Result<()> {
        match self {
            Self::Open(fd) => futimens(fd.as_fd(), atime, mtime),
            Self::Path(fd) => sys::set_times(fd.as_fd(), atime, mtime),
        }
    }

    /// fsetxattr(2); `flags` is 0, `XATTR_CREATE` or `XATTR_REPLACE`.
    pub(crate) fn set_attribute(&self, name: &OsStr, value: &[u8], flags: i32) -> nix::Result<()> {
        match self {
            Self::Open(fd) => sys::fsetxattr(fd.as_fd(), name, value, flags),
            Self::Path(fd) => sys::setxattr(fd.as_fd(), name, value, flags),
        }
    }
}

/// Changes the mode of whatever `fd` refers to, `O_PATH` descriptors included.
pub(crate) fn chmod_path(fd: BorrowedFd<'_>, mode: Mode) -> nix::Result<()> {
    fchmodat(AT_FDCWD, sys::fd_path(fd).as_c_str(), mode, FchmodatFlags::FollowSymlink)
}
