//! Owns the append: group commit, deduplication by id, the partition's ledger.
//!
//! One thread per partition. A request's task prepares its frame and queues it; the thread takes all
//! that waits as one group, drops known ids, appends, syncs once, settles the books and answers.

mod commit;
mod dedup;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ledger;
mod queue;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tidegate_event::{EncodedBatch, OffsetRange, Partition, TenantId};
use tokio::sync::oneshot;

use crate::{
    books::{Books, Open},
    budget::{Budget, Full, Permit},
    clock::Clock,
    hop::Errand,
    log::{AppendFault, Codec, FrameBody, Log, LogHandle, ReadError},
    shed::ShedReason,
    sink::source::LogSource,
};
use dedup::{Dedup, Key, Keyring};
use ledger::{Found, Ledger};
use queue::{Job, Queue};

#[cfg(feature = "kafka")]
pub(crate) use dedup::KnownIds;
pub use dedup::{DedupError, DedupStatus, DedupWindow};
pub use ledger::{LedgerCopy, Totals};
pub use queue::WriterStats;
pub use settings::WriterSettings;

/// What became of a batch that was appended: durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where.
    pub partition: Partition,
    /// Its offsets; `None` where every event was known already.
    pub range: Option<OffsetRange>,
    /// The places in the request (`index`) of events known already by their id, in order.
    pub deduplicated: Vec<u32>,
}

/// Why a batch was not appended, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue is full: nothing was written. 503 `log_full`.
    #[error("the log's queue is full")]
    Full {
        /// When there should be room again, from the measured drain rate.
        retry_after: Duration,
    },
    /// The tenant has as much waiting as is left for others: nothing was written. 429 `tenant_lane`.
    #[error("the tenant's part of the log's queue is full")]
    Lane {
        /// When there should be room again, from the measured drain rate.
        retry_after: Duration,
    },
    /// A role between has no memory for it: nothing was written. 503 `edge_full`.
    #[error("there is no memory for the batch")]
    Memory {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// No replica that has a log takes it: nothing was written. 503 `unreachable`.
    #[error("no writer can be reached")]
    Unreachable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The disk is full or failing. 503 `storage`.
    #[error("the log's disk is full or failing")]
    Storage,
    /// Shutting down: nothing was written. 503 `draining`.
    #[error("the log is closing")]
    Draining,
    /// It was handed on, and no answer came: it may have been written. 503 `outcome_unknown`.
    #[error("whether it was appended is not known")]
    Unknown,
}

impl AppendError {
    /// Why its events are shed.
    #[must_use]
    pub fn reason(&self) -> ShedReason {
        match self {
            Self::Full { .. } => ShedReason::LogFull,
            Self::Lane { .. } => ShedReason::TenantLane,
            Self::Storage => ShedReason::Storage,
            Self::Draining => ShedReason::Draining,
            Self::Memory { .. } => ShedReason::EdgeFull,
            Self::Unreachable { .. } => ShedReason::Unreachable,
            Self::Unknown => ShedReason::OutcomeUnknown,
        }
    }
}

/// A future that may be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The hop into the log: answers durable, full, or failed. The callee settles `entry` in every case,
/// also where the caller has gone away meanwhile.
pub trait Append: Send + Sync {
    /// Appends one batch as one atomic frame and returns once it is durable.
    fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// The same for a client whose errand is known: where the log is another process' it goes along,
    /// and what nobody waits for any longer is not begun.
    fn append_for(
        &self,
        batch: EncodedBatch,
        entry: Open,
        errand: Errand,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        let _ = errand;
        self.append(batch, entry)
    }

    /// Whether a batch of about `bytes` would be taken now, asked before its body is read.
    ///
    /// # Errors
    /// What the append would say.
    fn room(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        let _ = (tenant, bytes);
        Ok(())
    }
}

