//! What a plan consists of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Confinement;
use crate::idmap::IdMap;
use crate::spec::{Shares, TmpfsOptions, Ulimit};

/// The directories a container is made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The container's own.
    pub dir: PathBuf,
    /// The store's, hidden from containers on the host's root.
    pub store: PathBuf,
    /// Where changes are kept by default.
    pub upper: PathBuf,
    /// The overlay's work directory for that.
    pub work: PathBuf,
}

impl Paths {
    /// Where each container has memory of its own mounted, which no other sees.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        scratch(&self.store)
    }
}

/// As [`Paths::scratch`], in this store.
#[must_use]
pub fn scratch(store: &Path) -> PathBuf {
    store.join("mnt")
}

/// Where a container's root is mounted, seen by its overlay.
#[must_use]
pub fn merged(store: &Path) -> PathBuf {
    scratch(store).join("root")
}

/// Why what the user wants cannot be done here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One of our programs was not found.
    #[error(
        "cannot find the program {0}; install it beside coracle, in ../libexec/coracle or in $PATH"
    )]
    NoProgram(&'static str),
    /// A device cannot be opened.
    #[error("cannot open {device}; {advice}")]
    NoDevice {
        /// Its path.
        device: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The kernel's overlay lacks what it takes.
    #[error("--overlay kernel cannot be used with {0}; use --overlay fuse")]
    NotByKernel(&'static str),
    /// It does not take so many layers.
    #[error(
        "the layers' names are {bytes} bytes, and the kernel's overlay takes 4095; use --overlay fuse"
    )]
    LongOptions {
        /// All options.
        bytes: usize,
    },
    /// Ports can be published only by netstack.
    #[error("-p cannot be used with --network {0}; only --network netstack publishes ports")]
    CannotPublish(&'static str),
    /// A policy requires what cannot be had.
    #[error("{0}; the policy requires it")]
    Unenforceable(String),
    /// Only netstack knows destinations.
    #[error("the policy's network.egress cannot be enforced with --network host")]
    NoEgress,
}

/// What the monitor does, in the host's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MonitorStep {
    /// Makes a directory, unless it is there.
    MakeDirectory(PathBuf),
    /// Writes a file for netstack.
    WriteFile {
        /// Its path on the host.
        path: PathBuf,
        /// All of it.
        content: String,
    },
    /// Makes the container's control group.
    Group {
        /// Below this one.
        parent: PathBuf,
        /// Its name.
        name: String,
        /// Controllers that the parent passes on.
        controllers: Vec<String>,
        /// This process leaves the parent, which could not pass them on otherwise.
        leave: bool,
        /// What is written into which of its files.
        settings: Vec<(String, String)>,
    },
    /// Starts the network, once the container has sent its TAP device.
    Netstack {
        /// The program.
        program: PathBuf,
        /// Its arguments but for the descriptors.
        arguments: Vec<String>,
    },
}

/// What the storage stage does, as root of the user namespace, in a mount
/// namespace that only it and the overlay see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageStep {
    /// Shows `source` with all mounts below it at `target`.
    BindTree {
        /// What.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Puts an empty read-only directory over `path`, when that exists.
    Hide {
        /// What.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Mounts memory of the stage's own here: for mount points, and for files that the
    /// container will see.
    Scratch(PathBuf),
    /// Makes a directory there that everybody may look into (0755).
    ScratchDirectory(PathBuf),
    /// Writes a file there that everybody may read (0644).
    ScratchFile {
        /// Its path on the host.
        path: PathBuf,
        /// All of it.
        content: String,
    },
    /// Mounts a file system in memory.
    Ram {
        /// Where.
        target: PathBuf,
        /// Its bound in bytes; half of the machine's memory when absent.
        size: Option<u64>,
    },
    /// Makes a directory, unless it is there.
    MakeDirectory(PathBuf),
    /// Starts the overlay and waits until it is mounted.
    Overlay {
        /// The program.
        program: PathBuf,
        /// The value of its `-o`.
        options: String,
        /// Where relative paths in that begin.
        dir: PathBuf,
        /// The mount point.
        target: PathBuf,
    },
    /// Mounts the kernel's overlay.
    KernelOverlay {
        /// What mount(2) is told (Documentation/filesystems/overlayfs.rst).
        options: String,
        /// Where relative paths in that begin.
        dir: PathBuf,
        /// The mount point.
        target: PathBuf,
        /// A directory that says that the last one did not write all to the disk. Nothing of
        /// this is to outlive the machine anyway, so it is taken away.
        stale: Option<PathBuf>,
    },
}

/// A file system of the container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// procfs of the container's processes.
    Proc,
    /// sysfs of the container's network, read-only.
    Sysfs,
    /// The tmpfs that holds the device files.
    Dev,
    /// Pseudo-terminals of the container's own.
    Devpts,
    /// POSIX message queues.
    Mqueue,
    /// A tmpfs.
    Tmpfs(TmpfsOptions),
    /// What holds secrets: memory that is never swapped out.
    Secrets,
}

