//! How much may be on its way to Kafka: bytes, of all and of each tenant, by what Kafka takes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::TenantId;

use crate::writer::{AppendError, WriterStats};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// While nothing was measured yet: when to come again.
const RETRY_UNKNOWN: Duration = Duration::from_secs(1);
/// The bound is never below this, whatever was measured: enough for Kafka's batches to fill.
const FLOOR_BYTES: u64 = 16 << 20;

/// A tenant's part against others', at least 1.
pub(super) type Weight = Arc<dyn Fn(&TenantId) -> u64 + Send + Sync>;

/// The same rules as of the embedded log's queue.
pub(super) struct Room {
    bytes: u64,
    delay: Duration,
    weight: Weight,
    held: Mutex<Held>,
    drain: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicBool,
}

#[derive(Default)]
struct Held {
    all: u64,
    tenants: HashMap<TenantId, u64>,
    closed: bool,
}

impl Room {
    pub fn new(bytes: u64, delay: Duration, weight: Weight) -> Self {
        Self {
            bytes,
            delay,
            weight,
            held: Mutex::default(),
            drain: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `bytes` of the tenant's would be taken now.
    pub fn check(&self, tenant: &TenantId, bytes: u64) -> Result<(), AppendError> {
        self.fits(&self.held(), tenant, bytes)
    }

    fn fits(&self, held: &Held, tenant: &TenantId, bytes: u64) -> Result<(), AppendError> {
        if held.closed {
            return Err(AppendError::Draining);
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(AppendError::Storage);
        }
        // What is larger than the bound passes alone: it is in memory already.
        let bound = self.bound();
        if 0 < held.all && bound < held.all.saturating_add(bytes) {
            return Err(AppendError::Full { retry_after: self.retry_after(held.all) });
        }
        // As in the pool of memory: a tenant may have as much under way as is left free.
        let own = held.tenants.get(tenant).copied().unwrap_or(0);
        let free = bound.saturating_sub(held.all).saturating_mul((self.weight)(tenant));
        if 0 < own && free < own.saturating_add(bytes) {
            return Err(AppendError::Lane { retry_after: self.retry_after(own) });
        }
        Ok(())
    }

    pub fn take(&self, tenant: &TenantId, bytes: u64) -> Result<(), AppendError> {
        let mut held = self.held();
        self.fits(&held, tenant, bytes)?;
        held.all += bytes;
        *held.tenants.entry(tenant.clone()).or_default() += bytes;
        Ok(())
    }

    pub fn give_back(&self, tenant: &TenantId, bytes: u64, delivered: bool) {
        let mut held = self.held();
        held.all = held.all.saturating_sub(bytes);
        if let Some(own) = held.tenants.get_mut(tenant) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                held.tenants.remove(tenant);
            }
        }
        drop(held);
        if delivered {
            self.delivered.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// What is drained within the delay budget (Little's law), within the configured bound.
    fn bound(&self) -> u64 {
        let drain = self.drain.load(Ordering::Relaxed) as f64;
        if drain == 0.0 {
            return self.bytes;
        }
        let within = (drain * self.delay.as_secs_f64()) as u64;
        within.clamp(self.floor(), self.bytes)
    }

    fn floor(&self) -> u64 {
        self.bytes.min(FLOOR_BYTES)
    }

    fn retry_after(&self, held: u64) -> Duration {
        let drain = self.drain.load(Ordering::Relaxed);
        if drain == 0 {
            return RETRY_UNKNOWN;
        }
        Duration::from_secs_f64(held as f64 / drain as f64).clamp(RETRY_MIN, RETRY_MAX)
    }

    pub fn set_failed(&self, failed: bool) {
        self.failed.store(failed, Ordering::Release);
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Takes nothing more.
    pub fn close(&self) {
        self.held().closed = true;
    }

    pub fn is_empty(&self) -> bool {
        self.held().all == 0
    }

    pub fn stats(&self) -> WriterStats {
        WriterStats {
            bound_bytes: self.bound(),
            held_bytes: self.held().all,
            drain_bytes_per_second: self.drain.load(Ordering::Relaxed),
            floor_bytes: self.floor(),
            ceiling_bytes: self.bytes,
        }
    }
}

/// Measures what is drained, while something waits the whole time.
pub(super) struct Meter {
    since: Instant,
    busy: bool,
}

impl Meter {
    pub fn new() -> Self {
        Self { since: Instant::now(), busy: false }
    }

    pub fn look(&mut self, room: &Room) {
        self.look_after(room, self.since.elapsed());
    }

    fn look_after(&mut self, room: &Room, took: Duration) {
        let delivered = room.delivered.swap(0, Ordering::Relaxed);
        let (was_busy, busy) = (self.busy, !room.is_empty());
        self.busy = busy;
        if was_busy && busy && delivered == 0 {
            // Kafka acknowledges in bursts, where it is slow or throttles: the time between them counts.
            return;
        }
        self.since = Instant::now();
        if !was_busy || !busy {
            return;
        }
        let took = took.as_secs_f64().max(1e-3);
        let now = delivered as f64 / took;
        let before = room.drain.load(Ordering::Relaxed) as f64;
        // A fifth for each tenth of a second.
        let weight = 1.0 - 0.8_f64.powf(took / 0.1);
        let average = if before == 0.0 { now } else { before + weight * (now - before) };
        room.drain.store(average.max(1.0) as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn room(bytes: u64) -> Room {
        Room::new(bytes, Duration::from_secs(2), Arc::new(|_| 1))
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_full_and_fits_again_once_given_back() {
        let room = room(1_000);
        room.take(&tenant("a"), 400).unwrap();
        room.take(&tenant("b"), 400).unwrap();
        let full = room.take(&tenant("c"), 400).unwrap_err();
        assert!(matches!(full, AppendError::Full { .. }), "{full:?}");
        room.give_back(&tenant("b"), 400, true);
        room.take(&tenant("c"), 400).unwrap();
    }

    #[test]
    fn one_tenant_has_as_much_as_is_left_free_and_is_told_that_it_is_its_own() {
        let room = room(1_000);
        room.take(&tenant("a"), 500).unwrap();
        let own = room.take(&tenant("a"), 100).unwrap_err();
        assert!(matches!(own, AppendError::Lane { .. }), "{own:?}");
        room.take(&tenant("b"), 300).unwrap();
    }

    #[test]
    fn what_is_larger_than_the_bound_passes_alone() {
        let room = room(1_000);
        room.take(&tenant("a"), 5_000).unwrap();
        assert!(room.check(&tenant("b"), 1).is_err());
        room.give_back(&tenant("a"), 5_000, false);
        assert!(room.is_empty());
    }

    #[test]
    fn what_is_acknowledged_in_bursts_counts_over_the_time_between_them() {
        let (room, mut meter) = (room(1 << 30), Meter::new());
        room.take(&tenant("a"), 1 << 29).unwrap();
        meter.look_after(&room, Duration::from_millis(100));
        let mut burst = |silence| {
            meter.look_after(&room, silence);
            room.give_back(&tenant("a"), 4_000_000, true);
            meter.look_after(&room, silence + Duration::from_millis(100));
            room.stats().drain_bytes_per_second
        };
        assert_eq!(burst(Duration::ZERO), 40_000_000);
        let slow = burst(Duration::from_millis(1_900));
        assert!((1_900_000..2_600_000).contains(&slow), "{slow}");
    }

    #[test]
    fn a_closed_room_takes_nothing() {
        let room = room(1_000);
        room.close();
        assert_eq!(room.take(&tenant("a"), 1), Err(AppendError::Draining));
    }
}
