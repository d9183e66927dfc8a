//! Attributes: status, owner, mode, times, size, extended attributes, link targets.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, ftruncate};

use super::directory::DirState;
use super::inode::{Ino, Lower, Node, UpperAt};
use super::object::{Object, chmod_path};
use super::xattr::{
    ACL_ACCESS, CAPABILITY, OWNER, OverrideStat, Permissions, is_private, map_ids, minimal_acl,
    parse_owner,
};
use super::{Attr, IdMap, Overlay, Owners};
use crate::error::{During, Error, Result};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, MutexGuard};
use crate::sys;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change.
    Now,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// What setattr is to change; owners as shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last change of the data.
    pub mtime: Option<SetTime>,
    /// The caller lacks the privilege to keep set-id bits when it changes data.
    pub drop_set_id: bool,
}

/// The set-id bits that a change of data by the unprivileged clears (inode(7)).
pub(crate) fn without_set_id(mode: u32) -> u32 {
    let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
    mode & !(libc::S_ISUID | group)
}

fn time_spec(time: Option<SetTime>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(SetTime::Now) => TimeSpec::UTIME_NOW,
        Some(SetTime::At(s, ns)) => TimeSpec::new(s, i64::from(ns)),
    }
}

/// Owner and mode are the inode's.
fn change_inode(object: &Object, node: &Node, changes: &Changes, owners: &Owners) -> Result<()> {
    let uid = changes.uid.map(|id| owners.disk_uid(id)).transpose()?.flatten();
    let gid = changes.gid.map(|id| owners.disk_gid(id)).transpose()?.flatten();
    if uid.is_some() || gid.is_some() {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        fchownat(object.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)
            .during("change the owner")?;
    }
    if let Some(mode) = changes.mode {
        object.chmod(Mode::from_bits_truncate(mode & 0o7777)).during("change the mode")?;
    } else if changes.size.is_some() && changes.drop_set_id && node.kind == libc::S_IFREG {
        let stat = fstat(object.as_fd()).during("stat a file of the upper")?;
        let mode = stat.st_mode & 0o7777;
        if without_set_id(mode) != mode {
            object
                .chmod(Mode::from_bits_truncate(without_set_id(mode)))
                .during("clear the set-id bits")?;
        }
    }
    Ok(())
}

impl Overlay {
    /// Attributes of a node.
    ///
    /// # Errors
    /// What the layers say.
    pub fn getattr(&self, id: Ino) -> Result<Attr> {
        let node = self.node(id)?;
        let _tree = self.tree_shared();
        self.attr(&node)
    }

    /// Attributes of a node. The tree lock is held.
    pub(crate) fn attr(&self, node: &Arc<Node>) -> Result<Attr> {
        let in_upper = !matches!(node.body().upper, UpperAt::None);
        if self.options.permissions == Permissions::Inode
            && let Some(file) = self.kept_file(node)
        {
            let stat = fstat(file.as_fd()).during("stat an open file")?;
            return Ok(self.attr_of(node, &stat, None, in_upper));
        }
        if let Some(spot) = self.upper_spot(node)? {
            let stat = match spot.stat() {
                Err(Errno::ENOENT) => Err(Error::Stale),
                other => other.during("stat a file of the upper"),
            }?;
            let kept = self.kept_by_spot(&spot, &stat)?;
            return Ok(self.attr_of(node, &stat, kept.as_ref(), true));
        }
        let (layer, path, name) = lower_of(node)?;
        let stat = self.lowers[layer].stat(&path, &name)?;
        let kept = self.kept_in_lower(layer, &path, &name)?;
        Ok(self.attr_of(node, &stat, kept.as_ref(), false))
    }

    fn kept_by_spot(
        &self,
        spot: &super::upper::Spot,
        stat: &FileStat,
    ) -> Result<Option<OverrideStat>> {
        let kind = stat.st_mode & libc::S_IFMT;
        if self.options.permissions.names().is_empty()
            || (kind != libc::S_IFREG && kind != libc::S_IFDIR)
        {
            return Ok(None);
        }
        match spot {
            super::upper::Spot::At(dir, name) => {
                self.kept(|a| sys::getxattr_at(dir.as_fd(), name, OsStr::new(a)))
            }
            super::upper::Spot::Fd(fd) => self.kept(|a| sys::getxattr(fd.as_fd(), OsStr::new(a))),
        }
    }

