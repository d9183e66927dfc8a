//! Frames of any kind: nothing panics, nothing is unbounded.

use proptest::prelude::*;

use super::*;

/// Frames of a conversation, to be mutilated.
fn seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for peer in ["192.0.2.1:80", "[2001:db8::1]:80", "10.0.2.2:80", "10.0.2.3:53"] {
        let peer = addr(peer);
        let guest = guest_for(peer);
        all.push(Tcp::syn(1440).frame(guest, peer));
        all.push(Tcp::new(frame::ACK, 1001, 0).frame(guest, peer));
        all.push(Tcp::new(frame::ACK, 1001, 0).with(b"hello, world").frame(guest, peer));
        all.push(Tcp::new(frame::ACK | frame::FIN, 1013, 0).frame(guest, peer));
        all.push(Tcp::new(frame::ACK | frame::RST, 1013, 0).frame(guest, peer));
        all.push(udp_frame(guest, peer, b"datagram"));
    }
    all.push(echo("10.0.2.100", "192.0.2.1", 8));
    all.push(echo("fd00::100", "2001:db8::1", 128));
    all.push(echo("fd00::100", "ff02::2", 133));
    all.push(udp_frame(addr("0.0.0.0:68"), addr("255.255.255.255:67"), &[1; 300]));
    let mut arp = udp_frame(addr("10.0.2.100:1"), addr("10.0.2.2:1"), &[0; 20]);
    arp[frame::VNET_LEN + 12..frame::VNET_LEN + 14].copy_from_slice(&[8, 6]);
    all.push(arp);
    all
}

/// Whatever the host might say to what it was told, chosen by `dice`.
fn answer(stack: &mut Netstack, now: Duration, command: &HostCommand, dice: u8) {
    match *command {
        HostCommand::TcpConnect { flow, .. } if dice < 200 => {
            stack.handle_host(now, HostEvent::TcpConnected { flow });
        }
        HostCommand::TcpConnect { flow, .. } => {
            let why = ConnectError::Unreachable(Unreachable::Net);
            stack.handle_host(now, HostEvent::TcpFailed { flow, why });
        }
        HostCommand::TcpTransfer { flow } => {
            let count = stack.tcp_outgoing(flow).len();
            stack.tcp_sent(flow, count.min(usize::from(dice)));
            if stack.tcp_room(flow) > 0 {
                give(stack, flow, &vec![dice; usize::from(dice) * 500]);
            }
            match dice {
                0..10 => stack.handle_host(now, HostEvent::TcpFinished { flow }),
                10..15 => stack.handle_host(now, HostEvent::TcpReset { flow }),
                _ => {}
            }
        }
        HostCommand::UdpSend { flow, to, ref data } => {
            stack.handle_host(now, HostEvent::UdpReceived { flow, from: to, data });
            let why = Unreachable::Port;
            stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
        }
        HostCommand::EchoSend { flow, to, seq, ref data } => {
            stack.handle_host(now, HostEvent::EchoReply { flow, from: to, seq, data });
            let why = match dice {
                0..100 => Unreachable::Expired { at: to },
                _ => Unreachable::TooBig { mtu: u32::from(dice) },
            };
            stack.handle_host(now, HostEvent::EchoUnreachable { flow, to, seq, why });
        }
        _ => {}
    }
}

/// Every question is answered at once, and no answer is read.
#[test]
fn a_guest_that_asks_and_does_not_read_is_not_read_from_either() {
    let (guest, peer) = (addr("10.0.2.100:4000"), addr("10.0.2.3:53"));
    let mut stack = stack();
    arrive(&mut stack, at(0), &Tcp::syn(1440).frame(guest, peer));
    let first = segment(&mut stack, at(0));
    let (mut seq, next) = (1001, first.seq.wrapping_add(1));
    let question = b"\0\x13\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let questions = question.repeat(64);
    let mut edge = seq + u32::from(first.window);
    // What has come of the answers, and is not acknowledged.
    let mut come = next;
    let mut asked = 0;
    while (edge - seq) as usize >= questions.len() && asked < 200_000 {
        let mut tcp = Tcp::new(frame::ACK, seq, next).with(&questions);
        tcp.window = 10;
        arrive(&mut stack, at(1), &tcp.frame(guest, peer));
        stack.end_batch();
        seq += questions.len() as u32;
        asked += 64;
        for frame in frames(&mut stack, at(1)) {
            let tcp = Tcp::parse(&packet(&frame));
            edge = tcp.ack + (u32::from(tcp.window) << 7);
            if tcp.seq == come {
                come = come.wrapping_add(tcp.data.len() as u32);
            }
        }
    }
    let flow = stack.flows.find(&flow::Key::Tcp(guest, peer)).unwrap();
    let waits = stack.tcp_session(flow).unwrap().output().len();
    assert!(asked < 200_000 && waits < 1 << 17, "{asked} questions, {waits} bytes wait");
    // It reads after all, and has every answer: each is as long as its question.
    let all = next.wrapping_add((asked * question.len()) as u32);
    for _ in 0..10_000 {
        arrive(&mut stack, at(2), &Tcp::new(frame::ACK, seq, come).frame(guest, peer));
        stack.end_batch();
        for frame in frames(&mut stack, at(2)) {
            let tcp = Tcp::parse(&packet(&frame));
            if tcp.seq == come {
                come = come.wrapping_add(tcp.data.len() as u32);
            }
        }
    }
    assert_eq!(come, all);
}

