//! The union's locks under schedules that are chosen at random (the crate shuttle):
//! writers, renamers, makers and readers at once, of which only one runs at a time,
//! and at every lock or atomic another may go on. A deadlock ends the test.
//!
//! What the kernel promises a file system is kept ([`Vfs`]): of those that change names
//! in a directory only one is in it at a time, and of those that write a file.
//!
//! `CORACLE_SCHEDULES` says how many of each kind (2000).
#![cfg(feature = "shuttle")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::{Mutex, RwLock};
use shuttle::thread;

use super::{Attr, Caller, Changes, Ino, New, Options, Overlay, ROOT, RedirectDir, SetTime, Upper};
use crate::error::{Error, Result};
use crate::layer::{Layer, MemLayer};

const FILES: usize = 2;
const LEN: usize = 64;
const STEPS: usize = 4;
const DIRS: [&str; 2] = ["p", "q"];

fn content(file: usize) -> Vec<u8> {
    format!("{file:08}").into_bytes().repeat(LEN / 8)
}

/// Two directories, with files and a directory that are moved between them.
fn lower() -> MemLayer {
    let mut layer = MemLayer::new(7).dir("p", 0o755).dir("q", 0o755).dir("p/s", 0o755);
    layer = layer.file("p/s/x", b"deep", 0o644).file("q/stays", b"fixed", 0o644);
    for file in 0..FILES {
        layer = layer.file(&format!("{}/f{file}", DIRS[file % 2]), &content(file), 0o644);
    }
    layer
}

fn union(place: &Path) -> Overlay {
    let upper = Upper::open(&place.join("upper"), &place.join("work")).unwrap();
    let options = Options { volatile: true, redirect_dir: RedirectDir::On, ..Options::default() };
    let lowers = vec![Box::new(lower()) as Box<dyn Layer>];
    let union = Overlay::new(lowers, Some(upper), options).unwrap();
    // So that files are opened again and again.
    union.limit_open_files(1);
    union
}

/// The kernel in front of the union, with the locks that it takes.
struct Vfs {
    union: Overlay,
    /// The kernel keeps these two known.
    dirs: [Ino; 2],
    /// `i_rwsem` of the directories.
    names: [RwLock<()>; 2],
    /// `i_rwsem` of the files.
    data: [Mutex<()>; FILES],
    /// The kernel keeps what is written: it hands it over with no lock, and the time by itself.
    written_back: bool,
    /// The file got its time.
    timed: [AtomicBool; FILES],
}

/// The time that files get.
const TIME: (i64, u32) = (1_234_567_890, 500);

impl Vfs {
    fn new(union: Overlay) -> Self {
        let dirs = DIRS.map(|name| union.lookup(ROOT, OsStr::new(name)).unwrap().ino);
        let data = std::array::from_fn(|_| Mutex::new(()));
        let written_back = thread_rng().r#gen();
        if written_back {
            union.write_back();
        }
        let timed = std::array::from_fn(|_| AtomicBool::new(false));
        let names = [RwLock::new(()), RwLock::new(())];
        Self { union, dirs, names, data, written_back, timed }
    }

    /// Does something to what is found under a name; `None`: there is no such name.
    fn with<T>(&self, dir: usize, name: &str, does: impl FnOnce(&Attr) -> T) -> Option<T> {
        let found = {
            let _names = self.names[dir].read().unwrap();
            self.union.lookup(self.dirs[dir], OsStr::new(name))
        };
        match found {
            Ok(attr) => {
                let result = does(&attr);
                self.union.forget(attr.ino, 1);
                Some(result)
            }
            Err(Error::NotFound) => None,
            Err(e) => panic!("{}/{name}: {e}", DIRS[dir]),
        }
    }

    fn rename(&self, from: usize, name: &str) -> Result<()> {
        let _locks = (self.names[0].write().unwrap(), self.names[1].write().unwrap());
        let name = OsStr::new(name);
        self.union.rename(self.dirs[from], name, self.dirs[1 - from], name, 0)
    }

