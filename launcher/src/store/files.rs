//! The store's directories, locks and files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Result, StoreError};
use crate::idmap::IdMap;
use crate::sys::userns;

/// Removes a directory tree; that others remove it at the same time is no error.
pub(super) fn remove_tree(dir: &Path, map: Option<&IdMap>) -> Result<()> {
    let tree = |dir: &Path| {
        let removed = if dir.is_dir() && !dir.is_symlink() {
            fs::remove_dir_all(dir)
        } else {
            fs::remove_file(dir)
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    };
    let Err(plain) = tree(dir) else { return Ok(()) };
    let Some(map) = map.filter(|_| plain.kind() == io::ErrorKind::PermissionDenied) else {
        return Err(at("remove", dir)(plain));
    };
    // Files of subordinate ids, or directories without permissions.
    userns::enter_with_map(map, || tree(dir).map(|()| Vec::new()).map_err(|e| e.to_string()))
        .map(drop)
        .map_err(|error| at("remove", dir)(io::Error::other(error.to_string())))
}

/// Replaces a file as a whole: a reader sees the old content or the new. The
/// caller is the only writer.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    written(path, content, |fresh| fs::rename(fresh, path))
}

/// As [`replace`], of a file that need not outlive a crash of the machine. ext4 writes a file
/// to the disk at once when it takes another one's place (auto_da_alloc in ext4(5)), and its
/// removal waits for that, and for the blocks to be discarded; not when the two change places.
pub(super) fn replace_passing(path: &Path, content: &[u8]) -> io::Result<()> {
    if !path.exists() {
        return replace(path, content);
    }
    written(path, content, |fresh| {
        match renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => fs::remove_file(fresh),
            // This file system cannot.
            Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(fresh, path),
            Err(errno) => Err(errno.into()),
        }
    })
}

fn written(
    path: &Path,
    content: &[u8],
    put: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let written = file.write_all(content).and_then(|()| put(&fresh));
    written.inspect_err(|_| {
        // The first failure is the one to tell; the next write takes this name again.
        drop(fs::remove_file(&fresh));
    })
}

/// Makes directories that only the caller may enter.
pub(super) fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Opens a file to lock; its content is none. Where nothing can be written one that is
/// there does to look whether somebody holds it.
pub(super) fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && !create => {
            File::open(path)
        }
        result => result,
    }
}

/// Waits for a lock, whatever signals come meanwhile.
pub(super) fn take(lock: &File) -> io::Result<()> {
    loop {
        match lock.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Says what was tried on what, and of a place that can never be written what to do.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| {
        let source = match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => io::Error::new(
                source.kind(),
                format!("{source}; set XDG_DATA_HOME to a directory that can be written"),
            ),
            _ => source,
        };
        StoreError::Io { action, path: path.to_owned(), source }
    }
}
