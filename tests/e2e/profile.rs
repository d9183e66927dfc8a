//! `coracle run --policy` and `coracle policy explain`.

use anyhow::{Result, ensure};
use tests::harness::{Test, World, skip};

pub(crate) const TESTS: &[Test] = &[
    Test::new("security/policy", policy).each_user().lab(),
    Test::new("security/policy-explained", policy_explained).each_user(),
    Test::new("security/policy-that-cannot-be-enforced", policy_required).each_user(),
];

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

const POLICY: &str = r#"
[capabilities]
drop = ["CHOWN"]
[syscalls]
deny = ["mknod", "mknodat"]
[files]
required = true
read = ["/"]
write = ["/tmp"]
execute = ["/usr", "/bin", "/lib", "/lib64"]
[network]
listen = [8080]
connect = [80]
[network.egress]
default = "deny"
[[network.egress.rule]]
action = "allow"
to = ["10.77.0.2"]
"#;

fn needs_ports() -> Result<()> {
    match tests::sys::landlock_version() {
        Some(4..) => Ok(()),
        _ => Err(skip("this kernel's Landlock knows no ports (version 4)")),
    }
}

fn policy(world: &World<'_>) -> Result<()> {
    use tests::lab::Outside;
    needs_ports()?;
    world.write("policy.toml", POLICY)?;
    // What is printed was allowed, and is to be so.
    let script = format!(
        "touch /tmp/f && echo write; touch /root/f 2>/dev/null && echo elsewhere; \
         chown 1:1 /tmp/f 2>/dev/null && echo chown; mkfifo /tmp/p 2>/dev/null && echo node; \
         cp /bin/true /tmp/t && /tmp/t 2>/dev/null && echo program; \
         curl -sSf -m 10 -o /dev/null http://{0}/hello && echo reached; \
         curl -sSf -m 10 -o /dev/null http://{1}:80/ 2>/dev/null && echo another; \
         python3 -c \"import socket; s=socket.socket(); s.bind(('', 8080)); print('port')\" ; \
         python3 -c \"import socket; s=socket.socket(); s.bind(('', 8081)); print('other port')\" 2>/dev/null; \
         python3 -c \"import socket; socket.create_connection(('{0}', 81), 5)\" 2>&1 | grep -c 'Permission'",
        Outside::V4,
        Outside::HOST_V4
    );
    let want = "write\nreached\nport\n1";
    let words = ["run", "--rm", "--policy", "policy.toml", "--", "sh", "-c", &script];
    world.coracle(&words).run()?.ok()?.stdout_is(want)?;
    // Whoever joins is held as well, whatever became of the file.
    let words = ["run", "-d", "--rm", "--name", "held", "--policy", "policy.toml"];
    world.coracle(&words).args(["--", "sleep", "1000"]).run()?.ok()?;
    world.write("policy.toml", "")?;
    let joined = world.coracle(&["exec", "held", "sh", "-c", &script]).run();
    world.coracle(&["rm", "-f", "held"]).run()?.ok()?;
    joined?.ok()?.stdout_is(want)?;
    Ok(())
}

fn policy_explained(world: &World<'_>) -> Result<()> {
    needs_ports()?;
    world.write("policy.toml", POLICY)?;
    let output = world.coracle(&["policy", "explain", "policy.toml"]).run()?.ok()?;
    for line in [
        "DAC_OVERRIDE",
        "but mknod mknodat",
        "  read below /\n",
        "  read, write below /tmp\n",
        "  read, execute below /usr\n",
        "listens on TCP ports 8080 only",
        "connects to TCP ports 80 only",
        "  allow, to 10.77.0.2\n  deny all others\n",
        "this host: Landlock",
    ] {
        ensure!(output.stdout.contains(line), "{line:?}\n{}", output.describe());
    }
    ensure!(!output.stdout.contains(" CHOWN"), "{}", output.describe());
    for (text, words) in [
        ("[files]\nreed = []", &["bad.toml", "line 2", "reed"][..]),
        ("[syscalls]\ndeny = ['fly']", &["'fly'"]),
        ("[capabilities]\nadd = ['chown']\ndrop = ['chown']", &["CAP_CHOWN"]),
        (
            "[network.egress]\ndefault = 'deny'\n[[network.egress.rule]]\naction = 'allow'\n\
             to = ['10.77.0.2/24']\n",
            &["rule 1", "10.77.0.2/24", "beyond the prefix"],
        ),
        (
            "[network.egress]\ndefault = 'deny'\n[[network.egress.rule]]\naction = 'allow'\n\
             to = ['10.77.0']\n",
            &["rule 1", "10.77.0", "neither a network nor a name"],
        ),
    ] {
        world.write("bad.toml", text)?;
        for (command, code) in [
            (&["policy", "explain", "bad.toml"][..], 1),
            (&["run", "--policy", "bad.toml", "--", "true"], 125),
        ] {
            let output = world.coracle(command).run()?.code_is(code)?;
            let told = words.iter().all(|word| output.stderr.contains(word));
            ensure!(told && output.stderr.lines().count() == 1, "{words:?}: {}", output.describe());
        }
    }
    world.coracle(&["policy", "explain", "nonesuch"]).run()?.fails_with(1, "nonesuch")?;
    Ok(())
}

/// Required is required; the rest is told.
fn policy_required(world: &World<'_>) -> Result<()> {
    for (required, code) in [("true", 125), ("false", 0)] {
        world.write("policy.toml", &format!("[files]\nrequired = {required}\nread = ['/']\n"))?;
        for option in ["--security-opt=landlock=off", "--cap-add=SYS_ADMIN"] {
            let words = ["--policy", "policy.toml", option, "--", "true"];
            let output = world.coracle(&RUN).args(words).run()?.code_is(code)?;
            ensure!(
                output.stderr.contains("rules for files are not enforced"),
                "{}",
                output.describe()
            );
        }
    }
    world.write("policy.toml", "[network.egress]\ndefault = 'deny'\n")?;
    let words = ["run", "--rm", "--network", "host", "--policy", "policy.toml", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "egress")?;
    // netstack knows what an address is, and says so.
    let rule = "[[network.egress.rule]]\naction = 'allow'\nto = ['10.0.0.0/99']\n";
    world.write("policy.toml", &format!("[network.egress]\ndefault = 'deny'\n{rule}"))?;
    let words = ["run", "--rm", "--policy", "policy.toml", "--", "true"];
    world.coracle(&words).run()?.fails_with(125, "10.0.0.0/99")?;
    world.coracle(&["ps", "-a", "-q"]).run()?.ok()?.stdout_is("")?;
    Ok(())
}
