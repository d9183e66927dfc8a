//! `coracle start`, `stop`, `restart`, `wait`, `kill`, `rm` and `attach`.
//!
//! A container is ended by ending its init: the kernel takes the rest of the
//! pid namespace with it, and the monitor, which waits for it, cleans up. Both
//! are held by pidfd, so that a number given to another process meanwhile is
//! never signalled. The monitor is told first, so that it does not run it again.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::choose::{self, Chosen};
use super::output::{UNREAD, Unprinted};
use super::{OWN_FAILURE, complain, for_each, parse, print, run};
use crate::attach::{self, Left, Proxy};
use crate::cgroup;
use crate::clock;
use crate::control::{Frame, Socket};
use crate::run::Mode;
use crate::store::{Claim, Entry, Process, State, Status, Store, StoreError};
use crate::sys::process::{pidfd_open, pidfd_signal};
use crate::terminal::{Caller, Keys};

/// How long the monitor gets to clean up after the container has ended.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// Seconds that `stop` gives a container, unless it says otherwise.
pub(super) const GRACE: u32 = 10;

/// How a container is left to itself.
#[derive(Debug, clap::Args)]
pub(super) struct KeysArg {
    /// Keys that leave the container to itself; '' for none
    #[arg(
        long = "detach-keys",
        value_name = "KEYS",
        default_value = "ctrl-p,ctrl-q",
        value_parser = Keys::parse
    )]
    pub(super) keys: Keys,
}

/// Start containers that were made, or have ended, with all that was changed in them.
#[derive(Debug, clap::Args)]
pub(super) struct StartArgs {
    /// Stay until it has ended, joined to its output; for one container
    #[arg(short, long)]
    attach: bool,

    /// Pass standard input on, too
    #[arg(short, long, requires = "attach")]
    interactive: bool,

    #[command(flatten)]
    keys: KeysArg,

    /// All that do not run
    #[arg(long, conflicts_with_all = ["names", "attach"])]
    all: bool,

    /// The containers
    #[arg(required_unless_present = "all", value_name = "CONTAINER")]
    names: Vec<String>,
}

/// How long a container may take to end.
#[derive(Debug, clap::Args)]
struct Grace {
    /// Seconds until SIGKILL [default: as of 'coracle run --stop-timeout', or 10]
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        value_parser = parse::count::<u32>,
        allow_negative_numbers = true
    )]
    time: Option<u32>,
}

/// Stop containers, if they run, and start them again in the background.
#[derive(Debug, clap::Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    grace: Grace,

    #[command(flatten)]
    chosen: Chosen,
}

/// Wait until containers have ended, and print their exit codes.
#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// Join standard input and output to those of a container.
///
/// For containers in the background, and those with a terminal. It ends with the
/// container, with the same exit code, or with the keys that leave it to itself.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: as of 'coracle run'; 0 when the container was left to itself."
)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    keys: KeysArg,

    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,

    /// Pass signals on to the command in the container
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    sig_proxy: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Stop containers.
///
/// The command gets SIGTERM, or what its image says, and SIGKILL when it has not ended in time.
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    grace: Grace,

    #[command(flatten)]
    chosen: Chosen,
}

/// Send containers a signal.
#[derive(Debug, clap::Args)]
pub(super) struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse::signal)]
    signal: Signal,

    #[command(flatten)]
    chosen: Chosen,
}

/// Remove containers, with all that was changed in them.
#[derive(Debug, clap::Args)]
pub(super) struct RmArgs {
    /// Kill them first if they run
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    chosen: Chosen,
}

pub(super) fn start(args: StartArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    run::sweep(&store)?;
    if !args.attach {
        let (names, code) =
            if args.all { choose::all(&store, |state| !state.active())? } else { (args.names, 0) };
        return Ok(code.max(for_each(&names, |name| {
            start_one(&store, name)?;
            Ok(print(&format!("{name}\n"))?)
        })));
    }
    let [name] = &args.names[..] else {
        anyhow::bail!("--attach is for one container, not {}", args.names.len());
    };
    let mode = Mode::Foreground { input: args.interactive, keys: args.keys.keys };
    match claim(&store, name)? {
        Some((state, container)) => Ok(crate::run::start(state, container, mode)?),
        None => anyhow::bail!("container '{name}' is running: use 'coracle attach {name}'"),
    }
}

/// Starts a container in the background, unless it runs.
fn start_one(store: &Store, name: &str) -> anyhow::Result<()> {
    let Some((state, container)) = claim(store, name)? else { return Ok(()) };
    match crate::run::start(state, container, Mode::Background)? {
        0 => Ok(()),
        // Why is told already.
        code => anyhow::bail!("container '{name}' could not be started: exit code {code}"),
    }
}

