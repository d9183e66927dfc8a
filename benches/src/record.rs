//! The result of a run, as kept in `result.json`.
//!
//! # Shape
//!
//! A [`Record`] says on which machine and with which programs it was taken, and
//! has [`Suite`]s of [`Cell`]s. A cell is one question ("TCP from the guest, MTU
//! 1500, 8 streams"); each of its [`Candidate`]s answered it once a round, a
//! [`Sample`] each. What could not be measured is in the record too, with the
//! reason: a candidate that failed, a cell this machine cannot run, a peer that is
//! not installed.
//!
//! # Units
//!
//! A sample's value has the cell's unit. Extra figures carry theirs at the end of
//! the name ([`extra`]). Bytes are bytes, Gbit is 10⁹ bits, MiB is 2²⁰ bytes.
//!
//! A reader must refuse a [`Record::schema`] it does not know; fields may be added
//! without a new schema.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What this program writes and reads.
pub(crate) const SCHEMA: u32 = 1;

/// Names of the extra figures that more than one suite has.
pub(crate) mod extra {
    /// CPU seconds (user and system, all threads) of the backend, for the sample.
    pub(crate) const CPU_S: &str = "backend_cpu_s";
    /// CPU seconds of the backend for each GB (10⁹ bytes) it carried.
    pub(crate) const CPU_PER_GB: &str = "backend_cpu_s_per_gb";
    /// CPU microseconds of the backend for each operation.
    pub(crate) const CPU_PER_OP: &str = "backend_cpu_us_per_op";
    /// CPU seconds of the whole machine, everything that ran included.
    pub(crate) const MACHINE_CPU_S: &str = "machine_cpu_s";
    /// CPU seconds of the whole machine for each GB.
    pub(crate) const MACHINE_CPU_PER_GB: &str = "machine_cpu_s_per_gb";
    /// CPU microseconds of the whole machine for each operation.
    pub(crate) const MACHINE_CPU_PER_OP: &str = "machine_cpu_us_per_op";
    /// CPU seconds the hypervisor gave to somebody else.
    pub(crate) const STEAL_S: &str = "steal_s";
    /// Peak resident memory of the backend, MiB.
    pub(crate) const PEAK_RSS_MIB: &str = "peak_rss_mib";
    /// TCP segments sent again, in every network namespace taking part.
    pub(crate) const RETRANSMITS: &str = "retransmits";
    /// Operations that failed.
    pub(crate) const ERRORS: &str = "errors";
    /// Bytes compared with what was sent, and found equal.
    pub(crate) const CHECKED_BYTES: &str = "checked_bytes";
}

/// One run, or several of the same machine and commit merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Whether the run came to its end; a result is written after every cell.
    pub(crate) complete: bool,
    /// Command lines, oldest first; more than one when runs were merged.
    pub(crate) commands: Vec<String>,
    /// Start of the (last) run, RFC 3339, UTC.
    pub(crate) date: String,
    /// Where.
    pub(crate) machine: Machine,
    /// Programs that took part.
    pub(crate) programs: Vec<Program>,
    /// Programs that could not.
    pub(crate) missing: Vec<Missing>,
    /// What was measured.
    pub(crate) suites: Vec<Suite>,
}

/// The machine, and what was built for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `uname -srm`.
    pub(crate) kernel: String,
    /// Distribution, from os-release(5).
    pub(crate) distribution: String,
    /// Model name from /proc/cpuinfo.
    pub(crate) cpu: String,
    /// Logical processors this program may use.
    pub(crate) cores: usize,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Whether the kernel says that it runs under a hypervisor.
    pub(crate) virtual_machine: bool,
    /// Commit of the source tree, or why it is not known.
    pub(crate) commit: String,
    /// Whether the tree differed from the commit.
    pub(crate) dirty: bool,
}

/// A program that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// What it is called in the tables.
    pub(crate) name: String,
    /// Where it was.
    pub(crate) path: String,
    /// First line of what it says of its version.
    pub(crate) version: String,
}

/// A program that could not take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// Its name.
    pub(crate) name: String,
    /// How to get it.
    pub(crate) install: String,
}

/// A group of cells that one word of the command line runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Suite {
    /// `net`, `fs`, `run` or `micro`.
    pub(crate) name: String,
    /// In the order they were measured.
    pub(crate) cells: Vec<Cell>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// What it is.
    #[serde(flatten)]
    pub(crate) head: Head,
    /// Why no candidate could be measured on this machine, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) impossible: Option<String>,
    /// Samples not counted before the first that is, for each candidate.
    pub(crate) warm_up: u32,
    /// In the order of the table: ours, peers, limits.
    pub(crate) candidates: Vec<Candidate>,
}

