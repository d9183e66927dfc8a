//! iperf3, which others measure with: what it says, and its server.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::command::{Cmd, Running};

use crate::load::Figures;

/// What `iperf3 -J` says the receiver got.
pub(crate) fn figures(json: &str) -> Result<Figures> {
    let value: Value = serde_json::from_str(json).context("iperf3 printed no JSON")?;
    let received = &value["end"]["sum_received"];
    let number = |name: &str| {
        received[name]
            .as_f64()
            .with_context(|| format!("iperf3 says no {name}: {}", value["error"]))
    };
    Ok(Figures {
        seconds: number("seconds")?,
        bytes: number("bytes")? as u64,
        ..Figures::default()
    })
}

/// A server for one test.
pub(crate) fn server(limit: Duration) -> Result<Running> {
    let running = Cmd::new("iperf3").args(["-s", "-1", "--forceflush"]).spawn()?;
    running.stdout_until("Server listening", limit)?;
    Ok(running)
}
