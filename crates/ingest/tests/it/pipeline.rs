//! The whole server as its users run it: over sockets, killed, restarted, reloaded.
//!
//! What the readers of the lake see is proved by tests/e2e with the readers themselves.

use std::io::Write;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::server::{Server, files, refused, request, wait_for};

const KEY: &str = "tgk_dev";
const NDJSON: &str = "application/x-ndjson";

fn lines(count: usize, event_type: &str) -> Vec<u8> {
    let line = |i| {
        format!("{{\"event_type\":\"{event_type}\",\"event_id\":\"{event_type}-{i}\",\"n\":{i}}}\n")
    };
    (0..count).map(line).collect::<String>().into_bytes()
}

fn audit(server: &Server) -> Value {
    server.admin_get("/api/v1/audit").json()
}

fn row<'a>(audit: &'a Value, event_type: &str) -> &'a Value {
    let rows = audit["tenants"].as_array().unwrap();
    rows.iter().find(|r| r["event_type"] == event_type).unwrap_or_else(|| panic!("{audit:#}"))
}

#[test]
fn events_reach_the_lake_and_the_books_balance() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let mut body = lines(10, "hello");
    body.extend_from_slice(b"[1]\n{\"event_type\":\"hello\",\"a\":1,\"a\":2}\n");
    let answer = server.post("/v1/events", KEY, NDJSON, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let counts = answer.json();
    assert_eq!(
        (&counts["accepted"], &counts["dead_lettered"]),
        (&json!(10), &json!(1)),
        "{counts}"
    );
    assert_eq!(counts["rejected"], 1, "{counts}");
    server.settle();
    assert_eq!(files(&dir.path().join("lake/events"), ".parquet").len(), 1);
    assert_eq!(files(&dir.path().join("lake/dead_letters"), ".parquet").len(), 1);
    let audit = audit(&server);
    assert_eq!((&audit["balanced"], &audit["difference"]), (&json!(true), &json!(0)), "{audit:#}");
    let row = row(&audit, "hello");
    assert_eq!((&row["received"], &row["accepted"]), (&json!(11), &json!(10)), "{row}");
    assert_eq!(row["sinks"]["lake"]["stored"], 10, "{row}");
}

#[test]
fn a_resend_after_a_lost_answer_leaves_one_copy() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let body = lines(5, "twice");
    assert_eq!(server.post("/v1/events", KEY, NDJSON, &body).json()["accepted"], 5);
    let again = server.post("/v1/events", KEY, NDJSON, &body).json();
    assert_eq!((&again["accepted"], &again["deduplicated"]), (&json!(0), &json!(5)), "{again}");
    server.kill();
    let server = Server::dev(dir.path());
    let again = server.post("/v1/events", KEY, NDJSON, &body).json();
    assert_eq!(again["deduplicated"], 5, "{again}");
    server.settle();
    let offsets = server.admin_get("/api/v1/offsets").json();
    assert_eq!(offsets["partitions"][0]["latest"], 5, "{offsets}");
    assert_eq!(audit(&server)["difference"], 0);
}

#[test]
fn what_was_answered_is_there_after_a_kill() {
    let dir = tempdir().unwrap();
    let mut sent = 0;
    for _ in 0..5 {
        let server = Server::dev(dir.path());
        for _ in 0..10 {
            let body = format!("{{\"event_type\":\"kill\",\"n\":{sent}}}");
            let answer = server.post("/v1/events", KEY, "application/json", body.as_bytes());
            assert_eq!(answer.status, 200, "{answer:?}");
            sent += 1;
        }
        server.kill();
    }
    let server = Server::dev(dir.path());
    server.settle();
    let audit = audit(&server);
    assert_eq!(audit["balanced"], true, "{audit:#}");
    let row = row(&audit, "kill");
    assert_eq!(
        (&row["accepted"], &row["sinks"]["lake"]["stored"]),
        (&json!(sent), &json!(sent)),
        "{row}"
    );
}

/// Scenario: while the server is down the disk damages the last frame, and the ledger that would tell is
/// gone; the sink has written it.
#[test]
fn offsets_that_a_sink_has_written_are_not_given_again() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    assert_eq!(server.post("/v1/events", KEY, NDJSON, &lines(5, "before")).status, 200);
    server.settle();
    server.kill();
    let partition = dir.path().join("log/partition-0");
    let segment = partition.join(format!("{:020}.seg", 0));
    let mut bytes = std::fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    drop(std::fs::remove_file(partition.join("ledger.json")));
    let server = Server::dev(dir.path());
    assert_eq!(server.post("/v1/events", KEY, NDJSON, &lines(5, "behind")).status, 200);
    server.settle();
    let offsets = server.admin_get("/api/v1/offsets").json();
    assert_eq!(offsets["partitions"][0]["latest"], 10, "{offsets}");
    let audit = audit(&server);
    assert_eq!(row(&audit, "behind")["sinks"]["lake"]["stored"], 5, "{audit:#}");
}

