//! What will be done to make a container, as plain data: decided here, purely,
//! from what the user wants and what the host offers; carried out by the
//! stages, each its own part in order. Printed, it is what `--dry-run` shows.

mod confine;
mod display;
mod names;
mod overlay;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

pub use confine::{Confinement, Lack, unenforced};
pub use steps::{
    InitStep, Kind, MonitorStep, Paths, Plan, PlanError, StorageStep, Workload, merged, scratch,
};

use overlay::Joined;

use crate::policy;
use crate::probe::{HostCaps, Place};
use crate::spec::{
    Exec, Limits, Network, Overlay, Protocol, Publish, Root, Secret, Security, Spec, TmpfsOptions,
    Unmask, Upper,
};

/// The container's end of the network, as slirp4netns users know it.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// Its default gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Its name server.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Length of the IPv4 network's prefix, in bits.
pub const PREFIX_V4: u8 = 24;
/// As [`GUEST_V4`], for IPv6.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
/// As [`GATEWAY_V4`], for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// As [`DNS_V4`], for IPv6.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
/// Length of the IPv6 network's prefix, in bits.
pub const PREFIX_V6: u8 = 64;
/// Largest IP packet between container and netstack, in bytes: the most a TAP
/// device takes, rounded to a multiple of 16.
pub const MTU: u16 = 65520;
/// Packets that may wait for netstack. The kernel's 1,000 are too few for the
/// windows that TCP opens at this speed, and a full queue loses packets.
pub const QUEUE: u16 = 10_000;
/// Queues that tap0 has at most: beyond, nothing was measured.
const QUEUES_MAX: usize = 4;

/// As many lower directories as overlayfs-fuse joins.
const MOST_LAYERS: usize = 500;

/// Search path of programs in a container, unless `-e PATH=…` says otherwise.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// CAP_NET_BIND_SERVICE, number 10 (linux/capability.h).
const NET_BIND_SERVICE: u64 = 1 << 10;

/// Where secrets are, inside.
pub const SECRETS: &str = "/run/secrets";

/// Directories of the host's root that no container sees.
const HIDDEN: [&str; 9] =
    ["/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/home", "/root", "/media"];

/// Decides what will be done.
///
/// `name` is the container's; paths in `spec` are absolute and free of
/// symbolic links.
///
/// # Errors
/// [`PlanError`] when the host lacks what it takes.
pub fn plan(spec: &Spec, host: &HostCaps, name: &str, paths: &Paths) -> Result<Plan, PlanError> {
    let mut plan = Plan {
        map: host.map.clone(),
        own_network: spec.network != Network::Host,
        shares: spec.shares,
        monitor: Vec::new(),
        storage: Vec::new(),
        init: Vec::new(),
        workload: workload(spec, host.term.clone(), host.map.is_single(), name),
        lacking: Vec::new(),
    };
    for lack in unenforced(&spec.security, host.landlock) {
        if lack.required {
            return Err(PlanError::Unenforceable(lack.what));
        }
        plan.lacking.push(lack.what);
    }
    if plan.lacking.is_empty() {
        plan.lacking.extend(confine::without_landlock(&spec.security, host.landlock));
    }
    if spec.security.egress.is_some() && spec.network == Network::Host {
        return Err(PlanError::NoEgress);
    }
    group(&mut plan, spec, host, name);
    storage(&mut plan, spec, host, name, paths)?;
    network(&mut plan, spec, host, paths)?;
    before_root(&mut plan, spec, name);
    file_systems(&mut plan, spec);
    files(&mut plan, paths);
    plan.init.push(InitStep::Pivot);
    plan.init.extend(masked(&spec.security).into_iter().map(InitStep::Hide));
    plan.init.extend(protected(&spec.security).into_iter().map(InitStep::Protect));
    if spec.read_only {
        plan.init.push(InitStep::RootReadOnly);
    }
    plan.workload.confinement = confine::confinement(spec, host, &plan.init);
    Ok(plan)
}

/// The paths inside that are hidden.
#[must_use]
pub fn masked(security: &Security) -> Vec<PathBuf> {
    let usual = policy::MASKED_PATHS.iter().filter(|path| is_usual(security, path));
    usual.map(PathBuf::from).chain(security.mask.iter().cloned()).collect()
}

