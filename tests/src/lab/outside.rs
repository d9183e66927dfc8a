//! A network outside the host, with servers.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{Cmd, Running};
use crate::servers;

/// The network outside the host.
#[derive(Debug)]
pub struct Outside {
    namespace: OwnedFd,
    /// Files the web server serves and stores.
    pub www: PathBuf,
    #[expect(dead_code, reason = "held for its Drop, which ends it")]
    name_server: Running,
}

impl Outside {
    /// IPv4 address of the outside.
    pub const V4: &str = "10.77.0.2";
    /// IPv6 address of the outside.
    pub const V6: &str = "fd77::2";
    /// IPv4 address of the host.
    pub const HOST_V4: &str = "10.77.0.1";
    /// IPv6 address of the host.
    pub const HOST_V6: &str = "fd77::1";
    /// An IPv4 address the host has no way to.
    pub const UNREACHABLE_V4: &str = "203.0.113.5";
    /// An IPv6 address the host has no way to.
    pub const UNREACHABLE_V6: &str = "2001:db8:dead::5";
    /// Name of the outside, with an A and an AAAA record.
    pub const NAME: &str = "outside.test";

    /// Runs `work` on a thread in the outside's network namespace; programs it
    /// starts are there too.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work`'s.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_namespace(&self.namespace, work)
    }
}

fn in_namespace<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread in the other namespace panicked")))
    })
}

pub(super) fn ip(lines: &str) -> Result<()> {
    Cmd::new("ip").args(["-force", "-batch", "-"]).stdin(lines).run()?.ok()?;
    Ok(())
}

pub(super) fn outside(dir: &Path) -> Result<Outside> {
    let namespace: OwnedFd = std::thread::spawn(|| -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
    })
    .join()
    .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))??;

    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    ip(&format!(
        "link set lo up\n\
         link add up0 type veth peer name out0 netns {path}\n\
         addr add {}/24 dev up0\n\
         addr add {}/64 dev up0 nodad\n\
         link set up0 up\n\
         route add default via {}\n\
         route add default via {}\n\
         route add unreachable {}/32\n\
         route add unreachable {}/128\n",
        Outside::HOST_V4,
        Outside::HOST_V6,
        Outside::V4,
        Outside::V6,
        Outside::UNREACHABLE_V4,
        Outside::UNREACHABLE_V6
    ))
    .context("cannot make the lab's network")?;
    // As most distributions set it: everybody may ping.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;

    let resolv = dir.join("resolv.conf");
    fs::write(&resolv, format!("nameserver {}\n", Outside::V4))?;
    mount(Some(&resolv), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("cannot bind a file over /etc/resolv.conf")?;

    let www = dir.join("www");
    fs::create_dir(&www)?;
    let name_server = in_namespace(&namespace, || {
        ip(&format!(
            "link set lo up\n\
             addr add {}/24 dev out0\n\
             addr add {}/64 dev out0 nodad\n\
             link set out0 up\n",
            Outside::V4,
            Outside::V6
        ))
        .context("cannot make the outside's network")?;
        servers::start(&www)?;
        let big = "x".repeat(250);
        let server = Cmd::new("dnsmasq")
            .args(["--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null"])
            .args(["--no-resolv", "--no-hosts", "--pid-file=", "--user=root"])
            .arg(format!("--host-record={},{},{}", Outside::NAME, Outside::V4, Outside::V6))
            .args((0..8).map(|n| format!("--txt-record=big.test,{n}{big}")))
            .spawn()?;
        server.stderr_until("started", Duration::from_secs(10))?;
        Ok(server)
    })
    .context("cannot start the outside's servers")?;
    Ok(Outside { namespace, www, name_server })
}
