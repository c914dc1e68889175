//! The ids of a partition against a plain list: random ids, times, groups that fail, restarts, an index
//! that is cut, damaged, old or gone, and a log that ends earlier than it did.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, fs, path::Path, sync::atomic::Ordering, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;
use tidegate_event::{
    BatchEncoder, Code, EncodedBatch, EventTime, EventType, SchemaRef, TenantId, record::Record,
};

use super::*;
use crate::{
    clock::ManualClock,
    config::Size,
    log::{self, Codec, FrameBody, Log, LogConfig, faulty::FaultyDisk},
};

const SECOND: i64 = 1_000_000;
const START: i64 = 1_700_000_000 * SECOND;
/// The types, and for how many seconds their ids are remembered.
const TYPES: [(&str, u64); 3] = [("view", 10), ("order", 100), ("beat", 0)];

/// (type, id, whether a dead letter)
type Id = (usize, u8, bool);

fn batch(ids: &[Id], now: i64) -> EncodedBatch {
    let tenant = TenantId::new("acme").unwrap();
    let mut encoder = BatchEncoder::new(tenant, "events", ReceivedAt(now), [7; 16], 0);
    for (index, (event_type, id, dead)) in ids.iter().enumerate() {
        encoder.push(&Record {
            index: index as u32,
            event_type: &EventType::new(TYPES[*event_type].0).unwrap(),
            schema: SchemaRef::default(),
            client_id: Some(&id.to_string()),
            event_time: EventTime(now),
            dead: dead.then_some(Code::TypeMismatch),
            pii_changed: false,
            note: "",
            raw: b"{}",
        });
    }
    encoder.finish()
}

#[derive(Clone, Debug)]
enum Step {
    /// A group, and whether it becomes durable.
    Group(Vec<Id>, bool),
    Wait(i64),
    House(bool),
    /// The process ends; what becomes of the index before the next.
    Restart(Fate),
}

#[derive(Clone, Debug)]
enum Fate {
    Kept,
    Gone,
    /// Of the nth file so many thousandths are left.
    Cut(usize, usize),
    Flip(usize, usize),
    /// The nth file is gone.
    Missing(usize),
    /// As it was at the start before.
    Old,
}

fn step() -> impl Strategy<Value = Step> {
    let id = (0..3usize, 0..12u8, proptest::bool::weighted(0.2));
    let fate = prop_oneof![
        3 => Just(Fate::Kept),
        1 => Just(Fate::Gone),
        2 => (0..6usize, 0..1000usize).prop_map(|(file, part)| Fate::Cut(file, part)),
        2 => (0..6usize, 0..1000usize).prop_map(|(file, part)| Fate::Flip(file, part)),
        1 => (0..6usize).prop_map(Fate::Missing),
        1 => Just(Fate::Old),
    ];
    prop_oneof![
        6 => (proptest::collection::vec(id, 1..5), proptest::bool::weighted(0.85))
            .prop_map(|(ids, durable)| Step::Group(ids, durable)),
        3 => (0..30 * SECOND).prop_map(Step::Wait),
        3 => any::<bool>().prop_map(Step::House),
        2 => fate.prop_map(Step::Restart),
    ]
}

struct Run {
    dir: TempDir,
    disk: FaultyDisk,
    settings: WriterSettings,
    now: i64,
    clock: Arc<ManualClock>,
    /// What became durable, and when it was received.
    durable: Vec<(Id, i64)>,
    old: Vec<(String, Vec<u8>)>,
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

impl Run {
    fn new(ids_max: usize) -> Self {
        let disk = FaultyDisk::new();
        disk.0.sync_is_free.store(true, Ordering::SeqCst);
        let config = LogConfig { dedup_ids: ids_max, ..LogConfig::default() };
        let mut settings = WriterSettings::new(&config, 1 << 20, Duration::from_secs(1));
        settings.dedup_window = Duration::from_secs(TYPES[0].1);
        let own = TYPES[1..].iter();
        settings.dedup_windows =
            own.map(|(t, w)| (EventType::new(t).unwrap(), Duration::from_secs(*w))).collect();
        let dir = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(START));
        Self { dir, disk, settings, now: START, clock, durable: Vec::new(), old: Vec::new() }
    }

