//! What a run of the network needs to know: plain, validated data. Knows no
//! command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Largest MTU a TAP device takes (65535 less the Ethernet header).
pub const MTU_MAX: u16 = 65521;
/// Smallest MTU: what IPv6 asks of a link (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;

/// Everything the stack and its edges are told at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Link MTU in bytes: the largest IP packet, without Ethernet header.
    pub mtu: u16,
    /// The guest's IPv4 network.
    pub v4: V4Network,
    /// The guest's IPv6 network, always /64. Present also when IPv6 is off.
    pub v6: V6Network,
    /// Whether IPv6 packets are carried and router solicitations answered.
    pub enable_ipv6: bool,
    /// The guest must not reach the host's loopback at the gateway address.
    pub disable_host_loopback: bool,
    /// The built-in name server at the DNS address does not answer.
    pub disable_dns: bool,
    /// Source address of outgoing IPv4 connections, as the host routes otherwise.
    pub outbound_v4: Option<Ipv4Addr>,
    /// Source address of outgoing IPv6 connections.
    pub outbound_v6: Option<Ipv6Addr>,
    /// Name servers behind the DNS address, in order of preference, with port.
    pub name_servers: Vec<SocketAddr>,
    /// Domains in which the guest shall look for short names, in order, without a dot
    /// at the end.
    pub search: Vec<String>,
    /// Ports published at the start.
    pub publishes: Vec<Publish>,
    /// Ethernet address of the gateway, as the guest sees it.
    pub gateway_mac: [u8; 6],
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mtu: 1500,
            v4: V4Network::default(),
            v6: V6Network::default(),
            enable_ipv6: false,
            disable_host_loopback: false,
            disable_dns: false,
            outbound_v4: None,
            outbound_v6: None,
            name_servers: Vec::new(),
            search: Vec::new(),
            publishes: Vec::new(),
            // Locally administered, and different from any address the kernel
            // picks for the TAP.
            gateway_mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
        }
    }
}

/// The guest's IPv4 network. Gateway, DNS and guest lie inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V4Network {
    /// Network address (host bits zero).
    pub network: Ipv4Addr,
    /// Prefix length, 1 to 25.
    pub prefix: u8,
    /// Gateway, and alias of the host: network + 2.
    pub gateway: Ipv4Addr,
    /// Built-in name server: network + 3.
    pub dns: Ipv4Addr,
    /// The guest's own address: network + 100.
    pub guest: Ipv4Addr,
    /// First address handed out by DHCP: network + 15.
    pub dhcp_first: Ipv4Addr,
    /// Last address handed out by DHCP: network + 30.
    pub dhcp_last: Ipv4Addr,
}

impl V4Network {
    /// Lays the well-known addresses out in `network`/`prefix`. None when the
    /// prefix is not 1 to 25 or `network` has host bits set.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<V4Network> {
        if !(1..=25).contains(&prefix) {
            return None;
        }
        let base = u32::from(network);
        if base & (u32::MAX >> prefix) != 0 {
            return None;
        }
        let at = |n: u32| Ipv4Addr::from(base + n);
        Some(V4Network {
            network,
            prefix,
            gateway: at(2),
            dns: at(3),
            guest: at(100),
            dhcp_first: at(15),
            dhcp_last: at(30),
        })
    }

    /// Whether `addr` lies in the network.
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        let mask = !(u32::MAX >> self.prefix);
        u32::from(addr) & mask == u32::from(self.network)
    }

    /// The network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | (u32::MAX >> self.prefix))
    }
}

impl Default for V4Network {
    fn default() -> Self {
        V4Network::new(Ipv4Addr::new(10, 0, 2, 0), 24).expect("10.0.2.0/24 is a network address")
    }
}

/// The guest's IPv6 network: a /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V6Network {
    /// Network address (lower 64 bits zero).
    pub network: Ipv6Addr,
    /// Gateway, and alias of the host: network + 2.
    pub gateway: Ipv6Addr,
    /// Built-in name server: network + 3.
    pub dns: Ipv6Addr,
    /// The guest's own address: network + 0x100 (written fd00::100).
    pub guest: Ipv6Addr,
    /// The gateway's link-local address, the source of router advertisements.
    pub gateway_link_local: Ipv6Addr,
}

impl V6Network {
    /// Whether `addr` lies in the network.
    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.segments()[..4] == self.network.segments()[..4]
    }
}

impl Default for V6Network {
    fn default() -> Self {
        V6Network {
            network: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0),
            gateway: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
            dns: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3),
            guest: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
            gateway_link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
        }
    }
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// A host address and port behind which a port of the guest is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Publish {
    /// Transport.
    pub proto: Proto,
    /// Where the host listens. `::` listens on IPv4 as well.
    pub host: SocketAddr,
    /// Where connections arrive in the guest. The address may be of another
    /// family than the host's.
    pub guest: SocketAddr,
}

impl Config {
    /// The gateway's address in the family of `like`.
    pub fn gateway_for(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.gateway.into(),
            IpAddr::V6(_) => self.v6.gateway.into(),
        }
    }
}
