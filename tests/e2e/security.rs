//! What can be asked of a container's isolation, and what it is by default.

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output};
use tests::harness::{Test, World, skip};
use tests::lab::Ids;

pub(crate) const TESTS: &[Test] = &[
    Test::new("security/profile-of-ones-own", own_profile).each_user(),
    Test::new("security/profile-of-containers-common", common_profile).each_user(),
    Test::new("security/wrong-options", wrong_options).each_user(),
    Test::new("security/unconfined", unconfined).each_user(),
    Test::new("security/capabilities", capabilities).each_user(),
    Test::new("security/privileged", privileged).each_user(),
    Test::new("security/paths", paths).each_user(),
    Test::new("security/devices", devices).each_user(),
    Test::new("security/nested-user-namespace", nested).each_user(),
    Test::new("security/outer-namespace-out-of-reach", outer).each_user().lab(),
    Test::new("security/low-ports", low_ports).each_user(),
    Test::new("security/signals-without-capabilities", signals),
    Test::new("security/streams-are-opened-again", streams).each_user(),
    Test::new("security/landlock-is-told", landlock_told).each_user(),
    Test::new("security/no-landlock", no_landlock).each_user().lab(),
    Test::new("security/tmpfs-and-read-only", tmpfs).each_user(),
];

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

/// What /proc/self/status says of the container's root, run or joined.
fn status(world: &World<'_>, options: &[&str], fields: &str) -> Result<String> {
    let script = format!("grep -E '^({fields}):' /proc/self/status | tr -d '\\t'");
    let run = world.coracle(&RUN).args(options).args(["--", "sh", "-c", &script]).run()?.ok()?;
    let words = ["run", "-d", "--rm", "--network", "none", "--name", "held"];
    world.coracle(&words).args(options).args(["--", "sleep", "1000"]).run()?.ok()?;
    let exec = world.coracle(&["exec", "held", "sh", "-c", &script]).run();
    world.coracle(&["rm", "-f", "held"]).run()?.ok()?;
    let exec = exec?.ok()?;
    ensure!(run.stdout == exec.stdout, "exec is another one than run:\n{}", exec.describe());
    Ok(run.stdout.trim().replace('\n', " "))
}

/// Read once, good for run and exec: the file may be another one by then.
fn own_profile(world: &World<'_>) -> Result<()> {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture":
        "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno": "EROFS"},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3,
         "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
        {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO",
         "includes": {"caps": ["CAP_NET_RAW"]}}]}"#;
    world.write("profile.json", profile)?;
    let option = "--security-opt=seccomp=profile.json";
    let script = "mkdir /root/d 2>&1; kill -USR1 $$ 2>/dev/null || echo 'no kill'; \
                  kill -0 $$ && ln -s x /root/l && echo linked";
    let want = "File system"; // … of "Read-only file system", whatever mkdir puts in front
    let check = |text: &str| {
        let said = text.to_lowercase().contains(&want.to_lowercase());
        said && text.contains("no kill") && text.contains("linked")
    };
    let words = ["run", "-d", "--rm", "--network", "none", "--name", "own", option];
    world.coracle(&words).args(["--", "sleep", "1000"]).run()?.ok()?;
    world.write("profile.json", "changed since")?;
    let exec = world.coracle(&["exec", "own", "sh", "-c", script]).run();
    world.coracle(&["rm", "-f", "own"]).run()?.ok()?;
    let exec = exec?;
    ensure!(check(&exec.stdout), "{}", exec.describe());
    world.write("profile.json", profile)?;
    for _ in 0..2 {
        // The second time from what was kept of the first.
        let run = world.coracle(&RUN).args([option, "--", "sh", "-c", script]).run()?;
        ensure!(check(&run.stdout), "{}", run.describe());
    }
    // A rule for those who have a capability.
    let words = [option, "--cap-add", "NET_RAW", "--", "sh", "-c", script];
    let run = world.coracle(&RUN).args(words).run()?;
    ensure!(!run.stdout.contains("linked"), "{}", run.describe());
    Ok(())
}

