//! Images out of containers, and images handed to others: what skopeo and umoci make
//! of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::harness::World;
use tests::lab::Ids;

use super::{coracle, count, layout, needs, run, shell, text};
use crate::fixtures::busybox_rootfs;

/// What is changed in a container before an image is made of it.
const CHANGE: &str = "mkdir /d /d/empty; echo one >/d/f; busybox ln /d/f /d/g; \
    busybox ln -s f /d/l; rm /bin/touch; rm -r /opt; mkdir /opt; echo new >/opt/new; \
    busybox chmod 750 /d/empty; busybox mkfifo /d/pipe; echo in-the-volume >/data/x; \
    busybox chown 7:8 /d/f";

/// A container `c` of the image `box` with these changes, which has ended.
fn changed(world: &World<'_>) -> Result<()> {
    changed_under(world, "fuse")
}

/// As [`changed`], its root joined by this overlay.
pub(super) fn changed_under(world: &World<'_>, overlay: &str) -> Result<()> {
    layout(world)?;
    shell(
        world,
        "umoci config --image layout:box --config.entrypoint /bin/busybox \
         --config.cmd sh --config.env COLOUR=blue --config.workingdir /bin; mkdir vol add; \
         echo low >add/low; umoci insert --rootless --image layout:box add /opt",
    )?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    let volume = format!("{}:/data", world.dir().join("vol").display());
    let given = [
        "run",
        "--name",
        "c",
        "--network",
        "none",
        "--overlay",
        overlay,
        "-v",
        &volume,
        "-e",
        "TOKEN=in-the-environment",
    ];
    let words = [&given[..], &["--entrypoint", "sh", "box", "-ec", CHANGE]].concat();
    coracle(world, &words).run()?.ok()?;
    Ok(())
}

fn remove(world: &World<'_>, name: &str) -> Result<()> {
    coracle(world, &["rm", "-f", name]).run()?.ok()?;
    Ok(())
}

/// A listing of a tar: names, kinds, modes, owners, sizes, times and links.
fn listing(world: &World<'_>, tar: &Path) -> Result<BTreeMap<String, String>> {
    let output = world
        .cmd("tar")
        .args(["--full-time", "--numeric-owner", "-tvf", text(tar)?])
        .run()?
        .ok()?;
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.get(5).copied().unwrap_or_default().trim_start_matches("./").to_owned();
        (name, line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ./", " "))
    };
    Ok(output.stdout.lines().map(line).collect())
}

/// What a shell prints of all that was changed.
const LOOK: &str = "cd /; busybox find /d /opt | busybox sort; cat /d/g; busybox readlink /d/l; \
    busybox stat -c '%h %u:%g' /d/g; busybox stat -c %a /d/empty; [ ! -e /bin/touch ] && echo gone";

fn looks_right(world: &World<'_>, image: &str) -> Result<()> {
    looks_right_under(world, image, "fuse")
}

/// As [`looks_right`], its root joined by this overlay.
pub(super) fn looks_right_under(world: &World<'_>, image: &str, overlay: &str) -> Result<()> {
    let owner = match world.ids {
        Ids::Subordinate => "7:8",
        // Kept, and shown by nothing that has one id.
        Ids::Single => "0:0",
    };
    let want = format!(
        "/d\n/d/empty\n/d/f\n/d/g\n/d/l\n/d/pipe\n/opt\n/opt/new\none\nf\n2 {owner}\n750\ngone"
    );
    run(world, &["--overlay", overlay, "--entrypoint", "sh", image, "-c", LOOK])?
        .ok()?
        .stdout_is(&want)
        .with_context(|| format!("the image {image}"))?;
    Ok(())
}

