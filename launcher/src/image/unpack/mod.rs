//! Unpacking a layer into a directory.
//!
//! # Theory of operation
//!
//! An archive says what it likes; the directory is all it gets. Names are taken
//! apart: a leading slash means nothing, `..` is refused. Every directory on the
//! way is found by openat2(2) with RESOLVE_IN_ROOT ([`InRoot`]), so symbolic
//! links that the archive itself made lead around in its own directory. The last
//! component is never followed: what is there is removed, and files are made with
//! O_EXCL. A hard link is made to what its target resolves to in the directory,
//! never through a symbolic link at its end.
//!
//! Owners are those of the user namespace this process is in. Where only one id
//! exists, owners, and set-id bits, of files and directories are kept in the
//! attribute that the overlay reads (`user.containers.override_stat`).
//!
//! `.wh.NAME` and `.wh..wh..opq` (layer.md, "Whiteouts") become what the overlay
//! reads: character devices 0:0, which need no privilege, and the attribute
//! `user.overlay.opaque`. They speak of the layers below only, wherever in the
//! archive they stand: so they are made last, and not where the layer itself has
//! something of the name. Times of directories are set after that, when nothing
//! changes in them any more.
//!
//! Left out and counted: devices (they take privilege; and 0:0 would be a
//! whiteout), attributes that are the overlay's own or that this process may not
//! set. Refused, with the whole layer: an owner that does not exist in the
//! namespace, a parent that is no directory, an archive that exceeds its bounds.

pub mod files;
mod name;
mod outcome;

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat,
};

use super::attributes::{self, OPAQUE, OWNER};
use super::tar::{Kind, Member, Reader, TarError, Time};
use crate::idmap::IdMap;
use crate::stage::in_root::{InRoot, Make};
use crate::sys::xattr;
use files::Owner;
use name::{Named, named, plainly_named};
use outcome::{Failed, TooMuch};
pub use outcome::{Limits, Report, UnpackError};

/// Blocks of zeros of this length, aligned, become holes.
const HOLE: usize = 4096;

/// Unpacks an archive into the directory `root`, which is empty and seen by
/// nobody else. This process must be root in a user namespace with the ids of
/// `map`, and its umask 0.
///
/// # Errors
/// [`UnpackError`]; what is in the directory then is of no use.
pub fn unpack(
    archive: impl Read,
    root: &Path,
    map: &IdMap,
    limits: Limits,
) -> Result<Report, UnpackError> {
    let opened = InRoot::open_root(root).map_err(TarError::from)?;
    let mut unpacker = Unpacker::new(opened, map, limits, None);
    let mut reader = Reader::new(archive);
    while let Some(member) = reader.next_member()? {
        if unpacker.directories.is_empty() {
            unpacker.directories.push(("/".into(), member.mtime));
        }
        unpacker.member(&mut reader, &member)?;
    }
    unpacker.finish()?;
    // The digest is of all of it, also of what follows the end.
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(TarError::from)?;
    Ok(unpacker.report)
}

struct Unpacker<'a> {
    root: InRoot,
    map: &'a IdMap,
    limits: Limits,
    report: Report,
    /// Bytes of the names remembered.
    names: u64,
    /// The directory of the last member: nearly always that of the next.
    parent: Option<(PathBuf, OwnedFd)>,
    /// The current member took the place of something.
    replaced: bool,
    directories: Vec<(PathBuf, Time)>,
    whiteouts: Vec<(PathBuf, OsString, Time)>,
    opaque: Vec<(PathBuf, Time)>,
    buffer: Vec<u8>,
    /// Of files that are put into a directory in use: whose they become.
    files: Option<Owner>,
}

impl<'a> Unpacker<'a> {
    fn new(root: InRoot, map: &'a IdMap, limits: Limits, files: Option<Owner>) -> Self {
        Self {
            root,
            map,
            limits,
            report: Report::default(),
            names: 0,
            parent: None,
            replaced: false,
            directories: Vec::new(),
            whiteouts: Vec::new(),
            opaque: Vec::new(),
            buffer: vec![0; 256 << 10],
            files,
        }
    }
}

