use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::write::Writer;
use super::*;

fn file(name: &[u8], size: u64) -> Member {
    Member {
        name: name.to_vec(),
        link: Vec::new(),
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size,
        xattrs: Vec::new(),
        parts: if size > 0 { vec![Part { offset: 0, length: size }] } else { Vec::new() },
    }
}

fn archive(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (member, data) in members {
        writer.header(member).unwrap();
        writer.data(data).unwrap();
        writer.pad(data.len() as u64).unwrap();
    }
    writer.finish().unwrap()
}

fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut data = Vec::new();
        let mut buffer = [0; 300];
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                count => data.extend(&buffer[..count]),
            }
        }
        all.push((member, data));
    }
    Ok(all)
}

/// What GNU tar makes of a directory.
fn gnu(dir: &std::path::Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn gnu_tars_sparse_members_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let mut sparse = std::fs::File::create(dir.path().join("s")).unwrap();
    let mut want = vec![0; 3 << 20];
    // Enough parts that the old format needs a block for more of them.
    use std::os::unix::fs::FileExt as _;
    for part in 0..30 {
        let at = 65536 * part;
        sparse.write_all_at(b"data", at).unwrap();
        want[at as usize..][..4].copy_from_slice(b"data");
    }
    sparse.set_len(want.len() as u64).unwrap();
    sparse.flush().unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let bytes = gnu(dir.path(), &[&["-cS"], format, &["-f", "-", "s"]].concat());
        assert!(bytes.len() < want.len() / 2, "{format:?} is not sparse");
        let all = read_all(&bytes).unwrap();
        let [(member, data)] = &all[..] else { panic!("{all:?}") };
        assert_eq!((member.name.as_slice(), member.size), (&b"s"[..], want.len() as u64));
        let mut is = vec![0; want.len()];
        let mut data = &data[..];
        for part in &member.parts {
            let (now, rest) = data.split_at(part.length as usize);
            is[part.offset as usize..][..now.len()].copy_from_slice(now);
            data = rest;
        }
        assert!(is == want, "{format:?}");
    }
}

#[test]
fn gnu_tars_long_names() {
    let dir = tempfile::tempdir().unwrap();
    let name = "n".repeat(200);
    std::fs::write(dir.path().join(&name), "x").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), dir.path().join("l")).unwrap();
    for format in ["gnu", "pax"] {
        let format = format!("--format={format}");
        let all = read_all(&gnu(dir.path(), &["-c", &format, "-f", "-", &name, "l"])).unwrap();
        assert_eq!(all[0].0.name, name.as_bytes());
        assert_eq!(all[1].0.link, "t".repeat(150).as_bytes());
        assert_eq!(all[0].1, b"x");
    }
}

#[test]
fn gnu_tar_reads_what_is_written() {
    let deep = [b"d/".repeat(90), b"name".to_vec()].concat();
    let members = [
        (
            Member { mtime: Time { seconds: 7, nanoseconds: 5 }, ..file(&deep, 5) },
            b"12345".to_vec(),
        ),
        (Member { kind: Kind::HardLink, link: deep.clone(), ..file(b"h", 0) }, Vec::new()),
    ];
    let mut tar = Command::new("tar")
        .args(["-tvf", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&archive(&members)).unwrap();
    let mut listed = String::new();
    tar.stdout.take().unwrap().read_to_string(&mut listed).unwrap();
    assert!(tar.wait().unwrap().success());
    let deep = String::from_utf8(deep).unwrap();
    assert!(listed.contains(&format!(" {deep}\n")), "{listed}");
    assert!(listed.contains(&format!("h link to {deep}\n")), "{listed}");
}

#[test]
fn every_cut_is_noticed() {
    let bytes = archive(&[(file(b"a", 700), vec![7; 700]), (file(&[b'n'; 150], 0), Vec::new())]);
    for end in 1..bytes.len() - 1024 {
        let all = read_all(&bytes[..end]);
        // Where the data of a member end the archive may end, padding or not.
        let border = (512 + 700..=512 + 1024).contains(&end);
        assert_eq!(all.is_ok(), border, "{end}");
    }
}

#[test]
fn a_sparse_map_that_lies_is_refused() {
    let size = 10;
    let map = |parts: &[(u64, u64)], stored| {
        let mut parts: Vec<Part> =
            parts.iter().map(|&(offset, length)| Part { offset, length }).collect();
        check_parts(&mut parts, size, stored).map(|()| parts.len())
    };
    assert_eq!(map(&[(0, 2), (5, 0), (8, 2)], 4), Ok(2));
    for (parts, stored) in [
        (&[(0, 11)][..], 11),
        (&[(5, 2), (0, 2)], 4),
        (&[(0, 3), (2, 3)], 6),
        (&[(0, 2)], 3),
        (&[(0, 2)], 1),
        (&[(u64::MAX, 2)], 2),
        (&[(1, u64::MAX)], 2),
    ] {
        assert!(map(parts, stored).is_err(), "{parts:?}");
    }
}

#[test]
fn sizes_beyond_eleven_digits() {
    let member = file(b"big", 20 << 30);
    let bytes = archive(&[(member.clone(), Vec::new())]);
    let mut reader = Reader::new(&bytes[..]);
    assert_eq!(reader.next_member().unwrap(), Some(member));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        name in prop::collection::vec(1u8.., 1..300),
        link in prop::collection::vec(1u8.., 1..300),
        mode in 0u32..0o10000,
        uid in 0u64..1 << 32,
        gid in 0u64..1 << 32,
        seconds in -10_000_000_000i64..100_000_000_000,
        nanoseconds in 0u32..1_000_000_000,
        data in prop::collection::vec(any::<u8>(), 0..2000),
        xattr in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        // A name that ends in a slash is a directory's.
        prop_assume!(!name.ends_with(b"/"));
        let mut member = file(&name, data.len() as u64);
        member = Member {
            link, mode, uid, gid, mtime: Time { seconds, nanoseconds },
            xattrs: vec![(b"user.x".to_vec(), xattr)], ..member
        };
        let all = [(member, data)];
        prop_assert_eq!(&read_all(&archive(&all)).unwrap()[..], &all[..]);
    }

    #[test]
    fn any_bytes_are_survived(mut bytes: Vec<u8>, flips in prop::collection::vec((0usize..3000, any::<u8>()), 0..20)) {
        drop(read_all(&bytes));
        let member = Member { xattrs: vec![(b"user.a".to_vec(), vec![1; 9])], ..file(&[b'n'; 120], 30) };
        bytes.truncate(30);
        bytes.resize(30, 0);
        let mut whole = archive(&[(member, bytes)]);
        for (at, value) in flips {
            let length = whole.len();
            whole[at % length] = value;
        }
        drop(read_all(&whole));
    }
}
