//! Published ports and the listeners behind them.
//!
//! # Theory of operation
//!
//! A published port is a listening TCP socket or a bound UDP socket of the host,
//! known by its id. Accepted connections become flows of their own and outlive
//! the listener. Datagrams that come in are handed to the stack with the id, and
//! answers leave from the same socket.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::config::{Proto, Publish};
use crate::host::RECEIVE_BUFFER;

/// Marks an epoll token as a published port's; the id is below it.
pub(crate) const PUBLISH_TOKEN: u64 = 1 << 62;

/// Why a port could not be published or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener could not be made.
    #[error("cannot publish {addr}/{proto}: {source}{}", hint(source))]
    Bind {
        /// The host's address and port.
        addr: SocketAddr,
        /// Its transport.
        proto: Proto,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No published port has this id.
    #[error("no published port has id {0}")]
    NoSuchId(u64),
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; another program uses it: choose another host port",
        ErrorKind::PermissionDenied => {
            "; ports below net.ipv4.ip_unprivileged_port_start are reserved: \
             choose a higher host port"
        }
        ErrorKind::AddrNotAvailable => "; the host has no such address",
        _ => "",
    }
}

/// The published ports, as the control socket sees them. Implemented by the
/// driver.
pub trait Forwards {
    /// Binds and listens; gives the id, counted from 1.
    ///
    /// # Errors
    /// The address is in use, or may not be bound.
    fn add(&mut self, publish: Publish) -> Result<u64, Error>;
    /// Stops listening. Connections that were accepted stay.
    ///
    /// # Errors
    /// Unknown id.
    fn remove(&mut self, id: u64) -> Result<(), Error>;
    /// All of them, in the order of their ids.
    fn list(&self) -> Vec<(u64, Publish)>;
}

/// What listens for a published port.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// The table of published ports, watched by `epoll`.
#[derive(Debug)]
pub(crate) struct Table {
    epoll: std::rc::Rc<Epoll>,
    ports: BTreeMap<u64, (Publish, Listener)>,
    last: u64,
}

impl Table {
    pub(crate) fn new(epoll: std::rc::Rc<Epoll>) -> Table {
        Table { epoll, ports: BTreeMap::new(), last: 0 }
    }

    pub(crate) fn find(&self, id: u64) -> Option<(&Publish, &Listener)> {
        self.ports.get(&id).map(|(publish, listener)| (publish, listener))
    }

    fn listener(&self, publish: &Publish) -> std::io::Result<Listener> {
        let (kind, family) = (
            match publish.proto {
                Proto::Tcp => SockType::Stream,
                Proto::Udp => SockType::Datagram,
            },
            match publish.host {
                SocketAddr::V4(_) => AddressFamily::Inet,
                SocketAddr::V6(_) => AddressFamily::Inet6,
            },
        );
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd: OwnedFd = socket(family, kind, flags, None)?;
        if publish.proto == Proto::Tcp {
            // Connections of an earlier run in TIME-WAIT must not be in the way.
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        }
        if let SocketAddr::V6(v6) = publish.host {
            // `::` is every address of the host, whatever net.ipv6.bindv6only says.
            setsockopt(&fd, sockopt::Ipv6V6Only, &!v6.ip().is_unspecified())?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(publish.host))?;
        Ok(match publish.proto {
            Proto::Tcp => {
                listen(&fd, Backlog::MAXCONN)?;
                Listener::Tcp(fd.into())
            }
            Proto::Udp => {
                // A smaller one does as well, only not as long.
                setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER).ok();
                Listener::Udp(fd.into())
            }
        })
    }
}

impl Forwards for Table {
    fn add(&mut self, publish: Publish) -> Result<u64, Error> {
        let failed = |source| Error::Bind { addr: publish.host, proto: publish.proto, source };
        let listener = self.listener(&publish).map_err(failed)?;
        let id = self.last + 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, PUBLISH_TOKEN | id);
        let fd = match &listener {
            Listener::Tcp(tcp) => tcp.as_fd(),
            Listener::Udp(udp) => udp.as_fd(),
        };
        self.epoll.add(fd, event).map_err(|errno| failed(errno.into()))?;
        self.last = id;
        self.ports.insert(id, (publish, listener));
        Ok(id)
    }

    fn remove(&mut self, id: u64) -> Result<(), Error> {
        // Closing the socket takes it out of epoll.
        self.ports.remove(&id).map(drop).ok_or(Error::NoSuchId(id))
    }

    fn list(&self) -> Vec<(u64, Publish)> {
        self.ports.iter().map(|(&id, &(publish, _))| (id, publish)).collect()
    }
}
