//! A layer that is a directory of the host.
//!
//! # Theory of operation
//! Every access starts at a directory descriptor that was reached with openat2
//! and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, and then names one component:
//! nothing in a layer (symbolic links, `..`, magic links) can lead outside of
//! it, also while it is changed underneath. A layer may contain mount points.
//!
//! The descriptors of directories are kept in a bounded least-recently-used
//! cache by path: the paths of a lower never change.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::{Below, EntryKind, Layer, Listing, Named, RawEntry};
use crate::error::{During, Error, Result};
use crate::overlay::whiteout;
use crate::sync::{Arc, Mutex};
use crate::sys;

/// A directory of the host as a layer.
#[derive(Debug)]
pub struct DirLayer {
    root: Arc<OwnedFd>,
    dirs: Mutex<Lru>,
}

/// Open directories by path, the least recently used of which goes first.
#[derive(Debug)]
struct Lru {
    /// Keys are strings: a `Path` is hashed and compared component by component.
    open: HashMap<OsString, (Arc<OwnedFd>, u64)>,
    /// The one last asked for: a directory is read entry by entry.
    last: Option<(OsString, Arc<OwnedFd>)>,
    clock: u64,
    limit: usize,
}

impl Lru {
    fn touch(&mut self, path: &OsStr) -> Option<Arc<OwnedFd>> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Some(Arc::clone(fd));
        }
        self.clock += 1;
        let (fd, used) = self.open.get_mut(path)?;
        *used = self.clock;
        self.last = Some((path.to_owned(), Arc::clone(fd)));
        Some(Arc::clone(fd))
    }

    fn insert(&mut self, path: &OsStr, fd: Arc<OwnedFd>) {
        if self.open.len() >= self.limit {
            // Drop the older half at once: amortised constant work an insertion.
            let mut ages: Vec<u64> = self.open.values().map(|(_, used)| *used).collect();
            let middle = ages.len() / 2;
            let (_, cut, _) = ages.select_nth_unstable(middle);
            let cut = *cut;
            self.open.retain(|_, (_, used)| *used > cut);
        }
        self.clock += 1;
        self.last = Some((path.to_owned(), Arc::clone(&fd)));
        self.open.insert(path.to_owned(), (fd, self.clock));
    }
}

impl DirLayer {
    /// Opens the layer rooted at `path` (which may be a symbolic link), keeping
    /// at most `limit` of its directories open.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_root(path: &Path, limit: usize) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self::from_fd(root, limit))
    }

    /// The layer rooted at an open directory.
    #[must_use]
    pub fn from_fd(root: OwnedFd, limit: usize) -> Self {
        let dirs = Lru { open: HashMap::new(), last: None, clock: 0, limit: limit.max(2) };
        Self { root: Arc::new(root), dirs: Mutex::new(dirs) }
    }

    /// A descriptor (`O_PATH`) of directory `path`.
    ///
    /// # Errors
    /// `Stale` when it is not there, else what openat2(2) says.
    pub fn dir(&self, path: &Path) -> Result<Arc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(fd) = self.lru().touch(path.as_os_str()) {
            return Ok(fd);
        }
        let fd = Arc::new(open_beneath(self.root.as_fd(), path)?);
        self.lru().insert(path.as_os_str(), Arc::clone(&fd));
        Ok(fd)
    }

    fn lru(&self) -> crate::sync::MutexGuard<'_, Lru> {
        self.dirs.lock().expect("no panic while the cache is locked")
    }
}

/// A descriptor (`O_PATH`) of the directory `path` below `root`.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    loop {
        match openat2(root, path, how) {
            // EAGAIN: a rename raced with the resolution (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return gone_is_stale(other, "open a directory of a layer"),
        }
    }
}

/// Reads the directory behind `parent`.
pub(crate) fn list_at(parent: BorrowedFd<'_>) -> Result<Listing> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = openat(parent, ".", flags, Mode::empty());
    let fd = gone_is_stale(fd, "open a directory for reading")?;
    let marks = whiteout::dir_marks(fd.as_fd())?;
    let mut stream = Dir::from_fd(fd).during("read a directory")?;
    let mut out = Listing { entries: Vec::new(), opaque: marks.opaque, marked: false };
    for entry in stream.iter() {
        let entry = entry.during("read a directory")?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if let Some(marker) = whiteout::Marker::parse(name) {
            out.marked = true;
            match marker {
                whiteout::Marker::Opaque => out.opaque = true,
                whiteout::Marker::Hides(name) => {
                    out.entries.push(RawEntry { name: name.to_owned(), kind: EntryKind::Whiteout })
                }
                whiteout::Marker::Reserved => {}
            }
            continue;
        }
        let kind = match entry.file_type() {
            Some(Type::Directory) => EntryKind::Object(libc::S_IFDIR),
            Some(Type::Symlink) => EntryKind::Object(libc::S_IFLNK),
            Some(Type::Fifo) => EntryKind::Object(libc::S_IFIFO),
            Some(Type::Socket) => EntryKind::Object(libc::S_IFSOCK),
            Some(Type::BlockDevice) => EntryKind::Object(libc::S_IFBLK),
            Some(Type::File) if !marks.xattr_whiteouts => EntryKind::Object(libc::S_IFREG),
            // A character device may be a whiteout, an unknown type anything.
            Some(Type::CharacterDevice | Type::File) | None => {
                match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => {
                        if whiteout::is_whiteout(parent, name, &stat, marks.xattr_whiteouts)? {
                            EntryKind::Whiteout
                        } else {
                            EntryKind::Object(stat.st_mode & libc::S_IFMT)
                        }
                    }
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => return Err(Error::Layer { op: "stat an entry", errno }),
                }
            }
        };
        out.entries.push(RawEntry { name: name.to_owned(), kind });
    }
    Ok(out)
}

