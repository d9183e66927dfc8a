//! Bad input: one clear line, and the right exit code.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, pipe, read_ready};
use tests::harness::{Test, World};
use tests::lab::Ids;

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("bad-input/options", options),
    Test::new("bad-input/names", names),
    Test::new("bad-input/rootfs", rootfs),
    Test::new("bad-input/unreadable-lower", unreadable_lower),
    Test::new("bad-input/volumes-and-users", volumes_and_users),
    Test::new("bad-input/port-in-use", port_in_use),
    Test::new("bad-input/full-upper", full_upper).lab(),
    Test::new("bad-input/overlayfs-fuse", overlayfs_fuse),
    Test::new("bad-input/netstack", netstack),
];

fn options(world: &World<'_>) -> Result<()> {
    for (words, word) in [
        (&["run", "--no-such-option", "--", "true"][..], "--no-such-option"),
        (&["no-such-command"], "no-such-command"),
        (&["run", "-p", "x:y", "--", "true"], "x:y"),
        (&["run", "-p", "1:2:3:4", "--", "true"], "1:2:3:4"),
        (&["run", "-p", "70000:80", "--", "true"], "70000"),
        (&["run", "--network", "cloud", "--", "true"], "cloud"),
        (&["run", "--upper", "ram:lots", "--", "true"], "lots"),
        (&["run", "-v", "nowhere", "--", "true"], "nowhere"),
        (&["run", "-v", "/etc:relative", "--", "true"], "relative"),
        (&["run", "-e", "=x", "--", "true"], "=x"),
        (&["run", "-w", "relative", "--", "true"], "relative"),
    ] {
        world.coracle(words).run()?.fails_with(125, word)?;
    }
    Ok(())
}

fn names(world: &World<'_>) -> Result<()> {
    for name in ["a/b", "..", "-x", "", "a b", "ä"] {
        let option = format!("--name={name}");
        world.coracle(&["run", "--rm", &option, "--", "true"]).run()?.fails_with(125, "name")?;
    }
    let words = ["run", "--name", "taken", "--network", "none", "--", "true"];
    world.coracle(&words).run()?.ok()?;
    let second = world.coracle(&words).run()?;
    world.coracle(&["rm", "taken"]).run()?.ok()?;
    second.fails_with(125, "taken")?;
    for command in ["rm", "kill", "stop", "logs", "diff"] {
        world.coracle(&[command, "nobody"]).run()?.fails_with(1, "nobody")?;
    }
    world.coracle(&["exec", "nobody", "--", "true"]).run()?.fails_with(125, "nobody")?;
    Ok(())
}

fn rootfs(world: &World<'_>) -> Result<()> {
    let words = ["run", "--rm", "--rootfs", "/no/such/root", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "/no/such/root")?;
    let words = ["run", "--rm", "--rootfs", "/etc/passwd", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "/etc/passwd")?;
    let words = ["run", "--rm", "--upper", "/proc/no/such", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "/proc/no/such")?;
    Ok(())
}

fn unreadable_lower(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o000))?;
    let path = root.to_str().expect("the lab's paths are ASCII").to_owned();
    let output = world.coracle(&["run", "--rm", "--rootfs", &path, "--", "true"]).run()?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    output.fails_with(125, &path)?;
    Ok(())
}

fn volumes_and_users(world: &World<'_>) -> Result<()> {
    let words = ["run", "--rm", "-v", "/no/such/source:/mnt", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "/no/such/source")?;
    // A file over a directory, and the other way round: both are named, and what to do.
    world.write("kept", "x")?;
    let file = world.dir().join("kept");
    for (volume, words) in [
        (format!("{}:/etc", file.display()), ["is a file", "as /etc/kept"]),
        (format!("{}:/etc/passwd", world.dir().display()), ["is a directory", "name a directory"]),
    ] {
        let run = ["run", "--rm", "--network", "none", "-v", &volume, "--", "true"];
        let output = world.coracle(&run).run()?.fails_with(125, words[0])?;
        let (source, target) = volume.split_once(':').context("a volume has two paths")?;
        for word in [source, target, words[1]] {
            ensure!(output.stderr.contains(word), "no '{word}'\n{}", output.describe());
        }
    }
    let words = ["run", "--rm", "--network", "none", "-u", "no-such-user", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "no-such-user")?;
    // With a single id all are pretended.
    if world.ids == Ids::Subordinate {
        for user in ["70000000", "0:70000000"] {
            let words = ["run", "--rm", "--network", "none", "-u", user, "--", "true"];
            let output = world.coracle(&words).run()?.fails_with(125, "70000000")?;
            output.fails_with(125, "no such id")?;
        }
    }
    Ok(())
}

