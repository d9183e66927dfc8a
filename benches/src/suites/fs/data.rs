//! Trees on disk: writing them, and telling whether one is what it should be.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::tree::{Content, EPOCH, Entry, Kind, fill, mix};

/// Unit of the large files' contents: each has a content of its own.
pub(crate) const BLOCK: usize = 4096;

/// Whether files get their contents, or only their sizes: what is never read need
/// not take memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Contents.
    Bytes,
    /// A hole.
    Sparse,
}

/// Writes entries, sorted as in a tree, below a directory that exists.
///
/// # Errors
/// The first that a system call gives.
pub(crate) fn write(entries: &[Entry], root: &Path, how: Fill) -> Result<()> {
    for entry in entries {
        let path = root.join(&entry.path);
        write_one(entry, &path, how).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // From the deepest up: what is made in a directory changes its time.
    for entry in entries.iter().rev().filter(|entry| entry.kind == Kind::Directory) {
        let time = TimeSpec::new(EPOCH, 0);
        let path = root.join(&entry.path);
        utimensat(AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

fn write_one(entry: &Entry, path: &Path, how: Fill) -> Result<()> {
    match &entry.kind {
        Kind::Directory => fs::create_dir(path)?,
        Kind::Link(target) => {
            symlink(target, path)?;
            let time = TimeSpec::new(EPOCH, 0);
            utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Kind::File(content) => {
            let mode = if entry.path.starts_with("usr/bin/") { 0o755 } else { 0o644 };
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
            match how {
                Fill::Bytes => file.write_all(&content.bytes())?,
                Fill::Sparse => file.set_len(content.size)?,
            }
            let (seconds, nanoseconds) = content.time();
            let time = TimeSpec::new(seconds, nanoseconds);
            futimens(&file, &time, &time)?;
        }
    }
    Ok(())
}

/// A sum over bytes that tells a wrong one: four lanes, so that it is faster than
/// what it checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut lanes = [1u64, 2, 3, 4];
        let (chunks, rest) = bytes.as_chunks::<32>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(ODD).rotate_left(29);
            }
        }
        let tail = rest.iter().fold(bytes.len() as u64, |sum, byte| mix(sum ^ u64::from(*byte)));
        Self(lanes.iter().fold(tail, |sum, lane| mix(sum ^ lane)))
    }

    /// This one, then another: the order counts.
    pub(crate) fn then(self, next: Self) -> Self {
        Self(mix(self.0.rotate_left(7) ^ next.0))
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Everything below a directory that does not depend on when it was written, a line
/// each, sorted: path, mode, owner, group; of files size and sum of the content, and
/// the modification time when `times`; of links the target. `skip` is a name of the
/// top level to leave out.
///
/// # Errors
/// The first that a system call gives.
pub(crate) fn listing(root: &Path, times: bool, skip: Option<&str>) -> Result<String> {
    let mut text = String::new();
    list(root, Path::new(""), times, skip, &mut text)?;
    Ok(text)
}

fn list(
    root: &Path,
    below: &Path,
    times: bool,
    skip: Option<&str>,
    out: &mut String,
) -> Result<()> {
    let dir = root.join(below);
    let mut names: Vec<_> = fs::read_dir(&dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.retain(|name| skip.is_none_or(|skip| name != OsStr::new(skip)));
    names.sort();
    for name in names {
        let (path, shown) = (dir.join(&name), below.join(&name));
        let meta = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        let (mode, owner) = (meta.permissions().mode(), (meta.uid(), meta.gid()));
        write!(out, "{} {mode:o} {} {}", shown.display(), owner.0, owner.1)?;
        if meta.is_dir() {
            out.push('\n');
            list(root, &shown, times, None, out)?;
            continue;
        }
        if meta.is_symlink() {
            write!(out, " -> {}", fs::read_link(&path)?.display())?;
        } else {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            ensure!(bytes.len() as u64 == meta.len(), "{}: not of its size", path.display());
            write!(out, " {} {}", bytes.len(), Sum::of(&bytes))?;
            if times {
                write!(out, " {}", meta.mtime())?;
            }
        }
        out.push('\n');
    }
    Ok(())
}

/// Where two texts differ first, in words; None where they do not.
pub(crate) fn difference(text: &str, expected: &str) -> Option<String> {
    if text == expected {
        return None;
    }
    let end = "nothing more";
    let (mut lines, mut others) = (text.lines(), expected.lines());
    loop {
        let (line, other) = (lines.next(), others.next());
        if line != other || line.is_none() {
            let (line, other) = (line.unwrap_or(end), other.unwrap_or(end));
            return Some(format!("{line:?} in place of {other:?}"));
        }
    }
}

/// Bytes of one block of a large file.
pub(crate) fn block(number: u64) -> Content {
    Content { size: BLOCK as u64, seed: mix(number) }
}

/// Whether a block has the first and the last word it should have.
pub(crate) fn is_block(bytes: &[u8], number: u64) -> bool {
    let seed = block(number).seed;
    let word = |at: usize| mix(seed ^ (at as u64) << 1).to_le_bytes();
    bytes.len() == BLOCK && bytes[..8] == word(0) && bytes[BLOCK - 8..] == word(BLOCK / 8 - 1)
}

/// Bytes a large file is written and read by.
pub(crate) const CHUNK: usize = 1 << 20;

/// Writes `chunks` chunks of a large file.
///
/// # Errors
/// write(2)'s.
pub(crate) fn write_large(file: &mut File, chunks: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (at, piece) in buffer.chunks_mut(BLOCK).enumerate() {
        fill(piece, block(at as u64).seed);
    }
    let per_chunk = (CHUNK / BLOCK) as u64;
    for chunk in 0..chunks {
        for (at, piece) in buffer.chunks_mut(BLOCK).enumerate() {
            stamp(piece, chunk * per_chunk + at as u64);
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

/// Makes a block the one of a number: what [`is_block`] looks at.
fn stamp(piece: &mut [u8], number: u64) {
    let seed = block(number).seed;
    piece[..8].copy_from_slice(&mix(seed).to_le_bytes());
    let last = mix(seed ^ ((BLOCK / 8 - 1) as u64) << 1);
    piece[BLOCK - 8..].copy_from_slice(&last.to_le_bytes());
}

/// Reads a large file to its end and checks each block; how many bytes it has.
///
/// # Errors
/// read(2)'s, or says which block is wrong.
pub(crate) fn check_large(file: &mut File) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut number = 0;
    loop {
        let mut got = 0;
        while got < CHUNK {
            match file.read(&mut buffer[got..])? {
                0 => break,
                count => got += count,
            }
        }
        for piece in buffer[..got].chunks(BLOCK) {
            ensure!(is_block(piece, number), "block {number} of the large file is wrong");
            number += 1;
        }
        if got < CHUNK {
            return Ok(number * BLOCK as u64);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::super::tree::Tree;
    use super::*;

    #[test]
    fn a_tree_written_twice_is_the_same_and_a_changed_byte_is_told() {
        let tree = Tree::new(300);
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in &dirs {
            write(&tree.entries, dir.path(), Fill::Bytes).unwrap();
        }
        let listed = |at: usize| listing(dirs[at].path(), true, None).unwrap();
        assert_eq!(listed(0), listed(1));
        assert_eq!(listed(0).lines().count(), 300);
        let (path, content) = tree.small_files(1)[0];
        let mut bytes = content.bytes();
        bytes[0] ^= 1;
        fs::write(dirs[1].path().join(path), &bytes).unwrap();
        let [before, changed] = [0, 1].map(|at| listing(dirs[at].path(), false, None).unwrap());
        let words = difference(&changed, &before).unwrap();
        assert!(words.matches(path).count() == 2, "{words}");
        fs::remove_file(dirs[1].path().join(path)).unwrap();
        assert!(difference(&listed(1), &listed(0)).is_some());
    }

    #[test]
    fn every_byte_counts_in_a_sum() {
        let bytes: Vec<u8> = (0..100).collect();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 0x80;
            assert_ne!(Sum::of(&bytes), Sum::of(&other), "{at}");
        }
        assert_ne!(Sum::of(&bytes), Sum::of(&bytes[..99]));
        assert_ne!(Sum::of(b"a").then(Sum::of(b"b")), Sum::of(b"b").then(Sum::of(b"a")));
    }

    #[test]
    fn differences_in_words() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\n", "a\nb\n").unwrap(), "\"nothing more\" in place of \"b\"");
        assert!(difference("a", "a\n").is_some());
    }

    #[test]
    fn large_files_are_checked_by_the_block() {
        let mut file = tempfile::tempfile().unwrap();
        write_large(&mut file, 3).unwrap();
        let rewound = |file: &mut File| {
            use std::io::Seek;
            file.rewind().unwrap();
            check_large(file)
        };
        assert_eq!(rewound(&mut file).unwrap(), 3 << 20);
        // Two blocks changed places: each is well formed, and neither in its place.
        use std::os::unix::fs::FileExt;
        let block_at = |file: &File, at: u64| {
            let mut bytes = vec![0; BLOCK];
            file.read_exact_at(&mut bytes, at * BLOCK as u64).unwrap();
            bytes
        };
        let (a, b) = (block_at(&file, 5), block_at(&file, 300));
        file.write_all_at(&b, 5 * BLOCK as u64).unwrap();
        file.write_all_at(&a, 300 * BLOCK as u64).unwrap();
        assert!(format!("{:#}", rewound(&mut file).unwrap_err()).contains("block 5 "));
    }
}
