//! Directories and files of the upper whose mode bars this process, their owner, itself.
//!
//! # Theory of operation
//! A server without CAP_DAC_OVERRIDE over the upper (an ordinary user's, outside of a user
//! namespace) is bound by the modes that it shows. The kernel lets nobody do through the
//! union what a mode forbids, but there is more to do for a union than its users ask for: a
//! copy of a file that may be written is put into a directory that may not; a directory is
//! moved from the work directory into place, which its own mode has to allow (`..` changes;
//! `vfs_rename` in fs/namei.c), or has an attribute of ours put on it; a file that was opened
//! before its mode forbade it is opened by us once more.
//!
//! For such a step the object is opened up ([`Upper::opened`]): owner's bits are added to its
//! mode and taken away again. Nobody sees that, as the tree is locked exclusively meanwhile
//! ([`Overlay::enter`]), or the object is not known yet or about to go. A crash does not
//! leave it so: before, the mode is noted, in the work directory, as a symbolic link `mode-N`
//! whose target is `MODE PATH`, the path in the upper being the one that the object has when
//! the step is done, or `MODE=KEY` for what is in the index of hard links. Whoever finds one
//! at the mount puts the mode back.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{
    AccessFlags, Gid, UnlinkatFlags, faccessat, getegid, getgroups, symlinkat, unlinkat,
};

use super::Overlay;
use super::directory::DirState;
use super::inode::{Node, UpperAt};
use super::object::chmod_path;
use super::upper::Upper;
use crate::error::{During, Error, Result};
use crate::layer::open_beneath;
use crate::sync::{Arc, MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use crate::sys;

/// What notes of modes begin with.
const MODE: &str = "mode-";

/// Where an object of the upper is found after a crash.
pub(super) enum Place {
    /// Its path in the upper.
    At(PathBuf),
    /// Its name in the index of hard links.
    Index(OsString),
    /// Its last name is gone.
    Nowhere,
}

/// The tree, locked in one way or the other.
pub(super) enum Tree<'a> {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'a, ()>),
    Exclusive(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'a, ()>),
}

/// A directory that is about to get an entry of ours, locked.
pub(super) struct Entered<'a> {
    /// Of the upper, and its status before. `None`: there is no such place any more.
    pub(super) dir: Option<(Arc<OwnedFd>, FileStat)>,
    pub(super) state: MutexGuard<'a, DirState>,
    _tree: Tree<'a>,
}

impl Overlay {
    /// Locks the tree, for us alone or not.
    pub(super) fn lock_tree(&self, exclusively: bool) -> Tree<'_> {
        match exclusively {
            true => Tree::Exclusive(self.tree_exclusive()),
            false => Tree::Shared(self.tree_shared()),
        }
    }

    /// Locks the tree and `parent`, in which `node` has its name, unless it has lost it: as
    /// others do, or for us alone where the directory has to be opened up.
    pub(super) fn enter<'a>(&'a self, parent: &'a Arc<Node>, node: &Node) -> Result<Entered<'a>> {
        let mut tree = self.lock_tree(false);
        loop {
            let state = parent.dir_state().ok_or(Error::NotDirectory)?;
            let dir = match node.body().place.is_some() {
                true => Some(self.upper_dir(parent)?),
                false => None,
            };
            let stat = |dir: Arc<OwnedFd>| {
                let stat = fstat(dir.as_fd()).during("stat a directory")?;
                Ok::<_, Error>((dir, stat))
            };
            let dir = dir.map(stat).transpose()?;
            let barred = dir.as_ref().is_some_and(|(dir, stat)| is_barred(dir.as_fd(), stat));
            if !barred || matches!(tree, Tree::Exclusive(_)) {
                return Ok(Entered { dir, state, _tree: tree });
            }
            drop((dir, state, tree));
            tree = self.lock_tree(true);
        }
    }

    /// Whether a file is one of the upper that its mode may bar us from: the privileged,
    /// whose files may have their data elsewhere, are never barred.
    pub(super) fn may_be_barred_from(&self, node: &Node) -> bool {
        let here = !matches!(node.body().upper, UpperAt::None);
        here && self.upper().is_ok_and(|up| !up.sees_trusted())
    }

    /// Opens a file of the upper for reading, or for both, whatever its mode says. The
    /// caller holds no lock.
    pub(super) fn open_barred(&self, node: &Arc<Node>, writes: bool) -> Result<OwnedFd> {
        const OP: &str = "open a file of the upper";
        let up = self.upper()?;
        let _tree = self.tree_exclusive();
        let spot = self.upper_spot(node)?.ok_or(Error::Stale)?;
        let file = spot.reach().during(OP)?;
        let stat = fstat(file.as_fd()).during(OP)?;
        let place = || {
            let at = node.body().upper.clone();
            Ok(match at {
                UpperAt::Linked(key) => Place::Index(key),
                UpperAt::Named => Place::At(self.upper_path(node)?),
                UpperAt::Held(_) | UpperAt::None => Place::Nowhere,
            })
        };
        let flags = OFlag::O_NONBLOCK | if writes { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        up.opened(file.as_fd(), &stat, place, || spot.open(flags).during(OP))
    }
}

impl Upper {
    /// Does what `act` does with an object of status `stat`, opened up if need be. Either
    /// nobody knows it, or it is about to go, or the tree is locked exclusively. `place` is
    /// where it is afterwards.
    pub(super) fn opened<T>(
        &self,
        object: BorrowedFd<'_>,
        stat: &FileStat,
        place: impl FnOnce() -> Result<Place>,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // What cannot be put back afterwards is not touched.
        if !is_barred(object, stat) || !keeps_set_gid(stat) {
            return act();
        }
        let mode = stat.st_mode & 0o7777;
        let note = self.note_mode(mode, place()?)?;
        let opened = chmod_path(object, Mode::from_bits_truncate(mode | owners(stat)));
        let done = act();
        if opened.is_ok() {
            chmod_path(object, Mode::from_bits_truncate(mode)).during("put back a mode")?;
        }
        if let Some(note) = note {
            unlinkat(&self.work, note.as_os_str(), UnlinkatFlags::NoRemoveDir)
                .during("forget a mode that was noted")?;
        }
        done
    }

