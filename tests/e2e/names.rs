//! netstack's name server, before name servers of this test's own.

use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::harness::{Test, World};

use crate::slirp::{Guest, LIMIT, start};

pub(crate) const TESTS: &[Test] = &[
    Test::new("names/failover-and-cache", failover_and_cache).lab(),
    Test::new("names/resolv-conf-changes", changes).lab(),
    Test::new("names/tcp-and-truncation", tcp).lab(),
    Test::new("names/search-list", search).lab(),
];

/// `ask(name, type, tcp)` in the guest: the whole answer.
pub(crate) const ASK: &str = r"
import socket, struct, sys
SERVER = '10.0.2.3'
def message(name, kind, n):
    q = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\0'
    return struct.pack('!6H', n, 0x100, 1, 0, 0, 0) + q + struct.pack('!2H', kind, 1)
def read(s, n):
    got = b''
    while len(got) < n:
        part = s.recv(n - len(got))
        assert part, 'the connection ended'
        got += part
    return got
def ask(name, kind=1, tcp=False, n=7):
    q = message(name, kind, n)
    if tcp:
        s = socket.create_connection((SERVER, 53), 15)
        s.sendall(struct.pack('!H', len(q)) + q)
        a = read(s, struct.unpack('!H', read(s, 2))[0])
        s.shutdown(socket.SHUT_WR)
        assert s.recv(1) == b'', 'more than an answer'
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(15)
        s.sendto(q, (SERVER, 53))
        a = s.recv(65535)
    assert a[:2] == q[:2], 'another identifier'
    return a
";

/// A file in resolv.conf's place for as long as this lives.
pub(crate) struct ResolvConf;

impl ResolvConf {
    pub(crate) fn new(world: &World<'_>, text: &str) -> Result<Self> {
        let file = world.dir().join("resolv.conf");
        std::fs::write(&file, text)?;
        let none = None::<&str>;
        mount(Some(&file), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)
            .context("cannot bind a file over /etc/resolv.conf")?;
        Ok(Self)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        umount2("/etc/resolv.conf", MntFlags::MNT_DETACH).ok();
    }
}

/// A name server on the host's loopback that gives `address` for every name, for 100
/// seconds, and counts what it is asked. It lives as long as the test program.
pub(crate) fn name_server(at: &str, address: [u8; 4]) -> Result<Arc<AtomicU32>> {
    let socket = UdpSocket::bind((at, 53)).with_context(|| format!("name server at {at}"))?;
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let mut answer = buffer[..len].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 100, 0, 4]);
            answer.extend(address);
            socket.send_to(&answer, from).ok();
        }
    });
    Ok(asked)
}

fn failover_and_cache(world: &World<'_>) -> Result<()> {
    let asked = name_server("127.0.0.31", [192, 0, 2, 31])?;
    // Nobody listens at the first.
    let _conf = ResolvConf::new(world, "nameserver 127.0.0.30\nnameserver 127.0.0.31\n")?;
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", &guest.pid(), "tap0"])?;
    let script = format!(
        "python3 -c \"{ASK}\n\
         for n in range(5): print(list(ask('a.test', n=n)[-4:]))\n\
         t = struct.unpack('!I', ask('A.Test')[-10:-6])[0]\n\
         assert 0 < t <= 100, t\n\
         print(list(ask('b.test')[-4:]))\""
    );
    let output = guest.cmd(world, &script).run()?.ok()?;
    output.stdout_is(&"[192, 0, 2, 31]\n".repeat(6))?;
    let asked = asked.load(Ordering::SeqCst);
    ensure!(asked == 2, "two names were asked for {asked} times");
    net.stop()
}

fn changes(world: &World<'_>) -> Result<()> {
    name_server("127.0.0.32", [192, 0, 2, 32])?;
    name_server("127.0.0.33", [192, 0, 2, 33])?;
    name_server("127.0.0.34", [192, 0, 2, 34])?;
    let conf = ResolvConf::new(world, "nameserver 127.0.0.32\n")?;
    let guest = Guest::start(world)?;
    let options = ["--enable-sandbox", "--enable-seccomp", "-c", &guest.pid(), "tap0"];
    let net = start(world, &options)?;
    // Until the answer changes: resolv.conf is looked at once a second.
    let until = |last: u8| {
        let script = format!(
            "timeout 20 python3 -c \"{ASK}\n\
             while ask('a.test')[-1] != {last}: socket.socket().close()\n\
             print('there')\""
        );
        guest.cmd(world, &script).run()?.ok()?.stdout_is("there")?;
        anyhow::Ok(())
    };
    until(32)?;
    // Edited where it is.
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.33\n")?;
    until(33)?;
    // Another file, by way of a link, is found at the same place.
    let target = world.dir().join("elsewhere");
    std::fs::write(&target, "nameserver 127.0.0.34\n")?;
    let link = world.dir().join("link");
    symlink("elsewhere", &link)?;
    let none = None::<&str>;
    mount(Some(&link), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)?;
    let result = until(34);
    umount2("/etc/resolv.conf", MntFlags::MNT_DETACH)?;
    result?;
    drop(conf);
    net.stop()
}

fn tcp(world: &World<'_>) -> Result<()> {
    let guest = Guest::start(world)?;
    let net = start(world, &["-c", "-6", &guest.pid(), "tap0"])?;
    // The lab's name server gives 2,000 bytes of text for big.test.
    let script = format!(
        "python3 -c \"{ASK}\n\
         cut = ask('big.test', 16)\n\
         assert cut[2] & 2 and len(cut) <= 512, 'not truncated'\n\
         whole = ask('big.test', 16, tcp=True)\n\
         assert not whole[2] & 2 and len(whole) > 2000, len(whole)\n\
         s = socket.create_connection((SERVER, 53), 15)\n\
         q = [message('big.test', 16, n) for n in range(40)]\n\
         s.sendall(b''.join(struct.pack('!H', len(m)) + m for m in q))\n\
         ids = set()\n\
         for n in range(40):\n\
         \x20 a = read(s, struct.unpack('!H', read(s, 2))[0])\n\
         \x20 assert len(a) == len(whole), len(a)\n\
         \x20 ids.add(a[:2])\n\
         assert len(ids) == 40, ids\n\
         s.sendall(b'\\0\\3abc')\n\
         try: assert s.recv(1) == b''\n\
         except ConnectionResetError: pass\n\
         SERVER = 'fd00::3'\n\
         ask('outside.test', tcp=True)\n\
         print('all')\""
    );
    guest.cmd(world, &script).run()?.ok()?.stdout_is("all")?;
    net.stop()
}

fn search(world: &World<'_>) -> Result<()> {
    if tests::lab::find("busybox").is_none() {
        return Err(tests::harness::skip("busybox is not installed"));
    }
    let _conf = ResolvConf::new(world, "nameserver 127.0.0.30\nsearch corp.example b.test\n")?;
    let guest = Guest::start(world)?;
    let net = start(world, &[&guest.pid(), "tap0"])?;
    let script = "ip link set tap0 up; printf '#!/bin/sh\\n[ \"$1\" = bound ] && env\\nexit 0\\n' >s; chmod +x s; \
        busybox udhcpc -i tap0 -n -q -f -t 5 -T 1 -O search -s $PWD/s 2>&1";
    guest
        .cmd(world, script)
        .limit(LIMIT)
        .run()?
        .ok()?
        .stdout_has("domain=corp.example")?
        .stdout_has("search=corp.example b.test")?;
    net.stop()
}
