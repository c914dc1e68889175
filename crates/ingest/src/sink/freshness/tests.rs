//! What is measured, promised and told, with the clock moved by hand.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use tidegate_event::{BatchEncoder, EventType, SchemaRef, TenantId, record::Record};

use super::{
    super::{rows::Lanes, source::SourceFrame},
    *,
};

const SECOND: i64 = 1_000_000;

fn at(seconds: i64) -> ReceivedAt {
    ReceivedAt(seconds * SECOND)
}

fn lane(tenant: &str) -> Lane {
    Lane {
        tenant: TenantId::new(tenant).unwrap(),
        event_type: EventType::new("view").unwrap(),
        dead: false,
    }
}

/// Batches of one lane as (received at, events), written at `now`.
fn write(freshness: &Freshness, tenant: &str, batches: &[(i64, u32)], now: i64) {
    let mut base = Offset(0);
    let frames: Vec<_> = batches
        .iter()
        .map(|(received, events)| {
            let (tenant, received_at) = (TenantId::new(tenant).unwrap(), at(*received));
            let mut batch = BatchEncoder::new(tenant, "events", received_at, [7; 16], 0);
            for index in 0..*events {
                batch.push(&Record {
                    index,
                    event_type: &EventType::new("view").unwrap(),
                    schema: SchemaRef::default(),
                    client_id: None,
                    event_time: received_at.as_event_time(),
                    dead: None,
                    pii_changed: false,
                    note: "",
                    raw: b"{}",
                });
            }
            let batch = batch.finish();
            let frame = SourceFrame { base, count: *events, received_at, body: batch.body };
            base = frame.end();
            frame
        })
        .collect();
    let lanes = Lanes::sort(&frames, |_, _| true);
    let lane = lane(tenant);
    let (heads, rows) = (&lanes.heads[..], &lanes.rows[&lane][..]);
    let told: Vec<_> = receipts(heads, rows).collect();
    let given: Vec<_> = batches.iter().map(|(at_, n)| (at(*at_), u64::from(*n))).collect();
    assert_eq!(told, given, "each batch, with its rows");
    let wrote = Wrote { log_id: "abcd1234", partition: Partition(0), lane: &lane, heads, rows };
    freshness.wrote(wrote, at(now));
}

fn freshness(objective: &str, asks: bool) -> Freshness {
    Freshness::new(Some(objective.parse().unwrap()), asks)
}

#[test]
fn each_event_counts_with_the_age_of_its_request() {
    let freshness = freshness("p90 < 3s", false);
    write(&freshness, "acme", &[(97, 1), (98, 7), (99, 92)], 100);
    let status = freshness.status(at(100), &[]);
    assert_eq!((status.events, status.late, status.worst_seconds), (100, 1, 3.0));
    assert_eq!((status.state, status.lanes_missed), (Some(Met::Met), 0));
    let measured = status.measured_seconds.unwrap();
    assert!((0.5..=1.0).contains(&measured), "90 % were a second old: {measured}");
}

#[test]
fn a_lane_that_is_late_is_named_and_others_are_not() {
    let freshness = freshness("p95 < 3s", false);
    write(&freshness, "acme", &[(90, 6)], 100);
    write(&freshness, "beta", &[(99, 94)], 100);
    let status = freshness.status(at(100), &[]);
    assert_eq!((status.state, status.late), (Some(Met::Missed), 6));
    assert_eq!(status.missed.len(), 1);
    let missed = &status.missed[0];
    assert_eq!((&missed.lane, missed.events, missed.late), (&lane("acme"), 6, 6));
    // Ten minutes later nothing of it counts.
    let status = freshness.status(at(800), &[]);
    assert_eq!((status.state, status.events, status.lanes_missed), (Some(Met::Idle), 0, 0));
}

#[test]
fn what_waits_too_long_is_late_before_it_is_visible() {
    let freshness = freshness("p95 < 3s", false);
    write(&freshness, "beta", &[(99, 50)], 100);
    let waiting = |lane, events, oldest| Waiting { lane, events, oldest: oldest * SECOND };
    let young = [waiting(None, 50, 98)];
    assert_eq!(freshness.status(at(100), &young).state, Some(Met::Met));
    let status = freshness.status(at(101), &young);
    assert_eq!((status.state, status.events, status.late), (Some(Met::Missed), 100, 50));
    let status = freshness.status(at(101), &[waiting(Some(lane("new")), 7, 90)]);
    assert_eq!((&status.missed[0].lane, status.missed[0].late), (&lane("new"), 7));
}

#[test]
fn without_an_objective_it_is_measured_and_nothing_is_missed() {
    let freshness = Freshness::new(None, false);
    write(&freshness, "acme", &[(0, 5)], 1_000);
    let status = freshness.status(at(1_000), &[]);
    assert_eq!((status.state, status.late, status.events), (None, 0, 5));
    assert_eq!((status.quantile, status.worst_seconds), (0.95, 1_000.0));
}

