//! Copies of files that have several names in a lower layer.
//!
//! The overlay copies such a file up once, by the name through which it was changed, and
//! shows the copy by the other names as well, which are the lower layer's. Which files
//! these are says an index in its work directory: one more hard link to each copy, called
//! by the layer of the original, counted from the bottom, and its inode number.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstatat};

use super::PackError;

/// Where it is, in the work directory.
const INDEX: &str = "links.coracle";

/// The index.
#[derive(Debug)]
pub struct Copies(OwnedFd);

/// A copy: what the index calls it, and its status.
pub(super) type Copied = (OsString, FileStat);

impl Copies {
    /// That in a work directory; `None` where nothing was ever copied.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open(work: &Path) -> Result<Option<Self>, PackError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = work.join(INDEX);
        match open(&path, flags, Mode::empty()) {
            Ok(index) => Ok(Some(Self(index))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(PackError { path, source: errno.into() }),
        }
    }

    /// Its directory.
    pub(super) fn index(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The copy of the file `ino` of a layer.
    pub(super) fn find(&self, from_bottom: usize, ino: u64) -> io::Result<Option<Copied>> {
        let key = OsString::from(format!("{from_bottom}-{ino:x}"));
        match fstatat(&self.0, key.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((key, stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
