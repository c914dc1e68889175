//! One test per row of the answer table.

use std::{sync::atomic::Ordering, time::Duration};

use tidegate_event::EventType;
use tidegate_ingest::{
    config::{Size, Span},
    shed::ShedReason,
    tenants::Quota,
    writer::AppendError,
};
use tokio::io::AsyncWriteExt;

use super::kit::{Server, is_closed, read_reply, start, start_with};

const JSON: &str = "Content-Type: application/json\r\n";
const ONE: &str = r#"{"event_type":"t","a":1}"#;

#[tokio::test]
async fn each_object_is_accepted_or_a_dead_letter() {
    let server = start().await;
    let reply = server
        .json(r#"[{"event_type":"t"},{"event_type":"t","bad":true,"event_id":"x"},{"event_type":"u"}]"#)
        .await;
    reply.counts(2, 1, 0);
    assert_eq!(reply.body["deduplicated"], 0);
    assert_eq!(reply.body["errors_truncated"], false);
    let error = &reply.body["errors"][0];
    assert_eq!(reply.body["errors"].as_array().unwrap().len(), 1);
    assert_eq!(error["index"], 1);
    assert_eq!(error["event_id"], "x");
    assert_eq!(error["code"], "type_mismatch");
    assert_eq!(error["field"], "/bad");
    assert_eq!(reply.header("x-request-id"), reply.body["request_id"].as_str());
    let page = server.page();
    let t = page.types[&EventType::new("t").unwrap()];
    assert_eq!((t.received, t.accepted, t.dead_lettered), (2, 1, 1));
    server.is_balanced().await;
}

#[tokio::test]
async fn what_is_known_by_its_id_is_counted_once() {
    let server = start().await;
    *server.log.known.lock().unwrap() = vec![0, 2];
    let reply =
        server.json(r#"[{"event_type":"t"},{"event_type":"t"},{"event_type":"t","bad":1}]"#).await;
    reply.counts(1, 0, 0);
    assert_eq!(reply.body["deduplicated"], 2);
    assert_eq!(reply.body["errors"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn items_that_are_no_events_are_rejected_and_the_rest_kept() {
    let server = start_with(|setup| setup.config.limits.event_bytes = Size(100)).await;
    let big = format!(r#"{{"event_type":"t","a":"{}"}}"#, "x".repeat(100));
    let reply = server.json(&format!(r#"[1, {{"event_type":"t"}}, {{"a":}}, {big}]"#)).await;
    reply.counts(1, 0, 3);
    let codes: Vec<_> = reply.body["errors"].as_array().unwrap().iter().collect();
    assert_eq!(codes[0]["code"], "not_an_object");
    assert_eq!((&codes[1]["index"], &codes[1]["code"]), (&2.into(), &"invalid_json".into()));
    assert_eq!((&codes[2]["index"], &codes[2]["code"]), (&3.into(), &"event_too_large".into()));
    let page = server.page();
    assert_eq!(page.types[&EventType::unnamed()].rejected, 3);
    server.is_balanced().await;
}

#[tokio::test]
async fn at_most_100_reasons_are_listed() {
    let server = start().await;
    let body = vec![r#"{"event_type":"t","bad":1}"#; 101].join("\n");
    let reply = server.post("Content-Type: application/x-ndjson\r\n", body.as_bytes()).await;
    reply.counts(0, 101, 0);
    assert_eq!(reply.body["errors"].as_array().unwrap().len(), 100);
    assert_eq!(reply.body["errors_truncated"], true);
}

#[tokio::test]
async fn a_body_of_which_nothing_can_be_kept_says_what_where_and_how() {
    let server = start().await;
    for (body, code, place) in [
        ("", "body_empty", "at least one event"),
        ("  \n", "body_empty", "at least one event"),
        ("[]", "body_empty", "at least one event"),
        (r#"[{"a":1}"#, "body_not_json", "byte"),
        ("  nonsense", "nothing_kept", "byte 2"),
        ("[1,2]", "nothing_kept", "byte 1"),
    ] {
        let reply = server.json(body).await;
        reply.is_problem(400, code);
        let detail = reply.body["detail"].as_str().unwrap();
        assert!(detail.contains(place), "{body}: {detail}");
    }
    let lines = server.post("Content-Type: application/x-ndjson\r\n", b"\r\n\nx\n").await;
    lines.is_problem(400, "nothing_kept");
    assert!(lines.body["detail"].as_str().unwrap().contains("line 3"), "{lines:?}");
    assert_eq!(lines.body["errors"][0]["code"], "invalid_json");
    server.is_balanced().await;
}

#[tokio::test]
async fn a_request_without_a_live_key_is_refused_before_its_body() {
    let server = start().await;
    let post = |key: String| {
        let server = &server;
        async move {
            let mut stream = server.connect().await;
            // The body is promised and never sent: an answer proves that nobody waits for it.
            let head = format!(
                "POST /v1/events HTTP/1.1\r\nHost: x\r\n{key}{JSON}Expect: 100-continue\r\n\
                 Content-Length: 10000000\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let reply = read_reply(&mut stream).await;
            assert_eq!(reply.header("connection"), Some("close"));
            assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer"));
            is_closed(&mut stream).await;
            reply
        }
    };
    post(String::new()).await.is_problem(401, "key_missing");
    post("Authorization: Basic abc\r\n".to_owned()).await.is_problem(401, "key_missing");
    post("X-Api-Key: tgk_dev\r\n".to_owned()).await.is_problem(401, "key_invalid");
    let mut wrong = server.key.clone();
    wrong.pop();
    post(format!("Authorization: Bearer {wrong}x\r\n")).await.is_problem(401, "key_invalid");
    let both = format!("Authorization: Bearer {}\r\nX-Api-Key: other\r\n", server.key);
    post(both).await.is_problem(401, "key_conflict");
    assert_eq!(server.kept(), []);
    let reply = server.raw(
        format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n{JSON}Content-Length: 24\r\n\r\n{ONE}", server.key).as_bytes(),
    ).await;
    reply.counts(1, 0, 0);
}

#[tokio::test]
async fn a_wrong_path_is_404_and_a_wrong_method_405() {
    let server = start().await;
    server
        .raw(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .is_problem(404, "no_such_path");
    for path in ["/v1", "/api/v1/status", "/metrics", "/v1/events/", "/v1//events"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        server.raw(request.as_bytes()).await.is_problem(404, "no_such_path");
    }
    let reply = server.raw(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(reply.is_problem(405, "method_not_allowed").header("allow"), Some("POST"));
    let reply = server.raw(b"POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(reply.is_problem(405, "method_not_allowed").header("allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn a_slow_body_is_408_and_the_connection_ends() {
    let server = start_with(|setup| {
        setup.config.timeouts.body_idle = Span(Duration::from_millis(100));
    })
    .await;
    let mut stream = server.connect().await;
    let head = server.head(&format!("{JSON}Content-Length: 100\r\n\r\n{{"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = read_reply(&mut stream).await;
    assert_eq!(reply.is_problem(408, "body_slow").header("connection"), Some("close"));
    is_closed(&mut stream).await;
    assert_eq!(server.page().refused_requests, 1);
    server.is_balanced().await;
}

#[tokio::test]
async fn a_body_that_drips_is_408_at_the_end_of_its_time() {
    let server = start_with(|setup| {
        setup.config.timeouts.body = Span(Duration::from_millis(300));
    })
    .await;
    let stream = server.connect().await;
    let (mut reader, mut writer) = stream.into_split();
    let head = server.head(&format!("{JSON}Content-Length: 2000000\r\n\r\n"));
    writer.write_all(head.as_bytes()).await.unwrap();
    let drip = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    read_reply(&mut reader).await.is_problem(408, "body_slow");
    drip.await.unwrap();
}

#[tokio::test]
async fn a_body_too_large_is_413_declared_chunked_and_decoded() {
    let server = start_with(|setup| {
        setup.config.limits.body_bytes = Size(1000);
        setup.config.limits.decoded_bytes = Size(2000);
        setup.config.limits.events = 3;
    })
    .await;
    let declared = server.head(&format!("{JSON}Content-Length: 1001\r\n\r\n"));
    let reply = server.raw(declared.as_bytes()).await;
    assert_eq!(reply.is_problem(413, "body_too_large").header("connection"), Some("close"));
    let chunked = server.head(&format!("{JSON}Transfer-Encoding: chunked\r\n\r\n"));
    let chunked = format!("{chunked}3e9\r\n{}\r\n0\r\n\r\n", " ".repeat(1001));
    server.raw(chunked.as_bytes()).await.is_problem(413, "body_too_large");
    let small = zstd::encode_all(&b" ".repeat(2001)[..], 1).unwrap();
    let reply = server.post(&format!("{JSON}Content-Encoding: zstd\r\n"), &small).await;
    reply.is_problem(413, "decoded_too_large");
    let reply = server.json("[{},{},{},{}]").await;
    reply.is_problem(413, "too_many_events");
    assert_eq!(server.kept(), []);
    assert_eq!(server.page().refused_requests, 4);
    server.is_balanced().await;
}

#[tokio::test]
async fn another_type_or_coding_is_415_and_says_what_is_taken() {
    let server = start().await;
    for headers in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/json; charset=utf-16\r\n",
        "Content-Type: application/cloudevents+xml\r\nce-specversion: 1.0\r\n",
    ] {
        let reply = server.post(headers, ONE.as_bytes()).await;
        reply.is_problem(415, "media_type");
        assert!(reply.body["detail"].as_str().unwrap().contains("application/x-ndjson"));
    }
    for coding in ["compress", "gzip, gzip", "gzip\r\nContent-Encoding: br"] {
        let reply = server.post(&format!("{JSON}Content-Encoding: {coding}\r\n"), b"x").await;
        reply.is_problem(415, "content_coding");
        assert_eq!(reply.header("accept-encoding"), Some("identity, gzip, zstd, deflate, br"));
        assert_eq!(reply.header("connection"), Some("close"));
    }
}

#[tokio::test]
async fn headers_too_many_or_too_large_are_431() {
    let server = start().await;
    let many: String = (0..70).map(|n| format!("x-{n}: y\r\n")).collect();
    server.post(&many, b"").await.is_problem(431, "headers_too_large");
    let large = format!("x-large: {}\r\n", "y".repeat(17 << 10));
    server.post(&large, b"").await.is_problem(431, "headers_too_large");
    // Floods beyond any reason are cut off by the HTTP library, and answered as all others.
    let flood: String = (0..10_000).map(|n| format!("x-{n}: y\r\n")).collect();
    server.post(&flood, b"").await.is_problem(431, "headers_too_large");
    let huge = format!("x-large: {}\r\n", "y".repeat(1 << 20));
    let mut stream = server.connect().await;
    // The answer may come before all is written.
    let _ = stream.write_all(server.head(&huge).as_bytes()).await;
    read_reply(&mut stream).await.is_problem(431, "headers_too_large");
    server.raw(b"nonsense\r\n\r\n").await.is_problem(400, "bad_request");
}

#[tokio::test]
async fn a_strict_tenant_gets_422_when_nothing_is_valid() {
    let server = start_with(|setup| setup.strict = true).await;
    let reply = server.json(r#"{"event_type":"t","bad":1}"#).await;
    reply.is_problem(422, "nothing_valid");
    assert_eq!(reply.body["errors"][0]["code"], "type_mismatch");
    let reply = server.json(r#"[{"event_type":"t","bad":1},{"event_type":"t"}]"#).await;
    reply.counts(1, 0, 1);
    assert_eq!(server.page().types[&EventType::new("t").unwrap()].rejected, 2);
    server.is_balanced().await;
}

fn per_second(events: Option<u64>, bytes: Option<u64>) -> Quota {
    Quota { events_per_second: events, bytes_per_second: bytes, ..Quota::default() }
}

#[tokio::test]
async fn over_the_quota_of_events_is_429_with_its_fields() {
    let server = start_with(|setup| setup.quota = per_second(Some(2), None)).await;
    let reply = server.json(&format!("[{ONE},{ONE},{ONE},{ONE},{ONE}]")).await;
    // Larger than the burst, but the bucket was full.
    reply.counts(5, 0, 0);
    assert_eq!(reply.header("ratelimit-policy"), Some(r#""events";q=2;qu="events";w=1"#));
    assert!(reply.header("ratelimit").unwrap().starts_with(r#""events";r=0;t="#));
    let reply = server.json(ONE).await;
    reply.is_shed(ShedReason::QuotaEvents);
    assert!(reply.header("ratelimit").is_some());
    assert!(reply.header("connection").is_none());
    let page = server.page();
    let t = page.types[&EventType::new("t").unwrap()];
    assert_eq!((t.received, t.accepted, t.shed), (5, 5, 0));
    assert_eq!(page.refused_requests, 1, "refused before its body was looked at");
    server.is_balanced().await;
}

#[tokio::test]
async fn over_the_quota_of_bytes_is_429_before_the_body() {
    let server = start_with(|setup| setup.quota = per_second(None, Some(10))).await;
    server.json(ONE).await.counts(1, 0, 0);
    let declared = server.head(&format!("{JSON}Content-Length: 9\r\n\r\n"));
    let reply = server.raw(declared.as_bytes()).await;
    reply.is_shed(ShedReason::QuotaBytes);
    assert!(reply.header("ratelimit-policy").unwrap().contains("content-bytes"));
    let page = server.page();
    assert_eq!((page.refused_requests, page.refused_bytes), (1, 9));
    server.is_balanced().await;
}

#[tokio::test]
async fn a_refusal_whose_small_body_is_there_keeps_the_connection() {
    let server = start_with(|setup| setup.quota = per_second(None, Some(10))).await;
    server.json(&format!("[{ONE},{ONE},{ONE},{ONE}]")).await.counts(4, 0, 0);
    let head = server.head(&format!("{JSON}Content-Length: {}\r\n\r\n", ONE.len()));
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(format!("{head}{ONE}").as_bytes()).await.unwrap();
        let reply = read_reply(&mut stream).await;
        assert_eq!(reply.is_shed(ShedReason::QuotaBytes).header("connection"), None);
    }
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_the_rest_of_a_body_and_its_connection_serves_on() {
    let server = start_with(|setup| setup.quota = per_second(None, Some(10))).await;
    server.json(&format!("[{ONE},{ONE}]")).await.counts(2, 0, 0);
    let request = {
        let head = server.head(&format!("{JSON}Content-Length: {}\r\n\r\n", ONE.len()));
        format!("{head}{ONE}")
    };
    let (most, rest) = request.split_at(request.len() - 2);
    let mut stream = server.connect().await;
    stream.write_all(most.as_bytes()).await.unwrap();
    let reply = read_reply(&mut stream).await;
    assert_eq!(reply.is_shed(ShedReason::QuotaBytes).header("connection"), None);
    stream.write_all(format!("{rest}{request}").as_bytes()).await.unwrap();
    read_reply(&mut stream).await.is_shed(ShedReason::QuotaBytes);
    server.is_balanced().await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_the_body_of_a_refused_request() {
    let server = start_with(|setup| {
        setup.quota = per_second(None, Some(10));
        setup.config.timeouts.drain = Span::seconds(3600);
    })
    .await;
    server.json(&format!("[{ONE},{ONE}]")).await.counts(2, 0, 0);
    let mut slow = server.connect().await;
    let head = server.head(&format!("{JSON}Content-Length: 1000\r\n\r\n{{"));
    slow.write_all(head.as_bytes()).await.unwrap();
    read_reply(&mut slow).await.is_shed(ShedReason::QuotaBytes);
    server.handle.drain();
    let Server { served, .. } = server;
    served.await.unwrap();
    is_closed(&mut slow).await;
}

#[tokio::test]
async fn who_waits_as_told_is_served_on_its_connection_and_who_does_not_is_counted() {
    let server = start_with(|setup| setup.quota = per_second(Some(2), None)).await;
    let request = {
        let head = server.head(&format!("{JSON}Content-Length: {}\r\n\r\n", ONE.len()));
        [head.as_bytes(), ONE.as_bytes()].concat()
    };
    let mut stream = server.connect().await;
    let mut other = server.connect().await;
    let mut told = None;
    for _ in 0..3 {
        stream.write_all(&request).await.unwrap();
        let reply = read_reply(&mut stream).await;
        told = reply.header("retry-after").map(str::to_owned);
    }
    assert_eq!(told.as_deref(), Some("1"), "told without a spread: its slot is held");
    // Nobody else has it meanwhile.
    for _ in 0..4 {
        other.write_all(&request).await.unwrap();
        read_reply(&mut other).await.is_shed(ShedReason::QuotaEvents);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stream.write_all(&request).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);
    server.is_balanced().await;
}

#[tokio::test]
async fn who_waited_as_told_comes_before_others_where_the_log_was_full() {
    let server = start().await;
    let request = {
        let head = server.head(&format!("{JSON}Content-Length: {}\r\n\r\n", ONE.len()));
        [head.as_bytes(), ONE.as_bytes()].concat()
    };
    let mut stream = server.connect().await;
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, Duration::ZERO));
    stream.write_all(&request).await.unwrap();
    read_reply(&mut stream).await.is_shed(ShedReason::LogFull);
    server.pressure.1.store(true, Ordering::SeqCst);
    server.json(ONE).await.is_shed(ShedReason::LogFull);
    stream.write_all(&request).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);
    stream.write_all(&request).await.unwrap();
    read_reply(&mut stream).await.is_shed(ShedReason::LogFull);
    // Told to stay away for longer, and back at once.
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, Duration::from_secs(3600)));
    stream.write_all(&request).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);
    for _ in 0..2 {
        stream.write_all(&request).await.unwrap();
        read_reply(&mut stream).await.is_shed(ShedReason::LogFull);
    }
    server.is_balanced().await;
}

#[tokio::test]
async fn who_never_waits_is_closed_in_the_end() {
    let server = start_with(|setup| setup.quota = per_second(Some(1), None)).await;
    server.json(&format!("[{}]", [ONE; 60].join(","))).await.counts(60, 0, 0);
    let head = server.head(&format!("{JSON}Content-Length: {}\r\n\r\n", ONE.len()));
    let mut stream = server.connect().await;
    let mut refused = 0;
    loop {
        stream.write_all(format!("{head}{ONE}").as_bytes()).await.unwrap();
        let reply = read_reply(&mut stream).await;
        // Long before its debt is paid.
        if reply.status == 200 || reply.header("connection") == Some("close") {
            break;
        }
        reply.is_shed(ShedReason::QuotaEvents);
        refused += 1;
    }
    assert!((10..=30).contains(&refused), "{refused}");
    is_closed(&mut stream).await;
}

#[tokio::test]
async fn a_refusal_closes_where_much_of_the_body_would_follow() {
    let server = start_with(|setup| setup.quota = per_second(None, Some(10))).await;
    server.json(ONE).await.counts(1, 0, 0);
    let large = server.head(&format!("{JSON}Content-Length: 2000000\r\n\r\n"));
    let reply = server.raw(large.as_bytes()).await;
    reply.is_shed(ShedReason::QuotaBytes);
    assert_eq!(reply.header("connection"), Some("close"));
    let small = server.post(JSON, ONE.as_bytes()).await;
    small.is_shed(ShedReason::QuotaBytes);
    assert!(small.header("connection").is_none());
}

#[tokio::test]
async fn one_event_type_more_than_the_tenant_may_name_is_rejected_and_booked_without_its_name() {
    let quota = Quota { event_types: Some(2), ..Quota::default() };
    let server = start_with(|setup| setup.quota = quota).await;
    let reply = server.json(r#"[{"event_type":"a"},{"event_type":"b"},{"event_type":"c"}]"#).await;
    reply.counts(2, 0, 1);
    assert_eq!(reply.body["errors"][0]["code"], "too_many_types");
    let reply = server.json(r#"{"event_type":"d"}"#).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    server.json(r#"[{"event_type":"b"},{"event_type":"a"}]"#).await.counts(2, 0, 0);
    let names: Vec<_> = server.page().types.keys().map(ToString::to_string).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(server.page().types[&EventType::unnamed()].rejected, 2);
    server.is_balanced().await;
}

async fn refused_unread(server: &Server, reason: ShedReason) {
    let head = server.head(&format!("{JSON}Content-Length: 1000\r\n\r\n"));
    server.raw(head.as_bytes()).await.is_shed(reason);
}

#[tokio::test]
async fn what_is_full_behind_the_edge_refuses_before_the_body() {
    let server = start().await;
    for reason in [ShedReason::TenantLane, ShedReason::LogFull] {
        *server.pressure.0.lock().unwrap() = Some((reason, Duration::from_secs(3)));
        refused_unread(&server, reason).await;
        assert_eq!(server.raw(b"GET /readyz HTTP/1.1\r\n\r\n").await.status, 400);
        assert_eq!(server.raw(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 503);
        assert_eq!(server.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    }
    *server.pressure.0.lock().unwrap() = None;
    assert_eq!(server.raw(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    assert_eq!(server.page().refused_requests, 2);
}

#[tokio::test]
async fn what_the_log_cannot_take_is_503() {
    let server = start().await;
    let full = AppendError::Full { retry_after: Duration::from_secs(1) };
    for (error, reason) in [
        (full, ShedReason::LogFull),
        (AppendError::Storage, ShedReason::Storage),
        (AppendError::Draining, ShedReason::Draining),
    ] {
        *server.log.refuse.lock().unwrap() = Some(error);
        server.json(ONE).await.is_shed(reason);
    }
    assert_eq!(server.page().types[&EventType::new("t").unwrap()].shed, 3);
    server.is_balanced().await;
}

#[tokio::test]
async fn a_body_that_memory_does_not_hold_is_503() {
    let server = start_with(|setup| setup.budget = 300 << 10).await;
    refused_edge_full(&server, &server.head(&format!("{JSON}Content-Length: 400000\r\n\r\n")))
        .await;
    let head = server.head(&format!("{JSON}Transfer-Encoding: chunked\r\n\r\n"));
    let chunk = format!("{head}61a80\r\n{}", " ".repeat(400_000));
    refused_edge_full(&server, &chunk).await;
    let zeros = zstd::encode_all(&b" ".repeat(400_000)[..], 1).unwrap();
    let reply = server.post(&format!("{JSON}Content-Encoding: zstd\r\n"), &zeros).await;
    reply.is_shed(ShedReason::EdgeFull);
    server.is_balanced().await;
}

async fn refused_edge_full(server: &Server, request: &str) {
    let mut stream = server.connect().await;
    // The answer may come before all is written.
    let _ = stream.write_all(request.as_bytes()).await;
    read_reply(&mut stream).await.is_shed(ShedReason::EdgeFull);
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_a_sane_one_is_kept() {
    let server = start().await;
    let reply = server.post(&format!("{JSON}X-Request-Id: my-id.1\r\n"), ONE.as_bytes()).await;
    assert_eq!(reply.header("x-request-id"), Some("my-id.1"));
    assert_eq!(reply.body["request_id"], "my-id.1");
    for bad in ["a b", "x\"y", &"x".repeat(65)] {
        let headers = format!("{JSON}X-Request-Id: {bad}\r\ntraceparent: nonsense\r\n");
        let reply = server.post(&headers, ONE.as_bytes()).await;
        reply.counts(1, 0, 0);
        assert_eq!(reply.header("x-request-id").unwrap().len(), 36);
    }
}
