//! Who runs it, and where: several users at once, a home that cannot be written, no
//! directory for what lives as long as the session.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::command::{Cmd, User};
use tests::harness::{Test, World};
use tests::lab::Ids;
use tests::leak::Snapshot;

pub(crate) const TESTS: &[Test] = &[
    Test::new("users/several-at-once", several).lab().seconds(120),
    Test::new("users/each-its-own", each_its_own).lab(),
    Test::new("users/home-read-only", home_read_only).each_user().lab(),
    Test::new("users/home-read-only-since", home_read_only_since).each_user().lab(),
    Test::new("users/no-home", no_home).each_user(),
    Test::new("users/no-runtime-dir", no_runtime_dir).each_user(),
];

const LIMIT: Duration = Duration::from_secs(20);

/// coracle as one of the lab's users, in that user's home.
fn coracle(world: &World<'_>, user: &User, words: &[&str]) -> Cmd {
    Cmd::new(world.lab.bin.join("coracle")).user(user).args(words)
}

/// Both users of the lab.
fn both<'a>(world: &'a World<'_>) -> Result<[&'a User; 2]> {
    let user = |ids| world.lab.user(ids).ok_or_else(|| anyhow::anyhow!(world.lab.no_user(ids)));
    Ok([user(Ids::Subordinate)?, user(Ids::Single)?])
}

/// The same names, all the time, by both; each finds its own.
fn several(world: &World<'_>) -> Result<()> {
    let lives = |user: &User| -> Result<()> {
        for round in 0..5 {
            let mark = format!("{}-{round}", user.name);
            let script = format!("echo {mark} >/etc/mark; echo {mark}; exec sleep 1000");
            let words = ["run", "-d", "--name", "same", "--", "sh", "-c", &script];
            coracle(world, user, &words).run()?.ok()?.stdout_is("same")?;
            let follow = coracle(world, user, &["logs", "-f", "same"]).spawn()?;
            follow.stdout_until(&format!("{mark}\n"), LIMIT)?;
            let exec = ["exec", "same", "--", "cat", "/etc/mark"];
            coracle(world, user, &exec).run()?.ok()?.stdout_is(&mark)?;
            coracle(world, user, &["ps", "-a", "-q"]).run()?.ok()?.stdout_is("same")?;
            coracle(world, user, &["stop", "same"]).limit(LIMIT).run()?.ok()?;
            follow.wait(LIMIT)?.ok()?.stdout_is(&mark)?;
            coracle(world, user, &["wait", "same"]).run()?.ok()?.stdout_is("143")?;
            coracle(world, user, &["rm", "same"]).run()?.ok()?;
            coracle(world, user, &["ps", "-a", "-q"]).run()?.ok()?.stdout_is("")?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            both(world)?.into_iter().map(|user| scope.spawn(move || lives(user))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
        })
    })
}

/// What one does to a name is nothing to the other's, who cannot be reached either.
fn each_its_own(world: &World<'_>) -> Result<()> {
    let [ada, bob] = both(world)?;
    let port = ["-p", "127.0.0.1:18097:80"];
    let run = ["run", "-d", "--name", "same", "--network", "none", "--", "sleep", "1000"];
    for user in [ada, bob] {
        coracle(world, user, &run).run()?.ok()?;
    }
    let checked = (|| {
        coracle(world, ada, &["rm", "-f", "same"]).limit(LIMIT).run()?.ok()?;
        coracle(world, ada, &["exec", "same", "--", "true"]).run()?.fails_with(125, "same")?;
        coracle(world, bob, &["exec", "same", "--", "true"]).run()?.ok()?;
        // Told where the other's are: they are not for others to look at.
        let theirs = bob.home.join(".local/share");
        let as_bob =
            |words: &[&str]| coracle(world, ada, words).env("XDG_DATA_HOME", &theirs).run();
        let place = theirs.display().to_string();
        for (words, code) in
            [(&["ps", "-a"][..], 1), (&["kill", "same"], 1), (&["exec", "same", "true"], 125)]
        {
            as_bob(words)?.fails_with(code, &place)?;
        }
        // A port of the host's is one user's.
        let take = |user: &User, name: &str| {
            let words = [&["run", "-d", "--rm", "--name", name], &port[..]].concat();
            coracle(world, user, &[&words[..], &["--", "sleep", "1000"]].concat()).run()
        };
        take(ada, "port")?.ok()?;
        take(bob, "port")?.fails_with(125, "18097")?;
        coracle(world, ada, &["rm", "-f", "port"]).limit(LIMIT).run()?.ok()?;
        take(bob, "port")?.ok()?;
        coracle(world, bob, &["rm", "-f", "port"]).limit(LIMIT).run()?.ok()
    })();
    coracle(world, bob, &["rm", "-f", "same"]).limit(LIMIT).run()?.ok()?;
    checked.map(drop)
}

/// A file system for a home, which is taken away again.
struct Home(PathBuf);

