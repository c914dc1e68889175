//! The window of a partition in parts that are written at the same time: so a single partition keeps more than one
//! processor busy, and what one part waits for the disk, another works.
//!
//! Each part is a log of its own to a runner of its own, with its own cursors (`part-<number>/`). Which offsets a part
//! has follows from the plan and the kinds of its sinks alone: a job that is resumed finds the same.

use std::ops::Range;

use tidegate_event::{Offset, Partition};

use super::{Plan, Slice};
use crate::sink::{SinkConfig, SinkKind};

/// What parts are called.
pub(super) const NUMBERS: Range<usize> = 0..2;
/// Smaller parts would cost more files than they gain time.
const OFFSETS_LEAST: u64 = 500;

/// `[from, to)` of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of its partition's.
    pub number: usize,
    /// Which partition.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub to: Offset,
}

/// The parts of a plan whose sinks are among `sinks`: each offset of its window is in one of them.
pub(super) fn of(plan: &Plan, sinks: &[SinkConfig]) -> Vec<Part> {
    let may = plan.content.targets.iter().all(|target| {
        let live = sinks.iter().find(|sink| sink.name == target.sink);
        live.is_some_and(|live| SinkKind::of(live).is_ok_and(|kind| kind.side_by_side))
    });
    let slices = plan.content.window.iter().filter(|slice| slice.from < slice.to);
    slices.flat_map(|slice| divide(slice, if may { NUMBERS.end } else { 1 })).collect()
}

fn divide(slice: &Slice, most: usize) -> impl Iterator<Item = Part> + use<> {
    let (partition, from, to) = (slice.partition, slice.from, slice.to);
    let offsets = to.since(from);
    let parts = (offsets / OFFSETS_LEAST).clamp(1, most as u64);
    // At most two: no product of an offset and a number overflows.
    let at =
        move |number: u64| from.plus(offsets / parts * number + offsets % parts * number / parts);
    (0..parts).map(move |number| Part {
        number: usize::try_from(number).unwrap_or_default(),
        partition,
        from: at(number),
        to: at(number + 1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_offset_is_in_one_part_and_none_is_small(
            from in 0u64..1 << 62, offsets in 1u64..1 << 40, most in 1usize..=NUMBERS.end,
        ) {
            let (from, to) = (Offset(from), Offset(from + offsets));
            let slice = Slice {
                partition: Partition(3), from, to, events: 0, bytes: 0, log_bytes: 0, first: None, last: None,
            };
            let parts: Vec<Part> = divide(&slice, most).collect();
            let mut at = from;
            for (number, part) in parts.iter().enumerate() {
                prop_assert_eq!((part.number, part.partition, part.from), (number, Partition(3), at));
                prop_assert!(parts.len() == 1 || OFFSETS_LEAST <= part.to.since(part.from));
                at = part.to;
            }
            prop_assert_eq!(at, to);
            prop_assert_eq!(parts.len() == most, OFFSETS_LEAST * most as u64 <= offsets || most == 1);
        }
    }
}
