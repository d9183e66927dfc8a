//! Names of one file, and the index that keeps them together across copy-up.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::lab::{Mounted, errno, layers, sh, stat};

pub(crate) fn hard_links_are_one_inode() {
    let options = layers();
    sh("cd lower; printf 1 >a; ln a b; ln a c; mkdir d; ln a d/e");
    let union = Mounted::new(&options, "union");
    assert_eq!(stat(union.path("a")).nlink(), 4);
    sh("printf 2 >>union/a");
    let check = |union: &Mounted, names: &[&str], content: &str| {
        let ino = stat(union.path(names[0])).ino();
        for name in names {
            let s = stat(union.path(name));
            assert_eq!((s.ino(), s.nlink()), (ino, names.len() as u64), "{name}");
            assert_eq!(fs::read_to_string(union.path(name)).unwrap(), content, "{name}");
        }
    };
    check(&union, &["a", "b", "c", "d/e"], "12");
    drop(union);
    // The others were never copied, and yet are the same file.
    let union = Mounted::new(&options, "union");
    check(&union, &["a", "b", "c", "d/e"], "12");
    sh("printf 3 >>union/d/e; rm union/a; mv union/b union/b2; ln union/c union/f");
    check(&union, &["b2", "c", "d/e", "f"], "123");
    drop(union);
    let union = Mounted::new(&options, "union");
    check(&union, &["b2", "c", "d/e", "f"], "123");
    sh("rm union/b2 union/c union/f");
    check(&union, &["d/e"], "123");
    sh("rm union/d/e");
    assert_eq!(fs::read_dir("work/links.coracle").unwrap().count(), 0);
    drop(union);
    // Names removed before anything was copied up: nothing is, and yet it is known,
    // also when the kernel has forgotten the file.
    sh("printf 1 >lower/p; ln lower/p lower/q; ln lower/p lower/r; ln lower/p lower/s");
    let union = Mounted::new(&options, "union");
    sh("rm union/p");
    check(&union, &["q", "r", "s"], "1");
    assert!(stat("upper/p").file_type().is_char_device());
    drop(union);
    let union = Mounted::new(&options, "union");
    check(&union, &["q", "r", "s"], "1");
    sh("rm union/q; printf 2 >>union/r");
    check(&union, &["r", "s"], "12");
    drop(union);
    let union = Mounted::new(&options, "union");
    check(&union, &["r", "s"], "12");
    sh("rm union/r union/s");
    assert_eq!(fs::read_dir("work/links.coracle").unwrap().count(), 0);
}

