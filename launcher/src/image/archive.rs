//! An archive whose members are looked up by name: what `skopeo` and `docker
//! save` write is a tar of blobs, in any order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::compress::{self, Bounded};
use super::tar::{Kind, Reader};
use super::{ImageError, Result, malformed};

/// Most members of such an archive.
const MOST_MEMBERS: usize = 100_000;

/// Part of a file, read from its own place.
#[derive(Debug, Clone)]
pub struct Slice {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Slice {
    /// All of a file.
    ///
    /// # Errors
    /// As of fstat(2).
    pub fn whole(file: File) -> io::Result<Self> {
        let left = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), at: 0, left })
    }

    /// How many bytes are left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// The members of an archive.
#[derive(Debug)]
pub struct Members(BTreeMap<String, Slice>);

/// What kind of archive something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// An OCI image layout.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// Anything else: a file system.
    Files,
}

impl Members {
    /// Looks through an archive, which is not compressed.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(archive: &Slice) -> Result<Self> {
        let mut members = BTreeMap::new();
        let mut links = Vec::new();
        let mut reader = Reader::new(BufReader::with_capacity(256 << 10, archive.clone()));
        while let Some(member) =
            reader.next_member().map_err(|error| malformed("the archive", error))?
        {
            let Ok(name) = String::from_utf8(member.name) else { continue };
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            match member.kind {
                // A sparse one has no business here.
                Kind::File if member.parts.len() <= 1 => {
                    let at = archive.at + reader.position();
                    let part = Slice { file: Arc::clone(&archive.file), at, left: member.size };
                    members.insert(name, part);
                }
                Kind::Symlink | Kind::HardLink => {
                    if let Ok(target) = String::from_utf8(member.link) {
                        links.push((name, target, member.kind));
                    }
                }
                _ => {}
            }
            if members.len() + links.len() > MOST_MEMBERS {
                return Err(malformed("the archive", "it has too many members for an image"));
            }
        }
        // Docker's older archives name the same layer twice.
        for (name, target, kind) in links {
            let target = if kind == Kind::Symlink { beside(&name, &target) } else { target };
            if let Some(slice) = members.get(&target).cloned() {
                members.insert(name, slice);
            }
        }
        Ok(Self(members))
    }

    /// The member of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(&self, name: &str) -> Result<Slice> {
        self.0
            .get(name)
            .cloned()
            .ok_or_else(|| malformed("the archive", format_args!("it has no member '{name}'")))
    }

    /// A small member, whole.
    ///
    /// # Errors
    /// When there is none, or it has more than `most` bytes.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let mut slice = self.open(name)?;
        if slice.len() > most {
            return Err(malformed(format_args!("the member '{name}'"), "it is too long"));
        }
        let mut bytes = Vec::new();
        slice
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Os { what: format!("cannot read '{name}'"), source })?;
        Ok(bytes)
    }
}

/// Where a relative link in the directory of `name` leads.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// What kind of archive this is: its members tell, the first that no archive of
/// images has decides.
///
/// # Errors
/// When it cannot be read, or has more than `most` bytes when it is unpacked.
pub fn shape(archive: impl Read + Send, most: u64) -> Result<Shape> {
    let failed = |source| ImageError::Os { what: "cannot read the archive".to_owned(), source };
    let input = BufReader::with_capacity(256 << 10, archive);
    let (_, content) = compress::content(input).map_err(failed)?;
    let mut reader = Reader::new(Bounded::new(content, most));
    let (mut oci, mut index, mut docker) = (false, false, false);
    while let Some(member) =
        reader.next_member().map_err(|error| malformed("the archive", error))?
    {
        let name = String::from_utf8_lossy(&member.name).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        match name {
            "oci-layout" => oci = true,
            "index.json" => index = true,
            "manifest.json" => docker = true,
            "" | "." | "repositories" | "blobs/" => {}
            _ => {
                let hex =
                    name.get(..64).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
                if !hex && !name.starts_with("blobs/sha256") {
                    return Ok(Shape::Files);
                }
            }
        }
    }
    Ok(match (oci && index, docker) {
        (true, _) => Shape::Oci,
        (false, true) => Shape::Docker,
        (false, false) => Shape::Files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar::write::Writer;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for name in names {
            writer.file(name, name.as_bytes()).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn shapes_are_told_by_names() {
        let hex = "a".repeat(64);
        let blob = format!("blobs/sha256/{hex}");
        for (names, want) in [
            (&["oci-layout", &blob, "index.json"][..], Shape::Oci),
            (&["./index.json", "./oci-layout"], Shape::Oci),
            (
                &["manifest.json", &format!("{hex}.json"), &format!("{hex}/layer.tar")],
                Shape::Docker,
            ),
            (&["manifest.json", "oci-layout", "index.json"], Shape::Oci),
            (&["manifest.json", "etc/passwd"], Shape::Files),
            (&["oci-layout"], Shape::Files),
            (&["bin/sh"], Shape::Files),
            (&[], Shape::Files),
        ] {
            assert_eq!(shape(&archive(names)[..], 1 << 20).unwrap(), want, "{names:?}");
        }
    }

    #[test]
    fn no_more_is_unpacked_than_allowed_to_tell_a_shape() {
        let large = archive(&["oci-layout", "index.json"]);
        assert!(shape(&large[..], 1000).is_err());
    }

    #[test]
    fn members_are_read_from_their_place() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &archive(&["./a", "b/c"])).unwrap();
        let members = Members::of(&Slice::whole(file).unwrap()).unwrap();
        assert_eq!(members.read("a", 9).unwrap(), b"./a");
        assert_eq!(members.read("b/c", 3).unwrap(), b"b/c");
        assert!(members.read("b/c", 2).is_err() && members.read("d", 9).is_err());
        assert_eq!(beside("x/layer.tar", "../y/layer.tar"), "y/layer.tar");
    }
}
