//! What routers of the host's path say, told to the guest.

use anyhow::{Result, ensure};
use tests::harness::{Test, World};
use tests::lab::Outside;

use crate::slirp::{Guest, start};

pub(crate) const TESTS: &[Test] =
    &[Test::new("path/traceroute", traceroute).lab(), Test::new("path/too-big", too_big).lab()];

const FAR_V4: &str = "198.51.100.9";
const FAR_V6: &str = "2001:db8:51::9";

fn ip(words: &str) -> Result<()> {
    let status = std::process::Command::new("ip").args(words.split(' ')).status()?;
    ensure!(status.success(), "ip {words}");
    Ok(())
}

fn routes(verb: &str, v4: &str, v6: &str) -> Result<()> {
    ip(&format!("route {verb} 198.51.100.0/24 {v4}"))?;
    ip(&format!("route {verb} 2001:db8:51::/64 {v6}"))
}

/// Makes the outside a router with a way on that `set` makes, for as long as `work`
/// takes. The way to it is the host's own.
fn beyond(
    world: &World<'_>,
    set: impl Fn(&str) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let forwarding = |value: &str| {
        world.lab.outside()?.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", value)?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", value)?;
            Ok(())
        })
    };
    let there = (format!("via {}", Outside::V4), format!("via {}", Outside::V6));
    forwarding("1")?;
    routes("add", &there.0, &there.1)?;
    world.lab.outside()?.enter(|| set("add"))?;
    let result = work();
    world.lab.outside()?.enter(|| set("del"))?;
    routes("del", &there.0, &there.1)?;
    forwarding("0")?;
    result
}

/// The guest sees its gateway, then the host's own path.
fn traceroute(world: &World<'_>) -> Result<()> {
    // To and fro: a packet goes round until its time is over.
    let (v4, v6) = (format!("via {}", Outside::HOST_V4), format!("via {}", Outside::HOST_V6));
    beyond(
        world,
        |verb| routes(verb, &v4, &v6),
        || {
            let guest = Guest::start(world)?;
            let net = start(world, &["-c", "-6", &guest.pid(), "tap0"])?;
            for (far, gateway, hop) in
                [(FAR_V4, "10.0.2.2", Outside::V4), (FAR_V6, "fd00::2", Outside::V6)]
            {
                for (ttl, at) in [(1, gateway), (2, hop)] {
                    let ping =
                        guest.cmd(world, &format!("ping -n -c 1 -W 10 -t {ttl} {far}")).run()?;
                    ping.stdout_has(&format!("From {at} "))?;
                }
            }
            // As traceroute does: a datagram, and the error queue of its socket.
            let script = "python3 -c \"import socket, struct, select\n\
            for ttl in 1, 2:\n\
            \x20 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            \x20 s.setsockopt(0, 11, 1); s.setsockopt(0, 2, ttl)\n\
            \x20 s.sendto(b'trace', ('198.51.100.9', 33434 + ttl))\n\
            \x20 p = select.poll(); p.register(s, 0); assert p.poll(15000), 'silence'\n\
            \x20 data, anc, flags, to = s.recvmsg(100, 1000, socket.MSG_ERRQUEUE)\n\
            \x20 err = [c for c in anc if c[:2] == (0, 11)][0][2]\n\
            \x20 print(err[5], socket.inet_ntoa(err[20:24]), to[1])\"";
            guest
                .cmd(world, script)
                .run()?
                .ok()?
                .stdout_is(&format!("11 10.0.2.2 33435\n11 {} 33436", Outside::V4))?;
            net.stop()
        },
    )
}

/// A router has a narrower link: the guest is told how wide, and what it sends to there
/// is cut to measure.
fn too_big(world: &World<'_>) -> Result<()> {
    let narrow = |verb: &str| -> Result<()> {
        if verb == "del" {
            // And its routes with it.
            return ip("link del narrow");
        }
        ip("link add narrow type veth peer name narrow2")?;
        ip("link set narrow mtu 1300 up")?;
        ip("link set narrow2 mtu 1300 up")?;
        routes(verb, "dev narrow", "dev narrow")
    };
    beyond(world, narrow, || {
        let guest = Guest::start(world)?;
        let net = start(world, &["-c", "-6", &guest.pid(), "tap0"])?;
        let script = "python3 -c \"import socket, struct, select, errno\n\
            for family, level, opt, discover, to in (2, 0, 11, 10, '198.51.100.9'), (10, 41, 25, 23, '2001:db8:51::9'):\n\
            \x20 s = socket.socket(family, socket.SOCK_DGRAM)\n\
            \x20 s.setsockopt(level, opt, 1); s.setsockopt(level, discover, 2)\n\
            \x20 s.sendto(b'x' * 1400, (to, 9))\n\
            \x20 p = select.poll(); p.register(s, 0); assert p.poll(15000), 'silence'\n\
            \x20 data, anc, flags, peer = s.recvmsg(2000, 1000, socket.MSG_ERRQUEUE)\n\
            \x20 err = [c for c in anc if c[:2] == (level, opt)][0][2]\n\
            \x20 number, origin, kind, code, pad, info, data = struct.unpack('IBBBBII', err[:16])\n\
            \x20 print(errno.errorcode[number], kind, code, info, peer[1])\n\
            \x20 try: s.sendto(b'x' * 1400, (to, 9)); print('sent')\n\
            \x20 except OSError as e: print(errno.errorcode[e.errno])\"";
        guest
            .cmd(world, script)
            .run()?
            .ok()?
            .stdout_is("EMSGSIZE 3 4 1300 9\nEMSGSIZE\nEMSGSIZE 2 0 1300 9\nEMSGSIZE")?;
        net.stop()
    })
}
