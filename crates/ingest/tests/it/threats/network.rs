//! Networks that lose one direction, clients that vanish, tenants that flood, processes that are paused:
//! the books stay at zero, and what was answered is there once.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};

use super::{
    DEV, balances, connect, is_well, lake_lines, open_sockets, post, scale, statuses, tenant,
    with_lines,
};
use crate::{
    server::{Server, wait_for},
    tally::Tally,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// In both directions, properly.
    Close,
    /// With a reset: what is under way is lost.
    Reset,
    /// The client says that it sends no more, and reads on.
    Half,
    /// The client is silent for ever, and its answers are not taken.
    Silent,
}

const ENDS: [End; 4] = [End::Close, End::Reset, End::Half, End::Silent];

fn end(stream: TcpStream, how: End) -> Option<TcpStream> {
    match how {
        End::Close => None,
        End::Reset => {
            // Unread bytes in its own buffer make the kernel close with a reset; so does no lingering.
            let stream = tokio_socket(stream);
            drop(stream);
            None
        }
        End::Half => {
            stream.shutdown(Shutdown::Write).unwrap();
            Some(stream)
        }
        End::Silent => Some(stream),
    }
}

/// Closes with a reset.
fn tokio_socket(stream: TcpStream) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    stream.set_zero_linger().unwrap();
    stream.into_std().unwrap()
}

/// A server that does not wait long for silent clients.
fn server(dir: &std::path::Path) -> Server {
    let data = dir.join("data").display().to_string();
    let short = [
        ("TIDEGATE_EDGE__TIMEOUTS__HEADER", "1s"),
        ("TIDEGATE_EDGE__TIMEOUTS__BODY", "2s"),
        ("TIDEGATE_EDGE__TIMEOUTS__BODY_IDLE", "1s"),
        ("TIDEGATE_EDGE__TIMEOUTS__IDLE", "2s"),
    ];
    Server::start(&["--dev", "--data-dir", &data], &short)
}

