//! The union over layers in memory: what is seen, and what a faulty layer does.

use std::ffi::OsStr;

use nix::errno::Errno;

use super::{Attr, Options, Overlay, ROOT};
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
    assert_eq!(union.write(a, 0, b"x", true).unwrap_err().errno(), libc::EROFS);
    let changes = super::Changes { mode: Some(0o600), ..Default::default() };
    assert_eq!(union.setattr(a, &changes).unwrap_err().errno(), libc::EROFS);
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
