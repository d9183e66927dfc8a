//! One TCP endpoint facing the guest, on smoltcp.
//!
//! # Theory of operation
//!
//! smoltcp scans its whole `SocketSet` for every packet, so each endpoint has a
//! set and an `Interface` of its own, which see the packets of one flow only.
//! The interface takes any address (`any_ip`) over `Medium::Ip`, so it needs
//! neither addresses nor routes.
//!
//! Segmentation offload: smoltcp 0.14 drops IPv6 packets above the interface's
//! MTU whatever the offload, so it is not told of offloads. It is told an MTU of
//! 65,535 and, by rewriting the MSS option of the guest's SYN to a multiple of
//! itself, that the guest takes segments of up to 64 KiB. [`FrameBuf::finish_tcp`]
//! then marks what exceeds the guest's real MSS for the kernel to cut, and puts
//! the MSS of the link into our own SYN. Multiples of the MSS leave no runt
//! behind each large segment.
//!
//! Delayed acknowledgement is off: an acknowledgement is built once a turn, after
//! the host took the data, and carries the reopened window. Nagle is off: the
//! host's kernel has already decided what to send when.
//!
//! Endpoints are reused: their rings are the costly part, and `listen` and
//! `connect` reset a closed socket.
//!
//! [`FrameBuf::finish_tcp`]: super::frame::FrameBuf::finish_tcp

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

use super::frame::{self, Link, Outbox};

/// What the flow needs of an endpoint, whatever code does the sequence numbers.
pub(super) trait Stream {
    /// Takes an IP packet of this flow; may queue one reply.
    fn ingress(&mut self, now: Duration, packet: &[u8], link: &Link, out: &mut Outbox);
    /// Queues one frame if one is due. Call again until false.
    fn egress(&mut self, now: Duration, link: &Link, out: &mut Outbox) -> bool;
    /// When [`Stream::egress`] has something to do without further input.
    fn deadline(&mut self, now: Duration) -> Option<Duration>;
    /// Where the connection stands.
    fn status(&self) -> Status;
    /// The guest's bytes that come next, as far as they lie together.
    fn received(&mut self) -> &[u8];
    /// Drops the first `count` of them and reopens the window.
    fn consume(&mut self, count: usize);
    /// How many bytes [`Stream::fill`] can take, in one or two calls.
    fn room(&self) -> usize;
    /// Whether some of what was filled in is not yet acknowledged.
    fn unacknowledged(&self) -> bool;
    /// Lets `write` put bytes for the guest into a free stretch; it gives the count.
    fn fill(&mut self, write: &mut dyn FnMut(&mut [u8]) -> usize);
    /// No more bytes for the guest: FIN after what is buffered. False when it is
    /// too early: ask again after the next change or egress.
    fn finish(&mut self) -> bool;
    /// Resets the connection; the RST goes out with the next egress.
    fn abort(&mut self);
    /// Queues a segment that says nothing, but that a living guest answers.
    fn probe(&mut self, link: &Link, out: &mut Outbox);
}

/// Where a connection with the guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// The handshake is not complete.
    pub(super) opening: bool,
    /// The guest's FIN has arrived, and every byte before it.
    pub(super) guest_finished: bool,
    /// The guest acknowledged our FIN or has reset: no frame will follow.
    pub(super) closed: bool,
    /// The guest has reset.
    pub(super) reset: bool,
}

/// An endpoint on smoltcp.
pub(super) struct Smol {
    iface: Interface,
    set: SocketSet<'static>,
    handle: SocketHandle,
    port: Port,
    reset: bool,
    ring: usize,
    /// When to act for smoltcp, which has forgotten to.
    watch: Option<Duration>,
}

/// smoltcp's smallest retransmission timeout.
const RTO: Duration = Duration::from_secs(1);

/// The "device" of one flow: a packet in, frames out.
struct Port {
    /// The guest's real MSS: what exceeds it is marked for segmentation.
    mss: u16,
    /// Factor on the guest's MSS that smoltcp is told.
    factor: u16,
    /// Sequence number behind the last byte that was sent.
    sent: u32,
    /// The guest's last acknowledgement.
    acked: u32,
    /// Our last acknowledgement: what is expected from the guest.
    expected: u32,
    /// Window fields as last sent and received.
    window_out: u16,
    window_in: u16,
    /// Shift of the guest's window field.
    scale: u8,
    /// Sequence number that the guest's window ends before, at its furthest.
    edge: u32,
}

