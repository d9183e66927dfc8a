//! Pure: the listings of a directory in each layer → the merged directory.

use std::collections::HashSet;
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
}

/// Merges `layers`, topmost first. An opaque directory hides those below it; a
/// whiteout hides its name in the layers below its own, not in its own.
#[must_use]
pub fn merge(layers: Vec<Listing>) -> Vec<MergedEntry> {
    let mut seen: HashSet<OsString> = HashSet::new();
    let mut merged = Vec::new();
    let single = layers.len() == 1;
    for (top, listing) in layers.into_iter().enumerate() {
        let mut hidden = Vec::new();
        for entry in listing.entries {
            match entry.kind {
                EntryKind::Whiteout => hidden.push(entry.name),
                EntryKind::Object(kind) => {
                    // Within one layer names are unique already.
                    if single || seen.insert(entry.name.clone()) {
                        merged.push(MergedEntry { name: entry.name, kind, top });
                    }
                }
            }
        }
        seen.extend(hidden);
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
                format!("{}{slash}@{}", e.name.to_string_lossy(), e.top)
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
            }).collect();
            let merged = merge(listings);
            for name in ["a", "b", "c", "d"] {
                let mut want = None;
                for (top, (names, opaque)) in layers.iter().enumerate() {
                    match names.get(name) {
                        Some(0) => break,
                        Some(1) => { want = Some((FILE, top)); break }
                        Some(_) => { want = Some((DIR, top)); break }
                        None => {}
                    }
                    if *opaque { break }
                }
                let got: Vec<_> = merged.iter().filter(|e| e.name == name).collect();
                prop_assert!(got.len() <= 1);
                prop_assert_eq!(got.first().map(|e| (e.kind, e.top)), want);
            }
        }
    }
}
