//! Both forms, tested together: the same telemetry is the same events.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod any;

use std::ops::ControlFlow;

use serde_json::{Value, json};
use tidegate_event::Code;

use super::{
    super::{Arrived, DecodeFault, Found, protobuf::put, route},
    PROTOCOL, decode,
};
use crate::normalize::ItemTime;

/// An event with its type and time, or why it is none.
type One = Result<(String, Option<i64>, String), (Code, String)>;

fn items(path: &str, media_type: &str, body: &[u8]) -> Result<Vec<One>, DecodeFault> {
    let request = http::Request::post(path).header("content-type", media_type);
    let parts = request.body(()).unwrap().into_parts().0;
    let mut found = Vec::new();
    decode(&parts, body, &mut |Arrived { found: one, .. }| {
        found.push(match one {
            Found::Rejected(reason) => Err((reason.code, reason.message)),
            Found::Item(item) => {
                let time = match item.event_time {
                    ItemTime::Micros(micros) => Some(micros),
                    _ => None,
                };
                let raw = String::from_utf8(item.raw.to_vec()).unwrap();
                Ok((item.event_type.unwrap().to_owned(), time, raw))
            }
        });
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn of_json(path: &str, body: &Value) -> Vec<One> {
    items(path, "application/json", body.to_string().as_bytes()).unwrap()
}

fn of_proto(path: &str, body: &[u8]) -> Vec<One> {
    items(path, "application/x-protobuf", body).unwrap()
}

/// A message of fields that are messages, texts or bytes.
fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    fields.iter().for_each(|(number, field)| put::bytes(&mut bytes, *number, field));
    bytes
}

fn fixed64(number: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put::varint(&mut bytes, number << 3 | 1);
    bytes.extend(value.to_le_bytes());
    bytes
}

fn varint(number: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put::number(&mut bytes, number, value);
    bytes
}

/// A request with one resource, one scope and these items.
fn envelope(items: &[Vec<u8>]) -> Vec<u8> {
    let items: Vec<_> = items.iter().map(|item| (2, item.as_slice())).collect();
    message(&[(1, &message(&[(2, &message(&items))]))])
}

fn attribute(key: &str, any: &[u8]) -> Vec<u8> {
    message(&[(1, key.as_bytes()), (2, any)])
}

const NANOS: u64 = 1_772_366_400_123_456_789;
const MICROS: Option<i64> = Some(1_772_366_400_123_456);

#[test]
fn a_log_record_has_its_resource_and_scope_and_all_its_digits() {
    let body = json!({"resourceLogs": [{
        "resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": "shop"}},
            {"key": "host.cpus", "value": {"intValue": "8"}},
        ]},
        "scopeLogs": [{
            "scope": {"name": "lib", "version": "1.0", "attributes": [{"key": "a", "value": {"boolValue": true}}]},
            "logRecords": [{
                "timeUnixNano": NANOS.to_string(), "observedTimeUnixNano": NANOS + 1, "severityNumber": 9,
                "severityText": "INFO", "body": {"stringValue": "naïve 日本"}, "flags": 1, "unknown": {"x": [1]},
                "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174", "eventName": "",
                "attributes": [
                    {"key": "least", "value": {"intValue": "-9223372036854775808"}},
                    {"key": "double", "value": {"doubleValue": 0.1}},
                    {"key": "none", "value": {}}, {"key": "empty", "value": {"stringValue": ""}},
                    {"key": "bytes", "value": {"bytesValue": "AP/+"}},
                    {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": 7}]}}},
                    {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"doubleValue": "NaN"}}]}}},
                ],
            }],
            "schemaUrl": "https://example.com/1",
        }],
    }]});
    let expected = concat!(
        r#"{"time_unix_nano":1772366400123456789,"observed_time_unix_nano":1772366400123456790,"severity_number":9,"#,
        r#""severity_text":"INFO","body":"naïve 日本","attributes":{"least":-9223372036854775808,"double":0.1,"none":null,"#,
        r#""empty":"","bytes":"AP/+","list":["a",7],"map":{"k":"NaN"}},"flags":1,"trace_id":"5b8efff798038103d269b633813fc60c","#,
        r#""span_id":"eee19b7ec3c1b174","service.name":"shop","resource":{"attributes":{"service.name":"shop","host.cpus":8}},"#,
        r#""scope":{"name":"lib","version":"1.0","attributes":{"a":true},"schema_url":"https://example.com/1"}}"#,
    );
    let expected = vec![Ok(("otel.log".to_owned(), MICROS, expected.to_owned()))];
    assert_eq!(of_json("/v1/logs", &body), expected);
    // The same without a media type that says so.
    assert_eq!(items("/v1/logs", "text/plain", body.to_string().as_bytes()).unwrap(), expected);

    let text = |text: &str| message(&[(1, text.as_bytes())]);
    let attributes = [
        attribute("least", &varint(3, i64::MIN.cast_unsigned())),
        attribute("double", &fixed64(4, 0.1f64.to_bits())),
        attribute("none", &[]),
        attribute("empty", &text("")),
        attribute("bytes", &message(&[(7, &[0, 255, 254])])),
        attribute("list", &message(&[(5, &message(&[(1, &text("a")), (1, &varint(3, 7))]))])),
        attribute(
            "map",
            &message(&[(6, &message(&[(1, &attribute("k", &fixed64(4, f64::NAN.to_bits())))]))]),
        ),
    ];
    let mut record = message(&[(9, &hex::decode("5b8efff798038103d269b633813fc60c").unwrap())]);
    // In no order at all, and with a field that nobody knows.
    attributes.iter().take(3).for_each(|one| put::bytes(&mut record, 6, one));
    record.extend(varint(100, 1));
    record.extend(message(&[(10, &hex::decode("eee19b7ec3c1b174").unwrap()), (3, b"INFO")]));
    record.extend(message(&[(5, &text("naïve 日本")), (12, b"")]));
    record.extend(varint(2, 9));
    record.extend([8 << 3 | 5, 1, 0, 0, 0]);
    attributes.iter().skip(3).for_each(|one| put::bytes(&mut record, 6, one));
    record.extend(fixed64(11, NANOS + 1));
    record.extend(fixed64(1, NANOS));
    let resource = message(&[
        (1, &attribute("service.name", &text("shop"))),
        (1, &attribute("host.cpus", &varint(3, 8))),
    ]);
    let scope = message(&[(1, b"lib"), (2, b"1.0"), (3, &attribute("a", &varint(2, 1)))]);
    let part = message(&[(2, &record), (3, b"https://example.com/1"), (1, &scope)]);
    let body = message(&[(1, &message(&[(2, &part), (1, &resource)]))]);
    assert_eq!(of_proto("/v1/logs", &body), expected);
}

