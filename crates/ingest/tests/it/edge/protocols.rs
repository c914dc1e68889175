//! What every protocol must do: say who may send, refuse in its own words, and never say yes too early.

use std::{collections::BTreeSet, time::Duration};

use tidegate_event::TenantId;
use tidegate_ingest::{
    edge::protocol::{PROTOCOLS, Protocol},
    shed::ShedReason,
};
use tokio::io::AsyncWriteExt;

use super::kit::{Reply, Server, read_reply, start, start_with};

/// One event for each protocol, where to send it, and what the answer says once it is durable.
const EVENTS: &[(&str, &str, &str, &str)] = &[
    ("events", "/v1/events?event_type=t", r#"{"a":1}"#, r#""accepted":1"#),
    ("telemetry", "/v3/send/t", r#"{"a":1}"#, r#"{"status":"ok"}"#),
    ("track", "/track", r#"{"event_type":"t","a":"1"}"#, r#"{"message":"success"}"#),
    ("hec", "/services/collector", r#"{"event":{"a":1}}"#, r#"{"text":"Success","code":0}"#),
    ("segment", "/v1/batch", r#"{"batch":[{"type":"track","a":1}]}"#, r#"{"success":true}"#),
    ("posthog", "/batch/", r#"{"batch":[{"event":"x","a":1}]}"#, r#"{"status":1}"#),
    // Its answers are no JSON: `ok`.
    (
        "snowplow",
        "/com.snowplowanalytics.snowplow/tp2",
        r#"{"data":[{"e":"pv","url":"a"}]}"#,
        "null",
    ),
    ("loki", "/loki/api/v1/push", r#"{"streams":[{"stream":{},"values":[["1","x"]]}]}"#, "null"),
    (
        "otlp",
        "/v1/logs",
        r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"flags":1}]}]}]}"#,
        "{}",
    ),
    (
        "elasticsearch",
        "/t/_bulk?filter_path=errors",
        "{\"create\":{}}\n{\"a\":1}\n",
        r#"{"errors":false}"#,
    ),
];

async fn send(server: &Server, path: &str, headers: &str, body: &str) -> Reply {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    server.raw(request.as_bytes()).await
}

fn protocol(name: &str) -> &'static Protocol {
    PROTOCOLS.iter().find(|protocol| protocol.name == name).unwrap()
}

/// The key where this protocol has it.
fn key_header(name: &str, key: &str) -> String {
    match name {
        "hec" => format!("Authorization: Splunk {key}\r\n"),
        _ => format!("Authorization: Bearer {key}\r\n"),
    }
}

#[tokio::test]
async fn each_protocol_takes_an_event_with_its_key_and_none_without() {
    let server = start().await;
    for (name, path, event, said) in EVENTS {
        let reply = send(&server, path, "", event).await;
        assert_eq!(reply.status, 401, "{name}: {reply:?}");
        let challenge = reply.header("www-authenticate");
        assert_eq!(challenge, Some(protocol(name).login.challenge), "{name}");
        let wrong = send(&server, path, &key_header(name, "tgk_wrong"), event).await;
        assert_eq!(wrong.status, if *name == "hec" { 403 } else { 401 }, "{name}: {wrong:?}");
        assert!(server.kept().is_empty(), "{name}");
        let reply = send(&server, path, &key_header(name, &server.key), event).await;
        assert_eq!(reply.status, if *name == "loki" { 204 } else { 200 }, "{name}: {reply:?}");
        assert!(reply.body.to_string().contains(said) || *name != "events", "{name}: {reply:?}");
        if *name != "events" {
            assert_eq!(reply.body, serde_json::from_str::<serde_json::Value>(said).unwrap());
        }
        assert_eq!(server.kept().len(), 1, "{name}");
        server.log.batches.lock().unwrap().clear();
    }
    let named: BTreeSet<&str> = EVENTS.iter().map(|(name, ..)| *name).collect();
    let all: BTreeSet<&str> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
    // These have tests of their own (`forms`, `firehose`).
    let apart = ["cloudevents", "firehose", "firehose_http"];
    assert_eq!(named, all.into_iter().filter(|name| !apart.contains(name)).collect());
    server.is_balanced().await;
}

