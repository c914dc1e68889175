//! The books: per tenant, event type and minute, what came in and what became of it.
//!
//! `received = accepted + dead_lettered + deduplicated + rejected + shed`, at every moment apart
//! from requests in flight, which are counted too. A request goes through two hands:
//!
//! 1. [`Unread`]: the tenant is known, the events are not counted. Dropped, whatever the way, the
//!    request counts as refused, in requests and bytes.
//! 2. [`Open`]: its events are received. Each of them is settled by exactly one [`Outcome`], by the
//!    edge where the request ends before the log, by the writer once it is durable. Dropped with
//!    events left it panics in a debug build; in a release build they are `unaccounted`, with an
//!    error and a metric, and the books do not balance.
//!
//! | file | what is there |
//! | --- | --- |
//! | `outcome` | outcomes, reasons, sums |
//! | `entry` | the two hands above |
//! | `minutes`, `sheet` | rows per minute, within a bound; totals beside them |
//! | `record` | a file of records that survives a crash |
//! | `unlogged` | the ledger of outcomes that leave nothing in the log (the log's own: `writer`) |

mod entry;
mod minutes;
mod outcome;
pub mod record;
mod sheet;
#[cfg(test)]
mod tests;
mod unlogged;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;
use tidegate_event::{Code, EventType, ReceivedAt, TenantId};

pub use entry::{Open, Unread};
pub use minutes::{MINUTES_MAX, Minute, Minutes, ROWS_MAX};
pub use outcome::{ByReason, Counts, Outcome, Reason, Tally, Unlogged};
pub use sheet::{Added, Leaf, Sheet};
pub use unlogged::{FILE, Gap, Gaps, UnloggedLedger};

use crate::shed::ShedReason;
use minutes::rows_each;

/// One type's totals.
#[derive(Debug, Default)]
struct Sums {
    tally: Tally,
    rejected: ByReason<Code>,
    shed: ByReason<ShedReason>,
}

/// One tenant's page.
#[derive(Debug, Default)]
struct Page {
    types: HashMap<EventType, Sums>,
    minutes: Minutes<Tally>,
    in_flight: u64,
    unaccounted: u64,
    /// Requests whose events are not counted yet.
    unread: u64,
    refused: Refused,
    /// What left nothing in the log and is in no ledger yet.
    unwritten: Added<Unlogged>,
    unwritten_refused: Refused,
}

/// Requests refused before their events were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// How many.
    pub requests: u64,
    /// The bytes they declared or brought.
    pub bytes: u64,
}

impl Counts for Refused {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
    }
}

/// One tenant's part of the books.
#[derive(Debug)]
struct TenantBook {
    tenant: TenantId,
    tenants: Arc<AtomicUsize>,
    page: Mutex<Page>,
}

/// The books of every tenant.
#[derive(Debug, Default)]
pub struct Books {
    pages: Mutex<HashMap<TenantId, Arc<TenantBook>>>,
    tenants: Arc<AtomicUsize>,
}

/// One tenant's page, copied.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PageCopy {
    /// Per event type.
    pub types: BTreeMap<EventType, Tally>,
    /// Why events were rejected or shed, per event type; only of types that had any.
    pub reasons: BTreeMap<EventType, Reasons>,
    /// Events received whose outcome is not known yet.
    pub in_flight: u64,
    /// Events that were dropped without an outcome.
    pub unaccounted: u64,
    /// Requests refused before their events were counted.
    pub refused_requests: u64,
    /// The bytes those declared or brought.
    pub refused_bytes: u64,
}

/// Why events of one type were not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reasons {
    /// Rejected, by code.
    #[serde(skip_serializing_if = "ByReason::is_empty")]
    pub rejected: ByReason<Code>,
    /// Shed, by reason.
    #[serde(skip_serializing_if = "ByReason::is_empty")]
    pub shed: ByReason<ShedReason>,
}

/// One tenant, type and minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MinuteRow {
    /// Its first moment.
    pub minute: Minute,
    /// Whose.
    pub tenant: TenantId,
    /// Which type.
    pub event_type: EventType,
    /// What came in within it, by its receive time, and what became of that.
    #[serde(flatten)]
    pub tally: Tally,
}

/// How the books stand, of all tenants together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Received minus outcomes minus in flight: must be 0.
    pub difference: i64,
    /// Events received whose outcome is not known yet.
    pub in_flight: u64,
    /// Events that were dropped without an outcome; a part of `difference`.
    pub unaccounted: u64,
    /// Requests whose events are not counted yet.
    pub unread: u64,
    /// Requests refused before their events were counted.
    pub refused: Refused,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TenantBook {
    fn page(&self) -> MutexGuard<'_, Page> {
        lock(&self.page)
    }

    fn rows_max(&self) -> usize {
        rows_each(self.tenants.load(Ordering::Relaxed))
    }
}

impl Page {
    /// Adds to a type's total and to its minute.
    fn change(
        &mut self,
        event_type: &EventType,
        minute: Minute,
        rows_max: usize,
        change: impl Fn(&mut Tally),
    ) -> &mut Sums {
        self.minutes.change(minute, event_type, rows_max, &change);
        let sums = self.types.entry(event_type.clone()).or_default();
        change(&mut sums.tally);
        sums
    }
}

