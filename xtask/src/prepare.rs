//! What the machine must have, and getting it there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Uid;
use tests::lab;

/// What something is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To compile the programs.
    Build,
    /// To run containers.
    Run,
    /// To run the demo.
    Demo,
    /// To run the tests.
    Test,
    /// To run the benchmarks.
    Bench,
    /// To make the packages.
    Dist,
}

struct Need {
    /// A program on root's search path, or a file.
    sign: &'static str,
    /// Debian's package.
    package: &'static str,
    purposes: &'static [Purpose],
}

use Purpose::{Bench, Build, Demo, Dist, Run, Test};

const NEEDS: &[Need] = &[
    need("/usr/include/seccomp.h", "libseccomp-dev", &[Build]),
    need("gcc", "gcc", &[Build]),
    need("/usr/include/stdlib.h", "libc6-dev", &[Build]),
    need("newuidmap", "uidmap", &[Run]),
    need("fusermount3", "fuse3", &[Run]),
    need("unshare", "util-linux", &[Run]),
    need("ip", "iproute2", &[Demo, Test, Bench]),
    need("curl", "curl", &[Demo, Test]),
    need("dnsmasq", "dnsmasq-base", &[Demo, Test, Bench]),
    need("python3", "python3", &[Demo, Test]),
    need("busybox", "busybox-static", &[Test, Bench]),
    need("git", "git", &[Test, Bench]),
    need("tar", "tar", &[Test, Bench, Dist]),
    need("dpkg-deb", "dpkg", &[Test, Dist]),
    need("strip", "binutils", &[Dist]),
    need("gzip", "gzip", &[Dist]),
    need("ping", "iputils-ping", &[Test]),
    need("pgrep", "procps", &[Test]),
    need("getfattr", "attr", &[Test]),
    need("getfacl", "acl", &[Test]),
    need("strace", "strace", &[Test]),
    need("bwrap", "bubblewrap", &[Bench]),
    need("crun", "crun", &[Test, Bench]),
    need("runc", "runc", &[Bench]),
    need("podman", "podman", &[Test, Bench]),
    need("slirp4netns", "slirp4netns", &[Test, Bench]),
    need("pasta", "passt", &[Bench]),
    need("fuse-overlayfs", "fuse-overlayfs", &[Test, Bench]),
    need("buildah", "buildah", &[Test]),
    need("rootlesskit", "rootlesskit", &[Test]),
    need("skopeo", "skopeo", &[Test]),
    need("umoci", "umoci", &[Test]),
    need("docker-registry", "docker-registry", &[Test, Bench]),
    need("htpasswd", "apache2-utils", &[Test]),
    need("openssl", "openssl", &[Test]),
    need("tmux", "tmux", &[Test]),
    need("xz", "xz-utils", &[Test]),
    need("sqlite3", "sqlite3", &[Test]),
    need("zstd", "zstd", &[Test]),
    need("iptables", "iptables", &[Test]),
    need("/usr/lib/cni/bridge", "containernetworking-plugins", &[Test]),
    need("/usr/lib/cni/dnsname", "golang-github-containernetworking-plugin-dnsname", &[Test]),
    need("/usr/lib/podman/netavark", "netavark", &[Test]),
    need("/usr/lib/podman/aardvark-dns", "aardvark-dns", &[Test]),
    need("unionfs", "unionfs-fuse", &[Bench]),
    need("iperf3", "iperf3", &[Bench]),
];

const fn need(sign: &'static str, package: &'static str, purposes: &'static [Purpose]) -> Need {
    Need { sign, package, purposes }
}

impl Need {
    fn is_met(&self) -> bool {
        if self.sign.starts_with('/') {
            Path::new(self.sign).exists()
        } else {
            lab::find(self.sign).is_some()
        }
    }
}

