//! What a container has changed: the upper layer, read against the lower.
//!
//! # Theory of operation
//!
//! Only the upper is walked. What is in it is changed when the lower has
//! something of that name, and added when it has not; a whiteout is a
//! deletion. An opaque directory hides the lower one, so what that has and it
//! has not is deleted too. Both encodings of whiteouts and opaque directories
//! are read (see doc/SEMANTICS.md).
//!
//! The lower is followed down together with the upper, one component at a
//! time, so that no symbolic link on either side leads away.
//!
//! A file with several names in the lower that was changed by one of them is changed by
//! all, while the upper has that one name alone: which the others are is found by who
//! packs layers ([`crate::image::pack::other_names`]), and added to the list.
//!
//! Mount points that were made for the container's own mounts are not listed:
//! an empty file or directory at such a place, and the directories above it
//! when nothing else is new in them.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsString};
use std::fmt;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::sys::xattr;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The lower has it, the container has changed it.
    Changed,
    /// The container has made it.
    Added,
    /// The lower has it, the container has removed it.
    Deleted,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Changed => "C",
            Kind::Added => "A",
            Kind::Deleted => "D",
        })
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// To which path, as seen in the container.
    pub path: PathBuf,
}

/// The lower layers, as the container sees them.
#[derive(Debug, Clone)]
pub struct Lower {
    /// Their directories on the host, topmost first.
    pub layers: Vec<PathBuf>,
    /// Directories, as the container names them, that it sees empty.
    pub hidden: BTreeSet<PathBuf>,
    /// Only what every user of the host may read is seen.
    pub public: bool,
}

/// What one layer says of a path.
enum Said {
    /// This is there.
    Found(Metadata),
    /// Nothing is there, whatever the layers below have.
    Hidden,
    /// Nothing: the layers below are asked.
    Nothing,
}

impl Lower {
    /// What the layers have at `path`, whose parent they show.
    fn entry(&self, path: &Path) -> io::Result<Option<Metadata>> {
        for layer in &self.layers {
            match said(layer, path)? {
                Said::Found(found) => {
                    let shown = !self.public
                        || found.is_dir()
                        || found.is_symlink()
                        || found.mode() & 0o004 != 0;
                    return Ok(Some(found).filter(|_| shown));
                }
                Said::Hidden => return Ok(None),
                Said::Nothing => {}
            }
        }
        Ok(None)
    }

    /// Whether they show what is in this directory of theirs.
    fn shows(&self, path: &Path, directory: &Metadata) -> bool {
        directory.is_dir()
            && !self.hidden.contains(path)
            && (!self.public || directory.mode() & 0o005 == 0o005)
    }

    /// Names in a directory that they show.
    fn names(&self, path: &Path) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for layer in &self.layers {
            let Said::Found(found) = said(layer, path)? else { continue };
            if !found.is_dir() {
                break;
            }
            for item in fs::read_dir(below(layer, path))? {
                let name = item?.file_name();
                if self.entry(&path.join(&name))?.is_some() {
                    names.insert(name);
                }
            }
        }
        Ok(names)
    }
}

/// Follows a path down in a layer, one component at a time, through no link.
fn said(layer: &Path, path: &Path) -> io::Result<Said> {
    let mut place = layer.to_owned();
    let mut found = fs::symlink_metadata(&place)?;
    let mut opaque = false;
    for part in path.strip_prefix("/").unwrap_or(path) {
        if !found.is_dir() {
            return Ok(Said::Hidden);
        }
        opaque = opaque || is_opaque(&place)?;
        let mut marker = OsString::from(".wh.");
        marker.push(part);
        if fs::symlink_metadata(place.join(marker)).is_ok() {
            return Ok(Said::Hidden);
        }
        place.push(part);
        found = match fs::symlink_metadata(&place) {
            Ok(found) if is_whiteout(&place, &found)? => return Ok(Said::Hidden),
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if opaque { Said::Hidden } else { Said::Nothing });
            }
            Err(error) => return Err(error),
        };
    }
    Ok(Said::Found(found))
}

/// All changes, sorted by path, a directory before what is in it.
///
/// `upper` is the upper layer's directory on the host, `made` the places of
/// the container's own mounts.
///
/// # Errors
/// What could not be read, and why.
pub fn changes(
    upper: &Path,
    lower: &Lower,
    made: &BTreeSet<PathBuf>,
) -> Result<Vec<Change>, String> {
    let mut found = Vec::new();
    let root = lower.entry("/".as_ref()).map_err(|error| cannot_read("/".as_ref(), error))?;
    let shown = root.is_some_and(|root| lower.shows("/".as_ref(), &root));
    let walk = Walk { upper, lower, made };
    walk.directory(Path::new("/"), shown, &mut found)?;
    Ok(found)
}

/// Adds other names of files that were changed, with the directories they are in.
pub fn add_other_names(changes: &mut Vec<Change>, others: &[PathBuf]) {
    let known: BTreeSet<PathBuf> = changes.iter().map(|change| change.path.clone()).collect();
    let new: BTreeSet<&Path> = others
        .iter()
        .flat_map(|path| path.ancestors())
        .filter(|path| path.parent().is_some() && !known.contains(*path))
        .collect();
    let changed = |path: &Path| Change { kind: Kind::Changed, path: path.to_owned() };
    changes.extend(new.into_iter().map(changed));
    // By component, as directories are walked.
    changes.sort_by(|a, b| a.path.cmp(&b.path));
}

struct Walk<'a> {
    upper: &'a Path,
    lower: &'a Lower,
    made: &'a BTreeSet<PathBuf>,
}

