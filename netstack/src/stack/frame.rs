//! Ethernet, IP and virtio-net headers: parsing what the guest sent, building
//! what it gets.
//!
//! # Theory of operation
//!
//! A frame from the guest is `[virtio-net header][Ethernet][IP][payload]`, the
//! first only when the device was opened with IFF_VNET_HDR. Checksums of such
//! frames may be partial (VIRTIO_NET_HDR_F_NEEDS_CSUM) and are never verified:
//! the bytes did not cross a wire. Frames to the guest are built in buffers of
//! one size, taken from and given back to [`Outbox`], so that a segment of 64 KiB
//! costs no allocation and no clearing.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::tap::Offloads;

/// Bytes of the virtio-net header in front of every frame (`struct
/// virtio_net_hdr_mrg_rxbuf`, virtio 1.2 section 5.1.6).
pub const VNET_LEN: usize = 12;
/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Where the IP packet starts in a [`FrameBuf`].
pub const HEAD: usize = VNET_LEN + ETH_LEN;
/// The largest frame either way: both headers and an IP packet of 65,575 bytes
/// (IPv6 header and the largest payload length).
pub const FRAME_MAX: usize = HEAD + 40 + 65535;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// `VIRTIO_NET_HDR_GSO_*` values.
mod gso {
    pub(super) const NONE: u8 = 0;
    pub(super) const TCPV4: u8 = 1;
    pub(super) const TCPV6: u8 = 4;
    pub(super) const UDP_L4: u8 = 5;
    pub(super) const ECN: u8 = 0x80;
}
const NEEDS_CSUM: u8 = 1;

/// A frame of the guest, split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Sender's Ethernet address.
    pub source: Mac,
    /// Size of the datagrams a UDP frame is to be cut into, in bytes of payload
    /// (UDP segmentation offload); None for all others.
    pub udp_segment: Option<u16>,
    /// What the frame carries.
    pub payload: Payload<'a>,
}

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// An ARP packet, without Ethernet header.
    Arp(&'a [u8]),
    /// An IP packet.
    Ip(Packet<'a>),
}

/// An IP packet of either version; extension headers are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Upper-layer protocol.
    pub proto: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// The whole packet, from the first byte of the IP header, without padding.
    pub bytes: &'a [u8],
    /// The upper layer, or a fragment of it.
    pub payload: &'a [u8],
    /// Set when `payload` is only a part.
    pub fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, 16 bits for IPv4.
    pub id: u32,
    /// Offset in the upper layer, in bytes.
    pub offset: usize,
    /// Whether more follow.
    pub more: bool,
}

