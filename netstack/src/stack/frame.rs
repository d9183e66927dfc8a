//! Ethernet, IP and virtio-net headers: parsing what the guest sent, building
//! what it gets.
//!
//! # Theory of operation
//!
//! A frame from the guest is `[virtio-net header][Ethernet][IP][payload]`, the
//! first only when the device was opened with IFF_VNET_HDR. Checksums of such
//! frames may be partial (VIRTIO_NET_HDR_F_NEEDS_CSUM) and are never verified:
//! the bytes did not cross a wire. Segments of TCP connections are a [`Head`] and the
//! bytes where they lie; all other frames are built by [`super::outbox`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::buffer::Parts;
use crate::tap::Offloads;

/// Bytes of the virtio-net header in front of every frame (`struct
/// virtio_net_hdr_mrg_rxbuf`, virtio 1.2 section 5.1.6).
pub const VNET_LEN: usize = 12;
/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Where the IP packet starts in a a frame.
pub const HEAD: usize = VNET_LEN + ETH_LEN;
/// The largest frame either way: both headers and an IP packet of 65,575 bytes
/// (IPv6 header and the largest payload length).
pub const FRAME_MAX: usize = HEAD + 40 + 65535;

/// An Ethernet address.
pub type Mac = [u8; 6];

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
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

pub(super) fn fold(mut acc: u64) -> u16 {
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

impl Link {
    /// A frame as the guest would have sent it in one piece.
    pub(super) fn frame_of_guest(&self, packet: &Packet<'_>) -> Vec<u8> {
        let v6 = packet.src.is_ipv6();
        let ip_len = if v6 { 40 } else { 20 };
        let start = if self.offloads.vnet { VNET_LEN } else { 0 };
        let mut frame = vec![0; start + ETH_LEN + ip_len];
        let (eth, ip) = frame[start..].split_at_mut(ETH_LEN);
        eth[..6].copy_from_slice(&self.gateway);
        eth[6..12].copy_from_slice(&self.guest);
        let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        eth[12..].copy_from_slice(&ethertype.to_be_bytes());
        ip_header(ip, packet.src, packet.dst, packet.proto, packet.payload.len(), None);
        frame.extend_from_slice(packet.payload);
        frame
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

/// All headers of a TCP segment to the guest. Its payload is not copied behind them.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: [u8; HEAD_MAX],
    start: usize,
    end: usize,
}

const HEAD_MAX: usize = HEAD + 40 + 60;

impl Head {
    pub(crate) fn new() -> Head {
        Head { bytes: [0; HEAD_MAX], start: 0, end: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Puts link and IP headers in front of a TCP header, which may have options, and
    /// sets its checksum, or the seed of it where the device completes it. What
    /// exceeds `mss` bytes is marked for the guest's kernel to cut.
    pub(crate) fn tcp(
        &mut self,
        link: &Link,
        (src, dst): (IpAddr, IpAddr),
        tcp: &[u8],
        payload: &Parts<'_>,
        mss: u16,
    ) {
        let v6 = src.is_ipv6();
        let ip_len = if v6 { 40 } else { 20 };
        let upper = tcp.len() + payload.len();
        let (link_head, rest) = self.bytes.split_at_mut(HEAD);
        ip_header(&mut rest[..ip_len], src, dst, proto::TCP, upper, None);
        let place = &mut rest[ip_len..ip_len + tcp.len()];
        place.copy_from_slice(tcp);
        let pseudo = pseudo_sum(src, dst, proto::TCP, upper);
        let value = if link.offloads.vnet {
            fold(pseudo)
        } else {
            !fold(sum(place, pseudo) + u64::from(sum_of(payload)))
        };
        place[16..18].copy_from_slice(&value.to_be_bytes());
        ethernet(link_head, link, if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 });
        self.end = HEAD + ip_len + tcp.len();
        self.start = if link.offloads.vnet { 0 } else { VNET_LEN };
        if link.offloads.vnet {
            vnet(link_head, ETH_LEN + ip_len, 16);
            if payload.len() > usize::from(mss) {
                link_head[1] = if v6 { gso::TCPV6 } else { gso::TCPV4 };
                let all = (ETH_LEN + ip_len + tcp.len()) as u16;
                link_head[2..4].copy_from_slice(&all.to_le_bytes());
                link_head[4..6].copy_from_slice(&mss.to_le_bytes());
            }
        }
    }
}

/// Writes virtio-net (without offloads) and Ethernet headers.
pub(super) fn ethernet(head: &mut [u8], link: &Link, ethertype: u16) {
    let (vnet, eth) = head.split_at_mut(VNET_LEN);
    vnet.fill(0);
    eth[..6].copy_from_slice(&link.guest);
    eth[6..12].copy_from_slice(&link.gateway);
    eth[12..ETH_LEN].copy_from_slice(&ethertype.to_be_bytes());
}

/// Asks for the checksum to be completed.
pub(super) fn vnet(head: &mut [u8], csum_start: usize, csum_offset: u16) {
    head[0] = NEEDS_CSUM;
    head[1] = gso::NONE;
    head[6..8].copy_from_slice(&(csum_start as u16).to_le_bytes());
    head[8..10].copy_from_slice(&csum_offset.to_le_bytes());
}

/// Asks a frame of several UDP datagrams to be cut into them: behind `headers` bytes
/// from the Ethernet header on, `size` bytes each. After [`vnet`].
pub(super) fn vnet_udp_segments(head: &mut [u8], headers: usize, size: usize) {
    head[1] = gso::UDP_L4;
    head[2..4].copy_from_slice(&(headers as u16).to_le_bytes());
    head[4..6].copy_from_slice(&(size as u16).to_le_bytes());
}

/// Sum of big-endian 16-bit words over slices of any length, folded.
fn sum_of(parts: &Parts<'_>) -> u16 {
    let mut acc = 0;
    let mut odd = false;
    for part in parts.as_slices() {
        let own = fold(sum(part, 0));
        // Bytes at odd places are the lower halves of their words (RFC 1071
        // section 2(B)).
        acc += u64::from(if odd { own.swap_bytes() } else { own });
        odd ^= part.len() % 2 == 1;
    }
    fold(acc)
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
