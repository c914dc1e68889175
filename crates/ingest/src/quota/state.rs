//! One tenant's buckets, day and promises: pure, so that a test can run hours of it in a moment.

use std::{collections::BTreeMap, time::Duration};

use tidegate_event::EventType;

use super::{
    bucket::{Bucket, Flow, Slot},
    day::{Days, Moment, Usage},
    limits::{Level, Levels, Limits, Rate},
};
use crate::shed::ShedReason;

/// How far ahead a slot is promised.
pub(super) const HORIZON: Duration = Duration::from_secs(60);
/// How long after its time a promise is kept.
const GRACE: Duration = Duration::from_secs(10);
/// Promises of one tenant at once.
const PROMISES_MAX: usize = 10_000;
/// HTTP/2: requests sent before their client could know of a refusal are not early.
const IN_FLIGHT: Duration = Duration::from_millis(250);
/// What may be waited for where nobody can say how long.
const SOON: Duration = Duration::from_secs(1);

/// What feeds the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Feed {
    /// The clock: no other edge shares this quota.
    #[default]
    Own,
    /// The clock, for one edge's part of so many.
    Alone(u32),
    /// Leases that were taken for one of so many edges.
    Leased(u32),
}

/// One bucket, with what was seen of its use, for leases.
#[derive(Debug, Default)]
pub(super) struct Tank {
    pub bucket: Bucket,
    /// Units charged since the last lease.
    pub charged: u64,
    /// The same, over the last few leases.
    pub demand: u64,
    /// What leases bring, in units a second; 0: not known.
    pub expected: u64,
}

impl Tank {
    fn exchange(&mut self, held: u64, n: u64) {
        self.bucket.exchange(held, n);
        self.charged = (self.charged + n).saturating_sub(held);
    }

    fn advance(&mut self, rate: Rate, feed: Feed, now: u128) {
        let by = match feed {
            Feed::Own => 1,
            Feed::Alone(edges) => edges.max(1),
            Feed::Leased(_) => 0,
        };
        self.bucket.advance(Flow { per_second: rate.per_second, by }, now);
        match feed {
            Feed::Own => self.bucket.resize(rate.burst),
            // What does not fit is gone: an edge alone has its part and no more.
            Feed::Alone(edges) => {
                self.bucket.resize_backed(part(rate.burst / 2, edges));
            }
            // Resized as leases come.
            Feed::Leased(_) => {}
        }
    }

    /// By what its waits are told.
    fn flow(&self, rate: Rate, feed: Feed) -> Flow {
        match feed {
            Feed::Own => Flow { per_second: rate.per_second, by: 1 },
            Feed::Alone(edges) => Flow { per_second: rate.per_second, by: edges.max(1) },
            Feed::Leased(edges) if self.expected == 0 => {
                Flow { per_second: rate.per_second, by: edges.max(1) }
            }
            Feed::Leased(_) => Flow { per_second: self.expected, by: 1 },
        }
    }

    fn level(&mut self, rate: Rate, feed: Feed) -> Level {
        let flow = self.flow(rate, feed);
        Level { left: self.bucket.free(), full_in: self.bucket.full_in(flow) }
    }
}

/// One of `edges` parts.
pub(super) fn part(n: u64, edges: u32) -> u64 {
    (n / u64::from(edges.max(1))).max(1)
}

/// What a request takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub events: u64,
    pub bytes: u64,
    /// Of types with a bucket of their own.
    pub types: Vec<(EventType, u64)>,
}

