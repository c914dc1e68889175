//! What became of a request's items, as its protocol's answer tells it.

use crate::{
    edge::{answer::ItemError, bench::Nothing, problem::Problem},
    writer::Appended,
};

/// What became of a request's items.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// How many are durable and valid.
    pub accepted: u64,
    /// How many are durable with a reason.
    pub dead_lettered: u64,
    /// How many were known already by their id.
    pub deduplicated: u64,
    /// How many cannot be kept.
    pub rejected: u64,
    /// Items that were not accepted, in order.
    pub errors: Vec<ItemError>,
    /// True where `errors` does not list all.
    pub errors_truncated: bool,
    /// Why nothing could be kept, where that is so.
    pub nothing: Option<(Problem, String)>,
    /// The items that are dead letters or known, each in order.
    dead: Vec<u32>,
    known: Vec<u32>,
}

/// What became of one item.
#[derive(Clone, Copy, Debug)]
pub enum Slot<'a> {
    /// Durable and valid.
    Accepted,
    /// Durable, with its reason.
    DeadLettered(&'a ItemError),
    /// Known already by its id.
    Duplicate,
    /// Cannot be kept.
    Rejected(&'a ItemError),
}

/// What the items of a request came to before they were appended.
pub(in crate::edge) struct Sorted {
    /// How many are in the batch.
    pub kept: u64,
    pub rejected: u64,
    /// The dead letters, in order.
    pub dead: Vec<u32>,
    pub errors: Vec<ItemError>,
    pub errors_truncated: bool,
}

impl Outcomes {
    /// An event known already by its id counts as that and as nothing else.
    pub(in crate::edge) fn of(sorted: Sorted, appended: Appended) -> Self {
        let Sorted { kept, rejected, dead, mut errors, errors_truncated } = sorted;
        let known = appended.deduplicated;
        let is_known = |index: &u32| known.binary_search(index).is_ok();
        let dead_lettered = dead.iter().filter(|index| !is_known(index)).count() as u64;
        let deduplicated = known.len() as u64;
        if !known.is_empty() {
            errors.retain(|error| !is_known(&error.index));
        }
        Self {
            accepted: kept.saturating_sub(dead_lettered + deduplicated),
            dead_lettered,
            deduplicated,
            rejected,
            errors,
            errors_truncated,
            nothing: None,
            dead,
            known,
        }
    }

    /// Where nothing could be kept.
    pub(in crate::edge) fn nothing(
        nothing: Nothing,
        rejected: u64,
        errors: Vec<ItemError>,
    ) -> Self {
        Self {
            rejected,
            errors,
            nothing: Some((nothing.problem, nothing.detail)),
            ..Self::default()
        }
    }

    /// All items.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.accepted + self.dead_lettered + self.deduplicated + self.rejected
    }

    /// What became of each item, in order. Only for a protocol that has all reasons
    /// ([`super::Tells::EachItem`]): it is put together from three lists in order, and costs nothing
    /// where nobody asks.
    pub fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let mut errors = self.errors.iter().peekable();
        (0..u32::try_from(self.items()).unwrap_or(u32::MAX)).map(move |index| {
            match errors.next_if(|error| error.index == index) {
                Some(error) if self.dead.binary_search(&index).is_ok() => Slot::DeadLettered(error),
                Some(error) => Slot::Rejected(error),
                None if self.known.binary_search(&index).is_ok() => Slot::Duplicate,
                None => Slot::Accepted,
            }
        })
    }

    /// The first item that could not be kept, and why.
    #[must_use]
    pub fn first_rejected(&self) -> Option<&ItemError> {
        self.slots().find_map(|slot| match slot {
            Slot::Rejected(error) => Some(error),
            Slot::Accepted | Slot::DeadLettered(_) | Slot::Duplicate => None,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tidegate_event::Partition;

    use super::*;

    proptest! {
        /// 0: valid, 1: dead letter, 2: rejected; true: known by its id, were it kept.
        #[test]
        fn slots_say_of_each_item_what_became_of_it(
            items in prop::collection::vec((0..3u8, any::<bool>()), 1..60),
        ) {
            let index = |at: usize| u32::try_from(at).unwrap();
            let of = |kind: &[u8]| -> Vec<u32> {
                let found = items.iter().enumerate().filter(|(_, (k, _))| kind.contains(k));
                found.map(|(at, _)| index(at)).collect()
            };
            let error = |at: &u32| ItemError {
                index: *at, event_id: None, code: "x", field: String::new(), message: at.to_string(),
            };
            let known: Vec<u32> = items.iter().enumerate()
                .filter(|(_, (kind, known))| *known && *kind != 2).map(|(at, _)| index(at)).collect();
            let sorted = Sorted {
                kept: of(&[0, 1]).len() as u64, rejected: of(&[2]).len() as u64, dead: of(&[1]),
                errors: of(&[1, 2]).iter().map(error).collect(), errors_truncated: false,
            };
            let appended = Appended { partition: Partition(0), range: None, deduplicated: known };
            let outcomes = Outcomes::of(sorted, appended);
            prop_assert_eq!(outcomes.items(), items.len() as u64);
            let slots: Vec<_> = outcomes.slots().collect();
            prop_assert_eq!(slots.len(), items.len());
            for (at, (slot, (kind, known))) in slots.iter().zip(&items).enumerate() {
                let fits = match slot {
                    Slot::Accepted => *kind == 0 && !known,
                    Slot::Duplicate => *kind != 2 && *known,
                    Slot::DeadLettered(error) => *kind == 1 && !known && error.message == at.to_string(),
                    Slot::Rejected(error) => *kind == 2 && error.message == at.to_string(),
                };
                prop_assert!(fits, "{} {:?}", at, slot);
            }
            let first = outcomes.first_rejected().map(|error| error.index);
            prop_assert_eq!(first, of(&[2]).first().copied());
        }
    }
}