/// Where copies came from, and the index, in an upper that somebody else has written:
/// what makes no sense says nothing, and nobody falls over it.
pub(crate) fn remembered_may_be_anything() {
    let options = layers();
    sh("cd lower; echo f >f; ln f g; ln f h; echo p >p; ln p q; mkdir d
        cd ../upper; for n in 1 2 3 4 5 6; do echo $n >x$n; done");
    drop(Mounted::new(&options, "union"));
    let (f, p) = (stat("lower/f").ino(), stat("lower/p").ino());
    let own = format!("0:{p}");
    for (name, origin, delta) in [
        ("x1", "18446744073709551615:5", "1"),
        ("x2", "0:18446744073709551615", "9223372036854775807"),
        ("x3", "-1:-1", "-9223372036854775808"),
        ("x4", "65535:1", "x"),
        ("x5", own.as_str(), "9223372036854775807"),
        ("x6", own.as_str(), "-2147483648"),
    ] {
        for (key, value) in [("origin", origin), ("nlink", delta)] {
            sh(&format!("setfattr -n user.overlay.coracle.{key} -v '{value}' upper/{name}"));
        }
    }
    sh(&format!("ln -s -- -9223372036854775808 work/links.coracle/0-{f:x}.lost"));
    // The number is a file's, the entry is none.
    sh(&format!("mkfifo work/links.coracle/0-{p:x}; ln upper/x6 upper/x7"));
    let all = || {
        let union = Mounted::new(&options, "union");
        for n in 1..7 {
            let name = format!("x{n}");
            assert_eq!(fs::read_to_string(union.path(&name)).unwrap(), format!("{n}\n"));
            assert_eq!(stat(union.path(&name)).nlink(), if n == 6 { 2 } else { 1 });
        }
        assert_eq!(errno(fs::metadata(union.path("p"))), libc::ESTALE);
        assert_eq!(stat(union.path("f")).nlink(), 3);
        sh("rm union/f; echo more >>union/g; test $(stat -c %h union/h) = 2; ls -l union/d");
    };
    all();
    // And once more on what that has left.
    sh("rm -rf upper/f upper/g upper/h work/links.coracle/0-*; rm -f work/links.coracle/i*");
    sh(&format!("mkfifo work/links.coracle/0-{p:x}"));
    all();
}

/// The index refuses a note (something else has its place): who removes is told so, and
/// nothing of it stays in the work directory.
pub(crate) fn a_note_that_cannot_be_made_leaves_nothing() {
    let options = layers();
    sh("echo f >lower/f; ln lower/f lower/g");
    drop(Mounted::new(&options, "union"));
    let place = format!("work/links.coracle/0-{:x}.lost", stat("lower/f").ino());
    fs::create_dir(&place).unwrap();
    let union = Mounted::new(&options, "union");
    assert_eq!(errno(fs::remove_file(union.path("f"))), libc::EISDIR);
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
    drop(union);
    // The name is gone all the same; the next note finds its place.
    fs::remove_dir(&place).unwrap();
    let union = Mounted::new(&options, "union");
    assert_eq!(errno(fs::metadata(union.path("f"))), libc::ENOENT);
    fs::write(union.path("g"), "g").unwrap();
    assert_eq!(fs::read_to_string(union.path("g")).unwrap(), "g");
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// What can have no attributes of the user is one file all the same, and keeps its
/// inode number, by a record in the index.
pub(crate) fn links_without_attributes() {
    let options = layers();
    sh(
        "cd lower; ln -s target a; ln a b; ln a c; mkfifo -m 640 p; ln p q; ln -s alone s; mkfifo t",
    );
    let inos = |union: &Mounted, names: &[&str]| -> Vec<u64> {
        names.iter().map(|name| stat(union.path(name)).ino()).collect()
    };
    let check = |union: &Mounted, names: &[&str], uid: u32| {
        for name in names {
            let s = stat(union.path(name));
            assert_eq!((s.nlink(), s.uid()), (names.len() as u64, uid), "{name}");
            assert_eq!(s.ino(), stat(union.path(names[0])).ino(), "{name}");
        }
    };
    let union = Mounted::new(&options, "union");
    let before = inos(&union, &["a", "p", "s", "t"]);
    sh("cd union; chown -h 5 b; chown 5 q; chown -h 5 s; chown 5 t");
    let changed = |union: &Mounted| {
        for names in [&["a", "b", "c"][..], &["p", "q"], &["s"], &["t"]] {
            check(union, names, 5);
        }
        assert_eq!(inos(union, &["a", "p", "s", "t"]), before);
    };
    changed(&union);
    drop(union);
    let union = Mounted::new(&options, "union");
    changed(&union);
    sh("cd union; mv b b2; rm a; ln c d; mv s s2; mv p over; touch f; mv f over");
    let after = |union: &Mounted| {
        check(union, &["b2", "c", "d"], 5);
        check(union, &["q"], 5);
        check(union, &["s2"], 5);
        assert_eq!(inos(union, &["c", "q", "s2"]), before[..3]);
        assert_eq!(fs::read_link(union.path("b2")).unwrap().to_str(), Some("target"));
    };
    after(&union);
    drop(union);
    let union = Mounted::new(&options, "union");
    after(&union);
    sh("rm union/*");
    assert_eq!(fs::read_dir("work/links.coracle").unwrap().count(), 0);
    // The upper without its work directory: the number is another's, or nobody's.
    drop(union);
    sh("rm -r upper work; mkdir upper work");
    let union = Mounted::new(&options, "union");
    sh("chown -h 6 union/a; chown -h 6 union/s");
    drop(union);
    sh("rm -r work; mkdir work");
    let union = Mounted::new(&options, "union");
    assert_eq!((stat(union.path("a")).uid(), stat(union.path("b")).uid()), (6, 0));
    assert_eq!(stat(union.path("s")).uid(), 6);
}
