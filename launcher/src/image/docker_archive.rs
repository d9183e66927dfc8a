//! Archives of `docker save`: `manifest.json`, a configuration and plain tars.

use serde::Deserialize;

use super::archive::{Members, Slice};
use super::manifest::{self, Config, MOST_JSON, MOST_LAYERS};
use super::{Result, malformed};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// One image of such an archive.
#[derive(Debug)]
pub struct DockerImage {
    /// Its configuration's bytes.
    pub bytes: Vec<u8>,
    /// What they say.
    pub config: Config,
    /// Its layers, the lowest first.
    pub layers: Vec<Slice>,
    /// Its names.
    pub names: Vec<String>,
}

/// The image of this name; without one, the only one.
///
/// # Errors
/// When there is none, several to choose from, or a part is missing.
pub fn image(members: &Members, wanted: Option<&str>) -> Result<DockerImage> {
    let items: Vec<Item> = serde_json::from_slice(&members.read("manifest.json", MOST_JSON)?)
        .map_err(|error| malformed("manifest.json", error))?;
    let tags = |item: &Item| item.repo_tags.clone().unwrap_or_default();
    let there = || items.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    let item = match (wanted, &items[..]) {
        (Some(wanted), all) => all.iter().find(|item| tags(item).iter().any(|t| t == wanted)),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let Some(item) = item else {
        let why = format!("name one of its images, as in docker-archive:FILE:NAME: {}", there());
        return Err(malformed("the archive", why));
    };
    if item.layers.len() > MOST_LAYERS {
        let why = format!(
            "an image of {} layers; at most {MOST_LAYERS} can be joined",
            item.layers.len()
        );
        return Err(malformed("the archive", why));
    }
    let bytes = members.read(&item.config, MOST_JSON)?;
    let config =
        manifest::config(&bytes, item.layers.len()).map_err(|why| malformed(&item.config, why))?;
    let layers = item.layers.iter().map(|name| members.open(name)).collect::<Result<_>>()?;
    Ok(DockerImage { bytes, config, layers, names: tags(item) })
}
