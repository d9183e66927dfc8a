//! The cases: what each needs, where the peers are known to differ, and what must be
//! so in any event.

use tests::harness::Test;

use super::Case;

const BUILDAH: (&str, &str) = ("buildah", "buildah");
const REGISTRY: (&str, &str) = ("docker-registry", "docker-registry");
const IPTABLES: (&str, &str) = ("iptables", "iptables");

const OPTIONS: Case = Case::new(include_str!("network/options.sh"))
    .differs(&[(
        "cidr-bad",
        "CIDR needs to be a network address",
        "has bits set beyond the prefix",
    )])
    .holds(&[
        ("default", "10.0.2.100/24"),
        ("default", "hello from outside"),
        ("name", "hello from outside"),
        ("cidr", "10.99.0.100/16"),
        ("mtu", "1400"),
        ("refused", "Connection refused"),
        ("no-loopback", "10.0.2.2): Network is unreachable"),
        ("ipv6", "hello from outside"),
        ("outbound", "hello from outside"),
        ("outbound6", "hello from outside"),
        ("loopback-allowed", "from-loopback"),
        ("loopback-denied", "Network is unreachable"),
        ("left", "[0]"),
    ]);

const PORTS: Case = Case::new(include_str!("network/ports.sh"))
    .differs(&[
        ("slirp4netns-taken", "slirp_add_hostfwd failed", "Address already in use"),
        ("low-port", "slirp_add_hostfwd failed", "Permission denied"),
    ])
    .holds(&[
        ("slirp4netns-all", "tcp:80\n[0]"),
        ("slirp4netns-range-last", "tcp:82\n[0]"),
        ("slirp4netns-range-not-elsewhere", "Connection refused"),
        ("slirp4netns-udp", "192.0.2.7\n[0]"),
        ("slirp4netns-after-restart", "tcp:80"),
        ("slirp4netns-stop", "Connection refused"),
        ("slirp4netns-left", "[0]"),
        ("rootlesskit-udp", "192.0.2.7\n[0]"),
        ("rootlesskit-left", "[0]"),
        ("low-port", "[126]"),
        ("client-address", "10.77.0.1\n[0]"),
    ]);

const PODS: Case = Case::new(include_str!("network/pods.sh")).holds(&[
    ("from-outside", "from-pod"),
    ("shared", "hello from outside"),
    ("again", "from-pod"),
    ("left", "[0]"),
    ("left-mounts", "[0]"),
]);

const BRIDGE_HOLDS: &[(&str, &str)] = &[
    ("by-name", "from-web"),
    ("outside", "hello from outside"),
    ("outside-by-name", "hello from outside"),
    ("published", "from-web"),
    ("published-after-reload", "from-web"),
    ("by-name-after-reload", "from-web"),
    ("published-after-restart", "from-web"),
    ("exec", "hello from outside"),
    ("left", "[0]"),
];
const BRIDGE_CNI: Case = Case::new(include_str!("network/bridge.sh"))
    .needs(&[
        ("/usr/lib/cni/bridge", "containernetworking-plugins"),
        ("/usr/lib/cni/dnsname", "golang-github-containernetworking-plugin-dnsname"),
        IPTABLES,
    ])
    .holds(BRIDGE_HOLDS);
const BRIDGE_NETAVARK: Case = Case::new(include_str!("network/bridge.sh"))
    .needs(&[
        ("/usr/lib/podman/netavark", "netavark"),
        ("/usr/lib/podman/aardvark-dns", "aardvark-dns"),
        IPTABLES,
    ])
    .backend("netavark")
    .holds(BRIDGE_HOLDS);

const LIFECYCLE: Case = Case::new(include_str!("network/lifecycle.sh")).holds(&[
    ("exec", "hello from outside"),
    ("stop", "exited 3"),
    ("restart-policy", "4\nhello from outside\nhello from outside\nhello from outside\n2"),
    ("exit-code", "[42]"),
    ("many", "4\n4\n[0]"),
    ("left", "[0]"),
    ("left-mounts", "[0]"),
]);

