//! Which offsets a window is: its two addresses against what the log holds.

use std::collections::BTreeMap;

use tidegate_event::{Offset, Partition, ReceivedAt};

use super::{
    address::{Address, Side, When, list},
    marks::MarkName,
};

/// What one partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which.
    pub partition: Partition,
    /// The first offset still there.
    pub earliest: Offset,
    /// The next offset to be given.
    pub latest: Offset,
}

/// What is read of one partition: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Which.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub to: Offset,
}

/// Why there is no window: refused with what would be right, or not to be found out now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Sentences for the operator.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The log or the control log cannot be read.
    #[error("{0}")]
    Failed(String),
}

impl WindowError {
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused(vec![why.into()])
    }
}

/// What is asked while addresses are resolved.
pub trait Places {
    /// The offsets of a mark.
    ///
    /// # Errors
    /// [`WindowError`]: nobody set it.
    fn mark(&self, name: &MarkName) -> Result<BTreeMap<Partition, Offset>, WindowError>;
    /// The first offset received at `time` or later; the end where there is none.
    ///
    /// # Errors
    /// [`WindowError::Failed`].
    fn at(&self, partition: Partition, side: Side, time: ReceivedAt)
    -> Result<Offset, WindowError>;
    /// Now.
    fn now(&self) -> ReceivedAt;
}

/// Both ends and the partition that was named beside them.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Where it begins.
    pub from: &'a Address,
    /// Where it ends.
    pub to: &'a Address,
    /// `--partition`
    pub partition: Option<u32>,
}

type Offsets = BTreeMap<Partition, Offset>;