/// The way into the log, whichever that is, as the rest of the program sees it.
pub trait LogWriter: Append {
    /// Why it would not take a batch now, one sentence each.
    fn not_ready(&self) -> Vec<String>;
    /// True where it takes nothing until the process is started anew.
    fn is_failed(&self) -> bool {
        false
    }
    /// How full it is.
    fn stats(&self) -> WriterStats;
    /// What the log was given, of each partition whose books are kept here. Blocks.
    ///
    /// # Errors
    /// What cannot be read, for people: try again.
    fn ledgers(&self) -> Result<Vec<LedgerCopy>, String>;
    /// What each partition remembers of clients' ids.
    fn dedup(&self) -> Vec<DedupStatus>;
    /// A partition as its sinks read it: without what was found to be there twice.
    fn as_read(&self, log: &Arc<dyn LogSource>) -> Arc<dyn LogSource> {
        Arc::clone(log)
    }
    /// A partition as a replay reads it: as its sinks do.
    ///
    /// # Errors
    /// Why it cannot be had here, and where.
    fn to_replay(&self, log: &Arc<dyn LogSource>) -> Result<Arc<dyn LogSource>, String> {
        Ok(Arc::clone(log))
    }
    /// Which log it is and how it does, for `status`.
    fn about(&self) -> serde_json::Value;
    /// Takes nothing more, and ends what is under way. Blocks.
    fn close(&self);
    /// The sinks have ended: what they had of the log is given back. Blocks.
    fn leave(&self) {}
}

/// Why a writer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger's file cannot be read.
    #[error("the partition's ledger cannot be read")]
    Ledger(#[source] io::Error),
    /// The log cannot be read for what the ledger lacks.
    #[error("the log cannot be read")]
    Log(#[source] ReadError),
    /// The clients' ids of the window cannot be learned.
    #[error("the ids of the window cannot be learned")]
    Ids(#[source] DedupError),
    /// Offsets that are lost cannot be left out.
    #[error("the log cannot leave out the offsets that are lost")]
    Skip(#[source] AppendFault),
    /// The system gives no thread.
    #[error("the writer's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// Without its writer a partition answers nobody: better to end, be started anew and recover.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                "a writer's thread panicked; the process ends, the next start recovers"
            );
            std::process::abort();
        }
    }
}

/// One partition's writer. Dropping the last clone closes it.
#[derive(Clone)]
pub struct WriterHandle(Arc<Running>);

struct Running {
    queue: Arc<Queue>,
    log: LogHandle,
    codec: Codec,
    budget: Option<Arc<Budget>>,
    keyring: Option<Keyring>,
    dedup: Arc<Mutex<DedupStatus>>,
    ledger: Arc<Mutex<Ledger>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts the writer of `log`: brings the ledger up to the log's end, opens the books with it,
/// remembers the ids of the window, and starts the thread. Blocks while it reads.
///
/// # Errors
/// [`StartError`].
pub fn start(
    mut log: Log,
    books: Arc<Books>,
    clock: Arc<dyn Clock>,
    settings: WriterSettings,
) -> Result<WriterHandle, StartError> {
    let handle = log.handle();
    let storage = handle.storage();
    let path = handle.dir().join("ledger.json");
    let (mut ledger, found) =
        Ledger::load(storage, path, handle.log_id()).map_err(StartError::Ledger)?;
    announce(&handle, &found);
    let hold = handle.hold("ledger");
    let end = handle.latest();
    hold.advance(ledger.as_of());
    if ledger.as_of() > handle.latest() {
        let (as_of, latest) = (ledger.as_of(), handle.latest());
        tracing::error!(%as_of, %latest, "the log ends before what its ledger counted: those events are lost");
        log.skip_to(as_of).map_err(StartError::Skip)?;
    }
    let behind = ledger.catch_up(&handle).map_err(StartError::Log)?;
    if behind > 0 && found == Found::Whole {
        tracing::info!(
            partition = handle.partition().0,
            events = behind,
            "counted the log's events since the ledger"
        );
    }
    ledger.restore(&books);
    let opened = Dedup::open(&handle, &settings, clock.now(), end);
    let (dedup, keyring) = opened.map_err(StartError::Ids)?;
    let status = dedup.status();
    let queue = Arc::new(Queue::new(settings.clone()));
    let (codec, budget) = (settings.codec, settings.budget.clone());
    let name = format!("writer-{}", handle.partition());
    let ledger = Arc::new(Mutex::new(ledger));
    let counting = Arc::clone(&ledger);
    let writer = commit::Writer {
        log,
        queue: Arc::clone(&queue),
        clock,
        settings,
        dedup,
        ledger: counting,
        hold,
    };
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let _ends_the_process = EndOnPanic;
        writer.run();
    });
    let thread = Mutex::new(Some(thread.map_err(StartError::Thread)?));
    let running =
        Running { queue, log: handle, codec, budget, keyring, dedup: status, ledger, thread };
    Ok(WriterHandle(Arc::new(running)))
}

