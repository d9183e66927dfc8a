//! Copy-up: an object of a lower becomes one of the upper, unchanged.
//!
//! # Theory of operation
//! 1. Under the node's own copy lock the object is made in the work directory:
//!    data ([`super::data`]) → owner → attributes, ACLs among them, and capabilities →
//!    mode → times last → synced unless `volatile`.
//! 2. With the tree shared and its directory locked it is renamed into place,
//!    and the node switches to it. Open files notice by the node's epoch.
//!
//! The caller holds no lock: the copying of data stops nobody but those who
//! want the same file. Directories on the way are copied up first; the times of
//! the directory that gets the new entry are put back, since for the user of
//! the union nothing in it has changed.
//!
//! Which attributes may be lost, as with the peers: all where the upper's file
//! system has none (EOPNOTSUPP); `security.*` and `trusted.*` that this process
//! may not set (EPERM), capabilities among them; ACLs that name ids outside of
//! the user namespace (EINVAL), but only with `unmapped_root`, which shows
//! such owners as 0 anyway. Everything else fails the copy-up.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::barred::{Entered, Place};
use super::data::copy_data;
use super::files::OpenFile;
use super::inode::{Lower, Node, UpperAt};
use super::lookup::shown_kind;
use super::metacopy::LowerFile;
use super::object::Object;
use super::upper::{Spot, Upper};
use super::xattr::{ACL_ACCESS, OverrideStat, Permissions, is_private};
use super::{Overlay, dev_ino};
use crate::error::{During, Error, Result};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sys;

impl Overlay {
    /// Copies a node up unless it is in the upper already. `keep`: only so many
    /// bytes of a file are wanted (it is about to be truncated).
    ///
    /// # Errors
    /// `ReadOnly`, or what the layers say; the lower then still serves the node.
    pub(crate) fn copy_up(&self, node: &Arc<Node>, keep: Option<u64>) -> Result<()> {
        if node.is_dir() {
            return self.copy_up_dir(node);
        }
        let up = self.upper()?;
        if !matches!(node.body().upper, UpperAt::None) {
            return Ok(());
        }
        let _copying = node.copying.lock().expect("no panic while a node is copied");
        let (place, lower) = {
            let body = node.body();
            if !matches!(body.upper, UpperAt::None) {
                return Ok(());
            }
            (body.place.clone(), body.lower.clone())
        };
        let Lower::File(layer, path, name) = lower else { return Err(Error::Stale) };
        if let Some((parent, _)) = &place {
            self.copy_up_dir(parent)?;
        }
        let temp = up.temp_name();
        let made = self.make_copy(up, node, &temp, (layer, &path, &name), keep);
        let result = made.and_then(|copy| self.install(up, node, &temp, layer, copy));
        if result.is_err() {
            self.not_kept(up, &temp);
            up.discard(&temp)?;
        }
        result
    }

    /// Step 1 for anything but a directory: a copy of what is at a place of a lower.
    fn make_copy(
        &self,
        up: &Upper,
        node: &Node,
        temp: &OsStr,
        at: (usize, &Path, &OsStr),
        keep: Option<u64>,
    ) -> Result<Copy> {
        let (layer, path, name) = at;
        let lower = &self.lowers[layer];
        let kind = node.kind;
        // Nothing wanted: the original need not even be readable.
        let source = match (kind, keep) {
            (libc::S_IFREG, Some(0)) => None,
            (libc::S_IFREG, _) => Some(self.open_lower(layer, path, name)),
            _ => None,
        };
        // Status and attributes of the original, by its name where it is not open.
        let (stat, attributes) = match &source {
            Some(Ok(LowerFile { fd, attributes, elsewhere: false })) => {
                (fstat(fd).during("stat an opened file")?, attributes.clone())
            }
            _ => (lower.stat(path, name)?, lower.listxattr(path, name)?),
        };
        let kept = self.kept_in_lower(layer, path, name)?;
        if shown_kind(&stat, kept.as_ref()) != kind {
            return Err(Error::Stale);
        }
        let original = Original { layer, path, name, kind, stat, kept, attributes };
        let in_attribute = self.options.permissions != Permissions::Inode;
        let new_file = |mode| {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW;
            openat(&up.work, temp, create | OFlag::O_CLOEXEC, mode).during("make a copy")
        };
        let mut file = None;
        match kind {
            libc::S_IFREG => {
                let target = Arc::new(new_file(original.first_mode(in_attribute))?);
                let size = stat.st_size.cast_unsigned();
                let keep = keep.map_or(size, |k| k.min(size));
                if let (Some(source), true) = (source, keep > 0) {
                    self.fill_copy(&source?, &stat, &target, layer, keep)?;
                }
                file = Some(target);
            }
            libc::S_IFLNK => {
                let target = lower.readlink(path, name)?;
                symlinkat(target.as_os_str(), &up.work, temp).during("copy a symbolic link")?;
            }
            _ if in_attribute => drop(new_file(Mode::S_IRUSR | Mode::S_IWUSR)?),
            _ => {
                mknodat(
                    &up.work,
                    temp,
                    SFlag::from_bits_truncate(kind),
                    Mode::S_IRUSR,
                    original.rdev(),
                )
                .during("copy a special file")?;
            }
        }
        let object = match file {
            Some(file) => Object::Open(file),
            None => Object::Path(Arc::new(reach(up, temp)?)),
        };
        let made = fstat(object.as_fd()).during("stat a copy")?;
        let forgetful = self.copy_metadata(up, &object, &made, &original)?;
        if let (Object::Open(file), false) = (&object, self.options.volatile) {
            nix::unistd::fsync(file).during("sync a copy")?;
        }
        Ok(Copy { plain: original.mode() & 0o6000 == 0, source: stat, made, object, forgetful })
    }

