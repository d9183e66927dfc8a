//! The one way anything here is measured.
//!
//! # Theory of operation
//!
//! A [`Cell`] is measured in rounds. Each round asks every candidate for one
//! sample, one after the other, and starts one candidate further than the round
//! before: a machine whose speed drifts slows all of them alike, and nobody is
//! always first. The rounds before the counted ones warm up. What counts in the
//! end is the ratio of medians within a cell.
//!
//! A candidate that fails, takes too long or delivers a wrong byte is not asked
//! again; it stays in the table with its reason and with the samples it gave.
//!
//! Nothing measured may outlive the run. As root everything runs in namespaces of
//! its own (see [`crate::scene`]), which end with this program however it ends; a
//! sample that returns has ended what it started.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::clock;

use crate::record::{self, Head, Role, Sample};

/// What can be measured.
pub(crate) trait Subject {
    /// Does the cell's work once. Set-up and tear-down are part of the call, not of
    /// the figures.
    ///
    /// # Errors
    /// Why it failed; this is the text in the table.
    fn once(&mut self) -> Result<Sample>;
}

impl<F: FnMut() -> Result<Sample>> Subject for F {
    fn once(&mut self) -> Result<Sample> {
        self()
    }
}

/// One that takes part in a cell.
pub(crate) struct Candidate<'a> {
    /// Name in the tables.
    pub(crate) name: String,
    /// Why it takes part.
    pub(crate) role: Role,
    /// What is run, for people.
    pub(crate) command: String,
    /// How.
    pub(crate) subject: Box<dyn Subject + 'a>,
}

/// One question to all candidates.
pub(crate) struct Cell<'a> {
    /// What it asks.
    pub(crate) head: Head,
    /// Rough seconds of one sample with its set-up, for the time left.
    pub(crate) seconds: f64,
    /// Uncounted rounds.
    pub(crate) warm_up: u32,
    /// Counted rounds.
    pub(crate) rounds: u32,
    /// Who is asked.
    pub(crate) candidates: Vec<Candidate<'a>>,
    /// Why nobody can be asked on this machine.
    pub(crate) impossible: Option<String>,
}

impl Cell<'_> {
    /// Rough seconds of the whole cell.
    fn estimate(&self) -> f64 {
        if self.impossible.is_some() {
            return 0.0;
        }
        self.seconds * f64::from(self.warm_up + self.rounds) * self.candidates.len() as f64
    }
}

/// Rough time all of the cells take.
pub(crate) fn estimate(cells: &[Cell<'_>]) -> Duration {
    Duration::from_secs_f64(cells.iter().map(Cell::estimate).sum())
}

/// Measures cells one after the other and hands each result to `keep`.
///
/// # Errors
/// `keep`'s only: what candidates do wrong is part of the result.
pub(crate) fn run(
    cells: Vec<Cell<'_>>,
    mut keep: impl FnMut(record::Cell, &Progress) -> Result<()>,
) -> Result<()> {
    let mut progress = Progress {
        start: clock::now(),
        total: estimate(&cells).as_secs_f64(),
        done: 0.0,
        cells: cells.len(),
        at: 0,
    };
    for cell in cells {
        progress.at += 1;
        let measured = measure(cell, &mut progress);
        progress.clear();
        keep(measured, &progress)?;
    }
    Ok(())
}

fn measure(cell: Cell<'_>, progress: &mut Progress) -> record::Cell {
    let Cell { head, seconds, warm_up, rounds, mut candidates, impossible } = cell;
    let mut results: Vec<record::Candidate> = candidates
        .iter()
        .map(|candidate| record::Candidate {
            name: candidate.name.clone(),
            role: candidate.role,
            command: candidate.command.clone(),
            samples: Vec::new(),
            failure: None,
        })
        .collect();
    let count = candidates.len();
    let rounds = if impossible.is_some() { 0..0 } else { 0..warm_up + rounds };
    for round in rounds {
        for turn in 0..count {
            let at = (turn + round as usize) % count;
            let result = &mut results[at];
            if result.failure.is_none() {
                progress.show(&head.id, round, warm_up, &result.name);
                match candidates[at].subject.once() {
                    Ok(sample) if round >= warm_up => result.samples.push(sample),
                    Ok(_) => {}
                    Err(why) => result.failure = Some(format!("{why:#}")),
                }
            }
            progress.done += seconds;
        }
    }
    record::Cell { head, impossible, warm_up, candidates: results }
}

/// How far a run is.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// Estimated seconds of all samples.
    total: f64,
    /// Estimated seconds of the samples taken.
    done: f64,
    cells: usize,
    /// Number of the present cell, from 1.
    at: usize,
}

