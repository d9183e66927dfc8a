//! Mixed traffic for some time: whatever was opened goes, and nothing grows.
//!
//! `CORACLE_SOAK_SECONDS` says for how long. From [`LONG`] on the expiry of UDP flows
//! (180 s, RFC 4787) is waited for as well; a shorter run leaves them aside.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tests::clock::Deadline;
use tests::harness::{Test, World, amount};
use tests::lab::Outside;

use crate::slirp::{Guest, LIMIT, start};

pub(crate) const TESTS: &[Test] = &[Test::new("soak/network", network).lab().seconds(3600)];

const SCRIPT: &str = include_str!("soak.py");
const PUBLISHED: &str = "127.0.0.1:18087";
/// Seconds from which a run is a long one.
const LONG: u64 = 600;

/// What must be the same before and after.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Descriptors, those of UDP flows left aside.
    fds: usize,
    /// Resident memory, in KiB.
    resident: usize,
}

fn network(world: &World<'_>) -> Result<()> {
    let seconds = amount("CORACLE_SOAK_SECONDS", 8)?;
    world.write("soak.py", SCRIPT)?;
    let guest = Guest::start(world)?;
    let metrics = world.dir().join("metrics");
    let (path, pid) = (metrics.display().to_string(), guest.pid());
    let options = ["--enable-sandbox", "--enable-seccomp", "--metrics", &path];
    let publish = ["-p", "127.0.0.1:18087:8080/tcp"];
    let options: Vec<&str> =
        options.iter().chain(&publish).chain(&["-c", "-6", &pid, "tap0"]).copied().collect();
    let net = start(world, &options)?;
    let process = net.running.pid();

    // The first round fills what is kept for ever: memory of the allocator, caches.
    traffic(world, &guest, 1, (seconds / 4).max(3))?;
    let before = settle(process, &metrics, seconds)?;
    traffic(world, &guest, 2, seconds)?;
    let after = settle(process, &metrics, seconds)?;
    println!("soak: {seconds} s, before {before:?}, after {after:?}");
    ensure!(after.fds == before.fds, "descriptors: {before:?}, then {after:?}");
    // A leak grows with the time; half again is what peaks that fall together cost.
    ensure!(
        after.resident <= before.resident + before.resident / 2,
        "memory: {before:?}, then {after:?}"
    );
    net.stop()
}

/// One round, with connections to the guest beside it.
fn traffic(world: &World<'_>, guest: &Guest, seed: u64, seconds: u64) -> Result<()> {
    let script = format!(
        "exec python3 -u soak.py {seed} {seconds} {} {} {} 10.0.2.3",
        Outside::V4,
        Outside::V6,
        Outside::NAME
    );
    let limit = Duration::from_secs(seconds + 600);
    let mut client = guest.cmd(world, &script).limit(limit).stdin_open().spawn()?;
    client.stdout_until("up\n", LIMIT)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let published = scope.spawn(|| {
            let mut turns = 0_u32;
            while !over.load(Ordering::Relaxed) {
                connect(turns).with_context(|| format!("connection {turns} to the guest"))?;
                turns += 1;
            }
            anyhow::Ok(turns)
        });
        // The guest's server stays until nobody connects any more.
        let told = client.stdout_until("}\n", limit);
        over.store(true, Ordering::Relaxed);
        let turns = published.join().map_err(|_| anyhow!("the client of the port panicked"))??;
        println!("soak: {turns} connections to the guest");
        ensure!(turns > 10, "only {turns} connections to the guest");
        told
    })?;
    client.close_stdin();
    let output = client.wait(limit)?.ok()?;
    println!("soak: {}", output.stdout.trim());
    Ok(())
}

/// One connection to the published port: ended in order, or with data on its way.
fn connect(turn: u32) -> Result<()> {
    let at: SocketAddr = PUBLISHED.parse()?;
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT * 10))?;
    let data = vec![turn as u8; 1 + (turn as usize * 7919) % 50_000];
    stream.write_all(&data)?;
    if turn.is_multiple_of(3) {
        return Ok(());
    }
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(back == data, "{} bytes of {} came back", back.len(), data.len());
    Ok(())
}

/// Waits until no flow is left; in a short run, no flow but UDP's.
fn settle(process: i32, metrics: &Path, seconds: u64) -> Result<State> {
    let deadline = Deadline::after(Duration::from_secs(400));
    loop {
        let text = ask(metrics)?;
        let mut left = 0;
        for protocol in ["tcp", "icmp", "dns"] {
            left += flows(&text, protocol)?;
        }
        let udp = flows(&text, "udp")?;
        if left == 0 && (udp == 0 || seconds < LONG) {
            let fds = std::fs::read_dir(format!("/proc/{process}/fd"))?.count();
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let resident = resident.context("VmRSS")?.trim().trim_end_matches(" kB").parse()?;
            return Ok(State { fds: fds - udp, resident });
        }
        ensure!(!deadline.passed(), "flows are left:\n{text}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "timers end flows: nothing tells when")]
fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}

fn ask(metrics: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(metrics)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn flows(text: &str, protocol: &str) -> Result<usize> {
    let name = format!("netstack_flows{{protocol=\"{protocol}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.with_context(|| format!("no {name} in\n{text}"))?.parse().context("a value")
}
