//! Many sinks on one log: each with its own cursor, filter, batches, start and objective; one that is down
//! holds up none of the others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidegate_event::{Offset, Partition};
use tidegate_ingest::{
    sink::{
        self, LaneRows, Sink, SinkConfig, SinkParts, SinkState, SinkStatus, WriteError,
        freshness::Met, state::Files,
    },
    storage::Disk,
};

use super::{Pipe, config, eventually};
use crate::tally::Tally;

/// Keeps what it is given: each write as (lane, offsets). Takes nothing while it is down.
#[derive(Default)]
struct Memory {
    writes: Mutex<Vec<(String, Vec<u64>)>>,
    is_down: AtomicBool,
}

impl Sink for Memory {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        self.probe().map_err(|cause| WriteError::Retry { cause })?;
        let offsets = rows.rows.iter().map(|row| row.offset(rows.heads).0).collect();
        self.writes.lock().unwrap().push((rows.lane.to_string(), offsets));
        Ok(())
    }

    fn probe(&self) -> Result<(), String> {
        match self.is_down.load(Ordering::SeqCst) {
            true => Err("it is down".to_owned()),
            false => Ok(()),
        }
    }
}

impl Memory {
    /// Offsets by lane, in the order they came.
    fn lanes(&self) -> BTreeMap<String, Vec<u64>> {
        let mut lanes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (lane, offsets) in &*self.writes.lock().unwrap() {
            lanes.entry(lane.clone()).or_default().extend(offsets);
        }
        lanes
    }

    fn largest(&self) -> usize {
        self.writes.lock().unwrap().iter().map(|(_, offsets)| offsets.len()).max().unwrap_or(0)
    }
}

const SINKS: [(&str, &str); 6] = [
    ("all", "flush.rows=1000\nobjective='p95 < 1h'"),
    ("small", "flush.rows=2\nobjective='p95 < 1h'"),
    ("of_acme", "flush.rows=1000\nfilter.tenants=['acme']"),
    ("clicks", "flush.rows=1000\nfilter.event_types=['click']"),
    ("late", "flush.rows=1000\nstart='offset:20'"),
    ("down", "flush.rows=1000\nobjective='p95 < 3s'"),
];

fn configured(name: &str, more: &str) -> SinkConfig {
    toml::from_str(&format!("name='{name}'\nkind='blackhole'\nflush.age='50ms'\n{more}")).unwrap()
}

/// Pairs of a view and a click, of two tenants in turn: 4 offsets a round.
fn fill(pipe: &mut Pipe, rounds: usize) {
    for _ in 0..rounds {
        for tenant in ["acme", "beta"] {
            pipe.append(tenant, &[("view", "{}", None), ("click", "{}", None)]);
        }
    }
}

fn of(status: &[SinkStatus], name: &str) -> SinkStatus {
    status.iter().find(|sink| sink.name == name).unwrap().clone()
}

fn offsets(from: u64, to: u64, keep: impl Fn(u64) -> bool) -> Vec<u64> {
    (from..to).filter(|offset| keep(*offset)).collect()
}

