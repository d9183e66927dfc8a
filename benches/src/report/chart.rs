//! Which charts a suite has: its cells grouped so that many of them stay readable.
//! Pure; [`super::draw`] draws them.
//!
//! # Theory of operation
//!
//! Cells whose id has the same second word, unit and direction are one chart; cells
//! that would be alone in theirs share one with the others of their unit. A title is
//! read as parts, separated by commas and colons: the parts all cells of a chart
//! have are the chart's title, the rest tells its cells apart. A chart of few cells
//! has a panel for each; one of [`MOST_GROUPS`] and more is split into panels by the
//! parameter that splits it most evenly.

use crate::record::{Better, Candidate, Cell, Head, Role, Suite};
use crate::stats::{Range, significant, times_better};
use crate::table::figure;

/// Cells in one panel.
const MOST_GROUPS: usize = 4;

/// How many times the smallest longest bar of a group the greatest may be on one
/// scale.
const ONE_SCALE: f64 = 12.0;

/// How far beyond the longest bar the scale reaches for the sake of a whisker.
const WHISKER_ROOM: f64 = 1.5;

/// A figure with one question or several of one unit.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// Unit, direction, what the marks are.
    pub(super) caption: String,
    pub(super) panels: Vec<Panel>,
}

/// Groups below each other on one scale.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: Option<String>,
    /// Over the two columns at the right.
    pub(super) headings: [&'static str; 2],
    pub(super) scale: Scale,
    pub(super) groups: Vec<Group>,
}

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From zero, the same in all panels of a chart.
    Linear { most: f64 },
    /// From zero, each group has its own; without an axis.
    Each,
    /// Logarithmic.
    Log { least: f64, most: f64 },
}

/// One cell.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) title: Option<String>,
    /// What stands in place of rows: why nobody could be measured.
    pub(super) instead: Option<String>,
    pub(super) rows: Vec<Row>,
}

/// One candidate in a cell.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) colour: Colour,
    pub(super) mark: Mark,
    /// At the right: two texts.
    pub(super) columns: [String; 2],
}

/// What is drawn of a row.
#[derive(Debug)]
pub(super) enum Mark {
    /// A bar to the median, a whisker from the least to the greatest.
    Bar(Range),
    /// A point with a line from the least to the greatest.
    Point(Range),
    /// Points of rising rank.
    Points(Vec<f64>),
    /// No value: a word why.
    Failed(&'static str),
}

/// Which colour: the style sheets say what it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Ours(usize),
    Peer(usize),
    Limit,
}

/// Candidates of a suite by name, so that each has one colour everywhere.
#[derive(Debug, Default)]
pub(super) struct Colours {
    pub(super) all: Vec<(String, Colour)>,
}

impl Colours {
    pub(super) fn of(suite: &Suite) -> Self {
        let mut found = Self::default();
        for candidate in suite.cells.iter().flat_map(|cell| &cell.candidates) {
            if found.all.iter().any(|(name, _)| *name == candidate.name) {
                continue;
            }
            let count = |ours: bool| {
                let same = |(_, colour): &&(String, Colour)| match colour {
                    Colour::Ours(_) => ours,
                    Colour::Peer(_) => !ours,
                    Colour::Limit => false,
                };
                found.all.iter().filter(same).count()
            };
            let colour = match candidate.role {
                Role::Ours => Colour::Ours(count(true)),
                Role::Peer => Colour::Peer(count(false)),
                Role::Limit => Colour::Limit,
            };
            found.all.push((candidate.name.clone(), colour));
        }
        found
    }

    pub(super) fn colour(&self, name: &str) -> Colour {
        self.all.iter().find(|(own, _)| own == name).map_or(Colour::Limit, |(_, colour)| *colour)
    }
}

/// Cells of one chart, and their title.
pub(super) struct Bundle<'a> {
    pub(super) title: String,
    pub(super) cells: Vec<&'a Cell>,
    /// Parts of the titles that all cells share.
    shared: Vec<&'a str>,
}

