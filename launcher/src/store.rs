//! What is kept of containers between commands.
//!
//! # Theory of operation
//!
//! The data directory is `$XDG_DATA_HOME/coracle`, else `~/.local/share/coracle`:
//!
//! ```text
//! lock                     taken for as long as names are given out or taken away
//! mnt/                     empty: where each container, in its own mount namespace, has
//!                          memory of its own, see [`crate::plan::scratch`]
//! cache/                   what can be computed again (compiled seccomp filters), and
//! cache/spare              what the next container's directory can be, see [`spare`]
//! containers/NAME/         mode 0700
//!   lock                   held by the monitor for its whole life; has the exit code
//!                          after it
//!   control                socket of the monitor's, see [`crate::stage::monitor`]
//!   state.json             what was asked for and what came of it, see [`State`];
//!                          replaced as a whole (rename)
//!   log log.times          what a detached workload printed, and when, see [`log`]
//!   upper work             for the root filesystem, when kept here
//! containers/.gone-*       on its way out: renamed first, so that the name is free at once
//! ```
//!
//! A container is alive exactly while someone holds its lock: the kernel lets
//! go of a lock when its holder dies, however it dies. `flock` belongs to the
//! open file, so every process forked from the monitor must close the
//! descriptor, or the container seems to live on.
//!
//! Invariants:
//! * A container's directory is made, and its lock taken, under the store's
//!   lock. So nobody holding the store's lock ever sees a directory between the
//!   two, and a free lock means that its owner is gone.
//! * Only the holder of a container's lock writes in its directory or removes it.
//! * Names of directories that are not containers start with a dot, which no
//!   container's name does.
//!
//! What a crash leaves is put right by [`Store::sweep`], which every start calls.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::database;
use crate::idmap::IdMap;
use crate::plan::scratch;
use crate::spec::{Spec, Upper, is_name};

mod entry;
mod files;
pub mod log;
mod names;
mod spare;
mod state;

pub use entry::Watch;
use entry::is_owned;
pub(crate) use files::replace;
use files::{at, open_lock, private_dir, remove_tree, replace_passing, take};
pub use state::{Process, State, Status};

/// A failure to keep, find or remove a container's state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Neither the environment nor the user database says where to keep things.
    #[error("no data directory: neither XDG_DATA_HOME nor HOME is set to an absolute path")]
    NoHome,
    /// No container has this name.
    #[error("no container is named '{0}' (see 'coracle ps -a')")]
    Unknown(String),
    /// The name is in use.
    #[error("a container named '{0}' exists: remove it ('coracle rm {0}') or take another name")]
    Exists(String),
    /// It cannot be removed while it lives.
    #[error("container '{0}' is running: stop it first, or use 'coracle rm -f {0}'")]
    Running(String),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the store does not hold what was written there.
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Results of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The data directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A container's directory, with its lock held: its owner's view.
#[derive(Debug)]
pub struct Container {
    /// The container's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The store it lies in (hidden from containers on the host's root).
    pub store: PathBuf,
    /// Held (flock) as long as the container's monitor lives; to be closed in
    /// every other process.
    pub lock: OwnedFd,
}

/// A container's directory, as anyone may look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: String,
    dir: PathBuf,
}

/// What became of an attempt to own a container that someone else made.
#[derive(Debug)]
pub enum Claim {
    /// Its owner is gone; it is ours now.
    Ours(Container),
    /// Its owner lives.
    Live(Entry),
}

