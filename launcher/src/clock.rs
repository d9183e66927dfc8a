//! The one place where the clock is read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Time of day.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where the time of day is read")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
#[must_use]
pub fn unix_seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Time that only goes forward, for deadlines.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place where the steady clock is read")]
pub fn monotonic() -> Instant {
    Instant::now()
}
