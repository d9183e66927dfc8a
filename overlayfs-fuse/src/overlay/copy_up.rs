//! Copy-up: an object of a lower becomes one of the upper, unchanged.
//!
//! # Theory of operation
//! 1. Under the node's own copy lock the object is made in the work directory:
//!    data (shared blocks where the file system can, else copied without its
//!    holes) → owner → mode → attributes, ACLs among them, and capabilities →
//!    times last → synced unless `volatile`.
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

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, copy_file_range, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchownat, ftruncate, lseek, symlinkat};

use super::files::OpenFile;
use super::inode::{Lower, Node, UpperAt};
use super::lookup::shown_kind;
use super::object::Object;
use super::upper::{Spot, Upper};
use super::xattr::{OverrideStat, Permissions, is_private};
use super::{Overlay, dev_ino};
use crate::error::{During, Error, Result};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys;

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Pure: what has to be copied of a file when only its first `keep` bytes are
/// wanted and `data` are the ranges that hold data.
#[must_use]
pub fn plan(data: &[Segment], keep: u64) -> Vec<Segment> {
    data.iter()
        .filter_map(|s| {
            let end = s.start.saturating_add(s.len).min(keep);
            let len = end.checked_sub(s.start).filter(|len| *len > 0)?;
            Some(Segment { start: s.start, len })
        })
        .collect()
}

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
        let made = self.make_copy(up, node, &temp, layer, &path, &name, keep);
        let result = made.and_then(|copy| self.install(up, node, &temp, layer, copy));
        if result.is_err() {
            self.not_kept(up, &temp);
            up.discard(&temp)?;
        }
        result
    }

    /// Step 1 for anything but a directory.
    #[expect(clippy::too_many_arguments, reason = "one step of copy_up(), which has them all")]
    fn make_copy(
        &self,
        up: &Upper,
        node: &Node,
        temp: &OsStr,
        layer: usize,
        path: &Path,
        name: &OsStr,
        keep: Option<u64>,
    ) -> Result<Copy> {
        let lower = &self.lowers[layer];
        let stat = lower.stat(path, name)?;
        let kept = self.kept_in_lower(layer, path, name)?;
        if shown_kind(&stat, kept.as_ref()) != node.kind {
            return Err(Error::Stale);
        }
        let kind = node.kind;
        let in_attribute = self.options.permissions != Permissions::Inode;
        let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW;
        let new_file = || {
            openat(&up.work, temp, create | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR)
                .during("make a copy")
        };
        let mut file = None;
        match kind {
            libc::S_IFREG => {
                let target = Arc::new(new_file()?);
                let size = stat.st_size.cast_unsigned();
                let keep = keep.map_or(size, |k| k.min(size));
                // Nothing wanted: the original need not even be readable.
                if keep > 0 {
                    let (source, _) = self.open_lower(layer, path, name)?;
                    let real = fstat(source.as_fd()).during("stat an opened file")?;
                    if real.st_mode & libc::S_IFMT != libc::S_IFREG {
                        return Err(Error::Stale);
                    }
                    let refused = &self.refused[layer];
                    let room = self.room_for_copy(&real, keep.min(size))?;
                    copy_data(source.as_fd(), target.as_fd(), &real, keep.min(size), refused)?;
                    if let Some(room) = room {
                        room.settle(target.as_fd())?;
                    }
                }
                file = Some(target);
            }
            libc::S_IFLNK => {
                let target = lower.readlink(path, name)?;
                symlinkat(target.as_os_str(), &up.work, temp).during("copy a symbolic link")?;
            }
            _ if in_attribute => drop(new_file()?),
            _ => {
                let rdev = kept.filter(|k| k.kind.is_some()).map_or(stat.st_rdev, |k| k.rdev);
                mknodat(&up.work, temp, SFlag::from_bits_truncate(kind), Mode::S_IRUSR, rdev)
                    .during("copy a special file")?;
            }
        }
        let object = match file {
            Some(file) => Object::Open(file),
            None => Object::Path(Arc::new(reach(up, temp)?)),
        };
        self.copy_metadata(&object, &stat, kept.as_ref(), kind, layer, path, name)?;
        let forgetful = match self.origin_of(layer, &stat) {
            Some(origin) => !up.set_origin(&object, origin)?,
            None => false,
        };
        if let (Object::Open(file), false) = (&object, self.options.volatile) {
            nix::unistd::fsync(file).during("sync a copy")?;
        }
        Ok(Copy { source: stat, object, forgetful })
    }

    /// Owner, mode, attributes, times: from a lower object to its copy.
    #[expect(clippy::too_many_arguments, reason = "source and target, each by its coordinates")]
    fn copy_metadata(
        &self,
        target: &Object,
        stat: &FileStat,
        kept: Option<&OverrideStat>,
        kind: u32,
        layer: usize,
        path: &Path,
        name: &OsStr,
    ) -> Result<()> {
        let owners = &self.options.owners;
        let (uid, gid) = kept.map_or((stat.st_uid, stat.st_gid), |k| (k.uid, k.gid));
        let mode = kept.map_or(stat.st_mode & 0o7777, |k| k.mode);
        let (shown_uid, shown_gid) = owners.shown(uid, gid, kept.is_none());
        let made = fstat(target.as_fd()).during("stat a copy")?;
        let disk_uid = owners.disk_uid(shown_uid).unwrap_or(Some(uid));
        let disk_gid = owners.disk_gid(shown_gid).unwrap_or(Some(gid));
        if self.options.permissions == Permissions::Inode {
            let uid = disk_uid.filter(|id| *id != made.st_uid).map(Uid::from_raw);
            let gid = disk_gid.filter(|id| *id != made.st_gid).map(Gid::from_raw);
            if uid.is_some() || gid.is_some() {
                fchownat(target.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)
                    .during("set the owner of a copy")?;
            }
            if kind != libc::S_IFLNK {
                target.chmod(Mode::from_bits_truncate(mode)).during("set the mode of a copy")?;
            }
        } else if kind != libc::S_IFLNK {
            let floor = if kind == libc::S_IFDIR { 0o700 } else { 0o600 };
            target
                .chmod(Mode::from_bits_truncate(mode & 0o777 | floor))
                .during("set the mode of a copy")?;
            let rdev = kept.filter(|k| k.kind.is_some()).map_or(stat.st_rdev, |k| k.rdev);
            let kept = OverrideStat {
                uid: disk_uid.unwrap_or(uid),
                gid: disk_gid.unwrap_or(gid),
                mode,
                kind: Some(kind),
                rdev,
            };
            self.keep(target.as_fd(), kind, &kept)?;
        }
        for attribute in self.lowers[layer].listxattr(path, name)? {
            if !is_private(&attribute) {
                self.copy_attribute(target, &attribute, layer, path, name)?;
            }
        }
        let atime = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        target.set_times(&atime, &mtime).during("set the times of a copy")
    }

    fn copy_attribute(
        &self,
        target: &Object,
        attribute: &OsStr,
        layer: usize,
        path: &Path,
        name: &OsStr,
    ) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
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
        let _tree = self.tree_shared();
        let Copy { source, object, forgetful } = copy;
        let stat = fstat(object.as_fd()).during("stat a copy")?;
        let links = i64::try_from(source.st_nlink).unwrap_or(i64::MAX);
        let place = node.body().place.clone();
        // Locked to the end: a lookup must not find the copy before the node is it.
        let mut state = match &place {
            Some((parent, _)) => Some(parent.dir_state().ok_or(Error::NotDirectory)?),
            None => None,
        };
        // It may have lost its name before the directory was locked.
        let named = node.body().place.is_some();
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
                let work = up.work.try_clone().during("duplicate a descriptor")?;
                let spot = Spot::At(Arc::new(work), temp.to_owned());
                super::create::link_spot(&spot, up.links.as_fd(), &key)?;
                indexed = Some(key.clone());
                at = UpperAt::Linked(key);
                delta = by_index;
            }
        }
        match (&place, &mut state) {
            (Some((parent, name)), Some(state)) if named => {
                let dir = self.upper_dir(parent)?;
                move_in(up, temp, dir.as_fd(), name)?;
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
        {
            let mut body = node.body();
            body.upper = at;
            body.nlink_delta = delta;
        }
        self.switch(node, &stat);
        if let Some(key) = indexed {
            up.set_lost_names(&key, || None)?;
        }
        self.name_was_last(node, object.as_fd())?;
        if let Object::Open(file) = object {
            self.keep_file(node, OpenFile::of_upper(node.epoch(), file));
        }
        Ok(())
    }

    /// The node is now served by the upper object of status `stat`.
    fn switch(&self, node: &Arc<Node>, stat: &FileStat) {
        self.inodes.alias(node, dev_ino(stat));
        node.epoch.fetch_add(1, Ordering::Release);
        self.copied.fetch_add(1, Ordering::Relaxed);
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
            let root = OsStr::new("");
            let stat = lower.stat(&first.path, root)?;
            let kept = self.kept_in_lower(first.layer, &first.path, root)?;
            mkdirat(&up.work, temp.as_os_str(), Mode::S_IRWXU).during("make a copy")?;
            let copy = Object::Path(Arc::new(reach(up, &temp)?));
            if blank {
                // What could not be seen must not appear at a later mount.
                up.set_opaque(copy.as_fd())?;
            }
            self.copy_metadata(
                &copy,
                &stat,
                kept.as_ref(),
                libc::S_IFDIR,
                first.layer,
                &first.path,
                root,
            )?;
            let _tree = self.tree_shared();
            let mut state = parent.dir_state().ok_or(Error::NotDirectory)?;
            if node.body().place.is_none() {
                return Err(Error::NotFound);
            }
            let dir = self.upper_dir(&parent)?;
            move_in(up, &temp, dir.as_fd(), &name)?;
            state.add(&name, libc::S_IFDIR, !blank);
            let made = fstat(copy.as_fd()).during("stat a copy")?;
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

/// Renames a copy into its directory, whose times stay what they were: for the
/// user of the union nothing in it has changed.
fn move_in(up: &Upper, temp: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let times = fstat(dir).during("stat a directory")?;
    renameat2(&up.work, temp, dir, name, RenameFlags::RENAME_NOREPLACE)
        .during("put a copy into place")?;
    put_back_times(dir, &times)
}

/// Undoes what adding an entry did to a directory's times.
fn put_back_times(dir: BorrowedFd<'_>, stat: &FileStat) -> Result<()> {
    let atime = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    sys::set_times(dir, &atime, &mtime).during("put back the times of a directory")
}

/// What a file system has refused before and need not be asked again.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Sharing blocks.
    reflink: AtomicBool,
    /// Copying inside the kernel.
    in_kernel: AtomicBool,
}

/// A copy that is complete but for its place.
struct Copy {
    /// Status of the original.
    source: FileStat,
    object: Object,
    /// It cannot hold where it came from: the index has to.
    forgetful: bool,
}

/// The ranges of a file that hold data. A file system that cannot tell gives
/// the whole file.
fn data_segments(file: BorrowedFd<'_>, size: u64) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut at = 0i64;
    let end = size.cast_signed();
    while at < end {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if segments.is_empty() => {
                return Ok(vec![Segment { start: 0, len: size }]);
            }
            Err(errno) => return Err(Error::Layer { op: "find the data of a file", errno }),
        };
        let stop = lseek(file, start, Whence::SeekHole).during("find the holes of a file")?;
        let stop = stop.min(end);
        if stop <= start {
            break;
        }
        segments
            .push(Segment { start: start.cast_unsigned(), len: (stop - start).cast_unsigned() });
        at = stop;
    }
    Ok(segments)
}

