//! A lane that cannot be written waits alone; a destination that takes nothing stops all of them.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tidegate_event::TenantId;
use tidegate_ingest::{
    shed::{Pressure, ShedReason},
    sink::{self, LaneRows, Sink, SinkConfig, SinkState, WriteError},
    storage::Disk,
};

use crate::tally::Tally;

use super::{
    FIRST, Pipe, config, eventually,
    faults::{Fate, FatefulDisk, FatefulStore},
    lane, open_lake, schema,
};

const NOTHING: &[(&str, &str, Option<tidegate_event::Code>)] = &[("view", "{}", None)];

/// Scenario: a file stands where one lane's folder should be; events go on; the file is removed.
/// Guarantees: the neighbours' events land meanwhile; then the lane catches up by itself, each event
/// once, and is held no longer; retention never passes what it needs.
#[test]
fn a_blocked_lane_waits_alone_and_catches_up() {
    let mut tally = Tally::new("sink::lanes", "sink down", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let mut config = config(2);
    config.options.insert("lane_bytes".into(), 50.into());
    let obstacle = pipe.lake().join("events/tenant=acme/event_type=view");
    std::fs::create_dir_all(obstacle.parent().unwrap()).unwrap();
    std::fs::write(&obstacle, "in the way").unwrap();
    let acme = TenantId::new("acme").unwrap();
    for _ in 0..3 {
        pipe.append("acme", NOTHING);
        pipe.append("beta", NOTHING);
    }
    let sinks = pipe.start(&config);
    let cursor = |sinks: &sink::Sinks| sinks.cursors()[0].2.0;
    eventually("the neighbours were written", || cursor(&sinks) == 6);
    assert_eq!(pipe.offsets(&config)["beta/view"], [1, 3, 5]);
    pipe.clock.advance(5_000_000);
    let status = sinks.status().remove(0);
    assert_eq!(status.held.len(), 1, "{status:?}");
    let held = &status.held[0];
    assert_eq!(
        (&held.lane, held.cursor.0, held.pending_events),
        (&lane("acme", "view", false), 0, 3)
    );
    assert!(held.error.contains("event_type=view"), "{}", held.error);
    assert_eq!((status.lag_events, status.freshness_seconds), (3, 5.0));
    assert_eq!(pipe.log.handle().lowest_hold().unwrap().1.0, 0);
    eventually("the tenant is told to wait", || {
        sinks.shed(&acme, false).is_some_and(|(reason, _)| reason == ShedReason::TenantLane)
    });
    assert_eq!(sinks.shed(&TenantId::new("beta").unwrap(), false), None);
    // Also across a restart.
    sinks.stop();
    drop(sinks);
    let sinks = pipe.start(&config);
    pipe.append("acme", NOTHING);
    pipe.append("beta", NOTHING);
    eventually("the neighbours go on", || cursor(&sinks) == 8);
    assert_eq!(sinks.counts().unwrap()[0].pending[&lane("acme", "view", false)], 4);
    std::fs::remove_file(&obstacle).unwrap();
    eventually("the lane has caught up", || sinks.status()[0].held.is_empty());
    pipe.drain(&sinks);
    assert_eq!(pipe.offsets(&config)["acme/view"], [0, 2, 4, 6]);
    assert_eq!(pipe.offsets(&config)["beta/view"], [1, 3, 5, 7]);
    assert_eq!(sinks.counts().unwrap()[0].lanes[&lane("acme", "view", false)].stored, 4);
    assert_eq!(pipe.log.handle().lowest_hold().unwrap().1.0, 8);
    assert_eq!(sinks.shed(&acme, false), None);
    tally.survived(1);
}

#[test]
fn an_outage_holds_no_lane_and_ends_by_itself() {
    let mut tally = Tally::new("sink::lanes", "sink down", &["P2", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(2);
    pipe.append("acme", NOTHING);
    pipe.append("beta", NOTHING);
    let fate = Fate::kind();
    let wrap = |store| Arc::new(FatefulStore(Arc::clone(&fate), store)) as _;
    let lake = open_lake(&pipe, &config, Arc::new(Disk), &wrap).unwrap();
    fate.outage.store(true, Ordering::SeqCst);
    let parts = pipe.parts(Arc::new(Disk));
    let sinks = sink::start_with(vec![(config.clone(), lake)], &parts).unwrap();
    eventually("the sink waits", || {
        let status = sinks.status().remove(0);
        assert!(status.held.is_empty());
        matches!(&status.partitions[0].state, SinkState::Waiting { error, .. } if error.contains("outage"))
    });
    assert_eq!(sinks.cursors()[0].2.0, 0);
    fate.outage.store(false, Ordering::SeqCst);
    eventually("it has gone on", || sinks.cursors()[0].2.0 == 2);
    pipe.drain(&sinks);
    assert_eq!(sinks.status()[0].partitions[0].state, SinkState::Drained);
    assert_eq!(pipe.offsets(&config).len(), 2);
    tally.survived(1);
}

/// Scenario: a destination that takes its time with every operation; the server is told to end long
/// before it is done, and started again, several times.
/// Guarantees: each event is there once, and the counts say so.
#[test]
fn a_slow_destination_is_late_and_doubles_nothing() {
    let mut tally = Tally::new("sink::lanes", "slow sink", &["P2", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(3);
    for round in 0..6 {
        for _ in 0..5 {
            pipe.append("acme", NOTHING);
            pipe.append("beta", NOTHING);
        }
        let fate = Fate::kind();
        let wrap = |store| Arc::new(FatefulStore(Arc::clone(&fate), store)) as _;
        let lake = open_lake(&pipe, &config, Arc::new(Disk), &wrap).unwrap();
        fate.delay.store(15, Ordering::SeqCst);
        let parts = pipe.parts(Arc::new(Disk));
        let sinks = sink::start_with(vec![(config.clone(), lake)], &parts).unwrap();
        let grace = Duration::from_millis(10 + 40 * round);
        pipe.runtime.block_on(sinks.drain(grace));
        sinks.stop();
        tally.survived(1);
    }
    let sinks = pipe.start(&config);
    pipe.drain(&sinks);
    let offsets = pipe.offsets(&config);
    assert_eq!(offsets["acme/view"], (0..60).step_by(2).collect::<Vec<_>>());
    assert_eq!(offsets["beta/view"], (1..60).step_by(2).collect::<Vec<_>>());
    assert_eq!(sinks.counts().unwrap()[0].lanes[&lane("acme", "view", false)].stored, 30);
}

#[test]
fn a_blocking_sink_over_its_bound_sheds_everybody() {
    let mut pipe = Pipe::new();
    pipe.backlog_bytes = 1;
    let sinks = pipe.start(&config(1_000));
    let beta = TenantId::new("beta").unwrap();
    assert_eq!(sinks.shed(&beta, false), None);
    pipe.append("acme", NOTHING);
    eventually("the log is full", || {
        sinks.shed(&beta, false).is_some_and(|(reason, _)| reason == ShedReason::LogFull)
    });
    pipe.drain(&sinks);
    eventually("it is not any more", || sinks.shed(&beta, false).is_none());
}

/// Scenario: acme's lane is held while beta's events go on, far more of them.
/// Guarantees: what beta wrote is no backlog although acme keeps it in the log; that has a bound of
/// its own, and who is told about it is told why.
#[test]
fn what_a_held_lane_keeps_of_the_log_is_no_backlog_until_its_own_bound() {
    let mut tally = Tally::new("sink::lanes", "sink down", &["P3"]);
    let mut pipe = Pipe::new();
    pipe.backlog_bytes = 4 << 20;
    let config = config(2);
    let obstacle = pipe.lake().join("events/tenant=acme/event_type=view");
    std::fs::create_dir_all(obstacle.parent().unwrap()).unwrap();
    std::fs::write(&obstacle, "in the way").unwrap();
    let large = format!("{{\"pad\":\"{}\"}}", "x".repeat(700_000));
    let sinks = pipe.start(&config);
    pipe.append("acme", NOTHING);
    let mut events = 1;
    while events < 6 {
        pipe.append("beta", &[("view", &large, None)]);
        events += 1;
    }
    eventually("beta is written", || sinks.cursors()[0].2.0 == 6);
    let status = sinks.status().remove(0);
    assert!(3 << 20 < status.pinned_bytes && status.backlog_bytes < 100, "{status:?}");
    assert_eq!((sinks.blocking().len(), status.bound_bytes), (0, 4 << 20));
    for _ in 0..2 {
        pipe.append("beta", &[("view", &large, None)]);
    }
    eventually("the held lane keeps too much", || {
        sinks.blocking().first().is_some_and(|why| why.contains("held lanes of sink lake"))
    });
    std::fs::remove_file(&obstacle).unwrap();
    eventually("it is written", || {
        sinks.blocking().is_empty() && sinks.status()[0].lag_events == 0
    });
    pipe.drain(&sinks);
    assert_eq!(sinks.status()[0].pinned_bytes, 0);
    tally.survived(1);
}

/// Scenario: a sink with the policy `expire` and a small bound stays out while much is appended.
/// Guarantees: the oldest are skipped and counted, the rest lands, the books balance.
#[test]
fn an_expiring_sink_skips_the_oldest_and_counts_them() {
    let mut pipe = Pipe::new();
    pipe.backlog_bytes = 4 << 20;
    let mut config = config(100);
    config.policy = sink::Policy::Expire;
    let event = format!("{{\"pad\":\"{}\"}}", "x".repeat(60_000));
    for _ in 0..200 {
        pipe.append("acme", &[("view", &event, None)]);
    }
    let sinks = pipe.start(&config);
    pipe.drain(&sinks);
    let counts = sinks.counts().unwrap().remove(0);
    let acme = counts.lanes[&lane("acme", "view", false)];
    assert!(100 < acme.skipped && 0 < acme.stored, "{acme:?}");
    assert_eq!(acme.skipped + acme.stored, 200);
    let offsets = &pipe.offsets(&config)["acme/view"];
    assert_eq!(*offsets, (acme.skipped..200).collect::<Vec<_>>());
}

#[test]
fn events_without_their_schema_wait_and_poison_is_set_aside_alone() {
    let mut tally = Tally::new("sink::lanes", "poison event", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(10);
    pipe.append_as("acme", schema(1), &[("view", "{\"n\":1}", None), ("view", "no json", None)]);
    pipe.append_as("acme", schema(1), &[("view", "{\"n\":2}", None)]);
    pipe.append_as("beta", schema(9), NOTHING);
    let sinks = pipe.start(&config);
    pipe.drain(&sinks);
    assert_eq!(pipe.offsets(&config)["acme/view"], [0, 2]);
    let counts = sinks.counts().unwrap().remove(0);
    assert_eq!(counts.lanes[&lane("acme", "view", false)].quarantined, 1);
    assert_eq!(counts.pending[&lane("beta", "view", false)], 1);
    let aside = std::fs::read_to_string(pipe.data().join("sinks/lake-quarantine.jsonl")).unwrap();
    assert_eq!(aside.lines().count(), 1);
    assert!(aside.contains("\"offset\":1") && aside.contains("no json"), "{aside}");
    tally.survived(1);
}

#[test]
fn a_foreign_file_of_the_same_name_is_never_touched() {
    let mut pipe = Pipe::new();
    let config = config(10);
    pipe.append("acme", NOTHING);
    let id = pipe.log.handle().log_id().to_owned();
    let dir = "events/tenant=acme/event_type=view/date=2026-11-21/hour=10";
    let file = pipe.lake().join(dir).join(format!("{id}-0-0-0.parquet"));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "foreign").unwrap();
    let sinks = pipe.start(&config);
    pipe.drain(&sinks);
    assert_eq!(std::fs::read(&file).unwrap(), b"foreign");
    let held = &sinks.status()[0].held;
    assert!(held[0].error.contains("not these 1 rows"), "{held:?}");
    std::fs::remove_file(&file).unwrap();
    pipe.run(&config);
    assert_eq!(pipe.offsets(&config)["acme/view"], [0]);
}

/// Takes the rows of some tenants alone.
struct Picky(Mutex<Vec<(String, usize)>>);

impl Sink for Picky {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        self.0.lock().unwrap().push((rows.lane.to_string(), rows.rows.len()));
        Ok(())
    }
    fn probe(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Takes rows, and from then on the disk takes nothing.
struct LastWords(Arc<Fate>);

impl Sink for LastWords {
    fn write(&self, _: &LaneRows<'_>) -> Result<(), WriteError> {
        self.0.outage.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn probe(&self) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_sink_holds_the_log_until_its_cursor_is_durable() {
    let mut pipe = Pipe::new();
    let config: SinkConfig = toml::from_str("name='a'\nkind='blackhole'\nflush.rows=1").unwrap();
    pipe.append("acme", NOTHING);
    let fate = Fate::kind();
    let parts = pipe.parts(Arc::new(FatefulDisk(Arc::clone(&fate))));
    let sink = Arc::new(LastWords(Arc::clone(&fate)));
    let sinks = sink::start_with(vec![(config, sink as _)], &parts).unwrap();
    eventually("the cursor cannot be written", || {
        matches!(sinks.status()[0].partitions[0].state, SinkState::Waiting { .. })
    });
    assert_eq!(pipe.log.handle().lowest_hold().unwrap().1.0, 0);
    fate.outage.store(false, Ordering::SeqCst);
    eventually("it is written", || pipe.log.handle().lowest_hold().unwrap().1.0 == 1);
    sinks.stop();
}

#[test]
fn what_the_filter_leaves_out_is_skipped_and_age_cuts_a_window() {
    let mut pipe = Pipe::new();
    let config: SinkConfig =
        toml::from_str("name='picky'\nkind='blackhole'\nflush.age='1h'\nfilter.tenants=['acme']")
            .unwrap();
    pipe.append("acme", NOTHING);
    pipe.append("beta", NOTHING);
    let picky = Arc::new(Picky(Mutex::default()));
    let parts = pipe.parts(Arc::new(Disk));
    let sinks = sink::start_with(vec![(config, Arc::clone(&picky) as _)], &parts).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(sinks.cursors(), [("picky".to_owned(), FIRST, tidegate_event::Offset(0))]);
    pipe.clock.advance(super::HOUR);
    eventually("an hour has passed", || sinks.cursors()[0].2.0 == 2);
    assert_eq!(*picky.0.lock().unwrap(), [("acme/view".to_owned(), 1)]);
    let counts = sinks.counts().unwrap().remove(0);
    assert_eq!(counts.lanes[&lane("beta", "view", false)].skipped, 1);
    assert_eq!(counts.lanes[&lane("acme", "view", false)].stored, 1);
    sinks.stop();
}

#[test]
fn wrong_configurations_are_refused_by_name() {
    let pipe = Pipe::new();
    let parts = pipe.parts(Arc::new(Disk));
    for (text, word) in [
        ("name='a'\nkind='lak'", "lake"),
        ("name='a b'\nkind='blackhole'", "name"),
        ("name='a'\nkind='lake'\noptions.format='csv'", "jsonl.zst"),
        ("name='a'\nkind='lake'\noptions.fromat='parquet'", "fromat"),
        ("name='a'\nkind='lake'\nurl='ftp://x/y'", "s3://"),
        ("name='a'\nkind='lake'\nurl='s3://b/p'\noptions.store.aws_nonsense='1'", "aws_nonsense"),
        ("name='a'\nkind='lake'\noptions.store.endpoint='1'", "endpoint"),
        ("name='a'\nkind='lake'\nurl='/proc/nowhere'", "/proc/nowhere"),
        ("name='a'\nkind='blackhole'\noptions.lane_bytes='much'", "much"),
    ] {
        let config: SinkConfig = toml::from_str(text).unwrap();
        let error = sink::start(&[config], &parts).err().expect(text).to_string();
        assert!(error.contains(word) && error.contains("\"a"), "{text}: {error}");
    }
    let twice: SinkConfig = toml::from_str("name='a'\nkind='lake'").unwrap();
    let other = SinkConfig { name: "b".into(), ..twice.clone() };
    for pair in [[twice.clone(), twice.clone()], [twice, other]] {
        assert!(sink::start(&pair, &parts).is_err());
    }
}
