//! The books of one partition: what it holds per tenant and type, counted by its owner.
//!
//! The count is kept with the offset it goes up to, in the partition's state, so it is exact whenever
//! the owner ends: what came after is counted from the topic. With it goes which message was the last:
//! a topic that was made anew under the old name is found out by it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{BatchView, EventType, Offset, Partition, TenantId};

use super::state::Kept;
use crate::{
    sink::{
        source::{LogSource, SourceEntry, SourceError, SourceReader},
        state::SaveError,
    },
    writer::{LedgerCopy, Totals},
};

const FORMAT: u32 = 1;
/// How often it is written where it changed.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// The ledger of a partition that is ours.
pub(super) struct Ledger {
    log: Arc<dyn LogSource>,
    kept: Arc<Kept>,
    key: String,
    state: Mutex<State>,
}

struct State {
    counted: Counted,
    types: BTreeMap<(TenantId, EventType), Totals>,
    reader: Option<Box<dyn SourceReader>>,
    saved: Instant,
    changed: bool,
}

/// As it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    format: u32,
    /// All below is counted, nothing behind it.
    as_of: u64,
    /// Offsets that were gone, or no events of ours, before they were counted.
    lost: u64,
    /// The last event that was counted.
    last: Option<Last>,
    types: Vec<Row>,
}

/// Which event lies at an offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    offset: u64,
    request: String,
    index: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    tenant: TenantId,
    event_type: EventType,
    accepted: u64,
    dead_lettered: u64,
}

/// A ledger that does not go with the topic that is there.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    /// What is kept cannot be read.
    #[error("the partition's books ({key}) are of a form this program does not know: {cause}")]
    Form {
        /// Which.
        key: String,
        /// Why.
        cause: String,
    },
    /// The topic is another one.
    #[error(
        "partition {partition} of the topic is not the one its state was written for: {why}. If the \
         topic was made anew, name another one, or remove its state topic as well"
    )]
    OtherTopic {
        /// Which.
        partition: Partition,
        /// What differs.
        why: String,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] SourceError),
}

