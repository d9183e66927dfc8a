//! What a sample cost: CPU time, memory, segments sent again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::load::Figures;
use crate::machine::CpuTime;
use crate::record::{Sample, extra};

/// Clock ticks a second in /proc.
const TICKS_PER_SECOND: f64 = 100.0;
const MIB: f64 = 1024.0 * 1024.0;

/// What is looked at before and after a sample.
pub(super) struct Meter {
    backend: Option<i32>,
    /// snmp tables of the network namespaces that take part.
    snmp: Vec<PathBuf>,
    cpu: f64,
    machine: CpuTime,
    resent: u64,
}

/// The difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Used {
    /// CPU seconds of the backend, its children included.
    pub(super) cpu: Option<f64>,
    /// CPU seconds of the machine.
    pub(super) machine: CpuTime,
    /// Peak resident memory of the backend, bytes.
    pub(super) peak_rss: Option<u64>,
    /// TCP segments sent again.
    pub(super) resent: u64,
}

impl Meter {
    /// `namespaces` are processes, one in each network namespace taking part.
    pub(super) fn start(backend: Option<i32>, namespaces: &[i32]) -> Result<Self> {
        let snmp: Vec<PathBuf> =
            namespaces.iter().map(|pid| format!("/proc/{pid}/net/snmp").into()).collect();
        let resent = resent(&snmp)?;
        let cpu = backend.map_or(Ok(0.0), cpu_seconds)?;
        Ok(Self { backend, snmp, cpu, machine: CpuTime::now()?, resent })
    }

    pub(super) fn stop(self) -> Result<Used> {
        let machine = CpuTime::now()?.since(self.machine);
        let cpu = match self.backend {
            Some(pid) => Some(cpu_seconds(pid).context("the backend has ended")? - self.cpu),
            None => None,
        };
        Ok(Used {
            cpu,
            machine,
            peak_rss: self.backend.map(|pid| memory(pid, "VmHWM:")).transpose()?,
            resent: resent(&self.snmp)?.saturating_sub(self.resent),
        })
    }
}

impl Used {
    /// A transfer: Gbit/s, and what a GB cost.
    pub(super) fn transfer(self, figures: &Figures) -> Sample {
        let gb = figures.bytes as f64 / 1e9;
        let mut sample = Sample::of(gb * 8.0 / figures.seconds.max(1e-9))
            .with(extra::CHECKED_BYTES, figures.bytes as f64)
            .with(extra::MACHINE_CPU_PER_GB, self.machine.busy / gb);
        if let Some(cpu) = self.cpu {
            sample = sample.with(extra::CPU_PER_GB, cpu / gb);
        }
        if figures.sent > 0 {
            let lost = figures.sent.saturating_sub(figures.received);
            sample = sample.with(super::LOSS_PERCENT, 100.0 * lost as f64 / figures.sent as f64);
        } else {
            sample = sample.with(extra::RETRANSMITS, self.resent as f64);
        }
        self.common(sample)
    }

    /// Operations: how many a second, how long each, and what one cost.
    pub(super) fn operations(self, figures: &Figures) -> Sample {
        let count = figures.operations as f64;
        let mut sample = Sample::of(count / figures.seconds)
            .with(extra::ERRORS, figures.errors as f64)
            .with(extra::MACHINE_CPU_PER_OP, self.machine.busy * 1e6 / count);
        if let Some(cpu) = self.cpu {
            sample = sample.with(extra::CPU_PER_OP, cpu * 1e6 / count);
        }
        for (name, value) in super::PERCENTILE_NAMES.iter().zip(&figures.percentiles_us) {
            sample = sample.with(name, *value);
        }
        self.common(sample)
    }

    fn common(self, mut sample: Sample) -> Sample {
        sample = sample
            .with(extra::MACHINE_CPU_S, self.machine.busy)
            .with(extra::STEAL_S, self.machine.steal);
        if let (Some(cpu), Some(rss)) = (self.cpu, self.peak_rss) {
            sample = sample.with(extra::CPU_S, cpu).with(extra::PEAK_RSS_MIB, rss as f64 / MIB);
        }
        sample
    }
}

