//! What a guest's network answers by itself: ARP, neighbour and router
//! discovery, DHCP, DNS. Connects the pure reply builders to the stack.
//!
//! # Theory of operation
//!
//! Services are asked before the policy and before any flow. All but DNS answer
//! from what they know. DNS queries leave from sockets of the forwarder's choice. Each
//! has a flow, [`Key::Dns`], which the forwarder ends: it has no deadline of its own.
//!
//! A connection of the guest to the name server has no socket of the host: its bytes
//! go into a [`Session`] and come from it. Whenever the connection could go on it is
//! put on the list `local`, which [`Netstack::poll_frame`] works off. While
//! [`SESSION_QUERIES`] of its queries are under way, or more than one longest answer waits
//! for the guest to read, no more is read from it.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::flow::{FlowId, Key};
use super::frame::Packet;
use super::policy::{self, Verdict};
use super::report::FlowInfo;
use super::{Flow, HostCommand, Netstack, arp_ndp, dhcp, dns, ra};
use crate::resolv::Hosts;

/// The services and their state.
#[derive(Debug)]
pub(super) struct Services {
    dhcp: dhcp::Server,
    dns: dns::Forwarder,
    /// Connections, of the guest and to name servers, that may go on.
    local: VecDeque<FlowId>,
    /// When the next advertisement goes to all; None when IPv6 is off.
    advertise_at: Option<Duration>,
}

/// A socket to a name server.
#[derive(Debug)]
pub(super) struct DnsFlow {
    socket: dns::SocketId,
    server: SocketAddr,
    /// Of a connection.
    stream: Option<Stream>,
}

impl DnsFlow {
    pub(super) fn info(&self) -> FlowInfo {
        FlowInfo { protocol: "dns", state: "open", guest: None, peer: Some(self.server) }
    }
}

/// A connection to a name server.
#[derive(Debug)]
pub(super) struct Stream {
    /// The query with its length in front.
    query: Vec<u8>,
    sent: usize,
    /// The answer so far, with its length in front.
    answer: Vec<u8>,
}

/// What is known of a connection of the guest to the name server.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Came, and is no whole message yet.
    input: Vec<u8>,
    /// Answers that have not gone out, each with its length in front.
    output: VecDeque<u8>,
    /// Queries under way.
    waiting: usize,
}

/// Queries of one connection under way at most.
const SESSION_QUERIES: usize = 16;
/// A message over TCP with its length.
const STREAM_MAX: usize = 2 + 65535;

impl Services {
    pub(super) fn new(config: &crate::config::Config, seed: u64) -> Services {
        Services {
            dhcp: dhcp::Server::default(),
            dns: dns::Forwarder::new(config.name_servers.clone(), seed),
            local: VecDeque::new(),
            advertise_at: config.enable_ipv6.then_some(Duration::ZERO),
        }
    }

    /// Somebody else advertises.
    pub(super) fn be_silent(&mut self) {
        self.advertise_at = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.dns.poll_timeout().into_iter().chain(self.advertise_at).min()
    }
}

impl Session {
    /// Takes bytes that came.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// How much more it takes: no further message than one.
    pub(super) fn room(&self) -> usize {
        STREAM_MAX.saturating_sub(self.input.len())
    }

    /// Bytes that are to go out.
    pub(super) fn output(&mut self) -> &mut VecDeque<u8> {
        &mut self.output
    }

    /// Nothing more will come of it, if no more bytes come.
    pub(super) fn is_done(&self) -> bool {
        self.waiting == 0 && self.output.is_empty()
    }
}

impl Netstack {
    /// The host's name servers and search list have changed. Queries under way go to
    /// the new ones. Call [`Netstack::poll_host`] afterwards.
    pub fn set_name_servers(&mut self, now: Duration, hosts: Hosts) {
        self.services.dns.set_servers(now, hosts.servers.clone());
        self.config.name_servers = hosts.servers;
        self.config.search = hosts.search;
        self.dns_actions(now);
    }

    pub(super) fn services_timeout(&mut self, now: Duration) {
        if self.services.advertise_at.is_some_and(|at| at <= now) {
            self.services.advertise_at = Some(now + ra::INTERVAL);
            if let Some(frame) = ra::unsolicited(&self.config) {
                self.out.push_ethernet(&self.link, &frame);
            }
        }
        self.services.dns.handle_timeout(now);
        self.dns_actions(now);
    }

    /// An ARP packet.
    pub(super) fn handle_arp(&mut self, packet: &[u8]) {
        if let Some(frame) = arp_ndp::arp_reply(&self.config, packet) {
            self.out.push_ethernet(&self.link, &frame);
        }
    }

    /// An ICMP packet that is no echo request.
    pub(super) fn handle_control(&mut self, packet: &Packet<'_>) {
        let from = self.link.guest;
        let reply = arp_ndp::neighbour_advertisement(&self.config, packet, from)
            .or_else(|| ra::answer(&self.config, packet, from));
        if let Some(frame) = reply {
            self.out.push_ethernet(&self.link, &frame);
        }
    }

