//! The commands of this repository: `cargo xtask demo | test | bench | man | dist`.

#[macro_use]
mod say;

mod demo;
mod dist;
mod prepare;
mod test;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nix::unistd::Uid;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The commands of this repository")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Builds the programs and shows what they do, as an ordinary user.
    Demo {
        /// Programs to show, instead of a fresh release build.
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Installs what is missing (as root) and runs every check and test.
    Test {
        /// Only the end-to-end tests whose names contain one of these words.
        e2e: Vec<String>,
    },
    /// Writes the manual pages to target/man.
    Man,
    /// Makes a Debian package and a tar archive in target/dist.
    Dist,
    /// Measures the programs beside their peers.
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure, and its options: see `cargo xtask bench --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What `bench` needs of root before it measures.
    #[command(hide = true)]
    PrepareBench,
}

fn main() -> ExitCode {
    let result = match Args::parse().what {
        What::Demo { programs } => demo::run(programs.as_deref()).map(|()| true),
        What::Test { e2e } => test::run(&e2e),
        What::Man => man().map(|()| true),
        What::Dist => dist::run().map(|()| true),
        What::Bench { args } => bench(&args).map(|()| true),
        What::PrepareBench => prepare::machine(FOR_BENCH).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say::tell(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

const FOR_BENCH: &[prepare::Purpose] =
    &[prepare::Purpose::Build, prepare::Purpose::Run, prepare::Purpose::Bench];

/// Builds as whoever asks, and becomes the program `bench` as root, with the same
/// process id (sudo passes signals on): what ends the one ends the other.
fn bench(args: &[String]) -> Result<()> {
    let measures = !args.iter().any(|arg| ["--help", "-h", "--version"].contains(&arg.as_str()))
        && args
            .first()
            .is_some_and(|what| !["compare", "report", "merge"].contains(&what.as_str()));
    let by_sudo = measures && !Uid::effective().is_root();
    if by_sudo {
        say!("measuring needs root, for namespaces, users and a veth pair: asking sudo");
        let status = Command::new("sudo")
            .arg("--")
            .arg(std::env::current_exe()?)
            .arg("prepare-bench")
            .status()
            .context("cannot run sudo; as root, `cargo xtask bench` needs none")?;
        ensure!(status.success(), "sudo, or preparing the machine as root, failed: see above");
    } else if measures {
        prepare::machine(FOR_BENCH)?;
    }
    let programs = match measures {
        true => Some(dist::to_measure()?),
        false => None,
    };
    let status =
        cargo().args(["build", "--quiet", "--release", "--package", "benches"]).status()?;
    ensure!(status.success(), "the benchmark cannot be built: see above");
    let bench = target_dir()?.join("release/bench");
    let mut command = Command::new(if by_sudo { Path::new("sudo") } else { &bench });
    if by_sudo {
        command.arg("--").arg(&bench);
    }
    command.args(args).current_dir(workspace());
    if let Some(programs) = programs {
        command.arg("--programs").arg(programs);
    }
    Err(command.exec()).with_context(|| format!("cannot start {}", bench.display()))
}

/// Manual pages: generated from the command lines' definitions, except for the
/// program whose command line is FUSE's own form.
fn man() -> Result<()> {
    prepare::machine(&[prepare::Purpose::Build])?;
    let dir = target_dir()?.join("man");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for package in ["launcher", "netstack"] {
        let status = cargo()
            .args(["run", "--quiet", "--package", package, "--example", "man", "--"])
            .arg(&dir)
            .status()?;
        ensure!(status.success(), "the manual pages of {package} cannot be written: {status}");
    }
    let page = "overlayfs-fuse.1";
    std::fs::copy(workspace().join("doc/man").join(page), dir.join(page))
        .with_context(|| format!("cannot copy {page}"))?;
    say!("manual pages are in {}", dir.display());
    Ok(())
}

/// Root of the workspace.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}

/// Cargo, in the workspace.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Where cargo builds: this program was built there too, in a directory named
/// after the profile.
fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.ancestors().nth(2).context("this program lies in no target directory")?;
    Ok(dir.to_owned())
}

fn build_release() -> Result<()> {
    say!("building the programs (release; the first time takes some minutes)");
    let status = cargo()
        .args(["build", "--quiet", "--release", "--bins"])
        .args(["--package", "launcher", "--package", "netstack", "--package", "overlayfs-fuse"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs cannot be built: see above");
    Ok(())
}
