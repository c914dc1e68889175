//! A tenant's account: what a request asks, before its body and after it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderMap;
use tidegate_event::{EventType, TenantId};

use super::{
    Grace, Time,
    day::Usage,
    limits::{Levels, Limits},
    state::{Ask, Claim, Key, Refusal, State},
};
use crate::{shed::ShedReason, tenants::Tenant};

/// What is kept of one tenant.
#[derive(Debug)]
pub(super) struct Entry {
    pub tenant: TenantId,
    pub time: Arc<Time>,
    grace: Arc<Grace>,
    pub limits: ArcSwap<Limits>,
    pub state: Mutex<State>,
    known: Mutex<HashSet<EventType>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub(super) fn new(
        tenant: &Arc<Tenant>,
        (time, grace): (Arc<Time>, Arc<Grace>),
        state: State,
    ) -> Self {
        Self {
            tenant: tenant.id.clone(),
            time,
            grace,
            limits: ArcSwap::from_pointee(Limits::of(tenant)),
            state: Mutex::new(state),
            known: Mutex::default(),
        }
    }

    /// The limits of this generation of the tenant.
    pub(super) fn limits(&self, tenant: &Arc<Tenant>) -> Arc<Limits> {
        let limits = self.limits.load_full();
        if Arc::ptr_eq(&limits.tenant, tenant) {
            return limits;
        }
        let limits = Arc::new(Limits::of(tenant));
        self.limits.store(Arc::clone(&limits));
        limits
    }

    pub(super) fn learn<'a>(&self, types: impl Iterator<Item = &'a EventType>) {
        lock(&self.known).extend(types.cloned());
    }

    /// What was used of the day, where days are counted.
    pub(super) fn usage(&self) -> Option<Usage> {
        let limits = self.limits.load();
        let counted = limits.events_per_day.is_some() || limits.bytes_per_day.is_some();
        counted.then(|| lock(&self.state).days.now)
    }
}

/// How patient the client of one connection is: the promise it has, and how often in a row it came
/// before it was told to.
#[derive(Debug, Default)]
pub struct Patience {
    promise: Option<Promise>,
    not_before: Option<(TenantId, u128)>,
    impolite: u32,
}

impl Patience {
    /// Refusals in a row of requests that came before they were told to.
    #[must_use]
    pub fn impolite(&self) -> u32 {
        self.impolite
    }

    /// Gives back what is held for the connection.
    pub fn lets_slot_go(&mut self) {
        self.promise = None;
    }

    /// True while a slot is held for the connection.
    #[must_use]
    pub fn has_promise(&self) -> bool {
        self.promise.is_some()
    }
}

/// A slot that is held for who comes when told; given back when it goes.
#[derive(Debug)]
struct Promise {
    entry: Arc<Entry>,
    key: Option<Key>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            lock(&self.entry.state).cancel(key);
        }
    }
}

/// One tenant's quota, for one request.
#[derive(Debug)]
pub struct Account {
    pub(super) entry: Arc<Entry>,
    pub(super) limits: Arc<Limits>,
    seen: Option<Levels>,
}

/// A request that is over the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub reason: ShedReason,
    /// How long the client is to wait.
    pub after: Duration,
    /// A slot is held for it then: it is not to wait longer than that.
    pub promised: bool,
}

/// How the connection of a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// It stays open if the request is refused.
    pub keeps: bool,
    /// Other requests may be under way on it.
    pub multiplexed: bool,
}

/// A request that was let in: its bytes are charged, and its events as they were estimated.
#[derive(Debug)]
pub struct Admitted {
    entry: Arc<Entry>,
    limits: Arc<Limits>,
    /// `None`: nothing is counted, or it is settled.
    claim: Option<Claim>,
    declared: Option<u64>,
    day: i64,
    bytes: u64,
    reading: bool,
}

impl Account {
    pub(super) fn new(entry: Arc<Entry>, limits: Arc<Limits>) -> Self {
        Self { entry, limits, seen: None }
    }

