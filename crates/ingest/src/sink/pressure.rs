//! How far a sink may fall behind, what is shed for its sake, and when to come again.
//!
//! The bound of a sink that blocks is what it drains in `budget.sink_delay`, at least
//! [`BACKLOG_FLOOR`], at most `log.backlog_bytes`. What it drains is measured while it writes: a sink
//! that gets slow has a tighter bound before its queue is old. Time in which it takes nothing does
//! not count: an outage is what the log is for, and ends with the whole backlog drained at the speed
//! measured before.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::proto::MetricFamily;
use tidegate_event::{ReceivedAt, TenantId};
use tokio::sync::watch;

use super::{
    Lane, Policy, Sink, SinkConfig, Sinks,
    desk::Shared,
    freshness::{Families, Freshness, Met, Named, Waiting},
    quarantine::Quarantine,
    status::{HeldLane, PartitionStatus, SinkState, SinkStatus},
    upkeep::Upkeep,
};
use crate::{
    config::Size,
    metrics,
    shed::{Pressure, PressureTold, ShedReason},
};

/// A sink may always be behind by this much (or by `log.backlog_bytes` where that is less), however
/// slow it is: small against any disk, and minutes of an ordinary load.
pub const BACKLOG_FLOOR: u64 = 1 << 30;
/// A full sink takes events again once its backlog is down to so many tenths of its bound; from those
/// who waited as told as soon as there is any room, or others would have all of it before them.
const REOPEN_TENTHS: u64 = 9;
const PRESSURE_AGE: Duration = Duration::from_millis(100);
const RETRY_LEAST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// When to come again at the least where a sink takes nothing at all.
const RETRY_OUTAGE: Duration = Duration::from_secs(5);

/// One sink.
pub(super) struct Running {
    pub config: SinkConfig,
    pub lane_bytes: u64,
    pub bound: Bound,
    /// What is opened of it.
    pub sink: Arc<dyn Sink>,
    pub quarantine: Arc<Quarantine>,
    pub freshness: Arc<Freshness>,
    /// Of the log's partitions those whose sinks run here.
    pub partitions: Arc<Mutex<Vec<Arc<Shared>>>>,
    /// One at a time.
    pub reconciling: Mutex<()>,
    /// True while nothing is done beside writing.
    pub rests: watch::Sender<bool>,
}

/// The bound of a sink's backlog.
#[derive(Debug)]
pub(super) struct Bound {
    ceiling: u64,
    delay: Duration,
    full: AtomicBool,
}

impl Bound {
    pub fn new(ceiling: u64, delay: Duration) -> Self {
        Self { ceiling, delay, full: AtomicBool::new(false) }
    }

    fn floor(&self) -> u64 {
        self.ceiling.min(BACKLOG_FLOOR)
    }

    /// Bytes, for a sink that drains so many a second; 0: nobody knows yet.
    fn bytes(&self, drain: u64) -> u64 {
        if drain == 0 {
            return self.ceiling;
        }
        let bytes = u128::from(drain) * self.delay.as_millis() / 1_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(self.floor(), self.ceiling)
    }

    /// True from the bound on, until the backlog is down to where it opens again.
    fn is_full(&self, backlog: u64, bound: u64) -> bool {
        let from = if self.full.load(Ordering::Relaxed) { reopens_at(bound) } else { bound };
        let full = from <= backlog;
        self.full.store(full, Ordering::Relaxed);
        full
    }
}

fn reopens_at(bound: u64) -> u64 {
    (bound / 10 * REOPEN_TENTHS + bound % 10 * REOPEN_TENTHS / 10).max(1)
}

/// How long `bytes` take, told to a client.
fn retry_after(bytes: u64, drain: u64) -> Duration {
    Duration::from_secs(bytes.div_ceil(drain.max(1))).clamp(RETRY_LEAST, RETRY_MOST)
}

/// What sheds, asked again at most every [`PRESSURE_AGE`].
#[derive(Default)]
pub(super) struct PressureCache {
    at: Option<Instant>,
    log_full: Option<Full>,
    lanes: HashMap<TenantId, Duration>,
}

impl PressureCache {
    /// One more sink that is full: the worst of them counts.
    fn add(&mut self, full: Full) {
        let known = self.log_full.get_or_insert_with(|| full.clone());
        known.retry = known.retry.max(full.retry);
        known.to_the_brim |= full.to_the_brim;
    }
}

