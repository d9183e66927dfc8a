//! What a stack says about itself: counters, and the list of its flows.

use std::net::{IpAddr, SocketAddr};

use super::{Counters, Flow, Netstack};

/// One flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowInfo {
    /// "tcp", "udp", "icmp" or "dns".
    pub protocol: &'static str,
    /// "connecting" or "open".
    pub state: &'static str,
    /// The guest's end; an echo request's identifier is its port. None for a socket
    /// of the built-in name server.
    pub guest: Option<SocketAddr>,
    /// The other end as the guest knows it; None when there may be several (UDP, ICMP).
    pub peer: Option<SocketAddr>,
}

/// Counters of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Flows there are, by protocol.
    pub tcp: u64,
    /// The same.
    pub udp: u64,
    /// The same.
    pub icmp: u64,
    /// Sockets to name servers.
    pub dns: u64,
    /// What was dropped, refused or repeated.
    pub counters: Counters,
    /// All flows, when that was asked for.
    pub list: Vec<FlowInfo>,
}

impl Netstack {
    /// What there is now; with a list of all flows when `list`.
    #[must_use]
    pub fn report(&self, list: bool) -> Report {
        let mut report = Report { counters: self.counters(), ..Report::default() };
        for flow in self.flows.iter() {
            let info = match flow {
                Flow::Tcp(flow) => {
                    report.tcp += 1;
                    flow.info()
                }
                Flow::Udp(flow) => {
                    report.udp += 1;
                    flow.info()
                }
                Flow::Echo(flow) => {
                    report.icmp += 1;
                    flow.info()
                }
                Flow::Dns(flow) => {
                    report.dns += 1;
                    flow.info()
                }
            };
            if list {
                report.list.push(info);
            }
        }
        report
    }
}

impl FlowInfo {
    /// One whose other end may be anybody.
    pub(super) fn open(protocol: &'static str, guest: (IpAddr, u16)) -> FlowInfo {
        FlowInfo { protocol, state: "open", guest: Some(guest.into()), peer: None }
    }
}
