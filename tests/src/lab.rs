//! The machine the tests run on.
//!
//! # Theory of operation
//!
//! As root, [`enter`] starts the test binary again inside fresh namespaces, and
//! [`Lab::set_up`] furnishes them:
//!
//! ```text
//!        "host": the lab's network namespace       "outside": a second one
//!   10.77.0.1/24, fd77::1/64  up0 ──── veth ──── out0  10.77.0.2/24, fd77::2/64
//!   programs run here, as the users                web, echo and name servers
//! ```
//!
//! `/tmp` and the users' homes are empty file systems in memory; `/etc/resolv.conf`
//! names the outside's name server; `/sys/fs/cgroup` is version 2. None of it is
//! seen by the machine itself, except the two users, which are made once.
//!
//! As an ordinary user there are no namespaces, no outside and one user: the
//! caller. Descendants are found because the test binary is their subreaper.

mod outside;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Pid, Uid, chown};

pub use outside::Outside;
use outside::outside;

use crate::command::{Cmd, User};
use crate::{leak, sys};

/// Set in the environment of a test binary that is inside its namespaces.
const INSIDE: &str = "CORACLE_LAB";
/// Directory of the programs under test; next to the test binary otherwise.
const BIN_DIR: &str = "CORACLE_BIN_DIR";

/// User with subordinate ids.
pub const SUBORDINATE_USER: &str = "coracle-test";
/// User without.
pub const SINGLE_ID_USER: &str = "coracle-single";

/// The programs under test.
pub const PROGRAMS: [&str; 3] = ["coracle", "netstack", "overlayfs-fuse"];

/// Which ids a user can map into a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Its own, and a range from /etc/subuid and /etc/subgid.
    Subordinate,
    /// Its own.
    Single,
}

/// The machine around the tests.
#[derive(Debug)]
pub struct Lab {
    /// Directory of the programs under test, readable to every user.
    pub bin: PathBuf,
    /// The other side of the network; only as root.
    pub outside: Option<Outside>,
    users: Vec<(Ids, User)>,
    dir: PathBuf,
    isolated: bool,
    _dir: Option<tempfile::TempDir>,
}

/// Whether this program is inside its namespaces.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again inside namespaces of its own when it is root and
/// is not there yet, and ends with its exit code. Returns only where nothing is to
/// be done. The programs under test are those in `bin`; by default, those next to
/// this program.
///
/// However this program ends, the copy inside and all it started end too: the
/// copy's standard input is a pipe that closes with this program ([`lifeline`]).
///
/// # Errors
/// When unshare(1) cannot be started.
pub fn enter(bin: Option<&Path>) -> Result<()> {
    if !Uid::effective().is_root() || is_inside() {
        return Ok(());
    }
    let bin = bin.map_or_else(bin_dir, |bin| Ok(bin.to_owned()))?;
    let program = std::env::current_exe()?;
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--net", "--ipc", "--uts", "--cgroup", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .env(BIN_DIR, bin)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start unshare (package util-linux)")?;
    let line = child.stdin.take();
    // unshare blocks the signals that end it: the copy is ended through the pipe.
    sys::on_interrupt(move || drop(line))?;
    let status = child.wait()?;
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Ends this program when the one outside the namespaces has ended.
fn lifeline() -> Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(|| {
        let mut byte = [0u8];
        // Nobody writes: this returns at the end of the file.
        std::io::stdin().read_exact(&mut byte).ok();
        std::process::exit(130);
    })?;
    Ok(())
}

