//! One window on its way: who writes it, how far it is, and what became of each lane.
//!
//! A thread beside the main loop writes the lanes one by one; the main loop looks on. Should a write
//! outlast its patience, the main loop takes the rest of the window from that thread, which then
//! has only this one lane: see [`Delivery::take_over`] and `crew`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tidegate_event::{BatchView, Offset, ReceivedAt};

use super::{
    desk::{Desk, End, LaneOutcome, Onlooker, PANICKED, TICK},
    memory::{Aside, Memory},
    rows::{Head, Lane, Lanes, Row},
    source::SourceFrame,
    state::Held,
    status::Written,
    window::{Window, lane_intent},
};
use crate::faults::{self, Point};

/// A window whose intent is durable.
pub(super) struct Delivery {
    pub from: Offset,
    pub to: Offset,
    /// Offsets that the log had lost.
    pub lost: u64,
    pub received: Vec<ReceivedAt>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Frames by tenant; let go once they are written.
    groups: BTreeMap<String, Arc<Vec<SourceFrame>>>,
    /// Who writes: counted up at each hand-off.
    turn: u64,
    /// The last lane that is settled; all before it are.
    passed: Option<Lane>,
    current: Option<Current>,
    /// Lanes handed off whose own intent is durable.
    handed: BTreeMap<Lane, Held>,
    /// Its memory, once a write that was handed off may hold it for long.
    aside: Option<Aside>,
    ended: Option<Result<(), End>>,
    done: Done,
}

/// What became of a window's lanes.
#[derive(Default)]
pub(super) struct Done {
    pub outcomes: Vec<(Lane, Written, u64)>,
    /// Lanes that could not be written, and why.
    pub newly_held: Vec<(Held, String)>,
    /// Lanes that were written, and took too long.
    pub slow: Vec<Lane>,
    /// Rows of lanes that wait, by frame.
    pub waiting: BTreeMap<Lane, Vec<Waiting>>,
    /// Frames that are no batch, with their events.
    pub bad: BTreeMap<Offset, u64>,
    /// The window is given up: the destination takes nothing and the backlog is full.
    pub expired: bool,
    /// Bytes of rows written in this window by the main loop.
    pub written_bytes: u64,
    /// Time lost to outages while it was written.
    pub lost_time: Duration,
}

/// Rows of one frame that wait.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub base: Offset,
    pub received_at: ReceivedAt,
    pub rows: u64,
    pub bytes: u64,
}

/// The lane that is being written.
#[derive(Clone)]
struct Current {
    lane: Lane,
    bytes: u64,
    /// When the attempt began; `None` between two attempts.
    since: Option<Instant>,
}

/// A write that outlasts the main loop's patience.
#[derive(Clone)]
pub(super) struct Overdue {
    pub lane: Lane,
    turn: u64,
    /// When the write began.
    pub since: Instant,
}

