//! Copies of files that have several names in a lower layer.
//!
//! The overlay copies such a file up once, by the name through which it was changed, and
//! shows the copy by the other names as well, which are the lower layer's. Which files
//! these are says an index in its work directory: one more hard link to each copy, called
//! by the layer of the original, counted from the bottom, and its inode number.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::{Found, PackError, Packer, is_gone};

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

impl<W: Write> Packer<'_, W> {
    /// Packs what was changed by another name than these, which lower layers have. No
    /// directory says where they are: all are looked through.
    pub(super) fn other_names(&mut self) -> Result<(), PackError> {
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
                let packed = match self.copy(layer, &stat) {
                    Ok(None) => continue,
                    Ok(Some(_)) => self.entry(layer, directory.as_fd(), &name, &path, &stat),
                    Err(error) => Err(error),
                };
                match packed {
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
