//! Ports: `--publish` and `--expose`. Pure but for [`choose`].

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use anyhow::Context as _;

use crate::image::config;
use crate::spec::{Protocol, Publish};

/// Ports of one `--publish`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published(pub(super) Vec<Publish>);

/// Ports of one `--expose`.
#[derive(Debug, Clone)]
pub(super) struct Exposed(pub(super) Vec<(u16, Protocol)>);

pub(super) fn exposed(text: &str) -> Result<Exposed, String> {
    config::ports(text).map(Exposed).ok_or_else(|| {
        format!("'{text}' names no ports: use PORT, PORT-PORT, or either with /tcp or /udp")
    })
}

/// Reads `-p [[IP:][HOST]:]CONTAINER[/tcp|udp]`; an IPv6 address stands in brackets, and
/// HOST and CONTAINER may both be ranges. Without HOST the port is 0: to be chosen.
pub(super) fn publish(text: &str) -> Result<Published, String> {
    let form = "use [IP:]HOST:CONTAINER[/tcp|udp], as in 127.0.0.1:8080:80 or 8080-8081:80-81, or \
                CONTAINER alone for any port of the host";
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => {
            return Err(format!("'{other}' in '{text}' is no protocol: {form}"));
        }
    };
    let (host, container) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (host_ip, host) = match host.rsplit_once(':') {
        None => (None, host),
        Some((ip, host)) => (
            Some(address(ip).ok_or(format!(
                "'{ip}' in '{text}' is no IP address (IPv6 goes in brackets): {form}"
            ))?),
            host,
        ),
    };
    let port = |port: &str| match port.parse::<u16>() {
        // A leading plus is accepted by the standard library.
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(format!("'{port}' in '{text}' is no port (1 to 65535): {form}")),
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("the range '{text}' ends before it begins: {form}"));
        }
        Ok(first..=last)
    };
    let container = range(container)?;
    let host: Vec<u16> =
        if host.is_empty() { vec![0; container.len()] } else { range(host)?.collect() };
    if host.len() != container.len() {
        return Err(format!(
            "'{text}' has {} ports of the host for {} of the container: {form}",
            host.len(),
            container.len()
        ));
    }
    let pairs = host.into_iter().zip(container);
    let publish =
        |(host_port, container_port)| Publish { host_ip, host_port, container_port, protocol };
    Ok(Published(pairs.map(publish).collect()))
}

/// An IPv4 address, or an IPv6 address in brackets.
fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

/// Free ports of the host, for those published without one.
pub(super) fn choose(publish: &mut [Publish]) -> anyhow::Result<()> {
    // All are held until the last is known, so that none is chosen twice.
    let mut held = Vec::new();
    for publish in publish.iter_mut().filter(|publish| publish.host_port == 0) {
        let any = (publish.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0);
        let what = || format!("cannot find a free port of {}", any.0);
        publish.host_port = match publish.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(any).with_context(what)?;
                let port = socket.local_addr()?.port();
                held.push((Some(socket), None));
                port
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(any).with_context(what)?;
                let port = socket.local_addr()?.port();
                held.push((None, Some(socket)));
                port
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn published_ports() {
        let want = |host_ip: Option<&str>, ports: &[(u16, u16)], protocol| {
            let host_ip = host_ip.map(|ip| ip.parse().unwrap());
            let one = |&(host_port, container_port): &(u16, u16)| Publish {
                host_ip,
                host_port,
                container_port,
                protocol,
            };
            Ok(Published(ports.iter().map(one).collect()))
        };
        assert_eq!(publish("8080:80"), want(None, &[(8080, 80)], Protocol::Tcp));
        assert_eq!(publish("8080:80/tcp"), want(None, &[(8080, 80)], Protocol::Tcp));
        assert_eq!(publish("53:5353/udp"), want(None, &[(53, 5353)], Protocol::Udp));
        assert_eq!(publish("127.0.0.1:1:2"), want(Some("127.0.0.1"), &[(1, 2)], Protocol::Tcp));
        assert_eq!(publish("[::1]:1:2/udp"), want(Some("::1"), &[(1, 2)], Protocol::Udp));
        // The host's is to be chosen.
        for text in ["80", ":80", "80/tcp"] {
            assert_eq!(publish(text), want(None, &[(0, 80)], Protocol::Tcp), "{text}");
        }
        assert_eq!(publish("[::1]::80"), want(Some("::1"), &[(0, 80)], Protocol::Tcp));
        assert_eq!(
            publish("127.0.0.1::53/udp"),
            want(Some("127.0.0.1"), &[(0, 53)], Protocol::Udp)
        );
        let two = [(8080, 80), (8081, 81)];
        assert_eq!(publish("8080-8081:80-81"), want(None, &two, Protocol::Tcp));
        assert_eq!(
            publish("127.0.0.1:8080-8081:80-81"),
            want(Some("127.0.0.1"), &two, Protocol::Tcp)
        );
        assert_eq!(publish("80-81/udp"), want(None, &[(0, 80), (0, 81)], Protocol::Udp));
        for text in [
            "",
            ":",
            "80:",
            "0:80",
            "80:0",
            "65536:80",
            "+80:80",
            "::1:80:80",
            "[::1:80:80",
            "[::1]:80",
            "[1.2.3.4]:80:80",
            "1.2.3:80:80",
            ":80:80",
            "80:80/sctp",
            "80:80/",
            "80:80/tcp/tcp",
            "8080-8082:80-81",
            "8080-8081:80",
            "81-80",
            "80-",
            "-80",
            "1-2-3",
        ] {
            assert!(publish(text).is_err(), "{text}");
        }
    }

    #[test]
    fn free_ports_differ_and_those_that_are_given_stay() {
        let Published(mut ports) = publish("127.0.0.1::80-90").unwrap();
        ports.extend(publish("8080:91").unwrap().0);
        choose(&mut ports).unwrap();
        let given = ports.pop().map(|port| port.host_port);
        let chosen: std::collections::BTreeSet<u16> = ports.iter().map(|p| p.host_port).collect();
        assert!(chosen.len() == 11 && !chosen.contains(&0) && given == Some(8080), "{chosen:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[0-9:/.\\[\\]tcpu-]*") {
            if let Ok(Published(ports)) = publish(&text) {
                prop_assert!(!ports.is_empty() && ports.iter().all(|port| port.container_port > 0));
            }
        }

        #[test]
        fn a_written_port_is_read_back(host in 1u16.., guest in 1u16.., ip: u128, udp: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let suffix = if udp { "udp" } else { "tcp" };
            let ip = std::net::Ipv6Addr::from(ip);
            let read = publish(&format!("[{ip}]:{host}:{guest}/{suffix}"));
            let host_ip = Some(IpAddr::V6(ip));
            prop_assert_eq!(read, Ok(Published(vec![Publish {
                host_ip, host_port: host, container_port: guest, protocol,
            }])));
        }
    }
}
