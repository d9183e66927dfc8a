//! One end of a TCP connection: the other is in the guest.
//!
//! # Theory of operation
//!
//! RFC 9293 without what a forwarder has no use for (LISTEN, urgent data). Segments
//! go in ([`Endpoint::handle`]), and come out one at a time when they are asked for
//! ([`Endpoint::poll`]), so that one acknowledgement covers all that was taken
//! before and carries the window as it is by then. The halves ([`Sender`],
//! [`Receiver`]) do not know each other; this is what joins them: the states, and
//! which segments are believed.
//!
//! States are those of RFC 9293 section 3.3.2. A close is a wish until its FIN is
//! sent; the state follows the FIN. TIME-WAIT is the end: whether to stay in it is
//! the owner's affair.
//!
//! Believed are (RFC 5961): a reset with exactly the next number; no SYN once there
//! is a connection; acknowledgements of what was sent and of what was not long ago.
//! All else that belongs to the connection is answered by an acknowledgement, and
//! that at most every [`ANSWER_GAP`] when the segment carried nothing: two ends that
//! disagree must not answer each other for ever.
//!
//! *Delayed acknowledgement* (RFC 9293 section 3.8.6.3). Requests that were answered
//! at once so far are acknowledged by their answers: where data of the guest and ours
//! have taken turns [`TURNS`] times, a short segment's acknowledgement waits for at
//! most [`DELAY`]. A second segment, or a wait in vain, ends that.
//!
//! Options: MSS, window scale (RFC 7323), selective acknowledgement (RFC 2018).
//! Timestamps are left out: there is one path, too short for old segments to come
//! back, and 12 bytes a segment are saved.

use std::io::IoSliceMut;
use std::time::Duration;

use super::receive::{Arrival, Receiver};
use super::segment::{Header, Options, Segment};
use super::send::{News, Sender};
use super::seq::Seq;
use crate::stack::batch::Batch;
use crate::stack::buffer::{Parts, Pool};
use crate::stack::frame::{ACK, FIN, PSH, RST, SYN};

/// Pause between answers to segments that are out of place and carry nothing.
const ANSWER_GAP: Duration = Duration::from_millis(500);
/// Acknowledgements of segments beyond a hole owed at most: a sender needs three.
const REPEATS_MAX: u8 = 8;
/// Answers in a row after which an acknowledgement waits for the next.
const TURNS: u8 = 4;
/// How long at most.
const DELAY: Duration = Duration::from_millis(40);
/// The least MSS believed: less would be all headers.
const MSS_MIN: u16 = 48;

/// What the link and the memory allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The payload we take in a segment: MTU less both headers.
    pub(crate) mss: u16,
    /// The MSS of a guest that tells none (RFC 9293 section 3.7.1).
    pub(crate) mss_default: u16,
    /// Payload of the longest frame to the guest, cut into segments by its kernel.
    pub(crate) longest: usize,
    /// Bytes of the guest that may wait for the host.
    pub(crate) window: u32,
    /// Shift of our windows.
    pub(crate) scale: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// The handshake is not complete.
    pub(crate) opening: bool,
    /// The guest's FIN has arrived, and every byte before it.
    pub(crate) guest_finished: bool,
    /// Both have finished and know it, or one has reset: no segment will follow.
    pub(crate) closed: bool,
    /// One has reset.
    pub(crate) reset: bool,
}

/// A segment to be sent; its bytes are lent by [`Endpoint::lend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) header: Header,
    /// Where its bytes begin, for [`Endpoint::lend`].
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Endpoint {
    state: State,
    send: Sender,
    receive: Receiver,
    limits: Limits,
    /// What our SYN offers, or what both have agreed on.
    scale: bool,
    sack: bool,
    /// An acknowledgement is due.
    ack_due: bool,
    /// One is due at that time, unless a segment goes out before.
    ack_at: Option<Duration>,
    /// The guest's data was the last to go over.
    asked: bool,
    /// How often data of ours was the next after the guest's, up to [`TURNS`].
    turns: u8,
    /// Further ones, for segments that came beyond a hole (RFC 5681 section 4.2).
    repeats: u8,
    /// When the next empty segment out of place is answered.
    answer_at: Duration,
    /// Resets the sender of a SYN that acknowledges something else.
    refuse: Option<Seq>,
    /// An empty segment that a living guest answers.
    probe: bool,
    abort: bool,
    reset: bool,
}

impl Endpoint {
    fn new(state: State, iss: Seq, limits: Limits) -> Endpoint {
        Endpoint {
            state,
            send: Sender::new(iss),
            receive: Receiver::new(limits.window, limits.scale),
            limits,
            scale: true,
            sack: true,
            ack_due: false,
            ack_at: None,
            asked: false,
            turns: 0,
            repeats: 0,
            answer_at: Duration::ZERO,
            refuse: None,
            probe: false,
            abort: false,
            reset: false,
        }
    }