impl Port {
    fn fresh() -> Port {
        Port {
            mss: 536,
            factor: 1,
            sent: 0,
            acked: 0,
            expected: 0,
            window_out: 0,
            window_in: 0,
            scale: 0,
            edge: 0,
        }
    }
}

struct Attached<'a> {
    port: &'a mut Port,
    packet: Option<&'a [u8]>,
    link: &'a Link,
    out: &'a mut Outbox,
}

struct Rx<'a>(&'a [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Tx<'a> {
    port: &'a mut Port,
    link: &'a Link,
    out: &'a mut Outbox,
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = self.out.take();
        let result = f(frame.packet_mut(len));
        let len = cut_to_window(frame.packet_mut(len), self.port.edge).unwrap_or(len);
        if let Some(ack) = acknowledgement(frame.packet_mut(len)) {
            self.port.expected = ack;
            self.port.window_out = window(frame.packet_mut(len));
        }
        let end = frame.finish_tcp(self.link, len, self.port.mss);
        // A repetition does not take it back; a new connection starts anywhere.
        if end.wrapping_sub(self.port.sent) < 1 << 31 || self.port.sent == 0 {
            self.port.sent = end;
        }
        self.out.push(frame);
        result
    }
}

impl Device for Attached<'_> {
    type RxToken<'t>
        = Rx<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let packet = self.packet.take()?;
        Some((Rx(packet), Tx { port: self.port, link: self.link, out: self.out }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx { port: self.port, link: self.link, out: self.out })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

fn capabilities() -> DeviceCapabilities {
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    caps.max_transmission_unit = 65535;
    caps.checksum.ipv4 = Checksum::Tx;
    caps.checksum.tcp = Checksum::None;
    caps
}

struct Unplugged;

impl Device for Unplugged {
    type RxToken<'t> = Rx<'t>;
    type TxToken<'t> = Tx<'t>;
    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        None
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        None
    }
    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

/// The TCP header and what follows it, of a packet without IPv6 extensions.
fn tcp_part(packet: &[u8]) -> Option<(usize, &[u8])> {
    let ip_len = if packet.first()? >> 4 == 6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    Some((ip_len, packet.get(ip_len..).filter(|tcp| tcp.len() >= 20)?))
}

/// A fast retransmission of smoltcp does not look at the window, and with the
/// multiplied MSS may go far beyond it. Cuts a segment at `edge`; gives the
/// packet's new length if anything was cut.
fn cut_to_window(packet: &mut [u8], edge: u32) -> Option<usize> {
    let (ip_len, tcp) = tcp_part(packet)?;
    let header_len = usize::from(tcp[12] >> 4) * 4;
    let data_len = tcp.len().checked_sub(header_len)?;
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let room = edge.wrapping_sub(seq);
    // One byte may probe a closed window.
    let room = if room < 1 << 31 { (room as usize).max(1) } else { 1 };
    if data_len <= room || tcp[13] & frame::SYN != 0 {
        return None;
    }
    let upper = header_len + room;
    packet[ip_len + 13] &= !(frame::FIN | frame::PSH);
    if ip_len == 40 {
        packet[4..6].copy_from_slice(&(upper as u16).to_be_bytes());
    } else {
        packet[2..4].copy_from_slice(&((ip_len + upper) as u16).to_be_bytes());
        packet[10..12].fill(0);
        let value = frame::checksum(&packet[..ip_len], 0);
        packet[10..12].copy_from_slice(&value.to_be_bytes());
    }
    Some(ip_len + upper)
}

fn has_syn(packet: &[u8]) -> bool {
    tcp_part(packet).is_some_and(|(_, tcp)| tcp[13] & frame::SYN != 0)
}

/// The window field; 0 for what is no segment.
fn window(packet: &[u8]) -> u16 {
    tcp_part(packet).map_or(0, |(_, tcp)| u16::from_be_bytes([tcp[14], tcp[15]]))
}

/// The acknowledgement number, if that is all the segment says: no data, no flag
/// but ACK, in sequence.
fn bare_ack(packet: &[u8], expected: u32) -> Option<u32> {
    let (_, tcp) = tcp_part(packet)?;
    let bare = tcp.len() == usize::from(tcp[12] >> 4) * 4 && tcp[13] == frame::ACK;
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    (bare && seq == expected).then(|| acknowledgement(packet)).flatten()
}

/// smoltcp takes a repeated segment whose data it has, and whose FIN it had to
/// put off because of a hole, for one outside the window, and never sees the FIN.
/// Gives the segment without the data then.
fn trim_to_fin(packet: &[u8], expected: u32) -> Option<Vec<u8>> {
    let (ip_len, tcp) = tcp_part(packet)?;
    let header_len = usize::from(tcp[12] >> 4) * 4;
    let data_len = tcp.len().checked_sub(header_len).filter(|len| *len > 0)?;
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    if tcp[13] & frame::FIN == 0 || seq.wrapping_add(data_len as u32) != expected {
        return None;
    }
    let mut short = packet[..ip_len + header_len].to_vec();
    let field = if ip_len == 40 { 4..6 } else { 2..4 };
    let len = if ip_len == 40 { header_len } else { ip_len + header_len } as u16;
    short[field].copy_from_slice(&len.to_be_bytes());
    short[ip_len + 4..ip_len + 8].copy_from_slice(&expected.to_be_bytes());
    Some(short)
}

/// The acknowledgement number of a segment that has one.
fn acknowledgement(packet: &[u8]) -> Option<u32> {
    let (_, header) = tcp_part(packet)?;
    let number = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    (header[13] & frame::ACK != 0).then_some(number)
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

impl Smol {
    /// An endpoint with rings of `ring` bytes each way, in no connection yet.
    pub(super) fn new(ring: usize, seed: u64) -> Smol {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut Unplugged, Instant::ZERO);
        iface.set_any_ip(true);
        let buffer = || SocketBuffer::new(vec![0; ring]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Smol { iface, set, handle, port: Port::fresh(), reset: false, ring, watch: None }
    }

    /// Bytes of each ring.
    pub(super) fn ring(&self) -> usize {
        self.ring
    }

    fn socket(&self) -> &Socket<'static> {
        self.set.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.set.get_mut(self.handle)
    }

    fn fresh(&mut self) {
        self.reset = false;
        self.watch = None;
        self.port = Port::fresh();
        let socket = self.socket_mut();
        socket.abort();
    }

    /// Makes ready for a SYN of the guest to `local`.
    pub(super) fn accept(&mut self, local: SocketAddr) {
        self.fresh();
        // Fails only for port 0, which the policy refuses, or an open socket.
        if self.socket_mut().listen(local).is_err() {
            self.reset = true;
        }
    }

    /// Starts a connection from `local` to the guest's `remote`.
    pub(super) fn connect(&mut self, local: SocketAddr, remote: SocketAddr) {
        self.fresh();
        let socket = self.set.get_mut::<Socket<'_>>(self.handle);
        // Fails only for unspecified addresses and port 0.
        if socket.connect(self.iface.context(), remote, local).is_err() {
            self.reset = true;
        }
    }

    /// Notes the guest's MSS from a SYN and tells smoltcp the multiple of it.
    fn learn_mss(&mut self, packet: &[u8], link: &Link) -> Option<Vec<u8>> {
        let (ip_len, flags_at) = match packet.first()? >> 4 {
            4 => (usize::from(packet[0] & 15) * 4, 13),
            6 => (40, 13),
            _ => return None,
        };
        if packet.get(ip_len + flags_at)? & frame::SYN == 0 {
            return None;
        }
        let mut copy = packet.to_vec();
        let tcp = copy.get_mut(ip_len..)?;
        let header = tcp.get_mut(..usize::from(*tcp.get(12)? >> 4) * 4)?;
        let limit = link.mtu.saturating_sub(ip_len + 20).clamp(48, 65495) as u16;
        let port = &mut self.port;
        // 14 at most (RFC 7323 section 2.3).
        port.scale = frame::window_scale(header).unwrap_or(0).min(14);
        frame::rewrite_mss(header, |mss| {
            port.mss = mss.clamp(48, limit);
            port.factor = if link.offloads.vnet { (65475 / port.mss).max(1) } else { 1 };
            port.mss * port.factor
        })?;
        Some(copy)
    }
}

impl Smol {
    /// Whether something is sent that the guest has not acknowledged.
    fn outstanding(&self) -> bool {
        let socket = self.socket();
        let fin = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        fin || socket.send_queue() > 0
    }

    /// Queues a segment without data or options.
    fn push_bare(&self, flags: u8, seq: u32, link: &Link, out: &mut Outbox) {
        let Some(segment) = self.bare(flags, seq, self.port.expected, self.port.window_out, true)
        else {
            return;
        };
        let mut buf = out.take();
        buf.packet_mut(segment.len()).copy_from_slice(&segment);
        buf.finish_tcp(link, segment.len(), self.port.mss);
        out.push(buf);
    }

    /// A segment of this connection, to the guest or as if from it.
    fn bare(&self, flags: u8, seq: u32, ack: u32, window: u16, to_guest: bool) -> Option<Vec<u8>> {
        let (local, remote) = (self.socket().local_endpoint()?, self.socket().remote_endpoint()?);
        let (from, to) = if to_guest { (local, remote) } else { (remote, local) };
        let (src, dst) = (from.addr.into(), to.addr.into());
        let ip_len = if matches!(src, std::net::IpAddr::V6(_)) { 40 } else { 20 };
        let mut packet = vec![0; ip_len + 20];
        frame::ip_header(&mut packet, src, dst, frame::proto::TCP, 20, None);
        let tcp = &mut packet[ip_len..];
        tcp[..2].copy_from_slice(&from.port.to_be_bytes());
        tcp[2..4].copy_from_slice(&to.port.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&window.to_be_bytes());
        Some(packet)
    }

    /// smoltcp has lost its retransmission timer (a window that closes and reopens
    /// with data in flight does that): repeat the FIN, or make it repeat the first
    /// segment, which starts the timer again.
    fn nudge(&mut self, now: Duration, link: &Link, out: &mut Outbox) {
        if self.socket().send_queue() == 0 {
            return self.push_bare(frame::FIN | frame::ACK, self.port.sent, link, out);
        }
        let port = &self.port;
        let (seq, ack, window) = (port.expected, port.acked, port.window_in);
        let Some(again) = self.bare(frame::ACK, seq, ack, window, false) else { return };
        for _ in 0..4 {
            let mut device =
                Attached { port: &mut self.port, packet: Some(&again), link, out: &mut *out };
            self.iface.poll_ingress_single(instant(now), &mut device, &mut self.set);
        }
    }
}

impl Stream for Smol {
    fn ingress(&mut self, now: Duration, packet: &[u8], link: &Link, out: &mut Outbox) {
        let before = self.socket().state();
        let opening = matches!(before, State::Listen | State::SynSent | State::SynReceived);
        let rewritten = if opening { self.learn_mss(packet, link) } else { None };
        let packet = rewritten.as_deref().unwrap_or(packet);
        let old_ack = self.port.acked;
        let trimmed = if opening { None } else { trim_to_fin(packet, self.port.expected) };
        let packet = trimmed.as_deref().unwrap_or(packet);
        if let Some(ack) = acknowledgement(packet)
            && (ack.wrapping_sub(self.port.acked) < 1 << 31 || self.port.acked == 0)
            && self.port.sent.wrapping_sub(ack) < 1 << 31
        {
            self.port.acked = ack;
            self.port.window_in = window(packet);
            // A SYN's window is not scaled (RFC 7323 section 2.2).
            let scale = if has_syn(packet) { 0 } else { self.port.scale };
            let edge = ack.wrapping_add(u32::from(self.port.window_in) << scale);
            if edge.wrapping_sub(self.port.edge) < 1 << 31 || self.port.edge == 0 {
                self.port.edge = edge;
            }
        }
        // With nothing but our FIN outstanding the third repeated ACK would put
        // smoltcp into a fast retransmit that has nothing to send and stops the
        // timer that would repeat the FIN.
        let fin_alone = matches!(before, State::FinWait1 | State::Closing | State::LastAck)
            && self.socket().send_queue() == 0;
        if fin_alone && bare_ack(packet, self.port.expected) == Some(old_ack) {
            return;
        }
        let mut device = Attached { port: &mut self.port, packet: Some(packet), link, out };
        self.iface.poll_ingress_single(instant(now), &mut device, &mut self.set);
        match self.socket().state() {
            State::Closed if before != State::Closed && before != State::LastAck => {
                self.reset = true;
            }
            // A RST during the handshake puts the socket back to listening.
            State::Listen if before != State::Listen => self.reset = true,
            _ => {}
        }
    }

    fn egress(&mut self, now: Duration, link: &Link, out: &mut Outbox) -> bool {
        if self.watch.is_some_and(|at| at <= now) {
            self.watch = None;
            self.nudge(now, link, out);
        }
        let mut device = Attached { port: &mut self.port, packet: None, link, out };
        let result = self.iface.poll_egress(instant(now), &mut device, &mut self.set);
        result == PollResult::SocketStateChanged
    }

    fn deadline(&mut self, now: Duration) -> Option<Duration> {
        match self.iface.poll_at(instant(now), &self.set) {
            Some(at) => {
                self.watch = None;
                Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
            }
            None if self.outstanding() => Some(*self.watch.get_or_insert(now + RTO)),
            None => None,
        }
    }

    fn status(&self) -> Status {
        let socket = self.socket();
        let state = socket.state();
        Status {
            opening: matches!(state, State::Listen | State::SynSent | State::SynReceived),
            guest_finished: !self.reset
                && matches!(
                    state,
                    State::CloseWait
                        | State::LastAck
                        | State::Closing
                        | State::TimeWait
                        | State::Closed
                ),
            closed: self.reset || matches!(state, State::TimeWait | State::Closed),
            reset: self.reset,
        }
    }

    fn received(&mut self) -> &[u8] {
        self.socket_mut().peek(usize::MAX).unwrap_or(&[])
    }

    fn consume(&mut self, count: usize) {
        let taken = self.socket_mut().recv(|bytes| (count.min(bytes.len()), ()));
        debug_assert!(taken.is_ok(), "only what was received is consumed");
    }

    fn room(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    fn unacknowledged(&self) -> bool {
        self.socket().send_queue() > 0
    }

    fn fill(&mut self, write: &mut dyn FnMut(&mut [u8]) -> usize) {
        let done = self.socket_mut().send(|bytes| {
            let most = bytes.len();
            (write(bytes).min(most), ())
        });
        debug_assert!(done.is_ok(), "the caller asks for room first");
    }

    fn finish(&mut self) -> bool {
        let too_early = match self.socket().state() {
            // smoltcp would take the guest's answer to our SYN for one to our FIN.
            State::Listen | State::SynSent | State::SynReceived => true,
            // In LAST-ACK smoltcp ignores an ACK that only reopens the window, and
            // what is not sent by then would wait for a probe.
            State::CloseWait => {
                let flight = self.port.sent.wrapping_sub(self.port.acked) as usize;
                flight < self.socket().send_queue()
            }
            _ => false,
        };
        if !too_early {
            self.socket_mut().close();
        }
        !too_early
    }

    fn abort(&mut self) {
        self.socket_mut().abort();
    }

    fn probe(&mut self, link: &Link, out: &mut Outbox) {
        // Not smoltcp's keep-alive: that carries a byte before the next to be sent,
        // which the guest takes for data if it has missed what was there.
        let seq = self.port.acked.wrapping_sub(1);
        self.push_bare(frame::ACK, seq, link, out);
    }
}

impl std::fmt::Debug for Smol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Smol")
            .field("state", &self.socket().state())
            .field("mss", &self.port.mss)
            .field("factor", &self.port.factor)
            .finish()
    }
}
