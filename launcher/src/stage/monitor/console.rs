//! The workload's input and output as far as they pass through the monitor, and
//! those who come to see them.
//!
//! # Theory of operation
//!
//! With a terminal, or in the background, the workload's output is a
//! pseudo-terminal's master or a pipe of ours. What comes out of it goes to all
//! attached clients and, in the background, to the log. It is read only while
//! every client has room: what a client does not take keeps the workload
//! waiting, and nobody else. "Room" is what poll(2) calls writable, at most a
//! quarter of the socket's buffer in use (unix_writable() in net/unix/af_unix.c):
//! the rest holds what is left in the pipe when the workload ends, so nobody
//! has to be waited for then either.
//!
//! The command in front of a container with a terminal is a client, too. When it
//! goes without having said so the container is ended, as it would be if the
//! command were the monitor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{read, write};

use crate::clock;
use crate::control::{Ended, Frame, Listener, MOST, Socket};
use crate::run::RunError;
use crate::store::log::Log;
use crate::sys::tty::{self, Size};
use crate::terminal::Settings;

/// Ctrl-D: what ends the input of a terminal.
const END_OF_INPUT: u8 = 4;
/// Input that waits for the workload; with more, clients wait.
const MOST_TYPED: usize = 4 * MOST;

/// What can happen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Somebody comes.
    Listener,
    /// This client says something, or has room again.
    Client(usize),
    /// The workload prints, or takes input.
    Workload,
    /// The workload takes input that comes through a pipe.
    Input,
}

/// What the monitor has to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Pass this signal on to the workload.
    Signal(i32),
    /// The container is not to be run again.
    Quit,
    /// The command in front wants to go, and the container to live on.
    Background,
}

#[derive(Debug)]
struct Client {
    socket: Socket,
    attached: bool,
    front: bool,
    /// It had no room when something came.
    full: bool,
    gone: bool,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub struct Console {
    listener: Listener,
    clients: Vec<Client>,
    /// Pseudo-terminal or pipe that the workload prints into.
    output: Option<OwnedFd>,
    /// Pipe that it reads from; with a pseudo-terminal that is `output`.
    input: Option<OwnedFd>,
    terminal: bool,
    /// Nobody holds the workload's end any more. A terminal's master is kept all
    /// the same: closing it sends SIGHUP, and a program may close its streams
    /// before it ends.
    closed: bool,
    typed: Vec<u8>,
    input_ends: bool,
    log: Option<Log>,
    /// Why the log has a gap.
    unlogged: Option<io::Error>,
    quit: bool,
    size: Option<Size>,
    /// Of the terminal of the command in front, which cannot put it back when it
    /// is killed.
    settings: Option<Settings>,
}

/// What the workload gets for its standard streams; absent: the monitor's.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input.
    pub input: Option<OwnedFd>,
    /// Standard output and error.
    pub output: Option<OwnedFd>,
}

impl Console {
    /// Opens it in the container's directory.
    ///
    /// # Errors
    /// When nobody could find the monitor.
    pub fn open(dir: &Path) -> Result<Self, RunError> {
        let listener = Listener::open(dir).map_err(RunError::os(format!(
            "cannot listen on the socket {}",
            dir.join("control").display()
        )))?;
        Ok(Self {
            listener,
            clients: Vec::new(),
            output: None,
            input: None,
            terminal: false,
            closed: false,
            typed: Vec::new(),
            input_ends: false,
            log: None,
            unlogged: None,
            quit: false,
            size: None,
            settings: None,
        })
    }

    /// This leads to the command in front, whose terminal had these settings.
    pub fn join_front(&mut self, socket: Socket, settings: Settings) {
        self.settings = Some(settings);
        let (attached, front) = (true, true);
        self.clients.push(Client { socket, attached, front, full: false, gone: false });
    }

    /// Output goes to this log from now on.
    pub fn log_to(&mut self, log: Log) {
        self.log = Some(log);
    }

    /// The container is not to be run again.
    #[must_use]
    pub fn quits(&self) -> bool {
        self.quit
    }

    /// It is not to be run again.
    pub fn quit(&mut self) {
        self.quit = true;
    }

    /// Makes the streams of a workload without a terminal in the background;
    /// `interactive`: it can be given input.
    ///
    /// # Errors
    /// As of pipe(2).
    pub fn streams(&mut self, interactive: bool) -> io::Result<Streams> {
        let (ours, theirs) = io::pipe()?;
        let (ours, output) = (OwnedFd::from(ours), OwnedFd::from(theirs));
        nonblocking(ours.as_fd())?;
        self.output = Some(ours);
        (self.terminal, self.closed) = (false, false);
        let input = if interactive {
            let (theirs, ours) = io::pipe()?;
            let ours = OwnedFd::from(ours);
            nonblocking(ours.as_fd())?;
            self.input = Some(ours);
            theirs.into()
        } else {
            File::open("/dev/null")?.into()
        };
        Ok(Streams { input: Some(input), output: Some(output) })
    }