    fn index(&self) -> std::path::PathBuf {
        self.dir.path().join("log/partition-0/dedup")
    }

    fn wait(&mut self, micros: i64) {
        self.now += micros;
        self.clock.advance(micros);
    }

    fn open(&self) -> (Log, Dedup, Keyring) {
        let config = LogConfig {
            dir: self.dir.path().into(),
            segment_bytes: Size(2 << 10),
            ..LogConfig::default()
        };
        let clock = Arc::<ManualClock>::clone(&self.clock);
        let mut opened = log::open(Arc::new(self.disk.clone()), &config, clock).unwrap();
        let log = opened.partitions.remove(0);
        let end = log.handle().latest();
        let opened = Dedup::open(&log.handle(), &self.settings, ReceivedAt(self.now), end);
        let (dedup, keyring) = opened.unwrap();
        (log, dedup, keyring.unwrap())
    }

    /// As the writer does it.
    fn group(
        &mut self,
        log: &mut Log,
        dedup: &mut Dedup,
        ring: &Keyring,
        ids: &[Id],
        durable: bool,
    ) {
        let now = ReceivedAt(self.now);
        dedup.evict(now);
        let all = batch(ids, self.now);
        let keys = ring.keys(&all);
        let mut new: Vec<Id> = Vec::new();
        for (position, id) in (0..).zip(ids) {
            let key = keys.iter().find(|key| key.position == position);
            if key.is_none_or(|key| dedup.insert(key, now)) {
                new.push(*id);
            }
        }
        if !durable || new.is_empty() {
            dedup.undo();
            return;
        }
        let kept = batch(&new, self.now);
        let frame = FrameBody::prepare(kept.body, kept.count, now, Codec::None).unwrap();
        log.append(&[frame]).unwrap();
        dedup.keep(log.handle().latest(), now);
        self.durable.extend(new.into_iter().map(|id| (id, self.now)));
    }

    fn meddle(&mut self, fate: &Fate) {
        let dir = self.index();
        let now = files(&dir);
        let pick = |n: usize| now.get(n % now.len().max(1)).cloned();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
        match fate {
            Fate::Kept => {}
            Fate::Gone => now.iter().for_each(|(name, _)| fs::remove_file(dir.join(name)).unwrap()),
            Fate::Cut(n, part) => {
                if let Some((name, bytes)) = pick(*n) {
                    write(&name, &bytes[..bytes.len() * part / 1000]);
                }
            }
            Fate::Flip(n, part) => {
                if let Some((name, mut bytes)) = pick(*n).filter(|(_, bytes)| !bytes.is_empty()) {
                    let at = bytes.len() * part / 1000;
                    bytes[at] ^= 1 << (part % 8);
                    write(&name, &bytes);
                }
            }
            Fate::Missing(n) => {
                if let Some((name, _)) = pick(*n) {
                    fs::remove_file(dir.join(name)).unwrap();
                }
            }
            Fate::Old => {
                now.iter().for_each(|(name, _)| fs::remove_file(dir.join(name)).unwrap());
                self.old.iter().for_each(|(name, bytes)| write(name, bytes));
            }
        }
        self.old = now;
    }

