//! Files that the kernel's overlay copied up without their data (`metacopy=on`): it
//! makes them for the machine's root only.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::lab::{Mounted, errno, sh, stat};

const NAMES: [&str; 7] = ["f", "moved", "sub/k", "here", "x/deep", "twice", "hole"];

/// What is shown of each name: owner, mode, size, times, and a sum of the content.
fn shown(root: &Path) -> Vec<String> {
    let line = |name: &&str| {
        let path = root.join(name);
        let m = stat(&path);
        let sum = sh(&format!("sha1sum <{}", path.display()));
        format!("{name} {}:{} {:o} {} {} {sum}", m.uid(), m.gid(), m.mode(), m.len(), m.mtime())
    };
    NAMES.iter().map(line).collect()
}

/// Mounts the kernel's overlay on `k`.
fn kernel(lowers: &str, upper: &str) {
    sh(&format!("mkdir -p {upper} {upper}.w k"));
    let layers = format!("lowerdir={lowers},upperdir={upper},workdir={upper}.w");
    sh(&format!("mount -t overlay overlay -o {layers},metacopy=on,redirect_dir=on k"));
}

pub(crate) fn files_without_data() {
    sh("mkdir -p l/d l/sub l/dir; for n in f d/g sub/k here dir/deep twice; do
        printf 'the data of %s' $n >l/$n; done
        truncate -s 1M l/hole; printf tail >>l/hole; touch -d '2001-02-03 UTC' l/*");
    kernel("l", "u1");
    // By its own name, by another in its directory, from the root, below a renamed
    // directory, with two names.
    sh("cd k; chown 5:6 f; mv d/g moved; chmod 600 sub/k; mv here there; mv there here; chown 7 here
        mv dir x; chown 8 x/deep hole; chmod 640 twice; ln twice too");
    let first = shown(Path::new("k"));
    sh("umount k; test $(stat -c %b u1/f) = 0");
    // And once more on top of these.
    kernel("u1:l", "u2");
    sh("cd k; chgrp 9 f moved x/deep; mv sub/k sub/k2; mv sub/k2 sub/k");
    let second = shown(Path::new("k"));
    sh("umount k");
    // As lowers: everything is read, and what is changed is copied up whole.
    sh("mkdir u w");
    let options = "lowerdir=u2:u1:l,upperdir=u,workdir=w,redirect_dir=on";
    {
        let union = Mounted::new(options, "m");
        assert_eq!(shown(&union.0), second);
        let mut f = OpenOptions::new().append(true).open(union.path("f")).unwrap();
        f.write_all(b"+").unwrap();
        sh("mv m/moved m/x/deep2; chmod 604 m/twice; cp m/hole m/hole2");
        assert_eq!(sh("cat m/f m/x/deep2 m/too"), "the data of f+the data of d/gthe data of twice");
    }
    assert_eq!(sh("cat u/f u/x/deep2 u/twice"), "the data of f+the data of d/gthe data of twice");
    assert_eq!(stat("u/f").uid(), 5);
    // As the upper: read as they are, and given their data by the first change.
    for (lowers, upper, want) in [("l", "u1", &first), ("u1:l", "u2", &second)] {
        let options =
            format!("lowerdir={lowers},upperdir={upper},workdir={upper}.w,redirect_dir=on");
        sh(&format!("cp -a {upper} saved"));
        {
            let union = Mounted::new(&options, "m");
            assert_eq!(&shown(&union.0), want);
            assert_eq!(sh(&format!("stat -c %b {upper}/f")), "0", "reading changes nothing");
            // Through one handle before and after.
            let f = OpenOptions::new().read(true).write(true).open(union.path("f")).unwrap();
            let mut start = [0; 8];
            f.read_exact_at(&mut start, 0).unwrap();
            f.write_all_at(b"DATA", 4).unwrap();
            f.read_exact_at(&mut start, 0).unwrap();
            assert_eq!(&start, b"the DATA");
            sh("mv m/moved m/sub/moved; truncate -s 4 m/x/deep; ln m/sub/k m/k3");
            fs::write(union.path("f"), "the data of f").unwrap();
            sh("touch -d '2001-02-03 UTC' m/f m/x/deep; mv m/sub/moved m/moved");
        }
        sh(&format!("getfattr -d -m overlay.metacopy {upper}/f {upper}/k3 >said; test ! -s said"));
        let check = |root: &Path| {
            assert_eq!(
                sh(&format!("cat {}/x/deep {}/k3", root.display(), root.display())),
                "the the data of sub/k"
            );
            for (is, was) in shown(root).iter().zip(want).filter(|(is, _)| !is.starts_with("x/")) {
                assert_eq!(is, was);
            }
        };
        check(&Mounted::new(&options, "m").0);
        kernel(lowers, upper);
        check(Path::new("k"));
        sh(&format!("umount k; rm -rf {upper}; mv saved {upper}"));
    }
}

/// Data that is not to be followed, or not there.
pub(crate) fn data_that_is_not_there() {
    sh("mkdir l; printf data >l/f; printf data >l/g");
    kernel("l", "u1");
    sh("chown 5 k/f; umount k; mkdir u w empty");
    let layers = "lowerdir=u1:l,upperdir=u,workdir=w";
    for strict in ["redirect_dir=nofollow", "public_lower"] {
        let union = Mounted::new(&format!("{layers},{strict}"), "m");
        assert_eq!(stat(union.path("f")).len(), 4);
        assert_eq!(errno(fs::read(union.path("f"))), libc::EPERM, "{strict}");
    }
    for lowers in ["u1", "u1:empty"] {
        let union = Mounted::new(&format!("lowerdir={lowers},upperdir=u,workdir=w"), "m");
        assert_eq!(errno(fs::read(union.path("f"))), libc::EIO, "{lowers}");
        let mut f = OpenOptions::new().append(true).open(union.path("f")).unwrap();
        assert_eq!(errno(f.write_all(b"more")), libc::EIO, "{lowers}");
        assert!(File::open(union.path("f")).is_ok());
    }
    assert_eq!(fs::read_dir("w/work").unwrap().count(), 0);
    // Where it lies outside of the layers.
    sh("setfattr -n trusted.overlay.redirect -v /../secret u1/f; printf no >secret");
    let union = Mounted::new(layers, "m");
    assert_eq!(errno(fs::read(union.path("f"))), libc::EINVAL);
}

/// Read through a handle that was opened before the name went, by removal or rename.
pub(crate) fn data_outlives_the_name() {
    sh("mkdir -p l/d; for n in f d/g d/h here; do printf 'the data of %s' $n >l/$n; done");
    kernel("l", "u1");
    sh("cd k; chown 5 f d/g here; mv d/h d/i; cd ..; umount k; printf new >u1/new");
    let union = Mounted::new("lowerdir=l,upperdir=u1,workdir=u1.w,redirect_dir=on", "m");
    let names = ["f", "d/g", "d/i", "here"];
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(union.path(name));
    // Nothing has read them yet: where the data is, is found out afterwards.
    let files = names.map(|name| open(name).unwrap());
    sh("rm m/f m/d/g; mv m/new m/here; rm -r m/d");
    for (file, was) in files.iter().zip(["f", "d/g", "d/h", "here"]) {
        let want = format!("the data of {was}");
        let mut read = vec![0; want.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), want);
        file.write_all_at(b"THE", 0).unwrap();
        let mut read = [0; 8];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"THE data");
    }
    assert_eq!(sh("cat m/here"), "new");
}

/// What lies below a directory that hides it is nobody's data, unless it is named from
/// the root; and data of another size is not that of the file.
pub(crate) fn data_below_what_hides_it() {
    sh("mkdir -p l/d; printf data >l/d/f; printf data >l/g");
    kernel("l", "u1");
    sh("chown 5 k/d/f k/g; umount k; mkdir u w; setfattr -n trusted.overlay.opaque -v y u1/d");
    let layers = ["lowerdir=u1:l,upperdir=u,workdir=w", "lowerdir=l,upperdir=u1,workdir=w"];
    for options in layers {
        let union = Mounted::new(options, "m");
        assert_eq!(errno(fs::read(union.path("d/f"))), libc::EIO, "{options}");
        assert_eq!(fs::read(union.path("g")).unwrap(), b"data");
        sh("rm -rf u/* w/*");
    }
    sh("setfattr -n trusted.overlay.redirect -v /d/f u1/d/f");
    for options in layers {
        assert_eq!(fs::read(Mounted::new(options, "m").path("d/f")).unwrap(), b"data");
    }
    sh("printf longer >l/g");
    let union = Mounted::new(layers[1], "m");
    let write = OpenOptions::new().append(true).open(union.path("g")).unwrap().write_all(b"+");
    assert_eq!(errno(write), libc::ESTALE);
    assert_eq!(sh("stat -c '%s %b' u1/g"), "4 0");
}
