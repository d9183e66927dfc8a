//! Requests through io_uring (`FUSE_OVER_IO_URING`, Linux 6.14), where they are asked for
//! and the machine's root has switched that on (`/sys/module/fuse/parameters/enable_uring`).
//!
//! # Theory of operation
//! The kernel has a queue for each processor, and puts a request into that of the
//! processor on which it is asked. Here [`EACH`] threads take from each queue, bound to
//! that processor: so whoever asks and whoever answers take turns on one processor, whose
//! cache has what both need, and nobody waits for another processor to wake up. Nothing
//! spins. The kernel prefers the thread that became free last; the others of a queue are
//! for when that one is held up by a disk.
//!
//! A client that reads much at once wants the opposite, its pages copied beside it, so for
//! a while after a large read a thread runs wherever there is room ([`Seat`]).
//!
//! A thread of its own looks ahead for all of them ([`Server::look_ahead`]).
//!
//! The kernel sends nothing through the rings before each queue has a thread, and nothing
//! else through the device but FORGET and INTERRUPT. When it does not take a ring it goes
//! on with the device alone. All rings are made before INIT is answered, and whether the
//! calls to use them are allowed is tried: once the kernel has been told to wait for them,
//! nothing must be missing.
//!
//! The kernel takes no fewer queues than it may ever have processors (`num_possible_cpus`,
//! `is_ring_ready` in fs/fuse/dev_uring.c). What one costs is mostly addresses: of a ring's
//! 1 MiB and its thread's stack some 17 KiB are touched before it is used. Long payloads
//! touch the rest, which is given back when there are no more of them (sys/ring.rs).

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::{LARGE, Server};
use crate::fuse::adapter::Verdict;
use crate::fuse::counters::count;
use crate::fuse::init::MAX_WRITE;
use crate::fuse::wire::{Answer, Request, out_header};
use crate::sys::ring::Ring;

/// Threads of a queue.
const EACH: u16 = 2;
/// Machines that may have more processors are served through the device: each of them
/// takes threads of ours, whether it is there or not.
const MOST_QUEUES: u16 = 64;
/// Requests that are not large, after which a thread goes back to its processor.
const SETTLE: u32 = 4;

/// A ring, and where its thread belongs.
#[derive(Debug)]
pub(super) struct Queue {
    ring: Ring,
    seat: Seat,
}

/// Rings for all queues of the kernel, at most `most`; none where they cannot be had.
pub(super) fn make(device: BorrowedFd<'_>, most: usize) -> Vec<Queue> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    let Some(queues) = possible.ok().and_then(|text| processors(&text)) else { return Vec::new() };
    if usize::from(queues * EACH) > most {
        return Vec::new();
    }
    // Nowhere that we were not allowed to be.
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let made = (0..queues * EACH).map(|n| {
        let queue = n % queues;
        let ring = Ring::new(device, queue, MAX_WRITE as usize)?;
        if n == 0 {
            ring.may_begin()?;
        }
        Ok(Queue { ring, seat: Seat::new(usize::from(queue), all) })
    });
    made.collect::<nix::Result<_>>().unwrap_or_else(|errno| {
        tracing::debug!(%errno, "no io_uring, so requests come through /dev/fuse");
        Vec::new()
    })
}

/// How many processors a machine may ever have: as the kernel says it, `0-3` or `0`.
/// `None` when there are too many, or numbers are missing.
fn processors(text: &str) -> Option<u16> {
    let last = match text.trim().split_once('-') {
        Some(("0", last)) => last,
        None => text.trim(),
        Some(_) => return None,
    };
    last.parse::<u16>().ok()?.checked_add(1).filter(|n| *n <= MOST_QUEUES)
}

/// Where a thread runs.
#[derive(Clone, Copy, Debug)]
struct Seat {
    /// Its queue's processor, if we may run there.
    own: Option<CpuSet>,
    all: CpuSet,
    /// Not at its own.
    roams: bool,
    /// Requests since the last large one.
    small: u32,
}

impl Seat {
    fn new(processor: usize, all: CpuSet) -> Self {
        let mut own = CpuSet::new();
        let may = all.is_set(processor).unwrap_or(false) && own.set(processor).is_ok();
        Self { own: may.then_some(own), all, roams: true, small: 0 }
    }

