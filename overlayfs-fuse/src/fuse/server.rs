//! The threads that serve, and how they wait.
//!
//! # Theory of operation
//! A round trip through /dev/fuse costs two wake-ups, and these cost far more than
//! most answers. So at any time at most one thread *listens* to the device, and
//! before it sleeps there it may look again and again for a while (*spinning*):
//! a client that asks one thing after the other then never waits for a wake-up
//! of ours.
//!
//! A thread that has received a request stops listening and serves it; when it is
//! done it listens again. The others are *benched*. One of them is called
//! (*summoned*) to listen when
//! * one request after the other, of different clients or for much data, is waiting
//!   already when the last was answered ([`PILE`] of them: now and then one is, and
//!   not worth a wake-up), or
//! * serving takes long: as long as there is traffic one benched thread looks
//!   every [`TICK`] whether the device is unattended, and attends to it. After
//!   [`LINGER`] ticks without a request it sleeps until the next one. Hence
//!   without traffic nothing of ours ever wakes up.
//!
//! Where the kernel sends requests through io_uring ([`rings`]) the device has hardly
//! anything to say, and nothing spins there.
//!
//! Between two looks a spinning thread does what may spare the next request time
//! ([`Overlay::prepare`](crate::overlay::Overlay::prepare)).
//!
//! Spinning is worth it only while requests come soon, and never if somebody else
//! wants the processor: [`Spin`] decides, from what came of it lately.

mod rings;

use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::adapter::{Adapter, Verdict};
use super::counters::{Counters, count, line};
use super::init::{self, MAX_WRITE};
use super::splice::{self, Pipe};
use super::wire::{self, Answer, Request, op};

/// Threads: one that listens and some that may be held up by a slow disk.
const THREADS: usize = 4;
/// A message: header, the largest WRITE, and what may come with it.
const BUFFER: usize = MAX_WRITE as usize + 8192;
/// What the kernel insists on for the first message (`FUSE_MIN_READ_BUFFER`). On the stack:
/// a large block that is given back has the C library take later ones from its heap, of
/// which it then clears what was used.
const FIRST_BUFFER: usize = 8192;
/// How often a benched thread looks after the device while there is traffic.
const TICK: Duration = Duration::from_millis(4);
/// Ticks without a request after which it does not look any more.
const LINGER: u32 = 16;
/// So many requests that were waiting already, without a pause, are a pile.
const PILE: u32 = 4;
/// A request of so many bytes is one of much data.
const LARGE: usize = 32 << 10;
/// How long a thread hopes to become the listener before it is benched, rounds.
const HOPE: u32 = 200;

/// The clock, for spinning alone.
#[expect(clippy::disallowed_methods, reason = "the one place where this program reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// When to look again for a request instead of sleeping.
///
/// A wait that spinning ended is a hit. While less than one wait in four is, it
/// is tried only now and then. Whoever yields the processor and gets it back late
/// shares it with somebody: then it is not tried for a while at all. If that was for a
/// whole slice, a request may have been waiting: the while is longer each time.
#[derive(Debug)]
struct Spin {
    /// Longest time to spin; zero: never.
    limit: Duration,
    /// Hits (1) and misses (0) of the last waits, the latest lowest.
    history: u16,
    /// Waits since the last attempt.
    skipped: u32,
    /// The processor was found busy: not before.
    not_before: Option<Instant>,
    /// How long it is left alone the next time somebody had it for a slice.
    respect: Duration,
}

/// A round of looking and yielding takes about a microsecond; much more means that
/// another thread ran meanwhile.
const SHARED: Duration = Duration::from_micros(30);
/// Whoever had the processor for so long was not a client between two requests: that is
/// a slice of the scheduler, or much of one.
const SLICE: Duration = Duration::from_micros(500);
/// How long a processor that was found busy is left alone; at most, if for slices.
const RESPECT: Duration = Duration::from_millis(5);
const MOST_RESPECT: Duration = Duration::from_secs(1);
/// Waits without spinning until it is tried again.
const RETRY: u32 = 32;