#[test]
fn connections_cut_at_every_byte_in_every_way_leave_the_books_at_zero() {
    let mut tally = Tally::new("threats::network", "partial network", &["P1", "P4", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    is_well(&server);
    let sockets_before = open_sockets(&server);
    let request = |n: usize, how: End| {
        post("", &format!("{{\"event_type\":\"cut\",\"event_id\":\"{how:?}-{n}\"}}"))
    };
    let mut kept = Vec::new();
    let whole = request(100, End::Close).len();
    let step = if scale() > 1 { 1 } else { 3 };
    for how in ENDS {
        for at in (0..=whole).step_by(step).chain([whole]) {
            let bytes = request(at, how);
            let mut stream = connect(server.public);
            stream.write_all(&bytes[..at.min(bytes.len())]).unwrap();
            kept.extend(end(stream, how));
            tally.survived(1);
        }
    }
    is_well(&server);
    // Those that wait for an answer read one, or the end; the silent ones are cut off.
    for mut stream in kept {
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
    }
    wait_for("every socket to be given back", || open_sockets(&server) <= sockets_before + 2);
    let audit = balances(&server);
    let rows = audit["tenants"].as_array().unwrap();
    let cut = rows.iter().find(|row| row["event_type"] == "cut").unwrap();
    assert_eq!(
        cut["received"],
        cut["accepted"].as_u64().unwrap() + cut["deduplicated"].as_u64().unwrap(),
        "{cut}"
    );
}

#[test]
fn an_answer_that_never_arrives_is_sent_again_and_leaves_one_copy() {
    let mut tally = Tally::new("threats::network", "partial network", &["P1", "P2", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let key = tenant(&server, "acme");
    let count = 100 * scale();
    for n in 0..count {
        let body = format!("{{\"event_type\":\"t\",\"event_id\":\"{n}\"}}");
        let raw = format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // The request goes out, and the way back is gone.
        let mut stream = connect(server.public);
        stream.write_all(raw.as_bytes()).unwrap();
        end(stream, if n % 2 == 0 { End::Reset } else { End::Close });
        let answer = server.post("/v1/events", &key, "application/json", body.as_bytes()).json();
        let sum = answer["accepted"].as_u64().unwrap() + answer["deduplicated"].as_u64().unwrap();
        assert_eq!(sum, 1, "{answer}");
        tally.survived(1);
    }
    balances(&server);
    let lines = lake_lines(dir.path());
    let ids: BTreeSet<String> = lines
        .iter()
        .map(|(_, line)| {
            serde_json::from_str::<Value>(line).unwrap()["event_id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!((lines.len(), ids.len()), (count, count));
}

#[test]
fn a_tenant_at_a_hundred_times_its_quota_costs_its_neighbour_nothing() {
    let mut tally = Tally::new("threats::network", "tenant at 100x", &["P3", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(with_lines(dir.path(), ""));
    let loud = json!({"tenant": "loud", "events_per_second": 10, "bytes_per_second": 10_000});
    let added = server.admin_post("/api/v1/tenants", &loud);
    assert_eq!(added.status, 200, "{added:?}");
    let loud = added.json()["key"].as_str().unwrap().to_owned();
    let neighbour = tenant(&server, "neighbour");
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flood: Vec<_> = (0..4)
        .map(|kind| {
            let (server, stop, sent, key) =
                (Arc::clone(&server), Arc::clone(&stop), Arc::clone(&sent), loud.clone());
            let body = match kind {
                0 => "{\"event_type\":\"t\"}\n".to_owned(),
                1 => "{\"event_type\":\"t\"}\n".repeat(100),
                2 => format!("{{\"event_type\":\"t\",\"x\":\"{}\"}}\n", "y".repeat(20_000)),
                _ => "{\"event_type\":7}\n[1]\nnonsense\n".repeat(30),
            };
            std::thread::spawn(move || {
                let mut refused = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    let answer =
                        server.post("/v1/events", &key, "application/x-ndjson", body.as_bytes());
                    assert!(matches!(answer.status, 200 | 429), "{answer:?}");
                    refused += u64::from(answer.status == 429);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
                refused
            })
        })
        .collect();
    let count = 300 * scale();
    for n in 0..count {
        let body = format!("{{\"event_type\":\"t\",\"event_id\":\"{n}\"}}");
        let answer = server.post("/v1/events", &neighbour, "application/json", body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        tally.survived(1);
    }
    wait_for("a flood", || sent.load(Ordering::SeqCst) > 200);
    stop.store(true, Ordering::SeqCst);
    let refused: u64 = flood.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(refused > 100, "{refused} of {}", sent.load(Ordering::SeqCst));
    let audit = balances(&server);
    let rows = audit["tenants"].as_array().unwrap();
    let of = |name: &str| rows.iter().filter(|r| r["tenant"] == name).collect::<Vec<_>>();
    assert_eq!(of("neighbour")[0]["accepted"], count as u64, "{audit:#}");
    let books = server.admin_get("/api/v1/books").json();
    let unread = books["tenants"]["loud"]["refused_requests"].as_u64().unwrap();
    assert!(unread > 100, "{books:#}");
}

#[test]
fn a_process_that_is_paused_goes_on_as_if_nothing_was() {
    let mut tally = Tally::new("threats::network", "process pause", &["P1", "P2", "P4", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(with_lines(dir.path(), ""));
    let key = tenant(&server, "acme");
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (server, stop, next, key) =
                (Arc::clone(&server), Arc::clone(&stop), Arc::clone(&next), key.clone());
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let id = next.fetch_add(1, Ordering::SeqCst);
                    let body = format!("{{\"event_type\":\"t\",\"event_id\":\"{id}\"}}");
                    let answer =
                        server.post("/v1/events", &key, "application/json", body.as_bytes());
                    assert_eq!(answer.status, 200, "{answer:?}");
                    acknowledged.push(id);
                }
                acknowledged
            })
        })
        .collect();
    for pause in 0..5 * scale() as u64 {
        let before = next.load(Ordering::SeqCst);
        wait_for("load", || next.load(Ordering::SeqCst) > before + 20);
        server.signal(rustix::process::Signal::STOP);
        // Longer than the lake's flush, at full scale as long as a client's patience.
        std::thread::sleep(std::time::Duration::from_millis(200 + 100 * (pause % 5)));
        server.signal(rustix::process::Signal::CONT);
        tally.survived(1);
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged: Vec<u64> =
        clients.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    acknowledged.sort_unstable();
    balances(&server);
    let mut stored: Vec<u64> = lake_lines(dir.path())
        .iter()
        .map(|(_, line)| {
            serde_json::from_str::<Value>(line).unwrap()["event_id"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    stored.sort_unstable();
    assert_eq!(stored, acknowledged, "each acknowledged event once");
}

#[test]
fn pipelined_requests_are_answered_in_order_and_each_is_booked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let count = 200 * scale();
    let mut bytes: Vec<u8> = Vec::new();
    for n in 0..count {
        bytes.extend(post(
            &format!("X-Request-Id: r{n}\r\n"),
            &format!("{{\"event_type\":\"p\",\"event_id\":\"{n}\"}}"),
        ));
    }
    bytes.extend(post("X-Request-Id: last\r\nConnection: close\r\n", "{\"event_type\":\"p\"}"));
    let answers = super::until_closed(server.public, &bytes);
    assert_eq!(statuses(&answers), vec![200; count + 1]);
    let ids: Vec<&str> =
        answers.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert!(ids.iter().zip(0..count).all(|(id, n)| *id == format!("r{n}")), "{ids:?}");
    let audit = balances(&server);
    assert_eq!(audit["tenants"][0]["accepted"], count as u64 + 1, "{audit:#}");
    assert_eq!(
        server.post("/v1/events", DEV, "application/json", b"{\"event_type\":\"p\"}").status,
        200
    );
}
