//! Control groups, bounds of processes, and what containers use.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::clock::Deadline;
use tests::command::Cmd;
use tests::harness::{Test, World, skip};

use super::LIMIT;
use super::states::about;
use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle/pause", pause).each_user().lab(),
    Test::new("lifecycle/commit-pauses", commit_pauses).each_user().lab().seconds(120),
    Test::new("lifecycle/group-after-a-crash", after_a_crash).lab(),
    Test::new("lifecycle/limits-memory", |world| limit(world, "memory")).lab(),
    Test::new("lifecycle/limits-pids", |world| limit(world, "pids")).lab(),
    Test::new("lifecycle/limits-cpu", |world| limit(world, "cpu")).lab(),
    Test::new("lifecycle/nothing-delegated", nothing_delegated).each_user(),
    Test::new("lifecycle/ulimit-and-init", ulimit_and_init).each_user(),
    Test::new("lifecycle/top-and-stats", top_and_stats).each_user(),
    Test::new("lifecycle/logs-options", logs_options).each_user(),
];

const GROUP: &str = "/sys/fs/cgroup/coracle-e2e";

/// A group that is the user's, and is gone afterwards.
struct Delegated;

impl Delegated {
    fn make(world: &World<'_>) -> Result<Self> {
        let script = "set -e; mkdir -p $0/shell; chown $1:$2 $0 $0/cgroup.procs \
                      $0/cgroup.subtree_control $0/shell $0/shell/cgroup.procs; \
                      for c in memory pids cpu; do echo +$c >$0/../cgroup.subtree_control; done \
                      2>/dev/null || true";
        let (uid, gid) = (world.user.uid.to_string(), world.user.gid.to_string());
        Cmd::new("sh").args(["-c", script, GROUP, &uid, &gid]).run()?.ok()?;
        Ok(Self)
    }

    fn coracle(&self, world: &World<'_>, words: &[&str]) -> Cmd {
        let script = "echo $$ >$0/shell/cgroup.procs; uid=$1 gid=$2; shift 2; \
                      exec setpriv --reuid $uid --regid $gid --clear-groups \"$@\"";
        let (uid, gid) = (world.user.uid.to_string(), world.user.gid.to_string());
        Cmd::new("sh")
            .args(["-c", script, GROUP, &uid, &gid])
            .arg(world.lab.bin.join("coracle"))
            .args(words)
            .env("HOME", &world.user.home)
            .env("XDG_RUNTIME_DIR", &world.user.runtime_dir)
            .dir(world.dir())
            .limit(LIMIT)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // What stays is told by the test itself.
        std::fs::remove_dir(format!("{GROUP}/shell")).ok();
        std::fs::remove_dir(GROUP).ok();
    }
}

fn group_of(world: &World<'_>, name: &str) -> Result<PathBuf> {
    let of = about(world, name)?;
    let path = of["State"]["CgroupPath"].as_str().map(PathBuf::from);
    path.with_context(|| format!("no control group: {of:#}"))
}

