//! The caller's terminal, or what stands in its place, joined to a workload's.
//!
//! # Theory of operation
//!
//! Bytes go both ways unchanged. While that lasts, and only when input is passed
//! on, the caller's terminal is raw: every key, Ctrl-C too, is the workload's.
//! [`Caller`] puts the terminal back when it is dropped, whatever the reason;
//! whoever outlives it can do so by its [`Settings`].
//!
//! Nothing here waits: output that standard output does not take is kept, and
//! whoever holds more asks for no more until it is gone ([`Caller::is_full`]).
//! The owner polls the descriptors and says which is ready.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, send};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

use crate::sys::tty::{self, Size};

/// Ctrl-D: what ends the input of a terminal.
const END_OF_INPUT: u8 = 4;
/// Most bytes read at once.
const MOST: usize = 16 * 1024;
/// As much as a pipe that poll(2) calls writable takes without waiting is 4,096
/// (PIPE_BUF); a terminal may have less room.
const CAREFUL: usize = 256;

/// The keys that leave a container to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    sequence: Vec<u8>,
    /// How many of them were pressed.
    seen: usize,
}

impl Keys {
    /// Reads `ctrl-p,ctrl-q` and the like: letters, or `ctrl-` and one of `a-z@[\]^_`.
    /// The empty text is no keys: nothing leaves.
    ///
    /// # Errors
    /// Says which part makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = |word: &str| -> Option<u8> {
            let single = |text: &str| match text.as_bytes() {
                [byte] => Some(*byte),
                _ => None,
            };
            match word.strip_prefix("ctrl-") {
                Some(rest) => match single(rest)?.to_ascii_lowercase() {
                    letter @ b'a'..=b'z' => Some(letter - b'a' + 1),
                    sign @ (b'@' | b'['..=b'_') => Some(sign & 0x1f),
                    _ => None,
                },
                None => single(word).filter(u8::is_ascii_graphic),
            }
        };
        let read = |word: &str| {
            key(word).ok_or_else(|| {
                format!(
                    "'{word}' is no key: use a letter, or ctrl- and a letter, as in ctrl-p,ctrl-q"
                )
            })
        };
        let words = text.split(',').filter(|_| !text.is_empty());
        Ok(Self { sequence: words.map(read).collect::<Result<_, _>>()?, seen: 0 })
    }

    /// Goes through what was typed. Gives what is to be passed on, and whether
    /// all keys were pressed, one after the other; what follows them is nobody's.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            loop {
                if self.sequence.get(self.seen) == Some(&byte) {
                    self.seen += 1;
                    if self.seen == self.sequence.len() {
                        self.seen = 0;
                        return (passed, true);
                    }
                    break;
                }
                if self.seen == 0 {
                    passed.push(byte);
                    break;
                }
                // What was held back were no such keys; perhaps a later one of
                // them begins the sequence.
                passed.push(self.sequence[0]);
                let held = &self.sequence[1..self.seen];
                let again = (0..=held.len())
                    .map(|skip| &held[skip..])
                    .find(|rest| self.sequence.starts_with(rest))
                    .map_or(0, <[u8]>::len);
                passed.extend_from_slice(&held[..held.len() - again]);
                self.seen = again;
            }
        }
        (passed, false)
    }
}

/// How the caller's terminal was before.
#[derive(Debug, Clone)]
pub struct Settings(Option<Termios>);

