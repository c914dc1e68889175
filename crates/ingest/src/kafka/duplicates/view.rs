//! A partition as its sinks read it: up to where it is decided, without duplicates.

use std::{sync::Arc, time::Duration};

use tidegate_event::{Offset, OffsetRange, Partition, ReceivedAt};

use super::Decisions;
use crate::sink::source::{LogSource, SourceEntry, SourceError, SourceHold, SourceReader};

/// One partition. Offsets of duplicates are told as empty.
pub(crate) struct DecidedLog {
    log: Arc<dyn LogSource>,
    decisions: Arc<Decisions>,
}

impl DecidedLog {
    pub fn new(log: Arc<dyn LogSource>, decisions: Arc<Decisions>) -> Self {
        Self { log, decisions }
    }
}

impl LogSource for DecidedLog {
    fn log_id(&self) -> &str {
        self.log.log_id()
    }

    fn partition(&self) -> Partition {
        self.log.partition()
    }

    fn earliest(&self) -> Offset {
        self.log.earliest()
    }

    fn latest(&self) -> Offset {
        self.decisions.to().min(self.log.latest()).max(self.log.earliest())
    }

    fn given(&self) -> Offset {
        self.log.latest()
    }

    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        let reader = self.log.read_from(from)?;
        let decisions = Arc::clone(&self.decisions);
        Ok(Box::new(DecidedReader { reader, decisions, at: from, ahead: None }))
    }

    fn offset_at(&self, since: ReceivedAt) -> Offset {
        self.log.offset_at(since)
    }

    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        self.decisions.wait_past(seen, timeout)
    }

    fn bytes_since(&self, offset: Offset) -> u64 {
        self.log.bytes_since(offset)
    }

    fn hold(&self, name: &str) -> Box<dyn SourceHold> {
        self.log.hold(name)
    }
}

struct DecidedReader {
    reader: Box<dyn SourceReader>,
    decisions: Arc<Decisions>,
    /// The next offset.
    at: Offset,
    /// Read, and not decided yet.
    ahead: Option<SourceEntry>,
}

impl SourceReader for DecidedReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        let decided = self.decisions.to();
        if decided <= self.at {
            return Ok(None);
        }
        let entry = match self.ahead.take() {
            Some(entry) => entry,
            None => match self.reader.next()? {
                Some(entry) => entry,
                None => return Ok(None),
            },
        };
        let (from, to) = extent(&entry);
        if decided < to {
            self.at = from.max(self.at);
            self.ahead = Some(entry);
            // The next try is to find it decided, or to come to this place again without reading.
            return Ok(None);
        }
        self.at = to;
        Ok(Some(self.without(entry)))
    }
}

impl DecidedReader {
    fn without(&self, entry: SourceEntry) -> SourceEntry {
        match &entry {
            SourceEntry::Frame(frame) if self.decisions.records().contains(frame.base) => {
                OffsetRange::new(frame.base, frame.end()).map_or(entry, SourceEntry::Empty)
            }
            SourceEntry::Frame(_) | SourceEntry::Quarantined(_) | SourceEntry::Empty(_) => entry,
        }
    }
}

fn extent(entry: &SourceEntry) -> (Offset, Offset) {
    match entry {
        SourceEntry::Frame(frame) => (frame.base, frame.end()),
        SourceEntry::Quarantined(range) | SourceEntry::Empty(range) => (range.from(), range.to()),
    }
}
