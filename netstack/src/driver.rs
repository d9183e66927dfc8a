//! The event loop: reads the TAP, host sockets, listeners, the exit descriptor
//! and the control socket. The only reader of the clock.
//!
//! # Theory of operation
//!
//! A worker for each queue of the device, which is a thread, an epoll and a stack of
//! its own. The kernel gives all frames of a connection to one queue. The main worker
//! has everything else besides: signals, the API socket, published ports, and the
//! frames that others have no use for, which come through its [`Inbox`]. With one
//! queue it is alone.
//!
//! A turn: wait; take a batch of frames from the
//! guest; carry out what the stack wants of the host; let the host's sockets fill
//! the stack, up to what the processor's cache holds; write frames until there are
//! none. In this order one
//! acknowledgement to the guest covers a batch and carries the window that the
//! host has reopened. The clock is read once a turn.
//!
//! The loop sleeps without limit when the stack has no deadline. When its last waits
//! were short it looks for events for some microseconds before ([`crate::spin`]).

mod frames;
mod observe;
mod published;
mod rest;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use self::published::spare_descriptor;
use crate::clients::{self, Clients};
use crate::config::Config;
use crate::confine;
use crate::egress;
use crate::forward::{self, Forwards as _, PUBLISH_TOKEN, Table};
use crate::host::{FLOW_TOKEN, Host};
use crate::inbox::{Contents, Inbox, Message};
use crate::metrics::Traffic;
use crate::pcap::Capture;
use crate::reader::{News, Reader};
use crate::report;
use crate::spin::{SPIN_MAX, Spin};
use crate::stack::egress::Egress;
use crate::stack::ports::Ports;
use crate::stack::{Elsewhere, FlowId, HostCommand, Netstack};
use crate::sys::{process, random};
use crate::tap::Offloads;

/// Queues asked for at most.
const QUEUES_MAX: usize = 4;

const TAP: u64 = 0;
const EXIT: u64 = 1;
const SIGNAL: u64 = 2;
const API: u64 = 3;
const INBOX: u64 = 4;
const NEWS: u64 = 5;
const METRICS: u64 = 6;
/// Marks an epoll token as an API client's; its id is below it.
const API_CLIENT: u64 = 1 << 61;
/// The same for a client that wants counters.
const METRICS_CLIENT: u64 = 1 << 60;

/// What the loop runs on.
#[derive(Debug)]
pub struct Inputs {
    /// Validated configuration.
    pub config: Config,
    /// The queues of an attached TAP device, one at least: each gets a worker.
    pub queues: Vec<OwnedFd>,
    /// What was granted on it.
    pub offloads: Offloads,
    /// Who has made the device, to be waited for when all else is done.
    pub maker: Option<process::Child>,
    /// Receives `1` and is closed once everything is in place.
    pub ready: Option<OwnedFd>,
    /// The loop ends when this hangs up.
    pub exit: Option<OwnedFd>,
    /// Where slirp4netns' API is served.
    pub api: Option<clients::Listener>,
    /// Where the guest may connect to.
    pub egress: Option<Egress>,
    /// Where frames are written to, besides.
    pub capture: Option<Capture>,
    /// Where counters are given out.
    pub metrics: Option<clients::Listener>,
    /// What reads the host's files, to notice when its name servers change.
    pub reader: Reader,
    /// Gives up what the loop does not need, once all threads have been started.
    pub confine: fn() -> Result<(), confine::Error>,
    /// The guest's Ethernet address, when it is known.
    pub guest_mac: Option<[u8; 6]>,
}

/// Why the loop could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A published port could not be bound.
    #[error(transparent)]
    Forward(#[from] forward::Error),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] confine::Error),
    /// A system call of the loop itself failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done, on what.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn os(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Os { what, source: errno.into() }
}

