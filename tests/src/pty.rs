//! A pseudo-terminal held by the test.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};

use crate::clock::Deadline;
use crate::command::readable;
use crate::sys;

/// The test's side of a terminal.
#[derive(Debug)]
pub struct Pty {
    master: OwnedFd,
    seen: Vec<u8>,
}

impl Pty {
    /// A terminal of `rows` × `columns`: our side, and the program's.
    ///
    /// # Errors
    /// openpty(3)'s.
    pub fn open(rows: u16, columns: u16) -> Result<(Self, OwnedFd)> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None)?;
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok((Self { master: pair.master, seen: Vec::new() }, pair.slave))
    }

    /// Changes the size of the terminal's window.
    ///
    /// # Errors
    /// The ioctl's.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(sys::set_window_size(self.master.as_fd(), &size)?)
    }

    /// Types.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn write(&self, text: &str) -> Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let count = nix::unistd::write(&self.master, rest)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Reads until nobody is on the other side any more: all that the screen has seen.
    ///
    /// # Errors
    /// When time is up before.
    pub fn all(mut self, limit: Duration) -> Result<String> {
        let deadline = Deadline::after(limit);
        while self.read(deadline.left())? {
            ensure!(!deadline.passed(), "the terminal is still open after {limit:?}");
        }
        Ok(String::from_utf8_lossy(&self.seen).into_owned())
    }

    /// Reads what there is, and waits for something; whether the other side is there.
    fn read(&mut self, limit: Duration) -> Result<bool> {
        if !readable(self.master.as_fd(), limit)? {
            return Ok(true);
        }
        let mut buffer = [0u8; 4096];
        match nix::unistd::read(&self.master, &mut buffer) {
            // EIO: the last holder of the other side is gone.
            Ok(0) | Err(nix::Error::EIO) => Ok(false),
            Ok(count) => {
                self.seen.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads until the screen has seen `text`.
    ///
    /// # Errors
    /// When the terminal closes, or time is up, without.
    pub fn until(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Deadline::after(limit);
        loop {
            let all = String::from_utf8_lossy(&self.seen).into_owned();
            if all.contains(text) {
                return Ok(all);
            }
            let open = self.read(deadline.left())?;
            ensure!(open, "the terminal closed without {text:?}; it showed: {all}");
            ensure!(
                !deadline.passed(),
                "no {text:?} on the terminal after {limit:?}; it showed: {all}"
            );
        }
    }
}
