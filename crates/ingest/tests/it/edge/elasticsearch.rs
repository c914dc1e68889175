//! What Elasticsearch's clients are told: of each document, of a refusal, and before they send.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_ingest::{shed::ShedReason, tenants::Quota, writer::AppendError};

use super::{
    kit::{Reply, Server, start, start_with},
    trackers::ask,
};

const PAIR: &str =
    "{\"create\":{\"_id\":\"a\"}}\n{\"n\":1}\n{\"index\":{\"_index\":\"other\"}}\n{\"n\":2}\n";

async fn send(server: &Server, line: &str, headers: &str, body: &str) -> Reply {
    let headers = format!("Authorization: ApiKey {}\r\n{headers}", server.key);
    ask(server, line, &headers, body).await
}

async fn bulk(server: &Server, body: &str) -> Reply {
    let reply = send(server, "POST /logs/_bulk", "", body).await;
    assert_eq!(reply.header("x-elastic-product"), Some("Elasticsearch"));
    reply
}

fn is_failure(reply: &Reply, status: u16, kind: &str, code: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("x-elastic-product"), Some("Elasticsearch"), "{reply:?}");
    assert_eq!(reply.body["status"], status);
    assert_eq!(reply.body["error"]["type"], kind);
    assert_eq!(reply.body["error"]["root_cause"][0]["type"], kind);
    assert!(!reply.body["error"]["reason"].as_str().unwrap().is_empty());
    assert_eq!(reply.body["code"], code, "{reply:?}");
}

#[tokio::test]
async fn each_document_is_told_what_became_of_it() {
    let server = start().await;
    *server.log.known.lock().unwrap() = vec![1, 2];
    let body = concat!(
        "{\"create\":{\"_id\":\"new\"}}\n{\"n\":1}\n",
        "{\"create\":{\"_id\":\"known\"}}\n{\"n\":2}\n",
        "{\"index\":{\"_id\":\"known\"}}\n{\"n\":2}\n",
        "{\"index\":{\"_index\":\"Other Index\"}}\n{\"bad\":1}\n",
        "{\"update\":{\"_id\":\"new\"}}\n{\"doc\":{}}\n",
        "{\"delete\":{\"_id\":\"new\"}}\n",
        "{\"index\":{}}\n[1]\n",
    );
    let reply = bulk(&server, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.body["errors"], true);
    assert!(reply.body["took"].is_u64());
    let items = reply.body["items"].as_array().unwrap();
    let told: Vec<_> = items
        .iter()
        .map(|item| {
            let (op, of) = item.as_object().unwrap().iter().next().unwrap();
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let status = of["status"].as_u64().unwrap();
            (
                op.as_str(),
                text(&of["_index"]),
                status,
                text(&of["result"]),
                text(&of["error"]["type"]),
            )
        })
        .collect();
    let is = |op, index: &str, status, result: &str, error: &str| {
        (op, index.to_owned(), status, result.to_owned(), error.to_owned())
    };
    let illegal = "illegal_argument_exception";
    assert_eq!(
        told,
        [
            is("create", "logs", 201, "created", "-"),
            is("create", "logs", 409, "-", "version_conflict_engine_exception"),
            is("index", "logs", 200, "noop", "-"),
            is("index", "Other Index", 201, "created", "-"),
            is("update", "logs", 400, "-", illegal),
            is("delete", "logs", 400, "-", illegal),
            is("index", "logs", 400, "-", "document_parsing_exception"),
        ]
    );
    assert_eq!(items[0]["create"]["_id"], "new");
    assert_eq!(items[0]["create"]["_version"], 1);
    assert_eq!(items[0]["create"].get("failure_store"), None);
    assert_eq!(items[3]["index"]["failure_store"], "used");
    // A generated id is the event's, which the log makes from the same parts: the fourth item of this request.
    let id = items[3]["index"]["_id"].as_str().unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "{id}");
    assert_eq!(items[6]["index"].get("_id"), None);
    let ids: Vec<_> = server.kept().into_iter().map(|(name, id, _)| (name, id)).collect();
    assert_eq!(ids[0], ("logs".to_owned(), Some("new".to_owned())));
    assert_eq!(ids[3], ("Other_Index".to_owned(), None));
}

#[tokio::test]
async fn the_id_told_of_an_event_without_one_is_the_id_it_has() {
    let server = start().await;
    let reply = bulk(&server, "{\"delete\":{\"_id\":\"x\"}}\n{\"create\":{}}\n{\"n\":1}\n").await;
    let told = reply.body["items"][1]["create"]["_id"].as_str().unwrap().to_owned();
    let batches = server.log.batches.lock().unwrap();
    let view = tidegate_event::BatchView::parse(&batches[0].body).unwrap();
    let record = view.records().next().unwrap().unwrap();
    assert_eq!(record.event_id(&view.base_id), told);
}

