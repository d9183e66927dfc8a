//! `coracle cp`: both ways, through every kind of container, and whatever the
//! container does about it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::command::Output;
use tests::harness::World;
use tests::lab::Ids;

use super::{coracle, shell, text};
use crate::fixtures::busybox_rootfs;

fn cp(world: &World<'_>, from: &str, to: &str) -> Result<Output> {
    coracle(world, &["cp", from, to]).dir(world.dir()).run()
}

fn start(world: &World<'_>, name: &str, more: &[&str], script: &str) -> Result<()> {
    let root = world.dir().join("rootfs");
    let given = ["run", "-d", "--name", name, "--network", "none", "--rootfs", text(&root)?];
    let script = format!("{script}; echo up; exec sleep 1000");
    coracle(world, &[&given[..], more, &["sh", "-c", &script]].concat()).run()?.ok()?;
    let follow = coracle(world, &["logs", "-f", name]).spawn()?;
    follow.stdout_until("up\n", Duration::from_secs(20))?;
    Ok(())
}

fn inside(world: &World<'_>, name: &str, script: &str) -> Result<String> {
    Ok(coracle(world, &["exec", name, "sh", "-c", script]).run()?.ok()?.stdout)
}

/// Removes the containers, whatever came of the test.
fn then_remove(world: &World<'_>, names: &[&str], done: Result<()>) -> Result<()> {
    for name in names {
        let removed = coracle(world, &["rm", "-f", name]).run()?;
        if done.is_ok() {
            removed.ok()?;
        }
    }
    done
}

pub(super) fn both_ways(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    shell(
        world,
        "mkdir -p src/sub vol; echo one >src/f; echo two >src/sub/g; ln -s f src/l; \
         ln src/f src/h; chmod 4711 src/f; chmod 750 src/sub; touch -d '2001-02-03 04:05:06' src/f",
    )?;
    let volume = format!("{}:/vol", world.dir().join("vol").display());
    start(world, "c", &["-v", &volume], "mkdir /d; echo inside >/d/x")?;
    let done = (|| {
        // A directory that is not there, one that is, and what is in it.
        cp(world, "src", "c:/new")?.ok()?;
        cp(world, "src", "c:/d")?.ok()?;
        cp(world, "src/.", "c:d/")?.ok()?;
        let look = "cd $0; cat f sub/g l; busybox stat -c '%a %h %u:%g %Y' f; \
                    busybox stat -c '%a %u' sub";
        let want = "one\ntwo\none\n4711 2 0:0 981173106\n750 0\n";
        for place in ["/new", "/d/src", "/d"] {
            let got = coracle(world, &["exec", "c", "sh", "-c", look, place]).run()?.ok()?.stdout;
            ensure!(got == want, "{place}: {got:?}");
        }
        ensure!(inside(world, "c", "cat /d/x")? == "inside\n", "what was there is gone");
        // A file: into a directory, as another, over another.
        cp(world, "src/sub/g", "c:/d/")?.ok()?;
        cp(world, "src/sub/g", "c:/d/renamed")?.ok()?;
        cp(world, "src/f", "c:/d/renamed")?.ok()?;
        ensure!(inside(world, "c", "cat /d/g /d/renamed")? == "two\none\n", "not what was copied");
        // Mounts are what programs inside see: volumes, files of our own, memory.
        cp(world, "src/sub/g", "c:/vol/g")?.ok()?;
        ensure!(fs::read_to_string(world.dir().join("vol/g"))? == "two\n", "not in the volume");
        cp(world, "src/sub/g", "c:/tmp/g")?.ok()?;
        ensure!(inside(world, "c", "cat /tmp/g")? == "two\n", "not in /tmp");
        cp(world, "src/sub/g", "c:/etc/hosts")?.ok()?;
        ensure!(inside(world, "c", "cat /etc/hosts")? == "two\n", "not in a file that is mounted");
        // Back: ours, without set-id bits.
        cp(world, "c:/new", "back")?.ok()?;
        cp(world, "c:/new/.", "vol")?.ok()?;
        cp(world, "c:/d/x", "vol/renamed")?.ok()?;
        for place in ["back", "vol"] {
            let place = world.dir().join(place);
            ensure!(fs::read_to_string(place.join("sub/g"))? == "two\n", "{}", place.display());
            ensure!(fs::read_link(place.join("l"))?.as_os_str() == "f", "the link is none");
            let meta = fs::metadata(place.join("f"))?;
            ensure!(meta.uid() == world.user.uid && meta.gid() == world.user.gid, "{}", meta.uid());
            ensure!(meta.permissions().mode() & 0o7777 == 0o711, "{:o}", meta.permissions().mode());
            ensure!(meta.nlink() == 2, "hard links have come apart");
            ensure!(meta.mtime() == 981_173_106, "its time is {}", meta.mtime());
        }
        ensure!(fs::read_to_string(world.dir().join("vol/renamed"))? == "inside\n", "renamed");
        // Streams.
        let tar = shell(
            world,
            &format!(
                "export XDG_DATA_HOME=$PWD/data; {0} cp c:/new - >new.tar; tar -tf new.tar | sort; \
                 mkdir -p plain/p; echo p >plain/p/q; tar -C plain -czf - p | {0} cp - c:/d",
                world.lab.bin.join("coracle").display()
            ),
        )?;
        tar.stdout_is("new/\nnew/f\nnew/h\nnew/l\nnew/sub/\nnew/sub/g")?;
        ensure!(inside(world, "c", "cat /d/p/q")? == "p\n", "the stream was not unpacked");
        Ok(())
    })();
    then_remove(world, &["c"], done)
}

