//! Writing images for others: OCI layouts, as a directory or a tar, and what
//! `docker load` reads.
//!
//! Every blob is checked on its way out: what has rotted here is not handed on.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::compress;
use super::digest::{Digest, Hashing};
use super::import::Blobs;
use super::layout::REF_NAME;
use super::manifest::{self, Descriptor, Manifest, Platform, media};
use super::tar::write::Writer;
use super::tar::{Kind, Member, Time};
use super::{ImageError, Result, at, malformed};

/// In which form images are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI image layout.
    OciDir,
    /// A tar of one.
    OciArchive,
    /// As `docker save` does.
    DockerArchive,
}

/// An image that is written.
pub struct Saved<'a> {
    /// Its manifest.
    pub manifest: Manifest,
    /// The very bytes of it.
    pub bytes: Vec<u8>,
    /// What it is to be called.
    pub names: Vec<String>,
    /// Where its blobs are.
    pub blobs: &'a dyn Blobs,
}

/// Where the files of a layout go.
pub trait Place {
    /// Makes a directory.
    ///
    /// # Errors
    /// When it cannot be made.
    fn directory(&mut self, name: &str) -> Result<()>;

    /// Writes a file of `size` bytes, which is all that `content` gives.
    ///
    /// # Errors
    /// When it cannot be written.
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()>;
}

/// A directory that is new, or empty.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be made, or something is in it.
    pub fn new(path: &Path) -> Result<Self> {
        match fs::read_dir(path) {
            Ok(mut items) => {
                if items.next().is_some() {
                    return Err(malformed(path.display(), "the directory is not empty"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(path).map_err(at("make", path))?;
            }
            Err(error) => return Err(at("read", path)(error)),
        }
        Ok(Self(path.to_owned()))
    }
}

impl Place for Directory {
    fn directory(&mut self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(at("make", &path))
    }

    fn file(&mut self, name: &str, _size: u64, content: &mut dyn Read) -> Result<()> {
        let path = self.0.join(name);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let mut file = made.map_err(at("make", &path))?;
        io::copy(content, &mut file).map_err(at("write", &path)).map(drop)
    }
}

impl<W: Write> Place for Writer<W> {
    fn directory(&mut self, name: &str) -> Result<()> {
        let name = format!("{name}/");
        let member = Member { mode: 0o755, ..member(&name, Kind::Directory, 0) };
        self.header(&member).map_err(failed)
    }

    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        self.header(&member(name, Kind::File, size)).map_err(failed)?;
        let mut left = size;
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = content.read(&mut buffer[..most]).map_err(failed)?;
            if count == 0 {
                return Err(malformed(name, "it has become shorter"));
            }
            self.data(&buffer[..count]).map_err(failed)?;
            left -= count as u64;
        }
        self.pad(size).map_err(failed)
    }
}

fn failed(source: io::Error) -> ImageError {
    ImageError::Os { what: "cannot write the archive".to_owned(), source }
}

fn member(name: &str, kind: Kind, size: u64) -> Member {
    Member {
        name: name.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size,
        xattrs: Vec::new(),
        parts: Vec::new(),
    }
}

