//! Reads a partition frame by frame, verified, never past what is durable.

use std::{io, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use tidegate_event::{Offset, OffsetRange, ReceivedAt};

use super::{
    SeenBy,
    handle::{Extent, Shared},
    quarantine::Damage,
    segment::{self, FRAMES_AT},
    walk::{Found, OnReadError, Place, READ_BYTES, Step, Walker},
};
use crate::{
    faults::{Bug, planted},
    storage::StorageFile,
};

/// Why the log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed it: go on from `earliest`, and count what was missed.
    #[error("retention has removed these offsets; the earliest left is {earliest}")]
    Gone {
        /// The first offset still there.
        earliest: Offset,
    },
    /// A segment cannot be opened: try again later.
    #[error("{} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What lies next in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A whole frame.
    Frame(Frame),
    /// Offsets whose bytes are damaged: they are lost, what lies behind them is not.
    Quarantined(OffsetRange),
}

/// One frame: the events of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its first offset.
    pub base: Offset,
    /// How many events, at least 1.
    pub count: u32,
    /// When the edge had it.
    pub received_at: ReceivedAt,
    /// The batch, decompressed. A slice of the read buffer where it was not compressed.
    pub body: Bytes,
    /// Bytes it takes on disk, header included.
    pub stored_bytes: u64,
}

impl Frame {
    /// The first offset behind it.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.base.plus(self.count.into())
    }
}

