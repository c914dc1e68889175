//! What one sink holds of one partition's events in memory, and how large its next window may be.
//!
//! A window of `n` bytes costs about [`FACTOR`] times `n` while it is written (ARCHITECTURE.md,
//! "Memory", says how that was measured). So a share of `s` bytes is room for `s / FACTOR` bytes of
//! windows: one of the main loop, and beside it those of the lanes that are written alone. While
//! these hold much, the main loop cuts smaller windows; it never waits for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a window costs at its peak, as a multiple of its bytes. Measured: 3.1 where all is one lane
/// of events that hardly compress (frames, columns, encoded file). The rest is for the reader's
/// buffers, which are up to twice as large as frames of half their size.
pub const FACTOR: u64 = 4;
/// What a row costs at least, in bytes of a window: windows of small events have fewer rows than
/// their bytes would allow.
pub const ROW_BYTES: u64 = 128;
/// Smaller windows than this are a configuration error: files that nobody wants to query.
pub const WINDOW_MIN: u64 = 1 << 20;
/// The least and the most of the room that the main loop's window takes, in quarters.
const MAIN_LEAST: u64 = 1;
const MAIN_MOST: u64 = 3;
/// A lane's own window is this part of the room: four of them are a quarter.
const LANE_PART: u64 = 16;

/// The room of one sink and partition.
#[derive(Debug)]
pub struct Memory {
    share: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Bytes in the main loop's window.
    main: u64,
    /// Bytes in windows beside it.
    aside: u64,
    /// What a lane waits for: the main loop leaves it free from its next window on.
    wanted: u64,
}

/// Bytes held beside the main loop's window, until dropped.
#[derive(Debug)]
pub struct Aside {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// Room for `share` bytes of memory.
    pub fn new(share: u64) -> Arc<Self> {
        Arc::new(Self { share, held: Mutex::default() })
    }

    /// The least share that is not a configuration error.
    pub fn share_min() -> u64 {
        // The main loop's part of the room, with something to spare.
        WINDOW_MIN * FACTOR * 2
    }

    /// Bytes of memory.
    pub fn share(&self) -> u64 {
        self.share
    }

    /// Bytes of windows held now.
    pub fn held(&self) -> u64 {
        let held = self.lock();
        held.main + held.aside
    }

    /// Bytes that the main loop's next window may have, apart from one larger frame.
    pub fn cut(&self) -> u64 {
        let room = self.room();
        let held = self.lock();
        let free = room.saturating_sub(held.aside).saturating_sub(held.wanted);
        free.clamp(room * MAIN_LEAST / 4, room * MAIN_MOST / 4).max(1)
    }

    /// Bytes that a window of a single lane may have.
    pub fn lane_cut(&self) -> u64 {
        (self.room() / LANE_PART).max(1)
    }

    /// The main loop holds this much now.
    pub fn main(&self, bytes: u64) {
        self.lock().main = bytes;
    }

    /// Takes room beside the main loop's window; `None`: not now. What is too large for the room
    /// passes while nothing else is beside the main loop's least.
    pub fn aside(self: &Arc<Self>, bytes: u64) -> Option<Aside> {
        let room = self.room();
        let mut held = self.lock();
        let alone = held.aside == 0 && held.main <= room * MAIN_LEAST / 4;
        if !alone && room < held.main + held.aside + bytes {
            held.wanted = held.wanted.max(bytes);
            return None;
        }
        held.aside += bytes;
        Some(Aside { memory: Arc::clone(self), bytes })
    }

    /// No lane waits for room, until one finds none.
    pub fn want_nothing(&self) {
        self.lock().wanted = 0;
    }

    /// The main loop's window goes beside it, held by a write that was handed off; `None` where
    /// the least window would not find room any more.
    pub fn hand_off(self: &Arc<Self>) -> Option<Aside> {
        let most = self.room() * MAIN_MOST / 4;
        let mut held = self.lock();
        if held.aside != 0 && most < held.aside + held.main {
            return None;
        }
        let bytes = std::mem::take(&mut held.main);
        held.aside += bytes;
        Some(Aside { memory: Arc::clone(self), bytes })
    }

    fn room(&self) -> u64 {
        self.share / FACTOR
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let mut held = self.memory.lock();
        held.aside = held.aside.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: u64 = 1_600;

    fn memory() -> Arc<Memory> {
        Memory::new(ROOM * FACTOR)
    }

    proptest! {
        #[test]
        fn windows_never_take_more_than_the_room(
            steps in proptest::collection::vec((0u8..4, 1u64..=1_200), 1..60)
        ) {
            let memory = memory();
            let mut aside = Vec::new();
            for (what, bytes) in steps {
                match what {
                    0 => memory.main(bytes.min(memory.cut())),
                    1 => memory.main(0),
                    2 => aside.extend(memory.aside(bytes)),
                    _ if aside.is_empty() => aside.extend(memory.hand_off()),
                    _ => drop(aside.swap_remove(0)),
                }
                // What is beside the main loop when it cuts was there before, or fitted.
                prop_assert!(memory.held() <= ROOM + ROOM / 4, "{:?}", memory);
                prop_assert!(ROOM / 4 <= memory.cut());
            }
            drop(aside);
            memory.main(0);
            prop_assert_eq!(memory.held(), 0);
        }
    }

    #[test]
    fn a_lane_that_waits_for_room_finds_it_at_the_next_window() {
        let memory = memory();
        memory.main(memory.cut());
        assert!(memory.aside(1_000).is_none());
        assert!(memory.cut() <= 600);
        memory.main(memory.cut());
        let aside = memory.aside(1_000).unwrap();
        memory.want_nothing();
        assert_eq!((memory.held(), memory.cut()), (1_600, 600));
        drop(aside);
        assert_eq!(memory.cut(), 1_200);
    }

    #[test]
    fn a_window_too_large_for_the_room_passes_alone() {
        let memory = memory();
        memory.main(0);
        let large = memory.aside(10_000).unwrap();
        assert!(memory.aside(1).is_none());
        assert_eq!(memory.cut(), ROOM / 4);
        drop(large);
        assert!(memory.aside(1).is_some());
    }
}
