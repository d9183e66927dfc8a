//! Start-up: how long a container that does nothing takes, from the start of the
//! command to its end; and how much memory one that waits needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid, pivot_root};
use tests::clock::Deadline;
use tests::{clock, lab};

use super::Extent;
use crate::machine::CpuTime;
use crate::method::{Candidate, Cell};
use crate::record::{Better, Head, Role, Sample, extra};
use crate::scene::Scene;
use crate::sys;

/// Word of the hidden subcommand that runs [`limit`].
pub(crate) const LIMIT: &str = "start-up-limit";
/// How long a container may take to start, and to end.
const LIMIT_TO_START: Duration = Duration::from_secs(20);

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing; what is measured is the time from start to end.
    End,
    /// Waits for a line on its standard input; what is measured is the memory of
    /// everything that was started, meanwhile.
    Wait,
}

impl Work {
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::End => &["true"],
            Self::Wait => &["sh", "-c", "echo up; read line"],
        }
    }

    /// Option of the programs that give a container no standard input otherwise.
    fn option(self) -> &'static [&'static str] {
        match self {
            Self::End => &[],
            Self::Wait => &["-i"],
        }
    }
}

/// The cells of this suite.
pub(crate) fn cells<'a>(scene: &'a Scene, extent: Extent) -> Result<Vec<Cell<'a>>> {
    let rootfs = rootfs(scene)?;
    let root = rootfs.display().to_string();
    let mut cells = Vec::new();
    for work in [Work::End, Work::Wait] {
        let runs = Runs { scene, root: &root, work };
        let mut add = |id: &str, title: &str, mut candidates: Vec<Candidate<'a>>| -> Result<()> {
            if work == Work::End {
                candidates.push(runs.limit()?);
            }
            cells.push(runs.cell(extent, id, title, candidates));
            Ok(())
        };
        let mut plain = runs.coracle(&["--network", "none", "--rootfs", &root]);
        plain.extend(runs.by_kernel(&["--network", "none", "--rootfs", &root]));
        plain.extend(runs.bubblewrap());
        plain.extend(runs.oci()?);
        plain.extend(runs.podman("none"));
        add("rootfs", "a root directory, no network", plain)?;
        let mut network = runs.coracle(&["--rootfs", &root]);
        network.extend(runs.by_kernel(&["--rootfs", &root]));
        network.extend(runs.podman("slirp4netns"));
        add("rootfs-network", "a root directory, with network", network)?;
        if work == Work::End {
            let title = "a view of the host's root, with network (the defaults)";
            add("host-root-network", title, runs.coracle(&[]))?;
            let title = "a view of the host's root, no network";
            add("host-root", title, runs.coracle(&["--network", "none"]))?;
        }
    }
    Ok(cells)
}

struct Runs<'a, 's> {
    scene: &'a Scene,
    root: &'s str,
    work: Work,
}

