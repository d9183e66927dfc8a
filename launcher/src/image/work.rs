//! The process that does the work: root in a user namespace with the ids that
//! containers have, so that files get the owners they will have there.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Result;
use crate::idmap::IdMap;
use crate::sys::userns::{self, UsernsError};

/// Runs `work` in such a process, and hands back what came of it. The process
/// dies with this one.
///
/// This process must be single-threaded.
///
/// # Errors
/// The failure of `work`, in its words, or that of making the process.
pub fn as_root<T: Serialize + DeserializeOwned>(
    map: &IdMap,
    work: impl FnOnce() -> Result<T>,
) -> std::result::Result<T, UsernsError> {
    let bytes = userns::enter_with_map(map, || {
        prepare();
        let done = work().map_err(|error| error.to_string())?;
        serde_json::to_vec(&done).map_err(|error| error.to_string())
    })?;
    serde_json::from_slice(&bytes).map_err(|error| UsernsError::Work(error.to_string()))
}

/// Modes are those that are asked for; and removing a deep tree holds a
/// descriptor for each of its levels.
pub fn prepare() {
    umask(Mode::empty());
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer it goes on until that is not enough, and says so then.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
    }
}
