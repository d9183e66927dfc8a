//! Guests, and the backends that give them a network. Each backend is called as
//! Podman calls it, but for the MTU.

use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tests::clock::Deadline;
use tests::command::{Cmd, Running, pipe, read_ready};

use crate::peers::Peer;
use crate::scene::Scene;

/// How long a backend may take to be ready, and anything else that waits.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// How often the kernel's tables are looked at while waiting.
const LOOK: Duration = Duration::from_millis(5);

/// A network namespace with a user namespace that owns it, of the ordinary user.
pub(super) struct Guest(Running);

impl Guest {
    pub(super) fn start(scene: &Scene) -> Result<Self> {
        // As Podman sets it before the device is there: addresses are usable at once.
        let script = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo up; exec cat";
        let running = scene
            .cmd("unshare")
            .args(["--map-root-user", "--net", "--mount", "sh", "-c", script])
            .stdin_open()
            .spawn()?;
        running.stdout_until("up\n", LIMIT)?;
        Ok(Self(running))
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// A program inside.
    pub(super) fn cmd(&self, scene: &Scene, program: &Path) -> Cmd {
        scene
            .cmd("nsenter")
            .args(["--preserve-credentials", "-U", "-n", "-t", &self.pid().to_string()])
            .arg(program)
    }

    /// Whether it ends within so long: a way to wait that notices.
    pub(super) fn ends_within(&self, time: Duration) -> Result<bool> {
        self.0.ends_within(time)
    }

    /// Waits for a global IPv6 address that may be used.
    pub(super) fn wait_for_v6(&self) -> Result<()> {
        let path = format!("/proc/{}/net/if_inet6", self.pid());
        let deadline = Deadline::after(LIMIT);
        loop {
            let table = fs::read_to_string(&path).context("the guest has ended")?;
            if table.lines().any(is_usable_global) {
                return Ok(());
            }
            ensure!(!deadline.passed(), "the guest got no IPv6 address: {table}");
            ensure!(!self.0.ends_within(LOOK)?, "the guest has ended");
        }
    }
}

/// A line of if_inet6: address, index, prefix length, scope, flags, name; all hex.
fn is_usable_global(line: &str) -> bool {
    const TENTATIVE: u32 = 0x40;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, scope, flags, name] = fields[..] else { return false };
    let flags = u32::from_str_radix(flags, 16).unwrap_or(TENTATIVE);
    scope == "00" && name != "lo" && flags & TENTATIVE == 0
}

/// What a backend is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// MTU of the guest's device.
    pub(super) mtu: u32,
    /// TCP ports of the guest that are published on the host.
    pub(super) publish: &'a [u16],
    /// Number of the host's port, above the guest's.
    pub(super) shift: u16,
}

/// A running backend. It ends when dropped.
pub(super) struct Backend {
    /// Its process.
    pub(super) pid: i32,
    /// Address of its name server in the guest.
    pub(super) dns: IpAddr,
    #[expect(dead_code, reason = "held for its Drop, which ends it")]
    held: Held,
}

/// What keeps a backend running.
enum Held {
    Child(
        #[expect(dead_code, reason = "held for its Drop")] Running,
        #[expect(dead_code, reason = "its closing ends the backend")] OwnedFd,
    ),
    Orphan(#[expect(dead_code, reason = "held for its Drop")] Orphan),
}

/// The kinds of [`crate::peers::KINDS`] that [`Backend::start`] knows.
pub(super) const KINDS: [&str; 3] = ["netstack", "slirp4netns", "pasta"];

impl Backend {
    /// Starts it and waits until it says that the network is there.
    pub(super) fn start(scene: &Scene, peer: &Peer, guest: &Guest, wish: Wish<'_>) -> Result<Self> {
        let started = match peer.kind.name {
            "netstack" | "slirp4netns" => slirp(scene, peer, guest, wish),
            "pasta" => pasta(scene, peer, guest, wish),
            other => bail!("nobody has said how {other} is started"),
        };
        started.with_context(|| format!("cannot start {}", peer.name))
    }

