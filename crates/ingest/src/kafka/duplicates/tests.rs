//! Random histories of one partition: appends, sinks that promise and finish windows, owners that fail to
//! write, are cut off, and are followed by others, with other settings. Does not prove that Kafka cuts an
//! owner off (tests/e2e/test_kafka_dedup.py).

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tidegate_event::{
    BatchEncoder, BatchView, Code, EventType, Offset, OffsetRange, Partition, ReceivedAt,
    SchemaRef, TenantId,
    record::{Record, base_id},
};

use super::*;
use crate::{
    clock::ManualClock,
    kafka::ledger::{Ledger, Remembering},
    log::LogConfig,
    sink::{
        source::{LogSource, SourceEntry, SourceError, SourceFrame, SourceHold, SourceReader},
        state::{Intent, SaveError},
    },
    writer::{KnownIds, WriterSettings},
};

const SECOND: i64 = 1_000_000;
const START: i64 = 1_000_000 * SECOND;
const P: Partition = Partition(0);
const SINKS: usize = 2;

/// One event of the history.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Of type `a` (ids known for 600 s) or `b` (60 s).
    second: bool,
    id: Option<u8>,
    /// Seconds since the one before; may be less than 0.
    after: i64,
    dead: bool,
    redrive: bool,
}

#[derive(Clone, Copy, Debug)]
enum Put {
    Works,
    Fails,
    /// It was written, and nobody was told.
    Unheard,
}

#[derive(Clone, Debug)]
enum Act {
    Append(Vec<Event>),
    Count(Put),
    /// A sink promises so many entries.
    Promise(usize, usize),
    /// And has them written.
    Finish(usize),
    Save(Put),
    /// Another owner, with these settings: how long ids are known, how many.
    Owner(u64, usize),
    /// The one before does not know yet, and goes on.
    Zombie,
    Clock(i64),
}

/// A partition in memory.
#[derive(Clone, Default)]
struct Topic(Arc<Mutex<Vec<(i64, SourceFrame)>>>);

struct TopicReader(Topic, u64);

struct Nothing;

impl SourceHold for Nothing {
    fn advance(&mut self, _: Offset) {}
}

impl LogSource for Topic {
    fn log_id(&self) -> &str {
        "abcd1234"
    }
    fn partition(&self) -> Partition {
        P
    }
    fn earliest(&self) -> Offset {
        Offset(0)
    }
    fn latest(&self) -> Offset {
        Offset(self.0.lock().unwrap().len() as u64)
    }
    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(Box::new(TopicReader(self.clone(), from.0)))
    }
    fn offset_at(&self, since: ReceivedAt) -> Offset {
        let all = self.0.lock().unwrap();
        Offset(all.iter().position(|(at, _)| since.0 <= *at).unwrap_or(all.len()) as u64)
    }
    fn wait_past(&self, seen: Offset, _: Duration) -> bool {
        seen < self.latest()
    }
    fn bytes_since(&self, _: Offset) -> u64 {
        0
    }
    fn hold(&self, _: &str) -> Box<dyn SourceHold> {
        Box::new(Nothing)
    }
}

impl SourceReader for TopicReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        let all = self.0.0.lock().unwrap();
        let next = all.get(self.1 as usize).map(|(_, frame)| frame.clone());
        self.1 += u64::from(next.is_some());
        // Every fifth offset is no event's, as a transaction's mark.
        Ok(next.map(|frame| match frame.count {
            0 => SourceEntry::Empty(OffsetRange::new(frame.base, frame.base.plus(1)).unwrap()),
            _ => SourceEntry::Frame(frame),
        }))
    }
}

