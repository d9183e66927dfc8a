//! A guest on smoltcp.

use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::*;

#[derive(Debug, Default)]
struct Wire {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.arrived.pop_front()?), Tx(&mut self.sent)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.sent))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        caps.checksum.tcp = Checksum::None;
        caps.checksum.ipv4 = Checksum::Tx;
        caps
    }
}

/// One side of a conversation in the guest.
struct Near {
    handle: SocketHandle,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

pub(super) struct Smol {
    iface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    near: Vec<Near>,
}

impl Guest for Smol {
    fn new(seed: u64, mtu: u16) -> Smol {
        let mut wire = Wire { mtu: usize::from(mtu), ..Wire::default() };
        let mut config = IfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, Instant::ZERO);
        iface.update_ip_addrs(|all| {
            all.push(IpCidr::new(IpAddr::from([10, 0, 2, 100]).into(), 24)).unwrap();
            let v6: IpAddr = "fd00::100".parse().unwrap();
            all.push(IpCidr::new(v6.into(), 64)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route([10, 0, 2, 2].into()).unwrap();
        iface.routes_mut().add_default_ipv6_route("fd00::2".parse().unwrap()).unwrap();
        Smol { iface, sockets: SocketSet::new(Vec::new()), wire, near: Vec::new() }
    }

    fn connect(&mut self, port: u16, peer: SocketAddr, to_send: Vec<u8>) {
        let buffer = || SocketBuffer::new(vec![0; 40_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.connect(self.iface.context(), peer, 5000 + port).unwrap();
        let handle = self.sockets.add(socket);
        self.near.push(Near { handle, to_send, sent: 0, received: Vec::new() });
    }

    fn arrive(&mut self, _: Duration, packet: &[u8]) {
        self.wire.arrived.push_back(packet.to_vec());
    }

    fn step(&mut self, now: Duration) -> Vec<Vec<u8>> {
        for near in &mut self.near {
            let socket = self.sockets.get_mut::<Socket<'_>>(near.handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        near.received.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            if near.sent < near.to_send.len() && socket.can_send() {
                near.sent += socket.send_slice(&near.to_send[near.sent..]).unwrap();
            } else if near.sent == near.to_send.len() && socket.may_send() {
                socket.close();
            }
        }
        let time = Instant::from_micros(now.as_micros() as i64);
        self.iface.poll(time, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.sent)
    }

    fn outcome(&self, port: u16) -> (bool, &[u8]) {
        let near = &self.near[usize::from(port)];
        let socket = self.sockets.get::<Socket<'_>>(near.handle);
        let closed = matches!(socket.state(), State::Closed | State::TimeWait);
        (closed && socket.recv_queue() == 0, &near.received)
    }

    fn check(&self, _: u16) {}
}

impl std::fmt::Debug for Smol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let socket = |near: &Near| self.sockets.get::<Socket<'_>>(near.handle).state();
        f.debug_list().entries(self.near.iter().map(socket)).finish()
    }
}
