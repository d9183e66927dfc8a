//! Options that people know from Podman, each to its end.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::command::{Cmd, Output};
use tests::harness::{Test, World};
use tests::lab::Outside;

use crate::fixtures::busybox_rootfs;

pub(crate) const TESTS: &[Test] = &[
    Test::new("options/environment-files", environment_files).each_user(),
    Test::new("options/labels-and-filters", labels_and_filters).each_user(),
    Test::new("options/label-files", label_files).each_user(),
    Test::new("options/shared-namespaces", shared).each_user(),
    Test::new("options/labels-of-images", labels_of_images),
    Test::new("options/cidfile-and-pidfile", files).each_user(),
    Test::new("options/mounts", mounts).each_user(),
    Test::new("options/hosts-and-name-servers", names).each_user().lab(),
    Test::new("options/stop", stop).each_user(),
    Test::new("options/all-of-them", all).each_user(),
    Test::new("options/replace", replace).each_user(),
    Test::new("options/names-are-completed", completion),
    Test::new("options/confinement-is-shown", confinement).each_user(),
];

const LIMIT: Duration = Duration::from_secs(20);
const NONE: [&str; 3] = ["--network", "none", "--"];

fn run(world: &World<'_>, options: &[&str], command: &[&str]) -> Result<Output> {
    world.coracle(&[&["run", "--rm"], options, &NONE, command].concat()).run()
}

/// Starts one in the background that sleeps.
fn start(world: &World<'_>, name: &str, options: &[&str]) -> Result<()> {
    let words = [&["run", "-d", "--name", name], options, &NONE, &["sleep", "1000"]].concat();
    world.coracle(&words).run()?.ok()?;
    Ok(())
}

fn remove(world: &World<'_>, names: &[&str]) -> Result<()> {
    world.coracle(&[&["rm", "-f"], names].concat()).limit(LIMIT).run()?.ok()?;
    Ok(())
}

fn about(world: &World<'_>, name: &str) -> Result<Value> {
    let output = world.coracle(&["inspect", name]).run()?.ok()?;
    let all: Value = serde_json::from_str(&output.stdout)?;
    Ok(all[0].clone())
}

fn environment_files(world: &World<'_>) -> Result<()> {
    world.write("one", "# said\n\nA=one\nB=x y # z\nFROM_HOST\nNOT_THERE\n")?;
    world.write("two", "A=two\n")?;
    let script = "echo \"$A|$B|$FROM_HOST|${NOT_THERE-unset}|$C\"";
    let words = ["run", "--rm", "--env-file", "one", "--env-file=two", "-e", "C=given"];
    let words = [&words[..], &NONE, &["sh", "-c", script]].concat();
    world
        .coracle(&words)
        .env("FROM_HOST", "of the host")
        .run()?
        .ok()?
        .stdout_is("two|x y # z|of the host|unset|given")?;
    start(world, "e", &["--env-file", "one"])?;
    let exec = ["exec", "--env-file", "two", "e", "sh", "-c", "echo $A$B"];
    let joined = world.coracle(&exec).run();
    remove(world, &["e"])?;
    joined?.ok()?.stdout_is("twox y # z")?;
    world.write("bad", "A=1\n=x\n")?;
    for (file, word) in [("nonesuch", "nonesuch"), (".", "no regular file"), ("bad", "line 2")] {
        run(world, &["--env-file", file], &["true"])?.fails_with(125, word)?;
    }
    Ok(())
}

