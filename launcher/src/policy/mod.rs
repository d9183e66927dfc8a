//! What a container may do, as data: capabilities, system calls, hidden paths.

use std::path::PathBuf;

use caps::Capability;

mod destination;
pub mod landlock;
mod paths;
pub mod profile;
pub mod seccomp;

pub use paths::{MASKED_PATHS, READONLY_PATHS};

/// Why a policy cannot be built on this machine.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The seccomp library refused.
    #[error("cannot build the system call filter: {0}")]
    Seccomp(String),
    /// A profile of the caller's makes no sense.
    #[error("the system call profile {}: {why}", path.display())]
    Profile {
        /// Where it came from.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What the root of a container needs to manage files, users and servers of
/// its own, and nothing that reaches the kernel's own settings. The same as
/// Podman's default, so that images behave as they do there.
const CAPABILITIES: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// The capabilities of a container's root, bit n standing for capability n
/// (capabilities(7), `linux/capability.h`).
#[must_use]
pub fn capabilities() -> u64 {
    CAPABILITIES.iter().fold(0, |mask, capability| mask | capability.bitmask())
}

/// All capabilities that this program knows of.
#[must_use]
pub fn all_capabilities() -> u64 {
    caps::all().iter().fold(0, |mask, capability| mask | capability.bitmask())
}

/// The names of capabilities, in the order of their numbers.
#[must_use]
pub fn capability_names(mask: u64) -> Vec<String> {
    let mut all: Vec<Capability> = caps::all().into_iter().collect();
    all.sort_by_key(Capability::index);
    let held = all.into_iter().filter(|capability| mask & capability.bitmask() != 0);
    held.map(|capability| capability.to_string()).collect()
}

/// What is left of the default capabilities with these added and those dropped. Names
/// are of either case, with or without `CAP_`; `ALL` is every one. Dropping all comes
/// before adding any, adding all before dropping any, as in Podman.
///
/// # Errors
/// A name that is none, or that is to be added and dropped.
pub fn merge_capabilities(add: &[String], drop: &[String]) -> Result<u64, String> {
    let (added, dropped) = (named(add)?, named(drop)?);
    let mut mask = capabilities();
    match (added, dropped) {
        (None, None) => return Err("ALL capabilities cannot be added and dropped".to_owned()),
        (None, Some(dropped)) => mask = all_capabilities() & !dropped,
        (Some(added), None) => mask = added,
        (Some(added), Some(dropped)) => {
            if let Some(both) = capability_names(added & dropped).first() {
                return Err(format!("{both} cannot be added and dropped"));
            }
            mask = (mask | added) & !dropped;
        }
    }
    Ok(mask)
}

/// `None`: all of them.
fn named(names: &[String]) -> Result<Option<u64>, String> {
    let mut mask = 0;
    let mut all = false;
    for name in names {
        if name.eq_ignore_ascii_case("ALL") {
            all = true;
        } else {
            mask |= capability(name)?;
        }
    }
    Ok(if all { None } else { Some(mask) })
}

/// The bit of the capability of this name.
fn capability(name: &str) -> Result<u64, String> {
    let upper = name.to_ascii_uppercase();
    let upper = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known: Result<Capability, _> = format!("CAP_{upper}").parse();
    known.map(|known| known.bitmask()).map_err(|_| {
        format!("'{name}' is no capability (see capabilities(7)); as in NET_RAW or ALL")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(add: &[&str], drop: &[&str]) -> Result<u64, String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        merge_capabilities(&owned(add), &owned(drop))
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let raw = Capability::CAP_NET_RAW.bitmask();
        let chown = Capability::CAP_CHOWN.bitmask();
        assert_eq!(merged(&[], &[]).unwrap(), capabilities());
        for name in ["NET_RAW", "cap_net_raw", "CAP_NET_RAW", "Net_Raw"] {
            assert_eq!(merged(&[name], &["chown"]).unwrap(), capabilities() & !chown | raw);
        }
        assert_eq!(merged(&["chown"], &["all"]).unwrap(), chown);
        assert_eq!(merged(&[], &["ALL"]).unwrap(), 0);
        assert_eq!(merged(&["ALL"], &["net_raw"]).unwrap(), all_capabilities() & !raw);
        assert_eq!(capability_names(raw | chown), ["CAP_CHOWN", "CAP_NET_RAW"]);
        for (add, drop, word) in [
            (&["nonsense"][..], &[][..], "nonsense"),
            (&[], &[""], "''"),
            (&["all"], &["all"], "ALL"),
            (&["chown"], &["CAP_CHOWN"], "CAP_CHOWN"),
        ] {
            let why = merged(add, drop).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn capabilities_are_the_eleven() {
        // As Podman shows them in /proc/self/status of a container.
        assert_eq!(capabilities(), 0x8004_05fb);
        assert_eq!(capabilities() & Capability::CAP_SYS_ADMIN.bitmask(), 0);
    }
}
