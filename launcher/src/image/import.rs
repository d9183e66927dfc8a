//! Importing: from where the bytes are to an image that can be run.
//!
//! # Theory of operation
//!
//! Two kinds of sources meet here. Those with a manifest ([`Blobs`]) give blobs
//! by their digest, and these are kept as they are, so that the image stays the
//! same image. The others give layers as tars, or a directory: these are
//! compressed into blobs, and a manifest is written for them.
//!
//! Layers are done by several threads, each from fetching to unpacking; the
//! first failure keeps the others from beginning another one.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::archive::{Members, Shape, Slice, shape};
use super::compress::{self, Bounded, Compression};
use super::date::rfc3339;
use super::digest::{Digest, Hashing};
use super::docker_archive;
use super::layout::Layout;
use super::manifest::{self, Descriptor, Document, MOST_JSON, Manifest, Platform, media};
use super::pack::{self, Layer, Tree};
use super::progress::{Counted, Progress};
use super::reference::{LOCAL, Reference};
use super::store::{Entry, Images};
use super::unpack::{Limits, Report, UnpackError, unpack};
use super::{ImageError, Result, at, malformed, verify};
use crate::clock;
use crate::idmap::IdMap;

/// Layers worked on at once: more gain nothing, they share disk and network.
const WORKERS: usize = 4;

/// A source of blobs.
pub trait Blobs: Sync {
    /// The bytes of a blob; whoever reads them checks them.
    ///
    /// # Errors
    /// When it is not there.
    fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>>;
}

/// Where an image begins in a source of blobs.
#[derive(Debug)]
pub struct Top {
    /// Its manifest, or an index of it.
    pub descriptor: Descriptor,
    /// Its names there.
    pub names: Vec<String>,
}

/// What an import needs to know besides its source.
#[derive(Debug)]
pub struct Import<'a> {
    /// Where images are kept; the shared lock is held.
    pub images: &'a Images,
    /// The ids of this process's user namespace.
    pub map: &'a IdMap,
    /// Bounds of each layer.
    pub limits: Limits,
    /// Where bars are drawn.
    pub progress: &'a Progress,
}

/// An image that has been imported.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Imported {
    /// Its id.
    pub id: Digest,
    /// Its names.
    pub names: Vec<String>,
    /// What was left out, in words.
    pub warnings: Vec<String>,
}

/// What was said where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The form it must have; told by its content when absent.
    form: Option<Form>,
    /// A file or directory; `-` is standard input.
    path: PathBuf,
    /// Which image of several.
    name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    OciDir,
    OciArchive,
    DockerArchive,
}

impl Source {
    /// Reads `PATH`, `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]` or
    /// `docker-archive:FILE[:NAME]`, as skopeo does. A path with one of these
    /// beginnings is written `./oci:…`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        for (prefix, form) in [
            ("oci:", Form::OciDir),
            ("oci-archive:", Form::OciArchive),
            ("docker-archive:", Form::DockerArchive),
        ] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (path, name) = match rest.split_once(':') {
                    Some((path, name)) => (path, Some(name.to_owned())),
                    None => (rest, None),
                };
                return Self { form: Some(form), path: path.into(), name };
            }
        }
        Self { form: None, path: text.into(), name: None }
    }
}