/// The paths inside that are read-only.
#[must_use]
pub fn protected(security: &Security) -> Vec<PathBuf> {
    let usual = policy::READONLY_PATHS.iter().filter(|path| is_usual(security, path));
    usual.map(PathBuf::from).collect()
}

fn is_usual(security: &Security, path: &str) -> bool {
    match &security.unmask {
        Unmask::All => false,
        Unmask::Paths(paths) => !paths.iter().any(|unmasked| unmasked == Path::new(path)),
    }
}

fn hostname<'a>(spec: &'a Spec, name: &'a str) -> &'a str {
    spec.hostname.as_deref().unwrap_or(name)
}

/// The workload of one more program in the container of `spec`, which is held by
/// `confinement`. `term` is the caller's TERM.
#[must_use]
pub fn joined(
    spec: &Spec,
    exec: &Exec,
    term: Option<String>,
    single_id: bool,
    confinement: Confinement,
) -> Workload {
    let mut env = spec.env.clone();
    env.extend(exec.env.clone());
    let spec = Spec {
        interactive: exec.interactive,
        tty: exec.tty,
        env,
        workdir: exec.workdir.clone().or_else(|| spec.workdir.clone()),
        user: exec.user.clone().or_else(|| spec.user.clone()),
        command: exec.command.clone(),
        ..spec.clone()
    };
    let name = spec.name.as_deref().unwrap_or("coracle");
    Workload { confinement, ..workload(&spec, term, single_id, name) }
}

/// What is executed in the container of `spec`; `term` is the value of TERM.
#[must_use]
pub fn workload(spec: &Spec, term: Option<String>, single_id: bool, name: &str) -> Workload {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOSTNAME".to_owned(), hostname(spec, name).to_owned()),
        ("container".to_owned(), "coracle".to_owned()),
    ]);
    if spec.tty {
        env.insert("TERM".to_owned(), term.unwrap_or_else(|| "xterm".to_owned()));
    }
    env.extend(spec.env.clone());
    let command =
        if spec.command.is_empty() { vec!["/bin/sh".to_owned()] } else { spec.command.clone() };
    Workload {
        command,
        user: spec.user.clone(),
        workdir: spec.workdir.clone().unwrap_or_else(|| "/".into()),
        env,
        tty: spec.tty,
        interactive: spec.interactive,
        capabilities: spec.security.capabilities,
        single_id,
        confinement: Confinement::default(),
        ulimits: spec.ulimits.clone(),
        no_init: spec.no_init,
    }
}

/// A control group, where one can be made: with a bound on nothing it can still
/// be frozen.
fn group(plan: &mut Plan, spec: &Spec, host: &HostCaps, name: &str) {
    let wanted = settings(&spec.limits);
    let mut controllers: Vec<String> =
        wanted.iter().map(|(controller, ..)| (*controller).to_owned()).collect();
    controllers.dedup();
    let has_all = |place: &&Place| controllers.iter().all(|c| place.controllers.contains(c));
    let place = host.groups.iter().find(has_all).or_else(|| host.groups.first());
    let has = |controller: &str| {
        place.is_some_and(|place| place.controllers.iter().any(|had| had == controller))
    };
    let missing: Vec<&str> =
        wanted.iter().filter(|(controller, ..)| !has(controller)).map(|(.., o)| *o).collect();
    if !missing.is_empty() {
        let why = if place.is_some() {
            "its control group has not all the controllers it takes"
        } else {
            "no control group (version 2) is delegated to this user"
        };
        plan.lacking.push(format!(
            "{} without effect: {why}; see 'systemd-run --user --scope -p Delegate=yes coracle …'",
            missing.join(", ")
        ));
    }
    let Some(place) = place else { return };
    controllers.retain(|controller| has(controller));
    let leave = place.leave && !controllers.is_empty();
    let settings = wanted.iter().filter(|(controller, ..)| has(controller));
    plan.monitor.push(MonitorStep::Group {
        parent: place.dir.clone(),
        name: format!("coracle-{name}"),
        controllers: controllers.clone(),
        leave,
        settings: settings.map(|(_, file, value, _)| (file.to_string(), value.clone())).collect(),
    });
}

