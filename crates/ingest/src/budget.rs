//! The one budget of event bytes: what is reserved, and the pool that tenants share.
//!
//! ```text
//! budget.bytes ─┬─ reserved at start: sinks' windows, the index of ids
//!               └─ the pool: connections, bodies, decode buffers, batches, the writer's queue
//! ```
//!
//! What drains has its part from the start: were it to wait for memory that waits for it, neither
//! would ever move. In the pool taking never waits; what does not fit is refused. A tenant may hold
//! as much as is left free, and no more (Choudhury and Hahne, "Dynamic queue length thresholds",
//! 1998, with a factor of 1): one alone fills half of the pool, `n` that want all leave `1 / (n + 1)`
//! of it, and whoever holds nothing always finds that. A tenant's only request may have all that is
//! free, so that none is too large for ever. Nothing has to be configured or given back when tenants
//! come and go.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tidegate_event::TenantId;

use crate::shed::ShedReason;

/// A bound in bytes, shared by all tenants. Taking never waits: what does not fit is refused.
#[derive(Debug)]
pub struct Budget {
    bound: u64,
    held: AtomicU64,
    /// Bytes given back since the start.
    given_back: AtomicU64,
    /// Bytes given back a second, a moving average; 0 before the first.
    drain: AtomicU64,
    tenants: RwLock<HashMap<TenantId, Arc<Holder>>>,
}

/// When to come again while nothing is known of how fast bytes are given back.
const WAIT_UNKNOWN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What one tenant holds.
#[derive(Debug)]
struct Holder {
    held: AtomicU64,
}

/// One tenant's access to the pool.
#[derive(Clone, Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// `None`: nobody's; only the pool bounds it.
    holder: Option<Arc<Holder>>,
    weight: u64,
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    share: Share,
    bytes: u64,
}

/// Why bytes cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The tenant holds as much as is left free: others are not concerned.
    #[error("the tenant holds its share of the memory")]
    Share,
    /// Nobody gets so much now.
    #[error("the memory for requests is full")]
    Pool,
}

impl Full {
    /// What the client is told.
    #[must_use]
    pub fn reason(self) -> ShedReason {
        match self {
            Self::Share => ShedReason::TenantLane,
            Self::Pool => ShedReason::EdgeFull,
        }
    }
}

impl Budget {
    /// A pool of `bound` bytes.
    #[must_use]
    pub fn new(bound: u64) -> Arc<Self> {
        Arc::new(Self {
            bound,
            held: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            drain: AtomicU64::new(0),
            tenants: RwLock::default(),
        })
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

    /// The bytes that are not held now.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.bound.saturating_sub(self.held())
    }

    /// True where next to nothing is left: a sixty-fourth.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free() <= self.bound / 64
    }

    /// Bytes given back a second, measured; 0 before the first.
    #[must_use]
    pub fn drain_bytes_per_second(&self) -> u64 {
        self.drain.load(Ordering::Relaxed)
    }

    /// Takes what was given back since `before` into the moving average, where anything was: a second
    /// without requests says nothing. Returns what to give it next time.
    pub fn measure(&self, before: u64, elapsed: Duration) -> u64 {
        let now = self.given_back.load(Ordering::Relaxed);
        let bytes = now.wrapping_sub(before);
        if bytes != 0 {
            let rate = bytes as f64 / elapsed.as_secs_f64().max(1e-3);
            let known = self.drain.load(Ordering::Relaxed) as f64;
            let average = if known == 0.0 { rate } else { known + 0.3 * (rate - known) };
            self.drain.store(average.max(1.0) as u64, Ordering::Relaxed);
        }
        now
    }

    /// How long it takes until what is held now has been given back.
    fn wait(&self) -> Duration {
        match self.drain_bytes_per_second() {
            0 => WAIT_UNKNOWN,
            drain => Duration::from_secs_f64(self.held() as f64 / drain as f64).min(WAIT_MAX),
        }
    }

    /// The access of a tenant, with its weight against others'.
    #[must_use]
    pub fn share(self: &Arc<Self>, tenant: &TenantId, weight: u64) -> Share {
        let known = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            tenants.get(tenant).map(Arc::clone)
        };
        let holder = known.unwrap_or_else(|| {
            let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
            let empty = || Arc::new(Holder { held: AtomicU64::new(0) });
            Arc::clone(tenants.entry(tenant.clone()).or_insert_with(empty))
        });
        Share { budget: Arc::clone(self), holder: Some(holder), weight: weight.max(1) }
    }

    /// The access of what is no tenant's: bounded by the pool alone.
    #[must_use]
    pub fn unshared(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), holder: None, weight: 1 }
    }

    fn add(&self, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.bound);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