/// The profile that Podman itself uses, with all its conditions.
fn common_profile(world: &World<'_>) -> Result<()> {
    const PROFILE: &str = "/usr/share/containers/seccomp.json";
    if !std::path::Path::new(PROFILE).exists() {
        return Err(skip("containers-common is not installed (no seccomp.json)"));
    }
    let option = format!("--security-opt=seccomp={PROFILE}");
    let script = "grep -c '^Seccomp:.2' /proc/self/status; touch /root/f && chown 33:33 /root/f; \
                  mkdir /root/m && mount -t tmpfs t /root/m 2>/dev/null || echo no mount";
    let words = [&option, "--", "sh", "-c", script];
    world.coracle(&RUN).args(words).run()?.ok()?.stdout_is("1\nno mount")?;
    let words = [&option, "--cap-add", "SYS_ADMIN", "--", "sh", "-c", script];
    world.coracle(&RUN).args(words).run()?.ok()?.stdout_is("1")?;
    Ok(())
}

fn wrong_options(world: &World<'_>) -> Result<()> {
    world.write("bad.json", "{\n \"defaultAction\": \"SCMP_ACT_MAYBE\"\n}")?;
    world.cmd("mkfifo").arg(world.dir().join("fifo")).run()?.ok()?;
    for (options, words) in [
        (["--security-opt", "seccomp=bad.json"], &["bad.json", "line 2", "SCMP_ACT_MAYBE"][..]),
        (["--security-opt", "seccomp=nonesuch"], &["nonesuch", "No such file"]),
        (["--security-opt", "seccomp=fifo"], &["no regular file"]),
        (["--security-opt", "nonsense"], &["nonsense"]),
        (["--security-opt", "no-new-privileges=false"], &["always on"]),
        (["--cap-add", "FLY"], &["'FLY'", "capabilities(7)"]),
        (["--cap-drop", "CAP_"], &["'CAP_'"]),
    ] {
        let output = world.coracle(&RUN).args(options).args(["--", "true"]).run()?.code_is(125)?;
        let one_line = output.stderr.trim().lines().count() == 1;
        let told = words.iter().all(|word| output.stderr.contains(word));
        ensure!(one_line && told, "{options:?} {words:?}\n{}", output.describe());
    }
    world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout_is("")?;
    Ok(())
}

fn unconfined(world: &World<'_>) -> Result<()> {
    let option = "--security-opt=seccomp=unconfined";
    // A single id has a filter that pretends other ids.
    let filter = if world.ids == Ids::Single { "2" } else { "0" };
    let got = status(world, &[option], "NoNewPrivs|Seccomp")?;
    ensure!(got == format!("NoNewPrivs:1 Seccomp:{filter}"), "{got}");
    // User namespaces are what the default filter refuses.
    for (options, want) in [(&[][..], "refused"), (&[option], "made")] {
        let script = "unshare -U true 2>/dev/null && echo made || echo refused";
        let cmd = world.coracle(&RUN).args(options).args(["--", "sh", "-c", script]);
        cmd.run()?.ok()?.stdout_is(want)?;
    }
    Ok(())
}

fn capabilities(world: &World<'_>) -> Result<()> {
    const FIELDS: &str = "CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp";
    let sets = |held: &str| {
        let none = "0000000000000000";
        format!(
            "CapInh:{none} CapPrm:{held} CapEff:{held} CapBnd:{held} CapAmb:{none} NoNewPrivs:1 Seccomp:2"
        )
    };
    for (options, held) in [
        // The eleven of Podman, and no more.
        (&[][..], "00000000800405fb"),
        (&["--cap-drop", "ALL"], "0000000000000000"),
        (&["--cap-drop", "all", "--cap-add", "CAP_CHOWN,kill"], "0000000000000021"),
        (&["--cap-add", "net_raw", "--cap-drop", "SYS_CHROOT"], "00000000800025fb"),
    ] {
        let got = status(world, options, FIELDS)?;
        ensure!(got == sets(held), "{options:?}: {got}");
    }
    // What is dropped is gone for good, and what was added works.
    let script = "chroot / true 2>/dev/null && echo chroot; \
                  python3 -c 'import socket; socket.socket(2, 3, 1)' 2>/dev/null && echo raw; true";
    for (options, want) in [
        (&[][..], "chroot"),
        (&["--cap-add", "net_raw", "--cap-drop", "sys_chroot"], "raw"),
        (&["--cap-add", "all"], "chroot\nraw"),
    ] {
        let cmd = world.coracle(&RUN).args(options).args(["--", "sh", "-c", script]);
        cmd.run()?.ok()?.stdout_is(want)?;
    }
    Ok(())
}

