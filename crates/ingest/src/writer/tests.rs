//! The writer over a real log: group commit, ids, ledger, faults. A crash is a copy of the folder
//! taken while the writer runs. Does not prove what the log does with a torn disk: see `log::tests`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, Offset, ReceivedAt,
    SchemaRef, TenantId, record::Record,
};

use super::*;
use crate::{
    books::Tally,
    clock::ManualClock,
    log::{self, Entry, LogConfig, faulty::FaultyDisk},
};

const NOW: i64 = 1_700_000_000_000_000;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// One batch of `acme`: (type, id, whether a dead letter) of each event.
fn batch(events: &[(&str, Option<&str>, bool)]) -> EncodedBatch {
    let mut encoder = BatchEncoder::new(tenant("acme"), "events", ReceivedAt(NOW), [7; 16], 0);
    for (index, (event_type, id, dead)) in events.iter().enumerate() {
        encoder.push(&Record {
            index: index as u32 + 10,
            event_type: &EventType::new(event_type).unwrap(),
            schema: SchemaRef::default(),
            client_id: *id,
            event_time: EventTime(NOW),
            dead: dead.then_some(Code::TypeMismatch),
            pii_changed: false,
            note: "",
            raw: b"{}",
        });
    }
    encoder.finish()
}

fn entry(books: &Books, batch: &EncodedBatch) -> Open {
    let received = batch.tallies.iter();
    let received = received.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered)).collect();
    books.open(&batch.tenant, batch.received_at, received)
}

struct Running {
    books: Arc<Books>,
    writer: WriterHandle,
    died: Arc<AtomicBool>,
}

fn settings(config: &LogConfig, died: &Arc<AtomicBool>) -> WriterSettings {
    let died = Arc::clone(died);
    WriterSettings {
        on_fatal: Arc::new(move || died.store(true, Ordering::SeqCst)),
        ..WriterSettings::new(config, 1 << 20, Duration::from_secs(2))
    }
}

fn start_on(
    storage: Arc<dyn crate::storage::Storage>,
    dir: &Path,
    change: impl FnOnce(&mut WriterSettings),
) -> Running {
    let config = LogConfig { dir: dir.into(), ..LogConfig::default() };
    let clock = Arc::new(ManualClock::new(NOW));
    let mut opened = log::open(storage, &config, Arc::clone(&clock) as _).unwrap();
    let (books, died) = (Arc::new(Books::default()), Arc::new(AtomicBool::new(false)));
    let mut settings = settings(&config, &died);
    change(&mut settings);
    let log = opened.partitions.remove(0);
    let writer = super::start(log, Arc::clone(&books), clock, settings).unwrap();
    Running { books, writer, died }
}

fn start(dir: &Path) -> Running {
    start_on(Arc::new(crate::storage::Disk), dir, |_| {})
}

impl Running {
    async fn append(&self, batch: EncodedBatch) -> Result<Appended, AppendError> {
        let entry = entry(&self.books, &batch);
        self.writer.append(batch, entry).await
    }

    #[track_caller]
    fn check_tally(&self, event_type: &str, expected: Tally) {
        let page = self.books.copy().remove(&tenant("acme")).unwrap();
        assert_eq!(page.types[event_type], expected);
        assert_eq!(page.in_flight, 0);
    }

    /// The ids in the log, in order.
    fn ids(&self) -> Vec<String> {
        let mut reader = self.writer.log().read_from(Offset(0)).unwrap();
        let mut ids = Vec::new();
        while let Some(Entry::Frame(frame)) = reader.next().unwrap() {
            let view = BatchView::parse(&frame.body).unwrap();
            ids.extend(view.records().map(|r| r.unwrap().event_id(&view.base_id).into_owned()));
        }
        ids
    }
}

fn tally(accepted: u64, dead_lettered: u64, deduplicated: u64, shed: u64) -> Tally {
    let received = accepted + dead_lettered + deduplicated + shed;
    Tally { received, accepted, dead_lettered, deduplicated, shed, rejected: 0 }
}

