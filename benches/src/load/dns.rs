//! Questions to a name server, over UDP (RFC 1035).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Figures, WrongData};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Questions for one name.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Dns {
    /// The name server; its port is 53.
    server: IpAddr,
    /// The address the answer must have.
    expected: Ipv4Addr,
    /// Milliseconds of asking.
    #[arg(long, default_value_t = 1000)]
    ms: u32,
    /// Questions at once, a thread and a socket each.
    #[arg(long, default_value_t = 1)]
    streams: u16,
}

/// The name asked for: the lab's name server knows it.
const NAME: &str = tests::lab::Outside::NAME;

/// Asks until time is up.
///
/// # Errors
/// When the first question has no right answer.
pub(super) fn client(args: Dns) -> Result<Figures> {
    let to = SocketAddr::new(args.server, 53);
    super::small::repeat(args.streams, Duration::from_millis(args.ms.into()), || {
        let socket = super::udp::socket(to)?;
        socket.set_read_timeout(Some(LIMIT))?;
        // Two questions in a row never have the same.
        Ok(move |salt: u64| ask(&socket, salt as u16, args.expected))
    })
}

fn ask(socket: &std::net::UdpSocket, id: u16, expected: Ipv4Addr) -> Result<()> {
    socket.send(&question(id))?;
    let mut answer = [0; 512];
    loop {
        let count = socket.recv(&mut answer).context("no answer")?;
        // An answer that comes too late is nobody's.
        if answer[..2] == id.to_be_bytes() {
            return check(&answer[..count], expected);
        }
    }
}

/// One question of class IN for the address of [`NAME`].
fn question(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion desired; one question, no records.
    bytes.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The answer has no error, and its last four bytes are the address: one record
/// without further sections ends so.
fn check(answer: &[u8], expected: Ipv4Addr) -> Result<()> {
    ensure!(answer.len() > 16, "an answer of {} bytes", answer.len());
    let rcode = answer[3] & 0x0F;
    ensure!(answer[2] & 0x80 != 0 && rcode == 0, "the name server says error {rcode}");
    ensure!(
        answer[6..8] == [0, 1] && answer.ends_with(&expected.octets()),
        WrongData("the address is another")
    );
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let asked = question(0x1234);
        assert_eq!(&asked[..6], [0x12, 0x34, 1, 0, 0, 1]);
        assert!(asked.ends_with(b"\x07outside\x04test\0\0\x01\0\x01"));

        let address = Ipv4Addr::new(10, 77, 0, 2);
        let mut answer = asked;
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 77, 0, 2]);
        check(&answer, address).unwrap();
        assert!(check(&answer, Ipv4Addr::LOCALHOST).is_err());
        answer[3] |= 3;
        assert!(check(&answer, address).is_err());
    }
}
