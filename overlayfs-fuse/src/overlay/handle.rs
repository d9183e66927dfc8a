//! Open files: reading, writing, and what else is done to an open file.
//!
//! # Theory of operation
//! A handle keeps the file it has open together with the node's epoch. When the
//! node is copied up the epoch moves on, and the next use of the handle opens
//! the copy: what was opened for reading in a lower sees what is written to the
//! upper. A handle that writes was opened in the upper and never moves.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use super::inode::{Ino, Node};
use super::{Attr, Caller, New, Overlay};
use crate::error::{During, Error, Result};

/// An open file.
#[derive(Debug)]
pub struct Handle {
    node: Arc<Node>,
    /// It was opened for writing.
    pub(crate) writes: bool,
    file: Mutex<(u32, Arc<OwnedFd>)>,
}

/// The open files by number.
#[derive(Default)]
pub(crate) struct Handles {
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    fn add(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn find(&self, number: u64) -> Option<Arc<Handle>> {
        self.lock().get(&number).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.open.lock().expect("no panic while the handles are locked")
    }
}

impl Overlay {
    /// Opens a regular file; `flags` as open(2). For writing it is copied up
    /// first; with `O_TRUNC` without its data.
    ///
    /// # Errors
    /// `ReadOnly`, or what the layers say.
    pub fn open(&self, id: Ino, flags: i32, drop_set_id: bool) -> Result<u64> {
        let node = self.node(id)?;
        let flags = OFlag::from_bits_truncate(flags);
        let access = flags & OFlag::O_ACCMODE;
        let writes = access != OFlag::O_RDONLY || flags.contains(OFlag::O_TRUNC);
        if writes {
            let keep = flags.contains(OFlag::O_TRUNC).then_some(0);
            self.copy_up(&node, keep)?;
        }
        let epoch = node.epoch();
        let file = self.open_node(&node, writes, flags)?;
        if flags.contains(OFlag::O_TRUNC) {
            nix::unistd::ftruncate(&file, 0).during("truncate a file")?;
            if drop_set_id {
                self.drop_set_id(&node)?;
            }
        }
        Ok(self.handles.add(Handle { node, writes, file: Mutex::new((epoch, Arc::new(file))) }))
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// As [`Overlay::make`].
    pub fn create(
        &self,
        parent: Ino,
        name: &std::ffi::OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<(Attr, u64)> {
        let (node, attr, file) = self.make(parent, name, New::File(mode), caller)?;
        let file = file.ok_or(Error::Stale)?;
        let epoch = node.epoch();
        let file = Mutex::new((epoch, Arc::new(file)));
        Ok((attr, self.handles.add(Handle { node, writes: true, file })))
    }

    fn open_node(&self, node: &Arc<Node>, writes: bool, flags: OFlag) -> Result<OwnedFd> {
        let _tree = self.tree_shared();
        let Some(spot) = self.upper_spot(node)? else {
            let (layer, path, name) = super::attr::lower_of(node)?;
            return self.lowers[layer].open(&path, &name);
        };
        // Never O_APPEND (the kernel gives every write its offset) nor O_DIRECT
        // (our buffers are not aligned). O_NONBLOCK: never wait for a FIFO.
        let synced = if self.options.volatile {
            OFlag::empty()
        } else {
            flags & (OFlag::O_SYNC | OFlag::O_DSYNC)
        };
        let base = synced | OFlag::O_NONBLOCK;
        if !writes {
            return spot.open(base | OFlag::O_RDONLY).during("open a file of the upper");
        }
        match spot.open(base | OFlag::O_RDWR) {
            // Writable but not readable by this process.
            Err(Errno::EACCES) => {
                spot.open(base | OFlag::O_WRONLY).during("open a file of the upper")
            }
            other => other.during("open a file of the upper"),
        }
    }

    /// The file behind a handle, opened again if the node was copied up since.
    pub(crate) fn file_of(&self, node: &Arc<Node>, handle: &Handle) -> Result<Arc<OwnedFd>> {
        let epoch = node.epoch();
        {
            let file = handle.file.lock().expect("no panic while a handle is locked");
            if file.0 == epoch || handle.writes {
                return Ok(Arc::clone(&file.1));
            }
        }
        let fresh = Arc::new(self.open_node(node, false, OFlag::empty())?);
        let mut file = handle.file.lock().expect("no panic while a handle is locked");
        *file = (epoch, Arc::clone(&fresh));
        Ok(fresh)
    }

    fn file(&self, number: u64) -> Result<(Arc<Handle>, Arc<OwnedFd>)> {
        let handle = self
            .handles
            .find(number)
            .ok_or(Error::Layer { op: "find an open file", errno: Errno::EBADF })?;
        let file = self.file_of(&handle.node, &handle)?;
        Ok((handle, file))
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read(&self, number: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let (_, file) = self.file(number)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset_of(offset, done)?;
            match nix::sys::uio::pread(file.as_fd(), &mut buffer[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Layer { op: "read", errno }),
            }
        }
        Ok(done)
    }

    /// Writes `data` at `offset`; gives the bytes written.
    ///
    /// # Errors
    /// What pwrite(2) says when nothing was written.
    pub fn write(&self, number: u64, offset: u64, data: &[u8], drop_set_id: bool) -> Result<usize> {
        let (handle, file) = self.file(number)?;
        if drop_set_id {
            self.drop_set_id(&handle.node)?;
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset_of(offset, done)?;
            match nix::sys::uio::pwrite(file.as_fd(), &data[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                // What was written counts; the next write meets the error.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(Error::Layer { op: "write", errno }),
            }
        }
        Ok(done)
    }

    /// Makes what was written durable, unless the union is volatile.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub fn fsync(&self, number: u64, data_only: bool) -> Result<()> {
        let (handle, file) = self.file(number)?;
        if self.options.volatile || !handle.writes && self.is_read_only() {
            return Ok(());
        }
        if data_only {
            nix::unistd::fdatasync(file.as_fd()).during("sync a file")
        } else {
            nix::unistd::fsync(file.as_fd()).during("sync a file")
        }
    }

    /// Makes the names of a directory durable, unless the union is volatile.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub fn fsync_dir(&self, id: Ino) -> Result<()> {
        if self.options.volatile {
            return Ok(());
        }
        let node = self.node(id)?;
        let _tree = self.tree_shared();
        let Some(spot) = self.upper_spot(&node)? else { return Ok(()) };
        let fd = match &spot {
            super::upper::Spot::At(..) => spot.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY),
            super::upper::Spot::Fd(fd) => nix::fcntl::openat(
                fd.as_fd(),
                ".",
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                nix::sys::stat::Mode::empty(),
            ),
        };
        let fd = fd.during("open a directory to sync it")?;
        nix::unistd::fsync(&fd).during("sync a directory")
    }