impl Topic {
    fn append(&self, event: &Event, at: i64) {
        let mut all = self.0.lock().unwrap();
        let base = Offset(all.len() as u64);
        let received_at = ReceivedAt(at);
        let mut batch = BatchEncoder::new(
            TenantId::new("acme").unwrap(),
            "events",
            received_at,
            base_id(u128::from(base.0 + 1).to_be_bytes()),
            0,
        );
        let id = event.id.map(|id| format!("id-{id}"));
        batch.push(&Record {
            index: 0,
            event_type: &EventType::new(if event.second { "b" } else { "a" }).unwrap(),
            schema: SchemaRef::default(),
            client_id: id.as_deref(),
            event_time: received_at.as_event_time(),
            dead: event.dead.then_some(Code::from_number(1).unwrap()),
            pii_changed: false,
            note: if event.redrive { r#"{"redrive_of":"0/1"}"# } else { "" },
            raw: format!(r#"{{"n":{base}}}"#).as_bytes(),
        });
        let body = batch.finish().body;
        all.push((at, SourceFrame { base, count: 1, received_at, body }));
    }

    fn mark(&self, at: i64) {
        let mut all = self.0.lock().unwrap();
        let base = Offset(all.len() as u64);
        let received_at = ReceivedAt(at);
        all.push((at, SourceFrame { base, count: 0, received_at, body: bytes::Bytes::new() }));
    }
}

/// The state topic: one owner at a time.
#[derive(Default)]
struct Kafka {
    values: Mutex<HashMap<String, Vec<u8>>>,
    owner: AtomicU64,
    put: Mutex<Option<Put>>,
}

struct OwnersStore {
    kafka: Arc<Kafka>,
    me: u64,
    /// As they were when the partition was taken over.
    values: Mutex<HashMap<String, Vec<u8>>>,
}

impl OwnersStore {
    fn take_over(kafka: &Arc<Kafka>) -> Arc<Self> {
        let me = kafka.owner.fetch_add(1, Ordering::SeqCst) + 1;
        let values = Mutex::new(kafka.values.lock().unwrap().clone());
        Arc::new(Self { kafka: Arc::clone(kafka), me, values })
    }

    fn is_owner(&self) -> bool {
        self.kafka.owner.load(Ordering::SeqCst) == self.me
    }
}

impl Store for OwnersStore {
    fn keys(&self) -> Vec<String> {
        self.values.lock().unwrap().keys().cloned().collect()
    }
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.values.lock().unwrap().get(key).cloned()
    }
    fn take(&self, key: &str) -> Option<Vec<u8>> {
        self.values.lock().unwrap().remove(key)
    }
    fn put_all(&self, values: &[(String, Option<Vec<u8>>)]) -> Result<(), SaveError> {
        if !self.is_owner() {
            return Err(SaveError::Fenced);
        }
        let put = self.kafka.put.lock().unwrap().take().unwrap_or(Put::Works);
        if !matches!(put, Put::Fails) {
            let mut all = self.kafka.values.lock().unwrap();
            for (key, value) in values {
                match value {
                    Some(value) => all.insert(key.clone(), value.clone()),
                    None => all.remove(key),
                };
            }
        }
        match put {
            Put::Works => Ok(()),
            Put::Fails | Put::Unheard => Err(SaveError::Io(std::io::Error::other("planted"))),
        }
    }
}

/// Who has the partition, or believes so.
struct Owner {
    store: Arc<OwnersStore>,
    ledger: Ledger,
    view: DecidedLog,
}

fn settings(window: u64, ids: usize) -> WriterSettings {
    let mut settings = WriterSettings::new(&LogConfig::default(), 1 << 20, Duration::from_secs(1));
    settings.dedup_window = Duration::from_secs(window);
    settings.dedup_windows = [(EventType::new("b").unwrap(), Duration::from_secs(60))].into();
    settings.dedup_ids = ids;
    settings
}

struct World {
    topic: Topic,
    kafka: Arc<Kafka>,
    clock: Arc<ManualClock>,
    at: i64,
    owner: Owner,
    before: Option<Owner>,
    sinks: Vec<SinkModel>,
    record_bytes: u64,
}

#[derive(Default)]
struct SinkModel {
    cursor: u64,
    promised: Option<(u64, Vec<u64>)>,
    /// Offsets it has as rows.
    rows: Vec<u64>,
}

fn own(
    topic: &Topic,
    kafka: &Arc<Kafka>,
    clock: &Arc<ManualClock>,
    settings: &WriterSettings,
    record_bytes: u64,
) -> Owner {
    let store = OwnersStore::take_over(kafka);
    let ids = settings.dedup_ids;
    let known = KnownIds::new(settings, P);
    let remembering = Remembering { known, ids_max: Arc::new(move || ids), record_bytes };
    let ledger =
        Ledger::open(Arc::new(topic.clone()), store.clone(), clock.clone(), remembering).unwrap();
    let view = DecidedLog::new(Arc::new(topic.clone()), Arc::clone(ledger.decisions()));
    Owner { store, ledger, view }
}

impl Owner {
    /// The rows that a sink sees from `from` to `to`, at most `most` entries; and where that ends.
    fn read(&self, from: u64, to: u64, most: usize) -> (u64, Vec<u64>) {
        let mut reader = self.view.read_from(Offset(from)).unwrap();
        let (mut at, mut rows) = (from, Vec::new());
        for _ in 0..most {
            if to <= at {
                break;
            }
            match reader.next().unwrap() {
                None => break,
                Some(SourceEntry::Frame(frame)) => {
                    assert_eq!(BatchView::parse(&frame.body).unwrap().count, 1);
                    assert_eq!(frame.base.0, at);
                    rows.push(at);
                    at = frame.end().0;
                }
                Some(SourceEntry::Empty(range) | SourceEntry::Quarantined(range)) => {
                    assert_eq!(range.from().0, at);
                    at = range.to().0;
                }
            }
        }
        (at, rows)
    }

