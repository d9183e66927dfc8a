//! How a workload is held besides its capabilities and its system call filter.

use serde::{Deserialize, Serialize};

use super::{InitStep, Kind};
use crate::policy;
use crate::policy::landlock::{Access, Beneath, FIRST, PORTS, Rules};
use crate::probe::HostCaps;
use crate::spec::{Network, Security, Spec};

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

/// What a policy wants and cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What, and why.
    pub what: String,
    /// There is to be no container without.
    pub required: bool,
}

/// What of a policy cannot be enforced, with this version of Landlock.
#[must_use]
pub fn unenforced(security: &Security, landlock: Option<u32>) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let why = |first: u32| {
        let version = landlock.unwrap_or(0);
        if security.capabilities & ADMIN != 0 {
            Some("CAP_SYS_ADMIN and Landlock exclude each other".to_owned())
        } else if !security.landlock {
            Some("Landlock is switched off by --security-opt".to_owned())
        } else if version == 0 {
            Some("this kernel has no Landlock, or it is switched off (lsm=)".to_owned())
        } else if version < first {
            Some(format!("this kernel has version {version} of Landlock; it takes {first}"))
        } else {
            None
        }
    };
    let mut lack = |what: &str, required, first| {
        let why = why(first);
        lacks.extend(why.map(|why| Lack {
            what: format!("the policy's rules for {what} are not enforced: {why}"),
            required,
        }));
    };
    if let Some(files) = &security.files {
        lack("files", files.required, FIRST);
    }
    if security.ports.listen.is_some() || security.ports.connect.is_some() {
        lack("TCP ports", security.ports.required, PORTS);
    }
    lacks
}

/// What is told where the layer that is there by default cannot be had.
pub(super) fn without_landlock(security: &Security, version: Option<u32>) -> Option<String> {
    let wanted = security.landlock && security.capabilities & ADMIN == 0;
    let why = match version {
        Some(FIRST..) => return None,
        Some(old) => format!("this kernel has version {old} of Landlock; it takes {FIRST}"),
        None => "this kernel has no Landlock, or it is switched off (lsm=)".to_owned(),
    };
    wanted.then(|| {
        format!(
            "{why}: what the container reaches is held by its mounts and namespaces alone; \
             --security-opt landlock=off says that this is meant"
        )
    })
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
            connect: spec.security.ports.connect.clone().filter(|_| version >= PORTS),
            bind: spec.security.ports.listen.clone().filter(|_| version >= PORTS),
        }),
    }
}

/// What the container's mounts need: of a read-only root, writing is for the mounts in it
/// that are not.
fn beneath(spec: &Spec, init: &[InitStep]) -> Vec<Beneath> {
    if let Some(files) = &spec.security.files {
        // The container's own, without which little runs.
        let own = ["/dev", "/proc"].map(|path| Beneath {
            path: path.into(),
            access: Access { execute: false, ..Access::ALL },
        });
        return files.beneath.iter().cloned().chain(own).collect();
    }
    let root = Access { write: !spec.read_only, ..Access::ALL };
    let mut rules = vec![Beneath { path: "/".into(), access: root }];
    if !spec.read_only {
        return rules;
    }
    let written = init.iter().filter_map(|step| match step {
        InitStep::Mount { kind: Kind::Sysfs | Kind::Secrets, .. } => None,
        InitStep::Mount { target, .. }
        | InitStep::Volume { target, read_only: false, .. }
        | InitStep::File { target, .. } => Some(target.clone()),
        InitStep::HostIpc => Some("/dev/shm".into()),
        _ => None,
    });
    rules.extend(written.map(|path| Beneath { path, access: Access::ALL }));
    rules
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, paths, spec};
    use super::*;
    use crate::spec::{Files, Ports, Security, Volume};

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

    #[test]
    fn that_there_is_no_landlock_is_told_once() {
        let told = |security: &Security, landlock| {
            let host = HostCaps { landlock, ..host(false) };
            let spec = Spec { security: security.clone(), ..spec() };
            super::super::plan(&spec, &host, "boat", &paths()).unwrap().lacking
        };
        let usual = Security::default();
        assert!(told(&usual, Some(FIRST)).is_empty());
        for old in [None, Some(1)] {
            let told = told(&usual, old);
            assert!(told.len() == 1 && told[0].contains("Landlock"), "{told:?}");
        }
        let off = Security { landlock: false, ..Security::default() };
        assert!(told(&off, None).is_empty());
        let admin = policy::capabilities() | ADMIN;
        assert!(told(&Security { capabilities: admin, ..Security::default() }, None).is_empty());
        // A policy that is not enforced says so itself.
        let ports = Ports { required: false, listen: Some(vec![80]), connect: None };
        let told = told(&Security { ports, ..Security::default() }, None);
        assert!(told.len() == 1 && told[0].contains("TCP ports"), "{told:?}");
    }

    #[test]
    fn what_a_policy_wants_is_enforced_or_told() {
        let files = Files {
            required: true,
            beneath: vec![Beneath { path: "/usr".into(), access: Access::ALL }],
        };
        let ports = Ports { required: false, listen: Some(vec![80]), connect: None };
        let security = Security { files: Some(files), ports, ..Security::default() };
        let lacks = |security: &Security, landlock| -> Vec<bool> {
            unenforced(security, landlock).into_iter().map(|lack| lack.required).collect()
        };
        assert!(lacks(&security, Some(4)).is_empty());
        assert_eq!(lacks(&security, Some(3)), [false]);
        assert_eq!(lacks(&security, Some(1)), [true, false]);
        assert_eq!(lacks(&security, None), [true, false]);
        let off = Security { landlock: false, ..security.clone() };
        assert_eq!(lacks(&off, Some(7)), [true, false]);
        assert!(lacks(&Security::default(), None).is_empty());

        let spec = Spec { security, ..spec() };
        let rules = confined(&spec, Some(7)).landlock.unwrap();
        assert_eq!(rules.bind, Some(vec![80]));
        let paths: Vec<_> = rules.beneath.iter().map(|rule| rule.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/usr", "/dev", "/proc"]);
        assert_eq!(confined(&spec, Some(3)).landlock.unwrap().bind, None);
        let host = HostCaps { landlock: Some(1), ..host(false) };
        let error =
            super::super::plan(&spec, &host, "boat", &super::super::tests::paths()).unwrap_err();
        assert!(error.to_string().contains("version 1"), "{error}");
    }
}
