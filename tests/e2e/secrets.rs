//! What the container's processes must not know.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::harness::{Test, World};

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("secrets/environment-of-the-host", environment).each_user().lab(),
    Test::new("secrets/files", files).each_user(),
    Test::new("secrets/nowhere-else", nowhere_else).each_user().seconds(120),
    Test::new("secrets/wrong-ones", wrong).each_user(),
];

const LIMIT: Duration = Duration::from_secs(20);

fn environment(world: &World<'_>) -> Result<()> {
    // Put together here so that the needle is in no command line.
    let marker = format!("{}-{}", "host-secret", 0x5eed_c0de_u32);
    let running = world
        .coracle(&[
            "run",
            "--rm",
            "-i",
            "-e",
            "SHOWN=shown-marker",
            "--",
            "sh",
            "-c",
            "echo up; cat",
        ])
        .env("SECRET_TOKEN", &marker)
        .stdin_open()
        .spawn()?;
    running.stdout_until("up\n", LIMIT)?;

    let own = fs::read_link("/proc/self/ns/pid")?;
    let inside: Vec<i32> = world
        .lab
        .processes()
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != own))
        .collect();
    ensure!(inside.len() >= 2, "only {} processes of the container found", inside.len());
    let mut shown = false;
    for pid in inside {
        let memory = memory_of(pid)?;
        let has = |needle: &str| {
            memory.iter().any(|part| part.windows(needle.len()).any(|at| at == needle.as_bytes()))
        };
        ensure!(
            !has(&marker),
            "the host's environment is in the memory of process {pid}: {}",
            tests::leak::describe(pid)
        );
        shown |= has("shown-marker");
    }
    ensure!(shown, "the search finds nothing: not even the variable asked for");
    running.wait(LIMIT)?.ok()?;
    Ok(())
}

