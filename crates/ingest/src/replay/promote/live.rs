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

    /// What a sink says of events that it does not have, by the lane they were recorded in.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn gained(
        &self,
        sink: &str,
        offsets: &BTreeMap<Partition, Marked>,
    ) -> Result<BTreeMap<Lane, Lacking>, String>;
}

/// Events of one lane that a sink does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Those that it set aside.
    pub aside: u64,
    /// All others: skipped, or stored once and lost since.
    pub others: u64,
    /// Events of the whole lane that it says it skipped: of no others can one have been.
    pub skipped_at_most: u64,
}
