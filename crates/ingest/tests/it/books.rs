//! The books of the real server, over real sockets: whatever a client does, each event has one
//! outcome and each request that had none is counted; after a kill they say what they do not know.
//!
//! What the books say after any crash of the disk is proved by sim::ledger.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    server::{Answer, Server, request, wait_for},
    tally::Tally,
};

const KEY: &str = "tgk_dev";
const NDJSON: &str = "application/x-ndjson";

fn lines(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|n| format!("{{\"event_type\":\"some\",\"n\":{n}}}\n")).collect::<String>().into()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn post_gzip(server: &Server, body: &[u8]) -> Answer {
    let headers = [
        ("authorization", "Bearer tgk_dev"),
        ("content-type", NDJSON),
        ("content-encoding", "gzip"),
    ];
    request(server.public, "POST", "/v1/events", &headers, body)
}

/// received, accepted, dead_lettered, deduplicated, rejected, shed of type `some`; refused requests.
type Counts = ([u64; 6], u64);

const NAMES: [&str; 6] =
    ["received", "accepted", "dead_lettered", "deduplicated", "rejected", "shed"];

fn counts(server: &Server) -> Counts {
    let books = server.admin_get("/api/v1/books").json();
    let page = &books["tenants"]["dev"];
    let refused = page["refused_requests"].as_u64().unwrap_or(0);
    let mut sums = [0; 6];
    for row in books["minutes"].as_array().unwrap() {
        for (sum, name) in sums.iter_mut().zip(NAMES) {
            *sum += row[name].as_u64().unwrap();
        }
    }
    let mut totals = [0; 6];
    for row in page["types"].as_object().into_iter().flatten() {
        for (sum, name) in totals.iter_mut().zip(NAMES) {
            *sum += row.1[name].as_u64().unwrap();
        }
    }
    assert_eq!(sums, totals, "the minutes and the totals: {books:#}");
    (sums, refused)
}

/// What one request adds to the books is just this, and they balance.
#[track_caller]
fn adds(server: &Server, what: &str, expected: Counts, act: impl FnOnce()) {
    let (before, refused) = counts(server);
    act();
    let added = || {
        let (now, refused_now) = counts(server);
        (std::array::from_fn(|n| now[n] - before[n]), refused_now - refused)
    };
    wait_for(what, || {
        let books = server.admin_get("/api/v1/books").json();
        books["in_flight"] == 0 && added() == expected
    });
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!((&audit["balanced"], &audit["difference"]), (&json!(true), &json!(0)), "{what}");
    assert_eq!((&audit["unaccounted"], &audit["books_difference"]), (&json!(0), &json!(0)));
}

/// The same for a request that is one of the grid's faults.
#[track_caller]
fn survives(
    server: &Server,
    fault: &'static str,
    what: &str,
    expected: Counts,
    act: impl FnOnce(),
) {
    let mut tally = Tally::new("books::survives", fault, &["P5"]);
    adds(server, what, expected, act);
    tally.survived(1);
}

