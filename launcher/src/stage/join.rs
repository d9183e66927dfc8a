//! Joining a running container: the process between `coracle exec` and the
//! program it runs. It enters the container's namespaces, starts the program
//! there as its child, and goes on as init does: forwards signals, and ends
//! with the program's exit code.
//!
//! Like init it is this program executed anew with an empty environment,
//! through the read-only mount that init was executed from. It stays in the
//! host's pid namespace, where nothing in the container can address it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use super::in_root::InRoot;
use super::workload::Filter;
use super::{init, owners, workload};
use crate::channel::{Channel, Context, Fault, ToMonitor, ToStage};
use crate::plan::Workload;
use crate::spec::Shares;
use crate::sys::process::{self, Forked};
use crate::sys::tty;

/// What the stage is told, in a memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// What to run.
    pub workload: Workload,
    /// The container has a network namespace of its own.
    pub own_network: bool,
    /// What of the host's it has.
    pub shares: Shares,
}

/// The joining stage, executed anew; `own` is the number of its channel.
pub fn main(parent: i32, own: RawFd) -> u8 {
    let Ok(channel) = Channel::adopt(own) else { return 125 };
    match join(parent, &channel) {
        Ok(program) => init::supervise(&channel, program),
        Err(fault) => {
            let code = fault.code;
            match channel.send(&ToMonitor::Failed(fault), &[]) {
                Ok(()) => code,
                Err(_) => 125,
            }
        }
    }
}

fn join(parent: i32, channel: &Channel) -> Result<i32, Fault> {
    nix::sys::prctl::set_dumpable(false).context(|| "cannot hide the joining process")?;
    let Some((ToStage::Join, fds)) = channel.receive().context(|| "cannot hear the command")?
    else {
        return Err(Fault::said("nothing to join"));
    };
    let Ok([joining, filter, target, outer]) = <[OwnedFd; 4]>::try_from(fds) else {
        return Err(Fault::said("a descriptor is missing"));
    };
    let joining: Joining = serde_json::from_reader(io::BufReader::new(File::from(joining)))
        .map_err(io::Error::from)
        .context(|| "cannot read what to run")?;
    let mut bytes = Vec::new();
    File::from(filter).read_to_end(&mut bytes).context(|| "cannot read the filter")?;
    let owners = if joining.workload.single_id { Some(keep_owners(outer)?) } else { None };
    // All at once: those of the outer user namespace are out of reach from the nested one.
    let mut namespaces =
        libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;
    for (own, namespace) in [
        (joining.own_network, libc::CLONE_NEWNET),
        (!joining.shares.ipc, libc::CLONE_NEWIPC),
        (!joining.shares.uts, libc::CLONE_NEWUTS),
    ] {
        namespaces |= if own { namespace } else { 0 };
    }
    process::join(&target, namespaces).context(|| "cannot join the container")?;
    drop(target);
    process::die_with_parent(parent).context(|| "the command is gone")?;
    process::new_session_keyring().context(|| "cannot make a keyring")?;
    umask(Mode::from_bits_truncate(0o022));
    let workload = &joining.workload;
    let slave = if workload.tty { Some(pseudo_terminal(channel)?) } else { None };
    let identity = workload::identity(workload)?;
    SigSet::all().thread_set_mask().context(|| "cannot block signals")?;
    process::bound_capabilities(workload.capabilities).context(|| "cannot give up capabilities")?;
    // The program's parent lies outside of its pid namespace: number 0.
    let program = workload::start(workload, &identity, Filter { code: &bytes, owners }, slave, 0)?;
    init::settle()?;
    channel.send(&ToMonitor::Started, &[]).context(|| "cannot reach the command")?;
    Ok(program)
}

/// Starts the stage that keeps owners: in the container's user namespace, and
/// otherwise where the host is.
fn keep_owners(outer: OwnedFd) -> Result<Channel, Fault> {
    let (theirs, ours) = Channel::pair().context(|| "cannot make a channel")?;
    let parent = std::process::id() as i32;
    match process::fork().context(|| "cannot fork")? {
        Forked::Child => {
            drop(ours);
            // The command hears of it: nobody listens to the filter then.
            let joined = process::join(outer, libc::CLONE_NEWUSER);
            process::exit_now(if joined.is_ok() { owners::main(parent, &theirs) } else { 125 })
        }
        Forked::Parent(_) => Ok(ours),
    }
}

fn pseudo_terminal(channel: &Channel) -> Result<OwnedFd, Fault> {
    let what = || "cannot open a pseudo-terminal";
    let root = InRoot::open_root("/".as_ref()).context(what)?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = root.open("/dev/pts/ptmx".as_ref(), flags).context(what)?;
    let (_, slave) = tty::open_slave(master.as_fd()).context(what)?;
    channel.send(&ToMonitor::Console, &[master.as_fd()]).context(|| "cannot reach the command")?;
    Ok(slave)
}