fn privileged(world: &World<'_>) -> Result<()> {
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let all = format!("{:016x}", (1u64 << (last + 1)) - 1);
    let got = status(world, &["--privileged"], "CapEff|CapBnd")?;
    ensure!(got == format!("CapEff:{all} CapBnd:{all}"), "{got}");
    let script = "mkdir /mnt/m && mount -t tmpfs t /mnt/m && echo mounted; \
                  [ -e /proc/keys ] && grep -q . /proc/keys && echo keys; \
                  hostname renamed && hostname; ls /dev | tr '\\n' ' '";
    let output =
        world.coracle(&RUN).args(["--privileged", "--", "sh", "-c", script]).run()?.ok()?;
    let output = output.stdout_has("mounted")?.stdout_has("renamed")?;
    ensure!(!output.stdout.contains("fuse"), "a device of the host's: {}", output.describe());
    Ok(())
}

/// Every masked and read-only path, as it is and as it can be asked to be.
fn paths(world: &World<'_>) -> Result<()> {
    let script = r#"
import os
masked = """acpi asound kcore scsi interrupts keys key-users latency_stats sched_debug
            timer_list timer_stats""".split()
masked = ["/proc/" + name for name in masked] + ["/sys/" + name for name in """dev/block firmware
    devices/virtual/powercap fs/selinux kernel/debug kernel/security kernel/tracing""".split()]
shown = []
for path in masked:
    try:
        if os.path.isdir(path): empty = not os.listdir(path)
        else: empty = not open(path, "rb").read(1)
    except FileNotFoundError: continue
    except OSError: empty = False
    if not empty: shown.append(path)
print("shown", len(shown), shown if len(shown) < 3 else "")
writable = []
for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys"]:
    if os.path.exists(path) and not os.statvfs(path).f_flag & os.ST_RDONLY: writable.append(path)
print("writable", *writable)
print(len(os.listdir("/etc")) if os.path.isdir("/etc") else "file")
"#;
    let run = |options: &[&str]| {
        world.coracle(&RUN).args(options).args(["--", "python3", "-c", script]).run()?.ok()
    };
    let usual = run(&[])?;
    ensure!(usual.stdout.starts_with("shown 0 []\nwritable\n"), "{}", usual.describe());
    let all = run(&["--security-opt", "unmask=ALL"])?;
    ensure!(!all.stdout.starts_with("shown 0") && all.stdout.contains("/proc/sys"), "{all:?}");
    let one = run(&["--security-opt", "unmask=/proc/bus:/proc/interrupts"])?;
    ensure!(
        one.stdout.starts_with("shown 1 ['/proc/interrupts']\nwritable /proc/bus\n"),
        "{}",
        one.describe()
    );
    let etc = run(&["--security-opt", "mask=/etc"])?;
    ensure!(etc.stdout.ends_with("\n0\n"), "{}", etc.describe());
    Ok(())
}

/// The devices there are, what they are, and what is mounted beside them.
fn devices(world: &World<'_>) -> Result<()> {
    let script = "cd /dev; ls | tr '\\n' ' '; echo; \
        for d in null zero full random urandom tty; do stat -c '%n %F %t:%T' $d; done; \
        for m in shm mqueue pts .; do grep \" /dev/$m \" /proc/self/mounts | cut -d' ' -f2-4; done; \
        touch shm/f && echo shm; mknod n c 1 3 2>/dev/null || echo 'no node'; \
        touch shm/x && chmod +x shm/x && shm/x 2>/dev/null || echo 'no program'";
    let output = world.coracle(&RUN).args(["--", "sh", "-c", script]).run()?.ok()?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    let names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    ensure!(lines.first() == Some(&names), "{}", output.describe());
    let numbers = ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"];
    for (line, want) in lines[1..7].iter().zip(numbers) {
        let plain = line.replace(" character special file", "");
        ensure!(plain == want, "{line} is not {want}");
    }
    let mount = |point: &str| lines.iter().find(|line| line.starts_with(point));
    for (point, words) in [
        ("/dev/shm ", &["tmpfs", "nosuid", "nodev", "noexec", "size=65536k"][..]),
        ("/dev/mqueue ", &["mqueue", "nosuid", "nodev", "noexec"]),
        ("/dev/pts ", &["devpts", "nosuid", "noexec", "ptmxmode=666"]),
    ] {
        let line = mount(point).with_context(|| format!("no {point}\n{}", output.describe()))?;
        ensure!(words.iter().all(|word| line.contains(word)), "{line}: {words:?}");
    }
    ensure!(output.stdout.ends_with("shm\nno node\nno program\n"), "{}", output.describe());
    Ok(())
}