#[test]
fn a_span_has_its_events_links_and_status() {
    let body = json!({"resourceSpans": [{"scopeSpans": [{"spans": [{
        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "parentSpanId": "",
        "name": "GET /", "kind": 2, "startTimeUnixNano": NANOS, "endTimeUnixNano": "18446744073709551615",
        "droppedEventsCount": 0, "status": {"code": 2, "message": "no"},
        "events": [{"timeUnixNano": "1", "name": "e", "attributes": [{"key": "a", "value": {"intValue": 1}}]}, {}],
        "links": [{"traceId": "00", "spanId": "FF", "flags": 257}],
    }]}]}]});
    let expected = concat!(
        r#"{"trace_id":"5b8efff798038103d269b633813fc60c","span_id":"eee19b7ec3c1b174","name":"GET /","kind":2,"#,
        r#""start_time_unix_nano":1772366400123456789,"end_time_unix_nano":18446744073709551615,"#,
        r#""events":[{"time_unix_nano":1,"name":"e","attributes":{"a":1}},{}],"links":[{"trace_id":"00","span_id":"ff","flags":257}],"#,
        r#""status":{"code":2,"message":"no"}}"#,
    );
    let expected = vec![Ok(("otel.span".to_owned(), MICROS, expected.to_owned()))];
    assert_eq!(of_json("/v1/traces", &body), expected);
    let mut event = message(&[(2, b"e"), (3, &attribute("a", &varint(3, 1)))]);
    event.extend(fixed64(1, 1));
    let mut link = message(&[(1, &[0]), (2, &[255])]);
    link.extend([6 << 3 | 5, 1, 1, 0, 0]);
    let mut status = message(&[(2, b"no")]);
    status.extend(varint(3, 2));
    let mut span = message(&[
        (1, &hex::decode("5b8efff798038103d269b633813fc60c").unwrap()),
        (2, &hex::decode("eee19b7ec3c1b174").unwrap()),
        (5, b"GET /"),
        (11, &event),
        (11, &[]),
        (13, &link),
        (15, &status),
    ]);
    span.extend(varint(6, 2));
    span.extend(fixed64(7, NANOS));
    span.extend(fixed64(8, u64::MAX));
    assert_eq!(of_proto("/v1/traces", &envelope(&[span])), expected);
}

