//! Pure: the listings of a directory in each layer → the merged directory.

use std::collections::HashMap;
use std::ffi::OsString;

use crate::layer::{EntryKind, Listing};

/// One name of a merged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedEntry {
    /// The name.
    pub name: OsString,
    /// `S_IFMT` bits of the topmost object of that name.
    pub kind: u32,
    /// Position in the given listings, topmost first, of that object.
    pub top: usize,
    /// It is a directory, and so is the name in a layer below that it does not
    /// hide (unless a mark on the directory itself does).
    pub merged: bool,
}

/// What has been found of a name so far.
enum Seen {
    /// Nothing further down is part of it.
    Closed,
    /// A directory, the entry of this number: directories further down belong to it.
    Directory(usize),
}

/// Merges `layers`, topmost first. An opaque directory hides those below it; a
/// whiteout hides its name in the layers below its own, not in its own.
#[must_use]
pub fn merge(layers: Vec<Listing>) -> Vec<MergedEntry> {
    const DIRECTORY: u32 = 0o040_000;
    let mut seen: HashMap<OsString, Seen> = HashMap::new();
    let mut merged: Vec<MergedEntry> = Vec::new();
    let single = layers.len() == 1;
    for (top, listing) in layers.into_iter().enumerate() {
        let mut hidden = Vec::new();
        for entry in listing.entries {
            let kind = match entry.kind {
                EntryKind::Whiteout => {
                    hidden.push(entry.name);
                    continue;
                }
                EntryKind::Object(kind) => kind,
            };
            match seen.get_mut(&entry.name) {
                Some(Seen::Directory(at)) if kind == DIRECTORY => merged[*at].merged = true,
                Some(seen) => *seen = Seen::Closed,
                None => {
                    // Within one layer names are unique already.
                    if !single {
                        let state = if kind == DIRECTORY {
                            Seen::Directory(merged.len())
                        } else {
                            Seen::Closed
                        };
                        seen.insert(entry.name.clone(), state);
                    }
                    merged.push(MergedEntry { name: entry.name, kind, top, merged: false });
                }
            }
        }
        seen.extend(hidden.into_iter().map(|name| (name, Seen::Closed)));
        if listing.opaque {
            break;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::RawEntry;
    use proptest::prelude::*;

    const FILE: u32 = libc::S_IFREG;
    const DIR: u32 = libc::S_IFDIR;

    /// `a` file, `a/` directory, `-a` whiteout; a leading `!` makes it opaque.
    fn listing(text: &str) -> Listing {
        let mut out = Listing::default();
        for word in text.split_whitespace() {
            if word == "!" {
                out.opaque = true;
            } else if let Some(name) = word.strip_prefix('-') {
                out.entries.push(RawEntry { name: name.into(), kind: EntryKind::Whiteout });
            } else if let Some(name) = word.strip_suffix('/') {
                out.entries.push(RawEntry { name: name.into(), kind: EntryKind::Object(DIR) });
            } else {
                out.entries.push(RawEntry { name: word.into(), kind: EntryKind::Object(FILE) });
            }
        }
        out
    }

    fn shown(layers: &[&str]) -> String {
        let mut out: Vec<String> = merge(layers.iter().map(|l| listing(l)).collect())
            .into_iter()
            .map(|e| {
                let slash = if e.kind == DIR { "/" } else { "" };
                let plus = if e.merged { "+" } else { "" };
                format!("{}{slash}@{}{plus}", e.name.to_string_lossy(), e.top)
            })
            .collect();
        out.sort();
        out.join(" ")
    }

    #[test]
    fn table() {
        for (layers, want) in [
            (&["a b"][..], "a@0 b@0"),
            (&["a", "a b"], "a@0 b@1"),
            (&["-a", "a b"], "b@1"),
            (&["a/", "a b"], "a/@0 b@1"),
            (&["a", "a/"], "a@0"),
            (&["a/", "", "a/"], "a/@0+"),
            (&["a/", "-a", "a/"], "a/@0"),
            (&["a/", "a", "a/"], "a/@0"),
            (&["a/ -a", "a/"], "a/@0"),
            // A whiteout in the middle hides only what is below it.
            (&["", "-a", "a"], ""),
            (&["a", "-a", "a"], "a@0"),
            (&["", "a", "-a b", "a b"], "a@1 b@2"),
            // A marker beside an object of the same name hides below only.
            (&["a -a", "a"], "a@0"),
            (&["! b", "a"], "b@0"),
            (&["", "! b", "a"], "b@1"),
            (&["!", "a b c/"], ""),
            // A whiteout with nothing below is not shown.
            (&["-a"], ""),
        ] {
            assert_eq!(shown(layers), want, "{layers:?}");
        }
    }

    proptest! {
        /// Against the definition: walk down from the top for each name.
        #[test]
        fn agrees_with_the_definition(
            layers in proptest::collection::vec(
                (proptest::collection::btree_map("[a-d]", 0u8..3, 0..4), any::<bool>()), 0..5)
        ) {
            let listings: Vec<Listing> = layers.iter().map(|(names, opaque)| Listing {
                entries: names.iter().map(|(name, kind)| RawEntry {
                    name: name.into(),
                    kind: match kind { 0 => EntryKind::Whiteout, 1 => EntryKind::Object(FILE), _ => EntryKind::Object(DIR) },
                }).collect(),
                opaque: *opaque,
                marked: false,
            }).collect();
            let merged = merge(listings);
            for name in ["a", "b", "c", "d"] {
                let mut want: Option<(u32, usize, bool)> = None;
                for (top, (names, opaque)) in layers.iter().enumerate() {
                    match names.get(name) {
                        Some(0) => break,
                        Some(1) => { want.get_or_insert((FILE, top, false)); break }
                        Some(_) => {
                            want = Some(want.map_or((DIR, top, false), |(k, t, _)| (k, t, true)));
                        }
                        None => {}
                    }
                    if *opaque { break }
                }
                let got: Vec<_> = merged.iter().filter(|e| e.name == name).collect();
                prop_assert!(got.len() <= 1);
                prop_assert_eq!(got.first().map(|e| (e.kind, e.top, e.merged)), want);
            }
        }
    }
}
