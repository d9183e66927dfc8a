//! Conversations: each two bytes of length, and a frame of the guest without link
//! headers' first bytes. The host answers whatever it is told to do.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netstack::config::Config;
use netstack::stack::policy::Unreachable;
use netstack::stack::{HostCommand, HostEvent, Netstack};
use netstack::tap::Offloads;

fuzz_target!(|data: &[u8]| {
    let Some((&flags, mut rest)) = data.split_first() else { return };
    let on = flags & 1 != 0;
    let offloads = Offloads { vnet: on, csum: on, tso4: on, tso6: on, uso: on };
    let config = Config {
        enable_ipv6: flags & 2 != 0,
        disable_host_loopback: flags & 4 != 0,
        disable_dns: flags & 8 != 0,
        name_servers: vec![([192, 0, 2, 1], 53).into()],
        mtu: if flags & 16 != 0 { 1500 } else { 65520 },
        ..Config::default()
    };
    let disabled = config.disable_host_loopback;
    let mut stack = Netstack::new(config, offloads, 7);
    let mut now = Duration::ZERO;
    while let Some((head, tail)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*head) & 0x7ff).min(tail.len());
        let (frame, after) = tail.split_at(len);
        rest = after;
        stack.frame_room()[..len].copy_from_slice(frame);
        stack.handle_frame(now, len);
        for _ in 0..64 {
            let Some(command) = stack.poll_host() else { break };
            match command {
                HostCommand::TcpConnect { flow, to } => {
                    assert!(!(disabled && to.ip().is_loopback()), "the host's loopback");
                    stack.handle_host(now, HostEvent::TcpConnected { flow });
                }
                HostCommand::TcpTransfer { flow } => {
                    let count = stack.tcp_outgoing(flow).len();
                    stack.tcp_sent(flow, count);
                    if stack.tcp_room(flow) > 0 {
                        stack.tcp_fill(flow, &mut |room| {
                            room.first().map_or(0, |r| r.len().min(99))
                        });
                    }
                }
                HostCommand::UdpSend { flow, to, data } => {
                    assert!(!(disabled && to.ip().is_loopback()), "the host's loopback");
                    stack.handle_host(now, HostEvent::UdpReceived { flow, from: to, data: &data });
                    let why = Unreachable::Expired { at: to.ip() };
                    stack.handle_host(now, HostEvent::UdpUnreachable { flow, to, why });
                }
                HostCommand::EchoSend { flow, to, seq, data } => {
                    let from = to;
                    stack.handle_host(now, HostEvent::EchoReply { flow, from, seq, data: &data });
                }
                _ => {}
            }
        }
        stack.end_batch();
        for _ in 0..64 {
            if stack.poll_frame(now).is_none() {
                break;
            }
        }
        now += Duration::from_millis(u64::from(flags) * 10);
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
    }
    assert_eq!(stack.report(true).list.len(), stack.flow_count());
});
