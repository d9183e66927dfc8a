//! The network stack: frames of the guest on one side, commands to and events
//! from host sockets on the other. Pure: no file descriptor, no clock, no log.
//!
//! # Theory of operation
//!
//! Bytes in, bytes out. A turn of the driver is:
//!
//! 1. a batch of frames is read from the device, each into
//!    [`Netstack::frame_room`] and then given to [`Netstack::handle_frame`],
//! 2. [`Netstack::poll_host`] until None, executing each command; what comes of
//!    it goes into [`Netstack::handle_host`],
//! 3. [`Netstack::end_batch`],
//! 4. [`Netstack::poll_frame`] until None, writing each frame to the device,
//! 5. [`Netstack::poll_timeout`] says when to call [`Netstack::handle_timeout`];
//!    None means that only input can change anything.
//!
//! The bytes of TCP connections are not in commands and events: they are lent in
//! place. The guest's go from the frames they came in to the host's socket
//! ([`Netstack::tcp_outgoing`]); the host's are read into chunks
//! ([`Netstack::tcp_fill`]), from which frames lend them until they are acknowledged.
//!
//! Every queue has a bound. TCP frames are built when they are asked for and do
//! not queue. Replies and datagrams queue in [`outbox::Outbox`]; datagrams beyond
//! its bound are dropped and counted, as a network may.
//!
//! A device may have several queues, with a stack each. One is the main one; the
//! others ([`Netstack::set_side`]) have connections and UDP ports that the guest uses
//! of its own accord, and give all other frames back for it: the device keeps a
//! connection to its queue, but knows nothing of services and fragments, nor, after a
//! silence, of connections that we opened. A UDP port is one stack's whatever queues
//! its datagrams come through ([`ports`]).
//!
//! Time is a [`Duration`] since a moment of the driver's choice and never goes
//! backwards.

pub mod arp_ndp;
mod batch;
mod buffer;
pub mod dhcp;
pub mod dns;
pub mod egress;
mod exchange;
pub mod flow;
pub mod frame;
mod icmp;
mod outbox;
pub mod policy;
pub mod ports;
pub mod ra;
mod reassembly;
pub mod report;
mod services;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, MTU_MAX};
use crate::tap::Offloads;

use batch::Batch;
pub use buffer::Parts;
use egress::{Egress, Protocol};
pub use exchange::{HostCommand, HostEvent};
pub use flow::FlowId;
use flow::FlowTable;
use frame::{Frame, Link, Mac, Packet, Payload, proto};
use outbox::Outbox;
use ports::Ports;
use reassembly::Reassembly;
pub use tcp::ConnectError;
pub use udp::TOGETHER_BYTES;

/// Flows at most, of all kinds: each costs the host a socket.
const FLOWS_MAX: usize = 16384;

/// A frame for another of several stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere<'a> {
    /// Which; 0 is the main one.
    pub stack: usize,
    /// The frame.
    pub frame: &'a [u8],
}

/// What was dropped or refused, counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames that were malformed or of no known kind.
    pub bad_frames: u64,
    /// Packets the policy refused.
    pub denied: u64,
    /// Flows refused because the table was full.
    pub table_full: u64,
    /// Flows of datagrams that ended to make room for another.
    pub evicted: u64,
    /// Frames dropped because a queue was full.
    pub queue_full: u64,
    /// TCP segments with data sent to the guest again.
    pub retransmitted: u64,
}

/// One flow of any kind.
#[derive(Debug)]
enum Flow {
    Tcp(tcp::Flow),
    Udp(udp::Flow),
    Echo(icmp::Flow),
    Dns(services::DnsFlow),
}

