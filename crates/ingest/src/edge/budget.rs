//! The bytes that request bodies may hold at once, raw, decoded and on their way into the log.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A bound in bytes. Taking never waits: what does not fit is refused.
#[derive(Debug)]
pub struct Budget {
    bound: u64,
    held: AtomicU64,
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `bound` bytes.
    #[must_use]
    pub fn new(bound: u64) -> Arc<Self> {
        Arc::new(Self { bound, held: AtomicU64::new(0) })
    }

    /// The bound in bytes.
    #[must_use]
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// The bytes held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or `None` where that many are not free.
    #[must_use]
    pub fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        self.add(bytes).then(|| Permit { budget: Arc::clone(self), bytes })
    }

    fn add(&self, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.bound);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

impl Permit {
    /// How many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes; false, and nothing taken, where that many are not free.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let taken = self.budget.add(more);
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Gives all but `keep` bytes back.
    pub fn shrink_to(&mut self, keep: u64) {
        let free = self.bytes.saturating_sub(keep);
        self.budget.held.fetch_sub(free, Ordering::Relaxed);
        self.bytes -= free;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_never_taken_past_the_bound_and_always_come_back() {
        let budget = Budget::new(10);
        let mut first = budget.try_take(6).unwrap();
        assert!(budget.try_take(5).is_none());
        assert!(budget.try_take(u64::MAX).is_none());
        assert!(first.grow(4));
        assert!(!first.grow(1));
        assert_eq!((first.bytes(), budget.held()), (10, 10));
        first.shrink_to(3);
        assert_eq!(budget.held(), 3);
        drop(first);
        assert_eq!(budget.held(), 0);
    }
}
