//! `bench`: side-by-side runs of the programs and their peers.
//!
//! Every candidate of a benchmark runs in one call, in turn, so that a machine
//! whose speed drifts slows all of them alike; what counts is the ratio.

mod report;
mod run;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Times the programs beside their peers, in one run")]
struct Args {
    /// Directory of the programs `coracle`, `netstack` and `overlayfs-fuse`.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Where the result is written.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
    /// The ordinary user to run as, when started as root.
    #[arg(long, default_value = "coracle-test")]
    user: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Start to finish of a container that does nothing: `coracle run --rm -- true`.
    Run {
        /// Counted rounds; each runs every candidate once.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        rounds: u32,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let stage = stage::Stage::set_up(&args.programs, &args.user)?;
    let report = match args.what {
        What::Run { rounds } => run::measure(&stage, rounds)?,
    };
    print!("{}", report.table());
    let path = report.write(&args.results).context("keeping the result")?;
    println!("kept in {}", path.display());
    Ok(())
}