    /// What is known, and what must be.
    fn check(&self, dedup: &mut Dedup, ring: &Keyring) {
        let now = ReceivedAt(self.now);
        dedup.evict(now);
        let mut last = BTreeMap::<Id, i64>::new();
        for (id, at) in &self.durable {
            let latest = last.entry(*id).or_insert(*at);
            *latest = (*latest).max(*at);
        }
        let within = |id: &Id, at: i64| at >= self.now - TYPES[id.0].1 as i64 * SECOND;
        assert!(dedup.memory.len() <= self.settings.dedup_ids);
        for id in (0..3).flat_map(|t| (0..12).flat_map(move |n| [(t, n, false), (t, n, true)])) {
            let Some(key) = ring.keys(&batch(&[id], self.now)).first().copied() else {
                assert_eq!(TYPES[id.0].1, 0, "only what is off has no key");
                continue;
            };
            let known = !dedup.insert(&key, now);
            dedup.undo();
            let copy = |dead: bool| last.get(&(id.0, id.1, dead)).filter(|at| within(&id, **at));
            let copies: Vec<i64> =
                [copy(id.2), copy(false)].into_iter().flatten().copied().collect();
            let lost = dedup.memory.lines()[usize::from(key.class)].lost;
            if known {
                assert!(
                    !copies.is_empty(),
                    "{id:?} is known and has no copy: a resend would be lost"
                );
            } else {
                assert!(copies.iter().all(|at| *at <= lost), "{id:?} has a copy and is not known");
            }
        }
        let mut most = 0;
        for (_, at) in &self.durable {
            let alive = |(id, t): &&(Id, i64)| t <= at && *t >= at - TYPES[id.0].1 as i64 * SECOND;
            most = most.max(self.durable.iter().filter(alive).count());
        }
        if most <= self.settings.dedup_ids {
            let shortened = dedup.memory.lines().iter().any(|l| l.lost != NEVER);
            assert!(!shortened, "there never were too many");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_durable_within_its_window_is_known_and_nothing_else(
        steps in proptest::collection::vec(step(), 1..40), ids_max in 3..40usize
    ) {
        let mut run = Run::new(ids_max);
        let (mut log, mut dedup, mut ring) = run.open();
        for step in steps {
            match step {
                Step::Group(ids, durable) => {
                    run.group(&mut log, &mut dedup, &ring, &ids, durable);
                }
                Step::Wait(micros) => run.wait(micros),
                Step::House(sync) => {
                    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), sync);
                }
                Step::Restart(fate) => {
                    drop((log, dedup));
                    run.meddle(&fate);
                    (log, dedup, ring) = run.open();
                }
            }
            run.check(&mut dedup, &ring);
        }
    }
}

/// Scenario: the index covers an event whose frame the disk loses while the process is down.
#[test]
fn ids_that_the_log_lost_are_forgotten_also_by_later_starts() {
    let mut run = Run::new(100);
    let (mut log, mut dedup, ring) = run.open();
    run.group(&mut log, &mut dedup, &ring, &[(0, 1, false)], true);
    let whole = fs::metadata(segment(&run)).unwrap().len();
    run.group(&mut log, &mut dedup, &ring, &[(0, 2, false)], true);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), true);
    drop((log, dedup));
    fs::File::options().write(true).open(segment(&run)).unwrap().set_len(whole).unwrap();
    run.durable.pop();
    for _ in 0..3 {
        let (mut log, mut dedup, ring) = run.open();
        run.check(&mut dedup, &ring);
        // The log grows past what the index said.
        run.group(
            &mut log,
            &mut dedup,
            &ring,
            &[(1, 9, false), (2, 1, false), (2, 2, false)],
            true,
        );
    }
}

fn segment(run: &Run) -> std::path::PathBuf {
    run.dir.path().join(format!("log/partition-0/{:020}.seg", 0))
}

#[test]
fn a_frame_that_is_damaged_has_no_ids_although_the_index_has_them() {
    let mut run = Run::new(100);
    let (mut log, mut dedup, ring) = run.open();
    run.group(&mut log, &mut dedup, &ring, &[(0, 1, false)], true);
    let end = fs::metadata(segment(&run)).unwrap().len() as usize;
    run.group(&mut log, &mut dedup, &ring, &[(0, 2, false)], true);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), true);
    drop((log, dedup));
    let mut bytes = fs::read(segment(&run)).unwrap();
    bytes[end - 1] ^= 1;
    fs::write(segment(&run), bytes).unwrap();
    run.durable.remove(0);
    for _ in 0..2 {
        let (_log, mut dedup, ring) = run.open();
        run.check(&mut dedup, &ring);
    }
}

