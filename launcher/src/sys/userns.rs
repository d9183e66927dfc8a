//! User namespaces: writing the id maps of one, and acting as root of one for
//! the length of a closure.
//!
//! Sources followed: user_namespaces(7), newuidmap(1), newgidmap(1).

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::process::{Forked, die_with_parent, exit_now, fork, fork_into, join};
use crate::idmap::{IdMap, Range};

/// Why a user namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A map helper refused, in its own words.
    #[error("{program} failed: {said}")]
    Helper {
        /// newuidmap or newgidmap.
        program: &'static str,
        /// What it wrote on standard error.
        said: String,
    },
    /// The closure failed, in its own words.
    #[error("{0}")]
    Work(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> UsernsError {
    let what = what.into();
    move |source| UsernsError::Io { what, source }
}

/// Writes the id maps of the user namespace that process `pid`, a child of
/// this one, has just made.
///
/// # Errors
/// [`UsernsError::Helper`] when newuidmap or newgidmap refuse.
pub fn write_maps(pid: i32, map: &IdMap) -> Result<(), UsernsError> {
    start_maps(pid, map)?.finish()
}

/// Id maps that are being written.
#[derive(Debug)]
pub struct Maps(Vec<Helper>);

/// A program that writes one.
#[derive(Debug)]
struct Helper {
    program: &'static str,
    pid: i32,
    /// What it writes on standard error.
    said: io::PipeReader,
}

/// As [`write_maps`], without waiting for the helpers. The caller must be single-threaded.
///
/// # Errors
/// When one cannot be started, or a map of one id not be written.
pub fn start_maps(pid: i32, map: &IdMap) -> Result<Maps, UsernsError> {
    let mut helpers = Maps(Vec::new());
    if map.is_single() {
        // gid_map can be written without privilege only once setgroups(2) is
        // denied, or leaving a group could be a way to gain access.
        for (file, content) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", lines(&map.uids)),
            ("gid_map", lines(&map.gids)),
        ] {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, content).map_err(io_error(format!("cannot write {path}")))?;
        }
        return Ok(helpers);
    }
    for (program, ranges) in [("newuidmap", &map.uids), ("newgidmap", &map.gids)] {
        helpers.0.push(start_helper(program, pid, ranges)?);
    }
    Ok(helpers)
}

impl Maps {
    /// Waits until they are written.
    ///
    /// # Errors
    /// [`UsernsError::Helper`] as of [`write_maps`].
    pub fn finish(mut self) -> Result<(), UsernsError> {
        // Each is waited for, whatever the first says.
        let finished = std::mem::take(&mut self.0).into_iter();
        let finished: Vec<_> = finished.map(finish_helper).collect();
        finished.into_iter().collect()
    }
}

impl Drop for Maps {
    /// Nobody is interested any more: no process is left behind.
    fn drop(&mut self) {
        for helper in &self.0 {
            // Set-user-id programs cannot be killed, but come to their end.
            drop(wait(helper.pid));
        }
    }
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
}

