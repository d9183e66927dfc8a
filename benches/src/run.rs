//! Start-up: how long a container that does nothing takes, from the command to
//! its end.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::report::{Report, Row, machine};
use crate::stage::Stage;

/// Rounds before the counted ones: caches warm, stores made.
const WARM_UP: u32 = 3;

/// Runs every candidate `rounds` times, one after the other, the order rotated
/// by one each round.
pub(crate) fn measure(stage: &Stage, rounds: u32) -> Result<Report> {
    let (mut rows, missing) = candidates(stage)?;
    let count = rows.len();
    for round in 0..WARM_UP + rounds {
        for turn in 0..count {
            let row = &mut rows[(turn + round as usize) % count];
            if row.failed.is_some() {
                continue;
            }
            match once(stage, &row.argv) {
                Ok(ms) if round >= WARM_UP => row.wall_ms.push(ms),
                Ok(_) => {}
                Err(why) => row.failed = Some(format!("{why:#}")),
            }
        }
    }
    Ok(Report {
        benchmark: "run",
        command: format!("cargo xtask bench run --rounds {rounds}"),
        machine: machine(&["bwrap", "crun", "podman", "slirp4netns"]),
        rows,
        missing,
    })
}

/// Milliseconds from start to end of one command.
#[expect(clippy::disallowed_methods, reason = "the one place where this program reads the clock")]
fn once(stage: &Stage, argv: &[String]) -> Result<f64> {
    let mut command = stage.command(argv);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().with_context(|| format!("starting {}", argv[0]))?;
    let elapsed = start.elapsed();
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, reason.lines().last().unwrap_or_default());
    }
    Ok(elapsed.as_secs_f64() * 1000.0)
}

/// The candidates this machine has, and what it lacks.
fn candidates(stage: &Stage) -> Result<(Vec<Row>, Vec<String>)> {
    let coracle = stage.program("coracle");
    let rootfs = stage.path("rootfs").display().to_string();
    let bundle = crun_bundle(stage);
    let mut rows = Vec::new();
    let mut missing: Vec<String> = Vec::new();
    missing.extend(bundle.as_ref().err().map(|why| format!("crun run: {why:#}")));
    let mut add = |name: &str, argv: &[&str]| {
        rows.push(Row {
            name: name.to_owned(),
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            wall_ms: Vec::new(),
            failed: None,
        });
    };
    add("coracle, host root, network", &[&coracle, "run", "--rm", "--", "true"]);
    add(
        "coracle, host root, no network",
        &[&coracle, "run", "--rm", "--network", "none", "--", "true"],
    );
    add(
        "coracle, rootfs, no network",
        &[&coracle, "run", "--rm", "--network", "none", "--rootfs", &rootfs, "--", "true"],
    );
    let mut peer = |program: &str, name: &str, argv: &[&str]| {
        if installed(program) {
            add(name, argv);
        } else {
            missing.push(format!("{name}: apt-get install {program}"));
        }
    };
    peer(
        "bubblewrap",
        "bwrap --unshare-all",
        &[
            "bwrap",
            "--unshare-all",
            "--bind",
            &rootfs,
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "true",
        ],
    );
    if let Ok(bundle) = &bundle {
        peer(
            "crun",
            "crun run, no network",
            &["crun", "--cgroup-manager=disabled", "run", "--bundle", bundle, "bench"],
        );
    }
    for network in ["none", "slirp4netns"] {
        let option = format!("--network={network}");
        peer(
            "podman",
            &format!("podman run {option}"),
            &["podman", "run", "--rm", "--cgroups=disabled", &option, "--rootfs", &rootfs, "true"],
        );
    }
    Ok((rows, missing))
}

/// Whether a Debian package's main program is there.
fn installed(package: &str) -> bool {
    let program = if package == "bubblewrap" { "bwrap" } else { package };
    ["/usr/bin", "/usr/local/bin", "/usr/sbin"]
        .iter()
        .any(|dir| fs::exists(format!("{dir}/{program}")).unwrap_or(false))
}

/// An OCI bundle of the same root filesystem, as `crun spec` makes it.
fn crun_bundle(stage: &Stage) -> Result<String> {
    let bundle = stage.path("home/bundle");
    let argv = |words: &[&str]| words.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let made = stage.command(&argv(&["mkdir", "-p", &bundle.display().to_string()])).status()?;
    let spec = stage
        .command(&argv(&["crun", "spec", "--rootless"]))
        .current_dir(&bundle)
        .output()
        .context("crun spec")?;
    if !made.success() || !spec.status.success() {
        bail!("crun spec: {}", String::from_utf8_lossy(&spec.stderr));
    }
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = stage.path("rootfs").display().to_string().into();
    // The user's cgroups are not delegated here; crun is told so on its command line.
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
    }
    fs::write(&path, serde_json::to_string(&config)?)?;
    Ok(bundle.display().to_string())
}
