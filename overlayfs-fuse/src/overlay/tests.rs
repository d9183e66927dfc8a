//! The union over layers in memory: what is seen, and what a faulty layer does.
#![cfg(not(feature = "shuttle"))]

use std::ffi::OsStr;

use nix::errno::Errno;

use super::{Attr, Caller, Changes, New, Options, Overlay, ROOT, RedirectDir, Upper};
use crate::layer::{Layer, MemLayer};

fn union(lowers: Vec<MemLayer>, options: Options) -> Overlay {
    let lowers = lowers.into_iter().map(|l| Box::new(l) as Box<dyn Layer>).collect();
    Overlay::new(lowers, None, options).unwrap()
}

fn names(union: &Overlay, dir: u64) -> Vec<String> {
    let mut out = Vec::new();
    union
        .read_dir(dir, 0, false, &mut |_, name, _| {
            out.push(name.to_string_lossy().into_owned());
            true
        })
        .unwrap();
    out.sort();
    out.split_off(2)
}

fn find(union: &Overlay, path: &str) -> Result<Attr, i32> {
    let mut at = union.getattr(ROOT).map_err(|e| e.errno())?;
    for name in path.split('/') {
        at = union.lookup(at.ino, OsStr::new(name)).map_err(|e| e.errno())?;
    }
    Ok(at)
}

fn read(union: &Overlay, path: &str) -> Vec<u8> {
    let mut buffer = vec![0; 100];
    let n = union.read(find(union, path).unwrap().ino, 0, &mut buffer).unwrap();
    buffer.truncate(n);
    buffer
}

fn three() -> Vec<MemLayer> {
    vec![
        MemLayer::new(1).file("a", b"top", 0o644).dir("d", 0o755).whiteout("d/gone").opaque("o"),
        MemLayer::new(2).dir("d", 0o755).file("d/b", b"middle", 0o600).dir("o", 0o755),
        MemLayer::new(3)
            .file("a", b"bottom", 0o644)
            .dir("d", 0o755)
            .file("d/b", b"bottom", 0o644)
            .file("d/gone", b"x", 0o644)
            .file("d/c", b"seen", 0o644)
            .dir("o", 0o755)
            .file("o/hidden", b"x", 0o644)
            .symlink("l", "d/c"),
    ]
}

#[test]
fn the_topmost_layer_wins() {
    let union = union(three(), Options::default());
    assert_eq!(names(&union, ROOT), ["a", "d", "l", "o"]);
    assert_eq!(read(&union, "a"), b"top");
    assert_eq!(read(&union, "d/b"), b"middle");
    assert_eq!(read(&union, "d/c"), b"seen");
    assert_eq!(find(&union, "d/gone").unwrap_err(), libc::ENOENT);
    assert_eq!(find(&union, "o/hidden").unwrap_err(), libc::ENOENT);
    let d = find(&union, "d").unwrap();
    assert_eq!((names(&union, d.ino), d.nlink), (vec!["b".to_owned(), "c".to_owned()], 1));
    assert_eq!(union.readlink(find(&union, "l").unwrap().ino).unwrap(), "d/c");
    // The same answer with the index built, and the same node.
    assert_eq!(find(&union, "d/gone").unwrap_err(), libc::ENOENT);
    assert_eq!(find(&union, "d").unwrap().ino, d.ino);
}

#[test]
fn only_what_is_public_is_seen() {
    let options = Options { public_lower: true, ..Options::default() };
    let lowers = vec![
        MemLayer::new(1).dir("d", 0o700).file("d/x", b"", 0o644).file("s", b"secret", 0o640),
        MemLayer::new(2).dir("d", 0o755).file("d/y", b"", 0o644).file("s", b"below", 0o644),
    ];
    let union = union(lowers, options);
    assert_eq!(names(&union, ROOT), ["d"]);
    // What cannot be seen still hides what is below it.
    assert_eq!(find(&union, "s").unwrap_err(), libc::ENOENT);
    assert_eq!(names(&union, find(&union, "d").unwrap().ino), Vec::<String>::new());
    assert_eq!(find(&union, "d/y").unwrap_err(), libc::ENOENT);
}

