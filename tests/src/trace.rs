//! A container's start-up and end, stopped at a chosen system call.
//!
//! # Theory of operation
//!
//! `coracle run` is started under ptrace(2), and so is everything it starts,
//! but for the map helpers (forked with CLONE_UNTRACED, and set-user-id: a tracer
//! without privilege would break them). Each process has a [`Role`], known from
//! who made it and what it executed. At every stop the tracer knows who stopped
//! and at which call, and so recognises the steps of the handshake by what is
//! said: the text of a message on a channel, the byte on a ready pipe, the name
//! in a rename. At the step asked for, the process is held; the victim gets
//! SIGKILL and is waited for; then all go on. So a victim dies at exactly one
//! point of the protocol, in every run, and the programs under test have no
//! part in it.
//!
//! ptrace belongs to the thread that started the tracee: all of this runs on
//! one thread. What does not come to an end is killed by a second one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::harness::World;
use crate::sys;

/// A process of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `coracle run --detach`, until the workload runs.
    Command,
    /// `coracle run` itself, or its part in the background.
    Monitor,
    /// Makes the namespaces and puts the layers together.
    Storage,
    /// overlayfs-fuse.
    Overlay,
    /// Keeps owners, where only one id exists.
    Owners,
    /// Process 1 of the container.
    Init,
    /// netstack.
    Netstack,
    /// The program asked for.
    Workload,
    /// A thread, or what the workload started.
    Other,
}

/// Something a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Sends the message of this name on a channel.
    Says(&'static str),
    /// Writes one byte on a pipe.
    Signals,
    /// Executes a program.
    Executes,
    /// Renames a file or directory to a name that contains this.
    Renames(&'static str),
    /// Removes a file of this name.
    Unlinks(&'static str),
    /// Ends (after the last thing it does).
    Ends,
}

/// Before the kernel has done it, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nobody has seen it.
    Before,
    /// It is done; the process has not gone on.
    After,
}

/// A point in the life of a container. [`Deed::Executes`] and [`Deed::Ends`]
/// have only one side each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Whose.
    pub role: Role,
    /// What.
    pub deed: Deed,
    /// Which side of it.
    pub when: When,
}

/// How a traced run went.
#[derive(Debug)]
pub struct Traced {
    /// The step came.
    pub reached: bool,
    /// The victim was there then, and was killed.
    pub killed: bool,
    /// Exit code of `coracle run`, or 128 + the signal that ended it.
    pub code: i32,
    /// What it said on standard error.
    pub stderr: String,
}

#[derive(Debug, Clone)]
struct Task {
    role: Role,
    /// It has seen its first stop.
    begun: bool,
    /// The deed whose end is awaited.
    inside: Option<Deed>,
}

struct Tracer {
    tasks: BTreeMap<i32, Task>,
    command: i32,
    monitor_made: bool,
    storage_made: bool,
    step: Step,
    victim: Role,
    /// The process stopped at the step, and the victim whose end it awaits.
    held: Option<(i32, i32)>,
    reached: bool,
    killed: bool,
    code: Option<i32>,
}

const LIMIT: Duration = Duration::from_secs(30);

/// Runs `coracle` with `args`, kills `victim` at `step`, and waits until every
/// process has ended. Standard input is open and empty until then.
///
/// # Errors
/// When it cannot be traced, or does not come to an end in time.
pub fn run(world: &World<'_>, args: &[&str], step: Step, victim: Role) -> Result<Traced> {
    let said = world.lab.scratch("traced-stderr");
    let stderr = File::create(&said)?;
    let mut command = world.coracle(args).to_command();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr);
    sys::trace_me(&mut command);
    let mut child = command.spawn().context("cannot start a traced program")?;
    let stdin = child.stdin.take();
    let command = child.id().cast_signed();
    let role = if args.contains(&"-d") { Role::Command } else { Role::Monitor };

    let (done, watchdog) = mpsc::channel();
    let outcome = std::thread::scope(|scope| {
        let guard = scope.spawn(move || {
            let late = watchdog.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
            late.then(|| {
                let running = world.lab.processes_in_words();
                world.lab.kill_all();
                running
            })
        });
        let mut tracer = Tracer {
            tasks: BTreeMap::from([(command, Task { role, begun: false, inside: None })]),
            command,
            monitor_made: role == Role::Monitor,
            storage_made: false,
            step,
            victim,
            held: None,
            reached: false,
            killed: false,
            code: None,
        };
        let followed = tracer.follow();
        // Nobody listens when the time is up already.
        done.send(()).ok();
        let late = guard.join().expect("the watchdog does not panic");
        match late {
            Some(running) => bail!("not at its end after {LIMIT:?}; running then:\n{running}"),
            None => followed.map(|()| tracer),
        }
    });
    drop(stdin);
    let tracer = outcome?;
    let stderr = fs::read_to_string(&said)?;
    fs::remove_file(&said)?;
    let code = tracer.code.context("the traced program vanished")?;
    Ok(Traced { reached: tracer.reached, killed: tracer.killed, code, stderr })
}

