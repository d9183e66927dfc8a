//! How a workload is held besides its capabilities and its system call filter.

use serde::{Deserialize, Serialize};

use super::{InitStep, Kind};
use crate::policy;
use crate::policy::landlock::{Access, Beneath, FIRST, Rules};
use crate::probe::HostCaps;
use crate::spec::{Network, Spec};

/// CAP_SYS_ADMIN, number 21 (linux/capability.h).
const ADMIN: u64 = 1 << 21;

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The workload is in a user namespace below the one that owns the container's
    /// mounts and network (see [`crate::stage::nest`]).
    pub nested: bool,
    /// The files it reaches; without, whatever its mounts show.
    pub landlock: Option<Rules>,
}

/// Whether the workload gets the nested namespace: a capability beyond the usual ones is
/// asked for because of what the outer namespace owns.
pub(super) fn nested(spec: &Spec) -> bool {
    spec.security.nested && spec.security.capabilities & !policy::capabilities() == 0
}

/// Decides, once all of init's steps are known.
pub(super) fn confinement(spec: &Spec, host: &HostCaps, init: &[InitStep]) -> Confinement {
    // Under Landlock nobody mounts.
    let wanted = spec.security.landlock && spec.security.capabilities & ADMIN == 0;
    let version = host.landlock.filter(|version| wanted && *version >= FIRST);
    Confinement {
        nested: nested(spec),
        landlock: version.map(|version| Rules {
            version,
            beneath: beneath(spec, init),
            own_sockets: spec.network == Network::Host,
            connect: None,
            bind: None,
        }),
    }
}

/// What the container's mounts need: of a read-only root, writing is for the mounts in it
/// that are not.
fn beneath(spec: &Spec, init: &[InitStep]) -> Vec<Beneath> {
    let root = Access { write: !spec.read_only, ..Access::ALL };
    let mut rules = vec![Beneath { path: "/".into(), access: root }];
    if !spec.read_only {
        return rules;
    }
    let written = init.iter().filter_map(|step| match step {
        InitStep::Mount { kind: Kind::Sysfs, .. } => None,
        InitStep::Mount { target, .. }
        | InitStep::Volume { target, read_only: false, .. }
        | InitStep::File { target, .. } => Some(target.clone()),
        _ => None,
    });
    rules.extend(written.map(|path| Beneath { path, access: Access::ALL }));
    rules
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, paths, spec};
    use super::*;
    use crate::spec::{Security, Volume};

    fn confined(spec: &Spec, landlock: Option<u32>) -> Confinement {
        let host = HostCaps { landlock, ..host(false) };
        super::super::plan(spec, &host, "boat", &paths()).unwrap().workload.confinement
    }

    #[test]
    fn the_default_is_all_there_is() {
        let confinement = confined(&spec(), Some(7));
        assert!(confinement.nested);
        let rules = confinement.landlock.unwrap();
        assert_eq!(rules.beneath, [Beneath { path: "/".into(), access: Access::ALL }]);
        assert!(!rules.own_sockets);
        for old in [None, Some(1)] {
            assert_eq!(confined(&spec(), old).landlock, None);
        }
        let host = Spec { network: Network::Host, ..spec() };
        assert!(confined(&host, Some(7)).landlock.unwrap().own_sockets);
    }

    #[test]
    fn of_a_read_only_root_mounts_are_written() {
        let volume = |target: &str, read_only| Volume {
            source: "/srv".into(),
            target: target.into(),
            read_only,
        };
        let spec = Spec {
            read_only: true,
            volumes: vec![volume("/data", false), volume("/fixed", true)],
            ..spec()
        };
        let rules = confined(&spec, Some(7)).landlock.unwrap().beneath;
        assert!(!rules[0].access.write);
        let written: Vec<_> = rules[1..].iter().map(|rule| rule.path.to_str().unwrap()).collect();
        for path in ["/proc", "/dev", "/dev/shm", "/tmp", "/data", "/etc/hosts"] {
            assert!(written.contains(&path), "{path}: {written:?}");
        }
        assert!(!written.contains(&"/fixed") && !written.contains(&"/sys"), "{written:?}");
    }

    #[test]
    fn capabilities_that_would_be_void_do_without() {
        let with = |capability: u64| {
            let capabilities = policy::capabilities() | capability;
            let security = Security { capabilities, ..Security::default() };
            confined(&Spec { security, ..spec() }, Some(7))
        };
        assert!(with(0).nested);
        // NET_ADMIN, for the network; SYS_ADMIN, to mount.
        assert!(!with(1 << 12).nested && with(1 << 12).landlock.is_some());
        assert!(!with(ADMIN).nested && with(ADMIN).landlock.is_none());
        let off = Security { nested: false, landlock: false, ..Security::default() };
        let off = confined(&Spec { security: off, ..spec() }, Some(7));
        assert_eq!(off, Confinement::default());
    }
}
