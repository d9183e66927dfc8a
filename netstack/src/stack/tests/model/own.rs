//! A guest made of our own endpoints, as a client would use them.

use super::*;
use crate::stack::batch::Batch;
use crate::stack::buffer::Pool;
use crate::stack::tcp::endpoint::{Endpoint, Limits};
use crate::stack::tcp::segment::{HEADER_MAX, Header, Segment};
use crate::stack::tcp::seq::Seq;

const FIRST_PORT: u16 = 40_000;

#[derive(Debug)]
pub(super) struct Own {
    pool: Pool,
    random: Random,
    mtu: u16,
    ends: Vec<End>,
    answers: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct End {
    endpoint: Endpoint,
    peer: SocketAddr,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    /// The reset came where it may: the other end has finished, and what it answers
    /// with a reset is a repetition of the last bytes or the FIN.
    late_reset: bool,
}

fn local(port: u16, peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(guest_for(peer).ip(), FIRST_PORT + port)
}

fn packet_of(header: &Header, data: &[u8], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = [0; HEADER_MAX];
    let len = header.write(&mut tcp, from.port(), to.port());
    let upper = [&tcp[..len], data].concat();
    let ip_len = if from.is_ipv6() { 40 } else { 20 };
    let mut packet = vec![0; ip_len + upper.len()];
    frame::ip_header(&mut packet, from.ip(), to.ip(), proto::TCP, upper.len(), None);
    packet[ip_len..].copy_from_slice(&upper);
    packet
}

impl Guest for Own {
    fn new(seed: u64, mtu: u16) -> Own {
        let random = Random(seed ^ 0x6f77_6e5f_6f77_6e5f);
        Own { pool: Pool::default(), random, mtu, ends: Vec::new(), answers: Vec::new() }
    }

    fn connect(&mut self, port: u16, peer: SocketAddr, to_send: Vec<u8>) {
        assert_eq!(usize::from(port), self.ends.len());
        let mss = self.mtu - if peer.is_ipv6() { 60 } else { 40 };
        let limits = Limits {
            mss,
            mss_default: 536,
            longest: if self.random.next().is_multiple_of(2) { 65475 } else { mss.into() },
            window: 1000 << (self.random.next() % 10),
            scale: (self.random.next() % 8) as u8,
        };
        let iss = self.random.next() as u32;
        let endpoint = Endpoint::connect(Seq::new(iss), limits);
        let received = Vec::new();
        self.ends.push(End { endpoint, peer, to_send, sent: 0, received, late_reset: false });
    }

    fn arrive(&mut self, now: Duration, bytes: &[u8]) {
        let packet = Packet::parse(bytes).unwrap();
        let segment = Segment::parse(packet.payload).unwrap();
        let port = u16::from_be_bytes([packet.payload[2], packet.payload[3]]) - FIRST_PORT;
        let end = &mut self.ends[usize::from(port)];
        let before = end.endpoint.status();
        // In TIME-WAIT it still answers.
        if end.endpoint.is_gone() {
            if let Some(header) = Header::refusal(&segment) {
                let from = local(port, end.peer);
                self.answers.push(packet_of(&header, &[], from, end.peer));
            }
            return;
        }
        let done = before.guest_finished && end.sent == end.to_send.len();
        end.endpoint.handle(now, &segment, &Batch::none(), &mut self.pool);
        end.late_reset = end.endpoint.status().reset && done;
    }

    fn step(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let mut packets = std::mem::take(&mut self.answers);
        for (port, end) in self.ends.iter_mut().enumerate() {
            let End { endpoint, to_send, sent, received, .. } = end;
            let mut parts = Parts::new();
            let batch = Batch::none();
            endpoint.waiting(&batch, &mut parts);
            let mut taken = parts.to_vec();
            endpoint.consume(taken.len(), &mut self.pool);
            received.append(&mut taken);
            if endpoint.room() > 0 && *sent < to_send.len() {
                let most = to_send.len() - *sent;
                endpoint.fill(most, &mut self.pool, &mut |places| {
                    let start = *sent;
                    for place in places {
                        let count = place.len().min(to_send.len() - *sent);
                        place[..count].copy_from_slice(&to_send[*sent..*sent + count]);
                        *sent += count;
                    }
                    *sent - start
                });
            }
            if *sent == to_send.len() {
                endpoint.finish();
            }
            let before = packets.len();
            while let Some(segment) = endpoint.poll(now, &mut self.pool) {
                assert!(packets.len() < before + 10_000, "sends for ever: {endpoint:?}");
                let mut parts = Parts::new();
                endpoint.lend(&segment, &mut parts);
                let from = local(port as u16, end.peer);
                packets.push(packet_of(&segment.header, &parts.to_vec(), from, end.peer));
            }
        }
        packets
    }

    fn outcome(&self, port: u16) -> (bool, &[u8]) {
        let end = &self.ends[usize::from(port)];
        (end.endpoint.status().closed && end.endpoint.is_drained(), &end.received)
    }

    fn check(&self, port: u16) {
        let end = &self.ends[usize::from(port)];
        assert!(!end.endpoint.status().reset || end.late_reset, "the guest was reset");
        assert_eq!(self.pool.lent(), 0, "memory is lost");
    }
}
