//! How much connections read in a turn of the loop, and who is next.
//!
//! # Theory of operation
//!
//! What is read from the host lies in memory until the end of the turn, when it is
//! written to the guest, and then until the guest acknowledges it. What many
//! connections have to give together is more than the processor's cache holds: so
//! there is one bound for all of them, [`SHARE`]. Who finds it used up waits in a
//! list, which the next turn begins with; who finds it used up again keeps its place
//! before those who had something.

use std::collections::VecDeque;

use crate::stack::FlowId;

/// Bytes that connections read in a turn. It ends with the read that reaches this.
pub(super) const SHARE: usize = 512 << 10;

/// A turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    left: usize,
    waiting: VecDeque<FlowId>,
    /// Of those that wait, how many did so when the turn began.
    from_before: usize,
}

impl Turn {
    /// The next turn begins. Then [`Turn::next`] until None.
    pub(super) fn begin(&mut self) {
        self.left = SHARE;
        self.from_before = self.waiting.len();
    }

    /// The next of those that waited in the last turn.
    pub(super) fn next(&mut self) -> Option<FlowId> {
        if self.is_over() {
            return None;
        }
        self.from_before = self.from_before.checked_sub(1)?;
        self.waiting.pop_front()
    }

    /// Nothing more is to be read.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// So many bytes were read.
    pub(super) fn used(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// `flow` has more to read. Not to be said twice before [`Turn::next`] gives it.
    pub(super) fn wait(&mut self, flow: FlowId) {
        self.waiting.push_back(flow);
    }

    /// Whether somebody waits.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_always_have_more_take_turns() {
        let mut turn = Turn::default();
        let all: Vec<FlowId> = (0..5).map(FlowId::from_bits).collect();
        all.iter().for_each(|flow| turn.wait(*flow));
        let mut served = Vec::new();
        for _ in 0..20 {
            turn.begin();
            while let Some(flow) = turn.next() {
                // Three of them fill a turn.
                turn.used(SHARE / 3 + 1);
                served.push(flow);
                turn.wait(flow);
            }
            assert!(turn.is_over() && turn.has_waiting());
        }
        assert_eq!(served.len(), 60);
        for round in served.chunks(5) {
            assert_eq!(round, all, "somebody was passed over");
        }
    }

    #[test]
    fn nobody_comes_twice_in_a_turn() {
        let mut turn = Turn::default();
        let flow = FlowId::from_bits(1);
        turn.wait(flow);
        turn.begin();
        assert_eq!(turn.next(), Some(flow));
        turn.wait(flow);
        assert_eq!(turn.next(), None);
        assert!(turn.has_waiting());
        turn.begin();
        assert_eq!(turn.next(), Some(flow));
        assert!(!turn.has_waiting() && turn.next().is_none());
    }
}
