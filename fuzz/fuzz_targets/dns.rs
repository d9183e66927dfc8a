//! Queries of the guest and answers of servers to the forwarder.
#![no_main]

use std::collections::BTreeSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netstack::stack::dns::{self, Action, Client, EXCHANGES_MAX, Forwarder};

fuzz_target!(|data: &[u8]| {
    let servers = vec![([192, 0, 2, 1], 53).into(), ([192, 0, 2, 2], 53).into()];
    let client =
        Client::Udp { guest: ([10, 0, 2, 100], 4000).into(), alias: ([10, 0, 2, 3], 53).into() };
    let mut forwarder = Forwarder::new(servers, 7);
    let mut now = Duration::ZERO;
    let mut under_way = Vec::new();
    let mut open = BTreeSet::new();
    let mut rest = data;
    while let Some((&[step, len], tail)) = rest.split_first_chunk::<2>() {
        let (message, after) = tail.split_at(tail.len().min(usize::from(len)));
        rest = after;
        dns::asked(message);
        dns::addresses(message);
        match (step % 4, under_way.last()) {
            (0, _) | (1, None) => forwarder.handle_query(now, client, message),
            (1, Some((socket, sent))) => {
                // The question with its identifier, and what the server makes of it.
                let mut answer: Vec<u8> = Vec::clone(sent);
                answer[2] |= 0x80;
                answer[7] = step >> 4;
                answer.extend_from_slice(message);
                forwarder.handle_answer(now, *socket, &answer);
            }
            (2, Some((socket, _))) => forwarder.handle_answer(now, *socket, message),
            _ => {
                now += Duration::from_secs(1);
                forwarder.handle_timeout(now);
            }
        }
        while let Some(action) = forwarder.poll() {
            match action {
                Action::Send { socket, bytes, .. } => {
                    assert!(open.contains(&socket) || open.len() < 2 * EXCHANGES_MAX);
                    open.insert(socket);
                    under_way.push((socket, bytes));
                }
                Action::Close { socket } => {
                    assert!(open.remove(&socket), "closed twice");
                    under_way.retain(|(other, _)| *other != socket);
                }
                Action::Reply { bytes, .. } => assert!(bytes.len() >= 12 && bytes[2] & 0x80 != 0),
            }
        }
        // What is answered or given up stays in the list: late answers must do no harm.
        under_way.drain(..under_way.len().saturating_sub(EXCHANGES_MAX));
    }
});
