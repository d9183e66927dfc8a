//! Decode, call, reply. No policy.
//!
//! Files and directories are never opened: OPEN and OPENDIR are answered with
//! ENOSYS, after which the kernel neither asks again nor sends RELEASE, and every
//! request names a node only. So errors that open(2) would have met come with
//! the first read or write. Except with [`Passthrough`].

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

use super::init::{self, Granted, Wishes};
use super::passthrough::Passthrough;
use super::wire::{self, Answer, Body, Request, fattr, op};
use crate::error::Error;
use crate::overlay::{Attr, Caller, Changes, New, Overlay, SetTime, UNKNOWN};

/// What a request comes to.
pub(crate) enum Verdict {
    /// The answer has been written.
    Reply,
    /// This error number.
    Fail(i32),
    /// The kernel waits for nothing.
    Silent,
}

/// The union as the kernel talks to it.
pub struct Adapter {
    overlay: Overlay,
    wishes: Wishes,
    /// What the kernel agreed to.
    granted: OnceLock<Granted>,
    /// Where the kernel reads files by itself.
    passthrough: OnceLock<Passthrough>,
    /// Log failed operations.
    debug: bool,
}

/// Why no answer could be given.
enum Failure {
    Union(Error),
    /// Nobody serves this, or the kernel is to stop asking.
    NotServed,
    Errno(i32),
    /// Shorter than its opcode says.
    Malformed,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Union(error)
    }
}

type Outcome = Result<(), Failure>;

/// What was read, or [`Failure::Malformed`].
fn need<T>(field: Option<T>) -> Result<T, Failure> {
    field.ok_or(Failure::Malformed)
}

impl Adapter {
    /// Wraps a union. `passthrough`: the kernel is to read files by itself; there is no
    /// upper then.
    #[must_use]
    pub fn new(overlay: Overlay, passthrough: bool, debug: bool) -> Self {
        let options = overlay.options();
        let acl = !options.no_acl && !options.no_xattrs;
        let wishes = Wishes { acl, rings: false, passthrough, writeback: options.writeback };
        let (granted, passthrough) = (OnceLock::new(), OnceLock::new());
        Self { overlay, wishes, granted, passthrough, debug }
    }

    /// The union.
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Answers the first request; `None` when it cannot be understood.
    /// `rings`: there are some for the kernel to use.
    pub(crate) fn init(
        &self,
        request: &Request<'_>,
        rings: bool,
        answer: &mut Answer,
    ) -> Option<Granted> {
        let mut body = request.body;
        let wishes = Wishes { rings, ..self.wishes };
        let granted = init::answer(&mut body, wishes, answer)?;
        if granted.has(wire::init::WRITEBACK_CACHE) {
            self.overlay.write_back();
        }
        Some(*self.granted.get_or_init(|| granted))
    }

    /// The answer to INIT has been taken: tries whether the kernel reads files by itself, if
    /// that was agreed.
    pub(crate) fn begin(&self, device: BorrowedFd<'_>) {
        if self.granted.get().is_some_and(|granted| granted.has(wire::init::PASSTHROUGH))
            && let Some(passthrough) = Passthrough::new(device)
        {
            self.passthrough.get_or_init(|| passthrough);
        }
    }