/// What `name` in the directory behind `parent` is.
pub(crate) fn find_at(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Named> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                return Ok(Named::Present(stat, whiteout::below(parent, name)?));
            }
            // Only an empty file can be a whiteout made of attributes.
            let empty = stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size == 0;
            let by_attribute = empty && whiteout::dir_marks(parent)?.xattr_whiteouts;
            if whiteout::is_whiteout(parent, name, &stat, by_attribute)? {
                Ok(Named::Whiteout)
            } else {
                Ok(Named::Present(stat, Below::Merged))
            }
        }
        Err(Errno::ENOENT) => {
            let marker = whiteout::marker_name(name);
            match fstatat(parent, marker.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(_) => Ok(Named::Whiteout),
                Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(Named::Absent),
                Err(errno) => Err(Error::Layer { op: "look for a whiteout", errno }),
            }
        }
        Err(errno) => Err(Error::Layer { op: "look up a name", errno }),
    }
}

/// The same for attributes, whose other errors the caller tells apart.
fn gone<T>(result: nix::Result<T>) -> Result<nix::Result<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Err(Error::Stale),
        other => Ok(other),
    }
}

/// Absence of something seen before means that the layer changed underneath.
fn gone_is_stale<T>(result: nix::Result<T>, op: &'static str) -> Result<T> {
    match result {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Err(Error::Stale),
        other => other.during(op),
    }
}

impl Layer for DirLayer {
    fn root(&self) -> Result<FileStat> {
        fstat(self.root.as_fd()).during("stat the root of a layer")
    }

    fn list(&self, dir: &Path) -> Result<Listing> {
        list_at(self.dir(dir)?.as_fd())
    }

    fn find(&self, dir: &Path, name: &OsStr) -> Result<Named> {
        match self.dir(dir) {
            Err(Error::Stale) => Ok(Named::Absent),
            other => find_at(other?.as_fd(), name),
        }
    }

    fn stat(&self, dir: &Path, name: &OsStr) -> Result<FileStat> {
        let parent = self.dir(dir)?;
        if name.is_empty() {
            return fstat(parent.as_fd()).during("stat a directory");
        }
        let stat = fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
        gone_is_stale(stat, "stat a file")
    }

    fn open(&self, dir: &Path, name: &OsStr) -> Result<OwnedFd> {
        let parent = self.dir(dir)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        // Reading through the union must not change the layer's access times
        // where that can be avoided (only an owner may ask for it).
        match openat(parent.as_fd(), name, flags | OFlag::O_NOATIME, Mode::empty()) {
            Err(Errno::EPERM) => {}
            other => return gone_is_stale(other, "open a file"),
        }
        gone_is_stale(openat(parent.as_fd(), name, flags, Mode::empty()), "open a file")
    }

    fn readlink(&self, dir: &Path, name: &OsStr) -> Result<OsString> {
        let parent = self.dir(dir)?;
        gone_is_stale(readlinkat(parent.as_fd(), name), "read a symbolic link")
    }

    fn getxattr(&self, dir: &Path, name: &OsStr, attr: &OsStr) -> Result<Vec<u8>> {
        let parent = self.dir(dir)?;
        let value = if name.is_empty() {
            sys::getxattr(parent.as_fd(), attr)
        } else {
            sys::getxattr_at(parent.as_fd(), name, attr)
        };
        match gone(value)? {
            Err(Errno::ENODATA) => Err(Error::NoAttribute),
            other => other.during("get an extended attribute"),
        }
    }

    fn listxattr(&self, dir: &Path, name: &OsStr) -> Result<Vec<OsString>> {
        let parent = self.dir(dir)?;
        let names = if name.is_empty() {
            sys::listxattr(parent.as_fd())
        } else {
            sys::listxattr_at(parent.as_fd(), name)
        };
        match gone(names)? {
            Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
            other => other.during("list extended attributes"),
        }
    }
}
