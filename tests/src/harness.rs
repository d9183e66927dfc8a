//! The table of tests and what runs it.
//!
//! # Theory of operation
//!
//! Tests run one after the other, each on a thread of its own, so that one that
//! hangs can be given up: when its time is up everything it started is killed,
//! which ends whatever it waits for. After each test the leak check looks at
//! processes, mounts and files; what it finds fails the test and is removed, so
//! that one leak does not fail the tests after it.
//!
//! A test ends as passed, failed, or skipped with a reason ([`skip`]). The last
//! lines name every failure and every skip, and count them in the form `cargo
//! test` uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::clock::{self, Deadline};
use crate::command::{Cmd, User};
use crate::lab::{self, Ids, Lab};
use crate::leak::Snapshot;
use crate::say;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    name: &'static str,
    run: fn(&World<'_>) -> Result<()>,
    users: Users,
    needs_lab: bool,
    limit: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// Whoever is there.
    Any,
    One(Ids),
    Each,
}

impl Test {
    /// A test run once: by the user with subordinate ids, or, where there is
    /// none, by the one with a single id.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&World<'_>) -> Result<()>) -> Self {
        Self { name, run, users: Users::Any, needs_lab: false, limit: Duration::from_secs(60) }
    }

    /// Run twice: with subordinate ids, and with a single id.
    #[must_use]
    pub const fn each_user(mut self) -> Self {
        self.users = Users::Each;
        self
    }

    /// Run by the user with subordinate ids only.
    #[must_use]
    pub const fn subordinate_ids(mut self) -> Self {
        self.users = Users::One(Ids::Subordinate);
        self
    }

    /// Run by the user with a single id only.
    #[must_use]
    pub const fn single_id(mut self) -> Self {
        self.users = Users::One(Ids::Single);
        self
    }

    /// Needs namespaces of its own (the "outside", changes to the machine).
    #[must_use]
    pub const fn lab(mut self) -> Self {
        self.needs_lab = true;
        self
    }

    /// How long it may take, in seconds.
    #[must_use]
    pub const fn seconds(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// What a test works with.
#[derive(Debug)]
pub struct World<'a> {
    /// The machine around it.
    pub lab: &'a Lab,
    /// Who it runs programs as.
    pub user: &'a User,
    /// Which ids that user has.
    pub ids: Ids,
    dir: PathBuf,
}

impl World<'_> {
    /// A directory of this test's own, owned by the user, removed afterwards.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Writes a file, named relative to the test's directory, as the user.
    ///
    /// # Errors
    /// When the user may not.
    pub fn write(&self, name: impl AsRef<std::path::Path>, text: &str) -> Result<()> {
        self.cmd("dd").arg(of(name.as_ref())).arg("status=none").stdin(text).run()?.ok()?;
        Ok(())
    }

    /// A program run by the user.
    #[must_use]
    pub fn cmd(&self, program: &str) -> Cmd {
        Cmd::new(program).user(self.user).dir(&self.dir)
    }

    /// One of this workspace's programs, run by the user.
    #[must_use]
    pub fn ours(&self, program: &str) -> Cmd {
        Cmd::new(self.lab.bin.join(program)).user(self.user).dir(&self.dir)
    }

    /// `coracle` with these arguments.
    #[must_use]
    pub fn coracle(&self, args: &[&str]) -> Cmd {
        self.ours("coracle").args(args)
    }
}

/// The operand of dd(1) that names its output.
fn of(path: &std::path::Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from("of=");
    word.push(path);
    word
}

#[derive(Debug)]
struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// How much of something there is to be: what the environment says, for long runs by
/// hand, or this.
///
/// # Errors
/// When the variable is there and is no number.
pub fn amount(variable: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(variable) {
        Err(_) => Ok(otherwise),
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
    }
}

/// Returned by a test that this machine cannot run: counted, and named.
pub fn skip(why: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Skipped(why.into()))
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

#[derive(Default)]
struct Options {
    filters: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
}

fn options() -> Options {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--exact" => options.exact = true,
            "--ignored" => options.ignored = true,
            // Flags with a value that the runners of cargo pass.
            "--format" | "--test-threads" | "--color" | "-Z" => {
                args.next();
            }
            flag if flag.starts_with('-') => {}
            filter => options.filters.push(filter.to_owned()),
        }
    }
    options
}

/// How long orphans that have ended may wait for it while a test runs: nobody else waits
/// for them, and a test of many containers leaves thousands.
const BETWEEN_REAPING: Duration = Duration::from_millis(200);

/// Runs the tests of a table that the command line asks for.
#[must_use]
pub fn main(tests: &[Test]) -> ExitCode {
    let options = options();
    let cases = cases(tests, &options);
    let done = match options.list {
        true => cases.iter().try_for_each(|(name, ..)| say!("{name}: test")).map(|()| true),
        false => run(&cases).context("the tests cannot run"),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => say::tell(&error, 2),
    }
}