impl Window<'_> {
    /// The offsets of each partition, in order; partitions of which nothing is meant are left out.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn resolve(
        &self,
        extents: &[Extent],
        places: &dyn Places,
    ) -> Result<Vec<Bounds>, WindowError> {
        let meant = self.partitions(extents)?;
        let from = self.offsets(Side::From, &meant, places)?;
        let to = self.offsets(Side::To, &meant, places)?;
        let mut refused = Vec::new();
        refused.extend(self.gone(&meant, &from));
        refused.extend(self.not_there_yet(Side::From, &meant, &from));
        refused.extend(self.not_there_yet(Side::To, &meant, &to));
        if refused.is_empty() {
            refused.extend(self.out_of_order(&from, &to));
        }
        if !refused.is_empty() {
            return Err(WindowError::Refused(refused));
        }
        let each = from.iter().zip(to.values());
        let bounds = each.map(|((partition, from), to)| Bounds {
            partition: *partition,
            from: *from,
            to: *to,
        });
        Ok(bounds.filter(|bounds| bounds.from < bounds.to).collect())
    }

    /// Which partitions are meant, of those that there are.
    fn partitions(&self, extents: &[Extent]) -> Result<Vec<Extent>, WindowError> {
        let named =
            |partition: Partition| extents.iter().find(|e| e.partition == partition).copied();
        let known = || {
            let all: Vec<String> = extents.iter().map(|e| e.partition.to_string()).collect();
            all.join(", ")
        };
        let unknown = |option: &str, partition: Partition| {
            WindowError::refused(format!(
                "{option} names partition {partition}; the log has {}",
                known()
            ))
        };
        if let Some(partition) = self.partition.map(Partition) {
            return match named(partition) {
                Some(extent) => Ok(vec![extent]),
                None => Err(unknown("--partition", partition)),
            };
        }
        let ends = [(Side::From, self.from), (Side::To, self.to)];
        for (side, address) in ends {
            let Address::Places(listed) = address else { continue };
            if let Some(partition) = listed.keys().find(|partition| named(**partition).is_none()) {
                return Err(unknown(side.option(), *partition));
            }
        }
        let listed: Vec<&Offsets> = ends
            .iter()
            .filter_map(|(_, address)| match address {
                Address::Places(listed) => Some(listed),
                _ => None,
            })
            .collect();
        let wanted: Vec<Extent> = match listed.first() {
            Some(first) => first.keys().filter_map(|partition| named(*partition)).collect(),
            None => extents.to_vec(),
        };
        if let [one, other] = listed.as_slice()
            && !one.keys().eq(other.keys())
        {
            return Err(unlike(extents, one, other));
        }
        for (side, address) in ends {
            if let Address::Offset(offset) = address
                && 1 < extents.len()
            {
                return Err(bare(side, *offset, extents, listed.first().copied()));
            }
        }
        Ok(wanted)
    }

    /// One end of each of `meant`.
    fn offsets(
        &self,
        side: Side,
        meant: &[Extent],
        places: &dyn Places,
    ) -> Result<Offsets, WindowError> {
        let address = match side {
            Side::From => self.from,
            Side::To => self.to,
        };
        let each =
            |of: &dyn Fn(&Extent) -> Result<Offset, WindowError>| -> Result<Offsets, WindowError> {
                meant.iter().map(|extent| Ok((extent.partition, of(extent)?))).collect()
            };
        match address {
            Address::Places(listed) => Ok(listed.clone()),
            Address::Offset(offset) => each(&|_| Ok(*offset)),
            Address::Earliest => each(&|extent| Ok(extent.earliest)),
            Address::Latest => each(&|extent| Ok(extent.latest)),
            Address::Mark(name) => {
                let marked = places.mark(name)?;
                // A partition that is newer than the mark had nothing then.
                each(&|extent| Ok(marked.get(&extent.partition).copied().unwrap_or_default()))
            }
            Address::Time(When { at, text }) => {
                if side == Side::To && places.now() < *at {
                    let why = format!("--to-time {text} is still to come: write --to latest");
                    return Err(WindowError::refused(why));
                }
                each(&|extent| {
                    let found = places.at(extent.partition, side, *at)?;
                    Ok(found.clamp(extent.earliest, extent.latest))
                })
            }
        }
    }

    /// How `offsets` are written.
    fn spelled(&self, side: Side, offsets: &Offsets) -> String {
        let option = side.option();
        match (self.partition, offsets.first_key_value()) {
            (Some(partition), Some((_, offset))) => {
                format!("--partition {partition} {option} {offset}")
            }
            _ => format!("{option} {}", list(offsets)),
        }
    }

    /// What of the window retention has removed.
    fn gone(&self, meant: &[Extent], from: &Offsets) -> Option<String> {
        let is_time = matches!(self.from, Address::Time(_));
        let is_gone = |extent: &&Extent| {
            let from = from.get(&extent.partition).copied().unwrap_or_default();
            // What was received then may lie before what is left, where something is gone.
            let unclear = is_time && from == extent.earliest && 0 < extent.earliest.0;
            from < extent.earliest || unclear
        };
        let gone: Vec<&Extent> = meant.iter().filter(is_gone).collect();
        let first = gone.first()?;
        let right: Offsets = meant
            .iter()
            .map(|extent| {
                let from = from.get(&extent.partition).copied().unwrap_or_default();
                (extent.partition, from.max(extent.earliest))
            })
            .collect();
        let parts: Vec<String> = gone
            .iter()
            .map(|extent| format!("partition {} below {}", extent.partition, extent.earliest))
            .collect();
        let what = match self.from {
            Address::Time(_) => {
                "part of it may have been received at that time or later, and nobody can tell"
            }
            _ if from.get(&first.partition).is_none_or(|from| first.latest <= *from) => {
                "all that it held is gone"
            }
            _ => "that part of the window is gone",
        };
        Some(format!(
            "{}: retention has removed {}; {what}: write {}",
            self.from.spelled(Side::From),
            parts.join(", "),
            self.spelled(Side::From, &right)
        ))
    }

    /// Where an end lies behind the log's.
    fn not_there_yet(&self, side: Side, meant: &[Extent], offsets: &Offsets) -> Option<String> {
        let (address, name) = match side {
            Side::From => (self.from, "earliest"),
            Side::To => (self.to, "latest"),
        };
        let end = |extent: &Extent| offsets.get(&extent.partition).copied().unwrap_or_default();
        let past: Vec<&Extent> = meant.iter().filter(|e| e.latest < end(e)).collect();
        if past.is_empty() {
            return None;
        }
        let right: Offsets =
            meant.iter().map(|extent| (extent.partition, end(extent).min(extent.latest))).collect();
        let ends: Vec<String> = past
            .iter()
            .map(|extent| format!("partition {} ends at {}", extent.partition, extent.latest))
            .collect();
        let ends = ends.join(", ");
        let what = address.spelled(side);
        Some(match side {
            Side::From => format!(
                "{what} is past the end: {ends}; write an offset before that, or {} {name}",
                side.option()
            ),
            Side::To => format!(
                "{what} is past the end: {ends} (the offset that the next event gets): write {} or {} {name}",
                self.spelled(side, &right),
                side.option()
            ),
        })
    }

    /// Where it ends before it begins, or holds nothing.
    fn out_of_order(&self, from: &Offsets, to: &Offsets) -> Option<String> {
        let both = || from.iter().filter_map(|(p, from)| Some((*p, *from, *to.get(p)?)));
        let (begins, ends) = (self.from.spelled(Side::From), self.to.spelled(Side::To));
        if let Some((partition, first, end)) = both().find(|(_, from, to)| to < from) {
            let turned = both().all(|(_, from, to)| to <= from);
            let right = if turned {
                let (from, to) = (self.to.spelled(Side::From), self.from.spelled(Side::To));
                format!("write {from} {to}")
            } else {
                "write one that begins before it ends in every partition".to_owned()
            };
            return Some(format!(
                "{begins} {ends} ends before it begins: partition {partition} from {first} to {end}; {right}"
            ));
        }
        let is_written =
            |address: &Address| matches!(address, Address::Places(_) | Address::Offset(_));
        let written = is_written(self.from) && is_written(self.to);
        let empty: Vec<_> = both().filter(|(_, from, to)| from == to).collect();
        if !(written && !empty.is_empty()) && empty.len() < from.len() {
            return None;
        }
        let (partition, at, _) = empty.first()?;
        let beyond: Offsets = to
            .iter()
            .map(|(p, to)| (*p, if from.get(p) == Some(to) { to.plus(1) } else { *to }))
            .collect();
        Some(if written {
            format!(
                "{begins} {ends} holds nothing of partition {partition}: it ends before offset {at}; with that event: {}",
                self.spelled(Side::To, &beyond)
            )
        } else {
            let each: Vec<String> =
                empty.iter().map(|(p, at, _)| format!("partition {p} at {at}")).collect();
            format!(
                "{begins} {ends} holds nothing: both are {}; `ingestctl offsets` shows what the log holds",
                each.join(", ")
            )
        })
    }
}

