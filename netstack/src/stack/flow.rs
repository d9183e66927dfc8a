//! The flow table: which flow a packet belongs to, and when each flow wants to be
//! looked at next.
//!
//! # Theory of operation
//!
//! Flows live in a slab; a hash of the key gives the slot. A [`FlowId`] names a
//! slot and its generation, so that a late event of the host for a flow that is
//! gone finds nothing rather than its successor. Look-up, insertion and removal
//! are O(1); nothing ever scans all flows.
//!
//! Deadlines are kept lazily: a flow is in the heap at most with one live entry,
//! at or before its true deadline. When the entry comes up, the flow is asked
//! again. So a packet that only moves a deadline later costs nothing. Deadlines are
//! rounded up to [`TICK`], so that flows that were busy together wake the caller
//! together.
//!
//! Flows that may end to make room for others are in a list, in the order of their
//! last use ([`FlowTable::touch`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use super::dns::SocketId;

/// Names a flow for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// The slot, dense from 0: an index into a table kept beside this one.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// As one integer, below 2^63.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The inverse of [`FlowId::to_bits`].
    pub fn from_bits(bits: u64) -> FlowId {
        FlowId { index: bits as u32, generation: (bits >> 32) as u32 & GENERATION_MASK }
    }
}

const GENERATION_MASK: u32 = 0x7fff_ffff;

/// What tells two flows apart, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A TCP connection: guest end, other end.
    Tcp(SocketAddr, SocketAddr),
    /// All UDP traffic of one port of the guest (endpoint-independent mapping,
    /// RFC 4787 section 4.1).
    Udp(SocketAddr),
    /// A socket of the built-in name server.
    Dns(SocketId),
    /// Echo requests with one identifier (as the port).
    Echo(SocketAddr),
}

/// What deadlines are multiples of; a divisor of a second.
const TICK: Duration = Duration::from_millis(20);

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// Neighbours in the list, towards its ends, while it is in there.
    listed: Option<Neighbours>,
    /// When the heap's live entry for this slot comes up.
    armed: Option<Duration>,
    flow: Option<(Key, T)>,
}

#[derive(Debug, Clone, Copy)]
struct Neighbours {
    older: u32,
    newer: u32,
}

/// The table.
#[derive(Debug)]
pub struct FlowTable<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    by_key: HashMap<Key, FlowId, KeyHash>,
    heap: BinaryHeap<Reverse<(Duration, FlowId)>>,
    limit: usize,
    oldest: u32,
    newest: u32,
}

impl<T> FlowTable<T> {
    /// An empty table that holds `limit` flows at most. `seed` keeps the guest
    /// from choosing keys that collide.
    pub fn new(limit: usize, seed: u64) -> FlowTable<T> {
        FlowTable {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::with_hasher(KeyHash::new(seed)),
            heap: BinaryHeap::new(),
            limit,
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Holds `limit` flows at most from now on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether a further flow would be refused.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The flow a packet belongs to.
    pub fn find(&self, key: &Key) -> Option<FlowId> {
        self.by_key.get(key).copied()
    }

    /// Adds a flow. None when the table is full or the key taken.
    pub fn insert(&mut self, key: Key, flow: T) -> Option<FlowId> {
        if self.is_full() || self.by_key.contains_key(&key) {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, listed: None, armed: None, flow: None });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.flow = Some((key, flow));
        let id = FlowId { index, generation: slot.generation };
        self.by_key.insert(key, id);
        Some(id)
    }

    fn slot(&self, id: FlowId) -> Option<&Slot<T>> {
        self.slots.get(id.index()).filter(|slot| slot.generation == id.generation)
    }

    /// The flow, if it lives.
    pub fn get(&self, id: FlowId) -> Option<&T> {
        Some(&self.slot(id)?.flow.as_ref()?.1)
    }

    /// The flow, if it lives.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index()).filter(|s| s.generation == id.generation)?;
        Some(&mut slot.flow.as_mut()?.1)
    }