const PAUSE: Case = Case::new(include_str!("network/pause.sh")).delegated().holds(&[
    ("paused", "paused\n[0]"),
    ("frozen", "1\n[0]"),
    ("silent", "[1]"),
    ("running", "running\n[0]"),
    ("thawed", "0\n"),
    ("exec", "hello from outside"),
    ("kill-paused", "137"),
    ("pod-pause", "Paused\npaused\n[0]"),
    ("pod-exec", "hello from outside"),
    ("left", "[0]"),
    ("left-mounts", "[0]"),
]);

const BUILD: Case = Case::new(include_str!("storage/build.sh")).holds(&[
    ("build", "[0]"),
    ("layers", "20"),
    ("run", "11\n12\n[0]"),
    ("network", "hello from outside"),
    ("by-path", "[0]"),
    ("exported-tree", "./data/file"),
    ("save-load", "11\n12\n[0]"),
]);

const CHANGES: Case = Case::new(include_str!("storage/changes.sh")).holds(&[
    ("diff", "D /etc/group"),
    ("committed", "981173106"),
    ("cp-in", "from-here\ndeep\n640:0:0"),
    ("mount", "outside"),
    ("prune", "[0]"),
    ("left", "[0]"),
]);

const COLON_BUILD: &str = "low\nchanged\n/p\n/p/file\n/p/sub\n/p/sub/new\n[0]";
const COLON_UPPER: &str = "changed\nnew\nup:1\nup:1/file\nup:1/sub\nup:1/sub/new\n[0]";
const ROOTFS_ETC: &str = "root:x:0:\no\nhostname\nhosts\nmtab\npasswd\nresolv.conf\n[0]";
/// fuse-overlayfs 1.10 knows no colon in a path; ours does what both do without one.
const NO_COLON: &str = "exec MOUNT: exit status 1";
const VOLUMES: Case = Case::new(include_str!("storage/volumes.sh"))
    .differs(&[
        ("colon-build", NO_COLON, COLON_BUILD),
        ("colon-build-upper", NO_COLON, COLON_BUILD),
        ("colon-upper-kept", "No such file", COLON_UPPER),
        ("rootfs-colon", NO_COLON, ROOTFS_ETC),
    ])
    .holds(&[
        ("rootfs-plain", ROOTFS_ETC),
        ("run-colon", "incorrect volume format"),
        ("plain-build", COLON_BUILD),
        ("plain-build-upper", COLON_BUILD),
        ("plain-upper-kept", "changed\nnew\nup1\nup1/file\nup1/sub\nup1/sub/new\n[0]"),
        ("colon-untouched", "low\nwith:colon\nwith:colon/file\nwith:colon/sub\n[0]"),
        ("rootfs-colon-untouched", "root:x:0:0:root:/root:/bin/sh\ngroup\npasswd\n[0]"),
        ("named", "kept\n3:4"),
        ("overlay", "plain\nchanged\nfile\n[0]"),
        ("overlay-untouched", "plain\n[0]"),
        ("overlay-upper-kept", "character special file 0:0"),
        ("read-only", "/x: Read-only file system"),
        ("rootfs", "in\nin\n[0]"),
        ("left", "[0]"),
    ]);

const USERS: Case = Case::new(include_str!("storage/users.sh"))
    .differs(&[("setgid-dir", "/g/d 755 0:0", "/g/d 2755 0:8")])
    .holds(&[
        ("auto", "0\n0:0\n0:0\n"),
        ("auto-size", "0:0\n1999:1999\n"),
        ("mapped-commit", "/k 644 7:8\n/tmp 2755 0:0\n[0]"),
        ("uidmap", "2 0:0"),
        ("left", "[0]"),
    ]);

