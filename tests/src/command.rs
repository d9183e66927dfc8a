//! Running programs: with a time limit, as somebody else, with their output
//! kept and waited for.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::Deadline;
use crate::sys;

/// Time a program gets unless told otherwise.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// Time a program's output may stay open after it ended.
const EOF_LIMIT: Duration = Duration::from_secs(5);

/// Who runs a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: PathBuf,
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    what: String,
}

impl Output {
    /// The output if the program exited with 0.
    ///
    /// # Errors
    /// Says everything about the run otherwise.
    pub fn ok(self) -> Result<Self> {
        self.code_is(0)
    }

    /// The output if the program exited with `code`.
    ///
    /// # Errors
    /// Says everything about the run otherwise.
    pub fn code_is(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "expected exit code {code}\n{}", self.describe());
        Ok(self)
    }

    /// The program failed with `code` and exactly one line on stderr, which
    /// contains `word`; that the user has no subordinate ids may be said besides.
    ///
    /// # Errors
    /// Says everything about the run otherwise.
    pub fn fails_with(self, code: i32, word: &str) -> Result<Self> {
        let this = self.code_is(code)?;
        let notice = |line: &&str| line.starts_with("coracle: no subordinate ids for this user");
        let lines = this.stderr.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.filter(|line| !notice(line)).count();
        ensure!(lines == 1, "expected one line on stderr, got {lines}\n{}", this.describe());
        ensure!(
            this.stderr.to_lowercase().contains(&word.to_lowercase()),
            "expected {word:?} on stderr\n{}",
            this.describe()
        );
        Ok(this)
    }

    /// Standard output is exactly `text`, but for white space at the ends.
    ///
    /// # Errors
    /// Says everything about the run otherwise.
    pub fn stdout_is(self, text: &str) -> Result<Self> {
        ensure!(
            self.stdout.trim() == text.trim(),
            "expected on stdout: {text:?}\n{}",
            self.describe()
        );
        Ok(self)
    }

    /// Standard output contains `text`.
    ///
    /// # Errors
    /// Says everything about the run otherwise.
    pub fn stdout_has(self, text: &str) -> Result<Self> {
        ensure!(
            self.stdout.contains(text),
            "expected on stdout, somewhere: {text:?}\n{}",
            self.describe()
        );
        Ok(self)
    }

    /// The run in words, for a failure's message.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "  command: {}\n  exit code: {}\n  stdout: {}\n  stderr: {}",
            self.what,
            self.code,
            shorten(&self.stdout),
            shorten(&self.stderr)
        )
    }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 3000;
    let text = text.trim_end();
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let cut = (0..=LIMIT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{} … ({} bytes)", &text[..cut], text.len())
}

/// A program about to be run.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    user: Option<User>,
    stdin: Input,
    dir: Option<PathBuf>,
    limit: Duration,
    inherited: Vec<OwnedFd>,
    terminal: Option<OwnedFd>,
}

#[derive(Debug)]
enum Input {
    Null,
    Bytes(Vec<u8>),
    Open,
}

