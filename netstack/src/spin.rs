//! When to look again for events rather than to sleep.
//!
//! # Theory of operation
//!
//! Waking a sleeping thread takes tens of microseconds where its processor has gone
//! idle, which is what a round trip mostly waits for. So a loop whose last waits were
//! short looks for events for at most [`SPIN_MAX`] before it sleeps.
//!
//! That is a bet. It is made only after [`WAITS`] short waits in a row, and each one
//! that is lost doubles how many are asked for before the next, up to [`WAITS_MAX`];
//! one that is won resets that. A wait that was long asks for as many again, and so
//! does a turn that moved much: the ends of a bulk transfer want the processor
//! themselves. So a loop with nothing to do sleeps, and one that shares its processor
//! with what it waits for soon gives it up.
//!
//! Of several loops of a process one looks at a time. A look that took longer than it
//! was to was interrupted: it counts as many that were lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long to look for events.
pub(crate) const SPIN_MAX: Duration = Duration::from_micros(50);
/// A wait that was not longer, waking included, is short.
const SHORT: Duration = Duration::from_micros(120);
/// Bytes of frames that a turn of small messages moves at most.
const LIGHT: usize = 4096;
/// Short waits before the first bet.
const WAITS: u16 = 4;
/// The same after many that were lost.
const WAITS_MAX: u16 = 1024;

/// Whether it pays to look for events.
#[derive(Debug)]
pub(crate) struct Spin {
    /// Short waits in a row.
    short: u16,
    needed: u16,
    /// Some loop is looking; None when it never pays.
    taken: Option<Arc<AtomicBool>>,
}

impl Spin {
    /// `taken` is shared by all loops; None on a machine with one processor, where
    /// nothing happens while one looks.
    pub(crate) fn new(taken: Option<Arc<AtomicBool>>) -> Spin {
        Spin { short: 0, needed: WAITS, taken }
    }

    /// Whether to look, after a turn that moved so many bytes. If so, [`Spin::ended`]
    /// must follow.
    pub(crate) fn begin(&mut self, moved: usize) -> bool {
        if moved > LIGHT {
            self.short = 0;
            return false;
        }
        let Some(taken) = &self.taken else { return false };
        self.short >= self.needed && !taken.swap(true, Ordering::Relaxed)
    }

    /// The look is over; `won` when there was something. One that took long was
    /// interrupted: others want the processor, and the next is far away.
    pub(crate) fn ended(&mut self, won: bool, took: Duration) {
        if let Some(taken) = &self.taken {
            taken.store(false, Ordering::Relaxed);
        }
        if won && took <= 2 * SPIN_MAX {
            self.needed = WAITS;
            return;
        }
        let interrupted = took > 2 * SPIN_MAX;
        self.short = 0;
        self.needed = if interrupted { WAITS_MAX } else { (self.needed * 2).min(WAITS_MAX) };
    }

    /// The loop has slept for so long.
    pub(crate) fn slept(&mut self, time: Duration) {
        self.short = if time <= SHORT { self.short.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin() -> Spin {
        Spin::new(Some(Arc::default()))
    }

    /// Short waits until a bet is made.
    fn waits(spin: &mut Spin) -> u16 {
        let mut count = 0;
        while !spin.begin(0) {
            spin.slept(SHORT);
            count += 1;
        }
        count
    }

    #[test]
    fn bets_follow_short_waits_and_get_rarer_when_lost() {
        let mut spin = spin();
        let mut counts = Vec::new();
        for _ in 0..12 {
            counts.push(waits(&mut spin));
            spin.ended(false, SPIN_MAX);
        }
        assert_eq!(counts, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024]);
        waits(&mut spin);
        spin.ended(true, SPIN_MAX);
        assert_eq!(waits(&mut spin), 0, "won: again at once");
        spin.ended(false, SPIN_MAX);
        assert_eq!(waits(&mut spin), 8);
    }

    #[test]
    fn an_idle_loop_sleeps() {
        let mut spin = spin();
        waits(&mut spin);
        spin.ended(true, SPIN_MAX);
        spin.slept(Duration::from_secs(1));
        assert!(!spin.begin(0));
        waits(&mut spin);
        spin.ended(true, SPIN_MAX);
        assert!(!spin.begin(LIGHT + 1), "bulk data");
        assert_eq!(waits(&mut spin), WAITS);
        let mut single = Spin::new(None);
        (0..100).for_each(|_| single.slept(SHORT));
        assert!(!single.begin(0));
    }

    #[test]
    fn an_interrupted_look_says_that_others_want_the_processor() {
        let mut spin = spin();
        waits(&mut spin);
        for won in [true, false] {
            spin.ended(won, Duration::from_millis(3));
            assert_eq!(waits(&mut spin), WAITS_MAX);
        }
        spin.ended(true, SPIN_MAX);
        assert_eq!(waits(&mut spin), 0);
    }

    #[test]
    fn one_looks_at_a_time() {
        let taken = Arc::default();
        let [mut a, mut b] = [(); 2].map(|()| Spin::new(Some(Arc::clone(&taken))));
        waits(&mut a);
        (0..100).for_each(|_| b.slept(SHORT));
        assert!(!b.begin(0));
        a.ended(true, SPIN_MAX);
        assert!(b.begin(0));
    }
}
