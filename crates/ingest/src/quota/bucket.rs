//! One bucket (GCRA), counted in what it was fed and not in time, so that a clock, a share of a clock
//! or leases can feed it; and the slots of it that are promised for later.
//!
//! All amounts are units (events, bytes) times [`UNIT`], so that a rate times nanoseconds is exact.
//! `fed` is all that was ever fed; `full` is where `fed` must come for the bucket to be full: all that
//! was charged, promised slots included. A slot is good once `fed` has come to its place. What holds
//! for every place, and for now: what was charged and what is promised up to there is at most what
//! will have been fed there, and `size`. What is given back is simply not charged any more, so nothing
//! of it is tied to where it lay: it is free as soon as no other slot needs it.

use std::{collections::BTreeMap, time::Duration};

/// One unit.
pub(super) const UNIT: u128 = 1_000_000_000;

/// What feeds a bucket: `per_second` divided by `by`; with 0 nothing does but [`Bucket::feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub per_second: u64,
    pub by: u32,
}

/// Places of slots in what is fed in a second, so that a bucket has few places to look at.
const PLACES: u128 = 8;

impl Flow {
    /// What lies between two places.
    pub(super) fn grain(self) -> u128 {
        (u128::from(self.per_second) * UNIT / u128::from(self.by.max(1)) / PLACES).max(1)
    }
}

/// The state of one bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Nanoseconds on the monotonic clock up to which it was fed.
    at: u128,
    fed: u128,
    full: u128,
    size: u128,
    /// What is promised, by place. Of a slot larger than the bucket, what exceeds that lies where it
    /// will have been paid.
    places: BTreeMap<u128, u128>,
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
    /// What of it the bucket held when it was promised; the rest is a debt.
    at_once: u128,
}

impl Slot {
    /// What is needed of it, and where.
    fn parts(self) -> impl Iterator<Item = (u128, u128)> {
        let debt = amount(self.n).saturating_sub(self.at_once);
        [(self.due, self.at_once), (self.due + debt, debt)].into_iter().filter(|(_, n)| *n != 0)
    }
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

    fn base(&self) -> u128 {
        self.full.max(self.fed)
    }

    /// What can be taken now without touching what is promised; 0 where that is less than `least`.
    fn room(&self, least: u128) -> u128 {
        // What will be charged up to the place that is looked at.
        let mut charged = self.base();
        let mut room = self.size;
        for (place, n) in self.places.range(self.fed + 1..).rev() {
            room = room.min((place + self.size).saturating_sub(charged));
            if room < least {
                return 0;
            }
            charged = charged.saturating_sub(*n);
        }
        room.min((self.fed + self.size).saturating_sub(charged))
    }

    /// Whole units that are free.
    pub(super) fn free(&self) -> u64 {
        units(self.room(UNIT))
    }

    /// True where `n` units can be taken. What is larger than the bucket passes when that is full,
    /// and leaves a debt.
    pub(super) fn has(&self, n: u64) -> bool {
        self.full <= self.fed || amount(n) <= self.room(amount(n))
    }

    /// True where who holds `held` units can have `n` instead.
    pub(super) fn has_instead(&self, held: u64, n: u64) -> bool {
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
        self.full = self.base() + amount(n);
    }

    /// Gives back units that were taken.
    pub(super) fn give_back(&mut self, n: u64) {
        self.full = self.full.saturating_sub(amount(n));
    }

    /// The first place where a slot of `n` units fits; places are `grain` apart.
    pub(super) fn place(&self, n: u64, grain: u128) -> u128 {
        let n = amount(n);
        let mut charged = self.base();
        let mut first = self.fed;
        for (place, promised) in self.places.range(self.fed + 1..).rev() {
            if place + self.size < charged + n {
                // Before this one it would take what that needs.
                first = if n <= self.size { *place } else { place + 1 };
                break;
            }
            charged = charged.saturating_sub(*promised);
        }
        let due = first.max((charged + n.min(self.size)).saturating_sub(self.size));
        if due == self.fed { due } else { due.next_multiple_of(grain) }
    }

