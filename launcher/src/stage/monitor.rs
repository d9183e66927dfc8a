//! The monitor: makes the container's processes, watches over them, and takes
//! all of them down when one has to go.
//!
//! # Theory of operation
//!
//! One thread, one poll loop over the channels of the two stages, the pidfds of
//! all children, the services' error pipes, a signalfd and the terminal. Each
//! event moves the start-up on (see the order in [`super`]) or ends the loop:
//! with the workload's exit code when init ends, or with a failure when
//! anything else does. Then everything is torn down, always in one order:
//! storage, init (with its pid namespace), the overlay, netstack; each is
//! waited for before the next.
//!
//! Invariants: nothing is waited for but by poll; each child is reaped exactly
//! once, through its pidfd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::storage;
use crate::channel::{Channel, Fault, ToMonitor, ToStage};
use crate::plan::{MonitorStep, Plan};
use crate::run::RunError;
use crate::spawn::{self, Kinship, Ours, Pipes, Theirs};
use crate::sys::process::{self, Forked};
use crate::sys::userns;
use crate::terminal::Relay;

/// The signals that are passed on to the workload.
pub const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];
/// How long a service may take to end by itself, in milliseconds: the overlay
/// may have to write much to a slow disk.
const GRACE: u16 = 10_000;
/// How long a service that has failed may take to say why, in milliseconds.
const LAST_WORDS: u16 = 1_000;

/// What the monitor is told besides the plan.
pub struct Orders<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Builds the system call filter; called while the id maps are written.
    pub filter: &'a dyn Fn() -> Result<Vec<u8>, RunError>,
    /// Called once the workload runs, with init's process number and the overlay's.
    pub started: &'a mut dyn FnMut(i32, Option<i32>) -> Result<(), RunError>,
    /// Standard input belongs to the workload.
    pub input: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The exit code.
    pub code: u8,
    /// The workload has run.
    pub started: bool,
}

/// Makes the container and stays until it has ended. Nothing of it is left
/// then but its files.
///
/// # Errors
/// [`RunError`]: it did not come to run, or a service died under it.
pub fn supervise(orders: Orders<'_>) -> Result<Ended, RunError> {
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    mask.add(Signal::SIGWINCH);
    let old = mask
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
        .map_err(RunError::os("cannot block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(RunError::os("cannot receive signals"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(RunError::os("cannot adopt orphans"))?;
    let mut monitor = Monitor {
        orders,
        signals,
        storage: None,
        storage_channel: None,
        init: None,
        init_channel: None,
        overlay: None,
        netstack: None,
        tap: None,
        overlay_pipes: None,
        relay: None,
        progress: Progress::default(),
    };
    let outcome = monitor.watch();
    if let Some(relay) = &mut monitor.relay {
        relay.drain();
    }
    let outcome = outcome.map_err(|error| monitor.last_words(error));
    let torn_down = monitor.tear_down();
    drop(monitor);
    // Signals that came while everything was taken down had their effect.
    old.thread_set_mask().map_err(RunError::os("cannot restore the signal mask"))?;
    let ended = outcome?;
    torn_down?;
    Ok(ended)
}

/// A child.
#[derive(Debug)]
struct Process {
    name: &'static str,
    pid: i32,
    pidfd: OwnedFd,
    /// Its end, once it was waited for.
    ended: Option<u8>,
}

impl Process {
    fn open(name: &'static str, pid: i32) -> Result<Self, RunError> {
        let pidfd = process::pidfd_open(pid).map_err(RunError::os("cannot watch a process"))?;
        Ok(Self { name, pid, pidfd, ended: None })
    }

    /// Reaps it if it has ended within `timeout`; whether it has.
    fn reap(&mut self, timeout: PollTimeout) -> Result<bool, RunError> {
        if self.ended.is_some() {
            return Ok(true);
        }
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(RunError::os("cannot wait")(errno)),
            }
        }
        let status = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED)
            .map_err(RunError::os("cannot wait for a process"))?;
        self.ended = Some(match status {
            WaitStatus::Exited(_, code) => code as u8,
            WaitStatus::Signaled(_, signal, _) => 128u8.saturating_add(signal as u8),
            _ => 125,
        });
        Ok(true)
    }

    fn kill(&mut self) -> Result<(), RunError> {
        if self.ended.is_none() {
            // ESRCH cannot be: it has not been waited for. EPERM cannot either.
            process::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL)
                .map_err(RunError::os("cannot kill a process"))?;
            self.reap(PollTimeout::NONE)?;
        }
        Ok(())
    }
}

