//! Podman on our programs and on those they stand in for: what people do with it, from
//! the start of the command to its end.
//!
//! # Theory of operation
//!
//! A [`Side`] is a network and a mount program with a home of its own: configuration,
//! store and runtime directory. Podman itself, its runtime and the images are the same
//! on both. What a sample needs is made before its time begins, and removed after it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::command::{Cmd, Running, User};
use tests::{clock, lab};

use super::Extent;
use super::net::iperf;
use crate::machine::CpuTime;
use crate::method::{Candidate, Cell};
use crate::peers::Peer;
use crate::record::{Better, Head, Role, Sample, extra};
use crate::scene::Scene;

/// Time for one command, the preparation of a side included.
const LIMIT: Duration = Duration::from_secs(180);
/// Where the registry listens, in the lab's own network namespace.
const REGISTRY: &str = "127.0.0.1:5000";
/// Layers of the image that is built and pulled.
const LAYERS: usize = 20;
/// Small files that a container has changed before it is committed, and that one layer
/// of the image has.
const FILES: usize = 3000;

/// What is asked of Podman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Run,
    Build,
    Pull,
    Commit,
    IperfUp,
    IperfDown,
}

/// Work, id, title, unit, rough seconds.
const WORKS: [(Work, &str, &str, &str, f64); 6] = [
    (Work::Run, "run", "podman run --rm IMAGE true, with network", "ms", 0.4),
    (Work::Build, "build", "podman build of 20 layers", "s", 8.0),
    (Work::Pull, "pull", "podman pull of 20 layers with 3,000 small files", "s", 3.0),
    (Work::Commit, "commit", "podman commit of 3,000 changed files", "s", 2.0),
    (Work::IperfUp, "iperf3-up", "iperf3 from a container to the host", "Gbit/s", 3.0),
    (Work::IperfDown, "iperf3-down", "iperf3 from the host to a container", "Gbit/s", 3.0),
];

impl Work {
    /// Programs besides Podman, and Debian's packages that have them.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Run | Self::Build | Self::Commit => &[],
            Self::Pull => &[("docker-registry", "docker-registry"), ("curl", "curl")],
            Self::IperfUp | Self::IperfDown => &[("iperf3", "iperf3")],
        }
    }

    /// What holds on both sides, whatever the two programs do (`podman-profile.txt`).
    fn note(self) -> &'static str {
        match self {
            Self::Pull => "the whole command; Podman starts neither program for it",
            Self::Build | Self::Commit => {
                "the whole command; Podman waits for the next full second after each layer"
            }
            Self::Run | Self::IperfUp | Self::IperfDown => {
                "the whole command, Podman's own time included"
            }
        }
    }

    fn better(self) -> Better {
        match self {
            Self::IperfUp | Self::IperfDown => Better::Higher,
            _ => Better::Lower,
        }
    }
}

/// The cells of this suite.
pub(crate) fn cells(scene: &Scene, extent: Extent) -> Result<Vec<Cell<'_>>> {
    let mut sides = Vec::new();
    if let Some(podman) = scene.peers("podman").next() {
        let pairs = [
            ("netstack + overlayfs-fuse", Role::Ours, "netstack", "overlayfs-fuse"),
            ("slirp4netns + fuse-overlayfs", Role::Peer, "slirp4netns", "fuse-overlayfs"),
        ];
        for (name, role, network, mount) in pairs {
            // Other builds, given by their path, take the place of the one they are of.
            let networks: Vec<_> = scene.peers(network).collect();
            let mounts: Vec<_> = scene.peers(mount).collect();
            let (Some(first_network), Some(first_mount)) = (networks.first(), mounts.first())
            else {
                continue;
            };
            sides.push(Rc::new(Side::new(scene, name, role, podman, first_network, first_mount)?));
            for other in networks.iter().skip(1) {
                let name = format!("{} + {mount}", other.name);
                sides.push(Rc::new(Side::new(scene, &name, role, podman, other, first_mount)?));
            }
            for other in mounts.iter().skip(1) {
                let name = format!("{network} + {}", other.name);
                sides.push(Rc::new(Side::new(scene, &name, role, podman, first_network, other)?));
            }
        }
    }
    Ok(WORKS.iter().map(|work| cell(scene, extent, &sides, work)).collect())
}