impl Progress {
    /// Time left, from the estimates and how right they were until now.
    pub(crate) fn left(&self) -> Duration {
        let elapsed = (clock::now() - self.start).as_secs_f64();
        let pace = if self.done > 0.0 { elapsed / self.done } else { 1.0 };
        Duration::from_secs_f64(((self.total - self.done) * pace).max(0.0))
    }

    /// `3 of 40 cells, 2 min left`.
    pub(crate) fn in_words(&self) -> String {
        format!("{} of {} cells, {} left", self.at, self.cells, time_in_words(self.left()))
    }

    /// On a terminal, a line that is written over.
    fn show(&self, id: &str, round: u32, warm_up: u32, name: &str) {
        let mut terminal = std::io::stderr();
        if !terminal.is_terminal() {
            return;
        }
        let round = if round < warm_up {
            "warm-up".to_owned()
        } else {
            format!("round {}", round - warm_up + 1)
        };
        // A terminal that cannot be written to shows no progress; that is all.
        write!(terminal, "\r\x1b[K[{}] {id}: {round}, {name}", self.in_words()).ok();
    }

    fn clear(&self) {
        let mut terminal = std::io::stderr();
        if terminal.is_terminal() {
            // As above.
            write!(terminal, "\r\x1b[K").ok();
        }
    }
}

/// `40 s`, `12 min`, `2 h 05 min`.
pub(crate) fn time_in_words(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..100 => format!("{seconds} s"),
        100..7200 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod unit {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use anyhow::bail;

    use super::*;
    use crate::record::Better;

    fn head() -> Head {
        Head {
            id: "net/x".into(),
            title: String::new(),
            unit: "s".into(),
            better: Better::Lower,
            params: BTreeMap::new(),
            note: None,
        }
    }

    fn candidate<'a>(name: &str, subject: impl Subject + 'a) -> Candidate<'a> {
        Candidate {
            name: name.into(),
            role: Role::Peer,
            command: String::new(),
            subject: Box::new(subject),
        }
    }

    fn measured(candidates: Vec<Candidate<'_>>, impossible: Option<String>) -> record::Cell {
        let cell =
            Cell { head: head(), seconds: 1.0, warm_up: 1, rounds: 3, candidates, impossible };
        let mut kept = None;
        run(vec![cell], |cell, _| {
            kept = Some(cell);
            Ok(())
        })
        .unwrap();
        kept.unwrap()
    }

    #[test]
    fn candidates_take_turns_and_each_is_first_once() {
        let order = Rc::new(RefCell::new(String::new()));
        let subject = |letter: char| {
            let order = Rc::clone(&order);
            move || {
                order.borrow_mut().push(letter);
                Ok(Sample::of(order.borrow().len() as f64))
            }
        };
        let cell = measured(
            vec![
                candidate("a", subject('a')),
                candidate("b", subject('b')),
                candidate("c", subject('c')),
            ],
            None,
        );
        assert_eq!(*order.borrow(), "abcbcacababc");
        // The first round is warm-up.
        let values: Vec<f64> = cell.candidates[0].samples.iter().map(|s| s.value).collect();
        assert_eq!(values, [6.0, 8.0, 10.0]);
    }

    #[test]
    fn a_failed_candidate_keeps_its_samples_and_is_not_asked_again() {
        let mut asked = 0;
        let cell = measured(
            vec![
                candidate("bad", || {
                    asked += 1;
                    if asked == 3 { bail!("a wrong byte") } else { Ok(Sample::of(1.0)) }
                }),
                candidate("good", || Ok(Sample::of(1.0))),
            ],
            None,
        );
        assert_eq!(asked, 3);
        assert_eq!(cell.candidates[0].samples.len(), 1);
        assert_eq!(cell.candidates[0].failure.as_deref(), Some("a wrong byte"));
        assert_eq!(cell.candidates[0].range(), None);
        assert_eq!(cell.candidates[1].samples.len(), 3);
    }

    #[test]
    fn an_impossible_cell_asks_nobody_and_stays() {
        let cell = measured(
            vec![candidate("a", || -> Result<Sample> { panic!("asked") })],
            Some("no netem".into()),
        );
        assert_eq!(cell.impossible.as_deref(), Some("no netem"));
        assert_eq!(cell.candidates.len(), 1);
    }

    #[test]
    fn times_in_words() {
        let words = |s| time_in_words(Duration::from_secs(s));
        assert_eq!([words(5), words(179), words(7500)], ["5 s", "3 min", "2 h 05 min"]);
    }
}
