//! Scan, verdict and row of one event of about 500 bytes and 13 fields.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_event::{ReceivedAt, TenantId};
use tidegate_ingest::{
    json::{Object, ScanLimits, scan_object, split_array},
    normalize::{
        Item, JudgeContext, Normalizer, ProjectScratch, SchemaStore, SchemasConfig, Scratch,
    },
    storage::Disk,
    tenants::{Quota, Secret, Tenant},
};

const LIMITS: ScanLimits = ScanLimits { depth: 32, fields: 512 };
const NOW: ReceivedAt = ReceivedAt(1_772_323_200_000_000);

const SCHEMA: &str = r#"{
  "x-version": 1, "type": "object", "required": ["path", "user_id"],
  "properties": {
    "user_id": {"type": "string"}, "session": {"type": "string"}, "path": {"type": "string"},
    "referrer": {"type": ["string", "null"]}, "country": {"type": "string"},
    "device": {"type": "string"}, "browser": {"type": "string"},
    "duration": {"type": "number", "x-unit": "s", "x-accept": {"duration_ms": "ms"}},
    "scroll": {"type": "number", "minimum": 0, "maximum": 1}, "payload": {"type": "string"}
  }
}"#;

fn event(duration: &str) -> String {
    format!(
        r#"{{"event_type":"page_view","event_id":"0190b6a4-7a9e-7cc1-a3f2-9a4d1c2b3e4f","event_time":"2026-02-28T12:00:00.123Z","user_id":"u_8374651928","session":"s_0190b6a47a9e7cc1","path":"/products/4711/reviews?page=3&sort=newest","referrer":"https://www.example.com/search?q=tide+gate","country":"DE","device":"mobile","browser":"Firefox 134.0",{duration},"scroll":0.75,"payload":"Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy eirmod tempor invidunt ut labore et dolore"}}"#
    )
}

fn normalizer(schema: Option<&str>) -> Normalizer {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    if let Some(schema) = schema {
        std::fs::write(schemas.join("page_view.json"), schema).unwrap();
    }
    let store = SchemaStore::open(Arc::new(Disk), dir.path().join("schemas-by-hash")).unwrap();
    let config = SchemasConfig { dir: Some(schemas), ..SchemasConfig::default() };
    Normalizer::load(&config, Arc::new(store), LIMITS).unwrap()
}

fn tenant() -> Tenant {
    Tenant {
        id: TenantId::new("acme").unwrap(),
        enabled: true,
        strict: false,
        pii_secret: Secret::default(),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    }
}

fn scanning(criterion: &mut Criterion) {
    let raw = event("\"duration\":1.534");
    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Bytes(raw.len() as u64));
    let mut object = Object::default();
    group.bench_function("scan", |b| {
        b.iter(|| scan_object(black_box(raw.as_bytes()), &LIMITS, &mut object).map(str::len));
    });
    let array = format!("[{}]", vec![raw.as_str(); 500].join(","));
    group.throughput(Throughput::Elements(500));
    group.bench_function("split an array of 500", |b| {
        b.iter(|| split_array(black_box(array.as_bytes())).count());
    });
    group.finish();
}

fn judging(criterion: &mut Criterion) {
    let tenant = tenant();
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let mut group = criterion.benchmark_group("judge");
    group.throughput(Throughput::Elements(1));
    for (name, schema, duration) in [
        ("plain", None, "\"duration\":1.534"),
        ("with a schema", Some(SCHEMA), "\"duration\":1.534"),
        ("with a unit by name", Some(SCHEMA), "\"duration_ms\":1534"),
        ("with a unit in text", Some(SCHEMA), "\"duration\":\"1534 ms\""),
    ] {
        let normalizer = normalizer(schema);
        let raw = event(duration);
        let mut scratch = Scratch::default();
        group.bench_function(name, |b| {
            b.iter(|| {
                let raw = black_box(raw.as_bytes());
                let item = Item { raw, reserved: true, ..Item::default() };
                normalizer.judge(&context, &item, &mut scratch).raw.len()
            });
        });
    }
    group.finish();
}

fn projecting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("project");
    group.throughput(Throughput::Elements(1));
    let normalizer = normalizer(Some(SCHEMA));
    let schemas = normalizer.schemas();
    let schema = schemas.entries().first().map(|entry| Arc::clone(&entry.schema)).unwrap();
    let raw = event("\"duration_ms\":1534");
    let mut scratch = ProjectScratch::default();
    group.bench_function("with a schema", |b| {
        b.iter(|| {
            let row = schema.project(black_box(raw.as_bytes()), true, &mut scratch);
            row.map(|row| row.cells.len())
        });
    });
    group.finish();
}

criterion_group!(benches, scanning, judging, projecting);
criterion_main!(benches);
