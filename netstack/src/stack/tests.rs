//! Packet traces, hostile frames, and a model: a guest's own TCP against the
//! stack over a bad link.

mod hostile;
mod model;
mod queues;
mod tcp;
mod udp;

use std::net::IpAddr;

use super::policy::Unreachable;
use super::*;
use crate::tap::Offloads;

const GRANTED: Offloads = Offloads { vnet: true, csum: true, tso4: true, tso6: true, uso: false };
const MAC: Mac = [2, 0, 0, 0, 0, 1];

fn stack_with(change: impl FnOnce(&mut Config)) -> Netstack {
    let mut config = Config { enable_ipv6: true, ..Config::default() };
    change(&mut config);
    Netstack::new(config, GRANTED, 7)
}

fn stack() -> Netstack {
    stack_with(|_| {})
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The guest's own address in the family of `peer`, with a port.
fn guest_for(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { addr("10.0.2.100:4000") } else { addr("[fd00::100]:4000") }
}

/// A frame of the guest with an IP packet in it.
fn frame_of(src: IpAddr, dst: IpAddr, proto: u8, upper: &[u8]) -> Vec<u8> {
    let ip_len = if src.is_ipv6() { 40 } else { 20 };
    let mut packet = vec![0; ip_len + upper.len()];
    frame::ip_header(&mut packet, src, dst, proto, upper.len(), None);
    packet[ip_len..].copy_from_slice(upper);
    ethernet(&packet)
}

/// Virtio-net and Ethernet headers in front of an IP packet of the guest.
fn ethernet(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; frame::VNET_LEN];
    bytes.extend_from_slice(&Config::default().gateway_mac);
    bytes.extend_from_slice(&MAC);
    bytes.extend_from_slice(if packet[0] >> 4 == 6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    bytes.extend_from_slice(packet);
    bytes
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tcp {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    data: Vec<u8>,
}

impl Tcp {
    fn new(flags: u8, seq: u32, ack: u32) -> Tcp {
        Tcp { seq, ack, flags, window: 65000, options: Vec::new(), data: Vec::new() }
    }

    fn syn(mss: u16) -> Tcp {
        let mut tcp = Tcp::new(frame::SYN, 1000, 0);
        tcp.options = vec![2, 4, (mss >> 8) as u8, mss as u8, 1, 3, 3, 7];
        tcp
    }

    fn with(mut self, data: &[u8]) -> Tcp {
        self.data = data.to_vec();
        self
    }

    fn frame(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let mut upper = Vec::new();
        upper.extend_from_slice(&from.port().to_be_bytes());
        upper.extend_from_slice(&to.port().to_be_bytes());
        upper.extend_from_slice(&self.seq.to_be_bytes());
        upper.extend_from_slice(&self.ack.to_be_bytes());
        upper.push((((20 + self.options.len()) / 4) << 4) as u8);
        upper.push(self.flags);
        upper.extend_from_slice(&self.window.to_be_bytes());
        upper.extend_from_slice(&[0; 4]);
        upper.extend_from_slice(&self.options);
        upper.extend_from_slice(&self.data);
        frame_of(from.ip(), to.ip(), proto::TCP, &upper)
    }

    fn parse(packet: &Packet<'_>) -> Tcp {
        assert_eq!(packet.proto, proto::TCP);
        let b = packet.payload;
        let header_len = usize::from(b[12] >> 4) * 4;
        Tcp {
            seq: u32::from_be_bytes(b[4..8].try_into().unwrap()),
            ack: u32::from_be_bytes(b[8..12].try_into().unwrap()),
            flags: b[13],
            window: u16::from_be_bytes([b[14], b[15]]),
            options: b[20..header_len].to_vec(),
            data: b[header_len..].to_vec(),
        }
    }
}

/// A frame of the guest arrives. The batch ends with the next that finds no room.
fn arrive(stack: &mut Netstack, now: Duration, frame: &[u8]) {
    if stack.frame_room().is_empty() {
        stack.end_batch();
    }
    stack.frame_room()[..frame.len()].copy_from_slice(frame);
    assert_eq!(stack.handle_frame(now, frame.len()), None);
}

/// All frames the stack has for the guest.
fn frames(stack: &mut Netstack, now: Duration) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = stack.poll_frame(now) {
        all.push(frame.to_vec());
    }
    all
}

fn commands(stack: &mut Netstack) -> Vec<HostCommand> {
    std::iter::from_fn(|| stack.poll_host()).collect()
}

fn packet(frame: &[u8]) -> Packet<'_> {
    match Frame::parse(frame, true).unwrap().payload {
        Payload::Ip(packet) => packet,
        Payload::Arp(_) => panic!("an ARP packet"),
    }
}