#[test]
fn bodies_of_every_kind_leave_the_books_at_zero_with_exact_counts() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let post = |body: &[u8], status: u16| {
        let answer = server.post("/v1/events", KEY, NDJSON, body);
        assert_eq!(answer.status, status, "{answer:?}");
    };
    adds(&server, "no last newline", ([3, 3, 0, 0, 0, 0], 0), || {
        post(lines(0..3).trim_ascii_end(), 200);
    });
    adds(&server, "empty lines", ([2, 2, 0, 0, 0, 0], 0), || {
        post(b"\n\r\n{\"event_type\":\"some\"}\n\n  \n{\"event_type\":\"some\"}\n\n", 200);
    });
    adds(&server, "one bad of 1,000", ([1000, 999, 0, 0, 1, 0], 0), || {
        let body = [lines(0..500), b"{\"event_type\":\n".to_vec(), lines(501..1000)].concat();
        post(&body, 200);
    });
    adds(&server, "one dead letter", ([2, 1, 1, 0, 0, 0], 0), || {
        post(b"{\"event_type\":\"some\",\"a\":1,\"a\":2}\n{\"event_type\":\"some\"}\n", 200);
    });
    survives(&server, "client duplicates", "an id twice", ([3, 2, 0, 1, 0, 0], 0), || {
        let one = b"{\"event_type\":\"some\",\"event_id\":\"x\"}\n";
        post(&[one.as_slice(), one, b"{\"event_type\":\"some\"}\n"].concat(), 200);
    });
    survives(&server, "client duplicates", "the same id again", ([1, 0, 0, 1, 0, 0], 0), || {
        post(b"{\"event_type\":\"some\",\"event_id\":\"x\"}\n", 200);
    });
    adds(&server, "nothing to keep", ([2, 0, 0, 0, 2, 0], 0), || post(b"[1]\n7\n", 400));
    adds(&server, "an empty body", ([0; 6], 1), || post(b"", 400));
    let audit = server.admin_get("/api/v1/audit").json();
    let rows = audit["tenants"].as_array().unwrap().iter();
    let mut rejected = 0;
    for row in rows {
        let by_code = row["reasons"]["rejected"].as_object().into_iter().flatten();
        let sum: u64 = by_code.map(|(_, n)| n.as_u64().unwrap()).sum();
        assert_eq!(row["rejected"], sum, "{row}");
        rejected += sum;
    }
    assert_eq!(rejected, 3);
}

