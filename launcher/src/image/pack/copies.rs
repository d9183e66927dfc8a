//! Copies of files that have several names in a lower layer.
//!
//! The overlay copies such a file up once, by the name through which it was changed, and
//! shows the copy by the other names as well, which are the lower layer's. Which files
//! these are says an index in its work directory: one more hard link to each copy, called
//! by the layer of the original, counted from the bottom, and its inode number.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::{Found, PackError, Packer, Tree, is_gone};

/// Where it is, in the work directory.
const INDEX: &str = "links.coracle";

/// The index.
#[derive(Debug)]
pub struct Copies {
    index: OwnedFd,
    /// Layers of the overlay below those that are packed.
    below: usize,
}

/// A copy: what the index calls it, and its status.
type Copied = (OsString, FileStat);

impl Copies {
    /// That in a work directory of an overlay which has `below` more layers than those that
    /// are packed, below them; `None` where nothing was ever copied.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open(work: &Path, below: usize) -> Result<Option<Self>, PackError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = work.join(INDEX);
        match open(&path, flags, Mode::empty()) {
            Ok(index) => Ok(Some(Self { index, below })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(PackError { path, source: errno.into() }),
        }
    }

    /// Its directory.
    pub(super) fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    /// The copy of the file `ino` of a layer.
    pub(super) fn find(&self, from_bottom: usize, ino: u64) -> io::Result<Option<Copied>> {
        let key = OsString::from(format!("{}-{ino:x}", from_bottom + self.below));
        match fstatat(&self.index, key.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((key, stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Paths at which a tree shows what was changed by another name, in the layers below.
///
/// # Errors
/// What could not be read.
pub fn other_names(tree: &Tree) -> Result<Vec<PathBuf>, PackError> {
    let mut found = Vec::new();
    if tree.copies.is_some() {
        Packer::new(tree, io::sink()).each_other_name(|_, other| {
            found.push(other.path.to_owned());
            Ok(())
        })?;
    }
    Ok(found)
}

/// A name of a file that was changed by another one.
struct Other<'a> {
    layer: usize,
    directory: BorrowedFd<'a>,
    name: &'a OsStr,
    path: &'a Path,
    stat: &'a FileStat,
}

impl<W: Write> Packer<'_, W> {
    /// Packs what was changed by another name than these, which lower layers have.
    pub(super) fn other_names(&mut self) -> Result<(), PackError> {
        self.each_other_name(|packer, Other { layer, directory, name, path, stat }| {
            packer.entry(layer, directory, name, path, stat).map(drop)
        })
    }

    /// No directory says where they are: all are looked through.
    fn each_other_name(
        &mut self,
        mut act: impl FnMut(&mut Self, Other<'_>) -> io::Result<()>,
    ) -> Result<(), PackError> {
        let root = Path::new("/");
        let parts = self.opaque_ends(root, (0..self.tree.layers.len()).collect())?;
        let mut waiting = vec![(root.to_owned(), parts)];
        while let Some((path, parts)) = waiting.pop() {
            let at = |source| PackError { path: path.clone(), source };
            let opened = self.opened(&path, &parts).map_err(at)?;
            let mut below = Vec::new();
            for (name, found) in self.merged(&path, &parts, &opened).map_err(at)? {
                let Found::Entry { layer, stat, parts } = found else { continue };
                let path = path.join(&name);
                if !parts.is_empty() {
                    below.push((path, parts));
                    continue;
                }
                let Some(directory) = opened.get(&layer) else { continue };
                let done = match self.copy(layer, &stat) {
                    Ok(None) => continue,
                    Ok(Some(_)) => {
                        let directory = directory.as_fd();
                        let (name, path, stat) = (&name, &path, &stat);
                        act(self, Other { layer, directory, name, path, stat })
                    }
                    Err(error) => Err(error),
                };
                match done {
                    Err(error) if !is_gone(&error) => {
                        return Err(PackError { path, source: error });
                    }
                    _ => {}
                }
            }
            self.ends(&mut below)?;
            waiting.append(&mut below);
        }
        Ok(())
    }

    /// What is shown in place of an entry of a lower layer.
    pub(super) fn copy(&self, layer: usize, stat: &FileStat) -> io::Result<Option<Copied>> {
        let Some(copies) = &self.tree.copies else { return Ok(None) };
        let one = layer == 0 || stat.st_nlink < 2 || stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        // Numbers of another file system that is mounted in the layer say nothing.
        if one || fstat(self.tree.layers[layer].root.as_fd())?.st_dev != stat.st_dev {
            return Ok(None);
        }
        copies.find(self.tree.layers.len() - 1 - layer, stat.st_ino)
    }
}
