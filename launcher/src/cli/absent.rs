//! What people know from Podman and will not find here, and what to do instead. Pure.

/// About an option, as it is written, that no subcommand has.
pub(super) fn option(word: &str) -> Option<&'static str> {
    Some(match word.split('=').next().unwrap_or(word) {
        "--device" | "--gpus" => "the host's devices are not given to containers",
        "--userns" | "--uidmap" | "--gidmap" | "--subuidname" | "--subgidname" => {
            "a container's ids are always the caller's and its subordinate ones"
        }
        "--platform" | "--arch" | "--os" | "--variant" => {
            "of several machines an image is taken for this one"
        }
        "--memory-swap" | "--memory-reservation" | "--memory-swappiness" => {
            "--memory is the only bound on memory"
        }
        "--log-driver" | "--log-opt" => {
            "a container in the background has a log, which 'coracle logs' prints"
        }
        "--pod" | "--pod-id-file" => "there are no pods",
        "--volumes-from" => "each volume is named with -v SRC:DST",
        "--health-cmd" | "--health-interval" | "--no-healthcheck" => "nobody checks health",
        "--ip" | "--ip6" | "--mac-address" | "--network-alias" => {
            "each container has a network to itself, with the same addresses in all"
        }
        "--pid" | "--cgroupns" | "--cgroups" | "--cgroup-parent" => {
            "a container has such a namespace, and a control group, of its own"
        }
        "--sysctl" => "settings of a container's kernel cannot be changed",
        "--systemd" => "a container has no systemd of its own to be set up for",
        "--group-add" => "a user has the groups that the container's /etc/group says",
        "--latest" => "containers are named",
        _ => return None,
    })
}

/// About a subcommand.
pub(super) fn command(word: &str) -> Option<&'static str> {
    Some(match word {
        "rmi" => "it is 'coracle image rm'",
        "pull" => "it is 'coracle image pull'",
        "load" | "import" => "it is 'coracle image import'",
        "save" => "it is 'coracle image save'",
        "history" => "'coracle image inspect' has it",
        "build" => "images are built by others, as buildah, and taken by 'coracle image import'",
        "push" => "'coracle image save' writes what others, as skopeo, can push",
        "tag" | "untag" => "an image has the names it was given at import, pull or commit",
        "login" | "logout" => "credentials are those of 'podman login' or 'skopeo login'",
        "container" => "commands about containers stand alone, as 'coracle ps'",
        "network" => "each container has a network to itself",
        "volume" => "volumes are directories of the host: -v SRC:DST",
        "pod" | "kube" | "play" => "there are no pods",
        "port" => "'coracle ps' and 'coracle inspect' show the ports",
        "rename" | "update" => "what a container is stays: make a new one of an image of it",
        "info" | "system" => "'coracle doctor' looks at this host",
        "version" => "it is 'coracle --version'",
        "events" => "'coracle wait' waits for an end, 'coracle ps' shows what is",
        _ => return None,
    })
}