    /// Copies the first `keep` bytes of a lower file of status `stat`.
    fn fill_copy(
        &self,
        source: &LowerFile,
        stat: &FileStat,
        target: &OwnedFd,
        layer: usize,
        keep: u64,
    ) -> Result<()> {
        let real = match source.elsewhere {
            true => fstat(&source.fd).during("stat an opened file")?,
            false => *stat,
        };
        if real.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Error::Stale);
        }
        let room = self.room_for_copy(&real, keep, None)?;
        copy_data(source.fd.as_fd(), target.as_fd(), &real, keep, &self.refused[layer])?;
        room.map_or(Ok(()), |room| room.settle(target.as_fd()))
    }

    /// Owner, attributes, mode, times: from a lower object to its copy, whose status was
    /// `made`. In this order: an owner clears capabilities and set-id bits, an attribute
    /// can be set only by who may write, and the mode may allow that to nobody. Whether
    /// the copy cannot hold where it came from.
    fn copy_metadata(
        &self,
        up: &Upper,
        target: &Object,
        made: &FileStat,
        original: &Original<'_>,
    ) -> Result<bool> {
        let Original { kind, stat, .. } = original;
        let owners = &self.options.owners;
        let (uid, gid) = original.kept.map_or((stat.st_uid, stat.st_gid), |k| (k.uid, k.gid));
        let mode = original.mode();
        let (shown_uid, shown_gid) = owners.shown(uid, gid, original.kept.is_none());
        let disk_uid = owners.disk_uid(shown_uid).unwrap_or(Some(uid));
        let disk_gid = owners.disk_gid(shown_gid).unwrap_or(Some(gid));
        let in_attribute = self.options.permissions != Permissions::Inode;
        let mut real_mode = mode;
        if in_attribute {
            let floor = if *kind == libc::S_IFDIR { 0o700 } else { 0o600 };
            real_mode = mode & 0o777 | floor;
        } else {
            let uid = disk_uid.filter(|id| *id != made.st_uid).map(Uid::from_raw);
            let gid = disk_gid.filter(|id| *id != made.st_gid).map(Gid::from_raw);
            if uid.is_some() || gid.is_some() {
                fchownat(target.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)
                    .during("set the owner of a copy")?;
            }
        }
        if in_attribute && *kind != libc::S_IFLNK {
            let kept = OverrideStat {
                uid: disk_uid.unwrap_or(uid),
                gid: disk_gid.unwrap_or(gid),
                mode,
                kind: Some(*kind),
                rdev: original.rdev(),
            };
            self.keep(target.as_fd(), *kind, &kept)?;
        }
        let mut mode_is_right = made.st_mode & 0o7777 == real_mode;
        for attribute in original.attributes.iter().filter(|name| !is_private(name)) {
            self.copy_attribute(target, attribute, original)?;
            // A list changes the mode, too.
            mode_is_right &= attribute != ACL_ACCESS;
        }
        // Of directories the place in the lowers is the name.
        let origin = self.origin_of(original.layer, stat).filter(|_| *kind != libc::S_IFDIR);
        let forgetful = match origin {
            Some(origin) => !up.set_origin(target, origin)?,
            None => false,
        };
        if *kind != libc::S_IFLNK && !mode_is_right {
            target.chmod(Mode::from_bits_truncate(real_mode)).during("set the mode of a copy")?;
        }
        let atime = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        target.set_times(&atime, &mtime).during("set the times of a copy")?;
        Ok(forgetful)
    }

    fn copy_attribute(
        &self,
        target: &Object,
        attribute: &OsStr,
        original: &Original<'_>,
    ) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let Original { layer, path, name, .. } = *original;
        let value = match self.lowers[layer].getxattr(path, name, attribute) {
            Ok(value) => value,
            Err(Error::NoAttribute) => return Ok(()),
            Err(e) => return Err(e),
        };
        let bytes = attribute.as_bytes();
        let guarded = bytes.starts_with(b"security.") || bytes.starts_with(b"trusted.");
        let acl = bytes.starts_with(b"system.posix_acl_");
        match target.set_attribute(attribute, &value, 0) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(Errno::EPERM) if guarded => Ok(()),
            Err(Errno::EINVAL) if acl && self.options.owners.unmapped_root => Ok(()),
            Err(errno) => Err(Error::Layer { op: "copy an extended attribute", errno }),
        }
    }

    /// Step 2 for anything but a directory.
    fn install(
        &self,
        up: &Upper,
        node: &Arc<Node>,
        temp: &OsStr,
        layer: usize,
        copy: Copy,
    ) -> Result<()> {
        let Copy { source, made, object, forgetful, plain } = copy;
        let links = i64::try_from(source.st_nlink).unwrap_or(i64::MAX);
        let place = node.body().place.clone();
        // Locked to the end: a lookup must not find the copy before the node is it.
        let (mut entered, _tree) = match &place {
            Some((parent, _)) => (Some(self.enter(parent, node)?), None),
            None => (None, Some(self.tree_shared())),
        };
        // It may have lost its name before the directory was locked.
        let named = entered.as_ref().is_some_and(|entered| entered.dir.is_some());
        let shown = links.saturating_add(node.body().nlink_delta);
        let mut at = UpperAt::Named;
        let mut indexed = None;
        // One name of the copy stands for all names that lowers have.
        let mut delta = shown - 1;
        if (links > 1 || forgetful) && shown > 0 {
            let by_index = if named { delta } else { shown };
            if let Some(origin) = self.origin_of(layer, &source) {
                let key = origin.key();
                up.set_nlink_delta(&object, &key, by_index)?;
                let spot = Spot::At(Arc::clone(&up.work), temp.to_owned());
                super::create::link_spot(&spot, up.links.as_fd(), &key)?;
                indexed = Some(key.clone());
                at = UpperAt::Linked(key);
                delta = by_index;
            }
        }
        match (&place, &mut entered) {
            (Some((parent, name)), Some(Entered { dir: Some((dir, stat)), state, .. })) => {
                self.move_in(up, temp, parent, (dir, stat), name)?;
                state.add(name, node.kind, false);
            }
            _ => {
                up.discard(temp)?;
                if matches!(at, UpperAt::Named) {
                    at = UpperAt::Held(Arc::clone(object.descriptor()));
                    delta = shown;
                }
            }
        }
        // Before anybody takes the node for copied up: who changes its mode then is to
        // find the descriptor.
        if let Object::Open(file) = &object {
            let kept = OpenFile::of_upper(node.epoch() + 1, Arc::clone(file), plain);
            self.keep_file(node, kept);
        }
        {
            let mut body = node.body();
            body.upper = at;
            body.nlink_delta = delta;
        }
        self.switch(node, &made);
        if let Some(key) = indexed {
            up.set_lost_names(&key, || None)?;
        }
        self.name_was_last(node, object.as_fd())
    }

    /// The node is now served by the upper object of status `made`.
    fn switch(&self, node: &Arc<Node>, made: &FileStat) {
        self.inodes.alias(node, dev_ino(made));
        node.epoch.fetch_add(1, Ordering::Release);
        self.copied.fetch_add(1, Ordering::Relaxed);
    }

    /// Renames a copy into its directory (of the upper, and its status), whose times stay
    /// what they were: for the user of the union nothing in it has changed.
    fn move_in(
        &self,
        up: &Upper,
        temp: &OsStr,
        parent: &Arc<Node>,
        (dir, stat): (&Arc<OwnedFd>, &FileStat),
        name: &OsStr,
    ) -> Result<()> {
        let place = || Ok(Place::At(self.upper_path(parent)?));
        up.opened(dir.as_fd(), stat, place, || {
            renameat2(&up.work, temp, dir, name, RenameFlags::RENAME_NOREPLACE)
                .during("put a copy into place")
        })?;
        put_back_times(dir.as_fd(), stat)
    }

    /// Copies a directory (not what is in it) up, and those above it.
    pub(crate) fn copy_up_dir(&self, node: &Arc<Node>) -> Result<()> {
        let up = self.upper()?;
        if !node.is_dir() {
            return Err(Error::NotDirectory);
        }
        if !matches!(node.body().upper, UpperAt::None) {
            return Ok(());
        }
        let _copying = node.copying.lock().expect("no panic while a node is copied");
        let (place, lower) = {
            let body = node.body();
            if !matches!(body.upper, UpperAt::None) {
                return Ok(());
            }
            (body.place.clone(), body.lower.clone())
        };
        let Some((parent, name)) = place else { return Err(Error::NotFound) };
        let Lower::Dirs(dirs, blank) = lower else { return Err(Error::Stale) };
        let first = dirs.first().ok_or(Error::Stale)?;
        self.copy_up_dir(&parent)?;
        let temp = up.temp_name();
        let result = (|| {
            let lower = &self.lowers[first.layer];
            let (layer, path, name_of_root) = (first.layer, &*first.path, OsStr::new(""));
            let original = Original {
                layer,
                path,
                name: name_of_root,
                kind: libc::S_IFDIR,
                stat: lower.stat(path, name_of_root)?,
                kept: self.kept_in_lower(layer, path, name_of_root)?,
                attributes: lower.listxattr(path, name_of_root)?,
            };
            mkdirat(&up.work, temp.as_os_str(), Mode::S_IRWXU).during("make a copy")?;
            let copy = Object::Path(Arc::new(reach(up, &temp)?));
            if blank {
                // What could not be seen must not appear at a later mount.
                up.set_opaque(copy.as_fd())?;
            }
            let made = fstat(copy.as_fd()).during("stat a copy")?;
            self.copy_metadata(up, &copy, &made, &original)?;
            let mut entered = self.enter(&parent, node)?;
            let (dir, stat) = entered.dir.as_ref().ok_or(Error::NotFound)?;
            let place = || Ok(Place::At(self.upper_path(&parent)?.join(&*name)));
            let ready = fstat(copy.as_fd()).during("stat a copy")?;
            up.opened(copy.as_fd(), &ready, place, || {
                self.move_in(up, &temp, &parent, (dir, stat), &name)
            })?;
            entered.state.add(&name, libc::S_IFDIR, !blank);
            let mut body = node.body();
            body.upper = UpperAt::Named;
            body.upper_ino = Some(dev_ino(&made));
            Ok(())
        })();
        if result.is_err() {
            up.discard(&temp)?;
        }
        result
    }
}

