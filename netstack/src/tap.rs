//! Entering a namespace, making and configuring a TAP device, and what the
//! kernel granted on it.
//!
//! # Theory of operation
//!
//! A process that has entered a network namespace for good could not open sockets
//! on the host any more. So a child enters it, makes the device, configures it and
//! passes the descriptor back. The namespace is entered directly where we are
//! powerful enough, and through the user namespace that owns it otherwise: being
//! its creator is what makes an unprivileged user powerful there. Offloads are
//! negotiated by the parent: that needs nothing but the descriptor. The kernel takes its
//! time to make a device, and the parent has other things to do until it is there
//! ([`Making`]).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, fstat};

use crate::config::Config;
use crate::stack::frame::{Mac, VNET_LEN};
use crate::sys::{ifreq, netlink, ns, process, tun};

/// How many packets of the guest wait for us at most. The default of 1,000 is
/// less than a TCP window holds at MTU 1500, and what does not fit is lost.
const QUEUE_LEN: u32 = 10_000;

/// What TUNSETVNETHDRSZ and TUNSETOFFLOAD granted on a TAP device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Every frame is preceded by a virtio-net header of
    /// [`crate::stack::frame::VNET_LEN`] bytes (IFF_VNET_HDR).
    pub vnet: bool,
    /// Checksums need not be filled in (TUN_F_CSUM).
    pub csum: bool,
    /// The guest may send TCP/IPv4 segments up to 64 KiB (TUN_F_TSO4).
    pub tso4: bool,
    /// The guest may send TCP/IPv6 segments up to 64 KiB (TUN_F_TSO6).
    pub tso6: bool,
    /// The guest may send UDP segments up to 64 KiB (TUN_F_USO4 and 6).
    pub uso: bool,
}

/// Where to make a TAP device, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The network namespace, as a file.
    pub netns: PathBuf,
    /// The user namespace to enter it through; its owner when absent.
    pub userns: Option<PathBuf>,
    /// Name of the interface; made when there is none.
    pub name: String,
    /// Queues wanted; there are fewer where the kernel does not grant them.
    pub queues: usize,
    /// What to set up besides; None leaves all that to the guest.
    pub interface: Option<Interface>,
}

/// How to configure the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Ethernet address; the kernel's choice when absent.
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Address, prefix length and default gateway.
    pub v4: (Ipv4Addr, u8, Ipv4Addr),
    /// Address and default gateway, in a /64.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
}

impl Interface {
    /// As the stack expects its guest.
    pub fn new(config: &Config, mac: Option<Mac>) -> Interface {
        Interface {
            mac,
            mtu: config.mtu,
            v4: (config.v4.guest, config.v4.prefix, config.v4.gateway),
            v6: config.enable_ipv6.then_some((config.v6.guest, config.v6.gateway)),
        }
    }
}

/// An attached TAP device.
#[derive(Debug)]
pub struct Tap {
    /// The device's queues, one at least: each reads frames of the guest and writes
    /// frames to it. The kernel keeps a flow to the queue that last wrote to it.
    pub queues: Vec<OwnedFd>,
    /// What was granted.
    pub offloads: Offloads,
    /// Ethernet address of the guest's side: frames to a guest that has not sent
    /// any yet must carry it.
    pub mac: Option<Mac>,
    /// What could not be set up and is not needed, to be told to the user.
    pub remarks: Vec<String>,
    /// Who has made it: about to end, which takes longer than others need to wait.
    pub maker: Option<process::Child>,
}

/// A device that a child makes meanwhile.
#[derive(Debug)]
pub struct Making(process::Child);

/// Why there is no TAP device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace file could not be opened.
    #[error("cannot open the {kind} namespace {path}: {errno}{}", gone(errno))]
    Namespace {
        /// "network" or "user".
        kind: &'static str,
        /// The file.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// What the child in the namespace could not do.
    #[error("{0}")]
    Inside(String),
    /// The child itself failed.
    #[error("cannot work in the network namespace: {0}")]
    Child(Errno),
    /// The device has virtio-net headers, but not of the length or byte order that
    /// the stack reads and writes.
    #[error("cannot set the TAP's virtio-net header: {0}")]
    Header(Errno),
    /// The socket for a peer cannot be made.
    #[error("cannot wait for a peer at {0}: {1}")]
    Bess(String, Errno),
    /// The descriptor is of no use.
    #[error("descriptor {0}: {1}")]
    Adopt(i32, String),
}

fn gone(errno: &Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "; is the process still running, is the path right?",
        Errno::EACCES | Errno::EPERM => "; is it yours?",
        _ => "",
    }
}