impl Cmd {
    /// A program with an environment of its own: nothing is inherited.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut env = BTreeMap::new();
        env.insert(
            "PATH".into(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        );
        env.insert("LANG".into(), "C.UTF-8".into());
        env.insert("TERM".into(), "dumb".into());
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env,
            user: None,
            stdin: Input::Null,
            dir: None,
            limit: DEFAULT_LIMIT,
            inherited: Vec::new(),
            terminal: None,
        }
    }

    /// Runs it as `user`, with that user's HOME and runtime directory.
    #[must_use]
    pub fn user(mut self, user: &User) -> Self {
        self.env.insert("HOME".into(), user.home.clone().into());
        self.env.insert("USER".into(), user.name.clone().into());
        self.env.insert("LOGNAME".into(), user.name.clone().into());
        self.env.insert("XDG_RUNTIME_DIR".into(), user.runtime_dir.clone().into());
        self.dir.get_or_insert_with(|| user.home.clone());
        self.user = Some(user.clone());
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.into(), value.as_ref().to_owned());
        self
    }

    /// Without this variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(OsStr::new(name));
        self
    }

    /// What it reads from standard input (/dev/null otherwise).
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Standard input is a pipe held open until [`Running`] is done with.
    #[must_use]
    pub fn stdin_open(mut self) -> Self {
        self.stdin = Input::Open;
        self
    }

    /// Working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// A descriptor it inherits, under the number it has here.
    #[must_use]
    pub fn inherit(mut self, fd: OwnedFd) -> Self {
        self.inherited.push(fd);
        self
    }

    /// Standard streams are this terminal, which also becomes the controlling
    /// terminal of a session of its own.
    #[must_use]
    pub fn terminal(mut self, terminal: OwnedFd) -> Self {
        self.terminal = Some(terminal);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes too long (it is killed then).
    pub fn run(self) -> Result<Output> {
        let limit = self.limit;
        self.spawn()?.wait(limit)
    }

    /// The program, its arguments, environment, directory and user, for who
    /// starts it in a way of its own; no standard streams are set up.
    #[must_use]
    pub fn to_command(&self) -> Command {
        let words: Vec<_> =
            std::iter::once(&self.program).chain(&self.args).map(OsString::clone).collect();
        self.command(&words)
    }

    fn command(&self, words: &[OsString]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(&self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if let Some(user) = &self.user
            && nix::unistd::geteuid().is_root()
        {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Running> {
        let mut words = vec![self.program.clone()];
        if self.terminal.is_some() {
            words = ["setsid", "--ctty", "--wait"].map(OsString::from).to_vec();
            words.push(self.program.clone());
        }
        words.extend(self.args.iter().cloned());
        let what = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");

        let mut command = self.command(&words);
        match &self.terminal {
            Some(terminal) => {
                command.stdin(terminal.try_clone()?);
                command.stdout(terminal.try_clone()?);
                command.stderr(terminal.try_clone()?);
            }
            None => {
                command.stdin(match self.stdin {
                    Input::Null => Stdio::null(),
                    Input::Bytes(_) | Input::Open => Stdio::piped(),
                });
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        for fd in &self.inherited {
            set_inheritable(fd.as_fd())?;
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        drop(self.inherited);

        let pidfd = sys::pidfd_open(child.id().cast_signed()).context("pidfd_open")?;
        let stdin = child.stdin.take();
        let stdin = match (stdin, self.stdin) {
            (Some(mut pipe), Input::Bytes(bytes)) => {
                std::thread::spawn(move || {
                    // A program that does not read all of its input is no fault.
                    pipe.write_all(&bytes).ok();
                });
                None
            }
            (stdin, _) => stdin,
        };
        let stdout = Stream::read(child.stdout.take());
        let stderr = Stream::read(child.stderr.take());
        Ok(Running { child, pidfd, stdin, stdout, stderr, what, done: false })
    }
}

fn set_inheritable(fd: BorrowedFd<'_>) -> Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// A pipe for a ready-fd or an exit-fd: (ours, the program's).
///
/// # Errors
/// When no pipe can be made.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Reads a ready-fd: `true` when a byte came before the end of file.
///
/// # Errors
/// When neither a byte nor the end comes in time.
pub fn read_ready(fd: &OwnedFd, limit: Duration) -> Result<bool> {
    ensure!(readable(fd.as_fd(), limit)?, "neither ready nor closed after {limit:?}");
    let mut byte = [0u8];
    Ok(nix::unistd::read(fd, &mut byte)? == 1)
}

/// Waits until `fd` is readable, or at its end; `false` when time is up.
///
/// # Errors
/// poll(2)'s.
pub fn readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let deadline = Deadline::after(limit);
    loop {
        let timeout = PollTimeout::try_from(deadline.left().as_millis().max(1))?;
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.passed() => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A running program. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<std::process::ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    what: String,
    done: bool,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// pidfd_send_signal(2)'s.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::pidfd_send_signal(self.pidfd.as_fd(), signal)
            .with_context(|| format!("cannot send signal {signal} to {}", self.what))
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it is closed, or was not asked for.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdin.as_mut().context("its stdin is not open")?.write_all(bytes)?;
        Ok(())
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until its standard output has `text`.
    ///
    /// # Errors
    /// When the output ends, or time is up, without.
    pub fn stdout_until(&self, text: &str, limit: Duration) -> Result<String> {
        self.stdout
            .until(text, limit)
            .with_context(|| format!("{}\n  stderr so far: {}", self.what, self.stderr.text()))
    }

    /// Waits until its standard error has `text`.
    ///
    /// # Errors
    /// When the output ends, or time is up, without.
    pub fn stderr_until(&self, text: &str, limit: Duration) -> Result<String> {
        self.stderr.until(text, limit).with_context(|| self.what.clone())
    }

    /// Whether it ends within `limit`.
    ///
    /// # Errors
    /// poll(2)'s.
    pub fn ends_within(&self, limit: Duration) -> Result<bool> {
        readable(self.pidfd.as_fd(), limit)
    }

    /// Waits for its end; its standard input is closed first.
    ///
    /// # Errors
    /// When it takes too long (it is killed then), or leaves its output open.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        self.stdin = None;
        if !self.ends_within(limit)? {
            let tail = format!(
                "{}\n  stdout so far: {}\n  stderr so far: {}",
                self.what,
                shorten(&self.stdout.text()),
                shorten(&self.stderr.text())
            );
            bail!("still running after {limit:?}, killed: {tail}");
        }
        let status = self.child.wait()?;
        self.done = true;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let closed = self.stdout.closed(EOF_LIMIT) && self.stderr.closed(EOF_LIMIT);
        let output = Output {
            code,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            what: self.what.clone(),
        };
        ensure!(
            closed,
            "ended, but something it started still holds its output open\n{}",
            output.describe()
        );
        Ok(output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            // Both fail only when it has ended already.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// A pipe read to its end by a thread of its own.
#[derive(Debug, Clone)]
struct Stream(Arc<(Mutex<StreamState>, Condvar)>);

#[derive(Debug, Default)]
struct StreamState {
    bytes: Vec<u8>,
    closed: bool,
}

impl Stream {
    fn read(pipe: Option<impl Read + AsRawFd + Send + 'static>) -> Self {
        let this = Self(Arc::new((Mutex::new(StreamState::default()), Condvar::new())));
        let Some(mut pipe) = pipe else {
            this.lock().closed = true;
            return this;
        };
        let stream = this.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                // An error ends the output just as its end does.
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = stream.lock();
                state.bytes.extend_from_slice(&buffer[..count]);
                state.closed = count == 0;
                stream.0.1.notify_all();
                if state.closed {
                    return;
                }
            }
        });
        this
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StreamState> {
        self.0.0.lock().expect("no reader panics while it holds the lock")
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn wait(&self, limit: Duration, done: impl Fn(&StreamState) -> bool) -> bool {
        let (state, _) = self
            .0
            .1
            .wait_timeout_while(self.lock(), limit, |state| !done(state))
            .expect("no reader panics while it holds the lock");
        done(&state)
    }

    fn closed(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.closed)
    }

    fn until(&self, text: &str, limit: Duration) -> Result<String> {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        self.wait(limit, |state| state.closed || has(&state.bytes));
        let state = self.lock();
        let all = String::from_utf8_lossy(&state.bytes).into_owned();
        ensure!(
            has(&state.bytes),
            "{} without {text:?}; it said: {}",
            if state.closed { "its output ended" } else { "time was up" },
            shorten(&all)
        );
        Ok(all)
    }
}