/// fuse-overlayfs loses the owner where owners are kept in attributes.
const FORCE_MASK: (&str, &str) = ("4711 0:0\n2755\nfifo 755\n4711 0:0", "4711 7:8\n2755\nfifo 644");
const STORAGE_OPTIONS: Case = Case::new(include_str!("storage/options.sh"))
    .differs(&[
        ("force-mask-shared", FORCE_MASK.0, FORCE_MASK.1),
        ("force-mask-700", FORCE_MASK.0, FORCE_MASK.1),
        ("force-mask-diff", "600 0:0", "600 7:8"),
    ])
    .holds(&[("plain", "4711 7:8"), ("ignore-chown-errors", "4711 7:8"), ("volatile", "[0]")]);

const PULL: Case = Case::new(include_str!("storage/registry.sh"))
    .needs(&[REGISTRY, ("skopeo", "skopeo"), ("umoci", "umoci")])
    .holds(&[
        ("pulled", "/one 644 7:8 4\n/two 4755 0:0 4"),
        ("pulled", "981173106"),
        ("skopeo", "one\ntwo\n"),
        ("run-from-registry", "one"),
    ]);

const BUILDAH_ALONE: Case = Case::new(include_str!("storage/buildah.sh"))
    .needs(&[BUILDAH])
    .differs(&[("volume-colon", NO_COLON, "plain\nchanged\n[0]")])
    .holds(&[
        ("volume-colon-untouched", "plain"),
        ("run-network", "hello from outside"),
        ("run-name", "hello from outside"),
        ("by-path", "[0]"),
        ("run-code", "[5]"),
        ("volume-untouched", "plain"),
        ("bud-cached", "3"),
        ("left", "[0]"),
    ]);

const ROOTLESSKIT: Case = Case::new(include_str!("others/rootlesskit.sh"))
    .needs(&[("rootlesskit", "rootlesskit")])
    .holds(&[
        ("default", "hello from outside\nhello from outside\n[0]"),
        ("cidr", "10.99.0.100/16"),
        ("sandbox", "hello from outside"),
        ("builtin-all", "second"),
        ("slirp4netns-all", "second"),
        ("slirp4netns-add", "first"),
        ("code", "[7]"),
        ("slirp4netns-left", "[0]"),
    ]);

const MANUAL: Case = Case::new(include_str!("others/manual.sh"))
    .differs(&[
        ("no-such-process", "child failed(1)\n[1]", "is the process still running"),
        ("unknown", "bad request: unknown execute", "bad request: unknown command"),
    ])
    .holds(&[
        ("no-such-process", "[1]"),
        ("ping", "1 packets transmitted, 1 received"),
        ("configured", "10.0.2.100/24"),
        ("page", "hello from outside"),
        ("name", "hello from outside"),
        ("ready", "1[0]"),
        ("by-hand", "hello from outside"),
        ("add", "{\"return\":{\"id\":1}}"),
        ("published", "from-inside"),
        ("no-longer", "Connection refused"),
        ("left", "[0]"),
    ]);

const UPGRADE: Case = Case::new(include_str!("others/upgrade.sh")).holds(&[
    ("first-diff", "D /etc/group"),
    ("second-image", "981173106"),
    ("second-changed", "one\np\ntwo"),
    ("third", "again"),
    ("tree", "./s"),
    ("left", "[0]"),
]);

macro_rules! test {
    ($name:literal, $case:expr) => {
        Test::new(concat!("podman/", $name), |world| $case.check(world))
            .lab()
            .subordinate_ids()
            .seconds(1200)
    };
}

pub(crate) const TESTS: &[Test] = &[
    test!("network-options", OPTIONS),
    test!("ports", PORTS),
    test!("pods", PODS),
    test!("bridge-cni", BRIDGE_CNI),
    test!("bridge-netavark", BRIDGE_NETAVARK),
    test!("lifecycle", LIFECYCLE),
    test!("pause", PAUSE),
    test!("build", BUILD),
    test!("changes", CHANGES),
    test!("volumes", VOLUMES),
    test!("users", USERS),
    test!("storage-options", STORAGE_OPTIONS),
    test!("registry", PULL),
    test!("buildah", BUILDAH_ALONE),
    test!("rootlesskit", ROOTLESSKIT),
    test!("manual", MANUAL),
    test!("upgrade", UPGRADE),
];
