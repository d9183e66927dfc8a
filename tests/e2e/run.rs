//! `coracle run`: what the workload gets, and what comes back.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::harness::{Test, World};

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("run/main-job", main_job).each_user(),
    Test::new("run/exit-codes", exit_codes).each_user(),
    Test::new("run/killed-by-signal", killed_by_signal),
    Test::new("run/signals-are-forwarded", signals_are_forwarded),
    Test::new("run/stdin-and-output", stdin_and_output),
    Test::new("run/environment", environment),
    Test::new("run/workdir-user-hostname", workdir_user_hostname).subordinate_ids(),
    Test::new("run/single-id-is-said-once", single_id_is_said_once).single_id(),
    Test::new("run/volumes", volumes).each_user(),
    Test::new("run/volume-through-a-symlink", volume_through_a_symlink).each_user(),
    Test::new("run/read-only", read_only).each_user(),
    Test::new("run/rootfs-directory", rootfs_directory).each_user(),
    Test::new("run/upper-directory", upper_directory).each_user(),
    Test::new("run/upper-in-memory", upper_in_memory).each_user(),
    Test::new("run/namespaces", namespaces),
    Test::new("run/confinement", confinement).each_user(),
    Test::new("run/orphans-are-reaped", orphans_are_reaped),
    Test::new("run/dry-run", dry_run),
    Test::new("run/no-descriptors", no_descriptors),
];

fn main_job(world: &World<'_>) -> Result<()> {
    let script = "id -u; echo x >/etc/coracle-was-here; cat /etc/coracle-was-here; exit 7";
    let output = world.coracle(&["run", "--rm", "--", "sh", "-c", script]).run()?;
    output.code_is(7)?.stdout_is("0\nx")?;
    ensure!(!Path::new("/etc/coracle-was-here").exists(), "the host's /etc was changed");
    Ok(())
}

fn exit_codes(world: &World<'_>) -> Result<()> {
    for (words, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 255"], 255),
        (&["/no/such/program"], 127),
        (&["no-such-program-anywhere"], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
    ] {
        let mut all = vec!["run", "--rm", "--network", "none", "--"];
        all.extend(words);
        let output = world.coracle(&all).run()?;
        if code == 126 || code == 127 {
            ensure!(output.stderr.contains(words[0]), "no name on stderr\n{}", output.describe());
        }
        output.code_is(code)?;
    }
    // What lies in a program's place is not waited for.
    let root = busybox_rootfs(world)?;
    world.cmd("mkfifo").args(["-m", "777"]).arg(root.join("bin/fifo")).run()?.ok()?;
    let root = root.display().to_string();
    for name in ["fifo", "/bin/fifo", "/dev/tty"] {
        let words = ["run", "--rm", "--network", "none", "--rootfs", &root, "--", name];
        world.coracle(&words).run()?.fails_with(126, name)?;
    }
    Ok(())
}

fn killed_by_signal(world: &World<'_>) -> Result<()> {
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let script = format!("kill -{signal} $$");
        let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", &script];
        world.coracle(&words).run()?.code_is(code)?;
    }
    Ok(())
}

