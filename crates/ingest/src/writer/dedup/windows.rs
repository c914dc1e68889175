//! How long the ids of each event type are remembered: the distinct lengths, and which type has which.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use tidegate_event::EventType;

/// Which of the distinct lengths.
pub(super) type Class = u16;

/// The configured windows.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Microseconds, ascending, none twice, none 0.
    lengths: Vec<i64>,
    default: Option<Class>,
    types: HashMap<String, Option<Class>>,
}

fn micros(window: Duration) -> i64 {
    i64::try_from(window.as_micros()).unwrap_or(i64::MAX)
}

impl Windows {
    /// `default`, and the types that have a window of their own; 0: ids are not remembered.
    pub fn new(default: Duration, types: &BTreeMap<EventType, Duration>) -> Self {
        let all = types.values().chain([&default]).copied().map(micros);
        let mut lengths: Vec<i64> = all.filter(|length| *length > 0).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let class = |window: Duration| {
            let found = lengths.binary_search(&micros(window)).ok();
            found.and_then(|place| Class::try_from(place).ok())
        };
        let default = class(default);
        let own = types.iter().map(|(name, window)| (name.as_str().to_owned(), class(*window)));
        Self { default, types: own.collect(), lengths }
    }

    /// `None`: ids of this type are not remembered.
    pub fn class(&self, event_type: &str) -> Option<Class> {
        if self.types.is_empty() {
            return self.default;
        }
        self.types.get(event_type).copied().unwrap_or(self.default)
    }

    /// Each length in microseconds, in the order of their classes.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Two configurations with the same mark remember the same ids.
    pub fn mark(&self, key: [u8; 16], log_id: &str, partition: u32) -> [u8; 16] {
        let mut hasher = SipHasher13::new_with_key(&key);
        hasher.write(log_id.as_bytes());
        hasher.write_u32(partition);
        let length = |class: Option<Class>| {
            class.and_then(|class| self.lengths.get(usize::from(class))).copied().unwrap_or(0)
        };
        hasher.write_i64(length(self.default));
        let own: BTreeMap<_, _> = self.types.iter().collect();
        for (name, class) in own {
            hasher.write(name.as_bytes());
            hasher.write_u8(0xff);
            hasher.write_i64(length(*class));
        }
        hasher.finish128().as_u128().to_le_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn windows(default: u64, types: &[(&str, u64)]) -> Windows {
        let own = types.iter().map(|(n, s)| (EventType::new(n).unwrap(), Duration::from_secs(*s)));
        Windows::new(Duration::from_secs(default), &own.collect())
    }

    #[test]
    fn a_type_has_its_own_window_the_default_one_or_none() {
        let w = windows(600, &[("order", 86_400), ("refund", 86_400), ("beat", 0)]);
        assert_eq!(w.lengths(), [600_000_000, 86_400_000_000]);
        assert_eq!(
            (w.class("view"), w.class("order"), w.class("refund")),
            (Some(0), Some(1), Some(1))
        );
        assert_eq!((w.class("beat"), w.class("Order")), (None, Some(0)));
        let off = windows(0, &[("order", 5)]);
        assert_eq!((off.class("view"), off.class("order")), (None, Some(0)));
        assert!(windows(0, &[]).lengths().is_empty());
    }

    #[test]
    fn the_mark_changes_with_every_window_and_with_the_log() {
        let mark = |w: &Windows| w.mark([1; 16], "abcd1234", 0);
        let one = windows(600, &[("order", 86_400)]);
        assert_eq!(mark(&one), mark(&windows(600, &[("order", 86_400)])));
        for other in [
            windows(601, &[("order", 86_400)]),
            windows(600, &[("order", 86_401)]),
            windows(600, &[("orders", 86_400)]),
            windows(600, &[]),
            windows(600, &[("order", 86_400), ("x", 600)]),
        ] {
            assert_ne!(mark(&one), mark(&other), "{other:?}");
        }
        assert_ne!(mark(&one), one.mark([2; 16], "abcd1234", 0));
        assert_ne!(mark(&one), one.mark([1; 16], "abcd1235", 0));
        assert_ne!(mark(&one), one.mark([1; 16], "abcd1234", 1));
    }
}
