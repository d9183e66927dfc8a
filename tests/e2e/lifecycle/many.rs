//! Many containers at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::clock::Deadline;
use tests::harness::{Test, World, amount};

use super::LIMIT;

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle/many-at-once", many).each_user().seconds(600),
    Test::new("lifecycle/starts-and-stops", starts_and_stops).each_user().seconds(1200),
];

/// `CORACLE_MANY=200` for as many as are promised.
fn many(world: &World<'_>) -> Result<()> {
    let count = amount("CORACLE_MANY", 30)?;
    let names: Vec<String> = (0..count).map(|number| format!("m{number}")).collect();
    let mut starting = Vec::new();
    for name in &names {
        let words = ["run", "-d", "--name", name, "--network", "none", "--", "sleep", "1000"];
        starting.push(world.coracle(&words).spawn()?);
    }
    for running in starting {
        running.wait(Duration::from_secs(240))?.ok()?;
    }
    let ps = world.coracle(&["ps", "-q"]).limit(LIMIT).run()?.ok()?;
    ensure!(ps.stdout.lines().count() == names.len(), "{}", ps.describe());
    let mut words = vec!["rm", "-f"];
    words.extend(names.iter().map(String::as_str));
    world.coracle(&words).limit(Duration::from_secs(240)).run()?.ok()?;
    world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout_is("")?;
    Ok(())
}

/// Twenty at a time, over and over: `CORACLE_STRESS_SECONDS=600` for a long one.
fn starts_and_stops(world: &World<'_>) -> Result<()> {
    let seconds = amount("CORACLE_STRESS_SECONDS", 4)?;
    let deadline = Deadline::after(Duration::from_secs(seconds));
    let rounds: Vec<Result<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|thread| {
                scope.spawn(move || {
                    let name = format!("s{thread}");
                    let mut rounds = 0;
                    while !deadline.passed() {
                        let words = ["run", "-d", "--name", &name, "--network", "none"];
                        let words = [&words[..], &["--", "sleep", "1000"]].concat();
                        let limit = Duration::from_secs(120);
                        world.coracle(&words).limit(limit).run()?.ok()?;
                        world.coracle(&["stop", "-t", "0", &name]).limit(limit).run()?.ok()?;
                        world.coracle(&["rm", &name]).limit(limit).run()?.ok()?;
                        rounds += 1;
                    }
                    Ok(rounds)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .collect()
    });
    let rounds: u32 = rounds.into_iter().sum::<Result<u32>>()?;
    ensure!(rounds >= 20, "only {rounds} containers came and went");
    tests::say!("    {rounds} containers came and went")?;
    world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout_is("")?;
    Ok(())
}