fn pause(world: &World<'_>) -> Result<()> {
    let delegated = Delegated::make(world)?;
    let coracle = |words: &[&str]| delegated.coracle(world, words);
    let script = "trap 'exit 6' TERM; while :; do echo tick; sleep 0.05; done";
    let words = ["run", "-d", "--name", "p", "--network", "none", "--", "sh", "-c", script];
    coracle(&words).run()?.ok()?;
    let group = group_of(world, "p")?;
    ensure!(group.ends_with("coracle-p") && group.starts_with(GROUP), "{}", group.display());
    // What exec starts is in it, too; inside, it is the root.
    let shown =
        coracle(&["exec", "p", "--", "cat", "/proc/self/cgroup", "/proc/1/cgroup"]).run()?;
    let shown = shown.ok()?;
    let groups: Vec<_> = shown.stdout.lines().filter(|line| line.starts_with("0::")).collect();
    ensure!(groups == ["0::/", "0::/"], "{}", shown.describe());

    coracle(&["pause", "p"]).run()?.ok()?.stdout_is("p")?;
    let events = std::fs::read_to_string(group.join("cgroup.events"))?;
    ensure!(events.contains("frozen 1"), "{events}");
    coracle(&["ps"]).run()?.ok()?.stdout_has("(Paused)")?;
    ensure!(about(world, "p")?["State"]["Status"] == "paused");
    coracle(&["pause", "p"]).run()?.fails_with(1, "already paused")?;
    coracle(&["exec", "p", "--", "true"]).run()?.fails_with(125, "unpause")?;
    coracle(&["unpause", "p"]).run()?.ok()?;
    coracle(&["unpause", "p"]).run()?.fails_with(1, "not paused")?;
    let before = coracle(&["logs", "p"]).run()?.ok()?.stdout.lines().count();
    let follow = coracle(&["logs", "-f", "p"]).spawn()?;
    follow.stdout_until(&"tick\n".repeat(before + 1), LIMIT)?;
    // A paused one can be stopped, in order, and killed.
    coracle(&["pause", "p"]).run()?.ok()?;
    coracle(&["stop", "p"]).run()?.ok()?;
    follow.wait(LIMIT)?.ok()?;
    coracle(&["wait", "p"]).run()?.ok()?.stdout_is("6")?;
    ensure!(!group.exists(), "{} is left", group.display());
    coracle(&["start", "p"]).run()?.ok()?;
    coracle(&["pause", "p"]).run()?.ok()?;
    coracle(&["rm", "-f", "p"]).run()?.ok()?;
    ensure!(!group.exists(), "{} is left", group.display());
    coracle(&["pause", "p"]).run()?.fails_with(1, "p")?;
    Ok(())
}

