//! Many threads at once: what they do must add up, and nothing may be left of it.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::lab::{Mounted, layers, mode, program, sh, with_besides};

/// Copies are put into a directory that its owner may not write, which for the server means
/// that its mode is another one meanwhile: whoever asks is told the mode it has, and a mode
/// that it is given stays.
pub(crate) fn modes_are_never_seen_opened_up() {
    const FILES: usize = 1500;
    let options = layers();
    sh(&format!(
        "mkdir lower/d; cd lower/d; for n in $(seq 0 {FILES}); do echo $n >$n; done; chmod 555 ."
    ));
    let union = Mounted::new(&options, "union");
    let dir = union.path("d");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (dir, over) = (&dir, &over);
        let writers: Vec<_> = (0..2)
            .map(|of| {
                scope.spawn(move || {
                    for n in (of..FILES).step_by(2) {
                        let file = OpenOptions::new().append(true).open(dir.join(n.to_string()));
                        file.unwrap().write_all(b"more").unwrap();
                    }
                })
            })
            .collect();
        let asks = scope.spawn(move || {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) || asked == 0 {
                // Not what the kernel remembers, but what the server says.
                let stat = ["--cached=never", "-c", "%a"];
                let said = Command::new("stat").args(stat).arg(dir).output().unwrap();
                let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
                assert!(["555", "550"].contains(&said.as_str()), "{said}");
                asked += 1;
            }
        });
        let changes = scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for wanted in [0o550, 0o555] {
                    fs::set_permissions(dir, fs::Permissions::from_mode(wanted)).unwrap();
                    assert_eq!(mode("upper/d") & 0o077, wanted & 0o077);
                }
            }
        });
        let written = writers.into_iter().map(|w| w.join()).collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        assert!(written.iter().chain([&asks.join(), &changes.join()]).all(Result::is_ok));
    });
    assert_eq!(mode("upper/d"), 0o555);
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
        .args(["-f", "--ready-fd", &ready_end.as_raw_fd().to_string(), "-o"])
        .args([&with_besides(&options), "m"])
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
