//! What is not promoted, and what is said of it: each refusal that docs/replay.md lists, then the same once
//! what was asked for is done.

use serde_json::{Value, json};
use tidegate_ingest::replay::Plan;

use super::{
    Place,
    jobs::{apply, done},
    promote::{compare, promotion, revert},
    schema, send,
};
use crate::server::{Server, files, wait_for};

/// A plan as the server makes it.
fn planned(server: &Server, asked: &Value) -> Plan {
    let answer = server.admin_post("/api/v1/replay/plans", asked);
    let last = answer.body.lines().last().unwrap_or_default();
    let made: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    Plan::read(made["plan"].to_string().as_bytes()).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

fn replayed(server: &Server, asked: &Value) -> Plan {
    let plan = planned(server, asked);
    apply(server, &plan, None);
    done(server, &plan);
    plan
}

fn refused(server: &Server, plan: &Plan, more: &str) -> String {
    let answer = promotion(server, plan, more);
    answer["failed"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

fn mended(version: u32) -> Value {
    json!({"type": "object", "x-version": version, "properties": {"n": {"type": "integer"}}})
}

fn reload(server: &Server) {
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 200);
}

/// 60 orders, of which each third is dead.
fn orders(place: &Place, more: &str) -> Server {
    place.schema("order", &schema(1, "integer"));
    let server = place.start_with(more);
    let size = |n: usize| if n.is_multiple_of(3) { json!("kg") } else { json!(n) };
    send(&server, "order", 0, 60, size);
    server.settle();
    server
}

#[test]
fn a_window_that_a_held_lane_or_a_cursor_stands_in_is_not_promoted_until_it_is_written() {
    let place = Place::new();
    let server = place.start();
    send(&server, "view", 0, 20, |n| n.into());
    server.settle();
    // A plain file where this lane's folder belongs.
    let blocked = place.lake().join("events/tenant=dev/event_type=stuck");
    std::fs::write(&blocked, "in the way").unwrap();
    send(&server, "stuck", 0, 10, |n| n.into());
    send(&server, "view", 20, 20, |n| n.into());
    wait_for("the lane to be held", || {
        let status = server.admin_get("/api/v1/status").json();
        status["sinks"][0]["lag_events"] == 10
    });
    let asked = json!({"from": "0:5", "to": "0:45", "judging": "as_recorded"});
    let plan = replayed(&server, &asked);
    assert_eq!(compare(&server, &plan)["extra"], 10);
    let why = refused(&server, &plan, "");
    assert!(why.contains("stuck") && why.contains("lake"), "{why}");
    // A window that has nothing of that lane may be: only the others' offsets are exchanged.
    let asked =
        json!({"from": "0:5", "to": "0:45", "judging": "as_recorded", "event_types": ["view"]});
    let views = replayed(&server, &asked);
    assert_eq!(compare(&server, &views)["extra"], 0);
    assert_eq!(promotion(&server, &views, "")["state"], "promoted");
    assert_eq!(revert(&server, &views)["state"], "reverted");
    std::fs::remove_file(&blocked).unwrap();
    server.settle();
    assert_eq!(compare(&server, &plan)["extra"], 0);
    assert_eq!(promotion(&server, &plan, "")["state"], "promoted");
    assert_eq!(place.live("events").len(), 50);

    // The lake as a whole takes nothing: the cursor stays.
    let (events, away) = (place.lake().join("events"), place.lake().join("away"));
    std::fs::rename(&events, &away).unwrap();
    std::fs::write(&events, "in the way").unwrap();
    send(&server, "view", 40, 10, |n| n.into());
    let asked = json!({"from": "0:48", "to": "0:60", "judging": "as_recorded"});
    let late = replayed(&server, &asked);
    let why = refused(&server, &late, "");
    assert!(why.contains("lake") && why.contains("50"), "{why}");
    std::fs::remove_file(&events).unwrap();
    std::fs::rename(&away, &events).unwrap();
    server.settle();
    assert_eq!(compare(&server, &late)["identical"], true);
    assert_eq!(promotion(&server, &late, "")["state"], "promoted");
    assert_eq!(place.live("events").len(), 60);
}

#[test]
fn a_candidate_is_promoted_once_its_schema_is_live() {
    let place = Place::new();
    let server = orders(&place, "");
    let candidate = json!([{"event_type": "order", "text": mended(2).to_string()}]);
    let asked = json!({"from": "0:10", "to": "0:40", "judging": "candidate", "schemas": candidate});
    let plan = replayed(&server, &asked);
    assert_eq!(compare(&server, &plan)["healed"], 10);
    let why = refused(&server, &plan, "");
    assert!(why.contains("candidate's schema of dev/order (version 2) is not live"), "{why}");
    assert!(refused(&server, &plan, "&dry_run=true").contains("is not live"));
    place.schema("order", &mended(2));
    reload(&server);
    assert_eq!(promotion(&server, &plan, "")["state"], "promoted");
    assert_eq!(place.live("dead_letters").len(), 10);
}

#[test]
fn what_was_re_driven_since_the_plan_is_not_healed_a_second_time() {
    let place = Place::new();
    let server = orders(&place, "");
    place.schema("order", &mended(2));
    reload(&server);
    let plan = replayed(&server, &json!({"from": "0:10", "to": "0:40"}));
    assert_eq!(compare(&server, &plan)["healed"], 10);
    let unused = planned(&server, &json!({"from": "0:0", "to": "0:40"}));
    let live = place.live("events");
    let redrive =
        json!({"event_type": "order", "offsets": [{"partition": 0, "offset": 12}], "by": "ana"});
    let redriven = server.admin_post("/api/v1/dead-letters/redrive", &redrive);
    assert_eq!(redriven.status, 200, "{redriven:?}");
    assert!(1 <= redriven.json()["accepted"].as_u64().unwrap(), "{redriven:?}");
    server.settle();
    assert!(live.len() < place.live("events").len());
    let why = refused(&server, &plan, "");
    assert!(why.contains("re-driven") && why.contains("make the plan again"), "{why}");
    let asked = json!({"plan": unused, "max_rate": null, "by": "ana@host"});
    let answer = server.admin_post("/api/v1/replay/jobs", &asked);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.body.contains("re-driven"), "{answer:?}");
    // Anew: what was re-driven stays a dead letter at its old place, and each event is there once.
    let again = replayed(&server, &json!({"from": "0:10", "to": "0:40"}));
    compare(&server, &again);
    assert_eq!(promotion(&server, &again, "")["state"], "promoted");
    let mut ids: Vec<_> =
        place.live("events").into_values().map(|row| row["event_id"].clone()).collect();
    let all = ids.len();
    ids.sort_by_key(ToString::to_string);
    ids.dedup();
    assert_eq!(ids.len(), all, "an event was healed twice");
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!((&audit["difference"], &audit["balanced"]), (&json!(0), &json!(true)), "{audit:#}");
}

#[test]
fn a_shadow_that_lacks_rows_and_a_sink_that_cannot_are_refused() {
    let place = Place::new();
    let server = orders(&place, "[[sink]]\nname = \"hole\"\nkind = \"blackhole\"\n");
    place.schema("order", &mended(2));
    reload(&server);
    let plan = replayed(&server, &json!({"from": "0:10", "to": "0:40"}));
    assert_eq!(compare(&server, &plan)["not_compared"], json!(["hole"]));
    let why = refused(&server, &plan, "");
    assert!(why.contains("hole"), "{why}");
    // Half of the shadow is lost: looking again shows it, and it is refused all the same.
    let shadow = place.lake().join("shadow").join(plan.plan_id.as_str());
    let lost = files(&shadow.join("events"), ".jsonl").remove(0);
    let bytes = std::fs::read(&lost).unwrap();
    std::fs::remove_file(&lost).unwrap();
    let why = refused(&server, &plan, "&sink=lake");
    assert!(why.contains("the shadow is not what was compared"), "{why}");
    let compared = compare(&server, &plan);
    assert!(0 < compared["missing"].as_u64().unwrap(), "{compared:#}");
    let before = place.fingerprint();
    let why = refused(&server, &plan, "&sink=lake");
    assert!(why.contains("promoting would remove them"), "{why}");
    assert_eq!(place.fingerprint(), before);
    std::fs::write(&lost, bytes).unwrap();
    compare(&server, &plan);
    assert_eq!(promotion(&server, &plan, "&sink=lake")["state"], "promoted");
    assert_eq!(place.live("dead_letters").len(), 10);
}
