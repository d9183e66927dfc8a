//! What is promised besides the corners: each a rule of the contract.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{AT_FDCWD, AtFlags};

use crate::lab::{Mounted, errno, layers, mode, program, sh, stat, text};

pub(crate) fn nameless_files() {
    let options = layers();
    sh("mkdir -m 2775 lower/d; chown :7 lower/d; chmod 2775 lower/d");
    let union = Mounted::new(&options, "union");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o640)
        .open(union.path("d"))
        .unwrap();
    file.write_all(b"no name yet").unwrap();
    let before = file.metadata().unwrap();
    assert_eq!((before.nlink(), before.gid(), before.mode() & 0o7777), (0, 7, 0o640));
    assert_eq!(fs::read_dir(union.path("d")).unwrap().count(), 0);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = union.path("d/named");
    nix::unistd::linkat(
        AT_FDCWD,
        path.as_str(),
        AT_FDCWD,
        &target,
        nix::unistd::LinkatFlags::AT_SYMLINK_FOLLOW,
    )
    .unwrap();
    let after = stat(&target);
    assert_eq!((after.ino(), after.nlink()), (before.ino(), 1));
    drop(file);
    // One that never gets a name leaves nothing behind.
    drop(OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(union.path("d")));
    drop(union);
    let union = Mounted::new(&options, "union");
    assert_eq!(fs::read_to_string(union.path("d/named")).unwrap(), "no name yet");
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// A default ACL, not the umask, decides about what is made; also where a
/// whiteout is in the way.
pub(crate) fn default_acls() {
    let options = layers();
    sh("mkdir lower/d lower/n plain plain/d plain/n; touch lower/d/gone lower/n/gone
        for d in lower/d plain/d; do setfacl -d -m u:5:rwx,g::rx,o::- $d; done");
    let union = Mounted::new(&options, "union");
    sh("rm union/d/gone union/n/gone");
    for dir in ["union", "plain"] {
        for umask in ["022", "077"] {
            sh(&format!(
                "umask {umask}; cd {dir}; for d in d n; do
                 touch $d/f{umask}; mkdir $d/s{umask}; touch $d/s{umask}/deep; done"
            ));
        }
        sh(&format!("umask 077; cd {dir}; touch d/gone; rm d/gone; mkdir d/gone n/gone"));
    }
    let acls = |dir: &str| sh(&format!("cd {dir}; getfacl -nR d n"));
    assert_eq!(acls("union"), acls("plain"));
    drop(union);
    let union = Mounted::new(&options, "union");
    assert_eq!(acls("union"), acls("plain"));
    // Once the list is gone the umask counts again.
    sh("setfacl -k union/d; umask 027; touch union/d/later");
    assert_eq!(mode(union.path("d/later")), 0o640);
}

/// `xattr_permissions=1`: an attribute that only privilege over the file system
/// can write, here over a tmpfs of the namespace.
pub(crate) fn privileged_attributes() {
    let options = layers() + ",xattr_permissions=1";
    sh("printf x >lower/a; chmod 640 lower/a; touch lower/b
        setfattr -n security.fuseoverlayfs.override_stat -v 3:4:4711 lower/b");
    for round in 0..2 {
        let union = Mounted::new(&options, "union");
        let b = stat(union.path("b"));
        assert_eq!((b.uid(), b.gid(), b.mode() & 0o7777), (3, 4, 0o4711));
        if round == 0 {
            sh("cd union; chown 5:6 a; chmod 2750 a; mkdir d; chown 7 d");
        }
        let a = stat(union.path("a"));
        assert_eq!((a.uid(), a.gid(), a.mode() & 0o7777), (5, 6, 0o2750));
        assert_eq!(stat(union.path("d")).uid(), 7);
        assert_eq!(sh("getfattr -d -m - --absolute-names union/a"), "");
    }
    let name = "security.fuseoverlayfs.override_stat";
    assert_eq!(sh(&format!("getfattr -n {name} --only-values upper/a")), "5:6:02750:file");
    assert_eq!((stat("upper/a").uid(), stat("upper/a").gid()), (0, 0));
}

pub(crate) fn five_hundred_lowers() {
    sh("mkdir u w; for i in $(seq 500); do mkdir -p l$i/d; echo $i >l$i/f$i; echo $i >l$i/d/x$i
        echo $i >l$i/all; done; touch l400/d/.wh.x450");
    let list: Vec<String> = (1..=500).map(|i| format!("l{i}")).collect();
    let options = format!("lowerdir={},upperdir=u,workdir=w", list.join(":"));
    let union = Mounted::new(&options, "union");
    assert_eq!(fs::read_dir(&union.0).unwrap().count(), 502);
    assert_eq!(fs::read_dir(union.path("d")).unwrap().count(), 499);
    assert_eq!(fs::read_to_string(union.path("all")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(union.path("f500")).unwrap(), "500\n");
    sh("echo more >>union/d/x499; rm union/d/x500");
    drop(union);
    let union = Mounted::new(&options, "union");
    assert_eq!(fs::read_to_string(union.path("d/x499")).unwrap(), "499\nmore\n");
    assert_eq!(errno(File::open(union.path("d/x500"))), libc::ENOENT);
}

/// However somebody without privilege changes a file that all may write, it does not give
/// him its owner's privilege any more: at once, also where nobody asked for its mode meanwhile.
pub(crate) fn set_id_bits_go_with_a_change() {
    let options = layers();
    for name in ["written", "copied", "allocated", "cut"] {
        sh(&format!("cp /usr/bin/id lower/{name}; chmod 6777 lower/{name}"));
    }
    let union = Mounted::new(&options, "union");
    let script = "import os, subprocess, sys\n\
        def who(name): return subprocess.check_output(['union/' + name, '-u']).decode().strip()\n\
        def write(f): os.write(f, b'x')\n\
        def copy(f): os.copy_file_range(os.open('union/written', 0), f, 10, 0, os.fstat(f).st_size)\n\
        def allocate(f): os.posix_fallocate(f, os.fstat(f).st_size, 10)\n\
        def cut(f): os.ftruncate(f, os.fstat(f).st_size + 10)\n\
        for name, change in ('written', write), ('copied', copy), ('allocated', allocate), ('cut', cut):\n\
        \x20   before = who(name)\n\
        \x20   f = os.open('union/' + name, os.O_WRONLY)\n\
        \x20   os.lseek(f, 0, os.SEEK_END)\n\
        \x20   change(f)\n\
        \x20   os.close(f)\n\
        \x20   print(name, before, who(name))\n";
    let out = Command::new("setpriv")
        .args(["--reuid", "5", "--regid", "5", "--clear-groups", "python3", "-c", script])
        .output()
        .unwrap();
    assert_eq!(text(&out), "written 0 5\ncopied 0 5\nallocated 0 5\ncut 0 5\n");
    for name in ["written", "copied", "allocated", "cut"] {
        assert_eq!((mode(union.path(name)), mode(format!("upper/{name}"))), (0o777, 0o777));
        assert_eq!(mode(format!("lower/{name}")), 0o6777);
    }
}

/// A file of a lower that is only ever written through a shared mapping.
pub(crate) fn shared_mappings() {
    let options = layers();
    fs::write("lower/f", vec![b'a'; 20_000]).unwrap();
    let union = Mounted::new(&options, "union");
    let script = "import mmap\nf = open('union/f', 'r+b'); m = mmap.mmap(f.fileno(), 0)\n\
                  g = open('union/f', 'rb'); m[5000:5004] = b'MMAP'\n\
                  assert g.read()[5000:5004] == b'MMAP'; m.close(); f.close()";
    let out = Command::new("python3").args(["-c", script]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    drop(union);
    assert_eq!(fs::read("lower/f").unwrap(), vec![b'a'; 20_000]);
    let union = Mounted::new(&options, "union");
    let content = fs::read(union.path("f")).unwrap();
    assert_eq!((content.len(), &content[4999..5005]), (20_000, &b"aMMAPa"[..]));
}

/// Nothing is opened before it is read or written; what fails, fails then.
pub(crate) fn what_cannot_be_copied_fails_when_written() {
    sh("mkdir lower small; mount -t tmpfs -o size=1m t small; mkdir small/u small/w
        head -c 4M /dev/zero | tr '\\0' z >lower/big; echo x >lower/f");
    let union = Mounted::new("lowerdir=lower,upperdir=small/u,workdir=small/w", "union");
    let file = OpenOptions::new().append(true).open(union.path("big")).unwrap();
    assert_eq!(errno((&file).write(b"more")), libc::ENOSPC);
    // Nothing of the attempt is left, and the file is what it was.
    assert_eq!(fs::read_dir("small/w/work").unwrap().count(), 0);
    assert_eq!(stat(union.path("big")).len(), 4 << 20);
    // Without its data it fits.
    assert_eq!(File::create(union.path("big")).unwrap().metadata().unwrap().len(), 0);
    fs::write(union.path("f"), "y").unwrap();
    assert_eq!(errno(fs::write(union.path("new"), vec![0; 2 << 20])), libc::ENOSPC);
}

pub(crate) fn started_in_every_way() {
    let options = layers();
    fs::write("lower/f", "x").unwrap();
    std::os::unix::fs::symlink(program(), "fuse-overlayfs").unwrap();
    sh("mkdir m");
    // Installed, for mount(8), in this namespace only.
    sh(&format!(
        "mount -t tmpfs bin /usr/local/bin; cp {} /usr/local/bin/overlayfs-fuse",
        program().display()
    ));
    for args in [
        vec!["./fuse-overlayfs", "-o", &options, "m"],
        vec!["./fuse-overlayfs", "overlay", "m", "-o", &options],
        vec!["./fuse-overlayfs", "-f", "--help"],
        // mount(8) hands `-t fuse.PROGRAM` to mount.fuse3, which runs the program.
        vec!["mount", "-t", "fuse./mnt/fuse-overlayfs", "overlay", "m", "-o", &options],
        vec!["mount", "-t", "fuse.overlayfs-fuse", "overlay", "m", "-o", &options],
    ] {
        let out = Command::new(args[0]).args(&args[1..]).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", crate::lab::text(&out));
        if !args.contains(&"--help") {
            assert_eq!(fs::read_to_string("m/f").unwrap(), "x", "{args:?}");
            sh("umount m");
        }
    }
}

/// The server may search a directory and not list it: names are found in it, and not found,
/// however many; only reading it is refused.
pub(crate) fn searched_and_not_listed() {
    sh("mkdir -p l1/d l2/d m; cd l2/d; for i in $(seq 40); do echo $i >f$i; done
        chmod 111 . ../../l1/d");
    let out = Command::new("setpriv")
        .args(["--bounding-set", "-dac_override,-dac_read_search"])
        .arg(program())
        .args(["-o", "lowerdir=l1:l2", "m"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", crate::lab::text(&out));
    let union = Mounted(fs::canonicalize("m").unwrap());
    for n in 1..=40 {
        assert_eq!(fs::read_to_string(union.path(&format!("d/f{n}"))).unwrap(), format!("{n}\n"));
        assert_eq!(errno(fs::metadata(union.path(&format!("d/g{n}")))), libc::ENOENT);
    }
    assert_eq!(errno(fs::read_dir(union.path("d")).unwrap().next().unwrap()), libc::EACCES);
}

pub(crate) fn remounted() {
    let options = layers();
    fs::write("lower/f", "x").unwrap();
    // As Podman's users have it: mount(8) runs what has the name of the type.
    sh(&format!(
        "mount -t tmpfs bin /usr/local/bin; cp {} /usr/local/bin/fuse-overlayfs",
        program().display()
    ));
    let union = Mounted::new(&options, "m");
    let run = |args: &[&str]| {
        let out = Command::new(args[0]).args(&args[1..]).output().unwrap();
        (out.status.success(), crate::lab::text(&out))
    };
    let ours = program();
    let ours = ours.to_str().unwrap();
    for (to_read, to_write) in [
        (["mount", "-o", "remount,ro", "m"], ["mount", "-o", "remount,rw", "m"]),
        ([ours, "-o", "remount,ro", "m"], [ours, "-o", "remount,rw", "m"]),
    ] {
        // Not while somebody writes.
        let open = fs::File::create(union.path("new")).unwrap();
        let (done, said) = run(&to_read);
        assert!(!done && said.contains("remount"), "{said}");
        drop(open);
        let (done, said) = run(&to_read);
        assert!(done && said.is_empty(), "{said}");
        assert_eq!(errno(fs::write(union.path("f"), "y")), libc::EROFS);
        assert_eq!(fs::read_to_string(union.path("f")).unwrap(), "x");
        let (done, said) = run(&to_write);
        assert!(done && said.is_empty(), "{said}");
        fs::write(union.path("f"), "y").unwrap();
        fs::write(union.path("f"), "x").unwrap();
    }
    // Nothing of ours is there.
    let (done, said) = run(&[ours, "-o", "remount,ro", "lower"]);
    assert!(!done && said.contains("lower") && said.contains("FUSE"), "{said}");
    fs::write("lower/g", "still writable").unwrap();
}

pub(crate) fn counters_on_request() {
    let options = layers() + ",stats=stats";
    sh("mkdir m; echo x >lower/f");
    let (mut ready, ready_end) = std::io::pipe().unwrap();
    use std::os::fd::AsFd;
    let inherit = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(ready_end.as_fd(), inherit).unwrap();
    let mut child = Command::new(program())
        .args(["-f", "--ready-fd", &ready_end.as_raw_fd().to_string(), "-o", &options, "m"])
        .spawn()
        .unwrap();
    drop(ready_end);
    ready.read_to_end(&mut Vec::new()).unwrap();
    fs::write("m/f", "y").unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    let report = loop {
        if let Ok(report) = fs::read_to_string("stats") {
            break report;
        }
        std::thread::yield_now();
    };
    for line in ["request.write 1\n", "copy_ups 1\n", "request.lookup 1\n"] {
        assert!(report.contains(line), "{line:?} is not in {report}");
    }
    // The mount goes on, and ends as ever.
    assert_eq!(fs::read_to_string("m/f").unwrap(), "y");
    sh("umount m");
    assert!(child.wait().unwrap().success());
}

/// Started as the first process of a terminal, which hangs up as soon as that is done.
pub(crate) fn outlives_its_terminal() {
    let options = layers() + ",stats=hung-up";
    sh("mkdir m");
    let command = format!("exec '{}' -o {options} m", program().display());
    let mounted = || sh("grep -c ' /mnt/m ' /proc/mounts || true") == "1";
    // Whether it is still of the terminal's when that hangs up is a matter of moments.
    for _ in 0..20 {
        let script = Command::new("script").args(["-qec", &command, "/dev/null"]).output();
        let script = script.unwrap();
        assert!(script.status.success(), "{}", text(&script));
        // Of two signals it takes the hang-up first: with its report it has passed it over.
        let server = Command::new("pkill").args(["-USR1", "-f", "stats=hung-up"]).status();
        assert!(server.unwrap().success(), "the server is gone");
        while !Path::new("hung-up").exists() {
            assert!(mounted(), "the mount is gone");
            std::thread::yield_now();
        }
        assert!(mounted());
        sh("rm hung-up; umount m");
        while Command::new("pgrep").args(["-f", "stats=hung-up"]).output().unwrap().status.success()
        {
            std::thread::yield_now();
        }
    }
}

/// Symbolic links of a lower are served and never followed, and no name leads out.
pub(crate) fn layers_cannot_be_left() {
    let options = layers();
    sh("echo secret >outside; ln -s ../outside lower/up; ln -s /mnt/outside lower/abs; mkdir lower/d
        ln -s ../../outside lower/d/up");
    let union = Mounted::new(&options, "union");
    for name in ["up", "abs", "d/up"] {
        assert!(stat(union.path(name)).is_symlink(), "{name}");
    }
    // A directory of the lower that becomes a link behind our back is not entered.
    sh("mkdir lower/later; echo in >lower/later/f; ls union/later >/dev/null
        mv lower/later lower/was; mkdir elsewhere; echo out >elsewhere/g; ln -s ../elsewhere lower/later");
    assert_ne!(fs::read_to_string(union.path("later/g")).ok().as_deref(), Some("out\n"));
    assert!(
        nix::unistd::faccessat(
            AT_FDCWD,
            Path::new("union/later/g"),
            nix::unistd::AccessFlags::F_OK,
            AtFlags::empty()
        )
        .is_err()
    );
}