fn announce(log: &LogHandle, found: &Found) {
    let (partition, events) = (log.partition().0, log.latest().since(log.earliest()));
    match found {
        Found::Whole => {}
        Found::Missing if log.latest().0 == 0 => {}
        Found::Missing if log.earliest().0 == 0 => {
            tracing::info!(partition, events, "no ledger yet: all is counted from the log");
        }
        Found::Missing => {
            tracing::error!(
                partition,
                events,
                "the ledger is missing: counting what the log still has; older events are not counted"
            );
        }
        Found::Damaged => {
            tracing::error!(
                partition,
                events,
                "the ledger is damaged: counting what the log still has; older events are not counted"
            );
        }
    }
}

impl WriterHandle {
    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> WriterStats {
        self.0.queue.stats()
    }

    /// What it has appended, per tenant and type.
    #[must_use]
    pub fn ledger(&self) -> LedgerCopy {
        let ledger = self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.copy(self.0.log.partition())
    }

    /// What it remembers of clients' ids.
    #[must_use]
    pub fn dedup(&self) -> DedupStatus {
        self.0.dedup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True where it refuses everything until the process has been started anew.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.0.queue.is_failed()
    }

    /// The log it appends to.
    #[must_use]
    pub fn log(&self) -> &LogHandle {
        &self.0.log
    }

    /// Takes nothing more, appends what waits, writes the ledger, marks the log as cleanly closed.
    /// Blocks until that is done.
    pub fn close(&self) {
        self.0.close();
    }

    fn enqueue(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        if let Err(error) = self.0.queue.check(&batch.tenant, batch.body.len()) {
            entry.shed(error.reason());
            return Err(error);
        }
        let keys = self.0.keyring.as_ref().map(|ring| ring.keys(&batch)).unwrap_or_default();
        let prepared =
            FrameBody::prepare(batch.body.clone(), batch.count, batch.received_at, self.0.codec);
        let frame = match prepared {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "a batch cannot be a frame");
                entry.shed(AppendError::Storage.reason());
                return Err(AppendError::Storage);
            }
        };
        let extra = match self.0.extra(&batch, &frame, &keys) {
            Ok(extra) => extra,
            Err(error) => {
                entry.shed(error.reason());
                return Err(error);
            }
        };
        let (reply, answer) = oneshot::channel();
        self.0.queue.push(Job { batch, frame, keys, entry, reply, extra })?;
        Ok(answer)
    }
}

impl Running {
    /// Memory for what was made of `batch` here: its compressed frame and the keys of its ids.
    fn extra(
        &self,
        batch: &EncodedBatch,
        frame: &FrameBody,
        keys: &[Key],
    ) -> Result<Option<Permit>, AppendError> {
        let Some(budget) = &self.budget else { return Ok(None) };
        let compressed = if self.codec == Codec::None { 0 } else { frame.stored_bytes() };
        let bytes = (compressed + size_of_val(keys)) as u64;
        let share = budget.share(&batch.tenant, 1);
        let retry_after = share.wait();
        let full = |full| match full {
            Full::Share => AppendError::Lane { retry_after },
            Full::Pool => AppendError::Full { retry_after },
        };
        (bytes != 0).then(|| share.try_take(bytes)).transpose().map_err(full)
    }

