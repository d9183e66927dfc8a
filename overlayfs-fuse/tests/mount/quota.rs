//! `upper_quota`: ENOSPC at the bound and not before, and space that comes back.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::lab::{Mounted, errno, layers, program, sh, stat};

const BLOCK: u64 = 4096;

/// What the regular files of the upper take, each once.
fn taken() -> u64 {
    sh("find upper work/links.coracle -type f -printf '%D:%i %b\\n' | sort -u | awk '{n += $2} END {print n * 512}'")
        .parse()
        .unwrap_or(0)
}

/// Free bytes and bytes in all, as statfs(2) tells.
fn space(union: &Mounted) -> (u64, u64) {
    let s = nix::sys::statvfs::statvfs(&union.0).unwrap();
    assert_eq!(s.blocks_free(), s.blocks_available());
    (s.blocks_free() * s.fragment_size(), s.blocks() * s.fragment_size())
}

fn bytes(blocks: u64) -> Vec<u8> {
    vec![7; usize::try_from(blocks * BLOCK).unwrap()]
}

/// What is free, by three accounts: statfs, what disk says, and how much fits.
fn check(union: &Mounted, limit: u64) -> u64 {
    let (free, all) = space(union);
    assert_eq!((free, all), (limit - taken(), limit));
    free / BLOCK
}

