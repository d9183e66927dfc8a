//! What must not be there after a test: processes, mounts, files.
//!
//! A namespace lives as long as a process is in it, a descriptor is open on it
//! or a mount holds it, so no process and no mount left means no namespace
//! left; the same holds for sockets, whose names are looked for as files.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::clock::Deadline;
use crate::command::readable;
use crate::lab::Lab;
use crate::sys;

/// Time that processes which were told to end get for it.
const GRACE: Duration = Duration::from_secs(5);

/// The state before a test.
#[derive(Debug)]
pub struct Snapshot {
    processes: BTreeSet<i32>,
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// Looks at the lab.
    ///
    /// # Errors
    /// When /proc or one of the directories cannot be read.
    pub fn take(lab: &Lab) -> Result<Self> {
        Ok(Self { processes: lab.processes(), mounts: mounts()?, files: files(lab) })
    }

    /// Everything that has come since, in words; it is removed.
    ///
    /// # Errors
    /// When /proc or one of the directories cannot be read.
    pub fn leaks(&self, lab: &Lab) -> Result<Vec<String>> {
        let mut leaks = Vec::new();
        for pid in self.processes_left(lab)? {
            leaks.push(format!("process {pid}: {}", describe(pid)));
        }
        if !leaks.is_empty() {
            lab.kill_all();
        }
        for mount in mounts()?.difference(&self.mounts) {
            leaks.push(format!("mount {mount}"));
            if let Some(target) = mount.split(' ').nth(1) {
                // A mount that cannot be removed shows in every later test.
                nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH).ok();
            }
        }
        let mut reported: Option<PathBuf> = None;
        for path in files(lab).difference(&self.files) {
            // Sorted: what is in a directory follows it.
            let within = reported.as_ref().is_some_and(|dir| path.starts_with(dir));
            if lab.may_stay(path) || within {
                continue;
            }
            reported = Some(path.clone());
            leaks.push(format!("file {}", path.display()));
            // Its parent may have gone first.
            lab.remove_as_root(path).ok();
        }
        Ok(leaks)
    }

    /// Waits until all processes that have come since are gone.
    ///
    /// # Errors
    /// Names those that stay.
    pub fn wait_for_processes(&self, lab: &Lab) -> Result<()> {
        let left = self.processes_left(lab)?;
        let left: Vec<_> = left.into_iter().map(describe).collect();
        anyhow::ensure!(left.is_empty(), "still running: {}", left.join("\n    "));
        Ok(())
    }

    fn processes_left(&self, lab: &Lab) -> Result<BTreeSet<i32>> {
        let deadline = Deadline::after(GRACE);
        loop {
            lab.reap();
            let left: BTreeSet<i32> =
                lab.processes().difference(&self.processes).copied().collect();
            if left.is_empty() || deadline.passed() {
                return Ok(left);
            }
            for pid in left {
                // ESRCH: it ended since.
                if let Ok(pidfd) = sys::pidfd_open(pid) {
                    readable(pidfd.as_fd(), deadline.left())?;
                }
            }
        }
    }
}

/// A process in words.
#[must_use]
pub fn describe(pid: i32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let line = read("cmdline").unwrap_or_default().replace('\0', " ");
    let status = read("status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map_or_else(String::new, |value| {
            value.split_whitespace().collect::<Vec<_>>().join(" ")
        })
    };
    format!(
        "{} ({}), parent {}, uid {}, {}",
        line.trim(),
        field("Name:"),
        field("PPid:"),
        field("Uid:"),
        field("State:")
    )
}

/// Mounts as `ROOT TARGET TYPE SOURCE`.
fn mounts() -> Result<BTreeSet<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let mut right = right.split(' ');
            Some(format!("{} {} {} {}", left.next()?, left.next()?, right.next()?, right.next()?))
        })
        .collect())
}

fn files(lab: &Lab) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for dir in lab.watched() {
        walk(&dir, &mut all);
    }
    all
}

/// Directories that cannot be read (somebody else's, or just removed) are
/// listed themselves, without what is in them.
fn walk(dir: &Path, all: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, all);
        }
        all.insert(path);
    }
}