    /// A datagram that may be for a service of ours. Gives whether it was.
    pub(super) fn handle_service(
        &mut self,
        now: Duration,
        guest: SocketAddr,
        peer: SocketAddr,
        data: &[u8],
    ) -> bool {
        if policy::decide(&self.config, peer) == Verdict::Dns {
            if guest.port() != 0 {
                let client = dns::Client::Udp { guest, alias: peer };
                self.dns_query(now, client, data);
            }
            return true;
        }
        let (IpAddr::V4(ip), dhcp::SERVER_PORT) = (peer.ip(), peer.port()) else { return false };
        if guest.port() != dhcp::CLIENT_PORT || !(ip.is_broadcast() || ip == self.config.v4.gateway)
        {
            return false;
        }
        if let Some(reply) = self.services.dhcp.handle(&self.config, data) {
            let from = SocketAddr::new(self.config.v4.gateway.into(), dhcp::SERVER_PORT);
            self.out.push_udp(&self.link, from, reply.to.into(), &reply.bytes);
        }
        true
    }

    /// A query of the guest, which the policy may forbid.
    fn dns_query(&mut self, now: Duration, client: dns::Client, message: &[u8]) {
        let forbidden = self.egress.as_ref().is_some_and(|egress| {
            dns::asked(message).is_some_and(|name| !egress.allows_name(now, &name))
        });
        if forbidden {
            self.counters.denied += 1;
            self.services.dns.refuse(client, message, dns::REFUSED);
        } else {
            self.services.dns.handle_query(now, client, message);
        }
        self.dns_actions(now);
    }

    /// Before the guest knows an address by a name, the policy does.
    fn pin(&self, now: Duration, answer: &[u8]) {
        if let Some(egress) = &self.egress
            && let Some(name) = dns::asked(answer)
        {
            for (addr, ttl) in dns::addresses(answer) {
                egress.pin(now, &name, addr, ttl);
            }
        }
    }

    /// A datagram came to a socket of the forwarder. Gives whether `flow` is one.
    pub(super) fn dns_received(
        &mut self,
        now: Duration,
        flow: FlowId,
        from: SocketAddr,
        data: &[u8],
    ) -> bool {
        let Some(Flow::Dns(DnsFlow { socket, server, .. })) = self.flows.get(flow) else {
            return false;
        };
        let (socket, server) = (*socket, *server);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        // A zone tells apart links, not servers.
        if (from.ip(), from.port()) == (server.ip(), server.port()) {
            self.services.dns.handle_answer(now, socket, data);
            self.dns_actions(now);
        }
        true
    }

    /// A socket of the forwarder failed, or its connection ended. Gives whether `flow`
    /// is one.
    pub(super) fn dns_failed(&mut self, now: Duration, flow: FlowId) -> bool {
        let Some(Flow::Dns(DnsFlow { socket, .. })) = self.flows.get(flow) else { return false };
        let socket = *socket;
        self.services.dns.handle_error(now, socket);
        self.dns_actions(now);
        true
    }

    /// A connection to a name server is there. Gives whether `flow` is one.
    pub(super) fn dns_connected(&mut self, flow: FlowId) -> bool {
        let is_one = matches!(self.flows.get(flow), Some(Flow::Dns(_)));
        if is_one {
            self.commands.push_back(HostCommand::TcpTransfer { flow });
        }
        is_one
    }

    fn dns_stream(&mut self, flow: FlowId) -> Option<&mut Stream> {
        match self.flows.get_mut(flow)? {
            Flow::Dns(DnsFlow { stream, .. }) => stream.as_mut(),
            _ => None,
        }
    }

    /// What is left to send of a query over a connection.
    pub(super) fn dns_outgoing(&self, flow: FlowId) -> &[u8] {
        match self.flows.get(flow) {
            Some(Flow::Dns(DnsFlow { stream: Some(stream), .. })) => &stream.query[stream.sent..],
            _ => &[],
        }
    }

    pub(super) fn dns_sent(&mut self, flow: FlowId, count: usize) {
        if let Some(stream) = self.dns_stream(flow) {
            stream.sent = (stream.sent + count).min(stream.query.len());
        }
    }

    /// How much of an answer may still come over a connection.
    pub(super) fn dns_room(&self, flow: FlowId) -> usize {
        match self.flows.get(flow) {
            Some(Flow::Dns(DnsFlow { stream: Some(stream), .. })) => {
                STREAM_MAX - stream.answer.len()
            }
            _ => 0,
        }
    }

    pub(super) fn dns_fill(
        &mut self,
        flow: FlowId,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> usize,
    ) {
        let room = self.dns_room(flow);
        let Some(stream) = self.dns_stream(flow).filter(|_| room > 0) else { return };
        let old = stream.answer.len();
        stream.answer.resize(STREAM_MAX, 0);
        let count = read(&mut [IoSliceMut::new(&mut stream.answer[old..])]);
        stream.answer.truncate(old + count.min(room));
        self.go_on_locally(flow);
    }

