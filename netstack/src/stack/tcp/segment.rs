//! The TCP header on the wire: RFC 9293 section 3.1, options of RFC 7323 (window
//! scale) and RFC 2018 (selective acknowledgement). All numbers big-endian.

use super::seq::Seq;
use crate::stack::frame::{ACK, FIN, RST, SYN};

/// Bytes of a header without options.
pub(crate) const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub(crate) const HEADER_MAX: usize = 60;
/// Largest shift of a window (RFC 7323 section 2.3).
const SCALE_MAX: u8 = 14;
/// Blocks that fit beside no other option.
pub(crate) const SACK_MAX: usize = 4;

/// Blocks of a selective acknowledgement, from the first number of each to the one
/// behind its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sacks {
    blocks: [(Seq, Seq); SACK_MAX],
    count: usize,
}

impl Sacks {
    /// Adds a block, unless all places are taken.
    pub(crate) fn push(&mut self, start: Seq, end: Seq) {
        if let Some(place) = self.blocks.get_mut(self.count) {
            *place = (start, end);
            self.count += 1;
        }
    }

    pub(crate) fn as_slice(&self) -> &[(Seq, Seq)] {
        &self.blocks[..self.count]
    }
}

/// Options of a segment. Unknown ones are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Options {
    /// Largest payload the sender takes, in bytes (SYN only).
    pub(crate) mss: Option<u16>,
    /// Shift of the sender's later windows (SYN only).
    pub(crate) scale: Option<u8>,
    /// The sender understands selective acknowledgement (SYN only).
    pub(crate) sack_permitted: bool,
    /// What has arrived beyond a hole.
    pub(crate) sacks: Sacks,
}

/// A header, as received or to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Header {
    /// Number of the first byte, or of the SYN.
    pub(crate) seq: Seq,
    /// The acknowledgement; meaningless without the flag ACK.
    pub(crate) ack: Seq,
    /// Flag bits of [`crate::stack::frame`].
    pub(crate) flags: u8,
    /// The window field, not scaled.
    pub(crate) window: u16,
    /// Options.
    pub(crate) options: Options,
}

/// A segment as received. The urgent pointer is not looked at: the bytes are
/// delivered in their place (RFC 6093 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) header: Header,
    pub(crate) data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Splits a TCP segment. None when it is malformed; a malformed option ends the
    /// list of options.
    pub(crate) fn parse(tcp: &'a [u8]) -> Option<Segment<'a>> {
        let fixed = tcp.first_chunk::<HEADER_LEN>()?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return None;
        }
        let (header, data) = tcp.split_at_checked(header_len)?;
        let word = |at: usize| Seq::new(be32(&fixed[at..at + 4]));
        let header = Header {
            seq: word(4),
            ack: word(8),
            flags: fixed[13],
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            options: Options::parse(&header[HEADER_LEN..]),
        };
        Some(Segment { header, data })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.header.flags & flag != 0
    }

    /// Behind the last number the segment occupies: data, SYN and FIN.
    pub(crate) fn end(&self) -> Seq {
        let marks = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.header.seq + self.data.len() as u32 + marks
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

impl Options {
    fn parse(mut rest: &[u8]) -> Options {
        let mut options = Options::default();
        loop {
            rest = match *rest {
                [1, ref rest @ ..] => rest,
                [kind, len, ..] if kind > 1 && len >= 2 && usize::from(len) <= rest.len() => {
                    let (option, rest) = rest.split_at(usize::from(len));
                    options.take(kind, &option[2..]);
                    rest
                }
                // The end of the list, or no list.
                _ => return options,
            };
        }
    }

    fn take(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (2, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
            (3, &[shift]) => self.scale = Some(shift.min(SCALE_MAX)),
            (4, []) => self.sack_permitted = true,
            (5, blocks) if blocks.len() % 8 == 0 => {
                for block in blocks.chunks_exact(8) {
                    let (start, end) = block.split_at(4);
                    self.sacks.push(Seq::new(be32(start)), Seq::new(be32(end)));
                }
            }
            _ => {}
        }
    }

    /// Writes the options behind a fixed header, padded to whole words; gives their
    /// length. At most what fits beside it.
    fn write(&self, out: &mut [u8; HEADER_MAX]) -> usize {
        let mut at = HEADER_LEN;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = out.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
                at += bytes.len();
            }
        };
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            put(&[2, 4, a, b]);
        }
        if let Some(shift) = self.scale {
            put(&[1, 3, 3, shift]);
        }
        if self.sack_permitted {
            put(&[1, 1, 4, 2]);
        }
        let blocks = self.sacks.as_slice();
        if !blocks.is_empty() {
            put(&[1, 1, 5, (2 + 8 * blocks.len()) as u8]);
            for (start, end) in blocks {
                put(&start.to_u32().to_be_bytes());
                put(&end.to_u32().to_be_bytes());
            }
        }
        at - HEADER_LEN
    }
}

