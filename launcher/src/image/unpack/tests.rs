//! Each trick of an archive, in a directory beside which something is to be
//! reached. Run with a single id, so that any user can.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::image::tar::write::Writer;

pub(super) const LIMITS: Limits = Limits { bytes: 1 << 20, members: 1000, names: 8 << 20 };

pub(super) fn single() -> IdMap {
    IdMap::of_caller(1000, 1000, None, "", "")
}

fn member(kind: Kind, name: &[u8], link: &[u8]) -> Member {
    Member {
        name: name.to_vec(),
        link: link.to_vec(),
        kind,
        mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: Time { seconds: 1_000_000_000, nanoseconds: 5 },
        size: 0,
        xattrs: Vec::new(),
        parts: Vec::new(),
    }
}

pub(super) fn dir(name: &str) -> (Member, Vec<u8>) {
    (member(Kind::Directory, name.as_bytes(), b""), Vec::new())
}

pub(super) fn file(name: &str, data: &[u8]) -> (Member, Vec<u8>) {
    let size = data.len() as u64;
    (Member { size, ..member(Kind::File, name.as_bytes(), b"") }, data.to_vec())
}

pub(super) fn link(kind: Kind, name: &str, target: &str) -> (Member, Vec<u8>) {
    (member(kind, name.as_bytes(), target.as_bytes()), Vec::new())
}

pub(super) fn archive(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (member, data) in members {
        writer.header(member).unwrap();
        writer.data(data).unwrap();
        writer.pad(data.len() as u64).unwrap();
    }
    writer.finish().unwrap()
}

/// A directory to unpack in, beside one with a file that must stay as it is.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn unpack(&self, members: &[(Member, Vec<u8>)]) -> Result<Report, String> {
        let bytes = archive(members);
        let done = unpack(&bytes[..], &self.root(), &single(), LIMITS);
        // Whatever came of it, nothing outside has changed.
        let outside = self.dir.path().join("outside");
        let names: Vec<_> =
            fs::read_dir(&outside).unwrap().map(|i| i.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
        done.map_err(|error| error.to_string())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn meta(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(name)).unwrap()
    }

    fn value(&self, name: &str, attribute: &std::ffi::CStr) -> Option<String> {
        let value = xattr::get(&self.root().join(name), attribute).unwrap();
        value.map(|value| String::from_utf8(value).unwrap())
    }
}

#[test]
fn what_an_archive_has_is_there() {
    let place = Place::new();
    let fifo = (member(Kind::Fifo, b"p", b""), Vec::new());
    let members = [
        dir("./"),
        dir("d/"),
        file("d/f", b"text"),
        link(Kind::Symlink, "l", "d/f"),
        link(Kind::HardLink, "h", "d/f"),
        fifo,
    ];
    let report = place.unpack(&members).unwrap();
    assert_eq!(report, Report { members: 6, bytes: 4, devices: 0, attributes: 0 });
    assert_eq!(place.read("d/f"), "text");
    assert_eq!(place.meta("h").ino(), place.meta("d/f").ino());
    assert_eq!(fs::read_link(place.root().join("l")).unwrap(), Path::new("d/f"));
    assert!(place.meta("p").file_type().is_fifo());
    for name in ["", "d", "d/f", "l", "p"] {
        let meta = place.meta(name);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 5), "{name}");
    }
}

#[test]
fn what_is_unpacked_again_is_the_same() {
    use crate::image::pack::{Layer, Tree, pack};
    // Directories that the archive does not have, whiteouts in them: all have
    // times that do not depend on the day.
    let members = [file("a/b/f", b"x"), file("c/d/.wh.x", b""), file("e/.wh..wh..opq", b"")];
    let packed = || {
        let place = Place::new();
        place.unpack(&members).unwrap();
        let layers = vec![Layer::open(&place.root(), false).unwrap()];
        pack(&Tree::of(layers, true, true), Vec::new()).unwrap()
    };
    let first = packed();
    assert!(first == packed());
    let place = Place::new();
    place.unpack(&members).unwrap();
    for name in ["", "a", "a/b", "c", "c/d", "e"] {
        assert_eq!(place.meta(name).mtime(), 1_000_000_000, "{name}");
    }
}

