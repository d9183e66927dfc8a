//! The table on the terminal.

use std::fmt::Write as _;

use crate::cost::{COSTS, beside};
use crate::record::{Candidate, Cell, Record, Role, Suite, extra};
use crate::stats::significant;

/// Extra figures with a column of their own, where a candidate of the cell has
/// them: name, heading.
pub(crate) const COLUMNS: &[(&str, &str)] = &[
    ("p50_us", "p50 µs"),
    ("p99_us", "p99 µs"),
    ("p999_us", "p99.9 µs"),
    ("loss_percent", "loss %"),
    (extra::CPU_PER_GB, "CPU s/GB"),
    (extra::CPU_PER_OP, "CPU µs/op"),
    (extra::MACHINE_CPU_PER_GB, "all s/GB"),
    (extra::MACHINE_CPU_PER_OP, "all µs/op"),
    ("idle_cpu_ms_per_s", "idle ms/s"),
    ("opened_per_s", "opened/s"),
    ("alone_gbit_per_s", "alone"),
    ("beside_gbit_per_s", "beside"),
    (extra::PEAK_RSS_MIB, "RSS MiB"),
    (extra::RETRANSMITS, "resent"),
    (extra::ERRORS, "errors"),
];

/// One cell: a line of title, a line a candidate.
pub(crate) fn cell(cell: &Cell) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        writeln!(out, "{}", text.trim_end()).expect("writing to a String cannot fail");
    };
    line(&format!("{}  ({}, {})", cell.head.title, cell.head.unit, cell.head.id));
    if let Some(why) = &cell.impossible {
        line(&format!("  NOT POSSIBLE HERE: {why}"));
        return out;
    }
    let columns: Vec<_> = COLUMNS
        .iter()
        .filter(|(name, _)| cell.candidates.iter().any(|c| c.extra(name).is_some()))
        .collect();
    let base = cell.candidates.first().filter(|first| first.role == Role::Ours);
    let mut heading = format!("  {:<30} {:>8} {:>17} {:>8}", "", "median", "min – max", "ours is");
    for (_, title) in &columns {
        write!(heading, " {title:>9}").expect("writing to a String cannot fail");
    }
    line(&heading);
    for candidate in &cell.candidates {
        line(&row(cell, candidate, base, &columns));
    }
    out
}

fn row(
    cell: &Cell,
    candidate: &Candidate,
    base: Option<&Candidate>,
    columns: &[&(&str, &str)],
) -> String {
    let name = match candidate.role {
        Role::Limit => format!("({})", candidate.name),
        Role::Ours | Role::Peer => candidate.name.clone(),
    };
    if let Some(why) = &candidate.failure {
        let rounds = candidate.samples.len();
        return format!("  {name:<30} FAILED after {rounds} rounds: {}", first_line(why));
    }
    let Some(range) = candidate.range() else {
        return format!("  {name:<30} not measured");
    };
    // One whose range overlaps ours may be as good.
    let apart = base.and_then(Candidate::range).is_some_and(|ours| ours.is_apart_from(range));
    let about = if apart { "" } else { "~" };
    let ratio = base
        .filter(|base| *base != candidate)
        .and_then(|base| base.times_better(candidate, cell.head.better))
        .map_or_else(String::new, |ratio| format!("{about}{}×", figure(ratio)));
    let span = format!("{} – {}", figure(range.min), figure(range.max));
    let mut text = format!("  {name:<30} {:>8} {span:>17} {ratio:>8}", figure(range.median));
    for (name, _) in columns {
        let value = candidate.extra(name).map_or_else(|| "–".into(), |r| figure(r.median));
        write!(text, " {value:>9}").expect("writing to a String cannot fail");
    }
    text
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Three significant digits, without an exponent.
pub(crate) fn figure(value: f64) -> String {
    let value = significant(value, 3);
    let places = match value.abs() {
        0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.places$}")
}

/// Where and with what, and what is missing: before or after the cells.
pub(crate) fn surroundings(record: &Record) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    line(format!("machine   {}", record.machine.in_words()));
    for program in &record.programs {
        line(format!("program   {:<16} {} ({})", program.name, program.version, program.path));
    }
    for missing in &record.missing {
        line(format!("MISSING   {:<16} to have it here: {}", missing.name, missing.install));
    }
    out
}

/// All of a result, as it is kept beside the JSON.
pub(crate) fn whole(record: &Record) -> String {
    let mut parts: Vec<String> =
        record.commands.iter().map(|command| format!("$ {command}\n")).collect();
    parts.push(format!("date      {}\n{}", record.date, surroundings(record)));
    for cell in record.suites.iter().flat_map(|suite| &suite.cells) {
        parts.push(format!("\n{}", self::cell(cell)));
    }
    parts.extend(record.suites.iter().map(costs));
    let troubles = troubles(record);
    if !troubles.is_empty() {
        parts.push(format!("\n{}\n", troubles.join("\n")));
    }
    if !record.complete {
        parts.push("\nThis run did not come to its end.\n".to_owned());
    }
    parts.concat()
}