impl Store {
    /// Opens the caller's data directory, which is made when missing.
    ///
    /// # Errors
    /// When nothing says where it is, or it cannot be made.
    pub fn open() -> Result<Self> {
        let absolute = |name| {
            std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
        };
        let home = || {
            absolute("HOME").or_else(|| {
                let user = database::caller().ok().flatten()?;
                Some(user.home).filter(|dir| dir.is_absolute())
            })
        };
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| home().map(|home| home.join(".local/share")))
            .ok_or(StoreError::NoHome)?;
        Self::at(data.join("coracle"))
    }

    /// Opens the store in this directory, which is made when missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(root: PathBuf) -> Result<Self> {
        let store = Self { root };
        let containers = store.containers();
        if !containers.is_dir() {
            private_dir().recursive(true).create(&containers).map_err(at("make", &containers))?;
        }
        let mnt = scratch(&store.root);
        match private_dir().create(&mnt) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !mnt.is_dir() => {
                return Err(at("make", &mnt)(error));
            }
            _ => {}
        }
        Ok(store)
    }

    /// Where things are kept that can be computed again. It need not exist.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Where the container of this name is, or would be.
    #[must_use]
    pub fn dir_of(&self, name: &str) -> PathBuf {
        self.containers().join(name)
    }

    fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of a new container and takes its lock. The name is
    /// the spec's, or made up.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the name is in use.
    pub fn create(&self, spec: &Spec) -> Result<Container> {
        let _names = self.lock()?;
        let layers = spec.upper == Upper::Own;
        let (entry, filled) = match &spec.name {
            Some(name) => self.make_dir(name, layers)?,
            None => loop {
                let name = names::made_up().map_err(at("read", "/dev/urandom".as_ref()))?;
                match self.make_dir(&name, layers) {
                    Err(StoreError::Exists(_)) => {}
                    other => break other?,
                }
            },
        };
        let lock = entry.open_lock(true)?;
        take(&lock).map_err(at("lock", &entry.dir))?;
        let container = self.own(&entry, lock);
        // Half a container helps nobody, and it would hold its name.
        let full = if layers && !filled { container.fill() } else { Ok(()) };
        match full {
            Ok(()) => Ok(container),
            Err(error) => {
                fs::remove_dir_all(&container.dir).map_err(at("remove", &container.dir))?;
                Err(error)
            }
        }
    }

    fn own(&self, entry: &Entry, lock: File) -> Container {
        Container {
            name: entry.name.clone(),
            dir: entry.dir.clone(),
            store: self.root.clone(),
            lock: lock.into(),
        }
    }

    /// Makes a container's directory; whether it has `upper` and `work` already, which it may
    /// only where it is to have them: `layers`.
    fn make_dir(&self, name: &str, layers: bool) -> Result<(Entry, bool)> {
        let dir = self.containers().join(name);
        let made = match layers.then(|| spare::take(&self.root, &dir)) {
            None | Some(Ok(false)) => private_dir().create(&dir).map(|()| false),
            Some(taken) => taken,
        };
        match made {
            Ok(filled) => Ok((Entry { name: name.to_owned(), dir }, filled)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::Exists(name.to_owned()))
            }
            Err(error) => Err(at("make", &dir)(error)),
        }
    }

    /// All containers, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = self.entries()?;
        entries.retain(|entry| !entry.name.starts_with('.'));
        Ok(entries)
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let path = self.containers();
        let mut entries = Vec::new();
        for item in fs::read_dir(&path).map_err(at("read", &path))? {
            let item = item.map_err(at("read", &path))?;
            // A name that is not text was not made here.
            if let Ok(name) = item.file_name().into_string() {
                entries.push(Entry { name, dir: item.path() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The container of this name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when there is none.
    pub fn find(&self, name: &str) -> Result<Entry> {
        let dir = self.containers().join(name);
        if is_name(name) && dir.is_dir() {
            Ok(Entry { name: name.to_owned(), dir })
        } else {
            Err(StoreError::Unknown(name.to_owned()))
        }
    }

    /// Makes this container ours if its owner is gone.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it has vanished meanwhile.
    pub fn claim(&self, entry: &Entry) -> Result<Claim> {
        let names = self.lock()?;
        let lock = match entry.open_lock(false) {
            Ok(lock) => lock,
            Err(_) if !entry.dir.is_dir() => return Err(StoreError::Unknown(entry.name.clone())),
            // Its maker died before it could make the lock.
            Err(_) => entry.open_lock(true)?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            // Those who look at it hold it, too, for a moment: nobody else takes it
            // while the store is locked, so it will be free. An owner is not waited for:
            // it may be waiting for the store, to remove this very directory.
            Err(TryLockError::WouldBlock)
                if !is_owned(&lock).map_err(at("lock", &entry.dir))? =>
            {
                take(&lock).map_err(at("lock", &entry.dir))?;
            }
            Err(TryLockError::WouldBlock) => return Ok(Claim::Live(entry.clone())),
            Err(TryLockError::Error(error)) => return Err(at("lock", &entry.dir)(error)),
        }
        if !entry.dir.is_dir() {
            return Err(StoreError::Unknown(entry.name.clone()));
        }
        // It is ours from here on: others need not wait for what takes its time.
        drop(names);
        // With its monitor all processes of a container die, but their group stays.
        if let Ok(Some(state)) = entry.read()
            && state.active()
            && let Some(group) = state.group
        {
            cgroup::remove(&group).map_err(at("remove", &group))?;
        }
        Ok(Claim::Ours(self.own(entry, lock)))
    }

    /// Puts right what a crash left: of the containers whose owner is gone,
    /// those with `--rm` and those that never got to run are removed, and the
    /// others, when they are down as running, are marked as lost.
    ///
    /// Returns what could not be put right; the rest is.
    ///
    /// # Errors
    /// When the store itself cannot be read.
    pub fn sweep(&self) -> Result<Vec<StoreError>> {
        let mut left = Vec::new();
        for entry in self.entries()? {
            match self.sweep_one(&entry) {
                // Someone else was faster.
                Ok(()) | Err(StoreError::Unknown(_)) => {}
                Err(error) => left.push(error),
            }
        }
        Ok(left)
    }

    fn sweep_one(&self, entry: &Entry) -> Result<()> {
        // Nearly all that is ever seen here has ended in order: ask that first,
        // it takes no lock.
        let gone = entry.name.starts_with('.');
        let in_order =
            |state: &State| state.status == Status::Created || state.ended() && !state.spec.remove;
        if !gone && entry.read()?.as_ref().is_some_and(in_order) {
            return Ok(());
        }
        let Claim::Ours(container) = self.claim(entry)? else { return Ok(()) };
        let Some(mut state) = entry.read()? else {
            // Nothing was ever written down, so nothing ran: nothing can be lost.
            return container.remove_all(None);
        };
        if !gone && state.status == Status::Created {
            return Ok(());
        }
        let never_ran = state.status == Status::Starting && !state.kept;
        if gone || state.spec.remove || never_ran {
            return container.remove_all(Some(&state.map));
        }
        if state.active() {
            state.status = Status::Lost;
            container.record(&state)?;
        }
        Ok(())
    }

    /// Removes what is kept for the next container.
    ///
    /// # Errors
    /// When it does not go.
    pub fn drop_spare(&self) -> Result<()> {
        let _names = self.lock()?;
        spare::drop_kept(&self.root).map_err(at("remove", &spare::place(&self.root)))
    }

    /// Waits for the store's own lock, held for as long as the file is open.
    fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let lock = open_lock(&path, true).map_err(at("open", &path))?;
        take(&lock).map_err(at("lock", &path))?;
        Ok(lock)
    }
}

impl Container {
    /// Anyone's view of it.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry { name: self.name.clone(), dir: self.dir.clone() }
    }

    fn fill(&self) -> Result<()> {
        for path in [self.upper(), self.work()] {
            private_dir().create(&path).map_err(at("make", &path))?;
        }
        // The upper's root is the container's root directory, which everyone
        // in there may read, whatever the umask says.
        let upper = self.upper();
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))
            .map_err(at("change the mode of", &upper))
    }

    /// Upper layer, when kept here ([`Upper::Own`]); it exists then.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The overlay's work directory, when kept here; it exists then.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Output of a detached container.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The state file.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Leaves the exit code with the lock, for those who wait for it and will find
    /// no state any more; `None` forgets an earlier one.
    ///
    /// # Errors
    /// As of write(2).
    pub fn leave_code(&self, code: Option<u8>) -> Result<()> {
        let write = || {
            let mut file = File::from(self.lock.try_clone()?);
            // ext4 writes what was cut off back to the disk at once: only where there is any.
            if file.metadata()?.len() > 0 {
                file.set_len(0)?;
                file.rewind()?;
            }
            code.map_or(Ok(()), |code| write!(file, "{code}"))
        };
        write().map_err(at("write", &self.dir.join("lock")))
    }

    /// Writes the state (a new file, renamed to the old one's name).
    ///
    /// # Errors
    /// When the file cannot be written; the old state stays then.
    pub fn record(&self, state: &State) -> Result<()> {
        let path = self.state();
        let json = serde_json::to_vec(state)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        // With the machine those that are removed at their end are gone anyway.
        let put = if state.spec.remove { replace_passing } else { replace };
        put(&path, &json).map_err(at("write", &path))
    }

    /// Removes the directory and all in it, also what belongs to subordinate
    /// ids, and gives the lock back. The name is free at once. Where files of
    /// others have to go, the caller must be single-threaded
    /// ([`crate::sys::userns::enter_with_map`]).
    ///
    /// # Errors
    /// When something does not go away; the next sweep tries again.
    pub fn remove(self, map: &IdMap) -> Result<()> {
        self.remove_all(Some(map))
    }

    fn remove_all(mut self, map: Option<&IdMap>) -> Result<()> {
        if !self.name.starts_with('.') {
            let gone = format!(".gone-{}-{}", self.name, std::process::id());
            let gone = self.dir.with_file_name(gone);
            fs::rename(&self.dir, &gone).map_err(at("rename", &self.dir))?;
            self.dir = gone;
        }
        let clean = spare::is_clean(&self.dir);
        for item in fs::read_dir(&self.dir).map_err(at("read", &self.dir))? {
            let item = item.map_err(at("read", &self.dir))?;
            let name = item.file_name();
            if name != "lock" && !(clean && ["upper", "work"].iter().any(|kept| name == *kept)) {
                remove_tree(&item.path(), map)?;
            }
        }
        // The directory and its lock go together under the store's lock: a claim
        // takes a directory without one for a dead maker's and makes it anew.
        let path = self.store.join("lock");
        let names = open_lock(&path, true).map_err(at("open", &path))?;
        take(&names).map_err(at("lock", &path))?;
        if clean {
            remove_tree(&self.dir.join("lock"), map)?;
            if spare::keep(&self.store, &self.dir) {
                return Ok(());
            }
        }
        remove_tree(&self.dir, map)
    }
}

#[cfg(test)]
mod tests;
