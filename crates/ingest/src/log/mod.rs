//! The durable log: partitions of checksummed, chained frames in segment files.
//!
//! | file | what for |
//! | --- | --- |
//! | `folder` | what opening does: the lock, the id, each partition |
//! | `listing` | what lies in a partition's folder, and whether it fits together |
//! | `recover` | what is left of a partition after a crash, and what becomes of it |
//! | `append` | the one writer of a partition: groups of frames, segments, retention |
//! | `reader` | reads frame by frame, verified, never past what is durable |
//! | `handle` | what everybody may know: extent, holds, waiting for more |
//! | `quarantine` | what is damaged, who found it, who acknowledged it |
//! | `watermark` | how far it is durable, for the start after a kill |
//! | `verify` | reads it all, for an operator; `offline` without a server |
//! | `patience` | how long a page that cannot be read is asked for |
//! | `walk` | the frames of one file, and the next whole one behind damage |
//! | `frame`, `segment` | the bytes (docs/log-format.md) |
//!
//! A group is written, synced once, and only then visible. A failed write seals the segment at its
//! last durable frame and the next group begins a new one; after a failed sync nothing is written any
//! more. What survives a crash: every frame whose append returned. The log knows bytes, offsets and
//! counts, nothing of tenants or JSON.

mod append;
mod folder;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod listing;
mod offline;
mod patience;
mod quarantine;
mod reader;
mod recover;
mod segment;
mod verify;
mod walk;
mod watermark;

#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_event::EventType;

use crate::{
    config::{Size, Span},
    kafka::KafkaConfig,
};

pub use append::{AppendFault, Log};
pub use folder::{OpenError, Opened, lock, open};
pub use frame::{BODY_BYTES_MAX, FRAME_HEADER_BYTES, FrameBody, FrameError};
pub use handle::{Hold, LogHandle};
pub use offline::{OfflineError, inspect, read_some};
pub use quarantine::{AcknowledgeError, Acknowledged, QuarantineTotals, SeenBy, Stretch};
pub use reader::{Entry, Frame, LogReader, ReadError};
pub use recover::Recovery;
pub use verify::{Verified, Verifier};

/// `[log]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Which log.
    pub kind: LogKind,
    /// The data folder: log, cursors, books, and the lake unless a sink says otherwise.
    pub dir: PathBuf,
    /// How many partitions; fixed once the log is made.
    pub partitions: u32,
    /// How frames are compressed.
    pub codec: Codec,
    /// Bytes after which a segment is closed and the next begun.
    pub segment_bytes: Size,
    /// Bytes of log to keep at most, once every blocking sink has passed them.
    pub retention_bytes: Size,
    /// Age of log to keep at most, once every blocking sink has passed it.
    pub retention_age: Span,
    /// Bytes of log at which new events are refused (503 `log_full`), because a blocking sink holds
    /// them; also the bound of every sink's backlog.
    pub backlog_bytes: Size,
    /// How long a page of the log that cannot be read is asked for, before the sinks pass its events as
    /// lost.
    pub read_patience: Span,
    /// How long an id that a client sent is remembered; 0: ids are not deduplicated.
    pub dedup_window: Span,
    /// How many ids are remembered at most (about 64 bytes each).
    pub dedup_ids: usize,
    /// The same as `dedup_window`, of event types that have a window of their own.
    pub dedup_windows: BTreeMap<EventType, Span>,
    /// Where `kind` is `kafka`.
    pub kafka: KafkaConfig,
}

impl LogConfig {
    /// True where clients' ids are remembered at all.
    #[must_use]
    pub fn remembers(&self) -> bool {
        let own = self.dedup_windows.values().any(|window| !window.0.is_zero());
        0 < self.dedup_ids && (own || !self.dedup_window.0.is_zero())
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            dir: "tidegate-data".into(),
            partitions: 1,
            codec: Codec::None,
            segment_bytes: Size::mib(256),
            retention_bytes: Size(10 << 30),
            retention_age: Span::seconds(7 * 86_400),
            backlog_bytes: Size(20 << 30),
            read_patience: Span::seconds(60),
            dedup_window: Span::seconds(600),
            dedup_ids: 1_000_000,
            dedup_windows: BTreeMap::new(),
            kafka: KafkaConfig::default(),
        }
    }
}

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// Segment files in the data folder.
    Embedded,
    /// A topic of Apache Kafka.
    Kafka,
}

/// How frames are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// As they are.
    None,
    /// LZ4 block format.
    Lz4,
}
