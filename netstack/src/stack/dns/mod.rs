//! DNS forwarder: the guest's queries in, queries to the host's name servers out.
//!
//! # Theory of operation
//!
//! A query of the guest, which came over UDP or TCP, is answered from the [`cache`] or
//! becomes an [`Exchange`]: it is sent with an identifier of our own from a socket of
//! its own (the kernel picks a fresh port) to one name server at a time.
//!
//! ```text
//! asked --answer--> done                           reply to the guest, cache
//! asked --truncated answer--> asked over TCP       the same server
//! asked --refused by the host, SERVFAIL or REFUSED, 2 s--> asked (next server)
//! asked --no server left--> done                   SERVFAIL to the guest
//! ```
//!
//! The server that answered last is asked first; a dead first line of resolv.conf
//! costs two seconds once, not for every name. With one server, it is asked twice.
//! An answer is taken only when server, identifier and question match (RFC 5452
//! section 9). A query that is repeated while it is under way is not sent twice: the
//! forwarder repeats by itself. Messages pass as they are, so EDNS is between guest and
//! server. An answer that is longer than the guest takes over UDP is cut to its
//! question and marked, and the guest comes again over TCP.
//!
//! Limits: [`EXCHANGES_MAX`] queries under way; beyond, SERVFAIL at once.

mod cache;
mod message;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use super::flow::FlowId;
use cache::Cache;
use message::HEADER;
pub(super) use message::encode;
pub use message::{addresses, asked};

/// Queries under way at most.
pub const EXCHANGES_MAX: usize = 512;
/// How long one name server has to answer.
pub const TRY: Duration = Duration::from_secs(2);
/// Attempts for one query at most; resolvers give up after some ten seconds.
const TRIES_MAX: usize = 4;

const FORMERR: u8 = 1;
const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
/// REFUSED (RFC 1035 section 4.1.1).
pub const REFUSED: u8 = 5;
/// In a message's third byte.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 2;

/// Names a query under way. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(u64);

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A port of the guest, by a datagram.
    Udp {
        /// The guest's address and port.
        guest: SocketAddr,
        /// The address and port it asked.
        alias: SocketAddr,
    },
    /// A connection of the guest.
    Tcp(FlowId),
}

/// What is to be done for the forwarder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Close the socket of this query, if it has one, and send `bytes` to `server`
    /// from a new one. Answers and errors on it come back through
    /// [`Forwarder::handle_answer`] and [`Forwarder::handle_error`].
    Send {
        /// Which query.
        query: QueryId,
        /// Name server.
        server: SocketAddr,
        /// DNS message.
        bytes: Vec<u8>,
        /// Over a connection, with its length in front (RFC 7766 section 8).
        tcp: bool,
    },
    /// Close the socket of this query.
    Close {
        /// Which query.
        query: QueryId,
    },
    /// Give the guest an answer.
    Reply {
        /// To whom.
        client: Client,
        /// DNS message.
        bytes: Vec<u8>,
    },
}

/// The queries under way, and answers that are still good.
#[derive(Debug)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    /// Index of the server asked first.
    preferred: usize,
    exchanges: BTreeMap<QueryId, Exchange>,
    cache: Cache,
    actions: VecDeque<Action>,
    next: u64,
    seed: u64,
}

#[derive(Debug)]
struct Exchange {
    client: Client,
    /// The guest's message, with the guest's identifier.
    query: Vec<u8>,
    /// Our identifier in the try under way.
    id: u16,
    server: usize,
    tries: usize,
    /// The try under way is over TCP.
    tcp: bool,
    deadline: Duration,
}

impl Forwarder {
    /// A forwarder to `servers`, in order of preference. `seed` must be
    /// unpredictable: identifiers are derived from it.
    pub fn new(servers: Vec<SocketAddr>, seed: u64) -> Forwarder {
        Forwarder {
            servers,
            preferred: 0,
            exchanges: BTreeMap::new(),
            cache: Cache::default(),
            actions: VecDeque::new(),
            next: 0,
            seed,
        }
    }

    /// The host's name servers have changed. Queries under way are sent to the new
    /// ones at once, as if they had just come: the old ones may be out of reach. What
    /// the old ones said is forgotten: other networks have other names. Then
    /// [`Forwarder::poll`].
    pub fn set_servers(&mut self, now: Duration, servers: Vec<SocketAddr>) {
        if servers == self.servers {
            return;
        }
        self.servers = servers;
        self.preferred = 0;
        self.cache.clear();
        let waiting: Vec<QueryId> = self.exchanges.keys().copied().collect();
        for query in waiting {
            if let Some(exchange) = self.exchanges.get_mut(&query) {
                // The first of all is next.
                exchange.server = self.servers.len().saturating_sub(1);
                exchange.tries = 0;
            }
            self.next_server(now, query);
        }
    }

