//! The books against a plain model, with many requests under way at once and restarts between.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc};

use proptest::prelude::*;
use tidegate_event::{Code, EventType, ReceivedAt, TenantId};

use super::*;
use crate::{shed::ShedReason, storage::Disk};

const MINUTE: i64 = 60_000_000;

fn tenant(n: usize) -> TenantId {
    TenantId::new(["acme", "other"][n]).unwrap()
}

fn kind(n: usize) -> EventType {
    EventType::new(["a", "b", "c"][n]).unwrap()
}

fn outcome(n: usize) -> Outcome {
    [
        Outcome::Accepted,
        Outcome::DeadLettered,
        Outcome::Deduplicated,
        Outcome::Rejected(Code::InvalidJson),
        Outcome::Rejected(Code::TooDeep),
        Outcome::Shed(ShedReason::QuotaEvents),
    ][n]
}

#[derive(Clone, Debug)]
enum Step {
    /// A request comes: tenant, minute, events of each type.
    Arrive(usize, i64, [u64; 3]),
    /// A request goes before its events are counted.
    Refuse(usize, u64),
    /// Some request under way has some events of a type settled.
    Settle(prop::sample::Index, usize, usize, u64),
    /// Some request under way ends: all that is left is shed.
    Shed(prop::sample::Index),
    /// The ledger is written; what comes after a crash is as of here.
    Write,
    /// The process ends, all under way shed before (`true`), or it is killed.
    Restart(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..2usize, 0..4i64, prop::array::uniform3(0..5u64))
            .prop_map(|(t, m, events)| Step::Arrive(t, m, events)),
        1 => (0..2usize, 0..1000u64).prop_map(|(t, bytes)| Step::Refuse(t, bytes)),
        6 => (index(), 0..3usize, 0..6usize, 0..5u64)
            .prop_map(|(at, k, o, n)| Step::Settle(at, k, o, n)),
        2 => index().prop_map(Step::Shed),
        1 => Just(Step::Write),
        1 => any::<bool>().prop_map(Step::Restart),
    ]
}

type Key = (TenantId, i64, EventType);

/// What must stand in the books: plain sums.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    rows: BTreeMap<Key, Tally>,
    refused: BTreeMap<TenantId, (u64, u64)>,
    why: BTreeMap<(TenantId, EventType, &'static str), u64>,
    gaps: u64,
}

impl Model {
    fn settle(&mut self, key: &Key, outcome: Outcome, events: u64) {
        self.rows.get_mut(key).unwrap().settle(outcome, events);
        let why = match outcome {
            Outcome::Rejected(code) => code.as_str(),
            Outcome::Shed(reason) => reason.as_str(),
            _ => return,
        };
        *self.why.entry((key.0.clone(), key.2.clone(), why)).or_default() += events;
    }

    /// What a restart leaves of it where the log is elsewhere: what left nothing in the log.
    fn unlogged(mut self) -> Self {
        for row in self.rows.values_mut() {
            (row.accepted, row.dead_lettered) = (0, 0);
            row.received = row.deduplicated + row.rejected + row.shed;
        }
        self.rows.retain(|_, row| *row != Tally::default());
        self.why.retain(|_, events| *events > 0);
        self
    }
}

struct Under {
    tenant: TenantId,
    minute: i64,
    left: [u64; 3],
    open: Open,
}

