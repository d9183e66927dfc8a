//! `writeback`: the kernel keeps what is written, and loses nothing of it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Whence, lseek};

use crate::lab::{Mounted, errno, layers, mode, sh, stat, text, times};
use crate::rings::{counter, requests, start};

/// Small writes are gathered where that is asked for, but not below a quota, which is to
/// be told with the write. By close(2) all of it has reached the upper.
pub(crate) fn small_writes_are_gathered() {
    const LINES: u64 = 1000;
    let options = layers();
    for (more, gathered) in [
        ("", false),
        (",writeback=0", false),
        (",writeback", true),
        (",writeback=1", true),
        (",writeback=1,upper_quota=64M", false),
    ] {
        let mut server = start(&format!("{options}{more}"), "");
        let mut file = OpenOptions::new().append(true).create_new(true).open("m/new").unwrap();
        let mut all = String::new();
        for n in 0..LINES {
            let line = format!("line {n}\n");
            file.write_all(line.as_bytes()).unwrap();
            all += &line;
        }
        // The flusher may have come by, not between most of them.
        let writes = requests(&server, "write");
        assert_eq!(writes < LINES / 2, gathered, "{more}: {writes}");
        assert_eq!(stat("m/new").len(), all.len() as u64, "{more}");
        assert_eq!(fs::read_to_string("m/new").unwrap(), all, "{more}");
        drop(file);
        assert_eq!(fs::read_to_string("upper/new").unwrap(), all, "{more}");
        assert_eq!(times("upper/new"), times("m/new"), "{more}");
        fs::remove_file("m/new").unwrap();
        sh("umount m");
        assert!(server.0.wait().unwrap().success());
    }
}

/// The time that a file shows while it is written is the one that it has at the next mount.
pub(crate) fn times_are_the_kernels() {
    let options = layers() + ",writeback";
    sh(
        "echo lower >lower/f; ln lower/f lower/g; touch -d @1000000000.5 lower/f; echo x >lower/old",
    );
    let union = Mounted::new(&options, "union");
    // Handed over in parts; the clocks of kernel and upper tick in between now and then.
    for n in 0..500 {
        let mut file = File::create(union.path("new")).unwrap();
        for part in 0..3 {
            file.write_all(b"part").unwrap();
            if part < 2 {
                file.sync_data().unwrap();
            }
        }
        if n % 2 == 0 {
            file.set_len(5).unwrap();
        }
        drop(file);
        assert_eq!(times(union.path("new")), times("upper/new"), "{n}");
    }
    // Set while there is something to be written, which must not change it after that.
    let early = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    for name in ["new", "old"] {
        let mut file = OpenOptions::new().append(true).open(union.path(name)).unwrap();
        file.write_all(b"more").unwrap();
        file.set_modified(early).unwrap();
        drop(file);
        assert_eq!(times(union.path(name)), (1_234_567_890, 123_456_789));
        assert_eq!(times(format!("upper/{name}")), (1_234_567_890, 123_456_789));
    }
    // Two names of a lower, one file: copied up by what is handed over, renamed before that.
    let mut file = OpenOptions::new().append(true).open(union.path("f")).unwrap();
    file.write_all(b"+").unwrap();
    assert_eq!(fs::read_to_string(union.path("g")).unwrap(), "lower\n+");
    fs::rename(union.path("f"), union.path("renamed")).unwrap();
    assert_eq!(stat(union.path("g")).len(), 7);
    file.write_all(b"+").unwrap();
    drop(file);
    let shown = times(union.path("g"));
    assert_ne!(shown, (1_000_000_000, 500_000_000));
    drop(union);
    let union = Mounted::new(&options, "union");
    for name in ["g", "renamed"] {
        assert_eq!(fs::read_to_string(union.path(name)).unwrap(), "lower\n++");
        assert_eq!((times(union.path(name)), stat(union.path(name)).nlink()), (shown, 2));
    }
    assert_eq!(fs::read_to_string("lower/f").unwrap(), "lower\n");
}

