//! Frames through the network stack, without a TAP and without sockets: a guest of a
//! few lines on one side, a host that takes and gives bytes at once on the other.
//! Uses the public API of [`Netstack`] only.
//!
//! The bytes themselves: on the way up a copy stands for the read(2) from the TAP, and
//! the host's send(2) is not there; on the way down neither the host's recv(2) nor the
//! write(2) to the TAP is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netstack::config::Config;
use netstack::stack::frame::{self, ETH_LEN, VNET_LEN, proto};
use netstack::stack::{FlowId, HostCommand, HostEvent, Netstack};
use netstack::tap::Offloads;

use super::{Run, Workload};

/// Frames in one call.
const FRAMES: u64 = 256;
/// Frames read from a device before the stack is asked for its answers.
const BATCH: u64 = 16;
/// Segments as a guest's kernel makes them with offload at MTU 1500, and without.
const LARGE: usize = 44 * 1448;
const SMALL: usize = 1448;
/// Flows of the workload that has many.
const FLOWS: u16 = 10_000;

pub(super) const WORKLOADS: &[Workload] = &[
    Workload {
        id: "netstack/tcp-up/offload",
        title: "TCP from the guest, segments of 62 KiB",
        units: "frames",
        per_call: FRAMES,
        make: || Ok(Box::new(Tcp::open(true)?.up(LARGE))),
    },
    Workload {
        id: "netstack/tcp-up/mtu1500",
        title: "TCP from the guest, segments of 1448 bytes",
        units: "frames",
        per_call: FRAMES,
        make: || Ok(Box::new(Tcp::open(true)?.up(SMALL))),
    },
    Workload {
        id: "netstack/tcp-down/offload",
        title: "TCP to the guest, with offload",
        units: "frames",
        per_call: FRAMES,
        make: || Ok(Box::new(Tcp::open(true)?.down())),
    },
    Workload {
        id: "netstack/tcp-down/mtu1500",
        title: "TCP to the guest, without offload",
        units: "frames",
        per_call: FRAMES,
        make: || Ok(Box::new(Tcp::open(false)?.down())),
    },
    Workload {
        id: "netstack/udp-up/64",
        title: "Datagrams of 64 bytes from the guest, one flow",
        units: "frames",
        per_call: FRAMES,
        make: || udp_up(1),
    },
    Workload {
        id: "netstack/udp-up/64-flows10000",
        title: "Datagrams of 64 bytes from the guest, 10,000 flows",
        units: "frames",
        per_call: FRAMES,
        make: || udp_up(FLOWS),
    },
    Workload {
        id: "netstack/udp-down/64",
        title: "Datagrams of 64 bytes to the guest, one flow",
        units: "frames",
        per_call: FRAMES,
        make: udp_down,
    },
];

fn stack(offload: bool) -> Netstack {
    let offloads = Offloads { vnet: true, csum: true, tso4: offload, tso6: offload, uso: false };
    Netstack::new(Config::default(), offloads, 7)
}

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 80))
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, 100], port))
}

/// A frame of the guest: virtio-net, Ethernet and IPv4 headers, and the rest.
fn frame_of(from: IpAddr, to: IpAddr, proto: u8, upper: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; VNET_LEN];
    bytes.extend_from_slice(&Config::default().gateway_mac);
    bytes.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    let at = bytes.len();
    bytes.resize(at + 20, 0);
    bytes.extend_from_slice(upper);
    frame::ip_header(&mut bytes[at..], from, to, proto, upper.len(), None);
    bytes
}

/// What a driver does with a frame it reads.
fn give(stack: &mut Netstack, now: Duration, frame: &[u8]) {
    stack.frame_room()[..frame.len()].copy_from_slice(frame);
    stack.handle_frame(now, frame.len());
}

/// Where TCP begins in frames of either direction: IPv4 without options.
const TCP: usize = VNET_LEN + ETH_LEN + 20;

