//! The end of a container: what it came of, and that nothing of it is left.

use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Monitor;
use super::children::{End, Process, hung_up, reap_ended};
use crate::cgroup;
use crate::run::RunError;
use crate::stage::storage;

/// How long a service that has failed may take to say why, in milliseconds.
const LAST_WORDS: u16 = 1_000;

impl Monitor<'_> {
    /// What is behind a failure: a stage that was killed, or a service, in its
    /// own words.
    pub(super) fn last_words(&mut self, error: RunError) -> RunError {
        // The failure that led here is the one to tell.
        drop(self.hear_storage_out());
        // What failed on the way may be no more than the echo of a death; not of storage's
        // once it has done its part, unless init never heard of that.
        let unheard = matches!(&error, RunError::Stage(fault) if fault.what == storage::NO_ROOT);
        let storage = self.storage.as_mut().filter(|_| unheard || !self.progress.stored);
        let stages = [
            (storage, "storage stage"),
            (self.owners.as_mut(), "keeper of owners"),
            (self.init.as_mut(), "init"),
        ];
        for (stage, name) in stages {
            if stage.is_some_and(Process::was_killed) {
                return RunError::StageDied(name);
            }
        }
        for service in [&mut self.overlay, &mut self.netstack].into_iter().flatten() {
            let suspect = match &error {
                RunError::ServiceDied(name) => *name == service.process.name,
                // A mount whose server has died says so a moment before the server
                // can be waited for.
                RunError::Stage(fault) => {
                    let unserved = [Errno::ECONNABORTED as i32, Errno::ENOTCONN as i32];
                    (fault.what == storage::NO_ROOT || unserved.contains(&fault.errno))
                        && service.process.name == "overlayfs-fuse"
                }
                RunError::StageDied(_) => false,
                _ => continue,
            };
            let timeout = if suspect { PollTimeout::from(LAST_WORDS) } else { PollTimeout::ZERO };
            if !service.process.reap(timeout).unwrap_or(false) {
                continue;
            }
            service.listen(false);
            let said = String::from_utf8_lossy(&service.said).trim().replace('\n', "; ");
            if !said.is_empty() {
                // A program names itself in what it says; once is enough.
                let name = service.process.name;
                let own = said.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
                let said = own.unwrap_or(&said).to_owned();
                return RunError::Service { name, said };
            }
            return RunError::ServiceDied(service.process.name);
        }
        error
    }

    /// Takes what storage has said and nobody has heard: with its last message it becomes the
    /// overlay, under whose name it dies then.
    ///
    /// # Errors
    /// What it failed at.
    pub(super) fn hear_storage_out(&mut self) -> Result<(), RunError> {
        while let (Some(_), Some(channel)) = (&self.storage, &self.storage_channel) {
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO) != Ok(1) {
                break;
            }
            self.hear_storage()?;
        }
        Ok(())
    }

    /// Ends everything, whatever of it cannot be ended in order. The first
    /// failure is the one to tell.
    pub(super) fn tear_down(&mut self) -> Result<(), RunError> {
        let mut first = Ok(());
        let mut note = |result: Result<(), RunError>| {
            if first.is_ok() {
                first = result;
            }
        };
        for stage in [&mut self.storage, &mut self.init, &mut self.owners].into_iter().flatten() {
            note(stage.kill());
        }
        // What storage made and died too soon to tell of holds these, and has
        // nothing to wait for any more.
        self.storage_channel = None;
        if let Some(channel) = self.init_channel.take() {
            note(channel.finish().map_err(RunError::os("cannot close a channel")));
            note(hung_up(channel.as_fd()));
        }
        if let Some((ours, theirs)) = self.overlay_pipes.take() {
            drop((theirs, ours.exit));
            note(hung_up(ours.stderr.as_fd()));
        }
        // Both end side by side. What nobody will see need not be written back.
        if let Some(overlay) = self.overlay.as_mut().filter(|_| self.orders.discard) {
            note(overlay.process.doom());
        }
        for service in [&mut self.overlay, &mut self.netstack].into_iter().flatten() {
            service.hang_up();
        }
        for (service, loses_changes) in
            [(&mut self.overlay, !self.orders.discard), (&mut self.netstack, false)]
        {
            let Some(service) = service else { continue };
            // One that has died before is known to have.
            let known = service.process.ended.is_some();
            note(service.stop());
            service.listen(true);
            let in_order = service.process.ended == Some(End::Exited(0));
            if loses_changes && !known && !in_order {
                note(Err(RunError::ServiceDied(service.process.name)));
            }
        }
        note(reap_ended());
        if let Some(group) = self.group.take() {
            note(cgroup::remove(&group).map_err(RunError::os(format!(
                "cannot remove the control group {}",
                group.display()
            ))));
        }
        first
    }
}
