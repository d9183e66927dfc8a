//! Adapter between the kernel's requests (fuser) and [`Overlay`]: decode, call,
//! reply. No policy, and nothing but fuser's types in the signatures.
//!
//! The kernel is the cache: every change goes through it and lowers do not
//! change, so names, attributes, missing names and directory contents are good
//! for ever, and data in its page cache stays.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::error::Error;
use crate::overlay::{Attr, Caller, Changes, New, Overlay, SetTime};

/// "For ever", as far as the kernel's clock goes.
const TTL: Duration = Duration::from_secs(u32::MAX as u64);
const GENERATION: Generation = Generation(0);
/// Largest WRITE, bytes.
const MAX_WRITE: u32 = 1 << 20;

/// The union as a fuser file system.
pub struct Adapter {
    overlay: Overlay,
    /// Log failed operations.
    debug: bool,
    /// User 0 of a request is the machine's root, who keeps set-id bits when
    /// writing (CAP_FSETID in the initial user namespace, as everywhere).
    real_root: bool,
}

thread_local! {
    /// What READ fills; as large as the largest READ so far of this thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    /// Wraps a union.
    #[must_use]
    pub fn new(overlay: Overlay, debug: bool, real_root: bool) -> Self {
        Self { overlay, debug, real_root }
    }

    /// Whether a change of data by this request's user clears set-id bits. The
    /// kernel says so for WRITE; for truncation fuser does not pass it on.
    fn drops_set_id(&self, request: &Request) -> bool {
        !(self.real_root && request.uid() == 0)
    }

    fn errno(&self, operation: &str, id: u64, error: &Error) -> Errno {
        // Absence is an answer, not a failure.
        if self.debug && !matches!(error, Error::NotFound | Error::NoAttribute) {
            tracing::debug!(operation, id, %error, errno = error.errno());
        }
        Errno::from_i32(error.errno())
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn system_time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|t| t.checked_add(Duration::new(0, nanos))).unwrap_or(UNIX_EPOCH)
}

/// What fuser made of a time, back to seconds and nanoseconds. For a time before
/// 1970 fuser 0.18 subtracts the nanoseconds instead of adding them (its
/// `system_time_from_time`); the distance to 1970 still holds both numbers.
fn time_parts(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s);
            (seconds, before.subsec_nanos())
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => {
            let (seconds, nanos) = time_parts(time);
            SetTime::At(seconds, nanos)
        }
    }
}

/// Device numbers travel in 32 bits: 12 of major, 20 of minor, in the kernel's
/// `new_encode_dev` order.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