fn packed(number: u64, values: &[u64]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    message(&[(number, &bytes)])
}

/// What the metrics of the next two tests become.
fn metric_events() -> Vec<One> {
    let start = r#"{"name":"m","unit":"s","type":"#;
    let time = r#""time_unix_nano":1772366400123456789"#;
    let tail = r#""attributes":{"a":1}"#;
    let event = |kind: &str, head: &str, before: &str, flags: &str| {
        let raw = format!("{start}\"{kind}\"{head},{time}{before},{tail}{flags}}}");
        Ok(("otel.metric".to_owned(), MICROS, raw))
    };
    vec![
        event("gauge", "", ",\"value\":-5", ""),
        event("gauge", "", ",\"value\":0.0", ",\"flags\":1"),
        event(
            "sum",
            r#","aggregation_temporality":2,"is_monotonic":true"#,
            ",\"value\":9223372036854775807",
            "",
        ),
        event(
            "histogram",
            r#","aggregation_temporality":1"#,
            r#","count":3,"sum":0.5,"min":-1.5,"max":1e300,"bucket_counts":[1,2],"explicit_bounds":[0.25]"#,
            "",
        ),
        event(
            "exponential_histogram",
            "",
            r#","count":2,"scale":-2,"zero_count":1,"positive":{"offset":-7,"bucket_counts":[18446744073709551615]}"#,
            "",
        ),
        event(
            "summary",
            "",
            r#","count":0,"sum":1.5,"quantile_values":[{"quantile":0.99,"value":2.5}]"#,
            "",
        ),
        Err((
            Code::EnvelopeInvalid,
            "the metric has no data of a kind that is known here".to_owned(),
        )),
    ]
}

#[test]
fn each_data_point_in_json_is_an_event_with_its_metrics_name_and_kind() {
    let point = |more: Value| {
        let mut point =
            json!({"timeUnixNano": NANOS, "attributes": [{"key": "a", "value": {"intValue": 1}}]});
        point.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        point
    };
    let metric = |kind: &str, head: Value, points: Vec<Value>| {
        let mut data = json!({"dataPoints": points});
        data.as_object_mut().unwrap().extend(head.as_object().unwrap().clone());
        json!({"name": "m", "unit": "s", kind: data})
    };
    let body = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [
        metric("gauge", json!({}), vec![point(json!({"asInt": "-5"})), point(json!({"asDouble": 0.0, "flags": 1}))]),
        metric("sum", json!({"aggregationTemporality": 2, "isMonotonic": true}), vec![point(json!({"asInt": "9223372036854775807"}))]),
        metric("histogram", json!({"aggregationTemporality": 1}), vec![point(json!({
            "count": "3", "sum": 0.5, "min": -1.5, "max": "1e300", "bucketCounts": ["1", 2], "explicitBounds": [0.25],
        }))]),
        metric("exponentialHistogram", json!({}), vec![point(json!({
            "count": 2, "scale": -2, "zeroCount": 1, "positive": {"offset": -7, "bucketCounts": ["18446744073709551615"]},
        }))]),
        metric("summary", json!({}), vec![point(json!({"sum": 1.5, "quantileValues": [{"quantile": 0.99, "value": 2.5}]}))]),
        json!({"name": "future", "trend": {}}),
        metric("gauge", json!({}), vec![]),
    ]}]}]});
    assert_eq!(of_json("/v1/metrics", &body), metric_events());
}

