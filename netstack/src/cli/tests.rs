use clap::error::ErrorKind;

use super::*;
use crate::config::{Proto, V4Network};
use crate::tap::Interface;

fn read(args: &[&str]) -> Result<Invocation, clap::Error> {
    parse(std::iter::once("netstack").chain(args.iter().copied()).map(OsString::from))
}

fn good(args: &[&str]) -> Invocation {
    read(args).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn bad(args: &[&str]) -> String {
    let error = read(args).expect_err(&format!("{args:?} must be refused"));
    assert_ne!(error.exit_code(), 0);
    error.to_string()
}

fn request(invocation: &Invocation) -> &Request {
    match &invocation.device {
        Device::Create(request) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_are_slirp4netns_own() {
    let invocation = good(&["1234"]);
    assert_eq!(invocation.config, Config::default());
    assert_eq!(invocation.config.mtu, 1500);
    let request = request(&invocation);
    assert_eq!(request.netns, PathBuf::from("/proc/1234/ns/net"));
    assert_eq!((request.name.as_str(), request.interface), ("tap0", None));
}

#[test]
fn podmans_call_is_understood() {
    let line = "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
                --cidr=10.9.0.0/16 --enable-ipv6 --outbound-addr=192.0.2.7 \
                --outbound-addr6=eth0 -c -e 3 -r 4 --api-socket /tmp/a.net \
                --netns-type=path /run/user/1000/netns/x tap7";
    let invocation = good(&line.split_whitespace().collect::<Vec<_>>());
    let config = &invocation.config;
    assert_eq!(config.mtu, 65520);
    assert_eq!(config.v4.guest, "10.9.0.100".parse::<std::net::Ipv4Addr>().unwrap());
    assert!(config.disable_host_loopback && config.enable_ipv6 && !config.disable_dns);
    assert_eq!(config.outbound_v4, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(invocation.outbound_interfaces, (None, Some("eth0".into())));
    assert_eq!((invocation.exit_fd, invocation.ready_fd), (Some(3), Some(4)));
    assert_eq!(invocation.api_socket, Some("/tmp/a.net".into()));
    assert!(invocation.sandbox && invocation.seccomp);
    let request = request(&invocation);
    assert_eq!(request.netns, PathBuf::from("/run/user/1000/netns/x"));
    assert_eq!(request.name, "tap7");
    assert_eq!(request.interface, Some(Interface::new(config, None)));
}

#[test]
fn buildahs_call_is_understood() {
    let invocation = good(&["--mtu", "65520", "-r", "3", "-c", "77", "tap0"]);
    assert!(request(&invocation).interface.is_some());
}

#[test]
fn help_has_the_words_callers_look_for() {
    let error = read(&["--help"]).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayHelp, 0));
    let help = error.to_string();
    for word in [
        "--disable-host-loopback",
        "--mtu",
        "--enable-sandbox",
        "--enable-seccomp",
        "--cidr",
        "--outbound-addr",
        "--enable-ipv6",
        "--netns-type",
        "--api-socket",
    ] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
}

#[test]
fn version_is_shown_for_both_spellings() {
    for option in ["-v", "--version"] {
        let error = read(&[option]).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayVersion, 0));
    }
}

