//! The host's name servers and search list (resolv.conf(5)), and noticing when they
//! change.
//!
//! # Theory of operation
//!
//! The file's identity (device, inode, size, time of change) tells whether it must be
//! read, so a symbolic link that points elsewhere and a file that was replaced are
//! noticed like one that was edited. A file that is gone for a moment leaves the
//! servers as they are. When to look is [`crate::reader`]'s to decide.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Name servers taken at most.
const SERVERS_MAX: usize = 8;
/// Names of the search list taken at most.
const SEARCH_MAX: usize = 32;
const PORT: u16 = 53;

/// What resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    /// Name servers in order of preference, each once; never none.
    pub servers: Vec<SocketAddr>,
    /// Domains in which short names are looked for, in order, without a dot at the end.
    pub search: Vec<String>,
}

/// In the form of resolv.conf, zones as numbers.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            match server {
                SocketAddr::V6(v6) if v6.scope_id() != 0 => {
                    writeln!(f, "nameserver {}%{}", v6.ip(), v6.scope_id())?;
                }
                other => writeln!(f, "nameserver {}", other.ip())?,
            }
        }
        if !self.search.is_empty() {
            writeln!(f, "search {}", self.search.join(" "))?;
        }
        Ok(())
    }
}

/// Reads resolv.conf and remembers what it looked like.
#[derive(Debug)]
pub struct Resolv {
    path: PathBuf,
    seen: Option<Identity>,
}

type Identity = (u64, u64, u64, i64, i64);

impl Resolv {
    /// For the file at `path`, not read yet.
    pub fn new(path: PathBuf) -> Resolv {
        Resolv { path, seen: None }
    }

    /// What the file says, when it has changed since the last look.
    pub fn refresh(&mut self) -> Option<Hosts> {
        let meta = std::fs::metadata(&self.path).ok()?;
        let identity = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if self.seen == Some(identity) {
            return None;
        }
        let text = std::fs::read(&self.path).ok()?;
        self.seen = Some(identity);
        Some(parse(&String::from_utf8_lossy(&text)))
    }
}

/// Reads a resolv.conf. IPv6 addresses may have a zone (`fe80::1%eth0`); lines that
/// cannot be read are skipped, as resolvers do; the last `search` or `domain` line
/// counts. Without any server, the resolver's own default: the host itself.
pub fn parse(text: &str) -> Hosts {
    let mut hosts = Hosts::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some(server) = words.next().and_then(server) else { continue };
                if !hosts.servers.contains(&server) && hosts.servers.len() < SERVERS_MAX {
                    hosts.servers.push(server);
                }
            }
            Some("search") => {
                hosts.search = words.filter_map(domain).take(SEARCH_MAX).collect();
            }
            Some("domain") => hosts.search = words.next().and_then(domain).into_iter().collect(),
            _ => {}
        }
    }
    if hosts.servers.is_empty() {
        hosts.servers.push(SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), PORT));
    }
    hosts
}

/// A domain that can be written in a DNS message (RFC 1035 section 2.3.4); None for
/// the root, which is where names are looked for anyway.
fn domain(word: &str) -> Option<String> {
    let name = word.strip_suffix('.').unwrap_or(word);
    let fits = |label: &str| (1..=63).contains(&label.len()) && label.is_ascii();
    (name.len() <= 253 && name.split('.').all(fits)).then(|| name.to_owned())
}

fn server(word: &str) -> Option<SocketAddr> {
    if let Some((addr, zone)) = word.split_once('%') {
        let addr: Ipv6Addr = addr.parse().ok()?;
        let zone = zone.parse().ok().or_else(|| interface_index(zone))?;
        return Some(SocketAddrV6::new(addr, PORT, 0, zone).into());
    }
    let addr: IpAddr = word.parse().ok()?;
    // "This host" is written as either.
    let addr = if addr.is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { addr };
    Some(SocketAddr::new(addr, PORT))
}

/// By a file: who reads resolv.conf may have no sockets.
fn interface_index(name: &str) -> Option<u32> {
    let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let file = plain.then(|| format!("/sys/class/net/{name}/ifindex"))?;
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Vec<String> {
        parse(text).servers.iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn servers_are_read_in_order() {
        let text = "# a comment\nsearch example.org\n nameserver 192.0.2.1 # first\n\
                    nameserver\t2001:db8::1\noptions ndots:2\nnameserver 192.0.2.1\n\
                    nameserver fe80::1%3\nnameserver nonsense\nnameserver\n;nameserver 192.0.2.9\n\
                    nameserver 0.0.0.0";
        assert_eq!(
            shown(text),
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53", "127.0.0.1:53"]
        );
    }

    #[test]
    fn an_empty_file_means_the_host_itself() {
        assert_eq!(shown(""), ["127.0.0.1:53"]);
    }

    #[test]
    fn the_last_search_list_counts_and_what_no_message_holds_is_left_out() {
        let long = "x".repeat(64);
        let text = format!("domain a.example\nsearch b.example. {long}.c a..b . d\n");
        assert_eq!(parse(&text).search, ["b.example", "d"]);
        assert_eq!(parse("search a b\ndomain c.example d").search, ["c.example"]);
        let many = "search ".to_owned() + &"a ".repeat(100);
        assert_eq!(parse(&many).search.len(), SEARCH_MAX);
    }

    #[test]
    fn what_was_read_is_written_so_that_it_is_read_again() {
        let hosts = parse("nameserver fe80::1%lo\nnameserver 192.0.2.1\nsearch a b");
        assert_eq!(hosts.servers[0].to_string(), "[fe80::1%1]:53", "the loopback is the first");
        assert_eq!(parse(&hosts.to_string()), hosts);
    }

    #[test]
    fn a_replaced_file_is_noticed_and_a_missing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let write = |text: &str| {
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        };
        let mut resolv = Resolv::new(path.clone());
        let mut servers = || resolv.refresh().map(|hosts| hosts.servers);
        assert_eq!(servers(), None, "no file");
        write("nameserver 192.0.2.1");
        assert_eq!(servers(), Some(vec!["192.0.2.1:53".parse().unwrap()]));
        assert_eq!(servers(), None, "unchanged");
        write("nameserver 192.0.2.2");
        assert_eq!(servers(), Some(vec!["192.0.2.2:53".parse().unwrap()]));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(servers(), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_between_one_and_the_limit(text in "[nameserv0-9.:%\\n\\t ]{0,200}") {
            let servers = parse(&text).servers;
            prop_assert!((1..=SERVERS_MAX).contains(&servers.len()));
        }
    }
}
