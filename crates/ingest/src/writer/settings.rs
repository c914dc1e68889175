//! How a writer works, and what of it the configuration says.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tidegate_event::{EventType, TenantId};

use crate::{
    budget::Budget,
    log::{Codec, LogConfig},
};

/// How a writer works.
#[derive(Clone)]
pub struct WriterSettings {
    /// Bytes of batches held at most: waiting, and being appended.
    pub queue_bytes: usize,
    /// How long a batch may wait: with the measured drain rate, the bound below `queue_bytes`.
    pub delay: Duration,
    /// Bytes written and synced at once at most (one larger batch goes alone).
    pub group_bytes: usize,
    /// How frames are compressed.
    pub codec: Codec,
    /// Bytes of log held by the lowest hold at which batches are refused.
    pub backlog_bytes: u64,
    /// How long ids are remembered; 0: not at all.
    pub dedup_window: Duration,
    /// The same of event types that have a window of their own.
    pub dedup_windows: BTreeMap<EventType, Duration>,
    /// How many ids are remembered at most.
    pub dedup_ids: usize,
    /// The same of all partitions of one process together, where it does not have all of them.
    pub dedup_ids_all: usize,
    /// How often the ledger and the index of ids are written, and old segments removed.
    pub housekeeping: Duration,
    /// A tenant's part of the queue against others', at least 1.
    pub weight: Arc<dyn Fn(&TenantId) -> u64 + Send + Sync>,
    /// Where the memory for what is made of a batch here is taken from; `None`: it is not counted.
    pub budget: Option<Arc<Budget>>,
    /// Called after a failed sync, when all waiters have their answer. Aborts the process unless
    /// replaced: what the disk holds is only known after a start.
    pub on_fatal: Arc<dyn Fn() + Send + Sync>,
}

impl WriterSettings {
    /// What the log's configuration says, with a queue of at most `queue_bytes` and `delay`.
    #[must_use]
    pub fn new(config: &LogConfig, queue_bytes: usize, delay: Duration) -> Self {
        Self {
            queue_bytes,
            delay,
            group_bytes: 8 << 20,
            codec: config.codec,
            backlog_bytes: config.backlog_bytes.0,
            dedup_window: config.dedup_window.0,
            dedup_windows: config.dedup_windows.iter().map(|(t, w)| (t.clone(), w.0)).collect(),
            dedup_ids: config.dedup_ids,
            dedup_ids_all: config.dedup_ids,
            housekeeping: Duration::from_secs(1),
            weight: Arc::new(|_| 1),
            budget: None,
            on_fatal: Arc::new(|| std::process::abort()),
        }
    }

    /// True where ids are remembered at all.
    #[must_use]
    pub fn remembers(&self) -> bool {
        let own = self.dedup_windows.values().any(|window| !window.is_zero());
        0 < self.dedup_ids && (own || !self.dedup_window.is_zero())
    }
}

impl fmt::Debug for WriterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterSettings")
            .field("queue_bytes", &self.queue_bytes)
            .field("delay", &self.delay)
            .field("group_bytes", &self.group_bytes)
            .field("backlog_bytes", &self.backlog_bytes)
            .field("dedup_window", &self.dedup_window)
            .field("dedup_windows", &self.dedup_windows)
            .field("dedup_ids", &self.dedup_ids)
            .finish_non_exhaustive()
    }
}