    /// A connection that we are the other end of may go on.
    pub(super) fn go_on_locally(&mut self, flow: FlowId) {
        self.services.local.push_back(flow);
    }

    /// Works off the connections that may go on.
    pub(super) fn poll_local(&mut self, now: Duration) {
        while let Some(id) = self.services.local.pop_front() {
            match self.flows.get(id) {
                Some(Flow::Dns(DnsFlow { socket, stream: Some(stream), .. })) => {
                    let Some((len, rest)) = stream.answer.split_first_chunk::<2>() else {
                        continue;
                    };
                    let len = usize::from(u16::from_be_bytes(*len));
                    if let Some(answer) = rest.get(..len) {
                        let (socket, answer) = (*socket, answer.to_vec());
                        self.services.dns.handle_answer(now, socket, &answer);
                        self.dns_actions(now);
                        // Not the answer: nothing better comes after it.
                        self.dns_failed(now, id);
                    }
                }
                Some(Flow::Tcp(_)) => self.dns_session(now, id),
                _ => {}
            }
        }
    }

    /// Takes queries out of a connection of the guest and puts answers in.
    fn dns_session(&mut self, now: Duration, id: FlowId) {
        loop {
            let Some(session) = self.tcp_session(id) else { return };
            // A guest that asks and does not read would have us keep all answers. It goes
            // on with the acknowledgement of what is on its way.
            if session.waiting >= SESSION_QUERIES || session.output.len() > STREAM_MAX {
                break;
            }
            let message = session.input.split_first_chunk::<2>().and_then(|(len, rest)| {
                rest.get(..usize::from(u16::from_be_bytes(*len))).map(<[u8]>::to_vec)
            });
            match message {
                Some(message) => {
                    session.input.drain(..2 + message.len());
                    // No answer will come to what is no query.
                    if dns::asked(&message).is_none() || message[2] & 0x80 != 0 {
                        return self.tcp_reset(now, id);
                    }
                    session.waiting += 1;
                    self.dns_query(now, dns::Client::Tcp(id), &message);
                }
                None if self.tcp_take(id) => {}
                None => break,
            }
        }
        self.tcp_serve(now, id);
    }

    fn dns_actions(&mut self, now: Duration) {
        while let Some(action) = self.services.dns.poll() {
            match action {
                dns::Action::Send { socket, server, bytes, tcp } => {
                    self.dns_send(now, socket, server, bytes, tcp);
                }
                dns::Action::Close { socket } => self.dns_close(socket),
                dns::Action::Reply { client: dns::Client::Udp { guest, alias }, bytes } => {
                    self.pin(now, &bytes);
                    self.out.push_udp(&self.link, alias, guest, &bytes);
                }
                dns::Action::Reply { client: dns::Client::Tcp(flow), bytes } => {
                    self.pin(now, &bytes);
                    if let Some(session) = self.tcp_session(flow) {
                        session.waiting = session.waiting.saturating_sub(1);
                        session.output.extend((bytes.len() as u16).to_be_bytes());
                        session.output.extend(bytes);
                        self.go_on_locally(flow);
                    }
                }
            }
        }
    }

    fn dns_send(
        &mut self,
        now: Duration,
        socket: dns::SocketId,
        server: SocketAddr,
        bytes: Vec<u8>,
        tcp: bool,
    ) {
        let known = self.flows.find(&Key::Dns(socket));
        let flow = known.or_else(|| {
            let stream = tcp.then(|| {
                let mut query = (bytes.len() as u16).to_be_bytes().to_vec();
                query.extend_from_slice(&bytes);
                Stream { query, sent: 0, answer: Vec::new() }
            });
            let flow = Flow::Dns(DnsFlow { socket, server, stream });
            self.flows.insert(Key::Dns(socket), flow)
        });
        match flow {
            Some(flow) if tcp => {
                self.commands.push_back(HostCommand::TcpConnect { flow, to: server });
            }
            Some(flow) => {
                self.commands.push_back(HostCommand::UdpSend { flow, to: server, data: bytes });
            }
            // Ends after the tries the forwarder allows.
            None => {
                self.counters.table_full += 1;
                self.services.dns.handle_error(now, socket);
            }
        }
    }

    /// The connection of the guest is gone.
    pub(super) fn dns_forget(&mut self, id: FlowId) {
        self.services.dns.forget(id);
        while let Some(action) = self.services.dns.poll() {
            if let dns::Action::Close { socket } = action {
                self.dns_close(socket);
            }
        }
    }

    fn dns_close(&mut self, socket: dns::SocketId) {
        if let Some(flow) = self.flows.find(&Key::Dns(socket)) {
            self.flows.remove(flow);
            self.commands.push_back(HostCommand::Close { flow, reset: false });
        }
    }
}

#[cfg(test)]
mod tests;
