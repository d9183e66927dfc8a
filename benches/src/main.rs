//! `bench`: side-by-side runs of the programs and their peers.
//!
//! [`suites`] say what is measured, [`method`] how, [`peers`] with whom, [`scene`]
//! where; a [`record`] is what comes out.

mod compare;
mod cost;
mod kept;
mod load;
mod machine;
mod method;
mod peers;
mod rank;
mod record;
mod report;
mod scene;
mod stats;
mod suites;
mod sys;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use tests::say;

use crate::kept::Kept;
use crate::record::{Record, SCHEMA};
use crate::scene::Scene;
use crate::suites::{Extent, SUITES, Suite};

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures the programs beside their peers",
    after_help = "It runs as root (`cargo xtask bench` sees to that, by sudo): it makes network \
                  namespaces, mounts and users of its own, runs the programs themselves as an \
                  ordinary user, and needs no network."
)]
struct Cli {
    /// Directory of the programs `coracle`, `netstack` and `overlayfs-fuse`.
    #[arg(long, default_value = "target/release", global = true)]
    programs: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The network: transfers, round trips, connections, memory.
    Net(Measure),
    /// Start-up: time and memory of a container that does nothing.
    Run(Measure),
    /// The overlay: files beside its peers, the kernel's overlay and a directory.
    Fs(Measure),
    /// Podman on our programs and on those they stand in for.
    Podman(Measure),
    /// The pure cores, in this program alone.
    Micro(Measure),
    /// Every suite.
    All(Measure),
    /// Adds results of the same machine and commit to the first.
    Merge {
        /// Result that is added to.
        into: PathBuf,
        /// Results that are added; of a cell measured twice the last counts.
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
    /// Makes the report, one HTML file, from results of one machine and commit.
    Report {
        /// Results; of a cell in several the last counts.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// The report; beside the first result if not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Writes a picture (SVG) of each suite into this directory too.
        #[arg(long, value_name = "DIR")]
        pictures: Option<PathBuf>,
    },
    /// Says what got better or worse between two results, beyond noise.
    #[command(after_help = "Exit code: 0 when nothing is worse, 1 when something is, 2 when the \
                            results cannot be read.")]
    Compare {
        /// The result before.
        old: PathBuf,
        /// The result after.
        new: PathBuf,
        /// Compares peers and limits too, which no change of ours should move.
        #[arg(long)]
        all: bool,
        /// Least change that counts, in percent.
        #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
        threshold: f64,
    },
    /// Load generators.
    #[command(subcommand, hide = true)]
    Load(load::Load),
    #[command(name = suites::run::LIMIT, hide = true)]
    StartUpLimit { root: PathBuf },
    #[command(name = suites::fs::stage::NAME, hide = true)]
    FsStage { dir: PathBuf, sizes: String },
    #[command(name = suites::fs::load::NAME, hide = true, subcommand)]
    FsLoad(suites::fs::load::Load),
}

#[derive(Args)]
struct Measure {
    /// Who takes part beside ours: names, `all`, `none`, or NAME=PATH for another build.
    #[arg(long, value_delimiter = ',', value_name = "NAME|NAME=PATH")]
    peers: Vec<String>,
    /// Fewer and shorter samples, fewer cells: a look, not a result to quote.
    #[arg(long)]
    quick: bool,
    /// Counted rounds; each asks every candidate once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Directory of the result.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Adds to the result that is there; cells measured again replace the old.
    #[arg(long)]
    merge: bool,
    /// Writes a picture (SVG) of each suite into the directory of the result too.
    #[arg(long)]
    pictures: bool,
    /// Only cells whose id contains one of these.
    #[arg(long, value_delimiter = ',', value_name = "SUBSTRING")]
    only: Vec<String>,
    /// Names the cells and the time they take, and measures nothing.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.what {
        What::Net(args) => measure(&cli.programs, &["net"], args),
        What::Run(args) => measure(&cli.programs, &["run"], args),
        What::Fs(args) => measure(&cli.programs, &["fs"], args),
        What::Podman(args) => measure(&cli.programs, &["podman"], args),
        What::Micro(args) => measure(&cli.programs, &["micro"], args),
        What::All(args) => {
            let all: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
            measure(&cli.programs, &all, args)
        }
        What::Merge { into, results } => merge(into, results),
        What::Compare { old, new, all, threshold } => {
            let options = compare::Options { all: *all, threshold: threshold / 100.0 };
            return compare(old, new, options);
        }
        What::Report { results, out, pictures } => {
            report(results, out.as_deref(), pictures.as_deref())
        }
        What::Load(load) => load::run(load),
        What::StartUpLimit { root } => suites::run::limit(root),
        What::FsStage { dir, sizes } => suites::fs::stage::main(dir, sizes),
        What::FsLoad(load) => suites::fs::load::run(load),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say::tell(&error, 1),
    }
}

