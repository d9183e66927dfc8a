//! The server: a thread a transfer, one thread with epoll(7) for everything small.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tests::say;

use super::bulk::{self, Ask};
use super::udp::{Sessions, TOGETHER};
use super::{port, small};

/// Answers until standard input closes.
///
/// # Errors
/// When a port is taken.
pub(super) fn serve() -> Result<()> {
    let sessions = Arc::new([
        Sessions::new(udp_socket(port::UDP)?, 1)?,
        Sessions::new(udp_socket(port::UDP_TOGETHER)?, TOGETHER)?,
    ]);
    let bulk = listener(port::BULK)?;
    let small = [
        (Protocol::Echo, listener(port::ECHO)?),
        (Protocol::OneShot, listener(port::ONE_SHOT)?),
        (Protocol::Http, listener(port::HTTP)?),
    ];
    for at in 0..sessions.len() {
        let receiver = Arc::clone(&sessions);
        std::thread::spawn(move || receiver[at].receive());
    }
    std::thread::spawn(move || {
        if let Err(error) = serve_small(&small) {
            eprintln!("server: {error:#}");
            std::process::exit(1);
        }
    });
    std::thread::spawn(move || {
        for stream in bulk.incoming().flatten() {
            let sessions = Arc::clone(&sessions);
            std::thread::spawn(move || {
                // The client sees the connection close without a report.
                if let Err(error) = transfer(stream, &sessions) {
                    eprintln!("server: {error:#}");
                }
            });
        }
    });
    say!("ready")?;
    // Whatever comes is not for us.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Both families where there are two: bindv6only is off by default.
fn listener(port: u16) -> Result<TcpListener> {
    TcpListener::bind(any_v6(port))
        .or_else(|_| TcpListener::bind(any_v4(port)))
        .with_context(|| format!("cannot listen on TCP port {port}"))
}

fn udp_socket(port: u16) -> Result<UdpSocket> {
    UdpSocket::bind(any_v6(port))
        .or_else(|_| UdpSocket::bind(any_v4(port)))
        .with_context(|| format!("cannot listen on UDP port {port}"))
}

fn any_v6(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn any_v4(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn transfer(mut stream: TcpStream, sessions: &[Sessions; 2]) -> Result<()> {
    let ask = Ask::read(&mut stream)?;
    let sessions = &sessions[usize::from(ask.together > 1)];
    let time = std::time::Duration::from_millis(ask.ms.into());
    match ask.kind {
        Ask::UP => bulk::receive(&mut stream)?.write(&mut stream),
        Ask::DOWN => bulk::send(&mut stream, time),
        Ask::UDP_COUNT => sessions.count(ask.session).write(&mut stream),
        Ask::UDP_DOWN => sessions.send(ask.session, ask.size, time)?.write(&mut stream),
        kind => bail!("a request of kind {kind}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Echo,
    OneShot,
    Http,
}

struct Connection {
    protocol: Protocol,
    stream: TcpStream,
    /// Bytes of a request that is not whole yet.
    pending: Vec<u8>,
}

/// Requests here are small and come one at a time on a connection, so a reply
/// always fits into the socket's buffer.
fn serve_small(listeners: &[(Protocol, TcpListener)]) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (token, (_, listener)) in listeners.iter().enumerate() {
        listener.set_nonblocking(true)?;
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, token as u64))?;
    }
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next = listeners.len() as u64;
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let token = event.data();
            if let Some((protocol, listener)) = listeners.get(token as usize) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, next))?;
                    let connection =
                        Connection { protocol: *protocol, stream, pending: Vec::new() };
                    connections.insert(next, connection);
                    next += 1;
                }
            } else if let Some(connection) = connections.get_mut(&token)
                && !connection.answer()
            {
                // Closing the descriptor takes it out of the epoll set.
                connections.remove(&token);
            }
        }
    }
}

impl Connection {
    /// Reads what there is and replies; `false` when the connection is over.
    fn answer(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        match self.protocol {
            Protocol::Echo => self.stream.write_all(&buffer[..count]).is_ok(),
            Protocol::OneShot => {
                self.pending.extend(&buffer[..count]);
                if self.pending.len() < small::MESSAGE {
                    return true;
                }
                // Failing is closing too early, which the client sees.
                self.stream.write_all(&small::reply(&self.pending)).ok();
                false
            }
            Protocol::Http => {
                self.pending.extend(&buffer[..count]);
                if !self.pending.ends_with(b"\r\n\r\n") {
                    return true;
                }
                self.pending.clear();
                self.stream.write_all(&small::http_response()).is_ok()
            }
        }
    }
}
