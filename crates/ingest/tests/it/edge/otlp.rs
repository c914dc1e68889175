//! OTLP over real sockets: gRPC by prior knowledge of HTTP/2, its statuses and trailers, and more listeners.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_ingest::{
    edge::{EdgeError, EdgeParts, bind},
    shed::ShedReason,
    writer::AppendError,
};
use tokio::net::{TcpListener, TcpStream};

use super::kit::{Server, normalizer, start, start_with};

const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// One resource, one scope, and records whose only field is a severity's text.
fn logs(records: &[&[u8]]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        assert!(bytes.len() < 128);
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    };
    let records: Vec<u8> = records.iter().flat_map(|text| field(2, &field(3, text))).collect();
    field(1, &field(2, &records))
}

fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// The answer's head, its message and its trailers; of trailers alone the head is both.
async fn call(
    server: &Server,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (StatusCode, Bytes, HeaderMap) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or(head.headers);
    (head.status, body.to_bytes(), trailers)
}

fn bearer(server: &Server) -> String {
    format!("Bearer {}", server.key)
}

#[tokio::test]
async fn a_call_is_answered_with_a_message_and_its_status_in_the_trailers() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let key = bearer(&server);
    let (status, body, trailers) =
        call(&server, LOGS, &[("authorization", &key)], frame(0, &logs(&[b"a", b"b"]))).await;
    assert_eq!(
        (status, &*body, &trailers["grpc-status"]),
        (StatusCode::OK, &[0u8; 5][..], &"0".parse().unwrap())
    );
    let kept = server.kept();
    let expected =
        |text: &str| ("otel.log".to_owned(), None, format!("{{\"severity_text\":\"{text}\"}}"));
    assert_eq!(kept, [expected("a"), expected("b")]);
}

#[tokio::test]
async fn a_compressed_message_is_taken_and_what_cannot_be_kept_is_told() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let key = bearer(&server);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &logs(&[b"a", &[0xff], b"nul\0"])).unwrap();
    let body = frame(1, &gzip.finish().unwrap());
    let headers = [("authorization", &*key), ("grpc-encoding", "gzip")];
    let (_, body, trailers) = call(&server, LOGS, &headers, body).await;
    assert_eq!(trailers["grpc-status"], "0");
    let told = String::from_utf8_lossy(&body).into_owned();
    assert!(
        told.contains(
            "1 of 3 items cannot be kept, 1 are kept as dead letters; item 1: invalid_utf8: "
        ),
        "{told}"
    );
    // ExportLogsPartialSuccess.rejected_log_records = 1
    assert_eq!(&body[8..10], [0x08, 1], "{body:?}");
    assert_eq!(server.kept().len(), 2);
}

