//! Carrying out a plan, and undoing it: the whole of a container's life, as
//! the command `coracle run` sees it.
//!
//! In the foreground this process is the monitor itself. Detached, a process
//! forked from it is: it leads a session of its own, its input is /dev/null
//! and its output the container's log; it tells this one through a pipe when
//! the workload runs, or why it does not. With a terminal the monitor is such a
//! process, too, and this one is attached to it.

mod error;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signalfd::SignalFd;
use serde::{Deserialize, Serialize};

pub use error::RunError;

use crate::attach::{self, Left, Proxy};
use crate::cgroup;
use crate::clock;
use crate::control::{self, Frame, Socket};
use crate::idmap::IdMap;
use crate::plan::{self, MonitorStep, Paths, Plan};
use crate::policy::seccomp::Source;
use crate::probe;
use crate::spec::{self, Network, Root, Spec, Upper};
use crate::stage::monitor::{self, Console, Cradle, Orders, Streams, say};
use crate::store::log::Log;
use crate::store::{Container, Process, State, Status};
use crate::sys::fd;
use crate::sys::process::{self, Forked};
use crate::terminal::{Caller, Keys};

/// How a container is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The command returns once the workload runs; a process left in the
    /// background then holds the lock.
    Background,
    /// The command stays until the container has ended. With a terminal it is
    /// left by these keys before.
    Foreground {
        /// Standard input is passed on.
        input: bool,
        /// As of [`crate::terminal::Keys`].
        keys: Keys,
    },
}

/// Makes a container of `spec` in `container`'s directory and runs it. With
/// `spec.remove`, and when the container could not be started, its directory is
/// removed.
///
/// Returns the exit code of the command: the workload's own, 128 + n when
/// signal n ended it, 126 or 127 when it could not be executed (said on
/// standard error), 0 when it is left in the background.
///
/// `early` is what was begun for it before.
///
/// Must be called by a single-threaded process.
///
/// # Errors
/// [`RunError`]: the container did not come to run, or one of its services
/// died under it.
pub fn run(
    spec: Spec,
    container: Container,
    mode: Mode,
    early: Option<Early>,
) -> Result<u8, RunError> {
    let (map, cradle) = match early {
        Some(Early { map, cradle }) => (map, Some(cradle)),
        None => (probe::id_map(), None),
    };
    let state = State::new(spec, map.clone(), clock::unix_seconds());
    match Life::planned(state, container) {
        Ok(life) => Life { cradle, ..life }.begin(mode),
        Err(unplanned) => Err(undone(*unplanned, &map)),
    }
}

/// A container that was begun before it was known what it will be.
#[derive(Debug)]
pub struct Early {
    map: IdMap,
    cradle: Cradle,
}

impl Early {
    /// Begins one that will run in the foreground without a terminal, `input` being passed
    /// on or not.
    ///
    /// Must be called by a single-threaded process.
    ///
    /// # Errors
    /// As of [`Cradle::start`].
    pub fn begin(input: bool) -> Result<Self, RunError> {
        let map = probe::id_map();
        let cradle = Cradle::start(&map, &in_front(input)?)?;
        Ok(Self { map, cradle })
    }
}

/// The streams of a workload in front without a terminal.
fn in_front(input: bool) -> Result<Streams, RunError> {
    let input = if input { None } else { Some(null()?) };
    Ok(Streams { input, output: None })
}

fn null() -> Result<OwnedFd, RunError> {
    File::open("/dev/null").map(OwnedFd::from).map_err(RunError::os("cannot open /dev/null"))
}

/// Makes a container of `spec` in `container`'s directory, to be started later.
///
/// # Errors
/// [`RunError`], as far as it can be told beforehand that it could not run.
pub fn create(spec: Spec, container: Container) -> Result<(), RunError> {
    let map = probe::id_map();
    let state = State { kept: true, ..State::new(spec, map.clone(), clock::unix_seconds()) };
    let life = match Life::planned(state, container) {
        Ok(life) => life,
        Err(unplanned) => return Err(undone(*unplanned, &map)),
    };
    match life.container.record(&life.state) {
        Ok(()) => Ok(()),
        Err(error) => Err(undone((error.into(), life.container), &map)),
    }
}