    /// Charges a body of `declared` bytes before it is read, and as many events as it probably holds.
    ///
    /// # Errors
    /// [`Refused`]: nothing was charged, unless for a promise that `patience` now has.
    pub fn admit(
        &mut self,
        declared: Option<u64>,
        line: Line,
        patience: &Mutex<Patience>,
    ) -> Result<Admitted, Refused> {
        let entry = Arc::clone(&self.entry);
        let limits = Arc::clone(&self.limits);
        let (now, moment) = (entry.time.now(), entry.time.moment());
        let mut admitted = Admitted {
            entry,
            limits,
            claim: None,
            declared,
            day: moment.day,
            bytes: declared.unwrap_or(1),
            reading: false,
        };
        if self.limits.are_none() {
            return Ok(admitted);
        }
        let mut patience = lock(patience);
        let ask = patience.ask(&self.entry, declared, line);
        let taken = {
            let mut state = lock(&self.entry.state);
            let taken = state.admit(&self.limits, now, moment, ask);
            self.seen = Some(state.levels(&self.limits, moment));
            taken
        };
        match taken {
            Ok(claim) => {
                patience.served();
                admitted.claim = Some(claim);
                Ok(admitted)
            }
            Err(refusal) => Err(patience.refused(&self.entry, refusal, now)),
        }
    }

    /// As [`Account::admit`], and where that refuses a request of `protocol`, what the tenant's grace takes.
    ///
    /// # Errors
    /// As [`Account::admit`].
    pub fn admit_or_grace(
        &mut self,
        protocol: Option<&str>,
        declared: Option<u64>,
        line: Line,
        patience: &Mutex<Patience>,
    ) -> Result<Admitted, Refused> {
        self.admit(declared, line, patience).or_else(|refused| {
            let graced = protocol.and_then(|name| self.graced(name, declared, patience));
            graced.ok_or(refused)
        })
    }

    /// Takes a request that was refused, where the tenant has grace left: nothing is charged, and its
    /// connection counts as served. `bytes`: what it declared, or has.
    pub fn graced(
        &self,
        protocol: &str,
        bytes: Option<u64>,
        patience: &Mutex<Patience>,
    ) -> Option<Admitted> {
        let (now, declared) = (self.entry.time.now(), bytes?);
        if !self.entry.grace.takes(&self.entry.tenant, protocol, declared, now) {
            return None;
        }
        let promise = {
            let mut patience = lock(patience);
            patience.served();
            patience.promise.take()
        };
        // It locks the tenant's state.
        drop(promise);
        Some(Admitted {
            entry: Arc::clone(&self.entry),
            limits: Arc::clone(&self.limits),
            claim: None,
            declared: bytes,
            day: self.entry.time.moment().day,
            bytes: declared,
            reading: false,
        })
    }

    /// Which event types the tenant may name.
    #[must_use]
    pub fn types(&self) -> Types {
        Types { entry: Arc::clone(&self.entry), most: self.limits.event_types }
    }

    /// The `RateLimit-Policy` and `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers-10).
    pub fn describe(&self, headers: &mut HeaderMap) {
        if self.limits.are_none() {
            return;
        }
        let levels = self.seen.unwrap_or_else(|| {
            let (now, moment) = (self.entry.time.now(), self.entry.time.moment());
            let mut state = lock(&self.entry.state);
            state.advance(&self.limits, now, moment);
            state.levels(&self.limits, moment)
        });
        self.limits.describe(&levels, headers);
    }
}

impl Patience {
    /// Takes the promise out, if it is this tenant's.
    fn ask(&mut self, entry: &Arc<Entry>, declared: Option<u64>, line: Line) -> Ask {
        let own = self.promise.as_ref().is_some_and(|held| Arc::ptr_eq(&held.entry, entry));
        let promise = if own { self.promise.take().and_then(Promise::into_key) } else { None };
        let not_before = self.not_before.as_ref().filter(|(tenant, _)| *tenant == entry.tenant);
        Ask {
            declared,
            promise,
            not_before: not_before.map(|(_, then)| *then),
            keeps: line.keeps,
            multiplexed: line.multiplexed,
        }
    }