/// The whole stack of one guest.
#[derive(Debug)]
pub struct Netstack {
    config: Config,
    link: Link,
    flows: FlowTable<Flow>,
    out: Outbox,
    commands: VecDeque<HostCommand>,
    /// Commands taken so far: what names a command is its number.
    commands_taken: u64,
    spare: udp::Spare,
    batch: Batch,
    side: bool,
    /// The UDP ports of all stacks of the device, and which stack this is.
    ports: Option<(Arc<Ports>, usize)>,
    /// A frame for another stack that did not come in one piece.
    rebuilt: Vec<u8>,
    /// TCP flows with bytes in the batch, each once.
    unsettled: Vec<FlowId>,
    /// TCP flows that may have a frame to send, each at most once.
    sending: VecDeque<FlowId>,
    reassembly: Reassembly,
    inbound: udp::Inbound,
    memory: tcp::memory::Memory,
    head: frame::Head,
    secret: flow::KeyHash,
    services: services::Services,
    random: Random,
    counters: Counters,
    /// Where the guest may connect to; None allows all that the addresses allow.
    egress: Option<Egress>,
}

impl Netstack {
    /// A stack without flows. `seed` must be unpredictable to the guest's peers:
    /// initial sequence numbers and ports are derived from it.
    pub fn new(config: Config, offloads: Offloads, seed: u64) -> Netstack {
        let mut random = Random(seed);
        let link = Link {
            gateway: config.gateway_mac,
            guest: [0xff; 6],
            // 576 is what IPv4 asks of every link's end (RFC 791).
            mtu: usize::from(config.mtu.clamp(576, MTU_MAX)),
            offloads,
        };
        Netstack {
            link,
            flows: FlowTable::new(FLOWS_MAX, random.next()),
            out: Outbox::new(random.next() as u32),
            commands: VecDeque::new(),
            commands_taken: 0,
            spare: udp::Spare::default(),
            batch: Batch::new(),
            side: false,
            ports: None,
            rebuilt: Vec::new(),
            unsettled: Vec::new(),
            sending: VecDeque::new(),
            reassembly: Reassembly::default(),
            inbound: udp::Inbound::default(),
            memory: tcp::memory::Memory::new(offloads),
            head: frame::Head::new(),
            secret: flow::KeyHash::new(random.next()),
            services: services::Services::new(&config, random.next()),
            random,
            counters: Counters::default(),
            egress: None,
            config,
        }
    }

    /// Tells the guest's Ethernet address. Otherwise it is learnt from its first
    /// frame, and frames go to all until then.
    pub fn set_guest_mac(&mut self, mac: Mac) {
        self.link.guest = mac;
    }

    /// Makes this the stack `index` of `count`, of which the main one is 0, each with
    /// its share of `flows`, which are [`FLOWS_MAX`] at most, of memory and of IP
    /// identifications. Call before the first frame.
    pub fn set_share(&mut self, index: usize, count: usize, flows: usize) {
        self.flows.set_limit((flows.min(FLOWS_MAX) / count.max(1)).max(1));
        self.memory.share(count.max(1));
        self.out.share_ids(index, count);
    }

    /// Makes this the stack `index` of several, of which the main one is 0. Call before
    /// the first frame.
    pub fn share_ports(&mut self, ports: Arc<Ports>, index: usize) {
        self.ports = Some((ports, index));
    }

    /// Makes this one of several stacks that is not the main one.
    pub fn set_side(&mut self) {
        self.side = true;
        self.services.be_silent();
    }

    /// Puts a policy in force, shared with the guest's other stacks.
    pub fn set_egress(&mut self, egress: Egress) {
        self.egress = Some(egress);
    }

    /// Whether the policy forbids the guest to send to `to`.
    fn forbids(&mut self, now: Duration, protocol: Protocol, to: SocketAddr) -> bool {
        let forbidden =
            self.egress.as_ref().is_some_and(|egress| !egress.allows(now, protocol, to));
        self.counters.denied += u64::from(forbidden);
        forbidden
    }

    /// What the stack was configured with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of flows of all kinds.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// What was dropped or refused so far.
    pub fn counters(&self) -> Counters {
        let queue_full = self.counters.queue_full + self.out.dropped;
        Counters { queue_full, ..self.counters }
    }

    /// Counts frames that were for this stack and were lost on their way from another
    /// queue's.
    pub fn count_lost(&mut self, frames: u64) {
        self.counters.queue_full += frames;
    }

    /// Where the next frame is to be read to: room for one of [`frame::FRAME_MAX`]
    /// bytes, or none when the batch is full.
    pub fn frame_room(&mut self) -> &mut [u8] {
        self.batch.room(self.unsettled.len())
    }

