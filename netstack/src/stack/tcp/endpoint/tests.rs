//! Packet traces: what arrives and what must be sent for it, number by number.
//! Sequence numbers of both sides count from their SYN, so the first byte is 1.

use super::*;

const LOCAL: u32 = 0xffff_ff00;
const REMOTE: u32 = 7000;
const MSS: u16 = 1000;
const NOW: Duration = Duration::from_secs(1);

struct Trace {
    endpoint: Endpoint,
    pool: Pool,
    now: Duration,
}

/// A segment of the guest: flags, numbers, window field.
#[derive(Clone)]
struct In(Header, Vec<u8>);

fn limits() -> Limits {
    Limits { mss: MSS, mss_default: 536, longest: 4 * usize::from(MSS), window: 8000, scale: 1 }
}

fn seg(flags: u8, seq: u32, ack: u32) -> In {
    let (seq, ack) = (Seq::new(REMOTE) + seq, Seq::new(LOCAL) + ack);
    In(Header { seq, ack, flags, window: 5000, options: Options::default() }, Vec::new())
}

impl In {
    fn data(mut self, data: &[u8]) -> In {
        self.1 = data.to_vec();
        self
    }
    fn window(mut self, window: u16) -> In {
        self.0.window = window;
        self
    }
    fn sack(mut self, blocks: &[(u32, u32)]) -> In {
        for &(start, end) in blocks {
            self.0.options.sacks.push(Seq::new(LOCAL) + start, Seq::new(LOCAL) + end);
        }
        self
    }
    fn options(mut self, scale: Option<u8>, sack: bool) -> In {
        let mss = Some(MSS);
        self.0.options = Options { mss, scale, sack_permitted: sack, ..Options::default() };
        self
    }
}

/// What was sent: flags, numbers, bytes.
type Out = (u8, u32, u32, usize);

impl Trace {
    /// As opened by the guest, up to its ACK.
    fn accepted() -> Trace {
        Trace::accepted_with(seg(SYN, 0, 0).options(Some(0), true))
    }

    fn accepted_with(syn: In) -> Trace {
        let segment = Segment { header: syn.0, data: &syn.1 };
        let endpoint = Endpoint::accept(Seq::new(LOCAL), limits(), &segment);
        let mut trace = Trace { endpoint, pool: Pool::default(), now: NOW };
        trace.sends(&[(SYN | ACK, 0, 1, 0)]);
        trace.gets(&seg(ACK, 1, 1));
        trace.sends(&[]);
        trace
    }

    fn connecting() -> Trace {
        let endpoint = Endpoint::connect(Seq::new(LOCAL), limits());
        Trace { endpoint, pool: Pool::default(), now: NOW }
    }

    fn gets(&mut self, segment: &In) {
        let segment = Segment { header: segment.0, data: &segment.1 };
        self.endpoint.handle(self.now, &segment, &Batch::none(), &mut self.pool);
    }

    fn all(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(segment) = self.endpoint.poll(self.now, &mut self.pool) {
            let mut parts = Parts::new();
            self.endpoint.lend(&segment, &mut parts);
            assert_eq!(parts.len(), segment.len);
            all.push((segment.header, parts.to_vec()));
            assert!(all.len() < 1000, "sends for ever");
        }
        all
    }

    fn sends(&mut self, expected: &[Out]) {
        let short = |(header, data): &(Header, Vec<u8>)| -> Out {
            let seq = header.seq.to_u32().wrapping_sub(LOCAL);
            let ack = header.ack.to_u32().wrapping_sub(REMOTE);
            let ack = if header.flags & ACK != 0 { ack } else { 0 };
            (header.flags & !PSH, seq, ack, data.len())
        };
        let sent: Vec<Out> = self.all().iter().map(short).collect();
        assert_eq!(sent, expected);
    }

    fn gives(&mut self, len: usize) -> usize {
        let mut given = 0;
        while given < len && self.endpoint.room() > 0 {
            self.endpoint.fill(len - given, &mut self.pool, &mut |places| {
                let count = places.iter().map(|place| place.len()).sum();
                given += count;
                count
            });
        }
        given
    }