#[test]
fn a_fault_is_an_error_of_that_object_alone() {
    for (path, other, errno) in
        [("d/b", "a", Errno::EIO), ("d", "a", Errno::ESTALE), ("a", "d/c", Errno::EACCES)]
    {
        let layers = three();
        layers[0].fail(path, errno);
        let union = union(layers, Options::default());
        assert_eq!(find(&union, path).unwrap_err(), errno as i32, "{path}");
        assert!(!read(&union, other).is_empty());
    }
}

#[test]
fn without_an_upper_changes_are_refused() {
    let union = union(three(), Options::default());
    let a = find(&union, "a").unwrap().ino;
    assert_eq!(union.unlink(ROOT, OsStr::new("a")).unwrap_err().errno(), libc::EROFS);
    assert_eq!(union.write(a, 0, b"x", false).unwrap_err().errno(), libc::EROFS);
    let changes = super::Changes { mode: Some(0o600), ..Default::default() };
    assert_eq!(union.setattr(a, &changes).unwrap_err().errno(), libc::EROFS);
}

/// Each name asks the two layers above in vain, by its own name and by its `.wh.` file's;
/// an index comes once as much was wasted as is worth it, and says the same.
#[test]
fn who_looks_up_many_names_gets_an_index() {
    let mut bottom = MemLayer::new(3);
    for n in 0..20 {
        bottom = bottom.file(&format!("n{n}"), &[n], 0o644);
    }
    let indexed = |union: &Overlay| {
        let root = union.node(ROOT).unwrap();
        let state = root.dir_state().unwrap();
        !matches!(state.look(OsStr::new("n0")), super::directory::Indexed::Unknown)
    };
    let of_files = union(vec![MemLayer::new(1), MemLayer::new(2), bottom], Options::default());
    for n in 0..20 {
        assert_eq!(indexed(&of_files), n >= 8, "{n}");
        assert_eq!(read(&of_files, &format!("n{n}")), [n]);
    }
    assert_eq!(find(&of_files, "none").unwrap_err(), libc::ENOENT);
    // The two above a directory are asked in vain, or those below it.
    for at in 0..3 {
        let mut layers: Vec<_> = (1..=3).map(MemLayer::new).collect();
        let filled = std::mem::replace(&mut layers[at], MemLayer::new(9));
        let filled = (0..20).fold(filled, |layer, n| layer.dir(&format!("d{n}"), 0o755));
        layers[at] = filled;
        let of_directories = union(layers, Options::default());
        for n in 0..20 {
            assert_eq!(indexed(&of_directories), n >= 8, "layer {at}, {n}");
            assert_eq!(find(&of_directories, &format!("d{n}")).unwrap().nlink, 1);
        }
    }
}

#[test]
fn forgotten_nodes_leave_the_table_with_their_parents() {
    let union = union(three(), Options::default());
    let d = union.lookup(ROOT, OsStr::new("d")).unwrap().ino;
    let c = union.lookup(d, OsStr::new("c")).unwrap().ino;
    assert_eq!(union.known_nodes(), 3);
    // The parent is kept by its child, also when the kernel forgets it first.
    union.forget(d, 1);
    assert_eq!(union.known_nodes(), 3);
    union.forget(c, 1);
    assert_eq!(union.known_nodes(), 1);
    // More than was counted, and what is unknown, does no harm.
    union.forget(c, 7);
    union.forget(ROOT, 1);
    assert!(union.getattr(ROOT).is_ok());
}

