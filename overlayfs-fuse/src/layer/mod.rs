//! A layer: one directory tree of the union, seen read-only.
//!
//! [`Layer`] is what the union asks of every tree it merges. [`DirLayer`] is a
//! real directory; [`MemLayer`] a tree in memory in which tests inject faults.
//! Paths are relative to the layer's root, without leading `/`; the root is the
//! empty path.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::stat::FileStat;

use crate::error::Result;

mod dir;
mod mem;

pub use dir::DirLayer;
pub(crate) use dir::{find_at, list_at, open_beneath};
pub use mem::MemLayer;

/// What a directory of a layer has to say about the layers below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// The directory of the same name there belongs to it.
    Merged,
    /// Nothing there does: it is opaque.
    Hidden,
    /// The directory there that this value names does (a redirect, unchecked).
    Redirected(OsString),
}

/// What a name in a layer is, as far as merging needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Something that is seen; `S_IFMT` bits.
    Object(u32),
    /// Hides the same name in the layers below (any of the encodings).
    Whiteout,
}

/// One name of one directory of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// The name; for a `.wh.NAME` file the NAME it hides.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// A directory of one layer, read in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names, without `.`, `..` and marker files.
    pub entries: Vec<RawEntry>,
    /// The directory hides everything below it in other layers.
    pub opaque: bool,
    /// It holds `.wh.` files.
    pub marked: bool,
}

/// What a layer says about a single name.
#[derive(Clone, Debug)]
pub enum Named {
    /// Nothing: ask the next layer.
    Absent,
    /// It is hidden in the layers below.
    Whiteout,
    /// It is here; with what a directory says of those below.
    Present(FileStat, Below),
}

/// A tree that can be merged. Implementations must never leave their root,
/// whatever the paths say.
pub trait Layer: Send + Sync {
    /// Status of the root directory.
    ///
    /// # Errors
    /// The layer is gone.
    fn root(&self) -> Result<FileStat>;

    /// Reads directory `dir`.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self, dir: &Path) -> Result<Listing>;

    /// What `name` in `dir` is.
    ///
    /// # Errors
    /// Anything but absence: no permission, input/output error.
    fn find(&self, dir: &Path, name: &OsStr) -> Result<Named>;

    /// Status of `name` in `dir`; of `dir` itself when `name` is empty.
    ///
    /// # Errors
    /// `Stale` when it is not there any more.
    fn stat(&self, dir: &Path, name: &OsStr) -> Result<FileStat>;

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `Stale` when it is not there any more, else what open(2) says.
    fn open(&self, dir: &Path, name: &OsStr) -> Result<OwnedFd>;

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// What readlink(2) says.
    fn readlink(&self, dir: &Path, name: &OsStr) -> Result<OsString>;

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute` when it has none of that name.
    fn getxattr(&self, dir: &Path, name: &OsStr, attr: &OsStr) -> Result<Vec<u8>>;

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// What listxattr(2) says; a file system without attributes gives none.
    fn listxattr(&self, dir: &Path, name: &OsStr) -> Result<Vec<OsString>>;
}
