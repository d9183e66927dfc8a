//! What a running network gives up: sight of the file system, and privilege.
//!
//! # Theory of operation
//!
//! Entered once everything that needs a path is open. A new mount namespace gets a
//! read-only root with nothing but the host's /etc and /run, bound there live, so
//! that resolv.conf is still found and its changes seen, also through a symbolic
//! link; where that leads outside both, the directory it leads to is bound too.
//! The old root is detached. Then all capabilities go but CAP_NET_BIND_SERVICE (a
//! root that publishes port 80 goes on doing so), and no_new_privs is set.
//!
//! Without the privilege to make mounts, a user namespace is made that maps only
//! ourselves. The network namespace stays the host's: sockets are as before.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Error {
    what: String,
    why: String,
}

fn failed<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |why| Error { what, why: why.to_string() }
}

/// Where the new root is put together. Present on every system, and hidden for
/// this process alone.
const STAGE: &str = "/tmp";
const STAGE_C: &CStr = c"/tmp";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Enters the sandbox. The process must have one thread.
///
/// # Errors
/// A step that the kernel refuses; the process must then end.
pub fn enter() -> Result<(), Error> {
    // Before the view changes.
    let resolv_dir = std::fs::canonicalize(RESOLV_CONF)
        .ok()
        .and_then(|path| path.parent().map(Path::to_path_buf))
        .filter(|dir| !dir.starts_with("/etc") && !dir.starts_with("/run"));
    new_mount_namespace()?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("cannot make the mounts private"))?;
    let wanted = ["/etc", "/run"].into_iter().map(PathBuf::from).chain(resolv_dir);
    // Opened before the stage hides what may lie below it.
    let sources: Vec<(PathBuf, std::fs::File)> = wanted
        .filter(|path| path.is_dir())
        .map(|path| {
            let file = std::fs::File::open(&path)
                .map_err(failed(format!("cannot open {}", path.display())))?;
            Ok((path, file))
        })
        .collect::<Result<_, Error>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some("size=64k,mode=0755"))
        .map_err(failed(format!("cannot mount a file system on {STAGE}")))?;
    for (path, file) in &sources {
        use std::os::fd::AsRawFd;
        let target = Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path));
        std::fs::create_dir_all(&target)
            .map_err(failed(format!("cannot make {}", target.display())))?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(source.as_str()), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(failed(format!("cannot bind {}", path.display())))?;
    }
    drop(sources);
    crate::sys::ns::restrict_mounts(STAGE_C).map_err(failed("cannot make the view read-only"))?;
    chdir(STAGE).map_err(failed(format!("cannot enter {STAGE}")))?;
    // The old root ends up on top of the new one, and is taken off (pivot_root(2)).
    pivot_root(".", ".").map_err(failed("cannot change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("cannot detach the old root"))?;
    chdir("/").map_err(failed("cannot enter the new root"))?;
    drop_privileges()
}

fn new_mount_namespace() -> Result<(), Error> {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(failed("cannot make a mount namespace")(errno)),
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(failed("cannot make user and mount namespaces"))?;
    for (file, text) in [
        ("setgroups", "deny".to_string()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, text).map_err(failed(format!("cannot write {path}")))?;
    }
    Ok(())
}

fn drop_privileges() -> Result<(), Error> {
    let keep = Capability::CAP_NET_BIND_SERVICE;
    let has = |set, capability| caps::has_cap(None, set, capability).unwrap_or(false);
    // Refused without CAP_SETPCAP, and then there is nothing to take away from what
    // no_new_privs leaves.
    if has(CapSet::Effective, Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // One that this kernel does not know is in no set.
            if capability != keep
                && caps::drop(None, CapSet::Bounding, capability).is_err()
                && has(CapSet::Bounding, capability)
            {
                let what = format!("cannot drop {capability} from the bounding set");
                return Err(Error { what, why: "it is still there".into() });
            }
        }
    }
    let kept: CapsHashSet = has(CapSet::Permitted, keep).then_some(keep).into_iter().collect();
    caps::clear(None, CapSet::Ambient).map_err(failed("cannot clear ambient capabilities"))?;
    for (set, name, value) in [
        (CapSet::Inheritable, "inheritable", &CapsHashSet::new()),
        (CapSet::Effective, "effective", &kept),
        (CapSet::Permitted, "permitted", &kept),
    ] {
        caps::set(None, set, value).map_err(failed(format!("cannot drop {name} capabilities")))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(failed("cannot set no_new_privs"))
}
