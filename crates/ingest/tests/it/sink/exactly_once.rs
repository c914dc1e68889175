//! Each offset is in the lake once, wherever the sink was cut and whatever it was told.

use std::sync::{Arc, atomic::Ordering};

use tidegate_event::Code;
use tidegate_ingest::{
    sink::{self, SinkConfig, Start},
    storage::Disk,
};

use crate::tally::Tally;

use super::{
    FIRST, HOUR, Pipe, config,
    faults::{Fate, FatefulDisk, FatefulStore, How},
    lane, open_lake, tree,
};

/// Two tenants, two types, dead letters, an hour's turn: 14 events in 5 frames.
fn pipe() -> Pipe {
    let mut pipe = Pipe::new();
    let dead = Some(Code::TypeMismatch);
    pipe.append(
        "acme",
        &[("view", "{\"a\":1}", None), ("click", "{}", None), ("view", "{}", dead)],
    );
    pipe.append("beta", &[("view", "{}", None), ("view", "{}", None)]);
    pipe.clock.advance(HOUR);
    pipe.append("acme", &[("view", "{}", None), ("view", "{}", None), ("click", "{}", None)]);
    pipe.append("acme", &[("view", "{}", dead), ("view", "{}", None), ("view", "{}", None)]);
    pipe.append("beta", &[("click", "{}", None), ("click", "{}", dead), ("view", "{}", None)]);
    pipe
}

fn expected() -> Vec<(String, Vec<u64>)> {
    let lanes: [(&str, &[u64]); 7] = [
        ("acme/click", &[1, 7]),
        ("acme/view", &[0, 5, 6, 9, 10]),
        ("acme/view (dead letters)", &[2, 8]),
        ("beta/click", &[11]),
        ("beta/click (dead letters)", &[12]),
        ("beta/view", &[3, 4, 13]),
        ("", &[]),
    ];
    let lanes = lanes.iter().filter(|(name, _)| !name.is_empty());
    lanes.map(|(name, offsets)| ((*name).to_owned(), offsets.to_vec())).collect()
}

/// What a sink has that begins there.
fn expected_from(start: Start) -> Vec<(String, Vec<u64>)> {
    let from = match start {
        Start::Offset(offset) => offset.0,
        _ => 0,
    };
    let left = expected().into_iter().map(|(lane, mut offsets)| {
        offsets.retain(|offset| from <= *offset);
        (lane, offsets)
    });
    left.filter(|(_, offsets)| !offsets.is_empty()).collect()
}

/// Runs with fate at its `at`th operation, then again without; says whether fate struck.
fn run(at: u64, how: How, config: &SinkConfig) -> bool {
    let pipe = pipe();
    let fate = Fate::new(at, how);
    let disk = Arc::new(FatefulDisk(Arc::clone(&fate)));
    let wrap = |store| Arc::new(FatefulStore(Arc::clone(&fate), store)) as _;
    // Opening the lake and starting may be struck too: then nothing runs at all.
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lake = open_lake(&pipe, config, Arc::clone(&disk) as _, &wrap).ok()?;
        sink::start_with(vec![(config.clone(), lake)], &pipe.parts(disk)).ok()
    }));
    if let Ok(Some(sinks)) = started {
        let struck = Arc::clone(&fate);
        pipe.runtime.block_on(async {
            let watch = async {
                while !struck.struck.load(Ordering::SeqCst) {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = sinks.drain(std::time::Duration::from_secs(20)) => {}
                () = watch => {}
            }
        });
        sinks.stop();
    }
    pipe.run(config);
    let found: Vec<_> = pipe.offsets(config).into_iter().collect();
    assert_eq!(found, expected_from(config.start), "struck {how:?} at operation {at}");
    let staged = tree(&pipe.lake().join("staging"));
    assert!(staged.is_empty(), "{:?}", staged.keys());
    fate.struck.load(Ordering::SeqCst)
}

/// Scenario: the sink is struck at each of its operations in turn (files of state and lake), in each
/// of four ways, and started again.
/// Guarantees: every offset is in the files of its lane once.
fn sweep(how: How) {
    sweep_with(how, &config(5));
}

