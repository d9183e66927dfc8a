//! The JSON of images: manifests, indexes and configurations, of the OCI image
//! specification (manifest.md, image-index.md, config.md) and Docker's forms of
//! them (schema 2 of the distribution project). Pure: bytes in, data out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::Digest;

/// Media types.
pub mod media {
    /// A manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A list of manifests.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer, compressed by gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer, compressed by zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// A layer as it is.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's list of manifests.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
}

/// Longest manifest, index or configuration that is read, in bytes (registries
/// take no longer manifests than 4 MiB).
pub const MOST_JSON: u64 = 4 << 20;
/// Most layers of an image: as many lower directories the overlay joins.
pub const MOST_LAYERS: usize = 500;

/// What some bytes are, and how to tell that they are the right ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What they are.
    #[serde(default)]
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// Where else to find them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What machine they are for; of the manifests in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Said about them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of bytes that are known.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// What machine an image is for, in the words of Go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// As `linux`.
    #[serde(default)]
    pub os: String,
    /// As `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    fn suits(&self, host: &Self) -> bool {
        self.architecture == host.architecture && self.os == host.os
    }
}

/// An image: a configuration and layers, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What this is; older ones don't say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
    /// Said about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Several images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What this is; older ones don't say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Their manifests.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest's bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Several, for several machines.
    Index(Index),
}

/// Reads a manifest or an index.
///
/// # Errors
/// A reason.
pub fn document(bytes: &[u8]) -> Result<Document, String> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| format!("a manifest that is no JSON: {error}"))?;
    if value.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(
            "a manifest that is not of schema version 2; images of version 1 are long obsolete: \
             push it again with a current tool"
                .to_owned(),
        );
    }
    if value.get("manifests").is_some() && value.get("layers").is_some() {
        // Which of the two it is must not depend on who reads it (CVE-2021-41190).
        return Err("a manifest that is also an index".to_owned());
    }
    if value.get("manifests").is_some() {
        let index = serde_json::from_value(value)
            .map_err(|error| format!("an index that makes no sense: {error}"))?;
        return Ok(Document::Index(index));
    }
    let manifest: Manifest = serde_json::from_value(value)
        .map_err(|error| format!("a manifest that makes no sense: {error}"))?;
    if manifest.layers.len() > MOST_LAYERS {
        return Err(format!(
            "an image of {} layers; at most {MOST_LAYERS} can be joined",
            manifest.layers.len()
        ));
    }
    for layer in &manifest.layers {
        if !is_layer(&layer.media_type) {
            return Err(format!(
                "a layer of the type '{}', which is no file system layer",
                layer.media_type
            ));
        }
    }
    Ok(Document::Image(manifest))
}

/// Compression is told by the content itself.
fn is_layer(media_type: &str) -> bool {
    const KNOWN: [&str; 9] = [
        media::LAYER,
        media::LAYER_GZIP,
        media::LAYER_ZSTD,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ];
    KNOWN.contains(&media_type)
}

/// Of several images the one for `host`: that of its architecture, with a
/// variant only when there is none without.
///
/// # Errors
/// A reason that names what there is.
pub fn choose<'a>(index: &'a Index, host: &Platform) -> Result<&'a Descriptor, String> {
    let suits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|p| p.suits(host));
    let plain = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|p| p.variant.is_none());
    let found = index.manifests.iter().filter(suits).find(plain);
    let found = found.or_else(|| index.manifests.iter().find(suits));
    if let Some(found) = found {
        return Ok(found);
    }
    // Layouts of one image often say nothing of machines.
    if let [only] = &index.manifests[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let there: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    Err(format!(
        "the image is not for {}/{}; it is for {}",
        host.os,
        host.architecture,
        if there.is_empty() { "no machine it names".to_owned() } else { there.join(", ") }
    ))
}