    fn served(&mut self) {
        (self.not_before, self.impolite) = (None, 0);
    }

    fn refused(&mut self, entry: &Arc<Entry>, refusal: Refusal, now: u128) -> Refused {
        self.impolite = if refusal.impolite { self.impolite.saturating_add(1) } else { 0 };
        self.not_before = Some((entry.tenant.clone(), now + refusal.after.as_nanos()));
        if let Some(key) = refusal.promise {
            self.promise = Some(Promise { entry: Arc::clone(entry), key: Some(key) });
        }
        Refused {
            reason: refusal.reason,
            after: refusal.after,
            promised: refusal.promise.is_some(),
        }
    }
}

impl Promise {
    fn into_key(mut self) -> Option<Key> {
        self.key.take()
    }
}

impl Admitted {
    /// From here on its bytes stay charged.
    pub fn begin_reading(&mut self) {
        self.reading = true;
    }

    /// The body is there, and has so many bytes.
    pub fn read(&mut self, bytes: u64) {
        self.bytes = bytes;
        if self.claim.is_some() && self.declared.is_none() {
            // One was charged to get in.
            lock(&self.entry.state).charge_bytes(&self.limits, bytes.saturating_sub(1));
        }
    }

    /// Charges the events that were found instead of those that were expected.
    ///
    /// # Errors
    /// [`Refused`]: all is given back but the bytes, which were read.
    pub fn settle(
        mut self,
        counts: &[(EventType, u64)],
        account: &mut Account,
        line: Line,
        patience: &Mutex<Patience>,
    ) -> Result<(), Refused> {
        let Some(held) = self.claim.take() else { return Ok(()) };
        let limited = |(name, n): &(EventType, u64)| {
            self.limits.types.contains_key(name).then(|| (name.clone(), *n))
        };
        let found = Claim {
            events: counts.iter().map(|(_, n)| n).sum(),
            bytes: self.bytes,
            types: counts.iter().filter_map(limited).collect(),
        };
        let (now, moment) = (self.entry.time.now(), self.entry.time.moment());
        let mut patience = lock(patience);
        let ask = Ask {
            declared: Some(self.bytes),
            promise: None,
            not_before: None,
            // One promise a connection: another request on it may have got one meanwhile.
            keeps: line.keeps && !patience.has_promise(),
            multiplexed: line.multiplexed,
        };
        let settled = {
            let mut state = lock(&self.entry.state);
            let held = (&held, self.day);
            let settled = state.settle(&self.limits, (now, moment), held, found, ask);
            account.seen = Some(state.levels(&self.limits, moment));
            settled
        };
        settled.map_err(|refusal| patience.refused(&self.entry, refusal, now))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(mut claim) = self.claim.take() else { return };
        if self.reading {
            claim.bytes = 0;
        }
        lock(&self.entry.state).give_up(&self.limits, &claim, self.day);
    }
}

/// The event types a tenant has named, and how many it may.
#[derive(Clone, Debug)]
pub struct Types {
    entry: Arc<Entry>,
    most: u64,
}

impl Types {
    /// True where the tenant has named this type before, or may name one more, which it now has.
    #[must_use]
    pub fn take(&self, event_type: &EventType) -> bool {
        let mut known = lock(&self.entry.known);
        if known.contains(event_type) {
            return true;
        }
        let room = (known.len() as u64) < self.most;
        if room {
            known.insert(event_type.clone());
        }
        room
    }

    /// True where the tenant has named this type before.
    #[must_use]
    pub fn knows(&self, event_type: &EventType) -> bool {
        lock(&self.entry.known).contains(event_type)
    }

    /// All that it has named, in no order.
    #[must_use]
    pub fn names(&self) -> Vec<EventType> {
        lock(&self.entry.known).iter().cloned().collect()
    }

    /// How many it may name.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most
    }
}
