//! Answering system calls in another's place: seccomp_unotify(2).
#![allow(unsafe_code, reason = "ioctls of a seccomp listener")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

// linux/seccomp.h: _IOWR('!', 0 and 1, …), _IOW('!', 2, __u64).
const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;
const NOTIF_ID_VALID: u64 = 0x4008_2102;
const _: () = assert!(size_of::<libc::seccomp_notif>() == 0x50);
const _: () = assert!(size_of::<libc::seccomp_notif_resp>() == 0x18);

/// A system call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its cookie.
    pub id: u64,
    /// The calling thread, in this process's pid namespace.
    pub thread: u32,
    /// AUDIT_ARCH_* of the call's convention.
    pub arch: u32,
    /// Its number there.
    pub number: i32,
    /// Its arguments, as in the registers.
    pub args: [u64; 6],
}

/// Waits for a call. `None`: its caller was killed before it could be received.
///
/// # Errors
/// As of ioctl(2).
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    // SAFETY: plain old data; the kernel wants it to be all zero.
    let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: this request fills in one seccomp_notif, whose size it encodes.
    let result = check(
        unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV as _, &raw mut request) }.into(),
    );
    match result {
        Ok(_) => Ok(Some(Call {
            id: request.id,
            thread: request.pid,
            arch: request.data.arch,
            number: request.data.nr,
            args: request.data.args,
        })),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the caller still waits: only then do its number in `/proc`, and what
/// was opened there before, belong to it.
#[must_use]
pub fn is_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: this request reads one u64.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ID_VALID as _, &raw const id) == 0 }
}

/// Answers a call: 0, or this error. That its caller is gone is no error.
///
/// # Errors
/// As of ioctl(2).
pub fn answer(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let mut response = libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 };
    // SAFETY: this request reads one seccomp_notif_resp.
    let result = check(
        unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND as _, &raw mut response) }.into(),
    );
    match result {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
        _ => Ok(()),
    }
}
