//! The forms a body of `POST /v1/events` may take, with the real normalizer behind the edge.

use super::kit::{normalizer, start_with};

#[tokio::test]
async fn object_array_and_lines_come_out_byte_for_byte() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    server.json(" {\"event_type\":\"t\", \"a\":1.50} \n").await.counts(1, 0, 0);
    server.json("[ {\"event_type\":\"u\"} ,\n{\"event_type\":\"v\"}]").await.counts(2, 0, 0);
    let lines = "{\"event_type\":\"a\"}\r\n\r\n \n{\"event_type\":\"b\",\"x\":\"é\"}\n{\"event_type\":\"c\"}";
    let reply = server.post("Content-Type: application/x-ndjson\r\n", lines.as_bytes()).await;
    reply.counts(3, 0, 0);
    let kept: Vec<_> = server.kept().into_iter().map(|(name, _, raw)| (name, raw)).collect();
    let expected = [
        ("t", "{\"event_type\":\"t\", \"a\":1.50}"),
        ("u", "{\"event_type\":\"u\"}"),
        ("v", "{\"event_type\":\"v\"}"),
        ("a", "{\"event_type\":\"a\"}"),
        ("b", "{\"event_type\":\"b\",\"x\":\"é\"}"),
        ("c", "{\"event_type\":\"c\"}"),
    ];
    assert_eq!(kept, expected.map(|(name, raw)| (name.to_owned(), raw.to_owned())));
}

#[tokio::test]
async fn content_types_with_parameters_and_chunked_bodies_are_taken() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let head = server.head(
        "Content-Type: Application/JSON; charset=\"UTF-8\"\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let body =
        "5\r\n{\"eve\r\n11\r\nnt_type\":\"t\",\"a\":\r\n2\r\n1}\r\n0\r\nx-trailer: 1\r\n\r\n";
    server.raw(format!("{head}{body}").as_bytes()).await.counts(1, 0, 0);
    assert_eq!(server.kept()[0].2, "{\"event_type\":\"t\",\"a\":1}");
}

#[tokio::test]
async fn the_type_is_taken_from_body_then_header_then_query() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let post = |path: &str, headers: &str, body: &str| {
        let head = server.head("").replace("/v1/events", path);
        let length = body.len();
        let request = format!(
            "{head}{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let server = &server;
        async move { server.raw(request.as_bytes()).await }
    };
    let header = "X-Event-Type: from_header\r\n";
    post("/v1/events?event_type=q%75ery", header, r#"{"event_type":"body"}"#).await.counts(1, 0, 0);
    post("/v1/events?event_type=q%75ery", header, "{}").await.counts(1, 0, 0);
    post("/v1/events?event_type=q%75ery", "", "{}").await.counts(1, 0, 0);
    let types: Vec<_> = server.kept().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(types, ["body", "from_header", "query"]);
    let twice = post("/v1/events?event_type=a&event_type=b", "", "{}").await;
    twice.is_problem(400, "bad_request");
}

#[tokio::test]
async fn an_idempotency_key_gives_ids_to_events_without_one() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let json = "Content-Type: application/json\r\n";
    let body = br#"[{"event_type":"t"},{"event_type":"t","event_id":"own"},{"event_type":"t"}]"#;
    let reply = server.post(&format!("{json}Idempotency-Key: \"k\"\r\n"), body).await;
    reply.counts(3, 0, 0);
    let ids: Vec<_> = server.kept().into_iter().map(|(_, id, _)| id.unwrap()).collect();
    assert_eq!(ids, ["k/0", "own", "k/2"]);
    let long = format!("{json}Idempotency-Key: {}\r\n", "k".repeat(501));
    server.post(&long, body).await.is_problem(400, "bad_request");
    server.post(&format!("{json}Idempotency-Key: \r\n"), body).await.is_problem(400, "bad_request");
}

const CONTEXT: &str = r#""specversion":"1.0","id":"7","source":"/s","type":"com.x/y""#;

#[tokio::test]
async fn cloudevents_are_taken_structured_batched_and_binary() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let one = format!("{{{CONTEXT},\"data\":{{\"a\":1.0}}}}");
    let structured = "Content-Type: application/cloudevents+json; charset=utf-8\r\n";
    server.post(structured, one.as_bytes()).await.counts(1, 0, 0);
    let batch = format!("[{one}, {{\"specversion\":\"1.0\"}}]");
    let batched = "Content-Type: application/cloudevents-batch+json\r\n";
    let reply = server.post(batched, batch.as_bytes()).await;
    reply.counts(1, 0, 1);
    assert_eq!(reply.body["errors"][0]["code"], "envelope_invalid");
    let binary = "Content-Type: application/json\r\nce-specversion: 1.0\r\nce-id: 7\r\n\
                  ce-source: /s\r\nce-type: com.x/y\r\nce-subject: a%20b\r\n";
    server.post(binary, br#"{"a":1.0}"#).await.counts(1, 0, 0);
    let kept = server.kept();
    for (name, id, raw) in &kept {
        assert_eq!((name.as_str(), id.as_deref()), ("com.x_y", Some("/s 7")));
        assert!(raw.starts_with(r#"{"a":1.0,"cloudevent":{"#), "{raw}");
    }
    assert_eq!(kept.len(), 3);
    assert_eq!(kept[0].2, format!(r#"{{"a":1.0,"cloudevent":{{{CONTEXT}}}}}"#));
    assert!(kept[2].2.contains(r#""subject":"a b""#));
    // An event without data is one too.
    server.post(&binary.replace("application/json", "text/plain"), b"").await.counts(1, 0, 0);
    assert!(server.kept()[3].2.starts_with(r#"{"cloudevent":{"#));
    let alone = server.post(structured, br#"{"id":"1"}"#).await;
    alone.is_problem(400, "nothing_kept");
    server.is_balanced().await;
}
