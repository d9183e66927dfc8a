use super::*;
use crate::idmap::IdMap;
use crate::spec::{InMemory, Secret, Tmpfs, TmpfsOptions, Volume};

pub(super) fn host(single: bool) -> HostCaps {
    let subordinate = if single { "" } else { "ada:100000:65536\n" };
    HostCaps {
        map: IdMap::of_caller(1000, 1000, Some("ada"), subordinate, subordinate),
        homes: vec!["/home/ada".into(), "/srv/people/bob".into()],
        resolv_conf: "domain old\nsearch a.example b.example\nnameserver 192.0.2.1\n".to_owned(),
        hosts: "127.0.0.1 localhost".to_owned(),
        hostname: "host".to_owned(),
        ipv6: true,
        processors: 2,
        term: Some("vt100".to_owned()),
        overlay: Some("/opt/overlayfs-fuse".into()),
        netstack: Some("/opt/netstack".into()),
        fuse: true,
        tun: true,
        landlock: Some(7),
        groups: Vec::new(),
    }
}

pub(super) fn paths() -> Paths {
    Paths {
        dir: "/home/ada/.local/share/coracle/c".into(),
        store: "/home/ada/.local/share/coracle".into(),
        upper: "/home/ada/.local/share/coracle/c/upper".into(),
        work: "/home/ada/.local/share/coracle/c/work".into(),
    }
}

pub(super) fn spec() -> Spec {
    Spec {
        name: Some("boat".to_owned()),
        root: Root::Host,
        upper: Upper::Own,
        overlay: Overlay::Fuse,
        read_only: false,
        remove: true,
        detach: false,
        interactive: false,
        tty: false,
        env: BTreeMap::new(),
        workdir: None,
        user: None,
        volumes: Vec::new(),
        hostname: None,
        publish: Vec::new(),
        network: Network::Netstack,
        command: vec!["true".to_owned()],
        stop_signal: None,
        security: crate::spec::Security::default(),
        restart: crate::spec::Restart::No,
        limits: crate::spec::Limits::default(),
        ulimits: Vec::new(),
        no_init: false,
        memory: crate::spec::InMemory::default(),
        labels: BTreeMap::new(),
        names: crate::spec::Names::default(),
        stop_timeout: None,
        pid_file: None,
        shares: crate::spec::Shares::default(),
    }
}

