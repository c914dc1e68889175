//! One thread for each sink and partition: read, cut, intent, write, cursor.
//!
//! ```text
//! gather frames ─▶ cut [from, to) ─▶ intent durable ─▶ each lane written ─▶ cursor durable at `to`
//!                                          ▲                    │
//!               after a crash: read [from, to) again,           └─ a lane that cannot be: held, with
//!               same hash or stop ─────────┘                       the window as its own intent
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
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
    quarantine::{Quarantine, QuarantinedEvent},
    rows::{Head, Lane, Lanes, Row, RowsHash},
    source::{LogSource, SourceError, SourceHold},
    state::{Held, Intent, State},
    status::{SinkState, Written},
    window::{Cut, Gathered, Gatherer, Window, reread},
};
use crate::{
    clock::Clock,
    faults::{self, Bug, Point, planted},
    metrics,
    storage::Storage,
};

/// The longest wait before orders are looked at again.
const TICK: Duration = Duration::from_millis(100);
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What the worker and the rest of the program share.
pub(super) struct Shared {
    pub name: String,
    pub policy: Policy,
    pub filter: Filter,
    pub log: Arc<dyn LogSource>,
    /// The bound of the backlog in bytes.
    pub bound_bytes: u64,
    pub board: Mutex<Board>,
    /// Here, so that retention waits also for a worker that stopped.
    pub hold: Mutex<Box<dyn SourceHold>>,
    /// Write what is there, whatever its age, then end.
    pub flush: AtomicBool,
    /// End at the next safe point.
    pub quit: AtomicBool,
    /// True once the thread has ended.
    pub done: watch::Sender<bool>,
}

/// What is known of one partition's progress.
pub(super) struct Board {
    pub state: State,
    pub phase: SinkState,
    /// When the oldest event behind the cursor was received, as far as it was read.
    pub oldest: Option<ReceivedAt>,
    pub retries: HashMap<Lane, Retry>,
}

/// When a held lane is tried again.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub at: Instant,
    pub delay: Duration,
    pub error: String,
}

impl Shared {
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn takes(&self, lane: &Lane) -> bool {
        let listed =
            |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        listed(&self.filter.tenants, lane.tenant.as_str())
            && listed(&self.filter.event_types, lane.event_type.as_str())
    }
}

/// Why a worker ends.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Quit,
    /// All was flushed.
    Drained,
    /// It must not go on.
    Fault(String),
}

/// What writing a lane led to.
pub(super) enum LaneOutcome {
    /// The rows stored, and those set aside.
    Done { stored: u64, quarantined: u64 },
    /// The lane waits alone.
    Held(String),
    /// The backlog reached its bound while the destination took nothing, and the policy is to skip.
    Expired,
}

/// The thread's own.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub sink: Arc<dyn Sink>,
    pub storage: Arc<dyn Storage>,
    pub clock: Arc<dyn Clock>,
    pub path: PathBuf,
    pub quarantine: Arc<Quarantine>,
    pub cut: Cut,
    pub gatherer: Gatherer,
}

/// Says that the thread has ended, also where it panicked.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = "its thread panicked; restart the server".to_owned();
            self.0.board().phase = SinkState::Stopped { error };
        }
        self.0.done.send_replace(true);
    }
}

impl Worker {
    pub fn run(mut self) {
        let farewell = Farewell(Arc::clone(&self.shared));
        let end = self.work();
        let (sink, partition) = (&self.shared.name, self.shared.log.partition().0);
        match end {
            End::Quit => {}
            End::Drained => self.shared.board().phase = SinkState::Drained,
            End::Fault(error) => {
                tracing::error!(sink, partition, error, "the sink stopped; a human must look");
                self.shared.board().phase = SinkState::Stopped { error };
            }
        }
        drop(farewell);
    }

