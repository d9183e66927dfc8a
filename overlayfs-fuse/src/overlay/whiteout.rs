//! How layers say that a name is hidden: whiteouts and opaque directories.
//!
//! Read: character device 0:0; a `.wh.NAME` file (aufs, OCI and Podman's own
//! layers); an empty file with the attribute `overlay.whiteout` in a directory
//! whose `overlay.opaque` is `x` (Documentation/filesystems/overlayfs.rst).
//! Opaque: `trusted.overlay.opaque`, `user.overlay.opaque`,
//! `user.fuseoverlayfs.opaque` with value `y`, or a file `.wh..wh..opq`.
//! Beside them may be `overlay.redirect`: where the directory is in the layers below.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};

use crate::error::{During, Error, Result};
use crate::layer::Below;
use crate::sys;

const PREFIX: &[u8] = b".wh.";
const OPAQUE_FILE: &str = ".wh..wh..opq";
const OPAQUE_ATTRIBUTES: [&str; 3] =
    ["user.overlay.opaque", "trusted.overlay.opaque", "user.fuseoverlayfs.opaque"];
/// The first counts: where both are readable the privileged one is written.
/// Where an object is in the layers below.
pub(super) const REDIRECT_ATTRIBUTES: [&str; 2] =
    ["trusted.overlay.redirect", "user.overlay.redirect"];
const WHITEOUT_ATTRIBUTES: [&str; 2] = ["user.overlay.whiteout", "trusted.overlay.whiteout"];

/// What a name that starts with `.wh.` stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// Hides this name in the layers below.
    Hides(&'a OsStr),
    /// Makes its directory opaque.
    Opaque,
    /// Bookkeeping of aufs: not shown, hides nothing.
    Reserved,
}

impl<'a> Marker<'a> {
    /// The meaning of `name`, or `None` for an ordinary name.
    #[must_use]
    pub fn parse(name: &'a OsStr) -> Option<Self> {
        let hidden = name.as_bytes().strip_prefix(PREFIX)?;
        if name == OPAQUE_FILE {
            Some(Self::Opaque)
        } else if hidden.is_empty() || hidden.starts_with(PREFIX) {
            Some(Self::Reserved)
        } else {
            Some(Self::Hides(OsStr::from_bytes(hidden)))
        }
    }
}

/// The marker file that hides `name`.
#[must_use]
pub fn marker_name(name: &OsStr) -> OsString {
    let mut marker = OsString::from(".wh.");
    marker.push(name);
    marker
}

/// Whether a name is reserved for markers and cannot be created or looked up.
#[must_use]
pub fn is_reserved(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX)
}

/// What the attributes of a directory say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DirMarks {
    /// Hides all directories of the same name below.
    pub(crate) opaque: bool,
    /// Its empty files may be whiteouts made of attributes.
    pub(crate) xattr_whiteouts: bool,
    /// Where it is in the layers below, unchecked.
    pub(crate) redirect: Option<OsString>,
}

/// The meaning of the values of the opaque attributes.
fn marks_of(value: &[u8]) -> DirMarks {
    DirMarks { opaque: value == b"y", xattr_whiteouts: value == b"x", redirect: None }
}

/// Reads the marks of the directory behind `fd` from its attributes.
pub(crate) fn dir_marks(fd: BorrowedFd<'_>) -> Result<DirMarks> {
    marks_by(sys::listxattr(fd), |name| sys::getxattr(fd, name))
}

/// The names first: nearly always there are none.
fn marks_by(
    names: nix::Result<Vec<OsString>>,
    read: impl Fn(&OsStr) -> nix::Result<Vec<u8>>,
) -> Result<DirMarks> {
    const OP: &str = "read the opaque mark";
    let mut marks = DirMarks::default();
    // A file system without attributes; `trusted.*` or an unreadable directory of
    // somebody else: no mark for us.
    let nothing =
        |e: &Errno| matches!(e, Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES);
    let names = match names {
        Err(errno) if nothing(&errno) => return Ok(marks),
        other => other.during(OP)?,
    };
    for name in names.iter().filter(|n| OPAQUE_ATTRIBUTES.iter().any(|o| n.as_os_str() == *o)) {
        match read(name) {
            Err(errno) if nothing(&errno) => {}
            other => {
                let m = marks_of(&other.during(OP)?);
                marks.opaque |= m.opaque;
                marks.xattr_whiteouts |= m.xattr_whiteouts;
            }
        }
    }
    for name in REDIRECT_ATTRIBUTES.iter().filter(|n| names.iter().any(|name| name == *n)) {
        match read(OsStr::new(name)) {
            Err(errno) if nothing(&errno) => {}
            other => {
                marks.redirect = Some(OsString::from_vec(other.during("read a redirect")?));
                break;
            }
        }
    }
    Ok(marks)
}

/// What the attributes of directory `name` in `dir` say of the layers below.
pub(crate) fn below_by_attributes(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Below> {
    let names = sys::listxattr_at(dir, name);
    let marks = marks_by(names, |attribute| sys::getxattr_at(dir, name, attribute))?;
    Ok(match marks {
        DirMarks { opaque: true, .. } => Below::Hidden,
        DirMarks { redirect: Some(to), .. } => Below::Redirected(to),
        _ => Below::Merged,
    })
}

/// The same by attributes or marker file.
pub(crate) fn below(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Below> {
    let by_attributes = below_by_attributes(dir, name)?;
    if by_attributes == Below::Hidden {
        return Ok(by_attributes);
    }
    let mut marker = name.as_bytes().to_vec();
    marker.push(b'/');
    marker.extend_from_slice(OPAQUE_FILE.as_bytes());
    match fstatat(dir, OsStr::from_bytes(&marker), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(Below::Hidden),
        Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR) => Ok(by_attributes),
        Err(errno) => Err(Error::Layer { op: "look for the opaque marker", errno }),
    }
}

/// Whether a device number and type are those of a whiteout.
#[must_use]
pub(crate) fn is_whiteout_device(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// Whether `name` in `dir`, whose status is `stat`, is a whiteout.
/// `by_attribute`: whether the directory's marks allow whiteouts made of attributes.
pub(crate) fn is_whiteout(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    by_attribute: bool,
) -> Result<bool> {
    if is_whiteout_device(stat) {
        return Ok(true);
    }
    if !by_attribute || stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size != 0 {
        return Ok(false);
    }
    for attribute in WHITEOUT_ATTRIBUTES {
        match sys::getxattr_at(dir, name, OsStr::new(attribute)) {
            Ok(_) => return Ok(true),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES) => {}
            Err(errno) => return Err(errno).during("look for the whiteout mark"),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_apart() {
        for (name, want) in [
            ("plain", None),
            (".whatever", None),
            (".wh.gone", Some(Marker::Hides(OsStr::new("gone")))),
            (".wh..hidden", Some(Marker::Hides(OsStr::new(".hidden")))),
            (".wh..wh..opq", Some(Marker::Opaque)),
            (".wh..wh.plnk", Some(Marker::Reserved)),
            (".wh.", Some(Marker::Reserved)),
        ] {
            assert_eq!(Marker::parse(OsStr::new(name)), want, "{name}");
        }
    }

    #[test]
    fn opaque_values_are_told_apart() {
        let none = DirMarks::default();
        assert_eq!(marks_of(b"y"), DirMarks { opaque: true, ..none.clone() });
        assert_eq!(marks_of(b"x"), DirMarks { xattr_whiteouts: true, ..none.clone() });
        assert_eq!(marks_of(b""), DirMarks::default());
        assert_eq!(marks_of(b"yy"), DirMarks::default());
    }
}