/// What an image has was so at one moment; and the container goes on, whatever becomes of
/// the command.
fn commit_pauses(world: &World<'_>) -> Result<()> {
    let delegated = Delegated::make(world)?;
    let root = busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    let data = world.dir().join("data");
    let coracle = |words: &[&str]| delegated.coracle(world, words).env("XDG_DATA_HOME", &data);
    // Between the first file and the last there is much to be read.
    let script = "busybox dd if=/dev/urandom of=/m bs=1M count=40 2>/dev/null; echo up; \
                  while :; do echo x >>/a; echo x >>/z; busybox usleep 1000; done";
    let words = ["run", "-d", "--name", "c", "--network", "none", "--rootfs", root];
    coracle(&[&words[..], &["sh", "-c", script]].concat()).run()?.ok()?;
    let checked = (|| {
        let follow = coracle(&["logs", "-f", "c"]).spawn()?;
        follow.stdout_until("up\n", LIMIT)?;
        let inspected = coracle(&["inspect", "c"]).run()?.ok()?;
        let all: serde_json::Value = serde_json::from_str(&inspected.stdout)?;
        let group = all[0]["State"]["CgroupPath"].as_str().context("no control group")?;
        let frozen = || -> Result<bool> {
            let events = std::fs::read_to_string(format!("{group}/cgroup.events"))?;
            Ok(events.contains("frozen 1"))
        };
        coracle(&["commit", "-q", "c", "made"]).run()?.ok()?;
        ensure!(!frozen()?, "it is still paused");
        let count = ["run", "--rm", "--network", "none", "made", "sh", "-c"];
        let count = [&count[..], &["busybox wc -l </a; busybox wc -l </z"]].concat();
        let counted = coracle(&count).run()?.ok()?;
        let lines: Vec<i64> = counted.stdout.lines().flat_map(str::parse).collect();
        ensure!(lines.len() == 2 && (0..=1).contains(&(lines[0] - lines[1])), "{lines:?}");
        // Who pauses it in the middle finds it paused in the end, and who has it go on has
        // that after. (The commit stands at the list of images for so long.)
        let list = std::fs::File::open(data.join("coracle/images/index.lock"))?;
        let group_dir = std::fs::File::open(group)?;
        for (words, stays) in [
            (["pause", "c"], true),
            (["unpause", "c"], false),
            (["pause", "--all"], true),
            (["unpause", "--all"], false),
        ] {
            list.lock()?;
            let commit = coracle(&["commit", "-q", "c", "made"]).spawn()?;
            while !(frozen()? && is_waited_for(&list)?) {
                ensure!(!commit.ends_within(Duration::ZERO)?, "it never stood still");
            }
            let other = coracle(&words).spawn()?;
            while !is_waited_for(&group_dir)? {
                ensure!(!other.ends_within(Duration::ZERO)?, "{words:?} does not wait");
            }
            list.unlock()?;
            commit.wait(LIMIT)?.ok()?;
            other.wait(LIMIT)?.ok()?.stdout_is("c")?;
            ensure!(frozen()? == stays, "after {words:?} it is not so");
        }
        // A commit alone had it stand still: there is nothing to be undone, and nothing wrong.
        list.lock()?;
        let commit = coracle(&["commit", "-q", "c", "made"]).spawn()?;
        while !(frozen()? && is_waited_for(&list)?) {
            ensure!(!commit.ends_within(Duration::ZERO)?, "it never stood still");
        }
        let other = coracle(&["unpause", "--all"]).spawn()?;
        while !is_waited_for(&group_dir)? {
            ensure!(!other.ends_within(Duration::ZERO)?, "unpause does not wait");
        }
        list.unlock()?;
        commit.wait(LIMIT)?.ok()?;
        other.wait(LIMIT)?.ok()?.stdout_is("")?;
        ensure!(!frozen()?, "it stays paused");
        // Killed in the middle, it leaves nobody behind.
        let running = coracle(&["commit", "-q", "c", "never"]).spawn()?;
        while !frozen()? {
            ensure!(!running.ends_within(Duration::ZERO)?, "it never paused");
        }
        running.signal(9)?;
        let deadline = Deadline::after(LIMIT);
        while frozen()? {
            ensure!(!deadline.passed(), "it stays paused");
        }
        drop(running);
        coracle(&["exec", "c", "true"]).run()?.ok()?;
        coracle(&["commit", "-q", "--pause=false", "c", "other"]).run()?.ok()?;
        // One that was paused before stays so.
        coracle(&["pause", "c"]).run()?.ok()?;
        coracle(&["commit", "-q", "c", "made"]).run()?.ok()?;
        ensure!(frozen()?, "it goes on");
        Ok(())
    })();
    coracle(&["rm", "-f", "c"]).run()?.ok()?;
    checked
}

/// Whether anybody waits for the lock of a file (proc_locks(5)).
fn is_waited_for(file: &std::fs::File) -> Result<bool> {
    let inode = format!(":{}", file.metadata()?.ino());
    let locks = std::fs::read_to_string("/proc/locks")?;
    // `1: -> FLOCK ADVISORY WRITE PID DEVICE:INODE …`
    let mut locks = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(locks.any(|words| words.get(1) == Some(&"->") && words.iter().any(|w| w.ends_with(&inode))))
}

fn after_a_crash(world: &World<'_>) -> Result<()> {
    let delegated = Delegated::make(world)?;
    let words = ["run", "-d", "--name", "c", "--network", "none", "--", "sleep", "1000"];
    delegated.coracle(world, &words).run()?.ok()?;
    let group = group_of(world, "c")?;
    let monitor = about(world, "c")?["State"]["MonitorPid"].to_string();
    world.cmd("kill").args(["-9", &monitor]).run()?.ok()?;
    world.coracle(&["wait", "c"]).run()?.fails_with(1, "monitor was killed")?;
    let words = ["run", "--rm", "--network", "none", "--", "true"];
    delegated.coracle(world, &words).run()?.ok()?;
    world.coracle(&["rm", "c"]).run()?.ok()?;
    ensure!(!group.exists(), "{} is left", group.display());
    Ok(())
}

