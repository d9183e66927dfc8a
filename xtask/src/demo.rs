//! `cargo xtask demo`: what the programs do, shown in a minute.
//!
//! As root it runs in the lab of the end-to-end tests: namespaces of its own
//! with a network "outside", and an ordinary user. As an ordinary user it runs
//! where it is, with a web server on one of the machine's own addresses. What
//! is shown is checked too: a demo that does not do what it says fails.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output, User};
use tests::lab::{self, Lab, Outside};
use tests::leak::Snapshot;
use tests::servers;

use crate::prepare::{self, Purpose};
use crate::{build_release, target_dir};

/// Shows the programs in `programs`, or those of a release build.
pub(crate) fn run(programs: Option<&Path>) -> Result<()> {
    let release = target_dir()?.join("release");
    let programs = programs.unwrap_or(&release);
    if !lab::is_inside() {
        prepare::machine(&[Purpose::Build, Purpose::Run, Purpose::Demo])?;
        if programs == release {
            build_release()?;
        }
        lab::enter(Some(programs))?;
    }
    let lab = Lab::set_up(Some(programs))?;
    let before = Snapshot::take(&lab)?;
    let user = lab.any_user();
    let demo = Demo { lab: &lab, user };
    say!("\nEverything below runs as the ordinary user {}.", user.name);
    let shown = demo.all();
    // Also when a step failed half-way.
    let removed = ["demo-web", "demo-change"].map(|name| demo.coracle(&["rm", "-f", name]).run());
    let leaks = before.leaks(&lab)?;
    shown?;
    for output in removed {
        output.context("cannot clean up")?;
    }
    ensure!(leaks.is_empty(), "left behind: {}", leaks.join(", "));
    say!(
        "\nNothing of it is left: no process, mount, namespace or file. To try next:\n\
         \n  coracle run --rm -it                    a shell on a copy of this machine\
         \n  coracle run --rm --upper ram:1g -- apt-get install -y PACKAGE\
         \n  coracle run --rootfs DIR --network none -- PROGRAM\
         \n  coracle run --help\n\
         \nwhere `coracle` is {}\n",
        programs.join("coracle").display()
    );
    Ok(())
}

struct Demo<'a> {
    lab: &'a Lab,
    user: &'a User,
}

impl Demo<'_> {
    fn all(&self) -> Result<()> {
        self.root()?;
        self.network()?;
        self.port()?;
        self.changes()
    }

    fn coracle(&self, args: &[&str]) -> Cmd {
        Cmd::new(self.lab.bin.join("coracle")).user(self.user).args(args)
    }

    /// Runs `coracle` and shows the command and what it says.
    fn show(&self, args: &[&str]) -> Result<Output> {
        say!("  $ coracle {}", shell_line(args));
        let output = self.coracle(args).run()?.ok()?;
        print_indented(&output);
        Ok(output)
    }

    fn root(&self) -> Result<()> {
        heading(
            1,
            "A container on a copy-on-write view of this machine's root: no image to download",
        );
        let script = "id -un; . /etc/os-release; echo $PRETTY_NAME; rm -rf /usr/lib/python3; \
                      echo mine >/etc/motd; cat /etc/motd; ps -e 2>/dev/null | wc -l";
        self.show(&["run", "--rm", "--network", "none", "--", "sh", "-c", script])?
            .stdout_has("root")?
            .stdout_has("mine")?;
        let motd = std::fs::read_to_string("/etc/motd").unwrap_or_default();
        ensure!(motd.trim() != "mine", "the host's /etc/motd was changed");
        say!("  (root inside is {} outside; the machine itself is unchanged)", self.user.name);
        Ok(())
    }

    fn network(&self) -> Result<()> {
        heading(2, "A network of its own, without privilege: an address, a page, a name");
        self.show(&["run", "--rm", "--", "ip", "-brief", "address"])?
            .stdout_has("10.0.2.100/24")?;
        if self.lab.outside.is_some() {
            let name = Outside::NAME;
            self.show(&["run", "--rm", "--", "getent", "hosts", name])?.stdout_has(name)?;
            let url = format!("http://{name}/hello");
            self.show(&["run", "--rm", "--", "curl", "-sSf", &url])?.stdout_has(servers::HELLO)?;
            return Ok(());
        }
        let Some(address) = own_address() else {
            say!("  SKIPPED the page and the name: this machine is on no network");
            return Ok(());
        };
        let listener = TcpListener::bind((address, 0))?;
        let url = format!("http://{}/hello", listener.local_addr()?);
        servers::http(listener, Path::new("/nonexistent"));
        self.show(&["run", "--rm", "--", "curl", "-sSf", &url])?.stdout_has(servers::HELLO)?;
        say!("  SKIPPED the name: a name server of the demo's own takes root");
        Ok(())
    }

    fn port(&self) -> Result<()> {
        heading(3, "A server inside, published on a port of this machine");
        let port = free_port()?;
        let publish = format!("127.0.0.1:{port}:80");
        let words = ["run", "-d", "--rm", "--name", "demo-web", "-p", &publish, "-w", "/usr/share"];
        let mut words = words.to_vec();
        words.extend(["--", "python3", "-m", "http.server", "80"]);
        self.show(&words)?;
        let url = format!("http://127.0.0.1:{port}/");
        say!("  $ curl {url} | head -3");
        // The server needs a moment to listen.
        let page = Cmd::new("curl")
            .user(self.user)
            .args(["-sSf", "--retry", "20", "--retry-all-errors", "--retry-delay", "1", &url])
            .limit(Duration::from_secs(40))
            .run()?
            .ok()?
            .stdout_has("Directory listing")?;
        for line in page.stdout.lines().take(3) {
            say!("    {line}");
        }
        self.show(&["stop", "demo-web"])?;
        Ok(())
    }

    fn changes(&self) -> Result<()> {
        heading(4, "What a container changed, listed");
        let before = std::fs::read("/etc/profile").unwrap_or_default();
        let script = "echo 'export PORT=harbour' >>/etc/profile; touch /opt/new; rm /etc/fstab 2>/dev/null; true";
        let words = ["run", "--name", "demo-change", "--network", "none", "--", "sh", "-c", script];
        self.show(&words)?;
        self.show(&["diff", "demo-change"])?
            .stdout_has("C /etc/profile")?
            .stdout_has("A /opt/new")?;
        ensure!(
            std::fs::read("/etc/profile").unwrap_or_default() == before,
            "/etc/profile was changed"
        );
        say!("  (outside, /etc/profile is as it was, and there is no /opt/new)");
        ensure!(!Path::new("/opt/new").exists(), "/opt/new was made outside");
        self.show(&["rm", "demo-change"])?;
        Ok(())
    }
}

fn heading(number: u32, text: &str) {
    say!("\n{number}. {text}");
}

fn print_indented(output: &Output) {
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        say!("    {line}");
    }
}

/// Arguments as they would be typed.
fn shell_line(args: &[&str]) -> String {
    let quote = |arg: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            (*arg).to_owned()
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    };
    args.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The address this machine would use to reach others; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // TEST-NET-1, RFC 5737: connecting a UDP socket only looks up the route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// A port nobody listens on now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod unit {
    use super::shell_line;

    #[test]
    fn what_is_shown_can_be_typed() {
        assert_eq!(shell_line(&["run", "--rm", "a b", "it's", ""]), r"run --rm 'a b' 'it'\''s' ''");
    }
}