/// Brings the machine to where the purposes can be served: as root by
/// installing packages and making devices, otherwise by saying exactly what
/// root must do.
///
/// # Errors
/// When something needed to build or run is missing and cannot be got here.
/// What only tests miss is not an error: they are skipped, by name.
pub(crate) fn machine(purposes: &[Purpose]) -> Result<()> {
    packages(purposes)?;
    for (path, major, minor) in [("/dev/fuse", 10, 229), ("/dev/net/tun", 10, 200)] {
        device(Path::new(path), major, minor)?;
    }
    if Uid::effective().is_root() {
        lab::test_user(lab::SUBORDINATE_USER, true)?;
        lab::test_user(lab::SINGLE_ID_USER, false)?;
    }
    user_namespaces()
}

fn packages(purposes: &[Purpose]) -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| need.purposes.iter().any(|purpose| purposes.contains(purpose)))
        .filter(|need| !need.is_met())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let list = packages.join(" ");
    let apt = lab::find("apt-get").is_some();
    if !Uid::effective().is_root() || !apt {
        let how = if apt {
            format!("sudo apt-get install --no-install-recommends {list}")
        } else {
            format!("install what provides Debian's packages {list}")
        };
        let essential = missing
            .iter()
            .any(|need| need.purposes.iter().any(|purpose| matches!(purpose, Build | Run | Dist)));
        ensure!(!essential, "missing on this machine: {list}\n  to get it: {how}");
        say!("MISSING: {list}; what needs it is skipped. To get it: {how}");
        return Ok(());
    }
    say!("installing {list}");
    let install = |words: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("cannot run apt-get")?;
        ensure!(status.success(), "apt-get {} failed: {status}", words.join(" "));
        Ok(())
    };
    install(&["-qq", "update"])?;
    let mut words = vec!["-qq", "-y", "--no-install-recommends", "install"];
    words.extend(&packages);
    install(&words)?;
    if let Some(need) = missing.iter().find(|need| !need.is_met()) {
        bail!("package {} was installed, but {} is still missing", need.package, need.sign);
    }
    Ok(())
}

/// A character device that every user may open, as distributions ship it.
fn device(path: &Path, major: u64, minor: u64) -> Result<()> {
    let (exists, open) =
        fs::metadata(path).map_or((false, false), |found| (true, found.mode() & 0o666 == 0o666));
    if open {
        return Ok(());
    }
    let shown = path.display();
    if !Uid::effective().is_root() {
        let how = if exists {
            format!("sudo chmod 0666 {shown}")
        } else {
            format!(
                "sudo sh -c 'mkdir -p {}; mknod -m 0666 {shown} c {major} {minor}'",
                parent(path)
            )
        };
        // Opening it may still be allowed, by group or access list.
        if fs::File::options().read(true).write(true).open(path).is_ok() {
            return Ok(());
        }
        bail!("{shown} cannot be opened by this user\n  to allow it: {how}");
    }
    if !exists {
        fs::create_dir_all(parent(path))?;
        mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
            .with_context(|| format!("cannot make {shown}"))?;
    }
    say!("making {shown} usable by every user (mode 0666)");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        .with_context(|| format!("cannot change the mode of {shown}"))
}

fn parent(path: &Path) -> &str {
    path.parent().and_then(Path::to_str).unwrap_or("/")
}

/// Whether an ordinary user may make user namespaces; if not, why.
fn user_namespaces() -> Result<()> {
    let mut probe = tests::command::Cmd::new("unshare").args(["--user", "--map-root-user", "true"]);
    if Uid::effective().is_root() {
        probe = probe.user(&lab::test_user(lab::SUBORDINATE_USER, true)?).dir("/");
    }
    let output = probe.run()?;
    if output.code == 0 {
        return Ok(());
    }
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let how = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "sudo sysctl user.max_user_namespaces=10000"
    } else {
        "ask whoever runs this machine; in a container, its seccomp profile may forbid it"
    };
    bail!(
        "ordinary users may not make user namespaces here: {}\n  to allow it: {how}",
        output.stderr.trim()
    )
}