    fn count(&self) {
        let end = self.ledger.log().latest();
        // That it fails is part of the history.
        let _counted = self.ledger.count_up_to(end, None, || true);
    }
}

impl World {
    fn new(window: u64, ids: usize, record_bytes: u64) -> Self {
        let (topic, kafka) = (Topic::default(), Arc::new(Kafka::default()));
        let clock = Arc::new(ManualClock::new(START));
        let owner = own(&topic, &kafka, &clock, &settings(window, ids), record_bytes);
        let sinks = (0..SINKS).map(|_| SinkModel::default()).collect();
        Self { topic, kafka, clock, at: START, owner, before: None, sinks, record_bytes }
    }

    fn save_sink(&mut self, sink: usize, cursor: u64, to: Option<u64>) -> bool {
        let mut state = State::new("abcd1234", P, Offset(cursor));
        state.intent = to
            .and_then(|to| OffsetRange::new(Offset(cursor), Offset(to)))
            .map(|window| Intent { window, rows: 0, hash: String::new(), schemas: Vec::new() });
        let value = (format!("sink/s{sink}/0"), Some(state.encode().unwrap()));
        self.owner.store.put_all(&[value]).is_ok()
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Append(events) => {
                for event in events {
                    self.at += event.after * SECOND;
                    self.clock.advance(event.after * SECOND);
                    self.topic.append(event, self.at);
                    if self.topic.latest().0 % 5 == 4 {
                        self.topic.mark(self.at);
                    }
                }
            }
            Act::Count(put) => {
                *self.kafka.put.lock().unwrap() = Some(*put);
                self.owner.count();
                self.kafka.put.lock().unwrap().take();
            }
            Act::Promise(sink, most) => {
                let SinkModel { cursor, promised: None, .. } = self.sinks[*sink] else { return };
                let (to, rows) = self.owner.read(cursor, u64::MAX, *most);
                if cursor < to && self.save_sink(*sink, cursor, Some(to)) {
                    self.sinks[*sink].promised = Some((to, rows));
                }
            }
            Act::Finish(sink) => {
                let Some((to, rows)) = self.sinks[*sink].promised.take() else { return };
                assert!(self.save_sink(*sink, to, None));
                self.sinks[*sink].rows.extend(rows);
                self.sinks[*sink].cursor = to;
            }
            Act::Save(put) => {
                *self.kafka.put.lock().unwrap() = Some(*put);
                let _saved = self.owner.ledger.save(true);
                self.kafka.put.lock().unwrap().take();
            }
            Act::Owner(window, ids) => {
                let with = settings(*window, *ids);
                let next = own(&self.topic, &self.kafka, &self.clock, &with, self.record_bytes);
                self.before = Some(std::mem::replace(&mut self.owner, next));
                self.check_same_again();
            }
            Act::Zombie => {
                if let Some(before) = &self.before {
                    before.count();
                    assert!(matches!(before.store.put_all(&[]), Err(SaveError::Fenced)));
                }
            }
            Act::Clock(seconds) => self.clock.advance(seconds * SECOND),
        }
    }

