//! Removing names.
//!
//! A name that a lower has is hidden by a whiteout; nothing is copied up for it
//! but the directories on the way. What the kernel still refers to stays usable:
//! the last name of an upper object is exchanged for a descriptor, which also
//! keeps its inode number from being used again; a lower object is where it was.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

use super::barred::{Place, is_barred, may_be_barred};
use super::directory::Indexed;
use super::inode::{Ino, Lower, Node, UpperAt};
use super::object::Object;
use super::upper::Upper;
use super::{Overlay, check_name};
use crate::error::{During, Error, Result};
use crate::sync::Arc;

impl Overlay {
    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `ReadOnly`, or what the upper says.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `ReadOnly`, or what the upper says.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<()> {
        check_name(name)?;
        let parent = self.node(parent)?;
        self.copy_up_dir(&parent)?;
        match self.remove_with(&parent, name, directory, false)? {
            Some(()) => Ok(()),
            None => self.remove_with(&parent, name, directory, true).map(drop),
        }
    }

    /// `None`: the tree has to be locked exclusively for it.
    fn remove_with(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        directory: bool,
        exclusively: bool,
    ) -> Result<Option<()>> {
        let up = self.upper()?;
        let _tree = self.lock_tree(exclusively);
        let mut state = parent.dir_state().ok_or(Error::NotDirectory)?;
        let known = match state.look(name) {
            Indexed::Absent => return Err(Error::NotFound),
            Indexed::Present(place) => Some(place),
            Indexed::Unknown => None,
        };
        let found = self.find(parent, name, known)?.ok_or(Error::NotFound)?;
        let present = found.present;
        match (found.identity.kind == libc::S_IFDIR, directory) {
            (true, false) => return Err(Error::IsDirectory),
            (false, true) => return Err(Error::NotDirectory),
            _ => {}
        }
        let stat = found.stat;
        let (node, attr) = self.intern(found, false);
        let result = (|| {
            let (dir, lowers) = self.dir_layers(parent)?;
            let dir = dir.ok_or(Error::NotFound)?;
            let place = || Ok(Place::At(self.upper_path(parent)?.join(name)));
            if directory && present.is_some() && may_be_barred(&stat) {
                let own = self.upper_dir(&node)?;
                // It may be there to stay: nobody is to see it opened up.
                if !exclusively && is_barred(own.as_fd(), &stat) {
                    return Ok(None);
                }
                up.opened(own.as_fd(), &stat, place, || self.require_empty(&node))?;
            } else if directory {
                self.require_empty(&node)?;
            }
            // What is shown from a lower is there.
            let hides = present.is_none() || self.lower_has(&lowers, name)?;
            let held = self.hold(&dir, name, &node, present.is_some())?;
            let last =
                self.announce_last(up, &node, parent, name, present.is_some(), attr.nlink)?;
            let _naming = node.naming();
            let remove = || match present {
                _ if hides => up.place_whiteout(dir.as_fd(), name, present),
                Some(kind) => up.remove_entry(dir.as_fd(), name, kind),
                None => Ok(()),
            };
            let removed = match &held {
                // It may hold whiteouts.
                Some(held) if directory => up.opened(held.as_fd(), &stat, place, remove),
                _ => remove(),
            };
            if let (Err(_), Some(key)) = (&removed, last) {
                up.forget_last(&key)?;
            }
            removed?;
            state.remove(name);
            self.name_gone(up, &node, parent, name, held, attr.nlink).map(Some)
        })();
        drop(state);
        self.inodes.purge(node);
        result
    }

    /// Fails unless a directory shows no name.
    pub(crate) fn require_empty(&self, node: &Arc<Node>) -> Result<()> {
        let mut state = node.dir_state().ok_or(Error::NotDirectory)?;
        if self.is_empty(node, &mut state)? { Ok(()) } else { Err(Error::NotEmpty) }
    }