    /// The workload's pseudo-terminal has been made.
    ///
    /// # Errors
    /// As of fcntl(2).
    pub(super) fn terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        nonblocking(master.as_fd())?;
        self.output = Some(master);
        (self.terminal, self.closed) = (true, false);
        self.resize();
        self.pass_input();
        Ok(())
    }

    fn waits_for_room(&self) -> bool {
        self.clients.iter().any(|client| client.full)
    }

    /// What to wait for.
    pub(super) fn interests(&self) -> Vec<(Slot, BorrowedFd<'_>, PollFlags)> {
        let mut all = vec![(Slot::Listener, self.listener.as_fd(), PollFlags::POLLIN)];
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if self.typed.len() < MOST_TYPED {
                flags |= PollFlags::POLLIN;
            }
            if client.full {
                flags |= PollFlags::POLLOUT;
            }
            all.push((Slot::Client(index), client.socket.as_fd(), flags));
        }
        // Without anybody who could take it, it waits, and nobody is asked.
        let writing = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        if let Some(output) = self.output.as_ref().filter(|_| !self.closed) {
            let reading =
                if self.waits_for_room() { PollFlags::empty() } else { PollFlags::POLLIN };
            let flags = if self.terminal { reading | writing } else { reading };
            if !flags.is_empty() {
                all.push((Slot::Workload, output.as_fd(), flags));
            }
        }
        if let Some(input) = self.input.as_ref().filter(|_| !writing.is_empty()) {
            all.push((Slot::Input, input.as_fd(), writing));
        }
        all
    }

    /// Something happened.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Deed> {
        match slot {
            Slot::Listener => {
                // EMFILE and the like: whoever came will see that nobody answers.
                if let Ok(Some(socket)) = self.listener.accept() {
                    self.clients.push(Client {
                        socket,
                        attached: false,
                        front: false,
                        full: false,
                        gone: false,
                    });
                }
                None
            }
            Slot::Client(index) => self.hear(index),
            Slot::Workload => {
                self.pass_input();
                self.pass_output();
                None
            }
            Slot::Input => {
                self.pass_input();
                None
            }
        }
    }

    /// Forgets those who have gone. Only between two waits: slots name clients
    /// by their place. False when the command in front was one of them.
    pub(super) fn tidy(&mut self) -> bool {
        let abandoned = self.clients.iter().any(|client| client.gone && client.front);
        if abandoned && let Some(settings) = self.settings.take() {
            settings.restore();
        }
        self.clients.retain(|client| !client.gone);
        !abandoned
    }

    fn hear(&mut self, index: usize) -> Option<Deed> {
        let client = self.clients.get_mut(index)?;
        let mut fds = [PollFd::new(client.socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        let events = match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0].revents().unwrap_or(PollFlags::POLLERR),
            Err(_) => return None,
        };
        if events.contains(PollFlags::POLLOUT) {
            client.full = false;
        }
        if !events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return None;
        }
        match client.socket.receive() {
            Ok(Some(frame)) => self.obey(index, frame),
            // It has gone, or makes no sense.
            Ok(None) | Err(_) => {
                client.gone = true;
                client.full = false;
                None
            }
        }
    }

    fn obey(&mut self, index: usize, frame: Frame) -> Option<Deed> {
        let attachable = self.output.is_some() || self.log.is_some();
        let client = self.clients.get_mut(index)?;
        let attached = client.attached;
        match frame {
            Frame::Attach if attachable => {
                client.attached = true;
                client.answer(&Frame::Attached);
            }
            Frame::Attach => client.answer(&Frame::NotAttachable),
            Frame::Quit => {
                self.quit = true;
                return Some(Deed::Quit);
            }
            Frame::Input(bytes) if attached && !self.input_ends => {
                self.typed.extend_from_slice(&bytes);
                self.pass_input();
            }
            Frame::InputEnd if attached => {
                self.input_ends = true;
                self.pass_input();
            }
            Frame::Size(size) if attached => {
                self.size = Some(size);
                self.resize();
            }
            Frame::Signal(number) if attached => return Some(Deed::Signal(number.into())),
            Frame::Detach if client.front => return Some(Deed::Background),
            Frame::Detach => client.gone = true,
            // Those of a monitor, or not for this one.
            _ => {}
        }
        None
    }

    fn resize(&self) {
        if let (true, Some(master), Some(size)) = (self.terminal, &self.output, self.size) {
            // It has no size to set once it is closed: nobody would see it.
            drop(tty::set_size(master.as_fd(), size));
        }
    }

    /// Tells those who asked for it that the container will not be run again;
    /// whether its workload runs now.
    pub(super) fn answer_quit(&mut self, index: usize, running: bool) {
        if let Some(client) = self.clients.get_mut(index) {
            client.answer(&Frame::Quitting(running));
        }
    }

    /// Lets the command in front go.
    pub(super) fn release_front(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.front) {
            client.front = false;
            client.answer(&Frame::Detached);
            client.gone = true;
        }
        self.settings = None;
    }

    fn pass_input(&mut self) {
        if self.output.is_none() {
            // The workload is still being made: it waits for it.
            return;
        }
        let target = if self.terminal { &self.output } else { &self.input };
        let Some(target) = target else {
            // Nobody could read it.
            self.typed.clear();
            return;
        };
        if self.input_ends && self.terminal {
            self.input_ends = false;
            self.typed.push(END_OF_INPUT);
        }
        while !self.typed.is_empty() {
            match write(target, &self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // It reads no more.
                Err(_) => self.typed.clear(),
            }
        }
        if self.input_ends {
            self.input = None;
        }
    }

    /// Reads once and passes it on: one buffer a turn, so that a workload that
    /// never stops printing does not keep the monitor from everything else.
    fn pass_output(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.attached && !client.gone) {
            let mut fds = [PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT)];
            client.full = poll(&mut fds, PollTimeout::ZERO) == Ok(0);
        }
        if !self.waits_for_room() {
            self.read_once();
        }
    }

    /// Whether there may be more.
    fn read_once(&mut self) -> bool {
        let Some(output) = &self.output else { return false };
        let mut buffer = [0; MOST];
        match read(output, &mut buffer) {
            // EIO: nobody holds the terminal any more.
            Ok(0) | Err(Errno::EIO) => {
                self.closed = true;
                false
            }
            Ok(length) => {
                self.tell(&buffer[..length]);
                true
            }
            Err(errno) => errno == Errno::EINTR,
        }
    }

    fn tell(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.append(bytes, clock::now())
        {
            self.unlogged.get_or_insert(error);
        }
        let frame = Frame::Output(bytes.to_vec());
        for client in self.clients.iter_mut().filter(|client| client.attached && !client.gone) {
            client.answer(&frame);
        }
    }

    /// Passes on what the workload printed last, after its end, and forgets it.
    /// Gives the reason why the log lacks something, if it does.
    pub(super) fn drain(&mut self) -> Option<io::Error> {
        while self.read_once() {}
        self.output = None;
        self.input = None;
        self.typed.clear();
        self.input_ends = false;
        self.unlogged.take()
    }

    /// Tells everybody that this is the end.
    pub fn end(mut self, ended: &Ended) {
        for client in &mut self.clients {
            client.answer(&Frame::Ended(ended.clone()));
        }
    }

    /// Waits between two runs of a container, with an ear for those who want it
    /// to end. False when it is to end.
    ///
    /// # Errors
    /// As of poll(2).
    pub fn pause(&mut self, signals: &SignalFd, time: Duration) -> Result<bool, RunError> {
        let deadline = clock::monotonic() + time;
        loop {
            let left = deadline.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                return Ok(true);
            }
            let interests = self.interests();
            let slots: Vec<Slot> = interests.iter().map(|(slot, ..)| *slot).collect();
            let mut fds: Vec<PollFd<'_>> =
                interests.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
            fds.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
            // Rounded up, so that the last wait is not cut into many short ones.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
            match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(RunError::os("cannot wait for events")(errno)),
            }
            let happened: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            while let Ok(Some(info)) = signals.read_signal() {
                if is_request_to_end(info.ssi_signo as i32) {
                    self.quit = true;
                }
            }
            for (slot, happened) in slots.into_iter().zip(happened) {
                if !happened {
                    continue;
                }
                match (self.take(slot), slot) {
                    (Some(Deed::Quit), Slot::Client(index)) => self.answer_quit(index, false),
                    (Some(Deed::Signal(number)), _) if is_request_to_end(number) => {
                        self.quit = true;
                    }
                    (Some(Deed::Background), _) => self.release_front(),
                    _ => {}
                }
            }
            if !self.tidy() || self.quit {
                self.quit = true;
                return Ok(false);
            }
        }
    }
}

impl Client {
    /// One who does not read, or has gone, gets no more.
    fn answer(&mut self, frame: &Frame) {
        if !self.gone && self.socket.try_send(frame).is_err() {
            self.gone = true;
        }
        if self.gone {
            self.full = false;
        }
    }
}

/// A signal with which people end what they have started: a container that
/// gets one is not run again.
pub(super) fn is_request_to_end(number: i32) -> bool {
    [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].contains(&number)
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
