//! How many faults of each kind the simulated disk has made, for the fault grid.

use std::cell::Cell;

use crate::tally::Tally;

/// A kind of fault: a row of the grid.
#[derive(Clone, Copy)]
pub enum Fault {
    Kill,
    PowerCut,
    Torn,
    Full,
    Io,
    Flip,
}

const NAMES: [&str; 6] = ["kill -9", "power loss", "torn write", "ENOSPC", "EIO", "bit flip"];

thread_local! {
    static COUNTS: [Cell<u64>; NAMES.len()] = const { [const { Cell::new(0) }; NAMES.len()] };
}

/// One more.
pub fn count(fault: Fault) {
    COUNTS.with(|counts| counts[fault as usize].update(|n| n + 1));
}

/// Tallies what is injected on this thread while it lives.
pub struct Tallies {
    by: &'static str,
    promises: &'static [&'static str],
    before: [u64; NAMES.len()],
}

fn counts() -> [u64; NAMES.len()] {
    COUNTS.with(|counts| std::array::from_fn(|i| counts[i].get()))
}

impl Tallies {
    pub fn new(by: &'static str, promises: &'static [&'static str]) -> Self {
        Self { by, promises, before: counts() }
    }
}

impl Drop for Tallies {
    fn drop(&mut self) {
        for ((fault, before), now) in NAMES.iter().zip(self.before).zip(counts()) {
            if before < now {
                Tally::new(self.by, fault, self.promises).survived(now - before);
            }
        }
    }
}
