//! `--cidfile` of `run` and `create`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;

/// A file that was not there before, and goes again unless something comes of it.
pub(super) struct Fresh {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Fresh {
    pub(super) fn make(path: PathBuf) -> anyhow::Result<Self> {
        let made = File::options().write(true).create_new(true).open(&path);
        let file = made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => anyhow::anyhow!(
                "--cidfile: {} is there: it may be another container's; remove it, or use another \
                 name",
                path.display()
            ),
            _ => anyhow::anyhow!("--cidfile: cannot make {}: {error}", path.display()),
        })?;
        Ok(Self { path, file, kept: false })
    }

    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        let written = (&self.file).write_all(text.as_bytes());
        written.with_context(|| format!("--cidfile: cannot write {}", self.path.display()))
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept {
            // Why nothing came of it is told.
            drop(fs::remove_file(&self.path));
        }
    }
}
