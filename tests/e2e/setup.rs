//! `coracle setup podman`: the files it writes, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::command::Cmd;
use tests::harness::{Test, World, skip};
use tests::lab;

pub(crate) const TESTS: &[Test] = &[
    Test::new("setup/there-and-back", there_and_back),
    Test::new("setup/one-of-two", one_of_two),
    Test::new("setup/edited-since", edited_since),
    Test::new("setup/refused", refused),
    Test::new("setup/unwritable-home", unwritable_home),
    Test::new("setup/podman-sees-it", podman_sees_it).lab().subordinate_ids(),
];

/// A home of its own, so that the user's is left alone.
struct Home(PathBuf);

impl Home {
    fn new(world: &World<'_>) -> Result<Self> {
        let home = world.dir().join("home");
        world.cmd("mkdir").args(["-p"]).arg(home.join(".config/containers")).run()?.ok()?;
        Ok(Self(home))
    }

    fn setup(&self, world: &World<'_>, words: &[&str]) -> Cmd {
        world.coracle(&[&["setup", "podman"], words].concat()).env("HOME", &self.0)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.0.join(".config/containers").join(name)
    }

    /// Every file below, with its content.
    fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) -> Result<()> {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    walk(&path, found)?;
                } else {
                    let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                    found.push((path, text));
                }
            }
            Ok(())
        }
        let mut found = Vec::new();
        walk(&self.0, &mut found)?;
        found.sort();
        Ok(found)
    }
}

const STORAGE: &str = "# mine\n[storage]\ndriver = \"overlay\" # fast\n\n[storage.options.overlay]\n\
                       mount_program = \"/usr/bin/fuse-overlayfs\" # slow\nmountopt = \"nodev\"\n";

fn there_and_back(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    world.write(home.conf("storage.conf"), STORAGE)?;
    let before = home.files()?;

    let dry = home.setup(world, &["--dry-run"]).run()?.ok()?;
    ensure!(home.files()? == before, "--dry-run has changed something");
    let done = home.setup(world, &[]).run()?.ok()?;
    ensure!(done.stdout == dry.stdout, "what was announced is not what was done");
    let done = done
        .stdout_has("+network_cmd_path = ")?
        .stdout_has("-mount_program = \"/usr/bin/fuse-overlayfs\" # slow")?;
    let programs = fs::canonicalize(&world.lab.bin)?;
    let ours = programs.join("overlayfs-fuse").display().to_string();
    let storage = fs::read_to_string(home.conf("storage.conf"))?;
    ensure!(
        storage == STORAGE.replace("/usr/bin/fuse-overlayfs", &ours),
        "{storage}\n{}",
        done.describe()
    );
    let containers = fs::read_to_string(home.conf("containers.conf"))?;
    let expected =
        format!("[engine]\nnetwork_cmd_path = \"{}\"\n", programs.join("netstack").display());
    ensure!(containers == expected, "{containers}");

    let after = home.files()?;
    home.setup(world, &[]).run()?.ok()?.stdout_has("nothing to change")?;
    ensure!(home.files()? == after, "a second call has changed something");

    home.setup(world, &["--undo", "--dry-run"]).run()?.ok()?;
    ensure!(home.files()? == after, "--undo --dry-run has changed something");
    home.setup(world, &["--undo"]).run()?.ok()?;
    ensure!(home.files()? == before, "not as before: {:?}", home.files()?);
    home.setup(world, &["--undo"]).run()?.ok()?.stdout_has("nothing to take back")?;
    Ok(())
}

fn one_of_two(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    home.setup(world, &["--network"]).run()?.ok()?;
    ensure!(!home.conf("storage.conf").exists(), "--network has written storage.conf");
    home.setup(world, &["--storage"]).run()?.ok()?;
    home.setup(world, &["--undo", "--network"]).run()?.ok()?;
    ensure!(!home.conf("containers.conf").exists(), "containers.conf was not there before");
    ensure!(home.conf("storage.conf").exists(), "--undo --network has taken back the storage");
    // As a link, which stays one.
    let real = home.0.join("real.conf");
    world.write(&real, "# linked\n")?;
    let made = world.cmd("ln").arg("-s").arg(&real).arg(home.conf("containers.conf")).run()?;
    made.ok()?;
    home.setup(world, &["--network"]).run()?.ok()?;
    ensure!(home.conf("containers.conf").is_symlink(), "the link was replaced");
    ensure!(fs::read_to_string(&real)?.contains("netstack"), "the file behind it was not edited");
    home.setup(world, &["--undo"]).run()?.ok()?;
    ensure!(fs::read_to_string(&real)? == "# linked\n", "not as before");
    Ok(())
}

