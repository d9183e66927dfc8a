//! `netstack` in slirp4netns' form: `netstack [OPTIONS] PID|PATH [TAPNAME]`.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Running, pipe, read_ready};
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::servers::HELLO;

use crate::fixtures::{blob, sha256};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const TESTS: &[Test] = &[
    Test::new("slirp/pid", pid).lab(),
    Test::new("slirp/path", path).lab(),
    Test::new("slirp/defaults-by-hand", by_hand).lab(),
    Test::new("slirp/host-loopback", host_loopback).lab(),
    Test::new("slirp/exit-fd", exit_fd),
    Test::new("slirp/api-socket", api_socket).lab(),
    Test::new("slirp/dhcp", dhcp).lab(),
    Test::new("slirp/cidr-and-mtu", cidr_and_mtu),
    Test::new("slirp/sandbox", sandbox).lab(),
    Test::new("slirp/frames-lost", frames_lost).lab().seconds(120),
    Test::new("slirp/guest-ends", guest_ends),
    Test::new("slirp/queues", queues).lab(),
    Test::new("slirp/idle", idle).lab(),
    Test::new("slirp/macaddress", macaddress),
    Test::new("slirp/publish-range-v6", publish_range).lab(),
    Test::new("slirp/outbound-addr6", outbound_addr6).lab(),
];

/// A network namespace with a user namespace that owns it.
pub(crate) struct Guest(Running);

impl Guest {
    pub(crate) fn start(world: &World<'_>) -> Result<Self> {
        // As Podman sets it before the device is there, so that its address is
        // usable at once.
        let script = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo up; exec cat";
        let running = world
            .cmd("unshare")
            .args(["--map-root-user", "--net", "--mount", "sh", "-c", script])
            .stdin_open()
            .spawn()?;
        running.stdout_until("up\n", LIMIT)?;
        Ok(Self(running))
    }

    pub(crate) fn pid(&self) -> String {
        self.0.pid().to_string()
    }

    /// A queue of the TAP device `name` inside, which is made when it is not there;
    /// `flags` are added to the usual ones.
    pub(crate) fn tap(&self, name: &str, flags: i32) -> Result<OwnedFd> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid()))?;
        let open = || -> Result<OwnedFd> {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
            tests::sys::tun_set_iff(std::os::fd::AsFd::as_fd(&tun), name, flags)?;
            Ok(tun.into())
        };
        std::thread::scope(|scope| {
            let opened = scope.spawn(open).join();
            opened.unwrap_or_else(|_| Err(anyhow::anyhow!("the thread panicked")))
        })
    }

    /// A program inside.
    pub(crate) fn cmd(&self, world: &World<'_>, script: &str) -> Cmd {
        world
            .cmd("nsenter")
            .args(["--preserve-credentials", "-U", "-n", "-m", "-t", &self.pid()])
            .args(["sh", "-c", "cd \"$1\" && eval \"$2\"", "sh"])
            .arg(world.dir())
            .arg(script)
            .limit(Duration::from_secs(40))
    }
}

pub(crate) struct Net {
    pub(crate) running: Running,
    exit: OwnedFd,
}

/// Starts netstack with a ready-fd and an exit-fd, and waits until it is ready.
pub(crate) fn start(world: &World<'_>, words: &[&str]) -> Result<Net> {
    start_with(world.ours("netstack"), words, Vec::new(), || Ok(()))
}

/// Starts it with nobody who reads its standard error.
pub(crate) fn start_unheard(world: &World<'_>, words: &[&str]) -> Result<Net> {
    let script = "exec 3> >(true); wait $!; exec \"$@\" 2>&3";
    let program = world.lab.bin.join("netstack");
    let command = world.cmd("bash").args(["-c", script, "bash"]).arg(program);
    start_with(command, words, Vec::new(), || Ok(()))
}

