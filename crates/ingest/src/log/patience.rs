//! How long a page of the log that cannot be read is asked for, before its events count as lost.
//!
//! A read that fails is no proof of damage: a cable, a controller, a network disk come back. So a
//! patient reader says that it cannot read, whoever reads tries again, and only where that has gone on
//! for `log.read_patience` without a pause is the segment read with its unreadable pages as zeros, which
//! fail their checksums and are set aside.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
struct Trouble {
    /// Segments that could not be read lately: since when, and when last.
    failing: BTreeMap<u64, (Instant, Instant)>,
    given_up: BTreeSet<u64>,
}

/// What all readers of a partition know of its unreadable segments.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    trouble: Mutex<Trouble>,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { limit, trouble: Mutex::default() }
    }

    /// True where nobody waits for this segment any more.
    pub fn is_over(&self, segment: u64) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).given_up.contains(&segment)
    }

    /// A read failed at `now`; true where it has done so for long enough.
    pub fn failed(&self, segment: u64, now: Instant) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // Two failures further apart than that are two troubles.
        trouble.failing.retain(|_, (_, last)| now.saturating_duration_since(*last) <= self.limit);
        let (since, last) = trouble.failing.entry(segment).or_insert((now, now));
        *last = now;
        let over = now.saturating_duration_since(*since) >= self.limit;
        if over {
            trouble.given_up.insert(segment);
        }
        over
    }

    /// Segments before `earliest` are gone.
    pub fn forget_before(&self, earliest: u64) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.given_up = trouble.given_up.split_off(&earliest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_when_trouble_lasts_and_begins_anew_after_a_pause() {
        let patience = Patience::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in [0, 4, 8] {
            assert!(!patience.failed(7, at(second)), "{second}");
        }
        assert!(!patience.failed(7, at(19)), "a pause of eleven seconds");
        for second in [24, 28] {
            assert!(!patience.failed(7, at(second)), "{second}");
        }
        assert!(!patience.failed(8, at(29)), "another segment");
        assert!(patience.failed(7, at(29)) && patience.is_over(7) && !patience.is_over(8));
        patience.forget_before(8);
        assert!(!patience.is_over(7));
    }

    #[test]
    fn without_patience_the_first_failure_is_the_last() {
        let patience = Patience::new(Duration::ZERO);
        assert!(patience.failed(1, Instant::now()) && patience.is_over(1));
    }
}
