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
//! the host sees. Repeated SYNs are ignored. No ring is allocated.
//!
//! *Open*: an endpoint ([`Stream`]) faces the guest. Bytes leave its receive ring
//! only as the host's socket takes them, and the window follows; bytes are read
//! from the host only as its transmit ring has room. So each side's pace holds
//! the other back. Each direction ends on its own: the guest's FIN becomes a
//! shutdown once the ring is empty, the host's end becomes a FIN.
//!
//! A flow is removed when both directions have ended, or one side has reset.
//! TIME-WAIT is not kept: its purpose is to catch old packets of the network, and
//! there is none between the guest and us.
//!
//! So that nothing leaks: a guest that is silent is probed, and given up when it
//! does not answer ([`PROBE_IDLE`], [`PROBE_HALF_CLOSED`], [`SILENCE_MAX`]); the
//! host's kernel probes the other side (SO_KEEPALIVE).
//!
//! The sum of the receive windows is bounded ([`Endpoints`]), because a frame
//! that finds the device's queue (1,000 packets) full is lost and costs the guest
//! a retransmission timeout.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::flow::{FlowId, Key};
use super::frame::{self, Packet, proto};
use super::policy::{self, Unreachable, Verdict};
use super::smol::{Smol, Stream};
use super::{HostCommand, Netstack};
use crate::tap::Offloads;

/// Silence after which a guest with an open connection is probed (RFC 9293
/// section 3.8.4 asks for two hours at least).
const PROBE_IDLE: Duration = Duration::from_secs(7200);
/// The same once one direction has ended.
const PROBE_HALF_CLOSED: Duration = Duration::from_secs(60);
/// How long data or a probe may stay unanswered.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// How long the guest may take for its part of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);
/// How long the host may take to connect, above any kernel's own limit.
const CONNECT_MAX: Duration = Duration::from_secs(200);

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

/// A TCP flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// The other end as the guest sees it.
    peer: SocketAddr,
    state: State,
    /// In [`Netstack::sending`].
    sending: bool,
    /// A `TcpTransfer` is queued.
    transfer: bool,
    /// When the guest was last heard.
    heard: Duration,
    /// When it was last probed.
    probed: Duration,
    /// Since when the flow is in its present state.
    since: Duration,
}

#[derive(Debug)]
enum State {
    Connecting {
        /// The guest's SYN, a whole IP packet.
        syn: Vec<u8>,
        /// Where to try next if this fails (name servers).
        others: VecDeque<SocketAddr>,
    },
    Open {
        stream: Box<Smol>,
        /// The host's peer has ended its direction.
        host_finished: bool,
        /// The endpoint was told so.
        guest_told: bool,
        /// `TcpShutdown` was sent.
        host_shut: bool,
        /// The host's socket is gone: only a RST is left to send.
        aborted: bool,
    },
}

/// Makes endpoints and keeps some for reuse; decides on their size.
#[derive(Debug)]
pub(super) struct Endpoints {
    #[expect(clippy::vec_box, reason = "endpoints move between flows and here as they are")]
    spare: Vec<Vec<Box<Smol>>>,
    used: [usize; SIZES.len()],
    limits: [usize; SIZES.len()],
}

/// Ring sizes in bytes, each way.
const SIZES: [usize; 3] = [1 << 20, 256 << 10, 64 << 10];
const SPARE_MAX: usize = 32;

impl Endpoints {
    pub(super) fn new(offloads: Offloads) -> Endpoints {
        // Without segmentation every 1,448 bytes of window may be a packet in the
        // device's queue of 1,000; with it one packet carries up to 64 KiB.
        let limits = if offloads.tso4 { [8, 64, usize::MAX] } else { [0, 3, usize::MAX] };
        Endpoints { spare: SIZES.map(|_| Vec::new()).into(), used: [0; SIZES.len()], limits }
    }

    fn take(&mut self, seed: u64) -> Box<Smol> {
        let class = (0..SIZES.len())
            .find(|&class| self.used[class] < self.limits[class])
            .unwrap_or(SIZES.len() - 1);
        self.used[class] += 1;
        self.spare[class].pop().unwrap_or_else(|| Box::new(Smol::new(SIZES[class], seed)))
    }