    fn takes(&mut self) -> Vec<u8> {
        let mut parts = Parts::new();
        let batch = Batch::none();
        self.endpoint.waiting(&batch, &mut parts);
        let bytes = parts.to_vec();
        self.endpoint.consume(bytes.len(), &mut self.pool);
        bytes
    }

    /// Lets the time of the next deadline come.
    fn waits(&mut self) -> Duration {
        let next = self.endpoint.deadline().expect("a deadline");
        let waited = next - self.now;
        self.now = next;
        waited
    }

    fn state(&self) -> State {
        self.endpoint.state
    }
}

/// Sends what lies between the braces, or gets it.
macro_rules! send {
    ($t:expr $(, $out:expr)*) => { $t.sends(&[$($out),*]) };
}
macro_rules! recv {
    ($t:expr $(, $in:expr)*) => { $($t.gets(&$in);)* };
}

#[test]
fn the_guest_opens() {
    let syn = seg(SYN, 0, 0).options(Some(3), true);
    let segment = Segment { header: syn.0, data: &[] };
    let endpoint = Endpoint::accept(Seq::new(LOCAL), limits(), &segment);
    let mut t = Trace { endpoint, pool: Pool::default(), now: NOW };
    let answer = t.all().remove(0).0;
    assert_eq!((answer.flags, answer.window), (SYN | ACK, 8000), "not scaled");
    let options = answer.options;
    assert_eq!((options.mss, options.scale, options.sack_permitted), (Some(MSS), Some(1), true));
    // Lost: the SYN comes again, and the timer does its part.
    recv!(t, syn);
    send!(t, (SYN | ACK, 0, 1, 0));
    assert_eq!(t.waits(), Duration::from_secs(1));
    send!(t, (SYN | ACK, 0, 1, 0));
    // An acknowledgement of something else is reset and changes nothing.
    recv!(t, seg(ACK, 1, 7));
    send!(t, (RST, 7, 0, 0));
    recv!(t, seg(ACK, 1, 1).data(b"first"));
    assert_eq!((t.state(), t.takes()), (State::Established, b"first".to_vec()));
    send!(t, (ACK, 1, 6, 0));
}

#[test]
fn options_the_guest_lacks_are_not_used() {
    let syn = seg(SYN, 0, 0);
    let segment = Segment { header: syn.0, data: &[] };
    let endpoint = Endpoint::accept(Seq::new(LOCAL), limits(), &segment);
    let mut t = Trace { endpoint, pool: Pool::default(), now: NOW };
    let answer = t.all().remove(0).0;
    assert_eq!((answer.options.scale, answer.options.sack_permitted), (None, false));
    assert_eq!(t.endpoint.mss(), 536);
    recv!(t, seg(ACK, 1, 1), seg(ACK, 1001, 1).data(b"beyond"));
    let repeated = t.all().remove(0).0;
    assert_eq!((repeated.window, repeated.options.sacks.as_slice().len()), (8000, 0));
}

#[test]
fn we_open() {
    let mut t = Trace::connecting();
    send!(t, (SYN, 0, 0, 0));
    // Of an earlier connection: reset, and our SYN stands.
    recv!(t, seg(ACK, 500, 300));
    send!(t, (RST, 300, 0, 0));
    recv!(t, seg(RST, 0, 0));
    assert_eq!(t.state(), State::SynSent, "a reset that acknowledges nothing");
    assert_eq!(t.waits(), Duration::from_secs(1));
    send!(t, (SYN, 0, 0, 0));
    assert_eq!(t.waits(), Duration::from_secs(2));
    send!(t, (SYN, 0, 0, 0));
    recv!(t, seg(SYN | ACK, 0, 1).options(Some(0), true));
    send!(t, (ACK, 1, 1, 0));
    assert_eq!((t.state(), t.endpoint.deadline()), (State::Established, None));

    let mut refused = Trace::connecting();
    send!(refused, (SYN, 0, 0, 0));
    recv!(refused, seg(RST | ACK, 0, 1));
    assert!(refused.endpoint.status().reset);
    send!(refused);
}

