//! The devices of a network namespace, by the ioctls of netdevice(7), ipv6(7)
//! and rtnetlink's elder sibling SIOCADDRT. Addresses go in network byte order.
#![allow(unsafe_code, reason = "ioctls")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::check;

/// Device and kernel flags of [`open_tap`].
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// A qdisc at the root of its device; linux/pkt_sched.h.
const TC_H_ROOT: u32 = u32::MAX;
/// The name of a qdisc; linux/rtnetlink.h.
const TCA_KIND: u16 = 1;

/// `SIOCADDRT` for IPv6: `struct in6_rtmsg` of linux/ipv6_route.h.
#[repr(C)]
struct In6Rtmsg {
    dst: [u8; 16],
    src: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    dst_len: u16,
    src_len: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    ifindex: libc::c_int,
}

/// A socket to speak to the devices of this process's network namespace.
#[derive(Debug)]
pub struct Devices {
    v4: OwnedFd,
}

fn request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain old data; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0 as libc::c_char; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// Makes a new TAP device `name` of this process's network namespace, with
/// virtio-net headers and without packet information, and gives its queues: as many
/// as wanted, or as the kernel grants, one at least. It stays until the namespace ends:
/// the kernel then removes it in the background, while whoever closes the last
/// descriptor of another device waits for that.
///
/// # Errors
/// As of open(2), TUNSETIFF and TUNSETPERSIST.
pub fn open_tap(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let mut taps = Vec::with_capacity(queues);
    // One of several has room for 256: where one is enough, it is a plain one.
    while queues > 1 && taps.len() < queues {
        match attach(name, TAP_FLAGS | libc::IFF_MULTI_QUEUE) {
            Ok(tap) => taps.push(tap),
            // No more are granted, or this kernel knows of none.
            Err(_) => break,
        }
    }
    if taps.is_empty() {
        taps.push(attach(name, TAP_FLAGS)?);
    }
    // SAFETY: TUNSETPERSIST takes a number.
    check(unsafe { libc::ioctl(taps[0].as_raw_fd(), libc::TUNSETPERSIST as _, 1) }.into())?;
    Ok(taps)
}

/// Opens /dev/net/tun and attaches it to the device `name`, which is made when it is
/// not there.
fn attach(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let tap: OwnedFd =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?.into();
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }.into())?;
    Ok(tap)
}