pub(super) fn commit(world: &World<'_>) -> Result<()> {
    changed(world)?;
    let before = count(world, "layers")?;
    let iid = world.dir().join("iid");
    let words = [
        "commit",
        "-a",
        "Ada <ada@example.org>",
        "-m",
        "a test",
        "-c",
        "CMD=[\"echo\",\"made\"]",
        "--change",
        "ENV SHAPE=round",
        "--iidfile",
        text(&iid)?,
        "c",
        "made:1",
    ];
    let id = coracle(world, &words).run()?.ok()?.stdout.trim().to_owned();
    ensure!(fs::read_to_string(world.dir().join("iid"))? == id, "--iidfile says something else");
    ensure!(count(world, "layers")? == before + 1, "more than one layer came of it");
    run(world, &["made:1"])?.ok()?.stdout_is("made")?;
    run(world, &["made:1", "sh", "-c", "echo $COLOUR $SHAPE $TOKEN; busybox pwd"])?
        .ok()?
        .stdout_is("blue round\n/bin")?;
    looks_right(world, "made:1")?;
    let inspected = coracle(world, &["image", "inspect", "made:1"]).run()?.ok()?;
    for word in ["a test", "Ada <ada@example.org>", "coracle commit c"] {
        ensure!(inspected.stdout.contains(word), "no '{word}'\n{}", inspected.describe());
    }
    // No mount of the container's is in it: neither what a volume holds nor its place.
    run(world, &["--entrypoint", "sh", "made:1", "-c", "ls -d /data /bin/busybox"])?
        .code_is(1)?
        .stdout_is("/bin/busybox")?;
    for file in fs::read_dir(super::images(world).join("blobs/sha256"))? {
        let path = file?.path();
        let grep =
            "(zcat -f \"$0\" || cat \"$0\") 2>/dev/null | grep -aqE 'in-the-(volume|environment)'";
        let found = world.cmd("sh").args(["-c", grep]).arg(&path).run()?;
        ensure!(found.code == 1, "{} holds what it must not", path.display());
    }
    // Again, on top of itself; and all in one.
    coracle(world, &["run", "--name", "c2", "--network", "none", "made:1", "sh", "-c", ": >/d/n"])
        .run()?
        .ok()?;
    coracle(world, &["commit", "-q", "c2", "again"]).run()?.ok()?;
    coracle(world, &["commit", "-q", "--squash", "c", "flat"]).run()?.ok()?;
    looks_right(world, "flat")?;
    run(world, &["--entrypoint", "sh", "again", "-c", "ls /d/n && [ ! -e /bin/touch ]"])?.ok()?;
    let flat = coracle(world, &["image", "inspect", "flat"]).run()?.ok()?;
    ensure!(flat.stdout.matches("\"diffId\"").count() == 1, "{}", flat.describe());
    coracle(world, &["image", "verify"]).run()?.ok()?;
    remove(world, "c")?;
    remove(world, "c2")?;
    looks_right(world, "made:1")
}

pub(super) fn commit_running(world: &World<'_>) -> Result<()> {
    layout(world)?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    let root = world.dir().join("rootfs");
    // On an image, in memory, and on a directory.
    for (name, given) in [
        ("disk", &["box"][..]),
        ("ram", &["--upper", "ram:50m", "box"]),
        ("dir", &["--rootfs", text(&root)?]),
    ] {
        let script = "echo x >/made; echo up; exec sleep 1000";
        let start = ["run", "-d", "--name", name, "--network", "none"];
        coracle(world, &[&start[..], given, &["sh", "-c", script]].concat()).run()?.ok()?;
        let follow = coracle(world, &["logs", "-f", name]).spawn()?;
        follow.stdout_until("up\n", std::time::Duration::from_secs(20))?;
        let made = (|| {
            coracle(world, &["commit", "-q", name, name]).run()?.ok()?;
            let tar = world.dir().join(format!("{name}.tar"));
            coracle(world, &["export", "-o", text(&tar)?, name]).run()?.ok()?;
            let listed = listing(world, &tar)?;
            ensure!(
                listed.contains_key("made") && listed.contains_key("bin/busybox"),
                "{listed:#?}"
            );
            run(world, &[name, "cat", "/made"])?.ok()?.stdout_is("x")?;
            Ok(())
        })();
        remove(world, name)?;
        made?;
    }
    // Ended, what was in memory is gone.
    run(world, &["box", "true"])?.ok()?;
    let given = ["run", "--name", "gone", "--network", "none", "--upper", "ram", "box", "true"];
    coracle(world, &given).run()?.ok()?;
    coracle(world, &["commit", "gone", "gone"]).run()?.fails_with(1, "in memory")?;
    coracle(world, &["export", "gone"]).run()?.fails_with(1, "in memory")?;
    remove(world, "gone")
}

