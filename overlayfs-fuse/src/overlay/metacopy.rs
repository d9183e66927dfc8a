//! Files whose data is in another layer (`metacopy=on` of the kernel's overlay).
//!
//! # Theory of operation
//! As the machine's root the kernel's overlay may copy a file up without its data
//! (Documentation/filesystems/overlayfs.rst, *Metadata only copy up*). What it makes
//! is a hole of the file's size with an attribute `overlay.metacopy`; the data is that
//! of the next file of the name in the layers below, or where the file's
//! `overlay.redirect` says, in the names of [`super::redirect`]. That file may be such
//! a copy again.
//!
//! Everything but the data is the copy's own, so this matters only where a file is
//! opened: for reading the data's file is opened instead. One of the upper is given its
//! data before it is changed, or moved to where it would not find it. Should that be
//! interrupted the attribute is still there, and it is begun again. One that loses its
//! name while somebody may have it open is remembered by where the name was in the lowers.
//!
//! What redirects may not show is not shown here: where they are not followed such a
//! file cannot be opened (EPERM). We never make one.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::time::TimeSpec;

use super::inode::{Lower, Node, UpperAt};
use super::redirect::{Redirect, has_lower_part, walk};
use super::whiteout::REDIRECT_ATTRIBUTES;
use super::{Overlay, data};
use crate::error::{During, Error, Result};
use crate::layer::Named;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sys;

const METACOPY_ATTRIBUTES: [&str; 2] = ["trusted.overlay.metacopy", "user.overlay.metacopy"];

/// Where the data of a file is.
enum Data {
    Here,
    /// In the layers below, under its own name or where this says.
    Below(Option<Redirect>),
}

/// A lower file, opened.
pub(super) struct LowerFile {
    pub(super) fd: OwnedFd,
    /// It is another one, which has the data.
    pub(super) elsewhere: bool,
    /// Names of the file's own attributes.
    pub(super) attributes: Vec<OsString>,
}

/// What the attributes `names` of a file say, their values as `read` gives them.
fn data_by(names: &[OsString], read: impl Fn(&OsStr) -> Result<Vec<u8>>) -> Result<Data> {
    let has = |known: &str| names.iter().any(|name| name == known);
    if !METACOPY_ATTRIBUTES.iter().any(|name| has(name)) {
        return Ok(Data::Here);
    }
    let redirect = REDIRECT_ATTRIBUTES.iter().find(|name| has(name));
    let redirect = match redirect.map(|name| read(OsStr::new(name))).transpose()? {
        None => None,
        Some(value) => Some(Redirect::parse(&value).ok_or(Error::Redirect {
            reason: "the place of a file's data is no place",
            errno: Errno::EINVAL,
        })?),
    };
    Ok(Data::Below(redirect))
}

fn data_of_open(fd: &OwnedFd) -> Result<Data> {
    const OP: &str = "find out where the data of a file is";
    let names = match sys::listxattr(fd.as_fd()) {
        Err(Errno::EOPNOTSUPP) => return Ok(Data::Here),
        other => other.during(OP)?,
    };
    data_by(&names, |name| sys::getxattr(fd.as_fd(), name).during(OP))
}

impl Overlay {
    /// Opens the data of a lower file for reading.
    pub(super) fn open_lower(&self, layer: usize, dir: &Path, name: &OsStr) -> Result<LowerFile> {
        let lower = &self.lowers[layer];
        let attributes = lower.listxattr(dir, name)?;
        match data_by(&attributes, |attribute| lower.getxattr(dir, name, attribute))? {
            Data::Here => {
                Ok(LowerFile { fd: lower.open(dir, name)?, elsewhere: false, attributes })
            }
            Data::Below(redirect) => {
                let walked = walk(lower.as_ref(), &dir.join(name))?;
                let fd = self.open_below(layer + 1, walked.below, walked.last, redirect)?;
                Ok(LowerFile { fd, elsewhere: true, attributes })
            }
        }
    }

    /// Opens the data of a file that the layers from `layer` down have at `path`, or
    /// where `redirect` says. `last`: what is above shows nothing of them at that path, so
    /// that only a redirect from the root leads to it.
    fn open_below(
        &self,
        layer: usize,
        mut path: PathBuf,
        mut last: bool,
        mut redirect: Option<Redirect>,
    ) -> Result<OwnedFd> {
        if !self.follows_redirects() {
            let reason = "the data of a file is not followed here";
            return Err(Error::Redirect { reason, errno: Errno::EPERM });
        }
        for root in self.root_lowers().iter().filter(|root| root.layer >= layer) {
            match redirect.take() {
                Some(Redirect::Absolute(to)) => (path, last) = (to, false),
                Some(Redirect::Sibling(name)) => path.set_file_name(name),
                None => {}
            }
            if last {
                break;
            }
            let lower = &self.lowers[root.layer];
            let walked = walk(lower.as_ref(), &path)?;
            let at = std::mem::replace(&mut path, walked.below);
            last = walked.last;
            match walked.named {
                Named::Absent => {}
                Named::Present(stat, _) if stat.st_mode & libc::S_IFMT == libc::S_IFREG => {
                    let dir = at.parent().unwrap_or(Path::new(""));
                    let name = at.file_name().ok_or(Error::Stale)?;
                    let names = lower.listxattr(dir, name)?;
                    match data_by(&names, |attribute| lower.getxattr(dir, name, attribute))? {
                        Data::Here => return lower.open(dir, name),
                        Data::Below(to) => redirect = to,
                    }
                }
                _ => break,
            }
        }
        Err(Error::Layer { op: "find the data of a file in the layers below", errno: Errno::EIO })
    }