#[test]
fn a_frame_is_no_more_datagrams_than_the_guests_kernel_makes_of_one_call() {
    for (size, count) in [(500_u16, 120), (400, 0), (1, 0)] {
        let mut stack = stack();
        let peer = addr(PEERS[0]);
        let mut frame = udp_frame(guest_for(peer), peer, &[7; 60_000]);
        frame[1] = 5;
        frame[4..6].copy_from_slice(&size.to_le_bytes());
        arrive(&mut stack, at(0), &frame);
        let sent: usize = commands(&mut stack)
            .iter()
            .map(|command| match command {
                HostCommand::UdpSend { .. } => 1,
                HostCommand::UdpSendMany { data, segment, .. } => data.len().div_ceil(*segment),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!((sent, stack.counters().bad_frames), (count, u64::from(count == 0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), vnet: bool) {
        let offloads = if vnet { GRANTED } else { Offloads::default() };
        let config = Config { enable_ipv6: true, ..Config::default() };
        let mut stack = Netstack::new(config, offloads, 1);
        arrive(&mut stack, at(0), &bytes);
        commands(&mut stack);
        frames(&mut stack, at(0));
    }

    /// Conversations in which bytes are changed, frames cut, repeated and left
    /// out, and acknowledgements follow the stack's own sequence numbers so that
    /// the mutilated segments get past the window check.
    #[test]
    fn mutilated_conversations(
        steps in proptest::collection::vec(
            (any::<prop::sample::Index>(), proptest::collection::vec((0..120_usize, any::<u8>()), 0..4),
             any::<u8>(), any::<bool>(), -3..3_i32),
            1..80),
    ) {
        let seeds = seeds();
        let mut stack = stack();
        let mut now = at(0);
        let mut seq = 0_u32;
        for (which, changes, dice, follow, skew) in steps {
            let mut frame = which.get(&seeds).clone();
            let tcp_at = frame::HEAD + if frame[frame::HEAD] >> 4 == 6 { 40 } else { 20 };
            if follow && frame.len() >= tcp_at + 20 {
                let ack = seq.wrapping_add_signed(skew * 700).to_be_bytes();
                frame[tcp_at + 8..tcp_at + 12].copy_from_slice(&ack);
            }
            for (place, value) in changes {
                let place = place % frame.len();
                frame[place] = value;
            }
            if dice > 240 {
                frame.truncate(usize::from(dice - 240) * 6);
            }
            now += at(u64::from(dice) * 10);
            arrive(&mut stack, now, &frame);
            stack.handle_timeout(now);
            for _ in 0..8 {
                for command in commands(&mut stack) {
                    answer(&mut stack, now, &command, dice);
                }
            }
            for frame in frames(&mut stack, now) {
                prop_assert!(frame.len() <= frame::FRAME_MAX);
                if let Some(Frame { payload: Payload::Ip(packet), .. }) = Frame::parse(&frame, true)
                    && packet.proto == proto::TCP
                {
                    let tcp = Tcp::parse(&packet);
                    seq = tcp.seq.wrapping_add(tcp.data.len() as u32 + u32::from(tcp.flags & 3 != 0));
                }
            }
        }
        // All of it ends, whatever state the flows were left in.
        for _ in 0..20_000 {
            let Some(next) = stack.poll_timeout() else { break };
            if stack.flow_count() == 0 { break }
            now = now.max(next);
            stack.handle_timeout(now);
            commands(&mut stack);
            frames(&mut stack, now);
        }
        prop_assert_eq!(stack.flow_count(), 0);
    }
}
