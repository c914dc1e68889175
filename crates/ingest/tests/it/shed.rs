//! The runbook's table of refusals is what the code does: each row is a state that a server is brought into.
//!
//! Where a real `ingestd` can be brought there from outside it is one; a log that refuses is the edge's fake.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::tempdir;
use tidegate_event::EventType;
use tidegate_ingest::{edge::problem::Problem, shed::ShedReason, writer::AppendError};

use crate::{
    edge::kit,
    server::{Server, wait_for},
    tally::Tally,
    threats::{connect, tenant, until_closed},
};

/// Small enough to be over a small quota alone, large enough to be worth refusing unread.
const BODY: usize = 2_000;

/// One row of the table.
struct Row {
    signal: String,
    code: String,
    status: u16,
    before_body: bool,
}

fn rows() -> Vec<Row> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/runbook.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n## Refused on purpose\n").expect("the section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    lines.map(row).collect()
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
    let [signal, meaning, seen, action] = cells[..] else { panic!("four cells: {line}") };
    assert!(!meaning.is_empty() && !action.is_empty(), "{line}");
    let code = signal.split('`').nth(1).unwrap().to_owned();
    let (status, when) = seen.split_once(' ').unwrap_or_else(|| panic!("a status first: {line}"));
    let before_body = when.starts_with("before the body");
    assert!(before_body || when.starts_with("after the body"), "when it is decided: {line}");
    let retry = seen.contains("`Retry-After`");
    let shed = ShedReason::ALL.iter().any(|reason| reason.as_str() == code);
    assert_eq!(retry, shed, "a refusal for now, and nothing else, says when to come again: {line}");
    Row { signal: signal.replace('`', ""), code, status: status.parse().unwrap(), before_body }
}

fn row_of(signal: &str) -> Row {
    rows().into_iter().find(|row| row.signal == signal).unwrap_or_else(|| panic!("{signal}"))
}

/// Each row with the test that brings a server there.
macro_rules! each_row {
    ($($name:ident: $signal:literal,)*) => {
        const TESTED: &[&str] = &[$($signal),*];
        $(#[test]
        fn $name() {
            states::$name(&row_of($signal));
        })*
    };
}

each_row! {
    a_tenant_over_its_events_is_told: "quota_events",
    a_tenant_over_its_bytes_is_told: "quota_bytes",
    a_tenant_whose_lane_is_full_is_told_and_no_other: "tenant_lane: the sink",
    a_tenant_that_holds_the_memory_is_told_and_no_other: "tenant_lane: the memory",
    a_body_without_memory_is_told: "edge_full",
    a_full_queue_is_told: "log_full: the queue",
    a_full_backlog_is_told: "log_full: the backlog",
    a_failing_disk_is_told: "storage",
    a_server_that_drains_tells: "draining",
    an_edge_without_normalizers_tells: "unreachable",
    an_outcome_that_nobody_knows_is_told: "outcome_unknown",
    a_slow_body_is_told: "body_slow",
    a_large_body_is_told: "body_too_large",
}

#[test]
fn the_table_has_every_reason_and_every_row_has_a_test() {
    let rows = rows();
    let signals: Vec<&str> = rows.iter().map(|row| row.signal.as_str()).collect();
    let found: BTreeSet<&str> = signals.iter().copied().collect();
    assert_eq!(found, TESTED.iter().copied().collect());
    assert_eq!(signals.len(), TESTED.len(), "a row stands twice: {signals:?}");
    for reason in ShedReason::ALL {
        let mut own = rows.iter().filter(|row| row.code == reason.as_str()).peekable();
        assert!(own.peek().is_some(), "{reason:?} has no row");
        own.for_each(|row| assert_eq!(row.status, reason.status(), "{reason:?}"));
    }
    let others = rows.iter().filter(|row| ShedReason::ALL.iter().all(|r| r.as_str() != row.code));
    for row in others {
        let problem = Problem::ALL.iter().find(|problem| problem.code == row.code);
        assert_eq!(problem.map(|p| p.status), Some(row.status), "{}", row.signal);
    }
}