/// The charts' cells, in the order of the suite.
pub(super) fn bundles(suite: &Suite) -> Vec<Bundle<'_>> {
    let key = |cell: &Cell| {
        let word = cell.head.id.split('/').nth(1).unwrap_or_default().to_owned();
        (word, cell.head.unit.clone(), cell.head.better == Better::Higher)
    };
    let mut groups: Vec<Vec<&Cell>> = Vec::new();
    for cell in &suite.cells {
        match groups.iter_mut().find(|group| key(group[0]) == key(cell)) {
            Some(group) => group.push(cell),
            None => groups.push(vec![cell]),
        }
    }
    let of_unit = |cell: &Cell| (cell.head.unit.clone(), cell.head.better == Better::Higher);
    let mut bundles: Vec<(Vec<&Cell>, bool)> = Vec::new();
    for group in groups {
        let alone = group.len() == 1;
        let home = bundles
            .iter_mut()
            .find(|(cells, mixed)| alone && *mixed && of_unit(cells[0]) == of_unit(group[0]));
        match home {
            Some((cells, _)) => cells.extend(group),
            None => bundles.push((group, alone)),
        }
    }
    let mut bundles: Vec<_> =
        bundles.into_iter().map(|(cells, mixed)| Bundle::of(cells, mixed)).collect();
    let titles: Vec<String> = bundles.iter().map(|bundle| bundle.title.clone()).collect();
    for bundle in &mut bundles {
        if titles.iter().filter(|title| **title == bundle.title).count() > 1 {
            bundle.title = format!("{}, {}", bundle.title, unit(&bundle.cells[0].head.unit));
        }
    }
    bundles
}

fn parts(title: &str) -> Vec<&str> {
    title.split([',', ':']).map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Parts that all titles have.
fn shared<'a>(cells: &[&'a Cell]) -> Vec<&'a str> {
    let all = parts(&cells[0].head.title);
    let in_all = |part: &&str| cells.iter().all(|cell| parts(&cell.head.title).contains(part));
    all.into_iter().filter(in_all).collect()
}

impl<'a> Bundle<'a> {
    fn of(cells: Vec<&'a Cell>, mixed: bool) -> Self {
        let mut common = shared(&cells);
        let begins = parts(&cells[0].head.title).first() == common.first() && !common.is_empty();
        let title = if begins {
            common.join(", ")
        } else if mixed {
            common.clear();
            format!("Further questions, {}", unit(&cells[0].head.unit))
        } else {
            let word = cells[0].head.id.split('/').nth(1).unwrap_or_default();
            [&[word], &common[..]].concat().join(", ")
        };
        Self { title, cells, shared: common }
    }

    /// What tells a cell from the others; `known` is in the panel's title already.
    pub(super) fn label(&self, head: &Head, known: &[&str]) -> Option<String> {
        let own = parts(&head.title);
        let rest: Vec<_> = own
            .into_iter()
            .filter(|part| !self.shared.contains(part) && !known.contains(part))
            .collect();
        if !rest.is_empty() {
            return Some(rest.join(", "));
        }
        // Titles that say the same: the id says what the difference is.
        (self.cells.len() > 1).then(|| head.id.clone())
    }

    /// Cells by panel, with the parts of the title a panel's cells share.
    pub(super) fn panels(&self) -> Vec<(Vec<&'a str>, Vec<&'a Cell>)> {
        if self.cells.len() < MOST_GROUPS {
            // The title of the group says what the panel is.
            return self.cells.iter().map(|cell| (Vec::new(), vec![*cell])).collect();
        }
        let Some(split) = self.split() else {
            return self
                .cells
                .chunks(MOST_GROUPS)
                .map(|some| (Vec::new(), some.to_vec()))
                .collect();
        };
        let mut panels = Vec::new();
        for cells in split {
            let mut known = shared(&cells);
            known.retain(|part| !self.shared.contains(part));
            if cells.len() == 1 {
                known.clear();
            }
            panels.extend(cells.chunks(MOST_GROUPS + 2).map(|some| (known.clone(), some.to_vec())));
        }
        panels
    }

    /// Cells by the values of the parameter whose greatest group is smallest.
    fn split(&self) -> Option<Vec<Vec<&'a Cell>>> {
        let names = self.cells[0].head.params.keys();
        let by = |name: &String| {
            let mut groups: Vec<(Option<&String>, Vec<&'a Cell>)> = Vec::new();
            for &cell in &self.cells {
                let value = cell.head.params.get(name);
                match groups.iter_mut().find(|(own, _)| *own == value) {
                    Some((_, group)) => group.push(cell),
                    None => groups.push((value, vec![cell])),
                }
            }
            groups.into_iter().map(|(_, group)| group).collect::<Vec<_>>()
        };
        let splits = names.map(by).filter(|groups| groups.len() > 1);
        // Panels of one group each are no panels.
        let splits = splits.filter(|groups| groups.len() < self.cells.len());
        splits.min_by_key(|groups| groups.iter().map(Vec::len).max())
    }
}

