//! What changes where the kernel keeps what is written and hands it over later.
//!
//! # Theory of operation
//! With `FUSE_WRITEBACK_CACHE` size, data, `mtime` and `ctime` of a regular file are the
//! kernel's for as long as it knows the file: it shows its own, whatever we answer. It tells
//! us the time by SETATTR, as a rule after the WRITEs of the same change, but not when the
//! time it had told (or we had) is the same tick of its clock. So a WRITE must not change
//! the time of the upper's file, or the next mount would show another. What has the file's
//! time changed by the upper's file system puts it back, and nobody else sets it meanwhile:
//! that is what a node's copy lock is held for, which is taken before the tree's.
//!
//! The kernel also hands over times, each by a request of its own, when a file was only
//! renamed, linked or removed: no reason to copy a lower's data.
//!
//! WRITEs may come from nobody (the kernel's flusher, with no ids), for files whose names
//! are gone, and after the mount was detached. Nothing here asks who writes.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;

use super::attr::{Changes, SetTime};
use super::inode::{Node, UpperAt};
use super::{Attr, Overlay};
use crate::error::{During, Result};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, MutexGuard};

impl Overlay {
    /// From now on the kernel keeps what is written.
    pub(crate) fn write_back(&self) {
        self.written_back.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_written_back(&self) -> bool {
        self.written_back.load(Ordering::Relaxed)
    }

    /// Keeps the times of a file from being set, where they are the kernel's. The caller
    /// holds no lock.
    pub(crate) fn own_times<'n>(&self, node: &'n Node) -> Option<MutexGuard<'n, ()>> {
        let own = self.is_written_back() && node.kind == libc::S_IFREG;
        own.then(|| node.copying.lock().expect("no panic while a node is copied"))
    }

    /// Does something to the data of the open file of a node, whose `mtime` stays what it
    /// is where that is the kernel's. The caller holds no lock.
    pub(crate) fn at_same_time<T>(
        &self,
        node: &Node,
        file: impl AsFd,
        does: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(_own) = self.own_times(node) else { return does() };
        let before = fstat(&file).during("stat an open file")?;
        let done = does();
        let mtime = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
        match futimens(&file, &TimeSpec::UTIME_OMIT, &mtime) {
            // Somebody else's file that all may write: it has the time of this.
            Err(Errno::EPERM) => {}
            other => other.during("keep the time of a file")?,
        }
        done
    }

    /// The attributes of a file of a lower that has the time already that it is to get.
    pub(crate) fn has_already(&self, node: &Arc<Node>, changes: &Changes) -> Result<Option<Attr>> {
        let Some(SetTime::At(seconds, nanos)) = changes.mtime else { return Ok(None) };
        let more = Changes { mtime: None, ..*changes } != Changes::default();
        if more || !self.is_written_back() || !matches!(node.body().upper, UpperAt::None) {
            return Ok(None);
        }
        let _tree = self.tree_shared();
        let attr = self.attr(node)?;
        Ok((attr.mtime == (seconds, nanos)).then_some(attr))
    }
}