    fn work(&mut self) -> End {
        if let Err(end) = self.recover() {
            return end;
        }
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    /// One round: expire, gather, write, one step of a held lane; then wait for more.
    fn turn(&mut self) -> Result<(), End> {
        self.check_quit()?;
        self.expire_if_full()?;
        let flush = self.shared.flush.load(Ordering::Acquire);
        let target = self.shared.log.latest();
        match self.gatherer.gather(self.clock.now(), flush) {
            Ok(Gathered::Window(window)) => {
                self.shared.board().oldest = window.oldest();
                let Some(intent) = window.intent() else { return Ok(()) };
                faults::at(Point::WindowCut);
                if !planted(Bug::IntentNotDurable) {
                    self.commit(|state| state.intent = Some(intent.clone()))?;
                }
                faults::at(Point::IntentDurable);
                self.deliver(&window)?;
                self.step_held().map(drop)
            }
            Ok(Gathered::AtEnd) => {
                self.shared.board().oldest = self.gatherer.window().oldest();
                let stepped = self.gatherer.window().frames.is_empty() && self.step_held()?;
                if flush && !stepped && target <= self.shared.board().state.cursor {
                    return Err(End::Drained);
                }
                if !stepped {
                    let timeout = self.gatherer.ripe_in().map_or(TICK, |ripe| ripe.min(TICK));
                    let _grown = self.shared.log.wait_past(self.gatherer.read_to(), timeout);
                }
                self.shared.board().phase = SinkState::Running;
                Ok(())
            }
            Err(SourceError::Gone { earliest }) => self.pass_gone(earliest),
            Err(SourceError::Read { cause }) => self.wait(&cause, BACKOFF_FIRST),
        }
    }

    /// After a crash between an intent and its cursor: exactly that window again.
    fn recover(&mut self) -> Result<(), End> {
        let Some(intent) = self.shared.board().state.intent.clone() else { return Ok(()) };
        if planted(Bug::WindowRecut) {
            return self.commit(|state| state.intent = None);
        }
        let window = loop {
            match reread(&*self.shared.log, intent.window, |_| true) {
                Ok(window) => break window,
                Err(SourceError::Gone { earliest }) => return self.pass_gone(earliest),
                Err(SourceError::Read { cause }) => self.wait(&cause, BACKOFF_FIRST)?,
            }
        };
        let again = window.intent();
        if again.as_ref() != Some(&intent) && !planted(Bug::IntentHashIgnored) {
            return Err(End::Fault(format!(
                "the log's window {} is not the one that was promised (hash {}, now {}): nothing \
                 was written",
                intent.window,
                intent.hash,
                again.map_or_else(|| "none".to_owned(), |again| again.hash)
            )));
        }
        self.shared.board().oldest = window.oldest();
        self.deliver(&window)?;
        self.gatherer.restart(window.to);
        Ok(())
    }

    /// Retention took what this sink had not read: it was not running, so nothing held it.
    fn pass_gone(&mut self, earliest: Offset) -> Result<(), End> {
        let cursor = self.shared.board().state.cursor;
        let lost = earliest.since(cursor);
        tracing::error!(
            sink = self.shared.name,
            from = cursor.0,
            to = earliest.0,
            "retention removed events before this sink read them; they are counted as lost"
        );
        self.commit(|state| {
            state.cursor = state.cursor.max(earliest);
            state.intent = None;
            state.lost_in_log += lost;
        })?;
        let cursor = self.shared.board().state.cursor;
        self.gatherer.restart(cursor);
        Ok(())
    }

    /// Writes every lane of a window whose intent is durable, then moves the cursor.
    pub(super) fn deliver(&mut self, window: &Window) -> Result<(), End> {
        if planted(Bug::CursorBeforeWrite) {
            self.commit(|state| (state.cursor, state.intent) = (window.to, None))?;
        }
        let from = window.from;
        let mut lanes = Lanes::sort(&window.frames, |_, offset| from <= offset);
        let rows = std::mem::take(&mut lanes.rows);
        let (mut outcomes, mut newly_held) = (Vec::new(), Vec::new());
        let mut waiting: BTreeMap<Lane, (u64, u64)> = BTreeMap::new();
        let mut expired = false;
        for (lane, rows) in rows {
            if !outcomes.is_empty() {
                faults::at(Point::HalfDelivered);
            }
            let count = rows.len() as u64;
            if self.shared.board().state.held(&lane).is_some() {
                waiting.insert(lane, (count, rows.iter().map(Row::bytes).sum()));
            } else if expired || !self.shared.takes(&lane) {
                outcomes.push((lane, Written::Skipped, count));
            } else {
                match self.write_lane(&lane, &lanes.heads, &rows)? {
                    LaneOutcome::Done { stored, quarantined } => {
                        outcomes.push((lane.clone(), Written::Stored, stored));
                        outcomes.push((lane, Written::Quarantined, quarantined));
                    }
                    LaneOutcome::Held(error) => {
                        newly_held.push((held(&lane, &lanes.heads, &rows, window), error));
                    }
                    LaneOutcome::Expired => {
                        expired = true;
                        outcomes.push((lane, Written::Skipped, count));
                    }
                }
            }
        }
        if expired {
            let events: u64 = outcomes
                .iter()
                .filter(|(_, written, _)| *written == Written::Skipped)
                .map(|(_, _, rows)| rows)
                .sum();
            let (sink, to) = (&self.shared.name, window.to.0);
            tracing::error!(sink, from = from.0, to, events, "a window was given up half written");
            metrics::sink_expired_rows(sink, events);
        }
        let unread: u64 = lanes.bad.iter().map(|bad| u64::from(bad.count)).sum();
        for bad in &lanes.bad {
            let (offset, events) = (bad.base.0, bad.count);
            tracing::error!(offset, events, error = %bad.error, "a frame of the log is no batch");
        }
        faults::at(Point::Delivered);
        self.finish(window, unread, &outcomes, newly_held, &waiting)
    }

    /// Makes the cursor durable, and tells everybody.
    fn finish(
        &mut self,
        window: &Window,
        unread: u64,
        outcomes: &[(Lane, Written, u64)],
        newly_held: Vec<(Held, String)>,
        waiting: &BTreeMap<Lane, (u64, u64)>,
    ) -> Result<(), End> {
        self.commit(|state| {
            state.cursor = window.to;
            state.intent = None;
            state.lost_in_log += window.lost + unread;
            for (lane, written, rows) in outcomes {
                state.count(lane, *written, *rows);
            }
            for held in &mut state.held {
                if let Some((rows, bytes)) = waiting.get(&held.lane) {
                    held.pending_rows += rows;
                    held.pending_bytes += bytes;
                }
            }
            state.held.extend(newly_held.iter().map(|(held, _)| held.clone()));
        })?;
        for (held, error) in newly_held {
            let retry = Retry { at: Instant::now() + BACKOFF_FIRST, delay: BACKOFF_FIRST, error };
            self.shared.board().retries.insert(held.lane, retry);
        }
        self.measure(window, outcomes);
        let mut board = self.shared.board();
        (board.oldest, board.phase) = (None, SinkState::Running);
        Ok(())
    }

    fn measure(&self, window: &Window, outcomes: &[(Lane, Written, u64)]) {
        let name = &self.shared.name;
        let sum = |which: Written| {
            outcomes.iter().filter(|(_, written, _)| *written == which).map(|(_, _, n)| n).sum()
        };
        metrics::sink_rows(name, sum(Written::Stored));
        metrics::sink_quarantined_rows(name, sum(Written::Quarantined));
        let now = self.clock.now();
        let age = |at: ReceivedAt| now.0.saturating_sub(at.0).max(0) as f64 / 1e6;
        if let Some(oldest) = window.oldest() {
            metrics::sink_freshness_seconds(name, age(oldest));
        }
        for frame in &window.frames {
            metrics::sink_visible_seconds(name, age(frame.received_at));
        }
    }

    /// Writes one lane's rows, setting the refused ones aside; waits while the destination as a
    /// whole takes nothing.
    pub(super) fn write_lane<'a>(
        &mut self,
        lane: &'a Lane,
        heads: &'a [Head<'a>],
        rows: &'a [Row<'a>],
    ) -> Result<LaneOutcome, End> {
        let mut rows = std::borrow::Cow::Borrowed(rows);
        let (mut quarantined, mut delay) = (0, BACKOFF_FIRST);
        loop {
            self.check_quit()?;
            if rows.is_empty() {
                return Ok(LaneOutcome::Done { stored: 0, quarantined });
            }
            let (log_id, partition) = (self.shared.log.log_id(), self.shared.log.partition());
            let given = LaneRows { log_id, partition, lane, heads, rows: &rows };
            let error = match self.sink.write(&given) {
                Ok(()) => {
                    return Ok(LaneOutcome::Done { stored: rows.len() as u64, quarantined });
                }
                Err(WriteError::Reject { rows: guilty }) => {
                    let aside: Vec<_> = guilty
                        .iter()
                        .filter_map(|(i, cause)| QuarantinedEvent::of(&given, *i, cause))
                        .collect();
                    if aside.is_empty() {
                        return Err(End::Fault("a sink refused rows it was not given".to_owned()));
                    }
                    self.set_aside(&aside)?;
                    quarantined += aside.len() as u64;
                    let mut index = 0..;
                    let refused: std::collections::HashSet<_> =
                        guilty.into_iter().map(|(i, _)| i).collect();
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
            let Err(outage) = self.sink.probe() else {
                tracing::warn!(sink = self.shared.name, %lane, error, "the lane waits alone");
                return Ok(LaneOutcome::Held(error));
            };
            if self.must_expire() {
                return Ok(LaneOutcome::Expired);
            }
            self.wait(&outage, delay)?;
            delay = (delay * 2).min(BACKOFF_MAX);
        }
    }

    fn set_aside(&mut self, events: &[QuarantinedEvent]) -> Result<(), End> {
        for event in events {
            let (sink, offset, lane) = (&self.shared.name, event.offset, &event.lane);
            tracing::error!(sink, offset, %lane, cause = event.cause, "an event was set aside");
        }
        while let Err(error) = self.quarantine.add(events) {
            self.wait(&format!("the quarantine file: {error}"), BACKOFF_FIRST)?;
        }
        Ok(())
    }

    /// Changes the state, durably; tries until it is.
    pub(super) fn commit(&mut self, change: impl FnOnce(&mut State)) -> Result<(), End> {
        let mut state = self.shared.board().state.clone();
        change(&mut state);
        if planted(Bug::HoldBeforeCursor) {
            self.let_go(state.lowest());
        }
        while let Err(error) = state.save(&*self.storage, &self.path) {
            self.wait(&format!("{}: {error}", self.path.display()), BACKOFF_FIRST)?;
        }
        let lowest = state.lowest();
        let name = &self.shared.name;
        metrics::sink_held_lanes(name, i64::try_from(state.held.len()).unwrap_or(i64::MAX));
        self.shared.board().state = state;
        self.let_go(lowest);
        Ok(())
    }

    /// Lets retention take what lies below `lowest`.
    fn let_go(&self, lowest: Offset) {
        self.shared.hold.lock().unwrap_or_else(PoisonError::into_inner).advance(lowest);
    }

    pub(super) fn check_quit(&self) -> Result<(), End> {
        if self.shared.quit.load(Ordering::Acquire) { Err(End::Quit) } else { Ok(()) }
    }

    /// Says why, and sleeps for `delay` or until told to end.
    pub(super) fn wait(&self, error: &str, delay: Duration) -> Result<(), End> {
        let sink = &self.shared.name;
        tracing::warn!(sink, error, retry_in = ?delay, "the sink waits");
        let until = Instant::now() + delay;
        loop {
            self.check_quit()?;
            let left = until.saturating_duration_since(Instant::now());
            self.shared.board().phase =
                SinkState::Waiting { error: error.to_owned(), retry_in: left };
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

/// A lane that failed in `window`, with that as its own intent.
fn held(lane: &Lane, heads: &[Head<'_>], rows: &[Row<'_>], window: &Window) -> Held {
    let intent = lane_intent(heads, rows, window);
    Held {
        lane: lane.clone(),
        cursor: window.from,
        intent,
        pending_rows: rows.len() as u64,
        pending_bytes: rows.iter().map(Row::bytes).sum(),
        oldest: rows.iter().map(|row| row.received_at(heads).0).min().unwrap_or(0),
    }
}

/// What is promised of one lane's rows in a window.
pub(super) fn lane_intent(heads: &[Head<'_>], rows: &[Row<'_>], window: &Window) -> Option<Intent> {
    let mut hash = RowsHash::default();
    rows.iter().for_each(|row| hash.row(row, heads));
    let (count, hash) = hash.finish();
    let schemas: std::collections::BTreeSet<_> =
        rows.iter().map(|row| row.schema(heads).hash).filter(|hash| *hash != [0; 16]).collect();
    Some(Intent {
        window: tidegate_event::OffsetRange::new(window.from, window.to)?,
        rows: count,
        hash,
        schemas: schemas.into_iter().map(hex::encode).collect(),
    })
}
