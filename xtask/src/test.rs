//! `cargo xtask test`: every check and test, counted.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{clock, lab};

use crate::prepare::{self, Purpose};
use crate::{cargo, target_dir};

/// Suites for file systems, as crates with their versions.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// Ignored by test programs that do not say why.
    ignored: u64,
    times: Vec<(String, Duration)>,
}

/// Runs everything, or only the end-to-end tests named; `false` when something
/// failed.
pub(crate) fn run(e2e: &[String]) -> Result<bool> {
    prepare::machine(&[Purpose::Build, Purpose::Run, Purpose::Demo, Purpose::Test])?;
    let mut tally = Tally::default();
    if e2e.is_empty() {
        tally.checks()?;
    }
    let built = tally.check("build", cargo().args(["build", "--workspace", "--bins"]))?;
    if built {
        let mut tests = cargo();
        if e2e.is_empty() {
            tests.args(["test", "--workspace", "--no-fail-fast"]);
            tests.env("PATH", tally.suites()?);
        } else {
            tests.args(["test", "--package", "tests", "--test", "e2e", "--"]).args(e2e);
        }
        tally.tests("tests", &mut tests)?;
    }
    if built && e2e.is_empty() {
        let programs = target_dir()?.join("debug");
        // By cargo: the build above may have replaced the file of this program.
        let mut demo = cargo();
        demo.args(["run", "--quiet", "--package", "xtask", "--", "demo", "--programs"]);
        demo.arg(programs);
        tally.check("demo", &mut demo)?;
    }
    Ok(tally.report())
}

impl Tally {
    fn checks(&mut self) -> Result<()> {
        self.check("fmt", cargo().args(["fmt", "--all", "--check"]))?;
        let mut clippy = cargo();
        clippy.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        self.check("clippy", &mut clippy)?;
        let mut doc = cargo();
        doc.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
        // Theories of operation name private parts; those are documented here too.
        let flags = "-D warnings -A rustdoc::private_intra_doc_links";
        self.check("doc", doc.env("RUSTDOCFLAGS", flags))?;

        // A build of its own: these locks are not the standard library's.
        let mut schedules = cargo();
        schedules.args(["test", "--quiet", "--package", "overlayfs-fuse"]);
        self.check("schedules", schedules.args(["--features", "shuttle", "--lib", "schedules"]))?;

        let has_deny = cargo()
            .args(["deny", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if has_deny {
            // The advisories are a download of their own; these three are not.
            let mut deny = cargo();
            deny.args(["deny", "--workspace", "--log-level", "error", "check"]);
            self.check("deny", deny.args(["licenses", "bans", "sources"]))?;
        } else {
            self.skip("deny", "cargo-deny is not installed: cargo install cargo-deny");
        }
        Ok(())
    }

    /// Test suites that are programs of their own, from crates.io; the search path
    /// with which they are found. What cannot be got is skipped by name.
    fn suites(&mut self) -> Result<OsString> {
        let tools = target_dir()?.join("tools");
        for (name, version) in SUITES {
            if lab::find(name).is_some() || tools.join("bin").join(name).exists() {
                continue;
            }
            say!("installing {name} {version}");
            let mut install = cargo();
            install.args(["install", "--quiet", "--locked", "--version", version, "--root"]);
            if !install.arg(&tools).arg(name).stdin(Stdio::null()).status()?.success() {
                self.skip(name, "it cannot be installed from crates.io");
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::env::split_paths(&path).chain([tools.join("bin")]);
        std::env::join_paths(all).context("the search path")
    }

    fn skip(&mut self, name: &str, why: &str) {
        say!("\nSKIPPED {name}: {why}");
        self.skipped.push(format!("{name}: {why}"));
    }

    /// One command that passes or fails as a whole.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        say!("\n== {name}");
        let start = clock::now();
        let status =
            command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {name}"))?;
        self.times.push((name.to_owned(), clock::now() - start));
        if status.success() {
            self.passed += 1;
        } else {
            self.failed.push(format!("{name} ({status})"));
        }
        Ok(status.success())
    }

    /// Test programs, whose result lines are added up.
    fn tests(&mut self, name: &str, command: &mut Command) -> Result<()> {
        say!("\n== {name}");
        let start = clock::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let output = child.stdout.take().context("no pipe to the tests")?;
        let failed_before = self.failed.len();
        let mut named_skips = 0;
        for line in BufReader::new(output).lines() {
            let line = line?;
            say!("{line}");
            if let Some((passed, ignored)) = result_line(&line) {
                // Each that failed was named on a line of its own, before.
                self.passed += passed;
                self.ignored += ignored;
            } else if let Some(skipped) = line.strip_prefix("SKIPPED ") {
                self.skipped.push(skipped.to_owned());
                named_skips += 1;
            } else if let Some(test) = failed_test(&line) {
                self.failed.push(test.to_owned());
            }
        }
        self.ignored = self.ignored.saturating_sub(named_skips);
        let status = child.wait()?;
        self.times.push((name.to_owned(), clock::now() - start));
        if !status.success() && self.failed.len() == failed_before {
            self.failed.push(format!("{name} ({status}; see above)"));
        }
        Ok(())
    }

    fn report(&self) -> bool {
        say!("\n== summary");
        for (name, time) in &self.times {
            say!("{name}: {:.0} s", time.as_secs_f32());
        }
        for skipped in &self.skipped {
            say!("SKIPPED {skipped}");
        }
        if self.ignored > 0 {
            say!("SKIPPED {} more, marked as ignored (see above)", self.ignored);
        }
        for failed in &self.failed {
            say!("FAILED {failed}");
        }
        say!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len() as u64 + self.ignored
        );
        self.failed.is_empty()
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …` → (3, 1): passed, ignored.
/// Test programs with a main function of their own say less, and `skipped`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?;
    let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
    let count = |names: &[&str]| {
        counts.split("; ").find_map(|count| {
            let (number, name) = count.split_once(' ')?;
            if names.contains(&name) { number.parse::<u64>().ok() } else { None }
        })
    };
    count(&["failed"])?;
    Some((count(&["passed"])?, count(&["ignored", "skipped"])?))
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    outcome.starts_with("FAILED").then_some(name)
}

#[cfg(test)]
mod unit {
    use super::{failed_test, result_line};

    #[test]
    fn result_lines_are_read() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(result_line(line), Some((3, 1)));
        assert_eq!(result_line("test result: 15 passed; 0 failed; 4 skipped"), Some((15, 4)));
        assert_eq!(result_line("test result: ok."), None);
        assert_eq!(result_line("something else"), None);
    }

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a/b ... FAILED (0.1 s)"), Some("a/b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 0 passed"), None);
    }
}
