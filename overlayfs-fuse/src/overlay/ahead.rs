//! Looking at what a directory has before somebody reads it.
//!
//! # Theory of operation
//! Who reads a large directory asks for piece after piece. Programs that walk a tree read
//! a directory, work on what it has, and read the next one: its first subdirectory, or
//! else the next sibling, or that of the nearest ancestor that has one. While the client
//! works nobody asks anything, and once it asks it waits until the layers have been listed
//! and each entry has been looked at. So a server that has nothing else to do takes
//! [`Overlay::prepare`] to do that before, in steps so small that a request in between
//! need not wait.
//!
//! What is kept is what lowers alone say, which does not change. A name that is in the
//! upper by the time it is read is looked at then.

use std::collections::VecDeque;
use std::ffi::OsStr;

use super::Overlay;
use super::directory::{IndexEntry, Place};
use super::inode::{Ino, Inodes, Node, UpperAt};
use super::lookup::Found;
use crate::error::Result;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};

/// Entries looked at in one step.
const STEP: usize = 8;
/// Entries that are looked at before they are asked for: more than one READDIRPLUS takes.
const MOST: usize = 256;
/// Directories larger than this, bytes on their disks, are not listed in one step.
const LARGE: i64 = 64 << 10;
/// Entries and ancestors among which the next directory is looked for.
const FAR: usize = 256;

/// A node that nobody asks for now, which the kernel may forget at any moment.
struct Held<'a> {
    node: Option<Arc<Node>>,
    of: &'a Inodes,
}

impl std::ops::Deref for Held<'_> {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        self.node.as_ref().expect("there is one until it is dropped")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.of.purge(node);
        }
    }
}

/// What was looked at, and what is to be.
#[derive(Default)]
pub(crate) struct Ahead {
    /// There is a step to take.
    due: AtomicBool,
    /// Entries looked at, and those of them that were then asked for.
    pub(crate) looked: AtomicU64,
    pub(crate) used: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The directory that was read last from its beginning.
    last: Ino,
    /// Who reads it walks the tree, and what comes after it has not been looked for.
    walked: bool,
    step: Option<Step>,
    /// Of the directory `of`, in the order of the cookies.
    of: Ino,
    ready: VecDeque<Ready>,
}

struct Ready {
    cookie: u64,
    /// A directory that was forgotten meanwhile may have given its cookies to others.
    name: Arc<OsStr>,
    /// What the index said.
    place: Place,
    /// Without the place in the tree.
    found: Found,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Find out which directory comes after this one.
    After(Ino),
    /// List this one.
    List(Ino),
    /// Look at its entries after this cookie; so many have been looked at.
    Entries(Ino, u64, usize),
}

impl Ahead {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is locked")
    }

    fn next(&self, state: &mut State, step: Option<Step>) {
        state.step = step;
        self.due.store(step.is_some(), Ordering::Relaxed);
    }

    /// What the lowers say of an entry, if it has been looked at and is still where it was.
    pub(crate) fn take(
        &self,
        dir: Ino,
        (cookie, name): (u64, &OsStr),
        place: Place,
    ) -> Option<Found> {
        let mut state = self.state();
        if state.of != dir {
            return None;
        }
        while state.ready.front().is_some_and(|ready| ready.cookie < cookie) {
            state.ready.pop_front();
        }
        state.ready.front().filter(|ready| ready.cookie == cookie)?;
        let ready = state.ready.pop_front()?;
        let found = (ready.place == place && *ready.name == *name).then_some(ready.found)?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }
}

impl Overlay {
    /// Notes that a directory is about to be read from its beginning.
    pub(crate) fn begins(&self, node: &Arc<Node>) {
        let last = std::mem::replace(&mut self.ahead.state().last, node.id);
        let walked = last != node.id && self.walks(last, node);
        self.ahead.state().walked = walked;
    }

    /// Notes that it has been read up to `cookie`, or to its end.
    pub(crate) fn has_read(&self, node: &Arc<Node>, cookie: u64, end: bool) {
        let mut state = self.ahead.state();
        if !end {
            self.ahead.next(&mut state, Some(Step::Entries(node.id, cookie, 0)));
        } else if state.last == node.id && std::mem::take(&mut state.walked) {
            self.ahead.next(&mut state, Some(Step::After(node.id)));
        }
    }