#[test]
fn both_open_at_once() {
    let mut t = Trace::connecting();
    send!(t, (SYN, 0, 0, 0));
    recv!(t, seg(SYN, 0, 0).options(Some(0), true));
    send!(t, (SYN | ACK, 0, 1, 0));
    recv!(t, seg(SYN | ACK, 0, 1).options(Some(0), true));
    assert_eq!(t.state(), State::Established);
    send!(t, (ACK, 1, 1, 0));
}

#[test]
fn the_guest_closes_first() {
    let mut t = Trace::accepted();
    recv!(t, seg(FIN | ACK, 1, 1).data(b"bye"));
    assert_eq!((t.state(), t.takes()), (State::CloseWait, b"bye".to_vec()));
    send!(t, (ACK, 1, 5, 0));
    // Its way is closed, ours is not.
    assert_eq!(t.gives(100), 100);
    send!(t, (ACK, 1, 5, 100));
    t.endpoint.finish();
    send!(t, (FIN | ACK, 101, 5, 0));
    recv!(t, seg(ACK, 5, 101));
    assert_eq!(t.state(), State::LastAck);
    recv!(t, seg(ACK, 5, 102));
    assert_eq!((t.state(), t.endpoint.deadline()), (State::Closed, None));
    assert_eq!(t.pool.lent(), 0);
}

#[test]
fn we_close_first_and_the_guest_goes_on_sending() {
    let mut t = Trace::accepted();
    t.gives(10);
    t.endpoint.finish();
    send!(t, (FIN | ACK, 1, 1, 10));
    recv!(t, seg(ACK, 1, 12));
    assert_eq!(t.state(), State::FinWait2);
    recv!(t, seg(ACK, 1, 12).data(&[1; 700]));
    assert_eq!(t.takes().len(), 700);
    send!(t, (ACK, 12, 701, 0));
    recv!(t, seg(FIN | ACK, 701, 12));
    assert_eq!(t.state(), State::TimeWait);
    send!(t, (ACK, 12, 702, 0));
    recv!(t, seg(FIN | ACK, 701, 12));
    send!(t, (ACK, 12, 702, 0));
    // The end is the end: a late reset takes nothing back (RFC 1337).
    recv!(t, seg(RST, 702, 0));
    assert!(!t.endpoint.status().reset);
}

#[test]
fn both_close_at_once() {
    let mut t = Trace::accepted();
    t.endpoint.finish();
    send!(t, (FIN | ACK, 1, 1, 0));
    recv!(t, seg(FIN | ACK, 1, 1));
    assert_eq!(t.state(), State::Closing);
    send!(t, (ACK, 2, 2, 0));
    recv!(t, seg(ACK, 2, 2));
    assert_eq!(t.state(), State::TimeWait);
}

#[test]
fn a_close_waits_for_the_handshake() {
    let mut t = Trace::connecting();
    t.endpoint.finish();
    send!(t, (SYN, 0, 0, 0));
    recv!(t, seg(SYN | ACK, 0, 1).options(None, false));
    send!(t, (FIN | ACK, 1, 1, 0));
}

#[test]
fn a_fin_that_overtakes_waits_for_the_bytes_before_it() {
    let mut t = Trace::accepted();
    recv!(t, seg(FIN | ACK, 1001, 1).data(&[2; 50]));
    assert_eq!(t.state(), State::Established);
    let all = t.all();
    let sacks = all[0].0.options.sacks;
    assert_eq!(sacks.as_slice(), [(Seq::new(REMOTE) + 1001, Seq::new(REMOTE) + 1051)]);
    recv!(t, seg(ACK, 1, 1).data(&[1; 1000]));
    assert_eq!((t.state(), t.takes().len()), (State::CloseWait, 1050));
    send!(t, (ACK, 1, 1052, 0));
}

