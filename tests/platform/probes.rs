//! The probes. Each runs alone, as root of fresh namespaces.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, major, minor, mknod};
use tests::sys;

const NONE: Option<&str> = None;

/// A tmpfs of this process's own.
fn tmpfs(at: &Path) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), NONE)
        .with_context(|| format!("tmpfs on {}", at.display()))
}

/// A scratch directory in memory, gone with the mount namespace.
fn scratch() -> Result<&'static Path> {
    let dir = Path::new("/tmp");
    tmpfs(dir)?;
    Ok(dir)
}

/// netstack: virtio-net headers and segmentation offloads on a TAP of our own.
pub(crate) fn tap_with_offloads_is_granted() -> Result<()> {
    let tun =
        fs::File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    sys::tun_set_iff(tun.as_fd(), "tap0", libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
        .context("TUNSETIFF")?;
    sys::tun_set_vnet_hdr_size(tun.as_fd(), 12).context("TUNSETVNETHDRSZ 12")?;
    // TUN_F_CSUM | TSO4 | TSO6 | TSO_ECN, linux/if_tun.h.
    sys::tun_set_offload(tun.as_fd(), 0x1 | 0x2 | 0x4 | 0x8).context("TUNSETOFFLOAD with TSO")?;
    // … | USO4 | USO6, Linux 6.2.
    sys::tun_set_offload(tun.as_fd(), 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40)
        .context("TUNSETOFFLOAD with USO")?;
    Ok(())
}

/// overlayfs-fuse: a whiteout is a character device 0:0, which needs no privilege.
pub(crate) fn whiteouts_can_be_made() -> Result<()> {
    let path = scratch()?.join("gone");
    mknod(&path, SFlag::S_IFCHR, Mode::empty(), nix::sys::stat::makedev(0, 0))
        .context("mknod c 0 0")?;
    let meta = fs::symlink_metadata(&path)?;
    ensure!(meta.file_type().is_char_device(), "it is no character device");
    ensure!((major(meta.rdev()), minor(meta.rdev())) == (0, 0), "its number is not 0:0");
    let other = mknod(
        &scratch()?.join("null"),
        SFlag::S_IFCHR,
        Mode::empty(),
        nix::sys::stat::makedev(1, 3),
    );
    ensure!(other == Err(nix::Error::EPERM), "1:3 should be refused, got {other:?}");
    Ok(())
}

/// overlayfs-fuse: root of a user namespace mounts FUSE itself.
pub(crate) fn fuse_mounts_in_a_user_namespace() -> Result<()> {
    let dir = scratch()?.join("mnt");
    fs::create_dir(&dir)?;
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        fuse.as_raw_fd()
    );
    mount(
        Some("probe"),
        &dir,
        Some("fuse.probe"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .context("mount -t fuse")?;
    // The superblock is there; nobody serves it, so only the kernel may be asked.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(mounts.contains(" - fuse.probe "), "the mount is not listed");
    Ok(())
}

/// The reference of the model tests: overlay with `userxattr`.
pub(crate) fn kernel_overlay_mounts_in_a_user_namespace() -> Result<()> {
    let dir = scratch()?;
    for sub in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir.join(sub))?;
    }
    fs::write(dir.join("lower/file"), "lower")?;
    mount(
        Some("overlay"),
        &dir.join("merged"),
        Some("overlay"),
        MsFlags::empty(),
        Some("lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"),
    )
    .context("mount -t overlay -o userxattr")?;
    fs::remove_file(dir.join("merged/file"))?;
    let meta = fs::symlink_metadata(dir.join("upper/file"))?;
    ensure!(
        meta.file_type().is_char_device() && meta.rdev() == 0,
        "the kernel's whiteout is another one"
    );
    Ok(())
}

/// Uppers in memory: opaque marks and owners are `user.*` xattrs (Linux 6.6 on tmpfs).
pub(crate) fn user_xattrs_are_kept_on_tmpfs() -> Result<()> {
    let path = scratch()?.join("file");
    fs::write(&path, "")?;
    sys::lsetxattr(&path, c"user.overlay.opaque", b"y").context("setxattr user.overlay.opaque")?;
    Ok(())
}

/// overlayfs-fuse: a layer cannot be left.
pub(crate) fn openat2_stays_below_a_directory() -> Result<()> {
    let dir = scratch()?;
    fs::create_dir(dir.join("layer"))?;
    std::os::unix::fs::symlink("/etc/passwd", dir.join("layer/link"))?;
    let layer = fs::File::open(dir.join("layer"))?;
    let beneath = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    for way_out in ["../layer", "link", "/etc/passwd"] {
        let got = sys::openat2(layer.as_fd(), Path::new(way_out), libc::O_PATH as u64, beneath);
        match got {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {}
            other => bail!("{way_out}: EXDEV expected, got {other:?}"),
        }
    }
    Ok(())
}

