//! Making objects: files, directories, symbolic links, devices, hard links.
//!
//! A new object is made directly in its directory of the upper, so that set-gid
//! inheritance and default ACLs are those of the file system underneath. Where a
//! whiteout is in the way it is made in the work directory and takes the
//! whiteout's place by rename; what the directory would have passed on is then
//! passed on by a stand-in directory with the same group, set-gid bit and
//! default ACL.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, LinkatFlags, Uid, fchownat, linkat, symlinkat};

use super::barred;
use super::directory::{DirState, Indexed, PassesOn, Place};
use super::files::OpenFile;
use super::inode::{Identity, Ino, Lower, Node, UpperAt};
use super::upper::{Spot, Upper};
use super::xattr::{OverrideStat, Permissions};
use super::{Attr, Found, Overlay, check_name, dev_ino, whiteout};
use crate::error::{During, Error, Result};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sys;

/// Who makes an object.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Filesystem user id, as shown.
    pub uid: u32,
    /// Filesystem group id, as shown.
    pub gid: u32,
    /// The umask; not applied where the directory has a default ACL.
    pub umask: u32,
}

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// A regular file with these permission bits.
    File(u32),
    /// A directory with these permission bits.
    Directory(u32),
    /// A symbolic link with this target.
    Symlink(&'a OsStr),
    /// Anything mknod(2) makes: mode with type, and device number.
    Node(u32, u64),
}

impl New<'_> {
    fn mode(&self) -> u32 {
        match self {
            Self::File(mode) => libc::S_IFREG | (mode & 0o7777),
            Self::Directory(mode) => libc::S_IFDIR | (mode & 0o7777),
            Self::Symlink(_) => libc::S_IFLNK | 0o777,
            Self::Node(mode, _) => *mode,
        }
    }

    fn kind(&self) -> u32 {
        match self.mode() & libc::S_IFMT {
            0 => libc::S_IFREG,
            kind => kind,
        }
    }
}

/// What a directory and the umask make of the mode that was asked for.
struct Inheritance {
    /// The directory passes on its group.
    set_gid: bool,
    mode: u32,
    /// The mode to make the inode with.
    real_mode: Mode,
}

/// An object that was made.
struct Made {
    /// Of a regular file for reading and writing, of anything else to reach it (`O_PATH`).
    fd: OwnedFd,
    stat: FileStat,
}

/// What a directory of the upper has under a name that is to be made.
pub(crate) enum Slot {
    Free,
    /// A whiteout object that a rename has to replace.
    Whiteout,
    /// A `.wh.` file hides the name.
    Marker,
}

impl Overlay {
    /// Makes an object and counts a lookup of it.
    ///
    /// # Errors
    /// `Exists`, `ReadOnly`, or what the upper says.
    pub fn make(&self, parent: Ino, name: &OsStr, new: New<'_>, caller: Caller) -> Result<Attr> {
        check_name(name)?;
        let up = self.upper()?;
        let parent = self.node(parent)?;
        self.copy_up_dir(&parent)?;
        let _tree = self.tree_shared();
        let mut state = parent.dir_state().ok_or(Error::NotDirectory)?;
        let (dir, lowers) = self.dir_layers(&parent)?;
        let dir = dir.ok_or(Error::NotFound)?;
        let passes_on = self.passes_on(&dir, &mut state)?;
        let is_dir = new.kind() == libc::S_IFDIR;
        let made = match state.look(name) {
            Indexed::Present(_) => return Err(Error::Exists),
            // Nothing is shown and no file hides the name: it is free unless a
            // whiteout is there, which the attempt tells. What could be below a
            // new directory would be seen, or hidden by such a whiteout.
            Indexed::Absent if state.is_unmarked() && !(is_dir && self.options.public_lower) => {
                self.make_at(up, dir.as_fd(), dir.as_fd(), name, &new, caller, passes_on)
            }
            _ => Err(Error::Exists),
        };
        let Made { fd, stat } = match made {
            Err(Error::Exists | Error::Layer { errno: Errno::EEXIST, .. }) => {
                let at = (&parent, &dir, &*lowers);
                self.make_covering(up, at, name, &new, caller, passes_on)?
            }
            other => other?,
        };
        state.add(name, new.kind(), false);
        let found = if self.options.permissions == Permissions::Inode {
            let place = Some((Arc::clone(&parent), name.into()));
            new_in_upper(new.kind(), stat, None, UpperAt::Named, place)
        } else {
            let known = Some(Place { lower: None, merged: false });
            self.find(&parent, name, known)?.ok_or(Error::Stale)?
        };
        let (node, attr) = self.intern(found, true);
        match node.kind {
            libc::S_IFDIR => {
                if let Some(mut state) = node.dir_state() {
                    state.start_empty();
                }
                self.keep_file(&node, OpenFile::of_directory(node.epoch(), Arc::new(fd)));
            }
            libc::S_IFREG => {
                node.bare.store(true, Ordering::Relaxed);
                let plain = new.mode() & 0o6000 == 0;
                self.keep_file(&node, OpenFile::of_upper(node.epoch(), Arc::new(fd), plain));
            }
            _ => {}
        }
        Ok(attr)
    }

