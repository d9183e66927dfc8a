//! ioctls on network interfaces and routes (netdevice(7), ipv6(7)). The socket
//! passed in decides the network namespace.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// A request about the interface `name`.
///
/// # Errors
/// ENAMETOOLONG when the name does not fit with its terminating zero.
pub(super) fn named(name: &str) -> Result<libc::ifreq, Errno> {
    if name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(Errno::ENAMETOOLONG);
    }
    // SAFETY: ifreq consists of integers, arrays and pointers, for which zeroes are
    // valid values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    Ok(request)
}

/// Performs an interface ioctl.
///
/// # Safety
/// `request` must be one that reads or writes a `T` at its argument and nothing
/// beyond it.
unsafe fn perform<T>(
    socket: impl AsFd,
    request: libc::Ioctl,
    argument: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the caller has matched request and type; the pointer is to a live,
    // exclusively borrowed value.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop)
}

fn sockaddr_v4(addr: Ipv4Addr) -> libc::sockaddr {
    let v4 = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(addr).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both types are plain bytes of the same size (16), as the sockets API
    // has it.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(v4) }
}

/// Adds `IFF_UP` to the flags of an interface.
pub(crate) fn set_up(socket: impl AsFd, name: &str) -> Result<(), Errno> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFFLAGS writes the flags of a `struct ifreq`.
    unsafe { perform(socket.as_fd(), libc::SIOCGIFFLAGS, &mut request) }?;
    // SAFETY: the kernel has just set the flags; any bytes are a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCSIFFLAGS, &mut request) }
}

/// Sets the MTU, in bytes.
pub(crate) fn set_mtu(socket: impl AsFd, name: &str, mtu: u16) -> Result<(), Errno> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_mtu = i32::from(mtu);
    // SAFETY: SIOCSIFMTU reads a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCSIFMTU, &mut request) }
}

/// Sets the Ethernet address.
pub(crate) fn set_mac(socket: impl AsFd, name: &str, mac: [u8; 6]) -> Result<(), Errno> {
    let mut request = named(name)?;
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCSIFHWADDR reads a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCSIFHWADDR, &mut request) }
}

/// The interface's Ethernet address.
pub(crate) fn mac(socket: impl AsFd, name: &str) -> Result<[u8; 6], Errno> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFHWADDR writes the address of a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCGIFHWADDR, &mut request) }?;
    // SAFETY: the kernel has just set the address; any bytes are a valid one.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(mac)
}

/// Sets the one IPv4 address and its prefix length.
pub(crate) fn set_address_v4(
    socket: impl AsFd,
    name: &str,
    addr: Ipv4Addr,
    prefix: u8,
) -> Result<(), Errno> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_addr = sockaddr_v4(addr);
    // SAFETY: SIOCSIFADDR on an IPv4 socket reads a `struct ifreq`.
    unsafe { perform(socket.as_fd(), libc::SIOCSIFADDR, &mut request) }?;
    let mask = u32::MAX.checked_shl(u32::from(32 - prefix.min(32))).unwrap_or(0);
    request.ifr_ifru.ifru_netmask = sockaddr_v4(mask.into());
    // SAFETY: SIOCSIFNETMASK reads a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCSIFNETMASK, &mut request) }
}

/// Adds a default route.
pub(crate) fn add_default_route_v4(socket: impl AsFd, gateway: Ipv4Addr) -> Result<(), Errno> {
    // SAFETY: rtentry consists of integers, sockaddrs and pointers, for which
    // zeroes are valid values.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = sockaddr_v4(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = sockaddr_v4(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = sockaddr_v4(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT on an IPv4 socket reads a `struct rtentry`; its device
    // name pointer is null, which means none.
    unsafe { perform(socket, libc::SIOCADDRT, &mut route) }
}

/// `struct in6_ifreq` of linux/ipv6.h.
#[repr(C)]
struct In6Ifreq {
    addr: libc::in6_addr,
    prefix_len: u32,
    index: libc::c_int,
}

/// `struct in6_rtmsg` of linux/ipv6_route.h.
#[repr(C)]
struct In6Rtmsg {
    dst: libc::in6_addr,
    src: libc::in6_addr,
    gateway: libc::in6_addr,
    kind: u32,
    dst_len: u16,
    src_len: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: libc::c_int,
}

/// The interface's index.
pub(crate) fn index(socket: impl AsFd, name: &str) -> Result<libc::c_int, Errno> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFINDEX writes the index of a `struct ifreq`.
    unsafe { perform(socket, libc::SIOCGIFINDEX, &mut request) }?;
    // SAFETY: the kernel has just set the index; any bytes are a valid int.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Adds an IPv6 address. `socket` must be an IPv6 one.
pub(crate) fn add_address_v6(
    socket: impl AsFd,
    name: &str,
    addr: Ipv6Addr,
    prefix: u8,
) -> Result<(), Errno> {
    let mut request = In6Ifreq {
        addr: libc::in6_addr { s6_addr: addr.octets() },
        prefix_len: u32::from(prefix),
        index: index(socket.as_fd(), name)?,
    };
    // SAFETY: SIOCSIFADDR on an IPv6 socket reads a `struct in6_ifreq`, whose
    // layout In6Ifreq has.
    unsafe { perform(socket, libc::SIOCSIFADDR, &mut request) }
}

/// Adds an IPv6 default route. `socket` must be an IPv6 one.
pub(crate) fn add_default_route_v6(
    socket: impl AsFd,
    name: &str,
    gateway: Ipv6Addr,
) -> Result<(), Errno> {
    let none = libc::in6_addr { s6_addr: [0; 16] };
    let mut route = In6Rtmsg {
        dst: none,
        src: none,
        gateway: libc::in6_addr { s6_addr: gateway.octets() },
        kind: 0,
        dst_len: 0,
        src_len: 0,
        metric: 1024,
        info: 0,
        flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
        index: index(socket.as_fd(), name)?,
    };
    // SAFETY: SIOCADDRT on an IPv6 socket reads a `struct in6_rtmsg`, whose
    // layout In6Rtmsg has.
    unsafe { perform(socket, libc::SIOCADDRT, &mut route) }
}
