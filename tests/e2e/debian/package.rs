//! The Debian package in a clean Debian: it installs, works for an ordinary user, can be
//! read about, and goes without a trace.
//!
//! Takes the package and the archive of [`super`], since neither is made by the tests:
//! `CORACLE_DEB=FILE CORACLE_DEBIAN_ROOT=FILE cargo xtask test dist/package`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::harness::{Test, World, skip};
use tests::lab;

pub(super) const TEST: Test =
    Test::new("dist/package", package).lab().subordinate_ids().seconds(300);

/// Until `package.sh` has the archive as its root. A chroot is no place to make user
/// namespaces in (unshare(2)), and newuidmap needs a file system without nosuid.
const SCRIPT: &str = r#"
mkdir root
mount -t tmpfs tmpfs root
tar --numeric-owner -xpf debian.tar -C root
cp package.sh coracle.deb busybox root/root/
mount -t proc proc root/proc
mount --rbind /sys root/sys
mount --rbind /dev root/dev
cd root
pivot_root . mnt
umount -l /mnt
cd /
exec sh /root/package.sh
"#;

fn package(world: &World<'_>) -> Result<()> {
    let given = |variable: &str, what: &str| {
        std::env::var_os(variable).ok_or_else(|| skip(format!("{variable} names no {what}")))
    };
    let package = given("CORACLE_DEB", "package (`cargo xtask dist` makes one)")?;
    let archive = given("CORACLE_DEBIAN_ROOT", "archive (tests/e2e/debian/prepare.sh makes one)")?;
    let busybox = lab::find("busybox").context("busybox is missing: install busybox-static")?;
    for (from, name) in [
        (package.as_ref(), "coracle.deb"),
        (archive.as_ref(), "debian.tar"),
        (busybox.as_path(), "busybox"),
    ] {
        let to = world.dir().join(name);
        fs::copy(from, &to).with_context(|| from.display().to_string())?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    world.write("package.sh", include_str!("package.sh"))?;
    let said = world
        .cmd("unshare")
        .args(["--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-euc", SCRIPT])
        .limit(Duration::from_secs(280))
        .run()?
        .ok()?
        .stdout;
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        &format!("coracle {version}"),
        &format!("netstack {version}"),
        &format!("overlayfs-fuse: version {version}"),
        "it runs",
        "coracle install ok installed",
        "fuse3 install ok installed",
        "uidmap install ok installed",
        "ok       programs: overlayfs-fuse and netstack are there",
        "owner 7:8",
        "inet 10.0.2.100",
        "/usr/share/man/man1/coracle.1.gz",
        "/usr/share/man/man1/coracle-run.1.gz",
        "/usr/share/man/man1/netstack.1.gz",
        "/usr/share/man/man1/overlayfs-fuse.1.gz",
        "coracle(1) General Commands Manual coracle(1)",
        "bash-completion/completions/coracle",
        "zsh/vendor-completions/_coracle",
        "fish/vendor_completions.d/coracle.fish",
        "copyright",
    ] {
        ensure!(said.lines().any(|said| said == line), "nowhere {line:?} in\n{said}");
    }
    let (_, left) = said.split_once("== removed\n").context("it was not removed")?;
    ensure!(left.is_empty(), "left behind by the package:\n{left}");
    Ok(())
}