#[test]
fn what_the_destination_confirms_was_visible_when_it_was_written() {
    let freshness = freshness("p95 < 3s", true);
    write(&freshness, "acme", &[(99, 5)], 100);
    let status = freshness.status(at(101), &[]);
    assert_eq!((status.events, status.unconfirmed), (0, 5), "nobody has said so yet");
    let marks = freshness.marks(10);
    assert_eq!((marks.len(), marks[0].offset, marks[0].event_time.0), (1, Offset(4), 99 * SECOND));
    freshness.answered(&marks, &[true], at(102));
    let status = freshness.status(at(102), &[]);
    assert_eq!((status.events, status.unconfirmed, status.worst_seconds), (5, 0, 1.0));
    assert!(freshness.marks(10).is_empty());
}

#[test]
fn what_the_destination_denies_is_late_until_it_can_be_read() {
    let freshness = freshness("p95 < 3s", true);
    write(&freshness, "acme", &[(99, 5)], 100);
    let marks = freshness.marks(10);
    freshness.answered(&marks, &[false], at(101));
    assert_eq!(freshness.status(at(101), &[]).state, Some(Met::Idle));
    let status = freshness.status(at(110), &[]);
    assert_eq!((status.state, status.late, status.unconfirmed), (Some(Met::Missed), 5, 5));
    assert_eq!(status.missed[0].lane, lane("acme"));
    freshness.answered(&freshness.marks(10), &[true], at(111));
    let status = freshness.status(at(111), &[]);
    assert_eq!((status.events, status.late, status.worst_seconds), (5, 5, 12.0));
}

#[test]
fn an_answer_says_nothing_of_what_was_written_after_the_question() {
    let freshness = freshness("p95 < 3s", true);
    write(&freshness, "acme", &[(99, 5)], 100);
    let marks = freshness.marks(10);
    write(&freshness, "acme", &[(100, 6)], 101);
    freshness.answered(&marks, &[true], at(101));
    assert_eq!(freshness.status(at(101), &[]).unconfirmed, 11);
    freshness.not_answered("down".to_owned());
    assert_eq!(freshness.status(at(101), &[]).error.as_deref(), Some("down"));
    freshness.answered(&freshness.marks(10), &[true], at(103));
    let status = freshness.status(at(103), &[]);
    assert_eq!((status.events, status.unconfirmed, status.error), (11, 0, None));
}

#[test]
fn what_is_never_confirmed_is_given_up_as_late() {
    let freshness = freshness("p95 < 3s over 1d", true);
    write(&freshness, "acme", &[(99, 5)], 100);
    for now in [200, 3_800] {
        freshness.answered(&freshness.marks(10), &[false], at(now));
    }
    let status = freshness.status(at(3_800), &[]);
    assert_eq!((status.unconfirmed, status.late), (0, 5));
}

#[test]
fn what_may_not_be_named_is_exported_together() {
    let freshness = freshness("p95 < 3s", false);
    for tenant in ["acme", "beta", "gone", "left"] {
        write(&freshness, tenant, &[(99, 5)], 100);
    }
    let mut families = Families::default();
    let named = |lane: &Lane| Named {
        tenant: ["acme", "beta"].contains(&lane.tenant.as_str()),
        event_type: lane.tenant.as_str() != "beta",
    };
    freshness.export("lake", &named, &mut families);
    let text = String::from_utf8(crate::metrics::render(families.finish())).unwrap();
    let has = |tenant: &str, event_type: &str, events: u64| {
        let labels = format!(
            "sink=\"lake\",tenant=\"{tenant}\",event_type=\"{event_type}\",dead_letters=\"0\""
        );
        text.contains(&format!("tidegate_sink_event_age_seconds_count{{{labels}}} {events}\n"))
            && text.contains(&format!("tidegate_sink_lane_age_seconds{{{labels}}} 1\n"))
    };
    assert!(has("acme", "view", 5) && has("beta", "", 5) && has("", "", 10), "{text}");
    assert!(!text.contains("gone") && !text.contains("left"));
}

#[test]
fn there_are_never_more_series_than_the_bound() {
    let freshness = freshness("p95 < 3s", false);
    for tenant in 0..1_100 {
        write(&freshness, &format!("t{tenant}"), &[(99, 1)], 100);
    }
    let mut families = Families::default();
    freshness.export("lake", &|_| Named { tenant: true, event_type: true }, &mut families);
    let families = families.finish();
    assert_eq!(families.iter().map(|f| f.get_metric().len()).collect::<Vec<_>>(), [1_001, 1_001]);
    let all: u64 =
        families[0].get_metric().iter().map(|m| m.get_histogram().get_sample_count()).sum();
    assert_eq!(all, 1_100);
}
