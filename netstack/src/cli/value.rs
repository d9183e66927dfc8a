//! Values of options.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;

use crate::config::{Config, MTU_MAX, Proto, Publish, V4Network};
use crate::pcap;

/// Smallest MTU taken: what IPv4 asks of every link's end (RFC 791).
pub(super) const MTU_MIN_V4: u16 = 576;

/// A `--cidr` value.
pub(super) fn cidr(text: &str) -> Result<V4Network, String> {
    let expected = "expected ADDRESS/PREFIX, such as 10.0.2.0/24";
    let (addr, prefix) = text.split_once('/').ok_or(expected)?;
    let addr: Ipv4Addr = addr.parse().map_err(|_| expected)?;
    let prefix: u8 = prefix.parse().map_err(|_| expected)?;
    if !(1..=25).contains(&prefix) {
        return Err("the prefix must be from 1 to 25".into());
    }
    let network = V4Network::new(addr, prefix).ok_or_else(|| {
        let network = Ipv4Addr::from(u32::from(addr) & !(u32::MAX >> prefix));
        format!("{addr} has bits set beyond the prefix: did you mean {network}/{prefix}?")
    })?;
    if network.network.is_loopback() || network.network.is_multicast() {
        return Err(format!(
            "{network_addr} cannot be a guest's network",
            network_addr = network.network
        ));
    }
    Ok(network)
}

/// An `--mtu` value.
pub(super) fn mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse::<u32>().map_err(|_| "expected a number of bytes")?;
    u16::try_from(mtu)
        .ok()
        .filter(|mtu| (MTU_MIN_V4..=MTU_MAX).contains(mtu))
        .ok_or_else(|| format!("the MTU must be from {MTU_MIN_V4} to {MTU_MAX}"))
}

/// A `--pcap-size` value, in bytes.
pub(super) fn mebibytes(text: &str) -> Result<u64, String> {
    let mib = text.parse::<u32>().ok().filter(|mib| *mib > 0);
    let mib = mib.ok_or("expected a number of MiB, 1 or above")?;
    Ok(u64::from(mib) << 20)
}

/// A `--pcap-files` value.
pub(super) fn pcap_files(text: &str) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| (2..=pcap::FILES_MAX).contains(count));
    count.ok_or_else(|| format!("expected a number of files from 2 to {}", pcap::FILES_MAX))
}

/// A descriptor's number.
pub(super) fn fd(text: &str) -> Result<RawFd, String> {
    text.parse::<RawFd>()
        .ok()
        .filter(|fd| *fd > 2)
        .ok_or_else(|| "expected the number of an inherited descriptor, 3 or above".into())
}

/// A `--macaddress` value.
pub(super) fn mac(text: &str) -> Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or("expected six bytes in hexadecimal, such as 02:00:00:00:00:01")?;
    }
    if parts.next().is_some() {
        return Err("expected six bytes, not more".into());
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err("a group address, or zero, cannot be an interface's".into());
    }
    Ok(mac)
}

/// An interface's name.
pub(super) fn interface(text: &str) -> Result<String, String> {
    let fits = (1..libc::IFNAMSIZ).contains(&text.len());
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if !fits || text == "." || text == ".." || text.contains(bad) {
        return Err(
            "not a name for an interface: up to 15 bytes, none of '/', ':', '%' or space".into()
        );
    }
    Ok(text.into())
}

/// Ports of a range at most: each takes a descriptor.
const PORTS_MAX: u16 = 1024;

/// A `--publish` value, before the guest's address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublishArg {
    host_ip: Option<IpAddr>,
    /// First port of the host, and of the guest.
    host_port: u16,
    guest_port: u16,
    /// How many there are.
    count: u16,
    proto: Proto,
}

/// `[IP:]HOST:CONTAINER[/tcp|udp]`, an IPv6 address in brackets; the ports may be ranges
/// of one length.
pub(super) fn publish(text: &str) -> Result<PublishArg, String> {
    let form = "expected [IP:]HOSTPORT[-LAST]:PORT[-LAST][/tcp|udp]";
    let (ports, proto) = match text.rsplit_once('/') {
        None => (text, Proto::Tcp),
        Some((ports, "tcp")) => (ports, Proto::Tcp),
        Some((ports, "udp")) => (ports, Proto::Udp),
        Some((_, other)) => return Err(format!("unknown protocol {other:?}; {form}")),
    };
    let (rest, guest_port) = ports.rsplit_once(':').ok_or(form)?;
    let (host_ip, host_port) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((ip, port)) => {
            let bare = match ip.strip_prefix('[') {
                Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':')).ok_or(form)?,
                None if ip.contains(':') => {
                    return Err("write an IPv6 address in brackets".into());
                }
                None => ip,
            };
            let ip = bare.parse().map_err(|_| format!("{bare:?} is no IP address; {form}"))?;
            (Some(ip), port)
        }
    };
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is no port number from 1 to 65535; {form}")),
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        match last.checked_sub(first) {
            Some(more) if more < PORTS_MAX => Ok((first, more + 1)),
            Some(_) => Err(format!("{text:?} has more than {PORTS_MAX} ports")),
            None => Err(format!("{text:?} ends before it begins")),
        }
    };
    let ((host_port, count), (guest_port, guests)) = (range(host_port)?, range(guest_port)?);
    if count != guests {
        return Err(format!("{host_port}: {count} ports of the host for {guests} of the guest"));
    }
    Ok(PublishArg { host_ip, host_port, guest_port, count, proto })
}

impl PublishArg {
    /// With the guest's address. Without an address of the host, all of them are
    /// listened on: of both families when IPv6 is on. An address of either family
    /// leads to the guest's address of the same, or to IPv4 when IPv6 is off.
    pub(super) fn resolve(self, config: &Config) -> impl Iterator<Item = Publish> + use<> {
        let all: IpAddr = match config.enable_ipv6 {
            true => std::net::Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        let host = self.host_ip.unwrap_or(all);
        let guest: IpAddr = match host {
            IpAddr::V6(ip) if config.enable_ipv6 && !ip.is_unspecified() => config.v6.guest.into(),
            _ => config.v4.guest.into(),
        };
        (0..self.count).map(move |n| Publish {
            proto: self.proto,
            host: SocketAddr::new(host, self.host_port + n),
            guest: SocketAddr::new(guest, self.guest_port + n),
        })
    }
}
