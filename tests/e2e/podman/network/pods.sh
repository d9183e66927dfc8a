import
podman tag bb pause
t create sh -c 'podman pod create --infra-image pause --infra-command "sleep 1000" --name p --network slirp4netns:port_handler=slirp4netns -p 8080:80 >/dev/null'
t server sh -c "podman run -d --pod p --name s bb nc -ll -p 80 -e echo from-pod >/dev/null"
until_ok sh -c 'busybox nc -w 5 127.0.0.1 8080 </dev/null | grep from-pod'
t from-outside busybox nc -w 5 10.77.0.1 8080
t shared podman run --rm --pod p bb sh -c 'nc -w 5 127.0.0.1 80; ip -o -4 addr show tap0 | cut -d" " -f 1-7; curl -sS -m 10 http://10.77.0.2/hello'
t list podman pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'
t stop sh -c 'podman pod stop -t 0 p >/dev/null; podman pod ps --format "{{.Status}}"'
t start sh -c 'podman pod start p >/dev/null; podman pod ps --format "{{.Status}}"'
until_ok sh -c 'busybox nc -w 5 127.0.0.1 8080 </dev/null | grep from-pod'
t again busybox nc -w 5 10.77.0.1 8080
t rm sh -c 'podman pod rm -f -t 0 p >/dev/null; podman ps -aq'
t left until_ok gone "$(basename "$NETWORK")"
t left-mounts until_ok gone "$(basename "$MOUNT")"
