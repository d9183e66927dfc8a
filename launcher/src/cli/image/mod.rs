//! `coracle image`.

mod save;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::ps::Format;
use super::{complain, parse, print};
use crate::clock;
use crate::idmap::IdMap;
use crate::image::ImageError;
use crate::image::auth::{self, Credentials};
use crate::image::date::rfc3339;
use crate::image::import::{Import, Imported, Source};
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::registry::{Access, Pulled, Registry};
use crate::image::store::{Entry, Image, Images, Lock, Removed};
use crate::image::unpack::Limits;
use crate::image::work;
use crate::probe;
use crate::store::Store;
use crate::text::{self, printable};

/// Members of a layer that are unpacked at most.
const MOST_MEMBERS: u64 = 10_000_000;
/// Bytes of names that are remembered while a layer is unpacked: a million
/// directories of 250 bytes.
const MOST_NAMES: u64 = 256 << 20;
/// Bytes that a layer may unpack to, unless said otherwise.
const DEFAULT_SIZE: u64 = 64 << 30;

/// Import, list and remove images.
///
/// An image is imported once and its layers are unpacked once, however many
/// containers use them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(ImportArgs),
    Pull(PullArgs),
    Ls(LsArgs),
    Inspect(InspectArgs),
    Rm(RmArgs),
    Save(save::Args),
    Verify(VerifyArgs),
    Gc(GcArgs),
}

/// What an import may cost, and how it is shown.
#[derive(Debug, clap::Args)]
pub(super) struct Care {
    /// Refuse a layer that unpacks to more than SIZE [default: 64g]
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = DEFAULT_SIZE,
        hide_default_value = true,
        value_parser = parse::size
    )]
    max_size: u64,

    /// Draw no progress bars
    #[arg(short, long)]
    quiet: bool,
}

impl Care {
    pub(super) fn limits(&self) -> Limits {
        Limits { bytes: self.max_size, members: MOST_MEMBERS, names: MOST_NAMES }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::new(self.quiet)
    }
}

/// Import an image and print its id.
///
/// SOURCE is a directory or a tar with a root filesystem (plain, or compressed
/// by gzip, zstd or xz), an OCI image layout (a directory or a tar of one), or
/// an archive of 'docker save'. What it is is told by its content; '-' is
/// standard input. oci:DIR:NAME, oci-archive:FILE:NAME and
/// docker-archive:FILE:NAME choose one of several images.
#[derive(Debug, clap::Args)]
struct ImportArgs {
    #[command(flatten)]
    care: Care,

    /// Where the image is
    #[arg(value_name = "SOURCE")]
    source: String,

    /// What it is to be called [default: as in the source]
    #[arg(value_name = "NAME[:TAG]", value_parser = Reference::parse)]
    name: Option<Reference>,
}

/// How to reach a registry.
#[derive(Debug, Default, clap::Args)]
pub(super) struct RegistryArgs {
    /// With false: do not check the registry's certificate, and use plain HTTP where TLS fails
    #[arg(
        long,
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true"
    )]
    tls_verify: bool,

    /// Directory with the certificates for the registry [default: those of containers-certs.d(5)]
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,

    /// Who asks [default: as in the file with credentials]
    #[arg(long, value_name = "USER:PASSWORD", value_parser = Credentials::parse)]
    creds: Option<Credentials>,

    /// File with credentials [default: $REGISTRY_AUTH_FILE, and those of containers-auth.json(5)]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

impl RegistryArgs {
    fn access(&self, image: &Reference) -> anyhow::Result<Access> {
        let (host, path) = image.remote();
        let credentials = match &self.creds {
            Some(given) => Some(given.clone()),
            None => auth::find(self.authfile.clone(), host, &path).map_err(anyhow::Error::msg)?,
        };
        Ok(Access { tls_verify: self.tls_verify, cert_dir: self.cert_dir.clone(), credentials })
    }
}

/// Get an image from a registry and print its id.
///
/// A name without a registry is Docker Hub's. Of an image for several machines
/// the one for this machine is taken.
#[derive(Debug, clap::Args)]
struct PullArgs {
    #[command(flatten)]
    care: Care,