/// What the container's first process does in its new namespaces. Paths in
/// the container are resolved inside its root, wherever its links point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitStep {
    /// Brings the loopback device up.
    Loopback,
    /// Makes and configures the TAP device and sends it to the monitor.
    Tap {
        /// With an IPv6 address.
        ipv6: bool,
        /// Queues to ask for, each with a worker of netstack's.
        queues: usize,
    },
    /// Takes this directory of the host as the container's root.
    Root(PathBuf),
    /// Mounts a file system of the container's own.
    Mount {
        /// Which.
        kind: Kind,
        /// Where, inside; made when missing.
        target: PathBuf,
    },
    /// Shows the host's /sys, read-only.
    HostSysfs,
    /// Shows the host's /dev/shm and /dev/mqueue, as far as they are there.
    HostIpc,
    /// Shows this device of the host's /dev.
    Device(String),
    /// Makes a symbolic link.
    Link {
        /// Its path inside.
        path: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// Opens a pseudo-terminal, shows it as /dev/console, sends it to the monitor.
    Console,
    /// Shows what the host has at `source`.
    Volume {
        /// Path on the host.
        source: PathBuf,
        /// Path inside; made when missing.
        target: PathBuf,
        /// Nothing below it can be changed.
        read_only: bool,
    },
    /// Copies the host's file into the memory at [`super::SECRETS`].
    Secret {
        /// Path on the host.
        source: PathBuf,
        /// Its name there.
        name: String,
    },
    /// Shows a file written for the container; as a volume.
    File {
        /// Path on the host.
        source: PathBuf,
        /// Path inside; made when missing.
        target: PathBuf,
    },
    /// As a file, when the directory it would be in is there.
    FileBeside {
        /// Path on the host.
        source: PathBuf,
        /// Path inside.
        target: PathBuf,
    },
    /// Makes a directory, with its parents, when missing.
    Directory(PathBuf),
    /// Lets groups 0 to this one send ICMP echo requests.
    PingGroups(u32),
    /// Lets everybody inside listen on ports below 1024.
    LowPorts,
    /// Sets the host name.
    Hostname(String),
    /// Makes the root the root, and lets go of the host's.
    Pivot,
    /// Hides a path behind /dev/null or an empty read-only directory, when it exists.
    Hide(PathBuf),
    /// Makes a path and all below it read-only, when it exists.
    Protect(PathBuf),
    /// Makes the root file system read-only.
    RootReadOnly,
}

/// What is executed, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `USER[:GROUP]`, looked up inside; root when absent.
    pub user: Option<String>,
    /// Working directory inside.
    pub workdir: PathBuf,
    /// Variables, but for HOME, which depends on the user.
    pub env: BTreeMap<String, String>,
    /// Gets a pseudo-terminal.
    pub tty: bool,
    /// Standard input is passed on.
    pub interactive: bool,
    /// Capabilities of its root, bit n standing for capability n.
    pub capabilities: u64,
    /// Only user and group 0 exist.
    pub single_id: bool,
    /// What else holds it.
    pub confinement: Confinement,
    /// Bounds of each process.
    pub ulimits: Vec<Ulimit>,
    /// It is the container's first process itself.
    pub no_init: bool,
}

/// All that will be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Ids of the user namespace.
    pub map: IdMap,
    /// The container gets a network namespace of its own.
    pub own_network: bool,
    /// What it has none of its own of.
    pub shares: Shares,
    /// Done by the monitor.
    pub monitor: Vec<MonitorStep>,
    /// Done by the storage stage.
    pub storage: Vec<StorageStep>,
    /// Done by the container's first process.
    pub init: Vec<InitStep>,
    /// Executed by it.
    pub workload: Workload,
    /// What was asked for and cannot be had here, in words.
    pub lacking: Vec<String>,
}

impl Plan {
    /// The container starts only when netstack is ready, too.
    #[must_use]
    pub fn has_netstack(&self) -> bool {
        self.monitor.iter().any(|step| matches!(step, MonitorStep::Netstack { .. }))
    }
}
