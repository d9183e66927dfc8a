//! What a container's monitor and those who come to it say to each other.
//!
//! # Theory of operation
//!
//! The monitor listens on the socket `control` in the container's directory,
//! which only its owner can enter. Like the channels of the stages it keeps
//! message boundaries (`SOCK_SEQPACKET`); a message is a byte that says what it
//! is and what belongs to it. Whoever connects asks for one thing: to be joined
//! to the workload's input and output ([`Frame::Attach`]), or that the container
//! is not run again ([`Frame::Quit`]).
//!
//! The monitor never waits for a client: it reads the workload's output only
//! while all clients have room for it (see the monitor's console).

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
    recvmsg, sendmsg, socket, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::sys::fd;
use crate::sys::tty::Size;

/// Name of the socket in a container's directory.
const NAME: &str = "control";
/// Most bytes of input or output in a message.
pub const MOST: usize = 16 * 1024;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: joins it to the workload's input and output.
    Attach,
    /// Client: input for the workload.
    Input(Vec<u8>),
    /// Client: there will be no more input.
    InputEnd,
    /// Client: the size of its terminal.
    Size(Size),
    /// Client: a signal for the workload.
    Signal(u8),
    /// Client: it leaves, and the container shall live on.
    Detach,
    /// Client: the container is not to be run again.
    Quit,
    /// Monitor: the client is attached.
    Attached,
    /// Monitor: there is nothing to attach to.
    NotAttachable,
    /// Monitor: what the workload has printed.
    Output(Vec<u8>),
    /// Monitor: the container lives on without the client.
    Detached,
    /// Monitor: it will not be run again; whether the workload runs now, and is
    /// for the client to end.
    Quitting(bool),
    /// Monitor: the container has ended; nothing follows.
    Ended(Ended),
}

/// How a container's life has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The exit code of the command.
    pub code: u8,
    /// What to say, when it was not the workload's own end.
    pub message: Option<String>,
}

