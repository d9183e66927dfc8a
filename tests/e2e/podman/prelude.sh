# What every case begins with. $NETWORK and $MOUNT are the programs under test,
# $BACKEND is who makes bridge networks, $ROOTFS a root filesystem as a tar archive.
#
# A case is a list of steps: `t NAME WORDS…` runs a command and prints its output
# (both streams) and exit code under its name. What differs from run to run (ids,
# times) must not be printed. No container is named after what an id may begin with.
set -u
mkdir -p ~/.config/containers
cat >~/.config/containers/containers.conf <<X
[engine]
network_cmd_path = "$NETWORK"
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[containers]
log_driver = "k8s-file"
[network]
network_backend = "$BACKEND"
X
store=
storage_conf() { # MOUNT-PROGRAM OPTION…
    {
        printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\n' ~/store"$store"
        printf '[storage.options.overlay]\nmount_program = "%s"\n' "$1"
        shift
        for option; do printf '%s\n' "$option"; done
    } >~/.config/containers/storage.conf
}
storage_conf "$MOUNT"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >~/.config/containers/policy.json
# Buildah, also the one in `podman build`, looks for slirp4netns on the search path, whatever
# network_cmd_path says. That it was called that way is noted.
mkdir ~/.programs
printf '#!/bin/sh\necho called >>%s\nexec %s "$@"\n' ~/.by-path "$NETWORK" >~/.programs/slirp4netns
chmod +x ~/.programs/slirp4netns
PATH=~/.programs:$PATH

t() { # NAME WORDS…
    printf '== %s\n' "$1"
    shift
    # The streams one after the other: how they interleave differs from run to run.
    "$@" </dev/null >~/.stdout 2>~/.stderr
    code=$?
    # How long curl has tried.
    sed -E 's/ after [0-9]+ m(s|illiseconds)//' ~/.stdout ~/.stderr
    printf '[%d]\n' $code
}
# Tries until it succeeds: what a server started a moment ago is waited for with.
until_ok() { # WORDS…
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { echo "never came true: $*"; return 1; }
        sleep 0.1
    done
}
gone() { # PROGRAM: no process of that name is left
    for pid in $(pgrep -x "$1"); do
        [ "$(cut -d' ' -f3 /proc/"$pid"/stat 2>/dev/null)" = Z ] || return 1
    done
}
# A tree: kind and mode, owner, size of what is no directory, links' targets, contents.
tree() { # DIR
    (
        cd "$1" || exit
        find . ! -type d -printf '%M %U:%G %s %n %p -> %l\n' -o -printf '%M %U:%G %p\n' | sort -k3
        find . -type f -exec sha256sum {} + | sort -k2
    )
}
import() { podman import -q "$ROOTFS" bb >/dev/null; }