    fn close(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the writer's thread panicked");
            self.queue.fail();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
    }
}

impl Append for WriterHandle {
    fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        // Queued at once, not when first polled: an answer nobody waits for is still settled.
        let queued = self.enqueue(batch, entry);
        Box::pin(async move {
            match queued {
                // The thread is gone without an answer: whether it was appended is not known.
                Ok(answer) => answer.await.unwrap_or(Err(AppendError::Storage)),
                Err(error) => Err(error),
            }
        })
    }

    fn room(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        self.0.queue.check(tenant, bytes)
    }
}

/// The writers of all partitions: a tenant's batches always go to the same one.
#[derive(Clone)]
pub struct Writers(Arc<[WriterHandle]>);

impl Writers {
    /// Of a process that has no log.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new([]))
    }

    /// `writers` in the order of their partitions; `None` where there are none.
    #[must_use]
    pub fn new(writers: Vec<WriterHandle>) -> Option<Self> {
        (!writers.is_empty()).then(|| Self(writers.into()))
    }

    /// Each of them.
    #[must_use]
    pub fn all(&self) -> &[WriterHandle] {
        &self.0
    }
}

impl LogWriter for Writers {
    fn ledgers(&self) -> Result<Vec<LedgerCopy>, String> {
        Ok(self.0.iter().map(WriterHandle::ledger).collect())
    }

    fn dedup(&self) -> Vec<DedupStatus> {
        self.0.iter().map(WriterHandle::dedup).collect()
    }

    fn about(&self) -> serde_json::Value {
        serde_json::json!({ "kind": "embedded" })
    }

    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for writer in self.0.iter() {
            let (partition, stats) = (writer.log().partition(), writer.stats());
            if writer.is_failed() {
                reasons.push(format!("storage: the log of partition {partition} failed; look at the disk, then start anew"));
            } else if stats.held_bytes >= stats.bound_bytes {
                reasons.push(format!("log_full: the queue of partition {partition} is full"));
            }
        }
        reasons
    }

    fn is_failed(&self) -> bool {
        self.0.iter().any(WriterHandle::is_failed)
    }

    fn stats(&self) -> WriterStats {
        self.0.iter().map(WriterHandle::stats).fold(WriterStats::default(), |sum, one| {
            WriterStats {
                bound_bytes: sum.bound_bytes + one.bound_bytes,
                held_bytes: sum.held_bytes + one.held_bytes,
                drain_bytes_per_second: sum.drain_bytes_per_second + one.drain_bytes_per_second,
                floor_bytes: sum.floor_bytes + one.floor_bytes,
                ceiling_bytes: sum.ceiling_bytes + one.ceiling_bytes,
            }
        })
    }

    /// Closes each, see [`WriterHandle::close`].
    fn close(&self) {
        self.0.iter().for_each(|writer| writer.0.queue.close());
        self.0.iter().for_each(WriterHandle::close);
    }
}

impl Writers {
    /// The writer of a tenant's partition.
    fn of(&self, tenant: &TenantId) -> Option<&WriterHandle> {
        let hash = crc32c::crc32c(tenant.as_str().as_bytes()) as usize;
        self.0.get(hash % self.0.len().max(1))
    }
}

impl Append for Writers {
    fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        match self.of(&batch.tenant) {
            Some(writer) => writer.append(batch, entry),
            None => {
                entry.shed(AppendError::Storage.reason());
                Box::pin(std::future::ready(Err(AppendError::Storage)))
            }
        }
    }

    fn room(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        self.of(tenant).map_or(Err(AppendError::Storage), |writer| writer.room(tenant, bytes))
    }
}
