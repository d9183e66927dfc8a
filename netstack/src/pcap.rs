//! Frames of the guest, both ways, in files that tcpdump and Wireshark read
//! (`--pcap`).
//!
//! # Theory of operation
//!
//! The format is pcap with nanoseconds (draft-ietf-opsawg-pcap), one Ethernet frame a
//! record, in the byte order of this machine. Frames are written as they pass the
//! device, without their virtio-net header: with offload they are longer than the MTU
//! and their checksums may be partial.
//!
//! With a limit of size the files are a ring: what would make one longer starts the
//! next, and after the last the first begins anew. All are made at the start, for
//! their owner only: a process that has given up files goes on writing to them.
//!
//! A file that cannot be written (a full disk) ends the capture, not the network.

use std::fs::File;
use std::io::{IoSlice, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Smallest limit of a file's size, in bytes: one frame always fits.
pub const SIZE_MIN: u64 = 1 << 20;
/// Files of a ring at most.
pub const FILES_MAX: u16 = 1000;

/// pcap with nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// Longest frame that readers must expect; tcpdump's own.
const SNAPLEN: u32 = 262_144;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// What to capture into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The first file; the others have `.1`, `.2` … behind its name.
    pub path: PathBuf,
    /// Longest file, in bytes; None for no limit and one file.
    pub size: Option<u64>,
    /// How many files there are, when there is a limit: 2 at least.
    pub files: u16,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// A capture, which all workers write to.
#[derive(Debug)]
pub struct Capture {
    /// What `Duration::ZERO` of the driver's clock is, since 1970.
    epoch: Duration,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    files: Vec<File>,
    /// Which is written to, and how long it is.
    current: usize,
    len: u64,
    limit: u64,
    failed: bool,
}

impl Capture {
    /// Makes the files. Times are since 1970 until [`Capture::since`] says otherwise.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn create(request: &Request) -> Result<Capture, Error> {
        let count = if request.size.is_some() { request.files.max(2) } else { 1 };
        let mut files = Vec::new();
        for n in 0..count {
            let path = numbered(&request.path, n);
            let made = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
                .open(&path);
            files.push(made.map_err(|source| Error { path, source })?);
        }
        let limit = request.size.map_or(u64::MAX, |size| size.max(SIZE_MIN));
        let mut ring = Ring { files, current: 0, len: 0, limit, failed: false };
        ring.begin().map_err(|source| Error { path: request.path.clone(), source })?;
        Ok(Capture { epoch: Duration::ZERO, ring: Mutex::new(ring) })
    }

    /// The zero of all later times is `epoch` after the beginning of 1970.
    #[must_use]
    pub fn since(self, epoch: Duration) -> Capture {
        Capture { epoch, ..self }
    }

    /// Writes a frame that is `parts` together, of which `skip` bytes at the beginning
    /// are none of it.
    ///
    /// # Errors
    /// The first time that a file cannot be written: the capture is over then.
    pub fn write(&self, now: Duration, parts: &[IoSlice<'_>], skip: usize) -> std::io::Result<()> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.failed {
            return Ok(());
        }
        let result = ring.record(self.epoch + now, parts, skip);
        ring.failed = result.is_err();
        result
    }
}

fn numbered(path: &Path, n: u16) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if n > 0 {
        name.push(format!(".{n}"));
    }
    name.into()
}

impl Ring {
    /// Empties the current file and writes its header.
    fn begin(&mut self) -> std::io::Result<()> {
        let mut header = Vec::with_capacity(FILE_HEADER);
        header.extend(MAGIC.to_ne_bytes());
        // Version 2.4; the time zone and accuracy, which nobody uses.
        header.extend(2u16.to_ne_bytes());
        header.extend(4u16.to_ne_bytes());
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_ne_bytes());
        header.extend(LINKTYPE_ETHERNET.to_ne_bytes());
        let file = &mut self.files[self.current];
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(&header)?;
        self.len = header.len() as u64;
        Ok(())
    }

    fn record(&mut self, at: Duration, parts: &[IoSlice<'_>], skip: usize) -> std::io::Result<()> {
        let all: usize = parts.iter().map(|part| part.len()).sum();
        let len = all.saturating_sub(skip);
        let whole = (RECORD_HEADER + len) as u64;
        if self.len + whole > self.limit {
            self.current = (self.current + 1) % self.files.len();
            self.begin()?;
        }
        // One call a frame: a record is whole, whoever reads meanwhile.
        let mut record = Vec::with_capacity(RECORD_HEADER + len);
        record.extend((at.as_secs() as u32).to_ne_bytes());
        record.extend(at.subsec_nanos().to_ne_bytes());
        record.extend((len as u32).to_ne_bytes());
        record.extend((len as u32).to_ne_bytes());
        let mut skip = skip;
        for part in parts {
            let from = skip.min(part.len());
            record.extend_from_slice(&part[from..]);
            skip -= from;
        }
        self.files[self.current].write_all(&record)?;
        self.len += whole;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(path: &Path) -> Vec<(u32, u32, Vec<u8>)> {
        let bytes = std::fs::read(path).unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (MAGIC, SNAPLEN, 1));
        let mut at = FILE_HEADER;
        let mut all = Vec::new();
        while at < bytes.len() {
            let len = word(at + 8) as usize;
            assert_eq!(word(at + 12) as usize, len);
            all.push((word(at), word(at + 4), bytes[at + 16..at + 16 + len].to_vec()));
            at += 16 + len;
        }
        all
    }

    #[test]
    fn frames_are_written_without_what_precedes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let request = Request { path: path.clone(), size: None, files: 5 };
        let capture = Capture::create(&request).unwrap().since(Duration::from_secs(1000));
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"er|frame"), IoSlice::new(b"!")];
        capture.write(Duration::from_nanos(2_000_000_003), &parts, 7).unwrap();
        capture.write(Duration::ZERO, &parts[2..], 0).unwrap();
        assert_eq!(frames(&path), [(1002, 3, b"frame!".to_vec()), (1000, 0, b"!".to_vec())]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_are_a_ring_and_none_is_longer_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let request = Request { path: path.clone(), size: Some(SIZE_MIN), files: 3 };
        let capture = Capture::create(&request).unwrap();
        let frame = vec![7; 65_000];
        let per_file = (SIZE_MIN as usize - FILE_HEADER) / (65_000 + RECORD_HEADER);
        for n in 0..per_file * 4 {
            capture.write(Duration::from_secs(n as u64), &[IoSlice::new(&frame)], 0).unwrap();
        }
        let first = |n| frames(&numbered(&path, n)).first().map(|(at, ..)| *at as usize);
        // The fourth has taken the first one's place.
        assert_eq!(
            (first(0), first(1), first(2)),
            (Some(per_file * 3), Some(per_file), Some(per_file * 2))
        );
        for n in 0..3 {
            assert!(std::fs::metadata(numbered(&path, n)).unwrap().len() <= SIZE_MIN);
        }
    }

    #[test]
    fn a_full_disk_is_told_once() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ring = Ring { files: vec![full], current: 0, len: 0, limit: u64::MAX, failed: false };
        let capture = Capture { epoch: Duration::ZERO, ring: Mutex::new(ring) };
        assert!(capture.write(Duration::ZERO, &[IoSlice::new(b"x")], 0).is_err());
        assert!(capture.write(Duration::ZERO, &[IoSlice::new(b"x")], 0).is_ok());
    }
}
