//! What all threads of one sink and partition share: the board, the state file, how rows are written.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::{Offset, ReceivedAt};
use tokio::sync::watch;

use super::{
    Filter, LaneRows, Policy, Sink, WriteError,
    freshness::{Freshness, Wrote},
    memory::Memory,
    pace::{Meter, Pace, Slow},
    quarantine::{Quarantine, QuarantinedEvent},
    rows::{Head, Lane, Row},
    source::{LogSource, SourceHold},
    state::{Held, SaveError, State, StateStore},
    status::SinkState,
    window::Cut,
};
use crate::{
    clock::Clock,
    faults::{Bug, planted},
    metrics,
};

/// What is told of a thread that panicked.
pub(super) const PANICKED: &str = "its thread panicked; restart the server";
/// The longest wait before orders are looked at again.
pub(super) const TICK: Duration = Duration::from_millis(100);
pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(1);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest wait for a destination that takes nothing: all its lanes wait with it, and a backlog that
/// is full refuses clients until it is tried again.
const OUTAGE_RETRY_MAX: Duration = Duration::from_secs(5);

/// What the threads and the rest of the program share.
pub(super) struct Shared {
    pub name: String,
    pub policy: Policy,
    pub filter: Filter,
    /// Of all partitions of the sink.
    pub freshness: Arc<Freshness>,
    pub log: Arc<dyn LogSource>,
    /// The bound of the backlog in bytes, at its most.
    pub bound_bytes: u64,
    pub memory: Arc<Memory>,
    pub board: Mutex<Board>,
    /// Here, so that retention waits also for a worker that stopped.
    pub hold: Mutex<Box<dyn SourceHold>>,
    /// Write what is there, whatever its age, then end.
    pub flush: AtomicBool,
    /// End at the next safe point.
    pub quit: AtomicBool,
    /// True once the threads have ended.
    pub done: watch::Sender<bool>,
}

/// What is known of one partition's progress.
pub(super) struct Board {
    pub state: State,
    pub phase: SinkState,
    /// When the oldest event behind the cursor was received, as far as it was read.
    pub oldest: Option<ReceivedAt>,
    /// Why what is gathered waits, though it is old enough.
    pub paused: Option<String>,
    /// What is known of held lanes and is no part of the state.
    pub notes: HashMap<Lane, Note>,
    /// Held lanes that a thread is at, and since when.
    pub at_work: BTreeMap<Lane, Instant>,
    /// What the main loop drains while it writes.
    pub drain: Meter,
}

impl Board {
    pub fn new(state: State) -> Self {
        Self {
            state,
            phase: SinkState::Running,
            oldest: None,
            paused: None,
            notes: HashMap::new(),
            at_work: BTreeMap::new(),
            drain: Meter::default(),
        }
    }

    /// Up to where a held lane may be written: the cursor, or the end of the window that is being
    /// written; that one is never cut again, and the lane is no longer the main loop's in it.
    pub fn limit(&self) -> Offset {
        self.state.intent.as_ref().map_or(self.state.cursor, |intent| intent.window.to())
    }

    /// True where the lane waits for being slow.
    pub fn is_slow(&self, lane: &Lane) -> bool {
        let slow = self.notes.get(lane).and_then(|note| note.slow);
        slow.is_some_and(|slow| !slow.is_over(Instant::now()))
    }

    /// When the lane is tried next.
    pub fn retry_in(&self, lane: &Lane) -> Duration {
        let at = self.notes.get(lane).and_then(|note| note.at);
        at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// What is known of a held lane and is forgotten with the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Note {
    /// When it is tried again; `None`: at once.
    pub at: Option<Instant>,
    pub delay: Duration,
    pub error: String,
    pub slow: Option<Slow>,
    /// What it drains by itself.
    pub drain: Meter,
}

impl Shared {
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn takes(&self, lane: &Lane) -> bool {
        self.filter.takes(lane)
    }
}

/// Why a thread ends.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Quit,
    /// All was flushed.
    Drained,
    /// The sink must not go on.
    Fault(String),
}

/// What writing a lane led to.
pub(super) enum LaneOutcome {
    /// The rows stored, and those set aside, and how long the write that stored them took.
    Done { stored: u64, quarantined: u64, took: Duration },
    /// The lane waits alone.
    Held(String),
    /// The backlog reached its bound while the destination took nothing, and the policy is to skip.
    Expired,
}

/// Looks on while a lane is written.
pub(super) trait Onlooker {
    /// An attempt begins.
    fn begins(&self);
    /// An attempt is over; true where the writer may wait for the end of an outage.
    fn ends(&self) -> bool;
    /// An outage took this long.
    fn lost(&self, time: Duration);
}

