//! The ids of a partition that is read and not written: for a log whose append cannot know them.
//!
//! Time is the log's own: the latest receive time of what was read, no later than the clock's. So it
//! makes no difference how far behind the reader is.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, de::IgnoredAny};
use tidegate_event::{Partition, ReceivedAt, RecordView};

use super::{DedupStatus, Keyring, Teller, memory::Memory, windows::Windows};
use crate::writer::WriterSettings;

/// Before any event was read: late enough to tell it from what never was.
const BEGINNING: i64 = 0;

/// The ids of the windows, up to where the partition was read.
pub(crate) struct KnownIds {
    memory: Memory,
    keyring: Keyring,
    teller: Teller,
    lengths: Vec<i64>,
    now: i64,
}

impl KnownIds {
    /// None yet. `None`: ids are not remembered.
    pub fn new(settings: &WriterSettings, partition: Partition) -> Option<Self> {
        let windows = Windows::new(settings.dedup_window, &settings.dedup_windows);
        let lengths = windows.lengths().to_vec();
        if !settings.remembers() {
            return None;
        }
        let mut known = Self {
            memory: Memory::new(&lengths, settings.dedup_ids),
            keyring: Keyring::new(rand::random(), Arc::new(windows)),
            teller: Teller::new(partition),
            lengths,
            now: BEGINNING,
        };
        known.tell();
        Some(known)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.memory = Memory::new(&self.lengths, self.memory.ids_max());
        self.now = BEGINNING;
    }

    /// The longest window, in microseconds.
    pub fn longest(&self) -> i64 {
        self.lengths.last().copied().unwrap_or(0)
    }

    /// How many ids are remembered at most, from now on.
    pub fn set_ids_max(&mut self, ids: usize) {
        self.memory.set_ids_max(ids.max(1));
    }

    /// True where no more ids are remembered than now.
    pub fn is_full(&self) -> bool {
        self.memory.ids_max() <= self.memory.len()
    }

    /// Ids received up to then may be missing.
    pub fn lost_until(&mut self, at: ReceivedAt) {
        self.memory.lost_until(at.0);
    }

    /// Whether the event is to be dropped, for its id is known; if not, it is from here on. `clock`: what
    /// time it is now.
    pub fn is_known(
        &mut self,
        tenant: &str,
        record: &RecordView<'_>,
        received_at: ReceivedAt,
        clock: ReceivedAt,
    ) -> bool {
        let Some(key) = self.keyring.key_of(tenant, record) else { return false };
        self.now = self.now.max(received_at.0.min(clock.0));
        self.forget();
        let known = !self.memory.insert(&key, received_at);
        if known && is_redriven(record) {
            self.memory.renew(&key, received_at);
            self.memory.keep(|_, _| {});
            return false;
        }
        // It is durable already.
        self.memory.keep(|_, _| {});
        known
    }

    fn forget(&mut self) {
        let early = self.memory.evict(self.now);
        self.teller.evicted(early);
    }

    /// Brings up to date what is told.
    pub fn tell(&mut self) {
        self.teller.publish(&self.memory, self.now);
    }

    /// What is told.
    pub fn status(&self) -> Arc<Mutex<DedupStatus>> {
        self.teller.status()
    }
}

/// A re-drive is never dropped: that its id is known is the reason for it.
fn is_redriven(record: &RecordView<'_>) -> bool {
    #[derive(Deserialize)]
    struct Note {
        redrive_of: Option<IgnoredAny>,
    }
    record.note.contains("\"redrive_of\"")
        && serde_json::from_str::<Note>(record.note).is_ok_and(|note| note.redrive_of.is_some())
}
