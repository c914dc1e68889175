//! Many slow clients, and heads without end: others are served, and everything is given back.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{DEV, balances, connect, is_well, open_sockets, resident_bytes, scale, until_closed};
use crate::{
    server::{Server, wait_for},
    tally::Tally,
};

/// A server that loses patience soon.
fn impatient(dir: &std::path::Path) -> Server {
    let data = dir.join("data").display().to_string();
    let short = [
        ("TIDEGATE_EDGE__TIMEOUTS__HEADER", "1s"),
        ("TIDEGATE_EDGE__TIMEOUTS__BODY", "2s"),
        ("TIDEGATE_EDGE__TIMEOUTS__BODY_IDLE", "1s"),
        ("TIDEGATE_EDGE__TIMEOUTS__IDLE", "2s"),
    ];
    Server::start(&["--dev", "--data-dir", &data], &short)
}

/// Begins as `start` and goes on with a byte now and then, for ever. Ends when the server ends it.
async fn drip(address: SocketAddr, start: String, byte: &'static [u8]) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    if writer.write_all(start.as_bytes()).await.is_err() {
        return;
    }
    let mut waste = [0; 256];
    loop {
        let read = tokio::time::timeout(Duration::from_millis(50), reader.read(&mut waste)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
        if writer.write_all(byte).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_reaped_while_others_are_served() {
    let mut tally = Tally::new("threats::floods", "partial network", &["P4", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = impatient(dir.path());
    is_well(&server);
    let (sockets_before, before) = (open_sockets(&server), resident_bytes(&server));
    let head = format!("POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\n");
    let json = "Content-Type: application/json\r\n";
    let starts: [(String, &'static [u8]); 5] = [
        (head.clone(), b"X"),
        (format!("{head}{json}Content-Length: 100000\r\n\r\n{{"), b" "),
        (format!("{head}{json}Transfer-Encoding: chunked\r\n\r\n"), b"1\r\n \r\n"),
        (String::new(), b""),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), b""),
    ];
    let count = 500 * scale();
    let slow: Vec<_> = (0..count)
        .map(|n| {
            let (start, byte) = starts[n % starts.len()].clone();
            tokio::spawn(drip(server.public, start, byte))
        })
        .collect();
    for _ in 0..50 {
        is_well(&server);
    }
    // None of them hangs for ever: the server ends each.
    for one in slow {
        let ended = tokio::time::timeout(Duration::from_secs(60), one).await;
        ended.expect("a slow client is still connected").unwrap();
        tally.survived(1);
    }
    wait_for("every socket to be given back", || open_sockets(&server) <= sockets_before + 2);
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < (96 << 20) + count as u64 * (64 << 10), "{grown} bytes more than before");
    balances(&server);
}

/// A tenant declares sixteen times 16 MiB and sends a byte now and then: what came is what is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_declares_much_and_sends_little_takes_nothing_from_others() {
    let mut tally = Tally::new("threats::floods", "tenant at 100x", &["P3", "P4"]);
    let dir = tempfile::tempdir().unwrap();
    let server = impatient(dir.path());
    let added =
        server.admin_post("/api/v1/tenants", &serde_json::json!({"tenant": "greedy"})).json();
    let key = added["key"].as_str().unwrap();
    let start = format!(
        "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: 16777216\r\n\r\n{{"
    );
    let held = || {
        let status = server.admin_get("/api/v1/status").json();
        status["stages"][0]["held_bytes"].as_u64().unwrap()
    };
    let slow: Vec<_> =
        (0..64).map(|_| tokio::spawn(drip(server.public, start.clone(), b" "))).collect();
    let mut most = 0;
    while !slow.iter().all(tokio::task::JoinHandle::is_finished) {
        is_well(&server);
        most = most.max(held());
        tally.survived(1);
    }
    // A connection's buffers, those to read a large body, and 4 KiB of it, each.
    assert!(most < (66 * (32 + 64 + 4)) << 10, "{most} bytes were held");
    balances(&server);
}

/// Each of a burst of connections is one that the server knows: it answers on it.
#[test]
fn a_burst_of_connections_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    // Nobody accepts while all of them come.
    server.signal(rustix::process::Signal::STOP);
    let burst: Vec<_> = (0..1000).map(|_| connect(server.public)).collect();
    server.signal(rustix::process::Signal::CONT);
    for mut stream in burst {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn clients_that_never_read_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let server = impatient(dir.path());
    let sockets_before = open_sockets(&server);
    // Answers that cost little and are long.
    let requests = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100)).repeat(200);
    let requests = requests.into_bytes();
    let deaf: Vec<_> = (0..8 * scale())
        .map(|_| {
            let (address, requests) = (server.public, requests.clone());
            std::thread::spawn(move || {
                let mut stream = connect(address);
                while stream.write_all(&requests).is_ok() {}
            })
        })
        .collect();
    is_well(&server);
    for one in deaf {
        one.join().unwrap();
    }
    wait_for("every socket to be given back", || open_sockets(&server) <= sockets_before + 2);
    is_well(&server);
    balances(&server);
}

#[test]
fn heads_without_end_are_a_problem_and_memory_stays_flat() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    is_well(&server);
    let before = resident_bytes(&server);
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let heads = [
        format!("X: {}\r\n", "y".repeat(1 << 20)),
        (0..10_000).map(|n| format!("x-{n}: y\r\n")).collect(),
        trace.repeat(100),
        format!("{}\r\n", "baggage: a=b\r\n".repeat(100).trim_end()),
        format!("baggage: {}\r\n", "a=b,".repeat(5000)),
        format!("Cookie: {}\r\n", "c".repeat(40 << 10)),
    ];
    for _ in 0..5 * scale() {
        for head in &heads {
            let answer = until_closed(server.public, &super::post(head, "{}"));
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
            assert!(answer.contains("application/problem+json"), "{answer}");
            assert!(answer.contains("\"code\":\"headers_too_large\""), "{answer}");
        }
    }
    let path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(100_000));
    let answer = until_closed(server.public, path.as_bytes());
    assert!(answer.contains("\"code\":\"headers_too_large\""), "{answer}");
    let answer = until_closed(server.public, b"\x00\x01\x02 nonsense\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("\"code\":\"bad_request\""), "{answer}");
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more than before");
    is_well(&server);
}

/// Who has no key gets next to nothing read. What the kernel takes is not ours: small buffers here.
#[tokio::test]
async fn bodies_without_a_key_are_left_unread() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let whole = 10 << 20;
    for key in ["", "X-Api-Key: tgk_guess\r\n", "Authorization: Bearer x\r\n"] {
        for _ in 0..5 * scale() {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(16 << 10).unwrap();
            let stream = socket.connect(server.public).await.unwrap();
            let mut stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let head = format!(
                "POST /v1/events HTTP/1.1\r\nHost: a\r\n{key}Content-Type: application/json\r\n\
                 Content-Length: {whole}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut written = 0;
            let mut answer = Vec::new();
            let block = vec![b'x'; 64 << 10];
            // Writes all that is taken, and reads the answer meanwhile, until the server ends it.
            wait_for("the server to end it", || {
                if let Ok(n) = stream.write(&block[..block.len().min(whole - written)]) {
                    written += n;
                }
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer) {
                    Ok(0) => !answer.is_empty(),
                    Ok(n) => {
                        answer.extend_from_slice(&buffer[..n]);
                        false
                    }
                    Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
                }
            });
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
            assert!(written < 4 << 20, "{written} of {whole} bytes were taken");
        }
    }
    is_well(&server);
}