#[test]
fn another_configuration_reads_the_log_anew() {
    let mut run = Run::new(100);
    let (mut log, mut dedup, ring) = run.open();
    run.group(&mut log, &mut dedup, &ring, &[(2, 1, false), (0, 1, false)], true);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), true);
    drop((log, dedup));
    run.settings.dedup_windows.clear();
    let (_log, mut dedup, ring) = run.open();
    let beat = ring.keys(&batch(&[(2, 1, false)], run.now))[0];
    assert!(!dedup.insert(&beat, ReceivedAt(run.now)), "its type was off until now");
}

/// Scenario: the disk has no room for the index for a while.
#[test]
fn an_index_that_cannot_be_written_is_begun_anew_later() {
    let mut run = Run::new(100);
    let (mut log, mut dedup, ring) = run.open();
    run.group(&mut log, &mut dedup, &ring, &[(1, 1, false)], true);
    run.disk.0.space.store(0, Ordering::SeqCst);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), false);
    run.disk.0.space.store(-1, Ordering::SeqCst);
    run.group(&mut log, &mut dedup, &ring, &[(1, 2, false)], true);
    let covered = |run: &Run| {
        let slices = files(&run.index()).into_iter().filter_map(|f| slice::Slice::decode(&f.1));
        slices.map(|slice| slice.to).max()
    };
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), false);
    assert_eq!(covered(&run), Some(0));
    run.wait(31 * SECOND);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), false);
    assert_eq!(covered(&run), Some(2));
    run.check(&mut dedup, &ring);
    drop((log, dedup));
    let (_log, mut dedup, ring) = run.open();
    run.check(&mut dedup, &ring);
}

#[test]
fn the_index_keeps_no_more_than_the_windows() {
    let mut run = Run::new(50);
    let (mut log, mut dedup, ring) = run.open();
    for n in 0..400u32 {
        run.wait(SECOND);
        let ids = [(0, n as u8, false), (1, (n / 20) as u8, false)];
        run.group(&mut log, &mut dedup, &ring, &ids, true);
        dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), false);
    }
    let files = files(&run.index());
    assert!(files.len() <= 2 * 11, "{}", files.len());
    let bytes: usize = files.iter().map(|f| f.1.len()).sum();
    assert!(bytes < 12_000, "{bytes}");
}

#[test]
fn ids_forgotten_too_early_are_told_until_the_window_is_whole_again() {
    let mut run = Run::new(4);
    let (mut log, mut dedup, ring) = run.open();
    run.group(&mut log, &mut dedup, &ring, &[(1, 1, false), (1, 2, false)], true);
    run.wait(30 * SECOND);
    let more: Vec<Id> = (0..3).map(|n| (0, n, false)).collect();
    run.group(&mut log, &mut dedup, &ring, &more, true);
    run.wait(2 * SECOND);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), true);
    let windows = |dedup: &Dedup| dedup.status().lock().unwrap().windows.clone();
    let window = |window_seconds, kept_seconds| DedupWindow { window_seconds, kept_seconds };
    assert_eq!(windows(&dedup), [window(10, 10), window(100, 32)]);
    assert!(dedup.teller.told);
    drop((log, dedup));
    let (log, mut dedup, _) = run.open();
    assert_eq!(windows(&dedup), [window(10, 10), window(100, 32)], "also after a start");
    run.wait(99 * SECOND);
    dedup.keep_house(log.handle().latest(), ReceivedAt(run.now), false);
    assert_eq!(windows(&dedup), [window(10, 10), window(100, 100)]);
    assert!(!dedup.teller.told);
}
