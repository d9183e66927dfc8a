//! Renaming.
//!
//! The source is copied up first; then one renameat2(2) in the upper does it,
//! leaving a whiteout behind where a lower has the old name
//! (`RENAME_WHITEOUT`). What else is needed is done before, in an order in which
//! every state in between shows the old tree. A directory that a lower has first
//! says where its lower part stays (see [`super::redirect`]).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::barred::Place;
use super::directory::DirState;
use super::inode::{Ino, Node, UpperAt};
use super::object::Object;
use super::redirect::has_lower_part;
use super::remove::upper_kind;
use super::upper::Upper;
use super::{Overlay, check_name, whiteout};
use crate::error::{During, Error, Result};
use crate::sync::Arc;
use crate::sync::{MutexGuard, RwLockWriteGuard};

/// One end of a rename.
struct End<'a> {
    parent: Arc<Node>,
    name: &'a OsStr,
    dir: Arc<OwnedFd>,
    /// A lower has the name.
    covered: bool,
}

impl Overlay {
    /// Renames `name` of `parent` to `new_name` of `new_parent`; `flags` as
    /// renameat2(2), without `RENAME_WHITEOUT`.
    ///
    /// # Errors
    /// `CrossDevice` for a directory that a lower has, unless redirects are written; `Exists` with
    /// `RENAME_NOREPLACE`; `NotEmpty`; or what the upper says.
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let no_replace = flags & libc::RENAME_NOREPLACE != 0;
        if flags & !(libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE) != 0
            || (exchange && no_replace)
        {
            return Err(Error::Invalid("no such way to rename"));
        }
        let up = self.upper()?;
        let parent = self.node(parent)?;
        let new_parent = self.node(new_parent)?;
        let source = self.child(&parent, name)?.ok_or(Error::NotFound)?;
        let target = self.child(&new_parent, new_name)?;
        let result = (|| {
            if target.is_some() && no_replace {
                return Err(Error::Exists);
            }
            self.ready_to_move(&source)?;
            match &target {
                Some(target) if exchange => self.ready_to_move(target)?,
                None if exchange => return Err(Error::NotFound),
                _ => {}
            }
            self.copy_up_dir(&parent)?;
            self.copy_up_dir(&new_parent)?;
            let moves_dir =
                source.is_dir() || (exchange && target.as_ref().is_some_and(|t| t.is_dir()));
            let (shared, exclusive);
            if moves_dir {
                exclusive = Some(self.tree_exclusive());
                shared = None;
            } else {
                shared = Some(self.tree_shared());
                exclusive = None;
            }
            let (mut state, mut new_state) = lock_both(&parent, &new_parent)?;
            let old = self.end(&parent, name)?;
            let new = self.end(&new_parent, new_name)?;
            self.materialise(up, &source, &old)?;
            let new_state_ref = new_state.as_deref_mut();
            if exchange {
                let target = target.as_ref().ok_or(Error::NotFound)?;
                self.exchange(up, &source, target, &old, &new)?;
                state.add(name, target.kind, has_lower_part(target));
                let merged = has_lower_part(&source);
                new_state_ref.unwrap_or(&mut state).add(new_name, source.kind, merged);
            } else {
                self.replace(up, &source, target.as_ref(), &old, &new)?;
                let merged = has_lower_part(&source);
                state.remove(name);
                new_state_ref.unwrap_or(&mut state).add(new_name, source.kind, merged);
            }
            drop((shared, exclusive));
            Ok(())
        })();
        self.inodes.purge(source);
        if let Some(target) = target {
            self.inodes.purge(target);
        }
        result
    }

    /// The node under a name, without counting a lookup.
    fn child(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Option<Arc<Node>>> {
        let _tree = self.tree_shared();
        // Until the node is made: a copy-up in between would not be known to it.
        let _state = parent.dir_state().ok_or(Error::NotDirectory)?;
        let found = self.find(parent, name, None)?;
        Ok(found.map(|f| self.intern(f, false).0))
    }

    fn ready_to_move(&self, node: &Arc<Node>) -> Result<()> {
        if node.is_dir() {
            return self.ready_to_redirect(node);
        }
        self.copy_up(node, None)?;
        self.complete(node)
    }

    fn end<'a>(&self, parent: &Arc<Node>, name: &'a OsStr) -> Result<End<'a>> {
        let (dir, lowers) = self.dir_layers(parent)?;
        let dir = dir.ok_or(Error::NotFound)?;
        let covered = self.lower_has(&lowers, name)?;
        Ok(End { parent: Arc::clone(parent), name, dir, covered })
    }

    /// Gives a copied-up hard link the name in the upper that so far only a
    /// lower has.
    fn materialise(&self, up: &Upper, node: &Arc<Node>, end: &End<'_>) -> Result<()> {
        if upper_kind(&end.dir, end.name)?.is_some() {
            return Ok(());
        }
        let spot = self.upper_spot(node)?.ok_or(Error::Stale)?;
        super::create::link_spot(&spot, end.dir.as_fd(), end.name)?;
        let delta = {
            let mut body = node.body();
            body.nlink_delta -= 1;
            body.place.get_or_insert_with(|| (Arc::clone(&end.parent), end.name.into()));
            match &body.upper {
                UpperAt::Linked(key) => Some((key.clone(), body.nlink_delta)),
                _ => None,
            }
        };
        if let Some((key, delta)) = delta {
            let object = Object::Path(spot.reach().during("reach a hard link")?);
            up.set_nlink_delta(&object, &key, delta)?;
        }
        Ok(())
    }

    fn replace(
        &self,
        up: &Upper,
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        old: &End<'_>,
        new: &End<'_>,
    ) -> Result<()> {
        let mut gone = None;
        if let Some(target) = target {
            if Arc::ptr_eq(source, target) {
                return Ok(());
            }
            match (source.is_dir(), target.is_dir()) {
                (true, false) => return Err(Error::NotDirectory),
                (false, true) => return Err(Error::IsDirectory),
                _ => {}
            }
            let links = self.attr(target)?.nlink;
            let present = upper_kind(&new.dir, new.name)?;
            if present == Some(libc::S_IFDIR) {
                self.opened_at(up, new, |_| self.require_empty(target))?;
            } else if target.is_dir() {
                self.require_empty(target)?;
            }
            let held = self.hold(&new.dir, new.name, target, present.is_some())?;
            let in_upper = present.is_some();
            let last = self.announce_last(up, target, &new.parent, new.name, in_upper, links)?;
            gone = Some((held, links, last));
            if present == Some(libc::S_IFDIR) {
                self.opened_at(up, new, |dir| empty_for_good(up, dir))?;
            }
        }
        let _naming = match self.take_place(up, source, target, old, new) {
            Ok(naming) => naming,
            Err(e) => {
                if let Some((_, _, Some(key))) = gone {
                    up.forget_last(&key)?;
                }
                return Err(e);
            }
        };
        moved(source, old, new);
        up.remove_marker(new.dir.as_fd(), new.name)?;
        if let (Some(target), Some((held, links, _))) = (target, gone) {
            self.name_gone(up, target, &new.parent, new.name, held, links)?;
        }
        Ok(())
    }

    /// The rename itself, and what has to be on disk before. The names stay locked.
    fn take_place<'a>(
        &self,
        up: &Upper,
        source: &'a Arc<Node>,
        target: Option<&'a Arc<Node>>,
        old: &End<'_>,
        new: &End<'_>,
    ) -> Result<(Naming<'a>, Option<Naming<'a>>)> {
        self.say_what_is_below(up, source, old, new)?;
        let over_whiteout = match fstatat(new.dir.as_fd(), new.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => whiteout::is_whiteout_device(&stat),
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(Error::Layer { op: "look up a name", errno }),
        };
        let naming = lock_names(source, target);
        if source.is_dir() && over_whiteout {
            // A directory cannot replace a device, but change places with it;
            // the whiteout then is where one is wanted, or superfluous.
            let flags = RenameFlags::RENAME_EXCHANGE;
            renameat2(old.dir.as_fd(), old.name, new.dir.as_fd(), new.name, flags)
                .during("rename")?;
            if !old.covered {
                unlinkat(old.dir.as_fd(), old.name, UnlinkatFlags::NoRemoveDir)
                    .during("remove a whiteout")?;
            }
        } else {
            self.plain_rename(up, old, new)?;
        }
        Ok(naming)
    }

    fn plain_rename(&self, up: &Upper, old: &End<'_>, new: &End<'_>) -> Result<()> {
        let (from, to) = (old.dir.as_fd(), new.dir.as_fd());
        if old.covered {
            match renameat2(from, old.name, to, new.name, RenameFlags::RENAME_WHITEOUT) {
                Ok(()) => return Ok(()),
                // Not on this file system, or not for us: two steps.
                Err(Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(Error::Layer { op: "rename", errno }),
            }
        }
        renameat2(from, old.name, to, new.name, RenameFlags::empty()).during("rename")?;
        if old.covered { up.place_whiteout(from, old.name, None) } else { Ok(()) }
    }

    /// Prepares a directory for its move: what it shows of the lowers must not
    /// change with the place.
    fn say_what_is_below(
        &self,
        up: &Upper,
        node: &Arc<Node>,
        from: &End<'_>,
        to: &End<'_>,
    ) -> Result<()> {
        if !node.is_dir() {
            return Ok(());
        }
        let same_parent = Arc::ptr_eq(&from.parent, &to.parent);
        if has_lower_part(node) {
            self.opened_at(up, from, |dir| self.redirect(up, node, dir, same_parent))
        } else if to.covered {
            self.opened_at(up, from, |dir| up.set_opaque(dir))
        } else {
            Ok(())
        }
    }

    /// Does something with a directory of the upper that its mode may not allow. The tree
    /// is locked exclusively.
    fn opened_at(
        &self,
        up: &Upper,
        at: &End<'_>,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(&at.dir, at.name, flags, Mode::empty()).during("reach a directory")?;
        let stat = fstat(&dir).during("stat a directory")?;
        let place = || Ok(Place::At(self.upper_path(&at.parent)?.join(at.name)));
        up.opened(dir.as_fd(), &stat, place, || act(dir.as_fd()))
    }

    fn exchange(
        &self,
        up: &Upper,
        source: &Arc<Node>,
        target: &Arc<Node>,
        old: &End<'_>,
        new: &End<'_>,
    ) -> Result<()> {
        self.materialise(up, target, new)?;
        self.say_what_is_below(up, source, old, new)?;
        self.say_what_is_below(up, target, new, old)?;
        let flags = RenameFlags::RENAME_EXCHANGE;
        let (from, to) = (old.dir.as_fd(), new.dir.as_fd());
        if Arc::ptr_eq(source, target) {
            return renameat2(from, old.name, to, new.name, flags).during("exchange");
        }
        let _naming = lock_names(source, Some(target));
        renameat2(from, old.name, to, new.name, flags).during("exchange")?;
        let was_there = target.body().is_at(&new.parent, new.name);
        moved(source, old, new);
        if was_there {
            target.body().place = Some((Arc::clone(&old.parent), old.name.into()));
        }
        Ok(())
    }
}

