//! Files that the kernel reads by itself: as the machine's root, without an upper.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Mounted, errno, layers, program, sh, skip, text};
use crate::rings::{GONE, Server, counter, requests, start};

const OPTIONS: &str = "lowerdir=top:lower,passthrough=on";

/// Ends the case where the kernel is older than this, or was made without it; one that does
/// not say how it was made is taken to have it.
fn take_passthrough() {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let made =
        sh("zcat /proc/config.gz 2>/dev/null || cat /boot/config-$(uname -r) 2>/dev/null || true");
    if version < (6, 9) || !made.is_empty() && !made.contains("CONFIG_FUSE_PASSTHROUGH=y") {
        skip(&format!("the kernel ({release}) has no FUSE passthrough"));
    }
}

/// Two layers with files of all sizes, no two pages alike, and a program.
fn tree() -> Vec<u8> {
    fs::create_dir_all("top").unwrap();
    layers();
    let data: Vec<u8> = (0..1_300_001u32).flat_map(u32::to_le_bytes).collect();
    fs::write("lower/large", &data).unwrap();
    sh("mkdir lower/d top/d; for n in $(seq 200); do echo $n >lower/d/$n; done; echo top >top/d/7
        : >lower/empty; truncate -s 10M lower/hole; ln lower/large lower/again; cp /bin/true lower/true");
    data
}

/// As long as somebody has not heard of what was closed.
fn until_all_are_closed(server: &Server) {
    while counter(server, "passthrough.files") > 0 {
        thread::yield_now();
    }
}

/// What is read, mapped and executed is right, and no READ is made for it; whatever is
/// closed is given back.
pub(crate) fn the_kernel_reads_by_itself() {
    take_passthrough();
    let data = tree();
    let before = sh("cd lower; stat -c '%n %s %y %z' *; cd ../top; stat -c '%n %y %z' *");
    let mut server = start(OPTIONS, "");
    for _ in 0..2 {
        assert!(fs::read("m/large").unwrap() == data);
        assert!(fs::read("m/again").unwrap() == data);
        sh("for n in $(seq 200); do test $n = 7 || test $(cat m/d/$n) = $n; done
            test $(cat m/d/7) = top; test ! -s m/empty; cmp -n 10485760 m/hole /dev/zero; m/true");
    }
    // Several have it open, in part after others have closed it; a mapping needs none.
    let (one, mut other) = (File::open("m/large").unwrap(), File::open("m/again").unwrap());
    let mapped = sh("python3 -c '
import mmap
with open(\"m/large\", \"rb\") as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
print(int.from_bytes(m[400000:400004], \"little\"), len(m))'");
    assert_eq!(mapped, format!("100000 {}", data.len()));
    let mut at = [0; 8];
    one.read_exact_at(&mut at, 4_000_000).unwrap();
    assert!(at == data[4_000_000..][..8]);
    drop(one);
    let mut rest = Vec::new();
    other.read_to_end(&mut rest).unwrap();
    assert!(rest == data);
    assert_eq!(counter(&server, "passthrough.files"), 1);
    drop(other);
    until_all_are_closed(&server);
    assert_eq!(requests(&server, "read"), 0);
    assert!(requests(&server, "open") >= 400);
    let after = sh("cd lower; stat -c '%n %s %y %z' *; cd ../top; stat -c '%n %y %z' *");
    assert_eq!(before, after);
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
}

/// Also on a mount that was made writable a lower is not written, nor by the kernel itself.
pub(crate) fn nothing_is_written() {
    take_passthrough();
    let data = tree();
    let union = Mounted::new(OPTIONS, "m");
    let open = |name: &str| OpenOptions::new().write(true).open(union.path(name));
    assert_eq!(errno(open("large")), libc::EROFS);
    sh("mount -i -o remount,rw m");
    for name in ["large", "d/7", "empty"] {
        assert_eq!(errno(open(name)), libc::EROFS);
        let both = OpenOptions::new().read(true).append(true).open(union.path(name));
        assert_eq!(errno(both), libc::EROFS);
    }
    assert_eq!(errno(File::create(union.path("new"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(union.path("large"))), libc::EROFS);
    assert_eq!(
        errno(OpenOptions::new().write(true).truncate(true).open(union.path("d/7"))),
        libc::EROFS
    );
    assert!(fs::read("lower/large").unwrap() == data);
    assert_eq!(fs::read_to_string("top/d/7").unwrap(), "top\n");
}

/// Many open and close the same files at once: how a file is read must fit whoever has it
/// open, whatever has been heard of those who closed it.
pub(crate) fn opened_by_many_at_once() {
    take_passthrough();
    let data = tree();
    let mut server = start(OPTIONS, "");
    thread::scope(|scope| {
        for of in 0..4usize {
            let data = &data;
            scope.spawn(move || {
                for n in 0..1500 {
                    let file = File::open(if n % 3 == of % 3 { "m/large" } else { "m/again" });
                    let mut at = [0; 16];
                    let offset = (n * 4096 + of) % (data.len() - 16);
                    file.unwrap().read_exact_at(&mut at, offset as u64).unwrap();
                    assert!(at == data[offset..][..16]);
                    let small = fs::read_to_string(format!("m/d/{}", n % 5 + 1)).unwrap();
                    assert_eq!(small.trim(), (n % 5 + 1).to_string());
                }
            });
        }
    });
    until_all_are_closed(&server);
    assert_eq!(requests(&server, "read"), 0);
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
}

/// What the kernel cannot read by itself goes through the server, and what stands on the
/// mount works.
pub(crate) fn above_and_below_other_stacks() {
    take_passthrough();
    let data = tree();
    sh("mkdir stack up1 wk1 up2 wk2 above
        mount -t overlay low -o lowerdir=lower,upperdir=up1,workdir=wk1 stack");
    let mut server = start("lowerdir=stack:top,passthrough=on", "");
    assert!(fs::read("m/large").unwrap() == data);
    assert!(requests(&server, "read") > 0);
    until_all_are_closed(&server);
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
    // Only now nobody has a file of it open.
    sh("umount stack");
    let _union = Mounted::new(OPTIONS, "m");
    sh("mount -t overlay top -o lowerdir=m,upperdir=up2,workdir=wk2 above
        cmp above/large lower/large; echo more >>above/large; cmp -s above/large lower/large && exit 1
        cmp m/large lower/large; umount above");
}

/// Whoever has a file open goes on reading when the server is gone; nobody hangs.
pub(crate) fn readers_outlive_the_server() {
    take_passthrough();
    let data = tree();
    let mut server = start(OPTIONS, "");
    let file = File::open("m/large").unwrap();
    kill(Pid::from_raw(server.0.id().cast_signed()), Signal::SIGKILL).unwrap();
    server.0.wait().unwrap();
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 4_000_000).unwrap();
    assert!(at == data[4_000_000..][..8]);
    assert!(GONE.contains(&errno(File::open("m/again"))));
    drop(file);
    sh("umount m");
}

/// Without the privilege it is said, and read as ever, without a request more.
pub(crate) fn refused_without_privilege() {
    let data = tree();
    fs::create_dir("union").unwrap();
    let asked = format!("{OPTIONS},stats=stats");
    let out = Command::new(program()).args(["-o", &asked, "union"]).output().unwrap();
    assert!(out.status.success() && text(&out).contains("warning: passthrough"), "{}", text(&out));
    drop(Mounted(fs::canonicalize("union").unwrap()));
    let mut server = start(OPTIONS, "");
    assert!(fs::read("m/large").unwrap() == data);
    sh("cat m/d/* >all; test $(wc -l <all) = 200");
    assert!(requests(&server, "read") >= 200);
    assert_eq!(requests(&server, "open"), 1);
    assert_eq!(fs::metadata("m/large").unwrap().nlink(), 2);
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
}
