//! Clients of a listening socket of ours (API, counters): one request, one answer each.
//!
//! # Theory of operation
//!
//! Sockets do not block. A client's bytes are collected until the owner finds its
//! request whole; it is answered at once, or *waits* while the answer is collected.
//! [`CLIENTS_MAX`] connections are held, and the oldest is dropped for a new one, so
//! that a silent client costs nothing but its own request. A client that does not read
//! its answer has lost it. UNIX sockets are made for their owner only.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Connections held at most.
const CLIENTS_MAX: usize = 16;
/// Bytes taken from one in a turn.
const PART: usize = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One with a path.
    #[error("cannot listen on {path}: {source}{hint}")]
    Unix {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
        /// What it means.
        hint: &'static str,
    },
    /// One with a port.
    #[error("cannot listen on {at}: {source}")]
    Tcp {
        /// Which.
        at: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A listening socket that does not block.
#[derive(Debug)]
pub enum Listener {
    /// With a path.
    Unix(UnixListener, SocketFile),
    /// With a port.
    Tcp(TcpListener),
}

impl Listener {
    /// Makes one with a path. One that a dead process has left is replaced.
    ///
    /// # Errors
    /// The path is in use or too long, or its directory cannot be written.
    pub fn unix(path: &Path) -> Result<Listener, Error> {
        let failed = |source: std::io::Error| {
            let hint = match source.kind() {
                ErrorKind::AddrInUse => "; another process listens there, or it is no socket",
                ErrorKind::InvalidFilename => "; the path is too long for a socket",
                _ => "",
            };
            Error::Unix { path: path.display().to_string(), source, hint }
        };
        let bound = private_socket(path).or_else(|error| {
            if error.kind() == ErrorKind::AddrInUse && is_stale(path) {
                std::fs::remove_file(path)?;
                return private_socket(path);
            }
            Err(error)
        });
        let listener = bound.map_err(failed)?;
        let file = SocketFile::at(path).map_err(failed)?;
        Ok(Listener::Unix(listener, file))
    }

    /// Makes one with a port.
    ///
    /// # Errors
    /// It is in use, or may not be used.
    pub fn tcp(at: SocketAddr) -> Result<Listener, Error> {
        let failed = |source| Error::Tcp { at, source };
        let listener = TcpListener::bind(at).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Tcp(listener))
    }

    fn accept(&self) -> std::io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
        }
    }
}

/// The file of a socket of ours. It does not go by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> std::io::Result<SocketFile> {
        let path = std::path::absolute(path)?;
        let id = identity(&path)?;
        Ok(SocketFile { path, id })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Removes it, unless something else has its name by now.
    pub fn remove(&self) {
        if identity(&self.path).is_ok_and(|id| id == self.id) {
            // Somebody was faster, or has taken the directory's write permission away:
            // whoever listens there next replaces it.
            std::fs::remove_file(&self.path).ok();
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Socket files that are removed when this is dropped.
#[derive(Debug, Default)]
pub struct Files(Vec<SocketFile>);

impl Files {
    /// Adds those of listeners that have one.
    pub fn extend<'a>(&mut self, listeners: impl IntoIterator<Item = &'a Listener>) {
        self.0.extend(listeners.into_iter().filter_map(|listener| match listener {
            Listener::Unix(_, file) => Some(file.clone()),
            Listener::Tcp(_) => None,
        }));
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[SocketFile] {
        &self.0
    }

    /// Somebody else removes them.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.0.iter().for_each(SocketFile::remove);
    }
}

/// A listening socket at `path`, which is the owner's alone from its first moment: the
/// file gets the mode that the socket has when it is bound.
fn private_socket(path: &Path) -> std::io::Result<UnixListener> {
    let addr = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    bind(socket.as_raw_fd(), &addr)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn is_stale(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = |e: std::io::Error| e.kind() == ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).is_err_and(refused)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// What a client has sent so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// There will be no more.
    pub ended: bool,
}

/// The listening socket and those who have connected.
#[derive(Debug)]
pub struct Clients {
    listener: Listener,
    clients: VecDeque<Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stream: File,
    request: Vec<u8>,
    waits: bool,
}

impl Clients {
    /// None so far.
    #[must_use]
    pub fn new(listener: Listener) -> Clients {
        Clients { listener, clients: VecDeque::new(), next: 0 }
    }

    /// Accepts a connection. Gives its id, of 32 bits, and its descriptor, to be watched
    /// for input; [`Clients::read`] is called when there is some.
    ///
    /// # Errors
    /// There is none, or the process has no descriptor left.
    pub fn accept(&mut self) -> std::io::Result<(u64, BorrowedFd<'_>)> {
        let stream = File::from(self.listener.accept()?);
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.pop_front();
        }
        let id = self.next;
        self.next = (self.next + 1) & 0xffff_ffff;
        let client = Client { id, stream, request: Vec::new(), waits: false };
        self.clients.push_back(client);
        let client = self.clients.back().expect("it was put there");
        Ok((id, client.stream.as_fd()))
    }

    /// Closes the connection that has been there the longest. Gives whether there was one.
    pub fn forget_oldest(&mut self) -> bool {
        self.clients.pop_front().is_some()
    }

    /// Reads from a connection; None when there is nothing new to look at.
    pub fn read(&mut self, id: u64) -> Option<Request<'_>> {
        let at = self.clients.iter().position(|client| client.id == id)?;
        let client = &mut self.clients[at];
        let mut part = [0; PART];
        let ended = match client.stream.read(&mut part) {
            // It has half-closed, or says more than it may: the answer is on its way.
            Ok(_) if client.waits => return None,
            Ok(len) => {
                client.request.extend_from_slice(&part[..len]);
                len == 0
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return None;
            }
            Err(_) => {
                self.clients.remove(at);
                return None;
            }
        };
        Some(Request { bytes: &self.clients[at].request, ended })
    }

    /// The client's request is whole; its answer comes later.
    pub fn wait(&mut self, id: u64) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.waits = true;
        }
    }

    /// Answers a connection, if it is still there, and closes it.
    pub fn answer(&mut self, id: u64, answer: &[u8]) {
        if let Some(at) = self.clients.iter().position(|client| client.id == id)
            && let Some(mut client) = self.clients.remove(at)
        {
            client.stream.write_all(answer).ok();
        }
    }

    /// Closes a connection without an answer.
    pub fn forget(&mut self, id: u64) {
        self.clients.retain(|client| client.id != id);
    }
}

