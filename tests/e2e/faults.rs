//! Each process killed: nothing may be left.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::command::Running;
use tests::harness::{Test, World, amount};
use tests::leak::Snapshot;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const TESTS: &[Test] = &[
    Test::new("faults/monitor-killed", monitor).each_user(),
    Test::new("faults/init-killed", init).each_user(),
    Test::new("faults/filesystem-killed", |world| service(world, "overlayfs-fuse")).each_user(),
    Test::new("faults/network-killed", |world| service(world, "netstack")).each_user(),
    Test::new("faults/detached-monitor-killed", detached_monitor),
    Test::new("faults/monitor-killed-early", monitor_early).each_user().seconds(1200),
    Test::new("faults/any-process-killed-early", any_early).each_user().seconds(1200),
];

fn start(world: &World<'_>) -> Result<Running> {
    let script = "echo x >/etc/x; (sleep 1000 &); echo up; exec cat";
    let words = ["run", "--rm", "-i", "-p", "127.0.0.1:18090:80", "--", "sh", "-c", script];
    let running = world.coracle(&words).stdin_open().spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    Ok(running)
}

fn named(world: &World<'_>, name: &str) -> Vec<i32> {
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    world.lab.processes().into_iter().filter(|&pid| comm(pid).trim() == name).collect()
}

/// Processes that are number one of a PID namespace of their own.
fn inits(world: &World<'_>) -> Vec<i32> {
    let is_init = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("NSpid:")).is_some_and(|pids| {
            let pids: Vec<_> = pids.split_whitespace().collect();
            pids.len() > 1 && pids.last() == Some(&"1")
        })
    };
    world.lab.processes().into_iter().filter(|&pid| is_init(pid)).collect()
}

fn kill_hard(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {pid}"))
}

/// The next container's start sweeps what a killed monitor left.
fn sweep(world: &World<'_>) -> Result<()> {
    world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
    let ps = world.coracle(&["ps", "-a"]).run()?.ok()?;
    ensure!(ps.stdout.lines().count() <= 1, "a dead container is listed\n{}", ps.describe());
    Ok(())
}

fn monitor(world: &World<'_>) -> Result<()> {
    let before = Snapshot::take(world.lab)?;
    let running = start(world)?;
    running.signal(Signal::SIGKILL as i32)?;
    running.wait(LIMIT)?.code_is(137)?;
    before.wait_for_processes(world.lab)?;
    sweep(world)
}

fn init(world: &World<'_>) -> Result<()> {
    let running = start(world)?;
    let inits = inits(world);
    ensure!(!inits.is_empty(), "no init found");
    kill_hard(inits[0])?;
    ensure!(running.ends_within(LIMIT)?, "the container goes on without its init");
    let output = running.wait(LIMIT)?;
    ensure!(output.code != 0, "{}", output.describe());
    sweep(world)
}

fn service(world: &World<'_>, name: &str) -> Result<()> {
    let running = start(world)?;
    let found = named(world, name);
    ensure!(!found.is_empty(), "no process named {name}:\n{}", world.lab.processes_in_words());
    for pid in found {
        kill_hard(pid)?;
    }
    // By itself: its standard input stays open until then.
    ensure!(running.ends_within(LIMIT)?, "the container goes on without {name}");
    let output = running.wait(LIMIT)?;
    ensure!(output.code == 125 || output.code == 137, "{}", output.describe());
    ensure!(output.stderr.contains(name), "it does not say what died\n{}", output.describe());
    sweep(world)
}

fn detached_monitor(world: &World<'_>) -> Result<()> {
    let before = Snapshot::take(world.lab)?;
    let words = ["run", "-d", "--rm", "--name", "d", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let monitors: Vec<_> =
        named(world, "coracle").into_iter().filter(|pid| !inits(world).contains(pid)).collect();
    ensure!(!monitors.is_empty(), "no monitor:\n{}", world.lab.processes_in_words());
    // The one whose parent is none of them.
    kill_hard(monitors[0])?;
    before.wait_for_processes(world.lab)?;
    sweep(world)
}

/// xorshift32 (Marsaglia, 2003): the same moments in every run.
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }
}

/// `CORACLE_KILLS=1000` for more.
fn rounds() -> Result<u64> {
    amount("CORACLE_KILLS", 100)
}

fn monitor_early(world: &World<'_>) -> Result<()> {
    let mut random = Random(0x2545_F491);
    for round in 0..rounds()? {
        let before = Snapshot::take(world.lab)?;
        let running = world.coracle(&["run", "--rm", "--", "sleep", "1000"]).spawn()?;
        let delay = Duration::from_micros(random.below(60_000).into());
        ensure!(!running.ends_within(delay)?, "it ended by itself");
        running.signal(Signal::SIGKILL as i32)?;
        running.wait(LIMIT).with_context(|| format!("round {round}, killed after {delay:?}"))?;
        before.wait_for_processes(world.lab)?;
        sweep(world)?;
        let leaks = before.leaks(world.lab)?;
        ensure!(leaks.is_empty(), "killed after {delay:?}: {}", leaks.join("\n    "));
    }
    Ok(())
}

fn any_early(world: &World<'_>) -> Result<()> {
    let mut random = Random(0x1234_5679);
    for _ in 0..rounds()? {
        let before = Snapshot::take(world.lab)?;
        let known = world.lab.processes();
        let running = world.coracle(&["run", "--rm", "--", "sleep", "1000"]).spawn()?;
        let monitor = running.pid();
        let delay = Duration::from_micros(random.below(60_000).into());
        ensure!(!running.ends_within(delay)?, "it ended by itself");
        let new: Vec<i32> = world
            .lab
            .processes()
            .into_iter()
            .filter(|&pid| pid != monitor && !known.contains(&pid))
            .collect();
        let count = u32::try_from(new.len())?;
        let victim = if count == 0 { monitor } else { new[random.below(count) as usize] };
        let who = tests::leak::describe(victim);
        // It may just have ended.
        kill(Pid::from_raw(victim), Signal::SIGKILL).ok();
        // A victim that was not needed any more (a map helper) changes nothing.
        if !running.ends_within(Duration::from_secs(3))? {
            running.signal(Signal::SIGKILL as i32)?;
        }
        let output = running.wait(LIMIT)?;
        ensure!(output.code != 0, "killed after {delay:?}: {who}\n{}", output.describe());
        before.wait_for_processes(world.lab)?;
        sweep(world)?;
        let leaks = before.leaks(world.lab)?;
        ensure!(leaks.is_empty(), "killed after {delay:?}: {who}\n    {}", leaks.join("\n    "));
    }
    Ok(())
}