/// Why everybody is refused for a sink's sake.
#[derive(Clone, Debug)]
struct Full {
    why: String,
    retry: Duration,
    /// True where there is no room even for those who waited.
    to_the_brim: bool,
}

/// What a sink holds back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Behind {
    /// Behind its cursors, and of lanes held back: what it has to write.
    backlog: u64,
    /// Log kept for the sake of held lanes alone, most of it written.
    pinned: u64,
}

/// What one tenant's held lanes come to.
#[derive(Default)]
struct TenantLanes {
    bytes: u64,
    drain: u64,
    retry: Duration,
}

impl Running {
    /// The partitions whose sinks run here, in order.
    pub fn partitions(&self) -> Vec<Arc<Shared>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn behind(&self) -> Behind {
        let mut behind = Behind::default();
        for shared in &self.partitions() {
            let (cursor, lowest, pending) = {
                let state = &shared.board().state;
                let pending: u64 = state.held.iter().map(|held| held.pending_bytes).sum();
                (state.cursor, state.lowest(), pending)
            };
            let own = shared.log.bytes_since(cursor);
            behind.backlog += own + pending;
            behind.pinned += shared.log.bytes_since(lowest).saturating_sub(own);
        }
        behind
    }

    /// Bytes of log a second while it writes; 0: not measured yet.
    fn drain(&self) -> u64 {
        let partitions = self.partitions();
        let rates = partitions.iter().map(|shared| shared.board().drain.rate());
        let known: Vec<u64> = rates.filter(|rate| 0 < *rate).collect();
        let sum: u64 = known.iter().sum();
        // A partition that never was behind is as fast as the others, as far as anybody knows.
        sum.saturating_mul(partitions.len() as u64).checked_div(known.len() as u64).unwrap_or(0)
    }

    fn bound_bytes(&self, drain: u64) -> u64 {
        match self.config.policy {
            Policy::Block => self.bound.bytes(drain),
            Policy::Expire => self.bound.ceiling,
        }
    }

    /// Why everybody is refused for its sake.
    fn full(&self) -> Option<Full> {
        if self.config.policy != Policy::Block {
            return None;
        }
        let (behind, drain, name) = (self.behind(), self.drain(), &self.config.name);
        let (bound, ceiling) = (self.bound_bytes(drain), self.bound.ceiling);
        if self.bound.is_full(behind.backlog, bound) {
            let why = format!(
                "log_full: sink {name} is behind by {} of the {} it may be",
                Size(behind.backlog),
                Size(bound)
            );
            let excess = behind.backlog.saturating_sub(reopens_at(bound));
            let outage = self.outage();
            let retry = outage.unwrap_or_else(|| self.comes_again(excess, drain));
            return Some(Full { why, retry, to_the_brim: bound <= behind.backlog });
        }
        (ceiling <= behind.pinned).then(|| {
            let why = format!(
                "log_full: held lanes of sink {name} keep {} of the log, of {} that they may",
                Size(behind.pinned),
                Size(ceiling)
            );
            Full { why, retry: RETRY_OUTAGE, to_the_brim: true }
        })
    }

    fn comes_again(&self, excess: u64, drain: u64) -> Duration {
        if drain == 0 { RETRY_OUTAGE } else { retry_after(excess, drain) }
    }

    /// When a sink that takes nothing is tried again.
    fn outage(&self) -> Option<Duration> {
        let retry = |shared: &Arc<Shared>| match shared.board().phase {
            SinkState::Waiting { retry_in, .. } => Some(retry_in),
            SinkState::Stopped { .. } => Some(RETRY_MOST),
            SinkState::Running | SinkState::Drained => None,
        };
        let longest = self.partitions().iter().filter_map(retry).max()?;
        Some(longest.clamp(RETRY_OUTAGE, RETRY_MOST))
    }

    /// Adds what this sink sheds: it blocks, and its backlog or a tenant's lanes are over their
    /// bound.
    fn press(&self, into: &mut PressureCache) {
        if self.config.policy != Policy::Block {
            return;
        }
        if let Some(full) = self.full() {
            into.add(full);
        }
        let mut tenants = BTreeMap::<TenantId, TenantLanes>::new();
        for shared in &self.partitions() {
            let board = shared.board();
            for held in &board.state.held {
                let lanes = tenants.entry(held.lane.tenant.clone()).or_default();
                lanes.bytes += held.pending_bytes;
                lanes.drain += board.notes.get(&held.lane).map_or(0, |note| note.drain.rate());
                lanes.retry = lanes.retry.max(board.retry_in(&held.lane));
            }
        }
        for (tenant, lanes) in tenants.into_iter().filter(|(_, l)| self.lane_bytes <= l.bytes) {
            let excess = lanes.bytes - self.lane_bytes;
            let drained =
                if lanes.drain == 0 { RETRY_LEAST } else { retry_after(excess, lanes.drain) };
            let retry = lanes.retry.max(drained).clamp(RETRY_LEAST, RETRY_MOST);
            let known = into.lanes.entry(tenant).or_default();
            *known = (*known).max(retry);
        }
    }