    #[command(flatten)]
    registry: RegistryArgs,

    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]", value_parser = Reference::parse)]
    image: Reference,
}

/// List images.
#[derive(Debug, clap::Args)]
pub(super) struct LsArgs {
    /// Print ids only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// How to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,
}

/// Print all that is known of images, as JSON.
#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Names, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Remove images.
///
/// A name of several is taken away; with the last one the image goes, and what
/// no other image needs.
#[derive(Debug, clap::Args)]
struct RmArgs {
    /// Remove all names, also when containers use the image; it goes when they have gone
    #[arg(short, long)]
    force: bool,

    /// Names, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Check images: every digest, and every unpacked layer against its archive.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    #[command(flatten)]
    care: Care,

    /// Names, or beginnings of ids [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

/// Remove images without a name, and what no image needs.
#[derive(Debug, clap::Args)]
struct GcArgs {}

pub(super) fn image(args: &Args) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let images = Images::open(store.root())?;
    match &args.command {
        Command::Import(args) => import(&images, args),
        Command::Pull(args) => {
            let done = pull(&images, &args.care, &args.registry, &args.image)?;
            print(&format!("{}\n", done.id))?;
            Ok(0)
        }
        Command::Ls(args) => ls(&images, args),
        Command::Inspect(args) => inspect(&images, args),
        Command::Rm(args) => rm(&images, args),
        Command::Save(args) => save::save(&images, args),
        Command::Verify(args) => verify(&images, args),
        Command::Gc(GcArgs {}) => gc(&images),
    }
}

/// `coracle images`.
pub(super) fn images(args: &LsArgs) -> anyhow::Result<u8> {
    ls(&Images::open(Store::open()?.root())?, args)
}

/// Runs an import in the process for it, and says what came of it.
pub(super) fn imported(
    images: &Images,
    care: &Care,
    work: impl FnOnce(&Import<'_>) -> crate::image::Result<Imported>,
) -> anyhow::Result<Imported> {
    let map = probe::id_map();
    let done = work::as_root(&map, || {
        let _shared = images.shared()?;
        images.sweep()?;
        let progress = care.progress();
        work(&Import { images, map: &map, limits: care.limits(), progress: &progress })
    })?;
    for warning in &done.warnings {
        complain(format!("warning: {warning}"));
    }
    Ok(done)
}

fn import(images: &Images, args: &ImportArgs) -> anyhow::Result<u8> {
    if args.source.is_empty() {
        anyhow::bail!("'' is not an image's source");
    }
    if args.name.as_ref().is_some_and(|name| name.digest.is_some()) {
        anyhow::bail!("a name that is given to an image has no digest");
    }
    let source = Source::parse(&args.source);
    let done = imported(images, &args.care, |import| import.from(&source, args.name.as_ref()))
        .with_context(|| format!("cannot import {}", args.source))?;
    print(&format!("{}\n", done.id))?;
    Ok(0)
}

fn pull(
    images: &Images,
    care: &Care,
    registry: &RegistryArgs,
    image: &Reference,
) -> anyhow::Result<Imported> {
    let access = registry.access(image)?;
    imported(images, care, |import| {
        let registry = Registry::connect(image, &access)?;
        let (top, bytes) = registry.top(image)?;
        let source = Pulled { registry: &registry, top: &top.descriptor, bytes: &bytes };
        import.blobs(&source, &top.descriptor, top.names)
    })
    .with_context(|| format!("cannot pull {image}"))
}

/// When an image is pulled before it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    Never,
    Missing,
    Always,
}

/// An image that can be run.
pub(super) struct Ready {
    pub(super) image: Image,
    /// Its layers, topmost first.
    pub(super) lowers: Vec<PathBuf>,
}

