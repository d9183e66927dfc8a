//! A layer in memory, in which tests inject faults.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, fstat};

use super::{Below, EntryKind, Layer, Listing, Named, RawEntry};
use crate::error::{During, Error, Result};
use crate::sync::Mutex;

#[derive(Debug)]
enum Object {
    File(Vec<u8>),
    Symlink(OsString),
    Directory { opaque: bool },
    Whiteout,
}

#[derive(Debug)]
struct Inode {
    object: Object,
    mode: u32,
    number: u64,
    attributes: BTreeMap<OsString, Vec<u8>>,
}

/// A tree in memory.
#[derive(Debug)]
pub struct MemLayer {
    inodes: BTreeMap<PathBuf, Inode>,
    device: u64,
    fault: Mutex<Option<(PathBuf, Errno)>>,
}

impl MemLayer {
    /// An empty tree on a device of this number.
    #[must_use]
    pub fn new(device: u64) -> Self {
        let mut layer = Self { inodes: BTreeMap::new(), device, fault: Mutex::new(None) };
        layer.put("", Object::Directory { opaque: false }, 0o755);
        layer
    }

    fn put(&mut self, path: &str, object: Object, mode: u32) {
        let number = self.inodes.len() as u64 + 2;
        let attributes = BTreeMap::new();
        self.inodes.insert(path.into(), Inode { object, mode, number, attributes });
    }

    /// Adds a file. Parents are up to the caller.
    #[must_use]
    pub fn file(mut self, path: &str, content: &[u8], mode: u32) -> Self {
        self.put(path, Object::File(content.to_vec()), mode);
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        self.put(path, Object::Directory { opaque: false }, mode);
        self
    }

    /// Adds an opaque directory.
    #[must_use]
    pub fn opaque(mut self, path: &str) -> Self {
        self.put(path, Object::Directory { opaque: true }, 0o755);
        self
    }

    /// Adds a directory whose lower part is at `to`.
    #[must_use]
    pub fn redirected(mut self, path: &str, to: &str) -> Self {
        self.put(path, Object::Directory { opaque: false }, 0o755);
        if let Some(inode) = self.inodes.get_mut(Path::new(path)) {
            inode.attributes.insert("user.overlay.redirect".into(), to.into());
        }
        self
    }

    /// Adds a file whose data is in the layers below, at `to` if that is given.
    #[must_use]
    pub fn metacopy(mut self, path: &str, size: usize, to: Option<&str>) -> Self {
        self.put(path, Object::File(vec![0; size]), 0o644);
        if let Some(inode) = self.inodes.get_mut(Path::new(path)) {
            inode.attributes.insert("user.overlay.metacopy".into(), Vec::new());
            if let Some(to) = to {
                inode.attributes.insert("user.overlay.redirect".into(), to.into());
            }
        }
        self
    }

    /// Adds a whiteout.
    #[must_use]
    pub fn whiteout(mut self, path: &str) -> Self {
        self.put(path, Object::Whiteout, 0);
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.put(path, Object::Symlink(target.into()), 0o777);
        self
    }

    /// From now on every access to `path` fails with `errno`.
    pub fn fail(&self, path: &str, errno: Errno) {
        *self.fault.lock().expect("no panic while locked") = Some((path.into(), errno));
    }

    fn at(&self, dir: &Path, name: &OsStr) -> Result<Option<&Inode>> {
        let path = if name.is_empty() { dir.to_owned() } else { dir.join(name) };
        if let Some((faulty, errno)) = &*self.fault.lock().expect("no panic while locked")
            && *faulty == path
        {
            return Err(Error::Layer { op: "injected fault", errno: *errno });
        }
        Ok(self.inodes.get(&path))
    }

