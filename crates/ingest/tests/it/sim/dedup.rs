//! Clients that send until they are answered, on a disk that fails and a machine that crashes: what was
//! answered is in the log once, what was not is there once or not at all, never twice and never lost.
//!
//! Each batch has ids, and is sent again, as it was, until it is answered; often once more after that,
//! as one does whose answer was lost. All of it lies within the window.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, SchemaRef, TenantId,
    record::Record,
};
use tidegate_ingest::{
    books::Books,
    clock::{Clock, ManualClock},
    config::Span,
    log::{Entry, LogConfig, LogHandle},
    writer::{self, Append, WriterHandle, WriterSettings},
};

use super::{
    MORNING,
    dice::Dice,
    fs::{Odds, SimFs},
    open_log, seeds, small_log,
};
use crate::tally::Tally;

/// Remembered for long, and for the usual time.
const TYPES: [&str; 2] = ["order", "view"];

#[derive(Clone)]
struct Sending {
    ids: Vec<(usize, u64)>,
    answered: bool,
}

struct Run {
    fs: SimFs,
    dice: Dice,
    config: LogConfig,
    clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
    /// In the order they were first sent.
    all: Vec<Sending>,
    resends: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut config = small_log();
        config.retention_bytes.0 = 1 << 30;
        config.dedup_window = Span::seconds(3_600);
        config.dedup_windows = [(EventType::new("order").unwrap(), Span::seconds(86_400))].into();
        Self {
            fs: SimFs::new(seed),
            dice: Dice::new(!seed),
            config,
            clock: Arc::new(ManualClock::new(MORNING)),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            all: Vec::new(),
            resends: 0,
        }
    }

    fn batch(&self, ids: &[(usize, u64)]) -> EncodedBatch {
        let tenant = TenantId::new("acme").unwrap();
        let mut encoder = BatchEncoder::new(tenant, "events", self.clock.now(), [7; 16], 0);
        for (index, (kind, id)) in (0..).zip(ids) {
            encoder.push(&Record {
                index,
                event_type: &EventType::new(TYPES[*kind]).unwrap(),
                schema: SchemaRef::default(),
                client_id: Some(&id.to_string()),
                event_time: EventTime(MORNING),
                dead: (id % 5 == 0).then_some(Code::TypeMismatch),
                pii_changed: false,
                note: "",
                raw: b"{\"n\":1}",
            });
        }
        encoder.finish()
    }

    fn start(&mut self) -> WriterHandle {
        let storage = Arc::new(self.fs.process());
        let (log, recovery) = open_log(storage, &self.config, &self.clock).unwrap();
        self.check(&log.handle(), &recovery.to_string());
        let settings = WriterSettings {
            housekeeping: Duration::from_millis(1),
            on_fatal: Arc::new(|| {}),
            ..WriterSettings::new(&self.config, 1 << 20, Duration::from_secs(2))
        };
        let clock = Arc::<ManualClock>::clone(&self.clock);
        writer::start(log, Arc::new(Books::default()), clock, settings).unwrap()
    }

    /// No id is in the log twice; every one that was answered is there.
    fn check(&self, log: &LogHandle, after: &str) {
        let mut found = BTreeMap::<(String, String), u32>::new();
        let mut reader = log.read_from(log.earliest()).unwrap();
        while let Some(entry) = reader.next().unwrap() {
            let Entry::Frame(frame) = entry else { panic!("{entry:?}") };
            let view = BatchView::parse(&frame.body).unwrap();
            for record in view.records().map(Result::unwrap) {
                let id = (record.kind.name.to_owned(), record.client_id.unwrap().to_owned());
                *found.entry(id).or_default() += 1;
            }
        }
        if let Some((id, copies)) = found.iter().find(|(_, copies)| **copies > 1) {
            panic!("{after}: {id:?} is there {copies} times");
        }
        for (kind, id) in self.all.iter().filter(|s| s.answered).flat_map(|s| &s.ids) {
            let id = (TYPES[*kind].to_owned(), id.to_string());
            assert!(found.contains_key(&id), "{after}: {id:?} was answered and is gone");
        }
    }

    fn send(&mut self, writer: &WriterHandle) {
        let fresh = |s: &Sending| !s.answered;
        let pick = match self.all.iter().rposition(fresh) {
            Some(unanswered) => Some(unanswered),
            None if !self.all.is_empty() && self.dice.permille(400) => {
                Some(self.dice.index(self.all.len()))
            }
            None => None,
        };
        let at = pick.unwrap_or(self.all.len());
        match pick {
            Some(_) => self.resends += 1,
            None => {
                let first = self.all.iter().map(|s| s.ids.len() as u64).sum::<u64>();
                let count = 1 + self.dice.below(4);
                let ids = (first..first + count).map(|id| (self.dice.index(2), id)).collect();
                self.all.push(Sending { ids, answered: false });
            }
        }
        let batch = self.batch(&self.all[at].ids.clone());
        let received = batch.tallies.iter();
        let received =
            received.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered)).collect();
        let entry = Books::default().open(&batch.tenant, batch.received_at, received);
        let known = self.all[at].answered;
        let Ok(appended) = self.runtime.block_on(writer.append(batch, entry)) else { return };
        let count = self.all[at].ids.len();
        assert!(!known || appended.deduplicated.len() == count, "a resend is known whole");
        self.all[at].answered = true;
    }

    /// The index on disk is damaged, made shorter, or gone.
    fn meddle(&mut self) {
        let dir = Path::new("/data/log/partition-0/dedup");
        let files: Vec<_> = self.fs.tree(dir).into_iter().filter(|f| !f.1.is_empty()).collect();
        if files.is_empty() || !self.dice.permille(250) {
            return;
        }
        let (path, bytes) = &files[self.dice.index(files.len())];
        self.fs.flip(path, self.dice.index(bytes.len() * 8));
    }

    fn life(&mut self) {
        let writer = self.start();
        if self.dice.coin() {
            let errors = Odds { write_error: 50, sync_error: 30, ..Odds::default() };
            let full = Odds { capacity: Some(self.dice.below(60_000)), ..Odds::default() };
            self.fs.set_odds(if self.dice.coin() { errors } else { full });
        }
        if self.dice.permille(700) {
            self.fs.crash_in(1 + self.dice.below(60), false);
        }
        for _ in 0..self.dice.below(15) {
            self.send(&writer);
            self.clock.advance(self.dice.below(2_000_000) as i64);
            if self.dice.permille(300) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if self.dice.permille(600) {
            self.fs.set_odds(Odds::default());
            writer.close();
        }
        if self.dice.permille(400) {
            self.fs.kill()
        } else {
            self.fs.reboot()
        }
        drop(writer);
        self.meddle();
    }
}

