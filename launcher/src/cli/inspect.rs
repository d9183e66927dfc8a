//! `coracle inspect`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::lifecycle::GRACE;
use super::{for_each, print, ps};
use crate::image::date::rfc3339;
use crate::plan;
use crate::policy;
use crate::spec::{
    Network, Overlay, Protocol, Restart, Root, Seccomp, Spec, Tmpfs, TmpfsOptions, Ulimit, Upper,
};
use crate::store::{Entry, State, Status, Store};
use crate::text;

/// Print all that is known of containers, as JSON.
///
/// The names are Podman's where it has them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

pub(super) fn inspect(args: &Args) -> anyhow::Result<u8> {
    let store = Store::open()?;
    let mut all = Vec::new();
    let code = for_each(&args.names, |name| {
        let entry = store.find(name)?;
        let Some((state, _)) = entry.state()? else {
            anyhow::bail!("container '{name}' is just being made: try again");
        };
        all.push(describe(&entry, &state));
        Ok(())
    });
    print(&text::json(&all)?)?;
    Ok(code)
}

fn describe(entry: &Entry, state: &State) -> Value {
    let spec = &state.spec;
    let workload = plan::workload(spec, None, state.map.is_single(), entry.name());
    let (path, arguments) =
        workload.command.split_first().map_or(("", &[][..]), |(path, rest)| (path.as_str(), rest));
    let (image, image_name) = match &spec.root {
        Root::Image(image) => (image.id.as_str(), image.name.as_str()),
        _ => ("", ""),
    };
    let rootfs = match &spec.root {
        Root::Host => Some("/".to_owned()),
        Root::Dir(dir) => Some(dir.display().to_string()),
        Root::Image(_) => None,
    };
    let upper = match &spec.upper {
        Upper::Own => Some(entry.dir().join("upper")),
        Upper::Dir(dir) => Some(dir.join("upper")),
        Upper::Ram(_) => None,
    };
    let capabilities = policy::capability_names(spec.security.capabilities);
    let hosts = spec.names.hosts.iter().map(|(name, ip)| format!("{name}:{ip}"));
    json!({
        "Id": entry.name(),
        "Name": entry.name(),
        "Created": rfc3339(state.created),
        "Path": path,
        "Args": arguments,
        "State": condition(state),
        "Image": image,
        "ImageName": image_name,
        "Rootfs": rootfs,
        "UpperDir": upper,
        "Overlay": match spec.overlay {
            Overlay::Fuse => "fuse",
            Overlay::Kernel => "kernel",
        },
        "RestartCount": state.restarts,
        "PidFile": spec.pid_file,
        "EffectiveCaps": if is_root(spec) { capabilities.clone() } else { Vec::new() },
        "BoundingCaps": capabilities,
        "Confinement": confinement(state),
        "LogPath": Some(entry.log()).filter(|log| log.exists()),
        "Config": {
            "Hostname": spec.hostname.as_deref().unwrap_or(entry.name()),
            "User": spec.user.as_deref().unwrap_or(""),
            "Env": workload.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            "Cmd": workload.command,
            "Image": image_name,
            "WorkingDir": workload.workdir,
            "Tty": spec.tty,
            "OpenStdin": spec.interactive,
            "StopSignal": spec.stop_signal.unwrap_or(libc::SIGTERM),
            "StopTimeout": spec.stop_timeout.unwrap_or(GRACE),
            "Labels": spec.labels,
        },
        "HostConfig": {
            "AutoRemove": spec.remove,
            "ReadonlyRootfs": spec.read_only,
            "NetworkMode": ps::network(state),
            "IpcMode": if spec.shares.ipc { "host" } else { "private" },
            "UTSMode": if spec.shares.uts { "host" } else { "private" },
            "PortBindings": ports(spec),
            "RestartPolicy": restart(spec.restart),
            "Memory": spec.limits.memory.unwrap_or(0),
            "NanoCpus": spec.limits.millicpus.unwrap_or(0).saturating_mul(1_000_000),
            "CpuShares": spec.limits.cpu_shares.unwrap_or(0),
            "PidsLimit": spec.limits.pids.unwrap_or(0),
            "Ulimits": spec.ulimits.iter().map(ulimit).collect::<Vec<_>>(),
            "Init": !spec.no_init,
            "Tmpfs": tmpfs(spec),
            "ShmSize": spec.memory.shm,
            "ExtraHosts": hosts.collect::<Vec<_>>(),
            "Dns": spec.names.servers,
            "DnsSearch": spec.names.search,
            "DnsOptions": spec.names.options,
        },
        "Mounts": mounts(spec),
        "NetworkSettings": addresses(spec),
        "IDMappings": state.map,
    })
}

/// Capabilities are its root's alone.
fn is_root(spec: &Spec) -> bool {
    let user = spec.user.as_deref().unwrap_or("root");
    matches!(user.split(':').next(), Some("root" | "0"))
}

