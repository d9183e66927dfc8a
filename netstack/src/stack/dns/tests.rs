use proptest::prelude::*;

use super::message::tests::query;
use super::*;

const NOW: Duration = Duration::from_secs(100);

fn addr(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

fn client() -> Client {
    Client::Udp { guest: addr("10.0.2.100:4000"), alias: addr("10.0.2.3:53") }
}

fn forwarder(servers: &[&str]) -> Forwarder {
    Forwarder::new(servers.iter().map(|s| addr(s)).collect(), 42)
}

fn answer(to: &[u8], rcode: u8) -> Vec<u8> {
    let mut m = to.to_vec();
    m[2] |= 0x80;
    m[3] = rcode;
    m.extend_from_slice(b"the records");
    m
}

fn sent(f: &mut Forwarder) -> (SocketId, SocketAddr, Vec<u8>) {
    loop {
        match f.poll() {
            Some(Action::Close { .. }) => {}
            Some(Action::Send { socket, server, bytes, tcp: false }) => {
                return (socket, server, bytes);
            }
            other => panic!("expected a query, got {other:?}"),
        }
    }
}

fn replied(f: &mut Forwarder) -> Vec<u8> {
    loop {
        match f.poll() {
            Some(Action::Close { .. }) => {}
            Some(Action::Reply { client: c, bytes }) => {
                assert_eq!(c, client());
                return bytes;
            }
            other => panic!("expected a reply, got {other:?}"),
        }
    }
}

#[test]
fn a_query_goes_out_under_another_identifier_and_its_answer_comes_back_under_the_first() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (id, server, bytes) = sent(&mut f);
    assert_eq!(server, addr("192.0.2.1:53"));
    assert_eq!(bytes[2..], query(7, "a.example")[2..]);
    let mut reply = answer(&bytes, 0);
    reply[13..22].make_ascii_uppercase();
    f.handle_answer(NOW, id, &reply);
    let got = replied(&mut f);
    assert_eq!(got[..2], [0, 7]);
    assert_eq!(got[2..], reply[2..]);
    assert_eq!(f.poll(), None);
    f.handle_answer(NOW, id, &reply);
    assert_eq!(f.poll(), None, "a second answer finds nobody");
    let end = f.poll_timeout().expect("the socket does not stay open");
    f.handle_timeout(end);
    assert_eq!(f.poll(), Some(Action::Close { socket: id }));
    assert_eq!((f.poll(), f.poll_timeout()), (None, None));
}

#[test]
fn identifiers_differ_from_query_to_query() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..100 {
        f.handle_query(NOW, client(), &query(n, "a.example"));
        let (_, _, bytes) = sent(&mut f);
        ids.insert([bytes[0], bytes[1]]);
    }
    assert_eq!(ids.len(), 100, "two queries under way have one identifier");
}

/// Sockets are shared, queries are not: each is answered by its own identifier, and
/// only on the socket it left from.
#[test]
fn queries_on_one_socket_do_not_take_each_others_answers() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    let mut under_way = Vec::new();
    for n in 0..100 {
        f.handle_query(NOW, client(), &query(n, "a.example"));
        under_way.push(sent(&mut f));
    }
    let sockets: std::collections::BTreeSet<SocketId> = under_way.iter().map(|q| q.0).collect();
    assert!(sockets.len() > 8 && sockets.len() < 50, "{} sockets", sockets.len());
    let elsewhere = |own: SocketId| *sockets.iter().find(|other| **other != own).unwrap();
    for (n, (socket, _, bytes)) in under_way.iter().enumerate().rev() {
        f.handle_answer(NOW, elsewhere(*socket), &answer(bytes, 0));
        assert_eq!(f.poll(), None, "on a socket it did not leave from");
        f.handle_answer(NOW, *socket, &answer(bytes, 0));
        assert_eq!(replied(&mut f)[..2], [0, n as u8]);
    }
}

#[test]
fn an_error_on_a_socket_is_that_of_all_queries_on_it() {
    let mut f = forwarder(&["192.0.2.1:53", "192.0.2.2:53"]);
    let mut under_way = Vec::new();
    for n in 0..100 {
        f.handle_query(NOW, client(), &query(n, "a.example"));
        under_way.push(sent(&mut f).0);
    }
    let failing = under_way[0];
    let on_it = under_way.iter().filter(|socket| **socket == failing).count();
    assert!(on_it > 1);
    f.handle_error(NOW, failing);
    let (mut again, mut closed) = (0, Vec::new());
    while let Some(action) = f.poll() {
        match action {
            Action::Send { server, .. } => {
                assert_eq!(server, addr("192.0.2.2:53"));
                again += 1;
            }
            Action::Close { socket } => closed.push(socket),
            Action::Reply { .. } => panic!("there is another server"),
        }
    }
    assert_eq!((again, closed), (on_it, vec![failing]));
}

