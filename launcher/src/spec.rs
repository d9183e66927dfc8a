//! What the user wants, as plain data: the result of reading a command line,
//! before anything of the host has been looked at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::landlock::Beneath;

/// Everything `coracle run` was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name given, or made up by the store; it names the container's directory.
    pub name: Option<String>,
    /// Where the container's root filesystem comes from.
    pub root: Root,
    /// Where changes to it go.
    pub upper: Upper,
    /// What puts the two together.
    #[serde(default)]
    pub overlay: Overlay,
    /// The root filesystem is mounted read-only once it is set up.
    pub read_only: bool,
    /// The container's directory is removed when it ends.
    pub remove: bool,
    /// The command returns once the container runs.
    pub detach: bool,
    /// Standard input is passed on (otherwise it is `/dev/null`).
    pub interactive: bool,
    /// The workload gets a pseudo-terminal.
    pub tty: bool,
    /// Environment: exactly these variables, besides `PATH`, `HOME`, `TERM`,
    /// `HOSTNAME` and `container`, which are set when not given.
    pub env: BTreeMap<String, String>,
    /// Working directory inside; `/` when absent.
    pub workdir: Option<PathBuf>,
    /// `-u USER[:GROUP]`, names or numbers, looked up inside the container.
    pub user: Option<String>,
    /// Bind mounts, in the order given.
    pub volumes: Vec<Volume>,
    /// Host name inside; the container's name when absent.
    pub hostname: Option<String>,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// The network the container gets.
    pub network: Network,
    /// Program and arguments; a shell when empty.
    pub command: Vec<String>,
    /// Number of the signal that `stop` sends; SIGTERM when absent.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// How the workload is kept apart from the host.
    #[serde(default)]
    pub security: Security,
    /// When it is run again after its end.
    #[serde(default)]
    pub restart: Restart,
    /// Bounds of what all its processes together use.
    #[serde(default)]
    pub limits: Limits,
    /// Bounds of each process.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// The workload itself is the container's first process.
    #[serde(default)]
    pub no_init: bool,
    /// What lives in memory alone.
    #[serde(default)]
    pub memory: InMemory,
    /// What is said about it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How it resolves names.
    #[serde(default)]
    pub names: Names,
    /// Seconds that `stop` gives it; 10 when absent.
    #[serde(default)]
    pub stop_timeout: Option<u32>,
    /// Where the host's number of its first process is written.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
    /// What of the host's it has in place of its own.
    #[serde(default)]
    pub shares: Shares,
}

/// Namespaces that a container shares with the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shares {
    /// The host's name.
    pub uts: bool,
    /// System V objects, POSIX message queues and /dev/shm.
    pub ipc: bool,
}

/// How a container resolves names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// Entries of its /etc/hosts besides the usual ones.
    pub hosts: Vec<(String, IpAddr)>,
    /// Its name servers; ours, or the host's, when there are none.
    pub servers: Vec<IpAddr>,
    /// Domains that it searches; the host's when absent.
    pub search: Option<Vec<String>>,
    /// Options of resolv.conf(5); the host's when absent.
    pub options: Option<Vec<String>>,
}

impl Names {
    /// Whether name servers are to be asked otherwise than usual.
    #[must_use]
    pub fn differ(&self) -> bool {
        !self.servers.is_empty() || self.search.is_some() || self.options.is_some()
    }
}

/// What of a container lives in memory alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InMemory {
    /// File systems.
    pub tmpfs: Vec<Tmpfs>,
    /// With a read-only root, /run, /tmp and /var/tmp are such file systems.
    pub scratch: bool,
    /// Files that the host has.
    pub secrets: Vec<Secret>,
    /// Bytes that /dev/shm holds at most.
    pub shm: u64,
}

/// What /dev/shm holds at most unless said otherwise, as in Podman.
pub const SHM: u64 = 64 << 20;

