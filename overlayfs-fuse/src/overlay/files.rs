//! File data: reading, writing, and what else is done to an open file.
//!
//! # Theory of operation
//! Nobody opens a file here: a request names a node. The first access opens it
//! and leaves the descriptor with the node, next to the node's epoch; when the
//! node is copied up the epoch moves on, and the next access opens the copy. A
//! descriptor for writing is always one of the upper.
//!
//! At most a fixed number of nodes keep a descriptor. The oldest that was not
//! used since it was last looked at loses it (the clock algorithm). A node that
//! is forgotten takes its descriptor along. The lock of a node's descriptor is held
//! for a few instructions only, and never two of them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use super::Overlay;
use super::inode::{Ino, Node, UpperAt};
use super::metacopy::LowerFile;
use crate::error::{During, Error, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, Weak};

/// A descriptor that a node keeps.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// The node's when it was opened.
    epoch: u32,
    reads: bool,
    writes: bool,
    /// The file is known to have no set-id bits.
    plain: bool,
    /// It is of the file that has the data, not of the one that is shown.
    elsewhere: bool,
    fd: Arc<OwnedFd>,
}

impl OpenFile {
    /// A directory of the upper.
    pub(crate) fn of_directory(epoch: u32, fd: Arc<OwnedFd>) -> Self {
        Self { epoch, reads: false, writes: false, plain: false, elsewhere: false, fd }
    }

    /// A file of the upper, opened for reading and writing. `plain`: it is known to have
    /// no set-id bits.
    pub(crate) fn of_upper(epoch: u32, fd: Arc<OwnedFd>, plain: bool) -> Self {
        Self { epoch, reads: true, writes: true, plain, elsewhere: false, fd }
    }

    /// Whether it is of a file of the upper that has all of its data.
    pub(crate) fn is_complete(&self, epoch: u32) -> bool {
        self.writes && self.epoch == epoch
    }
}

/// A regular file that was opened.
struct Opened {
    fd: OwnedFd,
    reads: bool,
    /// As in [`OpenFile`].
    elsewhere: bool,
}

/// The nodes that keep a descriptor.
#[derive(Debug)]
pub(crate) struct Files {
    ring: Mutex<VecDeque<Weak<Node>>>,
    limit: AtomicUsize,
}

impl Default for Files {
    fn default() -> Self {
        Self { ring: Mutex::default(), limit: AtomicUsize::new(256) }
    }
}

impl Files {
    /// From now on at most so many descriptors are kept.
    pub(crate) fn limit_to(&self, limit: usize) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// Nodes in the ring, some of which may be gone.
    pub(crate) fn len(&self) -> usize {
        self.ring().len()
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Weak<Node>>> {
        self.ring.lock().expect("no panic while the open files are locked")
    }

    /// The node to be looked at next, if there are too many.
    fn surplus(&self) -> Option<Weak<Node>> {
        let mut ring = self.ring();
        if ring.len() > self.limit.load(Ordering::Relaxed) { ring.pop_front() } else { None }
    }
}

impl Overlay {
    /// Leaves a descriptor with its node.
    pub(crate) fn keep_file(&self, node: &Arc<Node>, file: OpenFile) {
        let before = node.file().replace(file);
        if before.is_none() {
            self.files.ring().push_back(Arc::downgrade(node));
            self.trim_files();
        }
    }

    fn trim_files(&self) {
        // Once around at most: by then every mark has been taken.
        for _ in 0..=self.files.len() {
            let Some(weak) = self.files.surplus() else { return };
            let Some(node) = weak.upgrade() else { continue };
            if node.recent.swap(false, Ordering::Relaxed) {
                self.files.ring().push_back(weak);
            } else {
                node.file().take();
            }
            self.inodes.purge(node);
        }
    }

    /// The descriptor that a node keeps, if it is of the object shown now.
    pub(crate) fn kept_file(&self, node: &Node) -> Option<Arc<OwnedFd>> {
        let epoch = node.epoch();
        let slot = node.file();
        let shown = |file: &&OpenFile| file.epoch == epoch && !file.elsewhere;
        slot.as_ref().filter(shown).map(|file| Arc::clone(&file.fd))
    }

