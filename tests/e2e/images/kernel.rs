//! Containers whose layers the kernel joins (`--overlay kernel`): the same files as by
//! overlayfs-fuse, and nothing left behind.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::harness::World;
use tests::lab::Ids;

use super::export::{changed_under, looks_right_under};
use super::{coracle, layout, run, shell, text};

/// Which file system a container's root is, as its first process sees it.
const ROOT: &str = "busybox awk '$5 == \"/\" { print $0 }' /proc/self/mountinfo";

/// One overlay reads what the other wrote: whiteouts, directories put in the place of
/// others, links, owners.
pub(super) fn joins(world: &World<'_>) -> Result<()> {
    changed_under(world, "kernel")?;
    let diff = coracle(world, &["diff", "c"]).run()?.ok()?.stdout;
    for line in ["A /d/f", "A /d/g", "D /bin/touch", "C /opt", "D /opt/low", "A /opt/new"] {
        ensure!(diff.lines().any(|found| found == line), "no '{line}' in {diff}");
    }
    coracle(world, &["commit", "-q", "c", "made"]).run()?.ok()?;
    coracle(world, &["rm", "c"]).run()?.ok()?;
    for overlay in ["fuse", "kernel"] {
        looks_right_under(world, "made", overlay)?;
    }
    let root = run(world, &["--overlay", "kernel", "--entrypoint", "sh", "made", "-c", ROOT])?;
    let root = root.ok()?.stdout;
    ensure!(root.contains(" - overlay overlay "), "the root is {root}");
    ensure!(root.contains(",nosuid"), "the root is not as it is by overlayfs-fuse: {root}");
    let fuse = run(world, &["--entrypoint", "sh", "made", "-c", ROOT])?.ok()?.stdout;
    ensure!(fuse.contains(" - fuse"), "the root is {fuse}");
    // One device, whatever holds the layers.
    let devices = "busybox stat -c %d / /bin /bin/busybox /d/f /opt/new; : >/new; \
                   busybox stat -c %d /new";
    let devices =
        run(world, &["--overlay", "kernel", "--entrypoint", "sh", "made", "-c", devices])?;
    let devices = devices.ok()?.stdout;
    let mut devices: Vec<&str> = devices.lines().collect();
    devices.dedup();
    ensure!(devices.len() == 1, "the root is on several devices: {devices:?}");
    nothing_left(world)
}

