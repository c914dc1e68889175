//! How old events were when they became visible: since the start, and lately.

use std::time::Duration;

/// Upper ends of ages in seconds; older ones are beyond the last.
pub const BOUNDS: [f64; 19] = [
    0.1, 0.25, 0.5, 1., 1.5, 2., 3., 5., 10., 30., 60., 120., 300., 900., 1_800., 3_600., 7_200.,
    21_600., 86_400.,
];
/// Ages lately are kept in so many parts.
const SLOTS: i64 = 10;

/// How many events were of which age.
pub type Buckets = [u64; BOUNDS.len() + 1];

/// The bucket of an age.
pub fn bucket(seconds: f64) -> usize {
    BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len())
}

/// Some events of about one age.
#[derive(Clone, Copy, Debug)]
pub struct Aged {
    /// Their age in seconds.
    pub seconds: f64,
    /// How many.
    pub events: u64,
    /// True where that is too old.
    pub late: bool,
}

/// Ages since the start.
#[derive(Clone, Debug, Default)]
pub struct Total {
    /// By age.
    pub buckets: Buckets,
    /// All ages together, in seconds.
    pub sum: f64,
    /// How many events.
    pub events: u64,
}

impl Total {
    /// Adds events.
    pub fn add(&mut self, aged: Aged) {
        if let Some(bucket) = self.buckets.get_mut(bucket(aged.seconds)) {
            *bucket += aged.events;
        }
        self.sum += aged.seconds * aged.events as f64;
        self.events += aged.events;
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(own, more)| *own += more);
        self.sum += other.sum;
        self.events += other.events;
    }
}

/// What can be said of events lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// How many became visible.
    pub events: u64,
    /// How many of them too late.
    pub late: u64,
    /// The age of the oldest.
    pub worst: f64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.late += other.late;
        self.worst = self.worst.max(other.worst);
    }
}

/// Something about each of the last parts of a length of time.
#[derive(Clone, Debug)]
pub struct Lately<T> {
    slots: [(i64, T); SLOTS as usize],
}

impl<T: Default> Default for Lately<T> {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| (i64::MIN, T::default())) }
    }
}

fn tick(now: i64, over: Duration) -> i64 {
    let part = i64::try_from(over.as_micros()).unwrap_or(i64::MAX) / SLOTS;
    now.div_euclid(part.max(1))
}

impl<T: Default> Lately<T> {
    /// What is said about now: microseconds since 1970.
    pub fn now(&mut self, now: i64, over: Duration) -> &mut T {
        let tick = tick(now, over);
        let place = tick.rem_euclid(SLOTS);
        let [mut slot, others @ ..] = self.slots.each_mut();
        if let Some(other) = others.into_iter().zip(1..).find(|(_, at)| *at == place) {
            slot = other.0;
        }
        if slot.0 != tick {
            *slot = (tick, T::default());
        }
        &mut slot.1
    }

    /// What is said about the time up to now.
    pub fn up_to(&self, now: i64, over: Duration) -> impl Iterator<Item = &T> {
        let tick = tick(now, over);
        self.slots.iter().filter(move |(at, _)| tick - SLOTS < *at && *at <= tick).map(|(_, t)| t)
    }
}

impl Lately<Counted> {
    /// Adds events.
    pub fn add(&mut self, now: i64, over: Duration, aged: Aged) {
        let late = if aged.late { aged.events } else { 0 };
        self.now(now, over).add(Counted { events: aged.events, late, worst: aged.seconds });
    }

    /// All of it together.
    pub fn counted(&self, now: i64, over: Duration) -> Counted {
        self.up_to(now, over).fold(Counted::default(), |mut sum, slot| {
            sum.add(*slot);
            sum
        })
    }
}

/// The age that this part of all events did not exceed: between the bounds of its bucket in a straight
/// line, `worst` at most.
pub fn quantile(buckets: &Buckets, part: f64, worst: f64) -> Option<f64> {
    let events: u64 = buckets.iter().sum();
    if events == 0 {
        return None;
    }
    let wanted = part * events as f64;
    let (mut below, mut from) = (0u64, 0.0);
    for (index, inside) in buckets.iter().enumerate() {
        let to = BOUNDS.get(index).copied().unwrap_or(worst).min(worst);
        if 0 < *inside && wanted <= (below + inside) as f64 {
            let share = (wanted - below as f64) / *inside as f64;
            return Some(from + (to - from).max(0.0) * share.clamp(0.0, 1.0));
        }
        below += inside;
        from = to;
    }
    Some(worst)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: i64 = 60_000_000;
    const OVER: Duration = Duration::from_secs(600);

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let mut lately = Lately::<Counted>::default();
        let aged = |seconds, late| Aged { seconds, events: 5, late };
        lately.add(0, OVER, aged(1.0, false));
        lately.add(4 * MINUTE, OVER, aged(7.0, true));
        assert_eq!(lately.counted(9 * MINUTE, OVER), Counted { events: 10, late: 5, worst: 7.0 });
        assert_eq!(lately.counted(10 * MINUTE, OVER), Counted { events: 5, late: 5, worst: 7.0 });
        assert_eq!(lately.counted(14 * MINUTE, OVER), Counted::default());
        // A slot that is used again begins anew, and a clock that goes back sees nothing of the future.
        lately.add(24 * MINUTE, OVER, aged(2.0, false));
        assert_eq!(lately.counted(24 * MINUTE, OVER).events, 5);
        assert_eq!(lately.counted(20 * MINUTE, OVER).events, 0);
    }

    proptest! {
        #[test]
        fn a_quantile_lies_in_the_bucket_of_the_true_one(
            mut ages in proptest::collection::vec(0.001f64..200_000.0, 1..200), percent in 1u32..100
        ) {
            let mut buckets = Buckets::default();
            ages.iter().for_each(|age| buckets[bucket(*age)] += 1);
            ages.sort_by(f64::total_cmp);
            let part = f64::from(percent) / 100.0;
            let index = (part * ages.len() as f64).ceil() as usize;
            let (truth, worst) = (ages[index.max(1) - 1], ages[ages.len() - 1]);
            let told = quantile(&buckets, part, worst).unwrap_or(f64::NAN);
            let at = bucket(truth);
            let from = at.checked_sub(1).map_or(0.0, |i| BOUNDS[i]);
            prop_assert!(from <= told && told <= BOUNDS.get(at).copied().unwrap_or(worst), "{told} {truth}");
        }
    }
}
