//! Of a client's id only a 128-bit keyed hash is kept, over tenant, event type and the id itself.
//!
//! The key is the partition's own and random: nobody outside can make two ids collide, and what was
//! remembered before a start means the same after it. A dead letter's hash is another than that of an
//! accepted event under the same id, and one tells the other.

use std::{hash::Hasher, sync::Arc};

use siphasher::sip128::{Hasher128, SipHasher13};
use tidegate_event::{BatchView, EncodedBatch, RecordView};

use super::windows::{Class, Windows};

/// Turns the hash of an accepted event into that of a dead letter, and back.
const DEAD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C834;

/// One client's id in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The event's place in the batch.
    pub position: u32,
    /// The event's place in the request.
    pub index: u32,
    pub(super) class: Class,
    pub(super) dead: bool,
    /// As of an accepted event.
    pub(super) live: u128,
}

impl Key {
    /// The hash that is remembered of it.
    pub(super) fn hash(&self) -> u128 {
        if self.dead { self.live ^ DEAD } else { self.live }
    }
}

/// Makes keys; anybody may, on any thread.
#[derive(Clone, Debug)]
pub struct Keyring {
    key: [u8; 16],
    windows: Arc<Windows>,
}

impl Keyring {
    pub(super) fn new(key: [u8; 16], windows: Arc<Windows>) -> Self {
        Self { key, windows }
    }

    /// The keys of a batch's events that came with an id and whose type is remembered, in order.
    /// Empty for a batch that cannot be read: it is then appended as it is.
    pub fn keys(&self, batch: &EncodedBatch) -> Vec<Key> {
        if batch.has_client_ids { self.keys_of(&batch.body) } else { Vec::new() }
    }

    pub(super) fn keys_of(&self, body: &[u8]) -> Vec<Key> {
        let Ok(view) = BatchView::parse(body) else { return Vec::new() };
        let classes: Vec<_> = view.types.iter().map(|t| self.windows.class(t.name)).collect();
        if classes.iter().all(Option::is_none) {
            return Vec::new();
        }
        let key = |r: RecordView<'_>| {
            let class = classes.get(r.type_index).copied().flatten()?;
            let live = self.hash(view.tenant, r.kind.name, r.client_id?);
            Some(Key { position: r.position, index: r.index, class, dead: r.dead.is_some(), live })
        };
        view.records().filter_map(Result::ok).filter_map(key).collect()
    }

    #[cfg(feature = "kafka")]
    /// The key of one event, if it came with an id and its type is remembered.
    pub(super) fn key_of(&self, tenant: &str, record: &RecordView<'_>) -> Option<Key> {
        let id = record.client_id?;
        let class = self.windows.class(record.kind.name)?;
        let live = self.hash(tenant, record.kind.name, id);
        let (position, index) = (record.position, record.index);
        Some(Key { position, index, class, dead: record.dead.is_some(), live })
    }

    fn hash(&self, tenant: &str, event_type: &str, id: &str) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        for part in [tenant, event_type] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.write(id.as_bytes());
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, time::Duration};

    fn ring(key: u8) -> Keyring {
        let windows = Windows::new(Duration::from_secs(1), &BTreeMap::new());
        Keyring::new([key; 16], Arc::new(windows))
    }

    #[test]
    fn a_hash_depends_on_all_its_parts() {
        let hash = ring(1).hash("a", "b", "c");
        assert_eq!(hash, ring(1).hash("a", "b", "c"));
        for other in [
            ring(1).hash("ab", "", "c"),
            ring(1).hash("a", "bc", ""),
            ring(1).hash("a", "b", "d"),
            ring(2).hash("a", "b", "c"),
        ] {
            assert_ne!(hash, other);
        }
    }

    #[test]
    fn a_dead_letter_has_another_hash_than_an_accepted_event_of_the_same_id() {
        let key = Key { position: 0, index: 0, class: 0, dead: false, live: 7 };
        assert_ne!(key.hash(), Key { dead: true, ..key }.hash());
        assert_eq!(key.hash(), 7);
    }
}