#[test]
fn holes_are_told_the_latest_first() {
    let mut t = Trace::accepted();
    for start in [1001, 3001, 5001] {
        recv!(t, seg(ACK, start, 1).data(&[0; 500]));
    }
    recv!(t, seg(ACK, 3501, 1).data(&[0; 100]));
    let all = t.all();
    assert_eq!(all.len(), 4, "each one is answered, so that three repeat the first");
    let blocks: Vec<_> = all[0].0.options.sacks.as_slice().to_vec();
    let block = |a: u32, b: u32| (Seq::new(REMOTE) + a, Seq::new(REMOTE) + b);
    assert_eq!(blocks, [block(3001, 3601), block(5001, 5501), block(1001, 1501)]);
    // Overlapping repetitions fill them, with what is new only.
    recv!(t, seg(ACK, 1, 1).data(&[0; 3200]));
    send!(t, (ACK, 1, 3601, 0));
    assert_eq!(t.takes().len(), 3600);
}

#[test]
fn nothing_beyond_the_window_is_taken() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).data(&[1; 9000]));
    assert_eq!(t.takes().len(), 8000);
    let all = t.all();
    assert_eq!(all[0].0.ack, Seq::new(REMOTE) + 8001);
    recv!(t, seg(ACK, 20_000, 1).data(&[1; 10]));
    send!(t, (ACK, 1, 8001, 0));
    assert!(t.endpoint.is_drained());
}

#[test]
fn the_window_closes_and_opens_in_steps_worth_a_segment() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).data(&[1; 8000]));
    let full = t.all().remove(0).0;
    assert_eq!((full.window, full.ack), (0, Seq::new(REMOTE) + 8001));
    // A probe into it is answered and leaves nothing.
    recv!(t, seg(ACK, 8001, 1).data(b"x"));
    send!(t, (ACK, 1, 8001, 0));
    t.endpoint.consume(999, &mut t.pool);
    send!(t);
    t.endpoint.consume(1, &mut t.pool);
    let open = t.all().remove(0).0;
    assert_eq!(open.window, 1000 >> 1);
    // The acknowledgement of a segment into a closed window counts.
    let mut t = Trace::accepted();
    t.gives(10);
    send!(t, (ACK, 1, 1, 10));
    recv!(t, seg(ACK, 1, 1).data(&[1; 8000]), seg(ACK, 8001, 11).data(b"x"));
    assert!(!t.endpoint.is_outstanding());
}

#[test]
fn only_the_exact_reset_is_believed() {
    for (seq, flags) in [(2, RST), (100, RST | ACK), (3000, RST)] {
        let mut t = Trace::accepted();
        recv!(t, seg(flags, seq, 1));
        // RFC 5961 section 3.2: a living guest resets again, with the right number.
        send!(t, (ACK, 1, 1, 0));
        assert_eq!(t.state(), State::Established);
        recv!(t, seg(RST, 1, 0));
        assert!(t.endpoint.status().reset);
        send!(t);
    }
    let mut t = Trace::accepted();
    recv!(t, seg(RST, 9001, 1), seg(RST, 0_u32.wrapping_sub(1), 1));
    send!(t);
    assert_eq!(t.state(), State::Established);
}

#[test]
fn a_syn_is_not_believed_once_there_is_a_connection() {
    let mut t = Trace::accepted();
    recv!(t, seg(SYN, 1, 0));
    send!(t, (ACK, 1, 1, 0));
    assert_eq!(t.state(), State::Established);
    // Answers to what carries nothing are rare: no war of acknowledgements.
    recv!(t, seg(SYN, 1, 0), seg(ACK, 1, 900), seg(ACK, 0, 1));
    send!(t);
    t.now += ANSWER_GAP;
    recv!(t, seg(ACK, 1, 900));
    send!(t, (ACK, 1, 1, 0));
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_not_believed() {
    let mut t = Trace::accepted();
    t.gives(500);
    send!(t, (ACK, 1, 1, 500));
    for wrong in [502, 40_000, 0_u32.wrapping_sub(10_000)] {
        recv!(t, seg(ACK, 1, wrong).data(b"data"));
        send!(t, (ACK, 501, 1, 0));
        assert!(t.endpoint.is_drained(), "{wrong}");
    }
}

#[test]
fn repeated_segments_are_answered() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).data(b"once"));
    send!(t, (ACK, 1, 5, 0));
    recv!(t, seg(ACK, 1, 1).data(b"once"));
    send!(t, (ACK, 1, 5, 0));
    recv!(t, seg(ACK, 1, 1).data(b"o"));
    send!(t, (ACK, 1, 5, 0));
    assert_eq!(t.takes(), b"once");
}

