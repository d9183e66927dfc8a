//! OCI image layouts (image-layout.md), as a directory or a tar of one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::archive::{Members, Slice};
use super::import::{Blobs, Top};
use super::manifest::{self, Descriptor, Document, Index, MOST_JSON};
use super::{Result, at, malformed};

/// The annotation with an image's name in a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout.
#[derive(Debug)]
pub enum Layout {
    /// A directory.
    Dir(PathBuf),
    /// A tar.
    Tar(Members),
}

impl Layout {
    /// Whether a directory is one.
    #[must_use]
    pub fn is(dir: &Path) -> bool {
        dir.join("oci-layout").is_file() && dir.join("index.json").is_file()
    }

    fn index(&self) -> Result<Index> {
        let bytes = match self {
            Self::Dir(dir) => {
                let path = dir.join("index.json");
                let mut bytes = Vec::new();
                File::open(&path)
                    .and_then(|file| file.take(MOST_JSON).read_to_end(&mut bytes))
                    .map_err(at("read", &path))?;
                bytes
            }
            Self::Tar(members) => members.read("index.json", MOST_JSON)?,
        };
        match manifest::document(&bytes).map_err(|why| malformed("index.json", why))? {
            Document::Index(index) => Ok(index),
            Document::Image(_) => Err(malformed("index.json", "it is a manifest")),
        }
    }

    /// The image of this name in the layout; without one the only one it has,
    /// or that for this machine.
    ///
    /// # Errors
    /// When there is none, or several to choose from.
    pub fn top(&self, wanted: Option<&str>) -> Result<Top> {
        let index = self.index()?;
        let name = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
        let there = || {
            let names: Vec<String> = index.manifests.iter().filter_map(name).collect();
            if names.is_empty() { "none with a name".to_owned() } else { names.join(", ") }
        };
        let found = match (wanted, &index.manifests[..]) {
            (Some(wanted), all) => {
                all.iter().find(|e| name(e).as_deref() == Some(wanted)).ok_or_else(|| {
                    malformed(
                        "the layout",
                        format_args!("it has no image '{wanted}', but {}", there()),
                    )
                })?
            }
            (None, [only]) => only,
            (None, _) => manifest::choose(&index, &manifest::Platform::host()).map_err(|why| {
                let why = format!(
                    "it has several images ({}); name one, as in oci:DIR:NAME: {why}",
                    there()
                );
                malformed("the layout", why)
            })?,
        };
        let names = name(found).into_iter().collect();
        Ok(Top { descriptor: found.clone(), names })
    }
}

impl Blobs for Layout {
    fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let name = format!("blobs/sha256/{}", wanted.digest.hex());
        Ok(match self {
            Self::Dir(dir) => {
                let path = dir.join(name);
                Box::new(File::open(&path).map_err(at("open", &path))?)
            }
            Self::Tar(members) => {
                let slice: Slice = members.open(&name)?;
                Box::new(slice)
            }
        })
    }
}