fn start_helper(program: &'static str, pid: i32, ranges: &[Range]) -> Result<Helper, UsernsError> {
    let failed = || io_error(format!("cannot start {program}"));
    let (said, stderr) = io::pipe().map_err(failed())?;
    let numbers = ranges.iter().flat_map(|r| [r.inside, r.outside, r.count]);
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(numbers.map(|n| n.to_string()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    // Not by spawn(): that waits until the program is executed, by when the program has the
    // processor to itself. Nor is a set-user-id program for a tracer.
    match fork_into(libc::CLONE_UNTRACED).map_err(failed())? {
        Forked::Child => {
            let error = command.exec();
            // Where that cannot be told, the exit code is left.
            drop(writeln!(io::stderr(), "it cannot be executed: {error}"));
            exit_now(127)
        }
        Forked::Parent(pid) => Ok(Helper { program, pid, said }),
    }
}

fn finish_helper(helper: Helper) -> Result<(), UsernsError> {
    let Helper { program, pid, mut said } = helper;
    let mut text = Vec::new();
    let heard = said.read_to_end(&mut text);
    let ended = wait(pid)?;
    heard.map_err(io_error(format!("cannot hear {program}")))?;
    if matches!(ended, WaitStatus::Exited(_, 0)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    Err(UsernsError::Helper { program, said })
}

/// A child process in namespaces of its own, which works for this one.
#[derive(Debug)]
pub struct Inside {
    pid: i32,
    result: io::PipeReader,
}

impl Inside {
    /// Waits until the work is done, and hands back what it returned.
    ///
    /// # Errors
    /// [`UsernsError::Work`] when the work failed.
    pub fn finish(mut self) -> Result<Vec<u8>, UsernsError> {
        let outcome = hear(&mut self.result);
        wait(self.pid)?;
        outcome
    }
}

fn wait(pid: i32) -> Result<WaitStatus, UsernsError> {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(status) => return Ok(status),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(io_error("cannot wait for the child")(errno.into())),
        }
    }
}

/// Runs `work` in a child process that is uid 0 of a new user namespace with
/// the ids of `map` (and of a mount namespace of its own), and hands back what
/// it returned. For files that belong to subordinate ids.
///
/// The caller must be single-threaded.
///
/// # Errors
/// [`UsernsError::Work`] when `work` failed, else what went wrong on the way.
pub fn enter_with_map(
    map: &IdMap,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, UsernsError> {
    start_with_map(map, work)?.finish()
}

/// As [`enter_with_map`], without waiting for the work.
///
/// # Errors
/// What went wrong before it began.
pub fn start_with_map(
    map: &IdMap,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Inside, UsernsError> {
    let (mut entered, tell_entered) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    let (mapped, mut tell_mapped) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    let (result, tell_result) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    let parent = std::process::id() as i32;
    match fork().map_err(io_error("cannot fork"))? {
        Forked::Child => {
            drop((entered, tell_mapped, result));
            let done = catch_unwind(AssertUnwindSafe(|| {
                child(parent, tell_entered, mapped, tell_result, work)
            }));
            exit_now(if matches!(done, Ok(Ok(()))) { 0 } else { 1 });
        }
        Forked::Parent(pid) => {
            drop((tell_entered, mapped, tell_result));
            let begun = (|| {
                let mut byte = [0];
                entered.read_exact(&mut byte).map_err(io_error("cannot make a user namespace"))?;
                if byte[0] != 0 {
                    let source = io::Error::from_raw_os_error(byte[0].into());
                    return Err(io_error("cannot make a user namespace")(source));
                }
                write_maps(pid, map)?;
                tell_mapped.write_all(&[1]).map_err(io_error("cannot wake the child"))
            })();
            // Without its byte the child gives up: it is always waited for.
            drop(tell_mapped);
            match begun {
                Ok(()) => Ok(Inside { pid, result }),
                Err(error) => {
                    wait(pid)?;
                    Err(error)
                }
            }
        }
    }
}

/// Runs `work` in a child process that has joined the user and mount
/// namespaces of the process behind `pidfd`, and hands back what it returned.
///
/// The caller must be single-threaded.
///
/// # Errors
/// As of [`enter_with_map`].
pub fn enter_process(
    pidfd: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, UsernsError> {
    start_in_process(pidfd, work)?.finish()
}

/// As [`enter_process`], without waiting for the work.
///
/// # Errors
/// What went wrong before it began.
pub fn start_in_process(
    pidfd: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Inside, UsernsError> {
    let (result, tell_result) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    let parent = std::process::id() as i32;
    let joined = || {
        join(pidfd, libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
            .map_err(|error| format!("cannot join the container's namespaces: {error}"))?;
        die_with_parent(parent).map_err(|error| error.to_string())?;
        work()
    };
    match fork().map_err(io_error("cannot fork"))? {
        Forked::Child => {
            drop(result);
            let done = catch_unwind(AssertUnwindSafe(|| tell(tell_result, joined())));
            exit_now(if matches!(done, Ok(Ok(()))) { 0 } else { 1 });
        }
        Forked::Parent(pid) => Ok(Inside { pid, result }),
    }
}

/// Reads what [`tell`] wrote.
fn hear(result: &mut io::PipeReader) -> Result<Vec<u8>, UsernsError> {
    let mut bytes = Vec::new();
    result.read_to_end(&mut bytes).map_err(io_error("cannot read the child's result"))?;
    match bytes.split_first() {
        Some((0, bytes)) => Ok(bytes.to_vec()),
        Some((_, why)) => Err(UsernsError::Work(String::from_utf8_lossy(why).into_owned())),
        None => Err(UsernsError::Work("the child process died".to_owned())),
    }
}

fn tell(mut result: io::PipeWriter, outcome: Result<Vec<u8>, String>) -> io::Result<()> {
    match outcome {
        Ok(bytes) => {
            result.write_all(&[0])?;
            result.write_all(&bytes)
        }
        Err(why) => {
            result.write_all(&[1])?;
            result.write_all(why.as_bytes())
        }
    }
}

fn child(
    parent: i32,
    mut entered: io::PipeWriter,
    mut mapped: io::PipeReader,
    result: io::PipeWriter,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> io::Result<()> {
    let errno = match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
        Ok(()) => 0,
        Err(errno) => errno as i32 as u8,
    };
    // After the change of credentials, which forgets the request.
    die_with_parent(parent)?;
    entered.write_all(&[errno])?;
    if errno != 0 {
        return Ok(());
    }
    let mut byte = [0];
    mapped.read_exact(&mut byte)?;
    tell(result, work())
}
