//! Reads a window and counts what is in it; changes nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_event::{
    BatchView, EventType, Offset, OffsetRange, Partition, RecordView, SchemaRef, TenantId,
    record::DecodeError,
};

use super::{
    plan::{EventAt, LaneCount, SchemaCount, Selection, Slice},
    resolve::Bounds,
};
use crate::sink::{
    Lane,
    source::{LogSource, SourceEntry, SourceError, SourceFrame},
};

/// Read at once; then others have their turn.
const TURN_BYTES: u64 = 8 << 20;
/// A turn of others is as long as ours was, and at most this.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Why a window was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    /// A stretch of it is damaged.
    #[error("{0} is damaged")]
    Damaged(OffsetRange),
    /// Retention was faster.
    #[error("retention has removed what lies below {0}")]
    Gone(Offset),
    /// It cannot be read now.
    #[error("{0}")]
    Read(String),
    /// Nobody wants to know any more.
    #[error("nobody listens")]
    Stopped,
}

impl From<SourceError> for ScanError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Gone { earliest } => Self::Gone(earliest),
            SourceError::Read { cause } => Self::Read(cause),
        }
    }
}

impl From<DecodeError> for ScanError {
    fn from(error: DecodeError) -> Self {
        Self::Read(error.to_string())
    }
}

/// Reads `[from, to)`, frame by frame; a frame may reach beyond either end.
pub(super) fn frames(
    log: &dyn LogSource,
    bounds: Bounds,
    mut visit: impl FnMut(&SourceFrame) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let mut reader = log.read_from(bounds.from)?;
    let mut at = bounds.from;
    while at < bounds.to {
        // Behind the last event there may be offsets that are no event's: then this is the end.
        let Some(entry) = reader.next()? else { return Ok(()) };
        at = match entry {
            SourceEntry::Frame(frame) => {
                if bounds.to <= frame.base {
                    return Ok(());
                }
                visit(&frame)?;
                frame.end()
            }
            SourceEntry::Empty(range) => range.to(),
            SourceEntry::Quarantined(range) => {
                let (from, to) = (range.from().max(bounds.from), range.to().min(bounds.to));
                match OffsetRange::new(from, to) {
                    Some(lost) => return Err(ScanError::Damaged(lost)),
                    None => range.to(),
                }
            }
        };
    }
    Ok(())
}

/// What is known of one lane.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    bytes: u64,
    schemas: BTreeMap<(i32, [u8; 16]), u64>,
}

/// What a window holds, by tenant, type and verdict.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<String, BTreeMap<String, [Tally; 2]>>);

impl Lanes {
    fn add(&mut self, tenant: &str, kind: &Kind<'_>) {
        if kind.events == 0 {
            return;
        }
        // No text is copied for a lane that is known.
        if !self.0.contains_key(tenant) {
            self.0.insert(tenant.to_owned(), BTreeMap::new());
        }
        let Some(types) = self.0.get_mut(tenant) else { return };
        if !types.contains_key(kind.name) {
            types.insert(kind.name.to_owned(), <[Tally; 2]>::default());
        }
        let tally = types.get_mut(kind.name).and_then(|both| both.get_mut(usize::from(kind.dead)));
        if let Some(tally) = tally {
            tally.events += kind.events;
            tally.bytes += kind.bytes;
            *tally.schemas.entry((kind.schema.version, kind.schema.hash)).or_default() +=
                kind.events;
        }
    }

    /// Every lane with its counts, in order.
    pub fn counts(&self) -> Result<Vec<LaneCount>, ScanError> {
        let mut counts = Vec::new();
        for (tenant, types) in &self.0 {
            for (event_type, tallies) in types {
                for (dead, tally) in [false, true].into_iter().zip(tallies) {
                    if tally.events == 0 {
                        continue;
                    }
                    let unfit = |e: tidegate_event::NameError| ScanError::Read(e.to_string());
                    let lane = Lane {
                        tenant: TenantId::new(tenant).map_err(unfit)?,
                        event_type: EventType::new(event_type).map_err(unfit)?,
                        dead,
                    };
                    let schemas_then = tally.schemas.iter().map(|((version, hash), events)| {
                        SchemaCount { version: *version, hash: hex::encode(hash), events: *events }
                    });
                    let schemas_then = schemas_then.collect();
                    let Tally { events, bytes, .. } = *tally;
                    counts.push(LaneCount { lane, events, bytes, schemas_then });
                }
            }
        }
        Ok(counts)
    }
}

/// The events of one batch that have one type, schema and verdict.
struct Kind<'a> {
    name: &'a str,
    schema: SchemaRef,
    dead: bool,
    takes: bool,
    events: u64,
    bytes: u64,
}

/// One event, kept until it is known whether it is the last.
struct Last {
    body: Bytes,
    base: Offset,
    position: u32,
}

/// Counts the events of one slice.
pub(super) struct Counting<'a> {
    bounds: Bounds,
    selection: &'a Selection,
    slice: Slice,
    last: Option<Last>,
    /// What the selection takes.
    taken: &'a mut Lanes,
    /// Everything.
    all: &'a mut Lanes,
}

impl<'a> Counting<'a> {
    pub fn new(
        bounds: Bounds,
        selection: &'a Selection,
        taken: &'a mut Lanes,
        all: &'a mut Lanes,
    ) -> Self {
        let Bounds { partition, from, to } = bounds;
        let (events, bytes, log_bytes) = (0, 0, 0);
        let slice =
            Slice { partition, from, to, events, bytes, log_bytes, first: None, last: None };
        Self { bounds, selection, slice, last: None, taken, all }
    }