#[test]
fn names_with_dots_are_refused() {
    for name in ["../x", "a/../../x", "..", "a/..", "/../x"] {
        let error = Place::new().unpack(&[file(name, b"x")]).unwrap_err();
        assert!(error.contains("leads out"), "{name}: {error}");
    }
}

#[test]
fn absolute_names_are_taken_from_the_root() {
    let place = Place::new();
    let absolute = place.dir.path().join("outside/new").display().to_string();
    place.unpack(&[file("/etc/x", b"x"), file(&absolute, b"y")]).unwrap();
    assert_eq!(place.read("etc/x"), "x");
    assert_eq!(place.read(absolute.trim_start_matches('/')), "y");
}

#[test]
fn symlinks_lead_around_inside() {
    let place = Place::new();
    let outside = place.dir.path().join("outside").display().to_string();
    place
        .unpack(&[
            link(Kind::Symlink, "absolute", &outside),
            file("absolute/secret", b"mine"),
            link(Kind::Symlink, "relative", "../outside"),
            file("relative/secret", b"mine"),
            link(Kind::Symlink, "up", "../../../../../.."),
            file("up/secret", b"mine"),
            link(Kind::Symlink, "last", &format!("{outside}/secret")),
            file("last", b"mine"),
            link(Kind::Symlink, "magic", "/proc/self/root"),
            file("magic/x", b"mine"),
        ])
        .unwrap();
    assert_eq!(place.read("outside/secret"), "mine");
    assert_eq!(place.read("secret"), "mine");
    assert!(place.meta("last").is_file());
    assert_eq!(place.read("proc/self/root/x"), "mine");
}

#[test]
fn links_in_a_circle_are_refused() {
    let circle = [link(Kind::Symlink, "a", "b"), link(Kind::Symlink, "b", "a"), file("a/x", b"x")];
    assert!(Place::new().unpack(&circle).unwrap_err().contains("cannot be put into"));
}

#[test]
fn hard_links_stay_inside() {
    let place = Place::new();
    let secret = place.dir.path().join("outside/secret").display().to_string();
    for target in ["../outside/secret", &secret, "missing", "."] {
        let error = place.unpack(&[link(Kind::HardLink, "h", target)]).unwrap_err();
        assert!(error.contains("hard link"), "{target}: {error}");
    }
    let through = [
        link(Kind::Symlink, "way", &place.dir.path().join("outside").display().to_string()),
        link(Kind::HardLink, "h", "way/secret"),
    ];
    assert!(place.unpack(&through).is_err());
    // What a link at the end leads to is not linked: the link itself is.
    let last =
        [link(Kind::Symlink, "end", &secret), link(Kind::HardLink, "h", "end"), file("h", b"mine")];
    place.unpack(&last).unwrap();
    assert_eq!(place.read("h"), "mine");
    assert!(place.meta("end").is_symlink());
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let place = Place::new();
    place.unpack(&[file("a", b"x"), link(Kind::HardLink, "a", "a")]).unwrap();
    assert_eq!(place.read("a"), "x");
}

#[test]
fn devices_are_left_out() {
    let place = Place::new();
    let device = |kind, name: &str| (member(kind, name.as_bytes(), b""), Vec::new());
    // Character device 0:0 would be a whiteout: what is below it must stay.
    let members = [
        device(Kind::CharDevice, "null"),
        device(Kind::BlockDevice, "sda"),
        file("kept", b"x"),
        device(Kind::CharDevice, "kept"),
    ];
    let report = place.unpack(&members).unwrap();
    assert_eq!(report.devices, 3);
    assert_eq!(place.read("kept"), "x");
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 1);
}

#[test]
fn owners_and_set_id_bits_are_kept_beside_the_file() {
    let place = Place::new();
    let (mut set_id, data) = file("su", b"x");
    (set_id.mode, set_id.uid, set_id.gid) = (0o6755, 33, 34);
    let (mut plain, _) = file("plain", b"x");
    plain.mode = 0o640;
    plain.size = 1;
    place.unpack(&[(set_id, data.clone()), (plain, data)]).unwrap();
    assert_eq!(place.value("su", OWNER).as_deref(), Some("33:34:06755"));
    // On the host's disk it gives nobody anything.
    assert_eq!(place.meta("su").permissions().mode() & 0o7777, 0o755);
    assert_eq!(place.value("plain", OWNER), None);
    assert_eq!(place.meta("plain").permissions().mode() & 0o7777, 0o640);
}

