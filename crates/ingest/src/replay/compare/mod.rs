//! Live against shadow: which events a replay would change, and how.
//!
//! | file | purpose |
//! | --- | --- |
//! | `report` | what came of it; `compared.json` |
//! | `fingerprint` | whether a side is still what was compared |
//!
//! Both sides are read in order of offset, a few rows at a time, so that memory is bounded whatever the
//! window is. Rows are the same where every column has the same value; a column that one side does not
//! have holds no value there.

mod fingerprint;
mod report;

use std::path::PathBuf;

use tidegate_event::{OffsetRange, Partition};
use tokio::runtime::Handle;

pub use fingerprint::fingerprint;
pub use report::{
    Compared, ComparedError, Comparison, Difference, Differences, FILE, FORMAT, FieldChanges,
    FieldDifference, HourCompared, HourTotal, LaneCompared, Progress, Rows, Sample, Side,
    SinkCompared, Unreadable,
};

use super::plan::{Content, Selection};
use crate::sink::{SinkConfigError, lake::InventoryError};

/// Which events of a sink are looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Of which log.
    pub log_id: String,
    /// Which offsets; one stretch of each partition at most.
    pub window: Vec<(Partition, OffsetRange)>,
    /// Which of them.
    pub selection: Selection,
    /// The event types that may be there, for sinks that cannot list theirs.
    pub event_types: Vec<tidegate_event::EventType>,
}

impl Scope {
    /// That of a plan.
    #[must_use]
    pub fn of(plan: &Content) -> Self {
        let stretch = |slice: &super::Slice| Some((slice.partition, slice.range()?));
        let mut event_types: Vec<_> =
            plan.counts.iter().map(|count| count.lane.event_type.clone()).collect();
        event_types.sort_unstable();
        event_types.dedup();
        Self {
            log_id: plan.log_id.clone(),
            window: plan.window.iter().filter_map(stretch).collect(),
            selection: plan.selection.clone(),
            event_types,
        }
    }
}

/// What reading a sink's destination needs of the server.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The data folder: a lake without a URL lies in it.
    pub data_dir: PathBuf,
    /// Where futures are run; not the one that calls.
    pub runtime: Handle,
}

/// Two sides could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Sinks of this kind cannot be read back.
    #[error("a sink of kind {0:?} cannot be compared: it cannot be read back")]
    Kind(String),
    /// A side cannot be opened.
    #[error(transparent)]
    Config(#[from] SinkConfigError),
    /// A lake cannot be read.
    #[error(transparent)]
    Lake(#[from] InventoryError),
    /// A server does not answer, or not what was asked.
    #[error("{0}")]
    Server(String),
    /// A side was written to meanwhile.
    #[error("{side} was written to while it was compared: {sink}; compare again")]
    Moved {
        /// Which sink.
        sink: String,
        /// Which side.
        side: &'static str,
    },
    /// Nobody listens any more.
    #[error("given up: nobody waits for it any more")]
    Stopped,
}