    /// Takes a query of the guest. Then [`Forwarder::poll`].
    pub fn handle_query(&mut self, now: Duration, client: Client, bytes: &[u8]) {
        // Answers are never answered, or two servers could talk forever.
        if bytes.len() < HEADER || bytes[2] & RESPONSE != 0 {
            return;
        }
        if message::question(bytes).is_none() {
            self.refuse(client, bytes, FORMERR);
            return;
        }
        if let Some(answer) = self.cache.find(now, bytes) {
            self.reply(client, bytes, answer);
            return;
        }
        let repeated = |e: &Exchange| e.client == client && e.query == bytes;
        if self.exchanges.values().any(repeated) {
            return;
        }
        if self.servers.is_empty() || self.exchanges.len() >= EXCHANGES_MAX {
            self.refuse(client, bytes, SERVFAIL);
            return;
        }
        let query = QueryId(self.next);
        self.next += 1;
        let exchange = Exchange {
            client,
            query: bytes.to_vec(),
            id: 0,
            server: self.preferred,
            tries: 0,
            tcp: false,
            deadline: now,
        };
        self.exchanges.insert(query, exchange);
        self.send(now, query, false);
    }

    /// Takes a message that arrived on the socket of `query`. Then
    /// [`Forwarder::poll`].
    pub fn handle_answer(&mut self, now: Duration, query: QueryId, bytes: &[u8]) {
        let Some(exchange) = self.exchanges.get(&query) else { return };
        if bytes.len() < HEADER
            || bytes[2] & RESPONSE == 0
            || bytes[..2] != exchange.id.to_be_bytes()
            || !message::same_question(&exchange.query, bytes)
        {
            // Not the answer; it may still come.
            return;
        }
        if bytes[2] & TRUNCATED != 0 && !exchange.tcp {
            self.send(now, query, true);
            return;
        }
        let unwilling = matches!(bytes[3] & 0x0f, SERVFAIL | NOTIMP | REFUSED);
        if unwilling && exchange.tries < self.servers.len().min(TRIES_MAX) {
            self.next_server(now, query);
            return;
        }
        if !unwilling && exchange.server < self.servers.len() {
            self.preferred = exchange.server;
        }
        let Some(exchange) = self.exchanges.remove(&query) else { return };
        let mut bytes = bytes.to_vec();
        bytes[..2].copy_from_slice(&exchange.query[..2]);
        self.cache.add(now, &exchange.query, &bytes);
        self.actions.push_back(Action::Close { query });
        self.reply(exchange.client, &exchange.query, bytes);
    }

    /// The socket of `query` failed: no such route, port unreachable, a connection
    /// that ended. Then [`Forwarder::poll`].
    pub fn handle_error(&mut self, now: Duration, query: QueryId) {
        self.next_server(now, query);
    }

    /// The connection is gone on which these queries came. Then [`Forwarder::poll`].
    pub fn forget(&mut self, client: FlowId) {
        let gone =
            |(id, e): (&QueryId, &Exchange)| (e.client == Client::Tcp(client)).then_some(*id);
        let gone: Vec<QueryId> = self.exchanges.iter().filter_map(gone).collect();
        for query in gone {
            self.exchanges.remove(&query);
            self.actions.push_back(Action::Close { query });
        }
    }

