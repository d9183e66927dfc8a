//! `coracle commit` and `export`.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;

use super::ground::{self, Ground, Held};
use super::output::{Output, Unprinted};
use super::{complain, image, print};
use crate::cgroup;
use crate::image::ImageError;
use crate::image::change::Change;
use crate::image::commit::{Loose, Note};
use crate::image::import::{Import, Imported};
use crate::image::pack::{self, Tree};
use crate::image::reference::Reference;
use crate::image::save::{self, Directory, Saved};
use crate::image::store::{Image, Images};
use crate::image::tar::write::Writer;
use crate::image::work;
use crate::spec::Root;
use crate::store::Store;
use crate::sys::process::{self, Forked};

/// Make an image of a container, and print its id.
///
/// A new layer has what the container changed in its root; volumes, secrets and other
/// mounts are never part of it. The configuration is that of the container's image,
/// with the changes asked for; what 'coracle run' was given (-e, -w, -u, the command)
/// is the container's alone. A container of a directory, or of the host's own root,
/// becomes an image of one layer with all of it. A running container is paused meanwhile,
/// where it has a control group; without, a file that it writes may be half old, half new.
#[derive(Debug, clap::Args)]
pub(super) struct CommitArgs {
    /// Change the configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION=VALUE", value_parser = Change::parse)]
    changes: Vec<Change>,

    /// Who made the image
    #[arg(short, long, value_name = "AUTHOR")]
    author: Option<String>,

    /// What is to be said of it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// Make one layer of all
    #[arg(short, long)]
    squash: bool,

    /// Pause a running container meanwhile, where that is possible
    #[arg(
        short,
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pause: bool,

    /// Write the image's id to FILE, too
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,

    #[command(flatten)]
    care: image::Care,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,

    /// What the image is to be called
    #[arg(value_name = "NAME[:TAG]", value_parser = Reference::parse)]
    image: Option<Reference>,
}

/// Write a container's root filesystem as a tar, or as an image.
///
/// Volumes, secrets and other mounts are never part of it. A running container goes
/// on: a file that it writes meanwhile may be half old, half new.
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Write to FILE, which is a directory for oci-dir [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// What to write
    #[arg(long, value_enum, default_value = "tar", value_name = "FORMAT")]
    format: Format,

    /// What the image is called in a layout
    #[arg(long, value_name = "NAME[:TAG]", default_value = "latest")]
    reference: String,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// All files, as one tar
    Tar,
    /// A tar of an OCI image layout, with the layers of the container's image
    OciArchive,
    /// An OCI image layout
    OciDir,
}

/// The image that a container stands on.
fn base(images: &Images, held: &Held) -> anyhow::Result<Option<Image>> {
    let Root::Image(root) = &held.state.spec.root else { return Ok(None) };
    let entry = images.find(&root.id).with_context(|| {
        format!("the image of container '{}' is not here any more", held.entry.name())
    })?;
    Ok(Some(images.read(entry)?))
}

fn note(command: &str, container: &str) -> Note {
    Note { made_by: format!("coracle {command} {container}"), ..Note::default() }
}

