//! What the user wants, as plain data: the result of reading a command line,
//! before anything of the host has been looked at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything `coracle run` was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name given, or made up by the store; it names the container's directory.
    pub name: Option<String>,
    /// Where the container's root filesystem comes from.
    pub root: Root,
    /// Where changes to it go.
    pub upper: Upper,
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
            mask: Vec::new(),
            unmask: Unmask::Paths(Vec::new()),
        }
    }
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
