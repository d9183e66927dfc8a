//! Carrying out a plan, and undoing it: the whole of a container's life, as
//! the command `coracle run` sees it.
//!
//! In the foreground this process is the monitor itself. Detached, a process
//! forked from it is: it leads a session of its own, its input is /dev/null
//! and its output the container's log; it tells this one through a pipe when
//! the workload runs, or why it does not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::channel::Fault;
use crate::clock;
use crate::plan::{self, Paths, Plan};
use crate::policy::PolicyError;
use crate::policy::seccomp::Source;
use crate::probe;
use crate::spec::{Root, Spec, Upper};
use crate::stage::monitor::{self, Ended, Orders, say};
use crate::store::{Container, Process, State, Status, StoreError};
use crate::sys::fd;
use crate::sys::process::{self, Forked};
use crate::sys::userns::UsernsError;

/// Why a container could not be run. The message is one line that says what
/// failed, why, and what to do; the exit code for all of them is 125.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something that was asked for is not there.
    #[error("{what} {}", path.display())]
    Input {
        /// Its role.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host lacks what it takes.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system call filter cannot be built.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The user namespace cannot be made.
    #[error(transparent)]
    Userns(#[from] UsernsError),
    /// There is nothing to join.
    #[error("the container is not running; start one with 'coracle run'")]
    NotRunning,
    /// A stage failed.
    #[error("{0}")]
    Stage(Fault),
    /// A stage died without a word.
    #[error("the container's {0} died unexpectedly; the container is gone")]
    StageDied(&'static str),
    /// A service gave up, and said why.
    #[error("{name}: {said}")]
    Service {
        /// Which.
        name: &'static str,
        /// Its own words.
        said: String,
    },
    /// A service died without a word.
    #[error("{0} died unexpectedly; the container is gone")]
    ServiceDied(&'static str),
    /// The background process of a detached container gave up.
    #[error("{0}")]
    Background(String),
    /// A system call failed.
    #[error("{what}")]
    Os {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl RunError {
    /// Makes an error of a failed system call.
    pub fn os<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Os { what, source: source.into() }
    }

    /// The error with all that led to it, in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }

    /// The exit code: 126 and 127 are the workload's own failures to start.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Stage(fault) => fault.code,
            _ => 125,
        }
    }
}

/// Makes a container of `spec` in `container`'s directory and stays until it
/// has ended (with `spec.detach`: until its workload has started; a process
/// left in the background then holds the lock). With `spec.remove`, and when
/// the container could not be started, its directory is removed.
///
/// Returns the exit code of the command: the workload's own, 128 + n when
/// signal n ended it, 126 or 127 when it could not be executed (said on
/// standard error), 0 when detached (the caller prints the name).
///
/// Must be called by a single-threaded process.
///
/// # Errors
/// [`RunError`]: the container did not come to run, or one of its services
/// died under it.
pub fn run(spec: Spec, container: Container) -> Result<u8, RunError> {
    let host = probe::probe();
    let map = host.map.clone();
    let paths = Paths {
        dir: container.dir.clone(),
        store: resolved(&container.store),
        upper: container.upper(),
        work: container.work(),
    };
    let prepared = inputs(spec, true)
        .and_then(|spec| Ok((plan::plan(&spec, &host, &container.name, &paths)?, spec)));
    let (plan, spec) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            // The first failure is the one to tell; the next start removes what stays.
            if let Err(also) = container.remove(&map) {
                say(&RunError::from(also).line());
            }
            return Err(error);
        }
    };
    if map.is_single() {
        say(
            "no subordinate ids for this user in /etc/subuid and /etc/subgid: only root exists in \
             the container",
        );
    }
    let life = Life { spec, container, plan };
    if life.spec.detach { life.in_background() } else { spoken(life.live(&mut |_| Ok(()))) }
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
    Ok(plan::plan(&inputs(spec.clone(), false)?, &probe::probe(), name, &paths)?)
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
    spec: Spec,
    container: Container,
    plan: Plan,
}

impl Life {
    /// The container's whole life; `started` is called when its workload runs.
    fn live(self, started: &mut dyn FnMut(i32) -> Result<(), RunError>) -> Result<u8, RunError> {
        let Self { spec, container, plan } = self;
        let mut state = State {
            spec: spec.clone(),
            status: Status::Created,
            monitor: Process::of(std::process::id() as i32).ok(),
            init: None,
            overlay: None,
            confinement: plan.workload.confinement.clone(),
            map: plan.map.clone(),
            created: clock::unix_seconds(),
        };
        let cache = container.store.join("cache");
        let source = Source {
            seccomp: &spec.security.seccomp,
            capabilities: spec.security.capabilities,
            single_id: plan.map.is_single(),
        };
        let filter = || Ok(source.cached(&cache)?);
        let lived = container.record(&state).map_err(RunError::from).and_then(|()| {
            monitor::supervise(Orders {
                plan: &plan,
                filter: &filter,
                started: &mut |init, overlay| {
                    state.init = Process::of(init).ok();
                    state.overlay = overlay.and_then(|overlay| Process::of(overlay).ok());
                    state.status = Status::Running;
                    container.record(&state)?;
                    started(init)
                },
                input: spec.interactive && !spec.tty && !spec.detach,
            })
        });
        let kept = match &lived {
            Ok(Ended { started, .. }) => *started && !spec.remove,
            // What was running is kept, that its log and changes can be looked at.
            Err(_) => state.status == Status::Running && !spec.remove,
        };
        let tidied = if kept {
            let code = lived.as_ref().map_or(125, |ended| ended.code);
            state.status = Status::Exited { code };
            container.record(&state)
        } else {
            container.remove(&plan.map)
        };
        match (lived, tidied) {
            (Ok(ended), Ok(())) => Ok(ended.code),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), tidied) => {
                // The first failure is the one to tell, and the cause.
                if let Err(also) = tidied {
                    say(&RunError::from(also).line());
                }
                Err(error)
            }
        }
    }

    fn in_background(self) -> Result<u8, RunError> {
        let (mut report, tell) = io::pipe().map_err(RunError::os("cannot make a pipe"))?;
        let log = self.container.log();
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
                let lived = background(&log).and_then(|()| {
                    self.live(&mut |_| {
                        if let Some(tell) = tell.take() {
                            send(tell, &Report::Started)?;
                        }
                        Ok(())
                    })
                });
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
}

fn send(mut tell: io::PipeWriter, report: &Report) -> Result<(), RunError> {
    let bytes = serde_json::to_vec(report).map_err(io::Error::from);
    bytes.and_then(|bytes| tell.write_all(&bytes)).map_err(RunError::os("cannot reach the command"))
}

/// Leaves the caller's session, working directory, input and output.
fn background(log: &Path) -> Result<(), RunError> {
    nix::unistd::setsid().map_err(RunError::os("cannot make a session"))?;
    nix::unistd::chdir("/").map_err(RunError::os("cannot leave the working directory"))?;
    let null = File::open("/dev/null").map_err(RunError::os("cannot open /dev/null"))?;
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .map_err(RunError::os(format!("cannot open the log {}", log.display())))?;
    for (number, file) in [(0, &null), (1, &log), (2, &log)] {
        fd::become_standard(file.as_fd(), number)
            .map_err(RunError::os("cannot replace input and output"))?;
    }
    Ok(())
}
