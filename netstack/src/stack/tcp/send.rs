//! The sending half of an endpoint: what goes to the guest when, and again.
//!
//! # Theory of operation
//!
//! The queue holds every byte from `una` (SND.UNA) on; those below `nxt` (SND.NXT)
//! have been sent. SYN and FIN occupy a number each, before and behind them.
//!
//! *Loss.* Segments that arrived behind a hole are known from the guest's selective
//! acknowledgements (`sacked`, RFC 2018). Three repeated acknowledgements, or more
//! than two segments' worth beyond a hole, start a *recovery*, which lasts until
//! everything sent by then is acknowledged (RFC 6675): what lies below `lost_end`,
//! is not `sacked` and not below `repeated` is sent again, as far as the congestion
//! window allows (`pipe`). Without selective acknowledgements one segment is
//! repeated at a time (RFC 6582). The retransmission timer starts a recovery too,
//! in which everything counts as lost, and what was said of arrivals is forgotten,
//! because the guest may have gone back on it (RFC 2018 section 8).
//!
//! *Congestion.* Between us and the guest there is a queue that the guest's window
//! bounds, so the congestion window starts out without effect. After a loss it
//! follows RFC 5681: halved, or one segment after a timeout; then slow start and
//! linear growth.
//!
//! *Closed window.* With nothing in flight and no room worth a segment a timer runs
//! (RFC 9293 section 3.8.6.1). When it ends, what little fits is sent, or a probe:
//! an empty segment with a number already acknowledged, which makes any receiver
//! repeat its window. So no byte is ever sent beyond the window, except the first
//! of those in flight when the guest has taken its window back.

use std::io::IoSliceMut;
use std::time::Duration;

use super::rtt::Rtt;
use super::segment::Sacks;
use super::seq::{Ranges, Seq};
use crate::stack::buffer::{CHUNK, Parts, Pool, Queue};

/// Without effect until something is lost: more than any window.
const CWND_FIRST: u32 = 1 << 30;
/// Bytes of one connection that wait at most, sent or not.
const QUEUE_MAX: u32 = 1 << 20;
/// Repeated acknowledgements that mean a loss (RFC 5681 section 3.2).
const DUP_ACKS: u32 = 3;

/// The sending half.
#[derive(Debug)]
pub(crate) struct Sender {
    /// The oldest number not acknowledged: SND.UNA.
    una: Seq,
    /// The next number to send: SND.NXT.
    nxt: Seq,
    syn: Mark,
    fin: Mark,
    queue: Queue,
    /// Where the guest's window ends.
    edge: Seq,
    /// Sequence and acknowledgement number of the segment that told so: SND.WL1, WL2.
    told: (Seq, Seq),
    /// The largest window so far: MAX.SND.WND.
    max_window: u32,
    /// Shift of the guest's windows.
    shift: u8,
    /// The guest's MSS, in bytes.
    mss: u32,
    /// The longest segment, in bytes: a multiple of the MSS.
    longest: u32,
    sacked: Ranges,
    /// While a recovery lasts: what was sent when it began.
    recovery: Option<Seq>,
    lost_end: Seq,
    repeated: Seq,
    dup_acks: u32,
    cwnd: u32,
    ssthresh: u32,
    rtt: Rtt,
    /// A number whose acknowledgement ends a sample of the round trip, and since
    /// when it is waited for; none after a repetition (Karn's algorithm).
    timed: Option<(Seq, Duration)>,
    timer: Option<(Duration, Wait)>,
    /// The timer has ended while the window was closed.
    patience_over: bool,
}

/// What a SYN or FIN has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Not wanted yet.
    Open,
    Wanted,
    Sent,
    Acknowledged,
}

/// What the timer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Acknowledgement,
    Window,
}

/// A stretch of the stream to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) seq: Seq,
    /// Where its bytes begin, for [`Sender::lend`].
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
    /// FIN follows them.
    pub(crate) fin: bool,
    /// Nothing else waits behind it.
    pub(crate) last: bool,
}

/// The news of an acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct News {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    /// The window field.
    pub(crate) window: u16,
    pub(crate) sacks: Sacks,
    /// The segment says nothing else: no data, no SYN, no FIN.
    pub(crate) bare: bool,
}

