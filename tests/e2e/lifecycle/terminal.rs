//! Terminals: attached, left, not read, resized, and put back whatever happens.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use nix::sys::termios::{LocalFlags, tcgetattr};
use tests::clock::Deadline;
use tests::harness::{Test, World, skip};
use tests::lab::find;
use tests::pty::Pty;

use super::LIMIT;
use super::states::{about, until};

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle/attach", attach).each_user(),
    Test::new("lifecycle/attach-without-terminal", attach_without).each_user(),
    Test::new("lifecycle/attach-refused", attach_refused),
    Test::new("lifecycle/detach-from-run", detach_from_run).each_user(),
    Test::new("lifecycle/terminal-put-back", put_back).each_user(),
    Test::new("lifecycle/terminal-exec-put-back", exec_put_back),
    Test::new("lifecycle/terminal-not-read", not_read).each_user(),
    Test::new("lifecycle/terminal-hung-up", hung_up),
    Test::new("lifecycle/terminal-in-a-pipe", in_a_pipe),
    Test::new("lifecycle/terminal-in-tmux", in_tmux),
    Test::new("lifecycle/terminal-survives-the-shell", survives_the_shell).each_user(),
];

fn remove(world: &World<'_>, name: &str) -> Result<()> {
    world.coracle(&["rm", "-f", name]).limit(LIMIT).run()?.ok().map(drop)
}

fn is_raw(terminal: &OwnedFd) -> Result<bool> {
    Ok(!tcgetattr(terminal)?.local_flags.contains(LocalFlags::ICANON))
}

/// Waits until the terminal is raw, or is not.
fn until_raw(terminal: &OwnedFd, raw: bool) -> Result<()> {
    let deadline = Deadline::after(LIMIT);
    while is_raw(terminal)? != raw {
        ensure!(!deadline.passed(), "the terminal stays {}", if raw { "cooked" } else { "raw" });
        std::thread::yield_now();
    }
    Ok(())
}

fn attach(world: &World<'_>) -> Result<()> {
    let words = ["run", "-dit", "--name", "a", "--network", "none", "--", "sh"];
    world.coracle(&words).run()?.ok()?.stdout_is("a")?;
    for (keys, sequence) in [(None, "\u{10}\u{11}"), (Some("ctrl-x,y"), "\u{18}y")] {
        let (mut pty, slave) = Pty::open(31, 91)?;
        let kept = slave.try_clone()?;
        let mut words = vec!["attach"];
        words.extend(keys.into_iter().flat_map(|keys| ["--detach-keys", keys]));
        words.push("a");
        let attached = world.coracle(&words).terminal(slave).spawn()?;
        pty.write("echo SIZE=$(stty size)\n")?;
        pty.until("SIZE=31 91", LIMIT)?;
        pty.resize(22, 66)?;
        // The shell may be asked before it knows.
        pty.write("until [ \"$(stty size)\" = '22 66' ]; do sleep 0.01; done; echo now''here\n")?;
        pty.until("nowhere", LIMIT)?;
        ensure!(is_raw(&kept)?, "the terminal is not raw");
        pty.write(sequence)?;
        attached.wait(LIMIT)?.ok()?;
        ensure!(!is_raw(&kept)?, "the terminal is raw afterwards");
        ensure!(about(world, "a")?["State"]["Running"] == true, "it has ended");
    }
    // Two at once see the same; the exit code is the workload's.
    let (mut one, slave) = Pty::open(24, 80)?;
    let first = world.coracle(&["attach", "a"]).terminal(slave).spawn()?;
    let (mut two, slave) = Pty::open(24, 80)?;
    let second = world.coracle(&["attach", "a"]).terminal(slave).spawn()?;
    // Both are there once each has seen an answer of its own.
    one.write("echo fir''st\n")?;
    one.until("first", LIMIT)?;
    two.write("echo sec''ond\n")?;
    two.until("second", LIMIT)?;
    one.write("echo bo''th\n")?;
    one.until("both", LIMIT)?;
    two.until("both", LIMIT)?;
    one.write("exit 7\n")?;
    first.wait(LIMIT)?.code_is(7)?;
    second.wait(LIMIT)?.code_is(7)?;
    // What was on its terminal is in its log.
    world.coracle(&["logs", "a"]).run()?.ok()?.stdout_has("SIZE=31 91")?;
    remove(world, "a")
}

