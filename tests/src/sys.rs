//! The harness's only `unsafe`: system calls `nix` does not wrap.
#![allow(unsafe_code, reason = "raw system calls")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Write end of the pipe [`on_interrupt`] listens to.
static INTERRUPT: OnceLock<OwnedFd> = OnceLock::new();

extern "C" fn note_interrupt(signal: libc::c_int) {
    if let Some(fd) = INTERRUPT.get() {
        let byte = [signal.to_ne_bytes()[0]];
        // SAFETY: write(2) is async-signal-safe; the buffer lives on this stack
        // and the descriptor is never closed once stored.
        unsafe { libc::write(fd.as_raw_fd(), byte.as_ptr().cast(), 1) };
    }
}

/// Runs `then` on a thread of its own when SIGINT, SIGTERM or SIGHUP arrives.
///
/// # Errors
/// When no pipe or thread can be made, or on a second call.
pub fn on_interrupt(then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    INTERRUPT
        .set(write)
        .map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "already listening"))?;
    let action =
        SigAction::new(SigHandler::Handler(note_interrupt), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only calls write(2), on a descriptor set above.
        unsafe { sigaction(signal, &action) }?;
    }
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        let mut byte = [0u8];
        if matches!(nix::unistd::read(&read, &mut byte), Ok(1)) {
            then();
        }
    })?;
    Ok(())
}

fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(ret).expect("the kernel's descriptors are ints");
    // SAFETY: the call just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_open(2): readable when the process ends.
///
/// # Errors
/// The system call's (ESRCH when there is no such process).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// pidfd_send_signal(2).
///
/// # Errors
/// The system call's.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer is null, which the call allows.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn done(ret: libc::c_long) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// openat2(2) with the given RESOLVE_* flags.
///
/// # Errors
/// The system call's.
pub fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: u64, resolve: u64) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: open_how is plain old data; all zero is its documented default.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags | libc::O_CLOEXEC as u64;
    how.resolve = resolve;
    // SAFETY: path and how outlive the call, and the size is how's own.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

/// clone3(2) with CLONE_PIDFD: (pid, pidfd) here, 0 in the child.
fn clone3(flags: u64, exit_signal: i32) -> io::Result<(i32, Option<OwnedFd>)> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain old data; all zero means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = exit_signal as u64;
    // SAFETY: without CLONE_VM the child has its own copy of memory; the callers
    // below let it call nothing but clone3 and _exit.
    let ret =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match ret {
        0 => Ok((0, None)),
        1.. => Ok((i32::try_from(ret).expect("a pid"), Some(owned(pidfd.into())?))),
        _ => Err(io::Error::last_os_error()),
    }
}

fn exit_at_once(code: i32) -> ! {
    // SAFETY: _exit does not touch the state copied from the parent.
    unsafe { libc::_exit(code) }
}

/// A child with these CLONE_NEW* flags that exits at once with `code`.
///
/// # Errors
/// clone3(2)'s.
pub fn clone3_exiting_child(flags: u64, code: i32) -> io::Result<(i32, OwnedFd)> {
    match clone3(flags, libc::SIGCHLD)? {
        (0, _) => exit_at_once(code),
        (pid, pidfd) => Ok((pid, pidfd.expect("the parent has one"))),
    }
}

/// A child that makes a sibling of itself (CLONE_PARENT) and exits with 0, or 1
/// when it could not; the sibling exits with `code`.
///
/// # Errors
/// clone3(2)'s.
pub fn clone3_with_sibling(code: i32) -> io::Result<(i32, OwnedFd)> {
    match clone3(0, libc::SIGCHLD)? {
        (0, _) => match clone3(libc::CLONE_PARENT as u64, 0) {
            Ok((0, _)) => exit_at_once(code),
            Ok(_) => exit_at_once(0),
            Err(_) => exit_at_once(1),
        },
        (pid, pidfd) => Ok((pid, pidfd.expect("the parent has one"))),
    }
}

/// mount_setattr(2) on the mount behind `fd`: sets `attr_set`.
///
/// # Errors
/// The system call's.
pub fn mount_setattr(fd: BorrowedFd<'_>, attr_set: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path and attr outlive the call, and the size is attr's own.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// TUNSETIFF on an open /dev/net/tun: makes the device `name`.
///
/// # Errors
/// The ioctl's.
pub fn tun_set_iff(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: ifreq is plain old data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.into())
}

/// TUNSETVNETHDRSZ, in bytes.
///
/// # Errors
/// The ioctl's.
pub fn tun_set_vnet_hdr_size(tun: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    done(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) }.into())
}

/// TUNSETOFFLOAD with TUN_F_* flags.
///
/// # Errors
/// The ioctl's (EINVAL when the kernel does not know one of them).
pub fn tun_set_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    done(
        unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }
            .into(),
    )
}

/// lsetxattr(2).
///
/// # Errors
/// The system call's.
pub fn lsetxattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: path, name and value outlive the call; the length is value's own.
    done(
        unsafe {
            libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
        }
        .into(),
    )
}

/// TIOCSWINSZ: sets the window size of a terminal.
///
/// # Errors
/// The ioctl's.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: &libc::winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, size) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the calling thread trace the program from its first instruction on:
/// it stops there, until the tracer lets it go on.
pub fn trace_me(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: PTRACE_TRACEME is a plain system call, which is all that may be
    // done between fork and exec.
    unsafe { command.pre_exec(|| Ok(nix::sys::ptrace::traceme()?)) };
}

/// The system call that traced process `pid` is stopped before: its number and
/// arguments; `None` when it is stopped after one.
///
/// # Errors
/// ptrace(2)'s.
pub fn syscall_stop(pid: nix::unistd::Pid) -> io::Result<Option<(u64, [u64; 6])>> {
    let info = nix::sys::ptrace::syscall_info(pid)?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: at such a stop the kernel has filled in this member of the union.
    let entry = unsafe { info.u.entry };
    Ok(Some((entry.nr, entry.args)))
}

/// The version of this kernel's Landlock; `None` when it has none, or it is off.
#[must_use]
pub fn landlock_version() -> Option<u32> {
    // SAFETY: with the flag for the version (1) the call reads no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32)
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}