    /// A descriptor of a regular file; for writing it is copied up first. The
    /// caller holds no lock.
    pub(crate) fn file(&self, node: &Arc<Node>, writes: bool) -> Result<Arc<OwnedFd>> {
        if writes {
            self.copy_up(node, None)?;
            self.complete(node)?;
        }
        let tree = self.tree_shared();
        let epoch = node.epoch();
        let fits =
            |file: &&OpenFile| file.epoch == epoch && if writes { file.writes } else { file.reads };
        if let Some(file) = node.file().as_ref().filter(fits) {
            node.recent.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(&file.fd));
        }
        // Two threads may both open it: either's descriptor will do.
        let Opened { fd, reads, elsewhere } = match self.open_node(node, writes) {
            // Whoever asks opened it before its mode came to forbid it.
            Err(Error::Layer { errno: Errno::EACCES, .. }) if self.may_be_barred_from(node) => {
                drop(tree);
                Opened { fd: self.open_barred(node, writes)?, reads: true, elsewhere: false }
            }
            other => other?,
        };
        let fd = Arc::new(fd);
        let file = OpenFile { epoch, reads, writes, plain: false, elsewhere, fd: Arc::clone(&fd) };
        self.keep_file(node, file);
        Ok(fd)
    }

    /// Opens a regular file where it is. The tree lock is held.
    fn open_node(&self, node: &Arc<Node>, writes: bool) -> Result<Opened> {
        let Some(spot) = self.upper_spot(node)? else {
            let (layer, path, name) = super::attr::lower_of(node)?;
            let LowerFile { fd, elsewhere, .. } = self.open_lower(layer, &path, &name)?;
            return Ok(Opened { fd, reads: true, elsewhere });
        };
        // Never O_APPEND (the kernel gives every write its offset), O_DIRECT (our
        // buffers are not aligned) or O_SYNC (the kernel asks for it by FSYNC).
        // O_NONBLOCK: never wait for a FIFO.
        let base = OFlag::O_NONBLOCK;
        if !writes {
            let fd = spot.open(base | OFlag::O_RDONLY).during("open a file of the upper")?;
            return Ok(match self.data_below_upper(node, &fd)? {
                Some(fd) => Opened { fd, reads: true, elsewhere: true },
                None => Opened { fd, reads: true, elsewhere: false },
            });
        }
        match spot.open(base | OFlag::O_RDWR) {
            // Writable but not readable by this process.
            Err(Errno::EACCES) => {
                let fd = spot.open(base | OFlag::O_WRONLY).during("open a file of the upper")?;
                Ok(Opened { fd, reads: false, elsewhere: false })
            }
            other => {
                let fd = other.during("open a file of the upper")?;
                Ok(Opened { fd, reads: true, elsewhere: false })
            }
        }
    }

