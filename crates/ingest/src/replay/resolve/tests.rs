//! Which windows are found, which are refused, and that what is advised is taken.

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
    fn at(&self, partition: Partition, _: Side, time: ReceivedAt) -> Result<Offset, WindowError> {
        let extent = self.0.iter().find(|e| e.partition == partition).unwrap();
        let offset = u64::try_from((time.0 - DAY).max(0)).unwrap().div_ceil(10);
        Ok(Offset(offset).clamp(extent.earliest, extent.latest))
    }
    fn now(&self) -> ReceivedAt {
        ReceivedAt(DAY + 1_000_000)
    }
}

fn extent(partition: u32, earliest: u64, latest: u64) -> Extent {
    Extent { partition: Partition(partition), earliest: Offset(earliest), latest: Offset(latest) }
}

fn resolve(extents: &[Extent], line: &str) -> Result<Vec<(u32, u64, u64)>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let word = |option: &str| words.iter().position(|word| *word == option).map(|at| words[at + 1]);
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
