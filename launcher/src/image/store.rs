//! Where images are kept.
//!
//! # Theory of operation
//!
//! ```text
//! images/                  mode 0700, in the data directory
//!   lock                   shared: somebody reads or adds; exclusive: somebody removes
//!   index.lock             taken for as long as names change
//!   index.json             the images and their names, replaced as a whole
//!   blobs/sha256/HEX       manifests, configurations, compressed layers
//!   layers/HEX.OWNERS/     layers, unpacked, by the digest of their tar
//!     fs/                  a lower directory for the overlay
//!     layer.json           what came out of it, written last
//!   tmp/HEX.OWNERS/        a layer that is being unpacked; locked through
//!   tmp/HEX.OWNERS.lock    this file
//!   tmp/blob-…             a blob that is being written; locked itself
//! ```
//!
//! Everything has the name of its digest and is put in its place by a rename,
//! after its digest was found to be right and its data are on the disk: what
//! has a name is whole. So an interrupted import leaves blobs and layers that
//! the next one finds done, and in `tmp` what the next one sweeps. Files there
//! are locked by whoever writes them; the kernel lets go of the lock when the
//! writer dies.
//!
//! OWNERS says whose ids the files of a layer have: `single`, or a hash of the
//! id map. Where subordinate ids come, or change, layers are unpacked anew.
//!
//! Two that import the same layer wait for each other at its lock, and the
//! second finds it done.
//!
//! A container's directory has a file `image` with the layers it stands on,
//! written before the shared lock is let go: whoever holds the exclusive lock
//! sees every layer that is in use.

mod gc;
mod uses;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use gc::Removed;

use super::digest::{Digest, Hashing};
use super::import::Blobs;
use super::manifest::{self, Config, Descriptor, Document, MOST_JSON, Manifest};
use super::reference::Reference;
use super::unpack::Report;
use super::{ImageError, Result, at, malformed};
use crate::idmap::IdMap;
use crate::store::replace;

/// The images of a user.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    /// Where containers are.
    containers: PathBuf,
}

/// What is written down of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its configuration, which is its id.
    pub id: Digest,
    /// Its names, complete, each an image's alone.
    pub names: Vec<String>,
    /// Bytes of its blobs.
    pub size: u64,
    /// Seconds since 1970 at which it came here.
    pub imported: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct IndexFile {
    images: Vec<Entry>,
}

/// An image with all that is said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// As it is listed.
    pub entry: Entry,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: Config,
}

/// What an unpacked layer is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Members of its archive.
    pub members: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop, which lets go")] File);

