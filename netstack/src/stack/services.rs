//! What a guest's network answers by itself: ARP, neighbour and router
//! discovery, DHCP. Connects the pure reply builders to the stack.

use std::net::SocketAddr;
use std::time::Duration;

use super::Netstack;
use super::frame::Packet;

impl Netstack {
    /// An ARP packet.
    pub(super) fn handle_arp(&mut self, packet: &[u8]) {
        let _ = packet;
    }

    /// An ICMP packet that is no echo request.
    pub(super) fn handle_control(&mut self, now: Duration, packet: &Packet<'_>) {
        let _ = (now, packet);
    }

    /// A datagram that may be for a service of ours. Gives whether it was.
    pub(super) fn handle_service(
        &mut self,
        now: Duration,
        guest: SocketAddr,
        peer: SocketAddr,
        data: &[u8],
    ) -> bool {
        let _ = (now, guest, peer, data);
        false
    }
}
