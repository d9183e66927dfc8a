//! From a container to an image: the layers it stands on, and one of what it changed.

use std::fs::File;
use std::io::{Read, Write as _};

use serde_json::{Map, json};

use super::change::{self, Change};
use super::date::rfc3339;
use super::digest::{Digest, Hashing};
use super::import::{Blobs, Import, Imported, Packed, compress};
use super::manifest::{
    Config, Descriptor, MOST_LAYERS, Manifest, Platform, RootFs, Running, media,
};
use super::pack::{self, Tree};
use super::store::{Image, Images};
use super::{Result, at, malformed};
use crate::clock;

/// What is said about an image that is made of a container.
#[derive(Debug, Clone, Default)]
pub struct Note {
    /// By whom.
    pub author: Option<String>,
    /// What for.
    pub message: Option<String>,
    /// How its configuration differs from that of the image below.
    pub changes: Vec<Change>,
    /// The command that made it.
    pub made_by: String,
}

impl Import<'_> {
    /// Makes an image of `tree`: on top of `base` when it is what was changed of it, and
    /// else all there is.
    ///
    /// # Errors
    /// [`super::ImageError`]; there is no image then.
    pub fn commit(
        &self,
        base: Option<&Image>,
        tree: &Tree,
        note: &Note,
        names: Vec<String>,
    ) -> Result<Imported> {
        let mut layers = below(base, tree)?;
        let packed = self.compressed(|output| Ok(pack::pack(tree, output).map(drop)?))?;
        let report = self.unpack(&packed.descriptor, &packed.diff_id)?;
        layers.push(Packed { report, ..packed });
        let config = configured(base, &layers, tree, note)?;
        let config = self.images.keep(media::CONFIG, &config)?;
        self.finish(config, layers, names)
    }
}

/// The layers that an image of `tree` has below its own.
fn below(base: Option<&Image>, tree: &Tree) -> Result<Vec<Packed>> {
    let Some(base) = base.filter(|_| tree.changes) else { return Ok(Vec::new()) };
    if base.manifest.layers.len() >= MOST_LAYERS {
        let why = format!(
            "it has {MOST_LAYERS} layers, and no image can have more: use --squash to make one of \
             all"
        );
        return Err(malformed(format_args!("image {}", base.entry.id.short()), why));
    }
    let layers = base.manifest.layers.iter().zip(&base.config.rootfs.diff_ids);
    let known = layers.map(|(blob, diff_id)| {
        let media_type = if blob.media_type.ends_with("gzip") {
            media::LAYER_GZIP
        } else if blob.media_type.ends_with("zstd") {
            media::LAYER_ZSTD
        } else {
            media::LAYER
        };
        let descriptor = Descriptor::new(media_type, blob.digest.clone(), blob.size);
        Packed { descriptor, diff_id: diff_id.clone(), report: Default::default() }
    });
    Ok(known.collect())
}

/// The configuration of an image with these layers.
fn configured(
    base: Option<&Image>,
    layers: &[Packed],
    tree: &Tree,
    note: &Note,
) -> Result<Vec<u8>> {
    let mut config = match base {
        Some(base) => base.config.clone(),
        None => Config {
            created: None,
            architecture: Platform::host().architecture,
            os: "linux".to_owned(),
            config: None,
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
            history: Vec::new(),
            more: Default::default(),
        },
    };
    let now = rfc3339(clock::unix_seconds());
    config.created = Some(now.clone());
    change::forget_origin(&mut config.more);
    if !tree.changes {
        config.history.clear();
    }
    let mut history = Map::new();
    history.insert("created".to_owned(), json!(now));
    history.insert("created_by".to_owned(), json!(note.made_by));
    for (key, text) in [("author", &note.author), ("comment", &note.message)] {
        if let Some(text) = text {
            history.insert(key.to_owned(), json!(text));
        }
    }
    if let Some(author) = &note.author {
        config.more.insert("author".to_owned(), json!(author));
    }
    config.history.push(history.into());
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let mut running = config.config.take().unwrap_or_else(Running::default);
    for change in &note.changes {
        change.apply(&mut running).map_err(|why| malformed("--change", why))?;
    }
    config.config = Some(running);
    serde_json::to_vec(&config).map_err(|error| malformed("the configuration", error))
}

/// An image that is only made to be written somewhere.
#[derive(Debug)]
pub struct Loose<'a> {
    images: &'a Images,
    layer: File,
    packed: Descriptor,
    config: (Descriptor, Vec<u8>),
    /// Its manifest.
    pub manifest: Manifest,
}

impl<'a> Loose<'a> {
    /// As [`Import::commit`]; nothing of it is kept.
    ///
    /// # Errors
    /// [`super::ImageError`].
    pub fn make(
        images: &'a Images,
        base: Option<&Image>,
        tree: &Tree,
        note: &Note,
    ) -> Result<Self> {
        let mut layers = below(base, tree)?;
        let layer = images.nameless()?;
        let mut output = Hashing::new(&layer);
        let diff_id = compress(&mut output, |output| Ok(pack::pack(tree, output).map(drop)?))?;
        output.flush().map_err(at("write", "a layer".as_ref()))?;
        let (_, digest, size) = output.finish();
        let packed = Descriptor::new(media::LAYER_GZIP, digest, size);
        layers.push(Packed { descriptor: packed.clone(), diff_id, report: Default::default() });
        let text = configured(base, &layers, tree, note)?;
        let config = Descriptor::new(media::CONFIG, Digest::of(&text), text.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.to_owned(),
            config: config.clone(),
            layers: layers.into_iter().map(|layer| layer.descriptor).collect(),
            annotations: Default::default(),
        };
        Ok(Self { images, layer, packed, config: (config, text), manifest })
    }

    /// The bytes of its manifest.
    ///
    /// # Errors
    /// Never, of data like these.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.manifest).map_err(|error| malformed("the manifest", error))
    }
}

impl Blobs for Loose<'_> {
    fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        if wanted.digest == self.config.0.digest {
            return Ok(Box::new(&self.config.1[..]));
        }
        if wanted.digest != self.packed.digest {
            return self.images.open(wanted);
        }
        let again = self.layer.try_clone().and_then(super::archive::Slice::whole);
        Ok(Box::new(again.map_err(at("read", "a layer".as_ref()))?))
    }
}