    /// Whether no endpoint is in use.
    #[cfg(test)]
    pub(super) fn all_back(&self) -> bool {
        self.used.iter().all(|&used| used == 0)
    }

    fn give_back(&mut self, stream: Box<Smol>) {
        if let Some(class) = SIZES.iter().position(|&size| size == stream.ring()) {
            self.used[class] = self.used[class].saturating_sub(1);
            if self.spare[class].len() < SPARE_MAX {
                self.spare[class].push(stream);
            }
        }
    }
}

impl Netstack {
    pub(super) fn handle_tcp(&mut self, now: Duration, packet: &Packet<'_>) {
        let tcp = packet.payload;
        let Some(header) = tcp.get(..20) else {
            self.counters.bad_frames += 1;
            return;
        };
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < 20 || header_len > tcp.len() {
            self.counters.bad_frames += 1;
            return;
        }
        let guest = SocketAddr::new(packet.src, u16::from_be_bytes([header[0], header[1]]));
        let peer = SocketAddr::new(packet.dst, u16::from_be_bytes([header[2], header[3]]));
        let flags = header[13];
        if let Some(id) = self.flows.find(&Key::Tcp(guest, peer)) {
            self.tcp_ingress(now, id, packet, flags);
        } else if flags & (frame::SYN | frame::ACK | frame::RST | frame::FIN) == frame::SYN {
            self.tcp_open(now, guest, peer, packet);
        } else if flags & frame::RST == 0 {
            self.refuse(packet);
        }
    }