/// The same with descriptors passed on, and with something that it waits for before it
/// is ready.
pub(crate) fn start_with(
    command: Cmd,
    words: &[&str],
    inherited: Vec<OwnedFd>,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Net> {
    let (ready, ready_theirs) = pipe()?;
    let (exit_theirs, exit) = pipe()?;
    let mut command = command
        .args(["-r", &ready_theirs.as_raw_fd().to_string()])
        .args(["-e", &exit_theirs.as_raw_fd().to_string()])
        .args(words)
        .inherit(ready_theirs)
        .inherit(exit_theirs);
    for fd in inherited {
        command = command.inherit(fd);
    }
    let running = command.spawn()?;
    meanwhile()?;
    if !read_ready(&ready, LIMIT)? {
        let output = running.wait(LIMIT)?;
        anyhow::bail!("netstack is not ready\n{}", output.describe());
    }
    Ok(Net { running, exit })
}

impl Net {
    pub(crate) fn stop(self) -> Result<()> {
        drop(self.exit);
        self.running.wait(LIMIT)?.ok()?;
        Ok(())
    }
}

pub(crate) fn fetch(world: &World<'_>, guest: &Guest) -> Result<()> {
    // The IPv6 address comes by router advertisement.
    let script = "for i in $(seq 100); do \
        ip -6 addr show scope global -tentative | grep -q fd00: && exit 0; sleep 0.05; done; \
        ip addr; exit 1";
    guest.cmd(world, script).run()?.ok()?;
    for server in [Outside::V4.to_owned(), format!("[{}]", Outside::V6)] {
        let script = format!("curl -sSf -m 20 http://{server}/hello");
        guest.cmd(world, &script).run()?.ok()?.stdout_is(HELLO)?;
    }
    Ok(())
}

fn pid(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", "-6", "-m", "65520", &guest.pid(), "tap0"])?;
    guest
        .cmd(world, "ip -brief addr; ip link show tap0; ip route")
        .run()?
        .ok()?
        .stdout_has("10.0.2.100/24")?
        .stdout_has("mtu 65520 qdisc noqueue")?
        .stdout_has("default via 10.0.2.2")?;
    fetch(world, &guest)?;
    // Its name server answers too.
    let script = format!(
        "echo nameserver 10.0.2.3 >$PWD/resolv; \
         mount --bind $PWD/resolv /etc/resolv.conf; getent ahostsv4 {} | head -1",
        Outside::NAME
    );
    guest.cmd(world, &script).run()?.ok()?.stdout_has(Outside::V4)?;
    net.stop()
}

fn path(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let namespace = format!("/proc/{}/ns/net", guest.pid());
    let users = format!("--userns-path=/proc/{}/ns/user", guest.pid());
    let net = start(world, &["-c", "-6", "--netns-type=path", &users, &namespace, "tap7"])?;
    guest.cmd(world, "ip -brief link").run()?.ok()?.stdout_has("tap7")?;
    fetch(world, &guest)?;
    net.stop()
}

fn by_hand(world: &World<'_>) -> Result<()> {
    // Without -c the caller configures the device.
    let guest = Guest::start(world)?;
    let net = start(world, &[&guest.pid(), "tap0"])?;
    let script = format!(
        "ip link set tap0 up && ip addr add 10.0.2.100/24 dev tap0 && ip route add default via 10.0.2.2 && \
         cat /sys/class/net/tap0/mtu; curl -sSf -m 20 http://{}/hello",
        Outside::V4
    );
    let output = guest.cmd(world, &script).run()?.ok()?;
    output.stdout_has(HELLO)?;
    net.stop()
}

fn host_loopback(world: &World<'_>) -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"loopback")
    });
    let guest = Guest::start(world)?;
    // Out of reach when disabled: no network there, at once.
    let net = start(world, &["-c", "--disable-host-loopback", &guest.pid(), "tap0"])?;
    let script = format!("curl -sS -m 20 telnet://10.0.2.2:{port} </dev/null 2>&1; true");
    let output = guest.cmd(world, &script).run()?.ok()?;
    ensure!(!output.stdout.contains("loopback"), "{}", output.describe());
    ensure!(
        output.stdout.contains("unreachable") || output.stdout.contains("connect"),
        "{}",
        output.describe()
    );
    net.stop()?;
    // There otherwise.
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    let script = format!("curl -sS -m 20 telnet://10.0.2.2:{port} </dev/null");
    let output = guest.cmd(world, &script).run()?;
    // Ends the accept in case it was never reached.
    std::net::TcpStream::connect(("127.0.0.1", port)).ok();
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    output.ok()?.stdout_is("loopback")?;
    net.stop()
}