/// Runs until the exit descriptor hangs up, SIGTERM or SIGINT arrives, or the
/// TAP device goes away.
///
/// # Errors
/// A published port that cannot be bound, or a failing system call.
pub fn run(inputs: Inputs) -> Result<(), Error> {
    let Inputs { config, queues, offloads, ready, exit, api, egress, .. } = inputs;
    let Inputs { capture, metrics, reader, confine, guest_mac, maker, .. } = inputs;
    let flows = raise_descriptor_limit(config.publishes.len());
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    if egress.is_some() {
        // Otherwise it ends the process, as a terminal that hangs up shall.
        mask.add(Signal::SIGHUP);
    }
    mask.thread_block().map_err(os("blocking signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(os("making a signal descriptor"))?;

    let inboxes = queues.iter().map(|_| Inbox::new()).collect::<Result<Vec<_>, _>>();
    let inboxes: Arc<[Inbox]> = inboxes.map_err(os("making an inbox"))?.into();
    let clock = Clock::start();
    let capture = capture.map(|capture| Arc::new(capture.since(Clock::epoch())));
    let mut workers = Vec::new();
    let count = queues.len();
    let ports = Arc::new(Ports::default());
    let spinning = (processors() > 1).then(Arc::<AtomicBool>::default);
    for (index, tap) in queues.into_iter().enumerate() {
        let seed = random::seed().map_err(os("asking for random bytes"))?;
        let mut stack = Netstack::new(config.clone(), offloads, seed);
        stack.set_share(index, count, flows);
        if count > 1 {
            stack.share_ports(Arc::clone(&ports), index);
        }
        if let Some(mac) = guest_mac {
            stack.set_guest_mac(mac);
        }
        if let Some(egress) = &egress {
            stack.set_egress(egress.clone());
        }
        let inboxes = Arc::clone(&inboxes);
        let capture = capture.clone();
        let seen = observe::Tap { capture, vnet: offloads.vnet };
        let spinning = spinning.clone();
        workers.push(Worker { index, tap, seen, stack, inboxes, clock, spinning });
    }
    let mut workers = workers.into_iter();
    let main = workers.next().ok_or(os("looking for a queue of the TAP")(Errno::ENODEV))?;
    let mut driver = Driver::new(main, &config)?;
    driver.reader = Some(reader);
    driver.egress = egress;
    let watch = |fd: BorrowedFd<'_>, token: u64| driver.watch(fd, token);
    watch(signals.as_fd(), SIGNAL)?;
    if let Some(exit) = &exit {
        watch(exit.as_fd(), EXIT)?;
    }
    if let Some(api) = &api {
        watch(api.as_fd(), API)?;
    }
    if let Some(reader) = &driver.reader {
        watch(reader.as_fd(), NEWS)?;
    }
    driver.signals = Some(signals);
    driver.api = api.map(Clients::new);
    if let Some(metrics) = metrics {
        driver.watch(metrics.as_fd(), METRICS)?;
        driver.metrics = Some(Clients::new(metrics));
    }
    for publish in &config.publishes {
        driver.ports.add(*publish)?;
    }
    for mut worker in workers {
        worker.stack.set_side();
        let config = config.clone();
        let main = Arc::clone(&inboxes);
        let egress = driver.egress.clone();
        // Ends with the process.
        std::thread::Builder::new()
            .name(format!("queue {}", worker.index))
            .spawn(move || {
                let result = Driver::new(worker, &config).and_then(|mut driver| {
                    driver.egress = egress;
                    driver.run()
                });
                // Without an error the device is gone, which the main worker sees too.
                if let (Err(error), Some(main)) = (result, main.first()) {
                    main.send(Message::Failed(error));
                }
            })
            .map_err(|source| Error::Os { what: "starting a worker", source })?;
    }
    confine()?;
    // By now it has ended.
    drop(maker);
    if let Some(ready) = ready {
        // Whoever waits for it is gone when this fails: nobody to tell, and the
        // exit descriptor ends the run.
        nix::unistd::write(&ready, b"1").ok();
    }
    driver.run()
}

/// How many queues to ask for: one for each processor, up to a bound beyond which
/// nothing was measured.
pub fn queues_wanted() -> usize {
    processors().min(QUEUES_MAX)
}

/// Those this process may use. Without quotas of control groups, which the standard library
/// reads: they say how much may be used, not of how many, and cost a start 0.1 ms.
fn processors() -> usize {
    let usable = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| usable.is_set(*cpu).unwrap_or(false)).count().max(1)
}

/// What a worker starts with.
struct Worker {
    /// 0 is the main one.
    index: usize,
    tap: OwnedFd,
    seen: observe::Tap,
    stack: Netstack,
    inboxes: Arc<[Inbox]>,
    clock: Clock,
    spinning: Option<Arc<AtomicBool>>,
}

/// The one place where time is read.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// The time now, since 1970: what is written for others to read is in their time.
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    fn epoch() -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Driver {
    epoll: Rc<Epoll>,
    tap: OwnedFd,
    seen: observe::Tap,
    traffic: Traffic,
    /// A frame the device did not take, waiting for it to become writable.
    tap_full: Option<Vec<u8>>,
    spin: Spin,
    /// Bytes of frames in this turn.
    moved: usize,
    stack: Netstack,
    host: Host,
    ports: Table,
    clock: Clock,
    datagram: Vec<u8>,
    deferred: Vec<(FlowId, EpollFlags)>,
    /// Given up to take a connection when descriptors are exhausted.
    spare: Option<Epoll>,
    rest: rest::Rest,
    api: Option<Clients>,
    /// The main worker watches the host's name servers.
    reader: Option<Reader>,
    /// It tells what was denied, on whichever worker.
    egress: Option<Egress>,
    signals: Option<SignalFd>,
    metrics: Option<Clients>,
    collections: VecDeque<observe::Collection>,
    next_collection: u64,
    index: usize,
    /// Of all workers, by their index.
    inboxes: Arc<[Inbox]>,
}

/// Descriptors that flows leave for all else.
const OTHERS: usize = 128;

/// A flow costs a descriptor: takes as many as the hard limit allows. Gives how many flows
/// there may be, so that the guest leaves some for the `others` and for those who ask.
fn raise_descriptor_limit(others: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return usize::MAX };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX);
    limit.saturating_sub(OTHERS + others).max(limit / 4)
}

