//! The books under a simulated disk: after any crash they say, with what the log holds, just what was
//! settled, to the event and minute; what left nothing in the log they say as of a record that was
//! being written last, and the time since then is told as a gap.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, Offset, ReceivedAt,
    SchemaRef, TenantId, record::Record,
};
use tidegate_ingest::{
    books::{Books, Gap, Minute, Outcome, Tally, UnloggedLedger},
    clock::{Clock, ManualClock},
    config::Size,
    log::{Entry, LogConfig, LogHandle},
    shed::ShedReason,
    storage::Storage,
    writer::{self, Append, WriterHandle, WriterSettings},
};

use super::{
    MORNING,
    dice::Dice,
    fs::{Odds, SimFs},
    open_log, seeds, small_log,
};

const TYPES: [&str; 3] = ["view", "click", "buy"];

/// Per minute and type.
type Counts = BTreeMap<(i64, String), Tally>;

/// What left nothing in the log, as a record may say it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Unlogged {
    counts: Counts,
    refused: (u64, u64),
    /// Up to when.
    at: i64,
}

struct Run {
    fs: SimFs,
    dice: Dice,
    config: LogConfig,
    clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
    /// What must stand in the log's ledger.
    counts: Counts,
    /// The end of what is counted.
    next: u64,
    /// The last process ended cleanly: nothing in the log is needed for the ledger.
    closed: bool,
    /// What left nothing in the log, all of it.
    unlogged: Unlogged,
    /// When it changed.
    changed: Vec<i64>,
    /// The last record that is durable, and those behind it that may be.
    records: Vec<Unlogged>,
    /// The last record may be that of a clean stop; it is, if nothing failed.
    clean: Option<bool>,
    gaps: u64,
}

/// One process.
struct Process {
    writer: WriterHandle,
    books: Arc<Books>,
    unlogged: UnloggedLedger,
}

fn row<'a>(counts: &'a mut Counts, at: ReceivedAt, name: &str) -> &'a mut Tally {
    counts.entry((Minute::of(at).0, name.to_owned())).or_default()
}

fn count(batch: &EncodedBatch, into: &mut Counts) {
    for tally in &batch.tallies {
        let row = row(into, batch.received_at, tally.event_type.as_str());
        row.settle(Outcome::Accepted, tally.accepted);
        row.settle(Outcome::DeadLettered, tally.dead_lettered);
    }
}

