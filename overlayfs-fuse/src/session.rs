//! Mounting, readiness, signals, unmounting.
//!
//! # Theory of operation
//! 1. Without `-f` the process forks; the parent waits for one byte on a pipe
//!    and passes the child's fate on as its own exit code.
//! 2. The layers are opened and the union is made. Then the mount: by mount(2) as
//!    user 0 (of a user namespace is enough), else by fusermount3. The INIT
//!    request is answered before anybody is told: from then on the mount is live.
//! 3. A daemon's standard streams become /dev/null, so that no pipe of the caller
//!    stays open, and no file of ours ever gets their numbers.
//! 4. One thread runs fuser's loop, which starts the server threads. This thread
//!    waits for the first of: end of the loop (unmounted by somebody), SIGTERM or
//!    SIGINT, hang-up of `--exit-fd`. The latter two detach the mount; a short
//!    grace lets the kernel hand over what is still dirty.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fuser::{MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;

use crate::cli::Mount;
use crate::config::{Config, MountFlags};
use crate::fuse::Adapter;
use crate::layer::{DirLayer, Layer};
use crate::overlay::{Overlay, Upper};
use crate::sys;

/// What speaks the FUSE protocol here, for `--version`.
pub const FUSE_LIBRARY: &str = "fuser 0.18";

/// As the peers call it: programs look for this type.
const FS_TYPE: &str = "fuse.fuse-overlayfs";
/// Server threads: more made parallel readers slower, fewer everything.
const THREADS: usize = 2;
/// How long a detached mount may take to hand over what is dirty, milliseconds.
const GRACE: u16 = 2000;
/// Open directories of all layers together.
const DIRECTORY_CACHE: usize = 2048;

/// Mounts, serves, and returns when it is over (or, as a parent, live).
///
/// # Errors
/// One line that says what failed, on what, and why.
pub fn run(asked: Mount) -> Result<()> {
    let adopt = |number: Option<i32>, option: &str| {
        number
            .map(|fd| {
                sys::adopt_fd(fd).with_context(|| format!("{option}: no open descriptor {fd}"))
            })
            .transpose()
    };
    let ready = adopt(asked.ready_fd, "--ready-fd")?;
    let exit = adopt(asked.exit_fd, "--exit-fd")?;
    for option in &asked.config.ignored {
        eprintln!("overlayfs-fuse: unknown argument ignored: {option}");
    }
    if asked.foreground {
        if asked.debug {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_max_level(tracing::Level::DEBUG)
                .init();
        }
        return serve(&asked, ready, exit, None);
    }
    let (mut told, teller) = std::io::pipe().context("make a pipe")?;
    match sys::fork().context("fork")? {
        sys::Forked::Parent => {
            drop((teller, ready, exit));
            let mut byte = [0];
            if told.read_exact(&mut byte).is_err() {
                // The child has said why.
                std::process::exit(1);
            }
            Ok(())
        }
        sys::Forked::Child => {
            drop(told);
            nix::unistd::setsid().context("start a session of its own")?;
            serve(&asked, ready, exit, Some(teller))
        }
    }
}

fn serve(
    asked: &Mount,
    ready: Option<OwnedFd>,
    exit: Option<OwnedFd>,
    parent: Option<std::io::PipeWriter>,
) -> Result<()> {
    let config = &asked.config;
    nix::sys::stat::umask(Mode::empty());
    raise_descriptor_limit()?;
    let target = config
        .mount_point
        .canonicalize()
        .with_context(|| format!("mount point {}", config.mount_point.display()))?;
    // Before any thread is started, so that all have the signals blocked.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let signals =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("make a signalfd")?;
    let overlay = join_layers(config)?;
    // A daemon that sits in a directory keeps its file system busy.
    std::env::set_current_dir("/").context("change to /")?;
    let session = mount_union(config, &target, Adapter::new(overlay, asked.debug, is_real_root()))?;
    if let Some(ready) = ready {
        std::fs::File::from(ready).write_all(b"1").context("write to --ready-fd")?;
    }
    if let Some(mut parent) = parent {
        let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .context("open /dev/null")?;
        sys::replace_standard_streams(&null).context("let go of the standard streams")?;
        parent.write_all(b"1").context("tell the parent")?;
    }
    let (over, ender) = std::io::pipe().context("make a pipe")?;
    let server = std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            let result = session.run();
            drop(ender);
            result
        })
        .context("start the server")?;
    let mut waits = vec![
        PollFd::new(over.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    if let Some(exit) = &exit {
        // Hang-up is always reported; what is written to it means nothing.
        waits.push(PollFd::new(exit.as_fd(), PollFlags::empty()));
    }
    loop {
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e).context("wait for the end"),
        }
        if waits.iter().any(|w| w.any().unwrap_or(true)) {
            break;
        }
    }
    let unmounted = waits[0].any().unwrap_or(true);
    if !unmounted {
        detach(&target)?;
        let mut wait = [PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wait, GRACE) == Ok(0) {
            // Somebody still uses it. Ending the process ends the connection.
            return Ok(());
        }
    }
    match server.join() {
        Ok(result) => result.context("serve the file system"),
        Err(_) => bail!("the server thread died"),
    }
}

