//! Connections that do nothing, and are still there afterwards.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tests::say;

use super::{Figures, To, WrongData, now_ns, on_threads, port};

/// How long one may take to connect, and to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Threads that open them.
const THREADS: u16 = 8;

/// Connections that do nothing.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    to: To,
    /// How many.
    #[arg(long)]
    connections: u32,
    /// Seconds in which all must be open.
    #[arg(long)]
    within: u64,
}

/// Opens them, using each once; prints `open N`; waits for a line; uses each again.
///
/// # Errors
/// When one cannot be opened or does not answer.
pub(super) fn client(args: Idle) -> Result<Figures> {
    let to = args.to.port(port::ECHO);
    let share = args.connections.div_ceil(THREADS.into());
    let begin = now_ns();
    let end = begin + args.within * 1_000_000_000;
    let open = AtomicU32::new(0);
    let flows = on_threads(THREADS, |thread| {
        let first = u32::from(thread) * share;
        let last = (first + share).min(args.connections);
        (first..last)
            .map(|number| {
                let opened = || -> Result<TcpStream> {
                    ensure!(now_ns() < end, "{} s are over", args.within);
                    let stream =
                        TcpStream::connect_timeout(&to, LIMIT).context("cannot connect")?;
                    stream.set_read_timeout(Some(LIMIT))?;
                    touch(&stream, number)?;
                    open.fetch_add(1, Ordering::Relaxed);
                    Ok(stream)
                };
                opened().with_context(|| {
                    let open = open.load(Ordering::Relaxed);
                    format!("only {open} of {} connections are open", args.connections)
                })
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let seconds = (now_ns() - begin) as f64 / 1e9;
    say!("open {}", args.connections)?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    for (number, stream) in (0..).zip(flows.iter().flatten()) {
        touch(stream, number).with_context(|| format!("connection {number}, after it was idle"))?;
    }
    Ok(Figures { seconds, operations: args.connections.into(), ..Figures::default() })
}

fn touch(mut stream: &TcpStream, number: u32) -> Result<()> {
    let message = number.to_le_bytes();
    stream.write_all(&message)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).context("no reply")?;
    ensure!(reply == message, WrongData("the reply is not what was sent"));
    Ok(())
}
