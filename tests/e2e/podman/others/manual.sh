# As slirp4netns(1) has it: a namespace made by hand, the program beside it.
inside() { nsenter --preserve-credentials -U -n -m -t "$(cat pid)" "$@"; }
namespace() {
    rm -f pid
    unshare --user --map-root-user --net --mount sh -c 'echo $$ >pid.new && mv pid.new pid && exec sleep 1000' &
    until_ok test -e pid
}
namespace
"$NETWORK" --configure --mtu=65520 --disable-host-loopback "$(cat pid)" tap0 >log 2>&1 &
until_ok inside ip addr show tap0
until_ok inside sh -c 'ip -o -4 addr show tap0 | grep 10.0.2.100'
t configured inside sh -c 'ip -o -4 addr show | cut -d" " -f 1-7; ip route; ip -o link show tap0 | grep -o "mtu [0-9]*"'
t page inside curl -sS -m 10 http://10.77.0.2/hello
t name inside sh -c 'mkdir e; echo nameserver 10.0.2.3 >e/resolv.conf; mount --bind e/resolv.conf /etc/resolv.conf; curl -sS -m 10 http://outside.test/hello'
t ping sh -c 'nsenter --preserve-credentials -U -n -m -t $(cat pid) ping -c 1 -W 5 -q 10.0.2.2 | grep -o ".*received"'
kill "$(cat pid)"
# The namespace is held by the program that serves it: it goes on until told.
t still-there pgrep -c -x "$(basename "$NETWORK")"
kill "$(pgrep -x "$(basename "$NETWORK")")"
t ended until_ok gone "$(basename "$NETWORK")"

# By hand inside, with the API socket and ready- and exit-descriptors.
namespace
mkfifo ready exit
exec 8<>ready 9<>exit
"$NETWORK" --ready-fd=8 --exit-fd=9 --api-socket api --enable-ipv6 "$(cat pid)" tap0 >log 2>&1 &
program=$!
t ready dd bs=1 count=1 status=none if=ready
t by-hand inside sh -c 'ip link set lo up; ip link set tap0 up; ip addr add 10.0.2.100/24 dev tap0; ip route add default via 10.0.2.2; curl -sS -m 10 http://10.77.0.2/hello'
inside busybox nc -ll -p 80 -e echo from-inside &
until_ok inside sh -c 'busybox nc -w 5 127.0.0.1 80 </dev/null'
api() { python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("api")
s.sendall(sys.argv[1].encode())
s.shutdown(socket.SHUT_WR)
print(s.makefile().read())' "$1"; }
t add api '{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}'
t published busybox nc -w 5 127.0.0.1 8080
t list sh -c "python3 -c 'import socket, json
s = socket.socket(socket.AF_UNIX)
s.connect(\"api\")
s.sendall(b\"{\\\"execute\\\": \\\"list_hostfwd\\\"}\")
s.shutdown(socket.SHUT_WR)
print(sorted(json.loads(s.makefile().read())[\"entries\"][0].items()))'"
t remove api '{"execute": "remove_hostfwd", "arguments": {"id": 1}}'
t no-longer busybox nc -w 5 127.0.0.1 8080
t unknown api '{"execute": "nothing"}'
kill "$(cat pid)"
kill $program
t left until_ok gone "$(basename "$NETWORK")"

t no-such-process "$NETWORK" -c 4194303 tap0
t no-arguments sh -c '"$NETWORK" >/dev/null 2>&1; echo $?'
t help sh -c '"$NETWORK" --help >help; for word in disable-host-loopback mtu enable-sandbox enable-seccomp cidr outbound-addr enable-ipv6 netns-type api-socket; do grep -c -m 1 -e "--$word" help; done'