/// Finds an image, pulls it when that is wanted, and sees to it that its layers
/// are unpacked. None of it goes away while the lock is held.
pub(super) fn ready(
    images: &Images,
    wanted: &str,
    fetch: Fetch,
    registry: &RegistryArgs,
) -> anyhow::Result<(Ready, Lock)> {
    if wanted.is_empty() {
        anyhow::bail!("'' is no image: name one (see 'coracle images')");
    }
    let care = Care { max_size: DEFAULT_SIZE, quiet: false };
    let lock = images.shared()?;
    let found = match (images.find(wanted), fetch) {
        (Ok(found), Fetch::Never | Fetch::Missing) => found,
        // A word that was meant as a command goes to no registry.
        (Err(ImageError::Unknown(name)), Fetch::Missing)
            if Reference::parse(wanted).is_ok_and(|r| r.registry.is_some()) =>
        {
            pull(images, &care, registry, &Reference::parse(&name).map_err(anyhow::Error::msg)?)?;
            images.find(wanted)?
        }
        (_, Fetch::Always) => {
            let reference = Reference::parse(wanted).map_err(anyhow::Error::msg)?;
            pull(images, &care, registry, &reference)?;
            images.find(&reference.pulled())?
        }
        (Err(ImageError::Unknown(name)), _) => anyhow::bail!(
            "no image is named '{name}': get it with 'coracle image pull {name}'; a command on the \
             host's own root stands after '--', as in 'coracle run -- {name}'"
        ),
        (Err(error), _) => return Err(error.into()),
    };
    let image = images.read(found)?;
    let map = probe::id_map();
    if let Some(lowers) = images.lowers(&image, &map) {
        return Ok((Ready { image, lowers }, lock));
    }
    // The user's ids are others than they were at the import.
    work::as_root(&map, || {
        let progress = care.progress();
        let import = Import { images, map: &map, limits: care.limits(), progress: &progress };
        for (blob, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
            import.unpack(blob, diff_id)?;
        }
        Ok(())
    })?;
    let lowers = images
        .lowers(&image, &map)
        .with_context(|| format!("a layer of the image '{wanted}' is missing: import it again"))?;
    Ok((Ready { image, lowers }, lock))
}

/// One image, as programs are told of it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    digest: String,
    names: Vec<String>,
    /// Bytes of its blobs.
    size: u64,
    /// Seconds since 1970.
    imported: u64,
}

fn row(entry: &Entry) -> Row {
    Row {
        id: entry.id.to_string(),
        digest: entry.manifest.to_string(),
        names: entry.names.clone(),
        size: entry.size,
        imported: entry.imported,
    }
}

fn ls(images: &Images, args: &LsArgs) -> anyhow::Result<u8> {
    let rows: Vec<Row> = images.list()?.iter().map(row).collect();
    let text = match args.format {
        _ if args.quiet => rows.iter().fold(String::new(), |text, row| text + &row.id + "\n"),
        Format::Table => table(&rows, clock::unix_seconds()),
        Format::Json => text::json(&rows)?,
    };
    print(&text)?;
    Ok(0)
}

fn table(rows: &[Row], now: u64) -> String {
    let mut cells = vec![["NAME", "ID", "IMPORTED", "SIZE"].map(str::to_owned)];
    for row in rows {
        let id = row.id.split(':').next_back().and_then(|hex| hex.get(..12)).unwrap_or_default();
        let age = super::ps::age(std::time::Duration::from_secs(now.saturating_sub(row.imported)));
        let named = row.names.iter().map(String::as_str);
        let names: Vec<&str> = if row.names.is_empty() { vec!["<none>"] } else { named.collect() };
        for name in names {
            cells.push([printable(name), id.to_owned(), format!("{age} ago"), size(row.size)]);
        }
    }
    super::ps::columns(&cells)
}

/// As `1.3 MB`, in powers of 1000 as Podman's.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let digits = usize::from(value < 100.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

