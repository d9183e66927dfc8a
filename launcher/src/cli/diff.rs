//! `coracle diff`.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use super::ground::{self, Ground};
use super::output::standard;
use crate::diff::{Change, add_other_names, changes, decode, encode};
use crate::image::pack;
use crate::store::Store;
use crate::text::printable;

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
    let held = ground::hold(&store, &args.name)?;
    let ground = Ground::of(&held)?;
    let listed = ground.enter(|| {
        let mut found = changes(&ground.upper, &ground.lower, &ground.made)?;
        let tree = ground.tree(true).map_err(|error| error.to_string())?;
        let others = pack::other_names(&tree).map_err(|error| error.to_string())?;
        add_other_names(&mut found, &others);
        Ok(encode(&found))
    })?;
    let Some(changes) = decode(&listed) else { anyhow::bail!("the list of changes is damaged") };
    write(&changes)?;
    Ok(0)
}

fn write(changes: &[Change]) -> io::Result<()> {
    let mut out = io::BufWriter::new(standard());
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