/// A request of `declared` bytes with no body, or with all of it.
fn request(key: &str, declared: usize, with_body: bool) -> Vec<u8> {
    let start = "{\"event_type\":\"shed\",\"x\":\"";
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {declared}\r\n\r\n"
    );
    let fill = "y".repeat(declared - start.len() - 2);
    let body = if with_body { format!("{start}{fill}\"}}") } else { String::new() };
    [head, body].concat().into_bytes()
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The answer is the row's, to the letter.
#[track_caller]
fn is_told(row: &Row, answer: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {} ", row.status)), "{}: {answer}", row.signal);
    assert_eq!(header(answer, "content-type"), Some("application/problem+json"), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["code"], &body["status"]), (&json!(row.code), &json!(row.status)));
    if ShedReason::ALL.iter().any(|reason| reason.as_str() == row.code) {
        assert_eq!(header(answer, "x-shed-reason"), Some(row.code.as_str()), "{answer}");
        let after: u64 = header(answer, "retry-after").unwrap().parse().unwrap();
        assert!(after >= 1, "{answer}");
    } else {
        assert_eq!(header(answer, "x-shed-reason"), None, "{answer}");
    }
}

/// What the books have of a tenant: events shed for this reason, requests refused unread.
fn booked(server: &Server, tenant: &str, reason: &str) -> (u64, u64) {
    let books = server.admin_get("/api/v1/books").json();
    assert_eq!(books["difference"], 0, "{books:#}");
    let page = &books["tenants"][tenant];
    let types = page["reasons"].as_object().into_iter().flatten();
    let shed = types.map(|(_, reasons)| reasons["shed"][reason].as_u64().unwrap_or(0)).sum();
    (shed, page["refused_requests"].as_u64().unwrap_or(0))
}

fn given(server: &Server) -> Value {
    server.admin_get("/api/v1/offsets").json()["partitions"][0]["latest"].clone()
}

/// How often the edge says that it refused for this reason.
fn shed_metric(server: &Server, reason: &str) -> f64 {
    let metrics = server.admin_get("/metrics").body;
    let name = format!("tidegate_edge_shed_requests_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    value.unwrap_or(0.0)
}

/// A request of `bytes` is refused as the row says: nothing of it is stored, and it is in the books.
#[track_caller]
fn refuses(row: &Row, server: &Server, tenant: &str, key: &str, bytes: usize) {
    let (latest, metric) = (given(server), shed_metric(server, &row.code));
    let (shed, unread) = booked(server, tenant, &row.code);
    // With no body sent, an answer proves that nobody waited for it.
    let answer = until_closed(server.public, &request(key, bytes, !row.before_body));
    is_told(row, &answer);
    // Its event is shed, or the request refused where nobody has counted its events.
    let once = [(shed, unread + 1), (shed + 1, unread)];
    wait_for("the books to have it once", || {
        let now = booked(server, tenant, &row.code);
        once.contains(&now) && (!row.before_body || now == once[0])
    });
    assert_eq!(given(server), latest, "nothing of it is stored");
    if ShedReason::ALL.iter().any(|reason| reason.as_str() == row.code) {
        assert!(shed_metric(server, &row.code) > metric, "the metric counts it");
    }
}

fn is_taken(server: &Server, key: &str) -> bool {
    until_closed(server.public, &request(key, 100, true)).starts_with("HTTP/1.1 200 ")
}

fn with_quota(server: &Server, quota: &str, n: u64) -> String {
    let new = json!({"tenant": "acme", quota: n});
    let added = server.admin_post("/api/v1/tenants", &new).json();
    added["key"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned()
}

/// A server with a lake that can be made unusable.
fn with_lake(dir: &Path, log: &str, options: &str) -> Server {
    let lake = dir.join("lake");
    let config = format!(
        "[log]\n{log}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\nflush = {{ age = \"50ms\" }}\n\
         options = {{ format = \"jsonl\" {options} }}\n"
    );
    Server::configured(dir, &config)
}

mod states;