/// Runs a container that was made before, or has run before, with all that was
/// changed in it.
///
/// # Errors
/// As of [`run`]; the container stays as it was when it cannot even be tried.
pub fn start(state: State, container: Container, mode: Mode) -> Result<u8, RunError> {
    // The ids may be others by now.
    let map = probe::id_map();
    let state =
        State { kept: true, map, started: None, finished: None, error: None, restarts: 0, ..state };
    Life::planned(state, container).map_err(|unplanned| unplanned.0)?.begin(mode)
}

/// Why a container cannot be run, and its directory.
type Unplanned = Box<(RunError, Container)>;

/// Removes what was made for nothing.
fn undone((error, container): (RunError, Container), map: &IdMap) -> RunError {
    // The first failure is the one to tell; the next start removes what stays.
    if let Err(also) = container.remove(map) {
        say(&RunError::from(also).line());
    }
    error
}

/// A workload that cannot be executed is its own failure, said and not ours.
pub(crate) fn spoken(result: Result<u8, RunError>) -> Result<u8, RunError> {
    match result {
        Err(error) if error.code() != 125 => {
            say(&error.line());
            Ok(error.code())
        }
        result => result,
    }
}

/// What [`run`] would do, for `--dry-run`. Nothing is made.
///
/// # Errors
/// [`RunError`] as from [`run`], where it can be told beforehand.
pub fn dry_run(spec: &Spec, dir: &Path, store: &Path) -> Result<Plan, RunError> {
    let paths = Paths {
        dir: dir.to_owned(),
        store: resolved(store),
        upper: dir.join("upper"),
        work: dir.join("work"),
    };
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.as_deref().unwrap_or("coracle");
    let host = probe::probe(probe::id_map(), spec.network == Network::Netstack);
    Ok(plan::plan(&inputs(spec.clone(), false)?, &host, name, &paths)?)
}

fn resolved(path: &Path) -> PathBuf {
    // It is looked up again when it is hidden; what is not there needs no hiding.
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Looks at what the spec names on the host; its paths become absolute and
/// free of links. `make`: a missing directory for changes is made.
fn inputs(mut spec: Spec, make: bool) -> Result<Spec, RunError> {
    let look = |what, path: &Path, directory: bool| {
        let input = |source| RunError::Input { what, path: path.to_owned(), source };
        let found = fs::canonicalize(path).map_err(input)?;
        if directory {
            // Says what is wrong with it (no directory, not readable).
            fs::read_dir(&found).map_err(input)?;
        }
        Ok::<_, RunError>(found)
    };
    if let Root::Dir(dir) = &mut spec.root {
        *dir = look("cannot use the root filesystem", dir, true)?;
    }
    if let Upper::Dir(dir) = &mut spec.upper
        && (make || dir.exists())
    {
        fs::create_dir_all(&*dir).map_err(|source| RunError::Input {
            what: "cannot make the directory for changes",
            path: dir.clone(),
            source,
        })?;
        *dir = look("cannot use the directory for changes", dir, true)?;
    }
    for secret in &mut spec.memory.secrets {
        secret.source = look("cannot use the secret", &secret.source, false)?;
    }
    for volume in &mut spec.volumes {
        volume.source = look("cannot use the volume", &volume.source, false)?;
    }
    Ok(spec)
}

/// What a background monitor tells the command that made it.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Started,
    Failed { message: String, code: u8 },
}

struct Life {
    state: State,
    container: Container,
    plan: Plan,
    /// What was begun for the first run.
    cradle: Option<Cradle>,
    /// The workload has run since the command began.
    ran: bool,
}

/// A run of this length is no failure to start, after which the next start waits longer.
const STEADY: Duration = Duration::from_secs(10);