/// What an entry of an upper directory stands for.
enum Found {
    Whiteout(OsString),
    Entry(OsString, Metadata),
    /// The union's own.
    Bookkeeping,
}

impl Walk<'_> {
    /// Lists what has changed in a directory of the upper. `shown`: the lower
    /// has the same directory, and shows what is in it.
    fn directory(&self, path: &Path, shown: bool, found: &mut Vec<Change>) -> Result<(), String> {
        let real = below(self.upper, path);
        let list = || -> io::Result<Vec<Found>> {
            fs::read_dir(&real)?.map(|item| read_entry(&item?)).collect()
        };
        let mut items = list().map_err(|error| cannot_read(&real, error))?;
        let opaque = is_opaque(&real).map_err(|error| cannot_read(&real, error))?;
        if opaque && shown {
            // What the lower has besides is hidden, as if by a whiteout each.
            let kept: BTreeSet<OsString> = items
                .iter()
                .filter_map(|item| match item {
                    Found::Whiteout(name) | Found::Entry(name, _) => Some(name.clone()),
                    Found::Bookkeeping => None,
                })
                .collect();
            let names = self.lower.names(path).map_err(|error| cannot_read(path, error))?;
            items.extend(names.into_iter().filter(|n| !kept.contains(n)).map(Found::Whiteout));
        }
        items.sort_by(|a, b| name_of(a).cmp(&name_of(b)));
        for item in items {
            match item {
                Found::Bookkeeping => {}
                Found::Whiteout(name) => {
                    let path = path.join(name);
                    if shown && self.below_lower(&path)?.is_some() {
                        found.push(Change { kind: Kind::Deleted, path });
                    }
                }
                Found::Entry(name, upper) => {
                    let path = path.join(name);
                    // Behind an opaque directory a lower one counts as replaced.
                    let lower = if shown { self.below_lower(&path)? } else { None };
                    self.entry(path, &upper, lower.as_ref(), opaque, found)?;
                }
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        path: PathBuf,
        upper: &Metadata,
        lower: Option<&Metadata>,
        opaque: bool,
        found: &mut Vec<Change>,
    ) -> Result<(), String> {
        let kind = if lower.is_some() { Kind::Changed } else { Kind::Added };
        let at = found.len();
        found.push(Change { kind, path: path.clone() });
        if upper.is_dir() {
            let shown = !opaque && lower.is_some_and(|lower| self.lower.shows(&path, lower));
            self.directory(&path, shown, found)?;
        }
        // A directory that leads to a mount point counts only for what else it has.
        let on_the_way = upper.is_dir() && self.made.iter().any(|made| made.starts_with(&path));
        let same_mode = lower.is_none_or(|lower| lower.mode() == upper.mode());
        let empty = upper.is_file() && upper.size() == 0 && kind == Kind::Added;
        let own = (on_the_way && same_mode) || (empty && self.made.contains(&path));
        if own && found.len() == at + 1 {
            found.pop();
        }
        Ok(())
    }

    fn below_lower(&self, path: &Path) -> Result<Option<Metadata>, String> {
        self.lower.entry(path).map_err(|error| cannot_read(path, error))
    }
}

fn name_of(found: &Found) -> Option<&OsString> {
    match found {
        Found::Whiteout(name) | Found::Entry(name, _) => Some(name),
        Found::Bookkeeping => None,
    }
}

fn read_entry(item: &DirEntry) -> io::Result<Found> {
    let name = item.file_name();
    if let Some(rest) = name.as_bytes().strip_prefix(b".wh.") {
        // `.wh..wh.` begins the names of the union's own files.
        return Ok(if rest.starts_with(b".wh.") {
            Found::Bookkeeping
        } else {
            Found::Whiteout(OsString::from_vec(rest.to_owned()))
        });
    }
    let metadata = item.metadata()?;
    let whiteout = is_whiteout(&item.path(), &metadata)?;
    Ok(if whiteout { Found::Whiteout(name) } else { Found::Entry(name, metadata) })
}

fn is_whiteout(path: &Path, metadata: &Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    Ok(kind.is_char_device() && metadata.rdev() == 0
        || kind.is_file()
            && metadata.size() == 0
            && xattr::get(path, c"user.overlay.whiteout")?.is_some())
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    const MARKS: [&CStr; 3] =
        [c"user.overlay.opaque", c"trusted.overlay.opaque", c"user.fuseoverlayfs.opaque"];
    for mark in MARKS {
        if xattr::get(directory, mark)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    fs::exists(directory.join(".wh..wh..opq"))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn cannot_read(path: &Path, error: io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

/// Changes as bytes, for the way from one process to another.
#[must_use]
pub fn encode(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for change in changes {
        bytes.extend(change.kind.to_string().as_bytes());
        bytes.extend(change.path.as_os_str().as_bytes());
        bytes.push(0);
    }
    bytes
}

/// What [`encode`] made; `None` for anything else.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Vec<Change>> {
    let records = bytes.strip_suffix(&[0]).map(|records| records.split(|byte| *byte == 0));
    let decode = |record: &[u8]| {
        let (kind, path) = record.split_first()?;
        let kind = match kind {
            b'C' => Kind::Changed,
            b'A' => Kind::Added,
            b'D' => Kind::Deleted,
            _ => return None,
        };
        Some(Change { kind, path: OsString::from_vec(path.to_owned()).into() })
    };
    match records {
        Some(records) => records.map(decode).collect(),
        None => bytes.is_empty().then(Vec::new),
    }
}

#[cfg(test)]
mod tests;
