//! What has broken other launchers, tried on this one.

use std::fs;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::Cmd;
use tests::harness::{Test, World, skip};

use crate::fixtures::{busybox_rootfs, sha256};

pub(crate) const TESTS: &[Test] = &[
    Test::new("attacks/kernel-calls", kernel_calls).each_user(),
    Test::new("attacks/calls-of-32-bit-and-x32", other_conventions).each_user(),
    Test::new("attacks/terminal-input", terminal_input).each_user(),
    Test::new("attacks/init-from-inside", init_from_inside).each_user(),
    Test::new("attacks/own-program-overwritten", own_program).each_user(),
    Test::new("attacks/abstract-sockets", abstract_sockets).each_user(),
    Test::new("attacks/links-for-proc-and-dev", links_for_proc_and_dev).each_user(),
    Test::new("attacks/false-null-device", false_null).each_user(),
    Test::new("attacks/fifo-for-passwd", fifo_for_passwd),
    Test::new("attacks/descriptors-and-directory", descriptors_and_directory).each_user(),
    Test::new("attacks/standard-input-opened-again", input_again).each_user(),
    Test::new("attacks/tracing-what-joins", tracing_joined).each_user(),
    Test::new("attacks/abstract-sockets-of-a-shared-network", shared_sockets).each_user(),
    Test::new("attacks/links-in-targets", links_in_targets).each_user(),
    Test::new("attacks/paths-that-change-while-masked", masked_races).each_user(),
    Test::new("attacks/strict-umask", strict_umask).each_user(),
    Test::new("attacks/children-of-a-shell", children_of_a_shell),
];

const LIMIT: Duration = Duration::from_secs(20);

/// What every script below starts with: system calls by number.
const CALLS: &str = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*a):
    r = libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
    return 0 if r >= 0 else ctypes.get_errno()
def expect(name, want, *a):
    got = call(*a)
    if got not in (want if isinstance(want, tuple) else (want,)):
        print(name, "gave", errno.errorcode.get(got, got))
"#;

fn python(world: &World<'_>, options: &[&str], script: &str) -> Result<Cmd> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(skip("the numbers of its system calls are x86-64's"));
    }
    let words = ["run", "--rm", "--network", "none"];
    let script = format!("{CALLS}{script}");
    let cmd = world.coracle(&words).args(options);
    Ok(cmd.args(["--", "python3", "-c"]).arg(script))
}

/// Keys of the host's users, and what the kernel runs with too much of itself.
fn kernel_calls(world: &World<'_>) -> Result<()> {
    let script = r#"
buffer = ctypes.create_string_buffer(64)
expect("add_key", errno.EPERM, 248, b"user", b"x", b"y", 1, -3)
expect("request_key", errno.EPERM, 249, b"user", b"x", 0, -3)
expect("keyctl", errno.EPERM, 250, 0, -3, 0)
expect("bpf", errno.EPERM, 321, 0, buffer, 64)
expect("userfaultfd", errno.EPERM, 323, 0)
expect("io_uring_setup", errno.EPERM, 425, 1, buffer)
expect("mount", errno.EPERM, 165, b"x", b"/mnt", b"tmpfs", 0, 0)
expect("open_tree", errno.EPERM, 428, -100, b"/", 1)
expect("move_mount", errno.EPERM, 429, -1, b"", -1, b"", 4)
expect("pivot_root", errno.EPERM, 155, b".", b".")
expect("setns", errno.EPERM, 308, 0, 0)
expect("unshare of users", errno.EPERM, 272, 0x10000000)
expect("unshare of users, stray bits", errno.EPERM, 272, 0x7fff000010000000)
expect("clone of users", errno.EPERM, 56, 0x10000011, 0, 0, 0, 0)
expect("clone3", errno.ENOSYS, 435, buffer, 64)
expect("vsock", errno.EPERM, 41, 40, 1, 0)
expect("kexec_load", errno.EPERM, 246, 0, 0, 0, 0)
expect("unknown", errno.ENOSYS, 9999)
for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
             "/proc/sys/kernel/modprobe", "/proc/sys/fs/binfmt_misc/register",
             "/sys/kernel/uevent_helper", "/sys/power/state"]:
    try:
        open(path, "w").write("0")
        print(path, "was written")
    except OSError:
        pass