fn inspect(images: &Images, args: &InspectArgs) -> anyhow::Result<u8> {
    let _shared = images.shared()?;
    let mut all = Vec::new();
    let code = super::for_each(&args.images, |name| {
        let image = images.read(images.find(name)?)?;
        let map = probe::id_map();
        let layers: Vec<_> = image
            .manifest
            .layers
            .iter()
            .zip(&image.config.rootfs.diff_ids)
            .map(|(blob, diff_id)| {
                let place = images.layer(diff_id, &map);
                json!({
                    "digest": blob.digest,
                    "mediaType": blob.media_type,
                    "size": blob.size,
                    "diffId": diff_id,
                    "directory": place.is_dir().then(|| place.join("fs")),
                })
            })
            .collect();
        all.push(json!({
            "id": image.entry.id,
            "digest": image.entry.manifest,
            "names": image.entry.names,
            "size": image.entry.size,
            "imported": rfc3339(image.entry.imported),
            "created": image.config.created,
            "architecture": image.config.architecture,
            "os": image.config.os,
            "config": image.config.config,
            "layers": layers,
            "history": image.config.history,
        }));
        Ok(())
    });
    print(&text::json(&all)?)?;
    Ok(code)
}

fn rm(images: &Images, args: &RmArgs) -> anyhow::Result<u8> {
    let code = super::for_each(&args.images, |wanted| {
        let entry = images.find(wanted)?;
        // A name is taken away alone; by its id, or without names, all of it goes.
        let named = Reference::parse(wanted).ok().and_then(|reference| {
            let (exact, local) = (reference.to_string(), reference.local());
            let is = |name: &&String| **name == exact || **name == local || reference.means(name);
            entry.names.iter().find(is).cloned()
        });
        let last = named.is_none() || entry.names.len() <= 1 || args.force;
        if last && !args.force {
            let users = images.users(&entry.id)?;
            if !users.is_empty() {
                anyhow::bail!(
                    "image '{wanted}' is used by the container {}: remove it first, or use -f",
                    users.join(", ")
                );
            }
            if named.is_none() && entry.names.len() > 1 {
                anyhow::bail!(
                    "image '{wanted}' has several names ({}): use -f to remove them all",
                    entry.names.join(", ")
                );
            }
        }
        images.change(|all| {
            for other in all.iter_mut().filter(|other| other.manifest == entry.manifest) {
                match &named {
                    Some(name) if !args.force => other.names.retain(|other| other != name),
                    _ => other.names.clear(),
                }
            }
            Ok(())
        })?;
        let shown = match named {
            Some(name) if !args.force => name,
            _ => entry.id.to_string(),
        };
        Ok(print(&format!("{shown}\n"))?)
    });
    collect(images)?;
    Ok(code)
}

pub(super) fn gc(images: &Images) -> anyhow::Result<u8> {
    let Removed { images, blobs, layers } = collect(images)?;
    print(&format!("{images} images, {blobs} blobs and {layers} layers removed\n"))?;
    Ok(0)
}

fn collect(images: &Images) -> anyhow::Result<Removed> {
    let map: IdMap = probe::id_map();
    Ok(work::as_root(&map, || {
        let _exclusive = images.exclusive()?;
        images.collect()
    })?)
}

fn verify(images: &Images, args: &VerifyArgs) -> anyhow::Result<u8> {
    let map = probe::id_map();
    let names = if args.images.is_empty() {
        images.list()?.iter().map(|entry| entry.manifest.to_string()).collect()
    } else {
        args.images.clone()
    };
    Ok(super::for_each(&names, |name| {
        let wrong: Vec<String> = work::as_root(&map, || {
            let _shared = images.shared()?;
            let image = images.read(images.find(name)?)?;
            let progress = args.care.progress();
            Import { images, map: &map, limits: args.care.limits(), progress: &progress }
                .verify(&image)
        })?;
        if wrong.is_empty() {
            return Ok(print(&format!("{name}\n"))?);
        }
        anyhow::bail!("image '{name}': {}", wrong.join("; "))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_260_000, "1.3 MB"),
            (123_400_000, "123 MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn every_name_has_a_line() {
        let row = |names: &[&str]| Row {
            id: format!("sha256:{}", "ab".repeat(32)),
            digest: String::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            size: 5,
            imported: 40,
        };
        let text = table(&[row(&["localhost/a:1", "localhost/b:2"]), row(&[])], 100);
        let want = "\
NAME           ID            IMPORTED      SIZE
localhost/a:1  abababababab  1 minute ago  5 B
localhost/b:2  abababababab  1 minute ago  5 B
<none>         abababababab  1 minute ago  5 B
";
        assert_eq!(text, want);
    }
}