fn limit(world: &World<'_>, controller: &str) -> Result<()> {
    let there = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    if !there.split_whitespace().any(|name| name == controller) {
        return Err(skip(format!("the controller {controller} is not one of version 2 here")));
    }
    let delegated = Delegated::make(world)?;
    let (option, value, file, wanted) = match controller {
        "memory" => ("--memory", "64m", "memory.max", "67108864"),
        "pids" => ("--pids-limit", "9", "pids.max", "9"),
        _ => ("--cpus", "0.5", "cpu.max", "50000 100000"),
    };
    let words = ["run", "-d", "--name", "l", option, value, "--network", "none"];
    let words = [&words[..], &["--", "sleep", "1000"]].concat();
    let run = delegated.coracle(world, &words).run()?.ok()?;
    let written = group_of(world, "l").and_then(|group| {
        std::fs::read_to_string(group.join(file)).context("the group has no such file")
    });
    world.coracle(&["rm", "-f", "l"]).limit(LIMIT).run()?.ok()?;
    ensure!(!run.stderr.contains("without effect"), "{}", run.describe());
    ensure!(written?.trim() == wanted, "{file} is not {wanted}");
    Ok(())
}

fn nothing_delegated(world: &World<'_>) -> Result<()> {
    let words =
        ["run", "--name", "n", "-m", "64m", "--cpus", "1", "--network", "none", "--", "true"];
    let run = world.coracle(&words).run()?.ok()?;
    let warnings: Vec<_> = run.stderr.lines().filter(|line| line.contains("warning")).collect();
    ensure!(
        warnings.len() == 1 && warnings[0].contains("--memory, --cpus without effect"),
        "{}",
        run.describe()
    );
    world.coracle(&["pause", "n"]).run()?.fails_with(1, "not running")?;
    world.coracle(&["rm", "n"]).run()?.ok()?;
    let words = ["run", "-d", "--name", "n", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let pause = world.coracle(&["pause", "n"]).run()?;
    world.coracle(&["rm", "-f", "n"]).limit(LIMIT).run()?.ok()?;
    pause.fails_with(1, "Delegate=yes")?;
    for (words, part) in [
        (&["run", "--cpus", "none", "--", "true"][..], "none"),
        (&["run", "--memory", "lots", "--", "true"], "lots"),
        (&["run", "--pids-limit", "x", "--", "true"], "x"),
        (&["run", "--ulimit", "files=1", "--", "true"], "files"),
        (&["run", "--ulimit", "nofile=2:1", "--", "true"], "nofile=2:1"),
    ] {
        world.coracle(words).run()?.fails_with(125, part)?;
    }
    Ok(())
}

fn ulimit_and_init(world: &World<'_>) -> Result<()> {
    let run = |words: &[&str]| {
        let words = [&["run", "--rm", "--network", "none"], words].concat();
        world.coracle(&words).limit(LIMIT).run()
    };
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c";
    let words = ["--ulimit", "nofile=100:200", "--ulimit", "core=0", "--", "sh", "-c", script];
    run(&words)?.ok()?.stdout_is("100\n200\n0")?;
    let far = ["--ulimit", "nofile=99999999999", "--", "true"];
    run(&far)?.fails_with(125, "hard limit")?;
    // With --no-init the program is the first process; its exit code and failures are as ever.
    run(&["--no-init", "--", "sh", "-c", "echo $$; exit 7"])?.code_is(7)?.stdout_is("1")?;
    run(&["--", "sh", "-c", "[ $$ != 1 ]; cat /proc/1/comm"])?.ok()?.stdout_is("coracle-init")?;
    run(&["--no-init", "--", "/no/such"])?.code_is(127)?;
    run(&["--no-init", "-t", "--", "sh", "-c", "tty; exit 3"])?.code_is(3)?.stdout_has("pts")?;
    let words = ["run", "-d", "--no-init", "--name", "f", "--network", "none", "--", "sh", "-c"];
    let words =
        [&words[..], &["trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done"]].concat();
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["logs", "-f", "f"]).spawn()?.stdout_until("up\n", LIMIT)?;
    world.coracle(&["stop", "f"]).limit(LIMIT).run()?.ok()?;
    world.coracle(&["wait", "f"]).run()?.ok()?.stdout_is("4")?;
    world.coracle(&["rm", "f"]).run()?.ok()?;
    Ok(())
}

