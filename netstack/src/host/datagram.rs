//! Datagram sockets: UDP and ping.
//!
//! # Theory of operation
//!
//! What a guest sends in one batch leaves with one call where all datagrams but the
//! last are of one length (UDP_SEGMENT, udp(7)); where the host's kernel or the path
//! does not have it, one by one. What comes in is taken in batches, too
//! ([`crate::sys::mmsg`]), joined by the kernel where many come (UDP_GRO).
//!
//! Errors come through the error queue (IP_RECVERR, ip(7)): an unconnected socket is
//! told nothing otherwise.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::Epoll;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockProtocol, SockType, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};

use super::{Host, Kind, Socket, new_socket, unreachable};
use crate::stack::policy::Unreachable;
use crate::stack::{FlowId, HostEvent, Netstack};

/// Datagrams one socket may read in a turn.
const DATAGRAM_SHARE: usize = 64;
/// Datagrams taken with one call that make it worth while to have them joined.
///
/// UDP_GRO is not free: the first socket of the machine that asks for it, and the end
/// of the last, make the kernel change its own code and interrupt every processor for
/// that (`udp_encap_needed_key`, net/ipv4/udp.c). A question to a name server must
/// not pay for it.
const MANY: usize = 4;

impl Host {
    /// Host to guest.
    pub(super) fn pump_datagrams(&mut self, stack: &mut Netstack, now: Duration, flow: FlowId) {
        let Host { sockets, turn, inbound, .. } = self;
        let Some(socket) = super::at(sockets, flow) else { return };
        let (udp, mut joins) = match &mut socket.kind {
            Kind::Datagram { udp, joins, .. } => (&*udp, Some(joins)),
            Kind::Ping(udp) => (&*udp, None),
            _ => return,
        };
        let ping = joins.is_none();
        if std::mem::take(&mut socket.ending) {
            report_errors(stack, now, flow, udp, ping);
        }
        let mut share = DATAGRAM_SHARE;
        while socket.readable && share > 0 {
            match inbound.receive(udp) {
                Ok((count, more)) => {
                    // Whatever comes after the call that found no more has an edge
                    // of its own.
                    socket.readable = more;
                    share = share.saturating_sub(count);
                    if let Some(joins) = &mut joins
                        && count >= MANY
                        && !**joins
                    {
                        **joins = true;
                        // Where the kernel has it not, they come one by one.
                        setsockopt(udp, sockopt::UdpGroSegment, &true).ok();
                        setsockopt(udp, sockopt::RcvBuf, &super::RECEIVE_BUFFER).ok();
                    }
                    for message in (0..count).filter_map(|index| inbound.get(index)) {
                        if ping {
                            echo_reply(stack, now, flow, message.from.ip(), message.data);
                            continue;
                        }
                        let size = message.segment.unwrap_or(usize::MAX);
                        let empty = message.data.is_empty().then_some(message.data);
                        for data in empty.into_iter().chain(message.data.chunks(size)) {
                            let from = message.from;
                            stack.handle_host(now, HostEvent::UdpReceived { flow, from, data });
                        }
                    }
                }
                Err(Errno::EAGAIN) => socket.readable = false,
                // An error of an earlier send, reported through the error queue.
                Err(_) => {
                    share -= 1;
                    report_errors(stack, now, flow, udp, ping);
                }
            }
        }
        if socket.readable && !socket.again {
            socket.again = true;
            turn.wait(flow);
        }
    }

    /// Sends the datagrams that `data` is, of `segment` bytes each but the last.
    #[expect(clippy::too_many_arguments, reason = "datagrams have that many parts")]
    pub(super) fn send_datagrams(
        &mut self,
        stack: &mut Netstack,
        now: Duration,
        epoll: &Epoll,
        flow: FlowId,
        to: SocketAddr,
        data: &[u8],
        segment: usize,
    ) {
        if let Err(errno) = self.datagram_socket(epoll, flow, to.ip(), false) {
            let why = unreachable(errno);
            return stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
        }
        let Some(Socket { kind: Kind::Datagram { udp, whole, .. }, .. }) = self.find(flow) else {
            return;
        };
        if data.len() > segment && !*whole {
            match send_segments(udp, to, data, segment) {
                Ok(()) => return,
                // Too long for the way, or for the kernel: those of this socket
                // will be so again.
                Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO | Errno::EOPNOTSUPP) => {
                    *whole = true;
                }
                // An error of an earlier one, or no room for all.
                Err(_) => {}
            }
        }
        if data.is_empty() {
            send_datagram(stack, now, flow, udp, to, data);
        }
        for data in data.chunks(segment.max(1)) {
            if !send_datagram(stack, now, flow, udp, to, data) {
                break;
            }
        }
    }

    /// The flow's socket, made when there is none.
    pub(super) fn datagram_socket(
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
                Kind::Datagram { udp: self.udp_socket(to)?, whole: false, joins: false }
            };
            self.insert(epoll, flow, kind)?;
        }
        match self.find(flow).map(|socket| &socket.kind) {
            Some(Kind::Datagram { udp, .. } | Kind::Ping(udp)) => Ok(udp),
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
    pub(super) fn send_echo(
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
}

/// Takes a message of a ping socket, which has its ICMP header.
fn echo_reply(stack: &mut Netstack, now: Duration, flow: FlowId, from: IpAddr, message: &[u8]) {
    if let Some((head, data)) = message.split_at_checked(8)
        && matches!(head[0], 0 | 129)
    {
        let seq = u16::from_be_bytes([head[6], head[7]]);
        stack.handle_host(now, HostEvent::EchoReply { flow, from, seq, data });
    }
}

/// Sends all with one call, or none.
fn send_segments(
    udp: &UdpSocket,
    to: SocketAddr,
    data: &[u8],
    segment: usize,
) -> Result<(), Errno> {
    let size = u16::try_from(segment).map_err(|_| Errno::EMSGSIZE)?;
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let to = SockaddrStorage::from(to);
    let data = [IoSlice::new(data)];
    sendmsg(udp.as_raw_fd(), &data, &control, MsgFlags::empty(), Some(&to)).map(drop)
}

/// Sends one datagram. Gives whether a further one may do better.
fn send_datagram(
    stack: &mut Netstack,
    now: Duration,
    flow: FlowId,
    udp: &UdpSocket,
    to: SocketAddr,
    data: &[u8],
) -> bool {
    for _ in 0..2 {
        match udp.send_to(data, to) {
            Ok(_) => return true,
            // A full socket drops, as a network may.
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) => {
                // An error may be left from an earlier datagram: it is in
                // the queue with its own address, and this one is tried again.
                if report_errors(stack, now, flow, udp, false) {
                    continue;
                }
                let why = unreachable(Errno::from_raw(e.raw_os_error().unwrap_or(0)));
                stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
                return true;
            }
        }
    }
    true
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
pub(super) fn set_ttl(socket: &UdpSocket, to: IpAddr, ttl: Option<u8>) {
    // -1 is the route's own (ip(7), ipv6(7)).
    let ttl = ttl.map_or(-1, i32::from);
    match to {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Ttl, &ttl).ok(),
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6Ttl, &ttl).ok(),
    };
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