    /// fallocate(2) on an open file.
    ///
    /// # Errors
    /// What the upper's file system says.
    pub fn allocate(&self, number: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        let (_, file) = self.file(number)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let (offset, len) = (offset_of(offset, 0)?, offset_of(len, 0)?);
        fallocate(file.as_fd(), mode, offset, len).during("allocate space")
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE` on an open file.
    ///
    /// # Errors
    /// ENXIO past the end, or what the file system says.
    pub fn seek(&self, number: u64, offset: i64, whence: i32) -> Result<i64> {
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Error::Invalid("no such origin to seek from")),
        };
        let (_, file) = self.file(number)?;
        lseek(file.as_fd(), offset, whence).during("seek")
    }

    /// copy_file_range(2) between two open files.
    ///
    /// # Errors
    /// What the file systems say; EXDEV and EOPNOTSUPP make the kernel copy itself.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<usize> {
        let (_, source) = self.file(from.0)?;
        let (_, target) = self.file(to.0)?;
        let (mut at, mut into) = (offset_of(from.1, 0)?, offset_of(to.1, 0)?);
        // The reply counts in 32 bits.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        copy_file_range(source.as_fd(), Some(&mut at), target.as_fd(), Some(&mut into), len)
            .during("copy a range")
    }

    /// Closes an open file.
    pub fn release(&self, number: u64) {
        let handle = self.handles.lock().remove(&number);
        if let Some(handle) = handle.and_then(Arc::into_inner) {
            // The kernel may have forgotten the inode before.
            self.inodes.purge(handle.node);
        }
    }
}

fn offset_of(offset: u64, done: usize) -> Result<i64> {
    offset
        .checked_add(done as u64)
        .and_then(|o| i64::try_from(o).ok())
        .ok_or(Error::Invalid("offset beyond the largest file"))
}
