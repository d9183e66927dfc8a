//! What this machine is, and how busy it was.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tests::command::Cmd;

use crate::record::Machine;

/// Clock ticks a second in /proc: `USER_HZ`, 100 on every architecture Linux has
/// user space for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Looks at the machine. Call it before file systems are mounted over the source
/// tree.
pub(crate) fn look() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let (commit, dirty) = commit();
    Machine {
        kernel: first_line("uname", &["-srm"]).unwrap_or_else(|| "unknown".into()),
        distribution: fs::read_to_string("/etc/os-release")
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .unwrap_or("unknown")
            .trim_matches('"')
            .to_owned(),
        cpu: field("model name").or_else(|| field("CPU part")).unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism().map_or(1, Into::into),
        memory_bytes: memory_bytes(),
        virtual_machine: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
        commit,
        dirty,
    }
}

/// Now, RFC 3339, UTC.
pub(crate) fn date() -> String {
    first_line("date", &["--utc", "+%FT%TZ"]).unwrap_or_else(|| "unknown".into())
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Cmd::new(program).args(args).run().ok().filter(|output| output.code == 0)?;
    Some(output.stdout.lines().next().unwrap_or_default().to_owned())
}

/// Commit of the tree this program was built from, and whether the tree differs.
fn commit() -> (String, bool) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |args: &[&str]| {
        // Root may measure in a tree that belongs to somebody else.
        let output = Cmd::new("git")
            .args(["-c", "safe.directory=*", "-C"])
            .arg(tree)
            .args(args)
            .run()
            .ok()
            .filter(|output| output.code == 0)?;
        Some(output.stdout.trim().to_owned())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) => (commit, !changes.is_empty()),
        _ => ("unknown: no git, or no repository".into(), false),
    }
}

/// CPU time of the whole machine since it started, seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CpuTime {
    /// Everything that ran: user, system, interrupts.
    pub(crate) busy: f64,
    /// What the hypervisor gave to somebody else.
    pub(crate) steal: f64,
}

impl CpuTime {
    /// As of now, from /proc/stat.
    ///
    /// # Errors
    /// When that cannot be read.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line `cpu`")
    }

    /// proc_stat(5): user nice system idle iowait irq softirq steal guest guest_nice,
    /// guest being part of user.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<f64> =
            line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let busy = [0, 1, 2, 5, 6].iter().map(|&at| fields.get(at)).sum::<Option<f64>>()?;
        Some(Self {
            busy: busy / TICKS_PER_SECOND,
            steal: fields.get(7).copied().unwrap_or(0.0) / TICKS_PER_SECOND,
        })
    }

    /// What passed since an earlier time.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { busy: self.busy - earlier.busy, steal: self.steal - earlier.steal }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn cpu_time_leaves_out_waiting() {
        let text = "cpu  100 200 300 4000 5000 1 2 70 9 9\ncpu0 1 1 1\n";
        assert_eq!(CpuTime::parse(text), Some(CpuTime { busy: 6.03, steal: 0.7 }));
        assert_eq!(CpuTime::parse("intr 1"), None);
        assert_eq!(CpuTime::parse("cpu  1 2"), None);
    }

    #[test]
    fn this_machine_has_something_of_everything() {
        let machine = look();
        assert!(machine.kernel.starts_with("Linux ") && machine.memory_bytes > 1 << 20);
        assert!(machine.cores >= 1 && date().ends_with('Z'));
    }
}
