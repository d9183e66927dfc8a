//! DNS forwarder: the guest's queries in, queries to the host's name servers out.
//!
//! # Theory of operation
//!
//! A query of the guest, which came over UDP or TCP, is answered from the [`cache`] or
//! becomes an [`Exchange`]: it is sent to one name server at a time, with an identifier
//! of our own that no other query under way has, from a socket that [`sockets`] picks.
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
//! An answer is taken only when socket, server, identifier and question match (RFC 5452
//! section 9). A query that is repeated while it is under way is not sent twice: the
//! forwarder repeats by itself. Messages pass as they are, so EDNS is between guest and
//! server. An answer that is longer than the guest takes over UDP is cut to its
//! question and marked, and the guest comes again over TCP.
//!
//! Limits: [`EXCHANGES_MAX`] queries under way; beyond, SERVFAIL at once.

mod cache;
mod message;
mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use super::flow::FlowId;
use cache::Cache;
use message::HEADER;
pub(super) use message::encode;
pub use message::{addresses, asked};
pub use sockets::SocketId;
use sockets::Sockets;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct QueryId(u64);

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
    /// Send `bytes` to `server` from this socket, which is to be made if it is not
    /// there. Answers and errors on it come back through
    /// [`Forwarder::handle_answer`] and [`Forwarder::handle_error`].
    Send {
        /// Which socket. It has one server only.
        socket: SocketId,
        /// Name server.
        server: SocketAddr,
        /// DNS message.
        bytes: Vec<u8>,
        /// Over a connection, with its length in front (RFC 7766 section 8).
        tcp: bool,
    },
    /// Close this socket.
    Close {
        /// Which socket.
        socket: SocketId,
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
    /// By the identifier of the try under way.
    by_id: BTreeMap<u16, QueryId>,
    sockets: Sockets,
    cache: Cache,
    actions: VecDeque<Action>,
    next: u64,
    seed: u64,
    /// Random numbers drawn so far.
    drawn: u64,
}

#[derive(Debug)]
struct Exchange {
    client: Client,
    /// The guest's message, with the guest's identifier.
    query: Vec<u8>,
    /// Our identifier in the try under way, and the socket it was sent from; none
    /// before the first.
    sent: Option<(u16, SocketId)>,
    server: usize,
    tries: usize,
    /// The try under way is over TCP.
    tcp: bool,
    deadline: Duration,
}

impl Forwarder {
    /// A forwarder to `servers`, in order of preference. `seed` must be
    /// unpredictable: identifiers and the choice of sockets are derived from it.
    pub fn new(servers: Vec<SocketAddr>, seed: u64) -> Forwarder {
        Forwarder {
            servers,
            preferred: 0,
            exchanges: BTreeMap::new(),
            by_id: BTreeMap::new(),
            sockets: Sockets::default(),
            cache: Cache::default(),
            actions: VecDeque::new(),
            next: 0,
            seed,
            drawn: 0,
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
        self.sockets.retire();
        let waiting: Vec<QueryId> = self.exchanges.keys().copied().collect();
        for query in waiting {
            if let Some(exchange) = self.exchanges.get_mut(&query) {
                // The first of all is next.
                exchange.server = self.servers.len().saturating_sub(1);
                exchange.tries = 0;
            }
            self.next_server(now, query);
        }
        self.close_sockets(now);
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
            sent: None,
            server: self.preferred,
            tries: 0,
            tcp: false,
            deadline: now,
        };
        self.exchanges.insert(query, exchange);
        self.send(now, query, false);
    }

