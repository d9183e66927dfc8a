//! A file that a command writes: whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Where the output goes.
#[derive(Debug)]
pub(super) struct Output {
    /// What is written to.
    pub(super) file: File,
    /// Of a new file: its name until it is whole, and then.
    place: Option<(PathBuf, PathBuf)>,
}

impl Output {
    /// Opens `path`, or standard output: bytes, which no terminal is to get.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                anyhow::bail!("an archive is not for a terminal: use -o FILE, or a pipe");
            }
            let file = stdout.as_fd().try_clone_to_owned().context("cannot use standard output")?;
            return Ok(Self { file: file.into(), place: None });
        };
        // A pipe, or a device, stays what it is.
        if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(Self { file, place: None });
        }
        let name = path.file_name().with_context(|| format!("'{}' is no file", path.display()))?;
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(part);
        let file = OpenOptions::new().write(true).create_new(true).open(&part);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, place: Some((part, path.to_owned())) })
    }

    /// All is written.
    pub(super) fn keep(mut self) -> anyhow::Result<()> {
        let Some((part, path)) = self.place.take() else { return Ok(()) };
        let kept = fs::rename(&part, &path);
        if kept.is_err() {
            drop(fs::remove_file(&part));
        }
        kept.with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.place {
            // Why it is not whole has been told.
            drop(fs::remove_file(part));
        }
    }
}
