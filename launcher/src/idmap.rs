//! Which host ids the ids of a container's user namespace stand for. Pure,
//! but for nothing: the contents of `/etc/subuid` and `/etc/subgid` are
//! handed in.
//!
//! Sources followed: subuid(5), newuidmap(1), user_namespaces(7).

use serde::{Deserialize, Serialize};

/// A run of ids: `inside`, `inside + 1`, … are `outside`, `outside + 1`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First id in the container.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id maps of a container's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// User ids; the first range is 0 → the caller.
    pub uids: Vec<Range>,
    /// Group ids; the first range is 0 → the caller's group.
    pub gids: Vec<Range>,
}

impl IdMap {
    /// The map of a caller: 0 is the caller, 1 and up are the subordinate ids
    /// granted in `subuid` and `subgid` (contents of the files) by name or by
    /// number. Where either file grants nothing, only 0 exists.
    pub fn of_caller(uid: u32, gid: u32, name: Option<&str>, subuid: &str, subgid: &str) -> Self {
        let single = Self {
            uids: vec![Range { inside: 0, outside: uid, count: 1 }],
            gids: vec![Range { inside: 0, outside: gid, count: 1 }],
        };
        let uids = granted(uid, name, subuid);
        let gids = granted(uid, name, subgid);
        if uids.is_empty() || gids.is_empty() {
            return single;
        }
        Self { uids: [single.uids, uids].concat(), gids: [single.gids, gids].concat() }
    }

    /// Only id 0 exists (no subordinate ids): nothing can be owned by anyone
    /// else, and setgroups(2) is denied.
    pub fn is_single(&self) -> bool {
        self.uids.len() == 1 && self.gids.len() == 1
    }

    /// Whether user id `inside` exists in the container.
    pub fn has_uid(&self, inside: u32) -> bool {
        contains(&self.uids, inside)
    }

    /// Whether group id `inside` exists in the container.
    pub fn has_gid(&self, inside: u32) -> bool {
        contains(&self.gids, inside)
    }

    /// The highest group id that exists in the container without a gap below it.
    pub fn last_gid(&self) -> u32 {
        self.gids.last().map_or(0, |range| range.inside + (range.count - 1))
    }
}

fn contains(ranges: &[Range], id: u32) -> bool {
    ranges.iter().any(|range| id >= range.inside && id - range.inside < range.count)
}

/// The ranges a file of subordinate ids grants to a user, laid end to end
/// from 1 upwards. Lines that are not `NAME:FIRST:COUNT` are passed over, as
/// newuidmap does.
pub(crate) fn granted(uid: u32, name: Option<&str>, file: &str) -> Vec<Range> {
    let number = uid.to_string();
    let mut next = 1u32;
    let mut ranges = Vec::new();
    for line in file.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, first, count] = fields[..] else { continue };
        if who != number && Some(who) != name {
            continue;
        }
        let (Ok(outside), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else {
            continue;
        };
        // u32::MAX is "no id" to the kernel: neither side may reach it.
        let count = count.min(u32::MAX - next).min(u32::MAX - outside);
        if count == 0 {
            continue;
        }
        ranges.push(Range { inside: next, outside, count });
        next += count;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_follow_the_caller() {
        let map = IdMap::of_caller(
            1000,
            100,
            Some("ada"),
            "bob:1:2\nada:100000:65536\n1000:300000:10\n# x\nada:x:1\n",
            "ada:200000:65536\n",
        );
        assert_eq!(
            map.uids,
            [
                Range { inside: 0, outside: 1000, count: 1 },
                Range { inside: 1, outside: 100_000, count: 65536 },
                Range { inside: 65537, outside: 300_000, count: 10 },
            ]
        );
        assert!(!map.is_single());
        assert!(map.has_uid(65546) && !map.has_uid(65547));
        assert_eq!(map.last_gid(), 65536);
    }

    #[test]
    fn one_file_missing_means_a_single_id() {
        let map = IdMap::of_caller(1000, 100, Some("ada"), "ada:100000:65536\n", "");
        assert!(map.is_single());
        assert!(map.has_uid(0) && !map.has_uid(1) && !map.has_gid(1));
        assert_eq!(map.last_gid(), 0);
    }

    #[test]
    fn counts_never_reach_the_invalid_id() {
        let map = IdMap::of_caller(7, 7, None, "7:10:4294967295", "7:4294967290:100");
        let last = map.uids[1];
        assert!(u64::from(last.inside) + u64::from(last.count) <= u64::from(u32::MAX));
        assert_eq!(map.gids[1].count, 5);
    }
}