fn labels_and_filters(world: &World<'_>) -> Result<()> {
    start(world, "web", &["-l", "tier=front", "--label", "mine"])?;
    start(world, "db", &["-l", "tier=back"])?;
    run(world, &[], &["true"])?.ok()?;
    let words = ["run", "--name", "done", "-l", "tier=front"];
    world.coracle(&[&words[..], &NONE, &["sh", "-c", "exit 3"]].concat()).run()?.code_is(3)?;
    let listed = |filters: &[&str]| -> Result<String> {
        let options = filters.iter().flat_map(|filter| ["--filter", filter]);
        let words: Vec<&str> = ["ps", "-q"].into_iter().chain(options).collect();
        let output = world.coracle(&words).run()?.ok()?;
        Ok(output.stdout.lines().collect::<Vec<_>>().join(" "))
    };
    let checked = (|| {
        for (filters, wanted) in [
            (&[][..], "db web"),
            (&["label=tier"], "db web"),
            (&["label=tier=front"], "web"),
            (&["label=tier=front", "label=mine"], "web"),
            (&["label=tier=back", "label=mine"], ""),
            (&["name=we"], "web"),
            (&["name=we", "name=d"], "db web"),
            (&["status=exited"], "done"),
            (&["exited=3"], "done"),
            (&["exited=0"], ""),
            (&["status=running", "network=none"], "db web"),
            (&["ancestor=box"], ""),
        ] {
            ensure!(listed(filters)? == wanted, "{filters:?}: {}", listed(filters)?);
        }
        let json = world.coracle(&["ps", "-a", "--format", "json"]).run()?.ok()?;
        let rows: Value = serde_json::from_str(&json.stdout)?;
        let web = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "web"));
        let web = web.context("no web")?;
        ensure!(web["labels"]["tier"] == "front" && web["labels"]["mine"] == "", "{web:#}");
        ensure!(about(world, "web")?["Config"]["Labels"]["tier"] == "front");
        for filter in ["status=well", "colour=blue", "name", "name=a(b"] {
            world.coracle(&["ps", "--filter", filter]).run()?.fails_with(125, "--filter")?;
        }
        run(world, &["-l", "=x"], &["true"])?.fails_with(125, "=x")
    })();
    remove(world, &["web", "db", "done"])?;
    checked.map(drop)
}

/// Labels of a file, those of `--label` going before.
fn label_files(world: &World<'_>) -> Result<()> {
    let file = world.dir().join("labels");
    std::fs::write(&file, "# ours\na=file\nb=x=y\n")?;
    let file = file.to_str().context("the directory's name is UTF-8")?;
    let words = ["create", "--name", "l", "-l", "a=given", "--label-file", file, "--", "true"];
    world.coracle(&words).run()?.ok()?;
    let shown = world.coracle(&["inspect", "l"]).run()?.ok()?.stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let labels = &shown[0]["Config"]["Labels"];
    ensure!(labels["a"] == "given" && labels["b"] == "x=y", "{labels:#}");
    world.coracle(&["rm", "l"]).run()?.ok()?;
    std::fs::write(world.dir().join("labels"), "=x\n")?;
    let refused = world.coracle(&["create", "--label-file", file, "--", "true"]).run()?;
    refused.fails_with(125, "line 1")?;
    Ok(())
}

/// The host's name and IPC namespace in place of the container's own, for programs that
/// join as well.
fn shared(world: &World<'_>) -> Result<()> {
    let places = ["uts", "ipc"].map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")));
    let [uts, ipc] = places;
    let host = format!("{}\n{}", uts?.display(), ipc?.display());
    let read = "readlink /proc/self/ns/uts /proc/self/ns/ipc";
    let run = |options: &[&str], script: &str| {
        let words = [&["run", "--rm", "--network=none"], options, &["--", "sh", "-c", script]];
        world.coracle(&words.concat()).run()
    };
    let both = ["--uts=host", "--ipc=host"];
    run(&both, read)?.ok()?.stdout_is(&host)?;
    let own = run(&[], read)?.ok()?.stdout;
    ensure!(!own.lines().zip(host.lines()).any(|(own, host)| own == host), "{own}{host}");
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let named = format!("{name}\n{name}\n{name}");
    run(&both, "uname -n; echo $HOSTNAME; cat /etc/hostname")?.ok()?.stdout_is(&named)?;
    // The host's /dev/shm, or none.
    let shm = std::path::Path::new("/dev/shm");
    let device = "stat -c %d /dev/shm 2>/dev/null || echo none";
    let wanted = match std::fs::metadata(shm) {
        Ok(found) => std::os::unix::fs::MetadataExt::dev(&found).to_string(),
        Err(_) => "none".to_owned(),
    };
    run(&both, device)?.ok()?.stdout_is(&wanted)?;
    let words =
        [&["run", "-d", "--name", "s", "--network=none"], &both[..], &["--", "sleep", "99"]];
    world.coracle(&words.concat()).run()?.ok()?;
    world.coracle(&["exec", "s", "sh", "-c", read]).run()?.ok()?.stdout_is(&host)?;
    world.coracle(&["rm", "-f", "s"]).run()?.ok()?;
    run(&["--uts=host", "--hostname=x"], "true")?.fails_with(125, "--uts host")?;
    run(&["--ipc=host", "--shm-size=1m"], "true")?.fails_with(125, "--ipc host")?;
    Ok(())
}