/// Two lists of unlike partitions.
fn unlike(extents: &[Extent], from: &Offsets, to: &Offsets) -> WindowError {
    let names = |places: &Offsets| {
        let each: Vec<String> = places.keys().map(ToString::to_string).collect();
        each.join(", ")
    };
    let meant = |e: &&Extent| from.contains_key(&e.partition) || to.contains_key(&e.partition);
    let filled = |places: &Offsets, missing: fn(&Extent) -> Offset| -> Offsets {
        let each = extents.iter().filter(meant);
        each.map(|e| (e.partition, places.get(&e.partition).copied().unwrap_or(missing(e))))
            .collect()
    };
    WindowError::refused(format!(
        "--from names partitions {}, --to names {}: name the same, such as --from {} --to {}",
        names(from),
        names(to),
        list(&filled(from, |extent| extent.earliest)),
        list(&filled(to, |extent| extent.latest))
    ))
}

/// An offset of nobody knows which partition.
fn bare(side: Side, offset: Offset, extents: &[Extent], listed: Option<&Offsets>) -> WindowError {
    let option = side.option();
    let each: Offsets = match listed {
        Some(listed) => listed.keys().map(|partition| (*partition, offset)).collect(),
        None => extents.iter().map(|extent| (extent.partition, offset)).collect(),
    };
    let one = each.keys().next().copied().unwrap_or_default();
    let several = format!(
        "{option} {offset} is an offset of which partition? The log has {}: write {option} {}",
        extents.len(),
        list(&each)
    );
    let both = listed.is_none();
    WindowError::refused(if both {
        format!("{several}, or --partition {one} {option} {offset} for one alone")
    } else {
        several
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replay::address::{Written, parse};

    /// A log of which event `n` of each partition was received at `10 * n` µs past a day of 2026.
    struct World(Vec<Extent>);

    const DAY: i64 = 1_795_219_200_000_000;

    impl Places for World {
        fn mark(&self, name: &MarkName) -> Result<Offsets, WindowError> {
            match name.to_string().as_str() {
                "deploy:old" => {
                    Ok(Offsets::from([(Partition(0), Offset(3)), (Partition(1), Offset(4))]))
                }
                "deploy:new" => {
                    Ok(Offsets::from([(Partition(0), Offset(15)), (Partition(1), Offset(25))]))
                }
                _ => Err(WindowError::refused("nobody set it")),
            }
        }
        fn at(
            &self,
            partition: Partition,
            _: Side,
            time: ReceivedAt,
        ) -> Result<Offset, WindowError> {
            let extent = self.0.iter().find(|e| e.partition == partition).unwrap();
            let offset = u64::try_from((time.0 - DAY).max(0)).unwrap().div_ceil(10);
            Ok(Offset(offset).clamp(extent.earliest, extent.latest))
        }
        fn now(&self) -> ReceivedAt {
            ReceivedAt(DAY + 1_000_000)
        }
    }

    fn extent(partition: u32, earliest: u64, latest: u64) -> Extent {
        Extent {
            partition: Partition(partition),
            earliest: Offset(earliest),
            latest: Offset(latest),
        }
    }

    fn resolve(extents: &[Extent], line: &str) -> Result<Vec<(u32, u64, u64)>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word =
            |option: &str| words.iter().position(|word| *word == option).map(|at| words[at + 1]);
        let written = Written {
            from: word("--from"),
            to: word("--to"),
            from_time: word("--from-time"),
            to_time: word("--to-time"),
            partition: word("--partition").map(|p| p.parse().unwrap()),
        };
        let (from, to) = written.read().map_err(|e| e[0].to_string())?;
        let window = Window { from: &from, to: &to, partition: written.partition };
        let found = window.resolve(extents, &World(extents.to_vec())).map_err(|e| e.to_string())?;
        Ok(found.iter().map(|b| (b.partition.0, b.from.0, b.to.0)).collect())
    }

    const ONE: &[Extent] =
        &[Extent { partition: Partition(0), earliest: Offset(10), latest: Offset(20) }];

    fn two() -> Vec<Extent> {
        vec![extent(0, 0, 20), extent(1, 0, 30)]
    }

    #[test]
    fn each_way_of_writing_a_window_finds_its_offsets() {
        for (line, found) in [
            ("--from 12 --to 15", (0, 12, 15)),
            ("--from 0:12 --to 15", (0, 12, 15)),
            ("--partition 0 --from 12 --to 15", (0, 12, 15)),
            ("--from earliest --to latest", (0, 10, 20)),
            ("--from 12 --to latest", (0, 12, 20)),
            (
                "--from-time 2026-11-21T00:00:00.000111Z --to-time 2026-11-21T00:00:00.000150Z",
                (0, 12, 15),
            ),
            ("--from-time 2026-11-21T01:00:00.000120+01:00 --to deploy:new", (0, 12, 15)),
        ] {
            assert_eq!(resolve(ONE, line), Ok(vec![found]), "{line}");
        }
        for (line, found) in [
            ("--from 0:2,1:3 --to 0:4,1:30", vec![(0, 2, 4), (1, 3, 30)]),
            ("--from 1:3 --to latest", vec![(1, 3, 30)]),
            ("--from earliest --to 1:3", vec![(1, 0, 3)]),
            ("--from deploy:old --to deploy:new", vec![(0, 3, 15), (1, 4, 25)]),
            ("--partition 1 --from deploy:old --to 5", vec![(1, 4, 5)]),
            ("--from-time 2026-11-21T00:00:00.000200Z --to latest", vec![(1, 20, 30)]),
        ] {
            assert_eq!(resolve(&two(), line), Ok(found), "{line}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_not_there_is_refused_with_what_would_be_right() {
        let gone = &[extent(0, 0, 20), extent(1, 7, 30)];
        for (extents, line, said) in [
            (
                &two()[..],
                "--from 5 --to latest",
                "--from 5 is an offset of which partition? The log has 2: write --from 0:5,1:5, or --partition 0 --from 5 for one alone",
            ),
            (
                &two(),
                "--from 0:5 --to 9",
                "--to 9 is an offset of which partition? The log has 2: write --to 0:9",
            ),
            (
                &two(),
                "--from 0:5 --to 0:9,1:9",
                "--from names partitions 0, --to names 0, 1: name the same, such as --from 0:5,1:0 --to 0:9,1:9",
            ),
            (&two(), "--from 7:5 --to latest", "--from names partition 7; the log has 0, 1"),
            (
                &two(),
                "--partition 2 --from 5 --to latest",
                "--partition names partition 2; the log has 0, 1",
            ),
            (
                &two(),
                "--from 0:5,1:9 --to 0:21,1:31",
                "--to 0:21,1:31 is past the end: partition 0 ends at 20, partition 1 ends at 30 (the offset that the next event gets): write --to 0:20,1:30 or --to latest",
            ),
            (
                &two(),
                "--from 0:21 --to latest",
                "--from 0:21 is past the end: partition 0 ends at 20; write an offset before that, or --from earliest",
            ),
            (
                &two(),
                "--from 0:9 --to 0:5",
                "--from 0:9 --to 0:5 ends before it begins: partition 0 from 9 to 5; write --from 0:5 --to 0:9",
            ),
            (
                &two(),
                "--from deploy:new --to deploy:old",
                "--from deploy:new --to deploy:old ends before it begins: partition 0 from 15 to 3; write --from deploy:old --to deploy:new",
            ),
            (
                &two(),
                "--from 0:5,1:9 --to 0:5,1:10",
                "--from 0:5,1:9 --to 0:5,1:10 holds nothing of partition 0: it ends before offset 5; with that event: --to 0:6,1:10",
            ),
            (
                &two(),
                "--from latest --to latest",
                "--from latest --to latest holds nothing: both are partition 0 at 20, partition 1 at 30; `ingestctl offsets` shows what the log holds",
            ),
            (
                &two(),
                "--from earliest --to-time 2026-11-22T00:00Z",
                "--to-time 2026-11-22T00:00Z is still to come: write --to latest",
            ),
            (
                gone,
                "--from 0:2,1:3 --to latest",
                "--from 0:2,1:3: retention has removed partition 1 below 7; that part of the window is gone: write --from 0:2,1:7",
            ),
            (
                gone,
                "--from deploy:old --to latest",
                "--from deploy:old: retention has removed partition 1 below 7; that part of the window is gone: write --from 0:3,1:7",
            ),
            (
                gone,
                "--partition 1 --from 3 --to latest",
                "--from 3: retention has removed partition 1 below 7; that part of the window is gone: write --partition 1 --from 7",
            ),
            (
                gone,
                "--from-time 2026-11-21T00:00:00.000040Z --to latest",
                "--from-time 2026-11-21T00:00:00.000040Z: retention has removed partition 1 below 7; part of it may have been received at that time or later, and nobody can tell: write --from 0:4,1:7",
            ),
        ] {
            assert_eq!(resolve(extents, line), Err(said.to_owned()), "{line}");
        }
        // What is gone is refused; what was received behind it is not.
        assert!(resolve(gone, "--from-time 2026-11-21T00:00:00.000080Z --to latest").is_ok());
        assert!(resolve(gone, "--from earliest --to latest").is_ok());
    }

    proptest! {
        #[test]
        fn what_is_found_lies_in_the_log_and_what_is_advised_is_taken(
            extents in prop::collection::vec((0..40u64, 0..40u64), 1..4),
            from in prop::collection::btree_map(0..4u32, 0..90u64, 1..4),
            to in prop::collection::btree_map(0..4u32, 0..90u64, 1..4),
        ) {
            let extents: Vec<Extent> = (0..).zip(extents)
                .map(|(p, (earliest, events))| extent(p, earliest, earliest + events)).collect();
            let text = |places: &BTreeMap<u32, u64>| list(&places.iter().map(|(p, o)| (Partition(*p), Offset(*o))).collect());
            let line = format!("--from {} --to {}", text(&from), text(&to));
            match resolve(&extents, &line) {
                Ok(found) => {
                    prop_assert_eq!(found.len(), from.len());
                    for (partition, first, end) in found {
                        let held = &extents[partition as usize];
                        prop_assert!(held.earliest.0 <= first && first < end && end <= held.latest.0);
                        prop_assert_eq!((first, end), (from[&partition], to[&partition]));
                    }
                }
                Err(said) => {
                    prop_assert!(!said.is_empty());
                    // Each address that is advised is one.
                    for side in [Side::From, Side::To] {
                        let words: Vec<&str> = said.split_whitespace().collect();
                        for pair in words.windows(2).filter(|pair| pair[0] == side.option()) {
                            if pair[1].starts_with(|c: char| c.is_ascii_digit()) {
                                let address = pair[1].trim_end_matches([',', ':', ';']);
                                prop_assert!(parse(side, address).is_ok(), "{} in {}", address, said);
                            }
                        }
                    }
                }
            }
        }
    }
}
