//! A long and lossy cable between two network namespaces.
//!
//! Two TAP devices, `far0` here and `far1` in another namespace; each frame comes out
//! of the other one after a delay, but every so-many-th never does. Unlike tc-netem(8)
//! it needs nothing of the kernel, and loses the same frames in every sample: with a
//! few losses a second, chance would be most of the result. It carries some 100,000
//! frames a second, far more than TCP sends at such a loss.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::libc::{IFF_NO_PI, IFF_TAP};
use nix::sched::{CloneFlags, setns};
use tests::say;

use super::now_ns;

/// Device of this namespace.
pub(crate) const HERE: &str = "far0";
/// Device of the other.
pub(crate) const THERE: &str = "far1";
/// Frames on their way in one direction; what is more is lost.
const QUEUE: usize = 20_000;
/// Largest frame: MTU 1500, the Ethernet header, and some.
const FRAME: usize = 2048;

/// A cable.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Link {
    /// A process in the other network namespace.
    other: i32,
    /// Milliseconds in each direction.
    #[arg(long)]
    delay_ms: u64,
    /// One of so many frames is lost, in each direction.
    #[arg(long)]
    lose_one_of: u64,
}

/// Carries frames until standard input closes; prints `ready` when the devices
/// are there.
///
/// # Errors
/// When one cannot be made.
pub(super) fn carry(args: Link) -> Result<()> {
    let here = tap(HERE)?;
    let there = std::thread::spawn(move || -> Result<File> {
        let namespace = File::open(format!("/proc/{}/ns/net", args.other))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
        tap(THERE)
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread in the other namespace panicked"))??;
    for (from, to) in [(here.try_clone()?, there.try_clone()?), (there, here)] {
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::spawn(move || take_in(from, &sender, args));
        std::thread::spawn(move || put_out(to, &receiver));
    }
    say!("ready")?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn tap(name: &str) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun")?;
    tests::sys::tun_set_iff(file.as_fd(), name, IFF_TAP | IFF_NO_PI)
        .with_context(|| format!("cannot make the device {name}"))?;
    Ok(file)
}

/// A frame, and when it is due (ns).
type Due = (u64, Vec<u8>);

fn take_in(mut from: File, sender: &SyncSender<Due>, args: Link) {
    let mut buffer = [0; FRAME];
    let mut number = 0u64;
    loop {
        let Ok(count) = from.read(&mut buffer) else { continue };
        number += 1;
        if number.is_multiple_of(args.lose_one_of) {
            continue;
        }
        let due = now_ns() + args.delay_ms * 1_000_000;
        match sender.try_send((due, buffer[..count].to_vec())) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the delay is the purpose, not a wait for anything")]
fn put_out(mut to: File, receiver: &Receiver<Due>) {
    for (due, frame) in receiver {
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(now_ns())));
        // A device that is down loses frames, as a cable that is not plugged in.
        to.write_all(&frame).ok();
    }
}
