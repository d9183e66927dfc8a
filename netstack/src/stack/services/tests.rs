use super::*;
use crate::config::Config;
use crate::stack::HostEvent;
use crate::stack::arp_ndp::tests::{GUEST, packet_in, v6_packet};
use crate::stack::frame::{self, ETH_LEN, Payload, proto};
use crate::tap::Offloads;

const NOW: Duration = Duration::from_secs(5);

fn stack() -> Netstack {
    let config = Config {
        enable_ipv6: true,
        name_servers: vec!["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()],
        ..Config::default()
    };
    Netstack::new(config, Offloads::default(), 1)
}

fn udp(from: &str, to: &str, data: &[u8]) -> Vec<u8> {
    let from: SocketAddr = from.parse().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let len = 8 + data.len();
    let ip_len = if from.is_ipv4() { 20 } else { 40 };
    let mut out = vec![0; ETH_LEN + ip_len];
    out[6..12].copy_from_slice(&GUEST);
    out[12..14].copy_from_slice(if from.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] });
    frame::ip_header(&mut out[ETH_LEN..], from.ip(), to.ip(), proto::UDP, len, None);
    for word in [from.port(), to.port(), len as u16, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(data);
    out
}

fn arrive(stack: &mut Netstack, frame: &[u8]) {
    stack.frame_room()[..frame.len()].copy_from_slice(frame);
    assert_eq!(stack.handle_frame(NOW, frame.len()), None);
}

fn next_frame(stack: &mut Netstack) -> Option<Vec<u8>> {
    stack.poll_frame(NOW).map(|frame| frame.to_vec())
}

/// Source, destination and payload of the next frame, a datagram.
fn next_datagram(stack: &mut Netstack) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let frame = next_frame(stack).expect("a frame");
    let packet = packet_in(&frame);
    assert_eq!(packet.proto, proto::UDP);
    let port = |at: usize| u16::from_be_bytes([packet.payload[at], packet.payload[at + 1]]);
    (
        SocketAddr::new(packet.src, port(0)),
        SocketAddr::new(packet.dst, port(2)),
        packet.payload[8..].to_vec(),
    )
}

fn query() -> Vec<u8> {
    let mut m = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1];
    m.extend_from_slice(b"a\0\0\x01\0\x01");
    m
}

fn sent(stack: &mut Netstack) -> (FlowId, SocketAddr, Vec<u8>) {
    match stack.poll_host() {
        Some(HostCommand::UdpSend { flow, to, data }) => (flow, to, data),
        other => panic!("expected a query, got {other:?}"),
    }
}

