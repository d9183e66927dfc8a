//! What is promised besides the corners: each a rule of the contract.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{AT_FDCWD, AtFlags};

use crate::lab::{Mounted, errno, layers, mode, program, sh, skip, stat};

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

/// Writers, renamers and readers at once, for `CORACLE_STRESS_SECONDS` (2). Every
/// file starts with its own number, which no reader may miss or find elsewhere;
/// at the end each file is where exactly one of the threads left it.
pub(crate) fn many_at_once() {
    const FILES: u64 = 64;
    const LEN: usize = 5000;
    let seconds = std::env::var("CORACLE_STRESS_SECONDS").map_or(2, |v| v.parse().unwrap());
    let options = layers();
    let content = |n: u64| format!("{n:08}").into_bytes().repeat(LEN / 8);
    fs::create_dir_all("lower/a").unwrap();
    fs::create_dir_all("lower/b").unwrap();
    for n in 0..FILES {
        fs::write(format!("lower/a/f{n}"), content(n)).unwrap();
    }
    let union = Mounted::new(&options, "union");
    let places = |n: u64| [union.path(&format!("a/f{n}")), union.path(&format!("b/f{n}"))];
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let round = |seed: u64, work: &dyn Fn(u64)| {
        let mut n = seed;
        while !over.load(Ordering::Relaxed) {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            work((n >> 33) % FILES);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let gone = |e: &std::io::Error| e.raw_os_error() == Some(libc::ENOENT);
    std::thread::scope(|scope| {
        let (union, round, content, places) = (&union, &round, &content, &places);
        for thread in 0..3 {
            // The same bytes again, somewhere in the file: a copy-up at first.
            scope.spawn(move || {
                round(thread, &|n| {
                    for path in places(n) {
                        match OpenOptions::new().write(true).open(path) {
                            Ok(f) => {
                                let at = (n * 8 % 4000 / 8 * 8).min(LEN as u64 - 800);
                                f.write_all_at(&content(n)[..800], at).unwrap();
                            }
                            Err(e) => assert!(gone(&e), "{e}"),
                        }
                    }
                });
            });
            // To and fro. Only one can win.
            scope.spawn(move || {
                round(thread + 10, &|n| {
                    let [a, b] = places(n);
                    for (from, to) in [(&a, &b), (&b, &a)] {
                        if let Err(e) = fs::rename(from, to) {
                            assert!(gone(&e), "{e}");
                        }
                    }
                });
            });
        }
        for thread in 0..2 {
            scope.spawn(move || {
                round(thread + 20, &|n| {
                    for path in places(n) {
                        match fs::read(&path) {
                            Ok(got) => assert!(got == content(n), "{}", path.display()),
                            Err(e) => assert!(gone(&e), "{e}"),
                        }
                    }
                    for entry in fs::read_dir(union.path("a")).unwrap() {
                        let name = entry.unwrap().file_name().into_string().unwrap();
                        let n = name.strip_prefix('f').and_then(|n| n.parse::<u64>().ok());
                        assert!(n.is_some_and(|n| n < FILES), "{name}");
                    }
                });
            });
        }
        // The only wait for time: the others work meanwhile.
        let alarm = nix::sys::timerfd::TimerFd::new(
            nix::sys::timerfd::ClockId::CLOCK_MONOTONIC,
            nix::sys::timerfd::TimerFlags::empty(),
        )
        .unwrap();
        let after = std::time::Duration::from_secs(seconds);
        let expiry = nix::sys::timerfd::Expiration::OneShot(after.into());
        alarm.set(expiry, nix::sys::timerfd::TimerSetTimeFlags::empty()).unwrap();
        alarm.wait().unwrap();
        over.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > FILES, "hardly anything was done");
    let check = |union: &Mounted| {
        for n in 0..FILES {
            let there: Vec<_> = ["a", "b"]
                .iter()
                .filter_map(|d| fs::read(union.path(&format!("{d}/f{n}"))).ok())
                .collect();
            assert_eq!(there.len(), 1, "f{n}");
            assert!(there[0] == content(n), "f{n}");
        }
    };
    check(&union);
    drop(union);
    check(&Mounted::new(&options, "union"));
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// Directories of a lower renamed to and fro (`redirect_dir=on`) while their files are
/// written and read, for `CORACLE_STRESS_SECONDS` (2). At the end every directory is
/// there once with all it had; and once all is removed the server has neither nodes nor
/// descriptors left of it.
pub(crate) fn renames_leave_nothing() {
    const DIRS: u64 = 12;
    let seconds = std::env::var("CORACLE_STRESS_SECONDS").map_or(2, |v| v.parse().unwrap());
    let options = layers() + ",redirect_dir=on,stats=stats";
    for n in 0..DIRS {
        fs::create_dir_all(format!("lower/p{}/d{n}/sub", n % 2)).unwrap();
        fs::write(format!("lower/p{}/d{n}/sub/f", n % 2), format!("{n:06}")).unwrap();
    }
    fs::create_dir("m").unwrap();
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
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().count();
    let at_start = descriptors();
    let over = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let passing = |e: &std::io::Error| {
        // Gone from there, or there again; under way at the moment it was looked at.
        matches!(
            e.raw_os_error(),
            Some(libc::ENOENT | libc::EEXIST | libc::ENOTEMPTY | libc::ESTALE)
        )
    };
    let root = fs::canonicalize("m").unwrap();
    std::thread::scope(|scope| {
        let (over, done, root, passing) = (&over, &done, &root, &passing);
        for thread in 0..6u64 {
            scope.spawn(move || {
                let mut n = thread;
                while !over.load(Ordering::Relaxed) {
                    n = n
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let dir = (n >> 33) % DIRS;
                    let (from, to) = ((n >> 40) % 2, (n >> 41) % 2);
                    let at = |p: u64| root.join(format!("p{p}/d{dir}"));
                    let result = match thread % 3 {
                        0 => fs::rename(at(from), at(to)),
                        1 => OpenOptions::new()
                            .write(true)
                            .open(at(from).join("sub/f"))
                            .and_then(|f| f.write_all_at(format!("{dir:06}").as_bytes(), 0)),
                        _ => fs::read_to_string(at(from).join("sub/f"))
                            .map(|text| assert_eq!(text, format!("{dir:06}"))),
                    };
                    if let Err(e) = result {
                        assert!(passing(&e), "{thread}: {e}");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let alarm = nix::sys::timerfd::TimerFd::new(
            nix::sys::timerfd::ClockId::CLOCK_MONOTONIC,
            nix::sys::timerfd::TimerFlags::empty(),
        )
        .unwrap();
        let after = std::time::Duration::from_secs(seconds);
        let expiry = nix::sys::timerfd::Expiration::OneShot(after.into());
        alarm.set(expiry, nix::sys::timerfd::TimerSetTimeFlags::empty()).unwrap();
        alarm.wait().unwrap();
        over.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 100, "hardly anything was done");
    let places =
        |n: u64| (0..2u64).filter(|p| root.join(format!("p{p}/d{n}")).exists()).collect::<Vec<_>>();
    for n in 0..DIRS {
        let there = places(n);
        assert_eq!(there.len(), 1, "d{n}: {there:?}");
        let file = root.join(format!("p{}/d{n}/sub/f", there[0]));
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{n:06}"));
    }
    sh("rm -r m/p0 m/p1");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    // The directories of the lower may stay open, as a cache with a bound.
    let most = at_start + 2 * usize::try_from(DIRS).unwrap() + 4;
    // The kernel tells a little later that it has forgotten them.
    let left = (0..2000).find_map(|_| {
        fs::remove_file("stats").ok();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        let report = loop {
            match fs::read_to_string("stats") {
                Ok(report) if report.contains("copy_ups") => break report,
                _ => std::thread::yield_now(),
            }
        };
        (report.contains("\nnodes 1\n") && descriptors() <= most).then_some(())
    });
    assert!(left.is_some(), "{}", fs::read_to_string("stats").unwrap_or_default());
    sh("umount m");
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir("work/work").unwrap().count(), 0);
}

/// More files and directories than there may be descriptors, from several threads.
pub(crate) fn few_descriptors() {
    const DIRS: usize = 60;
    let options = layers();
    sh("cd lower; for d in $(seq 60); do mkdir d$d; for f in a b c; do echo $d >d$d/$f; done; done
        mkdir ../union");
    sh(&format!("ulimit -n 64; {} -o {options} union", program().display()));
    let root = fs::canonicalize("union").unwrap();
    let union = Mounted(root.clone());
    std::thread::scope(|scope| {
        for (thread, name) in ["a", "b", "c"].into_iter().enumerate() {
            let root = &root;
            scope.spawn(move || {
                for round in 0..3 {
                    for n in 0..DIRS {
                        let dir = root.join(format!("d{}", (n * 7 + thread * 20) % DIRS + 1));
                        let mut f = OpenOptions::new().append(true).open(dir.join(name)).unwrap();
                        writeln!(f, "{round}").unwrap();
                        let made = dir.join(format!("{name}{round}"));
                        fs::write(&made, "new").unwrap();
                        fs::rename(&made, dir.join(format!("{name}-moved"))).unwrap();
                        fs::read(dir.join(name)).unwrap();
                    }
                }
            });
        }
    });
    let check = |root: &Path| {
        for n in 1..=DIRS {
            for name in ["a", "b", "c"] {
                let path = root.join(format!("d{n}/{name}"));
                assert_eq!(fs::read_to_string(&path).unwrap(), format!("{n}\n0\n1\n2\n"));
                assert_eq!(fs::read(root.join(format!("d{n}/{name}-moved"))).unwrap(), b"new");
            }
        }
    };
    check(&root);
    drop(union);
    check(&Mounted::new(&options, "union").0);
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

/// The POSIX conformance suite of the crate pjdfstest, as root of the namespace.
///
/// Excluded are the variants on devices: `char` makes device 0:0, which is a
/// whiteout to an overlay, and `block` takes the machine's privilege.
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
                    [settings]\nnaptime = 0.02\n\
                    [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n";
    fs::write("settings", settings).unwrap();
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
    assert!(with("ok").len() > 250, "{}", crate::lab::text(&out));
}

/// The file system exerciser of the crate fsx: random operations on one file, every
/// read checked. On a new file, on one of a lower that the first change copies up, and
/// below a quota that it just fits into. `CORACLE_FSX_OPERATIONS` says how many (3000).
///
/// Left out is sendfile, which only reads.
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
         posix_fallocate = 5.0\npunch_hole = 5.0\nposix_fadvise = 1.0\ncopy_file_range = 5.0\n",
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