fn top_and_stats(world: &World<'_>) -> Result<()> {
    let words =
        ["run", "-d", "--name", "t", "--network", "none", "--", "sh", "-c", "sleep 1000; :"];
    world.coracle(&words).run()?.ok()?;
    let of = about(world, "t")?;
    let pid = &of["State"]["Pid"];
    let deadline = tests::clock::Deadline::after(LIMIT);
    let tasks = loop {
        let top = world.coracle(&["top", "--format", "json", "t"]).run()?.ok()?;
        let tasks: Vec<serde_json::Value> = serde_json::from_str(&top.stdout)?;
        if tasks.iter().any(|task| task["command"] == "sleep 1000") {
            break tasks;
        }
        ensure!(!deadline.passed(), "{}", top.describe());
    };
    ensure!(tasks[0]["pid"] == 1 && &tasks[0]["host_pid"] == pid, "{tasks:?}");
    let sleep = tasks.iter().find(|task| task["command"] == "sleep 1000").context("no sleep")?;
    let shell = tasks.iter().find(|task| task["pid"] == sleep["parent"]).context("no shell")?;
    ensure!(shell["command"] == "sh -c sleep 1000; :" && shell["parent"] == 1, "{tasks:?}");
    ensure!(sleep["user"] == 0, "{tasks:?}");
    world.coracle(&["top", "t"]).run()?.ok()?.stdout_has("HPID")?.stdout_has("sleep 1000")?;

    let stats = world.coracle(&["stats", "--no-stream", "--format", "json"]).run()?.ok()?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stats.stdout)?;
    ensure!(rows.len() == 1 && rows[0]["name"] == "t", "{}", stats.describe());
    ensure!(rows[0]["memory"].as_u64() > Some(4096), "{}", stats.describe());
    ensure!(rows[0]["pids"].as_u64() >= Some(3), "{}", stats.describe());
    let streaming = world.coracle(&["stats", "-i", "1", "t"]).spawn()?;
    // It ends with the container.
    streaming.stdout_until("MEM USAGE", LIMIT)?;
    world.coracle(&["rm", "-f", "t"]).limit(LIMIT).run()?.ok()?;
    streaming.wait(LIMIT)?.ok()?;
    world.coracle(&["top", "t"]).run()?.fails_with(1, "t")?;
    world.coracle(&["stats", "--no-stream", "t"]).run()?.fails_with(1, "t")?;
    Ok(())
}

fn logs_options(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--name", "l", "--network", "none", "--", "seq", "100"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["wait", "l"]).limit(LIMIT).run()?.ok()?;
    world.coracle(&["logs", "--tail", "3", "l"]).run()?.ok()?.stdout_is("98\n99\n100")?;
    world.coracle(&["logs", "--tail", "0", "l"]).run()?.ok()?.stdout_is("")?;
    let all = world.coracle(&["logs", "--since", "1d", "l"]).run()?.ok()?;
    ensure!(all.stdout.lines().count() == 100, "{}", all.describe());
    world.coracle(&["logs", "--since", "9999-12-31", "l"]).run()?.ok()?.stdout_is("")?;
    let stamped = world.coracle(&["logs", "-t", "-n", "1", "l"]).run()?.ok()?;
    let (time, rest) = stamped.stdout.trim().split_once(' ').context("no time")?;
    ensure!(rest == "100" && time.ends_with('Z') && time > "2020", "{}", stamped.describe());
    world.coracle(&["logs", "--since", "yesterday", "l"]).run()?.fails_with(125, "yesterday")?;
    world.coracle(&["rm", "l"]).run()?.ok()?;
    Ok(())
}
