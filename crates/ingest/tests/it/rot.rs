//! Bits that flip under the real server while it is down: what status, audit, lake and `ingestctl log`
//! say of it, and how the alarm is put to rest.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    server::{Server, files, wait_for},
    tally::Tally,
};

const KEY: &str = "tgk_dev";
const NDJSON: &str = "application/x-ndjson";
/// Events in a request, which is a frame of the log.
const EVENTS: u64 = 5;
/// Bytes that make ten requests or so a segment.
const PAD: usize = 20_000;

fn start(dir: &Path, flush: &str) -> Server {
    let url = dir.join("lake").display().to_string();
    let config = format!(
        "[log]\nsegment_bytes = \"1MiB\"\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {url:?}\nflush = {{ age = {flush:?} }}\n"
    );
    let path = dir.join("tidegate.toml");
    fs::write(&path, config).unwrap();
    let data = dir.join("data");
    let (path, data) = (path.display().to_string(), data.display().to_string());
    Server::start(&["--dev", "--config", &path, "--data-dir", &data], &[])
}

fn send(server: &Server, requests: std::ops::Range<u64>) {
    for request in requests {
        let line = |n| {
            let id = request * EVENTS + n;
            let pad = "x".repeat(PAD);
            format!("{{\"event_type\":\"rot\",\"event_id\":\"{id}\",\"pad\":\"{pad}\"}}\n")
        };
        let body: String = (0..EVENTS).map(line).collect();
        let answer = server.post("/v1/events", KEY, NDJSON, body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Flips a bit of the last byte: of the last frame's body.
fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    fs::write(path, bytes).unwrap();
}

fn ingestctl(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestctl"));
    command.args(["--admin", &format!("http://{}", server.admin)]).args(arguments);
    command.env_remove("TIDEGATE_ADMIN_TOKEN").env("USER", "jo").output().unwrap()
}

#[track_caller]
fn ends(server: &Server, status: i32, arguments: &[&str]) -> String {
    let output = ingestctl(server, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
    said
}

fn document(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn row(audit: &Value) -> &Value {
    audit["tenants"].as_array().unwrap().iter().find(|r| r["event_type"] == "rot").unwrap()
}

fn lost(server: &Server) -> Value {
    server.admin_get("/api/v1/log/quarantine").json()["events"].clone()
}

/// Scenario: 40 frames over several segments, none in the lake yet; killed; the last frame of a sealed
/// segment and of the last one damaged; started.
/// Guarantees: both are lost, recorded and told everywhere; all others are in the lake once; an operator
/// sees them, verifies, saves the bytes, acknowledges; and that stays.
#[test]
fn damage_is_told_everywhere_until_somebody_acknowledges_it() {
    let dir = tempdir().unwrap();
    let partition = dir.path().join("data/log/partition-0");
    let server = start(dir.path(), "1h");
    send(&server, 0..40);
    server.kill();
    let segments = files(&partition, ".seg");
    assert!(segments.len() > 3, "{segments:?}");
    flip_last_byte(&segments[1]);
    flip_last_byte(segments.last().unwrap());

    let server = start(dir.path(), "100ms");
    server.settle();
    let (all, gone) = (40 * EVENTS, 2 * EVENTS);
    wait_for("the sink to come by the damage", || lost(&server) == json!(gone));
    let status = document(&ends(&server, 1, &["status", "--json"]));
    assert_eq!((&status["ready"], &status["healthy"]), (&json!(true), &json!(false)), "{status:#}");
    assert_eq!(status["log_quarantine"]["open_stretches"], 2, "{status:#}");
    assert!(ends(&server, 1, &["status"]).contains("DAMAGED: 10 events"));
    assert_eq!(server.admin_get("/readyz").status, 200);
    let metrics = server.admin_get("/metrics").body;
    let open = "tidegate_log_quarantined_events{partition=\"0\",state=\"open\"} 10";
    assert!(metrics.contains(open), "{metrics}");
    assert_eq!(server.log().matches("damaged and set aside").count(), 2, "told once each");

    let offsets = server.admin_get("/api/v1/offsets").json();
    assert_eq!(offsets["partitions"][0]["latest"], all, "no offset is given again");
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!(audit["log_quarantined"]["events"], gone, "{audit:#}");
    let lake = &row(&audit)["sinks"]["lake"];
    assert_eq!(lake["stored"], all - gone, "{audit:#}");
    assert_eq!(lake["files_difference"], 0, "{audit:#}");
    assert_eq!(audit["balanced"], true, "{audit:#}");
    let ids: String = (0..all).map(|n| format!("{{\"event_id\":\"{n}\"}}\n")).collect();
    fs::write(dir.path().join("journal"), ids).unwrap();
    let journal = dir.path().join("journal").display().to_string();
    let output = ingestctl(&server, &["audit", "--json", "--journal", &journal]);
    let found = document(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(found["journal"]["missing_count"], gone, "{found:#}");

    let verified = document(&ends(&server, 1, &["log", "verify", "--json"]));
    assert_eq!(verified["partitions"][0]["damaged_events"], gone, "{verified:#}");
    assert_eq!(verified["partitions"][0]["events"], all - gone, "{verified:#}");
    assert_eq!(lost(&server), gone, "nothing new");
    acknowledge(&server, dir.path());

    assert_eq!(server.terminate(), Some(0));
    let server = start(dir.path(), "100ms");
    ends(&server, 0, &["status"]);
    assert_eq!(lost(&server), gone, "still in the record");
    send(&server, 40..42);
    server.settle();
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!(row(&audit)["sinks"]["lake"]["stored"], all - gone + 2 * EVENTS, "{audit:#}");
    let data = dir.path().join("data").display().to_string();
    let refused = ingestctl(&server, &["log", "verify", "--data-dir", &data]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"), "{refused:?}");
    let away = server.admin;
    server.kill();
    let output = Command::new(env!("CARGO_BIN_EXE_ingestctl"))
        .args(["--admin", &format!("http://{away}")])
        .args(["log", "verify", "--data-dir", &data, "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let verified = document(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(verified["partitions"][0]["damaged_events"], gone, "{verified:#}");
    Tally::new("rot", "bit flip", &["P1", "P2", "P5"]).survived(2);
}

/// Looks at the damage as an operator does, and puts the alarm to rest.
fn acknowledge(server: &Server, dir: &Path) {
    let listed = document(&ends(server, 0, &["log", "quarantine", "--json"]));
    let first = &listed["quarantine"][0];
    let at = format!("0/{}", first["from"]);
    assert!(ends(server, 0, &["log", "quarantine"]).contains("OPEN"));
    assert!(ends(server, 0, &["log", "quarantine", "show", &at]).contains("open: it alarms"));
    let saved = dir.join("damage.bin").display().to_string();
    ends(server, 0, &["log", "quarantine", "save", &at, &saved]);
    let bytes = fs::read(&saved).unwrap();
    assert_eq!(bytes.len() as u64, first["bytes"].as_u64().unwrap());
    assert!(bytes.starts_with(b"TGF1"), "the head is whole, the body is not");
    ends(server, 3, &["log", "quarantine", "save", &at, &saved]);
    ends(server, 3, &["log", "quarantine", "show", "0/0"]);
    ends(server, 3, &["log", "quarantine", "acknowledge", "0/0", "--reason", "no damage there"]);
    let rest = ["log", "quarantine", "acknowledge", &at, "--reason", "the disk was replaced"];
    assert!(ends(server, 0, &rest).contains("1 stretch is still open"));
    ends(server, 1, &["status"]);
    let rest =
        ["log", "quarantine", "acknowledge", "--all", "--by", "sam", "--reason", "sent again"];
    assert!(ends(server, 0, &rest).contains("none is open"));
    let said = ends(server, 0, &["status"]);
    assert!(
        said.contains("10 events lost in 2 damaged stretches of the log, acknowledged"),
        "{said}"
    );
    let listed = document(&ends(server, 0, &["log", "quarantine", "list", "--json"]));
    let who = |n: usize| listed["quarantine"][n]["acknowledged"]["by"].clone();
    assert_eq!((who(0), who(1)), (json!("jo"), json!("sam")));
    let open = document(&ends(server, 0, &["log", "quarantine", "list", "--open", "--json"]));
    assert_eq!(open["quarantine"], json!([]));
    wait_for("the audit trail", || server.log().contains("damage of the log was acknowledged"));
}

/// Scenario: the ledger has counted all; killed; a sealed segment damaged before any sink came to it.
/// Guarantees: the books balance, before and after the sink has passed the damage.
#[test]
fn damage_that_the_ledger_counted_and_no_sink_passed_leaves_the_books_balanced() {
    let dir = tempdir().unwrap();
    let partition = dir.path().join("data/log/partition-0");
    let server = start(dir.path(), "1h");
    send(&server, 0..40);
    let counted = format!("\"as_of\":{}", 40 * EVENTS);
    wait_for("the ledger to be written", || {
        fs::read_to_string(partition.join("ledger.json")).is_ok_and(|text| text.contains(&counted))
    });
    server.kill();
    flip_last_byte(&files(&partition, ".seg")[1]);
    for flush in ["1h", "50ms"] {
        let server = start(dir.path(), flush);
        if flush == "50ms" {
            server.settle();
        }
        let audit = server.admin_get("/api/v1/audit").json();
        assert_eq!(audit["log_quarantined"]["events"], EVENTS, "{audit:#}");
        assert_eq!(
            (&audit["balanced"], &audit["difference"]),
            (&json!(true), &json!(0)),
            "{audit:#}"
        );
        server.kill();
    }
    Tally::new("rot", "bit flip", &["P5"]).survived(1);
}

/// Scenario: damage that a sink has passed already, in a sealed segment, while the server runs.
/// Guarantees: nobody reads it, so nobody knows; `log verify` finds it, records it, and the books balance
/// with it told apart.
#[test]
fn damage_behind_every_reader_is_found_by_verify_and_the_books_balance() {
    let dir = tempdir().unwrap();
    let partition = dir.path().join("data/log/partition-0");
    let server = start(dir.path(), "50ms");
    send(&server, 0..40);
    server.settle();
    assert!(
        ends(&server, 0, &["log", "verify", "--bytes-per-second", "100MiB"])
            .contains("as it was written")
    );
    flip_last_byte(&files(&partition, ".seg")[1]);
    ends(&server, 0, &["status"]);
    let said = ends(&server, 1, &["log", "verify"]);
    assert!(said.contains("the log is DAMAGED: 5 events lost"), "{said}");
    ends(&server, 1, &["status"]);
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!(audit["balanced"], true, "{audit:#}");
    assert_eq!(audit["log_quarantined"]["events"], EVENTS, "{audit:#}");
    assert_eq!(row(&audit)["sinks"]["lake"]["stored"], 40 * EVENTS, "{audit:#}");
    let found = document(&ends(&server, 0, &["log", "quarantine", "--json"]));
    assert_eq!(found["quarantine"][0]["seen_by"], "verify", "{found:#}");
    let from = found["quarantine"][0]["to"].to_string();
    ends(&server, 0, &["log", "verify", "--from", &from]);
    ends(&server, 1, &["log", "verify", "--to", &from]);
    ends(&server, 3, &["log", "verify", "--partition", "9"]);
    Tally::new("rot", "bit flip", &["P1", "P2", "P5"]).survived(1);
}