/// What all threads of one sink and partition work with.
pub(super) struct Desk {
    pub shared: Arc<Shared>,
    pub sink: Arc<dyn Sink>,
    pub clock: Arc<dyn Clock>,
    pub store: Box<dyn StateStore>,
    pub quarantine: Arc<Quarantine>,
    pub cut: Cut,
    pub pace: Mutex<Pace>,
    /// One change of the state at a time.
    pub committing: Mutex<()>,
    /// Why the sink must not go on.
    pub failed: Mutex<Option<String>>,
}

impl Desk {
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.shared.board()
    }

    pub fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all threads of this sink and partition.
    pub fn fail(&self, error: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
    }

    pub fn check_quit(&self) -> Result<(), End> {
        if let Some(error) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(End::Fault(error.clone()));
        }
        if self.shared.quit.load(Ordering::Acquire) { Err(End::Quit) } else { Ok(()) }
    }

    /// Changes the state, durably; tries until it is.
    pub fn commit(&self, change: impl FnOnce(&mut State)) -> Result<(), End> {
        self.commit_if(|state| {
            change(state);
            Ok(true)
        })
        .map(drop)
    }

    /// Changes the state, durably, where `change` says so; nobody else changes it meanwhile.
    pub fn commit_if(
        &self,
        change: impl FnOnce(&mut State) -> Result<bool, End>,
    ) -> Result<bool, End> {
        // A thread that panicked in here: what it left is durable or not, and nobody goes on from it.
        let Ok(_one_at_a_time) = self.committing.lock() else { return Err(End::Quit) };
        self.check_failed()?;
        let mut state = self.board().state.clone();
        if !change(&mut state)? {
            return Ok(false);
        }
        if state.intent.is_none() {
            self.release(&mut state);
        }
        if planted(Bug::HoldBeforeCursor) {
            self.let_go(state.lowest());
        }
        while let Err(error) = state.save(&*self.store) {
            if let SaveError::Fenced = error {
                // Whoever has the partition next goes on from what was saved last.
                self.shared.quit.store(true, Ordering::Release);
                return Err(End::Quit);
            }
            self.wait(&format!("{}: {error}", self.store.place()), BACKOFF_FIRST)?;
        }
        let lowest = state.lowest();
        let name = &self.shared.name;
        metrics::sink_held_lanes(name, i64::try_from(state.held.len()).unwrap_or(i64::MAX));
        self.board().state = state;
        self.let_go(lowest);
        Ok(true)
    }

    fn check_failed(&self) -> Result<(), End> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map_or(Ok(()), |error| Err(End::Fault(error.clone())))
    }

    /// Lanes that have caught up go with the others again. Only while no window is being written:
    /// whose lane is whose in a window is settled when its intent is.
    pub fn release(&self, state: &mut State) {
        let mut board = self.board();
        let cursor = state.cursor;
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut state.held)
            .into_iter()
            .partition(|held| held.cursor < cursor || board.is_slow(&held.lane));
        state.held = stay;
        for held in go {
            board.notes.remove(&held.lane);
            tracing::info!(sink = self.shared.name, lane = %held.lane, "the lane has caught up");
        }
    }

    /// Lets retention take what lies below `lowest`.
    fn let_go(&self, lowest: Offset) {
        self.shared.hold.lock().unwrap_or_else(PoisonError::into_inner).advance(lowest);
    }

    /// Writes one lane's rows, setting the refused ones aside; where the onlooker lets it, waits
    /// while the destination as a whole takes nothing.
    pub fn write_rows<'a>(
        &self,
        lane: &'a Lane,
        heads: &'a [Head<'a>],
        rows: &'a [Row<'a>],
        onlooker: &dyn Onlooker,
    ) -> Result<LaneOutcome, End> {
        let mut rows = Cow::Borrowed(rows);
        let (mut quarantined, mut delay) = (0, BACKOFF_FIRST);
        loop {
            self.check_quit()?;
            if rows.is_empty() {
                return Ok(LaneOutcome::Done { stored: 0, quarantined, took: Duration::ZERO });
            }
            while !self.store.may_write() {
                self.wait("whose the partition is, is not known at the moment", BACKOFF_FIRST)?;
            }
            let (log_id, partition) = (self.shared.log.log_id(), self.shared.log.partition());
            let given = LaneRows { log_id, partition, lane, heads, rows: &rows };
            onlooker.begins();
            let began = Instant::now();
            let written = self.sink.write(&given);
            let patient = onlooker.ends();
            let error = match written {
                Ok(()) => {
                    let (stored, took) = (rows.len() as u64, began.elapsed());
                    self.visible(lane, heads, &rows);
                    return Ok(LaneOutcome::Done { stored, quarantined, took });
                }
                Err(WriteError::Reject { rows: guilty }) => {
                    quarantined += self.set_aside(&given, &guilty)?;
                    let refused: HashSet<_> = guilty.into_iter().map(|(i, _)| i).collect();
                    let mut index = 0..;
                    rows.to_mut().retain(|_| index.next().is_none_or(|i| !refused.contains(&i)));
                    continue;
                }
                Err(WriteError::Conflict { cause }) => {
                    tracing::error!(sink = self.shared.name, %lane, cause, "the lane is held back");
                    return Ok(LaneOutcome::Held(cause));
                }
                Err(WriteError::Retry { cause }) => cause,
            };
            metrics::sink_retries(&self.shared.name, 1);
            onlooker.lost(began.elapsed());
            let Err(outage) = self.sink.probe() else {
                tracing::warn!(sink = self.shared.name, %lane, error, "the lane waits alone");
                return Ok(LaneOutcome::Held(error));
            };
            if !patient {
                return Ok(LaneOutcome::Held(outage));
            }
            if self.must_expire() {
                return Ok(LaneOutcome::Expired);
            }
            self.wait(&outage, delay)?;
            onlooker.lost(delay);
            delay = (delay * 2).min(OUTAGE_RETRY_MAX);
        }
    }

    fn set_aside(&self, given: &LaneRows<'_>, guilty: &[(usize, String)]) -> Result<u64, End> {
        let events: Vec<_> =
            guilty.iter().filter_map(|(i, cause)| QuarantinedEvent::of(given, *i, cause)).collect();
        if events.is_empty() {
            return Err(End::Fault("a sink refused rows it was not given".to_owned()));
        }
        for event in &events {
            let (sink, offset, lane) = (&self.shared.name, event.offset, &event.lane);
            tracing::error!(sink, offset, %lane, cause = event.cause, "an event was set aside");
        }
        while let Err(error) = self.quarantine.add(&events) {
            self.wait(&format!("the quarantine file: {error}"), BACKOFF_FIRST)?;
        }
        Ok(events.len() as u64)
    }

    /// Says why, and sleeps for `delay` or until told to end.
    pub fn wait(&self, error: &str, delay: Duration) -> Result<(), End> {
        let sink = &self.shared.name;
        tracing::warn!(sink, error, retry_in = ?delay, "the sink waits");
        let until = Instant::now() + delay;
        loop {
            self.check_quit()?;
            let left = until.saturating_duration_since(Instant::now());
            self.board().phase = SinkState::Waiting { error: error.to_owned(), retry_in: left };
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    /// Notes when rows became visible.
    pub fn visible(&self, lane: &Lane, heads: &[Head<'_>], rows: &[Row<'_>]) {
        let log = &self.shared.log;
        let wrote = Wrote { log_id: log.log_id(), partition: log.partition(), lane, heads, rows };
        self.shared.freshness.wrote(wrote, self.clock.now());
    }

    /// Tries the lane again later, each time later.
    pub fn put_off(&self, lane: &Lane, error: String) {
        let mut board = self.board();
        let note = board.notes.entry(lane.clone()).or_default();
        note.delay = (note.delay * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
        note.at = Some(Instant::now() + note.delay);
        note.error = error;
    }

    /// Notes how fast a lane was written, by itself or by the main loop.
    pub fn judge(&self, lane: &Lane, bytes: u64, took: Duration, alone: bool) {
        let slow = self.pace().is_slow(&lane.tenant, bytes, took);
        let now = Instant::now();
        let mut board = self.board();
        if !alone && !slow {
            return;
        }
        let note = board.notes.entry(lane.clone()).or_default();
        if alone {
            note.drain.add(bytes, took);
        }
        match &mut note.slow {
            Some(seen) if seen.is_over(now) && slow => *seen = Slow::new(now),
            Some(seen) => seen.wrote(slow, now),
            None if slow => note.slow = Some(Slow::new(now)),
            None => {}
        }
        if slow {
            let sink = &self.shared.name;
            tracing::warn!(sink, %lane, bytes, ?took, "the lane is slow: it is written alone");
            note.error = format!("slow: {bytes} bytes took {:.1} s", took.as_secs_f64());
        }
    }

    /// Moves a held lane's cursor from where its thread found it, unless somebody moved it since.
    pub fn advance(
        &self,
        from: &Held,
        to: Offset,
        change: impl FnOnce(&mut State),
        rows: u64,
        bytes: u64,
    ) -> Result<(), End> {
        let lane = &from.lane;
        self.commit_if(|state| {
            let Some(held) = state.held.iter_mut().find(|held| held.lane == *lane) else {
                return Ok(false);
            };
            if held.cursor != from.cursor {
                // Its rows were skipped meanwhile, and are counted so.
                return Ok(false);
            }
            (held.cursor, held.intent) = (to, None);
            held.pending_rows = held.pending_rows.saturating_sub(rows);
            held.pending_bytes = held.pending_bytes.saturating_sub(bytes);
            change(state);
            Ok(true)
        })?;
        let mut board = self.board();
        if let Some(note) = board.notes.get_mut(lane) {
            (note.at, note.delay) = (None, Duration::ZERO);
            if note.slow.is_none() {
                note.error.clear();
            }
        }
        Ok(())
    }
}