impl Import<'_> {
    /// Imports what `source` says, as `name`, or as it is named there.
    ///
    /// # Errors
    /// [`ImageError`]; nothing of the image has a name then.
    pub fn from(&self, source: &Source, name: Option<&Reference>) -> Result<Imported> {
        if source.path.as_os_str().is_empty() {
            return Err(malformed("the source", "it names no file or directory"));
        }
        let wanted = source.name.as_deref();
        let stem = source.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let stem = stem.unwrap_or_default();
        let names = |found: Vec<String>| match name {
            Some(name) => vec![name.local()],
            None => found.iter().filter_map(|found| full_name(found, &stem)).collect(),
        };
        let is_dir = source.path.is_dir();
        if source.form == Some(Form::OciDir) || (is_dir && Layout::is(&source.path)) {
            let layout = Layout::Dir(source.path.clone());
            let top = layout.top(wanted)?;
            return self.blobs(&layout, &top.descriptor, names(top.names));
        }
        if is_dir {
            if source.form.is_some() {
                return Err(malformed(source.path.display(), "it is a directory, and no archive"));
            }
            return self.directory(&source.path, names(Vec::new()));
        }
        let file = self.file(&source.path)?;
        let shape = match source.form {
            Some(Form::OciArchive) => Shape::Oci,
            Some(_) => Shape::Docker,
            None => shape(file.clone(), self.limits.bytes)?,
        };
        match shape {
            Shape::Files => self.tar(file, names(Vec::new())),
            Shape::Oci => {
                let layout = Layout::Tar(Members::of(&self.plain(file)?)?);
                let top = layout.top(wanted)?;
                self.blobs(&layout, &top.descriptor, names(top.names))
            }
            Shape::Docker => {
                let members = Members::of(&self.plain(file)?)?;
                let image = docker_archive::image(&members, wanted)?;
                let names = match name {
                    Some(name) => vec![name.local()],
                    // Docker leaves its own registry out.
                    None => {
                        let read = |name: &String| Reference::parse(name).ok();
                        image.names.iter().filter_map(read).map(|r| r.pulled()).collect()
                    }
                };
                let layers = self.each(image.layers.len(), |index| {
                    let wanted = &image.config.rootfs.diff_ids[index];
                    self.packed_layer(image.layers[index].clone(), Some(wanted))
                })?;
                let config = self.images.keep(media::CONFIG, &image.bytes)?;
                self.finish(config, layers, names)
            }
        }
    }

    /// A file that can be read from any place.
    fn file(&self, path: &Path) -> Result<Slice> {
        let file = if path == Path::new("-") {
            self.images.spool(&mut io::stdin().lock())?
        } else {
            let file = File::open(path).map_err(at("open", path))?;
            let regular = file.metadata().map_err(at("look at", path))?.is_file();
            if regular { file } else { self.images.spool(&mut &file)? }
        };
        Slice::whole(file).map_err(at("look at", path))
    }

    /// The same, not compressed.
    fn plain(&self, file: Slice) -> Result<Slice> {
        let path = Path::new("the archive");
        let input = BufReader::with_capacity(256 << 10, file.clone());
        let (compression, content) = compress::content(input).map_err(at("read", path))?;
        if compression == Compression::None {
            return Ok(file);
        }
        let spooled = self.images.spool(&mut Bounded::new(content, self.limits.bytes))?;
        Slice::whole(spooled).map_err(at("look at", path))
    }

    /// Imports the image that `top` begins in a source of blobs.
    ///
    /// # Errors
    /// [`ImageError`]; nothing of the image has a name then.
    pub fn blobs(
        &self,
        source: &dyn Blobs,
        top: &Descriptor,
        names: Vec<String>,
    ) -> Result<Imported> {
        let (bytes, mut found) = document(source, top)?;
        let mut bytes = bytes;
        let mut digest = top.digest.clone();
        if let Document::Index(index) = &found {
            let chosen = manifest::choose(index, &Platform::host())
                .map_err(|why| malformed(&digest, why))?
                .clone();
            (bytes, found) = document(source, &chosen)?;
            digest = chosen.digest;
        }
        let Document::Image(manifest) = found else {
            return Err(malformed(digest, "it is a list in a list of images"));
        };
        if manifest.config.size > MOST_JSON {
            return Err(malformed(&manifest.config.digest, "the configuration is too long"));
        }
        let config = &manifest.config;
        if !self.images.has(config) {
            self.images.fetch(config, source.open(config)?)?;
        }
        let path = self.images.blob(&config.digest);
        let text = std::fs::read(&path).map_err(at("read", &path))?;
        let said = manifest::config(&text, manifest.layers.len())
            .map_err(|why| malformed(&config.digest, why))?;
        let reports = self.each(manifest.layers.len(), |index| {
            self.layer(source, &manifest.layers[index], &said.rootfs.diff_ids[index])
        })?;
        // Last, so that a manifest is never here without its layers.
        let kept = self.images.keep(&top.media_type, &bytes)?;
        let mut warnings = warnings(&reports);
        let host = Platform::host();
        if !said.architecture.is_empty() && said.architecture != host.architecture {
            warnings.push(format!(
                "the image is for {}, this machine is {}",
                said.architecture, host.architecture
            ));
        }
        self.add(kept, &manifest, names, warnings)
    }

    /// Fetches and unpacks one layer.
    fn layer(&self, source: &dyn Blobs, wanted: &Descriptor, diff_id: &Digest) -> Result<Report> {
        let fetch = || {
            if !wanted.urls.is_empty() {
                return Err(malformed(&wanted.digest, "a layer that is kept elsewhere"));
            }
            let bar = self.progress.bar("fetching", &wanted.digest, wanted.size);
            let fetched = self.images.fetch(wanted, Counted::new(source.open(wanted)?, &bar));
            bar.finish_and_clear();
            fetched
        };
        let had = self.images.has(wanted);
        if !had {
            fetch()?;
        }
        match self.unpack(wanted, diff_id) {
            // What was kept long ago may have rotted; what is whole is refused again.
            Err(_) if had && !self.is_whole(&wanted.digest) => {
                fetch()?;
                self.unpack(wanted, diff_id)
            }
            unpacked => unpacked,
        }
    }

    fn is_whole(&self, blob: &Digest) -> bool {
        verify::digest(&self.images.blob(blob)).is_ok_and(|found| found == *blob)
    }

    /// Unpacks a blob that is here, unless that is done already.
    ///
    /// # Errors
    /// [`ImageError::Layer`]: nothing of it is kept then.
    pub fn unpack(&self, blob: &Descriptor, diff_id: &Digest) -> Result<Report> {
        let refused = |why: String| ImageError::Layer { layer: blob.digest.clone(), why };
        let report =
            self.images.unpacked(diff_id, self.map, |dir| self.unpack_to(dir, blob, diff_id));
        report.map(Option::unwrap_or_default).map_err(|error| match error {
            ImageError::Layer { .. } => error,
            other => refused(other.to_string()),
        })
    }

    /// Unpacks a blob into a directory.
    ///
    /// # Errors
    /// [`ImageError::Layer`], also when it is not what its diff id says.
    pub fn unpack_to(&self, dir: &Path, blob: &Descriptor, diff_id: &Digest) -> Result<Report> {
        let refused = |why: String| ImageError::Layer { layer: blob.digest.clone(), why };
        let path = self.images.blob(&blob.digest);
        let file = File::open(&path).map_err(at("open", &path))?;
        let bar = self.progress.bar("unpacking", &blob.digest, blob.size);
        let input = BufReader::with_capacity(256 << 10, Counted::new(file, &bar));
        let (_, content) = compress::content(input).map_err(at("read", &path))?;
        let mut content = Hashing::new(Bounded::new(content, self.limits.bytes));
        let report = unpack(&mut content, dir, self.map, self.limits)
            .map_err(|error: UnpackError| refused(error.to_string()));
        bar.finish_and_clear();
        let report = report?;
        let (_, found, _) = content.finish();
        if found != *diff_id {
            return Err(refused(format!("its content is {found}, and was to be {diff_id}")));
        }
        Ok(report)
    }

    /// Imports an archive of files as one layer.
    fn tar(&self, file: Slice, names: Vec<String>) -> Result<Imported> {
        let layer = self.packed_layer(file, None)?;
        self.single(layer, names)
    }

    /// Imports a directory as one layer.
    fn directory(&self, dir: &Path, names: Vec<String>) -> Result<Imported> {
        let tree = Tree::of(vec![Layer::open(dir, true)?], false, self.map.is_single());
        let layer = self.compressed(|output| Ok(pack::pack(&tree, output).map(drop)?))?;
        let report = self.unpack(&layer.descriptor, &layer.diff_id)?;
        self.single(Packed { report, ..layer }, names)
    }

    /// Makes an image of one layer.
    fn single(&self, layer: Packed, names: Vec<String>) -> Result<Imported> {
        let now = rfc3339(clock::unix_seconds());
        let config = json!({
            "created": now,
            "architecture": Platform::host().architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
            "history": [{ "created": now, "created_by": "coracle image import" }],
        });
        let config = self.images.keep(media::CONFIG, config.to_string().as_bytes())?;
        self.finish(config, vec![layer], names)
    }

    /// Keeps an archive as a layer: as it is when it is compressed as layers
    /// are, and compressed otherwise.
    fn packed_layer(&self, file: Slice, wanted: Option<&Digest>) -> Result<Packed> {
        let path = Path::new("the archive");
        let open = || {
            let input = BufReader::with_capacity(256 << 10, file.clone());
            compress::content(input).map_err(at("read", path))
        };
        let (compression, content) = open()?;
        let mut content = Bounded::new(content, self.limits.bytes);
        let packed = match compression {
            Compression::Gzip | Compression::Zstd => {
                let mut hashing = Hashing::new(content);
                io::copy(&mut hashing, &mut io::sink()).map_err(at("read", path))?;
                let (_, diff_id, _) = hashing.finish();
                let (digest, size, ()) = self.images.write(|output| {
                    io::copy(&mut file.clone(), output).map_err(at("keep", path)).map(drop)
                })?;
                let media_type = match compression {
                    Compression::Zstd => media::LAYER_ZSTD,
                    _ => media::LAYER_GZIP,
                };
                let descriptor = Descriptor::new(media_type, digest, size);
                Packed { descriptor, diff_id, report: Report::default() }
            }
            Compression::None | Compression::Xz => self.compressed(|output| {
                io::copy(&mut content, output).map_err(at("read", path)).map(drop)
            })?,
        };
        if let Some(wanted) = wanted
            && *wanted != packed.diff_id
        {
            return Err(ImageError::Mismatch {
                what: "a layer".to_owned(),
                wanted: wanted.clone(),
                found: packed.diff_id,
            });
        }
        let report = self.unpack(&packed.descriptor, &packed.diff_id)?;
        Ok(Packed { report, ..packed })
    }

    /// Keeps what `write` writes as a compressed layer.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn compressed(
        &self,
        write: impl FnOnce(&mut dyn io::Write) -> Result<()>,
    ) -> Result<Packed> {
        let (digest, size, diff_id) = self.images.write(|output| compress(output, write))?;
        let descriptor = Descriptor::new(media::LAYER_GZIP, digest, size);
        Ok(Packed { descriptor, diff_id, report: Report::default() })
    }

    /// Writes a manifest for layers that are here, and adds the image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(
        &self,
        config: Descriptor,
        layers: Vec<Packed>,
        names: Vec<String>,
    ) -> Result<Imported> {
        let reports: Vec<Report> = layers.iter().map(|layer| layer.report).collect();
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.to_owned(),
            config,
            layers: layers.into_iter().map(|layer| layer.descriptor).collect(),
            annotations: std::collections::BTreeMap::new(),
        };
        let bytes =
            serde_json::to_vec(&manifest).map_err(|error| malformed("the manifest", error))?;
        let kept = self.images.keep(media::MANIFEST, &bytes)?;
        self.add(kept, &manifest, names, warnings(&reports))
    }

    fn add(
        &self,
        kept: Descriptor,
        manifest: &Manifest,
        names: Vec<String>,
        warnings: Vec<String>,
    ) -> Result<Imported> {
        let size =
            manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size + kept.size;
        let id = manifest.config.digest.clone();
        self.images.add(Entry {
            manifest: kept.digest,
            id: id.clone(),
            names: names.clone(),
            size,
            imported: clock::unix_seconds(),
        })?;
        Ok(Imported { id, names, warnings })
    }

    /// Does something for each of `count` layers, several at once.
    fn each<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
        let failed: Mutex<Option<ImageError>> = Mutex::new(None);
        let lock_failed = || failed.lock().expect("no thread panics while it holds the lock");
        std::thread::scope(|scope| {
            for _ in 0..count.min(WORKERS) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || lock_failed().is_some() {
                            return;
                        }
                        match work(index) {
                            Ok(result) => done
                                .lock()
                                .expect("no thread panics while it holds the lock")
                                .push((index, result)),
                            Err(error) => {
                                lock_failed().get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = lock_failed().take() {
            return Err(error);
        }
        let mut done = done.into_inner().expect("no thread panics while it holds the lock");
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }
}

/// A layer that is here.
#[derive(Debug)]
pub struct Packed {
    /// Its blob.
    pub descriptor: Descriptor,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// What unpacking it came to.
    pub report: Report,
}

/// Compresses what `write` writes, as layers are; the digest of it.
pub(super) fn compress(
    output: impl io::Write,
    write: impl FnOnce(&mut dyn io::Write) -> Result<()>,
) -> Result<Digest> {
    let mut plain =
        Hashing::new(flate2::write::GzEncoder::new(output, flate2::Compression::fast()));
    write(&mut plain)?;
    let (encoder, diff_id, _) = plain.finish();
    encoder.finish().map_err(at("keep", Path::new("a layer")))?;
    Ok(diff_id)
}

/// Reads a manifest or an index, and checks it.
fn document(source: &dyn Blobs, wanted: &Descriptor) -> Result<(Vec<u8>, Document)> {
    if wanted.size > MOST_JSON {
        return Err(malformed(&wanted.digest, "the manifest is too long"));
    }
    let mut bytes = Vec::new();
    source
        .open(wanted)?
        .take(MOST_JSON)
        .read_to_end(&mut bytes)
        .map_err(|source| ImageError::Os { what: "cannot read the manifest".to_owned(), source })?;
    let found = Digest::of(&bytes);
    if found != wanted.digest {
        let wanted = wanted.digest.clone();
        return Err(ImageError::Mismatch { what: "the manifest".to_owned(), wanted, found });
    }
    let document = manifest::document(&bytes).map_err(|why| malformed(&wanted.digest, why))?;
    Ok((bytes, document))
}

/// The complete name of an image that its layout calls `found`: that may be a
/// tag alone, of an image that is called as the layout is.
fn full_name(found: &str, stem: &str) -> Option<String> {
    if found.contains(['/', ':']) {
        return Reference::parse(found).ok().map(|name| name.local());
    }
    let stem = stem.split('.').next().unwrap_or_default().to_ascii_lowercase();
    Reference::parse(&format!("{LOCAL}/{stem}:{found}")).ok().map(|name| name.local())
}

fn warnings(reports: &[Report]) -> Vec<String> {
    let devices: u64 = reports.iter().map(|report| report.devices).sum();
    let attributes: u64 = reports.iter().map(|report| report.attributes).sum();
    let mut warnings = Vec::new();
    if devices > 0 {
        warnings.push(format!("{devices} device files were left out: they take privilege to make"));
    }
    if attributes > 0 {
        warnings.push(format!(
            "{attributes} extended attributes were left out: only user.* and security.capability \
             can be kept"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let read = |text| {
            let Source { form, path, name } = Source::parse(text);
            (form, path.display().to_string(), name)
        };
        assert_eq!(read("a:b"), (None, "a:b".to_owned(), None));
        assert_eq!(read("oci:a:b"), (Some(Form::OciDir), "a".to_owned(), Some("b".to_owned())));
        assert_eq!(read("oci-archive:a"), (Some(Form::OciArchive), "a".to_owned(), None));
        assert_eq!(
            read("docker-archive:a:b:c"),
            (Some(Form::DockerArchive), "a".to_owned(), Some("b:c".to_owned()))
        );
        assert_eq!(read("./oci:a"), (None, "./oci:a".to_owned(), None));
    }

    #[test]
    fn names_are_made_complete() {
        for (found, stem, want) in [
            ("latest", "box.tar.gz", Some("localhost/box:latest")),
            ("r.io/x:1", "box", Some("r.io/x:1")),
            ("x:1", "box", Some("localhost/x:1")),
            ("latest", "!", None),
            ("UPPER/x", "box", None),
        ] {
            assert_eq!(full_name(found, stem).as_deref(), want);
        }
    }
}
