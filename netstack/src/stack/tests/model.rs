//! Conversations between a guest's TCP and the stack over a link that loses,
//! repeats and reorders, with a host that takes and gives at its own pace. At the
//! end the bytes are equal, both ends have ended well and nothing is left.
//!
//! Two guests. [`Own`] is our own [`Endpoint`]: what holds on one side is tried on
//! both. [`Smol`] is smoltcp, which shares no code with us; it has faults of its own
//! on a bad link (it may stop repeating what was lost, or take a FIN before the
//! bytes in front of it), so it is tried on a good one.

mod own;
mod smol;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use own::Own;
use smol::Smol;

/// The guest's side of all conversations.
trait Guest: std::fmt::Debug {
    fn new(seed: u64, mtu: u16) -> Self;
    /// Opens a connection from `port` (counted from 0) and sends `bytes` on it.
    fn connect(&mut self, port: u16, peer: SocketAddr, bytes: Vec<u8>);
    /// A packet from the stack.
    fn arrive(&mut self, now: Duration, packet: &[u8]);
    /// One turn of the guest; gives the packets it sends.
    fn step(&mut self, now: Duration) -> Vec<Vec<u8>>;
    /// Whether the connection of `port` is over, and what it has received.
    fn outcome(&self, port: u16) -> (bool, &[u8]);
    /// What is checked of a connection at the end, besides its bytes.
    fn check(&self, port: u16);
}

/// The far end of one connection, behind the host's socket.
#[derive(Debug)]
struct Far {
    flow: FlowId,
    connected: bool,
    received: Vec<u8>,
    to_send: Vec<u8>,
    sent: usize,
    finished: bool,
    shut: bool,
    closed: Option<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Of 256.
    loss: u64,
    repeat: u64,
    late: u64,
    /// Bytes the far end takes or gives at a time, at most.
    pace: usize,
}

struct World<G> {
    stack: Netstack,
    guest: G,
    now: Duration,
    dice: Random,
    weather: Weather,
    /// Packets on their way: by arrival, to the guest or from it.
    to_guest: BTreeMap<(Duration, u64), Vec<u8>>,
    to_stack: BTreeMap<(Duration, u64), Vec<u8>>,
    order: u64,
    far: Vec<Far>,
    /// Of a SYN that was late or repeated and came after its connection was over:
    /// the guest knows nothing of it.
    ghosts: Vec<(usize, Far)>,
    replies: Vec<Vec<u8>>,
    /// Connections of which the stack had enough and sent a reset, by their number.
    resets: Vec<usize>,
}

impl<G: Guest> World<G> {
    fn new(seed: u64, mtu: u16, weather: Weather, replies: Vec<Vec<u8>>) -> World<G> {
        World {
            stack: stack_with(|config| config.mtu = mtu),
            guest: G::new(seed, mtu),
            now: at(1),
            dice: Random(seed),
            weather,
            to_guest: BTreeMap::new(),
            to_stack: BTreeMap::new(),
            order: 0,
            far: Vec::new(),
            ghosts: Vec::new(),
            replies,
            resets: Vec::new(),
        }
    }

    fn roll(&mut self, of: u64) -> u64 {
        self.dice.next() % of
    }

    /// When the copies of a packet arrive: none, one or two of them.
    fn arrivals(&mut self) -> Vec<(Duration, u64)> {
        if self.roll(256) < self.weather.loss {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.roll(256) < self.weather.repeat);
        (0..copies)
            .map(|_| {
                let late = self.roll(256) < self.weather.late;
                let delay = if late { 1 + self.roll(20) } else { 0 };
                // Packets that are not late keep their order.
                self.order += 1;
                (self.now + at(delay), self.order)
            })
            .collect()
    }

