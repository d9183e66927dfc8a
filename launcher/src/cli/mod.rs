//! The command line: text → data → the part that acts → exit code.
//!
//! Exit codes are Podman's: 125 when `run` or `exec` failed themselves, or the
//! command line makes no sense, as when a container could not be started or
//! attached to, or standard output could not be written; 1 when another command
//! failed; 141 when nobody reads what it prints; else the workload's own. Whatever
//! fails is told in one line on standard error.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::output::{UNREAD, Unprinted, standard};
use crate::sys::fd;
use crate::text::printable;

mod absent;
mod choose;
mod commit;
pub mod completion;
mod cp;
mod diff;
mod doctor;
mod exec;
mod filter;
mod fresh;
mod gc;
mod ground;
mod image;
mod inspect;
mod lifecycle;
mod limits;
mod logs;
mod memory;
mod mounted;
mod mounts;
mod names;
mod output;
pub mod parse;
mod pause;
mod policy;
mod ports;
mod ps;
mod run;
mod security;
mod setup;
mod top;

/// The command line makes no sense, or `run` and `exec` could not do their part.
const OWN_FAILURE: u8 = 125;

/// Unprivileged, fast containers.
///
/// A container runs on a copy-on-write view of a directory, or of the host's
/// own root, in namespaces and with a network of its own, without any privilege.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Create(Box<run::CreateArgs>),
    Start(lifecycle::StartArgs),
    Stop(lifecycle::StopArgs),
    Restart(lifecycle::RestartArgs),
    Kill(lifecycle::KillArgs),
    Pause(pause::PauseArgs),
    Unpause(pause::UnpauseArgs),
    Wait(lifecycle::WaitArgs),
    Rm(lifecycle::RmArgs),
    Exec(exec::Args),
    Attach(lifecycle::AttachArgs),
    Logs(logs::Args),
    Ps(ps::Args),
    Inspect(inspect::Args),
    Top(top::TopArgs),
    Stats(top::StatsArgs),
    Diff(diff::Args),
    Commit(commit::CommitArgs),
    Export(commit::ExportArgs),
    Cp(cp::Args),
    Gc(gc::Args),
    Image(image::Args),
    Images(image::LsArgs),
    Doctor(doctor::Args),
    Policy(policy::Args),
    Setup(setup::Args),
    Completion(completion::Args),
}

/// `run` alone. The whole command line has hundreds of options, and a start would wait for
/// all of them to be made.
#[derive(Debug, Parser)]
#[command(name = "coracle")]
struct Usual {
    #[command(subcommand)]
    command: UsualCommand,
}

#[derive(Debug, Subcommand)]
enum UsualCommand {
    Run(Box<run::RunArgs>),
}

/// The definition of the command line, as manual pages and completions need it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what this process was started for, and tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = crate::stage::dispatch() {
        return code.into();
    }
    // A container that lives on in the background would keep them: a lock taken
    // by a script, the end of a pipe that somebody reads to its end.
    if let Err(error) = fd::close_inherited() {
        complain(format!("cannot close the caller's descriptors: {error}"));
        return OWN_FAILURE.into();
    }
    if std::env::var_os("CORACLE_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("CORACLE_LOG"))
            .with_writer(io::stderr)
            // It would panic where standard error is gone, too.
            .log_internal_errors(false)
            .init();
    }
    let cli = match read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Unread::Asked(text)) => {
            let printed = print(&text);
            return printed.map_or_else(|error| failed(&error.into(), 1), |()| 0).into();
        }
        Err(Unread::Wrong(why)) => {
            complain(why);
            return OWN_FAILURE.into();
        }
    };
    let (done, own) = match cli.command {
        Command::Run(args) => (run::run(*args), OWN_FAILURE),
        Command::Exec(args) => (exec::exec(args), OWN_FAILURE),
        Command::Create(args) => (run::create(*args), OWN_FAILURE),
        Command::Start(args) => (lifecycle::start(args), OWN_FAILURE),
        Command::Restart(args) => (lifecycle::restart(&args), OWN_FAILURE),
        Command::Wait(args) => (lifecycle::wait_for(&args), 1),
        Command::Attach(args) => (lifecycle::attach(args), OWN_FAILURE),
        Command::Inspect(args) => (inspect::inspect(&args), 1),
        Command::Pause(args) => (pause::pause(&args), 1),
        Command::Unpause(args) => (pause::unpause(&args), 1),
        Command::Top(args) => (top::top(&args), 1),
        Command::Stats(args) => (top::stats(&args), 1),
        Command::Gc(args) => (gc::gc(&args), 1),
        Command::Ps(args) => (ps::ps(&args), 1),
        Command::Logs(args) => (logs::logs(&args), 1),
        Command::Stop(args) => (lifecycle::stop(&args), 1),
        Command::Kill(args) => (lifecycle::kill(&args), 1),
        Command::Rm(args) => (lifecycle::rm(&args), 1),
        Command::Diff(args) => (diff::diff(&args), 1),
        Command::Commit(args) => (commit::commit(args), 1),
        Command::Export(args) => (commit::export(&args), 1),
        Command::Cp(args) => (cp::cp(&args), 1),
        Command::Image(args) => (image::image(&args), 1),
        Command::Images(args) => (image::images(&args), 1),
        Command::Doctor(args) => (doctor::doctor(&args), 1),
        Command::Policy(args) => (policy::policy(&args), 1),
        Command::Completion(args) => (completion::completion(&args), 1),
        Command::Setup(args) => (setup::setup(&args), 1),
    };
    done.unwrap_or_else(|error| failed(&error, own)).into()
}