/// What holds its workload: as it was started, or as it would be.
fn confinement(state: &State) -> Value {
    let security = &state.spec.security;
    let seccomp = match &security.seccomp {
        Seccomp::Default => "default".to_owned(),
        Seccomp::Unconfined => "unconfined".to_owned(),
        Seccomp::Profile { path, .. } => path.display().to_string(),
    };
    let landlock = state.confinement.landlock.as_ref().map(|rules| {
        let beneath = rules.beneath.iter();
        let files = beneath.map(|rule| json!({ "Path": rule.path, "Access": rule.access.words() }));
        json!({
            "Version": rules.version,
            "Files": files.collect::<Vec<_>>(),
            "OwnAbstractSocketsOnly": rules.own_sockets,
            "TcpListen": rules.bind,
            "TcpConnect": rules.connect,
        })
    });
    json!({
        "NoNewPrivileges": true,
        "NestedUserNamespace": state.confinement.nested,
        "Seccomp": seccomp,
        "SeccompDenied": security.deny,
        "Landlock": landlock,
        "Egress": security.egress,
        "MaskedPaths": plan::masked(security),
        "ReadonlyPaths": plan::protected(security),
        "Secrets": state.spec.memory.secrets.iter().map(|s| &s.name).collect::<Vec<_>>(),
    })
}

fn tmpfs(spec: &Spec) -> Value {
    let options = |tmpfs: &Tmpfs| {
        let TmpfsOptions { mode, size, read_only, programs } = tmpfs.options;
        let mut words = vec![if read_only { "ro" } else { "rw" }.to_owned()];
        words.push(if programs { "exec" } else { "noexec" }.to_owned());
        words.push(format!("mode={mode:o}"));
        words.extend(size.map(|bytes| format!("size={bytes}")));
        (tmpfs.target.display().to_string(), words.join(","))
    };
    json!(spec.memory.tmpfs.iter().map(options).collect::<BTreeMap<_, _>>())
}

fn condition(state: &State) -> Value {
    let code = match state.status {
        Status::Exited { code } | Status::Restarting { code } => i32::from(code),
        // Nobody knows it.
        Status::Lost => -1,
        _ => 0,
    };
    let pid = |process: Option<crate::store::Process>| {
        process.filter(|_| state.active()).map_or(0, |process| process.pid)
    };
    let time = |time: Option<u64>| rfc3339(time.unwrap_or(0));
    json!({
        "Status": ps::word(state),
        "Running": state.status == Status::Running,
        "Paused": state.is_paused(),
        "CgroupPath": state.group.as_ref().filter(|_| state.active()),
        "Restarting": matches!(state.status, Status::Restarting { .. }),
        "Dead": state.status == Status::Lost,
        "Pid": pid(state.init),
        "MonitorPid": pid(state.monitor),
        "ExitCode": code,
        "Error": state.error.as_deref().unwrap_or(match state.status {
            Status::Lost => "the monitor was killed, and all of the container with it",
            _ => "",
        }),
        "StartedAt": time(state.started),
        "FinishedAt": time(state.finished),
    })
}

fn ulimit(bound: &Ulimit) -> Value {
    let value = |bound: Option<u64>| bound.map_or_else(|| json!(-1), |bound| json!(bound));
    json!({ "Name": bound.name, "Soft": value(bound.soft), "Hard": value(bound.hard) })
}

fn restart(policy: Restart) -> Value {
    let (name, most) = match policy {
        Restart::No => ("no", 0),
        Restart::OnFailure(most) => ("on-failure", most.unwrap_or(0)),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
    };
    json!({ "Name": name, "MaximumRetryCount": most })
}

fn mounts(spec: &Spec) -> Vec<Value> {
    let mount = |volume: &crate::spec::Volume| {
        json!({
            "Type": "bind",
            "Source": volume.source,
            "Destination": volume.target,
            "RW": !volume.read_only,
            "Mode": if volume.read_only { "ro" } else { "rw" },
        })
    };
    spec.volumes.iter().map(mount).collect()
}

/// `{"80/tcp": [{"HostIp": …, "HostPort": …}]}`
fn ports(spec: &Spec) -> Value {
    let mut all = serde_json::Map::new();
    for publish in &spec.publish {
        let protocol = match publish.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let place = json!({
            "HostIp": publish.host_ip.map_or_else(String::new, |ip| ip.to_string()),
            "HostPort": publish.host_port.to_string(),
        });
        let key = format!("{}/{protocol}", publish.container_port);
        if let Value::Array(places) = all.entry(key).or_insert_with(|| json!([])) {
            places.push(place);
        }
    }
    all.into()
}

fn addresses(spec: &Spec) -> Value {
    match spec.network {
        Network::Netstack => json!({
            "IPAddress": plan::GUEST_V4,
            "IPPrefixLen": plan::PREFIX_V4,
            "Gateway": plan::GATEWAY_V4,
            "GlobalIPv6Address": plan::GUEST_V6,
            "GlobalIPv6PrefixLen": plan::PREFIX_V6,
            "IPv6Gateway": plan::GATEWAY_V6,
            "Ports": ports(spec),
        }),
        Network::None | Network::Host => json!({ "IPAddress": "", "Ports": {} }),
    }
}