impl Images {
    /// Those below the data directory `data`.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(data: &Path) -> Result<Self> {
        let images = Self { root: data.join("images"), containers: data.join("containers") };
        for dir in [images.blobs(), images.root.join("layers"), images.tmp()] {
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&dir)
                .map_err(at("make", &dir))?;
        }
        Ok(images)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Where an unpacked layer is, or would be.
    #[must_use]
    pub fn layer(&self, diff_id: &Digest, map: &IdMap) -> PathBuf {
        self.root.join("layers").join(layer_name(diff_id, map))
    }

    /// Keeps what there is from being removed.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn shared(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let file = lock_file(&path).map_err(at("open", &path))?;
        forever(|| file.lock_shared()).map_err(at("lock", &path))?;
        Ok(Lock(file))
    }

    /// Waits until nobody else adds or reads.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn exclusive(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let file = lock_file(&path).map_err(at("open", &path))?;
        forever(|| file.lock()).map_err(at("lock", &path))?;
        Ok(Lock(file))
    }

    /// The images, in the order in which they came.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("read", &path)(error)),
        };
        let index: IndexFile =
            serde_json::from_slice(&bytes).map_err(|error| malformed(path.display(), error))?;
        Ok(index.images)
    }

    /// Changes the list of images.
    ///
    /// # Errors
    /// When the index cannot be read or written; it is then as it was.
    pub fn change<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T>) -> Result<T> {
        let path = self.root.join("index.lock");
        let lock = lock_file(&path).map_err(at("open", &path))?;
        forever(|| lock.lock()).map_err(at("lock", &path))?;
        let mut index = IndexFile { images: self.list()? };
        let result = change(&mut index.images)?;
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec(&index).map_err(|error| malformed(path.display(), error))?;
        replace(&path, &bytes).map_err(at("write", &path))?;
        Ok(result)
    }

    /// Writes down an image, and gives it `names`, which others lose.
    ///
    /// # Errors
    /// As of [`Self::change`].
    pub fn add(&self, entry: Entry) -> Result<()> {
        self.change(|images| {
            for other in images.iter_mut() {
                other.names.retain(|name| !entry.names.contains(name));
            }
            match images.iter_mut().find(|other| other.manifest == entry.manifest) {
                Some(known) => known.names.extend(entry.names),
                None => images.push(entry),
            }
            Ok(())
        })
    }

    /// The image that `wanted` means: a name, complete or not, a digest, or the
    /// beginning of an id.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`].
    pub fn find(&self, wanted: &str) -> Result<Entry> {
        let images = self.list()?;
        let one = |found: Vec<&Entry>| match &found[..] {
            [] => None,
            // One configuration in two manifests is one image.
            [first, rest @ ..] if rest.iter().all(|other| other.id == first.id) => {
                Some(Ok((*first).clone()))
            }
            several => {
                let mut names: Vec<String> = several
                    .iter()
                    .map(|e| e.names.first().cloned().unwrap_or_else(|| e.id.short().to_owned()))
                    .collect();
                names.sort();
                Some(Err(ImageError::Ambiguous { wanted: wanted.to_owned(), found: names }))
            }
        };
        let by = |test: &dyn Fn(&Entry) -> bool| images.iter().filter(|e| test(e)).collect();
        let is = |digest: &Digest| by(&|e: &Entry| e.manifest == *digest || e.id == *digest);
        if let Ok(digest) = Digest::parse(wanted)
            && let Some(found) = one(is(&digest))
        {
            return found;
        }
        if let Ok(reference) = Reference::parse(wanted) {
            let exact = reference.to_string();
            let local = reference.local();
            // What was made here goes before what only ends alike.
            for name in [&exact, &local] {
                if let Some(found) = one(by(&|e: &Entry| e.names.contains(name))) {
                    return found;
                }
            }
            let means = |e: &Entry| e.names.iter().any(|name| reference.means(name));
            if let Some(found) = one(by(&means)) {
                return found;
            }
            if let Some(digest) = &reference.digest
                && let Some(found) = one(is(digest))
            {
                return found;
            }
        }
        let hex = wanted.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex
            && wanted.len() >= 4
            && let Some(found) = one(by(&|e: &Entry| e.id.hex().starts_with(wanted)))
        {
            return found;
        }
        Err(ImageError::Unknown(wanted.to_owned()))
    }

    /// All that is said of an image.
    ///
    /// # Errors
    /// When a blob is missing, or is not what its digest says.
    pub fn read(&self, entry: Entry) -> Result<Image> {
        let bytes = self.json(&entry.manifest)?;
        let Document::Image(manifest) = manifest::document(&bytes)
            .map_err(|why| malformed(format_args!("image {}", entry.id.short()), why))?
        else {
            return Err(malformed(entry.manifest, "it is a list of images"));
        };
        let bytes = self.json(&manifest.config.digest)?;
        let config = manifest::config(&bytes, manifest.layers.len())
            .map_err(|why| malformed(format_args!("image {}", entry.id.short()), why))?;
        Ok(Image { entry, manifest, config })
    }

    /// A small blob, checked.
    fn json(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MOST_JSON).read_to_end(&mut bytes))
            .map_err(at("read", &path))?;
        let found = Digest::of(&bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::Mismatch {
                what: path.display().to_string(),
                wanted: digest.clone(),
                found,
            })
        }
    }

    /// Keeps bytes as a blob.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let wanted = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        if !self.has(&wanted) {
            self.fetch(&wanted, bytes)?;
        }
        Ok(wanted)
    }

    /// Whether a blob is here: what has the name is whole.
    #[must_use]
    pub fn has(&self, wanted: &Descriptor) -> bool {
        fs::metadata(self.blob(&wanted.digest)).is_ok_and(|meta| meta.len() == wanted.size)
    }

    /// Keeps what `source` gives, which must be what `wanted` says; not a byte
    /// more is read.
    ///
    /// # Errors
    /// [`ImageError::Mismatch`] when it is something else: nothing is kept then.
    pub fn fetch(&self, wanted: &Descriptor, source: impl Read) -> Result<()> {
        let Fresh { path, file } = self.fresh()?;
        let mut hashing = Hashing::new(source.take(wanted.size.saturating_add(1)));
        let copied = io::copy(&mut hashing, &mut &file);
        let (_, found, size) = hashing.finish();
        let kept = match copied {
            Err(error) => Err(ImageError::Os {
                what: format!("cannot fetch {}", wanted.digest),
                source: error,
            }),
            Ok(_) if size != wanted.size => Err(malformed(
                &wanted.digest,
                format_args!(
                    "it was to have {} bytes, and has {}",
                    wanted.size,
                    if size > wanted.size { "more".to_owned() } else { size.to_string() }
                ),
            )),
            Ok(_) if found != wanted.digest => Err(ImageError::Mismatch {
                what: "a blob".to_owned(),
                wanted: wanted.digest.clone(),
                found,
            }),
            Ok(_) => self.place(&path, &file, &wanted.digest),
        };
        if kept.is_err() {
            // The failure itself is told; the next import sweeps what stays.
            drop(fs::remove_file(&path));
        }
        kept
    }

    /// Keeps what `write` writes.
    ///
    /// # Errors
    /// Those of `write`: nothing is kept then.
    pub fn write<T>(
        &self,
        write: impl FnOnce(&mut Hashing<io::BufWriter<&File>>) -> Result<T>,
    ) -> Result<(Digest, u64, T)> {
        let Fresh { path, file } = self.fresh()?;
        let mut output = Hashing::new(io::BufWriter::with_capacity(256 << 10, &file));
        let written = write(&mut output).and_then(|result| {
            output.flush().map_err(at("write", &path))?;
            let (_, digest, size) = output.finish();
            self.place(&path, &file, &digest)?;
            Ok((digest, size, result))
        });
        if written.is_err() {
            drop(fs::remove_file(&path));
        }
        written
    }

    /// A file of `input`'s content that has no name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn spool(&self, input: &mut impl Read) -> Result<File> {
        let file = self.nameless()?;
        io::copy(input, &mut &file).map_err(at("write", &self.tmp()))?;
        Ok(file)
    }

    /// An empty file that has no name, and goes when it is closed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn nameless(&self) -> Result<File> {
        let Fresh { path, file } = self.fresh()?;
        fs::remove_file(&path).map_err(at("remove", &path))?;
        Ok(file)
    }

    /// The very bytes of an image's manifest.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn manifest(&self, image: &Image) -> Result<Vec<u8>> {
        self.json(&image.entry.manifest)
    }

    fn fresh(&self) -> Result<Fresh> {
        loop {
            let mut random = [0; 8];
            let source = Path::new("/dev/urandom");
            File::open(source)
                .and_then(|mut file| file.read_exact(&mut random))
                .map_err(at("read", source))?;
            let path = self.tmp().join(format!("blob-{:016x}", u64::from_ne_bytes(random)));
            let made =
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(at("make", &path))?,
            };
            forever(|| file.lock()).map_err(at("lock", &path))?;
            // A sweep may have come between the two.
            if path.exists() {
                return Ok(Fresh { path, file });
            }
        }
    }

    fn place(&self, path: &Path, file: &File, digest: &Digest) -> Result<()> {
        file.sync_all().map_err(at("write", path))?;
        let place = self.blob(digest);
        fs::rename(path, &place).map_err(at("make", &place))
    }

    /// The unpacked layer, which `unpack` makes in a directory when it is not
    /// here yet.
    ///
    /// # Errors
    /// Those of `unpack`: nothing is kept then.
    pub fn unpacked(
        &self,
        diff_id: &Digest,
        map: &IdMap,
        unpack: impl FnOnce(&Path) -> Result<Report>,
    ) -> Result<Option<Report>> {
        let place = self.layer(diff_id, map);
        if place.is_dir() {
            return Ok(None);
        }
        let name = layer_name(diff_id, map);
        let path = self.tmp().join(format!("{name}.lock"));
        let lock = lock_file(&path).map_err(at("open", &path))?;
        forever(|| lock.lock()).map_err(at("lock", &path))?;
        if place.is_dir() {
            return Ok(None);
        }
        let work = self.tmp().join(&name);
        // Of somebody who died.
        clear(&work)?;
        let fs_dir = work.join("fs");
        fs::DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(&fs_dir)
            .map_err(at("make", &fs_dir))?;
        let made = unpack(&fs_dir).and_then(|report| {
            let info = LayerInfo { members: report.members, bytes: report.bytes };
            let info_path = work.join("layer.json");
            let json =
                serde_json::to_vec(&info).map_err(|error| malformed(info_path.display(), error))?;
            fs::write(&info_path, json).map_err(at("write", &info_path))?;
            let opened = File::open(&work).map_err(at("open", &work))?;
            nix::unistd::syncfs(opened.as_fd())
                .map_err(|errno| at("write", &work)(errno.into()))?;
            fs::rename(&work, &place).map_err(at("make", &place))?;
            Ok(Some(report))
        });
        if made.is_err() {
            // The failure itself is told; the next import sweeps what stays.
            drop(clear(&work));
        }
        made
    }

    /// An empty directory to unpack something in that will be thrown away.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.tmp().join(format!("scratch-{}", std::process::id()));
        clear(&path)?;
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(at("make", &path))?;
        Ok(path)
    }

    /// Throws away what [`Self::scratch`] made.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, scratch: &Path) -> Result<()> {
        clear(scratch)
    }

    /// The lower directories of an image, topmost first; `None` when a layer is
    /// not unpacked for these ids.
    #[must_use]
    pub fn lowers(&self, image: &Image, map: &IdMap) -> Option<Vec<PathBuf>> {
        let layer = |id: &Digest| {
            let place = self.layer(id, map);
            place.is_dir().then(|| place.join("fs"))
        };
        image.config.rootfs.diff_ids.iter().rev().map(layer).collect()
    }
}

impl Blobs for Images {
    fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let path = self.blob(&wanted.digest);
        Ok(Box::new(File::open(&path).map_err(at("open", &path))?))
    }
}

/// A blob that is being written.
struct Fresh {
    path: PathBuf,
    file: File,
}

fn layer_name(diff_id: &Digest, map: &IdMap) -> String {
    let owners = if map.is_single() {
        "single".to_owned()
    } else {
        let ranges: String = [&map.uids, &map.gids]
            .into_iter()
            .flatten()
            .map(|r| format!("{} {} {};", r.inside, r.outside, r.count))
            .collect();
        Digest::of(ranges.as_bytes()).short().to_owned()
    };
    format!("{}.{owners}", diff_id.hex())
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn lock_file_there(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn forever(mut lock: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Removes a file, or a directory with all in it; nothing there is no error.
fn clear(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(at("remove", path)),
    }
}

#[cfg(test)]
mod tests;
