//! What got better or worse between two results, beyond noise. Pure.
//!
//! # Theory of operation
//!
//! Two runs differ in more than the program: the machine was warmer, a neighbour
//! busier. Three things keep that out of a verdict.
//!
//! 1. *Drift is divided out.* Peers and limits of the same version did the same
//!    work in the same rounds. Each is related to its own median over both runs;
//!    the median of that over all of them is how fast the machine was in that
//!    round, and our value is divided by it. A cell without such a reference is
//!    compared as it is, and says so.
//! 2. *Chance is bounded.* The logarithms of the related values are compared with
//!    the test of [`crate::rank`], which assumes no distribution. The interval shown
//!    is that test's. The error of one comparison is at most [`ALPHA`]; where there
//!    are rounds enough it is smaller, so that all verdicts of a comparison together
//!    are wrong with a chance of at most [`FAMILY`]. What could be held to is
//!    printed.
//! 3. *Small is not news.* A change must exceed the threshold, and also what the
//!    references of the suite, which did not change, seemed to change among each
//!    other: nine of ten of them moved less ([`Comparison::floors`]).
//!
//! Values of which some are zero have no logarithm: they are compared as
//! differences, relative to the greater median, and are not related to others.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::rank::{self, Shift};
use crate::record::{Better, Candidate, Cell, Record, Role};
use crate::stats::{Range, percentile};
use crate::table::figure;

/// Greatest error of one comparison: five rounds in either run can be held to it.
const ALPHA: f64 = 0.01;

/// Greatest error of all comparisons together, where there are rounds enough.
const FAMILY: f64 = 0.05;

/// References a suite must have before they say how much unchanged ones move.
const LEAST_REFERENCES: usize = 8;

/// What is compared, and how strictly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Peers and limits too.
    pub(crate) all: bool,
    /// Least change that counts, as a fraction of the old value.
    pub(crate) threshold: f64,
}

/// What came out of one comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Better beyond noise.
    Better,
    /// Worse beyond noise.
    Worse,
    /// No difference that could be told from noise, or one too small to count; why,
    /// if chance alone does not say so.
    Same(Option<String>),
    /// Why nothing can be said.
    NotComparable(String),
}

/// One candidate of one cell, in both results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) candidate: String,
    pub(crate) unit: String,
    /// Medians, as measured.
    pub(crate) old: Option<f64>,
    pub(crate) new: Option<f64>,
    /// Change, as fractions of the old value: 0.1 is 10 % more. Related to the
    /// references, if there are any.
    pub(crate) change: Option<Shift>,
    /// Number of references.
    pub(crate) references: usize,
    pub(crate) verdict: Verdict,
}

/// Two results side by side.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) lines: Vec<Line>,
    /// By suite: what nine of ten unchanged candidates moved less than.
    pub(crate) floors: BTreeMap<String, f64>,
    /// What a reader must know before the lines.
    pub(crate) warnings: Vec<String>,
    /// Bound on the chance that any verdict "better" or "worse" is chance alone.
    pub(crate) family: f64,
    /// Least change that counts.
    threshold: f64,
}

/// A cell in both results.
struct Pair<'a> {
    old: &'a Cell,
    new: &'a Cell,
    /// The same programs on the same machine: changes that are none of ours are
    /// drift.
    same_machine: bool,
    /// Names of the candidates whose program is another than before.
    changed: &'a [String],
}

/// One candidate of a pair, before the verdict.
struct Measured<'a> {
    pair: &'a Pair<'a>,
    old: &'a Candidate,
    new: &'a Candidate,
}

/// Logarithms of a candidate's values, round by round.
#[derive(Clone)]
struct Logarithms {
    old: Vec<f64>,
    new: Vec<f64>,
}

/// Logarithms, or plain values where some are zero, of both runs.
struct Values {
    old: Vec<f64>,
    new: Vec<f64>,
    references: usize,
    /// Of plain values: what a change is relative to.
    plain: Option<f64>,
}

