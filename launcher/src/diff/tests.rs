use super::*;
use std::os::unix::fs::{PermissionsExt as _, symlink};

struct Layers {
    _dir: tempfile::TempDir,
    upper: PathBuf,
    lower: Lower,
}

fn layers() -> Layers {
    let dir = tempfile::tempdir().unwrap();
    let (upper, root) = (dir.path().join("upper"), dir.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&root).unwrap();
    let lower = Lower { layers: vec![root], hidden: BTreeSet::new(), public: false };
    Layers { _dir: dir, upper, lower }
}

impl Layers {
    fn put(&self, root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    fn up(&self, path: &str) {
        self.put(&self.upper, path);
    }
    fn low(&self, path: &str) {
        self.put(&self.lower.layers[0], path);
    }
    fn seen(&self, made: &[&str]) -> Vec<String> {
        let made = made.iter().map(PathBuf::from).collect();
        let changes = changes(&self.upper, &self.lower, &made).unwrap();
        assert_eq!(decode(&encode(&changes)).unwrap(), changes);
        changes.iter().map(|c| format!("{} {}", c.kind, c.path.display())).collect()
    }
}

#[test]
fn what_the_lower_has_is_changed_the_rest_added() {
    let layers = layers();
    layers.low("etc/passwd");
    layers.up("etc/passwd");
    layers.up("etc/new");
    layers.up("opt/a/b");
    let want = ["C /etc", "A /etc/new", "C /etc/passwd", "A /opt", "A /opt/a", "A /opt/a/b"];
    assert_eq!(layers.seen(&[]), want);
}

#[test]
fn other_names_of_what_was_changed_are_changed() {
    let layers = layers();
    layers.low("d/one");
    layers.low("e/x/two");
    layers.up("d/one");
    layers.up("d-new");
    let mut all = changes(&layers.upper, &layers.lower, &BTreeSet::new()).unwrap();
    add_other_names(&mut all, &["/d/zero".into(), "/e/x/two".into(), "/d/one".into()]);
    let all: Vec<_> = all.iter().map(|c| format!("{} {}", c.kind, c.path.display())).collect();
    let want = ["C /d", "C /d/one", "C /d/zero", "A /d-new", "C /e", "C /e/x", "C /e/x/two"];
    assert_eq!(all, want);
}

#[test]
fn nothing_changed() {
    let layers = layers();
    layers.low("etc/passwd");
    assert!(layers.seen(&[]).is_empty());
}

#[test]
fn whiteouts_are_deletions_of_what_was_there() {
    let layers = layers();
    layers.low("d/gone");
    layers.low("d/kept");
    layers.up("d/.wh.gone");
    layers.up("d/.wh.never-was");
    layers.up("d/.wh..wh.plnk");
    assert_eq!(layers.seen(&[]), ["C /d", "D /d/gone"]);
}

#[test]
fn an_opaque_directory_deletes_what_it_lacks() {
    let layers = layers();
    layers.low("d/gone");
    layers.low("d/again");
    layers.low("d/sub/deep");
    layers.up("d/.wh..wh..opq");
    layers.up("d/again");
    layers.up("d/sub/new");
    let want = ["C /d", "C /d/again", "D /d/gone", "C /d/sub", "A /d/sub/new"];
    assert_eq!(layers.seen(&[]), want);
}

#[test]
fn links_lead_nowhere() {
    let layers = layers();
    layers.low("real/file");
    symlink("real", layers.lower.layers[0].join("dir")).unwrap();
    symlink("/etc", layers.upper.join("link")).unwrap();
    layers.up("dir/file");
    assert_eq!(layers.seen(&[]), ["C /dir", "A /dir/file", "A /link"]);
}

#[test]
fn what_the_container_did_not_see_is_added() {
    let mut layers = layers();
    layers.low("tmp/x");
    layers.low("secret");
    layers.low("closed/x");
    layers.low("open/x");
    let chmod = |path: &str, mode| {
        let path = layers.lower.layers[0].join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod("secret", 0o600);
    chmod("closed", 0o750);
    for path in ["tmp/x", "secret", "closed/x", "open/x"] {
        layers.up(path);
    }
    layers.lower.hidden.insert("/tmp".into());
    layers.lower.public = true;
    let want =
        ["C /closed", "A /closed/x", "C /open", "C /open/x", "A /secret", "C /tmp", "A /tmp/x"];
    assert_eq!(layers.seen(&[]), want);
}

#[test]
fn mount_points_made_for_the_container_are_not_its_changes() {
    let layers = layers();
    layers.low("etc/passwd");
    fs::create_dir_all(layers.upper.join("mnt/deep")).unwrap();
    fs::create_dir_all(layers.upper.join("proc")).unwrap();
    fs::create_dir_all(layers.upper.join("etc")).unwrap();
    fs::write(layers.upper.join("etc/hosts"), b"").unwrap();
    let made = ["/mnt/deep", "/proc", "/etc/hosts"];
    assert!(layers.seen(&made).is_empty());
    layers.up("mnt/own");
    layers.up("etc/passwd");
    assert_eq!(layers.seen(&made), ["C /etc", "C /etc/passwd", "A /mnt", "A /mnt/own"]);
}

#[test]
fn an_upper_that_cannot_be_read_is_told() {
    let layers = layers();
    let gone = layers.upper.join("gone");
    let why = changes(&gone, &layers.lower, &BTreeSet::new()).unwrap_err();
    assert!(why.contains("gone"), "{why}");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
        if let Some(changes) = decode(&bytes) {
            proptest::prop_assert_eq!(encode(&changes), bytes);
        }
    }
}

#[test]
fn several_lowers_are_merged() {
    let mut layers = layers();
    let base = layers.lower.layers[0].with_file_name("base");
    fs::create_dir(&base).unwrap();
    layers.lower.layers.push(base.clone());
    layers.put(&base, "d/base");
    layers.put(&base, "d/hidden");
    layers.put(&base, "f/x");
    layers.low("d/top");
    layers.low("d/.wh.hidden");
    layers.low("f");
    for name in ["d/base", "d/top", "d/hidden"] {
        layers.up(name);
    }
    layers.up("f");
    assert_eq!(layers.seen(&[]), ["C /d", "C /d/base", "A /d/hidden", "C /d/top", "C /f"]);
    // An opaque directory in the upper hides what all of them have.
    layers.up("d/.wh..wh..opq");
    fs::remove_file(layers.upper.join("d/base")).unwrap();
    let seen = layers.seen(&[]);
    assert!(seen.contains(&"D /d/base".to_owned()), "{seen:?}");
    assert!(seen.contains(&"A /d/hidden".to_owned()), "{seen:?}");
}
