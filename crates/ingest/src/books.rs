//! The books: per tenant and event type, what came in and what became of it.
//!
//! `received = accepted + dead_lettered + deduplicated + rejected + shed`, at every moment apart
//! from requests in flight, which are counted too. The edge opens an entry for a request once its
//! events are counted ([`Books::open`]); whoever holds the [`Open`] entry settles it: the edge where
//! the request ends before the log, the writer once it is durable. An entry that is dropped unsettled
//! stays in `in_flight`, and so the books do not balance.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

/// What became of the events of one tenant and type, since the books were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tally {
    /// Events counted when the request was decoded.
    pub received: u64,
    /// Durable and valid.
    pub accepted: u64,
    /// Durable with a reason.
    pub dead_lettered: u64,
    /// Known already by their id.
    pub deduplicated: u64,
    /// Told the client that they cannot be kept.
    pub rejected: u64,
    /// Told the client to send them again.
    pub shed: u64,
}

impl Tally {
    /// Adds another tally, field by field. What a damaged file says may be beyond 64 bits together:
    /// it stays at the end, and the books do not balance.
    pub fn add(&mut self, other: &Self) {
        let sum = |mine: &mut u64, other: u64| *mine = mine.saturating_add(other);
        sum(&mut self.received, other.received);
        sum(&mut self.accepted, other.accepted);
        sum(&mut self.dead_lettered, other.dead_lettered);
        sum(&mut self.deduplicated, other.deduplicated);
        sum(&mut self.rejected, other.rejected);
        sum(&mut self.shed, other.shed);
    }

    /// Received minus every outcome: what is in flight, if the books are right.
    #[must_use]
    pub fn unsettled(&self) -> i128 {
        let outcomes =
            [self.accepted, self.dead_lettered, self.deduplicated, self.rejected, self.shed];
        i128::from(self.received) - outcomes.iter().map(|n| i128::from(*n)).sum::<i128>()
    }
}

/// One tenant's page.
#[derive(Debug, Default)]
struct Page {
    types: HashMap<EventType, Tally>,
    in_flight: u64,
    refused_requests: u64,
    refused_bytes: u64,
}

/// The books of every tenant.
#[derive(Debug, Default)]
pub struct Books {
    pages: Mutex<HashMap<TenantId, Arc<Mutex<Page>>>>,
}

/// One request's entry: events received whose outcome is not known yet.
#[derive(Debug)]
#[must_use = "an entry that is not settled leaves the books open"]
pub struct Open {
    page: Arc<Mutex<Page>>,
    received: Vec<(EventType, u64)>,
}

/// One tenant's page, copied.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PageCopy {
    /// Per event type.
    pub types: BTreeMap<EventType, Tally>,
    /// Events received whose outcome is not known yet.
    pub in_flight: u64,
    /// Requests refused before their body was read.
    pub refused_requests: u64,
    /// The bytes those declared.
    pub refused_bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Books {
    fn page(&self, tenant: &TenantId) -> Arc<Mutex<Page>> {
        let mut pages = lock(&self.pages);
        match pages.get(tenant) {
            Some(page) => Arc::clone(page),
            None => Arc::clone(pages.entry(tenant.clone()).or_default()),
        }
    }

    /// Counts events as received and opens their entry.
    pub fn open(&self, tenant: &TenantId, received: Vec<(EventType, u64)>) -> Open {
        let page = self.page(tenant);
        {
            let mut page = lock(&page);
            for (event_type, count) in &received {
                page.in_flight += count;
                match page.types.get_mut(event_type) {
                    Some(tally) => tally.received += count,
                    None => {
                        let tally = Tally { received: *count, ..Tally::default() };
                        page.types.insert(event_type.clone(), tally);
                    }
                }
            }
        }
        Open { page, received }
    }

    /// Counts a request refused before its body was read.
    pub fn refuse_unread(&self, tenant: &TenantId, declared_bytes: u64) {
        let page = self.page(tenant);
        let mut page = lock(&page);
        page.refused_requests += 1;
        page.refused_bytes += declared_bytes;
    }

    /// Adds what an earlier run left behind (outcomes of the log and of the last ledger).
    pub fn restore(&self, tenant: &TenantId, event_type: &EventType, tally: &Tally) {
        let page = self.page(tenant);
        lock(&page).types.entry(event_type.clone()).or_default().add(tally);
    }

    /// Every page, copied; each is consistent in itself.
    #[must_use]
    pub fn copy(&self) -> BTreeMap<TenantId, PageCopy> {
        let pages: Vec<_> =
            lock(&self.pages).iter().map(|(t, p)| (t.clone(), Arc::clone(p))).collect();
        let copy = |page: &Mutex<Page>| {
            let page = lock(page);
            PageCopy {
                types: page.types.iter().map(|(k, v)| (k.clone(), *v)).collect(),
                in_flight: page.in_flight,
                refused_requests: page.refused_requests,
                refused_bytes: page.refused_bytes,
            }
        };
        pages.into_iter().map(|(tenant, page)| (tenant, copy(&page))).collect()
    }
}

impl Open {
    /// Adds outcomes (their `received` is ignored) and takes as many events out of flight. An entry
    /// may be settled in parts: what was rejected by the edge, the rest by the writer.
    pub fn settle(&mut self, event_type: &EventType, outcome: &Tally) {
        let outcome = Tally { received: 0, ..*outcome };
        let settled = u64::try_from(-outcome.unsettled()).unwrap_or(0);
        let mut page = lock(&self.page);
        page.in_flight = page.in_flight.saturating_sub(settled);
        page.types.entry(event_type.clone()).or_default().add(&outcome);
        if let Some((_, left)) = self.received.iter_mut().find(|(t, _)| t == event_type) {
            *left = left.saturating_sub(settled);
        }
    }

    /// Settles all that is left as shed.
    pub fn shed(mut self) {
        for (event_type, left) in std::mem::take(&mut self.received) {
            self.settle(&event_type, &Tally { shed: left, ..Tally::default() });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_settled_in_parts_balances() {
        let books = Books::default();
        let tenant = TenantId::new("acme").unwrap();
        let (a, b) = (EventType::new("a").unwrap(), EventType::new("b").unwrap());
        let mut open = books.open(&tenant, vec![(a.clone(), 5), (b.clone(), 2)]);
        assert_eq!(books.copy()[&tenant].in_flight, 7);
        open.settle(&a, &Tally { rejected: 1, ..Tally::default() });
        open.settle(&a, &Tally { accepted: 3, dead_lettered: 1, ..Tally::default() });
        open.shed();
        let page = books.copy().remove(&tenant).unwrap();
        assert_eq!(page.in_flight, 0);
        assert_eq!(page.types[&a].unsettled(), 0);
        assert_eq!(page.types[&b], Tally { received: 2, shed: 2, ..Tally::default() });
    }

    #[test]
    fn an_entry_nobody_settles_shows() {
        let books = Books::default();
        let tenant = TenantId::new("acme").unwrap();
        let a = EventType::new("a").unwrap();
        drop(books.open(&tenant, vec![(a.clone(), 5)]));
        let page = books.copy().remove(&tenant).unwrap();
        assert_eq!((page.in_flight, page.types[&a].unsettled()), (5, 5));
    }
}
