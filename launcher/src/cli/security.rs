//! What of a container's isolation can be asked to be otherwise.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::{parse, policy as policies};
use crate::policy::{self, seccomp::profile};
use crate::spec::{Seccomp, Security, Unmask};

/// No profile has more than this many bytes: containers-common's has 25 KiB.
pub(super) const LONGEST: u64 = 1 << 20;

#[derive(Debug, Default, clap::Args)]
pub(super) struct SecurityArgs {
    /// Give the container's root a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_add: Vec<String>,

    /// Take a capability away from the container's root, or ALL
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_drop: Vec<String>,

    /// seccomp=FILE|unconfined, landlock=off, nested-userns=off, mask=PATH:…, unmask=ALL|PATH:…,
    /// no-new-privileges (always on)
    #[arg(long = "security-opt", value_name = "OPTION")]
    options: Vec<String>,

    /// What it may do, from a file (see 'coracle policy explain' and doc/SEMANTICS.md)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// All capabilities, no system call filter, nothing hidden; no devices of the host
    #[arg(long)]
    privileged: bool,
}

impl SecurityArgs {
    /// What is asked for; relative paths are taken from `cwd`.
    pub(super) fn into_security(self, cwd: &Path) -> anyhow::Result<Security> {
        let mut security = Security::default();
        let mut add = self.cap_add;
        if self.privileged {
            add.push("ALL".to_owned());
            security.seccomp = Seccomp::Unconfined;
            security.unmask = Unmask::All;
        }
        if let Some(file) = &self.policy {
            security = policies::apply(security, &cwd.join(file), add, self.cap_drop)?;
        } else {
            security.capabilities =
                policy::merge_capabilities(&add, &self.cap_drop).map_err(anyhow::Error::msg)?;
        }
        for option in &self.options {
            security_option(&mut security, option, cwd)
                .with_context(|| format!("--security-opt {option}"))?;
        }
        ensure!(
            security.deny.is_empty() || security.seccomp == Seccomp::Default,
            "the policy's [syscalls] are on top of the default filter: they cannot be used with \
             another one, or none"
        );
        Ok(security)
    }
}

fn security_option(security: &mut Security, option: &str, cwd: &Path) -> anyhow::Result<()> {
    // Docker once had a colon between the two.
    let (key, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    };
    match (key, value) {
        ("no-new-privileges", None | Some("true")) => {}
        ("no-new-privileges", Some(_)) => bail!("it is always on"),
        ("seccomp", Some("unconfined")) => security.seccomp = Seccomp::Unconfined,
        ("seccomp", Some(file)) if !file.is_empty() => {
            let path = cwd.join(file);
            let text = read_text(&path, LONGEST)?;
            profile::parse(&text)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("the profile {}", path.display()))?;
            security.seccomp = Seccomp::Profile { path, text };
        }
        ("landlock", Some("off" | "unconfined")) => security.landlock = false,
        ("nested-userns", Some("off")) => security.nested = false,
        ("mask", Some(list)) => security.mask.extend(paths(list)?),
        ("unmask", Some(all)) if all.eq_ignore_ascii_case("all") => security.unmask = Unmask::All,
        ("unmask", Some(list)) => {
            let more = paths(list)?;
            if let Unmask::Paths(all) = &mut security.unmask {
                all.extend(more);
            }
        }
        // There are no labels or AppArmor profiles that could be left out.
        ("label", Some("disable")) | ("apparmor", Some("unconfined")) => {}
        ("label" | "apparmor", _) => bail!("coracle sets no labels and no AppArmor profiles"),
        ("seccomp", _) => bail!("use seccomp=FILE or seccomp=unconfined"),
        _ => bail!("there is no such option: see 'coracle run --help'"),
    }
    Ok(())
}

fn paths(list: &str) -> anyhow::Result<Vec<PathBuf>> {
    let read = |path| parse::inside(path).map_err(|why| anyhow::anyhow!("the path '{path}' {why}"));
    list.split(':').map(read).collect()
}

/// All of a regular file of at most `longest` bytes. A FIFO or device in its place is
/// refused, not waited for.
pub(super) fn read_text(path: &Path, longest: u64) -> anyhow::Result<String> {
    let what = || format!("cannot read {}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .with_context(what)?;
    ensure!(file.metadata().with_context(what)?.is_file(), "{} is no regular file", path.display());
    let mut bytes = Vec::new();
    file.take(longest + 1).read_to_end(&mut bytes).with_context(what)?;
    ensure!(
        bytes.len() as u64 <= longest,
        "{} is longer than {longest} bytes: it cannot be meant",
        path.display()
    );
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: SecurityArgs,
    }

    fn read(args: &[&str], cwd: &Path) -> Result<Security, String> {
        let only = Only::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        only.args.into_security(cwd).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn options_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
        std::fs::write(dir.path().join("p.json"), text).unwrap();
        let read = |args: &[&str]| read(args, dir.path()).unwrap();
        assert_eq!(read(&[]), Security::default());
        assert_eq!(read(&["--security-opt", "no-new-privileges"]), Security::default());
        assert_eq!(read(&["--security-opt", "label=disable"]), Security::default());
        assert_eq!(read(&["--cap-drop", "all"]).capabilities, 0);
        assert_eq!(read(&["--cap-drop=all", "--cap-add=chown,kill"]).capabilities, 0x21);
        let profile = read(&["--security-opt", "seccomp=p.json"]).seccomp;
        let path = dir.path().join("p.json");
        assert_eq!(profile, Seccomp::Profile { path, text: text.to_owned() });
        let paths = read(&["--security-opt", "mask=/a:/b", "--security-opt=unmask=/proc/acpi"]);
        assert_eq!(paths.mask, [PathBuf::from("/a"), "/b".into()]);
        assert_eq!(paths.unmask, Unmask::Paths(vec!["/proc/acpi".into()]));
        assert!(!read(&["--security-opt", "landlock=off"]).landlock);
        assert!(!read(&["--security-opt", "nested-userns=off"]).nested);
        let privileged = read(&["--privileged", "--cap-drop", "net_raw"]);
        assert_eq!(privileged.seccomp, Seccomp::Unconfined);
        assert_eq!(privileged.unmask, Unmask::All);
        assert_eq!(privileged.capabilities, policy::all_capabilities() & !(1 << 13));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bad.json"), "{\n\"defaultAction\": 7}").unwrap();
        std::fs::write(dir.path().join("latin.json"), b"\xff").unwrap();
        std::fs::write(dir.path().join("long.json"), vec![b' '; (LONGEST + 1) as usize]).unwrap();
        for (option, word) in [
            ("seccomp=", "seccomp=FILE"),
            ("seccomp=nonesuch.json", "nonesuch.json"),
            ("seccomp=.", "no regular file"),
            ("seccomp=/dev/null", "no regular file"),
            ("seccomp=bad.json", "line 2"),
            ("seccomp=latin.json", "UTF-8"),
            ("seccomp=long.json", "longer"),
            ("no-new-privileges=false", "always on"),
            ("label=type:x", "labels"),
            ("apparmor=x", "AppArmor"),
            ("mask=relative", "absolute"),
            ("mask=", "absolute"),
            ("unmask=/proc/..", "'..'"),
            ("nonsense=1", "no such option"),
            ("", "no such option"),
        ] {
            let why = read(&["--security-opt", option], dir.path()).unwrap_err();
            assert!(why.contains(word) && why.starts_with("--security-opt "), "{option}: {why}");
        }
        assert!(read(&["--cap-add", "x"], dir.path()).unwrap_err().contains("'x'"));
    }
}