fn attach_without(world: &World<'_>) -> Result<()> {
    let words = ["run", "-di", "--name", "a", "--network", "none", "--", "sh"];
    world.coracle(&words).run()?.ok()?;
    let mut attached = world.coracle(&["attach", "a"]).stdin_open().spawn()?;
    attached.write(b"echo out; echo err >&2\n")?;
    attached.stdout_until("out\nerr\n", LIMIT)?;
    // A signal to it goes to the command; its end does not.
    attached.write(b"trap 'echo usr1; done=1' USR1; echo trap''ped\n")?;
    // A shell looks at its traps between commands.
    attached.write(b"while [ ! \"$done\" ]; do sleep 0.01; done\n")?;
    attached.stdout_until("trapped\n", LIMIT)?;
    attached.signal(libc::SIGUSR1)?;
    attached.stdout_until("usr1\n", LIMIT)?;
    attached.signal(libc::SIGKILL)?;
    attached.wait(LIMIT)?.code_is(137)?;
    let mut attached = world.coracle(&["attach", "--sig-proxy=false", "a"]).stdin_open().spawn()?;
    attached.write(b"echo again\n")?;
    attached.stdout_until("again\n", LIMIT)?;
    attached.signal(libc::SIGTERM)?;
    attached.wait(LIMIT)?.ok()?;
    ensure!(about(world, "a")?["State"]["Running"] == true, "it has ended");
    // The end of the input is passed on.
    world.coracle(&["attach", "a"]).stdin("echo last; exit 4").limit(LIMIT).run()?.code_is(4)?;
    world.coracle(&["logs", "a"]).run()?.ok()?.stdout_is("out\nerr\ntrapped\nusr1\nagain\nlast")?;
    remove(world, "a")
}

fn attach_refused(world: &World<'_>) -> Result<()> {
    let words = ["run", "--name", "f", "-i", "--network", "none", "--", "sh", "-c", "echo up; cat"];
    let running = world.coracle(&words).stdin_open().spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    let refused = world.coracle(&["attach", "f"]).run()?;
    // Its monitor is found all the same.
    world.coracle(&["stop", "f"]).limit(LIMIT).run()?.ok()?;
    running.wait(LIMIT)?.code_is(143)?;
    refused.fails_with(125, "the command that runs it")?;
    remove(world, "f")
}

fn detach_from_run(world: &World<'_>) -> Result<()> {
    for (command, remaining) in [("run", true), ("start", false)] {
        let (mut pty, slave) = Pty::open(24, 80)?;
        let kept = slave.try_clone()?;
        let words = if command == "run" {
            vec!["run", "-it", "--name", "d", "--network", "none", "--", "sh"]
        } else {
            vec!["start", "-ai", "d"]
        };
        let running = world.coracle(&words).terminal(slave).spawn()?;
        pty.write("echo be''fore\n")?;
        pty.until("before", LIMIT)?;
        pty.write("\u{10}\u{11}")?;
        running.wait(LIMIT)?.ok()?;
        ensure!(!is_raw(&kept)?, "the terminal is raw afterwards");
        // The terminal is gone, and the container is not.
        drop((pty, kept));
        let (mut pty, slave) = Pty::open(24, 80)?;
        let attached = world.coracle(&["attach", "d"]).terminal(slave).spawn()?;
        pty.write("echo af''ter; exit 3\n")?;
        pty.until("after", LIMIT)?;
        attached.wait(LIMIT)?.code_is(3)?;
        world.coracle(&["wait", "d"]).limit(LIMIT).run()?.ok()?.stdout_is("3")?;
        if !remaining {
            remove(world, "d")?;
        }
    }
    Ok(())
}

/// Each way out of `run -it`: the terminal is what it was.
fn put_back(world: &World<'_>) -> Result<()> {
    for way in ["exit", "term", "kill", "front", "monitor", "stop"] {
        let (mut pty, slave) = Pty::open(24, 80)?;
        let kept = slave.try_clone()?;
        let before = tcgetattr(&kept)?;
        let words = ["run", "-it", "--rm", "--name", "raw", "--network", "none", "--", "sh"];
        let running = world.coracle(&words).terminal(slave).spawn()?;
        pty.write("echo u''p\n")?;
        pty.until("up", LIMIT)?;
        until_raw(&kept, true)?;
        let monitor = about(world, "raw")?["State"]["MonitorPid"].to_string();
        let front = field(&monitor, "PPid:")?;
        let send = |signal: &str, pid: &str| -> Result<()> {
            world.cmd("kill").args([signal, pid]).run()?.ok().map(drop)
        };
        let code = match way {
            "exit" => {
                pty.write("exit 2\n")?;
                2
            }
            "term" => {
                // The shell ignores it; the one below does not.
                pty.write("exec sleep 1000\n")?;
                until(world, "raw", |_| sleeps(world))?;
                send("-TERM", &front)?;
                143
            }
            "kill" => {
                world.coracle(&["kill", "raw"]).run()?.ok()?;
                137
            }
            "stop" => {
                world.coracle(&["stop", "-t", "0", "raw"]).limit(LIMIT).run()?.ok()?;
                137
            }
            "front" => {
                send("-KILL", &front)?;
                137
            }
            _ => {
                send("-KILL", &monitor)?;
                125
            }
        };
        let output = running.wait(LIMIT).context(way)?;
        ensure!(output.code == code, "{way}: {}", output.describe());
        until_raw(&kept, false).context(way)?;
        ensure!(tcgetattr(&kept)? == before, "{way}: the terminal is not what it was");
        if way == "monitor" {
            pty.until("monitor died", LIMIT)?;
        }
        // With its front the container ends in order; what its monitor's death
        // leaves is swept by the next start.
        if way == "front" {
            let deadline = Deadline::after(LIMIT);
            while world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout.contains("raw") {
                ensure!(!deadline.passed(), "it lives on without the command in front");
            }
        } else {
            world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
        }
    }
    Ok(())
}