impl Frame {
    fn encode(&self) -> io::Result<Vec<u8>> {
        let (tag, rest) = match self {
            Self::Attach => (b'A', Vec::new()),
            Self::Input(bytes) => (b'I', bytes.clone()),
            Self::InputEnd => (b'E', Vec::new()),
            Self::Size(size) => {
                let (rows, columns) = (size.rows.to_le_bytes(), size.columns.to_le_bytes());
                (b'W', [rows, columns].concat())
            }
            Self::Signal(number) => (b'K', vec![*number]),
            Self::Detach => (b'D', Vec::new()),
            Self::Quit => (b'Q', Vec::new()),
            Self::Attached => (b'a', Vec::new()),
            Self::NotAttachable => (b'n', Vec::new()),
            Self::Output(bytes) => (b'o', bytes.clone()),
            Self::Detached => (b'd', Vec::new()),
            Self::Quitting(running) => (b'q', vec![u8::from(*running)]),
            Self::Ended(ended) => (b'x', serde_json::to_vec(ended)?),
        };
        Ok([vec![tag], rest].concat())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        Some(match (tag, rest) {
            (b'A', []) => Self::Attach,
            (b'I', bytes) => Self::Input(bytes.to_vec()),
            (b'E', []) => Self::InputEnd,
            (b'W', &[r0, r1, c0, c1]) => Self::Size(Size {
                rows: u16::from_le_bytes([r0, r1]),
                columns: u16::from_le_bytes([c0, c1]),
            }),
            (b'K', &[number]) => Self::Signal(number),
            (b'D', []) => Self::Detach,
            (b'Q', []) => Self::Quit,
            (b'a', []) => Self::Attached,
            (b'n', []) => Self::NotAttachable,
            (b'o', bytes) => Self::Output(bytes.to_vec()),
            (b'd', []) => Self::Detached,
            (b'q', &[running @ (0 | 1)]) => Self::Quitting(running == 1),
            (b'x', json) => Self::Ended(serde_json::from_slice(json).ok()?),
            _ => return None,
        })
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Two connected ends, closed on exec.
    ///
    /// # Errors
    /// As of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to the monitor of the container in `dir`; `None` when none listens.
    ///
    /// # Errors
    /// As of connect(2).
    pub fn connect(dir: &Path) -> io::Result<Option<Self>> {
        let made = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        match at(dir, |address| connect(made.as_raw_fd(), address)) {
            Ok(()) => Ok(Some(Self(made))),
            Err(e)
                if [Some(libc::ECONNREFUSED), Some(libc::ENOENT)].contains(&e.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a message, and waits for room.
    ///
    /// # Errors
    /// EPIPE when the other side is gone.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        self.send_with(frame, MsgFlags::empty())
    }

    /// Sends a message if there is room for it.
    ///
    /// # Errors
    /// EAGAIN when there is none; EPIPE when the other side is gone.
    pub fn try_send(&self, frame: &Frame) -> io::Result<()> {
        self.send_with(frame, MsgFlags::MSG_DONTWAIT)
    }

    fn send_with(&self, frame: &Frame, flags: MsgFlags) -> io::Result<()> {
        let bytes = frame.encode()?;
        loop {
            let slices = [IoSlice::new(&bytes)];
            let flags = flags | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.0.as_raw_fd(), &slices, &[], flags, None) {
                Err(Errno::EINTR) => {}
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// Waits for a message; `None` when the other side is gone.
    ///
    /// # Errors
    /// InvalidData when it is none.
    pub fn receive(&self) -> io::Result<Option<Frame>> {
        let mut bytes = vec![0; MOST + 1];
        let length = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::empty();
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, None, flags) {
                Err(Errno::EINTR) => {}
                // What the other side left unread when it went.
                Err(Errno::ECONNRESET) => return Ok(None),
                result => break result?.bytes,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let frame = Frame::decode(&bytes[..length]);
        frame.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where a monitor is found.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens in the container's directory, whose lock is held: a socket that
    /// is there is a dead monitor's.
    ///
    /// # Errors
    /// As of bind(2).
    pub fn open(dir: &Path) -> io::Result<Self> {
        match fs::remove_file(dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        at(dir, |address| bind(made.as_raw_fd(), address))?;
        listen(&made, Backlog::MAXCONN)?;
        Ok(Self(made))
    }

    /// Who has come; `None` when nobody has, or has gone again.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        match accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(number) => {
                let end = fd::adopt(number)?;
                fd::set_inherited(end.as_fd(), false)?;
                Ok(Some(Socket(end)))
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Does something with the socket's address. A path of any length: the address
/// itself has room for 107 bytes.
fn at(dir: &Path, act: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> io::Result<()> {
    let dir = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd());
    Ok(act(&UnixAddr::new(path.as_str())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Attach,
            Frame::Input(b"ls\n".to_vec()),
            Frame::Input(vec![0xff; MOST]),
            Frame::InputEnd,
            Frame::Size(Size { rows: 24, columns: 0x1234 }),
            Frame::Signal(15),
            Frame::Detach,
            Frame::Quit,
            Frame::Attached,
            Frame::NotAttachable,
            Frame::Output(Vec::new()),
            Frame::Detached,
            Frame::Quitting(true),
            Frame::Ended(Ended { code: 125, message: Some("a\nb".to_owned()) }),
        ]
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (here, there) = Socket::pair().unwrap();
        for frame in frames() {
            here.send(&frame).unwrap();
            assert_eq!(there.receive().unwrap(), Some(frame));
        }
        drop(here);
        assert_eq!(there.receive().unwrap(), None);
    }

    #[test]
    fn a_monitor_is_found_however_long_its_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        fs::create_dir(&long).unwrap();
        assert!(Socket::connect(&long).unwrap().is_none());
        let listener = Listener::open(&long).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let client = Socket::connect(&long).unwrap().unwrap();
        let server = listener.accept().unwrap().unwrap();
        client.send(&Frame::Quit).unwrap();
        assert_eq!(server.receive().unwrap(), Some(Frame::Quit));
        drop(listener);
        // The socket of a dead monitor.
        assert!(Socket::connect(&long).unwrap().is_none());
        Listener::open(&long).unwrap();
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read() {
        let (here, _there) = Socket::pair().unwrap();
        let frame = Frame::Output(vec![0; MOST]);
        let full = (0..10_000).find_map(|_| here.try_send(&frame).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(Frame::decode(&frame.encode().unwrap()), Some(frame));
            }
        }
    }
}
