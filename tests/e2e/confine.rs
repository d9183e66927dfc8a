//! What netstack's processes may still do once they run: calls are made in their place.

use anyhow::Result;
use tests::harness::{Test, World, skip};

pub(crate) const TESTS: &[Test] = &[
    Test::new("confine/seccomp", seccomp).lab(),
    Test::new("confine/landlock", landlock).lab(),
    Test::new("confine/by-the-launcher", by_the_launcher).lab(),
];

#[cfg(not(target_arch = "x86_64"))]
mod on_this_machine {
    use super::*;

    pub(super) fn seccomp(_: &World<'_>) -> Result<()> {
        Err(skip("system calls are injected on x86-64 only"))
    }
    pub(super) use {seccomp as by_the_launcher, seccomp as landlock};
}
use on_this_machine::{by_the_launcher, landlock, seccomp};

#[cfg(target_arch = "x86_64")]
mod on_this_machine {
    use anyhow::{Context, ensure};
    use nix::errno::Errno;
    use tests::inject::Arg::{Int, Text};
    use tests::inject::{Arg, Stopped, threads};

    use super::*;
    use crate::slirp::{Guest, fetch, start};

    /// Flags as the kernel takes them.
    fn int(value: impl Into<i64>) -> Arg {
        Int(value.into())
    }

    struct Attempt {
        what: &'static str,
        call: i64,
        args: Vec<Arg>,
        /// What comes of it without a filter: a test that is refused anyway proves
        /// nothing.
        otherwise: fn(Result<i64, Errno>) -> bool,
    }