/// Of one that is kept: its changes outlive it, whoever looks.
pub(super) fn keeps(world: &World<'_>) -> Result<()> {
    layout(world)?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    let given = ["--network", "none", "--overlay", "kernel"];
    let script = "echo $((n+1)) >>/n; echo up; exec sleep 1000";
    let words = [&["run", "-d", "--name", "k"], &given[..], &["box", "sh", "-c", script]].concat();
    coracle(world, &words).run()?.ok()?;
    let follow = coracle(world, &["logs", "-f", "k"]).spawn()?;
    follow.stdout_until("up\n", Duration::from_secs(20))?;
    shell(world, "echo from-outside >f")?;
    coracle(world, &["cp", "f", "k:/running"]).dir(world.dir()).run()?.ok()?;
    let inside = ["exec", "k", "sh", "-c", "cat /running; echo inside >/inside; rm /bin/touch"];
    coracle(world, &inside).run()?.ok()?.stdout_is("from-outside")?;
    let diff = coracle(world, &["diff", "k"]).run()?.ok()?.stdout;
    ensure!(diff.contains("A /inside\n") && diff.contains("D /bin/touch"), "{diff}");
    coracle(world, &["commit", "-q", "k", "of-running"]).run()?.ok()?;
    run(world, &["of-running", "cat", "/inside"])?.ok()?.stdout_is("inside")?;
    coracle(world, &["inspect", "k"]).run()?.ok()?.stdout_has("\"Overlay\": \"kernel\"")?;
    coracle(world, &["stop", "-t", "0", "k"]).run()?.ok()?;
    // It does not run: for the time its root is mounted.
    coracle(world, &["cp", "f", "k:/ended"]).dir(world.dir()).run()?.ok()?;
    coracle(world, &["cp", "k:/inside", "back"]).dir(world.dir()).run()?.ok()?;
    ensure!(fs::read_to_string(world.dir().join("back"))? == "inside\n", "another file came back");
    coracle(world, &["start", "k"]).run()?.ok()?;
    let look = ["exec", "k", "sh", "-c", "cat /running /ended /inside; [ ! -e /bin/touch ]"];
    coracle(world, &look).run()?.ok()?.stdout_is("from-outside\nfrom-outside\ninside")?;
    coracle(world, &["rm", "-f", "k"]).run()?.ok()?;
    // One whose changes go with it, mounted twice: by cp, and by its start.
    let words = [&["create", "--rm", "--name", "p"], &given[..], &["box", "cat", "/f"]].concat();
    coracle(world, &words).run()?.ok()?;
    coracle(world, &["cp", "f", "p:/f"]).dir(world.dir()).run()?.ok()?;
    coracle(world, &["start", "-a", "p"]).run()?.ok()?.stdout_is("from-outside")?;
    // A directory as root, and changes in one of the caller's.
    let (root, upper) = (world.dir().join("rootfs"), world.dir().join("up"));
    let words = ["run", "--rm", "--upper", text(&upper)?, "--rootfs", text(&root)?];
    for (script, code) in [("rm /bin/touch; echo x >/x", 0), ("cat /x; [ -e /bin/touch ]", 1)] {
        let words = [&words[..], &given[..], &["sh", "-c", script]].concat();
        coracle(world, &words).run()?.code_is(code)?;
    }
    ensure!(root.join("bin/touch").exists(), "the lower directory was changed");
    nothing_left(world)
}

/// Whichever of its processes is killed.
pub(super) fn killed(world: &World<'_>) -> Result<()> {
    layout(world)?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    let words = ["run", "-d", "--rm", "--network", "none", "--overlay", "kernel", "--name", "v"];
    for whom in ["monitor", "init"] {
        coracle(world, &[&words[..], &["box", "sleep", "1000"]].concat()).run()?.ok()?;
        let state = coracle(world, &["inspect", "v"]).run()?.ok()?.stdout;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let key = if whom == "monitor" { "MonitorPid" } else { "Pid" };
        let pid = state.pointer(&format!("/0/State/{key}")).and_then(serde_json::Value::as_i64);
        let pid = pid.with_context(|| format!("no number of {whom} in {state}"))?.to_string();
        let waits = coracle(world, &["wait", "v"]).spawn()?;
        world.cmd("kill").args(["-KILL", &pid]).run()?.ok()?;
        waits.wait(Duration::from_secs(20))?;
        // What a killed monitor could not remove.
        coracle(world, &["gc"]).run()?.ok()?;
        coracle(world, &["ps", "-aq"]).run()?.ok()?.stdout_is("")?;
    }
    nothing_left(world)
}

/// Where the kernel would show something else.
pub(super) fn refused(world: &World<'_>) -> Result<()> {
    layout(world)?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    run(world, &["--overlay", "kernel", "--", "true"])?
        .fails_with(125, "--overlay kernel cannot be used with the host's root")?;
    if world.ids == Ids::Single {
        run(world, &["--overlay", "kernel", "box", "true"])?
            .fails_with(125, "cannot be used with a user without subordinate ids")?;
    } else {
        run(world, &["--overlay", "kernel", "--upper", "ram", "box", "true"])?
            .fails_with(125, "cannot be used with --upper ram; use --overlay fuse")?;
    }
    run(world, &["--overlay", "aufs", "box", "true"])?.fails_with(125, "aufs")?;
    nothing_left(world)
}

fn nothing_left(world: &World<'_>) -> Result<()> {
    let dir = super::data(world).join("coracle/containers");
    let left: Vec<_> =
        fs::read_dir(&dir)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(left.is_empty(), "left in {}: {left:?}", dir.display());
    Ok(())
}
