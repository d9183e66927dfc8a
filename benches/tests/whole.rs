//! `bench` as a whole: a cell measured from end to end, and runs that are killed in
//! the middle and leave nothing. As root only: otherwise the tests are skipped, by
//! name.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::Value;
use tests::clock::Deadline;
use tests::command::{Cmd, Running, pipe, readable};
use tests::{lab, sys};

/// How long a run may take that should take a second or two.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take to end what a killed run has started.
const GRACE: Duration = Duration::from_secs(10);
/// How often /proc is looked at while something starts.
const LOOK: Duration = Duration::from_millis(5);

/// A name and what it does.
type Test = (&'static str, fn() -> Result<()>);

const TESTS: &[Test] = &[
    ("bench/a-cell", a_cell),
    ("bench/a-cell-of-files", a_cell_of_files),
    ("bench/unknown-words", unknown_words),
    ("bench/reader-gone", reader_gone),
    ("bench/ended-by-sigint", || ended_by(libc::SIGINT, &NET)),
    ("bench/ended-by-sigterm", || ended_by(libc::SIGTERM, &NET)),
    ("bench/ended-by-sigkill", || ended_by(libc::SIGKILL, &NET)),
    ("bench/files-ended-by-sigint", || ended_by(libc::SIGINT, &FS)),
    ("bench/files-ended-by-sigkill", || ended_by(libc::SIGKILL, &FS)),
];

/// A run that is ended, and how it is known to be in the middle.
struct Middle {
    words: &'static [&'static str],
    /// The program measured.
    program: &'static str,
    /// Copies of this one at least: servers and load generators.
    copies: usize,
}

/// The servers outside and on the host, and a client.
const NET: Middle = Middle {
    words: &["net", "--only", "tcp-up/mtu1500/streams1/v4"],
    program: "netstack",
    copies: 3,
};
/// The process that mounts and measures.
const FS: Middle = Middle {
    words: &["fs", "--quick", "--only", "fs/find/layers6/procs1"],
    program: "overlayfs-fuse",
    copies: 1,
};

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let why_not = why_not();
    // So that what a run leaves behind is found.
    nix::sys::prctl::set_child_subreaper(true).expect("Linux 3.4");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in TESTS {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            continue;
        }
        if let Some(why) = &why_not {
            println!("SKIPPED {name}: {why}");
            skipped += 1;
            continue;
        }
        match test() {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED\n{error:#}\n");
                failed += 1;
            }
        }
    }
    println!("test result: {passed} passed; {failed} failed; {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What this machine lacks.
fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for namespaces joined by a veth pair".into());
    }
    let programs = programs();
    if let Some(program) = lab::PROGRAMS.iter().find(|name| !programs.join(name).exists()) {
        return Some(format!("{program} is not built: cargo build --workspace --bins"));
    }
    ["ip", "dnsmasq", "unshare", "nsenter", "newuidmap", "git", "tar"]
        .iter()
        .find(|program| lab::find(program).is_none())
        .map(|program| format!("{program} is not installed: `cargo xtask test` installs it"))
}

fn programs() -> PathBuf {
    let bench = Path::new(env!("CARGO_BIN_EXE_bench"));
    bench.parent().expect("a program lies in a directory").to_owned()
}

fn bench(words: &[&str]) -> Cmd {
    Cmd::new(env!("CARGO_BIN_EXE_bench")).args(words).arg("--programs").arg(programs()).limit(LIMIT)
}