/// CPU seconds of a process and its descendants, since they started.
pub(super) fn cpu_seconds(pid: i32) -> Result<f64> {
    tree(pid).into_iter().map(cpu_of).sum()
}

/// The scheduler's own sum is exact, but forgets threads that have ended; the
/// process' has those, in ticks.
fn cpu_of(pid: i32) -> Result<f64> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(dir.join("stat")).context("the process has ended")?;
    let ticks = ticks(&stat).with_context(|| format!("/proc/{pid}/stat is {stat:?}"))?;
    Ok((ticks as f64 / TICKS_PER_SECOND).max(schedstat(&dir.join("task"))))
}

/// utime, stime, and the same of children waited for: fields 14 to 17 of
/// proc_pid_stat(5).
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

fn schedstat(tasks: &Path) -> f64 {
    let Ok(tasks) = fs::read_dir(tasks) else { return 0.0 };
    let ns = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    ns.sum::<u64>() as f64 / 1e9
}

/// Memory of a process and its descendants by a line of proc_pid_status(5), bytes.
pub(super) fn memory(pid: i32, line: &str) -> Result<u64> {
    let mut sum = 0;
    for pid in tree(pid) {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("the backend has ended")?;
        let kib = status.lines().find_map(|text| text.strip_prefix(line));
        let kib = kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        // A process that has ended and was not collected has none.
        sum += kib.unwrap_or(0) << 10;
    }
    Ok(sum)
}

/// A process and its descendants.
fn tree(pid: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (child, parent)));
    }
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(child, _)| child));
        at += 1;
    }
    found
}

fn resent(snmp: &[PathBuf]) -> Result<u64> {
    let of = |path: &PathBuf| -> Result<u64> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        retransmitted(&text).with_context(|| format!("{} has no RetransSegs", path.display()))
    };
    snmp.iter().map(of).sum()
}

/// `RetransSegs` of /proc/net/snmp: a line of names, a line of values.
fn retransmitted(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let at = lines.next()?.split_whitespace().position(|name| name == "RetransSegs")?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0";
        assert_eq!(ticks(stat), Some(127));
        assert_eq!(ticks("7 (a) S 1"), None);
        let snmp = "Ip: A B\nIp: 1 2\nTcp: InSegs RetransSegs\nTcp: 5 42\n";
        assert_eq!(retransmitted(snmp), Some(42));
        assert_eq!(retransmitted("Ip: A\nIp: 1\n"), None);
    }

    #[test]
    fn a_process_has_cpu_time_and_memory() {
        let own = std::process::id().cast_signed();
        let before = cpu_seconds(own).unwrap();
        let mut sum = 0u64;
        while cpu_seconds(own).unwrap() <= before {
            sum = (0..100_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(memory(own, "VmHWM:").unwrap() >= memory(own, "VmRSS:").unwrap() / 2);
    }

    #[test]
    fn samples_have_what_a_reader_divides_by() {
        let used = Used {
            cpu: Some(0.5),
            machine: CpuTime { busy: 2.0, steal: 0.0 },
            peak_rss: Some(3 << 20),
            resent: 7,
        };
        let figures = Figures { seconds: 2.0, bytes: 500_000_000, ..Figures::default() };
        let sample = used.transfer(&figures);
        assert_eq!(sample.value, 2.0);
        assert_eq!(sample.extra[extra::CPU_PER_GB], 1.0);
        assert_eq!(sample.extra[extra::MACHINE_CPU_PER_GB], 4.0);
        assert_eq!(sample.extra[extra::RETRANSMITS], 7.0);
        assert_eq!(sample.extra[extra::PEAK_RSS_MIB], 3.0);

        let figures = Figures { sent: 4, received: 3, ..figures };
        assert_eq!(used.transfer(&figures).extra[super::super::LOSS_PERCENT], 25.0);

        let figures = Figures { seconds: 2.0, operations: 1000, errors: 1, ..Figures::default() };
        let sample = used.operations(&figures);
        assert_eq!(sample.value, 500.0);
        assert_eq!(sample.extra[extra::CPU_PER_OP], 500.0);
    }
}