#[tokio::test]
async fn a_body_of_nothing_but_errors_is_answered_item_by_item() {
    let server = start().await;
    let reply = bulk(&server, "{\"delete\":{\"_id\":\"x\"}}\n{\"index\":{}}\n7\n").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.body["items"][0]["delete"]["status"], 400);
    assert_eq!(reply.body["items"][1]["index"]["status"], 400);
    is_failure(&bulk(&server, "").await, 400, "parse_exception", "body_empty");
    let cut = bulk(&server, "{\"index\":{}}\n{}").await;
    is_failure(&cut, 400, "illegal_argument_exception", "body_not_json");
    let pretty = bulk(&server, "{\"index\":{}}\n{}\n{\"index\":{}}\n{\n\"a\": 1\n}\n").await;
    is_failure(&pretty, 400, "illegal_argument_exception", "body_not_json");
    assert!(server.kept().is_empty(), "nothing of a malformed body is kept");
    server.is_balanced().await;
}

#[tokio::test]
async fn keys_come_as_elasticsearchs_clients_send_them() {
    let server = start().await;
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pair = STANDARD.encode(format!("id:{}", server.key));
    for (authorization, status) in [
        (format!("ApiKey {}", server.key), 200),
        (format!("ApiKey {pair}"), 200),
        (format!("Basic {pair}"), 200),
        (format!("Bearer {}", server.key), 200),
        ("ApiKey tgk_none".to_owned(), 401),
        (format!("Basic {}", STANDARD.encode("elastic:changeme")), 401),
    ] {
        let headers = format!("Authorization: {authorization}\r\n");
        let reply = ask(&server, "PUT /logs/_bulk", &headers, PAIR).await;
        assert_eq!(reply.status, status, "{authorization}: {reply:?}");
        if status == 401 {
            is_failure(&reply, 401, "security_exception", "key_invalid");
        }
    }
    let reply = ask(&server, "POST /_bulk", "", PAIR).await;
    is_failure(&reply, 401, "security_exception", "key_missing");
    server.is_balanced().await;
}

#[tokio::test]
async fn one_document_is_answered_as_one() {
    let server = start().await;
    let one = async |line: &str| send(&server, line, "", "{\n\"n\":1}").await;
    let reply = one("POST /logs/_doc").await;
    assert_eq!((reply.status, &reply.body["result"]), (201, &json!("created")), "{reply:?}");
    assert_eq!(reply.body["_id"].as_str().unwrap().len(), 36);
    assert_eq!(reply.body.get("status"), None);
    let reply = one("PUT /logs/_doc/a%20b").await;
    assert_eq!((reply.status, &reply.body["_id"]), (201, &json!("a b")));
    assert_eq!(server.kept()[1].1.as_deref(), Some("a b"));
    server.log.known.lock().unwrap().push(0);
    let reply = one("PUT /logs/_doc/a").await;
    assert_eq!((reply.status, &reply.body["result"]), (200, &json!("noop")));
    for line in ["PUT /logs/_create/a", "PUT /logs/_doc/a?op_type=create"] {
        let reply = one(line).await;
        is_failure(&reply, 409, "version_conflict_engine_exception", "duplicate");
    }
    let reply = send(&server, "POST /logs/_doc", "", "7").await;
    is_failure(&reply, 400, "document_parsing_exception", "not_an_object");
    *server.log.refuse.lock().unwrap() = Some(AppendError::Storage);
    let reply = one("POST /logs/_doc").await;
    is_failure(&reply, 503, "es_rejected_execution_exception", "storage");
    server.is_balanced().await;
}

#[tokio::test]
async fn overload_is_told_of_each_document_once_they_are_known_and_else_of_the_whole() {
    let server = start().await;
    *server.log.refuse.lock().unwrap() =
        Some(AppendError::Full { retry_after: Duration::from_secs(3) });
    let reply = bulk(&server, PAIR).await;
    assert_eq!((reply.status, &reply.body["errors"]), (200, &json!(true)), "{reply:?}");
    let items = reply.body["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    for (item, (op, index)) in items.iter().zip([("create", "logs"), ("index", "other")]) {
        assert_eq!(item[op]["status"], 429);
        assert_eq!(item[op]["_index"], index);
        assert_eq!(item[op]["error"]["type"], "es_rejected_execution_exception");
        assert!(item[op]["error"]["reason"].as_str().unwrap().starts_with("log_full: "));
    }
    assert_eq!(reply.header("x-shed-reason"), Some("log_full"));
    assert!(reply.header("retry-after").is_some());
    // What may have been kept is not told as if it were not.
    *server.log.refuse.lock().unwrap() = Some(AppendError::Unknown);
    let reply = bulk(&server, PAIR).await;
    is_failure(&reply, 503, "es_rejected_execution_exception", "outcome_unknown");
    *server.pressure.0.lock().unwrap() = Some((ShedReason::TenantLane, Duration::from_secs(3)));
    // Refused before its body is read: a small one is looked at for its documents, others are not.
    let reply = bulk(&server, PAIR).await;
    assert_eq!((reply.status, &reply.body["items"][1]["index"]["status"]), (200, &json!(429)));
    assert_eq!(reply.header("x-shed-reason"), Some("tenant_lane"));
    let broken = bulk(&server, "{\"index\":{}}\n").await;
    is_failure(&broken, 503, "es_rejected_execution_exception", "tenant_lane");
    let reply = bulk(&server, &PAIR.repeat(10_000)).await;
    is_failure(&reply, 503, "es_rejected_execution_exception", "tenant_lane");
    assert!(reply.header("retry-after").is_some());
    // One document's client honours 429 as Elasticsearch says it.
    let reply = send(&server, "POST /logs/_doc", "", "{}").await;
    is_failure(&reply, 429, "es_rejected_execution_exception", "tenant_lane");
    server.is_balanced().await;
}

