//! The receiving half of an endpoint: which bytes of the guest are taken, and what
//! it is told about them.
//!
//! # Theory of operation
//!
//! Bytes up to `nxt` (RCV.NXT) have arrived without a hole and wait in the queue
//! for the host. Bytes beyond a hole are kept in the same queue at their place, and
//! their numbers in `beyond`; what would make too many holes is dropped, and the
//! guest sends it again.
//!
//! As long as there is no hole, bytes are left where they were read, in the batch of
//! frames (`fresh`), behind those of the queue. What the host has not taken when the
//! batch ends is copied into the queue ([`Receiver::settle`]).
//!
//! The window's right edge never moves back (RFC 9293 section 3.8.6). It moves
//! forward as the host takes bytes, but is told to the guest only in steps worth a
//! segment (section 3.8.6.2.2). The window field is coarse: it is rounded up where
//! rounding down would move the edge back.

use super::segment::Sacks;
use super::seq::{Ranges, Seq};
use crate::stack::batch::{Batch, Place};
use crate::stack::buffer::{Parts, Pool, Queue};

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The next number expected: RCV.NXT.
    nxt: Seq,
    /// The edge of the window as it was told: RCV.NXT + RCV.WND.
    edge: Seq,
    /// Shift of the windows we send.
    shift: u8,
    /// Bytes that may wait at most.
    capacity: u32,
    /// Bytes taken by the host since the capacity was last looked at.
    taken: u32,
    queue: Queue,
    fresh: Vec<Place>,
    /// Bytes of `fresh`.
    fresh_len: usize,
    beyond: Ranges,
    /// Where the last segment beyond a hole began: told first (RFC 2018 section 4).
    recent: Seq,
    /// The number of the guest's FIN.
    fin: Option<Seq>,
    finished: bool,
}

/// What became of a segment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It had none that were new.
    Nothing,
    /// They came next, and perhaps filled a hole.
    InOrder,
    /// They lie beyond a hole, or beyond the window.
    OutOfOrder,
}

impl Receiver {
    /// Expects nothing yet; windows of `capacity` bytes, told with `shift`.
    pub(crate) fn new(capacity: u32, shift: u8) -> Receiver {
        let none = Seq::default();
        Receiver {
            nxt: none,
            edge: none,
            shift,
            capacity,
            taken: 0,
            queue: Queue::default(),
            fresh: Vec::new(),
            fresh_len: 0,
            beyond: Ranges::default(),
            recent: none,
            fin: None,
            finished: false,
        }
    }

    /// The guest's SYN has this number.
    pub(crate) fn start(&mut self, syn: Seq) {
        self.nxt = syn + 1;
        self.edge = self.nxt;
    }

    /// The guest does not understand scaled windows.
    pub(crate) fn unscaled(&mut self) {
        self.shift = 0;
    }

    pub(crate) fn nxt(&self) -> Seq {
        self.nxt
    }

    /// The guest's FIN has arrived, and every byte before it.
    pub(crate) fn finished(&self) -> bool {
        self.finished
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) fn grow(&mut self, bytes: u32) {
        self.capacity += bytes;
        self.taken = 0;
    }

    /// Whether the host has taken a whole window's worth since the last growth.
    pub(crate) fn keeps_pace(&self) -> bool {
        self.taken >= self.capacity
    }

    /// Whether a segment that occupies `seq..end` touches the window. Wider than
    /// RFC 9293 section 3.10.7.4 by what ends or begins exactly at an edge, so that
    /// the acknowledgement of a repeated segment and of one into a closed window
    /// count (as that section demands of the latter).
    pub(crate) fn acceptable(&self, seq: Seq, end: Seq) -> bool {
        !end.before(self.nxt) && !seq.after(self.edge)
    }

    /// Takes what is new of `data`, which begins at `seq`.
    pub(crate) fn take(
        &mut self,
        seq: Seq,
        data: &[u8],
        fin: bool,
        batch: &Batch,
        pool: &mut Pool,
    ) -> Arrival {
        let end = seq + data.len() as u32;
        if self.finished {
            return Arrival::Nothing;
        }
        // A FIN just behind a full window costs no room.
        if fin && !end.after(self.edge) && !end.before(self.nxt) {
            self.fin.get_or_insert(end);
        }
        let start = seq.max(self.nxt);
        let stop = end.min(self.edge);
        let stop = self.fin.map_or(stop, |fin| stop.min(fin));
        let mut arrival = if end.after(self.edge) { Arrival::OutOfOrder } else { Arrival::Nothing };
        if start.before(stop) {
            let bytes = &data[start.since(seq) as usize..stop.since(seq) as usize];
            arrival = if start == self.nxt {
                self.append(bytes, batch, pool);
                Arrival::InOrder
            } else {
                self.settle(batch, pool);
                self.keep_beyond(start, stop, bytes, pool);
                Arrival::OutOfOrder
            };
        } else if fin && self.fin.is_some_and(|fin| fin.after(self.nxt)) {
            arrival = Arrival::OutOfOrder;
        }
        if self.fin == Some(self.nxt) {
            self.finished = true;
            self.nxt = self.nxt + 1;
            self.edge = self.edge.max(self.nxt);
            arrival = Arrival::InOrder;
        }
        arrival
    }

