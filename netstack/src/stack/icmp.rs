//! ICMP and ICMPv6: echo, and the errors that tell the guest why something did
//! not arrive.
//!
//! # Theory of operation
//!
//! Echo requests to the gateway and the DNS address are answered here. Others go
//! out through an unprivileged ping socket, one for each identifier of the guest;
//! where the host's `net.ipv4.ping_group_range` forbids it, the guest is told
//! "administratively prohibited". Errors carry the gateway's address, or that of the
//! router that said so.
//!
//! We are a router: what comes with a time to live of 1 ends here, and what has less
//! than [`TTL_ORDINARY`] leaves with one less. So traceroute sees the gateway, and then
//! the host's own path, as far as the host's kernel tells (IP_RECVERR).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::egress::Protocol;
use super::flow::{FlowId, Key};
use super::frame::{self, Packet, proto};
use super::policy::{self, Unreachable, Verdict};
use super::report::FlowInfo;
use super::{HostCommand, Netstack};

const EXPIRY: Duration = Duration::from_secs(60);

/// From here on a time to live is taken for a default, and the host's is used.
const TTL_ORDINARY: u8 = 64;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// Echo requests with one identifier.
#[derive(Debug)]
pub(super) struct Flow {
    guest: IpAddr,
    ident: u16,
    last: Duration,
    /// What the socket sends with; None is the host's default.
    ttl: Option<u8>,
}

impl Flow {
    pub(super) fn expires(&self) -> Duration {
        self.last + EXPIRY
    }

    pub(super) fn info(&self) -> FlowInfo {
        FlowInfo::open("icmp", (self.guest, self.ident))
    }
}

/// The time to live with which a packet leaves the host; None is the host's default.
pub(super) fn onward(hop_limit: u8) -> Option<u8> {
    (hop_limit < TTL_ORDINARY).then(|| hop_limit.saturating_sub(1).max(1))
}

impl Netstack {
    pub(super) fn handle_icmp(&mut self, now: Duration, packet: &Packet<'_>) {
        let Some((head, data)) = packet.payload.split_at_checked(8) else {
            self.counters.bad_frames += 1;
            return;
        };
        let echo = if packet.src.is_ipv4() { ECHO_REQUEST } else { V6_ECHO_REQUEST };
        if head[0] != echo || head[1] != 0 {
            self.handle_control(packet);
            return;
        }
        let ident = u16::from_be_bytes([head[4], head[5]]);
        let seq = u16::from_be_bytes([head[6], head[7]]);
        if self.is_ours(packet.dst) {
            return self.push_echo_reply(packet.dst, packet.src, ident, seq, data);
        }
        // Any port but 0 and 53 will do: the policy looks at addresses.
        let peer = SocketAddr::new(packet.dst, 7);
        let to = match policy::decide(&self.config, peer) {
            Verdict::To(_) if self.expires_here(packet) => return,
            Verdict::To(_) if self.forbids(now, Protocol::Icmp, peer) => {
                return self.unreachable(packet, Unreachable::Prohibited);
            }
            Verdict::To(to) => to.ip(),
            Verdict::Deny(why) => {
                self.counters.denied += 1;
                return self.unreachable(packet, why);
            }
            Verdict::Dns | Verdict::Ignore => return,
        };
        let key = Key::Echo(SocketAddr::new(packet.src, ident));
        let id = match self.flows.find(&key) {
            Some(id) => id,
            None => {
                let flow = Flow { guest: packet.src, ident, last: now, ttl: None };
                match self.add_flow(key, super::Flow::Echo(flow)) {
                    Some(id) => id,
                    None => return,
                }
            }
        };
        self.echo_touch(now, id);
        let ttl = onward(packet.hop_limit);
        if let Some(super::Flow::Echo(flow)) = self.flows.get_mut(id)
            && std::mem::replace(&mut flow.ttl, ttl) != ttl
        {
            let to = SocketAddr::new(to, 0);
            self.commands.push_back(HostCommand::SetTtl { flow: id, to, ttl, ping: true });
        }
        self.commands.push_back(HostCommand::EchoSend { flow: id, to, seq, data: data.to_vec() });
    }

