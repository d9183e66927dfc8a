//! Where a guest's address leads on the host, or that it leads nowhere.
//!
//! The gateway's address is the host's loopback when that was asked for, the DNS
//! address is the built-in name server on port 53 and nothing else. Addresses
//! that mean "this host" to the kernel (127/8, 0/8, ::, ::1, IPv4-mapped and
//! IPv4-compatible forms) are refused always: the gateway's address is the one
//! way to the host's loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;

/// What becomes of a packet to some address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes to this host address.
    To(SocketAddr),
    /// Goes to the built-in name server.
    Dns,
    /// Refused, and the guest is told.
    Deny(Unreachable),
    /// Dropped without a word: broadcast and multicast are never answered (RFC
    /// 1122 section 3.2.2).
    Ignore,
}

/// Why something cannot be reached, as an ICMP error says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// ENETUNREACH: ICMP 3/0, ICMPv6 1/0.
    Net,
    /// EHOSTUNREACH: ICMP 3/1, ICMPv6 1/3.
    Host,
    /// ECONNREFUSED on a UDP socket: ICMP 3/3, ICMPv6 1/4.
    Port,
    /// Forbidden by the host or the policy: ICMP 3/13, ICMPv6 1/1.
    Prohibited,
    /// EMSGSIZE: longer than what the path takes, in bytes: ICMP 3/4, ICMPv6 2/0.
    TooBig {
        /// What the path takes.
        mtu: u32,
    },
    /// Its time to live ended: ICMP 11/0, ICMPv6 3/0.
    Expired {
        /// Where.
        at: IpAddr,
    },
}

/// Decides on a packet of the guest to `dst`.
pub fn decide(config: &Config, dst: SocketAddr) -> Verdict {
    match dst.ip() {
        IpAddr::V4(ip) => {
            if ip.is_multicast() || ip.is_broadcast() || ip == config.v4.broadcast() {
                return Verdict::Ignore;
            }
            if names_this_host_v4(ip) || dst.port() == 0 {
                return Verdict::Deny(Unreachable::Net);
            }
            alias(config, dst, ip == config.v4.gateway, ip == config.v4.dns, config.v4.contains(ip))
        }
        IpAddr::V6(ip) => {
            if ip.is_multicast() {
                return Verdict::Ignore;
            }
            if names_this_host_v6(ip) || !config.enable_ipv6 || dst.port() == 0 {
                return Verdict::Deny(Unreachable::Net);
            }
            let gateway = ip == config.v6.gateway;
            // A link-local address means the link: only we are on it.
            let inside = config.v6.contains(ip) || ip.is_unicast_link_local();
            alias(config, dst, gateway, ip == config.v6.dns, inside)
        }
    }
}

fn alias(config: &Config, dst: SocketAddr, gateway: bool, dns: bool, inside: bool) -> Verdict {
    if dns && dst.port() == 53 && !config.disable_dns {
        Verdict::Dns
    } else if dns || (gateway && config.disable_host_loopback) {
        Verdict::Deny(Unreachable::Net)
    } else if gateway {
        let host: IpAddr = match dst.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Verdict::To(SocketAddr::new(host, dst.port()))
    } else if inside {
        Verdict::Deny(Unreachable::Host)
    } else {
        Verdict::To(dst)
    }
}

/// 0/8 and 127/8.
fn names_this_host_v4(ip: Ipv4Addr) -> bool {
    ip.is_loopback() || ip.octets()[0] == 0
}

/// `::/96` (with :: and ::1) and `::ffff:0:0/96`.
fn names_this_host_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    s[..5] == [0; 5] && (s[5] == 0 || s[5] == 0xffff)
}

/// How the guest sees a host address that sent it something: the gateway stands
/// in for addresses that mean something else, or nothing, inside the guest.
pub fn shown(config: &Config, peer: IpAddr, guest: IpAddr) -> IpAddr {
    let peer = peer.to_canonical();
    let gateway = config.gateway_for(guest);
    let usable = match peer {
        IpAddr::V4(ip) => {
            !names_this_host_v4(ip)
                && !ip.is_broadcast()
                && !ip.is_multicast()
                && !config.v4.contains(ip)
        }
        IpAddr::V6(ip) => {
            !names_this_host_v6(ip)
                && !ip.is_multicast()
                && !ip.is_unicast_link_local()
                && !config.v6.contains(ip)
        }
    };
    if usable && peer.is_ipv4() == guest.is_ipv4() { peer } else { gateway }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(config: &Config, dst: &str) -> Verdict {
        decide(config, dst.parse().unwrap())
    }

    fn to(dst: &str) -> Verdict {
        Verdict::To(dst.parse().unwrap())
    }

    #[test]
    fn the_host_is_reached_only_at_the_gateway_and_only_when_asked() {
        let net = Verdict::Deny(Unreachable::Net);
        let open = Config { enable_ipv6: true, ..Config::default() };
        let shut = Config { disable_host_loopback: true, ..open.clone() };
        assert_eq!(verdict(&open, "10.0.2.2:80"), to("127.0.0.1:80"));
        assert_eq!(verdict(&open, "[fd00::2]:80"), to("[::1]:80"));
        for dst in ["10.0.2.2:80", "[fd00::2]:80", "10.0.2.3:80", "[fd00::3]:80"] {
            assert_eq!(verdict(&shut, dst), net, "{dst}");
        }
        for config in [&open, &shut] {
            for dst in [
                "127.0.0.1:80",
                "127.9.9.9:80",
                "0.0.0.0:80",
                "0.1.2.3:80",
                "[::]:80",
                "[::1]:80",
                "[::ffff:127.0.0.1]:80",
                "[::ffff:10.1.1.1]:80",
                "[::127.0.0.1]:80",
            ] {
                assert_eq!(verdict(config, dst), net, "{dst}");
            }
            assert_eq!(verdict(config, "10.0.2.3:53"), Verdict::Dns);
            assert_eq!(verdict(config, "[fd00::3]:53"), Verdict::Dns);
            assert_eq!(verdict(config, "192.0.2.1:80"), to("192.0.2.1:80"));
            assert_eq!(verdict(config, "[2001:db8::1]:80"), to("[2001:db8::1]:80"));
            assert_eq!(verdict(config, "10.0.2.7:80"), Verdict::Deny(Unreachable::Host));
            assert_eq!(verdict(config, "10.0.2.255:80"), Verdict::Ignore);
            assert_eq!(verdict(config, "255.255.255.255:67"), Verdict::Ignore);
            assert_eq!(verdict(config, "[ff02::1]:80"), Verdict::Ignore);
        }
        let no_dns = Config { disable_dns: true, ..shut };
        assert_eq!(verdict(&no_dns, "10.0.2.3:53"), net);
    }

    #[test]
    fn clients_keep_their_address_unless_it_would_mislead() {
        let config = Config::default();
        let show = |peer: &str, guest: &str| {
            shown(&config, peer.parse().unwrap(), guest.parse().unwrap()).to_string()
        };
        assert_eq!(show("192.0.2.9", "10.0.2.100"), "192.0.2.9");
        assert_eq!(show("::ffff:192.0.2.9", "10.0.2.100"), "192.0.2.9");
        assert_eq!(show("127.0.0.1", "10.0.2.100"), "10.0.2.2");
        assert_eq!(show("10.0.2.9", "10.0.2.100"), "10.0.2.2");
        assert_eq!(show("2001:db8::1", "10.0.2.100"), "10.0.2.2");
        assert_eq!(show("2001:db8::1", "fd00::100"), "2001:db8::1");
        assert_eq!(show("::1", "fd00::100"), "fd00::2");
    }
}