fn exit_fd(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    net.stop()?;
    // The device goes with its owner.
    let links = guest.cmd(world, "ip -brief link").run()?.ok()?;
    ensure!(!links.stdout.contains("tap0"), "{}", links.describe());
    // SIGTERM ends it too.
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    net.running.signal(nix::sys::signal::Signal::SIGTERM as i32)?;
    let output = net.running.wait(LIMIT)?;
    ensure!(output.code == 0 || output.code == 143, "{}", output.describe());
    Ok(())
}

pub(crate) fn request(socket: &std::path::Path, json: &str) -> Result<serde_json::Value> {
    let mut stream = UnixStream::connect(socket).context("API socket")?;
    stream.write_all(json.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    serde_json::from_str(&text).with_context(|| format!("{json} was answered with {text:?}"))
}

fn api_socket(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let socket = world.dir().join("api");
    let path = socket.to_str().context("path")?.to_owned();
    let net = start(world, &["-c", "-6", "-a", &path, &guest.pid(), "tap0"])?;
    let server = guest
        .cmd(world, "exec python3 -u -c \"import http.server as h; s=h.HTTPServer(('',80),h.SimpleHTTPRequestHandler); print('up'); s.serve_forever()\"")
        .spawn()?;
    server.stdout_until("up", LIMIT)?;

    let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18085,"guest_port":80}}"#;
    let answer = request(&socket, add)?;
    ensure!(answer["return"]["id"] == 1, "{answer}");
    let curl = || world.cmd("curl").args(["-sSf", "-m", "10", "http://127.0.0.1:18085/"]).run();
    curl()?.ok()?;
    let list = request(&socket, r#"{"execute":"list_hostfwd"}"#)?;
    for entries in [&list["entries"], &list["return"]["entries"]] {
        ensure!(entries[0]["host_port"] == 18085 && entries[0]["id"] == 1, "{list}");
    }
    // The port is taken now.
    ensure!(request(&socket, add)?["error"]["desc"].is_string());
    let removed = request(&socket, r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#)?;
    ensure!(removed["return"].is_object() && removed.get("error").is_none(), "{removed}");
    ensure!(curl()?.code != 0, "still published");
    for bad in [
        "",
        "{",
        "{}",
        r#"{"execute":"nothing"}"#,
        r#"{"execute":"remove_hostfwd","arguments":{"id":9}}"#,
    ] {
        let answer = request(&socket, bad)?;
        ensure!(answer["error"]["desc"].is_string(), "{bad:?} was answered with {answer}");
    }
    // A client that says nothing keeps nobody waiting.
    let _silent = UnixStream::connect(&socket)?;
    request(&socket, r#"{"execute":"list_hostfwd"}"#)?;
    drop(server);
    net.stop()?;
    ensure!(!socket.exists(), "the API socket is still there");
    Ok(())
}

fn dhcp(world: &World<'_>) -> Result<()> {
    if tests::lab::find("busybox").is_none() {
        return Err(tests::harness::skip("busybox is not installed"));
    }
    let guest = Guest::start(world)?;
    let net = start(world, &[&guest.pid(), "tap0"])?;
    let script = "ip link set tap0 up; printf '#!/bin/sh\\n[ \"$1\" = bound ] && env\\nexit 0\\n' >s; chmod +x s; \
        busybox udhcpc -i tap0 -n -q -f -t 5 -T 1 -s $PWD/s 2>&1";
    guest
        .cmd(world, script)
        .run()?
        .ok()?
        .stdout_has("ip=10.0.2.15")?
        .stdout_has("router=10.0.2.2")?
        .stdout_has("dns=10.0.2.3")?
        .stdout_has("mask=24")?;
    net.stop()
}

fn cidr_and_mtu(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", "--cidr", "192.168.77.0/25", "-m", "9000", &guest.pid(), "t"])?;
    guest
        .cmd(world, "ip -brief addr; ip link show t; ip route")
        .run()?
        .ok()?
        .stdout_has("192.168.77.100/25")?
        .stdout_has("mtu 9000")?
        .stdout_has("default via 192.168.77.2")?;
    net.stop()
}

fn sandbox(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let words = ["-c", "-6", "--enable-sandbox", "--enable-seccomp", &guest.pid(), "tap0"];
    let net = start(world, &words)?;
    fetch(world, &guest)?;
    net.stop()
}

fn guest_ends(world: &World<'_>) -> Result<()> {
    // The namespace goes away under it: it ends, or waits for its exit-fd, and
    // does not spin.
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    drop(guest);
    let pid = net.running.pid();
    if !net.running.ends_within(Duration::from_secs(1))? {
        let ticks = |pid: i32| -> Result<u64> {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (_, rest) = stat.rsplit_once(')').context("stat")?;
            let field =
                |n: usize| rest.split_whitespace().nth(n).and_then(|t| t.parse::<u64>().ok());
            Ok(field(11).context("utime")? + field(12).context("stime")?)
        };
        let before = ticks(pid)?;
        if !net.running.ends_within(Duration::from_secs(1))? {
            let spent = ticks(pid)? - before;
            ensure!(spent < 20, "spends {spent} of 100 ticks on nothing");
            return net.stop();
        }
    }
    let output = net.running.wait(LIMIT)?;
    ensure!(output.code < 128, "{}", output.describe());
    Ok(())
}

/// A device queue of two frames: what the guest sends faster than it is taken is
/// lost, and both ends must recover. (Not every kernel has netem.)
fn frames_lost(world: &World<'_>) -> Result<()> {
    let (path, sum) = blob(world, 20_000_000)?;
    let name = path.file_name().and_then(|name| name.to_str()).context("no name")?;
    let guest = Guest::start(world)?;
    for mtu in ["1500", "65520"] {
        let net = start(world, &["-c", "-m", mtu, &guest.pid(), "tap0"])?;
        let script = format!(
            "set -e; ip link set tap0 txqueuelen 2; tc qdisc replace dev tap0 root pfifo limit 2; \
             for i in 1 2 3; do curl -sSf -m 30 -o blob http://{0}/{name}; sha256sum <blob; \
             curl -sSf -m 30 -T blob http://{0}/upload; done; \
             echo dropped $(cat /sys/class/net/tap0/statistics/tx_dropped)",
            Outside::V4
        );
        // The statistics are those of the namespace that /sys was mounted in.
        let script = format!("mount -t sysfs sysfs /sys; {script}");
        let output = guest.cmd(world, &script).run()?.ok()?;
        let upload = world.lab.outside()?.www.join("upload");
        let uploaded = sha256(&upload)?;
        std::fs::remove_file(upload)?;
        ensure!(output.stdout.matches(&sum).count() == 3, "downloaded: {}", output.stdout);
        ensure!(uploaded == sum, "uploaded: {uploaded} not {sum}");
        ensure!(!output.stdout.contains("dropped 0\n"), "nothing was lost: {}", output.stdout);
        net.stop()?;
    }
    Ok(())
}

/// One worker a processor, up to four; what reaches the wrong one finds its way.
fn queues(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let socket = world.dir().join("api");
    let path = socket.to_str().context("path")?.to_owned();
    let net = start(world, &["-c", "-6", "-a", &path, &guest.pid(), "tap0"])?;
    let workers = std::fs::read_dir(format!("/proc/{}/task", net.running.pid()))?.count();
    let wanted = std::thread::available_parallelism()?.get().min(4);
    ensure!(workers == wanted, "{workers} workers, not {wanted}");

    // Both kinds of name queries and plenty of connections, from many ports.
    let script = format!(
        "echo nameserver 10.0.2.3 >$PWD/resolv; mount --bind $PWD/resolv /etc/resolv.conf; \
         for i in $(seq 16); do getent ahostsv4 {name} | head -1; \
         curl -sSf -m 20 http://{v4}/hello & curl -sSf -m 20 http://[{v6}]/hello & done; wait",
        name = Outside::NAME,
        v4 = Outside::V4,
        v6 = Outside::V6,
    );
    let output = guest.cmd(world, &script).run()?.ok()?;
    ensure!(output.stdout.matches(HELLO.trim()).count() == 32, "{}", output.describe());
    ensure!(output.stdout.matches(Outside::V4).count() == 16, "{}", output.describe());

    // Connections to the guest, which speaks only after the kernel has forgotten
    // which queue they came by (TUN_FLOW_EXPIRE, 3 s).
    let script = "exec python3 -u -c \"import socket, time\n\
        s = socket.create_server(('', 80))\n\
        print('up')\n\
        all = [s.accept()[0] for n in range(16)]\n\
        time.sleep(5)\n\
        for c in all: c.sendall(b'late')\n\
        for c in all: assert c.recv(9) == b'thanks'\n\
        print('done')\"";
    let server = guest.cmd(world, script).spawn()?;
    server.stdout_until("up", LIMIT)?;
    let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18086,"guest_port":80}}"#;
    ensure!(request(&socket, add)?["return"]["id"] == 1);
    let clients = (0..16)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", 18086)))
        .collect::<std::io::Result<Vec<_>>>()?;
    for mut client in clients {
        client.set_read_timeout(Some(LIMIT))?;
        let mut word = [0; 4];
        client.read_exact(&mut word)?;
        ensure!(word == *b"late", "{word:?}");
        client.write_all(b"thanks")?;
    }
    server.stdout_until("done", LIMIT)?;
    net.stop()
}