/// Compares two results.
pub(crate) fn compare(old: &Record, new: &Record, options: Options) -> Comparison {
    let same_machine = machine_of(old) == machine_of(new);
    let changed = changed_programs(old, new);
    let pairs = pairs(old, new, same_machine, &changed);
    let mut lines = only_in_one(old, new, options);
    let mut floors = BTreeMap::new();
    for suite in &new.suites {
        let of_suite = pairs.iter().filter(|pair| suite_of(&pair.new.head.id) == suite.name);
        if let Some(floor) = floor(of_suite) {
            floors.insert(suite.name.clone(), floor);
        }
    }
    let measured: Vec<Measured<'_>> =
        pairs.iter().flat_map(|pair| pair.measured(options.all)).collect();
    let testable = measured.iter().filter(|one| one.refusal().is_none()).count();
    let strict = FAMILY / testable.max(1) as f64;
    let mut family = 0.0;
    for one in &measured {
        let floor = floors.get(suite_of(&one.pair.new.head.id)).copied().unwrap_or(0.0);
        let (line, error) = one.line(strict, options.threshold, floor);
        family += error;
        lines.push(line);
    }
    let order: Vec<&str> =
        old.suites.iter().chain(&new.suites).map(|suite| suite.name.as_str()).collect();
    lines.sort_by_key(|line| order.iter().position(|name| *name == suite_of(&line.id)));
    Comparison {
        lines,
        floors,
        warnings: warnings(old, new, same_machine, &changed),
        family: f64::min(family, 1.0),
        threshold: options.threshold,
    }
}

fn suite_of(id: &str) -> &str {
    id.split('/').next().unwrap_or_default()
}

/// What of the machine decides how fast it is.
fn machine_of(record: &Record) -> (&str, &str, usize, u64, bool) {
    let machine = &record.machine;
    (
        &machine.kernel,
        &machine.cpu,
        machine.cores,
        machine.memory_bytes >> 30,
        machine.virtual_machine,
    )
}

fn changed_programs(old: &Record, new: &Record) -> Vec<String> {
    let version = |record: &Record, name: &str| {
        record.programs.iter().find(|p| p.name == name).map(|p| p.version.clone())
    };
    let names = new.programs.iter().map(|program| program.name.clone());
    names.filter(|name| version(old, name) != version(new, name)).collect()
}

fn pairs<'a>(
    old: &'a Record,
    new: &'a Record,
    same_machine: bool,
    changed: &'a [String],
) -> Vec<Pair<'a>> {
    let news = new.suites.iter().flat_map(|suite| &suite.cells);
    news.filter_map(|new| {
        let old = cell(old, &new.head.id)?;
        Some(Pair { old, new, same_machine, changed })
    })
    .collect()
}

fn cell<'a>(record: &'a Record, id: &str) -> Option<&'a Cell> {
    record.suites.iter().flat_map(|suite| &suite.cells).find(|cell| cell.head.id == id)
}

fn only_in_one(old: &Record, new: &Record, options: Options) -> Vec<Line> {
    let missing = |from: &Record, other: &Record, place: &str| {
        let cells: Vec<Cell> = from.suites.iter().flat_map(|s| s.cells.clone()).collect();
        let alone = cells.into_iter().filter(|own| cell(other, &own.head.id).is_none());
        let lines = alone.flat_map(|own| {
            let candidates = own.candidates.iter().filter(|c| options.all || c.role == Role::Ours);
            candidates
                .map(|c| Line::without(&own, c, format!("the cell is only in {place}")))
                .collect::<Vec<_>>()
        });
        lines.collect::<Vec<_>>()
    };
    let mut lines = missing(old, new, "OLD");
    lines.extend(missing(new, old, "NEW"));
    lines
}

