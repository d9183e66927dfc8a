//! What nobody needs any more goes.

use std::collections::BTreeSet;
use std::fs::{self, TryLockError};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Images, clear, lock_file_there};
use crate::image::{Result, at};

/// What a clean-up removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Images without a name.
    pub images: usize,
    /// Blobs.
    pub blobs: usize,
    /// Unpacked layers.
    pub layers: usize,
}

impl Images {
    /// Removes what those left who died. The shared lock is held.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sweep(&self) -> Result<()> {
        let tmp = self.tmp();
        for item in fs::read_dir(&tmp).map_err(at("read", &tmp))? {
            let path = item.map_err(at("read", &tmp))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let lock = if name.starts_with("blob-") {
                path.clone()
            } else if name.ends_with(".lock") {
                // It may be anybody's who is just about to take it.
                continue;
            } else {
                path.with_file_name(format!("{name}.lock"))
            };
            let Ok(file) = lock_file_there(&lock) else { continue };
            match file.try_lock() {
                Ok(()) => clear(&path)?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(at("lock", &lock)(error)),
            }
        }
        Ok(())
    }

    /// Removes what no image with a name and no container needs. The exclusive
    /// lock is held.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        let in_use = self.in_use()?;
        removed.images = self.change(|images| {
            let before = images.len();
            images.retain(|e| !e.names.is_empty() || in_use.images.contains(&e.id));
            Ok(before - images.len())
        })?;
        let mut blobs: BTreeSet<String> = BTreeSet::new();
        let mut layers = in_use.layers;
        for entry in self.list()? {
            blobs.insert(entry.manifest.hex().to_owned());
            blobs.insert(entry.id.hex().to_owned());
            // A damaged one keeps nothing but itself: pulled again, it is whole.
            let Ok(image) = self.read(entry) else { continue };
            blobs.extend(image.manifest.layers.iter().map(|l| l.digest.hex().to_owned()));
            layers.extend(image.config.rootfs.diff_ids.iter().map(|id| id.hex().to_owned()));
        }
        removed.blobs = sweep_names(&self.blobs(), |name| blobs.contains(name))?;
        removed.layers = sweep_names(&self.root.join("layers"), |name| {
            name.split('.').next().is_some_and(|hex| layers.contains(hex))
        })?;
        sweep_names(&self.tmp(), |_| false)?;
        Ok(removed)
    }
}

/// Removes what is in a directory, but for what is to stay; how many that were.
fn sweep_names(dir: &Path, stays: impl Fn(&str) -> bool) -> Result<usize> {
    let mut count = 0;
    for item in fs::read_dir(dir).map_err(at("read", dir))? {
        let item = item.map_err(at("read", dir))?;
        if !stays(&item.file_name().to_string_lossy()) {
            clear(&item.path())?;
            count += 1;
        }
    }
    Ok(count)
}