impl Life {
    fn planned(mut state: State, container: Container) -> Result<Self, Unplanned> {
        let network = state.spec.network == Network::Netstack;
        let host = probe::probe(state.map.clone(), network);
        let paths = Paths {
            dir: container.dir.clone(),
            store: resolved(&container.store),
            upper: container.upper(),
            work: container.work(),
        };
        let prepared = inputs(state.spec.clone(), true)
            .and_then(|spec| Ok((plan::plan(&spec, &host, &container.name, &paths)?, spec)));
        match prepared {
            Ok((plan, spec)) => {
                state.spec = spec;
                state.confinement = plan.workload.confinement.clone();
                Ok(Self { state, container, plan, cradle: None, ran: false })
            }
            Err(error) => Err(Box::new((error, container))),
        }
    }

    fn begin(self, mode: Mode) -> Result<u8, RunError> {
        if self.plan.map.is_single() {
            say(
                "no subordinate ids for this user in /etc/subuid and /etc/subgid: only root exists \
                 in the container",
            );
        }
        for lacking in &self.plan.lacking {
            say(&format!("warning: {lacking}"));
        }
        for step in &self.plan.monitor {
            if let MonitorStep::Group { parent, leave: true, .. } = step
                && let Err(error) = cgroup::leave(parent)
            {
                let group = parent.display();
                say(&format!("warning: cannot leave the control group {group}: {error}"));
            }
        }
        match mode {
            Mode::Background => self.in_background(),
            Mode::Foreground { input, keys } if self.state.spec.tty => {
                spoken(self.with_terminal(input, keys))
            }
            Mode::Foreground { input, .. } => {
                let console = match Console::open(&self.container.dir) {
                    Ok(console) => console,
                    Err(error) => return Err(self.never_lived(error)),
                };
                spoken(self.live(Some(input), console, &mut |_| Ok(())))
            }
        }
    }

    /// The error, after what was made for a container that never ran is gone.
    fn never_lived(self, error: RunError) -> RunError {
        if self.state.kept { error } else { undone((error, self.container), &self.plan.map) }
    }