/// A suite's CPU time beside the peer that needs the least: in how many cells ours
/// needs no more, and the others.
fn costs(suite: &Suite) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    for (name, heading) in COSTS {
        let all = beside(suite, name);
        if all.is_empty() {
            continue;
        }
        let dearer: Vec<_> = all.iter().filter(|one| one.is_dearer()).collect();
        line(format!(
            "\n{heading} beside the peer that needs the least, {}: no more in {} of {} cells{}",
            suite.name,
            all.len() - dearer.len(),
            all.len(),
            if dearer.is_empty() { "" } else { ", more in" }
        ));
        for one in dearer {
            line(format!(
                "  {:<40} ours {:>8} {:>12} {:>8} {:>7}×",
                one.cell.head.id,
                figure(one.ours),
                one.peer,
                figure(one.theirs),
                figure(one.ours / one.theirs)
            ));
        }
    }
    out
}

/// What went wrong, for the end: failures and impossible cells, a line each.
pub(crate) fn troubles(record: &Record) -> Vec<String> {
    let cells = record.suites.iter().flat_map(|suite| &suite.cells);
    cells
        .flat_map(|cell| {
            let impossible = cell
                .impossible
                .iter()
                .map(|why| format!("NOT POSSIBLE HERE {}: {why}", cell.head.id));
            let failed = cell.candidates.iter().filter_map(|candidate| {
                let why = candidate.failure.as_ref()?;
                Some(format!("FAILED {} {}: {why}", cell.head.id, candidate.name))
            });
            impossible.chain(failed).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::record::unit::record;

    #[test]
    fn a_cell_shows_medians_ratios_and_failures() {
        let mut record = record("net/a", &[1.0, 3.0, 2.0], &[8.0]);
        let text = cell(&record.suites[0].cells[0]);
        assert!(text.contains("A cell  (1/s, net/a)"), "{text}");
        assert!(text.contains("2.00       1.00 – 3.00               1.23"), "{text}");
        assert!(text.contains("(limit)") && text.contains(" 0.250×"), "{text}");
        record.suites[0].cells[0].candidates[1].samples[0].value = 2.5;
        assert!(cell(&record.suites[0].cells[0]).contains("~0.800×"));

        record.suites[0].cells[0].candidates[0].failure = Some("wrong byte\nmore".into());
        let text = cell(&record.suites[0].cells[0]);
        assert!(text.contains("FAILED after 3 rounds: wrong byte\n"), "{text}");
        assert_eq!(troubles(&record), ["FAILED net/a ours: wrong byte\nmore"]);

        record.suites[0].cells[0].impossible = Some("no netem".into());
        assert!(cell(&record.suites[0].cells[0]).contains("NOT POSSIBLE HERE: no netem"));
    }

    #[test]
    fn the_whole_result_has_every_cell_and_says_when_it_is_not_whole() {
        let mut record = record("net/a", &[1.0], &[8.0]);
        assert!(whole(&record).starts_with("$ bench\ndate ") && whole(&record).contains("net/a"));
        assert!(!whole(&record).contains("did not come to its end"));
        record.complete = false;
        assert!(whole(&record).contains("did not come to its end"));
    }

    #[test]
    fn the_whole_result_tells_where_ours_costs_more() {
        let mut record = record("net/a", &[1.0], &[8.0]);
        assert!(!whole(&record).contains("beside the peer"));
        let candidates = &mut record.suites[0].cells[0].candidates;
        candidates[1].role = Role::Peer;
        for (candidate, cost) in candidates.iter_mut().zip([0.5, 0.25]) {
            candidate.samples[0].extra.insert(extra::CPU_PER_GB.into(), cost);
        }
        let text = whole(&record);
        assert!(text.contains("no more in 0 of 1 cells, more in\n  net/a"), "{text}");
        assert!(text.contains("0.500        limit    0.250    2.00×"), "{text}");
        record.suites[0].cells[0].candidates[0].samples[0]
            .extra
            .insert(extra::CPU_PER_GB.into(), 0.25);
        assert!(whole(&record).contains("net: no more in 1 of 1 cells\n"));
    }

    #[test]
    fn figures_have_three_digits() {
        let shown: Vec<_> = [0.0, 0.012_34, 0.123_4, 9.996, 12.34, 1234.0].map(figure).into();
        assert_eq!(shown, ["0", "0.0123", "0.123", "10.0", "12.3", "1230"]);
    }
}