#[test]
fn each_data_point_in_protobuf_is_the_same_event() {
    let bits = |value: f64| value.to_bits();
    let point = |number: u64, fields: &[Vec<u8>]| {
        let mut point = fixed64(3, NANOS);
        point.extend(message(&[(number, &attribute("a", &varint(3, 1)))]));
        fields.iter().for_each(|field| point.extend(field));
        point
    };
    let metric = |kind: u64, head: Vec<u8>, points: &[Vec<u8>]| {
        let mut data = head;
        points.iter().for_each(|point| put::bytes(&mut data, 1, point));
        message(&[(1, b"m"), (3, b"s"), (kind, &data)])
    };
    let fold = |number: i32| u64::from(((number << 1) ^ (number >> 31)).cast_unsigned());
    let mut positive = varint(1, fold(-7));
    let mut counts = Vec::new();
    put::varint(&mut counts, u64::MAX);
    put::bytes(&mut positive, 2, &counts);
    let mut quantile = fixed64(1, bits(0.99));
    quantile.extend(fixed64(2, bits(2.5)));
    let metrics = [
        metric(
            5,
            vec![],
            &[
                point(7, &[fixed64(6, (-5i64).cast_unsigned())]),
                point(7, &[fixed64(4, bits(0.0)), varint(8, 1)]),
            ],
        ),
        metric(
            7,
            [varint(2, 2), varint(3, 1)].concat(),
            &[point(7, &[fixed64(6, i64::MAX as u64)])],
        ),
        metric(
            9,
            varint(2, 1),
            &[point(
                9,
                &[
                    fixed64(4, 3),
                    fixed64(5, bits(0.5)),
                    fixed64(11, bits(-1.5)),
                    fixed64(12, bits(1e300)),
                    // One by one and packed.
                    fixed64(6, 1),
                    packed(6, &[2]),
                    packed(7, &[bits(0.25)]),
                ],
            )],
        ),
        metric(
            10,
            vec![],
            &[point(
                1,
                &[fixed64(4, 2), varint(6, fold(-2)), fixed64(7, 1), message(&[(8, &positive)])],
            )],
        ),
        metric(11, vec![], &[point(7, &[fixed64(5, bits(1.5)), message(&[(6, &quantile)])])]),
        message(&[(1, b"future"), (99, b"")]),
        message(&[(1, b"m"), (5, b"")]),
    ];
    assert_eq!(of_proto("/v1/metrics", &envelope(&metrics)), metric_events());
}

#[test]
fn one_broken_item_is_rejected_and_the_others_are_kept() {
    let good = fixed64(1, NANOS);
    let broken = message(&[(3, &[0xff])]);
    let cut = vec![0x1a, 5, b'x'];
    let group = vec![0x0b, 0x0c];
    let wrong = varint(3, 1);
    let found = of_proto("/v1/logs", &envelope(&[good.clone(), broken, cut, group, wrong, good]));
    let codes: Vec<_> =
        found.iter().map(|one| one.as_ref().map(|_| ()).map_err(|(code, _)| *code)).collect();
    let invalid = Err(Code::EnvelopeInvalid);
    assert_eq!(codes, [Ok(()), Err(Code::InvalidUtf8), invalid, invalid, invalid, Ok(())]);

    let records = json!([
        {"timeUnixNano": 1}, {"traceId": "xyz"}, {"traceId": "123"}, {"severityNumber": "SEVERITY_NUMBER_INFO"},
        {"timeUnixNano": -1}, {"timeUnixNano": "1e3"}, {"body": {"intValue": 1.5}}, {"body": {"bytesValue": "%"}},
        {"attributes": {"a": 1}}, {"body": {"boolValue": 1}}, null, {"body": {"intValue": 10.0}},
    ]);
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]});
    let kept: Vec<_> = of_json("/v1/logs", &body).iter().map(Result::is_ok).collect();
    assert_eq!(
        kept,
        [true, false, false, false, false, true, false, false, false, false, false, true]
    );
}

#[test]
fn what_a_broken_resource_belongs_to_is_rejected_item_by_item() {
    let part = message(&[(2, &fixed64(1, 1)), (2, &fixed64(1, 2))]);
    let resource = message(&[(1, &attribute("a", &message(&[(1, &[0xff])])))]);
    let other = message(&[(2, &message(&[(2, &fixed64(1, 3))]))]);
    let found = of_proto(
        "/v1/logs",
        &message(&[(1, &message(&[(1, &resource), (2, &part)])), (1, &other)]),
    );
    let kept: Vec<_> = found.iter().map(Result::is_ok).collect();
    assert_eq!(kept, [false, false, true]);
    assert_eq!(found[0].as_ref().unwrap_err().0, Code::InvalidUtf8);
}

