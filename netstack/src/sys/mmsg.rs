//! recvmmsg(2): several datagrams with one system call, each of which may be several
//! that the kernel has joined (UDP_GRO, udp(7)).

use std::fmt;
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Messages taken at once.
const MESSAGES: usize = 16;
/// The largest message, joined or not.
const MESSAGE_MAX: usize = 65536;

/// A control message with one int, and its padding (CMSG_SPACE).
const CONTROL_LEN: usize = 24;

/// Room for the messages of a call. What no message has reached takes no memory.
pub(crate) struct Inbound {
    bytes: Box<[u8]>,
    names: [libc::sockaddr_storage; MESSAGES],
    controls: [Control; MESSAGES],
    /// Bytes of each message, and of its control messages.
    lens: [(usize, usize); MESSAGES],
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// A message: datagrams of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) from: SocketAddr,
    /// One datagram, or several of the same length of which the last may be shorter.
    pub(crate) data: &'a [u8],
    /// That length, in bytes, where there are several.
    pub(crate) segment: Option<usize>,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound").finish_non_exhaustive()
    }
}

impl Inbound {
    pub(crate) fn new() -> Inbound {
        // SAFETY: all zeroes is a valid sockaddr_storage: AF_UNSPEC.
        let name: libc::sockaddr_storage = unsafe { zeroed() };
        Inbound {
            bytes: vec![0; MESSAGES * MESSAGE_MAX].into_boxed_slice(),
            names: [name; MESSAGES],
            controls: [Control([0; CONTROL_LEN]); MESSAGES],
            lens: [(0, 0); MESSAGES],
        }
    }

    /// Takes messages without waiting. Gives how many, and whether there may be more.
    ///
    /// # Errors
    /// EAGAIN when there is none; an error of the socket.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> Result<(usize, bool), Errno> {
        // SAFETY: all zeroes is a valid iovec and a valid mmsghdr: null pointers and
        // no lengths.
        let (mut places, mut headers): ([libc::iovec; MESSAGES], [libc::mmsghdr; MESSAGES]) =
            unsafe { (zeroed(), zeroed()) };
        let parts = self.bytes.chunks_exact_mut(MESSAGE_MAX);
        for (((header, place), part), (name, control)) in headers
            .iter_mut()
            .zip(&mut places)
            .zip(parts)
            .zip(self.names.iter_mut().zip(&mut self.controls))
        {
            *place = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = place;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: every header points to memory of the lengths it tells, which lives
        // until the call returns and nobody else uses; the kernel keeps no pointer. No
        // timeout is given.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = Errno::result(count)?.unsigned_abs() as usize;
        for (len, header) in self.lens.iter_mut().zip(&headers[..count]) {
            *len = (header.msg_len as usize, header.msg_hdr.msg_controllen);
        }
        Ok((count, count == MESSAGES))
    }

    /// Message `index` of the last call; None when its sender is no IP address.
    pub(crate) fn get(&self, index: usize) -> Option<Received<'_>> {
        let (len, control) = *self.lens.get(index)?;
        let start = index * MESSAGE_MAX;
        let data = &self.bytes[start..start + len.min(MESSAGE_MAX)];
        let from = address(&self.names[index])?;
        let segment = segment(&self.controls[index].0[..control.min(CONTROL_LEN)]);
        Some(Received { from, data, segment: segment.filter(|size| *size < data.len()) })
    }
}

/// The value of a UDP_GRO control message: `struct cmsghdr` (length, level, type) and
/// an int, in the machine's byte order.
fn segment(control: &[u8]) -> Option<usize> {
    let int = |at: usize| control.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let kind = (int(8)?, int(12)?);
    let size = usize::try_from(int(16)?).ok().filter(|size| *size > 0);
    if kind == (libc::SOL_UDP, libc::UDP_GRO) { size } else { None }
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = &raw const *name;
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one; sockaddr_storage is larger and
            // aligned for every kind.
            let v4 = unsafe { &*start.cast::<libc::sockaddr_in>() };
            let ip = v4.sin_addr.s_addr.to_ne_bytes().into();
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*start.cast::<libc::sockaddr_in6>() };
            let port = u16::from_be(v6.sin6_port);
            let ip = v6.sin6_addr.s6_addr.into();
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use std::net::UdpSocket;

    use nix::sys::socket::{
        ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt,
    };

    fn pair(any: &str) -> (UdpSocket, UdpSocket) {
        let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn datagrams_come_in_order_with_their_sender() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(any);
            let mut inbound = Inbound::new();
            assert_eq!(inbound.receive(&b), Err(Errno::EAGAIN));
            let sent: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; usize::from(n) * 7]).collect();
            for data in &sent {
                a.send(data).unwrap();
            }
            let from = a.local_addr().unwrap();
            let mut got = Vec::new();
            for expected in [(16, true), (4, false)] {
                assert_eq!(inbound.receive(&b), Ok(expected));
                for index in 0..expected.0 {
                    let message = inbound.get(index).unwrap();
                    assert_eq!((message.from, message.segment), (from, None));
                    got.push(message.data.to_vec());
                }
            }
            assert!(got == sent);
        }
    }

    #[test]
    fn joined_datagrams_tell_their_length() {
        let (a, b) = pair("127.0.0.1:0");
        setsockopt(&b, sockopt::UdpGroSegment, &true).unwrap();
        let data: Vec<u8> = (0..2500_u32).map(|n| n as u8).collect();
        let size = [ControlMessage::UdpGsoSegments(&1000)];
        let none: Option<&SockaddrStorage> = None;
        sendmsg(a.as_raw_fd(), &[IoSlice::new(&data)], &size, MsgFlags::empty(), none).unwrap();
        let mut inbound = Inbound::new();
        let (count, _) = inbound.receive(&b).unwrap();
        // Whether it joins them is the kernel's choice; their borders are not.
        let messages = (0..count).map(|index| inbound.get(index).unwrap());
        let got: Vec<&[u8]> =
            messages.flat_map(|m| m.data.chunks(m.segment.unwrap_or(usize::MAX))).collect();
        assert_eq!(got, data.chunks(1000).collect::<Vec<_>>());
    }
}
