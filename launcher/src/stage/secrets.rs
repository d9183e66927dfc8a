//! Secrets: put in the container's memory while the host's files are in sight, handed
//! over to its user once that is known, and unchangeable from then on.
//!
//! The file system is a ramfs, which is never swapped out. It has no bound of its own,
//! and is read-only before any code of the container's runs.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchownat};

use super::in_root::InRoot;
use super::passwd::Identity;
use crate::channel::{Context, Fault};
use crate::plan::{InitStep, SECRETS};
use crate::sys::mount;

/// No secret has more bytes (as in Podman).
const LONGEST: u64 = 512_000;

/// Copies the host's file `source` to `name` among the secrets of the root.
///
/// # Errors
/// A fault that names the secret, never its content.
pub fn put(root: &InRoot, source: &Path, name: &str) -> Result<(), Fault> {
    let what = || format!("cannot read the secret {name} from {}", source.display());
    // Looked at once more: it may have become something that is waited for.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(source)
        .context(what)?;
    if !file.metadata().context(what)?.is_file() {
        return Err(Fault::said(format!("{}: it is no regular file", what())));
    }
    let mut content = file.take(LONGEST + 1);
    let place = || format!("cannot put the secret {name} into {SECRETS}");
    let dir =
        root.open_plain(SECRETS.as_ref(), OFlag::O_PATH | OFlag::O_DIRECTORY).context(place)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let secret = openat(&dir, name, flags, Mode::S_IRUSR).context(place)?;
    let copied = io::copy(&mut content, &mut File::from(secret)).context(place)?;
    if copied > LONGEST {
        return Err(Fault::said(format!("{}: it is longer than {LONGEST} bytes", what())));
    }
    Ok(())
}

/// Gives the secrets that `steps` have put in place to the workload's user; nobody changes
/// them any more. After the pivot, and while mounts can be changed.
///
/// # Errors
/// When the kernel refuses.
pub fn hand_over(steps: &[InitStep], identity: &Identity) -> Result<(), Fault> {
    let names: Vec<&str> = steps
        .iter()
        .filter_map(|step| match step {
            InitStep::Secret { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let what = || "cannot hand over the secrets";
    let dir = InRoot::open_root("/".as_ref())
        .and_then(|root| root.open_plain(SECRETS.as_ref(), OFlag::O_PATH | OFlag::O_DIRECTORY))
        .context(what)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    for name in names {
        fchownat(&dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).context(what)?;
    }
    mount::restrict(dir.as_fd(), mount::RDONLY, false).context(what)
}