fn signals_are_forwarded(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo got it; exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let running =
        world.coracle(&["run", "--rm", "--network", "none", "--", "sh", "-c", script]).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    running.signal(15)?;
    running.wait(LIMIT)?.code_is(9)?.stdout_has("got it")?;
    Ok(())
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

fn stdin_and_output(world: &World<'_>) -> Result<()> {
    let with = world
        .coracle(&["run", "--rm", "-i", "--network", "none", "--", "cat"])
        .stdin("a line\n")
        .run()?;
    with.ok()?.stdout_is("a line")?;
    // Without -i there is nothing to read.
    let without = world
        .coracle(&["run", "--rm", "--network", "none", "--", "cat"])
        .stdin("a line\n")
        .run()?;
    without.ok()?.stdout_is("")?;
    // Much more than a pipe holds, on both streams.
    let script =
        "head -c 3000000 /dev/zero | tr '\\0' a; head -c 3000000 /dev/zero | tr '\\0' b >&2";
    let much = world
        .coracle(&["run", "--rm", "--network", "none", "--", "sh", "-c", script])
        .run()?
        .ok()?;
    ensure!(much.stdout.len() == 3_000_000, "{} bytes on stdout", much.stdout.len());
    let on_stderr = much.stderr.bytes().filter(|&byte| byte == b'b').count();
    ensure!(on_stderr >= 3_000_000, "{on_stderr} bytes on stderr");
    Ok(())
}

fn environment(world: &World<'_>) -> Result<()> {
    let output = world
        .coracle(&["run", "--rm", "--network", "none", "-e", "A=b c", "-e", "TAKEN", "--", "env"])
        .env("TAKEN", "from the host")
        .env("NOT_TAKEN", "secret")
        .run()?
        .ok()?;
    let mut names: Vec<_> =
        output.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    // TERM is there with a terminal only.
    let want = ["A", "HOME", "HOSTNAME", "PATH", "TAKEN", "container"];
    ensure!(names == want, "variables are {names:?}\n{}", output.describe());
    output.stdout_has("A=b c\n")?.stdout_has("TAKEN=from the host\n")?;
    Ok(())
}

fn workdir_user_hostname(world: &World<'_>) -> Result<()> {
    let words = ["run", "--rm", "--network", "none", "-w", "/usr/lib", "--hostname", "boat", "--"];
    let mut with = words.to_vec();
    with.extend(["sh", "-c", "pwd; hostname; uname -n"]);
    world.coracle(&with).run()?.ok()?.stdout_is("/usr/lib\nboat\nboat")?;
    let words = ["run", "--rm", "--network", "none", "-u", "nobody", "--", "sh", "-c", "id -un"];
    world.coracle(&words).run()?.ok()?.stdout_is("nobody")?;
    let words = ["run", "--rm", "--network", "none", "-u", "7:9", "--", "sh", "-c", "id -u; id -g"];
    world.coracle(&words).run()?.ok()?.stdout_is("7\n9")?;
    Ok(())
}

fn single_id_is_said_once(world: &World<'_>) -> Result<()> {
    let output = world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
    let lines: Vec<_> = output.stderr.lines().collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("subuid"),
        "expected one line about /etc/subuid\n{}",
        output.describe()
    );
    Ok(())
}

fn volumes(world: &World<'_>) -> Result<()> {
    let shared = world.dir().join("shared");
    world.cmd("mkdir").arg(&shared).run()?.ok()?;
    world.write("shared/in", "from the host\n")?;
    let shared = shared.to_str().expect("the lab's paths are ASCII");

    let volume = format!("{shared}:/mnt/new/place");
    let script = "cat /mnt/new/place/in; echo from inside >/mnt/new/place/out";
    let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("from the host")?;
    ensure!(fs::read_to_string(world.dir().join("shared/out"))? == "from inside\n");

    let volume = format!("{shared}:/mnt:ro");
    let script = "cat /mnt/in; echo x >/mnt/no";
    let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "sh", "-c", script];
    let output = world.coracle(&words).run()?;
    ensure!(output.code != 0, "a read-only volume was written\n{}", output.describe());
    ensure!(output.stderr.contains("Read-only file system"), "{}", output.describe());
    ensure!(!world.dir().join("shared/no").exists());

    // One file.
    let volume = format!("{shared}/in:/etc/hostname");
    let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "cat", "/etc/hostname"];
    world.coracle(&words).run()?.ok()?.stdout_is("from the host")?;
    Ok(())
}

fn volume_through_a_symlink(world: &World<'_>) -> Result<()> {
    // The image's symlink points at a directory of the host; what is mounted
    // on it must stay inside, whatever else happens.
    let root = busybox_rootfs(world)?;
    let victim = world.dir().join("victim");
    world.cmd("mkdir").arg(&victim).arg(world.dir().join("shared")).run()?.ok()?;
    world.write("shared/in", "x\n")?;
    world.cmd("ln").arg("-s").arg(&victim).arg(root.join("trap")).run()?.ok()?;
    let root = root.to_str().expect("the lab's paths are ASCII").to_owned();
    for target in ["/trap", "/trap/below", "/trap/../below"] {
        let volume = format!("{}:{target}", world.dir().join("shared").display());
        let words = ["run", "--rm", "--network", "none", "--rootfs", &root, "-v", &volume, "--"];
        world.coracle(&words).args(["touch", "/trap/below/new", "/trap/new"]).run()?;
        ensure!(fs::read_dir(&victim)?.next().is_none(), "{target} reached the host");
    }
    Ok(())
}