fn warnings(old: &Record, new: &Record, same_machine: bool, changed: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    if !same_machine {
        warnings.push(format!(
            "DIFFERENT MACHINES: {} / {}. Only what can be related to a peer or limit of the same \
             run is compared, and peers need not differ by the same factor as ours.",
            old.machine.in_words(),
            new.machine.in_words()
        ));
    }
    for (record, name) in [(old, "OLD"), (new, "NEW")] {
        if !record.complete {
            warnings.push(format!("{name} is of a run that did not come to its end."));
        }
        if record.machine.dirty {
            warnings.push(format!("{name} was built from a tree with uncommitted changes."));
        }
    }
    if !changed.is_empty() {
        warnings.push(format!(
            "Of another version than in OLD, and so no references: {}.",
            changed.join(", ")
        ));
    }
    warnings
}

impl Pair<'_> {
    fn measured(&self, all: bool) -> Vec<Measured<'_>> {
        let wanted = self.new.candidates.iter().filter(|c| all || c.role == Role::Ours);
        wanted
            .map(|new| Measured {
                pair: self,
                old: self.old.candidates.iter().find(|old| old.name == new.name).unwrap_or(new),
                new,
            })
            .collect()
    }

    /// Peers and limits with a positive value in every round of both runs.
    fn references(&self, but: &str) -> Vec<Logarithms> {
        let news =
            self.new.candidates.iter().filter(|c| {
                c.role != Role::Ours && c.name != but && !self.changed.contains(&c.name)
            });
        news.filter_map(|new| {
            let old = self.old.candidates.iter().find(|old| old.name == new.name)?;
            Logarithms::of(old, new)
        })
        .collect()
    }
}

impl Logarithms {
    /// None when it failed, was not measured, or is not positive everywhere.
    fn of(old: &Candidate, new: &Candidate) -> Option<Self> {
        let all = |candidate: &Candidate| {
            candidate.range().filter(|range| range.min > 0.0)?;
            Some(candidate.samples.iter().map(|sample| sample.value.ln()).collect())
        };
        Some(Self { old: all(old)?, new: all(new)? })
    }

    /// Half way between the medians of the two runs, so that both count alike.
    fn level(&self) -> f64 {
        let median =
            |values: &[f64]| Range::of(values.iter().copied()).map_or(0.0, |range| range.median);
        f64::midpoint(median(&self.old), median(&self.new))
    }

    /// Divides the drift out; gives the number of references that said what it was.
    fn relate(&mut self, references: &[Self]) -> usize {
        let usable: Vec<_> = references
            .iter()
            .filter(|r| r.old.len() == self.old.len() && r.new.len() == self.new.len())
            .map(|reference| (reference, reference.level()))
            .collect();
        let drift = |moved: Vec<f64>| Range::of(moved).map_or(0.0, |range| range.median);
        for (round, value) in self.old.iter_mut().enumerate() {
            *value -= drift(usable.iter().map(|(r, level)| r.old[round] - level).collect());
        }
        for (round, value) in self.new.iter_mut().enumerate() {
            *value -= drift(usable.iter().map(|(r, level)| r.new[round] - level).collect());
        }
        usable.len()
    }
}

/// What nine of ten references moved less than, related to each other.
fn floor<'a>(pairs: impl Iterator<Item = &'a Pair<'a>>) -> Option<f64> {
    let mut moves = Vec::new();
    for pair in pairs {
        let references = pair.references("");
        for at in 0..references.len() {
            let mut others = references.clone();
            let mut one = others.remove(at);
            if one.relate(&others) > 0 {
                moves.extend(rank::estimate(&one.old, &one.new).map(f64::abs));
            }
        }
    }
    moves.sort_by(f64::total_cmp);
    if moves.len() < LEAST_REFERENCES {
        return None;
    }
    percentile(&moves, 90.0).map(f64::exp_m1)
}

