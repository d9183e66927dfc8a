//! Merged directories: their index, and reading them.
//!
//! # Theory of operation
//! The first reader of a directory merges its layers into an index that stays
//! with the node and is kept up to date by every later change. So do lookups, once they
//! have asked the layers in vain as often as listing them is worth. A name keeps its
//! cookie as long as it exists, so that reading may go on at any cookie while
//! names come and go: each name that is there all along is seen exactly once,
//! also by a reader that shares the kernel's cached pages with another. Cookies
//! are never reused while the node is known.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use super::inode::{Ino, Lower, LowerDir, Node};
use super::merge::{MergedEntry, merge};
use super::{Attr, Overlay};
use crate::error::{Error, Result};
use crate::layer::list_at;
use crate::sync::Arc;

/// Cookies 1 and 2 are `.` and `..`.
pub(crate) const FIRST_COOKIE: u64 = 3;

/// Inode number of an entry of which no attributes are known (as with libfuse);
/// no node has it.
pub const UNKNOWN: Ino = 0xffff_ffff;

/// Missing names looked up in a directory after which it gets its index: each
/// costs two system calls a layer, and there will be more.
const MISSES: u8 = 8;

/// Calls that lookups may waste before it is reckoned what an index costs.
const WASTE: u32 = 32;
/// Bytes of a directory, on its disk, whose listing costs as much as a wasted call: some
/// four entries.
const BYTES_A_CALL: i64 = 128;

/// State of a directory; its lock is the lock for changing names in it.
#[derive(Debug, Default)]
pub(crate) struct DirState {
    index: Option<DirIndex>,
    /// Survives the index, so that cookies are not reused.
    next: u64,
    /// Names that were looked for without an index and not found.
    misses: u8,
    /// System calls that an index would have spared those who found what they looked for.
    spent: u32,
    /// So many are spent before it is made; `None`: not reckoned yet.
    worth: Option<u32>,
    /// It cannot be listed by this process: lookups do without.
    unlisted: bool,
    /// What it passes on to what is made in it, when that is known.
    pub(crate) passes_on: Option<PassesOn>,
}

/// What a directory passes on to new entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassesOn {
    /// Its group.
    pub(crate) set_gid: bool,
    /// A default ACL: then the umask does not count.
    pub(crate) acl: bool,
}

#[derive(Debug)]
struct DirIndex {
    entries: BTreeMap<u64, IndexEntry>,
    cookies: HashMap<Arc<OsStr>, u64>,
    /// The upper has no `.wh.` files here.
    unmarked: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) name: Arc<OsStr>,
    /// `S_IFMT` bits.
    pub(crate) kind: u32,
    pub(crate) place: Place,
}

/// Where the topmost object of a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The lower that has it; `None`: the upper.
    pub(crate) lower: Option<u16>,
    /// It is a directory, and further down there may be others of that name.
    pub(crate) merged: bool,
}

/// The upper directory (`O_PATH`), if there is one, and the lower ones.
type DirLayers = (Option<Arc<OwnedFd>>, Arc<[LowerDir]>);

/// What the index knows about a name.
pub(crate) enum Indexed {
    /// There is no index.
    Unknown,
    /// The directory has no such name.
    Absent,
    /// It has.
    Present(Place),
}

impl DirState {
    pub(crate) fn look(&self, name: &OsStr) -> Indexed {
        let Some(index) = &self.index else { return Indexed::Unknown };
        match index.cookies.get(name).and_then(|c| index.entries.get(c)) {
            Some(entry) => Indexed::Present(entry.place),
            None => Indexed::Absent,
        }
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.index.is_some()
    }

    /// The next directory that reading after `cookie` gives, among so many entries.
    pub(crate) fn subdirectory_after(&self, cookie: u64, far: usize) -> Option<(u64, Arc<OsStr>)> {
        let entries = self.index.as_ref()?.entries.range(cookie + 1..).take(far);
        let mut directories = entries.filter(|(_, entry)| entry.kind == libc::S_IFDIR);
        directories.next().map(|(cookie, entry)| (*cookie, Arc::clone(&entry.name)))
    }