    /// Whether it does.
    pub(crate) fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.get()
    }

    /// What a READ for much asks for: file, offset and size. `None` for anything else,
    /// and where the file cannot be opened, which serving it will tell.
    pub(crate) fn wants(&self, request: &Request<'_>) -> Option<(Arc<OwnedFd>, u64, usize)> {
        let (offset, size) = request.read().filter(|read| read.1 >= super::splice::LEAST)?;
        Some((self.overlay.data(request.node).ok()?, offset, size))
    }

    /// Serves a request; an answer with data is written into `answer` (cleared).
    pub(crate) fn serve(&self, request: &Request<'_>, answer: &mut Answer) -> Verdict {
        match request.opcode {
            op::FORGET | op::BATCH_FORGET => {
                // Nobody could be told of an error.
                self.forget(request);
                return Verdict::Silent;
            }
            _ => {}
        }
        match self.dispatch(request, answer) {
            Ok(()) => Verdict::Reply,
            Err(Failure::NotServed) => Verdict::Fail(libc::ENOSYS),
            Err(Failure::Errno(errno)) => Verdict::Fail(errno),
            Err(Failure::Malformed) => Verdict::Fail(libc::EIO),
            Err(Failure::Union(error)) => {
                Verdict::Fail(self.errno(request.opcode, request.node, &error))
            }
        }
    }

    /// Reads as READ asks for; an error number else.
    pub(crate) fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, i32> {
        let read = self.overlay.read(node, offset, buffer);
        read.map_err(|error| self.errno(op::READ, node, &error))
    }

    fn errno(&self, opcode: u32, node: u64, error: &Error) -> i32 {
        // Absence is an answer, not a failure.
        if self.debug && !matches!(error, Error::NotFound | Error::NoAttribute) {
            let operation = wire::name_of(opcode).unwrap_or("?");
            tracing::debug!(operation, node, %error, errno = error.errno());
        }
        error.errno()
    }

    fn forget(&self, request: &Request<'_>) -> Option<()> {
        let mut body = request.body;
        if request.opcode == op::FORGET {
            self.overlay.forget(request.node, body.u64()?);
            return Some(());
        }
        let count = body.u32()?;
        body.u32()?;
        for _ in 0..count {
            let node = body.u64()?;
            self.overlay.forget(node, body.u64()?);
        }
        Some(())
    }

    fn dispatch(&self, request: &Request<'_>, answer: &mut Answer) -> Outcome {
        let mut body = request.body;
        let body = &mut body;
        match request.opcode {
            op::LOOKUP => self.lookup(request, body, answer),
            op::GETATTR => {
                answer.attr_out(&self.overlay.getattr(request.node)?);
                Ok(())
            }
            op::SETATTR => self.setattr(request, body, answer),
            op::READLINK => {
                answer.put(self.overlay.readlink(request.node)?.as_bytes());
                Ok(())
            }
            op::SYMLINK => {
                let name = need(body.name())?;
                let new = New::Symlink(need(body.name())?);
                self.make(request, name, new, 0, answer)
            }
            op::MKNOD => {
                let (mode, rdev, umask) = (need(body.u32())?, need(body.u32())?, need(body.u32())?);
                need(body.u32())?;
                let new = New::Node(mode, wire::decode_device(rdev));
                self.make(request, need(body.name())?, new, umask, answer)
            }
            op::MKDIR => {
                let (mode, umask) = (need(body.u32())?, need(body.u32())?);
                self.make(request, need(body.name())?, New::Directory(mode), umask, answer)
            }
            op::CREATE | op::TMPFILE => self.create(request, body, answer),
            op::UNLINK => Ok(self.overlay.unlink(request.node, need(body.name())?)?),
            op::RMDIR => Ok(self.overlay.rmdir(request.node, need(body.name())?)?),
            op::RENAME | op::RENAME2 => self.rename(request, body),
            op::LINK => {
                let node = need(body.u64())?;
                let attr = self.overlay.link(node, request.node, need(body.name())?)?;
                answer.entry_out(attr.ino, &attr);
                Ok(())
            }
            op::READ => {
                need(body.u64())?;
                let (offset, size) = (need(body.u64())?, need(body.u32())? as usize);
                Ok(answer.fill(size, |buffer| self.overlay.read(request.node, offset, buffer))?)
            }
            op::WRITE => self.write(request, body, answer),
            op::FSYNC => {
                need(body.u64())?;
                let data_only = need(body.u32())? & wire::FSYNC_DATA != 0;
                Ok(self.overlay.fsync(request.node, data_only)?)
            }
            op::FSYNCDIR => Ok(self.overlay.fsync_dir(request.node)?),
            op::READDIR | op::READDIRPLUS => self.read_dir(request, body, answer),
            op::STATFS => self.statfs(answer),
            op::SETXATTR => self.setxattr(request, body),
            op::GETXATTR => {
                let size = need(body.u32())?;
                need(body.u32())?;
                let value = self.overlay.getxattr(request.node, need(body.name())?)?;
                put_sized(size, &value, answer)
            }
            op::LISTXATTR => {
                let mut list = Vec::new();
                for name in self.overlay.listxattr(request.node)? {
                    list.extend_from_slice(name.as_bytes());
                    list.push(0);
                }
                put_sized(need(body.u32())?, &list, answer)
            }
            op::REMOVEXATTR => Ok(self.overlay.removexattr(request.node, need(body.name())?)?),
            op::FALLOCATE => {
                need(body.u64())?;
                let (offset, len, mode) = (need(body.u64())?, need(body.u64())?, need(body.u32())?);
                // Whose privilege would keep them is not said.
                self.drop_set_id(request.node, answer)?;
                Ok(self.overlay.allocate(request.node, mode.cast_signed(), offset, len)?)
            }
            // The kernel asks although it has data that it has not handed over yet, and which
            // here is a hole. Not served, all of a file is data.
            op::LSEEK if self.overlay.is_written_back() => Err(Failure::NotServed),
            op::LSEEK => {
                need(body.u64())?;
                let (offset, whence) = (need(body.u64())?, need(body.u32())?);
                let at =
                    self.overlay.seek(request.node, offset.cast_signed(), whence.cast_signed())?;
                answer.u64(at.cast_unsigned());
                Ok(())
            }
            op::COPY_FILE_RANGE => self.copy_range(request, body, answer),
            op::IOCTL => Err(Failure::Errno(libc::ENOTTY)),
            op::DESTROY => Ok(()),
            op::OPEN => self.open(request, body, answer),
            op::RELEASE => {
                self.passthrough.get().ok_or(Failure::NotServed)?.release(request.node);
                Ok(())
            }
            // Nothing is opened, and nothing kept back that FLUSH could hand over.
            op::OPENDIR | op::RELEASEDIR | op::FLUSH => Err(Failure::NotServed),
            // Nothing here can be interrupted.
            op::INTERRUPT => Err(Failure::NotServed),
            _ => Err(Failure::NotServed),
        }
    }

    fn lookup(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        match self.overlay.lookup(request.node, need(body.name())?) {
            Ok(attr) => answer.entry_out(attr.ino, &attr),
            Err(Error::NotFound) => answer.entry_out(0, &Attr::default()),
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn setattr(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        let valid = need(body.u32())?;
        need(body.u32())?;
        need(body.u64())?;
        let size = need(body.u64())?;
        need(body.u64())?;
        let (atime, mtime) = (need(body.u64())?, need(body.u64())?);
        need(body.u64())?;
        let (atime_nanos, mtime_nanos) = (need(body.u32())?, need(body.u32())?);
        need(body.u32())?;
        let mode = need(body.u32())?;
        need(body.u32())?;
        let (uid, gid) = (need(body.u32())?, need(body.u32())?);
        let has = |bit: u32| valid & bit != 0;
        let time = |at: u32, now: u32, seconds: u64, nanos: u32| {
            if has(now) {
                Some(SetTime::Now)
            } else {
                has(at).then_some(SetTime::At(seconds.cast_signed(), nanos))
            }
        };
        let changes = Changes {
            mode: has(fattr::MODE).then_some(mode),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            size: has(fattr::SIZE).then_some(size),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
            drop_set_id: has(fattr::KILL_SUIDGID),
        };
        answer.attr_out(&self.overlay.setattr(request.node, &changes)?);
        Ok(())
    }

    fn make(
        &self,
        request: &Request<'_>,
        name: &OsStr,
        new: New<'_>,
        umask: u32,
        answer: &mut Answer,
    ) -> Outcome {
        let caller = Caller { uid: request.uid, gid: request.gid, umask };
        let attr = self.overlay.make(request.node, name, new, caller)?;
        answer.entry_out(attr.ino, &attr);
        Ok(())
    }

    fn create(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        need(body.u32())?;
        let (mode, umask) = (need(body.u32())?, need(body.u32())?);
        need(body.u32())?;
        let caller = Caller { uid: request.uid, gid: request.gid, umask };
        let attr = if request.opcode == op::TMPFILE {
            self.overlay.make_nameless(request.node, mode, caller)?
        } else {
            self.overlay.make(request.node, need(body.name())?, New::File(mode), caller)?
        };
        answer.entry_out(attr.ino, &attr);
        answer.u64(0);
        answer.u32(wire::OPEN_FLAGS);
        answer.u32(0);
        Ok(())
    }

    fn open(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        let passthrough = self.passthrough.get().ok_or(Failure::NotServed)?;
        // The kernel would write to a lower by itself, too.
        if need(body.u32())?.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Error::ReadOnly.into());
        }
        let file = self.overlay.data(request.node)?;
        let id = passthrough.open(request.node, file.as_fd());
        answer.u64(0);
        answer.u32(if id.is_some() { wire::PASSTHROUGH_FLAGS } else { wire::OPEN_FLAGS });
        answer.u32(id.unwrap_or(0));
        Ok(())
    }

    fn rename(&self, request: &Request<'_>, body: &mut Body<'_>) -> Outcome {
        let new_parent = need(body.u64())?;
        let mut flags = 0;
        if request.opcode == op::RENAME2 {
            flags = need(body.u32())?;
            need(body.u32())?;
        }
        let (name, new_name) = (need(body.name())?, need(body.name())?);
        Ok(self.overlay.rename(request.node, name, new_parent, new_name, flags)?)
    }

    fn write(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        need(body.u64())?;
        let (offset, size, flags) = (need(body.u64())?, need(body.u32())?, need(body.u32())?);
        need(body.bytes(16))?;
        let data = need(body.bytes(size as usize))?;
        if flags & wire::WRITE_KILL_SUIDGID != 0 {
            self.drop_set_id(request.node, answer)?;
        }
        // The kernel takes any success for all of it then.
        let whole = flags & wire::WRITE_CACHE != 0;
        let n = self.overlay.write(request.node, offset, data, whole)?;
        // No more than `size`.
        answer.u32(u32::try_from(n).unwrap_or(size));
        answer.u32(0);
        Ok(())
    }

    /// Clears set-id bits before data changes. The kernel leaves that to us, keeps the mode
    /// that it knows, and would go by it when the file is executed.
    fn drop_set_id(&self, node: u64, answer: &mut Answer) -> Outcome {
        if self.overlay.drop_set_id(node)? {
            answer.stale = Some(node);
        }
        Ok(())
    }

    fn read_dir(&self, request: &Request<'_>, body: &mut Body<'_>, answer: &mut Answer) -> Outcome {
        need(body.u64())?;
        let (cookie, limit) = (need(body.u64())?, need(body.u32())? as usize);
        let plus = request.opcode == op::READDIRPLUS;
        self.overlay.read_dir(request.node, cookie, plus, &mut |cookie, name, attr| {
            // The kernel makes no entry of `.` and `..`, nor of what is not known.
            let unknown = name == "." || name == ".." || attr.ino == UNKNOWN;
            let node = if unknown { 0 } else { attr.ino };
            answer.dirent(limit, cookie, name, attr, plus.then_some(node))
        })?;
        Ok(())
    }

    fn statfs(&self, answer: &mut Answer) -> Outcome {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (counts, sizes) = match self.overlay.statfs()? {
            Some(s) => (
                [s.blocks, s.free, s.available, s.files, s.files_free],
                [small(s.block_size), small(s.name_max), small(s.unit)],
            ),
            None => ([0; 5], [4096, 255, 4096]),
        };
        counts.iter().for_each(|n| answer.u64(*n));
        sizes.iter().for_each(|n| answer.u32(*n));
        answer.put(&[0; 28]);
        Ok(())
    }

    fn setxattr(&self, request: &Request<'_>, body: &mut Body<'_>) -> Outcome {
        let (size, flags) = (need(body.u32())?, need(body.u32())?);
        let mut kill = false;
        if self.granted.get().is_some_and(|g| g.has(wire::init::SETXATTR_EXT)) {
            kill = need(body.u32())? & wire::SETXATTR_ACL_KILL_SGID != 0;
            need(body.u32())?;
        }
        let name = need(body.name())?;
        let value = need(body.bytes(size as usize))?;
        Ok(self.overlay.setxattr(request.node, name, value, flags.cast_signed(), kill)?)
    }

    fn copy_range(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_>,
        answer: &mut Answer,
    ) -> Outcome {
        need(body.u64())?;
        let (from, target) = (need(body.u64())?, need(body.u64())?);
        need(body.u64())?;
        let (into, len) = (need(body.u64())?, need(body.u64())?);
        self.drop_set_id(target, answer)?;
        let n = self.overlay.copy_range((request.node, from), (target, into), len)?;
        answer.u32(u32::try_from(n).unwrap_or(u32::MAX));
        answer.u32(0);
        Ok(())
    }
}

/// Answers a request for an attribute's value or list: its size when asked for.
fn put_sized(size: u32, value: &[u8], answer: &mut Answer) -> Outcome {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => {
            answer.u32(len);
            answer.u32(0);
        }
        Ok(len) if len <= size => answer.put(value),
        _ => return Err(Failure::Errno(libc::ERANGE)),
    }
    Ok(())
}
