//! Holds what a sink says it stored against the destination, row by row, and writes what is missing there.
//!
//! It reads the log below the sink's cursor, so it and the sink's own threads never write the same
//! rows; a lane that waits alone is looked at up to its own cursor. It moves no cursor and changes no
//! count: the rows were counted as stored, and are again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tidegate_event::{Offset, Partition, ReceivedAt};

use super::{
    LaneRows, Sinks, WriteError,
    desk::Shared,
    pressure::Running,
    promoted::Promotions,
    rows::{Lane, Lanes},
    source::{SourceEntry, SourceError, SourceFrame},
    state::State,
};

/// Bytes of batches looked at at once, at most; a single larger batch passes alone.
const BYTES_MAX: u64 = 4 << 20;
/// How often a repair whose answer was lost is tried again, and the pause before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only this partition.
    pub partition: Option<Partition>,
    /// From this offset on; the earliest that the log has and the sink was to store if absent.
    pub from: Option<Offset>,
    /// Up to this offset, not included; the cursor if absent.
    pub to: Option<Offset>,
    /// Write what is missing. Names this repair: what was lost a second time needs another name.
    pub repair: Option<String>,
    /// The time: rows that the destination drops for their age are not missed.
    pub now: ReceivedAt,
}

/// What the rows of one lane came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Rows that the sink says it stored.
    pub rows: u64,
    /// Of these the destination has none.
    pub missing: u64,
    /// Of these it has more than one.
    pub twice: u64,
    /// Of the missing: written now.
    pub repaired: u64,
    /// Of the missing: what the destination refuses for good.
    pub refused: u64,
}

impl Found {
    /// Adds what others came to.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.missing += other.missing;
        self.twice += other.twice;
        self.repaired += other.repaired;
        self.refused += other.refused;
    }

    /// True where the destination has now each row once.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.twice == 0 && self.missing == self.repaired
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    /// Which partition.
    pub partition: Partition,
    /// All before it was looked at.
    pub offset: Offset,
    /// Where it ends.
    pub to: Offset,
    /// What was found in all partitions so far.
    pub found: Found,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Reconciled {
    /// The offsets that were looked at, of each partition.
    pub windows: Vec<(Partition, Offset, Offset)>,
    /// What each lane came to.
    pub lanes: BTreeMap<Lane, Found>,
}

impl Reconciled {
    /// All lanes together.
    #[must_use]
    pub fn total(&self) -> Found {
        let mut total = Found::default();
        self.lanes.values().for_each(|found| total.add(*found));
        total
    }
}

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// No sink has this name.
    #[error("there is no sink {0:?}")]
    NoSink(String),
    /// A sink of this kind cannot be asked which rows it has.
    #[error("a sink of kind {0:?} cannot be asked which rows it has; kind \"clickhouse\" can")]
    Kind(String),
    /// The offsets make no sense; the message says what would.
    #[error("{0}")]
    Window(String),
    /// It is being done already.
    #[error("this sink is being reconciled already")]
    Busy,
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] SourceError),
    /// The list of what the sink set aside cannot be read.
    #[error("what the sink set aside cannot be read: {0}")]
    Quarantine(std::io::Error),
    /// The destination does not answer, or something else is there.
    #[error("{lane}: {error}")]
    Destination {
        /// The lane that was being looked at.
        lane: Lane,
        /// What the destination said.
        error: WriteError,
    },
    /// Nobody waits for the answer any more.
    #[error("given up: nobody waits for the answer any more")]
    Unwanted,
}

impl Sinks {
    /// Looks at one sink's rows; `tell` hears how far it is and says whether to go on. Blocks.
    ///
    /// # Errors
    /// [`ReconcileError`]; what was repaired until then stays.
    pub fn reconcile(
        &self,
        name: &str,
        wanted: &Wanted,
        tell: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Reconciled, ReconcileError> {
        let running = self.sinks.iter().find(|sink| sink.config.name == name);
        let running = running.ok_or_else(|| ReconcileError::NoSink(name.to_owned()))?;
        if !running.sink.can_reconcile() {
            return Err(ReconcileError::Kind(running.config.kind.clone()));
        }
        let _one_at_a_time = running.reconciling.try_lock().map_err(|_| ReconcileError::Busy)?;
        let aside = running.quarantine.places().map_err(ReconcileError::Quarantine)?;
        // Those rows are a shadow's now, of another lane and other values maybe.
        let promotions = self.promotions(name).map_err(ReconcileError::Quarantine)?;
        let mut done = Reconciled::default();
        let mut looked_at = false;
        for shared in &running.partitions() {
            if wanted.partition.is_some_and(|only| only != shared.log.partition()) {
                continue;
            }
            looked_at = true;
            Look {
                running,
                shared,
                wanted,
                aside: &aside,
                promotions: &promotions,
                done: &mut done,
                tell: &mut *tell,
            }
            .run()?;
        }
        if !looked_at {
            return Err(ReconcileError::Window("there is no such partition".to_owned()));
        }
        Ok(done)
    }
}

/// One partition's turn.
struct Look<'a> {
    running: &'a Running,
    shared: &'a Arc<Shared>,
    wanted: &'a Wanted,
    aside: &'a HashSet<(String, u32, u64)>,
    promotions: &'a Promotions,
    done: &'a mut Reconciled,
    tell: &'a mut dyn FnMut(Progress) -> bool,
}