    fn tcp_ingress(&mut self, now: Duration, id: FlowId, packet: &Packet<'_>, flags: u8) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        flow.heard = now;
        match &mut flow.state {
            State::Connecting { .. } => {
                if flags & frame::RST != 0 {
                    self.tcp_remove(id, true);
                }
            }
            State::Open { stream, .. } => {
                stream.ingress(now, packet.bytes, &self.link, &mut self.out);
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
        let mut others = VecDeque::new();
        let to = match policy::decide(&self.config, peer) {
            Verdict::To(to) => to,
            Verdict::Dns => {
                others.extend(self.config.name_servers.iter().copied());
                match others.pop_front() {
                    Some(to) => to,
                    None => return self.refuse(packet),
                }
            }
            Verdict::Deny(why) => {
                self.counters.denied += 1;
                return self.unreachable(packet, why);
            }
            Verdict::Ignore => return,
        };
        let flow = Flow {
            peer,
            state: State::Connecting { syn: packet.bytes.to_vec(), others },
            sending: false,
            transfer: false,
            heard: now,
            probed: Duration::ZERO,
            since: now,
        };
        match self.flows.insert(Key::Tcp(guest, peer), super::Flow::Tcp(flow)) {
            Some(id) => {
                self.flows.arm(id, now + CONNECT_MAX);
                self.commands.push_back(HostCommand::TcpConnect { flow: id, to });
            }
            None => {
                self.counters.table_full += 1;
                self.refuse(packet);
            }
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
        if self.flows.is_full() {
            self.counters.table_full += 1;
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
        let mut stream = self.endpoints.take(self.random.next());
        stream.connect(peer, guest);
        let flow = Flow {
            peer,
            state: State::Open {
                stream,
                host_finished: false,
                guest_told: false,
                host_shut: false,
                aborted: false,
            },
            sending: false,
            transfer: false,
            heard: now,
            probed: Duration::ZERO,
            since: now,
        };
        let id = self.flows.insert(Key::Tcp(guest, peer), super::Flow::Tcp(flow))?;
        self.flows.arm(id, now + HANDSHAKE_MAX);
        self.tcp_settle(id);
        Some(id)
    }

    pub(super) fn tcp_connected(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let State::Connecting { syn, .. } = &mut flow.state else { return };
        let syn = std::mem::take(syn);
        let mut stream = self.endpoints.take(self.random.next());
        stream.accept(flow.peer);
        stream.ingress(now, &syn, &self.link, &mut self.out);
        flow.state = State::Open {
            stream,
            host_finished: false,
            guest_told: false,
            host_shut: false,
            aborted: false,
        };
        flow.since = now;
        self.flows.arm(id, now + HANDSHAKE_MAX);
        self.tcp_settle(id);
    }

    pub(super) fn tcp_failed(&mut self, id: FlowId, why: ConnectError) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        let State::Connecting { syn, others } = &mut flow.state else { return };
        if let Some(to) = others.pop_front() {
            self.commands.push_back(HostCommand::TcpConnect { flow: id, to });
            return;
        }
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
            State::Open { stream, aborted, .. } => {
                *aborted = true;
                stream.abort();
                flow.since = now;
                self.queue_sending(id);
            }
        }
    }

    /// The bytes of the guest that come next for the host's socket, as far as
    /// they lie together; empty when there are none. Report what was taken with
    /// [`Netstack::tcp_sent`], then ask again.
    pub fn tcp_outgoing(&mut self, id: FlowId) -> &[u8] {
        match self.flows.get_mut(id) {
            Some(super::Flow::Tcp(Flow { state: State::Open { stream, .. }, .. })) => {
                stream.received()
            }
            _ => &[],
        }
    }

    /// The host's socket took `count` of the bytes lent by
    /// [`Netstack::tcp_outgoing`].
    pub fn tcp_sent(&mut self, id: FlowId, count: usize) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let State::Open { stream, .. } = &mut flow.state
            && count > 0
        {
            stream.consume(count);
            self.tcp_settle(id);
        }
    }

    /// How much can be read from the host's socket now; 0 also when that would be
    /// only a crumb of what there will soon be room for.
    pub fn tcp_room(&self, id: FlowId) -> usize {
        match self.flows.get(id) {
            Some(super::Flow::Tcp(Flow { state: State::Open { stream, .. }, .. })) => {
                let room = stream.room();
                // Small reads make small segments, for good.
                if room >= (stream.ring() / 2).min(65536) { room } else { 0 }
            }
            _ => 0,
        }
    }

    /// Lets `read` put bytes from the host's socket into free room; it gives how
    /// many. Ask [`Netstack::tcp_room`] first.
    pub fn tcp_fill(&mut self, id: FlowId, read: &mut dyn FnMut(&mut [u8]) -> usize) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id)
            && let State::Open { stream, .. } = &mut flow.state
            && stream.room() > 0
        {
            stream.fill(read);
            self.queue_sending(id);
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
        let State::Open { stream, host_finished, guest_told, host_shut, aborted } = &mut flow.state
        else {
            return;
        };
        let status = stream.status();
        if status.reset {
            return self.tcp_remove(id, true);
        }
        if *aborted {
            return self.queue_sending(id);
        }
        if *host_finished && !*guest_told && stream.finish() {
            *guest_told = true;
        }
        let drained = stream.received().is_empty();
        if status.guest_finished && drained && !*host_shut {
            *host_shut = true;
            self.commands.push_back(HostCommand::TcpShutdown { flow: id });
        }
        let wants = !drained || (!*host_finished && stream.room() > 0);
        if wants && !flow.transfer {
            flow.transfer = true;
            self.commands.push_back(HostCommand::TcpTransfer { flow: id });
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

    /// Builds one frame of the flow if one is due; otherwise sees when one will
    /// be, and whether the flow is over.
    pub(super) fn tcp_send(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        flow.sending = false;
        let State::Open { stream, host_finished, guest_told, host_shut, .. } = &mut flow.state
        else {
            return;
        };
        let mut more = stream.egress(now, &self.link, &mut self.out);
        if !more && *host_finished && !*guest_told && stream.finish() {
            *guest_told = true;
            more = true;
        }
        if more {
            // Others take their turn before this flow's next frame.
            flow.sending = true;
            self.sending.push_back(id);
            return;
        }
        let status = stream.status();
        if status.closed && (*host_shut || status.reset || !status.guest_finished) {
            return self.tcp_remove(id, status.reset);
        }
        if flow.aborted() {
            return self.tcp_remove(id, true);
        }
        let deadline = flow.deadline(now);
        self.flows.arm(id, deadline);
    }

    pub(super) fn tcp_timeout(&mut self, now: Duration, id: FlowId) {
        let Some(super::Flow::Tcp(flow)) = self.flows.get_mut(id) else { return };
        match &mut flow.state {
            State::Connecting { .. } if now >= flow.since + CONNECT_MAX => {
                self.tcp_remove(id, true);
            }
            State::Connecting { .. } => {
                let at = flow.since + CONNECT_MAX;
                self.flows.arm(id, at);
            }
            State::Open { .. } => {
                let dead = now >= flow.dead_at();
                if let State::Open { stream, aborted, .. } = &mut flow.state
                    && dead
                    && !*aborted
                {
                    *aborted = true;
                    stream.abort();
                }
                if !dead && now >= flow.probe_at() {
                    flow.probed = now;
                    if let State::Open { stream, .. } = &mut flow.state {
                        stream.probe(&self.link, &mut self.out);
                    }
                }
                self.queue_sending(id);
            }
        }
    }

    /// Forgets the flow and closes the host's socket.
    fn tcp_remove(&mut self, id: FlowId, reset: bool) {
        if let Some(super::Flow::Tcp(flow)) = self.flows.remove(id)
            && let State::Open { stream, .. } = flow.state
        {
            self.endpoints.give_back(stream);
        }
        self.commands.push_back(HostCommand::Close { flow: id, reset });
    }

    /// Answers a segment that belongs to no connection (RFC 9293 section 3.10.7.1).
    fn refuse(&mut self, packet: &Packet<'_>) {
        let Some(header) = packet.payload.get(..20) else { return };
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let flags = header[13];
        let (seq, ack, answer) = if flags & frame::ACK != 0 {
            (word(8), 0, frame::RST)
        } else {
            let header_len = usize::from(header[12] >> 4) * 4;
            let data = packet.payload.len().saturating_sub(header_len) as u32;
            let syn = u32::from(flags & frame::SYN != 0);
            let fin = u32::from(flags & frame::FIN != 0);
            (0, word(4).wrapping_add(data + syn + fin), frame::RST | frame::ACK)
        };
        let mut tcp = [0_u8; 20];
        tcp[..2].copy_from_slice(&header[2..4]);
        tcp[2..4].copy_from_slice(&header[..2]);
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = answer;
        let sum = frame::pseudo_sum(packet.dst, packet.src, proto::TCP, tcp.len());
        let value = frame::checksum(&tcp, sum);
        tcp[16..18].copy_from_slice(&value.to_be_bytes());
        self.out.push_ip(&self.link, packet.dst, packet.src, proto::TCP, &tcp);
    }
}

impl Flow {
    fn aborted(&self) -> bool {
        matches!(self.state, State::Open { aborted: true, .. })
    }

    /// When the guest is given up unless it is heard.
    fn dead_at(&self) -> Duration {
        let State::Open { stream, host_finished, host_shut, .. } = &self.state else {
            return self.since + CONNECT_MAX;
        };
        let status = stream.status();
        if status.closed {
            // The guest is done; what it sent waits for the host's peer, whose
            // patience is the host kernel's affair.
            self.heard.max(self.since) + PROBE_IDLE
        } else if status.opening {
            self.since + HANDSHAKE_MAX
        } else if stream.unacknowledged() {
            self.heard.max(self.since) + SILENCE_MAX
        } else if *host_finished || *host_shut {
            self.heard.max(self.since) + PROBE_HALF_CLOSED + SILENCE_MAX
        } else {
            self.heard.max(self.since) + PROBE_IDLE + SILENCE_MAX
        }
    }

    /// When a silent guest is asked whether it lives.
    fn probe_at(&self) -> Duration {
        let State::Open { stream, host_finished, host_shut, .. } = &self.state else {
            return Duration::MAX;
        };
        let status = stream.status();
        if status.opening || status.closed || stream.unacknowledged() {
            return Duration::MAX;
        }
        let quiet = self.heard.max(self.since);
        if self.probed > quiet {
            self.probed + PROBE_HALF_CLOSED
        } else if *host_finished || *host_shut {
            quiet + PROBE_HALF_CLOSED
        } else {
            quiet + PROBE_IDLE
        }
    }

    fn deadline(&mut self, now: Duration) -> Duration {
        let dead = self.dead_at().min(self.probe_at());
        match &mut self.state {
            State::Open { stream, .. } => stream.deadline(now).map_or(dead, |at| at.min(dead)),
            State::Connecting { .. } => dead,
        }
    }
}
