//! Remembers the ids that clients sent, each for the window of its event type.
//!
//! | file | what for |
//! | --- | --- |
//! | `windows` | how long which type's ids are remembered |
//! | `keys` | what is kept of an id |
//! | `memory` | the ids, bounded in number |
//! | `index` | the same on disk, so that a start need not read the log |
//! | `load` | what a start makes of that |
//! | `known` | the ids of a log that is only read here (Kafka's) |
//! | `rebuild` | what a start reads from the log: what the index does not cover |
//! | `slice` | the index's bytes |
//!
//! An id is in the memory of a later group, and in the index, only once its event is durable. What is
//! promised of all this: docs/deduplication.md.

mod index;
mod keys;
#[cfg(feature = "kafka")]
mod known;
mod load;
mod memory;
mod rebuild;
mod slice;
#[cfg(test)]
mod tests;
mod windows;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use tidegate_event::{Offset, Partition, ReceivedAt};

use super::WriterSettings;
use crate::{
    faults::{Bug, planted},
    log::{LogHandle, ReadError},
    metrics,
};
use index::{Index, Shelf};
use load::{Fit, Found, Loaded};
use memory::{Memory, NEVER};
use windows::Windows;

/// More slices than this, left by many starts, are made one.
const SLICES_MAX: usize = 64;

pub(super) use keys::{Key, Keyring};
#[cfg(feature = "kafka")]
pub(crate) use known::KnownIds;

/// One window of a partition's ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DedupWindow {
    /// How long ids should be remembered.
    pub window_seconds: u64,
    /// How long they are: less where `log.dedup_ids` is too small for what comes.
    pub kept_seconds: u64,
}

/// What a partition remembers of clients' ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DedupStatus {
    /// Which partition.
    pub partition: Partition,
    /// How many ids it remembers.
    pub ids: u64,
    /// How many at most.
    pub ids_bound: u64,
    /// Each length that is configured; none: ids are not deduplicated.
    pub windows: Vec<DedupWindow>,
}

