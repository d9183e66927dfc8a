//! Keeping owners where only one id exists.
//!
//! # Theory of operation
//!
//! In a user namespace that maps nothing but 0 the kernel refuses chown(2) to
//! any other id before a file system is asked. The workload's filter therefore
//! hands such calls (no others: 0 and "no change" pass) to this process, which
//! does in the caller's place what the kernel would have done: finds the file,
//! asks for the right to change its owner, and has the overlay keep the owner
//! in the attribute that also holds the mode. The container sees root still;
//! a mount of the same upper with subordinate ids sees the owners.
//!
//! The call is never continued, so nothing that the caller changes meanwhile
//! (its memory, its descriptors, its directories) makes a difference between
//! what is judged and what is done: the path is read once, resolved once, and
//! all that follows is done to the one object it led to. Resolving must not
//! reach further than the caller can:
//!
//! * root and working directory, or the directory given, are the caller's own;
//! * the capabilities that count are those the caller has at that moment;
//! * magic links are not followed: `/proc` would show them to this process with
//!   its own eyes. The ones in common use, `/dev/fd/N` and its like, are taken
//!   for the descriptor they name.
//!
//! All of it is looked up in `/proc` by the caller's number, which is nobody
//! else's for as long as the call waits; that it still does is asked after the
//! last of it was opened, and before anything is done.
//!
//! The stage lives in the container's user namespace and the host's PID
//! namespace, where nothing in the container can address it, and ends when no
//! process is left under the filter. If it dies, the calls fail with ENOSYS, and
//! the monitor ends the container.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{chroot, fchdir};

use crate::channel::{Channel, Context, Fault, Listen};
use crate::sys::notify::{self, Call};
use crate::sys::{fd, process, xattr};

/// The attribute of the overlay's contract; set to `UID:GID`, either may be empty.
const ATTRIBUTE: &CStr = c"user.containers.override_stat";
/// linux/limits.h, the NUL included.
const PATH_MAX: usize = 4096;
/// CAP_CHOWN, number 0 (linux/capability.h), in a set.
const CAP_CHOWN: u64 = 1 << 0;

/// Goes on as the stage, a child of process `parent`. Returns the exit code.
pub fn main(parent: i32, channel: &Channel) -> u8 {
    match prepare(parent).and_then(|proc| serve(channel, &proc)) {
        Ok(()) => 0,
        // The monitor sees the end and says so.
        Err(_) => 125,
    }
}

fn prepare(parent: i32) -> Result<Proc, Fault> {
    process::die_with_parent(parent).context(|| "the parent is gone")?;
    nix::sys::prctl::set_dumpable(false).context(|| "cannot hide")?;
    nix::sys::prctl::set_name(c"coracle-owners").context(|| "cannot name the process")?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "no /dev/null")?;
    for number in 0..=2 {
        fd::become_standard(null.as_fd(), number).context(|| "cannot let go of the streams")?;
    }
    Proc::open().context(|| "cannot open /proc")
}

/// The host's `/proc` and root, as seen before any root is changed.
#[derive(Debug)]
struct Proc {
    proc: OwnedFd,
    root: OwnedFd,
    /// Capabilities that this process may use.
    permitted: u64,
}

impl Proc {
    fn open() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |path: &str| nix::fcntl::open(path, flags, Mode::empty());
        let proc = open("/proc")?;
        let permitted = capabilities(proc.as_fd(), "self/status", "CapPrm:")?;
        Ok(Self { proc, root: open("/")?, permitted })
    }
}

fn serve(channel: &Channel, proc: &Proc) -> Result<(), Fault> {
    let Some((Listen { device }, mut fds)) = channel.receive().context(|| "no listener")? else {
        // It came to nothing.
        return Ok(());
    };
    let listener = fds.pop().ok_or_else(|| Fault::said("no listener"))?;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.context(|| "cannot wait for calls")?,
        };
        let events = fds[0].revents().unwrap_or(PollFlags::POLLHUP);
        if !events.contains(PollFlags::POLLIN) {
            // Nobody is left who could call.
            return Ok(());
        }
        let Some(call) = notify::receive(listener.as_fd()).context(|| "cannot receive a call")?
        else {
            continue;
        };
        let errno = match change(proc, listener.as_fd(), device, &call) {
            Ok(()) => 0,
            Err(errno) => errno as i32,
        };
        notify::answer(listener.as_fd(), call.id, errno).context(|| "cannot answer a call")?;
    }
}

