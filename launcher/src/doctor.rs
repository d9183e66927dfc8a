//! What a host's health means for containers, and what to do about it. Pure.

use serde::Serialize;

use crate::probe::health::{Cgroup, Device, Health, Helper};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Degree {
    /// All of it works.
    Fine,
    /// Something is less than it could be.
    Note,
    /// Something does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a word or two that stay the same.
    pub item: &'static str,
    /// How it is.
    pub degree: Degree,
    /// What was found.
    pub found: String,
    /// What works all the same; nothing when all does, or nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub works: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// As many as a user gets by default, and images expect.
const MANY_IDS: u64 = 65_536;

/// All findings, always the same items in the same order.
#[must_use]
pub fn diagnose(health: &Health) -> Vec<Finding> {
    vec![
        namespaces(health),
        ids(health),
        programs(health),
        fuse(health),
        tun(health),
        ping(health),
        ports(health),
        cgroups(health),
        place(health),
        runtime_dir(health),
    ]
}

fn fine(item: &'static str, found: impl Into<String>) -> Finding {
    Finding { item, degree: Degree::Fine, found: found.into(), works: None, fix: None }
}

fn bad(
    item: &'static str,
    degree: Degree,
    found: impl Into<String>,
    works: &str,
    fix: impl Into<String>,
) -> Finding {
    let works = (!works.is_empty()).then(|| works.to_owned());
    Finding { item, degree, found: found.into(), works, fix: Some(fix.into()) }
}

/// Makes a setting last.
fn sysctl(setting: &str) -> String {
    format!("sudo sysctl -w {setting} (and a file in /etc/sysctl.d with it, to keep it)")
}

fn namespaces(health: &Health) -> Finding {
    const ITEM: &str = "user namespaces";
    let Some(why) = &health.namespace else { return fine(ITEM, "can be made") };
    let (cause, fix) = if health.clone_allowed == Some(false) {
        ("kernel.unprivileged_userns_clone is 0", sysctl("kernel.unprivileged_userns_clone=1"))
    } else if health.most_namespaces == Some(0) {
        ("user.max_user_namespaces is 0", sysctl("user.max_user_namespaces=15000"))
    } else if health.apparmor_restricts == Some(true) {
        (
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            format!(
                "a profile for coracle in /etc/apparmor.d that says 'userns,', or {}",
                sysctl("kernel.apparmor_restrict_unprivileged_userns=0")
            ),
        )
    } else {
        (
            "no setting says why",
            "when this is a container, it must allow user namespaces (its seccomp profile); \
             otherwise ask who runs this machine for CONFIG_USER_NS and its limits"
                .to_owned(),
        )
    };
    let works = "image import, pull and run need them: nothing but listing and setup";
    bad(ITEM, Degree::Problem, format!("{why} ({cause})"), works, fix)
}

fn ids(health: &Health) -> Finding {
    const ITEM: &str = "subordinate ids";
    const WORKS: &str = "containers in which only root exists: users, and services that become \
                         somebody else, do not";
    let user = &health.user;
    let [uids, gids] = health.granted;
    if uids == 0 || gids == 0 {
        let file = match (uids, gids) {
            (0, 0) => "/etc/subuid and /etc/subgid",
            (0, _) => "/etc/subuid",
            _ => "/etc/subgid",
        };
        let fix = format!(
            "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user} (another \
             range, where somebody has that one)"
        );
        return bad(ITEM, Degree::Problem, format!("{file}: none for {user}"), WORKS, fix);
    }
    for (helper, name) in health.helpers.iter().zip(["newuidmap", "newgidmap"]) {
        match helper {
            Helper::There => {}
            Helper::Missing => {
                let fix = "install the package uidmap (Debian, Ubuntu) or shadow-utils, and have \
                           its directory in $PATH";
                let found = format!("{name} is not in $PATH");
                return bad(ITEM, Degree::Problem, found, WORKS, fix);
            }
            Helper::Powerless(path) => {
                let path = path.display();
                let found = format!("{path} is neither set-user-id root nor has file capabilities");
                // Runs try to use it all the same, and say that it failed.
                let works = "nothing that needs a container";
                let fix = format!("sudo chown root {path} && sudo chmod u+s {path}");
                return bad(ITEM, Degree::Problem, found, works, fix);
            }
        }
    }
    if let Some(why) = &health.mapped {
        let fix = "see that the ranges in /etc/subuid and /etc/subgid are whole, and no set-user-id \
                   program is mounted nosuid";
        return bad(ITEM, Degree::Problem, why.clone(), "nothing that needs a container", fix);
    }
    let few = uids.min(gids);
    if few < MANY_IDS {
        let found = format!("{few} for {user}");
        let fix = format!(
            "sudo usermod --add-subuids and --add-subgids for {user}, with {MANY_IDS} ids, as most \
             images expect"
        );
        let works = "images whose files belong to lower ids than that";
        return bad(ITEM, Degree::Note, found, works, fix);
    }
    fine(ITEM, format!("{few} for {user}"))
}

fn programs(health: &Health) -> Finding {
    const ITEM: &str = "programs";
    let fix = "install it beside coracle, in ../libexec/coracle or in $PATH";
    match (&health.caps.overlay, &health.caps.netstack) {
        (Some(_), Some(_)) => fine(ITEM, "overlayfs-fuse and netstack are there"),
        (None, _) => {
            let works = "image import, pull, ls; no container";
            bad(ITEM, Degree::Problem, "overlayfs-fuse was not found", works, fix)
        }
        (_, None) => {
            let works = "containers with --network none or host";
            bad(ITEM, Degree::Problem, "netstack was not found", works, fix)
        }
    }
}

fn device(item: &'static str, state: &Device, path: &str, module: &str, works: &str) -> Finding {
    match state {
        Device::Usable => fine(item, format!("{path} can be opened")),
        Device::Missing => {
            let fix = format!(
                "sudo modprobe {module}; in a container it must be passed in (--device {path})"
            );
            bad(item, Degree::Problem, format!("{path} is not there"), works, fix)
        }
        Device::Closed(why) => {
            let fix = format!("sudo chmod 0666 {path} (and a rule of udev, to keep it)");
            bad(item, Degree::Problem, format!("{path} cannot be opened: {why}"), works, fix)
        }
    }
}

fn fuse(health: &Health) -> Finding {
    device("fuse", &health.fuse, "/dev/fuse", "fuse", "image import, pull, ls; no container")
}

fn tun(health: &Health) -> Finding {
    let works = "containers with --network none or host";
    device("tun", &health.tun, "/dev/net/tun", "tun", works)
}

fn ping(health: &Health) -> Finding {
    const ITEM: &str = "ping";
    if health.ping {
        return fine(ITEM, "is allowed");
    }
    let found = "net.ipv4.ping_group_range leaves this user's groups out";
    let fix = sysctl("net.ipv4.ping_group_range='0 2147483647'");
    let works = "all of the network but ping beyond the gateway";
    bad(ITEM, Degree::Problem, found, works, fix)
}

fn ports(health: &Health) -> Finding {
    const ITEM: &str = "low ports";
    match health.lowest_port {
        Some(0 | 1) => fine(ITEM, "every port can be published"),
        lowest => {
            let lowest = lowest.unwrap_or(1024);
            let found = format!("ports below {lowest} cannot be published");
            let works = format!("-p with ports from {lowest} up");
            let fix = sysctl("net.ipv4.ip_unprivileged_port_start=80");
            bad(ITEM, Degree::Note, found, &works, fix)
        }
    }
}

fn cgroups(health: &Health) -> Finding {
    const ITEM: &str = "cgroups";
    const WORKS: &str = "containers, with the limits that setrlimit(2) has";
    match &health.cgroup {
        Cgroup::None => {
            let fix = "boot with systemd.unified_cgroup_hierarchy=1";
            bad(ITEM, Degree::Note, "there are none of version 2 here", WORKS, fix)
        }
        Cgroup::NotDelegated(dir) => {
            let found = format!("{} is not this user's", dir.display());
            let fix = "log in through systemd (its user@.service delegates one), or run coracle by \
                       'systemd-run --user --scope -p Delegate=yes'";
            bad(ITEM, Degree::Note, found, WORKS, fix)
        }
        Cgroup::Delegated(controllers) => {
            let missing: Vec<&str> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|wanted| !controllers.iter().any(|there| there == wanted))
                .collect();
            if missing.is_empty() {
                return fine(ITEM, "delegated, with cpu, memory and pids");
            }
            let found = format!("delegated without {}", missing.join(", "));
            let fix = "sudo systemctl edit user@.service: [Service] Delegate=cpu memory pids";
            let works = "freezing and killing, and the limits of the other controllers";
            bad(ITEM, Degree::Note, found, works, fix)
        }
    }
}