fn sleeps(world: &World<'_>) -> bool {
    world.lab.processes().into_iter().any(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\x001000")
    })
}

fn field(pid: &str, name: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
    Ok(line.trim().to_owned())
}

fn exec_put_back(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--name", "e", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let (mut pty, slave) = Pty::open(24, 80)?;
    let kept = slave.try_clone()?;
    let running = world.coracle(&["exec", "-it", "e", "--", "sh"]).terminal(slave).spawn()?;
    pty.write("echo u''p\n")?;
    pty.until("up", LIMIT)?;
    until_raw(&kept, true)?;
    pty.resize(20, 50)?;
    pty.write("until [ \"$(stty size)\" = '20 50' ]; do sleep 0.01; done; echo sized''it\n")?;
    pty.until("sizedit", LIMIT)?;
    world.coracle(&["kill", "e"]).run()?.ok()?;
    running.wait(LIMIT)?.code_is(137)?;
    until_raw(&kept, false)?;
    remove(world, "e")
}

/// Nobody reads what `-t` prints: only the workload waits for it.
fn not_read(world: &World<'_>) -> Result<()> {
    let (pty, slave) = Pty::open(24, 80)?;
    let script =
        "trap 'exit 5' TERM; echo > /dev/shm/up; while :; do echo yyyyyyyyyyyyyyyyyyyy; done";
    let words = ["run", "-it", "--name", "n", "--network", "none", "--", "sh", "-c", script];
    let running = world.coracle(&words).terminal(slave).spawn()?;
    // It prints more than all buffers hold, and so waits: its time stands still.
    let pid = loop {
        let ps = world.coracle(&["ps", "-a", "-q"]).run()?.ok()?;
        if ps.stdout.contains('n') && about(world, "n")?["State"]["Running"] == true {
            break about(world, "n")?["State"]["Pid"].to_string();
        }
    };
    // setsid(1) may stand before it.
    let front = field(&about(world, "n")?["State"]["MonitorPid"].to_string(), "PPid:")?;
    let deadline = Deadline::after(LIMIT);
    loop {
        let waits = children(&pid).iter().any(|child| {
            let at = std::fs::read_to_string(format!("/proc/{child}/wchan")).unwrap_or_default();
            at.contains("n_tty_write") || at.contains("wait_woken")
        });
        if waits {
            break;
        }
        ensure!(!deadline.passed(), "the workload does not wait for its reader");
    }
    // Everything else works.
    world.coracle(&["exec", "n", "--", "true"]).run()?.ok()?;
    world.coracle(&["kill", "-s", "WINCH", "n"]).run()?.ok()?;
    world.coracle(&["stop", "-t", "1", "n"]).limit(LIMIT).run()?.ok()?;
    let state = about(world, "n")?["State"].clone();
    ensure!(state["Status"] == "exited", "{state:#}");
    // The command in front waits for its reader, until it is told not to.
    ensure!(!running.ends_within(std::time::Duration::from_millis(300))?, "it lost output");
    world.cmd("kill").args(["-TERM", &front]).run()?.ok()?;
    ensure!(running.ends_within(LIMIT)?, "it does not end though nobody reads");
    drop(pty);
    remove(world, "n")
}

