//! Names in layers, whiteouts among them, and the directory that is made of them: the
//! merge shows each name once, and only what the markers leave.
#![no_main]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use overlayfs_fuse::layer::{EntryKind, Listing, RawEntry};
use overlayfs_fuse::overlay::merge::merge;
use overlayfs_fuse::overlay::whiteout::{Marker, is_reserved, marker_name};

fuzz_target!(|data: &[u8]| {
    // Layers are separated by 0, names by a slash, as no name can hold either.
    let mut layers = Vec::new();
    for layer in data.split(|byte| *byte == 0) {
        let mut listing = Listing::default();
        let mut seen = HashSet::new();
        for bytes in layer.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(bytes);
            assert_eq!(Marker::parse(name).is_some(), is_reserved(name));
            match Marker::parse(name) {
                Some(Marker::Opaque) => listing.opaque = true,
                Some(Marker::Reserved) => {}
                Some(Marker::Hides(hidden)) => {
                    assert!(!is_reserved(hidden));
                    assert_eq!(marker_name(hidden), name);
                    let kind = EntryKind::Whiteout;
                    listing.entries.push(RawEntry { name: hidden.to_owned(), kind });
                }
                None => {
                    assert_eq!(Marker::parse(&marker_name(name)), Some(Marker::Hides(name)));
                    if seen.insert(name.to_owned()) {
                        let directory = bytes.last().is_some_and(u8::is_ascii_uppercase);
                        let kind = EntryKind::Object(if directory { 0o040_000 } else { 0o100_000 });
                        listing.entries.push(RawEntry { name: name.to_owned(), kind });
                    }
                }
            }
        }
        layers.push(listing);
    }
    let merged = merge(layers.clone());
    let mut shown = HashSet::new();
    for entry in &merged {
        assert!(shown.insert(&entry.name), "a name twice");
        assert!(!is_reserved(&entry.name));
        // Nothing above it hides it.
        for above in &layers[..entry.top] {
            assert!(!above.opaque);
            assert!(above.entries.iter().all(|other| other.name != entry.name));
        }
        let there = |other: &RawEntry| {
            other.name == entry.name && other.kind == EntryKind::Object(entry.kind)
        };
        assert!(layers[entry.top].entries.iter().any(there));
    }
});