/// Counts what the log holds from `from` on.
fn recount(log: &LogHandle, from: u64, into: &mut Counts) {
    let mut reader = log.read_from(Offset(from)).unwrap();
    while let Some(entry) = reader.next().unwrap() {
        let Entry::Frame(frame) = entry else { panic!("{entry:?}") };
        let view = BatchView::parse(&frame.body).unwrap();
        for record in view.records() {
            let record = record.unwrap();
            let row = row(into, frame.received_at, view.types[record.type_index].name);
            match record.dead {
                None => row.accepted += 1,
                Some(_) => row.dead_lettered += 1,
            }
        }
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut config = small_log();
        config.dedup_window.0 = Duration::from_secs(600);
        Self {
            fs: SimFs::new(seed),
            dice: Dice::new(!seed),
            config,
            clock: Arc::new(ManualClock::new(MORNING)),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            counts: Counts::new(),
            next: 0,
            closed: false,
            unlogged: Unlogged::default(),
            changed: Vec::new(),
            records: Vec::new(),
            clean: None,
            gaps: 0,
        }
    }

    fn tick(&mut self) -> ReceivedAt {
        self.clock.advance(1 + self.dice.below(40_000_000) as i64);
        self.clock.now()
    }

    fn batch(&mut self) -> EncodedBatch {
        let tenant = TenantId::new("acme").unwrap();
        let mut encoder = BatchEncoder::new(tenant, "events", self.tick(), [7; 16], 0);
        for index in 0..=self.dice.below(5) as u32 {
            let id = format!("id-{}", self.dice.below(200));
            let raw = format!("{{\"n\":\"{}\"}}", "x".repeat(self.dice.index(300)));
            encoder.push(&Record {
                index,
                event_type: &EventType::new(TYPES[self.dice.index(TYPES.len())]).unwrap(),
                schema: SchemaRef::default(),
                client_id: self.dice.coin().then_some(id.as_str()),
                event_time: EventTime(MORNING),
                dead: self.dice.permille(200).then_some(Code::TypeMismatch),
                pii_changed: false,
                note: "",
                raw: raw.as_bytes(),
            });
        }
        encoder.finish()
    }

    fn start(&mut self) -> Process {
        let now = self.tick();
        let storage = Arc::new(self.fs.process());
        let (mut log, recovery) =
            open_log(Arc::clone(&storage) as _, &self.config, &self.clock).unwrap();
        if std::mem::take(&mut self.closed) {
            log.trim().unwrap();
        }
        // What was refused and yet kept is settled by that.
        let from = self.next.max(log.handle().earliest().0);
        recount(&log.handle(), from, &mut self.counts);
        self.next = log.handle().latest().0;
        let books = Arc::new(Books::default());
        let (id, first) = (log.handle().log_id().to_owned(), self.records.is_empty());
        let dir = Path::new("/data");
        let unlogged = UnloggedLedger::open(storage, dir, &id, first, &books, now).unwrap();
        let settings = WriterSettings {
            on_fatal: Arc::new(|| {}),
            ..WriterSettings::new(&self.config, 1 << 20, Duration::from_secs(2))
        };
        let clock = Arc::<ManualClock>::clone(&self.clock);
        let writer = writer::start(log, Arc::clone(&books), clock, settings).unwrap();
        let process = Process { writer, books, unlogged };
        let after = recovery.to_string();
        self.check_unlogged(&process, now, &after);
        self.check(&process, &after);
        process
    }

    /// What left nothing in the log is as of one of the records that may be the last, and what it lacks
    /// happened in the gap that is told.
    fn check_unlogged(&mut self, process: &Process, now: ReceivedAt, after: &str) {
        let mut found = Unlogged::default();
        for row in process.books.minutes(Minute(i64::MIN), Minute(i64::MAX)) {
            let Tally { deduplicated, rejected, shed, .. } = row.tally;
            let received = deduplicated + rejected + shed;
            let tally = Tally { received, deduplicated, rejected, shed, ..Tally::default() };
            if received > 0 {
                found.counts.insert((row.minute.0, row.event_type.as_str().to_owned()), tally);
            }
        }
        if let Some(page) = process.books.copy().values().next() {
            found.refused = (page.refused_requests, page.refused_bytes);
        }
        let same =
            |known: &&Unlogged| (&known.counts, known.refused) == (&found.counts, found.refused);
        if self.records.is_empty() {
            assert_eq!(found, Unlogged::default(), "{after}");
        } else {
            let known = self.records.iter().rev().find(same);
            let known = known.unwrap_or_else(|| panic!("{after}: {found:?}\n{:?}", self.records));
            let told = process.unlogged.gaps();
            match self.clean {
                Some(true) => assert_eq!(told.count, self.gaps, "{after}"),
                Some(false) => assert_eq!(told.count, self.gaps + 1, "{after}"),
                None => assert!((0..=1).contains(&(told.count - self.gaps)), "{after}"),
            }
            let lost: Vec<_> = self.changed.iter().filter(|at| **at > known.at).collect();
            if self.gaps < told.count {
                let gap = told.spans.back().unwrap();
                let from = gap.from.unwrap().0;
                assert!(self.records[0].at <= from && gap.to == now, "{after}: {gap:?}");
                assert!(lost.iter().all(|at| from <= **at), "{after}: {gap:?} {lost:?}");
            } else {
                assert!(lost.is_empty(), "{after}: {lost:?} in no gap");
            }
        }
        self.gaps = process.unlogged.gaps().count;
        self.changed.clear();
        self.unlogged = Unlogged { at: now.0, ..found };
        self.records = vec![self.unlogged.clone()];
        self.clean = Some(false);
    }

    fn check(&mut self, process: &Process, after: &str) {
        let copy = process.writer.ledger();
        assert_eq!((copy.as_of.0, copy.lost), (self.next, 0), "{after}");
        let mut totals = BTreeMap::<_, (u64, u64)>::new();
        for ((_, name), tally) in &self.counts {
            let sum = totals.entry(name.clone()).or_default();
            *sum = (sum.0 + tally.accepted, sum.1 + tally.dead_lettered);
        }
        let found = copy.types.into_iter();
        let found = found.map(|((_, name), t)| (name.to_string(), (t.accepted, t.dead_lettered)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), totals, "{after}");
        let rows = process.books.minutes(Minute(i64::MIN), Minute(i64::MAX)).into_iter();
        let rows = rows.filter(|row| row.tally.accepted + row.tally.dead_lettered > 0);
        let rows = rows.map(|row| {
            let Tally { accepted, dead_lettered, .. } = row.tally;
            let tally = Tally { accepted, dead_lettered, ..Tally::default() };
            ((row.minute.0, row.event_type.to_string()), tally)
        });
        assert_eq!(rows.collect::<Counts>(), self.counts, "{after}: the minutes");
        assert_eq!(process.books.standing().difference, 0, "{after}");
    }

    /// Some events that leave nothing in the log.
    fn unlogged(&mut self, at: ReceivedAt, name: &str, outcome: Outcome, events: u64) {
        if events > 0 {
            let row = row(&mut self.unlogged.counts, at, name);
            row.settle(outcome, events);
            row.received += events;
            self.changed.push(self.clock.now().0);
        }
    }

    fn refuse(&mut self, process: &Process) {
        let at = self.tick();
        let tenant = TenantId::new("acme").unwrap();
        if self.dice.permille(300) {
            let bytes = self.dice.below(1000);
            drop(process.books.unread(&tenant, Some(bytes)));
            let (requests, sum) = self.unlogged.refused;
            self.unlogged.refused = (requests + 1, sum + bytes);
            self.changed.push(at.0);
            return;
        }
        let (name, events) = (TYPES[self.dice.index(3)], 1 + self.dice.below(4));
        let kind = EventType::new(name).unwrap();
        let mut open = process.books.open(&tenant, at, vec![(kind.clone(), events)]);
        let rejected = self.dice.below(events + 1);
        open.settle(&kind, Outcome::Rejected(Code::InvalidJson), rejected);
        open.shed(ShedReason::QuotaEvents);
        self.unlogged(at, name, Outcome::Rejected(Code::InvalidJson), rejected);
        self.unlogged(at, name, Outcome::Shed(ShedReason::QuotaEvents), events - rejected);
    }

    fn write(&mut self, process: &mut Process, close: bool) {
        let now = self.tick();
        self.unlogged.at = now.0;
        self.records.push(self.unlogged.clone());
        let done = match close {
            true => process.unlogged.close(&process.books, now),
            false => process.unlogged.write(&process.books, now),
        };
        // Nothing new is told without a sync: it may be lost, and is the same but for its time.
        let idle = self.changed.last().is_none_or(|last| *last < self.records[0].at) && !close;
        match done {
            Ok(()) if !idle => {
                self.records.drain(..self.records.len() - 1);
                self.clean = Some(close);
            }
            Ok(()) => {}
            Err(_) if close => self.clean = None,
            Err(_) => {}
        }
    }

    fn append(&mut self, process: &Process) {
        let batch = self.batch();
        let at = batch.received_at;
        let received = batch.tallies.iter();
        let received =
            received.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered)).collect();
        let entry = process.books.open(&batch.tenant, at, received);
        let done = self.runtime.block_on(process.writer.append(batch.clone(), entry));
        let appended = match done {
            Ok(appended) => appended,
            Err(error) => {
                for tally in &batch.tallies {
                    let events = tally.accepted + tally.dead_lettered;
                    let name = tally.event_type.as_str();
                    self.unlogged(at, name, Outcome::Shed(error.reason()), events);
                }
                return;
            }
        };
        let known: std::collections::HashSet<_> = appended.deduplicated.iter().copied().collect();
        if known.is_empty() {
            count(&batch, &mut self.counts);
        } else {
            let view = BatchView::parse(&batch.body).unwrap();
            for record in view.records() {
                let record = record.unwrap();
                let name = view.types[record.type_index].name;
                match record.dead {
                    _ if known.contains(&record.index) => {
                        self.unlogged(at, name, Outcome::Deduplicated, 1);
                    }
                    None => row(&mut self.counts, at, name).accepted += 1,
                    Some(_) => row(&mut self.counts, at, name).dead_lettered += 1,
                }
            }
        }
        if let Some(range) = appended.range {
            assert_eq!(range.from().0, self.next);
            self.next = range.to().0;
        }
    }

    fn life(&mut self) {
        let mut process = self.start();
        if self.dice.coin() {
            let errors = Odds { write_error: 50, sync_error: 30, ..Odds::default() };
            let full = Odds { capacity: Some(self.dice.below(60_000)), ..Odds::default() };
            self.fs.set_odds(if self.dice.coin() { errors } else { full });
        }
        if self.dice.permille(700) {
            self.fs.crash_in(1 + self.dice.below(60), false);
        }
        for _ in 0..self.dice.below(25) {
            match self.dice.below(10) {
                0..5 => self.append(&process),
                5..8 => self.refuse(&process),
                _ => self.write(&mut process, false),
            }
        }
        if self.dice.permille(600) {
            self.fs.set_odds(Odds::default());
            process.writer.close();
            self.closed = !process.writer.is_failed() && !self.fs.crashed();
            self.write(&mut process, true);
        }
        if self.dice.permille(300) {
            self.fs.kill()
        } else {
            self.fs.reboot()
        }
        drop(process);
    }
}