    /// What was promised, and what was written, is read again with the same rows.
    fn check_same_again(&self) {
        for sink in &self.sinks {
            if let Some((to, rows)) = &sink.promised {
                let again = self.owner.read(sink.cursor, *to, usize::MAX);
                assert_eq!(again, (*to, rows.clone()), "a promised window is another one");
            }
            let again = self.owner.read(0, sink.cursor, usize::MAX);
            assert_eq!(again, (sink.cursor, sink.rows.clone()), "what was written is not the same");
        }
    }

    /// Everything is counted and written; the offsets that every sink has.
    fn end(&mut self) -> Vec<u64> {
        for _ in 0..3 {
            self.owner.count();
        }
        let latest = self.topic.latest().0;
        for sink in 0..SINKS {
            self.act(&Act::Finish(sink));
            self.act(&Act::Promise(sink, usize::MAX));
            self.act(&Act::Finish(sink));
            assert_eq!(self.sinks[sink].cursor, latest, "a sink does not come to the end");
        }
        self.check_same_again();
        let rows = self.sinks[0].rows.clone();
        assert!(self.sinks.iter().all(|sink| sink.rows == rows), "the sinks differ");
        let copy = self.owner.ledger.copy();
        let sum = |of: fn(&crate::writer::Totals) -> u64| copy.types.values().map(of).sum::<u64>();
        let kept = sum(|t| t.accepted) + sum(|t| t.dead_lettered);
        let events =
            self.topic.0.lock().unwrap().iter().filter(|(_, f)| f.count == 1).count() as u64;
        assert_eq!((kept, copy.lost), (rows.len() as u64, 0), "the books differ from the sinks");
        assert_eq!(kept + sum(|t| t.deduplicated), events, "the books do not balance");
        rows
    }
}

/// What a single owner that never fails would let through.
fn expected(topic: &Topic, events: &[Event], window: i64) -> Vec<u64> {
    let (mut known, mut kept, mut now) = (BTreeMap::<(bool, u8, bool), i64>::new(), Vec::new(), 0);
    let all = topic.0.lock().unwrap();
    let frames = all.iter().filter(|(_, frame)| frame.count == 1);
    for ((at, frame), event) in frames.zip(events) {
        now = now.max(*at);
        let Some(id) = event.id else {
            kept.push(frame.base.0);
            continue;
        };
        known.retain(|(second, _, _), seen| {
            now - if *second { 60 * SECOND } else { window * SECOND } <= *seen
        });
        let (live, own) = ((event.second, id, false), (event.second, id, event.dead));
        let is_known = known.contains_key(&live) || known.contains_key(&own);
        if !is_known || event.redrive {
            known.insert(own, *at);
        }
        if !is_known || event.redrive {
            kept.push(frame.base.0);
        }
    }
    kept
}

fn events(times: std::ops::Range<i64>) -> impl Strategy<Value = Vec<Event>> {
    let one = (any::<bool>(), proptest::option::weighted(0.85, 0u8..6), times, 0u8..10);
    let one = one.prop_map(|(second, id, after, what)| Event {
        second,
        id,
        after,
        dead: what < 2,
        redrive: what == 9,
    });
    proptest::collection::vec(one, 1..8)
}

fn put() -> impl Strategy<Value = Put> {
    prop_oneof![4 => Just(Put::Works), 1 => Just(Put::Fails), 1 => Just(Put::Unheard)]
}

fn acts(
    times: std::ops::Range<i64>,
    owners: impl Strategy<Value = (u64, usize)>,
) -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        5 => events(times).prop_map(Act::Append),
        4 => put().prop_map(Act::Count),
        4 => (0..SINKS, 1usize..12).prop_map(|(sink, most)| Act::Promise(sink, most)),
        3 => (0..SINKS).prop_map(Act::Finish),
        1 => put().prop_map(Act::Save),
        2 => owners.prop_map(|(window, ids)| Act::Owner(window, ids)),
        1 => Just(Act::Zombie),
    ];
    proptest::collection::vec(one, 1..60)
}