/// The one TCP segment the stack has for the guest.
fn segment(stack: &mut Netstack, now: Duration) -> Tcp {
    let all = frames(stack, now);
    assert_eq!(all.len(), 1, "{all:?}");
    Tcp::parse(&packet(&all[0]))
}

/// Lets the stack read `data` from the host's socket of the flow, as far as it has
/// room; gives how much.
fn give(stack: &mut Netstack, flow: FlowId, data: &[u8]) -> usize {
    let mut rest = data;
    while !rest.is_empty() && stack.tcp_room(flow) > 0 {
        stack.tcp_fill(flow, &mut |places| {
            let before = rest.len();
            for place in places {
                let (now, later) = rest.split_at(place.len().min(rest.len()));
                place[..now.len()].copy_from_slice(now);
                rest = later;
            }
            before - rest.len()
        });
    }
    data.len() - rest.len()
}

/// The ICMP type and code the stack has for the guest, and the quoted packet.
fn icmp_error(stack: &mut Netstack) -> (u8, u8, Vec<u8>) {
    let all = frames(stack, at(0));
    assert_eq!(all.len(), 1, "{all:?}");
    let packet = packet(&all[0]);
    assert!(matches!(packet.proto, proto::ICMP | proto::ICMPV6));
    (packet.payload[0], packet.payload[1], packet.payload[8..].to_vec())
}

const PEERS: [&str; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"];

/// Opens a connection up to the guest's ACK; gives the flow and the sequence
/// number of the stack's first byte.
fn open(stack: &mut Netstack, peer: SocketAddr) -> (FlowId, u32) {
    let guest = guest_for(peer);
    arrive(stack, at(0), &Tcp::syn(1440).frame(guest, peer));
    let flow = match commands(stack)[..] {
        [HostCommand::TcpConnect { flow, to }] if to == peer => flow,
        ref other => panic!("{other:?}"),
    };
    assert!(frames(stack, at(0)).is_empty(), "the SYN is not answered before the host is");
    stack.handle_host(at(1), HostEvent::TcpConnected { flow });
    let answer = segment(stack, at(1));
    assert_eq!(answer.flags, frame::SYN | frame::ACK);
    assert_eq!(answer.ack, 1001);
    let seq = answer.seq.wrapping_add(1);
    arrive(stack, at(2), &Tcp::new(frame::ACK, 1001, seq).frame(guest, peer));
    assert!(frames(stack, at(2)).is_empty());
    commands(stack);
    (flow, seq)
}

fn udp_frame(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut upper = Vec::new();
    upper.extend_from_slice(&from.port().to_be_bytes());
    upper.extend_from_slice(&to.port().to_be_bytes());
    upper.extend_from_slice(&((8 + data.len()) as u16).to_be_bytes());
    upper.extend_from_slice(&[0, 0]);
    upper.extend_from_slice(data);
    frame_of(from.ip(), to.ip(), proto::UDP, &upper)
}

fn echo(src: &str, dst: &str, kind: u8) -> Vec<u8> {
    let proto = if src.contains(':') { proto::ICMPV6 } else { proto::ICMP };
    let body = [kind, 0, 0, 0, 0x12, 0x34, 0, 9, b'd', b'a'];
    frame_of(src.parse().unwrap(), dst.parse().unwrap(), proto, &body)
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}