fn edited_since(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    world.write(home.conf("storage.conf"), STORAGE)?;
    home.setup(world, &["--storage"]).run()?.ok()?;
    let edited = fs::read_to_string(home.conf("storage.conf"))?.replace("nodev", "nodev,noexec");
    world.write(home.conf("storage.conf"), &edited)?;
    // A call in between does not take the present state for the one to go back to.
    home.setup(world, &["--storage"]).run()?.ok()?;
    home.setup(world, &["--undo"]).run()?.ok()?;
    let text = fs::read_to_string(home.conf("storage.conf"))?;
    ensure!(text == STORAGE.replace("nodev", "nodev,noexec"), "{text}");
    Ok(())
}

fn refused(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    let refuses = |name: &str, text: &str, word: &str| -> Result<()> {
        world.write(home.conf(name), text)?;
        let before = home.files()?;
        home.setup(world, &[]).run()?.fails_with(1, word)?;
        ensure!(home.files()? == before, "something was written in spite of {word:?}");
        fs::remove_file(home.conf(name)).context("the test's own file")
    };
    refuses("storage.conf", "[storage]\ndriver = \"vfs\"\n", "\"vfs\"")?;
    refuses("storage.conf", "[storage\n", "not valid TOML")?;
    refuses("storage.conf", "storage = 1\n", "'storage'")?;
    refuses("containers.conf", "[engine]\nnetwork_cmd_path = 3\n", "engine.network_cmd_path")?;

    let store = home.0.join(".local/share/containers/storage");
    world.cmd("mkdir").arg("-p").arg(store.join("vfs-layers")).run()?.ok()?;
    home.setup(world, &[]).run()?.fails_with(1, "store of the driver \"vfs\"")?;
    home.setup(world, &["--network"]).run()?.ok()?;
    let elsewhere = home.setup(world, &["--network"]).env("CONTAINERS_CONF", "/x").run()?;
    elsewhere.fails_with(1, "CONTAINERS_CONF")?;
    home.setup(world, &["--nothing"]).run()?.fails_with(125, "--nothing")?;
    Ok(())
}

fn unwritable_home(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    world.cmd("mkdir").arg("-p").arg(home.0.join(".local/share")).run()?.ok()?;
    world.cmd("chmod").arg("555").arg(home.0.join(".config/containers")).run()?.ok()?;
    home.setup(world, &["--network"]).run()?.fails_with(1, "cannot write")?;
    ensure!(!home.conf("containers.conf").exists(), "it was written");
    world.cmd("chmod").arg("755").arg(home.0.join(".config/containers")).run()?.ok()?;
    home.setup(world, &["--network"]).run()?.ok()?;
    home.setup(world, &["--undo"]).run()?.ok()?;
    ensure!(!home.conf("containers.conf").exists(), "not as before");
    Ok(())
}

fn podman_sees_it(world: &World<'_>) -> Result<()> {
    if lab::find("podman").is_none() {
        return Err(skip("podman is not installed"));
    }
    let home = Home::new(world)?;
    home.setup(world, &[]).run()?.ok()?;
    // A PID namespace of its own: Podman leaves a process that waits for the next call.
    let script = "podman info --format '{{.Host.Slirp4NetNS.Executable}} {{.Store.GraphDriverName}} \
                  {{.Store.GraphOptions}}'";
    let output = Cmd::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "setpriv"])
        .args(["--reuid", &world.user.uid.to_string(), "--regid", &world.user.gid.to_string()])
        .args(["--clear-groups", "sh", "-c", script])
        .env("HOME", &home.0)
        .env("XDG_RUNTIME_DIR", world.dir())
        .dir(world.dir())
        .run()?
        .ok()?;
    for program in ["netstack", "overlayfs-fuse"] {
        let path = fs::canonicalize(world.lab.bin.join(program))?.display().to_string();
        ensure!(output.stdout.contains(&path), "{program}\n{}", output.describe());
    }
    output.stdout_has(" overlay ")?;
    Ok(())
}
