//! Requests through io_uring. The runner has switched it on (`fuse.enable_uring`).

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{errno, layers, program, sh, skip, with_besides};

/// A server that a failing case leaves behind is ended.
pub(crate) struct Server(pub(crate) Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The program in the foreground, mounted at `m`.
pub(crate) fn start(options: &str, limits: &str) -> Server {
    start_by("", options, limits, "")
}

/// The same, started by another program; with what it says of itself going where `said` is.
fn start_by(by: &str, options: &str, limits: &str, said: &str) -> Server {
    fs::create_dir_all("m").unwrap();
    let (mut ready, ready_end) = std::io::pipe().unwrap();
    let inherit = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(ready_end.as_fd(), inherit).unwrap();
    let script = format!(
        "{limits} exec {by} {} {} --ready-fd {} -o {},stats=stats m {said}",
        program().display(),
        if said.is_empty() { "-f" } else { "-d" },
        ready_end.as_raw_fd(),
        with_besides(options)
    );
    let child = Command::new("sh").args(["-ec", &script]).spawn().unwrap();
    drop(ready_end);
    assert_eq!(ready.read(&mut [0]).unwrap(), 1, "{options}: it did not come up");
    Server(child)
}

/// What the server counts.
fn report(server: &Server) -> String {
    fs::remove_file("stats").ok();
    kill(Pid::from_raw(server.0.id().cast_signed()), Signal::SIGUSR1).unwrap();
    loop {
        match fs::read_to_string("stats") {
            Ok(report) => return report,
            _ => std::thread::yield_now(),
        }
    }
}

fn value(report: &str, name: &str) -> Option<u64> {
    let value = report.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.map(|value| value.parse().unwrap())
}

/// A counter of the server.
pub(crate) fn counter(server: &Server, name: &str) -> u64 {
    let report = report(server);
    value(&report, name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// How many requests of a kind it had: those of which there were none are left out.
pub(crate) fn requests(server: &Server, kind: &str) -> u64 {
    value(&report(server), &format!("request.{kind}")).unwrap_or(0)
}

/// What is read and written, small and large, is right, and went through the rings; what
/// still comes through the device is heard.
pub(crate) fn requests_come_through_rings() {
    let options = layers();
    // Not a multiple of anything, no two pages alike.
    let data: Vec<u8> = (0..1_300_001u32).flat_map(u32::to_le_bytes).collect();
    fs::write("lower/large", &data).unwrap();
    sh("mkdir lower/d; for n in $(seq 300); do echo $n >lower/d/$n; done; ln -s d lower/link");
    let mut server = start(&options, "");
    assert!(fs::read("m/large").unwrap() == data);
    sh("for n in $(seq 300); do test $(cat m/link/$n) = $n; done; test $(ls m/d | wc -l) = 300");
    for name in ["large", "new"] {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(format!("m/{name}"));
        file.as_mut().unwrap().write_all(&data).unwrap();
    }
    assert!(fs::read("upper/large").unwrap() == [&data[..], &data[..]].concat());
    assert!(fs::read("upper/new").unwrap() == data);
    assert_eq!(errno(fs::read("m/none")), libc::ENOENT);
    let name = "n".repeat(255);
    fs::write(format!("m/{name}"), "x").unwrap();
    sh(&format!(
        "setfattr -n user.a -v $(printf %01000d 7) m/{name}
        test $(getfattr --only-values -n user.a m/{name} | wc -c) = 1000"
    ));
    // At least each small file was read by one.
    let rings = counter(&server, "ring.requests");
    assert!(rings >= 300, "{rings}");
    // Names that are gone are forgotten, which the device tells, a little later.
    sh("rm -r m/d m/link m/large m/n*");
    let forgotten = (0..2000).any(|_| counter(&server, "nodes") == 1);
    assert!(forgotten, "{} nodes are left", counter(&server, "nodes"));
    sh("umount m");
    assert!(server.0.wait().unwrap().success());
}

/// Where it is not asked for, and where there are not enough descriptors, the device is used.
pub(crate) fn the_device_serves_without_rings() {
    let options = layers();
    sh("echo x >lower/f");
    for (more, limits, through) in
        [("", "", true), (",uring=off", "", false), ("", "ulimit -n 15;", false)]
    {
        let mut server = start(&format!("{options}{more}"), limits);
        assert_eq!(fs::read_to_string("m/f").unwrap(), "x\n");
        let rings = counter(&server, "ring.requests");
        assert_eq!(rings > 0, through, "{more} {limits} {rings}");
        sh("umount m");
        assert!(server.0.wait().unwrap().success());
    }
}

/// Runs what follows with the system call of this number refused by a filter, as container
/// engines do.
fn without_call(call: nix::libc::c_long, errno: i32) -> String {
    format!(
        "python3 -c '
import ctypes, os, struct, sys
op = lambda code, yes, no, k: struct.pack(\"HBBI\", code, yes, no, k)
# The number; not this one: allowed; this one: the error.
filter = op(0x20, 0, 0, 0) + op(0x15, 1, 0, {call}) + op(6, 0, 0, 0x7fff0000) + op(6, 0, 0, 0x50000 | {errno})
held = ctypes.create_string_buffer(filter)
program = ctypes.create_string_buffer(struct.pack(\"HxxxxxxQ\", 4, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0): sys.exit(\"no filter\")
os.execvp(sys.argv[1], sys.argv[1:])'"
    )
}

/// Wherever io_uring is refused, when a ring is made or when one is given to the kernel, the
/// device serves.
pub(crate) fn the_device_serves_where_rings_are_refused() {
    let options = layers();
    sh("echo x >lower/f; mkdir lower/d; for n in $(seq 50); do echo $n >lower/d/$n; done");
    // What goes through rings, of a server that says `said` at some time.
    let used = |script: &str, said: &str| {
        let mut server = start_by(script, &options, "", "2>said");
        sh("test $(cat m/f) = x; for n in $(seq 50); do test $(cat m/d/$n) = $n; done
            echo y >>m/f; test $(wc -l <m/f) = 2; rm -r m/d");
        let rings = counter(&server, "ring.requests");
        // A thread that has not come to its ring yet would find the mount gone.
        while !fs::read_to_string("said").unwrap().contains(said) {
            assert!(server.0.try_wait().unwrap().is_none(), "{script}: it never said {said}");
            let switch = fs::read_to_string(crate::RingsOn::SWITCH).unwrap();
            assert_eq!(switch.trim(), "Y", "somebody has switched FUSE over io_uring off");
            std::thread::yield_now();
        }
        sh("umount m");
        assert!(server.0.wait().unwrap().success(), "{script}");
        sh("rm -rf upper work/* && mkdir upper");
        rings
    };
    // Nothing is in the way: this is not for another reason.
    assert!(used("", "") >= 50);
    for call in [
        nix::libc::SYS_io_uring_setup,
        nix::libc::SYS_io_uring_register,
        nix::libc::SYS_io_uring_enter,
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let rings = used(&without_call(call, errno), "no io_uring");
            assert_eq!(rings, 0, "{call} {errno}");
        }
    }
    // The kernel refuses rings of processors that there cannot be, after it was told of them.
    let possible = "/sys/devices/system/cpu/possible";
    let last: u32 = sh(&format!("cat {possible}")).rsplit('-').next().unwrap().parse().unwrap();
    if last > 60 {
        return skip("there are too many processors for one more to be tried");
    }
    fs::write("more", format!("0-{}\n", last + 2)).unwrap();
    sh(&format!("mount --bind more {possible}"));
    used("", "the kernel refused a ring");
}

/// What is said of a mount without its server: the rings of a process end a moment later.
pub(crate) const GONE: [i32; 3] = [libc::ENOTCONN, libc::ECONNABORTED, libc::ECANCELED];

/// By whatever it ends, with a file in use, nobody hangs and the process goes.
pub(crate) fn every_end_of_a_mount() {
    let options = layers();
    sh("echo x >lower/f");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut server = start(&options, "");
        let mut used = fs::OpenOptions::new().read(true).append(true).open("m/f").unwrap();
        used.write_all(b"y").unwrap();
        kill(Pid::from_raw(server.0.id().cast_signed()), signal).unwrap();
        let status = server.0.wait().unwrap();
        assert_eq!(status.success(), signal == Signal::SIGTERM);
        assert!(GONE.contains(&errno(used.write_all(b"z"))));
        if signal == Signal::SIGKILL {
            assert!(GONE.contains(&errno(fs::read("m/f"))));
            drop(used);
            sh("umount m");
        }
        sh("! grep -q ' /mnt/m ' /proc/mounts");
    }
    assert_eq!(fs::read_to_string("upper/f").unwrap(), "x\nyy");
}
