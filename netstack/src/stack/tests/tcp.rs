//! Packet traces of TCP.

use super::*;

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
/// The guest sends pieces of `len` bytes, which the host takes at once; gives the
/// windows that are told, and the next sequence number.
fn windows(
    stack: &mut Netstack,
    peer: SocketAddr,
    (flow, seq): (FlowId, u32),
    len: usize,
) -> (Vec<usize>, u32) {
    let mut next = 1001_u32;
    let mut windows = Vec::new();
    for turn in 0..400 {
        let data = Tcp::new(frame::ACK, next, seq).with(&vec![7; len]);
        arrive(stack, at(3 + turn), &data.frame(guest_for(peer), peer));
        next = next.wrapping_add(len as u32);
        commands(stack);
        let count = stack.tcp_outgoing(flow).len();
        assert_eq!(count, len);
        stack.tcp_sent(flow, count);
        windows.push(usize::from(segment(stack, at(3 + turn)).window) << 7);
    }
    assert!(windows.is_sorted(), "{windows:?}");
    (windows, next)
}

#[test]
fn the_window_grows_with_its_use() {
    let mut stack = stack();
    let peer = addr("192.0.2.1:80");
    let (flow, seq) = open(&mut stack, peer);
    let (windows, next) = windows(&mut stack, peer, (flow, seq), 20_000);
    assert_eq!((windows[0], windows[399]), (64 << 10, 1 << 20));
    let reset = Tcp::new(frame::RST | frame::ACK, next, seq);
    arrive(&mut stack, at(500), &reset.frame(guest_for(peer), peer));
    assert!(stack.memory.is_unused());
}

