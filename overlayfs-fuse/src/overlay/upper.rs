//! The upper layer and its work directory: the only place where disk is changed.
//!
//! # Theory of operation
//! `WORKDIR/work` holds what is being made; everything in it is garbage at mount
//! and removed then. An object is made there complete and renamed into place, so
//! that a crash leaves the old state or the new one. `WORKDIR/links.coracle` is
//! the index of copied-up hard links ([`super::links`]).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat, mknodat,
};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::inode::{Node, UpperAt};
use super::{Overlay, whiteout};
use crate::error::{During, Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, RwLockReadGuard};
use crate::sys;

const WORK: &str = "work";
const LINKS: &str = "links.coracle";

/// An object of the upper: an entry of a directory, or a descriptor.
#[derive(Debug)]
pub(crate) enum Spot {
    At(Arc<OwnedFd>, OsString),
    Fd(Arc<OwnedFd>),
}

/// Where a node is in the upper, as long as this is held.
pub(crate) struct NodeSpot<'a> {
    spot: Spot,
    _named: RwLockReadGuard<'a, ()>,
}

impl std::ops::Deref for NodeSpot<'_> {
    type Target = Spot;

    fn deref(&self) -> &Spot {
        &self.spot
    }
}

impl Spot {
    pub(crate) fn stat(&self) -> nix::Result<FileStat> {
        match self {
            Self::At(dir, name) => {
                fstatat(dir.as_fd(), name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            }
            Self::Fd(fd) => fstat(fd.as_fd()),
        }
    }

    /// An `O_PATH` descriptor of the object.
    pub(crate) fn reach(&self) -> nix::Result<Arc<OwnedFd>> {
        match self {
            Self::At(dir, name) => {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(dir.as_fd(), name.as_os_str(), flags, Mode::empty()).map(Arc::new)
            }
            Self::Fd(fd) => Ok(Arc::clone(fd)),
        }
    }

    /// Opens a regular file or directory.
    pub(crate) fn open(&self, flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        match self {
            Self::At(dir, name) => {
                openat(dir.as_fd(), name.as_os_str(), flags | OFlag::O_NOFOLLOW, Mode::empty())
            }
            // A magic link: to be followed, it leads to the object itself.
            Self::Fd(fd) => {
                nix::fcntl::open(sys::fd_path(fd.as_fd()).as_c_str(), flags, Mode::empty())
            }
        }
    }
}

/// The upper layer.
#[derive(Debug)]
pub struct Upper {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) work: Arc<OwnedFd>,
    pub(crate) links: Arc<OwnedFd>,
    /// `user` or `trusted`: the namespace of our attributes.
    namespace: &'static str,
    /// mknod of a whiteout device was refused: `.wh.NAME` files instead.
    marker_files: AtomicBool,
    counter: AtomicU64,
    /// Our number: names in the work directory are made of it and the counter.
    process: OnceLock<u32>,
    /// Held while a number of lost names is changed.
    pub(super) lost: Mutex<()>,
    _lock: Option<Flock<OwnedFd>>,
    /// Another instance holds the work directory.
    pub shared_work: bool,
}

impl Upper {
    /// Opens upper and work directory, and removes what a crash left.
    ///
    /// # Errors
    /// What failed, as an errno with the step's name.
    pub fn open(upper: &Path, work: &Path) -> Result<Self> {
        let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root =
            nix::fcntl::open(upper, path, Mode::empty()).during("open the upper directory")?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let workdir =
            nix::fcntl::open(work, flags, Mode::empty()).during("open the work directory")?;
        let upper_device = fstat(root.as_fd()).during("stat the upper directory")?.st_dev;
        if fstat(workdir.as_fd()).during("stat the work directory")?.st_dev != upper_device {
            return Err(Error::CrossDevice);
        }
        let work_fd = open_or_make(workdir.as_fd(), WORK)?;
        let links = open_or_make(workdir.as_fd(), LINKS)?;
        let (lock, shared_work) = match Flock::lock(workdir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => (Some(lock), false),
            Err((_, Errno::EAGAIN)) => (None, true),
            // A file system without locks: nothing is known, nothing is held.
            Err((_, Errno::EOPNOTSUPP | Errno::ENOLCK | Errno::ENOSYS)) => (None, false),
            Err((_, errno)) => return Err(Error::Layer { op: "lock the work directory", errno }),
        };
        // `trusted.*` needs privilege over the whole machine; asking is the test.
        let probe = OsStr::new("trusted.overlay.coracle.probe");
        let namespace = match sys::setxattr(work_fd.as_fd(), probe, b"y", 0) {
            Ok(()) => {
                sys::removexattr(work_fd.as_fd(), probe).during("clean up the work directory")?;
                "trusted"
            }
            Err(_) => "user",
        };
        let upper = Self {
            root: Arc::new(root),
            work: Arc::new(work_fd),
            links: Arc::new(links),
            namespace,
            marker_files: AtomicBool::new(false),
            counter: AtomicU64::new(0),
            process: OnceLock::new(),
            lost: Mutex::new(()),
            _lock: lock,
            shared_work,
        };
        if !shared_work {
            upper.clean()?;
        }
        Ok(upper)
    }