impl AsFd for Clients {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn clients() -> (tempfile::TempDir, std::path::PathBuf, Clients) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::unix(&path).unwrap();
        (dir, path, Clients::new(listener))
    }

    #[test]
    fn a_request_comes_in_parts_and_is_answered_once() {
        let (_dir, path, mut clients) = clients();
        let mut stream = UnixStream::connect(&path).unwrap();
        let id = clients.accept().unwrap().0;
        assert_eq!(clients.read(id), None, "nothing yet");
        stream.write_all(b"a").unwrap();
        assert_eq!(clients.read(id), Some(Request { bytes: b"a", ended: false }));
        stream.write_all(b"b").unwrap();
        assert_eq!(clients.read(id), Some(Request { bytes: b"ab", ended: false }));
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(clients.read(id), Some(Request { bytes: b"ab", ended: true }));
        clients.wait(id);
        assert_eq!(clients.read(id), None, "it waits");
        clients.answer(id, b"c");
        clients.answer(id, b"d");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), clients.clients.len()), ("c", 0));
    }

    #[test]
    fn silent_ones_are_bounded_and_those_that_went_away_forgotten() {
        let (_dir, path, mut clients) = clients();
        let streams: Vec<_> = (0..CLIENTS_MAX + 5)
            .map(|_| {
                let stream = UnixStream::connect(&path).unwrap();
                clients.accept().unwrap();
                stream
            })
            .collect();
        assert_eq!(clients.clients.len(), CLIENTS_MAX);
        assert_eq!(clients.clients[0].id, 5, "the oldest went");
        drop(streams);
        let last = clients.next - 1;
        assert_eq!(clients.read(last), Some(Request { bytes: b"", ended: true }));
        clients.forget(last);
        assert_eq!(clients.clients.len(), CLIENTS_MAX - 1);
    }

    #[test]
    fn a_file_is_removed_unless_it_is_somebody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["gone", "replaced", "handed-over"].map(|name| dir.path().join(name));
        let listeners = paths.each_ref().map(|path| Listener::unix(path).unwrap());
        let mut files = Files::default();
        files.extend(&listeners[..2]);
        std::fs::remove_file(&paths[1]).unwrap();
        let _other = Listener::unix(&paths[1]).unwrap();
        drop(files);
        assert_eq!(paths.each_ref().map(|path| path.exists()), [false, true, true]);
        let mut files = Files::default();
        files.extend([&listeners[2], &Listener::tcp(([127, 0, 0, 1], 0).into()).unwrap()]);
        let list = files.list().to_vec();
        files.forget();
        drop(files);
        assert!(paths[2].exists() && list.len() == 1 && list[0].directory() == dir.path());
        list[0].remove();
        list[0].remove();
        assert!(!paths[2].exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let (dir, path, clients) = clients();
        let error = Listener::unix(&path).unwrap_err().to_string();
        assert!(error.contains("another process listens"), "{error}");
        drop(clients);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Listener::unix(&path).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(Listener::unix(&file).is_err());
        let long = dir.path().join("a".repeat(120));
        let error = Listener::unix(&long).unwrap_err().to_string();
        assert!(error.contains("too long for a socket"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
        let long = dir.path().join("x".repeat(200));
        let error = Listener::unix(&long).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
