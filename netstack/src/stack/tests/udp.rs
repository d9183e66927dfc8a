//! Packet traces of UDP and ICMP.

use super::*;

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
    let (first, ports) = if ip[0] >> 4 == 6 {
        let (a, b) = ip[8..40].split_at_mut(16);
        a.swap_with_slice(b);
        let fragment = ip[6] == proto::FRAGMENT;
        (!fragment || ip[42] == 0 && ip[43] & 0xf8 == 0, if fragment { 48 } else { 40 })
    } else {
        let (a, b) = ip[12..20].split_at_mut(4);
        a.swap_with_slice(b);
        (ip[6] & 0x1f == 0 && ip[7] == 0, 20)
    };
    if first {
        let (a, b) = ip[ports..ports + 4].split_at_mut(2);
        a.swap_with_slice(b);
    }
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

/// Datagrams of the command, with where they go.
fn sent(command: &HostCommand) -> (SocketAddr, Vec<Vec<u8>>) {
    match command {
        HostCommand::UdpSend { to, data, .. } => (*to, vec![data.clone()]),
        HostCommand::UdpSendMany { to, data, segment, .. } => {
            assert!(data.len() > *segment && data.len() <= TOGETHER_BYTES);
            (*to, data.chunks(*segment).map(<[u8]>::to_vec).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn datagrams_of_one_length_go_to_the_host_together() {
    for peer in PEERS {
        let mut stack = stack();
        let peer = addr(peer);
        let guest = guest_for(peer);
        let mut elsewhere = peer;
        elsewhere.set_port(9);
        let mut stranger = guest;
        stranger.set_port(4001);
        // (from, to, bytes) and the commands they must become.
        let trace = [
            (guest, peer, 100),
            (stranger, peer, 100),
            (guest, peer, 100),
            (guest, peer, 60),
            (guest, peer, 60),
            (guest, peer, 61),
            (guest, elsewhere, 61),
            (guest, peer, 61),
            (guest, peer, 0),
            (guest, peer, 1),
        ];
        for (n, (from, to, len)) in trace.into_iter().enumerate() {
            arrive(&mut stack, at(1), &udp_frame(from, to, &pattern(n as u64, len)));
        }
        let part = |n: usize| pattern(n as u64, trace[n].2);
        let got: Vec<_> = commands(&mut stack).iter().map(sent).collect();
        let expected = [
            (peer, vec![part(0), part(2), part(3)]),
            (peer, vec![part(1)]),
            (peer, vec![part(4)]),
            (peer, vec![part(5)]),
            (elsewhere, vec![part(6)]),
            (peer, vec![part(7)]),
            (peer, vec![part(8)]),
            (peer, vec![part(9)]),
        ];
        assert!(got == expected, "{got:?}");

        // What was taken is not added to.
        arrive(&mut stack, at(2), &udp_frame(guest, peer, &part(9)));
        assert_eq!(commands(&mut stack).len(), 1);
    }
}

#[test]
fn together_they_stay_within_what_a_call_may_send() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    for (len, count) in [(1000, 200_usize), (1, 200), (30_000, 5)] {
        for n in 0..count {
            arrive(&mut stack, at(1), &udp_frame(guest_for(peer), peer, &pattern(n as u64, len)));
        }
        let commands = commands(&mut stack);
        let all: Vec<Vec<u8>> = commands.iter().flat_map(|command| sent(command).1).collect();
        assert!(all.iter().enumerate().all(|(n, data)| *data == pattern(n as u64, len)));
        assert_eq!(all.len(), count);
        assert!(commands.iter().all(|command| sent(command).1.len() <= 64));
        assert!(commands.len() <= count.div_ceil((TOGETHER_BYTES / len).min(64)));
    }
}

#[test]
fn a_frame_of_segments_of_the_guest_is_cut_where_it_says() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    let data = pattern(3, 2500);
    let mut frame = udp_frame(guest_for(peer), peer, &data);
    // VIRTIO_NET_HDR_GSO_UDP_L4, of 1000 bytes.
    frame[1] = 5;
    frame[4..6].copy_from_slice(&1000_u16.to_le_bytes());
    arrive(&mut stack, at(1), &frame);
    let [command] = &commands(&mut stack)[..] else { panic!("one call") };
    assert_eq!(sent(command).1, data.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>());
}

/// What the guest's kernel makes of a frame: datagrams, by virtio 1.2 section 5.1.6.
fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
    let packet = packet(frame);
    assert_eq!(packet.proto, proto::UDP);
    let (header, data) = packet.payload.split_at(8);
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    assert_eq!(len, packet.payload.len());
    assert_eq!(frame[0], 1, "the checksum is to be completed");
    let pseudo = frame::pseudo_sum(packet.src, packet.dst, proto::UDP, len);
    assert_eq!(u16::from_be_bytes([header[6], header[7]]), frame::fold(pseudo));
    if packet.src.is_ipv4() {
        assert_eq!(frame::checksum(&packet.bytes[..20], 0), 0);
    }
    let field = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
    if frame[1] == 0 {
        return vec![data.to_vec()];
    }
    assert_eq!(frame[1], 5);
    let headers = frame.len() - frame::VNET_LEN - data.len();
    assert_eq!((field(2), field(6), field(8)), (headers, headers - 8, 6));
    assert!(data.len() > field(4));
    data.chunks(field(4)).map(<[u8]>::to_vec).collect()
}

#[test]
fn datagrams_of_one_length_reach_the_guest_in_one_frame_where_its_kernel_cuts_them() {
    for (peer, uso) in PEERS.iter().flat_map(|peer| [(peer, true), (peer, false)]) {
        let peer = addr(peer);
        let guest = guest_for(peer);
        let config = Config { enable_ipv6: true, ..Config::default() };
        let mut stack = Netstack::new(config, Offloads { uso, ..GRANTED }, 7);
        arrive(&mut stack, at(0), &udp_frame(guest, peer, b"x"));
        let flow = match commands(&mut stack)[..] {
            [HostCommand::UdpSend { flow, .. }] => flow,
            ref other => panic!("{other:?}"),
        };
        let mut elsewhere = peer;
        elsewhere.set_port(9);
        let trace = [(peer, 500), (peer, 500), (peer, 20), (peer, 20), (elsewhere, 20), (peer, 0)];
        let long = std::iter::repeat_n((peer, 1400), 100);
        let trace: Vec<_> = trace.into_iter().chain(long).collect();
        for (n, (from, len)) in trace.iter().enumerate() {
            let data = pattern(n as u64, *len);
            stack.handle_host(at(1), HostEvent::UdpReceived { flow, from: *from, data: &data });
        }
        let frames = frames(&mut stack, at(1));
        let got: Vec<_> = frames
            .iter()
            .flat_map(|frame| {
                let from = packet(frame).src;
                cut(frame).into_iter().map(move |data| (from, data))
            })
            .collect();
        let expected: Vec<_> = trace
            .iter()
            .enumerate()
            .map(|(n, (from, len))| (from.ip(), pattern(n as u64, *len)))
            .collect();
        assert!(got == expected);
        // 500 + 500 + 20, 20, 20, 0, and 1400 as often as 64 KiB and 64 pieces allow.
        assert_eq!(frames.len(), if uso { 4 + 3 } else { trace.len() });
        assert!(frames.iter().all(|frame| packet(frame).bytes.len() <= 65535));
    }
}

#[test]
fn a_full_table_lets_the_longest_unused_flow_of_datagrams_go() {
    let mut stack = stack();
    stack.flows.set_limit(3);
    let peer = addr(PEERS[0]);
    let guest = |port: u16| SocketAddr::new(guest_for(peer).ip(), port);
    for port in [1, 2, 3, 1] {
        arrive(&mut stack, at(1), &udp_frame(guest(port), peer, b"x"));
    }
    let sent = commands(&mut stack);
    let Some(HostCommand::UdpSend { flow: second, .. }) = sent.get(1) else { panic!("{sent:?}") };
    let close = HostCommand::Close { flow: *second, reset: false };
    arrive(&mut stack, at(2), &udp_frame(guest(4), peer, b"x"));
    assert_eq!(stack.poll_host(), Some(close), "the first was used after it");
    commands(&mut stack);
    // Connections take the place of datagrams, never of each other.
    for port in [10, 11, 12, 13] {
        arrive(&mut stack, at(3), &Tcp::syn(1440).frame(guest(port), peer));
    }
    let opened =
        commands(&mut stack).iter().filter(|c| matches!(c, HostCommand::TcpConnect { .. })).count();
    assert_eq!(opened, 3);
    assert_eq!(segment(&mut stack, at(3)).flags, frame::RST | frame::ACK);
    arrive(&mut stack, at(4), &udp_frame(guest(5), peer, b"x"));
    assert_eq!(commands(&mut stack), []);
    assert_eq!((stack.counters().evicted, stack.counters().table_full), (4, 2));
}

/// A port scan of the guest's cannot hold more than the table does.
#[test]
fn a_flood_of_syns_and_ports_leaves_a_table_of_bounded_size() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    for n in 0..40_000_u32 {
        let from = SocketAddr::new(guest_for(peer).ip(), (n % 64_000 + 1) as u16);
        let to = SocketAddr::new([198, 51, 100, (n / 64_000) as u8].into(), 80);
        if n % 2 == 0 {
            arrive(&mut stack, at(1), &Tcp::syn(1440).frame(from, to));
        } else {
            arrive(&mut stack, at(1), &udp_frame(from, to, b"x"));
        }
        commands(&mut stack);
        frames(&mut stack, at(1));
        assert!(stack.flow_count() <= FLOWS_MAX);
    }
    assert_eq!(stack.flow_count(), FLOWS_MAX);
    assert!(stack.counters().table_full > 0 && stack.counters().evicted > 0);
    // All are given up in time, and nothing is left.
    let later = at(1) + Duration::from_secs(300);
    stack.handle_timeout(later);
    commands(&mut stack);
    assert_eq!(stack.flow_count(), 0);
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
fn a_datagram_with_another_time_to_live_is_not_sent_with_those_before() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    let frame = udp_frame(guest_for(peer), peer, b"x");
    for ttl in [64, 64, 5, 5] {
        arrive(&mut stack, at(1), &with_ttl(frame.clone(), ttl));
    }
    let all = commands(&mut stack);
    let [
        HostCommand::UdpSendMany { .. },
        HostCommand::SetTtl { ttl: Some(4), .. },
        HostCommand::UdpSendMany { .. },
    ] = &all[..]
    else {
        panic!("{all:?}")
    };
}
