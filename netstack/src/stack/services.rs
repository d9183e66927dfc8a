//! What a guest's network answers by itself: ARP, neighbour and router
//! discovery, DHCP, DNS. Connects the pure reply builders to the stack.
//!
//! # Theory of operation
//!
//! Services are asked before the policy and before any flow. All but DNS answer
//! from what they know. A DNS query under way has a flow, [`Key::Dns`], for each
//! server it is sent to in turn: a new flow is a new host socket, hence a new
//! port. The forwarder ends these flows; they have no deadline of their own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::flow::{FlowId, Key};
use super::frame::Packet;
use super::policy::{self, Verdict};
use super::{Flow, HostCommand, Netstack, arp_ndp, dhcp, dns, ra};

/// The services and their state.
#[derive(Debug)]
pub(super) struct Services {
    dhcp: dhcp::Server,
    dns: dns::Forwarder,
    /// When the next advertisement goes to all; None when IPv6 is off.
    advertise_at: Option<Duration>,
}

/// The socket of a DNS query under way.
#[derive(Debug)]
pub(super) struct DnsFlow {
    query: dns::QueryId,
    server: SocketAddr,
}

impl Services {
    pub(super) fn new(config: &crate::config::Config, seed: u64) -> Services {
        Services {
            dhcp: dhcp::Server::default(),
            dns: dns::Forwarder::new(config.name_servers.clone(), seed),
            advertise_at: config.enable_ipv6.then_some(Duration::ZERO),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.dns.poll_timeout().into_iter().chain(self.advertise_at).min()
    }
}

impl Netstack {
    /// The host's name servers have changed. Queries under way go on with the new
    /// ones. Call [`Netstack::poll_host`] afterwards.
    pub fn set_name_servers(&mut self, servers: Vec<SocketAddr>) {
        self.services.dns.set_servers(servers.clone());
        self.config.name_servers = servers;
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
                self.services.dns.handle_query(now, guest, peer, data);
                self.dns_actions(now);
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

    /// A datagram came to the socket of a query. Gives whether `flow` is one.
    pub(super) fn dns_received(
        &mut self,
        now: Duration,
        flow: FlowId,
        from: SocketAddr,
        data: &[u8],
    ) -> bool {
        let Some(Flow::Dns(DnsFlow { query, server })) = self.flows.get(flow) else { return false };
        let (query, server) = (*query, *server);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if from == server {
            self.services.dns.handle_answer(now, query, data);
            self.dns_actions(now);
        }
        true
    }

    /// The query on this socket did not arrive. Gives whether `flow` is one of a
    /// query.
    pub(super) fn dns_unreachable(&mut self, now: Duration, flow: FlowId) -> bool {
        let Some(Flow::Dns(DnsFlow { query, .. })) = self.flows.get(flow) else { return false };
        let query = *query;
        self.services.dns.handle_error(now, query);
        self.dns_actions(now);
        true
    }

    fn dns_actions(&mut self, now: Duration) {
        while let Some(action) = self.services.dns.poll() {
            match action {
                dns::Action::Send { query, server, bytes } => {
                    self.dns_close(query);
                    let flow = Flow::Dns(DnsFlow { query, server });
                    match self.flows.insert(Key::Dns(query), flow) {
                        Some(flow) => {
                            self.commands.push_back(HostCommand::UdpSend {
                                flow,
                                to: server,
                                data: bytes,
                            });
                        }
                        // Ends after the tries the forwarder allows.
                        None => {
                            self.counters.table_full += 1;
                            self.services.dns.handle_error(now, query);
                        }
                    }
                }
                dns::Action::Close { query } => self.dns_close(query),
                dns::Action::Reply { client, alias, bytes } => {
                    self.out.push_udp(&self.link, alias, client, &bytes);
                }
            }
        }
    }

    fn dns_close(&mut self, query: dns::QueryId) {
        if let Some(flow) = self.flows.find(&Key::Dns(query)) {
            self.flows.remove(flow);
            self.commands.push_back(HostCommand::Close { flow, reset: false });
        }
    }
}