impl<'a> Frame<'a> {
    /// Splits a frame as read from the device. None when it is malformed or of no
    /// kind a guest's network knows.
    pub fn parse(bytes: &'a [u8], vnet: bool) -> Option<Frame<'a>> {
        let (header, ether) =
            if vnet { bytes.split_at_checked(VNET_LEN)? } else { (&[][..], bytes) };
        let (eth, rest) = ether.split_at_checked(ETH_LEN)?;
        let source: Mac = eth[6..12].try_into().ok()?;
        let udp_segment = match header {
            [] => None,
            h if h[1] & !gso::ECN == gso::UDP_L4 => {
                Some(u16::from_le_bytes([h[4], h[5]])).filter(|size| *size > 0)
            }
            _ => None,
        };
        let payload = match u16::from_be_bytes([eth[12], eth[13]]) {
            ETHERTYPE_ARP => Payload::Arp(rest),
            ETHERTYPE_IPV4 => Payload::Ip(Packet::parse_v4(rest)?),
            ETHERTYPE_IPV6 => Payload::Ip(Packet::parse_v6(rest)?),
            _ => return None,
        };
        Some(Frame { source, udp_segment, payload })
    }
}

impl<'a> Packet<'a> {
    /// Splits an IP packet of either version. None when it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Option<Packet<'a>> {
        match bytes.first()? >> 4 {
            4 => Packet::parse_v4(bytes),
            6 => Packet::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let fixed = bytes.get(..20)?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if fixed[0] >> 4 != 4 || header_len < 20 || total < header_len {
            return None;
        }
        let bytes = bytes.get(..total)?;
        let word = u16::from_be_bytes([fixed[6], fixed[7]]);
        let offset = usize::from(word & 0x1fff) * 8;
        let more = word & 0x2000 != 0;
        let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        Some(Packet {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            proto: fixed[9],
            hop_limit: fixed[8],
            bytes,
            payload: &bytes[header_len..],
            fragment: (more || offset != 0).then_some(Fragment { id, offset, more }),
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let fixed = bytes.get(..40)?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        let total = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let bytes = bytes.get(..total)?;
        let src: [u8; 16] = fixed[8..24].try_into().ok()?;
        let dst: [u8; 16] = fixed[24..40].try_into().ok()?;
        let mut next = fixed[6];
        let mut payload = &bytes[40..];
        let mut fragment = None;
        // Hop-by-hop, destination options and the fragment header; a routing
        // header with segments left is not for us (RFC 8200 section 4.1).
        for _ in 0..8 {
            match next {
                0 | 60 => {
                    let head = payload.get(..8)?;
                    let len = 8 + usize::from(head[1]) * 8;
                    next = head[0];
                    payload = payload.get(len..)?;
                }
                proto::FRAGMENT => {
                    let head = payload.get(..8)?;
                    let word = u16::from_be_bytes([head[2], head[3]]);
                    next = head[0];
                    payload = &payload[8..];
                    let part = Fragment {
                        id: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
                        offset: usize::from(word & 0xfff8),
                        more: word & 1 != 0,
                    };
                    // An atomic fragment is a whole packet (RFC 6946).
                    if part.more || part.offset != 0 {
                        fragment = Some(part);
                        break;
                    }
                }
                _ => break,
            }
        }
        Some(Packet {
            src: IpAddr::V6(Ipv6Addr::from(src)),
            dst: IpAddr::V6(Ipv6Addr::from(dst)),
            proto: next,
            hop_limit: fixed[7],
            bytes,
            payload,
            fragment,
        })
    }
}

/// Sum of big-endian 16-bit words, not folded (RFC 1071).
fn sum(bytes: &[u8], mut acc: u64) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for w in &mut words {
        acc += u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    }
    let mut tail = [0; 4];
    let rest = words.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    acc + u64::from(u32::from_be_bytes(tail))
}

fn fold(mut acc: u64) -> u16 {
    while acc > 0xffff {
        acc = (acc >> 16) + (acc & 0xffff);
    }
    acc as u16
}

/// Internet checksum of `bytes`, with the sum `acc` of what else is covered.
pub fn checksum(bytes: &[u8], acc: u64) -> u16 {
    !fold(sum(bytes, acc))
}

/// Sum over the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC
/// 8200 section 8.1), not folded. `len` in bytes.
pub fn pseudo_sum(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&d.octets(), sum(&s.octets(), 0)),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&d.octets(), sum(&s.octets(), 0)),
        // The callers take both from one packet or one flow.
        _ => 0,
    };
    addresses + u64::from(proto) + len as u64
}

/// How frames to the guest are finished: addresses and what the device does for
/// us.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Our address, the source of every frame.
    pub gateway: Mac,
    /// The guest's address, or broadcast while it is unknown.
    pub guest: Mac,
    /// Largest IP packet without segmentation offload, in bytes.
    pub mtu: usize,
    /// What was granted.
    pub offloads: Offloads,
}

