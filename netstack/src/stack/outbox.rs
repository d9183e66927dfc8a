//! Frames on their way to the guest that are complete, and the buffers they are
//! built in: everything but the segments of TCP connections.
//!
//! # Theory of operation
//!
//! Buffers have one size and are taken and given back, so that a frame costs no
//! allocation and no clearing. The queue has a bound; what finds it full is dropped
//! and counted, as a network may.
//!
//! Where the guest's kernel cuts UDP frames into datagrams (USO), a datagram that
//! follows one of the same ends joins its frame, if it is as long as those in it, or
//! shorter and then the last.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::frame::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAME_MAX, Fragment, HEAD, Link, VNET_LEN, checksum,
    ethernet, fold, ip_header, proto, pseudo_sum, vnet, vnet_udp_segments,
};

/// One frame to the guest. Room for the virtio-net header is always there; it is
/// skipped when the device has none.
#[derive(Debug)]
pub(super) struct FrameBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Set while datagrams may be added.
    train: Option<Train>,
}

/// UDP datagrams in one frame.
#[derive(Debug, Clone, Copy)]
struct Train {
    src: SocketAddr,
    dst: SocketAddr,
    /// Bytes of each datagram but the last.
    size: usize,
    count: usize,
}

/// Datagrams in a frame at most.
const TRAIN_MAX: usize = 64;

impl FrameBuf {
    fn new() -> FrameBuf {
        let bytes = vec![0; FRAME_MAX].into_boxed_slice();
        FrameBuf { bytes, start: 0, end: 0, train: None }
    }

    /// The bytes to write to the device.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The IP packet's place, `len` bytes long.
    ///
    /// # Panics
    /// When `len` exceeds the largest IP packet.
    pub(super) fn packet_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[HEAD..HEAD + len]
    }

    /// Writes the link headers for an IP packet of `len` bytes whose upper layer
    /// is complete.
    pub(super) fn finish_ip(&mut self, link: &Link, len: usize) {
        let ethertype = if self.bytes[HEAD] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        ethernet(&mut self.bytes[..HEAD], link, ethertype);
        self.start = if link.offloads.vnet { 0 } else { VNET_LEN };
        self.end = HEAD + len;
    }

    /// Writes all headers of a UDP datagram from `src` to `dst` of `len` bytes, which
    /// lie behind them, or of several with one header.
    fn finish_udp(&mut self, link: &Link, (src, dst): (SocketAddr, SocketAddr), len: usize) {
        let ip_len = ip_header_len(src.ip());
        let packet = &mut self.bytes[HEAD..HEAD + ip_len + UDP_LEN + len];
        ip_header(packet, src.ip(), dst.ip(), proto::UDP, UDP_LEN + len, None);
        let udp = &mut packet[ip_len..];
        udp_header(udp, src, dst);
        let pseudo = pseudo_sum(src.ip(), dst.ip(), proto::UDP, udp.len());
        let value =
            if link.offloads.vnet { fold(pseudo) } else { udp_checksum(checksum(udp, pseudo)) };
        udp[6..8].copy_from_slice(&value.to_be_bytes());
        self.finish_ip(link, ip_len + UDP_LEN + len);
        if link.offloads.vnet {
            vnet(&mut self.bytes, ETH_LEN + ip_len, 6);
        }
    }

    /// Adds a datagram to those of the frame. Gives whether it could.
    fn join(&mut self, link: &Link, src: SocketAddr, dst: SocketAddr, data: &[u8]) -> bool {
        let Some(train) = &mut self.train else { return false };
        let all = train.size * train.count + data.len();
        let fits = (train.src, train.dst) == (src, dst)
            && !data.is_empty()
            && data.len() <= train.size
            && train.count < TRAIN_MAX
            && UDP_LEN + all <= upper_max(src.ip());
        if !fits {
            return false;
        }
        train.count += 1;
        let size = train.size;
        if data.len() < size || train.count == TRAIN_MAX {
            self.train = None;
        }
        let headers = ETH_LEN + ip_header_len(src.ip()) + UDP_LEN;
        let end = VNET_LEN + headers + all;
        self.bytes[end - data.len()..end].copy_from_slice(data);
        self.finish_udp(link, (src, dst), all);
        vnet_udp_segments(&mut self.bytes, headers, size);
        true
    }
}

/// Bytes of a UDP header.
const UDP_LEN: usize = 8;

/// Writes the header of the datagram that `udp` is, without a checksum.
fn udp_header(udp: &mut [u8], src: SocketAddr, dst: SocketAddr) {
    let len = udp.len() as u16;
    udp[..2].copy_from_slice(&src.port().to_be_bytes());
    udp[2..4].copy_from_slice(&dst.port().to_be_bytes());
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    udp[6..8].fill(0);
}

fn ip_header_len(family: IpAddr) -> usize {
    if family.is_ipv6() { 40 } else { 20 }
}

/// Zero means "none" in UDP, and is sent as its other representation (RFC 768).
fn udp_checksum(value: u16) -> u16 {
    if value == 0 { 0xffff } else { value }
}

/// Frames on their way to the guest, and the buffers they are built in.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: VecDeque<FrameBuf>,
    free: Vec<FrameBuf>,
    lent: Option<FrameBuf>,
    next_id: u32,
    /// From one identification to the next.
    id_step: u32,
    /// Frames not built because the queue was full.
    pub(super) dropped: u64,
}

/// Replies, datagrams and errors that wait at most. TCP data does not queue: it
/// is built when it is asked for.
const QUEUE_MAX: usize = 1024;
const FREE_MAX: usize = 64;

