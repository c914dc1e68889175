//! What a sink does beside writing: one thread for each sink that has such work.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::{Offset, Partition, ReceivedAt};
use tokio::sync::watch;

use super::{
    Lane, Sink,
    desk::{Shared, TICK},
    freshness::Freshness,
    memory::{Aside, FACTOR},
    status::{JoinStatus, SinkState},
};
use crate::clock::Clock;

/// A sink whose windows wait for more than this is busy: other work waits.
const BUSY_BYTES: u64 = 64 << 20;
/// The part of a partition's memory that this work may take.
const MEMORY_PART: u64 = 4;

/// How often a destination is asked what is visible, and about how many lanes at once.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_MOST: usize = 100;
/// The least time between two turns.
const TURN_LEAST: Duration = Duration::from_millis(20);

/// Work beside writing.
pub trait Upkeep: Send + Sync {
    /// Does some of it; returns when it wants to go on.
    fn turn(&self, turn: &Turn<'_>) -> Duration;

    /// How joining small files does, where the sink does that.
    fn joining(&self) -> Option<JoinStatus> {
        None
    }
}

/// What is known of the sink at one turn.
pub struct Turn<'a> {
    partitions: &'a [Arc<Shared>],
    clock: &'a dyn Clock,
    ends: &'a AtomicBool,
}

/// Memory for one partition's files, until dropped.
pub struct Room {
    _aside: Aside,
    /// How much.
    pub bytes: u64,
}

impl Turn<'_> {
    /// The time.
    pub fn now(&self) -> ReceivedAt {
        self.clock.now()
    }

    /// True once the sink is to end.
    pub fn stop(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// True while the sink has more to write than a window, or its destination takes nothing.
    pub fn busy(&self) -> bool {
        self.partitions.iter().any(|shared| {
            let (cursor, waits) = {
                let board = shared.board();
                (board.state.cursor, !matches!(board.phase, SinkState::Running))
            };
            waits || BUSY_BYTES < shared.log.bytes_since(cursor)
        })
    }

    /// Which log it is.
    pub fn log_id(&self) -> &str {
        self.partitions.first().map_or("", |shared| shared.log.log_id())
    }

    /// All of the lane before it is durably passed and is never written again; `None` while that
    /// cannot be said, or for a partition that is not ours.
    pub fn passed(&self, partition: Partition, lane: &Lane) -> Option<Offset> {
        let shared = self.partitions.iter().find(|s| s.log.partition() == partition)?;
        let board = shared.board();
        if board.at_work.contains_key(lane) {
            return None;
        }
        Some(board.state.held(lane).map_or(board.state.cursor, |held| held.cursor))
    }

    /// Takes memory beside the partition's windows; `None`: not now.
    pub fn room(&self, partition: Partition) -> Option<Room> {
        let shared = self.partitions.iter().find(|s| s.log.partition() == partition)?;
        let bytes = shared.memory.share() / MEMORY_PART;
        Some(Room { _aside: shared.memory.aside(bytes / FACTOR)?, bytes })
    }
}

/// Puts this thread behind all others of the program, for work that may take long.
pub fn step_back() {
    const LAST: i32 = 9;
    // On Linux it counts for the calling thread alone, on top of what it inherited.
    if let Err(error) = rustix::process::nice(LAST) {
        tracing::debug!(%error, "work beside writing runs at the priority of writing");
    }
}

/// Says that the thread has ended, also where it panicked.
pub(super) struct Farewell(pub watch::Sender<bool>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// What a thread beside writing works for.
pub(super) struct Beside {
    pub name: String,
    pub sink: Arc<dyn Sink>,
    pub freshness: Arc<Freshness>,
    /// Those that run here now.
    pub partitions: Arc<Mutex<Vec<Arc<Shared>>>>,
    pub clock: Arc<dyn Clock>,
    /// True once the sink is to end.
    pub ends: Arc<AtomicBool>,
    /// Where others share the log, one that was thought dead may still write what it had begun: files that
    /// were joined meanwhile would be there twice. So the sink's own work is only done where nobody does.
    pub alone: bool,
}

impl Beside {
    /// Gives the sink its turns until it ends.
    pub fn run(&self) {
        let (mut due, mut ask) = (Instant::now(), Instant::now());
        while !self.ends.load(Ordering::Acquire) {
            if due <= Instant::now() {
                due = Instant::now() + self.turn().max(TURN_LEAST);
            }
            if self.sink.asks() && ask <= Instant::now() {
                self.ask();
                ask = Instant::now() + ASK_EVERY;
            }
            let next = if self.sink.asks() { due.min(ask) } else { due };
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(TICK));
        }
    }

    /// One turn of the sink's own work; returns when it wants the next. What begins to need turns later
    /// gets them then.
    fn turn(&self) -> Duration {
        let Some(upkeep) = self.sink.upkeep().filter(|_| self.alone) else { return ASK_EVERY };
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let turn = Turn { partitions: &partitions, clock: &*self.clock, ends: &self.ends };
        upkeep.turn(&turn)
    }

    /// Asks the destination what of the last writes can be read: one question.
    fn ask(&self) {
        let marks = self.freshness.marks(ASK_MOST);
        if marks.is_empty() {
            return;
        }
        match self.sink.are_visible(&marks) {
            Ok(visible) => self.freshness.answered(&marks, &visible, self.clock.now()),
            Err(error) => {
                tracing::debug!(sink = self.name, error, "what is visible could not be asked");
                self.freshness.not_answered(error);
            }
        }
    }
}

/// True where a sink has work beside writing.
pub(super) fn is_needed(sink: &dyn Sink) -> bool {
    sink.asks() || sink.upkeep().is_some()
}
