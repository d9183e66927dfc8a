//! A bound on the space that files of the upper take (`upper_quota`).
//!
//! # Theory of operation
//! What counts are the blocks of the upper's regular files, each file once however
//! many names it has, and as long as it is open. A table holds for each file what
//! it was last seen to take; `taken` is the sum of the table and of what operations
//! under way may add at most.
//!
//! An operation that can take space first *reserves* the most it can take, acts, and
//! *settles*: looks how many blocks the file has now and puts that into table and
//! sum, in place of what was reserved. So the sum never exceeds the limit by more
//! than the file system's own bookkeeping (a block of an extent tree), and nothing
//! drifts: a file system that changes its mind about a file is found out at the next
//! operation on it.
//!
//! Most reservations are too large, since data is written where blocks are already.
//! While there is room that does not matter, and operations run side by side
//! (shared gate). Otherwise an operation waits for the others to settle (exclusive
//! gate) and finds out what it really needs.
//!
//! The gate is taken after the locks of [`super::inode`] and before none; a shard of
//! the table is locked over one fstat(2), so that the later look is the one kept.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{Whence, lseek};

use super::Overlay;
use super::inode::Node;
use super::upper::{Upper, names_in};
use crate::error::{During, Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Granularity of reservations, bytes: the block size of all file systems that
/// matter here.
const BLOCK: u64 = 4096;
const SHARDS: usize = 16;
/// How long space of removed files is waited for, before there is none.
const PATIENCE: Duration = Duration::from_millis(20);

/// The bound, and what is used of it.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: u64,
    taken: AtomicU64,
    gate: RwLock<()>,
    /// Files without a name that take space, and whose end it announces.
    removed: Mutex<usize>,
    ended: Condvar,
    files: [Mutex<HashMap<u64, u64>>; SHARDS],
}

#[expect(dead_code, reason = "held, not looked at")]
enum Gate<'a> {
    Shared(RwLockReadGuard<'a, ()>),
    Exclusive(RwLockWriteGuard<'a, ()>),
}

/// Leave to take so many bytes; given back unless settled.
pub(crate) struct Grant<'a> {
    quota: &'a Quota,
    bytes: u64,
    /// All that was asked for.
    pub(crate) complete: bool,
    _gate: Gate<'a>,
}

impl Grant<'_> {
    /// How much of a write at `offset` is granted, bytes.
    pub(crate) fn prefix(&self, offset: u64, len: u64) -> u64 {
        if self.complete {
            return len;
        }
        let end = (offset / BLOCK * BLOCK).saturating_add(self.bytes / BLOCK * BLOCK);
        end.saturating_sub(offset).min(len)
    }

    /// All or nothing.
    pub(crate) fn in_full(self) -> Result<Self> {
        if self.complete { Ok(self) } else { Err(full()) }
    }

    /// The file behind `fd` now takes what it takes.
    pub(crate) fn settle(mut self, fd: BorrowedFd<'_>) -> Result<()> {
        let reserved = std::mem::take(&mut self.bytes);
        self.quota.settle(fd, reserved)
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        self.quota.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What the caller of an operation is told.
pub(crate) fn full() -> Error {
    Error::Layer { op: "take space within the quota", errno: Errno::ENOSPC }
}

/// Space of a file that has lost its last name; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Last {
    quota: Arc<Quota>,
    /// `None`: it has a name again.
    ino: Option<u64>,
}

impl Last {
    /// The file has a name again.
    fn revoke(mut self) {
        self.ino = None;
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(ino) = self.ino {
            self.quota.gone(ino);
        }
        *self.quota.removed() -= 1;
        self.quota.ended.notify_all();
    }
}

fn bytes_of(stat: &FileStat) -> u64 {
    stat.st_blocks.cast_unsigned().saturating_mul(512)
}

/// The most that data at `offset` can take.
pub(crate) fn most(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let end = offset.saturating_add(len).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    end - offset / BLOCK * BLOCK
}

/// What data at `offset` takes besides what the file behind `fd` has there.
pub(crate) fn missing(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64> {
    let stat = fstat(fd).during("stat a file of the upper")?;
    let size = stat.st_size.cast_unsigned().max(offset.saturating_add(len));
    // Where space was allocated and nothing written, a hole is still reported. But the
    // file cannot lack more than it would have without any hole.
    let whole = size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    let lacks = whole.saturating_sub(bytes_of(&stat));
    if lacks == 0 {
        return Ok(0);
    }
    let to_i64 = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let end = to_i64(offset.saturating_add(most(offset, len) - offset % BLOCK));
    let mut at = to_i64(offset / BLOCK * BLOCK);
    let mut holes = 0;
    while at < end {
        let data = match lseek(fd, at, Whence::SeekData) {
            Ok(data) => data.min(end),
            Err(Errno::ENXIO) => end,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(most(offset, len)),
            Err(errno) => return Err(Error::Layer { op: "find the data of a file", errno }),
        };
        holes += (data - at).cast_unsigned();
        if data >= end {
            break;
        }
        at = match lseek(fd, data, Whence::SeekHole) {
            Ok(hole) => hole,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(Error::Layer { op: "find the holes of a file", errno }),
        };
    }
    Ok(holes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).min(lacks))
}

