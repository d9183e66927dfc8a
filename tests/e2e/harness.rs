//! The harness itself: a check that cannot fail would prove nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::clock::Deadline;
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::leak::Snapshot;

pub(crate) const TESTS: &[Test] = &[
    Test::new("harness/leaks-are-seen", leaks_are_seen),
    Test::new("harness/leaked-mounts-are-seen", leaked_mounts_are_seen).lab(),
    Test::new("harness/outside-is-there", outside_is_there).lab(),
    Test::new("harness/orphans-are-reaped", orphans_are_reaped),
];

fn leaks_are_seen(world: &World<'_>) -> Result<()> {
    let before = Snapshot::take(world.lab)?;
    let script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & mkfifo left-behind";
    world.cmd("sh").args(["-c", script]).run()?.ok()?;
    let leaks = before.leaks(world.lab)?.join("\n");
    ensure!(leaks.contains("sleep 1000"), "the process was not seen: {leaks}");
    ensure!(leaks.contains("left-behind"), "the file was not seen: {leaks}");
    let again = before.leaks(world.lab)?.join("\n");
    ensure!(again.is_empty(), "still there: {again}");
    Ok(())
}

fn leaked_mounts_are_seen(world: &World<'_>) -> Result<()> {
    let before = Snapshot::take(world.lab)?;
    let script = "mkdir m && mount -t tmpfs left m";
    tests::command::Cmd::new("sh").args(["-c", script]).dir(world.dir()).run()?.ok()?;
    let leaks = before.leaks(world.lab)?.join("\n");
    ensure!(leaks.contains("tmpfs left"), "the mount was not seen: {leaks}");
    let again = before.leaks(world.lab)?.join("\n");
    ensure!(again.is_empty(), "still there: {again}");
    Ok(())
}

/// Those that nobody waits for go while a test runs; those that it waits for stay its own.
fn orphans_are_reaped(world: &World<'_>) -> Result<()> {
    let child = world.cmd("sh").args(["-c", "exit 3"]).spawn()?;
    ensure!(child.ends_within(Duration::from_secs(20))?, "a shell does not end");
    let script = "setsid true >/dev/null 2>&1 </dev/null & echo $!";
    let orphan = world.cmd("sh").args(["-c", script]).run()?.ok()?;
    let orphan = format!("/proc/{}", orphan.stdout.trim());
    let deadline = Deadline::after(Duration::from_secs(20));
    while std::fs::exists(&orphan)? {
        ensure!(!deadline.passed(), "an orphan stays: {orphan}");
        std::thread::yield_now();
    }
    child.wait(Duration::from_secs(20))?.code_is(3)?;
    Ok(())
}

/// The servers answer on the host: what fails inside fails because of us.
fn outside_is_there(world: &World<'_>) -> Result<()> {
    for url in
        [format!("http://{}/hello", Outside::NAME), format!("http://[{}]/hello", Outside::V6)]
    {
        world.cmd("curl").args(["-sSf", &url]).run()?.ok()?.stdout_is(tests::servers::HELLO)?;
    }
    world.cmd("ping").args(["-c", "1", "-W", "5", Outside::V4]).run()?.ok()?;
    Ok(())
}