/// One frame to the guest. Room for the virtio-net header is always there; it is
/// skipped when the device has none.
#[derive(Debug)]
pub struct FrameBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameBuf {
    fn new() -> FrameBuf {
        FrameBuf { bytes: vec![0; FRAME_MAX].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The bytes to write to the device.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The IP packet's place, `len` bytes long.
    ///
    /// # Panics
    /// When `len` exceeds the largest IP packet.
    pub fn packet_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[HEAD..HEAD + len]
    }

    fn ethernet(&mut self, link: &Link, ethertype: u16, len: usize) {
        self.bytes[..VNET_LEN].fill(0);
        let eth = &mut self.bytes[VNET_LEN..HEAD];
        eth[..6].copy_from_slice(&link.guest);
        eth[6..12].copy_from_slice(&link.gateway);
        eth[12..].copy_from_slice(&ethertype.to_be_bytes());
        self.start = if link.offloads.vnet { 0 } else { VNET_LEN };
        self.end = HEAD + len;
    }

    /// Writes the link headers for an IP packet of `len` bytes whose upper layer
    /// is complete.
    pub fn finish_ip(&mut self, link: &Link, len: usize) {
        let ethertype = if self.bytes[HEAD] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        self.ethernet(link, ethertype, len);
    }

    /// Completes an IP packet of `len` bytes with TCP in it: checksum (or its
    /// seed), segmentation metadata for segments above `mss`, link headers.
    /// IPv4 packets have no options. Gives the sequence number behind the segment's
    /// SYN and data; FIN is not counted.
    pub fn finish_tcp(&mut self, link: &Link, len: usize, mss: u16) -> u32 {
        let packet = &mut self.bytes[HEAD..HEAD + len];
        let v6 = packet[0] >> 4 == 6;
        let ip_len = if v6 { 40 } else { 20 };
        let (src, dst) = addresses(packet);
        let (_, tcp) = packet.split_at_mut(ip_len);
        let header_len = usize::from(tcp[12] >> 4) * 4;
        let payload_len = tcp.len().saturating_sub(header_len);
        let end = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
            .wrapping_add(payload_len as u32)
            .wrapping_add(u32::from(tcp[13] & SYN != 0));
        if tcp[13] & SYN != 0 {
            let limit = link.mtu.saturating_sub(ip_len + 20).min(usize::from(u16::MAX)) as u16;
            rewrite_mss(&mut tcp[..header_len], |_| limit);
        }
        let pseudo = pseudo_sum(src, dst, proto::TCP, tcp.len());
        tcp[16..18].fill(0);
        let value = if link.offloads.vnet { fold(pseudo) } else { checksum(tcp, pseudo) };
        tcp[16..18].copy_from_slice(&value.to_be_bytes());
        self.finish_ip(link, len);
        if link.offloads.vnet {
            self.vnet(ETH_LEN + ip_len, 16);
            if payload_len > usize::from(mss) {
                self.bytes[1] = if v6 { gso::TCPV6 } else { gso::TCPV4 };
                let all = (ETH_LEN + ip_len + header_len) as u16;
                self.bytes[2..4].copy_from_slice(&all.to_le_bytes());
                self.bytes[4..6].copy_from_slice(&mss.to_le_bytes());
            }
        }
        end
    }

    /// Completes an IP packet of `len` bytes with UDP in it.
    fn finish_udp(&mut self, link: &Link, len: usize) {
        let packet = &mut self.bytes[HEAD..HEAD + len];
        let ip_len = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let (src, dst) = addresses(packet);
        let udp = &mut packet[ip_len..];
        let pseudo = pseudo_sum(src, dst, proto::UDP, udp.len());
        udp[6..8].fill(0);
        let value =
            if link.offloads.vnet { fold(pseudo) } else { udp_checksum(checksum(udp, pseudo)) };
        udp[6..8].copy_from_slice(&value.to_be_bytes());
        self.finish_ip(link, len);
        if link.offloads.vnet {
            self.vnet(ETH_LEN + ip_len, 6);
        }
    }

    fn vnet(&mut self, csum_start: usize, csum_offset: u16) {
        self.bytes[0] = NEEDS_CSUM;
        self.bytes[1] = gso::NONE;
        self.bytes[6..8].copy_from_slice(&(csum_start as u16).to_le_bytes());
        self.bytes[8..10].copy_from_slice(&csum_offset.to_le_bytes());
    }
}

/// Zero means "none" in UDP, and is sent as its other representation (RFC 768).
fn udp_checksum(value: u16) -> u16 {
    if value == 0 { 0xffff } else { value }
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    fn v6(b: &[u8]) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(b);
        IpAddr::V6(octets.into())
    }
    fn v4(b: &[u8]) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3]))
    }
    if packet[0] >> 4 == 6 {
        (v6(&packet[8..24]), v6(&packet[24..40]))
    } else {
        (v4(&packet[12..16]), v4(&packet[16..20]))
    }
}

/// TCP flag bits.
pub const FIN: u8 = 1;
/// Synchronise.
pub const SYN: u8 = 2;
/// Reset.
pub const RST: u8 = 4;
/// Push.
pub const PSH: u8 = 8;
/// Acknowledge.
pub const ACK: u8 = 16;

