//! Names of images, after the grammar of the distribution project:
//! `[REGISTRY/]PATH[:TAG][@DIGEST]`. Pure.
//!
//! The first part of a name is a registry when it has a dot or a colon, or is
//! `localhost`; a name without one is Docker Hub's when it is pulled, and
//! `localhost`'s when something local is given it.

use std::fmt;

use super::digest::Digest;

/// The tag of a name that has none.
pub const LATEST: &str = "latest";
/// Where a name without a registry is pulled from.
pub const DOCKER_HUB: &str = "docker.io";
/// The registry of what was made here.
pub const LOCAL: &str = "localhost";

/// The name of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and port, where the name says one.
    pub registry: Option<String>,
    /// The path there.
    pub path: String,
    /// Its tag.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name.
    ///
    /// # Errors
    /// A reason, with the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("'{text}' is not the name of an image: {why}");
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest).map_err(|why| bad(&why))?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; before it, a port.
        let (name, tag) = match name.rfind(':').filter(|at| !name[*at..].contains('/')) {
            Some(at) => (&name[..at], Some(&name[at + 1..])),
            None => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag has letters, digits, '_', '.', '-', at most 128"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == LOCAL => {
                (Some(first), rest)
            }
            _ => (None, name),
        };
        if registry.is_some_and(|registry| !is_registry(registry)) {
            return Err(bad("its registry is not HOST or HOST:PORT"));
        }
        if path.len() > 255 || !path.split('/').all(is_part) {
            return Err(bad(
                "the parts of its path have lower-case letters and digits, with '.', '_' or '-' \
                 between them",
            ));
        }
        Ok(Self {
            registry: registry.map(str::to_owned),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// As what is made here is called: with a registry and a tag.
    #[must_use]
    pub fn local(&self) -> String {
        let registry = self.registry.as_deref().unwrap_or(LOCAL);
        format!("{registry}/{}:{}", self.path, self.tag.as_deref().unwrap_or(LATEST))
    }

    /// The registry that it is pulled from, and the path there.
    #[must_use]
    pub fn remote(&self) -> (&str, String) {
        match self.registry.as_deref() {
            Some(DOCKER_HUB) | None if !self.path.contains('/') => {
                (DOCKER_HUB, format!("library/{}", self.path))
            }
            registry => (registry.unwrap_or(DOCKER_HUB), self.path.clone()),
        }
    }

    /// As what is pulled is called.
    #[must_use]
    pub fn pulled(&self) -> String {
        let (registry, path) = self.remote();
        match (&self.tag, &self.digest) {
            (None, Some(digest)) => format!("{registry}/{path}@{digest}"),
            (tag, _) => format!("{registry}/{path}:{}", tag.as_deref().unwrap_or(LATEST)),
        }
    }

    /// Whether `name`, which is complete, may be meant by this: they are the
    /// same, or `name` ends in it at a slash, as people shorten names.
    #[must_use]
    pub fn means(&self, name: &str) -> bool {
        let wanted = match (&self.registry, self.tag.as_deref(), &self.digest) {
            (_, None, Some(digest)) => format!("{}@{digest}", self.path),
            (_, tag, _) => format!("{}:{}", self.path, tag.unwrap_or(LATEST)),
        };
        match &self.registry {
            Some(registry) => name == format!("{registry}/{wanted}"),
            None => name.strip_suffix(&wanted).is_some_and(|before| before.ends_with('/')),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// One part of a path: runs of letters and digits, with separators between.
fn is_part(part: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || b"._-".contains(b))
        && !part.contains("..")
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest {
                "" => return true,
                _ => ("x", rest.strip_prefix(':')),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("1")),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    !host.is_empty()
        && host.bytes().all(plain)
        && port.is_some_and(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    #[test]
    fn parts_of_a_name() {
        let hex = "b".repeat(64);
        let full = read(&format!("reg.example:5000/a/b-c_d.e:v1@sha256:{hex}"));
        assert_eq!(full.registry.as_deref(), Some("reg.example:5000"));
        assert_eq!((full.path.as_str(), full.tag.as_deref()), ("a/b-c_d.e", Some("v1")));
        assert_eq!(full.digest.unwrap().hex(), hex);
        assert_eq!(read("busybox").registry, None);
        assert_eq!(read("localhost/x").registry.as_deref(), Some("localhost"));
        assert_eq!(read("[::1]:5000/x").registry.as_deref(), Some("[::1]:5000"));
        assert_eq!(read("a/b").path, "a/b");
    }

    #[test]
    fn complete_names() {
        for (text, local, pulled) in [
            ("x", "localhost/x:latest", "docker.io/library/x:latest"),
            ("a/x:1", "localhost/a/x:1", "docker.io/a/x:1"),
            ("docker.io/x", "docker.io/x:latest", "docker.io/library/x:latest"),
            ("r.io:80/x", "r.io:80/x:latest", "r.io:80/x:latest"),
        ] {
            assert_eq!(
                (read(text).local().as_str(), read(text).pulled().as_str()),
                (local, pulled)
            );
        }
    }

    #[test]
    fn short_names_mean_long_ones() {
        for (text, name, means) in [
            ("x", "localhost/x:latest", true),
            ("x", "docker.io/library/x:latest", true),
            ("x", "localhost/xx:latest", false),
            ("x", "localhost/x:1", false),
            ("x:1", "localhost/x:1", true),
            ("library/x", "docker.io/library/x:latest", true),
            ("localhost/x", "localhost/x:latest", true),
            ("localhost/x", "docker.io/localhost/x:latest", false),
        ] {
            assert_eq!(read(text).means(name), means, "{text} {name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a//b",
            "a b",
            "..",
            "a/../b",
            "a:",
            "a:b c",
            "a:-x",
            "-a",
            "a@sha256:00",
            "r.io:x/a",
            "r.io:0/a",
            "r.io:99999/a",
            "[::g]:1/a",
            "a\n",
            "ä",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_written_as_it_was_read(text in "\\PC*|[a-z0-9.:/@_-]*") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(reference.to_string(), text);
                prop_assert_eq!(Reference::parse(&reference.local()).unwrap().local(), reference.local());
            }
        }
    }
}
