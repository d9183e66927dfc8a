//! Images: made by skopeo, umoci and buildah, imported, pulled, run.

mod copy;
mod export;
mod hostile;
mod import;
mod kernel;
mod registry;
mod token;
mod trees;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output};
use tests::harness::{Test, World, skip};
use tests::lab;

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("images/root-file-systems", import::root_file_systems).each_user(),
    Test::new("images/layouts-and-archives", import::layouts_and_archives).each_user(),
    Test::new("images/configuration", import::configuration).each_user(),
    Test::new("images/whiteouts", import::whiteouts).each_user(),
    Test::new("images/owners", import::owners).subordinate_ids(),
    Test::new("images/owners-kept", import::owners_kept).single_id(),
    Test::new("images/buildah", import::buildah).subordinate_ids().seconds(120),
    Test::new("images/hundreds-of-layers", import::hundreds_of_layers).each_user(),
    Test::new("images/machines", import::machines),
    Test::new("images/wrong-digests", import::wrong_digests).each_user(),
    Test::new("images/killed", import::killed).each_user(),
    Test::new("images/two-at-once", import::two_at_once).each_user(),
    Test::new("images/rot-is-found", import::rot_is_found).each_user(),
    Test::new("images/in-use", import::in_use).each_user(),
    Test::new("images/bad-input", import::bad_input).each_user(),
    Test::new("images/hostile-text", hostile::shown).each_user().seconds(120),
    Test::new("images/hostile-configuration", hostile::refused).each_user().seconds(120),
    Test::new("images/commit", export::commit).each_user(),
    Test::new("images/commit-running", export::commit_running).each_user(),
    Test::new("images/commit-directory", export::commit_directory).each_user(),
    Test::new("images/export", export::export).each_user(),
    Test::new("images/same-tree", trees::same_tree).each_user().seconds(120),
    Test::new("images/save", export::save).each_user(),
    Test::new("images/making-bad-input", export::bad_input).each_user(),
    Test::new("images/cp", copy::both_ways).each_user(),
    Test::new("images/cp-ended", copy::ended).each_user(),
    Test::new("images/cp-links", copy::links).each_user().seconds(120),
    Test::new("images/cp-owners", copy::owners).each_user(),
    Test::new("images/cp-bad-input", copy::bad_input).each_user(),
    Test::new("images/kernel-overlay", kernel::joins).subordinate_ids().seconds(120),
    Test::new("images/kernel-overlay-kept", kernel::keeps).subordinate_ids().seconds(120),
    Test::new("images/kernel-overlay-killed", kernel::killed).subordinate_ids(),
    Test::new("images/kernel-overlay-refused", kernel::refused).each_user(),
    Test::new("images/token", token::token).each_user().seconds(120),
    Test::new("images/credential-helpers", token::helpers).each_user().seconds(120),
    Test::new("images/unreadable-credentials", token::unreadable_credentials).each_user(),
    Test::new("images/long-home", import::long_home).each_user().seconds(120),
    Test::new("images/registry", registry::registry).each_user().seconds(120),
];

/// coracle with a data directory that goes with the test.
fn coracle(world: &World<'_>, args: &[&str]) -> Cmd {
    world.coracle(args).env("XDG_DATA_HOME", data(world)).limit(Duration::from_secs(60))
}

fn data(world: &World<'_>) -> PathBuf {
    world.dir().join("data")
}

fn images(world: &World<'_>) -> PathBuf {
    data(world).join("coracle/images")
}

/// Runs a command in a container of an image, without a network.
fn run(world: &World<'_>, words: &[&str]) -> Result<Output> {
    coracle(world, &[&["run", "--rm", "--network", "none"], words].concat()).run()
}

/// Runs a shell script in the test's directory, as the user; what its programs keep
/// at home goes with the test.
fn shell(world: &World<'_>, script: &str) -> Result<Output> {
    let own = "mkdir -p home run; export HOME=$PWD/home XDG_RUNTIME_DIR=$PWD/run";
    let script = format!("set -e; {own}; {script}");
    world
        .cmd("sh")
        .args(["-c", &script])
        .dir(world.dir())
        .limit(Duration::from_secs(100))
        .run()?
        .ok()
}

fn needs(programs: &[&str]) -> Result<()> {
    for program in programs {
        if lab::find(program).is_none() {
            return Err(skip(format!("{program} is not installed")));
        }
    }
    Ok(())
}

/// How many entries a directory of the images has.
fn count(world: &World<'_>, dir: &str) -> Result<usize> {
    let path = images(world).join(dir);
    let items = std::fs::read_dir(&path).with_context(|| path.display().to_string())?;
    let names = items.map(|item| Ok(item?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|name| !name.ends_with(".lock")).count())
}

/// An OCI layout `layout` with an image `box` of one layer, the busybox root.
fn layout(world: &World<'_>) -> Result<PathBuf> {
    needs(&["umoci", "skopeo"])?;
    let root = busybox_rootfs(world)?;
    ensure!(root == world.dir().join("rootfs"), "the root is elsewhere");
    shell(
        world,
        "umoci init --layout layout; umoci new --image layout:box; \
         umoci unpack --rootless --image layout:box bundle; cp -a rootfs/. bundle/rootfs; \
         umoci repack --image layout:box bundle; rm -r bundle",
    )?;
    Ok(world.dir().join("layout"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the lab's paths are ASCII")
}