#[tokio::test]
async fn overload_is_said_with_the_time_to_come_again_and_in_the_protocols_words() {
    let server = start().await;
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, Duration::from_secs(3)));
    for (name, path, event, _) in EVENTS {
        let reply = send(&server, path, &key_header(name, &server.key), event).await;
        // Told of each document, under 200.
        let of_each = *name == "elasticsearch";
        assert_eq!(reply.status, if of_each { 200 } else { 503 }, "{name}: {reply:?}");
        let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!(3 <= after, "{name}");
        assert_eq!(reply.header("x-shed-reason"), Some("log_full"), "{name}");
        if *name == "hec" {
            assert_eq!(reply.body["code"], 9);
            assert_eq!(reply.body["text"], "Server is busy");
        } else if *name == "loki" {
            assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
        } else if *name == "otlp" {
            assert_eq!(reply.body["code"], 14);
            assert_eq!(reply.body["details"][0]["retryDelay"], format!("{after}s"));
        } else if of_each {
            assert_eq!(reply.body, serde_json::json!({"errors": true}));
        } else {
            assert_eq!(reply.body["code"], "log_full", "{name}: {reply:?}");
        }
    }
    assert!(server.kept().is_empty());
    server.is_balanced().await;
}

#[tokio::test]
async fn success_is_said_only_where_every_item_is_kept() {
    let server = start().await;
    for (name, path, body, kept) in [
        ("telemetry", "/v3/send/t", "{\"a\":1}\n[1]\n{\"b\":2}", 2),
        ("hec", "/services/collector", r#"{"event":{"a":1}}{"host":"h"}{"event":{"b":2}}"#, 2),
        ("segment", "/v1/batch", r#"{"batch":[{"type":"page"},7]}"#, 1),
        ("posthog", "/batch/", r#"{"batch":[7,{"event":"x"}]}"#, 1),
        ("snowplow", "/com.snowplowanalytics.snowplow/tp2", r#"{"data":[7,{"e":"pv"}]}"#, 1),
        (
            "loki",
            "/loki/api/v1/push",
            r#"{"streams":[{"stream":{},"values":[["1"],["2","x"]]}]}"#,
            1,
        ),
        ("track", "/track", "[]", 0),
        ("telemetry", "/v3/send/t", "7", 0),
        ("hec", "/services/collector", "{}", 0),
    ] {
        let reply = send(&server, path, &key_header(name, &server.key), body).await;
        assert_eq!(reply.status, 400, "{name} {body}: {reply:?}");
        if name == "hec" {
            assert_eq!(reply.body["invalid-event-number"], u64::from(kept != 0), "{reply:?}");
            assert_eq!(reply.body["code"], 12);
        }
        assert_eq!(server.kept().len(), kept, "{name} {body}");
        server.log.batches.lock().unwrap().clear();
    }
    // A dead letter is durable, and what is known already is too.
    let dead = r#"{"event_type":"t","bad":"1"}"#;
    let key = key_header("track", &server.key);
    assert_eq!(send(&server, "/track", &key, dead).await.status, 200);
    server.log.known.lock().unwrap().push(0);
    assert_eq!(send(&server, "/track", &key, dead).await.status, 200);
    server.is_balanced().await;
}

#[tokio::test]
async fn a_key_in_the_body_is_read_within_a_bound_and_is_not_kept() {
    let server = start_with(|setup| {
        setup.config.limits.unauthenticated_bytes = tidegate_ingest::config::Size(1_000);
    })
    .await;
    let key = &server.key;
    for (path, body) in [
        ("/v1/batch", format!(r#"{{"batch":[{{"type":"track"}}],"writeKey":"{key}"}}"#)),
        ("/v1/page", format!(r#"{{"writeKey":"{key}","name":"x"}}"#)),
        ("/capture/", format!(r#"{{"event":"x","token":"{key}"}}"#)),
        ("/i/v0/e/", format!(r#"{{"api_key":"{key}","event":"x"}}"#)),
    ] {
        assert_eq!(send(&server, path, "", &body).await.status, 200, "{path}");
        let [(.., raw)] = &server.kept()[..] else { panic!("{path}: {:?}", server.kept()) };
        assert!(!raw.contains(key), "{path}: the key was kept: {raw}");
        server.log.batches.lock().unwrap().clear();
        let wrong = body.replace(key.as_str(), "tgk_other");
        assert_eq!(send(&server, path, "", &wrong).await.status, 401, "{path}");
    }
    let large = format!(r#"{{"batch":[],"writeKey":"{key}","x":"{}"}}"#, "x".repeat(1_000));
    let reply = send(&server, "/v1/batch", "", &large).await;
    assert_eq!((reply.status, reply.code()), (413, "body_too_large"), "{reply:?}");
    // With the key in the head the same body is within the limits.
    let reply = send(&server, "/v1/batch", &key_header("segment", key), &large).await;
    assert_eq!((reply.status, reply.code()), (400, "body_empty"), "{reply:?}");
    // Declared: refused unread. Not declared: no further than the bound.
    let mut stream = server.connect().await;
    let head = "POST /v1/batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("200\r\n{}\r\n", " ".repeat(512));
    stream.write_all(chunk.repeat(2).as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 413);
    server.is_balanced().await;
    assert!(server.kept().is_empty());
}

#[tokio::test]
async fn without_a_key_only_what_is_configured_comes_in_and_a_wrong_key_never_does() {
    let server = start_with(|setup| {
        let acme = TenantId::new("acme").unwrap();
        setup.config.open.insert("telemetry".to_owned(), acme.clone());
        setup.config.open.insert("track".to_owned(), TenantId::new("nobody").unwrap());
        // Not one that may be open.
        setup.config.open.insert("hec".to_owned(), acme);
    })
    .await;
    assert_eq!(send(&server, "/v3/send/t", "", "{}").await.status, 200);
    let wrong = key_header("telemetry", "tgk_wrong");
    assert_eq!(send(&server, "/v3/send/t", &wrong, "{}").await.status, 401);
    for (path, body) in [
        ("/track", r#"{"event_type":"t"}"#),
        ("/services/collector", r#"{"event":1}"#),
        ("/v1/events", r#"{"event_type":"t"}"#),
    ] {
        assert_eq!(send(&server, path, "", body).await.status, 401, "{path}");
    }
    assert_eq!(server.kept().len(), 1);
    server.is_balanced().await;
}

#[tokio::test]
async fn browsers_are_answered_where_a_protocol_is_theirs_and_probes_need_no_key() {
    let server = start().await;
    let ask = |method: &'static str, path: &'static str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n\
             Access-Control-Request-Headers: x-elastic-client-meta\r\nConnection: close\r\n\r\n"
        );
        let server = &server;
        async move { server.raw(request.as_bytes()).await }
    };
    for path in ["/v3/send/t", "/track", "/v1/batch", "/batch/"] {
        let reply = ask("OPTIONS", path).await;
        assert_eq!(reply.status, 204, "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{path}");
        let headers = reply.header("access-control-allow-headers");
        assert_eq!(headers, Some("x-elastic-client-meta"), "{path}");
        // A page may read why it was refused.
        let refused = send(&server, path, "", "{}").await;
        assert_eq!(refused.header("access-control-allow-origin"), Some("*"), "{path}");
    }
    for path in ["/v1/events", "/services/collector"] {
        let reply = ask("OPTIONS", path).await;
        reply.is_problem(405, "method_not_allowed");
        assert_eq!(reply.header("access-control-allow-origin"), None, "{path}");
    }
    for path in ["/health", "/services/collector/health", "/services/collector/health/1.0"] {
        assert_eq!(ask("GET", path).await.status, 200, "{path}");
    }
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, Duration::from_secs(3)));
    for path in ["/health", "/services/collector/health"] {
        assert_eq!(ask("GET", path).await.status, 503, "{path}");
    }
    ask("GET", "/v3/send/t").await.is_problem(405, "method_not_allowed");
    ask("POST", "/v3/send/").await.is_problem(404, "no_such_path");
}

#[tokio::test]
async fn names_that_do_not_fit_are_mapped_and_ids_are_the_clients_own() {
    let server = start_with(|setup| setup.judge = super::kit::normalizer()).await;
    let key = key_header("telemetry", &server.key);
    assert_eq!(send(&server, "/v3/send/kibana%20ui", &key, "{}").await.status, 200);
    let body = r#"{"batch":[{"type":"track","messageId":"m-1","event":"x"}]}"#;
    assert_eq!(send(&server, "/v1/batch", &key, body).await.status, 200);
    let kept = server.kept();
    assert_eq!(kept[0], ("kibana_ui".to_owned(), None, "{}".to_owned()));
    assert_eq!((kept[1].0.as_str(), kept[1].1.as_deref()), ("segment.track", Some("m-1")));
}