/// One open connection, from the guest's side.
struct Tcp {
    stack: Netstack,
    flow: FlowId,
    now: Duration,
    /// Next sequence number of the guest.
    seq: u32,
    /// First sequence number the stack's window does not allow.
    limit: u32,
    /// Window scale of the stack.
    scale: u8,
    /// Next sequence number expected of the stack.
    ack: u32,
    /// Bytes the host has taken.
    taken: u64,
    /// A frame without data, whose numbers are set for each use.
    empty: Vec<u8>,
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn segment(flags: u8, options: &[u8], data: usize) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&guest(4000).port().to_be_bytes());
    tcp[2..4].copy_from_slice(&peer().port().to_be_bytes());
    tcp[12] = ((20 + options.len()) as u8 / 4) << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&65_000u16.to_be_bytes());
    tcp.extend_from_slice(options);
    tcp.resize(tcp.len() + data, 0xa5);
    frame_of(guest(0).ip(), peer().ip(), proto::TCP, &tcp)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Tcp {
    fn open(offload: bool) -> Result<Self> {
        let mut stack = stack(offload);
        let now = Duration::from_secs(1);
        // MSS 1460, window scale 7.
        let mut syn = segment(SYN, &[2, 4, 5, 180, 1, 3, 3, 7], 0);
        syn[TCP + 4..TCP + 8].copy_from_slice(&1000u32.to_be_bytes());
        give(&mut stack, now, &syn);
        let flow = match stack.poll_host().context("no command")? {
            HostCommand::TcpConnect { flow, .. } => flow,
            other => bail!("{other:?}"),
        };
        stack.handle_host(now, HostEvent::TcpConnected { flow });
        stack.end_batch();
        let answer = stack.poll_frame(now).context("no SYN-ACK")?.as_slices()[0].to_vec();
        ensure!(answer[TCP + 13] == SYN | ACK, "no SYN-ACK");
        let header = usize::from(answer[TCP + 12] >> 4) * 4;
        let scale = window_scale(&answer[TCP + 20..TCP + header]);
        let mut this = Self {
            stack,
            flow,
            now,
            seq: 1001,
            limit: 1001 + u32::from(u16::from_be_bytes([answer[TCP + 14], answer[TCP + 15]])),
            scale,
            ack: number(&answer, TCP + 4).wrapping_add(1),
            taken: 0,
            empty: segment(ACK, &[], 0),
        };
        this.acknowledge();
        this.turn();
        Ok(this)
    }

    /// Sends a segment without data.
    fn acknowledge(&mut self) {
        self.empty[TCP + 4..TCP + 8].copy_from_slice(&self.seq.to_be_bytes());
        self.empty[TCP + 8..TCP + 12].copy_from_slice(&self.ack.to_be_bytes());
        give(&mut self.stack, self.now, &self.empty);
    }

    /// What a driver does after a batch: carries out commands, takes the frames.
    /// Gives how many frames with data there were.
    fn turn(&mut self) -> u64 {
        self.now += Duration::from_micros(10);
        while let Some(command) = self.stack.poll_host() {
            if let HostCommand::TcpTransfer { flow } = command {
                loop {
                    let count = self.stack.tcp_outgoing(flow).len();
                    if count == 0 {
                        break;
                    }
                    self.stack.tcp_sent(flow, count);
                    self.taken += count as u64;
                }
            }
        }
        self.stack.end_batch();
        let mut with_data = 0;
        while let Some(parts) = self.stack.poll_frame(self.now) {
            // All headers are in the first slice.
            let frame: &[u8] = &parts.as_slices()[0];
            let header = usize::from(frame[TCP + 12] >> 4) * 4;
            let data = parts.len() - TCP - header;
            let window = u16::from_be_bytes([frame[TCP + 14], frame[TCP + 15]]);
            self.limit = number(frame, TCP + 8).wrapping_add(u32::from(window) << self.scale);
            if data > 0 && number(frame, TCP + 4) == self.ack {
                self.ack = self.ack.wrapping_add(data as u32);
                with_data += 1;
            }
        }
        with_data
    }

    /// Lets the time come that the stack waits for.
    fn wait(&mut self) -> Result<()> {
        let next = self.stack.poll_timeout().context("the stack waits for nothing")?;
        self.now = self.now.max(next);
        self.stack.handle_timeout(self.now);
        Ok(())
    }

    fn up(mut self, data: usize) -> impl FnMut() -> Result<()> {
        let mut full = segment(ACK, &[], data);
        move || {
            let before_all = self.taken;
            let mut sent = 0;
            let mut stalls = 0;
            while sent < FRAMES {
                let before = sent;
                while sent < FRAMES && sent - before < BATCH {
                    let end = self.seq.wrapping_add(data as u32);
                    if (self.limit.wrapping_sub(end) as i32) < 0 {
                        break;
                    }
                    full[TCP + 4..TCP + 8].copy_from_slice(&self.seq.to_be_bytes());
                    full[TCP + 8..TCP + 12].copy_from_slice(&self.ack.to_be_bytes());
                    give(&mut self.stack, self.now, &full);
                    self.seq = end;
                    sent += 1;
                }
                self.turn();
                if sent == before {
                    // The window opens with a delayed acknowledgement.
                    self.wait()?;
                    self.turn();
                    stalls += 1;
                    ensure!(stalls < 1000, "the window stays closed");
                }
            }
            let taken = self.taken - before_all;
            ensure!(taken == FRAMES * data as u64, "{taken} bytes of {FRAMES} frames arrived");
            Ok(())
        }
    }

    fn down(mut self) -> impl FnMut() -> Result<()> {
        move || {
            let mut came = 0;
            let mut stalls = 0;
            while came < FRAMES {
                while self.stack.tcp_room(self.flow) > 0 {
                    self.stack.tcp_fill(self.flow, &mut |room| {
                        room.iter().map(|slice| slice.len()).sum()
                    });
                }
                let now = self.turn();
                came += now;
                // One for all of a batch, as a kernel that merges segments does.
                self.acknowledge();
                if now == 0 {
                    self.wait()?;
                    stalls += 1;
                    ensure!(stalls < 1000, "nothing is sent");
                }
            }
            Ok(())
        }
    }
}

