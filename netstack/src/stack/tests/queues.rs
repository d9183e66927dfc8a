//! Several stacks for one guest.

use super::*;

#[test]
fn a_stack_beside_the_main_one_has_the_guests_connections_only() {
    let mut stack = stack();
    stack.set_share(1, 4, usize::MAX);
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
        let main = Elsewhere { stack: 0, frame: &foreign };
        assert_eq!(stack.handle_frame(at(3), foreign.len()), Some(main));
    }
    assert_eq!(commands(&mut stack), []);
    stack.handle_timeout(at(3));
    assert!(frames(&mut stack, at(3)).is_empty(), "it does not advertise routers");
}

/// Two stacks of one device.
fn two() -> [Netstack; 2] {
    let ports = Arc::new(Ports::default());
    let mut index = 0;
    [stack(), stack()].map(|mut stack| {
        stack.set_share(index, 2, usize::MAX);
        stack.share_ports(Arc::clone(&ports), index);
        if index > 0 {
            stack.set_side();
        }
        index += 1;
        stack
    })
}

/// The stack that a frame is passed on to.
fn passed(stack: &mut Netstack, frame: &[u8]) -> Option<(usize, Vec<u8>)> {
    stack.frame_room()[..frame.len()].copy_from_slice(frame);
    stack.handle_frame(at(3), frame.len()).map(|to| (to.stack, to.frame.to_vec()))
}

#[test]
fn a_udp_port_is_one_stacks_whatever_queue_its_datagrams_come_through() {
    for peer in PEERS {
        let [mut main, mut side] = two();
        let guest = guest_for(addr(peer));
        let first = udp_frame(guest, addr(peer), b"first");
        assert_eq!(passed(&mut side, &first), None);
        let mut other = addr(peer);
        other.set_port(4321);
        let second = udp_frame(guest, other, b"second");
        assert_eq!(passed(&mut main, &second), Some((1, second.clone())));
        assert_eq!(commands(&mut main), []);
        assert_eq!(passed(&mut side, &second), None);
        let sent = commands(&mut side);
        let [HostCommand::UdpSend { flow, .. }, HostCommand::UdpSend { flow: same, to, .. }] =
            &sent[..]
        else {
            panic!("{sent:?}")
        };
        assert!(flow == same && *to == other);

        // Once its flow has ended, the next to see the port has it.
        side.handle_timeout(at(3) + Duration::from_secs(200));
        assert_eq!(side.flow_count(), 0);
        assert_eq!(passed(&mut main, &second), None);
        assert_eq!(passed(&mut side, &first), Some((0, first)));
    }
}

#[test]
fn what_a_side_stack_does_not_forward_is_the_main_ones() {
    let [mut main, mut side] = two();
    let guest = addr("10.0.2.100:4000");
    for service in ["10.0.2.3:53", "127.0.0.1:9", "224.0.0.251:5353", "10.0.2.2:0"] {
        let frame = udp_frame(guest, addr(service), b"?");
        assert_eq!(passed(&mut side, &frame), Some((0, frame)), "{service}");
    }
    let dhcp = udp_frame(addr("10.0.2.100:68"), addr("10.0.2.2:67"), b"?");
    assert_eq!(passed(&mut side, &dhcp), Some((0, dhcp)));
    // Nothing of that has made the port the main one's.
    let query = udp_frame(guest, addr("10.0.2.3:53"), b"?");
    assert_eq!(passed(&mut main, &query), None);
    assert_eq!(passed(&mut side, &udp_frame(guest, addr(PEERS[0]), b"x")), None);
}