    /// What it has yet to write, as old as it is known to be.
    fn waiting(&self) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        for shared in &self.partitions() {
            let board = shared.board();
            let held = board.state.held.iter().filter(|held| 0 < held.pending_rows);
            waiting.extend(held.map(|held| Waiting {
                lane: Some(held.lane.clone()),
                events: held.pending_rows,
                oldest: held.oldest,
            }));
            let events = shared.log.given().since(board.state.cursor);
            let main = board.oldest.filter(|_| 0 < events);
            waiting.extend(main.map(|at| Waiting { lane: None, events, oldest: at.0 }));
        }
        waiting
    }

    fn status(&self, now: ReceivedAt) -> SinkStatus {
        let (behind, drain, partitions) = (self.behind(), self.drain(), self.partitions());
        let mut status = SinkStatus {
            name: self.config.name.clone(),
            kind: self.config.kind.clone(),
            policy: self.config.policy,
            partitions: Vec::new(),
            lag_events: 0,
            backlog_bytes: behind.backlog,
            bound_bytes: self.bound_bytes(drain),
            floor_bytes: self.bound.floor(),
            ceiling_bytes: self.bound.ceiling,
            pinned_bytes: behind.pinned,
            drain_bytes_per_second: drain,
            delay_seconds: (0 < drain).then(|| behind.backlog as f64 / drain as f64),
            memory_bytes: partitions.iter().map(|shared| shared.memory.share()).sum(),
            held_bytes: partitions.iter().map(|shared| shared.memory.held()).sum(),
            freshness_seconds: 0.0,
            paused: partitions.iter().find_map(|shared| shared.board().paused.clone()),
            freshness: self.freshness.status(now, &self.waiting()),
            held: Vec::new(),
            joining: self.sink.upkeep().and_then(Upkeep::joining),
        };
        let mut oldest: Option<i64> = None;
        for shared in &partitions {
            let board = shared.board();
            let (state, latest) = (&board.state, shared.log.given());
            let pending: u64 = state.held.iter().map(|held| held.pending_rows).sum();
            status.lag_events += latest.since(state.cursor) + pending;
            let held = state.held.iter().filter(|held| 0 < held.pending_rows);
            let ages = held.map(|held| held.oldest).chain(board.oldest.map(|at| at.0));
            oldest = ages.chain(oldest).min();
            status.held.extend(state.held.iter().map(|held| HeldLane {
                partition: state.partition,
                lane: held.lane.clone(),
                cursor: held.cursor,
                pending_events: held.pending_rows,
                pending_bytes: held.pending_bytes,
                error: board.notes.get(&held.lane).map_or_else(String::new, |n| n.error.clone()),
                retry_in: board.retry_in(&held.lane),
            }));
            status.partitions.push(PartitionStatus {
                partition: state.partition,
                began: state.began.clone(),
                cursor: state.cursor,
                lowest: state.lowest(),
                latest,
                state: board.phase.clone(),
            });
        }
        let age = oldest.map_or(0, |oldest| now.0.saturating_sub(oldest).max(0));
        status.freshness_seconds = age as f64 / 1e6;
        status
    }
}

fn set_gauges(status: &SinkStatus) {
    let (name, signed) = (&status.name, |n| i64::try_from(n).unwrap_or(i64::MAX));
    metrics::sink_lag_events(name, signed(status.lag_events));
    metrics::sink_backlog_bytes(name, signed(status.backlog_bytes));
    metrics::sink_backlog_bound_bytes(name, signed(status.bound_bytes));
    metrics::sink_pinned_bytes(name, signed(status.pinned_bytes));
    metrics::sink_drain_bytes(name, signed(status.drain_bytes_per_second));
    metrics::sink_memory_bytes(name, signed(status.memory_bytes));
    metrics::sink_held_bytes(name, signed(status.held_bytes));
    let freshness = &status.freshness;
    let micros = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0)).as_micros();
    let millis = |seconds: f64| i64::try_from(micros(seconds) / 1_000).unwrap_or(i64::MAX);
    metrics::sink_oldest_waiting_milliseconds(name, millis(status.freshness_seconds));
    if let (Some(state), Some(within)) = (freshness.state, freshness.within_seconds) {
        metrics::sink_objective_met(name, i64::from(state != Met::Missed));
        metrics::sink_objective_milliseconds(name, millis(within));
        metrics::sink_objective_measured(name, millis(freshness.measured_seconds.unwrap_or(0.0)));
    }
    if let Some(joining) = &status.joining {
        metrics::lake_small_files(name, signed(joining.waiting_files));
    }
}

