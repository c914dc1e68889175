//! What may come between a job and its end: another at the same time, the same again, its removal, retention.

use serde_json::{Value, json};
use tidegate_ingest::replay::{Judging, Plan, Selection};

use super::{
    Place,
    jobs::{apply, change, done, job},
    lane, plan, send,
};
use crate::{
    server::{Server, files, wait_for},
    tally::Tally,
};

fn recorded(place: &Place, server: &Server, window: (u64, u64)) -> Plan {
    let lanes = [(lane("order", false), window.1 - window.0)];
    plan(place, server, window, &lanes, Selection::default(), Judging::AsRecorded)
}

/// So many events in requests of ten: a job at a bounded rate takes one after the other.
fn send_slices(server: &Server, events: usize) {
    for first in (0..events).step_by(10) {
        send(server, "order", first, 10, |n| n.into());
    }
}

fn check_shadow(place: &Place, plan: &Plan, (from, to): (u64, u64)) {
    let (live, shadow) = (place.live("events"), place.shadow(&plan.plan_id, "events"));
    assert!(shadow.keys().copied().eq(from..to), "{}..{to}: {:?}", from, shadow.keys());
    assert!(shadow.iter().all(|(offset, row)| *row == live[offset]));
}

fn earliest(server: &Server) -> u64 {
    let offsets = server.admin_get("/api/v1/offsets").json();
    offsets["partitions"][0]["earliest"].as_u64().unwrap()
}

#[test]
fn jobs_at_the_same_time_over_overlapping_windows_each_leave_their_own() {
    let place = Place::new();
    let mut server = place.start();
    for part in 0..4 {
        send(&server, "order", part * 250, 250, |n| n.into());
    }
    server.settle();
    let before = place.fingerprint();
    let windows = [(10, 700), (300, 990), (10, 990)];
    let plans: Vec<Plan> = windows.iter().map(|w| recorded(&place, &server, *w)).collect();
    std::thread::scope(|scope| {
        for plan in &plans {
            scope.spawn(|| apply(&server, plan, Some(3_000)));
        }
    });
    for _ in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        server.kill();
        server = place.start();
    }
    for (plan, window) in plans.iter().zip(windows) {
        done(&server, plan);
        check_shadow(&place, plan, window);
    }
    assert_eq!(before, place.fingerprint());
    // One that goes takes nothing of the others with it.
    assert_eq!(change(&server, &plans[0], "remove").0, 200);
    check_shadow(&place, &plans[1], windows[1]);
    check_shadow(&place, &plans[2], windows[2]);
    Tally::new("replay::faults", "kill -9", &["P6"]).survived(2);
}

#[test]
fn the_same_plan_from_many_at_once_is_one_job() {
    let place = Place::new();
    let server = place.start();
    send(&server, "order", 0, 400, |n| n.into());
    server.settle();
    let plan = recorded(&place, &server, (5, 395));
    let asked = json!({"plan": plan, "max_rate": 2_000, "by": "ana@host"});
    let ask = || server.admin_post("/api/v1/replay/jobs", &asked);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409], "{answers:?}");
    // While it is at work as well as afterwards.
    assert_eq!((ask().status, change(&server, &plan, "resume").0), (409, 409));
    done(&server, &plan);
    assert_eq!((ask().status, change(&server, &plan, "resume").0), (409, 409));
    check_shadow(&place, &plan, (5, 395));
    let listed = server.admin_get("/api/v1/replay/jobs").json();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 1, "{listed:#}");
    // How far it came is known by now: the cursors of what has ended are not read for each look.
    let cursors =
        place.dir.path().join("data/replay").join(plan.plan_id.as_str()).join("part-0/sinks");
    std::fs::rename(&cursors, cursors.with_extension("away")).unwrap();
    assert_eq!(job(&server, &plan)["done_events"], 390);
    std::fs::rename(cursors.with_extension("away"), &cursors).unwrap();
    // Of those who remove it together one does; then it may come again, whole.
    let removed: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..4).map(|_| scope.spawn(|| change(&server, &plan, "remove").0)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(removed.iter().filter(|status| **status == 200).count(), 1, "{removed:?}");
    assert!(removed.iter().all(|status| [200, 404, 409].contains(status)), "{removed:?}");
    assert!(!place.lake().join("shadow").join(plan.plan_id.as_str()).exists(), "a folder stays");
    assert_eq!(ask().status, 200);
    done(&server, &plan);
    check_shadow(&place, &plan, (5, 395));
}

