//! `coracle doctor`: each thing it knows of is broken, in namespaces that only the one
//! run sees, and must be found, with its fix.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output};
use tests::harness::{Test, World};
use tests::lab::Ids;
use tests::pty::Pty;

pub(crate) const TESTS: &[Test] = &[
    Test::new("doctor/what-is-there", what_is_there).each_user().lab(),
    Test::new("doctor/broken", broken).each_user().lab().seconds(120),
    Test::new("doctor/ids-broken", ids_broken).subordinate_ids().lab(),
    Test::new("doctor/colour", colour),
];

/// Runs `coracle doctor` as the user, after root has broken something with `script` in a
/// mount namespace of its own (and others, as `unshare` says).
fn doctor(world: &World<'_>, unshare: &[&str], script: &str, env: &[&str]) -> Result<Output> {
    let user = world.user;
    let bin = world.lab.bin.join("coracle");
    let run = format!(
        "set -e; {script}; exec setpriv --reuid {} --regid {} --clear-groups --inh-caps=-all \
         env -i PATH=$PATH HOME={} XDG_RUNTIME_DIR={} XDG_DATA_HOME={} {} {} doctor --json",
        user.uid,
        user.gid,
        user.home.display(),
        user.runtime_dir.display(),
        world.dir().join("data").display(),
        env.join(" "),
        bin.display(),
    );
    let words = [&["--mount"], unshare, &["sh", "-c", &run]].concat();
    Cmd::new("unshare").args(&words).dir(world.dir()).limit(Duration::from_secs(30)).run()
}

/// What was found of one item: its degree, and all that is said.
fn item(output: &Output, wanted: &str) -> Result<(String, String)> {
    let start = format!("\"item\": \"{wanted}\"");
    let text = output.stdout.split('{').find(|text| text.contains(&start));
    let text = text.with_context(|| format!("nothing about {wanted}\n{}", output.describe()))?;
    let degree = text.split("\"degree\": \"").nth(1).and_then(|rest| rest.split('"').next());
    Ok((degree.context("no degree")?.to_owned(), text.to_owned()))
}

fn is(output: &Output, wanted: &str, degree: &str, words: &[&str]) -> Result<()> {
    let (found, text) = item(output, wanted)?;
    ensure!(found == degree, "{wanted} is '{found}', and not '{degree}'\n{}", output.describe());
    for word in words {
        ensure!(text.contains(word), "no '{word}' in {text}");
    }
    let problem = output.stdout.contains("\"degree\": \"problem\"");
    ensure!(output.code == i32::from(problem), "{}", output.describe());
    ensure!(output.stderr.is_empty(), "{}", output.describe());
    Ok(())
}

const NOTHING: &str = ":";

fn what_is_there(world: &World<'_>) -> Result<()> {
    let output = doctor(world, &[], NOTHING, &[])?;
    for wanted in [
        "user namespaces",
        "programs",
        "fuse",
        "tun",
        "ping",
        "data directory",
        "runtime directory",
    ] {
        is(&output, wanted, "fine", &[])?;
    }
    match world.ids {
        Ids::Subordinate => is(&output, "subordinate ids", "fine", &["65536"])?,
        Ids::Single => is(&output, "subordinate ids", "problem", &["usermod", &world.user.name])?,
    }
    // The same for people.
    let told = world.coracle(&["doctor"]).env("XDG_DATA_HOME", world.dir().join("data")).run()?;
    let told = told.code_is(output.code)?;
    ensure!(told.stdout.starts_with("ok       user namespaces: "), "{}", told.describe());
    ensure!(!told.stdout.contains('\x1b'), "colour in a pipe\n{}", told.describe());
    // Every port, and a cgroup of one's own.
    let script = "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let free = doctor(world, &["--net"], script, &[])?;
    is(&free, "low ports", "fine", &[])?;
    is(&output, "low ports", "note", &["1024", "ip_unprivileged_port_start"])?;
    is(&output, "cgroups", "note", &["Delegate=yes"])?;
    let script = format!(
        "d=/sys/fs/cgroup/doctor-{0}; mkdir -p $d; chown {0} $d $d/cgroup.procs; \
         echo $$ >$d/cgroup.procs",
        world.user.uid
    );
    let delegated = doctor(world, &[], &script, &[])?;
    std::fs::remove_dir(format!("/sys/fs/cgroup/doctor-{}", world.user.uid))?;
    let (degree, text) = item(&delegated, "cgroups")?;
    ensure!(degree == "fine" || text.contains("delegated without"), "{text}");
    Ok(())
}