/// Which file a call means; the path's address is in the caller's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Descriptor(i32),
    Path { dir: Option<i32>, at: u64, follow: bool, empty: bool },
}

/// A call, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    target: Target,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Numbers of the calls of 32-bit x86 (arch/x86/entry/syscalls/syscall_32.tbl).
mod i386 {
    pub(super) const ARCH: u32 = 0x4000_0003;
    pub(super) const LCHOWN: i32 = 16;
    pub(super) const FCHOWN: i32 = 95;
    pub(super) const CHOWN: i32 = 182;
    pub(super) const LCHOWN32: i32 = 198;
    pub(super) const FCHOWN32: i32 = 207;
    pub(super) const CHOWN32: i32 = 212;
    pub(super) const FCHOWNAT: i32 = 298;
}

#[derive(Clone, Copy)]
enum Form {
    Chown,
    Lchown,
    Fchown,
    Fchownat,
}

/// Understands a call. Pure.
fn understand(call: &Call) -> Result<Change, Errno> {
    let narrow = call.arch == i386::ARCH;
    let (form, short) = if narrow {
        match call.number {
            i386::CHOWN => (Form::Chown, true),
            i386::LCHOWN => (Form::Lchown, true),
            i386::FCHOWN => (Form::Fchown, true),
            i386::CHOWN32 => (Form::Chown, false),
            i386::LCHOWN32 => (Form::Lchown, false),
            i386::FCHOWN32 => (Form::Fchown, false),
            i386::FCHOWNAT => (Form::Fchownat, false),
            _ => return Err(Errno::ENOSYS),
        }
    } else {
        match libc::c_long::from(call.number) {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chown => (Form::Chown, false),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lchown => (Form::Lchown, false),
            libc::SYS_fchown => (Form::Fchown, false),
            libc::SYS_fchownat => (Form::Fchownat, false),
            _ => return Err(Errno::ENOSYS),
        }
    };
    // Of each argument the kernel takes no more than its type holds.
    let id = |arg: usize| {
        let id = call.args[arg] as u32;
        match short {
            true => Some(id & 0xffff).filter(|id| *id != 0xffff),
            false => Some(id).filter(|id| *id != u32::MAX),
        }
    };
    let address = |arg: usize| match narrow {
        true => call.args[arg] & 0xffff_ffff,
        false => call.args[arg],
    };
    let path = |follow| Target::Path { dir: None, at: address(0), follow, empty: false };
    Ok(match form {
        Form::Chown => Change { target: path(true), uid: id(1), gid: id(2) },
        Form::Lchown => Change { target: path(false), uid: id(1), gid: id(2) },
        Form::Fchown => {
            let target = Target::Descriptor(call.args[0] as i32);
            Change { target, uid: id(1), gid: id(2) }
        }
        Form::Fchownat => {
            let flags = call.args[4] as i32;
            if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
                return Err(Errno::EINVAL);
            }
            let dir = Some(call.args[0] as i32).filter(|dir| *dir != libc::AT_FDCWD);
            let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
            let empty = flags & libc::AT_EMPTY_PATH != 0;
            let target = Target::Path { dir, at: address(1), follow, empty };
            Change { target, uid: id(2), gid: id(3) }
        }
    })
}