/// That a file of a lower was removed or linked, which changes its `ctime`, copies nothing.
pub(crate) fn removal_copies_nothing() {
    let options = layers() + ",writeback";
    sh("for n in $(seq 20); do echo $n >lower/f$n; done; ln lower/f1 lower/g1");
    let mut server = start(&options, "");
    let mut open = File::open("m/f2").unwrap();
    sh("cat m/* >/dev/null; rm m/f*");
    assert_eq!(counter(&server, "copy_ups"), 0);
    assert_eq!(stat("m/g1").nlink(), 1);
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!((content.as_str(), open.metadata().unwrap().nlink()), ("2\n", 0));
    drop(open);
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
}

/// What has not been handed over is a hole in the upper, and data for who looks for it.
pub(crate) fn what_is_not_written_yet_is_no_hole() {
    let options = layers() + ",writeback";
    fs::write("lower/f", vec![b'a'; 4096]).unwrap();
    File::options().write(true).open("lower/f").unwrap().set_len(1 << 20).unwrap();
    let union = Mounted::new(&options, "union");
    for name in ["f", "new"] {
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(true).open(union.path(name)).unwrap();
        file.write_all_at(b"data", 500_000).unwrap();
        let at = lseek(&file, 500_000, Whence::SeekData).unwrap();
        assert_eq!(at, 500_000, "{name}");
        assert!(lseek(&file, 500_000, Whence::SeekHole).unwrap() >= 500_004, "{name}");
        let size = i64::try_from(file.metadata().unwrap().len()).unwrap();
        assert_eq!(lseek(&file, size, Whence::SeekData), Err(nix::errno::Errno::ENXIO), "{name}");
        // cp(1) goes by it.
        sh(&format!("cp union/{name} copy; cmp union/{name} copy"));
    }
}