fn labels_of_images(world: &World<'_>) -> Result<()> {
    let root = busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    let data = world.dir().join("data");
    let coracle = |words: &[&str]| world.coracle(words).env("XDG_DATA_HOME", &data);
    coracle(&["create", "--name", "c", "--rootfs", root, "true"]).run()?.ok()?;
    let changes = ["-c", "LABEL of=image", "-c", "LABEL both=image"];
    coracle(&[&["commit", "-q"], &changes[..], &["c", "box"]].concat()).run()?.ok()?;
    let words = ["create", "--name", "d", "-l", "both=given", "box", "true"];
    coracle(&words).run()?.ok()?;
    let inspected = coracle(&["inspect", "d"]).run()?.ok()?;
    let all: Value = serde_json::from_str(&inspected.stdout)?;
    let labels = &all[0]["Config"]["Labels"];
    ensure!(labels["of"] == "image" && labels["both"] == "given", "{labels:#}");
    let found = coracle(&["ps", "-a", "-q", "--filter", "ancestor=box"]).run()?.ok()?;
    found.stdout_is("d")?;
    Ok(())
}

fn files(world: &World<'_>) -> Result<()> {
    let path = |name: &str| world.dir().join(name);
    let pid = || -> Result<i32> { Ok(fs::read_to_string(path("pid"))?.trim().parse()?) };
    start(world, "c", &["--cidfile", "cid", "--pidfile", "pid"])?;
    ensure!(fs::read_to_string(path("cid"))? == "c");
    let first = pid()?;
    ensure!(about(world, "c")?["State"]["Pid"] == first, "{first}");
    // Somebody else's name is not written over, and nothing is made.
    let words = ["run", "-d", "--name", "d", "--cidfile", "cid"];
    let taken = world.coracle(&[&words[..], &NONE, &["true"]].concat()).run()?;
    taken.fails_with(125, "cid")?;
    ensure!(fs::read_to_string(path("cid"))? == "c");
    world.coracle(&["inspect", "d"]).run()?.fails_with(1, "'d'")?;
    // Again, with another process.
    world.coracle(&["restart", "-t", "0", "--cidfile", "cid"]).limit(LIMIT).run()?.ok()?;
    ensure!(pid()? != first && about(world, "c")?["State"]["Pid"] == pid()?, "{first}");
    world.coracle(&["kill", "--cidfile", "cid"]).run()?.ok()?.stdout_is("c")?;
    world.coracle(&["wait", "c"]).limit(LIMIT).run()?.ok()?;
    world.coracle(&["rm", "--cidfile", "cid"]).run()?.ok()?.stdout_is("c")?;
    world.coracle(&["rm", "--cidfile", "cid"]).run()?.fails_with(1, "'c'")?;
    world.coracle(&["rm", "--ignore", "--cidfile", "cid"]).run()?.ok()?.stdout_is("")?;
    world.coracle(&["rm", "--cidfile", "nonesuch"]).run()?.fails_with(1, "nonesuch")?;
    // Nothing comes of it: no file either.
    for options in
        [&["--rootfs", "/nonesuch"][..], &["--upper", "/proc/x"], &["-v", "/nonesuch:/m"]]
    {
        let all = [options, &["--cidfile", "none"]].concat();
        run(world, &all, &["true"])?.code_is(125)?;
        ensure!(!path("none").exists(), "{options:?} left the file");
    }
    run(world, &["--cidfile", "/nonesuch/cid"], &["true"])?.fails_with(125, "/nonesuch/cid")?;
    run(world, &["--pidfile", "/nonesuch/pid"], &["true"])?.fails_with(125, "/nonesuch/pid")?;
    Ok(())
}