    /// Promises a slot of `n` units: charged now, good when it fits, and not needed before `after`.
    pub(super) fn promise(&mut self, n: u64, flow: Flow, after: Duration) -> Slot {
        let grain = flow.grain();
        let fed = after.as_nanos() * u128::from(flow.per_second) / u128::from(flow.by.max(1));
        let needed = (self.fed + fed) / grain * grain;
        let due = self.place(n, grain).max(needed);
        let slot = Slot { n, due, at_once: self.size.min(amount(n)) };
        self.full = self.base() + amount(n);
        self.promised += amount(n);
        for (place, part) in slot.parts() {
            *self.places.entry(place).or_default() += part;
        }
        slot
    }

    /// True where the slot's place has come, or all that is charged was fed: leases end there.
    pub(super) fn is_due(&self, slot: Slot) -> bool {
        slot.due <= self.fed || self.full <= self.fed
    }

    /// The slot is nobody's any more.
    pub(super) fn release(&mut self, slot: Slot) {
        self.redeem(slot);
        self.full = self.full.saturating_sub(amount(slot.n));
    }

    /// The slot is used.
    pub(super) fn redeem(&mut self, slot: Slot) {
        self.promised = self.promised.saturating_sub(amount(slot.n));
        for (place, part) in slot.parts() {
            if let Some(promised) = self.places.get_mut(&place) {
                *promised = promised.saturating_sub(part);
                if *promised == 0 {
                    self.places.remove(&place);
                }
            }
        }
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
        let due = bucket.place(n, 1);
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
        let first = bucket.promise(10, FLOW, Duration::ZERO);
        let second = bucket.promise(10, FLOW, Duration::ZERO);
        assert_eq!(bucket.until(first.due, FLOW), Duration::from_secs(1));
        assert_eq!(bucket.until(second.due, FLOW), Duration::from_secs(2));
        assert!(!bucket.has(1), "all that comes is promised");
        bucket.release(first);
        assert_eq!(
            bucket.promise(10, FLOW, Duration::ZERO),
            first,
            "the first to ask has the slot that came free"
        );
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
    fn slots_of_many_sizes_given_back_again_and_again_leave_all_where_it_was() {
        let mut bucket = bucket();
        bucket.charge(20);
        let promise = |bucket: &mut Bucket, n| bucket.promise(n, FLOW, Duration::ZERO);
        let stays = promise(&mut bucket, 5);
        for n in 0..100 {
            let sizes = [15, 9, 1 + n % 20];
            let slots = sizes.map(|n| promise(&mut bucket, n));
            slots.into_iter().for_each(|slot| bucket.release(slot));
        }
        assert_eq!(bucket.until(bucket.place(10, 1), FLOW), Duration::from_millis(1_500));
        bucket.advance(FLOW, 3 * SECOND / 2);
        assert!(bucket.is_due(stays) && bucket.has(10) && !bucket.has(11));
    }

    #[test]
    fn a_slot_is_due_once_all_is_fed_though_its_place_lies_further() {
        let flow = Flow { per_second: 100, by: 1 };
        let mut bucket = Bucket::new(1, 0);
        bucket.charge(1);
        let slot = bucket.promise(1, flow, Duration::ZERO);
        bucket.feed(1);
        assert!(!bucket.is_due(slot));
        bucket.feed(1);
        assert!(slot.due > 2 * UNIT && bucket.owed() == 0 && bucket.is_due(slot));
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
            // Three times as large, most slots leave a debt.
            times in prop_oneof![Just(1u64), Just(3)],
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
                    Act::Promise(n) => slots.push(bucket.promise(n * times, FLOW, Duration::ZERO)),
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
                let most = earned + 20 * u128::from(times);
                prop_assert!(u128::from(used) <= most, "{used} of {most}");
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
