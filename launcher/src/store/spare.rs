//! The directories of a container that has left them as they were made, kept for the next
//! one.
//!
//! On ext4 that is mounted with `discard` each directory that is removed waits for the disk,
//! and each that is made looks for an inode past those that were freed a moment ago: together
//! a tenth of a start. So one set of them, a directory with nothing but `upper` and `work`,
//! stays when a container goes, if nothing in there tells of that container: no file, no
//! attribute, the first owners and modes. It is put there, and taken from there, by one
//! rename under the store's lock.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::geteuid;

use crate::clock;
use crate::sys::xattr;

/// What overlayfs-fuse makes in its work directory.
const OF_WORK: [&str; 2] = ["links.coracle", "work"];

/// Its place in the data directory: below what can be made again.
pub(super) fn place(root: &Path) -> PathBuf {
    root.join("cache/spare")
}

/// Whether `upper` and `work` in the container's directory `dir` are as they were made.
pub(super) fn is_clean(dir: &Path) -> bool {
    let clean = || -> io::Result<bool> {
        let work = dir.join("work");
        // Nothing in a container can change that of the directory they are in.
        let group = fs::symlink_metadata(dir)?.gid();
        for item in fs::read_dir(&work)? {
            let item = item?;
            let known = OF_WORK.iter().any(|name| item.file_name() == *name);
            if !known || !is_fresh(&item.path(), 0o700, group)? || !is_empty(&item.path())? {
                return Ok(false);
            }
        }
        let upper = dir.join("upper");
        Ok(is_fresh(dir, 0o700, group)?
            && is_fresh(&work, 0o700, group)?
            && is_fresh(&upper, 0o755, group)?
            && is_empty(&upper)?)
    };
    clean().unwrap_or(false)
}

/// Whether it is a directory of the caller's and this group's with this mode and no
/// attributes.
fn is_fresh(dir: &Path, mode: u32, group: u32) -> io::Result<bool> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = fs::File::options().read(true).custom_flags(flags).open(dir)?;
    let meta = dir.metadata()?;
    let owned = meta.uid() == geteuid().as_raw() && meta.gid() == group;
    let plain = owned && meta.mode() & 0o7777 == mode;
    Ok(plain && xattr::list_of(dir.as_fd())?.is_empty())
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}

/// Keeps `dir`, in which nothing else is any more; false when it is still there. The store
/// is locked.
pub(super) fn keep(root: &Path, dir: &Path) -> bool {
    moved(dir, &place(root)).is_ok()
}

/// Has what is kept become the directory `dir`; false when nothing is kept, or it cannot be
/// used. The store is locked.
///
/// # Errors
/// AlreadyExists: `dir` is somebody's.
pub(super) fn take(root: &Path, dir: &Path) -> io::Result<bool> {
    let kept = place(root);
    match moved(&kept, dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => return Ok(false),
    }
    // The container's root directory is as old as the container.
    let now = fs::FileTimes::new().set_accessed(clock::now()).set_modified(clock::now());
    fs::File::open(dir.join("upper"))?.set_times(now)?;
    Ok(true)
}

/// Removes what is kept, if anything is.
///
/// # Errors
/// As of rmdir(2).
pub(super) fn drop_kept(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(place(root)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn moved(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}