#[test]
fn a_second_start_on_the_same_folder_refuses() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let data = dir.path().display().to_string();
    let (status, said) = refused(&["--dev", "--data-dir", &data]);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains(&data), "names the folder: {said}");
    assert_eq!(server.admin_get("/readyz").status, 200);
}

#[test]
fn a_broken_configuration_refuses_with_its_line() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("tidegate.toml");
    std::fs::write(&path, "[log]\npartitions = 1\nsegment = 3\n").unwrap();
    let (status, said) = refused(&["--config", &path.display().to_string()]);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("line 3"), "{said}");
}

#[test]
fn sigterm_finishes_what_was_taken_and_exits_0() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    assert_eq!(server.post("/v1/events", KEY, NDJSON, &lines(100, "term")).status, 200);
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(
        files(&dir.path().join("lake/events"), ".parquet").len(),
        1,
        "flushed before it ended"
    );
    let server = Server::dev(dir.path());
    let audit = audit(&server);
    assert_eq!(row(&audit, "term")["sinks"]["lake"]["stored"], 100, "{audit:#}");
}

#[test]
fn dead_letters_heal_when_the_schema_is_mended() {
    let dir = tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    std::fs::create_dir_all(&schemas).unwrap();
    let schema = |version: u32, maximum: u32| {
        let n = json!({"type": "integer", "maximum": maximum});
        json!({"type": "object", "x-version": version, "properties": {"n": n}}).to_string()
    };
    std::fs::write(schemas.join("order.json"), schema(1, 10)).unwrap();
    let url = dir.path().join("lake").display().to_string();
    let config = format!(
        "[schemas]\ndir = {schemas:?}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {url:?}\nflush = {{ age = \"200ms\" }}\n"
    );
    let server = Server::configured(dir.path(), &config);
    let added = server.admin_post("/api/v1/tenants", &json!({"tenant": "acme"})).json();
    let key = added["key"].as_str().unwrap_or_else(|| panic!("{added}"));
    let body = b"{\"event_type\":\"order\",\"event_id\":\"o1\",\"n\":50}";
    let answer = server.post("/v1/events", key, "application/json", body).json();
    assert_eq!(answer["dead_lettered"], 1, "{answer}");
    let listed = server.admin_get("/api/v1/dead-letters").json();
    assert_eq!(listed["dead_letters"][0]["code"], "schema_violation", "{listed}");
    assert_eq!(listed["dead_letters"][0]["redriven"], false, "{listed}");
    let shown = server.admin_get("/api/v1/dead-letters/0/0").json();
    assert_eq!(shown["raw"], std::str::from_utf8(body).unwrap());

    std::fs::write(schemas.join("order.json"), schema(2, 100)).unwrap();
    let reloaded = server.admin_post("/api/v1/reload", &json!({}));
    assert_eq!((reloaded.status, &reloaded.json()["generation"]), (200, &json!(2)), "{reloaded:?}");
    let redrive =
        || server.admin_post("/api/v1/dead-letters/redrive", &json!({"event_type": "order"}));
    let first = redrive().json();
    assert_eq!((&first["matched"], &first["accepted"]), (&json!(1), &json!(1)), "{first}");
    let second = redrive().json();
    assert_eq!((&second["accepted"], &second["skipped"]), (&json!(0), &json!(1)), "{second}");
    server.settle();
    let audit = audit(&server);
    assert_eq!(audit["balanced"], true, "{audit:#}");
    assert_eq!(row(&audit, "order")["accepted"], 1);
}

