//! The files of a result. They belong to whoever owns the directory they are written
//! to: root makes them, but for an ordinary user, by sudo.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::record::Record;
use crate::{report, table};

/// Writes a result, and its tables beside it: both whole or not at all.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn write(json: &Path, record: &Record) -> Result<()> {
    let files = [
        (json.to_owned(), record.to_json()?),
        (json.with_extension("txt"), table::whole(record)),
        (json.with_extension("html"), report::html(record)),
    ];
    for (path, text) in files {
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        like_its_directory(&new)?;
        fs::rename(&new, &path)?;
    }
    Ok(())
}

/// Writes a picture of each suite into a directory.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn write_pictures(dir: &Path, record: &Record) -> Result<()> {
    for (name, svg) in report::pictures(record) {
        let path = dir.join(name);
        fs::write(&path, svg)?;
        like_its_directory(&path)?;
    }
    Ok(())
}

/// Makes a directory and what is missing above it.
///
/// # Errors
/// When one cannot be made, or something else has its name.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_dir(above)?;
    }
    fs::create_dir(path)?;
    like_its_directory(path)
}

/// Gives a new file or directory the owner of the directory it lies in.
fn like_its_directory(path: &Path) -> Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = fs::metadata(above.unwrap_or(Path::new(".")))?;
    let own = fs::symlink_metadata(path)?;
    if (own.uid(), own.gid()) != (above.uid(), above.gid()) && nix::unistd::geteuid().is_root() {
        lchown(path, Some(above.uid()), Some(above.gid()))?;
    }
    Ok(())
}

/// The directory results are written to, held open: the lab may cover its path.
pub(crate) struct Kept {
    dir: File,
    path: PathBuf,
    /// The result that was there, when the new one is to be added to it.
    before: Option<Record>,
}

impl Kept {
    /// Makes the directory; with `merge`, reads the result that is there.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(crate) fn open(path: &Path, merge: bool) -> Result<Self> {
        make_dir(path).with_context(|| format!("cannot make the directory {}", path.display()))?;
        let dir = File::open(path).with_context(|| path.display().to_string())?;
        let file = path.join("result.json");
        let before = if merge && file.exists() { Some(Record::read(&file)?) } else { None };
        Ok(Self { dir, path: path.to_owned(), before })
    }

    /// Where the result is.
    pub(crate) fn file(&self) -> PathBuf {
        self.path.join("result.json")
    }

    /// Writes the result, in place of the one before.
    ///
    /// # Errors
    /// When it cannot be written, or not be merged.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        write(&self.open_dir().join("result.json"), &self.merged(record)?)
            .with_context(|| format!("cannot write {}", self.file().display()))
    }

    /// Writes the result's pictures.
    ///
    /// # Errors
    /// When one cannot be written.
    pub(crate) fn write_pictures(&self, record: &Record) -> Result<()> {
        write_pictures(&self.open_dir(), &self.merged(record)?)
            .with_context(|| format!("cannot write the pictures to {}", self.path.display()))
    }

    fn merged(&self, record: &Record) -> Result<Record> {
        match &self.before {
            Some(before) => before.clone().merge(record.clone()),
            None => Ok(record.clone()),
        }
    }

    fn open_dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }
}