#[test]
fn each_sink_has_its_own_cursor_filter_batches_start_and_objective() {
    let mut tally = Tally::new("sink::fan_out", "sink down", &["P2", "P5"]);
    let mut pipe = Pipe::new();
    fill(&mut pipe, 10);
    let memories: BTreeMap<&str, Arc<Memory>> =
        SINKS.iter().map(|(name, _)| (*name, Arc::default())).collect();
    memories["down"].is_down.store(true, Ordering::SeqCst);
    let opened = SINKS
        .iter()
        .map(|(name, more)| (configured(name, more), Arc::clone(&memories[name]) as Arc<dyn Sink>));
    pipe.memory_bytes = 128 << 20;
    let sinks = sink::start_with(opened.collect(), &pipe.parts(Arc::new(Disk))).unwrap();
    fill(&mut pipe, 10);
    pipe.clock.advance(5_000_000);
    eventually("all that are up have all of it", || {
        let status = sinks.status();
        let mut up = SINKS.iter().filter(|(name, _)| *name != "down");
        up.all(|(name, _)| of(&status, name).partitions[0].cursor == Offset(80))
    });

    let all: BTreeMap<String, Vec<u64>> = [
        ("acme/view", offsets(0, 80, |o| o % 4 == 0)),
        ("acme/click", offsets(0, 80, |o| o % 4 == 1)),
        ("beta/view", offsets(0, 80, |o| o % 4 == 2)),
        ("beta/click", offsets(0, 80, |o| o % 4 == 3)),
    ]
    .map(|(lane, offsets)| (lane.to_owned(), offsets))
    .into();
    let some = |keep: &dyn Fn(&str) -> bool, from: u64| -> BTreeMap<String, Vec<u64>> {
        let lanes = all.iter().filter(|(lane, _)| keep(lane));
        let kept = |offsets: &Vec<u64>| offsets.iter().copied().filter(|o| from <= *o).collect();
        lanes.map(|(lane, offsets)| (lane.clone(), kept(offsets))).collect()
    };
    assert_eq!(memories["all"].lanes(), all);
    assert_eq!(memories["small"].lanes(), all);
    assert_eq!(memories["of_acme"].lanes(), some(&|lane| lane.starts_with("acme/"), 0));
    assert_eq!(memories["clicks"].lanes(), some(&|lane| lane.ends_with("/click"), 0));
    assert_eq!(memories["late"].lanes(), some(&|_| true, 20));
    assert!(memories["small"].largest() == 1 && 1 < memories["all"].largest());

    let status = sinks.status();
    let down = of(&status, "down");
    assert!(matches!(down.partitions[0].state, SinkState::Waiting { .. }), "{down:?}");
    assert_eq!((down.lag_events, down.freshness.state), (80, Some(Met::Missed)));
    assert_eq!(of(&status, "all").freshness.state, Some(Met::Met));
    assert_eq!(of(&status, "of_acme").freshness.state, None);
    for counts in sinks.counts().unwrap() {
        let stored: u64 = counts.lanes.values().map(|lane| lane.stored).sum();
        let skipped: u64 = counts.lanes.values().map(|lane| lane.skipped).sum();
        let pending: u64 = counts.pending.values().sum();
        assert_eq!(stored + skipped + pending, 80, "{}", counts.sink);
        let wanted = match counts.sink.as_str() {
            "of_acme" | "clicks" => (40, 40, 0),
            "late" => (60, 20, 0),
            "down" => (0, 0, 80),
            _ => (80, 0, 0),
        };
        assert_eq!((stored, skipped, pending), wanted, "{}", counts.sink);
    }

    memories["down"].is_down.store(false, Ordering::SeqCst);
    eventually("it has caught up", || memories["down"].lanes() == all);
    pipe.runtime.block_on(sinks.drain(Duration::from_secs(20)));
    sinks.stop();
    tally.survived(1);
}

/// Scenario: a sink is drained while others go on appending to the log, which they share, until it has ended.
/// Guarantees: it ends with what was in the log when it was told to, not with what comes after.
#[test]
fn a_drain_ends_although_others_go_on_appending() {
    let mut pipe = Pipe::new();
    let config = config(10);
    let before = pipe.append("acme", &[("view", "{}", None)]);
    let sinks = pipe.start(&config);
    let runtime = pipe.runtime.handle().clone();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| runtime.block_on(sinks.drain(Duration::from_secs(20))));
        while !draining.is_finished() {
            pipe.append("acme", &[("view", "{}", None)]);
        }
    });
    assert_eq!(sinks.status()[0].partitions[0].state, SinkState::Drained);
    sinks.stop();
    assert!(pipe.offsets(&config)["acme/view"].contains(&before.0));
}

/// Notes what it is told, in order.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Sink for Told {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        self.0.lock().unwrap().push(format!("write {}", rows.partition));
        Ok(())
    }

    fn begins_with(&self, partition: Partition) {
        self.0.lock().unwrap().push(format!("begin {partition}"));
    }

    fn probe(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Scenario: a partition of a shared log comes, goes to another process and comes back.
/// Guarantees: each time, before anything of it is written, the sink is told to forget what it knows of it.
#[test]
fn a_sink_is_told_when_a_partition_begins_before_it_writes() {
    let mut pipe = Pipe::new();
    let told = Arc::new(Told::default());
    let parts = SinkParts { shared_as: Some("me".to_owned()), ..pipe.parts(Arc::new(Disk)) };
    let opened = vec![(configured("told", ""), Arc::clone(&told) as Arc<dyn Sink>)];
    let sinks = sink::start_with(opened, &parts).unwrap();
    let partition = Partition(0);
    let states = Files { storage: Arc::new(Disk), dir: pipe.data().join("sinks"), partition };
    let mut expected = Vec::new();
    for _ in 0..2 {
        fill(&mut pipe, 1);
        assert_eq!(*told.0.lock().unwrap(), expected, "it is nobody's yet");
        sinks.own(&parts.logs[0], &states).unwrap();
        pipe.clock.advance(5_000_000);
        expected.push("begin 0".to_owned());
        expected.extend(vec!["write 0".to_owned(); 4]);
        eventually("it is written", || *told.0.lock().unwrap() == expected);
        assert!(sinks.disown(partition, Duration::from_secs(20)));
    }
    sinks.stop();
}