#[test]
fn a_turn_ends_in_one_acknowledgement() {
    let mut t = Trace::accepted();
    for n in 0..5 {
        recv!(t, seg(ACK, 1 + n * 100, 1).data(&[0; 100]));
    }
    t.takes();
    send!(t, (ACK, 1, 501, 0));
    // Which data carries, when there is some.
    recv!(t, seg(ACK, 501, 1).data(&[0; 100]));
    t.gives(20);
    send!(t, (ACK, 1, 601, 20));
}

#[test]
fn segments_are_multiples_of_the_mss_and_stay_within_the_window() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).window(9500));
    assert_eq!(t.gives(20_000), 16384, "a chunk; the rest stays with the host");
    send!(t, (ACK, 1, 1, 4000), (ACK, 4001, 1, 4000), (ACK, 8001, 1, 1000));
    recv!(t, seg(ACK, 1, 9001).window(600));
    send!(t);
    recv!(t, seg(ACK, 1, 9001).window(2600));
    send!(t, (ACK, 9001, 1, 2000));
}

#[test]
fn the_timer_repeats_the_oldest_and_doubles() {
    let mut t = Trace::accepted();
    t.gives(3000);
    send!(t, (ACK, 1, 1, 3000));
    assert_eq!(t.waits(), Duration::from_millis(200));
    send!(t, (ACK, 1, 1, 1000));
    assert_eq!(t.waits(), Duration::from_millis(400));
    send!(t, (ACK, 1, 1, 1000));
    // Slow start from there.
    recv!(t, seg(ACK, 1, 1001));
    send!(t, (ACK, 1001, 1, 2000));
    recv!(t, seg(ACK, 1, 3001));
    assert_eq!(t.endpoint.deadline(), None);
    assert_eq!(t.pool.lent(), 0);
}

#[test]
fn a_lost_fin_is_repeated() {
    let mut t = Trace::accepted();
    t.gives(5);
    t.endpoint.finish();
    send!(t, (FIN | ACK, 1, 1, 5));
    recv!(t, seg(ACK, 1, 6));
    t.waits();
    send!(t, (FIN | ACK, 6, 1, 0));
    recv!(t, seg(ACK, 1, 6), seg(ACK, 1, 6), seg(ACK, 1, 6));
    send!(t);
    t.waits();
    send!(t, (FIN | ACK, 6, 1, 0));
    recv!(t, seg(ACK, 1, 7));
    assert_eq!(t.state(), State::FinWait2);
}

#[test]
fn three_repeated_acknowledgements_repeat_one_segment_at_a_time() {
    let mut t = Trace::accepted_with(seg(SYN, 0, 0).options(Some(2), false));
    recv!(t, seg(ACK, 1, 1));
    t.gives(12_000);
    send!(t, (ACK, 1, 1, 4000), (ACK, 4001, 1, 4000), (ACK, 8001, 1, 4000));
    recv!(t, seg(ACK, 1, 1), seg(ACK, 1, 1));
    send!(t);
    recv!(t, seg(ACK, 1, 1));
    send!(t, (ACK, 1, 1, 1000));
    // Each further one says that a segment has left the link.
    recv!(t, seg(ACK, 1, 1));
    send!(t, (ACK, 1001, 1, 1000));
    // Another one of the same flight is missing.
    recv!(t, seg(ACK, 1, 4001));
    send!(t, (ACK, 4001, 1, 2000));
    recv!(t, seg(ACK, 1, 12_001));
    assert!(!t.endpoint.is_outstanding());
}