/// Asks who owns the namespaces of a container: NS_GET_USERNS of ioctl_ns(2), which gives
/// an owner only to who is in it or above.
const OWNER: &str = "\
import fcntl, os
for name in ['net', 'mnt', 'uts', 'ipc', 'pid_for_children']:
    with open('/proc/self/ns/' + name) as ns:
        try: fcntl.ioctl(ns, 0xb701); print(name, 'is ours')
        except PermissionError: pass
";

fn nested(world: &World<'_>) -> Result<()> {
    let script = OWNER;
    for network in ["none", "netstack"] {
        let words = ["run", "--rm", "--network", network, "--", "python3", "-c", script];
        world.coracle(&words).run()?.ok()?.stdout_is("")?;
    }
    let off = "--security-opt=nested-userns=off";
    let words = ["run", "--rm", "--network", "none", off, "--", "python3", "-c", script];
    let all = "net is ours\nmnt is ours\nuts is ours\nipc is ours\npid_for_children is ours";
    world.coracle(&words).run()?.ok()?.stdout_is(all)?;

    // What joins is in the same one, and a terminal works there.
    let words = ["run", "-d", "--rm", "--network", "none", "--name", "nest", "--", "sleep", "1000"];
    world.coracle(&words).run()?.ok()?;
    let joined = world.coracle(&["exec", "nest", "python3", "-c", script]).run();
    let map =
        world.coracle(&["exec", "nest", "cat", "/proc/2/uid_map", "/proc/self/uid_map"]).run();
    world.coracle(&["rm", "-f", "nest"]).run()?.ok()?;
    joined?.ok()?.stdout_is("")?;
    let map = map?.ok()?;
    let map: Vec<&str> = map.stdout.split_whitespace().collect();
    ensure!(map.starts_with(&["0", "0", "1"]), "{map:?}");
    ensure!(map[..map.len() / 2] == map[map.len() / 2..], "{map:?}");

    // Every id is there, and a file's capabilities can be written and read.
    if world.ids == Ids::Subordinate {
        let script = "touch f && chown 65536:65536 f && stat -c %u:%g f; \
            python3 -c \"import os; v=bytes.fromhex('0100000202000000000000000000000000000000'); \
            os.setxattr('f','security.capability',v); print(os.getxattr('f','security.capability')==v)\"";
        let words = ["run", "--rm", "--network", "none", "-w", "/root", "--", "sh", "-c", script];
        world.coracle(&words).run()?.ok()?.stdout_is("65536:65536\nTrue")?;
    }
    Ok(())
}

/// The process with this command line.
fn process(world: &World<'_>, line: &[u8]) -> Result<String> {
    let found =
        world.lab.processes().into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line)
        });
    found.map(|pid| pid.to_string()).context("no such process")
}

const ENTER: &str = "\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for fd in [os.open(f'/proc/{sys.argv[1]}/ns/{name}', 0) for name in ('net', 'uts', 'user')]:
    assert libc.setns(fd, 0) == 0, os.strerror(ctypes.get_errno())
os.setresuid(0, 0, 0)
os.execvp(sys.argv[2], sys.argv[2:])
";

/// Who had every capability of the workload's own namespace could still not touch the
/// network's addresses, its settings, or the host's name.
fn outer(world: &World<'_>) -> Result<()> {
    for (option, succeeds) in
        [("--security-opt=no-new-privileges", false), ("--security-opt=nested-userns=off", true)]
    {
        let words = ["run", "-d", "--rm", "--name", "nest", option, "--", "sleep", "4242"];
        world.coracle(&words).run()?.ok()?;
        let pid = process(world, b"sleep\x004242\x00")?;
        // The lab's root enters, and becomes its root with all capabilities.
        let enter = |words: &[&str]| {
            let cmd = tests::command::Cmd::new("python3").args(["-c", ENTER, &pid]);
            cmd.args(words).run()
        };
        let tried = [
            enter(&["ip", "address", "add", "10.9.9.9/32", "dev", "tap0"]),
            enter(&["ip", "link", "set", "tap0", "mtu", "1400"]),
            enter(&["hostname", "changed"]),
        ];
        world.coracle(&["rm", "-f", "nest"]).run()?.ok()?;
        for output in tried {
            let output = output?;
            ensure!((output.code == 0) == succeeds, "{option}: {}", output.describe());
        }
    }
    Ok(())
}

