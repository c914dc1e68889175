//! Which files become one: neighbours that are alike, as many as memory takes.

use tidegate_event::Offset;

/// A file that may be joined with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The offset of its first row.
    pub first: Offset,
    /// The offset of its last row.
    pub last: Offset,
    /// Files with the same number have the same columns.
    pub likeness: usize,
    /// What it takes in memory.
    pub bytes: u64,
}

/// Groups of two and more, by their places in `items`, each in the order of their offsets. The files
/// of a group are alike, none reaches into the next, and together they take at most `room` bytes.
///
/// None reaches into the next, so the name of what they become, first to last, is none of theirs.
pub fn choose(items: &[Item], room: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, &Item)> = items.iter().enumerate().collect();
    order.sort_by_key(|(_, item)| (item.likeness, item.first, item.last));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut end: Option<(&Item, u64)> = None;
    for (index, item) in order {
        let sum = match end {
            Some((last, sum))
                if last.likeness == item.likeness
                    && last.last < item.first
                    && sum + item.bytes <= room =>
            {
                sum + item.bytes
            }
            _ => {
                groups.push(std::mem::take(&mut open));
                item.bytes
            }
        };
        open.push(index);
        end = Some((item, sum));
    }
    groups.push(open);
    groups.retain(|group| 1 < group.len());
    groups
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(first: u64, last: u64, likeness: usize, bytes: u64) -> Item {
        Item { first: Offset(first), last: Offset(last), likeness, bytes }
    }

    #[test]
    fn neighbours_that_are_alike_are_joined_up_to_the_room() {
        let items = [
            item(20, 29, 0, 40),
            item(0, 9, 0, 40),
            item(10, 19, 0, 40),
            item(30, 39, 0, 90),
            item(5, 35, 1, 1),
            item(40, 49, 0, 10),
        ];
        assert_eq!(choose(&items, 100), [vec![1, 2], vec![3, 5]]);
        assert_eq!(choose(&items, 1_000), [vec![1, 2, 0, 3, 5]]);
        assert_eq!(choose(&items, 10), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn files_that_reach_into_each_other_stay_apart() {
        let items = [item(0, 30, 0, 1), item(10, 20, 0, 1), item(31, 40, 0, 1)];
        assert_eq!(choose(&items, 100), [vec![1, 2]]);
    }

    proptest! {
        #[test]
        fn a_group_is_alike_in_order_and_fits(
            raw in proptest::collection::vec((0u64..200, 0u64..20, 0usize..3, 1u64..50), 0..40),
            room in 1u64..120,
        ) {
            let items: Vec<_> =
                raw.into_iter().map(|(f, n, l, b)| item(f, f + n, l, b)).collect();
            let groups = choose(&items, room);
            let mut seen = std::collections::HashSet::new();
            for group in &groups {
                prop_assert!(1 < group.len());
                prop_assert!(group.iter().map(|i| items[*i].bytes).sum::<u64>() <= room);
                prop_assert!(group.iter().all(|i| seen.insert(*i)), "in one group only");
                for pair in group.windows(2) {
                    prop_assert!(items[pair[0]].last < items[pair[1]].first);
                    prop_assert_eq!(items[pair[0]].likeness, items[pair[1]].likeness);
                }
                let name = (items[group[0]].first, items[group[group.len() - 1]].last);
                let own = group.iter().map(|i| (items[*i].first, items[*i].last));
                let taken = own.filter(|part| *part == name).count();
                prop_assert_eq!(taken, 0, "its name is none of theirs");
            }
        }
    }
}
