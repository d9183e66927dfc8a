//! What netstack tells about itself: frames, counters, flows.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::readable;
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::servers::{ECHO_PORT, HELLO};

use crate::fixtures::blob;
use crate::slirp::{Guest, LIMIT, request, start, start_with};

pub(crate) const TESTS: &[Test] = &[
    Test::new("observe/pcap", pcap).lab(),
    Test::new("observe/pcap-ring", pcap_ring).lab(),
    Test::new("observe/metrics-and-flows", metrics).lab(),
    Test::new("observe/bad-places", bad_places),
    Test::new("observe/socket-files", socket_files).each_user(),
    Test::new("observe/descriptors", descriptors).lab(),
];

/// The frames of a capture with nanoseconds, in this machine's byte order.
fn frames(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)?;
    let word = |at: usize| -> Result<u32> {
        let word = bytes.get(at..at + 4).with_context(|| format!("cut at {at}"))?;
        Ok(u32::from_ne_bytes(word.try_into()?))
    };
    ensure!(word(0)? == 0xa1b2_3c4d && word(20)? == 1, "no capture of Ethernet");
    let mut at = 24;
    let mut all = Vec::new();
    while at < bytes.len() {
        ensure!(word(at + 4)? < 1_000_000_000, "nanoseconds");
        let len = word(at + 8)? as usize;
        all.push(bytes.get(at + 16..at + 16 + len).context("a cut frame")?.to_vec());
        at += 16 + len;
    }
    Ok(all)
}

fn pcap(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let file = world.dir().join("a.pcap");
    let path = file.display().to_string();
    let pid = guest.pid();
    let options = ["--pcap", &path, "--enable-sandbox", "--enable-seccomp", "-c", &pid, "tap0"];
    let net = start(world, &options)?;
    let script = format!("curl -sSf -m 20 http://{}/hello", Outside::V4);
    guest.cmd(world, &script).run()?.ok()?.stdout_is(HELLO)?;
    net.stop()?;
    let frames = frames(&file)?;
    let has = |what: &[u8]| frames.iter().any(|f| f.windows(what.len()).any(|w| w == what));
    ensure!(has(b"GET /hello HTTP") && has(HELLO.as_bytes()), "both ways of a connection");
    for frame in &frames {
        let kind = frame.get(12..14).context("a short frame")?;
        ensure!([[8, 0], [8, 6], [0x86, 0xdd]].iter().any(|k| k == kind), "type {kind:?}");
    }
    use std::os::unix::fs::PermissionsExt as _;
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o77 == 0, "readable by others");
    Ok(())
}

fn pcap_ring(world: &World<'_>) -> Result<()> {
    let (path, _) = blob(world, 8_000_000)?;
    let name = path.file_name().and_then(|name| name.to_str()).context("no name")?;
    let guest = Guest::start(world)?;
    let file = world.dir().join("a.pcap");
    let path = file.display().to_string();
    let pid = guest.pid();
    let options = [
        "--pcap",
        &path,
        "--pcap-size",
        "1",
        "--pcap-files",
        "3",
        "--enable-sandbox",
        "--enable-seccomp",
        "-c",
        &pid,
        "tap0",
    ];
    let net = start(world, &options)?;
    let script = format!("curl -sSf -m 20 -o /dev/null http://{}/{name}", Outside::V4);
    guest.cmd(world, &script).run()?.ok()?;
    net.stop()?;
    for name in ["a.pcap", "a.pcap.1", "a.pcap.2"] {
        let file = world.dir().join(name);
        let len = std::fs::metadata(&file)?.len();
        ensure!(len <= 1 << 20, "{name} has {len} bytes");
        ensure!(!frames(&file)?.is_empty(), "{name} has no frames");
    }
    ensure!(!world.dir().join("a.pcap.3").exists());
    Ok(())
}

fn value(text: &str, sample: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.with_context(|| format!("no {sample} in\n{text}"))?.parse().context("a value")
}

