//! Quotas: one bucket for events and one for bytes per tenant (GCRA, on the monotonic clock).

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_event::TenantId;

use crate::{
    faults::{self, Bug, planted},
    shed::ShedReason,
    tenants::Quota,
};

const NANOS: u128 = 1_000_000_000;

/// How much a bucket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    per_second: u64,
    burst: u64,
}

/// The state of one bucket: when it is full again, in nanoseconds since the admission was made.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: u128,
}

impl Rate {
    fn new(per_second: Option<u64>, burst: Option<u64>) -> Option<Self> {
        let per_second = per_second.filter(|n| *n > 0)?;
        Some(Self { per_second, burst: burst.filter(|n| *n > 0).unwrap_or(per_second) })
    }

    /// How long it takes to earn `n`.
    fn nanos(self, n: u64) -> u128 {
        u128::from(n) * NANOS / u128::from(self.per_second)
    }

    /// The seconds in which an empty bucket fills, at least 1.
    fn window(self) -> u128 {
        self.nanos(self.burst).div_ceil(NANOS).max(1)
    }
}

impl Bucket {
    /// Takes `n`, or says how long to wait. What is larger than the burst passes when the bucket is
    /// full, and leaves a debt.
    fn take(&mut self, rate: Rate, n: u64, now: u128) -> Result<(), Duration> {
        let full_at = self.full_at.max(now);
        let latest = now + rate.nanos(rate.burst);
        let after = full_at + rate.nanos(n);
        if after <= latest || full_at == now {
            self.full_at = after;
            return Ok(());
        }
        let wait = if n > rate.burst { full_at - now } else { after - latest };
        Err(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Takes `n`, into debt if need be.
    fn charge(&mut self, rate: Rate, n: u64, now: u128) {
        self.full_at = self.full_at.max(now) + rate.nanos(n);
    }

    /// What is left, in whole units.
    fn left(self, rate: Rate, now: u128) -> u64 {
        let owed = self.full_at.saturating_sub(now) * u128::from(rate.per_second);
        let owed = u64::try_from(owed.div_ceil(NANOS)).unwrap_or(u64::MAX);
        rate.burst.saturating_sub(owed)
    }
}

#[derive(Debug, Default)]
struct Buckets {
    events: Bucket,
    bytes: Bucket,
}

/// The buckets of every tenant that has a quota.
#[derive(Debug)]
pub(super) struct Admission {
    started: Instant,
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Buckets>>>>,
}

/// One tenant's quota, for one request.
#[derive(Debug)]
pub(super) struct Account {
    started: Instant,
    events: Option<Rate>,
    bytes: Option<Rate>,
    buckets: Arc<Mutex<Buckets>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), tenants: Mutex::default() }
    }

    /// The tenant's account; `None` where it has no quota.
    pub(super) fn account(&self, tenant: &TenantId, quota: &Quota) -> Option<Account> {
        let events = Rate::new(quota.events_per_second, quota.events_burst);
        let bytes = Rate::new(quota.bytes_per_second, quota.bytes_burst);
        if events.is_none() && bytes.is_none() {
            return None;
        }
        let mut tenants = lock(&self.tenants);
        let buckets = match tenants.get(tenant) {
            Some(buckets) => Arc::clone(buckets),
            None => Arc::clone(tenants.entry(tenant.clone()).or_default()),
        };
        Some(Account { started: self.started, events, bytes, buckets })
    }
}

impl Account {
    fn now(&self) -> u128 {
        if planted(Bug::QuotaByWallClock) {
            return u128::from(faults::wall_clock().unsigned_abs()) * 1_000;
        }
        self.started.elapsed().as_nanos()
    }

    /// Charges a body of `n` bytes before it is read; `None`: its length is not known yet, and is
    /// charged by [`Account::charge_bytes`] once it is.
    pub(super) fn take_bytes(&self, n: Option<u64>) -> Result<(), (ShedReason, Duration)> {
        let Some(rate) = self.bytes else { return Ok(()) };
        // Not known: at least one byte must be free, so that nobody runs into debt for ever.
        let asked = n.unwrap_or(1);
        let taken = lock(&self.buckets).bytes.take(rate, asked, self.now());
        taken.map_err(|after| (ShedReason::QuotaBytes, after))
    }