impl Tracer {
    fn follow(&mut self) -> Result<()> {
        while !self.tasks.is_empty() {
            // Of this thread's tracees only; their threads, too.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(errno).context("waitpid"),
            };
            match status {
                WaitStatus::Exited(pid, code) => self.ended(pid, code)?,
                WaitStatus::Signaled(pid, signal, _) => self.ended(pid, 128 + signal as i32)?,
                WaitStatus::PtraceEvent(pid, _, event) => self.event(pid, event)?,
                WaitStatus::PtraceSyscall(pid) => self.call(pid)?,
                WaitStatus::Stopped(pid, signal) => self.stopped(pid, signal)?,
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
        Ok(())
    }

    /// It goes on, unless it has been killed meanwhile.
    fn resume(&self, pid: Pid, signal: Option<Signal>) -> Result<()> {
        match ptrace::syscall(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).context("cannot let a traced process go on"),
        }
    }

    fn ended(&mut self, pid: Pid, code: i32) -> Result<()> {
        self.tasks.remove(&pid.as_raw());
        if pid.as_raw() == self.command {
            self.code = Some(code);
        }
        if let Some((held, victim)) = self.held
            && victim == pid.as_raw()
        {
            self.held = None;
            self.resume(Pid::from_raw(held), None)?;
        }
        Ok(())
    }

    fn stopped(&mut self, pid: Pid, signal: Signal) -> Result<()> {
        // A child may stop before its maker's event is seen, and its maker may die
        // without one.
        self.know(pid.as_raw());
        let first = self
            .tasks
            .get_mut(&pid.as_raw())
            .is_some_and(|task| !std::mem::replace(&mut task.begun, true));
        if first && pid.as_raw() == self.command {
            // The stop after its execve(2).
            let options = Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_TRACEEXIT
                | Options::PTRACE_O_EXITKILL;
            ptrace::setoptions(pid, options).context("cannot trace")?;
            return self.resume(pid, None);
        }
        self.resume(pid, (!first).then_some(signal))
    }

