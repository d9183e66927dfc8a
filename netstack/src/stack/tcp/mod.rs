//! TCP flows: one connection with the guest, one socket of the host.
//!
//! # Theory of operation
//!
//! ```text
//! guest's SYN ─► Connecting ── host connected ──► Open ─► gone
//!                    └── host failed: RST, ICMP error or silence
//! host's accept ─► Open (handshake with the guest under way) ─► gone
//! ```
//!
//! *Connecting*: the SYN is kept and not answered, so that the guest sees what
//! the host sees. Repeated SYNs are ignored. No buffer is allocated.
//!
//! *Open*: an [`Endpoint`] faces the guest. Bytes leave its queue only as the
//! host's socket takes them, and the window follows; bytes are read from the host
//! only as the guest's window has room. So each side's pace holds the other back.
//! Each direction ends on its own: the guest's FIN becomes a shutdown once the
//! queue is empty, the host's end becomes a FIN.
//!
//! A flow is removed when both directions have ended, or one side has reset. What the
//! guest has sent before it resets is offered to the host's socket once more: a server
//! that answers and closes without having read everything resets, and its client must
//! see the answer, as it does without us.
//!
//! TIME-WAIT is not kept: its purpose is to catch old packets of the network, and
//! there is none between the guest and us.
//!
//! So that nothing leaks: a guest that is silent is probed, and given up when it
//! does not answer ([`flow`]); the
//! host's kernel probes the other side (SO_KEEPALIVE).
//!
//! What all connections together may hold is decided in [`memory`].

pub(super) mod endpoint;
mod flow;
pub(super) mod memory;
mod receive;
mod rtt;
pub(super) mod segment;
mod send;
pub(super) mod seq;

use std::hash::BuildHasher as _;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::time::Duration;

use super::batch::Batch;
use super::buffer::Parts;
use super::egress::Protocol;
use super::flow::{FlowId, Key};
use super::frame::{self, Packet, proto};
use super::policy::{self, Unreachable, Verdict};
use super::services::Session;
use super::{HostCommand, Netstack};
use endpoint::{Endpoint, Limits, Outgoing};
pub(super) use flow::Flow;
use flow::{CONNECT_MAX, HANDSHAKE_MAX, State, without_data};
use segment::{HEADER_LEN, HEADER_MAX, Header, Segment};
use seq::Seq;

/// Why the host has no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// Somebody answered with a reset.
    Refused,
    /// The host knows no way.
    Unreachable(Unreachable),
    /// Nobody answered.
    TimedOut,
}

/// Shift of our windows: 128 bytes' steps, and 8 MiB at most.
const SCALE: u8 = 7;
/// Payload of a segment with offload: IPv4 counts both headers in its 16 bits.
const LONGEST: usize = 65535 - 60;

impl Netstack {
    pub(super) fn handle_tcp(&mut self, now: Duration, batch: &Batch, packet: &Packet<'_>) {
        let Some(segment) = Segment::parse(packet.payload) else {
            self.counters.bad_frames += 1;
            return;
        };
        let (guest, peer) = ends(packet);
        if let Some(id) = self.flows.find(&Key::Tcp(guest, peer)) {
            self.tcp_ingress(now, id, batch, &segment);
        } else if segment.header.flags & (frame::SYN | frame::ACK | frame::RST | frame::FIN)
            == frame::SYN
        {
            self.tcp_open(now, guest, peer, packet);
        } else {
            self.refuse(packet);
        }
    }

    /// Whether a segment belongs to a connection of this stack, or opens one.
    pub(super) fn tcp_is_here(&self, packet: &Packet<'_>) -> bool {
        let Some(segment) = Segment::parse(packet.payload) else { return true };
        let opens = segment.has(frame::SYN) && !segment.has(frame::ACK);
        let (guest, peer) = ends(packet);
        opens || self.flows.find(&Key::Tcp(guest, peer)).is_some()
    }