impl Measured<'_> {
    /// Why the two cannot be compared, if so.
    fn refusal(&self) -> Option<String> {
        let (old, new) = (self.pair.old, self.pair.new);
        if let Some(why) = &old.impossible {
            return Some(format!("not possible on OLD's machine: {why}"));
        }
        if let Some(why) = &new.impossible {
            return Some(format!("not possible on NEW's machine: {why}"));
        }
        if (&old.head.unit, old.head.better) != (&new.head.unit, new.head.better) {
            return Some(format!("measured in {} before", old.head.unit));
        }
        if old.head.params != new.head.params {
            return Some("its parameters are others than before".into());
        }
        if !old.candidates.iter().any(|candidate| candidate.name == self.new.name) {
            return Some("it is not in OLD".into());
        }
        if self.old.failure.is_some() && self.new.failure.is_some() {
            return Some("fails in both".into());
        }
        if self.old.failure.is_none() && self.new.failure.is_none() {
            let (before, after) = (self.old.samples.len(), self.new.samples.len());
            if rank::least_alpha(before, after) > ALPHA {
                return Some(format!(
                    "{before} and {after} rounds cannot tell a change from chance: 5 each can"
                ));
            }
            if !self.pair.same_machine && self.values().is_none_or(|v| v.references == 0) {
                return Some("another machine, and no peer or limit to relate it to".into());
            }
        }
        None
    }

    fn values(&self) -> Option<Values> {
        if let Some(mut logs) = Logarithms::of(self.old, self.new) {
            let references = logs.relate(&self.pair.references(&self.new.name));
            return Some(Values { old: logs.old, new: logs.new, references, plain: None });
        }
        let greater = self.old.range()?.median.abs().max(self.new.range()?.median.abs());
        let plain = |candidate: &Candidate| candidate.samples.iter().map(|s| s.value).collect();
        Some(Values {
            old: plain(self.old),
            new: plain(self.new),
            references: 0,
            plain: Some(greater),
        })
    }

    /// The line, and the error its verdict was held to.
    fn line(&self, strict: f64, threshold: f64, floor: f64) -> (Line, f64) {
        let mut line = Line::without(self.pair.new, self.new, String::new());
        line.old = self.old.range().map(|range| range.median);
        line.new = self.new.range().map(|range| range.median);
        if let Some(why) = self.refusal() {
            line.verdict = Verdict::NotComparable(why);
            return (line, 0.0);
        }
        if self.old.failure.is_some() || self.new.failure.is_some() {
            let fails = self.new.failure.is_some();
            line.verdict = if fails { Verdict::Worse } else { Verdict::Better };
            return (line, 0.0);
        }
        let error = rank::least_alpha(self.old.samples.len(), self.new.samples.len())
            .max(strict)
            .min(ALPHA);
        let shift = self.values().and_then(|values| {
            line.references = values.references;
            let shift = rank::shift(&values.old, &values.new, error)?;
            Some(match values.plain {
                None => shift.map(f64::exp_m1),
                Some(0.0) => shift,
                Some(scale) => shift.map(|difference| difference / scale),
            })
        });
        line.change = shift;
        line.verdict = match shift {
            None => Verdict::NotComparable("no values".into()),
            Some(shift) => judge(shift, self.pair.new.head.better, threshold, floor),
        };
        (line, error)
    }
}

