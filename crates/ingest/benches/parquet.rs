//! Rows to Parquet: one lane of 20,000 events of about 500 bytes, as the lake writes them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_event::{
    BatchEncoder, EventTime, EventType, Offset, Partition, ReceivedAt, SchemaRef, TenantId,
    record::{Record, base_id},
};
use tidegate_ingest::{
    normalize::SchemaStore,
    sink::{
        SinkContext,
        lake::Lake,
        rows::{LaneRows, Lanes},
        source::SourceFrame,
    },
    storage::Disk,
};

const EVENTS: u32 = 20_000;

fn event(i: u32) -> String {
    format!(
        r#"{{"page":"/products/{}","user":"user-{}","duration":{}.25,"ok":{},"agent":"{}","tags":["a","b"],"pad":"{}"}}"#,
        i % 97,
        i % 1_009,
        i % 3_000,
        i.is_multiple_of(2),
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        format!("{i:08x}").repeat(38),
    )
}

fn frames() -> Vec<SourceFrame> {
    let received_at = ReceivedAt(1_795_255_200_000_000);
    let name = EventType::new("page_view").unwrap();
    let frame = |n: u32| {
        let tenant = TenantId::new("acme").unwrap();
        let mut batch = BatchEncoder::new(tenant, "events", received_at, base_id([7; 16]), 0);
        for i in 0..500 {
            batch.push(&Record {
                index: i,
                event_type: &name,
                schema: SchemaRef::default(),
                client_id: None,
                event_time: EventTime(received_at.0 + i64::from(i)),
                dead: None,
                pii_changed: false,
                note: "",
                raw: event(n * 500 + i).as_bytes(),
            });
        }
        let batch = batch.finish();
        let base = Offset(u64::from(n) * 500);
        SourceFrame { base, count: batch.count, received_at, body: batch.body }
    };
    (0..EVENTS / 500).map(frame).collect()
}

fn rows_to_parquet(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let schemas = SchemaStore::open(Arc::new(Disk), dir.path().join("schemas")).unwrap();
    let context = SinkContext {
        log_id: String::new(),
        shared_as: None,
        data_dir: dir.path().to_owned(),
        storage: Arc::new(Disk),
        schemas: Arc::new(schemas),
        runtime: runtime.handle().clone(),
    };
    let config = toml::from_str("name='lake'\nkind='lake'").unwrap();
    let lake = Lake::open(&config, &context, &|store| store).unwrap();
    let frames = frames();
    let bytes: usize = frames.iter().map(|frame| frame.body.len()).sum();
    let mut group = c.benchmark_group("parquet");
    group.sample_size(20);
    group.throughput(Throughput::Elements(EVENTS.into()));
    group.bench_function(format!("{EVENTS} rows, {} bytes each", bytes / 20_000), |b| {
        b.iter(|| {
            let lanes = Lanes::sort(black_box(&frames), |_, _| true);
            for (lane, rows) in &lanes.rows {
                let rows = LaneRows {
                    log_id: "abcd1234",
                    partition: Partition(0),
                    lane,
                    heads: &lanes.heads,
                    rows,
                };
                black_box(lake.files(&rows).unwrap());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, rows_to_parquet);
criterion_main!(benches);
