//! What an operation of the union can fail with, and the errno a caller sees.

use nix::errno::Errno;

/// Result of an operation of the union.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed. [`Error::errno`] is what the kernel is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a layer failed.
    #[error("{op}: {errno}")]
    Layer {
        /// What was being done.
        op: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// No such name, or it is whited out.
    #[error("no such file or directory")]
    NotFound,
    /// There is no upper layer.
    #[error("the union has no upper layer")]
    ReadOnly,
    /// A directory that exists in a lower layer cannot be moved, or only by copying.
    #[error("a directory of a lower layer cannot be renamed")]
    CrossDevice,
    /// A directory says that its lower part is elsewhere, or a file its data, and is not
    /// followed there.
    #[error("redirected: {reason}")]
    Redirect {
        /// Why not.
        reason: &'static str,
        /// `EPERM` when it is not allowed, `EINVAL` when it names no place.
        errno: Errno,
    },
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// The directory still shows names.
    #[error("directory not empty")]
    NotEmpty,
    /// A directory where none may be.
    #[error("is a directory")]
    IsDirectory,
    /// Not a directory where one must be.
    #[error("not a directory")]
    NotDirectory,
    /// A layer changed underneath and the object is no longer what it was.
    #[error("the object is gone from its layer")]
    Stale,
    /// The request makes no sense or is reserved.
    #[error("{0}")]
    Invalid(&'static str),
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// Not allowed whatever the caller's rights.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// The file system underneath cannot do it.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Error {
    /// The error number for the kernel.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Layer { errno, .. } | Self::Redirect { errno, .. } => *errno,
            Self::NotFound => Errno::ENOENT,
            Self::ReadOnly => Errno::EROFS,
            Self::CrossDevice => Errno::EXDEV,
            Self::Exists => Errno::EEXIST,
            Self::NotEmpty => Errno::ENOTEMPTY,
            Self::IsDirectory => Errno::EISDIR,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::Stale => Errno::ESTALE,
            Self::Invalid(_) => Errno::EINVAL,
            Self::NoAttribute => Errno::ENODATA,
            Self::NotPermitted(_) => Errno::EPERM,
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
        };
        errno as i32
    }
}

/// Names the operation a failed system call was part of.
pub(crate) trait During<T> {
    /// Turns an errno into an [`Error`] that says what was being done.
    fn during(self, op: &'static str) -> Result<T>;
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, op: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Layer { op, errno })
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, op: &'static str) -> Result<T> {
        self.map_err(|e| Error::Layer {
            op,
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)),
        })
    }
}
