//! Transfers over UDP: the sender sends as fast as it can, the receiver counts.
//!
//! A datagram carries its session and number ([`pattern`]). The client says over
//! TCP what it wants ([`Ask`]); a transfer to the client starts with a datagram of
//! the client's, which also opens the way through a backend.
//!
//! Datagrams are sent one by one, or as QUIC servers do: [`TOGETHER`] of them by one call,
//! which the kernel, or whoever carries them last, takes apart (UDP_SEGMENT, udp(7)); who
//! receives takes several by one call then (UDP_GRO).

use std::collections::HashMap;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use super::bulk::{Ask, Report};
use super::pattern::{self, Seen, body};
use super::{Direction, Figures, Udp, now_ns, port};

/// Datagrams sent by one call, where several are.
pub(super) const TOGETHER: u32 = 16;
/// Session of round trips: the server sends such a datagram back.
pub(super) const ECHO: u64 = 0;
/// A transfer is over when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(100);
/// How often the client asks again for a transfer that has not begun.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How often at most.
const ASKS: u32 = 60;
/// Receive buffer, bytes: a receiver that is not scheduled for some milliseconds
/// loses nothing. Without privilege the kernel gives less.
const BUFFER: usize = 8 << 20;

/// A socket connected to the server, with as large a buffer as may be had.
pub(super) fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    buffer(&socket)?;
    Ok(socket)
}

fn buffer(socket: &UdpSocket) -> Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    }
    Ok(())
}

/// Lets several datagrams of one sender be received by one call.
fn take_several(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, sockopt::UdpGroSegment, &true).context("cannot set UDP_GRO")
}

/// Sends `bytes` as datagrams of `size`, the last of which may be shorter.
fn send_apart(
    socket: &UdpSocket,
    bytes: &[u8],
    size: u32,
    to: Option<SocketAddr>,
) -> std::io::Result<()> {
    let size = u16::try_from(size).map_err(|_| ErrorKind::InvalidInput)?;
    let apart = [ControlMessage::UdpGsoSegments(&size)];
    let to = to.map(SockaddrStorage::from);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &apart, MsgFlags::empty(), to.as_ref())?;
    Ok(())
}

/// What one call gives.
struct Several {
    bytes: usize,
    /// Bytes of each datagram but the last.
    each: usize,
    from: Option<SocketAddr>,
}

fn receive_several(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<Several> {
    let mut space = nix::cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(buffer)];
    let fd = socket.as_raw_fd();
    let got = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut space), MsgFlags::empty())?;
    let sizes = got.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let each = sizes.last().unwrap_or(got.bytes).max(1);
    let from = got.address.and_then(|address| match address.as_sockaddr_in6() {
        Some(v6) => Some(SocketAddr::V6((*v6).into())),
        None => address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())),
    });
    Ok(Several { bytes: got.bytes, each, from })
}

/// Counts of one session at its receiver.
#[derive(Debug, Default)]
struct Tally {
    seen: Seen,
    report: Report,
    wrong: u64,
}

impl Tally {
    fn take(&mut self, number: u64, bytes: usize) {
        self.report.last_ns = now_ns();
        if self.report.first_ns == 0 {
            self.report.first_ns = self.report.last_ns;
        }
        if self.seen.add(number) {
            self.report.bytes += bytes as u64;
            self.report.count = self.seen.count;
        }
    }
}

/// The server's side.
#[derive(Debug)]
pub(super) struct Sessions {
    socket: UdpSocket,
    together: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tallies: HashMap<u64, Tally>,
    /// Where the client of a session is.
    clients: HashMap<u64, SocketAddr>,
    /// Sessions for which the server sends.
    wanted: HashMap<u64, ()>,
    /// Datagrams with a wrong byte: nobody's.
    wrong: u64,
}

