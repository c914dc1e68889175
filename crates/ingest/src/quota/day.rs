//! What a tenant used of a UTC day.

use serde::{Deserialize, Serialize};
use tidegate_event::ReceivedAt;

use super::limits::{Level, Limits};

const DAY_MICROS: i64 = 86_400_000_000;

/// What was used of one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Days since 1970.
    pub day: i64,
    /// Events charged.
    pub events: u64,
    /// Bytes charged.
    pub bytes: u64,
}

/// A moment of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub day: i64,
    /// Whole seconds until the next day, at least 1.
    pub left_seconds: u64,
}

impl Moment {
    pub(super) fn of(at: ReceivedAt) -> Self {
        let left = DAY_MICROS - at.0.rem_euclid(DAY_MICROS);
        let left_seconds = u64::try_from(left).unwrap_or(0).div_ceil(1_000_000).max(1);
        Self { day: at.0.div_euclid(DAY_MICROS), left_seconds }
    }
}

/// Two days, so that a clock that jumps and comes back finds what was used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Days {
    pub now: Usage,
    other: Usage,
    /// Of a fleet's day: what this edge may use, all day. `None`: no fleet.
    pub granted: Option<Usage>,
}

impl Days {
    /// Makes `day` the present one.
    pub(super) fn turn(&mut self, day: i64) {
        if self.now.day == day {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.other);
        if self.now.day != day {
            self.now = Usage { day, ..Usage::default() };
        }
        if let Some(granted) = &mut self.granted {
            *granted = Usage { day, events: self.now.events, bytes: self.now.bytes };
        }
    }

    /// What an earlier run used.
    pub(super) fn restore(&mut self, usage: Usage) {
        self.now = usage;
        if let Some(granted) = &mut self.granted {
            *granted = usage;
        }
    }

    /// How many events and bytes may be used yet; `None`: any number.
    pub(super) fn left(&self, limits: &Limits) -> (Option<u64>, Option<u64>) {
        let granted = self.granted;
        let of = |cap: Option<u64>, used: u64, granted: Option<u64>| {
            cap.map(|cap| cap.min(granted.unwrap_or(cap)).saturating_sub(used))
        };
        (
            of(limits.events_per_day, self.now.events, granted.map(|day| day.events)),
            of(limits.bytes_per_day, self.now.bytes, granted.map(|day| day.bytes)),
        )
    }

    pub(super) fn levels(&self, limits: &Limits, moment: Moment) -> (Level, Level) {
        let level = |cap: Option<u64>, used: u64| Level {
            left: cap.unwrap_or(0).saturating_sub(used),
            full_in: moment.left_seconds,
        };
        (level(limits.events_per_day, self.now.events), level(limits.bytes_per_day, self.now.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_a_day_and_back_finds_what_was_used() {
        let mut days = Days::default();
        days.turn(20_000);
        days.now.events = 7;
        days.turn(20_001);
        assert_eq!(days.now, Usage { day: 20_001, ..Usage::default() });
        days.turn(20_000);
        assert_eq!(days.now.events, 7);
    }

    #[test]
    fn the_day_ends_at_midnight_utc() {
        let noon = ReceivedAt(20_000 * DAY_MICROS + DAY_MICROS / 2);
        assert_eq!(Moment::of(noon), Moment { day: 20_000, left_seconds: 43_200 });
        let last = ReceivedAt(20_001 * DAY_MICROS - 1);
        assert_eq!(Moment::of(last), Moment { day: 20_000, left_seconds: 1 });
        let before_1970 = ReceivedAt(-1);
        assert_eq!(Moment::of(before_1970).day, -1);
    }
}
