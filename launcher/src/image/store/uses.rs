//! Which images and layers containers stand on: kept until none does.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Image, Images};
use crate::image::digest::Digest;
use crate::image::{Result, at, malformed};
use crate::store::replace;

impl Images {
    /// The directories of containers, if there has been one.
    fn containers(&self) -> Result<impl Iterator<Item = io::Result<fs::DirEntry>> + use<>> {
        match fs::read_dir(&self.containers) {
            Ok(items) => Ok(Some(items).into_iter().flatten()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
            Err(error) => Err(at("read", &self.containers)(error)),
        }
    }

    /// What containers stand on.
    pub(super) fn in_use(&self) -> Result<InUse> {
        let mut all = InUse::default();
        for item in self.containers()? {
            let container = item.map_err(at("read", &self.containers))?.path();
            let Some(uses) = uses(&container)? else { continue };
            all.images.insert(uses.image);
            all.layers.extend(uses.layers.iter().map(|layer| layer.hex().to_owned()));
        }
        Ok(all)
    }

    /// Names of the containers that stand on an image.
    ///
    /// # Errors
    /// When the containers cannot be looked at.
    pub fn users(&self, id: &Digest) -> Result<Vec<String>> {
        let mut users = Vec::new();
        for item in self.containers()? {
            let item = item.map_err(at("read", &self.containers))?;
            let name = item.file_name().to_string_lossy().into_owned();
            let uses = uses(&item.path())?;
            if uses.is_some_and(|uses| uses.image == *id) && !name.starts_with('.') {
                users.push(name);
            }
        }
        users.sort();
        Ok(users)
    }

    /// Writes down in a container's directory what it stands on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn use_by(&self, container: &Path, image: &Image) -> Result<()> {
        let path = container.join(USES);
        let uses =
            Uses { image: image.entry.id.clone(), layers: image.config.rootfs.diff_ids.clone() };
        let bytes = serde_json::to_vec(&uses).map_err(|error| malformed(path.display(), error))?;
        replace(&path, &bytes).map_err(at("write", &path))
    }
}

/// In a container's directory.
const USES: &str = "image";

#[derive(Debug, Serialize, Deserialize)]
struct Uses {
    image: Digest,
    layers: Vec<Digest>,
}

/// What a container stands on; `None` when that is no image. One that cannot be read
/// is an error: what it stands on must not be removed.
fn uses(container: &Path) -> Result<Option<Uses>> {
    let path = container.join(USES);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| malformed(path.display(), error)),
        // A container of something else, or one that is just being removed.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(at("read", &path)(error)),
    }
}

#[derive(Debug, Default)]
pub(super) struct InUse {
    pub(super) images: BTreeSet<Digest>,
    pub(super) layers: BTreeSet<String>,
}