impl Header {
    /// Writes the header with ports and without checksum; gives its length.
    pub(crate) fn write(&self, out: &mut [u8; HEADER_MAX], from: u16, to: u16) -> usize {
        out[..2].copy_from_slice(&from.to_be_bytes());
        out[2..4].copy_from_slice(&to.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.to_u32().to_be_bytes());
        let ack = if self.flags & ACK != 0 { self.ack.to_u32() } else { 0 };
        out[8..12].copy_from_slice(&ack.to_be_bytes());
        let len = HEADER_LEN + self.options.write(out);
        out[12] = ((len / 4) << 4) as u8;
        out[13] = self.flags;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..20].fill(0);
        len
    }

    /// The answer to a segment that belongs to no connection (RFC 9293 section
    /// 3.10.7.1). None for a reset, which is never answered.
    pub(crate) fn refusal(segment: &Segment<'_>) -> Option<Header> {
        if segment.has(RST) {
            return None;
        }
        Some(if segment.has(ACK) {
            Header { seq: segment.header.ack, flags: RST, ..Header::default() }
        } else {
            Header { ack: segment.end(), flags: RST | ACK, ..Header::default() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut sacks = Sacks::default();
        for n in 0..6 {
            sacks.push(Seq::new(n * 100), Seq::new(n * 100 + 50));
        }
        for options in [
            Options::default(),
            Options {
                mss: Some(65480),
                scale: Some(7),
                sack_permitted: true,
                ..Options::default()
            },
            Options { sacks, ..Options::default() },
        ] {
            let header = Header {
                seq: Seq::new(0xffff_fff0),
                ack: Seq::new(77),
                flags: ACK | FIN,
                window: 513,
                options,
            };
            let mut bytes = [0; HEADER_MAX];
            let len = header.write(&mut bytes, 80, 4000);
            let mut segment = bytes[..len].to_vec();
            segment.extend_from_slice(b"data");
            let read = Segment::parse(&segment).unwrap();
            assert_eq!(read, Segment { header, data: b"data" });
            assert_eq!(read.end(), Seq::new(0xffff_fff5));
            assert_eq!(bytes[..4], [0, 80, 15, 160]);
        }
    }

    #[test]
    fn bad_options_end_the_list_and_harm_nothing() {
        for bad in [
            &[2, 0][..],
            &[2, 1],
            &[5, 200],
            &[2],
            &[3, 3],
            &[5, 7, 0, 0, 0, 0, 0],
            &[0, 2, 4, 1, 1],
        ] {
            let mut options = vec![3, 3, 9];
            options.extend_from_slice(bad);
            let read = Options::parse(&options);
            assert_eq!(read, Options { scale: Some(9), ..Options::default() }, "{bad:?}");
        }
        assert_eq!(Options::parse(&[3, 3, 200]).scale, Some(14));
        assert!(Segment::parse(&[0; 19]).is_none());
        assert!(Segment::parse(&[0; 40]).is_none(), "a header of no length");
    }
}