impl Unpacker<'_> {
    fn member<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        member: &Member,
    ) -> Result<(), UnpackError> {
        let TooMuch { members, bytes } = self.count(member);
        if members {
            let most = self.limits.members;
            return Err(UnpackError::TooMuch { what: "members", most });
        }
        if bytes {
            let most = self.limits.bytes;
            return Err(UnpackError::TooMuch { what: "bytes (see --max-size)", most });
        }
        if self.names > self.limits.names {
            let most = self.limits.names;
            return Err(UnpackError::TooMuch { what: "bytes of names of directories", most });
        }
        let refused = |why: String| UnpackError::Member { name: member.name.clone(), why };
        let name = match self.files {
            None => named(&member.name),
            Some(_) => plainly_named(&member.name),
        };
        match name.map_err(|why| refused(why.to_owned()))? {
            Named::Root => {
                if member.kind != Kind::Directory {
                    return Err(refused("the root is a directory".to_owned()));
                }
                let root = self.root.open(Path::new("/"), OFlag::O_RDONLY | OFlag::O_DIRECTORY);
                let root = root.map_err(|error| refused(error.to_string()))?;
                self.attributes(root.as_fd(), member).map_err(refused)?;
                self.names += member.name.len().max(1) as u64;
                self.directories.push(("/".into(), member.mtime));
                Ok(())
            }
            Named::Entry(parent, name) => {
                let within = self.within(&parent, member.mtime).map_err(|error| {
                    refused(format!("cannot be put into '{}': {error}", parent.display()))
                })?;
                self.replaced = false;
                let made = self.make(reader, member, &within, &parent, &name);
                // Through a link, what was replaced may have been on the way here.
                if !self.replaced {
                    self.parent = Some((parent, within));
                }
                match made {
                    Ok(()) => Ok(()),
                    Err(Failed::Tar(error)) => Err(error.into()),
                    Err(Failed::Why(why)) => Err(refused(why)),
                }
            }
            Named::Whiteout(parent, name) => {
                self.names += member.name.len() as u64;
                self.whiteouts.push((parent, name, member.mtime));
                Ok(())
            }
            Named::Opaque(directory) => {
                self.names += member.name.len() as u64;
                self.opaque.push((directory, member.mtime));
                Ok(())
            }
            Named::Nothing => Ok(()),
        }
    }

    fn count(&mut self, member: &Member) -> TooMuch {
        self.report.members += 1;
        self.report.bytes = self.report.bytes.saturating_add(member.size);
        TooMuch {
            members: self.report.members > self.limits.members,
            bytes: self.report.bytes > self.limits.bytes,
        }
    }

    /// The directory at `path`, made with its parents when missing. What is made
    /// has a time that the archive tells, so that unpacking it again makes the same.
    fn within(&mut self, path: &Path, time: Time) -> io::Result<OwnedFd> {
        if let Some((last, directory)) = self.parent.take()
            && last == path
        {
            return Ok(directory);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.root.open(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        for ancestor in ancestors {
            if self.root.open(ancestor, flags).is_err() {
                self.names += ancestor.as_os_str().len() as u64;
                self.directories.push((ancestor.to_owned(), time));
            }
        }
        let directory = self.root.ensure(path, Make::Directory)?;
        if is_directory(directory.as_fd())? {
            Ok(directory)
        } else {
            Err(io::Error::from(Errno::ENOTDIR))
        }
    }

    fn make<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        member: &Member,
        within: &OwnedFd,
        parent: &Path,
        name: &OsStr,
    ) -> Result<(), Failed> {
        let there = match fstatat(within, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let is_dir = |stat: &FileStat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        match member.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                self.report.devices += 1;
                return Ok(());
            }
            Kind::HardLink => return self.hard_link(member, within, name, there.as_ref()),
            Kind::Directory if self.files.is_some() && there.is_some() => {
                return if there.as_ref().is_some_and(is_dir) {
                    // What others made stays as they made it.
                    Ok(())
                } else {
                    Err(Failed::Why("would take the place of a file".to_owned()))
                };
            }
            Kind::Directory if there.as_ref().is_some_and(is_dir) => {}
            _ => self.remove(within, name, there.as_ref())?,
        }
        let mode = Mode::from_bits_truncate(0o700);
        match member.kind {
            Kind::Directory => {
                if !there.as_ref().is_some_and(is_dir) {
                    mkdirat(within, name, mode)?;
                }
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                let made = openat(within, name, flags | OFlag::O_CLOEXEC, Mode::empty())?;
                self.attributes(made.as_fd(), member).map_err(Failed::Why)?;
                self.names += member.name.len() as u64;
                self.directories.push((parent.join(name), member.mtime));
            }
            Kind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let made = openat(within, name, flags | OFlag::O_CLOEXEC, mode)?;
                let made = File::from(made);
                self.data(reader, member, &made)?;
                self.attributes(made.as_fd(), member).map_err(Failed::Why)?;
                let time = time_spec(member.mtime);
                futimens(&made, &time, &time)?;
            }
            Kind::Symlink | Kind::Fifo => {
                if member.kind == Kind::Symlink {
                    symlinkat(OsStr::from_bytes(&member.link), within, name)?;
                } else {
                    mknodat(within, name, SFlag::S_IFIFO, mode, 0)?;
                }
                let owner = self.owner(member).map_err(Failed::Why)?;
                if let Some((uid, gid)) = owner.filter(|_| !self.map.is_single()) {
                    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                    fchownat(within, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                if member.kind == Kind::Fifo {
                    // It is not a link: it has just been made, and nobody else is here.
                    let mode = Mode::from_bits_truncate(member.mode & 0o777);
                    let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
                    nix::sys::stat::fchmodat(within, name, mode, follow)?;
                }
                let time = time_spec(member.mtime);
                utimensat(within, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
            }
            Kind::HardLink | Kind::CharDevice | Kind::BlockDevice => {}
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        member: &Member,
        within: &OwnedFd,
        name: &OsStr,
        there: Option<&FileStat>,
    ) -> Result<(), Failed> {
        let target = String::from_utf8_lossy(&member.link).into_owned();
        let nowhere = |why: &str| Failed::Why(format!("is a hard link to '{target}', {why}"));
        let link = if self.files.is_some() { plainly_named } else { named };
        let Named::Entry(parent, last) = link(&member.link).map_err(nowhere)? else {
            return Err(nowhere("which is no file"));
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from =
            self.root.open(&parent, flags).map_err(|_| nowhere("which the layer does not have"))?;
        let stat = fstatat(&from, last.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|_| nowhere("which the layer does not have"))?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(nowhere("which is a directory"));
        }
        if there.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.remove(within, name, there)?;
        linkat(&from, last.as_os_str(), within, name, LinkatFlags::empty())?;
        Ok(())
    }

    /// Makes room for a member.
    fn remove(
        &mut self,
        within: &OwnedFd,
        name: &OsStr,
        there: Option<&FileStat>,
    ) -> Result<(), Failed> {
        let Some(there) = there else { return Ok(()) };
        self.replaced = true;
        if self.files.is_some() {
            return match unlinkat(within, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => {
                    Err(Failed::Why("would take the place of a directory".to_owned()))
                }
                done => Ok(done?),
            };
        }
        let path = reach(within.as_fd()).join(name);
        if there.st_mode & libc::S_IFMT == libc::S_IFDIR {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    fn data<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        member: &Member,
        file: &File,
    ) -> Result<(), Failed> {
        for part in &member.parts {
            let (mut at, mut left) = (part.offset, part.length);
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                // A whole buffer, so that blocks of zeros stay aligned.
                let mut count = 0;
                while count < most {
                    match reader.read(&mut self.buffer[count..most]).map_err(Failed::Tar)? {
                        0 => return Err(Failed::Tar(TarError::Short("a member's data"))),
                        more => count += more,
                    }
                }
                write_sparsely(file, &self.buffer[..count], at)?;
                at += count as u64;
                left -= count as u64;
            }
        }
        if member.size > 0 {
            file.set_len(member.size)?;
        }
        Ok(())
    }

    /// Whose a member becomes; nobody's in particular when that is not to be set.
    fn owner(&self, member: &Member) -> Result<Option<(u32, u32)>, String> {
        match self.files {
            Some(Owner::Caller) => return Ok(None),
            Some(Owner::Is(uid, gid)) => return Ok(Some((uid, gid))),
            Some(Owner::AsArchived) | None => {}
        }
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (uid, gid) = id(member.uid)
            .zip(id(member.gid))
            .ok_or_else(|| format!("belongs to {}:{}, which is no id", member.uid, member.gid))?;
        let exists = self.map.has_uid(uid) && self.map.has_gid(gid);
        if !(self.map.is_single() || exists) {
            return Err(format!(
                "belongs to {uid}:{gid}, and there are not as many subordinate ids for this user; \
                 ask the administrator for more (usermod --add-subuids and --add-subgids)"
            ));
        }
        Ok(Some((uid, gid)))
    }

    /// Owner, mode and extended attributes of a file or directory.
    fn attributes(&mut self, made: BorrowedFd<'_>, member: &Member) -> Result<(), String> {
        const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
        let failed = |what: &str, error: io::Error| format!("{what}: {error}");
        let mut mode = member.mode;
        match self.owner(member)? {
            // With another owner they would give away the caller's own power.
            None => mode &= !SET_ID,
            Some((uid, gid)) if !self.map.is_single() => {
                fchown(made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(|errno| failed("its owner cannot be set", errno.into()))?;
            }
            // Through a mounted root the overlay's attribute cannot be set.
            Some(_) if self.files.is_some() => {}
            Some((uid, gid)) => {
                if (uid, gid) != (0, 0) || mode & SET_ID != 0 {
                    let value = format!("{uid}:{gid}:0{mode:o}");
                    xattr::set_on(made, OWNER, value.as_bytes())
                        .map_err(|error| failed("its owner cannot be kept", error))?;
                    mode &= !SET_ID;
                }
            }
        }
        // After the owner, whose change clears set-id bits.
        fchmod(made, Mode::from_bits_truncate(mode))
            .map_err(|errno| failed("its mode cannot be set", errno.into()))?;
        for (name, value) in &member.xattrs {
            if !attributes::is_kept(name) {
                self.report.attributes += 1;
                continue;
            }
            let name = CString::new(name.as_slice())
                .map_err(|_| "it has an attribute with a NUL in its name".to_owned())?;
            match xattr::set_on(made, &name, value) {
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::EPERM | libc::EACCES) => {
                        self.report.attributes += 1;
                    }
                    _ => return Err(failed("an attribute cannot be set", error)),
                },
            }
        }
        Ok(())
    }

    /// What has to wait for the end.
    fn finish(&mut self) -> Result<(), UnpackError> {
        self.parent = None;
        let refused = |path: &Path, what: &str, error: io::Error| UnpackError::Member {
            name: path.as_os_str().as_bytes().to_vec(),
            why: format!("{what}: {error}"),
        };
        for (parent, name, time) in std::mem::take(&mut self.whiteouts) {
            self.whiteout(&parent, &name, time)
                .map_err(|error| refused(&parent.join(&name), "cannot be hidden", error))?;
        }
        for (directory, time) in std::mem::take(&mut self.opaque) {
            self.make_opaque(&directory, time)
                .map_err(|error| refused(&directory, "cannot be made opaque", error))?;
        }
        for (directory, time) in std::mem::take(&mut self.directories) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            // Something else may have taken its place.
            let Ok(opened) = self.root.open(&directory, flags) else { continue };
            let time = time_spec(time);
            utimensat(&opened, ".", &time, &time, UtimensatFlags::NoFollowSymlink)
                .map_err(|errno| refused(&directory, "its time cannot be set", errno.into()))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: &Path, name: &OsStr, time: Time) -> io::Result<()> {
        let within = self.within(parent, time)?;
        match fstatat(&within, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // What the layer itself has stands in its place; a directory would
            // be merged with those below.
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                self.opaque.push((parent.join(name), time));
            }
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                let mode = Mode::from_bits_truncate(0o600);
                match mknodat(&within, name, SFlag::S_IFCHR, mode, 0) {
                    Ok(()) => {}
                    // A file system that refuses devices altogether.
                    Err(Errno::EPERM | Errno::EOPNOTSUPP) => {
                        let mut marker = OsString::from(".wh.");
                        marker.push(name);
                        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
                        openat(&within, marker.as_os_str(), flags, mode)?;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    fn make_opaque(&mut self, directory: &Path, time: Time) -> io::Result<()> {
        let path = self.within(directory, time)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = openat(&path, ".", flags, Mode::empty())?;
        xattr::set_on(opened.as_fd(), OPAQUE, b"y")
    }
}

fn write_sparsely(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        // Up to the next border of a block, whatever the offset.
        let border = HOLE - ((at + done as u64) % HOLE as u64) as usize;
        let zero = |block: &[u8]| block.len() == HOLE && block.iter().all(|byte| *byte == 0);
        let mut end = (done + border).min(bytes.len());
        if zero(&bytes[done..end]) {
            done = end;
            continue;
        }
        while end < bytes.len() && !zero(&bytes[end..bytes.len().min(end + HOLE)]) {
            end = bytes.len().min(end + HOLE);
        }
        file.write_all_at(&bytes[done..end], at + done as u64)?;
        done = end;
    }
    Ok(())
}

fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(nix::sys::stat::fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A path to what is open.
fn reach(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn time_spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, i64::from(time.nanoseconds))
}

#[cfg(test)]
mod tests;