/// The folder as a crash would leave it.
fn crash(from: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let to = TempDir::new().unwrap();
    copy(from, to.path());
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_appends_are_all_durable_at_offsets_of_their_own() {
    let dir = TempDir::new().unwrap();
    let running = Arc::new(start(dir.path()));
    let mut tasks = Vec::new();
    for task in 0..40 {
        let running = Arc::clone(&running);
        tasks.push(tokio::spawn(async move {
            let mut ranges = Vec::new();
            for n in 0..10 {
                let id = format!("{task}-{n}");
                let one = batch(&[("view", Some(&id), false), ("view", None, true)]);
                ranges.push((id, running.append(one).await.unwrap().range.unwrap()));
            }
            ranges
        }));
    }
    let mut offsets = HashSet::new();
    let mut answered = HashSet::new();
    for task in tasks {
        for (id, range) in task.await.unwrap() {
            assert_eq!(range.count(), 2);
            assert!(offsets.insert(range.from()) && offsets.insert(Offset(range.from().0 + 1)));
            answered.insert(id);
        }
    }
    assert_eq!(offsets.len(), 800);
    let crashed = crash(dir.path());
    let again = start(crashed.path());
    let kept: HashSet<_> = again.ids().into_iter().filter(|id| id.len() < 10).collect();
    assert_eq!(kept, answered);
    running.check_tally("view", tally(400, 400, 0, 0));
    again.check_tally("view", tally(400, 400, 0, 0));
    let stats = running.writer.stats();
    assert!(stats.drain_bytes_per_second > 0 && stats.bound_bytes <= 1 << 20);
}

#[tokio::test]
async fn known_ids_are_dropped_in_a_batch_between_batches_and_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path());
    let first = running
        .append(batch(&[
            ("view", Some("a"), false),
            ("view", Some("a"), false),
            ("click", Some("a"), false),
            ("view", None, false),
            ("view", Some("a"), true),
        ]))
        .await
        .unwrap();
    // The dead letter comes under the id of an event that was accepted.
    let kept = first.range.unwrap().count();
    assert_eq!((first.deduplicated.as_slice(), kept), ([11, 14].as_slice(), 3));
    let again = running.append(batch(&[("view", Some("a"), false)])).await.unwrap();
    assert_eq!((again.deduplicated.as_slice(), again.range), ([10].as_slice(), None));
    running.check_tally("view", tally(2, 0, 3, 0));
    running.check_tally("click", tally(1, 0, 0, 0));

    let crashed = crash(dir.path());
    running.writer.close();
    for dir in [dir.path(), crashed.path()] {
        let running = start(dir);
        let more = batch(&[("view", Some("a"), false), ("view", Some("b"), false)]);
        let more = running.append(more).await.unwrap();
        assert_eq!(
            (more.deduplicated.as_slice(), more.range.unwrap().count()),
            ([10].as_slice(), 1)
        );
        let mut redrive = batch(&[("view", Some("a"), false)]);
        redrive.bypass_dedup = true;
        assert_eq!(running.append(redrive).await.unwrap().range.unwrap().count(), 1);
        assert_eq!(running.ids().iter().filter(|id| *id == "a").count(), 3);
    }
}

#[tokio::test]
async fn ids_of_a_group_that_failed_are_forgotten() {
    let (dir, disk) = (TempDir::new().unwrap(), FaultyDisk::new());
    let running = start_on(Arc::new(disk.clone()), dir.path(), |_| {});
    disk.0.space.store(0, Ordering::SeqCst);
    let one = || batch(&[("view", Some("a"), false)]);
    assert_eq!(running.append(one()).await, Err(AppendError::Storage));
    assert_eq!(running.append(one()).await, Err(AppendError::Storage));
    disk.0.space.store(-1, Ordering::SeqCst);
    assert!(running.append(one()).await.unwrap().deduplicated.is_empty());
    assert_eq!(running.append(one()).await.unwrap().deduplicated, [10]);
    running.check_tally("view", tally(1, 0, 1, 2));
    assert!(!running.died.load(Ordering::SeqCst));
}

/// Scenario: an event is being synced, slowly, while its twin comes: in the same group or in the next.
/// The sync then succeeds, or fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_waits_for_the_first_one_and_fails_with_it() {
    for fails in [false, true] {
        let (dir, disk) = (TempDir::new().unwrap(), FaultyDisk::new());
        let running = start_on(Arc::new(disk.clone()), dir.path(), |_| {});
        running.append(batch(&[("view", Some("before"), false)])).await.unwrap();
        disk.0.sync_waits.store(true, Ordering::SeqCst);
        let one = || batch(&[("view", Some("a"), false)]);
        // The first goes alone, the others make one group behind it.
        let mut waiting: Vec<_> = Vec::new();
        for _ in 0..3 {
            let (one, books) = (one(), &running.books);
            let entry = entry(books, &one);
            waiting.push(Box::pin(running.writer.append(one, entry)));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        for twin in &mut waiting {
            let early = tokio::time::timeout(Duration::from_millis(30), twin).await;
            assert!(early.is_err(), "answered before anything was durable: {early:?}");
        }
        if fails {
            disk.0.sync.set(0);
        }
        disk.0.sync_waits.store(false, Ordering::SeqCst);
        let mut answers = Vec::new();
        for twin in waiting {
            answers.push(twin.await);
        }
        if fails {
            assert!(answers.iter().all(|a| *a == Err(AppendError::Storage)), "{answers:?}");
            running.check_tally("view", tally(1, 0, 0, 3));
        } else {
            let counts: Vec<_> =
                answers.iter().map(|a| a.as_ref().unwrap().deduplicated.len()).collect();
            assert_eq!(counts, [0, 1, 1]);
            running.check_tally("view", tally(2, 0, 2, 0));
        }
    }
}