    /// One millisecond of everybody's life.
    fn step(&mut self) {
        self.now += at(1);
        for packet in self.guest.step(self.now) {
            for when in self.arrivals() {
                self.to_stack.insert(when, packet.clone());
            }
        }
        while let Some(entry) = self.to_stack.first_entry()
            && entry.key().0 <= self.now
        {
            let packet = entry.remove();
            arrive(&mut self.stack, self.now, &ethernet(&packet));
        }
        self.stack.handle_timeout(self.now);
        self.host();
        self.stack.end_batch();
        let mut burst = 0;
        while let Some(frame) = self.stack.poll_frame(self.now) {
            burst += 1;
            assert!(burst < 10_000, "sends for ever");
            let packet = frame.to_vec()[frame::HEAD..].to_vec();
            let parsed = Packet::parse(&packet).unwrap();
            if parsed.proto != proto::TCP {
                // A router advertisement.
                continue;
            }
            let tcp = Tcp::parse(&parsed);
            // Answers to what comes after the end are resets too, and no fault.
            let end = tcp.flags & frame::RST != 0 && tcp.flags & frame::ACK != 0;
            if end {
                let port = u16::from_be_bytes([parsed.payload[0], parsed.payload[1]]);
                self.resets.push(usize::from(port) - 80);
            }
            for when in self.arrivals() {
                self.to_guest.insert(when, packet.clone());
            }
        }
        self.host();
        while let Some(entry) = self.to_guest.first_entry()
            && entry.key().0 <= self.now
        {
            let packet = entry.remove();
            self.guest.arrive(self.now, &packet);
        }
    }