    fn attempts() -> Vec<Attempt> {
        let ok: fn(Result<i64, Errno>) -> bool = |result| result.is_ok();
        let attempt = |what, call, args, otherwise| Attempt { what, call, args, otherwise };
        let cwd = int(libc::AT_FDCWD);
        let stream = int(libc::SOCK_STREAM);
        vec![
            attempt("open a file", libc::SYS_openat, vec![cwd, Text("/etc/passwd"), Int(0)], ok),
            attempt("open(2) a file", libc::SYS_open, vec![Text("/etc/passwd"), Int(0)], ok),
            attempt(
                "open resolv.conf for writing",
                libc::SYS_openat,
                vec![cwd, Text("/dev/null"), int(libc::O_RDWR)],
                ok,
            ),
            attempt(
                "make a directory",
                libc::SYS_mkdirat,
                vec![cwd, Text("/proc/x"), Int(0o700)],
                |result| result == Err(Errno::ENOENT),
            ),
            attempt(
                "start a program",
                libc::SYS_execve,
                vec![Text("/nonexistent"), Int(0), Int(0)],
                |result| result == Err(Errno::ENOENT),
            ),
            attempt(
                "start a program by descriptor",
                libc::SYS_execveat,
                vec![Int(-1), Text(""), Int(0), Int(0), int(libc::AT_EMPTY_PATH)],
                |result| result == Err(Errno::EBADF),
            ),
            attempt(
                "make a UNIX socket",
                libc::SYS_socket,
                vec![int(libc::AF_UNIX), stream, Int(0)],
                ok,
            ),
            attempt(
                "make a netlink socket",
                libc::SYS_socket,
                vec![int(libc::AF_NETLINK), int(libc::SOCK_RAW), Int(0)],
                ok,
            ),
            attempt(
                "make an MPTCP socket",
                libc::SYS_socket,
                vec![int(libc::AF_INET), stream, int(libc::IPPROTO_MPTCP)],
                |result| result != Err(Errno::EPERM),
            ),
            attempt(
                "make a socket pair",
                libc::SYS_socketpair,
                vec![int(libc::AF_UNIX), stream, Int(0), Int(0)],
                |result| result == Err(Errno::EFAULT),
            ),
            attempt(
                "make a namespace",
                libc::SYS_unshare,
                vec![int(libc::CLONE_NEWUTS | libc::CLONE_NEWUSER)],
                |result| {
                    // Not with several threads; what matters is that it is no EPERM.
                    result == Err(Errno::EINVAL)
                },
            ),
            attempt("signal others", libc::SYS_kill, vec![Int(1 << 22), Int(0)], |result| {
                result == Err(Errno::ESRCH)
            }),
            attempt(
                "make memory executable",
                libc::SYS_mmap,
                vec![
                    Int(0),
                    Int(4096),
                    int(libc::PROT_READ | libc::PROT_EXEC),
                    int(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
                    Int(-1),
                    Int(0),
                ],
                ok,
            ),
            attempt("make a memory file", libc::SYS_memfd_create, vec![Text("x"), Int(0)], ok),
            attempt(
                "load a packet filter",
                libc::SYS_setsockopt,
                vec![Int(-1), int(libc::SOL_SOCKET), int(libc::SO_ATTACH_FILTER), Int(0), Int(0)],
                |result| result == Err(Errno::EBADF),
            ),
        ]
    }

    /// The processes of a network: itself, and the one that reads files.
    fn processes(pid: i32) -> Result<(i32, i32)> {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let reader = children.split_whitespace().next().context("no child reads files")?;
        Ok((pid, reader.parse()?))
    }

    fn cannot_do_anything_else(pid: i32) -> Result<()> {
        let (network, reader) = processes(pid)?;
        for thread in threads(network)? {
            let stopped = Stopped::new(thread)?;
            for attempt in attempts() {
                let result = stopped.call(attempt.call, &attempt.args)?;
                ensure!(result == Err(Errno::EPERM), "{}: {result:?}", attempt.what);
            }
            // What it lives on it has: TCP, UDP and ping sockets.
            for (kind, protocol) in [
                (libc::SOCK_STREAM, 0),
                (libc::SOCK_DGRAM, 0),
                (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP),
            ] {
                let args = [int(libc::AF_INET), int(kind), int(protocol)];
                let socket = stopped.call(libc::SYS_socket, &args)?;
                let fd = socket.with_context(|| format!("socket of kind {kind}, {protocol}"))?;
                stopped.call(libc::SYS_close, &[Int(fd)])??;
            }
        }
        let stopped = Stopped::new(reader)?;
        for attempt in attempts() {
            let result = stopped.call(attempt.call, &attempt.args)?;
            if matches!(attempt.what, "open a file" | "open(2) a file") {
                stopped.call(libc::SYS_close, &[Int(result?)])??;
            } else {
                ensure!(result == Err(Errno::EPERM), "reader: {}: {result:?}", attempt.what);
            }
        }
        Ok(())
    }

    pub(super) fn seccomp(world: &World<'_>) -> Result<()> {
        let guest = Guest::start(world)?;
        // Without it every attempt gives what it gives.
        let net = start(world, &["-c", "-6", &guest.pid(), "tap0"])?;
        {
            let stopped = Stopped::new(net.running.pid())?;
            for attempt in attempts() {
                let result = stopped.call(attempt.call, &attempt.args)?;
                ensure!(
                    (attempt.otherwise)(result),
                    "{} without a filter: {result:?}",
                    attempt.what
                );
            }
        }
        net.stop()?;
        for options in [&["--enable-seccomp"][..], &["--enable-sandbox", "--enable-seccomp"]] {
            let pid = guest.pid();
            let net = start(world, &[options, &["-c", "-6", &pid, "tap0"]].concat())?;
            cannot_do_anything_else(net.running.pid())?;
            // And it has gone on as if nothing had happened.
            fetch(world, &guest)?;
            net.stop()?;
        }
        Ok(())
    }

    pub(super) fn landlock(world: &World<'_>) -> Result<()> {
        let guest = Guest::start(world)?;
        let net = start(world, &["--enable-sandbox", "-c", "-6", &guest.pid(), "tap0"])?;
        // The kernel's version of it (landlock_create_ruleset(2)).
        let version = Stopped::new(net.running.pid())?.call(444, &[Int(0), Int(0), Int(1)])?;
        if version.is_err() {
            return Err(skip("the kernel has no Landlock"));
        }
        for thread in threads(net.running.pid())? {
            let stopped = Stopped::new(thread)?;
            for path in ["/etc/passwd", "/etc/resolv.conf", "/etc", "/"] {
                let args = [int(libc::AT_FDCWD), Text(path), Int(0)];
                let result = stopped.call(libc::SYS_openat, &args)?;
                ensure!(result == Err(Errno::EACCES), "{path}: {result:?}");
            }
            let home = stopped.call(libc::SYS_access, &[Text("/home"), Int(0)])?;
            ensure!(home == Err(Errno::ENOENT), "/home is there: {home:?}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", net.running.pid()))?;
        for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000", "CapPrm:\t0000000000000"] {
            ensure!(status.contains(line), "no {line:?} in\n{status}");
        }
        fetch(world, &guest)?;
        net.stop()
    }

    pub(super) fn by_the_launcher(world: &World<'_>) -> Result<()> {
        let mut container = world
            .coracle(&["run", "--rm", "-i", "--", "sh", "-c", "echo up; exec cat"])
            .stdin_open()
            .spawn()?;
        container.stdout_until("up\n", crate::slirp::LIMIT)?;
        let children = format!("/proc/{0}/task/{0}/children", container.pid());
        let mut found = false;
        for child in std::fs::read_to_string(children)?.split_whitespace() {
            if std::fs::read_to_string(format!("/proc/{child}/comm"))?.trim() == "netstack" {
                cannot_do_anything_else(child.parse()?)?;
                found = true;
            }
        }
        ensure!(found, "coracle has no netstack for a child");
        container.close_stdin();
        container.wait(crate::slirp::LIMIT)?.ok()?;
        Ok(())
    }
}
