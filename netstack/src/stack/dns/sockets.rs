//! Which socket a query leaves from.
//!
//! # Theory of operation
//!
//! Who forges answers must hit the port a query left from besides its identifier (RFC
//! 5452 section 4.5), so ports are the kernel's random choice, and none is used for
//! long. A socket for each query would do, and costs more than the query: so a query
//! draws one of [`SPREAD`] places at random. In one there is a socket, or one is made.
//! A socket takes [`QUERIES`] queries, for [`LIFE`]: who has found its port out knows
//! that of one of [`SPREAD`] queries at best, and not for long. It is closed when its
//! last query is answered or given up.
//!
//! A socket has one server: an error on it is the server's. A connection has one query.

use std::net::SocketAddr;
use std::time::Duration;

/// Sockets that take queries for one server at most.
const SPREAD: usize = 16;
/// Queries a socket takes.
const QUERIES: u32 = 32;
/// How long it takes them.
const LIFE: Duration = Duration::from_secs(5);

/// Names a socket to a name server. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(u64);

/// The sockets there are.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: Vec<Socket>,
    next: u64,
}

#[derive(Debug)]
struct Socket {
    id: SocketId,
    server: SocketAddr,
    /// Queries it will still take.
    left: u32,
    /// Until when.
    until: Duration,
    /// Queries sent from it that are under way.
    waiting: u32,
}

impl Sockets {
    /// One for a query to `server`, by a random number.
    pub(super) fn pick(&mut self, now: Duration, server: SocketAddr, random: u64) -> SocketId {
        let place = (random % SPREAD as u64) as usize;
        let takes = |s: &&mut Socket| s.server == server && s.left > 0 && now < s.until;
        if let Some(socket) = self.open.iter_mut().filter(takes).nth(place) {
            socket.left -= 1;
            socket.waiting += 1;
            return socket.id;
        }
        self.add(server, QUERIES - 1, now + LIFE)
    }

    /// One for a connection to `server`, and a single query.
    pub(super) fn connection(&mut self, server: SocketAddr) -> SocketId {
        self.add(server, 0, Duration::MAX)
    }

    fn add(&mut self, server: SocketAddr, left: u32, until: Duration) -> SocketId {
        let id = SocketId(self.next);
        self.next += 1;
        self.open.push(Socket { id, server, left, until, waiting: 1 });
        id
    }

    /// A query that was sent from `id` is over.
    pub(super) fn give_back(&mut self, id: SocketId) {
        if let Some(socket) = self.open.iter_mut().find(|socket| socket.id == id) {
            socket.waiting = socket.waiting.saturating_sub(1);
        }
    }

    /// `id` takes no more queries.
    pub(super) fn use_up(&mut self, id: SocketId) {
        if let Some(socket) = self.open.iter_mut().find(|socket| socket.id == id) {
            socket.left = 0;
        }
    }

    /// None of them takes more queries.
    pub(super) fn retire(&mut self) {
        self.open.iter_mut().for_each(|socket| socket.left = 0);
    }

    /// One that is not needed any more: it is to be closed. Ask until None.
    pub(super) fn done(&mut self, now: Duration) -> Option<SocketId> {
        let done = |s: &Socket| s.waiting == 0 && (s.left == 0 || s.until <= now);
        let at = self.open.iter().position(done)?;
        Some(self.open.swap_remove(at).id)
    }

    /// When [`Sockets::done`] has one next, if no query ends before.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.open.iter().filter(|s| s.waiting == 0).map(|s| s.until).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn server(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 53).into()
    }

    /// SplitMix64's constant: every residue comes.
    fn random(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
    }

    #[test]
    fn queries_spread_over_ports_and_no_port_is_used_for_many() {
        let mut sockets = Sockets::default();
        let mut used: BTreeMap<SocketId, u32> = BTreeMap::new();
        let mut closed = Vec::new();
        for n in 0..10_000 {
            let id = sockets.pick(NOW, server(1), random(n));
            *used.entry(id).or_default() += 1;
            sockets.give_back(id);
            while let Some(done) = sockets.done(NOW) {
                closed.push(done);
            }
            assert!(sockets.open.len() <= SPREAD);
        }
        assert!(used.values().all(|count| *count <= QUERIES), "{used:?}");
        assert!(closed.iter().all(|id| used[id] == QUERIES), "closed before their time");
        assert!(used.len() < 10_000 / QUERIES as usize + SPREAD + 1, "{} sockets", used.len());
        assert_eq!(closed.len() + sockets.open.len(), used.len());
        // Who knows one port of them knows where one of many queries comes from.
        let recent: Vec<SocketId> =
            (0..64).map(|n| sockets.pick(NOW, server(1), random(n))).collect();
        let most = recent.iter().map(|id| recent.iter().filter(|other| *other == id).count()).max();
        assert!(most.unwrap() <= 64 / 4, "{recent:?}");
    }

    #[test]
    fn a_port_is_not_used_for_long() {
        let mut sockets = Sockets::default();
        let first = sockets.pick(NOW, server(1), 0);
        assert_eq!(sockets.pick(NOW, server(1), 0), first);
        let late = NOW + LIFE;
        assert_ne!(sockets.pick(late, server(1), 0), first);
        assert_eq!(sockets.done(late), None, "queries wait for answers on it");
        sockets.give_back(first);
        assert_eq!((sockets.done(late), sockets.deadline()), (None, None));
        sockets.give_back(first);
        assert_eq!(sockets.deadline(), Some(late));
        assert_eq!(sockets.done(late), Some(first));
    }

    #[test]
    fn a_socket_is_one_servers_and_a_connection_one_querys() {
        let mut sockets = Sockets::default();
        let first = sockets.pick(NOW, server(1), 0);
        let second = sockets.pick(NOW, server(2), 0);
        let stream = sockets.connection(server(1));
        assert!(first != second && stream != first);
        assert_eq!(sockets.pick(NOW, server(1), 1), SocketId(3), "the connection is no place");
        sockets.give_back(stream);
        assert_eq!(sockets.done(NOW), Some(stream));
        sockets.use_up(first);
        sockets.give_back(first);
        assert_eq!(sockets.done(NOW), Some(first));
        sockets.retire();
        sockets.give_back(second);
        assert_eq!(sockets.done(NOW), Some(second));
        assert_eq!(sockets.done(NOW), None, "the fourth has a query under way");
    }
}
