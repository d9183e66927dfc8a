//! `cargo xtask dist`: a Debian package and a tar archive of the release programs.
//!
//! All of them are linked statically and need no library, of whatever version.

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
const LAUNCHER: &str = "coracle";
/// The programs, by package.
const PROGRAMS: [(&str, &str); 3] =
    [("netstack", "netstack"), ("overlayfs-fuse", "overlayfs-fuse"), ("launcher", LAUNCHER)];
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
    write(
        &package.join("DEBIAN/control"),
        &format!(
            "Package: coracle\nVersion: {VERSION}\nArchitecture: {arch}\nSection: admin\n\
             Priority: optional\nMaintainer: {AUTHORS}\n\
             Depends: libc-bin\nRecommends: uidmap, fuse3\n\
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
         libseccomp is part of the program coracle, and the GNU C library of all three,\n\
         under the GNU Lesser General Public License, version 2.1 (the C\n\
         library: or later): see /usr/share/common-licenses/LGPL-2.1.\n"
    ))
}

/// The programs, where no other build has its own: other flags, other code.
fn build(target: &Path, triple: &str) -> Result<Vec<PathBuf>> {
    let libraries = output(Command::new("gcc").arg("-print-file-name=libseccomp.a"))?;
    let libraries = Path::new(&libraries);
    ensure!(libraries.is_absolute(), "libseccomp.a is missing (package libseccomp-dev)");
    let mut programs = Vec::new();
    let mut build = cargo();
    build.args(["build", "--release", "--target", triple, "--bins"]);
    for (package, program) in PROGRAMS {
        build.args(["--package", package]);
        programs.push(target.join(triple).join("release").join(program));
    }
    build
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", libraries.parent().unwrap_or(Path::new("/")));
    run_to_end(&mut build)?;
    Ok(programs)
}

/// A directory with the programs as they are delivered: what is to be measured.
pub(crate) fn to_measure() -> Result<PathBuf> {
    let target = target_dir()?;
    let dir = target.join("measured");
    for program in build(&target, &host()?)? {
        let file = program.file_name().context("a program has a name")?;
        copy(&program, &dir.join(file), 0o755)?;
    }
    Ok(dir)
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
    for (_, program) in PROGRAMS {
        let said = output(Command::new(bin.join(program)).arg("--version"))?;
        ensure!(said.contains(VERSION), "{program} --version said {said:?}");
    }
    for (theirs, _) in DROP_IN {
        let path = root.join("usr/lib/coracle/drop-in").join(theirs);
        output(Command::new(path).arg("--version"))?;
    }
    for (_, program) in PROGRAMS {
        let headers = output(Command::new("readelf").arg("-lW").arg(bin.join(program)))?;
        ensure!(!headers.contains("INTERP"), "{program} is not linked statically");
    }
    fs::remove_dir_all(&root)?;
    Ok(())
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
