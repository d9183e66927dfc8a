//! Options about names of hosts: `--add-host` and `--dns…`.

use std::net::IpAddr;

use anyhow::{bail, ensure};

use super::parse;
use crate::spec::{Names, Network};

#[derive(Debug, Default, clap::Args)]
pub(super) struct NameArgs {
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<String>,

    /// Ask this name server [default: the host's, through 10.0.2.3]
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,

    /// Complete names by this domain; '.' for none [default: the host's]
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,

    /// Option of resolv.conf(5)
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
}

impl NameArgs {
    /// What is asked for, in a container with this network.
    pub(super) fn into_names(self, network: Network) -> anyhow::Result<Names> {
        let mut names = Names { servers: self.dns, ..Names::default() };
        for text in &self.add_host {
            names
                .hosts
                .push(host(text).map_err(|why| anyhow::anyhow!("--add-host {text}: {why}"))?);
        }
        for domain in &self.dns_search {
            ensure!(
                domain == "." || is_domain(domain),
                "--dns-search '{domain}': it is no domain, as example.org, and not '.' either"
            );
        }
        let none = self.dns_search.iter().any(|domain| domain == ".");
        ensure!(
            !none || self.dns_search.len() == 1,
            "--dns-search '.' means none: it cannot stand beside others"
        );
        if none {
            names.search = Some(Vec::new());
        } else if !self.dns_search.is_empty() {
            names.search = Some(self.dns_search);
        }
        for option in &self.dns_option {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b":_-".contains(&b);
            ensure!(
                !option.is_empty() && option.bytes().all(plain),
                "--dns-option '{option}': it is none of resolv.conf(5), as ndots:2"
            );
        }
        if !self.dns_option.is_empty() {
            names.options = Some(self.dns_option);
        }
        if names.differ() && network == Network::None {
            bail!("--dns, --dns-search and --dns-option need a network: not --network none");
        }
        Ok(names)
    }
}

fn host(text: &str) -> Result<(String, IpAddr), String> {
    // An address of IPv6 has colons, too.
    let Some((name, ip)) = text.split_once(':') else {
        return Err("use NAME:IP, as in db:192.0.2.7".to_owned());
    };
    let name = parse::hostname(name)?;
    if ip == "host-gateway" {
        return Err("the host itself cannot be reached from a container".to_owned());
    }
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    let ip = bare.parse().map_err(|_| format!("'{ip}' is no IP address"))?;
    Ok((name, ip))
}

/// What can stand in resolv.conf; whether there is such a domain is not asked.
fn is_domain(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: NameArgs,
    }

    fn read(args: &[&str], network: Network) -> Result<Names, String> {
        let only = Only::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        only.args.into_names(network).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn names_are_read() {
        let read = |args: &[&str]| read(args, Network::Netstack).unwrap();
        assert_eq!(read(&[]), Names::default());
        let hosts = read(&["--add-host", "a:192.0.2.1", "--add-host=b.c:fd00::1"]).hosts;
        let wanted = [("a", "192.0.2.1"), ("b.c", "fd00::1")];
        let wanted = wanted.map(|(name, ip)| (name.to_owned(), ip.parse().unwrap()));
        assert_eq!(hosts, wanted);
        assert_eq!(read(&["--add-host=a:[fd00::1]"]).hosts[0].1, wanted[1].1);
        let names = read(&["--dns=192.0.2.1", "--dns", "fd00::3", "--dns-option", "ndots:2"]);
        assert_eq!(names.servers.len(), 2);
        assert_eq!((names.options, names.search), (Some(vec!["ndots:2".to_owned()]), None));
        let search = |args: &[&str]| read(args).search.unwrap();
        assert_eq!(search(&["--dns-search=a.b", "--dns-search", "c."]), ["a.b", "c."]);
        assert!(search(&["--dns-search", "."]).is_empty());
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (args, word) in [
            (&["--add-host", "a"][..], "NAME:IP"),
            (&["--add-host", "a:"], "''"),
            (&["--add-host", ":192.0.2.1"], "host name"),
            (&["--add-host", "a b:192.0.2.1"], "host name"),
            (&["--add-host", "a:192.0.2"], "'192.0.2'"),
            (&["--add-host", "a:host-gateway"], "cannot be reached"),
            (&["--dns", "example.org"], "example.org"),
            (&["--dns-search", ""], "''"),
            (&["--dns-search", "a b"], "'a b'"),
            (&["--dns-search", "a..b"], "'a..b'"),
            (&["--dns-search", ".", "--dns-search", "a"], "none"),
            (&["--dns-option", "a\nb"], "resolv.conf"),
            (&["--dns-option", ""], "''"),
        ] {
            let why = read(args, Network::Netstack).unwrap_err();
            assert!(why.contains(word), "{args:?}: {why}");
        }
        assert!(read(&["--dns", "192.0.2.1"], Network::None).unwrap_err().contains("network"));
        assert!(read(&["--add-host", "a:192.0.2.1"], Network::None).is_ok());
        assert!(read(&["--dns-search", "a"], Network::Host).is_ok());
    }
}