impl Sessions {
    /// `together`: datagrams sent by one call.
    pub(super) fn new(socket: UdpSocket, together: u32) -> Result<Self> {
        buffer(&socket)?;
        if together > 1 {
            take_several(&socket)?;
        }
        Ok(Self { socket, together, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
    }

    /// Receives for ever.
    pub(super) fn receive(&self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if self.together > 1 {
                let Ok(several) = receive_several(&self.socket, &mut buffer) else { continue };
                let Some(from) = several.from else { continue };
                let datagrams = buffer[..several.bytes].chunks(several.each);
                datagrams.for_each(|datagram| self.take(datagram, from));
            } else if let Ok((count, from)) = self.socket.recv_from(&mut buffer) {
                self.take(&buffer[..count], from);
            }
        }
    }

    fn take(&self, datagram: &[u8], from: SocketAddr) {
        let Some((session, number)) = pattern::read_stamp(datagram) else {
            self.state().wrong += 1;
            return;
        };
        if session == ECHO {
            // A full buffer loses it, as a network would.
            self.socket.send_to(datagram, from).ok();
            return;
        }
        let mut state = self.state();
        if state.wanted.contains_key(&session) {
            state.clients.insert(session, from);
            drop(state);
            self.changed.notify_all();
        } else {
            state.tallies.entry(session).or_default().take(number, datagram.len());
        }
    }

    /// Counts of a session, once nothing more comes. `count` is 0 where nothing has.
    pub(super) fn count(&self, session: u64) -> Report {
        let mut state = self.state();
        loop {
            let last = state.tallies.get(&session).map_or(0, |tally| tally.report.last_ns);
            let quiet = now_ns().saturating_sub(last);
            // A session nobody has heard of has one silence to be heard.
            let left = SILENCE.saturating_sub(Duration::from_nanos(quiet));
            if last != 0 && left.is_zero() {
                break;
            }
            let wait = if last == 0 { SILENCE } else { left };
            let (after, timeout) = self
                .changed
                .wait_timeout(state, wait)
                .expect("no thread panics while it holds the lock");
            state = after;
            if timeout.timed_out() && !state.tallies.contains_key(&session) {
                break;
            }
        }
        state.tallies.remove(&session).map_or_else(Report::default, |tally| tally.report)
    }

    /// Sends to the client of a session, as soon as a datagram of it has come.
    pub(super) fn send(&self, session: u64, size: u32, time: Duration) -> Result<Report> {
        self.state().wanted.insert(session, ());
        let limit = ASK_AGAIN * ASKS;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(self.state(), limit, |s| !s.clients.contains_key(&session))
            .expect("no thread panics while it holds the lock");
        let client = state.clients.get(&session).copied();
        if client.is_none() {
            state.wanted.remove(&session);
        }
        drop(state);
        let client = client.context("no datagram of the client came")?;
        let sent = blast(size, self.together, session, time, |datagrams| {
            if self.together > 1 {
                send_apart(&self.socket, datagrams, size, Some(client))
            } else {
                self.socket.send_to(datagrams, client).map(|_| ())
            }
        })?;
        let mut state = self.state();
        state.wanted.remove(&session);
        state.clients.remove(&session);
        Ok(Report { count: sent, ..Report::default() })
    }
}

/// Sends datagrams for so long, `together` by one call; how many.
fn blast(
    size: u32,
    together: u32,
    session: u64,
    time: Duration,
    mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<u64> {
    let size = size as usize;
    let mut datagrams = body()[..size].repeat(together as usize);
    ensure!(datagrams.len() <= 65_000, "{together} datagrams of {size} bytes are too much");
    let end = now_ns() + time.as_nanos() as u64;
    let mut sent = 0;
    while now_ns() < end {
        for (datagram, number) in datagrams.chunks_mut(size).zip(sent..) {
            pattern::stamp(datagram, session, number);
        }
        match send(&datagrams) {
            Ok(()) => {}
            // Full buffers: the network's business is to lose what is too much, the
            // sender's to go on.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Err(error) => return Err(error).context("cannot send a datagram"),
        }
        sent += u64::from(together);
    }
    Ok(sent)
}

/// One transfer.
///
/// # Errors
/// When nothing arrives, or the control connection fails.
pub(super) fn client(args: Udp) -> Result<Figures> {
    let control = args.to.port(port::BULK);
    let together = if args.together { TOGETHER } else { 1 };
    let socket = socket(args.to.port(if args.together { port::UDP_TOGETHER } else { port::UDP }))?;
    // Unlike any other of this machine's: the session lives as long as this process.
    let session = now_ns() << 1 | 1;
    let ask = |kind| Ask { kind, ms: args.to.ms, session, size: args.size, together };
    let (sent, report) = match args.direction {
        Direction::Up => {
            let sent = blast(args.size, together, session, args.to.time(), |datagrams| {
                if args.together {
                    send_apart(&socket, datagrams, args.size, None)
                } else {
                    socket.send(datagrams).map(|_| ())
                }
            })?;
            let mut control = TcpStream::connect(control).context("cannot connect")?;
            control.write_all(&ask(Ask::UDP_COUNT).to_bytes())?;
            (sent, Report::read(&mut control)?)
        }
        Direction::Down => {
            let mut control = TcpStream::connect(control).context("cannot connect")?;
            control.write_all(&ask(Ask::UDP_DOWN).to_bytes())?;
            if args.together {
                take_several(&socket)?;
            }
            let tally = receive(&socket, args.together, session)?;
            ensure!(tally.wrong == 0, "wrong data in {} datagrams", tally.wrong);
            (Report::read(&mut control)?.count, tally.report)
        }
    };
    ensure!(report.count > 0, "none of {sent} datagrams arrived");
    Ok(Figures {
        seconds: (report.last_ns - report.first_ns) as f64 / 1e9,
        bytes: report.bytes,
        sent,
        received: report.count,
        ..Figures::default()
    })
}

/// Asks for datagrams until they come, and counts them until they stop.
fn receive(socket: &UdpSocket, together: bool, session: u64) -> Result<Tally> {
    let mut hello = body()[..pattern::DATAGRAM_HEADER].to_vec();
    pattern::stamp(&mut hello, session, 0);
    let mut buffer = vec![0; 1 << 16];
    let mut tally = Tally::default();
    let mut asks = 0;
    socket.set_read_timeout(Some(ASK_AGAIN))?;
    loop {
        if tally.seen.count == 0 {
            if asks == ASKS {
                bail!("no datagram came");
            }
            asks += 1;
            socket.send(&hello)?;
        }
        let received = if together {
            receive_several(socket, &mut buffer).map(|several| (several.bytes, several.each))
        } else {
            socket.recv(&mut buffer).map(|bytes| (bytes, bytes.max(1)))
        };
        match received {
            Ok((bytes, each)) => {
                for datagram in buffer[..bytes].chunks(each) {
                    match pattern::read_stamp(datagram) {
                        Some((of, number)) if of == session => {
                            if tally.seen.count == 0 {
                                socket.set_read_timeout(Some(SILENCE))?;
                            }
                            tally.take(number, datagram.len());
                        }
                        Some(_) => {}
                        None => tally.wrong += 1,
                    }
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if tally.seen.count > 0 {
                    return Ok(tally);
                }
            }
            Err(error) => return Err(error).context("cannot receive a datagram"),
        }
    }
}
