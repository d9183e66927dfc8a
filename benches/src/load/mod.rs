//! Load generators: a server and its clients, each a process of its own.
//!
//! # Theory of operation
//!
//! `bench load serve` answers on fixed ports ([`port`]) in its network namespace;
//! `bench load tcp|udp|rr|…` is a client that makes one measurement and prints one
//! [`Figures`] as JSON. What goes over the wire can be told from anything else: every
//! byte is checked by the receiver ([`pattern`]), and a stream that ends early, a
//! lost reply or a wrong byte is an error, not a smaller figure. Figures of transfer
//! are taken by the receiver, between the first byte and the last, so that what
//! lies in a buffer when the sender is done counts only once it has arrived.

mod bulk;
mod dns;
mod idle;
pub(crate) mod link;
pub(crate) mod pattern;
mod server;
mod small;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use tests::say;

use crate::stats::percentile;

/// Where the server listens.
pub(crate) mod port {
    /// TCP: transfers, and control of those over UDP.
    pub(crate) const BULK: u16 = 7001;
    /// TCP: what is sent comes back.
    pub(crate) const ECHO: u16 = 7002;
    /// TCP: one request, one reply, and the server closes.
    pub(crate) const ONE_SHOT: u16 = 7003;
    /// TCP: HTTP/1.1 with keep-alive.
    pub(crate) const HTTP: u16 = 7004;
    /// UDP: transfers; round trips.
    pub(crate) const UDP: u16 = 7005;
    /// UDP: transfers of several datagrams by one call.
    pub(crate) const UDP_TOGETHER: u16 = 7006;
}

/// Clients, and the server.
#[derive(Debug, Subcommand)]
pub(crate) enum Load {
    /// Answers until its standard input closes; prints `ready`.
    Serve,
    /// A transfer over TCP.
    Tcp(Tcp),
    /// A transfer over UDP, as fast as the sender can.
    Udp(Udp),
    /// Round trips, one after the other on each connection.
    Rr(Small),
    /// Round trips over UDP.
    UdpRr(Small),
    /// Connections: connect, one request, one reply, close.
    Connections(Small),
    /// GET requests over connections that stay.
    Http(Small),
    /// Questions for an address, over UDP.
    Dns(dns::Dns),
    /// A long and lossy cable to another network namespace.
    Link(link::Link),
    /// Connections that do nothing: prints `open N`, waits for a line on its
    /// standard input, and then uses each of them once.
    Idle(idle::Idle),
}

/// Who to talk to, and for how long.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct To {
    /// Address of the server.
    pub(crate) address: IpAddr,
    /// Added to the server's ports: published ports are other numbers.
    #[arg(long, default_value_t = 0)]
    pub(crate) shift: u16,
    /// Milliseconds of sending.
    #[arg(long, default_value_t = 1000)]
    pub(crate) ms: u32,
}

impl To {
    fn port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port + self.shift)
    }

    fn time(self) -> Duration {
        Duration::from_millis(self.ms.into())
    }
}

/// Which way a transfer goes, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// A transfer over TCP.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Tcp {
    #[command(flatten)]
    to: To,
    direction: Direction,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    streams: u16,
}

/// A transfer over UDP.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Udp {
    #[command(flatten)]
    to: To,
    direction: Direction,
    /// Bytes of a datagram, after the UDP header.
    #[arg(long, value_parser = clap::value_parser!(u32).range(pattern::DATAGRAM_HEADER as i64..=65_000))]
    size: u32,
    /// Send and receive several by one call (UDP_SEGMENT, UDP_GRO).
    #[arg(long)]
    together: bool,
}

/// Requests and replies.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Small {
    #[command(flatten)]
    to: To,
    /// Connections at once, a thread each.
    #[arg(long, default_value_t = 1)]
    streams: u16,
}

/// What a client found out. Only those fields are set that its kind has.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Figures {
    /// Seconds from the first to the last byte, or of the whole measurement.
    pub(crate) seconds: f64,
    /// Bytes received, all checked.
    pub(crate) bytes: u64,
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Datagrams received, once each.
    pub(crate) received: u64,
    /// Operations done.
    pub(crate) operations: u64,
    /// Operations that failed, and were not done again.
    pub(crate) errors: u64,
    /// What the first of these said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_error: Option<String>,
    /// Time of an operation, microseconds: percentiles 50, 90, 99, 99.9, 100.
    pub(crate) percentiles_us: Vec<f64>,
}

/// The percentiles of [`Figures::percentiles_us`].
pub(crate) const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 100.0];

impl Figures {
    /// With the percentiles of times in nanoseconds, in any order.
    fn with_times(mut self, mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        self.percentiles_us = PERCENTILES
            .iter()
            .filter_map(|&percent| percentile(&times, percent))
            .map(|ns| ns as f64 / 1e3)
            .collect();
        self
    }
}

/// What came is not what was sent: never a figure, always a failure.
#[derive(Debug)]
struct WrongData(&'static str);

impl std::fmt::Display for WrongData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wrong data: {}", self.0)
    }
}

impl std::error::Error for WrongData {}

/// Runs one of them. Clients print their figures.
///
/// # Errors
/// What made the measurement worthless: a wrong byte, a stream cut short.
pub(crate) fn run(load: &Load) -> Result<()> {
    let figures = match load {
        Load::Serve => return server::serve(),
        Load::Link(args) => return link::carry(*args),
        Load::Tcp(args) => bulk::client(*args)?,
        Load::Udp(args) => udp::client(*args)?,
        Load::Rr(args) => small::round_trips(*args)?,
        Load::UdpRr(args) => small::udp_round_trips(*args)?,
        Load::Connections(args) => small::connections(*args)?,
        Load::Http(args) => small::http(*args)?,
        Load::Dns(args) => dns::client(*args)?,
        Load::Idle(args) => idle::client(*args)?,
    };
    say!("{}", serde_json::to_string(&figures).context("figures as JSON")?)?;
    Ok(())
}

/// Nanoseconds on the clock that every process of a machine shares:
/// `CLOCK_MONOTONIC`.
fn now_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Runs `work` on threads, one a stream, and gives all results.
///
/// # Errors
/// The first thread's that failed.
fn on_threads<T: Send>(
    count: u16,
    work: impl Fn(u16) -> Result<T> + Send + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .collect()
    })
}
