//! Being attached to a container: standard input and output, joined to the
//! workload's through its monitor.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::{Ended, Frame, Socket};
use crate::run::RunError;
use crate::stage::monitor::FORWARDED;
use crate::terminal::{Caller, Input, Keys};

/// How it came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// The container lives on.
    Detached,
    /// The container has ended.
    Ended(Ended),
    /// The monitor is gone without a word.
    Lost,
    /// The container lives on; standard output takes nothing any more.
    Unheard(Errno),
}

/// What kept standard output from taking all that a program printed, but for a reader, or a
/// terminal, that has gone: that is nothing to be told.
pub(crate) fn lost(caller: &Caller) -> Option<Errno> {
    let gone = [Errno::EPIPE, Errno::ECONNRESET, Errno::EIO];
    caller.failure().filter(|errno| !gone.contains(errno))
}

/// That something was lost.
pub(crate) fn unprinted(errno: Errno) -> RunError {
    RunError::os("cannot write to standard output")(errno)
}

/// What becomes of signals that this process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// All go to the workload.
    All,
    /// All but SIGHUP, which means that this terminal has gone, and the
    /// container stays.
    Attached,
    /// None: those that end a program end the attachment.
    None,
}

struct Join<'a> {
    socket: &'a Socket,
    caller: Caller,
    keys: Keys,
    proxy: Proxy,
    signals: SignalFd,
    /// Messages for which the monitor has no room yet.
    waiting: Vec<Frame>,
    leaving: bool,
}

/// Has the signals that are passed on, and changes of the terminal's size, arrive at a
/// descriptor. Second: the mask to be restored.
///
/// # Errors
/// As of signalfd(2).
pub(crate) fn take_signals() -> Result<(SignalFd, SigSet), RunError> {
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    mask.add(Signal::SIGWINCH);
    let old = mask
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(RunError::os("cannot block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(RunError::os("cannot receive signals"))?;
    Ok((signals, old))
}

/// Waits for one of `fds`. Which of `N` things happened: `slots` names the thing that each
/// of them stands for.
///
/// # Errors
/// As of poll(2).
pub(crate) fn happened<const N: usize>(
    slots: Vec<usize>,
    mut fds: Vec<PollFd<'_>>,
) -> Result<[bool; N], RunError> {
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(RunError::os("cannot wait for events")(errno)),
        }
    }
    let mut happened = [false; N];
    for (slot, fd) in slots.into_iter().zip(&fds) {
        happened[slot] = fd.any().unwrap_or(true);
    }
    Ok(happened)
}

/// Stays joined until the container ends or the caller leaves. The connection is
/// attached. The terminal is its old self afterwards.
///
/// # Errors
/// When the terminal or signals cannot be used.
pub fn join(socket: &Socket, caller: Caller, keys: Keys, proxy: Proxy) -> Result<Left, RunError> {
    let (signals, old) = take_signals()?;
    let (waiting, leaving) = (Vec::new(), false);
    let mut join = Join { socket, caller, keys, proxy, signals, waiting, leaving };
    let left = join.watch();
    join.caller.finish(&join.signals);
    let lost = if proxy == Proxy::All { lost(&join.caller) } else { None };
    drop(join);
    old.thread_set_mask().map_err(RunError::os("cannot restore the signal mask"))?;
    Ok(match (left?, lost) {
        // What the program came to is no news where what it printed is lost.
        (Left::Ended(ended), Some(errno)) if ended.message.is_none() => {
            let message = Some(unprinted(errno).line());
            Left::Ended(Ended { code: 125, message })
        }
        (Left::Detached, Some(errno)) => Left::Unheard(errno),
        (left, _) => left,
    })
}

