//! Packet traces, hostile frames, and a model: a guest's own TCP against the
//! stack over a bad link.

mod hostile;
mod model;

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

#[test]
fn a_syn_is_answered_once_the_host_has_connected() {
    for (peer, mss) in PEERS.iter().zip([1460_u16, 1440]) {
        let peer = addr(peer);
        let mut stack = stack();
        let syn = Tcp::syn(1440).frame(guest_for(peer), peer);
        arrive(&mut stack, at(0), &syn);
        arrive(&mut stack, at(1000), &syn);
        let flow = match commands(&mut stack)[..] {
            [HostCommand::TcpConnect { flow, to }] if to == peer => flow,
            ref other => panic!("a repeated SYN is one connection: {other:?}"),
        };
        assert!(frames(&mut stack, at(1000)).is_empty());
        stack.handle_host(at(1001), HostEvent::TcpConnected { flow });
        let answer = segment(&mut stack, at(1001));
        assert_eq!(answer.options[..4], [2, 4, (mss >> 8) as u8, mss as u8]);
    }
}

#[test]
fn the_guest_sees_why_the_host_could_not_connect() {
    for peer in PEERS {
        let peer = addr(peer);
        let fail = |why| {
            let mut stack = stack();
            arrive(&mut stack, at(0), &Tcp::syn(1440).frame(guest_for(peer), peer));
            let Some(HostCommand::TcpConnect { flow, .. }) = stack.poll_host() else { panic!() };
            stack.handle_host(at(1), HostEvent::TcpFailed { flow, why });
            assert_eq!(stack.flow_count(), 0);
            stack
        };
        let reset = segment(&mut fail(ConnectError::Refused), at(1));
        assert_eq!((reset.flags, reset.ack), (frame::RST | frame::ACK, 1001));

        let mut unreachable = fail(ConnectError::Unreachable(Unreachable::Host));
        let (kind, code, quoted) = icmp_error(&mut unreachable);
        assert_eq!((kind, code), if peer.is_ipv4() { (3, 1) } else { (1, 3) });
        assert_eq!(Packet::parse(&quoted).unwrap().dst, peer.ip());

        assert!(frames(&mut fail(ConnectError::TimedOut), at(1)).is_empty());
    }
}

#[test]
fn denied_addresses_never_reach_the_host() {
    let mut stack = stack_with(|config| config.disable_host_loopback = true);
    for peer in [
        "10.0.2.2:80",
        "10.0.2.3:80",
        "[fd00::2]:80",
        "[fd00::3]:80",
        "127.0.0.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "0.0.0.0:80",
        "[::]:80",
    ] {
        let peer = addr(peer);
        arrive(&mut stack, at(0), &Tcp::syn(1440).frame(guest_for(peer), peer));
        assert_eq!(commands(&mut stack), []);
        let (kind, code, _) = icmp_error(&mut stack);
        assert_eq!((kind, code), if peer.is_ipv4() { (3, 0) } else { (1, 0) }, "{peer}");

        arrive(&mut stack, at(0), &udp_frame(guest_for(peer), peer, b"x"));
        assert_eq!(commands(&mut stack), []);
        let (kind, code, _) = icmp_error(&mut stack);
        assert_eq!((kind, code), if peer.is_ipv4() { (3, 0) } else { (1, 0) }, "{peer}");
    }
    assert_eq!(stack.flow_count(), 0);
}

