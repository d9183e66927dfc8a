//! The inode table: what the kernel knows, by node id.
//!
//! # Theory of operation
//! A [`Node`] is one object of the union. Its id is also its `st_ino`. It is
//! derived from the object's *origin*, which does not change when the object is
//! copied up: the topmost lower that has it, or the upper for objects born
//! there. Id = device number's index `<< 48` | inode number; whatever does not
//! fit, or would collide, gets an id of its own from [`ALLOCATED`], found again
//! through an [`AltKey`].
//!
//! A node stays in the table as long as the kernel holds lookups on it, or
//! another node refers to it. So for one object there is never more
//! than one node, which is what makes its locks mean something.
//!
//! Lock order: node's copy lock → tree → directory states (by node id) → node's names
//! (by node id) → node's file → table → body. The last three are held for a few instructions only, never over a
//! system call.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::directory::DirState;
use super::files::OpenFile;
use super::quota::Last;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A node id and inode number.
pub type Ino = u64;

/// The root of the union (`FUSE_ROOT_ID`).
pub const ROOT: Ino = 1;

const INO_BITS: u32 = 48;
/// Index of the ids that stand for no inode number of a device.
const ALLOCATED: u64 = 0xffff << INO_BITS;

/// Where the upper copy of a node is.
#[derive(Clone, Debug)]
pub(crate) enum UpperAt {
    /// There is none: the node lives in a lower layer.
    None,
    /// Under the node's place.
    Named,
    /// In the index of copied-up hard links, under this key.
    Linked(OsString),
    /// Reachable by this descriptor only: its last known name is gone.
    Held(Arc<OwnedFd>),
}

/// A directory of one lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LowerDir {
    pub(crate) layer: usize,
    pub(crate) path: Arc<Path>,
}

/// Where the lower part of a node is.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    None,
    /// Anything but a directory: layer, directory, name.
    File(usize, Arc<Path>, Arc<OsStr>),
    /// The directories that are merged, topmost first. `blank`: the topmost may
    /// not be seen into, the directory is shown empty.
    Dirs(Arc<[LowerDir]>, bool),
}

/// Device and inode number.
pub(crate) type DevIno = (u64, u64);

/// A second way to find a node, for those whose id does not follow from the
/// device and inode number at hand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AltKey {
    /// An inode number that does not fit.
    Raw(DevIno),
    /// An object of the upper whose node is known by another id.
    Upper(DevIno),
    /// A place in a lower whose natural id was taken.
    Place(usize, PathBuf),
}

/// The changeable part of a node.
#[derive(Debug)]
pub(crate) struct Body {
    /// Parent and name; `None` for the root and for what has no known name left.
    pub(crate) place: Option<(Arc<Node>, Arc<OsStr>)>,
    pub(crate) upper: UpperAt,
    pub(crate) upper_ino: Option<DevIno>,
    pub(crate) lower: Lower,
    /// What to add to the link count found on disk.
    pub(crate) nlink_delta: i64,
    alts: Vec<AltKey>,
}

impl Body {
    /// Whether this is the name by which the node is known.
    pub(crate) fn is_at(&self, parent: &Arc<Node>, name: &OsStr) -> bool {
        self.place.as_ref().is_some_and(|(p, n)| Arc::ptr_eq(p, parent) && **n == *name)
    }
}

/// One object of the union.
#[derive(Debug)]
pub struct Node {
    /// Space it gives back with its end. The first to be dropped: by then nothing
    /// else can have got its inode number.
    last: Mutex<Option<Last>>,
    /// Node id and `st_ino`.
    pub id: Ino,
    /// `S_IFMT` bits, as shown.
    pub kind: u32,
    /// Counts copy-ups: a descriptor of another epoch is of the wrong file.
    pub(crate) epoch: AtomicU32,
    body: Mutex<Body>,
    /// Shared by whoever reaches the node in the upper by a name, exclusive while
    /// the name changes: in between it leads to nothing, or to a whiteout.
    naming: RwLock<()>,
    /// Held while the node is copied up: one copy at a time.
    pub(crate) copying: Mutex<()>,
    /// A descriptor of a regular file, or of the upper directory. Its lock is taken
    /// before the body's.
    file: Mutex<Option<OpenFile>>,
    /// The descriptor was used lately.
    pub(crate) recent: AtomicBool,
    /// It is known to have no file capabilities.
    pub(crate) bare: AtomicBool,
    dir: Option<Box<Mutex<DirState>>>,
}

