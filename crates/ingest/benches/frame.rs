//! Frame encode (checksum, compression) and a durable append, for batches of 500 events of 500 bytes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use tidegate_event::ReceivedAt;
use tidegate_ingest::{
    clock::SystemClock,
    config::Size,
    log::{self, Codec, Entry, FrameBody, LogConfig},
    storage::Disk,
};

const EVENTS: u32 = 500;

fn body() -> Bytes {
    let event = |n: u32| {
        format!("{{\"event_type\":\"page_view\",\"n\":{n},\"path\":\"{:0450}\"}}", n * 7919)
    };
    (0..EVENTS).map(event).collect::<String>().into()
}

fn prepare(criterion: &mut Criterion) {
    let body = body();
    let mut group = criterion.benchmark_group("frame_prepare");
    group.throughput(Throughput::Bytes(body.len() as u64));
    for (name, codec) in [("none", Codec::None), ("lz4", Codec::Lz4)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                FrameBody::prepare(black_box(body.clone()), EVENTS, ReceivedAt(0), codec).unwrap()
            });
        });
    }
    group.finish();
}

fn append(criterion: &mut Criterion) {
    let folder = tempfile::TempDir::new().unwrap();
    let config = LogConfig {
        dir: folder.path().into(),
        retention_bytes: Size::mib(512),
        segment_bytes: Size::mib(64),
        ..LogConfig::default()
    };
    let mut opened = log::open(Arc::new(Disk), &config, Arc::new(SystemClock)).unwrap();
    let mut log = opened.partitions.pop().unwrap();
    let frame = FrameBody::prepare(body(), EVENTS, ReceivedAt(0), Codec::None).unwrap();
    let mut group = criterion.benchmark_group("log_append_and_sync");
    for frames in [1usize, 8, 32] {
        let some = vec![frame.clone(); frames];
        group.throughput(Throughput::Elements(u64::from(EVENTS) * frames as u64));
        group.bench_function(format!("{frames}_frames"), |bencher| {
            bencher.iter(|| {
                log.append(&some).unwrap();
                log.trim().unwrap();
            });
        });
    }
    group.finish();
    read(criterion, &log.handle());
}

fn read(criterion: &mut Criterion, log: &log::LogHandle) {
    let mut group = criterion.benchmark_group("log_read");
    let mut reader = log.read_from(log.earliest()).unwrap();
    group.throughput(Throughput::Elements(EVENTS.into()));
    group.bench_function("frame", |bencher| {
        bencher.iter(|| match reader.next().unwrap() {
            Some(Entry::Frame(frame)) => drop(black_box(frame)),
            _ => reader = log.read_from(log.earliest()).unwrap(),
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    prepare(&mut criterion);
    append(&mut criterion);
    criterion.final_summary();
}
