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
    /// Sets how long the guest may be silent before it is probed.
    fn probe_after(&mut self, silence: Duration);
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
}

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
}

impl Port {
    fn fresh() -> Port {
        Port { mss: 536, factor: 1, sent: 0, acked: 0 }
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

/// The acknowledgement number of a segment that has one.
fn acknowledgement(packet: &[u8]) -> Option<u32> {
    let ip_len = if packet.first()? >> 4 == 6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    let header = packet.get(ip_len..ip_len + 20)?;
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
        Smol { iface, set, handle, port: Port::fresh(), reset: false, ring }
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
        self.port = Port::fresh();
        let socket = self.socket_mut();
        socket.abort();
        socket.set_keep_alive(None);
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
        frame::rewrite_mss(header, |mss| {
            port.mss = mss.clamp(48, limit);
            port.factor = if link.offloads.vnet { (65475 / port.mss).max(1) } else { 1 };
            port.mss * port.factor
        })?;
        Some(copy)
    }
}

impl Stream for Smol {
    fn ingress(&mut self, now: Duration, packet: &[u8], link: &Link, out: &mut Outbox) {
        let before = self.socket().state();
        let opening = matches!(before, State::Listen | State::SynSent | State::SynReceived);
        let rewritten = if opening { self.learn_mss(packet, link) } else { None };
        let packet = rewritten.as_deref().unwrap_or(packet);
        if let Some(ack) = acknowledgement(packet)
            && (ack.wrapping_sub(self.port.acked) < 1 << 31 || self.port.acked == 0)
            && self.port.sent.wrapping_sub(ack) < 1 << 31
        {
            self.port.acked = ack;
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
        let mut device = Attached { port: &mut self.port, packet: None, link, out };
        let result = self.iface.poll_egress(instant(now), &mut device, &mut self.set);
        result == PollResult::SocketStateChanged
    }

    fn deadline(&mut self, now: Duration) -> Option<Duration> {
        let at = self.iface.poll_at(instant(now), &self.set)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
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

    fn probe_after(&mut self, silence: Duration) {
        let silence = smoltcp::time::Duration::from_secs(silence.as_secs());
        self.socket_mut().set_keep_alive(Some(silence));
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
