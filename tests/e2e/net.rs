//! The container's network, against servers outside.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::servers::{ECHO_PORT, HELLO, REFUSED_PORT};

use crate::fixtures::{blob, sha256};

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const TESTS: &[Test] = &[
    Test::new("net/address", address).each_user().lab(),
    Test::new("net/bulk-v4", |world| bulk(world, Outside::V4)).lab().seconds(120),
    Test::new("net/bulk-v6", |world| bulk(world, Outside::V6)).lab().seconds(120),
    Test::new("net/connections-v4", |world| connections(world, Outside::V4)).lab().seconds(90),
    Test::new("net/connections-v6", |world| connections(world, Outside::V6)).lab().seconds(90),
    Test::new("net/refused-at-once", refused).lab(),
    Test::new("net/unreachable-at-once", unreachable).lab(),
    Test::new("net/udp", udp).lab(),
    Test::new("net/udp-bursts", udp_bursts).lab(),
    Test::new("net/names", names).each_user().lab(),
    Test::new("net/ping", ping).lab(),
    Test::new("net/host-loopback-is-out-of-reach", host_loopback).lab(),
    Test::new("net/publish", publish).each_user(),
    Test::new("net/publish-any", publish_any).each_user(),
    Test::new("net/publish-v6", publish_v6).lab(),
    Test::new("net/publish-udp", publish_udp),
    Test::new("net/none", none),
    Test::new("net/host", host).lab(),
];

fn python(world: &World<'_>, options: &[&str], script: &str) -> tests::command::Cmd {
    world
        .coracle(&["run", "--rm"])
        .args(options)
        .args(["--", "python3", "-u", "-c", script])
        .limit(Duration::from_secs(80))
}

fn address(world: &World<'_>) -> Result<()> {
    let script =
        "ip -brief addr show; ip -brief link show lo; ip route; ip -6 route; cat /etc/resolv.conf";
    let output = world.coracle(&["run", "--rm", "--", "sh", "-c", script]).run()?.ok()?;
    output
        .stdout_has("10.0.2.100/24")?
        .stdout_has("fd00::100/64")?
        .stdout_has("127.0.0.1/8")?
        .stdout_has("default via 10.0.2.2")?
        .stdout_has("default via fd00::2")?
        .stdout_has("nameserver 10.0.2.3")?;
    Ok(())
}

fn bulk(world: &World<'_>, server: &str) -> Result<()> {
    let (path, sum) = blob(world, 200_000_000)?;
    let name = path.file_name().and_then(|name| name.to_str()).context("no name")?;
    let server = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
    let script = format!(
        "set -e; curl -sSf -o /root/blob http://{server}/{name}; sha256sum </root/blob; \
         curl -sSf -T /root/blob http://{server}/upload"
    );
    let output = world
        .coracle(&["run", "--rm", "--", "sh", "-c", &script])
        .limit(Duration::from_secs(110))
        .run()?
        .ok()?;
    let upload = world.lab.outside()?.www.join("upload");
    let uploaded = sha256(&upload)?;
    std::fs::remove_file(upload)?;
    ensure!(output.stdout.starts_with(&sum), "downloaded: {} not {sum}", output.stdout);
    ensure!(uploaded == sum, "uploaded: {uploaded} not {sum}");
    Ok(())
}

fn connections(world: &World<'_>, server: &str) -> Result<()> {
    let script = format!(
        "import socket\n\
         def talk(s, n):\n\
         \x20 s.sendall(b'%07d\\n' % n)\n\
         def hear(s, n):\n\
         \x20 got = b''\n\
         \x20 while len(got) < 8:\n\
         \x20   part = s.recv(8 - len(got))\n\
         \x20   assert part, 'closed'\n\
         \x20   got += part\n\
         \x20 assert got == b'%07d\\n' % n, got\n\
         for n in range(1000):\n\
         \x20 s = socket.create_connection(('{server}', {ECHO_PORT}), 20)\n\
         \x20 talk(s, n); hear(s, n); s.close()\n\
         print('1000 in turn')\n\
         all = [socket.create_connection(('{server}', {ECHO_PORT}), 20) for n in range(200)]\n\
         for n, s in enumerate(all): talk(s, n)\n\
         for n, s in enumerate(all): hear(s, n)\n\
         for s in all: s.close()\n\
         print('200 at once')\n"
    );
    python(world, &[], &script).run()?.ok()?.stdout_is("1000 in turn\n200 at once")?;
    Ok(())
}

