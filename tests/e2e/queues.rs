//! Devices of several queues, each with a thread of netstack's; how the guest fills them.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use tests::harness::{Test, World, skip};
use tests::lab::Outside;
use tests::servers::HELLO;

use crate::slirp::{Guest, LIMIT, start, start_with};

pub(crate) const TESTS: &[Test] = &[
    Test::new("queues/run", run).each_user().lab(),
    Test::new("queues/run-with-one-processor", one_processor).each_user().lab(),
    Test::new("queues/passed-in", passed_in).lab(),
    Test::new("queues/not-of-one-device", not_of_one_device).lab(),
    Test::new("queues/congestion-control", congestion_control).lab(),
];

/// In the container: how many queues tap0 has, its queueing discipline, and what comes
/// over as many connections at once as go through all of them.
fn script() -> String {
    format!(
        "ls -d /sys/class/net/tap0/queues/tx-* | wc -l; ip link show tap0; \
         cat /proc/sys/net/ipv4/tcp_congestion_control; \
         for i in $(seq 12); do curl -sSf -m 20 http://{}/hello & \
         curl -sSf -m 20 http://[{}]/hello & done; wait; echo over; cat",
        Outside::V4,
        Outside::V6,
    )
}

/// Starts a container, asks about its network, and gives how many queues it has and how
/// many threads serve them.
fn ask(world: &World<'_>, command: tests::command::Cmd) -> Result<(usize, usize)> {
    let before = services(world)?;
    let mut running = command.stdin_open().spawn()?;
    let told = running.stdout_until("over\n", LIMIT)?;
    let mut own = services(world)?;
    own.retain(|pid| !before.contains(pid));
    // Beside it there is only its reader, which has one thread and no queue.
    let mut threads = Vec::new();
    for pid in &own {
        let names = std::fs::read_dir(format!("/proc/{pid}/task"))?
            .map(|task| Ok(std::fs::read_to_string(task?.path().join("comm"))?))
            .collect::<Result<Vec<_>>>()?;
        threads.push(names.len());
    }
    let threads = threads.into_iter().max().context("no netstack is there")?;
    running.close_stdin();
    let output = running.wait(LIMIT)?.ok()?;
    let queues = told.lines().next().context("no count")?.trim().parse()?;
    ensure!(told.contains("qdisc noqueue"), "{}", output.describe());
    ensure!(!told.contains("bbr"), "the container paces what it sends: {}", output.describe());
    ensure!(told.matches(HELLO.trim()).count() == 24, "{}", output.describe());
    Ok((queues, threads))
}

/// The netstack processes of this lab.
fn services(world: &World<'_>) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for pid in world.lab.processes() {
        // One that has just ended has no name.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "netstack" {
            found.push(pid);
        }
    }
    Ok(found)
}

fn run(world: &World<'_>) -> Result<()> {
    let command = world.coracle(&["run", "--rm", "-i", "--", "sh", "-c", &script()]);
    let (queues, threads) = ask(world, command)?;
    let wanted = std::thread::available_parallelism()?.get().min(4);
    ensure!(queues == wanted && threads == wanted, "{queues}, {threads}, not {wanted}");
    Ok(())
}

fn one_processor(world: &World<'_>) -> Result<()> {
    let command = world.cmd("taskset").args(["-c", "0"]).arg(world.lab.bin.join("coracle")).args([
        "run",
        "--rm",
        "-i",
        "--",
        "sh",
        "-c",
        &script(),
    ]);
    let (queues, threads) = ask(world, command)?;
    ensure!(queues == 1 && threads == 1, "{queues} queues, {threads} threads");
    Ok(())
}

fn words(queues: &[OwnedFd]) -> Vec<String> {
    queues.iter().flat_map(|fd| ["--tap-fd".to_owned(), fd.as_raw_fd().to_string()]).collect()
}

fn passed_in(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let queues = vec![
        guest.tap("tap3", libc::IFF_MULTI_QUEUE)?,
        guest.tap("tap3", libc::IFF_MULTI_QUEUE)?,
        guest.tap("tap3", libc::IFF_MULTI_QUEUE)?,
    ];
    let words = words(&queues);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let net = start_with(world.ours("netstack"), &words, queues, || Ok(()))?;
    let threads = std::fs::read_dir(format!("/proc/{}/task", net.running.pid()))?.count();
    ensure!(threads == 3, "{threads} threads for three queues");
    let script = format!(
        "ip link set tap3 up && ip addr add 10.0.2.100/24 dev tap3 && \
         ip route add default via 10.0.2.2 && \
         for i in $(seq 24); do curl -sSf -m 20 http://{}/hello & done; wait",
        Outside::V4
    );
    let output = guest.cmd(world, &script).run()?.ok()?;
    ensure!(output.stdout.matches(HELLO.trim()).count() == 24, "{}", output.describe());
    net.stop()
}

fn not_of_one_device(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let many = libc::IFF_MULTI_QUEUE;
    let refused = |queues: Vec<OwnedFd>, why: &str| -> Result<()> {
        let mut command = world.ours("netstack").args(words(&queues));
        for fd in queues {
            command = command.inherit(fd);
        }
        command.run()?.fails_with(1, why)?;
        Ok(())
    };
    refused(vec![guest.tap("tap3", many)?, guest.tap("tap4", many)?], "same device")?;
    refused(vec![guest.tap("tap3", 0)?, guest.tap("tap4", 0)?], "IFF_MULTI_QUEUE")?;
    let null = std::fs::File::open("/dev/null")?;
    refused(vec![guest.tap("tap3", many)?, null.into()], "not a TAP device")?;
    // Of the same name, in another namespace.
    let other = Guest::start(world)?;
    refused(vec![guest.tap("tap3", many)?, other.tap("tap3", many)?], "same device")
}

/// What the guest's connections are paced by: BBR gives way, what somebody has chosen
/// otherwise stays.
fn congestion_control(world: &World<'_>) -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    for (before, after) in [("reno", "reno"), ("bbr", "reno")] {
        let guest = Guest::start(world)?;
        let set = guest.cmd(world, &format!("echo {before} >{path}")).run()?;
        if set.code != 0 {
            return Err(skip(format!("this kernel lets nobody choose {before}")));
        }
        let net = start(world, &["-c", &guest.pid(), "tap0"])?;
        guest.cmd(world, &format!("cat {path}")).run()?.ok()?.stdout_is(after)?;
        net.stop()?;
    }
    // A device that the guest configures itself is none of our affair.
    let guest = Guest::start(world)?;
    guest.cmd(world, &format!("echo bbr >{path}")).run()?.ok()?;
    let net = start(world, &[&guest.pid(), "tap0"])?;
    guest.cmd(world, &format!("cat {path}")).run()?.ok()?.stdout_is("bbr")?;
    net.stop()
}
