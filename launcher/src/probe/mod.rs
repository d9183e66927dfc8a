//! What this host offers, looked up once, as plain data: all that the plan
//! depends on besides what the user wants.

pub mod health;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use crate::cgroup;
use crate::database;
use crate::idmap::{self, IdMap};
use crate::spawn;
use crate::stage::monitor::say;

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCaps {
    /// The ids that a container of the caller's can have.
    pub map: IdMap,
    /// Home directories of people (user ids from 1000 up) and the caller's
    /// own, with symbolic links resolved; only those that exist.
    pub homes: Vec<PathBuf>,
    /// Content of the host's /etc/resolv.conf; empty when it has none.
    pub resolv_conf: String,
    /// Content of the host's /etc/hosts; empty when it has none.
    pub hosts: String,
    /// The host's name.
    pub hostname: String,
    /// The kernel speaks IPv6.
    pub ipv6: bool,
    /// Processors that this process may use, one at least.
    pub processors: usize,
    /// Value of TERM.
    pub term: Option<String>,
    /// The overlay program, when found.
    pub overlay: Option<PathBuf>,
    /// The network program, when found.
    pub netstack: Option<PathBuf>,
    /// /dev/fuse can be opened.
    pub fuse: bool,
    /// /dev/net/tun can be opened.
    pub tun: bool,
    /// Version of the kernel's Landlock; none when it has none, or it is off.
    pub landlock: Option<u32>,
    /// Where control groups can be made, the nearest first.
    pub groups: Vec<Place>,
}

/// Where groups for containers can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The group they are made in.
    pub dir: PathBuf,
    /// Controllers that it passes on, or can be made to.
    pub controllers: Vec<String>,
    /// For that this process has to leave it, and can.
    pub leave: bool,
}

/// Looks, for containers with the ids of `map`; at what netstack takes only with `network`.
pub fn probe(map: IdMap, network: bool) -> HostCaps {
    let usable = |device: &str| fs::OpenOptions::new().read(true).write(true).open(device).is_ok();
    HostCaps {
        map,
        homes: homes(database::passwd()),
        resolv_conf: fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        hosts: fs::read_to_string("/etc/hosts").unwrap_or_default(),
        hostname: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        ipv6: Path::new("/proc/net/if_inet6").exists(),
        processors: if network {
            std::thread::available_parallelism().map_or(1, usize::from)
        } else {
            1
        },
        term: env::var("TERM").ok(),
        overlay: spawn::find("overlayfs-fuse"),
        netstack: if network { spawn::find("netstack") } else { None },
        fuse: usable("/dev/fuse"),
        // To open it makes a socket, which is not had for nothing.
        tun: network && usable("/dev/net/tun"),
        landlock: crate::sys::landlock::version(),
        groups: cgroup::places(),
    }
}

/// The ids that a container of the caller's can have: subordinate ones where
/// the host grants any and has the helpers to use them, else one.
pub fn id_map() -> IdMap {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let caller = database::caller().unwrap_or_else(|error| {
        // It goes on by number; what is granted by name is not found.
        say(&format!("warning: nobody tells who user {uid} is: {error}"));
        None
    });
    let name = caller.as_ref().map(|user| user.name.as_str());
    let helpers = ["newuidmap", "newgidmap"].iter().all(|p| spawn::find_in_path(p).is_some());
    let granted = |file| {
        if helpers { fs::read_to_string(file).unwrap_or_default() } else { String::new() }
    };
    IdMap::of_caller(uid, gid, name, &granted("/etc/subuid"), &granted("/etc/subgid"))
}

/// How many subordinate user and group ids the host grants the caller.
fn granted_ids() -> [u64; 2] {
    let uid = geteuid().as_raw();
    let caller = database::caller().ok().flatten();
    let name = caller.as_ref().map(|user| user.name.as_str());
    ["/etc/subuid", "/etc/subgid"].map(|file| {
        let granted = fs::read_to_string(file).unwrap_or_default();
        idmap::granted(uid, name, &granted).iter().map(|range| u64::from(range.count)).sum()
    })
}

fn homes(passwd: &str) -> Vec<PathBuf> {
    let of_people = passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        (uid >= 1000).then(|| PathBuf::from(fields.get(5).copied().unwrap_or_default()))
    });
    let found: BTreeSet<PathBuf> = of_people
        .chain(env::var_os("HOME").map(PathBuf::from))
        .filter(|home| home.is_absolute())
        .filter_map(|home| fs::canonicalize(home).ok())
        .filter(|home| home != Path::new("/") && home.is_dir())
        .collect();
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_those_of_people_and_exist() {
        let found = homes(
            "root:x:0:0::/nonesuch-root:/bin/sh\nada:x:1000:1000::/usr:/bin/sh\n\
             bob:x:1001:1001::/nonesuch:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nbad line\n",
        );
        assert!(found.contains(&PathBuf::from("/usr")));
        assert!(!found.contains(&PathBuf::from("/nonesuch")));
        assert!(!found.contains(&PathBuf::from("/")));
    }
}
