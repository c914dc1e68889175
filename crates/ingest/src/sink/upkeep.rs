//! What a sink does beside writing: one thread for each sink that has such work, behind all others.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tidegate_event::{Offset, Partition, ReceivedAt};
use tokio::sync::watch;

use super::{
    Lane, Sink,
    desk::{Shared, TICK},
    memory::{Aside, FACTOR},
    status::{JoinStatus, SinkState},
};
use crate::clock::Clock;

/// A sink whose windows wait for more than this is busy: other work waits.
const BUSY_BYTES: u64 = 64 << 20;
/// The part of a partition's memory that this work may take.
const MEMORY_PART: u64 = 4;

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
        let ends = |shared: &Arc<Shared>| {
            shared.quit.load(Ordering::Acquire) || shared.flush.load(Ordering::Acquire)
        };
        self.partitions.iter().any(ends)
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

/// Says that the thread has ended, also where it panicked.
pub(super) struct Farewell(pub watch::Sender<bool>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Gives the sink its turns until it ends.
pub(super) fn run(sink: &dyn Sink, partitions: &[Arc<Shared>], clock: &dyn Clock) {
    let turn = Turn { partitions, clock };
    let mut due = Instant::now();
    while !turn.stop() {
        let Some(upkeep) = sink.upkeep() else { return };
        if due <= Instant::now() {
            due = Instant::now() + upkeep.turn(&turn).max(TURN_LEAST);
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()).min(TICK));
    }
}