    /// A descriptor of the upper object whose name is about to go. Always taken:
    /// whether the kernel refers to it can change at any moment.
    pub(crate) fn hold(
        &self,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        node: &Arc<Node>,
        in_upper: bool,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let named = {
            let body = node.body();
            matches!(body.upper, UpperAt::Named)
        };
        if !in_upper || !named {
            return Ok(None);
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(dir.as_fd(), name, flags, Mode::empty()).during("hold what is removed")?;
        self.remember_data(node, &fd);
        Ok(Some(Arc::new(fd)))
    }

    /// `node` is about to lose the name `name` in `parent`, which the upper has or not. If
    /// that is the last of a copy in the index, a crash is to leave none there: it is
    /// noted, by the copy's key, until the name is gone or stays after all.
    pub(crate) fn announce_last(
        &self,
        up: &Upper,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &OsStr,
        in_upper: bool,
        links: u32,
    ) -> Result<Option<OsString>> {
        let key = match &node.body().upper {
            UpperAt::Linked(key) if links <= 1 => key.clone(),
            _ => return Ok(None),
        };
        up.note_last(&key, &self.upper_path(parent)?.join(name), in_upper)?;
        Ok(Some(key))
    }

    /// Notes that `node` has lost the name `name` in `parent`; `links` is how
    /// many names it showed before. Its name is locked.
    pub(crate) fn name_gone(
        &self,
        up: &Upper,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &OsStr,
        held: Option<Arc<OwnedFd>>,
        links: u32,
    ) -> Result<()> {
        let mut body = node.body();
        let here = body.is_at(parent, name);
        match body.upper.clone() {
            UpperAt::None => {
                body.nlink_delta -= 1;
                if here {
                    body.place = None;
                }
                drop(body);
                if links > 1 {
                    self.lower_name_gone(up, node)?;
                }
            }
            UpperAt::Linked(key) => {
                // Another name may be known by then; none is needed to reach it.
                if here {
                    body.place = None;
                }
                drop(body);
                self.link_gone(up, node, &key, links)?;
            }
            UpperAt::Named => {
                if let Some(fd) = held
                    && here
                {
                    body.upper = UpperAt::Held(Arc::clone(&fd));
                    body.place = None;
                    drop(body);
                    self.name_was_last(node, fd.as_fd())?;
                } else if !here && !matches!(body.lower, Lower::None) {
                    // A name that only a lower had, of a node copied up by
                    // another name and not in the index.
                    body.nlink_delta = (body.nlink_delta - 1).max(0);
                }
            }
            UpperAt::Held(_) => {}
        }
        Ok(())
    }

    /// A lower file of several names that was not copied up has lost one: those
    /// that are left are to show it, also when the node is forgotten.
    fn lower_name_gone(&self, up: &Upper, node: &Arc<Node>) -> Result<()> {
        let Ok((layer, path, name)) = super::attr::lower_of(node) else { return Ok(()) };
        if node.is_dir() {
            return Ok(());
        }
        let stat = self.lowers[layer].stat(&path, &name)?;
        let Some(origin) = self.origin_of(layer, &stat) else { return Ok(()) };
        let links = i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
        up.set_lost_names(&origin.key(), || {
            let body = node.body();
            let left = links.saturating_add(body.nlink_delta);
            (matches!(body.upper, UpperAt::None) && left > 0).then_some(-body.nlink_delta)
        })
    }

    /// A copied-up hard link lost a name: counts, and when it was the last,
    /// empties its place in the index.
    fn link_gone(&self, up: &Upper, node: &Arc<Node>, key: &OsStr, links: u32) -> Result<()> {
        let stat = match fstatat(&up.links, key, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Err(Error::Stale),
            Err(errno) => return Err(Error::Layer { op: "look into the link index", errno }),
        };
        let shown = i64::from(links) - 1;
        // Names on disk besides the index; the rest are lower-only.
        let delta = shown - (i64::try_from(stat.st_nlink).unwrap_or(i64::MAX) - 1);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&up.links, key, flags, Mode::empty()).during("reach a hard link")?;
        let object = Object::Path(Arc::new(fd));
        if shown <= 0 {
            up.remove_link(key, stat.st_ino)?;
            up.forget_last(key)?;
            let mut body = node.body();
            body.upper = UpperAt::Held(Arc::clone(object.descriptor()));
            body.place = None;
            body.nlink_delta = 0;
            drop(body);
            return self.name_was_last(node, object.as_fd());
        }
        up.set_nlink_delta(&object, key, delta)?;
        node.body().nlink_delta = delta;
        Ok(())
    }
}

/// The type of what the upper has under a name; a whiteout is nothing.
pub(crate) fn upper_kind(dir: &Arc<OwnedFd>, name: &OsStr) -> Result<Option<u32>> {
    match fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if super::whiteout::is_whiteout_device(&stat) => Ok(None),
        Ok(stat) => Ok(Some(stat.st_mode & libc::S_IFMT)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::Layer { op: "look up a name", errno }),
    }
}
