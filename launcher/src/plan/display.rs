//! A plan in words, one line a step.

use std::fmt;
use std::path::Path;

use super::{InitStep, Kind, MonitorStep, Plan, StorageStep, Workload};
use crate::idmap::Range;
use crate::policy::landlock::Beneath;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "monitor (host):")?;
        for step in &self.monitor {
            writeln!(f, "  {step}")?;
        }
        writeln!(f, "user namespace:")?;
        for (what, ranges) in [("uid", &self.map.uids), ("gid", &self.map.gids)] {
            for Range { inside, outside, count } in ranges {
                writeln!(f, "  {what} {inside} is the host's {outside} ({count})")?;
            }
        }
        writeln!(f, "storage (new user and mount namespace):")?;
        for step in &self.storage {
            writeln!(f, "  {step}")?;
        }
        let own =
            [(!self.shares.ipc, "ipc, "), (!self.shares.uts, "uts, "), (self.own_network, "net, ")];
        let own: String = own.iter().filter(|(own, _)| *own).map(|(_, name)| *name).collect();
        writeln!(f, "init (new mount, pid, {own}cgroup namespace):")?;
        for step in &self.init {
            writeln!(f, "  {step}")?;
        }
        write!(f, "workload:\n{}", self.workload)
    }
}

impl fmt::Display for MonitorStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDirectory(path) => write!(f, "make directory {}", path.display()),
            Self::WriteFile { path, content } => {
                write!(f, "write {} ({} bytes)", path.display(), content.len())
            }
            Self::Group { parent, name, settings, .. } => {
                write!(f, "make control group {}", parent.join(name).display())?;
                for (number, (file, value)) in settings.iter().enumerate() {
                    let before = if number == 0 { " with" } else { "," };
                    write!(f, "{before} {file}={value}")?;
                }
                Ok(())
            }
            Self::Netstack { program, arguments } => {
                write!(f, "start {} {}", program.display(), arguments.join(" "))
            }
        }
    }
}

impl fmt::Display for StorageStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BindTree { source, target } => {
                write!(f, "show {} and all below it at {}", source.display(), target.display())
            }
            Self::Hide { path, mode } => write!(f, "hide {} (mode {mode:o})", path.display()),
            Self::Scratch(path) => write!(f, "mount memory of its own at {}", path.display()),
            Self::ScratchDirectory(path) => write!(f, "make directory {}", path.display()),
            Self::ScratchFile { path, content } => {
                write!(f, "write {} ({} bytes)", path.display(), content.len())
            }
            Self::Ram { target, size: Some(size) } => {
                write!(f, "mount {size} bytes of memory at {}", target.display())
            }
            Self::Ram { target, size: None } => write!(f, "mount memory at {}", target.display()),
            Self::MakeDirectory(path) => write!(f, "make directory {}", path.display()),
            Self::Overlay { program, options, dir, target } => {
                write!(f, "start {} -f -o {options} {}", program.display(), target.display())?;
                within(f, dir)
            }
            Self::KernelOverlay { options, dir, target, .. } => {
                write!(f, "mount the kernel's overlay at {} with {options}", target.display())?;
                within(f, dir)
            }
        }
    }
}

fn within(f: &mut fmt::Formatter<'_>, dir: &Path) -> fmt::Result {
    if dir == Path::new("/") { Ok(()) } else { write!(f, " in {}", dir.display()) }
}

impl fmt::Display for InitStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => write!(f, "bring up lo"),
            Self::Tap { ipv6, queues } => {
                write!(f, "make tap0 {}/{}", super::GUEST_V4, super::PREFIX_V4)?;
                if *ipv6 {
                    write!(f, " {}/{}", super::GUEST_V6, super::PREFIX_V6)?;
                }
                if *queues > 1 {
                    write!(f, " with {queues} queues")?;
                }
                write!(f, ", send it to the monitor")
            }
            Self::Root(path) => write!(f, "take {} as the root", path.display()),
            Self::Mount { kind, target } => write!(f, "mount {kind} at {}", target.display()),
            Self::HostSysfs => write!(f, "show the host's /sys, read-only"),
            Self::HostIpc => write!(f, "show the host's /dev/shm and /dev/mqueue"),
            Self::Device(name) => write!(f, "show the host's /dev/{name}"),
            Self::Link { path, target } => {
                write!(f, "link {} to {}", path.display(), target.display())
            }
            Self::Console => write!(f, "open a pseudo-terminal as /dev/console"),
            Self::Volume { source, target, read_only } => {
                let how = if *read_only { ", read-only" } else { "" };
                write!(f, "show {} at {}{how}", source.display(), target.display())
            }
            Self::Secret { source, name } => {
                write!(f, "copy {} to {}/{name}", source.display(), super::SECRETS)
            }
            Self::File { source, target } => {
                write!(f, "show {} at {}", source.display(), target.display())
            }
            Self::FileBeside { source, target } => {
                let (source, target) = (source.display(), target.display());
                write!(f, "show {source} at {target}, if its directory is there")
            }
            Self::Directory(path) => write!(f, "make the directory {}", path.display()),
            Self::PingGroups(last) => write!(f, "let groups 0 to {last} ping"),
            Self::LowPorts => write!(f, "let everybody listen on ports below 1024"),
            Self::Hostname(name) => write!(f, "set the host name {name}"),
            Self::Pivot => write!(f, "make the root the root"),
            Self::Hide(path) => write!(f, "hide {}", path.display()),
            Self::Protect(path) => write!(f, "make {} read-only", path.display()),
            Self::RootReadOnly => write!(f, "make / read-only"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proc => write!(f, "proc"),
            Self::Sysfs => write!(f, "sysfs, read-only,"),
            Self::Dev => write!(f, "tmpfs"),
            Self::Devpts => write!(f, "devpts"),
            Self::Mqueue => write!(f, "mqueue"),
            Self::Tmpfs(options) => {
                write!(f, "tmpfs (mode {:o}", options.mode)?;
                if let Some(size) = options.size {
                    write!(f, ", {size} bytes")?;
                }
                f.write_str(if options.read_only { ", read-only" } else { "" })?;
                f.write_str(if options.programs { ")" } else { ", no programs)" })
            }
            Self::Secrets => write!(f, "memory"),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  user {}", self.user.as_deref().unwrap_or("root"))?;
        writeln!(f, "  directory {}", self.workdir.display())?;
        for name in self.env.keys() {
            writeln!(f, "  variable {name}")?;
        }
        writeln!(
            f,
            "  capabilities {:#x}, no new privileges, system call filter",
            self.capabilities
        )?;
        if self.confinement.nested {
            writeln!(f, "  user namespace of its own, below the container's")?;
        }
        match &self.confinement.landlock {
            None => writeln!(f, "  no Landlock")?,
            Some(rules) => {
                for Beneath { path, access } in &rules.beneath {
                    let (path, version) = (path.display(), rules.version);
                    writeln!(f, "  Landlock {version}: below {path} {}", access.words())?;
                }
            }
        }
        writeln!(f, "  execute {:?}", self.command)
    }
}