/// Shift of the window scale option (RFC 7323), 0 without.
fn window_scale(mut options: &[u8]) -> u8 {
    loop {
        match options {
            [3, 3, shift, ..] => return *shift,
            [1, rest @ ..] => options = rest,
            [_, length, ..] if *length >= 2 && options.len() > usize::from(*length) => {
                options = &options[usize::from(*length)..];
            }
            _ => return 0,
        }
    }
}

fn datagram(port: u16) -> Vec<u8> {
    let mut udp = vec![0; 8 + 64];
    udp[..2].copy_from_slice(&port.to_be_bytes());
    udp[2..4].copy_from_slice(&9000u16.to_be_bytes());
    udp[4..6].copy_from_slice(&(8u16 + 64).to_be_bytes());
    frame_of(guest(0).ip(), peer().ip(), proto::UDP, &udp)
}

fn udp_up(flows: u16) -> Result<Run> {
    let mut stack = stack(true);
    let frames: Vec<Vec<u8>> = (0..flows).map(|at| datagram(10_000 + at)).collect();
    let mut now = Duration::from_secs(1);
    let mut next = 0;
    let mut send = move |count: u64| {
        let mut datagrams = 0;
        for at in 0..count {
            // Neighbours are far apart.
            next = (next + 4001) % frames.len();
            give(&mut stack, now, &frames[next]);
            if (at + 1) % BATCH == 0 {
                now += Duration::from_micros(10);
                while let Some(command) = stack.poll_host() {
                    let (data, segment) = match command {
                        HostCommand::UdpSend { data, .. } => (data, 64),
                        HostCommand::UdpSendMany { data, segment, .. } => (data, segment),
                        other => bail!("{other:?}"),
                    };
                    datagrams += data.len().div_ceil(segment) as u64;
                    stack.give_back(data);
                }
                stack.end_batch();
                ensure!(stack.poll_frame(now).is_none(), "an answer to a datagram");
            }
        }
        ensure!(datagrams == count, "{datagrams} of {count} datagrams came out");
        Ok(())
    };
    // Every flow is there before the first is measured.
    send(u64::from(flows).next_multiple_of(BATCH))?;
    Ok(Box::new(move || send(FRAMES)))
}

fn udp_down() -> Result<Run> {
    let mut stack = stack(true);
    let mut now = Duration::from_secs(1);
    give(&mut stack, now, &datagram(10_000));
    let flow = match stack.poll_host().context("no command")? {
        HostCommand::UdpSend { flow, .. } => flow,
        other => bail!("{other:?}"),
    };
    stack.end_batch();
    let from = SocketAddr::new(peer().ip(), 9000);
    Ok(Box::new(move || {
        let mut came = 0;
        for _ in 0..FRAMES / BATCH {
            now += Duration::from_micros(10);
            for _ in 0..BATCH {
                stack.handle_host(now, HostEvent::UdpReceived { flow, from, data: &[0x5a; 64] });
            }
            while stack.poll_frame(now).is_some() {
                came += 1;
            }
        }
        ensure!(came == FRAMES, "{came} of {FRAMES} datagrams came out");
        Ok(())
    }))
}