pub(crate) fn space_is_bounded() {
    const LIMIT: u64 = 100 * BLOCK;
    let options = format!("{},upper_quota=400K", layers());
    fs::write("lower/f", bytes(30)).unwrap();
    fs::write("lower/g", bytes(80)).unwrap();
    fs::write("lower/link", bytes(10)).unwrap();
    sh("ln lower/link lower/link2; truncate -s 64M lower/sparse; printf x >>lower/sparse");
    fs::write("upper/there", bytes(5)).unwrap();
    sh("ln upper/there upper/there2");
    let union = Mounted::new(&options, "union");
    assert_eq!(check(&union, LIMIT), 95);
    // What only reads or has no data takes nothing.
    sh("cat union/f >/dev/null; mkdir union/d; touch union/d/e; ln -s x union/d/l; rm union/d/e");
    fs::File::create(union.path("big")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(check(&union, LIMIT), 95);
    // Copy-up counts, and one that does not fit fails and leaves nothing.
    OpenOptions::new().append(true).open(union.path("f")).unwrap().write_all(b"x").unwrap();
    assert_eq!(check(&union, LIMIT), 64);
    let g = OpenOptions::new().append(true).open(union.path("g")).unwrap();
    assert_eq!(errno((&g).write(b"x")), libc::ENOSPC);
    drop(g);
    assert_eq!(check(&union, LIMIT), 64);
    assert_eq!(stat(union.path("g")).len(), 80 * BLOCK);
    // Shortened first, it fits.
    OpenOptions::new().write(true).open(union.path("g")).unwrap().set_len(4 * BLOCK).unwrap();
    assert_eq!(check(&union, LIMIT), 60);
    // A sparse file takes its data only; a hard link nothing, also in the index.
    sh("printf y >>union/sparse; printf z >>union/link; ln union/link2 union/link3; rm union/link");
    assert_eq!(check(&union, LIMIT), 60 - 1 - 11);
    // A write that does not fit whole is short; then there is nothing left.
    let file = File::create(union.path("fill")).unwrap();
    let mut n = 0;
    let error = loop {
        match file.write_at(&bytes(32), n) {
            Ok(done) => n += done as u64,
            Err(e) => break e,
        }
    };
    assert_eq!((error.raw_os_error(), n), (Some(libc::ENOSPC), 48 * BLOCK));
    assert_eq!(check(&union, LIMIT), 0);
    // What has its blocks can be overwritten, moved, punched and removed.
    file.write_all_at(&bytes(48), 0).unwrap();
    assert_eq!(errno(file.write_at(b"x", 48 * BLOCK)), libc::ENOSPC);
    assert_eq!(errno(fs::write(union.path("new"), b"x")), libc::ENOSPC);
    assert_eq!(
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 30).unwrap_err(),
        nix::errno::Errno::ENOSPC
    );
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, 0, 8 * BLOCK as i64).unwrap();
    assert_eq!(check(&union, LIMIT), 8);
    fallocate(&file, FallocateFlags::empty(), 0, 8 * BLOCK as i64).unwrap();
    assert_eq!(check(&union, LIMIT), 0);
    // Allocated and not written: it is there all the same.
    file.write_all_at(&bytes(8), 0).unwrap();
    file.set_len(20 * BLOCK).unwrap();
    assert_eq!(check(&union, LIMIT), 28);
    // Removed while open: gone with the last use.
    let g = File::open(union.path("g")).unwrap();
    fs::remove_file(union.path("g")).unwrap();
    assert_eq!(space(&union).0, 28 * BLOCK);
    drop(g);
    fs::remove_file(union.path("fill")).unwrap();
    // The kernel tells that a file is not used any more, and waits for nothing.
    let comes_to = |free: u64| (0..100_000).any(|_| space(&union).0 == free * BLOCK);
    assert!(comes_to(32));
    drop(file);
    assert!(comes_to(52));
    assert_eq!(check(&union, LIMIT), 52);
    // A nameless file, dropped and named; one replaced by a rename.
    let nameless = |n: u64| {
        let f =
            OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&union.0).unwrap();
        f.write_all_at(&bytes(n), 0).unwrap();
        f
    };
    drop(nameless(10));
    assert!(comes_to(52));
    assert_eq!(check(&union, LIMIT), 52);
    let f = nameless(10);
    nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        format!("/proc/self/fd/{}", f.as_raw_fd()).as_str(),
        nix::fcntl::AT_FDCWD,
        &union.path("named"),
        nix::unistd::LinkatFlags::AT_SYMLINK_FOLLOW,
    )
    .unwrap();
    drop(f);
    assert_eq!(check(&union, LIMIT), 42);
    fs::rename(union.path("named"), union.path("f")).unwrap();
    assert!(comes_to(42 + 31));
    assert_eq!(check(&union, LIMIT), 42 + 31);
    // copy_file_range.
    let (from, to) =
        (File::open(union.path("f")).unwrap(), File::create(union.path("copy")).unwrap());
    nix::fcntl::copy_file_range(&from, None, &to, None, 10 * 4096).unwrap();
    assert_eq!(check(&union, LIMIT), 63);
    drop((from, to, union));
    let union = Mounted::new(&options, "union");
    assert_eq!(check(&union, LIMIT), 63);
    drop(union);
    // A bound below what there is: nothing more can be added, all can be removed.
    let union = Mounted::new(&format!("{},upper_quota=8K", layers()), "union");
    assert_eq!(space(&union), (0, 2 * BLOCK));
    assert_eq!(errno(fs::write(union.path("more"), b"x")), libc::ENOSPC);
    OpenOptions::new().write(true).open(union.path("f")).unwrap().write_all(b"over").unwrap();
    // Space of what was removed a moment ago is there.
    sh("rm -r union/*; printf x >union/more");
    assert!((0..100_000).any(|_| space(&union).0 == BLOCK));
}

/// What is written through a mapping is handed over by the kernel, which takes any success
/// for all of it: that a part found no room is told by msync(2).
pub(crate) fn mappings_are_bounded() {
    const LIMIT: u64 = 100 * BLOCK;
    let union = Mounted::new(&format!("{},upper_quota=400K", layers()), "union");
    File::create(union.path("sparse")).unwrap().set_len(200 * BLOCK).unwrap();
    let script = "import errno, mmap\nf = open('union/sparse', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n\
                  m[:] = b'm' * len(m)\n\
                  try: m.flush()\nexcept OSError as e: print(errno.errorcode[e.errno])";
    let out = Command::new("python3").args(["-c", script]).output().unwrap();
    assert_eq!(crate::lab::text(&out), "ENOSPC\n");
    assert_eq!(check(&union, LIMIT), 0);
    assert_eq!(stat("upper/sparse").len(), 200 * BLOCK);
}