impl Sinks {
    /// What sheds, asked again if it is old.
    fn cached(&self) -> MutexGuard<'_, PressureCache> {
        let mut cache = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.at.is_none_or(|at| PRESSURE_AGE <= at.elapsed()) {
            *cache = PressureCache { at: Some(Instant::now()), ..PressureCache::default() };
            self.sinks.iter().for_each(|sink| sink.press(&mut cache));
        }
        cache
    }

    /// How every sink does.
    #[must_use]
    pub fn status(&self) -> Vec<SinkStatus> {
        let now = self.clock.now();
        self.sinks.iter().map(|sink| sink.status(now)).collect()
    }

    /// Sets every sink's gauges.
    pub fn publish(&self) {
        self.status().iter().for_each(set_gauges);
    }

    /// How old events were when they became visible, as metrics; `named`: what may be said of a lane.
    pub fn families(&self, named: &dyn Fn(&Lane) -> Named) -> Vec<MetricFamily> {
        let mut families = Families::default();
        for sink in &self.sinks {
            sink.freshness.export(&sink.config.name, named, &mut families);
        }
        families.finish()
    }

    /// Why events are refused for their sake, one sentence each.
    #[must_use]
    pub fn blocking(&self) -> Vec<String> {
        self.sinks.iter().filter_map(|sink| sink.full().map(|full| full.why)).collect()
    }
}

impl Pressure for Sinks {
    fn ready(&self) -> bool {
        self.blocking().is_empty()
    }

    fn shed(&self, tenant: &TenantId, waited: bool) -> Option<(ShedReason, Duration)> {
        let cache = self.cached();
        if let Some(retry) = cache.lanes.get(tenant) {
            return Some((ShedReason::TenantLane, *retry));
        }
        let full = cache.log_full.as_ref().filter(|full| full.to_the_brim || !waited);
        full.map(|full| (ShedReason::LogFull, full.retry))
    }

    fn told(&self) -> PressureTold {
        let cache = self.cached();
        let lanes = cache.lanes.iter().map(|(tenant, retry)| (tenant.clone(), *retry));
        let all = cache.log_full.as_ref().map(|full| (full.retry, full.to_the_brim));
        PressureTold { all, lanes: lanes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_bound_is_what_drains_in_the_delay_within_floor_and_ceiling() {
        let bound = Bound::new(20 * GIB, HOUR);
        assert_eq!(bound.bytes(0), 20 * GIB, "nobody knows yet");
        assert_eq!(bound.bytes(MIB), 3_600 * MIB);
        assert_eq!(bound.bytes(1_000), GIB, "however slow it is");
        assert_eq!(bound.bytes(100 * MIB), 20 * GIB, "however fast it is");
        assert_eq!(bound.bytes(u64::MAX), 20 * GIB);
        let small = Bound::new(4 * MIB, HOUR);
        assert_eq!((small.bytes(1), small.bytes(u64::MAX)), (4 * MIB, 4 * MIB));
    }

    #[test]
    fn a_full_sink_opens_well_below_its_bound() {
        let bound = Bound::new(GIB, HOUR);
        let full: Vec<bool> =
            [99, 100, 99, 91, 90, 89, 99, 100].map(|backlog| bound.is_full(backlog, 100)).into();
        assert_eq!(full, [false, true, true, true, true, false, false, true]);
        assert!(bound.is_full(1, 1) && !bound.is_full(0, 1));
    }

    #[test]
    fn a_client_is_told_the_time_the_excess_takes() {
        assert_eq!(retry_after(100 * MIB, 10 * MIB), Duration::from_secs(10));
        assert_eq!(retry_after(1, 10 * MIB), RETRY_LEAST);
        assert_eq!(retry_after(u64::MAX, 1), RETRY_MOST);
    }
}
