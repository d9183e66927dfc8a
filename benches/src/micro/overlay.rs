//! The union without FUSE: merging listings, and walking a tree of layers held in
//! memory. Uses the public API of the overlay's core only.

use std::ffi::{OsStr, OsString};

use anyhow::{Result, ensure};
use overlayfs_fuse::layer::{EntryKind, Layer, Listing, MemLayer, RawEntry};
use overlayfs_fuse::overlay::merge::merge;
use overlayfs_fuse::overlay::{Ino, Options, Overlay, ROOT};

use super::{Run, Workload};

const LAYERS: usize = 6;
const NAMES: usize = 1000;
const DIRECTORIES: usize = 50;
const FILES: usize = 40;
/// Names in one walk: directories and files, a tenth of which two layers have.
const WALKED: usize = DIRECTORIES * (1 + FILES);

pub(super) const WORKLOADS: &[Workload] = &[
    Workload {
        id: "overlay/merge",
        title: "Listings of six layers merged",
        units: "names",
        per_call: (LAYERS * NAMES) as u64,
        make: merging,
    },
    Workload {
        id: "overlay/walk",
        title: "A tree of six layers walked: readdir with attributes, no FUSE",
        units: "names",
        per_call: WALKED as u64,
        make: walking,
    },
];

fn merging() -> Result<Run> {
    // A third of the names of each layer are in the next one too.
    let listings: Vec<Listing> = (0..LAYERS)
        .map(|layer| Listing {
            entries: (0..NAMES)
                .map(|at| RawEntry {
                    name: OsString::from(format!("lib-name-{}.so", layer * NAMES * 2 / 3 + at)),
                    kind: EntryKind::Object(libc::S_IFREG),
                })
                .collect(),
            ..Listing::default()
        })
        .collect();
    let expected = (LAYERS - 1) * (NAMES * 2 / 3) + NAMES;
    Ok(Box::new(move || {
        let merged = merge(listings.clone()).len();
        // Rounding moves each layer's first name by less than one.
        ensure!(merged.abs_diff(expected) <= LAYERS, "{merged} names, not {expected}");
        Ok(())
    }))
}

fn layers() -> Vec<Box<dyn Layer>> {
    let mut layers: Vec<MemLayer> = (0..LAYERS as u64).map(MemLayer::new).collect();
    for directory in 0..DIRECTORIES {
        let dir = format!("directory-{directory}");
        for layer in &mut layers {
            *layer = std::mem::replace(layer, MemLayer::new(0)).dir(&dir, 0o755);
        }
        for file in 0..FILES {
            let path = format!("{dir}/file-{file}.so");
            let again = file % 10 == 0;
            for at in [file % LAYERS, (file + 1) % LAYERS].into_iter().take(1 + usize::from(again))
            {
                let layer = std::mem::replace(&mut layers[at], MemLayer::new(0));
                layers[at] = layer.file(&path, b"content", 0o644);
            }
        }
    }
    layers.into_iter().map(|layer| Box::new(layer) as Box<dyn Layer>).collect()
}

/// Each call walks the union and forgets what it found: the next starts as a fresh
/// mount does.
fn walking() -> Result<Run> {
    let overlay = Overlay::new(layers(), None, Options::default())?;
    Ok(Box::new(move || {
        let mut directories: Vec<Ino> = vec![ROOT];
        let mut found: Vec<Ino> = Vec::with_capacity(WALKED);
        while let Some(directory) = directories.pop() {
            overlay.read_dir(directory, 0, true, &mut |_, name, attr| {
                if name != OsStr::new(".") && name != OsStr::new("..") {
                    found.push(attr.ino);
                    if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                        directories.push(attr.ino);
                    }
                }
                true
            })?;
        }
        ensure!(found.len() == WALKED, "{} names, not {WALKED}", found.len());
        // What is contained first, as the kernel does.
        found.iter().rev().for_each(|&ino| overlay.forget(ino, 1));
        Ok(())
    }))
}
