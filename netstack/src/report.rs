//! What is said on standard error: one line each, whatever the texts it repeats hold.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Says it. That nobody hears it must not end the network: a guest can have it said.
pub fn say(text: &str) {
    writeln!(io::stderr().lock(), "{}", line(text)).ok();
}

/// Says that something is not as it should be, while the network goes on.
pub fn warn(text: &str) {
    tell(&format!("warning: {text}"));
}

/// Says it while the network runs, if that can be done without waiting for whoever reads:
/// the guest can have lines written. What is left out is counted, and told later.
pub fn tell(text: &str) {
    static LOST: AtomicU64 = AtomicU64::new(0);
    tell_on(io::stderr(), &LOST, text);
}

fn tell_on(heard: impl AsFd, lost: &AtomicU64, text: &str) {
    let before = lost.swap(0, Ordering::Relaxed);
    let first = match before {
        0 => String::new(),
        count => line(&format!("{count} messages found nobody who reads")) + "\n",
    };
    let mut bytes = (first + &line(text)).into_bytes();
    bytes.truncate(LINE_MAX - 1);
    bytes.push(b'\n');
    let mut room = [PollFd::new(heard.as_fd(), PollFlags::POLLOUT)];
    // poll(2) is not among the calls that the filter leaves.
    let ready = ppoll(&mut room, Some(TimeSpec::new(0, 0)), None) == Ok(1);
    let writable = room[0].revents().is_some_and(|found| found.contains(PollFlags::POLLOUT));
    if !(ready && writable) {
        lost.fetch_add(before + 1, Ordering::Relaxed);
        return;
    }
    // That nobody is there any more must not end the network either.
    nix::unistd::write(heard, &bytes).ok();
}

/// What a pipe takes at once where it takes anything (PIPE_BUF, pipe(7)).
const LINE_MAX: usize = 4096;

fn line(text: &str) -> String {
    let mut line = String::from("netstack: ");
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_those_who_do_not_read() {
        let (reads, writes) = nix::unistd::pipe().unwrap();
        let lost = AtomicU64::new(0);
        let long = "x".repeat(10_000);
        for _ in 0..100 {
            tell_on(&writes, &lost, &long);
        }
        let missed = lost.load(Ordering::Relaxed);
        assert!((1..100).contains(&missed), "{missed} of 100");
        let mut buffer = vec![0; 1 << 20];
        let count = nix::unistd::read(&reads, &mut buffer).unwrap();
        assert_eq!(count, (100 - missed as usize) * LINE_MAX);
        tell_on(&writes, &lost, "heard");
        let count = nix::unistd::read(&reads, &mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]);
        let expected = format!("netstack: {missed} messages found nobody who reads\n");
        assert_eq!(text, expected + "netstack: heard\n");
        drop(reads);
        tell_on(&writes, &lost, "to nobody");
    }

    #[test]
    fn it_stays_one_line() {
        assert_eq!(super::line("a\nb\u{1b}[31m"), "netstack: a\\nb\\u{1b}[31m");
    }
}
