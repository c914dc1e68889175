//! What a job takes of the memory that requests share, and what for.

use crate::sink::MEMORY_FACTOR;

/// A third of what requests share at most.
const JOB_BYTES: u64 = 64 << 20;
const JOB_PART: u64 = 3;
/// What the windows of one sink and part take at least; with more of them they take turns.
const WINDOW_BYTES: u64 = (2 << 20) * MEMORY_FACTOR;
/// What is read ahead may take so many fifths of a job's memory, where its windows have enough without it: a whole
/// window is ready then when the writer comes for it. With less it waits for the rest, and reader and writer take turns.
const AHEAD_FIFTHS: u64 = 2;
/// What a batch that was read ahead costs at most, as a multiple of its bytes: a reader's buffers are up to
/// twice as large as batches of half their size.
const AHEAD_FACTOR: u64 = 2;

/// What a job's memory is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// For windows on their way into the shadows.
    pub windows: u64,
    /// For what is read ahead of them.
    ahead: u64,
}

impl Memory {
    /// What a job takes where requests share `shared` bytes.
    pub fn wanted(shared: u64) -> u64 {
        JOB_BYTES.min(shared / JOB_PART).max(WINDOW_BYTES)
    }

    /// `bytes` of a job that writes into so many shadows.
    pub fn divide(bytes: u64, targets: u64) -> Self {
        let spare = bytes.saturating_sub(WINDOW_BYTES.saturating_mul(targets));
        let ahead = spare.min(bytes / 5 * AHEAD_FIFTHS);
        Self { windows: bytes - ahead, ahead }
    }

    /// How many parts of the window are written at the same time.
    pub fn parts_at_once(self, targets: u64) -> usize {
        usize::try_from(self.windows / WINDOW_BYTES / targets.max(1)).unwrap_or(1).max(1)
    }

    /// Bytes of batches that each of so many readers may be ahead by.
    pub fn ahead_each(self, readers: u64) -> u64 {
        self.ahead / AHEAD_FACTOR / readers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_the_defaults_a_job_is_ahead_by_more_than_a_window() {
        let memory = Memory::divide(Memory::wanted(179 << 20), 1);
        let window = memory.windows / MEMORY_FACTOR;
        assert!(window < memory.ahead_each(1), "{memory:?}");
        assert_eq!((memory.parts_at_once(1), memory.ahead_each(1) >> 20), (4, 11));
    }

    proptest! {
        #[test]
        fn a_job_takes_no_more_than_it_has_and_its_windows_have_enough(
            shared in 0u64..1 << 34, targets in 1u64..10, parts in 1u64..64,
        ) {
            let bytes = Memory::wanted(shared);
            let memory = Memory::divide(bytes, targets);
            let at_once = (memory.parts_at_once(targets) as u64).min(parts);
            let readers = at_once * targets;
            prop_assert!(memory.windows + AHEAD_FACTOR * readers * memory.ahead_each(readers) <= bytes);
            // As without reading ahead: where there is enough for one part, there still is.
            prop_assert_eq!(WINDOW_BYTES * targets <= bytes, WINDOW_BYTES * readers <= memory.windows);
        }
    }
}