    fn tcp_ingress(&mut self, now: Duration, id: FlowId, batch: &Batch, segment: &Segment<'_>) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        flow.heard = now;
        match &mut flow.state {
            State::Connecting { .. } => {
                if segment.has(frame::RST) {
                    self.tcp_remove(id, true);
                }
            }
            State::Open { endpoint, .. } => {
                endpoint.handle(now, segment, batch, &mut self.memory.pool);
                if endpoint.has_fresh() && !flow.fresh {
                    flow.fresh = true;
                    self.unsettled.push(id);
                }
                self.tcp_settle(id);
            }
        }
    }

    /// A SYN that belongs to no flow.
    fn tcp_open(
        &mut self,
        now: Duration,
        guest: SocketAddr,
        peer: SocketAddr,
        packet: &Packet<'_>,
    ) {
        let to = match policy::decide(&self.config, peer) {
            // An ICMP error, not a reset: Linux ends connect(2) at once with EHOSTUNREACH
            // (IPv4) or EACCES (IPv6), which nobody takes for a closed port.
            Verdict::To(_) if self.forbids(now, Protocol::Tcp, peer) => {
                return self.unreachable(packet, Unreachable::Prohibited);
            }
            Verdict::To(to) => Some(to),
            Verdict::Dns => None,
            Verdict::Deny(why) => {
                self.counters.denied += 1;
                return self.unreachable(packet, why);
            }
            Verdict::Ignore => return,
        };
        let state = State::Connecting { syn: without_data(packet) };
        let mut flow = Flow::new(now, guest, peer, state);
        flow.session = to.is_none().then(Box::default);
        match self.add_flow(Key::Tcp(guest, peer), super::Flow::Tcp(flow)) {
            Some(id) => match to {
                Some(to) => {
                    self.flows.arm(id, now + CONNECT_MAX);
                    self.commands.push_back(HostCommand::TcpConnect { flow: id, to });
                }
                None => self.tcp_connected(now, id),
            },
            None => self.refuse(packet),
        }
    }

    /// Opens a connection to the guest for one that the host accepted from
    /// `client`, on a port that leads to `guest`. None when the table is full:
    /// close the socket. The guest sees the client's own address where it can
    /// (see [`policy::shown`]), and the gateway's otherwise.
    pub fn tcp_accepted(
        &mut self,
        now: Duration,
        guest: SocketAddr,
        client: SocketAddr,
    ) -> Option<FlowId> {
        if guest.port() == 0 || guest.ip().is_unspecified() {
            return None;
        }
        let shown = policy::shown(&self.config, client.ip(), guest.ip());
        // Keep the client's port where nobody else has it.
        let mut peer = SocketAddr::new(shown, client.port());
        let mut tries = 0;
        while peer.port() == 0 || self.flows.find(&Key::Tcp(guest, peer)).is_some() {
            tries += 1;
            if tries > 64 {
                self.counters.table_full += 1;
                return None;
            }
            peer.set_port(1024 + (self.random.next() % 64512) as u16);
        }
        if self.flows.is_full() && self.flows.oldest().is_none() {
            self.counters.table_full += 1;
            return None;
        }
        let limits = self.tcp_limits(guest);
        let endpoint = Box::new(Endpoint::connect(self.iss(now, guest, peer), limits));
        let flow = Flow::new(now, guest, peer, State::open(endpoint));
        let id = self.add_flow(Key::Tcp(guest, peer), super::Flow::Tcp(flow))?;
        self.flows.arm(id, now + HANDSHAKE_MAX);
        self.tcp_settle(id);
        Some(id)
    }

    pub(super) fn tcp_connected(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let State::Connecting { syn } = &mut flow.state else { return };
        let syn = std::mem::take(syn);
        let (guest, peer) = (flow.guest, flow.peer);
        let packet = Packet::parse(&syn).expect("it was parsed when it came");
        let segment = Segment::parse(packet.payload).expect("it was parsed when it came");
        let limits = self.tcp_limits(guest);
        let endpoint = Box::new(Endpoint::accept(self.iss(now, guest, peer), limits, &segment));
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        flow.state = State::open(endpoint);
        flow.since = now;
        self.flows.arm(id, now + HANDSHAKE_MAX);
        self.tcp_settle(id);
    }