fn decode_device(device: u32) -> u64 {
    libc::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & !0xff))
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// An entry that says: there is no such name, and that will stay so.
fn negative() -> FileAttr {
    file_attr(&Attr {
        ino: 0,
        mode: libc::S_IFREG,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
    })
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

/// Answers a request for an attribute's value or list: its size when asked for.
fn reply_bytes(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        let options = self.overlay.options();
        if !options.no_acl && !options.no_xattrs {
            wanted.push(InitFlags::FUSE_POSIX_ACL);
        }
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "not offered by this kernel");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            tracing::debug!(nearest, "largest write");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.overlay.lookup(parent.0, name) {
            Ok(attr) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            Err(Error::NotFound) => reply.entry(&TTL, &negative(), GENERATION),
            Err(e) => reply.error(self.errno("lookup", parent.0, &e)),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.overlay.forget(ino.0, count);
    }

    fn getattr(&self, _r: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.overlay.getattr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
            Err(e) => reply.error(self.errno("getattr", ino.0, &e)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            drop_set_id: self.drops_set_id(request),
        };
        match self.overlay.setattr(ino.0, fh.map(|h| h.0), &changes) {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
            Err(e) => reply.error(self.errno("setattr", ino.0, &e)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.overlay.readlink(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(self.errno("readlink", ino.0, &e)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = New::Node(mode, decode_device(rdev));
        self.make("mknod", parent, name, new, caller(request, umask), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make("mkdir", parent, name, New::Directory(mode), caller(request, umask), reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let new = New::Symlink(target.as_os_str());
        self.make("symlink", parent, name, new, caller(request, 0), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.overlay.unlink(parent.0, name) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("unlink", parent.0, &e)),
        }
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.overlay.rmdir(parent.0, name) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("rmdir", parent.0, &e)),
        }
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        match self.overlay.rename(parent.0, name, new_parent.0, new_name, flags.bits()) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("rename", parent.0, &e)),
        }
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        match self.overlay.link(ino.0, new_parent.0, new_name) {
            Ok(attr) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            Err(e) => reply.error(self.errno("link", ino.0, &e)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.overlay.open(ino.0, flags.0, self.drops_set_id(request)) {
            Ok(number) => reply.opened(
                FileHandle(number),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(e) => reply.error(self.errno("open", ino.0, &e)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.overlay.create(parent.0, name, mode, caller(request, umask)) {
            Ok((attr, number)) => reply.created(
                &TTL,
                &file_attr(&attr),
                GENERATION,
                FileHandle(number),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(e) => reply.error(self.errno("create", parent.0, &e)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.overlay.read(fh.0, offset, &mut buffer[..size]) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(self.errno("read", ino.0, &e)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let drop_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.overlay.write(fh.0, offset, data, drop_set_id) {
            // No request is larger than 32 bits can say.
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(e) => reply.error(self.errno("write", ino.0, &e)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is kept back; this answer makes the kernel stop asking.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.overlay.release(fh.0);
        reply.ok();
    }

    fn fsync(&self, _r: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        match self.overlay.fsync(fh.0, data) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("fsync", ino.0, &e)),
        }
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.overlay.read_dir(ino.0, offset, false, &mut |cookie, name, attr| {
            !reply.add(INodeNo(attr.ino), cookie, file_type(attr.mode), name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("readdir", ino.0, &e)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.overlay.read_dir(ino.0, offset, true, &mut |cookie, name, attr| {
            // Node id 0: the kernel makes no entry of `.` and `..`.
            let node = if name == "." || name == ".." { 0 } else { attr.ino };
            !reply.add(INodeNo(node), cookie, name, &TTL, &file_attr(attr), GENERATION)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("readdirplus", ino.0, &e)),
        }
    }

    fn fsyncdir(&self, _r: &Request, ino: INodeNo, _fh: FileHandle, _d: bool, reply: ReplyEmpty) {
        match self.overlay.fsync_dir(ino.0) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("fsyncdir", ino.0, &e)),
        }
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match self.overlay.statfs() {
            Ok(Some(s)) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                small(s.block_size()),
                // `.wh.` has to fit in front of a name.
                small(s.name_max()),
                small(s.fragment_size()),
            ),
            Ok(None) => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
            Err(e) => reply.error(self.errno("statfs", ino.0, &e)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        match self.overlay.setxattr(ino.0, name, value, flags) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("setxattr", ino.0, &e)),
        }
    }

    fn getxattr(&self, _r: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.overlay.getxattr(ino.0, name) {
            Ok(value) => reply_bytes(reply, size, &value),
            Err(e) => reply.error(self.errno("getxattr", ino.0, &e)),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.overlay.listxattr(ino.0) {
            Ok(names) => {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(name.as_bytes());
                    list.push(0);
                }
                reply_bytes(reply, size, &list);
            }
            Err(e) => reply.error(self.errno("listxattr", ino.0, &e)),
        }
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.overlay.removexattr(ino.0, name) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("removexattr", ino.0, &e)),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.overlay.allocate(fh.0, mode, offset, length) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno("fallocate", ino.0, &e)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.overlay.seek(fh.0, offset, whence) {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(self.errno("lseek", ino.0, &e)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.overlay.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len) {
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(e) => reply.error(self.errno("copy_file_range", ino_in.0, &e)),
        }
    }
}

impl Adapter {
    fn make(
        &self,
        operation: &str,
        parent: INodeNo,
        name: &OsStr,
        new: New<'_>,
        caller: Caller,
        reply: ReplyEntry,
    ) {
        match self.overlay.make(parent.0, name, new, caller) {
            Ok((_, attr, _)) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            Err(e) => reply.error(self.errno(operation, parent.0, &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// fuser's decoding of a time before 1970, of which [`time_parts`] is the inverse.
    fn as_fuser_decodes(seconds: i64, nanos: u32) -> SystemTime {
        UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
    }

    #[test]
    fn times_before_1970_survive_fuser() {
        assert_eq!(time_parts(as_fuser_decodes(-2, 500_000_000)), (-2, 500_000_000));
        assert_eq!(time_parts(as_fuser_decodes(-1, 0)), (-1, 0));
        assert_eq!(time_parts(UNIX_EPOCH + Duration::new(7, 8)), (7, 8));
        assert_eq!(system_time((-2, 500_000_000)), UNIX_EPOCH - Duration::from_millis(1500));
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 1), (4095, 0xf_ffff), (259, 300)] {
            let device = libc::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device, "{major}:{minor}");
        }
    }
}
