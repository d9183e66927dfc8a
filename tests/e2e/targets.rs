//! `netstack` on what a peer passes to it: a socket of frames, a TAP device.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use tests::command::pipe;
use tests::harness::{Test, World};
use tests::lab::Outside;
use tests::servers::HELLO;

use crate::slirp::{Guest, LIMIT, start, start_with};

pub(crate) const TESTS: &[Test] = &[
    Test::new("slirp/bess", bess),
    Test::new("slirp/bess-ends", bess_ends),
    Test::new("slirp/tapfd", tapfd).lab(),
];

/// A peer whose packets are frames, as User Mode Linux is.
fn bess(world: &World<'_>) -> Result<()> {
    let socket = world.dir().join("bess");
    let path = socket.to_str().context("path")?.to_owned();
    let script = format!(
        "import os, socket, struct, time\n\
         while not os.path.exists('{path}'): os.sched_yield()\n\
         assert os.stat('{path}').st_mode & 0o77 == 0, 'open to others'\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
         while s.connect_ex('{path}') != 0: os.sched_yield()\n\
         s.settimeout(15)\n\
         me, us = bytes([2, 0, 0, 0, 0, 9]), None\n\
         def wait(test):\n\
         \x20 while True:\n\
         \x20   f = s.recv(70000)\n\
         \x20   if test(f): return f\n\
         ip = bytes([10, 0, 2, 100]); gw = bytes([10, 0, 2, 2])\n\
         arp = b'\\0\\1\\x08\\0\\6\\4\\0\\1' + me + ip + bytes(6) + gw\n\
         s.send(b'\\xff' * 6 + me + b'\\x08\\x06' + arp)\n\
         f = wait(lambda f: f[12:14] == b'\\x08\\x06' and f[21] == 2)\n\
         us = f[22:28]; assert f[28:32] == gw and f[:6] == me\n\
         def add(b):\n\
         \x20 n = sum(struct.unpack('!%dH' % (len(b) // 2), b)); n = (n & 65535) + (n >> 16); return 65535 - ((n & 65535) + (n >> 16))\n\
         data = bytes(range(200)) * 5\n\
         icmp = struct.pack('!BBHHH', 8, 0, 0, 7, 1) + data\n\
         icmp = icmp[:2] + struct.pack('!H', add(icmp)) + icmp[4:]\n\
         head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(icmp), 1, 0, 64, 1, 0) + ip + gw\n\
         s.send(us + me + b'\\x08\\0' + head[:10] + struct.pack('!H', add(head)) + head[12:] + icmp)\n\
         f = wait(lambda f: f[12:14] == b'\\x08\\0' and f[23] == 1)\n\
         assert f[34] == 0 and f[42:] == data, f\n\
         assert add(f[34:]) == 0, 'checksum'\n\
         print('echoed')\n\
         s.close()"
    );
    let peer = world.cmd("python3").args(["-u", "-c", &script]).spawn()?;
    let options = ["--target-type=bess", "--enable-sandbox", "--enable-seccomp", &path];
    let net = start(world, &options)?;
    peer.stdout_until("echoed\n", LIMIT)?;
    peer.wait(LIMIT)?.ok()?;
    // The network ends with its peer.
    net.running.wait(LIMIT)?.ok()?;
    ensure!(!socket.exists(), "the socket is still there");
    Ok(())
}

/// Without a peer the exit-fd ends it.
fn bess_ends(world: &World<'_>) -> Result<()> {
    let socket = world.dir().join("bess");
    let path = socket.to_str().context("path")?;
    let (exit_theirs, exit) = pipe()?;
    let running = world
        .ours("netstack")
        .args(["-e", &exit_theirs.as_raw_fd().to_string(), "--target-type=bess", path])
        .inherit(exit_theirs)
        .spawn()?;
    drop(exit);
    running.wait(LIMIT)?.ok()?;
    ensure!(!socket.exists(), "the socket is still there");
    Ok(())
}

/// A device that a peer has made in the namespace and passes on.
fn tapfd(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let tap = guest.tap("tap3", 0)?;
    let number = tap.as_raw_fd().to_string();
    let net =
        start_with(world.ours("netstack"), &["--netns-type=tapfd", &number], vec![tap], || Ok(()))?;
    let script = format!(
        "ip link set tap3 up && ip addr add 10.0.2.100/24 dev tap3 && \
         ip route add default via 10.0.2.2 && curl -sSf -m 20 http://{}/hello",
        Outside::V4
    );
    guest.cmd(world, &script).run()?.ok()?.stdout_is(HELLO)?;
    net.stop()
}