fn sweep_with(how: How, config: &SinkConfig) {
    let next = std::sync::atomic::AtomicU64::new(1);
    let last = std::sync::atomic::AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    if last.load(Ordering::SeqCst) <= at {
                        return;
                    }
                    if !run(at, how, config) {
                        last.fetch_min(at, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let operations = last.load(Ordering::SeqCst);
    let fault = match how {
        How::FailBefore | How::FailAfter => "EIO",
        How::DieBefore | How::DieAfter => "kill -9",
    };
    Tally::new("sink::exactly_once", fault, &["P2"]).survived(operations - 1);
    assert!(40 < operations, "only {operations} operations were struck");
}

#[test]
fn an_operation_that_fails_costs_nothing() {
    sweep(How::FailBefore);
}

#[test]
fn an_operation_that_is_done_but_says_it_failed_costs_nothing() {
    sweep(How::FailAfter);
}

#[test]
fn a_death_before_an_operation_costs_nothing() {
    sweep(How::DieBefore);
}

#[test]
fn a_death_after_an_operation_costs_nothing() {
    sweep(How::DieAfter);
}

#[test]
fn a_sink_that_begins_inside_a_request_is_as_exact() {
    let config = SinkConfig { start: "offset:4".parse().unwrap(), ..config(5) };
    for how in [How::FailBefore, How::FailAfter, How::DieBefore, How::DieAfter] {
        sweep_with(how, &config);
    }
}

#[test]
fn the_same_log_gives_the_same_files() {
    let config = config(4);
    let trees: Vec<_> = (0..2)
        .map(|_| {
            let pipe = pipe();
            pipe.run(&config);
            let log_id = pipe.log.handle().log_id().to_owned();
            let files = tree(&pipe.lake());
            let name = |name: String| name.replace(&log_id, "log");
            (files.into_iter().map(|(n, b)| (name(n), b)).collect::<Vec<_>>(), pipe)
        })
        .collect();
    let names = |i: usize| trees[i].0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(0), names(1));
    // The same log again, from its start: each file is there already, with the same bytes.
    let pipe = &trees[0].1;
    let before = tree(&pipe.lake());
    std::fs::remove_file(pipe.data().join("sinks/lake-0.json")).unwrap();
    pipe.run(&config);
    assert_eq!(tree(&pipe.lake()), before);
}

#[test]
fn a_window_that_changed_since_its_intent_stops_the_sink() {
    let pipe = pipe();
    let config = config(5);
    pipe.run(&config);
    let path = pipe.data().join("sinks/lake-0.json");
    let mut state = sink::state::State::decode(&std::fs::read(&path).unwrap()).unwrap();
    state.cursor = tidegate_event::Offset(0);
    state.intent = Some(sink::state::Intent {
        window: tidegate_event::OffsetRange::new(
            tidegate_event::Offset(0),
            tidegate_event::Offset(5),
        )
        .unwrap(),
        rows: 5,
        hash: "0".repeat(32),
        schemas: vec![],
    });
    std::fs::write(&path, state.encode().unwrap()).unwrap();
    let before = tree(&pipe.lake());
    let sinks = pipe.start(&config);
    pipe.drain(&sinks);
    let status = sinks.status();
    assert!(
        matches!(&status[0].partitions[0].state, sink::SinkState::Stopped { error } if error.contains("promised")),
        "{status:?}"
    );
    assert_eq!(tree(&pipe.lake()), before);
}

#[test]
fn a_cursor_of_another_log_refuses_to_start() {
    let pipe = pipe();
    let dir = pipe.data().join("sinks");
    std::fs::create_dir_all(&dir).unwrap();
    let other = sink::state::State::new("otherlog", FIRST, tidegate_event::Offset(3));
    std::fs::write(dir.join("lake-0.json"), other.encode().unwrap()).unwrap();
    let parts = pipe.parts(Arc::new(Disk));
    let error = sink::start(&[config(5)], &parts).err().unwrap().to_string();
    assert!(error.contains("otherlog") && error.contains("lake-0.json"), "{error}");
}

#[test]
fn the_counts_balance_and_no_lane_has_holes() {
    let mut pipe = pipe();
    let config = config(5);
    pipe.run(&config);
    pipe.append("acme", &[("view", "{}", None)]);
    let sinks = pipe.start(&config);
    // The new event is too young to be written: it is pending.
    let counts = sinks.counts().unwrap().remove(0);
    assert_eq!(counts.up_to[&FIRST].0, 15);
    assert_eq!(counts.lanes[&lane("acme", "view", false)].stored, 5);
    assert_eq!(counts.lanes[&lane("acme", "view", true)].stored, 2);
    assert_eq!(counts.pending[&lane("acme", "view", false)], 1);
    sinks.stop();
    let checks = pipe.reader(&config).check_lane(&lane("acme", "view", false)).unwrap();
    let (first, last) = (checks[0].min.0, checks[0].max.0);
    assert_eq!((checks[0].count, checks[0].distinct, first, last), (5, 5, 0, 10));
    let ids: std::collections::HashSet<String> =
        pipe.rows(&config).iter().map(|(_, r)| r["event_id"].as_str().unwrap().into()).collect();
    let mut asked = ids.clone();
    asked.insert("nobody".into());
    let tenants = ["acme", "beta"].map(|t| tidegate_event::TenantId::new(t).unwrap());
    let reader = pipe.reader(&config);
    let found = tenants.iter().flat_map(|t| reader.find_ids(t, None, &asked).unwrap());
    assert_eq!(found.collect::<std::collections::HashSet<_>>(), ids);
}