#[test]
fn the_launchers_form_has_its_own_defaults() {
    let line = "--tap-fd 5 --ready-fd=6 --exit-fd 7 --enable-ipv6 --disable-host-loopback \
                -p 127.0.0.1:18080:80 -p 53:5353/udp -p [::1]:99:98 -p 0.0.0.0:8080:80/tcp";
    let invocation = good(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(invocation.device, Device::Inherited(vec![5]));
    assert_eq!((invocation.ready_fd, invocation.exit_fd), (Some(6), Some(7)));
    assert_eq!(invocation.config.mtu, 65520);
    let shown: Vec<_> = invocation
        .config
        .publishes
        .iter()
        .map(|p| format!("{}/{} {}", p.host, p.proto, p.guest))
        .collect();
    assert_eq!(
        shown,
        [
            "127.0.0.1:18080/tcp 10.0.2.100:80",
            "[::]:53/udp 10.0.2.100:5353",
            "[::1]:99/tcp [fd00::100]:98",
            "0.0.0.0:8080/tcp 10.0.2.100:80",
        ]
    );
}

#[test]
fn published_ports_follow_the_network() {
    let invocation = good(&["9", "--cidr", "10.9.8.0/24", "-p", "5:6/udp"]);
    let publish = invocation.config.publishes[0];
    assert_eq!(publish.proto, Proto::Udp);
    assert_eq!(publish.host, "0.0.0.0:5".parse().unwrap());
    assert_eq!(publish.guest, "10.9.8.100:6".parse().unwrap());
}

#[test]
fn bad_values_are_refused_with_a_reason() {
    for (args, reason) in [
        (&["1", "--mtu=65522"][..], "65521"),
        (&["1", "--mtu=575"], "576"),
        (&["1", "--mtu=x"], "number"),
        (&["1", "--mtu=1279", "-6"], "1280"),
        (&["1", "--cidr=10.0.2.0"], "10.0.2.0/24"),
        (&["1", "--cidr=10.0.2.1/24"], "10.0.2.0/24"),
        (&["1", "--cidr=10.0.2.0/26"], "1 to 25"),
        (&["1", "--cidr=10.0.2.0/0"], "1 to 25"),
        (&["1", "--cidr=127.0.0.0/8"], "guest's network"),
        (&["1", "--ready-fd=1"], "3 or above"),
        (&["1", "--exit-fd=-4"], "3 or above"),
        (&["1", "-c", "--macaddress=02:00:00:00:00"], "six bytes"),
        (&["1", "-c", "--macaddress=03:00:00:00:00:01"], "group"),
        (&["1", "--macaddress=02:00:00:00:00:01"], "--configure"),
        (&["/s", "--target-type=bess", "-c"], "--configure"),
        (&["tap0", "--netns-type=tapfd"], "3 or above"),
        (&["5", "--netns-type=tapfd", "-c"], "--configure"),
        (&["1", "--target-type=vde"], "possible values"),
        (&["1", "-p", "8000-7999:80"], "ends before"),
        (&["1", "-p", "8000-8002:80-81"], "3 ports of the host for 2"),
        (&["1", "-p", "1-2000:1-2000"], "more than 1024"),
        (&["1", "--pcap-size=1"], "--pcap"),
        (&["1", "--pcap=f", "--pcap-files=3"], "--pcap-size"),
        (&["1", "--pcap=f", "--pcap-size=0"], "MiB"),
        (&["1", "--pcap=f", "--pcap-size=1", "--pcap-files=1"], "2 to 1000"),
        (&["1", "--metrics=0.0.0.0:1"], "loopback"),
        (&["1", "--netns-type=name"], "possible values"),
        (&["/proc/1/ns/net"], "--netns-type=path"),
        (&["0"], "process id"),
        (&[], "PID|PATH"),
        (&["1", "a-name-that-is-too-long"], "15 bytes"),
        (&["1", "tap/0"], "'/'"),
        (&["1", "tap0", "more"], "more"),
        (&["1", "--unknown"], "--unknown"),
        (&["1", "--outbound-addr=1:2"], "outbound-addr"),
        (&["1", "-p", "80"], "HOSTPORT[-LAST]:PORT"),
        (&["1", "-p", "0:80"], "1 to 65535"),
        (&["1", "-p", "80:70000"], "1 to 65535"),
        (&["1", "-p", "80:80/sctp"], "sctp"),
        (&["1", "-p", "::1:80:80"], "brackets"),
        (&["1", "-p", "host:80:80"], "no IP address"),
        (&["--tap-fd=0"], "3 or above"),
        (&["--tap-fd", "5", "-p", "[127.0.0.1]:80:80"], "HOSTPORT[-LAST]:PORT"),
    ] {
        let message = bad(args);
        assert!(message.contains(reason), "{args:?} says {message}");
    }
}

#[test]
fn other_targets_are_understood() {
    let invocation = good(&["--target-type=bess", "/run/bess.sock"]);
    assert_eq!(invocation.device, Device::Bess("/run/bess.sock".into()));
    let invocation = good(&["--netns-type=tapfd", "7"]);
    assert_eq!(invocation.device, Device::Inherited(vec![7]));
    let invocation = good(&["--tap-fd", "5", "--tap-fd=8"]);
    assert_eq!(invocation.device, Device::Inherited(vec![5, 8]));
}

#[test]
fn ranges_of_ports_are_published_one_by_one() {
    let invocation = good(&["9", "-6", "-p", "[2001:db8::1]:8000-8002:65533-65535", "-p", "9:9"]);
    let shown: Vec<String> =
        invocation.config.publishes.iter().map(|p| format!("{} {}", p.host, p.guest)).collect();
    assert_eq!(
        shown,
        [
            "[2001:db8::1]:8000 [fd00::100]:65533",
            "[2001:db8::1]:8001 [fd00::100]:65534",
            "[2001:db8::1]:8002 [fd00::100]:65535",
            "[::]:9 10.0.2.100:9",
        ]
    );
}

#[test]
fn what_is_told_of_a_run_is_understood() {
    let words = ["--pcap=a", "--pcap-size=2", "--pcap-files=3", "--metrics=9", "--policy=p"];
    for target in [&["1"][..], &["--tap-fd", "5"]] {
        let invocation = good(&[&words, target].concat());
        let request = crate::pcap::Request { path: "a".into(), size: Some(2 << 20), files: 3 };
        assert_eq!(invocation.capture, Some(request));
        let at = "127.0.0.1:9".parse().unwrap();
        assert_eq!(invocation.metrics, Some(crate::metrics::Address::Tcp(at)));
        assert_eq!(invocation.policy, Some("p".into()));
    }
}

#[test]
fn deprecated_spellings_still_work() {
    let invocation = good(&["--no-host-loopback", "--create-sandbox", "1"]);
    assert!(invocation.config.disable_host_loopback && invocation.sandbox);
    assert_eq!(invocation.config.v4, V4Network::default());
}
