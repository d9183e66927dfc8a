//! UDP: one host socket for each port of the guest.
//!
//! # Theory of operation
//!
//! A flow is a port of the guest; all its datagrams leave from one host socket
//! and whatever comes to that socket goes to it (endpoint-independent mapping and
//! filtering, RFC 4787). It ends [`EXPIRY`] after the last datagram either way.
//! Queries to the built-in name server never get here: see [`super::services`].
//!
//! Datagrams of a flow to one place that come in one batch and are of one length are
//! given to the host as one command, which costs it one system call. Their order
//! stays, and so do their borders.
//!
//! Datagrams that come to a published port make no flow. [`Inbound`] remembers
//! for each (guest port, client as the guest sees it) who the client is and which
//! socket it knows, so that answers leave from there. It is asked before the
//! policy: an answer to a client is allowed whatever its address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::egress::Protocol;
use super::flow::{FlowId, Key};
use super::frame::{Packet, proto};
use super::policy::{self, Unreachable, Verdict};
use super::report::FlowInfo;
use super::{HostCommand, Netstack, dhcp, icmp};

const EXPIRY: Duration = Duration::from_secs(180);
/// Clients of published ports remembered at most.
const INBOUND_MAX: usize = 16384;
/// Commands that may wait; datagrams beyond are dropped. Reached only if the host
/// does not execute commands.
const COMMANDS_MAX: usize = 8192;

/// Datagrams in a frame of the guest at most: what its kernel makes of one call
/// (UDP_MAX_SEGMENTS, linux/udp.h). By a raw socket it could have 65,000 made of a frame.
const SEGMENTS_MAX: usize = 128;
/// Datagrams in one command at most: UDP_MAX_SEGMENTS of kernels before 6.9.
const TOGETHER_MAX: usize = 64;
/// Bytes of all of them at most: less than any IP packet holds.
pub const TOGETHER_BYTES: usize = 65_000;
/// A datagram from so many bytes on is put into a buffer of that size at once.
const LARGE: usize = 4096;

/// Buffers of commands that were carried out: large ones that are freed and taken
/// anew cost the kernel more than the bytes in them.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Vec<u8>>);

/// Buffers kept at most (2 MiB).
const SPARE_MAX: usize = 32;

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(TOGETHER_BYTES))
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= TOGETHER_BYTES && self.0.len() < SPARE_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// A UDP flow.
#[derive(Debug)]
pub(super) struct Flow {
    guest: SocketAddr,
    last: Duration,
    /// What the socket sends with; None is the host's default.
    ttl: Option<u8>,
    /// Number of its last command to send.
    sent: u64,
}

impl Flow {
    pub(super) fn expires(&self) -> Duration {
        self.last + EXPIRY
    }

    pub(super) fn info(&self) -> FlowInfo {
        FlowInfo::open("udp", (self.guest.ip(), self.guest.port()))
    }

    pub(super) fn guest(&self) -> SocketAddr {
        self.guest
    }
}

/// Clients of published ports.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    clients: HashMap<(SocketAddr, SocketAddr), Client>,
    sweep_at: Option<Duration>,
}

#[derive(Debug)]
struct Client {
    publish: u64,
    real: SocketAddr,
    last: Duration,
}

impl Inbound {
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.sweep_at
    }

    pub(super) fn expire(&mut self, now: Duration) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.clients.retain(|_, client| client.last + EXPIRY > now);
            self.sweep_at = self.clients.values().map(|client| client.last + EXPIRY).min();
        }
    }
}

impl Netstack {
    /// Whether a datagram may leave from here: it is neither for a service nor refused.
    pub(super) fn udp_is_forwarded(&self, packet: &Packet<'_>) -> bool {
        let Some((guest, peer)) = ends(packet) else { return false };
        self.ports.is_some()
            && guest.port() != 0
            && guest.port() != dhcp::CLIENT_PORT
            && matches!(policy::decide(&self.config, peer), Verdict::To(_))
    }

    /// Which other stack the guest's port belongs to.
    fn udp_elsewhere(&self, guest: SocketAddr) -> Option<usize> {
        let (ports, own) = self.ports.as_ref()?;
        // Nobody takes a port away from the main stack.
        if !self.side && self.flows.find(&Key::Udp(guest)).is_some() {
            return None;
        }
        let owner = ports.claim(guest, *own);
        (owner != *own).then_some(owner)
    }

    /// Which other stack has the guest's port already, and will ask the policy itself: a
    /// datagram is judged, counted and told of once.
    fn udp_judged_elsewhere(&self, guest: SocketAddr) -> Option<usize> {
        self.egress.as_ref()?;
        let (ports, own) = self.ports.as_ref()?;
        ports.owner(guest).filter(|owner| owner != own)
    }