    fn event(&mut self, pid: Pid, event: i32) -> Result<()> {
        let role = self.tasks.get(&pid.as_raw()).map_or(Role::Other, |task| task.role);
        let deed = match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE => {
                if let Ok(child) = ptrace::getevent(pid) {
                    self.know(child as i32);
                }
                return self.resume(pid, None);
            }
            libc::PTRACE_EVENT_EXEC => {
                let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                let role = match program.file_name().and_then(|name| name.to_str()) {
                    Some("netstack") => Role::Netstack,
                    Some("overlayfs-fuse") => Role::Overlay,
                    _ => role,
                };
                if let Some(task) = self.tasks.get_mut(&pid.as_raw()) {
                    task.role = role;
                }
                (role, Deed::Executes)
            }
            libc::PTRACE_EVENT_EXIT => (role, Deed::Ends),
            _ => return self.resume(pid, None),
        };
        self.at(pid, deed.0, deed.1, When::After)
    }

    /// Learns who a new process is, from what it is a copy of.
    fn know(&mut self, child: i32) {
        if self.tasks.contains_key(&child) {
            return;
        }
        let numbers = field(child, "NSpid:").unwrap_or_default();
        let numbers: Vec<_> = numbers.split_whitespace().collect();
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        let role = match (&numbers[..], line.starts_with(b"coracle-stage")) {
            _ if field(child, "Tgid:") != Some(child.to_string()) => Role::Other,
            // Number one of a PID namespace of its own.
            ([_, "1"], true) => Role::Init,
            ([_, _], true) => Role::Workload,
            // The overlay is what storage becomes.
            ([_], true) => Role::Owners,
            ([_], false) if !std::mem::replace(&mut self.monitor_made, true) => Role::Monitor,
            ([_], false) if !std::mem::replace(&mut self.storage_made, true) => Role::Storage,
            // One that cleans up, or becomes netstack.
            _ => Role::Other,
        };
        self.tasks.insert(child, Task { role, begun: false, inside: None });
    }

    fn call(&mut self, pid: Pid) -> Result<()> {
        let Some(task) = self.tasks.get(&pid.as_raw()) else { return self.resume(pid, None) };
        let role = task.role;
        let info = match sys::syscall_stop(pid) {
            Ok(info) => info,
            // It was killed while it stopped; its end is on its way.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(e) => return Err(e).context("cannot look at a stopped process"),
        };
        let (deed, when) = match info {
            Some((number, args)) => {
                let deed = deed(pid.as_raw(), number, args);
                if let Some(task) = self.tasks.get_mut(&pid.as_raw()) {
                    task.inside = deed;
                }
                (deed, When::Before)
            }
            None => {
                let deed = self.tasks.get_mut(&pid.as_raw()).and_then(|task| task.inside.take());
                (deed, When::After)
            }
        };
        match deed {
            Some(deed) => self.at(pid, role, deed, when),
            None => self.resume(pid, None),
        }
    }

    /// Something was done: kills the victim if it is what was waited for.
    fn at(&mut self, pid: Pid, role: Role, deed: Deed, when: When) -> Result<()> {
        if self.reached || self.step != (Step { role, deed, when }) {
            return self.resume(pid, None);
        }
        self.reached = true;
        let victim = self.tasks.iter().find(|(_, task)| task.role == self.victim);
        let Some((&victim, _)) = victim else { return self.resume(pid, None) };
        match kill(Pid::from_raw(victim), Signal::SIGKILL) {
            Ok(()) => {
                self.killed = true;
                // At its end a process has nothing more to do, and a victim that is
                // its namespace's first waits for that end.
                if deed == Deed::Ends || victim == pid.as_raw() {
                    return self.resume(pid, None);
                }
                self.held = Some((pid.as_raw(), victim));
                Ok(())
            }
            Err(Errno::ESRCH) => self.resume(pid, None),
            Err(errno) => Err(errno).context("cannot kill the victim"),
        }
    }
}

fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// What a process that stopped before this call is about to do, as far as a
/// [`Deed`] has a name for it. Which of the names is asked for is compared later.
fn deed(pid: i32, number: u64, args: [u64; 6]) -> Option<Deed> {
    const MESSAGES: [&str; 12] = [
        "Plan", "Overlay", "Done", "Owners", "Init", "Tap", "Console", "Ready", "Go", "Started",
        "Failed", "device",
    ];
    let number = i64::try_from(number).ok()?;
    match number {
        libc::SYS_sendmsg => {
            // struct msghdr: name and its length before the list of buffers; a
            // buffer is an address and a length.
            let word = |at: u64| Some(u64::from_ne_bytes(read(pid, at, 8)?.try_into().ok()?));
            let buffers = word(args[1] + 16)?;
            let (at, length) = (word(buffers)?, word(buffers + 8)?);
            let bytes = read(pid, at, usize::try_from(length).ok()?.min(64))?;
            let text = String::from_utf8_lossy(&bytes);
            // "Name", or {"Name":…}.
            let name = text.trim_start_matches('{').strip_prefix('"')?.split('"').next()?;
            MESSAGES.iter().find(|message| **message == name).map(|name| Deed::Says(name))
        }
        libc::SYS_write if args[2] == 1 => {
            let file = fs::read_link(format!("/proc/{pid}/fd/{}", args[0])).ok()?;
            file.to_str()?.starts_with("pipe:").then_some(Deed::Signals)
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => renamed(&text(pid, args[1])?),
        libc::SYS_renameat | libc::SYS_renameat2 => renamed(&text(pid, args[3])?),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => unlinked(&text(pid, args[0])?),
        libc::SYS_unlinkat => unlinked(&text(pid, args[1])?),
        _ => None,
    }
}

fn renamed(to: &str) -> Option<Deed> {
    ["state.json", "/.gone-"].into_iter().find(|name| to.contains(name)).map(Deed::Renames)
}

fn unlinked(path: &str) -> Option<Deed> {
    (path.rsplit('/').next() == Some("lock")).then_some(Deed::Unlinks("lock"))
}

fn read(pid: i32, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// A string that ends in NUL, of up to 512 bytes.
fn text(pid: i32, at: u64) -> Option<String> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = Vec::new();
    while bytes.len() < 512 {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, at + bytes.len() as u64).ok()?;
        if byte[0] == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).ok()
}