fn metrics(world: &World<'_>) -> Result<()> {
    world.write("policy.toml", "default = 'allow'\n[[rule]]\naction = 'deny'\nport = [9]\n")?;
    let policy = world.dir().join("policy.toml").display().to_string();
    let guest = Guest::start(world)?;
    let (socket, api) = (world.dir().join("metrics"), world.dir().join("api"));
    let (path, api_path) = (socket.display().to_string(), api.display().to_string());
    let pid = guest.pid();
    let options =
        ["--metrics", &path, "-a", &api_path, "--policy", &policy, "-c", "-6", &pid, "tap0"];
    let net = start(world, &options)?;
    let script = format!(
        "exec python3 -u -c \"import socket\n\
         all = [socket.create_connection(('{0}', {ECHO_PORT}), 15) for n in range(20)]\n\
         for s in all: s.sendall(b'x' * 1000)\n\
         for s in all:\n\
         \x20 n = 0\n\
         \x20 while n < 1000: n += len(s.recv(1000))\n\
         try: socket.create_connection(('{0}', 9), 15)\n\
         except OSError: print('up')\n\
         input()\"",
        Outside::V4
    );
    let client = guest.cmd(world, &script).stdin_open().spawn()?;
    client.stdout_until("up\n", LIMIT)?;
    let ask = || -> Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: netstack\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        Ok(text)
    };
    let text = ask()?;
    ensure!(value(&text, "netstack_flows{protocol=\"tcp\"}")? == 20, "{text}");
    for direction in ["from_guest", "to_guest"] {
        let bytes = value(&text, &format!("netstack_bytes_total{{direction=\"{direction}\"}}"))?;
        ensure!((20_000..200_000).contains(&bytes), "{text}");
    }
    ensure!(value(&text, "netstack_policy_decisions_total{rule=\"1\"}")? == 1, "{text}");
    ensure!(value(&text, "netstack_policy_decisions_total{rule=\"default\"}")? == 20, "{text}");
    ensure!(value(&text, "netstack_drops_total{reason=\"denied\"}")? == 1, "{text}");

    let list = request(&api, r#"{"execute":"list_flows"}"#)?;
    let flows = list["return"]["flows"].as_array().context("no flows")?;
    let tcp: Vec<_> = flows.iter().filter(|flow| flow["proto"] == "tcp").collect();
    ensure!(tcp.len() == 20, "{list}");
    for flow in tcp {
        ensure!(flow["peer"] == format!("{}:{ECHO_PORT}", Outside::V4), "{flow}");
        ensure!(flow["guest"].as_str().is_some_and(|g| g.starts_with("10.0.2.100:")), "{flow}");
        ensure!(flow["state"] == "open", "{flow}");
    }
    let skipped = request(&api, r#"{"execute":"list_flows","arguments":{"skip":15}}"#)?;
    let total = skipped["return"]["total"].as_u64().context("no total")?;
    let rest = skipped["return"]["flows"].as_array().context("no flows")?.len() as u64;
    ensure!(rest + 15 == total, "{skipped}");
    // Clients that say nothing, or go away, keep nobody waiting.
    let _silent = UnixStream::connect(&socket)?;
    UnixStream::connect(&socket)?.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    ask()?;
    drop(client);
    net.stop()?;
    ensure!(!socket.exists() && !api.exists(), "sockets are left");

    let net = start(world, &["--metrics", "127.0.0.1:19100", "-c", &pid, "tap0"])?;
    let mut stream = TcpStream::connect(("127.0.0.1", 19100))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    value(&text, "netstack_workers")?;
    ensure!(!text.contains("policy"), "{text}");
    net.stop()
}

fn bad_places(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    for (option, place, says) in [
        ("--pcap", "/nonexistent/a", "/nonexistent/a"),
        ("--metrics", "/nonexistent/a", "/nonexistent/a"),
        ("--metrics", "0.0.0.0:19100", "loopback"),
    ] {
        world
            .ours("netstack")
            .args([option, place, "-c", &guest.pid(), "tap0"])
            .limit(LIMIT)
            .run()?
            .fails_with(1, says)?;
    }
    Ok(())
}

/// The files of the sockets go, however the network ends and whatever it has given up;
/// what has taken their place stays.
fn socket_files(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let (metrics, api) = (world.dir().join("metrics"), world.dir().join("api"));
    let paths = [metrics.display().to_string(), api.display().to_string()];
    let pid = guest.pid();
    let sockets = ["--metrics", &paths[0], "-a", &paths[1]];
    let there = || [metrics.exists(), api.exists()];
    for confined in [&["--enable-sandbox", "--enable-seccomp"][..], &["--enable-seccomp"], &[]] {
        for signal in [None, Some(libc::SIGTERM), Some(libc::SIGINT), Some(libc::SIGKILL)] {
            let words: Vec<_> = [&sockets, confined, &["-c", &pid, "tap0"]].concat();
            let net = start(world, &words)?;
            ensure!(there() == [true, true], "there are no sockets");
            let Some(signal) = signal else {
                net.stop()?;
                ensure!(there() == [false, false], "{confined:?}: sockets are left");
                continue;
            };
            let process = net.running.pid();
            let children = format!("/proc/{process}/task/{process}/children");
            let reader = std::fs::read_to_string(children)?.trim().parse()?;
            let reader = tests::sys::pidfd_open(reader)?;
            net.running.signal(signal)?;
            let output = net.running.wait(LIMIT)?;
            // Nobody waits for the reader of one that was killed.
            ensure!(readable(reader.as_fd(), LIMIT)?, "the reader goes on");
            let what = output.describe();
            ensure!(there() == [false, false], "{confined:?}, {signal}: sockets are left\n{what}");
        }
    }
    let words = [&sockets[..], &["--enable-sandbox", "--enable-seccomp", "-c", &pid, "tap0"]];
    let net = start(world, &words.concat())?;
    std::fs::remove_file(&metrics)?;
    std::fs::write(&metrics, "another's")?;
    net.stop()?;
    ensure!(there() == [true, false], "another's file is gone, or ours is not");
    std::fs::remove_file(&metrics)?;

    // One that does not come up leaves none.
    let policy = world.dir().join("nonexistent").display().to_string();
    for bad in [&["--policy", &policy, "-c", &pid, "tap0"][..], &["-c", &pid, "lo"]] {
        let program = world.ours("netstack").args(sockets).arg("--enable-seccomp");
        let output = program.args(bad).limit(LIMIT).run()?;
        ensure!(output.code == 1 && there() == [false, false], "{bad:?}: {}", output.describe());
    }
    Ok(())
}

/// Descriptors that are used up, by ports and by the guest, keep nobody from asking, and
/// keep the loop from nothing but what needs one.
fn descriptors(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let socket = world.dir().join("api");
    let path = socket.to_str().context("path")?.to_owned();
    let script = "ulimit -n 80; exec \"$@\"";
    let command = world.cmd("sh").args(["-c", script, "sh"]).arg(world.lab.bin.join("netstack"));
    let net =
        start_with(command, &["-c", "-a", &path, &guest.pid(), "tap0"], Vec::new(), || Ok(()))?;
    let add = |port: u16| -> Result<serde_json::Value> {
        let host = r#""proto":"tcp","host_addr":"127.0.0.1""#;
        let ports = format!(r#""host_port":{port},"guest_port":80"#);
        request(&socket, &format!(r#"{{"execute":"add_hostfwd","arguments":{{{host},{ports}}}}}"#))
    };
    let mut added = 0;
    let refusal = loop {
        let answer = add(18300 + added)?;
        if answer.get("error").is_some() {
            break answer;
        }
        added += 1;
        ensure!(added < 80, "more ports than descriptors");
    };
    let why = refusal["error"]["desc"].as_str().unwrap_or_default();
    ensure!(added > 20 && why.contains("open files"), "{added}: {refusal}");

    // Whoever asks is answered still, one who says nothing notwithstanding; whoever
    // connects is turned away.
    let silent = UnixStream::connect(&socket)?;
    for _ in 0..3 {
        let list = request(&socket, r#"{"execute":"list_hostfwd"}"#)?;
        ensure!(
            list["entries"].as_array().is_some_and(|e| e.len() == usize::from(added)),
            "{list}"
        );
        let mut stream = TcpStream::connect(("127.0.0.1", 18300))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let end = stream.read(&mut [0]);
        ensure!(
            matches!(&end, Ok(0))
                || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "not turned away"
        );
    }
    drop(silent);
    // The guest wants sockets that there are none for.
    let script = format!(
        "exec python3 -u -c \"import socket\n\
         for port in range(20000, 20100):\n\
         \x20 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         \x20 s.sendto(b'x', ('{}', port))\n\
         print('done')\"",
        Outside::V4
    );
    guest.cmd(world, &script).run()?.ok()?.stdout_has("done")?;
    let stat = format!("/proc/{}/stat", net.running.pid());
    let ticks = || -> Result<u64> {
        let stat = std::fs::read_to_string(&stat)?;
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        Ok(number(11).context("utime")? + number(12).context("stime")?)
    };
    let before = ticks()?;
    ensure!(!net.running.ends_within(Duration::from_secs(1))?, "it has ended");
    let spent = ticks()? - before;
    ensure!(spent < 20, "spends {spent} of 100 ticks on nothing");
    // One descriptor becomes the spare one again, one is for who asks, one for the port.
    for id in 1..4 {
        let remove = format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#);
        ensure!(request(&socket, &remove)?.get("error").is_none(), "cannot remove port {id}");
    }
    ensure!(add(18399)?.get("error").is_none(), "no port although there is a descriptor");
    net.stop()
}
