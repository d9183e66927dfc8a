//! Values of attributes that layers hold, which anybody may have written: owner and
//! mode, ids inside ACLs and capabilities, redirects. The first byte chooses.
#![no_main]

use std::ffi::OsStr;
use std::path::Component;

use libfuzzer_sys::fuzz_target;
use overlayfs_fuse::overlay::IdMap;
use overlayfs_fuse::overlay::redirect::Redirect;
use overlayfs_fuse::overlay::xattr::{
    ACL_ACCESS, ACL_DEFAULT, CAPABILITY, OverrideStat, map_ids, minimal_acl, parse_owner,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, value)) = data.split_first() else { return };
    match choice % 5 {
        0 => {
            if let Some(stat) = OverrideStat::parse(value) {
                assert!(stat.mode <= 0o7777);
                // What is written of it means the same.
                assert_eq!(OverrideStat::parse(stat.format().as_bytes()), Some(stat));
            }
        }
        1 => {
            let map = IdMap::parse("0:1000:1:1:100000:65536").expect("a map that is right");
            for name in [ACL_ACCESS, ACL_DEFAULT, CAPABILITY] {
                let mut shown = value.to_vec();
                let up = |id| Ok::<_, ()>(map.shown(id));
                assert!(map_ids(OsStr::new(name), &mut shown, up, up).is_ok());
                // Nothing but ids changes.
                assert_eq!(shown.len(), value.len());
            }
            if let Some(mode) = minimal_acl(value) {
                assert!(mode <= 0o777);
            }
        }
        2 => {
            if let Some((uid, gid)) = parse_owner(value) {
                assert!(uid != Some(u32::MAX) && gid != Some(u32::MAX));
            }
        }
        3 => {
            if let Some(redirect) = Redirect::parse(value) {
                assert_eq!(redirect.format(), value);
                let path = match redirect {
                    Redirect::Sibling(name) => name.into(),
                    Redirect::Absolute(path) => path,
                };
                // It cannot lead out of a layer.
                assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
                assert!(path.components().next().is_some());
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(value)
                && let Ok(map) = IdMap::parse(text)
            {
                for range in &map.ranges {
                    assert!(map.disk(map.shown(range.disk)).is_ok());
                }
            }
        }
    }
});