    pub(super) fn tcp_failed(&mut self, id: FlowId, why: ConnectError) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let State::Connecting { syn } = &mut flow.state else { return };
        let syn = std::mem::take(syn);
        self.flows.remove(id);
        let Some(packet) = Packet::parse(&syn) else { return };
        match why {
            ConnectError::Refused => self.refuse(&packet),
            ConnectError::Unreachable(why) => self.unreachable(&packet, why),
            // The guest's own patience decides.
            ConnectError::TimedOut => {}
        }
    }

    pub(super) fn tcp_finished(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        if let State::Open { host_finished, .. } = &mut flow.state {
            *host_finished = true;
            flow.since = now;
            self.tcp_settle(id);
        }
    }

    pub(super) fn tcp_reset(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        match &mut flow.state {
            State::Connecting { .. } => self.tcp_failed(id, ConnectError::Refused),
            State::Open { ending: true, .. } => {}
            State::Open { endpoint, aborted, .. } => {
                *aborted = true;
                endpoint.abort();
                flow.since = now;
                self.queue_sending(id);
            }
        }
    }

    /// The bytes of the guest that come next for the host's socket; empty when there
    /// are none. Report what was taken with [`Netstack::tcp_sent`], then ask again.
    pub fn tcp_outgoing(&self, id: FlowId) -> Parts<'_> {
        let mut parts = Parts::new();
        if let Some(super::Flow::Tcp(flow)) = self.flows.get(id)
            && let State::Open { endpoint, .. } = &flow.state
        {
            endpoint.waiting(&self.batch, &mut parts);
        } else {
            parts.push(self.dns_outgoing(id));
        }
        parts
    }

    /// The host's socket took `count` of the bytes lent by
    /// [`Netstack::tcp_outgoing`].
    pub fn tcp_sent(&mut self, id: FlowId, count: usize) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let State::Open { endpoint, .. } = &mut flow.state
            && count > 0
        {
            endpoint.consume(count, &mut self.memory.pool);
            self.memory.widen(endpoint);
            self.tcp_settle(id);
        } else {
            self.dns_sent(id, count);
        }
    }

    /// The batch of frames ends: what the host has not taken is copied.
    pub(super) fn tcp_end_batch(&mut self) {
        for id in self.unsettled.drain(..) {
            if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
                && let State::Open { endpoint, .. } = &mut flow.state
            {
                flow.fresh = false;
                endpoint.settle(&self.batch, &mut self.memory.pool);
            }
        }
    }

    /// How much can be read from the host's socket now; 0 also when that would be
    /// only a crumb of what there will soon be room for.
    pub fn tcp_room(&self, id: FlowId) -> usize {
        match self.flows.get(id) {
            Some(super::Flow::Tcp(Flow { state: State::Open { endpoint, .. }, .. })) => {
                self.memory.room(endpoint)
            }
            _ => self.dns_room(id),
        }
    }

    /// Lets `read` put bytes from the host's socket into free room; it gives how
    /// many. Ask [`Netstack::tcp_room`] first.
    pub fn tcp_fill(&mut self, id: FlowId, read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> usize) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let State::Open { endpoint, .. } = &mut flow.state
        {
            let room = self.memory.room(endpoint);
            if room > 0 {
                endpoint.fill(room, &mut self.memory.pool, read);
                self.queue_sending(id);
            }
        } else {
            self.dns_fill(id, read);
        }
    }

    pub(super) fn tcp_transfer_taken(&mut self, id: FlowId) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) {
            flow.transfer = false;
        }
    }

    /// Draws the conclusions from a change of a flow.
    fn tcp_settle(&mut self, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let State::Open { endpoint, host_finished, host_shut, aborted, ending } = &mut flow.state
        else {
            return;
        };
        let status = endpoint.status();
        if *ending {
            return;
        }
        if status.reset {
            if endpoint.is_drained() || flow.session.is_some() {
                return self.tcp_remove(id, true);
            }
            *ending = true;
            if !flow.transfer {
                flow.transfer = true;
                self.commands.push_back(HostCommand::TcpTransfer { flow: id });
            }
            self.commands.push_back(HostCommand::Close { flow: id, reset: true });
            return;
        }
        if *aborted {
            return self.queue_sending(id);
        }
        if *host_finished {
            endpoint.finish();
        }
        let drained = endpoint.is_drained();
        if flow.session.is_some() {
            self.go_on_locally(id);
            return self.queue_sending(id);
        }
        if status.guest_finished && drained && !*host_shut {
            *host_shut = true;
            // When both have ended the socket is closed at once.
            if !(status.closed && *host_finished) {
                self.commands.push_back(HostCommand::TcpShutdown { flow: id });
            }
        }
        let wants = !drained || (!*host_finished && self.memory.room(endpoint) > 0);
        if wants && !flow.transfer {
            flow.transfer = true;
            self.commands.push_back(HostCommand::TcpTransfer { flow: id });
        }
        self.queue_sending(id);
    }

    /// What is known of the guest's connection to the name server, if it is one.
    pub(super) fn tcp_session(&mut self, id: FlowId) -> Option<&mut Session> {
        match self.flows.get_mut(id)? {
            super::Flow::Tcp(flow) => flow.session.as_deref_mut(),
            _ => None,
        }
    }

    /// Moves bytes of the guest into the session. Gives whether there were any.
    pub(super) fn tcp_take(&mut self, id: FlowId) -> bool {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return false };
        let (Some(session), State::Open { endpoint, .. }) = (&mut flow.session, &mut flow.state)
        else {
            return false;
        };
        let mut parts = Parts::new();
        endpoint.waiting(&self.batch, &mut parts);
        let mut count = 0;
        for part in parts.as_slices() {
            let fits = part.len().min(session.room());
            session.put(&part[..fits]);
            count += fits;
        }
        endpoint.consume(count, &mut self.memory.pool);
        count > 0
    }

    /// Moves bytes of the session to the guest, and ends the connection when the guest
    /// has and nothing is left to answer.
    pub(super) fn tcp_serve(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let (Some(session), State::Open { endpoint, host_finished, host_shut, .. }) =
            (&mut flow.session, &mut flow.state)
        else {
            return;
        };
        let output = session.output();
        while !output.is_empty() {
            let room = self.memory.room(endpoint).min(output.len());
            if room == 0 {
                break;
            }
            endpoint.fill(room, &mut self.memory.pool, &mut |parts| {
                let mut count = 0;
                for part in parts {
                    let fits = part.len().min(output.len());
                    for (to, from) in part.iter_mut().zip(output.drain(..fits)) {
                        *to = from;
                    }
                    count += fits;
                }
                count
            });
        }
        if endpoint.status().guest_finished && endpoint.is_drained() && session.is_done() {
            if !*host_finished {
                flow.since = now;
            }
            (*host_finished, *host_shut) = (true, true);
            endpoint.finish();
        }
        self.queue_sending(id);
    }

    fn queue_sending(&mut self, id: FlowId) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
            && !flow.sending
        {
            flow.sending = true;
            self.sending.push_back(id);
        }
    }

    /// The flow's next segment if one is due; otherwise sees when one will be, and
    /// whether the flow is over.
    pub(super) fn tcp_poll(&mut self, now: Duration, id: FlowId) -> Option<Outgoing> {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return None };
        flow.sending = false;
        let State::Open { endpoint, host_shut, ending: false, .. } = &mut flow.state else {
            return None;
        };
        let sent = endpoint.sent();
        if let Some(segment) = endpoint.poll(now, &mut self.memory.pool) {
            let again = segment.len > 0 && segment.header.seq.before(sent);
            self.counters.retransmitted += u64::from(again);
            // Others take their turn before this flow's next frame.
            flow.sending = true;
            self.sending.push_back(id);
            return Some(segment);
        }
        let status = endpoint.status();
        if status.closed && (*host_shut || status.reset) || flow.aborted() {
            self.tcp_remove(id, status.reset || !status.closed);
        } else {
            let deadline = flow.deadline();
            self.flows.arm(id, deadline);
        }
        None
    }

    /// The frame of a segment that [`Netstack::tcp_poll`] gave.
    pub(super) fn tcp_frame(&mut self, id: FlowId, segment: &Outgoing) -> Option<Parts<'_>> {
        let Some(super::Flow::Tcp(flow)) = self.flows.get(id) else { return None };
        let State::Open { endpoint, .. } = &flow.state else { return None };
        let mut payload = Parts::new();
        endpoint.lend(segment, &mut payload);
        let mut tcp = [0; HEADER_MAX];
        let len = segment.header.write(&mut tcp, flow.peer.port(), flow.guest.port());
        let ends = (flow.peer.ip(), flow.guest.ip());
        self.head.tcp(&self.link, ends, &tcp[..len], &payload, endpoint.mss());
        let mut frame = Parts::new();
        frame.push(self.head.as_bytes());
        for part in payload.as_slices() {
            frame.push_slice(*part);
        }
        Some(frame)
    }

    pub(super) fn tcp_timeout(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let deadline = flow.deadline();
        match &mut flow.state {
            State::Connecting { .. } if now >= flow.since + CONNECT_MAX => {
                self.tcp_remove(id, true);
            }
            State::Connecting { .. } => {
                let at = flow.since + CONNECT_MAX;
                self.flows.arm(id, at);
            }
            // Of a deadline that has moved on meanwhile.
            State::Open { .. } if deadline > now => self.flows.arm(id, deadline),
            State::Open { .. } => {
                let dead = now >= flow.dead_at();
                let probe = !dead && now >= flow.probe_at();
                if probe {
                    flow.probed = now;
                }
                if let State::Open { endpoint, aborted, .. } = &mut flow.state {
                    if dead && !*aborted {
                        *aborted = true;
                        endpoint.abort();
                    }
                    if probe {
                        endpoint.probe();
                    }
                }
                self.queue_sending(id);
            }
        }
    }

    /// Forgets the flow and closes the host's socket.
    fn tcp_remove(&mut self, id: FlowId, reset: bool) {
        if self.tcp_forget(id) {
            return self.dns_forget(id);
        }
        self.commands.push_back(HostCommand::Close { flow: id, reset });
    }

    /// Gives back what a flow holds, if it is there still. Whether it was a
    /// connection to our name server, which has no socket.
    pub(super) fn tcp_forget(&mut self, id: FlowId) -> bool {
        let Some(super::Flow::Tcp(flow)) = self.flows.remove(id) else { return false };
        if let State::Open { endpoint, .. } = flow.state {
            self.memory.give_back(endpoint);
        }
        flow.session.is_some()
    }

    /// Answers a segment that belongs to no connection.
    fn refuse(&mut self, packet: &Packet<'_>) {
        let Some(segment) = Segment::parse(packet.payload) else { return };
        let Some(header) = Header::refusal(&segment) else { return };
        let (guest, peer) = ends(packet);
        let mut tcp = [0; HEADER_MAX];
        let len = header.write(&mut tcp, peer.port(), guest.port());
        debug_assert_eq!(len, HEADER_LEN, "a refusal has no options");
        let sum = frame::pseudo_sum(packet.dst, packet.src, proto::TCP, len);
        let value = frame::checksum(&tcp[..len], sum);
        tcp[16..18].copy_from_slice(&value.to_be_bytes());
        self.out.push_ip(&self.link, packet.dst, packet.src, proto::TCP, &tcp[..len]);
    }

    /// An initial sequence number (RFC 6528): ahead of those of earlier connections
    /// between the same ends, and hard to guess for others.
    fn iss(&self, now: Duration, guest: SocketAddr, peer: SocketAddr) -> Seq {
        let clock = (now.as_micros() / 4) as u32;
        Seq::new(self.secret.hash_one(Key::Tcp(guest, peer)) as u32) + clock
    }

    /// What a new connection of `guest` may do; its window is taken.
    fn tcp_limits(&mut self, guest: SocketAddr) -> Limits {
        let (headers, mss_default) = if guest.is_ipv6() { (60, 1220) } else { (40, 536) };
        let mss = self.link.mtu.saturating_sub(headers).min(65535) as u16;
        let longest = if self.link.offloads.vnet { LONGEST } else { usize::from(mss) };
        Limits { mss, mss_default, longest, window: self.memory.window(), scale: SCALE }
    }
}

/// Both ends of a segment of the guest, which has been parsed.
fn ends(packet: &Packet<'_>) -> (SocketAddr, SocketAddr) {
    let port = |at: usize| u16::from_be_bytes([packet.payload[at], packet.payload[at + 1]]);
    (SocketAddr::new(packet.src, port(0)), SocketAddr::new(packet.dst, port(2)))
}