#[tokio::test]
async fn over_its_quota_of_events_each_document_is_refused() {
    let quota = Quota { events_per_second: Some(2), ..Quota::default() };
    let server = start_with(|setup| setup.quota = quota).await;
    let seen: Vec<Reply> = [bulk(&server, PAIR).await, bulk(&server, PAIR).await].into();
    assert_eq!(seen[0].body["errors"], false, "{seen:?}");
    assert_eq!(seen[1].header("x-shed-reason"), Some("quota_events"), "{seen:?}");
    assert_eq!(seen[1].status, 200, "{seen:?}");
    assert_eq!(seen[1].body["items"][1]["index"]["status"], 429);
    assert_eq!(server.kept().len(), 2);
    server.is_balanced().await;
}

#[tokio::test]
async fn the_media_type_asked_for_comes_back_and_only_what_is_wanted() {
    let server = start().await;
    for version in [7, 8, 9] {
        let media_type = format!("application/vnd.elasticsearch+json;compatible-with={version}");
        let headers = format!(
            "Accept: {media_type}\r\nContent-Type: application/vnd.elasticsearch+x-ndjson; compatible-with={version}\r\n"
        );
        let reply =
            send(&server, "PUT /logs/_bulk?filter_path=errors,items.*.status", &headers, PAIR)
                .await;
        assert_eq!(reply.header("content-type"), Some(media_type.as_str()));
        let items = json!([{"create": {"status": 201}}, {"index": {"status": 201}}]);
        assert_eq!(reply.body, json!({"errors": false, "items": items}));
        let info = ask(&server, "GET /", &headers, "").await;
        let number = info.body["version"]["number"].as_str().unwrap();
        assert!(number.starts_with(&version.to_string()), "{number}");
        assert_eq!(info.header("content-type"), Some(media_type.as_str()));
    }
    let reply = bulk(&server, PAIR).await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn what_clients_ask_before_they_send_is_answered() {
    let server = start().await;
    for (line, at, expected) in [
        ("GET /", "/tagline", json!("You Know, for Search")),
        ("GET /_license?human=false", "/license/status", json!("active")),
        ("GET /_xpack", "/features/ilm/enabled", json!(true)),
        ("GET /_cluster/health", "/status", json!("green")),
        ("GET /_index_template/filebeat-9.2.0", "/index_templates/0/name", json!("filebeat-9.2.0")),
        ("PUT /_index_template/logs%20a", "/acknowledged", json!(true)),
        ("PUT /_component_template/a", "/acknowledged", json!(true)),
        ("GET /_component_template/a", "/component_templates/0/name", json!("a")),
        ("GET /_template/logstash", "/logstash/order", json!(0)),
        ("GET /_ilm/policy/filebeat", "/filebeat/version", json!(1)),
        ("PUT /_ilm/policy/filebeat", "/acknowledged", json!(true)),
        ("GET /_ingest/pipeline/p", "/p/processors", json!([])),
        ("PUT /_ingest/pipeline/p", "/acknowledged", json!(true)),
        ("GET /_data_stream/logs-a-b", "/data_streams/0/name", json!("logs-a-b")),
    ] {
        let reply = ask(&server, line, "", "").await;
        assert_eq!(
            (reply.status, reply.body.pointer(at)),
            (200, Some(&expected)),
            "{line}: {reply:?}"
        );
        assert_eq!(reply.header("x-elastic-product"), Some("Elasticsearch"), "{line}");
    }
    assert_eq!(ask(&server, "GET /_cat/health", "", "").await.status, 200);
    // With a body that nobody reads, the answer arrives all the same.
    let template = "x".repeat(200_000);
    let reply = ask(&server, "PUT /_index_template/large", "", &template).await;
    assert_eq!(reply.status, 200);
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, Duration::from_secs(3)));
    let reply = ask(&server, "GET /", "", "").await;
    is_failure(&reply, 503, "es_rejected_execution_exception", "log_full");
    assert!(server.kept().is_empty());
}