    /// Makes an object after a look at what is in the way of it.
    fn make_covering(
        &self,
        up: &Upper,
        (parent, dir, lowers): (&Arc<Node>, &Arc<OwnedFd>, &[super::inode::LowerDir]),
        name: &OsStr,
        new: &New<'_>,
        caller: Caller,
        passes_on: PassesOn,
    ) -> Result<Made> {
        let slot = self.slot(dir, lowers, name)?;
        let covers = new.kind() == libc::S_IFDIR && self.lower_has(lowers, name)?;
        match slot {
            Slot::Free | Slot::Marker if !covers => {
                let made =
                    self.make_at(up, dir.as_fd(), dir.as_fd(), name, new, caller, passes_on)?;
                if matches!(slot, Slot::Marker) {
                    up.remove_marker(dir.as_fd(), name)?;
                }
                Ok(made)
            }
            _ => {
                let dir = (parent, dir.as_fd());
                self.make_in_work(up, dir, name, new, caller, &slot, covers, passes_on)
            }
        }
    }

    /// What a directory of the upper passes on; remembered in its state.
    fn passes_on(&self, dir: &Arc<OwnedFd>, state: &mut DirState) -> Result<PassesOn> {
        if let Some(known) = state.passes_on {
            return Ok(known);
        }
        let found = passes_on(dir.as_fd())?;
        state.passes_on = Some(found);
        Ok(found)
    }

    /// Makes a regular file without a name in a directory (`O_TMPFILE`), and counts
    /// a lookup of it. [`Overlay::link`] may give it one.
    ///
    /// # Errors
    /// `ReadOnly`, or what the upper says: EOPNOTSUPP where it cannot.
    pub fn make_nameless(&self, parent: Ino, mode: u32, caller: Caller) -> Result<Attr> {
        let parent = self.node(parent)?;
        self.copy_up_dir(&parent)?;
        let _tree = self.tree_shared();
        let dir = self.dir_layers(&parent)?.0.ok_or(Error::NotFound)?;
        let new = New::File(mode);
        let inherits = self.inheritance(passes_on(dir.as_fd())?, &new, caller);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = openat(dir.as_fd(), ".", flags, inherits.real_mode).during("make a file")?;
        let mut stat = fstat(&fd).during("stat what was made")?;
        if self.own_new(fd.as_fd(), &stat, &new, &inherits, caller, dir.as_fd())? {
            stat = fstat(&fd).during("stat what was made")?;
        }
        let kept = self.kept(|attribute| sys::getxattr(fd.as_fd(), OsStr::new(attribute)))?;
        let held = UpperAt::Held(Arc::new(fd));
        let (node, attr) = self.intern(new_in_upper(libc::S_IFREG, stat, kept, held, None), true);
        if let Ok(object) = self.upper_spot(&node).and_then(|spot| spot.ok_or(Error::Stale))
            && let Spot::Fd(fd) = &*object
        {
            self.name_was_last(&node, fd.as_fd())?;
        }
        Ok(attr)
    }

