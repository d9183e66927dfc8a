//! The monitor: makes the container's processes, watches over them, and takes
//! all of them down when one has to go.
//!
//! # Theory of operation
//!
//! One thread, one poll loop over the channels of the two stages, the pidfds of
//! all children, the services' error pipes, a signalfd and the console. Each
//! event moves the start-up on (see the order in [`super`]) or ends the loop:
//! with the workload's exit code when init ends, or with a failure when
//! anything else does. Then everything is torn down, always in one order:
//! storage, init (with its pid namespace), the overlay, netstack; each is
//! waited for before the next.
//!
//! Invariants: nothing is waited for but by poll; each child is reaped exactly
//! once, through its pidfd.

mod children;
mod console;
mod cradle;
mod end;
mod prepare;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::storage;
use crate::channel::{Channel, Fault, ToMonitor, ToStage};
use crate::plan::{MonitorStep, Plan};
use crate::run::RunError;
use crate::spawn::{self, Ours, Pipes, Theirs};
use crate::sys::pages::Rest;
use crate::sys::process;
use crate::sys::userns::Maps;
use crate::text::printable;
use children::{End, Process, Service};
pub use console::{Console, Streams};
use console::{Deed, Slot, is_request_to_end};
pub use cradle::Cradle;

/// The signals that are passed on to the workload.
pub const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];
/// What the monitor is told besides the plan.
pub struct Orders<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Builds the system call filter.
    pub filter: &'a dyn Fn() -> Result<Vec<u8>, RunError>,
    /// Called once the workload runs, with init's process number and the overlay's.
    pub started: &'a mut dyn FnMut(i32, Option<i32>) -> Result<(), RunError>,
    /// Who may be attached to it.
    pub console: &'a mut Console,
    /// What the container changed in its root goes with it.
    pub discard: bool,
    /// Where signals arrive, see [`signals`].
    pub signals: &'a SignalFd,
    /// Called when the command in front goes and the container is to live on.
    pub background: &'a mut dyn FnMut(&mut Console) -> Result<(), RunError>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The exit code.
    pub code: u8,
    /// The workload has run.
    pub started: bool,
}

/// Has the signals that are passed on arrive at a descriptor, for the rest of
/// this process's life: those that come while everything is taken down have had
/// their effect.
///
/// # Errors
/// As of signalfd(2).
pub fn signals() -> Result<SignalFd, RunError> {
    let mask: SigSet = FORWARDED.into_iter().collect();
    mask.thread_block().map_err(RunError::os("cannot block signals"))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(RunError::os("cannot receive signals"))
}

/// Makes the container and stays until it has ended. Nothing of it is left
/// then but its files.
///
/// # Errors
/// [`RunError`]: it did not come to run, or a service died under it.
pub fn supervise(orders: Orders<'_>, cradle: Cradle) -> Result<Ended, RunError> {
    let (storage, channels, maps) = cradle.open();
    let (storage_channel, init_channel, overlay_pipes) = channels.map_or_else(
        || (None, None, None),
        |channels| (Some(channels.storage), Some(channels.init), Some(channels.overlay)),
    );
    let mut monitor = Monitor {
        orders,
        storage,
        maps,
        storage_channel,
        owners: None,
        init: None,
        init_channel,
        overlay: None,
        netstack: None,
        taps: Vec::new(),
        overlay_pipes,
        group: None,
        group_fd: None,
        progress: Progress::default(),
        rest: None,
    };
    let outcome = monitor.watch().map_err(|error| monitor.last_words(error));
    let torn_down = monitor.tear_down();
    // Nobody prints any more: this is the last of it.
    let unlogged = monitor.orders.console.drain();
    let ended = outcome?;
    torn_down?;
    match unlogged {
        Some(error) => Err(RunError::os("the log lacks something: it could not be written")(error)),
        None => Ok(ended),
    }
}

/// Prints a line on standard error, where there may be nobody any more.
pub fn say(line: &str) {
    drop(writeln!(io::stderr(), "coracle: {}", printable(line)));
}

/// How far the start-up has come.
#[derive(Debug, Default)]
struct Progress {
    /// The root needs no process: the storage stage ends.
    stored: bool,
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
    OwnersEnd,
    InitEnd,
    OverlayEnd,
    OverlayWords,
    NetstackEnd,
    NetstackWords,
    NetstackReady,
    Console(Slot),
}

struct Monitor<'a> {
    orders: Orders<'a>,
    storage: Option<Process>,
    /// Until the plan is sent.
    maps: Option<Maps>,
    storage_channel: Option<Channel>,
    owners: Option<Process>,
    init: Option<Process>,
    init_channel: Option<Channel>,
    overlay: Option<Service>,
    netstack: Option<Service>,
    taps: Vec<OwnedFd>,
    overlay_pipes: Option<(Ours, Theirs)>,
    /// The container's control group, and a descriptor of it to make init in.
    group: Option<PathBuf>,
    group_fd: Option<OwnedFd>,
    progress: Progress,
    /// From when on there is only to wait.
    rest: Option<Rest>,
}

