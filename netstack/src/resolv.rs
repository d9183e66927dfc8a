//! The host's name servers (resolv.conf(5)), and noticing when they change.
//!
//! # Theory of operation
//!
//! The file is looked at again when the guest sends something, at most once in
//! [`INTERVAL`]: an idle process is never woken for it. Its identity
//! (device, inode, size, time of change) tells whether it must be read, so a
//! symbolic link that points elsewhere and a file that was replaced are noticed
//! like one that was edited. A file that is gone for a moment leaves the servers
//! as they are.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Time between two looks at the file at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// Name servers taken at most.
const SERVERS_MAX: usize = 8;
const PORT: u16 = 53;

/// Reads resolv.conf and remembers what it looked like.
#[derive(Debug)]
pub struct Resolv {
    path: PathBuf,
    seen: Option<Identity>,
    next_look: Duration,
}

type Identity = (u64, u64, u64, i64, i64);

impl Resolv {
    /// For the file at `path`, not read yet.
    pub fn new(path: PathBuf) -> Resolv {
        Resolv { path, seen: None, next_look: Duration::ZERO }
    }

    /// The name servers, when the file has changed since the last look and the
    /// last look was long enough ago.
    pub fn refresh(&mut self, now: Duration) -> Option<Vec<SocketAddr>> {
        if now < self.next_look {
            return None;
        }
        self.next_look = now + INTERVAL;
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

/// The name servers of a resolv.conf, in its order, each once. IPv6 addresses may
/// have a numeric zone (`fe80::1%2`); lines that cannot be read are skipped, as
/// resolvers do. Without any, the resolver's own default: the host itself.
pub fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(server) else { continue };
        if !servers.contains(&server) && servers.len() < SERVERS_MAX {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        servers.push(SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

fn server(word: &str) -> Option<SocketAddr> {
    if let Some((addr, zone)) = word.split_once('%') {
        let addr: Ipv6Addr = addr.parse().ok()?;
        let zone = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
        return Some(SocketAddrV6::new(addr, PORT, 0, zone).into());
    }
    let addr: IpAddr = word.parse().ok()?;
    // "This host" is written as either.
    let addr = if addr.is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { addr };
    Some(SocketAddr::new(addr, PORT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Vec<String> {
        parse(text).iter().map(SocketAddr::to_string).collect()
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
    fn a_replaced_file_is_noticed_and_a_missing_one_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("resolv-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("resolv.conf");
        let write = |text: &str| {
            std::fs::write(dir.join("new"), text).unwrap();
            std::fs::rename(dir.join("new"), &path).unwrap();
        };
        let mut resolv = Resolv::new(path.clone());
        let at = Duration::from_secs;
        assert_eq!(resolv.refresh(at(0)), None, "no file");
        write("nameserver 192.0.2.1");
        assert_eq!(resolv.refresh(at(0)), None, "just looked");
        assert_eq!(resolv.refresh(at(1)), Some(vec!["192.0.2.1:53".parse().unwrap()]));
        assert_eq!(resolv.refresh(at(2)), None, "unchanged");
        write("nameserver 192.0.2.2");
        assert_eq!(resolv.refresh(at(3)), Some(vec!["192.0.2.2:53".parse().unwrap()]));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(resolv.refresh(at(4)), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    proptest! {
        #[test]
        fn any_text_gives_between_one_and_the_limit(text in "[nameserv0-9.:%\\n\\t ]{0,200}") {
            let servers = parse(&text);
            prop_assert!((1..=SERVERS_MAX).contains(&servers.len()));
        }
    }
}
