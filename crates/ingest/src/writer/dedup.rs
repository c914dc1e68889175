//! Remembers the ids that clients sent, for a while: in time, in number, in the order they came.
//!
//! Of an id only a 128-bit keyed hash is kept, over tenant, event type, whether the event is a dead
//! letter (so that a mended event may come again under its id) and the id itself. The key is the
//! partition's own and random: nobody outside can make two ids collide, and what was remembered before
//! a start means the same after it. Memory: 32 bytes in the queue and 18 to 37 in the set for each id,
//! `dedup_ids` of them at most.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use siphasher::sip128::{Hasher128, SipHasher13};
use tidegate_event::{BatchView, EncodedBatch, Offset, ReceivedAt};

use crate::log::{Entry, LogHandle, ReadError};

/// One client's id in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The event's place in the batch.
    pub position: u32,
    /// The event's place in the request.
    pub index: u32,
    pub hash: u128,
}

/// Makes keys; anybody may, on any thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyring(pub [u8; 16]);

impl Keyring {
    /// The keys of a batch's events that came with an id, in order. Empty for a batch that cannot be
    /// read: it is then appended as it is.
    pub fn keys(self, batch: &EncodedBatch) -> Vec<Key> {
        if !batch.has_client_ids || batch.bypass_dedup {
            return Vec::new();
        }
        self.keys_of(&batch.body)
    }

    fn keys_of(self, body: &[u8]) -> Vec<Key> {
        let Ok(view) = BatchView::parse(body) else { return Vec::new() };
        let records = view.records().filter_map(Result::ok);
        records
            .filter_map(|r| {
                let hash = self.hash(view.tenant, r.kind.name, r.dead.is_some(), r.client_id?);
                Some(Key { position: r.position, index: r.index, hash })
            })
            .collect()
    }

    fn hash(self, tenant: &str, event_type: &str, dead: bool, id: &str) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        for part in [tenant, event_type] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.write_u8(dead.into());
        hasher.write(id.as_bytes());
        hasher.finish128().as_u128()
    }
}

/// The keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, n: u128) {
        self.0 = n as u64;
    }
}

/// The ids seen of late.
#[derive(Debug)]
pub(super) struct Dedup {
    window_micros: i64,
    ids_max: usize,
    seen: HashSet<u128, BuildHasherDefault<Hashed>>,
    order: VecDeque<(u128, ReceivedAt)>,
}

impl Dedup {
    pub fn new(window: Duration, ids_max: usize) -> Self {
        let window_micros = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        Self { window_micros, ids_max, seen: HashSet::default(), order: VecDeque::new() }
    }

    pub fn is_on(&self) -> bool {
        self.window_micros > 0 && self.ids_max > 0
    }

    /// True where the id is new; it is remembered then.
    pub fn insert(&mut self, hash: u128, received_at: ReceivedAt) -> bool {
        if !self.seen.insert(hash) {
            return false;
        }
        self.order.push_back((hash, received_at));
        true
    }

    /// Forgets the `count` ids remembered last: their events were not appended.
    pub fn undo(&mut self, count: usize) {
        for (hash, _) in self.order.drain(self.order.len().saturating_sub(count)..) {
            self.seen.remove(&hash);
        }
    }

    /// Forgets what is older than the window and, oldest first, what is too many.
    pub fn evict(&mut self, now: ReceivedAt) {
        let oldest = now.0.saturating_sub(self.window_micros);
        let excess = self.order.len().saturating_sub(self.ids_max);
        let mut gone = 0;
        while let Some((hash, _)) =
            self.order.pop_front_if(|(_, at)| gone < excess || at.0 < oldest)
        {
            self.seen.remove(&hash);
            gone += 1;
        }
    }

    /// Remembers what the log holds of the window: reads segments from the newest back, until the
    /// window or the number is full.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn rebuild(
        &mut self,
        log: &LogHandle,
        keyring: Keyring,
        now: ReceivedAt,
    ) -> Result<(), ReadError> {
        if !self.is_on() {
            return Ok(());
        }
        let since = ReceivedAt(now.0.saturating_sub(self.window_micros));
        let first = log.offset_at(since);
        let mut parts: Vec<Vec<(u128, ReceivedAt)>> = Vec::new();
        let (mut count, mut end) = (0, log.latest());
        for base in log.segments().into_iter().rev().filter(|base| *base >= first) {
            if count >= self.ids_max {
                break;
            }
            let part = read_part(log, keyring, (base, end), since)?;
            (count, end) = (count + part.len(), base);
            parts.push(part);
        }
        for (hash, received_at) in parts.into_iter().rev().flatten() {
            self.insert(hash, received_at);
        }
        self.evict(now);
        Ok(())
    }
}

fn read_part(
    log: &LogHandle,
    keyring: Keyring,
    (from, end): (Offset, Offset),
    since: ReceivedAt,
) -> Result<Vec<(u128, ReceivedAt)>, ReadError> {
    let mut part = Vec::new();
    if from >= end {
        return Ok(part);
    }
    let mut reader = log.read_from(from)?;
    while reader.position() < end {
        match reader.next()? {
            Some(Entry::Frame(frame)) if frame.received_at >= since => {
                let keys = keyring.keys_of(&frame.body);
                part.extend(keys.iter().map(|key| (key.hash, frame.received_at)));
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_forgotten_by_time_and_by_number_oldest_first() {
        let mut dedup = Dedup::new(Duration::from_micros(10), 3);
        for n in 0..5u8 {
            assert!(dedup.insert(n.into(), ReceivedAt(n.into())));
        }
        assert!(!dedup.insert(0, ReceivedAt(5)), "known until evicted");
        dedup.evict(ReceivedAt(5));
        assert!(dedup.insert(0, ReceivedAt(5)), "too many: forgotten");
        assert!(!dedup.insert(4, ReceivedAt(5)));
        dedup.evict(ReceivedAt(15));
        assert!(dedup.insert(4, ReceivedAt(15)), "too old: forgotten");
        assert!(!dedup.insert(0, ReceivedAt(15)), "just within the window");
    }

    #[test]
    fn what_was_not_appended_is_forgotten() {
        let mut dedup = Dedup::new(Duration::from_secs(1), 10);
        dedup.insert(1, ReceivedAt(0));
        dedup.insert(2, ReceivedAt(0));
        dedup.insert(3, ReceivedAt(0));
        dedup.undo(2);
        assert!(!dedup.insert(1, ReceivedAt(0)));
        assert!(dedup.insert(2, ReceivedAt(0)) && dedup.insert(3, ReceivedAt(0)));
    }

    #[test]
    fn a_key_depends_on_all_its_parts() {
        let ring = Keyring([1; 16]);
        let hash = ring.hash("a", "b", false, "c");
        assert_eq!(hash, ring.hash("a", "b", false, "c"));
        for other in [
            ring.hash("ab", "", false, "c"),
            ring.hash("a", "bc", false, ""),
            ring.hash("a", "b", true, "c"),
            Keyring([2; 16]).hash("a", "b", false, "c"),
        ] {
            assert_ne!(hash, other);
        }
    }
}
