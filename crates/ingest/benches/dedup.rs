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

fn events(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut group = criterion.benchmark_group("writer_ids");
    group.throughput(Throughput::Elements(u64::from(EVENTS) * BATCHES));
    for (name, with_ids, window, ids) in [
        ("none", false, 600, 1_000_000),
        ("window off", true, 0, 1_000_000),
        ("1,000,000 remembered", true, 600, 1_000_000),
        ("10,000,000 remembered", true, 600, 10_000_000),
    ] {
        let dir = tempfile::TempDir::new().unwrap();
        let writer = start(dir.path(), window, ids);
        let mut number = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    number += BATCHES;
                    (number..number + BATCHES).map(|n| batch(with_ids.then_some(n))).collect()
                },
                |batches| append(&runtime, &writer, batches),
                criterion::BatchSize::PerIteration,
            );
        });
        eprintln!("{name}: {} ids remembered at the end", writer.dedup().ids);
        writer.close();
    }
    group.finish();
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
    let mut criterion = Criterion::default().configure_from_args();
    events(&mut criterion);
    criterion.final_summary();
}
