//! Puts IP fragments of the guest together.
//!
//! # Theory of operation
//!
//! A datagram is collected under (source, destination, protocol, identification)
//! for at most [`PATIENCE`]. Overlapping fragments make the whole datagram void
//! (RFC 5722), as does growing beyond 65,535 bytes. At most [`MAX_PENDING`]
//! datagrams are collected at once; the oldest gives way.

use std::net::IpAddr;
use std::time::Duration;

use super::frame::Packet;

const PATIENCE: Duration = Duration::from_secs(30);
const MAX_PENDING: usize = 16;
const MAX_PARTS: usize = 2048;
const MAX_BYTES: usize = 65535;

#[derive(Debug)]
struct Pending {
    key: (IpAddr, IpAddr, u8, u32),
    since: Duration,
    bytes: Vec<u8>,
    /// Sorted, disjoint (start, end).
    parts: Vec<(usize, usize)>,
    total: Option<usize>,
    /// Overlapped: swallow what follows until the time is up.
    void: bool,
}

/// Fragments waiting for the rest of their datagram.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    pending: Vec<Pending>,
}

impl Reassembly {
    /// Takes one fragment. Gives the whole upper layer once it is complete.
    pub(super) fn add(&mut self, now: Duration, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        self.pending.retain(|p| now < p.since + PATIENCE);
        let key = (packet.src, packet.dst, packet.proto, fragment.id);
        let at = match self.pending.iter().position(|p| p.key == key) {
            Some(at) => at,
            None => {
                if self.pending.len() >= MAX_PENDING {
                    self.pending.remove(0);
                }
                self.pending.push(Pending {
                    key,
                    since: now,
                    bytes: Vec::new(),
                    parts: Vec::new(),
                    total: None,
                    void: false,
                });
                self.pending.len() - 1
            }
        };
        let pending = &mut self.pending[at];
        pending.add(fragment.offset, fragment.more, packet.payload);
        if !pending.complete() {
            return None;
        }
        Some(self.pending.remove(at).bytes)
    }
}

impl Pending {
    fn add(&mut self, start: usize, more: bool, data: &[u8]) {
        let end = start + data.len();
        let uneven = more && !data.len().is_multiple_of(8);
        if data.is_empty() || end > MAX_BYTES || uneven || self.parts.len() >= MAX_PARTS {
            self.void = true;
            return;
        }
        let total = if more { None } else { Some(end) };
        if let (Some(a), Some(b)) = (self.total, total)
            && a != b
        {
            self.void = true;
        }
        self.total = self.total.or(total);
        let at = self.parts.partition_point(|&(s, _)| s < start);
        if self.parts.get(at) == Some(&(start, end)) {
            // The very same again: a retransmission by the link, harmless.
            return;
        }
        let before = at.checked_sub(1).map_or(0, |i| self.parts[i].1);
        let after = self.parts.get(at).map_or(usize::MAX, |p| p.0);
        if start < before || end > after || self.total.is_some_and(|t| end > t) {
            self.void = true;
            return;
        }
        self.parts.insert(at, (start, end));
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(data);
    }

    fn complete(&self) -> bool {
        let mut next = 0;
        for &(start, end) in &self.parts {
            if start != next {
                return false;
            }
            next = end;
        }
        !self.void && self.total == Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Fragment;
    use super::*;

    fn add(
        all: &mut Reassembly,
        at: u64,
        offset: usize,
        more: bool,
        data: &[u8],
    ) -> Option<Vec<u8>> {
        let packet = Packet {
            src: [10, 0, 2, 100].into(),
            dst: [192, 0, 2, 1].into(),
            proto: 17,
            hop_limit: 64,
            bytes: data,
            payload: data,
            fragment: Some(Fragment { id: 7, offset, more }),
        };
        all.add(Duration::from_secs(at), &packet)
    }

    #[test]
    fn parts_in_any_order_make_the_whole() {
        let mut all = Reassembly::default();
        assert_eq!(add(&mut all, 0, 16, false, b"xyz"), None);
        assert_eq!(add(&mut all, 0, 0, true, b"01234567"), None);
        assert_eq!(add(&mut all, 0, 0, true, b"01234567"), None);
        let whole = add(&mut all, 0, 8, true, b"abcdefgh").unwrap();
        assert_eq!(whole, b"01234567abcdefghxyz");
        assert!(all.pending.is_empty());
    }

    #[test]
    fn overlap_and_excess_void_the_datagram() {
        let mut all = Reassembly::default();
        assert_eq!(add(&mut all, 0, 0, true, b"0123456789abcdef"), None);
        assert_eq!(add(&mut all, 0, 8, false, b"xy"), None);
        assert_eq!(add(&mut all, 0, 16, false, b"xy"), None);
        let mut all = Reassembly::default();
        assert_eq!(add(&mut all, 0, 65528, false, &[0; 100]), None);
        assert_eq!(add(&mut all, 0, 0, true, &[0; 65528]), None);
    }

    #[test]
    fn a_datagram_is_not_waited_for_beyond_its_time() {
        let mut all = Reassembly::default();
        assert_eq!(add(&mut all, 0, 0, true, b"01234567"), None);
        assert_eq!(add(&mut all, 31, 8, false, b"x"), None);
        assert_eq!(add(&mut all, 31, 0, true, b"01234567").unwrap(), b"01234567x");
    }
}