impl Node {
    pub(crate) fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().expect("no panic while a body is locked")
    }

    /// Keeps the names of the node in the upper as they are.
    pub(crate) fn named(&self) -> RwLockReadGuard<'_, ()> {
        self.naming.read().expect("no panic while a name is locked")
    }

    /// Lets nobody reach the node by a name.
    pub(crate) fn naming(&self) -> RwLockWriteGuard<'_, ()> {
        self.naming.write().expect("no panic while a name is locked")
    }

    pub(crate) fn last(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().expect("no panic while it is locked")
    }

    pub(crate) fn file(&self) -> MutexGuard<'_, Option<OpenFile>> {
        self.file.lock().expect("no panic while an open file is locked")
    }

    /// State and mutation lock of a directory; `None` for anything else.
    pub(crate) fn dir_state(&self) -> Option<MutexGuard<'_, DirState>> {
        let state = self.dir.as_ref()?;
        Some(state.lock().expect("no panic while a directory is locked"))
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// What lookup found, from which a node is found or made.
pub(crate) struct Identity {
    pub(crate) kind: u32,
    /// Whose inode number the id is made of.
    pub(crate) origin: DevIno,
    /// The object in the upper, if it is there.
    pub(crate) upper_ino: Option<DevIno>,
    pub(crate) upper: UpperAt,
    pub(crate) lower: Lower,
    pub(crate) nlink_delta: i64,
    /// Parent and name, if it has one.
    pub(crate) place: Option<(Arc<Node>, Arc<OsStr>)>,
    /// It is one of several hard links in the lower.
    pub(crate) lower_links: bool,
}

impl Identity {
    /// Lets go of its own copies of `name` for this one.
    pub(crate) fn share_name(&mut self, name: &Arc<OsStr>) {
        if let Some((_, own)) = &mut self.place {
            *own = Arc::clone(name);
        }
        if let Lower::File(_, _, own) = &mut self.lower
            && own == name
        {
            *own = Arc::clone(name);
        }
    }
}

struct Slot {
    node: Arc<Node>,
    lookups: u64,
}

/// Hashes node ids: a multiplication, half of which is folded into the other. The
/// key is drawn at every mount, so that nobody can choose inode numbers that collide.
#[derive(Clone)]
struct IdHash(u64);

impl Default for IdHash {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for IdHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        self.clone()
    }
}