/// launcher: destinations of volumes are found inside the container's root.
pub(crate) fn openat2_resolves_as_in_a_root() -> Result<()> {
    let dir = scratch()?;
    fs::create_dir_all(dir.join("root/etc"))?;
    fs::write(dir.join("root/etc/mark"), "inside")?;
    std::os::unix::fs::symlink("/etc/mark", dir.join("root/link"))?;
    let root = fs::File::open(dir.join("root"))?;
    let found = sys::openat2(root.as_fd(), Path::new("../../link"), 0, libc::RESOLVE_IN_ROOT)?;
    let text = std::io::read_to_string(fs::File::from(found))?;
    ensure!(text == "inside", "read {text:?}");
    Ok(())
}

/// launcher: `:ro` volumes, submounts included.
pub(crate) fn mounts_turn_read_only_recursively() -> Result<()> {
    let dir = scratch()?;
    fs::create_dir_all(dir.join("source/sub"))?;
    tmpfs(&dir.join("source/sub"))?;
    fs::create_dir(dir.join("target"))?;
    mount(
        Some(&dir.join("source")),
        &dir.join("target"),
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )?;
    let target = fs::File::open(dir.join("target"))?;
    sys::mount_setattr(target.as_fd(), libc::MOUNT_ATTR_RDONLY, true).context("mount_setattr")?;
    for place in ["target/file", "target/sub/file"] {
        match fs::write(dir.join(place), "x") {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {}
            other => bail!("{place}: EROFS expected, got {other:?}"),
        }
    }
    Ok(())
}

/// launcher: the host's own root as a lower layer, with places covered.
pub(crate) fn the_hosts_tree_can_be_bound() -> Result<()> {
    let dir = scratch()?.join("lower");
    fs::create_dir(&dir)?;
    mount(Some("/"), &dir, NONE, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("a recursive bind mount of /")?;
    tmpfs(&dir.join("home"))?;
    ensure!(fs::read_dir(dir.join("home"))?.next().is_none(), "/home is not covered");
    ensure!(
        fs::metadata(dir.join("etc/passwd"))?.uid() == 65534,
        "an unmapped owner is shown as another id"
    );
    Ok(())
}

/// launcher: one call makes what init needs.
pub(crate) fn clone3_makes_every_namespace_at_once() -> Result<()> {
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let (_pid, pidfd) = sys::clone3_exiting_child(flags as u64, 7).context("clone3")?;
    let status = nix::sys::wait::waitid(
        nix::sys::wait::Id::PIDFd(pidfd.as_fd()),
        nix::sys::wait::WaitPidFlag::WEXITED,
    )?;
    ensure!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 7)), "{status:?}");
    Ok(())
}

/// launcher: the storage stage gives its children to the monitor.
pub(crate) fn clone3_children_can_be_siblings() -> Result<()> {
    // This process is process 1 of its namespace's child; its own child makes
    // another one with CLONE_PARENT, which must then be ours.
    let (mine, pidfd) = sys::clone3_with_sibling(9).context("clone3 with CLONE_PARENT")?;
    drop(pidfd);
    let mut codes = Vec::new();
    for _ in 0..2 {
        match nix::sys::wait::wait()? {
            nix::sys::wait::WaitStatus::Exited(pid, code) => {
                codes.push((pid.as_raw() == mine, code))
            }
            other => bail!("{other:?}"),
        }
    }
    codes.sort_unstable();
    ensure!(codes == [(false, 9), (true, 0)], "{codes:?}");
    Ok(())
}

/// launcher: processes are named by descriptors, which are not reused.
pub(crate) fn pidfds_carry_signals_and_ends() -> Result<()> {
    let mut child =
        std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn()?;
    let pidfd = sys::pidfd_open(child.id().cast_signed())?;
    let mut poll = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    ensure!(
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO)? == 0,
        "readable before the end"
    );
    sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)?;
    nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE)?;
    let status = child.wait()?;
    ensure!(
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL),
        "{status}"
    );
    Ok(())
}

/// launcher and netstack: what is set in a network namespace of our own.
pub(crate) fn network_settings_are_writable() -> Result<()> {
    for (path, value) in [
        ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
        ("/proc/sys/net/ipv4/ping_group_range", "0 0"),
        ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ] {
        fs::write(path, value).with_context(|| format!("writing {value} to {path}"))?;
    }
    Ok(())
}

/// launcher: /proc and /sys of the container's own.
pub(crate) fn proc_and_sysfs_mount_fresh() -> Result<()> {
    let dir = scratch()?;
    for kind in ["proc", "sysfs"] {
        let at = dir.join(kind);
        fs::create_dir(&at)?;
        mount(
            Some(kind),
            &at,
            Some(kind),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            NONE,
        )
        .with_context(|| {
            format!("mount -t {kind}: the one of this machine may be partly covered")
        })?;
    }
    let mode = fs::metadata(dir.join("proc/self/environ"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "an environment is readable by others: mode {mode:o}");
    Ok(())
}