impl Home {
    fn new(world: &World<'_>) -> Result<Self> {
        let dir = world.dir().join("home");
        world.cmd("mkdir").arg(&dir).run()?.ok()?;
        let options = format!("mode=0700,uid={},gid={}", world.user.uid, world.user.gid);
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(dir))
    }

    fn read_only(&self, yes: bool) -> Result<()> {
        let flags = if yes { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)?;
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // One that stays is a leaked mount, which fails the test.
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

/// Nothing can be kept there, which is said with what to do; elsewhere all works.
fn home_read_only(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    home.read_only(true)?;
    let at_home = |words: &[&str]| world.coracle(words).env("HOME", home.path());
    let place = home.path().join(".local").display().to_string();
    for (words, code) in [
        (&["run", "--rm", "--network", "none", "--", "true"][..], 125),
        (&["create", "--", "true"], 125),
        (&["ps"], 1),
        (&["image", "ls"], 1),
        (&["image", "import", "/etc/passwd"], 1),
    ] {
        let output = at_home(words).run()?.fails_with(code, &place)?;
        for word in ["Read-only file system", "XDG_DATA_HOME"] {
            ensure!(output.stderr.contains(word), "no {word}: {}", output.describe());
        }
    }
    // What keeps nothing works.
    at_home(&["policy", "explain", "/dev/null"]).run()?.fails_with(1, "no regular file")?;
    at_home(&["completion", "bash"]).run()?.ok()?;
    let doctor = at_home(&["doctor"]).run()?.code_is(1)?;
    ensure!(doctor.stdout.contains("XDG_DATA_HOME"), "{}", doctor.describe());

    let data = world.dir().join("data");
    let elsewhere = |words: &[&str]| at_home(words).env("XDG_DATA_HOME", &data);
    let words = ["run", "--name", "c", "--", "sh", "-c", "echo x >~/f && cat ~/f"];
    elsewhere(&words).run()?.ok()?.stdout_is("x")?;
    elsewhere(&["diff", "c"]).run()?.ok()?.stdout_has("A /root/f")?;
    elsewhere(&["rm", "c"]).run()?.ok()?;
    Ok(())
}

/// Containers that are there can be looked at; what would change them says why not.
fn home_read_only_since(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    let at_home = |words: &[&str]| world.coracle(words).env("HOME", home.path());
    let before = Snapshot::take(world.lab)?;
    let run = ["run", "-d", "--name", "c", "--network", "none", "--", "sh", "-c", "echo said"];
    at_home(&run).run()?.ok()?;
    at_home(&["wait", "c"]).limit(LIMIT).run()?.ok()?.stdout_is("0")?;
    // With the monitor the last file goes that is open to be written.
    before.wait_for_processes(world.lab)?;
    home.read_only(true)?;
    at_home(&["ps", "-a"]).run()?.ok()?.stdout_has("Exited (0)")?;
    at_home(&["inspect", "c"]).run()?.ok()?.stdout_has("\"ExitCode\": 0")?;
    at_home(&["logs", "c"]).run()?.ok()?.stdout_is("said")?;
    at_home(&["wait", "c"]).run()?.ok()?.stdout_is("0")?;
    for (words, code) in [
        (&["run", "--rm", "--network", "none", "--", "true"][..], 125),
        (&["start", "c"], 1),
        (&["rm", "c"], 1),
    ] {
        let output = at_home(words).run()?.fails_with(code, "Read-only file system")?;
        ensure!(output.stderr.contains("XDG_DATA_HOME"), "{}", output.describe());
    }
    home.read_only(false)?;
    at_home(&["start", "-a", "c"]).run()?.ok()?.stdout_is("said")?;
    at_home(&["rm", "c"]).run()?.ok()?;
    Ok(())
}

/// HOME says nothing, or nothing of use: then it is the user database's.
fn no_home(world: &World<'_>) -> Result<()> {
    let words = ["run", "--rm", "--network", "none", "--", "echo", "ran"];
    for home in [None, Some(""), Some("relative")] {
        let cmd = world.coracle(&words).env("XDG_DATA_HOME", "");
        let cmd = match home {
            None => cmd.without("HOME"),
            Some(home) => cmd.env("HOME", home),
        };
        if world.lab.is_isolated() {
            cmd.run()?.ok()?.stdout_is("ran")?;
        }
    }
    // One that is not there is made, as far as the user may.
    let cmd = world.coracle(&words).env("HOME", "/nonexistent");
    cmd.run()?.fails_with(125, "/nonexistent")?;
    Ok(())
}

/// All of a container's life, and nothing is kept beside the data directory.
fn no_runtime_dir(world: &World<'_>) -> Result<()> {
    let coracle = |words: &[&str]| world.coracle(words).without("XDG_RUNTIME_DIR");
    let script = "echo up; exec sleep 1000";
    coracle(&["run", "-d", "--name", "c", "--", "sh", "-c", script]).run()?.ok()?;
    let follow = coracle(&["logs", "-f", "c"]).spawn()?;
    follow.stdout_until("up\n", LIMIT)?;
    coracle(&["exec", "c", "--", "true"]).run()?.ok()?;
    coracle(&["ps"]).run()?.ok()?.stdout_has("Up ")?;
    // One with the variable and one without find the same.
    world.coracle(&["inspect", "c"]).run()?.ok()?.stdout_has("\"running\"")?;
    coracle(&["stop", "-t", "0", "c"]).limit(LIMIT).run()?.ok()?;
    follow.wait(LIMIT)?.ok()?;
    coracle(&["start", "c"]).run()?.ok()?;
    coracle(&["rm", "-f", "c"]).limit(LIMIT).run()?.ok()?;
    let doctor = coracle(&["doctor"]).run()?;
    doctor.stdout_has("XDG_RUNTIME_DIR")?;
    Ok(())
}
