//! `coracle image save`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::cli::output::Output;
use crate::image::reference::Reference;
use crate::image::save::{self, Directory, Place, Saved};
use crate::image::store::Images;
use crate::image::tar::write::Writer;

/// Write images for others: 'coracle image import' reads all of these forms.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write to FILE, which is a directory for oci-dir [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// In which form
    #[arg(long, value_enum, default_value = "oci-archive", value_name = "FORMAT")]
    format: Format,

    /// Names, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A tar of an OCI image layout
    OciArchive,
    /// An OCI image layout
    OciDir,
    /// As 'docker save' writes; layers are not compressed
    DockerArchive,
}

pub(super) fn save(images: &Images, args: &Args) -> anyhow::Result<u8> {
    let _shared = images.shared()?;
    let mut all = Vec::new();
    for wanted in &args.images {
        let image = images.read(images.find(wanted)?)?;
        // The name that was meant; by an id, all of them.
        let meant = Reference::parse(wanted).ok().and_then(|reference| {
            let exact = [reference.to_string(), reference.local()];
            let names = &image.entry.names;
            names
                .iter()
                .find(|name| exact.contains(name))
                .or_else(|| names.iter().find(|name| reference.means(name)))
        });
        let names = meant.map_or_else(|| image.entry.names.clone(), |name| vec![name.clone()]);
        let bytes = images.manifest(&image)?;
        all.push(Saved { manifest: image.manifest, bytes, names, blobs: images });
    }
    let write = |place: &mut dyn Place| match args.format {
        Format::DockerArchive => save::docker(place, &all),
        Format::OciArchive | Format::OciDir => save::oci(place, &all),
    };
    if args.format == Format::OciDir {
        let dir = args.output.as_deref();
        let dir = dir.context("--format oci-dir needs a directory: use -o DIR")?;
        write(&mut Directory::new(dir)?)?;
        return Ok(0);
    }
    let output = Output::open(args.output.as_deref())?;
    let mut writer = Writer::new(output.writer());
    write(&mut writer)?;
    let end = writer.finish().and_then(|mut inner| inner.flush());
    end.context("cannot write the archive")?;
    output.keep()?;
    Ok(0)
}