impl Delivery {
    pub fn new(window: Window) -> Arc<Self> {
        let mut groups: BTreeMap<String, Vec<SourceFrame>> = BTreeMap::new();
        let received = window.frames.iter().map(|frame| frame.received_at).collect();
        for frame in window.frames {
            let view = BatchView::parse(&frame.body);
            let tenant = view.map_or_else(|_| String::new(), |view| view.tenant.to_owned());
            groups.entry(tenant).or_default().push(frame);
        }
        let groups = groups.into_iter().map(|(name, frames)| (name, Arc::new(frames))).collect();
        Arc::new(Self {
            from: window.from,
            to: window.to,
            lost: window.lost,
            received,
            progress: Mutex::new(Progress { groups, ..Progress::default() }),
            changed: Condvar::new(),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of its lanes, once it is written.
    pub fn take_done(&self) -> Done {
        std::mem::take(&mut self.progress().done)
    }

    /// Which turn the next writer has.
    pub fn turn(&self) -> u64 {
        self.progress().turn
    }

    /// Waits a moment; `Some` once the window is written.
    pub fn wait(&self) -> Result<Option<()>, End> {
        let progress = self.progress();
        let waiting = |progress: &mut Progress| progress.ended.is_none();
        let waited = self.changed.wait_timeout_while(progress, TICK, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended.take().transpose()
    }

    /// Writes what is left of the window: a writer's whole work. A lane that is handed off meanwhile
    /// is finished here too.
    pub fn write(&self, desk: &Desk, turn: u64) {
        let _deathbed = Deathbed(self, turn);
        let ended = self.write_groups(desk, turn);
        let mut progress = self.progress();
        if progress.turn == turn {
            progress.ended = Some(ended);
            self.changed.notify_all();
        } else if let Err(End::Fault(error)) = ended {
            desk.fail(error);
        }
    }

    fn write_groups(&self, desk: &Desk, turn: u64) -> Result<(), End> {
        loop {
            let Some((name, frames)) = self.first_group(turn) else { return Ok(()) };
            let mut lanes = Lanes::sort(&frames, |_, offset| self.from <= offset);
            let rows = std::mem::take(&mut lanes.rows);
            for bad in &lanes.bad {
                if self.progress().done.bad.insert(bad.base, bad.count.into()).is_none() {
                    let (offset, events) = (bad.base.0, bad.count);
                    tracing::error!(offset, events, error = %bad.error, "a frame of the log is no batch");
                }
            }
            for (lane, rows) in rows {
                let writer = Writer { delivery: self, turn };
                match self.begin(desk, turn, &lane, &lanes.heads, &rows) {
                    Begin::Passed => {}
                    Begin::Left => return Ok(()),
                    Begin::Write => {
                        let outcome = desk.write_rows(&lane, &lanes.heads, &rows, &writer)?;
                        if !self.settle(desk, turn, &lane, &lanes.heads, &rows, &outcome) {
                            return self.finish_handed(desk, &lane, &rows, outcome);
                        }
                    }
                }
            }
            self.progress().groups.remove(&name);
        }
    }

    fn first_group(&self, turn: u64) -> Option<(String, Arc<Vec<SourceFrame>>)> {
        let progress = self.progress();
        let (name, frames) = progress.groups.first_key_value()?;
        (progress.turn == turn).then(|| (name.clone(), Arc::clone(frames)))
    }

    /// Settles a lane that is not to be written here, else notes that its write begins.
    fn begin(
        &self,
        desk: &Desk,
        turn: u64,
        lane: &Lane,
        heads: &[Head<'_>],
        rows: &[Row<'_>],
    ) -> Begin {
        let mut progress = self.progress();
        if progress.turn != turn {
            return Begin::Left;
        }
        if progress.passed.as_ref().is_some_and(|passed| lane <= passed) {
            return Begin::Passed;
        }
        if !progress.done.outcomes.is_empty() {
            faults::at(Point::HalfDelivered);
        }
        // Nobody releases a lane while a window is being written, so what is held stays held.
        let is_held = desk.board().state.held(lane).is_some();
        if is_held {
            progress.done.waiting.insert(lane.clone(), by_frame(heads, rows));
        } else if progress.done.expired || !desk.shared.takes(lane) {
            progress.done.outcomes.push((lane.clone(), Written::Skipped, rows.len() as u64));
        } else if desk.is_crowded(&lane.tenant) {
            let error = "as many writes as one tenant may have at once do not end".to_owned();
            progress.done.newly_held.push((self.held(lane, heads, rows), error));
        } else {
            let bytes = rows.iter().map(Row::bytes).sum();
            progress.current = Some(Current { lane: lane.clone(), bytes, since: None });
            return Begin::Write;
        }
        progress.passed = Some(lane.clone());
        Begin::Passed
    }

    /// Notes what became of a lane; false where it was handed off meanwhile.
    fn settle(
        &self,
        desk: &Desk,
        turn: u64,
        lane: &Lane,
        heads: &[Head<'_>],
        rows: &[Row<'_>],
        outcome: &LaneOutcome,
    ) -> bool {
        let mut progress = self.progress();
        if progress.turn != turn {
            return false;
        }
        let bytes = progress.current.take().map_or(0, |current| current.bytes);
        progress.passed = Some(lane.clone());
        match outcome {
            LaneOutcome::Done { stored, quarantined, took } => {
                progress.done.outcomes.push((lane.clone(), Written::Stored, *stored));
                progress.done.outcomes.push((lane.clone(), Written::Quarantined, *quarantined));
                progress.done.written_bytes += bytes;
                desk.judge(lane, bytes, *took, false);
                if desk.board().is_slow(lane) {
                    progress.done.slow.push(lane.clone());
                }
                desk.pace().add(&lane.tenant, bytes, *took);
            }
            LaneOutcome::Held(error) => {
                progress.done.newly_held.push((self.held(lane, heads, rows), error.clone()));
            }
            LaneOutcome::Expired => {
                progress.done.expired = true;
                progress.done.outcomes.push((lane.clone(), Written::Skipped, rows.len() as u64));
            }
        }
        true
    }

    /// A lane that failed in this window, with that as its own intent.
    fn held(&self, lane: &Lane, heads: &[Head<'_>], rows: &[Row<'_>]) -> Held {
        Held {
            lane: lane.clone(),
            cursor: self.from,
            intent: lane_intent(heads, rows, self.from, self.to),
            pending_rows: rows.len() as u64,
            pending_bytes: rows.iter().map(Row::bytes).sum(),
            oldest: rows.iter().map(|row| row.received_at(heads).0).min().unwrap_or(0),
        }
    }

    /// The write that the main loop has looked at for long enough, if there is one.
    pub fn overdue(&self, desk: &Desk) -> Option<Overdue> {
        let progress = self.progress();
        let current = progress.current.as_ref()?;
        let since = current.since?;
        let patience = desk.pace().patience(&current.lane.tenant, current.bytes);
        let lane = current.lane.clone();
        (patience <= since.elapsed()).then_some(Overdue { lane, turn: progress.turn, since })
    }

    /// Takes the window from the writer that is at `overdue` for too long, unless it ended that
    /// write just now: this lane is all that it has left. Returns the lane as it is to be held.
    pub fn take_over(&self, overdue: &Overdue) -> Option<Held> {
        let frames = {
            let mut progress = self.progress();
            let current = progress.current.as_ref()?;
            if progress.turn != overdue.turn || current.since != Some(overdue.since) {
                return None;
            }
            progress.turn += 1;
            progress.current = None;
            progress.passed = Some(overdue.lane.clone());
            Arc::clone(progress.groups.get(overdue.lane.tenant.as_str())?)
        };
        let lanes =
            Lanes::sort(&frames, |lane, offset| *lane == overdue.lane && self.from <= offset);
        let rows = lanes.rows.get(&overdue.lane)?;
        Some(self.held(&overdue.lane, &lanes.heads, rows))
    }

    /// The lane's own intent is durable: its writer may settle it.
    pub fn hand_off(&self, held: Held) {
        self.progress().handed.insert(held.lane.clone(), held);
        self.changed.notify_all();
    }

    /// Counts its memory beside the main loop's until all its writers are done; false where there
    /// is no room for that.
    pub fn set_aside(&self, memory: &Arc<Memory>) -> bool {
        let mut progress = self.progress();
        if progress.aside.is_none() {
            progress.aside = memory.hand_off();
        }
        progress.aside.is_some()
    }

    /// The end of a write that was handed off.
    fn finish_handed(
        &self,
        desk: &Desk,
        lane: &Lane,
        rows: &[Row<'_>],
        outcome: LaneOutcome,
    ) -> Result<(), End> {
        let held = loop {
            desk.check_quit()?;
            let mut progress = self.progress();
            if let Some(handed) = progress.handed.remove(lane) {
                break handed;
            }
            let waited = self.changed.wait_timeout(progress, TICK);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        };
        let bytes = rows.iter().map(Row::bytes).sum();
        let settled = desk.settle_alone(&held, self.to, rows.len() as u64, bytes, outcome);
        desk.board().at_work.remove(lane);
        settled
    }
}

/// Says so at once where the writer panics.
struct Deathbed<'a>(&'a Delivery, u64);

impl Drop for Deathbed<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        if std::thread::panicking() && progress.turn == self.1 {
            progress.ended = Some(Err(End::Fault(PANICKED.to_owned())));
            self.0.changed.notify_all();
        }
    }
}

enum Begin {
    /// To be written now.
    Write,
    /// Settled, now or before.
    Passed,
    /// The window is another writer's.
    Left,
}

/// Lets the main loop see since when a write goes on.
struct Writer<'a> {
    delivery: &'a Delivery,
    turn: u64,
}

impl Onlooker for Writer<'_> {
    fn begins(&self) {
        let mut progress = self.delivery.progress();
        if progress.turn == self.turn
            && let Some(current) = &mut progress.current
        {
            current.since = Some(Instant::now());
        }
    }

    fn ends(&self) -> bool {
        let mut progress = self.delivery.progress();
        let ours = progress.turn == self.turn;
        if ours && let Some(current) = &mut progress.current {
            current.since = None;
        }
        ours
    }

    fn lost(&self, time: Duration) {
        self.delivery.progress().done.lost_time += time;
    }
}

/// What waits of each frame that has any of these rows.
fn by_frame(heads: &[Head<'_>], rows: &[Row<'_>]) -> Vec<Waiting> {
    let mut frames: Vec<Waiting> = Vec::new();
    for row in rows {
        let (base, received_at, bytes) = (row.base(heads), row.received_at(heads), row.bytes());
        match frames.last_mut().filter(|last| last.base == base) {
            Some(last) => (last.rows, last.bytes) = (last.rows + 1, last.bytes + bytes),
            None => frames.push(Waiting { base, received_at, rows: 1, bytes }),
        }
    }
    frames
}