/// Measures suites. As root this starts the program again inside namespaces.
fn measure(programs: &Path, names: &[&str], args: &Measure) -> Result<()> {
    tests::lab::enter(Some(programs))?;
    let found = peers::find(programs, names, &args.peers)?;
    let kept = Kept::open(&args.out, args.merge)?;
    let mut record = Record {
        schema: SCHEMA,
        complete: false,
        commands: vec![command_line()],
        date: machine::date(),
        machine: machine::look(),
        programs: found.peers.iter().map(peers::Peer::program).collect(),
        missing: found.missing.clone(),
        suites: Vec::new(),
    };
    say::print(format_args!("{}", table::surroundings(&record)))?;
    let scene = Scene::set_up(programs, &found)?;
    let extent = Extent { quick: args.quick, rounds: args.rounds };
    let mut cells = Vec::new();
    for suite in SUITES.iter().filter(|suite| names.contains(&suite.name)) {
        cells.extend(suite_cells(suite, &scene, extent)?);
    }
    cells.retain(|cell| {
        args.only.is_empty() || args.only.iter().any(|word| cell.head.id.contains(word))
    });
    ensure!(!cells.is_empty(), "no cell's id contains {}", args.only.join(" or "));
    let time = method::time_in_words(method::estimate(&cells));
    if args.list {
        for cell in &cells {
            let why = cell.impossible.as_ref().map(|why| format!("  NOT POSSIBLE HERE: {why}"));
            say!("{:<44} {}{}", cell.head.id, cell.head.title, why.unwrap_or_default())?;
        }
        say!("{} cells, about {time}", cells.len())?;
        return Ok(());
    }
    say!("{} cells, about {time}\n", cells.len())?;
    method::run(cells, |cell, progress| {
        let shown = format!("{}  [{}]", table::cell(&cell), progress.in_words());
        record.add(cell);
        kept.write(&record)?;
        say!("{shown}\n")
    })?;
    record.complete = true;
    kept.write(&record)?;
    for trouble in table::troubles(&record) {
        say!("{trouble}")?;
    }
    if args.pictures {
        kept.write_pictures(&record)?;
    }
    say!("kept in {}; the charts are in the .html beside it", kept.file().display())?;
    scene.lab.kill_all();
    Ok(())
}

fn suite_cells<'a>(
    suite: &Suite,
    scene: &'a Scene,
    extent: Extent,
) -> Result<Vec<method::Cell<'a>>> {
    let cells =
        (suite.cells)(scene, extent).with_context(|| format!("preparing suite {}", suite.name))?;
    let prefix = format!("{}/", suite.name);
    for cell in &cells {
        ensure!(cell.head.id.starts_with(&prefix), "cell {} is not of {prefix}", cell.head.id);
    }
    Ok(cells)
}

/// How to get the figures again.
fn command_line() -> String {
    let mut words = std::env::args().skip(1);
    let mut line = "cargo xtask bench".to_owned();
    while let Some(word) = words.next() {
        if word == "--programs" {
            words.next();
        } else {
            line.push(' ');
            line.push_str(&word);
        }
    }
    line
}

/// Prints the comparison; exit code 1 when something is worse.
fn compare(old: &Path, new: &Path, options: compare::Options) -> ExitCode {
    match Record::read(old).and_then(|old| Ok((old, Record::read(new)?))) {
        Ok((old, new)) => {
            let found = compare::compare(&old, &new, options);
            match say::print(format_args!("{}", found.in_words())) {
                Ok(()) => ExitCode::from(u8::from(found.is_worse())),
                Err(error) => say::tell(&error, 2),
            }
        }
        Err(error) => say::tell(&error, 2),
    }
}

fn merge(into: &Path, results: &[PathBuf]) -> Result<()> {
    let merged = read(into, results)?;
    kept::write(into, &merged).with_context(|| format!("cannot write {}", into.display()))
}

/// Writes the report and, if asked for, the pictures.
fn report(results: &[PathBuf], out: Option<&Path>, pictures: Option<&Path>) -> Result<()> {
    let (first, others) = results.split_first().context("no result")?;
    let record = read(first, others)?;
    let out = out.map_or_else(|| first.with_extension("html"), Path::to_owned);
    std::fs::write(&out, report::html(&record))
        .with_context(|| format!("cannot write {}", out.display()))?;
    say!("{}", out.display())?;
    if let Some(dir) = pictures {
        kept::make_dir(dir)
            .and_then(|()| kept::write_pictures(dir, &record))
            .with_context(|| format!("cannot write the pictures to {}", dir.display()))?;
        say!("{}", dir.display())?;
    }
    Ok(())
}

/// Several results as one.
fn read(first: &Path, others: &[PathBuf]) -> Result<Record> {
    let mut merged = Record::read(first)?;
    for result in others {
        merged = merged.merge(Record::read(result)?)?;
    }
    Ok(merged)
}
