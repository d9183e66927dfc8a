//! One case a corner that overlays are known to get wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::process::{Command, Stdio};

use crate::lab::{Mounted, errno, layers, mode, program, sh, stat, text, times};

pub(crate) fn copy_up_keeps_everything() {
    let options = layers();
    sh("cd lower; mkfifo -m 640 fifo; printf data >file; chmod 4711 file; chown 5:6 file
        setfattr -n user.note -v hello file; touch -d '1969-12-31 23:59:58.25 UTC' file
        ln -s target link; chown -h 7:8 link; touch -hd '2001-02-03 04:05:06.789 UTC' link
        mkdir -m 2775 dir; chown :9 dir; chmod 2775 dir; touch -d '2002-03-04 UTC' dir
        truncate -s 64M sparse; printf end >>sparse; mkdir deep; touch -d '2003-04-05 UTC' deep
        mkdir deep/a; printf x >deep/a/b");
    let (file, link, dir) = (stat("lower/file"), stat("lower/link"), stat("lower/dir"));
    let union = Mounted::new(&options, "union");
    let ino_before = stat(union.path("file")).ino();

    sh("chmod 600 union/fifo; chown 1 union/fifo");
    assert!(stat(union.path("fifo")).file_type().is_fifo());
    assert_eq!((mode(union.path("fifo")), stat(union.path("fifo")).uid()), (0o600, 1));

    sh("setfattr -n user.more -v 1 union/file");
    let up = stat("upper/file");
    assert_eq!(
        (up.mode(), up.uid(), up.gid(), up.mtime(), up.mtime_nsec()),
        (file.mode(), 5, 6, file.mtime(), file.mtime_nsec())
    );
    assert_eq!(up.mtime_nsec(), 250_000_000);
    assert_eq!(sh("getfattr -n user.note --only-values union/file"), "hello");
    assert_eq!(stat(union.path("file")).ino(), ino_before, "st_ino across copy-up");

    sh("mv union/link union/moved");
    sh("touch union/dir/new");
    assert_eq!(mode("upper/dir"), 0o2775);
    assert_eq!(stat("upper/dir").gid(), dir.gid());

    sh("printf more >>union/sparse");
    assert!(stat("upper/sparse").blocks() < 1024, "{} blocks", stat("upper/sparse").blocks());
    assert_eq!(sh("tail -c 7 union/sparse"), "endmore");

    // A copy-up is no change of the directory it is in.
    let deep = times(union.path("deep"));
    sh("printf y >>union/deep/a/b");
    assert_eq!(times(union.path("deep")), deep);
    assert_eq!(times("upper/deep"), deep);
    drop(union);

    let union = Mounted::new(&options, "union");
    let moved = stat(union.path("moved"));
    assert_eq!((moved.uid(), moved.gid()), (7, 8));
    assert_eq!((moved.mtime(), moved.mtime_nsec()), (link.mtime(), link.mtime_nsec()));
    assert_eq!(stat(union.path("file")).ino(), ino_before, "st_ino across remount");
    assert_eq!(sh("getfattr -d -m - --absolute-names union/file | grep -c overlay || true"), "0");
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

pub(crate) fn removal_copies_nothing() {
    let options = layers();
    sh(
        "cd lower; head -c 20M /dev/zero | tr '\\0' x >big; cp big other; mkdir -p d/e; touch d/e/f",
    );
    let union = Mounted::new(&options, "union");
    fs::remove_file(union.path("big")).unwrap();
    assert!(stat("upper/big").file_type().is_char_device());
    assert_eq!(stat("upper/big").rdev(), 0);
    // Truncating: nothing of the 20 MiB may have been written, also not for a moment.
    let used = || sh("stat -f -c %f upper").parse::<i64>().unwrap();
    let before = used();
    let file = OpenOptions::new().write(true).truncate(true).open(union.path("other")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert!(before - used() < 16, "blocks used by truncation");
    fs::remove_dir_all(union.path("d")).unwrap();
    assert!(stat("upper/d").file_type().is_char_device());
    fs::create_dir(union.path("d")).unwrap();
    assert_eq!(fs::read_dir(union.path("d")).unwrap().count(), 0);
    assert_eq!(sh("getfattr -n user.overlay.opaque --only-values upper/d"), "y");
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// Where a file came from is an attribute, which only who may write the file can set: an
/// ordinary user's server, which has no power over permissions, copies it up all the same.
pub(crate) fn a_copy_of_what_nobody_may_write() {
    let options = layers();
    sh("cd lower; echo f >f; setfattr -n user.a -v b f; chmod 444 f; mkdir ../union");
    let out = Command::new("setpriv")
        .args(["--bounding-set", "-dac_override,-dac_read_search"])
        .arg(program())
        .args(["-o", &options, "union"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let _union = Mounted(fs::canonicalize("union").unwrap());
    sh("chmod 440 union/f; cat union/f");
    assert_eq!(mode("upper/f"), 0o440);
    assert_eq!(sh("getfattr --only-values -n user.a upper/f"), "b");
    assert!(sh("getfattr -d -m coracle upper/f").contains("origin"));
}

/// Directories that their owner, who serves, may not list: as on a plain one they can be
/// removed and replaced when they are empty. (What a lower has stays out of reach.)
pub(crate) fn directories_that_are_not_listed() {
    let options = layers();
    sh("mkdir lower/was; touch lower/was/a");
    let make = "mkdir z y t w; : >y/q; rm was/a; chmod 333 z y w was";
    let work = "rmdir z; rmdir y; rm y/q; rmdir y; mkdir -m 333 y; rmdir y; mv -T t w; : >w/n
        : >was/b; rmdir was; rm was/b; rmdir was; mkdir -m 555 was; rmdir was; ls -l --time-style=+";
    sh("cp -a lower plain; mkdir union");
    let run = |at: &str, script: &str| {
        let script = format!("cd {at}; ({script}) 2>&1");
        String::from_utf8(Command::new("sh").args(["-c", &script]).output().unwrap().stdout)
            .unwrap()
    };
    assert_eq!(run("plain", make), "");
    {
        let _union = Mounted::new(&options, "union");
        assert_eq!(run("union", make), "");
    }
    // What was made is not known by heart.
    let _union = Mounted::new(&options, "union");
    let (ours, right) = (run("union", work), run("plain", work));
    assert!(right.contains("not empty"), "{right}");
    let without_total = |text: &str| {
        text.lines().filter(|l| !l.starts_with("total")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without_total(&ours), without_total(&right));
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// Files that are in use are written to, and read, whatever their mode has become, also when
/// their descriptors have been closed meanwhile; by a server that is bound by modes.
pub(crate) fn opened_before_its_mode_forbade_it() {
    let options = layers();
    sh("mkdir union; cd lower; for n in $(seq 100); do echo $n >$n; done; echo old >known
        echo old >linked; ln linked linked2; echo old >gone");
    let mount = format!("ulimit -n 64; exec {} -o {options} union", program().display());
    sh(&mount);
    let union = Mounted(fs::canonicalize("union").unwrap());
    let read_all = || sh("cat union/[1-9]*; cat union/[1-9]*");
    let open = |name: &str, mode: u32| {
        let mut all = OpenOptions::new();
        all.read(true).append(true).create(true).mode(mode).open(union.path(name)).unwrap()
    };
    let mut files = ["new", "known", "linked", "gone"].map(|name| (name, open(name, 0o444)));
    for (name, file) in &mut files[1..] {
        file.write_all(b"first ").unwrap();
        sh(&format!("chmod 0 union/{name}"));
    }
    sh("rm union/gone");
    for round in 0..2 {
        for (name, file) in &mut files {
            read_all();
            file.write_all(b"more").unwrap_or_else(|e| panic!("{name}, {round}: {e}"));
            read_all();
            let mut content = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut content).unwrap_or_else(|e| panic!("{name}, {round}: {e}"));
            let before = if *name == "new" { "" } else { "old\nfirst " };
            assert_eq!(content, format!("{before}{}", "more".repeat(round + 1)), "{name}");
        }
    }
    for (name, want) in [("new", 0o444), ("known", 0), ("linked", 0), ("linked2", 0)] {
        assert_eq!(mode(union.path(name)), want, "{name}");
        assert_eq!(errno(OpenOptions::new().append(true).open(union.path(name))), libc::EACCES);
    }
    assert_eq!(mode("upper/new"), 0o444);
    drop(files);
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

pub(crate) fn set_gid_directories() {
    let options = layers();
    sh("mkdir -m 2777 lower/d; chown :42 lower/d; chmod 2777 lower/d; touch lower/d/old");
    let union = Mounted::new(&options, "union");
    sh("cd union/d; touch f; mkdir sub; ln -s x l; rm old; touch old; mkdir sub/sub");
    for name in ["f", "sub", "l", "old", "sub/sub"] {
        assert_eq!(stat(union.path("d").join(name)).gid(), 42, "{name}");
    }
    assert_eq!(mode(union.path("d/sub")), 0o2755);
    assert_eq!(mode(union.path("d/sub/sub")), 0o2755);
    // Writing, truncating and chown clear set-id bits exactly as on a plain file.
    fs::create_dir("plain").unwrap();
    for script in ["printf y >>s", ": >s", "truncate -s 0 s", "chown 3 s", "chgrp 3 s"] {
        for dir in ["union", "plain"] {
            sh(&format!("cd {dir}; rm -f s; printf x >s; chmod 6777 s; {script}"));
        }
        assert_eq!(mode(union.path("s")), mode("plain/s"), "{script}");
    }
    sh("cd union; rm -f s; printf x >s; chmod 6777 s");
    sh("setpriv --reuid 77 --regid 77 --clear-groups sh -c 'printf z >>union/s'");
    assert_eq!(mode(union.path("s")), 0o777);
    sh("chmod 6755 union/s; chown 3 union/s");
    assert_eq!(mode(union.path("s")), 0o755);
}

pub(crate) fn open_files_outlive_their_names() {
    let options = layers();
    sh("printf lower >lower/a; printf lower >lower/b; printf keep >lower/c");
    let union = Mounted::new(&options, "union");
    // Read through a handle opened on the lower, after copy-up and removal.
    let mut reader = File::open(union.path("a")).unwrap();
    fs::write(union.path("a"), "upper").unwrap();
    fs::remove_file(union.path("a")).unwrap();
    let mut content = String::new();
    reader.read_to_string(&mut content).unwrap();
    assert_eq!(content, "upper");
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    // Change an unlinked lower file: it is copied up without a name.
    let b = File::open(union.path("b")).unwrap();
    fs::remove_file(union.path("b")).unwrap();
    nix::sys::stat::fchmod(&b, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    assert_eq!(b.metadata().unwrap().mode() & 0o777, 0o640);
    // A new file, removed, written and read.
    let mut n =
        OpenOptions::new().read(true).write(true).create_new(true).open(union.path("n")).unwrap();
    fs::remove_file(union.path("n")).unwrap();
    let other = File::create(union.path("n")).unwrap();
    assert_ne!(other.metadata().unwrap().ino(), n.metadata().unwrap().ino());
    n.write_all(b"still here").unwrap();
    n.seek(SeekFrom::Start(0)).unwrap();
    content.clear();
    n.read_to_string(&mut content).unwrap();
    assert_eq!(content, "still here");
    // Replaced by rename while open.
    let mut c = File::open(union.path("c")).unwrap();
    fs::write(union.path("c2"), "new").unwrap();
    fs::rename(union.path("c2"), union.path("c")).unwrap();
    content.clear();
    c.read_to_string(&mut content).unwrap();
    assert_eq!(content, "keep");
    assert_eq!(fs::read_to_string(union.path("c")).unwrap(), "new");
    // A current directory that is removed.
    sh(
        "cd union; mkdir gone; cd gone; rmdir ../gone; stat -c %h . >/dev/null; ! touch x 2>/dev/null",
    );
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

pub(crate) fn whiteouts_are_read() {
    sh("mkdir -p l1/o l1/x l2/o l2/x l2/y; cd l2; touch a b c o/low x/hid y/low o/both; cd ../l1
        mknod a c 0 0; touch .wh.b; setfattr -n user.overlay.opaque -v y o; touch o/top
        touch x/.wh..wh..opq x/top; mkdir y; setfattr -n user.overlay.opaque -v x y
        touch y/low; setfattr -n user.overlay.whiteout -v y y/low; mkdir ../up ../wk");
    let union = Mounted::new("lowerdir=l1:l2,upperdir=up,workdir=wk", "union");
    assert_eq!(sh("cd union; find . | sort | tr '\\n' ' '"), ". ./c ./o ./o/top ./x ./x/top ./y");
    for name in ["a", "b", "o/low", "x/hid", "y/low"] {
        assert_eq!(errno(fs::symlink_metadata(union.path(name))), libc::ENOENT, "{name}");
    }
    assert_eq!(errno(File::create(union.path(".wh.z"))), libc::EINVAL);
    sh("echo 1 >union/b; mkdir union/a; rm -r union/o; mkdir union/o");
    assert_eq!(sh("ls union/o | wc -l"), "0");
    drop(union);
    assert_eq!(sh("ls up | tr '\\n' ' '"), "a b o");
}

pub(crate) fn without_upper_nothing_changes() {
    sh("mkdir l1 l2; echo 1 >l1/a; echo 2 >l2/b");
    let union = Mounted::new("lowerdir=l1:l2", "union");
    assert_eq!(sh("cat union/a union/b | tr '\\n' ' '"), "1 2");
    assert_eq!(errno(File::create(union.path("c"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(union.path("a"))), libc::EROFS);
    assert_eq!(errno(fs::rename(union.path("a"), union.path("b"))), libc::EROFS);
    // FUSE_SUPER_MAGIC: how programs see that the mount lives.
    assert_eq!(sh("stat -f -c %t union"), "65735546");
}

pub(crate) fn owners_are_mapped() {
    let options = layers();
    sh("touch lower/a lower/b lower/c; chown 5:6 lower/a; chown 200:200 lower/b
        setfacl -m u:5:r--,g:6:r-- lower/c");
    {
        let map = format!("{options},uidmapping=:0:1000:100,gidmapping=0:1000:100");
        let union = Mounted::new(&map, "union");
        let a = stat(union.path("a"));
        assert_eq!((a.uid(), a.gid()), (1005, 1006));
        assert_eq!(stat(union.path("b")).uid(), 65534);
        sh("chown 1007:1008 union/a; setpriv --reuid 1009 --regid 1009 --clear-groups true");
        assert_eq!((stat("upper/a").uid(), stat("upper/a").gid()), (7, 8));
        assert_eq!(errno(std::os::unix::fs::chown(union.path("a"), Some(5), None)), libc::EINVAL);
        // Also inside of lists and capabilities, in both directions.
        let acl = |path: &str| sh(&format!("getfacl -cpn {path} | grep -E '^(user|group):[0-9]'"));
        assert_eq!(acl("lower/c"), "user:5:r--\ngroup:6:r--");
        assert_eq!(acl("union/c"), "user:1005:r--\ngroup:1006:r--");
        sh("setfacl -m u:1009:rw- union/b");
        assert_eq!(acl("upper/b"), "user:9:rw-");
        assert!(
            !Command::new("setfacl").args(["-m", "u:9:r--", "union/b"]).status().unwrap().success()
        );
    }
    let union = Mounted::new(&format!("{options},squash_to_uid=11,squash_to_gid=12"), "union");
    for name in ["a", "b", "c"] {
        let s = stat(union.path(name));
        assert_eq!((s.uid(), s.gid()), (11, 12), "{name}");
    }
}

pub(crate) fn attributes_hold_owner_and_mode() {
    let options = layers() + ",xattr_permissions=2";
    sh("printf x >lower/a; chmod 640 lower/a; mkdir -m 1777 lower/t; touch lower/n
        setfattr -n user.containers.override_stat -v 0:0:0600:char-1-3 lower/n");
    let union = Mounted::new(&options, "union");
    sh("cd union; chown 3:4 a; chmod 4750 a; mkfifo p; mkdir d; chown 5 d; touch t/x");
    let check = |union: &Mounted| {
        let a = stat(union.path("a"));
        assert_eq!((a.uid(), a.gid(), a.mode() & 0o7777), (3, 4, 0o4750));
        assert!(stat(union.path("p")).file_type().is_fifo());
        // A device can only be made by privilege; one that was is shown.
        let n = stat(union.path("n"));
        assert!(n.file_type().is_char_device());
        assert_eq!(n.rdev(), libc::makedev(1, 3));
        assert_eq!(stat(union.path("d")).uid(), 5);
        assert_eq!(mode(union.path("t")), 0o1777);
    };
    check(&union);
    drop(union);
    assert_eq!(
        sh("getfattr -n user.containers.override_stat --only-values upper/a"),
        "3:4:04750:file"
    );
    assert!(stat("upper/p").is_file());
    assert_eq!(stat("upper/a").uid(), 0);
    let union = Mounted::new(&options, "union");
    check(&union);
    assert_eq!(sh("getfattr -d -m - --absolute-names union/a"), "");
    // A list of owner, group and others only is the mode (sed -i sets it so).
    sh("setfacl --set u::rw-,g::r--,o::r-- union/a");
    assert_eq!(mode(union.path("a")), 0o4644);
}

pub(crate) fn times_of_any_kind_are_kept() {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let options = layers();
    sh("touch lower/f");
    let union = Mounted::new(&options, "union");
    for seconds in [i64::MIN, i64::MIN + 1, -1, 0, 1 << 40, i64::MAX] {
        let time = TimeSpec::new(seconds, 999_999_999);
        let path = union.path("f");
        let follow = UtimensatFlags::FollowSymlink;
        utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, follow).unwrap();
        // The upper's file system clamps what it cannot hold.
        assert_eq!(stat(&path).mtime(), stat("upper/f").mtime());
    }
    assert!(stat(union.path("f")).is_file());
}

pub(crate) fn only_public_lower_files_are_seen() {
    let options = layers() + ",public_lower";
    sh("cd lower; echo 1 >open; echo 2 >secret; chmod 640 secret; mkdir -m 750 private; touch private/x
        mkdir dir; touch dir/a dir/b; chmod 600 dir/b; ln -s secret link; chmod 700 private");
    {
        let union = Mounted::new(&options, "union");
        assert_eq!(
            sh("cd union; find . | sort | tr '\\n' ' '"),
            ". ./dir ./dir/a ./link ./open ./private"
        );
        for name in ["secret", "private/x", "dir/b"] {
            assert_eq!(errno(File::open(union.path(name))), libc::ENOENT, "{name}");
        }
        sh("echo mine >union/secret; touch union/private/y; rm -r union/dir");
        assert_eq!(sh("ls union/private"), "y");
        sh("rm union/secret");
        assert!(stat("upper/secret").file_type().is_char_device());
    }
    // What was hidden stays hidden below what was copied up.
    let union = Mounted::new(&layers(), "union");
    assert_eq!(sh("ls union/private"), "y");
    assert_eq!(errno(File::open(union.path("secret"))), libc::ENOENT);
}

pub(crate) fn paths_may_hold_separators() {
    sh(r"mkdir 'a:b' 'c,d' 'u:p' w; touch 'a:b/1' 'c,d/2'");
    for colon in [r"\:", r"\\:"] {
        let options = format!(r"lowerdir=a{colon}b:c\,d,upperdir=u:p,workdir=w");
        let union = Mounted::new(&options, "union");
        assert_eq!(sh("ls union | tr '\\n' ' '"), "1 2", "{options}");
        drop(union);
    }
    let union = Mounted::new(r"lowerdir=c\054d", "union");
    assert_eq!(sh("ls union"), "2");
    drop(union);
}

pub(crate) fn bad_requests_are_refused() {
    sh("mkdir l u w m");
    for (args, word) in [
        (vec!["m"], "lowerdir"),
        (vec!["-o", "lowerdir=l,upperdir=u", "m"], "workdir"),
        (vec!["-o", "lowerdir=nowhere", "m"], "nowhere"),
        (vec!["-o", "lowerdir=l,upperdir=nowhere,workdir=w", "m"], "nowhere"),
        (vec!["-o", "lowerdir=l", "nowhere"], "nowhere"),
        (vec!["-o", "lowerdir=l"], "mount point"),
        (vec!["-o", "lowerdir=l,uidmapping=1:2", "m"], "uidmapping"),
        (vec!["--ready-fd", "999", "-o", "lowerdir=l", "m"], "999"),
    ] {
        let out = Command::new(program()).args(&args).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        let said = text(&out);
        assert_eq!(said.trim().lines().count(), 1, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    let out = Command::new(program()).args(["-o", "lowerdir=l,,frob=1", "m"]).output().unwrap();
    assert!(out.status.success());
    assert_eq!(text(&out).trim(), "overlayfs-fuse: unknown argument ignored: frob=1");
    sh("umount m");
    assert!(Command::new(program()).arg("--version").output().unwrap().status.success());
    // Nobody reads what it says: as a shell shows SIGPIPE, and without a word.
    for option in ["--version", "--help"] {
        let (unread, said) = std::io::pipe().unwrap();
        drop(unread);
        let asked = Command::new(program()).arg(option).stdout(said).stderr(Stdio::piped()).spawn();
        let out = asked.unwrap().wait_with_output().unwrap();
        assert_eq!((out.status.code(), text(&out)), (Some(141), String::new()), "{option}");
    }
    let (unread, said) = std::io::pipe().unwrap();
    drop(unread);
    let status = Command::new(program()).arg("m").stderr(said).status().unwrap();
    assert_eq!(status.code(), Some(1), "no lowerdir, and nobody to hear it");
}

pub(crate) fn readiness_and_end() {
    let options = layers();
    fs::create_dir("m").unwrap();
    let mounted = || sh("grep -c ' /mnt/m ' /proc/mounts || true") == "1";
    for by_signal in [false, true] {
        let (mut ready, ready_end) = std::io::pipe().unwrap();
        let (exit_end, exit) = std::io::pipe().unwrap();
        for fd in [ready_end.as_raw_fd(), exit_end.as_raw_fd()] {
            assert!(fd > 2);
        }
        use std::os::fd::AsFd;
        for fd in [ready_end.as_fd(), exit_end.as_fd()] {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
                .unwrap();
        }
        let mut child = Command::new(program())
            .arg("-f")
            .args(["--ready-fd", &ready_end.as_raw_fd().to_string()])
            .args(["--exit-fd", &exit_end.as_raw_fd().to_string()])
            .args(["-o", &options, "m"])
            .spawn()
            .unwrap();
        drop((ready_end, exit_end));
        let mut said = Vec::new();
        ready.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"1");
        assert!(mounted());
        fs::write("m/x", "1").unwrap();
        if by_signal {
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        } else {
            drop(exit);
        }
        assert!(child.wait().unwrap().success());
        assert!(!mounted());
    }
}

pub(crate) fn reading_while_changing() {
    let options = layers();
    sh("cd lower; for i in $(seq 2000); do : >f$i; done");
    let union = Mounted::new(&options, "union");
    // Names that are there all along must be seen exactly once, whatever is
    // removed and made while the directory is read.
    let mut seen = std::collections::HashMap::new();
    for (n, entry) in fs::read_dir(&union.0).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        *seen.entry(name).or_insert(0) += 1;
        if n % 20 == 0 {
            let i = n / 20 * 10 + 1;
            fs::remove_file(union.path(&format!("f{i}"))).unwrap();
            File::create(union.path(&format!("new{n}"))).unwrap();
        }
    }
    for i in (1..=2000).filter(|i| i % 10 != 1) {
        assert_eq!(seen.get(&format!("f{i}")), Some(&1), "f{i}");
    }
    assert!(seen.values().all(|n| *n == 1), "a name was seen twice");
    // And d_type and inode numbers are those of stat.
    symlink("x", union.path("link")).unwrap();
    for entry in fs::read_dir(&union.0).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        let s = stat(entry.path());
        assert_eq!(entry.file_type().unwrap(), s.file_type());
        assert_eq!(entry.ino(), s.ino());
    }
    // A sparse file's holes are seen, space can be punched and preallocated.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(union.path("holes"))
        .unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", 1 << 19).unwrap();
    let data = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData).unwrap();
    assert!(data > 0 && data <= 1 << 19, "{data}");
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
}

/// As root of the machine, which alone may make devices.
pub(crate) fn devices_are_copied_up() {
    let options = layers();
    sh("mknod -m 640 lower/null c 1 3; mknod -m 600 lower/loop b 7 99; chown 3:4 lower/null");
    let union = Mounted::new(&options, "union");
    sh("chmod 606 union/null union/loop; chown 5 union/loop");
    drop(union);
    let union = Mounted::new(&options, "union");
    let (null, looped) = (stat(union.path("null")), stat(union.path("loop")));
    assert!(null.file_type().is_char_device() && looped.file_type().is_block_device());
    assert_eq!((null.rdev(), looped.rdev()), (libc::makedev(1, 3), libc::makedev(7, 99)));
    assert_eq!((null.uid(), null.gid(), null.mode() & 0o7777), (3, 4, 0o606));
    assert_eq!((looped.uid(), looped.mode() & 0o7777), (5, 0o606));
    assert_eq!(stat("upper/null").rdev(), libc::makedev(1, 3));
}
