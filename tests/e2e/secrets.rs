//! What the container's processes must not know.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::harness::{Test, World};

pub(crate) const TESTS: &[Test] =
    &[Test::new("secrets/environment-of-the-host", environment).each_user().lab()];

const LIMIT: Duration = Duration::from_secs(20);

fn environment(world: &World<'_>) -> Result<()> {
    // Put together here so that the needle is in no command line.
    let marker = format!("{}-{}", "host-secret", 0x5eed_c0de_u32);
    let running = world
        .coracle(&[
            "run",
            "--rm",
            "-i",
            "-e",
            "SHOWN=shown-marker",
            "--",
            "sh",
            "-c",
            "echo up; cat",
        ])
        .env("SECRET_TOKEN", &marker)
        .stdin_open()
        .spawn()?;
    running.stdout_until("up\n", LIMIT)?;

    let own = fs::read_link("/proc/self/ns/pid")?;
    let inside: Vec<i32> = world
        .lab
        .processes()
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != own))
        .collect();
    ensure!(inside.len() >= 2, "only {} processes of the container found", inside.len());
    let mut shown = false;
    for pid in inside {
        let memory = memory_of(pid)?;
        let has = |needle: &str| {
            memory.iter().any(|part| part.windows(needle.len()).any(|at| at == needle.as_bytes()))
        };
        ensure!(
            !has(&marker),
            "the host's environment is in the memory of process {pid}: {}",
            tests::leak::describe(pid)
        );
        shown |= has("shown-marker");
    }
    ensure!(shown, "the search finds nothing: not even the variable asked for");
    running.wait(LIMIT)?.ok()?;
    Ok(())
}

fn memory_of(pid: i32) -> Result<Vec<Vec<u8>>> {
    let mem = File::open(format!("/proc/{pid}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut parts = vec![fs::read(format!("/proc/{pid}/environ"))?];
    for line in maps.lines() {
        let range = line.split(' ').next().unwrap_or_default();
        let (from, to) = range.split_once('-').context("a map without a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if line.contains("[v") || to - from > 256 << 20 {
            // The kernel's own pages; and reservations nobody touched.
            continue;
        }
        let mut part = vec![0; usize::try_from(to - from)?];
        // Guard pages cannot be read; nothing can be in them either.
        if mem.read_exact_at(&mut part, from).is_ok() {
            parts.push(part);
        }
    }
    Ok(parts)
}