for path in ["/proc/keys", "/proc/kcore", "/proc/timer_list"]:
    try:
        if open(path, "rb").read(1): print(path, "was read")
    except OSError:
        pass
"#;
    python(world, &[], script)?.run()?.ok()?.stdout_is("")?;
    Ok(())
}

/// The same filter by the other ways into the kernel.
fn other_conventions(world: &World<'_>) -> Result<()> {
    let script = r#"
import mmap, struct
# x32: bit 30 of the number.
for number in [39, 165, 272, 16, 250]:
    expect(f"x32 call {number}", errno.ENOSYS, 0x40000000 | number, 0x10000000, 0x5412, 0, 0, 0)
# int 0x80, with arguments in ebx, ecx, edx.
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53 89f8 89f3 89d1 89ca cd80 5b c3".replace(" ", "")))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(address)
if os.fork() == 0:
    os._exit(0 if entry(20, 0, 0) == os.getpid() else 9)
if os.wait()[1] != 0:
    # A kernel without 32-bit calls ends the child by a signal.
    print("no 32-bit calls")
    raise SystemExit
for name, want, number, a, b in [
    ("mount", errno.EPERM, 21, 0, 0), ("unshare", errno.EPERM, 310, 0x10000000, 0),
    ("clone", errno.EPERM, 120, 0x10000011, 0), ("keyctl", errno.EPERM, 288, 0, 0),
    ("ioctl TIOCSTI", errno.EPERM, 54, 0, 0x5412), ("bpf", errno.EPERM, 357, 0, 0),
    ("socket of vsock", errno.EPERM, 359, 40, 1), ("unknown", errno.ENOSYS, 9999, 0, 0),
]:
    got = entry(number, a, b)
    if got != -want: print("int 0x80", name, "gave", got)
"#;
    let output = python(world, &[], script)?.run()?.ok()?;
    if output.stdout.trim() == "no 32-bit calls" {
        return Err(skip("this kernel has no 32-bit calls (CONFIG_IA32_EMULATION)"));
    }
    output.stdout_is("")?;
    Ok(())
}

/// Input typed on behalf of the caller (CVE-2017-5226).
fn terminal_input(world: &World<'_>) -> Result<()> {
    let script = r#"
letter = ctypes.create_string_buffer(b"x")
for name, number in [("TIOCSTI", 0x5412), ("TIOCSTI, stray bits", 0x100005412), ("TIOCLINUX", 0x541c)]:
    expect(name, errno.EPERM, 16, 0, number, letter)
    try:
        tty = os.open("/dev/tty", os.O_RDWR)
        expect(name, errno.EPERM, 16, tty, number, letter)
        os.close(tty)
    except OSError:
        pass
"#;
    for options in [&["-i"][..], &["-i", "-t"]] {
        python(world, options, script)?.run()?.ok()?.stdout_is("")?;
    }
    Ok(())
}

