//! Counters for Prometheus (`--metrics`): its text format, over HTTP, on a UNIX socket
//! or a port of the loopback.
//!
//! # Theory of operation
//!
//! Whatever is asked for, the answer is the counters: a request is complete at its
//! empty line, at its end, or when it has grown too long. One request a connection.
//! Sockets do not block; [`CLIENTS_MAX`] unfinished connections are held, and the
//! oldest is dropped for a new one. Counters of all workers are added up; what they
//! give was true a moment ago on each.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::control;
use crate::stack::egress::Hits;
use crate::stack::report::Report;

const CLIENTS_MAX: usize = 16;
const REQUEST_MAX: usize = 8192;

/// Where the counters are given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket.
    Unix(PathBuf),
    /// A port of the loopback.
    Tcp(SocketAddr),
}

/// Reads `PATH` (with a slash in it), `PORT` or `ADDRESS:PORT` of the loopback.
///
/// # Errors
/// It is none of them, as a text.
pub fn address(text: &str) -> Result<Address, String> {
    if text.contains('/') {
        return Ok(Address::Unix(text.into()));
    }
    let at = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Err(_) => text.parse().map_err(|_| {
            "expected a path with a slash in it, a port, or 127.0.0.1:PORT".to_owned()
        })?,
    };
    if !at.ip().is_loopback() || at.port() == 0 {
        return Err("the port must be one of the loopback".into());
    }
    Ok(Address::Tcp(at))
}

