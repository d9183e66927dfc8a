//! Things the tests bring with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tests::harness::{World, skip};
use tests::lab;

/// A root filesystem of one statically linked program.
pub(crate) fn busybox_rootfs(world: &World<'_>) -> Result<PathBuf> {
    let busybox = lab::find("busybox").ok_or_else(|| skip("busybox is not installed"))?;
    let root = world.dir().join("rootfs");
    world.cmd("mkdir").arg(&root).run()?.ok()?;
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "var"] {
        world.cmd("mkdir").arg(root.join(dir)).run()?.ok()?;
    }
    world.cmd("cp").arg(&busybox).arg(root.join("bin/busybox")).run()?.ok()?;
    for applet in ["sh", "cat", "echo", "id", "ls", "true", "sleep", "touch", "rm", "mkdir"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nu:x:7:8:u:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\ng:x:8:\n")?;
    let version = world.cmd("sh").args(["-c", "true"]).run()?;
    version.ok().context("the user cannot run programs")?;
    Ok(root)
}

/// A small package with a program, a set-user-id one, a configuration file, a
/// symlink and a script that runs at its installation.
pub(crate) fn deb(world: &World<'_>) -> Result<PathBuf> {
    deb_with(world, &[])
}

/// The same with more files, of these owners (path, uid, gid): takes root.
pub(crate) fn deb_with(world: &World<'_>, owned: &[(&str, u32, u32)]) -> Result<PathBuf> {
    if lab::find("dpkg-deb").is_none() || lab::find("apt-get").is_none() {
        return Err(skip("dpkg and apt are not installed"));
    }
    let tree = world.dir().join("package");
    let write = |path: &str, mode: u32, text: &str| -> Result<()> {
        let path = tree.join(path);
        let dir = path.parent().context("every file has a directory")?;
        fs::create_dir_all(dir)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    write(
        "DEBIAN/control",
        0o644,
        "Package: coracle-probe\nVersion: 1.0\nArchitecture: all\n\
         Maintainer: Nobody <nobody@example.org>\nDescription: made by a test\n",
    )?;
    write("DEBIAN/conffiles", 0o644, "/etc/coracle-probe.conf\n")?;
    write(
        "DEBIAN/postinst",
        0o755,
        "#!/bin/sh\nset -e\nmkdir -p /var/lib/coracle-probe\n\
         echo \"$1\" >/var/lib/coracle-probe/state\n",
    )?;
    write("usr/bin/coracle-probe", 0o755, "#!/bin/sh\necho probe works\n")?;
    write("usr/bin/coracle-probe-suid", 0o4755, "#!/bin/sh\n")?;
    write("etc/coracle-probe.conf", 0o640, "x=1\n")?;
    symlink("coracle-probe", tree.join("usr/bin/coracle-probe-link"))?;
    for (path, uid, gid) in owned {
        write(path, 0o644, "x\n")?;
        std::os::unix::fs::chown(tree.join(path), Some(*uid), Some(*gid))?;
    }
    let deb = world.dir().join("coracle-probe.deb");
    let owners = if owned.is_empty() { &["--root-owner-group"][..] } else { &[] };
    tests::command::Cmd::new("dpkg-deb")
        .args(owners)
        .arg("--build")
        .arg(&tree)
        .arg(&deb)
        .run()?
        .ok()?;
    fs::set_permissions(&deb, fs::Permissions::from_mode(0o644))?;
    Ok(deb)
}

/// The web server's large file, made once: its path, and what sha256sum says.
pub(crate) fn blob(world: &World<'_>, size: usize) -> Result<(PathBuf, String)> {
    let path = world.lab.outside()?.www.join(format!("blob-{size}"));
    if !path.exists() {
        lab::write_blob(&path, size)?;
    }
    let sum = sha256(&path)?;
    Ok((path, sum))
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let output = tests::command::Cmd::new("sha256sum").arg(path).run()?.ok()?;
    let sum = output.stdout.split_whitespace().next().context("sha256sum said nothing")?;
    Ok(sum.to_owned())
}