#[test]
fn arp_and_discovery_are_answered_on_the_link() {
    let mut stack = stack();
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&GUEST);
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&GUEST);
    arp.extend_from_slice(&[10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    arrive(&mut stack, &arp);
    let reply = next_frame(&mut stack).expect("a reply");
    assert!(matches!(frame::Frame::parse(&reply, false).unwrap().payload, Payload::Arp(_)));
    let solicitation = v6_packet("fe80::9", "ff02::2", 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    arrive(&mut stack, &solicitation);
    let reply = next_frame(&mut stack).expect("a reply");
    assert_eq!(packet_in(&reply).payload[0], 134);
    assert_eq!(next_frame(&mut stack), None);
}

#[test]
fn routers_are_advertised_at_the_start_and_then_now_and_again() {
    let mut stack = stack();
    assert_eq!(stack.poll_timeout(), Some(Duration::ZERO));
    stack.handle_timeout(NOW);
    assert_eq!(packet_in(&next_frame(&mut stack).unwrap()).payload[0], 134);
    assert_eq!(stack.poll_timeout(), Some(NOW + ra::INTERVAL));
    let mut v4_only = Netstack::new(Config::default(), Offloads::default(), 1);
    assert_eq!(v4_only.poll_timeout(), None, "nothing to wake up for");
}

#[test]
fn a_name_is_looked_up_through_the_second_server_when_the_first_is_unreachable() {
    for (client, alias) in
        [("10.0.2.100:4000", "10.0.2.3:53"), ("[fd00::100]:4000", "[fd00::3]:53")]
    {
        let mut stack = stack();
        arrive(&mut stack, &udp(client, alias, &query()));
        let (first, to, _) = sent(&mut stack);
        assert_eq!(to, "192.0.2.1:53".parse().unwrap());
        let why = policy::Unreachable::Port;
        stack.handle_host(NOW, HostEvent::UdpUnreachable { flow: first, to, why });
        let close = HostCommand::Close { flow: first, reset: false };
        assert_eq!(stack.poll_host(), Some(close));
        let (second, to, mut data) = sent(&mut stack);
        assert_eq!(to, "192.0.2.2:53".parse().unwrap());
        assert_ne!(first, second, "a socket of its own");
        data[2] |= 0x80;
        let stranger = "192.0.2.66:53".parse().unwrap();
        let forged = HostEvent::UdpReceived { flow: second, from: stranger, data: &data };
        stack.handle_host(NOW, forged);
        assert_eq!(next_frame(&mut stack), None, "nobody asked that one");
        stack.handle_host(NOW, HostEvent::UdpReceived { flow: second, from: to, data: &data });
        let (from, to, reply) = next_datagram(&mut stack);
        assert_eq!((from, to), (alias.parse().unwrap(), client.parse().unwrap()));
        assert_eq!(reply[..2], [0, 7]);
        assert_eq!(stack.poll_host(), None);
        let end = stack.services.dns.poll_timeout().expect("a socket does not stay open");
        stack.handle_timeout(end);
        let close = HostCommand::Close { flow: second, reset: false };
        assert_eq!(stack.poll_host(), Some(close));
        assert_eq!(stack.flow_count(), 0);
    }
}

#[test]
fn silent_servers_end_in_a_failure_and_leave_nothing() {
    let mut stack = stack();
    stack.handle_timeout(NOW);
    next_frame(&mut stack);
    arrive(&mut stack, &udp("10.0.2.100:4000", "10.0.2.3:53", &query()));
    assert_eq!(stack.poll_timeout(), Some(NOW + dns::TRY));
    stack.handle_timeout(NOW + dns::TRY);
    stack.handle_timeout(NOW + dns::TRY * 2);
    let (_, _, reply) = next_datagram(&mut stack);
    assert_eq!(reply[3] & 0xf, 2);
    while let Some(at) = stack.services.dns.poll_timeout() {
        stack.handle_timeout(at);
    }
    assert_eq!(stack.flow_count(), 0);
}

#[test]
fn without_the_name_server_queries_are_refused() {
    let config = Config { disable_dns: true, ..Config::default() };
    let mut stack = Netstack::new(config, Offloads::default(), 1);
    arrive(&mut stack, &udp("10.0.2.100:4000", "10.0.2.3:53", &query()));
    assert_eq!(stack.poll_host(), None);
    let frame = next_frame(&mut stack).expect("an error");
    assert_eq!(packet_in(&frame).payload[..2], [3, 0], "network unreachable");
}

#[test]
fn dhcp_is_answered_from_the_gateway() {
    let mut stack = stack();
    let mut discover = vec![0; 240];
    discover[..3].copy_from_slice(&[1, 1, 6]);
    discover[28..34].copy_from_slice(&GUEST);
    discover[236..].copy_from_slice(&[99, 130, 83, 99]);
    discover.extend_from_slice(&[53, 1, 1, 255]);
    // From no address at all, as a client without one.
    arrive(&mut stack, &udp("0.0.0.0:68", "255.255.255.255:67", &discover));
    let (from, to, offer) = next_datagram(&mut stack);
    assert_eq!(from, "10.0.2.2:67".parse().unwrap());
    assert_eq!(to, "255.255.255.255:68".parse().unwrap());
    assert_eq!(offer[16..20], [10, 0, 2, 15]);
}