impl Lab {
    /// Furnishes the namespaces made by [`enter`], or, as an ordinary user, a
    /// directory. `bin` is as in [`enter`], which passes it on.
    ///
    /// # Errors
    /// Says which part cannot be made.
    pub fn set_up(bin: Option<&Path>) -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let bin = bin.map_or_else(bin_dir, |bin| Ok(bin.to_owned()))?;
        let lab = if Uid::effective().is_root() {
            ensure!(is_inside(), "call enter() first");
            lifeline()?;
            Self::as_root(&bin)?
        } else {
            Self::as_user(bin)?
        };
        let (isolated, dir) = (lab.isolated, lab.dir.clone());
        sys::on_interrupt(move || {
            if !isolated {
                kill_descendants();
                // Nothing can be done about a directory that stays.
                fs::remove_dir_all(dir).ok();
            }
            // In the lab this is the end of the PID namespace.
            std::process::exit(130);
        })?;
        Ok(lab)
    }

    fn as_root(source: &Path) -> Result<Self> {
        // Before /tmp is covered: the programs may be below it.
        let mut programs = Vec::new();
        for program in PROGRAMS {
            let path = source.join(program);
            let bytes = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            programs.push((program, bytes));
        }
        let itself = fs::read(std::env::current_exe()?)?;
        programs.push(("itself", itself));

        let users = [
            (Ids::Subordinate, test_user(SUBORDINATE_USER, true)?),
            (Ids::Single, test_user(SINGLE_ID_USER, false)?),
        ];
        mount_tmpfs("/tmp", "mode=1777")?;
        let dir = PathBuf::from("/tmp/coracle-lab");
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        for (program, bytes) in programs {
            let path = bin.join(program);
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        for (_, user) in &users {
            let options = format!("mode=0700,uid={},gid={}", user.uid, user.gid);
            mount_tmpfs(&user.home, &options)?;
            fs::create_dir(&user.runtime_dir)?;
            fs::set_permissions(&user.runtime_dir, fs::Permissions::from_mode(0o700))?;
            chown(&user.runtime_dir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        }
        // One that shows the lab's network devices, not the machine's. The
        // containers' peers want cgroups of version 2; ours do without.
        let none = None::<&str>;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
            .context("cannot mount sysfs")?;
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
            .context("cannot mount cgroup2")?;
        for device in ["/dev/fuse", "/dev/net/tun"] {
            fs::metadata(device)
                .with_context(|| format!("{device} is missing; `cargo xtask test` makes it"))?;
        }
        let outside = outside(&dir)?;
        Ok(Self {
            bin,
            outside: Some(outside),
            users: users.into(),
            dir,
            isolated: true,
            _dir: None,
        })
    }

    fn as_user(bin: PathBuf) -> Result<Self> {
        for program in PROGRAMS {
            let path = bin.join(program);
            ensure!(path.exists(), "no {}; build it first", path.display());
        }
        let dir = tempfile::Builder::new().prefix("coracle-lab-").tempdir()?;
        let me = nix::unistd::User::from_uid(Uid::current())?
            .context("the calling user has no entry in the user database")?;
        let name = me.name;
        let home = dir.path().join("home");
        let runtime_dir = dir.path().join("run");
        for dir in [&home, &runtime_dir] {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        let has = |file: &str| {
            let uid = me.uid.to_string();
            fs::read_to_string(file).unwrap_or_default().lines().any(|line| {
                line.split(':').next().is_some_and(|owner| owner == name || owner == uid)
            })
        };
        let ids = if has("/etc/subuid") && has("/etc/subgid") && find("newuidmap").is_some() {
            Ids::Subordinate
        } else {
            Ids::Single
        };
        let user = User { name, uid: me.uid.as_raw(), gid: me.gid.as_raw(), home, runtime_dir };
        Ok(Self {
            bin,
            outside: None,
            users: vec![(ids, user)],
            dir: dir.path().to_owned(),
            isolated: false,
            _dir: Some(dir),
        })
    }

    /// The user with such ids.
    #[must_use]
    pub fn user(&self, ids: Ids) -> Option<&User> {
        self.users.iter().find(|(has, _)| *has == ids).map(|(_, user)| user)
    }

    /// Why there is no such user.
    #[must_use]
    pub fn no_user(&self, ids: Ids) -> String {
        match ids {
            Ids::Subordinate => "the calling user has no subordinate ids".into(),
            Ids::Single => {
                "the calling user has subordinate ids; root runs this as one without".into()
            }
        }
    }

    /// Whether the lab has namespaces of its own.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// This test binary, where every user can start it.
    ///
    /// # Errors
    /// When its path cannot be found out.
    pub fn itself(&self) -> Result<PathBuf> {
        if self.isolated { Ok(self.bin.join("itself")) } else { Ok(std::env::current_exe()?) }
    }

    /// The outside.
    ///
    /// # Errors
    /// Without a lab there is none; tests that use it say so in the table.
    pub fn outside(&self) -> Result<&Outside> {
        self.outside.as_ref().context("this test did not say that it needs the lab")
    }

    /// A path for a file of the harness's own, which it removes again.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A new directory that belongs to `user`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn test_dir(&self, user: &User) -> Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = self.dir.join(format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir)?;
        chown(&dir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        Ok(dir)
    }

    /// Any user: the one with subordinate ids if there is one.
    #[must_use]
    pub fn any_user(&self) -> &User {
        let (_, user) = self.users.first().expect("every lab has a user");
        user
    }

    /// The ids of that user.
    #[must_use]
    pub fn any_ids(&self) -> Ids {
        let (ids, _) = self.users.first().expect("every lab has a user");
        *ids
    }

    /// Directories in which nothing may be left.
    #[must_use]
    pub fn watched(&self) -> Vec<PathBuf> {
        if self.isolated {
            let mut dirs = vec![PathBuf::from("/tmp")];
            dirs.extend(self.users.iter().map(|(_, user)| user.home.clone()));
            dirs
        } else {
            vec![self.dir.clone()]
        }
    }

    /// Whether a path below a watched directory is no leak: the
    /// directories in which later containers will be kept, and what the web
    /// server serves.
    #[must_use]
    pub fn may_stay(&self, path: &Path) -> bool {
        if self.outside.as_ref().is_some_and(|outside| path.starts_with(&outside.www)) {
            return true;
        }
        // Directories (one to mount at), the store's lock, and below its cache what can be computed again.
        const BASES: [&str; 7] = [
            ".local",
            ".local/share",
            ".local/share/coracle",
            ".local/share/coracle/lock",
            ".local/share/coracle/containers",
            ".local/share/coracle/cache",
            ".local/share/coracle/mnt",
        ];
        self.users.iter().any(|(_, user)| {
            path.strip_prefix(&user.home).is_ok_and(|rest| {
                BASES.iter().any(|base| rest == Path::new(base))
                    || rest.starts_with(".local/share/coracle/cache")
            })
        })
    }

    /// Processes besides the test binary itself.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        if self.isolated {
            let own = std::process::id().cast_signed();
            pids().into_iter().filter(|&pid| pid != own).collect()
        } else {
            descendants()
        }
    }

    /// The same in words, a line each.
    #[must_use]
    pub fn processes_in_words(&self) -> String {
        let lines = self
            .processes()
            .into_iter()
            .map(|pid| format!("    process {pid}: {}", leak::describe(pid)));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Kills everything the tests started; the name server stays.
    pub fn kill_all(&self) {
        for pid in self.processes() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() != "dnsmasq" {
                // ESRCH: it ended since.
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .ok();
            }
        }
        self.reap();
    }

    /// Collects orphans that have ended.
    pub fn reap(&self) {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }

    /// Collects orphans that have ended while a test runs, and nothing that the test itself
    /// waits for: what its threads have started are children of those threads, and orphans
    /// come to the first thread (`find_new_reaper` in the kernel's exit.c), which calls this.
    /// One that another thread traces is left to it: to wait for whatever comes would take
    /// the tracer's stops as well (`wait_consider_task`).
    pub fn reap_orphans(&self) {
        use nix::sys::wait::{WaitPidFlag, waitpid};
        let own = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
        for pid in self.processes() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ended = status.lines().any(|line| line.starts_with("State:\tZ"));
            if ended && status.lines().any(|line| line == "TracerPid:\t0") {
                // ECHILD: somebody else's, who waits for it.
                drop(waitpid(Pid::from_raw(pid), Some(own)).map_err(std::io::Error::from));
            }
        }
    }

    /// Removes a file or tree, whoever owns it. As an ordinary user, files of
    /// subordinate ids are removed inside a user namespace.
    ///
    /// # Errors
    /// When it cannot be removed, or is outside the watched directories.
    pub fn remove_as_root(&self, path: &Path) -> Result<()> {
        let inside = self.watched().iter().any(|dir| path.starts_with(dir) && path != dir);
        ensure!(inside, "{} is none of the tests' files", path.display());
        let words: &[&str] = match (self.isolated, self.any_ids()) {
            (true, _) => &["rm", "-rf", "--"],
            (false, Ids::Subordinate) => {
                &["unshare", "--map-root-user", "--map-auto", "rm", "-rf", "--"]
            }
            (false, Ids::Single) => &["unshare", "--map-root-user", "rm", "-rf", "--"],
        };
        Cmd::new(words[0]).args(&words[1..]).arg(path).run()?.ok()?;
        Ok(())
    }
}

fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR) {
        return Ok(dir.into());
    }
    let program = std::env::current_exe()?;
    let dir = program.parent().and_then(Path::parent).context("no directory above this program")?;
    Ok(dir.to_owned())
}

/// Where a program is on the search path of root.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

fn mount_tmpfs(at: impl AsRef<Path>, options: &str) -> Result<()> {
    let at = at.as_ref();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on {}", at.display()))
}

/// The named user, made when missing.
///
/// # Errors
/// When useradd(8) or usermod(8) fail.
pub fn test_user(name: &str, subordinate: bool) -> Result<User> {
    if nix::unistd::User::from_name(name)?.is_none() {
        Cmd::new("useradd")
            .args(["--create-home", "--shell", "/bin/sh"])
            .args(["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", name])
            .run()?
            .ok()?;
    }
    for (file, add, remove) in [
        ("/etc/subuid", "--add-subuids", "--del-subuids"),
        ("/etc/subgid", "--add-subgids", "--del-subgids"),
    ] {
        let table = fs::read_to_string(file).unwrap_or_default();
        let ranges: Vec<(u64, u64)> = table.lines().filter_map(|line| range_of(line, "")).collect();
        let own: Vec<_> = table.lines().filter_map(|line| range_of(line, name)).collect();
        if subordinate && own.is_empty() {
            // Above everybody else's.
            let first =
                ranges.iter().map(|(start, count)| start + count).max().unwrap_or(0).max(100_000);
            let range = format!("{first}-{}", first + 65_535);
            Cmd::new("usermod").args([add, &range, name]).run()?.ok()?;
        }
        if !subordinate {
            for (start, count) in own {
                let range = format!("{start}-{}", start + count - 1);
                Cmd::new("usermod").args([remove, &range, name]).run()?.ok()?;
            }
        }
    }
    let user = nix::unistd::User::from_name(name)?.context("useradd made no user")?;
    Ok(User {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
        runtime_dir: format!("/tmp/run-{name}").into(),
    })
}