impl Hasher for IdHash {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, id: u64) {
        // An odd constant without a pattern: 2^64 divided by the golden ratio.
        let product = u128::from(id ^ self.0) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Table {
    nodes: HashMap<Ino, Slot, IdHash>,
    alt: HashMap<AltKey, Ino>,
    devices: Vec<u64>,
    allocated: u64,
}

/// The table.
pub(crate) struct Inodes {
    table: Mutex<Table>,
}

impl Inodes {
    /// A table with its root; `devices` are those of the layers, the upper last,
    /// so that ids are the same at the next mount.
    pub(crate) fn new(devices: Vec<u64>, root: (UpperAt, Option<DevIno>, Lower)) -> Self {
        let (upper, upper_ino, lower) = root;
        let body = Body { place: None, upper, upper_ino, lower, nlink_delta: 0, alts: Vec::new() };
        let root = new_node(ROOT, libc::S_IFDIR, body);
        let mut table = Table {
            nodes: HashMap::default(),
            alt: HashMap::new(),
            devices: Vec::new(),
            allocated: 0,
        };
        for device in devices {
            table.note_device(device);
        }
        // One lookup that nobody takes back.
        table.nodes.insert(ROOT, Slot { node: root, lookups: 1 });
        Self { table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while the table is locked")
    }

    pub(crate) fn get(&self, id: Ino) -> Option<Arc<Node>> {
        self.table().nodes.get(&id).map(|s| Arc::clone(&s.node))
    }

    /// Nodes in the table.
    pub(crate) fn len(&self) -> usize {
        self.table().nodes.len()
    }

    /// The node of an object, made if need be; `count` adds a lookup to it.
    pub(crate) fn intern(&self, found: Identity, count: bool) -> Arc<Node> {
        let mut table = self.table();
        let id = table.id_of(&found);
        if let Some(slot) = table.nodes.get_mut(&id.0) {
            slot.lookups += u64::from(count);
            let node = Arc::clone(&slot.node);
            let mut body = node.body();
            // A name for what was only held, or a fresher one.
            if !node.is_dir() && node.id != ROOT {
                if let (UpperAt::Held(_), UpperAt::Named) = (&body.upper, &found.upper) {
                    body.upper = UpperAt::Named;
                    body.place = found.place;
                } else if body.place.is_none() {
                    body.place = found.place;
                }
            }
            drop(body);
            return node;
        }
        let (id, alt) = id;
        let body = Body {
            place: found.place,
            upper: found.upper,
            upper_ino: found.upper_ino,
            lower: found.lower,
            nlink_delta: found.nlink_delta,
            alts: alt.iter().cloned().collect(),
        };
        let node = new_node(id, found.kind, body);
        if let Some(alt) = alt {
            table.alt.insert(alt, id);
        }
        table.nodes.insert(id, Slot { node: Arc::clone(&node), lookups: u64::from(count) });
        node
    }

    /// Whether the object `upper` of the upper is a node's that is known by name:
    /// then nothing need be read of it to find the node.
    pub(crate) fn is_known(&self, upper: DevIno) -> bool {
        let table = self.table();
        let id = table.alt.get(&AltKey::Upper(upper)).copied().or_else(|| table.plain(upper));
        id.and_then(|id| table.nodes.get(&id)).is_some_and(|slot| {
            let body = slot.node.body();
            body.upper_ino == Some(upper) && matches!(body.upper, UpperAt::Named)
        })
    }

    /// From now on the object `upper` of the upper is known to be `node`.
    pub(crate) fn alias(&self, node: &Arc<Node>, upper: DevIno) {
        let key = AltKey::Upper(upper);
        let mut table = self.table();
        table.alt.insert(key.clone(), node.id);
        let mut body = node.body();
        body.upper_ino = Some(upper);
        body.alts.push(key);
    }

    /// Takes back `count` lookups.
    pub(crate) fn forget(&self, id: Ino, count: u64) {
        // The root stays whatever the kernel returns: it was never looked up.
        if id == ROOT {
            return;
        }
        let node = {
            let mut table = self.table();
            let Some(slot) = table.nodes.get_mut(&id) else { return };
            slot.lookups = slot.lookups.saturating_sub(count);
            if slot.lookups > 0 {
                return;
            }
            Arc::clone(&slot.node)
        };
        self.purge(node);
    }

    /// Removes `node` from the table if nobody refers to it any more, and then
    /// its parent likewise. Called wherever the last reference may have gone: that is, by
    /// all who have one of a node that the kernel may forget meanwhile.
    pub(crate) fn purge(&self, node: Arc<Node>) {
        let mut next = Some(node);
        while let Some(node) = next.take() {
            let mut table = self.table();
            let unused = table.nodes.get(&node.id).is_some_and(|slot| {
                // Two references: the table's and ours.
                slot.lookups == 0 && Arc::ptr_eq(&slot.node, &node) && Arc::strong_count(&node) <= 2
            });
            if !unused {
                // While the table is locked: ours must not keep another from seeing the last.
                drop(node);
                return;
            }
            table.nodes.remove(&node.id);
            let mut body = node.body();
            for alt in body.alts.drain(..) {
                if table.alt.get(&alt) == Some(&node.id) {
                    table.alt.remove(&alt);
                }
            }
            next = body.place.take().map(|(parent, _)| parent);
        }
    }
}

fn new_node(id: Ino, kind: u32, body: Body) -> Arc<Node> {
    let dir = (kind == libc::S_IFDIR).then(Box::default);
    Arc::new(Node {
        last: Mutex::new(None),
        id,
        kind,
        epoch: AtomicU32::new(0),
        body: Mutex::new(body),
        naming: RwLock::new(()),
        copying: Mutex::new(()),
        file: Mutex::new(None),
        recent: AtomicBool::new(false),
        bare: AtomicBool::new(false),
        dir,
    })
}

impl Table {
    /// Gives a device its index, if it has none.
    fn note_device(&mut self, device: u64) {
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
    }

