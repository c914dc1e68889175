//! One bucket (GCRA), counted in what it was fed and not in time, so that a clock, a share of a clock
//! or leases can feed it; and the slots of it that are promised for later.
//!
//! All amounts are units (events, bytes) times [`UNIT`], so that a rate times nanoseconds is exact.
//! `fed` is all that was ever fed; `full` is where `fed` must come for the bucket to be full. What is
//! charged moves `full` on. A charge is within the bounds where `full` is at most `size` ahead of
//! `fed`. A slot is a charge that is not used yet: it is good once `fed` has come to its place.

use std::{collections::BTreeMap, time::Duration};

/// One unit.
pub(super) const UNIT: u128 = 1_000_000_000;

/// Slots given back that wait to be used again; of more, the two first become one.
const HOLES_MAX: usize = 1024;

/// What feeds a bucket: `per_second` divided by `by`; with 0 nothing does but [`Bucket::feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub per_second: u64,
    pub by: u32,
}

/// The state of one bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Nanoseconds on the monotonic clock up to which it was fed.
    at: u128,
    fed: u128,
    full: u128,
    size: u128,
    /// Given back while slots are promised: charged, good now, used by nobody.
    credit: u128,
    /// The same, good once `fed` has come there.
    holes: BTreeMap<u128, u128>,
    /// Sum of the slots that are promised.
    promised: u128,
}

/// A slot of a bucket that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Units.
    pub n: u64,
    /// Good once the bucket was fed so far.
    pub due: u128,
}

fn amount(n: u64) -> u128 {
    u128::from(n) * UNIT
}

fn units(amount: u128) -> u64 {
    u64::try_from(amount / UNIT).unwrap_or(u64::MAX)
}

impl Bucket {
    /// A full one of `size` units.
    #[cfg(test)]
    pub(super) fn new(size: u64, now: u128) -> Self {
        Self { at: now, size: amount(size), ..Self::default() }
    }

    /// Empties it.
    #[cfg(test)]
    fn empty(&mut self) {
        self.full = self.full.max(self.fed + self.size);
    }

    /// Lets the clock feed it.
    pub(super) fn advance(&mut self, flow: Flow, now: u128) {
        if flow.by != 0 {
            let passed = now.saturating_sub(self.at);
            self.fed += passed * u128::from(flow.per_second) / u128::from(flow.by);
        }
        self.at = self.at.max(now);
    }

    /// Feeds it `n` units.
    pub(super) fn feed(&mut self, n: u64) {
        self.fed += amount(n);
    }

    /// Another size, in units; what is free changes with it.
    pub(super) fn resize(&mut self, size: u64) {
        self.size = amount(size);
    }

    /// Another size, in units, where every unit that is free must have been fed. What comes back no
    /// longer fits and is taken out.
    pub(super) fn resize_backed(&mut self, size: u64) -> u64 {
        let size = amount(size);
        self.full = self.full.max(self.fed);
        if self.size <= size {
            self.full += size - self.size;
            self.size = size;
            return 0;
        }
        let less = self.size - size;
        let owed = self.full - self.fed;
        let excess = less.saturating_sub(owed) / UNIT * UNIT;
        self.full = (self.full + excess).saturating_sub(less).max(self.fed);
        self.size = size;
        units(excess)
    }

    /// Units by which it is not full, promised slots included.
    pub(super) fn owed(&self) -> u64 {
        units(self.full.saturating_sub(self.fed) + UNIT - 1)
    }

    /// Puts what was given back where it can be used.
    fn settle(&mut self) {
        if self.promised == 0 {
            // Nobody is behind it: what is not used was never charged.
            let unused = self.credit + self.holes.values().sum::<u128>();
            self.full = self.full.saturating_sub(unused);
            self.credit = 0;
            self.holes.clear();
            return;
        }
        while let Some(hole) = self.holes.first_entry().filter(|hole| *hole.key() <= self.fed) {
            self.credit += hole.remove();
        }
        if self.size < self.credit {
            self.full = self.full.saturating_sub(self.credit - self.size);
            self.credit = self.size;
        }
    }

    fn base(&self) -> u128 {
        self.full.max(self.fed)
    }

    /// Whole units that are free.
    pub(super) fn free(&mut self) -> u64 {
        self.settle();
        units(self.credit + (self.fed + self.size).saturating_sub(self.base()))
    }

    /// True where `n` units can be taken. What is larger than the bucket passes when that is full,
    /// and leaves a debt.
    pub(super) fn has(&mut self, n: u64) -> bool {
        self.settle();
        let free = self.credit + (self.fed + self.size).saturating_sub(self.base());
        amount(n) <= free || self.full <= self.fed
    }

    /// True where who holds `held` units can have `n` instead.
    pub(super) fn has_instead(&mut self, held: u64, n: u64) -> bool {
        n <= held
            || self.has(n - held)
            || (self.promised == 0 && self.full.saturating_sub(amount(held)) <= self.fed)
    }

