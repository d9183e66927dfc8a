//! Standard output that takes nothing: a reader that has gone ends the program quietly, a
//! full disk is told, and what was to be done besides printing is done all the same.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, Output, pipe};
use tests::harness::{Test, World};

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("printing/listings", listings).each_user().seconds(240),
    Test::new("printing/effects", effects).each_user().seconds(120),
    Test::new("printing/reader-leaves", reader_leaves).each_user(),
    Test::new("printing/terminals", terminals).each_user().seconds(120),
    Test::new("printing/services", services),
];

const LIMIT: Duration = Duration::from_secs(60);

/// What a shell shows of a program that SIGPIPE has ended.
const UNREAD: i32 = 128 + libc::SIGPIPE;

fn coracle(world: &World<'_>, words: &[&str]) -> Cmd {
    let data = world.dir().join("data");
    world.coracle(words).env("XDG_DATA_HOME", data).dir(world.dir()).limit(LIMIT)
}

/// A program of ours with its standard output wherever the shell's `to` says.
fn printing(world: &World<'_>, program: &str, words: &[&str], to: &str) -> Cmd {
    let script = format!("exec \"$0\" \"$@\" {to}");
    world
        // dash knows no descriptor of two digits.
        .cmd("bash")
        .args(["-c", &script])
        .arg(world.lab.bin.join(program))
        .args(words)
        .env("XDG_DATA_HOME", world.dir().join("data"))
        .dir(world.dir())
        .limit(LIMIT)
}

/// Runs a program whose standard output goes into this pipe.
fn into_pipe(world: &World<'_>, program: &str, words: &[&str], pipe: OwnedFd) -> Cmd {
    let fd = pipe.as_raw_fd();
    printing(world, program, words, &format!(">&{fd} {fd}>&-")).inherit(pipe)
}

/// As a program whose reader has gone before it printed anything: nothing is said, but of
/// the ids that there are.
fn unread(world: &World<'_>, program: &str, words: &[&str]) -> Result<Output> {
    let (reader, writer) = pipe()?;
    drop(reader);
    let output = into_pipe(world, program, words, writer).run()?.code_is(UNREAD)?;
    let notice = |line: &str| line.starts_with("coracle: no subordinate ids for this user");
    ensure!(output.stderr.lines().all(notice), "it says something\n{}", output.describe());
    Ok(output)
}

/// On a full disk.
fn full(world: &World<'_>, program: &str, words: &[&str], code: i32) -> Result<Output> {
    let output = printing(world, program, words, ">/dev/full").run()?;
    let output = output.fails_with(code, "standard output: No space left on device")?;
    ensure!(output.stderr.matches("No space").count() == 1, "{}", output.describe());
    Ok(output)
}

/// A container `c` that has ended, one `d` that runs, and an image `box`.
fn furnish(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    coracle(world, &["image", "import", root, "box"]).run()?.ok()?;
    let given = ["run", "--network", "none", "--name"];
    let script = "echo printed; echo x >/made";
    coracle(world, &[&given[..], &["c", "box", "sh", "-c", script]].concat()).run()?.ok()?;
    let words = [&given[..], &["d", "-d", "box", "sh", "-c", "echo up; exec sleep 1000"]].concat();
    coracle(world, &words).run()?.ok()?;
    let follow = coracle(world, &["logs", "-f", "d"]).spawn()?;
    follow.stdout_until("up\n", LIMIT)?;
    world.write("policy.toml", "[capabilities]\ndrop = [\"CHOWN\"]\n")?;
    Ok(())
}

fn with_both(world: &World<'_>, check: impl FnOnce() -> Result<()>) -> Result<()> {
    furnish(world)?;
    let checked = check();
    coracle(world, &["rm", "-f", "--all"]).run()?.ok()?;
    checked
}

/// Everything that prints and does nothing else.
fn listings(world: &World<'_>) -> Result<()> {
    let all: &[&[&str]] = &[
        &["--help"],
        &["--version"],
        &["run", "--help"],
        &["ps", "-a"],
        &["ps", "-a", "--format", "json"],
        &["inspect", "c", "d"],
        &["images"],
        &["image", "ls", "--format", "json"],
        &["image", "inspect", "box"],
        &["image", "verify"],
        &["image", "save", "box"],
        &["logs", "c"],
        &["logs", "--timestamps", "d"],
        &["logs", "-f", "d"],
        &["top", "d"],
        &["top", "--format", "json", "d"],
        &["stats"],
        &["stats", "--no-stream", "--format", "json"],
        &["wait", "c", "d"],
        &["diff", "c"],
        &["export", "c"],
        &["export", "--format", "oci-archive", "c"],
        &["cp", "c:/bin", "-"],
        &["cp", "d:/bin", "-"],
        &["doctor"],
        &["doctor", "--json"],
        &["policy", "explain", "policy.toml"],
        &["setup", "podman", "--dry-run"],
        &["completion", "bash"],
        &["run", "--dry-run", "box"],
    ];
    with_both(world, || {
        for words in all {
            // It is in front: it has no log.
            if *words == ["logs", "c"] {
                continue;
            }
            unread(world, "coracle", words).with_context(|| words.join(" "))?;
            full(world, "coracle", words, 125).with_context(|| words.join(" "))?;
        }
        Ok(())
    })
}