fn appended(acts: &[Act]) -> Vec<Event> {
    let each = acts.iter().filter_map(|act| match act {
        Act::Append(events) => Some(events.clone()),
        _ => None,
    });
    each.flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Scenario: owners with the same settings, at any point, also while one goes on that has lost the
    /// partition.
    /// Guarantees: each sink has exactly the events that one owner without faults would have let through.
    #[test]
    fn whoever_owns_the_partition_meanwhile_each_sink_gets_each_id_once(
        acts in acts(0..100, Just((600, 1_000)))
    ) {
        let mut world = World::new(600, 1_000, u64::MAX);
        acts.iter().for_each(|act| world.act(act));
        let rows = world.end();
        prop_assert_eq!(rows, expected(&world.topic, &appended(&acts), 600));
    }

    /// Scenario: each owner remembers ids for another time and another number of them, or none; clocks
    /// jump, events come out of order.
    /// Guarantees: what was promised comes again with the same rows, all sinks get the same, the books
    /// balance.
    #[test]
    fn whatever_the_owners_settings_what_was_promised_comes_again(
        acts in acts(-400..500, (prop_oneof![Just(0), Just(60), Just(600)], 0usize..8)),
        jumps in proptest::collection::vec((any::<prop::sample::Index>(), -5_000i64..5_000), 0..4),
        bound in prop_oneof![Just(u64::MAX), Just(8u64)],
    ) {
        let mut acts = acts;
        for (index, seconds) in jumps {
            acts.insert(index.index(acts.len()), Act::Clock(seconds));
        }
        let mut world = World::new(600, 5, bound);
        acts.iter().for_each(|act| world.act(act));
        let rows = world.end();
        prop_assert!(rows.is_sorted());
    }
}

fn event(id: u8, after: i64) -> Event {
    Event { second: false, id: Some(id), after, dead: false, redrive: false }
}

#[test]
fn a_duplicate_that_was_written_down_unheard_stays_one() {
    let mut world = World::new(600, 10, u64::MAX);
    world.act(&Act::Append(vec![event(1, 0), event(1, 1)]));
    world.act(&Act::Count(Put::Unheard));
    assert_eq!(world.owner.view.latest(), Offset(0), "nothing is shown that may not be durable");
    world.act(&Act::Owner(0, 0));
    assert_eq!(world.end(), [0]);
}

#[test]
fn an_owner_learns_no_more_than_it_needs_and_says_what_it_lacks() {
    let mut world = World::new(600, 3, u64::MAX);
    world.act(&Act::Append((0..60).map(|id| event(id, 1)).collect()));
    world.act(&Act::Count(Put::Works));
    world.act(&Act::Save(Put::Works));
    world.act(&Act::Owner(600, 3));
    world.act(&Act::Append(vec![event(59, 1), event(1, 1)]));
    let rows = world.end();
    let last = world.topic.latest().0 - 1;
    assert!(!rows.contains(&(last - 1)), "the latest ids are known");
    assert!(rows.contains(&last), "older ones are not");
    let told = world.owner.ledger.dedup().unwrap();
    let all = told.windows.iter().find(|window| window.window_seconds == 600).unwrap();
    assert!(all.kept_seconds < 60, "{told:?}");
}

#[test]
fn where_no_more_can_be_written_down_nothing_more_is_dropped_and_that_is_told() {
    let mut world = World::new(600, 100, 8);
    let twice = |id: u8| [event(id, 1), event(100 + id, 1), event(id, 1)];
    for id in 0..4 {
        world.act(&Act::Append(twice(id).to_vec()));
        world.act(&Act::Count(Put::Works));
    }
    assert!(world.owner.ledger.is_full());
    let rows = world.end();
    let events = 12;
    assert_eq!(rows.len(), events - 2, "two runs, then no more");
}