    /// Something to do, or None. Call again until None.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Forwarder::handle_timeout`] must be called at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.exchanges.values().map(|e| e.deadline).min()
    }

    /// Goes on with the queries whose server did not answer. Then
    /// [`Forwarder::poll`].
    pub fn handle_timeout(&mut self, now: Duration) {
        let late = |(id, e): (&QueryId, &Exchange)| (e.deadline <= now).then_some(*id);
        let late: Vec<QueryId> = self.exchanges.iter().filter_map(late).collect();
        for query in late {
            self.next_server(now, query);
        }
    }

    fn next_server(&mut self, now: Duration, query: QueryId) {
        let Some(exchange) = self.exchanges.get_mut(&query) else { return };
        let allowed = self.servers.len().clamp(2, TRIES_MAX);
        if self.servers.is_empty() || exchange.tries >= allowed {
            if let Some(e) = self.exchanges.remove(&query) {
                self.actions.push_back(Action::Close { query });
                self.refuse(e.client, &e.query, SERVFAIL);
            }
            return;
        }
        exchange.server = (exchange.server + 1) % self.servers.len();
        self.send(now, query, false);
    }

    fn send(&mut self, now: Duration, query: QueryId, tcp: bool) {
        let Some(exchange) = self.exchanges.get_mut(&query) else { return };
        let Some(&server) = self.servers.get(exchange.server) else { return };
        // Coming again over TCP belongs to the same try.
        exchange.tries += usize::from(!tcp);
        exchange.tcp = tcp;
        exchange.deadline = now + TRY;
        exchange.id = identifier(self.seed, query, exchange.tries * 2 + usize::from(tcp));
        let mut bytes = exchange.query.clone();
        bytes[..2].copy_from_slice(&exchange.id.to_be_bytes());
        self.actions.push_back(Action::Send { query, server, bytes, tcp });
    }

    /// An answer of our own: the question, and an error code (RFC 1035 section 4.1.1).
    /// Then [`Forwarder::poll`].
    pub fn refuse(&mut self, client: Client, query: &[u8], code: u8) {
        if query.len() >= HEADER {
            let mut bytes = only_question(query);
            bytes[2] = bytes[2] & 0x79 | RESPONSE;
            bytes[3] = 0x80 | code;
            self.actions.push_back(Action::Reply { client, bytes });
        }
    }

    fn reply(&mut self, client: Client, query: &[u8], answer: Vec<u8>) {
        let room = match client {
            Client::Udp { .. } => message::udp_size(query),
            Client::Tcp(_) => usize::from(u16::MAX),
        };
        let bytes = if answer.len() <= room {
            answer
        } else {
            let mut cut = only_question(&answer);
            cut[2] |= TRUNCATED;
            cut
        };
        self.actions.push_back(Action::Reply { client, bytes });
    }
}

/// Header and question of a message, without records.
fn only_question(message: &[u8]) -> Vec<u8> {
    let end = message::question(message).map_or(HEADER, |q| HEADER + q.len());
    let mut bytes = message[..end].to_vec();
    bytes[4..6].copy_from_slice(&u16::from(end > HEADER).to_be_bytes());
    bytes[6..12].fill(0);
    bytes
}

/// SipHash of a counter under a secret key: unpredictable without the seed.
fn identifier(seed: u64, query: QueryId, tries: usize) -> u16 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    hasher.write_u64(query.0);
    hasher.write_usize(tries);
    hasher.finish() as u16
}

#[cfg(test)]
mod tests {
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

    fn sent(f: &mut Forwarder) -> (QueryId, SocketAddr, Vec<u8>) {
        match f.poll() {
            Some(Action::Send { query, server, bytes, tcp: false }) => (query, server, bytes),
            other => panic!("expected a query, got {other:?}"),
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
        assert_eq!(f.poll(), Some(Action::Close { query: id }));
        let got = replied(&mut f);
        assert_eq!(got[..2], [0, 7]);
        assert_eq!(got[2..], reply[2..]);
        assert_eq!((f.poll(), f.poll_timeout()), (None, None));
        f.handle_answer(NOW, id, &reply);
        assert_eq!(f.poll(), None, "a second answer finds nobody");
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
        assert!(ids.len() > 95, "{} identifiers", ids.len());
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
        let (_, server, _) = sent(&mut f);
        assert_eq!(server, addr("192.0.2.2:53"));
        f.handle_error(NOW, id);
        assert_eq!(sent(&mut f).1, addr("192.0.2.3:53"));
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
        let Some(Action::Send { query: again, server, bytes: asked, tcp: true }) = f.poll() else {
            panic!("not asked over TCP");
        };
        assert_eq!((again, server), (id, addr("192.0.2.1:53")));
        assert_ne!(asked[..2], bytes[..2], "another identifier");
        f.handle_answer(NOW, id, &answer(&bytes, 0));
        assert_eq!(f.poll(), None, "the first answer again");
        let strings = [7; 300];
        let records: [(usize, &str, u16, u32, &[u8]); 2] =
            [(6, "@", 1, 60, &strings), (6, "@", 1, 60, &strings)];
        let whole = message::tests::answer(&asked, 0, &records);
        f.handle_answer(NOW, id, &whole);
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
        assert_eq!(f.poll(), Some(Action::Close { query: id }));
        f.handle_answer(NOW, id, &answer(&bytes, 0));
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
            let mut now = NOW;
            for (bytes, step) in steps {
                match step {
                    0 => f.handle_query(now, client(), &bytes),
                    1 => {
                        let mut good = query(bytes.len() as u16, "x.example");
                        good.extend_from_slice(&bytes);
                        f.handle_query(now, client(), &good);
                    }
                    2 => f.handle_answer(now, QueryId(0), &bytes),
                    _ => {
                        now += TRY;
                        f.handle_timeout(now);
                    }
                }
                while f.poll().is_some() {}
            }
        }
    }
}