/// Reads on from an offset. Blocking file reads of 1 MiB; ends at `latest` and goes on when that
/// moves.
pub struct LogReader {
    shared: Arc<Shared>,
    /// Entries that end at or before this are passed over.
    from: u64,
    place: Place,
    open: Option<(Extent, Walker)>,
    noted: u64,
    by: SeenBy,
    is_patient: bool,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>, from: Offset) -> Result<Self, ReadError> {
        shared.extent(from.0)?;
        let place = Place { position: 0, offset: from.0, chain: None };
        let (by, is_patient) = (SeenBy::Reader, false);
        Ok(Self { shared, from: from.0, place, open: None, noted: 0, by, is_patient })
    }

    /// One that gives up a page only after `log.read_patience`.
    pub(super) fn patient(shared: Arc<Shared>, from: Offset) -> Result<Self, ReadError> {
        Ok(Self { is_patient: true, ..Self::new(shared, from)? })
    }

    /// One that asks the disk, not the cache, and leaves nothing in that.
    pub(super) fn verifying(shared: Arc<Shared>, from: Offset) -> Result<Self, ReadError> {
        Ok(Self { by: SeenBy::Verify, ..Self::new(shared, from)? })
    }

    /// The segment that was read last.
    pub(super) fn segment(&self) -> Option<u64> {
        self.open.as_ref().map(|(extent, _)| extent.segment)
    }

    /// The first offset that [`LogReader::next`] has not passed.
    #[must_use]
    pub fn position(&self) -> Offset {
        Offset(self.place.offset.max(self.from))
    }

    /// The next entry; `None` at the end of what is durable: call again later.
    ///
    /// # Errors
    /// [`ReadError::Gone`] and [`ReadError::Io`]; the reader may be used again.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some((extent, mut walker)) = self.extent()? else { return Ok(None) };
            let (begin, mut place) = (self.place.position, self.place);
            let mut step = walker.step(&mut place, self.from);
            if step.is_err() && self.shared.patience.failed(extent.segment, Instant::now()) {
                walker.on_error = OnReadError::Zeros;
                place = self.place;
                step = walker.step(&mut place, self.from);
            }
            self.open = Some((extent, walker));
            let step = step.map_err(|source| self.fault(extent.segment, source))?;
            self.place = place;
            let entry = match step {
                Step::Frame(found) => self.frame(&extent, found),
                Step::Damaged(range) => {
                    self.damaged(&extent, range.from().0, range.to().0, (begin, place.position))
                }
                Step::Tail => {
                    let from = self.place.offset;
                    self.place = Place { position: extent.bytes, offset: extent.end, chain: None };
                    self.damaged(&extent, from, extent.end, (begin, extent.bytes))
                }
            };
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }

    fn frame(&mut self, extent: &Extent, found: Found) -> Option<Entry> {
        let header = found.header;
        if found.position >= self.noted + READ_BYTES as u64 {
            self.noted = found.position;
            self.shared.note(extent.segment, header.base, found.position);
        }
        if header.end() <= self.from {
            return None;
        }
        let Ok(body) = header.open_body(found.stored) else {
            let bytes = (found.position, found.position + header.frame_bytes());
            return self.damaged(extent, header.base, header.end(), bytes);
        };
        Some(Entry::Frame(Frame {
            base: Offset(header.base),
            count: header.count,
            received_at: header.received_at,
            body,
            stored_bytes: header.frame_bytes(),
        }))
    }

    fn damaged(&self, extent: &Extent, from: u64, to: u64, bytes: (u64, u64)) -> Option<Entry> {
        if planted(Bug::DamageNotTold) {
            return None;
        }
        let damage = Damage {
            range: OffsetRange::new(Offset(from), Offset(to))?,
            segment: extent.segment,
            position: bytes.0,
            bytes: bytes.1.min(extent.bytes).saturating_sub(bytes.0),
        };
        self.shared.damaged(damage, self.by);
        OffsetRange::new(Offset(from.max(self.from)), Offset(to)).map(Entry::Quarantined)
    }

    /// The segment that holds the next offset, open, and what is known of it.
    fn extent(&mut self) -> Result<Option<(Extent, Walker)>, ReadError> {
        let offset = self.place.offset.max(self.from);
        if let Some((extent, walker)) = self.open.take_if(|(e, _)| offset < e.end) {
            return Ok(Some((extent, walker)));
        }
        loop {
            let Some(extent) = self.shared.extent(offset)? else { return Ok(None) };
            let mut walker = match self.open.take() {
                Some((open, walker)) if open.segment == extent.segment => walker,
                before => {
                    before.iter().for_each(|(_, left)| self.uncache(&*left.file));
                    match self.enter(&extent) {
                        Ok(walker) => walker,
                        // Retention was faster: the next look says so.
                        Err(e) if e.kind() == io::ErrorKind::NotFound && self.gone(&extent) => {
                            continue;
                        }
                        Err(source) => return Err(self.fault(extent.segment, source)),
                    }
                }
            };
            (walker.limit, walker.bound) = (extent.bytes, extent.end);
            return Ok(Some((extent, walker)));
        }
    }

    fn enter(&mut self, extent: &Extent) -> io::Result<Walker> {
        let path = segment::path(&self.shared.dir, extent.segment);
        let file = self.shared.storage.open(&path)?;
        self.uncache(&*file);
        let (offset, position) = extent.start;
        let chain = extent.chain.filter(|_| position == FRAMES_AT);
        self.from = self.from.max(self.place.offset);
        (self.place, self.noted) = (Place { position, offset, chain }, position);
        let waits = self.is_patient && !self.shared.patience.is_over(extent.segment);
        let on_error = if waits { OnReadError::Fail } else { OnReadError::Zeros };
        Ok(Walker::new(file, self.shared.seed, on_error))
    }

    fn uncache(&self, file: &dyn StorageFile) {
        if self.by == SeenBy::Verify
            && let Err(error) = file.drop_cache()
        {
            tracing::warn!(%error, "verified as the cache has it: it could not be dropped");
        }
    }

    fn gone(&self, extent: &Extent) -> bool {
        self.shared.state().segments.front().is_none_or(|first| first.base > extent.segment)
    }

    fn fault(&self, segment: u64, source: io::Error) -> ReadError {
        ReadError::Io { path: segment::path(&self.shared.dir, segment), source }
    }
}