    /// What is in the way of making `name` in a directory of the upper.
    pub(crate) fn slot(
        &self,
        dir: &Arc<OwnedFd>,
        lowers: &[super::inode::LowerDir],
        name: &OsStr,
    ) -> Result<Slot> {
        match fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let marks = whiteout::dir_marks(dir.as_fd())?;
                if whiteout::is_whiteout(dir.as_fd(), name, &stat, marks.xattr_whiteouts)? {
                    Ok(Slot::Whiteout)
                } else {
                    Err(Error::Exists)
                }
            }
            Err(Errno::ENOENT) => {
                let marker = whiteout::marker_name(name);
                match fstatat(dir.as_fd(), marker.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(_) => Ok(Slot::Marker),
                    Err(Errno::ENOENT | Errno::ENAMETOOLONG) => {
                        if self.lower_shows(lowers, name)? {
                            return Err(Error::Exists);
                        }
                        Ok(Slot::Free)
                    }
                    Err(errno) => Err(Error::Layer { op: "look for a whiteout", errno }),
                }
            }
            Err(errno) => Err(Error::Layer { op: "look up a name", errno }),
        }
    }

    /// Makes the object in the work directory and lets it take the place of the
    /// whiteout, complete.
    #[expect(clippy::too_many_arguments, reason = "one step of make(), which has them all")]
    fn make_in_work(
        &self,
        up: &Upper,
        (parent, dir): (&Arc<Node>, BorrowedFd<'_>),
        name: &OsStr,
        new: &New<'_>,
        caller: Caller,
        slot: &Slot,
        opaque: bool,
        passes_on: PassesOn,
    ) -> Result<Made> {
        let stand_in = self.stand_in(up, dir)?;
        let temp = up.temp_name();
        let result = (|| {
            let at = stand_in.as_ref().map_or(up.work.as_fd(), |(_, fd)| fd.as_fd());
            let made = self.make_at(up, at, dir, &temp, new, caller, passes_on)?;
            let place = || Ok(barred::Place::At(self.upper_path(parent)?.join(name)));
            let replaces = matches!(slot, Slot::Whiteout).then_some(libc::S_IFCHR);
            let put = || {
                if stand_in.is_some() {
                    let (from, to) = (temp.as_os_str(), temp.as_os_str());
                    renameat2(at, from, &up.work, to, RenameFlags::empty())
                        .during("take a new object out of its stand-in directory")?;
                }
                if opaque {
                    up.set_opaque(made.fd.as_fd())?;
                }
                up.swap_in(&temp, dir, name, replaces)
            };
            if new.kind() == libc::S_IFDIR {
                up.opened(made.fd.as_fd(), &made.stat, place, put)?;
            } else {
                put()?;
            }
            if matches!(slot, Slot::Marker) {
                up.remove_marker(dir, name)?;
            }
            // Its new place has changed its time.
            let stat = fstat(&made.fd).during("stat what was made")?;
            Ok(Made { stat, ..made })
        })();
        if let Some((name, _)) = &stand_in {
            up.discard(name)?;
        }
        if result.is_err() {
            up.discard(&temp)?;
        }
        result
    }

    /// A directory of the work directory that passes on what `dir` does, if it
    /// does pass anything on.
    fn stand_in(&self, up: &Upper, dir: BorrowedFd<'_>) -> Result<Option<(OsString, OwnedFd)>> {
        let stat = fstat(dir).during("stat a directory")?;
        let acl = default_acl(dir)?;
        if stat.st_mode & libc::S_ISGID == 0 && acl.is_none() {
            return Ok(None);
        }
        let name = up.temp_name();
        mkdirat(&up.work, name.as_os_str(), Mode::S_IRWXU).during("make a stand-in directory")?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&up.work, name.as_os_str(), flags, Mode::empty())
            .during("open a stand-in directory")?;
        if stat.st_mode & libc::S_ISGID != 0 {
            nix::unistd::fchown(&fd, None, Some(Gid::from_raw(stat.st_gid)))
                .during("pass on the group of a directory")?;
            nix::sys::stat::fchmod(&fd, Mode::S_IRWXU | Mode::S_ISGID)
                .during("pass on the set-gid bit of a directory")?;
        }
        if let Some(acl) = acl {
            sys::setxattr(fd.as_fd(), OsStr::new(DEFAULT_ACL), &acl, 0)
                .during("pass on the default ACL of a directory")?;
        }
        Ok(Some((name, fd)))
    }

    /// Makes the object at `at`/`name` with owner and mode; `parent` is the
    /// directory it is for.
    #[expect(clippy::too_many_arguments, reason = "one step of make(), which has them all")]
    fn make_at(
        &self,
        up: &Upper,
        at: BorrowedFd<'_>,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        new: &New<'_>,
        caller: Caller,
        passes_on: PassesOn,
    ) -> Result<Made> {
        let kept = self.options.permissions != Permissions::Inode;
        let kind = new.kind();
        let inherits = self.inheritance(passes_on, new, caller);
        let real_mode = inherits.real_mode;
        let mut fd = None;
        let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW;
        match (kind, new) {
            (libc::S_IFDIR, _) => mkdirat(at, name, real_mode).during("make a directory")?,
            (_, New::Symlink(target)) => {
                symlinkat(*target, at, name).during("make a symbolic link")?;
            }
            (libc::S_IFREG, _) => {
                let made = openat(at, name, create | OFlag::O_CLOEXEC, real_mode);
                fd = Some(made.during("make a file")?);
            }
            _ if kept => {
                openat(at, name, create | OFlag::O_CLOEXEC, real_mode).during("make a node")?;
            }
            (_, New::Node(_, rdev)) => {
                if kind == libc::S_IFCHR && *rdev == 0 {
                    return Err(Error::NotPermitted("device 0:0 is a whiteout"));
                }
                mknodat(at, name, SFlag::from_bits_truncate(kind), real_mode, *rdev)
                    .during("make a node")?;
            }
            _ => return Err(Error::Invalid("no such type of file")),
        }
        let finish = || -> Result<Made> {
            let fd = match fd {
                Some(fd) => fd,
                None => {
                    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(at, name, flags, Mode::empty()).during("reach what was made")?
                }
            };
            let mut stat = fstat(&fd).during("stat what was made")?;
            if self.own_new(fd.as_fd(), &stat, new, &inherits, caller, parent)? {
                stat = fstat(&fd).during("stat what was made")?;
            }
            Ok(Made { fd, stat })
        };
        finish().or_else(|e| {
            // The name must not stay behind half made.
            up.remove_entry(at, name, stat_kind(at, name).unwrap_or(kind))?;
            Err(e)
        })
    }

    /// What becomes of the mode that was asked for.
    fn inheritance(&self, passes_on: PassesOn, new: &New<'_>, caller: Caller) -> Inheritance {
        let masked = if passes_on.acl { 0 } else { caller.umask };
        let mode = new.mode() & !masked;
        // With attributes for owner and mode the inode itself must stay
        // accessible to this process, and only files can have the attributes.
        let real_mode = if self.options.permissions != Permissions::Inode {
            let floor = if new.kind() == libc::S_IFDIR { 0o700 } else { 0o600 };
            Mode::from_bits_truncate(mode & 0o777 | floor)
        } else {
            Mode::from_bits_truncate(mode & 0o7777)
        };
        Inheritance { set_gid: passes_on.set_gid, mode, real_mode }
    }

    /// Gives a new object its owner (and what follows from it); whether it had another,
    /// so that its status has changed.
    fn own_new(
        &self,
        object: BorrowedFd<'_>,
        stat: &FileStat,
        new: &New<'_>,
        inherits: &Inheritance,
        caller: Caller,
        parent: BorrowedFd<'_>,
    ) -> Result<bool> {
        let (mode, kind) = (inherits.mode, new.kind());
        let rdev = if let New::Node(_, rdev) = new { *rdev } else { 0 };
        let owners = &self.options.owners;
        if self.options.permissions != Permissions::Inode {
            let of_parent = self.kept(|attribute| sys::getxattr(parent, OsStr::new(attribute)))?;
            let parent_bits = of_parent.map_or(0, |k| k.mode);
            let set_gid = parent_bits & libc::S_ISGID != 0;
            let gid = match of_parent {
                Some(kept) if set_gid => Some(kept.gid),
                _ => owners.maker_gid(caller.gid),
            };
            let passed_on = if set_gid && kind == libc::S_IFDIR { libc::S_ISGID } else { 0 };
            let kept = OverrideStat {
                uid: owners.maker_uid(caller.uid).unwrap_or(stat.st_uid),
                gid: gid.unwrap_or(stat.st_gid),
                mode: mode & 0o7777 | passed_on,
                kind: Some(kind),
                rdev,
            };
            self.keep(object, kind, &kept)?;
            return Ok(true);
        }
        let uid = owners.maker_uid(caller.uid).filter(|uid| *uid != stat.st_uid);
        let gid = if inherits.set_gid { None } else { owners.maker_gid(caller.gid) };
        let gid = gid.filter(|gid| *gid != stat.st_gid);
        if uid.is_none() && gid.is_none() {
            return Ok(false);
        }
        fchownat(
            object,
            "",
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::AT_EMPTY_PATH,
        )
        .during("set the owner of what was made")?;
        // chown clears these bits (chown(2)); they were asked for.
        if kind != libc::S_IFLNK && mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            let bits = fstat(object).during("stat what was made")?.st_mode;
            let mode = Mode::from_bits_truncate(bits & 0o1777 | mode & 0o6000);
            super::object::chmod_path(object, mode).during("set the mode of what was made")?;
        }
        Ok(true)
    }

    /// Keeps owner and mode in an attribute. Symbolic links cannot have one:
    /// theirs stay what the inode says.
    pub(crate) fn keep(
        &self,
        object: BorrowedFd<'_>,
        kind: u32,
        kept: &OverrideStat,
    ) -> Result<()> {
        if kind == libc::S_IFLNK {
            return Ok(());
        }
        let Some(name) = self.options.permissions.names().first() else { return Ok(()) };
        sys::setxattr(object, OsStr::new(name), kept.format().as_bytes(), 0)
            .during("keep owner and mode in an attribute")
    }

    /// Gives `node` one more name, and counts a lookup of it.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for a directory, or what the upper says.
    pub fn link(&self, node: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        check_name(name)?;
        let up = self.upper()?;
        let node = self.node(node)?;
        if node.is_dir() {
            return Err(Error::NotPermitted("a directory cannot have two names"));
        }
        let parent = self.node(parent)?;
        self.copy_up(&node, None)?;
        self.complete(&node)?;
        self.copy_up_dir(&parent)?;
        let _tree = self.tree_shared();
        let mut state = parent.dir_state().ok_or(Error::NotDirectory)?;
        let (dir, lowers) = self.dir_layers(&parent)?;
        let dir = dir.ok_or(Error::NotFound)?;
        let slot = self.slot(&dir, &lowers, name)?;
        let spot = self.upper_spot(&node)?.ok_or(Error::Stale)?;
        match slot {
            Slot::Whiteout => {
                let temp = up.temp_name();
                link_spot(&spot, up.work.as_fd(), &temp)?;
                up.swap_in(&temp, dir.as_fd(), name, Some(libc::S_IFCHR))?;
            }
            Slot::Free => link_spot(&spot, dir.as_fd(), name)?,
            Slot::Marker => {
                link_spot(&spot, dir.as_fd(), name)?;
                up.remove_marker(dir.as_fd(), name)?;
            }
        }
        state.add(name, node.kind, false);
        self.has_name_again(&node);
        {
            // The new name will do as well as any, if it has none.
            let mut body = node.body();
            if let UpperAt::Held(_) = body.upper {
                body.upper = UpperAt::Named;
                body.place = Some((Arc::clone(&parent), name.into()));
            }
            if let (Some(ino), false) = (body.upper_ino, matches!(body.upper, UpperAt::Linked(_))) {
                drop(body);
                // The name leads to the same node also where no origin is recorded.
                self.inodes.alias(&node, ino);
            }
        }
        let known = Some(Place { lower: None, merged: false });
        let found = self.find(&parent, name, known)?.ok_or(Error::Stale)?;
        let (again, attr) = self.intern(found, true);
        if !Arc::ptr_eq(&again, &node) {
            self.inodes.forget(again.id, 1);
            return Err(Error::Stale);
        }
        Ok(attr)
    }
}