#[tokio::test]
async fn what_is_refused_has_the_status_that_clients_know() {
    let server = start().await;
    let key = bearer(&server);
    let own = [("authorization", &*key)];
    let good = || frame(0, &logs(&[b"a"]));
    for (path, headers, body, expected) in [
        (LOGS, &[][..], good(), "16"),
        (LOGS, &[("authorization", "Bearer no")], good(), "16"),
        (LOGS, &own, frame(0, b"\xff"), "3"),
        (LOGS, &own, frame(0, &logs(&[&[0xff]])), "3"),
        (LOGS, &own, b"\0\0\0\0".to_vec(), "3"),
        (LOGS, &own, frame(1, &logs(&[b"a"])), "12"),
        ("/grpc.health.v1.Health/Check", &own, good(), "12"),
        ("/v1/logs", &own, good(), "12"),
    ] {
        let (status, body, head) = call(&server, path, headers, body).await;
        assert_eq!((status, &*body), (StatusCode::OK, &b""[..]), "{path}");
        assert_eq!(head["grpc-status"], expected, "{path} {head:?}");
        assert!(
            head.get("grpc-message").is_some() && head.get("google.rpc.retryinfo-bin").is_none(),
            "{head:?}"
        );
    }
    assert!(server.kept().is_empty());
    // An envelope without items is a success.
    let (_, _, trailers) = call(&server, LOGS, &own, frame(0, b"")).await;
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_refusal_for_now_says_when_to_come_again() {
    let server = start().await;
    let key = bearer(&server);
    *server.log.refuse.lock().unwrap() =
        Some(AppendError::Full { retry_after: Duration::from_secs(3) });
    let body = || frame(0, &logs(&[b"a"]));
    let (_, _, head) = call(&server, LOGS, &[("authorization", &key)], body()).await;
    assert_eq!(
        (&head["grpc-status"], &head["x-shed-reason"]),
        (&"14".parse().unwrap(), &"log_full".parse().unwrap())
    );
    let after: u8 = head["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3..=5).contains(&after));
    let decoded = |name: &str| {
        let text = head[name].to_str().unwrap();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD_NO_PAD, text).unwrap()
    };
    // RetryInfo { retry_delay: { seconds } }
    assert_eq!(decoded("google.rpc.retryinfo-bin"), [0x0a, 2, 0x08, after]);
    let details = decoded("grpc-status-details-bin");
    let has = |text: &[u8]| details.windows(text.len()).any(|window| window == text);
    assert!(
        has(b"type.googleapis.com/google.rpc.RetryInfo") && has(&[0x12, 4, 0x0a, 2, 0x08, after]),
        "{details:?}"
    );
    assert_eq!(ShedReason::LogFull.status(), 503);
}

#[tokio::test]
async fn http_answers_are_of_the_form_of_the_question() {
    let server = start_with(|setup| setup.judge = normalizer()).await;
    let post = async |media_type: &str, body: &[u8]| {
        let head = format!(
            "POST /v1/logs HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            bearer(&server),
            body.len()
        );
        server.raw(&[head.as_bytes(), body].concat()).await
    };
    let reply = post("application/json", br#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{"severityText":"\u0000"},{"spanId":"x"}]}]}]}"#).await;
    assert_eq!(reply.status, 200);
    let partial = &reply.body["partialSuccess"];
    assert_eq!(partial["rejectedLogRecords"], "1");
    assert!(partial["errorMessage"].as_str().unwrap().contains("nul_character"), "{partial}");
    let reply = post("application/json", b"{}").await;
    assert_eq!((reply.status, &reply.body), (200, &serde_json::json!({})));
    let reply = post("application/json", b"{").await;
    assert_eq!((reply.status, reply.body["code"].as_u64()), (400, Some(3)));
    let reply = post("application/x-protobuf", &logs(&[b"a"])).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("0")));
    assert_eq!(reply.header("content-type"), Some("application/x-protobuf"));
    let reply = post("application/x-protobuf", b"\xff").await;
    assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/x-protobuf")));
}

#[tokio::test]
async fn it_listens_in_more_places_and_goes_on_without_those_that_may_be_taken() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listening.local_addr().unwrap().to_string();
    let server = start().await;
    let parts = |also: &[&str], optional: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let mut parts: EdgeParts = server.parts();
        parts.config.also_listen = Some(own(also));
        parts.config.optional_listen = own(optional);
        parts
    };
    let refused = bind(parts(&[&taken], &[])).await.err().unwrap();
    assert!(matches!(refused, EdgeError::Listen { what: "edge.also_listen", .. }), "{refused}");
    let edge = bind(parts(&["127.0.0.1:0"], &[&taken, "127.0.0.1:0"])).await.unwrap();
    let addresses: Vec<_> = edge.also_addrs().collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let handle = edge.handle();
    let served = tokio::spawn(edge.serve());
    for address in addresses {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.unwrap();
        assert_eq!(super::kit::read_reply(&mut stream).await.status, 200);
    }
    drop(listening);
    handle.drain();
    served.await.unwrap();
}
