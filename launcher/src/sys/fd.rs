//! File descriptors that arrive by number.
#![allow(unsafe_code, reason = "the kernel hands out descriptors as numbers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that an earlier program of this process left open.
/// Must be called at most once for a number.
///
/// # Errors
/// EBADF when nothing is open under the number.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD reads a flag; any number is allowed.
    super::check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: it is open (just checked), and the caller takes it over once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether `fd` stays open in the program executed next.
///
/// # Errors
/// As of fcntl(2).
pub fn set_inherited(fd: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let flags = if inherited { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: F_SETFD takes an integer and touches no memory.
    super::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) }.into())?;
    Ok(())
}

/// Makes `number` another name of `fd`, open across exec(2); what was open
/// under that number is closed. Only for 0, 1 and 2, which no [`OwnedFd`] owns.
///
/// # Errors
/// As of dup2(2).
pub fn become_standard(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    if fd.as_raw_fd() == number {
        return set_inherited(fd, true);
    }
    // SAFETY: the standard descriptors are owned by nobody, so that no owner's
    // descriptor is closed behind its back.
    super::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())?;
    Ok(())
}

/// Marks every descriptor from 3 up close-on-exec.
///
/// # Errors
/// As of close_range(2).
pub fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: only flags change; no descriptor is closed under its owner.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Closes every descriptor from 3 up: what the caller left open in this
/// program. Only before the program has opened one of its own.
///
/// # Errors
/// As of close_range(2).
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the program's first deed; nothing in it owns a descriptor yet.
    super::check(unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0)
    })?;
    Ok(())
}