impl Quota {
    /// A bound of `limit` bytes on `upper`; what is there counts.
    ///
    /// # Errors
    /// The upper cannot be read.
    pub(crate) fn new(limit: u64, upper: &Upper) -> Result<Arc<Self>> {
        let quota = Self {
            limit,
            taken: AtomicU64::new(0),
            gate: RwLock::new(()),
            removed: Mutex::new(0),
            ended: Condvar::new(),
            files: Default::default(),
        };
        quota.count(upper.root.as_fd())?;
        quota.count(upper.links.as_fd())?;
        Ok(Arc::new(quota))
    }

    fn count(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let device = fstat(dir).during("stat a directory of the upper")?.st_dev;
        for name in names_in(dir)? {
            let stat = fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .during("count what the upper holds")?;
            match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR if stat.st_dev == device => {
                    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                    let flags = flags | OFlag::O_CLOEXEC;
                    let below = openat(dir, name.as_os_str(), flags, Mode::empty())
                        .during("count what the upper holds")?;
                    self.count(below.as_fd())?;
                }
                libc::S_IFREG => {
                    let seen = self.shard(stat.st_ino).insert(stat.st_ino, bytes_of(&stat));
                    let new = if seen.is_none() { bytes_of(&stat) } else { 0 };
                    self.taken.fetch_add(new, Ordering::AcqRel);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn shard(&self, ino: u64) -> MutexGuard<'_, HashMap<u64, u64>> {
        let shard = usize::try_from(ino % SHARDS as u64).unwrap_or(0);
        self.files[shard].lock().expect("no panic while a shard is locked")
    }

    /// The bound, bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// What is used of it, bytes; may be more than the bound where there was more.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    fn removed(&self) -> MutexGuard<'_, usize> {
        self.removed.lock().expect("no panic while it is locked")
    }

    fn take(&self, bytes: u64) -> bool {
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        // Nothing can always be had, also where there is more than the bound.
        bytes == 0 || self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }

    /// Reserves `most` bytes or, when so many are not free, what `need` says, or as
    /// much of that as there is.
    pub(crate) fn reserve(
        &self,
        most: u64,
        need: impl FnOnce() -> Result<u64>,
    ) -> Result<Grant<'_>> {
        let gate = self.gate.read().expect("no panic while the gate is held");
        if self.take(most) {
            let gate = Gate::Shared(gate);
            return Ok(Grant { quota: self, bytes: most, complete: true, _gate: gate });
        }
        drop(gate);
        let gate = self.gate.write().expect("no panic while the gate is held");
        let need = need()?;
        let free = || self.limit.saturating_sub(self.taken());
        // Of a removed file the kernel lets go a moment after its removal.
        if need > free() {
            let wanted = |removed: &mut usize| *removed > 0 && need > free();
            let removed = self.removed();
            let result = self.ended.wait_timeout_while(removed, PATIENCE, wanted);
            drop(result.expect("no panic while it is locked"));
        }
        let free = free();
        let bytes = need.min(free);
        self.taken.fetch_add(bytes, Ordering::AcqRel);
        Ok(Grant { quota: self, bytes, complete: bytes == need, _gate: Gate::Exclusive(gate) })
    }

    /// Notes what the file behind `fd` takes now, in place of `reserved` bytes.
    pub(crate) fn settle(&self, fd: BorrowedFd<'_>, reserved: u64) -> Result<()> {
        let give_back = |errno| {
            self.taken.fetch_sub(reserved, Ordering::AcqRel);
            Error::Layer { op: "stat a file of the upper", errno }
        };
        let ino = fstat(fd).map_err(give_back)?.st_ino;
        let mut files = self.shard(ino);
        let stat = fstat(fd).map_err(give_back)?;
        let now = bytes_of(&stat);
        let before = files.insert(ino, now).unwrap_or(0) + reserved;
        if now >= before {
            self.taken.fetch_add(now - before, Ordering::AcqRel);
        } else {
            self.taken.fetch_sub(before - now, Ordering::AcqRel);
        }
        Ok(())
    }

    /// For a file that has no name any more, to be kept as long as it is used.
    pub(crate) fn last(self: &Arc<Self>, stat: &FileStat) -> Last {
        *self.removed() += 1;
        Last { quota: Arc::clone(self), ino: Some(stat.st_ino) }
    }