impl Claim {
    /// What of it is the row's.
    fn of(&self, row: &Row<'_>) -> u64 {
        match row.which {
            Which::Events => self.events,
            Which::Bytes => self.bytes,
            Which::Type => {
                let held = self.types.iter().find(|(name, _)| Some(name) == row.name);
                held.map_or(0, |(_, n)| *n)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Events,
    Bytes,
    Type,
}

impl Which {
    fn reason(self) -> ShedReason {
        match self {
            Self::Events | Self::Type => ShedReason::QuotaEvents,
            Self::Bytes => ShedReason::QuotaBytes,
        }
    }
}

/// A bucket, and what is to be taken of it.
struct Row<'a> {
    which: Which,
    name: Option<&'a EventType>,
    rate: Rate,
    tank: &'a mut Tank,
    n: u64,
}

/// What a request asks for before its body is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub declared: Option<u64>,
    /// The key of the connection's promise.
    pub promise: Option<Key>,
    /// The connection was told not to come before.
    pub not_before: Option<u128>,
    /// The connection stays open if the request is refused.
    pub keeps: bool,
    /// Other requests may be under way on the connection.
    pub multiplexed: bool,
}

/// A promise's place: when it lapses, and a number.
pub(super) type Key = (u128, u64);

/// What is held for who comes when told.
#[derive(Debug)]
struct Reserved {
    made: u128,
    due: u128,
    declared: Option<u64>,
    events: Option<Slot>,
    bytes: Option<Slot>,
    types: Vec<(EventType, Slot)>,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub reason: ShedReason,
    pub after: Duration,
    /// The slot that is held for the next try.
    pub promise: Option<Key>,
    /// It came before it was told to.
    pub impolite: bool,
}

/// One tenant.
#[derive(Debug, Default)]
pub(super) struct State {
    pub feed: Feed,
    pub events: Tank,
    pub bytes: Tank,
    pub types: BTreeMap<EventType, Tank>,
    pub days: Days,
    /// What was used of the day at the last lease.
    pub leased_at: Usage,
    promises: BTreeMap<Key, Reserved>,
    promises_made: u64,
    /// Decaying sums of what settled requests declared and held.
    seen_bytes: f64,
    seen_events: f64,
}

impl State {
    pub(super) fn fed_by(feed: Feed) -> Self {
        let mut state = Self { feed, ..Self::default() };
        state.days.granted = (feed != Feed::Own).then(Default::default);
        state
    }

    /// Brings everything up to `now`.
    pub(super) fn advance(&mut self, limits: &Limits, now: u128, moment: Moment) {
        let feed = self.feed;
        let events = limits.events.map(|rate| (&mut self.events, rate));
        let bytes = limits.bytes.map(|rate| (&mut self.bytes, rate));
        for (tank, rate) in events.into_iter().chain(bytes) {
            tank.advance(rate, feed, now);
        }
        if self.types.len() != limits.types.len()
            || !self.types.keys().all(|name| limits.types.contains_key(name))
        {
            self.types.retain(|name, _| limits.types.contains_key(name));
            for name in limits.types.keys() {
                self.types.entry(name.clone()).or_default();
            }
        }
        for ((_, tank), rate) in self.types.iter_mut().zip(limits.types.values()) {
            tank.advance(*rate, feed, now);
        }
        self.days.turn(moment.day);
        while let Some(first) = self.promises.first_entry().filter(|first| first.key().0 < now) {
            let lapsed = first.remove();
            self.release(&lapsed);
        }
    }