/// Python that connects, and prints the name of the error and whether it came
/// within half a second.
fn failing_connect(address: &str, port: u16) -> String {
    format!(
        "import errno, socket, time\n\
         start = time.monotonic()\n\
         try:\n\
         \x20 socket.create_connection(('{address}', {port}), 10)\n\
         \x20 print('connected')\n\
         except TimeoutError:\n\
         \x20 print('timed out')\n\
         except OSError as e:\n\
         \x20 print(errno.errorcode[e.errno])\n\
         took = time.monotonic() - start\n\
         print('at once' if took < 0.5 else took)\n"
    )
}

fn refused(world: &World<'_>) -> Result<()> {
    for server in [Outside::V4, Outside::V6] {
        let script = failing_connect(server, REFUSED_PORT);
        python(world, &[], &script).run()?.ok()?.stdout_is("ECONNREFUSED\nat once")?;
    }
    Ok(())
}

fn unreachable(world: &World<'_>) -> Result<()> {
    for address in [Outside::UNREACHABLE_V4, Outside::UNREACHABLE_V6] {
        let script = failing_connect(address, 80);
        let output = python(world, &[], &script).run()?.ok()?;
        ensure!(
            ["EHOSTUNREACH\nat once", "ENETUNREACH\nat once"].contains(&output.stdout.trim()),
            "connecting to {address}\n{}",
            output.describe()
        );
    }
    Ok(())
}

fn udp(world: &World<'_>) -> Result<()> {
    for (family, server) in [("AF_INET", Outside::V4), ("AF_INET6", Outside::V6)] {
        let script = format!(
            "import os, socket\n\
             s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
             s.settimeout(10)\n\
             for size in 1, 100, 1400, 9000, 40000:\n\
             \x20 data = os.urandom(size)\n\
             \x20 s.sendto(data, ('{server}', {ECHO_PORT}))\n\
             \x20 got, where = s.recvfrom(65535)\n\
             \x20 assert got == data, (size, len(got))\n\
             \x20 assert where[:2] == ('{server}', {ECHO_PORT}), where\n\
             print('echoed')\n"
        );
        python(world, &[], &script).run()?.ok()?.stdout_is("echoed")?;
    }
    Ok(())
}

/// Datagrams that are passed on together come apart where they were. Their order is
/// not asked for: while a neighbour's address is asked for, and where a sender changes
/// its processor, the kernel's own devices do not keep it.
fn udp_bursts(world: &World<'_>) -> Result<()> {
    for (family, server) in [("AF_INET", Outside::V4), ("AF_INET6", Outside::V6)] {
        let script = format!(
            "import os, socket\n\
             s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
             s.settimeout(10)\n\
             s.connect(('{server}', {ECHO_PORT}))\n\
             bursts = [[1200] * 40, [1200] * 20 + [300] + [1200] * 10, [1] * 40,\n\
             \x20 list(range(1, 41)), [5, 0, 0, 5], [9000] * 10]\n\
             for sizes in bursts * 5:\n\
             \x20 sent = [os.urandom(size) for size in sizes]\n\
             \x20 for data in sent: s.send(data)\n\
             \x20 got = [s.recv(65535) for data in sent]\n\
             \x20 assert sorted(got) == sorted(sent), (sizes, [len(data) for data in got])\n\
             UDP_SEGMENT = 103\n\
             s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 700)\n\
             data = os.urandom(700 * 30 + 123)\n\
             s.send(data)\n\
             got = [s.recv(65535) for n in range(31)]\n\
             sent = [data[at:at + 700] for at in range(0, len(data), 700)]\n\
             assert sorted(got) == sorted(sent), [len(data) for data in got]\n\
             print('all are back')\n"
        );
        python(world, &[], &script).run()?.ok()?.stdout_is("all are back")?;
    }
    Ok(())
}