    /// The container's whole life; `started` is called when its workload runs.
    /// `front` is there when this process is the command in front, and says
    /// whether its input is passed on.
    fn live(
        mut self,
        front: Option<bool>,
        mut console: Console,
        started: &mut dyn FnMut(i32) -> Result<(), RunError>,
    ) -> Result<u8, RunError> {
        let lived = self.runs(front, &mut console, started);
        let code = lived.as_ref().map_or_else(RunError::code, |code| *code);
        let Self { mut state, container, plan, ran, .. } = self;
        let left = container.leave_code(Some(code));
        let tidied = if state.kept && !(ran && state.spec.remove) {
            state.status = Status::Exited { code };
            state.init = None;
            state.finished = Some(clock::unix_seconds());
            state.error = lived.as_ref().err().map(RunError::line);
            container.record(&state)
        } else {
            container.remove(&plan.map)
        };
        let lived = match (lived, tidied.and(left)) {
            (Ok(code), Ok(())) => Ok(code),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), tidied) => {
                // The first failure is the one to tell, and the cause.
                if let Err(also) = tidied {
                    say(&RunError::from(also).line());
                }
                Err(error)
            }
        };
        console.end(&control::Ended {
            code: lived.as_ref().map_or_else(RunError::code, |code| *code),
            message: lived.as_ref().err().map(RunError::line),
        });
        lived
    }

    /// Runs it, and again as long as it is to be.
    fn runs(
        &mut self,
        front: Option<bool>,
        console: &mut Console,
        started: &mut dyn FnMut(i32) -> Result<(), RunError>,
    ) -> Result<u8, RunError> {
        let signals = monitor::signals()?;
        self.container.leave_code(None)?;
        self.state.monitor = Process::of(std::process::id() as i32).ok();
        let mut failures = 0;
        loop {
            let began = clock::monotonic();
            let lived = self.once(front, console, &signals, started);
            let code = lived.as_ref().map_or_else(RunError::code, |code| *code);
            let again = self.state.spec.restart.again(code, self.state.restarts);
            if !self.ran || console.quits() || !again {
                return lived;
            }
            if let Err(error) = &lived {
                say(&error.line());
            }
            if clock::monotonic().saturating_duration_since(began) >= STEADY {
                failures = 0;
            }
            self.state.status = Status::Restarting { code };
            self.state.init = None;
            self.state.finished = Some(clock::unix_seconds());
            self.state.error = lived.as_ref().err().map(RunError::line);
            self.container.record(&self.state)?;
            if !console.pause(&signals, spec::back_off(failures))? {
                return lived;
            }
            failures += 1;
            self.state.restarts += 1;
        }
    }

    fn once(
        &mut self,
        front: Option<bool>,
        console: &mut Console,
        signals: &SignalFd,
        started: &mut dyn FnMut(i32) -> Result<(), RunError>,
    ) -> Result<u8, RunError> {
        let Self { state, container, plan, cradle, ran } = self;
        state.status = Status::Starting;
        state.group = plan.monitor.iter().find_map(|step| match step {
            MonitorStep::Group { parent, name, .. } => Some(parent.join(name)),
            _ => None,
        });
        container.record(state)?;
        let cradle = match cradle.take() {
            Some(early) => early,
            None => {
                let streams = match front {
                    _ if state.spec.tty => {
                        let output = File::options().write(true).open("/dev/null");
                        let output = output.map_err(RunError::os("cannot open /dev/null"))?;
                        Streams { input: Some(null()?), output: Some(output.into()) }
                    }
                    None => console
                        .streams(state.spec.interactive)
                        .map_err(RunError::os("cannot make input and output"))?,
                    Some(input) => in_front(input)?,
                };
                // Theirs alone from here on: what they print has an end.
                Cradle::start(&plan.map, &streams)?
            }
        };
        let cache = container.store.join("cache");
        let security = state.spec.security.clone();
        let source = Source {
            seccomp: &security.seccomp,
            capabilities: security.capabilities,
            deny: &security.deny,
            single_id: plan.map.is_single(),
        };
        let filter = || Ok(source.cached(&cache)?);
        let log = container.log();
        let discard = state.spec.remove && !matches!(state.spec.upper, Upper::Dir(_));
        let orders = Orders {
            plan,
            filter: &filter,
            discard,
            started: &mut |init, overlay| {
                state.init = Process::of(init).ok();
                state.overlay = overlay.and_then(|overlay| Process::of(overlay).ok());
                state.status = Status::Running;
                state.started = Some(clock::unix_seconds());
                state.finished = None;
                state.error = None;
                state.kept = true;
                *ran = true;
                if let Some(path) = &state.spec.pid_file {
                    fs::write(path, format!("{init}\n")).map_err(RunError::os(format!(
                        "cannot write the pid file {}",
                        path.display()
                    )))?;
                }
                container.record(state)?;
                started(init)
            },
            console,
            signals,
            background: &mut |console| {
                console.log_to(background(&log)?);
                Ok(())
            },
        };
        Ok(monitor::supervise(orders, cradle)?.code)
    }

    fn in_background(self) -> Result<u8, RunError> {
        let (mut report, tell) = io::pipe().map_err(RunError::os("cannot make a pipe"))?;
        match process::fork().map_err(RunError::os("cannot fork"))? {
            Forked::Parent(_) => {
                drop(tell);
                let mut bytes = Vec::new();
                report
                    .read_to_end(&mut bytes)
                    .map_err(RunError::os("cannot hear the background process"))?;
                match serde_json::from_slice(&bytes) {
                    Ok(Report::Started) => Ok(0),
                    Ok(Report::Failed { message, code: 125 }) => Err(RunError::Background(message)),
                    Ok(Report::Failed { message, code }) => {
                        say(&message);
                        Ok(code)
                    }
                    Err(_) => Err(RunError::StageDied("monitor")),
                }
            }
            Forked::Child => {
                drop(report);
                let mut tell = Some(tell);
                let opened = leave_session().and_then(|()| {
                    let mut console = Console::open(&self.container.dir)?;
                    console.log_to(background(&self.container.log())?);
                    Ok(console)
                });
                let lived = match opened {
                    Ok(console) => self.live(None, console, &mut |_| {
                        if let Some(tell) = tell.take() {
                            send(tell, &Report::Started)?;
                        }
                        Ok(())
                    }),
                    Err(error) => Err(self.never_lived(error)),
                };
                let code = match (lived, tell) {
                    (Ok(code), None) => code,
                    (Ok(code), Some(tell)) => {
                        let message = "interrupted before the workload ran".to_owned();
                        drop(send(tell, &Report::Failed { message, code }));
                        code
                    }
                    (Err(error), Some(tell)) => {
                        let (message, code) = (error.line(), error.code());
                        // Without a listener the exit code is all there is.
                        drop(send(tell, &Report::Failed { message, code }));
                        code
                    }
                    (Err(error), None) => {
                        say(&error.line());
                        error.code()
                    }
                };
                process::exit_now(code)
            }
        }
    }

    /// The monitor is a process of its own, and this one is attached to it: so
    /// the terminal can be left, and is put back whichever of the two is killed.
    fn with_terminal(self, input: bool, keys: Keys) -> Result<u8, RunError> {
        let (ours, theirs) = Socket::pair().map_err(RunError::os("cannot make a channel"))?;
        let caller = Caller::new(input).map_err(RunError::os("cannot use the terminal"))?;
        match process::fork().map_err(RunError::os("cannot fork"))? {
            Forked::Parent(pid) => {
                // The monitor's alone now.
                drop((self, theirs));
                let left = attach::join(&ours, caller, keys, Proxy::All)?;
                drop(ours);
                match left {
                    Left::Detached => Ok(0),
                    Left::Unheard(errno) => Err(attach::unprinted(errno)),
                    Left::Lost => {
                        process::reap(pid);
                        Err(RunError::StageDied("monitor"))
                    }
                    Left::Ended(ended) => {
                        process::reap(pid);
                        match ended.message {
                            Some(message) if ended.code == 125 => {
                                Err(RunError::Background(message))
                            }
                            Some(message) => {
                                say(&message);
                                Ok(ended.code)
                            }
                            None => Ok(ended.code),
                        }
                    }
                }
            }
            Forked::Child => {
                drop(ours);
                let settings = caller.settings();
                let opened = leave_session().and_then(|()| Console::open(&self.container.dir));
                let mut console = match opened {
                    Ok(console) => console,
                    Err(error) => {
                        let error = self.never_lived(error);
                        let (code, message) = (error.code(), Some(error.line()));
                        // Nobody else is there to be told.
                        drop(theirs.send(&Frame::Ended(control::Ended { code, message })));
                        process::exit_now(code)
                    }
                };
                console.join_front(theirs, settings);
                let lived = self.live(None, console, &mut |_| Ok(()));
                process::exit_now(lived.unwrap_or_else(|error| error.code()))
            }
        }
    }
}

fn send(mut tell: io::PipeWriter, report: &Report) -> Result<(), RunError> {
    let bytes = serde_json::to_vec(report).map_err(io::Error::from);
    bytes.and_then(|bytes| tell.write_all(&bytes)).map_err(RunError::os("cannot reach the command"))
}

/// Leaves the caller's session: what is pressed at its terminal, and its end,
/// reach the command alone.
fn leave_session() -> Result<(), RunError> {
    nix::unistd::setsid().map(drop).map_err(RunError::os("cannot make a session"))
}

/// Leaves the caller's working directory, input and output.
fn background(log: &Path) -> Result<Log, RunError> {
    nix::unistd::chdir("/").map_err(RunError::os("cannot leave the working directory"))?;
    let null = File::open("/dev/null").map_err(RunError::os("cannot open /dev/null"))?;
    let log =
        Log::open(log).map_err(RunError::os(format!("cannot open the log {}", log.display())))?;
    for (number, file) in [(0, &null), (1, log.text()), (2, log.text())] {
        fd::become_standard(file.as_fd(), number)
            .map_err(RunError::os("cannot replace input and output"))?;
    }
    Ok(log)
}
