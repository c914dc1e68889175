//! OTLP's two forms of the same logs and spans, and our own JSON: body bytes a second, decoded and decoded with verdicts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{hint::black_box, ops::ControlFlow, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::request::Parts;
use tidegate_event::{ReceivedAt, TenantId};
use tidegate_ingest::{
    edge::protocol::{Found, PROTOCOLS, Protocol},
    json::ScanLimits,
    normalize::{JudgeContext, Normalizer, SchemaStore, SchemasConfig, Scratch},
    storage::Disk,
    tenants::{Quota, Secret, Tenant},
};

const RECORDS: usize = 500;
const NANOS: u64 = 1_772_366_400_123_456_789;
const TEXTS: &[(&str, &str)] = &[
    ("http.request.method", "GET"),
    ("url.path", "/products/4711/reviews"),
    ("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64) Firefox/134.0"),
    ("server.address", "shop-7f9c4d5b6-x2x7k"),
    ("network.protocol.version", "1.1"),
];
const NUMBERS: &[(&str, u32)] = &[("http.response.status_code", 200), ("server.port", 8443)];
const BODY: &str =
    "request served from the cache of the second region, nothing was asked of the origin";

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while 0x80 <= length {
        out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend_from_slice(bytes);
    out
}

fn varint(number: u8, mut value: u32) -> Vec<u8> {
    let mut out = vec![number << 3];
    while 0x80 <= value {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

fn attribute(number: u8, key: &str, any: &[u8]) -> Vec<u8> {
    field(number, &[field(1, key.as_bytes()), field(2, any)].concat())
}

fn protobuf() -> Vec<u8> {
    let mut record = [&[9][..], &NANOS.to_le_bytes(), &varint(2, 9), &field(3, b"INFO")].concat();
    record.extend(field(5, &field(1, BODY.as_bytes())));
    for (key, text) in TEXTS {
        record.extend(attribute(6, key, &field(1, text.as_bytes())));
    }
    for (key, number) in NUMBERS {
        record.extend(attribute(6, key, &varint(3, *number)));
    }
    record.extend(field(9, &[0x5b; 16]));
    record.extend(field(10, &[0xee; 8]));
    let records: Vec<u8> = (0..RECORDS).flat_map(|_| field(2, &record)).collect();
    let scope = field(1, &[field(1, b"shop.web"), field(2, b"1.4.2")].concat());
    let resource = field(1, &attribute(1, "service.name", &field(1, b"shop")));
    field(1, &[resource, field(2, &[scope, records].concat())].concat())
}

fn json() -> Vec<u8> {
    let text =
        |key: &str, text: &str| format!(r#"{{"key":"{key}","value":{{"stringValue":"{text}"}}}}"#);
    let texts = TEXTS.iter().map(|(key, value)| text(key, value));
    let numbers = NUMBERS
        .iter()
        .map(|(key, value)| format!(r#"{{"key":"{key}","value":{{"intValue":"{value}"}}}}"#));
    let attributes = texts.chain(numbers).collect::<Vec<_>>().join(",");
    let record = format!(
        r#"{{"timeUnixNano":"{NANOS}","severityNumber":9,"severityText":"INFO","body":{{"stringValue":"{BODY}"}},"attributes":[{attributes}],"traceId":"{}","spanId":"{}"}}"#,
        "5b".repeat(16),
        "ee".repeat(8)
    );
    format!(
        r#"{{"resourceLogs":[{{"resource":{{"attributes":[{}]}},"scopeLogs":[{{"scope":{{"name":"shop.web","version":"1.4.2"}},"logRecords":[{}]}}]}}]}}"#,
        text("service.name", "shop"),
        vec![record; RECORDS].join(",")
    )
    .into_bytes()
}

fn parts(path: &str, media_type: &str) -> Parts {
    let request = http::Request::post(path).header("content-type", media_type);
    request.body(()).unwrap().into_parts().0
}

fn events(protocol: &Protocol, parts: &Parts, body: &[u8]) -> Vec<Vec<u8>> {
    let mut events = Vec::new();
    let each = &mut |arrived: tidegate_ingest::edge::protocol::Arrived<'_>| {
        let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
        events.push(item.raw.to_vec());
        ControlFlow::Continue(())
    };
    (protocol.decode)(parts, body, each).unwrap();
    events
}

fn normalizer() -> Normalizer {
    let dir = tempfile::tempdir().unwrap();
    let store = SchemaStore::open(Arc::new(Disk), dir.path().to_owned()).unwrap();
    let limits = ScanLimits { depth: 32, fields: 512 };
    Normalizer::load(&SchemasConfig::default(), Arc::new(store), limits).unwrap()
}

fn decoding(criterion: &mut Criterion) {
    let protocol = |name: &str| PROTOCOLS.iter().find(|protocol| protocol.name == name).unwrap();
    let otlp = protocol("otlp");
    let (proto, json) = (protobuf(), json());
    let own = parts("/v1/events", "application/x-ndjson");
    let (in_proto, in_json) =
        (parts("/v1/logs", "application/x-protobuf"), parts("/v1/logs", "application/json"));
    let made = events(otlp, &in_proto, &proto);
    assert_eq!(made, events(otlp, &in_json, &json));
    let lines: Vec<u8> = made.join(&b'\n');
    let tenant = Tenant {
        id: TenantId::new("acme").unwrap(),
        enabled: true,
        strict: false,
        pii_secret: Secret::default(),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    };
    let now = ReceivedAt(1_772_366_400_000_000);
    let context = JudgeContext { tenant: &tenant, received_at: now, key_types: None };
    let normalizer = normalizer();
    for (group, judged) in [("otlp decode", false), ("otlp decode and judge", true)] {
        let mut group = criterion.benchmark_group(group);
        for (name, protocol, parts, body) in [
            ("protobuf", otlp, &in_proto, &proto),
            ("json", otlp, &in_json, &json),
            ("the same events as our own NDJSON", protocol("events"), &own, &lines),
        ] {
            group.throughput(Throughput::Bytes(body.len() as u64));
            group.bench_with_input(BenchmarkId::from_parameter(name), body, |b, body| {
                let mut scratch = Scratch::default();
                b.iter(|| {
                    let mut bytes = 0;
                    let each = &mut |arrived: tidegate_ingest::edge::protocol::Arrived<'_>| {
                        if let Found::Item(item) = arrived.found {
                            bytes += if judged {
                                normalizer.judge(&context, &item, &mut scratch).raw.len()
                            } else {
                                item.raw.len()
                            };
                        }
                        ControlFlow::Continue(())
                    };
                    (protocol.decode)(parts, black_box(body), each).unwrap();
                    bytes
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decoding);
criterion_main!(benches);