/// `NAME:START:COUNT` of /etc/subuid; any name's where `name` is empty.
fn range_of(line: &str, name: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(':');
    let owner = fields.next()?;
    if !name.is_empty() && owner != name {
        return None;
    }
    Some((fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?))
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn descendants() -> BTreeSet<i32> {
    let parents: Vec<(i32, i32)> = pids()
        .into_iter()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // PID (NAME) STATE PPID …, where NAME may have anything in it.
            let (_, rest) = stat.rsplit_once(')')?;
            Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = BTreeSet::new();
    let mut next = vec![std::process::id().cast_signed()];
    while let Some(parent) = next.pop() {
        for &(pid, of) in &parents {
            if of == parent && found.insert(pid) {
                next.push(pid);
            }
        }
    }
    found
}

fn kill_descendants() {
    for pid in descendants() {
        // ESRCH: it ended since.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .ok();
    }
}

/// A file of `size` bytes that do not repeat, the same every time.
///
/// # Errors
/// When it cannot be written.
pub fn write_blob(path: &Path, size: usize) -> Result<()> {
    use std::io::Write;
    if !size.is_multiple_of(8) {
        bail!("{size} is not a multiple of 8");
    }
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    // xorshift64 (Marsaglia, 2003).
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..size / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()?;
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::range_of;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_of("a:100000:65536", "a"), Some((100_000, 65_536)));
        assert_eq!(range_of("ab:1:2", "a"), None);
        assert_eq!(range_of("ab:1:2", ""), Some((1, 2)));
        for line in ["", "a", "a:1", "a:x:2", "# a:1"] {
            assert_eq!(range_of(line, "a"), None, "{line}");
        }
    }
}