#[test]
fn a_port_that_clients_reach_is_the_main_ones() {
    let [mut main, mut side] = two();
    let (guest, client) = (addr("10.0.2.100:4000"), addr("192.0.2.9:700"));
    let answer = udp_frame(guest, client, b"answer");
    assert_eq!(passed(&mut side, &answer), None, "the guest's own affair so far");
    commands(&mut side);
    let event = HostEvent::UdpInbound { publish: 5, guest, from: client, data: b"hello" };
    main.handle_host(at(3), event);
    assert_eq!(passed(&mut side, &answer), Some((0, answer.clone())));
    assert_eq!(commands(&mut side), []);
    assert_eq!(passed(&mut main, &answer), None);
    let data = b"answer".to_vec();
    assert_eq!(commands(&mut main), [HostCommand::UdpReply { publish: 5, to: client, data }]);
}

#[test]
fn a_datagram_in_fragments_reaches_the_stack_of_its_port_in_one_piece() {
    for peer in PEERS {
        let [mut main, mut side] = two();
        let (guest, peer) = (guest_for(addr(peer)), addr(peer));
        assert_eq!(passed(&mut side, &udp_frame(guest, peer, b"small")), None);
        commands(&mut side);
        let data = pattern(1, 9000);
        // What goes to the guest in fragments has the form of what comes from it.
        let mut away = stack();
        away.out.push_udp(&away.link, guest, peer, &data);
        let mut whole = None;
        for fragment in frames(&mut away, at(3)) {
            assert_eq!(passed(&mut side, &fragment), Some((0, fragment.clone())));
            assert!(whole.is_none());
            whole = passed(&mut main, &fragment);
        }
        let (to, frame) = whole.expect("all fragments have come");
        assert_eq!(to, 1);
        assert_eq!(passed(&mut side, &frame), None);
        let [HostCommand::UdpSend { to, data: got, .. }] = &commands(&mut side)[..] else {
            panic!("not forwarded")
        };
        assert!(*to == peer && *got == data);
    }
}

#[test]
fn a_datagram_passed_on_is_judged_once() {
    for peer in PEERS {
        let egress = Egress::new(egress::Policy { rules: vec![], default: egress::Action::Allow });
        let [mut main, mut side] = two().map(|mut stack| {
            stack.set_egress(egress.clone());
            stack
        });
        let (guest, peer) = (guest_for(addr(peer)), addr(peer));
        let frame = udp_frame(guest, peer, b"x");
        assert_eq!(passed(&mut side, &frame), None);
        assert_eq!(passed(&mut main, &frame), Some((1, frame.clone())));
        assert_eq!(egress.hits(), [1]);
        assert_eq!(passed(&mut side, &frame), None);
        assert_eq!(egress.hits(), [2]);
    }
}

/// The identification of a fragment of either IP version.
fn identification(frame: &[u8]) -> u32 {
    let fragment = packet(frame).fragment.expect("a fragment");
    fragment.id
}

#[test]
fn no_two_stacks_give_fragments_the_same_identification() {
    // Each of three counts through more than the 16 bits of IPv4, from its own start.
    let mut all = [std::collections::HashSet::new(), Default::default(), Default::default()];
    for (index, ids) in all.iter_mut().enumerate() {
        let config = Config { enable_ipv6: true, ..Config::default() };
        let mut stack = Netstack::new(config, GRANTED, 1000 + index as u64);
        stack.set_share(index, 3, usize::MAX);
        let mut before = None;
        for _ in 0..20_000 {
            for peer in PEERS {
                let guest = guest_for(addr(peer));
                stack.out.push_udp(&stack.link, addr(peer), guest, &[0; 1600]);
                let parts = frames(&mut stack, at(0));
                let [first, second] = &parts[..] else { panic!("{} frames", parts.len()) };
                let id = identification(first);
                assert_eq!(identification(second), id, "of one datagram");
                assert_ne!(before.replace(id & 0xffff), Some(id & 0xffff));
                ids.insert(id & 0xffff);
            }
        }
        assert!(ids.len() == 1 << 14, "{} of 16,384", ids.len());
    }
    let [a, b, c] = &all;
    assert!(a.is_disjoint(b) && a.is_disjoint(c) && b.is_disjoint(c));
}
