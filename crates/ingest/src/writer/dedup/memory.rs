//! The ids seen of late: in time, in number, oldest first.
//!
//! Ids of the group that is being appended are known at once and belong to nobody yet: once the group
//! is durable they are [`Memory::keep`]t, and should it fail they are forgotten. Memory: 24 bytes in the
//! queues and 18 to 37 in the set for each id, `ids_max` of them and those of one group at most.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use tidegate_event::ReceivedAt;

use super::{keys::Key, windows::Class};

/// Before all times.
pub(super) const NEVER: i64 = i64::MIN;

/// An id, and when its event was received. Two halves, so that it takes 24 bytes and not 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    hash: [u64; 2],
    /// Microseconds since 1970.
    pub at: i64,
}

impl Seen {
    pub fn new(hash: u128, at: i64) -> Self {
        Self { hash: [(hash >> 64) as u64, hash as u64], at }
    }

    pub fn hash(self) -> u128 {
        let [high, low] = self.hash;
        u128::from(high) << 64 | u128::from(low)
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

/// The ids of one window's length.
#[derive(Debug)]
pub(super) struct Line {
    /// Microseconds.
    pub window: i64,
    order: VecDeque<Seen>,
    /// Ids received at or before this were forgotten although their window had not ended.
    pub lost: i64,
}

impl Line {
    /// Of the ids received since then some are forgotten; `None`: all of the window are known.
    pub fn shortened(&self, now: i64) -> Option<i64> {
        (self.lost >= now.saturating_sub(self.window)).then_some(self.lost)
    }

    pub fn ids(&self) -> impl Iterator<Item = Seen> + '_ {
        self.order.iter().copied()
    }
}

#[derive(Debug)]
pub(super) struct Memory {
    ids_max: usize,
    seen: HashSet<u128, BuildHasherDefault<Hashed>>,
    /// Of ids that stand in a line more than once: how many times besides.
    again: HashMap<u128, u32>,
    lines: Vec<Line>,
    fresh: Vec<(Class, Seen)>,
}

impl Memory {
    /// Windows in microseconds, one for each class.
    pub fn new(windows: &[i64], ids_max: usize) -> Self {
        let line = |window: &i64| Line { window: *window, order: VecDeque::new(), lost: NEVER };
        let lines = windows.iter().map(line).collect();
        let (seen, again) = (HashSet::default(), HashMap::new());
        Self { ids_max, seen, again, lines, fresh: Vec::new() }
    }

    pub fn ids_max(&self) -> usize {
        self.ids_max
    }

    #[cfg(feature = "kafka")]
    /// Keeps so many from the next [`Memory::evict`] on.
    pub fn set_ids_max(&mut self, ids_max: usize) {
        self.ids_max = ids_max;
    }

    /// How many ids are kept.
    pub fn len(&self) -> usize {
        self.lines.iter().map(|line| line.order.len()).sum()
    }

    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// True where the id is new; it is known from here on. An accepted event's id is known for a dead
    /// letter too; a dead letter's is not for an accepted event, so that it may come again mended.
    pub fn insert(&mut self, key: &Key, received_at: ReceivedAt) -> bool {
        let known = key.dead && self.seen.contains(&key.live);
        if known || !self.seen.insert(key.hash()) {
            return false;
        }
        self.fresh.push((key.class, Seen::new(key.hash(), received_at.0)));
        true
    }

    #[cfg(feature = "kafka")]
    /// The id's event is there once more: its window begins anew.
    pub fn renew(&mut self, key: &Key, received_at: ReceivedAt) {
        if !self.seen.insert(key.hash()) {
            *self.again.entry(key.hash()).or_default() += 1;
        }
        self.fresh.push((key.class, Seen::new(key.hash(), received_at.0)));
    }

    /// Forgets the ids that are new since the last [`Memory::keep`]: their events were not appended.
    pub fn undo(&mut self) {
        for (_, seen) in self.fresh.drain(..) {
            self.seen.remove(&seen.hash());
        }
    }

