//! The settings that rtnetlink(7) allows to the root of a user namespace and that no
//! ioctl makes, or only one that asks for more.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recv, send, socket};
use std::os::fd::AsRawFd;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWQDISC: u16 = 36;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE_REPLACE: u16 = 0x400 | 0x100;
const IFLA_TXQLEN: u16 = 13;
const TCA_KIND: u16 = 1;
const TC_H_ROOT: u32 = u32::MAX;

/// Sets how many packets wait at the interface with this index at most.
pub(crate) fn set_queue_len(index: i32, packets: u32) -> Result<(), Errno> {
    // struct ifinfomsg: family, type, index, flags and mask (no change).
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&[0; 8]);
    attribute(&mut body, IFLA_TXQLEN, &packets.to_ne_bytes());
    request(RTM_NEWLINK, NLM_F_REQUEST_ACK, &body)
}

/// Has packets go to the interface with this index without a queueing discipline
/// (net/sched/sch_generic.c, noqueue).
pub(crate) fn set_noqueue(index: i32) -> Result<(), Errno> {
    // struct tcmsg: family, padding, index, handle, parent, info.
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&TC_H_ROOT.to_ne_bytes());
    body.extend_from_slice(&[0; 4]);
    attribute(&mut body, TCA_KIND, b"noqueue\0");
    request(RTM_NEWQDISC, NLM_F_REQUEST_ACK | NLM_F_CREATE_REPLACE, &body)
}

/// struct rtattr: length, type; value, of a multiple of four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
}

/// Sends one message in this network namespace, and waits for what the kernel says.
fn request(kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // struct nlmsghdr: length, type, flags, sequence number, port.
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
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
