//! Podman, Buildah and rootlesskit on our programs and on those they stand in for.
//!
//! # Theory of operation
//!
//! A case is a shell script of named steps (`prelude.sh` tells how they are written).
//! It runs twice as an ordinary user, with slirp4netns and fuse-overlayfs, then with
//! netstack and overlayfs-fuse, each time in a PID and a mount namespace of its own
//! with an empty home, so that neither finds what the other has left, and whatever it
//! leaves running ends with it. What each step printed, on both streams, and its exit
//! code must be the same. A case names the steps in which the peers differ, and what
//! is right there; a difference that is named and gone is an error too. It also says
//! what some steps must print in any event: two that fail in the same way are equal.

mod cases;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::command::Cmd;
use tests::harness::{World, skip};
use tests::lab;

pub(crate) use cases::TESTS;

const PRELUDE: &str = include_str!("prelude.sh");

/// Furnishes the namespaces: arguments are the home, the runtime directory, uid and
/// gid, a control group to be made the user's (or nothing), then the command. Podman
/// needs shared mounts, and a home of its own.
const FURNISH: &str = r#"set -e
mount --make-rshared /
mount -t tmpfs -o mode=700,uid=$3,gid=$4 home "$1"
mount -t tmpfs -o mode=700,uid=$3,gid=$4 run "$2"
cd "$1"
uid=$3 gid=$4 group=$5
shift 5
set -- setpriv --reuid $uid --regid $gid --clear-groups "$@"
[ "$group" ] || exec "$@"
mkdir -p "$group"
chown $uid:$gid "$group" "$group/cgroup.procs" "$group/cgroup.subtree_control"
echo 0 >"$group/cgroup.procs"
# To those in a cgroup namespace of its own it is the root.
umount /sys/fs/cgroup
exec unshare --cgroup sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh "$@"
"#;

const GROUP: &str = "/sys/fs/cgroup/podman-e2e";

/// Groups outlive the namespaces of those who made them.
struct Group;

impl Drop for Group {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|is| is.is_dir()) {
                    remove(&entry.path());
                }
            }
            // What stays is an error of the next that makes it.
            fs::remove_dir(dir).ok();
        }
        remove(Path::new(GROUP));
    }
}

/// Time for one side of a case: the longest takes half a minute on an idle machine.
const LIMIT: Duration = Duration::from_secs(580);

/// A script, and what is known of its outcome.
struct Case {
    script: &'static str,
    /// Programs, and Debian's packages that have them.
    needs: &'static [(&'static str, &'static str)],
    /// Who makes bridge networks.
    backend: &'static str,
    /// Whether it has a control group of the user's.
    delegated: bool,
    /// Step, what the peers print there and ours does not, what ours prints there.
    differs: &'static [(&'static str, &'static str, &'static str)],
    /// Step, and what both must print there.
    holds: &'static [(&'static str, &'static str)],
}

impl Case {
    const fn new(script: &'static str) -> Self {
        let (needs, backend, differs, holds) = (&[], "cni", &[], &[]);
        Self { script, needs, backend, delegated: false, differs, holds }
    }

    const fn needs(mut self, needs: &'static [(&'static str, &'static str)]) -> Self {
        self.needs = needs;
        self
    }

    const fn backend(mut self, backend: &'static str) -> Self {
        self.backend = backend;
        self
    }

    const fn delegated(mut self) -> Self {
        self.delegated = true;
        self
    }