    /// Ends what a crash interrupted, and removes what it left.
    fn clean(&self) -> Result<()> {
        for name in names_in(self.work.as_fd())? {
            self.settle_last(&name)?;
            self.settle_mode(&name)?;
            self.discard(&name)?;
        }
        Ok(())
    }

    /// A name in the work directory that nobody uses.
    pub(crate) fn temp_name(&self) -> OsString {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        // Not when the upper is opened: the process that serves is another one.
        let process = self.process.get_or_init(std::process::id);
        format!("#{process}.{n:x}").into()
    }

    /// Whiteouts are `.wh.NAME` files here: a name may be hidden beside an entry.
    pub(crate) fn uses_marker_files(&self) -> bool {
        self.marker_files.load(Ordering::Relaxed)
    }

    /// Whether `trusted.*` can be read and written.
    pub(super) fn sees_trusted(&self) -> bool {
        self.namespace == "trusted"
    }

    pub(super) fn attribute(&self, name: &str) -> OsString {
        format!("{}.overlay.{name}", self.namespace).into()
    }

    /// Marks the directory behind `fd` opaque.
    pub(crate) fn set_opaque(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match sys::setxattr(fd, &self.attribute("opaque"), b"y", 0) {
            Ok(()) => Ok(()),
            // No attributes of the user on this file system: the marker file.
            Err(Errno::EOPNOTSUPP) => {
                let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let path = sys::fd_path(fd);
                let dir = nix::fcntl::open(
                    path.as_c_str(),
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )
                .during("open a directory to mark it opaque")?;
                openat(dir.as_fd(), ".wh..wh..opq", flags, Mode::from_bits_truncate(0o600))
                    .map(drop)
                    .during("make the opaque marker")
            }
            Err(errno) => Err(Error::Layer { op: "mark a directory opaque", errno }),
        }
    }

    /// Has the directory behind `fd` say where its lower part is. Where that
    /// cannot be kept the directory cannot be renamed.
    pub(crate) fn set_redirect(&self, fd: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
        sys::setxattr(fd, &self.attribute("redirect"), value, 0).map_err(|_| Error::CrossDevice)
    }

    /// Whether the root hides all lowers.
    pub(crate) fn root_is_opaque(&self) -> Result<bool> {
        Ok(whiteout::dir_marks(self.root.as_fd())?.opaque)
    }

    /// Puts a whiteout at `name` in `dir`, in place of what the upper has there
    /// (`replaces`: its type), which is removed. Atomic with whiteout devices.
    pub(crate) fn place_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        replaces: Option<u32>,
    ) -> Result<()> {
        if !self.marker_files.load(Ordering::Relaxed) {
            let made = match replaces {
                None => mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0).map(|()| None),
                Some(_) => {
                    let temp = self.temp_name();
                    mknodat(&self.work, temp.as_os_str(), SFlag::S_IFCHR, Mode::empty(), 0)
                        .map(|()| Some(temp))
                }
            };
            match made {
                Ok(None) => return Ok(()),
                Ok(Some(temp)) => return self.swap_in(&temp, dir, name, replaces),
                Err(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP) => {
                    self.marker_files.store(true, Ordering::Relaxed);
                }
                Err(errno) => return Err(Error::Layer { op: "make a whiteout", errno }),
            }
        }
        let marker = whiteout::marker_name(name);
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(dir, marker.as_os_str(), flags, Mode::from_bits_truncate(0o600))
            .during("make a whiteout file")?;
        if let Some(kind) = replaces {
            self.remove_entry(dir, name, kind)?;
        }
        Ok(())
    }

    /// Renames `temp` of the work directory to `name`, where an object of type
    /// `replaces` is or is not; a directory that was there is thrown away.
    pub(crate) fn swap_in(
        &self,
        temp: &OsStr,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        replaces: Option<u32>,
    ) -> Result<()> {
        let temp_is_dir = || {
            fstatat(&self.work, temp, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR)
        };
        let exchange = match replaces {
            Some(libc::S_IFDIR) => true,
            Some(_) => temp_is_dir().during("examine what was made")?,
            None => false,
        };
        let flags = if exchange { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::empty() };
        if let Err(errno) = renameat2(&self.work, temp, dir, name, flags) {
            self.discard(temp)?;
            return Err(Error::Layer { op: "rename into place", errno });
        }
        if exchange { self.discard(temp) } else { Ok(()) }
    }

    /// Removes an object of the work directory with all it holds.
    pub(crate) fn discard(&self, temp: &OsStr) -> Result<()> {
        remove_tree(self.work.as_fd(), temp)
    }

    /// Removes an entry of the upper; a directory may hold whiteouts.
    pub(crate) fn remove_entry(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: u32) -> Result<()> {
        if kind != libc::S_IFDIR {
            return unlinkat(dir, name, UnlinkatFlags::NoRemoveDir).during("remove a file");
        }
        match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                let temp = self.temp_name();
                renameat2(dir, name, &self.work, temp.as_os_str(), RenameFlags::empty())
                    .during("take a directory away")?;
                self.discard(&temp)
            }
            other => other.during("remove a directory"),
        }
    }

    /// Removes a `.wh.` file that hides `name`, if there is one.
    pub(crate) fn remove_marker(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let marker = whiteout::marker_name(name);
        match unlinkat(dir, marker.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(()),
            Err(errno) => Err(Error::Layer { op: "remove a whiteout file", errno }),
        }
    }
}

