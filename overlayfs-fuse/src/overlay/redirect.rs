//! Redirects: directories that were renamed, and whose lower part was not.
//!
//! # Theory of operation
//! Lowers never change, so a renamed directory that a lower has must say where its
//! lower part is. It does so as in the kernel's overlay
//! (Documentation/filesystems/overlayfs.rst, *redirect_dir*), by an attribute
//! `overlay.redirect` of the directory in the upper:
//!
//! * `NAME`: by another name in the same directory; written when it was renamed
//!   within its directory.
//! * `/PATH`: from the root of the union, in the names that the layers *below* the
//!   one with the attribute show. An absolute path always replaces a relative one.
//!
//! The attribute is written before the rename: at the old place it names the place
//! itself, so that a crash in between changes nothing.
//!
//! A redirect of a layer is looked for in the layers below it, component by
//! component from their roots; on the way whiteouts, opaque directories and other
//! redirects count as everywhere. It never leaves a layer: `.`, `..`, empty and
//! reserved components are refused, and symbolic links are not followed.
//!
//! Whoever may write a layer can by a redirect show a directory in a place where
//! it can be reached past the permissions of the directories it is in. So it is
//! not followed with `nofollow`, nor where private lowers are hidden
//! (`public_lower`): such a directory gives EPERM.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::inode::{Lower, LowerDir, Node, ROOT};
use super::upper::Upper;
use super::{Overlay, whiteout};
use crate::error::{Error, Result};
use crate::layer::{Below, Layer, Named};
use crate::sync::Arc;

/// Longest value that is written, bytes: what fits into a path (limits.h).
const LONGEST: usize = 4095;

/// What is done about redirects; the value of `redirect_dir`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectDir {
    /// Written, and followed.
    On,
    /// Followed only: renaming a directory that a lower has is EXDEV.
    #[default]
    Follow,
    /// Neither.
    NoFollow,
}

/// Where the lower part of a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// By this name in the same directory.
    Sibling(OsString),
    /// At this path (without leading `/`) from the root.
    Absolute(PathBuf),
}

impl Redirect {
    /// The meaning of an attribute's value; `None` when it names no place.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let name = |name: &[u8]| {
            let ok = !name.is_empty()
                && name.len() <= 255
                && name != b"."
                && name != b".."
                && !name.contains(&0)
                && !whiteout::is_reserved(OsStr::from_bytes(name));
            ok.then(|| OsString::from_vec(name.to_vec()))
        };
        match value.strip_prefix(b"/") {
            Some(path) => path.split(|b| *b == b'/').map(name).collect::<Option<_>>(),
            None if value.contains(&b'/') => None,
            None => return name(value).map(Self::Sibling),
        }
        .map(Self::Absolute)
    }

    /// The attribute's value.
    #[must_use]
    pub fn format(&self) -> Vec<u8> {
        match self {
            Self::Sibling(name) => name.as_bytes().to_vec(),
            Self::Absolute(path) => [b"/", path.as_os_str().as_bytes()].concat(),
        }
    }

    fn check(value: &OsStr) -> Result<Self> {
        Self::parse(value.as_bytes())
            .ok_or(Error::Redirect { reason: "it names no place", errno: Errno::EINVAL })
    }
}

/// Under which name a directory is looked for in the layers that are left.
pub(super) enum Trail<'a> {
    /// In its parent.
    Name(Cow<'a, OsStr>),
    /// From the root.
    Path(PathBuf),
}

impl Trail<'_> {
    /// What a directory that was found under this trail means for the layers below.
    pub(super) fn follow(self, to: &OsStr) -> Result<Self> {
        Ok(match (Redirect::check(to)?, self) {
            (Redirect::Absolute(path), _) => Self::Path(path),
            (Redirect::Sibling(name), Self::Name(_)) => Self::Name(Cow::Owned(name)),
            (Redirect::Sibling(name), Self::Path(path)) => Self::Path(path.with_file_name(name)),
        })
    }
}

/// What a walk from a layer's root came to.
pub(super) struct Walked {
    pub(super) named: Named,
    /// The path to look for in the layers below.
    pub(super) below: PathBuf,
    /// Nothing below belongs to it.
    pub(super) last: bool,
}

/// Looks for `path` in a layer, from its root.
pub(super) fn walk(layer: &dyn Layer, path: &Path) -> Result<Walked> {
    let mut at = PathBuf::new();
    let mut below = PathBuf::new();
    let mut last = false;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let named = layer.find(&at, name)?;
        let Named::Present(stat, says) = named else {
            last |= matches!(named, Named::Whiteout);
            below.push(name);
            below.extend(names);
            return Ok(Walked { named, below, last });
        };
        below.push(name);
        match says {
            Below::Merged => {}
            Below::Hidden => last = true,
            Below::Redirected(to) => match Redirect::check(&to)? {
                Redirect::Sibling(name) => below.set_file_name(name),
                // What was opaque on the way lies elsewhere.
                Redirect::Absolute(path) => (below, last) = (path, false),
            },
        }
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if names.peek().is_none() {
            let says = if last { Below::Hidden } else { Below::Merged };
            return Ok(Walked { named: Named::Present(stat, says), below, last });
        }
        if !is_dir {
            return Ok(Walked { named: Named::Whiteout, below, last: true });
        }
        at.push(name);
    }
    Ok(Walked { named: Named::Absent, below, last })
}