#[test]
fn idle_connections_leave_room_for_a_busy_one() {
    let mut stack = stack();
    let peer = |port: u16| SocketAddr::new([192, 0, 2, 1].into(), port);
    for port in 1..=10_000 {
        open(&mut stack, peer(port));
    }
    let flow = open(&mut stack, peer(20_000));
    let (windows, _) = windows(&mut stack, peer(20_000), flow, 8000);
    assert_eq!((windows[0], windows[399]), (16 << 10, 1 << 20));
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

#[test]
fn many_idle_connections_want_no_more_wake_ups_than_one() {
    let mut stack = stack_with(|config| config.enable_ipv6 = false);
    let (peer, count) = (addr("192.0.2.1:80"), 2000);
    let (mut now, mut answered) = (at(0), 0);
    for port in 0..count {
        let guest = SocketAddr::new(guest_for(peer).ip(), 10_000 + port);
        now += Duration::from_micros(100);
        arrive(&mut stack, now, &Tcp::syn(1440).frame(guest, peer));
        let [HostCommand::TcpConnect { flow, .. }] = commands(&mut stack)[..] else { panic!() };
        stack.handle_host(now, HostEvent::TcpConnected { flow });
        let seq = segment(&mut stack, now).seq.wrapping_add(1);
        arrive(&mut stack, now, &Tcp::new(frame::ACK, 1001, seq).frame(guest, peer));
        answered += frames(&mut stack, now).len();
        commands(&mut stack);
    }
    assert_eq!((stack.flow_count(), answered), (count.into(), 0));
    // What was armed for their SYN-ACKs comes up within moments, many at a time; then
    // nothing before the probes after two hours.
    let (mut wake_ups, mut last) = (0, now);
    while let Some(next) = stack.poll_timeout()
        && next < Duration::from_secs(7200)
    {
        stack.handle_timeout(next);
        assert!(frames(&mut stack, next).is_empty());
        (wake_ups, last) = (wake_ups + 1, next);
    }
    assert!(wake_ups <= 2 * 11, "{wake_ups} wake-ups for connections of 0.2 s, by ticks of 20 ms");
    assert!(last <= now + Duration::from_secs(61), "{last:?}");
}

/// A request of the guest arrives and is sent on; gives the frames for the guest that
/// come of it.
fn request(stack: &mut Netstack, now: Duration, flow: FlowId, tcp: &Tcp) -> Vec<Tcp> {
    let peer = addr(PEERS[0]);
    arrive(stack, now, &tcp.frame(guest_for(peer), peer));
    assert_eq!(stack.tcp_outgoing(flow).to_vec(), tcp.data);
    stack.tcp_sent(flow, tcp.data.len());
    commands(stack);
    stack.end_batch();
    frames(stack, now).iter().map(|frame| Tcp::parse(&packet(frame))).collect()
}

#[test]
fn an_answer_acknowledges_its_request_once_they_take_turns() {
    // Without router advertisements.
    let mut stack = stack_with(|config| config.enable_ipv6 = false);
    let (flow, seq) = open(&mut stack, addr(PEERS[0]));
    let (mut asked, mut answered) = (1001, seq);
    let ask = |asked: u32, answered: u32, len: usize| {
        Tcp::new(frame::ACK, asked, answered).with(&pattern(asked.into(), len))
    };
    let mut turns = |stack: &mut Netstack, from: u64, count: u64| {
        let mut acknowledgements = Vec::new();
        for now in (from..).step_by(10).take(count as usize).map(at) {
            let frames = request(stack, now, flow, &ask(asked, answered, 64));
            asked += 64;
            assert!(frames.iter().all(|tcp| tcp.data.is_empty() && tcp.ack == asked));
            acknowledgements.push(frames.len());
            assert_eq!(give(stack, flow, &[7; 32]), 32);
            let answer = segment(stack, now);
            assert_eq!((answer.seq, answer.ack, answer.data.len()), (answered, asked, 32));
            answered = answered.wrapping_add(32);
        }
        (acknowledgements, asked, answered)
    };
    let (acknowledgements, asked, answered) = turns(&mut stack, 10, 8);
    assert_eq!(acknowledgements, [1, 1, 1, 1, 0, 0, 0, 0]);

    // No answer comes: 40 ms, and the rounding of deadlines.
    let now = at(100);
    assert_eq!(request(&mut stack, now, flow, &ask(asked, answered, 64)), []);
    let acknowledgement = loop {
        let next = stack.poll_timeout().expect("the acknowledgement is owed");
        assert!(next <= now + at(60), "{next:?}");
        stack.handle_timeout(next);
        if let [frame] = &frames(&mut stack, next)[..] {
            break Tcp::parse(&packet(frame));
        }
    };
    assert_eq!((acknowledgement.ack, acknowledgement.data.len()), (asked + 64, 0));
    let next = request(&mut stack, at(200), flow, &ask(asked + 64, answered, 64));
    assert_eq!(next.len(), 1, "the bet was lost: at once again");
}

#[test]
fn long_and_second_segments_are_acknowledged_at_once() {
    for (first, second) in [(64, 64), (1460, 0)] {
        let mut stack = stack();
        let (flow, seq) = open(&mut stack, addr(PEERS[0]));
        let (mut asked, mut answered) = (1001, seq);
        for now in (10..18).map(at) {
            let tcp = Tcp::new(frame::ACK, asked, answered).with(&[1; 64]);
            request(&mut stack, now, flow, &tcp);
            asked += 64;
            give(&mut stack, flow, &[7; 32]);
            segment(&mut stack, now);
            answered = answered.wrapping_add(32);
        }
        let mut last = Vec::new();
        for len in [first, second] {
            let tcp = Tcp::new(frame::ACK, asked, answered).with(&vec![2; len]);
            last.extend(request(&mut stack, at(20), flow, &tcp));
            asked += len as u32;
        }
        assert_eq!(last.len(), 1);
        assert_eq!(last[0].ack, asked);
    }
}

#[test]
fn a_connection_that_both_ends_have_finished_is_closed_with_one_command() {
    let mut stack = stack();
    let peer = addr(PEERS[0]);
    let guest = guest_for(peer);
    let (flow, seq) = open(&mut stack, peer);
    stack.handle_host(at(3), HostEvent::TcpFinished { flow });
    assert_eq!(segment(&mut stack, at(3)).flags, frame::FIN | frame::ACK);
    let fin = Tcp::new(frame::FIN | frame::ACK, 1001, seq.wrapping_add(1));
    arrive(&mut stack, at(4), &fin.frame(guest, peer));
    assert_eq!(segment(&mut stack, at(4)).ack, 1002);
    assert_eq!(commands(&mut stack), [HostCommand::Close { flow, reset: false }]);
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
