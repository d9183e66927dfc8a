//! Sequence numbers.

use std::fmt;
use std::ops::{Add, Sub};

/// A sequence number: 32 bits that wrap (RFC 9293 section 3.4). There is no order
/// over all of them, only between two that lie less than 2^31 apart; hence
/// [`Seq::before`] and its like in place of `<`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seq(u32);

impl Seq {
    pub(crate) const fn new(value: u32) -> Seq {
        Seq(value)
    }

    pub(crate) const fn to_u32(self) -> u32 {
        self.0
    }

    pub(crate) fn before(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    pub(crate) fn after(self, other: Seq) -> bool {
        other.before(self)
    }

    pub(crate) fn max(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }

    pub(crate) fn min(self, other: Seq) -> Seq {
        if other.before(self) { other } else { self }
    }

    /// How many numbers lie from `start` to here; none when this is before it.
    pub(crate) fn since(self, start: Seq) -> u32 {
        if self.before(start) { 0 } else { self.0.wrapping_sub(start.0) }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;
    fn add(self, count: u32) -> Seq {
        Seq(self.0.wrapping_add(count))
    }
}

impl Sub<u32> for Seq {
    type Output = Seq;
    fn sub(self, count: u32) -> Seq {
        Seq(self.0.wrapping_sub(count))
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Disjoint stretches of sequence numbers in ascending order, none touching the
/// next, within one window.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<(Seq, Seq)>);

/// Stretches kept at most: a sender of every second byte must not cost more.
const RANGES_MAX: usize = 64;

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        // An idle connection holds no memory for a loss long past.
        self.0 = Vec::new();
    }

    /// From the first number of each to the one behind its last.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Seq, Seq)> {
        self.0.iter().copied()
    }

    pub(crate) fn first(&self) -> Option<(Seq, Seq)> {
        self.0.first().copied()
    }

    /// Behind the highest number.
    pub(crate) fn end(&self) -> Option<Seq> {
        self.0.last().map(|range| range.1)
    }

    /// Adds `start..end`. False when there are too many stretches already and it
    /// touches none of them; nothing is changed then.
    pub(crate) fn insert(&mut self, start: Seq, end: Seq) -> bool {
        if !start.before(end) {
            return true;
        }
        let from = self.0.partition_point(|range| range.1.before(start));
        let to = self.0.partition_point(|range| !range.0.after(end));
        if from == to {
            if self.0.len() >= RANGES_MAX {
                return false;
            }
            self.0.insert(from, (start, end));
        } else {
            let joined = (self.0[from].0.min(start), self.0[to - 1].1.max(end));
            self.0[from] = joined;
            self.0.drain(from + 1..to);
        }
        true
    }

    /// Forgets everything below `start`.
    pub(crate) fn forget_before(&mut self, start: Seq) {
        let gone = self.0.partition_point(|range| !range.1.after(start));
        if gone == self.0.len() {
            if gone > 0 {
                self.clear();
            }
            return;
        }
        self.0.drain(..gone);
        self.0[0].0 = self.0[0].0.max(start);
    }

    /// How many numbers of `start..end` are in it.
    pub(crate) fn count(&self, start: Seq, end: Seq) -> u32 {
        self.iter().map(|(a, b)| b.min(end).since(a.max(start))).sum()
    }

    /// The first stretch of `start..end` that is not in it.
    pub(crate) fn first_gap(&self, mut start: Seq, end: Seq) -> Option<(Seq, Seq)> {
        for (a, b) in self.iter() {
            if start.before(a) {
                let stop = a.min(end);
                return start.before(stop).then_some((start, stop));
            }
            start = start.max(b);
        }
        start.before(end).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(value: u32) -> Seq {
        Seq::new(value)
    }

    #[test]
    fn order_wraps() {
        let (low, high) = (seq(u32::MAX - 1), seq(3));
        assert!(low.before(high) && high.after(low) && !low.before(low));
        assert_eq!((low.max(high), low.min(high)), (high, low));
        assert_eq!((high.since(low), low.since(high)), (5, 0));
        assert_eq!(low + 5, high);
    }

    #[test]
    fn ranges_join_and_split_where_they_should() {
        let base = u32::MAX - 10;
        let at = |n: u32| seq(base) + n;
        let mut ranges = Ranges::default();
        for (a, b) in [(4, 6), (10, 12), (14, 20), (6, 8), (9, 9)] {
            assert!(ranges.insert(at(a), at(b)));
        }
        assert_eq!(ranges.0, [(at(4), at(8)), (at(10), at(12)), (at(14), at(20))]);
        assert_eq!(ranges.count(at(0), at(30)), 12);
        assert_eq!(ranges.count(at(7), at(15)), 4);
        assert_eq!(ranges.first_gap(at(0), at(30)), Some((at(0), at(4))));
        assert_eq!(ranges.first_gap(at(5), at(30)), Some((at(8), at(10))));
        assert_eq!(ranges.first_gap(at(5), at(8)), None);
        assert_eq!(ranges.first_gap(at(15), at(30)), Some((at(20), at(30))));
        assert!(ranges.insert(at(7), at(14)));
        assert_eq!(ranges.0, [(at(4), at(20))]);
        ranges.forget_before(at(19));
        assert_eq!(ranges.0, [(at(19), at(20))]);
        ranges.forget_before(at(20));
        assert!(ranges.is_empty());
    }

    #[test]
    fn ranges_have_a_bound() {
        let mut ranges = Ranges::default();
        let stored = (0..1000).filter(|n| ranges.insert(seq(n * 3), seq(n * 3 + 1))).count();
        assert_eq!(stored, RANGES_MAX);
        assert!(ranges.insert(seq(1), seq(3)), "what touches another is taken");
    }
}
