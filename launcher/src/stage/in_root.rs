//! Paths in a container's root, resolved from outside it: symbolic links and
//! `..` stay inside, whatever they say (openat2(2), RESOLVE_IN_ROOT).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};

/// As many as the kernel follows in one path: path_resolution(7).
const MOST_LINKS: u32 = 40;

/// What is made where a path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory (0755).
    Directory,
    /// An empty file (0644).
    File,
}

/// A directory that is some container's root.
#[derive(Debug)]
pub struct InRoot(OwnedFd);

impl InRoot {
    /// Takes the directory at `path` as the root.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// Takes an open directory as the root.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens what is at `path`.
    ///
    /// # Errors
    /// As of openat2(2).
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(self.resolve(path, flags, ResolveFlag::empty())?)
    }

    /// As [`InRoot::open`], of a path in which nothing may be a symbolic link.
    ///
    /// # Errors
    /// As of openat2(2); ELOOP for a symbolic link.
    pub fn open_plain(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(self.resolve(path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS)?)
    }

    fn resolve(&self, path: &Path, flags: OFlag, more: ResolveFlag) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | more);
        loop {
            match openat2(&self.0, path, how) {
                // A rename somewhere raced with `..`.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Opens (`O_PATH`) what is at `path`, made with its parents when missing.
    /// A symbolic link that leads nowhere is followed to where its target
    /// would be.
    ///
    /// # Errors
    /// As of openat2(2), mkdirat(2).
    pub fn ensure(&self, path: &Path, make: Make) -> io::Result<OwnedFd> {
        Ok(self.ensure_below(path, make, MOST_LINKS)?)
    }

    fn ensure_below(&self, path: &Path, make: Make, links: u32) -> Result<OwnedFd, Errno> {
        let found = || self.resolve(path, OFlag::O_PATH, ResolveFlag::empty());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return found();
        };
        // Made first, looked for only when that says it is there: on a file system
        // in user space each look at what is missing is a message and an answer. To make
        // what is there is one each time, so what is above is looked for first: it nearly
        // always is, and then in the kernel's cache.
        let above = self
            .resolve(parent, OFlag::O_PATH, ResolveFlag::empty())
            .or_else(|_| self.ensure_below(parent, Make::Directory, links))?;
        let made = match make {
            Make::Directory => mkdirat(&above, name, Mode::from_bits_truncate(0o755)),
            Make::File => mknodat(&above, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0),
        };
        match made {
            Ok(()) => {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&above, name, flags, Mode::empty())
            }
            Err(Errno::EEXIST) => match found() {
                Err(Errno::ENOENT) => {
                    let links = links.checked_sub(1).ok_or(Errno::ELOOP)?;
                    let target: OsString = readlinkat(&above, name)?;
                    self.ensure_below(&joined(parent, target), make, links)
                }
                result => result,
            },
            // It is there, on a file system that refuses before it looks.
            Err(errno) => found().map_err(|_| errno),
        }
    }
}

/// Where a link in `parent` leads (an absolute target replaces the path).
fn joined(parent: &Path, target: OsString) -> PathBuf {
    parent.join(target)
}

impl AsFd for InRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, InRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = InRoot::open_root(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn missing_paths_are_made() {
        let (dir, root) = root();
        root.ensure("/a/b/c".as_ref(), Make::File).unwrap();
        root.ensure("/a/d".as_ref(), Make::Directory).unwrap();
        assert!(dir.path().join("a/b/c").is_file());
        assert!(dir.path().join("a/d").is_dir());
    }

    #[test]
    fn links_stay_inside() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/../../outside", dir.path().join("etc/absolute")).unwrap();
        symlink("../../../run/stub", dir.path().join("etc/relative")).unwrap();
        root.ensure("/etc/absolute".as_ref(), Make::File).unwrap();
        root.ensure("/etc/relative".as_ref(), Make::File).unwrap();
        assert!(dir.path().join("outside").is_file());
        assert!(dir.path().join("run/stub").is_file());
        assert!(root.open_plain("/etc/absolute".as_ref(), OFlag::O_PATH).is_err());
    }

    #[test]
    fn links_in_a_circle_end() {
        let (dir, root) = root();
        symlink("y", dir.path().join("x")).unwrap();
        symlink("x", dir.path().join("y")).unwrap();
        let error = root.ensure("/x".as_ref(), Make::File).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