pub(super) fn export(world: &World<'_>) -> Result<()> {
    changed(world)?;
    let first = world.dir().join("first.tar");
    coracle(world, &["export", "-o", text(&first)?, "c"]).run()?.ok()?;
    let listed = listing(world, &first)?;
    ensure!(!listed.keys().any(|name| name.starts_with("data")), "a volume: {listed:#?}");
    ensure!(listed.contains_key("proc/"), "a directory of the image's own is missing");
    ensure!(!listed.contains_key("bin/touch"), "what was removed is there");
    let owner = listed.get("d/f").context("d/f is missing")?;
    ensure!(owner.contains(" 7/8 "), "{owner}");
    // Our import of our export gives the same tree.
    coracle(world, &["image", "import", text(&first)?, "again"]).run()?.ok()?;
    looks_right(world, "again")?;
    coracle(world, &["run", "--name", "c2", "--network", "none", "again", "true"]).run()?.ok()?;
    let second = world.dir().join("second.tar");
    coracle(world, &["export", "-o", text(&second)?, "c2"]).run()?.ok()?;
    let mut trees = [listed, listing(world, &second)?];
    for tree in &mut trees {
        // Running it gave these another time: mount points were made in them.
        for name in ["", "etc/"] {
            ensure!(tree.remove(name).is_some(), "there is no '{name}'");
        }
    }
    ensure!(trees[0] == trees[1], "{trees:#?}");
    // Through a pipe; and never onto a terminal.
    let piped = shell(
        world,
        &format!(
            "XDG_DATA_HOME=$PWD/data {} export c | cmp - first.tar",
            world.lab.bin.join("coracle").display()
        ),
    )?;
    piped.stdout_is("")?;
    // As an image: the layers below are those of the image.
    let place = world.dir().join("out");
    let to = |format: &str, place: &Path| {
        coracle(world, &["export", "--format", format, "-o", text(place)?, "c"]).run()
    };
    to("oci-dir", &place)?.ok()?;
    to("oci-archive", &world.dir().join("out.tar"))?.ok()?;
    to("oci-dir", &place)?.fails_with(1, "not empty")?;
    needs(&["umoci", "skopeo"])?;
    shell(
        world,
        "umoci unpack --rootless --image out:latest bundle; cat bundle/rootfs/d/g; \
         [ ! -e bundle/rootfs/bin/touch ]; skopeo inspect oci-archive:out.tar:latest >/dev/null; \
         rm -rf bundle",
    )?
    .stdout_is("one")?;
    for source in ["oci:out:latest", "oci-archive:out.tar"] {
        coracle(world, &["image", "import", source, "image"]).dir(world.dir()).run()?.ok()?;
        looks_right(world, "image")?;
    }
    // Nothing was kept of it.
    coracle(world, &["image", "ls"]).run()?.ok()?.stdout_has("localhost/image:latest")?;
    remove(world, "c")?;
    remove(world, "c2")?;
    for name in ["image", "again", "box"] {
        coracle(world, &["image", "rm", "-f", name]).run()?.ok()?;
    }
    coracle(world, &["image", "gc"]).run()?.ok()?;
    ensure!(
        count(world, "layers")? == 0 && count(world, "blobs/sha256")? == 0,
        "something is left"
    );
    ensure!(count(world, "tmp")? == 0, "something is left");
    Ok(())
}

/// A directory as root: one layer with all of it, and no file of others.
pub(super) fn commit_directory(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let given = ["run", "--name", "c", "--network", "none", "--rootfs", text(&root)?];
    let script = "echo x >/new; rm /etc/group";
    coracle(world, &[&given[..], &["sh", "-c", script]].concat()).run()?.ok()?;
    coracle(world, &["commit", "-q", "-c", "CMD [\"cat\",\"/new\"]", "c", "dir"]).run()?.ok()?;
    run(world, &["dir"])?.ok()?.stdout_is("x")?;
    run(world, &["dir", "sh", "-c", "ls /etc/passwd && [ ! -e /etc/group ]"])?.ok()?;
    ensure!(root.join("etc/group").exists() && !root.join("new").exists(), "the root was changed");
    remove(world, "c")
}

