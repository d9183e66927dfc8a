//! Making and taking away the mount: by mount(2) as user 0 (of a user namespace
//! is enough), else through fusermount3.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::config::{Config, MountFlags};
use crate::sys;

/// As the peers call it: programs look for this type.
const FS_TYPE: &str = "fuse.fuse-overlayfs";

/// Mounts on `target`; the device the kernel's requests come from, which never
/// blocks.
///
/// # Errors
/// Says what failed, on what.
pub(crate) fn make(config: &Config, target: &Path) -> Result<OwnedFd> {
    let source = config.source.as_deref().unwrap_or("fuse-overlayfs");
    let direct =
        if nix::unistd::geteuid().is_root() { directly(config, source, target)? } else { None };
    let device = match direct {
        Some(device) => device,
        None => by_helper(config.flags, source, target)
            .with_context(|| format!("mount on {} by fusermount3", target.display()))?,
    };
    let flags = OFlag::from_bits_retain(fcntl(&device, FcntlArg::F_GETFL)?);
    fcntl(&device, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
        .context("make the device non-blocking")?;
    Ok(device)
}

/// mount(2). `None`: not allowed, fusermount3 may be.
fn directly(config: &Config, source: &str, target: &Path) -> Result<Option<OwnedFd>> {
    let device = nix::fcntl::open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("open /dev/fuse (is the fuse module loaded, and the device visible here?)")?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let bits = flag_bits(config.flags, config.upper.is_none());
    match mount(Some(source), target, Some(FS_TYPE), bits, Some(data.as_str())) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::EPERM) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("mount on {}", target.display())),
    }
}

/// The flags of mount(2).
fn flag_bits(flags: MountFlags, read_only: bool) -> MsFlags {
    let mut bits = MsFlags::MS_NOATIME;
    bits.set(MsFlags::MS_RDONLY, flags.read_only || read_only);
    bits.set(MsFlags::MS_NODEV, !flags.dev.unwrap_or(false));
    bits.set(MsFlags::MS_NOSUID, !flags.suid.unwrap_or(true));
    bits.set(MsFlags::MS_NOEXEC, !flags.exec.unwrap_or(true));
    bits
}

/// Changes the flags of the mount on `target`, whose server goes on and need not know.
/// mount(8) calls the program for it as it does to mount.
///
/// # Errors
/// Says what failed, on what, and what to do.
pub(crate) fn change(flags: MountFlags, target: &Path) -> Result<()> {
    let kind = nix::sys::statfs::statfs(target)
        .with_context(|| format!("remount {}", target.display()))?
        .filesystem_type();
    if kind != nix::sys::statfs::FUSE_SUPER_MAGIC {
        bail!("remount {}: no FUSE file system is mounted there", target.display());
    }
    let none: Option<&str> = None;
    let bits = flag_bits(flags, false) | MsFlags::MS_REMOUNT;
    mount(none, target, none, bits, none).with_context(|| {
        let target = target.display();
        match bits.contains(MsFlags::MS_RDONLY) {
            true => format!(
                "remount {target} (is a file open for writing, or who mounted it not root?)"
            ),
            false => {
                format!("remount {target} (only root of the user namespace that mounted it can)")
            }
        }
    })
}

/// fusermount3(1) opens the device, mounts, and sends the device through a socket
/// whose number it finds in `_FUSE_COMMFD`.
fn by_helper(flags: MountFlags, source: &str, target: &Path) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().context("make a socket pair")?;
    // No other thread runs yet: nobody else can inherit it.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("pass on a socket")?;
    let child = Command::new("fusermount3")
        .args(["-o", &helper_options(flags, source), "--"])
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stderr(Stdio::piped())
        .spawn()
        .context("start fusermount3 (package fuse3)")?;
    drop(theirs);
    let mut byte = [0];
    let device = sys::receive_fd(&ours, &mut IoSliceMut::new(&mut byte));
    drop(ours);
    let output = child.wait_with_output().context("wait for fusermount3")?;
    match device.context("receive the device from fusermount3")? {
        Some(device) if output.status.success() => Ok(device),
        _ => bail!("{}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// What fusermount3 is to mount with.
fn helper_options(flags: MountFlags, source: &str) -> String {
    // fusermount3 takes a backslash before what separates options.
    let source = source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!("fsname={source},subtype=fuse-overlayfs,default_permissions,noatime");
    let pairs = [
        (flags.dev, ",dev", ",nodev"),
        (flags.suid, ",suid", ",nosuid"),
        (flags.exec, ",exec", ",noexec"),
    ];
    for (flag, yes, no) in pairs {
        options += match flag {
            Some(true) => yes,
            Some(false) => no,
            None => "",
        };
    }
    for (flag, word) in [(flags.read_only, ",ro"), (flags.allow_other, ",allow_other")] {
        if flag {
            options += word;
        }
    }
    options
}

/// Takes the mount away at once; those who have files open keep them until
/// this process ends.
pub(crate) fn detach(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::MNT_DETACH) {
        // Not mounted any more.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EPERM) => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "-q", "--"])
                .arg(target)
                .status()
                .context("run fusermount3 -u")?;
            if !status.success() {
                bail!("fusermount3 -u {}: {status}", target.display());
            }
            Ok(())
        }
        Err(e) => Err(e).with_context(|| format!("unmount {}", target.display())),
    }
}
