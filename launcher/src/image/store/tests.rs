use super::*;

fn images() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(dir.path()).unwrap();
    (dir, images)
}

fn single() -> IdMap {
    IdMap::of_caller(1, 1, None, "", "")
}

fn entry(n: u8, names: &[&str]) -> Entry {
    Entry {
        manifest: Digest::of(&[n]),
        id: Digest::of(&[n, n]),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        size: 1,
        imported: 1,
    }
}

fn in_tmp(images: &Images) -> Vec<String> {
    let items = fs::read_dir(images.tmp()).unwrap();
    let names = items.map(|item| item.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".lock")).collect()
}

#[test]
fn a_blob_that_is_something_else_is_not_kept() {
    let (_dir, images) = images();
    let wanted = Descriptor::new("", Digest::of(b"right"), 5);
    for wrong in [&b"wrong"[..], b"", b"righ", b"right and more"] {
        assert!(images.fetch(&wanted, wrong).is_err());
        assert!(!images.has(&wanted) && in_tmp(&images).is_empty());
    }
    images.fetch(&wanted, &b"right"[..]).unwrap();
    assert!(images.has(&wanted));
}

#[test]
fn a_layer_that_fails_is_not_kept() {
    let (_dir, images) = images();
    let diff_id = Digest::of(b"layer");
    let fails = |dir: &Path| {
        fs::write(dir.join("half"), "x").unwrap();
        Err(malformed("layer", "broken"))
    };
    assert!(images.unpacked(&diff_id, &single(), fails).is_err());
    assert!(!images.layer(&diff_id, &single()).exists() && in_tmp(&images).is_empty());
    // What somebody left who died is in nobody's way.
    let work = images.tmp().join(layer_name(&diff_id, &single())).join("fs");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("old"), "x").unwrap();
    let done = images.unpacked(&diff_id, &single(), |dir| {
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        Ok(Report::default())
    });
    assert_eq!(done.unwrap(), Some(Report::default()));
    let again = images.unpacked(&diff_id, &single(), |_| panic!("it is there"));
    assert_eq!(again.unwrap(), None);
    let more = IdMap::of_caller(1, 1, None, "1:10:10", "1:10:10");
    assert_ne!(images.layer(&diff_id, &single()), images.layer(&diff_id, &more));
}

#[test]
fn what_the_dead_left_is_swept_and_what_the_living_write_is_not() {
    let (_dir, images) = images();
    let live = images.fresh().unwrap();
    fs::write(images.tmp().join("blob-dead"), "x").unwrap();
    fs::create_dir(images.tmp().join("dead.single")).unwrap();
    fs::write(images.tmp().join("dead.single.lock"), "").unwrap();
    images.sweep().unwrap();
    let name = live.path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(in_tmp(&images), [name]);
}

#[test]
fn a_name_is_an_images_alone() {
    let (_dir, images) = images();
    images.add(entry(1, &["localhost/a:latest", "localhost/b:latest"])).unwrap();
    images.add(entry(2, &["localhost/a:latest"])).unwrap();
    let names: Vec<_> = images.list().unwrap().into_iter().map(|entry| entry.names).collect();
    assert_eq!(names, [vec!["localhost/b:latest"], vec!["localhost/a:latest"]]);
}

#[test]
fn images_are_found_by_name_digest_and_id() {
    let (_dir, images) = images();
    images.add(entry(1, &["localhost/a:latest"])).unwrap();
    images.add(entry(2, &["r.io/x/a:latest", "r.io/x/b:1"])).unwrap();
    images.add(entry(3, &["q.io/x/b:1"])).unwrap();
    let find = |wanted: &str| images.find(wanted).map(|found| found.manifest);
    let is = |n: u8| Digest::of(&[n]);
    // What was made here goes first; of others no guess is made.
    assert_eq!(find("a").unwrap(), is(1));
    assert_eq!(find("x/a").unwrap(), is(2));
    assert!(matches!(find("b:1"), Err(ImageError::Ambiguous { .. })));
    assert_eq!(find("q.io/x/b:1").unwrap(), is(3));
    // The same image from an archive that has a manifest of its own.
    images.add(Entry { manifest: is(9), ..entry(2, &["localhost/again:latest"]) }).unwrap();
    let id = Digest::of(&[2, 2]);
    for wanted in [id.to_string(), id.hex().to_owned(), id.short().to_owned(), is(2).to_string()] {
        assert_eq!(find(&wanted).unwrap(), is(2), "{wanted}");
    }
    for wanted in ["c", "a:1", "", "zz", &"0".repeat(12)] {
        assert!(matches!(find(wanted), Err(ImageError::Unknown(_))), "{wanted}");
    }
}

#[test]
fn what_a_container_stands_on_is_not_collected() {
    let (dir, images) = images();
    let layer = Digest::of(b"layer");
    let config = format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":["{layer}"]}},"architecture":"","os":""}}"#
    );
    let config = images.keep("", config.as_bytes()).unwrap();
    let blob = images.keep(manifest::media::LAYER, b"a layer").unwrap();
    let text = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    let kept = images.keep("", text.to_string().as_bytes()).unwrap();
    images.unpacked(&layer, &single(), |_| Ok(Report::default())).unwrap();
    let entry = Entry {
        manifest: kept.digest,
        id: config.digest,
        names: vec!["localhost/a:latest".to_owned()],
        size: 0,
        imported: 0,
    };
    images.add(entry.clone()).unwrap();
    let image = images.read(entry.clone()).unwrap();
    let container = dir.path().join("containers/c");
    fs::create_dir_all(&container).unwrap();
    images.use_by(&container, &image).unwrap();
    assert_eq!(images.collect().unwrap(), Removed::default());
    let untag = |all: &mut Vec<Entry>| {
        all[0].names.clear();
        Ok(())
    };
    images.change(untag).unwrap();
    // What cannot be read may speak of anything: nothing goes until it can, or is gone.
    let note = container.join("image");
    let kept = fs::read(&note).unwrap();
    for odd in [&b"{"[..], b"", b"{\"image\":\"sha256:0\",\"layers\":[]}"] {
        fs::write(&note, odd).unwrap();
        let error = images.collect().unwrap_err().to_string();
        assert!(error.contains(note.to_str().unwrap()), "{error}");
        assert!(images.users(&entry.id).is_err());
        assert!(images.lowers(&image, &single()).is_some() && images.list().unwrap().len() == 1);
    }
    fs::remove_file(&note).unwrap();
    fs::create_dir(&note).unwrap();
    assert!(images.collect().is_err());
    fs::remove_dir(&note).unwrap();
    fs::write(&note, kept).unwrap();
    assert_eq!(images.users(&entry.id).unwrap(), ["c"]);
    assert_eq!(images.collect().unwrap(), Removed::default());
    fs::remove_dir_all(&container).unwrap();
    assert_eq!(images.collect().unwrap(), Removed { images: 1, blobs: 3, layers: 1 });
    assert!(images.lowers(&image, &single()).is_none());
}