/// Once the last connection is quiet no worker wakes up: what they have used of the
/// processor, and how often they have slept, stays as it is.
fn idle(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    // Router advertisements are a reason to wake up: without IPv6.
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    let fetch = format!("curl -sSf -m 20 http://{}/hello", Outside::V4);
    guest.cmd(world, &fetch).run()?.ok()?.stdout_is(HELLO)?;
    let tasks = format!("/proc/{}/task", net.running.pid());
    let switches = || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for task in std::fs::read_dir(&tasks)? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            all.extend(status.lines().filter(|l| l.contains("_ctxt_")).map(String::from));
        }
        Ok(all)
    };
    // The guest's kernel has a last word or two on a new link.
    let mut before = switches()?;
    for _ in 0..10 {
        if net.running.ends_within(Duration::from_secs(3))? {
            anyhow::bail!("netstack has ended");
        }
        let after = switches()?;
        if after == before {
            return net.stop();
        }
        before = after;
    }
    anyhow::bail!("netstack wakes up again and again: {before:?}")
}

fn macaddress(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let mac = "0a:0b:0c:0d:0e:0f";
    let net = start(world, &["-c", "--macaddress", mac, &guest.pid(), "tap0"])?;
    guest.cmd(world, "ip link show tap0").run()?.ok()?.stdout_has(mac)?;
    net.stop()
}

