//! Gathers frames until a window is cut: by bytes, rows or age.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_event::{Offset, OffsetRange, ReceivedAt};

use super::{
    Flush,
    held::own,
    memory::ROW_BYTES,
    rows::{Head, Row, RowsHash},
    source::{LogSource, SourceEntry, SourceError, SourceFrame, SourceReader},
    state::Intent,
};

/// No window is larger: what becomes of it, a file of at most a few times its bytes, must go to an
/// object store in one request, which S3 takes up to 5 GiB.
const BYTES_MAX: u64 = 1 << 30;

/// When a window is cut: at whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of batches; a single larger frame passes alone.
    pub bytes: u64,
    /// Events.
    pub rows: u64,
    /// Age of the oldest.
    pub age: Duration,
}

impl Cut {
    /// The configured bounds, else the defaults.
    pub fn new(flush: &Flush, age: Duration) -> Self {
        Self {
            bytes: flush.bytes.map_or(64 << 20, |size| size.0.min(BYTES_MAX)),
            rows: flush.rows.unwrap_or(1_000_000),
            age: flush.age.map_or(age, |span| span.0),
        }
    }
}

/// Frames `[from, to)` of one partition, in memory.
#[derive(Clone, Debug)]
pub struct Window {
    /// The first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub to: Offset,
    /// Its frames.
    pub frames: Vec<SourceFrame>,
    /// Their bytes.
    pub bytes: u64,
    /// Their events.
    pub rows: u64,
    /// Offsets in it that the log lost.
    pub lost: u64,
    /// When its first frame was read.
    began: Option<Instant>,
}

impl Window {
    /// An empty one at `from`.
    pub fn new(from: Offset) -> Self {
        Self { from, to: from, frames: Vec::new(), bytes: 0, rows: 0, lost: 0, began: None }
    }

    /// When the oldest of its events was received.
    pub fn oldest(&self) -> Option<ReceivedAt> {
        self.frames.iter().map(|frame| frame.received_at).min()
    }

    pub(super) fn add(&mut self, entry: SourceEntry) {
        match entry {
            SourceEntry::Frame(frame) => {
                // Offsets between two entries would be lost without a word of the log.
                self.lost += frame.base.since(self.to);
                self.to = frame.end();
                self.bytes += frame.body.len() as u64;
                self.rows += u64::from(frame.count);
                self.began.get_or_insert_with(Instant::now);
                self.frames.push(frame);
            }
            SourceEntry::Quarantined(range) => {
                self.lost += range.to().since(self.to.max(range.from()));
                self.to = range.to();
                self.began.get_or_insert_with(Instant::now);
            }
            SourceEntry::Empty(range) => {
                self.to = range.to();
                self.began.get_or_insert_with(Instant::now);
            }
        }
    }

    /// What is promised before it is written; `None` for an empty window.
    ///
    /// It names what was read: the frames as they are, where they stand.
    pub fn intent(&self) -> Option<Intent> {
        let window = OffsetRange::new(self.from, self.to)?;
        let mut hash = RowsHash::default();
        self.frames.iter().for_each(|frame| hash.frame(frame));
        let (rows, hash) = hash.finish();
        Some(Intent { window, rows, hash, schemas: schemas(&self.frames) })
    }
}

/// The hashes of the schemas that the events of `frames` were judged by.
fn schemas(frames: &[SourceFrame]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for frame in frames {
        if let Ok(view) = tidegate_event::BatchView::parse(&frame.body) {
            found.extend(view.types.iter().map(|kind| kind.schema.hash));
        }
    }
    found.into_iter().filter(|hash| *hash != [0; 16]).map(hex::encode).collect()
}