    /// All flows. For reports: nothing that a packet waits for walks through them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.flow.as_ref().map(|(_, flow)| flow))
    }

    /// Says that `id` is in use now, and may end to make room for others.
    pub fn touch(&mut self, id: FlowId) {
        if self.newest == id.index || self.get(id).is_none() {
            return;
        }
        self.unlist(id.index);
        let older = std::mem::replace(&mut self.newest, id.index);
        match self.slots.get_mut(older as usize).and_then(|slot| slot.listed.as_mut()) {
            Some(listed) => listed.newer = id.index,
            None => self.oldest = id.index,
        }
        self.slots[id.index()].listed = Some(Neighbours { older, newer: NONE });
    }

    /// Of the flows that may end, the one that was used the longest ago.
    pub fn oldest(&self) -> Option<FlowId> {
        let slot = self.slots.get(self.oldest as usize)?;
        Some(FlowId { index: self.oldest, generation: slot.generation })
    }

    fn unlist(&mut self, index: u32) {
        let slot = self.slots.get_mut(index as usize);
        let Some(Neighbours { older, newer }) = slot.and_then(|slot| slot.listed.take()) else {
            return;
        };
        match self.slots.get_mut(older as usize).and_then(|slot| slot.listed.as_mut()) {
            Some(listed) => listed.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize).and_then(|slot| slot.listed.as_mut()) {
            Some(listed) => listed.older = older,
            None => self.newest = older,
        }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        self.get(id)?;
        self.unlist(id.index);
        let slot = self.slots.get_mut(id.index()).filter(|s| s.generation == id.generation)?;
        let (key, flow) = slot.flow.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.armed = None;
        self.by_key.remove(&key);
        self.free.push(id.index);
        Some(flow)
    }

    /// Asks for `id` to come up at `at` or before, but for the rounding.
    pub fn arm(&mut self, id: FlowId, at: Duration) {
        let at = round_up(at);
        let Some(slot) = self.slots.get_mut(id.index()) else { return };
        if slot.generation != id.generation || slot.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        slot.armed = Some(at);
        self.heap.push(Reverse((at, id)));
    }

    /// The next flow whose time has come. Its entry is gone: arm it again.
    pub fn expired(&mut self, now: Duration) -> Option<FlowId> {
        while let Some(&Reverse((at, id))) = self.heap.peek() {
            if at > now {
                return None;
            }
            self.heap.pop();
            if self.disarm(at, id) {
                return Some(id);
            }
        }
        None
    }

    /// When [`FlowTable::expired`] has something next.
    pub fn next_deadline(&mut self) -> Option<Duration> {
        while let Some(&Reverse((at, id))) = self.heap.peek() {
            // Entries that an earlier one replaced, or of flows that are gone,
            // must not wake anybody up.
            if self.slot(id).is_some_and(|slot| slot.armed == Some(at)) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }

    fn disarm(&mut self, at: Duration, id: FlowId) -> bool {
        match self.slots.get_mut(id.index()) {
            Some(slot) if slot.generation == id.generation && slot.armed == Some(at) => {
                slot.armed = None;
                true
            }
            _ => false,
        }
    }
}

fn round_up(at: Duration) -> Duration {
    let ticks = at.subsec_nanos().div_ceil(TICK.subsec_nanos());
    Duration::from_secs(at.as_secs()).saturating_add(TICK * ticks)
}

/// A fast keyed hash of short keys: multiply and rotate, finished by a mix
/// (the construction of `wyhash`, without its speed on long input). Not
/// cryptographic: the guest can harm only its own look-ups.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyHash(u64);

impl KeyHash {
    /// Keyed with `seed`.
    pub(super) fn new(seed: u64) -> KeyHash {
        KeyHash(seed | 1)
    }
}

