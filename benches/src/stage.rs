//! Where candidates run: an ordinary user, copies of the programs that user can
//! read, a busybox root filesystem, and (as root) a private mount namespace with
//! a plain cgroup2 hierarchy, which Podman and crun ask for.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use tempfile::TempDir;

/// The place and the user of a benchmark; removed when dropped.
pub(crate) struct Stage {
    dir: TempDir,
    user: User,
    drop_privileges: bool,
}

impl Stage {
    /// Makes the stage.
    pub(crate) fn set_up(programs: &Path, user: &str) -> Result<Stage> {
        let root = Uid::effective().is_root();
        let user = if root {
            User::from_name(user)?.with_context(|| {
                format!("no user {user}: `cargo xtask test` makes it, or name one with --user")
            })?
        } else {
            User::from_uid(Uid::effective())?.context("the calling user has no passwd entry")?
        };
        if root {
            private_mounts()?;
        }
        let dir = tempfile::Builder::new()
            .prefix("coracle-bench-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("a temporary directory")?;
        let stage = Stage { dir, user, drop_privileges: root };
        for sub in [
            "bin",
            "home",
            "run",
            "rootfs/bin",
            "rootfs/proc",
            "rootfs/dev",
            "rootfs/sys",
            "rootfs/tmp",
            "rootfs/etc",
        ] {
            fs::create_dir_all(stage.path(sub))?;
        }
        for name in ["coracle", "netstack", "overlayfs-fuse"] {
            let from = programs.join(name);
            fs::copy(&from, stage.path("bin").join(name))
                .with_context(|| format!("{}: build the programs first", from.display()))?;
        }
        stage.fill_rootfs()?;
        if root {
            for sub in [
                "home",
                "run",
                "rootfs",
                "rootfs/bin",
                "rootfs/proc",
                "rootfs/dev",
                "rootfs/sys",
                "rootfs/tmp",
                "rootfs/etc",
            ] {
                chown(&stage.path(sub), Some(stage.user.uid), Some(stage.user.gid))?;
            }
        }
        Ok(stage)
    }

    /// A path on the stage.
    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    /// One of the programs measured.
    pub(crate) fn program(&self, name: &str) -> String {
        self.path("bin").join(name).display().to_string()
    }

    /// A command as the ordinary user, with an environment of its own.
    pub(crate) fn command(&self, argv: &[String]) -> Command {
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path("home"))
            .env("USER", &self.user.name)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        if self.drop_privileges {
            command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw());
        }
        command
    }

    /// A root filesystem of one program.
    fn fill_rootfs(&self) -> Result<()> {
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        let Some(busybox) = busybox else {
            bail!("busybox is missing: apt-get install busybox-static")
        };
        fs::copy(busybox, self.path("rootfs/bin/busybox"))?;
        for name in ["sh", "true"] {
            symlink("busybox", self.path("rootfs/bin").join(name))?;
        }
        fs::write(self.path("rootfs/etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        Ok(())
    }
}

impl Drop for Stage {
    /// Podman leaves a process behind that holds its user namespace open.
    fn drop(&mut self) {
        let Ok(pid) = fs::read_to_string(self.path("run/libpod/tmp/pause.pid")) else { return };
        let Ok(pid) = pid.trim().parse() else { return };
        if let Err(why) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            eprintln!("bench: Podman's pause process {pid} is left behind: {why}");
        }
    }
}

/// Whatever is mounted from here on is this process's and its children's affair.
fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a private mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making mounts private")?;
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
        .context("a cgroup2 hierarchy for Podman and crun")?;
    Ok(())
}