#[test]
fn bodies_that_are_cut_or_damaged_count_as_one_request_and_no_events() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let whole = gzip(&lines(0..20_000));
    adds(&server, "multi-member gzip", ([30, 30, 0, 0, 0, 0], 0), || {
        let body = [gzip(&lines(0..10)), gzip(&lines(10..30))].concat();
        assert_eq!(post_gzip(&server, &body).status, 200);
    });
    adds(&server, "truncated gzip", ([0; 6], 1), || {
        assert_eq!(post_gzip(&server, &whole[..whole.len() - 9]).status, 400);
    });
    adds(&server, "a second member cut off", ([0; 6], 1), || {
        let body = [gzip(&lines(0..10)), gzip(&lines(10..30))[..20].to_vec()].concat();
        assert_eq!(post_gzip(&server, &body).status, 400);
    });
    let head = |length: usize| {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: {NDJSON}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    adds(&server, "a body declared too large", ([0; 6], 1), || {
        let mut stream = TcpStream::connect(server.public).unwrap();
        stream.write_all(head(1 << 40).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    for sent in [0, 1, 400] {
        let what = format!("a client that hangs up after {sent} bytes");
        survives(&server, "partial network", &what, ([0; 6], 1), || {
            let mut stream = TcpStream::connect(server.public).unwrap();
            stream.write_all(head(1000).as_bytes()).unwrap();
            stream.write_all(&lines(0..100)[..sent]).unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        });
    }
    survives(
        &server,
        "partial network",
        "a client that does not wait",
        ([100, 100, 0, 0, 0, 0], 0),
        || {
            let body = lines(0..100);
            let mut stream = TcpStream::connect(server.public).unwrap();
            stream.write_all(head(body.len()).as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            // Whatever the server makes of it: wait until it has it, then go without the answer.
            wait_for("the append", || {
                server.admin_get("/api/v1/offsets").json()["partitions"][0]["latest"] == 130
            });
        },
    );
}

fn gaps(server: &Server) -> Value {
    server.admin_get("/api/v1/audit").json()["gaps"].clone()
}

/// Scenario: events and refusals, a kill, events again, a clean stop.
/// Guarantees: minutes and totals of what is in the log are exact; refusals as of the last record; the
/// kill is a gap in audit, status and log, the clean stop is none.
#[test]
fn a_kill_leaves_a_gap_that_is_told_and_a_clean_stop_leaves_none() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    assert_eq!(gaps(&server)["count"], 0);
    let post = |server: &Server, body: &[u8]| server.post("/v1/events", KEY, NDJSON, body).status;
    assert_eq!(post(&server, &[&lines(0..5)[..], b"7\n"].concat()), 200);
    let file = dir.path().join("books.json");
    wait_for("the refusal to be in a record", || {
        std::fs::read_to_string(&file).unwrap().contains("\"not_an_object\":1")
    });
    assert_eq!(post(&server, &lines(5..9)), 200);
    let mut tally = Tally::new("books::gap", "kill -9", &["P5"]);
    server.kill();

    let server = Server::dev(dir.path());
    let told = gaps(&server);
    assert_eq!(told["count"], 1, "{told}");
    let (from, to) = (told["spans"][0]["from"].as_str(), told["spans"][0]["to"].as_str());
    assert!(from.unwrap() < to.unwrap(), "{told}");
    assert!(server.log().contains("the last stop was not clean"), "{}", server.log());
    assert_eq!(server.admin_get("/api/v1/status").json()["books"]["gaps"], 1);
    assert_eq!(counts(&server), ([10, 9, 0, 0, 1, 0], 0));
    assert_eq!(server.admin_get("/api/v1/audit").json()["balanced"], true);
    let ctl = |arguments: &[&str]| {
        let admin = format!("http://{}", server.admin);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ingestctl"));
        let output = command.args(["--admin", &admin]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = ctl(&["audit", "--since", "10m"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("not known") && text.contains("MINUTE"), "{text}");
    let (_, document) = ctl(&["audit", "--since", "10m", "--json"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["gaps"]["count"], 1, "{document}");
    let minutes = document["minutes"].as_array().unwrap();
    let received: u64 = minutes.iter().map(|row| row["received"].as_u64().unwrap()).sum();
    assert_eq!(received, 10, "{document}");
    let (_, document) = ctl(&["audit", "--json"]);
    assert!(serde_json::from_str::<Value>(&document).unwrap().get("minutes").is_none());
    tally.survived(1);
    assert_eq!(server.terminate(), Some(0));

    let server = Server::dev(dir.path());
    assert_eq!(gaps(&server)["count"], 1);
    assert_eq!(counts(&server), ([10, 9, 0, 0, 1, 0], 0));
    let later = server.admin_get("/api/v1/books?from=2100-01-01T00:00:00Z").json();
    assert_eq!(later["minutes"], json!([]));
    assert_eq!(server.admin_get("/api/v1/books?from=noon").status, 400);
    wait_for("the metric", || {
        let text = server.admin_get("/metrics").body;
        text.contains("tidegate_books_difference_events 0")
            && text.contains("tidegate_books_unaccounted_events_total 0")
    });
}

/// Scenario: while the server is down a frame is damaged that no ledger has counted.
/// Guarantees: audit names the stretch, and the books still balance.
#[test]
fn a_damaged_stretch_is_told_by_the_audit_and_the_books_balance() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    for n in 0..3 {
        assert_eq!(server.post("/v1/events", KEY, NDJSON, &lines(n..n + 2)).status, 200);
    }
    server.settle();
    assert_eq!(server.terminate(), Some(0));
    let partition = dir.path().join("log/partition-0");
    let segment = partition.join(format!("{:020}.seg", 0));
    for uncounted in [false, true] {
        let mut tally = Tally::new("books::stretch", "bit flip", &["P5"]);
        let mut bytes = std::fs::read(&segment).unwrap();
        if !uncounted {
            // Each frame names its tenant once.
            let named = |at: &usize| bytes[*at..].starts_with(b"dev");
            let frames: Vec<_> = (0..bytes.len()).filter(named).collect();
            assert_eq!(frames.len(), 3);
            bytes[frames[1]] ^= 1;
            std::fs::write(&segment, &bytes).unwrap();
        } else {
            std::fs::remove_file(partition.join("ledger.json")).unwrap();
        }
        let server = Server::dev(dir.path());
        let audit = server.admin_get("/api/v1/audit").json();
        let lost = &audit["log_quarantined"];
        assert_eq!(lost["events"], 2, "{audit:#}");
        assert_eq!(lost["stretches"], json!([{"partition": 0, "from": 2, "to": 4}]), "{audit:#}");
        let off = audit["tenants"][0]["log_difference"].as_i64().unwrap();
        assert_eq!(off, if uncounted { 0 } else { 2 }, "{audit:#}");
        tally.survived(1);
        assert_eq!(server.terminate(), Some(0));
    }
}