impl Look<'_> {
    fn run(&mut self) -> Result<(), ReconcileError> {
        let log = &self.shared.log;
        // Held before the state is read, so that retention cannot pass in between.
        let mut hold = log.hold(&format!("reconcile {}", self.shared.name));
        let state = self.shared.board().state.clone();
        let (from, to) = bounds(self.wanted, &state, log.earliest())?;
        hold.advance(from);
        let (mut at, mut reader) = (from, log.read_from(from)?);
        while at < to {
            let mut frames: Vec<SourceFrame> = Vec::new();
            let mut bytes = 0;
            while at < to && bytes < BYTES_MAX {
                match reader.next()? {
                    None => break,
                    Some(SourceEntry::Quarantined(range) | SourceEntry::Empty(range)) => {
                        at = range.to();
                    }
                    Some(SourceEntry::Frame(frame)) => {
                        at = frame.end();
                        bytes += frame.body.len() as u64;
                        frames.push(frame);
                    }
                }
            }
            if frames.is_empty() && at < to {
                let cause = format!("it ends at {at}, before {to}");
                return Err(SourceError::Read { cause }.into());
            }
            let _room = self.room(bytes)?;
            self.frames(&frames, &state, from, to)?;
            hold.advance(at);
            let partition = self.shared.log.partition();
            let progress = Progress { partition, offset: at.min(to), to, found: self.done.total() };
            if !(self.tell)(progress) {
                return Err(ReconcileError::Unwanted);
            }
        }
        self.done.windows.push((self.shared.log.partition(), from, to));
        Ok(())
    }

    /// Room in the sinks' part of the memory, once there is some.
    fn room(&mut self, bytes: u64) -> Result<super::memory::Aside, ReconcileError> {
        loop {
            if let Some(room) = self.shared.memory.aside(bytes) {
                self.shared.memory.want_nothing();
                return Ok(room);
            }
            std::thread::sleep(Duration::from_millis(20));
            let at = self.shared.board().state.cursor;
            let found = self.done.total();
            let partition = self.shared.log.partition();
            if !(self.tell)(Progress { partition, offset: at, to: at, found }) {
                return Err(ReconcileError::Unwanted);
            }
        }
    }

    fn frames(
        &mut self,
        frames: &[SourceFrame],
        state: &State,
        from: Offset,
        to: Offset,
    ) -> Result<(), ReconcileError> {
        let (log_id, partition) = (self.shared.log.log_id(), self.shared.log.partition());
        let is_stored = |lane: &Lane, offset: Offset| {
            let end = state.held(lane).map_or(to, |held| held.cursor.min(to));
            from <= offset
                && offset < end
                && self.shared.takes(lane)
                && !self.promotions.has(log_id, partition, lane, offset)
                && !self.aside.contains(&(log_id.to_owned(), partition.0, offset.0))
        };
        let lanes = Lanes::sort(frames, is_stored);
        for (lane, rows) in &lanes.rows {
            let rows = LaneRows { log_id, partition, lane, heads: &lanes.heads, rows };
            let found = self
                .lane(&rows)
                .map_err(|error| ReconcileError::Destination { lane: lane.clone(), error })?;
            self.done.lanes.entry(lane.clone()).or_default().add(found);
        }
        Ok(())
    }

    /// One lane's rows. After a lost answer all of them are asked for again: what was written
    /// meanwhile was missing at first and is there now.
    fn lane(&self, rows: &LaneRows<'_>) -> Result<Found, WriteError> {
        let repair = self.wanted.repair.as_deref();
        let mut missing_at_first = None;
        let mut tries = 0;
        loop {
            let found = self.running.sink.reconcile(rows, repair, self.wanted.now);
            match found {
                Ok(found) => {
                    let missing: u64 = missing_at_first.unwrap_or(found.missing);
                    let before = missing.saturating_sub(found.missing);
                    let repaired = found.repaired + before;
                    return Ok(Found { missing, repaired, ..found });
                }
                Err((Some(found), WriteError::Retry { .. })) if tries < TRIES => {
                    missing_at_first.get_or_insert(found.missing);
                }
                Err((None, WriteError::Retry { .. })) if tries < TRIES => {}
                Err((_, error)) => return Err(error),
            }
            tries += 1;
            std::thread::sleep(PAUSE * tries);
        }
    }
}

/// The offsets to be looked at in one partition.
fn bounds(
    wanted: &Wanted,
    state: &State,
    earliest: Offset,
) -> Result<(Offset, Offset), ReconcileError> {
    let partition = state.partition;
    let began = state.began.as_ref().map_or(Offset(0), |began| began.at);
    let (first, last) = (earliest.max(began).min(state.cursor), state.cursor);
    let (from, to) = (wanted.from.unwrap_or(first), wanted.to.unwrap_or(last));
    if from < first || last < to || to < from {
        return Err(ReconcileError::Window(format!(
            "partition {partition}: the sink has stored {first} to {last} of what the log still \
             has; {from} to {to} does not lie within: leave --from and --to away, or name a partition"
        )));
    }
    Ok((from, to))
}