/// Replaces the value of the MSS option in a TCP header. Gives the old value.
pub fn rewrite_mss(header: &mut [u8], new: impl FnOnce(u16) -> u16) -> Option<u16> {
    let at = option(header, 2, 4)?;
    let old = u16::from_be_bytes([header[at + 2], header[at + 3]]);
    header[at + 2..at + 4].copy_from_slice(&new(old).to_be_bytes());
    Some(old)
}

/// The window scale option of a SYN (RFC 7323), as a shift.
pub fn window_scale(header: &[u8]) -> Option<u8> {
    option(header, 3, 3).map(|at| header[at + 2])
}

/// Where the option of this kind and length starts in a TCP header.
fn option(header: &[u8], kind: u8, len: u8) -> Option<usize> {
    let mut at = 20;
    while at < header.len() {
        match header[at] {
            0 => return None,
            1 => at += 1,
            found => {
                let size = *header.get(at + 1).filter(|size| **size >= 2)?;
                let end = at + usize::from(size);
                if found == kind && size == len && end <= header.len() {
                    return Some(at);
                }
                at = end;
            }
        }
    }
    None
}

/// Frames on their way to the guest, and the buffers they are built in.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<FrameBuf>,
    free: Vec<FrameBuf>,
    lent: Option<FrameBuf>,
    next_id: u32,
    /// Frames not built because the queue was full.
    pub dropped: u64,
}

/// Replies, datagrams and errors that wait at most. TCP data does not queue: it
/// is built when it is asked for.
const QUEUE_MAX: usize = 1024;
const FREE_MAX: usize = 64;

impl Outbox {
    /// An empty one. `seed` starts the IP identification.
    pub fn new(seed: u32) -> Outbox {
        Outbox { queue: VecDeque::new(), free: Vec::new(), lent: None, next_id: seed, dropped: 0 }
    }

    /// A buffer to build a frame in.
    pub fn take(&mut self) -> FrameBuf {
        self.free.pop().unwrap_or_else(FrameBuf::new)
    }

    /// Puts a finished frame at the end of the queue, or drops it when full.
    pub fn push(&mut self, frame: FrameBuf) {
        if self.is_full() {
            self.dropped += 1;
            self.give_back(frame);
        } else {
            self.queue.push_back(frame);
        }
    }

