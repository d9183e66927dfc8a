//! What a container in the background has printed, and when.
//!
//! Beside the text, as it was printed, lies a list of moments: records of 16
//! bytes, the place in the text at which something was printed and the
//! milliseconds since 1970 (both little-endian), in order. A record is written
//! before its text, so each line has a moment as soon as it can be read.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of a record, in bytes.
const RECORD: usize = 16;

/// A log, opened to be written.
#[derive(Debug)]
pub struct Log {
    text: File,
    moments: File,
}

impl Log {
    /// Opens the log `path`, made when missing; what was printed before stays.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| File::options().create(true).append(true).mode(0o600).open(path);
        Ok(Self { text: open(path)?, moments: open(&path.with_extension("times"))? })
    }

    /// The text, for whoever else writes into it.
    #[must_use]
    pub fn text(&self) -> &File {
        &self.text
    }

    /// Adds what was printed `now`.
    ///
    /// # Errors
    /// As of write(2).
    pub fn append(&mut self, bytes: &[u8], now: SystemTime) -> io::Result<()> {
        let at = self.text.metadata()?.len();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.moments.write_all(&[at.to_le_bytes(), time.to_le_bytes()].concat())?;
        self.text.write_all(bytes)
    }
}

/// When each part of a log was printed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Moments(Vec<(u64, u64)>);

impl Moments {
    /// Reads the list that belongs to the log `path`; a missing one is empty.
    ///
    /// # Errors
    /// As of read(2).
    pub fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path.with_extension("times")) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        // Half a record is that of a writer who was killed.
        let records = bytes.chunks_exact(RECORD).map(|record| {
            let number = |at: usize| {
                let mut number = [0; 8];
                number.copy_from_slice(&record[at..at + 8]);
                u64::from_le_bytes(number)
            };
            (number(0), number(8))
        });
        Self(records.collect())
    }

    /// When the byte at `place` was printed; `None` when nobody knows.
    #[must_use]
    pub fn at(&self, place: u64) -> Option<SystemTime> {
        let after = self.0.partition_point(|(start, _)| *start <= place);
        let (_, time) = self.0.get(after.checked_sub(1)?)?;
        UNIX_EPOCH.checked_add(Duration::from_millis(*time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_the_moment_of_its_printing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let time = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(Moments::read(&path).unwrap().at(0), None);
        Log::open(&path).unwrap().append(b"one\n", time(1)).unwrap();
        let mut log = Log::open(&path).unwrap();
        log.append(b"two\nth", time(2)).unwrap();
        log.append(b"ree\n", time(3)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
        let moments = Moments::read(&path).unwrap();
        let seen: Vec<_> = [0, 3, 4, 8, 9, 10, 99].map(|place| moments.at(place)).into();
        assert_eq!(seen, [1, 1, 2, 2, 2, 3, 3].map(|seconds| Some(time(seconds))));
    }

    #[test]
    fn a_record_that_was_cut_off_is_none() {
        let whole = [5_u64.to_le_bytes(), 7_000_u64.to_le_bytes()].concat();
        let moments = Moments::parse(&[&whole[..], &whole[..9]].concat());
        assert_eq!(moments.0, [(5, 7_000)]);
        assert_eq!(moments.at(4), None);
    }
}
