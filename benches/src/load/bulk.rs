//! Transfers over TCP. The client says in [`Ask`] what it wants; for a transfer to
//! the server the server answers with a [`Report`] once all of it has come.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::pattern::{BLOCK, Blocks, Check};
use super::{Direction, Figures, Tcp, now_ns, on_threads};

/// What a client asks for on [`super::port::BULK`]: 24 bytes, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    /// One of the constants below.
    pub(super) kind: u32,
    /// Milliseconds of sending.
    pub(super) ms: u32,
    /// Session of datagrams.
    pub(super) session: u64,
    /// Bytes of a datagram.
    pub(super) size: u32,
    /// Datagrams sent by one call.
    pub(super) together: u32,
}

impl Ask {
    /// A stream to the server.
    pub(super) const UP: u32 = 1;
    /// A stream from the server.
    pub(super) const DOWN: u32 = 2;
    /// Counts of the datagrams of a session, once no more come.
    pub(super) const UDP_COUNT: u32 = 3;
    /// Datagrams to whoever sends one with this session.
    pub(super) const UDP_DOWN: u32 = 4;

    const BYTES: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.session.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.size.to_le_bytes());
        bytes[20..].copy_from_slice(&self.together.to_le_bytes());
        bytes
    }

    pub(super) fn read(stream: &mut TcpStream) -> Result<Self> {
        let mut bytes = [0; Self::BYTES];
        stream.read_exact(&mut bytes).context("no request")?;
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Ok(Self {
            kind: word(0),
            ms: word(4),
            session: u64::from(word(8)) | u64::from(word(12)) << 32,
            size: word(16),
            together: word(20),
        })
    }
}

/// What a receiver saw: four u64, little-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Bytes, all checked.
    pub(super) bytes: u64,
    /// Time of the first, ns ([`now_ns`]).
    pub(super) first_ns: u64,
    /// Time of the last.
    pub(super) last_ns: u64,
    /// Datagrams; sent, when the sender reports.
    pub(super) count: u64,
}

impl Report {
    const BYTES: usize = 32;

    pub(super) fn write(self, stream: &mut TcpStream) -> Result<()> {
        let words = [self.bytes, self.first_ns, self.last_ns, self.count];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        stream.write_all(&bytes).context("cannot send the report")
    }

    /// The server closes without one when it saw a wrong byte.
    pub(super) fn read(stream: &mut TcpStream) -> Result<Self> {
        let mut bytes = [0; Self::BYTES];
        stream
            .read_exact(&mut bytes)
            .context("no report from the server: it got wrong data, or the connection broke")?;
        let word =
            |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
        Ok(Self { bytes: word(0), first_ns: word(1), last_ns: word(2), count: word(3) })
    }
}

/// One transfer over several connections.
///
/// # Errors
/// When a connection fails, or a byte is wrong or missing.
pub(super) fn client(args: Tcp) -> Result<Figures> {
    let server = args.to.port(super::port::BULK);
    let kind = match args.direction {
        Direction::Up => Ask::UP,
        Direction::Down => Ask::DOWN,
    };
    // All connect before any sends: the time to connect is another measurement.
    let barrier = std::sync::Barrier::new(args.streams.into());
    let reports = on_threads(args.streams, |_| {
        let connected = TcpStream::connect(server).context("cannot connect");
        barrier.wait();
        let mut stream = connected?;
        let ask = Ask { kind, ms: args.to.ms, session: 0, size: 0, together: 1 };
        stream.write_all(&ask.to_bytes())?;
        match args.direction {
            Direction::Up => {
                send(&mut stream, args.to.time())?;
                Report::read(&mut stream)
            }
            Direction::Down => receive(&mut stream),
        }
    })?;
    let first = reports.iter().map(|report| report.first_ns).min().unwrap_or(0);
    let last = reports.iter().map(|report| report.last_ns).max().unwrap_or(0);
    let bytes = reports.iter().map(|report| report.bytes).sum();
    Ok(Figures { seconds: (last - first) as f64 / 1e9, bytes, ..Figures::default() })
}

/// Sends blocks for so long, and one more that says it is the last.
pub(super) fn send(stream: &mut TcpStream, time: Duration) -> Result<()> {
    let end = now_ns() + time.as_nanos() as u64;
    let mut blocks = Blocks::new();
    loop {
        let last = now_ns() >= end;
        stream.write_all(blocks.next(last)).context("the connection broke while sending")?;
        if last {
            return Ok(());
        }
    }
}

/// Receives and checks blocks until the last.
pub(super) fn receive(stream: &mut TcpStream) -> Result<Report> {
    let mut buffer = vec![0; 2 * BLOCK];
    let mut check = Check::new();
    let mut first_ns = 0;
    loop {
        let count = stream.read(&mut buffer).context("the connection broke while receiving")?;
        ensure!(count > 0, "cut short: the stream ended after {} bytes", check.bytes);
        if first_ns == 0 {
            first_ns = now_ns();
        }
        if check.take(&buffer[..count])? {
            return Ok(Report { bytes: check.bytes, first_ns, last_ns: now_ns(), count: 0 });
        }
    }
}

#[cfg(test)]
mod unit {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn requests_and_reports_come_as_they_were_sent() {
        let (mut here, mut there) = pair();
        let ask = Ask { kind: Ask::UDP_DOWN, ms: 5, session: 1 << 40, size: 1400, together: 16 };
        here.write_all(&ask.to_bytes()).unwrap();
        assert_eq!(Ask::read(&mut there).unwrap(), ask);
        let report = Report { bytes: 1, first_ns: 2, last_ns: 1 << 50, count: 4 };
        report.write(&mut there).unwrap();
        assert_eq!(Report::read(&mut here).unwrap(), report);
    }

    #[test]
    fn a_stream_cut_short_is_an_error() {
        let (mut here, mut there) = pair();
        here.write_all(&Blocks::new().next(false)[..1000]).unwrap();
        drop(here);
        let error = format!("{:#}", receive(&mut there).unwrap_err());
        assert!(error.contains("cut short: the stream ended after 1000 bytes"), "{error}");
    }

    #[test]
    fn a_whole_stream_is_reported() {
        let (mut here, mut there) = pair();
        let receiver = std::thread::spawn(move || receive(&mut there).unwrap());
        send(&mut here, Duration::ZERO).unwrap();
        let report = receiver.join().unwrap();
        assert_eq!(report.bytes, BLOCK as u64);
        assert!(report.last_ns >= report.first_ns);
    }
}
