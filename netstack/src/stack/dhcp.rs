//! DHCP server (RFC 2131, options of RFC 2132) for the guest's segment.
//!
//! # Theory of operation
//!
//! One message in, at most one message out. The pool is +15 to +30 of the network;
//! besides, whoever asks for the guest's configured address (+100) gets it, so
//! that a guest that is configured by `-c` may also run a DHCP client. A lease
//! belongs to a client identifier (option 61, else the hardware address) and is
//! found again for as long as the address is not needed for someone else: when the
//! pool is used up, the address that was asked for longest ago is given away.
//! There is no clock in here: leases are handed out for [`LEASE_SECONDS`] and not
//! expired. Relays (giaddr) are not served.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::dns;
use crate::config::Config;

/// How long a lease lasts, in seconds.
pub const LEASE_SECONDS: u32 = 86_400;
/// The server's port.
pub const SERVER_PORT: u16 = 67;
/// The client's port.
pub const CLIENT_PORT: u16 = 68;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP's fixed part with the cookie, in bytes.
const FIXED: usize = 240;
/// Older clients discard shorter messages (RFC 1542 section 2.1).
const MESSAGE_MIN: usize = 300;
const CLIENT_ID_MAX: usize = 64;
/// Bytes for the search list: an answer must fit into 576 bytes (RFC 2131 section 2).
const SEARCH_LEN: usize = 128;
/// The same for one name alone.
const DOMAIN_LEN: usize = 100;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const MESSAGE: u8 = 56;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const END: u8 = 255;
}

mod kind {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// An answer, to be sent from the gateway's port 67.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Where to: the client's address, or broadcast while it has none.
    pub to: SocketAddrV4,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// The leases.
#[derive(Debug, Default)]
pub struct Server {
    leases: Vec<Lease>,
    turn: u64,
}

#[derive(Debug)]
struct Lease {
    addr: Ipv4Addr,
    /// None: declined by a client, so someone else on the segment has it.
    client: Option<Vec<u8>>,
    used: u64,
}

struct Request<'a> {
    bytes: &'a [u8; FIXED],
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Vec<u8>,
}

impl Server {
    /// Answers a message to port 67 (its UDP payload). None when it asks for no
    /// answer, is not for us or is malformed.
    pub fn handle(&mut self, config: &Config, payload: &[u8]) -> Option<Reply> {
        let request = Request::parse(payload)?;
        self.turn += 1;
        let ours = config.v4.gateway;
        match request.kind {
            kind::DISCOVER => {
                let wanted = request.requested;
                let addr = self.choose(config, &request.client, wanted)?;
                Some(request.reply(config, kind::OFFER, addr))
            }
            kind::REQUEST if request.server.is_some_and(|server| server != ours) => {
                // The client took another server's offer.
                self.forget(&request.client);
                None
            }
            kind::REQUEST => {
                let ciaddr = request.ciaddr();
                let wanted = request.requested.or((!ciaddr.is_unspecified()).then_some(ciaddr))?;
                if self.take(config, &request.client, wanted) {
                    Some(request.reply(config, kind::ACK, wanted))
                } else {
                    Some(request.refuse(config))
                }
            }
            kind::INFORM => Some(request.reply(config, kind::ACK, Ipv4Addr::UNSPECIFIED)),
            kind::RELEASE => {
                self.forget(&request.client);
                None
            }
            kind::DECLINE => {
                let addr = request.requested?;
                let lease = self.leases.iter_mut().find(|l| l.addr == addr)?;
                if lease.client.as_ref() == Some(&request.client) {
                    lease.client = None;
                }
                None
            }
            _ => None,
        }
    }

