//! What a promotion needs of the running sinks.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_event::Partition;

use crate::{
    replay::Selection,
    sink::{Lane, Sink, exchange::Marked, promoted::Span},
};

/// The sinks that run. All calls block.
pub trait Live: Send + Sync {
    /// Their names.
    fn names(&self) -> Vec<String>;

    /// One of them.
    fn sink(&self, name: &str) -> Option<Arc<dyn Sink>>;

    /// Whether a sink has written all of a window for good: every cursor and every held lane's is behind it.
    ///
    /// # Errors
    /// What it still has to write, and what to do.
    fn passed(&self, sink: &str, window: &[Span], selection: &Selection) -> Result<(), String>;

    /// Of events that a sink does not have, which it set aside and which it skipped, by the lane they were
    /// recorded in.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn gained(
        &self,
        sink: &str,
        offsets: &BTreeMap<Partition, Marked>,
    ) -> Result<BTreeMap<Lane, (u64, u64)>, String>;
}
