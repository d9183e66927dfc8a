//! Mounting, readiness, signals, unmounting.
//!
//! # Theory of operation
//! 1. The layers are opened and the union is made, then the mount. The INIT request is
//!    there at once and is answered: from then on the mount is live, and requests wait.
//! 2. Without `-f` the process forks only now. The parent ends with success, having
//!    waited for nobody; whatever went wrong before, it has said itself. The child's
//!    standard streams become /dev/null, so that no pipe of the caller stays open, and no
//!    file of ours ever gets their numbers.
//! 3. Other threads serve ([`crate::fuse::server`]). This one waits for the first
//!    of: their end (unmounted by somebody), SIGTERM or SIGINT, hang-up of
//!    `--exit-fd`. The latter two have the kernel hand over what it kept, and detach the
//!    mount; a short grace lets it hand over what mappings have changed. SIGUSR1 reports the counters.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;

use crate::cli::Mount;
use crate::config::{Config, SpinTime};
use crate::fuse::Adapter;
use crate::fuse::server::{Server, write_report};
use crate::layer::{DirLayer, Layer};
use crate::overlay::{Overlay, Upper};
use crate::{mount, sys};

/// Longest time to spin where it is not said, microseconds: a client that works a
/// little between its requests still finds the server awake.
const SPIN: u64 = 60;
/// How long a detached mount may take to hand over what is dirty, milliseconds.
const GRACE: u16 = 2000;
/// Most descriptors that are kept: half for directories, a quarter for files, at most an
/// eighth for rings. The rest is for what is under way and for removed files that are
/// still in use.
const DESCRIPTORS: usize = 4096;

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
        say(&format!("unknown argument ignored: {option}"));
    }
    if asked.config.flags.remount {
        return mount::change(asked.config.flags, &asked.config.mount_point);
    }
    if asked.debug {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(tracing::Level::DEBUG)
            .init();
    }
    serve(&asked, ready, exit)
}

fn serve(asked: &Mount, ready: Option<OwnedFd>, exit: Option<OwnedFd>) -> Result<()> {
    let config = &asked.config;
    sys::one_heap();
    nix::sys::stat::umask(Mode::empty());
    let descriptors = raise_descriptor_limit()?;
    let stats = config.stats.as_deref().map(std::path::absolute).transpose();
    let stats = stats.context("find the file of option stats")?;
    let target = config
        .mount_point
        .canonicalize()
        .with_context(|| format!("mount point {}", config.mount_point.display()))?;
    let overlay = join_layers(config, descriptors)?;
    let signals = take_signals()?;
    // A daemon that sits in a directory keeps its file system busy.
    std::env::set_current_dir("/").context("change to /")?;
    let device = mount::make(config, &target)?;
    let adapter = Adapter::new(overlay, config.passthrough, asked.debug);
    let rings = if config.rings { descriptors / 8 } else { 0 };
    let server = Server::start(device, adapter, rings).context("answer the kernel's INIT");
    let begun = server.and_then(|server| {
        if config.passthrough && !server.passes_through() {
            say("warning: passthrough takes the machine's root and Linux 6.9 with \
                 CONFIG_FUSE_PASSTHROUGH; files are read through this program");
        }
        if let Some(ready) = ready {
            std::fs::File::from(ready).write_all(b"1").context("write to --ready-fd")?;
        }
        if !asked.foreground {
            go_to_background()?;
        }
        let server = Arc::new(server);
        let (over, ender) = std::io::pipe().context("make a pipe")?;
        let threads = server.run(ender).context("start the server")?;
        Ok((server, threads, over))
    });
    let (server, threads, over) = begun.or_else(|e| {
        // Nobody serves it: it must not stay.
        mount::detach(&target)?;
        Err(e)
    })?;
    // What is asked for this takes time, which no client need wait for.
    server.spin_for(spin_time(config.spin));
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
        if waits[1].any().unwrap_or(true) {
            match signals.read_signal().context("read a signal")? {
                Some(signal) if signal.ssi_signo == Signal::SIGUSR1 as u32 => {
                    if let Err(e) = write_report(&server.report(), stats.as_deref()) {
                        tracing::error!(%e, "report the counters");
                    }
                    continue;
                }
                _ => break,
            }
        }
        if waits.iter().any(|w| w.any().unwrap_or(true)) {
            break;
        }
    }
    let unmounted = waits[0].any().unwrap_or(true);
    if !unmounted {
        if config.options.writeback {
            write_out(&target);
        }
        mount::detach(&target)?;
        let mut wait = [PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wait, GRACE) == Ok(0) {
            // Somebody still uses it. Ending the process ends the connection.
            return Ok(());
        }
    }
    for thread in threads {
        match thread.join() {
            Ok(result) => result.context("serve the file system")?,
            Err(_) => bail!("a thread of the server died"),
        }
    }
    Ok(())
}

