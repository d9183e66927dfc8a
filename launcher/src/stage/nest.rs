//! The nested user namespace: once a container is set up, its processes move into a
//! user namespace below the one that owns its mounts, network and other namespaces.
//!
//! # Theory of operation
//!
//! Both namespaces have the same ids. A capability counts in a namespace and those below
//! it only: whatever the workload's root gets hold of, it has no say over the addresses
//! and settings of its network, its mounts, or the services, all of which belong to the
//! outer one; and files, which are judged by ids, are as before.
//!
//! Init moves, and the workload inherits; what joins the container later joins init's
//! namespace. The maps must be written by a process of the outer namespace: a child of
//! init's that stays behind for it. It takes a number of its own so that the workload
//! has the number it would have without. It is made while the overlay starts, and finds
//! init in the host's /proc, which nothing in the container can replace.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::channel::{Context, Fault};
use crate::idmap::{IdMap, Range};
use crate::sys::process::{self, Forked};

/// The helper's number: the highest that every PID namespace has (RESERVED_PIDS of
/// kernel/pid.c).
const HELPER: i32 = 300;

/// The child that stays behind, and what tells it that init has moved.
#[derive(Debug)]
pub struct Helper {
    pid: i32,
    tell_moved: io::PipeWriter,
}

impl Helper {
    /// Starts it, while this process, the first of the container, sees the host's /proc.
    ///
    /// # Errors
    /// As of clone(2), or when /proc is not there.
    pub fn start(map: &IdMap) -> Result<Self, Fault> {
        let what = || "cannot make the nested user namespace";
        // Of this process, whatever number it has there.
        let process = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open("/proc/self")
            .context(what)?;
        let (mut moved, tell_moved) = io::pipe().context(|| "cannot make a pipe")?;
        match process::fork_numbered(HELPER).context(what)? {
            Forked::Child => {
                drop(tell_moved);
                let written = moved.read_exact(&mut [0]).and_then(|()| write_maps(&process, map));
                let errno =
                    written.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                process::exit_now(errno as u8)
            }
            Forked::Parent(pid) => Ok(Self { pid, tell_moved }),
        }
    }

    /// Moves this process into the nested namespace.
    ///
    /// # Errors
    /// When user namespaces are used up, or the maps cannot be written.
    pub fn enter(self) -> Result<(), Fault> {
        let what = || "cannot make the nested user namespace";
        let Self { pid, mut tell_moved } = self;
        let unshared = unshare(CloneFlags::CLONE_NEWUSER).context(|| {
            "cannot make the nested user namespace (raise user.max_user_namespaces, or use \
             --security-opt nested-userns=off)"
        });
        let told = unshared.and_then(|()| tell_moved.write_all(&[1]).context(what));
        // Without its byte the helper gives up: it is always waited for.
        drop(tell_moved);
        let ended = waitpid(Pid::from_raw(pid), None).context(what);
        told?;
        match ended? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(Fault::new(
                "cannot write the id maps of the nested user namespace",
                io::Error::from_raw_os_error(errno),
            )),
            _ => Err(Fault::said("the helper of the nested user namespace died")),
        }
    }
}

fn write_maps(process: &File, map: &IdMap) -> io::Result<()> {
    for (name, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
        let file = openat(process, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // The kernel takes a map in one piece.
        File::from(file).write_all(identity(ranges).as_bytes())?;
    }
    Ok(())
}

/// Each id as itself.
fn identity(ranges: &[Range]) -> String {
    ranges.iter().map(|r| format!("{0} {0} {1}\n", r.inside, r.count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_stays_what_it_is() {
        let map = IdMap::of_caller(1000, 100, Some("a"), "a:100000:65536\n", "a:200000:65536\n");
        assert_eq!(identity(&map.uids), "0 0 1\n1 1 65536\n");
        assert_eq!(identity(&map.gids), "0 0 1\n1 1 65536\n");
        let single = IdMap::of_caller(1000, 100, None, "", "");
        assert_eq!(identity(&single.uids), "0 0 1\n");
    }
}
