//! Start-up: how long a container that does nothing takes, from the start of the
//! command to its end, and how much memory that needs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid, pivot_root};
use tests::{clock, lab};

use super::Extent;
use crate::machine::CpuTime;
use crate::method::{Candidate, Cell};
use crate::record::{Better, Head, Role, Sample, extra};
use crate::scene::Scene;
use crate::sys;

/// Word of the hidden subcommand that runs [`limit`].
pub(crate) const LIMIT: &str = "start-up-limit";

/// The cells of this suite.
pub(crate) fn cells<'a>(scene: &'a Scene, extent: Extent) -> Result<Vec<Cell<'a>>> {
    let rootfs = rootfs(scene)?;
    let root = rootfs.display().to_string();
    let runs = Runs { scene, rootfs: &rootfs };
    let cell = |id: &str, title: &str, note: &str, candidates: Vec<Candidate<'a>>| Cell {
        head: Head {
            id: format!("run/{id}"),
            title: title.to_owned(),
            unit: "ms".to_owned(),
            better: Better::Lower,
            params: BTreeMap::new(),
            note: Some(note.to_owned()),
        },
        seconds: 0.08,
        warm_up: 3,
        rounds: extent.rounds(50),
        candidates,
        impossible: None,
    };

    let isolated = &["run", "--rm", "--network", "none"];
    let mut plain = runs.of("coracle", "", &[isolated, &["--rootfs", &root, "--", "true"][..]]);
    plain.extend(runs.of(
        "bwrap",
        "",
        &[&["--unshare-all", "--bind", &root, "/", "--proc", "/proc", "--dev", "/dev", "true"]],
    ));
    for runtime in ["crun", "runc"] {
        for peer in scene.peers(runtime) {
            let mut options = vec![];
            if runtime == "crun" {
                options.push("--cgroup-manager=disabled");
            }
            let bundle = bundle(scene, &peer.path, &rootfs)
                .with_context(|| format!("an OCI bundle for {}", peer.name))?;
            let bundle = bundle.display().to_string();
            options.extend(["run", "--bundle", &bundle, "bench"]);
            plain.push(runs.candidate(&peer.name, Role::Peer, &peer.path, &options));
        }
    }
    let podman = |network| {
        let network = format!("--network={network}");
        let tail = ["--rootfs", &root, "true"];
        runs.of("podman", "", &[&["run", "--rm", "--cgroups=disabled", &network], &tail])
    };
    plain.extend(podman("none"));
    plain.push(runs.limit()?);

    let mut network = runs.of("coracle", "", &[&["run", "--rm", "--rootfs", &root, "--", "true"]]);
    network.extend(podman("slirp4netns"));
    network.push(runs.limit()?);

    let mut usual = runs.of("coracle", "", &[&["run", "--rm", "--", "true"]]);
    usual.push(runs.limit()?);

    let mut host = runs.of("coracle", "", &[isolated, &["--", "true"][..]]);
    host.push(runs.limit()?);

    let note = "bwrap applies no seccomp filter and binds its root writable; podman also writes \
                its database; memory is that of the largest process waited for";
    Ok(vec![
        cell("rootfs", "Start-up: a root directory, no network", note, plain),
        cell("rootfs-network", "Start-up: a root directory, with network", note, network),
        cell(
            "host-root-network",
            "Start-up: a view of the host's root, with network (the defaults)",
            note,
            usual,
        ),
        cell("host-root", "Start-up: a view of the host's root, no network", note, host),
    ])
}

struct Runs<'a, 's> {
    scene: &'a Scene,
    rootfs: &'s Path,
}

impl<'a> Runs<'a, '_> {
    /// Every program of a kind, with some arguments.
    fn of(&self, kind: &str, suffix: &str, args: &[&[&str]]) -> Vec<Candidate<'a>> {
        let peers = self.scene.peers.iter().filter(|peer| peer.kind.name == kind);
        peers
            .map(|peer| {
                let name = format!("{}{suffix}", peer.name);
                self.candidate(&name, peer.kind.role, &peer.path, &args.concat())
            })
            .collect()
    }

    /// New namespaces and an exec, by this program itself.
    fn limit(&self) -> Result<Candidate<'a>> {
        let root = self.rootfs.display().to_string();
        let itself = self.scene.lab.itself()?;
        Ok(self.candidate("namespaces + exec", Role::Limit, &itself, &[LIMIT, &root]))
    }

    fn candidate(&self, name: &str, role: Role, program: &Path, args: &[&str]) -> Candidate<'a> {
        let scene = self.scene;
        let program = program.to_owned();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Candidate {
            name: name.to_owned(),
            role,
            command: format!("{} {}", program.display(), args.join(" ")),
            subject: Box::new(move || once(scene, &program, &args)),
        }
    }
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
        .with(extra::STEAL_S, machine.steal)
        .with(extra::PEAK_RSS_MIB, ended.peak_rss as f64 / f64::from(1 << 20)))
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

/// An OCI bundle of that root, as the runtime's own `spec` makes it.
fn bundle(scene: &Scene, runtime: &Path, rootfs: &Path) -> Result<PathBuf> {
    let dir = scene.dir()?;
    scene.cmd(runtime).args(["spec", "--rootless"]).dir(&dir).run()?.ok()?;
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = rootfs.display().to_string().into();
    // The user's cgroups are not delegated here.
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
    }
    fs::write(&path, serde_json::to_string(&config)?)?;
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