fn children(pid: &str) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The terminal goes away under `run -it`: the program gets SIGHUP, as under
/// ssh, and with `attach` the container stays.
fn hung_up(world: &World<'_>) -> Result<()> {
    let words = ["run", "-it", "--rm", "--name", "h", "--network", "none", "--", "sh"];
    let (mut pty, slave) = Pty::open(24, 80)?;
    let running = world.coracle(&words).terminal(slave).spawn()?;
    pty.write("echo u''p\n")?;
    pty.until("up", LIMIT)?;
    drop(pty);
    ensure!(running.ends_within(LIMIT)?, "it lives on without its terminal");
    drop(running);
    let deadline = Deadline::after(LIMIT);
    while world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout.contains('h') {
        ensure!(!deadline.passed(), "the container lives on without its terminal");
    }

    world.coracle(&["run", "-dit", "--name", "h", "--network", "none", "--", "sh"]).run()?.ok()?;
    let (mut pty, slave) = Pty::open(24, 80)?;
    let attached = world.coracle(&["attach", "h"]).terminal(slave).spawn()?;
    pty.write("echo u''p\n")?;
    pty.until("up", LIMIT)?;
    drop(pty);
    ensure!(attached.ends_within(LIMIT)?, "it lives on without its terminal");
    ensure!(about(world, "h")?["State"]["Running"] == true, "the container has ended");
    remove(world, "h")
}

fn in_a_pipe(world: &World<'_>) -> Result<()> {
    let words = ["run", "-it", "--rm", "--network", "none", "--", "sh"];
    let output = world.coracle(&words).stdin("tty; exit 4\n").limit(LIMIT).run()?.code_is(4)?;
    output.stdout_has("/dev/pts/0")?;
    // The end of the input is that of a terminal.
    let words = ["run", "-it", "--rm", "--network", "none", "--", "cat"];
    world.coracle(&words).stdin("line\n").limit(LIMIT).run()?.ok()?.stdout_has("line")?;
    let words = ["run", "-t", "--rm", "--network", "none", "--", "seq", "30000"];
    let output = world.coracle(&words).limit(LIMIT).run()?.ok()?;
    ensure!(output.stdout.lines().count() == 30_000, "lines are missing");
    // A reader that goes away ends nothing but its own part.
    let shell = "\"$0\" run -t --rm --network none -- sh -c 'seq 30000; exit 9' | head -n 1; \
                 echo ${PIPESTATUS[0]}";
    let bin = world.lab.bin.join("coracle");
    let output = world.cmd("bash").args(["-c", shell]).arg(bin).limit(LIMIT).run()?.ok()?;
    ensure!(output.stdout == "1\r\n9\n" || output.stdout == "1\n9\n", "{}", output.describe());
    Ok(())
}

fn in_tmux(world: &World<'_>) -> Result<()> {
    if find("tmux").is_none() {
        return Err(skip("no tmux (package tmux)"));
    }
    let socket = world.dir().join("tmux").display().to_string();
    let tmux =
        |words: &[&str]| world.cmd("tmux").args(["-f", "/dev/null", "-S", &socket]).args(words);
    let bin = world.lab.bin.join("coracle").display().to_string();
    let line = format!("{bin} run -it --rm --network none -- sh");
    tmux(&["new-session", "-d", "-x", "90", "-y", "30", &line]).run()?.ok()?;
    let screen = |wanted: &str| -> Result<()> {
        let deadline = Deadline::after(LIMIT);
        loop {
            let shown = tmux(&["capture-pane", "-p"]).run()?;
            if shown.stdout.contains(wanted) {
                return Ok(());
            }
            ensure!(!deadline.passed(), "no {wanted}\n{}", shown.describe());
        }
    };
    let done = (|| {
        screen("#")?;
        tmux(&["send-keys", "echo SIZE=$(stty size)", "Enter"]).run()?.ok()?;
        screen("SIZE=30 90")?;
        tmux(&["resize-window", "-x", "70", "-y", "20"]).run()?.ok()?;
        let wait = "until [ \"$(stty size)\" = '20 70' ]; do sleep 0.01; done; echo sized''it";
        tmux(&["send-keys", wait, "Enter"]).run()?.ok()?;
        screen("sizedit")
    })();
    tmux(&["kill-server"]).run()?.ok()?;
    done
}

/// A shell starts a container, and its session ends.
fn survives_the_shell(world: &World<'_>) -> Result<()> {
    let (mut pty, slave) = Pty::open(24, 80)?;
    let bash = world.cmd("bash").args(["--norc", "-i"]).env("HISTFILE", "/dev/null");
    let shell = bash.terminal(slave).spawn()?;
    let bin = world.lab.bin.join("coracle").display().to_string();
    let line = format!("{bin} run -d --name s --network none -- sleep 1000; echo do''ne\n");
    pty.write(&line)?;
    pty.until("done", LIMIT)?;
    let pid = about(world, "s")?["State"]["Pid"].clone();
    // SIGHUP for all of the session.
    drop(pty);
    ensure!(shell.ends_within(LIMIT)?, "the shell lives on");
    drop(shell);
    let of = about(world, "s")?;
    ensure!(of["State"]["Running"] == true && of["State"]["Pid"] == pid, "{of:#}");
    world.coracle(&["exec", "s", "--", "true"]).run()?.ok()?;
    remove(world, "s")
}
