import
t run sh -c 'podman run -d --name job bb sh -c "echo one; echo two >&2; trap \"echo bye; exit 3\" TERM; while :; do sleep 0.05; done" >/dev/null'
until_ok sh -c 'podman logs job 2>&1 | grep two'
t logs podman logs job
t exec podman exec job sh -c 'echo inside; id -u; curl -sS -m 10 http://10.77.0.2/hello'
t exec-code podman exec job sh -c 'exit 7'
t exec-missing podman exec job /nothing
t exec-workdir podman exec -w /etc -e X=1 -u 7:8 job sh -c 'pwd; echo $X; id'
# (Between two of its sleeps there is none.)
t top sh -c 'podman top job comm | sort -u | grep -vx sleep'
t stop sh -c 'podman stop -t 20 job >/dev/null; podman inspect -f "{{.State.Status}} {{.State.ExitCode}}" job'
t logs-after-stop podman logs job
t start sh -c 'podman start job >/dev/null; podman exec job curl -sS -m 10 http://10.77.0.2/hello'
t kill sh -c 'podman kill -s KILL job >/dev/null; podman wait job'
t rm sh -c 'podman rm job >/dev/null; podman ps -aq'
t restart-policy sh -c 'podman run -d --name r --restart on-failure:2 bb sh -c "curl -sS -m 10 http://10.77.0.2/hello; exit 4" >/dev/null; podman wait r; podman logs r; podman inspect -f "{{.RestartCount}}" r; podman rm r >/dev/null'
t not-found podman run --rm bb nothing-here
t not-executable podman run --rm bb /etc/passwd
t exit-code podman run --rm bb sh -c 'exit 42'
t signal podman run --rm bb sh -c 'kill -KILL $$'
t stdin sh -c 'echo typed | podman run --rm -i bb cat'
t create-start sh -c 'podman create --name later bb curl -sS -m 10 http://10.77.0.2/hello >/dev/null; podman start -a later; podman rm later >/dev/null'
t many sh -c 'for i in 1 2 3 4; do podman run -d bb sleep 1000 >/dev/null & done; wait; podman ps -q | wc -l; podman rm -f -t 0 -a | wc -l'
t left until_ok gone "$(basename "$NETWORK")"
t left-mounts until_ok gone "$(basename "$MOUNT")"