/// Init holds more than the workload: it can be neither read, traced nor stopped.
fn init_from_inside(world: &World<'_>) -> Result<()> {
    let script = r#"
import signal
buffer = ctypes.create_string_buffer(64)
iov = ctypes.create_string_buffer(b"".join(x.to_bytes(8, "little") for x in [ctypes.addressof(buffer), 64]))
expect("ptrace attach", errno.EPERM, 101, 16, 1, 0, 0)
expect("ptrace seize", errno.EPERM, 101, 0x4206, 1, 0, 0)
expect("process_vm_readv", errno.EPERM, 310, 1, iov, 1, iov, 1, 0)
pidfd = libc.syscall(434, 1, 0)
expect("pidfd_getfd", (errno.EPERM, errno.ENOSYS), 438, pidfd, 3, 0)
for name in ["mem", "environ", "maps", "fd/3", "fdinfo/3", "exe", "root/etc/passwd", "cwd/etc/passwd"]:
    try:
        open("/proc/1/" + name, "rb").read(1)
        print("/proc/1/" + name, "was read")
    except OSError:
        pass
for pid in [int(p) for p in os.listdir("/proc") if p.isdigit()]:
    if pid != 1 and os.getppid() != 1: print("parent", os.getppid())
for number in [signal.SIGSTOP, signal.SIGKILL]:
    os.kill(1, number)
print("alive")
raise SystemExit(7)
"#;
    python(world, &[], script)?.run()?.code_is(7)?.stdout_is("alive")?;
    Ok(())
}

/// CVE-2019-5736: a container that gets hold of the program that joins it.
fn own_program(world: &World<'_>) -> Result<()> {
    // Copies that the caller, and so the container's root, could write.
    let bin = world.dir().join("bin");
    world.cmd("mkdir").arg(&bin).run()?.ok()?;
    for program in tests::lab::PROGRAMS {
        world.cmd("cp").arg(world.lab.bin.join(program)).arg(&bin).run()?.ok()?;
    }
    let program = bin.join("coracle");
    let before = sha256(&program)?;
    let coracle = |args: &[&str]| Cmd::new(&program).user(world.user).dir(world.dir()).args(args);
    // It waits for programs that are not the container's own, keeps what it can
    // open of them, and writes when they have ended.
    let script = r##"
import os, time
open("/bin/evil", "w").write("#!/proc/self/exe\n"); os.chmod("/bin/evil", 0o755)
own, kept, wrote = os.stat("/proc/self/exe").st_dev, {}, 0
print("up", flush=True)
while not os.path.exists("/stop"):
    for pid in os.listdir("/proc"):
        if not pid.isdigit(): continue
        try:
            fd = os.open(f"/proc/{pid}/exe", os.O_PATH)
        except OSError: continue
        s = os.fstat(fd)
        if s.st_dev == own or (s.st_dev, s.st_ino) in kept: os.close(fd)
        else: kept[(s.st_dev, s.st_ino)] = fd
    for fd in kept.values():
        for flags in [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC]:
            try:
                os.write(os.open(f"/proc/self/fd/{fd}", flags), b"#!/bin/sh\necho pwned\n")
                wrote += 1
            except OSError: pass
print("held", len(kept) > 0, "wrote", wrote, flush=True)
"##;
    // Landlock alone keeps it from opening anything of theirs.
    for (option, held) in
        [("--security-opt=landlock=off", "held True"), ("--security-opt=no-new-privileges", "held")]
    {
        let words = ["run", "--rm", "--name", "evil", "--network", "none", option];
        let running = coracle(&words).args(["--", "python3", "-c"]).arg(script).spawn()?;
        running.stdout_until("up\n", LIMIT)?;
        for _ in 0..20 {
            // What it says does not matter: the kernel executes our own program, in there.
            coracle(&["exec", "evil", "/bin/evil"]).run()?;
        }
        coracle(&["exec", "evil", "touch", "/stop"]).run()?.ok()?;
        running.wait(LIMIT)?.ok()?.stdout_has(held)?.stdout_has("wrote 0")?;
    }
    ensure!(sha256(&program)? == before, "the program was overwritten");
    Ok(())
}

/// They belong to the network namespace, whatever the file system shows.
fn abstract_sockets(world: &World<'_>) -> Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("coracle-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name)?;
    let listener = UnixListener::bind_addr(&address)?;
    std::os::unix::net::UnixStream::connect_addr(&address).context("nobody listens")?;
    let script = format!(
        "import socket\ntry:\n  socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('reached')\n\
         except ConnectionRefusedError: print('refused')"
    );
    for network in ["none", "netstack"] {
        let words = ["run", "--rm", "--network", network, "--", "python3", "-c", &script];
        world.coracle(&words).run()?.ok()?.stdout_is("refused")?;
    }
    drop(listener);
    Ok(())
}