    /// Whether who reads `node` after `last` walks the tree: `node` is in `last`, or
    /// beside it or one of its ancestors.
    fn walks(&self, last: Ino, node: &Arc<Node>) -> bool {
        let parent = |node: &Node| {
            let place = node.body().place.clone();
            place.map(|(parent, _)| self.held(parent))
        };
        let Some(above) = parent(node) else { return false };
        let mut at = self.inodes.get(last).map(|node| self.held(node));
        for _ in 0..FAR {
            let Some(node) = at else { return false };
            if node.id == above.id {
                return true;
            }
            at = parent(&node);
        }
        false
    }

    fn held(&self, node: Arc<Node>) -> Held<'_> {
        Held { node: Some(node), of: &self.inodes }
    }

    /// Whether there is a step to take.
    pub fn could_prepare(&self) -> bool {
        self.ahead.due.load(Ordering::Relaxed)
    }

    /// Takes a step of what may spare the next request time. `false`: there was none.
    pub fn prepare(&self) -> bool {
        if !self.could_prepare() {
            return false;
        }
        let step = self.ahead.state().step;
        // Whoever reads the directory will be told of errors.
        let next = step.and_then(|step| self.step(step).ok().flatten());
        let mut state = self.ahead.state();
        // Another may be due meanwhile.
        if state.step == step {
            self.ahead.next(&mut state, next);
        }
        step.is_some()
    }

    fn step(&self, step: Step) -> Result<Option<Step>> {
        match step {
            Step::After(id) => self.next_directory(self.held(self.node(id)?)),
            Step::List(id) => {
                let node = self.held(self.node(id)?);
                let _tree = self.tree_shared();
                let Some(mut state) = node.dir_state() else { return Ok(None) };
                if state.is_indexed() || self.size(&self.dir_layers(&node)?.1) > LARGE {
                    return Ok(None);
                }
                self.index(&node, &mut state)?;
                Ok(Some(Step::Entries(id, 0, 0)))
            }
            Step::Entries(id, after, done) => {
                let node = self.held(self.node(id)?);
                let entries = self.entries_after(&node, after, STEP)?;
                let Some((last, _)) = entries.last() else { return Ok(None) };
                let more = entries.len() == STEP && done + STEP < MOST;
                let next = more.then_some(Step::Entries(id, *last, done + STEP));
                for (cookie, entry) in entries {
                    self.look_ahead(&node, cookie, &entry)?;
                }
                Ok(next)
            }
        }
    }

    /// The directory that a walk reads after `dir`.
    fn next_directory<'a>(&'a self, mut dir: Held<'a>) -> Result<Option<Step>> {
        let mut after = 0;
        for _ in 0..FAR {
            let found = {
                let state = dir.dir_state();
                state.and_then(|state| state.subdirectory_after(after, FAR))
            };
            if let Some((cookie, name)) = found {
                let Some((child, _)) = self.entry(&dir, cookie, &name, false)? else {
                    return Ok(None);
                };
                return Ok(Some(Step::List(self.held(child).id)));
            }
            let place = dir.body().place.clone();
            let Some((parent, name)) = place else { return Ok(None) };
            let parent = self.held(parent);
            let cookie = parent.dir_state().and_then(|state| state.cookie(&name));
            let Some(cookie) = cookie else { return Ok(None) };
            (dir, after) = (parent, cookie);
        }
        Ok(None)
    }

    fn look_ahead(&self, dir: &Arc<Node>, cookie: u64, entry: &IndexEntry) -> Result<()> {
        if entry.place.lower.is_none() {
            return Ok(());
        }
        let _tree = self.tree_shared();
        let Some(mut found) = self.find(dir, &entry.name, Some(entry.place))? else {
            return Ok(());
        };
        // Of a file with several names, another may be copied up.
        if found.identity.lower_links || !matches!(found.identity.upper, UpperAt::None) {
            return Ok(());
        }
        // A node that nobody knows any more is not to be kept.
        found.identity.place = None;
        let mut state = self.ahead.state();
        if state.of != dir.id || state.ready.back().is_some_and(|last| last.cookie >= cookie) {
            state.ready.clear();
            state.of = dir.id;
        }
        let name = Arc::clone(&entry.name);
        state.ready.push_back(Ready { cookie, name, place: entry.place, found });
        self.ahead.looked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