    /// An address for `client`: the one it has, the one it wants, a free one, the
    /// one unused for longest.
    fn choose(
        &mut self,
        config: &Config,
        client: &[u8],
        wanted: Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        if let Some(wanted) = wanted
            && self.take(config, client, wanted)
        {
            return Some(wanted);
        }
        if let Some(lease) = self.leases.iter_mut().find(|l| l.client.as_deref() == Some(client)) {
            lease.used = self.turn;
            return Some(lease.addr);
        }
        let (first, last) = (u32::from(config.v4.dhcp_first), u32::from(config.v4.dhcp_last));
        let free = (first..=last)
            .map(Ipv4Addr::from)
            .find(|addr| self.leases.iter().all(|lease| lease.addr != *addr));
        let addr = match free {
            Some(addr) => addr,
            None => {
                let in_pool = |l: &&Lease| l.addr != config.v4.guest;
                self.leases.iter().filter(in_pool).min_by_key(|lease| lease.used)?.addr
            }
        };
        self.leases.retain(|lease| lease.addr != addr);
        self.lease(addr, client);
        Some(addr)
    }

    /// Gives `addr` to `client` when it is one of ours and nobody else's.
    fn take(&mut self, config: &Config, client: &[u8], addr: Ipv4Addr) -> bool {
        let pool = config.v4.dhcp_first..=config.v4.dhcp_last;
        if !pool.contains(&addr) && addr != config.v4.guest {
            return false;
        }
        let taken = |l: &Lease| l.addr == addr && l.client.as_deref() != Some(client);
        if self.leases.iter().any(taken) {
            return false;
        }
        self.forget(client);
        self.lease(addr, client);
        true
    }

    fn lease(&mut self, addr: Ipv4Addr, client: &[u8]) {
        self.leases.push(Lease { addr, client: Some(client.to_vec()), used: self.turn });
    }

    fn forget(&mut self, client: &[u8]) {
        self.leases.retain(|lease| lease.client.as_deref() != Some(client));
    }
}

impl<'a> Request<'a> {
    fn parse(payload: &'a [u8]) -> Option<Request<'a>> {
        let bytes: &[u8; FIXED] = payload.get(..FIXED)?.try_into().ok()?;
        // A request from Ethernet, not through a relay, with DHCP's cookie.
        if bytes[..3] != [1, 1, 6] || bytes[24..28] != [0; 4] || bytes[236..] != COOKIE {
            return None;
        }
        let mut request = Request {
            bytes,
            kind: 0,
            requested: None,
            server: None,
            client: bytes[28..34].to_vec(),
        };
        let mut options = &payload[FIXED..];
        loop {
            match *options {
                [] | [option::END, ..] => break,
                [option::PAD, ref rest @ ..] => options = rest,
                [code, len, ref rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(usize::from(len))?;
                    options = rest;
                    match (code, value) {
                        (option::KIND, [kind]) => request.kind = *kind,
                        (option::REQUESTED, v) => request.requested = address(v),
                        (option::SERVER, v) => request.server = address(v),
                        (option::CLIENT_ID, v) if (2..=CLIENT_ID_MAX).contains(&v.len()) => {
                            request.client = v.to_vec();
                        }
                        _ => {}
                    }
                }
                [_] => return None,
            }
        }
        Some(request)
    }

    fn ciaddr(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.bytes[12], self.bytes[13], self.bytes[14], self.bytes[15])
    }

    /// OFFER or ACK. `yiaddr` is unspecified in the answer to INFORM.
    fn reply(&self, config: &Config, kind: u8, yiaddr: Ipv4Addr) -> Reply {
        let net = &config.v4;
        let mut out = self.header(kind, yiaddr, config);
        let mut put = |code: u8, value: &[u8]| {
            out.push(code);
            out.push(value.len() as u8);
            out.extend_from_slice(value);
        };
        if !yiaddr.is_unspecified() {
            put(option::LEASE, &LEASE_SECONDS.to_be_bytes());
        }
        put(option::MASK, &(!(u32::MAX >> net.prefix)).to_be_bytes());
        put(option::ROUTER, &net.gateway.octets());
        put(option::BROADCAST, &net.broadcast().octets());
        if !config.disable_dns {
            put(option::DNS, &net.dns.octets());
            if let Some(first) = config.search.first().filter(|name| name.len() <= DOMAIN_LEN) {
                // For clients that know no list.
                put(option::DOMAIN, first.as_bytes());
            }
            // RFC 3397: names as in a DNS message, in parts of 255 bytes.
            for part in search_list(config, SEARCH_LEN).chunks(255) {
                put(option::SEARCH, part);
            }
        }
        put(option::MTU, &config.mtu.to_be_bytes());
        let ciaddr = self.ciaddr();
        // A client that has an address is reached at it; one that has none yet
        // takes broadcasts, whether it asked for them or not.
        let to = if ciaddr.is_unspecified() { Ipv4Addr::BROADCAST } else { ciaddr };
        Reply { to: SocketAddrV4::new(to, CLIENT_PORT), bytes: finish(out) }
    }