/// The chart of a bundle's values.
pub(super) fn values(bundle: &Bundle<'_>, colours: &Colours) -> Chart {
    let head = &bundle.cells[0].head;
    let panels = bundle.panels();
    let tops: Vec<f64> = bundle.cells.iter().filter_map(|cell| longest(cell)).collect();
    let scale = linear(&tops, bundle.cells.iter().flat_map(|cell| ranges(cell)));
    let panels = panels
        .into_iter()
        .map(|(known, cells)| Panel {
            title: (!known.is_empty()).then(|| known.join(", ")),
            headings: ["median", "ours is"],
            scale,
            groups: cells
                .into_iter()
                .map(|cell| Group {
                    title: bundle.label(&cell.head, &known),
                    instead: cell
                        .impossible
                        .as_ref()
                        .map(|why| format!("not possible here: {why}")),
                    rows: rows(cell, colours),
                })
                .collect(),
        })
        .collect();
    let each = if scale == Scale::Each { "; each group has a scale of its own" } else { "" };
    Chart {
        title: bundle.title.clone(),
        caption: format!("{}, {}{each}", unit(&head.unit), direction(head.better)),
        panels,
    }
}

/// A unit, in words where signs are hard to read.
fn unit(unit: &str) -> &str {
    if unit == "1/s" { "per second" } else { unit }
}

/// Which way is better, in words.
pub(super) fn direction(better: Better) -> &'static str {
    match better {
        Better::Higher => "longer bars are better",
        Better::Lower => "shorter bars are better",
    }
}

fn ranges(cell: &Cell) -> impl Iterator<Item = Range> {
    cell.candidates.iter().filter_map(Candidate::range)
}

fn longest(cell: &Cell) -> Option<f64> {
    ranges(cell).map(|range| range.median).max_by(f64::total_cmp)
}

/// One scale, or one for each group where small ones would vanish.
pub(super) fn linear(tops: &[f64], ranges: impl Iterator<Item = Range>) -> Scale {
    let positive = tops.iter().copied().filter(|top| *top > 0.0);
    let (Some(least), Some(most)) =
        (positive.clone().min_by(f64::total_cmp), positive.max_by(f64::total_cmp))
    else {
        return Scale::Linear { most: 1.0 };
    };
    if most > least * ONE_SCALE {
        return Scale::Each;
    }
    Scale::Linear { most: with_whiskers(most, ranges) }
}

/// Room for whiskers, but not so much that an outlier makes all bars short.
pub(super) fn with_whiskers(most: f64, ranges: impl Iterator<Item = Range>) -> f64 {
    ranges.map(|range| range.max).fold(most, f64::max).min(most * WHISKER_ROOM)
}

fn rows(cell: &Cell, colours: &Colours) -> Vec<Row> {
    if cell.impossible.is_some() {
        return Vec::new();
    }
    let base = base(cell);
    let rows = cell.candidates.iter().map(|candidate| {
        let ratio = base
            .filter(|base| *base != candidate)
            .and_then(|base| base.times_better(candidate, cell.head.better));
        let range = candidate.range();
        Row {
            name: candidate.name.clone(),
            colour: colours.colour(&candidate.name),
            columns: [
                range.map_or_else(String::new, |range| short(range.median)),
                ratio.map_or_else(String::new, times),
            ],
            mark: match range {
                Some(range) => Mark::Bar(range),
                None if candidate.failure.is_some() => Mark::Failed("failed"),
                None => Mark::Failed("not measured"),
            },
        }
    });
    rows.collect()
}

/// The one all others are compared with.
pub(super) fn base(cell: &Cell) -> Option<&Candidate> {
    cell.candidates.first().filter(|first| first.role == Role::Ours)
}

/// Ratios against one candidate over the cells of a bundle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratios {
    /// Least, geometric mean, greatest.
    pub(super) range: Range,
    /// Cells that have one.
    pub(super) cells: usize,
    /// Cells where the two ranges have no value in common, by who is ahead.
    pub(super) ahead: usize,
    pub(super) behind: usize,
}