    /// Every bucket that counts, with what a claim takes of it.
    fn rows<'a>(
        &'a mut self,
        limits: &'a Limits,
        claim: &'a Claim,
    ) -> impl Iterator<Item = Row<'a>> {
        let row = |which, rate: Option<Rate>, tank, n| {
            rate.map(|rate| Row { which, name: None, rate, tank, n })
        };
        let events = row(Which::Events, limits.events, &mut self.events, claim.events);
        let bytes = row(Which::Bytes, limits.bytes, &mut self.bytes, claim.bytes);
        let types = self.types.iter_mut().filter_map(|(name, tank)| {
            let (_, n) = claim.types.iter().find(|(claimed, _)| claimed == name)?;
            let rate = *limits.types.get(name)?;
            Some(Row { which: Which::Type, name: Some(name), rate, tank, n: *n })
        });
        events.into_iter().chain(bytes).chain(types)
    }

    /// How many events a body of so many bytes probably holds.
    fn estimate(&self, limits: &Limits, declared: Option<u64>) -> u64 {
        let Some(declared) = declared.filter(|_| limits.count_events()) else { return 1 };
        if self.seen_bytes <= 0.0 {
            return 1;
        }
        // Sums of a few requests, far below what a float holds exactly.
        #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)]
        #[allow(clippy::cast_possible_truncation)]
        let events = (declared as f64 * self.seen_events / self.seen_bytes).round() as u64;
        events.max(1)
    }

    fn learn(&mut self, bytes: u64, events: u64) {
        const KEPT: f64 = 0.9;
        #[allow(clippy::cast_precision_loss)]
        let (bytes, events) = (bytes as f64, events as f64);
        self.seen_bytes = self.seen_bytes * KEPT + bytes;
        self.seen_events = self.seen_events * KEPT + events;
    }

    /// Charges a request before its body is read.
    pub(super) fn admit(
        &mut self,
        limits: &Limits,
        now: u128,
        moment: Moment,
        ask: Ask,
    ) -> Result<Claim, Refusal> {
        self.advance(limits, now, moment);
        let events = self.estimate(limits, ask.declared);
        // Of unknown length: at least one byte must be free, so that nobody runs into debt for ever.
        let bytes = ask.declared.unwrap_or(1);
        let mut claim = Claim { events, bytes, types: Vec::new() };
        let mut early = ask.not_before.is_some_and(|then| now < then);
        let mut held = Claim::default();
        if let Some(key) = ask.promise
            && let Some(reserved) = self.promises.remove(&key)
        {
            if now < reserved.due {
                if ask.multiplexed && now < reserved.made + IN_FLIGHT.as_nanos() {
                    return Err(self.wait_on(key, reserved, now));
                }
                self.release(&reserved);
                return Err(self.refuse(limits, &claim, ask, (now, true)));
            }
            if !self.is_due(&reserved) {
                return Err(self.put_off(limits, reserved, now));
            }
            held = self.redeem(&reserved);
            if ask.declared.unwrap_or(0) <= reserved.declared.unwrap_or(0) && held.events != 0 {
                claim.events = held.events;
            }
            claim.types.clone_from(&held.types);
            early = false;
        }
        // An estimate too high must not keep the last events of a day from coming in.
        if let Some(refusal) = self.over_the_day(limits, moment, 1, claim.bytes, early) {
            self.give_back(limits, &held);
            return Err(refusal);
        }
        if !self.fits(limits, &held, &claim) {
            self.give_back(limits, &held);
            return Err(self.refuse(limits, &claim, ask, (now, early)));
        }
        self.swap(limits, &held, &claim);
        self.days.now.events = self.days.now.events.saturating_add(claim.events);
        self.days.now.bytes = self.days.now.bytes.saturating_add(claim.bytes);
        Ok(claim)
    }

    /// True where `wanted` can be had for what is `held`.
    fn fits(&mut self, limits: &Limits, held: &Claim, wanted: &Claim) -> bool {
        self.rows(limits, wanted).all(|row| row.tank.bucket.has_instead(held.of(&row), row.n))
    }

    /// Takes `wanted` for what is `held`.
    fn swap(&mut self, limits: &Limits, held: &Claim, wanted: &Claim) {
        for row in self.rows(limits, wanted) {
            let held = held.of(&row);
            row.tank.exchange(held, row.n);
        }
        // Types that were held and do not occur.
        let unused = held.types.iter().filter(|(of, _)| wanted.types.iter().all(|(t, _)| t != of));
        let types = unused.cloned().collect();
        self.give_back(limits, &Claim { types, ..Claim::default() });
    }

    fn over_the_day(
        &self,
        limits: &Limits,
        moment: Moment,
        events: u64,
        bytes: u64,
        impolite: bool,
    ) -> Option<Refusal> {
        let (events_left, bytes_left) = self.days.left(limits);
        let (reason, cap, used) = if events_left.is_some_and(|left| left < events) {
            (ShedReason::QuotaEvents, limits.events_per_day, self.days.now.events + events)
        } else if bytes_left.is_some_and(|left| left < bytes) {
            (ShedReason::QuotaBytes, limits.bytes_per_day, self.days.now.bytes + bytes)
        } else {
            return None;
        };
        // Within the day's quota but not within what this edge holds of it: more may come.
        let after = match cap {
            Some(cap) if used <= cap => SOON,
            _ => Duration::from_secs(moment.left_seconds),
        };
        Some(Refusal { reason, after, promise: None, impolite })
    }

    /// Refuses, and promises a slot to who did not come early.
    fn refuse(
        &mut self,
        limits: &Limits,
        claim: &Claim,
        ask: Ask,
        (now, impolite): (u128, bool),
    ) -> Refusal {
        let feed = self.feed;
        let (mut reason, mut after) = (ShedReason::QuotaEvents, Duration::ZERO);
        for Row { which, rate, tank, n, .. } in self.rows(limits, claim) {
            let flow = tank.flow(rate, feed);
            let wait = tank.bucket.until(tank.bucket.place(n, flow.grain()), flow);
            if after < wait {
                (reason, after) = (which.reason(), wait);
            }
        }
        let keeps = ask.keeps && !impolite && after <= HORIZON;
        let promise = (keeps && self.promises.len() < PROMISES_MAX)
            .then(|| self.promise(limits, claim, ask.declared, now, after));
        Refusal { reason, after, promise, impolite }
    }

    fn promise(
        &mut self,
        limits: &Limits,
        claim: &Claim,
        declared: Option<u64>,
        now: u128,
        after: Duration,
    ) -> Key {
        let feed = self.feed;
        let slot = |tank: &mut Tank, rate: Rate, n| {
            let flow = tank.flow(rate, feed);
            // Where another bucket is what it waits for, this one's units are for others until then;
            // but leases bring only what is asked for.
            let leased = matches!(feed, Feed::Leased(_));
            tank.bucket.promise(n, flow, if leased { Duration::ZERO } else { after })
        };
        let events = limits.events.map(|rate| slot(&mut self.events, rate, claim.events));
        let bytes = limits.bytes.map(|rate| slot(&mut self.bytes, rate, claim.bytes));
        let types = self.types.iter_mut().filter_map(|(name, tank)| {
            let (_, n) = claim.types.iter().find(|(claimed, _)| claimed == name)?;
            Some((name.clone(), slot(tank, *limits.types.get(name)?, *n)))
        });
        let types = types.collect();
        let due = now + after.as_nanos();
        self.keep(Reserved { made: now, due, declared, events, bytes, types }, after)
    }

    fn keep(&mut self, reserved: Reserved, after: Duration) -> Key {
        // The client is told whole seconds, rounded up.
        let lapses = reserved.due + u128::from(after.subsec_nanos() != 0) * 1_000_000_000;
        self.promises_made += 1;
        let key = (lapses + GRACE.as_nanos(), self.promises_made);
        self.promises.insert(key, reserved);
        key
    }

    /// Every slot, with its bucket where that still counts.
    fn slots<'a>(
        &'a mut self,
        reserved: &'a Reserved,
    ) -> impl Iterator<Item = (&'a mut Tank, Slot)> {
        let events = reserved.events.map(|slot| (&mut self.events, slot));
        let bytes = reserved.bytes.map(|slot| (&mut self.bytes, slot));
        let types = self.types.iter_mut().filter_map(|(name, tank)| {
            let (_, slot) = reserved.types.iter().find(|(held, _)| held == name)?;
            Some((tank, *slot))
        });
        events.into_iter().chain(bytes).chain(types)
    }

    fn release(&mut self, reserved: &Reserved) {
        self.slots(reserved).for_each(|(tank, slot)| tank.bucket.release(slot));
    }

    fn is_due(&mut self, reserved: &Reserved) -> bool {
        self.slots(reserved).all(|(tank, slot)| tank.bucket.is_due(slot))
    }

    /// The leases it waits for have not come: it keeps its place, and is told anew.
    fn put_off(&mut self, limits: &Limits, mut reserved: Reserved, now: u128) -> Refusal {
        let feed = self.feed;
        let mut after = Duration::ZERO;
        let mut reason = ShedReason::QuotaEvents;
        let events = limits
            .events
            .zip(reserved.events)
            .map(|(rate, slot)| self.events.bucket.until(slot.due, self.events.flow(rate, feed)));
        let bytes = limits
            .bytes
            .zip(reserved.bytes)
            .map(|(rate, slot)| self.bytes.bucket.until(slot.due, self.bytes.flow(rate, feed)));
        for (row, wait) in [(ShedReason::QuotaEvents, events), (ShedReason::QuotaBytes, bytes)] {
            if let Some(wait) = wait.filter(|wait| after < *wait) {
                (reason, after) = (row, wait);
            }
        }
        reserved.due = now + after.as_nanos();
        let promise = Some(self.keep(reserved, after));
        Refusal { reason, after, promise, impolite: false }
    }

    /// The request was sent before its client could know of the refusal: the promise stands.
    fn wait_on(&mut self, key: Key, reserved: Reserved, now: u128) -> Refusal {
        let after = u64::try_from(reserved.due - now).unwrap_or(u64::MAX);
        let reason = if reserved.events.is_some() || reserved.bytes.is_none() {
            ShedReason::QuotaEvents
        } else {
            ShedReason::QuotaBytes
        };
        self.promises.insert(key, reserved);
        Refusal { reason, after: Duration::from_nanos(after), promise: Some(key), impolite: false }
    }

    /// The slots are used: what they held is the request's.
    fn redeem(&mut self, reserved: &Reserved) -> Claim {
        for (tank, slot) in self.slots(reserved) {
            tank.bucket.redeem(slot);
            tank.charged = tank.charged.saturating_add(slot.n);
        }
        Claim {
            events: reserved.events.map_or(0, |slot| slot.n),
            bytes: reserved.bytes.map_or(0, |slot| slot.n),
            types: reserved.types.iter().map(|(name, slot)| (name.clone(), slot.n)).collect(),
        }
    }

    /// A promise is nobody's any more.
    pub(super) fn cancel(&mut self, key: Key) {
        if let Some(reserved) = self.promises.remove(&key) {
            self.release(&reserved);
        }
    }

    /// The body turned out to have so many bytes more than were charged.
    pub(super) fn charge_bytes(&mut self, limits: &Limits, more: u64) {
        if limits.bytes.is_some() {
            self.bytes.exchange(0, more);
        }
        self.days.now.bytes = self.days.now.bytes.saturating_add(more);
    }

    /// Gives back what was taken of the buckets.
    fn give_back(&mut self, limits: &Limits, claim: &Claim) {
        for Row { tank, n, .. } in self.rows(limits, claim) {
            tank.exchange(n, 0);
        }
    }

    fn give_back_day(&mut self, claim: &Claim, day: i64) {
        if self.days.now.day == day {
            self.days.now.events = self.days.now.events.saturating_sub(claim.events);
            self.days.now.bytes = self.days.now.bytes.saturating_sub(claim.bytes);
        }
    }

    /// Gives back all that a request took, of `day`.
    pub(super) fn give_up(&mut self, limits: &Limits, claim: &Claim, day: i64) {
        self.give_back(limits, claim);
        self.give_back_day(claim, day);
    }

    /// Takes what was `found` in a body for what is `held` for it since `day`, but for its bytes,
    /// which stay charged whatever comes out.
    pub(super) fn settle(
        &mut self,
        limits: &Limits,
        (now, moment): (u128, Moment),
        (held, day): (&Claim, i64),
        found: Claim,
        ask: Ask,
    ) -> Result<(), Refusal> {
        self.advance(limits, now, moment);
        self.learn(found.bytes, found.events);
        let held = Claim { bytes: 0, ..held.clone() };
        let wanted = Claim { bytes: 0, ..found.clone() };
        self.give_back_day(&held, day);
        if let Some(refusal) = self.over_the_day(limits, moment, wanted.events, 0, false) {
            self.give_back(limits, &held);
            return Err(refusal);
        }
        let events = wanted.events;
        if !self.fits(limits, &held, &wanted) {
            self.give_back(limits, &held);
            // Its next try brings its bytes again.
            return Err(self.refuse(limits, &found, ask, (now, false)));
        }
        self.swap(limits, &held, &wanted);
        self.days.now.events = self.days.now.events.saturating_add(events);
        Ok(())
    }

    pub(super) fn levels(&mut self, limits: &Limits, moment: Moment) -> Levels {
        let feed = self.feed;
        let (events_today, bytes_today) = self.days.levels(limits, moment);
        let events = limits.events.map(|rate| self.events.level(rate, feed)).unwrap_or_default();
        let bytes = limits.bytes.map(|rate| self.bytes.level(rate, feed)).unwrap_or_default();
        Levels { events, bytes, events_today, bytes_today }
    }

    /// Slots that are promised.
    #[cfg(test)]
    pub(super) fn promises(&self) -> usize {
        self.promises.len()
    }
}