pub(super) fn save(world: &World<'_>) -> Result<()> {
    changed(world)?;
    coracle(world, &["commit", "-q", "c", "example.org/made:v1"]).run()?.ok()?;
    remove(world, "c")?;
    let save = |format: &str, place: &str, images: &[&str]| {
        let place = world.dir().join(place);
        coracle(
            world,
            &[&["image", "save", "--format", format, "-o", text(&place)?], images].concat(),
        )
        .run()
    };
    save("oci-dir", "dir", &["made:v1"])?.ok()?;
    save("oci-archive", "oci.tar", &["made:v1"])?.ok()?;
    save("docker-archive", "docker.tar", &["made:v1"])?.ok()?;
    save("oci-archive", "both.tar", &["made:v1", "box"])?.ok()?;
    let inspect = |image: &str| -> Result<String> {
        let output = coracle(world, &["image", "inspect", image]).run()?.ok()?;
        let line = output.stdout.lines().find(|line| line.starts_with("    \"digest\""));
        Ok(line.context("no digest")?.to_owned())
    };
    let digest = inspect("made:v1")?;
    // Others see the very same image.
    let seen = shell(
        world,
        "umoci unpack --rootless --image dir:example.org/made:v1 bundle; cat bundle/rootfs/d/g; \
         rm -rf bundle; skopeo inspect --format '{{.Digest}}' oci:dir:example.org/made:v1; \
         skopeo inspect --format '{{.Digest}}' oci-archive:oci.tar:example.org/made:v1; \
         skopeo inspect --config --format '{{.Config.Entrypoint}}' \
         docker-archive:docker.tar:example.org/made:v1; \
         skopeo copy -q docker-archive:docker.tar:example.org/made:v1 oci:copied:c; \
         umoci unpack --rootless --image copied:c bundle; cat bundle/rootfs/d/g; rm -rf bundle",
    )?;
    let lines: Vec<&str> = seen.stdout.lines().collect();
    let [one, first, second, entrypoint, other] = lines[..] else {
        anyhow::bail!("{}", seen.describe());
    };
    ensure!(
        one == "one" && other == "one" && entrypoint == "[/bin/busybox]",
        "{}",
        seen.describe()
    );
    ensure!(digest.contains(first) && first == second, "{digest}\n{}", seen.describe());
    // And so do we.
    for name in ["made:v1", "box"] {
        coracle(world, &["image", "rm", "-f", name]).run()?.ok()?;
    }
    ensure!(count(world, "layers")? == 0, "the image is still here");
    for (source, name) in [
        ("dir", "example.org/made:v1"),
        ("oci.tar", "example.org/made:v1"),
        ("docker.tar", "example.org/made:v1"),
    ] {
        let id =
            coracle(world, &["image", "import", text(&world.dir().join(source))?]).run()?.ok()?;
        looks_right(world, name)?;
        ensure!(source == "docker.tar" || inspect(name)? == digest, "{source}: another image");
        coracle(world, &["image", "rm", "-f", id.stdout.trim()]).run()?.ok()?;
    }
    let both = format!("oci-archive:{}", world.dir().join("both.tar").display());
    let name = format!("{both}:localhost/box:latest");
    coracle(world, &["image", "import", &name]).run()?.ok()?;
    run(world, &["box", "echo", "it runs"])?.ok()?.stdout_is("it runs")?;
    // What has rotted is not handed on, and leaves no half a file.
    for blob in fs::read_dir(super::images(world).join("blobs/sha256"))? {
        let path = blob?.path();
        let mut bytes = fs::read(&path)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            bytes[12] ^= 1;
            world.cmd("sh").args(["-c", "cat >$0"]).arg(&path).stdin(bytes).run()?.ok()?;
        }
    }
    for format in ["oci-archive", "docker-archive"] {
        let refused = save(format, "bad.tar", &["box"])?;
        ensure!(refused.code == 1, "{}", refused.describe());
    }
    let left: Vec<_> = fs::read_dir(world.dir())?
        .map(|item| Ok(item?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    ensure!(!left.iter().any(|name| name.contains("bad.tar")), "{left:?}");
    Ok(())
}

pub(super) fn bad_input(world: &World<'_>) -> Result<()> {
    for (words, code, word) in [
        (&["commit"][..], 125, "CONTAINER"),
        (&["commit", "nobody"], 1, "nobody"),
        (&["commit", "nobody", "NAME"], 125, "NAME"),
        (&["commit", "-c", "RUN x", "nobody"], 125, "no instruction"),
        (&["commit", "-c", "ENV x", "nobody"], 125, "no variable"),
        (&["export", "nobody"], 1, "nobody"),
        (&["export", "--format", "zip", "nobody"], 125, "zip"),
        (&["image", "save", "nobody"], 1, "nobody"),
        (&["image", "save"], 125, "IMAGE"),
        (&["image", "save", "--format", "zip", "nobody"], 125, "zip"),
    ] {
        coracle(world, words).run()?.fails_with(code, word)?;
    }
    let root = busybox_rootfs(world)?;
    let given = ["run", "--name", "c", "--network", "none", "--rootfs", text(&root)?, "true"];
    coracle(world, &given).run()?.ok()?;
    let checked = (|| {
        for (words, word) in [
            (&["export", "-o", "/no/such/dir/x", "c"][..], "/no/such/dir/x"),
            (&["export", "--format", "oci-dir", "c"], "-o DIR"),
            (
                &[
                    "commit",
                    "c",
                    "x@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                ],
                "no digest",
            ),
        ] {
            coracle(world, words).run()?.fails_with(1, word)?;
        }
        // A full disk.
        coracle(world, &["export", "-o", "/dev/full", "c"])
            .run()?
            .fails_with(1, "No space left")?;
        Ok(())
    })();
    remove(world, "c")?;
    checked
}
