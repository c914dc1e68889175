//! Rows per minute and event type of one tenant, within a bound.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, ReceivedAt};

use super::Counts;

/// A minute of the receive time, counted from 1970-01-01T00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Minute(pub i64);

impl Minute {
    const MICROS: i64 = 60_000_000;

    /// The minute that `at` is in.
    #[must_use]
    pub fn of(at: ReceivedAt) -> Self {
        Self(at.0.div_euclid(Self::MICROS))
    }

    /// Its first moment.
    #[must_use]
    pub fn start(self) -> ReceivedAt {
        ReceivedAt(self.0.saturating_mul(Self::MICROS))
    }
}

/// Minutes kept of one tenant at most: a day in which each has events.
pub const MINUTES_MAX: usize = 24 * 60;
/// Rows kept of all tenants together, about; a row is some 150 bytes.
pub const ROWS_MAX: usize = 100_000;
/// Rows kept of each tenant, however many tenants there are.
const ROWS_MIN: usize = 16;

/// How many rows each of `tenants` may keep, so that none lives at another's cost.
#[must_use]
pub fn rows_each(tenants: usize) -> usize {
    (ROWS_MAX / tenants.max(1)).max(ROWS_MIN)
}

/// The rows of one tenant. Whole minutes are forgotten, the oldest first; what they held stays in
/// the totals beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored<T>")]
pub struct Minutes<T> {
    /// Minutes before this one are not kept.
    since: Minute,
    rows: BTreeMap<Minute, BTreeMap<EventType, T>>,
    /// How many rows there are.
    #[serde(skip_serializing)]
    len: usize,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<T> {
    since: Minute,
    rows: BTreeMap<Minute, BTreeMap<EventType, T>>,
}

impl<T> From<Stored<T>> for Minutes<T> {
    fn from(Stored { since, rows }: Stored<T>) -> Self {
        let len = rows.values().map(BTreeMap::len).sum();
        Self { since, rows, len }
    }
}

impl<T> Default for Minutes<T> {
    fn default() -> Self {
        Self { since: Minute(i64::MIN), rows: BTreeMap::new(), len: 0 }
    }
}

impl<T: Counts> Minutes<T> {
    /// Changes a row, unless its minute is forgotten; then keeps no more than `rows_max` rows.
    pub fn change(
        &mut self,
        minute: Minute,
        event_type: &EventType,
        rows_max: usize,
        change: impl FnOnce(&mut T),
    ) {
        if minute < self.since {
            return;
        }
        let types = self.rows.entry(minute).or_default();
        match types.get_mut(event_type) {
            Some(row) => change(row),
            None => {
                change(types.entry(event_type.clone()).or_default());
                self.len += 1;
                self.trim(rows_max);
            }
        }
    }

    /// Keeps no more than `rows_max` rows, and no more than [`MINUTES_MAX`] minutes.
    pub fn trim(&mut self, rows_max: usize) {
        while self.len > rows_max || self.rows.len() > MINUTES_MAX {
            let Some((minute, gone)) = self.rows.pop_first() else { return };
            self.len -= gone.len();
            self.since = Minute(minute.0 + 1);
        }
    }

    /// Forgets what is before `since`, which another book of the same tenant has forgotten.
    pub fn forget_before(&mut self, since: Minute) {
        if self.since < since {
            self.rows = self.rows.split_off(&since);
            self.since = since;
            self.len = self.rows.values().map(BTreeMap::len).sum();
        }
    }

    /// Minutes before this one are not kept.
    #[must_use]
    pub fn since(&self) -> Minute {
        self.since
    }

    /// How many rows it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every row from `from` to before `to`, in order.
    pub fn between(
        &self,
        from: Minute,
        to: Minute,
    ) -> impl Iterator<Item = (Minute, &EventType, &T)> {
        let some = (from < to).then(|| self.rows.range(from..to));
        some.into_iter().flatten().flat_map(|(minute, types)| {
            types.iter().map(move |(event_type, row)| (*minute, event_type, row))
        })
    }

    /// Every row, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Minute, &EventType, &T)> {
        self.between(Minute(i64::MIN), Minute(i64::MAX))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::books::Tally;

    fn add(minutes: &mut Minutes<Tally>, minute: i64, name: &str, rows_max: usize) {
        let name = EventType::new(name).unwrap();
        minutes.change(Minute(minute), &name, rows_max, |row| row.accepted += 1);
    }

    #[test]
    fn the_oldest_minutes_are_forgotten_whole_and_do_not_come_back() {
        let mut minutes = Minutes::<Tally>::default();
        for (minute, name) in [(5, "a"), (5, "b"), (6, "a"), (7, "a"), (6, "a")] {
            add(&mut minutes, minute, name, 3);
        }
        assert_eq!((minutes.len(), minutes.since()), (2, Minute(6)));
        add(&mut minutes, 5, "a", 3);
        let rows: Vec<_> = minutes.iter().map(|(m, _, row)| (m.0, row.accepted)).collect();
        assert_eq!(rows, [(6, 2), (7, 1)]);
        minutes.forget_before(Minute(7));
        assert_eq!(minutes.len(), 1);
        let text = serde_json::to_string(&minutes).unwrap();
        assert_eq!(serde_json::from_str::<Minutes<Tally>>(&text).unwrap(), minutes);
    }

    #[test]
    fn a_day_of_minutes_is_kept_and_no_more() {
        let mut minutes = Minutes::<Tally>::default();
        for minute in 0..3000 {
            add(&mut minutes, minute, "a", usize::MAX);
        }
        assert_eq!((minutes.len(), minutes.since()), (MINUTES_MAX, Minute(3000 - 1440)));
        assert_eq!(minutes.between(Minute(2990), Minute(2995)).count(), 5);
        assert_eq!(minutes.between(Minute(9), Minute(2)).count(), 0);
    }

    #[test]
    fn a_minute_is_that_of_the_moment_also_before_1970() {
        assert_eq!(Minute::of(ReceivedAt(59_999_999)), Minute(0));
        assert_eq!(Minute::of(ReceivedAt(60_000_000)), Minute(1));
        assert_eq!(Minute::of(ReceivedAt(-1)), Minute(-1));
        assert_eq!(Minute(2).start(), ReceivedAt(120_000_000));
    }
}