#[tokio::test]
async fn each_type_has_the_window_it_is_given() {
    let dir = TempDir::new().unwrap();
    let own = |settings: &mut WriterSettings| {
        let window =
            |(name, seconds)| (EventType::new(name).unwrap(), Duration::from_secs(seconds));
        settings.dedup_windows = [("order", 86_400), ("beat", 0)].map(window).into();
    };
    let all = || batch(&["view", "order", "beat"].map(|name| (name, Some("a"), false)));
    let running = start_on(Arc::new(crate::storage::Disk), dir.path(), own);
    running.append(all()).await.unwrap();
    assert_eq!(running.append(all()).await.unwrap().deduplicated, [10, 11]);
    let windows = running.writer.dedup().windows;
    assert_eq!(windows.iter().map(|w| w.window_seconds).collect::<Vec<_>>(), [600, 86_400]);
    drop(running);
    let crashed = crash(dir.path());
    let running = start_on(Arc::new(crate::storage::Disk), crashed.path(), own);
    assert_eq!(running.append(all()).await.unwrap().deduplicated, [10, 11]);
    running.check_tally("beat", tally(3, 0, 0, 0));
}

#[tokio::test]
async fn a_mended_event_may_follow_its_dead_letter_and_nothing_follows_that() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path());
    let one = |dead| batch(&[("view", Some("a"), dead)]);
    assert!(running.append(one(true)).await.unwrap().deduplicated.is_empty());
    assert_eq!(running.append(one(true)).await.unwrap().deduplicated, [10]);
    let mut redrive = one(false);
    redrive.bypass_dedup = true;
    assert!(running.append(redrive.clone()).await.unwrap().range.is_some());
    for dead in [true, false] {
        assert_eq!(running.append(one(dead)).await.unwrap().deduplicated, [10], "{dead}");
    }
    assert!(running.append(redrive).await.unwrap().range.is_some(), "a re-drive is never dropped");
    running.check_tally("view", tally(2, 1, 3, 0));
}