    /// A regular file's node.
    fn file_node(&self, id: Ino) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.kind == libc::S_IFREG { Ok(node) } else { Err(Error::Invalid("not a file")) }
    }

    /// The file that has the data of a node, for reading.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn data(&self, id: Ino) -> Result<Arc<OwnedFd>> {
        self.file(&self.file_node(id)?, false)
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    ///
    /// # Errors
    /// What open(2) and pread(2) say.
    pub fn read(&self, id: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.data(id)?;
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

    /// Clears the set-id bits of a file whose data is about to be changed by the
    /// unprivileged, and says whether there were any.
    ///
    /// # Errors
    /// `ReadOnly`, what copying up meets, or what chmod(2) says.
    pub fn drop_set_id(&self, id: Ino) -> Result<bool> {
        let node = self.file_node(id)?;
        self.file(&node, true)?;
        if node.file().as_ref().is_some_and(|f| f.plain) {
            return Ok(false);
        }
        let dropped = self.clear_set_id(&node)?;
        if let Some(file) = node.file().as_mut() {
            file.plain = true;
        }
        Ok(dropped)
    }

    /// Writes `data` at `offset`; gives the bytes written. With `whole` it is an error
    /// that not all of it was written, as whoever wrote it is not there to write the rest.
    ///
    /// # Errors
    /// `ReadOnly`, what copying up meets, or what pwrite(2) says when nothing was
    /// written.
    pub fn write(&self, id: Ino, offset: u64, data: &[u8], whole: bool) -> Result<usize> {
        let node = self.file_node(id)?;
        let file = self.file(&node, true)?;
        let room = self.room(file.as_fd(), offset, data.len() as u64)?;
        let (mut data, wanted) = (data, data.len());
        if let Some(room) = &room {
            let len = room.prefix(offset, data.len() as u64);
            if len == 0 && !data.is_empty() {
                return Err(super::quota::full());
            }
            data = &data[..usize::try_from(len).unwrap_or(usize::MAX).min(data.len())];
        }
        let done = self.at_same_time(&node, file.as_fd(), || write_at(&file, offset, data, whole));
        if let Some(room) = room {
            room.settle(file.as_fd())?;
            if whole && data.len() < wanted {
                return done.and(Err(super::quota::full()));
            }
        }
        done
    }

    /// The mode of a node may have changed: it may have set-id bits again.
    pub(crate) fn forget_plain(&self, node: &Node) {
        if let Some(file) = node.file().as_mut() {
            file.plain = false;
        }
    }

    /// Makes what was written durable, unless the union is volatile.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub fn fsync(&self, id: Ino, data_only: bool) -> Result<()> {
        let node = self.file_node(id)?;
        // What a lower holds was never written here.
        if self.options.volatile || matches!(node.body().upper, UpperAt::None) {
            return Ok(());
        }
        let file = self.file(&node, true)?;
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
        let tree = self.tree_shared();
        let Some(spot) = self.upper_spot(&node)? else { return Ok(()) };
        let fd = match &*spot {
            super::upper::Spot::At(..) => spot.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY),
            super::upper::Spot::Fd(fd) => nix::fcntl::openat(
                fd.as_fd(),
                ".",
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                nix::sys::stat::Mode::empty(),
            ),
        };
        let fd = fd.during("open a directory to sync it")?;
        // A disk takes its time.
        drop((spot, tree));
        nix::unistd::fsync(&fd).during("sync a directory")
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// What copying up meets, or what the upper's file system says.
    pub fn allocate(&self, id: Ino, mode: i32, offset: u64, len: u64) -> Result<()> {
        let node = self.file_node(id)?;
        let file = self.file(&node, true)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let takes = !mode.intersects(
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | FallocateFlags::FALLOC_FL_COLLAPSE_RANGE
                | FallocateFlags::FALLOC_FL_INSERT_RANGE,
        );
        let room = if takes { self.room(file.as_fd(), offset, len)? } else { None };
        let room = room.map(super::quota::Grant::in_full).transpose()?;
        let (offset, len) = (offset_of(offset, 0)?, offset_of(len, 0)?);
        self.at_same_time(&node, file.as_fd(), || {
            fallocate(file.as_fd(), mode, offset, len).during("allocate space")
        })?;
        match room {
            Some(room) => room.settle(file.as_fd()),
            None => self.settle(file.as_fd()),
        }
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// ENXIO past the end, or what the file system says.
    pub fn seek(&self, id: Ino, offset: i64, whence: i32) -> Result<i64> {
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Error::Invalid("no such origin to seek from")),
        };
        let file = self.file(&self.file_node(id)?, false)?;
        lseek(file.as_fd(), offset, whence).during("seek")
    }

    /// copy_file_range(2) between two files, each with its offset.
    ///
    /// # Errors
    /// What the file systems say; EXDEV and EOPNOTSUPP make the kernel copy itself.
    pub fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<usize> {
        let node = self.file_node(to.0)?;
        let target = self.file(&node, true)?;
        let source = self.file(&self.file_node(from.0)?, false)?;
        let (mut at, mut into) = (offset_of(from.1, 0)?, offset_of(to.1, 0)?);
        // The reply counts in 32 bits.
        let mut len = len.min(1 << 30);
        let mut room = None;
        if self.quota.is_some() {
            let size = nix::sys::stat::fstat(source.as_fd()).during("stat a file")?.st_size;
            len = len.min(size.cast_unsigned().saturating_sub(from.1));
            let granted = self.room(target.as_fd(), to.1, len)?;
            if let Some(granted) = &granted {
                let part = granted.prefix(to.1, len);
                if part == 0 && len > 0 {
                    return Err(super::quota::full());
                }
                len = part;
            }
            room = granted;
        }
        let len = usize::try_from(len).unwrap_or(1 << 30);
        let copied = self.at_same_time(&node, target.as_fd(), || {
            copy_file_range(source.as_fd(), Some(&mut at), target.as_fd(), Some(&mut into), len)
                .during("copy a range")
        })?;
        if let Some(room) = room {
            room.settle(target.as_fd())?;
        }
        Ok(copied)
    }
}

fn write_at(file: &OwnedFd, offset: u64, data: &[u8], whole: bool) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let at = offset_of(offset, done)?;
        match nix::sys::uio::pwrite(file, &data[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            // What was written counts; the next write meets the error.
            Err(_) if done > 0 && !whole => break,
            Err(errno) => return Err(Error::Layer { op: "write", errno }),
        }
    }
    Ok(done)
}

fn offset_of(offset: u64, done: usize) -> Result<i64> {
    offset
        .checked_add(done as u64)
        .and_then(|o| i64::try_from(o).ok())
        .ok_or(Error::Invalid("offset beyond the largest file"))
}
