//! Checking that an image is still what it was: every digest is computed anew,
//! every layer unpacked anew and compared with the one that containers use.

use std::fs::File;
use std::io;
use std::path::Path;

use super::digest::{Digest, Hashing};
use super::import::Import;
use super::pack::{self, Layer, Tree};
use super::store::Image;
use super::{Result, at};

impl Import<'_> {
    /// Says what is wrong with an image; nothing when all is well.
    ///
    /// # Errors
    /// When it cannot be checked.
    pub fn verify(&self, image: &Image) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let blobs = image.manifest.layers.iter().chain([&image.manifest.config]);
        for blob in blobs {
            let path = self.images.blob(&blob.digest);
            match digest(&path) {
                Ok(found) if found == blob.digest => {}
                Ok(found) => {
                    wrong.push(format!("the blob {} is {found}", blob.digest));
                }
                Err(error) => wrong.push(format!("the blob {}: {error}", blob.digest)),
            }
        }
        if !wrong.is_empty() {
            return Ok(wrong);
        }
        for (blob, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let place = self.images.layer(diff_id, self.map);
            if !place.is_dir() {
                wrong.push(format!("the layer {diff_id} is not unpacked: import the image again"));
                continue;
            }
            let scratch = self.images.scratch()?;
            let compared = self
                .unpack_to(&scratch, blob, diff_id)
                .and_then(|_| Ok(self.tree(&scratch)? == self.tree(&place.join("fs"))?));
            self.images.discard(&scratch)?;
            match compared {
                Ok(true) => {}
                Ok(false) => wrong.push(format!(
                    "the unpacked layer {} has been changed: 'coracle image rm -f' the image and \
                     import it again",
                    place.display()
                )),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        Ok(wrong)
    }

    /// The digest of a layer, with the overlay's own marks.
    fn tree(&self, dir: &Path) -> Result<Digest> {
        let tree = Tree::of(vec![Layer::open(dir, false)?], true, self.map.is_single());
        let (_, digest, _) = pack::pack(&tree, Hashing::new(io::sink()))?.finish();
        Ok(digest)
    }
}

/// The digest of a file, as it is now.
pub(super) fn digest(path: &Path) -> Result<Digest> {
    let mut hashing = Hashing::new(File::open(path).map_err(at("open", path))?);
    io::copy(&mut hashing, &mut io::sink()).map_err(at("read", path))?;
    let (_, digest, _) = hashing.finish();
    Ok(digest)
}