/// Begins to make the device in the namespace, or to attach to the one of that name. The
/// process must have one thread.
///
/// # Errors
/// No such namespace, or no child.
pub fn create(request: &Request) -> Result<Making, Error> {
    let netns = open_namespace("network", &request.netns)?;
    let userns = match &request.userns {
        Some(path) => Some(open_namespace("user", path)?),
        None => None,
    };
    let work = || {
        let mut remarks = String::new();
        enter(&netns, userns.as_ref()).map_err(|e| e.0)?;
        let queues = attach(&request.name, request.queues).map_err(|e| e.0)?;
        if request.interface.is_some() || queues.len() > 1 {
            unqueue(&request.name, &mut remarks).map_err(|e| e.0)?;
        }
        if let Some(interface) = &request.interface {
            configure(&request.name, interface, &mut remarks).map_err(|e| e.0)?;
        }
        Ok((queues, remarks))
    };
    process::in_child(work).map(Making).map_err(Error::Child)
}

impl Making {
    /// Waits for the device.
    ///
    /// # Errors
    /// No right to enter the namespace, no TAP driver, or a refused setting.
    pub fn finish(self) -> Result<Tap, Error> {
        let (queues, remarks) = self.0.outcome().map_err(Error::Child)?.map_err(Error::Inside)?;
        let first = queues.first().ok_or(Error::Child(Errno::EPROTO))?;
        let (_, flags) = tun::iff(first).map_err(Error::Child)?;
        // Of the device, whichever queue asks.
        let offloads = negotiate(first, flags & libc::IFF_VNET_HDR != 0)?;
        let mac = mac_of(first);
        let remarks = remarks.lines().map(String::from).collect();
        Ok(Tap { queues, offloads, mac, remarks, maker: Some(self.0) })
    }
}

/// Takes a device that someone else has made and attached: its queues, one at least.
///
/// # Errors
/// A descriptor is no attached TAP device without packet information header, or not a
/// queue of the same device as the first.
pub fn adopt(queues: Vec<OwnedFd>) -> Result<Tap, Error> {
    let mut device = None;
    for fd in &queues {
        let refuse = |why: String| Error::Adopt(fd.as_raw_fd(), why);
        let (name, flags) = tun::iff(fd).map_err(|errno| match errno {
            Errno::EBADFD => refuse("the TAP device is not attached (TUNSETIFF)".into()),
            other => refuse(format!("not a TAP device: {other}")),
        })?;
        if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(refuse("the device must be opened with IFF_TAP and IFF_NO_PI".into()));
        }
        if queues.len() > 1 && flags & libc::IFF_MULTI_QUEUE == 0 {
            return Err(refuse("one of several queues must be opened with IFF_MULTI_QUEUE".into()));
        }
        // Another namespace may have a device of that name, with another address.
        let found = (name, flags, mac_of(fd));
        match &device {
            None => device = Some(found),
            Some(first) if *first != found => {
                return Err(refuse("not a queue of the same device as the one before".into()));
            }
            Some(_) => {}
        }
    }
    let (Some(first), Some((_, flags, mac))) = (queues.first(), device) else {
        return Err(Error::Child(Errno::ENODEV));
    };
    let offloads = negotiate(first, flags & libc::IFF_VNET_HDR != 0)?;
    Ok(Tap { queues, offloads, mac, remarks: Vec::new(), maker: None })
}

/// Waits at a UNIX socket for the one peer whose packets are frames (the transport
/// "bess" of User Mode Linux: SOCK_SEQPACKET, an Ethernet frame a packet, no header).
/// The socket is made for its owner only, and goes once the peer is there. None when
/// `exit` hangs up first.
///
/// # Errors
/// The socket cannot be made.
pub fn bess(path: &Path, exit: Option<&OwnedFd>) -> Result<Option<Tap>, Error> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{Backlog, UnixAddr, accept4, bind, listen};
    let failed = |errno: Errno| Error::Bess(path.display().to_string(), errno);
    let addr = UnixAddr::new(path).map_err(failed)?;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed)?;
    // The file's mode is that of the socket when it is bound.
    nix::sys::stat::fchmod(&socket, Mode::from_bits_truncate(0o600)).map_err(failed)?;
    bind(socket.as_raw_fd(), &addr).map_err(failed)?;
    listen(&socket, Backlog::new(1).map_err(failed)?).map_err(failed)?;
    loop {
        let mut watched = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        watched.extend(exit.map(|exit| PollFd::new(exit.as_fd(), PollFlags::POLLIN)));
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) if watched.get(1).is_some_and(|exit| exit.any().unwrap_or(true)) => {
                std::fs::remove_file(path).ok();
                return Ok(None);
            }
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    let peer = accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    // Whoever comes now finds nobody.
    std::fs::remove_file(path).ok();
    let queues = vec![crate::sys::fd::own(peer)];
    let (offloads, remarks) = (Offloads::default(), Vec::new());
    Ok(Some(Tap { queues, offloads, mac: None, remarks, maker: None }))
}