#[test]
fn segments_of_no_connection_are_reset() {
    let mut stack = stack();
    let (peer, guest) = (addr("192.0.2.1:80"), addr("10.0.2.100:4000"));
    arrive(&mut stack, at(0), &Tcp::new(frame::ACK, 5, 77).with(b"x").frame(guest, peer));
    let reset = segment(&mut stack, at(0));
    assert_eq!((reset.flags, reset.seq), (frame::RST, 77));
    arrive(&mut stack, at(0), &Tcp::new(frame::RST, 5, 77).frame(guest, peer));
    assert!(frames(&mut stack, at(0)).is_empty(), "a reset is never answered");
    arrive(&mut stack, at(0), &Tcp::new(frame::FIN, 5, 0).frame(guest, peer));
    assert_eq!(segment(&mut stack, at(0)).ack, 6);
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_on_its_own() {
    for peer in PEERS {
        let peer = addr(peer);
        let guest = guest_for(peer);
        let mut stack = stack();
        let (flow, seq) = open(&mut stack, peer);

        let data = Tcp::new(frame::ACK, 1001, seq).with(b"request");
        arrive(&mut stack, at(3), &data.frame(guest, peer));
        assert_eq!(commands(&mut stack), [HostCommand::TcpTransfer { flow }]);
        assert_eq!(stack.tcp_outgoing(flow).to_vec(), b"request");
        stack.tcp_sent(flow, 7);
        assert_eq!(segment(&mut stack, at(3)).ack, 1008);

        // The guest ends its way; ours stays open.
        commands(&mut stack);
        let fin = Tcp::new(frame::FIN | frame::ACK, 1008, seq);
        arrive(&mut stack, at(4), &fin.frame(guest, peer));
        assert!(commands(&mut stack).contains(&HostCommand::TcpShutdown { flow }));
        assert_eq!(segment(&mut stack, at(4)).ack, 1009);
        assert!(stack.tcp_room(flow) > 0);
        give(&mut stack, flow, b"response");
        let answer = segment(&mut stack, at(5));
        assert_eq!((answer.seq, &answer.data[..]), (seq, &b"response"[..]));
        stack.handle_host(at(6), HostEvent::TcpFinished { flow });
        let end = segment(&mut stack, at(6));
        assert_eq!(end.flags & frame::FIN, frame::FIN);
        let last = Tcp::new(frame::ACK, 1009, seq.wrapping_add(9));
        arrive(&mut stack, at(7), &last.frame(guest, peer));
        assert!(frames(&mut stack, at(7)).is_empty());
        assert_eq!(commands(&mut stack), [HostCommand::Close { flow, reset: false }]);
        assert_eq!(stack.flow_count(), 0);
    }
}

#[test]
fn the_fin_reaches_the_host_after_every_byte_before_it() {
    let mut stack = stack();
    let peer = addr("192.0.2.1:80");
    let guest = guest_for(peer);
    let (flow, seq) = open(&mut stack, peer);
    let fin = Tcp::new(frame::FIN | frame::ACK, 1001, seq).with(b"last");
    arrive(&mut stack, at(3), &fin.frame(guest, peer));
    frames(&mut stack, at(3));
    assert_eq!(commands(&mut stack), [HostCommand::TcpTransfer { flow }]);
    stack.tcp_sent(flow, 3);
    assert!(!commands(&mut stack).contains(&HostCommand::TcpShutdown { flow }));
    assert_eq!(stack.tcp_outgoing(flow).to_vec(), b"t");
    stack.tcp_sent(flow, 1);
    assert!(commands(&mut stack).contains(&HostCommand::TcpShutdown { flow }));
}

#[test]
fn resets_pass_both_ways() {
    let peer = addr("192.0.2.1:80");
    let guest = guest_for(peer);
    let mut from_guest = stack();
    let (flow, seq) = open(&mut from_guest, peer);
    let reset = Tcp::new(frame::RST | frame::ACK, 1001, seq);
    arrive(&mut from_guest, at(3), &reset.frame(guest, peer));
    assert_eq!(commands(&mut from_guest), [HostCommand::Close { flow, reset: true }]);
    assert_eq!(from_guest.flow_count(), 0);

    let mut from_host = stack();
    let (flow, seq) = open(&mut from_host, peer);
    from_host.handle_host(at(3), HostEvent::TcpReset { flow });
    let reset = segment(&mut from_host, at(3));
    assert_eq!((reset.flags & frame::RST, reset.seq), (frame::RST, seq));
    assert_eq!(from_host.flow_count(), 0);
}

#[test]
fn what_came_before_a_reset_is_the_hosts() {
    for in_one_batch in [true, false] {
        let peer = addr("192.0.2.1:80");
        let guest = guest_for(peer);
        let mut stack = stack();
        let (flow, seq) = open(&mut stack, peer);
        let data = Tcp::new(frame::ACK, 1001, seq).with(b"answer").frame(guest, peer);
        let reset = Tcp::new(frame::RST | frame::ACK, 1007, seq).frame(guest, peer);
        arrive(&mut stack, at(3), &data);
        if !in_one_batch {
            // The host's socket takes nothing yet.
            assert_eq!(commands(&mut stack), [HostCommand::TcpTransfer { flow }]);
        }
        arrive(&mut stack, at(3), &reset);
        // Late, of the same connection: nothing comes of it.
        arrive(&mut stack, at(3), &data);
        assert_eq!(stack.poll_host(), Some(HostCommand::TcpTransfer { flow }));
        assert_eq!(stack.tcp_outgoing(flow).to_vec(), b"answer");
        stack.tcp_sent(flow, 6);
        assert_eq!(stack.poll_host(), Some(HostCommand::Close { flow, reset: true }));
        assert_eq!(stack.flow_count(), 0);
        assert_eq!(commands(&mut stack), []);
        assert!(frames(&mut stack, at(4)).is_empty(), "a reset is never answered");
    }
}

#[test]
fn a_guest_is_held_back_by_a_host_that_takes_nothing() {
    let mut stack = stack();
    let peer = addr("192.0.2.1:80");
    let guest = guest_for(peer);
    let (flow, seq) = open(&mut stack, peer);
    let mut next = 1001_u32;
    // As told in the SYN, and by the first acknowledgement.
    let first = 64 << 10;
    let mut window = first;
    let chunk = vec![7; 10_000];
    for turn in 0..40 {
        if window < chunk.len() {
            break;
        }
        let data = Tcp::new(frame::ACK, next, seq).with(&chunk);
        arrive(&mut stack, at(3 + turn), &data.frame(guest, peer));
        next = next.wrapping_add(chunk.len() as u32);
        let ack = segment(&mut stack, at(3 + turn));
        assert_eq!(ack.ack, next, "nothing inside the window is dropped");
        window = usize::from(ack.window) << 7;
        // Never taken back, hence rounded up.
        assert!(window < first - (next.wrapping_sub(1001) as usize) + 128);
    }
    assert!(window < chunk.len(), "the window closes");
    commands(&mut stack);
    let mut taken = 0;
    loop {
        let count = stack.tcp_outgoing(flow).len();
        if count == 0 {
            break;
        }
        stack.tcp_sent(flow, count);
        taken += count;
    }
    assert_eq!(taken, next.wrapping_sub(1001) as usize);
    assert_eq!(usize::from(segment(&mut stack, at(60)).window) << 7, first, "and reopens");
}

/// A window that the host keeps pace with doubles, up to its bound, and is given
/// back at the end.
#[test]
fn the_window_grows_with_its_use() {
    let mut stack = stack();
    let peer = addr("192.0.2.1:80");
    let guest = guest_for(peer);
    let (flow, seq) = open(&mut stack, peer);
    let mut next = 1001_u32;
    let mut windows = Vec::new();
    for turn in 0..400 {
        let data = Tcp::new(frame::ACK, next, seq).with(&[7; 20_000]);
        arrive(&mut stack, at(3 + turn), &data.frame(guest, peer));
        next = next.wrapping_add(20_000);
        commands(&mut stack);
        let count = stack.tcp_outgoing(flow).len();
        assert_eq!(count, 20_000);
        stack.tcp_sent(flow, count);
        windows.push(usize::from(segment(&mut stack, at(3 + turn)).window) << 7);
    }
    assert!(windows.is_sorted(), "{windows:?}");
    assert_eq!((windows[0], windows[399]), (64 << 10, 1 << 20));
    let reset = Tcp::new(frame::RST | frame::ACK, next, seq);
    arrive(&mut stack, at(500), &reset.frame(guest, peer));
    assert!(stack.memory.is_unused());
}

#[test]
fn large_segments_carry_what_the_kernel_needs_to_cut_them() {
    for (peer, kind, ip_len) in [(PEERS[0], 1, 20), (PEERS[1], 4, 40)] {
        let peer = addr(peer);
        let mut stack = stack();
        let (flow, seq) = open(&mut stack, peer);
        assert_eq!(give(&mut stack, flow, &[7; 200_000]), 200_000);
        let frame = stack.poll_frame(at(3)).unwrap().to_vec();
        let mss = 1440_u16;
        assert_eq!(frame[0], 1, "checksum to be completed");
        assert_eq!(frame[1], kind);
        assert_eq!(u16::from_le_bytes([frame[4], frame[5]]), mss);
        assert_eq!(usize::from(u16::from_le_bytes([frame[6], frame[7]])), 14 + ip_len);
        assert_eq!(u16::from_le_bytes([frame[8], frame[9]]), 16);
        let first = Tcp::parse(&packet(&frame));
        assert_eq!(first.seq, seq);
        assert_eq!(first.data.len() % usize::from(mss), 0, "no runt behind it");
        assert!(first.data.len() > 60_000);
        assert!(frame.len() <= frame::HEAD + 65535);
    }
}

#[test]
fn without_a_virtio_header_segments_fit_the_link_and_have_checksums() {
    let peer = addr("192.0.2.1:80");
    let guest = guest_for(peer);
    let config = Config::default();
    let mut stack = Netstack::new(config, Offloads::default(), 7);
    let bare = |tcp: Tcp| tcp.frame(guest, peer)[frame::VNET_LEN..].to_vec();
    arrive(&mut stack, at(0), &bare(Tcp::syn(1460)));
    let Some(HostCommand::TcpConnect { flow, .. }) = stack.poll_host() else { panic!() };
    stack.handle_host(at(1), HostEvent::TcpConnected { flow });
    let all = frames(&mut stack, at(1));
    let parse = |frame: &[u8]| match Frame::parse(frame, false).unwrap().payload {
        Payload::Ip(packet) => {
            let sum = frame::pseudo_sum(packet.src, packet.dst, proto::TCP, packet.payload.len());
            assert_eq!(frame::checksum(packet.payload, sum), 0, "a valid checksum");
            Tcp::parse(&packet)
        }
        Payload::Arp(_) => panic!(),
    };
    let seq = parse(&all[0]).seq.wrapping_add(1);
    arrive(&mut stack, at(2), &bare(Tcp::new(frame::ACK, 1001, seq)));
    assert_eq!(give(&mut stack, flow, &[7; 10_000]), 10_000);
    let all = frames(&mut stack, at(3));
    assert!(all.len() > 6);
    for frame in &all {
        assert!(frame.len() <= 14 + 1500);
        parse(frame);
    }
}

/// Wherever the sequence numbers start, and with a window that is large only when
/// scaled: what the guest has room for goes out at once.
#[test]
fn the_first_segment_is_as_large_as_the_scaled_window_allows() {
    for seed in 0..64 {
        let peer = addr(PEERS[seed as usize % 2]);
        let guest = guest_for(peer);
        let config = Config { enable_ipv6: true, ..Config::default() };
        let mut stack = Netstack::new(config, GRANTED, seed);
        arrive(&mut stack, at(0), &Tcp::syn(1440).frame(guest, peer));
        let Some(HostCommand::TcpConnect { flow, .. }) = stack.poll_host() else { panic!() };
        stack.handle_host(at(1), HostEvent::TcpConnected { flow });
        let seq = frames(&mut stack, at(1))
            .iter()
            .find_map(|frame| {
                let packet = packet(frame);
                (packet.proto == proto::TCP).then(|| Tcp::parse(&packet).seq.wrapping_add(1))
            })
            .unwrap();
        let mut ack = Tcp::new(frame::ACK, 1001, seq);
        ack.window = 400;
        arrive(&mut stack, at(2), &ack.frame(guest, peer));
        give(&mut stack, flow, &[7; 100_000]);
        let sent: usize = frames(&mut stack, at(2))
            .iter()
            .map(|frame| Tcp::parse(&packet(frame)).data.len())
            .sum();
        // Whole segments only: what is less waits (RFC 9293 section 3.8.6.2.1).
        assert_eq!(sent, (400 << 7) / 1440 * 1440, "seed {seed}");
    }
}

#[test]
fn a_published_port_opens_a_connection_to_the_guest() {
    let mut stack = stack();
    let guest = addr("10.0.2.100:80");
    let flow = stack.tcp_accepted(at(0), guest, addr("192.0.2.9:5555")).unwrap();
    let all = frames(&mut stack, at(0));
    let syn = packet(&all[0]);
    assert_eq!((syn.src, syn.dst), (addr("192.0.2.9:1").ip(), guest.ip()));
    let tcp = Tcp::parse(&syn);
    assert_eq!(tcp.flags, frame::SYN);
    let mut answer = Tcp::new(frame::SYN | frame::ACK, 50, tcp.seq.wrapping_add(1));
    answer.options = vec![2, 4, 5, 180];
    arrive(&mut stack, at(1), &answer.frame(guest, addr("192.0.2.9:5555")));
    assert_eq!(segment(&mut stack, at(1)).ack, 51);
    assert!(stack.tcp_room(flow) > 0);

    // Two clients that are shown alike get different ports.
    for _ in 0..2 {
        stack.tcp_accepted(at(2), guest, addr("127.0.0.1:777")).unwrap();
    }
    let ports: std::collections::HashSet<_> = frames(&mut stack, at(2))
        .iter()
        .map(|frame| {
            let packet = packet(frame);
            assert_eq!(packet.src, IpAddr::from([10, 0, 2, 2]));
            [packet.payload[0], packet.payload[1]]
        })
        .collect();
    assert_eq!(ports.len(), 2);

    // Nobody listens in the guest: the client is reset.
    let dead = stack.tcp_accepted(at(3), guest, addr("192.0.2.9:6666")).unwrap();
    let syn = segment(&mut stack, at(3));
    commands(&mut stack);
    let reset = Tcp::new(frame::RST | frame::ACK, 0, syn.seq.wrapping_add(1));
    arrive(&mut stack, at(4), &reset.frame(guest, addr("192.0.2.9:6666")));
    assert_eq!(commands(&mut stack), [HostCommand::Close { flow: dead, reset: true }]);
}

#[test]
fn a_guest_that_vanished_is_given_up() {
    let mut stack = stack_with(|config| config.enable_ipv6 = false);
    let peer = addr("192.0.2.1:80");
    let (flow, _) = open(&mut stack, peer);
    let mut now = at(10);
    let mut probes = 0;
    while stack.flow_count() > 0 {
        let next = stack.poll_timeout().expect("a flow without an end");
        assert!(next > now, "time goes on");
        now = next;
        stack.handle_timeout(now);
        probes += frames(&mut stack, now).len();
        assert!(now < Duration::from_secs(4 * 3600));
    }
    assert!(probes > 0);
    assert!(commands(&mut stack).contains(&HostCommand::Close { flow, reset: true }));
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

#[test]
fn one_port_of_the_guest_is_one_socket_for_all_peers() {
    let mut stack = stack();
    let guest = addr("10.0.2.100:4000");
    arrive(&mut stack, at(0), &udp_frame(guest, addr("192.0.2.1:1"), b"a"));
    arrive(&mut stack, at(0), &udp_frame(guest, addr("192.0.2.2:2"), b""));
    let sent = commands(&mut stack);
    let [HostCommand::UdpSend { flow, .. }, HostCommand::UdpSend { flow: other, to, data }] =
        &sent[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!((flow, *to, &data[..]), (other, addr("192.0.2.2:2"), &b""[..]));
    let (flow, from) = (*flow, addr("192.0.2.77:9"));
    stack.handle_host(at(1), HostEvent::UdpReceived { flow, from, data: b"hi" });
    let all = frames(&mut stack, at(1));
    let answer = packet(&all[0]);
    assert_eq!((answer.src, answer.dst), (from.ip(), guest.ip()));
    assert_eq!(answer.payload[8..], *b"hi");

    stack.handle_timeout(at(179_000));
    assert_eq!(stack.flow_count(), 1);
    stack.handle_timeout(at(181_001));
    assert_eq!(commands(&mut stack), [HostCommand::Close { flow, reset: false }]);
}

#[test]
fn datagrams_of_any_size_pass_in_fragments_both_ways() {
    for (peer, most) in [(PEERS[0], 65507), (PEERS[1], 65527)] {
        let peer = addr(peer);
        let guest = guest_for(peer);
        for size in [1472, 1473, 20_000, most] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let mut stack = stack();
            arrive(&mut stack, at(0), &udp_frame(guest, peer, b"x"));
            let Some(HostCommand::UdpSend { flow, .. }) = stack.poll_host() else { panic!() };
            let event = HostEvent::UdpReceived { flow, from: peer, data: &data };
            stack.handle_host(at(0), event);
            let all = frames(&mut stack, at(0));
            // Back the way it came: the fragments, turned round, reassemble.
            let mut back = Netstack::new(stack.config().clone(), GRANTED, 1);
            for frame in all.iter().rev() {
                assert!(frame.len() <= frame::HEAD + 1500);
                arrive(&mut back, at(0), &turned_round(frame));
            }
            let got = commands(&mut back);
            let [HostCommand::UdpSend { data: got, to, .. }] = &got[..] else { panic!("{got:?}") };
            assert_eq!((got, *to), (&data, peer));
        }
    }
}

/// A frame with source and destination of IP and UDP exchanged.
fn turned_round(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let ip = &mut frame[frame::HEAD..];
    let (v6, first, ports) = if ip[0] >> 4 == 6 {
        let (a, b) = ip[8..40].split_at_mut(16);
        a.swap_with_slice(b);
        let fragment = ip[6] == proto::FRAGMENT;
        (true, !fragment || ip[42] == 0 && ip[43] & 0xf8 == 0, if fragment { 48 } else { 40 })
    } else {
        let (a, b) = ip[12..20].split_at_mut(4);
        a.swap_with_slice(b);
        (false, ip[6] & 0x1f == 0 && ip[7] == 0, 20)
    };
    if first {
        let (a, b) = ip[ports..ports + 4].split_at_mut(2);
        a.swap_with_slice(b);
    }
    let _ = v6;
    frame
}

#[test]
fn an_undelivered_datagram_comes_back_as_an_error() {
    for peer in PEERS {
        let peer = addr(peer);
        let guest = guest_for(peer);
        let mut stack = stack();
        arrive(&mut stack, at(0), &udp_frame(guest, peer, b"x"));
        let Some(HostCommand::UdpSend { flow, .. }) = stack.poll_host() else { panic!() };
        let why = Unreachable::Port;
        stack.handle_host(at(0), HostEvent::UdpUnreachable { flow, to: peer, why });
        let (kind, code, quoted) = icmp_error(&mut stack);
        assert_eq!((kind, code), if peer.is_ipv4() { (3, 3) } else { (1, 4) });
        let quoted = Packet::parse(&quoted).unwrap();
        assert_eq!((quoted.src, quoted.dst, quoted.proto), (guest.ip(), peer.ip(), proto::UDP));
        assert_eq!(quoted.payload[..2], guest.port().to_be_bytes());
        assert_eq!(quoted.payload[2..4], peer.port().to_be_bytes());
    }
}

#[test]
fn clients_of_a_published_udp_port_are_answered_from_it() {
    let mut stack = stack_with(|config| config.disable_host_loopback = true);
    let guest = addr("10.0.2.100:53");
    for client in ["192.0.2.9:1234", "127.0.0.1:1234"] {
        let from = addr(client);
        let event = HostEvent::UdpInbound { publish: 3, guest, from, data: b"q" };
        stack.handle_host(at(0), event);
        let all = frames(&mut stack, at(0));
        let query = packet(&all[0]);
        let port = u16::from_be_bytes([query.payload[0], query.payload[1]]);
        let shown = SocketAddr::new(query.src, port);
        arrive(&mut stack, at(1), &udp_frame(guest, shown, b"r"));
        let data = b"r".to_vec();
        assert_eq!(commands(&mut stack), [HostCommand::UdpReply { publish: 3, to: from, data }]);
    }
    // Nobody else on the loopback is reached that way.
    arrive(&mut stack, at(2), &udp_frame(guest, addr("10.0.2.2:999"), b"r"));
    assert_eq!(commands(&mut stack), []);
    frames(&mut stack, at(2));
    // The clients are forgotten.
    stack.handle_timeout(at(200_000));
    arrive(&mut stack, at(200_000), &udp_frame(guest, addr("10.0.2.2:1234"), b"r"));
    assert_eq!(commands(&mut stack), []);
}

fn echo(src: &str, dst: &str, kind: u8) -> Vec<u8> {
    let proto = if src.contains(':') { proto::ICMPV6 } else { proto::ICMP };
    let body = [kind, 0, 0, 0, 0x12, 0x34, 0, 9, b'd', b'a'];
    frame_of(src.parse().unwrap(), dst.parse().unwrap(), proto, &body)
}

#[test]
fn echo_is_answered_here_or_by_the_host() {
    for (guest, gateway, far, request, reply) in [
        ("10.0.2.100", "10.0.2.2", "192.0.2.1", 8, 0),
        ("fd00::100", "fd00::2", "2001:db8::1", 128, 129),
    ] {
        let mut stack = stack();
        arrive(&mut stack, at(0), &echo(guest, gateway, request));
        let all = frames(&mut stack, at(0));
        let answer = packet(&all[0]);
        assert_eq!(answer.src.to_string(), gateway);
        assert_eq!(answer.payload[0], reply);
        assert_eq!(answer.payload[4..], [0x12, 0x34, 0, 9, b'd', b'a']);

        arrive(&mut stack, at(0), &echo(guest, far, request));
        let sent = commands(&mut stack);
        let [HostCommand::EchoSend { flow, to, seq: 9, data }] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!((to.to_string().as_str(), &data[..]), (far, &b"da"[..]));
        let (flow, from) = (*flow, *to);
        stack.handle_host(at(1), HostEvent::EchoReply { flow, from, seq: 9, data: b"da" });
        let all = frames(&mut stack, at(1));
        assert_eq!(packet(&all[0]).payload[4..], [0x12, 0x34, 0, 9, b'd', b'a']);

        let why = Unreachable::Prohibited;
        stack.handle_host(at(2), HostEvent::EchoUnreachable { flow, to: from, seq: 9, why });
        let (kind, code, _) = icmp_error(&mut stack);
        assert_eq!((kind, code), if reply == 0 { (3, 13) } else { (1, 1) });
    }
}

/// A frame with another time to live; IPv4's header checksum is not looked at.
fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    let ip = frame::HEAD;
    let at = if frame[ip] >> 4 == 6 { ip + 7 } else { ip + 8 };
    frame[at] = ttl;
    frame
}

#[test]
fn a_path_is_traced_through_us_and_the_host() {
    for (guest, gateway, far, hop, request) in [
        ("10.0.2.100", "10.0.2.2", "192.0.2.1", "198.51.100.1", 8),
        ("fd00::100", "fd00::2", "2001:db8::1", "2001:db8:1::1", 128),
    ] {
        let v6 = request == 128;
        let expired = if v6 { (3, 0) } else { (11, 0) };
        let at_hop = |stack: &mut Netstack, hop: &str| {
            let all = frames(stack, at(0));
            let packet = packet(&all[0]);
            assert_eq!(packet.src.to_string(), hop);
            assert_eq!((packet.payload[0], packet.payload[1]), expired);
            // The original's upper layer, eight bytes of it at least.
            packet.payload[8 + if v6 { 40 } else { 20 }..].to_vec()
        };
        let mut stack = stack();
        arrive(&mut stack, at(0), &with_ttl(echo(guest, far, request), 1));
        assert_eq!(commands(&mut stack), []);
        assert_eq!(at_hop(&mut stack, gateway)[4..8], [0x12, 0x34, 0, 9]);

        arrive(&mut stack, at(0), &with_ttl(echo(guest, far, request), 3));
        let sent = commands(&mut stack);
        let [
            HostCommand::SetTtl { ttl: Some(2), ping: true, .. },
            HostCommand::EchoSend { flow, to, seq, .. },
        ] = sent[..]
        else {
            panic!("{sent:?}")
        };
        let why = Unreachable::Expired { at: hop.parse().unwrap() };
        stack.handle_host(at(1), HostEvent::EchoUnreachable { flow, to, seq, why });
        assert_eq!(at_hop(&mut stack, hop)[4..8], [0x12, 0x34, 0, 9]);
        arrive(&mut stack, at(0), &with_ttl(echo(guest, far, request), 3));
        assert_eq!(commands(&mut stack).len(), 1, "it is set once");
        arrive(&mut stack, at(0), &with_ttl(echo(guest, far, request), 64));
        let sent = commands(&mut stack);
        assert!(matches!(sent[0], HostCommand::SetTtl { ttl: None, .. }), "{sent:?}");

        let (from, to) = (
            SocketAddr::new(guest.parse().unwrap(), 4000),
            SocketAddr::new(far.parse().unwrap(), 33434),
        );
        let datagram = |ttl| with_ttl(udp_frame(from, to, b"trace"), ttl);
        arrive(&mut stack, at(0), &datagram(1));
        assert_eq!(commands(&mut stack), []);
        assert_eq!(at_hop(&mut stack, gateway)[..4], [0x0f, 0xa0, 0x82, 0x9a]);
        arrive(&mut stack, at(0), &datagram(2));
        let sent = commands(&mut stack);
        let [
            HostCommand::SetTtl { ttl: Some(1), ping: false, .. },
            HostCommand::UdpSend { flow, .. },
        ] = sent[..]
        else {
            panic!("{sent:?}")
        };
        stack.handle_host(at(1), HostEvent::UdpUnreachable { flow, to, why });
        assert_eq!(at_hop(&mut stack, hop)[..4], [0x0f, 0xa0, 0x82, 0x9a]);

        let why = Unreachable::TooBig { mtu: 1400 };
        stack.handle_host(at(1), HostEvent::UdpUnreachable { flow, to, why });
        let all = frames(&mut stack, at(1));
        let told = packet(&all[0]);
        assert_eq!(told.payload[..2], if v6 { [2, 0] } else { [3, 4] });
        assert_eq!(told.payload[4..8], 1400u32.to_be_bytes());
    }
}

#[test]
fn an_idle_stack_wants_no_wake_up() {
    let mut stack = stack_with(|config| config.enable_ipv6 = false);
    assert_eq!(stack.poll_timeout(), None);
    let (flow, seq) = open(&mut stack, addr("192.0.2.1:80"));
    // What the handshake left armed comes up once; then nothing before the probe
    // after two hours.
    let mut wake_ups = 0;
    while let Some(next) = stack.poll_timeout()
        && next < Duration::from_secs(7200)
    {
        stack.handle_timeout(next);
        assert!(frames(&mut stack, next).is_empty());
        wake_ups += 1;
    }
    assert!(wake_ups <= 2, "{wake_ups}");
    assert!(stack.poll_timeout().is_some());
    let reset = Tcp::new(frame::RST | frame::ACK, 1001, seq);
    arrive(&mut stack, at(5), &reset.frame(addr("10.0.2.100:4000"), addr("192.0.2.1:80")));
    assert!(commands(&mut stack).contains(&HostCommand::Close { flow, reset: true }));
    assert_eq!(stack.poll_timeout(), None);
}

/// Bytes that come next go to the host from the frames they came in; what it does not
/// take survives the end of the batch, whatever arrived meanwhile.
#[test]
fn bytes_are_lent_from_their_frames_and_copied_only_when_left() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    let guest = guest_for(peer);
    let (flow, seq) = open(&mut stack, peer);
    let part = |n: u32| pattern(n.into(), 500);
    let data = |n: u32| Tcp::new(frame::ACK, 1001 + n * 500, seq).with(&part(n));
    for n in [0, 1, 2] {
        arrive(&mut stack, at(3), &data(n).frame(guest, peer));
    }
    assert_eq!(stack.memory.pool.lent(), 0, "nothing was copied");
    assert_eq!(stack.tcp_outgoing(flow).as_slices().len(), 3, "three segments in one call");
    assert_eq!(stack.tcp_outgoing(flow).to_vec(), [part(0), part(1), part(2)].concat());
    stack.tcp_sent(flow, 700);
    stack.end_batch();
    assert!(stack.memory.pool.lent() > 0);
    // Others behind what is left; a hole, and what fills it.
    for n in [3, 5, 4, 6] {
        arrive(&mut stack, at(4), &data(n).frame(guest, peer));
        arrive(&mut stack, at(4), &data(0).frame(guest, peer));
    }
    stack.end_batch();
    let all: Vec<u8> = (0..7).flat_map(part).collect();
    assert_eq!(stack.tcp_outgoing(flow).to_vec(), all[700..]);
    stack.tcp_sent(flow, all.len() - 700);
    assert_eq!(stack.memory.pool.lent(), 0);
    assert_eq!(frames(&mut stack, at(4)).pop().map(|f| Tcp::parse(&packet(&f)).ack), Some(4501));
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

#[test]
fn a_stack_beside_the_main_one_has_the_guests_connections_only() {
    let mut stack = stack();
    stack.set_share(4);
    stack.set_side();
    let peer = addr(PEERS[0]);
    let guest = guest_for(peer);
    open(&mut stack, peer);
    let other = addr("192.0.2.7:99");
    for foreign in [
        udp_frame(guest, peer, b"x"),
        echo("10.0.2.100", "10.0.2.2", 8),
        Tcp::new(frame::ACK, 1, 1).frame(guest, other),
        Tcp::new(frame::ACK | frame::SYN, 1, 1).frame(guest, other),
    ] {
        stack.frame_room()[..foreign.len()].copy_from_slice(&foreign);
        assert_eq!(stack.handle_frame(at(3), foreign.len()), Some(&foreign[..]));
    }
    assert_eq!(commands(&mut stack), []);
    stack.handle_timeout(at(3));
    assert!(frames(&mut stack, at(3)).is_empty(), "it does not advertise routers");
}
