//! Executes the stack's commands on non-blocking host sockets and reports what
//! happened.
//!
//! # Theory of operation
//!
//! Each flow has at most one socket, kept at the index of its [`FlowId`] and
//! registered once with epoll, edge-triggered in both directions. What the edges
//! told is remembered in the socket (`readable`, `writable`), so that pausing a
//! direction costs no system call and an idle socket wakes nobody.
//!
//! A socket is worked on ([`Host::pump`]) when an edge came or the stack said
//! that something changed. One that still has input when the share of a turn is used
//! up waits for the next ([`Turn`]), and the loop does not sleep until then.

mod datagram;
mod turn;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket,
    sockopt,
};

use self::turn::Turn;
use crate::stack::policy::Unreachable;
use crate::stack::{ConnectError, FlowId, HostCommand, HostEvent, Netstack};
use crate::sys::mmsg;

/// Bytes that may wait in a datagram socket; the kernel makes it no more than twice
/// net.core.rmem_max. Its default holds 90 datagrams of 1,400 bytes, which is less than
/// come while another program has the processor.
pub(crate) const RECEIVE_BUFFER: usize = 4 << 20;

/// Marks an epoll token as a flow's.
pub(crate) const FLOW_TOKEN: u64 = 1 << 63;

/// The host's sockets.
#[derive(Debug)]
pub struct Host {
    sockets: Vec<Option<Socket>>,
    turn: Turn,
    inbound: mmsg::Inbound,
    outbound_v4: Option<Ipv4Addr>,
    outbound_v6: Option<Ipv6Addr>,
    open: usize,
}

#[derive(Debug)]
struct Socket {
    flow: FlowId,
    kind: Kind,
    /// An edge said there is input (or an end, or an error).
    readable: bool,
    /// An edge said there is room.
    writable: bool,
    /// The peer's end or an error is there: read until it is found.
    ending: bool,
    /// Waits for the next turn.
    again: bool,
}

#[derive(Debug)]
enum Kind {
    Connecting(TcpStream),
    Stream {
        tcp: TcpStream,
        finished: bool,
    },
    Datagram {
        udp: UdpSocket,
        /// Sending several with one call does not work.
        whole: bool,
        /// The kernel may join what comes in.
        joins: bool,
    },
    /// A ping socket: speaks ICMP messages, behaves like a datagram socket.
    Ping(UdpSocket),
}

impl Host {
    /// No sockets yet. Outgoing traffic leaves from the outbound addresses where
    /// they are given.
    pub fn new(outbound_v4: Option<Ipv4Addr>, outbound_v6: Option<Ipv6Addr>) -> Host {
        Host {
            sockets: Vec::new(),
            turn: Turn::default(),
            inbound: mmsg::Inbound::new(),
            outbound_v4,
            outbound_v6,
            open: 0,
        }
    }

    /// Sockets that are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether some socket still has input: don't sleep.
    pub fn has_more(&self) -> bool {
        self.turn.has_waiting()
    }

    /// Executes one command.
    pub fn execute(
        &mut self,
        stack: &mut Netstack,
        now: Duration,
        epoll: &Epoll,
        cmd: HostCommand,
    ) {
        match cmd {
            HostCommand::TcpConnect { flow, to } => match self.connect(epoll, flow, to) {
                Ok(true) => self.connected(stack, now, flow),
                Ok(false) => {}
                Err(errno) => {
                    let why = connect_error(errno);
                    stack.handle_host(now, HostEvent::TcpFailed { flow, why });
                }
            },
            HostCommand::TcpTransfer { flow } => self.pump(stack, now, flow),
            HostCommand::TcpShutdown { flow } => {
                if let Some(Socket { kind: Kind::Stream { tcp, .. }, .. }) = self.find(flow) {
                    // Fails only when the connection is broken already, which the
                    // socket reports by itself.
                    tcp.shutdown(Shutdown::Write).ok();
                }
            }
            HostCommand::UdpSend { flow, to, data } => {
                self.send_datagrams(stack, now, epoll, flow, to, &data, data.len());
                stack.give_back(data);
            }
            HostCommand::UdpSendMany { flow, to, data, segment } => {
                self.send_datagrams(stack, now, epoll, flow, to, &data, segment);
                stack.give_back(data);
            }
            HostCommand::EchoSend { flow, to, seq, data } => {
                self.send_echo(stack, now, epoll, flow, to, seq, &data);
            }
            HostCommand::SetTtl { flow, to, ttl, ping } => {
                // Who cannot have a socket is told with what is sent next.
                if let Ok(socket) = self.datagram_socket(epoll, flow, to.ip(), ping) {
                    datagram::set_ttl(socket, to.ip(), ttl);
                }
            }
            HostCommand::Close { flow, reset } => {
                if let Some(socket) = self.remove(flow)
                    && reset
                    && let Kind::Stream { tcp, .. } | Kind::Connecting(tcp) = &socket.kind
                {
                    // Without it the peer sees an orderly end.
                    let now = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(tcp, sockopt::Linger, &now).ok();
                }
            }
            // Sockets of published ports are the driver's.
            HostCommand::UdpReply { .. } => {}
        }
    }

