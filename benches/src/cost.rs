//! What a program costs for what it carries, beside the peer that costs the least.
//! Pure.

use crate::record::{Cell, Role, Suite, extra};

/// The figures looked at: name, heading.
pub(crate) const COSTS: [(&str, &str); 2] =
    [(extra::CPU_PER_GB, "CPU s/GB"), (extra::CPU_PER_OP, "CPU µs/op")];

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Beside<'a> {
    pub(crate) cell: &'a Cell,
    /// Ours: median.
    pub(crate) ours: f64,
    /// The peer with the smallest median, and that.
    pub(crate) peer: &'a str,
    pub(crate) theirs: f64,
}

impl Beside<'_> {
    /// Ours costs more.
    pub(crate) fn is_dearer(&self) -> bool {
        self.ours > self.theirs
    }
}

/// The cells of a suite in which ours and a peer have the figure `name`.
pub(crate) fn beside<'a>(suite: &'a Suite, name: &str) -> Vec<Beside<'a>> {
    let of = |cell: &'a Cell| {
        let ours = cell.candidates.first().filter(|first| first.role == Role::Ours)?;
        let median = |candidate: &crate::record::Candidate| {
            candidate.extra(name).filter(|_| candidate.failure.is_none()).map(|r| r.median)
        };
        let peers = cell.candidates.iter().filter(|candidate| candidate.role == Role::Peer);
        let (theirs, peer) = peers
            .filter_map(|peer| Some((median(peer)?, peer.name.as_str())))
            .min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Beside { cell, ours: median(ours)?, peer, theirs })
    };
    suite.cells.iter().filter_map(of).collect()
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::record::unit::record;

    #[test]
    fn the_cheapest_peer_counts_and_failed_ones_do_not() {
        let mut record = record("net/a", &[1.0], &[9.0]);
        let cell = &mut record.suites[0].cells[0];
        let figure = |mut candidate: crate::record::Candidate, name: &str, cost: f64| {
            candidate.name = name.into();
            candidate.samples[0].extra.insert(extra::CPU_PER_GB.into(), cost);
            candidate
        };
        let limit = cell.candidates.pop().unwrap();
        let ours = cell.candidates.pop().unwrap();
        let mut peer = ours.clone();
        peer.role = Role::Peer;
        let mut failed = figure(peer.clone(), "failed", 0.1);
        failed.failure = Some("stalled".into());
        cell.candidates = vec![
            figure(ours, "ours", 0.5),
            figure(peer.clone(), "dear", 0.9),
            figure(peer, "cheap", 0.4),
            failed,
            figure(limit, "limit", 0.01),
        ];
        let all = beside(&record.suites[0], extra::CPU_PER_GB);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].ours, all[0].peer, all[0].theirs), (0.5, "cheap", 0.4));
        assert!(all[0].is_dearer());
        assert!(beside(&record.suites[0], extra::CPU_PER_OP).is_empty());
        record.suites[0].cells[0].candidates[2].failure = Some("stalled".into());
        assert!(!beside(&record.suites[0], extra::CPU_PER_GB)[0].is_dearer());
    }
}
