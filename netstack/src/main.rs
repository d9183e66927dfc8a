//! Entry point: parse, wire, exit.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::process::ExitCode;

use anyhow::Context;
use netstack::cli::{self, Device, Invocation};
use netstack::stack::egress::Egress;
use netstack::{
    clients, confine, driver, egress, fd, metrics, outbound, pcap, reader, report, resolv, sandbox,
    tap,
};

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) if error.use_stderr() => {
            report::say(&format!("{}; see netstack --help", on_one_line(&error.to_string())));
            return ExitCode::FAILURE;
        }
        Err(help_or_version) => {
            return match help_or_version.print() {
                Ok(()) => ExitCode::SUCCESS,
                // Whoever was reading has seen enough: as if by SIGPIPE.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 141.into(),
                Err(error) => {
                    report::say(&format!("cannot write to standard output: {error}"));
                    ExitCode::FAILURE
                }
            };
        }
    };
    match run(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::say(&told_once(&error));
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with a command line, without the usage and hints that clap puts
/// below it.
fn on_one_line(message: &str) -> String {
    let body = message.split("\n\n").next().unwrap_or(message);
    let lines: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

/// The error and its causes on one line, without those that a message above them
/// has told already.
fn told_once(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn run(invocation: Invocation) -> anyhow::Result<()> {
    let mut inherited = Inherited::default();
    let ready = inherited.take("--ready-fd", invocation.ready_fd)?;
    let exit = inherited.take("--exit-fd", invocation.exit_fd)?;

    let mut config = invocation.config;
    let (v4, v6) = &invocation.outbound_interfaces;
    if let Some(name) = v4 {
        config.outbound_v4 = Some(outbound::ipv4_of(name).context("--outbound-addr")?);
    }
    if let Some(name) = v6 {
        config.outbound_v6 = Some(outbound::ipv6_of(name).context("--outbound-addr6")?);
    }
    let device: Pending = match invocation.device {
        Device::Create(mut request) => {
            request.queues = driver::queues_wanted();
            let making = tap::create(&request)?;
            Box::new(|| making.finish())
        }
        Device::Inherited(queues) => {
            let take = |raw| inherited.take("the TAP device", Some(raw)).transpose();
            let queues = queues.into_iter().filter_map(take).collect::<anyhow::Result<_>>()?;
            let tap = tap::adopt(queues)?;
            Box::new(|| Ok(tap))
        }
        Device::Bess(path) => match tap::bess(&path, exit.as_ref())? {
            Some(peer) => Box::new(|| Ok(peer)),
            None => return Ok(()),
        },
    };
    let mut files = clients::Files::default();
    let api = match &invocation.api_socket {
        Some(path) => Some(clients::Listener::unix(path).context("--api-socket")?),
        None => None,
    };
    files.extend(&api);
    let metrics = match &invocation.metrics {
        Some(address) => Some(metrics::listen(address).context("--metrics")?),
        None => None,
    };
    files.extend(&metrics);
    let capture = match &invocation.capture {
        Some(request) => Some(pcap::Capture::create(request).context("--pcap")?),
        None => None,
    };
    let mut resolv = resolv::Resolv::new("/etc/resolv.conf".into());
    let hosts = resolv.refresh().unwrap_or_else(|| resolv::parse(""));
    config.name_servers = hosts.servers;
    config.search = hosts.search;
    let confined = invocation.sandbox || invocation.seccomp;
    // By its full path: the child that reads it again may stand elsewhere.
    let policy = match &invocation.policy {
        Some(path) => Some(std::path::absolute(path).context("--policy")?),
        None => None,
    };
    let egress = match &policy {
        Some(path) => {
            Some(read_policy(path).with_context(|| format!("--policy {}", path.display()))?)
        }
        None => None,
    };
    let reader = reader::Reader::start(resolv, policy, files.list(), confined)
        .context("cannot start the process that reads files")?;
    // It removes them, whatever we may do by then.
    files.forget();
    if invocation.sandbox {
        sandbox::enter().context("--enable-sandbox")?;
        confine::files().context("--enable-sandbox")?;
    }
    let tap = device()?;
    for remark in &tap.remarks {
        report::warn(remark);
    }
    driver::run(driver::Inputs {
        config,
        queues: tap.queues,
        offloads: tap.offloads,
        maker: tap.maker,
        ready,
        exit,
        api,
        egress,
        capture,
        metrics,
        reader,
        confine: if invocation.seccomp { confine::network } else { || Ok(()) },
        guest_mac: tap.mac,
    })?;
    Ok(())
}

/// The device, once it is there.
type Pending = Box<dyn FnOnce() -> Result<tap::Tap, tap::Error>>;

fn read_policy(path: &std::path::Path) -> anyhow::Result<Egress> {
    let text = reader::read(path).map_err(anyhow::Error::msg)?;
    let text = String::from_utf8(text).context("not UTF-8")?;
    Ok(Egress::new(egress::parse(&text)?))
}

/// Descriptors of the parent, each taken once.
#[derive(Default)]
struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    fn take(
        &mut self,
        option: &str,
        raw: Option<RawFd>,
    ) -> anyhow::Result<Option<std::os::fd::OwnedFd>> {
        let Some(raw) = raw else { return Ok(None) };
        anyhow::ensure!(self.0.insert(raw), "{option} {raw}: another option has this descriptor");
        let fd = fd::inherited(raw)
            .with_context(|| format!("{option} {raw}: no such descriptor was inherited"))?;
        Ok(Some(fd))
    }
}
