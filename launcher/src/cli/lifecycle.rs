//! `coracle stop`, `kill` and `rm`.
//!
//! A container is ended by ending its init: the kernel takes the rest of the
//! pid namespace with it, and the monitor, which waits for it, cleans up. Both
//! are held by pidfd, so that a number given to another process meanwhile is
//! never signalled.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::{for_each, parse, print};
use crate::clock;
use crate::store::{Claim, Entry, Process, State, Status, Store, StoreError};
use crate::sys::process::{pidfd_open, pidfd_signal};

/// How long the monitor gets to clean up after the container has ended.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// Stop containers.
///
/// The command gets SIGTERM, or what its image says, and SIGKILL when it has not ended in time.
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    /// Seconds until SIGKILL
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u32,

    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Send containers a signal.
#[derive(Debug, clap::Args)]
pub(super) struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse::signal)]
    signal: Signal,

    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Remove containers, with all that was changed in them.
#[derive(Debug, clap::Args)]
pub(super) struct RmArgs {
    /// Kill them first if they run
    #[arg(short, long)]
    force: bool,

    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

pub(super) fn stop(args: &StopArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let grace = Duration::from_secs(args.time.into());
    // All are asked before any is waited for, and the time runs for all at once.
    let mut asked = Vec::new();
    let mut code = for_each(&args.names, |name| {
        let running = running(&store.find(name)?)?;
        if let Some((state, init)) = &running {
            // Of a state that another version wrote it may be none of ours.
            let wanted = state.spec.stop_signal.and_then(|number| Signal::try_from(number).ok());
            signal(init, wanted.unwrap_or(Signal::SIGTERM))
                .with_context(|| format!("cannot stop container '{name}'"))?;
            asked.push((name.to_owned(), Some((state.clone(), init.try_clone()?))));
        } else {
            asked.push((name.to_owned(), None));
        }
        Ok(())
    });
    let deadline = clock::monotonic() + grace;
    for (name, running) in asked {
        let stopped = for_each(&[name], |name| {
            if let Some((state, init)) = &running {
                let left = deadline.saturating_duration_since(clock::monotonic());
                if !wait(init.as_fd(), left)? {
                    signal(init, Signal::SIGKILL)
                        .with_context(|| format!("cannot kill container '{name}'"))?;
                }
                wait_cleaned_up(name, state)?;
            }
            Ok(print(&format!("{name}\n"))?)
        });
        code = code.max(stopped);
    }
    Ok(code)
}

pub(super) fn kill(args: &KillArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    Ok(for_each(&args.names, |name| {
        let Some((_, init)) = running(&store.find(name)?)? else {
            anyhow::bail!("container '{name}' is not running");
        };
        signal(&init, args.signal)
            .with_context(|| format!("cannot send {} to container '{name}'", args.signal))?;
        Ok(print(&format!("{name}\n"))?)
    }))
}

pub(super) fn rm(args: &RmArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    Ok(for_each(&args.names, |name| {
        let entry = store.find(name)?;
        let mut claim = store.claim(&entry)?;
        if let (Claim::Live(_), true) = (&claim, args.force) {
            kill_all(&entry)?;
            claim = match store.claim(&entry) {
                // It was to remove itself.
                Err(StoreError::Unknown(_)) => return Ok(print(&format!("{name}\n"))?),
                claim => claim?,
            };
        }
        match claim {
            Claim::Live(_) => return Err(StoreError::Running(name.to_owned()).into()),
            Claim::Ours(container) => {
                let map = match entry.state() {
                    Ok(Some((state, _))) => state.map,
                    _ => crate::probe::id_map(),
                };
                container.remove(&map)?;
            }
        }
        Ok(print(&format!("{name}\n"))?)
    }))
}

/// Kills a container, however far it has got, and waits until it is gone.
fn kill_all(entry: &Entry) -> anyhow::Result<()> {
    let name = entry.name();
    let Some((state, _)) = entry.state()? else {
        anyhow::bail!("container '{name}' is just being made: try again");
    };
    if let Some((state, init)) = running(entry)? {
        signal(&init, Signal::SIGKILL)
            .with_context(|| format!("cannot kill container '{name}'"))?;
        if wait_cleaned_up(name, &state).is_ok() {
            return Ok(());
        }
    }
    // It never got to run, or its monitor hangs: the monitor's death takes all
    // the rest with it.
    let Some(monitor) = state.monitor.map(open).transpose()?.flatten() else { return Ok(()) };
    signal(&monitor, Signal::SIGKILL)
        .with_context(|| format!("cannot kill the monitor of container '{name}'"))?;
    entry.wait_released()?;
    Ok(())
}

/// State and init of a container, if it runs.
fn running(entry: &Entry) -> anyhow::Result<Option<(State, OwnedFd)>> {
    let Some((state, _)) = entry.state()? else { return Ok(None) };
    let (Status::Running, Some(init)) = (state.status, state.init) else { return Ok(None) };
    Ok(open(init)?.map(|init| (state, init)))
}

/// Takes hold of a process; `None` when it is gone.
pub(super) fn open(process: Process) -> anyhow::Result<Option<OwnedFd>> {
    match pidfd_open(process.pid) {
        // Looked at after it is held: from now on its number cannot be reused
        // unnoticed.
        Ok(pidfd) => Ok(process.exists().then_some(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open process {}", process.pid)),
    }
}

/// Sends a signal; that the process is gone is no error.
fn signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_signal(process.as_fd(), signal as i32) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}

/// Waits for a process to end; false when it did not in time.
fn wait(process: BorrowedFd<'_>, time: Duration) -> anyhow::Result<bool> {
    let deadline = clock::monotonic() + time;
    loop {
        let left = deadline.saturating_duration_since(clock::monotonic());
        let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
        // A longer wait than poll(2) takes is waited for in pieces.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for a process"),
            Ok(0) if deadline <= clock::monotonic() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
        }
    }
}

/// Waits until the monitor has cleaned up and gone.
fn wait_cleaned_up(name: &str, state: &State) -> anyhow::Result<()> {
    let Some(monitor) = state.monitor.map(open).transpose()?.flatten() else { return Ok(()) };
    if wait(monitor.as_fd(), CLEAN_UP)? {
        return Ok(());
    }
    anyhow::bail!(
        "container '{name}' has ended, but its monitor has not cleaned up in {} s",
        CLEAN_UP.as_secs()
    )
}
