//! What unpacking may come to.

use std::io;

use nix::errno::Errno;

use crate::image::tar::TarError;

/// What an archive may ask for at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files, holes included, and of the archive itself.
    pub bytes: u64,
    /// Members.
    pub members: u64,
    /// Bytes of the names that must be remembered to the end: directories and whiteouts.
    pub names: u64,
}

/// What became of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Members that it had.
    pub members: u64,
    /// Bytes of its files, holes included.
    pub bytes: u64,
    /// Devices that were left out.
    pub devices: u64,
    /// Attributes that were left out.
    pub attributes: u64,
}

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is none.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A member cannot be made.
    #[error("its member '{}': {why}", String::from_utf8_lossy(name))]
    Member {
        /// Its name.
        name: Vec<u8>,
        /// Why.
        why: String,
    },
    /// It exceeds its bounds.
    #[error("it has more than {most} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: u64,
    },
}

pub(super) struct TooMuch {
    pub(super) members: bool,
    pub(super) bytes: bool,
}

/// Why a member could not be made.
pub(super) enum Failed {
    Tar(TarError),
    Why(String),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Why(io::Error::from(errno).to_string())
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Why(error.to_string())
    }
}