/// Half of a shadow is gone, since the destination of the other half could not be asked: what is left is no
/// replay any more.
#[test]
fn a_job_whose_removal_was_cut_is_neither_resumed_nor_compared() {
    let place = Place::new();
    let other = place.dir.path().join("other");
    let second = format!(
        "[[sink]]\nname = \"other\"\nkind = \"lake\"\nurl = {other:?}\noptions.format = \"jsonl\"\n"
    );
    let server = place.start_with(&second);
    send_slices(&server, 300);
    server.settle();
    let asked = json!({"from": "0:20", "to": "0:280", "judging": "as_recorded"});
    let made = server.admin_post("/api/v1/replay/plans", &asked);
    let last: Value = serde_json::from_str(made.body.lines().last().unwrap()).unwrap();
    let plan = Plan::read(last["plan"].to_string().as_bytes()).unwrap();
    assert_eq!(plan.content.targets.len(), 2);
    drop(server);
    for paused in [false, true] {
        let server = place.start_with(&second);
        // Slow enough to be still at work when it is paused, however long a look takes.
        apply(&server, &plan, paused.then_some(10));
        if paused {
            wait_for("some of it to be written", || {
                0 < job(&server, &plan)["done_events"].as_u64().unwrap()
            });
            assert_eq!(change(&server, &plan, "pause").0, 200);
        } else {
            done(&server, &plan);
        }
        drop(server);
        let server = place.start();
        let (status, refused) = change(&server, &plan, "remove");
        assert_eq!(status, 503, "{refused:#}");
        drop(server);
        let server = place.start_with(&second);
        let left = job(&server, &plan);
        assert_eq!(left["state"], "cancelled", "{left:#}");
        assert!(left["error"].as_str().unwrap().contains("removal"), "{left:#}");
        for what in ["resume", "compare", "promotion?by=ana"] {
            let (status, answer) = change(&server, &plan, what);
            assert_eq!(status, 409, "{what}: {answer:#}");
        }
        assert_eq!(change(&server, &plan, "remove").0, 200);
        apply(&server, &plan, None);
        done(&server, &plan);
        check_shadow(&place, &plan, (20, 280));
        assert_eq!(place.rows(&other.join("shadow").join(plan.plan_id.as_str())).len(), 260);
        assert_eq!(change(&server, &plan, "remove").0, 200);
    }
}

/// A megabyte, which no codec makes small.
fn send_megabyte(server: &Server, round: u64) {
    let mut x = round + 1;
    let mut digits = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", x ^ (x >> 29))
    };
    let line = |digits: &mut dyn FnMut() -> String| {
        let text: String = (0..1_000).map(|_| digits()).collect();
        json!({"event_type": "big", "text": text}).to_string() + "\n"
    };
    let body: String = (0..64).map(|_| line(&mut digits)).collect();
    let answer = server.post("/v1/events", super::KEY, super::NDJSON, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn retention_waits_for_a_job_and_takes_its_window_after_it() {
    let place = Place::new();
    let small =
        "[log]\nsegment_bytes = \"1MiB\"\nretention_bytes = \"1MiB\"\nbacklog_bytes = \"256MiB\"\n";
    let mut server = place.start_with(small);
    send_slices(&server, 100);
    server.settle();
    let whole = recorded(&place, &server, (10, 90));
    let late = recorded(&place, &server, (20, 80));
    apply(&server, &whole, Some(20));
    let push = |server: &Server, rounds: std::ops::Range<u64>| {
        rounds.for_each(|round| send_megabyte(server, round));
        server.settle();
    };
    push(&server, 0..4);
    assert_eq!(earliest(&server), 0, "its window is held");
    // A job that stands still is still to read it, also over a start.
    assert_eq!(change(&server, &whole, "pause").0, 200);
    server.kill();
    server = place.start_with(small);
    push(&server, 4..7);
    assert_eq!(earliest(&server), 0, "its window is held");
    assert_eq!(change(&server, &whole, "resume").0, 200);
    done(&server, &whole);
    check_shadow(&place, &whole, (10, 90));
    push(&server, 7..9);
    wait_for("retention to go on", || 100 <= earliest(&server));
    // Too late for another: it is refused, with what is gone.
    let asked = json!({"plan": late, "max_rate": null, "by": "ana@host"});
    let refused = server.admin_post("/api/v1/replay/jobs", &asked);
    assert_eq!(refused.status, 409, "{refused:?}");
    let said = refused.json();
    assert_eq!(said["code"], "world_changed", "{said:#}");
    let gone = "retention has removed 20 to 80, a part of the window; make a plan that begins at --from 0:";
    let told = said["errors"][0].as_str().unwrap();
    let (_, from) = told.split_once(gone).unwrap_or_else(|| panic!("{said:#}"));
    // Where the log begins: at this moment, for retention goes on.
    assert!((100..=earliest(&server)).contains(&from.parse().unwrap()), "{said:#}");
    assert_eq!(job(&server, &late)["status"], 404);
    assert!(place.shadow(&late.plan_id, "").is_empty());
}

/// The log lost the window behind a job's back: it says so, and its shadow never counts as whole.
#[test]
fn a_job_whose_window_is_gone_fails_and_says_which_part() {
    let place = Place::new();
    let small = "[log]\nsegment_bytes = \"1MiB\"\n";
    let server = place.start_with(small);
    send_slices(&server, 100);
    send_megabyte(&server, 0);
    send_megabyte(&server, 1);
    server.settle();
    let plan = recorded(&place, &server, (10, 90));
    apply(&server, &plan, Some(20));
    assert_eq!(change(&server, &plan, "pause").0, 200);
    server.kill();
    // An operator who needs the space takes the first segment.
    let segments = files(&place.dir.path().join("data/log"), ".seg");
    assert!(2 <= segments.len(), "{segments:?}");
    std::fs::remove_file(&segments[0]).unwrap();
    let server = place.start_with(small);
    assert_eq!(change(&server, &plan, "resume").0, 200);
    wait_for("the job to fail", || job(&server, &plan)["state"] == "failed");
    let failed = job(&server, &plan);
    let why = failed["error"].as_str().unwrap();
    assert!(why.contains("partition 0: offsets 10 to") && why.contains("plan again"), "{why}");
    assert!(place.shadow(&plan.plan_id, "").len() < 80);
    for what in ["compare", "promotion?by=ana"] {
        assert_eq!(change(&server, &plan, what).0, 409, "{what}");
    }
}