impl Sender {
    /// Starts at `iss`, with the SYN to be sent. `mss` and `longest` are corrected
    /// by [`Sender::fit`].
    pub(crate) fn new(iss: Seq) -> Sender {
        Sender {
            una: iss,
            nxt: iss,
            syn: Mark::Wanted,
            fin: Mark::Open,
            queue: Queue::default(),
            edge: iss,
            told: (iss, iss),
            max_window: 0,
            shift: 0,
            mss: 536,
            longest: 536,
            sacked: Ranges::default(),
            recovery: None,
            lost_end: iss,
            repeated: iss,
            dup_acks: 0,
            cwnd: CWND_FIRST,
            ssthresh: CWND_FIRST,
            rtt: Rtt::default(),
            timed: None,
            timer: None,
            patience_over: false,
        }
    }

    /// What the guest's SYN said: payload it takes, its windows' shift. `longest` is
    /// what one frame carries.
    pub(crate) fn fit(&mut self, mss: u16, longest: usize, shift: u8) {
        self.mss = u32::from(mss.max(1));
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        self.longest = (longest / self.mss).max(1) * self.mss;
        self.shift = shift;
    }

    pub(crate) fn una(&self) -> Seq {
        self.una
    }

    pub(crate) fn nxt(&self) -> Seq {
        self.nxt
    }

    pub(crate) fn mss(&self) -> u32 {
        self.mss
    }

    pub(crate) fn max_window(&self) -> u32 {
        self.max_window
    }

    /// Whether bytes wait, sent or not.
    pub(crate) fn has_bytes(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many further bytes to ask of the host: what could be sent at once. With a
    /// closed window a few, so that there is something to probe it for. Crumbs of
    /// what there will soon be room for would make small segments: none then.
    pub(crate) fn room(&self) -> usize {
        if self.syn != Mark::Acknowledged || self.fin != Mark::Open {
            return 0;
        }
        let unsent = self.data_end().since(self.nxt);
        let window = self.edge.since(self.nxt).min(self.cwnd.saturating_sub(self.pipe()));
        let window = self.whole_segments(window);
        let room = window.max(CHUNK as u32).saturating_sub(unsent);
        let room = room.min(QUEUE_MAX.saturating_sub(self.queue.len() as u32));
        let crumb = room < (self.max_window / 2).min(65536);
        if crumb && self.is_outstanding() { 0 } else { room as usize }
    }

    /// Whether something that was sent, or waits to be, is not acknowledged.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.una != self.nxt || !self.queue.is_empty() || self.fin == Mark::Wanted
    }

    pub(crate) fn fin_acknowledged(&self) -> bool {
        self.fin == Mark::Acknowledged
    }

    /// Puts bytes behind those that wait.
    pub(crate) fn fill(
        &mut self,
        most: usize,
        pool: &mut Pool,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> usize,
    ) {
        self.queue.fill(most, pool, read);
    }

    /// FIN after what waits.
    pub(crate) fn finish(&mut self) {
        if self.fin == Mark::Open {
            self.fin = Mark::Wanted;
        }
    }

