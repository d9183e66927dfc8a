//! The frames of one turn, where they were read.
//!
//! # Theory of operation
//!
//! Frames are read one behind the other into one piece of memory, and stay there
//! until the turn is over. Bytes of a stream that come next for the host's socket
//! are sent from there; only what the socket does not take is copied. A batch is
//! small enough for the processor's cache to hold it between the read and the send:
//! [`FEW_BYTES`], or twice that when it has frames of many connections, each of which
//! would have no more than a frame or two to send with one call.

use std::ops::Range;

use super::frame::FRAME_MAX;

/// Bytes of frames in a turn.
const FEW_BYTES: usize = 1 << 20;
/// The same with frames of many connections.
const MANY_BYTES: usize = 2 << 20;
/// So many are many.
const MANY: usize = 16;

/// Frames of one turn.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Box<[u8]>,
    used: usize,
}

/// Where some bytes lie in the [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    at: u32,
    len: u32,
}

impl Place {
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }

    /// Without the first `count` bytes.
    pub(crate) fn behind(self, count: usize) -> Place {
        let count = self.len.min(count as u32);
        Place { at: self.at + count, len: self.len - count }
    }
}

impl Batch {
    pub(crate) fn new() -> Batch {
        // A frame that begins below the bound fits. What no frame has reached takes no
        // memory.
        Batch { bytes: vec![0; MANY_BYTES + FRAME_MAX].into_boxed_slice(), used: 0 }
    }

    /// A batch that holds nothing and has no room.
    pub(crate) fn none() -> Batch {
        Batch { bytes: Box::default(), used: 0 }
    }

    /// Where the next frame goes, after those of so many connections; empty when the
    /// batch is full.
    pub(crate) fn room(&mut self, connections: usize) -> &mut [u8] {
        let most = if connections >= MANY { MANY_BYTES } else { FEW_BYTES };
        if self.used > most { &mut [] } else { &mut self.bytes[self.used..] }
    }

    /// The next frame has `len` bytes; gives where it is.
    pub(crate) fn add(&mut self, len: usize) -> Range<usize> {
        let start = self.used;
        self.used = (start + len).min(self.bytes.len());
        start..self.used
    }

    pub(crate) fn frame(&self, frame: Range<usize>) -> &[u8] {
        &self.bytes[frame]
    }

    /// Where `part` lies, if it is in here.
    pub(crate) fn place_of(&self, part: &[u8]) -> Option<Place> {
        let at = part.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr())?;
        let inside = at + part.len() <= self.used;
        inside.then_some(Place { at: at as u32, len: part.len() as u32 })
    }

    pub(crate) fn bytes(&self, place: Place) -> &[u8] {
        &self.bytes[place.at as usize..(place.at + place.len) as usize]
    }

    /// Forgets all frames.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_frames_are_found_again_and_no_others() {
        let mut batch = Batch::new();
        for text in [&b"first"[..], b"second"] {
            batch.room(0)[..text.len()].copy_from_slice(text);
            batch.add(text.len());
        }
        let place = batch.place_of(&batch.frame(5..11)[1..4]).unwrap();
        assert_eq!(batch.bytes(place), b"eco");
        assert_eq!(batch.bytes(place.behind(2)), b"o");
        assert_eq!(place.behind(9).len(), 0);
        assert_eq!(batch.place_of(b"elsewhere"), None);
        assert_eq!(Batch::none().place_of(b"elsewhere"), None);
    }

    #[test]
    fn a_full_batch_has_no_room() {
        let mut batch = Batch::new();
        for (connections, bytes) in [(1, FEW_BYTES), (MANY - 1, FEW_BYTES), (MANY, MANY_BYTES)] {
            let mut frames = 0;
            while !batch.room(connections).is_empty() {
                assert!(batch.room(connections).len() >= FRAME_MAX);
                batch.add(FRAME_MAX);
                frames += 1;
            }
            assert_eq!(frames, bytes / FRAME_MAX + 1);
            batch.clear();
            assert!(!batch.room(connections).is_empty());
        }
    }
}
