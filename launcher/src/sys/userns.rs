//! User namespaces: acting as root of one for the length of a closure.

use crate::idmap::IdMap;

/// Why a user namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The closure failed, in its own words.
    #[error("{0}")]
    Work(String),
}

/// Runs `work` in a child process that is uid 0 of a new user namespace with
/// the ids of `map` (and of a mount namespace of its own), and hands back what
/// it returned. For files that belong to subordinate ids.
///
/// The caller must be single-threaded.
///
/// # Errors
/// [`UsernsError::Work`] when `work` failed, else what went wrong on the way.
pub fn enter_with_map(
    map: &IdMap,
    work: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, UsernsError> {
    let _ = (map, work);
    Err(UsernsError::Work("not there yet".to_owned()))
}
