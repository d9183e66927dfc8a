rk() { # OPTION… WORDS…: its warnings bear the time
    rootlesskit --net=slirp4netns --slirp4netns-binary="$NETWORK" --copy-up=/etc "$@" 2>err
    code=$?
    grep -v '^time=' err
    return $code
}
look='ip -o -4 addr show tap0 | cut -d" " -f 1-7; ip route; cat /sys/class/net/tap0/mtu; grep -v 10.77 /etc/resolv.conf'
page='curl -sS -m 10 http://10.77.0.2/hello'
t default rk sh -c "$look; $page; curl -sS -m 10 http://outside.test/hello"
t mtu rk --mtu=1500 sh -c "$look; $page"
t cidr rk --cidr=10.99.0.0/16 sh -c "$look; $page"
t ifname rk --ifname=net7 sh -c "ip -o -4 addr show net7 | cut -d' ' -f 1-7; $page"
# Nobody has switched off the detection of duplicate addresses here: it takes a second.
t ipv6 rk --ipv6 sh -c 'i=0; until ip -6 -o addr show scope global -tentative | grep -q fd00: && ip -6 route | grep -q default; do i=$((i + 1)); [ $i -lt 200 ] || break; sleep 0.05; done; curl -sS -m 10 "http://[fd77::2]/hello"'
t sandbox rk --slirp4netns-sandbox=true --slirp4netns-seccomp=true sh -c "$page"
t no-loopback rk --disable-host-loopback sh -c 'curl -sS -m 5 http://10.0.2.2:1/ 2>/dev/null; echo $?'
t code rk sh -c 'exit 7'
for driver in builtin slirp4netns; do
    mkdir -p state
    rk --port-driver=$driver --state-dir="$PWD/state" -p 127.0.0.1:8080:80/tcp -p 0.0.0.0:8081:81/tcp --disable-host-loopback sh -c \
        'busybox nc -ll -p 80 -e echo first & busybox nc -ll -p 81 -e echo second & wait' &
    until_ok sh -c 'busybox nc -w 5 127.0.0.1 8080 </dev/null | grep first'
    until_ok sh -c 'busybox nc -w 5 127.0.0.1 8081 </dev/null | grep second'
    t $driver-loopback busybox nc -w 5 127.0.0.1 8080
    t $driver-not-elsewhere busybox nc -w 5 10.77.0.1 8080
    t $driver-all busybox nc -w 5 10.77.0.1 8081
    t $driver-list sh -c 'rootlessctl --socket state/api.sock list-ports --json | grep -o "\"parentPort\":[0-9]*" | sort'
    t $driver-add sh -c 'rootlessctl --socket state/api.sock add-ports 127.0.0.1:8082:80/tcp; busybox nc -w 5 127.0.0.1 8082'
    t $driver-remove sh -c 'rootlessctl --socket state/api.sock remove-ports 3; busybox nc -w 5 127.0.0.1 8082 >/dev/null 2>&1; echo $?'
    kill "$(cat state/child_pid)"
    wait
    rm -rf state
    t $driver-left until_ok gone "$(basename "$NETWORK")"
done
t program-missing sh -c 'rootlesskit --net=slirp4netns --slirp4netns-binary=/nonexistent true 2>&1 | grep -v ^time='
