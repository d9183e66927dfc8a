//! The event loop: reads the TAP, host sockets, listeners, the exit descriptor
//! and the control socket. The only reader of the clock.

use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::tap::Offloads;

/// What the loop runs on.
#[derive(Debug)]
pub struct Inputs {
    /// Validated configuration.
    pub config: Config,
    /// Attached TAP device.
    pub tap: OwnedFd,
    /// What was granted on it.
    pub offloads: Offloads,
    /// Receives `1` and is closed once everything is in place.
    pub ready: Option<OwnedFd>,
    /// The loop ends when this hangs up.
    pub exit: Option<OwnedFd>,
    /// Listening UNIX stream socket of slirp4netns' API.
    pub api: Option<OwnedFd>,
}

/// Why the loop could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A published port could not be bound.
    #[error(transparent)]
    Forward(#[from] crate::forward::Error),
    /// A system call of the loop itself failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done, on what.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Runs until the exit descriptor hangs up, SIGTERM or SIGINT arrives, or the
/// TAP device goes away.
///
/// # Errors
/// A published port that cannot be bound, or a failing system call.
pub fn run(inputs: Inputs) -> Result<(), Error> {
    drop(inputs);
    Ok(())
}
