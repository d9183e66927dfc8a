import
t keep-id podman run --rm --userns=keep-id bb sh -c 'id -u; stat -c "%u:%g" /etc/passwd /bin/curl /tmp; touch /tmp/x; stat -c "%u:%g" /tmp/x; echo n >/etc/new'
mkdir mine
echo x >mine/f
t keep-id-volume podman run --rm --userns=keep-id -v ./mine:/m bb sh -c 'stat -c "%u" /m/f | grep -cx $(id -u); echo y >/m/g'
t keep-id-own sh -c 'stat -c %U mine/g'
t keep-id-root podman run --rm --userns=keep-id --user 0 bb sh -c 'id -u; stat -c "%u:%g" /etc/passwd; echo n >/etc/new; chown 7:8 /etc/new; stat -c %u:%g /etc/new'
t auto podman run --rm --userns=auto bb sh -c 'id -u; stat -c "%u:%g" /etc/passwd; touch /x; stat -c "%u:%g" /x; wc -l </proc/self/uid_map'
t auto-size podman run --rm --userns=auto:size=2000 bb sh -c 'stat -c "%u:%g" /bin/curl; chown 1999:1999 /tmp; stat -c "%u:%g" /tmp; chown 2000 /tmp'
t nomap podman run --rm --userns=nomap bb sh -c 'stat -c "%u:%g" /bin/curl'
t uidmap podman run --rm --uidmap 0:1:1000 --gidmap 0:1:1000 bb sh -c 'stat -c "%u:%g" /bin/curl /etc/passwd; touch /y; stat -c "%u:%g" /y; ln /bin/curl /z; stat -c "%h %u:%g" /z'
t mapped-commit sh -c 'podman run --name k --userns=keep-id --user 0 bb sh -c "echo k >/k; chown 7:8 /k; chmod 2755 /tmp"; podman commit -q k kept >/dev/null; podman diff k | sort; podman rm k >/dev/null; podman run --rm kept stat -c "%n %a %u:%g" /k /tmp'
t user podman run --rm --user 7:8 bb sh -c 'touch /tmp/x; stat -c %u:%g /tmp/x; echo x >/etc/x; chmod 777 /etc'
t groups podman run --rm --user 7:8 --group-add 9 bb id
t capabilities podman run --rm --cap-drop all bb sh -c 'chown 7 /etc/passwd; cat /etc/passwd'
t setgid-dir podman run --rm bb sh -c 'mkdir /g; chown 7:8 /g; chmod 2775 /g; touch /g/f; mkdir /g/d; stat -c "%n %a %u:%g" /g/f /g/d'
t left until_ok gone "$(basename "$MOUNT")"