#[test]
fn the_books_are_exact_after_any_crash_and_say_what_they_do_not_know() {
    seeds("ledger", &["P1", "P5"], 150, |seed| {
        let mut run = Run::new(seed);
        for _ in 0..8 {
            run.life();
        }
        run.fs.operations()
    });
}

/// Scenario: the machine dies as retention removes its first segment, whose events the ledger had not
/// counted when they came.
#[test]
fn retention_takes_no_events_that_the_ledger_lacks() {
    for seed in 0..4 {
        let mut run = Run::new(seed);
        run.config.segment_bytes = Size(1 << 10);
        run.config.retention_bytes = Size(4 << 10);
        let process = run.start();
        let until = Instant::now() + Duration::from_secs(60);
        let append = |run: &mut Run| {
            run.append(&process);
            assert!(Instant::now() < until, "nothing was removed");
            std::thread::sleep(Duration::from_millis(10));
        };
        // The first removal comes behind the whole ledger, later ones behind what was added to it.
        let removed_past = |offset| offset < process.writer.log().earliest();
        if seed % 2 == 1 {
            while !removed_past(Offset(0)) {
                append(&mut run);
            }
            let counted_whole = process.writer.log().latest();
            while !removed_past(counted_whole) {
                append(&mut run);
            }
        }
        run.fs.crash_on("remove", ".seg");
        while !run.fs.crashed() {
            append(&mut run);
        }
        run.fs.reboot();
        drop(process);
        run.start();
    }
}