/// A root that would have the kernel's file systems mounted elsewhere.
fn links_for_proc_and_dev(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let root_text = root.to_str().context("the lab's paths are ASCII")?.to_owned();
    for name in ["proc", "sys", "dev"] {
        world.cmd("rmdir").arg(root.join(name)).run()?.ok()?;
        world.cmd("ln").args(["-s", "/tmp"]).arg(root.join(name)).run()?.ok()?;
        let words = ["run", "--rm", "--network", "none", "--rootfs", &root_text, "--", "true"];
        let output = world.coracle(&words).run()?.code_is(125)?;
        let what = format!("/{name}");
        ensure!(output.stderr.contains(&what), "{}", output.describe());
        fs::remove_file(root.join(name))?;
        world.cmd("mkdir").arg(root.join(name)).run()?.ok()?;
    }
    Ok(())
}

/// CVE-2025-31133: paths are masked with what is at /dev/null.
fn false_null(world: &World<'_>) -> Result<()> {
    let shared = world.dir().join("dev");
    world.cmd("mkdir").arg(&shared).run()?.ok()?;
    for (command, script) in [
        ("a file", "rm -f null; echo mine >null"),
        ("a link", "rm -f null; ln -s /proc/self/status null"),
    ] {
        world.cmd("sh").args(["-c", script]).dir(&shared).run()?.ok()?;
        let volume = format!("{}:/dev", shared.display());
        let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "cat", "/proc/keys"];
        let output = world.coracle(&words).run()?;
        ensure!(output.code == 125, "{command} was taken for /dev/null\n{}", output.describe());
        ensure!(output.stderr.contains("/dev/null"), "{}", output.describe());
    }
    Ok(())
}

/// Nothing of the root's is waited for.
fn fifo_for_passwd(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    for name in ["passwd", "group"] {
        let path = root.join("etc").join(name);
        fs::remove_file(&path)?;
        world.cmd("mkfifo").arg(&path).run()?.ok()?;
    }
    let root = root.to_str().context("the lab's paths are ASCII")?.to_owned();
    let words = ["run", "--rm", "--network", "none", "--rootfs", &root, "--", "echo", "ran"];
    world.coracle(&words).limit(LIMIT).run()?.ok()?.stdout_is("ran")?;
    Ok(())
}

/// CVE-2024-21626, and what a container in the background would hold for ever.
fn descriptors_and_directory(world: &World<'_>) -> Result<()> {
    let (ours, theirs) = tests::command::pipe()?;
    let words = ["run", "-d", "--rm", "--name", "holds", "--", "sleep", "1000"];
    world.coracle(&words).inherit(theirs).run()?.ok()?;
    let closed = !tests::command::read_ready(&ours, LIMIT)?;
    let mut held = Vec::new();
    for pid in world.lab.processes() {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        if cwd == world.dir() {
            held.push(tests::leak::describe(pid));
        }
    }
    world.coracle(&["rm", "-f", "holds"]).run()?.ok()?;
    ensure!(closed, "the caller's pipe is still open");
    ensure!(held.is_empty(), "the caller's directory is held by {}", held.join("\n    "));
    Ok(())
}

/// Files that everybody in the container needs are there for everybody.
fn strict_umask(world: &World<'_>) -> Result<()> {
    let script = "umask 077; exec \"$@\"";
    let inside = "stat -c %a /etc/hosts /etc/hostname /etc/resolv.conf; umask 022; \
                  mkdir /srv/d; touch /srv/d/f; stat -c %a / /srv/d /srv/d/f";
    let program = world.lab.bin.join("coracle");
    let cmd = world.cmd("sh").args(["-c", script, "sh"]).arg(program);
    let output = cmd.args(["run", "--rm", "--", "sh", "-c", inside]).run()?.ok()?;
    output.stdout_is("644\n644\n644\n755\n755\n644")?;
    Ok(())
}

