//! Offsets of one partition, in runs, kept in pieces of 65,536 offsets.
//!
//! ```text
//! key    duplicates/<partition>/<offset / 65536>
//! value  {"format":1,"runs":[[first,last],…]}     places within the piece, ascending, both included
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, Partition};

const FORMAT: u32 = 1;
/// What all keys begin with.
pub(crate) const PREFIX: &str = "duplicates/";
const PIECE_BITS: u32 = 16;
/// Bytes of one run in memory.
const RUN_BYTES: u64 = 4;

/// The first and the last place of a run within its piece.
type Run = (u16, u16);

/// What is written of some pieces: keys, and values or none.
pub(crate) type Change = Vec<(String, Option<Vec<u8>>)>;

/// The offsets of duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pieces: BTreeMap<u64, Vec<Run>>,
    runs: u64,
}

/// A piece as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    runs: Vec<Run>,
}

/// What is kept cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {cause}")]
pub(crate) struct RecordError {
    key: String,
    cause: String,
}

fn place(offset: Offset) -> (u64, u16) {
    (offset.0 >> PIECE_BITS, (offset.0 & u64::from(u16::MAX)) as u16)
}

fn prefix(partition: Partition) -> String {
    format!("{PREFIX}{partition}/")
}

impl Records {
    /// True for the key of a piece of `partition`.
    pub fn is_piece(partition: Partition, key: &str) -> bool {
        key.starts_with(&prefix(partition))
    }

    /// Takes in a piece as it is kept.
    ///
    /// # Errors
    /// [`RecordError`]: sinks must not run without it.
    pub fn load(
        &mut self,
        partition: Partition,
        key: &str,
        value: &[u8],
    ) -> Result<(), RecordError> {
        let fault = |cause: String| RecordError { key: key.to_owned(), cause };
        let number = key.strip_prefix(&prefix(partition)).and_then(|number| number.parse().ok());
        let number: u64 = number.ok_or_else(|| fault("not the name of a piece".to_owned()))?;
        let kept: Kept = serde_json::from_slice(value).map_err(|error| fault(error.to_string()))?;
        if kept.format != FORMAT {
            return Err(fault(format!("format {} is not known to this program", kept.format)));
        }
        let ordered = kept.runs.iter().all(|(first, last)| first <= last)
            && kept.runs.is_sorted_by(|(_, last), (first, _)| last < first);
        if !ordered {
            return Err(fault("its runs are not in order".to_owned()));
        }
        self.runs += kept.runs.len() as u64;
        self.pieces.insert(number, kept.runs);
        Ok(())
    }

    /// Behind the last of them.
    pub fn end(&self) -> Offset {
        let last = self.pieces.iter().rev().find_map(|(piece, runs)| {
            runs.last().map(|(_, last)| (piece << PIECE_BITS) + u64::from(*last) + 1)
        });
        Offset(last.unwrap_or(0))
    }

    pub fn contains(&self, offset: Offset) -> bool {
        let (piece, at) = place(offset);
        let Some(runs) = self.pieces.get(&piece) else { return false };
        let after = runs.partition_point(|(first, _)| *first <= at);
        after.checked_sub(1).and_then(|i| runs.get(i)).is_some_and(|(_, last)| at <= *last)
    }

    pub fn bytes(&self) -> u64 {
        self.runs * RUN_BYTES
    }

    /// Adds offsets, ascending and all at [`Records::end`] or behind.
    pub fn add(&mut self, offsets: &[Offset]) {
        for offset in offsets {
            let (piece, at) = place(*offset);
            let runs = self.pieces.entry(piece).or_default();
            match runs.last_mut() {
                Some((_, last)) if at <= *last => {}
                Some((_, last)) if *last + 1 == at => *last = at,
                _ => {
                    runs.push((at, at));
                    self.runs += 1;
                }
            }
        }
    }

