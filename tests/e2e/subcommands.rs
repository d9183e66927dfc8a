//! Every subcommand with nothing, with an option that does not exist, with names that
//! nobody has: the right exit code, and one line that names the thing.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tests::command::Cmd;
use tests::harness::{Test, World};

pub(crate) const TESTS: &[Test] = &[
    Test::new("subcommands/table-is-complete", complete),
    Test::new("subcommands/unknown-options", unknown_options).seconds(120),
    Test::new("subcommands/no-arguments", no_arguments),
    Test::new("subcommands/unknown-names", unknown_names).each_user().seconds(120),
    Test::new("subcommands/odd-names", odd_names),
    Test::new("subcommands/huge-words", huge_words).each_user(),
];

/// What comes of a subcommand without arguments.
enum Bare {
    /// It does something.
    Works,
    /// It asks for this.
    Wants(&'static str),
    /// It waits for a shell's end.
    Shell,
}
use Bare::{Shell, Wants, Works};

/// What comes of names that nobody has: further words, exit code, and what is named.
type Unknown = (&'static [&'static str], i32, &'static str);

struct Case {
    words: &'static [&'static str],
    bare: Bare,
    unknown: &'static [Unknown],
}

const fn case(words: &'static [&'static str], bare: Bare, unknown: &'static [Unknown]) -> Case {
    Case { words, bare, unknown }
}

const ONE: &[Unknown] = &[(&["nobody"], 1, "'nobody'")];
const ONE_125: &[Unknown] = &[(&["nobody"], 125, "'nobody'")];
const SEVERAL: &str = "<CONTAINER>";

const CASES: &[Case] = &[
    case(
        &["run"],
        Shell,
        &[
            (&["nobody"], 125, "'nobody'"),
            (&[""], 125, "'' is no image"),
            (&["--pull=never", "localhost/nobody"], 125, "nobody"),
            (&["--rootfs", "/nobody", "true"], 125, "/nobody"),
            (&["--network", "none", "--", "nobody"], 127, "nobody"),
        ],
    ),
    case(
        &["create"],
        Works,
        &[(&["nobody"], 125, "'nobody'"), (&["--rootfs", "/nobody", "true"], 125, "/nobody")],
    ),
    case(
        &["start"],
        Wants(SEVERAL),
        &[(&["nobody"], 1, "'nobody'"), (&["-a", "nobody"], 125, "'nobody'")],
    ),
    case(&["stop"], Wants(SEVERAL), ONE),
    case(&["restart"], Wants(SEVERAL), ONE),
    case(&["kill"], Wants(SEVERAL), ONE),
    case(&["pause"], Wants(SEVERAL), ONE),
    case(&["unpause"], Wants(SEVERAL), ONE),
    case(&["wait"], Wants(SEVERAL), ONE),
    case(
        &["rm"],
        Wants(SEVERAL),
        &[(&["nobody"], 1, "'nobody'"), (&["-f", "nobody"], 1, "'nobody'")],
    ),
    case(&["exec"], Wants(SEVERAL), &[(&["nobody", "true"], 125, "'nobody'")]),
    case(&["attach"], Wants(SEVERAL), ONE_125),
    case(&["logs"], Wants(SEVERAL), ONE),
    case(&["ps"], Works, &[]),
    case(&["inspect"], Wants(SEVERAL), ONE),
    case(&["top"], Wants(SEVERAL), ONE),
    case(&["stats"], Works, &[(&["--no-stream", "nobody"], 1, "'nobody'")]),
    case(&["diff"], Wants(SEVERAL), ONE),
    case(
        &["commit"],
        Wants(SEVERAL),
        &[(&["nobody"], 1, "'nobody'"), (&["nobody", "x"], 1, "'nobody'")],
    ),
    case(&["export"], Wants(SEVERAL), &[(&["-o", "out", "nobody"], 1, "'nobody'")]),
    case(
        &["cp"],
        Wants("SRC"),
        &[(&["nobody:/etc", "."], 1, "'nobody'"), (&[".", "nobody:/etc"], 1, "'nobody'")],
    ),
    case(&["gc"], Works, &[]),
    case(&["image"], Wants("which command"), &[]),
    case(
        &["image", "import"],
        Wants("<SOURCE>"),
        &[
            (&["/nobody"], 1, "/nobody"),
            (&["oci:/nobody"], 1, "/nobody"),
            (&["docker-archive:/nobody"], 1, "/nobody"),
            (&["docker-archive:"], 1, "names no file"),
            (&["oci::box"], 1, "names no file"),
        ],
    ),
    case(&["image", "pull"], Wants("NAME"), &[(&["127.0.0.1:1/nobody"], 1, "127.0.0.1:1")]),
    case(&["image", "ls"], Works, &[]),
    case(&["image", "inspect"], Wants("<IMAGE>"), ONE),
    case(&["image", "rm"], Wants("<IMAGE>"), ONE),
    case(&["image", "save"], Wants("<IMAGE>"), &[(&["-o", "out", "nobody"], 1, "'nobody'")]),
    case(&["image", "verify"], Works, ONE),
    case(&["image", "gc"], Works, &[]),
    case(&["images"], Works, &[]),
    case(&["doctor"], Works, &[]),
    case(&["policy"], Wants("which command"), &[]),
    case(&["policy", "explain"], Wants("<FILE>"), &[(&["nobody.toml"], 1, "nobody.toml")]),
    case(&["setup"], Wants("which command"), &[]),
    case(&["setup", "podman"], Works, &[]),
    case(&["completion"], Wants("<SHELL>"), &[(&["nobody"], 125, "'nobody'")]),
];

