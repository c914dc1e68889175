//! What ids cost: the writer with ids, without, and with their window off; and memory for each id.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput};
use tidegate_event::{
    BatchEncoder, EncodedBatch, EventTime, EventType, SchemaRef, TenantId, record::Record,
};
use tidegate_ingest::{
    books::Books,
    clock::{Clock, SystemClock},
    config::{Size, Span},
    log::{self, LogConfig},
    storage::Disk,
    writer::{self, Append, WriterHandle, WriterSettings},
};

const EVENTS: u32 = 500;
/// Batches under way at once: about what eight busy connections keep.
const BATCHES: u64 = 8;

fn batch(ids: Option<u64>) -> EncodedBatch {
    let tenant = TenantId::new("acme").unwrap();
    let now = SystemClock.now();
    let mut encoder = BatchEncoder::new(tenant, "events", now, [7; 16], 300 << 10);
    let event_type = EventType::new("page_view").unwrap();
    let raw = format!("{{\"path\":\"{:0480}\"}}", 7);
    for index in 0..EVENTS {
        let id = ids.map(|n| format!("{n:016x}-{index:016x}"));
        encoder.push(&Record {
            index,
            event_type: &event_type,
            schema: SchemaRef::default(),
            client_id: id.as_deref(),
            event_time: EventTime(now.0),
            dead: None,
            pii_changed: false,
            note: "",
            raw: raw.as_bytes(),
        });
    }
    encoder.finish()
}

fn start(dir: &std::path::Path, window: u64, ids: usize) -> WriterHandle {
    let config = LogConfig {
        dir: dir.into(),
        retention_bytes: Size::mib(512),
        segment_bytes: Size::mib(64),
        dedup_window: Span::seconds(window),
        dedup_ids: ids,
        dedup_windows: BTreeMap::new(),
        ..LogConfig::default()
    };
    let clock = Arc::new(SystemClock);
    let mut opened = log::open(Arc::new(Disk), &config, Arc::<SystemClock>::clone(&clock)).unwrap();
    let settings = WriterSettings::new(&config, 256 << 20, Duration::from_secs(2));
    writer::start(opened.partitions.remove(0), Arc::new(Books::default()), clock, settings).unwrap()
}

fn append(runtime: &tokio::runtime::Runtime, writer: &WriterHandle, batches: Vec<EncodedBatch>) {
    let books = Books::default();
    let waiting: Vec<_> = batches
        .into_iter()
        .map(|batch| {
            let received = batch.tallies.iter().map(|t| (t.event_type.clone(), t.accepted));
            let entry = books.open(&batch.tenant, batch.received_at, received.collect());
            writer.append(batch, entry)
        })
        .collect();
    for answer in waiting {
        runtime.block_on(answer).unwrap();
    }
}

/// What is compared: name, whether events have ids, the window in seconds, how many ids.
const CASES: [(&str, bool, u64, usize); 4] = [
    ("no ids", false, 600, 1_000_000),
    ("ids, window off", true, 0, 1_000_000),
    ("ids, 1,000,000 remembered", true, 600, 1_000_000),
    ("ids, 5,000,000 remembered", true, 600, 5_000_000),
];

fn group(number: &mut u64, with_ids: bool) -> Vec<EncodedBatch> {
    *number += BATCHES;
    (*number..*number + BATCHES).map(|n| batch(with_ids.then_some(n))).collect()
}

fn events(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut benches = criterion.benchmark_group("writer");
    benches.throughput(Throughput::Elements(u64::from(EVENTS) * BATCHES));
    for (name, with_ids, window, ids) in CASES {
        let dir = tempfile::TempDir::new().unwrap();
        let writer = start(dir.path(), window, ids);
        let mut number = 0;
        benches.bench_function(name, |bencher| {
            bencher.iter_batched(
                || group(&mut number, with_ids),
                |batches| append(&runtime, &writer, batches),
                criterion::BatchSize::PerIteration,
            );
        });
        writer.close();
    }
    benches.finish();
}

/// Time all threads of this process have had a core, in nanoseconds.
fn busy() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats =
        tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("schedstat")).ok());
    stats.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Core time of each case for an event, from the queue to the answer. The cases take turns, so that
/// what else the machine does meets all of them.
fn core_time() {
    const ROUNDS: u64 = 250;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dirs = CASES.map(|_| tempfile::TempDir::new().unwrap());
    let writers: Vec<_> =
        CASES.iter().zip(&dirs).map(|(case, dir)| start(dir.path(), case.2, case.3)).collect();
    let (mut number, mut spent) = ([0; CASES.len()], [0; CASES.len()]);
    // The first rounds fill the memory, and are not counted.
    for round in 0..6 * ROUNDS {
        for (i, (case, writer)) in CASES.iter().zip(&writers).enumerate() {
            let batches = group(number.get_mut(i).unwrap(), case.1);
            let before = busy();
            append(&runtime, writer, batches);
            if round >= 5 * ROUNDS {
                *spent.get_mut(i).unwrap() += busy() - before;
            }
        }
    }
    for ((case, spent), writer) in CASES.iter().zip(spent).zip(&writers) {
        let each = spent / (ROUNDS * BATCHES * u64::from(EVENTS));
        eprintln!("{}: {each} ns of a core an event, {} ids known", case.0, writer.dedup().ids);
        writer.close();
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Memory with a million ids, less memory before them.
fn memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let writer = start(dir.path(), 86_400, 1_000_000);
    // What a group takes is there before.
    (0..50).for_each(|_| append(&runtime, &writer, vec![batch(None)]));
    let before = resident();
    for n in 0..2_000 {
        append(&runtime, &writer, vec![batch(Some(n))]);
    }
    let after = resident();
    std::thread::sleep(Duration::from_millis(1_500));
    let ids = writer.dedup().ids.max(1);
    eprintln!("memory: {} bytes an id, {ids} ids", after.saturating_sub(before) / ids);
    let folder = dir.path().join("log/partition-0/dedup");
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
    eprintln!("index: {} bytes an id", files.sum::<u64>() / ids);
    writer.close();
}

fn main() {
    memory();
    core_time();
    let mut criterion = Criterion::default().configure_from_args();
    events(&mut criterion);
    criterion.final_summary();
}
