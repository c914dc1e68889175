//! What a sink needs of a log partition: the contract that every log keeps.

use std::time::Duration;

use bytes::Bytes;
use tidegate_event::{Offset, OffsetRange, Partition, ReceivedAt};

use crate::log::{Entry, Hold, LogHandle, LogReader, ReadError};

/// One atomic batch of the log, as a sink reads it.
#[derive(Clone, Debug)]
pub struct SourceFrame {
    /// The offset of its first event.
    pub base: Offset,
    /// How many events.
    pub count: u32,
    /// When the edge had it.
    pub received_at: ReceivedAt,
    /// The batch (see `tidegate_event::record`), decompressed.
    pub body: Bytes,
}

impl SourceFrame {
    /// The first offset behind it.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.base.plus(self.count.into())
    }
}

/// What comes next in a log.
#[derive(Clone, Debug)]
pub enum SourceEntry {
    /// A batch.
    Frame(SourceFrame),
    /// A stretch that failed its checksum: the log counts and alarms it, a sink passes it.
    Quarantined(OffsetRange),
    /// Offsets that never were an event's: nothing is missing.
    Empty(OffsetRange),
}

/// Why the log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Retention has removed what was to be read: count what was missed, go on from `earliest`.
    #[error("retention has removed these offsets; the earliest left is {earliest}")]
    Gone {
        /// The first offset still there.
        earliest: Offset,
    },
    /// It cannot be read now: try again later.
    #[error("the log cannot be read: {cause}")]
    Read {
        /// What the system said.
        cause: String,
    },
}

/// One partition of a log. All calls block.
pub trait LogSource: Send + Sync {
    /// Which log: 8 characters of `a-z0-9`.
    fn log_id(&self) -> &str;
    /// Which partition of it.
    fn partition(&self) -> Partition;
    /// The first offset that is still there.
    fn earliest(&self) -> Offset;
    /// The next offset to be given; all below is durable.
    fn latest(&self) -> Offset;
    /// The same, of what may not be read yet as well.
    fn given(&self) -> Offset {
        self.latest()
    }
    /// Reads on from `from`; inside a frame: that whole frame.
    ///
    /// # Errors
    /// [`SourceError`] when `from` is not there (any more) or the log cannot be read.
    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError>;
    /// The same, for one who reads the log to its end: it may be read ahead.
    ///
    /// # Errors
    /// As [`LogSource::read_from`].
    fn read_on_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        self.read_from(from)
    }
    /// An offset before which nothing was received at `since` or later: where to look for the first
    /// that was. The earliest, where the log knows no better.
    fn offset_at(&self, _since: ReceivedAt) -> Offset {
        self.earliest()
    }
    /// Waits at most `timeout`; true once `latest() > seen`.
    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool;
    /// Bytes of log from `offset` to the end.
    fn bytes_since(&self, offset: Offset) -> u64;
    /// Keeps retention from passing what a sink still needs.
    fn hold(&self, name: &str) -> Box<dyn SourceHold>;
}

/// Reads a partition forward.
pub trait SourceReader: Send {
    /// The next entry; `None` at the end for now.
    ///
    /// # Errors
    /// [`SourceError`] when the log cannot be read.
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError>;
}

/// Retention never passes it. Released on drop.
pub trait SourceHold: Send {
    /// All before `offset` is no longer needed.
    fn advance(&mut self, offset: Offset);
}

impl LogSource for LogHandle {
    fn log_id(&self) -> &str {
        LogHandle::log_id(self)
    }
    fn partition(&self) -> Partition {
        LogHandle::partition(self)
    }
    fn earliest(&self) -> Offset {
        LogHandle::earliest(self)
    }
    fn latest(&self) -> Offset {
        LogHandle::latest(self)
    }
    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(Box::new(LogHandle::read_patiently_from(self, from)?))
    }
    fn offset_at(&self, since: ReceivedAt) -> Offset {
        LogHandle::offset_at(self, since)
    }
    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        LogHandle::wait_past(self, seen, timeout)
    }
    fn bytes_since(&self, offset: Offset) -> u64 {
        LogHandle::bytes_since(self, offset)
    }
    fn hold(&self, name: &str) -> Box<dyn SourceHold> {
        Box::new(LogHandle::hold(self, name))
    }
}

impl SourceReader for LogReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        let entry = LogReader::next(self)?;
        Ok(entry.map(|entry| match entry {
            Entry::Frame(frame) => SourceEntry::Frame(SourceFrame {
                base: frame.base,
                count: frame.count,
                received_at: frame.received_at,
                body: frame.body,
            }),
            Entry::Quarantined(range) => SourceEntry::Quarantined(range),
        }))
    }
}

impl SourceHold for Hold {
    fn advance(&mut self, offset: Offset) {
        Hold::advance(self, offset);
    }
}

impl From<ReadError> for SourceError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Gone { earliest } => Self::Gone { earliest },
            other @ ReadError::Io { .. } => Self::Read { cause: describe(&other) },
        }
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}
