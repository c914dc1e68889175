//! A queue that serves tenants in turn by bytes, whoever came first: deficit round robin.
//!
//! M. Shreedhar and G. Varghese, "Efficient Fair Queuing Using Deficit Round Robin", 1995. Each tenant
//! that waits has a lane; at its turn a lane may send as many bytes as it has saved up, and each turn
//! adds its quantum. Over any time in which two tenants both wait, what they are served differs by at
//! most one quantum and one largest item each, divided by their weights. Pushing and taking cost the
//! same however many tenants wait, as long as no item is larger than many quanta.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Bytes that a lane of weight 1 may send at each turn: about one batch of 500 events.
const QUANTUM: u64 = 256 << 10;

/// Items that wait, in lanes by tenant.
#[derive(Debug)]
pub struct Fair<K, T> {
    lanes: HashMap<K, Lane<T>>,
    /// The lanes that hold something, in the order of their turns.
    ring: VecDeque<K>,
    bytes: u64,
    items: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<(u64, T)>,
    bytes: u64,
    weight: u64,
    /// Bytes it may send yet at this turn; kept while it waits, forgotten when it is empty.
    deficit: u64,
    /// True once this turn's quantum was added.
    on_turn: bool,
}

impl<K, T> Default for Fair<K, T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), ring: VecDeque::new(), bytes: 0, items: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> Fair<K, T> {
    /// Bytes of all that waits.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that wait in one lane.
    #[must_use]
    pub fn bytes_of(&self, key: &K) -> u64 {
        self.lanes.get(key).map_or(0, |lane| lane.bytes)
    }

    /// True where nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Puts an item at the end of its lane. The newest weight counts.
    pub fn push(&mut self, key: &K, weight: u64, bytes: u64, item: T) {
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| {
            self.ring.push_back(key.clone());
            Lane { waiting: VecDeque::new(), bytes: 0, weight: 1, deficit: 0, on_turn: false }
        });
        lane.weight = weight.max(1);
        lane.bytes += bytes;
        lane.waiting.push_back((bytes, item));
        self.bytes += bytes;
        self.items += 1;
    }

    /// The item whose turn it is, if `fits` says that it may be taken now; `None` leaves all as it is.
    pub fn pop_if(&mut self, mut fits: impl FnMut(&T) -> bool) -> Option<T> {
        loop {
            let key = self.ring.front()?;
            let lane = self.lanes.get_mut(key)?;
            if !lane.on_turn {
                lane.deficit = lane.deficit.saturating_add(QUANTUM.saturating_mul(lane.weight));
                lane.on_turn = true;
            }
            // A lane that holds nothing is never in the ring.
            let (bytes, item) = lane.waiting.front()?;
            if lane.deficit < *bytes {
                lane.on_turn = false;
                self.ring.rotate_left(1);
                continue;
            }
            if !fits(item) {
                return None;
            }
            return self.take_first();
        }
    }

    /// The item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_if(|_| true)
    }

    fn take_first(&mut self) -> Option<T> {
        let key = self.ring.front()?;
        let lane = self.lanes.get_mut(key)?;
        let (bytes, item) = lane.waiting.pop_front()?;
        lane.bytes -= bytes;
        lane.deficit -= bytes;
        self.bytes -= bytes;
        self.items -= 1;
        if lane.waiting.is_empty()
            && let Some(key) = self.ring.pop_front()
        {
            // What it saved up is not kept: who does not wait has no claim.
            self.lanes.remove(&key);
        }
        Some(item)
    }

    /// Takes everything, lane by lane.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        let all = std::mem::take(self);
        all.lanes.into_values().flat_map(|lane| lane.waiting).map(|(_, item)| item)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_lane_is_served_in_order() {
        let mut fair = Fair::default();
        for n in 0..10 {
            fair.push(&"a", 1, 1 << 20, n);
        }
        assert_eq!(
            std::iter::from_fn(|| fair.pop()).collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
        assert!(fair.is_empty());
        assert_eq!((fair.bytes(), fair.bytes_of(&"a")), (0, 0));
    }

    #[test]
    fn a_newcomer_is_served_within_one_round_of_a_long_queue() {
        let mut fair = Fair::default();
        for _ in 0..10_000 {
            fair.push(&"many", 1, QUANTUM, "many");
        }
        fair.pop().unwrap();
        fair.push(&"one", 1, QUANTUM, "one");
        let turns = std::iter::from_fn(|| fair.pop()).position(|who| who == "one").unwrap();
        assert!(turns <= 2, "{turns}");
    }

    #[test]
    fn what_does_not_fit_stays_where_it_is() {
        let mut fair = Fair::default();
        fair.push(&"a", 1, 10, 'a');
        assert_eq!(fair.pop_if(|_| false), None);
        assert_eq!(fair.bytes(), 10);
        assert_eq!(fair.pop(), Some('a'));
    }

    proptest! {
        /// Two lanes that both wait all the time are served alike, by their weights.
        #[test]
        fn lanes_that_wait_are_served_by_weight(
            left in prop::collection::vec(1u64..3 * QUANTUM, 200),
            right in prop::collection::vec(1u64..3 * QUANTUM, 200),
            weight in 1u64..5,
            served in 1usize..150,
        ) {
            let mut fair = Fair::default();
            left.iter().for_each(|bytes| fair.push(&"left", 1, *bytes, ("left", *bytes)));
            right.iter().for_each(|bytes| fair.push(&"right", weight, *bytes, ("right", *bytes)));
            let mut got = (0u64, 0u64);
            for _ in 0..served {
                if fair.bytes_of(&"left") == 0 || fair.bytes_of(&"right") == 0 {
                    break;
                }
                let (who, bytes) = fair.pop().unwrap();
                *(if who == "left" { &mut got.0 } else { &mut got.1 }) += bytes;
            }
            let (left, right) = (got.0 as f64, got.1 as f64 / weight as f64);
            // The source's bound: one quantum and one largest item on each side.
            prop_assert!((left - right).abs() <= 2.0 * (QUANTUM + 3 * QUANTUM) as f64);
        }

        /// Nothing is lost or made up, and each lane keeps its order.
        #[test]
        fn all_that_is_pushed_comes_out_once_and_in_order(
            steps in prop::collection::vec((any::<bool>(), 0u8..5, 1u64..1 << 20), 1..300),
        ) {
            let mut fair = Fair::default();
            let mut model: BTreeMap<u8, VecDeque<usize>> = BTreeMap::new();
            let check = |model: &mut BTreeMap<u8, VecDeque<usize>>, got: (u8, usize)| {
                assert_eq!(model.get_mut(&got.0).unwrap().pop_front(), Some(got.1));
            };
            for (n, (push, who, bytes)) in steps.into_iter().enumerate() {
                if push {
                    fair.push(&who, u64::from(who) + 1, bytes, (who, n));
                    model.entry(who).or_default().push_back(n);
                } else if let Some(got) = fair.pop() {
                    check(&mut model, got);
                }
            }
            while let Some(got) = fair.pop() {
                check(&mut model, got);
            }
            prop_assert!(model.values().all(VecDeque::is_empty));
            prop_assert_eq!(fair.bytes(), 0);
        }
    }
}
