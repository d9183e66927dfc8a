//! Packing a tree into an archive: a directory, the union of layers, or what
//! one layer changes.
//!
//! # Theory of operation
//!
//! The layers are read directly, topmost first, as the overlay would show them:
//! the first that has a name decides what it is; a whiteout, or anything but a
//! directory, ends the search; directories are merged down to an opaque one.
//! No mount is needed, so it makes no difference whether a container runs, and
//! owners are seen where only one id exists and the mounted root shows none.
//!
//! Every directory is opened below its layer's root with no symbolic link on
//! the way ([`InRoot::open_plain`]), every entry by its name in that directory
//! without following: a container that changes its files meanwhile can spoil
//! what is packed of them, and lead nowhere else. A file that gets shorter is
//! filled with zeros, one that gets longer is cut.
//!
//! Entries are sorted by name, a directory before what is in it: the same tree
//! makes the same archive. Sockets are left out, as by tar.

mod copies;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::attributes::{self, OPAQUE, OWNER, REDIRECT, WHITEOUT};
use super::tar::write::Writer;
use super::tar::{Kind, Member, Time};
use crate::stage::in_root::InRoot;
use crate::sys::xattr;
pub use copies::{Copies, other_names};

/// The id that stands for one that the user namespace does not have.
const OVERFLOW: u32 = 65534;

/// Why a tree cannot be packed.
#[derive(Debug, thiserror::Error)]
#[error("cannot pack {}: {source}", path.display())]
pub struct PackError {
    /// Where, in the tree.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// A directory that is part of a tree.
#[derive(Debug)]
pub struct Layer {
    /// Its root.
    pub root: InRoot,
    /// It was made by others: owners that do not exist here are root.
    pub foreign: bool,
    /// Only what every user of the host may read is shown.
    pub public: bool,
    /// Directories that are shown empty.
    pub hidden: BTreeSet<PathBuf>,
}

impl Layer {
    /// All of a directory.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open(root: &Path, foreign: bool) -> Result<Self, PackError> {
        let opened = InRoot::open_root(root)
            .map_err(|source| PackError { path: root.to_owned(), source })?;
        Ok(Self { root: opened, foreign, public: false, hidden: BTreeSet::new() })
    }
}

/// What is packed.
#[derive(Debug)]
pub struct Tree {
    /// Topmost first.
    pub layers: Vec<Layer>,
    /// The first layer alone, with whiteouts for what it hides of the others.
    pub changes: bool,
    /// Paths at which an empty file or directory is left out.
    pub without: BTreeSet<PathBuf>,
    /// Only one id exists: owners are in an attribute.
    pub single: bool,
    /// It is a layer's: names may speak of others (`.wh.`).
    pub marks: bool,
    /// What its root is called in the archive; nothing for `./`.
    pub called: Vec<u8>,
    /// What the first layer has in place of files of the others with several names.
    pub copies: Option<Copies>,
}

impl Tree {
    /// Layers of a container or an image.
    #[must_use]
    pub fn of(layers: Vec<Layer>, changes: bool, single: bool) -> Self {
        let without = BTreeSet::new();
        let called = Vec::new();
        Self { layers, changes, without, single, marks: true, called, copies: None }
    }

    /// A directory as it is seen, whatever it is part of.
    #[must_use]
    pub fn plain(root: InRoot, called: Vec<u8>) -> Self {
        let layer = Layer { root, foreign: false, public: false, hidden: BTreeSet::new() };
        Self { marks: false, called, ..Self::of(vec![layer], false, false) }
    }
}

/// What a name in a directory stands for.
#[derive(Debug)]
enum Found {
    /// Nothing: a whiteout is the first that has it.
    Hidden,
    Entry {
        /// The layer that has it.
        layer: usize,
        stat: FileStat,
        /// Of a directory: the layers that are merged.
        parts: Vec<usize>,
    },
}

/// Packs `tree` into an archive on `output`.
///
/// # Errors
/// [`PackError`], also when `output` cannot be written.
pub fn pack<W: Write>(tree: &Tree, output: W) -> Result<W, PackError> {
    let mut packer = Packer::new(tree, output);
    let parts: Vec<usize> = if tree.changes { vec![0] } else { (0..tree.layers.len()).collect() };
    let parts = packer.opaque_ends(Path::new("/"), parts)?;
    packer.root(&parts)?;
    // Depth first, each directory's entries in order.
    let mut waiting = vec![(PathBuf::from("/"), parts)];
    while let Some((path, parts)) = waiting.pop() {
        let mut below = packer.directory(&path, &parts)?;
        below.reverse();
        waiting.append(&mut below);
    }
    if tree.changes && tree.copies.is_some() {
        packer.other_names()?;
    }
    packer.writer.finish().map_err(|source| PackError { path: "/".into(), source })
}