/// Without ids: whichever the user has.
type Case = (String, Test, Option<Ids>);

fn cases(tests: &[Test], options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    if options.ignored {
        return cases;
    }
    for test in tests {
        match test.users {
            Users::Any => cases.push((test.name.to_owned(), *test, None)),
            Users::One(ids) => cases.push((test.name.to_owned(), *test, Some(ids))),
            Users::Each => {
                cases.push((test.name.to_owned(), *test, Some(Ids::Subordinate)));
                cases.push((format!("{}@single-id", test.name), *test, Some(Ids::Single)));
            }
        }
    }
    let wanted = |name: &str| {
        options.filters.is_empty()
            || options.filters.iter().any(|filter| {
                if options.exact { name == filter } else { name.contains(filter.as_str()) }
            })
    };
    cases.retain(|(name, ..)| wanted(name));
    cases
}

fn run(cases: &[Case]) -> Result<bool> {
    let start = clock::now();
    lab::enter(None)?;
    let lab = Lab::set_up(None)?;
    say!("\nrunning {} tests", cases.len())?;
    let mut outcomes = BTreeMap::new();
    let mut passed = 0;
    for (name, test, ids) in cases {
        let begun = clock::now();
        let outcome = run_one(&lab, test, *ids)?;
        let took = (clock::now() - begun).as_secs_f32();
        match &outcome {
            Outcome::Passed => {
                passed += 1;
                say!("test {name} ... ok ({took:.2} s)")?;
            }
            Outcome::Failed(why) => say!("test {name} ... FAILED ({took:.2} s)\n{why}\n")?,
            Outcome::Skipped(why) => say!("test {name} ... ignored, {why}")?,
        }
        outcomes.insert(name, outcome);
    }

    let failed: Vec<_> =
        outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).collect();
    let mut skipped = 0;
    for (name, outcome) in &outcomes {
        if let Outcome::Skipped(why) = outcome {
            skipped += 1;
            say!("SKIPPED {name}: {why}")?;
        }
    }
    for (name, _) in &failed {
        say!("FAILED {name}")?;
    }
    say!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        (clock::now() - start).as_secs_f32()
    )?;
    Ok(failed.is_empty())
}

fn run_one(lab: &Lab, test: &Test, ids: Option<Ids>) -> Result<Outcome> {
    let ids = ids.unwrap_or_else(|| lab.any_ids());
    if test.needs_lab && lab.outside.is_none() {
        return Ok(Outcome::Skipped("needs root, to make network namespaces".into()));
    }
    let Some(user) = lab.user(ids) else {
        return Ok(Outcome::Skipped(lab.no_user(ids)));
    };
    let before = Snapshot::take(lab)?;
    let dir = lab.test_dir(user)?;
    let world = World { lab, user, ids, dir: dir.clone() };
    let mut outcome = with_limit(lab, test, &world);
    std::fs::remove_dir_all(&dir)
        .with_context(|| format!("cannot remove the test's directory {}", dir.display()))
        .or_else(|error| lab.remove_as_root(&dir).map_err(|_| error))?;

    let leaks = before.leaks(lab)?;
    if !leaks.is_empty() {
        let list = leaks.join("\n    ");
        let list = format!("  left behind:\n    {list}");
        outcome = Outcome::Failed(match outcome {
            Outcome::Failed(why) => format!("{why}\n{list}"),
            Outcome::Passed | Outcome::Skipped(_) => list,
        });
    }
    Ok(outcome)
}

fn with_limit(lab: &Lab, test: &Test, world: &World<'_>) -> Outcome {
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        let thread = scope.spawn(move || {
            let result = (test.run)(world);
            // Nobody listens any more once the time is up.
            send.send(()).ok();
            result
        });
        let deadline = Deadline::after(test.limit);
        let in_time = loop {
            match receive.recv_timeout(deadline.left().min(BETWEEN_REAPING)) {
                Err(mpsc::RecvTimeoutError::Timeout) if !deadline.passed() => lab.reap_orphans(),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let running = lab.processes_in_words();
                    lab.kill_all();
                    break Err(running);
                }
                // Disconnected: it panicked.
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            }
        };
        let result = match thread.join() {
            Ok(result) => result,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                Err(anyhow::anyhow!("panicked: {text}"))
            }
        };
        match (in_time, result) {
            (Err(running), result) => Outcome::Failed(format!(
                "  time limit of {:?} exceeded; running then:\n{running}\n  it said: {}",
                test.limit,
                result.map_or_else(|error| format!("{error:#}"), |()| "nothing".into())
            )),
            (Ok(()), Ok(())) => Outcome::Passed,
            (Ok(()), Err(error)) => match error.downcast::<Skipped>() {
                Ok(Skipped(why)) => Outcome::Skipped(why),
                Err(error) => Outcome::Failed(format!("  {error:#}")),
            },
        }
    })
}
