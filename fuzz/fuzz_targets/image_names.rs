//! An archive of members with such names and links, unpacked beside a directory in which
//! nothing may change.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use launcher::idmap::IdMap;
use launcher::image::tar::write::Writer;
use launcher::image::tar::{Kind, Member, Time};
use launcher::image::unpack::{Limits, unpack};
use libfuzzer_sys::fuzz_target;

/// In memory, where there is such a place: a directory for each run.
fn place() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let above = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let place = above.join(format!("coracle-fuzz-{}", std::process::id()));
        fs::create_dir_all(place.join("outside")).expect("a directory can be made");
        fs::write(place.join("outside/secret"), "secret").expect("a file can be written");
        place
    })
}

/// A line each: a letter for the kind, a name, and after a tab what a link leads to. `@`
/// stands for the directory outside.
fn members(text: &[u8]) -> Vec<(Member, &[u8])> {
    let outside = place().join("outside").display().to_string();
    let named = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).replace('@', &outside);
        text.replace('\0', "").into_bytes()
    };
    let lines = text.split(|byte| *byte == b'\n').take(40);
    let member = |line: &'_ [u8]| {
        let (kind, rest) = line.split_first()?;
        let mut words = rest.splitn(2, |byte| *byte == b'\t');
        let (name, more) = (words.next()?, words.next().unwrap_or_default());
        let kind = match kind % 8 {
            0..=2 => Kind::File,
            3 => Kind::Symlink,
            4 => Kind::HardLink,
            5 => Kind::Directory,
            6 => Kind::Fifo,
            _ => Kind::CharDevice,
        };
        let size = if kind == Kind::File { more.len() as u64 } else { 0 };
        Some(Member {
            name: named(name),
            link: named(more),
            kind,
            mode: 0o6755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size,
            xattrs: Vec::new(),
            parts: Vec::new(),
        })
    };
    lines
        .filter_map(|line| {
            let data = line.splitn(2, |byte| *byte == b'\t').nth(1).unwrap_or_default();
            Some((member(line)?, data))
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let place = place();
    let root = place.join("root");
    drop(fs::remove_dir_all(&root));
    fs::create_dir(&root).expect("a directory can be made");
    let mut writer = Writer::new(Vec::new());
    for (member, data) in members(data) {
        if writer.header(&member).is_ok() && member.kind == Kind::File {
            writer.data(data).expect("memory takes all");
            writer.pad(member.size).expect("memory takes all");
        }
    }
    let archive = writer.finish().expect("memory takes all");
    let map = IdMap::of_caller(1000, 1000, None, "", "");
    let limits = Limits { bytes: 1 << 16, members: 100, names: 1 << 16 };
    drop(unpack(&archive[..], &root, &map, limits));
    let names: Vec<_> = fs::read_dir(place.join("outside"))
        .expect("it is there")
        .map(|item| item.expect("it can be read").file_name())
        .collect();
    assert_eq!(names, ["secret"], "something was made outside");
    let secret = place.join("outside/secret");
    assert_eq!(fs::read(&secret).expect("it is there"), b"secret", "it was changed outside");
    let meta = fs::metadata(&secret).expect("it is there");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1, "it was linked to");
    let mut above: Vec<_> = fs::read_dir(place)
        .expect("it is there")
        .map(|item| item.expect("it can be read").file_name())
        .collect();
    above.sort();
    assert_eq!(above, ["outside", "root"], "something was made above");
});