/// Packs an open file alone, as `called`.
///
/// # Errors
/// As of [`pack`].
pub fn pack_file<W: Write>(file: File, called: &[u8], output: W) -> Result<W, PackError> {
    let at = |source| PackError { path: OsStr::from_bytes(called).into(), source };
    let tree = Tree { marks: false, ..Tree::of(Vec::new(), false, false) };
    let mut packer = Packer::new(&tree, output);
    packer.content(false, called.to_vec(), file).map_err(at)?;
    packer.writer.finish().map_err(at)
}

struct Packer<'a, W> {
    tree: &'a Tree,
    writer: Writer<W>,
    /// First name of each file with several, by device and number.
    linked: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

type Below = Vec<(PathBuf, Vec<usize>)>;

impl<'a, W: Write> Packer<'a, W> {
    fn new(tree: &'a Tree, output: W) -> Self {
        let writer = Writer::new(output);
        Self { tree, writer, linked: HashMap::new(), buffer: vec![0; 256 << 10] }
    }

    fn root(&mut self, parts: &[usize]) -> Result<(), PackError> {
        let at = |source| PackError { path: "/".into(), source };
        let Some(layer) = parts.first() else { return Ok(()) };
        let opened = self.open(*layer, Path::new("/")).map_err(at)?;
        let stat = fstat(&opened).map_err(|errno| at(errno.into()))?;
        let name = match &self.tree.called[..] {
            b"" => b"./".to_vec(),
            called => [called, b"/"].concat(),
        };
        let member = self.member(self.foreign(*layer), name, &stat, Some(opened.as_fd()));
        let member = member.map_err(at)?;
        self.writer.header(&member).map_err(at)
    }

