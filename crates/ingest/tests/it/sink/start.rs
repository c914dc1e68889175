//! A sink that is added later begins where it is told to, once, and the books know what it skipped.

use tidegate_event::Offset;
use tidegate_ingest::{
    config::Size,
    log::LogConfig,
    sink::{self, Counts, Lane, SinkConfig, Start},
    storage::Disk,
};

use super::{HOUR, MORNING, Pipe, config, lane};

/// Requests of 2 events each, an hour apart, from `MORNING` on.
fn fill(pipe: &mut Pipe, requests: u64) {
    for _ in 0..requests {
        pipe.append("acme", &[("view", "{}", None), ("click", "{}", None)]);
        pipe.clock.advance(HOUR);
    }
}

fn begins(start: &str) -> SinkConfig {
    SinkConfig { start: start.parse().unwrap(), ..config(100) }
}

fn views_and_clicks() -> [Lane; 2] {
    [lane("acme", "view", false), lane("acme", "click", false)]
}

/// Runs the sink until it has all; the offsets it wrote, and its counts.
fn run(pipe: &Pipe, config: &SinkConfig) -> (Vec<u64>, Counts) {
    let sinks = pipe.start(config);
    pipe.drain(&sinks);
    let counts = sinks.counts().unwrap().remove(0);
    let mut offsets: Vec<u64> = pipe.offsets(config).into_values().flatten().collect();
    offsets.sort_unstable();
    (offsets, counts)
}

#[track_caller]
fn fault(pipe: &Pipe, start: &str) -> String {
    let started = sink::start(&[begins(start)], &pipe.parts(std::sync::Arc::new(Disk)));
    started.err().unwrap().to_string()
}

#[test]
fn what_lies_before_the_start_is_skipped_and_counted() {
    for (start, first) in [
        ("first", 0),
        ("offset:0", 0),
        ("offset:4", 4),
        // Inside a request.
        ("offset:5", 5),
        ("offset:8", 8),
        ("now", 8),
        // The request of 12:00 is the third.
        ("2026-11-21T12:00:00Z", 4),
        ("2026-11-21T12:00:00.000001Z", 6),
        ("2026-11-21T11:30:00Z", 4),
        ("2020-01-01T00:00:00Z", 0),
        // After the last request, before now.
        ("2026-11-21T13:30:00Z", 8),
    ] {
        let mut pipe = Pipe::new();
        fill(&mut pipe, 4);
        let (offsets, counts) = run(&pipe, &begins(start));
        assert_eq!(offsets, (first..8).collect::<Vec<_>>(), "{start}");
        let sum = |of: fn(&sink::LaneCounts) -> u64| counts.lanes.values().map(of).sum::<u64>();
        assert_eq!((sum(|c| c.skipped), sum(|c| c.stored)), (first, 8 - first), "{start}");
        assert_eq!((counts.gone, counts.lost_in_log), (0, 0), "{start}");
        for lane in views_and_clicks() {
            let of = counts.lanes[&lane];
            assert_eq!(of.skipped + of.stored, 4, "{start}: {lane}");
        }
    }
}

#[test]
fn a_start_is_used_once_and_survives_a_restart_without_events() {
    let mut pipe = Pipe::new();
    fill(&mut pipe, 2);
    assert!(run(&pipe, &begins("now")).0.is_empty());
    fill(&mut pipe, 1);
    assert_eq!(run(&pipe, &begins("now")).0, [4, 5], "now is when it was added");
    fill(&mut pipe, 1);
    assert_eq!(run(&pipe, &begins("offset:999")).0, [4, 5, 6, 7], "it has a cursor");
}

#[test]
fn now_on_an_empty_log_is_its_beginning_for_ever() {
    let mut pipe = Pipe::new();
    assert!(run(&pipe, &begins("now")).0.is_empty());
    fill(&mut pipe, 1);
    assert_eq!(run(&pipe, &begins("now")).0, [0, 1]);
}

#[test]
fn a_place_that_is_not_there_is_refused_with_what_to_write_instead() {
    let mut pipe = Pipe::new();
    fill(&mut pipe, 2);
    let beyond = fault(&pipe, "offset:5");
    assert!(beyond.contains("beyond the end of the log") && beyond.contains("is 4"), "{beyond}");
    let to_come = fault(&pipe, "2026-11-21T12:00:01Z");
    assert!(
        to_come.contains("it is 2026-11-21T12:00:00Z") && to_come.contains("\"now\""),
        "{to_come}"
    );
    assert!(!pipe.data().join("sinks/lake-0.json").exists(), "nothing is noted of it");
    let other = toml::from_str::<SinkConfig>("name='a'\nkind='lake'\nstart='noon'");
    assert!(other.unwrap_err().to_string().contains("\"offset:N\""));
}

#[test]
fn what_retention_has_removed_is_told_apart() {
    for start in ["first", "offset:1", "2026-11-21T10:00:00Z", "now"] {
        let bytes = Size(1);
        let log =
            LogConfig { segment_bytes: bytes, retention_bytes: bytes, ..LogConfig::default() };
        let mut pipe = Pipe::with_log(log);
        fill(&mut pipe, 6);
        pipe.log.trim().unwrap();
        let earliest = pipe.log.handle().earliest();
        assert!(Offset(2) <= earliest && earliest < Offset(12), "{earliest}");
        let (offsets, counts) = run(&pipe, &begins(start));
        let first = if start == "now" { 12 } else { earliest.0 };
        assert_eq!(offsets, (first..12).collect::<Vec<_>>(), "{start}");
        let known: u64 = counts.lanes.values().map(|c| c.stored + c.skipped).sum();
        assert_eq!((counts.gone, counts.gone + known), (earliest.0, 12), "{start}");
    }
}

/// Scenario: the books are asked before the sink's thread has counted what lies before its start.
/// Guarantees: they are told the same as after.
#[test]
fn the_books_are_exact_before_the_skipped_are_counted() {
    let mut pipe = Pipe::new();
    fill(&mut pipe, 5);
    let sinks = pipe.start(&begins("offset:3"));
    let before = sinks.counts().unwrap().remove(0);
    pipe.drain(&sinks);
    let after = sinks.counts().unwrap().remove(0);
    for counts in [before, after] {
        let of = |lane: &Lane| counts.lanes.get(lane).map_or(0, |c| c.skipped);
        assert_eq!(views_and_clicks().map(|lane| of(&lane)), [2, 1]);
    }
    let state = std::fs::read_to_string(pipe.data().join("sinks/lake-0.json")).unwrap();
    assert!(
        state.contains(r#""began":{"at":3,"start":"offset:3","gone":0,"uncounted":null}"#),
        "{state}"
    );
    let status = serde_json::to_value(sinks.status()).unwrap();
    assert_eq!(status[0]["partitions"][0]["began"]["start"], "offset:3");
    assert_eq!(begins("offset:3").start, Start::Offset(Offset(3)));
    assert_eq!(MORNING % HOUR, 0, "the times above are whole hours");
}
