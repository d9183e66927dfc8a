//! The processes of a container, and what they use.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::idmap::{IdMap, Range};
use crate::store::State;

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its number inside.
    pub pid: i32,
    /// Its number on the host.
    pub host_pid: i32,
    /// Its parent's number inside; 0: outside.
    pub parent: i32,
    /// Its user inside; absent when that has no name there.
    pub user: Option<u32>,
    /// Since it was started, in seconds.
    pub elapsed: u64,
    /// Its controlling terminal; absent when it has none.
    pub tty: Option<String>,
    /// Time on processors, in milliseconds.
    pub cpu: u64,
    /// Its command line, or in brackets its name.
    pub command: String,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Time on processors since its start, in microseconds.
    pub cpu: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// The bound of that; absent when there is none.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes that came in through its network; absent without one of its own.
    pub received: Option<u64>,
    /// Bytes that went out.
    pub sent: Option<u64>,
}

/// What the kernel says of a process in /proc/PID/stat.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: i32,
    tty: i64,
    /// In clock ticks.
    cpu: u64,
    threads: u64,
    /// In clock ticks since boot.
    started: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may itself contain spaces and parentheses.
        let (before, rest) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc_pid_stat(5): the first one here is the third.
        let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<i64>().ok());
        let unsigned = |field| number(field).and_then(|number| u64::try_from(number).ok());
        Some(Self {
            name: name.to_owned(),
            parent: number(4).and_then(|number| i32::try_from(number).ok())?,
            tty: number(7)?,
            cpu: unsigned(14)? + unsigned(15)?,
            threads: unsigned(20)?,
            started: unsigned(22)?,
        })
    }
}