impl Spin {
    fn new(limit: Duration) -> Self {
        Self { limit, history: u16::MAX, skipped: 0, not_before: None, respect: RESPECT }
    }

    /// Whether to try; `at` is the time.
    fn wanted(&mut self, at: Instant) -> bool {
        if self.limit.is_zero() || self.not_before.is_some_and(|t| at < t) {
            return false;
        }
        self.not_before = None;
        if self.history.count_ones() >= 4 || self.skipped >= RETRY {
            self.skipped = 0;
            return true;
        }
        self.skipped += 1;
        false
    }

    fn record(&mut self, hit: bool) {
        self.history = self.history << 1 | u16::from(hit);
        // Four in a row.
        if self.history & 0xf == 0xf {
            self.respect = RESPECT;
        }
    }

    /// Somebody else had the processor for `gap`.
    fn shared(&mut self, at: Instant, gap: Duration) {
        if gap > SLICE {
            self.not_before = Some(at + self.respect);
            self.respect = (self.respect * 4).min(MOST_RESPECT);
        } else {
            self.not_before = Some(at + RESPECT);
        }
        self.record(false);
    }
}

/// What the threads share.
pub struct Server {
    device: OwnedFd,
    adapter: Adapter,
    counters: Counters,
    /// Somebody listens, or is about to.
    attended: AtomicBool,
    /// Requests received.
    received: AtomicU64,
    /// The mount is gone.
    over: AtomicBool,
    bench: Mutex<Bench>,
    called: Condvar,
    /// Of whoever listens.
    spin: Mutex<Spin>,
    /// Rings whose threads have not been started.
    queues: Mutex<Vec<rings::Queue>>,
    /// Requests come through rings.
    ringing: AtomicBool,
    /// The thread that looks ahead where there are rings.
    ahead: OnceLock<Thread>,
}

#[derive(Debug, Default)]
struct Bench {
    /// Threads on it.
    sitting: usize,
    /// Of these, are to leave it.
    summoned: usize,
    /// One of them looks every tick.
    watched: bool,
}

/// What a thread does.
enum Work {
    /// Serves what comes through the device.
    Device,
    /// Serves what comes through a ring.
    Ring(Box<rings::Queue>),
    /// Looks ahead, where those that serve cannot.
    Ahead,
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Work::Device => "serve",
            Work::Ring(_) => "ring",
            Work::Ahead => "ahead",
        }
    }
}

/// A thread that serves.
pub type Serving = JoinHandle<std::io::Result<()>>;

/// What a look at the device gave.
enum Received {
    Message(usize),
    Nothing,
    Over,
}

impl Server {
    /// A server of the mount behind `device`, with INIT answered: from now on the
    /// mount is live. It does not spin before [`Server::spin_for`]. At most `rings`
    /// descriptors are used for rings, or there are none.
    ///
    /// # Errors
    /// The kernel does not speak our protocol, or the mount is gone already.
    pub fn start(device: OwnedFd, adapter: Adapter, rings: usize) -> std::io::Result<Self> {
        let server = Self {
            device,
            adapter,
            counters: Counters::default(),
            attended: AtomicBool::new(false),
            received: AtomicU64::new(0),
            over: AtomicBool::new(false),
            bench: Mutex::default(),
            called: Condvar::new(),
            spin: Mutex::new(Spin::new(Duration::ZERO)),
            queues: Mutex::default(),
            ringing: AtomicBool::new(false),
            ahead: OnceLock::new(),
        };
        let mut buffer = [0; FIRST_BUFFER];
        let len = loop {
            server.wait()?;
            match server.look(&mut buffer)? {
                Received::Message(len) => break len,
                Received::Nothing => {}
                Received::Over => return Err(Errno::ENODEV.into()),
            }
        };
        let mut answer = Answer::default();
        answer.clear();
        let request = Request::parse(&buffer[..len]).filter(|r| r.opcode == op::INIT);
        let request = request.ok_or(Errno::EPROTO)?;
        let queues = match init::offers_rings(request.body) {
            true => rings::make(server.device.as_fd(), rings),
            false => Vec::new(),
        };
        let ringing = !queues.is_empty();
        if server.adapter.init(&request, ringing, &mut answer).is_none() {
            server.reply(answer.finish(request.unique, libc::EPROTO))?;
            return Err(Errno::EPROTO.into());
        }
        server.ringing.store(ringing, Ordering::Relaxed);
        *server.queues() = queues;
        server.counters.request(request.opcode);
        server.reply(answer.finish(request.unique, 0))?;
        server.adapter.begin(server.device.as_fd());
        Ok(server)
    }