    /// Takes in a connection that a listener accepted.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn adopt(&mut self, epoll: &Epoll, flow: FlowId, tcp: TcpStream) -> Result<(), Errno> {
        prepare(&tcp);
        let kind = Kind::Stream { tcp, finished: false };
        self.insert(epoll, flow, kind)
    }

    /// Takes in what epoll told about a flow's socket.
    pub fn event(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId, flags: EpollFlags) {
        let Some(socket) = self.find(flow) else { return };
        let end = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        socket.ending |= flags.intersects(end);
        socket.readable |= flags.intersects(end | EpollFlags::EPOLLIN);
        socket.writable |= flags.intersects(end | EpollFlags::EPOLLOUT);
        match &socket.kind {
            Kind::Connecting(_) if flags == EpollFlags::EPOLLOUT => {
                self.connected(stack, now, flow);
            }
            Kind::Connecting(tcp) => match tcp.take_error() {
                Ok(None) if flags.contains(EpollFlags::EPOLLOUT) => {
                    self.connected(stack, now, flow);
                }
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => {
                    self.remove(flow);
                    let why = connect_error(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
                    stack.handle_host(now, HostEvent::TcpFailed { flow, why });
                }
            },
            Kind::Stream { tcp, .. } => {
                // A reset is worth telling even while the guest takes no data.
                if flags.contains(EpollFlags::EPOLLERR)
                    && let Ok(Some(_)) | Err(_) = tcp.take_error()
                {
                    return self.broken(stack, now, flow);
                }
                self.pump(stack, now, flow);
            }
            Kind::Datagram { .. } | Kind::Ping(_) => self.pump(stack, now, flow),
        }
    }

    /// Begins a turn, with the sockets that had input left in the last.
    pub fn begin_turn(&mut self, stack: &mut Netstack, now: Duration) {
        self.turn.begin();
        while let Some(flow) = self.turn.next() {
            if let Some(socket) = self.find(flow) {
                socket.again = false;
                self.pump(stack, now, flow);
            }
        }
    }

    fn pump(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId) {
        match self.find(flow).map(|socket| &socket.kind) {
            Some(Kind::Stream { .. }) => {
                if self.pump_out(stack, flow).is_err() || self.pump_in(stack, now, flow).is_err() {
                    self.broken(stack, now, flow);
                }
            }
            Some(Kind::Datagram { .. } | Kind::Ping(_)) => self.pump_datagrams(stack, now, flow),
            Some(Kind::Connecting(_)) | None => {}
        }
    }

    fn broken(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId) {
        self.remove(flow);
        stack.handle_host(now, HostEvent::TcpReset { flow });
    }

    /// Guest to host.
    fn pump_out(&mut self, stack: &mut Netstack, flow: FlowId) -> std::io::Result<()> {
        let Some(socket) = self.find(flow) else { return Ok(()) };
        let Kind::Stream { tcp, .. } = &mut socket.kind else { return Ok(()) };
        while socket.writable {
            let bytes = stack.tcp_outgoing(flow);
            if bytes.is_empty() {
                break;
            }
            let len = bytes.len();
            match tcp.write_vectored(bytes.as_slices()) {
                Ok(count) => {
                    socket.writable = count == len;
                    stack.tcp_sent(flow, count);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => socket.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Host to guest.
    fn pump_in(
        &mut self,
        stack: &mut Netstack,
        now: Duration,
        flow: FlowId,
    ) -> std::io::Result<()> {
        let Host { sockets, turn, .. } = self;
        let Some(socket) = at(sockets, flow) else { return Ok(()) };
        let Kind::Stream { tcp, finished } = &mut socket.kind else { return Ok(()) };
        while socket.readable && !*finished && !turn.is_over() && stack.tcp_room(flow) > 0 {
            let mut result = Ok(0);
            let mut wanted = 0;
            stack.tcp_fill(flow, &mut |room| {
                wanted = room.iter().map(|part| part.len()).sum();
                result = tcp.read_vectored(room);
                result.as_ref().map_or(0, |count| *count)
            });
            match result {
                Ok(0) if wanted > 0 => {
                    *finished = true;
                    stack.handle_host(now, HostEvent::TcpFinished { flow });
                }
                Ok(count) => {
                    turn.used(count);
                    // A short read means the socket is empty, unless its end is
                    // already announced and nothing will announce it again.
                    socket.readable = count == wanted || socket.ending;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => socket.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if turn.is_over() && socket.readable && !*finished && !socket.again {
            socket.again = true;
            turn.wait(flow);
        }
        Ok(())
    }

    fn connect(&mut self, epoll: &Epoll, flow: FlowId, to: SocketAddr) -> Result<bool, Errno> {
        let fd = new_socket(to.ip(), SockType::Stream, None)?;
        if let Some(from) = self.outbound(to.ip()) {
            nix::sys::socket::bind(
                fd.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(from, 0)),
            )?;
        }
        let tcp = TcpStream::from(fd);
        prepare(&tcp);
        let at_once = match connect(tcp.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) => true,
            Err(Errno::EINPROGRESS) => false,
            Err(errno) => return Err(errno),
        };
        self.insert(epoll, flow, Kind::Connecting(tcp))?;
        Ok(at_once)
    }

    fn connected(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId) {
        let index = flow.index();
        if let Some(mut socket) = self.sockets.get_mut(index).and_then(Option::take) {
            if let Kind::Connecting(tcp) = socket.kind {
                socket.kind = Kind::Stream { tcp, finished: false };
                socket.writable = true;
            }
            self.sockets[index] = Some(socket);
        }
        stack.handle_host(now, HostEvent::TcpConnected { flow });
    }

    /// The address that traffic to `to` leaves from, where it was asked for.
    /// Never for the host's loopback, which only loopback addresses reach.
    fn outbound(&self, to: IpAddr) -> Option<IpAddr> {
        if to.is_loopback() {
            return None;
        }
        match to {
            IpAddr::V4(_) => self.outbound_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.outbound_v6.map(IpAddr::V6),
        }
    }

    fn find(&mut self, flow: FlowId) -> Option<&mut Socket> {
        at(&mut self.sockets, flow)
    }

    fn insert(&mut self, epoll: &Epoll, flow: FlowId, kind: Kind) -> Result<(), Errno> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let fd = match &kind {
            Kind::Connecting(tcp) | Kind::Stream { tcp, .. } => {
                flags |= EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
                tcp.as_fd()
            }
            // The kernel says after each datagram that there is room again
            // (sock_def_write_space): nobody waits for that.
            Kind::Datagram { udp, .. } | Kind::Ping(udp) => udp.as_fd(),
        };
        let event = EpollEvent::new(flags, FLOW_TOKEN | flow.to_bits());
        epoll.add(fd, event)?;
        let socket =
            Socket { flow, kind, readable: false, writable: false, ending: false, again: false };
        let index = flow.index();
        if self.sockets.len() <= index {
            self.sockets.resize_with(index + 1, || None);
        }
        if self.sockets[index].replace(socket).is_none() {
            self.open += 1;
        }
        Ok(())
    }

    /// Takes the socket out; dropping it closes it, and epoll forgets it.
    fn remove(&mut self, flow: FlowId) -> Option<Socket> {
        self.find(flow)?;
        self.open -= 1;
        self.sockets.get_mut(flow.index())?.take()
    }
}

fn at(sockets: &mut [Option<Socket>], flow: FlowId) -> Option<&mut Socket> {
    sockets.get_mut(flow.index())?.as_mut().filter(|socket| socket.flow == flow)
}

fn new_socket(
    like: IpAddr,
    kind: SockType,
    protocol: Option<SockProtocol>,
) -> Result<OwnedFd, Errno> {
    let family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)
}

/// Options of every TCP socket. Failing to set one costs comfort, not
/// correctness.
fn prepare(tcp: &TcpStream) {
    // The guest's kernel has decided what to send when.
    tcp.set_nodelay(true).ok();
    // A peer that vanished must not hold the flow for ever.
    setsockopt(tcp, sockopt::KeepAlive, &true).ok();
}

fn unreachable(errno: Errno) -> Unreachable {
    match errno {
        Errno::ENETUNREACH | Errno::ENETDOWN => Unreachable::Net,
        Errno::ECONNREFUSED => Unreachable::Port,
        Errno::EACCES | Errno::EPERM => Unreachable::Prohibited,
        _ => Unreachable::Host,
    }
}

fn connect_error(errno: Errno) -> ConnectError {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => ConnectError::Refused,
        Errno::ETIMEDOUT => ConnectError::TimedOut,
        other => ConnectError::Unreachable(unreachable(other)),
    }
}
