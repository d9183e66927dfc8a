//! The processes a monitor has made: waiting for one, killing one, and the two
//! services with their pipes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

use super::say;
use crate::channel::Fault;
use crate::run::RunError;
use crate::spawn::Ours;
use crate::sys::process;

/// How long a service may take to end by itself, in milliseconds: the overlay
/// may have to write much to a slow disk.
const GRACE: u16 = 10_000;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl End {
    /// As a shell tells it.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// A child.
#[derive(Debug)]
pub(super) struct Process {
    /// What it is called in messages.
    pub(super) name: &'static str,
    /// Its number; nobody else's while it has not been waited for.
    pub(super) pid: i32,
    /// Readable once it has ended.
    pub(super) pidfd: OwnedFd,
    /// Its end, once it was waited for.
    pub(super) ended: Option<End>,
}

impl Process {
    /// Takes hold of a child that has not been waited for.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(super) fn open(name: &'static str, pid: i32) -> Result<Self, RunError> {
        let pidfd = process::pidfd_open(pid).map_err(RunError::os("cannot watch a process"))?;
        Ok(Self { name, pid, pidfd, ended: None })
    }

    /// Reaps it if it has ended within `timeout`; whether it has.
    ///
    /// # Errors
    /// As of poll(2), waitid(2).
    pub(super) fn reap(&mut self, timeout: PollTimeout) -> Result<bool, RunError> {
        if self.ended.is_some() {
            return Ok(true);
        }
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(RunError::os("cannot wait")(errno)),
            }
        }
        let status = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED)
            .map_err(RunError::os("cannot wait for a process"))?;
        self.ended = Some(match status {
            WaitStatus::Signaled(_, signal, _) => End::Killed(signal as u8),
            WaitStatus::Exited(_, code) => End::Exited(code as u8),
            _ => End::Exited(125),
        });
        Ok(true)
    }

    /// Whether it was killed, as far as can be told now: one that is on its way
    /// out is waited for.
    pub(super) fn was_killed(&mut self) -> bool {
        let patience = if self.is_ending() { PollTimeout::NONE } else { PollTimeout::ZERO };
        // A failure to look is no answer; the error that led here is told.
        self.reap(patience).is_ok() && matches!(self.ended, Some(End::Killed(_)))
    }

    /// It runs no code any more, but may not be reaped yet: its memory and its
    /// descriptors go before (kernel/exit.c).
    fn is_ending(&self) -> bool {
        /// linux/sched.h
        const PF_EXITING: u32 = 4;
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        // proc_pid_stat(5): the flags are the ninth field, the seventh after the name.
        let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
        flags.and_then(|flags| flags.parse().ok()).is_some_and(|flags: u32| flags & PF_EXITING != 0)
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// As of waitid(2).
    pub(super) fn kill(&mut self) -> Result<(), RunError> {
        self.doom()?;
        self.reap(PollTimeout::NONE).map(drop)
    }

    /// Kills it; its end is to be waited for.
    ///
    /// # Errors
    /// As of pidfd_send_signal(2).
    pub(super) fn doom(&self) -> Result<(), RunError> {
        if self.ended.is_some() {
            return Ok(());
        }
        // ESRCH cannot be: it has not been waited for. EPERM cannot either.
        process::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL)
            .map_err(RunError::os("cannot kill a process"))
    }
}

/// A service that was started.
#[derive(Debug)]
pub(super) struct Service {
    /// Its process.
    pub(super) process: Process,
    /// Dropping it tells the service to end.
    exit: Option<OwnedFd>,
    /// What it says, until it hangs up.
    pub(super) stderr: Option<File>,
    /// What it has said and nobody has been told.
    pub(super) said: Vec<u8>,
    /// A byte comes when it is ready.
    pub(super) ready: Option<io::PipeReader>,
}

impl Service {
    /// Takes over its pipes.
    ///
    /// # Errors
    /// As of fcntl(2).
    pub(super) fn new(
        process: Process,
        ours: Ours,
        ready: Option<io::PipeReader>,
    ) -> Result<Self, RunError> {
        let stderr = File::from(ours.stderr);
        fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(RunError::os("cannot set up a pipe"))?;
        Ok(Self { process, exit: Some(ours.exit), stderr: Some(stderr), said: Vec::new(), ready })
    }

    /// Reads what it has said; passes whole lines on when `aloud`.
    pub(super) fn listen(&mut self, aloud: bool) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut buffer = [0; 4096];
        loop {
            match stderr.read(&mut buffer) {
                Ok(0) => {
                    self.stderr = None;
                    break;
                }
                Ok(length) => self.said.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.stderr = None;
                    break;
                }
            }
        }
        // What nobody has asked for is kept within bounds.
        if self.said.len() > 64 * 1024 {
            self.said.drain(..self.said.len() - 64 * 1024);
        }
        while aloud && let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            say(&format!("{}: {}", self.process.name, String::from_utf8_lossy(&line).trim_end()));
        }
    }

    /// Tells it to end.
    pub(super) fn hang_up(&mut self) {
        self.exit = None;
    }

    /// Tells it to end, and sees to it.
    ///
    /// # Errors
    /// As of waitid(2).
    pub(super) fn stop(&mut self) -> Result<(), RunError> {
        self.hang_up();
        if !self.process.reap(PollTimeout::from(GRACE))? {
            self.process.kill()?;
        }
        Ok(())
    }
}

/// Waits until nobody holds the other end.
pub(super) fn hung_up(end: BorrowedFd<'_>) -> Result<(), RunError> {
    loop {
        // No events asked for: a hang-up is always told.
        let mut fds = [PollFd::new(end, PollFlags::empty())];
        match poll(&mut fds, PollTimeout::from(GRACE)) {
            Ok(0) => {
                let fault = Fault::said("a process of the container does not come to its end");
                return Err(RunError::Stage(fault));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(RunError::os("cannot wait for a hang-up")(errno)),
        }
    }
}

/// Reaps what has ended unannounced. Others may be there that are none of
/// ours: the children of a shell that became this process.
pub(super) fn reap_ended() -> Result<(), RunError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(RunError::os("cannot wait for a process")(errno)),
        }
    }
}