fn port_in_use(world: &World<'_>) -> Result<()> {
    let _tcp = TcpListener::bind("127.0.0.1:18099")?;
    let words = ["run", "--rm", "-p", "127.0.0.1:18099:80", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "18099")?;
    let _udp = UdpSocket::bind("127.0.0.1:18098")?;
    let words = ["run", "--rm", "-p", "127.0.0.1:18098:80/udp", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "18098")?;
    Ok(())
}

fn full_upper(world: &World<'_>) -> Result<()> {
    // A small file system, filled to the brim, under the directory of --upper.
    let full = world.dir().join("full");
    world.cmd("mkdir").arg(&full).run()?.ok()?;
    let options = format!("size=1m,mode=0755,uid={},gid={}", world.user.uid, world.user.gid);
    Cmd::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&full).run()?.ok()?;
    let upper = full.join("upper");
    let path = upper.to_str().expect("the lab's paths are ASCII").to_owned();
    let script = "head -c 3000000 /dev/zero >/root/big || exit 33";
    let words = ["run", "--rm", "--network", "none", "--upper", &path, "--", "sh", "-c", script];
    let filled = world.coracle(&words).run();
    // Not even the container's own directories fit now.
    Cmd::new("sh").args(["-c", "cat /dev/zero >\"$0\"/rest; true"]).arg(&full).run()?;
    let path = format!("{path}-second");
    let words = ["run", "--rm", "--network", "none", "--upper", &path, "--", "true"];
    let second = world.coracle(&words).run();
    Cmd::new("umount").arg(&full).run()?.ok()?;
    let filled = filled?.code_is(33)?;
    ensure!(filled.stderr.contains("No space left on device"), "{}", filled.describe());
    // tmpfs may still have room for a directory: then it simply runs.
    let second = second?;
    if second.code != 0 {
        second.fails_with(125, &path)?;
    }
    Ok(())
}

fn overlayfs_fuse(world: &World<'_>) -> Result<()> {
    let dir = world.dir();
    for name in ["lower", "upper", "work", "mnt"] {
        world.cmd("mkdir").arg(dir.join(name)).run()?.ok()?;
    }
    for (options, mount_point, word) in [
        ("upperdir=upper,workdir=work", "mnt", "lowerdir"),
        ("lowerdir=lower,upperdir=upper", "mnt", "workdir"),
        ("lowerdir=missing", "mnt", "missing"),
        ("lowerdir=lower,upperdir=missing,workdir=work", "mnt", "missing"),
        ("lowerdir=lower", "missing", "missing"),
    ] {
        let (ours, theirs) = pipe()?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string();
        let output = world
            .cmd("unshare")
            .args(["--map-root-user", "--mount"])
            .arg(world.lab.bin.join("overlayfs-fuse"))
            .args(["-f", "--ready-fd", &fd, "-o", options, mount_point])
            .dir(dir)
            .inherit(theirs)
            .run()?;
        output.fails_with(1, word)?;
        ensure!(!read_ready(&ours, std::time::Duration::from_secs(5))?, "said to be ready");
    }
    Ok(())
}

fn netstack(world: &World<'_>) -> Result<()> {
    for (words, word) in [
        (&["999999999"][..], "999999999"),
        (&["--netns-type=path", "/no/such/ns", "tap0"], "/no/such/ns"),
        (&["--cidr", "10.0.2.0/33", "1"], "10.0.2.0/33"),
        (&["--cidr", "10.0.2.5/24", "1"], "10.0.2.5/24"),
        (&["--mtu", "70000", "1"], "70000"),
        (&["--no-such-option", "1"], "--no-such-option"),
        (&["--cidr", "a\nb", "1"], "--cidr"),
        (&["--netns-type=path", "/no/such\nns", "tap0"], "/no/such\\nns"),
    ] {
        let (ours, theirs) = pipe()?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string();
        let output =
            world.ours("netstack").args(["-c", "-r", &fd]).args(words).inherit(theirs).run()?;
        output.fails_with(1, word)?;
        ensure!(!read_ready(&ours, std::time::Duration::from_secs(5))?, "said to be ready");
    }
    for flag in ["--help", "--version"] {
        world.ours("netstack").arg(flag).run()?.ok()?;
        world.ours("overlayfs-fuse").arg(flag).run()?.ok()?;
        world.ours("coracle").arg(flag).run()?.ok()?;
    }
    let help = world.ours("netstack").arg("--help").run()?.ok()?;
    // What Podman and rootlesskit look for before every start.
    for word in "--disable-host-loopback --mtu --enable-sandbox --enable-seccomp --cidr \
                 --outbound-addr --enable-ipv6 --netns-type --api-socket"
        .split_whitespace()
    {
        ensure!(help.stdout.contains(word), "--help lacks {word}");
    }
    Ok(())
}
