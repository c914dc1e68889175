//! The writer's ledger: after any crash it says, with what the log holds behind it, just what was
//! settled: accepted and dead-lettered to the event, deduplicated never too many.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, ReceivedAt, SchemaRef,
    TenantId, record::Record,
};
use tidegate_ingest::{
    books::Books,
    clock::ManualClock,
    config::Size,
    log::{Entry, LogConfig, LogHandle},
    writer::{self, Append, Totals, WriterHandle, WriterSettings},
};

use super::{
    MORNING,
    dice::Dice,
    fs::{Odds, SimFs},
    open_log, seeds, small_log,
};

const TYPES: [&str; 3] = ["view", "click", "buy"];

type Counts = BTreeMap<String, Totals>;

struct Run {
    fs: SimFs,
    dice: Dice,
    config: LogConfig,
    clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
    /// What must stand in the ledger.
    counts: Counts,
    /// The end of what is counted.
    next: u64,
    /// The last process ended cleanly: nothing in the log is needed for the ledger.
    closed: bool,
}

fn count(batch: &EncodedBatch, into: &mut Counts) {
    for tally in &batch.tallies {
        let totals = into.entry(tally.event_type.as_str().to_owned()).or_default();
        totals.accepted += tally.accepted;
        totals.dead_lettered += tally.dead_lettered;
    }
}

/// Counts what the log holds from `from` on.
fn recount(log: &LogHandle, from: u64, into: &mut Counts) {
    let mut reader = log.read_from(tidegate_event::Offset(from)).unwrap();
    while let Some(entry) = reader.next().unwrap() {
        let Entry::Frame(frame) = entry else { panic!("{entry:?}") };
        let view = BatchView::parse(&frame.body).unwrap();
        for record in view.records() {
            let record = record.unwrap();
            let name = view.types[record.type_index].name;
            let totals = into.entry(name.to_owned()).or_default();
            match record.dead {
                None => totals.accepted += 1,
                Some(_) => totals.dead_lettered += 1,
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
        }
    }

    fn batch(&mut self) -> EncodedBatch {
        let tenant = TenantId::new("acme").unwrap();
        let mut encoder = BatchEncoder::new(tenant, "events", ReceivedAt(MORNING), [7; 16], 0);
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

    fn start(&mut self) -> (WriterHandle, Arc<Books>) {
        let storage = Arc::new(self.fs.process());
        let (mut log, recovery) = open_log(storage, &self.config, &self.clock).unwrap();
        if std::mem::take(&mut self.closed) {
            log.trim().unwrap();
        }
        // What was refused and yet kept is settled by that.
        let from = self.next.max(log.handle().earliest().0);
        recount(&log.handle(), from, &mut self.counts);
        self.next = log.handle().latest().0;
        let books = Arc::new(Books::default());
        let settings = WriterSettings {
            on_fatal: Arc::new(|| {}),
            ..WriterSettings::new(&self.config, 1 << 20, Duration::from_secs(2))
        };
        let clock = Arc::<ManualClock>::clone(&self.clock);
        let writer = writer::start(log, Arc::clone(&books), clock, settings).unwrap();
        self.check(&writer, &books, &recovery.to_string());
        (writer, books)
    }

    fn check(&mut self, writer: &WriterHandle, books: &Books, after: &str) {
        let copy = writer.ledger();
        assert_eq!(copy.as_of.0, self.next, "{after}");
        let mut found = Counts::new();
        for ((_, name), totals) in copy.types {
            let known = self.counts.get(name.as_str()).copied().unwrap_or_default();
            assert!(totals.deduplicated <= known.deduplicated, "{after}: {name}");
            found.insert(name.as_str().to_owned(), totals);
        }
        let exact = |counts: &Counts| -> Vec<_> {
            let some = counts.iter().filter(|(_, t)| t.accepted + t.dead_lettered > 0);
            some.map(|(name, t)| (name.clone(), t.accepted, t.dead_lettered)).collect()
        };
        assert_eq!(exact(&found), exact(&self.counts), "{after}");
        for (name, totals) in &found {
            let known = self.counts.entry(name.clone()).or_default();
            known.deduplicated = totals.deduplicated;
        }
        for page in books.copy().values() {
            for (name, tally) in &page.types {
                let totals = found[name.as_str()];
                assert_eq!(tally.accepted, totals.accepted, "{after}: the books");
                assert_eq!(tally.dead_lettered, totals.dead_lettered, "{after}: the books");
            }
        }
    }

    fn append(&mut self, writer: &WriterHandle, books: &Books) {
        let batch = self.batch();
        let received = batch.tallies.iter();
        let received =
            received.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered)).collect();
        let entry = books.open(&batch.tenant, received);
        let done = self.runtime.block_on(writer.append(batch.clone(), entry));
        let Ok(appended) = done else { return };
        let known: std::collections::HashSet<_> = appended.deduplicated.iter().copied().collect();
        if known.is_empty() {
            count(&batch, &mut self.counts);
        } else {
            let view = BatchView::parse(&batch.body).unwrap();
            for record in view.records() {
                let record = record.unwrap();
                let name = view.types[record.type_index].name.to_owned();
                let totals = self.counts.entry(name).or_default();
                match record.dead {
                    _ if known.contains(&record.index) => totals.deduplicated += 1,
                    None => totals.accepted += 1,
                    Some(_) => totals.dead_lettered += 1,
                }
            }
        }
        if let Some(range) = appended.range {
            assert_eq!(range.from().0, self.next);
            self.next = range.to().0;
        }
    }

    fn life(&mut self) {
        let (writer, books) = self.start();
        if self.dice.coin() {
            let errors = Odds { write_error: 50, sync_error: 30, ..Odds::default() };
            let full = Odds { capacity: Some(self.dice.below(60_000)), ..Odds::default() };
            self.fs.set_odds(if self.dice.coin() { errors } else { full });
        }
        if self.dice.permille(700) {
            self.fs.crash_in(1 + self.dice.below(60), false);
        }
        for _ in 0..self.dice.below(15) {
            self.append(&writer, &books);
        }
        if self.dice.permille(600) {
            self.fs.set_odds(Odds::default());
            writer.close();
            self.closed = !writer.is_failed() && !self.fs.crashed();
        }
        if self.dice.permille(300) {
            self.fs.kill()
        } else {
            self.fs.reboot()
        }
        drop(writer);
    }
}

#[test]
fn a_ledger_is_exact_after_any_crash() {
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
        let (writer, books) = run.start();
        run.fs.crash_on("remove", ".seg");
        let until = Instant::now() + Duration::from_secs(30);
        while !run.fs.crashed() {
            run.append(&writer, &books);
            assert!(Instant::now() < until, "nothing was removed");
            std::thread::sleep(Duration::from_millis(10));
        }
        run.fs.reboot();
        drop(writer);
        run.start();
    }
}
