//! When the load itself stood still: its CPU ran something else, or the host ran nothing of this machine.
//!
//! An answer that came meanwhile is seen late, and a request that was due is sent late; neither is the
//! server's doing where it has a CPU of its own. After the platform stalls that jHiccup records beside
//! a measurement.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often the watch looks at the clock.
const BEAT: Duration = Duration::from_millis(1);
/// Seen later than this it was no mere wait for a turn.
const STALL: Duration = Duration::from_millis(5);

/// What a watch has seen; in nanoseconds since `began`.
#[derive(Debug)]
pub struct Stalls {
    began: Instant,
    last_beat: AtomicU64,
    last_end: AtomicU64,
    stop: AtomicBool,
}

impl Stalls {
    fn new(began: Instant) -> Self {
        let (last_beat, last_end) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { began, last_beat, last_end, stop: AtomicBool::new(false) }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn beat(&self, now: Instant) {
        let now = self.nanos(now);
        let late = now.saturating_sub(self.last_beat.swap(now, Ordering::Relaxed));
        if STALL.as_nanos() < u128::from(late) {
            self.last_end.store(now, Ordering::Relaxed);
        }
    }

    /// True where the load stood still at any time from `due` to `now`.
    #[must_use]
    pub fn between(&self, due: Instant, now: Instant) -> bool {
        // Whoever runs first after a stall may be the one that asks.
        let unseen = self.nanos(now).saturating_sub(self.last_beat.load(Ordering::Relaxed));
        let ended = self.last_end.load(Ordering::Relaxed);
        STALL.as_nanos() < u128::from(unseen) || (ended != 0 && self.nanos(due) <= ended)
    }
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stalls: Arc<Stalls>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn start() -> Self {
        let stalls = Arc::new(Stalls::new(Instant::now()));
        let seen = Arc::clone(&stalls);
        let thread = thread::spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                thread::sleep(BEAT);
                seen.beat(Instant::now());
            }
        });
        Self { stalls, thread: Some(thread) }
    }

    /// What it has seen, and sees.
    #[must_use]
    pub fn stalls(&self) -> &Arc<Stalls> {
        &self.stalls
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stalls.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_or_under_way_while_it_stood_is_told_and_nothing_else() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let stalls = Stalls::new(began);
        (1..=4).for_each(|millis| stalls.beat(at(millis)));
        assert!(!stalls.between(at(0), at(4)));
        assert!(stalls.between(at(3), at(12)), "before the watch itself has seen it");
        stalls.beat(at(12));
        assert!(stalls.between(at(3), at(13)) && stalls.between(at(8), at(13)));
        stalls.beat(at(13));
        assert!(!stalls.between(at(13), at(14)));
    }
}
