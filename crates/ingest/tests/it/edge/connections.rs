//! Connections: timeouts that fire, reuse, HTTP/2, and the end.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_ingest::{config::Span, shed::ShedReason};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::kit::{Server, is_closed, read_reply, start, start_with, try_read_reply};

const JSON: &str = "Content-Type: application/json\r\n";
const ONE: &str = r#"{"event_type":"t"}"#;
const SHORT: Span = Span(Duration::from_millis(100));

fn request(server: &Server) -> String {
    format!("{}{JSON}Content-Length: {}\r\n\r\n{ONE}", server.head(""), ONE.len())
}

#[tokio::test]
async fn slow_headers_are_cut_off_also_when_they_drip() {
    let server = start_with(|setup| setup.config.timeouts.header = SHORT).await;
    let mut silent = server.connect().await;
    silent.write_all(b"POST /v1/ev").await.unwrap();
    is_closed(&mut silent).await;
    let (mut reader, mut writer) = server.connect().await.into_split();
    writer.write_all(b"POST /v1/events HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let drip = tokio::spawn(async move {
        while writer.write_all(b"x: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut waste = Vec::new();
    let _ = reader.read_to_end(&mut waste).await;
    drip.await.unwrap();
    // A connection that has not begun a request is not slow.
    let mut waiting = server.connect().await;
    waiting.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut waiting).await.counts(1, 0, 0);
}

#[tokio::test]
async fn idle_connections_are_reaped_before_and_after_a_request() {
    let server = start_with(|setup| setup.config.timeouts.idle = SHORT).await;
    is_closed(&mut server.connect().await).await;
    let mut used = server.connect().await;
    used.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut used).await.counts(1, 0, 0);
    is_closed(&mut used).await;
    let mut preface = server.connect().await;
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    is_closed(&mut preface).await;
    let mut part = server.connect().await;
    part.write_all(b"PR").await.unwrap();
    is_closed(&mut part).await;
    for _ in 0..500 {
        if server.handle.stats().connections == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections are still open");
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_cut_off() {
    let server = start_with(|setup| setup.config.timeouts.body_idle = SHORT).await;
    let mut stream = server.connect().await;
    let requests = request(&server).repeat(1000);
    // Pipelined without reading: at some point the server cannot write, and ends the connection.
    let flood = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    let ended = tokio::time::timeout(Duration::from_secs(60), flood).await;
    assert!(ended.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn one_connection_serves_many_requests_and_pipelines() {
    let server = start().await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(request(&server).as_bytes()).await.unwrap();
        read_reply(&mut stream).await.counts(1, 0, 0);
    }
    stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_reply(&mut stream).await.is_problem(404, "no_such_path");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 200);
}

#[tokio::test]
async fn expect_continue_is_answered_once_the_key_is_checked() {
    let server = start().await;
    let mut stream = server.connect().await;
    let length = ONE.len();
    let head = format!("{JSON}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(server.head(&head).as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 100);
    stream.write_all(ONE.as_bytes()).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_open() {
    let server = start().await;
    let mut stream = server.connect().await;
    let head = server.head(&format!("{JSON}Content-Length: 1000\r\n\r\n{{"));
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    for _ in 0..500 {
        if server.page().refused_requests == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.page().refused_requests, 1);
    server.is_balanced().await;
}

#[tokio::test]
async fn bytes_that_are_two_messages_for_some_are_one_answer_and_the_end() {
    let server = start().await;
    let smuggled = format!("POST /v1/events HTTP/1.1\r\nX-Api-Key: {}\r\n\r\n", server.key);
    for head in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "Content-Length: +5\r\n\r\n",
        "Content-Length: 5, 6\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        "X: y\r\n folded\r\n\r\n",
        "X : y\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        let bytes = format!("{}{smuggled}", server.head(&format!("{JSON}{head}")));
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let reply = try_read_reply(&mut stream).await;
        assert!(reply.is_none_or(|reply| reply.status == 400), "{head:?}");
        is_closed(&mut stream).await;
    }
    // Both lengths: the chunked one counts, and what follows is not read
    // (more of them in `threats::smuggling`).
    let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let reply = server.raw(server.head(&format!("{JSON}{both}")).as_bytes()).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(server.kept(), []);
}

async fn http2_post(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    server: &Server,
    key: &str,
    body: String,
) -> (u16, serde_json::Value) {
    let request = http::Request::post(format!("http://{}/v1/events", server.address))
        .header("x-api-key", key)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    assert!(answer.headers().contains_key("x-request-id"));
    assert!(!answer.headers().contains_key("connection"));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn http2_connect(server: &Server) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http2_serves_many_requests_at_once_and_outlives_a_refusal() {
    let server = start().await;
    let mut sender = http2_connect(&server).await;
    let (status, body) = http2_post(&mut sender, &server, "wrong", "x".repeat(100_000)).await;
    assert_eq!((status, &body["code"]), (401, &"key_invalid".into()));
    let large = format!(r#"{{"event_type":"t","a":"{}"}}"#, "x".repeat(700_000));
    let posts = (0..20).map(|_| {
        let (mut sender, server, body) = (sender.clone(), &server, large.clone());
        async move { http2_post(&mut sender, server, &server.key, body).await }
    });
    for (status, body) in futures_util::future::join_all(posts).await {
        assert_eq!((status, &body["accepted"]), (200, &1.into()));
    }
    server.is_balanced().await;
}

#[tokio::test]
async fn http2_headers_too_large_are_431() {
    let server = start().await;
    let mut sender = http2_connect(&server).await;
    for bytes in [17 << 10, 40 << 10] {
        let request = http::Request::post(format!("http://{}/v1/events", server.address))
            .header("x-large", "y".repeat(bytes))
            .body(Full::new(Bytes::new()))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 431);
    }
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_refuses_the_rest() {
    let server = start().await;
    let (mut busy, mut open) = (server.connect().await, server.connect().await);
    // Both connections are known to the server before it drains.
    open.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut open).await.counts(1, 0, 0);
    server.log.gate.forget_permits(1_000_000);
    busy.write_all(request(&server).as_bytes()).await.unwrap();
    while server.log.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.handle.drain();
    open.write_all(request(&server).as_bytes()).await.unwrap();
    let reply = read_reply(&mut open).await;
    assert_eq!(reply.is_shed(ShedReason::Draining).header("connection"), Some("close"));
    server.json(ONE).await.is_shed(ShedReason::Draining);
    assert_eq!(server.raw(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 503);
    server.log.gate.add_permits(10);
    let reply = read_reply(&mut busy).await;
    assert_eq!(reply.counts(1, 0, 0).header("connection"), Some("close"));
    let Server { served, address, .. } = server;
    served.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn draining_ends_at_its_timeout_whatever_hangs() {
    let server = start_with(|setup| setup.config.timeouts.drain = SHORT).await;
    server.log.gate.forget_permits(1_000_000);
    let mut busy = server.connect().await;
    busy.write_all(request(&server).as_bytes()).await.unwrap();
    while server.log.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.handle.drain();
    let Server { served, .. } = server;
    served.await.unwrap();
    is_closed(&mut busy).await;
}

#[tokio::test]
async fn at_the_bound_an_idle_connection_makes_room() {
    let server = start_with(|setup| setup.config.limits.connections = 1).await;
    let mut first = server.connect().await;
    first.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut first).await.counts(1, 0, 0);
    let mut second = server.connect().await;
    second.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut second).await.counts(1, 0, 0);
    is_closed(&mut first).await;
    assert_eq!(server.handle.stats().connections, 1);
}

#[tokio::test]
async fn at_the_bound_a_body_that_is_slow_to_come_makes_room() {
    let server = start_with(|setup| setup.config.limits.connections = 1).await;
    let mut slow = server.connect().await;
    let head = server.head(&format!("{JSON}Content-Length: 1000\r\n\r\n{{"));
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut second = server.connect().await;
    second.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut second).await.counts(1, 0, 0);
    is_closed(&mut slow).await;
    server.is_balanced().await;
}

#[tokio::test]
async fn at_the_bound_a_request_that_is_being_appended_is_waited_for() {
    let server = start_with(|setup| setup.config.limits.connections = 1).await;
    server.log.gate.forget_permits(1_000_000);
    let mut first = server.connect().await;
    first.write_all(request(&server).as_bytes()).await.unwrap();
    while server.log.waiting.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let mut second = server.connect().await;
    second.write_all(request(&server).as_bytes()).await.unwrap();
    server.log.gate.add_permits(10);
    read_reply(&mut first).await.counts(1, 0, 0);
    read_reply(&mut second).await.counts(1, 0, 0);
}

/// Many clients write a body whole before they read: they get the answer, no reset. Those without a key
/// have less patience (`threats::floods::bodies_without_a_key_are_left_unread`).
#[tokio::test]
async fn a_body_refused_unread_can_be_written_to_its_end() {
    let server = start().await;
    let bytes: usize = 20 << 20;
    let mut stream = server.connect().await;
    let head = server.head(&format!("{JSON}Content-Length: {bytes}\r\n\r\n"));
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; bytes]).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 413);
}