#[tokio::test]
async fn a_failed_sync_answers_everybody_and_ends_the_writer() {
    let (dir, disk) = (TempDir::new().unwrap(), FaultyDisk::new());
    let running = start_on(Arc::new(disk.clone()), dir.path(), |_| {});
    running.append(batch(&[("view", None, false)])).await.unwrap();
    disk.0.sync.set(0);
    assert_eq!(running.append(batch(&[("view", None, false)])).await, Err(AppendError::Storage));
    while !running.died.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.append(batch(&[("view", None, false)])).await, Err(AppendError::Storage));
    running.check_tally("view", tally(1, 0, 0, 2));
    running.writer.close();
    assert!(!dir.path().join("log/partition-0/clean").exists());
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_what_was_taken_is_kept_by_close() {
    let dir = TempDir::new().unwrap();
    let running = start_on(Arc::new(crate::storage::Disk), dir.path(), |settings| {
        settings.queue_bytes = 1000;
        settings.group_bytes = 100;
    });
    let mut waiting = Vec::new();
    let (mut taken, mut full) = (0, 0);
    for _ in 0..2000 {
        let one = batch(&[("view", None, false)]);
        let entry = entry(&running.books, &one);
        waiting.push(running.writer.append(one, entry));
    }
    running.writer.close();
    for answer in waiting {
        match answer.await {
            Ok(_) => taken += 1,
            Err(AppendError::Full { retry_after } | AppendError::Lane { retry_after }) => {
                assert!(retry_after > Duration::ZERO);
                full += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(taken >= 1 && full >= 1, "{taken} {full}");
    let refused = running.append(batch(&[("view", None, false)])).await;
    assert_eq!(refused, Err(AppendError::Draining));
    running.check_tally("view", tally(taken, 0, 0, full + 1));
    drop(running);
    let again = start(dir.path());
    again.check_tally("view", tally(taken, 0, 0, 0));
}

#[tokio::test]
async fn a_caller_who_goes_away_is_accounted_for() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path());
    let one = batch(&[("view", None, false)]);
    let entry = entry(&running.books, &one);
    drop(running.writer.append(one, entry));
    running.writer.close();
    running.check_tally("view", tally(1, 0, 0, 0));
}

#[tokio::test]
async fn a_backlog_over_its_bound_refuses_until_the_hold_moves() {
    let dir = TempDir::new().unwrap();
    let running = start_on(Arc::new(crate::storage::Disk), dir.path(), |settings| {
        settings.backlog_bytes = 10;
    });
    let hold = running.writer.log().hold("sink");
    running.append(batch(&[("view", None, false)])).await.unwrap();
    let refused = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match running.append(batch(&[("view", None, false)])).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    hold.advance(running.writer.log().latest());
    while running.append(batch(&[("view", None, false)])).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_ledger_is_exact_after_a_crash_and_rebuilt_when_it_is_lost() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path());
    let one = || batch(&[("view", None, false), ("view", None, true), ("click", None, false)]);
    running.append(one()).await.unwrap();
    running.writer.close();
    drop(running);
    let running = start(dir.path());
    running.append(one()).await.unwrap();
    for ledger in [None, Some("missing"), Some("damaged")] {
        let crashed = crash(dir.path());
        let path = crashed.path().join("log/partition-0/ledger.json");
        match ledger {
            Some("missing") => fs::remove_file(&path).unwrap(),
            Some(_) => {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.contains("\"accepted\":1"), "{text}");
                fs::write(&path, text.replace("\"accepted\":1", "\"accepted\":9")).unwrap();
            }
            None => {}
        }
        let again = start(crashed.path());
        again.check_tally("view", tally(2, 2, 0, 0));
        again.check_tally("click", tally(2, 0, 0, 0));
    }
}

#[tokio::test]
async fn offsets_the_ledger_knows_are_never_given_again() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path());
    running.append(batch(&[("view", None, false)])).await.unwrap();
    running.append(batch(&[("view", None, false), ("view", None, false)])).await.unwrap();
    running.writer.close();
    drop(running);
    let folder = dir.path().join("log/partition-0");
    fs::remove_file(folder.join("clean")).unwrap();
    let segment = folder.join("00000000000000000000.seg");
    let len = fs::metadata(&segment).unwrap().len();
    fs::File::options().write(true).open(&segment).unwrap().set_len(len - 1).unwrap();
    for _ in 0..2 {
        let running = start(dir.path());
        let log = running.writer.log();
        assert_eq!(log.latest(), Offset(3));
        let mut reader = log.read_from(Offset(0)).unwrap();
        assert!(matches!(reader.next().unwrap(), Some(Entry::Frame(_))));
        assert!(matches!(reader.next().unwrap(), Some(Entry::Quarantined(r)) if r.count() == 2));
        assert_eq!(reader.next().unwrap(), None);
        drop(reader);
    }
    let running = start(dir.path());
    let appended = running.append(batch(&[("view", None, false)])).await.unwrap();
    assert_eq!(appended.range.unwrap().from(), Offset(3));
    running.check_tally("view", tally(4, 0, 0, 0));
}

#[tokio::test]
async fn a_tenants_batches_go_to_one_partition() {
    let dir = TempDir::new().unwrap();
    let config = LogConfig { dir: dir.path().into(), partitions: 3, ..LogConfig::default() };
    let clock: Arc<ManualClock> = Arc::new(ManualClock::new(NOW));
    let opened =
        log::open(Arc::new(crate::storage::Disk), &config, Arc::clone(&clock) as _).unwrap();
    let (books, died) = (Arc::new(Books::default()), Arc::new(AtomicBool::new(false)));
    let start = |log| {
        let settings = settings(&config, &died);
        super::start(log, Arc::clone(&books), Arc::clone(&clock) as _, settings).unwrap()
    };
    let writers = Writers::new(opened.partitions.into_iter().map(start).collect()).unwrap();
    let mut partitions = HashSet::new();
    for _ in 0..5 {
        let one = batch(&[("view", None, false)]);
        let entry = entry(&books, &one);
        partitions.insert(writers.append(one, entry).await.unwrap().partition);
    }
    assert_eq!(partitions.len(), 1);
    writers.close();
    assert_eq!(writers.stats().held_bytes, 0);
}
