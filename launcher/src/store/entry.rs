//! A container as others see it, who do not own it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::{at, open_lock};
use super::{Entry, Result, State, Status, StoreError};

impl Entry {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the workload printed; absent when it was not detached.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// How far it has got, and when it got there. A container whose owner is
    /// gone has ended, whatever is written down. `None`: it was given a name
    /// just now, and nothing is known of it yet.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it has vanished meanwhile.
    pub fn state(&self) -> Result<Option<(State, SystemTime)>> {
        // The lock first: what its holder wrote before it let go is seen then.
        let live = self.is_live()?;
        let Some(mut state) = self.read()? else {
            return if self.dir.is_dir() {
                Ok(None)
            } else {
                Err(StoreError::Unknown(self.name.clone()))
            };
        };
        let path = self.dir.join("state.json");
        let since = fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .map_err(|_| StoreError::Unknown(self.name.clone()))?;
        if !live && state.active() {
            state.status = Status::Lost;
        }
        Ok(Some((state, since)))
    }

    /// Whether someone holds its lock.
    fn is_live(&self) -> Result<bool> {
        match self.open_lock(false) {
            Ok(lock) => is_owned(&lock).map_err(at("lock", &self.dir)),
            Err(_) => Ok(false),
        }
    }

    /// Takes hold of its end, which may come, with the end of its directory,
    /// before it is waited for.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { lock: self.open_lock(false).ok(), dir: self.dir.clone() }
    }

    /// Waits until its owner has let go of it, which is after all of it is
    /// cleaned up. Returns at once when that is so already.
    ///
    /// # Errors
    /// When the lock cannot be waited for.
    pub fn wait_released(&self) -> Result<()> {
        self.watch().wait().map(drop)
    }

    pub(super) fn open_lock(&self, create: bool) -> Result<File> {
        let path = self.dir.join("lock");
        open_lock(&path, create).map_err(at("open", &path))
    }

    /// What is written down, for who holds the container; `None` when nothing is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn written(&self) -> Result<Option<State>> {
        let state = self.read()?;
        // Its owner is the one who asks: what was at work then is gone.
        Ok(state.map(
            |state| {
                if state.active() { State { status: Status::Lost, ..state } } else { state }
            },
        ))
    }

    /// What is written down; `None` when nothing is.
    pub(super) fn read(&self) -> Result<Option<State>> {
        let path = self.dir.join("state.json");
        let mut json = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut json)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("read", &path)(error)),
        }
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|source| StoreError::Damaged { path, source })
    }
}

/// Whether somebody owns this lock, rather than looks at it. Asked of the open file: its
/// name goes while its owner still has it. If nobody does, it is left held shared.
pub(super) fn is_owned(lock: &File) -> io::Result<bool> {
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The end of a container, to be waited for.
#[derive(Debug)]
pub struct Watch {
    /// An open file outlives its name.
    lock: Option<File>,
    dir: PathBuf,
}

impl Watch {
    /// Waits until its owner has let go of it, which is after all of it is
    /// cleaned up. Gives the exit code that was left.
    ///
    /// # Errors
    /// When the lock cannot be waited for.
    pub fn wait(self) -> Result<Option<u8>> {
        let Some(mut lock) = self.lock else { return Ok(None) };
        loop {
            match lock.lock_shared() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(at("lock", &self.dir))?,
            }
        }
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(at("read", &self.dir.join("lock")))?;
        Ok(text.parse().ok())
    }
}