/// The configuration of an image. What is not known here is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// As in [`Platform`].
    #[serde(default)]
    pub architecture: String,
    /// As in [`Platform`].
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default)]
    pub config: Option<Running>,
    /// Its layers, unpacked.
    pub rootfs: RootFs,
    /// Where the layers came from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Value>,
    /// All else.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// Digests of the layers' tars, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Running {
    /// `USER[:GROUP]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `PORT[/PROTOCOL]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// What is run, before the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The command, when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Directories whose content outlives images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Value>>,
    /// Where it is run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Said about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The signal that asks it to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// All else.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// Reads a configuration, which must speak of as many layers as the manifest.
///
/// # Errors
/// A reason.
pub fn config(bytes: &[u8], layers: usize) -> Result<Config, String> {
    let config: Config = serde_json::from_slice(bytes)
        .map_err(|error| format!("a configuration that makes no sense: {error}"))?;
    if config.rootfs.kind != "layers" {
        return Err(format!("a configuration with layers of the kind '{}'", config.rootfs.kind));
    }
    let named = config.rootfs.diff_ids.len();
    if named != layers {
        return Err(format!("a configuration of {named} layers, and a manifest of {layers}"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(n: u8, platform: Option<(&str, Option<&str>)>) -> Descriptor {
        let digest = Digest::of(&[n]);
        let platform = platform.map(|(architecture, variant)| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        });
        Descriptor { platform, ..Descriptor::new(media::MANIFEST, digest, 1) }
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index { schema_version: 2, media_type: String::new(), manifests }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let host = Platform { architecture: "arm64".into(), os: "linux".into(), variant: None };
        let several = index(vec![
            entry(0, None),
            entry(1, Some(("amd64", None))),
            entry(2, Some(("arm64", Some("v9")))),
            entry(3, Some(("arm64", None))),
        ]);
        assert_eq!(choose(&several, &host).unwrap().digest, Digest::of(&[3]));
        let variant = index(several.manifests[..3].to_vec());
        assert_eq!(choose(&variant, &host).unwrap().digest, Digest::of(&[2]));
        let other = index(several.manifests[..2].to_vec());
        assert!(choose(&other, &host).unwrap_err().contains("linux/amd64"));
        let silent = index(several.manifests[..1].to_vec());
        assert_eq!(choose(&silent, &host).unwrap().digest, Digest::of(&[0]));
        assert!(choose(&index(vec![]), &host).is_err());
    }

    #[test]
    fn manifests_that_make_no_sense_are_refused() {
        let digest = Digest::of(b"");
        let config = format!(r#""config":{{"digest":"{digest}","size":1}}"#);
        let layer =
            |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1}}"#);
        let good = format!(r#"{{"schemaVersion":2,{config},"layers":[{}]}}"#, layer(media::LAYER));
        assert!(matches!(document(good.as_bytes()), Ok(Document::Image(_))));
        let many = vec![layer(media::LAYER); MOST_LAYERS + 1].join(",");
        for bad in [
            String::new(),
            "{}".to_owned(),
            format!(r#"{{"schemaVersion":1,{config},"layers":[]}}"#),
            r#"{"schemaVersion":2,"layers":[]}"#.to_owned(),
            format!(r#"{{"schemaVersion":2,{config},"layers":[],"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,{config},"layers":[{}]}}"#, layer("text/html")),
            format!(r#"{{"schemaVersion":2,{config},"layers":[{many}]}}"#),
            good.replace("sha256:", "sha256:../"),
            good.replace(r#""size":1"#, r#""size":-1"#),
        ] {
            assert!(document(bad.as_bytes()).is_err(), "{bad:.200}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_configuration_is_kept() {
        let text = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Healthcheck":{"Test":["x"]},"Cmd":null},"variant":"v2"}"#;
        let read = config(text.as_bytes(), 0).unwrap();
        let again: Value = serde_json::to_value(&read).unwrap();
        assert_eq!(again["config"]["Healthcheck"]["Test"][0], "x");
        assert_eq!(again["variant"], "v2");
        assert!(config(text.as_bytes(), 1).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            drop((document(text.as_bytes()), config(text.as_bytes(), 0)));
        }
    }
}
