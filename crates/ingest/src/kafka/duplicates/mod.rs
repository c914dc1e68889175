//! Which offsets of a partition hold an event that was there already, by its id.
//!
//! | file | what for |
//! | --- | --- |
//! | `records` | the offsets that were found, in runs |
//! | `learn` | the ids of the window, read back by a new owner |
//! | `view` | the partition as its sinks read it: without them |
//!
//! An append cannot know what others append. So the owner of a partition decides, once for each offset,
//! in their order, and nobody is shown an offset before it is decided:
//!
//! ```text
//! read on ─▶ decide ─▶ duplicates durable in the partition's state ─▶ shown to every sink
//! ```
//!
//! Why a window comes out the same on every owner and at every sink, whatever clocks, windows and memory
//! of the one or the other are like: what was shown is decided, and of what is decided all duplicates are
//! written down. A new owner takes for decided all below the furthest place that anything durable speaks
//! of (`decided_up_to`: cursors, intents, the books, the duplicates themselves): there an offset is a
//! duplicate if it is written down, and else it is none. What is behind was shown to nobody who made
//! anything durable of it, and is decided anew. Who lost the partition can write nothing down any more,
//! neither a duplicate nor an intent (`state`).

mod learn;
mod records;
#[cfg(test)]
mod tests;
mod view;

use std::{
    sync::{
        Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tidegate_event::{Offset, Partition};

use super::state::Store;
use crate::sink::state::{State, StateFault};

pub(super) use learn::{Learn, learn};
pub(super) use records::{Change, PREFIX, RecordError, Records};
pub(super) use view::DecidedLog;

/// What is decided of one partition.
pub(super) struct Decisions {
    records: RwLock<Records>,
    /// All below is decided.
    to: AtomicU64,
    growing: Mutex<()>,
    grown: Condvar,
}

impl Decisions {
    pub fn new(records: Records, to: Offset) -> Self {
        Self {
            records: RwLock::new(records),
            to: AtomicU64::new(to.0),
            growing: Mutex::default(),
            grown: Condvar::new(),
        }
    }

    pub fn records(&self) -> RwLockReadGuard<'_, Records> {
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the records to what is durable.
    pub fn change<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        change(&mut self.records.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn to(&self) -> Offset {
        Offset(self.to.load(Ordering::Acquire))
    }

    /// All below `to` is decided, and durable as far as it must be.
    pub fn reach(&self, to: Offset) {
        if self.to.fetch_max(to.0, Ordering::AcqRel) < to.0 {
            drop(self.growing.lock().unwrap_or_else(PoisonError::into_inner));
            self.grown.notify_all();
        }
    }

    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |(): &mut ()| self.to() <= seen;
        drop(self.grown.wait_timeout_while(growing, timeout, waiting));
        seen < self.to()
    }
}

/// Below this all is decided: the furthest place that anything durable speaks of. `counted`: how far the
/// books go.
///
/// # Errors
/// A sink's state that cannot be read.
pub(super) fn decided_up_to(
    store: &dyn Store,
    partition: Partition,
    counted: Offset,
    records: &Records,
) -> Result<Offset, (String, StateFault)> {
    let mut furthest = counted.max(records.end());
    let own = format!("/{partition}");
    for key in store.keys() {
        if !key.starts_with("sink/") || !key.ends_with(&own) {
            continue;
        }
        let Some(text) = store.get(&key) else { continue };
        let state = State::decode(&text).map_err(|fault| (key, fault))?;
        let held =
            state.held.iter().flat_map(|held| [Some(held.cursor), end(held.intent.as_ref())]);
        let places = held.chain([Some(state.cursor), end(state.intent.as_ref())]);
        furthest = places.flatten().fold(furthest, Offset::max);
    }
    Ok(furthest)
}

fn end(intent: Option<&crate::sink::state::Intent>) -> Option<Offset> {
    intent.map(|intent| intent.window.to())
}
