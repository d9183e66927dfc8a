//! What is written down of a container.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::idmap::IdMap;
use crate::plan::Confinement;
use crate::spec::Spec;

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number in the host's pid namespace.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start_time: u64,
}

impl Process {
    /// Looks up the process that has this number now.
    ///
    /// # Errors
    /// When there is none, or `/proc` is not there.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field, the name, may itself contain spaces and parentheses.
        let start_time = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
        Ok(Self { pid, start_time })
    }

    /// Whether this very process is still there (a zombie is).
    #[must_use]
    pub fn exists(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }
}

/// How far a container has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was made, and has not been started.
    Created,
    /// Its processes are being made.
    Starting,
    /// The workload runs.
    Running,
    /// The workload has ended, and will be started again.
    Restarting {
        /// As `coracle run` would exit.
        code: u8,
    },
    /// The workload has ended.
    Exited {
        /// As `coracle run` exits.
        code: u8,
    },
    /// Its monitor was killed, and all of it with it: nobody knows the exit code.
    Lost,
}

/// What is written down of a container. The file's time of modification is
/// when it got where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// As asked for.
    pub spec: Spec,
    /// Where it is in its life.
    pub status: Status,
    /// The monitor, once there is one.
    pub monitor: Option<Process>,
    /// Process 1 of the container (forwards the signals it gets to the workload).
    pub init: Option<Process>,
    /// The overlay, which is in the storage's namespaces, once there is one.
    #[serde(default)]
    pub overlay: Option<Process>,
    /// What holds its workload.
    #[serde(default)]
    pub confinement: Confinement,
    /// Ids of the container's user namespace.
    pub map: IdMap,
    /// Seconds since 1970 at which it was made.
    pub created: u64,
    /// It stays when it cannot be started: it was made by `create`, or has run before.
    #[serde(default)]
    pub kept: bool,
    /// Seconds since 1970 at which its workload was started last.
    #[serde(default)]
    pub started: Option<u64>,
    /// Seconds since 1970 at which that has ended.
    #[serde(default)]
    pub finished: Option<u64>,
    /// What went wrong last, when it was not the workload's own doing.
    #[serde(default)]
    pub error: Option<String>,
    /// How often it was run again by itself.
    #[serde(default)]
    pub restarts: u32,
    /// Its control group, while it is active.
    #[serde(default)]
    pub group: Option<PathBuf>,
}

impl State {
    /// What there is to know of a container that has not been started.
    #[must_use]
    pub fn new(spec: Spec, map: IdMap, created: u64) -> Self {
        Self {
            spec,
            status: Status::Created,
            monitor: None,
            init: None,
            overlay: None,
            confinement: Confinement::default(),
            map,
            created,
            kept: false,
            started: None,
            finished: None,
            error: None,
            restarts: 0,
            group: None,
        }
    }

    /// It was told to pause: its processes are frozen.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let running = self.status == Status::Running;
        running && self.group.as_deref().is_some_and(crate::cgroup::is_frozen)
    }

    /// Someone is at it: its processes are there, or will be.
    #[must_use]
    pub fn active(&self) -> bool {
        matches!(self.status, Status::Starting | Status::Running | Status::Restarting { .. })
    }

    /// The workload is known to be gone.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.status, Status::Exited { .. } | Status::Lost)
    }
}
