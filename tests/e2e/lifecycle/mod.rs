//! Containers that outlive the command that made them.

pub(crate) mod limits;
pub(crate) mod many;
pub(crate) mod states;
pub(crate) mod terminal;

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::harness::{Test, World};
use tests::pty::Pty;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle/detach-logs-exec-stop-rm", detached).each_user(),
    Test::new("lifecycle/kill", kill),
    Test::new("lifecycle/detach-and-remove", detach_and_remove),
    Test::new("lifecycle/rm-refuses-a-running-one", rm_of_a_running_one),
    Test::new("lifecycle/diff", diff).each_user(),
    Test::new("lifecycle/terminal", terminal).each_user(),
    Test::new("lifecycle/terminal-exec", terminal_exec),
    Test::new("lifecycle/one-name-many-takers", one_name),
    Test::new("lifecycle/twenty-at-once", twenty_at_once).seconds(120),
];

fn detached(world: &World<'_>) -> Result<()> {
    let script = "echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.05; done; \
                  trap 'exit 11' TERM; echo three; while :; do sleep 0.05; done";
    let words = ["run", "-d", "--name", "boat", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_has("boat")?;

    let ps = world.coracle(&["ps"]).run()?.ok()?;
    let line = ps.stdout.lines().find(|line| line.contains("boat")).unwrap_or_default();
    ensure!(line.contains("Up "), "no running boat\n{}", ps.describe());

    let follow = world.coracle(&["logs", "-f", "boat"]).spawn()?;
    follow.stdout_until("one\n", LIMIT)?;
    follow.stdout_until("two\n", LIMIT)?;

    let words = ["exec", "boat", "--", "sh", "-c", "touch /go; readlink /proc/self/ns/pid; exit 5"];
    let inside = world.coracle(&words).run()?.code_is(5)?;
    let own = std::fs::read_link("/proc/self/ns/pid")?;
    ensure!(std::path::Path::new(inside.stdout.trim()) != own, "exec ran outside");
    world.coracle(&["exec", "boat", "--", "/no/such"]).run()?.code_is(127)?;
    world
        .coracle(&["exec", "-i", "boat", "--", "cat"])
        .stdin("in\n")
        .run()?
        .ok()?
        .stdout_is("in")?;
    follow.stdout_until("three\n", LIMIT)?;

    world.coracle(&["stop", "boat"]).limit(LIMIT).run()?.ok()?;
    // Following ends with the container.
    follow.wait(LIMIT)?.ok()?.stdout_is("one\ntwo\nthree")?;
    // One log for both streams, in the order they were written.
    world.coracle(&["logs", "boat"]).run()?.ok()?.stdout_is("one\ntwo\nthree")?;
    let ps = world.coracle(&["ps"]).run()?.ok()?;
    ensure!(!ps.stdout.contains("boat"), "ps shows an ended one\n{}", ps.describe());
    world.coracle(&["ps", "-a"]).run()?.ok()?.stdout_has("boat")?.stdout_has("11")?;
    world.coracle(&["exec", "boat", "--", "true"]).run()?.fails_with(125, "boat")?;

    world.coracle(&["rm", "boat"]).run()?.ok()?;
    let ps = world.coracle(&["ps", "-a"]).run()?.ok()?;
    ensure!(!ps.stdout.contains("boat"), "rm left it\n{}", ps.describe());
    Ok(())
}

fn kill(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo usr1' USR1; trap '' TERM; echo up; while :; do sleep 0.05; done";
    let words = ["run", "-d", "--name", "k", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?;
    let follow = world.coracle(&["logs", "-f", "k"]).spawn()?;
    follow.stdout_until("up\n", LIMIT)?;
    world.coracle(&["kill", "-s", "USR1", "k"]).run()?.ok()?;
    follow.stdout_until("usr1\n", LIMIT)?;
    world.coracle(&["kill", "k"]).run()?.ok()?;
    follow.wait(LIMIT)?.ok()?;
    world.coracle(&["ps", "-a"]).run()?.ok()?.stdout_has("137")?;
    world.coracle(&["kill", "k"]).run()?.fails_with(1, "k")?;
    world.coracle(&["rm", "k"]).run()?.ok()?;
    Ok(())
}

fn detach_and_remove(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--rm", "--name", "gone", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["stop", "gone"]).limit(LIMIT).run()?.ok()?;
    let ps = world.coracle(&["ps", "-a"]).run()?.ok()?;
    ensure!(!ps.stdout.contains("gone"), "--rm left it\n{}", ps.describe());
    // A command that cannot be started is known at once.
    let words = ["run", "-d", "--rm", "--network", "none", "--", "/no/such"];
    world.coracle(&words).run()?.code_is(127)?;
    Ok(())
}

fn rm_of_a_running_one(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--name", "busy", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    world.coracle(&["rm", "busy"]).run()?.fails_with(1, "busy")?;
    world.coracle(&["rm", "-f", "busy"]).limit(LIMIT).run()?.ok()?;
    Ok(())
}

fn diff(world: &World<'_>) -> Result<()> {
    let script = "echo new >/etc/diff-new; echo more >>/etc/passwd; rm /etc/group; mkdir /opt/d; \
                  touch /opt/d/f; ln -s x /opt/d/l; mv /etc/hosts.allow /etc/moved 2>/dev/null; exit 0";
    let words = ["run", "--name", "changed", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?;
    let diff = world.coracle(&["diff", "changed"]).run()?.ok()?;
    world.coracle(&["rm", "changed"]).run()?.ok()?;
    let lines: Vec<_> = diff.stdout.lines().collect();
    for want in [
        "C /etc",
        "A /etc/diff-new",
        "C /etc/passwd",
        "D /etc/group",
        "A /opt/d",
        "A /opt/d/f",
        "A /opt/d/l",
    ] {
        ensure!(lines.contains(&want), "no line {want:?}\n{}", diff.describe());
    }
    for line in &lines {
        ensure!(
            ["A /", "C /", "D /"].iter().any(|start| line.starts_with(start)),
            "strange line {line:?}\n{}",
            diff.describe()
        );
        ensure!(!line.contains("/proc") && !line.contains("/sys/"), "{}", diff.describe());
    }
    Ok(())
}

fn terminal(world: &World<'_>) -> Result<()> {
    let (mut pty, slave) = Pty::open(40, 100)?;
    let words = ["run", "--rm", "-it", "--network", "none", "--", "sh"];
    let running = world.coracle(&words).terminal(slave).spawn()?;
    pty.until("# ", LIMIT)?;
    // Written so that the echo of the typing is not taken for the answer.
    pty.write(
        "tty; echo SIZE=$(stty size); test -t 0 && test -t 1 && test -t 2 && echo all''-tty\n",
    )?;
    pty.until("/dev/pts/", LIMIT)?;
    pty.until("SIZE=40 100", LIMIT)?;
    pty.until("all-tty", LIMIT)?;
    // A change of the window's size is passed on. One shell below the other, so
    // that ^C always finds a whole process group in front.
    pty.write(
        "sh -c \"trap 'echo NOW=\\$(stty size)' WINCH; echo wait''ing; while :; do sleep 0.1; done\"\n",
    )?;
    pty.until("waiting", LIMIT)?;
    pty.resize(33, 77)?;
    pty.until("NOW=33 77", LIMIT)?;
    // ^C reaches the program in front, not us.
    pty.write("\u{3}")?;
    pty.write("echo still''here\n")?;
    pty.until("stillhere", LIMIT)?;
    pty.write("sh -c \"echo run''ning; exec sleep 1000\"\n")?;
    pty.until("running", LIMIT)?;
    pty.write("\u{3}")?;
    pty.write("echo and''again\n")?;
    pty.until("andagain", LIMIT)?;
    pty.write("exit 3\n")?;
    running.wait(LIMIT)?.code_is(3)?;
    Ok(())
}

fn terminal_exec(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--rm", "--name", "t", "--network", "none", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let (mut pty, slave) = Pty::open(30, 90)?;
    let running = world.coracle(&["exec", "-it", "t", "--", "sh"]).terminal(slave).spawn()?;
    pty.until("# ", LIMIT)?;
    pty.write("echo SIZE=$(stty size)\n")?;
    pty.until("SIZE=30 90", LIMIT)?;
    pty.write("exit 6\n")?;
    let output = running.wait(LIMIT);
    world.coracle(&["rm", "-f", "t"]).limit(LIMIT).run()?.ok()?;
    output?.code_is(6)?;
    Ok(())
}

fn twenty_at_once(world: &World<'_>) -> Result<()> {
    let mut all = Vec::new();
    for number in 0..20 {
        let script = format!("echo {number} >/etc/number; cat /etc/number; exit {number}");
        let words = ["run", "--rm", "--", "sh", "-c", &script];
        all.push(world.coracle(&words).spawn()?);
    }
    for (number, running) in (0..).zip(all) {
        running.wait(Duration::from_secs(90))?.code_is(number)?.stdout_is(&number.to_string())?;
    }
    Ok(())
}

fn one_name(world: &World<'_>) -> Result<()> {
    let words = ["run", "-d", "--name", "only", "--network", "none", "--", "sleep", "1000"];
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(world.coracle(&words).spawn()?);
    }
    let mut codes = Vec::new();
    for running in all {
        codes.push(running.wait(LIMIT)?.code);
    }
    world.coracle(&["rm", "-f", "only"]).limit(LIMIT).run()?.ok()?;
    codes.sort_unstable();
    ensure!(codes == [0, 125, 125, 125, 125, 125, 125, 125], "exit codes {codes:?}");
    Ok(())
}