    /// From now on spins for at most `limit`, zero for never.
    pub fn spin_for(&self, limit: Duration) {
        self.spin().limit = limit;
    }

    /// Whether the kernel reads files by itself.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.adapter.passthrough().is_some()
    }

    /// Starts the threads that serve until the mount is gone. The last of them to end
    /// closes `over`.
    ///
    /// # Errors
    /// A thread cannot be started. Of the threads the device may fail.
    pub fn run(self: &Arc<Self>, over: PipeWriter) -> std::io::Result<Vec<Serving>> {
        let over = Arc::new(over);
        let queues = std::mem::take(&mut *self.queues());
        let ahead = (!queues.is_empty()).then_some(Work::Ahead);
        let rings = queues.into_iter().map(|queue| Work::Ring(Box::new(queue)));
        rings
            .chain(ahead)
            .chain((0..THREADS).map(|_| Work::Device))
            .enumerate()
            .map(|(n, work)| {
                let (server, over) = (Arc::clone(self), Arc::clone(&over));
                let name = format!("{}-{n}", work.name());
                std::thread::Builder::new().name(name).spawn(move || {
                    let (result, last) = match work {
                        Work::Device => (server.work(), true),
                        // One that the kernel does not take ends nothing.
                        Work::Ring(queue) => (server.work_at(*queue), false),
                        Work::Ahead => (server.look_ahead(), false),
                    };
                    if last || result.is_err() {
                        server.end();
                    }
                    drop(over);
                    result
                })
            })
            .collect()
    }

    fn queues(&self) -> MutexGuard<'_, Vec<rings::Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters of the requests and of the union, one `name value` a line.
    #[must_use]
    pub fn report(&self) -> String {
        let mut out = self.counters.report();
        for (name, value) in self.adapter.overlay().gauges() {
            line(&mut out, name, value);
        }
        if let Some(passthrough) = self.adapter.passthrough() {
            line(&mut out, "passthrough.files", passthrough.len() as u64);
        }
        out
    }

    fn work(&self) -> std::io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut answer = Answer::default();
        let mut pipe = None;
        let (mut pile, mut client) = (0u32, 0);
        while !self.over.load(Ordering::Acquire) {
            if !self.attend() {
                self.sit();
                continue;
            }
            let (len, waiting) = match self.look(&mut buffer)? {
                Received::Message(len) => (len, true),
                Received::Nothing => match self.listen(&mut buffer)? {
                    Received::Message(len) => (len, false),
                    _ => return Ok(()),
                },
                Received::Over => return Ok(()),
            };
            self.received.fetch_add(1, Ordering::Relaxed);
            self.attended.store(false, Ordering::Release);
            // The kernel does not send less than a header.
            let Some(request) = Request::parse(&buffer[..len]) else { continue };
            let large = len.max(request.read_size()) >= LARGE;
            pile = match waiting {
                false => 0,
                true if large || ![0, client].contains(&request.task) => pile.saturating_add(1),
                // Asked meanwhile by whoever got the last answer.
                true => pile,
            };
            if request.task != 0 {
                client = request.task;
            }
            if pile >= PILE {
                self.summon();
            }
            self.serve(&request, &mut answer, &mut pipe)?;
        }
        Ok(())
    }

    fn serve(
        &self,
        request: &Request<'_>,
        answer: &mut Answer,
        pipe: &mut Option<Pipe>,
    ) -> std::io::Result<()> {
        self.counters.request(request.opcode);
        if let Some((file, offset, size)) = self.adapter.wants(request)
            && splice::answer(self.device.as_fd(), request.unique, file.as_fd(), offset, size, pipe)
        {
            return Ok(());
        }
        answer.clear();
        let errno = match self.adapter.serve(request, answer) {
            Verdict::Silent => return Ok(()),
            Verdict::Reply => 0,
            Verdict::Fail(errno) => {
                self.counters.error();
                errno
            }
        };
        self.announce(answer);
        self.reply(answer.finish(request.unique, errno))
    }

    /// Tells the kernel which attributes it must not use any more, before it has the answer
    /// to the request that changed them.
    fn announce(&self, answer: &mut Answer) {
        let Some(node) = answer.stale.take() else { return };
        match nix::unistd::write(&self.device, &wire::stale(node)) {
            // ENOENT: it does not know the node any more. ENODEV: unmounted.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV | Errno::ECONNABORTED) => {}
            Err(errno) => tracing::error!(%errno, node, "the kernel shows an old mode"),
        }
    }

    fn reply(&self, message: &[u8]) -> std::io::Result<()> {
        match nix::unistd::write(&self.device, message) {
            // ENOENT: whoever asked was killed. ENODEV: unmounted.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV | Errno::ECONNABORTED) => Ok(()),
            // EINVAL, EIO …: it could not be taken. Whoever asked must not wait for ever.
            Err(errno) => {
                tracing::error!(%errno, len = message.len(), "the kernel refused an answer");
                let mut refused = Answer::default();
                refused.clear();
                let unique = message.get(8..16).and_then(|b| b.try_into().ok());
                let unique = unique.map_or(0, u64::from_ne_bytes);
                match nix::unistd::write(&self.device, refused.finish(unique, libc::EIO)) {
                    Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            }
        }
    }

    /// Becomes the listener, if nobody is.
    fn attend(&self) -> bool {
        for _ in 0..HOPE {
            if !self.attended.swap(true, Ordering::Acquire) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Waits for a request, spinning or asleep.
    fn listen(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        let mut start = now();
        if !self.ringing.load(Ordering::Relaxed) && self.spin().wanted(start) {
            let mut last = start;
            loop {
                // That takes time, which is not the client's silence.
                if self.adapter.overlay().prepare() {
                    start = now();
                    last = start;
                }
                nix::sched::sched_yield()?;
                let received = self.look(buffer)?;
                let at = now();
                let gap = at - last;
                if !matches!(received, Received::Nothing) {
                    if gap > SLICE {
                        self.spin().shared(at, gap);
                    } else {
                        // Whoever had the processor meanwhile was the client.
                        self.spin().record(true);
                    }
                    count(&self.counters.spin_hits);
                    return Ok(received);
                }
                if gap > SHARED {
                    self.spin().shared(at, gap);
                    break;
                }
                if at - start > self.spin().limit {
                    self.spin().record(false);
                    break;
                }
                last = at;
            }
            count(&self.counters.spin_misses);
        }
        self.sleep(buffer)
    }

    fn spin(&self) -> MutexGuard<'_, Spin> {
        self.spin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until there is a request.
    fn sleep(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        loop {
            self.wait()?;
            match self.look(buffer)? {
                Received::Nothing => {}
                other => {
                    self.watch();
                    return Ok(other);
                }
            }
        }
    }

    /// Takes a request if there is one.
    fn look(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        match nix::unistd::read(&self.device, buffer) {
            Ok(len) => Ok(Received::Message(len)),
            // ENOENT: the request was taken back. EINTR: a signal.
            Err(Errno::EAGAIN | Errno::ENOENT | Errno::EINTR) => Ok(Received::Nothing),
            Err(Errno::ENODEV | Errno::ECONNABORTED) => Ok(Received::Over),
            Err(errno) => Err(errno.into()),
        }
    }

    fn wait(&self) -> std::io::Result<()> {
        let mut device = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        match poll(&mut device, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn bench(&self) -> MutexGuard<'_, Bench> {
        // A thread that died here is reported by `run`; the others go on.
        self.bench.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a benched thread to the device.
    fn summon(&self) {
        let mut bench = self.bench();
        if bench.sitting > bench.summoned {
            bench.summoned += 1;
            count(&self.counters.summons);
            self.called.notify_one();
        }
    }

    /// There is traffic again: somebody on the bench must look after the device.
    fn watch(&self) {
        let bench = self.bench();
        if !bench.watched && bench.sitting > bench.summoned {
            self.called.notify_one();
        }
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(ahead) = self.ahead.get() {
            ahead.unpark();
        }
        let _bench = self.bench();
        self.called.notify_all();
    }

    /// Stays on the bench until summoned, or until the device is unattended for long.
    fn sit(&self) {
        let mut bench = self.bench();
        bench.sitting += 1;
        let mut quiet = 0;
        while !self.over.load(Ordering::Acquire) {
            if bench.summoned > 0 {
                bench.summoned -= 1;
                break;
            }
            let before = self.received.load(Ordering::Relaxed);
            if bench.watched || quiet >= LINGER {
                quiet = 0;
                bench = self.called.wait(bench).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            bench.watched = true;
            let waited = self.called.wait_timeout(bench, TICK);
            let (locked, _) = waited.unwrap_or_else(PoisonError::into_inner);
            bench = locked;
            bench.watched = false;
            let same = before == self.received.load(Ordering::Relaxed);
            if same && !self.attended.load(Ordering::Acquire) {
                break;
            }
            quiet = if same { quiet + 1 } else { 0 };
        }
        // A watch must not end because its watchman left.
        if bench.sitting > 1 && !bench.watched {
            self.called.notify_one();
        }
        bench.sitting -= 1;
    }
}

/// Writes a report where it is wanted.
pub(crate) fn write_report(report: &str, to: Option<&std::path::Path>) -> std::io::Result<()> {
    match to {
        // In one piece: a reader sees an old report or a new one.
        Some(path) => {
            let mut temp = path.as_os_str().to_owned();
            temp.push(".new");
            std::fs::write(&temp, report)?;
            std::fs::rename(&temp, path)
        }
        None => std::io::stderr().write_all(report.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_when_nothing_comes_of_it_and_is_tried_again() {
        let at = now();
        let mut spin = Spin::new(Duration::from_micros(50));
        let mut tries = 0;
        for _ in 0..16 {
            tries += u32::from(spin.wanted(at));
            spin.record(false);
        }
        assert!((12..16).contains(&tries), "{tries}");
        let tries = (0..RETRY * 10).filter(|_| spin.wanted(at)).count();
        assert!((8..=10).contains(&tries), "{tries}");
        (0..4).for_each(|_| spin.record(true));
        assert!(spin.wanted(at));
        // Never on a processor that somebody else wants, and ever more seldom.
        for (factor, gap) in
            [(1, SHARED), (1, SLICE * 2), (4, SLICE * 2), (1, SHARED), (16, SLICE * 2)]
                .into_iter()
                .chain([(64, SLICE * 2), (200, SLICE * 2), (200, SLICE * 2)])
        {
            spin.history = 0xff;
            spin.shared(at, gap);
            let again = at + RESPECT * factor;
            assert!(!spin.wanted(again - Duration::from_nanos(1)) && spin.wanted(again));
        }
        // Once it is ours again, as at first.
        (0..4).for_each(|_| spin.record(true));
        spin.shared(at, SLICE * 2);
        assert!(spin.wanted(at + RESPECT));
        assert!(!Spin::new(Duration::ZERO).wanted(at));
    }
}