#[test]
fn forged_answers_are_ignored() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (id, _, bytes) = sent(&mut f);
    let good = answer(&bytes, 0);
    let mut wrong_id = good.clone();
    wrong_id[0] ^= 1;
    let mut no_answer = good.clone();
    no_answer[2] &= 0x7f;
    let mut other_name = good.clone();
    other_name[13] = b'b';
    for bad in [&wrong_id, &no_answer, &other_name, &good[..11].to_vec(), &vec![]] {
        f.handle_answer(NOW, id, bad);
        assert_eq!(f.poll(), None);
    }
    f.handle_answer(NOW, id, &good);
    replied(&mut f);
}

#[test]
fn a_silent_server_is_passed_over_after_two_seconds_and_asked_last_from_then_on() {
    let mut f = forwarder(&["192.0.2.1:53", "192.0.2.2:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    sent(&mut f);
    assert_eq!(f.poll_timeout(), Some(NOW + TRY));
    f.handle_timeout(NOW + TRY - Duration::from_millis(1));
    assert_eq!(f.poll(), None);
    f.handle_timeout(NOW + TRY);
    let (id, server, bytes) = sent(&mut f);
    assert_eq!(server, addr("192.0.2.2:53"));
    f.handle_answer(NOW + TRY, id, &answer(&bytes, 0));
    replied(&mut f);
    f.handle_query(NOW, client(), &query(8, "b.example"));
    assert_eq!(sent(&mut f).1, addr("192.0.2.2:53"));
}

#[test]
fn refusals_and_errors_move_on_at_once_and_end_in_servfail() {
    let mut f = forwarder(&["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (id, _, bytes) = sent(&mut f);
    f.handle_answer(NOW, id, &answer(&bytes, REFUSED));
    let (id, server, _) = sent(&mut f);
    assert_eq!(server, addr("192.0.2.2:53"));
    f.handle_error(NOW, id);
    assert_eq!(f.poll(), Some(Action::Close { socket: id }), "of a server out of reach");
    let (id, server, _) = sent(&mut f);
    assert_eq!(server, addr("192.0.2.3:53"));
    f.handle_error(NOW, id);
    let reply = replied(&mut f);
    assert_eq!(reply[..4], [0, 7, 0x81, 0x82]);
    assert_eq!(reply[12..], query(7, "a.example")[12..]);
}

#[test]
fn the_last_servers_refusal_is_passed_on() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (id, _, bytes) = sent(&mut f);
    f.handle_answer(NOW, id, &answer(&bytes, SERVFAIL));
    assert_eq!(replied(&mut f)[3] & 0xf, SERVFAIL);
}

#[test]
fn one_server_is_asked_twice() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (_, _, first) = sent(&mut f);
    f.handle_timeout(NOW + TRY);
    let (_, _, second) = sent(&mut f);
    assert_ne!(first[..2], second[..2]);
    f.handle_timeout(NOW + TRY * 2);
    assert_eq!(replied(&mut f)[3] & 0xf, SERVFAIL);
}

#[test]
fn repeated_queries_are_sent_once() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    for _ in 0..3 {
        f.handle_query(NOW, client(), &query(7, "a.example"));
    }
    sent(&mut f);
    assert_eq!(f.poll(), None);
    // The same identifier for another type, as glibc does for A and AAAA.
    let mut aaaa = query(7, "a.example");
    let at = aaaa.len() - 3;
    aaaa[at] = 28;
    f.handle_query(NOW, client(), &aaaa);
    sent(&mut f);
}

#[test]
fn without_servers_and_beyond_the_limit_the_guest_is_told() {
    let mut f = forwarder(&[]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    assert_eq!(replied(&mut f)[3] & 0xf, SERVFAIL);
    let mut f = forwarder(&["192.0.2.1:53"]);
    for n in 0..EXCHANGES_MAX as u16 {
        f.handle_query(NOW, client(), &query(n, "a.example"));
        sent(&mut f);
    }
    f.handle_query(NOW, client(), &query(9999, "a.example"));
    assert_eq!(replied(&mut f)[3] & 0xf, SERVFAIL);
}

#[test]
fn new_servers_are_used_at_once() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    sent(&mut f);
    f.set_servers(NOW, vec![addr("198.51.100.1:53"), addr("198.51.100.2:53")]);
    assert_eq!(sent(&mut f).1, addr("198.51.100.1:53"));
    f.set_servers(NOW, vec![]);
    assert_eq!(replied(&mut f)[3] & 0xf, SERVFAIL);
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp_and_cut_to_what_the_guest_takes() {
    let mut f = forwarder(&["192.0.2.1:53", "192.0.2.2:53"]);
    f.handle_query(NOW, client(), &query(7, "a.example"));
    let (id, _, bytes) = sent(&mut f);
    let mut cut = answer(&bytes, 0);
    cut[2] |= TRUNCATED;
    f.handle_answer(NOW, id, &cut);
    let Some(Action::Send { socket: stream, server, bytes: asked, tcp: true }) = f.poll() else {
        panic!("not asked over TCP");
    };
    assert_eq!(server, addr("192.0.2.1:53"));
    assert_ne!(asked[..2], bytes[..2], "another identifier");
    f.handle_answer(NOW, id, &answer(&bytes, 0));
    f.handle_answer(NOW, stream, &answer(&bytes, 0));
    f.handle_answer(NOW, id, &answer(&asked, 0));
    assert_eq!(f.poll(), None, "the first answer again");
    let strings = [7; 300];
    let records: [(usize, &str, u16, u32, &[u8]); 2] =
        [(6, "@", 1, 60, &strings), (6, "@", 1, 60, &strings)];
    let whole = message::tests::answer(&asked, 0, &records);
    f.handle_answer(NOW, stream, &whole);
    assert_eq!(f.poll(), Some(Action::Close { socket: stream }), "for one query only");
    let reply = replied(&mut f);
    assert_eq!((reply[2] & TRUNCATED, reply.len()), (TRUNCATED, query(7, "a.example").len()));
    // The guest comes over TCP, and has the whole from the cache.
    let flow = FlowId::from_bits(5);
    f.handle_query(NOW, Client::Tcp(flow), &query(8, "a.example"));
    let Some(Action::Reply { client: Client::Tcp(to), bytes }) = f.poll() else {
        panic!("not from the cache");
    };
    assert_eq!((to, bytes.len()), (flow, whole.len()));
}

#[test]
fn a_connection_that_ends_takes_its_queries_along() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    let flow = FlowId::from_bits(5);
    f.handle_query(NOW, Client::Tcp(flow), &query(7, "a.example"));
    let (id, _, bytes) = sent(&mut f);
    f.forget(flow);
    f.handle_answer(NOW, id, &answer(&bytes, 0));
    assert_eq!(f.poll(), None);
    let end = f.poll_timeout().unwrap();
    f.handle_timeout(end);
    assert_eq!(f.poll(), Some(Action::Close { socket: id }));
    assert_eq!((f.poll(), f.poll_timeout()), (None, None));
}

#[test]
fn new_servers_have_other_answers() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    let asked = query(7, "a.example");
    f.handle_query(NOW, client(), &asked);
    let (id, _, bytes) = sent(&mut f);
    f.handle_answer(NOW, id, &message::tests::answer(&bytes, 0, &[(6, "@", 1, 60, &[9; 4])]));
    replied(&mut f);
    f.handle_query(NOW, client(), &asked);
    replied(&mut f);
    f.set_servers(NOW, vec![addr("198.51.100.1:53")]);
    f.handle_query(NOW, client(), &asked);
    assert_eq!(sent(&mut f).1, addr("198.51.100.1:53"));
}

