//! The root filesystem of a container that does not run, mounted for as long as
//! something is done with it: in namespaces that only the doer sees.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::plan::Plan;
use crate::spawn::{self, Service, Theirs};
use crate::stage::in_root::InRoot;
use crate::stage::storage::{self, carry_out};

/// Mounts it at `merged` as `plan` says, does `work` with it, and has what was changed
/// written back. To be called as root of a user namespace with the container's ids, in
/// a mount namespace of its own.
pub(super) fn with_root<T>(
    plan: &Plan,
    merged: &Path,
    work: impl FnOnce(InRoot) -> Result<T, String>,
) -> Result<T, String> {
    let told = |what: &str, error: io::Error| format!("{what}: {error}");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| told("cannot make mounts private", errno.into()))?;
    for step in &plan.storage {
        carry_out(step).map_err(|fault| fault.to_string())?;
    }
    let opened = || InRoot::open_root(merged).map_err(|error| told("cannot open the root", error));
    let Some((program, arguments, dir)) = storage::overlay(plan) else {
        // By the kernel: it goes with the namespace, and writes back then.
        return opened().and_then(work);
    };
    let (exit, tell_exit) = io::pipe().map_err(|error| told("cannot make a pipe", error))?;
    // In memory: nobody reads it meanwhile.
    let said = memfd_create(c"overlay", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| told("cannot make a file in memory", errno.into()))?;
    let stderr = said.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let pipes = Theirs { exit: exit.into(), stderr };
    let service = Service { program, arguments: &arguments, dir, inherited: &[] };
    let mut overlay = service
        .start(&pipes)
        .map_err(|error| told(&format!("cannot start {}", program.display()), error))?;
    drop(pipes);
    let mounted = spawn::wait_ready(&mut overlay.ready).is_ok();
    let done = mounted.then(|| opened().and_then(work));
    // Its hang-up: all is written back, then the overlay ends.
    drop(tell_exit);
    let ended = loop {
        match waitpid(Pid::from_raw(overlay.pid), None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other,
        }
    };
    match (done, ended) {
        (Some(done), Ok(WaitStatus::Exited(_, 0))) => done,
        (Some(Err(why)), _) if !why.is_empty() => Err(why),
        _ => {
            let mut text = String::new();
            let mut said = File::from(said);
            said.rewind()
                .and_then(|()| said.read_to_string(&mut text))
                .map_err(|error| told("overlayfs-fuse failed", error))?;
            Err(format!("overlayfs-fuse failed: {}", text.trim().replace('\n', "; ")))
        }
    }
}