    /// Charges a body whose length was not declared, into debt if need be.
    pub(super) fn charge_bytes(&self, n: u64) {
        if let Some(rate) = self.bytes {
            lock(&self.buckets).bytes.charge(rate, n, self.now());
        }
    }

    /// Charges `n` events, all or none.
    pub(super) fn take_events(&self, n: u64) -> Result<(), (ShedReason, Duration)> {
        let Some(rate) = self.events else { return Ok(()) };
        let taken = lock(&self.buckets).events.take(rate, n, self.now());
        taken.map_err(|after| (ShedReason::QuotaEvents, after))
    }

    /// The `RateLimit-Policy` and `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers-10).
    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        let now = self.now();
        let (events, bytes) = {
            let buckets = lock(&self.buckets);
            (buckets.events, buckets.bytes)
        };
        let (mut policy, mut limit) = (String::new(), String::new());
        let rows = [
            ("events", "events", self.events, events),
            ("bytes", "content-bytes", self.bytes, bytes),
        ];
        for (name, unit, rate, bucket) in rows {
            let Some(rate) = rate else { continue };
            let comma = if policy.is_empty() { "" } else { ", " };
            let (burst, window) = (rate.burst, rate.window());
            let left = bucket.left(rate, now);
            let full_in = bucket.full_at.saturating_sub(now).div_ceil(NANOS);
            // Writing to a String cannot fail.
            let _ = write!(policy, "{comma}\"{name}\";q={burst};qu=\"{unit}\";w={window}");
            let _ = write!(limit, "{comma}\"{name}\";r={left};t={full_in}");
        }
        let fields = [("ratelimit-policy", policy), ("ratelimit", limit)];
        for (name, text) in fields {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };
    const SECOND: u128 = NANOS;

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let mut bucket = Bucket::default();
        bucket.take(RATE, 15, 0).unwrap();
        bucket.take(RATE, 5, 0).unwrap();
        assert_eq!(bucket.take(RATE, 10, 0), Err(Duration::from_secs(1)));
        bucket.take(RATE, 10, SECOND).unwrap();
        assert_eq!(bucket.left(RATE, SECOND), 0);
        assert_eq!(bucket.left(RATE, 2 * SECOND), 10);
    }

    #[test]
    fn more_than_the_burst_passes_when_full_and_leaves_a_debt() {
        let mut bucket = Bucket::default();
        bucket.take(RATE, 100, 0).unwrap();
        assert_eq!(bucket.left(RATE, 0), 0);
        // 100 were taken: at 10 a second the debt is paid after 8 s, and the bucket full after 10.
        assert_eq!(bucket.take(RATE, 1, 0), Err(Duration::from_millis(8_100)));
        assert_eq!(bucket.take(RATE, 100, 9 * SECOND), Err(Duration::from_secs(1)));
        bucket.take(RATE, 100, 10 * SECOND).unwrap();
    }

    #[test]
    fn a_refused_take_costs_nothing() {
        let mut bucket = Bucket::default();
        bucket.take(RATE, 20, 0).unwrap();
        for _ in 0..1000 {
            bucket.take(RATE, 20, 0).unwrap_err();
        }
        bucket.take(RATE, 20, 2 * SECOND).unwrap();
    }

    proptest! {
        #[test]
        fn what_is_within_the_burst_never_gets_past_rate_and_burst(
            takes in prop::collection::vec((0u64..2_000_000_000, 0u64..=20), 1..200),
        ) {
            let mut bucket = Bucket::default();
            let (mut now, mut taken) = (0u128, 0u64);
            for (pause, n) in takes {
                now += u128::from(pause);
                if bucket.take(RATE, n, now).is_ok() {
                    taken += n;
                }
                let earned = now * u128::from(RATE.per_second) / NANOS;
                prop_assert!(u128::from(taken) <= earned + u128::from(RATE.burst) + 1);
            }
        }

        #[test]
        fn who_waits_as_told_is_served(first in 1u64..50, second in 1u64..50) {
            let mut bucket = Bucket::default();
            bucket.take(RATE, first, 0).unwrap();
            if let Err(wait) = bucket.take(RATE, second, 0) {
                bucket.take(RATE, second, wait.as_nanos()).unwrap();
            }
        }
    }
}
