//! Answers that are still good.
//!
//! # Theory of operation
//!
//! An answer is kept under its query without the identifier and with the name in
//! small letters: so flags and EDNS options are part of it, and who asks differently
//! gets an answer to that. It is good for the shortest time to live of its records;
//! that there is no such name or record, for as long as the start of authority says
//! (RFC 2308 section 5), which must be there. Failures, refusals and truncated
//! answers are not kept. What is given out has its times lessened by its age.
//!
//! Limits: [`ENTRIES_MAX`] answers, of [`BYTES_MAX`] bytes together; the oldest makes
//! room. No clock runs: what has expired goes when it is asked for or makes room.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::message::{HEADER, question, records};

const ENTRIES_MAX: usize = 1024;
const BYTES_MAX: usize = 1 << 20;
/// However long an answer says it is good: seconds.
const TTL_MAX: u32 = 86_400;
/// That something is not there is believed for three hours at most (RFC 2308 section
/// 5).
const NEGATIVE_MAX: u32 = 10_800;

const NOERROR: u8 = 0;
const NXDOMAIN: u8 = 3;
const TRUNCATED: u8 = 2;

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Keys in the order of their entries' stamps; those replaced are stale.
    order: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    stamp: u64,
}

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    since: Duration,
    ttl: u32,
    stamp: u64,
}

