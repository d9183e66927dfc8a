//! Holds the rules of ARCHITECTURE.md that the compiler does not: which room may
//! import which, where `unsafe` may stand, how long a file may grow.
//!
//! Reads the sources as text. Comments are not looked at, so that prose may name
//! what code may not use.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code (before the tests) from which a file must be split.
const LONGEST_FILE: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .into()
}

struct Source {
    /// Relative to the workspace, with forward slashes.
    path: String,
    /// Lines with comments blanked; the test module at the end is left out.
    code: Vec<String>,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let text = fs::read_to_string(path).expect("a source file is UTF-8 text");
        let code = text
            .lines()
            .take_while(|line| line.trim() != "#[cfg(test)]")
            .map(|line| line.split("//").next().unwrap_or_default().to_owned())
            .collect();
        let path = path.strip_prefix(root).expect("found below the root").display().to_string();
        Source { path, code }
    }

    /// `path:line` of every line on which `what` holds.
    fn places(&self, what: impl Fn(&str) -> bool) -> Vec<String> {
        let numbered = self.code.iter().enumerate();
        numbered
            .filter(|(_, line)| what(line))
            .map(|(i, line)| format!("{}:{}: {}", self.path, i + 1, line.trim()))
            .collect()
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// All sources below the given places of the workspace; each place must exist, so
/// that a rule cannot pass because its room was renamed.
fn sources(places: &[&str]) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for place in places {
        let path = root.join(place);
        assert!(path.exists(), "{place} is gone: change this rule along with the house");
        if path.is_dir() { walk(&path, &mut found) } else { found.push(path) }
    }
    found.iter().map(|path| Source::read(&root, path)).collect()
}

const PROGRAMS: [&str; 3] = ["netstack/src", "overlayfs-fuse/src", "launcher/src"];

fn is_word(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(letter)
            && !line[at + word.len()..].chars().next().is_some_and(letter)
    })
}

/// Fails with every place in `rooms` that names one of `words`.
fn forbid(rooms: &[&str], words: &[&str], why: &str) {
    let broken: Vec<String> = sources(rooms)
        .iter()
        .flat_map(|source| source.places(|line| words.iter().any(|word| is_word(line, word))))
        .collect();
    assert!(broken.is_empty(), "{why}:\n{}", broken.join("\n"));
}

/// I/O, time and logging, in the forms in which code would reach for them.
const EDGES: [&str; 11] = [
    "nix",
    "libc",
    "tracing",
    "clap",
    "fs",
    "Instant::now",
    "SystemTime",
    "OwnedFd",
    "RawFd",
    "thread",
    "process",
];

#[test]
fn the_network_stack_is_pure() {
    forbid(
        &["netstack/src/stack"],
        &EDGES,
        "netstack's stack decides; it does no I/O, reads no clock and does not log",
    );
}

#[test]
fn the_plan_of_a_launch_is_pure() {
    forbid(
        &["launcher/src/plan.rs", "launcher/src/spec.rs", "launcher/src/doctor.rs"],
        &EDGES,
        "plans, specs and findings are values",
    );
}

#[test]
fn merging_directories_is_pure() {
    forbid(
        &["overlayfs-fuse/src/overlay/merge.rs"],
        &EDGES,
        "a merge takes listings and gives a listing",
    );
}

#[test]
fn the_overlay_knows_neither_fuse_nor_a_command_line() {
    forbid(
        &["overlayfs-fuse/src/overlay", "overlayfs-fuse/src/layer"],
        &["fuse", "clap"],
        "only fuse/, mount.rs and session.rs know FUSE",
    );
}

#[test]
fn the_fuse_protocol_is_pure() {
    let edges: Vec<&str> = EDGES.into_iter().filter(|edge| *edge != "libc").collect();
    forbid(
        &["overlayfs-fuse/src/fuse/wire.rs", "overlayfs-fuse/src/fuse/init.rs"],
        &edges,
        "messages are bytes; of libc only constants are used",
    );
}

#[test]
fn command_lines_are_read_in_one_place() {
    let broken: Vec<String> = sources(&PROGRAMS)
        .iter()
        .filter(|s| !s.path.contains("/cli") && !s.path.ends_with("src/main.rs"))
        .flat_map(|s| s.places(|line| is_word(line, "clap")))
        .collect();
    assert!(broken.is_empty(), "clap stays in cli:\n{}", broken.join("\n"));
}

#[test]
fn unsafe_stays_in_sys() {
    let broken: Vec<String> = sources(&PROGRAMS)
        .iter()
        .filter(|s| !s.path.contains("/src/sys/") && !s.path.ends_with("/src/sys.rs"))
        .flat_map(|s| {
            s.places(|line| is_word(line, "unsafe") || line.contains("allow(unsafe_code"))
        })
        .collect();
    assert!(broken.is_empty(), "unsafe code lives in sys/ alone:\n{}", broken.join("\n"));
}

#[test]
fn the_programs_do_not_link_each_other() {
    let crates = ["netstack", "overlayfs-fuse", "launcher"];
    for name in crates {
        let manifest = root().join(name).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let dependencies = text.split("dependencies]").skip(1).collect::<String>();
        for other in crates.iter().filter(|other| **other != name) {
            assert!(
                !dependencies.lines().any(|line| line.starts_with(other)),
                "{name} links {other}: programs meet through flags and inherited fds only"
            );
        }
    }
}

#[test]
fn files_stay_readable() {
    let all =
        ["netstack/src", "overlayfs-fuse/src", "launcher/src", "tests", "benches/src", "xtask/src"];
    let mut long: Vec<(usize, String)> = sources(&all)
        .into_iter()
        .map(|s| (s.code.len(), s.path))
        .filter(|(lines, _)| *lines > 600)
        .collect();
    long.sort();
    for (lines, path) in &long {
        println!("past the aim of 600 lines: {path} ({lines})");
    }
    long.retain(|(lines, _)| *lines > LONGEST_FILE);
    assert!(long.is_empty(), "split these files: {long:?}");
}

#[test]
fn the_rules_can_fail() {
    assert!(is_word("use clap::Parser;", "clap") && is_word("std::fs::read(x)", "fs"));
    assert!(!is_word("let offs = 1;", "fs") && !is_word("clap_like::x", "clap"));
}