/// Takes hold of a container that does not run; `None` when it does.
fn claim(store: &Store, name: &str) -> anyhow::Result<Option<(State, crate::store::Container)>> {
    let entry = store.find(name)?;
    match store.claim(&entry)? {
        Claim::Live(_) => match entry.state()? {
            Some((state, _)) if !state.active() => anyhow::bail!(
                "container '{name}' is in use by another command (cp, commit, rm …): try again"
            ),
            _ => Ok(None),
        },
        Claim::Ours(container) => match entry.written()? {
            Some(state) => Ok(Some((state, container))),
            None => anyhow::bail!("container '{name}' was never made to its end: remove it"),
        },
    }
}

pub(super) fn restart(args: &RestartArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let removes = |state: &State| state.active() && state.spec.remove;
    let (names, code) = args.chosen.names(&store, |state| !removes(state))?;
    let all = for_each(&names, |name| match store.find(name)?.state()? {
        Some((state, _)) if removes(&state) => anyhow::bail!(
            "container '{name}' removes itself when it stops (--rm), and could not be started"
        ),
        _ => Ok(()),
    });
    if all != 0 {
        return Ok(all);
    }
    Ok(code.max(stop_all(&store, &names, args.grace.time, |name| {
        let entry = store.find(name)?;
        entry.wait_released()?;
        start_one(&store, name)
    })))
}

pub(super) fn wait_for(args: &WaitArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    // Taken hold of all at once: one may be gone before another has ended.
    let mut watched = Vec::new();
    let code = for_each(&args.names, |name| {
        let entry = store.find(name)?;
        let watch = entry.watch();
        let written = entry.state()?.map(|(state, _)| state.status);
        if written == Some(Status::Created) {
            anyhow::bail!("container '{name}' has not been started: there is no end to wait for");
        }
        watched.push((name.to_owned(), written, watch));
        Ok(())
    });
    let mut code = code;
    for (name, written, watch) in watched {
        let mut watch = Some(watch);
        let waited = for_each(&[name], |name| {
            // Those who run leave it when they end, whatever becomes of their state.
            let code = match (written, watch.take()) {
                (Some(Status::Exited { code }), _) => Some(code),
                (Some(Status::Lost), _) | (_, None) => None,
                (_, Some(watch)) => watch.wait()?,
            };
            match code {
                Some(code) => Ok(print(&format!("{code}\n"))?),
                None => anyhow::bail!(
                    "nobody knows the exit code of container '{name}': its monitor was killed"
                ),
            }
        });
        code = code.max(waited);
        // There is nobody to be told of the others.
        if waited == UNREAD || waited == OWN_FAILURE {
            break;
        }
    }
    Ok(code)
}

pub(super) fn attach(args: AttachArgs) -> anyhow::Result<u8> {
    let name = &args.name;
    let entry = Store::open()?.find(name)?;
    let state = match entry.state()? {
        Some((state, _)) if state.active() => state,
        _ => anyhow::bail!("container '{name}' is not running: use 'coracle start -a {name}'"),
    };
    let Some(socket) = connect(&entry)? else {
        anyhow::bail!("container '{name}' has just ended");
    };
    socket.send(&Frame::Attach).context("cannot reach the container's monitor")?;
    match socket.receive().context("cannot hear the container's monitor")? {
        Some(Frame::Attached) => {}
        Some(Frame::NotAttachable) => anyhow::bail!(
            "input and output of container '{name}' are those of the command that runs it: only \
             containers in the background, or with a terminal, can be attached to"
        ),
        _ => anyhow::bail!("container '{name}' has just ended"),
    }
    let input = !args.no_stdin && state.spec.interactive;
    let caller = Caller::new(input).context("cannot use the terminal")?;
    let proxy = if args.sig_proxy { Proxy::Attached } else { Proxy::None };
    match attach::join(&socket, caller, args.keys.keys, proxy)? {
        Left::Detached => Ok(0),
        Left::Unheard(errno) => Err(Unprinted::decode(errno as i32).into()),
        Left::Ended(ended) => {
            if let Some(message) = ended.message {
                complain(message);
            }
            Ok(ended.code)
        }
        Left::Lost => anyhow::bail!("the monitor of container '{name}' died unexpectedly"),
    }
}

fn connect(entry: &Entry) -> anyhow::Result<Option<Socket>> {
    Socket::connect(entry.dir())
        .with_context(|| format!("cannot reach the monitor of container '{}'", entry.name()))
}

/// Has the monitor not run a container again. Returns whether its workload runs,
/// and is to be ended; else it ends by itself.
fn quit(entry: &Entry) -> anyhow::Result<bool> {
    let Some(socket) = connect(entry)? else { return Ok(true) };
    if socket.send(&Frame::Quit).is_err() {
        return Ok(true);
    }
    if !wait(socket.as_fd(), CLEAN_UP)? {
        anyhow::bail!("the monitor of container '{}' does not answer", entry.name());
    }
    match socket.receive() {
        Ok(Some(Frame::Quitting(running))) => Ok(running),
        // It has just ended.
        _ => Ok(true),
    }
}

pub(super) fn stop(args: &StopArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let (names, code) = args.chosen.names(&store, State::active)?;
    Ok(code.max(stop_all(&store, &names, args.grace.time, |_| Ok(()))))
}

