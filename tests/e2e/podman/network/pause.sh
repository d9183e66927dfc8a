# In a control group that is the user's: without one Podman refuses to pause.
import
run='while :; do echo tick; sleep 0.05; done'
lines() { podman logs "$1" | wc -l; }
more() { [ "$(lines "$1")" -gt "$2" ]; }
frozen() { cat $(find /sys/fs/cgroup -name cgroup.events) | grep -c 'frozen 1'; }
podman run -d --name job bb sh -c "$run" >/dev/null
until_ok more job 0
t pause podman pause job
t paused podman inspect -f '{{.State.Status}}' job
t frozen frozen
before=$(lines job)
t silent more job "$before"
t exec-paused sh -c 'podman exec job true 2>&1 | grep -o "can only create exec sessions on running containers"'
t pause-twice sh -c 'podman pause job 2>&1 | grep -o "is not running"'
t unpause podman unpause job
t running podman inspect -f '{{.State.Status}}' job
t thawed frozen
until_ok more job "$before"
t exec podman exec job curl -sS -m 10 http://10.77.0.2/hello
t unpause-running sh -c 'podman unpause job 2>&1 | grep -o "is not paused"'
t mount-lives podman exec job sh -c 'echo x >/x && cat /x'
t pause-again podman pause job
t kill-paused sh -c 'podman kill job >/dev/null; podman wait job'
t rm sh -c 'podman rm -f -t 0 job >/dev/null; podman ps -aq'
podman tag bb pause
podman pod create --infra-image pause --infra-command 'sleep 1000' --name p >/dev/null
podman run -d --pod p --name s bb sh -c "$run" >/dev/null
t pod-pause sh -c 'podman pod pause p >/dev/null; podman pod ps --format "{{.Status}}"; podman inspect -f "{{.State.Status}}" s'
t pod-unpause sh -c 'podman pod unpause p >/dev/null; podman pod ps --format "{{.Status}}"; podman inspect -f "{{.State.Status}}" s'
t pod-exec podman exec s curl -sS -m 10 http://10.77.0.2/hello
t pod-rm sh -c 'podman pod rm -f -t 0 p >/dev/null; podman ps -aq'
t left until_ok gone "$(basename "$NETWORK")"
t left-mounts until_ok gone "$(basename "$MOUNT")"