/// Where a directory was renamed in one layer and what it holds is in those below.
#[test]
fn redirects_are_followed_through_the_layers() {
    let old = || MemLayer::new(9).dir("a", 0o755).dir("a/s", 0o755).file("a/s/f", b"old", 0o644);
    let top = |path: &str, to: &str| MemLayer::new(1).redirected(path, to);
    for (layers, want) in [
        (vec![top("b", "a"), old()], Ok("s")),
        (vec![top("b", "/a"), old()], Ok("s")),
        (vec![top("b", "/a/s"), old()], Ok("f")),
        // What the layer above says of the old name does not matter: it moved away.
        (vec![top("b", "a").whiteout("a"), old()], Ok("s")),
        // Renamed twice, in two layers; the path is one of the layer below.
        (vec![top("c", "b"), MemLayer::new(2).redirected("b", "a").whiteout("a"), old()], Ok("s")),
        (
            vec![top("c", "/b/s"), MemLayer::new(2).redirected("b", "/a").whiteout("a"), old()],
            Ok("f"),
        ),
        (vec![top("c", "/b/s"), MemLayer::new(2).redirected("b", "a"), old()], Ok("f")),
        // A layer in between that has nothing there.
        (vec![top("b", "/a/s"), MemLayer::new(2).dir("x", 0o755), old()], Ok("f")),
        // Hidden on the way, or the thing itself.
        (vec![top("b", "/a/s"), MemLayer::new(2).whiteout("a"), old()], Ok("")),
        (vec![top("b", "/a/s"), MemLayer::new(2).opaque("a"), old()], Ok("")),
        (vec![top("b", "/a/s"), MemLayer::new(2).file("a", b"", 0o644), old()], Ok("")),
        (
            vec![
                top("b", "/a/s").dir("b/own", 0o755),
                MemLayer::new(2).dir("a", 0o755).opaque("a/s").file("a/s/x", b"", 0o644),
                old(),
            ],
            Ok("own x"),
        ),
        // An absolute redirect leads out of what was opaque.
        (
            vec![top("b", "/o/d"), MemLayer::new(2).opaque("o").redirected("o/d", "/a"), old()],
            Ok("s"),
        ),
        // In the bottom layer it says nothing.
        (vec![old(), MemLayer::new(2).redirected("b", "a")], Ok("")),
        // It names no place, or a file, or nothing.
        (vec![top("b", "../a"), old()], Err(libc::EINVAL)),
        (vec![top("b", "/a/s/f"), old()], Ok("")),
        (vec![top("b", "/nowhere"), old()], Ok("")),
    ] {
        let shown = format!("{layers:?}");
        let union = union(layers, Options::default());
        let dir = ["c", "b"].into_iter().map(|n| find(&union, n)).find(|r| *r != Err(libc::ENOENT));
        let got = dir.unwrap().map(|d| names(&union, d.ino).join(" "));
        assert_eq!(got.as_deref().map_err(|e| *e), want, "{shown}");
    }
}

/// A file whose data is in a layer below, in a table of where it may be.
#[test]
fn data_is_found_in_the_layers_below() {
    let data =
        || MemLayer::new(9).dir("a", 0o755).file("a/f", b"data", 0o644).file("f", b"root", 0o644);
    let copy =
        |path: &str, to: Option<&str>| MemLayer::new(1).dir("a", 0o755).metacopy(path, 4, to);
    let moved = || MemLayer::new(2).redirected("b", "a").whiteout("a");
    for (layers, path, want) in [
        (vec![copy("a/f", None), data()], "a/f", Ok(&b"data"[..])),
        (vec![copy("a/g", Some("f")), data()], "a/g", Ok(b"data")),
        (vec![copy("g", Some("/a/f")), data()], "g", Ok(b"data")),
        // A layer that has nothing there; one that has such a copy again.
        (vec![copy("g", Some("/a/f")), MemLayer::new(2), data()], "g", Ok(b"data")),
        (vec![copy("g", Some("/a/h")), copy("a/h", Some("f")), data()], "g", Ok(b"data")),
        (vec![copy("a/f", None), copy("a/f", None), data()], "a/f", Ok(b"data")),
        // The directory that it is in was renamed, there or above.
        (
            vec![MemLayer::new(1).redirected("b", "a").metacopy("b/f", 4, None), data()],
            "b/f",
            Ok(b"data"),
        ),
        (
            vec![MemLayer::new(1).dir("b", 0o755).metacopy("b/f", 4, None), moved(), data()],
            "b/f",
            Ok(b"data"),
        ),
        // Hidden on the way, not a file, not there, nowhere.
        (vec![copy("a/f", None), MemLayer::new(2).whiteout("a"), data()], "a/f", Err(libc::EIO)),
        (vec![copy("a/f", None), MemLayer::new(2).opaque("a"), data()], "a/f", Err(libc::EIO)),
        (vec![copy("g", Some("/a")), data()], "g", Err(libc::EIO)),
        (vec![copy("g", None), data()], "g", Err(libc::EIO)),
        (vec![data(), copy("z", None)], "z", Err(libc::EIO)),
        (vec![copy("g", Some("../f")), data()], "g", Err(libc::EINVAL)),
    ] {
        let shown = format!("{layers:?}");
        let union = union(layers, Options::default());
        let attr = find(&union, path).unwrap();
        assert_eq!(attr.size, 4, "{shown}");
        let mut buffer = [0; 9];
        let got = union.read(attr.ino, 0, &mut buffer).map(|n| &buffer[..n]);
        assert_eq!(got.map_err(|e| e.errno()), want, "{shown}");
    }
    // As with redirects, it may be private.
    for options in [
        Options { redirect_dir: RedirectDir::NoFollow, ..Options::default() },
        Options { public_lower: true, ..Options::default() },
    ] {
        let union = union(vec![copy("a/f", None), data()], options);
        let f = find(&union, "a/f").unwrap();
        assert_eq!(union.read(f.ino, 0, &mut [0; 9]).unwrap_err().errno(), libc::EPERM);
    }
}

