//! Jobs in a real server: what the shadow holds, and that live is as it was.

use serde_json::{Value, json};
use tidegate_ingest::replay::{Judging, Plan, Selection};

use super::{Place, lane, plan, schema, send, today};
use crate::server::{Server, wait_for};

pub(super) fn apply(server: &Server, plan: &Plan, max_rate: Option<u64>) -> Value {
    let asked = json!({"plan": plan, "max_rate": max_rate, "by": "ana@host"});
    let answer = server.admin_post("/api/v1/replay/jobs", &asked);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub(super) fn job(server: &Server, plan: &Plan) -> Value {
    server.admin_get(&format!("/api/v1/replay/jobs/{}", plan.plan_id)).json()
}

pub(super) fn change(server: &Server, plan: &Plan, what: &str) -> (u16, Value) {
    let path = format!("/api/v1/replay/jobs/{}/{what}", plan.plan_id);
    let answer = server.admin_post(&path, &json!({"by": "ana@host"}));
    (answer.status, answer.json())
}

pub(super) fn done(server: &Server, plan: &Plan) -> Value {
    wait_for("the replay to end", || {
        let job = job(server, plan);
        assert!(job["state"] != "failed", "{job:#}");
        job["state"] == "done"
    });
    job(server, plan)
}

#[test]
fn the_shadow_holds_exactly_the_window_as_it_was_recorded() {
    let place = Place::new();
    let server = place.start();
    send(&server, "order", 0, 300, |n| n.into());
    send(&server, "view", 300, 200, |n| n.into());
    server.settle();
    let before = place.fingerprint();
    // Both ends lie inside a request.
    let lanes = [(lane("order", false), 200), (lane("view", false), 60)];
    let plan = plan(&place, &server, (100, 360), &lanes, Selection::default(), Judging::AsRecorded);
    assert_eq!(apply(&server, &plan, None)["events"], 260);
    let job = done(&server, &plan);
    assert_eq!((&job["done_events"], &job["by"]), (&json!(260), &json!("ana@host")), "{job:#}");
    let (live, shadow) = (place.live("events"), place.shadow(&plan.plan_id, "events"));
    assert!(shadow.keys().copied().eq(100..360), "{:?}", shadow.keys());
    for (offset, row) in &shadow {
        assert_eq!(row, &live[offset]);
    }
    assert_eq!(before, place.fingerprint());
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!(audit["difference"], 0, "{audit:#}");
    // The same twice.
    let again = json!({"plan": plan, "max_rate": null, "by": "ana@host"});
    let again = server.admin_post("/api/v1/replay/jobs", &again);
    assert_eq!(again.status, 409, "{again:?}");
    assert!(again.body.contains("replay rm"), "{again:?}");
}

#[test]
fn events_are_judged_by_the_schema_of_today_and_dead_letters_heal() {
    let place = Place::new();
    place.schema("order", &schema(1, "integer"));
    let server = place.start();
    // Every third is a text: no integer.
    let size = |n: usize| if n.is_multiple_of(3) { json!(format!("{n} kg")) } else { json!(n) };
    send(&server, "order", 0, 90, size);
    send(&server, "view", 90, 10, |n| n.into());
    server.settle();
    assert_eq!(place.live("dead_letters").len(), 30);
    // A type of a column never changes: the mended schema is of another field.
    let mended =
        json!({"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}}});
    place.schema("order", &mended);
    assert_eq!(server.admin_post("/api/v1/reload", &json!({})).status, 200);
    let before = place.fingerprint();
    let lanes = [(lane("order", false), 60), (lane("order", true), 30), (lane("view", false), 10)];
    let judging = today(&server, "order");
    let whole = plan(&place, &server, (0, 100), &lanes, Selection::default(), judging.clone());
    apply(&server, &whole, None);
    done(&server, &whole);
    assert!(place.shadow(&whole.plan_id, "dead_letters").is_empty());
    let shadow = place.shadow(&whole.plan_id, "events");
    assert!(shadow.keys().copied().eq(0..100));
    for (offset, row) in shadow.iter().take(90) {
        assert_eq!(row["schema_version"], 2, "{row}");
        assert_eq!(row["event_id"], format!("order-{offset}"), "{row}");
        assert_eq!(row["custom"]["size"], size(usize::try_from(*offset).unwrap()), "{row}");
    }
    // The dead letters alone.
    let selection = Selection { dead_letters_only: true, ..Selection::default() };
    let dead = plan(&place, &server, (0, 100), &[lanes[1].clone()], selection, judging);
    apply(&server, &dead, None);
    done(&server, &dead);
    let healed = place.shadow(&dead.plan_id, "events");
    assert!(healed.keys().copied().eq((0..90).step_by(3)), "{:?}", healed.keys());
    for (offset, row) in &healed {
        assert_eq!(row, &shadow[offset]);
    }
    assert_eq!(before, place.fingerprint());
}

#[test]
fn a_job_that_is_killed_paused_and_resumed_leaves_each_event_once() {
    let place = Place::new();
    let mut server = place.start();
    for part in 0..20 {
        send(&server, "order", part * 100, 100, |n| n.into());
    }
    server.settle();
    let before = place.fingerprint();
    let lanes = [(lane("order", false), 1_900)];
    let plan =
        plan(&place, &server, (50, 1_950), &lanes, Selection::default(), Judging::AsRecorded);
    apply(&server, &plan, Some(400));
    for turn in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(150 + 70 * turn));
        server.kill();
        server = place.start();
    }
    let (status, paused) = change(&server, &plan, "pause");
    assert_eq!((status, &paused["state"]), (200, &json!("paused")), "{paused:#}");
    let at = job(&server, &plan)["done_events"].clone();
    // Another start changes nothing about it.
    server.kill();
    let server = place.start();
    let standing = job(&server, &plan);
    assert_eq!((&standing["state"], &standing["done_events"]), (&json!("paused"), &at));
    assert_eq!(change(&server, &plan, "pause").0, 409);
    assert_eq!(change(&server, &plan, "resume").0, 200);
    done(&server, &plan);
    let shadow = place.shadow(&plan.plan_id, "events");
    assert!(shadow.keys().copied().eq(50..1_950));
    assert_eq!(before, place.fingerprint());
}

#[test]
fn a_job_is_cancelled_and_its_shadow_removed() {
    let place = Place::new();
    let server = place.start();
    send(&server, "order", 0, 500, |n| n.into());
    server.settle();
    let before = place.fingerprint();
    let lanes = [(lane("order", false), 500)];
    let plan = plan(&place, &server, (0, 500), &lanes, Selection::default(), Judging::AsRecorded);
    apply(&server, &plan, Some(50));
    assert_eq!(change(&server, &plan, "remove").0, 409);
    assert_eq!(change(&server, &plan, "cancel").1["state"], "cancelled");
    assert_eq!(change(&server, &plan, "resume").0, 409);
    assert_eq!(change(&server, &plan, "remove").0, 200);
    assert_eq!(change(&server, &plan, "remove").0, 404);
    assert!(place.shadow(&plan.plan_id, "").is_empty());
    // And again, from the beginning.
    apply(&server, &plan, None);
    done(&server, &plan);
    assert_eq!(place.shadow(&plan.plan_id, "events").len(), 500);
    assert_eq!(change(&server, &plan, "remove").0, 200);
    assert_eq!(before, place.fingerprint());
    let listed = server.admin_get("/api/v1/replay/jobs").json();
    assert_eq!(listed["jobs"], json!([]));
}