/// Stops containers, does something with each, and prints its name.
fn stop_all(
    store: &Store,
    names: &[String],
    seconds: Option<u32>,
    mut then: impl FnMut(&str) -> anyhow::Result<()>,
) -> u8 {
    // All are asked before any is waited for, and the time runs for all at once.
    let mut asked = Vec::new();
    let mut code = for_each(names, |name| {
        let entry = store.find(name)?;
        let state = entry.state()?.map(|(state, _)| state).filter(State::active);
        let mut init = None;
        if state.is_some()
            && quit(&entry)?
            && let Some((state, running)) = running(&entry)?
        {
            // Frozen it could not even handle the signal.
            if let Some(group) = state.group.as_ref().filter(|_| state.is_paused()) {
                cgroup::freeze(group, false)
                    .with_context(|| format!("cannot let container '{name}' go on"))?;
            }
            // Of a state that another version wrote it may be none of ours.
            let wanted = state.spec.stop_signal.and_then(|number| Signal::try_from(number).ok());
            signal(&running, wanted.unwrap_or(Signal::SIGTERM))
                .with_context(|| format!("cannot stop container '{name}'"))?;
            init = Some(running);
        }
        let own = state.as_ref().and_then(|state| state.spec.stop_timeout);
        let seconds = seconds.or(own).unwrap_or(GRACE);
        asked.push((name.to_owned(), state, init, Duration::from_secs(seconds.into())));
        Ok(())
    });
    let began = clock::monotonic();
    for (name, state, init, grace) in asked {
        let stopped = for_each(&[name], |name| {
            if let Some(init) = &init {
                let left = grace.saturating_sub(clock::monotonic() - began);
                if !wait(init.as_fd(), left)? {
                    signal(init, Signal::SIGKILL)
                        .with_context(|| format!("cannot kill container '{name}'"))?;
                }
            }
            if let Some(state) = &state {
                wait_cleaned_up(name, state)?;
            }
            then(name)?;
            Ok(print(&format!("{name}\n"))?)
        });
        code = code.max(stopped);
    }
    code
}

pub(super) fn kill(args: &KillArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let (names, code) = args.chosen.names(&store, |state| state.status == Status::Running)?;
    Ok(code.max(for_each(&names, |name| {
        let entry = store.find(name)?;
        let Some((state, _)) = running(&entry)? else {
            anyhow::bail!("container '{name}' is not running");
        };
        // What ends it, or asks it to end, is meant to last.
        let stops = state.spec.stop_signal.unwrap_or(libc::SIGTERM);
        if args.signal == Signal::SIGKILL || args.signal as i32 == stops {
            quit(&entry)?;
        }
        let Some((_, init)) = running(&entry)? else { return Ok(print(&format!("{name}\n"))?) };
        signal(&init, args.signal)
            .with_context(|| format!("cannot send {} to container '{name}'", args.signal))?;
        Ok(print(&format!("{name}\n"))?)
    })))
}

pub(super) fn rm(args: &RmArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let (names, code) = args.chosen.names(&store, |_| true)?;
    Ok(code.max(for_each(&names, |name| {
        remove(&store, name, args.force)?;
        Ok(print(&format!("{name}\n"))?)
    })))
}

/// Removes a container; one that runs only by `force`.
pub(super) fn remove(store: &Store, name: &str, force: bool) -> anyhow::Result<()> {
    let entry = store.find(name)?;
    let mut claim = store.claim(&entry)?;
    if let (Claim::Live(_), true) = (&claim, force) {
        kill_all(&entry)?;
        claim = match store.claim(&entry) {
            // It was to remove itself.
            Err(StoreError::Unknown(_)) => return Ok(()),
            claim => claim?,
        };
    }
    match claim {
        Claim::Live(_) => Err(StoreError::Running(name.to_owned()).into()),
        Claim::Ours(container) => {
            let map = match entry.written() {
                Ok(Some(state)) => state.map,
                _ => crate::probe::id_map(),
            };
            Ok(container.remove(&map)?)
        }
    }
}

/// Kills a container, however far it has got, and waits until it is gone.
fn kill_all(entry: &Entry) -> anyhow::Result<()> {
    let name = entry.name();
    let Some((state, _)) = entry.state()? else {
        anyhow::bail!("container '{name}' is just being made: try again");
    };
    if !state.active() {
        // Somebody else removes it, or starts it.
        entry.wait_released()?;
        return Ok(());
    }
    // One that does not answer is killed with its monitor, below.
    let ends = match quit(entry) {
        Ok(true) => match running(entry)? {
            Some((_, init)) => {
                signal(&init, Signal::SIGKILL)
                    .with_context(|| format!("cannot kill container '{name}'"))?;
                true
            }
            None => false,
        },
        Ok(false) => true,
        Err(_) => false,
    };
    if ends && wait_cleaned_up(name, &state).is_ok() {
        return Ok(());
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