    fn refuse(&self, config: &Config) -> Reply {
        let mut out = self.header(kind::NAK, Ipv4Addr::UNSPECIFIED, config);
        out[12..16].fill(0);
        let reason = b"address not available";
        out.extend_from_slice(&[option::MESSAGE, reason.len() as u8]);
        out.extend_from_slice(reason);
        // The client must not rely on the address it thinks it has (section 4.1).
        Reply { to: SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT), bytes: finish(out) }
    }

    /// Fixed part, message type and server identifier.
    fn header(&self, kind: u8, yiaddr: Ipv4Addr, config: &Config) -> Vec<u8> {
        let mut out = Vec::with_capacity(MESSAGE_MIN);
        out.extend_from_slice(&[2, 1, 6, 0]);
        out.extend_from_slice(&self.bytes[4..8]);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.bytes[10..16]);
        out.extend_from_slice(&yiaddr.octets());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.bytes[28..44]);
        out.resize(FIXED - COOKIE.len(), 0);
        out.extend_from_slice(&COOKIE);
        out.extend_from_slice(&[option::KIND, 1, kind, option::SERVER, 4]);
        out.extend_from_slice(&config.v4.gateway.octets());
        out
    }
}

/// The names of the search list that fit into `room` bytes, as in a DNS message.
pub(super) fn search_list(config: &Config, room: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for name in config.search.iter().map(|name| dns::encode(name)) {
        if out.len() + name.len() <= room {
            out.extend(name);
        }
    }
    out
}

