//! What is sent, and how the receiver tells that it is that. Pure.
//!
//! A stream is a row of blocks of [`BLOCK`] bytes, a datagram a block cut to its
//! size. A block begins with a header, little-endian: its number (u64) and flags
//! (u64, 1 for the last block of a stream); the rest is the same in every block and
//! repeats nowhere in it, so that bytes lost, doubled or moved are seen.

use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64 << 10;
/// Bytes of its header.
const HEADER: usize = 16;
/// Bytes of a datagram's header: session and number.
pub(crate) const DATAGRAM_HEADER: usize = 16;
const LAST: u64 = 1;

/// A block without its header.
pub(crate) fn body() -> &'static [u8] {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    BODY.get_or_init(|| {
        // xorshift64 (Marsaglia, 2003).
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut bytes = Vec::with_capacity(BLOCK);
        while bytes.len() < BLOCK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes
    })
}

/// Blocks of a stream, in order.
#[derive(Debug)]
pub(crate) struct Blocks {
    bytes: Vec<u8>,
    number: u64,
}

impl Blocks {
    /// From the first.
    pub(crate) fn new() -> Self {
        Self { bytes: body().to_vec(), number: 0 }
    }

    /// The next block.
    pub(crate) fn next(&mut self, last: bool) -> &[u8] {
        self.bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        let flags = if last { LAST } else { 0 };
        self.bytes[8..HEADER].copy_from_slice(&flags.to_le_bytes());
        self.number += 1;
        &self.bytes
    }
}

/// Checks a stream as it comes in.
#[derive(Debug)]
pub(crate) struct Check {
    /// Bytes checked.
    pub(crate) bytes: u64,
    header: [u8; HEADER],
    last: bool,
}

impl Check {
    /// Before the first byte.
    pub(crate) fn new() -> Self {
        Self { bytes: 0, header: [0; HEADER], last: false }
    }

    /// Takes bytes; `true` once the last block is whole.
    ///
    /// # Errors
    /// When they are not what comes next.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<bool> {
        while !bytes.is_empty() {
            ensure!(!self.is_whole(), "bytes after the end of the stream");
            let at = (self.bytes % BLOCK as u64) as usize;
            let taken = if at < HEADER {
                let count = bytes.len().min(HEADER - at);
                self.header[at..at + count].copy_from_slice(&bytes[..count]);
                if at + count == HEADER {
                    self.check_header()?;
                }
                count
            } else {
                let count = bytes.len().min(BLOCK - at);
                if bytes[..count] != body()[at..at + count] {
                    let wrong = bytes.iter().zip(&body()[at..]).take_while(|(a, b)| a == b).count();
                    bail!("wrong data: byte {} is not what was sent", self.bytes + wrong as u64);
                }
                count
            };
            self.bytes += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(self.is_whole())
    }

    fn check_header(&mut self) -> Result<()> {
        let word = |at: usize| {
            u64::from_le_bytes(self.header[at..at + 8].try_into().expect("eight bytes"))
        };
        let expected = self.bytes / BLOCK as u64;
        ensure!(
            word(0) == expected && word(8) <= LAST,
            "wrong data: block {expected} comes with number {} and flags {:#x}",
            word(0),
            word(8)
        );
        self.last = word(8) == LAST;
        Ok(())
    }

    /// Whether the last block has come to its end.
    fn is_whole(&self) -> bool {
        self.last && self.bytes.is_multiple_of(BLOCK as u64)
    }
}

/// Fills in the header of a datagram, whose rest is [`body`]'s.
pub(crate) fn stamp(datagram: &mut [u8], session: u64, number: u64) {
    datagram[..8].copy_from_slice(&session.to_le_bytes());
    datagram[8..DATAGRAM_HEADER].copy_from_slice(&number.to_le_bytes());
}

/// Session and number of a datagram that is whole; none when a byte is wrong.
pub(crate) fn read_stamp(datagram: &[u8]) -> Option<(u64, u64)> {
    let (head, rest) = datagram.split_at_checked(DATAGRAM_HEADER)?;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    (*rest == body()[DATAGRAM_HEADER..datagram.len()]).then(|| (word(&head[..8]), word(&head[8..])))
}

/// Which numbers have come, so that none counts twice.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    bits: Vec<u64>,
    /// How many different ones.
    pub(crate) count: u64,
}

impl Seen {
    /// Whether `number` is new. Numbers of a session are dense.
    pub(crate) fn add(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, number % 64);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        let new = self.bits[word] >> bit & 1 == 0;
        self.bits[word] |= 1 << bit;
        self.count += u64::from(new);
        new
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn stream(blocks: usize) -> Vec<u8> {
        let mut source = Blocks::new();
        (1..=blocks).flat_map(|n| source.next(n == blocks).to_vec()).collect()
    }

    #[test]
    fn a_stream_is_whole_however_it_is_cut() {
        let bytes = stream(3);
        for piece in [1, 7, 16, 65_536, 100_000, bytes.len()] {
            let mut check = Check::new();
            let ends: Vec<bool> =
                bytes.chunks(piece).map(|part| check.take(part).unwrap()).collect();
            assert_eq!(ends.iter().filter(|end| **end).count(), 1, "{piece}");
            assert!(ends.last().unwrap());
            assert_eq!(check.bytes, bytes.len() as u64);
        }
    }

    #[test]
    fn every_wrong_byte_is_found() {
        for at in [0, 8, 15, 16, 65_535, 65_536, 70_000, 131_071] {
            let mut bytes = stream(2);
            bytes[at] ^= 0x40;
            assert!(Check::new().take(&bytes).is_err(), "{at}");
        }
    }

    #[test]
    fn lost_and_doubled_bytes_are_found() {
        let bytes = stream(3);
        for (cut, from) in [(1000, 1001), (1000, 999), (65_536, 131_072), (131_072, 65_536)] {
            let mut check = Check::new();
            let taken = check.take(&bytes[..cut]).and_then(|_| check.take(&bytes[from..]));
            assert!(taken.is_err(), "{cut} then {from}");
        }
        let mut check = Check::new();
        check.take(&bytes).unwrap();
        assert!(check.take(&[0]).is_err());
    }

    #[test]
    fn datagrams_are_checked_and_counted_once() {
        let mut datagram = body()[..100].to_vec();
        stamp(&mut datagram, 7, 9);
        assert_eq!(read_stamp(&datagram), Some((7, 9)));
        datagram[99] ^= 1;
        assert_eq!(read_stamp(&datagram), None);
        assert_eq!(read_stamp(&datagram[..5]), None);

        let mut seen = Seen::default();
        assert!(seen.add(1000) && seen.add(0) && !seen.add(1000));
        assert_eq!(seen.count, 2);
    }
}