impl Default for InMemory {
    fn default() -> Self {
        Self { tmpfs: Vec::new(), scratch: true, secrets: Vec::new(), shm: SHM }
    }
}

/// One `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// How it is mounted.
    pub options: TmpfsOptions,
}

/// How a file system in memory is mounted; always nosuid and nodev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsOptions {
    /// Permissions of its top directory.
    pub mode: u32,
    /// Its bound in bytes; half of the machine's memory when absent.
    pub size: Option<u64>,
    /// Nothing in it can be changed.
    pub read_only: bool,
    /// Programs in it can be executed.
    pub programs: bool,
}

/// One `--secret NAME=FILE`; its content is nowhere but in the container's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Name of the file inside, one component of a path.
    pub name: String,
    /// Absolute path on the host.
    pub source: PathBuf,
}

/// How the workload is kept apart from the host, besides its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Capabilities of the container's root, bit n standing for capability n.
    pub capabilities: u64,
    /// The system calls it may make.
    pub seccomp: Seccomp,
    /// It reaches no files but those of its mounts (Landlock), where the kernel can and
    /// no capability is against it.
    pub landlock: bool,
    /// It is in a user namespace below the one that owns its network and mounts, where no
    /// capability is against it.
    pub nested: bool,
    /// System calls refused besides those of the default filter.
    pub deny: Vec<String>,
    /// The files it reaches; without, all that its mounts show.
    pub files: Option<Files>,
    /// The TCP ports it uses.
    pub ports: Ports,
    /// Where it may connect to, in netstack's words (`netstack --policy`).
    pub egress: Option<String>,
    /// Paths inside that are hidden besides the usual ones.
    pub mask: Vec<PathBuf>,
    /// Paths inside that are, of the usual ones, neither hidden nor read-only.
    pub unmask: Unmask,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            capabilities: crate::policy::capabilities(),
            seccomp: Seccomp::Default,
            landlock: true,
            nested: true,
            deny: Vec::new(),
            files: None,
            ports: Ports::default(),
            egress: None,
            mask: Vec::new(),
            unmask: Unmask::Paths(Vec::new()),
        }
    }
}

/// The files that a policy allows, for Landlock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// There is no container where they cannot be enforced.
    pub required: bool,
    /// What, besides /dev and /proc.
    pub beneath: Vec<Beneath>,
}

/// The TCP ports that a policy allows, for Landlock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// There is no container where they cannot be enforced.
    pub required: bool,
    /// To listen on; all when absent.
    pub listen: Option<Vec<u16>>,
    /// To connect to; all when absent.
    pub connect: Option<Vec<u16>>,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Those of our own list.
    Default,
    /// All.
    Unconfined,
    /// Those of a profile.
    Profile {
        /// Where it came from, for messages.
        path: PathBuf,
        /// All of it: the file may be another one by the next start.
        text: String,
    },
}

/// Which of the usual paths are left as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmask {
    /// All.
    All,
    /// These.
    Paths(Vec<PathBuf>),
}

/// What all processes of a container together may use. Absent: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Time on processors, in thousandths of one.
    pub millicpus: Option<u64>,
    /// Weight against others when processors are scarce, of which 1,024 is usual.
    pub cpu_shares: Option<u64>,
}

/// One `--ulimit NAME=SOFT[:HARD]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As getrlimit(2) has it, in lower case, without `RLIMIT_`.
    pub name: String,
    /// The bound; absent: none.
    pub soft: Option<u64>,
    /// How far it can be raised; absent: as one likes.
    pub hard: Option<u64>,
}

/// `--restart`: when a container is run again after its end, but for one that
/// was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its exit code was not 0, at most so many times.
    OnFailure(Option<u32>),
    /// Whatever its exit code was.
    Always,
    /// As [`Restart::Always`]: nothing of ours runs when the host starts, which
    /// is all the two could differ in.
    UnlessStopped,
}