/// coracle with a home of the test's own.
fn coracle(world: &World<'_>, words: &[&str]) -> Cmd {
    let home = world.dir();
    world.coracle(words).env("HOME", home).env("XDG_CONFIG_HOME", home.join("config"))
}

/// The subcommands that `--help` lists below `words`.
fn listed(world: &World<'_>, words: &[&str]) -> Result<Vec<String>> {
    let help = coracle(world, words).arg("--help").run()?.ok()?.stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| line.starts_with("  "));
    let names = commands.filter(|line| !line.starts_with("   "));
    Ok(names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// What is not in the table would not be tested.
fn complete(world: &World<'_>) -> Result<()> {
    let known: BTreeSet<Vec<String>> = CASES
        .iter()
        .map(|case| case.words.iter().map(|word| (*word).to_owned()).collect())
        .collect();
    let mut found = BTreeSet::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(words) = open.pop() {
        let names: Vec<&str> = words.iter().map(String::as_str).collect();
        for name in listed(world, &names)? {
            let below = [&words[..], &[name]].concat();
            found.insert(below.clone());
            open.push(below);
        }
    }
    ensure!(found.len() > 30, "the help was not understood: {found:?}");
    let missing: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    ensure!(
        missing.is_empty() && gone.is_empty(),
        "not in the table: {missing:?}; no more: {gone:?}"
    );
    Ok(())
}

fn unknown_options(world: &World<'_>) -> Result<()> {
    for case in CASES {
        let at = || case.words.join(" ");
        for option in ["--no-such-option", "-Z"] {
            let output = coracle(world, case.words).arg(option).run()?;
            let output = output.fails_with(125, option).with_context(at)?;
            let help = format!("(see 'coracle {} --help')", case.words.join(" "));
            ensure!(output.stderr.contains(&help), "{}", output.describe());
        }
        // Its help is its own.
        coracle(world, case.words).arg("--help").run()?.ok()?.stdout_has("Usage:")?;
    }
    coracle(world, &["no-such-command"]).run()?.fails_with(125, "'no-such-command'")?;
    coracle(world, &["image", "no-such-command"]).run()?.fails_with(125, "'no-such-command'")?;
    coracle(world, &[]).run()?.fails_with(125, "which command")?;
    Ok(())
}

fn no_arguments(world: &World<'_>) -> Result<()> {
    for case in CASES {
        let at = || case.words.join(" ");
        let mut cmd = coracle(world, case.words);
        match case.bare {
            Wants(what) => {
                cmd.run()?.fails_with(125, what).with_context(at)?;
            }
            Shell => {
                cmd.arg("--rm").stdin("exit 7\n").run()?.ok().with_context(at)?;
            }
            Works => {
                if case.words == ["stats"] {
                    // It would go on for ever.
                    cmd = cmd.arg("--no-stream");
                }
                let output = cmd.run()?;
                // A doctor may have found something.
                let code = if case.words == ["doctor"] { output.code.min(1) } else { 0 };
                let output = output.code_is(code).with_context(at)?;
                if case.words == ["create"] {
                    coracle(world, &["rm", output.stdout.trim()]).run()?.ok()?;
                }
            }
        }
    }
    Ok(())
}

fn unknown_names(world: &World<'_>) -> Result<()> {
    let mut tried = 0;
    for case in CASES {
        for (words, code, named) in case.unknown {
            let at = || format!("{} {words:?}", case.words.join(" "));
            let output = coracle(world, case.words).args(*words).dir(world.dir()).run()?;
            output.fails_with(*code, named).with_context(at)?;
            tried += 1;
        }
    }
    ensure!(tried > 30, "only {tried} were tried");
    ensure!(!world.dir().join("out").exists(), "an archive of nothing is left");
    let kept = coracle(world, &["ps", "-a", "-q"]).run()?.ok()?;
    kept.stdout_is("").context("a container came of it")?;
    Ok(())
}

/// Names that would be paths, options or nothing: they are nobody's, and shown harmlessly.
fn odd_names(world: &World<'_>) -> Result<()> {
    for name in ["", ".", "..", "../containers", "a/b", "a b", "\u{1b}[2Jx", "ä", &"x".repeat(300)]
    {
        for command in
            ["start", "stop", "kill", "rm", "wait", "logs", "inspect", "diff", "top", "export"]
        {
            let output = coracle(world, &[command, "--", name]).run()?;
            ensure!(!output.stderr.contains('\u{1b}'), "{}", output.describe());
            output
                .fails_with(1, "no container is named")
                .with_context(|| format!("{command} {name:?}"))?;
        }
        let image = coracle(world, &["image", "rm", "--", name]).run()?;
        ensure!(!image.stderr.contains('\u{1b}'), "{}", image.describe());
        image.fails_with(1, "no image is named").with_context(|| format!("image rm {name:?}"))?;
    }
    Ok(())
}

/// Words as long as the kernel takes them are told of like others.
fn huge_words(world: &World<'_>) -> Result<()> {
    let huge = "\u{1}x".repeat(60_000);
    let given = ["run", "--network", "none"];
    let words = [&given[..], &["--name", "h", "-d", "--", "sleep", "1000"]].concat();
    coracle(world, &words).run()?.ok()?;
    let checked = (|| {
        for (words, code, named) in [
            (&[&given[..], &["--rm", "--", &huge]].concat()[..], 126, "File name too long"),
            (
                &[&given[..], &["--rm", "-w", &format!("/{huge}"), "--", "true"]].concat(),
                126,
                "File name too long",
            ),
            (&[&given[..], &["--rm", "-u", &huge, "--", "true"]].concat(), 125, "user"),
            (
                &[&given[..], &["--rm", "--rootfs", &huge, "true"]].concat(),
                125,
                "File name too long",
            ),
            (&["exec", "h", &huge], 126, "File name too long"),
            (&["exec", "-w", &format!("/{huge}"), "h", "true"], 126, "File name too long"),
            (&["exec", "-u", &huge, "h", "true"], 125, "user"),
        ] {
            let output = coracle(world, words).run()?;
            ensure!(!output.stderr.contains('\u{1}'), "raw: {:?}", &output.stderr[..80]);
            output.fails_with(code, named)?;
        }
        coracle(world, &["exec", "h", "true", &huge]).run()?.ok()?;
        Ok(())
    })();
    coracle(world, &["rm", "-f", "h"]).run()?.ok()?;
    checked
}
