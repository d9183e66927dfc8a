//! What a container's root filesystem is made of, for those who look at it from
//! outside: its layers, the places of its own mounts, and how to get there.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use super::lifecycle;
use crate::diff::Lower;
use crate::image::pack::{Copies, Layer, PackError, Tree};
use crate::plan::{self, InitStep, Paths, Plan, StorageStep, plan};
use crate::probe;
use crate::spec::{Network, Root, Upper};
use crate::store::{Claim, Container, Entry, State, Status, Store};
use crate::sys::userns::{self, UsernsError};

/// A container that is looked at.
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) state: State,
    /// The store it lies in, free of links.
    pub(super) store: PathBuf,
    /// Of one that does not run: nobody can start or remove it meanwhile.
    lock: Option<Container>,
}

/// Finds a container; one that does not run is held fast.
pub(super) fn hold(store: &Store, name: &str) -> anyhow::Result<Held> {
    let entry = store.find(name)?;
    let lock = match store.claim(&entry)? {
        Claim::Ours(container) => Some(container),
        Claim::Live(_) => None,
    };
    let Some((state, _)) = entry.state()? else {
        anyhow::bail!("container '{name}' is just being made: try again");
    };
    Ok(Held { entry, state, store: std::fs::canonicalize(store.root())?, lock })
}

impl Held {
    /// It runs, or did a moment ago.
    pub(super) fn runs(&self) -> bool {
        self.lock.is_none() && self.state.status == Status::Running
    }

    /// The overlay that serves its root, while it runs.
    pub(super) fn overlay(&self) -> anyhow::Result<Option<OwnedFd>> {
        let overlay = self.state.overlay.filter(|_| self.runs());
        Ok(overlay.map(lifecycle::open).transpose()?.flatten())
    }

    /// The plan as it was for the container: what was hidden and mounted is
    /// decided anew.
    pub(super) fn plan(&self) -> anyhow::Result<Plan> {
        let dir = self.entry.dir();
        let paths = Paths {
            dir: dir.to_owned(),
            store: self.store.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
        };
        let spec = &self.state.spec;
        let host = probe::probe(self.state.map.clone(), spec.network == Network::Netstack);
        Ok(plan(spec, &host, self.entry.name(), &paths)?)
    }

    /// Has what programs in the container wrote through mappings written to the
    /// upper layer.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let Some(overlay) = self.overlay()? else { return Ok(()) };
        let merged = plan::merged(&self.store);
        let synced = userns::enter_process(overlay.as_fd(), || {
            let root = File::open(&merged).map_err(|error| error.to_string())?;
            nix::unistd::syncfs(root.as_fd()).map_err(|errno| errno.to_string())?;
            Ok(Vec::new())
        });
        match synced {
            Err(error) if self.overlay()?.is_some() => {
                Err(anyhow::Error::from(error).context("cannot sync the container's root"))
            }
            // When it has ended meanwhile, all was written.
            _ => Ok(()),
        }
    }
}

/// What a container's root is made of.
pub(super) struct Ground<'a> {
    held: &'a Held,
    pub(super) lower: Lower,
    /// The places of the container's own mounts.
    pub(super) made: BTreeSet<PathBuf>,
    /// The upper's directory, as it is named where [`Self::enter`] leads.
    pub(super) upper: PathBuf,
    /// In whose namespaces it is; else it is on the host.
    overlay: Option<OwnedFd>,
}

impl<'a> Ground<'a> {
    /// Looks a container's up.
    ///
    /// # Errors
    /// When its changes are gone.
    pub(super) fn of(held: &'a Held) -> anyhow::Result<Self> {
        let Held { entry, state, .. } = held;
        let plan = held.plan()?;
        let (layers, hidden) = match &state.spec.root {
            Root::Dir(root) => (vec![root.clone()], BTreeSet::new()),
            Root::Image(image) => (image.layers.clone(), BTreeSet::new()),
            Root::Host => {
                let shown_at = plan::scratch(&held.store).join("lower");
                let hidden = plan.storage.iter().filter_map(|step| match step {
                    StorageStep::Hide { path, .. } => path.strip_prefix(&shown_at).ok(),
                    _ => None,
                });
                let hidden = hidden.map(|path| PathBuf::from("/").join(path)).collect();
                (vec!["/".into()], hidden)
            }
        };
        let lower = Lower { layers, hidden, public: state.spec.root == Root::Host };
        let (upper, overlay) = match &state.spec.upper {
            Upper::Own => (entry.dir().join("upper"), None),
            Upper::Dir(dir) => (dir.join("upper"), None),
            Upper::Ram(_) => {
                let Some(overlay) = held.overlay()? else {
                    anyhow::bail!(
                        "the changes of container '{}' were in memory, and are gone with it",
                        entry.name()
                    );
                };
                (entry.dir().join("ram/upper"), Some(overlay))
            }
        };
        Ok(Self { held, lower, made: made(&plan), upper, overlay })
    }

    /// Does `work` as root of the container's user namespace, where its layers
    /// can be read.
    pub(super) fn enter(
        &self,
        work: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Vec<u8>, UsernsError> {
        match &self.overlay {
            Some(overlay) => userns::enter_process(overlay.as_fd(), work),
            None => userns::enter_with_map(&self.held.state.map, work),
        }
    }

    /// The layers as a tree: all of the root, or what was changed in it. Opened in
    /// [`Self::enter`].
    pub(super) fn tree(&self, changes: bool) -> Result<Tree, PackError> {
        let foreign = !matches!(self.held.state.spec.root, Root::Image(_));
        let mut layers = vec![Layer::open(&self.upper, false)?];
        for path in &self.lower.layers {
            let layer = Layer::open(path, foreign)?;
            let (public, hidden) = (self.lower.public, self.lower.hidden.clone());
            layers.push(Layer { public, hidden, ..layer });
        }
        let single = self.held.state.map.is_single();
        let below = plan::layers_below(&self.held.state.spec.root);
        let copies = Copies::open(&self.upper.with_file_name("work"), below)?;
        Ok(Tree { without: self.made.clone(), copies, ..Tree::of(layers, changes, single) })
    }
}

/// The places of a container's own mounts.
fn made(plan: &Plan) -> BTreeSet<PathBuf> {
    let place = |step: &InitStep| match step {
        InitStep::Mount { target, .. }
        | InitStep::Volume { target, .. }
        | InitStep::File { target, .. }
        | InitStep::Directory(target)
        | InitStep::FileBeside { target, .. } => Some(target.clone()),
        InitStep::HostSysfs => Some("/sys".into()),
        _ => None,
    };
    plan.init.iter().filter_map(place).collect()
}