    /// Takes `n` units for the `held` ones, into debt if need be.
    pub(super) fn exchange(&mut self, held: u64, n: u64) {
        if held < n {
            self.charge(n - held);
        } else {
            self.give_back(held - n);
        }
    }

    /// Takes `n` units, into debt if need be.
    pub(super) fn charge(&mut self, n: u64) {
        self.settle();
        let from_credit = self.credit.min(amount(n));
        self.credit -= from_credit;
        self.full = self.base() + amount(n) - from_credit;
    }

    /// Gives back units that were taken.
    pub(super) fn give_back(&mut self, n: u64) {
        self.credit += amount(n);
        self.settle();
    }

    /// Where the next slot of `n` units would be.
    pub(super) fn place(&mut self, n: u64) -> u128 {
        self.settle();
        let mut missing = amount(n).saturating_sub(self.credit);
        let mut due = self.fed;
        for (at, hole) in &self.holes {
            if missing == 0 {
                return due;
            }
            due = *at;
            missing = missing.saturating_sub(*hole);
        }
        if missing == 0 {
            return due;
        }
        due.max((self.base() + missing.min(self.size)).saturating_sub(self.size))
    }

    /// Promises a slot of `n` units: charged now, good later.
    pub(super) fn promise(&mut self, n: u64) -> Slot {
        let due = self.place(n);
        let mut missing = amount(n);
        let from_credit = self.credit.min(missing);
        self.credit -= from_credit;
        missing -= from_credit;
        while missing != 0
            && let Some(mut hole) = self.holes.first_entry()
        {
            let part = missing.min(*hole.get());
            missing -= part;
            *hole.get_mut() -= part;
            if *hole.get() == 0 {
                hole.remove();
            }
        }
        self.full = self.base() + missing;
        self.promised += amount(n);
        Slot { n, due }
    }

    /// True where the slot's place has come.
    pub(super) fn is_due(&self, slot: Slot) -> bool {
        slot.due <= self.fed
    }

    /// The slot is nobody's any more.
    pub(super) fn release(&mut self, slot: Slot) {
        self.promised = self.promised.saturating_sub(amount(slot.n));
        *self.holes.entry(slot.due).or_default() += amount(slot.n);
        if HOLES_MAX < self.holes.len()
            && let Some((_, first)) = self.holes.pop_first()
            && let Some(mut second) = self.holes.first_entry()
        {
            // Later than it could be, never sooner.
            *second.get_mut() += first;
        }
        self.settle();
    }

    /// The slot is used.
    pub(super) fn redeem(&mut self, slot: Slot) {
        self.promised = self.promised.saturating_sub(amount(slot.n));
        self.settle();
    }