#[test]
fn owners_that_are_none_are_refused() {
    for uid in [u64::from(u32::MAX), 1 << 32] {
        let (mut odd, data) = file("a", b"x");
        odd.uid = uid;
        assert!(Place::new().unpack(&[(odd, data)]).unwrap_err().contains("which is no id"));
    }
    let map = IdMap::of_caller(1000, 1000, None, "1000:100000:10\n", "1000:100000:10\n");
    let (mut far, data) = file("a", b"x");
    far.gid = 11;
    let place = Place::new();
    let error = unpack(&archive(&[(far, data)])[..], &place.root(), &map, LIMITS).unwrap_err();
    assert!(error.to_string().contains("subordinate ids"), "{error}");
}

#[test]
fn attributes_that_speak_to_the_overlay_are_left_out() {
    let place = Place::new();
    let names = [
        &b"user.overlay.redirect"[..],
        b"user.overlay.opaque",
        b"user.containers.override_stat",
        b"trusted.overlay.opaque",
        b"security.selinux",
        b"user.mine",
    ];
    let (mut with, _) = dir("d/");
    with.xattrs = names.iter().map(|name| (name.to_vec(), b"y".to_vec())).collect();
    let report = place.unpack(&[(with, Vec::new())]).unwrap();
    assert_eq!(report.attributes, 5);
    assert_eq!(place.value("d", OPAQUE), None);
    assert_eq!(place.value("d", OWNER), None);
    assert_eq!(place.value("d", c"user.mine").as_deref(), Some("y"));
}

#[test]
fn whiteouts_speak_of_the_layers_below() {
    let place = Place::new();
    place
        .unpack(&[
            file("d/.wh.gone", b""),
            file("d/.wh.file", b""),
            file("d/file", b"own"),
            dir("d/sub/"),
            file("d/sub/x", b"own"),
            file("d/.wh.sub", b""),
            file("o/.wh..wh..opq", b""),
            file("o/own", b"own"),
            file(".wh..wh.plnk", b""),
        ])
        .unwrap();
    let gone = place.meta("d/gone");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(place.read("d/file"), "own");
    assert_eq!(place.value("d/sub", OPAQUE).as_deref(), Some("y"));
    assert_eq!(place.read("d/sub/x"), "own");
    assert_eq!(place.value("o", OPAQUE).as_deref(), Some("y"));
    assert!(!place.root().join(".wh..wh.plnk").exists());
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.d/x"] {
        assert!(Place::new().unpack(&[file(name, b"")]).is_err(), "{name}");
    }
}

#[test]
fn the_last_of_several_entries_counts() {
    let place = Place::new();
    place
        .unpack(&[
            file("a", b"first"),
            file("a", b"second"),
            dir("b/"),
            file("b/x", b"x"),
            file("b", b"file now"),
            file("c", b"x"),
            dir("c/"),
            dir("d/"),
            file("d/kept", b"x"),
            dir("d/"),
            file("e", b"shared"),
            link(Kind::HardLink, "f", "e"),
            file("e", b"alone"),
        ])
        .unwrap();
    assert_eq!((place.read("a").as_str(), place.read("b").as_str()), ("second", "file now"));
    assert!(place.meta("c").is_dir());
    assert_eq!(place.read("d/kept"), "x");
    // The new one is another file: its data are not the link's.
    assert_eq!((place.read("e").as_str(), place.read("f").as_str()), ("alone", "shared"));
}

#[test]
fn a_directory_replaced_by_a_link_is_not_written_through() {
    let place = Place::new();
    let outside = place.dir.path().join("outside").display().to_string();
    // The directory is the one last written to, which may be held open.
    let members =
        [dir("d/"), file("d/a", b"x"), link(Kind::Symlink, "d", &outside), file("d/secret", b"y")];
    place.unpack(&members).unwrap();
    assert!(place.meta("d").is_symlink());
}

#[test]
fn a_file_is_no_parent_and_the_root_no_file() {
    assert!(Place::new().unpack(&[file("a", b"x"), file("a/b", b"x")]).is_err());
    assert!(Place::new().unpack(&[file("./", b"")]).is_ok(), "a name that ends in a slash");
    assert!(Place::new().unpack(&[link(Kind::Symlink, ".", "/x")]).is_err());
}