fn mounts(world: &World<'_>) -> Result<()> {
    world.cmd("mkdir").arg(world.dir().join("d")).run()?.ok()?;
    world.write("d/f", "of the host\n")?;
    let script = "cat /m/f; echo more >>/m/f; (echo x >/fixed/x) 2>/dev/null || echo fixed; \
                  df -k /small /dev/shm | awk 'NR > 1 { print $2 }'; stat -c %a /small";
    let options = [
        "--mount",
        "type=bind,src=d,dst=/m",
        "--mount",
        "type=bind,source=d,target=/fixed,readonly",
        "--mount",
        "type=tmpfs,dst=/small,tmpfs-size=1m,tmpfs-mode=700",
        "--shm-size",
        "2m",
    ];
    run(world, &options, &["sh", "-c", script])?
        .ok()?
        .stdout_is("of the host\nfixed\n1024\n2048\n700")?;
    ensure!(fs::read_to_string(world.dir().join("d/f"))? == "of the host\nmore\n");
    let usual = run(world, &["-v", "./d:/m:z"], &["df", "-k", "/dev/shm"])?.ok()?;
    ensure!(usual.stdout.contains(" 65536 "), "{}", usual.describe());
    for (option, code, word) in [
        ("type=bind,src=nonesuch,dst=/m", 125, "nonesuch"),
        ("type=bind,src=d", 125, "dst=PATH"),
        ("type=volume,src=d,dst=/m", 125, "named volumes"),
        ("type=tmpfs,dst=/m,tmpfs-size=lots", 125, "lots"),
    ] {
        run(world, &["--mount", option], &["true"])?.fails_with(code, word)?;
    }
    let twice = ["--tmpfs=/m", "--mount=type=bind,src=d,dst=/m"];
    run(world, &twice, &["true"])?.fails_with(125, "two mounts")?;
    run(world, &["--shm-size", "0"], &["true"])?.fails_with(125, "--shm-size")?;
    Ok(())
}

fn names(world: &World<'_>) -> Result<()> {
    let coracle = |options: &[&str], script: &str| -> Result<Output> {
        world.coracle(&[&["run", "--rm"], options, &["--", "sh", "-c", script]].concat()).run()
    };
    let hosts =
        "getent hosts db | awk '{ print $1 }'; getent ahosts six | awk 'NR == 1 { print $1 }'";
    let added = ["--add-host", "db:192.0.2.7", "--add-host", "six:2001:db8::7"];
    for network in ["none", "netstack", "host"] {
        let options = [&["--network", network][..], &added].concat();
        coracle(&options, hosts)?.ok()?.stdout_is("192.0.2.7\n2001:db8::7").context(network)?;
    }
    // The outside's name server, asked straight through the network.
    let options = ["--dns", Outside::V4, "--dns-search", "test", "--dns-option", "ndots:3"];
    let script = "cat /etc/resolv.conf; getent hosts outside.test >/dev/null && echo found; \
                  getent ahostsv4 outside | awk 'NR == 1 { print $1 }'";
    let wanted = format!("search test\nnameserver {0}\noptions ndots:3\nfound\n{0}", Outside::V4);
    coracle(&options, script)?.ok()?.stdout_is(&wanted)?;
    // Nobody answers there.
    coracle(&["--dns", "127.0.0.1"], "getent hosts outside.test || echo nothing")?
        .ok()?
        .stdout_is("nothing")?;
    let none = coracle(&["--dns-search", "."], "cat /etc/resolv.conf")?.ok()?;
    ensure!(!none.stdout.contains("search"), "{}", none.describe());
    let host = coracle(&["--network=host", "--dns-search=c.test"], "cat /etc/resolv.conf")?.ok()?;
    ensure!(host.stdout.starts_with("search c.test\nnameserver "), "{}", host.describe());
    for (options, word) in [
        (&["--add-host", "db"][..], "NAME:IP"),
        (&["--add-host", "db:host-gateway"], "cannot be reached"),
        (&["--dns", "one.one"], "one.one"),
        (&["--dns-search", "a b"], "a b"),
        (&["--network", "none", "--dns", "192.0.2.1"], "network"),
    ] {
        coracle(options, "true")?.fails_with(125, word)?;
    }
    Ok(())
}

fn stop(world: &World<'_>) -> Result<()> {
    let begun = |name: &str, options: &[&str], script: &str| -> Result<()> {
        let words = [&["run", "-d", "--name", name], options, &NONE, &["sh", "-c", script]];
        world.coracle(&words.concat()).run()?.ok()?;
        let follow = world.coracle(&["logs", "-f", name]).spawn()?;
        follow.stdout_until("up\n", LIMIT)?;
        Ok(())
    };
    let ends = |name: &str, code: &str| -> Result<()> {
        world.coracle(&["wait", name]).limit(LIMIT).run()?.ok()?.stdout_is(code)?;
        world.coracle(&["rm", name]).run()?.ok()?;
        Ok(())
    };
    let wait = "echo up; while :; do sleep 0.05; done";
    begun("s", &["--stop-signal", "INT"], &format!("trap 'exit 9' INT; trap '' TERM; {wait}"))?;
    ensure!(about(world, "s")?["Config"]["StopSignal"] == 2);
    world.coracle(&["stop", "s"]).limit(LIMIT).run()?.ok()?;
    ends("s", "9")?;
    // It would go on for ever, and is given no time; then some, by the command.
    let deaf = format!("trap '' TERM; {wait}");
    begun("s", &["--stop-timeout", "0"], &deaf)?;
    ensure!(about(world, "s")?["Config"]["StopTimeout"] == 0);
    world.coracle(&["stop", "s"]).limit(Duration::from_secs(8)).run()?.ok()?;
    ends("s", "137")?;
    begun("s", &["--stop-timeout", "1000"], &deaf)?;
    world.coracle(&["stop", "-t", "0", "s"]).limit(LIMIT).run()?.ok()?;
    ends("s", "137")?;
    run(world, &["--stop-signal", "NOPE"], &["true"])?.fails_with(125, "NOPE")?;
    run(world, &["--stop-timeout", "-1"], &["true"])?.fails_with(125, "-1")?;
    Ok(())
}

