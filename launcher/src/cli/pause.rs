//! `coracle pause` and `unpause`.
//!
//! By the freezer of control groups alone. Stopping all processes by signals
//! would look the same from afar and is not: their parents are told, whoever may
//! send SIGCONT undoes it, and what was stopped before is woken by it.

use std::path::PathBuf;

use anyhow::Context as _;

use super::choose::Chosen;
use super::{for_each, print};
use crate::cgroup;
use crate::store::{State, Status, Store};

/// Freeze all processes of containers.
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// Let paused containers go on.
#[derive(Debug, clap::Args)]
pub(super) struct UnpauseArgs {
    #[command(flatten)]
    chosen: Chosen,
}

pub(super) fn pause(args: &PauseArgs) -> anyhow::Result<u8> {
    each(&args.chosen, true)
}

pub(super) fn unpause(args: &UnpauseArgs) -> anyhow::Result<u8> {
    each(&args.chosen, false)
}

fn each(chosen: &Chosen, frozen: bool) -> anyhow::Result<u8> {
    let store = Store::open()?;
    // One that stands still may do so for a commit, and be to pause, or not, after it.
    let wanted = |state: &State| {
        if frozen { state.status == Status::Running } else { state.is_paused() }
    };
    let (names, code) = chosen.names(&store, wanted)?;
    Ok(code.max(for_each(&names, |name| {
        let group = group(&store, name)?;
        let verb = if frozen { "pause" } else { "unpause" };
        let what = || format!("cannot {verb} container '{name}' ({})", group.display());
        // A commit that has it paused comes to its end first.
        let _lock = cgroup::lock(&group).with_context(what)?;
        let now = cgroup::is_frozen(&group);
        if now == frozen {
            if chosen.all {
                return Ok(());
            }
            anyhow::bail!("container '{name}' is {} paused", if now { "already" } else { "not" });
        }
        cgroup::freeze(&group, frozen).with_context(what)?;
        Ok(print(&format!("{name}\n"))?)
    })))
}

fn group(store: &Store, name: &str) -> anyhow::Result<PathBuf> {
    let Some((state, _)) = store.find(name)?.state()? else {
        anyhow::bail!("container '{name}' is just being made: try again");
    };
    if state.status != Status::Running {
        anyhow::bail!("container '{name}' is not running");
    }
    let group = state.group.filter(|group| group.is_dir());
    group.with_context(|| {
        format!(
            "container '{name}' has no control group to be frozen in: no group of version 2 was \
             delegated to whoever started it; start it with 'systemd-run --user --scope -p \
             Delegate=yes coracle …'"
        )
    })
}