fn finish(mut out: Vec<u8>) -> Vec<u8> {
    out.push(option::END);
    out.resize(out.len().max(MESSAGE_MIN), option::PAD);
    out
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, mac: u8, ciaddr: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut m = vec![0; FIXED];
        m[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, mac]);
        m[12..16].copy_from_slice(&ciaddr);
        m[28..34].copy_from_slice(&[2, 0, 0, 0, 0, mac]);
        m[236..].copy_from_slice(&COOKIE);
        m.extend_from_slice(&[0, option::KIND, 1, kind]);
        for (code, value) in options {
            m.extend_from_slice(&[*code, value.len() as u8]);
            m.extend_from_slice(value);
        }
        m.push(option::END);
        m
    }

    fn find(reply: &Reply, code: u8) -> Option<Vec<u8>> {
        let mut at = FIXED;
        while reply.bytes[at] != option::END {
            let len = usize::from(reply.bytes[at + 1]);
            if reply.bytes[at] == code {
                return Some(reply.bytes[at + 2..at + 2 + len].to_vec());
            }
            at += 2 + len;
        }
        None
    }

    fn yiaddr(reply: &Reply) -> [u8; 4] {
        reply.bytes[16..20].try_into().unwrap()
    }

    fn discover(server: &mut Server, mac: u8) -> [u8; 4] {
        yiaddr(&server.handle(&Config::default(), &message(1, mac, [0; 4], &[])).unwrap())
    }

    #[test]
    fn discover_and_request_give_the_first_address_and_the_networks_settings() {
        let config = Config { mtu: 65520, ..Config::default() };
        let mut server = Server::default();
        let offer = server.handle(&config, &message(kind::DISCOVER, 7, [0; 4], &[])).unwrap();
        assert_eq!(find(&offer, option::KIND), Some(vec![kind::OFFER]));
        assert_eq!(yiaddr(&offer), [10, 0, 2, 15]);
        assert_eq!(offer.to, "255.255.255.255:68".parse().unwrap());
        assert_eq!(offer.bytes[..8], [2, 1, 6, 0, 0xde, 0xad, 0xbe, 7]);
        assert_eq!(offer.bytes[28..34], [2, 0, 0, 0, 0, 7]);
        assert!(offer.bytes.len() >= MESSAGE_MIN);

        let options: [(u8, &[u8]); 2] =
            [(option::REQUESTED, &[10, 0, 2, 15]), (option::SERVER, &[10, 0, 2, 2])];
        let ack = server.handle(&config, &message(kind::REQUEST, 7, [0; 4], &options)).unwrap();
        assert_eq!(find(&ack, option::KIND), Some(vec![kind::ACK]));
        assert_eq!(yiaddr(&ack), [10, 0, 2, 15]);
        for (code, value) in [
            (option::SERVER, vec![10, 0, 2, 2]),
            (option::LEASE, LEASE_SECONDS.to_be_bytes().to_vec()),
            (option::MASK, vec![255, 255, 255, 0]),
            (option::ROUTER, vec![10, 0, 2, 2]),
            (option::DNS, vec![10, 0, 2, 3]),
            (option::BROADCAST, vec![10, 0, 2, 255]),
            (option::MTU, vec![0xff, 0xf0]),
        ] {
            assert_eq!(find(&ack, code), Some(value), "option {code}");
        }
    }

    #[test]
    fn the_search_list_is_told_as_far_as_it_fits() {
        let search: Vec<String> = [
            "corp.example".into(),
            "x".repeat(63).as_str().to_owned() + "." + &"y".repeat(63),
            "b.c".into(),
        ]
        .into();
        let config = Config { search, ..Config::default() };
        let discover = message(kind::DISCOVER, 1, [0; 4], &[]);
        let offer = Server::default().handle(&config, &discover).unwrap();
        assert_eq!(find(&offer, option::DOMAIN), Some(b"corp.example".to_vec()));
        let list = b"\x04corp\x07example\0\x01b\x01c\0";
        assert_eq!(find(&offer, option::SEARCH), Some(list.to_vec()));
        assert!(offer.bytes.len() <= 576 - 28);
        let config = Config { disable_dns: true, ..config };
        let offer = Server::default().handle(&config, &discover).unwrap();
        assert_eq!(find(&offer, option::SEARCH), None);
    }

    #[test]
    fn a_client_keeps_its_address_and_renews_it() {
        let mut server = Server::default();
        assert_eq!(discover(&mut server, 1), [10, 0, 2, 15]);
        assert_eq!(discover(&mut server, 2), [10, 0, 2, 16]);
        assert_eq!(discover(&mut server, 1), [10, 0, 2, 15]);
        let renew = message(kind::REQUEST, 2, [10, 0, 2, 16], &[]);
        let ack = server.handle(&Config::default(), &renew).unwrap();
        assert_eq!(find(&ack, option::KIND), Some(vec![kind::ACK]));
        assert_eq!(ack.to, "10.0.2.16:68".parse().unwrap());
    }

    #[test]
    fn the_configured_address_is_given_to_who_asks_for_it() {
        let mut server = Server::default();
        let wanted: [(u8, &[u8]); 1] = [(option::REQUESTED, &[10, 0, 2, 100])];
        let offer = server
            .handle(&Config::default(), &message(kind::DISCOVER, 1, [0; 4], &wanted))
            .unwrap();
        assert_eq!(yiaddr(&offer), [10, 0, 2, 100]);
    }

    #[test]
    fn addresses_that_are_not_ours_or_anothers_are_refused() {
        let mut server = Server::default();
        discover(&mut server, 1);
        for addr in [[10, 0, 2, 15], [10, 0, 2, 2], [10, 0, 2, 50], [192, 168, 1, 4]] {
            let wanted: [(u8, &[u8]); 1] = [(option::REQUESTED, &addr)];
            let request = message(kind::REQUEST, 2, [0; 4], &wanted);
            let nak = server.handle(&Config::default(), &request).unwrap();
            assert_eq!(find(&nak, option::KIND), Some(vec![kind::NAK]), "{addr:?}");
            assert_eq!(yiaddr(&nak), [0; 4]);
            assert_eq!(nak.to, "255.255.255.255:68".parse().unwrap());
        }
    }

    #[test]
    fn release_decline_and_another_servers_offer_free_what_they_should() {
        let config = Config::default();
        let mut server = Server::default();
        discover(&mut server, 1);
        assert_eq!(server.handle(&config, &message(kind::RELEASE, 1, [10, 0, 2, 15], &[])), None);
        assert_eq!(discover(&mut server, 2), [10, 0, 2, 15], "released");

        let options: [(u8, &[u8]); 1] = [(option::REQUESTED, &[10, 0, 2, 15])];
        assert_eq!(server.handle(&config, &message(kind::DECLINE, 2, [0; 4], &options)), None);
        assert_eq!(discover(&mut server, 2), [10, 0, 2, 16], "in use by someone");

        let other: [(u8, &[u8]); 2] =
            [(option::SERVER, &[10, 0, 2, 9]), (option::REQUESTED, &[10, 0, 2, 16])];
        assert_eq!(server.handle(&config, &message(kind::REQUEST, 2, [0; 4], &other)), None);
        assert_eq!(discover(&mut server, 3), [10, 0, 2, 16]);
    }

    #[test]
    fn a_full_pool_gives_away_what_was_unused_for_longest() {
        let mut server = Server::default();
        for mac in 0..16 {
            assert_eq!(discover(&mut server, mac), [10, 0, 2, 15 + mac]);
        }
        discover(&mut server, 0);
        assert_eq!(discover(&mut server, 100), [10, 0, 2, 16]);
        for mac in 0..=255 {
            discover(&mut server, mac);
        }
        assert_eq!(server.leases.len(), 16, "the table is bounded by the pool");
    }

    #[test]
    fn inform_answers_settings_without_an_address() {
        let inform = message(kind::INFORM, 1, [10, 0, 2, 77], &[]);
        let ack = Server::default().handle(&Config::default(), &inform).unwrap();
        assert_eq!(yiaddr(&ack), [0; 4]);
        assert_eq!(find(&ack, option::LEASE), None);
        assert_eq!(find(&ack, option::ROUTER), Some(vec![10, 0, 2, 2]));
        assert_eq!(ack.to, "10.0.2.77:68".parse().unwrap());
    }

    #[test]
    fn malformed_messages_are_ignored() {
        let config = Config::default();
        let mut server = Server::default();
        let good = message(kind::DISCOVER, 1, [0; 4], &[]);
        for (at, value) in [(0, 2), (1, 6), (2, 8), (24, 10), (236, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(server.handle(&config, &bad), None, "byte {at}");
        }
        for len in 0..FIXED {
            assert_eq!(server.handle(&config, &good[..len]), None, "{len} bytes");
        }
        let mut cut = good.clone();
        cut.pop();
        cut.extend_from_slice(&[option::CLIENT_ID, 20, 1]);
        assert_eq!(server.handle(&config, &cut), None, "an option beyond the end");
        let unknown = message(99, 1, [0; 4], &[]);
        assert_eq!(server.handle(&config, &unknown), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            messages in prop::collection::vec(
                (0u8..10, prop::collection::vec(any::<u8>(), 0..80), any::<bool>()), 0..40),
        ) {
            let mut server = Server::default();
            for (kind, tail, whole) in messages {
                let mut bytes = message(kind, tail.len() as u8, [0; 4], &[]);
                bytes.pop();
                bytes.extend_from_slice(&tail);
                let bytes = if whole { &bytes[..] } else { &tail[..] };
                if let Some(reply) = server.handle(&Config::default(), bytes) {
                    prop_assert!(reply.bytes.len() >= MESSAGE_MIN);
                }
                prop_assert!(server.leases.len() <= 17);
            }
        }
    }
}