impl Share {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// [`Full`]; nothing is taken.
    pub fn try_take(&self, bytes: u64) -> Result<Permit, Full> {
        self.add(bytes, 0)?;
        Ok(Permit { share: self.clone(), bytes })
    }

    /// The bytes that the tenant holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.holder.as_ref().map_or(0, |holder| holder.held.load(Ordering::Relaxed))
    }

    /// Whether `bytes` could be taken now by a request that has none yet; takes nothing.
    ///
    /// # Errors
    /// [`Full`]
    pub fn check(&self, bytes: u64) -> Result<(), Full> {
        self.fits(bytes, 0)
    }

    /// Whether a permit that has `mine` already may have `bytes` more.
    fn fits(&self, bytes: u64, mine: u64) -> Result<(), Full> {
        let free = self.budget.free();
        if free < bytes {
            return Err(Full::Pool);
        }
        let own = self.held();
        if mine < own && free.saturating_mul(self.weight) < own.saturating_add(bytes) {
            return Err(Full::Share);
        }
        Ok(())
    }

    /// Takes `bytes` for a permit that has `mine` already.
    fn add(&self, bytes: u64, mine: u64) -> Result<(), Full> {
        if bytes == 0 {
            return Ok(());
        }
        // Two requests that look at the same moment may pass the share together, never the pool.
        self.fits(bytes, mine)?;
        if !self.budget.add(bytes) {
            return Err(Full::Pool);
        }
        if let Some(holder) = &self.holder {
            holder.held.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// When to come again, after [`Full`].
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.budget.wait()
    }

    fn sub(&self, bytes: u64) {
        self.budget.given_back.fetch_add(bytes, Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(holder) = &self.holder {
            holder.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Permit {
    /// Whose it is.
    #[must_use]
    pub fn share(&self) -> &Share {
        &self.share
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes.
    ///
    /// # Errors
    /// [`Full`]; nothing more is taken.
    pub fn grow(&mut self, more: u64) -> Result<(), Full> {
        self.share.add(more, self.bytes)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives all but `keep` bytes back.
    pub fn shrink_to(&mut self, keep: u64) {
        let free = self.bytes.saturating_sub(keep);
        self.share.sub(free);
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
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: usize) -> TenantId {
        TenantId::new(&format!("tenant{n}")).unwrap()
    }

    #[test]
    fn bytes_are_never_taken_past_the_bound_and_always_come_back() {
        let budget = Budget::new(10);
        let share = budget.unshared();
        let mut first = share.try_take(6).unwrap();
        assert_eq!(share.try_take(5).unwrap_err(), Full::Pool);
        assert_eq!(share.try_take(u64::MAX).unwrap_err(), Full::Pool);
        first.grow(4).unwrap();
        assert_eq!(first.grow(1), Err(Full::Pool));
        assert_eq!((first.bytes(), budget.held()), (10, 10));
        first.shrink_to(3);
        assert_eq!(budget.held(), 3);
        drop(first);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn one_tenant_alone_leaves_half_of_the_pool_to_the_others() {
        let budget = Budget::new(100);
        let greedy = budget.share(&tenant(0), 1);
        let mut held = Vec::new();
        while let Ok(permit) = greedy.try_take(1) {
            held.push(permit);
        }
        assert_eq!(held.len(), 50);
        assert_eq!(greedy.try_take(1).unwrap_err(), Full::Share);
        // The only request of another gets all that is free, in any steps.
        let other = budget.share(&tenant(1), 1);
        let mut all = other.try_take(20).unwrap();
        all.grow(30).unwrap();
        assert_eq!(budget.share(&tenant(2), 1).try_take(1).unwrap_err(), Full::Pool);
        drop((all, held));
        assert_eq!((budget.held(), greedy.held(), other.held()), (0, 0, 0));
    }

    #[test]
    fn a_heavier_tenant_holds_more() {
        let budget = Budget::new(100);
        let heavy = budget.share(&tenant(0), 4);
        let held: Vec<_> = std::iter::from_fn(|| heavy.try_take(1).ok()).collect();
        assert_eq!(held.len(), 80);
    }

    proptest! {
        #[test]
        fn whatever_others_hold_a_newcomer_finds_its_part(
            takes in prop::collection::vec((0usize..6, 1u64..200), 1..400),
        ) {
            let budget = Budget::new(10_000);
            let mut held = Vec::new();
            for (who, bytes) in takes {
                held.extend(budget.share(&tenant(who), 1).try_take(bytes));
            }
            // Six that take all they get leave a seventh of the pool, less one take each.
            let free = budget.bound() - budget.held();
            prop_assert!(10_000 / 7 <= free + 6 * 200, "only {} free", free);
            let newcomer = budget.share(&tenant(7), 1).try_take(free);
            prop_assert!(newcomer.is_ok());
            drop((newcomer, held));
            prop_assert_eq!(budget.held(), 0);
        }
    }
}
