//! What is measured. A suite makes [`Cell`]s; [`crate::method`] measures them.

pub(crate) mod fs;
mod micro;
mod net;
mod podman;
pub(crate) mod run;

use anyhow::Result;

use crate::method::Cell;
use crate::scene::Scene;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Fewer and shorter samples, fewer cells: a look, not a result to quote.
    pub(crate) quick: bool,
    /// Counted rounds, where the command line says how many.
    pub(crate) rounds: Option<u32>,
}

impl Extent {
    /// Counted rounds of a cell that wants so many in a full run.
    pub(crate) fn rounds(self, full: u32) -> u32 {
        self.rounds.unwrap_or(if self.quick { full.div_ceil(3).min(3) } else { full })
    }

    /// One of two, by whether the run is quick.
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// A suite.
pub(crate) struct Suite {
    /// Its word on the command line, and the first of its cells' ids.
    pub(crate) name: &'static str,
    /// Its cells, those that this machine cannot run included.
    pub(crate) cells: for<'a> fn(&'a Scene, Extent) -> Result<Vec<Cell<'a>>>,
}

/// Every suite, in the order of `all`.
pub(crate) const SUITES: &[Suite] = &[
    Suite { name: "net", cells: net::cells },
    Suite { name: "fs", cells: fs::cells },
    Suite { name: "run", cells: run::cells },
    Suite { name: "podman", cells: podman::cells },
    Suite { name: "micro", cells: micro::cells },
];
