//! Router advertisements (RFC 4861 section 4.2): prefix, default route, MTU and
//! name server for a guest that configures itself.
//!
//! # Theory of operation
//!
//! Stateless. A solicitation is answered at once, to the asker: on this link there
//! is no storm to spread out, and programs look for the guest's address as soon as
//! the network is said to be ready. The same advertisement is sent to all nodes at
//! the start and every [`INTERVAL`], which renews the default route long before
//! its lifetime ends.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::arp_ndp::{
    ALL_NODES_MAC, ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, SOURCE_LINK_LAYER, discovery_frame,
    discovery_message, options_are_valid,
};
use super::dhcp;
use super::frame::{Mac, Packet};
use crate::config::Config;

/// Time between two unsolicited advertisements.
pub const INTERVAL: Duration = Duration::from_secs(600);
/// How long the guest keeps the default route, in seconds: three intervals (RFC
/// 4861 section 6.2.1).
const ROUTER_LIFETIME: u16 = 1800;
/// Bytes for the search list: an advertisement must fit into the smallest MTU.
const SEARCH_LEN: usize = 512;
const FOREVER: [u8; 4] = [0xff; 4];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Answers a router solicitation with a complete Ethernet frame. `from` is the
/// sender's Ethernet address. None for everything else.
pub fn answer(config: &Config, packet: &Packet<'_>, from: Mac) -> Option<Vec<u8>> {
    let IpAddr::V6(source) = packet.src else { return None };
    let message = discovery_message(packet, ROUTER_SOLICITATION)?;
    if !config.enable_ipv6 || !options_are_valid(&message[8..]) {
        return None;
    }
    let (to, mac) =
        if source.is_unspecified() { (ALL_NODES, ALL_NODES_MAC) } else { (source, from) };
    Some(frame(config, to, mac))
}

/// The advertisement to all nodes, as a complete Ethernet frame. None when IPv6
/// is off.
pub fn unsolicited(config: &Config) -> Option<Vec<u8>> {
    config.enable_ipv6.then(|| frame(config, ALL_NODES, ALL_NODES_MAC))
}

fn frame(config: &Config, to: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![ROUTER_ADVERTISEMENT, 0, 0, 0];
    // Hop limit; no DHCPv6; lifetime; reachable and retransmission time unset.
    body.extend_from_slice(&[64, 0]);
    body.extend_from_slice(&ROUTER_LIFETIME.to_be_bytes());
    body.extend_from_slice(&[0; 8]);

    body.extend_from_slice(&[SOURCE_LINK_LAYER, 1]);
    body.extend_from_slice(&config.gateway_mac);
    // MTU (section 4.6.4).
    body.extend_from_slice(&[5, 1, 0, 0]);
    body.extend_from_slice(&u32::from(config.mtu).to_be_bytes());
    // Prefix (section 4.6.2): on link, and for addresses the guest makes up.
    body.extend_from_slice(&[3, 4, 64, 0xc0]);
    body.extend_from_slice(&FOREVER);
    body.extend_from_slice(&FOREVER);
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&config.v6.network.octets());
    if !config.disable_dns {
        // Name server (RFC 8106 section 5.1).
        body.extend_from_slice(&[25, 3, 0, 0]);
        body.extend_from_slice(&FOREVER);
        body.extend_from_slice(&config.v6.dns.octets());
        // Search list (section 5.2), padded to units of 8 bytes.
        let mut search = dhcp::search_list(config, SEARCH_LEN);
        if !search.is_empty() {
            search.resize(search.len().next_multiple_of(8), 0);
            body.extend_from_slice(&[31, (1 + search.len() / 8) as u8, 0, 0]);
            body.extend_from_slice(&FOREVER);
            body.extend(search);
        }
    }
    discovery_frame(config.gateway_mac, mac, config.v6.gateway_link_local, to, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::arp_ndp::tests::{GUEST, packet_in, v6_packet};
    use crate::stack::frame::{checksum, pseudo_sum};

    const SOLICITATION: [u8; 8] = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];

    fn config() -> Config {
        Config { enable_ipv6: true, mtu: 9000, ..Config::default() }
    }

    #[test]
    fn a_solicitation_is_answered_with_prefix_mtu_and_name_server() {
        let frame = v6_packet("fe80::9", "ff02::2", 255, &SOLICITATION);
        let reply = answer(&config(), &packet_in(&frame), GUEST).unwrap();
        assert_eq!(reply[..6], GUEST);
        let packet = packet_in(&reply);
        assert_eq!(packet.src, "fe80::2".parse::<IpAddr>().unwrap());
        assert_eq!(packet.dst, "fe80::9".parse::<IpAddr>().unwrap());
        assert_eq!(packet.hop_limit, 255);
        let pseudo = pseudo_sum(packet.src, packet.dst, 58, packet.payload.len());
        assert_eq!(checksum(packet.payload, pseudo), 0, "the checksum is right");

        let message = packet.payload;
        assert_eq!(message[0], ROUTER_ADVERTISEMENT);
        assert_eq!(message[4..8], [64, 0, 0x07, 0x08]);
        assert!(options_are_valid(&message[16..]));
        assert_eq!(message[16..18], [1, 1]);
        assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 0x23, 0x28]);
        assert_eq!(message[32..36], [3, 4, 64, 0xc0]);
        assert_eq!(message[48..50], [0xfd, 0]);
        assert_eq!(message[64..66], [25, 3]);
        assert_eq!(message[72..88], config().v6.dns.octets());
        assert_eq!(message.len(), 88);
    }

    #[test]
    fn the_search_list_is_told_in_whole_units() {
        let search = vec!["corp.example".to_owned(), "b.c".into()];
        let frame = unsolicited(&Config { search, ..config() }).unwrap();
        let packet = packet_in(&frame);
        assert!(options_are_valid(&packet.payload[16..]));
        let option = &packet.payload[88..];
        assert_eq!(option[..8], [31, 4, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(&option[8..], b"\x04corp\x07example\0\x01b\x01c\0\0\0\0\0\0");
    }

    #[test]
    fn a_node_without_address_is_answered_to_all() {
        let frame = v6_packet("::", "ff02::2", 255, &SOLICITATION);
        let reply = answer(&config(), &packet_in(&frame), GUEST).unwrap();
        assert_eq!(reply[..6], ALL_NODES_MAC);
        assert_eq!(Some(reply), unsolicited(&config()));
    }

    #[test]
    fn other_packets_are_not_answered() {
        let answered = |config: &Config, hop, body: &[u8]| {
            let frame = v6_packet("fe80::9", "ff02::2", hop, body);
            answer(config, &packet_in(&frame), GUEST).is_some()
        };
        assert!(!answered(&config(), 64, &SOLICITATION), "not of this link");
        assert!(!answered(&config(), 255, &[135, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!answered(&config(), 255, &SOLICITATION[..7]));
        assert!(!answered(&Config::default(), 255, &SOLICITATION), "IPv6 is off");
        assert_eq!(unsolicited(&Config::default()), None);
    }

    #[test]
    fn no_name_server_is_announced_when_there_is_none() {
        let frame = unsolicited(&Config { disable_dns: true, ..config() }).unwrap();
        assert_eq!(packet_in(&frame).payload.len(), 64);
    }
}
