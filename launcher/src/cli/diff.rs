//! `coracle diff`.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::{lifecycle, printable};
use crate::diff::{Change, Lower, changes, decode, encode};
use crate::plan::{InitStep, Paths, StorageStep, plan};
use crate::spec::{Root, Upper};
use crate::store::Store;
use crate::sys::userns;

/// List what was changed in a container's root filesystem.
///
/// A line for each file: A added, C changed, D deleted, and its path.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

pub(super) fn diff(args: &Args) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let entry = store.find(&args.name)?;
    let Some((state, _)) = entry.state()? else {
        anyhow::bail!("container '{}' is just being made: try again", args.name);
    };
    let paths = Paths {
        dir: entry.dir().to_owned(),
        store: std::fs::canonicalize(store.root())?,
        upper: entry.dir().join("upper"),
        work: entry.dir().join("work"),
    };
    // What was hidden and mounted is decided anew, as it was for the container.
    let plan = plan(&state.spec, &crate::probe::probe(), entry.name(), &paths)?;
    let lower = match &state.spec.root {
        Root::Dir(root) => {
            Lower { layers: vec![root.clone()], hidden: BTreeSet::new(), public: false }
        }
        Root::Image(image) => {
            Lower { layers: image.layers.clone(), hidden: BTreeSet::new(), public: false }
        }
        Root::Host => {
            let shown_at = entry.dir().join("lower");
            let hidden = plan.storage.iter().filter_map(|step| match step {
                StorageStep::Hide { path, .. } => path.strip_prefix(&shown_at).ok(),
                _ => None,
            });
            let hidden = hidden.map(|path| PathBuf::from("/").join(path)).collect();
            Lower { layers: vec!["/".into()], hidden, public: true }
        }
    };
    let mut made: BTreeSet<PathBuf> = BTreeSet::new();
    for step in &plan.init {
        match step {
            InitStep::Mount { target, .. }
            | InitStep::Volume { target, .. }
            | InitStep::File { target, .. }
            | InitStep::Directory(target)
            | InitStep::FileBeside { target, .. } => made.insert(target.clone()),
            InitStep::HostSysfs => made.insert("/sys".into()),
            _ => false,
        };
    }
    let list = |upper: PathBuf| move || Ok(encode(&changes(&upper, &lower, &made)?));
    let listed = match &state.spec.upper {
        Upper::Own => userns::enter_with_map(&state.map, list(paths.upper))?,
        Upper::Dir(dir) => userns::enter_with_map(&state.map, list(dir.join("upper")))?,
        Upper::Ram(_) => {
            let overlay = state.overlay.filter(|_| !state.ended());
            let Some(overlay) = overlay.map(lifecycle::open).transpose()?.flatten() else {
                anyhow::bail!(
                    "the changes of container '{}' were in memory, and are gone with it",
                    args.name
                );
            };
            userns::enter_process(overlay.as_fd(), list(entry.dir().join("ram/upper")))?
        }
    };
    let Some(changes) = decode(&listed) else { anyhow::bail!("the list of changes is damaged") };
    write(&changes)?;
    Ok(0)
}

fn write(changes: &[Change]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    // Programs get names as they are; a terminal must not be made to obey them.
    let terminal = io::stdout().is_terminal();
    for Change { kind, path } in changes {
        write!(out, "{kind} ")?;
        if terminal {
            out.write_all(printable(&path.to_string_lossy()).as_bytes())?;
        } else {
            out.write_all(path.as_os_str().as_bytes())?;
        }
        out.write_all(b"\n")?;
    }
    out.flush()
}
