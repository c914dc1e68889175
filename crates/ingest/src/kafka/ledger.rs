//! The books of one partition: what it holds per tenant and type, counted by its owner, who also
//! decides which of it was there already (`duplicates`).
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
use tidegate_event::{EventType, Offset, Partition, ReceivedAt, RecordView, TenantId};

use super::{
    duplicates::{Change, Decisions, Learn, RecordError, Records, decided_up_to, learn},
    state::Store,
    tally::{LastSeen, Tally, count},
};
use crate::{
    clock::Clock,
    metrics,
    sink::{
        source::{LogSource, SourceEntry, SourceError, SourceReader},
        state::{SaveError, StateFault},
    },
    writer::{DedupStatus, KnownIds, LedgerCopy, Totals},
};

const FORMAT: u32 = 1;
/// How often it is written where it changed.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// Decided at once at most, and for so long at most: so soon it is shown.
const STEP_EVENTS: u64 = 16_384;
const STEP_BYTES: u64 = 1 << 20;
const STEP_FOR: Duration = Duration::from_millis(50);

/// The ledger of a partition that is ours.
pub(super) struct Ledger {
    log: Arc<dyn LogSource>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    key: String,
    decisions: Arc<Decisions>,
    state: Mutex<State>,
    told: Option<Arc<Mutex<DedupStatus>>>,
    ids_max: Arc<dyn Fn() -> usize + Send + Sync>,
    record_bytes: u64,
}

struct State {
    counted: Counted,
    types: BTreeMap<(TenantId, EventType), Totals>,
    reader: Option<Box<dyn SourceReader>>,
    saved: Instant,
    changed: bool,
    /// Decided, and not durable yet.
    step: Option<Step>,
    known: Option<KnownIds>,
    /// The ids of the windows are known.
    learned: bool,
    /// Nothing more can be written down.
    full: bool,
}

/// What was read on, and not counted yet.
#[derive(Default)]
struct Step {
    as_of: u64,
    lost: u64,
    last: Option<LastSeen>,
    types: Tally,
    /// Duplicates that are not written down yet.
    found: Vec<Offset>,
    /// What that is, to be written.
    change: Change,
    bytes: u64,
}