/// A shell that becomes `coracle` leaves it children that are none of its own.
fn children_of_a_shell(world: &World<'_>) -> Result<()> {
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!; exec \"$@\"";
    let program = world.lab.bin.join("coracle");
    let cmd = world.cmd("sh").args(["-c", script, "sh"]).arg(program);
    let cmd = cmd.args(["run", "--rm", "--network", "none", "--", "true"]).limit(LIMIT);
    let output = cmd.run();
    // Whatever came of it.
    for pid in world.lab.processes() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line == b"sleep\x001000\x00" {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            )?;
        }
    }
    output?.ok()?;
    Ok(())
}

/// Streams are the caller's: what they are and what lies beside them is not.
fn input_again(world: &World<'_>) -> Result<()> {
    if tests::sys::landlock_version().is_none_or(|version| version < 2) {
        return Err(skip("this kernel has no Landlock, or one that is too old"));
    }
    world.write("mine", "untouched")?;
    world.write("beside", "secret")?;
    let program = world.lab.bin.join("coracle");
    let program = program.to_str().context("the lab's paths are ASCII")?;
    let run = |option: &str, script: &str, input: &str| {
        let line = format!(
            "{program} run --rm -i --network none {option} -- sh -c '{script}' <{input}; true"
        );
        world.cmd("sh").args(["-c", &line]).run()
    };
    // A file that came for reading is not written, a directory is nothing to look around in.
    let write = "echo changed >/proc/self/fd/0";
    let look = "cat /proc/self/fd/0/beside; ls /proc/self/fd/0/..";
    for option in ["", "--read-only"] {
        run(option, write, "mine")?;
        ensure!(fs::read_to_string(world.dir().join("mine"))? == "untouched", "it was written");
        let output = run(option, look, ".")?;
        ensure!(output.stdout.is_empty(), "{}", output.describe());
    }
    // That this is what keeps it: without Landlock both succeed.
    let off = "--security-opt landlock=off";
    run(off, write, "mine")?;
    ensure!(fs::read_to_string(world.dir().join("mine"))? == "changed\n", "it was not written");
    run(off, look, ".")?.stdout_has("secret")?;
    Ok(())
}

/// A process that joins is not the workload's to read, from before it is executed.
fn tracing_joined(world: &World<'_>) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(skip("the numbers of its system calls are x86-64's"));
    }
    // It looks at every process but its own, as fast as it can, until told to stop.
    let script = format!(
        "{CALLS}{}",
        r#"
got = set()
print("up", flush=True)
while not os.path.exists("/stop"):
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid(): continue
        for name in ["environ", "exe", "cwd", "root", "fd", "maps"]:
            path = f"/proc/{pid}/{name}"
            try:
                if name in ("exe", "cwd", "root"): text = os.readlink(path)
                elif name == "fd": text = " ".join(os.readlink(path + "/" + n) for n in os.listdir(path))
                else: text = open(path).read()
            except OSError: continue
            if "coracle" in text.replace("container=coracle", ""): got.add((name, text[:200]))
print(sorted(got))
"#
    );
    let words = ["run", "--rm", "--name", "watch", "--network", "none", "--", "python3", "-c"];
    let running = world.coracle(&words).arg(&script).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    for _ in 0..20 {
        world.coracle(&["exec", "watch", "true"]).run()?.ok()?;
    }
    world.coracle(&["exec", "watch", "touch", "/stop"]).run()?.ok()?;
    running.wait(LIMIT)?.ok()?.stdout_is("up\n[]")?;
    Ok(())
}

