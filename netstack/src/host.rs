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
//! that something changed. One that still has input when its share of a turn is
//! used up is put on the `again` list; the loop does not sleep while that has
//! entries.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, connect, recvmsg, setsockopt, socket, sockopt,
};

use crate::stack::policy::Unreachable;
use crate::stack::{ConnectError, FlowId, HostCommand, HostEvent, Netstack};

/// Marks an epoll token as a flow's.
pub(crate) const FLOW_TOKEN: u64 = 1 << 63;

/// Bytes one connection may read in a turn before others get theirs.
const READ_SHARE: usize = 1 << 20;
/// Datagrams one socket may read in a turn.
const DATAGRAM_SHARE: usize = 64;

/// The host's sockets.
#[derive(Debug)]
pub struct Host {
    sockets: Vec<Option<Socket>>,
    again: Vec<FlowId>,
    buffer: Vec<u8>,
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
    /// On the `again` list.
    again: bool,
}

#[derive(Debug)]
enum Kind {
    Connecting(TcpStream),
    Stream {
        tcp: TcpStream,
        finished: bool,
    },
    Datagram(UdpSocket),
    /// A ping socket: speaks ICMP messages, behaves like a datagram socket.
    Ping(UdpSocket),
}

impl Host {
    /// No sockets yet. Outgoing traffic leaves from the outbound addresses where
    /// they are given.
    pub fn new(outbound_v4: Option<Ipv4Addr>, outbound_v6: Option<Ipv6Addr>) -> Host {
        Host {
            sockets: Vec::new(),
            again: Vec::new(),
            buffer: vec![0; 65536],
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
        !self.again.is_empty()
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
                self.send_datagram(stack, now, epoll, flow, to, &data);
            }
            HostCommand::EchoSend { flow, to, seq, data } => {
                self.send_echo(stack, now, epoll, flow, to, seq, &data);
            }
            HostCommand::SetTtl { flow, to, ttl, ping } => {
                // Who cannot have a socket is told with what is sent next.
                if let Ok(socket) = self.datagram_socket(epoll, flow, to.ip(), ping) {
                    set_ttl(socket, to.ip(), ttl);
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
            Kind::Datagram(_) | Kind::Ping(_) => self.pump(stack, now, flow),
        }
    }

    /// Works on the sockets that had input left in the last turn.
    pub fn pump_again(&mut self, stack: &mut Netstack, now: Duration) {
        for flow in std::mem::take(&mut self.again) {
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
            Some(Kind::Datagram(_) | Kind::Ping(_)) => self.pump_datagrams(stack, now, flow),
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
        let Some(socket) = self.find(flow) else { return Ok(()) };
        let Kind::Stream { tcp, finished } = &mut socket.kind else { return Ok(()) };
        let mut share = READ_SHARE;
        while socket.readable && !*finished && share > 0 && stack.tcp_room(flow) > 0 {
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
                    share = share.saturating_sub(count);
                    // A short read means the socket is empty, unless its end is
                    // already announced and nothing will announce it again.
                    socket.readable = count == wanted || socket.ending;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => socket.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if share == 0 && socket.readable && !socket.again {
            socket.again = true;
            self.again.push(flow);
        }
        Ok(())
    }

    fn pump_datagrams(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId) {
        let Host { sockets, again, buffer, .. } = self;
        let Some(socket) = sockets.get_mut(flow.index()).and_then(Option::as_mut) else { return };
        let (udp, ping) = match &socket.kind {
            Kind::Datagram(udp) => (udp, false),
            Kind::Ping(udp) => (udp, true),
            _ => return,
        };
        if std::mem::take(&mut socket.ending) {
            report_errors(stack, now, flow, udp, ping);
        }
        let mut share = DATAGRAM_SHARE;
        while socket.readable && share > 0 {
            share -= 1;
            match udp.recv_from(buffer) {
                Ok((len, from)) if ping => {
                    if let Some((head, data)) = buffer[..len].split_at_checked(8)
                        && matches!(head[0], 0 | 129)
                    {
                        let seq = u16::from_be_bytes([head[6], head[7]]);
                        let from = from.ip();
                        stack.handle_host(now, HostEvent::EchoReply { flow, from, seq, data });
                    }
                }
                Ok((len, from)) => {
                    let data = &buffer[..len];
                    stack.handle_host(now, HostEvent::UdpReceived { flow, from, data });
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => socket.readable = false,
                // An error of an earlier send, reported through the error queue.
                Err(_) => {
                    report_errors(stack, now, flow, udp, ping);
                }
            }
        }
        if socket.readable && !socket.again {
            socket.again = true;
            again.push(flow);
        }
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

    fn send_datagram(
        &mut self,
        stack: &mut Netstack,
        now: Duration,
        epoll: &Epoll,
        flow: FlowId,
        to: SocketAddr,
        data: &[u8],
    ) {
        if let Err(errno) = self.datagram_socket(epoll, flow, to.ip(), false) {
            let why = unreachable(errno);
            return stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
        }
        let Some(Socket { kind: Kind::Datagram(udp), .. }) = self.find(flow) else { return };
        for _ in 0..2 {
            match udp.send_to(data, to) {
                Ok(_) => return,
                // A full socket drops, as a network may.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => {
                    // An error may be left from an earlier datagram: it is in
                    // the queue with its own address, and this one is tried again.
                    if report_errors(stack, now, flow, udp, false) {
                        continue;
                    }
                    let why = unreachable(Errno::from_raw(e.raw_os_error().unwrap_or(0)));
                    stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
                    return;
                }
            }
        }
    }

    /// The flow's socket, made when there is none.
    fn datagram_socket(
        &mut self,
        epoll: &Epoll,
        flow: FlowId,
        to: IpAddr,
        ping: bool,
    ) -> Result<&UdpSocket, Errno> {
        if self.find(flow).is_none() {
            let kind = if ping {
                Kind::Ping(ping_socket(to)?)
            } else {
                Kind::Datagram(self.udp_socket(to)?)
            };
            self.insert(epoll, flow, kind)?;
        }
        match self.find(flow).map(|socket| &socket.kind) {
            Some(Kind::Datagram(udp) | Kind::Ping(udp)) => Ok(udp),
            _ => Err(Errno::ENOTSOCK),
        }
    }

    fn udp_socket(&self, like: IpAddr) -> Result<UdpSocket, Errno> {
        let fd = new_socket(like, SockType::Datagram, None)?;
        // Without it an unconnected socket is not told what did not arrive.
        match like {
            IpAddr::V4(_) => setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?,
        }
        if let Some(from) = self.outbound(like) {
            let from = SockaddrStorage::from(SocketAddr::new(from, 0));
            nix::sys::socket::bind(fd.as_raw_fd(), &from)?;
        }
        Ok(UdpSocket::from(fd))
    }

    #[expect(clippy::too_many_arguments, reason = "an echo request has that many parts")]
    fn send_echo(
        &mut self,
        stack: &mut Netstack,
        now: Duration,
        epoll: &Epoll,
        flow: FlowId,
        to: IpAddr,
        seq: u16,
        data: &[u8],
    ) {
        let result = self.try_echo(epoll, flow, to, seq, data);
        match result {
            Ok(()) | Err(Errno::EAGAIN) => {}
            Err(errno) => {
                if let Some(Socket { kind: Kind::Ping(ping), .. }) = self.find(flow)
                    && report_errors(stack, now, flow, ping, true)
                {
                    return;
                }
                let why = unreachable(errno);
                stack.handle_host(now, HostEvent::EchoUnreachable { flow, to, seq, why });
            }
        }
    }

    fn try_echo(
        &mut self,
        epoll: &Epoll,
        flow: FlowId,
        to: IpAddr,
        seq: u16,
        data: &[u8],
    ) -> Result<(), Errno> {
        self.datagram_socket(epoll, flow, to, true)?;
        let Some(Socket { kind: Kind::Ping(ping), .. }) = self.find(flow) else { return Ok(()) };
        // The kernel fills in identifier and checksum.
        let mut message = vec![if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0];
        message.extend_from_slice(&seq.to_be_bytes());
        message.extend_from_slice(data);
        match ping.send_to(&message, SocketAddr::new(to, 0)) {
            Ok(_) => Ok(()),
            Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(0))),
        }
    }

    fn find(&mut self, flow: FlowId) -> Option<&mut Socket> {
        self.sockets.get_mut(flow.index())?.as_mut().filter(|socket| socket.flow == flow)
    }

    fn insert(&mut self, epoll: &Epoll, flow: FlowId, kind: Kind) -> Result<(), Errno> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, FLOW_TOKEN | flow.to_bits());
        let fd = match &kind {
            Kind::Connecting(tcp) | Kind::Stream { tcp, .. } => tcp.as_fd(),
            Kind::Datagram(udp) | Kind::Ping(udp) => udp.as_fd(),
        };
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

fn ping_socket(to: IpAddr) -> Result<UdpSocket, Errno> {
    let protocol = if to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = new_socket(to, SockType::Datagram, Some(protocol))?;
    match to {
        IpAddr::V4(_) => setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?,
        IpAddr::V6(_) => setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(UdpSocket::from(fd))
}

/// Failing costs a hop in a trace, not a datagram.
fn set_ttl(socket: &UdpSocket, to: IpAddr, ttl: Option<u8>) {
    // -1 is the route's own (ip(7), ipv6(7)).
    let ttl = ttl.map_or(-1, i32::from);
    match to {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Ttl, &ttl).ok(),
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6Ttl, &ttl).ok(),
    };
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

/// Reads the error queue of a datagram socket. Gives whether anything was there.
fn report_errors(
    stack: &mut Netstack,
    now: Duration,
    flow: FlowId,
    socket: &UdpSocket,
    ping: bool,
) -> bool {
    // Clears the pending error, which would fail the next call.
    let mut any = matches!(socket.take_error(), Ok(Some(_)));
    let mut data = [0; 64];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    // A share, so that a flood of errors cannot hold the loop.
    for _ in 0..DATAGRAM_SHARE {
        let mut parts = [IoSliceMut::new(&mut data)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let Ok(message) =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
        else {
            break;
        };
        any = true;
        let Some(to) = message.address.as_ref().and_then(std_address) else { continue };
        let Ok(mut messages) = message.cmsgs() else { continue };
        let Some(why) = messages.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, by) => {
                let by = by.map(|by| Ipv4Addr::from(u32::from_be(by.sin_addr.s_addr)).into());
                Some(reported(&error, by))
            }
            ControlMessageOwned::Ipv6RecvErr(error, by) => {
                Some(reported(&error, by.map(|by| Ipv6Addr::from(by.sin6_addr.s6_addr).into())))
            }
            _ => None,
        }) else {
            continue;
        };
        let whole = message.bytes >= 8;
        let event = if ping {
            // The queue gives the request from its ICMP header on.
            let seq = if whole { u16::from_be_bytes([data[6], data[7]]) } else { 0 };
            HostEvent::EchoUnreachable { flow, to: to.ip(), seq, why }
        } else {
            HostEvent::UdpUnreachable { flow, to, why }
        };
        stack.handle_host(now, event);
    }
    any
}

/// What an entry of the error queue means (ip(7), IP_RECVERR); `by` is who said it.
fn reported(error: &libc::sock_extended_err, by: Option<IpAddr>) -> Unreachable {
    let errno = Errno::from_raw(error.ee_errno.cast_signed());
    match (error.ee_origin, error.ee_type, by) {
        // ICMP_TIME_EXCEEDED, ICMPV6_TIME_EXCEED.
        (libc::SO_EE_ORIGIN_ICMP, 11, Some(at)) | (libc::SO_EE_ORIGIN_ICMP6, 3, Some(at)) => {
            Unreachable::Expired { at }
        }
        _ if errno == Errno::EMSGSIZE && error.ee_info > 0 => {
            Unreachable::TooBig { mtu: error.ee_info }
        }
        _ => unreachable(errno),
    }
}

/// An IP socket address; None for other families.
fn std_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        Some(SocketAddr::new(v4.ip().into(), v4.port()))
    } else {
        storage.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
    }
}