impl Join<'_> {
    fn watch(&mut self) -> Result<Left, RunError> {
        self.caller.take_over().map_err(RunError::os("cannot use the terminal"))?;
        self.resize();
        loop {
            let [signal, message, input, output] = self.wait()?;
            if signal && let Some(left) = self.take_signals()? {
                return Ok(left);
            }
            if output {
                self.caller.flush();
            }
            if message {
                self.send_waiting();
                if let Some(left) = self.hear()? {
                    return Ok(left);
                }
            }
            // Whoever runs it in front of him runs it on.
            if self.proxy != Proxy::All
                && let Some(errno) = self.caller.failure()
            {
                return Ok(Left::Unheard(errno));
            }
            if input {
                self.take_input();
            }
        }
    }

    /// Which of: signals, socket, standard input, standard output.
    fn wait(&self) -> Result<[bool; 4], RunError> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut socket = PollFlags::empty();
        if !self.caller.is_full() {
            socket |= PollFlags::POLLIN;
        }
        if !self.waiting.is_empty() {
            socket |= PollFlags::POLLOUT;
        }
        let mut slots = vec![0];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // Its hang-up is told even when nothing is asked for; what it said before
        // is read only when there is room for it.
        if !socket.is_empty() {
            slots.push(1);
            fds.push(PollFd::new(self.socket.as_fd(), socket));
        }
        if self.caller.wants_input() && self.waiting.is_empty() {
            slots.push(2);
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        if self.caller.is_full() {
            slots.push(3);
            fds.push(PollFd::new(stdout.as_fd(), PollFlags::POLLOUT));
        }
        happened(slots, fds)
    }

    fn send(&mut self, frame: Frame) {
        self.waiting.push(frame);
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while let Some(frame) = self.waiting.first() {
            match self.socket.try_send(frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is gone, which shows when it is heard.
                Ok(()) | Err(_) => drop(self.waiting.remove(0)),
            }
        }
    }

    fn resize(&mut self) {
        if let Some(size) = self.caller.size() {
            self.send(Frame::Size(size));
        }
    }

    fn take_signals(&mut self) -> Result<Option<Left>, RunError> {
        while let Some(info) =
            self.signals.read_signal().map_err(RunError::os("cannot read a signal"))?
        {
            let number = info.ssi_signo as i32;
            if number == libc::SIGWINCH {
                self.resize();
                continue;
            }
            let leaves = match self.proxy {
                Proxy::All => false,
                Proxy::Attached => number == libc::SIGHUP,
                Proxy::None => true,
            };
            if leaves {
                return Ok(Some(Left::Detached));
            }
            // The container has ended, and its last output waits for a reader.
            if self.caller.is_full() && self.is_over() {
                self.caller.discard();
                continue;
            }
            self.send(Frame::Signal(number as u8));
        }
        Ok(None)
    }

    /// The monitor has gone; what it said last may not be read yet.
    fn is_over(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn take_input(&mut self) {
        match self.caller.read() {
            Input::Bytes(bytes) => {
                let (passed, leave) = self.keys.filter(&bytes);
                if !passed.is_empty() {
                    self.send(Frame::Input(passed));
                }
                if leave {
                    self.caller.end_input();
                    self.leaving = true;
                    self.send(Frame::Detach);
                }
            }
            Input::Nothing => {}
            Input::End => self.send(Frame::InputEnd),
        }
    }

    fn hear(&mut self) -> Result<Option<Left>, RunError> {
        // Only what is there: writable alone is no message.
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if self.caller.is_full() || poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
            return Ok(None);
        }
        let frame =
            self.socket.receive().map_err(RunError::os("cannot hear the container's monitor"))?;
        Ok(match frame {
            Some(Frame::Output(bytes)) => {
                self.caller.print(&bytes);
                None
            }
            Some(Frame::Ended(ended)) => Some(Left::Ended(ended)),
            Some(Frame::Detached) => Some(Left::Detached),
            None if self.leaving => Some(Left::Detached),
            None => Some(Left::Lost),
            // Those of a client.
            Some(_) => None,
        })
    }
}
