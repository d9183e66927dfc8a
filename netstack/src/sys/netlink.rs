//! The one setting that rtnetlink(7) allows to the root of a user namespace and
//! its older ioctl does not.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recv, send, socket};
use std::os::fd::AsRawFd;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFLA_TXQLEN: u16 = 13;

/// Sets how many packets wait at the interface with this index at most.
pub(crate) fn set_queue_len(index: i32, packets: u32) -> Result<(), Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut request = Vec::with_capacity(40);
    // struct nlmsghdr: length, type, flags, sequence number, port.
    request.extend_from_slice(&40u32.to_ne_bytes());
    request.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // struct ifinfomsg: family, type, index, flags and mask (no change).
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&index.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // struct rtattr: length, type; value.
    request.extend_from_slice(&8u16.to_ne_bytes());
    request.extend_from_slice(&IFLA_TXQLEN.to_ne_bytes());
    request.extend_from_slice(&packets.to_ne_bytes());
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut reply = [0; 256];
    let len = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    // An acknowledgement is an error message whose code is 0, else -errno.
    let reply = reply.get(..len.min(20)).filter(|r| r.len() == 20).ok_or(Errno::EPROTO)?;
    if reply[4..6] != NLMSG_ERROR.to_ne_bytes() {
        return Err(Errno::EPROTO);
    }
    match i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]) {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)),
    }
}
