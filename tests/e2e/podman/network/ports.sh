import
# Servers that answer at once and do not read what they are sent: they reset.
serve='nc -ll -p 80 -e echo tcp:80 & nc -ll -p 81 -e echo tcp:81 & nc -ll -p 82 -e echo tcp:82 & exec dnsmasq -k --port=53 --no-resolv --no-hosts --conf-file=/dev/null --pid-file= --user=root --host-record=inside.test,192.0.2.7'
ask() { printf 'hi\n' | busybox nc -w 5 "$@"; }
ask_udp() { # ADDRESS PORT
    # A datagram sent before the server is there is lost: that is no fault.
    python3 - "$@" <<'X'
import socket, sys
query = b'\x12\x34\x01\0\0\1\0\0\0\0\0\0\6inside\4test\0\0\1\0\1'
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
s.settimeout(0.5)
for _ in range(60):
    try:
        s.send(query)
        print(socket.inet_ntoa(s.recv(500)[-4:]))
        break
    except OSError:
        pass
else:
    sys.exit('no answer')
X
}
for handler in slirp4netns rootlesskit; do
    podman run -d --name web --network slirp4netns:port_handler=$handler \
        -p 8080:80 -p 127.0.0.1:8081-8082:81-82 -p 8053:53/udp bb sh -c "$serve" >/dev/null
    until_ok sh -c 'echo | busybox nc -w 5 127.0.0.1 8080 | grep tcp'
    until_ok sh -c 'echo | busybox nc -w 5 127.0.0.1 8081 | grep tcp'
    until_ok sh -c 'echo | busybox nc -w 5 127.0.0.1 8082 | grep tcp'
    t $handler-all ask 10.77.0.1 8080
    t $handler-loopback ask 127.0.0.1 8080
    t $handler-range-first ask 127.0.0.1 8081
    t $handler-range-last ask 127.0.0.1 8082
    t $handler-range-not-elsewhere ask 10.77.0.1 8081
    t $handler-udp ask_udp 10.77.0.1 8053
    t $handler-port sh -c 'podman port web | sort'
    t $handler-taken podman run --rm --network slirp4netns:port_handler=$handler -p 8080:80 bb true
    t $handler-restart sh -c 'podman restart -t 0 web >/dev/null'
    until_ok sh -c 'echo | busybox nc -w 5 127.0.0.1 8080 | grep tcp'
    t $handler-after-restart ask 10.77.0.1 8080
    t $handler-stop sh -c 'podman stop -t 0 web >/dev/null; echo | busybox nc -w 5 10.77.0.1 8080'
    t $handler-rm sh -c 'podman rm web >/dev/null'
    t $handler-left until_ok gone "$(basename "$NETWORK")"
done
t low-port podman run --rm --network slirp4netns:port_handler=slirp4netns -p 443:80 bb true
# The address of the client as the container sees it.
podman run -d --name seen --network slirp4netns:port_handler=slirp4netns -p 8090:90 \
    bb nc -ll -p 90 -e sh -c 'netstat -nt | grep ":90 " | sed "s/.*:90 *//;s/::ffff://;s/:[0-9]* .*//" | grep [.]' >/dev/null
until_ok sh -c 'echo | busybox nc -w 5 10.77.0.1 8090 | grep [.]'
t client-address sh -c 'echo | busybox nc -w 5 10.77.0.1 8090'
podman rm -f -t 0 seen >/dev/null