#[test]
fn a_client_that_sends_until_it_is_answered_leaves_one_copy() {
    let resends = std::cell::Cell::new(0);
    seeds("dedup", &["P1", "P2"], 150, |seed| {
        let mut run = Run::new(seed);
        for _ in 0..10 {
            run.life();
        }
        run.start();
        resends.update(|n| n + run.resends);
        run.fs.operations()
    });
    Tally::new("sim::dedup", "client duplicates", &["P2", "P5"]).survived(resends.get());
}

/// Scenario: some hours of traffic are in the index, whose slices were never synced; the machine dies.
#[test]
fn ids_outlive_the_machine_whatever_becomes_of_the_index() {
    for seed in 0..30 {
        let mut run = Run::new(seed);
        for _ in 0..3 {
            let writer = run.start();
            for _ in 0..20 {
                run.send(&writer);
                run.clock.advance(60_000_000);
            }
            if seed % 2 == 0 {
                writer.close();
            }
            run.fs.reboot();
            drop(writer);
        }
        let orders: Vec<_> =
            run.all.iter().flat_map(|s| &s.ids).filter(|id| id.0 == 0).copied().collect();
        let writer = run.start();
        let batch = run.batch(&orders);
        let received = vec![(EventType::new("order").unwrap(), orders.len() as u64)];
        let entry = Books::default().open(&batch.tenant, batch.received_at, received);
        let again = run.runtime.block_on(writer.append(batch, entry)).unwrap();
        assert_eq!(again.deduplicated.len(), orders.len(), "seed {seed}");
    }
}
