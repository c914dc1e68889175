//! What the sinks tell operators and the books.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, Partition};

use super::{Policy, freshness::FreshnessStatus, promoted::Promotions, rows::Lane, start::Began};

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is visible at the destination.
    Stored,
    /// The destination refuses it for good.
    Quarantined,
    /// It was not for this sink, or it expired.
    Skipped,
}

/// What became of one lane's rows, as far as a sink has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCounts {
    /// Visible at the destination.
    pub stored: u64,
    /// Refused for good, set aside.
    pub quarantined: u64,
    /// Filtered, before the sink's start, or expired.
    pub skipped: u64,
}

impl LaneCounts {
    /// Adds rows.
    pub fn add(&mut self, written: Written, rows: u64) {
        match written {
            Written::Stored => self.stored += rows,
            Written::Quarantined => self.quarantined += rows,
            Written::Skipped => self.skipped += rows,
        }
    }
}

/// One sink's side of the books at one moment:
/// `accepted = stored + pending + quarantined + skipped` below `up_to`, for each lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The sink's name.
    pub sink: String,
    /// Per partition: all before it is counted here, what is behind it is not.
    pub up_to: BTreeMap<Partition, Offset>,
    /// Per partition: all before it is written, skipped or held. At most `up_to`.
    pub cursors: BTreeMap<Partition, Offset>,
    /// The cursors of lanes that wait alone.
    pub held: BTreeMap<(Partition, Lane), Offset>,
    /// What became of the rows the sink has passed.
    pub lanes: BTreeMap<Lane, LaneCounts>,
    /// The rows it has yet to write.
    pub pending: BTreeMap<Lane, u64>,
    /// Offsets the log had lost (failed their checksum, see the log's own alarm), of no lane.
    pub lost_in_log: u64,
    /// Events before the sink's start that retention had removed, of no lane.
    pub gone: u64,
    /// What replays were promoted into it: not in the counts above, see [`Promotions::moves`].
    pub promotions: Promotions,
}

fn seconds<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(span.as_secs_f64())
}

/// How a sink does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SinkState {
    /// It writes, or waits for events.
    Running,
    /// The destination takes nothing; the sink tries again.
    Waiting {
        /// The destination's own words.
        error: String,
        /// Until the next attempt.
        #[serde(rename = "retry_in_seconds", serialize_with = "seconds")]
        retry_in: Duration,
    },
    /// It must not go on: a human must look.
    Stopped {
        /// Why.
        error: String,
    },
    /// It was drained.
    Drained,
}

/// A lane that waits alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldLane {
    /// In which partition.
    pub partition: Partition,
    /// Which.
    #[serde(flatten)]
    pub lane: Lane,
    /// All before it is written.
    pub cursor: Offset,
    /// Its rows that wait, as far as the sink has come.
    pub pending_events: u64,
    /// Their bytes, about.
    pub pending_bytes: u64,
    /// Why it waits.
    pub error: String,
    /// Until the next attempt.
    #[serde(rename = "retry_in_seconds", serialize_with = "seconds")]
    pub retry_in: Duration,
}

/// One partition of one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Which.
    pub partition: Partition,
    /// Where it began, if not at the very first offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<Began>,
    /// All before it is written, skipped or held.
    pub cursor: Offset,
    /// The first offset still needed: the cursor, or that of a lane held back.
    pub lowest: Offset,
    /// The next offset the log will give.
    pub latest: Offset,
    /// How it does.
    #[serde(flatten)]
    pub state: SinkState,
}

/// One sink.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What happens at its bound.
    pub policy: Policy,
    /// Per partition.
    pub partitions: Vec<PartitionStatus>,
    /// Events in the log it has not made visible: behind its cursors, and in lanes held back.
    pub lag_events: u64,
    /// Bytes it has to write: the log behind its cursors, and of lanes held back.
    pub backlog_bytes: u64,
    /// The bound of `backlog_bytes`, as fast as it is now.
    pub bound_bytes: u64,
    /// The least that bound can be.
    pub floor_bytes: u64,
    /// The most that bound can be: `log.backlog_bytes`.
    pub ceiling_bytes: u64,
    /// Bytes of log that are kept for the sake of held lanes alone.
    pub pinned_bytes: u64,
    /// Bytes of log a second while it writes; 0: it never was behind.
    pub drain_bytes_per_second: u64,
    /// How long the backlog takes at that speed; `None` where that is not known.
    pub delay_seconds: Option<f64>,
    /// Memory its windows may take.
    pub memory_bytes: u64,
    /// Bytes of windows it holds now.
    pub held_bytes: u64,
    /// Age in seconds of the oldest accepted event not visible yet; 0 when there is none.
    pub freshness_seconds: f64,
    /// Why windows that are old enough wait, where they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// How old events were when they became visible, and whether that is what was promised.
    pub freshness: FreshnessStatus,
    /// The lanes that wait alone.
    pub held: Vec<HeldLane>,
    /// How joining small files does, for a lake that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joining: Option<JoinStatus>,
}

/// How joining small files does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JoinStatus {
    /// Folders with more than one small file.
    pub waiting_folders: u64,
    /// The small files in them.
    pub waiting_files: u64,
    /// Files that others have taken the place of, since the start.
    pub removed_files: u64,
    /// Files that have taken their place, since the start.
    pub made_files: u64,
    /// Rounds and folders that failed, since the start.
    pub failures: u64,
    /// Why the last round failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
