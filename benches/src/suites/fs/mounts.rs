//! One union, mounted: the program that serves it, what that uses, and its end.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tests::clock;

/// A way to join layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Union {
    /// A FUSE program that takes fuse-overlayfs' command line.
    Overlay(PathBuf),
    /// The same with one more option.
    With(PathBuf, String),
    /// unionfs-fuse.
    Unionfs(PathBuf),
    /// The kernel's overlay.
    Kernel,
    /// No union: one directory.
    Plain,
}

/// Directories of one mount. All below one directory, which is the current one.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    /// Lowest first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Where changes go.
    pub(crate) upper: PathBuf,
    /// Of the kernel's overlay and its like.
    pub(crate) work: PathBuf,
    /// Where it is mounted.
    pub(crate) target: PathBuf,
}

/// A mounted union. Dropping it unmounts it and ends the program.
#[derive(Debug)]
pub(crate) struct Mounted {
    target: PathBuf,
    server: Option<Server>,
    is_mounted: bool,
    /// From the start of the program, or of mount(2), until the root answered.
    pub(crate) took: Duration,
}

/// A program that serves a mount.
#[derive(Debug)]
struct Server {
    child: Child,
    stderr: PathBuf,
}

impl Union {
    /// What is run or mounted, for people.
    pub(crate) fn command(&self, lowers: usize) -> String {
        let layers = Layers {
            lowers: vec!["lower".into()],
            upper: "upper".into(),
            work: "work".into(),
            target: "merged".into(),
        };
        match self {
            Self::Kernel => {
                format!("mount -t overlay -o {} overlay merged", self.options(&layers))
            }
            Self::Plain => "a plain directory".to_owned(),
            Self::Overlay(program) | Self::With(program, _) | Self::Unionfs(program) => {
                format!("{} {}", program.display(), self.args(&layers).join(" "))
            }
        }
        .replace("lower:", "lower")
            + &format!(" ({lowers} lower layers)")
    }

    fn options(&self, layers: &Layers) -> String {
        let lowers: Vec<_> =
            layers.lowers.iter().rev().map(|path| path.display().to_string()).collect();
        let (upper, work) = (layers.upper.display(), layers.work.display());
        let overlay = format!("lowerdir={},upperdir={upper},workdir={work}", lowers.join(":"));
        match self {
            Self::Kernel => format!("{overlay},userxattr"),
            Self::With(_, option) => format!("{overlay},{option}"),
            _ => overlay,
        }
    }

    fn args(&self, layers: &Layers) -> Vec<String> {
        let target = layers.target.display().to_string();
        match self {
            Self::Overlay(_) | Self::With(..) => {
                vec!["-f".to_owned(), "-o".to_owned(), self.options(layers), target]
            }
            Self::Unionfs(_) => {
                let mut branches = format!("{}=RW", layers.upper.display());
                for lower in layers.lowers.iter().rev() {
                    branches.push_str(&format!(":{}=RO", lower.display()));
                }
                // As root of the namespace, and like the others: the kernel checks
                // permissions.
                let options = "cow,hide_meta_files,default_permissions".to_owned();
                vec!["-f".to_owned(), "-o".to_owned(), options, branches, target]
            }
            Self::Kernel | Self::Plain => Vec::new(),
        }
    }

    /// Mounts it and waits until its root answers. The target is an absolute path.
    ///
    /// # Errors
    /// Says what the program or the kernel said.
    pub(crate) fn mount(&self, layers: &Layers, stderr: &Path) -> Result<Mounted> {
        let target = layers.target.clone();
        let start = clock::now();
        let mut mounted = Mounted {
            target: target.clone(),
            server: None,
            is_mounted: false,
            took: Duration::ZERO,
        };
        match self {
            Self::Plain => return Ok(mounted),
            Self::Kernel => {
                let options = self.options(layers);
                mount(
                    Some("overlay"),
                    &target,
                    Some("overlay"),
                    MsFlags::empty(),
                    Some(options.as_str()),
                )
                .with_context(|| format!("mount of the kernel's overlay, {options}"))?;
                mounted.is_mounted = true;
            }
            Self::Overlay(program) | Self::With(program, _) | Self::Unionfs(program) => {
                let child = Command::new(program)
                    .args(self.args(layers))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(File::create(stderr)?)
                    .spawn()
                    .with_context(|| format!("cannot start {}", program.display()))?;
                let server = Server { child, stderr: stderr.to_owned() };
                let server = mounted.server.insert(server);
                server.wait_for_mount(&target)?;
                mounted.is_mounted = true;
            }
        }
        // Answered once the program has come to its loop.
        fs::metadata(&target).context("the root of the mount does not answer")?;
        mounted.took = clock::now() - start;
        Ok(mounted)
    }
}