    /// A file is gone, and its space free again.
    fn gone(&self, ino: u64) {
        let mut files = self.shard(ino);
        if let Some(bytes) = files.remove(&ino) {
            self.taken.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}

impl Overlay {
    /// Room for data of a file of the upper, where there is a bound.
    pub(super) fn room(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: u64,
    ) -> Result<Option<Grant<'_>>> {
        let Some(quota) = &self.quota else { return Ok(None) };
        quota.reserve(most(offset, len), || missing(file, offset, len)).map(Some)
    }

    /// Room for the copy of the first `keep` bytes of a file of status `stat`. `begun`: the
    /// status of what there is of it, and counted, from an attempt that did not end.
    pub(super) fn room_for_copy(
        &self,
        stat: &FileStat,
        keep: u64,
        begun: Option<&FileStat>,
    ) -> Result<Option<Grant<'_>>> {
        let Some(quota) = &self.quota else { return Ok(None) };
        let sparse = bytes_of(stat).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let need = most(0, keep).min(sparse).saturating_sub(begun.map_or(0, bytes_of));
        quota.reserve(need, || Ok(need))?.in_full().map(Some)
    }

    /// A file of the upper takes something else now.
    pub(super) fn settle(&self, file: BorrowedFd<'_>) -> Result<()> {
        self.quota.as_ref().map_or(Ok(()), |quota| quota.settle(file, 0))
    }

    /// An object of the work directory will not be used.
    pub(super) fn not_kept(&self, up: &Upper, temp: &OsStr) {
        if let Some(quota) = &self.quota
            && let Ok(stat) = fstatat(&up.work, temp, AtFlags::AT_SYMLINK_NOFOLLOW)
        {
            quota.gone(stat.st_ino);
        }
    }

    /// A file may have lost its last name; `fd` keeps it.
    pub(super) fn name_was_last(&self, node: &Node, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(quota) = &self.quota else { return Ok(()) };
        let stat = fstat(fd).during("stat what was removed")?;
        if stat.st_nlink == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
            node.last().replace(quota.last(&stat));
        }
        Ok(())
    }

    /// A file without a name was given one.
    pub(super) fn has_name_again(&self, node: &Node) {
        if let Some(last) = node.last().take() {
            last.revoke();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn quota(limit: u64) -> Quota {
        Quota {
            limit,
            taken: AtomicU64::new(0),
            gate: RwLock::new(()),
            removed: Mutex::new(0),
            ended: Condvar::new(),
            files: Default::default(),
        }
    }

    #[test]
    fn ranges_are_counted_in_blocks() {
        for (offset, len, want) in
            [(0, 0, 0), (0, 1, 4096), (0, 4096, 4096), (4095, 2, 8192), (8192, 4097, 8192)]
        {
            assert_eq!(most(offset, len), want, "{offset} {len}");
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(100 * BLOCK).unwrap();
        file.write_at(b"x", 10 * BLOCK).unwrap();
        for (offset, len, want) in [
            (10 * BLOCK, 5, 0),
            (9 * BLOCK, 2 * BLOCK, BLOCK),
            (0, 100 * BLOCK, 99 * BLOCK),
            (200 * BLOCK + 5, 10, BLOCK),
        ] {
            assert_eq!(missing(file.as_fd(), offset, len).unwrap(), want, "{offset} {len}");
        }
    }

    #[test]
    fn what_is_not_settled_comes_back() {
        let quota = quota(10 * BLOCK);
        let all = quota.reserve(10 * BLOCK, || Ok(0)).unwrap();
        assert!(all.complete && quota.taken() == 10 * BLOCK);
        drop(all);
        assert_eq!(quota.taken(), 0);
        // Too much at once: as much as there is.
        let part = quota.reserve(11 * BLOCK, || Ok(11 * BLOCK)).unwrap();
        assert!(!part.complete);
        assert_eq!(part.prefix(100, 20 * BLOCK), 10 * BLOCK - 100);
        assert!(part.in_full().is_err());
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn many_writers_never_pass_the_bound() {
        let quota = Arc::new(quota(64 * BLOCK));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let file = tempfile::tempfile().unwrap();
                    let mut at = 0;
                    loop {
                        let need = || missing(file.as_fd(), at, 3 * BLOCK);
                        let grant = quota.reserve(most(at, 3 * BLOCK), need).unwrap();
                        let len = usize::try_from(grant.prefix(at, 3 * BLOCK)).unwrap();
                        if len == 0 {
                            break;
                        }
                        file.write_at(&vec![1; len], at).unwrap();
                        grant.settle(file.as_fd()).unwrap();
                        assert!(quota.taken() <= 64 * BLOCK);
                        at += len as u64;
                    }
                    drop(quota.last(&fstat(&file).unwrap()));
                });
            }
        });
        assert_eq!(quota.taken(), 0);
    }
}