    pub fn frame(&mut self, frame: &SourceFrame) -> Result<(), ScanError> {
        let batch = BatchView::parse(&frame.body)?;
        self.slice.log_bytes += frame.body.len() as u64;
        let mut kinds: Vec<Kind<'_>> = Vec::with_capacity(batch.types.len() * 2);
        for kind in &batch.types {
            for dead in [false, true] {
                let takes = takes(self.selection, batch.tenant, kind.name, dead);
                let (name, schema) = (kind.name, kind.schema);
                kinds.push(Kind { name, schema, dead, takes, events: 0, bytes: 0 });
            }
        }
        let mut last = None;
        for record in batch.records() {
            let record = record?;
            let offset = record.offset(frame.base);
            if offset < self.bounds.from || self.bounds.to <= offset {
                continue;
            }
            let at = record.type_index * 2 + usize::from(record.dead.is_some());
            let Some(kind) = kinds.get_mut(at) else { continue };
            kind.events += 1;
            kind.bytes += record.raw.len() as u64;
            if kind.takes {
                last = Some(record.position);
                if self.slice.first.is_none() {
                    self.slice.first = Some(event_at(&batch, &record, frame.base)?);
                }
            }
        }
        for kind in &kinds {
            self.all.add(batch.tenant, kind);
            if kind.takes {
                self.slice.events += kind.events;
                self.slice.bytes += kind.bytes;
                self.taken.add(batch.tenant, kind);
            }
        }
        if let Some(position) = last {
            self.last = Some(Last { body: frame.body.clone(), base: frame.base, position });
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Slice, ScanError> {
        if let Some(Last { body, base, position }) = &self.last {
            let batch = BatchView::parse(body)?;
            for record in batch.records() {
                let record = record?;
                if record.position == *position {
                    self.slice.last = Some(event_at(&batch, &record, *base)?);
                }
            }
        }
        Ok(self.slice)
    }
}

/// As [`Selection::takes`], of names as they lie in the log.
fn takes(selection: &Selection, tenant: &str, event_type: &str, dead: bool) -> bool {
    let Selection { tenants, event_types, dead_letters_only } = selection;
    (tenants.is_empty() || tenants.iter().any(|name| name.as_str() == tenant))
        && (event_types.is_empty() || event_types.iter().any(|name| name.as_str() == event_type))
        && (dead || !dead_letters_only)
}

fn event_at(
    batch: &BatchView<'_>,
    record: &RecordView<'_>,
    base: Offset,
) -> Result<EventAt, ScanError> {
    let unfit = |e: tidegate_event::NameError| ScanError::Read(e.to_string());
    Ok(EventAt {
        offset: record.offset(base),
        received_at: batch.received_at,
        tenant: TenantId::new(batch.tenant).map_err(unfit)?,
        event_type: EventType::new(record.kind.name).map_err(unfit)?,
        event_id: record.event_id(&batch.base_id).into_owned(),
    })
}

/// The event at `offset`; `None` where there is none.
pub(super) fn event(log: &dyn LogSource, offset: Offset) -> Result<Option<EventAt>, ScanError> {
    let bounds = Bounds { partition: log.partition(), from: offset, to: offset.plus(1) };
    let mut found = None;
    frames(log, bounds, |frame| {
        let batch = BatchView::parse(&frame.body)?;
        for record in batch.records() {
            let record = record?;
            if record.offset(frame.base) == offset {
                found = Some(event_at(&batch, &record, frame.base)?);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Where a re-driven event came from.
#[derive(serde::Deserialize)]
struct Origin {
    partition: u32,
    offset: u64,
}

/// Calls `found` for each dead letter that an event of `[from, to)` is a re-drive of. What is damaged or
/// gone says nothing.
pub(super) fn redriven(
    log: &dyn LogSource,
    bounds: Bounds,
    mut found: impl FnMut(Partition, Offset),
    mut goes_on: impl FnMut(&SourceFrame) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let mut from = bounds.from;
    while from < bounds.to {
        let read = frames(log, Bounds { from, ..bounds }, |frame| {
            goes_on(frame)?;
            let batch = BatchView::parse(&frame.body)?;
            for record in batch.records() {
                let record = record?;
                if !record.note.contains("redrive_of") {
                    continue;
                }
                let note: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(record.note).unwrap_or_default();
                let origin =
                    note.get("redrive_of").map(<Origin as serde::Deserialize>::deserialize);
                if let Some(Ok(Origin { partition, offset })) = origin {
                    found(Partition(partition), Offset(offset));
                }
            }
            Ok(())
        });
        from = match read {
            Ok(()) => return Ok(()),
            Err(ScanError::Damaged(range)) => range.to(),
            Err(ScanError::Gone(earliest)) if from < earliest => earliest,
            Err(error) => return Err(error),
        };
    }
    Ok(())
}

/// Reads with the other half of the time left to others, and knows how long reading itself took.
pub(super) struct Pace {
    turn: (Instant, u64),
    busy: Duration,
}

impl Pace {
    pub fn new() -> Self {
        Self { turn: (Instant::now(), 0), busy: Duration::ZERO }
    }

    /// `bytes` more were read.
    pub fn read(&mut self, bytes: u64) {
        self.turn.1 += bytes;
        if TURN_BYTES <= self.turn.1 {
            let took = self.turn.0.elapsed();
            self.busy += took;
            std::thread::sleep(took.min(PAUSE_MAX));
            self.turn = (Instant::now(), 0);
        }
    }

    /// How long reading took, without what was left to others.
    pub fn busy(&self) -> Duration {
        self.busy + self.turn.0.elapsed()
    }
}
