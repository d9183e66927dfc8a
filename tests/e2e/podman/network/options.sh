import
look='ip -o addr show tap0 | sed "s/ *valid_lft.*//;s/scope link.*//;s/ dynamic flags 100//;s/inet6 fe80:[^ ]*/inet6 fe80::/;s/fd00::[^ /]*/fd00::X/"; ip route; cat /etc/resolv.conf; cat /sys/class/net/tap0/mtu'
outside='curl -sS -m 10 http://10.77.0.2/hello'
run() { podman run --rm "$@"; }
t default run bb sh -c "$look; $outside; getent ahostsv4 outside.test | head -n 1"
t default-as-user run --user 7:8 bb sh -c "id; $outside"
t refused run bb sh -c 'nc -w 5 10.77.0.2 81; echo $?; nc -w 5 10.77.0.1 81; echo $?'
t unreachable run bb sh -c 'curl -sS -m 3 http://203.0.113.5/ >/dev/null 2>&1; echo $?'
t no-loopback run bb sh -c 'for a in 10.0.2.2 10.0.2.3 127.0.0.1; do nc -w 5 $a 8099; echo $?; done'
t name run bb curl -sS -m 10 http://outside.test/hello
t cidr run --network slirp4netns:cidr=10.99.0.0/16 bb sh -c "$look; $outside"
t cidr-bad run --network slirp4netns:cidr=10.99.0.1/16 bb true
t cidr-no-word run --network slirp4netns:cidr=x bb true
t option-unknown run --network slirp4netns:nothing=1 bb true
t mtu run --network slirp4netns:mtu=1400 bb sh -c "$look; $outside"
t mtu-bad run --network slirp4netns:mtu=x bb true
t no-ipv6 run --network slirp4netns:enable_ipv6=false bb sh -c "$look; ip -6 addr show tap0 | grep -c fd00"
t ipv6 run --network slirp4netns:enable_ipv6=true bb sh -c "$look; curl -sS -m 10 'http://[fd77::2]/hello'"
t outbound run --network slirp4netns:outbound_addr=10.77.0.1 bb sh -c "$outside"
t outbound-interface run --network slirp4netns:outbound_addr=up0 bb sh -c "$outside"
t outbound-not-here run --network slirp4netns:outbound_addr=10.78.0.9 bb sh -c "$outside"
t outbound-bad run --network slirp4netns:outbound_addr=nosuch0 bb true
t outbound6 run --network slirp4netns:enable_ipv6=true,outbound_addr6=fd77::1 bb curl -sS -m 10 'http://[fd77::2]/hello'

# A server of the host's, on its loopback alone.
mkdir www; echo from-loopback >www/page
python3 -m http.server -b 127.0.0.1 -d www 8099 >/dev/null 2>&1 &
server=$!
until_ok curl -sSf http://127.0.0.1:8099/page
t loopback-allowed run --network slirp4netns:allow_host_loopback=true bb curl -sS -m 10 http://10.0.2.2:8099/page
t loopback-denied run --network slirp4netns:allow_host_loopback=false bb sh -c 'nc -w 5 10.0.2.2 8099; echo $?'
t host-name run --network slirp4netns:allow_host_loopback=true bb sh -c 'grep -c containers.internal /etc/hosts'
kill $server
t dns-option run --dns 10.77.0.2 bb sh -c 'cat /etc/resolv.conf; getent ahostsv4 outside.test | head -n 1'
t none run --network none bb sh -c 'ip -o link | wc -l; curl -sS -m 10 http://10.77.0.2/hello'
t host run --network host bb curl -sS -m 10 http://10.77.0.2/hello
t join sh -c 'podman run -d --name peer bb sleep 100 >/dev/null; podman run --rm --network container:peer bb ip -o -4 addr show tap0; podman rm -f -t 0 peer >/dev/null'
t options-of-engine podman --network-cmd-path "$NETWORK" run --rm bb curl -sS -m 10 http://10.77.0.2/hello
t program-missing podman --network-cmd-path /nonexistent/network run --rm bb true
t version sh -c 'podman info --format "{{.Host.Slirp4NetNS.Executable}}" | sed "s=$NETWORK=PROGRAM="'
t left until_ok gone "$(basename "$NETWORK")"