impl<'a> Runs<'a, '_> {
    fn cell(
        &self,
        extent: Extent,
        id: &str,
        title: &str,
        candidates: Vec<Candidate<'a>>,
    ) -> Cell<'a> {
        let (id, title, unit) = match self.work {
            Work::End => (format!("run/{id}"), format!("Start-up: {title}"), "ms"),
            Work::Wait => (format!("run/memory/{id}"), format!("Memory: {title}"), "MiB"),
        };
        let note = match self.work {
            Work::End => {
                "bwrap applies no seccomp filter and binds its root writable; podman also \
                 writes its database"
            }
            Work::Wait => {
                "proportional share (PSS) of every process that the command has started, the \
                 container's shell included; podman's pause process, which serves all of a \
                 user's containers, is not"
            }
        };
        let impossible = (self.work == Work::Wait && !self.scene.lab.is_isolated())
            .then(|| "needs root, to look at every process".to_owned());
        Cell {
            head: Head {
                id,
                title,
                unit: unit.to_owned(),
                better: Better::Lower,
                params: BTreeMap::new(),
                note: Some(note.to_owned()),
            },
            seconds: 0.08,
            warm_up: if self.work == Work::End { 3 } else { 1 },
            rounds: extent.rounds(if self.work == Work::End { 50 } else { 5 }),
            candidates,
            impossible,
        }
    }

    fn coracle(&self, options: &[&str]) -> Vec<Candidate<'a>> {
        self.of("coracle", &[&["run", "--rm"], self.work.option(), options, &["--"]])
    }

    /// The same, its root joined by the kernel's overlay.
    fn by_kernel(&self, options: &[&str]) -> Vec<Candidate<'a>> {
        let mut candidates = self.coracle(&[&["--overlay", "kernel"], options].concat());
        for candidate in &mut candidates {
            candidate.name.push_str(", kernel's overlay");
        }
        candidates
    }

    fn bubblewrap(&self) -> Vec<Candidate<'a>> {
        let options = ["--bind", self.root, "/", "--proc", "/proc", "--dev", "/dev"];
        self.of("bwrap", &[&["--unshare-all"], &options])
    }

    fn podman(&self, network: &str) -> Vec<Candidate<'a>> {
        let network = format!("--network={network}");
        let options = ["--cgroups=disabled", &network, "--rootfs", self.root];
        self.of("podman", &[&["run", "--rm"], self.work.option(), &options])
    }

    /// crun and runc, which read from a bundle what to run.
    fn oci(&self) -> Result<Vec<Candidate<'a>>> {
        let mut candidates = Vec::new();
        for peer in ["crun", "runc"].into_iter().flat_map(|kind| self.scene.peers(kind)) {
            let bundle = self
                .bundle(&peer.path)
                .with_context(|| format!("an OCI bundle for {}", peer.name))?;
            let bundle = bundle.display().to_string();
            let cgroups: &[&str] =
                if peer.kind.name == "crun" { &["--cgroup-manager=disabled"] } else { &[] };
            let args = [cgroups, &["run", "--bundle", &bundle, "bench"]].concat();
            candidates.push(self.candidate(&peer.name, Role::Peer, &peer.path, &args));
        }
        Ok(candidates)
    }

    /// Every program of a kind, with some arguments and what the container runs.
    fn of(&self, kind: &str, args: &[&[&str]]) -> Vec<Candidate<'a>> {
        let args = [&args.concat(), self.work.words()].concat();
        let peers = self.scene.peers.iter().filter(|peer| peer.kind.name == kind);
        peers.map(|peer| self.candidate(&peer.name, peer.kind.role, &peer.path, &args)).collect()
    }

    /// New namespaces and an exec, by this program itself.
    fn limit(&self) -> Result<Candidate<'a>> {
        let itself = self.scene.lab.itself()?;
        Ok(self.candidate("namespaces + exec", Role::Limit, &itself, &[LIMIT, self.root]))
    }

    fn candidate(&self, name: &str, role: Role, program: &Path, args: &[&str]) -> Candidate<'a> {
        let (scene, work) = (self.scene, self.work);
        let program = program.to_owned();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Candidate {
            name: name.to_owned(),
            role,
            command: format!("{} {}", program.display(), args.join(" ")),
            subject: Box::new(move || match work {
                Work::End => once(scene, &program, &args),
                Work::Wait => held(scene, &program, &args),
            }),
        }
    }

    /// An OCI bundle of that root, as the runtime's own `spec` makes it.
    fn bundle(&self, runtime: &Path) -> Result<PathBuf> {
        let dir = self.scene.dir()?;
        self.scene.cmd(runtime).args(["spec", "--rootless"]).dir(&dir).run()?.ok()?;
        let path = dir.join("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        config["process"]["args"] = serde_json::json!(self.work.words());
        config["process"]["terminal"] = false.into();
        config["root"]["path"] = self.root.into();
        // The user's cgroups are not delegated here.
        if let Some(linux) = config["linux"].as_object_mut() {
            linux.remove("resources");
        }
        fs::write(&path, serde_json::to_string(&config)?)?;
        Ok(dir)
    }
}

