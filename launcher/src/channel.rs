//! Typed messages between the monitor and the stages of a container, with the
//! descriptors that go along.
//!
//! A channel is a pair of connected sockets that keep message boundaries
//! (`SOCK_SEQPACKET`, unix(7)); a message is one packet of JSON, descriptors
//! travel beside it (`SCM_RIGHTS`). That the other side is gone shows as the
//! end of the stream, so a channel is a lifeline too.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    recvmsg, sendmsg, shutdown, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::fd;

/// Longest message, in bytes. Larger things go as a descriptor.
const LONGEST: usize = 64 * 1024;
/// Most descriptors beside a message.
const MOST_FDS: usize = 5;

/// What went wrong in a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What failed, on what.
    pub what: String,
    /// Why: an errno, or 0 when `what` says it all.
    pub errno: i32,
    /// The exit code it leads to.
    pub code: u8,
}

impl Fault {
    /// A fault of ours.
    pub fn new(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.raw_os_error() {
            Some(errno) => Self { what: bounded(what.into()), errno, code: 125 },
            None => Self::said(format!("{}: {error}", what.into())),
        }
    }

    /// A fault that needs no errno to be understood.
    pub fn said(what: impl Into<String>) -> Self {
        Self { what: bounded(what.into()), errno: 0, code: 125 }
    }
}

/// What is said of a fault must fit into a message, whatever words of others it repeats,
/// even when each of their bytes is escaped.
fn bounded(text: String) -> String {
    const MOST: usize = 4096;
    if text.len() <= MOST {
        return text;
    }
    let (start, end) =
        (text.floor_char_boundary(MOST / 2), text.ceil_char_boundary(text.len() - 64));
    format!("{}…{}", &text[..start], &text[end..])
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A service's or a library's words may have several lines.
        f.write_str(&self.what.trim().replace('\n', "; "))?;
        if self.errno != 0 {
            write!(f, ": {}", Errno::from_raw(self.errno).desc())?;
        }
        Ok(())
    }
}

/// Adds what was tried to an error.
pub trait Context<T> {
    /// Makes a [`Fault`] of the error.
    ///
    /// # Errors
    /// The error, with `what` in front.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(what(), error))
    }
}

/// What a stage tells the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToMonitor {
    /// Storage: from here on it is the overlay.
    Overlay,
    /// Storage: the root is mounted, by the kernel, and this stage is done.
    Done,
    /// Storage: owners are kept by this process, a child of the monitor's.
    Owners(i32),
    /// Storage: the container's first process is this child of the monitor's.
    Init(i32),
    /// Init: beside this come the queues of the TAP device.
    Tap,
    /// Init: beside this comes the master of the workload's pseudo-terminal.
    Console,
    /// Init: all is set up.
    Ready,
    /// Init: the workload has been executed.
    Started,
    /// Any: it came to nothing.
    Failed(Fault),
}

/// What the monitor tells a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToStage {
    /// Storage: the maps are written; beside this come a memory file with the plan, one with the
    /// system call filter, the overlay's ends of its exit and error pipes, and
    /// the container's control group, if it has one.
    Plan,
    /// Init: start the workload.
    Go,
    /// Join: beside this come a memory file with what to run, one with the
    /// system call filter, a pidfd of the container's init, and the user namespace
    /// that owns the container's mounts.
    Join,
}

/// What a workload, before its program is executed, tells the stage that keeps
/// owners: beside this comes the listener of its filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Device of the container's root, on which owners can be kept.
    pub device: u64,
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    ///
    /// # Errors
    /// As of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// Takes over the end that was inherited under this number.
    ///
    /// # Errors
    /// EBADF.
    pub fn adopt(number: RawFd) -> io::Result<Self> {
        let end = fd::adopt(number)?;
        fd::set_inherited(end.as_fd(), false)?;
        Ok(Self(end))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// EPIPE when the other side is gone; EMSGSIZE when the message is too long.
    pub fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > LONGEST || fds.len() > MOST_FDS {
            return Err(Errno::EMSGSIZE.into());
        }
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// Says that nothing more will be sent: the other side sees the end.
    ///
    /// # Errors
    /// As of shutdown(2); that the other side is gone is none.
    pub fn finish(&self) -> io::Result<()> {
        match shutdown(self.0.as_raw_fd(), Shutdown::Write) {
            Err(Errno::ENOTCONN) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Waits for a message; `None` when the other side is gone.
    ///
    /// # Errors
    /// InvalidData when it is none of `M`.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; LONGEST];
        let mut space = cmsg_space!([RawFd; MOST_FDS]);
        let (length, fds) = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let message = loop {
                match recvmsg::<()>(
                    self.0.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                ) {
                    Err(Errno::EINTR) => {}
                    // What the other side left unread when it went.
                    Err(Errno::ECONNRESET) => return Ok(None),
                    result => break result?,
                }
            };
            let mut fds = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    for number in numbers {
                        fds.push(fd::adopt(number)?);
                    }
                }
            }
            (message.bytes, fds)
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..length])?, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (here, there) = Channel::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        here.send(&ToMonitor::Init(7), &[]).unwrap();
        here.send(&ToMonitor::Tap, &[write.as_fd()]).unwrap();
        drop((here, write));
        let first = there.receive::<ToMonitor>().unwrap().unwrap();
        assert!(matches!(first, (ToMonitor::Init(7), fds) if fds.is_empty()));
        let (second, mut fds) = there.receive::<ToMonitor>().unwrap().unwrap();
        assert_eq!((second, fds.len()), (ToMonitor::Tap, 1));
        File::from(fds.remove(0)).write_all(b"x").unwrap();
        let mut byte = [0];
        read.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(there.receive::<ToMonitor>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (here, there) = Channel::pair().unwrap();
        here.send(&"nonsense", &[]).unwrap();
        let error = there.receive::<ToStage>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let fault = Fault::new("\u{1}".repeat(LONGEST) + "ä' is too long", Errno::ENAMETOOLONG);
        let text = fault.to_string();
        assert!(text.starts_with('\u{1}') && text.ends_with("ä' is too long: File name too long"));
        here.send(&ToMonitor::Failed(fault), &[]).unwrap();
        let long = "x".repeat(LONGEST);
        let error = here.send(&long, &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn a_fault_is_one_line() {
        let fault = Fault { what: "cannot open /x\n".to_owned(), errno: libc::ENOENT, code: 125 };
        assert_eq!(fault.to_string(), "cannot open /x: No such file or directory");
        assert_eq!(Fault::said("a\nb").to_string(), "a; b");
    }
}