impl Overlay {
    /// Where the upper copy of a node is. The tree lock is held. Nobody may have
    /// two of one node: who changes its name may be waiting in between.
    pub(crate) fn upper_spot<'a>(&self, node: &'a Arc<Node>) -> Result<Option<NodeSpot<'a>>> {
        let Some(up) = &self.upper else { return Ok(None) };
        let named = node.named();
        let (at, place) = {
            let body = node.body();
            (body.upper.clone(), body.place.clone())
        };
        let spot = match at {
            UpperAt::None => None,
            UpperAt::Held(fd) => Some(Spot::Fd(fd)),
            UpperAt::Linked(key) => Some(Spot::At(Arc::clone(&up.links), key)),
            UpperAt::Named => match place {
                None => Some(Spot::Fd(Arc::clone(&up.root))),
                Some((parent, name)) => {
                    Some(Spot::At(self.upper_dir(&parent)?, name.to_os_string()))
                }
            },
        };
        Ok(spot.map(|spot| NodeSpot { spot, _named: named }))
    }
}

fn open_or_make(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match mkdirat(dir, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(Error::Layer { op: "make the work directory", errno }),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(dir, name, flags, Mode::empty()) {
        // The kernel's overlay leaves its work directory with mode 000.
        Err(Errno::EACCES) => {
            let mode = Mode::from_bits_truncate(0o700);
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
                .during("make the work directory accessible")?;
            openat(dir, name, flags, Mode::empty()).during("open the work directory")
        }
        other => other.during("open the work directory"),
    }
}

/// Empties a directory.
pub(crate) fn remove_contents(dir: BorrowedFd<'_>) -> Result<()> {
    for name in names_in(dir)? {
        remove_tree(dir, &name)?;
    }
    Ok(())
}

/// Whether a directory of the upper holds anything, whiteouts included.
pub(crate) fn has_entries(dir: BorrowedFd<'_>) -> Result<bool> {
    names_in(dir).map(|names| !names.is_empty())
}

pub(crate) fn names_in(dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = openat(dir, ".", flags, Mode::empty()).during("read a directory of the upper")?;
    let mut stream = nix::dir::Dir::from_fd(fd).during("read a directory of the upper")?;
    let mut names = Vec::new();
    for entry in stream.iter() {
        let entry = entry.during("read a directory of the upper")?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes `name` in `dir` with all it holds; absence is fine.
fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // A directory: EISDIR on Linux, EPERM by POSIX.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(Error::Layer { op: "remove from the work directory", errno }),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(errno) => return Err(Error::Layer { op: "remove from the work directory", errno }),
    }
    // Its mode may bar even its owner.
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    if stat.during("remove from the work directory")?.st_mode & 0o700 != 0o700 {
        fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)
            .during("remove from the work directory")?;
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(dir, name, flags, Mode::empty()).during("remove from the work directory")?;
    remove_contents(fd.as_fd())?;
    unlinkat(dir, name, UnlinkatFlags::RemoveDir).during("remove from the work directory")
}
