//! Reads a partition from the disk, every frame and every head, and says what is damaged.

use std::{io, sync::Arc};

use tidegate_event::{Offset, OffsetRange, Partition};

use super::{
    Entry, LogReader, ReadError, Stretch,
    handle::Shared,
    listing::read_full,
    segment::{self, FRAMES_AT, SegmentHeader},
};
use crate::storage::StorageFile;

/// Ranges and notes kept at most; more are counted.
pub(super) const KEPT_MAX: usize = 10_000;

/// What was verified, and what is damaged in it.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Which partition.
    pub partition: Partition,
    /// The first offset that was asked for and is there.
    pub from: Offset,
    /// The first offset that was not looked at.
    pub to: Offset,
    /// Segments that were looked into.
    pub segments: u64,
    /// Whole frames.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of them, and of the heads of segments.
    pub bytes: u64,
    /// Offsets whose bytes are damaged, how many.
    pub damaged_events: u64,
    /// Which, and where.
    pub damaged: Vec<Stretch>,
    /// Stretches of the record that read well again: what was passed over stays passed over.
    pub whole_again: Vec<OffsetRange>,
    /// Bytes behind the end that were never acknowledged; a start cuts them off.
    pub torn_bytes: u64,
    /// What else is not as it should be, one sentence each: it costs no event.
    pub notes: Vec<String>,
}

impl Verified {
    /// True where every byte is as it was written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damaged_events == 0 && self.notes.is_empty()
    }

    pub(super) fn note(&mut self, note: String) {
        if self.notes.len() < KEPT_MAX {
            self.notes.push(note);
        }
    }

    /// Looks at a segment's head; `Some` where a copy of it is whole.
    pub(super) fn head(
        &mut self,
        file: &dyn StorageFile,
        name: &str,
    ) -> io::Result<Option<SegmentHeader>> {
        let mut head = [0; FRAMES_AT as usize];
        let read = read_full(file, &mut head, 0)?;
        self.segments += 1;
        self.bytes += read as u64;
        let decoded = SegmentHeader::decode(head.get(..read).unwrap_or_default());
        match decoded {
            Some((_, true)) => {}
            Some((_, false)) => {
                self.note(format!("one copy of the head of {name} is damaged; the other serves"));
            }
            None => self.note(format!("both copies of the head of {name} are damaged")),
        }
        Ok(decoded.map(|(header, _)| header))
    }
}

/// Verifies entry by entry, so that its caller may pace it, show how far it is, and stop.
pub struct Verifier {
    shared: Arc<Shared>,
    reader: LogReader,
    /// What was known before.
    known: Vec<Stretch>,
    damaged: Vec<OffsetRange>,
    segment: Option<u64>,
    so_far: Verified,
}

impl Verifier {
    pub(super) fn new(shared: Arc<Shared>, from: Offset, to: Offset) -> Result<Self, ReadError> {
        let (earliest, latest) = {
            let state = shared.state();
            (Offset(state.earliest), Offset(state.latest))
        };
        let (from, to) = (from.max(earliest), to.min(latest));
        let reader = LogReader::verifying(Arc::clone(&shared), from)?;
        let so_far = Verified { partition: shared.partition, from, to, ..Verified::default() };
        let known = shared.quarantine().all();
        Ok(Self { shared, reader, known, damaged: Vec::new(), segment: None, so_far })
    }

    /// How far it is.
    #[must_use]
    pub fn position(&self) -> Offset {
        self.reader.position().min(self.so_far.to)
    }

    /// What it found up to there; stretches and notes are only whole at the end.
    #[must_use]
    pub fn so_far(&self) -> &Verified {
        &self.so_far
    }

    /// Verifies the next frame or damage; false at the end.
    ///
    /// # Errors
    /// [`ReadError::Io`] where a segment cannot be opened.
    pub fn step(&mut self) -> Result<bool, ReadError> {
        if self.so_far.to <= self.reader.position() {
            return Ok(false);
        }
        let entry = match self.reader.next() {
            Err(ReadError::Gone { earliest }) => {
                self.so_far.note(format!(
                    "retention removed the log up to {earliest} while it was verified"
                ));
                self.reader = LogReader::verifying(Arc::clone(&self.shared), earliest)?;
                return Ok(earliest < self.so_far.to);
            }
            entry => entry?,
        };
        self.enter()?;
        match entry {
            None => return Ok(false),
            Some(Entry::Frame(frame)) => {
                self.so_far.frames += 1;
                self.so_far.events += u64::from(frame.count);
                self.so_far.bytes += frame.stored_bytes;
            }
            Some(Entry::Quarantined(range)) => {
                self.so_far.damaged_events += range.count();
                if self.damaged.len() < KEPT_MAX {
                    self.damaged.push(range);
                }
            }
        }
        Ok(self.reader.position() < self.so_far.to)
    }

    /// Looks at the head of a segment, the first time something of it was read.
    fn enter(&mut self) -> Result<(), ReadError> {
        let Some(base) = self.reader.segment().filter(|base| self.segment != Some(*base)) else {
            return Ok(());
        };
        self.segment = Some(base);
        let path = segment::path(&self.shared.dir, base);
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let looked = self.shared.storage.open(&path).and_then(|f| self.so_far.head(&*f, &name));
        match looked {
            Ok(_) => Ok(()),
            // Retention took it behind our back: its frames were read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ReadError::Io { path, source }),
        }
    }

    /// What came of it.
    #[must_use]
    pub fn finish(mut self) -> Verified {
        let overlaps = |a: &OffsetRange, b: &OffsetRange| a.from() < b.to() && b.from() < a.to();
        let seen = |range: &OffsetRange| self.damaged.iter().any(|d| overlaps(d, range));
        let mut stretches = self.shared.quarantine().all();
        stretches.retain(|stretch| seen(&stretch.range));
        let (from, to) = (self.so_far.from, self.so_far.to);
        let looked_at = |range: &OffsetRange| from <= range.from() && range.to() <= to;
        let again = self.known.iter().map(|stretch| stretch.range);
        self.so_far.whole_again = again.filter(|r| looked_at(r) && !seen(r)).collect();
        self.so_far.damaged = stretches;
        self.so_far
    }
}
