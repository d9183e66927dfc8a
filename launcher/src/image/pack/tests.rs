use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::idmap::IdMap;
use crate::image::tar::Reader;
use crate::image::unpack::{Limits, unpack};

fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn tree(layers: &[&Path], changes: bool) -> Tree {
    let layers = layers.iter().map(|layer| Layer::open(layer, false).unwrap()).collect();
    Tree::of(layers, changes, true)
}

fn listed(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(bytes);
    let mut names = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        let mut name = String::from_utf8(member.name).unwrap();
        if member.kind == Kind::HardLink {
            name = format!("{name} = {}", String::from_utf8(member.link).unwrap());
        }
        names.push(name);
    }
    names
}

#[test]
fn layers_are_merged_as_the_overlay_does() {
    let dir = tempfile::tempdir().unwrap();
    let [upper, middle, base] = ["upper", "middle", "base"].map(|name| dir.path().join(name));
    for layer in [&upper, &middle, &base] {
        fs::create_dir(layer).unwrap();
    }
    put(&base, "d/base", "x");
    put(&base, "d/gone", "x");
    put(&base, "o/hidden", "x");
    put(&base, "file/x", "x");
    put(&middle, "d/middle", "x");
    put(&middle, "d/.wh.gone", "");
    put(&middle, "o/middle", "x");
    put(&middle, "o/.wh..wh..opq", "");
    put(&middle, "file", "x");
    put(&upper, "d/upper", "x");
    put(&upper, "o/upper", "x");
    let merged = pack(&tree(&[&upper, &middle, &base], false), Vec::new()).unwrap();
    assert_eq!(
        listed(&merged),
        ["./", "d/", "file", "o/", "d/base", "d/middle", "d/upper", "o/middle", "o/upper"]
    );
    let changes = pack(&tree(&[&middle, &base], true), Vec::new()).unwrap();
    assert_eq!(
        listed(&changes),
        ["./", "d/", "file", "o/", "d/.wh.gone", "d/middle", "o/.wh..wh..opq", "o/middle"]
    );
}

#[test]
fn what_is_packed_and_unpacked_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    put(&one, "d/f", "text");
    put(&one, &format!("{}/deep", "n".repeat(200)), "x");
    fs::hard_link(one.join("d/f"), one.join("a")).unwrap();
    symlink("d/f", one.join("l")).unwrap();
    fs::set_permissions(one.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(one.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    let sparse = fs::File::create(one.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    let odd = fs::File::open(one.join("d")).unwrap();
    xattr::set_on(odd.as_fd(), c"user.mine", b"v\0w").unwrap();
    xattr::set_on(odd.as_fd(), OWNER, b"33:34:02750").unwrap();
    xattr::set_on(odd.as_fd(), OPAQUE, b"n").unwrap();
    let first = pack(&tree(&[&one], false), Vec::new()).unwrap();
    let limits = Limits { bytes: 4 << 20, members: 100, names: 1 << 20 };
    let map = IdMap::of_caller(1, 1, None, "", "");
    unpack(&first[..], &two, &map, limits).unwrap();
    let second = pack(&tree(&[&two], false), Vec::new()).unwrap();
    assert!(first == second, "{:?}\n{:?}", listed(&first), listed(&second));
    assert!(listed(&first).contains(&"d/f = a".to_owned()), "{:?}", listed(&first));
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(two.join("sparse")).unwrap().blocks(), 0);
}

#[test]
fn what_is_to_be_left_out_is_only_where_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "etc/hosts", "");
    put(dir.path(), "etc/hostname", "kept");
    fs::create_dir(dir.path().join("proc")).unwrap();
    put(dir.path(), "sys/kept", "");
    let mut tree = tree(&[dir.path()], true);
    tree.without = ["/etc/hosts", "/etc/hostname", "/proc", "/sys"].map(PathBuf::from).into();
    let packed = pack(&tree, Vec::new()).unwrap();
    assert_eq!(listed(&packed), ["./", "etc/", "sys/", "etc/hostname", "sys/kept"]);
}

#[test]
fn only_the_public_part_of_a_public_layer_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in
        [("open/x", 0o644), ("closed/x", 0o644), ("hidden/x", 0o644), ("key", 0o640)]
    {
        put(dir.path(), name, "x");
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("open", 0o755), ("hidden", 0o755), ("closed", 0o750)] {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut tree = tree(&[dir.path()], false);
    tree.layers[0].public = true;
    tree.layers[0].hidden = [PathBuf::from("/hidden")].into();
    let packed = pack(&tree, Vec::new()).unwrap();
    assert_eq!(listed(&packed), ["./", "closed/", "hidden/", "open/", "open/x"]);
}

