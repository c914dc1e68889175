//! Storage under a simulated disk: what is promised of log, ledger, small files and lake holds after
//! any crash, for any seed. How to run more of it: docs/testing.md.

mod control;
mod dedup;
mod dice;
mod every_bit;
mod fs;
mod injected;
mod lake;
mod ledger;
mod log;
mod promote;
mod replace;
mod rot;
mod store;
mod world;

use std::{path::Path, sync::Arc};

use tidegate_ingest::{
    clock::ManualClock,
    config::{Size, Span},
    log::{self as ingest_log, Entry, Log, LogConfig, LogHandle, OpenError, Recovery},
    storage::Storage,
};

/// 2026-11-21T10:00:00Z
const MORNING: i64 = 1_795_255_200_000_000;

/// Runs `one` for each seed from `first` on: `usual` many, or as many as `TIDEGATE_SIM_SEEDS` says. A
/// failure names its seed; `TIDEGATE_SIM_FIRST` begins there. `one` returns its operations. What was
/// injected counts for `promises`.
fn seeds(
    what: &'static str,
    promises: &'static [&'static str],
    usual: u64,
    one: impl Fn(u64) -> u64,
) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    let first = number("TIDEGATE_SIM_FIRST").unwrap_or(0);
    let count = number("TIDEGATE_SIM_SEEDS").unwrap_or(usual);
    let mut operations = 0;
    let _tallies = injected::Tallies::new(what, promises);
    for seed in first..first + count {
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(seed)));
        match run {
            Ok(n) => operations += n,
            Err(panic) => {
                eprintln!("{what}: failed at seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{what}: {count} seeds from {first}, {operations} operations");
}

/// A small log: segments of a few frames, and no more than a few segments.
fn small_log() -> LogConfig {
    LogConfig {
        dir: "/data".into(),
        segment_bytes: Size(6 << 10),
        retention_bytes: Size(40 << 10),
        retention_age: Span::seconds(1 << 30),
        ..LogConfig::default()
    }
}

fn open_log(
    storage: Arc<dyn Storage>,
    config: &LogConfig,
    clock: &Arc<ManualClock>,
) -> Result<(Log, Recovery), OpenError> {
    let mut opened = ingest_log::open(storage, config, Arc::<ManualClock>::clone(clock))?;
    Ok((opened.partitions.remove(0), opened.recovery.remove(0)))
}

/// All that the log holds.
fn entries(handle: &LogHandle) -> Vec<Entry> {
    let mut reader = handle.read_from(handle.earliest()).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry);
    }
    assert_eq!(reader.position(), handle.latest(), "read to the end");
    entries
}

fn partition() -> &'static Path {
    Path::new("/data/log/partition-0")
}