/// Before its memory is looked at.
const TO_COME_TO_REST: Duration = Duration::from_millis(500);

/// Starts a container that waits, and adds up the memory of all that has come with
/// it: the peak of one process says little where several are started.
fn held(scene: &Scene, program: &Path, args: &[String]) -> Result<Sample> {
    let before = processes()?;
    let mut running = scene.cmd(program).args(args).stdin_open().spawn()?;
    running.stdout_until("up\n", LIMIT_TO_START)?;
    // Who waits may let go of memory after a while.
    let rest = Deadline::after(TO_COME_TO_REST);
    let mut pss_kib = 0;
    while !rest.passed() {
        pss_kib = 0;
        for pid in processes()?.difference(&before) {
            // What has ended since, or is no process of user space, has none.
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            pss_kib += kib.unwrap_or(0);
        }
    }
    running.write(b"\n")?;
    running.wait(LIMIT_TO_START)?.ok()?;
    Ok(Sample::of(pss_kib as f64 / 1024.0))
}

fn processes() -> Result<BTreeSet<i32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Starts a program as the user and waits for its end.
fn once(scene: &Scene, program: &Path, args: &[String]) -> Result<Sample> {
    let user = scene.user();
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("XDG_RUNTIME_DIR", &user.runtime_dir)
        .current_dir(&user.home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if nix::unistd::geteuid().is_root() {
        command.uid(user.uid).gid(user.gid);
    }
    let machine = CpuTime::now()?;
    let start = clock::now();
    let mut child =
        command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let stderr = child.stderr.take().context("no pipe to the program")?;
    let ended = sys::wait4(child.id().cast_signed())?;
    let elapsed = clock::now() - start;
    let machine = CpuTime::now()?.since(machine);
    if ended.code != 0 {
        let text = std::io::read_to_string(stderr).unwrap_or_default();
        bail!("exit code {}: {}", ended.code, text.lines().last().unwrap_or_default());
    }
    Ok(Sample::of(elapsed.as_secs_f64() * 1e3)
        .with(extra::CPU_PER_OP, ended.cpu_s * 1e6)
        .with(extra::MACHINE_CPU_S, machine.busy)
        .with(extra::STEAL_S, machine.steal))
}

/// A root filesystem of one program, the user's.
fn rootfs(scene: &Scene) -> Result<PathBuf> {
    let busybox = lab::find("busybox").context("busybox is missing: install busybox-static")?;
    let dir = scene.dir()?;
    for sub in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir(dir.join(sub))?;
    }
    fs::copy(busybox, dir.join("bin/busybox"))?;
    for name in ["sh", "true"] {
        symlink("busybox", dir.join("bin").join(name))?;
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let user = scene.user();
    if nix::unistd::geteuid().is_root() {
        tests::command::Cmd::new("chown")
            .args(["-R", &format!("{}:{}", user.uid, user.gid)])
            .arg(&dir)
            .run()?
            .ok()?;
    }
    Ok(dir)
}

/// The least a container of one's own can cost: a user, mount, PID, network, IPC,
/// UTS and cgroup namespace, one id mapped, three mounts, `pivot_root`, and an exec.
///
/// # Errors
/// When one of these is refused, or the program fails.
pub(crate) fn limit(root: &Path) -> Result<()> {
    let (uid, gid) = (getuid(), getgid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("unshare")?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(root), root, none, MsFlags::MS_BIND, none)?;
    for sub in ["dev", "tmp"] {
        mount(Some("tmpfs"), &root.join(sub), Some("tmpfs"), MsFlags::empty(), none)?;
    }
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    let status = Command::new("/bin/true").status()?;
    if !status.success() {
        bail!("true: {status}");
    }
    Ok(())
}
