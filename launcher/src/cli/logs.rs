//! `coracle logs`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::store::{Entry, Store};
use crate::sys::process::pidfd_open;

/// Print what a detached container has printed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

pub(super) fn logs(args: &Args) -> anyhow::Result<u8> {
    let entry = Store::open()?.find(&args.name)?;
    let path = entry.log();
    let mut log = match File::open(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It may be gone altogether; else the reason is another.
            entry.state()?;
            anyhow::bail!("container '{}' was not detached: it has no log", args.name);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let mut out = io::stdout().lock();
    if args.follow
        && let Some(monitor) = monitor(&entry)?
    {
        follow(&mut log, &path, &mut out, &monitor)?;
    }
    // What came between the last look and the end.
    io::copy(&mut log, &mut out)?;
    io::Write::flush(&mut out)?;
    Ok(0)
}

/// The process whose end is the container's end; `None` when that has come.
fn monitor(entry: &Entry) -> anyhow::Result<Option<OwnedFd>> {
    let Some((state, _)) = entry.state()? else { return Ok(None) };
    let Some(monitor) = state.monitor.filter(|_| !state.ended()) else { return Ok(None) };
    match pidfd_open(monitor.pid) {
        Ok(pidfd) => Ok(monitor.exists().then_some(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error).context("cannot watch the container's monitor"),
    }
}

/// Copies what is there and what comes, until `monitor` has ended or whoever
/// reads our output has gone.
fn follow(
    log: &mut File,
    path: &Path,
    out: &mut io::StdoutLock<'_>,
    monitor: &OwnedFd,
) -> anyhow::Result<()> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("cannot watch for changes")?;
    changes
        .add_watch(path, AddWatchFlags::IN_MODIFY)
        .with_context(|| format!("cannot watch {}", path.display()))?;
    loop {
        // The watch was there before this look: nothing is missed.
        io::copy(log, out)?;
        io::Write::flush(out)?;
        let mut fds = [
            PollFd::new(monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
            // No event asked for: an error is always told.
            PollFd::new(out.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for output"),
            Ok(_) => {}
        }
        let [ended, changed, unread] = fds.map(|fd| fd.any() == Some(true));
        if ended || unread {
            return Ok(());
        }
        if changed {
            // How often it was changed does not matter.
            match changes.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("cannot read changes"),
            }
        }
    }
}
