//! The two hands a request goes through: not counted yet, and counted until settled.

use std::sync::Arc;

use tidegate_event::{EventType, ReceivedAt};

use super::{Counts, Minute, Outcome, Refused, TenantBook, Unlogged};
use crate::{metrics, shed::ShedReason};

/// A request of a known tenant whose events are not counted yet. Dropped, it counts as refused:
/// there is no way out of the edge that leaves nothing in the books.
#[derive(Debug)]
#[must_use = "dropped at once, the request counts as refused"]
pub struct Unread {
    book: Arc<TenantBook>,
    bytes: u64,
    counted: bool,
}

impl Unread {
    pub(super) fn new(book: Arc<TenantBook>, bytes: u64) -> Self {
        book.page().unread += 1;
        Self { book, bytes, counted: false }
    }

    /// How many bytes its body turned out to have.
    pub fn set_bytes(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// Its events are counted: received at `received_at`.
    pub fn count(mut self, received_at: ReceivedAt, received: Vec<(EventType, u64)>) -> Open {
        self.counted = true;
        Open::new(Arc::clone(&self.book), received_at, received)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let mut page = self.book.page();
        page.unread -= 1;
        if !self.counted {
            let one = Refused { requests: 1, bytes: self.bytes };
            page.refused.merge(&one);
            page.unwritten_refused.merge(&one);
        }
    }
}

/// One request's entry: events received whose outcome is not known yet.
#[derive(Debug)]
#[must_use = "an entry that is not settled leaves the books open"]
pub struct Open {
    book: Arc<TenantBook>,
    minute: Minute,
    /// Events without an outcome, by type, in order.
    left: Vec<(EventType, u64)>,
    /// True where the edge that handed them on counts what is shed.
    lent: bool,
}

impl Open {
    pub(super) fn new(
        book: Arc<TenantBook>,
        received_at: ReceivedAt,
        mut received: Vec<(EventType, u64)>,
    ) -> Self {
        let (minute, rows_max) = (Minute::of(received_at), book.rows_max());
        received.sort_unstable();
        received.dedup_by(|next, first| {
            let same = next.0 == first.0;
            first.1 += if same { next.1 } else { 0 };
            same
        });
        {
            let mut page = book.page();
            for (event_type, events) in &received {
                page.in_flight += events;
                page.change(event_type, minute, rows_max, |tally| tally.received += events);
            }
        }
        Self { book, minute, left: received, lent: false }
    }

    /// Gives `events` of a type their outcome. An entry may be settled in parts: what was rejected
    /// by the edge, the rest by the writer.
    pub fn settle(&mut self, event_type: &EventType, outcome: Outcome, events: u64) {
        if events == 0 {
            return;
        }
        let (minute, rows_max) = (self.minute, self.book.rows_max());
        let place = self.left.binary_search_by(|(known, _)| known.cmp(event_type));
        let mut left = place.ok().and_then(|place| self.left.get_mut(place)).map(|(_, left)| left);
        let taken = left.as_ref().map_or(0, |left| events.min(**left));
        if let Some(left) = &mut left {
            **left -= taken;
        }
        let mut page = self.book.page();
        page.in_flight -= taken;
        let sums = page.change(event_type, minute, rows_max, |t| t.settle(outcome, events));
        match outcome {
            Outcome::Rejected(code) => sums.rejected.add(code, events),
            Outcome::Shed(reason) => sums.shed.add(reason, events),
            Outcome::Accepted | Outcome::DeadLettered | Outcome::Deduplicated => {}
        }
        if let Some(one) = Unlogged::of(outcome, events) {
            page.unwritten.add(&self.book.tenant, event_type, minute, rows_max, &one);
        }
        drop(page);
        // Two outcomes for one event stand in the books, which then differ from 0.
        debug_assert!(taken == events, "{events} of {event_type} settled, {taken} were left");
    }

    /// Of events that another process handed on: what is shed of them was never received here, but
    /// where the client is told.
    pub fn lend(mut self) -> Self {
        self.lent = true;
        self
    }

    /// What is left has its outcome in another process' books: here it was never received.
    pub fn hand_over(mut self) {
        let rows_max = self.book.rows_max();
        let left = std::mem::take(&mut self.left);
        let mut page = self.book.page();
        for (event_type, events) in left.into_iter().filter(|(_, events)| *events != 0) {
            page.in_flight -= events;
            page.change(&event_type, self.minute, rows_max, |tally| tally.received -= events);
        }
    }

    /// What is left may be in another process' books, or in none: here its request of `bytes` counts
    /// as refused, as one whose events were never counted.
    pub fn lose_sight(self, bytes: u64) {
        {
            let mut page = self.book.page();
            let one = Refused { requests: 1, bytes };
            page.refused.merge(&one);
            page.unwritten_refused.merge(&one);
        }
        self.hand_over();
    }

    /// Settles all that is left as shed.
    pub fn shed(mut self, reason: ShedReason) {
        if self.lent {
            return self.hand_over();
        }
        for (event_type, left) in self.left.clone() {
            self.settle(&event_type, Outcome::Shed(reason), left);
        }
    }

    fn left(&self) -> u64 {
        self.left.iter().map(|(_, left)| left).sum()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.left();
        if left == 0 {
            return;
        }
        {
            let mut page = self.book.page();
            page.in_flight -= left;
            page.unaccounted += left;
        }
        metrics::books_unaccounted(left);
        let tenant = &self.book.tenant;
        tracing::error!(%tenant, events = left, "events were dropped without an outcome: a defect");
        debug_assert!(
            std::thread::panicking(),
            "{left} events of {tenant} were dropped without an outcome"
        );
    }
}
