//! Terminals: the ioctls of tty_ioctl(4) that nix does not wrap.
#![allow(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// The size of the terminal `fd`.
///
/// # Errors
/// ENOTTY when it is none.
pub fn size(fd: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills in one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) }.into())?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the size of the terminal `fd`; its foreground process group gets SIGWINCH.
///
/// # Errors
/// ENOTTY when it is none.
pub fn set_size(fd: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) }.into())?;
    Ok(())
}

/// Unlocks the slave of the pty master `master`; returns the slave's number
/// and an open descriptor of it, found without a path.
///
/// # Errors
/// As of ioctl_tty(2).
pub fn open_slave(master: BorrowedFd<'_>) -> io::Result<(u32, OwnedFd)> {
    let unlocked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) }.into())?;
    // SAFETY: TIOCGPTN fills in an unsigned int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: as said, it is new.
    Ok((number, unsafe { OwnedFd::from_raw_fd(slave as i32) }))
}

/// Makes `tty` the controlling terminal of this session leader.
///
/// # Errors
/// EPERM when the process leads no session or has a terminal already.
pub fn make_controlling(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer: 0, don't steal.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}