impl Monitor<'_> {
    fn watch(&mut self) -> Result<Ended, RunError> {
        for step in &self.orders.plan.monitor {
            self.prepare(step)?;
        }
        self.send_plan()?;
        loop {
            for source in self.wait()? {
                if let Some(ended) = self.handle(source)? {
                    return self.not_for_want_of_files(ended);
                }
            }
            if !self.orders.console.tidy()
                && let Some(ended) = self.abandon()
            {
                return Ok(ended);
            }
        }
    }

    /// A program whose file system has died fails by that, perhaps a moment before the
    /// death can be seen: its pages are gone before the process that served them is.
    fn not_for_want_of_files(&mut self, ended: Ended) -> Result<Ended, RunError> {
        if ended.started && ended.code != 0 {
            let overlay = self.overlay.as_mut().map(|service| &mut service.process);
            if let Some(process) = overlay
                && process.was_killed()
            {
                return Err(RunError::ServiceDied(process.name));
            }
        }
        Ok(ended)
    }

    /// Waits until something happens; what did.
    fn wait(&mut self) -> Result<Vec<Source>, RunError> {
        let timeout = self.rest.as_mut().map_or(PollTimeout::NONE, Rest::timeout);
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.orders.signals.as_fd(), PollFlags::POLLIN)];
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
        for (slot, fd, flags) in self.orders.console.interests() {
            add(Source::Console(slot), fd, flags);
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
        for (process, end) in [
            (&self.storage, Source::StorageEnd),
            (&self.owners, Source::OwnersEnd),
            (&self.init, Source::InitEnd),
        ] {
            if let Some(process) = process.as_ref().filter(|process| process.ended.is_none()) {
                add(end, process.pidfd.as_fd(), read);
            }
        }
        loop {
            match poll(&mut fds, timeout) {
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
            Source::Console(slot) => return self.take_console(slot),
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
            Source::StorageEnd => self.storage_ended()?,
            Source::OwnersEnd => {
                if let Some(owners) = &mut self.owners {
                    owners.reap(PollTimeout::NONE)?;
                    // It ends by itself when all of the container has ended.
                    if owners.ended != Some(End::Exited(0)) {
                        return Err(RunError::StageDied("keeper of owners"));
                    }
                }
            }
            Source::InitEnd => return self.init_ended(),
        }
        Ok(None)
    }

    fn take_signals(&mut self) -> Result<Option<Ended>, RunError> {
        while let Some(info) =
            self.orders.signals.read_signal().map_err(RunError::os("cannot read a signal"))?
        {
            if let Some(ended) = self.pass_on(info.ssi_signo as i32) {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    fn pass_on(&mut self, number: i32) -> Option<Ended> {
        if is_request_to_end(number) {
            self.orders.console.quit();
        }
        match &self.init {
            Some(init) if self.progress.started => {
                // ESRCH: it has just ended, which the next turn sees.
                drop(process::pidfd_signal(init.pidfd.as_fd(), number));
                None
            }
            // Nothing runs yet that could handle it.
            _ => Some(Ended { code: 128u8.saturating_add(number as u8), started: false }),
        }
    }

    fn take_console(&mut self, slot: Slot) -> Result<Option<Ended>, RunError> {
        match self.orders.console.take(slot) {
            Some(Deed::Signal(number)) => Ok(self.pass_on(number)),
            Some(Deed::Quit) => {
                let running = self.progress.started;
                if let Slot::Client(index) = slot {
                    self.orders.console.answer_quit(index, running);
                }
                Ok((!running).then(|| Ended { code: 128 + libc::SIGTERM as u8, started: false }))
            }
            Some(Deed::Background) => {
                (self.orders.background)(self.orders.console)?;
                self.orders.console.release_front();
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// The command in front was killed.
    fn abandon(&mut self) -> Option<Ended> {
        self.orders.console.quit();
        self.pass_on(libc::SIGKILL)
    }

    fn hear_storage(&mut self) -> Result<(), RunError> {
        let Some(channel) = &self.storage_channel else { return Ok(()) };
        let message = channel
            .receive::<ToMonitor>()
            .map_err(RunError::os("cannot hear the storage stage"))?;
        match message.map(|(message, _)| message) {
            None => self.storage_channel = None,
            Some(ToMonitor::Overlay) => {
                if let (Some(process), Some((ours, _))) =
                    (self.storage.take(), self.overlay_pipes.take())
                {
                    let process = Process { name: "overlayfs-fuse", ..process };
                    self.overlay = Some(Service::new(process, ours, None)?);
                }
            }
            Some(ToMonitor::Done) => {
                self.progress.stored = true;
                // No service comes that it would be for.
                self.overlay_pipes = None;
            }
            Some(ToMonitor::Owners(pid)) => self.owners = Some(Process::open("owners", pid)?),
            Some(ToMonitor::Init(pid)) => self.init = Some(Process::open("init", pid)?),
            Some(ToMonitor::Failed(fault)) => return Err(RunError::Stage(fault)),
            Some(_) => return Err(RunError::StageDied("storage stage")),
        }
        Ok(())
    }

    fn storage_ended(&mut self) -> Result<(), RunError> {
        self.hear_storage_out()?;
        let Some(storage) = &mut self.storage else { return Ok(()) };
        storage.reap(PollTimeout::NONE)?;
        match storage.ended {
            // All it had left to do was to tell init. Where that never came, init says so.
            Some(End::Exited(0) | End::Killed(_)) if self.progress.stored => Ok(()),
            _ => Err(RunError::StageDied("storage stage")),
        }
    }

    fn send_plan(&mut self) -> Result<(), RunError> {
        let plan = serde_json::to_vec(self.orders.plan)
            .map_err(io::Error::from)
            .map_err(RunError::os("cannot write the plan (are all paths valid UTF-8?)"))?;
        let filter = (self.orders.filter)()?;
        let memory = |bytes: &[u8]| {
            storage::sealed(c"coracle-plan", &mut &bytes[..])
                .map_err(RunError::os("cannot make a file in memory"))
        };
        let (plan, filter) = (memory(&plan)?, memory(&filter)?);
        if let Some(maps) = self.maps.take()
            && let Err(error) = maps.finish()
        {
            // Of a process that has ended nothing can be mapped: what it says is the cause.
            let ended = self.storage.as_mut().map(|storage| storage.reap(PollTimeout::ZERO));
            return if let Some(Ok(true)) = ended { Ok(()) } else { Err(error.into()) };
        }
        let (Some(channel), Some((_, theirs))) = (&self.storage_channel, &self.overlay_pipes)
        else {
            return Ok(());
        };
        let mut fds =
            vec![plan.as_fd(), filter.as_fd(), theirs.exit.as_fd(), theirs.stderr.as_fd()];
        fds.extend(self.group_fd.as_ref().map(AsFd::as_fd));
        match channel.send(&ToStage::Plan, &fds) {
            // It is gone: why comes next.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(RunError::os("cannot reach the storage stage")),
        }
    }

    fn hear_init(&mut self) -> Result<Option<Ended>, RunError> {
        let Some(channel) = &self.init_channel else { return Ok(None) };
        let message = channel.receive::<ToMonitor>().map_err(RunError::os("cannot hear init"))?;
        let Some((message, mut fds)) = message else {
            self.init_channel = None;
            // Without an init it hangs up when the workload is executed.
            if self.orders.plan.workload.no_init && self.progress.gone {
                self.begin()?;
            }
            return Ok(None);
        };
        match message {
            ToMonitor::Tap => {
                self.taps = fds;
                self.start_netstack()?;
            }
            ToMonitor::Console => {
                if let Some(master) = fds.pop() {
                    let console = &mut self.orders.console;
                    console.terminal(master).map_err(RunError::os("cannot use the terminal"))?;
                }
            }
            ToMonitor::Ready => {
                self.progress.init_ready = true;
                self.go()?;
            }
            ToMonitor::Started => self.begin()?,
            ToMonitor::Failed(fault) => return Err(RunError::Stage(fault)),
            _ => return Err(RunError::StageDied("init")),
        }
        Ok(None)
    }

    /// The workload runs.
    fn begin(&mut self) -> Result<(), RunError> {
        self.progress.started = true;
        if let Some(init) = &self.init {
            let overlay = self.overlay.as_ref().map(|overlay| overlay.process.pid);
            (self.orders.started)(init.pid, overlay)?;
        }
        self.rest = Some(Rest::begin());
        Ok(())
    }

    fn start_netstack(&mut self) -> Result<(), RunError> {
        let netstack = self.orders.plan.monitor.iter().find_map(|step| match step {
            MonitorStep::Netstack { program, arguments } => Some((program, arguments)),
            _ => None,
        });
        let taps = std::mem::take(&mut self.taps);
        let (Some((program, arguments)), false) = (netstack, taps.is_empty()) else {
            return Err(RunError::Stage(Fault::said("a network device came unasked for")));
        };
        let Pipes { ours, theirs } = Pipes::new().map_err(RunError::os("cannot make a pipe"))?;
        let inherited: Vec<_> = taps.iter().map(|tap| ("--tap-fd", tap.as_fd())).collect();
        let started =
            spawn::Service { program, arguments, dir: "/".as_ref(), inherited: &inherited }
                .start(&theirs)
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
        let network = self.orders.plan.has_netstack();
        let ready = self.progress.init_ready && (self.progress.network_ready || !network);
        if !ready || self.progress.gone {
            return Ok(());
        }
        self.progress.gone = true;
        // Without a network init has gone on by itself.
        if network && let Some(channel) = &self.init_channel {
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
            Some(end) if self.progress.started => {
                Ok(Some(Ended { code: end.code(), started: true }))
            }
            _ => Err(RunError::StageDied("init")),
        }
    }
}