    pub(super) fn release_port(&self, guest: SocketAddr) {
        if let Some((ports, own)) = &self.ports {
            ports.release(guest, *own);
        }
    }

    /// Gives which other stack the datagram is for.
    pub(super) fn handle_udp(
        &mut self,
        now: Duration,
        packet: &Packet<'_>,
        segment: Option<u16>,
    ) -> Option<usize> {
        let (Some((guest, peer)), Some((header, data))) =
            (ends(packet), packet.payload.split_at_checked(8))
        else {
            self.counters.bad_frames += 1;
            return None;
        };
        // With segmentation the length field speaks of the first segment only.
        let data = match segment {
            Some(size) if data.len() > SEGMENTS_MAX * usize::from(size) => {
                self.counters.bad_frames += 1;
                return None;
            }
            Some(_) => data,
            None => {
                let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                match len.checked_sub(8).and_then(|len| data.get(..len)) {
                    Some(data) => data,
                    None => {
                        self.counters.bad_frames += 1;
                        return None;
                    }
                }
            }
        };
        if self.handle_service(now, guest, peer, data) || guest.port() == 0 {
            return None;
        }
        if let Some(client) = self.inbound.clients.get_mut(&(guest, peer)) {
            client.last = now;
            let (publish, to) = (client.publish, client.real);
            for data in datagrams(data, segment) {
                self.command(HostCommand::UdpReply { publish, to, data: data.to_vec() });
            }
            return None;
        }
        if let Some(stack) = self.udp_judged_elsewhere(guest) {
            return Some(stack);
        }
        let to = match policy::decide(&self.config, peer) {
            Verdict::To(_) if self.expires_here(packet) => return None,
            Verdict::To(_) if self.forbids(now, Protocol::Udp, peer) => {
                self.unreachable(packet, Unreachable::Prohibited);
                return None;
            }
            Verdict::To(to) => to,
            Verdict::Deny(why) => {
                self.counters.denied += 1;
                self.unreachable(packet, why);
                return None;
            }
            Verdict::Dns | Verdict::Ignore => return None,
        };
        if let Some(stack) = self.udp_elsewhere(guest) {
            return Some(stack);
        }
        let key = Key::Udp(guest);
        let id = match self.flows.find(&key) {
            Some(id) => id,
            None => {
                let flow = super::Flow::Udp(Flow { guest, last: now, ttl: None, sent: 0 });
                match self.add_flow(key, flow) {
                    Some(id) => id,
                    None => {
                        self.release_port(guest);
                        return None;
                    }
                }
            }
        };
        self.udp_touch(now, id);
        let ttl = icmp::onward(packet.hop_limit);
        if let Some(super::Flow::Udp(flow)) = self.flows.get_mut(id)
            && std::mem::replace(&mut flow.ttl, ttl) != ttl
        {
            // What follows is not for a command before this one.
            flow.sent = u64::MAX;
            self.command(HostCommand::SetTtl { flow: id, to, ttl, ping: false });
        }
        for data in datagrams(data, segment) {
            self.udp_send(id, to, data);
        }
        None
    }

    /// Adds a datagram to the flow's last command to send if it can, else makes one.
    fn udp_send(&mut self, id: FlowId, to: SocketAddr, data: &[u8]) {
        let Some(super::Flow::Udp(flow)) = self.flows.get_mut(id) else { return };
        // Those that were taken are before the first.
        let index = flow.sent.checked_sub(self.commands_taken);
        let last = index.and_then(|index| self.commands.get_mut(index as usize));
        if last.is_some_and(|last| join(last, id, to, data, &mut self.spare)) {
            return;
        }
        flow.sent = self.commands_taken + self.commands.len() as u64;
        let mut copy = if data.len() < LARGE { Vec::new() } else { self.spare.take() };
        copy.extend_from_slice(data);
        self.command(HostCommand::UdpSend { flow: id, to, data: copy });
    }

