//! The one place where the harness reads the clock.

use std::time::{Duration, Instant};

/// Now, on the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the harness's one reader of the clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// A point in time to be done by.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` from now.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self(now() + limit)
    }

    /// What is left; zero once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }
}