impl Restart {
    /// Whether one that ended with `code` is run again, after `restarts` times.
    #[must_use]
    pub fn again(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

/// How long to wait before a container is run again that has ended soon after
/// its start `failures` times in a row: 100 ms, doubled each time, up to a minute.
#[must_use]
pub fn back_off(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);
    FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST)
}

/// Source of the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The public part of the host's own `/` (see doc/SEMANTICS.md).
    Host,
    /// A directory; it is left unchanged.
    Dir(PathBuf),
    /// An image; its layers are left unchanged.
    Image(ImageRoot),
}

/// An image as root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRoot {
    /// As it was called.
    pub name: String,
    /// The digest of its configuration.
    pub id: String,
    /// Its layers, unpacked, the topmost first.
    pub layers: Vec<PathBuf>,
    /// The working directory it names, which is made when missing.
    pub workdir: Option<PathBuf>,
    /// Directories in which it keeps data; made when missing.
    pub volumes: Vec<PathBuf>,
}

/// Where changes to the root filesystem are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// The container's own directory, until it is removed.
    Own,
    /// A directory of the caller's, kept: its `upper` and `work` folders are made when missing.
    Dir(PathBuf),
    /// Memory, bounded to this many bytes, or to half of the machine's memory.
    Ram(Option<u64>),
}

/// What joins the layers of a root filesystem with the changes to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlay {
    /// overlayfs-fuse.
    #[default]
    Fuse,
    /// The kernel's overlay filesystem.
    Kernel,
}

/// One `-v SRC:DST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// One `-p [IP:]HOST:CONTAINER[/tcp|udp]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address listened on; all addresses when absent.
    pub host_ip: Option<IpAddr>,
    /// Port listened on, host side.
    pub host_port: u16,
    /// Port connected to, in the container.
    pub container_port: u16,
    /// Which protocol.
    pub protocol: Protocol,
}

/// `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A network namespace joined to the host by `netstack`.
    Netstack,
    /// A network namespace with nothing but a loopback device.
    None,
    /// The host's own network namespace.
    Host,
}

/// Everything `coracle exec` was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Standard input is passed on (otherwise it is `/dev/null`).
    pub interactive: bool,
    /// The program gets a pseudo-terminal.
    pub tty: bool,
    /// Added to the environment that the container was started with.
    pub env: BTreeMap<String, String>,
    /// Working directory inside; the container's when absent.
    pub workdir: Option<PathBuf>,
    /// `USER[:GROUP]`; the container's when absent.
    pub user: Option<String>,
    /// Program and arguments, at least one.
    pub command: Vec<String>,
}

/// Longest name of a container, in bytes: it is the host name inside as well
/// (`HOST_NAME_MAX`, sethostname(2)).
pub const NAME_MAX: usize = 64;

/// Whether a container may have this name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at
/// most [`NAME_MAX`] bytes. Such a name is also one component of a path.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        && text.len() <= NAME_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_as_asked_for() {
        for (policy, code, restarts, again) in [
            (Restart::No, 1, 0, false),
            (Restart::OnFailure(None), 0, 0, false),
            (Restart::OnFailure(None), 1, 1_000_000, true),
            (Restart::OnFailure(Some(2)), 137, 1, true),
            (Restart::OnFailure(Some(2)), 137, 2, false),
            (Restart::Always, 0, u32::MAX, true),
            (Restart::UnlessStopped, 0, 7, true),
        ] {
            assert_eq!(policy.again(code, restarts), again, "{policy:?} {code} {restarts}");
        }
    }

    #[test]
    fn it_waits_longer_each_time_up_to_a_minute() {
        let waits: Vec<_> = [0, 1, 2, 9, 10, 31, 32, u32::MAX].map(back_off).into();
        assert_eq!(
            waits[..4].iter().map(Duration::as_millis).collect::<Vec<_>>(),
            [100, 200, 400, 51_200]
        );
        assert!(waits[4..].iter().all(|wait| wait.as_secs() == 60));
    }
}