impl Devices {
    /// Opens the socket.
    ///
    /// # Errors
    /// As of socket(2).
    pub fn open() -> io::Result<Self> {
        let v4 = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { v4 })
    }

    fn ioctl(&self, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every number used in this module reads and writes one ifreq.
        check(unsafe { libc::ioctl(self.v4.as_raw_fd(), number as _, request) }.into())?;
        Ok(())
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// As of SIOCSIFFLAGS.
    pub fn up(&self, device: &str) -> io::Result<()> {
        let mut request = request(device)?;
        self.ioctl(libc::SIOCGIFFLAGS as _, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has filled in this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS as _, &mut request)
    }

    /// Sets the largest IP packet of a device, in bytes.
    ///
    /// # Errors
    /// EINVAL when the device cannot.
    pub fn set_mtu(&self, device: &str, mtu: u16) -> io::Result<()> {
        let mut request = request(device)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(libc::SIOCSIFMTU as _, &mut request)
    }

    /// Sets how many packets wait for the reader of a device at most.
    ///
    /// By rtnetlink(7): SIOCSIFTXQLEN asks for privilege in the initial user
    /// namespace (net/core/dev_ioctl.c), IFLA_TXQLEN only in the device's own.
    ///
    /// # Errors
    /// As of socket(2), send(2) and recv(2), or the kernel's answer.
    pub fn set_queue(&self, device: &str, packets: u16) -> io::Result<()> {
        // struct ifinfomsg
        let mut body = vec![0; 4];
        body.extend(self.index(device)?.to_ne_bytes());
        body.extend([0; 8]);
        attribute(&mut body, libc::IFLA_TXQLEN, &u32::from(packets).to_ne_bytes());
        netlink(libc::RTM_NEWLINK, 0, &body)
    }

    /// Has packets go to a device without a queueing discipline: they wait in the device
    /// itself. Before it comes up, when the kernel would make one for each queue that it
    /// might ever have.
    ///
    /// # Errors
    /// As of socket(2), send(2) and recv(2), or the kernel's answer; that it knows of no
    /// disciplines is none.
    pub fn set_noqueue(&self, device: &str) -> io::Result<()> {
        // struct tcmsg
        let mut body = vec![0; 4];
        body.extend(self.index(device)?.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(TC_H_ROOT.to_ne_bytes());
        body.extend([0; 4]);
        attribute(&mut body, TCA_KIND, b"noqueue\0");
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        match netlink(libc::RTM_NEWQDISC, flags, &body) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    fn index(&self, device: &str) -> io::Result<libc::c_int> {
        let mut index = request(device)?;
        self.ioctl(libc::SIOCGIFINDEX as _, &mut index)?;
        // SAFETY: SIOCGIFINDEX has filled in this member of the union.
        Ok(unsafe { index.ifr_ifru.ifru_ifindex })
    }

    /// Gives a device an IPv4 address, replacing the one it had.
    ///
    /// # Errors
    /// As of SIOCSIFADDR and SIOCSIFNETMASK.
    pub fn set_v4(&self, device: &str, own: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let mut request = request(device)?;
        request.ifr_ifru.ifru_addr = address(own);
        self.ioctl(libc::SIOCSIFADDR as _, &mut request)?;
        request.ifr_ifru.ifru_netmask = address(mask.into());
        self.ioctl(libc::SIOCSIFNETMASK as _, &mut request)
    }

    /// Adds the IPv4 default route.
    ///
    /// # Errors
    /// As of SIOCADDRT.
    pub fn default_v4(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: rtentry is plain old data; all zero is a valid value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT on an IPv4 socket reads one rtentry.
        check(unsafe { libc::ioctl(self.v4.as_raw_fd(), libc::SIOCADDRT as _, &route) }.into())?;
        Ok(())
    }

    /// Gives a device an IPv6 address and the default route through `gateway`.
    ///
    /// # Errors
    /// As of socket(2), SIOCSIFADDR and SIOCADDRT.
    pub fn set_v6(
        &self,
        device: &str,
        own: Ipv6Addr,
        prefix: u8,
        gateway: Ipv6Addr,
    ) -> io::Result<()> {
        let v6 = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let ifindex = self.index(device)?;
        let request = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: own.octets() },
            ifr6_prefixlen: prefix.into(),
            ifr6_ifindex: ifindex,
        };
        // SAFETY: SIOCSIFADDR on an IPv6 socket reads one in6_ifreq.
        check(unsafe { libc::ioctl(v6.as_raw_fd(), libc::SIOCSIFADDR as _, &request) }.into())?;
        let route = In6Rtmsg {
            dst: [0; 16],
            src: [0; 16],
            gateway: gateway.octets(),
            kind: 0,
            dst_len: 0,
            src_len: 0,
            metric: 1,
            info: 0,
            flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
            ifindex,
        };
        // SAFETY: SIOCADDRT on an IPv6 socket reads one in6_rtmsg, laid out
        // above as in linux/ipv6_route.h.
        check(unsafe { libc::ioctl(v6.as_raw_fd(), libc::SIOCADDRT as _, &route) }.into())?;
        Ok(())
    }
}

/// struct rtattr: length, type; value, of a multiple of four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Asks rtnetlink for one thing, and waits for its answer.
fn netlink(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<()> {
    // struct nlmsghdr
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    // struct nlmsghdr, and of struct nlmsgerr the error: 0 or -errno.
    let mut answer = [0; 128];
    let count = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match answer[..count].get(16..20).and_then(|error| error.try_into().ok()) {
        Some(error) => match i32::from_ne_bytes(error) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
