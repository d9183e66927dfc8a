//! Files that the kernel reads by itself (fs/fuse/passthrough.c, Linux 6.9).
//!
//! # Theory of operation
//! OPEN is answered with the number of a *backing file* that the kernel has been told of,
//! and from then on reading and mapping go to that file, past this program and without a
//! copy of its pages. This takes CAP_SYS_ADMIN in the first user namespace, which is tried
//! as soon as INIT has been answered, and it takes OPENs: one request more for each open
//! file, and a RELEASE. Where it cannot be had OPEN is refused as ever, and never asked again.
//!
//! It is for unions without an upper only. A file's way of being read must not change while
//! it is open (the kernel fails that with EIO; iomode.c), but a copy-up changes it; the
//! kernel does not clear set-id bits of a backing file that is written to, and does not tell
//! of changes through a mapping, so that times would be wrong for ever.
//!
//! A node has one backing file as long as it is open, which all who open it share. The last
//! RELEASE gives it back: by then the kernel has let go of it. One that cannot be such a file
//! (on a file system that stands on others) is read through this program, as long as it is
//! open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::sys;

/// What is open, and how.
#[derive(Debug)]
pub(crate) struct Passthrough {
    device: OwnedFd,
    files: Mutex<HashMap<u64, Open>>,
}

/// A node that is open.
#[derive(Debug)]
struct Open {
    /// Its backing file; `None`: it is read through us.
    backing: Option<u32>,
    times: u64,
}

impl Passthrough {
    /// `None` where the kernel does not allow it.
    pub(crate) fn new(device: BorrowedFd<'_>) -> Option<Self> {
        // A file that can never be one: whether we may comes first.
        if sys::backing_open(device, device) == Err(Errno::EPERM) {
            return None;
        }
        let device = device.try_clone_to_owned().ok()?;
        Some(Self { device, files: Mutex::default() })
    }

    /// Node `node`, whose data is in `file`, is opened: the number of its backing file.
    pub(crate) fn open(&self, node: u64, file: BorrowedFd<'_>) -> Option<u32> {
        match self.files().entry(node) {
            Entry::Occupied(mut open) => {
                let open = open.get_mut();
                open.times += 1;
                open.backing
            }
            Entry::Vacant(place) => {
                let backing = sys::backing_open(self.device.as_fd(), file);
                if let Err(errno) = backing {
                    tracing::debug!(node, %errno, "not a file that the kernel reads by itself");
                }
                place.insert(Open { backing: backing.ok(), times: 1 }).backing
            }
        }
    }

    /// Somebody has closed it.
    pub(crate) fn release(&self, node: u64) {
        let mut files = self.files();
        let Entry::Occupied(mut open) = files.entry(node) else { return };
        open.get_mut().times -= 1;
        if open.get().times == 0
            && let Some(id) = open.remove().backing
            && let Err(errno) = sys::backing_close(self.device.as_fd(), id)
        {
            tracing::warn!(node, %errno, "the kernel does not give a backing file back");
        }
    }

    /// Nodes that are open.
    pub(crate) fn len(&self) -> usize {
        self.files().len()
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
