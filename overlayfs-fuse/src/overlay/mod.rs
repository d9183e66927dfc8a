//! The union itself: what each operation means on the layers.
//!
//! # Theory of operation
//! An [`Overlay`] is a stack of lowers that are only read, and at most one upper
//! to which every change goes. It knows nothing of FUSE: operations take node
//! ids and names and give attributes or an [`Error`] with an errno.
//!
//! * *Reading* goes to the topmost layer that has the object.
//! * *Changing* first copies the object up ([`copy_up`]), then changes the copy.
//! * *Removing* leaves a whiteout where a lower has the name.
//!
//! Two server threads work in it at once. There is no lock around an operation:
//! the tree lock is shared by all and exclusive only while a directory of the
//! upper is renamed (which changes the paths of all below it); changes of names
//! lock the one or two directories they are in; data is copied under the lock
//! of the inode being copied alone. See [`inode`] for the order.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::stat::{FileStat, fstat};

use crate::error::{During, Error, Result};
use crate::layer::{Layer, open_beneath};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

mod ahead;
mod attr;
mod barred;
mod copy_up;
mod create;
pub mod data;
mod directory;
mod files;
pub mod idmap;
pub mod inode;
mod links;
mod lookup;
pub mod merge;
mod metacopy;
mod object;
mod quota;
pub mod redirect;
mod remove;
mod rename;
mod upper;
pub mod whiteout;
mod writeback;
pub mod xattr;

pub use attr::{Changes, SetTime};
pub use create::{Caller, New};
pub use directory::UNKNOWN;
pub use idmap::{IdMap, Owners};
pub use inode::{Ino, Node, ROOT};
pub use lookup::Found;
pub use redirect::RedirectDir;
pub use upper::Upper;

use inode::{Inodes, Lower, LowerDir, UpperAt};

/// Attributes of an object as the union shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Node id and inode number.
    pub ino: Ino,
    /// Type and permission bits.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner, shown.
    pub uid: u32,
    /// Group, shown.
    pub gid: u32,
    /// Device number (`dev_t` of libc).
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of an access, bytes.
    pub blksize: u32,
    /// Last access: seconds since 1970 and nanoseconds.
    pub atime: (i64, u32),
    /// Last change of the data.
    pub mtime: (i64, u32),
    /// Last change of the inode.
    pub ctime: (i64, u32),
}

/// Space and inodes of a file system (statvfs(3)).
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// What blocks are counted in, bytes.
    pub unit: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for the unprivileged.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred size of an access, bytes.
    pub block_size: u64,
    /// Longest name, bytes.
    pub name_max: u64,
}

/// What decides how the union behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Owners: mapping and squashing.
    pub owners: Owners,
    /// Where owner and mode are kept.
    pub permissions: xattr::Permissions,
    /// Show of the lowers only what every user of the host may read.
    pub public_lower: bool,
    /// Never sync.
    pub volatile: bool,
    /// The kernel may keep what is written, and hand it over later.
    pub writeback: bool,
    /// At most so many bytes may the files of the upper take.
    pub upper_quota: Option<u64>,
    /// What is done about renamed directories that a lower has.
    pub redirect_dir: RedirectDir,
    /// `.`-entries of the upper are accepted without POSIX ACLs.
    pub no_acl: bool,
    /// Extended attributes are neither shown nor accepted.
    pub no_xattrs: bool,
}

/// The union.
pub struct Overlay {
    lowers: Vec<Box<dyn Layer>>,
    /// Device of each lower's root; only objects on it have a stable origin.
    lower_devices: Vec<u64>,
    upper: Option<Upper>,
    options: Options,
    /// The bound on the upper's space, if there is one.
    quota: Option<Arc<quota::Quota>>,
    inodes: Inodes,
    files: files::Files,
    /// By lower: how data cannot be copied from it.
    refused: Vec<data::Refused>,
    /// Copy-ups that succeeded.
    copied: AtomicU64,
    ahead: ahead::Ahead,
    /// The kernel keeps what is written, see [`writeback`].
    written_back: AtomicBool,
    /// See the theory above.
    tree: RwLock<()>,
}