    /// Whether a further frame would be dropped.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_MAX
    }

    fn give_back(&mut self, frame: FrameBuf) {
        if self.free.len() < FREE_MAX {
            self.free.push(frame);
        }
    }

    /// Whether a frame is queued.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lends the first frame out; its buffer is reused at the next call.
    pub fn pop(&mut self) -> Option<&[u8]> {
        if let Some(done) = self.lent.take() {
            self.give_back(done);
        }
        self.lent = self.queue.pop_front();
        self.lent.as_ref().map(FrameBuf::as_bytes)
    }

    /// Queues a complete Ethernet frame (without virtio-net header). Frames too
    /// large for any device are dropped.
    pub fn push_ethernet(&mut self, link: &Link, frame: &[u8]) {
        if frame.len() < ETH_LEN || frame.len() > FRAME_MAX - VNET_LEN {
            self.dropped += 1;
            return;
        }
        let mut buf = self.take();
        buf.bytes[..VNET_LEN].fill(0);
        buf.bytes[VNET_LEN..VNET_LEN + frame.len()].copy_from_slice(frame);
        buf.start = if link.offloads.vnet { 0 } else { VNET_LEN };
        buf.end = VNET_LEN + frame.len();
        self.push(buf);
    }

    /// Queues an IP packet with `upper` as its payload, in fragments where the
    /// MTU asks for it. The upper layer's checksum is complete, except UDP's in
    /// an unfragmented packet, which is set here.
    pub fn push_ip(&mut self, link: &Link, src: IpAddr, dst: IpAddr, proto: u8, upper: &[u8]) {
        let ip_len = if src.is_ipv6() { 40 } else { 20 };
        if upper.len() > upper_max(src) {
            self.dropped += 1;
            return;
        }
        if ip_len + upper.len() <= link.mtu {
            let len = ip_len + upper.len();
            let mut buf = self.take();
            let packet = buf.packet_mut(len);
            ip_header(packet, src, dst, proto, upper.len(), None);
            packet[ip_len..].copy_from_slice(upper);
            if proto == proto::UDP {
                buf.finish_udp(link, len);
            } else {
                buf.finish_ip(link, len);
            }
            self.push(buf);
            return;
        }
        self.next_id = self.next_id.wrapping_add(1);
        let extra = if src.is_ipv6() { 8 } else { 0 };
        let room = (link.mtu - ip_len - extra) & !7;
        // All or nothing: a datagram with a part missing is only work.
        if self.queue.len() + upper.len().div_ceil(room) > QUEUE_MAX {
            self.dropped += 1;
            return;
        }
        let mut offset = 0;
        while offset < upper.len() {
            let part = &upper[offset..upper.len().min(offset + room)];
            let more = offset + part.len() < upper.len();
            let len = ip_len + extra + part.len();
            let mut buf = self.take();
            let packet = buf.packet_mut(len);
            let fragment = Fragment { id: self.next_id, offset, more };
            ip_header(packet, src, dst, proto, extra + part.len(), Some(fragment));
            packet[ip_len + extra..].copy_from_slice(part);
            buf.finish_ip(link, len);
            self.push(buf);
            offset += part.len();
        }
    }

    /// Queues a UDP datagram. `src` and `dst` are of one family.
    pub fn push_udp(
        &mut self,
        link: &Link,
        src: std::net::SocketAddr,
        dst: std::net::SocketAddr,
        data: &[u8],
    ) {
        let len = 8 + data.len();
        if len > upper_max(src.ip()) {
            self.dropped += 1;
            return;
        }
        let mut upper = Vec::with_capacity(len);
        upper.extend_from_slice(&src.port().to_be_bytes());
        upper.extend_from_slice(&dst.port().to_be_bytes());
        upper.extend_from_slice(&(len as u16).to_be_bytes());
        upper.extend_from_slice(&[0, 0]);
        upper.extend_from_slice(data);
        let ip_len = if src.is_ipv6() { 40 } else { 20 };
        if ip_len + len > link.mtu {
            let value = checksum(&upper, pseudo_sum(src.ip(), dst.ip(), proto::UDP, len));
            upper[6..8].copy_from_slice(&udp_checksum(value).to_be_bytes());
        }
        self.push_ip(link, src.ip(), dst.ip(), proto::UDP, &upper);
    }
}

/// The largest upper layer of a packet: IPv4 counts its header, IPv6 does not.
fn upper_max(family: IpAddr) -> usize {
    if family.is_ipv6() { 65535 } else { 65535 - 20 }
}

/// Writes an IP header (and IPv6 fragment header) for `payload_len` bytes that
/// follow the fixed header.
pub fn ip_header(
    packet: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    payload_len: usize,
    fragment: Option<Fragment>,
) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = &mut packet[..20];
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + payload_len) as u16).to_be_bytes());
            if let Some(f) = fragment {
                header[4..6].copy_from_slice(&(f.id as u16).to_be_bytes());
                let word = (f.offset / 8) as u16 | if f.more { 0x2000 } else { 0 };
                header[6..8].copy_from_slice(&word.to_be_bytes());
            } else {
                // Don't fragment: then the identification may be zero (RFC 6864).
                header[6] = 0x40;
            }
            header[8] = 64;
            header[9] = proto;
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let value = checksum(header, 0);
            header[10..12].copy_from_slice(&value.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = &mut packet[..40];
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
            header[6] = if fragment.is_some() { proto::FRAGMENT } else { proto };
            header[7] = 64;
            header[8..24].copy_from_slice(&src.octets());
            header[24..40].copy_from_slice(&dst.octets());
            if let Some(f) = fragment {
                let word = f.offset as u16 | u16::from(f.more);
                packet[40] = proto;
                packet[41] = 0;
                packet[42..44].copy_from_slice(&word.to_be_bytes());
                packet[44..48].copy_from_slice(&f.id.to_be_bytes());
            }
        }
        // A packet has one family; the callers take both ends from one flow.
        _ => packet.fill(0),
    }
}
