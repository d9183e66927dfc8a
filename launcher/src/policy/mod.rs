//! What a container may do, as data: capabilities, system calls, hidden paths.

use caps::Capability;

mod paths;
mod seccomp;

pub use paths::{MASKED_PATHS, READONLY_PATHS};
pub use seccomp::{cached_seccomp, seccomp};

/// Why a policy cannot be built on this machine.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The seccomp library refused.
    #[error("cannot build the system call filter: {0}")]
    Seccomp(String),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_the_eleven() {
        // As Podman shows them in /proc/self/status of a container.
        assert_eq!(capabilities(), 0x8004_05fb);
        assert_eq!(capabilities() & Capability::CAP_SYS_ADMIN.bitmask(), 0);
    }
}
