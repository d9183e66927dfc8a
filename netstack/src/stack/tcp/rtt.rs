//! How long to wait for an acknowledgement (RFC 6298).

use std::time::Duration;

/// Shortest wait. RFC 6298 asks for a second, for the sake of networks; here there
/// is none, and only a guest that delays its acknowledgements, by 200 ms at most
/// (Linux: TCP_DELACK_MAX), could be misjudged.
const MIN: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(60);
/// Before anything was measured.
const FIRST: Duration = Duration::from_secs(1);

/// Estimate of the round trip, and the timeout that follows.
#[derive(Debug, Default)]
pub(crate) struct Rtt {
    /// Smoothed round trip and its variation; None before the first sample.
    smooth: Option<(Duration, Duration)>,
    backoff: u32,
}

impl Rtt {
    /// A segment that was sent once was acknowledged after `sample`.
    pub(crate) fn sample(&mut self, sample: Duration) {
        self.smooth = Some(match self.smooth {
            None => (sample, sample / 2),
            Some((srtt, var)) => ((srtt * 7 + sample) / 8, (var * 3 + srtt.abs_diff(sample)) / 4),
        });
    }

    /// Nothing was heard in time: wait twice as long.
    pub(crate) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Something new was heard.
    pub(crate) fn heard(&mut self) {
        self.backoff = 0;
    }

    /// Whether the last wait was in vain.
    pub(crate) fn is_backed_off(&self) -> bool {
        self.backoff > 0
    }

    pub(crate) fn timeout(&self) -> Duration {
        let base = self.smooth.map_or(FIRST, |(srtt, var)| srtt + var * 4);
        (base.clamp(MIN, MAX) * (1 << self.backoff)).min(MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_round_trip_and_doubles() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(), FIRST);
        rtt.sample(Duration::from_millis(100));
        assert_eq!(rtt.timeout(), Duration::from_millis(300));
        (0..50).for_each(|_| rtt.sample(Duration::from_micros(50)));
        assert_eq!(rtt.timeout(), MIN);
        rtt.back_off();
        assert_eq!(rtt.timeout(), MIN * 2);
        (0..40).for_each(|_| rtt.back_off());
        assert_eq!(rtt.timeout(), MAX);
        rtt.heard();
        assert_eq!(rtt.timeout(), MIN);
    }
}