    /// Changes attributes; the object is copied up first, without the data that
    /// a new size cuts off.
    ///
    /// # Errors
    /// What the layers say. Changes made before the failing one stay.
    pub fn setattr(&self, id: Ino, changes: &Changes) -> Result<Attr> {
        let node = self.node(id)?;
        if let Some(attr) = self.has_already(&node, changes)? {
            return Ok(attr);
        }
        self.copy_up(&node, changes.size)?;
        if let Some(size) = changes.size {
            self.resize(&node, size)?;
        }
        let sets_times = changes.atime.is_some() || changes.mtime.is_some();
        let _own = if sets_times { self.own_times(&node) } else { None };
        let _tree = self.tree_shared();
        let _state = self.passes_on_anew(&node);
        if changes.mode.is_some() {
            self.forget_plain(&node);
        }
        let object = self.object(&node)?;
        if self.options.permissions == Permissions::Inode || node.kind == libc::S_IFLNK {
            change_inode(&object, &node, changes, &self.options.owners)?;
        } else {
            let stat = fstat(object.as_fd()).during("stat a file of the upper")?;
            let kept = self.kept(|a| sys::getxattr(object.as_fd(), OsStr::new(a)))?;
            self.change_kept(&object, &node, &stat, kept, changes)?;
        }
        if sets_times {
            object
                .set_times(&time_spec(changes.atime), &time_spec(changes.mtime))
                .during("set times")?;
        }
        self.attr(&node)
    }

    /// The upper object of a node. The tree lock is held.
    fn object(&self, node: &Arc<Node>) -> Result<Object> {
        if node.kind == libc::S_IFREG
            && let Some(file) = self.kept_file(node)
        {
            return Ok(Object::Open(file));
        }
        let spot = self.upper_spot(node)?.ok_or(Error::Stale)?;
        Ok(Object::Path(spot.reach().during("reach a file of the upper")?))
    }