impl Outbox {
    /// An empty one. `seed` starts the IP identification.
    pub(super) fn new(seed: u32) -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            free: Vec::new(),
            lent: None,
            next_id: seed,
            id_step: 1,
            dropped: 0,
        }
    }

    /// Makes this one of `count`, the `index`-th, whose IP identifications all differ:
    /// a guest that collects fragments under one would mix two datagrams up (RFC 6864
    /// section 4.1).
    pub(super) fn share_ids(&mut self, index: usize, count: usize) {
        // A power of two divides 2^16, which IPv4 counts to, and 2^32: the remainder
        // survives every overflow.
        self.id_step = count.next_power_of_two() as u32;
        self.next_id = self.next_id / self.id_step * self.id_step + index as u32;
    }

    /// A buffer to build a frame in.
    pub(super) fn take(&mut self) -> FrameBuf {
        let mut frame = self.free.pop().unwrap_or_else(FrameBuf::new);
        frame.train = None;
        frame
    }

    /// Puts a finished frame at the end of the queue, or drops it when full.
    pub(super) fn push(&mut self, frame: FrameBuf) {
        if self.is_full() {
            self.dropped += 1;
            self.give_back(frame);
        } else {
            self.queue.push_back(frame);
        }
    }

    /// Whether a further frame would be dropped.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_MAX
    }

    fn give_back(&mut self, frame: FrameBuf) {
        if self.free.len() < FREE_MAX {
            self.free.push(frame);
        }
    }

    /// Whether a frame is queued.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lends the first frame out; its buffer is reused at the next call.
    pub(super) fn pop(&mut self) -> Option<&[u8]> {
        if let Some(done) = self.lent.take() {
            self.give_back(done);
        }
        self.lent = self.queue.pop_front();
        self.lent.as_ref().map(FrameBuf::as_bytes)
    }

    /// Queues a complete Ethernet frame (without virtio-net header). Frames too
    /// large for any device are dropped.
    pub(super) fn push_ethernet(&mut self, link: &Link, frame: &[u8]) {
        if frame.len() < ETH_LEN || frame.len() > FRAME_MAX - VNET_LEN {
            self.dropped += 1;
            return;
        }
        let mut buf = self.take();
        buf.bytes[..VNET_LEN].fill(0);
        buf.bytes[VNET_LEN..VNET_LEN + frame.len()].copy_from_slice(frame);
        buf.start = if link.offloads.vnet { 0 } else { VNET_LEN };
        buf.end = VNET_LEN + frame.len();
        self.push(buf);
    }

    /// Queues an IP packet with `upper` as its payload, in fragments where the
    /// MTU asks for it. The upper layer's checksum is complete.
    pub(super) fn push_ip(
        &mut self,
        link: &Link,
        src: IpAddr,
        dst: IpAddr,
        proto: u8,
        upper: &[u8],
    ) {
        let ip_len = ip_header_len(src);
        if upper.len() > upper_max(src) {
            self.dropped += 1;
            return;
        }
        if ip_len + upper.len() <= link.mtu {
            let len = ip_len + upper.len();
            let mut buf = self.take();
            let packet = buf.packet_mut(len);
            ip_header(packet, src, dst, proto, upper.len(), None);
            packet[ip_len..].copy_from_slice(upper);
            buf.finish_ip(link, len);
            self.push(buf);
            return;
        }
        self.next_id = self.next_id.wrapping_add(self.id_step);
        let extra = if src.is_ipv6() { 8 } else { 0 };
        let room = (link.mtu - ip_len - extra) & !7;
        // All or nothing: a datagram with a part missing is only work.
        if self.queue.len() + upper.len().div_ceil(room) > QUEUE_MAX {
            self.dropped += 1;
            return;
        }
        let mut offset = 0;
        while offset < upper.len() {
            let part = &upper[offset..upper.len().min(offset + room)];
            let more = offset + part.len() < upper.len();
            let len = ip_len + extra + part.len();
            let mut buf = self.take();
            let packet = buf.packet_mut(len);
            let fragment = Fragment { id: self.next_id, offset, more };
            ip_header(packet, src, dst, proto, extra + part.len(), Some(fragment));
            packet[ip_len + extra..].copy_from_slice(part);
            buf.finish_ip(link, len);
            self.push(buf);
            offset += part.len();
        }
    }

    /// Queues a UDP datagram. `src` and `dst` are of one family.
    pub(super) fn push_udp(&mut self, link: &Link, src: SocketAddr, dst: SocketAddr, data: &[u8]) {
        let len = UDP_LEN + data.len();
        if len > upper_max(src.ip()) {
            self.dropped += 1;
            return;
        }
        let headers = ip_header_len(src.ip()) + UDP_LEN;
        if headers + data.len() > link.mtu {
            let mut upper = vec![0; len];
            upper[UDP_LEN..].copy_from_slice(data);
            udp_header(&mut upper, src, dst);
            let value = checksum(&upper, pseudo_sum(src.ip(), dst.ip(), proto::UDP, len));
            upper[6..8].copy_from_slice(&udp_checksum(value).to_be_bytes());
            return self.push_ip(link, src.ip(), dst.ip(), proto::UDP, &upper);
        }
        if self.queue.back_mut().is_some_and(|last| last.join(link, src, dst, data)) {
            return;
        }
        if self.is_full() {
            self.dropped += 1;
            return;
        }
        let mut buf = self.take();
        buf.packet_mut(headers + data.len())[headers..].copy_from_slice(data);
        buf.finish_udp(link, (src, dst), data.len());
        if link.offloads.uso && link.offloads.vnet && !data.is_empty() {
            buf.train = Some(Train { src, dst, size: data.len(), count: 1 });
        }
        self.push(buf);
    }
}

/// The largest upper layer of a packet: IPv4 counts its header, IPv6 does not.
fn upper_max(family: IpAddr) -> usize {
    if family.is_ipv6() { 65535 } else { 65535 - 20 }
}