impl Cache {
    /// The answer to `query`, under its identifier and spelling.
    pub(super) fn find(&mut self, now: Duration, query: &[u8]) -> Option<Vec<u8>> {
        let key = key(query)?;
        let entry = self.entries.get(&key)?;
        let age = now.saturating_sub(entry.since).as_secs();
        if age >= u64::from(entry.ttl) {
            self.forget(&key);
            return None;
        }
        let mut answer = entry.answer.clone();
        let places: Vec<(usize, u32)> = records(&answer)?
            .iter()
            .filter(|record| !record.is_opt())
            .map(|record| (record.ttl_at, record.ttl))
            .collect();
        for (at, ttl) in places {
            let left = ttl.saturating_sub(age as u32);
            answer[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        answer[..2].copy_from_slice(&query[..2]);
        let asked = question(query)?;
        answer[HEADER..HEADER + asked.len()].copy_from_slice(asked);
        Some(answer)
    }

    /// Keeps the answer to `query`, if it may be kept.
    pub(super) fn add(&mut self, now: Duration, query: &[u8], answer: &[u8]) {
        let (Some(ttl), Some(key)) = (lifetime(answer), key(query)) else { return };
        let size = key.len() * 2 + answer.len();
        if ttl == 0 || size > BYTES_MAX {
            return;
        }
        self.forget(&key);
        while self.entries.len() >= ENTRIES_MAX || self.bytes + size > BYTES_MAX {
            let Some((stamp, oldest)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.stamp == stamp) {
                self.forget(&oldest);
            }
        }
        self.stamp += 1;
        self.bytes += size;
        let entry = Entry { answer: answer.to_vec(), since: now, ttl, stamp: self.stamp };
        self.entries.insert(key.clone(), entry);
        self.order.push_back((self.stamp, key));
        if self.order.len() > ENTRIES_MAX * 2 {
            self.order.retain(|(stamp, key)| {
                self.entries.get(key).is_some_and(|entry| entry.stamp == *stamp)
            });
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Cache::default();
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= key.len() * 2 + entry.answer.len();
        }
    }
}

fn key(query: &[u8]) -> Option<Vec<u8>> {
    let end = HEADER + question(query)?.len();
    let mut key = query.get(2..)?.to_vec();
    // The last four bytes of a question are its type and class.
    key[HEADER - 2..end - 2 - 4].make_ascii_lowercase();
    Some(key)
}

/// How long an answer is good, in seconds. None when it must not be kept.
fn lifetime(answer: &[u8]) -> Option<u32> {
    let code = answer.get(3)? & 0x0f;
    if answer[2] & TRUNCATED != 0 || !matches!(code, NOERROR | NXDOMAIN) {
        return None;
    }
    let records = records(answer)?;
    let all = records.iter().filter(|record| !record.is_opt()).map(|record| record.ttl).min();
    let kind = question(answer)?.last_chunk::<4>().copied()?;
    // An alias alone does not answer a question for something else.
    let answered = code == NOERROR
        && records.iter().any(|record| {
            record.section == super::message::Section::Answer
                && (record.kind.to_be_bytes() == kind[..2] || kind[..2] == [0, 255])
        });
    if answered {
        return Some(all?.min(TTL_MAX));
    }
    let authority = records
        .iter()
        .filter(|record| record.section == super::message::Section::Authority)
        .find_map(|record| record.negative_ttl())?;
    Some(authority.min(all?).min(NEGATIVE_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{answer, query};
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn after(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_given_again_until_its_shortest_time_is_over() {
        let mut cache = Cache::default();
        let asked = query(1, "A.example");
        let records: [(usize, &str, u16, u32, &[u8]); 2] =
            [(6, "@", 1, 60, &[192, 0, 2, 1]), (8, "example", 2, 300, &[0])];
        let reply = answer(&asked, 0, &records);
        cache.add(NOW, &asked, &reply);
        let again = query(9, "a.EXAMPLE");
        let found = cache.find(after(20), &again).unwrap();
        let aged: [(usize, &str, u16, u32, &[u8]); 2] =
            [(6, "@", 1, 40, &[192, 0, 2, 1]), (8, "example", 2, 280, &[0])];
        assert_eq!(found, answer(&again, 0, &aged), "own identifier and spelling, older");
        assert_eq!(cache.find(after(20), &query(9, "b.example")), None);
        let mut other = again.clone();
        let at = other.len() - 3;
        other[at] = 28;
        assert_eq!(cache.find(after(20), &other), None, "another type");
        assert!(cache.find(after(59), &again).is_some());
        assert_eq!(cache.find(after(60), &again), None);
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }

    #[test]
    fn nothing_is_kept_as_long_as_its_authority_says() {
        let soa = |minimum: u32| {
            let mut data = vec![0, 0];
            data.extend([0; 16]);
            data.extend(minimum.to_be_bytes());
            data
        };
        for (rcode, ttl, minimum, lives) in
            [(3, 900, 30, 30), (0, 20, 300, 20), (3, 100_000, 100_000, u64::from(NEGATIVE_MAX))]
        {
            let mut cache = Cache::default();
            let asked = query(1, "no.example");
            let reply = answer(&asked, rcode, &[(8, "example", 6, ttl, &soa(minimum))]);
            cache.add(NOW, &asked, &reply);
            assert!(cache.find(after(lives - 1), &asked).is_some(), "{rcode} {ttl} {minimum}");
            assert_eq!(cache.find(after(lives), &asked), None);
        }
        let mut cache = Cache::default();
        let asked = query(1, "no.example");
        cache.add(NOW, &asked, &answer(&asked, 3, &[]));
        assert_eq!(cache.find(NOW, &asked), None, "no authority");
    }

    #[test]
    fn failures_truncated_answers_and_those_for_now_only_are_not_kept() {
        let mut cache = Cache::default();
        let asked = query(1, "a.example");
        let good = |ttl| answer(&asked, 0, &[(6, "@", 1, ttl, &[192, 0, 2, 1])]);
        let mut truncated = good(60);
        truncated[2] |= TRUNCATED;
        let mut failed = good(60);
        failed[3] |= 2;
        for reply in [truncated, failed, good(0), good(60)[..20].to_vec(), good(1 << 31)] {
            cache.add(NOW, &asked, &reply);
            assert_eq!(cache.find(NOW, &asked), None);
        }
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut cache = Cache::default();
        for n in 0..3 * ENTRIES_MAX {
            // One is asked for all the time, and is added anew each time it has gone.
            for name in [format!("{n}.example"), "always.example".into()] {
                let asked = query(1, &name);
                cache.add(NOW, &asked, &answer(&asked, 0, &[(6, "@", 1, 60, &[0; 4])]));
            }
            assert!(cache.entries.len() <= ENTRIES_MAX && cache.order.len() <= 2 * ENTRIES_MAX);
        }
        assert_eq!(cache.find(NOW, &query(1, "1.example")), None);
        let last = format!("{}.example", 3 * ENTRIES_MAX - 1);
        assert!(cache.find(NOW, &query(1, &last)).is_some());
        let big = vec![7; 40_000];
        for n in 0..100 {
            let asked = query(1, &format!("{n}.example"));
            cache.add(NOW, &asked, &answer(&asked, 0, &[(6, "@", 1, 60, &big)]));
            assert!(cache.bytes <= BYTES_MAX);
        }
        cache.clear();
        assert_eq!(cache.find(NOW, &query(1, &last)), None);
    }
}
