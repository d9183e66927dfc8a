//! Address resolution: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).
//!
//! # Theory of operation
//!
//! Stateless: a question in, a complete Ethernet frame out. On the guest's
//! segment there is one station besides the guest, and it owns the gateway's
//! addresses (also the link-local one) and the name server's. Nothing else is
//! answered for, so that an address of the subnet that nobody has fails in the
//! guest as it would on a wire, and duplicate address detection of the guest's
//! own address stays silent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{self, ETH_LEN, Mac, Packet};
use crate::config::Config;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet frame with an ARP packet for IPv4 in it, in bytes.
pub const ARP_FRAME_LEN: usize = ETH_LEN + 28;

/// ICMPv6 types of neighbour discovery (RFC 4861 section 4).
pub(super) const ROUTER_SOLICITATION: u8 = 133;
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Option types (RFC 4861 section 4.6).
pub(super) const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Answers an ARP request (without Ethernet header) for an address of ours. None
/// for everything else, replies and malformed packets included.
pub fn arp_reply(config: &Config, packet: &[u8]) -> Option<[u8; ARP_FRAME_LEN]> {
    let packet: &[u8; 28] = packet.get(..28)?.try_into().ok()?;
    // Ethernet, IPv4, their address lengths, request.
    if packet[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let target = Ipv4Addr::new(packet[24], packet[25], packet[26], packet[27]);
    if target != config.v4.gateway && target != config.v4.dns {
        return None;
    }
    let mut reply = [0; ARP_FRAME_LEN];
    reply[..6].copy_from_slice(&packet[8..14]);
    reply[6..12].copy_from_slice(&config.gateway_mac);
    reply[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    reply[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    reply[22..28].copy_from_slice(&config.gateway_mac);
    reply[28..32].copy_from_slice(&packet[24..28]);
    // The asker's two addresses, as it gave them.
    reply[32..42].copy_from_slice(&packet[8..18]);
    Some(reply)
}

/// Answers a neighbour solicitation for an address of ours with a complete
/// Ethernet frame. `from` is the sender's Ethernet address. None for everything
/// else.
pub fn neighbour_advertisement(config: &Config, packet: &Packet<'_>, from: Mac) -> Option<Vec<u8>> {
    let IpAddr::V6(source) = packet.src else { return None };
    let message = discovery_message(packet, NEIGHBOUR_SOLICITATION)?;
    let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    let target = Ipv6Addr::from(target);
    options_are_valid(&message[24..]).then_some(())?;
    let ours = [config.v6.gateway, config.v6.dns, config.v6.gateway_link_local];
    if !config.enable_ipv6 || !ours.contains(&target) {
        return None;
    }
    // Someone who checks whether the address is free has no address yet: the
    // answer goes to all, and is not flagged as solicited (section 7.2.4).
    let probe = source.is_unspecified();
    let (to, to_mac) = if probe { (ALL_NODES, ALL_NODES_MAC) } else { (source, from) };
    let router = if target == config.v6.dns { 0 } else { 0x80 };
    let solicited = if probe { 0 } else { 0x40 };
    let overrides = 0x20;
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, router | solicited | overrides, 0, 0, 0];
    body.extend_from_slice(&target.octets());
    body.extend_from_slice(&[TARGET_LINK_LAYER, 1]);
    body.extend_from_slice(&config.gateway_mac);
    Some(discovery_frame(config.gateway_mac, to_mac, target, to, body))
}

pub(super) const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// The message of a neighbour discovery packet of this type, when it has passed
/// the checks of RFC 4861 sections 6.1 and 7.1: it comes from this link (hop limit
/// 255), has code 0 and the fixed part. The checksum may be partial, and the
/// bytes did not cross a wire: it is not verified.
pub(super) fn discovery_message<'a>(packet: &Packet<'a>, kind: u8) -> Option<&'a [u8]> {
    let fixed = match kind {
        ROUTER_SOLICITATION => 8,
        _ => 24,
    };
    let valid = packet.proto == frame::proto::ICMPV6
        && packet.fragment.is_none()
        && packet.hop_limit == 255
        && packet.payload.len() >= fixed
        && packet.payload[0] == kind
        && packet.payload[1] == 0;
    valid.then_some(packet.payload)
}