/// The driver answers this question on the device's own descriptor, wherever the
/// interface is. Without an answer the address is learnt from the guest's frames.
fn mac_of(fd: &OwnedFd) -> Option<Mac> {
    ifreq::mac(fd, "").ok()
}

/// Asks for everything, then for less.
fn negotiate(fd: &OwnedFd, vnet: bool) -> Result<Offloads, Error> {
    use tun::offload::{CSUM, TSO_ECN, TSO4, TSO6, USO4, USO6};
    if !vnet {
        return Ok(Offloads::default());
    }
    tun::set_vnet_header_len(fd, VNET_LEN as i32).map_err(Error::Header)?;
    // On a little-endian host this is the order anyway.
    match tun::set_vnet_little_endian(fd) {
        Err(errno) if cfg!(target_endian = "big") => return Err(Error::Header(errno)),
        _ => {}
    }
    let tso = CSUM | TSO4 | TSO6;
    let wishes = [tso | TSO_ECN | USO4 | USO6, tso | TSO_ECN, tso, CSUM | TSO4, CSUM];
    let granted = wishes.into_iter().find(|bits| tun::set_offload(fd, *bits).is_ok()).unwrap_or(0);
    let has = |bit| granted & bit != 0;
    Ok(Offloads { vnet, csum: has(CSUM), tso4: has(TSO4), tso6: has(TSO6), uso: has(USO4) })
}

/// What went wrong inside, in words that survive the way back to the parent.
struct Failure(String);

fn failed<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
    move |why| Failure(format!("{what}: {why}"))
}

fn open_namespace(kind: &'static str, path: &Path) -> Result<OwnedFd, Error> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Namespace { kind, path: path.display().to_string(), errno })
}

fn enter(netns: &OwnedFd, userns: Option<&OwnedFd>) -> Result<(), Failure> {
    let refused = |errno: Errno| {
        let hint = match errno {
            Errno::EPERM => "; it must have been made by you, or you must be root",
            Errno::EINVAL => "; is this a network namespace?",
            _ => "",
        };
        Failure(format!("cannot enter the network namespace: {errno}{hint}"))
    };
    match userns {
        Some(userns) => {
            if !is_own_userns(userns) {
                setns(userns, CloneFlags::CLONE_NEWUSER)
                    .map_err(failed("cannot enter the user namespace"))?;
            }
        }
        None => match setns(netns, CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) => {
                let owner = ns::owner(netns).map_err(refused)?;
                setns(owner, CloneFlags::CLONE_NEWUSER).map_err(refused)?;
            }
            other => return other.map_err(refused),
        },
    }
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(refused)
}