/// The numbers of all processes in the pid namespace of process `init`.
///
/// # Errors
/// When there is no such process.
fn members(init: i32) -> io::Result<Vec<i32>> {
    let namespace = |pid: i32| {
        fs::metadata(format!("/proc/{pid}/ns/pid")).map(|metadata| (metadata.dev(), metadata.ino()))
    };
    let wanted = namespace(init)?;
    let mut pids: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // One that has ended since, or is nobody's business, is none of them.
        if let Some(pid) = number
            && namespace(pid).is_ok_and(|found| found == wanted)
        {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

/// All processes of a running container, init first.
///
/// # Errors
/// When it has ended.
pub fn tasks(state: &State) -> io::Result<Vec<Task>> {
    let init = state.init.ok_or(io::ErrorKind::NotFound)?;
    let ticks = ticks_per_second();
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let mut found = Vec::new();
    let mut inside = BTreeMap::new();
    for host_pid in members(init.pid)? {
        let read = |file: &str| fs::read_to_string(format!("/proc/{host_pid}/{file}"));
        let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { continue };
        let Some(stat) = Stat::parse(&stat) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let last = |name| field(name)?.split_whitespace().last()?.parse().ok();
        let Some(pid) = last("NSpid:") else { continue };
        let uid = field("Uid:").and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        inside.insert(host_pid, pid);
        let words = fs::read(format!("/proc/{host_pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
        found.push((
            stat.parent,
            Task {
                pid,
                host_pid,
                parent: 0,
                user: uid.and_then(|uid| user_inside(&state.map, uid)),
                elapsed: (uptime as u64).saturating_sub(stat.started / ticks),
                tty: tty(stat.tty),
                cpu: stat.cpu * 1_000 / ticks,
                command: if line.is_empty() { format!("[{}]", stat.name) } else { line },
            },
        ));
    }
    let mut tasks: Vec<Task> = found
        .into_iter()
        .map(|(parent, task)| Task { parent: inside.get(&parent).copied().unwrap_or(0), ..task })
        .collect();
    tasks.sort_by_key(|task| task.pid);
    Ok(tasks)
}

/// The user's number inside of one outside.
fn user_inside(map: &IdMap, uid: u32) -> Option<u32> {
    map.uids.iter().find_map(|Range { inside, outside, count }| {
        let offset = uid.checked_sub(*outside)?;
        (offset < *count).then(|| inside + offset)
    })
}

/// The name of a terminal by its device number (linux/kdev_t.h).
fn tty(device: i64) -> Option<String> {
    let device = u64::try_from(device).ok().filter(|device| *device != 0)?;
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    Some(match major {
        // Documentation/admin-guide/devices.txt: pseudo-terminals.
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    })
}

/// Clock ticks a second, as /proc counts.
fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    ticks
        .ok()
        .flatten()
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|t| *t > 0)
        .unwrap_or(100)
}

/// What a running container uses now: by its control group, or, what that does
/// not count, by its processes.
///
/// # Errors
/// When it has ended.
pub fn usage(state: &State, own_network: bool) -> io::Result<Usage> {
    let init = state.init.ok_or(io::ErrorKind::NotFound)?;
    let group = |file: &str| {
        state.group.as_ref().and_then(|group| fs::read_to_string(group.join(file)).ok())
    };
    let number = |file: &str| group(file).and_then(|text| text.trim().parse::<u64>().ok());
    let mut usage = Usage { memory_limit: number("memory.max"), ..Usage::default() };
    let cpu = group("cpu.stat").and_then(|text| keyed(&text, "usage_usec"));
    let (memory, pids) = (number("memory.current"), number("pids.current"));
    let members = members(init.pid)?;
    let ticks = ticks_per_second();
    let mut by_processes = Usage::default();
    for pid in members {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if let Some(stat) = Stat::parse(&read("stat")) {
            by_processes.cpu += stat.cpu * 1_000_000 / ticks;
            by_processes.pids += stat.threads;
        }
        if memory.is_none() {
            // Pages of several processes are counted in parts.
            by_processes.memory += kilobytes(&read("smaps_rollup"), "Pss:").unwrap_or(0) * 1_024;
        }
    }
    usage.cpu = cpu.unwrap_or(by_processes.cpu);
    usage.memory = memory.unwrap_or(by_processes.memory);
    usage.pids = pids.unwrap_or(by_processes.pids);
    if own_network {
        let devices =
            fs::read_to_string(Path::new("/proc").join(init.pid.to_string()).join("net/dev"));
        let (received, sent) = traffic(&devices?);
        (usage.received, usage.sent) = (Some(received), Some(sent));
    }
    Ok(usage)
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes in and out of all devices but the loopback, by /proc/net/dev.
fn traffic(devices: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for line in devices.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> =
            counters.split_whitespace().map(|text| text.parse().unwrap_or(0)).collect();
        sum.0 += counters.first().copied().unwrap_or(0);
        sum.1 += counters.get(8).copied().unwrap_or(0);
    }
    sum
}

/// Share of one processor, in hundredths of a percent: `cpu` microseconds in `time`.
#[must_use]
pub fn share(cpu: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    cpu.saturating_mul(10_000) / micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let text = "42 (a) b (c) S 7 42 42 34817 42 4194304 1 2 3 4 50 6 7 8 20 0 3 0 9000 1 2";
        let wanted = Stat {
            name: "a) b (c".to_owned(),
            parent: 7,
            tty: 34_817,
            cpu: 56,
            threads: 3,
            started: 9_000,
        };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(Stat::parse("42 (a"), None);
        assert_eq!(Stat::parse(""), None);
        let me = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(Stat::parse(&me).unwrap().parent as u32, std::os::unix::process::parent_id());
    }

    #[test]
    fn terminals_have_names() {
        assert_eq!(tty(0), None);
        assert_eq!(tty(34_817).as_deref(), Some("pts/1"));
        assert_eq!(tty((137 << 8) | 2).as_deref(), Some("pts/258"));
        assert_eq!(tty((4 << 8) | 1).as_deref(), Some("tty1"));
    }

    #[test]
    fn users_are_those_of_the_inside() {
        let map = IdMap::of_caller(1000, 1000, Some("a"), "a:100000:65536\n", "a:100000:65536\n");
        assert_eq!(user_inside(&map, 1_000), Some(0));
        assert_eq!(user_inside(&map, 100_032), Some(33));
        assert_eq!(user_inside(&map, 5), None);
    }

    #[test]
    fn traffic_is_that_of_the_outside() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n\
                    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n\
                    tap0: 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n";
        assert_eq!(traffic(text), (1_000, 2_000));
        assert_eq!(traffic(""), (0, 0));
        assert_eq!(share(500_000, Duration::from_secs(1)), 5_000);
        assert_eq!(share(1, Duration::ZERO), 10_000);
    }
}