#[test]
fn a_directory_as_it_is_seen_has_no_marks() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), ".wh.x", "x");
    put(dir.path(), "d/f", "x");
    let root = || InRoot::open_root(dir.path()).unwrap();
    let packed = pack(&Tree::plain(root(), b"name".to_vec()), Vec::new()).unwrap();
    assert_eq!(listed(&packed), ["name/", "name/.wh.x", "name/d/", "name/d/f"]);
    let opened = fs::File::open(dir.path().join("d/f")).unwrap();
    assert_eq!(listed(&pack_file(opened, b"other", Vec::new()).unwrap()), ["other"]);
}

#[test]
fn whiteouts_by_attribute_and_directories_renamed_are_known() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "gone", "");
    let gone = fs::File::open(dir.path().join("gone")).unwrap();
    xattr::set_on(gone.as_fd(), WHITEOUT, b"y").unwrap();
    assert_eq!(listed(&pack(&tree(&[dir.path()], true), Vec::new()).unwrap()), ["./", ".wh.gone"]);
    put(dir.path(), "moved/x", "");
    let moved = fs::File::open(dir.path().join("moved")).unwrap();
    xattr::set_on(moved.as_fd(), REDIRECT, b"/elsewhere").unwrap();
    let error = pack(&tree(&[dir.path()], true), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("redirect_dir"), "{error}");
}

#[test]
fn special_files_that_are_kept_as_plain_ones_are_what_they_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind) in [("pipe", ":pipe"), ("socket", ":socket"), ("file", ":file")] {
        put(dir.path(), name, "x");
        let file = fs::File::open(dir.path().join(name)).unwrap();
        xattr::set_on(file.as_fd(), OWNER, format!("7:8:0640{kind}").as_bytes()).unwrap();
    }
    let packed = pack(&tree(&[dir.path()], true), Vec::new()).unwrap();
    let mut reader = Reader::new(&packed[..]);
    let mut kinds = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        kinds.push((String::from_utf8(member.name).unwrap(), member.kind, member.uid));
    }
    let want = [("file", Kind::File), ("pipe", Kind::Fifo)].map(|(n, k)| (n.to_owned(), k, 7));
    assert_eq!(kinds[1..], want);
}

#[test]
fn what_was_changed_by_one_name_is_changed_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let [upper, top, base, work] = ["upper", "top", "base", "work"].map(|n| dir.path().join(n));
    let index = work.join("links.coracle");
    for made in [&upper, &top, &base, &index] {
        fs::create_dir_all(made).unwrap();
    }
    put(&base, "a", "old");
    fs::create_dir_all(base.join("d/e")).unwrap();
    for name in ["b", "d/e/c", "gone"] {
        fs::hard_link(base.join("a"), base.join(name)).unwrap();
    }
    put(&base, "other", "o");
    fs::hard_link(base.join("other"), base.join("same")).unwrap();
    put(&top, "top", "x");
    put(&upper, "b", "new");
    put(&upper, ".wh.gone", "");
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(base.join("a")).unwrap());
    // The base is the bottom one.
    let key = index.join(format!("0-{ino:x}"));
    fs::hard_link(upper.join("b"), &key).unwrap();
    let packed = |changes| {
        let layers: [&Path; 3] = [&upper, &top, &base];
        let copies = Copies::open(&work, 0).unwrap();
        pack(&Tree { copies, ..tree(&layers, changes) }, Vec::new()).unwrap()
    };
    let others = || {
        let layers: [&Path; 3] = [&upper, &top, &base];
        let copies = Copies::open(&work, 0).unwrap();
        other_names(&Tree { copies, ..tree(&layers, true) }).unwrap()
    };
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(others(), paths(&["/a", "/d/e/c"]));
    let all = packed(false);
    let wanted = ["./", "a", "b = a", "d/", "other", "same = other", "top", "d/e/", "d/e/c = a"];
    assert_eq!(listed(&all), wanted);
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let map = IdMap::of_caller(1000, 1000, None, "", "");
    let limits = Limits { bytes: 1 << 20, members: 100, names: 1 << 20 };
    unpack(&all[..], &to, &map, limits).unwrap();
    assert_eq!(fs::read_to_string(to.join("d/e/c")).unwrap(), "new");
    assert_eq!(listed(&packed(true)), ["./", "b", ".wh.gone", "a = b", "d/e/c = b"]);
    // The name by which it was changed has gone since.
    fs::remove_file(upper.join("b")).unwrap();
    put(&upper, ".wh.b", "");
    assert_eq!(listed(&packed(true)), ["./", ".wh.b", ".wh.gone", "a", "d/e/c = a"]);
    assert_eq!(others(), paths(&["/a", "/d/e/c"]));
    fs::remove_file(&key).unwrap();
    assert_eq!(listed(&packed(true)), ["./", ".wh.b", ".wh.gone"]);
    assert_eq!(others(), paths(&[]));
    assert!(Copies::open(&upper, 0).unwrap().is_none());
}
