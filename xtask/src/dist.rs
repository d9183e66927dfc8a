//! `cargo xtask dist`: a Debian package and a tar archive of the release programs.
//!
//! The two services are linked statically and need nothing but a kernel. `coracle` has
//! libseccomp in it and the C library beside it: it asks the user database, which a
//! static glibc cannot do without the modules of the machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::prepare::{self, Purpose};
use crate::{cargo, target_dir, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Who answers for the package: those named in Cargo.toml.
const AUTHORS: &str = env!("CARGO_PKG_AUTHORS");
const STATIC: [&str; 2] = ["netstack", "overlayfs-fuse"];
const LAUNCHER: &str = "coracle";
/// The peers' names, each for one of ours; in a directory of their own, so that nobody
/// gets them who has not asked.
const DROP_IN: [(&str, &str); 2] =
    [("slirp4netns", "netstack"), ("fuse-overlayfs", "overlayfs-fuse")];

/// What comes along to be read; the README names those below `doc`.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "doc/SEMANTICS.md",
    "doc/SECURITY.md",
];

/// Builds everything below `target/dist`.
pub(crate) fn run() -> Result<()> {
    prepare::machine(&[Purpose::Build, Purpose::Dist])?;
    let target = target_dir()?;
    let arch = output(Command::new("dpkg").arg("--print-architecture"))?;
    let triple = host()?;
    let dist = target.join("dist");
    let name = format!("coracle-{VERSION}-{arch}");
    let (package, usr) = (dist.join("package"), dist.join("package/usr"));
    if package.exists() {
        fs::remove_dir_all(&package).with_context(|| package.display().to_string())?;
    }

    ensure!(!AUTHORS.is_empty(), "Cargo.toml names no authors: a package has a maintainer");
    let built = build(&target, &triple)?;
    for program in &built {
        let file = program.file_name().context("a program has a name")?;
        let to = usr.join("bin").join(file);
        copy(program, &to, 0o755)?;
        run_to_end(Command::new("strip").arg(&to))?;
    }
    let drop_in = usr.join("lib/coracle/drop-in");
    fs::create_dir_all(&drop_in)?;
    for (theirs, ours) in DROP_IN {
        symlink(format!("../../../bin/{ours}"), drop_in.join(theirs))?;
    }
    manual(&target, &usr)?;
    completions(&dist, &usr)?;
    let doc = usr.join("share/doc/coracle");
    for file in DOCUMENTS {
        copy(&workspace().join(file), &doc.join(file), 0o644)?;
    }
    write(&doc.join("copyright"), &copyright()?)?;

    let archive = dist.join(format!("{name}.tar.gz"));
    run_to_end(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-C"])
            .arg(&package)
            .arg(format!("--transform=s,^usr,{name},"))
            .arg("-czf")
            .arg(&archive)
            .arg("usr"),
    )?;
    let glibc = glibc(&usr.join("bin").join(LAUNCHER))?;
    write(
        &package.join("DEBIAN/control"),
        &format!(
            "Package: coracle\nVersion: {VERSION}\nArchitecture: {arch}\nSection: admin\n\
             Priority: optional\nMaintainer: {AUTHORS}\n\
             Depends: libc6 (>= {glibc}), libgcc-s1\nRecommends: uidmap, fuse3\n\
             Description: rootless containers without any privilege\n \
             The command coracle, its user-mode network (netstack, stands in for\n \
             slirp4netns) and its union filesystem over FUSE (overlayfs-fuse, for\n \
             fuse-overlayfs).\n"
        ),
    )?;
    let deb = dist.join(format!("{name}.deb"));
    run_to_end(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&package)
            .arg(&deb)
            .stdout(Stdio::null()),
    )?;
    check(&dist, &deb)?;
    say!("{}\n{}", deb.display(), archive.display());
    say!("netstack, overlayfs-fuse: static; coracle: needs glibc {glibc} or newer");
    Ok(())
}

/// Debian's policy manual, 12.5: whose the programs are, and where the terms can be read.
fn copyright() -> Result<String> {
    let path = workspace().join("LICENSE-MIT");
    let terms = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let whose = terms.lines().find(|line| line.starts_with("Copyright "));
    let whose = whose.with_context(|| format!("{} says not whose it is", path.display()))?;
    Ok(format!(
        "{whose}\n\
         Licensed under MIT or Apache-2.0, at your option: see LICENSE-MIT and LICENSE-APACHE\n\
         beside this file; the latter is /usr/share/common-licenses/Apache-2.0 as well.\n\n\
         libseccomp is part of the program coracle, and the GNU C library of netstack and\n\
         overlayfs-fuse, under the GNU Lesser General Public License, version 2.1 (the C\n\
         library: or later): see /usr/share/common-licenses/LGPL-2.1.\n"
    ))
}