/// What bounds mean to the kernel: controller, file, value, and the option.
fn settings(limits: &Limits) -> Vec<(&'static str, &'static str, String, &'static str)> {
    /// In microseconds: what the kernel takes when it is told nothing.
    const PERIOD: u64 = 100_000;
    let mut all = Vec::new();
    if let Some(bytes) = limits.memory {
        all.push(("memory", "memory.max", bytes.to_string(), "--memory"));
    }
    if let Some(count) = limits.pids {
        all.push(("pids", "pids.max", count.to_string(), "--pids-limit"));
    }
    if let Some(thousandths) = limits.millicpus {
        let quota = (thousandths.saturating_mul(PERIOD) / 1_000).max(1_000);
        all.push(("cpu", "cpu.max", format!("{quota} {PERIOD}"), "--cpus"));
    }
    if let Some(shares) = limits.cpu_shares {
        // From 2 … 262,144 to 1 … 10,000, as systemd and all engines have it.
        let shares = shares.clamp(2, 262_144);
        let weight = 1 + (shares - 2) * 9_999 / 262_142;
        all.push(("cpu", "cpu.weight", weight.to_string(), "--cpu-shares"));
    }
    all
}

fn storage(
    plan: &mut Plan,
    spec: &Spec,
    host: &HostCaps,
    name: &str,
    paths: &Paths,
) -> Result<(), PlanError> {
    let scratch = paths.scratch();
    let (merged, base) = (merged(&paths.store), scratch.join("base"));
    plan.storage.push(StorageStep::Scratch(scratch.clone()));
    plan.storage.push(StorageStep::ScratchDirectory(merged.clone()));
    // Below everything else: what is missing of the places that are mounted over. To make
    // them in the upper layer would be several messages to the overlay for each.
    for place in ["", "proc", "dev", "sys", "etc"] {
        plan.storage.push(StorageStep::ScratchDirectory(base.join(place)));
    }
    for (name, content) in names::texts(spec, host, name) {
        plan.storage.push(StorageStep::ScratchFile { path: base.join("etc").join(name), content });
    }
    let lowers = match &spec.root {
        Root::Dir(dir) => vec![dir.clone()],
        Root::Image(image) => image.layers.clone(),
        Root::Host => {
            let lower = scratch.join("lower");
            plan.storage.push(StorageStep::ScratchDirectory(lower.clone()));
            plan.storage.push(StorageStep::BindTree { source: "/".into(), target: lower.clone() });
            for hidden in hidden(spec, host, paths) {
                let mode = match hidden.to_str() {
                    Some("/tmp" | "/var/tmp") => 0o1777,
                    Some("/root") => 0o700,
                    _ => 0o755,
                };
                let path = below(&lower, &hidden);
                plan.storage.push(StorageStep::Hide { path, mode });
            }
            vec![lower]
        }
    };
    let (upper, work) = match &spec.upper {
        Upper::Own => (paths.upper.clone(), paths.work.clone()),
        Upper::Dir(dir) => (dir.join("upper"), dir.join("work")),
        Upper::Ram(size) => {
            let ram = paths.dir.join("ram");
            plan.monitor.push(MonitorStep::MakeDirectory(ram.clone()));
            plan.storage.push(StorageStep::Ram { target: ram.clone(), size: *size });
            (ram.join("upper"), ram.join("work"))
        }
    };
    plan.storage.push(StorageStep::MakeDirectory(upper.clone()));
    plan.storage.push(StorageStep::MakeDirectory(work.clone()));
    // Hundreds of layers by their full names are more than one argument may have.
    let dir = match &lowers[..] {
        [first, _, ..] => first.ancestors().nth(2),
        _ => None,
    };
    let mut layers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
    if let Some(dir) = dir {
        for layer in &mut layers {
            *layer = layer.strip_prefix(dir).unwrap_or(layer);
        }
    }
    if layers_below(&spec.root) > 0 {
        layers.push(&base);
    }
    let joined = Joined { layers, upper: &upper, work: &work };
    let dir = dir.unwrap_or(Path::new("/")).to_owned();
    let step = match spec.overlay {
        Overlay::Fuse => joined.by_fuse(spec, host, dir, merged.clone())?,
        Overlay::Kernel => joined.by_kernel(spec, host, dir, merged.clone())?,
    };
    plan.storage.push(step);
    plan.init.push(InitStep::Root(merged));
    Ok(())
}

/// How many layers the overlay has below those of the root itself: one with the places
/// that are mounted over. The host's root has them, and of many layers there is no room for
/// one more.
#[must_use]
pub fn layers_below(root: &Root) -> usize {
    match root {
        Root::Host => 0,
        Root::Dir(_) => 1,
        Root::Image(image) => usize::from(image.layers.len() < MOST_LAYERS),
    }
}

