//! `netstack --policy`: where a guest may connect to.

use std::time::Duration;

use anyhow::Result;
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::servers::ECHO_PORT;

use crate::names::ASK;
use crate::slirp::{Guest, LIMIT, start, start_unheard};

pub(crate) const TESTS: &[Test] = &[
    Test::new("policy/names-and-networks", names_and_networks).lab(),
    Test::new("policy/reload", reload).lab(),
    Test::new("policy/unheard", unheard).lab(),
    Test::new("policy/bad-file", bad_file),
];

/// `tried(family, kind, address, port)`: what comes of it, and whether at once.
const TRIED: &str = r"
import errno, socket, time
def tried(address, port, kind=socket.SOCK_STREAM):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    s = socket.socket(family, kind)
    s.settimeout(15)
    start = time.monotonic()
    try:
        s.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            s.send(b'x')
            s.recv(9)
        return 'ok'
    except TimeoutError:
        return 'silence'
    except OSError as e:
        return errno.errorcode[e.errno]
UDP = socket.SOCK_DGRAM
";

fn names_and_networks(world: &World<'_>) -> Result<()> {
    world.write(
        "policy.toml",
        &format!(
            "default = 'deny'\n\
             [[rule]]\naction = 'allow'\nto = ['{}', 'big.test', '*.sub.test']\nport = [80]\nprotocol = ['tcp']\n\
             [[rule]]\naction = 'allow'\nto = ['{}/32']\nport = ['{ECHO_PORT}']\nprotocol = ['udp']\n",
            Outside::NAME,
            Outside::V4,
        ),
    )?;
    let policy = world.dir().join("policy.toml").display().to_string();
    let guest = Guest::start(world)?;
    let pid = guest.pid();
    let options =
        ["--policy", &policy, "--enable-sandbox", "--enable-seccomp", "-c", "-6", &pid, "tap0"];
    let net = start(world, &options)?;
    let (v4, v6) = (Outside::V4, Outside::V6);
    let script = format!(
        "python3 -c \"{ASK}{TRIED}\n\
         print(tried('{v4}', 80), tried('{v6}', 80), tried('{v4}', 81))\n\
         print(tried('{v4}', {ECHO_PORT}, UDP), tried('{v6}', {ECHO_PORT}, UDP))\n\
         print(ask('big.test', 16)[3] & 15, ask('sub.test')[3] & 15, ask('no.test', tcp=True)[3] & 15)\n\
         ask('Outside.Test')\n\
         print(tried('{v4}', 80), tried('{v6}', 80), tried('{v4}', {ECHO_PORT}))\n\
         ask('outside.test', 28, tcp=True)\n\
         print(tried('{v6}', 80))\""
    );
    guest.cmd(world, &script).run()?.ok()?.stdout_is(
        "EHOSTUNREACH EACCES EHOSTUNREACH\n\
         ok EACCES\n\
         0 5 5\n\
         ok EACCES EHOSTUNREACH\n\
         ok",
    )?;
    for line in [
        format!("denied tcp to {v4}:80 (default)\n"),
        format!("denied udp to [{v6}]:{ECHO_PORT} (default)\n"),
        "denied the name \"sub.test\" (default)\n".into(),
        "denied the name \"no.test\" (default)\n".into(),
    ] {
        net.running.stderr_until(&line, LIMIT)?;
    }
    // A ping has no port, and no rule.
    let ping = guest.cmd(world, &format!("ping -c 1 -W 10 {v4}")).limit(LIMIT).run()?;
    anyhow::ensure!(
        ping.code != 0 && ping.stdout.contains("Packet filtered"),
        "{}",
        ping.describe()
    );
    net.stop()
}

fn reload(world: &World<'_>) -> Result<()> {
    world.write("policy.toml", "default = 'deny'\n")?;
    let policy = world.dir().join("policy.toml").display().to_string();
    let guest = Guest::start(world)?;
    let pid = guest.pid();
    let options = ["--policy", &policy, "--enable-sandbox", "--enable-seccomp", "-c", &pid, "tap0"];
    let net = start(world, &options)?;
    let tried = || -> Result<String> {
        let script = format!("python3 -c \"{TRIED}\nprint(tried('{}', 80))\"", Outside::V4);
        Ok(guest.cmd(world, &script).run()?.ok()?.stdout.trim().to_owned())
    };
    anyhow::ensure!(tried()? == "EHOSTUNREACH");
    let hang_up = |text: &str, says: &str| -> Result<()> {
        world.write("policy.toml", text)?;
        net.running.signal(nix::sys::signal::Signal::SIGHUP as i32)?;
        net.running.stderr_until(says, LIMIT)?;
        Ok(())
    };
    hang_up("default = 'perhaps'\n", "the policy stays as it is: line 1")?;
    anyhow::ensure!(tried()? == "EHOSTUNREACH");
    let allow = format!("default = 'deny'\n[[rule]]\naction = 'allow'\nto = ['{}']\n", Outside::V4);
    hang_up(&allow, "a policy of 1 rules is in force")?;
    anyhow::ensure!(tried()? == "ok");
    hang_up("default = 'deny'\n", "a policy of 0 rules is in force")?;
    anyhow::ensure!(tried()? == "EHOSTUNREACH");
    std::fs::remove_file(world.dir().join("policy.toml"))?;
    net.running.signal(nix::sys::signal::Signal::SIGHUP as i32)?;
    net.running.stderr_until("the policy stays as it is: cannot read", LIMIT)?;
    net.stop()
}

/// A guest that has denials told to nobody goes on.
fn unheard(world: &World<'_>) -> Result<()> {
    let text = format!("default = 'deny'\n[[rule]]\naction = 'allow'\nto = ['{}']\n", Outside::V4);
    world.write("policy.toml", &text)?;
    let policy = world.dir().join("policy.toml").display().to_string();
    let guest = Guest::start(world)?;
    let net = start_unheard(world, &["--policy", &policy, "-c", &guest.pid(), "tap0"])?;
    let script = format!(
        "python3 -c \"{TRIED}\nprint(tried('{}', 80), tried('{}', 80))\"",
        Outside::HOST_V4,
        Outside::V4
    );
    for _ in 0..2 {
        guest.cmd(world, &script).run()?.ok()?.stdout_is("EHOSTUNREACH ok")?;
    }
    net.stop()
}

fn bad_file(world: &World<'_>) -> Result<()> {
    world.write("policy.toml", "default = 'deny'\nrule = 5\n")?;
    for (file, says) in [("policy.toml", "line 2"), ("none.toml", "cannot read")] {
        let guest = Guest::start(world)?;
        let file = world.dir().join(file).display().to_string();
        world
            .ours("netstack")
            .args(["--policy", &file, "-c", &guest.pid(), "tap0"])
            .limit(Duration::from_secs(20))
            .run()?
            .fails_with(1, says)?;
    }
    Ok(())
}
