//! Charts of what is measured beside the values: memory, CPU time, latency. Pure.

use std::collections::BTreeMap;

use super::chart::{
    Bundle, Chart, Colours, Group, Mark, Panel, Row, Scale, in_panels, linear, short,
};
use crate::record::{Candidate, extra};
use crate::stats::Range;

/// Extra figures that have a chart over the whole suite: name, title, unit.
const RESOURCES: [(&str, &str, &str); 4] = [
    (extra::PEAK_RSS_MIB, "Peak memory", "MiB"),
    (extra::CPU_PER_GB, "CPU time of the program for each GB", "s"),
    (extra::CPU_PER_OP, "CPU time of the program for each operation", "µs"),
    (extra::RETRANSMITS, "TCP segments sent again", "segments"),
];

/// Percentiles of a latency, microseconds.
const PERCENTILES: [(&str, &str); 3] = [("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")];

/// Charts of what was used, over all bundles: one for each figure that is there.
pub(super) fn resources(bundles: &[Bundle<'_>], colours: &Colours) -> Vec<Chart> {
    let charts = RESOURCES.iter().filter_map(|&(name, title, unit)| {
        let groups: Vec<Group> =
            bundles.iter().filter_map(|bundle| resource(bundle, name, colours)).collect();
        let ranges = || {
            groups.iter().flat_map(|group| &group.rows).filter_map(|row| match &row.mark {
                Mark::Bar(range) => Some(*range),
                _ => None,
            })
        };
        // Figures that are zero everywhere are in the tables.
        let most = ranges().map(|range| range.median).max_by(f64::total_cmp)?;
        if ranges().all(|range| range.max == 0.0) {
            return None;
        }
        let tops: Vec<f64> = groups.iter().filter_map(top).collect();
        let scale = if most > 0.0 { linear(&tops, ranges()) } else { Scale::Each };
        let each = if scale == Scale::Each { "; each group has a scale of its own" } else { "" };
        Some(Chart {
            title: title.to_owned(),
            caption: format!(
                "{unit}, shorter bars are better; median over the cells' medians, with the least \
                 and the greatest of them{each}"
            ),
            panels: in_panels(groups, ["median", "greatest"], scale),
        })
    });
    charts.collect()
}

fn top(group: &Group) -> Option<f64> {
    let medians = group.rows.iter().filter_map(|row| match &row.mark {
        Mark::Bar(range) => Some(range.median),
        _ => None,
    });
    medians.max_by(f64::total_cmp)
}

fn resource(bundle: &Bundle<'_>, name: &str, colours: &Colours) -> Option<Group> {
    let mut by_name: Vec<(&str, Vec<f64>)> = Vec::new();
    for candidate in bundle.cells.iter().flat_map(|cell| &cell.candidates) {
        let Some(range) = candidate.extra(name).filter(|_| candidate.failure.is_none()) else {
            continue;
        };
        match by_name.iter_mut().find(|(own, _)| *own == candidate.name) {
            Some((_, values)) => values.push(range.median),
            None => by_name.push((&candidate.name, vec![range.median])),
        }
    }
    let rows: Vec<Row> = by_name
        .into_iter()
        .filter_map(|(name, values)| {
            let range = Range::of(values)?;
            Some(Row {
                name: name.to_owned(),
                colour: colours.colour(name),
                columns: [short(range.median), short(range.max)],
                mark: Mark::Bar(range),
            })
        })
        .collect();
    (!rows.is_empty()).then(|| Group { title: Some(bundle.title.clone()), instead: None, rows })
}

/// The chart of a bundle's percentiles, where its candidates have some.
pub(super) fn latency(bundle: &Bundle<'_>, colours: &Colours) -> Option<Chart> {
    let mut all: Vec<f64> = Vec::new();
    let mut panels = Vec::new();
    for (known, cells) in bundle.panels() {
        let mut groups = Vec::new();
        for cell in cells {
            let rows: Vec<Row> =
                cell.candidates.iter().filter_map(|c| percentiles(c, colours)).collect();
            for row in &rows {
                if let Mark::Points(points) = &row.mark {
                    all.extend(points.iter().filter(|point| **point > 0.0));
                }
            }
            if !rows.is_empty() {
                groups.push(Group { title: bundle.label(&cell.head, &known), instead: None, rows });
            }
        }
        if !groups.is_empty() {
            let title = (!known.is_empty()).then(|| known.join(", "));
            let scale = Scale::Each;
            panels.push(Panel { title, headings: ["p50", "p99"], scale, groups });
        }
    }
    let range = Range::of(all)?;
    for panel in &mut panels {
        panel.scale = Scale::Log { least: range.min, most: range.max.max(range.min * 10.0) };
    }
    Some(Chart {
        title: format!("Latency: {}", bundle.title),
        caption: format!(
            "µs, further left is better; logarithmic; points: {}; medians over the rounds",
            PERCENTILES.map(|(_, title)| title).join(", ")
        ),
        panels,
    })
}

fn percentiles(candidate: &Candidate, colours: &Colours) -> Option<Row> {
    if candidate.failure.is_some() {
        return None;
    }
    let found: BTreeMap<&str, f64> = PERCENTILES
        .iter()
        .filter_map(|&(name, _)| Some((name, candidate.extra(name)?.median)))
        .collect();
    let of = |name: &str| found.get(name).map_or_else(String::new, |value| short(*value));
    (!found.is_empty()).then(|| Row {
        name: candidate.name.clone(),
        colour: colours.colour(&candidate.name),
        columns: [of(PERCENTILES[0].0), of(PERCENTILES[1].0)],
        mark: Mark::Points(
            PERCENTILES.iter().filter_map(|(name, _)| found.get(name).copied()).collect(),
        ),
    })
}
