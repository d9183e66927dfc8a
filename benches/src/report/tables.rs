//! The complete tables of the report. Pure.

use std::collections::BTreeSet;

use super::chart::{Bundle, base, short, times};
use super::markup::Markup;
use crate::record::{Candidate, Cell, Record, Role, extra};
use crate::table::COLUMNS;

/// Extra figures that are in the result only: per sample, and in other columns per
/// byte or operation; or said elsewhere in the report.
const LEFT_OUT: [&str; 4] =
    [extra::CPU_S, extra::MACHINE_CPU_S, extra::STEAL_S, extra::CHECKED_BYTES];

/// Extra figures of some cells: those with a heading first, then all others under
/// their own name.
fn columns(cells: &[&Cell]) -> Vec<(String, String)> {
    let mut present: BTreeSet<&str> = cells
        .iter()
        .flat_map(|cell| &cell.candidates)
        .flat_map(|candidate| &candidate.samples)
        .flat_map(|sample| sample.extra.keys().map(String::as_str))
        .collect();
    let mut columns = Vec::new();
    for (name, heading) in COLUMNS {
        if present.remove(name) {
            columns.push(((*name).to_owned(), (*heading).to_owned()));
        }
    }
    let others = present.into_iter().filter(|name| !LEFT_OUT.contains(name));
    columns.extend(others.map(|name| (name.to_owned(), name.replace('_', " "))));
    columns
}

/// The table of a bundle.
pub(super) fn bundle(html: &mut Markup, bundle: &Bundle<'_>) {
    let columns = columns(&bundle.cells);
    let span = 5 + columns.len();
    html.within("div", &[("class", &"wide"), ("tabindex", &"0")], |html| {
        html.within("table", &[], |html| {
            html.element("caption", &[], &bundle.title);
            html.within("thead", &[], |html| {
                html.within("tr", &[], |html| {
                    html.element("th", &[("scope", &"col")], "");
                    let fixed = ["median", "least – greatest", "rounds", "ours is"];
                    let extra = columns.iter().map(|(_, heading)| heading.as_str());
                    for heading in fixed.into_iter().chain(extra) {
                        html.element("th", &[("scope", &"col")], heading);
                    }
                });
            });
            for cell in &bundle.cells {
                html.within("tbody", &[], |html| {
                    html.within("tr", &[("class", &"cell")], |html| {
                        html.within("th", &[("colspan", &span), ("scope", &"rowgroup")], |html| {
                            html.text(&format!("{} ({}) ", cell.head.title, cell.head.unit));
                            html.element("code", &[], &cell.head.id);
                        });
                    });
                    if let Some(why) = &cell.impossible {
                        html.within("tr", &[], |html| {
                            html.element(
                                "td",
                                &[("colspan", &span), ("class", &"bad text")],
                                &format!("not possible here: {why}"),
                            );
                        });
                        return;
                    }
                    for candidate in &cell.candidates {
                        row(html, cell, candidate, &columns);
                    }
                });
            }
        });
    });
    let notes: BTreeSet<&str> =
        bundle.cells.iter().filter_map(|cell| cell.head.note.as_deref()).collect();
    for note in notes {
        html.element("p", &[("class", &"note")], &format!("Note: {note}."));
    }
}

fn row(html: &mut Markup, cell: &Cell, candidate: &Candidate, columns: &[(String, String)]) {
    let class = match candidate.role {
        Role::Ours => "ours",
        Role::Peer => "",
        Role::Limit => "bound",
    };
    html.within("tr", &[("class", &class)], |html| {
        let name = match candidate.role {
            Role::Limit => format!("{} (limit)", candidate.name),
            Role::Ours | Role::Peer => candidate.name.clone(),
        };
        html.element("th", &[("scope", &"row")], &name);
        let Some(range) = candidate.range() else {
            let rounds = candidate.samples.len();
            let why = match &candidate.failure {
                Some(why) => format!("failed after {rounds} rounds: {why}"),
                None => "not measured".to_owned(),
            };
            html.element("td", &[("colspan", &(4 + columns.len())), ("class", &"bad text")], &why);
            return;
        };
        html.element("td", &[], &short(range.median));
        html.element("td", &[], &format!("{} – {}", short(range.min), short(range.max)));
        html.element("td", &[], &candidate.samples.len().to_string());
        ratio(html, cell, candidate);
        for (name, _) in columns {
            let value = candidate.extra(name).map_or_else(|| "–".into(), |r| short(r.median));
            html.element("td", &[], &value);
        }
    });
}

/// How many times better ours is; marked where the ranges overlap.
fn ratio(html: &mut Markup, cell: &Cell, candidate: &Candidate) {
    let text = base(cell).filter(|base| *base != candidate).and_then(|base| {
        let ratio = base.times_better(candidate, cell.head.better)?;
        let apart = base.range()?.is_apart_from(candidate.range()?);
        let class = match (apart && candidate.role == Role::Peer, ratio >= 1.0) {
            // Nobody is better than a limit.
            (false, _) => "even",
            (true, true) => "good",
            (true, false) => "bad",
        };
        Some((class, format!("{}{}", if apart { "" } else { "~" }, times(ratio))))
    });
    let (class, text) = text.unwrap_or(("", String::new()));
    html.element("td", &[("class", &class)], &text);
}

/// What was run, for each cell and candidate, folded away.
pub(super) fn commands(html: &mut Markup, cells: &[&Cell]) {
    html.within("details", &[], |html| {
        html.element("summary", &[], "What was run");
        for cell in cells {
            html.within("h4", &[], |html| html.element("code", &[], &cell.head.id));
            html.within("ul", &[], |html| {
                for candidate in &cell.candidates {
                    html.within("li", &[], |html| {
                        html.element("b", &[], &candidate.name);
                        html.text(": ");
                        html.element("code", &[], &candidate.command);
                    });
                }
            });
        }
    });
}

/// Failures and impossible cells, with their reasons.
pub(super) fn troubles(html: &mut Markup, record: &Record) {
    let heading = |html: &mut Markup, titles: &[&str]| {
        html.within("thead", &[], |html| {
            html.within("tr", &[], |html| {
                for title in titles {
                    html.element("th", &[("scope", &"col"), ("class", &"text")], title);
                }
            });
        });
    };
    let cells = || record.suites.iter().flat_map(|suite| &suite.cells);
    html.within("div", &[("class", &"wide"), ("tabindex", &"0")], |html| {
        html.within("table", &[("class", &"prose")], |html| {
            heading(html, &["cell", "who", "why"]);
            html.within("tbody", &[], |html| {
                let mut line = |cell: &Cell, who: &str, why: &str| {
                    html.within("tr", &[], |html| {
                        html.within("td", &[], |html| html.element("code", &[], &cell.head.id));
                        html.element("td", &[], who);
                        html.element("td", &[("class", &"bad")], why);
                    });
                };
                for cell in cells() {
                    if let Some(why) = &cell.impossible {
                        line(cell, "nobody", &format!("not possible here: {why}"));
                    }
                    for candidate in &cell.candidates {
                        if let Some(why) = &candidate.failure {
                            line(cell, &candidate.name, why);
                        }
                    }
                }
            });
        });
    });
}