fn broken(world: &World<'_>) -> Result<()> {
    // /dev without a device, or with one that is closed.
    let dev = "mkdir -p dev; mount -t tmpfs dev dev; for f in null zero urandom random tty; do \
               touch dev/$f; mount --bind /dev/$f dev/$f; done; mkdir dev/net";
    let fuse = "touch dev/fuse; mount --bind /dev/fuse dev/fuse";
    let tun = "touch dev/net/tun; mount --bind /dev/net/tun dev/net/tun";
    let over = "mount --rbind dev /dev";
    let output = doctor(world, &[], &format!("{dev}; {tun}; {over}"), &[])?;
    is(&output, "fuse", "problem", &["not there", "modprobe fuse"])?;
    is(&output, "tun", "fine", &[])?;
    let output = doctor(world, &[], &format!("{dev}; {fuse}; {over}"), &[])?;
    is(&output, "tun", "problem", &["not there", "modprobe tun", "--network none"])?;
    is(&output, "fuse", "fine", &[])?;
    let closed = "install -m 0600 /dev/null dev/fuse; install -m 0600 /dev/null dev/net/tun";
    let output = doctor(world, &[], &format!("{dev}; {closed}; {over}"), &[])?;
    is(&output, "fuse", "problem", &["Permission denied", "chmod 0666 /dev/fuse"])?;
    is(&output, "tun", "problem", &["Permission denied", "chmod 0666 /dev/net/tun"])?;
    // A network namespace begins with nobody who may ping.
    let output = doctor(world, &["--net"], NOTHING, &[])?;
    is(&output, "ping", "problem", &["ping_group_range"])?;
    // A user namespace in which there can be no other.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces";
    let output = world
        .cmd("unshare")
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg(format!("{script}; exec {} doctor --json", world.lab.bin.join("coracle").display()))
        .env("XDG_DATA_HOME", world.dir().join("data"))
        .run()?;
    is(&output, "user namespaces", "problem", &["user.max_user_namespaces=15000"])?;
    // The services are not beside it.
    let script = "mkdir bin; cp $0 bin/coracle; exec bin/coracle doctor --json";
    let output = world
        .cmd("sh")
        .args(["-c", script])
        .arg(world.lab.bin.join("coracle"))
        .env("XDG_DATA_HOME", world.dir().join("data"))
        .run()?;
    is(&output, "programs", "problem", &["overlayfs-fuse", "libexec"])?;
    // A file system that keeps no attributes; one that cannot be written; no place at all.
    world.cmd("mkdir").args(["-p", "data"]).run()?.ok()?;
    let script = format!("mount -t ramfs r data; chown {}:{} data", world.user.uid, world.user.gid);
    let output = doctor(world, &[], &script, &[])?;
    is(&output, "data directory", "problem", &["extended attributes", "XDG_DATA_HOME"])?;
    let script = "mount -o ro -t tmpfs t data";
    let output = doctor(world, &[], script, &[])?;
    is(&output, "data directory", "problem", &["Read-only", "XDG_DATA_HOME"])?;
    // No session.
    let output = doctor(world, &[], NOTHING, &["XDG_RUNTIME_DIR="])?;
    is(&output, "runtime directory", "note", &["XDG_RUNTIME_DIR"])?;
    let output = doctor(world, &[], NOTHING, &["XDG_RUNTIME_DIR=/no/such"])?;
    is(&output, "runtime directory", "note", &["/no/such"])?;
    Ok(())
}

fn ids_broken(world: &World<'_>) -> Result<()> {
    let item = "subordinate ids";
    for file in ["subuid", "subgid"] {
        let script = format!("mount --bind /dev/null /etc/{file}");
        let output = doctor(world, &[], &script, &[])?;
        is(&output, item, "problem", &[&format!("/etc/{file}"), "usermod"])?;
    }
    let script = format!("echo {}:100000:1000 >few; mount --bind few /etc/subuid", world.user.name);
    let output = doctor(world, &[], &script, &[])?;
    is(&output, item, "note", &["1000", "65536"])?;
    let output = doctor(world, &[], NOTHING, &["PATH=/no/such"])?;
    is(&output, item, "problem", &["newuidmap", "uidmap"])?;
    let script =
        "cp /usr/bin/newuidmap plain; chmod 755 plain; mount --bind plain /usr/bin/newuidmap";
    let output = doctor(world, &[], script, &[])?;
    is(&output, item, "problem", &["set-user-id", "chmod u+s /usr/bin/newuidmap"])?;
    let script = "mount --bind /usr/bin /usr/bin; mount -o remount,bind,nosuid /usr/bin";
    let output = doctor(world, &[], script, &[])?;
    is(&output, item, "problem", &["map failed", "nosuid"])?;
    Ok(())
}

fn colour(world: &World<'_>) -> Result<()> {
    let shown = |env: &str| -> Result<String> {
        let (mut pty, terminal) = Pty::open(24, 200)?;
        let running = world
            .coracle(&["doctor"])
            .env("XDG_DATA_HOME", world.dir().join("data"))
            .env("NO_COLOR", env)
            .terminal(terminal)
            .spawn()?;
        let text = pty.until("runtime directory", Duration::from_secs(30))?;
        running.wait(Duration::from_secs(30))?;
        Ok(text)
    };
    let (plain, coloured) = (shown("1")?, shown("")?);
    ensure!(!plain.contains('\x1b'), "{plain:?}");
    ensure!(coloured.contains("\x1b[32mok"), "{coloured:?}");
    Ok(())
}