/// Whether a lower has a part of a directory.
pub(super) fn has_lower_part(node: &Node) -> bool {
    matches!(&node.body().lower, Lower::Dirs(dirs, _) if !dirs.is_empty())
}

impl Overlay {
    /// Whether redirects are followed.
    pub(super) fn follows_redirects(&self) -> bool {
        self.options.redirect_dir != RedirectDir::NoFollow && !self.options.public_lower
    }

    /// The lowers of the root: where absolute redirects start.
    pub(super) fn root_lowers(&self) -> Arc<[LowerDir]> {
        let lower = self.inodes.get(ROOT).map(|root| root.body().lower.clone());
        match lower {
            Some(Lower::Dirs(dirs, false)) => dirs,
            _ => Arc::from([]),
        }
    }

    /// Fails unless a directory may be renamed; one that a lower has is copied up.
    pub(super) fn ready_to_redirect(&self, node: &Arc<Node>) -> Result<()> {
        if !has_lower_part(node) {
            return Ok(());
        }
        if self.options.redirect_dir != RedirectDir::On || self.options.public_lower {
            return Err(Error::CrossDevice);
        }
        self.copy_up_dir(node)
    }

    /// Has a directory that is about to be renamed say where its lower part is;
    /// `fd` is of its upper part. The tree lock is held.
    pub(super) fn redirect(
        &self,
        up: &Upper,
        node: &Arc<Node>,
        fd: BorrowedFd<'_>,
        same_parent: bool,
    ) -> Result<()> {
        let known = redirect_of(fd)?;
        let redirect = match known {
            Some(Redirect::Absolute(_)) => return Ok(()),
            Some(Redirect::Sibling(_)) if same_parent => return Ok(()),
            None if same_parent => {
                let name = node.body().place.as_ref().map(|(_, name)| name.to_os_string());
                Redirect::Sibling(name.ok_or(Error::Stale)?)
            }
            _ => Redirect::Absolute(self.path_in_lowers(node)?),
        };
        let value = redirect.format();
        // What cannot be recorded can still be copied, as in the kernel's overlay.
        if value.len() > LONGEST { Err(Error::CrossDevice) } else { up.set_redirect(fd, &value) }
    }

    /// The path by which the lowers together show a directory.
    pub(super) fn path_in_lowers(&self, node: &Arc<Node>) -> Result<PathBuf> {
        let mut names: Vec<OsString> = Vec::new();
        let mut start = PathBuf::new();
        let mut at = Arc::clone(node);
        while at.id != ROOT {
            let (parent, name) = at.body().place.clone().ok_or(Error::Stale)?;
            match redirect_of(self.upper_dir(&at)?.as_fd())? {
                Some(Redirect::Absolute(path)) => {
                    start = path;
                    break;
                }
                Some(Redirect::Sibling(name)) => names.push(name),
                None => names.push(name.to_os_string()),
            }
            at = parent;
        }
        start.extend(names.iter().rev());
        Ok(start)
    }
}

/// Where a directory of the upper says that its lower part is.
fn redirect_of(fd: BorrowedFd<'_>) -> Result<Option<Redirect>> {
    whiteout::dir_marks(fd)?.redirect.map(|to| Redirect::check(&to)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_that_name_a_place() {
        let long = "x".repeat(256);
        for (text, want) in [
            ("a", Some(Redirect::Sibling("a".into()))),
            ("/a", Some(Redirect::Absolute("a".into()))),
            ("/a/b c/d", Some(Redirect::Absolute("a/b c/d".into()))),
            ("...", Some(Redirect::Sibling("...".into()))),
            ("", None),
            ("/", None),
            ("a/b", None),
            ("..", None),
            (".", None),
            ("/..", None),
            ("/a/../../etc", None),
            ("/a/./b", None),
            ("/a//b", None),
            ("/a/", None),
            ("//a", None),
            ("a\0b", None),
            (".wh.a", None),
            ("/a/.wh..wh..opq", None),
            (long.as_str(), None),
        ] {
            assert_eq!(Redirect::parse(text.as_bytes()), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_redirect_stays_below(value: Vec<u8>) {
            if let Some(redirect) = Redirect::parse(&value) {
                prop_assert_eq!(redirect.format(), value);
                let path = match redirect {
                    Redirect::Sibling(name) => PathBuf::from(name),
                    Redirect::Absolute(path) => path,
                };
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
