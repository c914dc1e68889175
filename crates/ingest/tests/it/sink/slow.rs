//! A tenant whose writes are slow, or do not end: the others' go on, and each event is there once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidegate_event::Offset;
use tidegate_ingest::{
    sink::{self, LaneRows, Sink, SinkConfig, Sinks, WriteError},
    storage::Disk,
};

use crate::tally::Tally;

use super::{
    Pipe, config, eventually,
    faults::{Fate, FatefulDisk, How},
    open_lake,
};

const NOTHING: &[(&str, &str, Option<tidegate_event::Code>)] = &[("view", "{}", None)];

/// What becomes of acme's writes. The others' go to the lake at once.
#[derive(Clone, Copy, PartialEq)]
enum Door {
    Open,
    Slow(Duration),
    /// A write waits until the door is opened, and is done then.
    Closed,
    /// What waits, or comes, ends with an error and is not done.
    Barred,
}

struct Gate {
    lake: Arc<dyn Sink>,
    door: Mutex<Door>,
    moved: Condvar,
    /// Writes that wait at the door.
    waiting: AtomicUsize,
    at_once: Mutex<BTreeMap<String, u32>>,
}

impl Gate {
    fn new(pipe: &Pipe, config: &SinkConfig, door: Door) -> Arc<Self> {
        let lake = open_lake(pipe, config, Arc::new(Disk), &|store| store).unwrap();
        let (door, moved) = (Mutex::new(door), Condvar::new());
        let (waiting, at_once) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { lake, door, moved, waiting, at_once })
    }

    fn set(&self, door: Door) {
        *self.door.lock().unwrap() = door;
        self.moved.notify_all();
    }

    fn pass(&self) -> Result<(), WriteError> {
        let mut door = self.door.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *door == Door::Closed {
            door = self.moved.wait(door).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match *door {
            Door::Slow(delay) => {
                drop(door);
                std::thread::sleep(delay);
                Ok(())
            }
            Door::Barred => Err(WriteError::Retry { cause: "barred".to_owned() }),
            Door::Open | Door::Closed => Ok(()),
        }
    }

    fn is_waited_at(&self) -> bool {
        0 < self.waiting.load(Ordering::SeqCst)
    }
}

impl Sink for Gate {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        let lane = rows.lane.to_string();
        let count = |by: i32| {
            let mut at_once = self.at_once.lock().unwrap();
            let writes = at_once.entry(lane.clone()).or_default();
            *writes = writes.checked_add_signed(by).unwrap();
            *writes
        };
        assert_eq!(count(1), 1, "two writes of {lane} at once");
        let passed = if rows.lane.tenant.as_str() == "acme" { self.pass() } else { Ok(()) };
        let written = passed.and_then(|()| self.lake.write(rows));
        count(-1);
        written
    }

    fn probe(&self) -> Result<(), String> {
        self.lake.probe()
    }
}

fn start(pipe: &Pipe, config: &SinkConfig, gate: &Arc<Gate>) -> Sinks {
    let sink = Arc::clone(gate) as Arc<dyn Sink>;
    sink::start_with(vec![(config.clone(), sink)], &pipe.parts(Arc::new(Disk))).unwrap()
}

fn round(pipe: &mut Pipe) {
    for tenant in ["acme", "beta", "gamma"] {
        pipe.append(tenant, NOTHING);
    }
}

fn cursor(sinks: &Sinks) -> u64 {
    sinks.cursors()[0].2.0
}

/// Acme's events are at 0, 3, 6 and so on, then beta's, then gamma's.
fn assert_each_once(pipe: &Pipe, config: &SinkConfig, events: u64) {
    let offsets = pipe.offsets(config);
    for (first, tenant) in (0..).zip(["acme", "beta", "gamma"]) {
        let expected: Vec<u64> = (first..events).step_by(3).collect();
        assert_eq!(offsets.get(&format!("{tenant}/view")), Some(&expected), "{tenant}");
    }
}