/// How the ids of a partition are remembered by its ledger.
pub(super) struct Remembering {
    /// `None`: they are not.
    pub known: Option<KnownIds>,
    /// How many at most, asked again and again.
    pub ids_max: Arc<dyn Fn() -> usize + Send + Sync>,
    /// What was found to be there twice takes no more memory than this; then nothing more is dropped.
    pub record_bytes: u64,
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

impl From<&LastSeen> for Last {
    fn from(seen: &LastSeen) -> Self {
        let LastSeen { offset, base_id, index } = seen;
        Self { offset: offset.0, request: hex::encode(base_id), index: *index }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    tenant: TenantId,
    event_type: EventType,
    accepted: u64,
    dead_lettered: u64,
    #[serde(default)]
    deduplicated: u64,
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
    /// What was found to be there twice cannot be read.
    #[error("what is kept of the partition's duplicates cannot be used: {0}")]
    Duplicates(#[from] RecordError),
    /// Nor a sink's state.
    #[error("{0} cannot be used: {1}")]
    Sink(String, StateFault),
}

/// Counting goes no further now.
#[derive(Debug, thiserror::Error)]
pub(super) enum CountError {
    /// The log cannot be read: try again.
    #[error(transparent)]
    Log(#[from] SourceError),
    /// What was decided cannot be written down.
    #[error("what was found to be there twice cannot be written down: {0}")]
    Save(#[from] SaveError),
}

impl Ledger {
    /// Goes on from what is kept.
    pub fn open(
        log: Arc<dyn LogSource>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        remembering: Remembering,
    ) -> Result<Self, LedgerError> {
        let key = format!("books/{}", log.partition());
        let form = |cause: String| LedgerError::Form { key: key.clone(), cause };
        let mut counted = match store.get(&key) {
            None => Counted { format: FORMAT, ..Counted::default() },
            Some(text) => serde_json::from_slice(&text).map_err(|error| form(error.to_string()))?,
        };
        if counted.format != FORMAT {
            return Err(form(format!("format {}", counted.format)));
        }
        is_same_topic(&*log, &counted)?;
        let rows = std::mem::take(&mut counted.types).into_iter();
        let types = rows.map(Row::split).collect();
        let decisions = decisions(&*log, &*store, &counted)?;
        let Remembering { known, ids_max, record_bytes } = remembering;
        let told = known.as_ref().map(KnownIds::status);
        let state = Mutex::new(State {
            counted,
            types,
            reader: None,
            saved: Instant::now(),
            changed: false,
            step: None,
            known,
            learned: false,
            full: false,
        });
        let decisions = Arc::new(decisions);
        Ok(Self { log, store, clock, key, decisions, state, told, ids_max, record_bytes })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is decided of the partition.
    pub fn decisions(&self) -> &Arc<Decisions> {
        &self.decisions
    }

    /// What is remembered of ids; `None`: nothing.
    pub fn dedup(&self) -> Option<DedupStatus> {
        let told = self.told.as_ref()?;
        Some(told.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// True where duplicates are not dropped any more, since too many were.
    pub fn is_full(&self) -> bool {
        self.record_bytes <= self.decisions.records().bytes()
    }

    /// Counts and decides up to `end`, until `until` or as long as `go_on` says; blocks while it reads.
    pub fn count_up_to(
        &self,
        end: Offset,
        until: Option<Instant>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<(), CountError> {
        let mut state = self.state();
        let state = &mut *state;
        loop {
            self.settle(state)?;
            self.pass_gone(state);
            let late = until.is_some_and(|until| until <= Instant::now());
            if end.0 <= state.counted.as_of || late || !go_on() || !self.learn(state, &mut go_on)? {
                return Ok(());
            }
            let read = self.read_on(state, end);
            let moved = state.step.is_some();
            self.settle(state)?;
            read?;
            if !moved {
                return Ok(());
            }
        }
    }

    /// Kafka's retention took what nobody had counted.
    fn pass_gone(&self, state: &mut State) {
        let earliest = self.log.earliest();
        if earliest.0 <= state.counted.as_of {
            return;
        }
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
        self.decisions.reach(earliest);
    }

    /// True once the ids of the windows are known, which is needed only to decide.
    fn learn(
        &self,
        state: &mut State,
        go_on: &mut impl FnMut() -> bool,
    ) -> Result<bool, SourceError> {
        let Some(known) = &mut state.known else { return Ok(true) };
        if state.learned {
            return Ok(true);
        }
        let ids_max = (self.ids_max)();
        known.set_ids_max(ids_max);
        let records = self.decisions.records();
        let (to, clock) = (self.decisions.to(), self.clock.now());
        let from = Learn { log: &*self.log, records: &records, to, clock };
        let began = Instant::now();
        state.learned = learn(known, &from, ids_max, go_on)?;
        known.tell();
        let partition = self.log.partition().0;
        tracing::info!(partition, took = ?began.elapsed(), "read back which ids are known");
        Ok(state.learned)
    }

    /// Reads on, and decides what nobody has decided yet; what came of it is in `step`, also where
    /// reading ends with an error.
    fn read_on(&self, state: &mut State, end: Offset) -> Result<(), SourceError> {
        let (began, from, clock) = (Instant::now(), state.counted.as_of, self.clock.now());
        let mut step = Step { as_of: from, ..Step::default() };
        let done = loop {
            let at = step.as_of;
            let full = STEP_EVENTS <= at - from || STEP_BYTES <= step.bytes;
            if end.0 <= at || full || STEP_FOR <= began.elapsed() {
                break Ok(());
            }
            let next = match &mut state.reader {
                Some(reader) => reader.next(),
                None => match self.log.read_from(Offset(at)) {
                    Ok(reader) => {
                        state.reader = Some(reader);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match next {
                Ok(Some(entry)) => self.add(&mut state.known, clock, &mut step, &entry),
                Ok(None) => break Ok(()),
                Err(error) => {
                    state.reader = None;
                    break Err(error);
                }
            }
        };
        if from < step.as_of {
            let partition = self.log.partition();
            step.change = self.decisions.records().change(partition, &step.found);
            state.step = Some(step);
        }
        done
    }

    fn add(
        &self,
        known: &mut Option<KnownIds>,
        clock: ReceivedAt,
        step: &mut Step,
        entry: &SourceEntry,
    ) {
        let frame = match entry {
            SourceEntry::Frame(frame) => frame,
            SourceEntry::Quarantined(range) => {
                step.as_of = range.to().0;
                step.lost += range.count();
                return;
            }
            SourceEntry::Empty(range) => {
                step.as_of = range.to().0;
                return;
            }
        };
        step.as_of = frame.end().0;
        step.bytes += frame.body.len() as u64;
        let decided = frame.base < self.decisions.to();
        let found = &mut step.found;
        let mut is_duplicate = |tenant: &str, record: &RecordView<'_>| {
            let offset = record.offset(frame.base);
            if decided {
                return self.decisions.records().contains(offset);
            }
            let Some(known) = known else { return false };
            let is_known = known.is_known(tenant, record, frame.received_at, clock);
            let dropped = is_known && !self.is_full();
            if dropped {
                found.push(offset);
            }
            dropped
        };
        match count(&frame.body, frame.base, &mut step.types, &mut is_duplicate) {
            Some(last) => step.last = Some(last),
            None => step.lost += u64::from(frame.count),
        }
    }

    /// Makes durable what was decided, then counts and shows it. Where that fails, exactly this is tried
    /// again first: it may be there already.
    fn settle(&self, state: &mut State) -> Result<(), SaveError> {
        let Some(step) = &state.step else { return Ok(()) };
        if !step.change.is_empty() {
            self.store.put_all(&step.change)?;
        }
        let Some(step) = state.step.take() else { return Ok(()) };
        if !step.found.is_empty() {
            self.decisions.change(|records| records.add(&step.found));
            metrics::kafka_deduplicated_events(
                &self.log.partition().to_string(),
                step.found.len() as u64,
            );
            if self.is_full() && !std::mem::replace(&mut state.full, true) {
                tracing::error!(
                    partition = self.log.partition().0,
                    "too many events came twice: what comes twice from here on is not dropped until retention has removed the old ones"
                );
            }
        }
        state.counted.as_of = step.as_of;
        state.counted.lost += step.lost;
        if let Some(last) = &step.last {
            state.counted.last = Some(last.into());
        }
        for (key, totals) in step.types.finish() {
            crate::books::Counts::merge(state.types.entry(key).or_default(), &totals);
        }
        state.changed = true;
        self.decisions.reach(Offset(step.as_of));
        Ok(())
    }

    /// Writes it where it changed: now, or where the last time is long ago. What was found to be there
    /// twice and is gone by now is forgotten.
    pub fn save(&self, now: bool) -> Result<(), SaveError> {
        let mut state = self.state();
        if let Some(known) = &mut state.known {
            known.set_ids_max((self.ids_max)());
            known.tell();
        }
        if !state.changed || (!now && state.saved.elapsed() < SAVE_EVERY) {
            return Ok(());
        }
        let mut counted = state.counted.clone();
        counted.types = state.types.iter().map(Row::of).collect();
        let text = serde_json::to_vec(&counted).map_err(|e| SaveError::Io(e.into()))?;
        let (partition, earliest) = (self.log.partition(), self.log.earliest());
        let mut change = self.decisions.records().old(partition, earliest);
        change.push((self.key.clone(), Some(text)));
        self.store.put_all(&change)?;
        self.decisions.change(|records| records.forget_old(earliest));
        state.full = self.is_full();
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

    /// Up to where it was counted.
    pub fn as_of(&self) -> Offset {
        Offset(self.state().counted.as_of)
    }

    pub fn log(&self) -> &Arc<dyn LogSource> {
        &self.log
    }
}

impl Row {
    fn of(((tenant, event_type), totals): (&(TenantId, EventType), &Totals)) -> Self {
        let (tenant, event_type) = (tenant.clone(), event_type.clone());
        let Totals { accepted, dead_lettered, deduplicated } = *totals;
        Self { tenant, event_type, accepted, dead_lettered, deduplicated }
    }

    fn split(self) -> ((TenantId, EventType), Totals) {
        let Self { tenant, event_type, accepted, dead_lettered, deduplicated } = self;
        ((tenant, event_type), Totals { accepted, dead_lettered, deduplicated })
    }
}

/// What is kept of the duplicates, and how far all is decided.
fn decisions(
    log: &dyn LogSource,
    store: &dyn Store,
    counted: &Counted,
) -> Result<Decisions, LedgerError> {
    let partition = log.partition();
    let mut records = Records::default();
    for key in store.keys() {
        if Records::is_piece(partition, &key)
            && let Some(value) = store.take(&key)
        {
            records.load(partition, &key, &value)?;
        }
    }
    let to = decided_up_to(store, partition, Offset(counted.as_of), &records)
        .map_err(|(key, fault)| LedgerError::Sink(key, fault))?;
    Ok(Decisions::new(records, to))
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
        && count(&frame.body, frame.base, &mut Tally::default(), &mut |_, _| false)
            .is_some_and(|seen| Last::from(&seen) == *last)
    {
        return Ok(());
    }
    Err(other(format!("at offset {} there is another event", last.offset)))
}