#[test]
fn selective_acknowledgements_name_what_to_repeat() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).window(60_000));
    t.gives(16_000);
    send!(t, (ACK, 1, 1, 4000), (ACK, 4001, 1, 4000), (ACK, 8001, 1, 4000), (ACK, 12_001, 1, 4000));
    recv!(t, seg(ACK, 1, 1).window(60_000).sack(&[(4001, 6001)]));
    send!(t);
    recv!(t, seg(ACK, 1, 1).window(60_000).sack(&[(10_001, 16_001), (4001, 6001)]));
    send!(t, (ACK, 1, 1, 4000), (ACK, 6001, 1, 4000));
    recv!(t, seg(ACK, 1, 6001).window(60_000).sack(&[(10_001, 16_001)]));
    send!(t);
    recv!(t, seg(ACK, 1, 16_001).window(60_000));
    assert!(!t.endpoint.is_outstanding());
    // Blocks of what was never sent are no news.
    t.gives(100);
    send!(t, (ACK, 16_001, 1, 100));
    recv!(t, seg(ACK, 1, 16_001).window(60_000).sack(&[(17_000, 90_000), (1, 1000)]));
    send!(t);
}

#[test]
fn a_closed_window_is_probed_without_a_byte() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).window(0));
    t.gives(5000);
    send!(t);
    let mut waits = Vec::new();
    for _ in 0..3 {
        waits.push(t.waits().as_millis());
        send!(t, (ACK, 0, 1, 0));
        recv!(t, seg(ACK, 1, 1).window(0));
        send!(t);
    }
    assert!(waits[1] == 2 * waits[0] && waits[2] == 2 * waits[1], "{waits:?}");
    recv!(t, seg(ACK, 1, 1).window(3000));
    send!(t, (ACK, 1, 1, 3000));
}

/// A window smaller than a segment is used only after a while.
#[test]
fn a_silly_window_is_used_in_the_end() {
    let mut t = Trace::accepted();
    t.gives(5000);
    send!(t, (ACK, 1, 1, 4000), (ACK, 4001, 1, 1000));
    recv!(t, seg(ACK, 1, 5001).window(300));
    t.gives(5000);
    send!(t);
    t.waits();
    send!(t, (ACK, 5001, 1, 300));
}

#[test]
fn a_window_taken_back_is_respected() {
    let mut t = Trace::accepted();
    t.gives(3000);
    send!(t, (ACK, 1, 1, 3000));
    recv!(t, seg(ACK, 1, 1).window(0));
    t.waits();
    send!(t, (ACK, 1, 1, 1));
    recv!(t, seg(ACK, 1, 2).window(5000));
    // In slow start, as after any timeout: an MSS and what was acknowledged.
    send!(t, (ACK, 2, 1, 1000));
}

#[test]
fn an_abort_is_one_reset() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK, 1, 1).data(b"unread"));
    t.gives(100);
    t.endpoint.abort();
    send!(t, (RST | ACK, 1, 7, 0));
    assert!(t.endpoint.status().reset && t.pool.lent() == 0);
    recv!(t, seg(ACK, 7, 1));
    send!(t);
}

#[test]
fn a_probe_has_no_byte_and_is_answered() {
    let mut t = Trace::accepted();
    t.endpoint.probe();
    send!(t, (ACK, 0, 1, 0));
    // The other way round, as Linux asks.
    recv!(t, seg(ACK, 0, 1));
    send!(t, (ACK, 1, 1, 0));
    assert!(t.endpoint.is_drained());
}

#[test]
fn urgent_bytes_stay_in_their_place() {
    let mut t = Trace::accepted();
    recv!(t, seg(ACK | 0x20, 1, 1).data(b"u!"));
    assert_eq!(t.takes(), b"u!");
}