    /// The command line, for people.
    pub(super) fn in_words(peer: &Peer, mtu: u32) -> String {
        let words = match peer.kind.name {
            "pasta" => pasta_words(mtu, "none"),
            _ => slirp_words(mtu),
        };
        format!("{} {} …", peer.path.display(), words.join(" "))
    }
}

fn slirp_words(mtu: u32) -> Vec<String> {
    let mtu = format!("--mtu={mtu}");
    ["--disable-host-loopback", &mtu, "--enable-sandbox", "--enable-seccomp", "--enable-ipv6", "-c"]
        .map(str::to_owned)
        .into()
}

fn slirp(scene: &Scene, peer: &Peer, guest: &Guest, wish: Wish<'_>) -> Result<Backend> {
    let (ready, ready_theirs) = pipe()?;
    let (exit_theirs, exit) = pipe()?;
    let mut cmd = scene
        .cmd(&peer.path)
        .args(slirp_words(wish.mtu))
        .args(["-e", &exit_theirs.as_raw_fd().to_string()])
        .args(["-r", &ready_theirs.as_raw_fd().to_string()]);
    let socket = scene.user().runtime_dir.join("api.sock");
    if !wish.publish.is_empty() {
        // It may be the one of a backend that was killed.
        fs::remove_file(&socket).ok();
        cmd = cmd.arg("--api-socket").arg(&socket);
    }
    let running = cmd
        .args([&guest.pid().to_string(), "tap0"])
        .inherit(ready_theirs)
        .inherit(exit_theirs)
        .spawn()?;
    if !read_ready(&ready, LIMIT)? {
        let output = running.wait(LIMIT)?;
        bail!("it is not ready\n{}", output.describe());
    }
    for port in wish.publish {
        publish(&socket, *port, port + wish.shift)?;
    }
    let pid = running.pid();
    Ok(Backend { pid, dns: [10, 0, 2, 3].into(), held: Held::Child(running, exit) })
}

fn publish(socket: &Path, guest: u16, host: u16) -> Result<()> {
    let request = serde_json::json!({
        "execute": "add_hostfwd",
        "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": host, "guest_port": guest}
    });
    let mut stream = UnixStream::connect(socket).context("cannot connect to its API socket")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.to_string().as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(reply.contains("return"), "cannot publish port {host}: {reply}");
    Ok(())
}

/// Address pasta forwards DNS queries from, in Podman's call.
const PASTA_DNS: &str = "169.254.1.1";

fn pasta_words(mtu: u32, publish: &str) -> Vec<String> {
    let mtu = mtu.to_string();
    ["--config-net", "--mtu", &mtu, "--dns-forward", PASTA_DNS, "-t", publish, "-u", "none"]
        .iter()
        .chain(&["-T", "none", "-U", "none", "--no-map-gw", "--quiet"])
        .map(|&word| word.to_owned())
        .collect()
}

/// pasta goes into the background once the network is there, as Podman wants it.
fn pasta(scene: &Scene, peer: &Peer, guest: &Guest, wish: Wish<'_>) -> Result<Backend> {
    let ports: Vec<_> =
        wish.publish.iter().map(|port| format!("{}:{port}", port + wish.shift)).collect();
    let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(",") };
    let pid_file: PathBuf = scene.user().runtime_dir.join("pasta.pid");
    // It may be the one of a backend that was killed.
    fs::remove_file(&pid_file).ok();
    let namespaces = format!("/proc/{}/ns", guest.pid());
    scene
        .cmd(&peer.path)
        .args(pasta_words(wish.mtu, &ports))
        .args(["--ns-ifname", "tap0"])
        .arg("--pid")
        .arg(&pid_file)
        .args(["--netns", &format!("{namespaces}/net"), "--userns", &format!("{namespaces}/user")])
        .limit(LIMIT)
        .run()?
        .ok()?;
    let text = fs::read_to_string(&pid_file).context("it wrote no PID file")?;
    let pid = text.trim().parse().with_context(|| format!("a PID file of {text:?}"))?;
    Ok(Backend { pid, dns: PASTA_DNS.parse()?, held: Held::Orphan(Orphan(pid)) })
}

/// A process that went into the background. This program adopts such: it is the
/// first of its PID namespace.
struct Orphan(i32);

impl Drop for Orphan {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0);
        // It may have ended by itself; then it still waits to be collected.
        kill(pid, Signal::SIGKILL).ok();
        waitpid(pid, None).ok();
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn usable_addresses() {
        let line = |scope: &str, flags: &str, name: &str| {
            is_usable_global(&format!(
                "fd000000000000000000000000000001 02 40 {scope} {flags}     {name}"
            ))
        };
        assert!(line("00", "80", "tap0") && line("00", "00", "tap0"));
        assert!(!line("20", "80", "tap0") && !line("00", "c0", "tap0") && !line("00", "80", "lo"));
        assert!(!is_usable_global(""));
    }

    #[test]
    fn every_network_peer_can_be_started() {
        let kinds: Vec<_> = crate::peers::KINDS
            .iter()
            .filter(|kind| kind.suites.contains(&"net"))
            .map(|kind| kind.name)
            .collect();
        assert_eq!(kinds, KINDS);
    }
}