/// Several ports at once, over IPv6, to clients with their own address.
fn publish_range(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let range = format!("[{}]:18200-18202:80-82", Outside::HOST_V6);
    let net = start(world, &["-c", "-6", "-p", &range, &guest.pid(), "tap0"])?;
    let server = guest
        .cmd(
            world,
            "exec python3 -u -c \"import socket, selectors\n\
             all = selectors.DefaultSelector()\n\
             for p in 80, 81, 82: all.register(socket.create_server(('::', p), family=socket.AF_INET6), 1, p)\n\
             print('up')\n\
             for n in range(3):\n\
             \x20 key = all.select()[0][0]\n\
             \x20 c, peer = key.fileobj.accept()\n\
             \x20 c.sendall(('%d %s' % (key.data, peer[0])).encode()); c.close()\"",
        )
        .spawn()?;
    server.stdout_until("up", LIMIT)?;
    for n in 0..3 {
        let answer = world.lab.outside()?.enter(|| {
            let mut stream = std::net::TcpStream::connect((Outside::HOST_V6, 18200 + n))?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        ensure!(answer == format!("{} {}", 80 + n, Outside::V6), "{answer}");
    }
    server.wait(LIMIT)?.ok()?;
    net.stop()
}

/// The address that the outside sees is the one that was asked for.
fn outbound_addr6(world: &World<'_>) -> Result<()> {
    let other = "fd77::77";
    let command = |verb: &str| -> Result<()> {
        let status = std::process::Command::new("ip")
            .args(["-6", "addr", verb, &format!("{other}/64"), "dev", "up0"])
            .args(if verb == "add" { &["nodad"][..] } else { &[] })
            .status()?;
        ensure!(status.success(), "ip -6 addr {verb}");
        Ok(())
    };
    command("add")?;
    let result = (|| {
        for (value, sees) in [(other, vec![other]), ("up0", vec![other, Outside::HOST_V6])] {
            let guest = Guest::start(world)?;
            let options = ["-c", "-6", "--outbound-addr6", value, &guest.pid(), "tap0"];
            let net = start(world, &options)?;
            let script = format!("curl -sSf -m 20 http://[{}]/from", Outside::V6);
            let output = guest.cmd(world, &script).run()?.ok()?;
            let seen = sees.iter().any(|addr| output.stdout.starts_with(&format!("[{addr}]:")));
            ensure!(seen, "{value}: {}", output.describe());
            net.stop()?;
        }
        Ok(())
    })();
    command("del")?;
    result
}