/// A service that was started.
#[derive(Debug)]
struct Service {
    process: Process,
    exit: Option<OwnedFd>,
    stderr: Option<File>,
    said: Vec<u8>,
    ready: Option<io::PipeReader>,
}

impl Service {
    fn new(process: Process, ours: Ours, ready: Option<io::PipeReader>) -> Result<Self, RunError> {
        let stderr = File::from(ours.stderr);
        fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(RunError::os("cannot set up a pipe"))?;
        Ok(Self { process, exit: Some(ours.exit), stderr: Some(stderr), said: Vec::new(), ready })
    }

    /// Reads what it has said; passes whole lines on when `aloud`.
    fn listen(&mut self, aloud: bool) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut buffer = [0; 4096];
        loop {
            match stderr.read(&mut buffer) {
                Ok(0) => {
                    self.stderr = None;
                    break;
                }
                Ok(length) => self.said.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.stderr = None;
                    break;
                }
            }
        }
        // What nobody has asked for is kept within bounds.
        if self.said.len() > 64 * 1024 {
            self.said.drain(..self.said.len() - 64 * 1024);
        }
        while aloud && let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            say(&format!("{}: {}", self.process.name, String::from_utf8_lossy(&line).trim_end()));
        }
    }

    /// Tells it to end, and sees to it.
    fn stop(&mut self) -> Result<(), RunError> {
        self.exit = None;
        if !self.process.reap(PollTimeout::from(GRACE))? {
            self.process.kill()?;
        }
        Ok(())
    }
}

/// Prints a line on standard error, where there may be nobody any more.
pub fn say(line: &str) {
    drop(writeln!(io::stderr(), "coracle: {line}"));
}

/// How far the start-up has come.
#[derive(Debug, Default)]
struct Progress {
    init_ready: bool,
    network_ready: bool,
    gone: bool,
    started: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    StorageChannel,
    InitChannel,
    StorageEnd,
    InitEnd,
    OverlayEnd,
    OverlayWords,
    NetstackEnd,
    NetstackWords,
    NetstackReady,
    Terminal,
    Input,
}

struct Monitor<'a> {
    orders: Orders<'a>,
    signals: SignalFd,
    storage: Option<Process>,
    storage_channel: Option<Channel>,
    init: Option<Process>,
    init_channel: Option<Channel>,
    overlay: Option<Service>,
    netstack: Option<Service>,
    tap: Option<OwnedFd>,
    overlay_pipes: Option<(Ours, Theirs)>,
    relay: Option<Relay>,
    progress: Progress,
}

