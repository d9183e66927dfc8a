//! Directories that a lower has, renamed (`redirect_dir=on`).
//!
//! The kernel's overlay makes and follows redirects for the machine's root only: in
//! a user namespace it refuses `redirect_dir=on`, and a redirected directory is
//! EPERM with `userxattr` (Linux 6.18). So compatibility on disk is tested as root,
//! and what an ordinary user gets against what must come out.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::lab::{Mounted, errno, layers, sh, stat};

/// Every file below, with its content, and every directory.
fn shown(at: &str) -> String {
    sh(&format!(
        "cd {at}; find . -mindepth 1 \\( -type d -printf '%P/ ' -o -type f -printf '%P=' \
         -exec cat {{}} \\; -exec printf ' ' \\; \\) | tr ' ' '\\n' | sort | tr '\\n' ' '"
    ))
}

fn redirect(path: &str) -> String {
    sh(&format!("getfattr -n user.overlay.redirect --only-values {path}"))
}

fn exchange(a: &str, b: &str) {
    let c = |s: &str| CString::new(s).unwrap();
    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
    let cwd = nix::fcntl::AT_FDCWD;
    nix::fcntl::renameat2(cwd, c(a).as_c_str(), cwd, c(b).as_c_str(), flags).unwrap();
}

pub(crate) fn renamed_directories() {
    sh("mkdir -p l1/m/one l2/m/two/deep l2/only/sub l2/k/x l2/empty u w
        printf 1 >l1/m/f; printf 2 >l2/m/f; printf 3 >l2/m/g; printf 4 >l2/only/sub/h
        printf 5 >l2/m/two/deep/i; printf 6 >l2/k/x/j; chmod 2750 l2/only
        touch -d '2001-02-03 04:05:06.789 UTC' l2/only l2/only/sub");
    let plain = "lowerdir=l1:l2,upperdir=u,workdir=w";
    let options = format!("{plain},redirect_dir=on");
    let union = Mounted::new(&options, "union");
    let (merged, only) = (stat(union.path("m")).ino(), stat(union.path("only")).ino());
    let only_before = stat(union.path("only"));
    // Within its directory, twice; into another; what is below it; over an empty one.
    sh("cd union; mv m n; mv n o; mv only k/was; mv o/two k/two; mv -T k/two/deep empty");
    // An open directory and a working directory move along.
    sh(
        "cd union/k/was/sub; mv ../../../k ../../../kk; cat h; printf 44 >h; cd -P ..; test $(pwd -P) = /mnt/union/kk/was",
    );
    // To and fro: the old name is free again, and another directory takes it.
    sh("cd union; mkdir m; printf new >m/f; rmdir m 2>/dev/null || rm -r m; mkdir only");
    let want = "empty/ empty/i=5 kk/ kk/two/ kk/was/ kk/was/sub/ kk/was/sub/h=44 kk/x/ kk/x/j=6 \
                o/ o/f=1 o/g=3 o/one/ only/";
    assert_eq!(shown("union"), want);
    let check = |union: &Mounted| {
        assert_eq!(shown("union"), want);
        let was = stat(union.path("kk/was"));
        assert_eq!((stat(union.path("o")).ino(), was.ino()), (merged, only));
        assert_eq!((was.mode(), was.mtime()), (only_before.mode(), only_before.mtime()));
    };
    check(&union);
    drop(union);
    // A name that was never anything but the first layer's; the path is the lowers'.
    assert_eq!((redirect("u/o").as_str(), redirect("u/kk").as_str()), ("m", "k"));
    assert_eq!(
        (redirect("u/kk/was").as_str(), redirect("u/empty").as_str()),
        ("/only", "/m/two/deep")
    );
    assert_eq!(fs::read_dir("w/work").unwrap().count(), 0);
    check(&Mounted::new(&options, "union"));
    // Without the option nothing of it can be renamed further, but it is shown.
    {
        let union = Mounted::new(plain, "union");
        check(&union);
        assert_eq!(errno(fs::rename(union.path("o"), union.path("p"))), libc::EXDEV);
        sh("mv union/o union/p");
        assert_eq!(sh("cat union/p/g"), "3");
        sh("mv union/p union/o");
    }
    let union = Mounted::new(&options, "union");
    // Exchanged: two that lowers have, one and a new one, one and a file.
    sh("cd union; mkdir -p fresh; printf 7 >fresh/z; printf 8 >file");
    exchange("union/kk", "union/empty");
    exchange("union/kk", "union/fresh");
    exchange("union/empty", "union/file");
    let want = "empty=8 file/ file/two/ file/was/ file/was/sub/ file/was/sub/h=44 file/x/ \
                file/x/j=6 fresh/ fresh/i=5 kk/ kk/z=7 o/ o/f=1 o/g=3 o/one/ only/";
    assert_eq!(shown("union"), want);
    drop(union);
    let union = Mounted::new(&options, "union");
    assert_eq!(shown("union"), want);
    // Over what is not empty, below itself, and removed: as on a plain directory.
    assert_eq!(errno(fs::rename(union.path("only"), union.path("file"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(union.path("file"), union.path("file/x/y"))), libc::EINVAL);
    sh("rm -r union/file union/fresh union/o union/kk");
    assert_eq!(shown("union"), "empty=8 only/");
    drop(union);
    assert_eq!(shown(&Mounted::new(&options, "union").0.display().to_string()), "empty=8 only/");
}

pub(crate) fn what_is_not_followed() {
    let options = layers();
    sh("mkdir -p lower/private/d lower/pub outside; printf s >lower/private/d/f; chmod 700 lower/private
        ln -s /mnt/outside lower/link; printf o >outside/x; mkdir upper/in upper/out upper/up upper/via upper/none
        touch upper/in/own
        setfattr -n user.overlay.redirect -v /private/d upper/in
        setfattr -n user.overlay.redirect -v ../outside upper/out
        setfattr -n user.overlay.redirect -v /pub/../../outside upper/up
        setfattr -n user.overlay.redirect -v /link upper/via
        setfattr -n user.overlay.redirect -v /gone upper/none");
    {
        let union = Mounted::new(&options, "union");
        assert_eq!(
            sh("ls union/in union/via union/none | tr '\\n' ' '"),
            "union/in: f own  union/none:  union/via:"
        );
        for name in ["out", "up"] {
            assert_eq!(errno(fs::read_dir(union.path(name))), libc::EINVAL, "{name}");
        }
        assert_eq!(errno(File::open(union.path("via/x"))), libc::ENOENT);
        // The others are not disturbed, and all are listed.
        assert_eq!(fs::read_dir(&union.0).unwrap().count(), 8);
        // The attribute is ours: it is neither shown nor set.
        assert_eq!(sh("getfattr -d -m - union/in"), "");
        assert!(
            !Command::new("setfattr")
                .args(["-n", "user.overlay.redirect", "-v", "/x", "union/pub"])
                .status()
                .unwrap()
                .success()
        );
    }
    for strict in ["redirect_dir=nofollow", "public_lower"] {
        let union = Mounted::new(&format!("{options},{strict}"), "union");
        assert_eq!(errno(fs::read_dir(union.path("in"))), libc::EPERM, "{strict}");
        assert!(fs::read_dir(union.path("pub")).is_ok());
        let names: Vec<_> =
            fs::read_dir(&union.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.contains(&"in".into()), "{strict}: {names:?}");
    }
    // What the kernel's overlay does for an ordinary user.
    let kernel = |more: &str| {
        let out = Command::new("mount")
            .args([
                "-t",
                "overlay",
                "overlay",
                "-o",
                &format!("{options},userxattr{more}"),
                "union",
            ])
            .status()
            .unwrap();
        out.success()
    };
    assert!(!kernel(",redirect_dir=on"), "the kernel has learnt it: test compatibility here, too");
    assert!(kernel(""));
    assert_eq!(errno(fs::read_dir("union/in")), libc::EPERM);
    sh("umount union");
}

/// As root: what the kernel's overlay wrote is shown by us, and the other way round.
pub(crate) fn on_disk_as_the_kernels() {
    let mount = |kind: &str, upper: &str, at: &str| {
        sh(&format!("mkdir -p {upper} {upper}.w {at}"));
        let options =
            format!("lowerdir=l1:l2:l3,upperdir={upper},workdir={upper}.w,redirect_dir=on");
        if kind == "kernel" {
            sh(&format!("mount -t overlay overlay -o {options} {at}"));
        } else {
            sh(&format!("{} -o {options} {at}", crate::lab::program().display()));
        }
    };
    sh("mkdir -p l1 l2/a l3/a/s/t l3/b/c l3/k; printf 1 >l3/a/s/f; printf 2 >l3/a/s/t/g; printf 3 >l2/a/h
        printf 4 >l3/b/c/i");
    let renames = "cd m; mv a a2; mv a2/s k/s2; mv k/s2/t t3; mv b b2; mv b2/c b; mv a2 k/a; mkdir a; touch a/new";
    let want = "a/ a/new= b/ b/i=4 b2/ k/ k/a/ k/a/h=3 k/s2/ k/s2/f=1 t3/ t3/g=2";
    for writer in ["kernel", "ours"] {
        let upper = format!("u-{writer}");
        mount(writer, &upper, "m");
        sh(renames);
        assert_eq!(shown("m"), want, "{writer}");
        sh("umount m");
        for reader in ["kernel", "ours"] {
            mount(reader, &upper, "m");
            assert_eq!(shown("m"), want, "{reader} on what {writer} wrote");
            sh("umount m");
        }
        // As one of several lowers, under a new upper, renamed once more.
        for reader in ["kernel", "ours"] {
            sh(&format!("rm -rf l1 u-top; mv {upper} l1"));
            mount(reader, "u-top", "m");
            sh("cd m; mv k/a top; mv t3 k/t4; mv b k/b5");
            sh("umount m");
            for last in ["kernel", "ours"] {
                mount(last, "u-top", "m");
                assert_eq!(
                    shown("m"),
                    "a/ a/new= b2/ k/ k/b5/ k/b5/i=4 k/s2/ k/s2/f=1 k/t4/ k/t4/g=2 top/ top/h=3",
                    "{last} on what {reader} wrote over {writer}'s"
                );
                sh("umount m");
            }
            sh(&format!("mv l1 {upper}; rm -rf u-top.w; mkdir l1"));
        }
    }
    assert_eq!(sh("getfattr -n trusted.overlay.redirect --only-values u-ours/t3"), "/a/s/t");
}
