//! The report: one HTML file that needs nothing else, and the pictures of it.
//!
//! # Theory of operation
//!
//! [`chart`] and [`costs`] decide which charts there are, [`draw`] makes SVG of them, [`tables`]
//! has every figure. [`markup`] escapes and balances all of it. The page has no
//! script and refers to nothing outside: it reads the same from a disk, in a mail,
//! and on paper. Colours follow the reader's preference for light or dark.

mod chart;
mod costs;
mod draw;
mod markup;
mod tables;

use self::chart::{Bundle, Chart, Colours};
use self::markup::Markup;
use crate::cost::{COSTS, beside};
use crate::record::{Record, Suite, extra};
use crate::table::troubles;

/// Colours and lines of the charts, in the page and in the pictures.
const CHART_STYLE: &str = include_str!("chart.css");
/// The page.
const PAGE_STYLE: &str = include_str!("page.css");

/// The whole report.
pub(crate) fn html(record: &Record) -> String {
    let mut html = Markup::default();
    html.markup("<!DOCTYPE html>\n");
    html.within("html", &[("lang", &"en")], |html| {
        html.within("head", &[], |html| {
            html.empty("meta", &[("charset", &"utf-8")]);
            let viewport = "width=device-width, initial-scale=1";
            html.empty("meta", &[("name", &"viewport"), ("content", &viewport)]);
            html.element("title", &[], &format!("Benchmark of {}", day(record)));
            // Style sheets of this directory: no character of them needs escaping.
            html.within("style", &[], |html| {
                html.markup(CHART_STYLE);
                html.markup(PAGE_STYLE);
            });
        });
        html.within("body", &[], |html| {
            html.within("main", &[], |html| body(html, record));
        });
    });
    html.finish()
}

/// Pictures by file name: the overview of each suite.
pub(crate) fn pictures(record: &Record) -> Vec<(String, String)> {
    let overviews = record.suites.iter().filter_map(|suite| {
        let overview = chart::overview(&chart::bundles(suite), &Colours::of(suite));
        if overview.panels.is_empty() {
            return None;
        }
        let ours = suite.cells.iter().find_map(chart::base).map_or("ours", |c| c.name.as_str());
        let heading = format!("{}: how many times better {ours} is", suite_title(suite));
        let footnote = format!(
            "Ratios of medians. Outlined points are limits: the same work with no program in \
             between. {}.",
            record.machine.in_words()
        );
        let svg = draw::picture(&overview, &heading, &footnote, CHART_STYLE);
        Some((format!("{}.svg", suite.name), svg))
    });
    overviews.collect()
}