/// An upper that is full is told by fsync(2), and else by close(2).
pub(crate) fn a_full_upper_is_told() {
    sh("mkdir lower small; mount -t tmpfs -o size=1m t small; mkdir small/u small/w
        head -c 4M /dev/zero | tr '\\0' z >lower/big; head -c 600K /dev/zero >small/taken");
    let options = "lowerdir=lower,upperdir=small/u,workdir=small/w,writeback";
    let union = Mounted::new(options, "union");
    let overfill = |name: &str| {
        let mut open = OpenOptions::new();
        let mut file = open.append(true).create(true).open(union.path(name)).unwrap();
        // It need not fail before it is handed over, all at once: some of that has room.
        let told = (0..200).find_map(|_| file.write_all(&[b'x'; 4096]).err());
        assert!(told.is_none_or(|e| e.raw_os_error() == Some(libc::ENOSPC)), "{name}");
        file
    };
    for name in ["synced", "big"] {
        let file = overfill(name);
        assert_eq!(errno(file.sync_all()), libc::ENOSPC, "{name}");
        drop(file);
        fs::remove_file(union.path(name)).unwrap();
    }
    let file = overfill("closed").into_raw_fd();
    assert_eq!(nix::unistd::close(file), Err(nix::errno::Errno::ENOSPC));
    // Who makes room can go on, once the kernel has said that nobody has the file any more.
    fs::remove_file(union.path("closed")).unwrap();
    let free = || nix::sys::statvfs::statvfs("small").unwrap().blocks_free();
    while free() < 50 {
        std::thread::yield_now();
    }
    fs::write(union.path("fits"), vec![b'y'; 50_000]).unwrap();
    assert!(fs::read("small/u/fits").unwrap() == vec![b'y'; 50_000]);
}

/// What was synced is in the upper, what was mapped as well; the mode loses its set-id bits
/// with the write, and the file its capabilities.
pub(crate) fn what_reaches_the_upper_when() {
    let options = layers() + ",writeback";
    fs::write("lower/f", vec![b'a'; 20_000]).unwrap();
    fs::write("lower/secret", "lower").unwrap();
    sh("cp /bin/true lower/set; chmod 6755 lower/set; chmod 200 lower/secret
        cp /bin/true lower/able
        setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 lower/able");
    let union = Mounted::new(&options, "union");
    let mut file = OpenOptions::new().append(true).open(union.path("f")).unwrap();
    file.write_all(b"end").unwrap();
    file.sync_data().unwrap();
    assert_eq!(&fs::read("upper/f").unwrap()[19_999..], b"aend");
    file.write_all(b"!").unwrap();
    sh("sync -f union");
    assert_eq!(&fs::read("upper/f").unwrap()[19_999..], b"aend!");
    // Written only: the kernel reads the page that a part of is written.
    let mut secret = OpenOptions::new().write(true).open(union.path("secret")).unwrap();
    secret.seek(SeekFrom::Start(2)).unwrap();
    secret.write_all(b"W").unwrap();
    drop(secret);
    assert_eq!(fs::read_to_string("upper/secret").unwrap(), "loWer");
    let mut made = OpenOptions::new();
    let made = made.write(true).create_new(true).mode(0o200).open(union.path("made")).unwrap();
    made.write_all_at(b"12", 0).unwrap();
    made.sync_all().unwrap();
    made.write_all_at(b"x", 1).unwrap();
    drop(made);
    assert_eq!(fs::read_to_string("upper/made").unwrap(), "1x");
    // By somebody who has no say over set-id bits and capabilities.
    for (name, more) in [("set", "chmod 6777"), ("able", "chmod 777")] {
        sh(&format!("{more} union/{name}"));
        let out = Command::new("setpriv")
            .args(["--reuid", "5", "--regid", "5", "--clear-groups", "sh", "-ec"])
            .arg(format!("exec 3>>union/{name}; echo x >&3; echo y >&3"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert_eq!((mode(union.path(name)), mode(format!("upper/{name}"))), (0o777, 0o777));
        let length = stat("lower/set").len() + 4;
        assert_eq!(
            (stat(union.path(name)).len(), stat(format!("upper/{name}")).len()),
            (length, length)
        );
    }
    sh("getfattr -n security.capability lower/able
        for f in union/able upper/able; do
        if getfattr -n security.capability $f; then exit 1; fi; done");
}

/// However a mount ends, it takes along what was written to a file that is still open.
pub(crate) fn every_end_writes_out() {
    let options = layers() + ",writeback";
    sh("echo old >lower/f");
    let data = vec![b'd'; 300_000];
    let mut want = b"old\n".to_vec();
    for end in ["SIGTERM", "lazy", "renamed", "removed", "killed"] {
        let mut server = start(&options, "");
        let mut file = OpenOptions::new().append(true).open("m/f").unwrap();
        file.write_all(&data).unwrap();
        want.extend_from_slice(&data);
        match end {
            "SIGTERM" => {
                kill(Pid::from_raw(server.0.id().cast_signed()), Signal::SIGTERM).unwrap();
                assert!(server.0.wait().unwrap().success());
                drop(file);
            }
            "lazy" => {
                sh("umount -l m");
                file.write_all(b"more").unwrap();
                want.extend_from_slice(b"more");
                drop(file);
                assert!(server.0.wait().unwrap().success());
            }
            "renamed" => {
                sh("mv m/f m/g; mv m/g m/f");
                drop(file);
                sh("umount m");
                assert!(server.0.wait().unwrap().success());
            }
            "removed" => {
                sh("cp m/f m/kept; rm m/f");
                let mut all = Vec::new();
                file.write_all(b"gone").unwrap();
                File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
                    .unwrap()
                    .read_to_end(&mut all)
                    .unwrap();
                assert_eq!(all, [&want[..], b"gone"].concat());
                drop(file);
                sh("mv m/kept m/f; umount m");
                assert!(server.0.wait().unwrap().success());
            }
            _ => {
                // What was synced stays.
                file.sync_data().unwrap();
                server.0.kill().unwrap();
                server.0.wait().unwrap();
                drop(file);
                sh("umount m");
            }
        }
        sh("! grep -q ' /mnt/m ' /proc/mounts");
        assert!(fs::read("upper/f").unwrap() == want, "{end}");
    }
    assert_eq!(fs::read_to_string("lower/f").unwrap(), "old\n");
    assert_eq!(fs::metadata("upper/f").unwrap().nlink(), 1);
}