/// How many times better ours is than each other candidate, in their order.
pub(super) fn ratios<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<(&'a Candidate, Ratios)> {
    let mut found: Vec<(&Candidate, Vec<f64>, usize, usize)> = Vec::new();
    for cell in cells {
        let Some(base) = base(cell) else { continue };
        for candidate in &cell.candidates[1..] {
            let (Some(own), Some(other)) = (base.range(), candidate.range()) else { continue };
            let Some(ratio) = times_better(own.median, other.median, cell.head.better) else {
                continue;
            };
            let at = found.iter().position(|(known, ..)| known.name == candidate.name);
            let at = at.unwrap_or_else(|| {
                found.push((candidate, Vec::new(), 0, 0));
                found.len() - 1
            });
            found[at].1.push(ratio);
            if own.is_apart_from(other) {
                if ratio > 1.0 { found[at].2 += 1 } else { found[at].3 += 1 }
            }
        }
    }
    let sum = found.into_iter().filter_map(|(candidate, ratios, ahead, behind)| {
        let mut range = Range::of(ratios.iter().copied())?;
        let logs: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
        range.median = (logs / ratios.len() as f64).exp();
        Some((candidate, Ratios { range, cells: ratios.len(), ahead, behind }))
    });
    sum.collect()
}

/// In how many cells each candidate failed, of those that failed in any.
pub(super) fn failures<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<(&'a Candidate, usize)> {
    let mut found: Vec<(&Candidate, usize)> = Vec::new();
    let failed = |candidate: &&Candidate| candidate.failure.is_some();
    for candidate in cells.flat_map(|cell| &cell.candidates).filter(failed) {
        match found.iter_mut().find(|(known, _)| known.name == candidate.name) {
            Some((_, count)) => *count += 1,
            None => found.push((candidate, 1)),
        }
    }
    found
}

/// The chart of ratios over a suite: what to look at first.
pub(super) fn overview(bundles: &[Bundle<'_>], colours: &Colours) -> Chart {
    let mut groups = Vec::new();
    for bundle in bundles {
        let mut rows: Vec<Row> = ratios(bundle.cells.iter().copied())
            .into_iter()
            .map(|(candidate, ratios)| Row {
                name: candidate.name.clone(),
                colour: colours.colour(&candidate.name),
                columns: [
                    times(ratios.range.median),
                    if ratios.cells == 1 {
                        String::new()
                    } else {
                        format!("{} – {}", short(ratios.range.min), short(ratios.range.max))
                    },
                ],
                mark: Mark::Point(ratios.range),
            })
            .collect();
        for (candidate, count) in failures(bundle.cells.iter().copied()) {
            // A mean over the cells that went well must not look like one over all.
            let partly = rows.iter().any(|row| row.name == candidate.name);
            let name = &candidate.name;
            rows.push(Row {
                name: if partly {
                    format!("{name}, {count} of {}", bundle.cells.len())
                } else {
                    name.clone()
                },
                colour: colours.colour(name),
                columns: Default::default(),
                mark: Mark::Failed("failed"),
            });
        }
        if !rows.is_empty() {
            groups.push(Group { title: Some(bundle.title.clone()), instead: None, rows });
        }
    }
    let all = groups.iter().flat_map(|group| &group.rows).filter_map(|row| match &row.mark {
        Mark::Point(range) => Some(*range),
        _ => None,
    });
    let (least, most) = all
        .fold((0.5f64, 2.0f64), |(least, most), range| (least.min(range.min), most.max(range.max)));
    Chart {
        title: "How many times better ours is".into(),
        caption: "geometric mean over the cells, with the least and the greatest; right of 1× \
                  ours is better; logarithmic"
            .into(),
        panels: in_panels(groups, ["ours is", "range"], Scale::Log { least, most }),
    }
}

pub(super) fn in_panels(
    groups: Vec<Group>,
    headings: [&'static str; 2],
    scale: Scale,
) -> Vec<Panel> {
    // Panels of about as many rows each, so that they stand well beside each other.
    let rows = |group: &Group| group.rows.len() + 1;
    let total: usize = groups.iter().map(rows).sum();
    let room = total.div_ceil(total.div_ceil(18).max(1)).max(8);
    let mut panels: Vec<Panel> = Vec::new();
    let mut used = room;
    for group in groups {
        if used + rows(&group) / 2 >= room {
            panels.push(Panel { title: None, headings, scale, groups: Vec::new() });
            used = 0;
        }
        used += rows(&group);
        panels.last_mut().expect("the first group makes a panel").groups.push(group);
    }
    panels
}

/// Three significant digits; an exponent where that would be long.
pub(super) fn short(value: f64) -> String {
    let size = significant(value, 3).abs();
    if size == 0.0 {
        // Of either sign.
        "0".to_owned()
    } else if (1e-3..1e6).contains(&size) {
        figure(value)
    } else {
        format!("{:e}", significant(value, 3))
    }
}

/// A ratio.
pub(super) fn times(ratio: f64) -> String {
    format!("{}×", short(ratio))
}
