//! What comes to published ports, and answers of the guest that leave from there.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags};

use super::Driver;
use super::rest::is_exhausted;
use crate::forward::{Listener, PUBLISH_TOKEN};
use crate::stack::HostEvent;

/// Connections or datagrams taken from a published port in one turn.
const ACCEPT_BATCH: usize = 64;

/// Any kind will do; this one needs no file to be visible.
pub(super) fn spare_descriptor() -> Option<Epoll> {
    Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()
}

impl Driver {
    /// Sends a datagram of the guest's to a client of a published port.
    pub(super) fn answer_client(&self, publish: u64, to: SocketAddr, data: &[u8]) {
        if let Some((_, Listener::Udp(udp))) = self.ports.find(publish) {
            // A failed datagram is lost, as on a wire.
            udp.send_to(data, reachable_from(udp, to)).ok();
        }
    }

    /// Takes what came to a published port. Level-triggered: the rest comes with
    /// the next turn.
    pub(super) fn published(&mut self, now: Duration, id: u64) {
        let Some((publish, listener)) = self.ports.find(id) else { return };
        let guest = publish.guest;
        let mut rests = false;
        for _ in 0..ACCEPT_BATCH {
            match listener {
                Listener::Tcp(listener) => match listener.accept() {
                    Ok((tcp, client)) => {
                        if tcp.set_nonblocking(true).is_err() {
                            continue;
                        }
                        let Some(flow) = self.stack.tcp_accepted(now, guest, client) else {
                            continue;
                        };
                        if self.host.adopt(&self.epoll, flow, tcp).is_err() {
                            self.stack.handle_host(now, HostEvent::TcpReset { flow });
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if is_exhausted(&e) => {
                        // Turned away with the spare descriptor.
                        self.spare = None;
                        rests = listener.accept().is_err();
                        self.spare = spare_descriptor();
                        break;
                    }
                    Err(e) => {
                        let gone = [ErrorKind::WouldBlock, ErrorKind::ConnectionAborted];
                        rests = !gone.contains(&e.kind());
                        break;
                    }
                },
                Listener::Udp(udp) => match udp.recv_from(&mut self.datagram) {
                    Ok((len, from)) => {
                        let data = &self.datagram[..len];
                        let event = HostEvent::UdpInbound { publish: id, guest, from, data };
                        self.stack.handle_host(now, event);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                    // An error of an earlier answer.
                    Err(_) => {}
                },
            }
        }
        if rests {
            self.let_rest(now, PUBLISH_TOKEN | id);
        }
    }
}

/// An IPv4 client of an IPv6 socket has a mapped address.
fn reachable_from(socket: &std::net::UdpSocket, to: SocketAddr) -> SocketAddr {
    match (socket.local_addr(), to) {
        (Ok(SocketAddr::V6(_)), SocketAddr::V4(v4)) => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        _ => to,
    }
}
