//! The one place where a program that is measured is named: how it is found,
//! which version it is, and which Debian package has it. To add a peer, add a line
//! to [`KINDS`], and to the suite how it is started.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tests::command::Cmd;
use tests::lab;

use crate::record::{Missing, Program, Role};

/// A kind of program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its usual name; the suites know it by this.
    pub(crate) name: &'static str,
    /// File name of its program.
    pub(crate) program: &'static str,
    /// Debian's package; of ours, the crate.
    pub(crate) package: &'static str,
    /// Ours or a peer.
    pub(crate) role: Role,
    /// Suites it takes part in.
    pub(crate) suites: &'static [&'static str],
}

const fn peer(
    name: &'static str,
    program: &'static str,
    package: &'static str,
    suites: &'static [&'static str],
) -> Kind {
    Kind { name, program, package, role: Role::Peer, suites }
}

const fn ours(name: &'static str, suites: &'static [&'static str]) -> Kind {
    Kind { name, program: name, package: name, role: Role::Ours, suites }
}

/// Every program known, in the order of the tables.
pub(crate) const KINDS: &[Kind] = &[
    ours("netstack", &["net", "podman"]),
    ours("overlayfs-fuse", &["fs", "podman"]),
    ours("coracle", &["run"]),
    peer("slirp4netns", "slirp4netns", "slirp4netns", &["net", "podman"]),
    peer("pasta", "pasta", "passt", &["net"]),
    peer("fuse-overlayfs", "fuse-overlayfs", "fuse-overlayfs", &["fs", "podman"]),
    peer("unionfs-fuse", "unionfs", "unionfs-fuse", &["fs"]),
    peer("bwrap", "bwrap", "bubblewrap", &["run"]),
    peer("crun", "crun", "crun", &["run"]),
    peer("runc", "runc", "runc", &["run"]),
    peer("podman", "podman", "podman", &["run", "podman"]),
];

/// A program that takes part.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Name in the tables: the kind's, or the one given with a path.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: &'static Kind,
    /// Where it is. The scene changes this to a copy that every user can read.
    pub(crate) path: PathBuf,
    /// First line of `--version`.
    pub(crate) version: String,
    /// Given as NAME=PATH.
    pub(crate) by_path: bool,
}

impl Peer {
    /// For the record.
    pub(crate) fn program(&self) -> Program {
        // Of what was built here, only where in the tree: the rest is nobody's business.
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let path = tree.and_then(|tree| self.path.strip_prefix(tree).ok()).unwrap_or(&self.path);
        Program {
            name: self.name.clone(),
            path: path.display().to_string(),
            version: self.version.clone(),
        }
    }
}

/// What takes part, and what cannot.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order of [`KINDS`], those by path after them.
    pub(crate) peers: Vec<Peer>,
    /// Known, wanted, and not here.
    pub(crate) missing: Vec<Missing>,
}

/// Finds the programs of some suites: ours in `programs`, and of the others those
/// `wanted` asks for: names, `NAME=PATH`, `all` or `none`; nothing asked for is `all`.
///
/// # Errors
/// When ours are not built, a name is not known, or a path has no program.
pub(crate) fn find(programs: &Path, suites: &[&str], wanted: &[String]) -> Result<Found> {
    let all = wanted.is_empty() || wanted.iter().any(|word| word == "all");
    let mut found = Found::default();
    for word in wanted {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        let known = KINDS.iter().any(|kind| kind.name == name);
        ensure!(
            word.contains('=') || word == "all" || word == "none" || known,
            "no peer is called {word}: known are {}; another build is NAME=PATH",
            names()
        );
    }
    for kind in KINDS.iter().filter(|kind| kind.suites.iter().any(|s| suites.contains(s))) {
        if kind.role == Role::Ours {
            let path = programs.join(kind.program);
            ensure!(path.exists(), "no {}: `cargo xtask bench` builds it", path.display());
            found.peers.push(installed(kind.name, kind, &path, false)?);
        } else if all || wanted.iter().any(|word| word == kind.name) {
            match lab::find(kind.program) {
                Some(path) => found.peers.push(installed(kind.name, kind, &path, false)?),
                None => found.missing.push(Missing {
                    name: kind.name.to_owned(),
                    install: format!("apt-get install {}", kind.package),
                }),
            }
        }
    }
    for (name, path) in wanted.iter().filter_map(|word| word.split_once('=')) {
        let path = Path::new(path);
        let kind = kind_of(path)?;
        ensure!(
            !name.is_empty() && found.peers.iter().all(|peer| peer.name != name),
            "a peer called {name:?} is there already: give {} another name",
            path.display()
        );
        if kind.suites.iter().any(|suite| suites.contains(suite)) {
            found.peers.push(installed(name, kind, path, true)?);
        }
    }
    Ok(found)
}

fn names() -> String {
    let names: Vec<_> =
        KINDS.iter().filter(|k| k.role == Role::Peer).map(|kind| kind.name).collect();
    names.join(", ")
}

/// What a program is, by its file name: `slirp4netns`, `slirp4netns-1.3.1`.
fn kind_of(path: &Path) -> Result<&'static Kind> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let matches = |kind: &&Kind| {
        file.strip_prefix(kind.program)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    // The longest name: none is another's prefix today.
    KINDS.iter().filter(matches).max_by_key(|kind| kind.program.len()).with_context(|| {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.program).collect();
        format!(
            "what is {}? Its file name must begin with one of {}",
            path.display(),
            known.join(", ")
        )
    })
}

fn installed(name: &str, kind: &'static Kind, path: &Path, by_path: bool) -> Result<Peer> {
    if !path.is_file() {
        bail!("{name}: no program {}", path.display());
    }
    let output = Cmd::new(path).arg("--version").run()?;
    let text = if output.stdout.trim().is_empty() { &output.stderr } else { &output.stdout };
    let version = text.lines().next().unwrap_or("unknown").trim().to_owned();
    Ok(Peer { name: name.to_owned(), kind, path: path.to_owned(), version, by_path })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn kinds_by_file_name() {
        let kind = |path: &str| kind_of(Path::new(path)).map(|kind| kind.name).ok();
        assert_eq!(kind("/opt/slirp4netns"), Some("slirp4netns"));
        assert_eq!(kind("slirp4netns-1.3.1"), Some("slirp4netns"));
        assert_eq!(kind("/x/unionfs"), Some("unionfs-fuse"));
        assert_eq!(kind("/x/runcible"), None);
        assert_eq!(kind("/"), None);
    }

    #[test]
    fn unknown_names_are_refused_before_anything_is_looked_for() {
        let error = find(Path::new("/nowhere"), &["net"], &["slirp".into()]).unwrap_err();
        assert!(format!("{error:#}").contains("no peer is called slirp"), "{error:#}");
    }

    #[test]
    fn every_kind_has_a_suite_and_a_name_of_its_own() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(!kind.suites.is_empty(), "{}", kind.name);
            assert!(KINDS[..at].iter().all(|other| other.name != kind.name), "{}", kind.name);
        }
    }
}