    /// Whether the packet gets no further than here; then the guest is told.
    pub(super) fn expires_here(&mut self, packet: &Packet<'_>) -> bool {
        let ends = packet.hop_limit <= 1;
        if ends {
            let at = self.config.gateway_for(packet.src);
            self.unreachable(packet, Unreachable::Expired { at });
        }
        ends
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.config.v4.gateway || ip == self.config.v4.dns,
            IpAddr::V6(ip) => {
                let v6 = &self.config.v6;
                ip == v6.gateway || ip == v6.dns || ip == v6.gateway_link_local
            }
        }
    }

    fn echo_touch(&mut self, now: Duration, id: FlowId) -> Option<(IpAddr, u16)> {
        let Some(super::Flow::Echo(flow)) = self.flows.get_mut(id) else { return None };
        flow.last = now;
        let (end, found) = (flow.expires(), (flow.guest, flow.ident));
        self.flows.arm(id, end);
        self.flows.touch(id);
        Some(found)
    }

    pub(super) fn echo_reply(
        &mut self,
        now: Duration,
        id: FlowId,
        from: IpAddr,
        seq: u16,
        data: &[u8],
    ) {
        let Some((guest, ident)) = self.echo_touch(now, id) else { return };
        let from = policy::shown(&self.config, from, guest);
        self.push_echo_reply(from, guest, ident, seq, data);
    }

    pub(super) fn echo_unreachable(&mut self, id: FlowId, to: IpAddr, seq: u16, why: Unreachable) {
        let Some(super::Flow::Echo(flow)) = self.flows.get(id) else { return };
        let (guest, ident) = (flow.guest, flow.ident);
        let to = policy::shown(&self.config, to, guest);
        let v6 = guest.is_ipv6();
        let mut quoted = [0; 8];
        quoted[0] = if v6 { V6_ECHO_REQUEST } else { ECHO_REQUEST };
        quoted[4..6].copy_from_slice(&ident.to_be_bytes());
        quoted[6..8].copy_from_slice(&seq.to_be_bytes());
        let proto = if v6 { proto::ICMPV6 } else { proto::ICMP };
        self.quote_unreachable(guest, to, proto, &quoted, why);
    }

    fn push_echo_reply(&mut self, from: IpAddr, to: IpAddr, ident: u16, seq: u16, data: &[u8]) {
        let mut icmp = Vec::with_capacity(8 + data.len());
        let kind = if to.is_ipv6() { V6_ECHO_REPLY } else { ECHO_REPLY };
        icmp.extend_from_slice(&[kind, 0, 0, 0]);
        icmp.extend_from_slice(&ident.to_be_bytes());
        icmp.extend_from_slice(&seq.to_be_bytes());
        icmp.extend_from_slice(data);
        self.push_icmp(from, to, icmp);
    }

    fn push_icmp(&mut self, from: IpAddr, to: IpAddr, mut icmp: Vec<u8>) {
        let (proto, acc) = if to.is_ipv6() {
            (proto::ICMPV6, frame::pseudo_sum(from, to, proto::ICMPV6, icmp.len()))
        } else {
            (proto::ICMP, 0)
        };
        let value = frame::checksum(&icmp, acc);
        icmp[2..4].copy_from_slice(&value.to_be_bytes());
        self.out.push_ip(&self.link, from, to, proto, &icmp);
    }

    /// Tells the guest that its packet could not be delivered.
    pub(super) fn unreachable(&mut self, packet: &Packet<'_>, why: Unreachable) {
        self.push_unreachable(packet.src, packet.bytes, why);
    }

    /// The same for a packet of which only the ends and the first eight bytes of
    /// the upper layer are known.
    pub(super) fn quote_unreachable(
        &mut self,
        guest: IpAddr,
        peer: IpAddr,
        proto: u8,
        upper: &[u8; 8],
        why: Unreachable,
    ) {
        let ip_len = if guest.is_ipv6() { 40 } else { 20 };
        let mut packet = vec![0; ip_len + upper.len()];
        frame::ip_header(&mut packet, guest, peer, proto, upper.len(), None);
        packet[ip_len..].copy_from_slice(upper);
        self.push_unreachable(guest, &packet, why);
    }

    fn push_unreachable(&mut self, guest: IpAddr, packet: &[u8], why: Unreachable) {
        // As much of the packet as fits the smallest link (RFC 1812 section
        // 4.3.2.3, RFC 4443 section 3.1).
        let v6 = guest.is_ipv6();
        let (kind, code) = match (why, v6) {
            (Unreachable::Net, false) => (3, 0),
            (Unreachable::Host, false) => (3, 1),
            (Unreachable::Port, false) => (3, 3),
            (Unreachable::TooBig { .. }, false) => (3, 4),
            (Unreachable::Prohibited, false) => (3, 13),
            (Unreachable::Expired { .. }, false) => (11, 0),
            (Unreachable::Net, true) => (1, 0),
            (Unreachable::Prohibited, true) => (1, 1),
            (Unreachable::Host, true) => (1, 3),
            (Unreachable::Port, true) => (1, 4),
            (Unreachable::TooBig { .. }, true) => (2, 0),
            (Unreachable::Expired { .. }, true) => (3, 0),
        };
        let room = if v6 { 1280 - 40 - 8 } else { 576 - 20 - 8 };
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        if let Unreachable::TooBig { mtu } = why {
            // In IPv4 the upper half is unused (RFC 1191 section 4).
            let mtu = if v6 { mtu.max(1280) } else { mtu.clamp(68, 65535) };
            icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
        }
        icmp.extend_from_slice(&packet[..packet.len().min(room)]);
        let from = match why {
            Unreachable::Expired { at } => policy::shown(&self.config, at, guest),
            _ => self.config.gateway_for(guest),
        };
        self.push_icmp(from, guest, icmp);
    }
}