/// Why there is nothing to do.
#[derive(Debug)]
enum Unread {
    /// Help or the version was asked for: this text.
    Asked(String),
    /// The command line makes no sense, for this one-line reason.
    Wrong(String),
}

fn read(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Unread> {
    use clap::error::ErrorKind;
    let args: Vec<OsString> = args.into_iter().collect();
    // Whatever is wrong with it, or asked for instead, the whole one says better.
    if args.get(1).is_some_and(|word| word == "run")
        && let Ok(Usual { command: UsualCommand::Run(args) }) = Usual::try_parse_from(&args)
    {
        return Ok(Cli { command: Command::Run(args) });
    }
    Cli::try_parse_from(&args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Unread::Asked(error.to_string()),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Unread::Wrong("which command? (see 'coracle --help')".to_owned())
        }
        _ => {
            let help = helpful(args.get(1..).unwrap_or_default());
            let line = instead(&error).unwrap_or_else(|| one_line(&error.to_string()));
            Unread::Wrong(format!("{line} (see '{help} --help')"))
        }
    })
}

/// The command whose help is pointed to.
fn helpful(words: &[OsString]) -> String {
    let command = Cli::command();
    let mut innermost = &command;
    let mut said = "coracle".to_owned();
    for word in words.iter().filter_map(|word| word.to_str()) {
        let Some(known) = innermost.find_subcommand(word) else { break };
        innermost = known;
        said = said + " " + known.get_name();
    }
    said
}

/// What is said of something that Podman has.
fn instead(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let word = word(ContextKind::InvalidArg)?;
            Some(format!("there is no '{word}': {}", absent::option(word)?))
        }
        ErrorKind::InvalidSubcommand => {
            let word = word(ContextKind::InvalidSubcommand)?;
            Some(format!("there is no '{word}': {}", absent::command(word)?))
        }
        _ => None,
    }
}

/// Of clap's message what stands before the usage: reason and advice.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let told = message
        .split("\n\n")
        .take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    let mut line = String::new();
    for part in told {
        if !line.is_empty() {
            line.push_str("; ");
        }
        // How else it could be meant: as a word of the command in the container, at best.
        let told = part.lines().filter(|line| !line.trim_start().starts_with("tip: to pass '"));
        line.extend(told.flat_map(str::split_whitespace).flat_map(|word| [word, " "]));
        line.truncate(line.trim_end().len());
    }
    line
}

/// An error and what is behind it, as one sentence. Some errors name their
/// cause themselves: it is not told twice.
fn reason(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.ends_with(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

/// Tells of a failure, where there is somebody to be told; the exit code, which is `code`
/// unless printing failed.
fn failed(error: &anyhow::Error, code: u8) -> u8 {
    match Unprinted::of(error.as_ref()) {
        Some(unprinted) if unprinted.is_unread() => UNREAD,
        unprinted => {
            complain(reason(error));
            if unprinted.is_some() { OWN_FAILURE } else { code }
        }
    }
}

/// Tells of a failure, in one line on standard error.
fn complain(error: impl std::fmt::Display) {
    // A name or path may hold anything, and the line goes to a terminal.
    let line = printable(&error.to_string());
    // There is nowhere to tell that standard error is gone.
    drop(writeln!(io::stderr().lock(), "coracle: {line}"));
}

/// Writes to standard output, all of it.
fn print(text: &str) -> io::Result<()> {
    let mut out = standard();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Does something for each of several containers: one that fails does not
/// keep the others from it, nor does one whose name nobody reads. Returns 0 when none
/// failed, else the largest of their exit codes.
fn for_each(names: &[String], mut act: impl FnMut(&str) -> anyhow::Result<()>) -> u8 {
    let mut code = 0;
    for name in names {
        if let Err(error) = act(name) {
            code = code.max(failed(&error, 1));
        }
    }
    code
}

#[cfg(test)]
mod tests;
