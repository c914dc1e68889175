//! What was decided last, in memory: sinks that keep up read it here, and not from Kafka a second time.

use std::collections::VecDeque;

use tidegate_event::{Offset, OffsetRange};

use crate::sink::source::SourceEntry;

/// Bytes of one partition's tail at most.
pub(crate) const TAIL_BYTES: u64 = 4 << 20;
/// What an entry takes besides its batch.
const ENTRY_BYTES: u64 = 96;
/// How many are handed out at once.
const PORTION: usize = 256;

/// Entries that follow each other without a gap.
#[derive(Default)]
pub(super) struct Tail {
    entries: VecDeque<SourceEntry>,
    bytes: u64,
}

/// From where to where an entry goes.
pub(super) fn extent(entry: &SourceEntry) -> (Offset, Offset) {
    match entry {
        SourceEntry::Frame(frame) => (frame.base, frame.end()),
        SourceEntry::Quarantined(range) | SourceEntry::Empty(range) => (range.from(), range.to()),
    }
}

fn bytes(entry: &SourceEntry) -> u64 {
    match entry {
        SourceEntry::Frame(frame) => frame.body.len() as u64 + ENTRY_BYTES,
        SourceEntry::Quarantined(_) | SourceEntry::Empty(_) => ENTRY_BYTES,
    }
}

impl Tail {
    /// Adds what follows; the oldest goes. What does not follow begins it anew.
    pub fn push(&mut self, entry: SourceEntry) {
        let (from, _) = extent(&entry);
        if self.entries.back().is_some_and(|last| extent(last).1 != from) {
            *self = Self::default();
        }
        self.bytes += bytes(&entry);
        self.entries.push_back(entry);
        while TAIL_BYTES < self.bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= bytes(&oldest);
        }
    }

    /// True where it has the entry that holds `at`.
    pub fn has(&self, at: Offset) -> bool {
        let first = self.entries.front().map(|entry| extent(entry).0);
        let end = self.entries.back().map(|entry| extent(entry).1);
        first.is_some_and(|first| first <= at) && end.is_some_and(|end| at < end)
    }

    /// Some of what lies at `at` and behind, in order; none where it does not reach there.
    pub fn from(&self, at: Offset) -> VecDeque<SourceEntry> {
        if !self.has(at) {
            return VecDeque::new();
        }
        let place = self.entries.partition_point(|entry| extent(entry).1 <= at);
        let mut some: VecDeque<_> = self.entries.range(place..).take(PORTION).cloned().collect();
        // Whoever begins within offsets of no event has some of them behind it.
        if let Some(first) = some.front_mut()
            && let (from, to) = extent(first)
            && from < at
            && let Some(rest) = OffsetRange::new(at, to)
        {
            *first = match first {
                SourceEntry::Quarantined(_) => SourceEntry::Quarantined(rest),
                SourceEntry::Empty(_) => SourceEntry::Empty(rest),
                // Inside a frame: that whole frame.
                SourceEntry::Frame(frame) => SourceEntry::Frame(frame.clone()),
            };
        }
        some
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sink::source::SourceFrame;
    use tidegate_event::ReceivedAt;

    fn frame(at: u64, bytes: usize) -> SourceEntry {
        let body = vec![0; bytes].into();
        let (base, received_at) = (Offset(at), ReceivedAt(0));
        SourceEntry::Frame(SourceFrame { base, count: 1, received_at, body })
    }

    fn empty(from: u64, to: u64) -> SourceEntry {
        SourceEntry::Empty(OffsetRange::new(Offset(from), Offset(to)).unwrap())
    }

    fn places(tail: &Tail, at: u64) -> Vec<(u64, u64)> {
        let some = tail.from(Offset(at));
        some.iter().map(extent).map(|(from, to)| (from.0, to.0)).collect()
    }

    #[test]
    fn what_is_handed_out_begins_where_it_was_asked_for() {
        let mut tail = Tail::default();
        assert!(places(&tail, 0).is_empty());
        tail.push(frame(5, 10));
        tail.push(empty(6, 9));
        tail.push(frame(9, 10));
        assert!(places(&tail, 4).is_empty() && places(&tail, 10).is_empty());
        assert_eq!(places(&tail, 5), [(5, 6), (6, 9), (9, 10)]);
        assert_eq!(places(&tail, 7), [(7, 9), (9, 10)]);
        assert_eq!(places(&tail, 9), [(9, 10)]);
        tail.push(frame(20, 10));
        assert!(places(&tail, 9).is_empty(), "there is a gap");
        assert_eq!(places(&tail, 20), [(20, 21)]);
    }

    #[test]
    fn the_oldest_goes_where_there_is_no_room() {
        let mut tail = Tail::default();
        (0..100).for_each(|at| tail.push(frame(at, 100_000)));
        assert!(tail.bytes <= TAIL_BYTES);
        assert!(!tail.has(Offset(50)) && tail.has(Offset(99)));
        tail.push(frame(100, 5 << 20));
        assert!(!tail.has(Offset(100)) && tail.bytes == 0, "one that is too large is not kept");
    }
}
