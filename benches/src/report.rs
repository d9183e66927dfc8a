//! Figures of a benchmark: medians and ranges, ratios, a table, a JSON file.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::Serialize;

/// Everything one call measured.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Which benchmark.
    pub(crate) benchmark: &'static str,
    /// How to get the figures again.
    pub(crate) command: String,
    /// Kernel, processors, versions.
    pub(crate) machine: Vec<(String, String)>,
    /// One row a candidate, the first being what the others are compared with.
    pub(crate) rows: Vec<Row>,
    /// Peers that could not take part, and why.
    pub(crate) missing: Vec<String>,
}

/// One candidate.
#[derive(Serialize)]
pub(crate) struct Row {
    /// What it is called in the table.
    pub(crate) name: String,
    /// What was run.
    pub(crate) argv: Vec<String>,
    /// Wall-clock milliseconds of each round, in order.
    pub(crate) wall_ms: Vec<f64>,
    /// The first failure: such a candidate is shown as failed, never left out.
    pub(crate) failed: Option<String>,
}

impl Row {
    /// (minimum, median, maximum) in milliseconds.
    fn range(&self) -> Option<(f64, f64, f64)> {
        let mut sorted = self.wall_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            n if n % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some((sorted[0], median, sorted[sorted.len() - 1]))
    }
}

impl Report {
    /// The table for the terminal.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let base = self.rows.first().and_then(Row::range).map(|(_, median, _)| median);
        let mut line =
            |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
        line(format!(
            "{:<34} {:>9} {:>9} {:>9} {:>8}",
            "milliseconds", "min", "median", "max", "ratio"
        ));
        for row in &self.rows {
            line(match (row.range(), &row.failed) {
                (_, Some(why)) => format!("{:<34} FAILED: {why}", row.name),
                (Some((min, median, max)), None) => {
                    let ratio =
                        base.map_or_else(String::new, |base| format!("{:.2}", median / base));
                    format!("{:<34} {min:>9.1} {median:>9.1} {max:>9.1} {ratio:>8}", row.name)
                }
                (None, None) => format!("{:<34} not measured", row.name),
            });
        }
        for missing in &self.missing {
            line(format!("missing: {missing}"));
        }
        out
    }

    /// Writes `DIR/BENCHMARK.json` and `DIR/BENCHMARK.txt`.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{}.json", self.benchmark));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        let mut text = format!("$ {}\n", self.command);
        for (what, value) in &self.machine {
            writeln!(text, "# {what}: {value}")?;
        }
        text.push_str(&self.table());
        fs::write(path.with_extension("txt"), text)?;
        Ok(path)
    }
}

/// Kernel, processors and the version each program says it has.
pub(crate) fn machine(programs: &[&str]) -> Vec<(String, String)> {
    let first_line = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    };
    let mut facts = vec![
        (
            "kernel".to_owned(),
            first_line("uname", &["-srm"]).unwrap_or_else(|| "unknown".to_owned()),
        ),
        (
            "processors".to_owned(),
            std::thread::available_parallelism().map_or_else(|e| e.to_string(), |n| n.to_string()),
        ),
        (
            "commit".to_owned(),
            first_line("git", &["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned()),
        ),
    ];
    for program in programs {
        if let Some(version) = first_line(program, &["--version"]) {
            facts.push(((*program).to_owned(), version));
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, wall_ms: &[f64], failed: Option<&str>) -> Row {
        Row {
            name: name.into(),
            argv: vec![],
            wall_ms: wall_ms.into(),
            failed: failed.map(Into::into),
        }
    }

    #[test]
    fn medians_and_ratios() {
        let report = Report {
            benchmark: "x",
            command: String::new(),
            machine: vec![],
            rows: vec![
                row("a", &[3.0, 1.0, 2.0], None),
                row("b", &[4.0, 8.0], None),
                row("c", &[], Some("exit status 1")),
            ],
            missing: vec!["d".into()],
        };
        let table = report.table();
        assert!(
            table.contains(
                "a                                        1.0       2.0       3.0     1.00"
            ),
            "{table}"
        );
        assert!(table.contains("6.0       8.0     3.00"), "{table}");
        assert!(table.contains("FAILED: exit status 1") && table.contains("missing: d"), "{table}");
    }
}