    /// The names in a directory, each of which is known until all have been read.
    fn list(&self, dir: usize) -> Vec<OsString> {
        let (mut out, mut known) = (Vec::new(), Vec::new());
        let add = &mut |_, name: &OsStr, attr: &Attr| {
            if name != "." && name != ".." {
                known.push(attr.ino);
            }
            out.push(name.to_owned());
            true
        };
        {
            let _names = self.names[dir].read().unwrap();
            self.union.read_dir(self.dirs[dir], 0, true, add).unwrap();
        }
        known.into_iter().for_each(|node| self.union.forget(node, 1));
        out.sort();
        out
    }

    fn read(&self, node: Ino) -> Vec<u8> {
        let mut buffer = vec![0; LEN * 2];
        let len = self.union.read(node, 0, &mut buffer).unwrap();
        buffer.truncate(len);
        buffer
    }
}

const CALLER: fn() -> Caller = || Caller {
    uid: nix::unistd::geteuid().as_raw(),
    gid: nix::unistd::getegid().as_raw(),
    umask: 0o022,
};

/// The same bytes again: a copy-up at first.
fn write(vfs: &Vfs) {
    let (file, dir) = (thread_rng().gen_range(0..FILES), thread_rng().gen_range(0..2));
    vfs.with(dir, &format!("f{file}"), |attr| {
        let _data = (!vfs.written_back).then(|| vfs.data[file].lock().unwrap());
        let at = thread_rng().gen_range(0..LEN / 8) * 8;
        vfs.union.drop_set_id(attr.ino).unwrap();
        let n = vfs.union.write(attr.ino, at as u64, &content(file)[..LEN - at], false);
        assert_eq!(n.unwrap(), LEN - at);
    });
}

fn change_mode(vfs: &Vfs) {
    let (file, dir) = (thread_rng().gen_range(0..FILES), thread_rng().gen_range(0..2));
    vfs.with(dir, &format!("f{file}"), |attr| {
        let _data = vfs.data[file].lock().unwrap();
        let mtime = Some(SetTime::At(TIME.0, TIME.1));
        let changes = Changes { mode: Some(0o600), mtime, ..Changes::default() };
        let after = vfs.union.setattr(attr.ino, &changes).unwrap();
        vfs.timed[file].store(true, Ordering::Relaxed);
        assert_eq!((after.ino, after.mode & 0o777, after.size), (attr.ino, 0o600, LEN as u64));
    });
}

fn rename(vfs: &Vfs, name: &str) {
    match vfs.rename(thread_rng().gen_range(0..2), name) {
        Ok(()) | Err(Error::NotFound) => {}
        Err(e) => panic!("{name}: {e}"),
    }
}

fn read(vfs: &Vfs) {
    let (file, dir) = (thread_rng().gen_range(0..FILES), thread_rng().gen_range(0..2));
    vfs.with(dir, &format!("f{file}"), |attr| {
        assert_eq!(vfs.read(attr.ino), content(file), "f{file}");
        assert_eq!(vfs.union.getattr(attr.ino).unwrap().size, LEN as u64);
    });
    // Through a directory that is moved meanwhile: it is known, whatever its place.
    vfs.with(dir, "s", |attr| {
        let deep = vfs.union.lookup(attr.ino, OsStr::new("x")).unwrap();
        assert_eq!(vfs.read(deep.ino), b"deep");
        vfs.union.forget(deep.ino, 1);
    });
}

fn list(vfs: &Vfs) {
    // One after the other: that is a walk.
    vfs.list(0);
    let names = vfs.list(1);
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "twice: {names:?}");
    assert!(names.contains(&"stays".into()), "{names:?}");
}

/// A file is made, given a second name, loses both, and is read until it is forgotten.
fn make(vfs: &Vfs) {
    let (dirs, name, other) = (vfs.dirs, OsStr::new("new"), OsStr::new("new2"));
    let attr = {
        let _names = vfs.names[0].write().unwrap();
        vfs.union.make(dirs[0], name, New::File(0o644), CALLER()).unwrap()
    };
    vfs.union.write(attr.ino, 0, b"new", false).unwrap();
    {
        let _names = vfs.names[1].write().unwrap();
        let linked = vfs.union.link(attr.ino, dirs[1], other).unwrap();
        assert_eq!((linked.ino, linked.nlink), (attr.ino, 2));
    }
    for (dir, name) in [(0, name), (1, other)] {
        let _names = vfs.names[dir].write().unwrap();
        vfs.union.unlink(dirs[dir], name).unwrap();
    }
    assert_eq!(vfs.read(attr.ino), b"new");
    assert_eq!(vfs.union.getattr(attr.ino).unwrap().nlink, 0);
    vfs.union.forget(attr.ino, 2);
}