    /// Where reading goes on after `name`.
    pub(crate) fn cookie(&self, name: &OsStr) -> Option<u64> {
        self.index.as_ref()?.cookies.get(name).copied()
    }

    /// Whether a name that is not shown can be made without looking for a `.wh.`
    /// file that hides it.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.index.as_ref().is_some_and(|index| index.unmarked)
    }

    /// A name that is in the upper now: made there, moved there or copied up.
    /// `merged`: it is a directory that lowers have, too.
    pub(crate) fn add(&mut self, name: &OsStr, kind: u32, merged: bool) {
        let Some(index) = &mut self.index else { return };
        let place = Place { lower: None, merged };
        if let Some(cookie) = index.cookies.get(name)
            && let Some(entry) = index.entries.get_mut(cookie)
        {
            entry.kind = kind;
            entry.place = place;
            return;
        }
        let name: Arc<OsStr> = name.into();
        let cookie = self.next;
        self.next += 1;
        index.cookies.insert(Arc::clone(&name), cookie);
        index.entries.insert(cookie, IndexEntry { name, kind, place });
    }

    pub(crate) fn remove(&mut self, name: &OsStr) {
        let Some(index) = &mut self.index else { return };
        if let Some(cookie) = index.cookies.remove(name) {
            index.entries.remove(&cookie);
        }
    }

    /// The directory was just made and has no names.
    pub(crate) fn start_empty(&mut self) {
        self.fill(Vec::new(), true);
    }

    fn fill(&mut self, merged: Vec<(MergedEntry, Option<u16>)>, unmarked: bool) {
        self.next = self.next.max(FIRST_COOKIE);
        let mut cookies = HashMap::with_capacity(merged.len());
        // Collected, not inserted one by one: that leaves every other place free.
        let entries = merged
            .into_iter()
            .map(|(entry, lower)| {
                let name: Arc<OsStr> = entry.name.into();
                let cookie = self.next;
                self.next += 1;
                cookies.insert(Arc::clone(&name), cookie);
                let place = Place { lower, merged: entry.merged };
                (cookie, IndexEntry { name, kind: entry.kind, place })
            })
            .collect();
        self.index = Some(DirIndex { entries, cookies, unmarked });
    }
}

impl Overlay {
    /// Makes sure that `state` (of `node`, locked) has its index.
    pub(crate) fn index(&self, node: &Arc<Node>, state: &mut DirState) -> Result<()> {
        if state.index.is_some() {
            return Ok(());
        }
        let (upper, lowers) = self.dir_layers(node)?;
        let mut unmarked = self.upper.as_ref().is_none_or(|up| !up.uses_marker_files());
        let mut listings = Vec::with_capacity(lowers.len() + 1);
        // Which lower each listing is of; `None` is the upper.
        let mut of = Vec::with_capacity(lowers.len() + 1);
        let mut open = true;
        if let Some(dir) = &upper {
            let listing = list_at(dir.as_fd())?;
            unmarked &= !listing.marked;
            // What hides the lowers was decided at lookup, for the node; a mark
            // that appeared since says nothing new.
            listings.push(listing);
            of.push(None);
        }
        for dir in lowers.iter() {
            if !open {
                break;
            }
            let mut listing = self.lowers[dir.layer].list(&dir.path)?;
            if self.options.public_lower {
                self.drop_private(dir, &mut listing)?;
            }
            open = !listing.opaque;
            listings.push(listing);
            of.push(u16::try_from(dir.layer).ok());
        }
        let merged = merge(listings);
        state.fill(
            merged
                .into_iter()
                .map(|entry| {
                    let lower = of[entry.top];
                    (entry, lower)
                })
                .collect(),
            unmarked,
        );
        Ok(())
    }