/// Scenario: acme's first write does not end.
/// Guarantees: it is taken from the main loop, the others' later windows land while it hangs, also
/// after a restart; once it ends, acme's events follow in their order, each once.
#[test]
fn a_write_that_hangs_is_handed_off_and_the_others_go_on() {
    let mut tally = Tally::new("sink::slow", "slow sink", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(3);
    let gate = Gate::new(&pipe, &config, Door::Closed);
    (0..4).for_each(|_| round(&mut pipe));
    let sinks = start(&pipe, &config, &gate);
    eventually("the others were written", || cursor(&sinks) == 12);
    assert!(gate.is_waited_at(), "acme's write goes on");
    assert_eq!(pipe.offsets(&config)["gamma/view"], [2, 5, 8, 11]);
    let status = sinks.status().remove(0);
    assert_eq!((status.held.len(), status.held[0].pending_events, status.lag_events), (1, 4, 4));
    assert_eq!(sinks.counts().unwrap()[0].pending.values().sum::<u64>(), 4);
    // Nothing it needs goes: its window is its own intent now.
    assert_eq!(pipe.log.handle().lowest_hold().unwrap().1.0, 0);
    gate.set(Door::Barred);
    sinks.stop();
    drop(sinks);
    gate.set(Door::Closed);
    let sinks = start(&pipe, &config, &gate);
    round(&mut pipe);
    eventually("the others go on after a restart", || cursor(&sinks) == 15);
    assert!(gate.is_waited_at());
    gate.set(Door::Open);
    eventually("acme has caught up", || sinks.status()[0].lag_events == 0);
    pipe.drain(&sinks);
    assert_each_once(&pipe, &config, 15);
    let counts = sinks.counts().unwrap().remove(0);
    assert_eq!(counts.lanes.values().map(|lane| lane.stored).sum::<u64>(), 15);
    assert_eq!(pipe.log.handle().lowest_hold().unwrap().1.0, 15);
    tally.survived(1);
}

/// Scenario: acme's writes succeed, and take long; later they do not end for a while; then they are
/// as fast as any.
/// Guarantees: acme is written alone meanwhile, without a hand-off, and with the others again in the
/// end.
#[test]
fn a_slow_lane_is_written_alone_until_it_is_fast() {
    let mut tally = Tally::new("sink::slow", "slow sink", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(3);
    let gate = Gate::new(&pipe, &config, Door::Slow(Duration::from_millis(1_200)));
    // The first window has nothing to compare acme with, the second has.
    (0..2).for_each(|_| round(&mut pipe));
    let sinks = start(&pipe, &config, &gate);
    eventually("acme is slow", || {
        let held = sinks.status().remove(0).held;
        held.len() == 1 && held[0].error.starts_with("slow") && held[0].pending_events == 0
    });
    assert_each_once(&pipe, &config, 6);
    gate.set(Door::Closed);
    (0..3).for_each(|_| round(&mut pipe));
    eventually("the others do not wait for it", || cursor(&sinks) == 15);
    eventually("acme is tried alone", || gate.is_waited_at());
    assert_eq!(pipe.offsets(&config)["acme/view"], [0, 3]);
    assert_eq!(pipe.offsets(&config)["beta/view"], [1, 4, 7, 10, 13]);
    gate.set(Door::Open);
    eventually("it goes with the others again", || {
        if sinks.status()[0].lag_events == 0 {
            round(&mut pipe);
        }
        sinks.status()[0].held.is_empty()
    });
    pipe.drain(&sinks);
    assert_each_once(&pipe, &config, pipe.log.handle().latest().0);
    tally.survived(1);
}

/// Scenario: none of acme's three lanes can be written, each write hangs.
/// Guarantees: acme takes its two seats and no more, its third lane is held untried, the others go
/// on; and all of it is there once in the end.
#[test]
fn a_tenant_whose_lanes_all_hang_takes_no_more_than_its_seats() {
    let mut tally = Tally::new("sink::slow", "slow sink", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(7);
    let gate = Gate::new(&pipe, &config, Door::Closed);
    let types = [("a", "{}", None), ("b", "{}", None), ("c", "{}", None)];
    for _ in 0..3 {
        pipe.append("acme", &types);
        (0..4).for_each(|_| assert!(pipe.append("beta", NOTHING) < Offset(21)));
    }
    let sinks = start(&pipe, &config, &gate);
    eventually("beta is written", || cursor(&sinks) == 21);
    let status = sinks.status().remove(0);
    assert_eq!((status.held.len(), gate.waiting.load(Ordering::SeqCst)), (3, 2), "{status:?}");
    assert_eq!(pipe.offsets(&config)["beta/view"].len(), 12);
    gate.set(Door::Open);
    eventually("acme has caught up", || sinks.status()[0].lag_events == 0);
    pipe.drain(&sinks);
    let offsets = pipe.offsets(&config);
    for (first, name) in (0..).zip(["acme/a", "acme/b", "acme/c"]) {
        assert_eq!(offsets[name], [first, first + 7, first + 14]);
    }
    tally.survived(1);
}

/// Scenario: the whole destination hangs, probe and all.
/// Guarantees: no lane is held for it, and it goes on by itself.
#[test]
fn a_destination_that_hangs_as_a_whole_holds_no_lane() {
    struct Deaf(Gate);
    impl Sink for Deaf {
        fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
            self.0.pass().and_then(|()| self.0.lake.write(rows))
        }
        fn probe(&self) -> Result<(), String> {
            self.0.pass().map_err(|error| error.to_string())
        }
    }
    let mut tally = Tally::new("sink::slow", "sink down", &["P2", "P3", "P5"]);
    let mut pipe = Pipe::new();
    let config = config(3);
    let gate = Arc::into_inner(Gate::new(&pipe, &config, Door::Closed)).unwrap();
    let deaf = Arc::new(Deaf(gate));
    round(&mut pipe);
    let sink = Arc::clone(&deaf) as Arc<dyn Sink>;
    let sinks =
        sink::start_with(vec![(config.clone(), sink)], &pipe.parts(Arc::new(Disk))).unwrap();
    eventually("the sink says that it waits", || {
        let state = &sinks.status()[0].partitions[0].state;
        matches!(state, sink::SinkState::Waiting { error, .. } if error.contains("not answer"))
    });
    assert_eq!((cursor(&sinks), sinks.status()[0].held.len()), (0, 0));
    deaf.0.set(Door::Open);
    eventually("it goes on", || cursor(&sinks) == 3);
    pipe.drain(&sinks);
    assert_each_once(&pipe, &config, 3);
    tally.survived(1);
}

/// Scenario: acme's write hangs and is handed off; the sink's state files are struck at their `at`th
/// operation; the write that hung lands after that, or does not.
/// Guarantees: each event is there once after the next start. Says whether fate struck.
fn hand_off_struck(at: u64, how: How, lands: bool) -> bool {
    let mut pipe = Pipe::new();
    let config = config(3);
    (0..2).for_each(|_| round(&mut pipe));
    let gate = Gate::new(&pipe, &config, Door::Closed);
    let fate = Fate::new(at, how);
    let disk = Arc::new(FatefulDisk(Arc::clone(&fate)));
    let sink = Arc::clone(&gate) as Arc<dyn Sink>;
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        sink::start_with(vec![(config.clone(), sink)], &pipe.parts(disk)).ok()
    }));
    if let Ok(Some(sinks)) = started {
        let struck = || fate.struck.load(Ordering::SeqCst);
        let dies = matches!(how, How::DieBefore | How::DieAfter);
        eventually("it is struck, or acme alone is left", || {
            (dies && struck()) || (cursor(&sinks) == 6 && gate.is_waited_at())
        });
        gate.set(if lands { Door::Open } else { Door::Barred });
        eventually("it is struck, or all is written", || {
            let left = sinks.status()[0].lag_events;
            let over = if lands { left == 0 } else { 3 < at && !gate.is_waited_at() };
            struck() || over
        });
        sinks.stop();
    }
    gate.set(Door::Open);
    pipe.run(&config);
    assert_each_once(&pipe, &config, 6);
    fate.struck.load(Ordering::SeqCst)
}

fn sweep(how: How, lands: bool) {
    let (next, last) = (AtomicU64::new(1), AtomicU64::new(u64::MAX));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    if last.load(Ordering::SeqCst) <= at {
                        return;
                    }
                    if !hand_off_struck(at, how, lands) {
                        last.fetch_min(at, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let operations = last.load(Ordering::SeqCst);
    Tally::new("sink::slow", "kill -9", &["P2"]).survived(operations - 1);
    assert!(15 < operations, "only {operations} operations were struck");
}

#[test]
fn a_death_in_a_hand_off_whose_write_lands_costs_nothing() {
    sweep(How::DieBefore, true);
}

#[test]
fn a_death_after_an_operation_of_a_hand_off_costs_nothing() {
    sweep(How::DieAfter, true);
}

#[test]
fn a_death_in_a_hand_off_whose_write_never_lands_costs_nothing() {
    sweep(How::DieAfter, false);
}