/// Why the loop ends without an error.
enum Turn {
    GoOn,
    End,
}

impl Driver {
    fn new(worker: Worker, config: &Config) -> Result<Driver, Error> {
        let Worker { index, tap, seen, stack, inboxes, clock, spinning } = worker;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("making an epoll"))?;
        let epoll = Rc::new(epoll);
        let flags = fcntl(&tap, FcntlArg::F_GETFL).map_err(os("asking for the TAP's flags"))?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&tap, FcntlArg::F_SETFL(flags)).map_err(os("making the TAP non-blocking"))?;
        let driver = Driver {
            ports: Table::new(Rc::clone(&epoll)),
            epoll,
            tap,
            seen,
            traffic: Traffic::default(),
            tap_full: None,
            spin: Spin::new(spinning),
            moved: 0,
            stack,
            host: Host::new(config.outbound_v4, config.outbound_v6),
            clock,
            datagram: vec![0; 65536],
            deferred: Vec::new(),
            spare: spare_descriptor(),
            rest: rest::Rest::default(),
            api: None,
            reader: None,
            egress: None,
            signals: None,
            metrics: None,
            collections: VecDeque::new(),
            next_collection: 0,
            index,
            inboxes,
        };
        driver.watch(driver.tap.as_fd(), TAP)?;
        driver.watch(driver.inboxes[index].as_fd(), INBOX)?;
        Ok(driver)
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> Result<(), Error> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .map_err(os("watching a descriptor"))
    }

    fn run(&mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 256];
        let mut tap_ready = false;
        loop {
            let busy = tap_ready || self.host.has_more();
            let count = match self.wait(&mut events, busy) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(os("waiting for events")(errno)),
            };
            let now = self.clock.now();
            let mut messages = false;
            for event in &events[..count] {
                match event.data() {
                    TAP => {
                        tap_ready |= event.events().intersects(!EpollFlags::EPOLLOUT);
                        if event.events().contains(EpollFlags::EPOLLOUT) {
                            self.tap_writable()?;
                        }
                    }
                    EXIT => return Ok(()),
                    SIGNAL if self.is_ended_by_signal()? => return Ok(()),
                    API => self.api_accept(now),
                    METRICS => self.metrics_accept(now),
                    INBOX => messages = true,
                    NEWS => self.read_news(now)?,
                    token if token & FLOW_TOKEN != 0 => {
                        let flow = FlowId::from_bits(token & !FLOW_TOKEN);
                        self.deferred.push((flow, event.events()));
                    }
                    token if token & PUBLISH_TOKEN != 0 => {
                        self.published(now, token & !PUBLISH_TOKEN);
                    }
                    token if token & API_CLIENT != 0 => self.api_ready(token & !API_CLIENT),
                    token if token & METRICS_CLIENT != 0 => {
                        self.metrics_ready(token & !METRICS_CLIENT);
                    }
                    _ => {}
                }
            }
            if let Some(reader) = self.reader.as_mut().filter(|_| tap_ready || messages) {
                reader.look(now);
            }
            if messages {
                self.read_messages(now)?;
            }
            if tap_ready {
                match self.read_frames(now)? {
                    (Turn::End, _) => return Ok(()),
                    (Turn::GoOn, more) => tap_ready = more,
                }
            }
            if self.stack.poll_timeout().is_some_and(|at| at <= now) {
                self.stack.handle_timeout(now);
            }
            self.rested(now);
            self.host.begin_turn(&mut self.stack, now);
            self.execute(now);
            let mut deferred = std::mem::take(&mut self.deferred);
            for (flow, flags) in deferred.drain(..) {
                self.host.event(&mut self.stack, now, flow, flags);
            }
            self.deferred = deferred;
            self.execute(now);
            self.stack.end_batch();
            self.write_frames(now)?;
            // Sending may have ended flows.
            self.execute(now);
            self.tell_denied();
        }
    }

    fn wait(&mut self, events: &mut [EpollEvent], busy: bool) -> Result<usize, Errno> {
        if busy {
            return self.epoll.wait(events, EpollTimeout::ZERO);
        }
        if self.spin.begin(std::mem::take(&mut self.moved)) {
            let since = self.clock.now();
            let (found, took) = loop {
                let found = self.epoll.wait(events, EpollTimeout::ZERO);
                let took = self.clock.now().saturating_sub(since);
                if found != Ok(0) || took >= SPIN_MAX {
                    break (found, took);
                }
            };
            self.spin.ended(found != Ok(0), took);
            if found != Ok(0) {
                return found;
            }
        }
        let patience = self.patience();
        let since = self.clock.now();
        let found = self.epoll.wait(events, patience);
        self.spin.slept(self.clock.now().saturating_sub(since));
        found
    }

    /// How long to sleep at most.
    fn patience(&mut self) -> EpollTimeout {
        match self.stack.poll_timeout().into_iter().chain(self.rest.over()).min() {
            None => EpollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_sub(self.clock.now());
                // Rounded up: waking early would only mean sleeping again.
                let millis = left.as_micros().div_ceil(1000);
                EpollTimeout::try_from(millis.min(i32::MAX as u128)).unwrap_or(EpollTimeout::MAX)
            }
        }
    }

    /// Takes a signal; gives whether it ends the run.
    fn is_ended_by_signal(&mut self) -> Result<bool, Error> {
        let Some(signals) = &self.signals else { return Ok(false) };
        let signal = signals.read_signal().map_err(os("reading a signal"))?;
        match signal.map(|info| info.ssi_signo.cast_signed()) {
            Some(libc::SIGHUP) => {
                match &self.reader {
                    Some(reader) => reader.read_policy(),
                    None => report::warn("the policy cannot be read again: who reads is gone"),
                }
                Ok(false)
            }
            signal => Ok(signal.is_some()),
        }
    }

    /// A policy file was read again.
    fn new_policy(&self, text: Result<String, String>) {
        let Some(egress) = &self.egress else { return };
        match text.and_then(|text| egress::parse(&text).map_err(|error| error.to_string())) {
            Ok(policy) => {
                let rules = policy.rules.len();
                egress.replace(policy);
                report::tell(&format!("a policy of {rules} rules is in force"));
            }
            Err(why) => report::warn(&format!("the policy stays as it is: {why}")),
        }
    }

    fn read_news(&mut self, now: Duration) -> Result<(), Error> {
        match self.reader.as_ref().and_then(Reader::receive) {
            Some(News::Resolv(hosts)) => {
                for inbox in self.inboxes.iter().skip(1) {
                    inbox.send(Message::NameServers(hosts.clone()));
                }
                self.stack.set_name_servers(now, hosts);
            }
            Some(News::Policy(text)) => self.new_policy(text),
            None => {}
            Some(News::Gone) => {
                if let Some(reader) = self.reader.take() {
                    self.epoll.delete(reader.as_fd()).map_err(os("watching a descriptor"))?;
                    drop(reader);
                    report::warn(
                        "the process that reads files is gone: changes of resolv.conf are not seen any more",
                    );
                }
            }
        }
        Ok(())
    }

    fn read_messages(&mut self, now: Duration) -> Result<(), Error> {
        let Contents { messages, dropped, .. } = self.inboxes[self.index].take();
        self.stack.count_lost(dropped);
        for message in messages {
            match message {
                Message::Frame(frame) => {
                    if self.stack.frame_room().is_empty() {
                        self.stack.end_batch();
                    }
                    // A frame of another queue of the same device fits.
                    self.stack.frame_room()[..frame.len()].copy_from_slice(&frame);
                    match self.stack.handle_frame(now, frame.len()) {
                        // Fragments come here first, and make a datagram of another's
                        // port. What the main worker has passed on ends there, so that
                        // none goes round for ever while ports change hands.
                        Some(Elsewhere { stack, frame }) if self.index == 0 => {
                            self.inboxes[stack].send(Message::Frame(frame.to_vec()));
                        }
                        Some(_) => self.stack.count_lost(1),
                        None => {}
                    }
                }
                Message::NameServers(hosts) => self.stack.set_name_servers(now, hosts),
                Message::Report { number, list } => self.answer_report(number, list),
                Message::Reported { number, answer } => self.collected(number, *answer),
                Message::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn execute(&mut self, now: Duration) {
        while let Some(command) = self.stack.poll_host() {
            if let HostCommand::UdpReply { publish, to, data } = command {
                self.answer_client(publish, to, &data);
            } else {
                self.host.execute(&mut self.stack, now, &self.epoll, command);
            }
        }
    }
}