impl BuildHasher for KeyHash {
    type Hasher = KeyHasher;
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

#[derive(Debug)]
pub(super) struct KeyHasher(u64);

impl KeyHasher {
    fn add(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (wide as u64) ^ ((wide >> 64) as u64) ^ word.rotate_left(32);
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        let mut mixed = KeyHasher(self.0);
        mixed.add(0x2545_f491_4f6c_dd1d);
        mixed.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.add(v.into());
    }
    fn write_u16(&mut self, v: u16) {
        self.add(v.into());
    }
    fn write_u32(&mut self, v: u32) {
        self.add(v.into());
    }
    fn write_u64(&mut self, v: u64) {
        self.add(v);
    }
    fn write_usize(&mut self, v: usize) {
        self.add(v as u64);
    }
    fn write_isize(&mut self, v: isize) {
        self.add(v as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key::Udp(SocketAddr::from(([10, 0, 2, 100], port)))
    }

    #[test]
    fn an_id_outlives_its_flow_without_finding_the_next() {
        let mut table = FlowTable::new(8, 1);
        let old = table.insert(key(1), 'a').unwrap();
        assert_eq!(table.remove(old), Some('a'));
        let new = table.insert(key(1), 'b').unwrap();
        assert_eq!(new.index(), old.index());
        assert_eq!(table.get(old), None);
        assert_eq!(table.get(new), Some(&'b'));
        assert_eq!(FlowId::from_bits(new.to_bits()), new);
    }

    #[test]
    fn the_table_has_a_limit() {
        let mut table = FlowTable::new(2, 1);
        assert!(table.insert(key(1), ()).is_some());
        assert!(table.insert(key(1), ()).is_none());
        assert!(table.insert(key(2), ()).is_some());
        assert!(table.insert(key(3), ()).is_none());
    }

    #[test]
    fn the_flow_that_was_used_the_longest_ago_is_found() {
        let mut table = FlowTable::new(8, 1);
        let ids: Vec<_> = (1..=5).map(|port| table.insert(key(port), port).unwrap()).collect();
        assert_eq!(table.oldest(), None, "none may end");
        for index in [0, 1, 2, 3, 1, 0, 0] {
            table.touch(ids[index]);
        }
        // In the middle, at either end, and of one that is not listed.
        for gone in [1, 4] {
            table.remove(ids[gone]);
            table.touch(ids[gone]);
        }
        let mut order = Vec::new();
        while let Some(oldest) = table.oldest() {
            order.extend(table.remove(oldest));
        }
        assert_eq!(order, [3, 4, 1]);
        assert!(table.is_empty());
        let again = table.insert(key(9), 9).unwrap();
        table.touch(again);
        assert_eq!(table.oldest(), Some(again));
    }

    #[test]
    fn flows_that_were_busy_together_come_up_together() {
        let mut table = FlowTable::new(100, 1);
        let second = Duration::from_secs(1);
        for port in 1..=100 {
            let id = table.insert(key(port), ()).unwrap();
            table.arm(id, second + Duration::from_micros(30) * port.into());
        }
        let at = table.next_deadline().unwrap();
        assert!(at >= second && at <= second + TICK);
        assert_eq!(std::iter::from_fn(|| table.expired(at)).count(), 100);
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one() {
        let mut table = FlowTable::new(8, 1);
        let id = table.insert(key(1), ()).unwrap();
        let sec = Duration::from_secs;
        table.arm(id, sec(10));
        table.arm(id, sec(20));
        table.arm(id, sec(5));
        assert_eq!(table.next_deadline(), Some(sec(5)));
        assert_eq!(table.expired(sec(4)), None);
        assert_eq!(table.expired(sec(5)), Some(id));
        assert_eq!(table.expired(sec(30)), None);
        assert_eq!(table.next_deadline(), None);
        table.arm(id, sec(40));
        table.remove(id);
        assert_eq!(table.next_deadline(), None);
    }
}