/// The descriptor that a path stands for by a magic link everybody uses.
fn descriptor(path: &[u8]) -> Option<i32> {
    match path {
        b"/dev/stdin" => return Some(0),
        b"/dev/stdout" => return Some(1),
        b"/dev/stderr" => return Some(2),
        _ => {}
    }
    let number = ["/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"]
        .iter()
        .find_map(|dir| path.strip_prefix(dir.as_bytes()))?;
    if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Carries out a call. `device`: where owners can be kept; elsewhere nothing is
/// changed, and that is no error.
fn change(proc: &Proc, listener: BorrowedFd<'_>, device: u64, call: &Call) -> Result<(), Errno> {
    let wanted = understand(call)?;
    let caller = Caller::open(proc, call.thread)?;
    let effective = caller.effective;
    // Whatever it is opened by; nothing has been done with it yet.
    let found = caller.locate(&wanted.target)?;
    if !notify::is_valid(listener, call.id) {
        return Err(Errno::ENOENT);
    }
    let file = match found {
        Located::File(file) => file,
        Located::Below { root, base, path, follow } => {
            resolve(proc, effective, &root, &base, &path, follow)?
        }
    };
    let stat = fstat(&file)?;
    if effective & CAP_CHOWN == 0 {
        return Err(Errno::EPERM);
    }
    if stat.st_dev != device || !can_be_kept(&stat) {
        return Ok(());
    }
    let text = |id: Option<u32>| id.map_or_else(String::new, |id| id.to_string());
    let value = format!("{}:{}", text(wanted.uid), text(wanted.gid));
    // By the magic link, in our own eyes: it leads to the object, and needs no
    // right to open it.
    fchdir(&proc.proc)?;
    let path = CString::new(format!("self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    let kept = xattr::set(&path, ATTRIBUTE, value.as_bytes());
    fchdir(&proc.root)?;
    kept.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Symbolic links and special files cannot hold the attribute (xattr(7)).
fn can_be_kept(stat: &FileStat) -> bool {
    matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR)
}

/// A waiting caller, by its directory in `/proc`.
struct Caller {
    dir: OwnedFd,
    effective: u64,
}

/// What was found of a target without resolving a path.
enum Located {
    File(OwnedFd),
    Below { root: OwnedFd, base: OwnedFd, path: CString, follow: bool },
}

impl Caller {
    fn open(proc: &Proc, thread: u32) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(&proc.proc, thread.to_string().as_str(), flags, Mode::empty())?;
        let effective = capabilities(dir.as_fd(), "status", "CapEff:")
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(Self { dir, effective })
    }

    fn place(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(&self.dir, name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        let found = self.place(&format!("fd/{number}"));
        found.map_err(|e| if e == Errno::ENOENT { Errno::EBADF } else { e })
    }

    fn locate(&self, target: &Target) -> Result<Located, Errno> {
        let (dir, at, follow, empty) = match *target {
            Target::Descriptor(number) => return self.descriptor(number).map(Located::File),
            Target::Path { dir, at, follow, empty } => (dir, at, follow, empty),
        };
        let path = self.string(at)?;
        if let Some(number) = descriptor(path.as_bytes()).filter(|_| follow) {
            let found = self.descriptor(number).map(Located::File);
            return found.map_err(|e| if e == Errno::EBADF { Errno::ENOENT } else { e });
        }
        let absolute = path.as_bytes().first() == Some(&b'/');
        let base = match dir {
            // Not looked at: openat(2).
            _ if absolute => self.place("root")?,
            None => self.place("cwd")?,
            Some(number) => self.descriptor(number)?,
        };
        if path.is_empty() {
            return if empty { Ok(Located::File(base)) } else { Err(Errno::ENOENT) };
        }
        Ok(Located::Below { root: self.place("root")?, base, path, follow })
    }

    /// A string of the caller's memory.
    fn string(&self, at: u64) -> Result<CString, Errno> {
        let memory = openat(&self.dir, "mem", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let memory = File::from(memory);
        let mut bytes = Vec::new();
        // To the end of a page at most: the next one need not be there.
        while bytes.len() < PATH_MAX {
            let from = at.checked_add(bytes.len() as u64).ok_or(Errno::EFAULT)?;
            let mut page = [0; PATH_MAX];
            let room = PATH_MAX - from as usize % PATH_MAX;
            let length = memory.read_at(&mut page[..room], from).map_err(|_| Errno::EFAULT)?;
            if length == 0 {
                return Err(Errno::EFAULT);
            }
            if let Some(end) = page[..length].iter().position(|byte| *byte == 0) {
                bytes.extend_from_slice(&page[..end]);
                return CString::new(bytes).map_err(|_| Errno::EFAULT);
            }
            bytes.extend_from_slice(&page[..length]);
        }
        Err(Errno::ENAMETOOLONG)
    }
}

/// Finds what `path` means to a caller with this root, base and capabilities.
fn resolve(
    proc: &Proc,
    effective: u64,
    root: &OwnedFd,
    base: &OwnedFd,
    path: &CStr,
    follow: bool,
) -> Result<OwnedFd, Errno> {
    let plain = |e: io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    fchdir(root)?;
    chroot(".")?;
    let found = fchdir(base).and_then(|()| {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let flags = if follow { flags } else { flags | OFlag::O_NOFOLLOW };
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        process::capset(effective & proc.permitted, proc.permitted).map_err(plain)?;
        let found = openat2(AT_FDCWD, path, how);
        process::capset(proc.permitted, proc.permitted).map_err(plain)?;
        found
    });
    // The next caller has another root.
    fchdir(&proc.root)?;
    chroot(".")?;
    found
}

/// A set of capabilities, from a file of proc_pid_status(5).
fn capabilities(dir: BorrowedFd<'_>, file: &str, field: &str) -> io::Result<u64> {
    let status = openat(dir, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let status = io::read_to_string(File::from(status))?;
    let bits = status.lines().find_map(|line| line.strip_prefix(field));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: u32 = 0xc000_003e;

    fn call(arch: u32, number: libc::c_long, args: [u64; 6]) -> Call {
        Call { id: 1, thread: 1, arch, number: number as i32, args }
    }

    #[test]
    fn calls_are_understood() {
        let none = u64::MAX;
        let path = |at, follow| Target::Path { dir: None, at, follow, empty: false };
        let fd = libc::AT_FDCWD as u64;
        for (call, target, uid, gid) in [
            (
                call(NATIVE, libc::SYS_fchown, [5, 33, none, 0, 0, 0]),
                Target::Descriptor(5),
                Some(33),
                None,
            ),
            (
                call(NATIVE, libc::SYS_fchownat, [fd, 0x7000_0000_0000, 33, 34, 0, 0]),
                path(0x7000_0000_0000, true),
                Some(33),
                Some(34),
            ),
            (
                call(NATIVE, libc::SYS_fchownat, [7, 16, 0, 34, 0x1100, 0]),
                Target::Path { dir: Some(7), at: 16, follow: false, empty: true },
                Some(0),
                Some(34),
            ),
            // Stray upper bits of what has 32 or 16 of them.
            (
                call(
                    i386::ARCH,
                    i386::LCHOWN.into(),
                    [0xdead_0000_0010, 0xffff_0021, 0x1_ffff, 0, 0, 0],
                ),
                path(16, false),
                Some(33),
                None,
            ),
            (
                call(i386::ARCH, i386::CHOWN32.into(), [16, 0xffff, 33, 0, 0, 0]),
                path(16, true),
                Some(0xffff),
                Some(33),
            ),
        ] {
            assert_eq!(understand(&call), Ok(Change { target, uid, gid }), "{call:?}");
        }
        let flags = call(NATIVE, libc::SYS_fchownat, [fd, 0, 33, 34, 0x800, 0]);
        assert_eq!(understand(&flags), Err(Errno::EINVAL));
        assert_eq!(understand(&call(NATIVE, libc::SYS_openat, [0; 6])), Err(Errno::ENOSYS));
    }

    #[test]
    fn descriptors_by_name() {
        for (path, want) in [
            ("/dev/stdout", Some(1)),
            ("/dev/fd/17", Some(17)),
            ("/proc/self/fd/0", Some(0)),
            ("/dev/fd/", None),
            ("/dev/fd/x", None),
            ("/dev/fd/1/x", None),
            ("/dev/fd/99999999999", None),
            ("/dev/null", None),
        ] {
            assert_eq!(descriptor(path.as_bytes()), want, "{path}");
        }
    }
}
