//! The beginning of a container: its storage stage, in its user namespace, made before
//! it is known what it will be for.
//!
//! # Theory of operation
//!
//! The namespaces are made by the fork itself, so the map helpers can be started at once.
//! From then on three go on side by side: the helpers, the new process (which executes
//! the program anew and waits for the plan), and the monitor, which finds out what is
//! wanted and makes the container's directory. When nothing comes of that, all of it goes
//! with the value.
//!
//! The process is a child of the one that calls: this must be the monitor.

use nix::sys::signal::{SigSet, SigmaskHow};

use super::FORWARDED;
use super::children::Process;
use crate::channel::{Channel, Context};
use crate::idmap::IdMap;
use crate::run::RunError;
use crate::spawn::{Ours, Pipes, Theirs};
use crate::stage::storage;
use crate::sys::process::{self, Forked};
use crate::sys::userns::{self, Maps};

use super::Streams;

/// See the module's theory of operation.
#[derive(Debug)]
pub struct Cradle {
    storage: Option<Process>,
    maps: Option<Maps>,
    channels: Option<Channels>,
}

/// What leads to the stages.
#[derive(Debug)]
pub(super) struct Channels {
    /// To storage.
    pub(super) storage: Channel,
    /// To init, which storage makes.
    pub(super) init: Channel,
    /// To and from the overlay.
    pub(super) overlay: (Ours, Theirs),
}

impl Cradle {
    /// Makes it, with the ids of `map` and these standard streams. The calling process must
    /// have one thread only.
    ///
    /// # Errors
    /// When user namespaces cannot be made, or the map helpers not be started.
    pub fn start(map: &IdMap, streams: &Streams) -> Result<Self, RunError> {
        let channel = || Channel::pair().map_err(RunError::os("cannot make a channel"));
        let (own, theirs) = channel()?;
        let (init, init_theirs) = channel()?;
        let Pipes { ours, theirs: overlay_theirs } =
            Pipes::new().map_err(RunError::os("cannot make a pipe"))?;
        let monitor = std::process::id() as i32;
        // What the caller's terminal sends to all of its group is for the monitor alone, from
        // the child's first moment; the monitor may not be ready for it yet.
        let signals: SigSet = FORWARDED.into_iter().collect();
        let old = signals
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(RunError::os("cannot block signals"))?;
        let forked = process::fork_into(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
        if let Ok(Forked::Child) = forked {
            drop((own, init, ours, overlay_theirs));
            storage::enter(monitor, streams, &theirs, &init_theirs);
        }
        old.thread_set_mask().map_err(RunError::os("cannot restore the signal mask"))?;
        let pid = match forked.context(|| {
            "cannot make a user namespace (allow them with sysctl user.max_user_namespaces, \
             kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns)"
        }) {
            Ok(Forked::Parent(pid)) => pid,
            Ok(Forked::Child) => unreachable!("the child has gone its own way"),
            Err(fault) => return Err(RunError::Stage(fault)),
        };
        let mut cradle = Self { storage: None, maps: None, channels: None };
        let storage = cradle.storage.insert(Process::open("storage", pid)?);
        // The files of a process that has just been killed are nobody's any more, which is
        // no word about the maps.
        let maps = userns::start_maps(pid, map).map_err(|error| match storage.was_killed() {
            true => RunError::StageDied("storage stage"),
            false => error.into(),
        });
        cradle.maps = Some(maps?);
        let overlay = (ours, overlay_theirs);
        cradle.channels = Some(Channels { storage: own, init, overlay });
        Ok(cradle)
    }

    /// Hands everything over.
    pub(super) fn open(mut self) -> (Option<Process>, Option<Channels>, Option<Maps>) {
        (self.storage.take(), self.channels.take(), self.maps.take())
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        if let Some(storage) = &mut self.storage {
            // Why nothing comes of it is told elsewhere.
            drop(storage.kill());
        }
    }
}