fn a_cell() -> Result<()> {
    let out = tempfile::tempdir()?;
    let dir = out.path().display().to_string();
    let cell = |id: &str| {
        let words = ["net", "--quick", "--rounds", "2", "--peers", "none", "--only", id];
        bench(&[&words[..], &["--merge", "--out", &dir]].concat()).run()?.ok()
    };
    let shown = cell("tcp-up/mtu1500/streams1/v4")?;
    // Added to the first.
    cell("net/rr/streams1/v4")?;

    let text = fs::read_to_string(out.path().join("result.json"))?;
    let record: Value = serde_json::from_str(&text)?;
    ensure!(record["complete"] == true && record["schema"] == 1, "{record}");
    ensure!(record["commands"].as_array().is_some_and(|all| all.len() == 2), "{record}");
    let cells = record["suites"][0]["cells"].as_array().context("no cells")?;
    let ids: Vec<_> = cells.iter().filter_map(|cell| cell["id"].as_str()).collect();
    ensure!(ids == ["net/tcp-up/mtu1500/streams1/v4", "net/rr/streams1/v4"], "{ids:?}");
    for cell in cells {
        let candidates = cell["candidates"].as_array().context("no candidates")?;
        let names: Vec<_> = candidates.iter().filter_map(|c| c["name"].as_str()).collect();
        ensure!(names == ["netstack", "veth", "loopback"], "{names:?}");
        for candidate in candidates {
            ensure!(candidate["failure"].is_null(), "failed: {candidate}");
            let samples = candidate["samples"].as_array().context("no samples")?;
            ensure!(samples.len() == 2, "{candidate}");
            for sample in samples {
                ensure!(sample["value"].as_f64().is_some_and(|value| value > 0.0), "{candidate}");
            }
        }
        let ours = &candidates[0]["samples"][0];
        ensure!(ours["peak_rss_mib"].as_f64().is_some_and(|mib| mib > 0.1), "{ours}");
        ensure!(ours["backend_cpu_s"].as_f64().is_some_and(|cpu| cpu > 0.0), "{ours}");
    }
    shown.stdout_has("netstack")?.stdout_has("(loopback)")?.stdout_has("kept in ")?;
    Ok(())
}

/// Ours beside the kernel's overlay and a directory, whose results are compared.
fn a_cell_of_files() -> Result<()> {
    let out = tempfile::tempdir()?;
    let dir = out.path().display().to_string();
    let ids = ["fs/git/layers6/procs1", "fs/append/layers6/procs1"];
    let only = ids.join(",");
    let words = ["fs", "--quick", "--rounds", "1", "--peers", "none", "--only", &only];
    bench(&[&words[..], &["--out", &dir]].concat()).run()?.ok()?;

    let text = fs::read_to_string(out.path().join("result.json"))?;
    let record: Value = serde_json::from_str(&text)?;
    let cells = record["suites"][0]["cells"].as_array().context("no cells")?;
    ensure!(cells.len() == ids.len(), "{record}");
    for candidate in cells.iter().filter_map(|cell| cell["candidates"].as_array()).flatten() {
        ensure!(candidate["failure"].is_null(), "failed: {candidate}");
        let value = candidate["samples"][0]["value"].as_f64();
        ensure!(value.is_some_and(|value| value > 0.0), "{candidate}");
    }
    let names = cells
        .iter()
        .filter_map(|cell| cell["candidates"].as_array())
        .map(|candidates| candidates.iter().filter_map(|c| c["name"].as_str()).collect::<Vec<_>>());
    for names in names {
        ensure!(names == ["overlayfs-fuse", "kernel overlay", "plain directory"], "{names:?}");
    }
    Ok(())
}

fn unknown_words() -> Result<()> {
    let out = tempfile::tempdir()?;
    let dir = out.path().display().to_string();
    let refused = |words: &[&str], word: &str| -> Result<()> {
        bench(&[words, &["--out", &dir]].concat()).run()?.fails_with(1, word)?;
        Ok(())
    };
    refused(&["net", "--peers", "slirp5"], "no peer is called slirp5")?;
    refused(&["net", "--peers", "new=/nowhere/pasta"], "no program /nowhere/pasta")?;
    refused(&["net", "--peers", "none", "--only", "tpc"], "no cell's id contains tpc")
}

/// `bench … | head`: whoever stops reading ends it, without a word; a full disk is told.
fn reader_gone() -> Result<()> {
    let out = tempfile::tempdir()?;
    let dir = out.path().display().to_string();
    let result = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/result.json");
    let result = result.display().to_string();
    let lists = ["run", "--list", "--peers", "none", "--out", &dir];
    for (words, full) in [(&lists[..], 1), (&["compare", &result, &result], 2)] {
        let to = |to: &str| {
            let bench = bench(words);
            let script = format!("exec \"$0\" \"$@\" {to}");
            let command = bench.to_command();
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            Cmd::new("bash").args(["-c", &script]).args(words).limit(LIMIT)
        };
        let (reader, writer) = pipe()?;
        drop(reader);
        let fd = writer.as_raw_fd();
        let output = to(&format!(">&{fd} {fd}>&-")).inherit(writer).run()?;
        let output = output.code_is(128 + libc::SIGPIPE)?;
        ensure!(output.stderr.is_empty(), "{}", output.describe());
        to(">/dev/full").run()?.fails_with(full, "standard output: No space left")?;
    }
    Ok(())
}