/// Of containers that have ended, and between two.
pub(super) fn ended(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    let root = world.dir().join("rootfs");
    let given = ["run", "--name", "e", "--network", "none", "--rootfs", text(&root)?];
    let script = "mkdir /d; echo x >/d/x; rm /etc/group";
    coracle(world, &[&given[..], &["sh", "-c", script]].concat()).run()?.ok()?;
    start(world, "r", &[], ":")?;
    let done = (|| {
        shell(world, "echo new >new")?;
        cp(world, "e:/d", "d")?.ok()?;
        ensure!(fs::read_to_string(world.dir().join("d/x"))? == "x\n", "d/x");
        cp(world, "e:/etc/group", "group")?.fails_with(1, "/etc/group")?;
        cp(world, "e:/etc/passwd", "passwd")?.ok()?;
        cp(world, "new", "e:/etc/passwd")?.ok()?;
        cp(world, "new", "e:/d/y")?.ok()?;
        let diff = coracle(world, &["diff", "e"]).run()?.ok()?;
        diff.stdout_is("A /d\nA /d/x\nA /d/y\nC /etc\nD /etc/group\nC /etc/passwd")?;
        ensure!(fs::read_to_string(root.join("etc/passwd"))?.contains("root:"), "the root changed");
        cp(world, "e:/d", "r:/from-e")?.ok()?;
        ensure!(inside(world, "r", "cat /from-e/x /from-e/y")? == "x\nnew\n", "e to r");
        cp(world, "r:/bin/busybox", "e:/d/busybox")?.ok()?;
        cp(world, "e:/d/busybox", "busybox")?.ok()?;
        ensure!(
            fs::read(world.dir().join("busybox"))? == fs::read(root.join("bin/busybox"))?,
            "it is another program now"
        );
        Ok(())
    })();
    then_remove(world, &["e", "r"], done)
}

/// The container's links lead around in the container.
pub(super) fn links(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    let outside = world.dir().join("outside");
    shell(world, "mkdir outside; echo host >outside/file; echo new >new")?;
    let script = format!(
        "mkdir -p /real{0} /up; echo mine >/real/file; ln -s {0} /abs; \
         ln -s ../../../../../../../../..{0}/file /up/rel; ln -s /proc/1/root/etc /magic; \
         mkdir -p {0}",
        outside.display()
    );
    let script = script.replace("ln -s", "busybox ln -s");
    start(world, "c", &[], &script)?;
    let done = (|| {
        // Where the link leads in the container there is an empty directory.
        cp(world, "new", "c:/abs/planted")?.ok()?;
        ensure!(!outside.join("planted").exists(), "written outside");
        let look = format!("cat {}/planted", outside.display());
        ensure!(inside(world, "c", &look)? == "new\n", "not where the link leads in there");
        cp(world, "c:/up/rel", "stolen")?.fails_with(1, "/up/rel")?;
        ensure!(!world.dir().join("stolen").exists(), "read outside");
        cp(world, "c:/magic/passwd", "stolen")?.fails_with(1, "/magic/passwd")?;
        // A tree with links is copied as it is, and nothing goes through them.
        cp(world, "c:/abs", "copy")?.ok()?;
        inside(world, "c", &format!("mkdir /t; busybox ln -s {} /t/out", outside.display()))?;
        cp(world, "c:/t", "t")?.ok()?;
        ensure!(fs::read_link(world.dir().join("t/out"))? == outside, "the link is none");
        cp(world, "c:/t", "t")?.ok()?;
        let names: Vec<_> =
            fs::read_dir(&outside)?.flatten().map(|item| item.file_name()).collect();
        ensure!(names == ["file"], "{names:?}");
        // Links that change while they are followed.
        inside(
            world,
            "c",
            "cd /; mkdir -p real2 swap.d; echo a >swap.d/f; (while :; do busybox rm -rf swap; \
             busybox ln -s /proc/1/root/../../../../etc swap; busybox rm -f swap; \
             busybox cp -r swap.d swap; done) >/dev/null 2>&1 &",
        )?;
        for _ in 0..20 {
            let output = cp(world, "c:/swap", "raced")?;
            ensure!(output.code == 0 || output.code == 1, "{}", output.describe());
            shell(world, "chmod -R u+rwX raced 2>/dev/null || :; rm -rf raced")?;
            let output = cp(world, "new", "c:/swap/f")?;
            ensure!(output.code == 0 || output.code == 1, "{}", output.describe());
        }
        ensure!(fs::read_to_string("/etc/passwd")?.contains("root"), "the host's file is gone");
        ensure!(!std::path::Path::new("/etc/f").exists(), "written outside");
        Ok(())
    })();
    then_remove(world, &["c"], done)
}