fn names(world: &World<'_>) -> Result<()> {
    let script = format!(
        "getent ahostsv4 {0} | head -1; getent ahostsv6 {0} | head -1; getent hosts {0} >/dev/null && echo hosts; \
         getent hosts no-such-name.test; echo $?",
        Outside::NAME
    );
    let output = world.coracle(&["run", "--rm", "--", "sh", "-c", &script]).run()?.ok()?;
    let lines: Vec<_> = output.stdout.lines().collect();
    ensure!(
        lines.len() == 4
            && lines[0].starts_with(Outside::V4)
            && lines[1].starts_with(Outside::V6)
            && lines[2] == "hosts"
            && lines[3] == "2",
        "{}",
        output.describe()
    );
    let words = ["run", "--rm", "--", "curl", "-sSf"];
    let url = format!("http://{}/hello", Outside::NAME);
    world.coracle(&words).arg(url).run()?.ok()?.stdout_is(HELLO)?;
    Ok(())
}

fn ping(world: &World<'_>) -> Result<()> {
    let script = format!(
        "for a in 10.0.2.2 {} fd00::2 {}; do ping -c 2 -i 0.2 -W 5 $a >/tmp/out 2>&1 && echo $a || cat /tmp/out; done",
        Outside::V4,
        Outside::V6
    );
    let want = format!("10.0.2.2\n{}\nfd00::2\n{}", Outside::V4, Outside::V6);
    world.coracle(&["run", "--rm", "--", "sh", "-c", &script]).run()?.ok()?.stdout_is(&want)?;
    Ok(())
}

fn host_loopback(world: &World<'_>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for address in ["10.0.2.2", "127.0.0.1", "fd00::2", "10.0.2.3"] {
        let script = failing_connect(address, port);
        let output = python(world, &[], &script).run()?.ok()?;
        let want = if address == "127.0.0.1" { "ECONNREFUSED" } else { "ENETUNREACH" };
        ensure!(
            output.stdout.trim() == format!("{want}\nat once"),
            "connecting to {address}, expected {want}\n{}",
            output.describe()
        );
    }
    Ok(())
}

const WEB: &str = "\
import http.server, socket
class Server(http.server.HTTPServer):
  address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200); self.end_headers(); self.wfile.write(b'from inside')
s = Server(('::', 80), Handler)
print('up')
s.serve_forever()
";

fn publish(world: &World<'_>) -> Result<()> {
    let running = python(world, &["-p", "127.0.0.1:18080:80"], WEB).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    for _ in 0..20 {
        world
            .cmd("curl")
            .args(["-sSf", "http://127.0.0.1:18080/"])
            .run()?
            .ok()?
            .stdout_is("from inside")?;
    }
    // Only the address that was asked for listens.
    let listening = listening_on(18080)?;
    ensure!(listening == ["0100007F"], "published on more than 127.0.0.1: {listening:?}");
    running.signal(libc_sigterm())?;
    running.wait(LIMIT)?.code_is(143)?;
    ensure!(TcpStream::connect("127.0.0.1:18080").is_err(), "still listening");
    Ok(())
}

