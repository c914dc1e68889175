//! Finds the few rows that make a whole batch fail.

/// The places in `0..len` of the items that fail: `fails` is asked about ranges and says true where
/// at least one item in it fails. Asks about `2 · failing · log2(len)` ranges at most.
///
/// A range that fails while both its halves pass is not one item's fault; it is given whole.
pub fn guilty(len: usize, fails: &mut dyn FnMut(std::ops::Range<usize>) -> bool) -> Vec<usize> {
    let mut found = Vec::new();
    if 0 < len && fails(0..len) {
        halve(0..len, fails, &mut found);
    }
    found
}

/// `range` is known to fail.
fn halve(
    range: std::ops::Range<usize>,
    fails: &mut dyn FnMut(std::ops::Range<usize>) -> bool,
    found: &mut Vec<usize>,
) {
    if range.len() <= 1 {
        found.extend(range);
        return;
    }
    let middle = range.start + range.len() / 2;
    let before = found.len();
    for half in [range.start..middle, middle..range.end] {
        if fails(half.clone()) {
            halve(half, fails, found);
        }
    }
    if found.len() == before {
        found.extend(range);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_guilty_are_found(
            len in 0usize..300, bad in proptest::collection::btree_set(0usize..300, 0..6)
        ) {
            let bad: Vec<usize> = bad.into_iter().filter(|i| *i < len).collect();
            let found = guilty(len, &mut |range| bad.iter().any(|i| range.contains(i)));
            prop_assert_eq!(found, bad);
        }
    }

    #[test]
    fn a_fault_of_no_single_row_is_given_whole() {
        assert_eq!(guilty(3, &mut |range| range.len() == 3), [0, 1, 2]);
    }
}
