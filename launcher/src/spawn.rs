//! Finding the two services, and starting one: its inherited descriptors, its
//! ready pipe and the pipe whose hang-up ends it.

use std::env;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sys::{fd, process};
use crate::text::printable;

/// Finds a program of ours: beside this one, then in `../libexec/coracle`
/// seen from there, then in `$PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    beside
        .into_iter()
        .flat_map(|dir| [dir.join(program), dir.join("../libexec/coracle").join(program)])
        .find(|path| is_program(path))
        .or_else(|| find_in_path(program))
}

/// Finds a program in `$PATH`.
pub fn find_in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The pipes between the monitor and a service, made before it is started.
#[derive(Debug)]
pub struct Pipes {
    /// The monitor's ends.
    pub ours: Ours,
    /// The service's ends.
    pub theirs: Theirs,
}

/// The monitor's ends of a service's pipes.
#[derive(Debug)]
pub struct Ours {
    /// Dropping it tells the service to end.
    pub exit: OwnedFd,
    /// What the service writes on standard error.
    pub stderr: OwnedFd,
}

/// The service's ends of its pipes.
#[derive(Debug)]
pub struct Theirs {
    /// Hangs up when the service is to end.
    pub exit: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

impl Pipes {
    /// Makes them.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub fn new() -> io::Result<Self> {
        let (exit_read, exit_write) = io::pipe()?;
        let (stderr_read, stderr_write) = io::pipe()?;
        Ok(Self {
            ours: Ours { exit: exit_write.into(), stderr: stderr_read.into() },
            theirs: Theirs { exit: exit_read.into(), stderr: stderr_write.into() },
        })
    }
}

/// A service to be started.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments but for its descriptors.
    pub arguments: &'a [String],
    /// Its working directory.
    pub dir: &'a Path,
    /// Descriptors that it inherits, for each of which its option and number are added
    /// to the arguments, as for `--ready-fd` and `--exit-fd`.
    pub inherited: &'a [(&'a str, BorrowedFd<'a>)],
}

/// A service that has been started, and may not be ready yet.
#[derive(Debug)]
pub struct Started {
    /// Its number in this process's pid namespace.
    pub pid: i32,
    /// One byte arrives when it is ready; hangs up without when it failed.
    pub ready: io::PipeReader,
}

impl Service<'_> {
    /// Starts it as a child with an empty environment and no standard input or output. It
    /// dies with its parent.
    ///
    /// # Errors
    /// As of fork(2), and ENOMEM. That the program cannot be executed shows as a
    /// ready pipe that hangs up, with the reason on its standard error.
    pub fn start(&self, pipes: &Theirs) -> io::Result<Started> {
        let (ready, tell_ready) = io::pipe()?;
        let parent = std::process::id() as i32;
        match process::fork()? {
            process::Forked::Parent(pid) => Ok(Started { pid, ready }),
            process::Forked::Child => {
                let why = self.execute(parent, pipes, tell_ready.as_fd());
                let line = format!("cannot start {}: {why}", self.program.display());
                // That nobody hears it changes nothing.
                writeln!(io::stderr(), "{}", printable(&line)).ok();
                process::exit_now(1);
            }
        }
    }

    /// Executes it in this process's place, a child of `parent`. `ready` is where it tells
    /// that it is. Returns only on failure.
    pub fn execute(&self, parent: i32, pipes: &Theirs, ready: BorrowedFd<'_>) -> io::Error {
        match self.prepare(parent, pipes, ready) {
            Ok((path, argv)) => match nix::unistd::execve(&path, &argv, &[] as &[CString]) {
                Ok(never) => match never {},
                Err(errno) => errno.into(),
            },
            Err(error) => error,
        }
    }

    fn prepare(
        &self,
        parent: i32,
        pipes: &Theirs,
        ready: BorrowedFd<'_>,
    ) -> io::Result<(CString, Vec<CString>)> {
        process::die_with_parent(parent)?;
        // Nothing else of the caller's goes along: neither a descriptor nor a
        // directory that could not be unmounted while the service runs.
        fd::close_all_on_exec()?;
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::chdir(self.dir)?;
        fd::become_standard(null.as_fd(), 0)?;
        fd::become_standard(null.as_fd(), 1)?;
        fd::become_standard(pipes.stderr.as_fd(), 2)?;
        process::reset_signals();
        let program = self.program.as_os_str();
        let mut argv = vec![c_string(self.program.file_name().unwrap_or(program))?];
        let own = [("--ready-fd", ready), ("--exit-fd", pipes.exit.as_fd())];
        for (option, passed) in own.iter().chain(self.inherited) {
            fd::set_inherited(*passed, true)?;
            argv.push(c_string(OsStr::new(option))?);
            argv.push(c_string(OsStr::new(&passed.as_raw_fd().to_string()))?);
        }
        for argument in self.arguments {
            argv.push(c_string(OsStr::new(argument))?);
        }
        Ok((c_string(program)?, argv))
    }
}

/// Waits until a service is ready.
///
/// # Errors
/// UnexpectedEof when it failed.
pub fn wait_ready(ready: &mut io::PipeReader) -> io::Result<()> {
    ready.read_exact(&mut [0])
}

fn c_string(string: &OsStr) -> io::Result<CString> {
    CString::new(string.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
