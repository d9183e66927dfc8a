//! Finding a name in the stack of layers.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};

use super::directory::{Indexed, Place};
use super::inode::{Identity, Ino, Lower, LowerDir, Node, UpperAt};
use super::links::Origin;
use super::redirect::{Trail, walk};
use super::xattr::OverrideStat;
use super::{Attr, Overlay, dev_ino};
use crate::error::{Error, Result};
use crate::layer::{Below, Named, find_at};
use crate::sync::Arc;
use crate::sys;

/// Longest name of any file system here, bytes (limits.h).
const NAME_MAX: usize = 255;

/// What a name is, on the layers.
pub struct Found {
    pub(crate) identity: Identity,
    /// Status of the object that is shown.
    pub(crate) stat: FileStat,
    /// Owner, mode and type kept in an attribute.
    pub(crate) kept: Option<OverrideStat>,
    /// `S_IFMT` bits of what the upper has under the name, whiteouts apart.
    pub(crate) present: Option<u32>,
}

/// Whether every user of the host may read an object: `o+r`, for a directory
/// `o+rx`. Symbolic links have no permissions.
pub(crate) fn is_public(stat: &FileStat) -> bool {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFLNK => true,
        libc::S_IFDIR => stat.st_mode & 0o5 == 0o5,
        _ => stat.st_mode & 0o4 != 0,
    }
}

/// What the lowers have under a name.
#[derive(Default)]
struct LowerFound {
    dirs: Vec<LowerDir>,
    blank: bool,
    file: Option<usize>,
    stat: Option<FileStat>,
}