type Naming<'a> = RwLockWriteGuard<'a, ()>;

/// Locks the names of one or two nodes, in the order of their ids.
fn lock_names<'a>(
    one: &'a Arc<Node>,
    other: Option<&'a Arc<Node>>,
) -> (Naming<'a>, Option<Naming<'a>>) {
    match other {
        Some(other) if other.id < one.id => {
            let second = other.naming();
            (one.naming(), Some(second))
        }
        other => (one.naming(), other.map(|other| other.naming())),
    }
}

/// The node's place moves along if it was the old name.
fn moved(node: &Arc<Node>, old: &End<'_>, new: &End<'_>) {
    let mut body = node.body();
    if body.is_at(&old.parent, old.name) {
        body.place = Some((Arc::clone(&new.parent), new.name.into()));
    }
}

type StateGuard<'a> = MutexGuard<'a, DirState>;

/// Locks one or two directories, in the order of their ids.
fn lock_both<'a>(
    a: &'a Arc<Node>,
    b: &'a Arc<Node>,
) -> Result<(StateGuard<'a>, Option<StateGuard<'a>>)> {
    let lock = |n: &'a Arc<Node>| n.dir_state().ok_or(Error::NotDirectory);
    if Arc::ptr_eq(a, b) {
        return Ok((lock(a)?, None));
    }
    if a.id < b.id {
        let first = lock(a)?;
        let second = lock(b)?;
        Ok((first, Some(second)))
    } else {
        let second = lock(b)?;
        let first = lock(a)?;
        Ok((first, Some(second)))
    }
}

/// Empties a directory of the upper that shows no name, so that a rename may
/// replace it. Opaque first: its whiteouts can then go without anything that
/// they hid being seen.
fn empty_for_good(up: &Upper, dir: BorrowedFd<'_>) -> Result<()> {
    if super::upper::has_entries(dir)? {
        up.set_opaque(dir)?;
        super::upper::remove_contents(dir)?;
    }
    Ok(())
}
