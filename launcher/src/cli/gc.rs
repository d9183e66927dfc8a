//! `coracle gc`.

use super::{for_each, image, lifecycle, print, run};
use crate::image::store::Images;
use crate::store::Store;

/// Remove what nobody needs: what killed containers left, and images without a name.
///
/// Whatever runs, and all that was changed in containers, stays.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Remove also all containers that do not run, with what was changed in them
    #[arg(long)]
    containers: bool,
}

pub(super) fn gc(args: &Args) -> anyhow::Result<u8> {
    let store = Store::open()?;
    run::sweep(&store)?;
    let mut code = 0;
    if args.containers {
        let mut idle = Vec::new();
        for entry in store.list()? {
            // One that is being made, or removed, is somebody's.
            if let Ok(Some((state, _))) = entry.state()
                && !state.active()
            {
                idle.push(entry.name().to_owned());
            }
        }
        code = for_each(&idle, |name| {
            lifecycle::remove(&store, name, false)?;
            Ok(print(&format!("{name}\n"))?)
        });
    }
    store.drop_spare()?;
    if store.root().join("images").is_dir() {
        code = code.max(image::gc(&Images::open(store.root())?)?);
    }
    Ok(code)
}