#[test]
fn a_body_that_is_broken_outside_its_items_is_refused_whole() {
    let mut cut = envelope(&[fixed64(1, NANOS), fixed64(1, NANOS)]);
    cut.pop();
    for body in [&cut[..], b"\x0b", b"\xff", b"\x0d\0\0\0\0"] {
        let fault = items("/v1/logs", "application/x-protobuf", body).unwrap_err();
        assert_eq!(fault.problem.code, "body_not_json", "{body:?}");
    }
    for body in [
        "",
        "[]",
        "{",
        "{\"resource_logs\":[]}",
        "{\"resourceLogs\":7}",
        "{\"resourceLogs\":[{\"scopeLogs\":{}}]}",
        "\u{feff}{}",
    ] {
        assert!(items("/v1/logs", "application/json", body.as_bytes()).is_err(), "{body}");
    }
    for body in
        ["{}", " {\"resourceLogs\":[]} ", "{\"resourceLogs\":null}", "{\"resourceLogs\":[{}]}"]
    {
        assert_eq!(items("/v1/logs", "application/json", body.as_bytes()), Ok(vec![]), "{body}");
    }
    assert_eq!(items("/v1/logs", "application/x-protobuf", b""), Ok(vec![]));
}

#[test]
fn values_are_nested_so_deep_and_no_deeper() {
    let deep = |levels: usize| {
        let (mut proto, mut json) = (message(&[(1, b"x")]), json!({"stringValue": "x"}));
        for _ in 1..levels {
            proto = message(&[(5, &message(&[(1, &proto)]))]);
            json = json!({"arrayValue": {"values": [json]}});
        }
        let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": json}]}]}]});
        let proto = of_proto("/v1/logs", &envelope(&[message(&[(5, &proto)])]));
        (proto.concat_one(), of_json("/v1/logs", &body).concat_one())
    };
    let (proto, json) = deep(32);
    assert_eq!(proto, json);
    assert!(proto.is_ok());
    let (proto, json) = deep(33);
    assert_eq!((proto.unwrap_err().0, json.unwrap_err().0), (Code::TooDeep, Code::TooDeep));
    // Far deeper than any stack.
    let text = "[".repeat(1 << 20);
    assert!(
        items("/v1/logs", "application/json", format!("{{\"resourceLogs\":{text}").as_bytes())
            .is_err()
    );
}

trait ConcatOne {
    fn concat_one(self) -> One;
}

impl ConcatOne for Vec<One> {
    fn concat_one(mut self) -> One {
        assert_eq!(self.len(), 1);
        self.remove(0)
    }
}

#[test]
fn a_small_body_with_a_large_resource_does_not_grow_without_bound() {
    let large = "x".repeat(100_000);
    let resource = message(&[(1, &attribute("a", &message(&[(1, large.as_bytes())])))]);
    let empty: &[u8] = &[];
    let part = message(&vec![(2, empty); 2000]);
    let body = message(&[(1, &message(&[(1, &resource), (2, &part)]))]);
    let fault = items("/v1/logs", "application/x-protobuf", &body).unwrap_err();
    assert_eq!(fault.problem.code, "decoded_too_large");
}

#[test]
fn every_path_has_its_type() {
    for (path, expected) in [
        ("/v1/logs", "otel.log"),
        ("/v1/traces", "otel.span"),
        ("/v1/metrics", "otel.metric"),
        ("/opentelemetry.proto.collector.logs.v1.LogsService/Export", "otel.log"),
        ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", "otel.span"),
        ("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", "otel.metric"),
    ] {
        let parts = http::Request::post(path).body(()).unwrap().into_parts().0;
        assert_eq!((PROTOCOL.only_type)(&parts).as_deref(), Some(expected));
        assert!(matches!(
            route(&http::Method::POST, path),
            crate::edge::protocol::Routed::Protocols(_)
        ));
    }
}