/// The part of a printed plan under the heading that starts with `heading`.
fn part(plan: &Plan, heading: &str) -> Vec<String> {
    plan.to_string()
        .lines()
        .skip_while(|line| !line.starts_with(heading))
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn golden_host_root() {
    let plan = plan(&spec(), &host(false), "boat", &paths()).unwrap();
    let d = "/home/ada/.local/share/coracle/c";
    let m = "/home/ada/.local/share/coracle/mnt";
    assert_eq!(
        part(&plan, "monitor"),
        [
            "start /opt/netstack --mtu 65520 --disable-host-loopback --enable-sandbox --enable-seccomp --enable-ipv6".to_owned(),
        ]
    );
    assert_eq!(
        part(&plan, "user namespace"),
        [
            "uid 0 is the host's 1000 (1)",
            "uid 1 is the host's 100000 (65536)",
            "gid 0 is the host's 1000 (1)",
            "gid 1 is the host's 100000 (65536)",
        ]
    );
    assert_eq!(
        part(&plan, "storage"),
        [
            format!("mount memory of its own at {m}"),
            format!("make directory {m}/root"),
            format!("make directory {m}/base/"),
            format!("make directory {m}/base/proc"),
            format!("make directory {m}/base/dev"),
            format!("make directory {m}/base/sys"),
            format!("make directory {m}/base/etc"),
            format!("write {m}/base/etc/hostname (5 bytes)"),
            format!("write {m}/base/etc/hosts (77 bytes)"),
            format!("write {m}/base/etc/resolv.conf (66 bytes)"),
            format!("make directory {m}/lower"),
            format!("show / and all below it at {m}/lower"),
            format!("hide {m}/lower/dev (mode 755)"),
            format!("hide {m}/lower/home (mode 755)"),
            format!("hide {m}/lower/media (mode 755)"),
            format!("hide {m}/lower/proc (mode 755)"),
            format!("hide {m}/lower/root (mode 700)"),
            format!("hide {m}/lower/run (mode 755)"),
            format!("hide {m}/lower/srv/people/bob (mode 755)"),
            format!("hide {m}/lower/sys (mode 755)"),
            format!("hide {m}/lower/tmp (mode 1777)"),
            format!("hide {m}/lower/var/tmp (mode 1777)"),
            format!("make directory {d}/upper"),
            format!("make directory {d}/work"),
            format!(
                "start /opt/overlayfs-fuse -f -o lowerdir={m}/lower,upperdir={d}/upper,\
                 workdir={d}/work,unmapped_root,public_lower {m}/root"
            ),
        ]
    );
    let init = part(&plan, "init");
    let start = [
        "make tap0 10.0.2.100/24 fd00::100/64 with 2 queues, send it to the monitor".to_owned(),
        "bring up lo".to_owned(),
        "let everybody listen on ports below 1024".to_owned(),
        "let groups 0 to 65536 ping".to_owned(),
        "set the host name boat".to_owned(),
        format!("take {m}/root as the root"),
        "mount proc at /proc".to_owned(),
        "mount tmpfs at /dev".to_owned(),
        "mount devpts at /dev/pts".to_owned(),
        "mount tmpfs (mode 1777, 67108864 bytes, no programs) at /dev/shm".to_owned(),
        "mount mqueue at /dev/mqueue".to_owned(),
        "mount sysfs, read-only, at /sys".to_owned(),
        "show the host's /dev/null".to_owned(),
    ];
    assert_eq!(init[..start.len()], start);
    let middle = [
        "mount tmpfs (mode 755) at /run".to_owned(),
        "mount tmpfs (mode 1777) at /tmp".to_owned(),
        format!("show {m}/base/etc/hostname at /etc/hostname"),
        format!("show {m}/base/etc/hosts at /etc/hosts"),
        format!("show {m}/base/etc/resolv.conf at /etc/resolv.conf"),
        "make the root the root".to_owned(),
    ];
    let at = init.iter().position(|line| *line == middle[0]).unwrap();
    assert_eq!(init[at..at + middle.len()], middle);
    assert_eq!(
        part(&plan, "workload")[..5],
        ["user root", "directory /", "variable HOSTNAME", "variable PATH", "variable container"]
    );
}

#[test]
fn golden_directory_in_memory_without_network() {
    let spec = Spec {
        root: Root::Dir("/srv/a:b,c\\d".into()),
        upper: Upper::Ram(Some(1 << 20)),
        network: Network::None,
        read_only: true,
        volumes: vec![Volume {
            source: "/srv/data".into(),
            target: "/etc/hosts".into(),
            read_only: true,
        }],
        ..spec()
    };
    let plan = plan(&spec, &host(true), "boat", &paths()).unwrap();
    let d = "/home/ada/.local/share/coracle/c";
    let m = "/home/ada/.local/share/coracle/mnt";
    assert_eq!(
        part(&plan, "storage")[8..],
        [
            format!("mount 1048576 bytes of memory at {d}/ram"),
            format!("make directory {d}/ram/upper"),
            format!("make directory {d}/ram/work"),
            format!("write {m}/apt.conf (66 bytes)"),
            format!(
                "start /opt/overlayfs-fuse -f -o lowerdir=/srv/a\\:b\\054c\\134d:{m}/base,\
                 upperdir={d}/ram/upper,workdir={d}/ram/work,unmapped_root,xattr_permissions=2,kept_owners \
                 {m}/root"
            ),
        ]
    );
    let init = part(&plan, "init");
    assert_eq!(init[0], "bring up lo");
    assert_eq!(init.last().unwrap(), "make / read-only");
    // The volume takes the place of the generated file; no name server to name.
    assert!(init.contains(&"show /srv/data at /etc/hosts, read-only".to_owned()));
    assert!(!plan.to_string().contains("etc/hosts ("));
    assert!(!plan.to_string().contains("resolv.conf"));
    let memory = "mount tmpfs (mode 1777) at /tmp".to_owned();
    assert!(init.contains(&memory) && !init.contains(&"mount tmpfs (mode 755) at /etc".to_owned()));
    let without = InMemory { scratch: false, ..InMemory::default() };
    let without = super::plan(&Spec { memory: without, ..spec }, &host(true), "boat", &paths());
    assert!(!without.unwrap().to_string().contains("/tmp"));
    assert!(plan.workload.single_id);
    assert!(plan.init.iter().any(|step| matches!(step, InitStep::FileBeside { .. })));
}

#[test]
fn ports_are_published_by_netstack_only() {
    let publish =
        |host_ip, protocol| Publish { host_ip, host_port: 18080, container_port: 80, protocol };
    let spec = Spec {
        publish: vec![
            publish(Some("127.0.0.1".parse().unwrap()), Protocol::Tcp),
            publish(Some("::1".parse().unwrap()), Protocol::Udp),
            publish(None, Protocol::Tcp),
        ],
        ..spec()
    };
    let ports = plan(&spec, &host(false), "boat", &paths()).unwrap().to_string();
    assert!(ports.contains("-p 127.0.0.1:18080:80/tcp -p [::1]:18080:80/udp -p 18080:80/tcp"));
    for (network, name) in [(Network::None, "none"), (Network::Host, "host")] {
        let spec = Spec { network, ..spec.clone() };
        let error = plan(&spec, &host(false), "boat", &paths()).unwrap_err();
        assert_eq!(error, PlanError::CannotPublish(name));
    }
}

#[test]
fn what_the_host_lacks_is_said() {
    let mut host = host(false);
    host.tun = false;
    let error = plan(&spec(), &host, "boat", &paths()).unwrap_err();
    assert!(error.to_string().starts_with("cannot open /dev/net/tun; "), "{error}");
    let offline = Spec { network: Network::None, ..spec() };
    assert!(plan(&offline, &host, "boat", &paths()).is_ok());
    host.overlay = None;
    let error = plan(&offline, &host, "boat", &paths()).unwrap_err();
    assert_eq!(error, PlanError::NoProgram("overlayfs-fuse"));
}

#[test]
fn host_network_keeps_the_hosts_names() {
    let spec = Spec { network: Network::Host, hostname: Some("other".to_owned()), ..spec() };
    let plan = plan(&spec, &host(false), "boat", &paths()).unwrap();
    assert!(!plan.own_network);
    let written = |name: &str| {
        plan.storage.iter().find_map(|step| match step {
            StorageStep::ScratchFile { path, content } if path.ends_with(name) => Some(content),
            _ => None,
        })
    };
    assert_eq!(written("etc/resolv.conf").unwrap(), &host(false).resolv_conf);
    assert_eq!(written("etc/hosts").unwrap(), "127.0.0.1 localhost\n127.0.1.1\tother\n");
    assert!(plan.init.contains(&InitStep::HostSysfs));
    assert!(!plan.to_string().contains("ping"));
}

#[test]
fn the_search_list_is_kept_and_the_last_one_counts() {
    let host = HostCaps { ipv6: false, ..host(false) };
    let content = names::resolv_conf(&spec(), &host).unwrap();
    assert_eq!(content, "search a.example b.example\nnameserver 10.0.2.3\n");
    let host = HostCaps { ipv6: true, resolv_conf: String::new(), ..host };
    let content = names::resolv_conf(&spec(), &host).unwrap();
    assert_eq!(content, "nameserver 10.0.2.3\nnameserver fd00::3\n");
}

#[test]
fn variables_given_replace_the_defaults() {
    let env = BTreeMap::from([("PATH".to_owned(), "/x".to_owned())]);
    let spec = Spec { env, tty: true, ..spec() };
    let workload = plan(&spec, &host(false), "boat", &paths()).unwrap().workload;
    assert_eq!(workload.env["PATH"], "/x");
    assert_eq!(workload.env["TERM"], "vt100");
    assert_eq!(workload.env["HOSTNAME"], "boat");
}

#[test]
fn many_layers_are_named_shortly() {
    let layers = ["b", "a"].map(|name| PathBuf::from(format!("/data/layers/{name}.single/fs")));
    let image = crate::spec::ImageRoot {
        name: "x".to_owned(),
        id: "sha256:0".to_owned(),
        layers: layers.to_vec(),
        workdir: None,
        volumes: Vec::new(),
    };
    let spec = Spec { root: Root::Image(image.clone()), ..spec() };
    let plan = plan(&spec, &host(false), "box", &paths()).unwrap();
    let step = plan.storage.iter().find_map(|step| match step {
        StorageStep::Overlay { options, dir, .. } => Some((options.clone(), dir.clone())),
        _ => None,
    });
    let (options, dir) = step.unwrap();
    let lowers =
        "lowerdir=b.single/fs:a.single/fs:/home/ada/.local/share/coracle/mnt/base,upperdir=/";
    assert!(options.starts_with(lowers), "{options}");
    assert_eq!(dir, Path::new("/data/layers"));
    // The overlay joins no more than 500.
    for (count, below) in [(0, 1), (1, 1), (499, 1), (500, 0)] {
        let image = crate::spec::ImageRoot {
            layers: vec!["/data/layers/a".into(); count],
            ..image.clone()
        };
        assert_eq!(layers_below(&Root::Image(image)), below, "{count}");
    }
    assert_eq!((layers_below(&Root::Host), layers_below(&Root::Dir("/x".into()))), (0, 1));
}

#[test]
fn the_kernel_joins_what_it_can() {
    let image = |count| crate::spec::ImageRoot {
        name: "x".to_owned(),
        id: "sha256:0".to_owned(),
        layers: (0..count).map(|n| format!("/data/layers/{n:070},:\\/fs").into()).collect(),
        workdir: None,
        volumes: Vec::new(),
    };
    let spec =
        |root| Spec { root, overlay: Overlay::Kernel, network: Network::None, ..self::spec() };
    // Neither the program nor the device is asked for.
    let bare = HostCaps { overlay: None, fuse: false, ..host(false) };
    let passing = spec(Root::Image(image(2)));
    let steps = plan(&passing, &bare, "boat", &paths()).unwrap().storage;
    let Some(StorageStep::KernelOverlay { options, dir, target, stale }) = steps.last() else {
        panic!("{steps:?}")
    };
    let layer = |n| format!("{n:070}\\,\\:\\\\/fs");
    let d = "/home/ada/.local/share/coracle";
    let wanted = format!(
        "lowerdir={}:{}:{d}/mnt/base,upperdir={d}/c/upper,workdir={d}/c/work,userxattr,xino=on",
        layer(0),
        layer(1)
    );
    assert_eq!(*options, format!("{wanted},volatile"));
    assert_eq!(
        (dir.to_str(), target.to_str()),
        (Some("/data/layers"), Some(&*format!("{d}/mnt/root")))
    );
    assert_eq!(stale, &Some(paths().work.join("work").join("incompat")));
    // What is kept is on the disk at the end.
    let kept = Spec { remove: false, ..passing.clone() };
    let given = Spec { upper: Upper::Dir("/srv/u".into()), ..passing.clone() };
    for spec in [kept, given] {
        let steps = plan(&spec, &bare, "boat", &paths()).unwrap().storage;
        assert!(matches!(
            steps.last(),
            Some(StorageStep::KernelOverlay { options, stale: None, .. })
                if options.ends_with(",userxattr,xino=on")
        ));
    }
    let refused = |spec: &Spec, host: &HostCaps| plan(spec, host, "boat", &paths()).unwrap_err();
    for (spec, host, why) in [
        (spec(Root::Host), host(false), "the host's root as root filesystem"),
        (passing.clone(), host(true), "a user without subordinate ids"),
        (Spec { upper: Upper::Ram(None), ..passing }, host(false), "--upper ram"),
    ] {
        assert_eq!(refused(&spec, &host), PlanError::NotByKernel(why));
    }
    assert!(plan(&spec(Root::Image(image(45))), &bare, "boat", &paths()).is_ok());
    let error = refused(&spec(Root::Image(image(60))), &bare);
    assert!(matches!(error, PlanError::LongOptions { bytes } if bytes > 60 * 70), "{error}");
}

#[test]
fn limits_go_to_the_nearest_group_that_has_the_controllers() {
    let place = |dir: &str, controllers: &[&str], leave| Place {
        dir: dir.into(),
        controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
        leave,
    };
    let steps = |limits: Limits, groups: Vec<Place>| {
        let host = HostCaps { groups, ..host(false) };
        let plan = plan(&Spec { limits, ..spec() }, &host, "boat", &paths()).unwrap();
        let group = part(&plan, "monitor").into_iter().find(|line| line.contains("control group"));
        (group, plan.lacking)
    };
    let places = || vec![place("/g/near", &["pids"], false), place("/g", &["cpu", "pids"], true)];
    let none = Limits::default();
    // One that can be frozen costs nothing.
    assert_eq!(
        steps(none, places()),
        (Some("make control group /g/near/coracle-boat".to_owned()), vec![])
    );
    assert_eq!(steps(none, vec![]), (None, vec![]));
    let both = Limits { millicpus: Some(1_500), pids: Some(7), cpu_shares: Some(1_024), ..none };
    let wanted = "make control group /g/coracle-boat with pids.max=7, cpu.max=150000 100000, \
                  cpu.weight=39";
    assert_eq!(steps(both, places()), (Some(wanted.to_owned()), vec![]));
    // What cannot be had is told, the rest is done.
    let (group, lacking) = steps(Limits { memory: Some(1), pids: Some(7), ..none }, places());
    assert_eq!(group.unwrap(), "make control group /g/near/coracle-boat with pids.max=7");
    assert!(lacking.len() == 1 && lacking[0].starts_with("--memory without effect"));
    let (group, lacking) = steps(both, vec![]);
    assert_eq!(group, None);
    assert!(lacking[0].starts_with("--pids-limit, --cpus, --cpu-shares without effect: no"));
}

#[test]
fn what_lies_in_another_mount_comes_after_it() {
    let options = TmpfsOptions { mode: 0o700, size: Some(4096), read_only: true, programs: false };
    let volume =
        |target: &str| Volume { source: "/srv".into(), target: target.into(), read_only: false };
    let spec = Spec {
        volumes: vec![volume("/a/b/c"), volume("/a")],
        memory: InMemory {
            tmpfs: vec![Tmpfs { target: "/a/b".into(), options }],
            secrets: vec![Secret { name: "key".to_owned(), source: "/home/ada/key".into() }],
            ..InMemory::default()
        },
        ..spec()
    };
    let init = part(&plan(&spec, &host(false), "boat", &paths()).unwrap(), "init");
    let at = init.iter().position(|line| line == "show /srv at /a").unwrap();
    assert_eq!(
        init[at + 1..at + 5],
        [
            "mount tmpfs (mode 700, 4096 bytes, read-only, no programs) at /a/b",
            "show /srv at /a/b/c",
            "mount memory at /run/secrets",
            "copy /home/ada/key to /run/secrets/key",
        ]
    );
}