#[test]
fn malformed_queries_are_told_so_and_answers_are_not_answered() {
    let mut f = forwarder(&["192.0.2.1:53"]);
    let mut none = query(7, "a.example");
    none[5] = 0;
    f.handle_query(NOW, client(), &none);
    let reply = replied(&mut f);
    assert_eq!((reply[3] & 0xf, reply.len()), (FORMERR, HEADER));
    f.handle_query(NOW, client(), &answer(&query(7, "a.example"), 0));
    f.handle_query(NOW, client(), &[0; 11]);
    assert_eq!(f.poll(), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..60), 0u8..4), 0..60),
    ) {
        let mut f = forwarder(&["192.0.2.1:53", "192.0.2.2:53"]);
        f.handle_query(NOW, client(), &query(0, "y.example"));
        let first = sent(&mut f).0;
        let mut now = NOW;
        for (bytes, step) in steps {
            match step {
                0 => f.handle_query(now, client(), &bytes),
                1 => {
                    let mut good = query(bytes.len() as u16, "x.example");
                    good.extend_from_slice(&bytes);
                    f.handle_query(now, client(), &good);
                }
                2 => f.handle_answer(now, first, &bytes),
                _ => {
                    now += TRY;
                    f.handle_timeout(now);
                }
            }
            while f.poll().is_some() {}
        }
    }
}
