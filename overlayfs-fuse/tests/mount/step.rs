//! A server killed at a chosen step of an operation.
//!
//! # Theory of operation
//! Once it is mounted, all threads of the server are traced by ptrace(2), so its changing
//! system calls are counted, whichever thread makes them: the same operation has the same
//! steps in every run, and mounting has none. At the `n`-th, before the kernel has done
//! anything of it, the server gets SIGKILL. It knows nothing of all this.
//!
//! The tracer is its parent, and waits for the operation in the same place.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::lab::{program, sh, with_besides};

/// System calls that change a file system. (`write` is not among them: it carries
/// the answers.)
const CHANGES: &[libc::c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
];

/// Mounts on `u`, does the operation while the server is killed at its `n`-th change, and
/// says whether it was.
#[expect(clippy::zombie_processes, reason = "all children are waited for in one place")]
pub(crate) fn crash(options: &str, operation: &str, n: u32) -> bool {
    let mut server = Command::new(program())
        .args(["-f", "-o", &with_besides(options), "u"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while sh("grep -c ' /mnt/u ' /proc/mounts || true") != "1" {
        assert!(server.try_wait().unwrap().is_none(), "{options}: it ended before the mount");
    }
    let killed = Steps { server: trace(&server), left: n }.until_the_end(operation);
    // After its end the mount is still there, for a moment or, when it was killed, for good.
    sh("umount -l u 2>/dev/null || true");
    killed
}

/// Begins to trace all threads.
fn trace(server: &Child) -> Pid {
    let server = Pid::from_raw(server.id().cast_signed());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    // The first one makes the others: those that it makes from here on come by themselves.
    ptrace::seize(server, options).unwrap();
    ptrace::interrupt(server).unwrap();
    for thread in fs::read_dir(format!("/proc/{server}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        let thread = Pid::from_raw(thread.parse().unwrap());
        if thread == server {
            continue;
        }
        match ptrace::seize(thread, options) {
            Ok(()) => ptrace::interrupt(thread).unwrap(),
            Err(Errno::EPERM) => {}
            Err(errno) => panic!("thread {thread} of the server: {errno}"),
        }
    }
    server
}

/// What is traced.
struct Steps {
    server: Pid,
    /// Changes until it is killed.
    left: u32,
}

impl Steps {
    /// Does the operation, unmounts, and follows the server until it is gone: was it killed?
    fn until_the_end(&mut self, operation: &str) -> bool {
        // The operation fails when the server is gone, which is the point.
        let mut client = Some(start(operation));
        let mut unmount = None;
        let mut killed = None;
        while killed.is_none() || client.is_some() || unmount.is_some() {
            match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::PtraceSyscall(thread) => self.call(thread),
                WaitStatus::PtraceEvent(thread, ..) => go_on(thread, None),
                WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
                WaitStatus::Exited(who, _) | WaitStatus::Signaled(who, ..)
                    if Some(who) == client =>
                {
                    client = None;
                    unmount = Some(start("umount -l u"));
                }
                WaitStatus::Exited(who, _) | WaitStatus::Signaled(who, ..)
                    if Some(who) == unmount =>
                {
                    unmount = None;
                }
                WaitStatus::Signaled(who, signal, _) if who == self.server => {
                    assert_eq!((signal, self.left), (Signal::SIGKILL, 0), "{operation}");
                    killed = Some(true);
                }
                WaitStatus::Exited(who, code) if who == self.server => {
                    assert_eq!(code, 0, "{operation}: how the server ended");
                    killed = Some(false);
                }
                _ => {}
            }
        }
        killed == Some(true)
    }

    /// A thread is about to make a system call, or has made one.
    fn call(&mut self, thread: Pid) {
        let about = ptrace::syscall_info(thread).map(|info| info.op);
        if about == Ok(libc::PTRACE_SYSCALL_INFO_ENTRY) && changes(thread) && self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                kill(self.server, Signal::SIGKILL).unwrap();
            }
        }
        go_on(thread, None);
    }
}

/// Does the call that this thread is about to make change anything?
fn changes(thread: Pid) -> bool {
    // One that is being killed has none any more.
    let call = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    let mut words = call.split_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse().ok()) else { return false };
    if number == libc::SYS_openat {
        let flags = words.nth(2).and_then(|word| word.strip_prefix("0x"));
        let flags = flags.and_then(|word| u64::from_str_radix(word, 16).ok());
        let creating = (libc::O_CREAT | libc::O_TRUNC) as u64;
        return flags.is_some_and(|flags| flags & creating != 0);
    }
    CHANGES.contains(&number)
}

/// It goes on, unless it has been killed meanwhile.
fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("thread {thread} of the server: {errno}"),
    }
}

#[expect(clippy::zombie_processes, reason = "all children are waited for in one place")]
fn start(script: &str) -> Pid {
    let child = Command::new("sh")
        .args(["-c", script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Pid::from_raw(child.id().cast_signed())
}