    const fn differs(
        mut self,
        differs: &'static [(&'static str, &'static str, &'static str)],
    ) -> Self {
        self.differs = differs;
        self
    }

    const fn holds(mut self, holds: &'static [(&'static str, &'static str)]) -> Self {
        self.holds = holds;
        self
    }

    /// Runs it on both sides and compares.
    fn check(&self, world: &World<'_>) -> Result<()> {
        let always = [
            ("podman", "podman"),
            ("crun", "crun"),
            ("slirp4netns", "slirp4netns"),
            ("fuse-overlayfs", "fuse-overlayfs"),
            ("busybox", "busybox-static"),
            ("curl", "curl"),
            ("dnsmasq", "dnsmasq-base"),
            ("python3", "python3"),
            ("setpriv", "util-linux"),
        ];
        let absent = always.iter().chain(self.needs).filter(|(program, _)| {
            if program.starts_with('/') {
                !Path::new(program).exists()
            } else {
                lab::find(program).is_none()
            }
        });
        let absent: Vec<_> = absent.map(|(_, package)| *package).collect();
        if !absent.is_empty() {
            return Err(skip(format!("not installed: {}", absent.join(", "))));
        }
        let rootfs = rootfs(world)?;
        let found = |name: &str| lab::find(name).with_context(|| format!("{name} has gone"));
        let peers = [found("slirp4netns")?, found("fuse-overlayfs")?];
        let ours = [world.lab.bin.join("netstack"), world.lab.bin.join("overlayfs-fuse")];
        let peers_said = self.side(world, &rootfs, &peers, &ours[1]).context("with the peers")?;
        let ours_said = self.side(world, &rootfs, &ours, &peers[1]).context("with ours")?;
        let faults = self.faults(&peers_said, &ours_said);
        ensure!(faults.is_empty(), "{}", faults.join("\n  "));
        Ok(())
    }

    /// What every step printed with these programs ([network, mount program]); `other`
    /// is the mount program of the other side.
    fn side(
        &self,
        world: &World<'_>,
        rootfs: &Path,
        [network, mount]: &[PathBuf; 2],
        other: &Path,
    ) -> Result<BTreeMap<String, String>> {
        let user = world.user;
        let script = format!("{PRELUDE}\n{}\necho '== end'\n", self.script);
        let group = self.delegated.then_some(Group);
        let output = Cmd::new("unshare")
            .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "--", "sh", "-c", FURNISH, "sh"])
            .arg(&user.home)
            .arg(&user.runtime_dir)
            .args([user.uid.to_string(), user.gid.to_string()])
            .arg(if group.is_some() { GROUP } else { "" })
            .args(["sh", "-c", &script])
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .env("XDG_RUNTIME_DIR", &user.runtime_dir)
            .env("TMPDIR", &user.home)
            .env("NETWORK", network)
            .env("MOUNT", mount)
            .env("OTHER", other)
            .env("BACKEND", self.backend)
            .env("ROOTFS", rootfs)
            .dir("/")
            .limit(LIMIT)
            .run()?;
        let mut text = output.stdout.clone();
        for (path, word) in [(network, "NETWORK"), (mount, "MOUNT")] {
            text = text.replace(&path.display().to_string(), word);
        }
        let steps = steps(&text)?;
        ensure!(steps.contains_key("end"), "the script broke off\n{}", output.describe());
        // Said by what a step waits with, and outside of steps on the shell's own stream.
        let never = output.stdout.lines().chain(output.stderr.lines());
        if let Some(line) = never.into_iter().find(|line| line.contains("never came true")) {
            bail!("{line}\n{text}");
        }
        Ok(steps)
    }

    fn faults(
        &self,
        peers: &BTreeMap<String, String>,
        ours: &BTreeMap<String, String>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        for (step, theirs) in peers {
            let Some(mine) = ours.get(step) else {
                faults.push(format!("step {step} is missing with ours"));
                continue;
            };
            let known = self.differs.iter().find(|(name, ..)| name == step);
            let as_known = match known {
                Some((_, in_theirs, in_ours)) => {
                    theirs.contains(in_theirs)
                        && !mine.contains(in_theirs)
                        && mine.contains(in_ours)
                }
                None => mine == theirs,
            };
            if !as_known {
                let how = if known.is_some() { " (known to differ, otherwise)" } else { "" };
                faults.push(format!("step {step}{how}\n    peers:\n{theirs}\n    ours:\n{mine}"));
            }
        }
        for (step, text) in self.holds {
            for (side, said) in [("peers", peers), ("ours", ours)] {
                let said = said.get(*step).map_or("no such step", String::as_str);
                if !said.contains(text) {
                    faults.push(format!("step {step} lacks {text:?} with {side}:\n{said}"));
                }
            }
        }
        for (step, ..) in self.differs {
            if !peers.contains_key(*step) {
                faults.push(format!("no step {step}, which is said to differ"));
            }
        }
        faults
    }
}

/// `== NAME` begins a step.
fn steps(text: &str) -> Result<BTreeMap<String, String>> {
    let mut steps = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            if let Some((name, said)) = current.replace((name.to_owned(), String::new())) {
                ensure!(steps.insert(name.clone(), said).is_none(), "two steps {name}");
            }
        } else if let Some((_, said)) = &mut current {
            said.push_str(line);
            said.push('\n');
        }
    }
    steps.extend(current);
    Ok(steps)
}

/// A root filesystem as a tar archive: busybox; curl and getent for what a
/// statically linked program cannot do, which is to look up names; a server of UDP.
fn rootfs(world: &World<'_>) -> Result<PathBuf> {
    let root = world.dir().join("root");
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "var", "usr"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let busybox = lab::find("busybox").context("busybox has gone")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let applets = Cmd::new(&busybox).arg("--list").run()?.ok()?.stdout;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for program in ["curl", "getent", "dnsmasq"] {
        let path = lab::find(program).with_context(|| format!("{program} is not installed"))?;
        let to = root.join("bin").join(program);
        // getent is no applet; curl may be one some day.
        fs::remove_file(&to).ok();
        fs::copy(&path, &to)?;
        let libraries = Cmd::new("ldd").arg(&path).run()?.ok()?.stdout;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
            fs::copy(library, to)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    let archive = world.dir().join("rootfs.tar");
    Cmd::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "--sort=name", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .run()?
        .ok()?;
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644))?;
    fs::remove_dir_all(&root)?;
    Ok(archive)
}