    /// Takes the buffer of a command that was carried out, for the next.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.spare.give_back(buffer);
    }

    fn command(&mut self, command: HostCommand) {
        if self.commands.len() < COMMANDS_MAX {
            self.commands.push_back(command);
        } else {
            self.counters.queue_full += 1;
        }
    }

    fn udp_touch(&mut self, now: Duration, id: FlowId) -> Option<SocketAddr> {
        let Some(super::Flow::Udp(flow)) = self.flows.get_mut(id) else { return None };
        flow.last = now;
        let (end, found) = (flow.expires(), flow.guest);
        self.flows.arm(id, end);
        self.flows.touch(id);
        Some(found)
    }

    pub(super) fn udp_received(
        &mut self,
        now: Duration,
        id: FlowId,
        from: SocketAddr,
        data: &[u8],
    ) {
        if self.dns_received(now, id, from, data) {
            return;
        }
        let Some(guest) = self.udp_touch(now, id) else { return };
        let Some(from) = self.udp_shown(guest, from) else { return };
        self.out.push_udp(&self.link, from, guest, data);
    }

    /// The other end of a flow's datagram as the guest knows it.
    fn udp_shown(&self, guest: SocketAddr, host: SocketAddr) -> Option<SocketAddr> {
        let host = SocketAddr::new(host.ip().to_canonical(), host.port());
        let shown = policy::shown(&self.config, host.ip(), guest.ip());
        // Somebody on the host's loopback writes to a socket that was never used
        // to reach it: not to be seen when the loopback is off limits.
        let forbidden = self.config.disable_host_loopback && shown != host.ip();
        (!forbidden).then_some(SocketAddr::new(shown, host.port()))
    }

    pub(super) fn udp_inbound(
        &mut self,
        now: Duration,
        publish: u64,
        guest: SocketAddr,
        from: SocketAddr,
        data: &[u8],
    ) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let ip = policy::shown(&self.config, from.ip(), guest.ip());
        let mut peer = SocketAddr::new(ip, from.port());
        // Two clients may be shown alike; the later gets another port.
        for _ in 0..64 {
            match self.inbound.clients.get(&(guest, peer)) {
                Some(client) if client.real != from || client.publish != publish => {
                    peer.set_port(1024 + (self.random.next() % 64512) as u16);
                }
                _ => break,
            }
        }
        let client = Client { publish, real: from, last: now };
        let known = self.inbound.clients.contains_key(&(guest, peer));
        if !known && self.inbound.clients.len() >= INBOUND_MAX {
            self.counters.table_full += 1;
            return;
        }
        self.inbound.clients.insert((guest, peer), client);
        if let Some((ports, own)) = &self.ports {
            ports.take(guest, *own);
        }
        self.inbound.sweep_at.get_or_insert(now + EXPIRY);
        self.out.push_udp(&self.link, peer, guest, data);
    }

    pub(super) fn udp_unreachable(
        &mut self,
        now: Duration,
        id: FlowId,
        to: SocketAddr,
        why: Unreachable,
    ) {
        if self.dns_failed(now, id) {
            return;
        }
        let Some(super::Flow::Udp(flow)) = self.flows.get(id) else { return };
        let guest = flow.guest;
        let Some(peer) = self.udp_shown(guest, to) else { return };
        // The error quotes the datagram's headers: enough for the guest's kernel
        // to find the socket.
        let mut udp = [0; 8];
        udp[..2].copy_from_slice(&guest.port().to_be_bytes());
        udp[2..4].copy_from_slice(&peer.port().to_be_bytes());
        udp[5] = 8;
        self.quote_unreachable(guest.ip(), peer.ip(), proto::UDP, &udp, why);
    }
}

/// Both ends of a datagram of the guest.
fn ends(packet: &Packet<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let ports = packet.payload.get(..4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((SocketAddr::new(packet.src, port(0)), SocketAddr::new(packet.dst, port(2))))
}

/// Puts a datagram behind those of a command. Gives whether it fits.
fn join(
    last: &mut HostCommand,
    id: FlowId,
    addressee: SocketAddr,
    more: &[u8],
    spare: &mut Spare,
) -> bool {
    let (to, data, segment) = match last {
        HostCommand::UdpSend { flow, to, data } if *flow == id => (*to, data, None),
        HostCommand::UdpSendMany { flow, to, data, segment } if *flow == id => {
            (*to, data, Some(*segment))
        }
        _ => return false,
    };
    let size = segment.unwrap_or(data.len());
    let fits = to == addressee
        && !more.is_empty()
        && more.len() <= size
        // A shorter one is the last.
        && data.len() % size == 0
        && data.len() / size < TOGETHER_MAX
        && data.len() + more.len() <= TOGETHER_BYTES;
    if !fits {
        return false;
    }
    if data.capacity() < TOGETHER_BYTES {
        let mut copy = spare.take();
        copy.extend_from_slice(data);
        *data = copy;
    }
    data.extend_from_slice(more);
    if segment.is_none() {
        let data = std::mem::take(data);
        *last = HostCommand::UdpSendMany { flow: id, to, data, segment: size };
    }
    true
}

/// The datagrams of a frame: one, or as many as segmentation asks for.
fn datagrams(data: &[u8], segment: Option<u16>) -> impl Iterator<Item = &[u8]> {
    let size = segment.map_or(usize::MAX, usize::from);
    let empty = data.is_empty().then_some(data);
    empty.into_iter().chain(data.chunks(size))
}