#[test]
fn a_re_driven_event_keeps_the_name_that_its_source_gave_it() {
    let dir = tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    std::fs::create_dir_all(&schemas).unwrap();
    let schema = |version: u32, n: &str| {
        let schema = json!({"type": "object", "x-version": version, "required": [n]});
        std::fs::write(schemas.join("com.x_order_v1.json"), schema.to_string()).unwrap();
    };
    schema(1, "m");
    let lake = dir.path().join("lake");
    let config = format!(
        "[schemas]\ndir = {schemas:?}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\n\
         options.format = \"jsonl\"\nflush = {{ age = \"200ms\" }}\n"
    );
    let server = Server::configured(dir.path(), &config);
    let added = server.admin_post("/api/v1/tenants", &json!({"tenant": "acme"})).json();
    let event = json!({"specversion": "1.0", "id": "o1", "source": "/shop", "type": "com.x/order v1",
        "data": {"n": 1}});
    let kind = "application/cloudevents+json";
    let key = added["key"].as_str().unwrap();
    let answer = server.post("/v1/events", key, kind, event.to_string().as_bytes()).json();
    assert_eq!(answer["dead_lettered"], 1, "{answer}");
    schema(2, "n");
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 200);
    let redrive = json!({"event_type": "com.x_order_v1"});
    let redriven = server.admin_post("/api/v1/dead-letters/redrive", &redrive).json();
    assert_eq!(redriven["accepted"], 1, "{redriven}");
    server.settle();
    let written = files(&lake.join("events"), ".jsonl");
    let row = std::fs::read_to_string(&written[0]).unwrap();
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["custom"]["source_name"], "com.x/order v1", "{row:#}");
}