    /// Where to go now, if anywhere, for a request that is `large` or not.
    fn next(&mut self, large: bool) -> Option<&CpuSet> {
        let own = self.own.as_ref()?;
        self.small = if large { 0 } else { self.small.saturating_add(1) };
        let roams = large || self.roams && self.small < SETTLE;
        if roams == self.roams {
            return None;
        }
        self.roams = roams;
        Some(if roams { &self.all } else { own })
    }

    /// Takes the seat, or leaves it. A processor that is switched off cannot be had.
    fn take(&mut self, large: bool) {
        if let Some(set) = self.next(large) {
            sched_setaffinity(Pid::from_raw(0), set).ok();
        }
    }
}

impl Server {
    /// Serves what comes through a ring until the mount is gone.
    pub(super) fn work_at(&self, Queue { mut ring, mut seat }: Queue) -> std::io::Result<()> {
        let mut answer = Answer::default();
        seat.small = SETTLE;
        seat.take(false);
        ring.begin()?;
        let mut live = false;
        loop {
            match ring.next() {
                Ok(()) => live = true,
                Err(Errno::ENOTCONN | Errno::ECONNABORTED) => return Ok(()),
                Err(errno) if !live => {
                    // The kernel goes on without rings.
                    tracing::warn!(%errno, "the kernel refused a ring");
                    self.ringing.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
            count(&self.counters.ring_requests);
            let unique = ring.unique();
            let Some(request) = ring.message().and_then(Request::parse) else {
                ring.answer_from_room(out_header(0, unique, libc::EIO), 0);
                continue;
            };
            self.counters.request(request.opcode);
            if let Some((offset, size)) = request.read() {
                let node = request.node;
                seat.take(size >= LARGE);
                let room = ring.room();
                let size = size.min(room.len());
                let (len, errno) = match self.adapter.read(node, offset, &mut room[..size]) {
                    Ok(len) => (len, 0),
                    Err(errno) => {
                        self.counters.error();
                        (0, errno)
                    }
                };
                ring.answer_from_room(out_header(len, unique, errno), len);
                continue;
            }
            seat.take(false);
            answer.clear();
            let errno = match self.adapter.serve(&request, &mut answer) {
                Verdict::Reply | Verdict::Silent => 0,
                Verdict::Fail(errno) => {
                    self.counters.error();
                    errno
                }
            };
            self.announce(&mut answer);
            if !ring.answer(answer.finish(unique, errno)) {
                ring.answer_from_room(out_header(0, unique, libc::EIO), 0);
            }
            if let Some(ahead) = self.ahead.get()
                && self.adapter.overlay().could_prepare()
            {
                ahead.unpark();
            }
        }
    }

    /// Looks at what will be asked next until the mount is gone, and sleeps where that is
    /// not known. A thread that is bound to its client's processor cannot: it would keep
    /// the client from working.
    pub(super) fn look_ahead(&self) -> std::io::Result<()> {
        self.ahead.get_or_init(std::thread::current);
        while !self.over.load(Ordering::Acquire) {
            if !self.adapter.overlay().prepare() {
                std::thread::park();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_as_the_kernel_lists_them() {
        assert_eq!(processors("0-1\n"), Some(2));
        assert_eq!(processors("0\n"), Some(1));
        assert_eq!(processors("0-63\n"), Some(64));
        for text in ["", "0-64\n", "1-2\n", "0-1,3\n", "0-65535\n", "x"] {
            assert_eq!(processors(text), None, "{text}");
        }
    }

    #[test]
    fn a_thread_leaves_its_processor_for_large_reads_alone() {
        let mut all = CpuSet::new();
        (0..3).for_each(|n| all.set(n).unwrap());
        let mut seat = Seat::new(1, all);
        let mut own = CpuSet::new();
        own.set(1).unwrap();
        seat.small = SETTLE;
        assert_eq!(seat.next(false).copied(), Some(own));
        assert_eq!(seat.next(false), None);
        assert_eq!(seat.next(true).copied(), Some(all));
        for large in [true, false, true].into_iter().chain([false; SETTLE as usize - 1]) {
            assert_eq!(seat.next(large), None);
        }
        assert_eq!(seat.next(false).copied(), Some(own));
        // A processor that is not ours to use.
        let mut seat = Seat::new(3, all);
        assert!(seat.next(true).is_none() && seat.next(false).is_none());
    }
}
