//! Owners: what is on disk, and what is shown.
//!
//! `uidmapping=C:H:N[:…]` shows the on-disk ids C … C+N-1 as H … H+N-1; an
//! on-disk id outside of every range is shown as the overflow id, and an id
//! that no range yields cannot be stored (EINVAL, as chown(2) in a user
//! namespace). What a caller with such an id makes is stored as the overflow id's:
//! Podman makes mount points as somebody outside of the container's ids, and gives
//! them away afterwards. `squash_to_*` shows one owner for all and stores none.

use crate::error::{Error, Result};

/// The id that stands for "not mapped" (/proc/sys/kernel/overflowuid).
pub const OVERFLOW: u32 = 65534;

/// One contiguous range of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id on disk.
    pub disk: u32,
    /// The id it is shown as.
    pub shown: u32,
    /// How many.
    pub count: u32,
}

/// A mapping of ids; without ranges it is the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// The ranges, as given.
    pub ranges: Vec<Range>,
}

impl IdMap {
    /// Parses `C:H:N[:C:H:N…]`. Empty fields (a leading or doubled colon) are skipped.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut numbers = Vec::new();
        for field in text.split(':').filter(|f| !f.is_empty()) {
            let n: u32 = field.parse().map_err(|_| format!("`{field}` is not a number"))?;
            numbers.push(n);
        }
        if numbers.is_empty() || numbers.len() % 3 != 0 {
            return Err("it must be groups of ON-DISK:SHOWN:COUNT".to_owned());
        }
        let mut ranges = Vec::with_capacity(numbers.len() / 3);
        for group in numbers.chunks_exact(3) {
            let range = Range { disk: group[0], shown: group[1], count: group[2] };
            let fits = |start: u32| start.checked_add(range.count).is_some();
            if range.count == 0 || !fits(range.disk) || !fits(range.shown) {
                return Err(format!(
                    "the range {}:{}:{} is empty or too large",
                    range.disk, range.shown, range.count
                ));
            }
            ranges.push(range);
        }
        Ok(Self { ranges })
    }

    /// What an on-disk id is shown as.
    #[must_use]
    pub fn shown(&self, disk: u32) -> u32 {
        if self.ranges.is_empty() {
            return disk;
        }
        self.ranges
            .iter()
            .find_map(|r| disk.checked_sub(r.disk).filter(|d| *d < r.count).map(|d| r.shown + d))
            .unwrap_or(OVERFLOW)
    }

    /// What is stored for a shown id.
    ///
    /// # Errors
    /// EINVAL for an id that the mapping does not yield.
    pub fn disk(&self, shown: u32) -> Result<u32> {
        if self.ranges.is_empty() {
            return Ok(shown);
        }
        self.ranges
            .iter()
            .find_map(|r| shown.checked_sub(r.shown).filter(|d| *d < r.count).map(|d| r.disk + d))
            .ok_or(Error::Invalid("the owner is outside of the mapping"))
    }
}

/// Everything that decides about owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Mapping of user ids.
    pub uids: IdMap,
    /// Mapping of group ids.
    pub gids: IdMap,
    /// All files are shown as owned by this user.
    pub squash_uid: Option<u32>,
    /// All files are shown as owned by this group.
    pub squash_gid: Option<u32>,
    /// Owners in lower layers that the user namespace does not map are shown as 0.
    pub unmapped_root: bool,
    /// All files are shown as root's, and other owners are only kept: the user
    /// namespace has no other ids, and the kernel passes none on.
    pub kept_only: bool,
}

impl Owners {
    /// The shown owner of an object whose owner on disk is `uid`:`gid`.
    #[must_use]
    pub fn shown(&self, uid: u32, gid: u32, in_lower: bool) -> (u32, u32) {
        if self.kept_only {
            return (0, 0);
        }
        let root = |id: u32| if in_lower && self.unmapped_root && id == OVERFLOW { 0 } else { id };
        (
            self.squash_uid.unwrap_or_else(|| root(self.uids.shown(uid))),
            self.squash_gid.unwrap_or_else(|| root(self.gids.shown(gid))),
        )
    }