/// Copies the first `keep` bytes of a file of status `stat`, holes staying holes.
pub(super) fn copy_data(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    stat: &FileStat,
    keep: u64,
    refused: &Refused,
) -> Result<()> {
    let size = stat.st_size.cast_unsigned();
    if keep == size && !refused.reflink.load(Ordering::Relaxed) {
        match sys::reflink(source, target) {
            Ok(()) => return Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOTTY) => {
                refused.reflink.store(true, Ordering::Relaxed);
            }
            // This file cannot be shared; it can be copied.
            Err(_) => {}
        }
    }
    let full = stat.st_blocks.cast_unsigned().saturating_mul(512) >= size;
    let data =
        if full { vec![Segment { start: 0, len: size }] } else { data_segments(source, size)? };
    let segments = plan(&data, keep);
    for segment in &segments {
        copy_segment(source, target, *segment, refused)?;
    }
    if segments.last().is_some_and(|s| s.start + s.len == keep) {
        return Ok(());
    }
    ftruncate(target, keep.cast_signed()).during("size a copy")
}

fn copy_segment(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    segment: Segment,
    refused: &Refused,
) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut at = segment.start.cast_signed();
    let end = (segment.start + segment.len).cast_signed();
    let mut buffer = Vec::new();
    let mut in_kernel = !refused.in_kernel.load(Ordering::Relaxed);
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX);
        if in_kernel {
            let (mut from, mut to) = (at, at);
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), want.min(1 << 30))
            {
                // The file became shorter; or a file system that claims so.
                Ok(0) => in_kernel = false,
                Ok(n) => at += n.cast_signed() as i64,
                Err(Errno::EINTR) => {}
                Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    refused.in_kernel.store(true, Ordering::Relaxed);
                    in_kernel = false;
                }
                Err(Errno::EINVAL | Errno::EPERM | Errno::EIO) => in_kernel = false,
                Err(errno) => return Err(Error::Layer { op: "copy the data of a file", errno }),
            }
            continue;
        }
        buffer.resize(want.min(CHUNK), 0);
        let n = match nix::sys::uio::pread(source, &mut buffer, at) {
            Err(Errno::EINTR) => continue,
            other => other.during("read the data of a file")?,
        };
        if n == 0 {
            // Shorter than it was a moment ago: the lower is being changed.
            return Err(Error::Stale);
        }
        let mut written = 0;
        while written < n {
            let to = at + written.cast_signed() as i64;
            match nix::sys::uio::pwrite(target, &buffer[written..n], to) {
                Ok(0) => return Err(Error::Layer { op: "write a copy", errno: Errno::EIO }),
                Ok(m) => written += m,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Layer { op: "write a copy", errno }),
            }
        }
        at += n.cast_signed() as i64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn s(start: u64, len: u64) -> Segment {
        Segment { start, len }
    }

    #[test]
    fn plan_table() {
        for (data, keep, want) in [
            (vec![s(0, 10)], 10, vec![s(0, 10)]),
            (vec![s(0, 10)], 4, vec![s(0, 4)]),
            (vec![s(0, 10)], 0, vec![]),
            (vec![s(0, 4), s(8, 4)], 8, vec![s(0, 4)]),
            (vec![s(0, 4), s(8, 4)], 9, vec![s(0, 4), s(8, 1)]),
            (vec![], 100, vec![]),
            (vec![s(u64::MAX, 5)], u64::MAX, vec![]),
        ] {
            assert_eq!(plan(&data, keep), want, "{data:?} {keep}");
        }
    }

    #[test]
    fn a_sparse_copy_has_the_same_content_and_no_more_blocks() {
        use std::io::{Read, Seek, SeekFrom, Write};
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(b"head").unwrap();
        source.seek(SeekFrom::Start(8 << 20)).unwrap();
        source.write_all(b"middle").unwrap();
        source.set_len(16 << 20).unwrap();
        let mut target = tempfile::tempfile().unwrap();
        let stat = fstat(&source).unwrap();
        copy_data(source.as_fd(), target.as_fd(), &stat, 16 << 20, &Refused::default()).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        source.rewind().unwrap();
        source.read_to_end(&mut a).unwrap();
        target.read_to_end(&mut b).unwrap();
        assert_eq!(a.len(), 16 << 20);
        assert!(a == b);
        let blocks = |f: &std::fs::File| fstat(f).unwrap().st_blocks;
        assert!(blocks(&target) <= blocks(&source).max(64), "{} blocks", blocks(&target));
    }

    proptest! {
        #[test]
        fn a_plan_never_leaves_the_data_or_the_limit(
            raw in proptest::collection::vec((0u64..1000, 1u64..100), 0..8), keep in 0u64..1200
        ) {
            let data: Vec<Segment> = raw.iter().map(|(a, b)| s(*a, *b)).collect();
            for p in plan(&data, keep) {
                prop_assert!(p.start + p.len <= keep);
                prop_assert!(data.iter().any(|d| d.start == p.start && p.len <= d.len));
            }
        }
    }
}
