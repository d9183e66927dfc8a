import
t create podman network create --subnet 10.90.7.0/24 inner
t list podman network ls --format '{{.Name}} {{.Driver}}'
t server sh -c 'podman run -d --name web --network inner -p 8080:80 bb nc -ll -p 80 -e echo from-web >/dev/null'
t by-name podman run --rm --network inner bb sh -c 'i=0; until nc -w 5 web 80 2>/dev/null; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done'
t address podman run --rm --network inner bb sh -c 'ip -o -4 addr show eth0 | grep -c 10.90.7.; ip route | grep default'
t outside podman run --rm --network inner bb curl -sS -m 10 http://10.77.0.2/hello
t outside-by-name podman run --rm --network inner bb curl -sS -m 10 http://outside.test/hello
t published busybox nc -w 5 10.77.0.1 8080
t inspect podman inspect -f '{{range $name, $net := .NetworkSettings.Networks}}{{$name}} {{$net.Gateway}} {{$net.IPPrefixLen}}{{end}}' web
t reload sh -c 'podman network reload web >/dev/null'
t published-after-reload busybox nc -w 5 10.77.0.1 8080
t by-name-after-reload podman run --rm --network inner bb nc -w 5 web 80
t restart sh -c 'podman restart -t 0 web >/dev/null'
until_ok sh -c 'busybox nc -w 5 127.0.0.1 8080 </dev/null | grep from-web'
t published-after-restart busybox nc -w 5 10.77.0.1 8080
t exec podman exec web curl -sS -m 10 http://10.77.0.2/hello
t two-networks sh -c 'podman network create other >/dev/null; podman network connect other web; podman exec web sh -c "ip -o link | grep -c eth"; podman network disconnect other web; podman exec web sh -c "ip -o link | grep -c eth"'
t rm sh -c 'podman rm -f -t 0 web >/dev/null 2>&1; podman network rm inner other; podman network ls -q'
t left until_ok gone "$(basename "$NETWORK")"