impl Monitor<'_> {
    fn watch(&mut self) -> Result<Ended, RunError> {
        for step in &self.orders.plan.monitor {
            self.prepare(step)?;
        }
        self.start_storage()?;
        loop {
            for source in self.wait()? {
                if let Some(ended) = self.handle(source)? {
                    return Ok(ended);
                }
            }
        }
    }

    fn prepare(&self, step: &MonitorStep) -> Result<(), RunError> {
        match step {
            MonitorStep::MakeDirectory(path) => std::fs::create_dir_all(path).map_err(|e| {
                RunError::os(format!("cannot make the directory {}", path.display()))(e)
            }),
            MonitorStep::WriteFile { path, content } => std::fs::write(path, content)
                .map_err(|e| RunError::os(format!("cannot write {}", path.display()))(e)),
            MonitorStep::Netstack { .. } => Ok(()),
        }
    }

    fn start_storage(&mut self) -> Result<(), RunError> {
        let channel = RunError::os("cannot make a channel");
        let (own, theirs) = Channel::pair().map_err(channel)?;
        let (init_own, init_theirs) =
            Channel::pair().map_err(RunError::os("cannot make a channel"))?;
        let Pipes { ours, theirs: overlay_theirs } =
            Pipes::new().map_err(RunError::os("cannot make a pipe"))?;
        let null = if self.orders.input {
            None
        } else {
            Some(File::open("/dev/null").map_err(RunError::os("cannot open /dev/null"))?)
        };
        let monitor = std::process::id() as i32;
        match process::fork().map_err(RunError::os("cannot fork"))? {
            Forked::Child => {
                drop((own, init_own, ours, overlay_theirs));
                storage::enter(monitor, null.as_ref().map(AsFd::as_fd), &theirs, &init_theirs)
            }
            Forked::Parent(pid) => {
                self.storage = Some(Process::open("storage", pid)?);
                self.storage_channel = Some(own);
                self.init_channel = Some(init_own);
                self.overlay_pipes = Some((ours, overlay_theirs));
                Ok(())
            }
        }
    }

    /// Waits until something happens; what did.
    fn wait(&self) -> Result<Vec<Source>, RunError> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        let read = PollFlags::POLLIN;
        // Channels before ends: what a process said before it ended comes first.
        if let Some(channel) = &self.storage_channel {
            add(Source::StorageChannel, channel.as_fd(), read);
        }
        if let Some(channel) = &self.init_channel {
            add(Source::InitChannel, channel.as_fd(), read);
        }
        if let Some((master, writing)) = self.relay.as_ref().and_then(Relay::master) {
            let flags = if writing { read | PollFlags::POLLOUT } else { read };
            add(Source::Terminal, master, flags);
        }
        let stdin = io::stdin();
        if self.relay.as_ref().is_some_and(Relay::wants_input) {
            add(Source::Input, stdin.as_fd(), read);
        }
        for (service, words, end) in [
            (&self.overlay, Source::OverlayWords, Source::OverlayEnd),
            (&self.netstack, Source::NetstackWords, Source::NetstackEnd),
        ] {
            let Some(service) = service else { continue };
            if let Some(stderr) = &service.stderr {
                add(words, stderr.as_fd(), read);
            }
            if let Some(ready) = &service.ready {
                add(Source::NetstackReady, ready.as_fd(), read);
            }
            if service.process.ended.is_none() {
                add(end, service.process.pidfd.as_fd(), read);
            }
        }
        for (process, end) in [(&self.storage, Source::StorageEnd), (&self.init, Source::InitEnd)] {
            if let Some(process) = process.as_ref().filter(|process| process.ended.is_none()) {
                add(end, process.pidfd.as_fd(), read);
            }
        }
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(RunError::os("cannot wait for events")(errno)),
            }
        }
        let happened = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(sources.into_iter().zip(happened).filter(|(_, h)| *h).map(|(s, _)| s).collect())
    }

    fn handle(&mut self, source: Source) -> Result<Option<Ended>, RunError> {
        match source {
            Source::Signals => return self.take_signals(),
            Source::StorageChannel => self.hear_storage()?,
            Source::InitChannel => return self.hear_init(),
            Source::Terminal => {
                if let Some(relay) = &mut self.relay {
                    relay.take_output();
                }
            }
            Source::Input => {
                if let Some(relay) = &mut self.relay {
                    relay.take_input();
                }
            }
            Source::OverlayWords | Source::NetstackWords => {
                let service = match source {
                    Source::OverlayWords => &mut self.overlay,
                    _ => &mut self.netstack,
                };
                if let Some(service) = service {
                    service.listen(self.progress.started);
                }
            }
            Source::NetstackReady => self.network_ready()?,
            Source::OverlayEnd => return Err(RunError::ServiceDied("overlayfs-fuse")),
            Source::NetstackEnd => return Err(RunError::ServiceDied("netstack")),
            Source::StorageEnd => {
                if let Some(storage) = &mut self.storage {
                    storage.reap(PollTimeout::NONE)?;
                    if storage.ended != Some(0) {
                        return Err(RunError::StageDied("storage stage"));
                    }
                }
            }
            Source::InitEnd => return self.init_ended(),
        }
        Ok(None)
    }

    fn take_signals(&mut self) -> Result<Option<Ended>, RunError> {
        while let Some(info) =
            self.signals.read_signal().map_err(RunError::os("cannot read a signal"))?
        {
            let number = info.ssi_signo as i32;
            if number == libc::SIGWINCH {
                if let Some(relay) = &mut self.relay {
                    relay.resize();
                }
                continue;
            }
            match &self.init {
                Some(init) if self.progress.started => {
                    // ESRCH: it has just ended, which the next turn sees.
                    drop(process::pidfd_signal(init.pidfd.as_fd(), number));
                }
                // Nothing runs yet that could handle it.
                _ => {
                    let code = 128u8.saturating_add(number as u8);
                    return Ok(Some(Ended { code, started: false }));
                }
            }
        }
        Ok(None)
    }

    fn hear_storage(&mut self) -> Result<(), RunError> {
        let Some(channel) = &self.storage_channel else { return Ok(()) };
        let message = channel
            .receive::<ToMonitor>()
            .map_err(RunError::os("cannot hear the storage stage"))?;
        match message.map(|(message, _)| message) {
            None => self.storage_channel = None,
            Some(ToMonitor::Unshared) => self.send_plan()?,
            Some(ToMonitor::Overlay(pid)) => {
                let process = Process::open("overlayfs-fuse", pid)?;
                if let Some((ours, _)) = self.overlay_pipes.take() {
                    self.overlay = Some(Service::new(process, ours, None)?);
                }
            }
            Some(ToMonitor::Init(pid)) => self.init = Some(Process::open("init", pid)?),
            Some(ToMonitor::Failed(fault)) => return Err(RunError::Stage(fault)),
            Some(_) => return Err(RunError::StageDied("storage stage")),
        }
        Ok(())
    }

    fn send_plan(&mut self) -> Result<(), RunError> {
        let (Some(channel), Some(storage)) = (&self.storage_channel, &self.storage) else {
            return Ok(());
        };
        userns::write_maps(storage.pid, &self.orders.plan.map)?;
        channel.send(&ToStage::Mapped, &[]).map_err(RunError::os("cannot reach storage"))?;
        let plan = serde_json::to_vec(self.orders.plan)
            .map_err(io::Error::from)
            .map_err(RunError::os("cannot write the plan (are all paths valid UTF-8?)"))?;
        let filter = (self.orders.filter)()?;
        let memory = |bytes: &[u8]| {
            storage::sealed(c"coracle-plan", &mut &bytes[..])
                .map_err(RunError::os("cannot make a file in memory"))
        };
        let (plan, filter) = (memory(&plan)?, memory(&filter)?);
        if let Some((_, theirs)) = &self.overlay_pipes {
            let fds = [plan.as_fd(), filter.as_fd(), theirs.exit.as_fd(), theirs.stderr.as_fd()];
            channel
                .send(&ToStage::Plan, &fds)
                .map_err(RunError::os("cannot reach the storage stage"))?;
        }
        Ok(())
    }

    fn hear_init(&mut self) -> Result<Option<Ended>, RunError> {
        let Some(channel) = &self.init_channel else { return Ok(None) };
        let message = channel.receive::<ToMonitor>().map_err(RunError::os("cannot hear init"))?;
        let Some((message, mut fds)) = message else {
            self.init_channel = None;
            return Ok(None);
        };
        match message {
            ToMonitor::Tap => {
                self.tap = fds.pop();
                self.start_netstack()?;
            }
            ToMonitor::Console => {
                if let Some(master) = fds.pop() {
                    let input = self.orders.plan.workload.interactive;
                    let relay = Relay::new(master, input)
                        .map_err(RunError::os("cannot use the terminal"))?;
                    self.relay = Some(relay);
                }
            }
            ToMonitor::Ready => {
                self.progress.init_ready = true;
                self.go()?;
            }
            ToMonitor::Started => {
                self.progress.started = true;
                if let Some(init) = &self.init {
                    let overlay = self.overlay.as_ref().map(|overlay| overlay.process.pid);
                    (self.orders.started)(init.pid, overlay)?;
                }
            }
            ToMonitor::Failed(fault) => return Err(RunError::Stage(fault)),
            _ => return Err(RunError::StageDied("init")),
        }
        Ok(None)
    }

    fn start_netstack(&mut self) -> Result<(), RunError> {
        let netstack = self.orders.plan.monitor.iter().find_map(|step| match step {
            MonitorStep::Netstack { program, arguments } => Some((program, arguments)),
            _ => None,
        });
        let (Some((program, arguments)), Some(tap)) = (netstack, self.tap.take()) else {
            return Err(RunError::Stage(Fault::said("a network device came unasked for")));
        };
        let Pipes { ours, theirs } = Pipes::new().map_err(RunError::os("cannot make a pipe"))?;
        let inherited = [("--tap-fd", tap.as_fd())];
        let started = spawn::start(Kinship::Child, program, arguments, &inherited, &theirs)
            .map_err(RunError::os(format!("cannot start {}", program.display())))?;
        let process = Process::open("netstack", started.pid)?;
        self.netstack = Some(Service::new(process, ours, Some(started.ready))?);
        Ok(())
    }

    fn network_ready(&mut self) -> Result<(), RunError> {
        let Some(service) = &mut self.netstack else { return Ok(()) };
        if let Some(mut ready) = service.ready.take() {
            spawn::wait_ready(&mut ready).map_err(|_| RunError::ServiceDied("netstack"))?;
        }
        self.progress.network_ready = true;
        self.go()
    }

    /// Lets the workload start when everything it needs is there.
    fn go(&mut self) -> Result<(), RunError> {
        let network = self
            .orders
            .plan
            .monitor
            .iter()
            .any(|step| matches!(step, MonitorStep::Netstack { .. }));
        let ready = self.progress.init_ready && (self.progress.network_ready || !network);
        if !ready || self.progress.gone {
            return Ok(());
        }
        self.progress.gone = true;
        if let Some(channel) = &self.init_channel {
            channel.send(&ToStage::Go, &[]).map_err(RunError::os("cannot reach init"))?;
        }
        Ok(())
    }

    fn init_ended(&mut self) -> Result<Option<Ended>, RunError> {
        // What it said last may have come between two looks.
        while self.init_channel.is_some() {
            if let Some(ended) = self.hear_init()? {
                return Ok(Some(ended));
            }
        }
        let Some(init) = &mut self.init else { return Ok(None) };
        init.reap(PollTimeout::NONE)?;
        match init.ended {
            Some(code) if self.progress.started => Ok(Some(Ended { code, started: true })),
            _ => Err(RunError::StageDied("init")),
        }
    }

    /// When a service is behind a failure: its own words about it.
    fn last_words(&mut self, error: RunError) -> RunError {
        let patience = match &error {
            RunError::ServiceDied(_) | RunError::Stage(_) | RunError::StageDied(_) => LAST_WORDS,
            _ => return error,
        };
        for service in [&mut self.overlay, &mut self.netstack].into_iter().flatten() {
            let suspect = match &error {
                RunError::ServiceDied(name) => *name == service.process.name,
                RunError::Stage(fault) => {
                    fault.what == storage::NO_ROOT && service.process.name == "overlayfs-fuse"
                }
                _ => false,
            };
            let timeout = if suspect { PollTimeout::from(patience) } else { PollTimeout::ZERO };
            if !service.process.reap(timeout).unwrap_or(false) {
                continue;
            }
            service.listen(false);
            let said = String::from_utf8_lossy(&service.said).trim().replace('\n', "; ");
            if !said.is_empty() {
                // A program names itself in what it says; once is enough.
                let name = service.process.name;
                let own = said.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
                let said = own.unwrap_or(&said).to_owned();
                return RunError::Service { name, said };
            }
            return RunError::ServiceDied(service.process.name);
        }
        error
    }

    fn tear_down(&mut self) -> Result<(), RunError> {
        self.storage_channel = None;
        self.init_channel = None;
        if let Some(storage) = &mut self.storage {
            storage.kill()?;
        }
        if let Some(init) = &mut self.init {
            init.kill()?;
        }
        if let Some(overlay) = &mut self.overlay {
            overlay.stop()?;
            overlay.listen(true);
        }
        self.overlay_pipes = None;
        if let Some(netstack) = &mut self.netstack {
            netstack.stop()?;
            netstack.listen(true);
        }
        self.reap_unannounced()
    }

    /// Children that storage died too early to name.
    fn reap_unannounced(&self) -> Result<(), RunError> {
        use nix::sys::wait::waitpid;
        // They hold pipes of which the other ends are closed now, or have lost
        // the stage they waited for: each ends by itself.
        loop {
            match waitpid(None, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(RunError::os("cannot wait for a process")(errno)),
            }
        }
    }
}
