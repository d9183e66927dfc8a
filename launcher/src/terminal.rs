//! The caller's terminal, joined to the pseudo-terminal of a workload.
//!
//! # Theory of operation
//!
//! Bytes go both ways unchanged: what the caller types reaches the master,
//! what the workload prints reaches standard output. While that lasts, and
//! only when input is passed on, the caller's terminal is raw: every key,
//! Ctrl-C too, is the workload's. [`Relay`] puts the terminal back when it is
//! dropped, whatever the reason. The owner polls the descriptors and says
//! which is ready; nothing here waits but writes to standard output.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

use crate::sys::tty;

/// Ctrl-D: what ends the input of a terminal.
const END_OF_INPUT: u8 = 4;

/// A pseudo-terminal's master, joined to standard input and output.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    input: bool,
    output: bool,
    open: bool,
    typed: Vec<u8>,
    before: Option<Termios>,
}

impl Relay {
    /// Joins them; standard input is read when `input`.
    ///
    /// # Errors
    /// As of fcntl(2), tcsetattr(3).
    pub fn new(master: OwnedFd, input: bool) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let mut relay =
            Self { master, input, output: true, open: true, typed: Vec::new(), before: None };
        relay.resize();
        if input && io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
            relay.before = Some(before);
        }
        Ok(relay)
    }

    /// The master, and whether it waits to be written to; `None` once the
    /// workload has closed its side.
    #[must_use]
    pub fn master(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.open.then(|| (self.master.as_fd(), !self.typed.is_empty()))
    }

    /// Whether standard input is to be polled: not while what was typed waits.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.open && self.input && self.typed.is_empty()
    }

    /// Gives the pseudo-terminal the size of the caller's terminal, if there is one.
    pub fn resize(&mut self) {
        let size = tty::size(io::stdout().as_fd()).or_else(|_| tty::size(io::stdin().as_fd()));
        if let Ok(size) = size {
            // It has no size to set once it is closed: nobody would see it.
            if tty::set_size(self.master.as_fd(), size).is_err() {
                self.open = false;
            }
        }
    }

    /// Standard input is readable.
    pub fn take_input(&mut self) {
        let mut buffer = [0; 4096];
        match read(io::stdin(), &mut buffer) {
            Ok(0) => {
                self.input = false;
                self.typed.push(END_OF_INPUT);
            }
            Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.input = false,
        }
        self.pass_input();
    }

    fn pass_input(&mut self) {
        while !self.typed.is_empty() {
            match write(&self.master, &self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.typed.clear();
                    self.input = false;
                }
            }
        }
    }

    /// The master is readable or writable.
    pub fn take_output(&mut self) {
        self.pass_input();
        let mut buffer = [0; 16 * 1024];
        // One buffer a turn, so that a workload that never stops printing does
        // not keep the owner from everything else.
        match read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => self.open = false,
            Ok(length) => self.print(&buffer[..length]),
            Err(_) => {}
        }
    }

    /// Passes on what the workload printed last, after its end.
    pub fn drain(&mut self) {
        let mut buffer = [0; 16 * 1024];
        loop {
            match read(&self.master, &mut buffer) {
                Ok(0) => return,
                Ok(length) => self.print(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn print(&mut self, mut bytes: &[u8]) {
        while self.output && !bytes.is_empty() {
            match write(io::stdout(), bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(Errno::EINTR) => {}
                // Nobody reads it any more; the workload runs on.
                Err(_) => self.output = false,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            match tcsetattr(io::stdin(), SetArg::TCSADRAIN, before) {
                // When the terminal is gone there is nothing to put back.
                Ok(()) | Err(_) => {}
            }
        }
    }
}