/// Writes images as an OCI layout.
///
/// # Errors
/// When a blob is not what its digest says, or the place takes no more.
pub fn oci(place: &mut dyn Place, images: &[Saved<'_>]) -> Result<()> {
    // Without them others take them for their own to make, with owners they cannot set.
    place.directory("blobs")?;
    place.directory("blobs/sha256")?;
    small(place, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut written: BTreeSet<Digest> = BTreeSet::new();
    let mut manifests = Vec::new();
    for image in images {
        for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
            if written.insert(blob.digest.clone()) {
                let name = format!("blobs/sha256/{}", blob.digest.hex());
                checked(image.blobs, blob, |content| place.file(&name, blob.size, content))?;
            }
        }
        let digest = Digest::of(&image.bytes);
        if written.insert(digest.clone()) {
            small(place, &format!("blobs/sha256/{}", digest.hex()), &image.bytes)?;
        }
        let media_type = match image.manifest.media_type.as_str() {
            "" => media::MANIFEST,
            said => said,
        };
        let host = Platform::host();
        let entry = Descriptor {
            platform: Some(Platform { variant: None, ..host }),
            ..Descriptor::new(media_type, digest, image.bytes.len() as u64)
        };
        // A name each; without one it is there all the same.
        let names = image.names.iter().cloned().map(Some);
        let names: Vec<Option<String>> =
            if image.names.is_empty() { vec![None] } else { names.collect() };
        for name in names {
            let annotations = name.map(|name| (REF_NAME.to_owned(), name)).into_iter().collect();
            manifests.push(Descriptor { annotations, ..entry.clone() });
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests });
    small(place, "index.json", index.to_string().as_bytes())
}

/// Writes images as `docker save` does.
///
/// # Errors
/// As of [`oci`].
pub fn docker(place: &mut dyn Place, images: &[Saved<'_>]) -> Result<()> {
    let mut written: BTreeSet<String> = BTreeSet::new();
    let mut items = Vec::new();
    for image in images {
        let config = &image.manifest.config;
        let mut text = Vec::new();
        checked(image.blobs, config, |content| {
            let failed = at("read", "the configuration".as_ref());
            content.read_to_end(&mut text).map_err(failed).map(drop)
        })?;
        let said = manifest::config(&text, image.manifest.layers.len())
            .map_err(|why| malformed(&config.digest, why))?;
        let name = format!("{}.json", config.digest.hex());
        if written.insert(name.clone()) {
            small(place, &name, &text)?;
        }
        let mut layers = Vec::new();
        for (blob, diff_id) in image.manifest.layers.iter().zip(&said.rootfs.diff_ids) {
            let path = format!("{}.tar", diff_id.hex());
            layers.push(path.clone());
            if !written.insert(path.clone()) {
                continue;
            }
            // Once to know how long it is and that it is the right one, once to write it.
            let mut size = 0;
            checked(image.blobs, blob, |content| {
                let (found, bytes) = unpacked(content, blob)?;
                size = bytes;
                if found == *diff_id {
                    return Ok(());
                }
                let (what, wanted) = (format!("the layer {}", blob.digest), diff_id.clone());
                Err(ImageError::Mismatch { what, wanted, found })
            })?;
            let input = BufReader::with_capacity(256 << 10, image.blobs.open(blob)?);
            let (_, mut content) =
                compress::content(input).map_err(at("read", "a layer".as_ref()))?;
            place.file(&path, size, &mut content)?;
        }
        items.push(json!({ "Config": name, "RepoTags": image.names, "Layers": layers }));
    }
    small(place, "manifest.json", json!(items).to_string().as_bytes())
}

fn small(place: &mut dyn Place, name: &str, bytes: &[u8]) -> Result<()> {
    place.file(name, bytes.len() as u64, &mut &bytes[..])
}

/// Digest and length of a layer's tar.
fn unpacked(content: &mut (dyn Read + Send), blob: &Descriptor) -> Result<(Digest, u64)> {
    let failed = |source| ImageError::Os { what: format!("cannot read {}", blob.digest), source };
    let input = BufReader::with_capacity(256 << 10, content);
    let (_, content) = compress::content(input).map_err(failed)?;
    let mut hashing = Hashing::new(content);
    io::copy(&mut hashing, &mut io::sink()).map_err(failed)?;
    let (_, found, size) = hashing.finish();
    Ok((found, size))
}

/// Hands a blob to `work`, and sees to it that it was the right one.
fn checked(
    blobs: &dyn Blobs,
    wanted: &Descriptor,
    work: impl FnOnce(&mut (dyn Read + Send)) -> Result<()>,
) -> Result<()> {
    let mut hashing = Hashing::new(blobs.open(wanted)?);
    work(&mut hashing)?;
    io::copy(&mut hashing, &mut io::sink()).map_err(at("read", "a blob".as_ref()))?;
    let (_, found, _) = hashing.finish();
    if found == wanted.digest {
        return Ok(());
    }
    let (what, wanted) = ("a blob".to_owned(), wanted.digest.clone());
    Err(ImageError::Mismatch { what, wanted, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::archive::{Members, Slice};
    use crate::image::layout::Layout;
    use std::collections::BTreeMap;

    struct Kept(BTreeMap<Digest, Vec<u8>>);

    impl Blobs for Kept {
        fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
            Ok(Box::new(&self.0[&wanted.digest][..]))
        }
    }

    fn kept() -> (Kept, Manifest) {
        let layer = b"not looked at".to_vec();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(&layer)
        );
        let descriptor =
            |kind: &str, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: String::new(),
            config: descriptor(media::CONFIG, config.as_bytes()),
            layers: vec![descriptor(media::LAYER, &layer)],
            annotations: BTreeMap::new(),
        };
        let blobs = [layer, config.into_bytes()].map(|bytes| (Digest::of(&bytes), bytes));
        (Kept(blobs.into()), manifest)
    }

    fn saved(blobs: &Kept, manifest: Manifest, names: &[&str]) -> Vec<u8> {
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let mut writer = Writer::new(Vec::new());
        oci(&mut writer, &[Saved { manifest, bytes, names, blobs }]).unwrap();
        writer.finish().unwrap()
    }

    fn members(bytes: &[u8]) -> Members {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Members::of(&Slice::whole(file).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let (blobs, manifest) = kept();
        let layout = Layout::Tar(members(&saved(&blobs, manifest.clone(), &["a:1", "b:2"])));
        let top = layout.top(Some("b:2")).unwrap();
        assert_eq!(top.descriptor.digest, Digest::of(&serde_json::to_vec(&manifest).unwrap()));
        let mut read = String::new();
        layout.open(&manifest.layers[0]).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "not looked at");
        let nameless = Layout::Tar(members(&saved(&blobs, manifest, &[])));
        assert!(nameless.top(None).unwrap().names.is_empty());
    }

    #[test]
    fn what_has_rotted_is_not_handed_on() {
        let (mut blobs, manifest) = kept();
        blobs.0.get_mut(&manifest.layers[0].digest).unwrap()[0] ^= 1;
        let image = || Saved {
            bytes: serde_json::to_vec(&manifest).unwrap(),
            manifest: manifest.clone(),
            names: Vec::new(),
            blobs: &blobs,
        };
        for write in [oci, docker] {
            let mut writer = Writer::new(Vec::new());
            let error = write(&mut writer, &[image()]).unwrap_err();
            assert!(matches!(error, ImageError::Mismatch { .. }), "{error}");
        }
    }
}
