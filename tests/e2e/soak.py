"""Mixed traffic of a guest: flows of all kinds, opened and closed at random.

Arguments: seed, seconds, IPv4 and IPv6 address of the echo servers, a name, addresses
of the name server. Prints "up" when its own echo server listens, then one line of
counts; a fault ends it with an error.
"""

import collections
import random
import socket
import struct
import sys
import threading
import time

SEED, SECONDS = int(sys.argv[1]), float(sys.argv[2])
PEERS = sys.argv[3:5]
NAME = sys.argv[5]
DNS = sys.argv[6]
ECHO, REFUSED, SERVED = 7, 9, 8080
# Seconds after which a connection hangs; times a datagram is sent.
LIMIT, TRIES = 300, 60

counts = collections.Counter()
faults = []
stop = threading.Event()


def connect(peer, port=ECHO):
    return socket.create_connection((peer, port), LIMIT)


def exactly(s, n):
    parts = []
    while n:
        part = s.recv(min(n, 1 << 20))
        if not part:
            raise EOFError(f"{n} bytes are missing")
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def tcp_echo(r):
    """Questions and answers, both sides closed in order."""
    with connect(r.choice(PEERS)) as s:
        for _ in range(r.randint(1, 20)):
            data = r.randbytes(r.randint(1, 20000))
            s.sendall(data)
            assert exactly(s, len(data)) == data, "other bytes came back"


def tcp_bulk(r):
    """Both ways at once."""
    data = r.randbytes(1 << 20)
    times = r.randint(1, 16)
    with connect(r.choice(PEERS)) as s:
        sender = threading.Thread(target=lambda: [s.sendall(data) for _ in range(times)])
        sender.start()
        for _ in range(times):
            assert exactly(s, len(data)) == data, "other bytes came back"
        sender.join()


def tcp_half_close(r):
    data = r.randbytes(r.randint(1, 200000))
    with connect(r.choice(PEERS)) as s:
        sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
        sender.start()
        assert exactly(s, len(data)) == data, "other bytes came back"
        assert s.recv(1) == b"", "no end"
        sender.join()


def tcp_reset(r):
    """Ended with RST, with data on its way in both directions."""
    s = connect(r.choice(PEERS))
    s.sendall(r.randbytes(r.randint(0, 100000)))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def tcp_refused(r):
    try:
        connect(r.choice(PEERS), REFUSED).close()
    except ConnectionRefusedError:
        return
    raise AssertionError("somebody listens")


def tcp_idle(r):
    """Many that say nothing for some time."""
    held = [connect(r.choice(PEERS)) for _ in range(r.randint(1, 50))]
    stop.wait(r.random() * 3)
    for s in held:
        s.close()


def udp_echo(r):
    peer = r.choice(PEERS)
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        for _ in range(r.randint(1, 10)):
            data = r.randbytes(r.randint(0, 9000))
            # Datagrams may get lost; other ones must not come.
            for _ in range(TRIES):
                s.sendto(data, (peer, ECHO))
                try:
                    got = s.recv(65536)
                except TimeoutError:
                    counts["udp lost"] += 1
                    continue
                if got == data:
                    break
            else:
                raise AssertionError(f"{len(data)} bytes to {peer} do not come back")


def query(r, name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", r.randrange(65536), 0x100, 1, 0, 0, 0) + labels + struct.pack("!B2H", 0, kind, 1)


def dns_udp(r):
    asked = query(r, NAME, r.choice([1, 28]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        for _ in range(TRIES):
            s.sendto(asked, (DNS, 53))
            try:
                answer = s.recv(4096)
            except TimeoutError:
                counts["dns lost"] += 1
                continue
            assert answer[:2] == asked[:2] and answer[7], f"no answer in {answer!r}"
            return
    raise AssertionError("nothing comes back")


def dns_tcp(r):
    asked = query(r, NAME, 1)
    with connect(DNS, 53) as s:
        s.sendall(struct.pack("!H", len(asked)) + asked)
        (length,) = struct.unpack("!H", exactly(s, 2))
        answer = exactly(s, length)
        assert answer[:2] == asked[:2] and answer[7], f"no answer in {answer!r}"


def echo_server(listener):
    def serve(s):
        with s:
            try:
                while data := s.recv(65536):
                    s.sendall(data)
            except ConnectionError:
                pass

    while True:
        s, _ = listener.accept()
        threading.Thread(target=serve, args=(s,), daemon=True).start()


KINDS = [tcp_echo, tcp_bulk, tcp_half_close, tcp_reset, tcp_refused, tcp_idle, udp_echo, dns_udp, dns_tcp]


def work(n):
    r = random.Random(SEED * 1000 + n)
    while not stop.is_set():
        kind = r.choice(KINDS)
        try:
            kind(r)
        except Exception as error:
            faults.append(f"{kind.__name__}: {error!r}")
            stop.set()
        counts[kind.__name__] += 1


listener = socket.create_server(("", SERVED), backlog=100)
threading.Thread(target=echo_server, args=(listener,), daemon=True).start()
print("up", flush=True)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()
stop.wait(SECONDS)
stop.set()
for thread in threads:
    thread.join()
print(dict(sorted(counts.items())), flush=True)
# The server above is wanted until then.
sys.stdin.read()
if faults:
    sys.exit("\n".join(faults))