fn place(health: &Health) -> Finding {
    const ITEM: &str = "data directory";
    const FIX: &str = "set XDG_DATA_HOME to a directory of yours on a local disk";
    let place = &health.place;
    let path = place.path.display();
    let on = place.network.map(|kind| format!(" is on {kind}")).unwrap_or_default();
    match (&place.trouble, place.network) {
        (None, None) => fine(ITEM, format!("{path}")),
        (None, Some(_)) => {
            let works = "what was tried: attributes and owners of files";
            bad(
                ITEM,
                Degree::Note,
                format!("{path}{on}, which is slow and locks badly"),
                works,
                FIX,
            )
        }
        (Some(why), _) if place.path.as_os_str().is_empty() => {
            bad(ITEM, Degree::Problem, why.clone(), "", FIX)
        }
        (Some(why), _) => {
            let works = "containers with --upper ram, on --rootfs or the host's root, where the \
                         directory can be written at all";
            bad(ITEM, Degree::Problem, format!("{path}{on}: {why}"), works, FIX)
        }
    }
}

fn runtime_dir(health: &Health) -> Finding {
    const ITEM: &str = "runtime directory";
    match &health.runtime_dir {
        Ok(dir) => fine(ITEM, dir.display().to_string()),
        Err(why) => {
            let works = "all but what other tools keep there: credentials of 'podman login'";
            let fix = "log in through systemd (PAM), or export XDG_RUNTIME_DIR=/run/user/$(id -u)";
            bad(ITEM, Degree::Note, why.clone(), works, fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;
    use crate::probe::HostCaps;
    use crate::probe::health::Place;

    fn healthy() -> Health {
        let map = IdMap::of_caller(1000, 1000, None, "1000:100000:65536", "1000:100000:65536");
        Health {
            caps: HostCaps {
                groups: Vec::new(),
                map,
                homes: vec![],
                resolv_conf: String::new(),
                hosts: String::new(),
                hostname: String::new(),
                ipv6: true,
                processors: 1,
                term: None,
                overlay: Some("/o".into()),
                netstack: Some("/n".into()),
                fuse: true,
                tun: true,
                landlock: Some(7),
            },
            user: "ada".to_owned(),
            granted: [65536, 65536],
            helpers: [Helper::There, Helper::There],
            namespace: None,
            mapped: None,
            most_namespaces: Some(1),
            clone_allowed: Some(true),
            apparmor_restricts: Some(false),
            fuse: Device::Usable,
            tun: Device::Usable,
            ping: true,
            lowest_port: Some(0),
            cgroup: Cgroup::Delegated(["cpu", "memory", "pids"].map(str::to_owned).into()),
            place: Place { path: "/d".into(), network: None, trouble: None },
            runtime_dir: Ok("/run/user/1000".into()),
        }
    }

    /// What one change of a healthy host leads to, alone.
    fn found(change: impl FnOnce(&mut Health)) -> Finding {
        let mut health = healthy();
        change(&mut health);
        let all = diagnose(&health);
        let mut odd = all.into_iter().filter(|finding| finding.degree != Degree::Fine);
        let first = odd.next().expect("the change is noticed");
        assert_eq!(odd.next(), None);
        assert!(first.fix.is_some(), "{first:?}");
        first
    }

    #[test]
    fn a_healthy_host_is_fine() {
        assert!(diagnose(&healthy()).iter().all(|finding| finding.degree == Degree::Fine));
    }

    #[test]
    fn every_trouble_is_told_with_its_fix() {
        let no = || Some("cannot make a user namespace: No space left on device".to_owned());
        let closed = || Device::Closed("Permission denied".to_owned());
        let cases: [(Finding, &str, Degree, &str); 16] = [
            (
                found(|h| (h.namespace, h.most_namespaces) = (no(), Some(0))),
                "user namespaces",
                Degree::Problem,
                "user.max_user_namespaces=15000",
            ),
            (
                found(|h| (h.namespace, h.clone_allowed) = (no(), Some(false))),
                "user namespaces",
                Degree::Problem,
                "kernel.unprivileged_userns_clone=1",
            ),
            (
                found(|h| (h.namespace, h.apparmor_restricts) = (no(), Some(true))),
                "user namespaces",
                Degree::Problem,
                "apparmor_restrict_unprivileged_userns=0",
            ),
            (found(|h| h.namespace = no()), "user namespaces", Degree::Problem, "seccomp"),
            (found(|h| h.granted = [0, 0]), "subordinate ids", Degree::Problem, "usermod"),
            (
                found(|h| h.helpers[0] = Helper::Missing),
                "subordinate ids",
                Degree::Problem,
                "uidmap",
            ),
            (
                found(|h| h.helpers[1] = Helper::Powerless("/x/newgidmap".into())),
                "subordinate ids",
                Degree::Problem,
                "chmod u+s /x/newgidmap",
            ),
            (found(|h| h.granted = [65536, 1000]), "subordinate ids", Degree::Note, "65536"),
            (found(|h| h.caps.netstack = None), "programs", Degree::Problem, "libexec"),
            (found(|h| h.fuse = Device::Missing), "fuse", Degree::Problem, "modprobe fuse"),
            (found(|h| h.tun = closed()), "tun", Degree::Problem, "chmod 0666 /dev/net/tun"),
            (found(|h| h.ping = false), "ping", Degree::Problem, "ping_group_range"),
            (found(|h| h.lowest_port = Some(1024)), "low ports", Degree::Note, "port_start"),
            (
                found(|h| h.cgroup = Cgroup::NotDelegated("/sys/x".into())),
                "cgroups",
                Degree::Note,
                "Delegate=yes",
            ),
            (
                found(|h| h.place.network = Some("NFS")),
                "data directory",
                Degree::Note,
                "XDG_DATA_HOME",
            ),
            (
                found(|h| h.runtime_dir = Err("not set".to_owned())),
                "runtime directory",
                Degree::Note,
                "XDG_RUNTIME_DIR",
            ),
        ];
        for (finding, item, degree, word) in cases {
            assert_eq!((finding.item, finding.degree), (item, degree), "{finding:?}");
            assert!(finding.fix.as_deref().unwrap_or_default().contains(word), "{finding:?}");
            assert!(finding.works.is_some(), "{finding:?}");
        }
    }
}