impl Ledger {
    /// Goes on from what is kept.
    pub fn open(log: Arc<dyn LogSource>, kept: Arc<Kept>) -> Result<Self, LedgerError> {
        let key = format!("books/{}", log.partition());
        let form = |cause: String| LedgerError::Form { key: key.clone(), cause };
        let mut counted = match kept.get(&key) {
            None => Counted { format: FORMAT, ..Counted::default() },
            Some(text) => serde_json::from_slice(&text).map_err(|error| form(error.to_string()))?,
        };
        if counted.format != FORMAT {
            return Err(form(format!("format {}", counted.format)));
        }
        is_same_topic(&*log, &counted)?;
        let rows = std::mem::take(&mut counted.types).into_iter();
        let totals =
            |row: &Row| Totals { accepted: row.accepted, dead_lettered: row.dead_lettered };
        let types = rows.map(|row| ((row.tenant.clone(), row.event_type.clone()), totals(&row)));
        let types = types.collect();
        let (saved, changed) = (Instant::now(), false);
        let state = Mutex::new(State { counted, types, reader: None, saved, changed });
        Ok(Self { log, kept, key, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up to `end` or until `until`; blocks while it reads.
    pub fn count_up_to(&self, end: Offset, until: Option<Instant>) -> Result<(), SourceError> {
        let mut state = self.state();
        let state = &mut *state;
        let earliest = self.log.earliest();
        if state.counted.as_of < earliest.0 {
            // Kafka's retention took what nobody had counted.
            let gone = earliest.0 - state.counted.as_of;
            if 0 < state.counted.as_of || state.counted.last.is_some() {
                tracing::error!(
                    partition = self.log.partition().0,
                    events = gone,
                    "retention removed events before they were counted"
                );
            }
            state.counted.lost += gone;
            state.counted.as_of = earliest.0;
            (state.reader, state.changed) = (None, true);
        }
        while state.counted.as_of < end.0 && until.is_none_or(|until| Instant::now() < until) {
            let next = match &mut state.reader {
                Some(reader) => reader.next(),
                None => {
                    state.reader = Some(self.log.read_from(Offset(state.counted.as_of))?);
                    continue;
                }
            };
            match next {
                Ok(Some(entry)) => state.add(&entry),
                Ok(None) => break,
                Err(error) => {
                    state.reader = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes it where it changed: now, or where the last time is long ago.
    pub fn save(&self, now: bool) -> Result<(), SaveError> {
        let mut state = self.state();
        if !state.changed || (!now && state.saved.elapsed() < SAVE_EVERY) {
            return Ok(());
        }
        let mut counted = state.counted.clone();
        counted.types = state
            .types
            .iter()
            .map(|((tenant, event_type), totals)| Row {
                tenant: tenant.clone(),
                event_type: event_type.clone(),
                accepted: totals.accepted,
                dead_lettered: totals.dead_lettered,
            })
            .collect();
        let text = serde_json::to_vec(&counted).map_err(|e| SaveError::Io(e.into()))?;
        self.kept.put(&self.key, &text)?;
        (state.saved, state.changed) = (Instant::now(), false);
        Ok(())
    }

    pub fn copy(&self) -> LedgerCopy {
        let state = self.state();
        LedgerCopy {
            partition: self.log.partition(),
            as_of: Offset(state.counted.as_of),
            lost: state.counted.lost,
            types: state.types.clone(),
        }
    }

    pub fn log(&self) -> &Arc<dyn LogSource> {
        &self.log
    }
}

impl State {
    fn add(&mut self, entry: &SourceEntry) {
        self.changed = true;
        match entry {
            SourceEntry::Frame(frame) => {
                self.counted.as_of = frame.end().0;
                if let Some(last) = count(&frame.body, frame.base, &mut self.types) {
                    self.counted.last = Some(last);
                } else {
                    self.counted.lost += u64::from(frame.count);
                }
            }
            SourceEntry::Quarantined(range) => {
                self.counted.as_of = range.to().0;
                self.counted.lost += range.count();
            }
            SourceEntry::Empty(range) => self.counted.as_of = range.to().0,
        }
    }
}

/// Adds a frame's events; `None` where it is no batch.
fn count(
    body: &[u8],
    base: Offset,
    types: &mut BTreeMap<(TenantId, EventType), Totals>,
) -> Option<Last> {
    let view = BatchView::parse(body).ok()?;
    let tenant = TenantId::new(view.tenant).ok()?;
    let mut last = None;
    for record in view.records() {
        let record = record.ok()?;
        let key = (tenant.clone(), EventType::new(record.kind.name).ok()?);
        let totals = types.entry(key).or_default();
        match record.dead {
            None => totals.accepted += 1,
            Some(_) => totals.dead_lettered += 1,
        }
        let (offset, request) = (record.offset(base).0, hex::encode(view.base_id));
        last = Some(Last { offset, request, index: record.index });
    }
    last
}

/// The event that was counted last is where it was, unless retention has taken it.
fn is_same_topic(log: &dyn LogSource, counted: &Counted) -> Result<(), LedgerError> {
    let other = |why: String| LedgerError::OtherTopic { partition: log.partition(), why };
    let (earliest, latest) = (log.earliest(), log.latest());
    if latest.0 < counted.as_of {
        return Err(other(format!(
            "it ends at offset {latest}, its events were counted up to {}",
            counted.as_of
        )));
    }
    let Some(last) = &counted.last else { return Ok(()) };
    if last.offset < earliest.0 {
        return Ok(());
    }
    let mut reader = log.read_from(Offset(last.offset))?;
    if let Some(SourceEntry::Frame(frame)) = reader.next()?
        && frame.base.0 == last.offset
        && count(&frame.body, frame.base, &mut BTreeMap::new()).as_ref() == Some(last)
    {
        return Ok(());
    }
    Err(other(format!("at offset {} there is another event", last.offset)))
}