impl Books {
    fn book(&self, tenant: &TenantId) -> Arc<TenantBook> {
        let mut pages = lock(&self.pages);
        if let Some(book) = pages.get(tenant) {
            return Arc::clone(book);
        }
        let (tenants, page) = (Arc::clone(&self.tenants), Mutex::default());
        let book = Arc::new(TenantBook { tenant: tenant.clone(), tenants, page });
        pages.insert(tenant.clone(), Arc::clone(&book));
        self.tenants.store(pages.len(), Ordering::Relaxed);
        book
    }

    fn all(&self) -> Vec<Arc<TenantBook>> {
        lock(&self.pages).values().cloned().collect()
    }

    /// Takes a request whose events are not counted yet; `declared` are its bytes as far as known.
    pub fn unread(&self, tenant: &TenantId, declared: Option<u64>) -> Unread {
        Unread::new(self.book(tenant), declared.unwrap_or(0))
    }

    /// Counts events as received at `received_at` and opens their entry.
    pub fn open(
        &self,
        tenant: &TenantId,
        received_at: ReceivedAt,
        received: Vec<(EventType, u64)>,
    ) -> Open {
        Open::new(self.book(tenant), received_at, received)
    }

    /// Adds what an earlier run left in a ledger, as `tally` counts it.
    pub fn restore<T: Counts>(&self, sheet: &Sheet<T>, tally: impl Fn(&T) -> Tally) {
        for (tenant, leaf) in sheet.iter() {
            let book = self.book(tenant);
            let rows_max = book.rows_max();
            let mut page = book.page();
            for (event_type, counts) in &leaf.types {
                page.types.entry(event_type.clone()).or_default().tally.add(&tally(counts));
            }
            for (minute, event_type, counts) in leaf.minutes.iter() {
                let more = tally(counts);
                page.minutes.change(minute, event_type, rows_max, |row| row.add(&more));
            }
            page.minutes.forget_before(leaf.minutes.since());
        }
    }

    fn restore_reasons(&self, sheet: &Sheet<Unlogged>) {
        for (tenant, leaf) in sheet.iter() {
            let book = self.book(tenant);
            let mut page = book.page();
            for (event_type, counts) in &leaf.types {
                let sums = page.types.entry(event_type.clone()).or_default();
                sums.rejected.merge(&counts.rejected);
                sums.shed.merge(&counts.shed);
            }
        }
    }

    fn restore_refused(&self, tenant: &TenantId, refused: &Refused) {
        self.book(tenant).page().refused.merge(refused);
    }

    /// Takes what is in no ledger yet.
    fn take_unwritten(&self) -> (Added<Unlogged>, BTreeMap<TenantId, Refused>) {
        let (mut added, mut refused) = (Added::default(), BTreeMap::new());
        for book in self.all() {
            let (events, requests) = {
                let rows_max = book.rows_max();
                let mut page = book.page();
                // Its share shrinks as tenants come.
                page.minutes.trim(rows_max);
                let requests = std::mem::take(&mut page.unwritten_refused);
                (std::mem::take(&mut page.unwritten), requests)
            };
            added.merge(&events);
            if requests != Refused::default() {
                refused.insert(book.tenant.clone(), requests);
            }
        }
        (added, refused)
    }

    /// How they stand; cheap enough for every second.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let (mut all, mut difference) = (Standing::default(), 0i128);
        for book in self.all() {
            let page = book.page();
            difference += page.types.values().map(|sums| sums.tally.unsettled()).sum::<i128>();
            all.in_flight += page.in_flight;
            difference -= i128::from(page.in_flight);
            all.unaccounted += page.unaccounted;
            all.unread += page.unread;
            all.refused.merge(&page.refused);
        }
        all.difference = i64::try_from(difference).unwrap_or(i64::MAX);
        all
    }

    /// Every page, copied; each is consistent in itself.
    #[must_use]
    pub fn copy(&self) -> BTreeMap<TenantId, PageCopy> {
        self.all().into_iter().map(|book| (book.tenant.clone(), copy(&book.page()))).collect()
    }

    /// The minutes kept from `from` to before `to`, in order.
    #[must_use]
    pub fn minutes(&self, from: Minute, to: Minute) -> Vec<MinuteRow> {
        let mut rows = Vec::new();
        for book in self.all() {
            let page = book.page();
            let some = page.minutes.between(from, to);
            rows.extend(some.map(|(minute, event_type, tally)| {
                let (tenant, event_type) = (book.tenant.clone(), event_type.clone());
                MinuteRow { minute, tenant, event_type, tally: *tally }
            }));
        }
        rows.sort_by(|a, b| {
            (a.minute, &a.tenant, &a.event_type).cmp(&(b.minute, &b.tenant, &b.event_type))
        });
        rows
    }

    /// Minutes before this one are kept of no tenant, or not of all; `None` where all are kept.
    #[must_use]
    pub fn minutes_since(&self) -> Option<Minute> {
        let all = self.all();
        let since = all.iter().map(|book| book.page().minutes.since()).max();
        since.filter(|since| *since != Minute(i64::MIN))
    }
}

fn copy(page: &Page) -> PageCopy {
    let reasons =
        |sums: &Sums| Reasons { rejected: sums.rejected.clone(), shed: sums.shed.clone() };
    let with_reasons =
        page.types.iter().filter(|(_, s)| !s.rejected.is_empty() || !s.shed.is_empty());
    PageCopy {
        types: page.types.iter().map(|(name, sums)| (name.clone(), sums.tally)).collect(),
        reasons: with_reasons.map(|(name, sums)| (name.clone(), reasons(sums))).collect(),
        in_flight: page.in_flight,
        unaccounted: page.unaccounted,
        refused_requests: page.refused.requests,
        refused_bytes: page.refused.bytes,
    }
}