/// The capability for them does not count in the nested namespace.
fn low_ports(world: &World<'_>) -> Result<()> {
    let script = "import socket\nfor family in [socket.AF_INET, socket.AF_INET6]:\n  \
                  for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM]:\n    \
                  socket.socket(family, kind).bind(('localhost' if family == 2 else '::1', 80))";
    for (options, works) in [
        (&[][..], true),
        (&["--cap-drop", "net_bind_service"], false),
        (&["--security-opt", "nested-userns=off"], true),
    ] {
        let cmd = world.coracle(&RUN).args(options).args(["--", "python3", "-c", script]);
        let output = cmd.run()?;
        ensure!((output.code == 0) == works, "{options:?}: {}", output.describe());
    }
    Ok(())
}

/// Init can end what is not its own, whatever the workload was left.
fn signals(world: &World<'_>) -> Result<()> {
    if world.ids == Ids::Single {
        return Err(skip("needs another user inside"));
    }
    let words = ["run", "-d", "--name", "weak", "--network", "none", "-u", "1:1"];
    world.coracle(&words).args(["--cap-drop", "ALL", "--", "sleep", "1000"]).run()?.ok()?;
    // A SIGTERM that does not arrive is followed by SIGKILL, and so by another code.
    world.coracle(&["stop", "-t", "30", "weak"]).run()?.ok()?;
    let listed = world.coracle(&["ps", "-a"]).run();
    world.coracle(&["rm", "-f", "weak"]).run()?.ok()?;
    listed?.ok()?.stdout_has("Exited (143)")?;
    Ok(())
}

/// Programs open /dev/stdout, whatever it is: a file, a pipe, a device, a socket.
fn streams(world: &World<'_>) -> Result<()> {
    let script = "echo out >>/dev/stdout; echo err >>/dev/stderr; cat /dev/stdin";
    world.write("input", "from a file\n")?;
    let program = world.lab.bin.join("coracle");
    let program = program.to_str().context("the lab's paths are ASCII")?;
    let run = format!("{program} run --rm --network none -i -- sh -c '{script}'");
    for (line, want) in [
        (format!("printf 'in\\n' | {{ {run} 2>&1; }} | cat"), "out\nerr\nin"),
        (format!("{run} <input >>out 2>>err; cat out err"), "out\nfrom a file\nerr"),
        (format!("{run} </dev/null >/dev/null 2>>err2; cat err2"), "err"),
    ] {
        let output = world.cmd("sh").args(["-c", &line]).run()?.ok()?;
        let got: Vec<&str> =
            output.stdout.lines().filter(|line| !line.starts_with("coracle: ")).collect();
        ensure!(got.join("\n") == want, "{line}: {}", output.describe());
    }
    Ok(())
}

/// Starts a program as a user under a filter by which there is no Landlock: root may set
/// it without no_new_privs, under which set-id helpers would be of no use.
const WITHOUT: &str = r"
import ctypes, os, struct, sys
rows = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *row) for row in rows))
class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('rows', ctypes.c_void_p)]
wanted = Filter(len(rows), ctypes.addressof(code))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(wanted), 0, 0) == 0
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
";

/// A kernel without: it works all the same, and one line says so.
fn no_landlock(world: &World<'_>) -> Result<()> {
    if tests::lab::find("python3").is_none() {
        return Err(skip("python3 is not installed"));
    }
    let ids = [world.user.uid.to_string(), world.user.gid.to_string()];
    let coracle = |words: &[&str]| {
        Cmd::new("python3")
            .args(["-c", WITHOUT, &ids[0], &ids[1]])
            .arg(world.lab.bin.join("coracle"))
            .args(words)
            .env("HOME", &world.user.home)
            .dir(world.dir())
            .run()
    };
    let told = |output: &Output| {
        let lines = output.stderr.lines();
        lines.filter(|line| line.contains("warning") && line.contains("no Landlock")).count()
    };
    let words = ["run", "--rm", "--", "sh", "-c", "cat /etc/hostname >/dev/null && echo ran"];
    let output = coracle(&words)?.ok()?.stdout_is("ran")?;
    ensure!(told(&output) == 1, "{}", output.describe());
    let off = ["--security-opt", "landlock=off"];
    let output = coracle(&[&words[..2], &off, &words[2..]].concat())?.ok()?;
    ensure!(told(&output) == 0, "{}", output.describe());
    // That it is what the filter does.
    let output = world.coracle(&words).run()?.ok()?;
    ensure!(told(&output) == 0, "{}", output.describe());
    world.write("policy.toml", "[files]\nrequired = true\nread = ['/']\n")?;
    let policy = [&["run", "--rm", "--policy", "policy.toml"], &words[2..]].concat();
    coracle(&policy)?.fails_with(125, "no Landlock")?;
    Ok(())
}

