//! How many inserts a second the servers get, over all tables: each costs them about the same, however few rows it has.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Counts inserts against a rate: each is paid for by windows that wait afterwards and so grow.
#[derive(Debug)]
pub struct Inserts {
    each: Duration,
    /// When all that were made are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Inserts {
    /// `per_second`: more than that make windows wait.
    pub fn new(per_second: f64) -> Self {
        Self { each: Duration::from_secs_f64(1.0 / per_second), paid: Mutex::default() }
    }

    fn paid(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, made `now`.
    pub fn count(&self, now: Instant) {
        let mut paid = self.paid();
        *paid = Some(paid.map_or(now, |paid| paid.max(now)) + self.each);
    }

    /// Until when windows wait, if that is not over `now`.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.paid().filter(|paid| now < *paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_the_rate_waits_for_nothing() {
        let (inserts, start) = (Inserts::new(10.0), Instant::now());
        for second in 0..100 {
            let now = start + Duration::from_millis(100 * second);
            assert_eq!(inserts.until(now), None);
            inserts.count(now);
        }
    }

    #[test]
    fn what_is_beyond_it_is_paid_for_and_no_more_than_once() {
        let (inserts, start) = (Inserts::new(10.0), Instant::now());
        (0..30).for_each(|_| inserts.count(start));
        let until = inserts.until(start).map(|until| until - start);
        assert_eq!(until, Some(Duration::from_secs(3)));
        let later = start + Duration::from_secs(3);
        assert_eq!(inserts.until(later), None);
        // Quiet times are not saved up, and nothing is owed for them.
        inserts.count(later + Duration::from_secs(60));
        let next = inserts.until(later + Duration::from_secs(60));
        assert_eq!(next, Some(later + Duration::from_millis(60_100)));
    }
}
