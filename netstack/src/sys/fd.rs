//! Descriptors inherited from the parent.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Takes ownership of a descriptor that was named on the command line, and keeps
/// it from programs started later.
///
/// # Errors
/// EBADF when there is no such descriptor, or it is a standard stream.
pub fn inherited(raw: RawFd) -> Result<OwnedFd, Errno> {
    if raw <= 2 {
        return Err(Errno::EBADF);
    }
    // SAFETY: fcntl with F_SETFD takes integers only and fails with EBADF for a
    // number that names no descriptor.
    Errno::result(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open (checked above), was handed over by the
    // parent for this very use, and `Inherited` in `main` takes each number once,
    // before the process has opened descriptors of its own that are kept.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes ownership of a descriptor that a system call has just made for us.
pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: the caller has it from the kernel a moment ago; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