fn judge(change: Shift, better: Better, threshold: f64, floor: f64) -> Verdict {
    // A halving is as large as a doubling.
    let size = if change.estimate < 0.0 && change.estimate > -1.0 {
        1.0 / (1.0 + change.estimate) - 1.0
    } else {
        change.estimate.abs()
    };
    if !change.is_apart_from_zero() {
        Verdict::Same(None)
    } else if size < threshold {
        Verdict::Same(Some("too small to count".into()))
    } else if size < floor {
        Verdict::Same(Some("unchanged programs moved as much".into()))
    } else if (change.estimate > 0.0) == (better == Better::Higher) {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

impl Line {
    fn without(cell: &Cell, candidate: &Candidate, why: String) -> Self {
        Self {
            id: cell.head.id.clone(),
            candidate: candidate.name.clone(),
            unit: cell.head.unit.clone(),
            old: None,
            new: None,
            change: None,
            references: 0,
            verdict: Verdict::NotComparable(why),
        }
    }
}

impl Comparison {
    /// How many lines have a verdict.
    fn count(&self, is: impl Fn(&Verdict) -> bool) -> usize {
        self.lines.iter().filter(|line| is(&line.verdict)).count()
    }

    /// Whether anything got worse.
    pub(crate) fn is_worse(&self) -> bool {
        self.count(|verdict| *verdict == Verdict::Worse) > 0
    }

    /// For the terminal.
    pub(crate) fn in_words(&self) -> String {
        let mut out = String::new();
        let mut say = |text: String| {
            writeln!(out, "{}", text.trim_end()).expect("writing to a String cannot fail");
        };
        for warning in &self.warnings {
            say(format!("! {warning}"));
        }
        let width = self.lines.iter().map(|line| line.id.len()).max().unwrap_or(0).max(4);
        let names = self.lines.iter().map(|line| line.candidate.len()).max().unwrap_or(0).max(9);
        say(format!(
            "{:<width$}  {:<names$} {:>9}   {:>9} {:<8} {:>8}  {:<20} verdict",
            "cell", "candidate", "old", "new", "unit", "change", "interval"
        ));
        for line in &self.lines {
            let value = |value: Option<f64>| value.map_or_else(|| "–".into(), figure);
            let (change, interval) = line.change.map_or_else(Default::default, |change| {
                let ends = format!("{} … {}", percent(change.low), percent(change.high));
                (percent(change.estimate), ends)
            });
            let (old, new) = (value(line.old), value(line.new));
            let verdict = line.verdict_in_words();
            say(format!(
                "{:<width$}  {:<names$} {old:>9} → {new:>9} {:<8} {change:>8}  {interval:<20} \
                 {verdict}",
                line.id, line.candidate, line.unit
            ));
        }
        say(String::new());
        say(self.rule());
        say(format!(
            "{} better, {} worse, {} same, {} not comparable",
            self.count(|verdict| *verdict == Verdict::Better),
            self.count(|verdict| *verdict == Verdict::Worse),
            self.count(|verdict| matches!(verdict, Verdict::Same(_))),
            self.count(|verdict| matches!(verdict, Verdict::NotComparable(_))),
        ));
        out
    }

    /// The rule the verdicts follow, in a paragraph.
    fn rule(&self) -> String {
        let mut rule = format!(
            "Rule: each round's value is divided by how fast the unchanged peers and limits of \
             the cell were in that round; Mann-Whitney test with the Hodges-Lehmann estimate and \
             its interval; a change counts from {} on",
            percent(self.threshold)
        );
        for (suite, floor) in &self.floors {
            write!(rule, ", in {suite} from {} (what unchanged programs moved)", percent(*floor))
                .expect("writing to a String cannot fail");
        }
        write!(
            rule,
            ".\nWith nothing changed, the chance that any verdict \"better\" or \"worse\" stands \
             here is at most {}.",
            percent(self.family).trim_start_matches('+')
        )
        .expect("writing to a String cannot fail");
        rule
    }
}

impl Line {
    fn verdict_in_words(&self) -> String {
        let unrelated = if self.change.is_some() && self.references == 0 {
            " (no peer or limit to relate it to)"
        } else {
            ""
        };
        match &self.verdict {
            Verdict::Better if self.change.is_none() => "BETTER: it failed before".into(),
            Verdict::Worse if self.change.is_none() => "WORSE: it fails now".into(),
            Verdict::Better => format!("BETTER{unrelated}"),
            Verdict::Worse => format!("WORSE{unrelated}"),
            Verdict::Same(None) => format!("same{unrelated}"),
            Verdict::Same(Some(why)) => format!("same: {why}{unrelated}"),
            Verdict::NotComparable(why) => format!("not comparable: {why}"),
        }
    }
}

/// `+3.1 %`; what is more than ten-fold as a factor.
fn percent(fraction: f64) -> String {
    if fraction >= 9.0 {
        return format!("×{}", figure(1.0 + fraction));
    }
    format!("{:+.1} %", fraction * 100.0)
}

#[cfg(test)]
#[path = "compare/tests.rs"]
mod unit;