fn charts(bundles: &[Bundle<'_>], colours: &Colours) -> Vec<Chart> {
    let mut charts = Vec::new();
    for bundle in bundles {
        charts.push(chart::values(bundle, colours));
        charts.extend(costs::latency(bundle, colours));
    }
    charts.extend(costs::resources(bundles, colours));
    charts
}

fn day(record: &Record) -> &str {
    record.date.split('T').next().unwrap_or_default()
}

/// A suite's name for people.
fn suite_title(suite: &Suite) -> &str {
    match suite.name.as_str() {
        "net" => "Network",
        "fs" => "Filesystem",
        "run" => "Start-up",
        "podman" => "Podman",
        "micro" => "Parts alone",
        other => other,
    }
}

fn body(html: &mut Markup, record: &Record) {
    html.element("h1", &[], "Coracle beside its peers");
    let is_quick = record.commands.iter().any(|line| line.split(' ').any(|w| w == "--quick"));
    let mut warn = |text: &str| html.element("p", &[("class", &"warning")], text);
    if !record.complete {
        warn("The run did not come to its end: what is here was measured before.");
    }
    if is_quick {
        warn("A quick look, with few and short samples: not a result to quote.");
    }
    if record.machine.dirty {
        warn("The programs were built from a tree with uncommitted changes.");
    }
    html.within("nav", &[], |html| {
        let mut link = |target: &str, text: &str| {
            html.element("a", &[("href", &format!("#{target}"))], text);
            html.text(" ");
        };
        link("summary", "Summary");
        for suite in &record.suites {
            link(&suite.name, suite_title(suite));
        }
        link("surroundings", "Machine and programs");
        link("method", "Method");
    });
    html.within("section", &[("id", &"summary")], |html| summary(html, record));
    for suite in &record.suites {
        html.within("section", &[("id", &suite.name), ("class", &"suite")], |html| {
            section(html, suite);
        });
    }
    html.within("section", &[("id", &"surroundings")], |html| surroundings(html, record));
    html.within("section", &[("id", &"method")], method);
}

fn summary(html: &mut Markup, record: &Record) {
    html.element("h2", &[], "Summary");
    html.within("p", &[], |html| {
        html.text(&format!("Measured on {} on {}. To get it again: ", day(record), {
            let machine = &record.machine;
            format!("{} × {}, {}", machine.cores, machine.cpu, machine.kernel)
        }));
        for (at, command) in record.commands.iter().enumerate() {
            html.text(if at == 0 { "" } else { ", then " });
            html.element("code", &[], command);
        }
        html.text(".");
    });
    html.within("div", &[("class", &"wide"), ("tabindex", &"0")], |html| {
        html.within("table", &[], |html| {
            html.within("thead", &[], |html| {
                html.within("tr", &[], |html| {
                    for heading in [
                        "beside",
                        "ours is",
                        "least – greatest",
                        "cells",
                        "ahead",
                        "behind",
                        "failed",
                    ] {
                        html.element("th", &[("scope", &"col")], heading);
                    }
                });
            });
            for suite in &record.suites {
                headlines(html, suite);
            }
        });
    });
    html.element(
        "p",
        &[("class", &"note")],
        "“Ours is” 2× means twice the throughput, or half the time: the geometric mean of the \
         ratios of medians over all cells both were measured in. “Ahead” and “behind” count cells \
         in which not one round of the one was as good as any of the other; in the rest the \
         ranges overlap. “Failed” counts the cells in which a candidate gave no result.",
    );
    record.suites.iter().for_each(|suite| dearer(html, suite));
    let troubles = troubles(record).len();
    if troubles > 0 {
        html.element("h3", &[], &format!("What failed or is not possible here: {troubles}"));
        tables::troubles(html, record);
    }
    if !record.missing.is_empty() {
        html.element("h3", &[], "Not installed here, and so not measured");
        html.within("ul", &[], |html| {
            for missing in &record.missing {
                html.within("li", &[], |html| {
                    html.element("b", &[], &missing.name);
                    html.text(": to have it, ");
                    html.element("code", &[], &missing.install);
                });
            }
        });
    }
}

/// CPU time beside the peer that needs the least.
fn dearer(html: &mut Markup, suite: &Suite) {
    for (name, heading) in COSTS {
        let all = beside(suite, name);
        if all.is_empty() {
            continue;
        }
        let dearer: Vec<_> = all.iter().filter(|one| one.is_dearer()).collect();
        html.within("p", &[], |html| {
            html.text(&format!(
                "{}, {heading} of the program beside the peer that needs the least: ours needs \
                 no more in {} of {} cells.",
                suite_title(suite),
                all.len() - dearer.len(),
                all.len()
            ));
            for (at, one) in dearer.iter().enumerate() {
                html.text(if at == 0 { " More in " } else { ", " });
                html.element("code", &[], &one.cell.head.id);
                html.text(&format!(
                    " ({}; {} {})",
                    chart::short(one.ours),
                    one.peer,
                    chart::short(one.theirs)
                ));
            }
            html.text(if dearer.is_empty() { "" } else { "." });
        });
    }
}

/// A suite's lines of the summary.
fn headlines(html: &mut Markup, suite: &Suite) {
    html.within("tbody", &[], |html| {
        let ours = suite.cells.iter().find_map(chart::base).map_or("ours", |c| c.name.as_str());
        html.within("tr", &[("class", &"cell")], |html| {
            html.within("th", &[("colspan", &7), ("scope", &"rowgroup")], |html| {
                html.text(suite_title(suite));
                html.text(": ours is ");
                html.element("code", &[], ours);
            });
        });
        let failures = chart::failures(suite.cells.iter());
        let failed = |name: &str| {
            failures.iter().find(|(own, _)| own.name == name).map_or(0, |(_, count)| *count)
        };
        let ratios = chart::ratios(suite.cells.iter());
        for (candidate, _) in &failures {
            // Ours, and who has failed everywhere.
            if ratios.iter().all(|(own, _)| own.name != candidate.name) {
                html.within("tr", &[], |html| {
                    html.element("th", &[("scope", &"row")], &candidate.name);
                    html.element("td", &[("colspan", &5)], "");
                    html.element("td", &[("class", &"bad")], &failed(&candidate.name).to_string());
                });
            }
        }
        for (candidate, ratios) in ratios {
            let bound = candidate.role == crate::record::Role::Limit;
            html.within("tr", &[("class", &(if bound { "bound" } else { "" }))], |html| {
                let limit = if bound { " (limit)" } else { "" };
                html.element("th", &[("scope", &"row")], &format!("{}{limit}", candidate.name));
                html.within("td", &[], |html| {
                    html.element("b", &[], &chart::times(ratios.range.median));
                });
                let (min, max) = (ratios.range.min, ratios.range.max);
                let span = format!("{} – {}", chart::times(min), chart::times(max));
                for text in [
                    span,
                    ratios.cells.to_string(),
                    ratios.ahead.to_string(),
                    ratios.behind.to_string(),
                ] {
                    html.element("td", &[], &text);
                }
                let failed = failed(&candidate.name);
                let class = if failed > 0 { "bad" } else { "" };
                html.element("td", &[("class", &class)], &failed.to_string());
            });
        }
    });
}

fn section(html: &mut Markup, suite: &Suite) {
    let bundles = chart::bundles(suite);
    let colours = Colours::of(suite);
    html.element("h2", &[], suite_title(suite));
    key(html, &colours);
    html.within("div", &[("class", &"figures")], |html| {
        let overview = chart::overview(&bundles, &colours);
        if !overview.panels.is_empty() {
            figure(html, &overview);
        }
        for chart in charts(&bundles, &colours) {
            figure(html, &chart);
        }
    });
    html.element("h3", &[], &format!("{}: all figures", suite_title(suite)));
    for bundle in &bundles {
        tables::bundle(html, bundle);
    }
    let cells: Vec<_> = suite.cells.iter().collect();
    tables::commands(html, &cells);
}

/// Which colour is who, and what the marks are.
fn key(html: &mut Markup, colours: &Colours) {
    html.within("p", &[("class", &"key")], |html| {
        for (name, colour) in &colours.all {
            html.within("span", &[], |html| {
                let size = [("width", &12 as &dyn std::fmt::Display), ("height", &12)];
                html.within("svg", &[size[0], size[1], ("aria-hidden", &"true")], |svg| {
                    let class = draw::class(*colour);
                    svg.empty(
                        "rect",
                        &[("class", &class), ("x", &1), ("y", &1), ("width", &10), ("height", &10)],
                    );
                });
                html.text(&format!(" {name}"));
            });
        }
    });
    html.element(
        "p",
        &[("class", &"note")],
        "Bars are medians; the thin line goes from the least to the greatest round, and has an \
         arrow where it goes on beyond the scale. Outlined bars are limits: the work with no \
         program in between. “Ours is” says how many times better ours is than the one in that \
         line.",
    );
}

fn figure(html: &mut Markup, chart: &Chart) {
    let class = if chart.panels.len() == 1 { "single" } else { "several" };
    html.within("figure", &[("class", &class)], |html| {
        html.within("figcaption", &[], |html| {
            html.element("h3", &[], &chart.title);
            html.element("p", &[], &chart.caption);
        });
        html.within("div", &[("class", &"panels")], |html| {
            for panel in draw::panels(chart) {
                html.markup(&panel);
            }
        });
    });
}

fn surroundings(html: &mut Markup, record: &Record) {
    html.element("h2", &[], "Machine and programs");
    let machine = &record.machine;
    let dirty = if machine.dirty { ", with uncommitted changes" } else { "" };
    let hypervisor = if machine.virtual_machine { "yes" } else { "no" };
    html.within("dl", &[], |html| {
        let mut fact = |name: &str, text: &str| {
            html.element("dt", &[], name);
            html.element("dd", &[], text);
        };
        fact("start of the run", &record.date);
        fact("commit", &format!("{}{dirty}", machine.commit));
        fact("kernel", &machine.kernel);
        fact("distribution", &machine.distribution);
        fact("processors", &format!("{} × {}", machine.cores, machine.cpu));
        fact("memory", &format!("{:.1} GiB", machine.memory_bytes as f64 / (1u64 << 30) as f64));
        fact("virtual machine", hypervisor);
        fact("CPU time", &cpu_time(record));
    });
    html.within("div", &[("class", &"wide"), ("tabindex", &"0")], |html| {
        html.within("table", &[("class", &"prose")], |html| {
            html.within("thead", &[], |html| {
                html.within("tr", &[], |html| {
                    for heading in ["program", "version", "path"] {
                        html.element("th", &[("scope", &"col"), ("class", &"text")], heading);
                    }
                });
            });
            html.within("tbody", &[], |html| {
                for program in &record.programs {
                    html.within("tr", &[], |html| {
                        html.element("th", &[("scope", &"row")], &program.name);
                        html.element("td", &[], &program.version);
                        html.within("td", &[], |html| html.element("code", &[], &program.path));
                    });
                }
            });
        });
    });
}

/// How much of the machine the samples used, and how much it was not given.
fn cpu_time(record: &Record) -> String {
    let sum = |name: &str| -> f64 {
        let cells = record.suites.iter().flat_map(|suite| &suite.cells);
        let samples = cells.flat_map(|cell| &cell.candidates).flat_map(|c| &c.samples);
        samples.filter_map(|sample| sample.extra.get(name)).sum()
    };
    format!(
        "{} s of the whole machine during the samples; {} s the hypervisor gave to others",
        chart::short(sum(extra::MACHINE_CPU_S)),
        chart::short(sum(extra::STEAL_S))
    )
}

fn method(html: &mut Markup) {
    html.element("h2", &[], "Method");
    html.within("ul", &[], |html| {
        for text in [
            "Each round asks every candidate once, one after the other, in an order that is \
             rotated from round to round, after rounds that warm up and are not counted. A machine \
             whose speed drifts slows all of them alike: compare within a cell, not between runs.",
            "Figures are medians over the rounds, with the least and the greatest. Ratios are of \
             medians. A ratio with a ~ is of two ranges that overlap.",
            "A candidate that fails, takes too long or delivers a wrong byte is shown as failed, \
             with its reason, and is not asked again.",
            "CPU time is user and system time of all threads of the program; “all” is that of the \
             whole machine, everything that ran included. RSS is peak resident memory.",
            "GB are 10⁹ bytes, Gbit 10⁹ bits, MiB 2²⁰ bytes.",
            "All programs run as an ordinary user, in namespaces made for the run, and need no \
             network.",
        ] {
            html.element("li", &[], text);
        }
    });
}

#[cfg(test)]
mod tests;