    /// The events of the new ids are durable; `each` is told of every one.
    pub fn keep(&mut self, mut each: impl FnMut(Class, Seen)) {
        for (class, seen) in self.fresh.drain(..) {
            if let Some(line) = self.lines.get_mut(usize::from(class)) {
                line.order.push_back(seen);
            }
            each(class, seen);
        }
    }

    /// Takes over what was remembered before a start, in order. Of two copies of an id the later
    /// counts.
    pub fn restore(&mut self, class: Class, mut all: Vec<Seen>, lost: i64) {
        let seen = &mut self.seen;
        all.reverse();
        all.retain(|one| seen.insert(one.hash()));
        all.reverse();
        if let Some(line) = self.lines.get_mut(usize::from(class)) {
            line.order.extend(all);
            line.lost = line.lost.max(lost);
        }
    }

    /// Ids received up to then may be missing: they could not be learned again.
    pub fn lost_until(&mut self, at: i64) {
        self.lines.iter_mut().for_each(|line| line.lost = line.lost.max(at));
    }

    /// Forgets what is older than its window and, oldest first, what is too many. Returns how many
    /// were forgotten before their window ended.
    pub fn evict(&mut self, now: i64) -> usize {
        for line in &mut self.lines {
            let since = now.saturating_sub(line.window);
            while let Some(old) = line.order.pop_front_if(|seen| seen.at < since) {
                forget(&mut self.seen, &mut self.again, old.hash());
            }
        }
        let excess = self.len().saturating_sub(self.ids_max);
        for _ in 0..excess {
            let fronts = self.lines.iter_mut().filter(|line| !line.order.is_empty());
            let oldest = fronts.min_by_key(|line| line.order.front().map_or(i64::MAX, |f| f.at));
            let Some(line) = oldest else { break };
            if let Some(old) = line.order.pop_front() {
                forget(&mut self.seen, &mut self.again, old.hash());
                line.lost = line.lost.max(old.at);
            }
        }
        excess
    }
}

/// One place of an id is gone.
fn forget(
    seen: &mut HashSet<u128, BuildHasherDefault<Hashed>>,
    again: &mut HashMap<u128, u32>,
    hash: u128,
) {
    match again.get_mut(&hash) {
        None => {
            seen.remove(&hash);
        }
        Some(1) => {
            again.remove(&hash);
        }
        Some(more) => *more -= 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn is_known(memory: &mut Memory, live: u128) -> bool {
        let key = Key { position: 0, index: 0, class: 0, dead: false, live };
        let known = !memory.insert(&key, ReceivedAt(0));
        memory.undo();
        known
    }

    #[test]
    fn of_two_copies_the_later_is_remembered_after_a_start() {
        let mut memory = Memory::new(&[10], 10);
        let seen = |(hash, at)| Seen::new(hash, at);
        memory.restore(0, [(1, 0), (2, 5), (1, 9)].map(seen).into(), NEVER);
        assert_eq!(memory.len(), 2);
        assert_eq!(memory.evict(16), 0);
        assert!(is_known(&mut memory, 1) && !is_known(&mut memory, 2));
    }

    #[test]
    fn ids_are_forgotten_by_time_and_by_number_oldest_first() {
        let mut memory = Memory::new(&[10, 100], 3);
        let key = |class, live| Key { position: 0, index: 0, class, dead: false, live };
        for (class, live, at) in [(1, 1, 0), (0, 2, 1), (1, 3, 2), (0, 4, 3)] {
            assert!(memory.insert(&key(class, live), ReceivedAt(at)));
        }
        memory.keep(|_, _| {});
        assert!(is_known(&mut memory, 1), "known until evicted");
        assert_eq!(memory.evict(3), 1);
        assert!(!is_known(&mut memory, 1), "too many: forgotten");
        assert_eq!(memory.lines().iter().map(|l| l.lost).collect::<Vec<_>>(), [NEVER, 0]);
        assert_eq!(memory.evict(13), 0);
        assert!(is_known(&mut memory, 4), "just within the window");
        assert_eq!(memory.evict(14), 0);
        assert!(!is_known(&mut memory, 4) && is_known(&mut memory, 3), "each has its own window");
    }
}