    /// A path that a symbolic link cannot hold is not noted: a crash would then leave the
    /// object opened up.
    fn note_mode(&self, mode: u32, place: Place) -> Result<Option<OsString>> {
        let (sign, place) = match place {
            Place::At(path) => (' ', path.into_os_string()),
            Place::Index(key) => ('=', key),
            Place::Nowhere => return Ok(None),
        };
        let mut name = OsString::from(MODE);
        name.push(self.temp_name());
        let mut text = OsString::from(format!("{mode:o}{sign}"));
        text.push(place);
        match symlinkat(text.as_os_str(), &self.work, name.as_os_str()) {
            Ok(()) => Ok(Some(name)),
            Err(Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(Error::Layer { op: "note the mode of an object", errno }),
        }
    }

    /// Puts the mode back that the note `name` in the work directory tells, if it is one
    /// and the object is still opened up.
    pub(super) fn settle_mode(&self, name: &OsStr) -> Result<()> {
        if !name.as_bytes().starts_with(MODE.as_bytes()) {
            return Ok(());
        }
        let Ok(text) = readlinkat(&self.work, name) else { return Ok(()) };
        let Some((mode, in_index, path)) = parse_note(&text) else { return Ok(()) };
        let dir = match path.parent() {
            _ if in_index => Ok(Arc::clone(&self.links)),
            Some(dir) if !dir.as_os_str().is_empty() => {
                open_beneath(self.root.as_fd(), dir).map(Arc::new)
            }
            _ => Ok(Arc::clone(&self.root)),
        };
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Some(object) = dir.ok().and_then(|dir| openat(dir, name, flags, Mode::empty()).ok())
        else {
            return Ok(());
        };
        let stat = fstat(&object).during("stat what was opened up")?;
        let mut was = stat;
        was.st_mode = stat.st_mode & libc::S_IFMT | mode;
        if stat.st_mode & 0o7777 != mode | owners(&stat) || !may_be_barred(&was) {
            return Ok(());
        }
        chmod_path(object.as_fd(), Mode::from_bits_truncate(mode)).during("put back a mode")
    }
}

/// What a note says: a mode, whether the name is in the index, and the path or name.
fn parse_note(text: &OsStr) -> Option<(u32, bool, &Path)> {
    let at = text.as_bytes().iter().position(|byte| b" =".contains(byte))?;
    let (mode, path) = text.as_bytes().split_at(at);
    let mode = u32::from_str_radix(std::str::from_utf8(mode).ok()?, 8).ok()?;
    let (in_index, path) = (path[0] == b'=', Path::new(OsStr::from_bytes(&path[1..])));
    // A name in the index is one.
    let named = path.file_name() == Some(path.as_os_str());
    let fits = mode <= 0o7777 && (named || !in_index);
    fits.then_some((mode, in_index, path))
}

/// What an owner needs to do anything with an object.
fn owners(stat: &FileStat) -> u32 {
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { 0o700 } else { 0o600 }
}

/// Whether the mode of an object could bar its owner: others have one that means nothing,
/// or nothing here.
pub(super) fn may_be_barred(stat: &FileStat) -> bool {
    let kind = stat.st_mode & libc::S_IFMT;
    [libc::S_IFDIR, libc::S_IFREG].contains(&kind) && stat.st_mode & owners(stat) != owners(stat)
}

/// Whether the mode of an object of status `stat` bars this process, its owner.
pub(super) fn is_barred(object: BorrowedFd<'_>, stat: &FileStat) -> bool {
    let mut access = AccessFlags::R_OK | AccessFlags::W_OK;
    access.set(AccessFlags::X_OK, owners(stat) & 0o100 != 0);
    let all = || {
        let path = sys::fd_path(object);
        faccessat(AT_FDCWD, path.as_c_str(), access, AtFlags::AT_EACCESS)
    };
    may_be_barred(stat) && all() == Err(Errno::EACCES)
}

/// Whether its set-gid bit would outlive a chmod(2) by this process.
fn keeps_set_gid(stat: &FileStat) -> bool {
    let group = Gid::from_raw(stat.st_gid);
    stat.st_mode & libc::S_ISGID == 0
        || getegid() == group
        || getgroups().is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn anything_in_a_note_is_survived(text: Vec<u8>, mode in 0u32..0o20000, path in "[a-z=/ .]*") {
            parse_note(OsStr::from_bytes(&text));
            let note = format!("{mode:o} {path}");
            let read = (mode <= 0o7777).then(|| (mode, false, Path::new(&path)));
            prop_assert_eq!(parse_note(OsStr::new(&note)), read);
        }
    }

    #[test]
    fn notes_are_read_as_they_are_written() {
        for (text, want) in [
            ("555 a/b c", Some((0o555, false, "a/b c"))),
            ("2500 ", Some((0o2500, false, ""))),
            ("444=1-2f", Some((0o444, true, "1-2f"))),
            ("444 a=b", Some((0o444, false, "a=b"))),
            ("444=a/b", None),
            ("444=..", None),
            ("555", None),
            ("10000 a", None),
            ("-1 a", None),
            ("8 a", None),
            (" a", None),
        ] {
            let want = want.map(|(mode, index, path)| (mode, index, Path::new(path)));
            assert_eq!(parse_note(OsStr::new(text)), want, "{text}");
        }
    }
}
