//! Firehose over sockets: what is read before a signature is proved, and what each refusal says.
//!
//! What this does not prove: that a public SDK signs so (`e2e/test_protocol_firehose.py`).

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::{Digest, Sha256};
use tidegate_event::TenantId;
use tidegate_ingest::{shed::ShedReason, tenants::AddedPair};
use tokio::io::AsyncWriteExt;

use super::kit::{Reply, Server, read_reply, start, start_with};

const BATCH: &str = "Firehose_20150804.PutRecordBatch";

fn pair(server: &Server) -> AddedPair {
    server.tenants.add_pair(&TenantId::new("acme").unwrap(), None).unwrap()
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Records of one request, each of this text.
fn batch(record: &str, count: usize) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let one = json!({ "Data": STANDARD.encode(record) });
    json!({ "DeliveryStreamName": "clicks", "Records": vec![one; count] }).to_string()
}

/// Headers of a request signed over `body`; `told`: with the body's hash in the head.
fn signed(pair: &AddedPair, target: &str, body: &str, told: bool) -> String {
    let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let (day, hash) = (&date[..8], hex::encode(Sha256::digest(body)));
    let mut headers = vec![("content-type", "application/x-amz-json-1.1"), ("host", "x")];
    if told {
        headers.push(("x-amz-content-sha256", &hash));
    }
    headers.extend([("x-amz-date", date.as_str()), ("x-amz-target", target)]);
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{hash}");
    let scope = format!("{day}/us-east-1/firehose/aws4_request");
    let canonical = hex::encode(Sha256::digest(canonical));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
    let mut key = format!("AWS4{}", pair.secret).into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part);
    }
    let signature = hex::encode(hmac(&key, &text));
    let lines: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "{lines}Authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, \
         Signature={signature}\r\n",
        pair.id
    )
}

fn request(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

async fn put(server: &Server, pair: &AddedPair, body: &str, told: bool) -> Reply {
    server.raw(request(&signed(pair, BATCH, body, told), body).as_bytes()).await
}

#[tokio::test]
async fn records_are_taken_with_and_without_their_hash_in_the_head() {
    let server = start().await;
    let pair = pair(&server);
    for told in [true, false] {
        let reply = put(&server, &pair, &batch("{\"a\":1}{\"b\":2}", 2), told).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.body["FailedPutCount"], 0);
        assert_eq!(reply.body["RequestResponses"].as_array().unwrap().len(), 2);
        assert!(reply.header("x-amzn-requestid").is_some());
        assert_eq!(server.kept().len(), 4);
        server.log.batches.lock().unwrap().clear();
    }
    let reply = put(&server, &pair, &batch("no event", 1), true).await;
    assert_eq!((reply.status, &reply.body["FailedPutCount"]), (200, &json!(0)), "{reply:?}");
    let kept = server.kept();
    assert!(kept[0].2.starts_with("{\"tidegate.unreadable\""), "{kept:?}");
    server.is_balanced().await;
}