    /// The bytes of a piece.
    pub(crate) fn lend<'a>(&'a self, offset: usize, len: usize, parts: &mut Parts<'a>) {
        self.queue.lend(offset, len, parts);
    }

    pub(crate) fn release(&mut self, pool: &mut Pool) {
        self.queue.release(pool);
        self.sacked.clear();
    }

    /// Whether the SYN is to be sent now, first or again; it counts as sent then.
    pub(crate) fn syn_due(&mut self, now: Duration) -> bool {
        match (self.syn, self.timer) {
            (Mark::Wanted, _) => {
                self.syn = Mark::Sent;
                self.nxt = self.una + 1;
                self.timed = Some((self.nxt, now));
            }
            (Mark::Sent, Some((at, _))) if at <= now => {
                self.timed = None;
                self.rtt.back_off();
            }
            _ => return false,
        }
        self.timer = Some((now + self.rtt.timeout(), Wait::Acknowledgement));
        true
    }

    /// The guest repeated its SYN: ours has not arrived.
    pub(crate) fn repeat_syn(&mut self) {
        if self.syn == Mark::Sent {
            self.syn = Mark::Wanted;
        }
    }

    /// Behind the last byte of the queue.
    fn data_end(&self) -> Seq {
        self.una + self.queue.len() as u32
    }

    /// Bytes thought to be on their way (RFC 6675 section 4).
    fn pipe(&self) -> u32 {
        let unsacked = |from: Seq, to: Seq| to.since(from) - self.sacked.count(from, to);
        let sent = unsacked(self.una, self.nxt);
        if self.recovery.is_none() {
            return sent;
        }
        let lost = unsacked(self.repeated.max(self.una), self.lost_end);
        let arrived =
            if self.sacked.is_empty() { self.dup_acks.saturating_mul(self.mss) } else { 0 };
        sent.saturating_sub(lost).saturating_sub(arrived)
    }

    /// The next piece to send, if one is due; it counts as sent then.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Piece> {
        if self.syn != Mark::Acknowledged {
            return None;
        }
        self.repetition(now).or_else(|| self.fresh(now))
    }

    fn piece(&self, seq: Seq, len: u32) -> Piece {
        let end = seq + len;
        let bytes = end.min(self.data_end()).since(seq) as usize;
        Piece {
            seq,
            offset: seq.since(self.una) as usize,
            len: bytes,
            fin: end.after(self.data_end()),
            last: !end.before(self.data_end()),
        }
    }

    /// Less than `len`, so that no runt goes out behind each large segment.
    fn whole_segments(&self, len: u32) -> u32 {
        if len > self.mss { len - len % self.mss } else { len }
    }

    fn repetition(&mut self, now: Duration) -> Option<Piece> {
        self.recovery?;
        let from = self.repeated.max(self.una);
        let (start, stop) = self.sacked.first_gap(from, self.lost_end)?;
        let pipe = self.pipe();
        // The first of a recovery goes out whatever the congestion window.
        let allowed = if start == self.una { self.mss.max(self.cwnd) } else { self.cwnd };
        let allowed = allowed.saturating_sub(pipe);
        if allowed < self.mss.min(stop.since(start)) && start != self.una {
            return None;
        }
        let len = stop.since(start).min(self.longest).min(allowed.max(self.mss));
        let len = match self.edge.since(start) {
            0 if start == self.una => 1,
            0 => return None,
            window => len.min(window),
        };
        let len = if start + len == stop { len } else { self.whole_segments(len) };
        self.repeated = start + len;
        self.timed = None;
        if self.timer.is_none_or(|(_, wait)| wait == Wait::Window) {
            self.timer = Some((now + self.rtt.timeout(), Wait::Acknowledgement));
        }
        Some(self.piece(start, len))
    }

    fn fresh(&mut self, now: Duration) -> Option<Piece> {
        let unsent = self.data_end().since(self.nxt);
        let fin = self.fin == Mark::Wanted;
        if unsent == 0 && !fin {
            return None;
        }
        let room = self.edge.since(self.nxt).min(self.cwnd.saturating_sub(self.pipe()));
        let mut len = unsent.min(self.longest).min(room);
        let forced = std::mem::take(&mut self.patience_over);
        if len < unsent {
            if len >= self.mss {
                len = self.whole_segments(len);
            } else if len < self.max_window / 2 || len == 0 {
                // Silly-window avoidance (RFC 9293 section 3.8.6.2.1).
                if !(forced && len > 0) {
                    self.wait_for_window(now);
                    return None;
                }
            }
        }
        let fin = fin && len == unsent && room > len;
        if len == 0 && !fin {
            self.wait_for_window(now);
            return None;
        }
        let seq = self.nxt;
        self.nxt = seq + len + u32::from(fin);
        if fin {
            self.fin = Mark::Sent;
        }
        if self.timer.is_none_or(|(_, wait)| wait == Wait::Window) {
            self.timer = Some((now + self.rtt.timeout(), Wait::Acknowledgement));
        }
        if self.timed.is_none() && self.recovery.is_none() {
            self.timed = Some((self.nxt, now));
        }
        Some(self.piece(seq, len + u32::from(fin)))
    }

    fn wait_for_window(&mut self, now: Duration) {
        if self.una == self.nxt && self.timer.is_none() {
            self.timer = Some((now + self.rtt.timeout(), Wait::Window));
        }
    }

    /// When [`Sender::timeout`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.timer.map(|(at, _)| at)
    }

    /// Acts on the timer when its time has come. True when the guest is to be asked
    /// for its window.
    pub(crate) fn timeout(&mut self, now: Duration) -> bool {
        if self.syn != Mark::Acknowledged {
            return false;
        }
        match self.timer {
            Some((at, wait)) if at <= now => {
                self.timer = None;
                match wait {
                    Wait::Acknowledgement if self.una == self.nxt => return false,
                    Wait::Acknowledgement => self.all_lost(),
                    Wait::Window => {
                        self.rtt.back_off();
                        self.patience_over = true;
                    }
                }
                self.timer = Some((now + self.rtt.timeout(), wait));
                wait == Wait::Window && self.edge.since(self.nxt) == 0
            }
            _ => false,
        }
    }

    fn all_lost(&mut self) {
        if !self.rtt.is_backed_off() {
            self.ssthresh = (self.nxt.since(self.una) / 2).max(2 * self.mss);
        }
        self.rtt.back_off();
        self.cwnd = self.mss;
        self.recovery = Some(self.nxt);
        self.lost_end = self.nxt;
        self.repeated = self.una;
        self.sacked.clear();
        self.dup_acks = 0;
        self.timed = None;
    }

    /// The guest's SYN or the segment that completes the handshake has told its
    /// first window, which a SYN does not scale.
    pub(crate) fn first_window(&mut self, seq: Seq, ack: Seq, window: u16, syn: bool) {
        let window = u32::from(window) << if syn { 0 } else { self.shift };
        self.edge = ack + window;
        self.max_window = window;
        self.told = (seq, ack);
    }

    /// Takes an acknowledgement that lies within what was sent (RFC 5961 section
    /// 5.2).
    pub(crate) fn acknowledged(&mut self, now: Duration, news: &News, pool: &mut Pool) {
        let old_edge = self.edge;
        self.read_window(news);
        if news.ack.after(self.una) {
            self.advance(now, news.ack, pool);
        } else if news.ack == self.una && news.bare && self.una != self.nxt && self.edge == old_edge
        {
            self.dup_acks += 1;
        }
        self.read_sacks(&news.sacks);
        if self.recovery.is_some() {
            if let Some(end) = self.sacked.end() {
                self.lost_end = self.lost_end.max(end);
            }
        } else if self.una != self.nxt && self.looks_lost() {
            let flight = self.nxt.since(self.una);
            self.ssthresh = (flight / 2).max(2 * self.mss);
            self.cwnd = self.ssthresh;
            self.recovery = Some(self.nxt);
            self.repeated = self.una;
            self.lost_end = self.sacked.end().unwrap_or((self.una + self.longest).min(self.nxt));
        }
    }

    fn looks_lost(&self) -> bool {
        self.dup_acks >= DUP_ACKS || self.sacked.count(self.una, self.nxt) > 2 * self.mss
    }

    fn read_window(&mut self, news: &News) {
        if news.ack.before(self.una) {
            return;
        }
        let (seq, ack) = self.told;
        if seq.before(news.seq) || (seq == news.seq && !ack.after(news.ack)) {
            let window = u32::from(news.window) << self.shift;
            self.edge = news.ack + window;
            self.max_window = self.max_window.max(window);
            self.told = (news.seq, news.ack);
            if self.edge.since(self.nxt) > 0
                && let Some((_, Wait::Window)) = self.timer
            {
                // Looked at anew with the next piece.
                self.timer = None;
                self.rtt.heard();
            }
        }
    }

    fn read_sacks(&mut self, sacks: &Sacks) {
        for &(start, end) in sacks.as_slice() {
            let plausible = start.after(self.una) && start.before(end) && !end.after(self.nxt);
            if plausible {
                self.sacked.insert(start, end);
            }
        }
    }

    fn advance(&mut self, now: Duration, ack: Seq, pool: &mut Pool) {
        let mut count = ack.since(self.una);
        let acked = count;
        // Sent, or about to be repeated.
        if self.syn != Mark::Acknowledged {
            self.syn = Mark::Acknowledged;
            count -= 1;
        }
        let bytes = (count as usize).min(self.queue.len());
        self.queue.consume(bytes, pool);
        if count as usize > bytes && self.fin == Mark::Sent {
            self.fin = Mark::Acknowledged;
        }
        self.una = ack;
        self.dup_acks = 0;
        self.sacked.forget_before(ack);
        if let Some((end, since)) = self.timed
            && !ack.before(end)
        {
            self.rtt.sample(now.saturating_sub(since));
            self.timed = None;
        }
        self.rtt.heard();
        match self.recovery {
            Some(point) if ack.before(point) => {
                // A further loss of the same flight (RFC 6582 section 3.2).
                let next = (ack + self.longest).min(point);
                if self.sacked.is_empty() && self.lost_end.before(next) {
                    self.lost_end = next;
                    self.repeated = ack;
                }
                self.widen(acked);
            }
            Some(_) => {
                self.recovery = None;
                self.lost_end = ack;
            }
            None => self.widen(acked),
        }
        let waiting = self.una != self.nxt;
        self.timer = waiting.then(|| (now + self.rtt.timeout(), Wait::Acknowledgement));
    }

    fn widen(&mut self, acked: u32) {
        let more = if self.cwnd < self.ssthresh {
            acked
        } else {
            // One segment a round trip.
            (u64::from(self.mss) * u64::from(acked) / u64::from(self.cwnd)).max(1) as u32
        };
        self.cwnd = self.cwnd.saturating_add(more).min(CWND_FIRST);
    }
}