/// What of the host's root is hidden, none below another.
fn hidden(spec: &Spec, host: &HostCaps, paths: &Paths) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = HIDDEN.iter().map(PathBuf::from).collect();
    all.extend(host.homes.iter().cloned());
    all.push(paths.store.clone());
    if let Upper::Dir(dir) = &spec.upper {
        all.push(dir.clone());
    }
    // Sorted by component, so that each comes after those it lies below.
    all.sort();
    let mut outermost: Vec<PathBuf> = Vec::new();
    for path in all {
        if !outermost.iter().any(|outer| path.starts_with(outer)) {
            outermost.push(path);
        }
    }
    outermost
}

fn network(plan: &mut Plan, spec: &Spec, host: &HostCaps, paths: &Paths) -> Result<(), PlanError> {
    let name = match spec.network {
        Network::Netstack => {
            let program = host.netstack.clone().ok_or(PlanError::NoProgram("netstack"))?;
            if !host.tun {
                return Err(PlanError::NoDevice {
                    device: "/dev/net/tun",
                    advice: "load the kernel's tun module and let every user read and write the \
                             device, or use --network none",
                });
            }
            let mut arguments = vec!["--mtu".to_owned(), MTU.to_string()];
            for option in ["--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"] {
                arguments.push(option.to_owned());
            }
            if host.ipv6 {
                arguments.push("--enable-ipv6".to_owned());
            }
            if let Some(rules) = &spec.security.egress {
                let path = paths.dir.join("egress.toml");
                arguments.extend(["--policy".to_owned(), path.to_string_lossy().into_owned()]);
                plan.monitor.push(MonitorStep::WriteFile { path, content: rules.clone() });
            }
            for publish in &spec.publish {
                arguments.extend(["-p".to_owned(), published(publish)]);
            }
            plan.monitor.push(MonitorStep::Netstack { program, arguments });
            // First of all: netstack starts while the rest is done.
            let queues = host.processors.clamp(1, QUEUES_MAX);
            plan.init.insert(0, InitStep::Tap { ipv6: host.ipv6, queues });
            plan.init.insert(1, InitStep::Loopback);
            return Ok(());
        }
        Network::None => {
            plan.init.insert(0, InitStep::Loopback);
            "none"
        }
        Network::Host => "host",
    };
    if spec.publish.is_empty() { Ok(()) } else { Err(PlanError::CannotPublish(name)) }
}

/// `[IP:]HOST:CONTAINER/PROTOCOL`, an IPv6 address in brackets.
fn published(publish: &Publish) -> String {
    let address = match publish.host_ip {
        None => String::new(),
        Some(IpAddr::V4(ip)) => format!("{ip}:"),
        Some(IpAddr::V6(ip)) => format!("[{ip}]:"),
    };
    let protocol = match publish.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{address}{}:{}/{protocol}", publish.host_port, publish.container_port)
}

/// What needs no root is done while that is mounted.
fn before_root(plan: &mut Plan, spec: &Spec, name: &str) {
    let mut steps = Vec::new();
    // The capability does not count in a nested namespace.
    let low_ports = spec.security.capabilities & NET_BIND_SERVICE != 0;
    if plan.own_network && low_ports && confine::nested(spec) {
        steps.push(InitStep::LowPorts);
    }
    if plan.own_network {
        steps.push(InitStep::PingGroups(plan.map.last_gid()));
    }
    if !spec.shares.uts {
        steps.push(InitStep::Hostname(hostname(spec, name).to_owned()));
    }
    let root = plan.init.iter().position(|step| matches!(step, InitStep::Root(_)));
    let root = root.unwrap_or(plan.init.len());
    plan.init.splice(root..root, steps);
}