/// What is promised of one lane's rows in a window.
pub fn lane_intent(
    heads: &[Head<'_>],
    rows: &[Row<'_>],
    from: Offset,
    to: Offset,
) -> Option<Intent> {
    let mut hash = RowsHash::default();
    rows.iter().for_each(|row| hash.row(row, heads));
    let (count, hash) = hash.finish();
    let schemas: BTreeSet<_> =
        rows.iter().map(|row| row.schema(heads).hash).filter(|hash| *hash != [0; 16]).collect();
    Some(Intent {
        window: OffsetRange::new(from, to)?,
        rows: count,
        hash,
        schemas: schemas.into_iter().map(hex::encode).collect(),
    })
}

/// What gathering led to.
#[derive(Debug)]
pub enum Gathered {
    /// A window to write.
    Window(Window),
    /// Nothing to be done yet; the reader is at the end.
    AtEnd,
}

/// Reads a partition on and gathers what is read.
pub struct Gatherer {
    log: Arc<dyn LogSource>,
    cut: Cut,
    reader: Option<Box<dyn SourceReader>>,
    window: Window,
    /// Read, but no longer fitting into the window.
    ahead: Option<SourceFrame>,
    /// No window is cut for its age before.
    until: Option<Instant>,
}

impl Gatherer {
    /// Begins at `from`.
    pub fn new(log: Arc<dyn LogSource>, cut: Cut, from: Offset) -> Self {
        Self { log, cut, reader: None, window: Window::new(from), ahead: None, until: None }
    }

    /// Forgets what was gathered and begins again at `from`.
    pub fn restart(&mut self, from: Offset) {
        (self.reader, self.window, self.ahead) = (None, Window::new(from), None);
    }

    /// Windows that need no more memory than this many bytes of events from now on, where that is
    /// less than the configured bounds.
    pub fn set_bytes(&mut self, bytes: u64, configured: Cut) {
        self.cut.bytes = bytes.min(configured.bytes);
        self.cut.rows = (bytes / ROW_BYTES).clamp(1, configured.rows.max(1));
    }

    /// Whatever its age, no window is cut for it before `until`.
    pub fn pause(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// True where a bound other than age would cut a window of this size.
    pub fn is_full(&self, window: &Window) -> bool {
        // The frame that no longer fitted was at most as large as the window before it.
        self.cut.bytes <= window.bytes.saturating_mul(2)
            || self.cut.rows <= window.rows.saturating_mul(2)
    }

    /// What is gathered so far.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Up to where the log was read.
    pub fn read_to(&self) -> Offset {
        self.ahead.as_ref().map_or(self.window.to, SourceFrame::end)
    }

    /// Reads what is there and cuts where a bound is reached. `now`: the clock's; `flush`: cut what
    /// is there at the end of the log, whatever its age.
    ///
    /// # Errors
    /// [`SourceError`]; what was gathered is kept, and the next call reads on from there.
    pub fn gather(&mut self, now: ReceivedAt, flush: bool) -> Result<Gathered, SourceError> {
        loop {
            if let Some(frame) = self.ahead.take() {
                self.window.add(SourceEntry::Frame(frame));
            }
            if self.cut.bytes <= self.window.bytes || self.cut.rows <= self.window.rows {
                return Ok(self.take());
            }
            match self.next()? {
                Some(SourceEntry::Frame(frame)) if self.overflows(&frame) => {
                    self.ahead = Some(frame);
                    return Ok(self.take());
                }
                Some(entry) => self.window.add(entry),
                None if self.window.from == self.window.to => return Ok(Gathered::AtEnd),
                None if flush || self.is_old(now) => return Ok(self.take()),
                None => return Ok(Gathered::AtEnd),
            }
            // While there is more to read, only the time since the first frame was read counts:
            // a backlog is old, and is to be written in large windows all the same.
            if self.ripe_in().is_some_and(|left| left.is_zero()) {
                return Ok(self.take());
            }
        }
    }

    /// How long until the gathered frames are old enough.
    pub fn ripe_in(&self) -> Option<Duration> {
        let left = self.cut.age.saturating_sub(self.window.began?.elapsed());
        Some(left.max(self.paused_for()))
    }

    /// True where what is gathered is old enough, and waits all the same.
    pub fn is_paused(&self) -> bool {
        let is_old = self.window.began.is_some_and(|began| self.cut.age <= began.elapsed());
        is_old && !self.paused_for().is_zero()
    }

    fn paused_for(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    fn is_old(&self, now: ReceivedAt) -> bool {
        if !self.paused_for().is_zero() {
            return false;
        }
        let age = self.window.oldest().map_or(0, |oldest| now.0.saturating_sub(oldest.0));
        let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
        self.cut.age <= age || self.ripe_in().is_some_and(|left| left.is_zero())
    }

    fn overflows(&self, frame: &SourceFrame) -> bool {
        let (bytes, rows) = (frame.body.len() as u64, u64::from(frame.count));
        !self.window.frames.is_empty()
            && (self.cut.bytes < self.window.bytes + bytes
                || self.cut.rows < self.window.rows + rows)
    }

    fn take(&mut self) -> Gathered {
        let next = Window::new(self.window.to);
        Gathered::Window(std::mem::replace(&mut self.window, next))
    }

    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        if self.reader.is_none() {
            self.reader = Some(self.log.read_on_from(self.window.to)?);
        }
        let next = match &mut self.reader {
            Some(reader) => reader.next(),
            None => Ok(None),
        };
        if next.is_err() {
            self.reader = None;
        }
        next
    }
}

/// Reads `window` again, whole; `keep` says which frames.
///
/// # Errors
/// [`SourceError`] when the log cannot be read or ends before the window does.
pub fn reread(
    log: &dyn LogSource,
    range: OffsetRange,
    mut keep: impl FnMut(&SourceFrame) -> bool,
) -> Result<Window, SourceError> {
    let mut window = Window::new(range.from());
    let mut reader = log.read_from(range.from())?;
    while window.to < range.to() {
        match reader.next()? {
            Some(SourceEntry::Frame(frame)) if !keep(&frame) => window.to = frame.end(),
            // Where few are kept, one must not keep the reader's whole buffer.
            Some(SourceEntry::Frame(frame)) => window.add(SourceEntry::Frame(own(frame))),
            Some(entry) => window.add(entry),
            None => {
                let end = window.to;
                let cause = format!("it ends at {end}, before the end of the window {range}");
                return Err(SourceError::Read { cause });
            }
        }
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn a_window_is_never_larger_than_what_one_put_can_take() {
        let cut = |bytes: u64| {
            let flush = Flush { bytes: Some(Size(bytes)), ..Flush::default() };
            Cut::new(&flush, Duration::ZERO).bytes
        };
        assert_eq!((cut(1), cut(64 << 30)), (1, 1 << 30));
        assert_eq!(Cut::new(&Flush::default(), Duration::ZERO).bytes, 64 << 20);
    }
}