impl Settings {
    /// Puts the terminal back.
    pub fn restore(&self) {
        if let Some(before) = &self.0 {
            match tcsetattr(io::stdin(), SetArg::TCSANOW, before) {
                // When the terminal is gone there is nothing to put back.
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// What came from standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// Its end.
    End,
}

/// How standard output is written to without waiting.
#[derive(Debug)]
enum Output {
    /// Opened anew: O_NONBLOCK must not reach those who share the old one.
    Anew(File),
    Socket,
    /// A few bytes each time that poll(2) says there is room.
    Careful,
    /// A file, which never lets anybody wait.
    File,
    /// Nobody reads it any more; the workload runs on.
    Gone,
}

/// Standard input and output.
#[derive(Debug)]
pub struct Caller {
    before: Settings,
    raw: bool,
    input: bool,
    output: Output,
    failed: Option<Errno>,
    pending: Vec<u8>,
}

impl Caller {
    /// Looks at them; standard input is read when `input`.
    ///
    /// # Errors
    /// As of tcgetattr(3).
    pub fn new(input: bool) -> io::Result<Self> {
        let terminal = input && io::stdin().is_terminal();
        let before = if terminal { Some(tcgetattr(io::stdin())?) } else { None };
        Ok(Self {
            before: Settings(before),
            raw: false,
            input,
            output: output(),
            failed: None,
            pending: Vec::new(),
        })
    }

    /// Makes the terminal raw, if it is one.
    ///
    /// # Errors
    /// As of tcsetattr(3).
    pub fn take_over(&mut self) -> io::Result<()> {
        if let Some(before) = &self.before.0 {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            self.raw = true;
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        }
        Ok(())
    }

    /// Puts the terminal back.
    pub fn give_back(&mut self) {
        if std::mem::take(&mut self.raw) {
            self.before.restore();
        }
    }

    /// How its terminal was before.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.before.clone()
    }

    /// The size of its terminal, if there is one.
    #[must_use]
    pub fn size(&self) -> Option<Size> {
        tty::size(io::stdout().as_fd()).or_else(|_| tty::size(io::stdin().as_fd())).ok()
    }

    /// Whether standard input is to be polled.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.input
    }

    /// Standard input is read no more.
    pub fn end_input(&mut self) {
        self.input = false;
    }

    /// Standard input is readable.
    pub fn read(&mut self) -> Input {
        let mut buffer = [0; 4096];
        match read(io::stdin(), &mut buffer) {
            Ok(length) if length > 0 => Input::Bytes(buffer[..length].to_vec()),
            Err(Errno::EAGAIN | Errno::EINTR) => Input::Nothing,
            // EIO: the terminal has hung up.
            Ok(_) | Err(_) => {
                self.input = false;
                Input::End
            }
        }
    }

    /// Whether output waits for standard output to be writable.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Prints.
    pub fn print(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if !matches!(self.output, Output::Careful) {
            self.flush();
        }
    }

    /// Nobody wants to see any of it.
    pub fn discard(&mut self) {
        self.output = Output::Gone;
        self.pending.clear();
    }

    /// Standard output is writable.
    pub fn flush(&mut self) {
        while !self.pending.is_empty() {
            let written = match &self.output {
                Output::Anew(file) => write(file, &self.pending),
                Output::Socket => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(io::stdout().as_raw_fd(), &self.pending, flags)
                }
                Output::Careful => {
                    write(io::stdout(), &self.pending[..self.pending.len().min(CAREFUL)])
                }
                Output::File => write(io::stdout(), &self.pending),
                Output::Gone => Ok(self.pending.len()),
            };
            match written {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    self.output = Output::Gone;
                    self.failed = Some(errno);
                }
            }
            if matches!(self.output, Output::Careful) {
                return;
            }
        }
    }

    /// Why standard output takes nothing any more.
    #[must_use]
    pub fn failure(&self) -> Option<Errno> {
        self.failed
    }

    /// Waits until all that was printed is written, or a signal says that nobody
    /// wants it.
    pub fn finish(&mut self, signals: &SignalFd) {
        while self.is_full() {
            let stdout = io::stdout();
            let mut fds = [
                PollFd::new(stdout.as_fd(), PollFlags::POLLOUT),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            let [writable, signal] = fds.map(|fd| fd.any().unwrap_or(true));
            if writable {
                self.flush();
            }
            while signal && let Ok(Some(info)) = signals.read_signal() {
                if info.ssi_signo as i32 != libc::SIGWINCH {
                    return;
                }
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn output() -> Output {
    let kind = File::open("/proc/self/fd/1").and_then(|file| file.metadata());
    // A pipe that only others may read cannot be opened that way; looked at it can be.
    let kind = kind.or_else(|_| std::fs::metadata("/proc/self/fd/1"));
    let Ok(kind) = kind.map(|metadata| metadata.file_type()) else { return Output::Careful };
    if kind.is_socket() {
        return Output::Socket;
    }
    if !kind.is_fifo() && !io::stdout().is_terminal() {
        return Output::File;
    }
    let anew = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/proc/self/fd/1");
    anew.map_or(Output::Careful, Output::Anew)
}

/// A pseudo-terminal's master, joined to standard input and output.
#[derive(Debug)]
pub struct Relay {
    /// The caller's side.
    pub caller: Caller,
    master: OwnedFd,
    open: bool,
    typed: Vec<u8>,
}

impl Relay {
    /// Joins them; standard input is read when `input`.
    ///
    /// # Errors
    /// As of fcntl(2), tcsetattr(3).
    pub fn new(master: OwnedFd, input: bool) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let mut caller = Caller::new(input)?;
        caller.take_over()?;
        let mut relay = Self { caller, master, open: true, typed: Vec::new() };
        relay.resize();
        Ok(relay)
    }

    /// The master, and what to wait for there; `None` when nothing.
    #[must_use]
    pub fn master(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        if !self.caller.is_full() {
            flags |= PollFlags::POLLIN;
        }
        if !self.typed.is_empty() {
            flags |= PollFlags::POLLOUT;
        }
        (self.open && !flags.is_empty()).then(|| (self.master.as_fd(), flags))
    }

    /// Whether standard input is to be polled: not while what was typed waits.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.open && self.caller.wants_input() && self.typed.is_empty()
    }

    /// Gives the pseudo-terminal the size of the caller's terminal, if there is one.
    pub fn resize(&mut self) {
        if let Some(size) = self.caller.size() {
            // It has no size to set once it is closed: nobody would see it.
            if tty::set_size(self.master.as_fd(), size).is_err() {
                self.open = false;
            }
        }
    }

    /// Standard input is readable.
    pub fn take_input(&mut self) {
        match self.caller.read() {
            Input::Bytes(bytes) => self.typed.extend(bytes),
            Input::Nothing => {}
            Input::End => self.typed.push(END_OF_INPUT),
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
                    self.caller.end_input();
                }
            }
        }
    }

    /// The master is readable or writable.
    pub fn take_output(&mut self) {
        self.pass_input();
        if self.caller.is_full() {
            return;
        }
        let mut buffer = [0; MOST];
        // One buffer a turn, so that a workload that never stops printing does
        // not keep the owner from everything else.
        match read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => self.open = false,
            Ok(length) => self.caller.print(&buffer[..length]),
            Err(_) => {}
        }
    }

    /// Passes on what the workload printed last, after its end.
    pub fn drain(&mut self, signals: &SignalFd) {
        let mut buffer = [0; MOST];
        loop {
            match read(&self.master, &mut buffer) {
                Ok(0) => break,
                Ok(length) => self.caller.print(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        self.caller.finish(signals);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_named_as_in_podman() {
        let bytes = |text| Keys::parse(text).map(|keys| keys.sequence);
        assert_eq!(bytes("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(bytes("a,ctrl-Z,ctrl-@,ctrl-["), Ok(vec![b'a', 26, 0, 27]));
        assert_eq!(bytes(""), Ok(vec![]));
        for text in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pq", "ä", " "] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_found_wherever_reads_end() {
        for cuts in [&[0][..], &[1], &[2], &[1, 2], &[3]] {
            let mut keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
            let text = b"a\x10\x11b";
            let (mut passed, mut left, mut from) = (Vec::new(), false, 0);
            for &cut in cuts.iter().chain([&text.len()]) {
                let (more, now) = keys.filter(&text[from..cut]);
                passed.extend(more);
                from = cut;
                if now {
                    left = true;
                    break;
                }
            }
            assert!(left && passed == b"a", "{cuts:?}: {passed:?}");
        }
    }

    #[test]
    fn what_is_no_such_sequence_is_passed_on() {
        let mut keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"\x10"), (vec![], false));
        assert_eq!(keys.filter(b"\x10x\x11"), (b"\x10\x10x\x11".to_vec(), false));
        let mut keys = Keys::parse("a,a,b").unwrap();
        assert_eq!(keys.filter(b"aaab"), (b"a".to_vec(), true));
        let mut none = Keys::parse("").unwrap();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    proptest! {
        /// Against a search in the whole text.
        #[test]
        fn the_first_sequence_ends_it(text in "[ab]{0,12}", keys in "[ab]{1,4}") {
            let words: Vec<_> = keys.chars().map(String::from).collect();
            let mut filter = Keys::parse(&words.join(",")).unwrap();
            let (passed, left) = filter.filter(text.as_bytes());
            match text.find(&keys) {
                Some(at) => prop_assert_eq!((passed, left), (text.as_bytes()[..at].to_vec(), true)),
                None => {
                    prop_assert!(!left);
                    let held = text.len() - passed.len();
                    prop_assert_eq!(&passed[..], &text.as_bytes()[..passed.len()]);
                    prop_assert!(keys.starts_with(&text[text.len() - held..]));
                }
            }
        }
    }
}