/// Why they are not given out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The UNIX socket cannot be made.
    #[error(transparent)]
    Unix(#[from] control::Error),
    /// The port cannot be listened on.
    #[error("cannot listen on {at}: {source}")]
    Tcp {
        /// Which.
        at: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes the listening socket.
///
/// # Errors
/// The path or port is in use, or may not be used.
pub fn listen(address: &Address) -> Result<Listener, Error> {
    match address {
        Address::Unix(path) => Ok(Listener::Unix(control::listen(path)?.into())),
        Address::Tcp(at) => {
            let failed = |source| Error::Tcp { at: *at, source };
            let listener = TcpListener::bind(at).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(Listener::Tcp(listener))
        }
    }
}

/// A listening socket that does not block.
#[derive(Debug)]
pub enum Listener {
    /// With a path.
    Unix(UnixListener),
    /// With a port.
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> std::io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener) => {
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

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// The listening socket, and those who have asked.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    clients: VecDeque<Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stream: File,
    request: Vec<u8>,
    asked: bool,
}

impl Server {
    /// On a socket made by [`listen`].
    #[must_use]
    pub fn new(listener: Listener) -> Server {
        Server { listener, clients: VecDeque::new(), next: 0 }
    }

    /// Where connections come, to be watched.
    #[must_use]
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Accepts a connection. Gives its id and its descriptor, to be watched for input;
    /// [`Server::ready`] is called when there is some.
    pub fn accept(&mut self) -> Option<(u64, BorrowedFd<'_>)> {
        let stream = File::from(self.listener.accept().ok()?);
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.pop_front();
        }
        let id = self.next;
        self.next = (self.next + 1) & 0xffff_ffff;
        self.clients.push_back(Client { id, stream, request: Vec::new(), asked: false });
        self.clients.back().map(|client| (id, client.stream.as_fd()))
    }

    /// Closes a connection without an answer.
    pub fn forget(&mut self, id: u64) {
        self.clients.retain(|client| client.id != id);
    }

    /// Reads from a connection. Gives whether it waits for [`Server::answer`] now.
    pub fn ready(&mut self, id: u64) -> bool {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else { return false };
        let client = &mut self.clients[at];
        let mut part = [0; 4096];
        match client.stream.read(&mut part) {
            Ok(0) if client.request.is_empty() => {
                self.clients.remove(at);
                return false;
            }
            // It has half-closed, or says more than it may: the answer is on its way.
            Ok(_) if client.asked => return false,
            // That was all.
            Ok(0) => {
                client.asked = true;
                return true;
            }
            Ok(len) => client.request.extend_from_slice(&part[..len]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return false;
            }
            Err(_) => {
                self.clients.remove(at);
                return false;
            }
        }
        let whole = client.request.windows(4).any(|four| four == b"\r\n\r\n");
        client.asked = whole || client.request.len() > REQUEST_MAX;
        client.asked
    }

    /// Answers a connection and closes it.
    pub fn answer(&mut self, id: u64, body: &str) {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else { return };
        let Some(mut client) = self.clients.remove(at) else { return };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // A client that does not read has lost it.
        client.stream.write_all(format!("{head}{body}").as_bytes()).ok();
    }
}

/// What passed the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames of the guest.
    pub frames_in: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// The text for these workers together, and for the policy if there is one.
#[must_use]
pub fn render(workers: &[(Report, Traffic)], hits: Option<&Hits>) -> String {
    let sum = |of: &dyn Fn(&(Report, Traffic)) -> u64| workers.iter().map(of).sum::<u64>();
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a string does not fail.
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        for (labels, value) in samples {
            writeln!(text, "{name}{labels} {value}").ok();
        }
    };
    let label = |key: &str, value: &str, count: u64| (format!("{{{key}=\"{value}\"}}"), count);
    family(
        "netstack_flows",
        "gauge",
        "Flows there are now.",
        &[
            label("protocol", "tcp", sum(&|w| w.0.tcp)),
            label("protocol", "udp", sum(&|w| w.0.udp)),
            label("protocol", "icmp", sum(&|w| w.0.icmp)),
            label("protocol", "dns", sum(&|w| w.0.dns)),
        ],
    );
    family(
        "netstack_frames_total",
        "counter",
        "Frames that passed the TAP device.",
        &[
            label("direction", "from_guest", sum(&|w| w.1.frames_in)),
            label("direction", "to_guest", sum(&|w| w.1.frames_out)),
        ],
    );
    family(
        "netstack_bytes_total",
        "counter",
        "Bytes of these frames, Ethernet headers included.",
        &[
            label("direction", "from_guest", sum(&|w| w.1.bytes_in)),
            label("direction", "to_guest", sum(&|w| w.1.bytes_out)),
        ],
    );
    family(
        "netstack_tcp_retransmissions_total",
        "counter",
        "Segments with data sent to the guest again.",
        &[(String::new(), sum(&|w| w.0.counters.retransmitted))],
    );
    family(
        "netstack_drops_total",
        "counter",
        "What was dropped or refused, by reason.",
        &[
            label("reason", "bad_frame", sum(&|w| w.0.counters.bad_frames)),
            label("reason", "queue_full", sum(&|w| w.0.counters.queue_full)),
            label("reason", "table_full", sum(&|w| w.0.counters.table_full)),
            label("reason", "denied", sum(&|w| w.0.counters.denied)),
        ],
    );
    if let Some((default, rules)) = hits.and_then(|hits| hits.split_last()) {
        let mut samples: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(n, count)| label("rule", &(n + 1).to_string(), *count))
            .collect();
        samples.push(label("rule", "default", *default));
        family(
            "netstack_policy_decisions_total",
            "counter",
            "Decisions of the policy, by the rule that made them.",
            &samples,
        );
    }
    family(
        "netstack_workers",
        "gauge",
        "Workers, each with a queue of the device.",
        &[(String::new(), workers.len() as u64)],
    );
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn addresses_are_paths_or_of_the_loopback() {
        assert_eq!(address("/run/m"), Ok(Address::Unix("/run/m".into())));
        assert_eq!(address("./m"), Ok(Address::Unix("./m".into())));
        assert_eq!(address("9100"), Ok(Address::Tcp("127.0.0.1:9100".parse().unwrap())));
        assert_eq!(address("[::1]:9100"), Ok(Address::Tcp("[::1]:9100".parse().unwrap())));
        for bad in ["0.0.0.0:9100", "192.0.2.1:1", "127.0.0.1:0", "0", "m", "", "70000"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workers_are_added_up() {
        let mut one = (Report { tcp: 2, ..Report::default() }, Traffic::default());
        one.1.bytes_in = 7;
        one.0.counters.retransmitted = 3;
        let text = render(&[one.clone(), one], Some(&vec![4, 5]));
        for line in [
            "netstack_flows{protocol=\"tcp\"} 4",
            "netstack_bytes_total{direction=\"from_guest\"} 14",
            "# TYPE netstack_tcp_retransmissions_total counter",
            "netstack_tcp_retransmissions_total 6",
            "netstack_policy_decisions_total{rule=\"1\"} 4",
            "netstack_policy_decisions_total{rule=\"default\"} 5",
            "netstack_workers 2",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        assert!(!render(&[], None).contains("policy"));
    }

    #[test]
    fn a_request_in_parts_is_answered_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let mut server = Server::new(listen(&Address::Unix(path.clone())).unwrap());
        let mut stream = UnixStream::connect(&path).unwrap();
        let id = server.accept().unwrap().0;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        assert!(!server.ready(id));
        stream.write_all(b"Host: x\r\n\r\n").unwrap();
        assert!(server.ready(id));
        assert!(!server.ready(id), "asked already");
        server.answer(id, "a 1\n");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\na 1\n"));
        let streams: Vec<_> = (0..CLIENTS_MAX + 5)
            .map(|_| {
                let stream = UnixStream::connect(&path).unwrap();
                server.accept().unwrap();
                stream
            })
            .collect();
        assert_eq!(server.clients.len(), CLIENTS_MAX);
        drop(streams);
        let last = server.next - 1;
        assert!(!server.ready(last));
        assert_eq!(server.clients.len(), CLIENTS_MAX - 1, "one that went away is forgotten");
    }
}
