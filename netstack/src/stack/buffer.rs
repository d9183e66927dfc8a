//! Bytes of streams on their way, in pieces of one size from one pool.
//!
//! # Theory of operation
//!
//! A [`Queue`] holds the bytes of one direction of one connection: those that wait
//! for the host's socket, or those the guest has not acknowledged. It takes chunks
//! from the [`Pool`] as bytes come and gives each back when its last byte is gone,
//! so an idle connection holds none. The pool hands out what came back last, which
//! is what the processor's cache still has. Nothing is moved: bytes are lent where
//! they lie, as several slices ([`Parts`]).

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 16 << 10;
/// Chunks kept for reuse at most (4 MiB).
const FREE_MAX: usize = 256;
/// Chunks offered to one [`Queue::fill`].
const FILL_CHUNKS: usize = 16;

type Chunk = Box<[u8]>;

/// Where chunks come from.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<Chunk>,
    lent: usize,
}

impl Pool {
    /// Bytes of all chunks that are in some queue.
    pub(crate) fn lent(&self) -> usize {
        self.lent * CHUNK
    }

    fn take(&mut self) -> Chunk {
        self.lent += 1;
        self.free.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    fn give_back(&mut self, chunk: Chunk) {
        self.lent -= 1;
        if self.free.len() < FREE_MAX {
            self.free.push(chunk);
        }
    }
}

/// Slices that are one stretch of bytes together.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    parts: [IoSlice<'a>; PARTS_MAX],
    count: usize,
    len: usize,
}

/// Slices at most: a segment of 64 KiB and its header take six.
const PARTS_MAX: usize = 32;

impl<'a> Parts<'a> {
    pub(crate) fn new() -> Parts<'a> {
        Parts { parts: [IoSlice::new(&[]); PARTS_MAX], count: 0, len: 0 }
    }

    /// Adds a slice; false when there is no place for it.
    pub(crate) fn push(&mut self, bytes: &'a [u8]) -> bool {
        self.push_slice(IoSlice::new(bytes))
    }

    /// The same.
    pub(crate) fn push_slice(&mut self, part: IoSlice<'a>) -> bool {
        if part.is_empty() {
            return true;
        }
        let Some(place) = self.parts.get_mut(self.count) else { return false };
        *place = part;
        self.count += 1;
        self.len += part.len();
        true
    }

    /// The slices, none of them empty.
    pub fn as_slices(&self) -> &[IoSlice<'a>] {
        &self.parts[..self.count]
    }

    /// Bytes of all slices.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        self.as_slices().iter().for_each(|part| all.extend_from_slice(part));
        all
    }
}

/// Bytes of a stream in their order. Further bytes may be kept beyond a hole: they
/// count once the hole is filled ([`Queue::extend`]).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Chunk>,
    /// Where the first byte lies in the first chunk.
    head: usize,
    len: usize,
    /// Behind the furthest byte kept, counted as `len` is.
    reach: usize,
}

