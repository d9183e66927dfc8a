//! Putting files where people have others: into a directory that is in use, and that
//! others may change meanwhile.
//!
//! Names that begin with `.wh.` mean nothing here. Directories that are there stay as
//! they are; a file takes the place of another file, and never of a directory. As in a
//! layer, every name is resolved below the directory, and the last one never followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::sys::stat::futimens;

use super::{Failed, Limits, Report, UnpackError, Unpacker, time_spec};
use crate::idmap::IdMap;
use crate::image::tar::{Kind, Reader, TarError};
use crate::stage::in_root::InRoot;

/// Whose the files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The archive says so. Where only one id exists, that one's.
    AsArchived,
    /// This user's and group's, as the namespace numbers them.
    Is(u32, u32),
    /// Of whoever makes them; set-id bits are not kept.
    Caller,
}

/// How files are put somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Ids of this process's user namespace.
    pub map: &'a IdMap,
    /// How much at most.
    pub limits: Limits,
    /// Whose they become.
    pub owner: Owner,
}

/// Puts all members of an archive into the directory `root`. `fresh`: it was just made,
/// and gets the attributes of the archive's own root.
///
/// # Errors
/// [`UnpackError`]; some of the members may be there then.
pub fn tree(
    archive: impl Read,
    root: InRoot,
    fresh: bool,
    terms: Terms<'_>,
) -> Result<Report, UnpackError> {
    let mut unpacker = Unpacker::new(root, terms.map, terms.limits, Some(terms.owner));
    let mut reader = Reader::new(archive);
    while let Some(member) = reader.next_member()? {
        let is_root = member.name.split(|byte| *byte == b'/').all(|p| matches!(p, b"" | b"."));
        if !is_root || fresh {
            unpacker.member(&mut reader, &member)?;
        }
    }
    unpacker.finish()?;
    drain(reader)?;
    Ok(unpacker.report)
}

/// Puts the only member of an archive, a file, into a directory, as `name`.
///
/// # Errors
/// As of [`tree`].
pub fn file(
    archive: impl Read,
    within: InRoot,
    name: &OsStr,
    terms: Terms<'_>,
) -> Result<Report, UnpackError> {
    let mut unpacker = Unpacker::new(within, terms.map, terms.limits, Some(terms.owner));
    let mut reader = Reader::new(archive);
    if let Some(mut member) = reader.next_member()? {
        member.name = Path::new(name).as_os_str().as_encoded_bytes().to_vec();
        unpacker.member(&mut reader, &member)?;
    }
    drain(reader)?;
    Ok(unpacker.report)
}

/// Puts the content of the only member of an archive, a file, over that of another,
/// which is open for writing and stays the file it is.
///
/// # Errors
/// As of [`tree`].
pub fn over(
    archive: impl Read,
    place: &File,
    within: InRoot,
    terms: Terms<'_>,
) -> Result<Report, UnpackError> {
    let mut unpacker = Unpacker::new(within, terms.map, terms.limits, Some(terms.owner));
    let mut reader = Reader::new(archive);
    if let Some(member) = reader.next_member()? {
        let refused = |why: String| UnpackError::Member { name: member.name.clone(), why };
        if member.kind != Kind::File {
            return Err(refused("is no file".to_owned()));
        }
        place.set_len(0).map_err(|error| refused(error.to_string()))?;
        match unpacker.data(&mut reader, &member, place) {
            Ok(()) => {}
            Err(Failed::Tar(error)) => return Err(error.into()),
            Err(Failed::Why(why)) => return Err(refused(why)),
        }
        unpacker.attributes(place.as_fd(), &member).map_err(refused)?;
        let time = time_spec(member.mtime);
        futimens(place, &time, &time).map_err(|errno| refused(errno.to_string()))?;
    }
    drain(reader)?;
    Ok(unpacker.report)
}

/// Who writes the archive must not find it closed before its end.
fn drain(reader: Reader<impl Read>) -> Result<(), UnpackError> {
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(TarError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, archive, dir, file as member, link, single};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn put(archive: &[u8], into: &Path, owner: Owner) -> Result<Report, String> {
        let map = single();
        let terms = Terms { map: &map, limits: LIMITS, owner };
        let root = InRoot::open_root(into).unwrap();
        tree(archive, root, false, terms).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_there_stays_unless_it_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let inside = place.path().join("d");
        fs::create_dir(&inside).unwrap();
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(inside.join("kept"), "kept").unwrap();
        fs::write(inside.join("f"), "old").unwrap();
        let bytes =
            archive(&[dir("./"), dir("d"), member("d/f", b"new"), member("d/.wh.kept", b"")]);
        put(&bytes, place.path(), Owner::Caller).unwrap();
        assert_eq!(fs::read_to_string(inside.join("kept")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(inside.join("f")).unwrap(), "new");
        assert!(inside.join(".wh.kept").is_file());
        let mode = fs::metadata(&inside).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_file_takes_the_place_of_no_directory() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("x")).unwrap();
        let error = put(&archive(&[member("x", b"")]), place.path(), Owner::Caller).unwrap_err();
        assert!(error.contains("directory"), "{error}");
        fs::write(place.path().join("y"), "").unwrap();
        assert!(put(&archive(&[dir("y")]), place.path(), Owner::Caller).is_err());
        assert!(place.path().join("y").is_file() && place.path().join("x").is_dir());
    }

    #[test]
    fn links_lead_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let place = tempfile::tempdir().unwrap();
        symlink(outside.path(), place.path().join("out")).unwrap();
        let up = archive(&[member("../x", b"x")]);
        assert!(put(&up, place.path(), Owner::Caller).is_err());
        // In the directory the link's target does not exist.
        drop(put(&archive(&[member("out/x", b"x")]), place.path(), Owner::Caller));
        let kind = Kind::Symlink;
        let bytes = archive(&[link(kind, "l", "/etc"), member("l", b"x")]);
        put(&bytes, place.path(), Owner::Caller).unwrap();
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        assert!(place.path().join("l").is_file());
    }

    #[test]
    fn set_id_bits_are_kept_with_their_owner_only() {
        let place = tempfile::tempdir().unwrap();
        let (mut set_id, data) = member("s", b"x");
        set_id.mode = 0o4755;
        let bytes = archive(&[(set_id, data)]);
        let mode = || fs::metadata(place.path().join("s")).unwrap().permissions().mode() & 0o7777;
        put(&bytes, place.path(), Owner::Caller).unwrap();
        assert_eq!(mode(), 0o755);
        put(&bytes, place.path(), Owner::AsArchived).unwrap();
        assert_eq!(mode(), 0o4755);
    }

    #[test]
    fn a_file_that_is_written_over_stays_the_file_it_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        fs::write(&path, "much longer").unwrap();
        let other = place.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        let map = single();
        let terms = Terms { map: &map, limits: LIMITS, owner: Owner::Caller };
        let root = InRoot::open_root(place.path()).unwrap();
        let opened = fs::OpenOptions::new().write(true).open(&path).unwrap();
        over(&archive(&[member("x", b"new")])[..], &opened, root, terms).unwrap();
        assert_eq!(fs::read_to_string(other).unwrap(), "new");
    }
}