/// Entering the user namespace one is in fails with EINVAL.
fn is_own_userns(userns: &OwnedFd) -> bool {
    let own = open("/proc/self/ns/user", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    match (own.and_then(fstat), fstat(userns)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn open_tun() -> Result<OwnedFd, Failure> {
    let path = "/dev/net/tun";
    open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty()).map_err(
        |errno| {
            let hint = match errno {
                Errno::ENOENT | Errno::ENODEV => "; load the kernel module `tun`",
                _ => "",
            };
            Failure(format!("cannot open {path}: {errno}{hint}"))
        },
    )
}

fn attach(name: &str, queues: usize) -> Result<Vec<OwnedFd>, Failure> {
    let fd = open_tun()?;
    let base = libc::IFF_TAP | libc::IFF_NO_PI;
    // A persistent device made by someone else keeps its number of queues, and
    // EINVAL says that it does not match.
    let many = |flags| flags | libc::IFF_MULTI_QUEUE;
    let vnet = base | libc::IFF_VNET_HDR;
    let wishes = if queues > 1 {
        [many(vnet), vnet, many(base), base]
    } else {
        [vnet, many(vnet), base, many(base)]
    };
    let mut last = Errno::EINVAL;
    for flags in wishes {
        match tun::set_iff(&fd, name, flags) {
            Ok(()) => return more_queues(fd, name, flags, queues),
            Err(errno) => last = errno,
        }
        if last != Errno::EINVAL {
            break;
        }
    }
    let hint = match last {
        Errno::EBUSY => "; another program is attached to it",
        Errno::EINVAL => "; is there an interface of that name that is no TAP?",
        _ => "",
    };
    Err(Failure(format!("cannot make the TAP device {name}: {last}{hint}")))
}

/// Attaches to the device again until there are as many queues as wanted, or no more
/// are granted.
fn more_queues(
    first: OwnedFd,
    name: &str,
    flags: i32,
    wanted: usize,
) -> Result<Vec<OwnedFd>, Failure> {
    let mut queues = vec![first];
    while flags & libc::IFF_MULTI_QUEUE != 0 && queues.len() < wanted {
        let fd = open_tun()?;
        if tun::set_iff(&fd, name, flags).is_err() {
            break;
        }
        queues.push(fd);
    }
    Ok(queues)
}

/// Takes the queueing discipline off the device: packets wait in the device itself. One
/// of the kernel's choice would be made once the link comes up, with a queue of the
/// device's length for each of the 256 queues a TAP may have (net/sched/sch_mq.c): 97 MiB
/// of memory and 7 ms.
fn unqueue(name: &str, remarks: &mut String) -> Result<(), Failure> {
    let socket = control_socket(AddressFamily::Inet)?;
    match ifreq::index(&socket, name).and_then(netlink::set_noqueue) {
        // A kernel without disciplines makes none.
        Ok(()) | Err(Errno::EOPNOTSUPP) => {}
        Err(errno) => {
            *remarks += &format!(
                "cannot take the queueing discipline off {name}: {errno}; \
                 it takes memory of the kernel\n"
            );
        }
    }
    Ok(())
}

fn configure(name: &str, interface: &Interface, remarks: &mut String) -> Result<(), Failure> {
    let v4 = control_socket(AddressFamily::Inet)?;
    let on = |what: &str| format!("cannot set {what} of {name}");
    ifreq::set_up(&v4, "lo").map_err(failed("cannot bring lo up"))?;
    if let Some(mac) = interface.mac {
        ifreq::set_mac(&v4, name, mac).map_err(failed(on("the Ethernet address")))?;
    }
    ifreq::set_mtu(&v4, name, interface.mtu).map_err(failed(on("the MTU")))?;
    let index = ifreq::index(&v4, name).map_err(failed(on("the queue length")))?;
    if let Err(errno) = netlink::set_queue_len(index, QUEUE_LEN) {
        *remarks +=
            &format!("{}: {errno}; packets may be lost under load\n", on("the queue length"));
    }
    if interface.v6.is_some() {
        // Before the link comes up: the address is ours alone and usable at once,
        // and there is one address, not a second one made up by the kernel.
        for setting in ["accept_dad", "accept_ra", "autoconf"] {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
            if let Err(e) = std::fs::write(&path, "0") {
                *remarks += &format!("cannot write {path}: {e}\n");
            }
        }
    }
    unpace(remarks);
    let (addr, prefix, gateway) = interface.v4;
    ifreq::set_address_v4(&v4, name, addr, prefix).map_err(failed(on("the IPv4 address")))?;
    ifreq::set_up(&v4, name).map_err(failed(format!("cannot bring {name} up")))?;
    ifreq::add_default_route_v4(&v4, gateway).map_err(failed("cannot add the default route"))?;
    if let Some((addr, gateway)) = interface.v6 {
        let v6 = control_socket(AddressFamily::Inet6)?;
        ifreq::add_address_v6(&v6, name, addr, 64).map_err(failed(on("the IPv6 address")))?;
        ifreq::add_default_route_v6(&v6, name, gateway)
            .map_err(failed("cannot add the IPv6 default route"))?;
    }
    Ok(())
}

/// Has the guest send without pacing. Nothing can be congested between it and us, where
/// its connections end; BBR, which a new namespace has where the host has it, sends by
/// timers and in smaller segments all the same. Reno is in every kernel (net/ipv4/tcp_cong.c)
/// and free to all. Other algorithms do not pace, and stay.
fn unpace(remarks: &mut String) {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    let paces = std::fs::read_to_string(path).is_ok_and(|name| name.starts_with("bbr"));
    if paces && let Err(e) = std::fs::write(path, "reno") {
        *remarks += &format!("cannot write {path}: {e}; the guest sends slower\n");
    }
}

fn control_socket(family: AddressFamily) -> Result<OwnedFd, Failure> {
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed("cannot make a socket in the network namespace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_says_what_and_why() {
        let request = Request {
            netns: "/nonexistent/ns".into(),
            userns: None,
            name: "tap0".into(),
            queues: 1,
            interface: None,
        };
        let message = create(&request).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/ns") && message.contains("ENOENT"), "{message}");
    }

    #[test]
    fn only_a_tap_device_is_adopted() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let message = adopt(vec![null.into()]).unwrap_err().to_string();
        assert!(message.contains("not a TAP device"), "{message}");
    }
}