    fn host(&mut self) {
        for command in commands(&mut self.stack) {
            match command {
                HostCommand::TcpConnect { flow, to } => {
                    // The port tells which connection it is.
                    let index = usize::from(to.port() - 80);
                    let ghost = index < self.far.len();
                    let to_send = if ghost { Vec::new() } else { self.replies[index].clone() };
                    let far = Far {
                        flow,
                        connected: false,
                        received: Vec::new(),
                        to_send,
                        sent: 0,
                        finished: false,
                        shut: false,
                        closed: None,
                    };
                    if ghost { self.ghosts.push((index, far)) } else { self.far.push(far) }
                }
                HostCommand::TcpShutdown { flow } => self.far(flow).shut = true,
                HostCommand::Close { flow, reset } => {
                    let far = self.far(flow);
                    assert_eq!(far.closed, None, "closed twice");
                    far.closed = Some(reset);
                    // An orderly close ends our direction too.
                    far.shut |= !reset;
                }
                HostCommand::TcpTransfer { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let mut all = std::mem::take(&mut self.far);
        for far in all.iter_mut().chain(self.ghosts.iter_mut().map(|ghost| &mut ghost.1)) {
            let (pause, most) = (self.dice.next().is_multiple_of(3), self.dice.next());
            let most = (most % self.weather.pace as u64) as usize;
            if far.closed.is_some() || pause {
                continue;
            }
            let flow = far.flow;
            if !far.connected {
                far.connected = true;
                self.stack.handle_host(self.now, HostEvent::TcpConnected { flow });
                continue;
            }
            let mut bytes = self.stack.tcp_outgoing(flow).to_vec();
            bytes.truncate(most);
            assert!(bytes.is_empty() || !far.shut, "bytes behind the end");
            self.stack.tcp_sent(flow, bytes.len());
            far.received.append(&mut bytes);
            if far.sent < far.to_send.len() {
                let stop = far.to_send.len().min(far.sent + most);
                far.sent += give(&mut self.stack, flow, &far.to_send[far.sent..stop]);
            } else if !far.finished {
                far.finished = true;
                self.stack.handle_host(self.now, HostEvent::TcpFinished { flow });
            }
        }
        self.far = all;
    }

    fn far(&mut self, flow: FlowId) -> &mut Far {
        let ghosts = self.ghosts.iter_mut().map(|ghost| &mut ghost.1);
        self.far.iter_mut().chain(ghosts).find(|far| far.flow == flow).expect("a known flow")
    }
}

/// Talks on as many connections as there are `sizes`: bytes from the guest and to it.
fn converse<G: Guest>(seed: u64, v6: bool, mtu: u16, weather: Weather, sizes: &[(usize, usize)]) {
    let replies: Vec<_> =
        sizes.iter().enumerate().map(|(i, s)| pattern(seed ^ i as u64, s.1)).collect();
    let mut world = World::<G>::new(seed, mtu, weather, replies);
    let peer = addr(PEERS[usize::from(v6)]);
    let ups: Vec<_> =
        sizes.iter().enumerate().map(|(i, s)| pattern(!seed ^ i as u64, s.0)).collect();
    for (index, up) in ups.iter().enumerate() {
        let peer = SocketAddr::new(peer.ip(), 80 + index as u16);
        world.guest.connect(index as u16, peer, up.clone());
        // One after the other, so that the far ends know theirs.
        while world.far.len() <= index {
            world.step();
            assert!(world.now < at(600_000), "no SYN arrives");
        }
    }
    let over = |world: &World<G>| {
        world.stack.flow_count() == 0
            && (0..ups.len()).all(|index| world.guest.outcome(index as u16).0)
    };
    while !over(&world) {
        world.step();
        assert!(world.now < at(3_000_000), "stuck: {:?} {:?}", world.stack.flows, world.guest);
    }
    for (index, (up, far)) in ups.iter().zip(&world.far).enumerate() {
        let (_, received) = world.guest.outcome(index as u16);
        assert_eq!(
            (up.len(), far.to_send.len(), true, Some(false)),
            (far.received.len(), received.len(), far.shut, far.closed),
            "{:?}",
            world.guest
        );
        assert!(far.to_send == received, "host to guest: other bytes");
        assert!(*up == far.received, "guest to host: other bytes");
        world.guest.check(index as u16);
    }
    for (index, ghost) in &world.ghosts {
        assert_eq!((ghost.received.len(), ghost.closed), (0, Some(true)), "a ghost that speaks");
        // Whoever does not answer is reset in the end.
        world.resets.retain(|reset| reset != index);
    }
    assert!(world.resets.is_empty(), "a stray reset: {:?}", world.resets);
    assert!(world.stack.memory.is_unused(), "memory is lost");
    assert_eq!(world.stack.flows.next_deadline(), None, "somebody is waited for");
}

#[test]
fn a_perfect_link() {
    let weather = Weather { loss: 0, repeat: 0, late: 0, pace: 100_000 };
    for v6 in [false, true] {
        for mtu in [1280, 1500, 65520] {
            let sizes = [(300_000, 2_500_000), (0, 0), (1, 0), (0, 1)];
            converse::<Smol>(1, v6, mtu, weather, &sizes);
            converse::<Own>(1, v6, mtu, weather, &sizes);
        }
    }
}

fn cases(count: u32) -> ProptestConfig {
    // PROPTEST_CASES asks for more.
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(count),
        failure_persistence: None,
        max_shrink_iters: 64,
        ..ProptestConfig::default()
    }
}

fn paces() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1_000_usize, 20_000, 200_000])
}

fn mtus() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![1280_u16, 1500, 9000, 65520])
}

fn amounts() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let amount = || prop_oneof![4 => 0..60_000_usize, 1 => 0..600_000_usize];
    proptest::collection::vec((amount(), amount()), 1..4)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn bad_links(
        seed: u64, v6: bool, loss in 0..30_u64, repeat in 0..60_u64, late in 0..60_u64,
        pace in paces(), mtu in mtus(), sizes in amounts(),
    ) {
        converse::<Own>(seed, v6, mtu, Weather { loss, repeat, late, pace }, &sizes);
    }

    /// Repetition and reordering alone.
    #[test]
    fn winding_links(
        seed: u64, v6: bool, repeat in 0..60_u64, late in 0..60_u64,
        pace in paces(), mtu in mtus(), sizes in amounts(),
    ) {
        converse::<Own>(seed, v6, mtu, Weather { loss: 0, repeat, late, pace }, &sizes);
    }

    /// A guest of other make, at any pace.
    #[test]
    fn good_links(seed: u64, v6: bool, pace in paces(), mtu in mtus(), sizes in amounts()) {
        converse::<Smol>(seed, v6, mtu, Weather { loss: 0, repeat: 0, late: 0, pace }, &sizes);
    }
}
