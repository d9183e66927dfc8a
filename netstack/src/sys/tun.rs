//! ioctls of the TUN/TAP driver (linux/if_tun.h).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// `TUN_F_*` bits of TUNSETOFFLOAD.
pub(crate) mod offload {
    pub(crate) const CSUM: u32 = 0x01;
    pub(crate) const TSO4: u32 = 0x02;
    pub(crate) const TSO6: u32 = 0x04;
    pub(crate) const TSO_ECN: u32 = 0x08;
    pub(crate) const USO4: u32 = 0x20;
    pub(crate) const USO6: u32 = 0x40;
}

/// Makes the interface `name`, or attaches to it when it exists, and binds it to
/// `tun` (an open /dev/net/tun). `flags` are `IFF_*`.
pub(crate) fn set_iff(tun: impl AsFd, name: &str, flags: i32) -> Result<(), Errno> {
    let mut request = super::ifreq::named(name)?;
    // The kernel has 16 bits for them.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is,
    // and keeps no pointer to it.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop)
}

/// Name and `IFF_*` flags of an attached device.
///
/// # Errors
/// EBADFD when the device is not attached, ENOTTY when this is no TUN device.
pub(crate) fn iff(tun: impl AsFd) -> Result<([libc::c_char; libc::IFNAMSIZ], i32), Errno> {
    let mut request = super::ifreq::named("")?;
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which `request` is; on other
    // kinds of descriptors it is an unknown request, which fails.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    Errno::result(result)?;
    // SAFETY: TUNGETIFF has filled the flags in; any bytes are a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((request.ifr_name, i32::from(flags.cast_unsigned())))
}

/// Sets the length of the virtio-net header in front of every frame, in bytes.
pub(crate) fn set_vnet_header_len(tun: impl AsFd, len: i32) -> Result<(), Errno> {
    // SAFETY: TUNSETVNETHDRSZ reads one int and keeps no pointer to it.
    let result =
        unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    Errno::result(result).map(drop)
}

/// Makes the virtio-net header's fields little-endian whatever the host is.
pub(crate) fn set_vnet_little_endian(tun: impl AsFd) -> Result<(), Errno> {
    // _IOW('T', 220, int); the libc crate does not have it.
    const TUNSETVNETLE: libc::Ioctl = 0x4004_54dc;
    let on: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int and keeps no pointer to it.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETVNETLE, &raw const on) };
    Errno::result(result).map(drop)
}

/// Says which offloads ([`offload`]) frames read from the device may use.
pub(crate) fn set_offload(tun: impl AsFd, bits: u32) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes the bits as the argument itself.
    let result = unsafe {
        libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits))
    };
    Errno::result(result).map(drop)
}