#[tokio::test]
async fn a_head_that_is_wrong_is_refused_with_the_body_unread() {
    let server = start().await;
    let pair = pair(&server);
    let body = batch("{}", 1);
    let strange = AddedPair { id: "TGSTRANGE".to_owned(), ..pair.clone() };
    let wrong = AddedPair { secret: "wrong".to_owned(), ..pair.clone() };
    let unsigned = "Host: x\r\nX-Amz-Target: Firehose_20150804.PutRecord\r\n".to_owned();
    for (headers, kind) in [
        (unsigned, "MissingAuthenticationTokenException"),
        (signed(&strange, BATCH, &body, false), "UnrecognizedClientException"),
        (signed(&pair, BATCH, &body, false).replace("host;", ""), "IncompleteSignatureException"),
        (signed(&wrong, BATCH, &body, true), "InvalidSignatureException"),
    ] {
        let mut stream = server.connect().await;
        let head = format!("POST / HTTP/1.1\r\n{headers}Content-Length: 1000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let reply = read_reply(&mut stream).await;
        assert_eq!(reply.status, 403, "{reply:?}");
        assert_eq!(reply.body["__type"], kind, "{reply:?}");
    }
    // Of the same with a good head the body is read, and found to be another.
    let other = batch("{ }", 1);
    for told in [true, false] {
        let headers = signed(&pair, BATCH, &body, told);
        let reply = server.raw(request(&headers, &other).as_bytes()).await;
        let said = (reply.status, &reply.body["__type"]);
        assert_eq!(said, (403, &json!("InvalidSignatureException")), "{reply:?}");
    }
    assert!(server.kept().is_empty());
    server.is_balanced().await;
}

#[tokio::test]
async fn a_body_that_is_not_proved_is_bounded_and_takes_nothing_of_what_others_share() {
    let server = start().await;
    let pair = pair(&server);
    let headers = signed(&pair, BATCH, "", false);
    let head = format!("POST / HTTP/1.1\r\n{headers}Content-Length: 7000000\r\n\r\n");
    let reply = server.raw(head.as_bytes()).await;
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(reply.body["__type"], "RequestEntityTooLargeException");
    // Bodies on their way hold nothing of the budget, as long as nobody is known.
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect().await;
        let head = format!("POST / HTTP/1.1\r\n{headers}Content-Length: 4000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        slow.push(stream);
    }
    let reply = server.json(r#"{"event_type":"t","a":1}"#).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(server.budget.held() < 8 << 20, "{}", server.budget.held());
    drop(slow);
    server.is_balanced().await;
}

#[tokio::test]
async fn overload_is_a_whole_request_before_the_records_are_known_and_each_of_them_after() {
    let server = start_with(|setup| setup.quota.events_per_second = Some(3)).await;
    let pair = pair(&server);
    let after = Duration::from_secs(3);
    *server.pressure.0.lock().unwrap() = Some((ShedReason::LogFull, after));
    for told in [true, false] {
        let reply = put(&server, &pair, &batch("{}", 1), told).await;
        let said = (reply.status, &reply.body["__type"]);
        assert_eq!(said, (503, &json!("ServiceUnavailableException")), "{reply:?}");
        assert_eq!(reply.header("x-shed-reason"), Some("log_full"));
    }
    *server.pressure.0.lock().unwrap() = None;
    // One may come in, and more than there are places for are counted then.
    let reply = put(&server, &pair, &batch("{}", 1), true).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let reply = put(&server, &pair, &batch("{}", 5), true).await;
    assert_eq!((reply.status, &reply.body["FailedPutCount"]), (200, &json!(5)), "{reply:?}");
    let first = &reply.body["RequestResponses"][0];
    assert_eq!(first["ErrorCode"], "ServiceUnavailableException");
    assert_eq!(reply.header("x-shed-reason"), Some("quota_events"));
    assert!(reply.header("retry-after").is_some());
    server.is_balanced().await;
}

#[tokio::test]
async fn a_delivery_is_answered_with_its_own_id_and_never_with_413_for_overload() {
    let server = start().await;
    let send = async |key: &str, body: &str| {
        let request = format!(
            "POST /v1/firehose/views HTTP/1.1\r\nHost: x\r\nX-Amz-Firehose-Access-Key: {key}\r\n\
             X-Amz-Firehose-Request-Id: r-1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = server.raw(request.as_bytes()).await;
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.body["requestId"], "r-1", "{reply:?}");
        assert!(reply.body["timestamp"].as_i64().unwrap() > 1_700_000_000_000, "{reply:?}");
        assert_eq!(reply.body.get("errorMessage").is_none(), reply.status == 200, "{reply:?}");
        reply.status
    };
    let body = r#"{"requestId":"r-1","timestamp":1,"records":[{"data":"e30="}]}"#;
    assert_eq!(send("tgk_wrong", body).await, 401);
    assert_eq!(send(&server.key, body).await, 200);
    assert_eq!(server.kept(), [("views".to_owned(), Some("r-1/0".to_owned()), "{}".to_owned())]);
    assert_eq!(send(&server.key, r#"{"records":[]}"#).await, 200);
    assert_eq!(send(&server.key, "{}").await, 400);
    for reason in ShedReason::ALL {
        *server.pressure.0.lock().unwrap() = Some((*reason, Duration::from_secs(3)));
        assert_eq!(send(&server.key, body).await, reason.status());
    }
    server.is_balanced().await;
}