impl Overlay {
    /// Joins `lowers` (topmost first) and `upper`.
    ///
    /// # Errors
    /// A layer's root cannot be examined, or there is no layer at all.
    pub fn new(
        lowers: Vec<Box<dyn Layer>>,
        upper: Option<Upper>,
        options: Options,
    ) -> Result<Self> {
        let mut lower_devices = Vec::with_capacity(lowers.len());
        let mut stack = Vec::new();
        let mut blank = false;
        let mut opaque = false;
        let root: Arc<std::path::Path> = Arc::from(std::path::Path::new(""));
        if let Some(up) = &upper {
            opaque = up.root_is_opaque()?;
        }
        for (layer, lower) in lowers.iter().enumerate() {
            let stat = lower.root()?;
            lower_devices.push(stat.st_dev);
            if opaque {
                continue;
            }
            if options.public_lower && !lookup::is_public(&stat) {
                // The topmost root decides; a private one further down hides
                // itself and what is below.
                blank = stack.is_empty();
                opaque = true;
                if !blank {
                    continue;
                }
            }
            stack.push(LowerDir { layer, path: Arc::clone(&root) });
        }
        let mut devices = lower_devices.clone();
        let (at, upper_ino) = match &upper {
            Some(up) => {
                let stat = fstat(up.root.as_fd()).during("stat the root of the upper")?;
                devices.push(stat.st_dev);
                (UpperAt::Named, Some((stat.st_dev, stat.st_ino)))
            }
            None => (UpperAt::None, None),
        };
        if stack.is_empty() && upper.is_none() {
            return Err(Error::Invalid("a union needs at least one layer"));
        }
        let inodes = Inodes::new(devices, (at, upper_ino, Lower::Dirs(stack.into(), blank)));
        let quota = match (&upper, options.upper_quota) {
            (Some(up), Some(limit)) => Some(quota::Quota::new(limit, up)?),
            _ => None,
        };
        let refused = lowers.iter().map(|_| data::Refused::default()).collect();
        Ok(Self {
            lowers,
            lower_devices,
            upper,
            options,
            quota,
            inodes,
            files: files::Files::default(),
            refused,
            copied: AtomicU64::new(0),
            ahead: ahead::Ahead::default(),
            written_back: AtomicBool::new(false),
            tree: RwLock::new(()),
        })
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Nodes that are known.
    #[must_use]
    pub fn known_nodes(&self) -> usize {
        self.inodes.len()
    }

    /// At most so many files are kept open.
    pub fn limit_open_files(&self, limit: usize) {
        self.files.limit_to(limit);
    }

    /// What there is at the moment, and what was done, by name.
    #[must_use]
    pub fn gauges(&self) -> Vec<(&'static str, u64)> {
        let mut gauges = vec![
            ("nodes", self.known_nodes() as u64),
            ("open_files", self.files.len() as u64),
            ("copy_ups", self.copied.load(Ordering::Relaxed)),
            ("ahead.looked", self.ahead.looked.load(Ordering::Relaxed)),
            ("ahead.used", self.ahead.used.load(Ordering::Relaxed)),
        ];
        if let Some(quota) = &self.quota {
            gauges.extend([("upper.bytes", quota.taken()), ("upper.quota", quota.limit())]);
        }
        gauges
    }

    fn tree_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.tree.read().expect("no panic while the tree is locked")
    }

    fn tree_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.tree.write().expect("no panic while the tree is locked")
    }

    fn node(&self, id: Ino) -> Result<Arc<Node>> {
        self.inodes.get(id).ok_or(Error::Stale)
    }

    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::ReadOnly)
    }

    /// Takes back `count` lookups of a node.
    pub fn forget(&self, id: Ino, count: u64) {
        self.inodes.forget(id, count);
    }

    /// Space and inodes of the file system that changes go to, within the quota.
    ///
    /// # Errors
    /// What fstatvfs(3) says.
    pub fn statfs(&self) -> Result<Option<Space>> {
        let Some(up) = &self.upper else { return Ok(None) };
        let s = nix::sys::statvfs::fstatvfs(up.root.as_fd()).during("statfs of the upper")?;
        let unit = s.fragment_size().max(1);
        let mut space = Space {
            unit,
            blocks: s.blocks(),
            free: s.blocks_free(),
            available: s.blocks_available(),
            files: s.files(),
            files_free: s.files_free(),
            block_size: s.block_size(),
            name_max: s.name_max(),
        };
        if let Some(quota) = &self.quota {
            let free = quota.limit().saturating_sub(quota.taken()) / unit;
            space.blocks = space.blocks.min(quota.limit() / unit);
            space.free = space.free.min(free);
            space.available = space.available.min(free);
        }
        Ok(Some(space))
    }

    /// A descriptor (`O_PATH`) of the upper directory behind `node`, which keeps it:
    /// also when it is renamed or removed it is the same directory. The tree lock
    /// is held.
    fn upper_dir(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        let up = self.upper()?;
        if node.id == ROOT {
            return Ok(Arc::clone(&up.root));
        }
        if let Some(fd) = self.kept_file(node) {
            node.recent.store(true, Ordering::Relaxed);
            return Ok(fd);
        }
        let fd = Arc::new(open_beneath(up.root.as_fd(), &self.upper_path(node)?)?);
        self.keep_file(node, files::OpenFile::of_directory(node.epoch(), Arc::clone(&fd)));
        Ok(fd)
    }

    /// The path of a directory or file in the upper. The tree lock is held.
    fn upper_path(&self, node: &Arc<Node>) -> Result<PathBuf> {
        let mut names: Vec<Arc<OsStr>> = Vec::new();
        let mut at = Arc::clone(node);
        loop {
            let (parent, name) = match &at.body().place {
                Some((parent, name)) => (Arc::clone(parent), Arc::clone(name)),
                None if at.id == ROOT => break,
                None => return Err(Error::Stale),
            };
            names.push(name);
            at = parent;
        }
        Ok(names.iter().rev().map(|name| &**name).collect())
    }
}

/// A name that may be created or looked up.
fn check_name(name: &OsStr) -> Result<()> {
    if whiteout::is_reserved(name) {
        return Err(Error::Invalid("names that start with .wh. are reserved"));
    }
    Ok(())
}

/// Device and inode number of a status.
fn dev_ino(stat: &FileStat) -> inode::DevIno {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