    fn stat_of(&self, inode: &Inode) -> Result<FileStat> {
        // Any status will do as a start: every field that counts is set.
        let base = memfd_create(c"stat", MFdFlags::MFD_CLOEXEC).during("make a file")?;
        let mut stat = fstat(&base).during("stat a file")?;
        let (kind, size) = match &inode.object {
            Object::File(content) => (libc::S_IFREG, content.len()),
            Object::Symlink(target) => (libc::S_IFLNK, target.len()),
            Object::Directory { .. } => (libc::S_IFDIR, 0),
            Object::Whiteout => (libc::S_IFCHR, 0),
        };
        stat.st_mode = kind | inode.mode;
        stat.st_size = size.cast_signed() as i64;
        stat.st_dev = self.device;
        stat.st_ino = inode.number;
        stat.st_nlink = 1;
        (stat.st_uid, stat.st_gid, stat.st_rdev) = (0, 0, 0);
        (stat.st_atime, stat.st_mtime, stat.st_ctime) = (0, 0, 0);
        (stat.st_atime_nsec, stat.st_mtime_nsec, stat.st_ctime_nsec) = (0, 0, 0);
        Ok(stat)
    }
}

impl Layer for MemLayer {
    fn root(&self) -> Result<FileStat> {
        self.stat(Path::new(""), OsStr::new(""))
    }

    fn list(&self, dir: &Path) -> Result<Listing> {
        let mut out = Listing::default();
        match self.at(dir, OsStr::new(""))?.map(|i| &i.object) {
            Some(Object::Directory { opaque }) => out.opaque = *opaque,
            _ => return Err(Error::Stale),
        }
        for (path, inode) in &self.inodes {
            if path.as_os_str().is_empty() || path.parent() != Some(dir) {
                continue;
            }
            let kind = match &inode.object {
                Object::File(_) => EntryKind::Object(libc::S_IFREG),
                Object::Symlink(_) => EntryKind::Object(libc::S_IFLNK),
                Object::Directory { .. } => EntryKind::Object(libc::S_IFDIR),
                Object::Whiteout => EntryKind::Whiteout,
            };
            let name = path.file_name().unwrap_or_default().to_owned();
            out.entries.push(RawEntry { name, kind });
        }
        Ok(out)
    }

    fn find(&self, dir: &Path, name: &OsStr) -> Result<Named> {
        Ok(match self.at(dir, name)? {
            None => Named::Absent,
            Some(Inode { object: Object::Whiteout, .. }) => Named::Whiteout,
            Some(inode) => {
                let redirect = inode.attributes.get(OsStr::new("user.overlay.redirect"));
                let below = match (&inode.object, redirect) {
                    (Object::Directory { opaque: true }, _) => Below::Hidden,
                    (_, Some(to)) => Below::Redirected(OsString::from_vec(to.clone())),
                    _ => Below::Merged,
                };
                Named::Present(self.stat_of(inode)?, below)
            }
        })
    }

    fn stat(&self, dir: &Path, name: &OsStr) -> Result<FileStat> {
        self.at(dir, name)?.ok_or(Error::Stale).and_then(|i| self.stat_of(i))
    }

    fn open(&self, dir: &Path, name: &OsStr) -> Result<OwnedFd> {
        let Some(Inode { object: Object::File(content), .. }) = self.at(dir, name)? else {
            return Err(Error::Stale);
        };
        let fd = memfd_create(c"file", MFdFlags::MFD_CLOEXEC).during("make a file")?;
        nix::sys::uio::pwrite(&fd, content, 0).during("fill a file")?;
        Ok(fd)
    }

    fn readlink(&self, dir: &Path, name: &OsStr) -> Result<OsString> {
        match self.at(dir, name)?.map(|i| &i.object) {
            Some(Object::Symlink(target)) => Ok(target.clone()),
            _ => Err(Error::Stale),
        }
    }

    fn getxattr(&self, dir: &Path, name: &OsStr, attr: &OsStr) -> Result<Vec<u8>> {
        let inode = self.at(dir, name)?.ok_or(Error::Stale)?;
        inode.attributes.get(attr).cloned().ok_or(Error::NoAttribute)
    }

    fn listxattr(&self, dir: &Path, name: &OsStr) -> Result<Vec<OsString>> {
        let inode = self.at(dir, name)?.ok_or(Error::Stale)?;
        Ok(inode.attributes.keys().cloned().collect())
    }
}