#[test]
fn redirects_are_refused_where_they_could_show_what_is_hidden() {
    let layers = || {
        vec![
            MemLayer::new(1).redirected("b", "/p/s").dir("d", 0o755).redirected("gone", "/no"),
            MemLayer::new(2).dir("p", 0o700).dir("p/s", 0o755).file("p/s/f", b"", 0o644),
        ]
    };
    for options in [
        Options { redirect_dir: RedirectDir::NoFollow, ..Options::default() },
        Options { public_lower: true, ..Options::default() },
    ] {
        let union = union(layers(), options);
        // By its name alone, and known from the directory's index.
        assert_eq!(find(&union, "b").map(|_| ()), Err(libc::EPERM));
        assert!(names(&union, ROOT).contains(&"b".to_owned()));
        assert!(find(&union, "d").is_ok() && find(&union, "gone").is_ok());
    }
}

/// What is shown of a directory, read in pieces of so many entries, with what comes after
/// each piece prepared if that is asked for.
fn shown(union: &Overlay, dir: u64, piece: usize, prepare: bool) -> Vec<(String, Attr)> {
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        let (mut taken, from) = (0, at);
        let add = &mut |cookie, name: &OsStr, attr: &Attr| {
            if taken == piece {
                return false;
            }
            (taken, at) = (taken + 1, cookie);
            out.push((name.to_string_lossy().into_owned(), *attr));
            true
        };
        union.read_dir(dir, from, true, add).unwrap();
        while prepare && union.prepare() {}
        if taken == 0 {
            out.retain(|(name, _)| name != "." && name != "..");
            return out;
        }
    }
}

/// The counter of entries that had been looked at when they were asked for.
fn used(union: &Overlay) -> u64 {
    union.gauges().into_iter().find(|(name, _)| *name == "ahead.used").unwrap().1
}

/// Directories `a` with `a/s`, `b` and `c`, of two layers, with files in each.
fn walked() -> Vec<MemLayer> {
    [1, 2]
        .map(|device| {
            let mut layer = MemLayer::new(device);
            for dir in ["a", "a/s", "b", "c"] {
                layer = layer.dir(dir, 0o755);
                for n in 0..20 {
                    let bytes = vec![b'x'; n + 1];
                    layer = layer.file(&format!("{dir}/{device}-{n}"), &bytes, 0o644);
                }
            }
            layer
        })
        .into()
}

#[test]
fn a_walk_finds_what_was_looked_at_before() {
    let plain = union(walked(), Options::default());
    let ahead = union(walked(), Options::default());
    let mut expected = 0;
    // Roots are read before their directories are known.
    for path in ["", "a", "a/s", "b", "c"] {
        let of = |union: &Overlay| match path {
            "" => ROOT,
            path => find(union, path).unwrap().ino,
        };
        let want = shown(&plain, of(&plain), usize::MAX, false);
        assert_eq!(shown(&ahead, of(&ahead), usize::MAX, true), want, "{path}");
        if !["", "a"].contains(&path) {
            expected += want.len() as u64;
        }
        assert_eq!(used(&ahead), expected, "{path}");
    }
    assert_eq!(used(&plain), 0);
}

#[test]
fn pieces_of_a_directory_are_looked_at_before() {
    let (plain, ahead) = (union(walked(), Options::default()), union(walked(), Options::default()));
    let want = shown(&plain, find(&plain, "b").unwrap().ino, 7, false);
    assert_eq!(want.len(), 40);
    assert_eq!(shown(&ahead, find(&ahead, "b").unwrap().ino, 7, true), want);
    // All but the first piece, which begins with `.` and `..`; those that had no room in
    // one of the next four, twice.
    assert_eq!((used(&ahead), used(&plain)), (40 - 5 + 4, 0));
}