/// What a cell asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Path of words, the first being the suite: `net/tcp-up/mtu1500/streams8/v4`.
    pub(crate) id: String,
    /// For people.
    pub(crate) title: String,
    /// Of the values: `Gbit/s`, `ms`, `1/s` …
    pub(crate) unit: String,
    /// Which way is good.
    pub(crate) better: Better,
    /// Parameters by name, as text.
    pub(crate) params: BTreeMap<String, String>,
    /// What a reader must know to compare the candidates fairly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// Why a candidate is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// A program of this project.
    Ours,
    /// A program that does the same work.
    Peer,
    /// The work without a program in between: nobody can be better.
    Limit,
}

/// One that answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Candidate {
    /// Name in the tables.
    pub(crate) name: String,
    /// Why it is there.
    pub(crate) role: Role,
    /// What was run, for people.
    pub(crate) command: String,
    /// One a round, in order; those before a failure are kept.
    pub(crate) samples: Vec<Sample>,
    /// Why it has failed, if so: an error, a wrong byte, no end in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// In the cell's unit.
    pub(crate) value: f64,
    /// Further figures by name; see [`extra`].
    #[serde(flatten)]
    pub(crate) extra: BTreeMap<String, f64>,
}

impl Sample {
    /// A sample without further figures.
    pub(crate) fn of(value: f64) -> Self {
        Self { value, extra: BTreeMap::new() }
    }

    /// With one further figure.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, figure: f64) -> Self {
        self.extra.insert(name.to_owned(), figure);
        self
    }

    /// Four significant digits: more is noise, and makes kept results long.
    fn round(&mut self) {
        for figure in std::iter::once(&mut self.value).chain(self.extra.values_mut()) {
            *figure = crate::stats::significant(*figure, 4);
        }
    }
}

impl Record {
    /// Reads a result.
    ///
    /// # Errors
    /// When it is none, or of another schema.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the result {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text).context("no JSON")?;
        let schema = value["schema"].as_u64().context("no result: it has no schema")?;
        ensure!(
            schema == u64::from(SCHEMA),
            "its schema is {schema}, this program knows {SCHEMA}: read it with the program of \
             that time"
        );
        serde_json::from_value(value).context("not in the form its schema says")
    }

    /// As JSON, figures rounded to four digits, one line a sample.
    ///
    /// # Errors
    /// When a figure is no number.
    pub(crate) fn to_json(&self) -> Result<String> {
        let mut rounded = self.clone();
        for suite in &mut rounded.suites {
            for cell in &mut suite.cells {
                for candidate in &mut cell.candidates {
                    candidate.samples.iter_mut().for_each(Sample::round);
                }
            }
        }
        let mut text = String::new();
        write_value(&serde_json::to_value(&rounded)?, 0, &mut text)?;
        text.push('\n');
        Ok(text)
    }

    /// Adds a cell to the suite its id names.
    pub(crate) fn add(&mut self, cell: Cell) {
        let name = cell.head.id.split('/').next().unwrap_or_default().to_owned();
        match self.suites.iter_mut().find(|suite| suite.name == name) {
            Some(suite) => suite.cells.push(cell),
            None => self.suites.push(Suite { name, cells: vec![cell] }),
        }
    }

    /// Adds another run: its cells replace those of the same id, the others stay.
    ///
    /// # Errors
    /// When it is of another machine or commit: such figures do not belong in one
    /// table.
    pub(crate) fn merge(mut self, newer: Self) -> Result<Self> {
        ensure!(
            Machine { dirty: false, ..self.machine.clone() }
                == Machine { dirty: false, ..newer.machine.clone() },
            "the results are of different machines or commits ({}; {}): they cannot be one",
            self.machine.in_words(),
            newer.machine.in_words()
        );
        self.machine.dirty |= newer.machine.dirty;
        self.complete &= newer.complete;
        self.date = newer.date;
        self.commands.extend(newer.commands);
        for program in newer.programs {
            if !self.programs.contains(&program) {
                self.programs.push(program);
            }
        }
        for missing in newer.missing {
            if !self.missing.contains(&missing) {
                self.missing.push(missing);
            }
        }
        self.missing.retain(|missing| !self.programs.iter().any(|p| p.name == missing.name));
        for suite in newer.suites {
            let Some(own) = self.suites.iter_mut().find(|own| own.name == suite.name) else {
                self.suites.push(suite);
                continue;
            };
            for cell in suite.cells {
                match own.cells.iter_mut().find(|own| own.head.id == cell.head.id) {
                    Some(own) => *own = cell,
                    None => own.cells.push(cell),
                }
            }
        }
        Ok(self)
    }
}

impl Machine {
    /// Kernel, processor and commit in a line.
    pub(crate) fn in_words(&self) -> String {
        format!(
            "{}, {} × {}, {} GiB, commit {}{}",
            self.kernel,
            self.cores,
            self.cpu,
            self.memory_bytes >> 30,
            self.commit,
            if self.dirty { " with changes" } else { "" }
        )
    }
}