    /// What a directory passes on is about to change, and what its mode allows: it is
    /// locked.
    fn passes_on_anew<'a>(&self, node: &'a Node) -> Option<MutexGuard<'a, DirState>> {
        let mut state = node.dir_state()?;
        state.passes_on = None;
        Some(state)
    }

    fn resize(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        let size = i64::try_from(size)
            .map_err(|_| Error::Layer { op: "change the size of a file", errno: Errno::EFBIG })?;
        let file = self.file(node, true)?;
        self.at_same_time(node, file.as_fd(), || {
            ftruncate(file.as_fd(), size).during("change the size of a file")
        })?;
        self.settle(file.as_fd())
    }

    /// Owner and mode live in an attribute: what chown(2) and chmod(2) would
    /// do to the inode is done to it.
    fn change_kept(
        &self,
        object: &Object,
        node: &Arc<Node>,
        stat: &FileStat,
        kept: Option<OverrideStat>,
        changes: &Changes,
    ) -> Result<()> {
        let owners = &self.options.owners;
        let old = kept.unwrap_or(OverrideStat {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            kind: Some(node.kind),
            rdev: stat.st_rdev,
        });
        let mut new = old;
        if let Some(uid) = changes.uid {
            new.uid = owners.disk_uid(uid)?.unwrap_or(old.uid);
        }
        if let Some(gid) = changes.gid {
            new.gid = owners.disk_gid(gid)?.unwrap_or(old.gid);
        }
        let chown = changes.uid.is_some() || changes.gid.is_some();
        let written = changes.size.is_some() && changes.drop_set_id;
        if !node.is_dir() && (chown || written) {
            new.mode = without_set_id(new.mode);
        }
        if let Some(mode) = changes.mode {
            new.mode = mode & 0o7777;
            let floor = if node.is_dir() { 0o700 } else { 0o600 };
            object
                .chmod(Mode::from_bits_truncate(mode & 0o777 | floor))
                .during("change the mode")?;
        }
        if new == old && kept.is_some() {
            return Ok(());
        }
        self.keep(object.as_fd(), node.kind, &new)
    }

    /// Clears set-id bits; whether there were any.
    pub(crate) fn clear_set_id(&self, node: &Arc<Node>) -> Result<bool> {
        let _tree = self.tree_shared();
        let object = self.object(node)?;
        if self.options.permissions != Permissions::Inode
            && let Some(kept) = self.kept(|a| sys::getxattr(object.as_fd(), OsStr::new(a)))?
        {
            let mode = without_set_id(kept.mode);
            if mode != kept.mode {
                self.keep(object.as_fd(), node.kind, &OverrideStat { mode, ..kept })?;
            }
            return Ok(mode != kept.mode);
        }
        let mode = fstat(object.as_fd()).during("stat a file of the upper")?.st_mode & 0o7777;
        if without_set_id(mode) == mode {
            return Ok(false);
        }
        object
            .chmod(Mode::from_bits_truncate(without_set_id(mode)))
            .during("clear the set-id bits")?;
        Ok(true)
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for anything else, or what the layers say.
    pub fn readlink(&self, id: Ino) -> Result<OsString> {
        let node = self.node(id)?;
        if node.kind != libc::S_IFLNK {
            return Err(Error::Invalid("not a symbolic link"));
        }
        let _tree = self.tree_shared();
        if let Some(spot) = self.upper_spot(&node)? {
            let object = spot.reach().during("reach a symbolic link")?;
            let stat = fstat(object.as_fd()).during("stat a symbolic link")?;
            if stat.st_mode & libc::S_IFMT == libc::S_IFREG {
                return self.link_in_file(spot.open(OFlag::O_RDONLY).during("open a link")?);
            }
            return nix::fcntl::readlinkat(object.as_fd(), "").during("read a symbolic link");
        }
        let (layer, path, name) = lower_of(&node)?;
        let lower = &self.lowers[layer];
        if lower.stat(&path, &name)?.st_mode & libc::S_IFMT == libc::S_IFREG {
            return self.link_in_file(lower.open(&path, &name)?);
        }
        lower.readlink(&path, &name)
    }

    /// A link whose type is kept in an attribute: the target is the content.
    fn link_in_file(&self, file: std::os::fd::OwnedFd) -> Result<OsString> {
        let mut target = vec![0u8; 4096];
        let n = nix::sys::uio::pread(&file, &mut target, 0).during("read a symbolic link")?;
        target.truncate(n);
        Ok(OsString::from_vec(target))
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, or what the layers say.
    pub fn getxattr(&self, id: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.check_attribute(name, Error::NoAttribute)?;
        let node = self.node(id)?;
        let _tree = self.tree_shared();
        // The kernel asks for capabilities before every change of a file.
        let capability = name == CAPABILITY;
        if capability && node.bare.load(Ordering::Relaxed) {
            return Err(Error::NoAttribute);
        }
        let value = self.read_attribute(&node, name);
        if capability && matches!(value, Err(Error::NoAttribute)) {
            node.bare.store(true, Ordering::Relaxed);
        }
        let mut value = value?;
        let owners = &self.options.owners;
        let shown = |map: &IdMap, id: u32| Ok::<_, Error>(map.shown(id));
        map_ids(name, &mut value, |id| shown(&owners.uids, id), |id| shown(&owners.gids, id))?;
        Ok(value)
    }

    /// The tree lock is held.
    fn read_attribute(&self, node: &Arc<Node>, name: &OsStr) -> Result<Vec<u8>> {
        if let Some(spot) = self.upper_spot(node)? {
            let value = match &*spot {
                super::upper::Spot::At(dir, file) => sys::getxattr_at(dir.as_fd(), file, name),
                super::upper::Spot::Fd(fd) => sys::getxattr(fd.as_fd(), name),
            };
            return match value {
                Err(Errno::ENODATA) => Err(Error::NoAttribute),
                other => other.during("get an extended attribute"),
            };
        }
        let (layer, path, file) = lower_of(node)?;
        self.lowers[layer].getxattr(&path, &file, name)
    }

    /// Names of the extended attributes, without ours.
    ///
    /// # Errors
    /// What the layers say.
    pub fn listxattr(&self, id: Ino) -> Result<Vec<OsString>> {
        if self.options.no_xattrs {
            return Err(Error::Unsupported("extended attributes are switched off"));
        }
        let node = self.node(id)?;
        let _tree = self.tree_shared();
        let mut names = if let Some(spot) = self.upper_spot(&node)? {
            let object = spot.reach().during("reach a file of the upper")?;
            match sys::listxattr(object.as_fd()) {
                Err(Errno::EOPNOTSUPP) => Vec::new(),
                other => other.during("list extended attributes")?,
            }
        } else {
            let (layer, path, file) = lower_of(&node)?;
            self.lowers[layer].listxattr(&path, &file)?
        };
        names.retain(|n| !is_private(n));
        Ok(names)
    }

    /// Sets an extended attribute; `flags` as setxattr(2). `drop_set_gid`: an ACL
    /// is set by somebody who may not keep the set-gid bit.
    ///
    /// # Errors
    /// `NotPermitted` for ours, or what the layers say.
    pub fn setxattr(
        &self,
        id: Ino,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        drop_set_gid: bool,
    ) -> Result<()> {
        if name == OWNER && self.options.owners.kept_only {
            let (uid, gid) = parse_owner(value).ok_or(Error::Invalid("not UID:GID"))?;
            let changes = Changes { uid, gid, ..Changes::default() };
            return self.setattr(id, &changes).map(drop);
        }
        self.check_attribute(name, Error::NotPermitted("the attribute is reserved"))?;
        let node = self.node(id)?;
        self.copy_up(&node, None)?;
        let _tree = self.tree_shared();
        self.forget_plain(&node);
        node.bare.store(false, Ordering::Relaxed);
        let _state = self.passes_on_anew(&node);
        let spot = self.upper_spot(&node)?.ok_or(Error::Stale)?;
        let object = spot.reach().during("reach a file of the upper")?;
        if let Some(mode) = self.mode_of_acl(node.kind, name, value) {
            // The list is of owner, group and others only: it is the mode.
            let stat = fstat(object.as_fd()).during("stat a file of the upper")?;
            let kept = self.kept_by_spot(&spot, &stat)?;
            let bits = if drop_set_gid { 0o5000 } else { 0o7000 };
            let mode = kept.map_or(stat.st_mode, |kept| kept.mode) & bits | mode;
            let changes = Changes { mode: Some(mode), ..Changes::default() };
            return self.change_kept(&Object::Path(object), &node, &stat, kept, &changes);
        }
        let owners = &self.options.owners;
        let mut value = value.to_vec();
        map_ids(name, &mut value, |id| owners.uids.disk(id), |id| owners.gids.disk(id))?;
        sys::setxattr(object.as_fd(), name, &value, flags).during("set an extended attribute")?;
        if drop_set_gid {
            let mode = fstat(object.as_fd()).during("stat a file of the upper")?.st_mode;
            if mode & libc::S_ISGID != 0 {
                chmod_path(object.as_fd(), Mode::from_bits_truncate(mode & 0o5777))
                    .during("clear the set-gid bit")?;
            }
        }
        Ok(())
    }

    /// The mode that setting an attribute amounts to, where modes are kept in an
    /// attribute of ours: the inode's, which the kernel would change, is not shown.
    fn mode_of_acl(&self, kind: u32, name: &OsStr, value: &[u8]) -> Option<u32> {
        let kept = self.options.permissions != Permissions::Inode && kind != libc::S_IFLNK;
        if kept && name == ACL_ACCESS { minimal_acl(value) } else { None }
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, or what the layers say.
    pub fn removexattr(&self, id: Ino, name: &OsStr) -> Result<()> {
        self.check_attribute(name, Error::NoAttribute)?;
        // Looking first saves a copy-up for what is not there.
        self.getxattr(id, name)?;
        let node = self.node(id)?;
        self.copy_up(&node, None)?;
        let _tree = self.tree_shared();
        let _state = self.passes_on_anew(&node);
        let spot = self.upper_spot(&node)?.ok_or(Error::Stale)?;
        let object = spot.reach().during("reach a file of the upper")?;
        match sys::removexattr(object.as_fd(), name) {
            Err(Errno::ENODATA) => Err(Error::NoAttribute),
            other => other.during("remove an extended attribute"),
        }
    }

    fn check_attribute(&self, name: &OsStr, private: Error) -> Result<()> {
        if self.options.no_xattrs {
            return Err(Error::Unsupported("extended attributes are switched off"));
        }
        if is_private(name) { Err(private) } else { Ok(()) }
    }
}

/// Layer, directory and name of a node that lives in a lower.
pub(crate) fn lower_of(node: &Node) -> Result<(usize, Arc<Path>, OsString)> {
    let body = node.body();
    match &body.lower {
        Lower::File(layer, path, name) => Ok((*layer, Arc::clone(path), name.to_os_string())),
        Lower::Dirs(dirs, _) => {
            let first = dirs.first().ok_or(Error::Stale)?;
            Ok((first.layer, Arc::clone(&first.path), OsString::new()))
        }
        Lower::None => {
            debug_assert!(!matches!(body.upper, UpperAt::None));
            Err(Error::Stale)
        }
    }
}
