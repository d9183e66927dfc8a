//! A flow and its patience: until when it waits for what.

use std::net::SocketAddr;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::segment::Segment;
use crate::stack::frame::Packet;
use crate::stack::report::FlowInfo;
use crate::stack::services::Session;

/// Silence after which a guest with an open connection is probed (RFC 9293
/// section 3.8.4 asks for two hours at least).
const PROBE_IDLE: Duration = Duration::from_secs(7200);
/// The same once one direction has ended.
const PROBE_HALF_CLOSED: Duration = Duration::from_secs(60);
/// How long data or a probe may stay unanswered.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// How long the guest may take for its part of the handshake.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(60);
/// How long the host may take to connect, above any kernel's own limit.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(200);

/// A TCP flow.
#[derive(Debug)]
pub(in crate::stack) struct Flow {
    pub(super) guest: SocketAddr,
    /// The other end as the guest sees it.
    pub(super) peer: SocketAddr,
    pub(super) state: State,
    /// In [`crate::stack::Netstack::sending`].
    pub(super) sending: bool,
    /// In [`crate::stack::Netstack::unsettled`].
    pub(super) fresh: bool,
    /// A `TcpTransfer` is queued.
    pub(super) transfer: bool,
    /// When the guest was last heard.
    pub(super) heard: Duration,
    /// When it was last probed.
    pub(super) probed: Duration,
    /// Since when the flow is in its present state.
    pub(super) since: Duration,
    /// Of a connection to the name server, which has no socket of the host.
    pub(super) session: Option<Box<Session>>,
}

#[derive(Debug)]
pub(super) enum State {
    Connecting {
        /// The guest's SYN, a whole IP packet.
        syn: Vec<u8>,
    },
    Open {
        endpoint: Box<Endpoint>,
        /// The host's peer has ended its direction.
        host_finished: bool,
        /// `TcpShutdown` was sent.
        host_shut: bool,
        /// The host's socket is gone: only a RST is left to send.
        aborted: bool,
        /// The guest has reset: `Close` follows the last `TcpTransfer`.
        ending: bool,
    },
}

impl State {
    pub(super) fn open(endpoint: Box<Endpoint>) -> State {
        State::Open {
            endpoint,
            host_finished: false,
            host_shut: false,
            aborted: false,
            ending: false,
        }
    }
}

impl Flow {
    pub(super) fn new(now: Duration, guest: SocketAddr, peer: SocketAddr, state: State) -> Flow {
        Flow {
            guest,
            peer,
            state,
            sending: false,
            fresh: false,
            transfer: false,
            heard: now,
            probed: Duration::ZERO,
            since: now,
            session: None,
        }
    }

    pub(in crate::stack) fn info(&self) -> FlowInfo {
        let opening = match &self.state {
            State::Connecting { .. } => true,
            State::Open { endpoint, .. } => endpoint.status().opening,
        };
        let state = if opening { "connecting" } else { "open" };
        FlowInfo { protocol: "tcp", state, guest: Some(self.guest), peer: Some(self.peer) }
    }

    pub(super) fn aborted(&self) -> bool {
        matches!(self.state, State::Open { aborted: true, .. })
    }

    /// When the guest is given up unless it is heard.
    pub(super) fn dead_at(&self) -> Duration {
        let State::Open { endpoint, host_finished, host_shut, .. } = &self.state else {
            return self.since + CONNECT_MAX;
        };
        let status = endpoint.status();
        if status.closed {
            // The guest is done; what it sent waits for the host's peer, whose
            // patience is the host kernel's affair.
            self.heard.max(self.since) + PROBE_IDLE
        } else if status.opening {
            self.since + HANDSHAKE_MAX
        } else if endpoint.is_outstanding() {
            self.heard.max(self.since) + SILENCE_MAX
        } else if *host_finished || *host_shut {
            self.heard.max(self.since) + PROBE_HALF_CLOSED + SILENCE_MAX
        } else {
            self.heard.max(self.since) + PROBE_IDLE + SILENCE_MAX
        }
    }

    /// When a silent guest is asked whether it lives.
    pub(super) fn probe_at(&self) -> Duration {
        let State::Open { endpoint, host_finished, host_shut, .. } = &self.state else {
            return Duration::MAX;
        };
        let status = endpoint.status();
        if status.opening || status.closed || endpoint.is_outstanding() {
            return Duration::MAX;
        }
        let quiet = self.heard.max(self.since);
        if self.probed > quiet {
            self.probed + PROBE_HALF_CLOSED
        } else if *host_finished || *host_shut {
            quiet + PROBE_HALF_CLOSED
        } else {
            quiet + PROBE_IDLE
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        let dead = self.dead_at().min(self.probe_at());
        match &self.state {
            State::Open { endpoint, .. } => endpoint.deadline().map_or(dead, |at| at.min(dead)),
            State::Connecting { .. } => dead,
        }
    }
}

/// The headers of a SYN, which has been parsed. What it carries comes again: we do not
/// acknowledge it. Thousands of connections may wait for the host.
pub(super) fn without_data(packet: &Packet<'_>) -> Vec<u8> {
    let data = Segment::parse(packet.payload).map_or(0, |segment| segment.data.len());
    let len = packet.bytes.len() - data;
    let mut bytes = packet.bytes[..len].to_vec();
    // IPv6 does not count its fixed header.
    let (at, counted) = if packet.src.is_ipv4() { (2, len) } else { (4, len - 40) };
    bytes[at..at + 2].copy_from_slice(&(counted as u16).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::frame::{SYN, ip_header, proto};

    #[test]
    fn a_syn_is_kept_without_what_it_carries() {
        for ends in [["10.0.2.100", "192.0.2.1"], ["fd00::100", "2001:db8::1"]] {
            let [src, dst] = ends.map(|text| text.parse::<std::net::IpAddr>().unwrap());
            let options = [2, 4, 5, 160];
            let mut tcp = vec![0; 60_000];
            tcp[..4].copy_from_slice(&[1, 2, 0, 80]);
            tcp[12..14].copy_from_slice(&[6 << 4, SYN]);
            tcp[20..24].copy_from_slice(&options);
            let head = if src.is_ipv4() { 20 } else { 40 };
            let mut bytes = vec![0; head];
            bytes.extend_from_slice(&tcp);
            ip_header(&mut bytes, src, dst, proto::TCP, tcp.len(), None);
            let kept = without_data(&Packet::parse(&bytes).unwrap());
            assert_eq!(kept.len(), head + 24);
            let packet = Packet::parse(&kept).unwrap();
            assert_eq!((packet.src, packet.dst, packet.proto), (src, dst, proto::TCP));
            assert_eq!(packet.payload, &tcp[..24]);
            assert_eq!(without_data(&packet), kept);
        }
    }
}
