//! The harness's only `unsafe`: system calls `nix` does not wrap.
#![allow(unsafe_code, reason = "raw system calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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