struct Run {
    dir: tempfile::TempDir,
    books: Books,
    ledger: UnloggedLedger,
    under: Vec<Under>,
    model: Model,
    /// As of the last record.
    written: Model,
    now: i64,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (books, ledger) = Self::open(dir.path(), 0, true);
        let (model, written) = Default::default();
        Self { dir, books, ledger, under: Vec::new(), model, written, now: 0 }
    }

    fn open(dir: &std::path::Path, now: i64, empty: bool) -> (Books, UnloggedLedger) {
        let books = Books::default();
        let (disk, now) = (Arc::new(Disk), ReceivedAt(now));
        let ledger = UnloggedLedger::open(disk, dir, "abcd1234", empty, &books, now).unwrap();
        (books, ledger)
    }

    fn shed(&mut self, at: usize) {
        let under = self.under.swap_remove(at);
        for (k, left) in under.left.into_iter().enumerate().filter(|(_, left)| *left > 0) {
            let key = (under.tenant.clone(), under.minute, kind(k));
            self.model.settle(&key, Outcome::Shed(ShedReason::LogFull), left);
        }
        under.open.shed(ShedReason::LogFull);
    }

    fn take(&mut self, step: Step) {
        self.now += 1;
        match step {
            Step::Arrive(t, minute, events) => {
                let (tenant, at) = (tenant(t), ReceivedAt(minute * MINUTE + self.now));
                let some = || events.into_iter().enumerate().filter(|(_, n)| *n > 0);
                let received = some().map(|(k, n)| (kind(k), n)).collect();
                for (k, n) in some() {
                    let key = (tenant.clone(), minute, kind(k));
                    self.model.rows.entry(key).or_default().received += n;
                }
                let open = self.books.unread(&tenant, None).count(at, received);
                self.under.push(Under { tenant, minute, left: events, open });
            }
            Step::Refuse(t, bytes) => {
                drop(self.books.unread(&tenant(t), Some(bytes)));
                let refused = self.model.refused.entry(tenant(t)).or_default();
                *refused = (refused.0 + 1, refused.1 + bytes);
            }
            Step::Settle(..) | Step::Shed(_) if self.under.is_empty() => {}
            Step::Settle(at, k, o, n) => {
                let at = at.index(self.under.len());
                let under = &mut self.under[at];
                let n = n.min(under.left[k]);
                under.left[k] -= n;
                under.open.settle(&kind(k), outcome(o), n);
                if n > 0 {
                    let key = (under.tenant.clone(), under.minute, kind(k));
                    self.model.settle(&key, outcome(o), n);
                }
            }
            Step::Shed(at) => self.shed(at.index(self.under.len())),
            Step::Write => {
                self.ledger.write(&self.books, ReceivedAt(self.now)).unwrap();
                self.written = self.model.clone();
            }
            Step::Restart(clean) => self.restart(clean),
        }
    }

    fn restart(&mut self, clean: bool) {
        let last = self.ledger.gaps().count;
        let mut kept = if clean {
            while !self.under.is_empty() {
                self.shed(0);
            }
            self.ledger.close(&self.books, ReceivedAt(self.now)).unwrap();
            self.ledger.write(&self.books, ReceivedAt(self.now + 5)).unwrap();
            self.model.clone()
        } else {
            let mut kept = self.written.clone();
            kept.gaps = last + 1;
            kept
        };
        while !self.under.is_empty() {
            self.shed(0);
        }
        kept = kept.unlogged();
        (self.books, self.ledger) = Self::open(self.dir.path(), self.now + 10, false);
        self.model = kept.clone();
        self.written = kept;
    }

    fn check(&self) {
        let standing = self.books.standing();
        let left: u64 = self.under.iter().flat_map(|under| under.left).sum();
        assert_eq!((standing.difference, standing.in_flight), (0, left));
        assert_eq!((standing.unaccounted, standing.unread), (0, 0));
        let minutes = self.books.minutes(Minute(i64::MIN), Minute(i64::MAX)).into_iter();
        let minutes = minutes.map(|row| ((row.tenant, row.minute.0, row.event_type), row.tally));
        assert_eq!(minutes.collect::<BTreeMap<_, _>>(), self.model.rows);
        let mut totals = BTreeMap::<_, Tally>::new();
        for ((tenant, _, kind), tally) in &self.model.rows {
            totals.entry((tenant.clone(), kind.clone())).or_default().add(tally);
        }
        let (mut found, mut why, mut refused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (tenant, page) in self.books.copy() {
            for (kind, tally) in page.types {
                found.insert((tenant.clone(), kind), tally);
            }
            for (kind, reasons) in page.reasons {
                let rejected = reasons.rejected.iter().map(|(code, n)| (code.as_str(), n));
                let shed = reasons.shed.iter().map(|(reason, n)| (reason.as_str(), n));
                let key = |text| (tenant.clone(), kind.clone(), text);
                why.extend(rejected.chain(shed).map(|(text, n)| (key(text), n)));
            }
            if page.refused_requests > 0 {
                refused.insert(tenant, (page.refused_requests, page.refused_bytes));
            }
        }
        assert_eq!((found, why), (totals, self.model.why.clone()));
        assert_eq!(refused, self.model.refused);
        assert_eq!(self.ledger.gaps().count, self.model.gaps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_books_are_what_a_plain_model_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut run = Run::new();
        for step in steps {
            run.take(step);
            run.check();
        }
        while !run.under.is_empty() {
            run.shed(0);
        }
        run.check();
    }
}

/// What a panic said, where there was one.
fn panic_of(act: impl FnOnce()) -> Option<String> {
    let panic = std::panic::catch_unwind(AssertUnwindSafe(act)).err()?;
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn an_entry_dropped_with_events_left_panics_in_debug_and_is_unaccounted_for_good() {
    let books = Books::default();
    let mut open = books.open(&tenant(0), ReceivedAt(0), vec![(kind(0), 5)]);
    open.settle(&kind(0), Outcome::Accepted, 2);
    let panic = panic_of(move || drop(open));
    if cfg!(debug_assertions) {
        let said = panic.unwrap();
        assert!(said.contains("3 events of acme were dropped without an outcome"), "{said}");
    } else {
        assert_eq!(panic, None);
    }
    let standing = books.standing();
    assert_eq!((standing.difference, standing.unaccounted, standing.in_flight), (3, 3, 0));
}

#[test]
fn an_entry_lost_in_another_panic_is_unaccounted_and_does_not_panic_again() {
    let books = Books::default();
    let said = panic_of(|| {
        let _open = books.open(&tenant(0), ReceivedAt(0), vec![(kind(0), 5)]);
        panic!("{}", "the first");
    });
    assert_eq!(said.unwrap(), "the first");
    assert_eq!(books.standing().unaccounted, 5);
}

#[test]
fn an_event_settled_twice_shows() {
    let books = Books::default();
    let mut open = books.open(&tenant(0), ReceivedAt(0), vec![(kind(0), 1)]);
    open.settle(&kind(0), Outcome::Accepted, 1);
    let panic = panic_of(move || open.settle(&kind(0), Outcome::Deduplicated, 1));
    assert_eq!(panic.is_some(), cfg!(debug_assertions));
    assert_eq!(books.standing().difference, -1);
}

#[test]
fn a_type_named_twice_in_one_request_is_one() {
    let books = Books::default();
    let received = vec![(kind(1), 1), (kind(0), 2), (kind(1), 3)];
    let mut open = books.open(&tenant(0), ReceivedAt(0), received);
    open.settle(&kind(1), Outcome::Accepted, 4);
    open.shed(ShedReason::Storage);
    let standing = books.standing();
    assert_eq!((standing.difference, standing.in_flight), (0, 0));
}

#[test]
fn one_tenants_rows_do_not_push_out_anothers() {
    let books = Books::default();
    let open = |tenant: &TenantId, minute: i64| {
        let open = books.open(tenant, ReceivedAt(minute * MINUTE), vec![(kind(0), 1)]);
        open.shed(ShedReason::LogFull);
    };
    for n in 0..9_999 {
        open(&TenantId::new(&format!("t{n}")).unwrap(), 0);
    }
    for minute in 0..100 {
        open(&tenant(0), minute);
    }
    let rows = books.minutes(Minute(i64::MIN), Minute(i64::MAX));
    assert_eq!(rows.iter().filter(|row| row.minute == Minute(0)).count(), 9_999);
    assert_eq!(rows.iter().filter(|row| row.tenant == tenant(0)).count(), 16);
    assert_eq!(books.minutes_since(), Some(Minute(84)));
    assert_eq!(books.copy()[&tenant(0)].types[&kind(0)].shed, 100);
}

#[test]
fn a_damaged_or_missing_ledger_is_a_gap_and_is_set_aside() {
    let mut run = Run::new();
    run.take(Step::Refuse(0, 9));
    run.ledger.close(&run.books, ReceivedAt(7)).unwrap();
    let (path, dir) = (run.dir.path().join(FILE), run.dir.path().to_owned());
    let (_, ledger) = Run::open(&dir, 50, false);
    assert_eq!(ledger.gaps().count, 0);
    let (_, ledger) = Run::open(&dir, 60, false);
    let gap = Gap { from: Some(ReceivedAt(50)), to: ReceivedAt(60) };
    assert_eq!(ledger.gaps().spans, [gap]);
    std::fs::write(&path, "{\"crc32c\":1,\"ledger\":{}}\n").unwrap();
    let (books, ledger) = Run::open(&dir, 70, false);
    assert_eq!(ledger.gaps().spans, [Gap { from: None, to: ReceivedAt(70) }]);
    assert!(books.copy().is_empty());
    assert!(dir.join("books.json.damaged").exists());
    std::fs::remove_file(&path).unwrap();
    let (_, ledger) = Run::open(&dir, 80, false);
    assert_eq!(ledger.gaps().spans, [Gap { from: None, to: ReceivedAt(80) }]);
}

#[test]
fn gaps_are_counted_and_the_newest_kept() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..120 {
        Run::open(dir.path(), n, true);
    }
    let (_, ledger) = Run::open(dir.path(), 120, false);
    let gaps = ledger.gaps();
    assert_eq!((gaps.count, gaps.spans.len()), (120, 100));
    assert_eq!(gaps.spans[99], Gap { from: Some(ReceivedAt(119)), to: ReceivedAt(120) });
}
