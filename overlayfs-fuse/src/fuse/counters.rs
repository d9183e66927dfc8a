//! Counts of what was asked and done, readable at any time.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire;

/// Opcodes that are counted one by one; the last place is for all others.
const OPCODES: usize = 64;

/// What has been served since the mount.
#[derive(Debug)]
pub struct Counters {
    requests: [AtomicU64; OPCODES],
    errors: AtomicU64,
    /// Waits for a request that spinning ended, and that it did not.
    pub(crate) spin_hits: AtomicU64,
    pub(crate) spin_misses: AtomicU64,
    /// Requests that came through io_uring.
    pub(crate) ring_requests: AtomicU64,
    /// Another server thread was called to help.
    pub(crate) summons: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; OPCODES],
            errors: AtomicU64::new(0),
            spin_hits: AtomicU64::new(0),
            spin_misses: AtomicU64::new(0),
            ring_requests: AtomicU64::new(0),
            summons: AtomicU64::new(0),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn request(&self, opcode: u32) {
        count(&self.requests[(opcode as usize).min(OPCODES - 1)]);
    }

    pub(crate) fn error(&self) {
        count(&self.errors);
    }

    /// One `name value` a line, without zeros but for the totals.
    #[must_use]
    pub fn report(&self) -> String {
        let mut out = String::new();
        let mut total = 0;
        for (opcode, counter) in self.requests.iter().enumerate() {
            let n = counter.load(Ordering::Relaxed);
            total += n;
            if n > 0 {
                let name = u32::try_from(opcode).ok().and_then(wire::name_of).unwrap_or("OTHER");
                line(&mut out, &format!("request.{}", name.to_lowercase()), n);
            }
        }
        line(&mut out, "requests", total);
        for (name, counter) in [
            ("errors", &self.errors),
            ("spin.hits", &self.spin_hits),
            ("spin.misses", &self.spin_misses),
            ("summons", &self.summons),
            ("ring.requests", &self.ring_requests),
        ] {
            line(&mut out, name, counter.load(Ordering::Relaxed));
        }
        out
    }
}

/// Adds a line to a report.
pub(crate) fn line(out: &mut String, name: &str, value: u64) {
    writeln!(out, "{name} {value}").expect("writing to a string never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_was_asked() {
        let counters = Counters::default();
        counters.request(wire::op::LOOKUP);
        counters.request(wire::op::LOOKUP);
        counters.request(5000);
        let report = counters.report();
        assert!(report.starts_with("request.lookup 2\nrequest.other 1\nrequests 3\n"), "{report}");
    }
}
