//! Images: importing, keeping, unpacking and packing them.
//!
//! # Theory of operation
//!
//! However an image arrives, it becomes what the OCI image specification
//! describes: a manifest, a configuration and compressed layers, each kept under
//! its digest ([`store`]). Sources only say where the bytes are ([`import`]:
//! [`layout`] for OCI layouts, [`docker_archive`], [`registry`]; a root file
//! system is packed into one layer first). Then every layer is unpacked once
//! ([`unpack`]) into a directory that is a lower of the overlay for as many
//! containers as there are.
//!
//! ```text
//! source ── blob, its digest checked ── tmp ── rename ── blobs/
//!                                                 │ decompressed, its diff id checked
//!                                                 ▼
//!                                         tmp/ ── rename ── layers/
//! ```
//!
//! Nothing is used before its digest was found to be right: it has no name
//! until then. All of it is done by one child process that is root in a user
//! namespace with the container's ids ([`crate::sys::userns::enter_with_map`]),
//! so that files get the owners they will have in containers, and that dies with
//! the command.
//!
//! The other way, [`pack`] reads directories and writes the archive: of a root
//! file system that is imported, of an unpacked layer that is verified, of what a
//! container changed ([`commit`]). [`save`] writes images for others.

pub mod archive;
pub mod attributes;
pub mod auth;
pub mod change;
pub mod commit;
pub mod compress;
pub mod config;
pub mod date;
pub mod digest;
pub mod docker_archive;
pub mod import;
pub mod layout;
pub mod manifest;
pub mod pack;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod save;
pub mod store;
pub mod tar;
pub mod unpack;
pub mod verify;
pub mod work;

use std::fmt::Display;
use std::io;
use std::path::Path;

use digest::Digest;

/// Why something cannot be done with an image. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Some bytes are not the ones that were asked for.
    #[error("{what} is not what its digest says: it is {found}, and was to be {wanted}")]
    Mismatch {
        /// Which.
        what: String,
        /// The digest it was to have.
        wanted: Digest,
        /// The one it has.
        found: Digest,
    },
    /// Something is not of the form it must have.
    #[error("{what}: {why}")]
    Malformed {
        /// What.
        what: String,
        /// How it is not.
        why: String,
    },
    /// A layer cannot be unpacked.
    #[error("the layer {layer} is refused: {why}")]
    Layer {
        /// Its digest.
        layer: Digest,
        /// Why.
        why: String,
    },
    /// A tree cannot be packed.
    #[error(transparent)]
    Pack(#[from] pack::PackError),
    /// No image has this name.
    #[error(
        "no image is named '{0}' (see 'coracle image ls', or get it with 'coracle image pull {0}')"
    )]
    Unknown(String),
    /// Several images may be meant.
    #[error("'{wanted}' may mean several images: {}", found.join(", "))]
    Ambiguous {
        /// What was said.
        wanted: String,
        /// What it may mean.
        found: Vec<String>,
    },
}

/// Results of this room.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Says what was tried on what.
fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Os { what: format!("cannot {action} {}", path.display()), source }
}

fn malformed(what: impl Display, why: impl Display) -> ImageError {
    ImageError::Malformed { what: what.to_string(), why: why.to_string() }
}
