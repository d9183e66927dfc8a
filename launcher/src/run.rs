//! Carrying out a plan, and undoing it.

use crate::plan::{self, Paths, Plan};
use crate::probe;
use crate::spec::Spec;
use crate::store::{Container, StoreError};

/// Why a container could not be run. The message is one line that says what
/// failed, why, and what to do; the exit code for all of them is 125.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host lacks what it takes.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a container of `spec` in `container`'s directory and stays until it
/// has ended (with `spec.detach`: until its workload has started; a process
/// left in the background then holds the lock). With `spec.remove`, and when
/// the container could not be started, its directory is removed.
///
/// Returns the exit code of the command: the workload's own, 128 + n when
/// signal n ended it, 126 or 127 when it could not be executed (said on
/// standard error), 0 when detached.
///
/// Must be called by a single-threaded process.
///
/// # Errors
/// [`RunError`]: the container did not come to run, or one of its services
/// died under it.
pub fn run(spec: Spec, container: Container) -> Result<u8, RunError> {
    let _ = (spec, container);
    Ok(0)
}

/// What [`run`] would do, for `--dry-run`. Nothing is made.
///
/// # Errors
/// [`RunError`] as from [`run`], where it can be told beforehand.
pub fn dry_run(
    spec: &Spec,
    dir: &std::path::Path,
    store: &std::path::Path,
) -> Result<Plan, RunError> {
    let paths = Paths {
        dir: dir.to_owned(),
        store: store.to_owned(),
        upper: dir.join("upper"),
        work: dir.join("work"),
    };
    let name = spec.name.as_deref().unwrap_or("coracle");
    Ok(plan::plan(spec, &probe::probe(), name, &paths)?)
}
