//! As on a plain file: suites made by others, and what they leave out.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::lab::{Mounted, layers, program, sh, skip};

/// The POSIX conformance suite of the crate pjdfstest, as root of the namespace.
///
/// Excluded are the variants on devices: `char` makes device 0:0, which is a
/// whiteout to an overlay, and `block` takes the machine's privilege.
///
/// The suite itself leaves out what is FreeBSD's alone (chflags, birth times, NFSv4's
/// ACLs), and skips the greatest number of links, which no file system tells, and EROFS
/// after a remount: mount(8) leaves that to mount.fuse, which cannot do it. EROFS is
/// tested by `corners`.
pub(crate) fn pjdfstest() {
    let suite = program().with_file_name("pjdfstest");
    if !suite.exists() {
        return skip("pjdfstest is not installed: cargo install pjdfstest");
    }
    let options = layers();
    sh("(cat /etc/passwd; echo tests:x:2001:2001::/:/bin/sh) >passwd; mount --bind passwd /etc/passwd
        (cat /etc/group; echo tests:x:2001:) >group; mount --bind group /etc/group");
    // The upper's clock ticks every 4 ms at worst.
    let settings = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\n\
                    utime_now = {}\nsecondary_fs = \"/mnt/plain\"\n\
                    [settings]\nnaptime = 0.02\n\
                    [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n";
    fs::write("settings", settings).unwrap();
    fs::create_dir("plain").unwrap();
    let union = Mounted::new(&options, "union");
    let out = Command::new(suite).args(["-c", "settings", "-p"]).arg(&union.0).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let with = |result: &str| -> Vec<&str> {
        said.lines()
            .filter(|l| l.split_whitespace().nth(1) == Some(result))
            .filter_map(|l| l.split_whitespace().next())
            .collect()
    };
    let failed: Vec<_> = with("FAILED")
        .into_iter()
        .filter(|t| !t.ends_with("char") && !t.ends_with("block"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let known = |name: &&str| name.contains("::erofs_") || *name == "link::link_count_max";
    let skipped: Vec<_> = with("skipped").into_iter().filter(|name| !known(name)).collect();
    assert!(skipped.is_empty(), "skipped, and nobody knows why: {skipped:?}");
    assert!(with("ok").len() > 250, "{}", crate::lab::text(&out));
}

/// The file system exerciser of the crate fsx: random operations on one file, every
/// read checked. On a new file, on one of a lower that the first change copies up, and
/// below a quota that it just fits into. `CORACLE_FSX_OPERATIONS` says how many (3000).
/// All of its operations are there.
pub(crate) fn fsx() {
    let suite = program().with_file_name("fsx");
    if !suite.exists() {
        return skip("fsx is not installed: cargo install fsx");
    }
    let operations = std::env::var("CORACLE_FSX_OPERATIONS").unwrap_or("3000".to_owned());
    let options = layers();
    fs::write(
        "fsx.toml",
        "[weights]\nclose_open = 1.0\ninvalidate = 1.0\nmapread = 10.0\nmapwrite = 10.0\n\
         read = 10.0\nwrite = 10.0\ntruncate = 10.0\nfsync = 1.0\nfdatasync = 1.0\n\
         posix_fallocate = 5.0\npunch_hole = 5.0\nposix_fadvise = 1.0\nsendfile = 5.0\ncopy_file_range = 5.0\n",
    )
    .unwrap();
    fs::write("lower/old", vec![b'o'; 200_000]).unwrap();
    for (name, more) in [("new", ""), ("old", ""), ("bounded", ",upper_quota=260K")] {
        sh("rm -f upper/*");
        let union = Mounted::new(&format!("{options}{more}"), "union");
        for seed in ["1", "2"] {
            let out = Command::new(&suite)
                .args(["-f", "fsx.toml", "-N", &operations, "-S", seed, "-P", "/mnt"])
                .arg(union.path(name))
                .output()
                .unwrap();
            assert!(out.status.success(), "{name} {seed}: {}", crate::lab::text(&out));
        }
        drop(union);
        if name == "old" {
            assert_eq!(fs::read("lower/old").unwrap(), vec![b'o'; 200_000]);
        }
    }
}

/// What else can be done to an open file, side by side with the upper's own file
/// system: on a file of a lower that is copied up for it.
pub(crate) fn file_operations() {
    use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
    use nix::unistd::{Whence, lseek};
    let options = layers();
    // Data, a hole, data.
    for path in ["lower/f", "plain"] {
        let file = File::create(path).unwrap();
        file.write_all_at(&vec![b'a'; 64 << 10], 0).unwrap();
        file.write_all_at(&vec![b'b'; 64 << 10], 192 << 10).unwrap();
    }
    let union = Mounted::new(&options, "union");
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (ours, plain) = (open(&union.path("f")), open(Path::new("plain")));
    let seeks = |file: &File| -> Vec<_> {
        [
            (0, Whence::SeekData),
            (0, Whence::SeekHole),
            (70_000, Whence::SeekData),
            (200_000, Whence::SeekHole),
            (1 << 20, Whence::SeekData),
            (100_000, Whence::SeekHole),
        ]
        .into_iter()
        .map(|(at, whence)| lseek(file, at, whence))
        .collect()
    };
    assert_eq!(seeks(&ours), seeks(&plain), "a hole of the lower");
    let flags = |bits: i32| FallocateFlags::from_bits_retain(bits);
    for (bits, at, len) in [
        (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 8192, 8192),
        (libc::FALLOC_FL_PUNCH_HOLE, 0, 4096),
        (libc::FALLOC_FL_ZERO_RANGE, 4096, 4096),
        (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, 300_000, 4096),
        (libc::FALLOC_FL_COLLAPSE_RANGE, 16384, 4096),
        (libc::FALLOC_FL_INSERT_RANGE, 16384, 4096),
        (0, 250_000, 20_000),
        (libc::FALLOC_FL_KEEP_SIZE, 400_000, 20_000),
    ] {
        let results = [&ours, &plain].map(|file| fallocate(file, flags(bits), at, len));
        // FUSE hands on no more than these; the rest the kernel refuses for us.
        let passed_on =
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if bits & !passed_on == 0 {
            assert_eq!(results[0], results[1], "{bits:#x}");
        } else {
            assert_eq!(results[0], Err(nix::errno::Errno::EOPNOTSUPP), "{bits:#x}");
            // Where the upper can, the plain file has changed: start over.
            assert!(results[1].is_err(), "{bits:#x}: a tmpfs has learnt it");
        }
        assert_eq!(ours.metadata().unwrap().len(), plain.metadata().unwrap().len(), "{bits:#x}");
        assert_eq!(
            ours.metadata().unwrap().blocks(),
            plain.metadata().unwrap().blocks(),
            "{bits:#x}"
        );
    }
    for file in [&ours, &plain] {
        let (mut from, mut to) = (192 << 10, 70_000);
        let n = copy_file_range(file, Some(&mut from), file, Some(&mut to), 10_000).unwrap();
        assert_eq!((n, to), (10_000, 80_000));
    }
    assert_eq!(seeks(&ours), seeks(&plain));
    assert!(fs::read(union.path("f")).unwrap() == fs::read("plain").unwrap());
    // lsattr and chattr are told that there are no such flags, and go on.
    let mut flags: libc::c_long = 0;
    assert_eq!(get_flags(&ours, &mut flags), Err(nix::errno::Errno::ENOTTY));
    assert_eq!(fs::read("lower/f").unwrap().len(), 256 << 10);
}

mod ioctls {
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
}

#[expect(unsafe_code, reason = "an ioctl that nix has no safe wrapper for")]
fn get_flags(file: &File, flags: &mut libc::c_long) -> nix::Result<()> {
    // SAFETY: FS_IOC_GETFLAGS writes at most a long through the pointer.
    unsafe { ioctls::get_flags(file.as_raw_fd(), flags) }.map(drop)
}

/// Locks of both kinds between processes, also over a copy-up; syncfs(2).
pub(crate) fn locks_and_syncing() {
    let options = layers();
    sh("echo x >lower/f; echo x >lower/g");
    let _union = Mounted::new(&options, "union");
    let script = "import fcntl, os, sys\n\
        def taken(f, call):\n\
        \x20   r, w = os.pipe()\n\
        \x20   if os.fork() == 0:\n\
        \x20       g = open(f, 'r+')\n\
        \x20       try: call(g, fcntl.LOCK_EX | fcntl.LOCK_NB); os.write(w, b'n')\n\
        \x20       except BlockingIOError: os.write(w, b'y')\n\
        \x20       os._exit(0)\n\
        \x20   os.wait(); return os.read(r, 1) == b'y'\n\
        for name, call in (('union/f', fcntl.flock), ('union/g', fcntl.lockf)):\n\
        \x20   f = open(name, 'r+'); call(f, fcntl.LOCK_EX)\n\
        \x20   assert taken(name, call), name\n\
        \x20   f.write('changed'); f.flush()\n\
        \x20   assert taken(name, call), name + ' after copy-up'\n\
        \x20   call(f, fcntl.LOCK_UN)\n\
        \x20   assert not taken(name, call), name + ' after unlocking'\n";
    let out = Command::new("python3").args(["-c", script]).output().unwrap();
    assert!(out.status.success(), "{}", crate::lab::text(&out));
    sh("sync -f union; sync union/f; sync -d union/g; sync union");
    assert_eq!(sh("cat upper/f"), "changed");
}