/// Files belong to the container's user, and a stream says its own.
pub(super) fn owners(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    shell(world, "echo x >f; tar --owner=7 --group=8 -cf owned.tar f")?;
    let user: &[&str] = match world.ids {
        Ids::Subordinate => &["-u", "u"],
        Ids::Single => &[],
    };
    start(world, "c", user, ":")?;
    let done = (|| {
        cp(world, "f", "c:/tmp/f")?.ok()?;
        let tar = fs::read(world.dir().join("owned.tar"))?;
        coracle(world, &["cp", "-", "c:/var"]).stdin(tar).run()?.ok()?;
        let got = inside(world, "c", "busybox stat -c %u:%g /tmp/f /var/f")?;
        let want = match world.ids {
            Ids::Subordinate => "7:8\n7:8\n",
            Ids::Single => "0:0\n0:0\n",
        };
        ensure!(got == want, "{got}");
        let script = format!(
            "XDG_DATA_HOME=$PWD/data {} cp c:/var/f - | tar --numeric-owner -tvf -",
            world.lab.bin.join("coracle").display()
        );
        let owner = want.lines().next().unwrap_or_default().replace(':', "/");
        shell(world, &script)?.stdout_has(&format!(" {owner} "))?;
        Ok(())
    })();
    then_remove(world, &["c"], done)
}

pub(super) fn bad_input(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    shell(world, "echo x >f; mkdir dir")?;
    start(world, "c", &["--read-only"], ":")?;
    let given = ["run", "--name", "gone", "--network", "none", "--upper", "ram", "--rootfs"];
    let root = world.dir().join("rootfs");
    coracle(world, &[&given[..], &[text(&root)?, "true"]].concat()).run()?.ok()?;
    let ended = ["run", "--name", "e", "--network", "none", "--rootfs", text(&root)?, "true"];
    coracle(world, &ended).run()?.ok()?;
    let done = (|| {
        for (from, to, word) in [
            ("no-such", "e:/tmp", "no-such: No such file"),
            ("e:/no/such", "x", "/no/such: No such file"),
            ("f", "g", "neither path"),
            ("-", "-", "neither path"),
            ("nobody:/x", "x", "nobody"),
            ("c:", "x", "no path"),
            ("c:/x", "c:/y", "one container"),
            ("c:/no/such", "x", "/no/such"),
            ("no-such", "c:/tmp", "no-such"),
            ("f", "c:/no/such/dir/f", "/no/such/dir"),
            ("f", "c:/tmp/no/", "no such directory"),
            ("dir", "c:/etc/passwd", "no directory"),
            ("c:/dev/null", "x", "neither a file"),
            ("f", "c:/dev/null", "neither a file"),
            ("f", "c:/f", "Read-only file system"),
            ("c:/etc/passwd", "/no/such/place", "/no/such"),
            ("gone:/etc/passwd", "x", "in memory"),
        ] {
            cp(world, from, to)?.fails_with(1, word)?;
        }
        let noise = coracle(world, &["cp", "-", "c:/tmp"]).stdin([7; 4096]).run()?;
        noise.fails_with(1, "archive")?;
        coracle(world, &["cp", "c:/x"]).run()?.fails_with(125, "DEST")?;
        Ok(())
    })();
    then_remove(world, &["c", "gone", "e"], done)
}