fn cell<'a>(
    scene: &Scene,
    extent: Extent,
    sides: &[Rc<Side<'a>>],
    &(work, id, title, unit, seconds): &(Work, &str, &str, &str, f64),
) -> Cell<'a> {
    let missing: Vec<_> =
        work.needs().iter().filter(|(name, _)| lab::find(name).is_none()).collect();
    let impossible = if !scene.lab.is_isolated() {
        Some("needs root, for namespaces in which Podman finds nobody's containers".to_owned())
    } else if sides.is_empty() {
        Some("podman is not installed: apt-get install podman".to_owned())
    } else {
        missing.first().map(|(_, package)| format!("apt-get install {package}"))
    };
    let candidates = sides.iter().map(|side| {
        let at = Rc::clone(side);
        Candidate {
            name: side.name.clone(),
            role: side.role,
            command: format!("podman, {} and {}", side.network.display(), side.mount.display()),
            subject: Box::new(move || at.ready()?.once(work)),
        }
    });
    Cell {
        head: Head {
            id: format!("podman/{id}"),
            title: format!("Podman: {title}"),
            unit: unit.to_owned(),
            better: work.better(),
            params: BTreeMap::new(),
            note: Some(work.note().to_owned()),
        },
        seconds,
        warm_up: 1,
        rounds: extent.rounds(if work == Work::Run { 20 } else { 7 }),
        candidates: candidates.collect(),
        impossible,
    }
}

/// Podman on a network and a mount program.
struct Side<'a> {
    scene: &'a Scene,
    name: String,
    role: Role,
    podman: PathBuf,
    network: PathBuf,
    mount: PathBuf,
    /// Who has this side's home.
    user: User,
    ready: OnceCell<()>,
}

impl<'a> Side<'a> {
    fn new(
        scene: &'a Scene,
        name: &str,
        role: Role,
        podman: &Peer,
        network: &Peer,
        mount: &Peer,
    ) -> Result<Self> {
        let (home, runtime_dir) = (scene.dir()?, scene.dir()?);
        Ok(Self {
            scene,
            name: name.to_owned(),
            role,
            podman: podman.path.clone(),
            network: network.path.clone(),
            mount: mount.path.clone(),
            user: User { home, runtime_dir, ..scene.user().clone() },
            ready: OnceCell::new(),
        })
    }

    /// Prepares it before its first sample.
    fn ready(&self) -> Result<&Self> {
        if self.ready.get().is_none() {
            self.prepare().context("preparing Podman")?;
            self.ready.set(()).ok();
        }
        Ok(self)
    }

    fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.by_path().display());
        Cmd::new(program)
            .user(&self.user)
            .dir(&self.user.home)
            .env("PATH", path)
            .env("TMPDIR", &self.user.home)
            .limit(LIMIT)
    }

    /// Where `podman build` finds its network: it looks for slirp4netns on the search
    /// path, whatever `network_cmd_path` says.
    fn by_path(&self) -> PathBuf {
        self.user.home.join("programs")
    }

    fn podman(&self, words: &[&str]) -> Cmd {
        self.cmd(&self.podman).args(words)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.user.home.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn prepare(&self) -> Result<()> {
        let home = &self.user.home;
        let config = home.join(".config/containers");
        fs::create_dir_all(&config)?;
        fs::create_dir(self.by_path())?;
        symlink(&self.network, self.by_path().join("slirp4netns"))?;
        let network = self.network.display();
        self.write(
            ".config/containers/containers.conf",
            &format!(
                "[engine]\nnetwork_cmd_path = \"{network}\"\ncgroup_manager = \"cgroupfs\"\n\
                 events_logger = \"file\"\nruntime = \"crun\"\n\
                 [containers]\nlog_driver = \"k8s-file\"\n"
            ),
        )?;
        self.write(
            ".config/containers/storage.conf",
            &format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}/store\"\n\
                 [storage.options.overlay]\nmount_program = \"{}\"\n",
                home.display(),
                self.mount.display()
            ),
        )?;
        let accept = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        self.write(".config/containers/policy.json", accept)?;
        let root = home.join("root");
        rootfs(&root)?;
        fs::create_dir(home.join("context"))?;
        let context = home.join("context");
        fs::create_dir(context.join("files"))?;
        for number in 0..FILES {
            let text = format!("{number}\n").repeat(400);
            fs::write(context.join(format!("files/{number}")), text)?;
        }
        let mut file = String::from("FROM bb\nCOPY files /files\n");
        for layer in 1..LAYERS {
            file.push_str(&format!("RUN echo {layer} >/layer-{layer} && rm -f /files/{layer}\n"));
        }
        self.write("context/Containerfile", &file)?;
        Cmd::new("chown")
            .args(["-R", &format!("{}:{}", self.user.uid, self.user.gid)])
            .arg(home)
            .run()?
            .ok()?;
        let tar =
            ["--numeric-owner", "--owner=0", "--group=0", "-C", "root", "-cf", "root.tar", "."];
        self.cmd("tar").args(tar).run()?.ok()?;
        self.podman(&["import", "-q", "root.tar", "bb"]).run()?.ok()?;
        Ok(())
    }

    fn once(&self, work: Work) -> Result<Sample> {
        match work {
            Work::Run => {
                let words = ["run", "--rm", "--network=slirp4netns", "bb", "true"];
                Ok(in_ms(self.timed(&words)?))
            }
            Work::Build => self.build(),
            Work::Pull => self.pull(),
            Work::Commit => self.commit(),
            Work::IperfUp => self.iperf(&[]),
            Work::IperfDown => self.iperf(&["-R"]),
        }
    }

    fn build(&self) -> Result<Sample> {
        let words = ["build", "-q", "--no-cache", "--layers", "-t", "built", "context"];
        let sample = self.timed(&words)?;
        self.podman(&["rmi", "-f", "built"]).run()?.ok()?;
        Ok(sample)
    }

    fn pull(&self) -> Result<Sample> {
        let _registry = self.registry()?;
        let name = format!("{REGISTRY}/built");
        let sample = self.timed(&["pull", "-q", "--tls-verify=false", &name])?;
        self.podman(&["rmi", "-f", &name]).run()?.ok()?;
        Ok(sample)
    }

    /// A registry that has the image; it ends when dropped.
    fn registry(&self) -> Result<Running> {
        let home = &self.user.home;
        let (dir, file) = (home.join("registry"), "registry.yml");
        let filled = dir.exists();
        self.cmd("mkdir").arg("-p").arg(&dir).run()?.ok()?;
        self.write(
            file,
            &format!(
                "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: \"{REGISTRY}\"}}\nlog: {{level: error}}\n",
                dir.display()
            ),
        )?;
        let running = self.cmd("docker-registry").args(["serve", file]).spawn()?;
        // It says nothing when it listens.
        let ask = [
            "-sSf",
            "--retry",
            "50",
            "--retry-connrefused",
            "--retry-delay",
            "1",
            "-o",
            "/dev/null",
        ];
        self.cmd("curl").args(ask).arg(format!("http://{REGISTRY}/v2/")).run()?.ok()?;
        if !filled {
            let name = format!("{REGISTRY}/built");
            let build = ["build", "-q", "--no-cache", "--layers", "-t", &name, "context"];
            self.podman(&build).run()?.ok()?;
            self.podman(&["push", "-q", "--tls-verify=false", &name]).run()?.ok()?;
            self.podman(&["rmi", "-f", &name]).run()?.ok()?;
        }
        Ok(running)
    }

    fn commit(&self) -> Result<Sample> {
        let context = self.user.home.join("context/files");
        let volume = format!("{}:/new:ro", context.display());
        let script = "cp -r /new /files";
        let make = ["run", "--name", "changed", "-v", &volume, "bb", "sh", "-c", script];
        self.podman(&make).run()?.ok()?;
        let sample = self.timed(&["commit", "-q", "changed", "committed"]);
        self.podman(&["rm", "-f", "changed"]).run()?.ok()?;
        let sample = sample?;
        self.podman(&["rmi", "-f", "committed"]).run()?.ok()?;
        Ok(sample)
    }

    /// What the receiver got, as iperf3 says.
    fn iperf(&self, options: &[&str]) -> Result<Sample> {
        let server = iperf::server(LIMIT)?;
        let run = ["run", "--rm", "--network=slirp4netns:allow_host_loopback=true", "bb"];
        let client = ["iperf3", "-c", "10.0.2.2", "-t", "2", "-J"];
        let machine = CpuTime::now()?;
        let output = self.podman(&run).args(client).args(options).run()?.ok()?;
        let machine = CpuTime::now()?.since(machine);
        server.wait(LIMIT)?;
        let got = iperf::figures(&output.stdout)?;
        let gb = got.bytes as f64 / 1e9;
        Ok(Sample::of(gb * 8.0 / got.seconds)
            .with(extra::MACHINE_CPU_PER_GB, machine.busy / gb)
            .with(extra::STEAL_S, machine.steal))
    }

    /// Seconds from start to end of a command of Podman's.
    fn timed(&self, words: &[&str]) -> Result<Sample> {
        let command = self.podman(words);
        let machine = CpuTime::now()?;
        let start = clock::now();
        command.run()?.ok()?;
        let elapsed = clock::now() - start;
        let machine = CpuTime::now()?.since(machine);
        Ok(Sample::of(elapsed.as_secs_f64())
            .with(extra::MACHINE_CPU_S, machine.busy)
            .with(extra::STEAL_S, machine.steal))
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        // Podman's pause process stays otherwise; the lab ends it at the latest.
        if self.ready.get().is_some() {
            self.podman(&["system", "migrate"]).run().ok();
        }
        self.scene.lab.reap();
    }
}

fn in_ms(mut sample: Sample) -> Sample {
    sample.value *= 1e3;
    sample
}

/// A root filesystem of busybox, and of iperf3 where there is one.
fn rootfs(root: &Path) -> Result<()> {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "usr"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = lab::find("busybox").context("busybox is missing: install busybox-static")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let applets = Cmd::new(&busybox).arg("--list").run()?.ok()?.stdout;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    if let Some(path) = lab::find("iperf3") {
        fs::copy(&path, root.join("bin/iperf3"))?;
        let libraries = Cmd::new("ldd").arg(&path).run()?.ok()?.stdout;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
            fs::copy(library, to)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}