/// Every option has a length, and the last one ends with the packet.
pub(super) fn options_are_valid(mut options: &[u8]) -> bool {
    while let [_, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 {
            return false;
        }
        match options.get(len..) {
            Some(rest) => options = rest,
            None => return false,
        }
    }
    options.is_empty()
}

/// A complete Ethernet frame around an ICMPv6 message of neighbour discovery
/// whose checksum field is zero. The hop limit is 255, as receivers demand.
pub(super) fn discovery_frame(
    from_mac: Mac,
    to_mac: Mac,
    from: Ipv6Addr,
    to: Ipv6Addr,
    mut body: Vec<u8>,
) -> Vec<u8> {
    let (src, dst) = (IpAddr::V6(from), IpAddr::V6(to));
    let value =
        frame::checksum(&body, frame::pseudo_sum(src, dst, frame::proto::ICMPV6, body.len()));
    body[2..4].copy_from_slice(&value.to_be_bytes());
    let mut out = Vec::with_capacity(ETH_LEN + 40 + body.len());
    out.extend_from_slice(&to_mac);
    out.extend_from_slice(&from_mac);
    out.extend_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(&[frame::proto::ICMPV6, 255]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    out.extend_from_slice(&body);
    out
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stack::frame::{Frame, Payload};

    pub(in crate::stack) const GUEST: Mac = [2, 0, 0, 0, 0, 9];

    fn request(target: Ipv4Addr) -> Vec<u8> {
        let mut p = vec![0, 1, 8, 0, 6, 4, 0, 1];
        p.extend_from_slice(&GUEST);
        p.extend_from_slice(&[10, 0, 2, 100]);
        p.extend_from_slice(&[0; 6]);
        p.extend_from_slice(&target.octets());
        p
    }

    /// An ICMPv6 packet with this body, as the guest would send it.
    pub(in crate::stack) fn v6_packet(src: &str, dst: &str, hop_limit: u8, body: &[u8]) -> Vec<u8> {
        let src: Ipv6Addr = src.parse().unwrap();
        let dst: Ipv6Addr = dst.parse().unwrap();
        let mut out = discovery_frame(GUEST, ALL_NODES_MAC, src, dst, body.to_vec());
        out[14 + 7] = hop_limit;
        out
    }

    /// What an Ethernet frame carries.
    pub(in crate::stack) fn packet_in(frame: &[u8]) -> Packet<'_> {
        match Frame::parse(frame, false).unwrap().payload {
            Payload::Ip(packet) => packet,
            Payload::Arp(_) => panic!("an ARP packet"),
        }
    }

    fn solicitation(target: &str, options: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let mut body = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        body.extend_from_slice(&target.octets());
        body.extend_from_slice(options);
        body
    }

    fn v6() -> Config {
        Config { enable_ipv6: true, ..Config::default() }
    }

    #[test]
    fn arp_answers_for_gateway_and_name_server_only() {
        let config = Config::default();
        for last in 0..=255 {
            let target = Ipv4Addr::new(10, 0, 2, last);
            let reply = arp_reply(&config, &request(target));
            assert_eq!(reply.is_some(), last == 2 || last == 3, "{target}");
            let Some(reply) = reply else { continue };
            assert_eq!(reply[..6], GUEST);
            assert_eq!(reply[6..12], config.gateway_mac);
            assert_eq!(reply[20..22], [0, 2], "a reply");
            assert_eq!(reply[22..28], config.gateway_mac);
            assert_eq!(reply[28..32], target.octets());
            assert_eq!(reply[32..38], GUEST);
            assert_eq!(reply[38..42], [10, 0, 2, 100]);
        }
        assert_eq!(arp_reply(&config, &request("192.0.2.1".parse().unwrap())), None);
    }

    #[test]
    fn arp_ignores_what_is_no_request() {
        let config = Config::default();
        let good = request(config.v4.gateway);
        for (at, value) in [(1, 6), (2, 9), (4, 8), (5, 16), (7, 2)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(arp_reply(&config, &bad), None, "byte {at}");
        }
        for len in 0..28 {
            assert_eq!(arp_reply(&config, &good[..len]), None, "{len} bytes");
        }
        let mut padded = good;
        padded.resize(46, 0);
        assert!(arp_reply(&config, &padded).is_some(), "Ethernet pads to 46 bytes");
    }

    #[test]
    fn neighbour_solicitations_for_our_addresses_are_answered() {
        let config = v6();
        for (target, router) in [("fd00::2", 0x80), ("fe80::2", 0x80), ("fd00::3", 0)] {
            let frame = v6_packet("fd00::100", "ff02::1:ff00:2", 255, &solicitation(target, &[]));
            let reply = neighbour_advertisement(&config, &packet_in(&frame), GUEST).unwrap();
            assert_eq!(reply[..6], GUEST);
            let packet = packet_in(&reply);
            assert_eq!(packet.src, target.parse::<IpAddr>().unwrap());
            assert_eq!(packet.dst, "fd00::100".parse::<IpAddr>().unwrap());
            assert_eq!(packet.hop_limit, 255);
            assert_eq!(packet.payload[0], NEIGHBOUR_ADVERTISEMENT);
            assert_eq!(packet.payload[4], router | 0x60);
            assert_eq!(packet.payload[26..32], config.gateway_mac);
            let pseudo = frame::pseudo_sum(packet.src, packet.dst, 58, packet.payload.len());
            assert_eq!(frame::checksum(packet.payload, pseudo), 0, "the checksum is right");
        }
    }

    #[test]
    fn duplicate_address_detection_fails_for_our_addresses_alone() {
        let config = v6();
        let probe = |target| {
            let frame = v6_packet("::", "ff02::1:ff00:2", 255, &solicitation(target, &[]));
            neighbour_advertisement(&config, &packet_in(&frame), GUEST)
        };
        let reply = probe("fd00::2").unwrap();
        assert_eq!(reply[..6], ALL_NODES_MAC);
        assert_eq!(packet_in(&reply).dst, IpAddr::V6(ALL_NODES));
        assert_eq!(packet_in(&reply).payload[4] & 0x40, 0, "not solicited");
        for free in ["fd00::100", "fd00::4", "fe80::1"] {
            assert_eq!(probe(free), None, "{free}");
        }
    }

    #[test]
    fn invalid_solicitations_are_ignored() {
        let config = v6();
        let answer = |hop, body: &[u8]| {
            let frame = v6_packet("fd00::100", "fd00::2", hop, body);
            neighbour_advertisement(&config, &packet_in(&frame), GUEST)
        };
        let good = solicitation("fd00::2", &[1, 1, 2, 0, 0, 0, 0, 9]);
        assert!(answer(255, &good).is_some());
        assert_eq!(answer(254, &good), None, "forwarded");
        assert_eq!(answer(255, &solicitation("fd00::2", &[1, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(answer(255, &solicitation("fd00::2", &[1, 2, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(answer(255, &solicitation("fd00::2", &[1])), None);
        for len in 4..24 {
            assert_eq!(answer(255, &good[..len]), None, "{len} bytes");
        }
        let off = Config { enable_ipv6: false, ..config.clone() };
        let frame = v6_packet("fd00::100", "fd00::2", 255, &good);
        assert_eq!(neighbour_advertisement(&off, &packet_in(&frame), GUEST), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let config = v6();
            let _ = arp_reply(&config, &bytes);
            for kind in [NEIGHBOUR_SOLICITATION, ROUTER_SOLICITATION] {
                let mut payload = bytes.clone();
                if let Some(first) = payload.first_mut() { *first = kind; }
                if let Some(code) = payload.get_mut(1) { *code = 0; }
                let packet = Packet {
                    src: "fe80::1".parse().unwrap(),
                    dst: "fe80::2".parse().unwrap(),
                    proto: 58,
                    hop_limit: 255,
                    bytes: &payload,
                    payload: &payload,
                    fragment: None,
                };
                let _ = neighbour_advertisement(&config, &packet, GUEST);
                let _ = crate::stack::ra::answer(&config, &packet, GUEST);
            }
        }
    }
}
