//! Counters for Prometheus (`--metrics`): its text format, over HTTP, on a UNIX socket
//! or a port of the loopback.
//!
//! # Theory of operation
//!
//! Whatever is asked for, the answer is the counters: a request ([`crate::clients`]) is
//! complete at its empty line, at its end, or when it has grown too long. Counters of
//! all workers are added up; what they give was true a moment ago on each.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::clients::{Error, Listener, Request};
use crate::stack::egress::Hits;
use crate::stack::report::Report;

/// Longest request, in bytes.
const REQUEST_MAX: usize = 8192;

/// Where the counters are given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket.
    Unix(PathBuf),
    /// A port of the loopback.
    Tcp(SocketAddr),
}

/// Reads `PATH` (with a slash in it), `PORT` or `ADDRESS:PORT` of the loopback.
///
/// # Errors
/// It is none of them, as a text.
pub fn address(text: &str) -> Result<Address, String> {
    if text.contains('/') {
        return Ok(Address::Unix(text.into()));
    }
    let at = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Err(_) => text.parse().map_err(|_| {
            "expected a path with a slash in it, a port, or 127.0.0.1:PORT".to_owned()
        })?,
    };
    if !at.ip().is_loopback() || at.port() == 0 {
        return Err("the port must be one of the loopback".into());
    }
    Ok(Address::Tcp(at))
}

/// Makes the listening socket.
///
/// # Errors
/// The path or port is in use, or may not be used.
pub fn listen(address: &Address) -> Result<Listener, Error> {
    match address {
        Address::Unix(path) => Listener::unix(path),
        Address::Tcp(at) => Listener::tcp(*at),
    }
}

/// Whether it can be answered.
#[must_use]
pub fn is_whole(request: Request<'_>) -> bool {
    request.ended
        || request.bytes.len() > REQUEST_MAX
        || request.bytes.windows(4).any(|four| four == b"\r\n\r\n")
}

/// The HTTP answer that carries the text of [`render`].
#[must_use]
pub fn answer(text: &str) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    format!("{head}{text}").into_bytes()
}

/// What passed the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames of the guest.
    pub frames_in: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// The text for these workers together, and for the policy if there is one.
#[must_use]
pub fn render(workers: &[(Report, Traffic)], hits: Option<&Hits>) -> String {
    let sum = |of: &dyn Fn(&(Report, Traffic)) -> u64| workers.iter().map(of).sum::<u64>();
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a string does not fail.
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        for (labels, value) in samples {
            writeln!(text, "{name}{labels} {value}").ok();
        }
    };
    let label = |key: &str, value: &str, count: u64| (format!("{{{key}=\"{value}\"}}"), count);
    family(
        "netstack_flows",
        "gauge",
        "Flows there are now.",
        &[
            label("protocol", "tcp", sum(&|w| w.0.tcp)),
            label("protocol", "udp", sum(&|w| w.0.udp)),
            label("protocol", "icmp", sum(&|w| w.0.icmp)),
            label("protocol", "dns", sum(&|w| w.0.dns)),
        ],
    );
    family(
        "netstack_frames_total",
        "counter",
        "Frames that passed the TAP device.",
        &[
            label("direction", "from_guest", sum(&|w| w.1.frames_in)),
            label("direction", "to_guest", sum(&|w| w.1.frames_out)),
        ],
    );
    family(
        "netstack_bytes_total",
        "counter",
        "Bytes of these frames, Ethernet headers included.",
        &[
            label("direction", "from_guest", sum(&|w| w.1.bytes_in)),
            label("direction", "to_guest", sum(&|w| w.1.bytes_out)),
        ],
    );
    family(
        "netstack_tcp_retransmissions_total",
        "counter",
        "Segments with data sent to the guest again.",
        &[(String::new(), sum(&|w| w.0.counters.retransmitted))],
    );
    family(
        "netstack_drops_total",
        "counter",
        "What was dropped or refused, by reason.",
        &[
            label("reason", "bad_frame", sum(&|w| w.0.counters.bad_frames)),
            label("reason", "queue_full", sum(&|w| w.0.counters.queue_full)),
            label("reason", "table_full", sum(&|w| w.0.counters.table_full)),
            label("reason", "denied", sum(&|w| w.0.counters.denied)),
        ],
    );
    if let Some((default, rules)) = hits.and_then(|hits| hits.split_last()) {
        let mut samples: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(n, count)| label("rule", &(n + 1).to_string(), *count))
            .collect();
        samples.push(label("rule", "default", *default));
        family(
            "netstack_policy_decisions_total",
            "counter",
            "Decisions of the policy, by the rule that made them.",
            &samples,
        );
    }
    family(
        "netstack_workers",
        "gauge",
        "Workers, each with a queue of the device.",
        &[(String::new(), workers.len() as u64)],
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_of_the_loopback() {
        assert_eq!(address("/run/m"), Ok(Address::Unix("/run/m".into())));
        assert_eq!(address("./m"), Ok(Address::Unix("./m".into())));
        assert_eq!(address("9100"), Ok(Address::Tcp("127.0.0.1:9100".parse().unwrap())));
        assert_eq!(address("[::1]:9100"), Ok(Address::Tcp("[::1]:9100".parse().unwrap())));
        for bad in ["0.0.0.0:9100", "192.0.2.1:1", "127.0.0.1:0", "0", "m", "", "70000"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workers_are_added_up() {
        let mut one = (Report { tcp: 2, ..Report::default() }, Traffic::default());
        one.1.bytes_in = 7;
        one.0.counters.retransmitted = 3;
        let text = render(&[one.clone(), one], Some(&vec![4, 5]));
        for line in [
            "netstack_flows{protocol=\"tcp\"} 4",
            "netstack_bytes_total{direction=\"from_guest\"} 14",
            "# TYPE netstack_tcp_retransmissions_total counter",
            "netstack_tcp_retransmissions_total 6",
            "netstack_policy_decisions_total{rule=\"1\"} 4",
            "netstack_policy_decisions_total{rule=\"default\"} 5",
            "netstack_workers 2",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        assert!(!render(&[], None).contains("policy"));
    }

    #[test]
    fn a_request_is_whole_at_its_empty_line_or_end() {
        let request = |bytes, ended| Request { bytes, ended };
        assert!(!is_whole(request(b"GET /metrics HTTP/1.1\r\n", false)));
        assert!(is_whole(request(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false)));
        assert!(is_whole(request(b"GET", true)));
        assert!(is_whole(request(&[b'x'; REQUEST_MAX + 1], false)));
        let answer = String::from_utf8(answer("a 1\n")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\na 1\n"));
        assert!(answer.contains("Content-Length: 4\r\n"));
    }
}
