//! Owns the append: group commit, deduplication by id, the partition's ledger.

use std::{future::Future, pin::Pin, time::Duration};

use tidegate_event::{EncodedBatch, OffsetRange, Partition};

use crate::books::Open;

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
    /// The disk is full or failing. 503 `storage`.
    #[error("the log's disk is full or failing")]
    Storage,
    /// Shutting down: nothing was written. 503 `draining`.
    #[error("the log is closing")]
    Draining,
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
}