/// Without a port of the host's any free one is taken, and told; ranges go side by side.
fn publish_any(world: &World<'_>) -> Result<()> {
    let options = ["--name", "any", "-p", "127.0.0.1::80", "-p", "127.0.0.1:18096-18097:79-80"];
    let running = python(world, &options, WEB).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    let inspected = world.coracle(&["inspect", "any"]).run()?.ok()?;
    let all: serde_json::Value = serde_json::from_str(&inspected.stdout)?;
    let bound = &all[0]["NetworkSettings"]["Ports"]["80/tcp"];
    let ports: Vec<_> = bound.as_array().context("no ports")?.iter().collect();
    let ports: Vec<_> = ports.iter().filter_map(|port| port["HostPort"].as_str()).collect();
    ensure!(ports.len() == 2 && ports.contains(&"18097"), "{ports:?} of {all:#}");
    for port in &ports {
        let url = format!("http://127.0.0.1:{port}/");
        world.cmd("curl").args(["-sSf", &url]).run()?.ok()?.stdout_is("from inside")?;
        ensure!(listening_on(port.parse()?)? == ["0100007F"], "{port} listens elsewhere, too");
    }
    running.signal(libc_sigterm())?;
    running.wait(LIMIT)?.code_is(143)?;
    Ok(())
}

/// The addresses on which a TCP port listens here, as the kernel writes them
/// (proc_net_tcp(5): hexadecimal, in words of the machine's byte order).
fn listening_on(port: u16) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let table = std::fs::read_to_string(table)?;
        found.extend(table.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (address, listens) = fields.next()?.split_once(':')?;
            let state = fields.nth(1)?;
            (state == "0A" && u16::from_str_radix(listens, 16) == Ok(port))
                .then(|| address.to_owned())
        }));
    }
    Ok(found)
}

fn libc_sigterm() -> i32 {
    nix::sys::signal::Signal::SIGTERM as i32
}

fn publish_v6(world: &World<'_>) -> Result<()> {
    let running = python(world, &["-p", "[::1]:18081:80", "-p", "18082:80"], WEB).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    let curl = |url: &str| world.cmd("curl").args(["-sSf", "-m", "10", url]).run();
    curl("http://[::1]:18081/")?.ok()?.stdout_is("from inside")?;
    curl("http://127.0.0.1:18082/")?.ok()?.stdout_is("from inside")?;
    // From outside the host, to a port published on all addresses.
    let url = format!("http://{}:18082/", Outside::HOST_V4);
    let output = world.lab.outside()?.enter(|| curl(&url))?;
    output.ok()?.stdout_is("from inside")?;
    running.signal(libc_sigterm())?;
    running.wait(LIMIT)?.code_is(143)?;
    Ok(())
}

fn publish_udp(world: &World<'_>) -> Result<()> {
    let script = "\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5353))
print('up')
while True:
  data, where = s.recvfrom(65535)
  s.sendto(data.upper(), where)
";
    let running = python(world, &["-p", "127.0.0.1:18053:5353/udp"], script).spawn()?;
    running.stdout_until("up\n", LIMIT)?;
    for text in ["first", "second"] {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect("127.0.0.1:18053")?;
        socket.send(text.as_bytes())?;
        let mut buffer = [0; 100];
        let count = socket.recv(&mut buffer).context("no answer from inside")?;
        ensure!(buffer[..count] == *text.to_uppercase().as_bytes());
    }
    running.signal(libc_sigterm())?;
    running.wait(LIMIT)?.code_is(143)?;
    Ok(())
}

fn none(world: &World<'_>) -> Result<()> {
    let script = "ls /sys/class/net 2>/dev/null || true; ip -brief link | wc -l; \
                  ip -brief addr show lo | grep -c 127.0.0.1";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    let output = world.coracle(&words).run()?.ok()?;
    ensure!(output.stdout.trim().ends_with("1\n1"), "{}", output.describe());
    Ok(())
}

fn host(world: &World<'_>) -> Result<()> {
    let script = format!("ip -brief addr show up0; curl -sSf http://{}/hello", Outside::NAME);
    let words = ["run", "--rm", "--network", "host", "--", "sh", "-c", &script];
    world.coracle(&words).run()?.ok()?.stdout_has(Outside::HOST_V4)?.stdout_has(HELLO.trim())?;
    Ok(())
}
