//! Messages to the DHCP server, one after the other: the first byte of each is its length
//! in units of four.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::config::Config;
use netstack::stack::dhcp::Server;

fuzz_target!(|data: &[u8]| {
    let config = Config { search: vec!["example.org".into()], ..Config::default() };
    let mut server = Server::default();
    let mut rest = data;
    while let Some((&len, tail)) = rest.split_first() {
        let (message, after) = tail.split_at(tail.len().min(usize::from(len) * 4));
        rest = after;
        // Whole or behind what every message begins with.
        let mut whole = vec![0; 240];
        whole[..3].copy_from_slice(&[1, 1, 6]);
        whole[33] = len & 31;
        whole[236..].copy_from_slice(&[99, 130, 83, 99]);
        whole.extend_from_slice(message);
        for message in [message, &whole] {
            if let Some(reply) = server.handle(&config, message) {
                assert!((300..=576 - 28).contains(&reply.bytes.len()));
            }
        }
    }
});