fn file_systems(plan: &mut Plan, spec: &Spec) {
    let mut mount =
        |kind, target: &str| plan.init.push(InitStep::Mount { kind, target: target.into() });
    mount(Kind::Proc, "/proc");
    mount(Kind::Dev, "/dev");
    mount(Kind::Devpts, "/dev/pts");
    let shm = TmpfsOptions {
        mode: 0o1777,
        size: Some(spec.memory.shm),
        read_only: false,
        programs: false,
    };
    if !spec.shares.ipc {
        mount(Kind::Tmpfs(shm), "/dev/shm");
        mount(Kind::Mqueue, "/dev/mqueue");
    }
    if spec.network == Network::Host {
        plan.init.push(InitStep::HostSysfs);
    } else {
        mount(Kind::Sysfs, "/sys");
    }
    if spec.shares.ipc {
        plan.init.push(InitStep::HostIpc);
    }
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        plan.init.push(InitStep::Device(device.to_owned()));
    }
    for (path, target) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        plan.init.push(InitStep::Link { path: path.into(), target: target.into() });
    }
    if spec.tty {
        plan.init.push(InitStep::Console);
    }
    if spec.root == Root::Host {
        for (target, mode) in [("/run", 0o755), ("/tmp", 0o1777)] {
            plan.init.push(in_memory(target.into(), plain_memory(mode)));
        }
    }
    if let Root::Image(image) = &spec.root {
        for volume in &image.volumes {
            // Those of the command line go before.
            if spec.volumes.iter().any(|other| other.target == *volume) {
                continue;
            }
            let target = volume.clone();
            plan.init.push(if spec.read_only {
                in_memory(target, plain_memory(0o755))
            } else {
                InitStep::Directory(target)
            });
        }
        plan.init.extend(image.workdir.clone().map(InitStep::Directory));
    }
    plan.init.extend(mounts(spec));
    if !spec.memory.secrets.is_empty() {
        plan.init.push(InitStep::Mount { kind: Kind::Secrets, target: SECRETS.into() });
    }
    for Secret { name, source } in &spec.memory.secrets {
        plan.init.push(InitStep::Secret { source: source.clone(), name: name.clone() });
    }
}

/// The mounts that were asked for, those that lie in others after them.
fn mounts(spec: &Spec) -> Vec<InitStep> {
    let memory = spec.memory.tmpfs.iter().map(|tmpfs| (tmpfs.target.clone(), tmpfs.options));
    let mut mounts: Vec<(PathBuf, InitStep)> =
        memory.map(|(target, options)| (target.clone(), in_memory(target, options))).collect();
    mounts.extend(spec.volumes.iter().map(|volume| {
        let (source, target) = (volume.source.clone(), volume.target.clone());
        let step = InitStep::Volume { source, target, read_only: volume.read_only };
        (volume.target.clone(), step)
    }));
    if spec.read_only && spec.memory.scratch {
        for (path, mode) in [("/run", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777)] {
            // On the host's root two of them are in memory anyway.
            let there = spec.root == Root::Host && path != "/var/tmp";
            let path = PathBuf::from(path);
            if !there && !mounts.iter().any(|(target, _)| *target == path) {
                mounts.push((path.clone(), in_memory(path, plain_memory(mode))));
            }
        }
    }
    mounts.sort_by_key(|(target, _)| target.components().count());
    mounts.into_iter().map(|(_, step)| step).collect()
}

fn in_memory(target: PathBuf, options: TmpfsOptions) -> InitStep {
    InitStep::Mount { kind: Kind::Tmpfs(options), target }
}

/// Memory for whatever programs keep in such places.
fn plain_memory(mode: u32) -> TmpfsOptions {
    TmpfsOptions { mode, size: None, read_only: false, programs: true }
}

/// Shows the files of [`names::texts`].
fn files(plan: &mut Plan, paths: &Paths) {
    let etc = paths.scratch().join("base/etc");
    let shown = plan.storage.iter().filter_map(|step| match step {
        StorageStep::ScratchFile { path, .. } => Some(InitStep::File {
            source: path.clone(),
            target: Path::new("/etc").join(path.strip_prefix(&etc).ok()?),
        }),
        _ => None,
    });
    plan.init.extend(shown);
    if plan.map.is_single() {
        // apt checks that it has become someone else, whom there is none here:
        // apt.conf(5), APT::Sandbox::User.
        let source = paths.scratch().join("apt.conf");
        let content = "// Only root exists in this container.\nAPT::Sandbox::User \"root\";\n";
        let step = StorageStep::ScratchFile { path: source.clone(), content: content.to_owned() };
        let overlay = plan.storage.len() - 1;
        plan.storage.insert(overlay, step);
        let target = "/etc/apt/apt.conf.d/99coracle".into();
        plan.init.push(InitStep::FileBeside { source, target });
    }
}

/// `path` (absolute) below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
