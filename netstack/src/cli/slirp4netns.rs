//! slirp4netns' command line: the same options, defaults and meanings, so that
//! programs that start it can start this one.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};

use super::observe::Observe;
use super::value::{self, PublishArg};
use super::{Device, Invocation, refuse};
use crate::config::{Config, MTU_MIN, V4Network};
use crate::tap::{Interface, Request};

/// User-mode networking for unprivileged network namespaces.
#[derive(Debug, Parser)]
#[command(
    name = "netstack",
    version,
    disable_version_flag = true,
    override_usage = "netstack [OPTION]... PID|PATH|FD [TAPNAME]\n       netstack --tap-fd FD [OPTION]...",
    after_help = "With --tap-fd, the TAP device is one that the caller has opened; \
                  see netstack --tap-fd 3 --help."
)]
pub struct Args {
    /// Process whose network namespace to join, or the namespace as a file; an open TAP
    /// device, or a socket's path, as --netns-type and --target-type say
    #[arg(value_name = "PID|PATH|FD")]
    target: String,
    /// Name of the TAP device
    #[arg(value_name = "TAPNAME", value_parser = value::interface, default_value = "tap0")]
    tap_name: String,
    /// Bring the interface up and give it address and routes
    #[arg(short, long)]
    configure: bool,
    /// When it hangs up, the program ends
    #[arg(short, long, value_name = "FD", value_parser = value::fd)]
    exit_fd: Option<RawFd>,
    /// Receives `1` and is closed once everything is in place
    #[arg(short, long, value_name = "FD", value_parser = value::fd)]
    ready_fd: Option<RawFd>,
    /// Largest IP packet in bytes, up to 65521
    #[arg(short, long, value_name = "MTU", value_parser = value::mtu, default_value = "1500")]
    mtu: u16,
    /// Carry IPv6 as well (fd00::/64)
    #[arg(short = '6', long)]
    enable_ipv6: bool,
    /// Listen for API requests on this UNIX socket
    #[arg(short, long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// The guest's network, /1 to /25 [default: 10.0.2.0/24]
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    cidr: Option<V4Network>,
    /// The host's loopback is not reached at the gateway's address
    #[arg(long, alias = "no-host-loopback")]
    disable_host_loopback: bool,
    /// What PID|PATH|FD is
    #[arg(long, value_name = "TYPE", default_value = "pid")]
    netns_type: NetnsType,
    /// User namespace through which the network namespace is joined
    #[arg(long, value_name = "PATH")]
    userns_path: Option<PathBuf>,
    /// Reach no file, see nothing of the file system but /etc and /run, drop capabilities
    #[arg(long, alias = "create-sandbox")]
    enable_sandbox: bool,
    /// Allow no system calls but those of a running network
    #[arg(long)]
    enable_seccomp: bool,
    /// Source address of outgoing IPv4 connections, or an interface that has it
    #[arg(long, value_name = "IPv4|INTERFACE")]
    outbound_addr: Option<String>,
    /// Source address of outgoing IPv6 connections, or an interface that has it
    #[arg(long, value_name = "IPv6|INTERFACE")]
    outbound_addr6: Option<String>,
    /// No name server at the DNS address
    #[arg(long)]
    disable_dns: bool,
    /// Ethernet address of the TAP device, with --configure
    #[arg(long, value_name = "MAC", value_parser = value::mac, requires = "configure")]
    macaddress: Option<[u8; 6]>,
    /// What to connect to: a network namespace, or, as a server at PATH, one peer whose
    /// packets are frames (SOCK_SEQPACKET; User Mode Linux: transport=bess)
    #[arg(long, value_name = "TYPE", default_value = "netns")]
    target_type: TargetType,
    #[command(flatten)]
    observe: Observe,
    /// Publish a port of the guest, or as many as a range has, on the host
    #[arg(short, long, value_name = "[IP:]HOSTPORT[-LAST]:PORT[-LAST][/tcp|udp]", value_parser = value::publish)]
    publish: Vec<PublishArg>,
    /// Show the version and exit
    #[arg(short = 'v', long, action = clap::ArgAction::Version, value_parser = clap::value_parser!(bool))]
    version: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetnsType {
    Pid,
    Path,
    Tapfd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetType {
    Netns,
    Bess,
}

/// What the first argument is.
enum Target {
    Netns(PathBuf),
    Tap(RawFd),
    Bess,
}

impl Args {
    pub(super) fn into_invocation(self) -> Result<Invocation, clap::Error> {
        let bad = |message: String| refuse::<Args>(ErrorKind::ValueValidation, message);
        if self.enable_ipv6 && self.mtu < MTU_MIN {
            return Err(bad(format!("IPv6 needs an MTU of {MTU_MIN} at least")));
        }
        let target = match (self.target_type, self.netns_type) {
            (TargetType::Bess, _) => Target::Bess,
            (TargetType::Netns, NetnsType::Path) => Target::Netns(PathBuf::from(&self.target)),
            (TargetType::Netns, NetnsType::Pid) => match self.target.parse::<u32>() {
                Ok(pid) if pid > 0 => Target::Netns(format!("/proc/{pid}/ns/net").into()),
                _ => {
                    return Err(bad(format!(
                        "{:?} is no process id; for a file, give --netns-type=path",
                        self.target
                    )));
                }
            },
            (TargetType::Netns, NetnsType::Tapfd) => {
                Target::Tap(value::fd(&self.target).map_err(&bad)?)
            }
        };
        if self.configure && !matches!(target, Target::Netns(_)) {
            return Err(bad("--configure is for a network namespace that is joined".into()));
        }
        let mut config = Config {
            mtu: self.mtu,
            v4: self.cidr.unwrap_or_default(),
            enable_ipv6: self.enable_ipv6,
            disable_host_loopback: self.disable_host_loopback,
            disable_dns: self.disable_dns,
            ..Config::default()
        };
        config.publishes = self.publish.into_iter().flat_map(|p| p.resolve(&config)).collect();
        let mut interfaces = (None, None);
        if let Some(text) = self.outbound_addr {
            match text.parse::<Ipv4Addr>() {
                Ok(addr) => config.outbound_v4 = Some(addr),
                Err(_) => {
                    let name = value::interface(&text);
                    interfaces.0 = Some(name.map_err(|e| bad(format!("--outbound-addr: {e}")))?);
                }
            }
        }
        if let Some(text) = self.outbound_addr6 {
            match text.parse::<Ipv6Addr>() {
                Ok(addr) => config.outbound_v6 = Some(addr),
                Err(_) => {
                    let name = value::interface(&text);
                    interfaces.1 = Some(name.map_err(|e| bad(format!("--outbound-addr6: {e}")))?);
                }
            }
        }
        let interface = self.configure.then(|| Interface::new(&config, self.macaddress));
        let device = match target {
            Target::Bess => Device::Bess(self.target.into()),
            Target::Tap(fd) => Device::Inherited(vec![fd]),
            Target::Netns(netns) => Device::Create(Request {
                queues: 1,
                netns,
                userns: self.userns_path,
                name: self.tap_name,
                interface,
            }),
        };
        Ok(Invocation {
            config,
            device,
            ready_fd: self.ready_fd,
            exit_fd: self.exit_fd,
            api_socket: self.api_socket,
            sandbox: self.enable_sandbox,
            seccomp: self.enable_seccomp,
            capture: self.observe.capture(),
            metrics: self.observe.metrics(),
            policy: self.observe.policy,
            outbound_interfaces: interfaces,
        })
    }
}