/// Whether user 0 here is the machine's root: the initial user namespace maps
/// every id to itself. What cannot be read counts as unprivileged.
fn is_real_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn raise_descriptor_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise RLIMIT_NOFILE")?;
    }
    Ok(())
}

fn join_layers(config: &Config) -> Result<Overlay> {
    let cache = (DIRECTORY_CACHE / (config.lowers.len() + 1)).clamp(8, 512);
    let mut lowers: Vec<Box<dyn Layer>> = Vec::with_capacity(config.lowers.len());
    for path in &config.lowers {
        let layer = DirLayer::open_root(path, cache)
            .with_context(|| format!("lowerdir {}", path.display()))?;
        lowers.push(Box::new(layer));
    }
    let upper = match &config.upper {
        None => None,
        Some(dirs) => {
            let upper = Upper::open(&dirs.upper, &dirs.work, cache).with_context(|| {
                format!("upperdir {}, workdir {}", dirs.upper.display(), dirs.work.display())
            })?;
            if upper.shared_work {
                eprintln!(
                    "overlayfs-fuse: warning: workdir {} is in use by another mount",
                    dirs.work.display()
                );
            }
            Some(upper)
        }
    };
    Overlay::new(lowers, upper, config.options.clone()).context("join the layers")
}

fn mount_union(config: &Config, target: &Path, adapter: Adapter) -> Result<Session<Adapter>> {
    let source = config.source.clone().unwrap_or_else(|| "fuse-overlayfs".to_owned());
    let mut settings = fuser::Config::default();
    settings.n_threads = Some(THREADS);
    // The kernel itself checks who may enter; fuser need not do it again.
    settings.acl = SessionACL::All;
    let root = nix::unistd::geteuid().is_root();
    let direct = if root { mount_directly(config, &source, target)? } else { None };
    if let Some(device) = direct {
        return Session::from_fd(adapter, device, SessionACL::All, settings)
            .inspect_err(|_| {
                // Nobody serves it: it must not stay.
                if let Err(e) = umount2(target, MntFlags::MNT_DETACH) {
                    tracing::debug!(%e, "undo the mount");
                }
            })
            .context("answer the kernel's INIT");
    }
    settings.acl = if config.flags.allow_other { SessionACL::All } else { SessionACL::Owner };
    settings.mount_options = helper_options(config.flags, source);
    Session::new(adapter, target, &settings)
        .with_context(|| format!("mount on {} by fusermount3", target.display()))
}

/// mount(2). `None`: not allowed, fusermount3 may be.
fn mount_directly(config: &Config, source: &str, target: &Path) -> Result<Option<OwnedFd>> {
    let device = nix::fcntl::open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("open /dev/fuse (is the fuse module loaded, and the device visible here?)")?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let flags = config.flags;
    let mut bits = MsFlags::MS_NOATIME;
    bits.set(MsFlags::MS_RDONLY, flags.read_only || config.upper.is_none());
    bits.set(MsFlags::MS_NODEV, !flags.dev.unwrap_or(false));
    bits.set(MsFlags::MS_NOSUID, !flags.suid.unwrap_or(true));
    bits.set(MsFlags::MS_NOEXEC, !flags.exec.unwrap_or(true));
    match mount(Some(source), target, Some(FS_TYPE), bits, Some(data.as_str())) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::EPERM) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("mount on {}", target.display())),
    }
}

/// What fusermount3 is to mount with.
fn helper_options(flags: MountFlags, source: String) -> Vec<MountOption> {
    let mut options = vec![
        MountOption::FSName(source),
        MountOption::Subtype("fuse-overlayfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    if flags.read_only {
        options.push(MountOption::RO);
    }
    let pairs = [
        (flags.dev, MountOption::Dev, MountOption::NoDev),
        (flags.suid, MountOption::Suid, MountOption::NoSuid),
        (flags.exec, MountOption::Exec, MountOption::NoExec),
    ];
    for (flag, yes, no) in pairs {
        match flag {
            Some(true) => options.push(yes),
            Some(false) => options.push(no),
            None => {}
        }
    }
    options
}

/// Takes the mount away at once; those who have files open keep them until
/// this process ends.
fn detach(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::MNT_DETACH) {
        // Not mounted any more.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EPERM) => {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(target.as_os_str().as_bytes()));
            let status = std::process::Command::new("fusermount3")
                .args(["-u", "-z", "-q", "--"])
                .arg(&path)
                .status()
                .context("run fusermount3 -u")?;
            if !status.success() {
                bail!("fusermount3 -u {}: {status}", path.display());
            }
            Ok(())
        }
        Err(e) => Err(e).with_context(|| format!("unmount {}", target.display())),
    }
}