    /// The same for a file of the upper, opened as `fd`; `None` where it has its data
    /// itself. The tree lock is held.
    pub(super) fn data_below_upper(
        &self,
        node: &Arc<Node>,
        fd: &OwnedFd,
    ) -> Result<Option<OwnedFd>> {
        // Without privilege no such attribute can be seen.
        if !self.upper()?.sees_trusted() {
            return Ok(None);
        }
        let Data::Below(redirect) = data_of_open(fd)? else { return Ok(None) };
        let (place, lower) = {
            let body = node.body();
            (body.place.clone(), body.lower.clone())
        };
        let (path, last) = match (&redirect, place, lower) {
            (Some(Redirect::Absolute(_)), ..) => (PathBuf::new(), false),
            (_, Some((parent, name)), _) => {
                (self.path_in_lowers(&parent)?.join(&*name), !has_lower_part(&parent))
            }
            (_, None, Lower::File(_, dir, name)) => (dir.join(&*name), false),
            (_, None, _) => return Err(Error::Stale),
        };
        self.open_below(0, path, last, redirect).map(Some)
    }

    /// A file of the upper, reached by `fd`, is about to lose the name by which it is
    /// known, and may be used on. If its data is found by that name, the name's place in
    /// the lowers is noted, which never changes. What cannot be found out, or leads
    /// nowhere, is for the one who reads: the name can go.
    pub(super) fn remember_data(&self, node: &Arc<Node>, fd: &OwnedFd) {
        if node.kind != libc::S_IFREG || !self.upper().is_ok_and(|up| up.sees_trusted()) {
            return;
        }
        let Ok(Data::Below(_)) = data_of_open(fd) else { return };
        let place = node.body().place.clone();
        if let Some((parent, name)) = place
            && has_lower_part(&parent)
            && let Ok(dir) = self.path_in_lowers(&parent)
        {
            node.body().lower = Lower::File(0, dir.into(), name);
        }
    }

    /// Gives a file of the upper its data, if that is elsewhere. The caller holds no
    /// lock.
    pub(super) fn complete(&self, node: &Arc<Node>) -> Result<()> {
        const OP: &str = "give a file of the upper its data";
        if node.kind != libc::S_IFREG
            || !self.upper()?.sees_trusted()
            || node.file().as_ref().is_some_and(|file| file.is_complete(node.epoch()))
        {
            return Ok(());
        }
        let _copying = node.copying.lock().expect("no panic while a node is copied");
        let opened = {
            let _tree = self.tree_shared();
            if matches!(node.body().upper, UpperAt::None) {
                return Ok(());
            }
            let spot = self.upper_spot(node)?.ok_or(Error::Stale)?;
            let file = spot.open(OFlag::O_RDWR | OFlag::O_NONBLOCK).during(OP)?;
            self.data_below_upper(node, &file)?.map(|data| (file, data))
        };
        let Some((file, data)) = opened else { return Ok(()) };
        let stat = fstat(&data).during(OP)?;
        let before = fstat(&file).during(OP)?;
        let size = stat.st_size.cast_unsigned();
        // The hole has the size of the data it stands for.
        if stat.st_size != before.st_size {
            return Err(Error::Stale);
        }
        let room = self.room_for_copy(&stat, size, Some(&before))?;
        let refused = data::Refused::default();
        let copied = data::copy_data(data.as_fd(), file.as_fd(), &stat, size, &refused);
        // What was written stays, and takes space, however far it came.
        if let Some(room) = room {
            room.settle(file.as_fd())?;
        }
        copied?;
        // For the user of the union nothing in it has changed.
        let (atime, mtime) = times(&before);
        nix::sys::stat::futimens(&file, &atime, &mtime).during(OP)?;
        if !self.options.volatile {
            nix::unistd::fsync(&file).during(OP)?;
        }
        for name in METACOPY_ATTRIBUTES.iter().chain(&REDIRECT_ATTRIBUTES) {
            match sys::removexattr(file.as_fd(), OsStr::new(name)) {
                Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno).during(OP),
            }
        }
        // What was opened for reading is another file.
        node.epoch.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}