    /// How long until it was fed so far.
    pub(super) fn until(&self, due: u128, flow: Flow) -> Duration {
        let missing = due.saturating_sub(self.fed) * u128::from(flow.by.max(1));
        let nanos = missing.div_ceil(u128::from(flow.per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whole seconds until it is full.
    pub(super) fn full_in(&self, flow: Flow) -> u64 {
        let left = self.until(self.full, flow);
        left.as_secs() + u64::from(left.subsec_nanos() != 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLOW: Flow = Flow { per_second: 10, by: 1 };
    const SECOND: u128 = UNIT;

    fn bucket() -> Bucket {
        Bucket::new(20, 0)
    }

    /// Takes at a moment, or says how long to wait.
    fn take(bucket: &mut Bucket, n: u64, now: u128) -> Result<(), Duration> {
        bucket.advance(FLOW, now);
        if bucket.has(n) {
            bucket.charge(n);
            return Ok(());
        }
        let due = bucket.place(n);
        Err(bucket.until(due, FLOW))
    }

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let mut bucket = bucket();
        take(&mut bucket, 15, 0).unwrap();
        take(&mut bucket, 5, 0).unwrap();
        assert_eq!(take(&mut bucket, 10, 0), Err(Duration::from_secs(1)));
        take(&mut bucket, 10, SECOND).unwrap();
        assert_eq!(bucket.free(), 0);
        bucket.advance(FLOW, 2 * SECOND);
        assert_eq!(bucket.free(), 10);
    }

    #[test]
    fn more_than_the_burst_passes_when_full_and_leaves_a_debt() {
        let mut bucket = bucket();
        take(&mut bucket, 100, 0).unwrap();
        assert_eq!(bucket.free(), 0);
        // 100 were taken: at 10 a second the debt is paid after 8 s, and the bucket full after 10.
        assert_eq!(take(&mut bucket, 1, 0), Err(Duration::from_millis(8_100)));
        assert_eq!(take(&mut bucket, 100, 9 * SECOND), Err(Duration::from_secs(1)));
        take(&mut bucket, 100, 10 * SECOND).unwrap();
    }

    #[test]
    fn a_refused_take_costs_nothing_and_a_clock_that_goes_back_gives_nothing() {
        let mut bucket = bucket();
        take(&mut bucket, 20, 5 * SECOND).unwrap();
        for back in 0..1000 {
            take(&mut bucket, 20, back).unwrap_err();
        }
        take(&mut bucket, 20, 7 * SECOND).unwrap();
    }

    #[test]
    fn what_is_given_back_is_free_at_once_and_a_slot_given_back_is_the_next_ones() {
        let mut bucket = bucket();
        bucket.charge(20);
        bucket.give_back(8);
        assert_eq!(bucket.free(), 8);
        bucket.charge(8);
        let first = bucket.promise(10);
        let second = bucket.promise(10);
        assert_eq!(bucket.until(first.due, FLOW), Duration::from_secs(1));
        assert_eq!(bucket.until(second.due, FLOW), Duration::from_secs(2));
        assert!(!bucket.has(1), "all that comes is promised");
        bucket.release(first);
        assert_eq!(bucket.promise(10), first, "the first to ask has the slot that came free");
        bucket.release(first);
        bucket.advance(FLOW, SECOND);
        assert!(bucket.has(10), "the free slot is due: anybody's");
        bucket.charge(10);
        assert!(!bucket.has(1) && !bucket.is_due(second));
        bucket.advance(FLOW, 2 * SECOND);
        assert!(bucket.is_due(second));
        bucket.redeem(second);
        assert_eq!(bucket.free(), 0);
    }

    #[test]
    fn a_backed_bucket_never_has_more_than_it_was_fed() {
        let mut bucket = bucket();
        bucket.empty();
        assert_eq!(bucket.free(), 0);
        bucket.resize_backed(50);
        assert_eq!((bucket.free(), bucket.owed()), (0, 50));
        bucket.feed(40);
        assert_eq!(bucket.free(), 40);
        assert_eq!(bucket.resize_backed(25), 15);
        assert_eq!((bucket.free(), bucket.owed()), (25, 0));
        bucket.charge(5);
        assert_eq!(bucket.resize_backed(22), 0);
        assert_eq!((bucket.free(), bucket.owed()), (20, 2));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Take(u64),
        TakeAndGiveBack(u64, u64),
        Promise(u64),
        Redeem(usize),
        Release(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (1u64..=20).prop_map(Act::Take),
            (1u64..=20, 0u64..=20).prop_map(|(n, back)| Act::TakeAndGiveBack(n, back.min(n))),
            (1u64..=20).prop_map(Act::Promise),
            any::<usize>().prop_map(Act::Redeem),
            any::<usize>().prop_map(Act::Release),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_promised_and_given_back_no_more_is_used_than_rate_and_burst(
            acts in prop::collection::vec((0u64..2_000_000_000, act()), 1..300),
        ) {
            let mut bucket = bucket();
            let (mut now, mut used) = (0u128, 0u64);
            let mut slots: Vec<Slot> = Vec::new();
            for (pause, act) in acts {
                now += u128::from(pause);
                bucket.advance(FLOW, now);
                match act {
                    Act::Take(n) if bucket.has(n) => {
                        bucket.charge(n);
                        used += n;
                    }
                    Act::TakeAndGiveBack(n, back) if bucket.has(n) => {
                        bucket.charge(n);
                        bucket.give_back(back);
                        used += n - back;
                    }
                    Act::Take(_) | Act::TakeAndGiveBack(..) => {}
                    Act::Promise(n) => slots.push(bucket.promise(n)),
                    Act::Redeem(at) if !slots.is_empty() => {
                        let slot = slots[at % slots.len()];
                        if bucket.is_due(slot) {
                            slots.swap_remove(at % slots.len());
                            bucket.redeem(slot);
                            used += slot.n;
                        }
                    }
                    Act::Release(at) if !slots.is_empty() => {
                        bucket.release(slots.swap_remove(at % slots.len()));
                    }
                    Act::Redeem(_) | Act::Release(_) => {}
                }
                let earned = now * u128::from(FLOW.per_second) / SECOND;
                prop_assert!(u128::from(used) <= earned + 20, "{used} of {earned} + 20");
            }
            // And nothing is lost: without promises it fills up as if they had never been.
            slots.into_iter().for_each(|slot| bucket.release(slot));
            bucket.advance(FLOW, now + 3_600 * SECOND);
            prop_assert_eq!(bucket.free(), 20);
        }

        #[test]
        fn who_waits_as_told_is_served(first in 1u64..50, second in 1u64..50) {
            let mut bucket = bucket();
            take(&mut bucket, first, 0).unwrap();
            if let Err(wait) = take(&mut bucket, second, 0) {
                take(&mut bucket, second, wait.as_nanos()).unwrap();
            }
        }
    }
}