    /// The id of an object, and the second key to store when it is new.
    fn id_of(&mut self, found: &Identity) -> (Ino, Option<AltKey>) {
        if let Some(upper) = found.upper_ino
            && let Some(id) = self.alt.get(&AltKey::Upper(upper))
        {
            return (*id, None);
        }
        let place = match &found.lower {
            Lower::File(layer, dir, name) => Some(AltKey::Place(*layer, dir.join(&**name))),
            Lower::Dirs(dirs, _) => {
                dirs.first().map(|d| AltKey::Place(d.layer, d.path.to_path_buf()))
            }
            Lower::None => None,
        };
        if let Some(id) = place.as_ref().and_then(|p| self.alt.get(p))
            && self.nodes.get(id).is_some_and(|slot| same_object(&slot.node, found))
        {
            return (*id, None);
        }
        let (id, alt) = self.natural(found.origin);
        match self.nodes.get(&id) {
            None => return (id, alt),
            Some(slot) if same_object(&slot.node, found) => return (id, None),
            Some(_) => {}
        }
        // The natural id belongs to another object: two places of one lower
        // directory (bind mounts), or an origin claimed twice.
        if let Some(upper) = found.upper_ino {
            let (id, alt) = self.natural(upper);
            match self.nodes.get(&id) {
                None => return (id, alt),
                Some(slot) if same_object(&slot.node, found) => return (id, None),
                Some(_) => return (self.allocate(), Some(AltKey::Upper(upper))),
            }
        }
        (self.allocate(), place)
    }

    /// The id that follows from device and inode number, where one does.
    fn plain(&self, (device, ino): DevIno) -> Option<Ino> {
        let index = self.devices.iter().position(|d| *d == device)? as u64;
        let id = index << INO_BITS | ino;
        // 0 is no inode, 1 is the root of the union, UNKNOWN stands for none.
        let free = id > ROOT && id != super::UNKNOWN;
        (ino >> INO_BITS == 0 && index < 0xffff && free).then_some(id)
    }

    fn natural(&mut self, origin: DevIno) -> (Ino, Option<AltKey>) {
        self.note_device(origin.0);
        if let Some(id) = self.plain(origin) {
            return (id, None);
        }
        let key = AltKey::Raw(origin);
        match self.alt.get(&key) {
            Some(id) => (*id, None),
            None => (self.allocate(), Some(key)),
        }
    }

    fn allocate(&mut self) -> Ino {
        self.allocated += 1;
        ALLOCATED | self.allocated
    }
}

/// Whether what was found is the object a node of the same id stands for.
fn same_object(node: &Node, found: &Identity) -> bool {
    if node.kind != found.kind {
        return false;
    }
    let body = node.body();
    if node.is_dir() {
        return match (&body.lower, &found.lower) {
            (Lower::Dirs(a, _), Lower::Dirs(b, _)) if !a.is_empty() || !b.is_empty() => {
                // Two directories of the upper may claim one lower directory.
                let same_place = || match (&body.place, &found.place) {
                    (Some((p1, n1)), Some((p2, n2))) => Arc::ptr_eq(p1, p2) && n1 == n2,
                    _ => false,
                };
                a.first() == b.first() && (body.upper_ino == found.upper_ino || same_place())
            }
            _ => body.upper_ino == found.upper_ino,
        };
    }
    match (&body.lower, &found.lower) {
        (Lower::File(l1, d1, n1), Lower::File(l2, d2, n2)) => {
            found.lower_links || (l1 == l2 && d1 == d2 && n1 == n2)
        }
        _ => found.upper_ino.is_some() && body.upper_ino == found.upper_ino,
    }
}