/// Whoever reads here and there has nothing prepared.
#[test]
fn nothing_is_looked_at_for_who_does_not_walk() {
    let union = union(walked(), Options::default());
    for path in ["b", "a/s", "b", "a/s"] {
        shown(&union, find(&union, path).unwrap().ino, usize::MAX, true);
    }
    let gauges = union.gauges();
    assert!(gauges.contains(&("ahead.looked", 0)), "{gauges:?}");
}

#[test]
fn what_changed_since_is_looked_at_again() {
    let place = tempfile::tempdir().unwrap();
    for dir in ["upper", "work"] {
        std::fs::create_dir(place.path().join(dir)).unwrap();
    }
    let upper = Upper::open(&place.path().join("upper"), &place.path().join("work")).unwrap();
    let lowers = walked().into_iter().map(|l| Box::new(l) as Box<dyn Layer>).collect();
    let union = Overlay::new(lowers, Some(upper), Options::default()).unwrap();
    shown(&union, ROOT, usize::MAX, false);
    let (a, b) = (find(&union, "a").unwrap().ino, find(&union, "b").unwrap().ino);
    let s = find(&union, "a/s").unwrap().ino;
    shown(&union, a, usize::MAX, true);
    shown(&union, s, usize::MAX, true);
    // Now those of `b` have been looked at.
    let caller = Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        umask: 0,
    };
    let mode = Changes { mode: Some(0o600), ..Changes::default() };
    union.setattr(find(&union, "b/1-0").unwrap().ino, &mode).unwrap();
    union.unlink(b, OsStr::new("1-1")).unwrap();
    union.unlink(b, OsStr::new("1-2")).unwrap();
    union.make(b, OsStr::new("1-2"), New::File(0o640), caller).unwrap();
    union.rename(b, OsStr::new("2-3"), b, OsStr::new("2-4"), 0).unwrap();
    union.make(b, OsStr::new("new"), New::Directory(0o700), caller).unwrap();
    let before = used(&union);
    let mut found: Vec<_> = shown(&union, b, usize::MAX, false);
    found.sort_by(|x, y| x.0.cmp(&y.0));
    assert_eq!(used(&union) - before, 40 - 5);
    let looked_up: Vec<_> = found
        .iter()
        .map(|(name, _)| (name.clone(), union.lookup(b, OsStr::new(name)).unwrap()))
        .collect();
    assert_eq!(found, looked_up);
    let of = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, a)| (a.mode, a.size));
    assert_eq!(of("1-0"), Some((libc::S_IFREG | 0o600, 1)));
    assert_eq!((of("1-1"), of("2-3")), (None, None));
    assert_eq!(of("1-2"), Some((libc::S_IFREG | 0o640, 0)));
    assert_eq!(of("2-4").map(|(_, size)| size), Some(4));
    assert_eq!(of("new").map(|(mode, _)| mode), Some(libc::S_IFDIR | 0o700));
}

/// A directory that the kernel forgets has other cookies when it is known again.
#[test]
fn what_was_looked_at_is_of_that_name() {
    let place = tempfile::tempdir().unwrap();
    for dir in ["upper", "work"] {
        std::fs::create_dir(place.path().join(dir)).unwrap();
    }
    let upper = Upper::open(&place.path().join("upper"), &place.path().join("work")).unwrap();
    let lowers = walked().into_iter().map(|l| Box::new(l) as Box<dyn Layer>).collect();
    let union = Overlay::new(lowers, Some(upper), Options::default()).unwrap();
    shown(&union, ROOT, usize::MAX, false);
    for path in ["a", "a/s"] {
        shown(&union, find(&union, path).unwrap().ino, usize::MAX, true);
    }
    let b = find(&union, "b").unwrap().ino;
    union.forget(b, 100);
    assert!(union.getattr(b).is_err(), "it is known");
    assert_eq!(union.lookup(ROOT, OsStr::new("b")).unwrap().ino, b);
    union.unlink(b, OsStr::new("1-0")).unwrap();
    for (name, attr) in shown(&union, b, usize::MAX, false) {
        assert_eq!(union.lookup(b, OsStr::new(&name)).unwrap(), attr, "{name}");
    }
}