fn all(world: &World<'_>) -> Result<()> {
    let coracle = |words: &[&str]| -> Result<Output> { world.coracle(words).limit(LIMIT).run() };
    let lines = |output: Output| -> Result<Vec<String>> {
        Ok(output.ok()?.stdout.lines().map(str::to_owned).collect())
    };
    for command in ["stop", "kill", "rm", "start", "restart", "pause", "unpause"] {
        // With nothing there it does nothing.
        coracle(&[command, "--all"])?.ok()?.stdout_is("")?;
        coracle(&[command, "--all", "x"])?.fails_with(125, "--all")?;
    }
    start(world, "a", &[])?;
    start(world, "b", &[])?;
    let words = ["create", "--name", "c"];
    coracle(&[&words[..], &NONE, &["sleep", "1000"]].concat())?.ok()?;
    ensure!(lines(coracle(&["kill", "-a"])?)? == ["a", "b"]);
    coracle(&["wait", "a", "b"])?.ok()?;
    ensure!(lines(coracle(&["start", "--all"])?)? == ["a", "b", "c"]);
    ensure!(lines(coracle(&["start", "--all"])?)?.is_empty());
    ensure!(lines(coracle(&["stop", "-a", "-t", "0"])?)? == ["a", "b", "c"]);
    ensure!(lines(coracle(&["restart", "--all", "-t", "0"])?)? == ["a", "b", "c"]);
    // Those that run are not removed just so; the others are.
    coracle(&["kill", "b"])?.ok()?;
    coracle(&["wait", "b"])?.ok()?;
    let some = coracle(&["rm", "-a"])?.code_is(1)?;
    ensure!(some.stdout == "b\n" && some.stderr.lines().count() == 2, "{}", some.describe());
    coracle(&["stop", "--ignore", "nobody", "a", "-t", "0"])?.ok()?.stdout_is("a")?;
    coracle(&["stop", "nobody"])?.fails_with(1, "'nobody'")?;
    ensure!(lines(coracle(&["rm", "-a", "-f"])?)? == ["a", "c"]);
    coracle(&["ps", "-a", "-q"])?.ok()?.stdout_is("")?;
    Ok(())
}

fn completion(world: &World<'_>) -> Result<()> {
    let data = world.dir().join("data");
    let root = busybox_rootfs(world)?;
    let root = root.to_str().context("the lab's paths are ASCII")?;
    let coracle = |words: &[&str]| world.coracle(words).env("XDG_DATA_HOME", &data);
    coracle(&["image", "import", "-q", root, "hull"]).run()?.ok()?;
    for name in ["boat", "barge"] {
        coracle(&["create", "--name", name, "hull", "true"]).run()?.ok()?;
    }
    let complete = |words: &str| -> Result<String> {
        let script = format!(
            "eval \"$(coracle completion bash)\"; COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             $(complete -p coracle | sed 's/.*-F \\([^ ]*\\).*/\\1/') coracle \
             \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             echo \"${{COMPREPLY[*]}}\""
        );
        let path = format!("{}:/usr/bin:/bin", world.lab.bin.display());
        let bash = world.cmd("bash").args(["-c", &script]).env("PATH", path);
        let output = bash.env("XDG_DATA_HOME", &data).run()?.ok()?;
        Ok(output.stdout.trim().to_owned())
    };
    for (words, wanted) in [
        ("coracle sto", "stop"),
        ("coracle stop b", "barge boat"),
        ("coracle rm boat ba", "barge"),
        ("coracle exec bo", "boat"),
        ("coracle commit --pau", "--pause"),
        ("coracle image rm local", "localhost/hull:latest"),
        ("coracle run --rm local", "localhost/hull:latest"),
        ("coracle ps bo", ""),
    ] {
        let found = complete(words)?;
        ensure!(found == wanted, "{words}: {found}");
    }
    ensure!(complete("coracle rm -")?.contains("--force"), "no options");
    Ok(())
}

