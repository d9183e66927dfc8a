//! Command lines: argv → what to do. Knows clap; nothing else does.
//!
//! Two personalities share the core: slirp4netns' own form, and the form in which
//! a launcher passes an attached TAP device ([`native`]). The latter is meant
//! whenever `--tap-fd` is among the arguments.

pub mod native;
mod observe;
pub mod slirp4netns;
mod value;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use crate::config::Config;
use crate::tap::Request;
use crate::{metrics, pcap};

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// For the stack; name servers are not filled in yet.
    pub config: Config,
    /// Where the TAP device comes from.
    pub device: Device,
    /// Descriptor that receives `1`.
    pub ready_fd: Option<RawFd>,
    /// Descriptor whose hang-up ends the run.
    pub exit_fd: Option<RawFd>,
    /// Where to listen for API requests.
    pub api_socket: Option<PathBuf>,
    /// Give up sight of the file system, and all capabilities but one.
    pub sandbox: bool,
    /// Limit system calls to those of a running network.
    pub seccomp: bool,
    /// Files that frames are written to.
    pub capture: Option<pcap::Request>,
    /// Where counters are given out.
    pub metrics: Option<metrics::Address>,
    /// File that says where the guest may connect to.
    pub policy: Option<PathBuf>,
    /// Interfaces whose addresses outgoing connections take, IPv4 and IPv6; looked
    /// up at the start.
    pub outbound_interfaces: (Option<String>, Option<String>),
}

/// Where the TAP device comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// It is made, or found, in a namespace.
    Create(Request),
    /// It was made by the parent: its queues, one at least.
    Inherited(Vec<RawFd>),
    /// None: frames are packets of a connection that somebody makes to this UNIX
    /// socket, as User Mode Linux does.
    Bess(PathBuf),
}

/// The definition of slirp4netns' form, as manual pages and completions need it.
#[must_use]
pub fn command() -> clap::Command {
    slirp4netns::Args::command()
}

/// Reads a command line.
///
/// # Errors
/// What clap reports: help and version (exit code 0) or a bad argument.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let native = args.iter().take_while(|arg| *arg != "--").any(|arg| {
        let arg = arg.to_string_lossy();
        arg == "--tap-fd" || arg.starts_with("--tap-fd=")
    });
    if native {
        native::Args::try_parse_from(args)?.into_invocation()
    } else {
        slirp4netns::Args::try_parse_from(args)?.into_invocation()
    }
}

/// A bad argument found after parsing, as clap would report it.
fn refuse<A: clap::CommandFactory>(
    kind: clap::error::ErrorKind,
    message: impl std::fmt::Display,
) -> clap::Error {
    A::command().error(kind, message)
}

#[cfg(test)]
mod tests;
