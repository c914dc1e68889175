//! The time, from one place, so that a test can move it.

use std::sync::atomic::{AtomicI64, Ordering};

use tidegate_event::ReceivedAt;

/// Tells the time of day. Durations are taken from `std::time::Instant` and `tokio::time`.
pub trait Clock: Send + Sync {
    /// Now, UTC.
    fn now(&self) -> ReceivedAt;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> ReceivedAt {
        ReceivedAt(jiff::Timestamp::now().as_microsecond())
    }
}

/// A clock that stands where it is put.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Starts at `micros` since 1970.
    #[must_use]
    pub fn new(micros: i64) -> Self {
        Self(AtomicI64::new(micros))
    }

    /// Moves it on (or back) by `micros`.
    pub fn advance(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> ReceivedAt {
        ReceivedAt(self.0.load(Ordering::Relaxed))
    }
}