/// The two services, where no other build has its own: other flags, other code.
fn services(target: &Path, triple: &str) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    let mut services = cargo();
    services.args(["build", "--release", "--target", triple, "--bins"]);
    for package in STATIC {
        services.args(["--package", package]);
        programs.push(target.join(triple).join("release").join(package));
    }
    run_to_end(services.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(programs)
}

/// A directory with the services as they are delivered, and `coracle` of the release build:
/// what is to be measured.
pub(crate) fn to_measure() -> Result<PathBuf> {
    let target = target_dir()?;
    let dir = target.join("measured");
    let mut programs = services(&target, &host()?)?;
    programs.push(target.join("release").join(LAUNCHER));
    for program in &programs {
        let file = program.file_name().context("a program has a name")?;
        copy(program, &dir.join(file), 0o755)?;
    }
    Ok(dir)
}

/// The three programs.
fn build(target: &Path, triple: &str) -> Result<Vec<PathBuf>> {
    let mut programs = services(target, triple)?;
    let dir = target.join("dist/launcher");
    let libraries = output(Command::new("gcc").arg("-print-file-name=libseccomp.a"))?;
    let libraries = Path::new(&libraries);
    ensure!(libraries.is_absolute(), "libseccomp.a is missing (package libseccomp-dev)");
    run_to_end(
        cargo()
            .args(["build", "--release", "--target", triple, "--bins"])
            .args(["--package", "launcher", "--target-dir"])
            .arg(&dir)
            .env("LIBSECCOMP_LINK_TYPE", "static")
            .env("LIBSECCOMP_LIB_PATH", libraries.parent().unwrap_or(Path::new("/"))),
    )?;
    programs.push(dir.join(triple).join("release").join(LAUNCHER));
    Ok(programs)
}

fn manual(target: &Path, usr: &Path) -> Result<()> {
    crate::man()?;
    for page in fs::read_dir(target.join("man"))? {
        let page = page?.path();
        let name = page.file_name().context("a page has a name")?.to_string_lossy().into_owned();
        let to = usr.join("share/man/man1").join(&name);
        copy(&page, &to, 0o644)?;
        run_to_end(Command::new("gzip").args(["-9n", "-f"]).arg(&to))?;
    }
    Ok(())
}

fn completions(dist: &Path, usr: &Path) -> Result<()> {
    let dir = dist.join("completions");
    fs::create_dir_all(&dir)?;
    for package in ["launcher", "netstack"] {
        run_to_end(
            cargo()
                .args(["run", "--quiet", "--package", package, "--example", "completions", "--"])
                .arg(&dir),
        )?;
    }
    for program in [LAUNCHER, "netstack"] {
        for (file, to) in [
            (format!("{program}.bash"), format!("bash-completion/completions/{program}")),
            (format!("_{program}"), format!("zsh/vendor-completions/_{program}")),
            (format!("{program}.fish"), format!("fish/vendor_completions.d/{program}.fish")),
        ] {
            copy(&dir.join(file), &usr.join("share").join(to), 0o644)?;
        }
    }
    Ok(())
}

/// Unpacks the package elsewhere and starts every program by every name.
fn check(dist: &Path, deb: &Path) -> Result<()> {
    let root = dist.join("check");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    run_to_end(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
    let bin = root.join("usr/bin");
    for program in STATIC.into_iter().chain([LAUNCHER]) {
        let said = output(Command::new(bin.join(program)).arg("--version"))?;
        ensure!(said.contains(VERSION), "{program} --version said {said:?}");
    }
    for (theirs, _) in DROP_IN {
        let path = root.join("usr/lib/coracle/drop-in").join(theirs);
        output(Command::new(path).arg("--version"))?;
    }
    for program in STATIC {
        let bytes = fs::read(bin.join(program))?;
        ensure!(newest_glibc(&bytes).is_none(), "{program} is not linked statically");
    }
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// The newest version of glibc that a program asks for.
fn glibc(program: &Path) -> Result<String> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    let minor = newest_glibc(&bytes);
    let minor = minor.with_context(|| format!("{} asks for no glibc", program.display()))?;
    Ok(format!("2.{minor}"))
}

/// `GLIBC_2.N`, as the table of needed versions names it: a whole string of its own.
fn newest_glibc(bytes: &[u8]) -> Option<u32> {
    let names = bytes.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    let minor = |name: &str| name.strip_prefix("GLIBC_2.")?.split('.').next()?.parse().ok();
    names.filter_map(minor).max()
}

fn host() -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let line = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let dir = to.parent().context("every file is in a directory")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn write(to: &Path, text: &str) -> Result<()> {
    let dir = to.parent().context("every file is in a directory")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    fs::write(to, text).with_context(|| to.display().to_string())
}

fn run_to_end(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}\n{said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod unit {
    use super::newest_glibc;

    #[test]
    fn the_newest_glibc_is_found() {
        assert_eq!(newest_glibc(b"x\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0"), Some(34));
        assert_eq!(newest_glibc(b"needs GLIBC_2.34\0GLIBC_PRIVATE\0"), None);
    }
}
