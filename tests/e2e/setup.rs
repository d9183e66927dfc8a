//! `coracle setup podman`: the files it writes, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output};
use tests::harness::{Test, World, skip};
use tests::lab;

pub(crate) const TESTS: &[Test] = &[
    Test::new("setup/there-and-back", there_and_back),
    Test::new("setup/one-of-two", one_of_two),
    Test::new("setup/edited-since", edited_since),
    Test::new("setup/refused", refused),
    Test::new("setup/pinned-by-podman-5", pinned_by_podman_5),
    Test::new("setup/pinned-by-podman-4", pinned_by_podman_4).lab().subordinate_ids(),
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

/// What Podman 5 writes when it makes a store.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS DBConfig(ID INTEGER PRIMARY KEY NOT NULL, \
    SchemaVersion INTEGER NOT NULL, OS TEXT NOT NULL, StaticDir TEXT NOT NULL, \
    TmpDir TEXT NOT NULL, GraphRoot TEXT NOT NULL, RunRoot TEXT NOT NULL, \
    GraphDriver TEXT NOT NULL, VolumeDir TEXT NOT NULL, CHECK (ID IN (1)));";

fn pinned_by_podman_5(world: &World<'_>) -> Result<()> {
    if lab::find("sqlite3").is_none() {
        return Err(skip("sqlite3 is not installed"));
    }
    let home = Home::new(world)?;
    let store = home.0.join("a store");
    world.cmd("mkdir").arg("-p").arg(&store).run()?.ok()?;
    world.write(
        home.conf("storage.conf"),
        &format!("[storage]\ngraphroot = \"{}\"\n", store.display()),
    )?;
    let database = store.join("db.sql");
    let sql = |sql: &str| world.cmd("sqlite3").arg(&database).arg(sql).run()?.ok().map(drop);
    let refuses = |why: &str| -> Result<()> {
        let before = home.files()?;
        for words in [&["--storage"][..], &["--dry-run"], &[]] {
            home.setup(world, words).run()?.fails_with(1, why)?;
        }
        ensure!(home.files()? == before, "something was written in spite of {why:?}");
        // The network has nothing to do with it.
        home.setup(world, &["--network"]).run()?.ok()?;
        home.setup(world, &["--undo"]).run()?.ok()?;
        Ok(())
    };
    sql(TABLE)?;
    sql("INSERT INTO DBConfig VALUES (1, 1, 'linux', '/s', '/t', '/g', '/r', 'btrfs', '/v')")?;
    refuses("store of the driver \"btrfs\"")?;
    // It is what the database says that counts.
    world.cmd("mkdir").arg(store.join("overlay-layers")).run()?.ok()?;
    refuses("store of the driver \"btrfs\"")?;
    world.write(store.join("db.sql-wal"), "x")?;
    refuses("db.sql-wal is there")?;
    fs::remove_file(store.join("db.sql-wal"))?;
    sql("UPDATE DBConfig SET GraphDriver = 'overlay'")?;
    home.setup(world, &[]).run()?.ok()?;
    home.setup(world, &["--undo"]).run()?.ok()?;
    // A database of another kind, a damaged one, one that cannot be read.
    sql("DROP TABLE DBConfig; CREATE TABLE DBConfig (x)")?;
    refuses("DBConfig has no GraphDriver")?;
    world.write(&database, "not at all")?;
    refuses("no database that is understood here")?;
    world.cmd("chmod").arg("000").arg(&database).run()?.ok()?;
    home.setup(world, &["--storage"]).run()?.fails_with(1, "cannot read")?;
    Ok(())
}

fn pinned_by_podman_4(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    podman(world, &home, "podman --storage-driver vfs info >/dev/null")?;
    let store = home.0.join(".local/share/containers/storage");
    ensure!(store.join("libpod/bolt_state.db").exists(), "podman made no database of bbolt");
    home.setup(world, &["--storage"]).run()?.fails_with(1, "store of the driver \"vfs\"")?;
    // The database alone, too, as after `rm -r vfs*`.
    for name in ["vfs", "vfs-layers", "vfs-images", "vfs-containers"] {
        world.cmd("rm").arg("-r").arg(store.join(name)).run()?.ok()?;
    }
    world.cmd("mkdir").arg(store.join("overlay-layers")).run()?.ok()?;
    home.setup(world, &[]).run()?.fails_with(1, "store of the driver \"vfs\"")?;
    world.cmd("rm").arg("-r").arg(&store).run()?.ok()?;
    podman(world, &home, "podman --storage-driver overlay info >/dev/null")?;
    home.setup(world, &[]).run()?.ok()?;
    home.setup(world, &["--undo"]).run()?.ok()?;
    // A database that lies elsewhere, and a store whose path is made of variables.
    let conf = format!("[engine]\nstatic_dir = \"{}/static\"\n", home.0.display());
    world.write(home.conf("containers.conf"), &conf)?;
    world.write(
        home.conf("storage.conf"),
        "[storage]\nrootless_storage_path = \"$HOME/store of $UID\"\n",
    )?;
    podman(world, &home, "podman --storage-driver vfs info >/dev/null")?;
    ensure!(home.0.join("static/bolt_state.db").exists(), "podman has its database elsewhere");
    let store = home.0.join(format!("store of {}", world.user.uid));
    home.setup(world, &["--storage"]).run()?.fails_with(1, "store of the driver \"vfs\"")?;
    for name in ["vfs", "vfs-layers", "vfs-images", "vfs-containers"] {
        world.cmd("rm").arg("-r").arg(store.join(name)).run()?.ok()?;
    }
    home.setup(world, &["--storage"]).run()?.fails_with(1, "store of the driver \"vfs\"")?;
    world.cmd("rm").arg("-r").arg(home.0.join("static")).run()?.ok()?;
    home.setup(world, &["--storage"]).run()?.ok()?;
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

/// A script that calls podman, its home being this one. In a PID namespace of its own:
/// Podman leaves a process that waits for the next call.
fn podman(world: &World<'_>, home: &Home, script: &str) -> Result<Output> {
    if lab::find("podman").is_none() {
        return Err(skip("podman is not installed"));
    }
    Cmd::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "setpriv"])
        .args(["--reuid", &world.user.uid.to_string(), "--regid", &world.user.gid.to_string()])
        .args(["--clear-groups", "sh", "-c", script])
        .env("HOME", &home.0)
        .env("XDG_RUNTIME_DIR", world.dir())
        .dir(world.dir())
        .run()?
        .ok()
}

fn podman_sees_it(world: &World<'_>) -> Result<()> {
    let home = Home::new(world)?;
    home.setup(world, &[]).run()?.ok()?;
    let script = "podman info --format '{{.Host.Slirp4NetNS.Executable}} {{.Store.GraphDriverName}} \
                  {{.Store.GraphOptions}}'";
    let output = podman(world, &home, script)?;
    for program in ["netstack", "overlayfs-fuse"] {
        let path = fs::canonicalize(world.lab.bin.join(program))?.display().to_string();
        ensure!(output.stdout.contains(&path), "{program}\n{}", output.describe());
    }
    output.stdout_has(" overlay ")?;
    Ok(())
}