    fn append(&mut self, bytes: &[u8], batch: &Batch, pool: &mut Pool) {
        if self.beyond.is_empty()
            && let Some(place) = batch.place_of(bytes)
        {
            self.fresh.push(place);
            self.fresh_len += place.len();
            self.nxt = self.nxt + bytes.len() as u32;
            return;
        }
        self.settle(batch, pool);
        self.queue.write_at(self.queue.len(), bytes, pool);
        self.queue.extend(bytes.len());
        self.nxt = self.nxt + bytes.len() as u32;
        while let Some((start, end)) = self.beyond.first()
            && !start.after(self.nxt)
        {
            self.queue.extend(end.since(self.nxt) as usize);
            self.nxt = self.nxt.max(end);
            self.beyond.forget_before(self.nxt);
        }
    }

    fn keep_beyond(&mut self, start: Seq, stop: Seq, bytes: &[u8], pool: &mut Pool) {
        if self.beyond.insert(start, stop) {
            let offset = self.queue.len() + start.since(self.nxt) as usize;
            self.queue.write_at(offset, bytes, pool);
            self.recent = start;
        }
    }

    /// Whether bytes are left in the batch.
    pub(crate) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Copies what is left in the batch.
    pub(crate) fn settle(&mut self, batch: &Batch, pool: &mut Pool) {
        for place in self.fresh.drain(..) {
            self.queue.write_at(self.queue.len(), batch.bytes(place), pool);
            self.queue.extend(place.len());
        }
        self.fresh_len = 0;
    }

    /// The bytes that come next for the host.
    pub(crate) fn waiting<'a>(&'a self, batch: &'a Batch, parts: &mut Parts<'a>) {
        if self.queue.lend(0, usize::MAX, parts) {
            for place in &self.fresh {
                if !parts.push(batch.bytes(*place)) {
                    return;
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.queue.len() + self.fresh_len
    }

    /// Whether none wait.
    pub(crate) fn is_drained(&self) -> bool {
        self.len() == 0
    }

    /// The host took the first `count`.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut Pool) {
        let count = count.min(self.len());
        self.taken = self.taken.saturating_add(count as u32);
        let queued = count.min(self.queue.len());
        self.queue.consume(queued, pool);
        let mut left = count - queued;
        self.fresh_len -= left;
        let mut gone = 0;
        for place in &mut self.fresh {
            if left < place.len() {
                *place = place.behind(left);
                break;
            }
            left -= place.len();
            gone += 1;
        }
        self.fresh.drain(..gone);
    }

    /// The edge as it could be told now.
    fn possible_edge(&self) -> Seq {
        let free = self.capacity.saturating_sub(self.len() as u32);
        // No more than the field can say.
        (self.nxt + free.min(0xffff << self.shift)).max(self.edge)
    }

    /// Whether the window has opened so far that the guest should hear of it: it
    /// has doubled, by no less than a segment or half of all.
    pub(crate) fn worth_telling(&self, mss: u32) -> bool {
        if self.finished {
            return false;
        }
        let told = self.edge.since(self.nxt);
        let possible = self.possible_edge().since(self.nxt);
        let step = mss.min(self.capacity / 2).max(1);
        possible - told >= step.max(told)
    }

    /// The window field of a segment that is being sent; the edge follows. Not
    /// scaled in a SYN (RFC 7323 section 2.2).
    pub(crate) fn window_field(&mut self, syn: bool) -> u16 {
        let shift = if syn { 0 } else { self.shift };
        let told = self.edge.since(self.nxt);
        let possible = self.possible_edge().since(self.nxt);
        let field = if possible > told { possible >> shift } else { 0 };
        let least = told.div_ceil(1 << shift);
        let field = field.max(least).min(u32::from(u16::MAX));
        self.edge = self.edge.max(self.nxt + (field << shift));
        field as u16
    }

    /// What has arrived beyond a hole: the latest first, then those that follow it.
    pub(crate) fn sacks(&self) -> Sacks {
        let mut sacks = Sacks::default();
        let from = |part: &(Seq, Seq)| part.1.after(self.recent);
        let all = || self.beyond.iter();
        for (start, end) in all().filter(from).chain(all().filter(|part| !from(part))) {
            sacks.push(start, end);
        }
        sacks
    }

    pub(crate) fn release(&mut self, pool: &mut Pool) {
        self.queue.release(pool);
        self.fresh.clear();
        self.fresh_len = 0;
        self.beyond.clear();
    }
}