/// An object that was just made in the upper.
fn new_in_upper(
    kind: u32,
    stat: FileStat,
    kept: Option<OverrideStat>,
    upper: UpperAt,
    place: Option<(Arc<Node>, Arc<OsStr>)>,
) -> Found {
    let lower = if kind == libc::S_IFDIR { Lower::Dirs(Arc::from([]), false) } else { Lower::None };
    let identity = Identity {
        kind,
        origin: dev_ino(&stat),
        upper_ino: Some(dev_ino(&stat)),
        upper,
        lower,
        nlink_delta: 0,
        place,
        lower_links: false,
    };
    Found { identity, stat, kept, present: Some(stat.st_mode & libc::S_IFMT) }
}

/// What the directory behind `dir` passes on.
fn passes_on(dir: BorrowedFd<'_>) -> Result<PassesOn> {
    let set_gid = fstat(dir).during("stat a directory")?.st_mode & libc::S_ISGID != 0;
    Ok(PassesOn { set_gid, acl: default_acl(dir)?.is_some() })
}

const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The default ACL of a directory, as stored.
fn default_acl(dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    match sys::getxattr(dir, OsStr::new(DEFAULT_ACL)) {
        Ok(acl) => Ok(Some(acl)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::Layer { op: "read a default ACL", errno }),
    }
}

fn stat_kind(at: BorrowedFd<'_>, name: &OsStr) -> Option<u32> {
    fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|s| s.st_mode & libc::S_IFMT)
}

/// Gives an object of the upper one more name.
pub(crate) fn link_spot(spot: &Spot, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match spot {
        Spot::At(from, old) => {
            linkat(from.as_fd(), old.as_os_str(), dir, name, LinkatFlags::empty())
        }
        Spot::Fd(fd) => {
            let path = sys::fd_path(fd.as_fd());
            linkat(nix::fcntl::AT_FDCWD, path.as_c_str(), dir, name, LinkatFlags::AT_SYMLINK_FOLLOW)
        }
    }
    .during("make a hard link")
}