/// Has the kernel hand over what it keeps of a mount of ours. Who uses a file on is told of
/// what could not be written when it syncs or closes that; nobody else could be.
fn write_out(target: &Path) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let synced = nix::fcntl::open(target, flags, Mode::empty()).and_then(nix::unistd::syncfs);
    if let Err(errno) = synced {
        tracing::warn!(%errno, at = %target.display(), "what was written may not have arrived");
    }
}

/// The signals that mean something, as a descriptor. Called before any thread is
/// started, so that all have them blocked, and before there is a mount that one could
/// leave behind.
fn take_signals() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("make a signalfd")
}

/// Returns in a child; the process itself ends with success.
fn go_to_background() -> Result<()> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("open /dev/null")?;
    if let sys::Forked::Parent = sys::fork().context("fork")? {
        std::process::exit(0);
    }
    sys::replace_standard_streams(&null).context("let go of the standard streams")?;
    nix::unistd::setsid().context("start a session of its own")?;
    // A parent that led the session of a terminal hung up, with its end, on whoever was
    // still in there. That is not for us; from here on a hang-up is.
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let pending = SignalFd::with_flags(&hangup, flags).context("make a signalfd")?;
    pending.read_signal().context("read a signal").map(drop)
}

/// How long to spin: with a single processor the client could not run meanwhile.
fn spin_time(asked: SpinTime) -> Duration {
    let micros = match asked {
        SpinTime::Micros(micros) => u64::from(micros),
        SpinTime::Auto => {
            let several = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
            if several { SPIN } else { 0 }
        }
    };
    Duration::from_micros(micros)
}

/// As many descriptors as are allowed; how many are to be used.
fn raise_descriptor_limit() -> Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise RLIMIT_NOFILE")?;
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX).min(DESCRIPTORS))
}

fn join_layers(config: &Config, descriptors: usize) -> Result<Overlay> {
    let cache = (descriptors / 2 / (config.lowers.len() + 1)).clamp(4, 512);
    let mut lowers: Vec<Box<dyn Layer>> = Vec::with_capacity(config.lowers.len());
    for path in &config.lowers {
        let layer = DirLayer::open_root(path, cache)
            .with_context(|| format!("lowerdir {}", path.display()))?;
        lowers.push(Box::new(layer));
    }
    let upper = match &config.upper {
        None => None,
        Some(dirs) => {
            let upper = Upper::open(&dirs.upper, &dirs.work).with_context(|| {
                format!("upperdir {}, workdir {}", dirs.upper.display(), dirs.work.display())
            })?;
            if upper.shared_work {
                let work = dirs.work.display();
                say(&format!("warning: workdir {work} is in use by another mount"));
            }
            Some(upper)
        }
    };
    let overlay = Overlay::new(lowers, upper, config.options.clone()).context("join the layers")?;
    overlay.limit_open_files(descriptors / 4);
    Ok(overlay)
}

/// Says a line on standard error. That nobody hears it is no reason to end.
pub fn say(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "overlayfs-fuse: {text}"));
}