/// Indented JSON, but an object or array that holds no other is one line.
fn write_value(value: &serde_json::Value, depth: usize, out: &mut String) -> Result<()> {
    use serde_json::Value;
    let flat = |v: &Value| !matches!(v, Value::Object(_) | Value::Array(_));
    let (open, close, entries): (char, char, Vec<(Option<&String>, &Value)>) = match value {
        Value::Object(map) if depth == 0 || !map.values().all(flat) => {
            ('{', '}', map.iter().map(|(key, value)| (Some(key), value)).collect())
        }
        Value::Array(list) if !list.iter().all(flat) => {
            ('[', ']', list.iter().map(|value| (None, value)).collect())
        }
        _ => {
            out.push_str(&serde_json::to_string(value)?);
            return Ok(());
        }
    };
    out.push(open);
    for (at, (key, value)) in entries.into_iter().enumerate() {
        out.push_str(if at == 0 { "\n" } else { ",\n" });
        out.extend(std::iter::repeat_n(' ', depth + 1));
        if let Some(key) = key {
            out.push_str(&serde_json::to_string(key)?);
            out.push_str(": ");
        }
        write_value(value, depth + 1, out)?;
    }
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', depth));
    out.push(close);
    Ok(())
}

#[cfg(test)]
pub(crate) mod unit {
    use super::*;

    /// A record of one cell `id` in which "ours" and "limit" had these values.
    pub(crate) fn record(id: &str, ours: &[f64], limit: &[f64]) -> Record {
        let candidate = |name: &str, role, values: &[f64]| Candidate {
            name: name.into(),
            role,
            command: "true".into(),
            samples: values
                .iter()
                .map(|&v| Sample::of(v).with(extra::PEAK_RSS_MIB, 1.23456))
                .collect(),
            failure: None,
        };
        let head = Head {
            id: id.into(),
            title: "A cell".into(),
            unit: "1/s".into(),
            better: Better::Higher,
            params: BTreeMap::from([("mtu".into(), "1500".into())]),
            note: None,
        };
        Record {
            schema: SCHEMA,
            complete: true,
            commands: vec!["bench".into()],
            date: "2026-01-01T00:00:00Z".into(),
            machine: Machine {
                kernel: "Linux 6.18".into(),
                distribution: "Debian".into(),
                cpu: "cpu".into(),
                cores: 2,
                memory_bytes: 1 << 32,
                virtual_machine: true,
                commit: "abc".into(),
                dirty: false,
            },
            programs: vec![],
            missing: vec![],
            suites: vec![Suite {
                name: "net".into(),
                cells: vec![Cell {
                    head,
                    impossible: None,
                    warm_up: 1,
                    candidates: vec![
                        candidate("ours", Role::Ours, ours),
                        candidate("limit", Role::Limit, limit),
                    ],
                }],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read_back_rounded() {
        let text = record("net/a", &[1.234_567, 2.0], &[123_456.0]).to_json().unwrap();
        let back = Record::parse(&text).unwrap();
        let samples = &back.suites[0].cells[0].candidates[0].samples;
        assert_eq!(samples[0].value, 1.235);
        assert_eq!(samples[0].extra[extra::PEAK_RSS_MIB], 1.235);
        assert_eq!(back.suites[0].cells[0].candidates[1].samples[0].value, 123_500.0);
        assert!(
            text.lines().any(|line| line.trim() == r#"{"peak_rss_mib":1.235,"value":1.235},"#),
            "{text}"
        );
        assert_eq!(Record::parse(&back.to_json().unwrap()).unwrap(), back);
    }

    #[test]
    fn other_schemas_are_refused() {
        let text = record("net/a", &[1.0], &[]).to_json().unwrap();
        let other = text.replace("\"schema\": 1", "\"schema\": 2");
        assert_ne!(text, other);
        let error = format!("{:#}", Record::parse(&other).unwrap_err());
        assert!(error.contains("schema is 2"), "{error}");
        assert!(Record::parse("{}").is_err() && Record::parse("x").is_err());
    }

    #[test]
    fn merging_replaces_cells_measured_again() {
        let merged = record("net/a", &[1.0], &[])
            .merge(record("net/b", &[2.0], &[]))
            .unwrap()
            .merge(record("net/a", &[3.0], &[]))
            .unwrap();
        let cells = &merged.suites[0].cells;
        assert_eq!(
            cells.iter().map(|c| c.head.id.as_str()).collect::<Vec<_>>(),
            ["net/a", "net/b"]
        );
        assert_eq!(cells[0].candidates[0].samples[0].value, 3.0);
        assert_eq!(merged.commands.len(), 3);
    }

    #[test]
    fn results_of_another_commit_are_not_merged() {
        let mut other = record("net/a", &[1.0], &[]);
        other.machine.commit = "def".into();
        assert!(record("net/a", &[1.0], &[]).merge(other).is_err());
        let mut dirty = record("net/b", &[1.0], &[]);
        dirty.machine.dirty = true;
        assert!(record("net/a", &[1.0], &[]).merge(dirty).unwrap().machine.dirty);
    }
}
