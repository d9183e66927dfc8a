//! The files by which a container resolves names.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::{DNS_V4, DNS_V6, GUEST_V4, hostname};
use crate::probe::HostCaps;
use crate::spec::{Network, Spec};

/// The files of /etc that tell a container who and where it is. A volume over
/// one of them has precedence.
pub(super) fn texts(spec: &Spec, host: &HostCaps, name: &str) -> Vec<(&'static str, String)> {
    let hostname = hostname(spec, name);
    let mut all =
        vec![("hostname", format!("{hostname}\n")), ("hosts", hosts(spec, host, hostname))];
    all.extend(resolv_conf(spec, host).map(|content| ("resolv.conf", content)));
    all.retain(|(name, _)| {
        let target = Path::new("/etc").join(name);
        !spec.volumes.iter().any(|volume| volume.target == target)
    });
    all
}

/// `/etc/hosts`; `hostname` is the container's.
pub(super) fn hosts(spec: &Spec, host: &HostCaps, hostname: &str) -> String {
    let mut hosts = match spec.network {
        Network::Host => host.hosts.clone(),
        _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
    };
    if !hosts.is_empty() && !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    let own = match spec.network {
        Network::Netstack => IpAddr::from(GUEST_V4),
        _ => IpAddr::from(Ipv4Addr::new(127, 0, 1, 1)),
    };
    let given = spec.names.hosts.iter().map(|(name, ip)| (name.as_str(), *ip));
    for (name, ip) in given.chain([(hostname, own)]) {
        writeln!(hosts, "{ip}\t{name}").expect("a String takes all that is written to it");
    }
    hosts
}

/// `/etc/resolv.conf`: what is asked for, and of the host's what is not; `None` where
/// nobody can be asked.
pub(super) fn resolv_conf(spec: &Spec, host: &HostCaps) -> Option<String> {
    let names = &spec.names;
    // The last of them counts: resolv.conf(5).
    let said = |words: &[&str]| -> Vec<&str> {
        let is = |line: &&str| line.split_whitespace().next().is_some_and(|w| words.contains(&w));
        let line = host.resolv_conf.lines().rfind(is).unwrap_or_default();
        line.split_whitespace().skip(1).collect()
    };
    let usual: Vec<String> = match spec.network {
        Network::None => return None,
        Network::Host if !names.differ() => return Some(host.resolv_conf.clone()),
        Network::Host => {
            let lines = host.resolv_conf.lines().map(str::split_whitespace);
            let server = |mut words: std::str::SplitWhitespace<'_>| {
                (words.next() == Some("nameserver")).then(|| words.next())?.map(str::to_owned)
            };
            lines.filter_map(server).collect()
        }
        Network::Netstack => {
            let second = host.ipv6.then(|| DNS_V6.to_string());
            [DNS_V4.to_string()].into_iter().chain(second).collect()
        }
    };
    let given = |words: &Option<Vec<String>>| words.as_ref().map(|words| words.join(" "));
    let mut content = String::new();
    let search = given(&names.search).unwrap_or_else(|| said(&["search", "domain"]).join(" "));
    // Those of the host are for its own name servers.
    let options = given(&names.options).unwrap_or_else(|| match spec.network {
        Network::Host => said(&["options"]).join(" "),
        _ => String::new(),
    });
    let servers = if names.servers.is_empty() {
        usual
    } else {
        names.servers.iter().map(IpAddr::to_string).collect()
    };
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            content.extend([key, " ", value, "\n"]);
        }
    };
    line("search", &search);
    servers.iter().for_each(|server| line("nameserver", server));
    line("options", &options);
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, spec};
    use super::*;
    use crate::spec::Names;

    fn resolv(network: Network, names: Names) -> Option<String> {
        let text = "domain old\nsearch a.example b.example\nnameserver 192.0.2.1\n\
                    nameserver 192.0.2.2 # two\noptions rotate\n";
        let host = HostCaps { resolv_conf: text.to_owned(), ..host(false) };
        resolv_conf(&Spec { network, names, ..spec() }, &host)
    }

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_usual() {
        let none = Names::default;
        let ours = "search a.example b.example\nnameserver 10.0.2.3\nnameserver fd00::3\n";
        assert_eq!(resolv(Network::Netstack, none()).unwrap(), ours);
        let server = Names { servers: vec!["192.0.2.9".parse().unwrap()], ..none() };
        assert_eq!(
            resolv(Network::Netstack, server.clone()).unwrap(),
            "search a.example b.example\nnameserver 192.0.2.9\n"
        );
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let rest = Names { search: words(&[]), options: words(&["ndots:2", "rotate"]), ..none() };
        assert_eq!(
            resolv(Network::Netstack, rest).unwrap(),
            "nameserver 10.0.2.3\nnameserver fd00::3\noptions ndots:2 rotate\n"
        );
        // On the host's network the rest is the host's.
        assert!(resolv(Network::Host, none()).unwrap().contains("# two"));
        let search = Names { search: words(&["c.example"]), ..none() };
        assert_eq!(
            resolv(Network::Host, search).unwrap(),
            "search c.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n"
        );
        assert_eq!(resolv(Network::None, server), None);
    }

    #[test]
    fn added_hosts_come_before_the_containers_own() {
        let named = Names {
            hosts: vec![
                ("db".to_owned(), "192.0.2.7".parse().unwrap()),
                ("db6".to_owned(), "2001:db8::7".parse().unwrap()),
            ],
            ..Names::default()
        };
        let lines = |network| {
            let spec = Spec { network, names: named.clone(), ..spec() };
            let text = hosts(&spec, &host(false), "boat");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let added = ["192.0.2.7\tdb", "2001:db8::7\tdb6"];
        assert_eq!(lines(Network::Netstack)[2..], [added[0], added[1], "10.0.2.100\tboat"]);
        assert_eq!(
            lines(Network::Host),
            ["127.0.0.1 localhost", added[0], added[1], "127.0.1.1\tboat"]
        );
    }
}