    fn open(&self, layer: usize, path: &Path) -> io::Result<OwnedFd> {
        self.tree.layers[layer].root.open_plain(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Of layers that have a directory at `path`, those down to an opaque one.
    fn opaque_ends(&self, path: &Path, mut parts: Vec<usize>) -> Result<Vec<usize>, PackError> {
        for (position, layer) in parts.iter().enumerate() {
            let opaque = self
                .open(*layer, path)
                .and_then(|directory| is_opaque(directory.as_fd()))
                .map_err(|source| PackError { path: path.to_owned(), source })?;
            if opaque {
                parts.truncate(position + 1);
                break;
            }
        }
        Ok(parts)
    }

    /// Packs what is in a directory, and gives the directories in it.
    fn directory(&mut self, path: &Path, parts: &[usize]) -> Result<Below, PackError> {
        let at = |source| PackError { path: path.to_owned(), source };
        let opened = self.opened(path, parts).map_err(at)?;
        if self.tree.changes
            && let Some(directory) = opened.get(&0)
            && path != Path::new("/")
            && is_opaque(directory.as_fd()).map_err(at)?
        {
            self.marker(&path.join(".wh..wh..opq"))?;
        }
        let mut below = Vec::new();
        for (name, found) in self.merged(path, parts, &opened).map_err(at)? {
            let path = path.join(&name);
            match found {
                Found::Hidden => {
                    if self.tree.changes {
                        let mut marker = OsString::from(".wh.");
                        marker.push(&name);
                        self.marker(&path.with_file_name(marker))?;
                    }
                }
                Found::Entry { layer, stat, parts } => {
                    let Some(directory) = opened.get(&layer) else { continue };
                    // A mount point that the image has itself is the image's.
                    let own = layer == 0 && !parts.iter().any(|part| *part != 0);
                    if own && self.is_left_out(&path, &stat, directory) {
                        continue;
                    }
                    let packed = self.entry(layer, directory.as_fd(), &name, &path, &stat);
                    match packed {
                        Ok(true) if !parts.is_empty() => below.push((path, parts)),
                        Ok(_) => {}
                        Err(error) if is_gone(&error) => {}
                        Err(source) => return Err(PackError { path, source }),
                    }
                }
            }
        }
        self.ends(&mut below)?;
        Ok(below)
    }

    /// Cuts what is merged in each of several directories down to an opaque one.
    fn ends(&self, below: &mut Below) -> Result<(), PackError> {
        for (path, parts) in below {
            *parts = self.opaque_ends(path, std::mem::take(parts)).or_else(|error| {
                if is_gone(&error.source) { Ok(Vec::new()) } else { Err(error) }
            })?;
        }
        Ok(())
    }

    /// The directory of these layers at `path`, where it is one.
    fn opened(&self, path: &Path, parts: &[usize]) -> io::Result<BTreeMap<usize, OwnedFd>> {
        let mut opened = BTreeMap::new();
        for layer in parts {
            match self.open(*layer, path) {
                Ok(directory) => {
                    opened.insert(*layer, directory);
                }
                // Gone, or replaced, since it was seen.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    /// What the layers together have in a directory.
    fn merged(
        &self,
        path: &Path,
        parts: &[usize],
        opened: &BTreeMap<usize, OwnedFd>,
    ) -> io::Result<BTreeMap<OsString, Found>> {
        let mut all: BTreeMap<OsString, Found> = BTreeMap::new();
        let mut closed: BTreeSet<OsString> = BTreeSet::new();
        for index in parts {
            let Some(directory) = opened.get(index) else { continue };
            let layer = &self.tree.layers[*index];
            let mut seen = Vec::new();
            for name in names(directory.as_fd())? {
                if self.tree.marks
                    && let Some(hidden) = name.as_bytes().strip_prefix(b".wh.")
                {
                    if !hidden.starts_with(b".wh.") && !hidden.is_empty() {
                        let hidden = OsStr::from_bytes(hidden).to_owned();
                        all.entry(hidden.clone()).or_insert(Found::Hidden);
                        seen.push(hidden);
                    }
                    continue;
                }
                let stat = match fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                {
                    Ok(stat) => stat,
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                if closed.contains(&name) {
                    continue;
                }
                let kind = stat.st_mode & libc::S_IFMT;
                if self.tree.marks && kind == libc::S_IFCHR && stat.st_rdev == 0 {
                    all.entry(name.clone()).or_insert(Found::Hidden);
                    seen.push(name);
                    continue;
                }
                if kind == libc::S_IFDIR {
                    let place = path.join(&name);
                    let empty = layer.hidden.contains(&place)
                        || (layer.public && stat.st_mode & 0o005 != 0o005);
                    let mut own = if empty { Vec::new() } else { vec![*index] };
                    match all.get_mut(&name) {
                        None => {
                            let entry = Found::Entry { layer: *index, stat, parts: own };
                            all.insert(name, entry);
                        }
                        Some(Found::Entry { parts, .. }) => parts.append(&mut own),
                        Some(Found::Hidden) => {}
                    }
                    continue;
                }
                if layer.public && kind != libc::S_IFLNK && stat.st_mode & 0o004 == 0 {
                    continue;
                }
                let empty = kind == libc::S_IFREG && stat.st_size == 0;
                if self.tree.marks && empty && marked(directory, &name)? {
                    all.entry(name.clone()).or_insert(Found::Hidden);
                    seen.push(name);
                    continue;
                }
                all.entry(name.clone()).or_insert(Found::Entry {
                    layer: *index,
                    stat,
                    parts: Vec::new(),
                });
                seen.push(name);
            }
            // They speak of the layers below this one.
            closed.extend(seen);
        }
        Ok(all)
    }

    fn is_left_out(&self, path: &Path, stat: &FileStat, directory: &OwnedFd) -> bool {
        if !self.tree.without.contains(path) {
            return false;
        }
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => stat.st_size == 0,
            libc::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                let name = path.file_name().unwrap_or_default();
                openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())
                    .map_err(io::Error::from)
                    .and_then(|opened| names(opened.as_fd()))
                    .is_ok_and(|names| names.is_empty())
            }
            _ => false,
        }
    }

    /// What a path is called in the archive.
    fn relative(&self, path: &Path) -> Vec<u8> {
        let path = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        match &self.tree.called[..] {
            b"" => path.to_vec(),
            called => [called, b"/", path].concat(),
        }
    }

    fn marker(&mut self, path: &Path) -> Result<(), PackError> {
        let member = Member {
            name: self.relative(path),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            xattrs: Vec::new(),
            parts: Vec::new(),
        };
        self.writer.header(&member).map_err(|source| PackError { path: path.to_owned(), source })
    }

    /// Packs one entry; whether it is in the archive.
    fn entry(
        &mut self,
        layer: usize,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        stat: &FileStat,
    ) -> io::Result<bool> {
        let tree = self.tree;
        let copy = self.copy(layer, stat)?;
        let (layer, directory, name, stat) = match (&copy, &tree.copies) {
            (Some((key, stat)), Some(copies)) => (0, copies.index(), key.as_os_str(), stat),
            _ => (layer, directory, name, stat),
        };
        let mut relative = self.relative(path);
        let kind = stat.st_mode & libc::S_IFMT;
        if kind == libc::S_IFSOCK || kind == libc::S_IFCHR || kind == libc::S_IFBLK {
            return Ok(false);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if kind == libc::S_IFDIR {
            relative.push(b'/');
            let opened = openat(directory, name, flags | OFlag::O_DIRECTORY, Mode::empty())?;
            if xattr::value_of(opened.as_fd(), REDIRECT)?.is_some() {
                return Err(io::Error::other(
                    "it was renamed on an overlay with redirect_dir=on, and its content is \
                     elsewhere: copy it to a new directory in the container first",
                ));
            }
            let member = self.member(self.foreign(layer), relative, stat, Some(opened.as_fd()))?;
            self.writer.header(&member)?;
            return Ok(true);
        }
        if stat.st_nlink > 1 || copy.is_some() {
            let first = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert(relative.clone());
            if *first != relative {
                let link = first.clone();
                let member = self.member(self.foreign(layer), relative, stat, None)?;
                let member = Member { kind: Kind::HardLink, link, size: 0, ..member };
                self.writer.header(&member)?;
                return Ok(true);
            }
        }
        if kind != libc::S_IFREG {
            let mut member = self.member(self.foreign(layer), relative, stat, None)?;
            if kind == libc::S_IFLNK {
                member.link = readlinkat(directory, name)?.as_bytes().to_vec();
            }
            self.writer.header(&member)?;
            return Ok(true);
        }
        let file = File::from(openat(directory, name, flags, Mode::empty())?);
        self.content(self.foreign(layer), relative, file)
    }

    /// Packs a file that is open; whether it is one.
    fn content(&mut self, foreign: bool, name: Vec<u8>, mut file: File) -> io::Result<bool> {
        let now = fstat(&file)?;
        if now.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Ok(false);
        }
        let mut member = self.member(foreign, name, &now, Some(file.as_fd()))?;
        let kept = if self.tree.single { xattr::value_of(file.as_fd(), OWNER)? } else { None };
        match kept.as_deref().and_then(attributes::stands_for) {
            None => {}
            Some("pipe") => {
                (member.kind, member.size) = (Kind::Fifo, 0);
                self.writer.header(&member)?;
                return Ok(true);
            }
            Some(_) => return Ok(false),
        }
        self.writer.header(&member)?;
        let mut left = member.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let mut count = file.read(&mut self.buffer[..most])?;
            if count == 0 {
                self.buffer[..most].fill(0);
                count = most;
            }
            self.writer.data(&self.buffer[..count])?;
            left -= count as u64;
        }
        self.writer.pad(member.size)?;
        Ok(true)
    }

    fn foreign(&self, layer: usize) -> bool {
        self.tree.layers.get(layer).is_some_and(|layer| layer.foreign)
    }

    fn member(
        &self,
        foreign: bool,
        name: Vec<u8>,
        stat: &FileStat,
        opened: Option<BorrowedFd<'_>>,
    ) -> io::Result<Member> {
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            _ => Kind::File,
        };
        let known = |id: u32| if foreign && id == OVERFLOW { 0 } else { id };
        let (mut uid, mut gid) = (known(stat.st_uid), known(stat.st_gid));
        let mut mode = stat.st_mode & 0o7777;
        let mut xattrs = Vec::new();
        if let Some(opened) = opened {
            if self.tree.single
                && let Some(kept) = xattr::value_of(opened, OWNER)?
                && let Some(kept) = attributes::owner(&kept)
            {
                (uid, gid, mode) = kept;
            }
            for name in xattr::list_of(opened)? {
                if attributes::is_kept(name.to_bytes())
                    && let Some(value) = xattr::value_of(opened, &name)?
                {
                    xattrs.push((name.into_bytes(), value));
                }
            }
            xattrs.sort();
        }
        Ok(Member {
            name,
            link: Vec::new(),
            kind,
            mode,
            uid: uid.into(),
            gid: gid.into(),
            mtime: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            xattrs,
            parts: Vec::new(),
        })
    }
}

fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut names = Vec::new();
    for item in Dir::openat(directory, ".", flags, Mode::empty())? {
        let name = OsStr::from_bytes(item?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    for mark in [OPAQUE, c"trusted.overlay.opaque", c"user.fuseoverlayfs.opaque"] {
        if xattr::value_of(directory, mark)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    match fstatat(directory, ".wh..wh..opq", AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an empty file is a whiteout by its attribute.
fn marked(directory: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => Ok(xattr::value_of(file.as_fd(), WHITEOUT)?.is_some()),
        // It says so itself when it is packed.
        Err(_) => Ok(false),
    }
}

/// It has vanished, or become something else, since it was seen.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

#[cfg(test)]
mod tests;