impl Server {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the mount to appear. proc_pid_mountinfo(5): the file reports an
    /// error event to poll(2) after every change.
    fn wait_for_mount(&mut self, target: &Path) -> Result<()> {
        let end = tests::sys::pidfd_open(self.pid().as_raw())?;
        let mut table = File::open("/proc/self/mountinfo")?;
        loop {
            // Read anew each time: a rewound file shows the present table.
            use std::io::Seek;
            table.rewind()?;
            let mut text = String::new();
            table.read_to_string(&mut text)?;
            let is_target = |line: &str| line.split(' ').nth(4).map(Path::new) == Some(target);
            if text.lines().any(is_target) {
                return Ok(());
            }
            let mut fds = [
                PollFd::new(table.as_fd(), PollFlags::POLLPRI),
                PollFd::new(end.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            if fds[1].any().unwrap_or(false) {
                let status = self.child.wait()?;
                bail!("{status} before anything was mounted: {}", self.said());
            }
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default().trim().to_owned()
    }

    /// A field of /proc/PID/status, without its unit.
    fn status(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        field_of(&text, field).with_context(|| format!("{path} has no {field}"))
    }
}

/// proc_pid_status(5): `Name:\tvalue[ kB]`.
fn field_of(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What a server has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time of all its threads, those that ended included.
    pub(crate) cpu: Duration,
    /// Times that one of its present threads was scheduled after waiting, or was
    /// made to wait.
    pub(crate) switches: u64,
}

impl Mounted {
    /// What the server has used; nothing where there is none.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let Some(server) = &self.server else { return Ok(Usage::default()) };
        let clock = ClockId::pid_cpu_clock_id(server.pid()).context("the server's CPU time")?;
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{}/task", server.pid()))? {
            let text = fs::read_to_string(task?.path().join("status"))?;
            for field in ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"] {
                switches += field_of(&text, field).context("no count of context switches")?;
            }
        }
        Ok(Usage { cpu: Duration::from(clock.now()?), switches })
    }

    /// Resident memory of the server in bytes, now and at its peak; None where
    /// there is no server.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn memory(&self) -> Result<Option<(u64, u64)>> {
        let Some(server) = &self.server else { return Ok(None) };
        Ok(Some((server.status("VmRSS")? << 10, server.status("VmHWM")? << 10)))
    }

    /// Unmounts, and waits for the server's end.
    ///
    /// # Errors
    /// When it is busy, or the server ends otherwise than with 0.
    pub(crate) fn unmount(mut self) -> Result<()> {
        if self.is_mounted {
            umount2(&self.target, MntFlags::empty()).context("umount")?;
            self.is_mounted = false;
        }
        if let Some(mut server) = self.server.take() {
            let status = server.child.wait()?;
            if !status.success() {
                bail!("the server ended with {status}: {}", server.said());
            }
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            // What is in use stays until its user ends.
            umount2(&self.target, MntFlags::MNT_DETACH).ok();
        }
        if let Some(server) = &mut self.server {
            // Both fail only when it has ended already.
            server.child.kill().ok();
            server.child.wait().ok();
            // It may have mounted just before.
            umount2(&self.target, MntFlags::MNT_DETACH).ok();
        }
    }
}

/// Collects orphans that have ended: process 1 of a namespace must.
pub(crate) fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn options_name_the_topmost_layer_first() {
        let layers = Layers {
            lowers: vec!["a".into(), "b".into()],
            upper: "u".into(),
            work: "w".into(),
            target: "/t".into(),
        };
        assert_eq!(Union::Kernel.options(&layers), "lowerdir=b:a,upperdir=u,workdir=w,userxattr");
        let with = Union::With("ours".into(), "spin=0".to_owned());
        assert_eq!(with.options(&layers), "lowerdir=b:a,upperdir=u,workdir=w,spin=0");
        assert_eq!(Union::Unionfs("unionfs".into()).args(&layers)[3..], ["u=RW:b=RO:a=RO", "/t"]);
    }

    #[test]
    fn fields_of_status() {
        let text = "Name:\tx\nVmRSS:\t    1234 kB\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field_of(text, "VmRSS"), Some(1234));
        assert_eq!(field_of(text, "voluntary_ctxt_switches"), Some(5));
        assert_eq!(field_of(text, "Vm"), None);
    }
}