fn replace(world: &World<'_>) -> Result<()> {
    start(world, "r", &["-l", "n=1"])?;
    start(world, "r", &["--replace", "-l", "n=2"])?;
    let labels = about(world, "r")?["Config"]["Labels"].clone();
    remove(world, &["r"])?;
    ensure!(labels["n"] == "2", "{labels}");
    // Where there is none it is made just so.
    start(world, "r", &["--replace"])?;
    remove(world, &["r"])?;
    run(world, &["--replace"], &["true"])?.fails_with(125, "--name")?;
    Ok(())
}

fn confinement(world: &World<'_>) -> Result<()> {
    world.write(
        "policy.toml",
        "[capabilities]\ndrop = ['CHOWN']\n[syscalls]\ndeny = ['ptrace']\n\
         [files]\nread = ['/']\nexecute = ['/usr', '/bin', '/lib', '/lib64']\n\
         [network]\nlisten = [8080]\n[network.egress]\ndefault = 'deny'\n",
    )?;
    let cmd = |words: &[&str]| -> Cmd { world.coracle(words) };
    let words = ["run", "-d", "--name", "c", "--policy", "policy.toml", "--read-only"];
    let more = ["--security-opt", "mask=/etc/hosts.allow", "--", "sleep", "1000"];
    cmd(&[&words[..], &more].concat()).run()?.ok()?;
    let of = about(world, "c");
    let status = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | awk '{ print $2 }'";
    let inside = cmd(&["exec", "c", "sh", "-c", status]).run();
    remove(world, &["c"])?;
    let (of, inside) = (of?, inside?.ok()?);
    let held = &of["Confinement"];
    ensure!(held["NoNewPrivileges"] == true && held["NestedUserNamespace"] == true, "{held:#}");
    ensure!(held["Seccomp"] == "default" && held["SeccompDenied"][0] == "ptrace", "{held:#}");
    ensure!(held["Egress"] == "default = \"deny\"\n", "{held:#}");
    let has = |list: &Value, path: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|item| item == path))
    };
    ensure!(has(&held["MaskedPaths"], "/etc/hosts.allow"), "{held:#}");
    ensure!(has(&held["MaskedPaths"], "/proc/kcore"), "{held:#}");
    ensure!(has(&held["ReadonlyPaths"], "/proc/sys"), "{held:#}");
    ensure!(of["HostConfig"]["ReadonlyRootfs"] == true, "{of:#}");
    if let Some(version) = held["Landlock"]["Version"].as_u64() {
        let files = &held["Landlock"]["Files"];
        let rule = files.as_array().and_then(|all| all.iter().find(|rule| rule["Path"] == "/usr"));
        let access = rule.and_then(|rule| rule["Access"].as_str()).unwrap_or_default();
        ensure!(access.contains("execute"), "{files:#}");
        ensure!(version < 4 || held["Landlock"]["TcpListen"][0] == 8080, "{held:#}");
    }
    // What is shown is what is so.
    let mut lines = inside.stdout.lines();
    let bounding = u64::from_str_radix(lines.next().context("no CapBnd")?, 16)?;
    let shown = of["BoundingCaps"].as_array().context("no BoundingCaps")?;
    ensure!(shown.len() == 10 && bounding.count_ones() == 10, "{bounding:x}: {shown:?}");
    ensure!(!has(&of["BoundingCaps"], "CAP_CHOWN") && bounding & 1 == 0, "{shown:?}");
    ensure!(lines.collect::<Vec<_>>() == ["1", "2"], "{}", inside.describe());

    let words = ["create", "--name", "c", "--privileged", "-u", "7"];
    cmd(&[&words[..], &NONE, &["true"]].concat()).run()?.ok()?;
    let of = about(world, "c");
    remove(world, &["c"])?;
    let of = of?;
    let held = &of["Confinement"];
    ensure!(held["Seccomp"] == "unconfined" && held["NestedUserNamespace"] == false, "{held:#}");
    ensure!(held["MaskedPaths"].as_array().is_some_and(Vec::is_empty), "{held:#}");
    ensure!(of["EffectiveCaps"].as_array().is_some_and(Vec::is_empty), "{of:#}");
    Ok(())
}
