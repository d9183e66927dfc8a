//! The TAP device of a container, made in its own network namespace.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::channel::{Context, Fault};
use crate::plan;
use crate::sys::net;

/// Makes it: its queues. It is up then, with its addresses and routes.
///
/// # Errors
/// What failed, and why.
pub fn make(ipv6: bool, queues: usize) -> Result<Vec<OwnedFd>, Fault> {
    const TAP: &str = "tap0";
    if ipv6 {
        // There is nobody else: addresses hold at once, and the routes are ours.
        for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
            let path = format!("/proc/sys/net/ipv6/conf/default/{setting}");
            fs::write(&path, value).context(|| format!("cannot write {path}"))?;
        }
    }
    unpaced("/proc/sys/net/ipv4/tcp_congestion_control".as_ref());
    let taps = net::open_tap(TAP, queues).context(|| "cannot make the network device tap0")?;
    let devices = net::Devices::open().context(|| "cannot open a socket")?;
    devices.set_mtu(TAP, plan::MTU).context(|| "cannot set the MTU of tap0")?;
    devices.set_queue(TAP, plan::QUEUE).context(|| "cannot set the queue length of tap0")?;
    devices.set_noqueue(TAP).context(|| "cannot take the queueing discipline off tap0")?;
    devices.up(TAP).context(|| "cannot bring up tap0")?;
    devices
        .set_v4(TAP, plan::GUEST_V4, plan::PREFIX_V4)
        .and_then(|()| devices.default_v4(plan::GATEWAY_V4))
        .context(|| "cannot give tap0 its IPv4 address and route")?;
    if ipv6 {
        devices
            .set_v6(TAP, plan::GUEST_V6, plan::PREFIX_V6, plan::GATEWAY_V6)
            .context(|| "cannot give tap0 its IPv6 address and route")?;
    }
    Ok(taps)
}

/// Nothing can be congested between here and netstack, where connections end: BBR would
/// pace them all the same, in smaller segments (as netstack's own `tap.rs`).
fn unpaced(setting: &Path) {
    if fs::read_to_string(setting).is_ok_and(|name| name.starts_with("bbr")) {
        // Where it cannot be written all works the same, slower.
        fs::write(setting, "reno").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::storage::sealed;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn only_pacing_is_changed_and_never_insisted_on() {
        let dir = tempfile::tempdir().unwrap();
        for (before, after) in [("bbr\n", "reno"), ("cubic\n", "cubic\n")] {
            let file = dir.path().join("setting");
            fs::write(&file, before).unwrap();
            unpaced(&file);
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
        unpaced(&dir.path().join("none"));
        // Not even root writes to this one.
        let fixed = sealed(c"setting", &mut &b"bbr\n"[..]).unwrap();
        let path = format!("/proc/self/fd/{}", fixed.as_raw_fd());
        assert!(fs::write(&path, "reno").is_err());
        unpaced(path.as_ref());
        assert_eq!(fs::read_to_string(&path).unwrap(), "bbr\n");
    }
}