fn reach(up: &Upper, temp: &OsStr) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(&up.work, temp, flags, Mode::empty()).during("reach a copy")
}

/// Undoes what adding an entry did to a directory's times.
fn put_back_times(dir: BorrowedFd<'_>, stat: &FileStat) -> Result<()> {
    let atime = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    sys::set_times(dir, &atime, &mtime).during("put back the times of a directory")
}

/// An object of a lower that is copied.
struct Original<'a> {
    layer: usize,
    path: &'a Path,
    name: &'a OsStr,
    /// As shown.
    kind: u32,
    stat: FileStat,
    kept: Option<OverrideStat>,
    /// Names of its attributes.
    attributes: Vec<OsString>,
}

impl Original<'_> {
    /// Permission bits, as shown.
    fn mode(&self) -> u32 {
        self.kept.map_or(self.stat.st_mode & 0o7777, |kept| kept.mode)
    }

    fn rdev(&self) -> u64 {
        self.kept.filter(|kept| kept.kind.is_some()).map_or(self.stat.st_rdev, |kept| kept.rdev)
    }

    /// What its copy is made with: its mode, if its owner may write by it and nothing
    /// clears a bit of it later.
    fn first_mode(&self, in_attribute: bool) -> Mode {
        let mode = self.mode();
        let writable = Mode::S_IRUSR | Mode::S_IWUSR;
        if in_attribute || mode & 0o6600 != 0o600 {
            writable
        } else {
            Mode::from_bits_truncate(mode)
        }
    }
}

/// A copy that is complete but for its place.
struct Copy {
    /// Status of the original.
    source: FileStat,
    /// Status of the copy when it was made: which it is does not change.
    made: FileStat,
    object: Object,
    /// It cannot hold where it came from: the index has to.
    forgetful: bool,
    /// It has no set-id bits.
    plain: bool,
}
