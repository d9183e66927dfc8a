//! The data of a copy: which of it is wanted, and how it gets across.
//!
//! # Theory of operation
//! Shared blocks where the file system can, else copied in the kernel, else read and
//! written; holes stay holes. What a file system has once refused is not tried again.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::stat::FileStat;
use nix::unistd::{Whence, ftruncate, lseek};

use crate::error::{During, Error, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys;

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Pure: what has to be copied of a file when only its first `keep` bytes are
/// wanted and `data` are the ranges that hold data.
#[must_use]
pub fn plan(data: &[Segment], keep: u64) -> Vec<Segment> {
    data.iter()
        .filter_map(|s| {
            let end = s.start.saturating_add(s.len).min(keep);
            let len = end.checked_sub(s.start).filter(|len| *len > 0)?;
            Some(Segment { start: s.start, len })
        })
        .collect()
}

/// What a file system has refused before and need not be asked again.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Sharing blocks.
    reflink: AtomicBool,
    /// Copying inside the kernel.
    in_kernel: AtomicBool,
}

/// The ranges of a file that hold data. A file system that cannot tell gives
/// the whole file.
fn data_segments(file: BorrowedFd<'_>, size: u64) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut at = 0i64;
    let end = size.cast_signed();
    while at < end {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if segments.is_empty() => {
                return Ok(vec![Segment { start: 0, len: size }]);
            }
            Err(errno) => return Err(Error::Layer { op: "find the data of a file", errno }),
        };
        let stop = lseek(file, start, Whence::SeekHole).during("find the holes of a file")?;
        let stop = stop.min(end);
        if stop <= start {
            break;
        }
        segments
            .push(Segment { start: start.cast_unsigned(), len: (stop - start).cast_unsigned() });
        at = stop;
    }
    Ok(segments)
}

/// Copies the first `keep` bytes of a file of status `stat`, holes staying holes.
pub(super) fn copy_data(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    stat: &FileStat,
    keep: u64,
    refused: &Refused,
) -> Result<()> {
    let size = stat.st_size.cast_unsigned();
    if keep == size && !refused.reflink.load(Ordering::Relaxed) {
        match sys::reflink(source, target) {
            Ok(()) => return Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOTTY) => {
                refused.reflink.store(true, Ordering::Relaxed);
            }
            // This file cannot be shared; it can be copied.
            Err(_) => {}
        }
    }
    let full = stat.st_blocks.cast_unsigned().saturating_mul(512) >= size;
    let data =
        if full { vec![Segment { start: 0, len: size }] } else { data_segments(source, size)? };
    let segments = plan(&data, keep);
    for segment in &segments {
        copy_segment(source, target, *segment, refused)?;
    }
    if segments.last().is_some_and(|s| s.start + s.len == keep) {
        return Ok(());
    }
    ftruncate(target, keep.cast_signed()).during("size a copy")
}

fn copy_segment(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    segment: Segment,
    refused: &Refused,
) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut at = segment.start.cast_signed();
    let end = (segment.start + segment.len).cast_signed();
    let mut buffer = Vec::new();
    let mut in_kernel = !refused.in_kernel.load(Ordering::Relaxed);
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX);
        if in_kernel {
            let (mut from, mut to) = (at, at);
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), want.min(1 << 30))
            {
                // The file became shorter; or a file system that claims so.
                Ok(0) => in_kernel = false,
                Ok(n) => at += n.cast_signed() as i64,
                Err(Errno::EINTR) => {}
                Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    refused.in_kernel.store(true, Ordering::Relaxed);
                    in_kernel = false;
                }
                Err(Errno::EINVAL | Errno::EPERM | Errno::EIO) => in_kernel = false,
                Err(errno) => return Err(Error::Layer { op: "copy the data of a file", errno }),
            }
            continue;
        }
        buffer.resize(want.min(CHUNK), 0);
        let n = match nix::sys::uio::pread(source, &mut buffer, at) {
            Err(Errno::EINTR) => continue,
            other => other.during("read the data of a file")?,
        };
        if n == 0 {
            // Shorter than it was a moment ago: the lower is being changed.
            return Err(Error::Stale);
        }
        let mut written = 0;
        while written < n {
            let to = at + written.cast_signed() as i64;
            match nix::sys::uio::pwrite(target, &buffer[written..n], to) {
                Ok(0) => return Err(Error::Layer { op: "write a copy", errno: Errno::EIO }),
                Ok(m) => written += m,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Layer { op: "write a copy", errno }),
            }
        }
        at += n.cast_signed() as i64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

    use super::*;
    use proptest::prelude::*;

    fn s(start: u64, len: u64) -> Segment {
        Segment { start, len }
    }

    #[test]
    fn plan_table() {
        for (data, keep, want) in [
            (vec![s(0, 10)], 10, vec![s(0, 10)]),
            (vec![s(0, 10)], 4, vec![s(0, 4)]),
            (vec![s(0, 10)], 0, vec![]),
            (vec![s(0, 4), s(8, 4)], 8, vec![s(0, 4)]),
            (vec![s(0, 4), s(8, 4)], 9, vec![s(0, 4), s(8, 1)]),
            (vec![], 100, vec![]),
            (vec![s(u64::MAX, 5)], u64::MAX, vec![]),
        ] {
            assert_eq!(plan(&data, keep), want, "{data:?} {keep}");
        }
    }

    #[test]
    fn a_sparse_copy_has_the_same_content_and_no_more_blocks() {
        use std::io::{Read, Seek, SeekFrom, Write};
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(b"head").unwrap();
        source.seek(SeekFrom::Start(8 << 20)).unwrap();
        source.write_all(b"middle").unwrap();
        source.set_len(16 << 20).unwrap();
        let mut target = tempfile::tempfile().unwrap();
        let stat = fstat(&source).unwrap();
        copy_data(source.as_fd(), target.as_fd(), &stat, 16 << 20, &Refused::default()).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        source.rewind().unwrap();
        source.read_to_end(&mut a).unwrap();
        target.read_to_end(&mut b).unwrap();
        assert_eq!(a.len(), 16 << 20);
        assert!(a == b);
        let blocks = |f: &std::fs::File| fstat(f).unwrap().st_blocks;
        assert!(blocks(&target) <= blocks(&source).max(64), "{} blocks", blocks(&target));
    }

    proptest! {
        #[test]
        fn a_plan_never_leaves_the_data_or_the_limit(
            raw in proptest::collection::vec((0u64..1000, 1u64..100), 0..8), keep in 0u64..1200
        ) {
            let data: Vec<Segment> = raw.iter().map(|(a, b)| s(*a, *b)).collect();
            for p in plan(&data, keep) {
                prop_assert!(p.start + p.len <= keep);
                prop_assert!(data.iter().any(|d| d.start == p.start && p.len <= d.len));
            }
        }
    }
}
