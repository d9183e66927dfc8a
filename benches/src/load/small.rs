//! Requests and replies: round trips, connections, HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::pattern::{self, body};
use super::{Figures, Small, WrongData, now_ns, on_threads, port};

/// Bytes of a request and of its reply.
pub(super) const MESSAGE: usize = 64;
/// Bytes of a page.
const PAGE: usize = 1024;
/// How long a reply may take before the operation has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a datagram's may take.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(1);

/// The reply of a one-shot connection: no echo, so that nobody can answer in the
/// server's place by accident.
pub(super) fn reply(request: &[u8]) -> Vec<u8> {
    request.iter().map(|byte| byte ^ 0xFF).collect()
}

/// A page.
pub(super) fn http_response() -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {PAGE}\r\n\r\n"
    )
    .into_bytes();
    response.extend(&body()[..PAGE]);
    response
}

/// Repeats an operation on some threads until time is up. `start` is called once a
/// thread and gives the operation. One that fails is counted, and the thread starts
/// anew.
///
/// # Errors
/// When the very first fails, or any gets wrong data.
pub(super) fn repeat<Op: FnMut(u64) -> Result<()>>(
    threads: u16,
    time: Duration,
    start: impl Fn() -> Result<Op> + Send + Sync,
) -> Result<Figures> {
    start()?(0)?;
    let begin = now_ns();
    let end = begin + time.as_nanos() as u64;
    let threads = on_threads(threads, |number| {
        let mut done = Figures::default();
        let mut times = Vec::new();
        let mut operation: Option<Op> = None;
        let mut salt = u64::from(number) << 48;
        while now_ns() < end {
            salt += 1;
            let since = now_ns();
            let result = match &mut operation {
                Some(operation) => operation(salt),
                None => start().and_then(|new| operation.insert(new)(salt)),
            };
            match result {
                Ok(()) => times.push(now_ns() - since),
                Err(error) if error.is::<WrongData>() => return Err(error),
                Err(error) => {
                    done.errors += 1;
                    done.first_error.get_or_insert_with(|| format!("{error:#}"));
                    operation = None;
                }
            }
        }
        Ok((done, times))
    })?;
    let mut all = Vec::new();
    let mut figures = Figures { seconds: (now_ns() - begin) as f64 / 1e9, ..Figures::default() };
    for (done, times) in threads {
        figures.operations += times.len() as u64;
        figures.errors += done.errors;
        figures.first_error = figures.first_error.or(done.first_error);
        all.extend(times);
    }
    Ok(figures.with_times(all))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// A request that no other is like.
fn request(salt: u64) -> [u8; MESSAGE] {
    let mut message: [u8; MESSAGE] = body()[..MESSAGE].try_into().expect("a block is longer");
    message[..8].copy_from_slice(&salt.to_le_bytes());
    message
}

/// Round trips on connections that stay.
///
/// # Errors
/// When not even one works.
pub(super) fn round_trips(args: Small) -> Result<Figures> {
    let to = args.to.port(port::ECHO);
    repeat(args.streams, args.to.time(), || {
        let mut stream = connect(to)?;
        Ok(move |salt| {
            let message = request(salt);
            stream.write_all(&message)?;
            let mut reply = [0; MESSAGE];
            stream.read_exact(&mut reply).context("no reply")?;
            ensure!(reply == message, WrongData("the reply is not what was sent"));
            Ok(())
        })
    })
}

/// Round trips over UDP, a socket each thread.
///
/// # Errors
/// When not even one works.
pub(super) fn udp_round_trips(args: Small) -> Result<Figures> {
    let to = args.to.port(port::UDP);
    repeat(args.streams, args.to.time(), || {
        let socket = super::udp::socket(to)?;
        socket.set_read_timeout(Some(DATAGRAM_LIMIT))?;
        Ok(move |salt| {
            let mut message = body()[..MESSAGE].to_vec();
            pattern::stamp(&mut message, super::udp::ECHO, salt);
            udp_round_trip(&socket, &message)
        })
    })
}

fn udp_round_trip(socket: &UdpSocket, message: &[u8]) -> Result<()> {
    socket.send(message)?;
    let mut reply = [0; MESSAGE + 1];
    let count = socket.recv(&mut reply).context("no reply")?;
    ensure!(reply[..count] == *message, WrongData("the reply is not what was sent"));
    Ok(())
}

/// Connections, each for one request.
///
/// # Errors
/// When not even one works.
pub(super) fn connections(args: Small) -> Result<Figures> {
    let to = args.to.port(port::ONE_SHOT);
    repeat(args.streams, args.to.time(), || {
        Ok(move |salt| {
            let mut stream = connect(to)?;
            let message = request(salt);
            stream.write_all(&message)?;
            let mut answer = Vec::with_capacity(MESSAGE);
            // To the end: the server closes first, and keeps the TIME_WAIT.
            stream.read_to_end(&mut answer).context("no reply")?;
            ensure!(answer.len() == MESSAGE, "cut short: a reply of {} bytes", answer.len());
            ensure!(answer == reply(&message), WrongData("the reply to another request"));
            Ok(())
        })
    })
}

/// GET requests on connections that stay.
///
/// # Errors
/// When not even one works.
pub(super) fn http(args: Small) -> Result<Figures> {
    let to = args.to.port(port::HTTP);
    repeat(args.streams, args.to.time(), || {
        let mut stream = BufReader::new(connect(to)?);
        Ok(move |_| {
            let get = format!("GET /page HTTP/1.1\r\nHost: {to}\r\nUser-Agent: bench\r\n\r\n");
            stream.get_mut().write_all(get.as_bytes())?;
            let mut line = String::new();
            let mut length = 0;
            loop {
                line.clear();
                ensure!(stream.read_line(&mut line)? > 0, "the connection closed");
                match line.trim_end() {
                    "" => break,
                    head => {
                        if let Some(value) = head.strip_prefix("Content-Length: ") {
                            length = value.parse()?;
                        }
                    }
                }
            }
            ensure!(length == PAGE, WrongData("the length of the page"));
            let mut page = [0; PAGE];
            stream.read_exact(&mut page).context("no page")?;
            ensure!(page[..] == body()[..PAGE], WrongData("the page"));
            Ok(())
        })
    })
}
