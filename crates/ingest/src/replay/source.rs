//! A window of one partition as a log of its own: bounded, judged again, at a pace. Read-only.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tidegate_event::{Offset, OffsetRange, Partition};

use super::{
    judge::{Again, Session},
    pace::Pace,
};
use crate::sink::source::{
    LogSource, SourceEntry, SourceError, SourceFrame, SourceHold, SourceReader,
};

/// `[from, to)` of a log's partition, as a job's sinks read it.
pub struct WindowSource {
    log: Arc<dyn LogSource>,
    from: Offset,
    to: Offset,
    again: Arc<Again>,
    pace: Arc<Pace>,
}

impl WindowSource {
    /// Of `log`, as `again` judges it, no faster than `pace`.
    pub fn new(
        log: Arc<dyn LogSource>,
        (from, to): (Offset, Offset),
        again: Arc<Again>,
        pace: Arc<Pace>,
    ) -> Self {
        Self { log, from, to, again, pace }
    }
}

impl LogSource for WindowSource {
    fn log_id(&self) -> &str {
        self.log.log_id()
    }
    fn partition(&self) -> Partition {
        self.log.partition()
    }
    fn earliest(&self) -> Offset {
        self.from
    }
    fn latest(&self) -> Offset {
        self.to
    }
    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        let reader = self.log.read_from(from)?;
        Ok(Box::new(WindowReader {
            reader,
            partition: self.log.partition(),
            from,
            to: self.to,
            at: from,
            again: Arc::clone(&self.again),
            pace: Arc::clone(&self.pace),
            session: Session::default(),
            ready: VecDeque::new(),
        }))
    }
    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        if self.to <= seen {
            std::thread::sleep(timeout);
        }
        seen < self.to
    }
    fn bytes_since(&self, offset: Offset) -> u64 {
        self.log.bytes_since(offset).saturating_sub(self.log.bytes_since(self.to))
    }
    fn hold(&self, name: &str) -> Box<dyn SourceHold> {
        self.log.hold(name)
    }
}

struct WindowReader {
    reader: Box<dyn SourceReader>,
    partition: Partition,
    /// All before it is none of this reader's.
    from: Offset,
    to: Offset,
    /// All before it was given.
    at: Offset,
    again: Arc<Again>,
    pace: Arc<Pace>,
    session: Session,
    ready: VecDeque<SourceEntry>,
}

impl SourceReader for WindowReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.to <= self.at {
                return Ok(None);
            }
            match self.reader.next()? {
                None => return Ok(None),
                Some(SourceEntry::Frame(frame)) => self.frame(&frame)?,
                Some(SourceEntry::Quarantined(range)) => {
                    self.pass(range.to(), SourceEntry::Quarantined);
                }
                Some(SourceEntry::Empty(range)) => self.pass(range.to(), SourceEntry::Empty),
            }
        }
    }
}

impl WindowReader {
    fn frame(&mut self, frame: &SourceFrame) -> Result<(), SourceError> {
        self.pace.turn(frame.count.into()).map_err(|cause| SourceError::Read { cause })?;
        let window = (self.from.max(self.at), self.to);
        let frames = self.again.frames(&mut self.session, self.partition, frame, window);
        // The frame's checksum holds, so this was written so: no other reader makes more of it.
        let frames = frames.map_err(|error| SourceError::Read {
            cause: format!("at offset {}: {error}", frame.base),
        })?;
        for made in frames {
            self.pass(made.base, SourceEntry::Empty);
            self.at = made.end();
            self.ready.push_back(SourceEntry::Frame(made));
        }
        self.pass(frame.end(), SourceEntry::Empty);
        Ok(())
    }

    /// Gives the offsets up to `to` as what `entry` makes of them.
    fn pass(&mut self, to: Offset, entry: impl FnOnce(OffsetRange) -> SourceEntry) {
        if let Some(range) = OffsetRange::new(self.at, to.min(self.to)) {
            self.at = range.to();
            self.ready.push_back(entry(range));
        }
    }
}