#[test]
fn a_broken_reload_changes_nothing() {
    let dir = tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    std::fs::create_dir_all(&schemas).unwrap();
    let good = json!({"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}}});
    std::fs::write(schemas.join("a.json"), good.to_string()).unwrap();
    let server = Server::configured(dir.path(), &format!("[schemas]\ndir = {schemas:?}\n"));
    std::fs::write(schemas.join("b.json"), "{\"type\": \"object\"").unwrap();
    let refused = server.admin_post("/api/v1/reload", &json!({}));
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.json()["errors"][0].as_str().unwrap().contains("b.json"), "{refused:?}");
    let listed = server.admin_get("/api/v1/schemas").json();
    assert_eq!(listed["schemas"].as_array().unwrap().len(), 1, "{listed}");
    // What is well by itself waits for what is not.
    std::fs::remove_file(schemas.join("b.json")).unwrap();
    let next = json!({"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}}});
    std::fs::write(schemas.join("a.json"), next.to_string()).unwrap();
    let tenant = dir.path().join("data/tenants/broken.toml");
    std::fs::write(&tenant, "key = 1").unwrap();
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 422);
    let listed = server.admin_get("/api/v1/schemas").json();
    assert_eq!(listed["schemas"][0]["version"], 1, "{listed}");
    std::fs::remove_file(tenant).unwrap();
    // The same content version with other content is refused too.
    let changed =
        json!({"type": "object", "x-version": 1, "properties": {"n": {"type": "string"}}});
    std::fs::write(schemas.join("a.json"), changed.to_string()).unwrap();
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 422);
}

#[test]
fn status_metrics_and_configuration_can_be_read() {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    assert_eq!(server.post("/v1/events", KEY, NDJSON, &lines(3, "seen")).status, 200);
    let status = server.admin_get("/api/v1/status").json();
    assert_eq!(status["ready"], true, "{status:#}");
    let names: Vec<_> = status["stages"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["edge", "writer"], "{status:#}");
    assert_eq!(status["sinks"][0]["name"], "lake", "{status:#}");
    wait_for("metrics", || {
        let text = server.admin_get("/metrics").body;
        text.contains("tidegate_books_difference_events 0")
            && text.contains("tidegate_books_events{outcome=\"accepted\",tenant=\"dev\"} 3")
    });
    assert_eq!(server.admin_get("/api/v1/config").json()["log"]["partitions"], 1);
    assert_eq!(server.admin_get("/api/v1/nothing").status, 404);
}

#[test]
fn acknowledged_ids_are_found_also_where_retention_has_passed() {
    let dir = tempdir().unwrap();
    let url = dir.path().join("lake").display().to_string();
    let config = format!(
        "[log]\nsegment_bytes = \"1MiB\"\nretention_bytes = \"1MiB\"\nbacklog_bytes = \"64MiB\"\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {url:?}\nflush = {{ age = \"100ms\" }}\n"
    );
    let server = Server::configured(dir.path(), &config);
    let added = server.admin_post("/api/v1/tenants", &json!({"tenant": "acme"})).json();
    let key = added["key"].as_str().unwrap().to_owned();
    let first = b"{\"event_type\":\"old\",\"event_id\":\"first\"}";
    assert_eq!(server.post("/v1/events", &key, "application/json", first).status, 200);
    let filler = format!("{{\"event_type\":\"new\",\"text\":\"{}\"}}", "x".repeat(500_000));
    wait_for("the first segment to go", || {
        let answer = server.post("/v1/events", &key, "application/json", filler.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        server.admin_get("/api/v1/offsets").json()["partitions"][0]["earliest"] != 0
    });
    let journal = "{\"event_id\":\"first\"}\n{\"tenant\":\"acme\",\"event_type\":\"old\",\"event_id\":\"first\"}\n{\"event_id\":\"never\"}\n";
    let headers = [("content-type", "application/x-ndjson")];
    let path = "/api/v1/audit/ids";
    let answer = request(server.admin, "POST", path, &headers, journal.as_bytes()).json();
    assert_eq!(answer["checked"], 3, "{answer}");
    assert_eq!(answer["missing"], json!(["never"]), "{answer}");
    server.settle();
    let audit = audit(&server);
    assert_eq!(
        (&audit["balanced"], &audit["log_counted_whole"]),
        (&json!(true), &json!(false)),
        "{audit:#}"
    );
    assert_eq!(row(&audit, "old")["sinks"]["lake"]["stored"], 1, "{audit:#}");
}

#[test]
fn what_the_admin_side_cannot_read_is_refused_with_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let no_method = server.admin_get("/api/v1/reload");
    assert_eq!((no_method.status, &no_method.json()["code"]), (405, &json!("method_not_allowed")));
    let no_field = server.admin_post("/api/v1/tenants", &json!({"name": "acme"}));
    assert_eq!(no_field.json()["code"], "bad_request", "{no_field:?}");
    let no_number = server.admin_get("/api/v1/dead-letters?limit=many");
    assert_eq!((no_number.status, &no_number.json()["code"]), (400, &json!("bad_request")));
}

#[test]
fn a_tenant_whose_lane_is_full_is_told_so_and_its_neighbour_is_not() {
    let dir = tempdir().unwrap();
    let lake = dir.path().join("lake");
    let blocked = lake.join("events/tenant=slow");
    std::fs::create_dir_all(blocked.parent().unwrap()).unwrap();
    std::fs::write(&blocked, "no folder").unwrap();
    let config = format!(
        "[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\nflush = {{ age = \"50ms\" }}\noptions = {{ lane_bytes = 1 }}\n"
    );
    let server = Server::configured(dir.path(), &config);
    let key = |tenant: &str| {
        let added = server.admin_post("/api/v1/tenants", &json!({"tenant": tenant})).json();
        added["key"].as_str().unwrap().to_owned()
    };
    let (slow, neighbour) = (key("slow"), key("neighbour"));
    let send =
        |key: &str| server.post("/v1/events", key, "application/json", b"{\"event_type\":\"a\"}");
    assert_eq!(send(&slow).status, 200);
    wait_for("the lane to be full", || send(&slow).status == 429);
    assert_eq!(send(&slow).json()["code"], "tenant_lane");
    assert_eq!(send(&neighbour).status, 200);
    std::fs::remove_file(&blocked).unwrap();
    wait_for("the lane to flow again", || send(&slow).status == 200);
    server.settle();
    assert_eq!(audit(&server)["balanced"], true);
}

#[test]
fn a_body_for_which_no_memory_is_left_is_refused() {
    let dir = tempdir().unwrap();
    let config = "[edge.limits]\nbody_bytes = \"1MiB\"\ndecoded_bytes = \"1MiB\"\nevent_bytes = \"1MiB\"\n[budget]\nbytes = \"2MiB\"\n";
    let server = Server::configured(dir.path(), config);
    let key = |tenant: &str| {
        let added = server.admin_post("/api/v1/tenants", &json!({"tenant": tenant})).json();
        added["key"].as_str().unwrap().to_owned()
    };
    let (first, second, third) = (key("first"), key("second"), key("third"));
    // All but the last byte of a body of 600 KB: what came is held, in steps of 4 KiB.
    let hold = |key: &str| {
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: 600001\r\n\r\n"
        );
        let mut stream = std::net::TcpStream::connect(server.public).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[b' '; 600_000]).unwrap();
        stream
    };
    let held = [hold(&first), hold(&second)];
    wait_for("two bodies to be held", || {
        let status = server.admin_get("/api/v1/status").json();
        1_200_000 <= status["stages"][0]["held_bytes"].as_u64().unwrap()
    });
    let large = [b' '; 600_000];
    let send = |key: &str, body: &[u8]| server.post("/v1/events", key, "application/json", body);
    // Nobody gets so much now; and who has a body under way gets no second while so little is left.
    let refused = send(&third, &large);
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("edge_full")));
    let refused = send(&first, &large[..100_000]);
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("tenant_lane")));
    // Others are not concerned.
    let body = b"{\"event_type\":\"a\"}";
    assert_eq!(send(&third, body).status, 200);
    drop(held);
    wait_for("room again", || send(&first, body).status == 200);
}