impl Queue {
    /// Bytes from the first on without a hole.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn cover(&mut self, end: usize, pool: &mut Pool) {
        while self.chunks.len() * CHUNK < self.head + end {
            self.chunks.push_back(pool.take());
        }
    }

    /// Keeps `bytes` at `offset` from the first byte, over what was there.
    pub(crate) fn write_at(&mut self, offset: usize, mut bytes: &[u8], pool: &mut Pool) {
        self.cover(offset + bytes.len(), pool);
        self.reach = self.reach.max(offset + bytes.len());
        let mut at = self.head + offset;
        while !bytes.is_empty() {
            let place = &mut self.chunks[at / CHUNK][at % CHUNK..];
            let (now, later) = bytes.split_at(bytes.len().min(place.len()));
            place[..now.len()].copy_from_slice(now);
            at += now.len();
            bytes = later;
        }
    }

    /// Counts `count` further bytes, which were kept before.
    pub(crate) fn extend(&mut self, count: usize) {
        self.len += count;
        debug_assert!(self.len <= self.reach, "only what was kept counts");
    }

    /// Lets `read` put at most `most` bytes behind the last; it gives how many.
    /// There must be nothing beyond a hole.
    pub(crate) fn fill(
        &mut self,
        most: usize,
        pool: &mut Pool,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> usize,
    ) {
        let most = most.min(FILL_CHUNKS * CHUNK);
        self.cover(self.len + most, pool);
        let start = self.head + self.len;
        let mut left = most;
        let mut chunks = self.chunks.iter_mut().skip(start / CHUNK);
        let mut at = start % CHUNK;
        let mut count = 0;
        // One more than chunks: the first may be in use already.
        let mut places: [IoSliceMut<'_>; FILL_CHUNKS + 1] = std::array::from_fn(|_| {
            let place = match chunks.next() {
                Some(chunk) if left > 0 => &mut chunk[at..],
                _ => return IoSliceMut::new(&mut []),
            };
            at = 0;
            let len = place.len().min(left);
            left -= len;
            count += 1;
            IoSliceMut::new(&mut place[..len])
        });
        let got = read(&mut places[..count]).min(most);
        self.len += got;
        self.reach = self.len;
        self.trim(pool);
    }

    /// Forgets the first `count` bytes, of those without a hole.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut Pool) {
        let count = count.min(self.len);
        self.head += count;
        self.len -= count;
        self.reach -= count;
        while self.head >= CHUNK
            && let Some(chunk) = self.chunks.pop_front()
        {
            pool.give_back(chunk);
            self.head -= CHUNK;
        }
        if self.reach == 0 {
            self.head = 0;
        }
        self.trim(pool);
    }

    /// Gives chunks beyond the last byte back.
    fn trim(&mut self, pool: &mut Pool) {
        let needed = if self.reach == 0 { 0 } else { (self.head + self.reach).div_ceil(CHUNK) };
        while self.chunks.len() > needed
            && let Some(chunk) = self.chunks.pop_back()
        {
            pool.give_back(chunk);
        }
        if needed == 0 {
            self.head = 0;
            // The list itself is memory too, once it has been long.
            if self.chunks.capacity() > 2 * FILL_CHUNKS {
                self.chunks = VecDeque::new();
            }
        }
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        self.len = 0;
        self.reach = 0;
        self.trim(pool);
    }

    /// Lends `len` bytes from `offset` on, as far as they are there. False when
    /// `parts` had no place for all.
    pub(crate) fn lend<'a>(&'a self, offset: usize, len: usize, parts: &mut Parts<'a>) -> bool {
        let mut left = len.min(self.len.saturating_sub(offset));
        let mut at = self.head + offset;
        while left > 0 {
            let chunk = &self.chunks[at / CHUNK];
            let stop = CHUNK.min(at % CHUNK + left);
            let part = &chunk[at % CHUNK..stop];
            if !parts.push(part) {
                return false;
            }
            at += part.len();
            left -= part.len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(queue: &Queue) -> Vec<u8> {
        let mut parts = Parts::new();
        queue.lend(0, usize::MAX, &mut parts);
        parts.to_vec()
    }

    fn append(queue: &mut Queue, pool: &mut Pool, data: &[u8]) {
        queue.fill(data.len(), pool, &mut |places| {
            let mut rest = data;
            for place in places {
                let (now, later) = rest.split_at(place.len().min(rest.len()));
                place[..now.len()].copy_from_slice(now);
                rest = later;
            }
            data.len() - rest.len()
        });
    }

    #[test]
    fn bytes_pass_in_order_and_the_memory_comes_back() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let (mut put, mut got) = (0, Vec::new());
        for step in [1, 5000, 16384, 16383, 70_000, 40_000, 3, 200_000] {
            let part = &data[put..data.len().min(put + step)];
            append(&mut queue, &mut pool, part);
            put += part.len();
            let take = step / 2;
            let front = bytes(&queue);
            got.extend_from_slice(&front[..take.min(front.len())]);
            queue.consume(take, &mut pool);
        }
        got.extend(bytes(&queue));
        queue.consume(usize::MAX, &mut pool);
        assert!(got == data[..put] && put > 100_000);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_hole_is_filled_later() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        append(&mut queue, &mut pool, b"0123");
        queue.write_at(40_000, b"far", &mut pool);
        assert_eq!(bytes(&queue), b"0123");
        queue.consume(4, &mut pool);
        assert!(queue.is_empty() && pool.lent() > 0, "what is beyond the hole is kept");
        queue.write_at(0, &[7; 39_996], &mut pool);
        queue.extend(39_999);
        let all = bytes(&queue);
        assert_eq!((&all[39_996..], all.len()), (&b"far"[..], 39_999));
        queue.release(&mut pool);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_read_of_nothing_holds_nothing() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        queue.fill(1 << 20, &mut pool, &mut |places| {
            let room: usize = places.iter().map(|place| place.len()).sum();
            assert_eq!(room, FILL_CHUNKS * CHUNK);
            0
        });
        assert_eq!(pool.lent(), 0);
    }
}
