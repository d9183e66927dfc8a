//! Where candidates run: the lab of the tests ([`tests::lab`]), with the programs
//! that were found.
//!
//! As root that is a PID, mount and network namespace of its own, `/tmp` and the
//! users' homes being empty file systems in memory, and everything measured runs as
//! an ordinary user there. When this program ends, in whatever way, the kernel ends
//! all of it. As an ordinary user it is a directory that is removed at the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::command::{Cmd, User};
use tests::lab::{Ids, Lab};

use crate::peers::{Found, Peer};
use crate::record::Role;

/// Open files that 10,000 flows need on either side of a backend.
const OPEN_FILES: u64 = 65_536;

/// What every cell of a run shares.
pub(crate) struct Scene {
    /// The namespaces, the users, the network outside.
    pub(crate) lab: Lab,
    /// Programs that take part, at paths every user can read.
    pub(crate) peers: Vec<Peer>,
}

impl Scene {
    /// Furnishes the lab. As root, [`tests::lab::enter`] must have been called.
    ///
    /// # Errors
    /// Says which part cannot be made.
    pub(crate) fn set_up(programs: &Path, found: &Found) -> Result<Self> {
        let mut peers = found.peers.clone();
        // Read before /tmp and the homes are covered: they may lie there.
        let mut copies = Vec::new();
        for peer in peers.iter_mut().filter(|peer| peer.by_path) {
            let bytes = fs::read(&peer.path).with_context(|| peer.path.display().to_string())?;
            copies.push((peer, bytes));
        }
        let lab = Lab::set_up(Some(programs))?;
        for (peer, bytes) in copies {
            // A directory of its own: the file keeps its name, which programs look at.
            let dir = lab.bin.join("by-path").join(&peer.name);
            fs::create_dir_all(&dir)?;
            peer.path = dir.join(peer.kind.program);
            fs::write(&peer.path, bytes)?;
            fs::set_permissions(&peer.path, fs::Permissions::from_mode(0o755))?;
        }
        for peer in peers.iter_mut().filter(|peer| peer.kind.role == Role::Ours && !peer.by_path) {
            peer.path = lab.bin.join(peer.kind.program);
        }
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES.max(hard)).is_err() {
            // Root without CAP_SYS_RESOURCE, or no root: what there is must do.
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES), hard)
                .context("cannot raise the limit of open files")?;
        }
        Ok(Self { lab, peers })
    }

    /// Programs of a kind, by its name.
    pub(crate) fn peers<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Peer> {
        self.peers.iter().filter(move |peer| peer.kind.name == kind)
    }

    /// The ordinary user everything measured runs as; with subordinate ids where
    /// there are any.
    pub(crate) fn user(&self) -> &User {
        self.lab.user(Ids::Subordinate).unwrap_or_else(|| self.lab.any_user())
    }

    /// A program as that user.
    pub(crate) fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        Cmd::new(program).user(self.user())
    }

    /// A new directory of that user.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn dir(&self) -> Result<PathBuf> {
        self.lab.test_dir(self.user())
    }
}