/// With the host's network its abstract sockets are in the same namespace.
fn shared_sockets(world: &World<'_>) -> Result<()> {
    use std::os::linux::net::SocketAddrExt;
    if tests::sys::landlock_version().is_none_or(|version| version < 6) {
        return Err(skip("this kernel's Landlock knows no abstract sockets (version 6)"));
    }
    let name = format!("coracle-shared-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let script = format!(
        "import socket\ntry:\n  socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('reached')\n\
         except PermissionError: print('denied')"
    );
    for (option, want) in
        [("--security-opt=no-new-privileges", "denied"), ("--security-opt=landlock=off", "reached")]
    {
        let words = ["run", "--rm", "--network", "host", option, "--", "python3", "-c", &script];
        world.coracle(&words).run()?.ok()?.stdout_is(want)?;
    }
    Ok(())
}

/// A target that leads out of the root by links leads around in it.
fn links_in_targets(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let text = |path: &std::path::Path| Ok::<_, anyhow::Error>(path.display().to_string());
    let (shared, outside) = (world.dir().join("shared"), world.dir().join("outside"));
    for dir in [&shared, &outside] {
        world.cmd("mkdir").arg(dir).run()?.ok()?;
    }
    fs::write(shared.join("f"), "shown\n")?;
    let links = [
        ("absolute", text(&outside)?),
        ("up", format!("../../../../../../..{}", outside.display())),
        ("magic", "/proc/1/root/tmp".to_owned()),
    ];
    for (name, target) in &links {
        std::os::unix::fs::symlink(target, root.join(name))?;
    }
    let root = text(&root)?;
    for (name, _) in &links {
        for below in ["", "/new"] {
            let volume = format!("{}:/{name}{below}", shared.display());
            let words = ["run", "--rm", "--network", "none", "--rootfs", &root, "-v", &volume];
            let path = format!("/{name}{below}/f");
            let output = world.coracle(&words).args(["--", "cat", &path]).run()?;
            // Shown inside, or refused: never outside.
            ensure!(output.code == 125 || output.stdout == "shown\n", "{}", output.describe());
            let strayed = fs::read_dir(&outside)?.next();
            ensure!(strayed.is_none(), "{name}: {strayed:?} was made outside");
        }
    }
    Ok(())
}

/// CVE-2025-31133 and CVE-2021-30465: another container changes, in a volume that both
/// share, what is mounted and masked meanwhile.
fn masked_races(world: &World<'_>) -> Result<()> {
    let (shared, outside) = (world.dir().join("shared"), world.dir().join("outside"));
    for dir in [&shared, &outside] {
        world.cmd("mkdir").arg(dir).run()?.ok()?;
    }
    let volume = format!("{}:/shared", shared.display());
    // It exchanges a directory for a link that leads out, without end.
    let script = format!(
        "import ctypes, os\nos.makedirs('/shared/d/sub', exist_ok=True)\nos.symlink('{}', '/shared/l')\n\
         print('up', flush=True)\nlibc = ctypes.CDLL(None)\n\
         while not os.path.exists('/shared/stop'):\n  \
         assert libc.renameat2(-100, b'/shared/d', -100, b'/shared/l', 2) == 0",
        outside.display()
    );
    let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "python3", "-c", &script];
    let running = world.coracle(&words).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    let mut shown = 0;
    for _ in 0..30 {
        let inner = format!("{}:/shared/d/sub/made", world.dir().display());
        let words = ["run", "--rm", "--network", "none", "-v", &volume, "-v", &inner];
        let mask = "--security-opt=mask=/shared/d/sub";
        let check = "cat /proc/keys /proc/kcore 2>/dev/null | head -c 1";
        let output = world.coracle(&words).args([mask, "--", "sh", "-c", check]).run()?;
        ensure!(output.code == 0 || output.code == 125, "{}", output.describe());
        ensure!(output.stdout.is_empty(), "a mask failed: {}", output.describe());
        shown += i32::from(output.code == 0);
        let strayed = fs::read_dir(&outside)?.next();
        ensure!(strayed.is_none(), "{strayed:?} was made outside");
    }
    fs::write(shared.join("stop"), "")?;
    running.wait(LIMIT)?.ok()?;
    ensure!(shown > 0, "no container ever came up: nothing was tried");
    Ok(())
}