fn memory_of(pid: i32) -> Result<Vec<Vec<u8>>> {
    let mem = File::open(format!("/proc/{pid}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut parts = vec![fs::read(format!("/proc/{pid}/environ"))?];
    for line in maps.lines() {
        let range = line.split(' ').next().unwrap_or_default();
        let (from, to) = range.split_once('-').context("a map without a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if line.contains("[v") || to - from > 256 << 20 {
            // The kernel's own pages; and reservations nobody touched.
            continue;
        }
        let mut part = vec![0; usize::try_from(to - from)?];
        // Guard pages cannot be read; nothing can be in them either.
        if mem.read_exact_at(&mut part, from).is_ok() {
            parts.push(part);
        }
    }
    Ok(parts)
}

/// A secret is in the container's memory, for its user, and nowhere else.
fn files(world: &World<'_>) -> Result<()> {
    let marker = format!("{}-{}", "file-secret", 0x5eed_c0de_u32);
    world.write("key", &format!("{marker}\n"))?;
    let run = ["run", "--name", "keeper", "--network", "none", "--secret", "token=key"];
    let script = "stat -c '%a %u:%g' /run/secrets/token; cat /run/secrets/token; \
        stat -f -c %T /run/secrets; env | grep -i token; \
        (echo x >/run/secrets/token) 2>/dev/null && echo changed; \
        (rm -f /run/secrets/token) 2>/dev/null && echo removed; \
        touch /run/secrets/x 2>/dev/null && echo added; touch /root/f; sleep 1000";
    let running = world.coracle(&run).args(["--", "sh", "-c", script]).spawn()?;
    running.stdout_until("ramfs\n", LIMIT)?;
    // One that is not the container's user finds no way to it.
    let joined = world.coracle(&["exec", "keeper", "cat", "/run/secrets/token"]).run();
    let diff = world.coracle(&["diff", "keeper"]).run();
    world.coracle(&["kill", "keeper"]).run()?.ok()?;
    let output = running.wait(LIMIT)?;
    joined?.ok()?.stdout_is(&marker)?;
    ensure!(!diff?.stdout.contains("token"), "it counts as a change");
    output.stdout_is(&format!("400 0:0\n{marker}\nramfs"))?;
    // Not in what is kept of the container, which stays when it has ended.
    let found = world.cmd("sh").args(["-c", "grep -rl \"$0\" ~/.local/share/coracle; true"]);
    found.arg(&marker).run()?.ok()?.stdout_is("")?;
    let state = "cat ~/.local/share/coracle/containers/keeper/state.json";
    world.cmd("sh").args(["-c", state]).run()?.ok()?.stdout_has("token")?;
    world.coracle(&["rm", "keeper"]).run()?.ok()?;

    if world.ids == tests::lab::Ids::Subordinate {
        let words = ["run", "--rm", "--network", "none", "--secret", "a=key", "--secret", "b=key"];
        let script = "stat -c '%a %u:%g' /run/secrets/*; cat /run/secrets/b";
        let cmd =
            world.coracle(&words).args(["-u", "7:8", "--read-only", "--", "sh", "-c", script]);
        cmd.run()?.ok()?.stdout_is(&format!("400 7:8\n400 7:8\n{marker}"))?;
    }
    Ok(())
}

/// What is made of a container, and told of it, does not have its secrets. Beside the
/// secret a marker is put where all of it must have it: a search that would find nothing
/// anyway proves nothing.
fn nowhere_else(world: &World<'_>) -> Result<()> {
    let secret = format!("{}-{}", "kept-secret", 0x5eed_c0de_u32);
    let shown = format!("{}-{}", "shown-marker", 0x5eed_c0de_u32);
    world.write("key", &format!("{secret}\n"))?;
    let root = busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    let data = world.dir().join("data");
    let coracle = |words: &[&str]| world.coracle(words).env("XDG_DATA_HOME", &data);
    coracle(&["image", "import", "-q", root, "box"]).run()?.ok()?;
    let script = format!(
        "cat /run/secrets/token >/dev/null; echo {shown} >/etc/shown; echo {shown}; exec sleep 1000"
    );
    let given = format!("SHOWN={shown}");
    let words = ["run", "-d", "--name", "keeper", "--network", "none", "--secret", "token=key"];
    let image = ["-e", &given, "box", "sh", "-c", &script];
    coracle(&[&words[..], &image].concat()).run()?.ok()?;
    let checked = (|| {
        let follow = coracle(&["logs", "-f", "keeper"]).spawn()?;
        follow.stdout_until(&shown, LIMIT)?;
        let told = |words: &[&str]| -> Result<()> {
            let output = coracle(words).run()?.ok()?;
            ensure!(output.stdout.contains(&shown), "not searched: {}", output.describe());
            ensure!(!output.stdout.contains(&secret), "it is told: {}", output.describe());
            Ok(())
        };
        told(&["inspect", "keeper"])?;
        told(&["logs", "keeper"])?;
        told(&["exec", "keeper", "busybox", "env"])?;
        told(&["exec", "keeper", "cat", "/proc/self/environ", "/etc/shown"])?;
        coracle(&["exec", "keeper", "cat", "/run/secrets/token"])
            .run()?
            .ok()?
            .stdout_is(&secret)?;
        coracle(&["commit", "-q", "keeper", "made"]).run()?.ok()?;
        coracle(&["image", "inspect", "made"]).run()?.ok()?;
        for (name, words) in [
            ("export.tar", &["export", "keeper"][..]),
            ("oci.tar", &["export", "--format", "oci-archive", "keeper"]),
            ("saved.tar", &["image", "save", "--format", "docker-archive", "made"]),
            ("cp.tar", &["cp", "keeper:/etc", "-"]),
        ] {
            let to = format!("exec \"$0\" \"$@\" >{name}");
            let coracle = world.lab.bin.join("coracle");
            let write = world.cmd("sh").args(["-c", &to]).arg(coracle).args(words);
            write.env("XDG_DATA_HOME", &data).run()?.ok()?;
            // Whatever is compressed in there is taken apart first.
            let script = "mkdir x; tar -xf $0 -C x; for f in $(find x -type f); do \
                          if gzip -t $f 2>/dev/null; then zcat $f >$f.plain; fi; done; \
                          grep -rlaF \"$1\" x $0 >found; grep -rlaF \"$2\" x $0 >leaked; \
                          ls -R x | grep -x token >>leaked; rm -rf x; wc -l <found; cat leaked";
            let search = world.cmd("sh").args(["-c", script, name, &shown, &secret]).run()?.ok()?;
            let mut lines = search.stdout.lines();
            let found: u32 = lines.next().unwrap_or_default().trim().parse()?;
            ensure!(found > 0, "{name} was not searched: {}", search.describe());
            ensure!(lines.next().is_none(), "it is in {name}: {}", search.describe());
        }
        // A container of the image has none of it, and no place for it.
        let words = ["run", "--rm", "--network", "none", "made", "sh", "-c"];
        let look = "cat /etc/shown; ls /run/secrets 2>/dev/null; echo $?";
        let output = coracle(&[&words[..], &[look]].concat()).run()?.ok()?;
        ensure!(output.stdout == format!("{shown}\n1\n"), "{}", output.describe());
        Ok(())
    })();
    coracle(&["rm", "-f", "keeper"]).limit(LIMIT).run()?.ok()?;
    checked?;
    // Nor in anything that is kept of either.
    let found = world.cmd("grep").args(["-rlaF", &secret]).arg(&data).run()?;
    ensure!(found.code == 1, "{}", found.describe());
    Ok(())
}

fn wrong(world: &World<'_>) -> Result<()> {
    world.cmd("mkfifo").arg(world.dir().join("fifo")).run()?.ok()?;
    world.write("long", &"x".repeat(512_001))?;
    for (secret, words) in [
        ("a=nonesuch", &["cannot use the secret", "nonesuch", "No such file"][..]),
        ("a=fifo", &["secret a", "fifo", "no regular file"]),
        ("a=.", &["secret a", "no regular file"]),
        ("a=long", &["secret a", "512000"]),
        ("a/b=long", &["'a/b'"]),
        ("long", &["NAME=FILE"]),
    ] {
        let words_of = ["run", "--rm", "--network", "none", "--secret", secret, "--", "true"];
        let output = world.coracle(&words_of).run()?.code_is(125)?;
        let told = words.iter().all(|word| output.stderr.contains(word));
        ensure!(told, "{words:?}: {}", output.describe());
    }
    Ok(())
}
