//! From one state into the next: create, start, restart, wait, inspect, and
//! what a monitor does by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::Output;
use tests::harness::{Test, World};

use super::LIMIT;

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle/create-start", create_start).each_user(),
    Test::new("lifecycle/start-again", start_again).each_user(),
    Test::new("lifecycle/start-in-front", start_in_front),
    Test::new("lifecycle/wrong-states", wrong_states),
    Test::new("lifecycle/wait", wait).each_user(),
    Test::new("lifecycle/inspect", inspect).each_user(),
    Test::new("lifecycle/restart", restart).each_user(),
    Test::new("lifecycle/restart-policies", policies).each_user(),
    Test::new("lifecycle/restart-policy-and-stop", policy_and_stop).each_user(),
    Test::new("lifecycle/restart-after-a-service-died", after_a_death),
    Test::new("lifecycle/gc", gc).each_user(),
    Test::new("lifecycle/monitor-killed", monitor_killed).each_user(),
];

/// What `inspect` says of a container.
pub(super) fn about(world: &World<'_>, name: &str) -> Result<serde_json::Value> {
    let output = world.coracle(&["inspect", name]).run()?.ok()?;
    let all: serde_json::Value = serde_json::from_str(&output.stdout)?;
    Ok(all[0].clone())
}

/// Waits until `wanted` holds of what `inspect` says.
pub(super) fn until(
    world: &World<'_>,
    name: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> Result<serde_json::Value> {
    let deadline = tests::clock::Deadline::after(LIMIT);
    loop {
        let now = about(world, name)?;
        if wanted(&now) {
            return Ok(now);
        }
        ensure!(!deadline.passed(), "it does not come to that: {now:#}");
    }
}

fn is_listed(world: &World<'_>, name: &str) -> Result<bool> {
    let ps = world.coracle(&["ps", "-a", "-q"]).run()?.ok()?;
    Ok(ps.stdout.lines().any(|line| line == name))
}

fn create_start(world: &World<'_>) -> Result<()> {
    let words = ["create", "--name", "c", "--network", "none", "--", "sh", "-c", "echo ran"];
    world.coracle(&words).run()?.ok()?.stdout_is("c")?;
    // It is there, does not run, and no other start sweeps it away.
    world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
    ensure!(!world.coracle(&["ps"]).run()?.ok()?.stdout.contains('c'), "ps shows it");
    world.coracle(&["ps", "-a"]).run()?.ok()?.stdout_has("Created")?;
    ensure!(about(world, "c")?["State"]["Status"] == "created");
    world.coracle(&["start", "c"]).run()?.ok()?.stdout_is("c")?;
    world.coracle(&["wait", "c"]).limit(LIMIT).run()?.ok()?.stdout_is("0")?;
    world.coracle(&["logs", "c"]).run()?.ok()?.stdout_is("ran")?;
    world.coracle(&["rm", "c"]).run()?.ok()?;

    // One that cannot be executed stays, says why, and can be looked at.
    world.coracle(&["create", "--name", "c", "--network", "none", "--", "/no/such"]).run()?.ok()?;
    let start = world.coracle(&["start", "c"]).run()?;
    ensure!(start.code == 1 && start.stderr.contains("/no/such"), "{}", start.describe());
    let state = about(world, "c")?["State"].clone();
    ensure!(state["ExitCode"] == 127 && state["Status"] == "exited", "{state:#}");
    ensure!(state["Error"].as_str().is_some_and(|why| why.contains("/no/such")), "{state:#}");
    world.coracle(&["rm", "c"]).run()?.ok()?;

    // --rm counts from the start on.
    let words = ["create", "--rm", "--name", "c", "--network", "none", "--", "true"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
    ensure!(is_listed(world, "c")?, "it was swept away");
    world.coracle(&["start", "-a", "c"]).run()?.ok()?;
    ensure!(!is_listed(world, "c")?, "it is still there");
    Ok(())
}

fn start_again(world: &World<'_>) -> Result<()> {
    let script = "echo x >>/etc/times; wc -l </etc/times; cat /tmp/y 2>/dev/null; echo y >/tmp/y";
    let words = ["run", "--name", "again", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("1")?;
    // Its changes are there, its memory is not.
    world.coracle(&["start", "-a", "again"]).run()?.ok()?.stdout_is("2")?;
    world.coracle(&["start", "-a", "again"]).run()?.ok()?.stdout_is("3")?;
    let diff = world.coracle(&["diff", "again"]).run()?.ok()?;
    ensure!(diff.stdout.contains("A /etc/times"), "{}", diff.describe());
    world.coracle(&["start", "again"]).run()?.ok()?;
    world.coracle(&["wait", "again"]).limit(LIMIT).run()?.ok()?.stdout_is("0")?;
    world.coracle(&["logs", "again"]).run()?.ok()?.stdout_is("4")?;
    world.coracle(&["rm", "again"]).run()?.ok()?;
    Ok(())
}

fn start_in_front(world: &World<'_>) -> Result<()> {
    let words = ["create", "-i", "--name", "front", "--network", "none", "--", "sh"];
    world.coracle(&words).run()?.ok()?;
    let start = |text: &str| world.coracle(&["start", "-a", "-i", "front"]).stdin(text).run();
    start("echo out; exit 9\n")?.code_is(9)?.stdout_is("out")?;
    // Without -i there is no input.
    world.coracle(&["start", "-a", "front"]).stdin("exit 3\n").run()?.ok()?;
    world.coracle(&["create", "--name", "other", "--network", "none", "--", "true"]).run()?.ok()?;
    world.coracle(&["start", "-a", "front", "other"]).run()?.fails_with(125, "one container")?;
    world.coracle(&["rm", "front", "other"]).run()?.ok()?;
    Ok(())
}

fn wrong_states(world: &World<'_>) -> Result<()> {
    for (words, code) in [
        (&["start", "nobody"][..], 1),
        (&["start", "-a", "nobody"], 125),
        (&["restart", "nobody"], 1),
        (&["wait", "nobody"], 1),
        (&["inspect", "nobody"], 1),
        (&["attach", "nobody"], 125),
    ] {
        world.coracle(words).run()?.fails_with(code, "nobody")?;
    }
    for (words, part) in [
        (&["start"][..], "CONTAINER"),
        (&["start", "-i", "x"], "--attach"),
        (&["run", "--restart", "sometimes", "--", "true"], "sometimes"),
        (&["run", "--restart", "on-failure:x", "--", "true"], "on-failure:x"),
        (&["run", "--rm", "--restart", "always", "--", "true"], "--rm"),
        (&["attach", "--detach-keys", "ctrl-1", "x"], "ctrl-1"),
        (&["create", "-d", "--", "true"], "-d"),
    ] {
        world.coracle(words).run()?.fails_with(125, part)?;
    }
    let words = ["create", "--name", "w", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["wait", "w"]).run()?.fails_with(1, "has not been started")?;
    world.coracle(&["attach", "w"]).run()?.fails_with(125, "start -a w")?;
    world.coracle(&["kill", "w"]).run()?.fails_with(1, "not running")?;
    world.coracle(&["exec", "w", "--", "true"]).run()?.fails_with(125, "not running")?;
    world.coracle(&["stop", "w"]).run()?.ok()?.stdout_is("w")?;
    world.coracle(&["start", "w"]).run()?.ok()?;
    // That it runs already is no error, as in Podman.
    world.coracle(&["start", "w"]).run()?.ok()?.stdout_is("w")?;
    world.coracle(&["start", "-a", "w"]).run()?.fails_with(125, "attach w")?;
    world.coracle(&["rm", "w"]).run()?.fails_with(1, "running")?;
    world.coracle(&["rm", "-f", "w"]).limit(LIMIT).run()?.ok()?;
    // What it needs has gone since.
    let dir = world.dir().join("volume");
    world.cmd("mkdir").arg(&dir).run()?.ok()?;
    let volume = format!("{}:/mnt", dir.display());
    let words = ["create", "--name", "w", "-v", &volume, "--network", "none", "--", "true"];
    world.coracle(&words).run()?.ok()?;
    world.cmd("rmdir").arg(&dir).run()?.ok()?;
    world.coracle(&["start", "w"]).run()?.fails_with(1, "volume")?;
    world.coracle(&["rm", "w"]).run()?.ok()?;
    Ok(())
}

fn wait(world: &World<'_>) -> Result<()> {
    let script = |code| format!("trap 'exit {code}' TERM; echo up; while :; do sleep 0.05; done");
    let start = |name: &str, code: u8, remove: bool| -> Result<()> {
        let script = script(code);
        let mut words = vec!["run", "-d", "--name", name, "--network", "none"];
        if remove {
            words.push("--rm");
        }
        words.extend(["--", "sh", "-c", &script]);
        world.coracle(&words).run()?.ok()?;
        let follow = world.coracle(&["logs", "-f", name]).spawn()?;
        follow.stdout_until("up\n", LIMIT)?;
        Ok(())
    };
    start("one", 4, false)?;
    // Its exit code outlives all else of it.
    start("two", 5, true)?;
    let waiting = world.coracle(&["wait", "one", "two"]).spawn()?;
    let second = world.coracle(&["wait", "two"]).spawn()?;
    world.coracle(&["stop", "two", "one"]).limit(LIMIT).run()?.ok()?;
    waiting.wait(LIMIT)?.ok()?.stdout_is("4\n5")?;
    second.wait(LIMIT)?.ok()?.stdout_is("5")?;
    world.coracle(&["wait", "one"]).run()?.ok()?.stdout_is("4")?;
    let wait = world.coracle(&["wait", "one", "two"]).run()?;
    ensure!(wait.code == 1 && wait.stdout == "4\n", "{}", wait.describe());
    world.coracle(&["rm", "one"]).run()?.ok()?;
    Ok(())
}

fn inspect(world: &World<'_>) -> Result<()> {
    let dir = world.dir().join("shared");
    world.cmd("mkdir").arg(&dir).run()?.ok()?;
    let volume = format!("{}:/mnt:ro", dir.display());
    let words = [
        "run",
        "-d",
        "--name",
        "i",
        "-e",
        "A=b c",
        "-w",
        "/etc",
        "-h",
        "there",
        "-v",
        &volume,
        "-p",
        "127.0.0.1:18091:80/udp",
        "--restart",
        "on-failure:3",
        "--",
        "sleep",
        "1000",
    ];
    world.coracle(&words).run()?.ok()?;
    let of = about(world, "i")?;
    let pid = of["State"]["Pid"].as_i64().context("no pid")?;
    let is = |pointer: &str, wanted: serde_json::Value| -> Result<()> {
        ensure!(of.pointer(pointer) == Some(&wanted), "{pointer} is not {wanted}\n{of:#}");
        Ok(())
    };
    is("/Name", "i".into())?;
    is("/State/Status", "running".into())?;
    is("/State/Running", true.into())?;
    is("/State/ExitCode", 0.into())?;
    is("/Path", "sleep".into())?;
    is("/Args/0", "1000".into())?;
    is("/Config/Hostname", "there".into())?;
    is("/Config/WorkingDir", "/etc".into())?;
    is("/Mounts/0/Source", dir.display().to_string().into())?;
    is("/Mounts/0/Destination", "/mnt".into())?;
    is("/Mounts/0/RW", false.into())?;
    is("/NetworkSettings/IPAddress", "10.0.2.100".into())?;
    is("/HostConfig/PortBindings/80~1udp/0/HostPort", "18091".into())?;
    is("/HostConfig/RestartPolicy/Name", "on-failure".into())?;
    is("/HostConfig/RestartPolicy/MaximumRetryCount", 3.into())?;
    let environment = of["Config"]["Env"].as_array().context("no Env")?;
    ensure!(environment.contains(&"A=b c".into()), "{of:#}");
    let started = of["State"]["StartedAt"].as_str().unwrap_or_default();
    ensure!(started > "2020" && started.ends_with('Z'), "{of:#}");
    // The pid is that of the container's first process.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ensure!(numbers.split_whitespace().last() == Some("1"), "{numbers}");
    let monitor = &of["State"]["MonitorPid"];
    ensure!(status.contains(&format!("PPid:\t{monitor}\n")), "{status}");

    world.coracle(&["kill", "i"]).run()?.ok()?;
    world.coracle(&["wait", "i"]).limit(LIMIT).run()?.ok()?.stdout_is("137")?;
    let of = about(world, "i")?;
    ensure!(of["State"]["ExitCode"] == 137 && of["State"]["Pid"] == 0, "{of:#}");
    let finished = of["State"]["FinishedAt"].as_str().unwrap_or_default();
    ensure!(finished >= started, "{of:#}");
    // Several, and one that is not there.
    let both = world.coracle(&["inspect", "i", "nobody"]).run()?;
    ensure!(both.code == 1 && both.stderr.contains("nobody"), "{}", both.describe());
    let all: serde_json::Value = serde_json::from_str(&both.stdout)?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 1), "{}", both.describe());
    world.coracle(&["rm", "i"]).run()?.ok()?;
    Ok(())
}

const COUNTING: &str = "echo x >>/etc/runs; echo run $(wc -l </etc/runs); ";

fn restart(world: &World<'_>) -> Result<()> {
    let script = format!("{COUNTING} trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let words = ["run", "-d", "--name", "r", "--network", "none", "--", "sh", "-c", &script];
    world.coracle(&words).run()?.ok()?;
    let follow = world.coracle(&["logs", "-f", "r"]).spawn()?;
    follow.stdout_until("run 1\n", LIMIT)?;
    let first = about(world, "r")?["State"]["Pid"].clone();
    world.coracle(&["restart", "r"]).limit(LIMIT).run()?.ok()?.stdout_is("r")?;
    follow.wait(LIMIT)?.ok()?;
    let follow = world.coracle(&["logs", "-f", "r"]).spawn()?;
    follow.stdout_until("run 2\n", LIMIT)?;
    ensure!(about(world, "r")?["State"]["Pid"] != first, "it is the same process");
    world.coracle(&["stop", "r"]).limit(LIMIT).run()?.ok()?;
    // One that has stopped is started.
    world.coracle(&["restart", "r"]).limit(LIMIT).run()?.ok()?;
    let follow = world.coracle(&["logs", "-f", "r"]).spawn()?;
    follow.stdout_until("run 3\n", LIMIT)?;
    world.coracle(&["rm", "-f", "r"]).limit(LIMIT).run()?.ok()?;
    let words = ["run", "-d", "--rm", "--name", "r", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["restart", "r"]).run()?.fails_with(1, "--rm")?;
    world.coracle(&["rm", "-f", "r"]).limit(LIMIT).run()?.ok()?;
    Ok(())
}

fn run_with(world: &World<'_>, name: &str, policy: &str, script: &str) -> Result<Output> {
    let script = format!("{COUNTING} {script}");
    let mut words = vec!["run", "-d", "--name", name, "--restart", policy, "--network", "none"];
    words.extend(["--", "sh", "-c", &script]);
    world.coracle(&words).run()?.ok()
}

fn policies(world: &World<'_>) -> Result<()> {
    for (policy, script, code, runs) in [
        ("no", "exit 3", 3, 1),
        ("on-failure", "[ $(wc -l </etc/runs) = 3 ] || exit 4", 0, 3),
        ("on-failure:2", "exit 5", 5, 3),
    ] {
        run_with(world, "p", policy, script)?;
        let wait = world.coracle(&["wait", "p"]).limit(LIMIT).run()?.ok()?;
        wait.stdout_is(&code.to_string()).context(policy)?;
        let count = about(world, "p")?["RestartCount"].clone();
        ensure!(count == runs - 1, "{policy}: {count} restarts");
        let log = world.coracle(&["logs", "p"]).run()?.ok()?;
        ensure!(log.stdout.lines().count() == runs, "{policy}: {}", log.describe());
        world.coracle(&["rm", "p"]).run()?.ok()?;
    }
    // In front, too; a signal to the command ends it for good.
    let words =
        ["run", "--name", "p", "--restart", "always", "--network", "none", "--", "sh", "-c"];
    let mut words = words.to_vec();
    words.push("echo run; [ -e /etc/ran ] || { : >/etc/ran; exit 6; }; exec sleep 1000");
    let running = world.coracle(&words).spawn()?;
    running.stdout_until("run\nrun\n", LIMIT)?;
    until(world, "p", |of| of["State"]["Status"] == "running")?;
    running.signal(libc::SIGTERM)?;
    running.wait(LIMIT)?.code_is(143)?;
    ensure!(about(world, "p")?["State"]["Status"] == "exited");
    world.coracle(&["rm", "p"]).run()?.ok()?;
    Ok(())
}

fn policy_and_stop(world: &World<'_>) -> Result<()> {
    // Stopped while it runs.
    run_with(world, "s", "always", "exec sleep 1000")?;
    world.coracle(&["stop", "s"]).limit(LIMIT).run()?.ok()?;
    ensure!(about(world, "s")?["RestartCount"] == 0, "it was run again after a stop");
    world.coracle(&["ps"]).run()?.ok()?.stdout_is("NAME  ROOT  COMMAND  CREATED  STATUS  PORTS")?;
    // Killed from outside of us it is run again; by us it is not.
    world.coracle(&["start", "s"]).run()?.ok()?;
    let first = about(world, "s")?["State"]["Pid"].clone();
    world.cmd("kill").arg("-9").arg(first.to_string()).run()?.ok()?;
    until(world, "s", |of| of["State"]["Running"] == true && of["State"]["Pid"] != first)?;
    world.coracle(&["kill", "s"]).run()?.ok()?;
    world.coracle(&["wait", "s"]).limit(LIMIT).run()?.ok()?.stdout_is("137")?;
    world.coracle(&["rm", "s"]).run()?.ok()?;

    // Stopped while it waits to be run again.
    run_with(world, "s", "always", "exit 1")?;
    let waits = |of: &serde_json::Value| of["State"]["Restarting"] == true;
    until(world, "s", |of| waits(of) && of["RestartCount"].as_u64() >= Some(3))?;
    world.coracle(&["ps"]).run()?.ok()?.stdout_has("s ")?;
    world.coracle(&["stop", "s"]).limit(LIMIT).run()?.ok()?;
    let state = about(world, "s")?["State"].clone();
    ensure!(state["Status"] == "exited" && state["MonitorPid"] == 0, "{state:#}");
    world.coracle(&["rm", "s"]).run()?.ok()?;

    // Removed, and stopped, at whatever moment.
    for round in 0..8 {
        run_with(world, "s", "always", "exit 1")?;
        let command = if round % 2 == 0 { &["rm", "-f", "s"][..] } else { &["stop", "s"] };
        world.coracle(command).limit(LIMIT).run()?.ok()?;
        if round % 2 == 1 {
            let state = about(world, "s")?["State"].clone();
            ensure!(state["Status"] == "exited", "round {round}: {state:#}");
            world.coracle(&["rm", "s"]).run()?.ok()?;
        }
        ensure!(!is_listed(world, "s")?, "round {round}");
    }
    Ok(())
}

fn after_a_death(world: &World<'_>) -> Result<()> {
    run_with(world, "d", "on-failure", "exec sleep 1000")?;
    let of = about(world, "d")?;
    let first = of["State"]["Pid"].clone();
    let monitor = of["State"]["MonitorPid"].to_string();
    world.cmd("pkill").args(["-9", "-P", &monitor, "overlayfs-fuse"]).run()?.ok()?;
    until(world, "d", |of| of["State"]["Running"] == true && of["State"]["Pid"] != first)?;
    let log = world.coracle(&["logs", "d"]).run()?.ok()?;
    ensure!(log.stdout.contains("overlayfs-fuse died"), "{}", log.describe());
    world.coracle(&["rm", "-f", "d"]).limit(LIMIT).run()?.ok()?;
    Ok(())
}

fn gc(world: &World<'_>) -> Result<()> {
    for (name, program) in [("g1", "true"), ("g2", "false")] {
        world.coracle(&["run", "--name", name, "--network", "none", "--", program]).run()?;
    }
    world.coracle(&["create", "--name", "g3", "--", "true"]).run()?.ok()?;
    let words = ["run", "-d", "--name", "g4", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let gc = world.coracle(&["gc"]).run()?.ok()?;
    ensure!(gc.stdout.is_empty(), "{}", gc.describe());
    for name in ["g1", "g2", "g3", "g4"] {
        ensure!(is_listed(world, name)?, "{name} is gone");
    }
    world.coracle(&["gc", "--containers"]).run()?.ok()?.stdout_has("g1\ng2\ng3\n")?;
    let ps = world.coracle(&["ps", "-a", "-q"]).run()?.ok()?;
    world.coracle(&["rm", "-f", "g4"]).limit(LIMIT).run()?.ok()?;
    ps.stdout_is("g4")?;
    Ok(())
}

/// What was running is known to be lost by the next command, whichever it is,
/// and can be started again.
fn monitor_killed(world: &World<'_>) -> Result<()> {
    let script = format!("{COUNTING} exec sleep 1000");
    let words = ["run", "-d", "--name", "m", "--network", "none", "--", "sh", "-c", &script];
    world.coracle(&words).run()?.ok()?;
    let follow = world.coracle(&["logs", "-f", "m"]).spawn()?;
    follow.stdout_until("run 1\n", LIMIT)?;
    let waiting = world.coracle(&["wait", "m"]).spawn()?;
    let monitor = about(world, "m")?["State"]["MonitorPid"].to_string();
    world.cmd("kill").args(["-9", &monitor]).run()?.ok()?;
    waiting.wait(LIMIT)?.fails_with(1, "monitor was killed")?;
    follow.wait(LIMIT)?.ok()?;
    world.coracle(&["ps", "-a"]).run()?.ok()?.stdout_has("Exited (unknown)")?;
    let state = about(world, "m")?["State"].clone();
    ensure!(state["Dead"] == true && state["ExitCode"] == -1, "{state:#}");
    ensure!(state["Error"].as_str().is_some_and(|why| why.contains("monitor")), "{state:#}");
    world.coracle(&["wait", "m"]).run()?.fails_with(1, "monitor was killed")?;
    world.coracle(&["exec", "m", "--", "true"]).run()?.fails_with(125, "m")?;
    world.coracle(&["start", "m"]).run()?.ok()?;
    let follow = world.coracle(&["logs", "-f", "m"]).spawn()?;
    follow.stdout_until("run 2\n", Duration::from_secs(20))?;
    world.coracle(&["rm", "-f", "m"]).limit(LIMIT).run()?.ok()?;
    follow.wait(LIMIT)?.ok()?;
    Ok(())
}