/// What the kernel has of a run: its processes, and the namespaces these are in.
#[derive(Default)]
struct Traces {
    processes: Vec<(i32, String)>,
    namespaces: BTreeSet<PathBuf>,
}

/// Ends a run while a backend carries data, and looks for what is left.
fn ended_by(signal: i32, middle: &Middle) -> Result<()> {
    let devices = devices()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let out = tempfile::tempdir()?;
    let dir = out.path().display().to_string();
    let words = ["--peers", "none", "--rounds", "1000", "--out", &dir];
    let run = bench(&[middle.words, &words].concat()).spawn()?;
    let traces = in_the_middle(&run, middle)?;
    ensure!(traces.namespaces.len() >= 4, "not in namespaces: {:?}", traces.namespaces);
    let pidfds = traces
        .processes
        .iter()
        .filter_map(|(pid, name)| Some((sys::pidfd_open(*pid).ok()?, name)))
        .collect::<Vec<_>>();
    ensure!(pidfds.len() >= 4, "too few processes: {:?}", traces.processes);

    run.signal(signal)?;
    ensure!(run.ends_within(GRACE)?, "it goes on");
    let output = run.wait(GRACE)?;
    ensure!(output.code == if signal == libc::SIGKILL { 137 } else { 130 }, output.describe());
    for (pidfd, name) in &pidfds {
        ensure!(readable(pidfd.as_fd(), GRACE)?, "left behind: the process {name}");
    }
    adopted_have_ended()?;
    ensure!(devices == self::devices()?, "left behind: a network device");
    ensure!(mounts == fs::read_to_string("/proc/self/mountinfo")?, "left behind: a mount");
    // A result is written after each cell; this run finished none.
    let files: Vec<_> = fs::read_dir(out.path())?.flatten().map(|f| f.file_name()).collect();
    ensure!(files.is_empty(), "left behind: {files:?}");
    Ok(())
}

/// Waits for the end of what a run left behind, which is ours now: it is to be on its way.
///
/// The numbers of its namespaces tell nothing any more: the kernel gives them away again.
fn adopted_have_ended() -> Result<()> {
    let own = std::process::id().cast_signed();
    loop {
        let left: Vec<_> = descendants(own)?.into_iter().filter(|pid| *pid != own).collect();
        for pid in &left {
            if let Ok(pidfd) = sys::pidfd_open(*pid) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                ensure!(readable(pidfd.as_fd(), GRACE)?, "left behind: the process {name}");
            }
        }
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
        if left.is_empty() {
            return Ok(());
        }
    }
}

/// Waits until a backend and a load generator are running.
fn in_the_middle(run: &Running, middle: &Middle) -> Result<Traces> {
    let deadline = Deadline::after(LIMIT);
    loop {
        let own = own_namespaces();
        let mut traces = Traces::default();
        for pid in descendants(run.pid())? {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            traces.namespaces.extend(namespaces(pid).difference(&own).cloned());
            traces.processes.push((pid, name.trim().to_owned()));
        }
        let has = |word: &str| traces.processes.iter().any(|(_, name)| name == word);
        let copies = traces.processes.iter().filter(|(_, name)| name == "itself").count();
        if has(middle.program) && copies >= middle.copies {
            return Ok(traces);
        }
        ensure!(!deadline.passed(), "no backend was started: {:?}", traces.processes);
        ensure!(!run.ends_within(LOOK)?, "it ended before it was in the middle");
    }
}

fn own_namespaces() -> BTreeSet<PathBuf> {
    namespaces(std::process::id().cast_signed())
}

/// `net:[4026531840]` and so on.
fn namespaces(pid: i32) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

fn processes() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn descendants(of: i32) -> Result<Vec<i32>> {
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all: Vec<(i32, i32)> =
        processes()?.into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(found)
}

fn devices() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/net/dev")?;
    Ok(text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}