pub(super) fn commit(args: CommitArgs) -> anyhow::Result<u8> {
    if args.image.as_ref().is_some_and(|name| name.digest.is_some()) {
        anyhow::bail!("a name that is given to an image has no digest");
    }
    let store = Store::open()?;
    let held = ground::hold(&store, &args.name)?;
    let images = Images::open(store.root())?;
    let _shared = images.shared()?;
    let base = base(&images, &held)?;
    let names = args.image.iter().map(Reference::local).collect();
    let (author, message) = (args.author, args.message);
    let note = Note { author, message, changes: args.changes, ..note("commit", &args.name) };
    let paused = if args.pause { Paused::new(&held)? } else { None };
    held.settle()?;
    let ground = Ground::of(&held)?;
    let changes = base.is_some() && !args.squash;
    let done = ground
        .enter(|| {
            work::prepare();
            let progress = args.care.progress();
            let map = &held.state.map;
            let limits = args.care.limits();
            let import = Import { images: &images, map, limits, progress: &progress };
            let tree = ground.tree(changes).map_err(|error| error.to_string())?;
            let done = import.commit(base.as_ref(), &tree, &note, names);
            let done = done.map_err(|error| error.to_string())?;
            serde_json::to_vec(&done).map_err(|error| error.to_string())
        })
        .with_context(|| format!("cannot make an image of container '{}'", args.name))?;
    drop(paused);
    let done: Imported = serde_json::from_slice(&done)?;
    for warning in &done.warnings {
        complain(format!("warning: {warning}"));
    }
    if let Some(path) = &args.iidfile {
        std::fs::write(path, done.id.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&format!("{}\n", done.id))?;
    Ok(0)
}

/// A container that is frozen until this is dropped, or this process ends in whatever
/// way: a process of its own waits for that, out of reach of what is pressed at a terminal.
/// Whoever wants to pause it, or have it go on, waits as well: what they want comes after.
struct Paused {
    /// `None` when somebody had paused it before: it stays so.
    _guard: Option<Guard>,
    /// The guard has it, too, while it is there.
    _lock: File,
}

struct Guard {
    until: Option<io::PipeWriter>,
    pid: i32,
}

impl Paused {
    /// `None` when it does not run, or cannot be paused.
    fn new(held: &Held) -> anyhow::Result<Option<Self>> {
        let Some(group) = held.state.group.as_ref().filter(|_| held.runs()) else {
            return Ok(None);
        };
        let what = || format!("cannot pause container '{}'", held.entry.name());
        let lock = match cgroup::lock(group) {
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            lock => lock.with_context(what)?,
        };
        if cgroup::is_frozen(group) {
            return Ok(Some(Self { _guard: None, _lock: lock }));
        }
        let (mut ends, until) = io::pipe().with_context(what)?;
        match process::fork().with_context(what)? {
            Forked::Parent(pid) => {
                drop(ends);
                let guard = Some(Guard { until: Some(until), pid });
                let paused = Self { _guard: guard, _lock: lock };
                cgroup::freeze(group, true).with_context(what)?;
                Ok(Some(paused))
            }
            Forked::Child => {
                drop(until);
                // Where it fails there is nothing else to be done, and nobody to be told.
                nix::unistd::setsid().ok();
                drop(io::copy(&mut ends, &mut io::sink()));
                process::exit_now(u8::from(cgroup::freeze(group, false).is_err()))
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.until.take());
        process::reap(self.pid);
    }
}

pub(super) fn export(args: &ExportArgs) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let held = ground::hold(&store, &args.name)?;
    let images = Images::open(store.root())?;
    let _shared = images.shared()?;
    let base = if args.format == Format::Tar { None } else { base(&images, &held)? };
    let to_dir = args.format == Format::OciDir;
    let dir = match (&args.output, to_dir) {
        (Some(dir), true) => Some(dir),
        (None, true) => anyhow::bail!("--format oci-dir needs a directory: use -o DIR"),
        (_, false) => None,
    };
    let output = if to_dir { None } else { Some(Output::open(args.output.as_deref())?) };
    held.settle()?;
    let ground = Ground::of(&held)?;
    let note = note("export", &args.name);
    let write = |tree: Tree| -> Result<(), ImageError> {
        let mut place = match (output.as_ref().map(Output::writer), args.format) {
            (Some(place), Format::Tar) => {
                pack::pack(&tree, place)?;
                return Ok(());
            }
            (place, _) => place.map(Writer::new),
        };
        let loose = Loose::make(&images, base.as_ref(), &tree, &note)?;
        let manifest = loose.manifest.clone();
        let bytes = loose.bytes()?;
        let saved = [Saved { manifest, bytes, names: vec![args.reference.clone()], blobs: &loose }];
        match (&mut place, dir) {
            (Some(writer), _) => save::oci(writer, &saved)?,
            (None, Some(dir)) => save::oci(&mut Directory::new(dir)?, &saved)?,
            (None, None) => {}
        }
        if let Some(writer) = place {
            let what = "cannot write the archive".to_owned();
            let end = writer.finish().and_then(|mut output| output.flush());
            end.map_err(|source| ImageError::Os { what, source })?;
        }
        Ok(())
    };
    let done = ground.enter(|| {
        let tree = ground.tree(base.is_some()).map_err(|error| error.to_string())?;
        match write(tree) {
            Ok(()) => Ok(Vec::new()),
            Err(error) => match Unprinted::of(&error) {
                Some(unprinted) => Ok(unprinted.encode().to_ne_bytes().to_vec()),
                None => Err(error.to_string()),
            },
        }
    });
    let what = || format!("cannot export container '{}'", args.name);
    if let Ok(errno) = done.with_context(what)?[..].try_into() {
        let unprinted = Unprinted::decode(i32::from_ne_bytes(errno));
        return Err(unprinted).with_context(what);
    }
    if let Some(output) = output {
        output.keep()?;
    }
    Ok(0)
}
