//! `coracle top` and `stats`.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::output::Unprinted;
use super::ps::{Format, age, columns};
use super::{for_each, print};
use crate::clock;
use crate::spec::Network;
use crate::store::{State, Status, Store};
use crate::text::{self, printable};
use crate::usage::{self, Task, Usage};

/// List the processes of a container, with their numbers inside and on the host.
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Show what containers use: processor, memory, processes, network.
///
/// By their control groups; without one, memory is counted by processes (pages of
/// several in parts), and time on processors is that of those that still run.
#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    /// Print once: the share of a processor since the start
    #[arg(long)]
    no_stream: bool,

    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..))]
    interval: u16,

    /// How to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,

    /// The containers [default: all that run]
    #[arg(value_name = "CONTAINER")]
    names: Vec<String>,
}

pub(super) fn top(args: &TopArgs) -> anyhow::Result<u8> {
    let state = running(&Store::open()?, &args.name)?;
    let tasks = usage::tasks(&state)
        .with_context(|| format!("container '{}' has just ended", args.name))?;
    print(&match args.format {
        Format::Table => table(&tasks),
        Format::Json => text::json(&tasks)?,
    })?;
    Ok(0)
}

fn running(store: &Store, name: &str) -> anyhow::Result<State> {
    match store.find(name)?.state()? {
        Some((state, _)) if state.status == Status::Running => Ok(state),
        _ => anyhow::bail!("container '{name}' is not running"),
    }
}

fn table(tasks: &[Task]) -> String {
    let mut rows = vec![
        ["USER", "PID", "HPID", "PPID", "ELAPSED", "TTY", "TIME", "COMMAND"].map(str::to_owned),
    ];
    rows.extend(tasks.iter().map(|task| {
        let seconds = task.cpu / 1_000;
        [
            task.user.map_or_else(|| "?".to_owned(), |user| user.to_string()),
            task.pid.to_string(),
            task.host_pid.to_string(),
            task.parent.to_string(),
            age(Duration::from_secs(task.elapsed)),
            task.tty.clone().unwrap_or_else(|| "?".to_owned()),
            format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60),
            printable(&task.command),
        ]
    }));
    columns(&rows)
}

/// One container, as programs are told of it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Percent of one processor.
    cpu_percent: f64,
    #[serde(flatten)]
    usage: Usage,
}

pub(super) fn stats(args: &StatsArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    // Asked for by name they must be there, and run.
    let code = for_each(&args.names, |name| running(&store, name).map(drop));
    if code != 0 {
        return Ok(code);
    }
    let mut before: Vec<(String, Usage, Instant)> = Vec::new();
    loop {
        let mut rows = Vec::new();
        let mut now = Vec::new();
        for (name, state) in shown(&store, &args.names)? {
            let own_network = state.spec.network != Network::Host;
            // One that has ended meanwhile is not shown any more.
            let Ok(usage) = usage::usage(&state, own_network) else { continue };
            let seen = clock::monotonic();
            let last = before.iter().find(|(other, ..)| *other == name);
            let share = match last {
                Some((_, last, at)) => usage::share(
                    usage.cpu.saturating_sub(last.cpu),
                    seen.saturating_duration_since(*at),
                ),
                None => {
                    let started = state.started.unwrap_or_else(clock::unix_seconds);
                    let ran = clock::unix_seconds().saturating_sub(started).max(1);
                    usage::share(usage.cpu, Duration::from_secs(ran))
                }
            };
            rows.push(Row { name: name.clone(), cpu_percent: share as f64 / 100.0, usage });
            now.push((name, usage, seen));
        }
        let streams = !args.no_stream;
        let clear = if streams && io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        print(&match args.format {
            Format::Table => format!("{clear}{}", amounts(&rows)),
            // A line each time, so that a reader of the stream finds its ends.
            Format::Json if streams => serde_json::to_string(&rows)? + "\n",
            Format::Json => text::json(&rows)?,
        })?;
        let none_left = rows.is_empty() && !args.names.is_empty();
        if !streams || none_left {
            return Ok(0);
        }
        pause(Duration::from_secs(args.interval.into()))?;
        before = now;
    }
}

fn shown(store: &Store, names: &[String]) -> anyhow::Result<Vec<(String, State)>> {
    let mut all = Vec::new();
    for entry in store.list()? {
        let wanted = names.is_empty() || names.iter().any(|name| name == entry.name());
        if let (true, Ok(Some((state, _)))) = (wanted, entry.state())
            && state.status == Status::Running
        {
            all.push((entry.name().to_owned(), state));
        }
    }
    Ok(all)
}

/// Waits; an error when nobody reads our output any more.
fn pause(time: Duration) -> anyhow::Result<()> {
    let deadline = clock::monotonic() + time;
    loop {
        let left = deadline.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            return Ok(());
        }
        let stdout = io::stdout();
        // No event asked for: an error is always told.
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Err(Unprinted::unread().into()),
            Err(errno) => return Err(errno).context("cannot wait"),
        }
    }
}

fn amounts(rows: &[Row]) -> String {
    let mut cells =
        vec![["NAME", "CPU %", "MEM USAGE / LIMIT", "NET IN / OUT", "PIDS"].map(str::to_owned)];
    cells.extend(rows.iter().map(|Row { name, cpu_percent, usage }| {
        let some = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), amount);
        [
            name.clone(),
            format!("{cpu_percent:.2}"),
            format!("{} / {}", amount(usage.memory), some(usage.memory_limit)),
            format!("{} / {}", some(usage.received), some(usage.sent)),
            usage.pids.to_string(),
        ]
    }));
    columns(&cells)
}

/// As `12.3MiB`.
fn amount(bytes: u64) -> String {
    let mut unit = "B";
    let mut rest = bytes as f64;
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if rest < 1_024.0 {
            break;
        }
        (rest, unit) = (rest / 1_024.0, larger);
    }
    if unit == "B" { format!("{bytes}B") } else { format!("{rest:.1}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1_023, "1023B"),
            (1_024, "1.0KiB"),
            (1_572_864, "1.5MiB"),
            (1 << 43, "8.0TiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