/// Where everything is, with its content.
fn shown(vfs: &Vfs) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for (dir, of) in DIRS.iter().enumerate() {
        for name in vfs.list(dir) {
            let name = name.to_str().unwrap();
            if name == "s" {
                let deep = |attr: &Attr| vfs.union.lookup(attr.ino, OsStr::new("x")).unwrap();
                let deep = vfs.with(dir, name, deep).unwrap();
                out.insert(format!("{of}/s/x"), vfs.read(deep.ino));
                vfs.union.forget(deep.ino, 1);
            } else if !name.starts_with('.') {
                let content = vfs.with(dir, name, |attr| vfs.read(attr.ino)).unwrap();
                out.insert(format!("{of}/{name}"), content);
            }
        }
    }
    out
}

fn one_schedule() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    for dir in ["upper", "work"] {
        std::fs::create_dir(place.path().join(dir)).unwrap();
    }
    let vfs = Arc::new(Vfs::new(union(place.path())));
    let work: [fn(&Vfs); 9] = [
        write,
        write,
        change_mode,
        |vfs| rename(vfs, &format!("f{}", thread_rng().gen_range(0..FILES))),
        |vfs| rename(vfs, "s"),
        read,
        list,
        make,
        // What the directories that are listed lead to, known to nobody else or not.
        |vfs| while vfs.union.prepare() {},
    ];
    let threads = work.map(|work| {
        let vfs = Arc::clone(&vfs);
        thread::spawn(move || (0..STEPS).for_each(|_| work(&vfs)))
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let Ok(vfs) = Arc::try_unwrap(vfs) else { panic!("all threads have ended") };
    // Nothing is known any more but the two directories, and what keeps a descriptor.
    let gauges: BTreeMap<_, _> = vfs.union.gauges().into_iter().collect();
    assert!(gauges["nodes"] <= 3 + gauges["open_files"], "{gauges:?}");
    let before = shown(&vfs);
    let mut names: Vec<_> = before.keys().map(|path| &path[2..]).collect();
    names.sort_unstable();
    assert_eq!(names, ["f0", "f1", "s/x", "stays"]);
    for (path, data) in &before {
        match path[2..].strip_prefix('f') {
            Some(file) => assert_eq!(*data, content(file.parse().unwrap()), "{path}"),
            None => assert!([&b"deep"[..], b"fixed"].contains(&&data[..]), "{path}"),
        }
    }
    for file in (0..FILES).filter(|f| vfs.written_back && vfs.timed[*f].load(Ordering::Relaxed)) {
        let times = (0..2).filter_map(|dir| vfs.with(dir, &format!("f{file}"), |attr| attr.mtime));
        assert_eq!(times.collect::<Vec<_>>(), [TIME], "f{file}");
    }
    vfs.dirs.iter().for_each(|dir| vfs.union.forget(*dir, 1));
    // What keeps a descriptor is known for as long.
    let gauges: BTreeMap<_, _> = vfs.union.gauges().into_iter().collect();
    assert!(gauges["nodes"] <= 1 + gauges["open_files"], "{gauges:?}");
    drop(vfs);
    assert_eq!(std::fs::read_dir(place.path().join("work/work")).unwrap().count(), 0);
    assert_eq!(shown(&Vfs::new(union(place.path()))), before, "after a remount");
}

fn check(scheduler: impl Scheduler + 'static) {
    let mut config = shuttle::Config::new();
    // System calls are made on these stacks.
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(1_000_000);
    shuttle::Runner::new(scheduler, config).run(one_schedule);
}

fn count() -> usize {
    std::env::var("CORACLE_SCHEDULES").map_or(2000, |number| number.parse().unwrap())
}

#[test]
fn at_random() {
    check(RandomScheduler::new(count()));
}

/// Few changes between threads, at points that matter.
#[test]
fn by_priorities() {
    check(PctScheduler::new(4, count()));
}