    /// What is to be written once `offsets` are added, which are as [`Records::add`] takes them.
    pub fn change(&self, partition: Partition, offsets: &[Offset]) -> Change {
        let mut after = Self::default();
        for (piece, _) in offsets.iter().map(|offset| place(*offset)) {
            let before = || self.pieces.get(&piece).cloned().unwrap_or_default();
            after.pieces.entry(piece).or_insert_with(before);
        }
        after.add(offsets);
        let value = |runs: Vec<Run>| serde_json::json!(Kept { format: FORMAT, runs }).to_string();
        let each = after.pieces.into_iter();
        each.map(|(piece, runs)| {
            (format!("{}{piece}", prefix(partition)), Some(value(runs).into_bytes()))
        })
        .collect()
    }

    /// The pieces that lie below `earliest` as a whole: what is to be written so that they are gone.
    pub fn old(&self, partition: Partition, earliest: Offset) -> Change {
        let (first, _) = place(earliest);
        let old = self.pieces.range(..first);
        old.map(|(piece, _)| (format!("{}{piece}", prefix(partition)), None)).collect()
    }

    /// Forgets what [`Records::old`] told.
    pub fn forget_old(&mut self, earliest: Offset) {
        let (first, _) = place(earliest);
        self.pieces = self.pieces.split_off(&first);
        self.runs = self.pieces.values().map(|runs| runs.len() as u64).sum();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const P: Partition = Partition(3);

    proptest! {
        /// Scenario: offsets are added in steps, each written and read again by somebody else.
        /// Guarantees: both know exactly these; what is old goes, and nothing else.
        #[test]
        fn what_was_added_is_known_to_whoever_reads_what_was_written(
            gaps in proptest::collection::vec((prop_oneof![1u64..4, 60_000u64..140_000], 0u64..3), 1..120),
            cut in 0u64..200_000,
        ) {
            let (mut records, mut kept) = (Records::default(), BTreeMap::new());
            let (mut all, mut at, mut step) = (BTreeSet::new(), 0, Vec::new());
            for (i, (gap, part)) in gaps.iter().enumerate() {
                at += gap;
                step.push(Offset(at));
                all.insert(at);
                if *part == 0 || i + 1 == gaps.len() {
                    kept.extend(records.change(P, &step));
                    records.add(&step);
                    step.clear();
                }
            }
            let read = |kept: &BTreeMap<String, Option<Vec<u8>>>| {
                let mut read = Records::default();
                for (key, value) in kept {
                    if let Some(value) = value { read.load(P, key, value).unwrap(); }
                }
                read
            };
            prop_assert_eq!(&read(&kept), &records);
            prop_assert_eq!(records.end().0, at + 1);
            for probe in all.iter().flat_map(|o| [o.saturating_sub(1), *o, o + 1]) {
                prop_assert_eq!(records.contains(Offset(probe)), all.contains(&probe), "{}", probe);
            }
            kept.extend(records.old(P, Offset(cut)));
            records.forget_old(Offset(cut));
            prop_assert_eq!(&read(&kept), &records);
            for probe in all.iter().filter(|offset| cut <= **offset) {
                prop_assert!(records.contains(Offset(*probe)));
            }
        }
    }

    #[test]
    fn a_run_of_duplicates_takes_four_bytes_and_ends_with_its_piece() {
        let mut records = Records::default();
        records.add(&(65_000..66_000).map(Offset).collect::<Vec<_>>());
        assert_eq!(records.bytes(), 8);
        assert!(!records.contains(Offset(64_999)) && !records.contains(Offset(66_000)));
    }

    #[test]
    fn a_piece_that_cannot_be_is_told() {
        for value in [
            "",
            "{}",
            r#"{"format":2,"runs":[]}"#,
            r#"{"format":1,"runs":[[3,2]]}"#,
            r#"{"format":1,"runs":[[3,5],[5,6]]}"#,
            r#"{"format":1,"runs":[[3,70000]]}"#,
        ] {
            assert!(
                Records::default().load(P, "duplicates/3/0", value.as_bytes()).is_err(),
                "{value}"
            );
        }
        let good = br#"{"format":1,"runs":[[3,5],[7,7]]}"#;
        assert!(Records::default().load(P, "duplicates/4/0", good).is_err());
        assert!(Records::default().load(P, "duplicates/3/x", good).is_err());
        assert!(Records::default().load(P, "duplicates/3/0", good).is_ok());
        assert!(Records::is_piece(P, "duplicates/3/0") && !Records::is_piece(P, "duplicates/31/0"));
    }
}