    /// Takes the frame of `len` bytes that was put into [`Netstack::frame_room`]:
    /// virtio-net header (when `Offloads::vnet`) and Ethernet frame. Bad frames are
    /// counted and dropped. One of several stacks gives the frames back that are not
    /// for it.
    ///
    /// Call [`Netstack::poll_host`], [`Netstack::end_batch`] and
    /// [`Netstack::poll_frame`] after a batch.
    pub fn handle_frame(&mut self, now: Duration, len: usize) -> Option<Elsewhere<'_>> {
        let place = self.batch.add(len);
        // Moved out for as long as the frame is looked at, and back.
        let batch = std::mem::replace(&mut self.batch, Batch::none());
        let stack = self.parse_frame(now, &batch, batch.frame(place.clone()));
        self.batch = batch;
        let stack = stack?;
        let frame = if self.rebuilt.is_empty() { self.batch.frame(place) } else { &self.rebuilt };
        Some(Elsewhere { stack, frame })
    }

    /// Forgets the frames of the batch. Bytes that the host's sockets have not taken
    /// from them are copied.
    pub fn end_batch(&mut self) {
        self.tcp_end_batch();
        self.batch.clear();
    }

    /// Which other stack the frame is for.
    fn parse_frame(&mut self, now: Duration, batch: &Batch, bytes: &[u8]) -> Option<usize> {
        self.rebuilt.clear();
        let Some(frame) = Frame::parse(bytes, self.link.offloads.vnet) else {
            self.counters.bad_frames += 1;
            return None;
        };
        // Never a group address as the source (IEEE 802).
        if frame.source[0] & 1 == 0 {
            self.link.guest = frame.source;
        }
        if self.side && !self.is_for_side(&frame) {
            return Some(0);
        }
        match frame.payload {
            Payload::Arp(packet) => self.handle_arp(packet),
            Payload::Ip(packet) if packet.fragment.is_some() => {
                let payload = self.reassembly.add(now, &packet)?;
                let whole = Packet { payload: &payload, fragment: None, ..packet };
                // A reassembled TCP segment would need its header rebuilt; TCP
                // never sends fragments over its own link.
                if whole.proto != proto::TCP {
                    let stack = self.handle_packet(now, batch, &whole, None)?;
                    self.rebuilt = self.link.frame_of_guest(&whole);
                    return Some(stack);
                }
            }
            Payload::Ip(packet) => {
                return self.handle_packet(now, batch, &packet, frame.udp_segment);
            }
        }
        None
    }

    /// Segments of connections that are here, those that open one, and datagrams that
    /// go to the host.
    fn is_for_side(&self, frame: &Frame<'_>) -> bool {
        match frame.payload {
            Payload::Ip(packet) if packet.fragment.is_none() => match packet.proto {
                proto::TCP => self.tcp_is_here(&packet),
                proto::UDP => self.udp_is_forwarded(&packet),
                _ => false,
            },
            _ => false,
        }
    }

    /// Which other stack the packet is for.
    fn handle_packet(
        &mut self,
        now: Duration,
        batch: &Batch,
        packet: &Packet<'_>,
        segment: Option<u16>,
    ) -> Option<usize> {
        match packet.proto {
            proto::TCP => self.handle_tcp(now, batch, packet),
            proto::UDP => return self.handle_udp(now, packet, segment),
            proto::ICMP if packet.src.is_ipv4() => self.handle_icmp(now, packet),
            proto::ICMPV6 if packet.src.is_ipv6() => self.handle_icmp(now, packet),
            _ => self.counters.bad_frames += 1,
        }
        None
    }

    /// Takes a result of the host. Call [`Netstack::poll_frame`] and
    /// [`Netstack::poll_host`] afterwards.
    pub fn handle_host(&mut self, now: Duration, event: HostEvent<'_>) {
        match event {
            HostEvent::TcpConnected { flow } => {
                if !self.dns_connected(flow) {
                    self.tcp_connected(now, flow);
                }
            }
            HostEvent::TcpFailed { flow, .. }
            | HostEvent::TcpFinished { flow }
            | HostEvent::TcpReset { flow }
                if self.dns_failed(now, flow) => {}
            HostEvent::TcpFailed { flow, why } => self.tcp_failed(flow, why),
            HostEvent::TcpFinished { flow } => self.tcp_finished(now, flow),
            HostEvent::TcpReset { flow } => self.tcp_reset(now, flow),
            HostEvent::UdpReceived { flow, from, data } => {
                self.udp_received(now, flow, from, data);
            }
            HostEvent::UdpInbound { publish, guest, from, data } => {
                self.udp_inbound(now, publish, guest, from, data);
            }
            HostEvent::UdpUnreachable { flow, to, why } => {
                self.udp_unreachable(now, flow, to, why);
            }
            HostEvent::EchoReply { flow, from, seq, data } => {
                self.echo_reply(now, flow, from, seq, data);
            }
            HostEvent::EchoUnreachable { flow, to, seq, why } => {
                self.echo_unreachable(flow, to, seq, why);
            }
        }
    }

    /// Whatever was waiting for a moment that has come. Call when the time given
    /// by [`Netstack::poll_timeout`] has passed; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(id) = self.flows.expired(now) {
            match self.flows.get(id) {
                Some(Flow::Tcp(_)) => self.tcp_timeout(now, id),
                Some(Flow::Udp(flow)) => {
                    let end = flow.expires();
                    self.expire(now, id, end);
                }
                Some(Flow::Echo(flow)) => {
                    let end = flow.expires();
                    self.expire(now, id, end);
                }
                // The forwarder keeps the time of its queries.
                Some(Flow::Dns(_)) | None => {}
            }
        }
        self.inbound.expire(now);
        self.services_timeout(now);
    }

    fn expire(&mut self, now: Duration, id: FlowId, end: Duration) {
        if end <= now {
            self.end_flow(id);
        } else {
            self.flows.arm(id, end);
        }
    }

    /// Ends a flow of datagrams.
    fn end_flow(&mut self, id: FlowId) {
        if let Some(Flow::Udp(flow)) = self.flows.remove(id) {
            self.release_port(flow.guest());
        }
        self.commands.push_back(HostCommand::Close { flow: id, reset: false });
    }

    /// Adds a flow. Where there is no place for it the flow of datagrams makes room
    /// that was used the longest ago; None when all are connections.
    fn add_flow(&mut self, key: flow::Key, flow: Flow) -> Option<FlowId> {
        if self.flows.is_full()
            && let Some(oldest) = self.flows.oldest()
        {
            self.counters.evicted += 1;
            self.end_flow(oldest);
        }
        let id = self.flows.insert(key, flow);
        self.counters.table_full += u64::from(id.is_none());
        id
    }

    /// The next command, None when there is none. Call after every `handle_…`,
    /// until None.
    pub fn poll_host(&mut self) -> Option<HostCommand> {
        let command = self.commands.pop_front()?;
        self.commands_taken += 1;
        match command {
            HostCommand::TcpTransfer { flow } => self.tcp_transfer_taken(flow),
            HostCommand::Close { flow, .. } => {
                self.tcp_forget(flow);
            }
            _ => {}
        }
        Some(command)
    }

    /// The next frame for the guest, None when there is none: virtio-net header
    /// (when `Offloads::vnet`) and Ethernet frame. Call after every `handle_…`,
    /// until None. A frame the device does not take may be kept and written
    /// later, before the next.
    pub fn poll_frame(&mut self, now: Duration) -> Option<Parts<'_>> {
        self.poll_local(now);
        while self.out.is_empty() {
            let id = self.sending.pop_front()?;
            if let Some(segment) = self.tcp_poll(now, id) {
                return self.tcp_frame(id, &segment);
            }
        }
        let mut parts = Parts::new();
        parts.push(self.out.pop()?);
        Some(parts)
    }

    /// When [`Netstack::handle_timeout`] has something to do, if no input comes
    /// before. Ask after [`Netstack::poll_frame`] gave None.
    pub fn poll_timeout(&mut self) -> Option<Duration> {
        let deadlines =
            [self.flows.next_deadline(), self.inbound.deadline(), self.services.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): seeds for others, not a cipher.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests;
