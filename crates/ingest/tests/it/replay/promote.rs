//! Promoting and reverting in a real server: rows, files, books, the control log, and what is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidegate_ingest::replay::{Plan, Selection};

use super::{
    Place,
    jobs::{apply, done},
    lane, plan, schema, send, today,
};
use crate::server::{Server, wait_for};

pub(super) fn promotion(server: &Server, plan: &Plan, more: &str) -> Value {
    let path = format!("/api/v1/replay/jobs/{}/promotion?by=ana{more}", plan.plan_id);
    last_line(server, &path)
}

pub(super) fn revert(server: &Server, plan: &Plan) -> Value {
    last_line(server, &format!("/api/v1/replay/jobs/{}/revert?by=bob", plan.plan_id))
}

fn last_line(server: &Server, path: &str) -> Value {
    let answer = server.admin_post(path, &json!({}));
    let line = answer.body.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

pub(super) fn compare(server: &Server, plan: &Plan) -> Value {
    let path = format!("/api/v1/replay/jobs/{}/compare", plan.plan_id);
    let answer = server.admin_post(&path, &json!({"by": "ana"}));
    let line = answer.body.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn audit(server: &Server) -> Value {
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!((&audit["difference"], &audit["balanced"]), (&json!(0), &json!(true)), "{audit:#}");
    audit
}

fn line(audit: &Value) -> &Value {
    let lines = audit["tenants"].as_array().unwrap();
    &lines.iter().find(|line| line["event_type"] == "order").unwrap()["sinks"]["lake"]
}

/// 90 orders of which every third is dead by its first schema and not by the second; the replay of some.
fn healed(place: &Place, server: &Server, window: (u64, u64), lanes: (u64, u64)) -> Plan {
    let mended =
        json!({"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}}});
    place.schema("order", &mended);
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 200);
    let judging = today(server, "order");
    let lanes = [(lane("order", false), lanes.0), (lane("order", true), lanes.1)];
    let plan = plan(place, server, window, &lanes, Selection::default(), judging);
    apply(server, &plan, None);
    done(server, &plan);
    plan
}

fn with_dead_letters(place: &Place) -> Server {
    place.schema("order", &schema(1, "integer"));
    let server = place.start();
    let size = |n: usize| if n.is_multiple_of(3) { json!(format!("{n} kg")) } else { json!(n) };
    send(&server, "order", 0, 90, size);
    server.settle();
    server
}

#[test]
fn a_promoted_window_has_the_shadows_rows_the_books_say_so_and_a_revert_takes_all_back() {
    let place = Place::new();
    let server = with_dead_letters(&place);
    let plan = healed(&place, &server, (10, 40), (20, 10));
    let before = place.fingerprint();
    let (live, dead) = (place.live("events"), place.live("dead_letters"));
    let shadow = place.shadow(&plan.plan_id, "events");
    assert_eq!((live.len(), dead.len(), shadow.len()), (60, 30, 30));

    // Nothing of it was compared: nothing is promoted.
    let refused = promotion(&server, &plan, "");
    assert!(refused["failed"].as_str().unwrap().contains("replay compare"), "{refused}");
    let compared = compare(&server, &plan);
    assert_eq!(compared["healed"], 10, "{compared:#}");
    let outline = promotion(&server, &plan, "&dry_run=true");
    assert_eq!(
        (&outline["state"], &outline["sinks"][0]["rows_go"]),
        (&json!("planned"), &json!(30))
    );
    assert_eq!(outline["sinks"][0]["lanes"][0]["come"], 30, "{outline:#}");
    assert_eq!(place.fingerprint(), before);
    let stale = promotion(&server, &plan, "&seen=another");
    assert!(stale["failed"].as_str().unwrap().contains("look again"), "{stale}");

    let seen = format!("&seen={}", outline["seen"].as_str().unwrap());
    assert_eq!(promotion(&server, &plan, &seen)["state"], "promoted");
    let (new, rest) = (place.live("events"), place.live("dead_letters"));
    assert_eq!((new.len(), rest.len()), (70, 20));
    for (offset, row) in &new {
        let is_within = (10..40).contains(offset);
        let expected = if is_within { &shadow[offset] } else { &live[offset] };
        assert_eq!(row, expected, "offset {offset}");
    }
    assert!(rest.keys().all(|offset| !(10..40).contains(offset)));
    let balanced = audit(&server);
    let sink = line(&balanced);
    assert_eq!((&sink["stored"], &sink["promoted"]), (&json!(70), &json!(10)), "{sink:#}");
    assert_eq!(balanced["promotions"]["lake"][0]["who"], "ana", "{balanced:#}");
    let again = promotion(&server, &plan, "");
    assert!(again["failed"].as_str().unwrap().contains("promoted already"), "{again}");
    let path = format!("/api/v1/replay/jobs/{}/remove", plan.plan_id);
    assert_eq!(server.admin_post(&path, &json!({"by": "ana"})).status, 409);

    // Events come as ever, also over a restart.
    send(&server, "order", 90, 10, |n| n.into());
    server.settle();
    assert_eq!(place.live("events").len(), 80);
    audit(&server);
    let after = place.fingerprint();
    drop(server);
    let server = place.start();
    server.settle();
    audit(&server);

    assert_eq!(revert(&server, &plan)["state"], "reverted");
    let now = place.fingerprint();
    for (path, bytes) in before.iter().filter(|(path, _)| path.starts_with(place.lake())) {
        assert_eq!(now.get(path), Some(bytes), "{}", path.display());
    }
    let new: Vec<_> = now
        .keys()
        .filter(|path| path.starts_with(place.lake()) && !before.contains_key(*path))
        .collect();
    // What came meanwhile, and nothing of the promotion.
    assert!(new.iter().all(|path| after.contains_key(*path)), "{new:?}");
    assert!(new.iter().all(|path| !path.display().to_string().contains(plan.plan_id.as_str())));
    assert_eq!(line(&audit(&server))["promoted"], 0);
    assert_eq!(server.admin_post(&path, &json!({"by": "ana"})).status, 200, "it may go now");
    let log = std::fs::read_to_string(place.dir.path().join("data/control.jsonl")).unwrap();
    for (what, who) in [("replay.promote", "ana"), ("replay.revert", "bob")] {
        assert!(log.lines().any(|line| line.contains(what) && line.contains(who)), "{what}: {log}");
    }
}

/// A cursor that was set back below a promoted window: what is there by the promotion stays, once.
#[test]
fn a_cursor_that_was_set_back_leaves_a_promoted_window_as_it_is() {
    let place = Place::new();
    let server = with_dead_letters(&place);
    let plan = healed(&place, &server, (10, 40), (20, 10));
    compare(&server, &plan);
    assert_eq!(promotion(&server, &plan, "")["state"], "promoted");
    let rows = |place: &Place| -> BTreeMap<u64, Value> {
        let mut rows = place.live("events");
        rows.extend(place.live("dead_letters"));
        rows
    };
    let before = rows(&place);
    let (live, dead) = (place.live("events").len(), place.live("dead_letters").len());
    drop(server);
    std::fs::remove_file(place.dir.path().join("data/sinks/lake-0.json")).unwrap();
    let server = place.start();
    server.settle();
    wait_for("all is passed again", || {
        server.admin_get("/api/v1/status").json()["sinks"][0]["lag_events"] == 0
    });
    assert_eq!((place.live("events").len(), place.live("dead_letters").len()), (live, dead));
    assert_eq!(rows(&place), before);
    let status = server.admin_get("/api/v1/status").json();
    assert_eq!(status["sinks"][0]["held"], json!([]), "{status:#}");
    audit(&server);
}

#[test]
fn a_promotion_is_refused_where_live_has_moved_and_reverts_go_backwards() {
    let place = Place::new();
    let server = with_dead_letters(&place);
    let first = healed(&place, &server, (10, 40), (20, 10));
    let second = healed(&place, &server, (30, 60), (20, 10));
    compare(&server, &first);
    compare(&server, &second);
    assert_eq!(promotion(&server, &first, "")["state"], "promoted");
    // Live is not what the second was compared with any more.
    let refused = promotion(&server, &second, "");
    assert!(refused["failed"].as_str().unwrap().contains("not what was compared"), "{refused}");
    compare(&server, &second);
    assert_eq!(promotion(&server, &second, "")["state"], "promoted");
    assert_eq!(place.live("dead_letters").len(), 14);
    audit(&server);
    let refused = revert(&server, &first);
    let why = refused["failed"].as_str().unwrap();
    assert!(why.contains(&format!("replay revert {}", second.plan_id)), "{why}");
    assert_eq!(revert(&server, &second)["state"], "reverted");
    audit(&server);
    assert_eq!(revert(&server, &first)["state"], "reverted");
    assert_eq!(place.live("dead_letters").len(), 30);
    assert_eq!(line(&audit(&server))["stored"], 60);
}
