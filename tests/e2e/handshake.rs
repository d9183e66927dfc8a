//! Each process killed at each step of the handshake and of the teardown, by
//! name (see [`tests::trace`]): nothing may be left, the exit code must tell,
//! and so must the message.

use anyhow::{Context, Result, ensure};
use tests::harness::{Test, World};

use tests::lab::Ids;
use tests::leak::Snapshot;
use tests::trace::{self, Deed, Role, Step, Traced, When};

use crate::fixtures::busybox_rootfs;

use Deed::{Ends, Executes, Renames, Says, Signals, Unlinks};
use Role::{Init, Monitor, Netstack, Overlay, Owners, Storage, Workload};
use When::{After, Before};

pub(crate) const TESTS: &[Test] = &[
    Test::new("handshake/setting-up", |world| walk(world, SETTING_UP, Run::Waiting))
        .each_user()
        .lab()
        .seconds(240),
    Test::new("handshake/coming-to-run", |world| walk(world, COMING_TO_RUN, Run::Waiting))
        .each_user()
        .lab()
        .seconds(240),
    Test::new("handshake/coming-to-an-end", |world| walk(world, COMING_TO_AN_END, Run::Ending))
        .each_user()
        .lab()
        .seconds(240),
    Test::new("handshake/coming-to-a-kept-end", |world| {
        walk(world, COMING_TO_A_KEPT_END, Run::Kept)
    })
    .each_user()
    .lab()
    .seconds(240),
    Test::new("handshake/detached", |world| walk(world, DETACHED, Run::Detached))
        .each_user()
        .lab()
        .seconds(120),
    Test::new("handshake/by-kernel", |world| walk(world, BY_KERNEL, Run::ByKernel))
        .subordinate_ids()
        .lab()
        .seconds(120),
    Test::new("handshake/terminal", |world| walk(world, TERMINAL, Run::Waiting))
        .each_user()
        .lab()
        .seconds(120),
];

const SIDES: &[When] = &[Before, After];

/// A step, on which sides of it, and who is there to be killed for certain.
struct Row {
    role: Role,
    deed: Deed,
    sides: &'static [When],
    victims: &'static [Role],
}

const fn row(role: Role, deed: Deed, sides: &'static [When], victims: &'static [Role]) -> Row {
    Row { role, deed, sides, victims }
}

const SETTING_UP: &[Row] = &[
    row(Storage, Executes, &[After], &[Monitor, Storage]),
    row(Monitor, Renames("state.json"), SIDES, &[Monitor, Storage]),
    row(Monitor, Says("Plan"), SIDES, &[Monitor, Storage]),
    row(Storage, Says("Owners"), SIDES, &[Monitor, Storage, Owners]),
    row(Storage, Says("Init"), SIDES, &[Monitor, Storage, Owners, Init]),
    row(Storage, Says("Overlay"), &[Before], &[Monitor, Storage, Owners, Init]),
    row(Storage, Says("Overlay"), &[After], &[Monitor, Owners, Init]),
    row(Init, Says("Tap"), SIDES, &[Monitor, Init]),
];

const COMING_TO_RUN: &[Row] = &[
    row(Overlay, Executes, &[After], &[Monitor, Overlay, Init]),
    row(Overlay, Signals, SIDES, &[Monitor, Overlay, Init]),
    row(Netstack, Executes, &[After], &[Monitor, Init, Netstack]),
    row(Netstack, Signals, SIDES, &[Monitor, Init, Netstack]),
    row(Init, Says("Ready"), SIDES, &[Monitor, Overlay, Owners, Init]),
    row(Monitor, Says("Go"), SIDES, &[Monitor, Overlay, Owners, Init, Netstack]),
    row(Workload, Says("device"), SIDES, &[Monitor, Overlay, Owners, Init, Netstack, Workload]),
    row(Workload, Executes, &[After], &[Monitor, Overlay, Owners, Init, Netstack, Workload]),
    row(Init, Says("Started"), SIDES, &[Monitor, Overlay, Owners, Init, Netstack]),
];

/// The program of these ends by itself, with 7.
const COMING_TO_AN_END: &[Row] = &[
    row(Workload, Ends, &[After], &[Monitor, Overlay, Init, Netstack]),
    row(Init, Ends, &[After], &[Monitor, Overlay, Netstack]),
    row(Netstack, Ends, &[After], &[Monitor]),
    row(Monitor, Renames("/.gone-"), SIDES, &[Monitor]),
    row(Monitor, Unlinks("lock"), SIDES, &[Monitor]),
];

/// The same of a container that stays: its changes must come to the disk, so that the
/// overlay is ended in order. (Otherwise it is killed, and whether a process that is killed
/// stops at its end once more is not certain.)
const COMING_TO_A_KEPT_END: &[Row] =
    &[row(Init, Ends, &[After], &[Monitor, Overlay]), row(Overlay, Ends, &[After], &[Monitor])];

/// Without overlayfs-fuse: storage mounts the root itself, and ends.
const BY_KERNEL: &[Row] = &[
    row(Storage, Executes, &[After], &[Monitor, Storage]),
    row(Storage, Says("Init"), SIDES, &[Monitor, Storage, Init]),
    row(Storage, Says("Done"), SIDES, &[Monitor, Storage, Init]),
    // Its part is done with this: nobody needs it any more.
    row(Storage, Signals, &[After], &[Monitor, Storage, Init]),
    row(Init, Says("Ready"), SIDES, &[Monitor, Init]),
    row(Init, Says("Started"), SIDES, &[Monitor, Init]),
];