/// Many writers at once: the bound holds at every moment, and what they got is what
/// there was.
pub(crate) fn bounded_for_many_at_once() {
    let options = layers();
    for n in 0..8 {
        fs::write(format!("lower/f{n}"), bytes(3)).unwrap();
    }
    sh("mkdir m");
    let out = Command::new(program())
        .args(["--upper-quota", "2M", "-o", &options, "m"])
        .status()
        .unwrap();
    assert!(out.success());
    let union = Mounted(fs::canonicalize("m").unwrap());
    const LIMIT: u64 = 512 * BLOCK;
    for round in 0..5 {
        // At first there is room for a copy of each, however late its thread is.
        let all_have_written = std::sync::Barrier::new(8);
        let written: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let path = union.path(&format!("f{n}"));
                    let all_have_written = &all_have_written;
                    scope.spawn(move || {
                        let mut file = OpenOptions::new().append(true).open(path).unwrap();
                        let mut written = 0;
                        if round == 0 {
                            file.write_all(&bytes(1)).unwrap();
                            written = BLOCK;
                            all_have_written.wait();
                        }
                        loop {
                            match (&file).write(&bytes(1 + (n + written / BLOCK) % 9)) {
                                Ok(n) => written += n as u64,
                                Err(e) => {
                                    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
                                    break written;
                                }
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        // All of it was given away, to the last block.
        assert_eq!((taken(), space(&union).0), (LIMIT, 0), "round {round}");
        if round == 0 {
            assert_eq!(written, LIMIT - 8 * 3 * BLOCK);
        }
        sh(&format!("rm m/f{round}; truncate -s 12K m/f7"));
        fs::write(union.path(&format!("f{round}")), b"").unwrap();
        assert!((0..100_000).any(|_| space(&union).0 == LIMIT - taken()));
    }
}

/// A file of the upper is given its data (the kernel's overlay had copied it up without):
/// what does not fit the bound is not begun, and what the disk has no room for counts as
/// far as it came. It takes root, as the kernel makes such files for nobody else.
pub(crate) fn a_copy_that_does_not_end_counts() {
    sh("mkdir l disk k m; mount -t tmpfs -o size=700k disk disk; mkdir disk/u disk/w");
    fs::write("l/f", bytes(64)).unwrap();
    let layers = "lowerdir=l,upperdir=disk/u,workdir=disk/w";
    sh(&format!(
        "mount -t overlay overlay -o {layers},metacopy=on,redirect_dir=on k; chmod 640 k/f
         umount k; test $(stat -c %b disk/u/f) = 0"
    ));
    let used = || sh("find disk/u -type f -printf '%b\n' | awk '{n += $1} END {print n * 512}'");
    let used = || used().parse::<u64>().unwrap();
    let append = |union: &Mounted| {
        let mut file = OpenOptions::new().append(true).open(union.path("f")).unwrap();
        file.write_all(b"x")
    };
    {
        let union = Mounted::new(&format!("{layers},upper_quota=100K"), "m");
        assert_eq!(errno(append(&union)), libc::ENOSPC);
        assert_eq!((used(), space(&union).0), (0, 100 << 10));
    }
    // 175 blocks, of which 60 are left: fewer than the copy takes, and than may be taken.
    const LIMIT: u64 = 75 * BLOCK;
    fs::write("disk/filler", bytes(115)).unwrap();
    let union = Mounted::new(&format!("{layers},upper_quota=300K"), "m");
    assert_eq!(errno(append(&union)), libc::ENOSPC);
    fs::remove_file("disk/filler").unwrap();
    assert!(used() > 50 * BLOCK, "nothing of it was written");
    assert_eq!(space(&union).0, LIMIT - used());
    append(&union).unwrap();
    assert_eq!(stat(union.path("f")).len(), 64 * BLOCK + 1);
    assert_eq!((used(), space(&union).0), (65 * BLOCK, LIMIT - 65 * BLOCK));
}