/// What holds a container can be seen before it runs.
fn landlock_told(world: &World<'_>) -> Result<()> {
    let version = tests::sys::landlock_version();
    let dry = |options: &[&str]| {
        world.coracle(&["run", "--dry-run"]).args(options).args(["--", "true"]).run()?.ok()
    };
    let told = dry(&[])?;
    let want = match version {
        Some(version) if version > 1 => {
            format!("Landlock {version}: below / read, write, execute")
        }
        _ => "no Landlock".to_owned(),
    };
    ensure!(told.stdout.contains(&want), "{want}\n{}", told.describe());
    ensure!(told.stdout.contains("user namespace of its own"), "{}", told.describe());
    let off = dry(&["--security-opt", "landlock=off", "--security-opt", "nested-userns=off"])?;
    ensure!(off.stdout.contains("no Landlock"), "{}", off.describe());
    ensure!(!off.stdout.contains("user namespace of its own"), "{}", off.describe());
    // Writing goes to the mounts of a read-only root, and nowhere else.
    let script = "echo x >/etc/x; for d in /tmp /run /dev/shm /data; do echo x >$d/x && cat $d/x; done; \
                  mv /tmp/x /tmp/y && rm /tmp/y";
    world.cmd("mkdir").arg(world.dir().join("data")).run()?.ok()?;
    let volume = format!("{}:/data", world.dir().join("data").display());
    let words = ["--read-only", "-v", &volume, "--", "sh", "-c", script];
    world.coracle(&RUN).args(words).run()?.ok()?.stdout_is("x\nx\nx\nx")?;
    Ok(())
}

fn tmpfs(world: &World<'_>) -> Result<()> {
    let script = "cd /scratch && stat -c %a . && cp /bin/true t && (./t 2>/dev/null || echo 'no program'); \
        head -c 8m /dev/zero >big 2>/dev/null || echo full; /programs/t 2>/dev/null; cp t /programs && /programs/t && echo ran; \
        touch /fixed/x 2>/dev/null || echo fixed";
    let options = [
        "--tmpfs",
        "/scratch:size=4m,mode=0750",
        "--tmpfs",
        "/programs:exec",
        "--tmpfs",
        "/fixed:ro",
    ];
    for more in [&[][..], &["--read-only"]] {
        let cmd = world.coracle(&RUN).args(options).args(more).args(["--", "sh", "-c", script]);
        cmd.run()?.ok()?.stdout_is("750\nno program\nfull\nran\nfixed")?;
    }
    // Of a read-only root of one's own /run, /tmp and /var/tmp are left.
    let root = crate::fixtures::busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    let script =
        "for d in /run /tmp /var/tmp /etc; do echo x 2>/dev/null >$d/x && echo $d; done; true";
    for (option, want) in
        [("--read-only-tmpfs", "/run\n/tmp\n/var/tmp"), ("--read-only-tmpfs=false", "")]
    {
        let words = ["--rootfs", root, "--read-only", option, "--", "/bin/sh", "-c", script];
        world.coracle(&RUN).args(words).run()?.ok()?.stdout_is(want)?;
    }
    // A change in memory is bounded and gone with the container.
    let words =
        ["--upper", "ram:4m", "--", "sh", "-c", "head -c 8m /dev/zero >/root/f || echo full"];
    world.coracle(&RUN).args(words).run()?.ok()?.stdout_is("full")?;
    for (option, word) in [("/a:suid", "suid"), ("a", "absolute"), ("/a:size=x", "'x'")] {
        let output = world.coracle(&RUN).args(["--tmpfs", option, "--", "true"]).run()?;
        output.fails_with(125, word)?;
    }
    Ok(())
}