impl Overlay {
    /// Looks `name` up in directory `parent` and counts a lookup of what it finds.
    ///
    /// # Errors
    /// `NotFound`, or what the layers say.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        // The index would only say that there is no such name.
        if name.len() > NAME_MAX {
            return Err(Error::Layer { op: "look up a name", errno: Errno::ENAMETOOLONG });
        }
        let dir = self.node(parent)?;
        let _tree = self.tree_shared();
        // Held throughout, so that what the index says stays true.
        let mut state = dir.dir_state().ok_or(Error::NotDirectory)?;
        let found = match state.look(name) {
            Indexed::Absent => None,
            Indexed::Present(place) => self.find(&dir, name, Some(place))?,
            Indexed::Unknown => {
                let found = self.find(&dir, name, None)?;
                match &found {
                    None => self.missed(&dir, &mut state),
                    Some(found) => {
                        self.found_the_long_way(&dir, &mut state, &found.identity.lower)?;
                    }
                }
                found
            }
        };
        Ok(self.intern(found.ok_or(Error::NotFound)?, true).1)
    }

    /// The node of what was found, and its attributes.
    pub(crate) fn intern(&self, found: Found, count: bool) -> (Arc<Node>, Attr) {
        let Found { identity, stat, kept, .. } = found;
        let in_upper = !matches!(identity.upper, UpperAt::None);
        let node = self.inodes.intern(identity, count);
        let attr = self.attr_of(&node, &stat, kept.as_ref(), in_upper);
        (node, attr)
    }

    /// Finds `name` in `dir`. `known`: what the index says of it. The tree lock is
    /// held, and with `known` the directory's.
    pub(crate) fn find(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        known: Option<Place>,
    ) -> Result<Option<Found>> {
        if super::whiteout::is_reserved(name) {
            return Ok(None);
        }
        let (upper, lowers) = self.dir_layers(dir)?;
        let in_upper = match (&upper, known) {
            (None, _) | (_, Some(Place { lower: Some(_), .. })) => Named::Absent,
            // No whiteout, and opaque or not is the same; it may be redirected.
            (Some(upper), Some(Place { merged: false, .. })) => {
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                match fstatat(upper.as_fd(), name, flags) {
                    Ok(stat) => {
                        let below = self.below_alone(upper.as_fd(), name, &stat)?;
                        Named::Present(stat, below)
                    }
                    Err(Errno::ENOENT) => return Ok(None),
                    Err(errno) => return Err(Error::Layer { op: "look up a name", errno }),
                }
            }
            (Some(upper), _) => find_at(upper.as_fd(), name)?,
        };
        let place = || Some((Arc::clone(dir), name.into()));
        match in_upper {
            Named::Whiteout => Ok(None),
            Named::Present(stat, below) => {
                let upper = upper.as_ref().ok_or(Error::Stale)?.as_fd();
                let kept = self.kept_in_upper(upper, name, &stat)?;
                let kind = shown_kind(&stat, kept.as_ref());
                let mut identity = Identity {
                    kind,
                    origin: dev_ino(&stat),
                    upper_ino: Some(dev_ino(&stat)),
                    upper: UpperAt::Named,
                    lower: Lower::None,
                    nlink_delta: 0,
                    place: place(),
                    lower_links: false,
                };
                if kind == libc::S_IFDIR {
                    if below != Below::Hidden {
                        let found = self.find_lower(&lowers, name, &below, known)?;
                        if let (Some(first), false) = (&found.stat, found.blank)
                            && !found.dirs.is_empty()
                        {
                            identity.origin = dev_ino(first);
                            identity.lower = Lower::Dirs(found.dirs.into(), false);
                        }
                    }
                    if matches!(identity.lower, Lower::None) {
                        identity.lower = Lower::Dirs(Arc::from([]), false);
                    }
                } else if let Some(up) = &self.upper
                    && !self.inodes.is_known(dev_ino(&stat))
                    && let Some(past) = up.past(upper, name, &stat)?
                    && let Some(from_top) =
                        self.lowers.len().checked_sub(1 + past.origin.from_bottom)
                {
                    // The index entry may be missing: an upper may be copied
                    // or used with another work directory.
                    let key = past.origin.key();
                    let linked = past.delta.is_some() && up.link_is(&key, dev_ino(&stat))?;
                    // A record that no entry confirms may be of another inode.
                    if linked || !past.recorded {
                        identity.origin = (self.lower_devices[from_top], past.origin.ino);
                    }
                    if let (Some(delta), true) = (past.delta, linked) {
                        identity.upper = UpperAt::Linked(key);
                        identity.nlink_delta = delta;
                    }
                }
                let present = Some(stat.st_mode & libc::S_IFMT);
                Ok(Some(Found { identity, stat, kept, present }))
            }
            Named::Absent => {
                let found = self.find_lower(&lowers, name, &Below::Merged, known)?;
                let Some(stat) = found.stat else { return Ok(None) };
                if let Some(layer) = found.file {
                    return self.found_lower_file(dir, name, &lowers, layer, stat);
                }
                if found.dirs.is_empty() {
                    return Ok(None);
                }
                let first = &found.dirs[0];
                let kept = self.kept_in_lower(first.layer, &first.path, OsStr::new(""))?;
                let identity = Identity {
                    kind: libc::S_IFDIR,
                    origin: dev_ino(&stat),
                    upper_ino: None,
                    upper: UpperAt::None,
                    lower: Lower::Dirs(found.dirs.into(), found.blank),
                    nlink_delta: 0,
                    place: place(),
                    lower_links: false,
                };
                Ok(Some(Found { identity, stat, kept, present: None }))
            }
        }
    }

    fn found_lower_file(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        lowers: &[LowerDir],
        layer: usize,
        stat: FileStat,
    ) -> Result<Option<Found>> {
        let path = lowers
            .iter()
            .find(|d| d.layer == layer)
            .map(|d| Arc::clone(&d.path))
            .expect("find_lower names a layer of this list");
        let kept = self.kept_in_lower(layer, &path, name)?;
        let links = stat.st_nlink > 1;
        let shared: Arc<OsStr> = name.into();
        let mut found = Found {
            identity: Identity {
                kind: shown_kind(&stat, kept.as_ref()),
                origin: dev_ino(&stat),
                upper_ino: None,
                upper: UpperAt::None,
                lower: Lower::File(layer, path, Arc::clone(&shared)),
                nlink_delta: 0,
                place: Some((Arc::clone(dir), shared)),
                lower_links: links,
            },
            stat,
            kept,
            present: None,
        };
        // Another of its names may have been copied up: then so was this one.
        if links
            && let Some(up) = &self.upper
            && let Some(origin) = self.origin_of(layer, &found.stat)
        {
            let key = origin.key();
            match fstatat(up.links.as_fd(), key.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    found.identity.nlink_delta = up.linked_nlink_delta(&key, &stat)?;
                    found.identity.upper_ino = Some(dev_ino(&stat));
                    found.identity.upper = UpperAt::Linked(key.clone());
                    found.kept = self.kept(|attribute| {
                        sys::getxattr_at(up.links.as_fd(), &key, OsStr::new(attribute))
                    })?;
                    // The number of a file that was here when the index was made.
                    if shown_kind(&stat, found.kept.as_ref()) != found.identity.kind {
                        return Err(Error::Stale);
                    }
                    found.stat = stat;
                }
                Err(Errno::ENOENT) => found.identity.nlink_delta = -up.lost_names(&key)?,
                Err(errno) => return Err(Error::Layer { op: "look into the link index", errno }),
            }
        }
        Ok(Some(found))
    }

    /// What a directory of the upper that is the only one of its name says of
    /// the lowers: nothing, unless it was renamed.
    fn below_alone(&self, dir: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> Result<Below> {
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR
            || self.lowers.is_empty()
            || !self.follows_redirects()
        {
            return Ok(Below::Hidden);
        }
        match super::whiteout::below_by_attributes(dir, name)? {
            Below::Merged => Ok(Below::Hidden),
            other => Ok(other),
        }
    }

    /// The same for a directory of lower `dir`.
    fn lower_alone(&self, dir: &LowerDir, name: &OsStr) -> Result<Named> {
        let layer = &self.lowers[dir.layer];
        let stat = layer.stat(&dir.path, name)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR
            && dir.layer + 1 < self.lowers.len()
            && self.follows_redirects()
            // Only of what has attributes can there be more to say.
            && !layer.listxattr(&dir.path, name)?.is_empty()
            && let Named::Present(stat, Below::Redirected(to)) = layer.find(&dir.path, name)?
        {
            return Ok(Named::Present(stat, Below::Redirected(to)));
        }
        Ok(Named::Present(stat, Below::Hidden))
    }

    /// What the lowers have under `name`, of which the layers above say `above`.
    /// Stops at the first that decides.
    fn find_lower(
        &self,
        lowers: &[LowerDir],
        name: &OsStr,
        above: &Below,
        known: Option<Place>,
    ) -> Result<LowerFound> {
        let mut out = LowerFound::default();
        let mut child: Option<Arc<Path>> = None;
        let top = known.and_then(|k| k.lower).map(usize::from);
        let mut at = top.and_then(|l| lowers.iter().position(|d| d.layer == l)).unwrap_or(0);
        let alone = top.is_some() && known.is_some_and(|k| !k.merged);
        let mut trail = Trail::Name(Cow::Borrowed(name));
        let mut redirected = false;
        let roots = std::cell::OnceCell::new();
        let mut stack = lowers;
        if let Below::Redirected(to) = above {
            trail = trail.follow(to)?;
            redirected = true;
            if let Trail::Path(_) = trail {
                (stack, at) = (roots.get_or_init(|| self.root_lowers()), 0);
            }
        }
        while let Some(dir) = stack.get(at) {
            at += 1;
            let layer = &self.lowers[dir.layer];
            let (named, path) = match &trail {
                Trail::Name(name) if alone && !redirected => {
                    // No whiteout, and nothing below that it could hide.
                    (self.lower_alone(dir, name)?, None)
                }
                Trail::Name(name) => (layer.find(&dir.path, name)?, None),
                Trail::Path(path) => {
                    let walked = walk(layer.as_ref(), path)?;
                    let path = path.clone();
                    trail = Trail::Path(walked.below);
                    if walked.last && !matches!(walked.named, Named::Present(..)) {
                        break;
                    }
                    (walked.named, Some(path))
                }
            };
            let (stat, below) = match named {
                Named::Absent => continue,
                Named::Whiteout => break,
                Named::Present(stat, below) => (stat, below),
            };
            let public = !self.options.public_lower || is_public(&stat);
            if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
                if out.dirs.is_empty() && public && !redirected {
                    out.file = Some(dir.layer);
                    out.stat = Some(stat);
                }
                break;
            }
            if redirected && !self.follows_redirects() {
                return Err(Error::Redirect { reason: "not followed here", errno: Errno::EPERM });
            }
            if !public && !out.dirs.is_empty() {
                break;
            }
            let path: Arc<Path> = match (path, &trail) {
                (Some(path), _) => path.into(),
                (None, Trail::Name(name)) => match &child {
                    Some(path)
                        if path.parent() == Some(&dir.path)
                            && path.file_name() == Some(name.as_ref()) =>
                    {
                        Arc::clone(path)
                    }
                    _ => dir.path.join(name).into(),
                },
                (None, Trail::Path(_)) => return Err(Error::Stale),
            };
            child = Some(Arc::clone(&path));
            out.stat.get_or_insert(stat);
            out.dirs.push(LowerDir { layer: dir.layer, path });
            if !public {
                out.blank = true;
                break;
            }
            match below {
                Below::Hidden => break,
                Below::Merged => {}
                // Of the bottom layer nothing is below.
                Below::Redirected(_) if dir.layer + 1 == self.lowers.len() => break,
                Below::Redirected(to) => {
                    redirected = true;
                    let layer = dir.layer;
                    trail = trail.follow(&to)?;
                    if let Trail::Path(_) = trail {
                        stack = roots.get_or_init(|| self.root_lowers());
                        at = stack.partition_point(|d| d.layer <= layer);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Whether the lowers show `name`.
    pub(crate) fn lower_shows(&self, lowers: &[LowerDir], name: &OsStr) -> Result<bool> {
        Ok(self.find_lower(lowers, name, &Below::Merged, None)?.stat.is_some())
    }

    /// Whether a lower has `name`, be it seen or not: then removing the name
    /// takes a whiteout, and a new directory of that name has to be opaque.
    pub(crate) fn lower_has(&self, lowers: &[LowerDir], name: &OsStr) -> Result<bool> {
        for dir in lowers {
            match self.lowers[dir.layer].find(&dir.path, name)? {
                Named::Absent => {}
                Named::Whiteout => return Ok(false),
                Named::Present(..) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The stable origin of a lower file, if it has one.
    pub(crate) fn origin_of(&self, layer: usize, stat: &FileStat) -> Option<Origin> {
        (self.lower_devices.get(layer) == Some(&stat.st_dev))
            .then(|| Origin { from_bottom: self.lowers.len() - 1 - layer, ino: stat.st_ino })
    }

    pub(crate) fn kept_in_lower(
        &self,
        layer: usize,
        dir: &Path,
        name: &OsStr,
    ) -> Result<Option<OverrideStat>> {
        for attribute in self.options.permissions.names() {
            match self.lowers[layer].getxattr(dir, name, OsStr::new(attribute)) {
                Ok(value) => return Ok(OverrideStat::parse(&value)),
                Err(Error::NoAttribute) => {}
                // None can be there, or (EACCES) only its owner may look: what
                // cannot be read says nothing, the inode does.
                Err(e) if [libc::EOPNOTSUPP, libc::EPERM, libc::EACCES].contains(&e.errno()) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    fn kept_in_upper(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<Option<OverrideStat>> {
        let kind = stat.st_mode & libc::S_IFMT;
        // Only files and directories can have attributes of the user.
        if self.options.permissions.names().is_empty()
            || (kind != libc::S_IFREG && kind != libc::S_IFDIR)
        {
            return Ok(None);
        }
        self.kept(|attribute| sys::getxattr_at(dir, name, OsStr::new(attribute)))
    }

    pub(crate) fn kept(
        &self,
        read: impl Fn(&str) -> nix::Result<Vec<u8>>,
    ) -> Result<Option<OverrideStat>> {
        for attribute in self.options.permissions.names() {
            match read(attribute) {
                Ok(value) => return Ok(OverrideStat::parse(&value)),
                Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM) => {}
                Err(errno) => {
                    return Err(Error::Layer {
                        op: "read owner and mode from an attribute",
                        errno,
                    });
                }
            }
        }
        Ok(None)
    }

    /// Assembles the attributes of `node` from the status of the object shown.
    pub(crate) fn attr_of(
        &self,
        node: &Node,
        stat: &FileStat,
        kept: Option<&OverrideStat>,
        in_upper: bool,
    ) -> Attr {
        let (mut uid, mut gid) = (stat.st_uid, stat.st_gid);
        let mut mode = stat.st_mode;
        let mut rdev = stat.st_rdev;
        if let Some(kept) = kept {
            (uid, gid) = (kept.uid, kept.gid);
            mode = kept.kind.unwrap_or(mode & libc::S_IFMT) | kept.mode;
            if kept.kind.is_some() {
                rdev = kept.rdev;
            }
        }
        let (uid, gid) = self.options.owners.shown(uid, gid, !in_upper && kept.is_none());
        let (delta, merged, linked, unnamed) = {
            let body = node.body();
            let layers = match &body.lower {
                Lower::Dirs(dirs, _) => dirs.len(),
                _ => 0,
            } + usize::from(!matches!(body.upper, UpperAt::None));
            let linked = matches!(body.upper, UpperAt::Linked(_));
            (body.nlink_delta, layers > 1, linked, body.place.is_none() && node.id != super::ROOT)
        };
        let nlink = if node.is_dir() {
            // The subdirectories of a merged directory are not counted; 1 says so.
            if unnamed {
                0
            } else if merged {
                1
            } else {
                stat.st_nlink
            }
        } else {
            let links = i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
            let links = links.saturating_add(delta) - i64::from(linked);
            u64::try_from(links).unwrap_or(0)
        };
        let nsec = |n: i64| u32::try_from(n).unwrap_or(0);
        Attr {
            ino: node.id,
            mode,
            nlink: u32::try_from(nlink).unwrap_or(u32::MAX),
            uid,
            gid,
            rdev,
            size: stat.st_size.cast_unsigned(),
            blocks: stat.st_blocks.cast_unsigned(),
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            atime: (stat.st_atime, nsec(stat.st_atime_nsec)),
            mtime: (stat.st_mtime, nsec(stat.st_mtime_nsec)),
            ctime: (stat.st_ctime, nsec(stat.st_ctime_nsec)),
        }
    }
}

/// Type of an object as shown.
pub(crate) fn shown_kind(stat: &FileStat, kept: Option<&OverrideStat>) -> u32 {
    kept.and_then(|k| k.kind).unwrap_or(stat.st_mode & libc::S_IFMT)
}
