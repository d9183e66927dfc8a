//! The form in which a launcher starts us: the TAP device is open and attached,
//! the guest's side is configured.

use std::os::fd::RawFd;

use clap::Parser;
use clap::error::ErrorKind;

use super::observe::Observe;
use super::value::{self, PublishArg};
use super::{Device, Invocation, refuse};
use crate::config::{Config, MTU_MIN, V4Network};

/// User-mode networking on a TAP device that the caller has opened.
#[derive(Debug, Parser)]
#[command(name = "netstack", version, override_usage = "netstack --tap-fd FD [OPTION]...")]
pub struct Args {
    /// Attached TAP device (IFF_TAP, IFF_NO_PI; IFF_VNET_HDR for speed); several times for
    /// the queues of one (IFF_MULTI_QUEUE), each of which gets a thread
    #[arg(long, value_name = "FD", value_parser = value::fd, required = true)]
    tap_fd: Vec<RawFd>,
    /// Receives `1` and is closed once everything is in place
    #[arg(short, long, value_name = "FD", value_parser = value::fd)]
    ready_fd: Option<RawFd>,
    /// When it hangs up, the program ends
    #[arg(short, long, value_name = "FD", value_parser = value::fd)]
    exit_fd: Option<RawFd>,
    /// Largest IP packet, in bytes
    #[arg(short, long, value_name = "MTU", value_parser = value::mtu, default_value = "65520")]
    mtu: u16,
    /// The guest's network [default: 10.0.2.0/24]
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    cidr: Option<V4Network>,
    /// Carry IPv6 as well (fd00::/64)
    #[arg(short = '6', long)]
    enable_ipv6: bool,
    /// The host's loopback is not reached at the gateway's address
    #[arg(long)]
    disable_host_loopback: bool,
    /// No name server at the DNS address
    #[arg(long)]
    disable_dns: bool,
    /// Reach no file, see nothing of the file system but /etc and /run, drop capabilities
    #[arg(long)]
    enable_sandbox: bool,
    /// Allow no system calls but those of a running network
    #[arg(long)]
    enable_seccomp: bool,
    #[command(flatten)]
    observe: Observe,
    /// Publish a port of the guest, or as many as a range has, on the host
    #[arg(short, long, value_name = "[IP:]HOSTPORT[-LAST]:PORT[-LAST][/tcp|udp]", value_parser = value::publish)]
    publish: Vec<PublishArg>,
}

impl Args {
    pub(super) fn into_invocation(self) -> Result<Invocation, clap::Error> {
        if self.enable_ipv6 && self.mtu < MTU_MIN {
            let message = format!("IPv6 needs an MTU of {MTU_MIN} at least");
            return Err(refuse::<Args>(ErrorKind::ValueValidation, message));
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
        Ok(Invocation {
            config,
            device: Device::Inherited(self.tap_fd),
            ready_fd: self.ready_fd,
            exit_fd: self.exit_fd,
            api_socket: None,
            sandbox: self.enable_sandbox,
            seccomp: self.enable_seccomp,
            capture: self.observe.capture(),
            metrics: self.observe.metrics(),
            policy: self.observe.policy,
            outbound_interfaces: (None, None),
        })
    }
}
