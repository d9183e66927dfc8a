//! Images whose makers mean harm to whoever lists them: terminal escapes, line ends and marks
//! that turn the direction of text, wherever an image has text.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::harness::World;
use tests::pty::Pty;

use super::{coracle, data, text};
use crate::fixtures::{busybox_rootfs, sha256};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Sets the window's title, clears the screen, begins lines, is a C1 control, turns text.
const EVIL: &str = "x\u{1b}]0;owned\u{7}\u{1b}[2J\ny\r\u{9b}31m\u{202e}z\u{2066}\u{7f}\"\\end";

fn put_blob(layout: &Path, bytes: &[u8]) -> Result<Value> {
    let blobs = layout.join("blobs/sha256");
    let path = blobs.join("new");
    fs::write(&path, bytes)?;
    let digest = sha256(&path)?;
    fs::rename(&path, blobs.join(&digest))?;
    Ok(json!({ "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}

/// An OCI layout with an image of one layer, whose configuration and name these are.
fn layout(world: &World<'_>, dir: &str, running: Value, name: &str) -> Result<PathBuf> {
    let layout = world.dir().join(dir);
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let described = |blob: Value, kind: &str| {
        let mut blob = blob;
        blob["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
        blob["annotations"] = json!({ EVIL: EVIL });
        blob
    };
    let layer = put_blob(&layout, &fs::read(world.dir().join("layer.tar"))?)?;
    let config = json!({
        "created": EVIL,
        "author": EVIL,
        "architecture": "amd64",
        "os": "linux",
        "config": running,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        "history": [{ "created": EVIL, "created_by": EVIL, "author": EVIL, "comment": EVIL }],
    });
    let config = put_blob(&layout, &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(config, "config.v1+json"),
        "layers": [described(layer, "layer.v1.tar")],
        "annotations": { EVIL: EVIL },
    });
    let manifest = put_blob(&layout, &serde_json::to_vec(&manifest)?)?;
    let mut manifest = described(manifest, "manifest.v1+json");
    manifest["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(layout)
}

/// Nothing of what was shown does anything to a terminal; a terminal's own line ends are.
fn harmless(what: &[&str], shown: &str) -> Result<()> {
    let raw = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let shown = shown.replace("\r\n", "\n");
    ensure!(!shown.contains(raw), "{what:?} shows {shown:?}");
    Ok(())
}

/// Runs a command at a terminal, and into pipes; what it says there, and its exit code.
fn looked_at(world: &World<'_>, words: &[&str]) -> Result<(String, i32)> {
    let (pty, slave) = Pty::open(50, 200)?;
    let running = coracle(world, words).terminal(slave).spawn()?;
    let shown = pty.all(LIMIT)?;
    let at_terminal = running.wait(LIMIT)?;
    harmless(words, &shown)?;
    let output = coracle(world, words).run()?;
    ensure!(at_terminal.code == output.code, "{} and {}", at_terminal.code, output.describe());
    harmless(words, &output.stderr)?;
    Ok((output.stdout, output.code))
}

fn listed(world: &World<'_>, words: &[&str]) -> Result<String> {
    let (shown, code) = looked_at(world, words)?;
    ensure!(code == 0, "{words:?} ends with {code}: {shown}");
    harmless(words, &shown)?;
    Ok(shown)
}

fn values(world: &World<'_>, words: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&listed(world, words)?)?)
}

fn layer(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    fs::write(root.join("etc").join(EVIL), "x")?;
    let tar = world.dir().join("layer.tar");
    world.cmd("tar").args(["-C", text(&root)?, "-cf", text(&tar)?, "."]).run()?.ok()?;
    Ok(())
}

pub(super) fn shown(world: &World<'_>) -> Result<()> {
    layer(world)?;
    let script = "echo ran; : >/made\"$1\"; rm /etc/x*; exec sleep 1000";
    let running = json!({
        "Entrypoint": ["sh", "-c", script, EVIL],
        "Cmd": [EVIL, EVIL],
        "Env": [format!("EVIL={EVIL}"), format!("E{EVIL}={EVIL}"), EVIL, "", "=", "\u{1b}[2J="],
        "Labels": { EVIL: EVIL, "plain": EVIL },
    });
    let source = layout(world, "layout", running, "evil")?;
    coracle(world, &["image", "import", text(&source)?, "evil"]).run()?.ok()?;
    listed(world, &["images"])?;
    listed(world, &["image", "verify"])?;
    values(world, &["image", "ls", "--format", "json"])?;
    let image = values(world, &["image", "inspect", "evil"])?;
    let config = &image[0]["config"];
    ensure!(config.to_string().matches("owned").count() >= 4, "it has not all: {image:#}");

    coracle(world, &["run", "-d", "--name", "c", "--network", "none", "evil"]).run()?.ok()?;
    let checked = (|| {
        let follow = coracle(world, &["logs", "-f", "c"]).spawn()?;
        follow.stdout_until("ran\n", LIMIT)?;
        let container = values(world, &["inspect", "c"])?;
        let labels = &container[0]["Config"]["Labels"];
        ensure!(labels[EVIL] == EVIL && labels["plain"] == EVIL, "{labels:#}");
        let env = container[0]["Config"]["Env"].as_array().context("no environment")?;
        ensure!(env.iter().any(|text| *text == format!("EVIL={EVIL}")), "{env:#?}");
        ensure!(container[0]["Args"].as_array().is_some_and(|all| all.iter().any(|a| a == EVIL)));
        let rows = values(world, &["ps", "-a", "--format", "json"])?;
        ensure!(rows[0]["labels"][EVIL] == EVIL, "{rows:#}");
        listed(world, &["ps", "-a"])?;
        listed(world, &["ps", "-a", "--no-trunc"])?;
        listed(world, &["run", "--dry-run", "evil"])?;
        listed(world, &["stats", "--no-stream"])?;
        // The program inside chooses what it is called.
        let disguised = ["exec", "c", "sh", "-c", "exec -a \"$0\" sleep 1000", EVIL];
        let disguised = coracle(world, &disguised).spawn()?;
        let tasks = values(world, &["top", "--format", "json", "c"])?;
        ensure!(tasks.as_array().is_some_and(|tasks| !tasks.is_empty()), "{tasks:#}");
        listed(world, &["top", "c"])?;
        drop(disguised);
        // Into a pipe names of files go as they are.
        let (found, _) = looked_at(world, &["diff", "c"])?;
        ensure!(found.contains(&format!("A /made{EVIL}\n")), "{found:?}");
        ensure!(found.contains(&format!("D /etc/{EVIL}\n")), "{found:?}");
        // It is there, as it was given.
        let seen = coracle(world, &["exec", "c", "sh", "-c", "printf %s \"$EVIL\""]).run()?.ok()?;
        ensure!(seen.stdout == EVIL, "{}", seen.describe());
        coracle(world, &["commit", "-q", "-a", EVIL, "-m", EVIL, "c", "again"]).run()?.ok()?;
        let again = values(world, &["image", "inspect", "again"])?;
        ensure!(again.to_string().matches("owned").count() > 6, "{again:#}");
        for words in [
            &["run", "--rm", "--network", "none", "--entrypoint", EVIL, "evil"][..],
            &["exec", "c", EVIL],
            &["exec", "-w", EVIL, "c", "true"],
            &["run", "--rm", "--network", "none", "-u", EVIL, "evil"],
            &["cp", EVIL, "c:/"],
            &["cp", &format!("c:/{EVIL}"), "."],
            &["image", "import", EVIL],
            &["image", "rm", EVIL],
            &["image", "pull", EVIL],
            &["rm", EVIL],
            &["ps", "--filter", EVIL],
            &["commit", "c", EVIL],
            &["run", "--name", EVIL, "evil"],
            &["policy", "explain", EVIL],
            &[EVIL],
        ] {
            let (shown, code) = looked_at(world, words)?;
            ensure!(code != 0, "{words:?} succeeds");
            harmless(words, &shown)?;
        }
        Ok(())
    })();
    coracle(world, &["rm", "-f", "c"]).run()?.ok()?;
    checked
}

/// What makes no sense is refused, and told harmlessly.
pub(super) fn refused(world: &World<'_>) -> Result<()> {
    layer(world)?;
    let given = ["run", "--rm"];
    let alone = &["--network", "none"][..];
    for (number, (running, more, word)) in [
        (json!({ "WorkingDir": EVIL, "Cmd": ["true"] }), alone, "working directory"),
        (json!({ "User": EVIL, "Cmd": ["true"] }), alone, "user"),
        (json!({ "StopSignal": EVIL, "Cmd": ["true"] }), alone, "signal"),
        (json!({ "Volumes": { EVIL: {} }, "Cmd": ["true"] }), alone, "volume"),
        (json!({ "ExposedPorts": { EVIL: {} }, "Cmd": ["true"] }), &["-P"], "expose"),
        (json!({ "Cmd": [EVIL] }), alone, "x\\u{1b}"),
        (json!({ "Cmd": ["a\0b"] }), alone, "a"),
        (json!({ "Env": ["A=b\0c"], "Cmd": ["true"] }), alone, "A"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{number}");
        let source = layout(world, &name, running, &name)?;
        coracle(world, &["image", "import", text(&source)?, &name]).run()?.ok()?;
        let words = [&given[..], more, &[&name]].concat();
        let output = coracle(world, &words).run()?;
        harmless(&words, &output.stderr)?;
        let code = if number == 5 { 127 } else { 125 };
        output.fails_with(code, word).with_context(|| format!("{number}"))?;
        looked_at(world, &words)?;
        listed(world, &["image", "inspect", &name])?;
    }
    // A name that nobody may give: by another one, or none, the image is taken all the same.
    let source = layout(world, "named", json!({ "Cmd": ["true"] }), EVIL)?;
    looked_at(world, &["image", "import", text(&source)?])?;
    coracle(world, &["image", "import", text(&source)?, "fine"]).run()?.ok()?;
    listed(world, &["images"])?;
    values(world, &["image", "ls", "--format", "json"])?;
    run_fine(world)?;
    let left = fs::read_dir(data(world).join("coracle/containers"))?.count();
    ensure!(left == 0, "{left} containers are left");
    Ok(())
}

fn run_fine(world: &World<'_>) -> Result<()> {
    super::run(world, &["fine"])?.ok()?;
    Ok(())
}