fn read_only(world: &World<'_>) -> Result<()> {
    let script = "echo x >/etc/no 2>/dev/null && exit 3; echo y >/tmp/yes && cat /tmp/yes";
    let words = ["run", "--rm", "--read-only", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("y")?;
    Ok(())
}

fn rootfs_directory(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let list = || -> Result<String> {
        Ok(world.cmd("find").arg(&root).args(["-printf", "%p %m %s %T@\n"]).run()?.ok()?.stdout)
    };
    let before = list()?;
    let root = root.to_str().expect("the lab's paths are ASCII").to_owned();
    let script = "id -u; rm /bin/ls; echo x >/etc/new; echo >>/etc/passwd; cat /etc/new; [ -e /usr ] || echo alone";
    let words = ["run", "--rm", "--rootfs", &root, "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("0\nx\nalone")?;
    ensure!(list()? == before, "the root filesystem was changed");
    let words = ["run", "--rm", "--rootfs", &root, "-u", "u", "--", "sh", "-c", "id -u; id -g"];
    if world.ids == tests::lab::Ids::Subordinate {
        world.coracle(&words).run()?.ok()?.stdout_is("7\n8")?;
    }
    Ok(())
}

fn upper_directory(world: &World<'_>) -> Result<()> {
    let upper = world.dir().join("kept");
    let upper = upper.to_str().expect("the lab's paths are ASCII").to_owned();
    let run = |script: &str| {
        let words = ["run", "--rm", "--network", "none", "--upper", &upper, "--"];
        world.coracle(&words).args(["sh", "-c", script]).run()
    };
    run("echo kept >/etc/kept; rm /etc/passwd")?.ok()?;
    run("cat /etc/kept; [ -e /etc/passwd ] || echo gone")?.ok()?.stdout_is("kept\ngone")?;
    // Two containers on one upper would corrupt it.
    ensure!(Path::new("/etc/passwd").exists());
    Ok(())
}

fn upper_in_memory(world: &World<'_>) -> Result<()> {
    let script = "echo x >/etc/x; cat /etc/x; head -c 8000000 /dev/zero >/root/big";
    let words = ["run", "--rm", "--network", "none", "--upper", "ram:4m", "--", "sh", "-c", script];
    let output = world.coracle(&words).run()?;
    ensure!(output.code != 0, "8 MB went into 4 MiB\n{}", output.describe());
    ensure!(output.stderr.contains("No space left on device"), "{}", output.describe());
    output.stdout_is("x")?;
    Ok(())
}

fn namespaces(world: &World<'_>) -> Result<()> {
    let kinds = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"];
    let script = "for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done";
    let inside = world.coracle(&["run", "--rm", "--", "sh", "-c", script]).run()?.ok()?;
    ensure!(inside.stdout.lines().count() == kinds.len(), "{}", inside.describe());
    for (line, kind) in inside.stdout.lines().zip(kinds) {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        ensure!(Path::new(line) != outside, "{kind} is shared with the host: {line}");
    }
    // The network namespace is the host's when that was asked for.
    let words = ["run", "--rm", "--network", "host", "--", "readlink", "/proc/self/ns/net"];
    let net = fs::read_link("/proc/self/ns/net")?;
    world.coracle(&words).run()?.ok()?.stdout_is(net.to_str().unwrap_or_default())?;
    Ok(())
}

fn confinement(world: &World<'_>) -> Result<()> {
    let status = ["run", "--rm", "--network", "none", "--", "cat", "/proc/self/status"];
    let output = world.coracle(&status).run()?.ok()?;
    let field = |name: &str| {
        output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
            .unwrap_or("missing")
            .to_owned()
    };
    ensure!(field("NoNewPrivs") == "1", "no_new_privs is {}", field("NoNewPrivs"));
    ensure!(field("Seccomp") == "2", "seccomp is {}", field("Seccomp"));
    // Podman's eleven: chown dac_override fowner fsetid kill net_bind_service
    // setfcap setgid setpcap setuid sys_chroot.
    let allowed: u64 =
        [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31].iter().map(|bit: &u32| 1u64 << bit).sum();
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        let bits = u64::from_str_radix(&field(set), 16).unwrap_or(u64::MAX);
        ensure!(
            bits & !allowed == 0,
            "{set} is {bits:x}, of which {:x} is too much",
            bits & !allowed
        );
    }

    // Each line that is printed is a hole.
    let script = "\
        mount -t tmpfs x /mnt 2>/dev/null && echo mount\n\
        umount /proc 2>/dev/null && echo umount\n\
        unshare -U true 2>/dev/null && echo user namespace\n\
        mknod /root/d c 1 5 2>/dev/null && head -c 1 /root/d >/dev/null 2>&1 && echo device\n\
        [ -s /proc/kcore ] && head -c 1 /proc/kcore 2>/dev/null | grep -q . && echo kcore\n\
        [ -n \"$(head -c 1 /proc/keys 2>/dev/null)\" ] && echo keys\n\
        echo x 2>/dev/null >/proc/sysrq-trigger && echo sysrq\n\
        echo x 2>/dev/null >/proc/sys/kernel/core_pattern && echo core_pattern\n\
        touch /sys/x 2>/dev/null && echo sys\n\
        [ -n \"$(ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v :)\" ] && echo firmware\n\
        for d in /dev/*; do case $d in \
          /dev/null|/dev/zero|/dev/full|/dev/random|/dev/urandom|/dev/tty|/dev/ptmx|/dev/pts|\
/dev/shm|/dev/mqueue|/dev/fd|/dev/stdin|/dev/stdout|/dev/stderr|/dev/core|/dev/console) ;; \
          *) echo $d;; esac; done\n\
        exit 0";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("")?;
    // And the workload cannot see its keepers.
    let script =
        "ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; ls -l /proc/1/exe 2>&1 | grep -c wt";
    let output =
        world.coracle(&["run", "--rm", "--network", "none", "--", "sh", "-c", script]).run()?;
    let count: u32 = output.stdout.lines().next().unwrap_or("").parse().unwrap_or(u32::MAX);
    ensure!(count <= 6, "the workload sees {count} processes\n{}", output.describe());
    Ok(())
}

fn orphans_are_reaped(world: &World<'_>) -> Result<()> {
    // Two hundred orphans end; then none of them is a zombie.
    let script = "i=0; while [ $i -lt 200 ]; do (true & ); i=$((i+1)); done; \
                  for n in 1 2 3 4 5 6 7 8 9 10; do \
                    z=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l); \
                    [ $z = 0 ] && exit 0; sleep 0.1; done; exit 1";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?;
    // What the workload left running ends with it.
    let script = "sleep 1000 & setsid sleep 1000 & exit 4";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.code_is(4)?;
    Ok(())
}

fn dry_run(world: &World<'_>) -> Result<()> {
    let words = ["run", "--rm", "--dry-run", "--name", "plan", "--", "true"];
    let output = world.coracle(&words).run()?.ok()?;
    ensure!(output.stdout.lines().count() > 5, "no plan\n{}", output.describe());
    let ps = world.coracle(&["ps", "-a"]).run()?.ok()?;
    ensure!(!ps.stdout.contains("plan"), "--dry-run made a container\n{}", ps.describe());
    Ok(())
}

fn no_descriptors(world: &World<'_>) -> Result<()> {
    // CVE-2024-21626: nothing but the standard streams is handed down; ls
    // itself opens one.
    let words = ["run", "--rm", "--network", "none", "--", "ls", "/proc/self/fd"];
    let (ours, theirs) = tests::command::pipe()?;
    let output = world.coracle(&words).inherit(theirs).run()?.ok()?;
    drop(ours);
    output.stdout_is("0\n1\n2\n3")?;
    Ok(())
}
