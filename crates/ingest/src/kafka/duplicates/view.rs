//! A partition as its sinks read it: up to where it is decided, without duplicates.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tidegate_event::{Offset, OffsetRange, Partition, ReceivedAt};

use super::{Decisions, tail::extent};
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
        let earliest = self.earliest();
        if from < earliest {
            return Err(SourceError::Gone { earliest });
        }
        let mut reader = DecidedReader {
            log: Arc::clone(&self.log),
            decisions: Arc::clone(&self.decisions),
            at: from,
            ready: VecDeque::new(),
            reader: None,
            ahead: None,
        };
        // Who begins at the end finds what comes in the tail.
        if from != self.decisions.to() && !self.decisions.tail().has(from) {
            reader.reader = Some(self.log.read_from(from)?);
        }
        Ok(Box::new(reader))
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
    log: Arc<dyn LogSource>,
    decisions: Arc<Decisions>,
    /// The next offset.
    at: Offset,
    /// Decided, from the tail.
    ready: VecDeque<SourceEntry>,
    /// For what the tail does not have.
    reader: Option<Box<dyn SourceReader>>,
    /// Read, and not decided yet.
    ahead: Option<SourceEntry>,
}

impl SourceReader for DecidedReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        let decided = self.decisions.to();
        if decided <= self.at {
            return Ok(None);
        }
        if self.ready.is_empty() {
            self.ready = self.decisions.tail().from(self.at);
        }
        if let Some(entry) = self.ready.pop_front() {
            (self.reader, self.ahead) = (None, None);
            return Ok(Some(self.show(entry)));
        }
        let entry = match self.ahead.take() {
            Some(entry) => entry,
            None => match self.read()? {
                Some(entry) => entry,
                None => return Ok(None),
            },
        };
        if decided < extent(&entry).1 {
            self.ahead = Some(entry);
            return Ok(None);
        }
        Ok(Some(self.show(entry)))
    }
}

impl DecidedReader {
    fn read(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        match &mut self.reader {
            Some(reader) => reader.next(),
            None => self.reader.insert(self.log.read_from(self.at)?).next(),
        }
    }

    fn show(&mut self, entry: SourceEntry) -> SourceEntry {
        self.at = extent(&entry).1;
        match &entry {
            SourceEntry::Frame(frame) if self.decisions.records().contains(frame.base) => {
                OffsetRange::new(frame.base, frame.end()).map_or(entry, SourceEntry::Empty)
            }
            SourceEntry::Frame(_) | SourceEntry::Quarantined(_) | SourceEntry::Empty(_) => entry,
        }
    }
}