/// Why the ids of the window are not known.
#[derive(Debug, thiserror::Error)]
pub enum DedupError {
    /// The log cannot be read for what the index lacks.
    #[error("the log cannot be read for the ids it holds")]
    Log(#[source] ReadError),
    /// The index cannot be listed, or what is wrong in it cannot be removed.
    #[error("the index of ids cannot be used")]
    Index(#[source] io::Error),
}

/// The ids seen of late, in memory and on disk.
pub(super) struct Dedup {
    memory: Memory,
    index: Option<Index>,
    partition: Partition,
    teller: Teller,
}

/// Says how far back a partition's ids are known.
struct Teller {
    partition: Partition,
    label: String,
    /// It was said that some are forgotten too early.
    told: bool,
    status: Arc<Mutex<DedupStatus>>,
}

impl Dedup {
    /// Remembers what the index and the log have of the windows. `end`: where the log ended before
    /// anything was left out behind it. With it what makes keys, unless ids are not remembered.
    pub fn open(
        log: &LogHandle,
        settings: &WriterSettings,
        now: ReceivedAt,
        end: Offset,
    ) -> Result<(Self, Option<Keyring>), DedupError> {
        let windows = Windows::new(settings.dedup_window, &settings.dedup_windows);
        let on = settings.dedup_ids > 0 && !windows.lengths().is_empty();
        let lengths = if on { windows.lengths() } else { &[] };
        let partition = log.partition();
        let mut dedup = Self {
            memory: Memory::new(lengths, settings.dedup_ids),
            index: None,
            partition,
            teller: Teller::new(partition),
        };
        let keyring = on.then(|| Keyring::new(log.key(), Arc::new(windows.clone())));
        if let Some(keyring) = &keyring {
            dedup.recall(log, &windows, keyring, now.0, end)?;
        }
        dedup.publish(now.0);
        Ok((dedup, keyring))
    }

    fn recall(
        &mut self,
        log: &LogHandle,
        windows: &Windows,
        keyring: &Keyring,
        now: i64,
        end: Offset,
    ) -> Result<(), DedupError> {
        if planted(Bug::IdsForgotten) {
            return Ok(());
        }
        let (storage, dir) = (log.storage(), log.dir().join("dedup"));
        storage.create_dir_all(&dir).map_err(DedupError::Index)?;
        let mark = windows.mark(log.key(), log.log_id(), self.partition.0);
        // What lay in damage is lost and must be let in again. Older than every window, nobody asks.
        let longest = windows.lengths().iter().copied().max().unwrap_or(0);
        let since = log.offset_at(ReceivedAt(now.saturating_sub(longest)));
        let end = log.first_damage(since).map_or(end.0, |damage| damage.0.min(end.0));
        let fit = Fit { mark, windows: windows.lengths(), now, end };
        let loaded = load::load(&*storage, &dir, &fit).map_err(DedupError::Index)?;
        let (found, mut ids, whole) = match loaded {
            Loaded::Whole(found, ids) => (found, ids, true),
            Loaded::Not { why, sequence, leftovers } => {
                if log.latest().0 > 0 {
                    tracing::info!(
                        partition = self.partition.0,
                        why,
                        "no index of ids to go by: the log is read instead"
                    );
                }
                let mut shelves: Vec<_> =
                    windows.lengths().iter().map(|_| Shelf::new([].into(), NEVER)).collect();
                if let Some(shelf) = shelves.first_mut() {
                    shelf.leave(leftovers);
                }
                (Found { shelves, sequence, to: 0 }, Vec::new(), false)
            }
        };
        let want = rebuild::Want {
            windows: windows.lengths(),
            now,
            covered: found.to,
            room: self.memory.ids_max().saturating_sub(ids.iter().map(|i| i.seen.len()).sum()),
        };
        let read = rebuild::read(log, keyring, &want).map_err(DedupError::Log)?;
        ids.resize_with(windows.lengths().len(), load::Ids::default);
        let crowded = found.shelves.iter().any(|shelf| shelf.sealed.len() > SLICES_MAX);
        let mut index = Index::new(storage, dir, mark, self.memory.ids_max(), found);
        for ((class, ids), more) in (0..).zip(ids).zip(read.ids) {
            let mut seen = ids.seen;
            seen.extend(&more);
            self.memory.restore(class, seen, ids.lost);
            more.into_iter().for_each(|one| index.push(class, one));
        }
        self.memory.lost_until(read.lost);
        self.memory.evict(now);
        if !whole || crowded {
            index.begin_anew(self.memory.lines(), log.latest().0, now);
        }
        self.index = Some(index);
        Ok(())
    }

    /// True where the id is new; it is known from here on.
    pub fn insert(&mut self, key: &Key, received_at: ReceivedAt) -> bool {
        self.memory.insert(key, received_at)
    }

    /// Forgets the ids that are new since the last [`Dedup::keep`]: their events were not appended.
    pub fn undo(&mut self) {
        self.memory.undo();
    }

    /// The events of the new ids are durable, all before `latest` is.
    pub fn keep(&mut self, latest: Offset, now: ReceivedAt) {
        let index = &mut self.index;
        self.memory.keep(|class, seen| {
            if let Some(index) = index {
                index.push(class, seen);
            }
        });
        if let Some(index) = index.as_mut().filter(|index| index.is_due()) {
            index.write(self.memory.lines(), latest.0, now.0);
        }
    }

    /// Forgets what is past its window and, oldest first, what is too many.
    pub fn evict(&mut self, now: ReceivedAt) {
        let early = self.memory.evict(now.0);
        self.teller.evicted(early);
    }

    /// Brings the index up to `latest`, and says how far back ids are known. `sync`: now, not soon.
    pub fn keep_house(&mut self, latest: Offset, now: ReceivedAt, sync: bool) {
        self.evict(now);
        if let Some(index) = &mut self.index {
            index.write(self.memory.lines(), latest.0, now.0);
            index.keep_house(self.memory.lines(), now.0, sync);
        }
        self.publish(now.0);
    }

    pub fn status(&self) -> Arc<Mutex<DedupStatus>> {
        self.teller.status()
    }

    fn publish(&mut self, now: i64) {
        self.teller.publish(&self.memory, now);
    }
}

impl Teller {
    fn new(partition: Partition) -> Self {
        Self { partition, label: partition.to_string(), told: false, status: Arc::default() }
    }

    fn status(&self) -> Arc<Mutex<DedupStatus>> {
        Arc::clone(&self.status)
    }

    /// So many were forgotten before their window ended.
    fn evicted(&self, early: usize) {
        if early > 0 {
            metrics::dedup_evicted_ids(&self.label, early as u64);
        }
    }

    fn publish(&mut self, memory: &Memory, now: i64) {
        let seconds = |micros: i64| u64::try_from(micros / 1_000_000).unwrap_or(0);
        let windows = memory.lines().iter().map(|line| DedupWindow {
            window_seconds: seconds(line.window),
            kept_seconds: seconds(
                line.shortened(now).map_or(line.window, |lost| now.saturating_sub(lost)),
            ),
        });
        let status = DedupStatus {
            partition: self.partition,
            ids: memory.len() as u64,
            ids_bound: memory.ids_max() as u64,
            windows: windows.collect(),
        };
        let worst =
            status.windows.iter().max_by_key(|w| w.window_seconds.saturating_sub(w.kept_seconds));
        let shortened = memory.lines().iter().any(|line| line.shortened(now).is_some());
        let DedupWindow { window_seconds, kept_seconds } = worst.copied().unwrap_or_default();
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        metrics::dedup_ids(&self.label, signed(status.ids));
        metrics::dedup_shortfall_seconds(
            &self.label,
            signed(window_seconds.saturating_sub(kept_seconds)),
        );
        if shortened != self.told {
            self.told = shortened;
            let partition = self.partition.0;
            if shortened {
                tracing::warn!(
                    partition,
                    window_seconds,
                    kept_seconds,
                    ids = status.ids_bound,
                    "ids are forgotten before their window ends: more come than log.dedup_ids; a resend after that is a second event"
                );
            } else {
                tracing::info!(partition, "ids are remembered for their whole window again");
            }
        }
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