/// What is to be done is done for all, whoever reads their names.
fn effects(world: &World<'_>) -> Result<()> {
    with_both(world, || {
        let states = || -> Result<String> {
            let words = ["ps", "-a", "--format", "json"];
            let all = coracle(world, &words).run()?.ok()?.stdout;
            let all: serde_json::Value = serde_json::from_str(&all)?;
            let one = |row: &serde_json::Value| {
                let word = |key: &str| row[key].as_str().unwrap_or("?").to_owned();
                format!("{}={}", word("name"), word("status"))
            };
            let mut all: Vec<_> = all.as_array().context("no list")?.iter().map(one).collect();
            all.sort();
            Ok(all.join(" "))
        };
        let tried = |words: &[&str], then: &str| -> Result<()> {
            unread(world, "coracle", words).with_context(|| words.join(" "))?;
            let now = states()?;
            ensure!(now == then, "after {words:?}: {now}, not {then}");
            Ok(())
        };
        let make = ["--network", "none", "--name"];
        let sleep = ["box", "sleep", "1000"];
        tried(&[&["create"], &make[..], &["e"], &sleep].concat(), "c=exited d=running e=created")?;
        tried(&["start", "e"], "c=exited d=running e=running")?;
        tried(&["restart", "-t", "0", "d", "e"], "c=exited d=running e=running")?;
        tried(&["stop", "-t", "0", "d", "e"], "c=exited d=exited e=exited")?;
        let detached = [&["run", "-d"], &make[..], &["f"], &sleep].concat();
        tried(&detached, "c=exited d=exited e=exited f=running")?;
        tried(&["rm", "-f", "d", "e", "f"], "c=exited")?;
        unread(world, "coracle", &["commit", "-q", "c", "made"])?;
        coracle(world, &["image", "inspect", "made"]).run()?.ok()?;
        unread(world, "coracle", &["image", "rm", "made"])?;
        coracle(world, &["image", "inspect", "made"]).run()?.fails_with(1, "made")?;
        let root = world.dir().join("rootfs").display().to_string();
        unread(world, "coracle", &["image", "import", &root, "again"])?;
        coracle(world, &["image", "inspect", "again"]).run()?.ok()?;
        full(world, "coracle", &["image", "rm", "again"], 125)?;
        coracle(world, &["image", "inspect", "again"]).run()?.fails_with(1, "again")?;
        // A failure stays one.
        let output = coracle(world, &["rm", "nobody", "c"]).run()?;
        output.fails_with(1, "'nobody'")?.stdout_is("c")?;
        unread(world, "coracle", &["image", "gc"])?;
        tried(&["gc", "--containers"], "")
    })
}

/// Whoever goes while there is nothing to print ends it, too.
fn reader_leaves(world: &World<'_>) -> Result<()> {
    with_both(world, || {
        for words in [&["logs", "-f", "d"][..], &["stats", "--interval", "1000"]] {
            let (reader, writer) = pipe()?;
            let running = into_pipe(world, "coracle", words, writer).spawn()?;
            let mut some = [0; 1];
            ensure!(nix::unistd::read(&reader, &mut some)? == 1, "{words:?} prints nothing");
            drop(reader);
            let output = running.wait(LIMIT)?.code_is(UNREAD)?;
            ensure!(output.stderr.is_empty(), "{}", output.describe());
        }
        // Who is attached to a container leaves it alone.
        let script = "while :; do echo tick; sleep 0.02; done";
        let words = ["run", "-d", "--name", "t", "--network", "none", "box", "sh", "-c", script];
        coracle(world, &words).run()?.ok()?;
        unread(world, "coracle", &["attach", "t"])?;
        full(world, "coracle", &["attach", "t"], 125)?;
        coracle(world, &["exec", "t", "true"]).run()?.ok()?;
        Ok(())
    })
}

/// What a program with a terminal prints goes through us: that it was lost is told, and what
/// was to be done is done.
fn terminals(world: &World<'_>) -> Result<()> {
    with_both(world, || {
        let script = "echo printed; echo x >/done; exit 7";
        let program = ["sh", "-c", script];
        let words = ["run", "-t", "--network", "none", "--name", "t", "box"];
        full(world, "coracle", &[&words[..], &program].concat(), 125)?;
        let made = ["cp", "t:/done", "-"];
        coracle(world, &made).run()?.ok()?;
        full(world, "coracle", &["start", "-a", "t"], 125)?;
        full(world, "coracle", &[&["exec", "-t", "d"], &program[..]].concat(), 125)?;
        coracle(world, &["cp", "d:/done", "-"]).run()?.ok()?;
        // What is wrong besides is told alone.
        let words = ["run", "--rm", "-t", "--network", "none", "box", "nonesuch"];
        let output = printing(world, "coracle", &words, ">/dev/full").run()?;
        output.fails_with(127, "nonesuch")?;
        // Of a reader that has gone there is nothing to tell: the program's end is.
        let (reader, writer) = pipe()?;
        drop(reader);
        let words = [&["run", "--rm", "-t", "--network", "none", "box"], &program[..]].concat();
        into_pipe(world, "coracle", &words, writer).run()?.code_is(7)?;
        Ok(())
    })
}

fn services(world: &World<'_>) -> Result<()> {
    for program in ["netstack", "overlayfs-fuse"] {
        for option in ["--help", "--version"] {
            unread(world, program, &[option]).with_context(|| program)?;
            full(world, program, &[option], 1).with_context(|| program)?;
        }
    }
    Ok(())
}