    /// Takes a message that arrived on `socket` from its server. Then
    /// [`Forwarder::poll`].
    pub fn handle_answer(&mut self, now: Duration, socket: SocketId, bytes: &[u8]) {
        if bytes.len() < HEADER || bytes[2] & RESPONSE == 0 {
            return;
        }
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        // What is not the answer is not the end: that may still come.
        let Some(&query) = self.by_id.get(&id) else { return };
        let Some(exchange) = self.exchanges.get(&query) else { return };
        if exchange.sent != Some((id, socket)) || !message::same_question(&exchange.query, bytes) {
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
        let Some(exchange) = self.end(now, query) else { return };
        let mut bytes = bytes.to_vec();
        bytes[..2].copy_from_slice(&exchange.query[..2]);
        self.cache.add(now, &exchange.query, &bytes);
        self.reply(exchange.client, &exchange.query, bytes);
    }

    /// `socket` failed: no such route, port unreachable, a connection that ended. Then
    /// [`Forwarder::poll`].
    pub fn handle_error(&mut self, now: Duration, socket: SocketId) {
        self.sockets.use_up(socket);
        let on_it =
            |(id, e): (&QueryId, &Exchange)| e.sent.is_some_and(|s| s.1 == socket).then_some(*id);
        let waiting: Vec<QueryId> = self.exchanges.iter().filter_map(on_it).collect();
        for query in waiting {
            self.next_server(now, query);
        }
        self.close_sockets(now);
    }

    /// The connection is gone on which these queries came. Then [`Forwarder::poll`].
    pub fn forget(&mut self, client: FlowId) {
        let gone =
            |(id, e): (&QueryId, &Exchange)| (e.client == Client::Tcp(client)).then_some(*id);
        let gone: Vec<QueryId> = self.exchanges.iter().filter_map(gone).collect();
        for query in gone {
            // What is used up is closed now, the rest when its time has come.
            self.end(Duration::ZERO, query);
        }
    }

    /// Something to do, or None. Call again until None.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Forwarder::handle_timeout`] must be called at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let deadlines = self.exchanges.values().map(|e| e.deadline);
        deadlines.chain(self.sockets.deadline()).min()
    }

    /// Goes on with the queries whose server did not answer, and closes sockets that
    /// are no longer needed. Then [`Forwarder::poll`].
    pub fn handle_timeout(&mut self, now: Duration) {
        let late = |(id, e): (&QueryId, &Exchange)| (e.deadline <= now).then_some(*id);
        let late: Vec<QueryId> = self.exchanges.iter().filter_map(late).collect();
        for query in late {
            self.next_server(now, query);
        }
        self.close_sockets(now);
    }

    fn next_server(&mut self, now: Duration, query: QueryId) {
        let Some(exchange) = self.exchanges.get_mut(&query) else { return };
        let allowed = self.servers.len().clamp(2, TRIES_MAX);
        if self.servers.is_empty() || exchange.tries >= allowed {
            if let Some(e) = self.end(now, query) {
                self.refuse(e.client, &e.query, SERVFAIL);
            }
            return;
        }
        exchange.server = (exchange.server + 1) % self.servers.len();
        self.send(now, query, false);
    }

    fn send(&mut self, now: Duration, query: QueryId, tcp: bool) {
        self.take_back(now, query);
        let Some(exchange) = self.exchanges.get_mut(&query) else { return };
        let Some(&server) = self.servers.get(exchange.server) else { return };
        // Coming again over TCP belongs to the same try.
        exchange.tries += usize::from(!tcp);
        exchange.tcp = tcp;
        exchange.deadline = now + TRY;
        let id = loop {
            let id = draw(self.seed, self.drawn) as u16;
            self.drawn += 1;
            // Ends: there are more identifiers than queries.
            if !self.by_id.contains_key(&id) {
                break id;
            }
        };
        let socket = if tcp {
            self.sockets.connection(server)
        } else {
            self.drawn += 1;
            self.sockets.pick(now, server, draw(self.seed, self.drawn))
        };
        self.by_id.insert(id, query);
        exchange.sent = Some((id, socket));
        let mut bytes = exchange.query.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        self.actions.push_back(Action::Send { socket, server, bytes, tcp });
    }

    /// The try under way is over, whatever it has come to.
    fn take_back(&mut self, now: Duration, query: QueryId) {
        if let Some((id, socket)) = self.exchanges.get_mut(&query).and_then(|e| e.sent.take()) {
            self.by_id.remove(&id);
            self.sockets.give_back(socket);
            self.close_sockets(now);
        }
    }

    /// Takes a query out.
    fn end(&mut self, now: Duration, query: QueryId) -> Option<Exchange> {
        self.take_back(now, query);
        self.exchanges.remove(&query)
    }

    fn close_sockets(&mut self, now: Duration) {
        while let Some(socket) = self.sockets.done(now) {
            self.actions.push_back(Action::Close { socket });
        }
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
fn draw(seed: u64, count: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    hasher.write_u64(count);
    hasher.finish()
}

#[cfg(test)]
mod tests;
