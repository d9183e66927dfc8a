//! Which containers something is done to.

use std::path::PathBuf;

use super::complain;
use super::security::{LONGEST, read_text};
use crate::store::{State, Store, StoreError};

/// Containers by name, by file, or all.
#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// All that it can be done to
    #[arg(short, long, conflicts_with_all = ["names", "cidfiles"])]
    pub(super) all: bool,

    /// One that is not there is no error
    #[arg(short, long)]
    ignore: bool,

    /// The one whose name is in FILE, as of 'coracle run --cidfile'
    #[arg(long = "cidfile", value_name = "FILE")]
    cidfiles: Vec<PathBuf>,

    /// The containers
    #[arg(required_unless_present_any = ["all", "cidfiles"], value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Chosen {
    /// Their names; of all of them those of which `test` holds. Second: 0, or 1 when some
    /// cannot be told.
    pub(super) fn names(
        &self,
        store: &Store,
        test: impl Fn(&State) -> bool,
    ) -> anyhow::Result<(Vec<String>, u8)> {
        if self.all {
            return all(store, test);
        }
        let mut names = self.names.clone();
        let mut code = 0;
        for file in &self.cidfiles {
            match read_text(file, LONGEST) {
                Ok(text) => names.push(text.trim().to_owned()),
                Err(_) if self.ignore && !file.exists() => {}
                Err(error) => {
                    complain(format!("--cidfile: {error:#}"));
                    code = 1;
                }
            }
        }
        if self.ignore {
            names.retain(|name| !matches!(store.find(name), Err(StoreError::Unknown(_))));
        }
        Ok((names, code))
    }
}

/// Every container of which `test` holds.
pub(super) fn all(
    store: &Store,
    test: impl Fn(&State) -> bool,
) -> anyhow::Result<(Vec<String>, u8)> {
    let mut names = Vec::new();
    let mut code = 0;
    for entry in store.list()? {
        match entry.state() {
            Ok(Some((state, _))) if test(&state) => names.push(entry.name().to_owned()),
            // Being made, or gone meanwhile.
            Ok(_) | Err(StoreError::Unknown(_)) => {}
            Err(error) => {
                complain(error);
                code = 1;
            }
        }
    }
    Ok((names, code))
}
