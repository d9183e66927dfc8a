//! Names of an archive's members, taken apart. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, PathBuf};

/// Longest name of a member, in bytes: what a path may have (linux/limits.h,
/// without the NUL).
const LONGEST_NAME: usize = 4095;

/// What a member's name means.
pub(super) enum Named {
    Root,
    Entry(PathBuf, OsString),
    Whiteout(PathBuf, OsString),
    Opaque(PathBuf),
    /// Bookkeeping of aufs.
    Nothing,
}

/// Takes a name apart.
///
/// # Errors
/// A reason, as the predicate of a sentence.
pub(super) fn named(name: &[u8]) -> Result<Named, &'static str> {
    let (path, last) = apart(name)?;
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.as_bytes()),
        _ => None,
    });
    if parts.into_iter().any(|part| part.starts_with(b".wh.")) {
        return Err("lies in a directory with the name of a whiteout");
    }
    let Some(last) = last else { return Ok(Named::Root) };
    let Some(hidden) = last.as_bytes().strip_prefix(b".wh.") else {
        return Ok(Named::Entry(path, last));
    };
    Ok(match hidden {
        b".wh..opq" => Named::Opaque(path),
        b"" | b"." | b".." => return Err("hides no name"),
        hidden if hidden.starts_with(b".wh.") => Named::Nothing,
        hidden => Named::Whiteout(path, OsStr::from_bytes(hidden).to_owned()),
    })
}

/// As [`named`], where no name speaks of others.
///
/// # Errors
/// As of [`named`].
pub(super) fn plainly_named(name: &[u8]) -> Result<Named, &'static str> {
    let (path, last) = apart(name)?;
    Ok(last.map_or(Named::Root, |last| Named::Entry(path, last)))
}

/// The directory, and the name in it; none for the root.
fn apart(name: &[u8]) -> Result<(PathBuf, Option<OsString>), &'static str> {
    if name.len() > LONGEST_NAME {
        return Err("is too long a name");
    }
    let mut path = PathBuf::from("/");
    let mut last: Option<&OsStr> = None;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err("leads out of where it is ('..')"),
            _ => {}
        }
        if let Some(above) = last.replace(OsStr::from_bytes(part)) {
            path.push(above);
        }
    }
    Ok((path, last.map(OsStr::to_owned)))
}