#[test]
fn bounds_hold() {
    let most = LIMITS.bytes as usize;
    assert!(Place::new().unpack(&[file("a", &vec![1; most])]).is_ok());
    let error = Place::new().unpack(&[file("a", &vec![1; most]), file("b", b"x")]).unwrap_err();
    assert!(error.contains("bytes"), "{error}");
    let many: Vec<_> = (0..=LIMITS.members).map(|n| dir(&format!("d{n}/"))).collect();
    assert!(Place::new().unpack(&many).unwrap_err().contains("members"));
    let few = Limits { names: 100, ..LIMITS };
    let name = "n".repeat(60);
    for kind in ["d/", ".wh.", "made/below/"] {
        // All of them are remembered to the end.
        let members: Vec<_> = match kind {
            "d/" => (0..4).map(|n| dir(&format!("{n}{name}/"))).collect(),
            ".wh." => (0..4).map(|n| file(&format!(".wh.{n}{name}"), b"")).collect(),
            _ => (0..4).map(|n| file(&format!("{n}{name}/f"), b"")).collect(),
        };
        let bytes = archive(&members);
        let place = Place::new();
        let error = unpack(&bytes[..], &place.root(), &single(), few).unwrap_err().to_string();
        assert!(error.contains("names"), "{kind}: {error}");
        let place = Place::new();
        unpack(&bytes[..], &place.root(), &single(), LIMITS).unwrap();
    }
    let long = "n/".repeat(2048);
    assert!(Place::new().unpack(&[dir(&long)]).unwrap_err().contains("too long"));
    assert!(Place::new().unpack(&[file(&"n".repeat(256), b"")]).is_err());
}

#[test]
fn deep_paths_are_made_and_removed() {
    let place = Place::new();
    crate::image::work::prepare();
    let deep = "n/".repeat(2047);
    place.unpack(&[dir(&deep), file("n", b"in its place")]).unwrap();
    assert_eq!(place.read("n"), "in its place");
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let big = Limits { bytes: 16 << 30, members: 10, ..LIMITS };
    // 8 GiB, of which the archive stores one byte: GNU's sparse format 1.0.
    let size = 8u64 << 30;
    let map = format!("1\n{}\n1\n", size - 1);
    let mut data = map.into_bytes();
    data.resize(512, 0);
    data.push(b'x');
    let records = [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.realsize", size.to_string()),
    ];
    let mut pax = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = rest + (rest + 2).to_string().len();
        pax.extend(format!("{length} {key}={value}\n").bytes());
    }
    let mtime = Time::default();
    let records = Member { size: pax.len() as u64, mtime, ..file("x", b"").0 };
    let mut header = archive(&[(records, pax)]);
    header.truncate(1024);
    header[156] = b'x';
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let stored = Member { size: 513, mtime, ..file("big", b"").0 };
    header.extend(archive(&[(stored, data)]));
    let report = unpack(&header[..], &place.root(), &single(), big).unwrap();
    assert_eq!(report.bytes, size);
    let meta = place.meta("big");
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let error = unpack(&header[..], &Place::new().root(), &single(), LIMITS).unwrap_err();
    assert!(error.to_string().contains("bytes"), "holes count: {error}");
}

#[test]
fn zeros_become_holes_and_nothing_else_changes() {
    let place = Place::new();
    let mut data = vec![0u8; 300 << 10];
    for at in [0, 5000, 70_000, 262_143, 262_144, 299_999] {
        data[at] = 7;
    }
    place.unpack(&[file("f", &data), file("zeros", &vec![0; 100 << 10])]).unwrap();
    assert!(fs::read(place.root().join("f")).unwrap() == data);
    assert!(place.meta("f").blocks() * 512 < 100 << 10);
    assert_eq!((place.meta("zeros").len(), place.meta("zeros").blocks()), (100 << 10, 0));
}

#[test]
fn all_of_the_stream_is_read() {
    let place = Place::new();
    let mut bytes = archive(&[file("a", b"x")]);
    bytes.extend([9; 10_000]);
    let mut input = Cursor::new(&bytes);
    unpack(&mut input, &place.root(), &single(), LIMITS).unwrap();
    assert_eq!(input.position(), bytes.len() as u64);
}

#[test]
fn what_is_cut_is_refused() {
    let bytes = archive(&[file("a", &[7; 2000])]);
    let place = Place::new();
    assert!(unpack(&bytes[..1500], &place.root(), &single(), LIMITS).is_err());
}
