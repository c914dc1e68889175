//! The hop into the log: a fair queue bounded in bytes, and what is measured of the thread behind it.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::{EncodedBatch, TenantId};
use tokio::sync::oneshot;

use super::{AppendError, Appended, WriterSettings, dedup::Key};
use crate::{
    books::Open,
    budget::Permit,
    fair::Fair,
    faults::{Bug, planted},
    log::FrameBody,
};

/// While a blocking sink holds as much of the log as there may be: when to ask again.
const BACKLOG_RETRY: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// One batch on its way into the log.
pub(super) struct Job {
    pub batch: EncodedBatch,
    pub frame: FrameBody,
    pub keys: Vec<Key>,
    pub entry: Open,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// Memory beyond the batch itself, which is its request's.
    pub extra: Option<Permit>,
}

impl Job {
    /// Bytes of memory it holds, near enough.
    pub fn bytes(&self) -> usize {
        let extra = self.extra.as_ref().map_or(0, Permit::bytes);
        self.batch.body.len() + usize::try_from(extra).unwrap_or(usize::MAX)
    }

    /// Settles the entry as shed and answers.
    pub fn refuse(self, error: AppendError) {
        self.entry.shed(error.reason());
        // The caller may have gone away: its events are accounted for all the same.
        let _ = self.reply.send(Err(error));
    }
}

#[derive(Default)]
struct State {
    jobs: Fair<TenantId, Job>,
    /// Bytes of the jobs that wait and of those being appended.
    held: usize,
    closed: bool,
}

/// How full a writer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Bytes it holds at most.
    pub bound_bytes: u64,
    /// Bytes it holds: waiting and being appended.
    pub held_bytes: u64,
    /// Bytes it can append a second, measured while it is busy; 0 before the first.
    pub drain_bytes_per_second: u64,
    /// The bound is never below this,
    pub floor_bytes: u64,
    /// and never above this.
    pub ceiling_bytes: u64,
}

pub(super) struct Queue {
    settings: WriterSettings,
    state: Mutex<State>,
    filled: Condvar,
    drain: AtomicU64,
    backlogged: AtomicBool,
    failed: AtomicBool,
}

/// What the writer's thread gets from the queue.
pub(super) enum Taken {
    Group(Vec<Job>),
    Idle,
    Closed,
}

impl Queue {
    pub fn new(settings: WriterSettings) -> Self {
        Self {
            settings,
            state: Mutex::default(),
            filled: Condvar::new(),
            drain: AtomicU64::new(0),
            backlogged: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch of `bytes` would be taken now, so that no work is done for one that would not.
    pub fn check(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        self.room(&self.state(), tenant, bytes)
    }

    /// Takes a job, or settles it as shed.
    pub fn push(&self, job: Job) -> Result<(), AppendError> {
        let bytes = job.bytes();
        let mut state = self.state();
        if let Err(error) = self.room(&state, &job.batch.tenant, bytes) {
            drop(state);
            job.entry.shed(error.reason());
            return Err(error);
        }
        state.held += bytes;
        let tenant = job.batch.tenant.clone();
        let weight = (self.settings.weight)(&tenant);
        state.jobs.push(&tenant, weight, bytes as u64, job);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    fn room(&self, state: &State, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(AppendError::Storage);
        }
        if state.closed {
            return Err(AppendError::Draining);
        }
        if self.backlogged.load(Ordering::Relaxed) {
            return Err(AppendError::Full { retry_after: BACKLOG_RETRY });
        }
        if planted(Bug::QueueByCount) {
            return Ok(());
        }
        // What is larger than the bound passes alone: it is in memory already.
        let bound = self.bound();
        if state.held > 0 && state.held.saturating_add(bytes) > bound {
            return Err(AppendError::Full { retry_after: self.retry_after(state.held) });
        }
        // As in the pool of memory: a tenant may have as much waiting as is left free.
        let own = usize::try_from(state.jobs.bytes_of(tenant)).unwrap_or(usize::MAX);
        let weight = usize::try_from((self.settings.weight)(tenant)).unwrap_or(1);
        let free = bound.saturating_sub(state.held).saturating_mul(weight);
        if own > 0 && own.saturating_add(bytes) > free {
            return Err(AppendError::Lane { retry_after: self.retry_after(own) });
        }
        Ok(())
    }

    /// What is drained within the delay budget (Little's law), within the configured bound; at least
    /// two groups, so that one fills while the other is synced.
    fn bound(&self) -> usize {
        let drain = self.drain.load(Ordering::Relaxed) as f64;
        if drain == 0.0 {
            return self.settings.queue_bytes;
        }
        let within = (drain * self.settings.delay.as_secs_f64()) as usize;
        within.clamp(self.floor(), self.settings.queue_bytes)
    }

    /// Two groups: one fills while the other is synced.
    fn floor(&self) -> usize {
        self.settings.queue_bytes.min(2 * self.settings.group_bytes)
    }

    fn retry_after(&self, held: usize) -> Duration {
        let drain = self.drain.load(Ordering::Relaxed);
        if drain == 0 {
            return Duration::from_secs(1);
        }
        Duration::from_secs_f64(held as f64 / drain as f64).clamp(RETRY_MIN, RETRY_MAX)
    }

    /// Waits for jobs until `deadline`, and takes as many as make one group.
    pub fn take(&self, deadline: Instant) -> Taken {
        let mut state = self.state();
        while state.jobs.is_empty() {
            if state.closed {
                return Taken::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Idle;
            }
            let woken = self.filled.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(job) = state.jobs.pop_if(|job| {
            bytes == 0 || bytes + job.frame.stored_bytes() <= self.settings.group_bytes
        }) {
            bytes += job.frame.stored_bytes();
            group.push(job);
        }
        Taken::Group(group)
    }

    /// Gives back the room of jobs that are done.
    pub fn release(&self, held: usize) {
        let mut state = self.state();
        state.held = state.held.saturating_sub(held);
    }

    /// Takes a measurement of `bytes` appended in `busy` into the moving average.
    pub fn drained(&self, bytes: usize, busy: Duration) {
        let now = bytes as f64 / busy.as_secs_f64().max(1e-6);
        let before = self.drain.load(Ordering::Relaxed) as f64;
        let average = if before == 0.0 { now } else { before + 0.2 * (now - before) };
        self.drain.store(average.max(1.0) as u64, Ordering::Relaxed);
    }

    pub fn set_backlogged(&self, backlogged: bool) {
        self.backlogged.store(backlogged, Ordering::Relaxed);
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Takes nothing more; what waits is still appended.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_all();
    }

    /// Takes nothing more, for ever, and refuses what waits.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        let mut jobs = {
            let mut state = self.state();
            state.held = 0;
            std::mem::take(&mut state.jobs)
        };
        jobs.drain().for_each(|job| job.refuse(AppendError::Storage));
    }

    pub fn stats(&self) -> WriterStats {
        WriterStats {
            bound_bytes: self.bound() as u64,
            held_bytes: self.state().held as u64,
            drain_bytes_per_second: self.drain.load(Ordering::Relaxed),
            floor_bytes: self.floor() as u64,
            ceiling_bytes: self.settings.queue_bytes as u64,
        }
    }
}