    /// The user to store for a shown one; `None` when nothing is to be stored.
    ///
    /// # Errors
    /// EINVAL for an id outside of the mapping.
    pub fn disk_uid(&self, uid: u32) -> Result<Option<u32>> {
        if self.squash_uid.is_some() { Ok(None) } else { self.uids.disk(uid).map(Some) }
    }

    /// The group to store for a shown one; `None` when nothing is to be stored.
    ///
    /// # Errors
    /// EINVAL for an id outside of the mapping.
    pub fn disk_gid(&self, gid: u32) -> Result<Option<u32>> {
        if self.squash_gid.is_some() { Ok(None) } else { self.gids.disk(gid).map(Some) }
    }

    /// The user to store for what this one makes; `None` when nothing is to be stored.
    #[must_use]
    pub fn maker_uid(&self, uid: u32) -> Option<u32> {
        self.disk_uid(uid).unwrap_or(Some(OVERFLOW))
    }

    /// The group to store for what this one makes; `None` when nothing is to be stored.
    #[must_use]
    pub fn maker_gid(&self, gid: u32) -> Option<u32> {
        self.disk_gid(gid).unwrap_or(Some(OVERFLOW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mapping_table() {
        let map = IdMap::parse(":0:100000:65536").unwrap();
        assert_eq!(map, IdMap::parse("0:100000:65536").unwrap());
        assert_eq!(
            (map.shown(0), map.shown(65535), map.shown(65536)),
            (100_000, 165_535, OVERFLOW)
        );
        assert_eq!(map.disk(100_005).unwrap(), 5);
        assert_eq!(map.disk(5).unwrap_err().errno(), libc::EINVAL);
        let owners = Owners { uids: map.clone(), ..Owners::default() };
        assert_eq!((owners.maker_uid(5), owners.maker_uid(100_005)), (Some(OVERFLOW), Some(5)));
        assert_eq!(owners.maker_gid(5), Some(5));
        let squashed = Owners { squash_uid: Some(1), ..owners };
        assert_eq!(squashed.maker_uid(5), None);
        let two = IdMap::parse("0:1000:1:1:100000:10").unwrap();
        assert_eq!((two.shown(0), two.shown(1), two.shown(10)), (1000, 100_000, 100_009));
        for bad in ["", ":", "1:2", "a:b:c", "0:0:0", "1:2:4294967295", "-1:0:1", "0:0:1:"] {
            assert_eq!(IdMap::parse(bad).is_ok(), bad == "0:0:1:", "{bad}");
        }
    }

    #[test]
    fn unmapped_lower_owners_become_root_only_when_asked() {
        let mut owners = Owners::default();
        assert_eq!(owners.shown(OVERFLOW, 7, true), (OVERFLOW, 7));
        owners.unmapped_root = true;
        assert_eq!(owners.shown(OVERFLOW, OVERFLOW, true), (0, 0));
        assert_eq!(owners.shown(OVERFLOW, 7, false), (OVERFLOW, 7));
        owners.kept_only = true;
        assert_eq!(owners.shown(33, 7, false), (0, 0));
        assert_eq!(
            (owners.disk_uid(33).unwrap(), owners.disk_gid(7).unwrap()),
            (Some(33), Some(7))
        );
        owners.kept_only = false;
        owners.squash_uid = Some(3);
        assert_eq!(owners.shown(OVERFLOW, 7, true), (3, 7));
        assert_eq!((owners.disk_uid(9).unwrap(), owners.disk_gid(9).unwrap()), (None, Some(9)));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_round_trips(text in "[0-9:a-]{0,40}", id: u32) {
            if let Ok(map) = IdMap::parse(&text) {
                let shown = map.shown(id);
                // Ranges may overlap, so an id need not come back; but one that
                // a range yields can always be stored.
                prop_assert!(shown == OVERFLOW || map.disk(shown).is_ok());
            }
        }
    }
}