/// Scenario: a clean stop, a start on a full disk that can write no record, refusals, a crash.
/// Guarantees: the record of the clean stop does not stand for what came after it.
#[test]
fn a_start_on_a_full_disk_hides_no_gap() {
    let fs = SimFs::new(1);
    let dir = Path::new("/data");
    fs.process().create_dir_all(dir).unwrap();
    let tenant = TenantId::new("acme").unwrap();
    let open = |now| {
        let (books, storage) = (Books::default(), Arc::new(fs.process()));
        let opened = UnloggedLedger::open(storage, dir, "abcd1234", true, &books, ReceivedAt(now));
        (opened.unwrap(), books)
    };
    let refuse = |books: &Books| drop(books.unread(&tenant, Some(7)));
    let (mut ledger, books) = open(1);
    refuse(&books);
    ledger.close(&books, ReceivedAt(2)).unwrap();
    fs.reboot();

    fs.set_odds(Odds { capacity: Some(0), ..Odds::default() });
    let (mut ledger, books) = open(3);
    assert_eq!((ledger.gaps().count, books.standing().refused.requests), (0, 1));
    refuse(&books);
    ledger.write(&books, ReceivedAt(4)).unwrap_err();
    fs.reboot();

    fs.set_odds(Odds::default());
    let (mut ledger, books) = open(5);
    let gap = Gap { from: Some(ReceivedAt(2)), to: ReceivedAt(5) };
    assert_eq!((ledger.gaps().spans.back(), books.standing().refused.requests), (Some(&gap), 1));
    ledger.close(&books, ReceivedAt(6)).unwrap();
    fs.reboot();
    assert_eq!(open(7).0.gaps().count, 1);
}
