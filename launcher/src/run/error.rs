//! Why a container could not be run.

use std::io;
use std::path::PathBuf;

use crate::channel::Fault;
use crate::plan;
use crate::policy::PolicyError;
use crate::store::StoreError;
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