    /// What not every user of the host may read is not there; it still hides
    /// what is below it, as it would if it could be seen.
    fn drop_private(&self, dir: &LowerDir, listing: &mut crate::layer::Listing) -> Result<()> {
        use crate::layer::EntryKind;
        for entry in &mut listing.entries {
            if let EntryKind::Object(kind) = entry.kind
                && kind != libc::S_IFDIR
                && kind != libc::S_IFLNK
            {
                match self.lowers[dir.layer].stat(&dir.path, &entry.name) {
                    Ok(stat) if super::lookup::is_public(&stat) => {}
                    Ok(_) | Err(Error::Stale) => entry.kind = EntryKind::Whiteout,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Whether a directory (locked) shows no name.
    pub(crate) fn is_empty(&self, node: &Arc<Node>, state: &mut DirState) -> Result<bool> {
        self.index(node, state)?;
        Ok(state.index.as_ref().is_none_or(|i| i.entries.is_empty()))
    }

    /// The names after `cookie`, at most `limit`.
    pub(crate) fn entries_after(
        &self,
        node: &Arc<Node>,
        cookie: u64,
        limit: usize,
    ) -> Result<Vec<(u64, IndexEntry)>> {
        let _tree = self.tree_shared();
        let mut state = node.dir_state().ok_or(Error::NotDirectory)?;
        self.index(node, &mut state)?;
        let Some(index) = &state.index else { return Ok(Vec::new()) };
        let after = cookie.saturating_add(1)..;
        Ok(index.entries.range(after).take(limit).map(|(c, e)| (*c, e.clone())).collect())
    }

    /// Makes the index for lookups. Where a directory can be searched and not listed they
    /// go on without: it is for who reads it to be told.
    fn index_if_possible(&self, node: &Arc<Node>, state: &mut DirState) {
        state.unlisted = state.unlisted || self.index(node, state).is_err();
    }

    /// Notes that a name was looked for in vain; builds the index when it pays.
    pub(crate) fn missed(&self, node: &Arc<Node>, state: &mut DirState) {
        state.misses = state.misses.saturating_add(1);
        if state.misses >= MISSES {
            self.index_if_possible(node, state);
        }
    }

    /// Notes what finding a name has cost without an index, for which each layer above the
    /// one that has it has been asked in vain, and for a directory each below as well: makes
    /// the index once that has cost as much.
    pub(crate) fn found_the_long_way(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        found: &Lower,
    ) -> Result<()> {
        let (upper, lowers) = self.dir_layers(node)?;
        let vain = match found {
            Lower::File(layer, ..) => lowers.iter().position(|dir| dir.layer == *layer),
            Lower::Dirs(dirs, _) => lowers.len().checked_sub(dirs.len()),
            Lower::None => return Ok(()),
        };
        let layers = vain.unwrap_or(0) + usize::from(upper.is_some());
        // For the name, and for the `.wh.` file that would hide it.
        state.spent = state.spent.saturating_add(u32::try_from(2 * layers).unwrap_or(u32::MAX));
        if state.spent < state.worth.unwrap_or(WASTE) {
            return Ok(());
        }
        let worth = *state.worth.get_or_insert_with(|| {
            // What cannot even be looked at will not be listed either.
            u32::try_from(self.size(&lowers) / BYTES_A_CALL).unwrap_or(u32::MAX)
        });
        if state.spent >= worth {
            self.index_if_possible(node, state);
        }
        Ok(())
    }

    /// Bytes of directories on their disks.
    pub(crate) fn size(&self, lowers: &[LowerDir]) -> i64 {
        let size = |dir: &LowerDir| {
            let stat = self.lowers[dir.layer].stat(&dir.path, OsStr::new(""));
            stat.map_or(i64::MAX, |stat| stat.st_size)
        };
        lowers.iter().map(size).fold(0, i64::saturating_add)
    }

    /// The upper directory (`O_PATH`) behind a directory, if it has one, and its
    /// lower directories. The tree lock is held.
    pub(crate) fn dir_layers(&self, node: &Arc<Node>) -> Result<DirLayers> {
        let (upper, lowers) = {
            let body = node.body();
            let lowers = match &body.lower {
                Lower::Dirs(dirs, false) => Arc::clone(dirs),
                Lower::Dirs(_, true) | Lower::None => Arc::from([]),
                Lower::File(..) => return Err(Error::NotDirectory),
            };
            (body.upper.clone(), lowers)
        };
        match upper {
            super::inode::UpperAt::None => Ok((None, lowers)),
            super::inode::UpperAt::Named => Ok((Some(self.upper_dir(node)?), lowers)),
            // A removed directory has no names.
            _ => Ok((None, Arc::from([]))),
        }
    }

    /// Reads a directory from after `cookie` (0: from the start), handing each
    /// entry to `add` until it says that it has no room. With `count` each entry
    /// but `.` and `..` gets a lookup counted if it was taken.
    ///
    /// # Errors
    /// What the layers say. An entry that vanished meanwhile is left out.
    pub fn read_dir(
        &self,
        id: Ino,
        cookie: u64,
        count: bool,
        add: &mut dyn FnMut(u64, &OsStr, &Attr) -> bool,
    ) -> Result<()> {
        const BATCH: usize = 128;
        let node = self.node(id)?;
        if cookie == 0 {
            self.begins(&node);
        }
        let mut at = cookie;
        // Of these two nothing else is asked.
        let directory = Attr { mode: libc::S_IFDIR, ..Attr::default() };
        if at < 1 {
            let attr = Attr { ino: id, ..directory };
            if !add(1, OsStr::new("."), &attr) {
                return Ok(());
            }
            at = 1;
        }
        if at < 2 {
            let parent = node.body().place.as_ref().map_or(id, |(p, _)| p.id);
            let attr = Attr { ino: parent, ..directory };
            if !add(2, OsStr::new(".."), &attr) {
                return Ok(());
            }
            at = 2;
        }
        loop {
            let entries = self.entries_after(&node, at, BATCH)?;
            let last = entries.len() < BATCH;
            for (cookie, entry) in entries {
                let before = std::mem::replace(&mut at, cookie);
                let (child, attr) = match self.entry(&node, cookie, &entry.name, count) {
                    Ok(Some(found)) => found,
                    Ok(None) | Err(Error::Stale) => continue,
                    // There is such a name, but nothing can be said of it.
                    Err(Error::Redirect { .. }) => {
                        let attr = Attr { ino: UNKNOWN, mode: entry.kind, ..Attr::default() };
                        if !add(cookie, &entry.name, &attr) {
                            return Ok(());
                        }
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                if !add(cookie, &entry.name, &attr) {
                    if count {
                        let id = child.id;
                        drop(child);
                        self.inodes.forget(id, 1);
                    } else {
                        self.inodes.purge(child);
                    }
                    self.has_read(&node, before, false);
                    return Ok(());
                }
                if !count {
                    self.inodes.purge(child);
                }
            }
            if last {
                self.has_read(&node, at, true);
                return Ok(());
            }
        }
    }

    /// One entry of a directory as lookup gives it, if it is still there; `count`
    /// adds a lookup.
    pub(crate) fn entry(
        &self,
        dir: &Arc<Node>,
        cookie: u64,
        name: &Arc<OsStr>,
        count: bool,
    ) -> Result<Option<(Arc<Node>, Attr)>> {
        let _tree = self.tree_shared();
        // Until the node is made: a copy-up in between would not be known to it.
        let state = dir.dir_state().ok_or(Error::NotDirectory)?;
        let mut found = match state.look(name) {
            Indexed::Absent => None,
            Indexed::Present(place) => match self.ahead.take(dir.id, (cookie, name), place) {
                Some(mut found) => {
                    found.identity.place = Some((Arc::clone(dir), Arc::clone(name)));
                    Some(found)
                }
                None => self.find(dir, name, Some(place))?,
            },
            Indexed::Unknown => self.find(dir, name, None)?,
        };
        // The node, of which there may be many, keeps no name of its own.
        if let Some(found) = &mut found {
            found.identity.share_name(name);
        }
        Ok(found.map(|found| self.intern(found, count)))
    }
}