    /// Opens a connection to the guest. `iss` must be hard to guess (RFC 6528).
    pub(crate) fn connect(iss: Seq, limits: Limits) -> Endpoint {
        Endpoint::new(State::SynSent, iss, limits)
    }

    /// Takes the connection that the guest opens with `syn`.
    pub(crate) fn accept(iss: Seq, limits: Limits, syn: &Segment<'_>) -> Endpoint {
        let mut endpoint = Endpoint::new(State::SynReceived, iss, limits);
        endpoint.read_syn(&syn.header);
        endpoint.send.first_window(syn.header.seq, iss, syn.header.window, true);
        endpoint
    }

    fn read_syn(&mut self, header: &Header) {
        let options = &header.options;
        self.receive.start(header.seq);
        self.scale = options.scale.is_some();
        self.sack = options.sack_permitted;
        if !self.scale {
            self.receive.unscaled();
        }
        let mss = options.mss.unwrap_or(self.limits.mss_default);
        // A larger segment than ours would not pass the link.
        let mss = mss.clamp(MSS_MIN, self.limits.mss.max(MSS_MIN));
        self.send.fit(mss, self.limits.longest, options.scale.unwrap_or(0));
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            opening: matches!(self.state, State::SynSent | State::SynReceived),
            guest_finished: !self.reset && self.receive.finished(),
            closed: matches!(self.state, State::TimeWait | State::Closed),
            reset: self.reset,
        }
    }

    /// Whether the connection is over even for what still arrives late.
    #[cfg(test)]
    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::Closed
    }

    /// The guest's MSS, in bytes: what exceeds it is to be cut.
    pub(crate) fn mss(&self) -> u16 {
        self.send.mss().min(u32::from(u16::MAX)) as u16
    }

    /// Takes a segment of this connection. Its bytes may stay in `batch`, if they are
    /// there, until [`Endpoint::settle`].
    pub(crate) fn handle(
        &mut self,
        now: Duration,
        segment: &Segment<'_>,
        batch: &Batch,
        pool: &mut Pool,
    ) {
        match self.state {
            State::Closed => {}
            State::SynSent => self.handle_syn_sent(now, segment, pool),
            _ => self.handle_synchronized(now, segment, batch, pool),
        }
    }

    /// RFC 9293 section 3.10.7.3.
    fn handle_syn_sent(&mut self, now: Duration, segment: &Segment<'_>, pool: &mut Pool) {
        let header = &segment.header;
        let ours =
            segment.has(ACK) && header.ack == self.send.nxt() && header.ack != self.send.una();
        if segment.has(ACK) && !ours {
            if !segment.has(RST) {
                self.refuse = Some(header.ack);
            }
            return;
        }
        if segment.has(RST) {
            if ours {
                self.end(true, pool);
            }
            return;
        }
        if !segment.has(SYN) {
            return;
        }
        self.read_syn(header);
        self.send.first_window(header.seq, self.send.una(), header.window, true);
        if ours {
            let (seq, ack, window) = (header.seq, header.ack, header.window);
            let sacks = Default::default();
            self.send.acknowledged(now, &News { seq, ack, window: 0, sacks, bare: false }, pool);
            self.send.first_window(seq, ack, window, true);
            self.state = State::Established;
            self.ack_due = true;
        } else {
            // Both have opened at once: our SYN again, with an acknowledgement.
            self.send.repeat_syn();
            self.state = State::SynReceived;
        }
    }

    /// RFC 9293 section 3.10.7.4.
    fn handle_synchronized(
        &mut self,
        now: Duration,
        segment: &Segment<'_>,
        batch: &Batch,
        pool: &mut Pool,
    ) {
        let header = &segment.header;
        if !self.receive.acceptable(header.seq, segment.end()) {
            if !segment.has(RST) {
                self.answer(now, segment);
            }
            return;
        }
        if segment.has(RST) {
            if self.state == State::TimeWait {
                // Of a guest that is done, for something that came late (RFC 1337):
                // the host still takes what it has sent.
            } else if header.seq == self.receive.nxt() {
                // What came before it is the host's still.
                self.state = State::Closed;
                self.reset = true;
                self.send.release(pool);
            } else {
                self.answer(now, segment);
            }
            return;
        }
        let first = header.seq + 1 == self.receive.nxt();
        if segment.has(SYN) && !(self.state == State::SynReceived && first) {
            return self.answer(now, segment);
        }
        if !segment.has(ACK) {
            // The guest's SYN again: our answer to it was lost.
            if segment.has(SYN) {
                self.send.repeat_syn();
            }
            return;
        }
        if self.state == State::SynReceived {
            if header.ack != self.send.nxt() || header.ack == self.send.una() {
                self.refuse = Some(header.ack);
                return;
            }
            self.state = State::Established;
        }
        let oldest = self.send.una() - self.send.max_window();
        if header.ack.after(self.send.nxt()) || header.ack.before(oldest) {
            return self.answer(now, segment);
        }
        let news = News {
            seq: header.seq,
            ack: header.ack,
            window: header.window,
            sacks: if self.sack { header.options.sacks } else { Default::default() },
            bare: segment.data.is_empty() && !segment.has(FIN | SYN),
        };
        self.send.acknowledged(now, &news, pool);
        if self.send.fin_acknowledged() {
            self.state = match self.state {
                State::FinWait1 => State::FinWait2,
                State::Closing => State::TimeWait,
                State::LastAck => State::Closed,
                other => other,
            };
        }
        self.take(now, segment, batch, pool);
    }

    fn take(&mut self, now: Duration, segment: &Segment<'_>, batch: &Batch, pool: &mut Pool) {
        let (seq, fin) = (segment.header.seq, segment.has(FIN));
        // Behind a SYN, whose number does not count as data.
        let seq = if segment.has(SYN) { seq + 1 } else { seq };
        if segment.data.is_empty() && !fin && !segment.has(SYN) {
            return;
        }
        let finished = self.receive.finished();
        let next = self.receive.nxt();
        let arrival = self.receive.take(seq, segment.data, fin, batch, pool);
        let whole = self.receive.nxt() == next + segment.data.len() as u32;
        let short = segment.data.len() < usize::from(self.limits.mss);
        if whole && short && !fin && !self.asked && self.turns == TURNS {
            self.ack_at = Some(now + DELAY);
        } else {
            self.ack_due = true;
        }
        if std::mem::replace(&mut self.asked, true) {
            self.turns = 0;
        }
        if arrival == Arrival::OutOfOrder {
            self.repeats = (self.repeats + 1).min(REPEATS_MAX);
        }
        if self.receive.finished() && !finished {
            self.state = match self.state {
                State::Established => State::CloseWait,
                State::FinWait1 => State::Closing,
                State::FinWait2 => State::TimeWait,
                other => other,
            };
        }
    }

    /// Answers a segment that is not believed, with what is true.
    fn answer(&mut self, now: Duration, segment: &Segment<'_>) {
        if segment.data.is_empty() {
            if now < self.answer_at {
                return;
            }
            self.answer_at = now + ANSWER_GAP;
        }
        self.ack_due = true;
    }

    fn end(&mut self, reset: bool, pool: &mut Pool) {
        self.state = State::Closed;
        self.reset |= reset;
        self.release(pool);
    }

    /// Gives all memory back; nothing is to be sent or received any more.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        self.send.release(pool);
        self.receive.release(pool);
    }

    /// The number of the next byte that was never sent.
    pub(crate) fn sent(&self) -> Seq {
        self.send.nxt()
    }

    /// The next segment for the guest, if one is due; it counts as sent then. Call
    /// until None after every change, and at [`Endpoint::deadline`].
    pub(crate) fn poll(&mut self, now: Duration, pool: &mut Pool) -> Option<Outgoing> {
        if let Some(seq) = self.refuse.take() {
            return Some(bare(Header { seq, flags: RST, ..Header::default() }));
        }
        match self.state {
            State::Closed => return None,
            State::SynSent | State::SynReceived => return self.poll_opening(now, pool),
            _ => {}
        }
        if self.abort {
            self.end(true, pool);
            return Some(self.bare(RST | ACK, self.send.nxt()));
        }
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_due = true;
            self.turns = 0;
        }
        self.probe |= self.send.timeout(now);
        // Bare: what carries data does not count as repeated.
        let sacks = self.receive.sacks();
        if self.repeats > 0 || self.ack_due && !sacks.as_slice().is_empty() {
            self.repeats = self.repeats.saturating_sub(1);
            let mut segment = self.bare(ACK, self.send.nxt());
            if self.sack {
                segment.header.options.sacks = sacks;
            }
            return Some(segment);
        }
        if let Some(piece) = self.send.next(now) {
            if piece.fin {
                self.state = match self.state {
                    State::Established => State::FinWait1,
                    State::CloseWait => State::LastAck,
                    other => other,
                };
            }
            let mut flags = ACK;
            if piece.fin {
                flags |= FIN;
            }
            if piece.last && piece.len > 0 {
                flags |= PSH;
            }
            if piece.len > 0 && std::mem::take(&mut self.asked) {
                self.turns = (self.turns + 1).min(TURNS);
            }
            let header = self.bare(flags, piece.seq).header;
            return Some(Outgoing { header, offset: piece.offset, len: piece.len });
        }
        if self.probe {
            self.probe = false;
            return Some(self.bare(ACK, self.send.una() - 1));
        }
        if self.ack_due || self.receive.worth_telling(u32::from(self.limits.mss)) {
            return Some(self.bare(ACK, self.send.nxt()));
        }
        None
    }

    fn poll_opening(&mut self, now: Duration, pool: &mut Pool) -> Option<Outgoing> {
        if self.abort {
            let known = self.state == State::SynReceived;
            self.end(true, pool);
            return known.then(|| self.bare(RST | ACK, self.send.nxt()));
        }
        if !self.send.syn_due(now) {
            // Whoever answers a SYN-ACK wrongly hears what is true.
            return (self.ack_due && self.state == State::SynReceived)
                .then(|| self.bare(ACK, self.send.nxt()));
        }
        let flags = if self.state == State::SynReceived { SYN | ACK } else { SYN };
        let mut segment = self.bare(flags, self.send.una());
        segment.header.options = Options {
            mss: Some(self.limits.mss),
            scale: self.scale.then_some(self.limits.scale),
            sack_permitted: self.sack,
            ..Options::default()
        };
        Some(segment)
    }

    /// A segment without bytes; as everything that is sent, it tells the window.
    fn bare(&mut self, flags: u8, seq: Seq) -> Outgoing {
        let window = if flags & RST != 0 {
            0
        } else if flags & ACK == 0 {
            // Nothing of the guest's is known yet that a window could follow.
            self.limits.window.min(65535) as u16
        } else {
            self.receive.window_field(flags & SYN != 0)
        };
        if flags & ACK != 0 {
            self.ack_due = false;
            self.ack_at = None;
        }
        let header =
            Header { seq, ack: self.receive.nxt(), flags, window, options: Options::default() };
        bare(header)
    }

    /// When [`Endpoint::poll`] has something to do without further input.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::TimeWait | State::Closed => None,
            _ => self.send.deadline().into_iter().chain(self.ack_at).min(),
        }
    }

    /// The bytes of a segment that [`Endpoint::poll`] has just given.
    pub(crate) fn lend<'a>(&'a self, segment: &Outgoing, parts: &mut Parts<'a>) {
        self.send.lend(segment.offset, segment.len, parts);
    }

    /// The guest's bytes that come next for the host.
    pub(crate) fn waiting<'a>(&'a self, batch: &'a Batch, parts: &mut Parts<'a>) {
        self.receive.waiting(batch, parts);
    }

    /// Whether some of them lie in the batch of frames.
    pub(crate) fn has_fresh(&self) -> bool {
        self.receive.has_fresh()
    }

    /// Copies those: the batch ends.
    pub(crate) fn settle(&mut self, batch: &Batch, pool: &mut Pool) {
        self.receive.settle(batch, pool);
    }

    /// Whether none wait.
    pub(crate) fn is_drained(&self) -> bool {
        self.receive.is_drained()
    }

    /// The host took the first `count` of them.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut Pool) {
        self.receive.consume(count, pool);
    }

    /// The window, in bytes, and whether it is what holds the guest back.
    pub(crate) fn window(&self) -> (u32, bool) {
        (self.receive.capacity(), self.receive.keeps_pace())
    }

    /// Opens the window by so much more.
    pub(crate) fn widen(&mut self, bytes: u32) {
        self.receive.grow(bytes);
    }

    /// How many bytes to ask of the host now.
    pub(crate) fn room(&self) -> usize {
        if matches!(self.state, State::Established | State::CloseWait) && !self.abort {
            self.send.room()
        } else {
            0
        }
    }

    /// Whether bytes for the guest are held.
    pub(crate) fn has_bytes(&self) -> bool {
        self.send.has_bytes()
    }

    /// Whether the guest owes an acknowledgement.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.send.is_outstanding()
    }

    /// Lets `read` put bytes for the guest at their place; it gives how many.
    pub(crate) fn fill(
        &mut self,
        most: usize,
        pool: &mut Pool,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> usize,
    ) {
        self.send.fill(most.min(self.room()), pool, read);
    }

    /// No more bytes for the guest: FIN after what is held.
    pub(crate) fn finish(&mut self) {
        self.send.finish();
    }

    /// Resets the connection; the RST is the next segment.
    pub(crate) fn abort(&mut self) {
        self.abort = true;
    }

    /// Asks the guest whether it lives (RFC 9293 section 3.8.4), with a segment that
    /// has no byte.
    pub(crate) fn probe(&mut self) {
        self.probe = true;
    }
}

fn bare(header: Header) -> Outgoing {
    Outgoing { header, offset: 0, len: 0 }
}

#[cfg(test)]
mod tests;