const TERMINAL: &[Row] = &[row(Init, Says("Console"), SIDES, &[Monitor, Overlay, Init])];

/// The monitor in the background; the command waits for its report. After the
/// report the command has nothing to tell any more.
const DETACHED: &[Row] = &[
    row(Monitor, Renames("state.json"), SIDES, &[Monitor]),
    row(Storage, Executes, &[After], &[Monitor, Storage]),
    row(Init, Says("Tap"), SIDES, &[Monitor, Init]),
    row(Init, Says("Ready"), SIDES, &[Monitor, Overlay, Init]),
    row(Monitor, Says("Go"), &[Before], &[Monitor, Overlay, Init, Netstack]),
];

/// What a killed process is called in a message.
fn word(victim: Role) -> &'static str {
    match victim {
        Storage => "storage",
        Overlay => "overlayfs-fuse",
        Owners => "keeper of owners",
        Init => "init",
        Netstack => "netstack",
        Monitor => "monitor",
        Role::Command | Workload | Role::Other => "",
    }
}

/// How the container is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// A program that waits.
    Waiting,
    /// One that ends by itself, with 7.
    Ending,
    /// The same, and the container stays.
    Kept,
    /// One that waits, in the background.
    Detached,
    /// One that waits, on a root that the kernel joins.
    ByKernel,
}

fn walk(world: &World<'_>, rows: &[Row], run: Run) -> Result<()> {
    let single = world.ids == Ids::Single;
    if run == Run::ByKernel {
        busybox_rootfs(world)?;
    }
    for row in rows {
        // Owners are kept by a process of their own where there is one id only.
        if !single && [Says("Owners"), Says("device")].contains(&row.deed) {
            continue;
        }
        for &when in row.sides {
            for &victim in row.victims.iter().filter(|victim| single || **victim != Owners) {
                let step = Step { role: row.role, deed: row.deed, when };
                let name = format!("{victim:?} killed {when:?} {:?} {:?}", row.role, row.deed);
                one(world, step, victim, run).context(name)?;
            }
        }
    }
    Ok(())
}

fn one(world: &World<'_>, step: Step, victim: Role, run: Run) -> Result<()> {
    let before = Snapshot::take(world.lab)?;
    let program = ["--", "sh", "-c", "exit 7"];
    if run == Run::Kept {
        // One that `run` makes stays once its monitor has heard that it runs, which may be
        // after its end.
        let words = [&["create", "--name", "kept"], &program[..]].concat();
        world.coracle(&words).run()?.ok()?;
    }
    let mut words = vec!["run", "--rm", if run == Run::Detached { "-d" } else { "-i" }];
    if step.deed == Says("Console") {
        words.push("-t");
    }
    let root = world.dir().join("rootfs").display().to_string();
    if run == Run::ByKernel {
        words.extend(["--overlay", "kernel", "--rootfs", &root]);
    }
    // So that what goes on comes to an end.
    let ends = (step.deed, victim) == (Signals, Storage);
    match run {
        Run::Kept => words = vec!["start", "-a", "-i", "kept"],
        Run::ByKernel if ends => words.extend(program),
        Run::Ending => words.extend(program),
        Run::Waiting | Run::ByKernel => words.extend(["--", "cat"]),
        Run::Detached => words.extend(["--", "sleep", "1000"]),
    }
    let traced = trace::run(world, &words, step, victim)?;
    let told = judge(&traced, step, victim, run);
    if victim == Monitor {
        // Its directory is what the next start sweeps.
        before.wait_for_processes(world.lab)?;
        world.coracle(&["run", "--rm", "--network", "none", "--", "true"]).run()?.ok()?;
    }
    if run == Run::Kept {
        world.coracle(&["rm", "kept"]).run()?.ok()?;
    }
    let leaks = before.leaks(world.lab)?;
    ensure!(leaks.is_empty(), "left behind: {}\n{traced:?}", leaks.join("\n    "));
    told.with_context(|| format!("{traced:?}"))
}

fn judge(traced: &Traced, step: Step, victim: Role, run: Run) -> Result<()> {
    ensure!(traced.reached, "it never came to this step");
    ensure!(traced.killed, "there was nobody to kill");
    if victim == Monitor && run != Run::Detached {
        ensure!(traced.code == 137, "the exit code is not SIGKILL's");
        return Ok(());
    }
    let named = traced.stderr.contains(word(victim));
    match traced.code {
        125 if run == Run::ByKernel && victim == Storage && step.deed == Signals => {
            anyhow::bail!("its death took the container down")
        }
        125 => ensure!(named, "it does not say that {} died", word(victim)),
        // As a program of the container's that was killed.
        137 => ensure!(matches!(victim, Init | Workload), "wrong exit code"),
        // The program had come to its end, and what died was needed no more: the network,
        // or an overlay whose changes nobody is to see, once all is over in the container.
        // Nor is storage, once it has told init.
        7 => ensure!(
            run == Run::Ending
                && (victim == Netstack
                    || victim == Overlay && (step.role, step.deed) == (Init, Ends))
                || run == Run::ByKernel && victim == Storage && step.deed == Signals,
            "wrong exit code"
        ),
        _ => anyhow::bail!("wrong exit code"),
    }
    Ok(())
}
