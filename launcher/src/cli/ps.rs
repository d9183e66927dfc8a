//! `coracle ps`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde::Serialize;

use super::filter::{self, Filter};
use super::{complain, print};
use crate::clock;
use crate::spec::{Network, Protocol, Publish, Root};
use crate::store::{State, Status, Store, StoreError};
use crate::text::{self, printable};

/// List containers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List also those that have ended
    #[arg(short, long)]
    all: bool,

    /// Only those with name=PART, status=STATUS, label=KEY[=VALUE], exited=CODE,
    /// ancestor=IMAGE or network=NETWORK; of several of a kind one is enough, but for labels
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = filter::read)]
    filters: Vec<Filter>,

    /// Print names only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// How to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,

    /// Print commands in full
    #[arg(long)]
    no_trunc: bool,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs: an array of objects
    Json,
}

/// Longest command shown in a table, in characters.
const COMMAND_WIDTH: usize = 30;

/// One container, as programs are told of it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    root: String,
    command: Vec<String>,
    /// Seconds since 1970.
    created: u64,
    /// `created`, `starting`, `running`, `paused`, `restarting` or `exited`.
    status: &'static str,
    /// Absent while it runs, and when nobody knows.
    exit_code: Option<u8>,
    /// Seconds since 1970 at which it got into this status.
    since: u64,
    /// Process 1 of the container, as the host numbers it.
    pid: Option<i32>,
    network: &'static str,
    ports: Vec<String>,
    labels: BTreeMap<String, String>,
}

pub(super) fn ps(args: &Args) -> anyhow::Result<u8> {
    let mut rows = Vec::new();
    let mut code = 0;
    let all = args.all || filter::wants_all(&args.filters);
    for entry in Store::open()?.list()? {
        match entry.state() {
            Ok(Some((state, since))) => {
                if (all || state.active()) && filter::pass(&args.filters, entry.name(), &state) {
                    rows.push(row(entry.name(), &state, since));
                }
            }
            // Just being made, or removed meanwhile.
            Ok(None) | Err(StoreError::Unknown(_)) => {}
            Err(error) => {
                complain(error);
                code = 1;
            }
        }
    }
    let text = match args.format {
        _ if args.quiet => rows.iter().fold(String::new(), |text, row| text + &row.name + "\n"),
        Format::Table => table(&rows, clock::now(), args.no_trunc),
        Format::Json => text::json(&rows)?,
    };
    print(&text)?;
    Ok(code)
}

/// What a state is called.
pub(super) fn word(state: &State) -> &'static str {
    match state.status {
        Status::Created => "created",
        Status::Starting => "starting",
        Status::Running if state.is_paused() => "paused",
        Status::Running => "running",
        Status::Restarting { .. } => "restarting",
        Status::Exited { .. } | Status::Lost => "exited",
    }
}

/// Where a container's root comes from.
pub(super) fn root(state: &State) -> String {
    match &state.spec.root {
        Root::Host => "host".to_owned(),
        Root::Dir(dir) => dir.display().to_string(),
        Root::Image(image) => image.name.clone(),
    }
}

/// What its network is called.
pub(super) fn network(state: &State) -> &'static str {
    match state.spec.network {
        Network::Netstack => "netstack",
        Network::None => "none",
        Network::Host => "host",
    }
}

fn row(name: &str, state: &State, since: SystemTime) -> Row {
    let (status, exit_code) = match state.status {
        Status::Restarting { code } | Status::Exited { code } => (word(state), Some(code)),
        _ => (word(state), None),
    };
    Row {
        name: name.to_owned(),
        root: root(state),
        command: state.spec.command.clone(),
        created: state.created,
        status,
        exit_code,
        since: since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        pid: state.init.filter(|_| state.active()).map(|init| init.pid),
        network: network(state),
        ports: if state.active() {
            state.spec.publish.iter().map(port).collect()
        } else {
            Vec::new()
        },
        labels: state.spec.labels.clone(),
    }
}

/// As `127.0.0.1:8080->80/tcp`.
fn port(publish: &Publish) -> String {
    let ip = publish.host_ip.map_or_else(
        || "*".to_owned(),
        |ip| match ip {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        },
    );
    let protocol = match publish.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{ip}:{}->{}/{protocol}", publish.host_port, publish.container_port)
}

fn table(rows: &[Row], now: SystemTime, full: bool) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let age = |then: u64| age(Duration::from_secs(now.saturating_sub(then)));
    let mut cells =
        vec![["NAME", "ROOT", "COMMAND", "CREATED", "STATUS", "PORTS"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let code = row.exit_code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        [
            row.name.clone(),
            row.root.clone(),
            if full { row.command.join(" ") } else { shorten(&row.command.join(" ")) },
            format!("{} ago", age(row.created)),
            match row.status {
                "running" => format!("Up {}", age(row.since)),
                "paused" => format!("Up {} (Paused)", age(row.since)),
                "exited" => format!("Exited ({code}) {} ago", age(row.since)),
                "restarting" => format!("Restarting ({code}) {} ago", age(row.since)),
                "starting" => "Starting".to_owned(),
                _ => "Created".to_owned(),
            },
            row.ports.join(", "),
        ]
        .map(|cell| printable(&cell))
    }));
    columns(&cells)
}

/// Rows with their cells below each other, each column as wide as it must be.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:width$}  ").expect("a string takes all that is written to it");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= COMMAND_WIDTH {
        return text.to_owned();
    }
    text.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect()
}

/// As `5 minutes`, rounded down.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded_down() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "1 minute"),
            (7_200, "2 hours"),
            (86_400 * 3 + 5, "3 days"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_table_lines_up_and_does_nothing_to_a_terminal() {
        let row = |name: &str, command: &str, status, exit_code| Row {
            name: name.to_owned(),
            root: "host".to_owned(),
            command: vec![command.to_owned()],
            created: 40,
            status,
            exit_code,
            since: 70,
            pid: None,
            network: "none",
            ports: vec![],
            labels: BTreeMap::new(),
        };
        let rows = [
            row("a", "sh\x1b[2J\n", "running", None),
            row("long-name", &"x".repeat(50), "exited", Some(137)),
            row("c", "ä", "exited", None),
        ];
        let text = table(&rows, UNIX_EPOCH + Duration::from_secs(100), false);
        let want = "\
NAME       ROOT  COMMAND                         CREATED       STATUS                           PORTS
a          host  sh\\u{1b}[2J\\n                   1 minute ago  Up 30 seconds
long-name  host  xxxxxxxxxxxxxxxxxxxxxxxxxxxxx…  1 minute ago  Exited (137) 30 seconds ago
c          host  ä                               1 minute ago  Exited (unknown) 30 seconds ago
";
        assert_eq!(text, want);
    }

    #[test]
    fn ports_are_shown_as_published() {
        let publish = |text| crate::cli::ports::publish(text).map(|ports| port(&ports.0[0]));
        assert_eq!(publish("8080:80"), Ok("*:8080->80/tcp".to_owned()));
        assert_eq!(publish("[::1]:1:2/udp"), Ok("[::1]:1->2/udp".to_owned()));
    }
}
