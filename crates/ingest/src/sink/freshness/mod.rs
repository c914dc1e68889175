//! How long events take from their receipt until a sink has made them visible, by lane; and whether
//! that is what an operator promised.
//!
//! | file | purpose |
//! | --- | --- |
//! | `objective` | what is promised: `"p95 < 3s over 10m"` |
//! | `ages` | ages since the start, and lately |
//! | `export` | the same as metrics |
//!
//! Counted are windows and the requests in them, never single events. Most sinks make visible what they
//! write; of others the server is asked whether the last row of what was written can be read.

mod ages;
mod export;
mod objective;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tidegate_event::{EventTime, Offset, Partition, ReceivedAt};

use super::rows::{Head, Lane, Row, receipts};
use ages::{Aged, Buckets, Counted, Lately, Total};
pub use export::{Families, Named};
pub use objective::Objective;

/// Lanes that are counted one by one; what comes beyond is counted together.
const LANES_MAX: usize = 10_000;
/// Parts of what one lane wrote and nobody has confirmed yet.
const GROUPS_MAX: usize = 64;
/// What is not confirmed for so long never will be: counted as late.
const GIVEN_UP: Duration = Duration::from_secs(3_600);
/// Lanes told at most that miss their objective.
const MISSED_SHOWN: usize = 20;
/// The quantile that is told where no objective names one.
const QUANTILE: f64 = 0.95;

/// The freshness of one sink.
#[derive(Debug)]
pub struct Freshness {
    objective: Option<Objective>,
    asks: bool,
    ages: Mutex<Ages>,
}

#[derive(Debug, Default)]
struct Ages {
    lanes: BTreeMap<Lane, LaneAges>,
    /// Lanes beyond the bound.
    others: LaneAges,
    all: Lately<Counted>,
    buckets: Lately<Buckets>,
    unconfirmed: BTreeMap<(Partition, Lane), Unconfirmed>,
    /// Why the last question had no answer.
    error: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct LaneAges {
    total: Total,
    lately: Lately<Counted>,
    /// The age of the oldest event of the last window.
    last: f64,
}

/// What was written and may not be visible yet.
#[derive(Debug)]
struct Unconfirmed {
    mark: Mark,
    groups: Vec<Group>,
    asked: bool,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    received: ReceivedAt,
    written: ReceivedAt,
    events: u64,
}

/// The last row of what was written of a lane: where it can be read, all before it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which lane.
    pub lane: Lane,
    /// Of which log.
    pub log_id: String,
    /// Of which partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
    /// When it happened.
    pub event_time: EventTime,
}

/// One lane's rows that were just written.
#[derive(Clone, Copy)]
pub struct Wrote<'a> {
    /// Which log.
    pub log_id: &'a str,
    /// Which partition.
    pub partition: Partition,
    /// Which lane.
    pub lane: &'a Lane,
    /// What its rows' batches are.
    pub heads: &'a [Head<'a>],
    /// The rows.
    pub rows: &'a [Row<'a>],
}

/// Events that wait, as far as is known.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Of which lane; `None`: of any.
    pub lane: Option<Lane>,
    /// How many.
    pub events: u64,
    /// When the oldest was received: microseconds since 1970.
    pub oldest: i64,
}

/// Whether an objective is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// It is.
    Met,
    /// It is not.
    Missed,
    /// Nothing was to become visible.
    Idle,
}

/// What was measured of a sink's freshness lately.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FreshnessStatus {
    /// As it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Whether it is met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Met>,
    /// How fresh events are to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_seconds: Option<f64>,
    /// How far back is looked.
    pub over_seconds: f64,
    /// Which part of the events `measured_seconds` is about.
    pub quantile: f64,
    /// So many of the events that became visible were not older; `None`: there were none.
    pub measured_seconds: Option<f64>,
    /// Events that became visible, and those that are late and are not.
    pub events: u64,
    /// Those that are late.
    pub late: u64,
    /// The age of the oldest that became visible.
    pub worst_seconds: f64,
    /// Events that were written and that the destination did not confirm yet.
    pub unconfirmed: u64,
    /// Why the destination could not be asked, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Lanes that miss the objective by themselves.
    pub lanes_missed: u64,
    /// Some of them.
    pub missed: Vec<MissedLane>,
}

/// A lane that misses the objective.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissedLane {
    /// Which.
    #[serde(flatten)]
    pub lane: Lane,
    /// Its events.
    pub events: u64,
    /// Those that are late.
    pub late: u64,
    /// The age of the oldest that became visible.
    pub worst_seconds: f64,
}

fn age(now: ReceivedAt, at: i64) -> f64 {
    now.0.saturating_sub(at).max(0) as f64 / 1e6
}

impl Freshness {
    /// `asks`: what is written is visible only once the destination says so.
    pub fn new(objective: Option<Objective>, asks: bool) -> Self {
        Self { objective, asks, ages: Mutex::default() }
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> Duration {
        self.objective.map_or(Objective::OVER, |objective| objective.over)
    }

    fn is_late(&self, seconds: f64) -> bool {
        self.objective.is_some_and(|objective| objective.within.as_secs_f64() <= seconds)
    }

    /// Rows were written.
    pub fn wrote(&self, wrote: Wrote<'_>, now: ReceivedAt) {
        let groups = receipts(wrote.heads, wrote.rows);
        let last = wrote.rows.last().filter(|_| self.asks);
        let mut ages = self.ages();
        let Some(last) = last else {
            let groups = groups.map(|(received, events)| Group { received, written: now, events });
            return self.add(&mut ages, wrote.lane, groups, |group| group.written);
        };
        let mark = Mark {
            lane: wrote.lane.clone(),
            log_id: wrote.log_id.to_owned(),
            partition: wrote.partition,
            offset: last.offset(wrote.heads),
            event_time: last.event_time,
        };
        let key = (wrote.partition, wrote.lane.clone());
        let known = ages.unconfirmed.len();
        match ages.unconfirmed.get_mut(&key) {
            Some(unconfirmed) => {
                unconfirmed.mark = mark;
                groups.for_each(|group| unconfirmed.push(group, now));
            }
            None if LANES_MAX <= known => {
                let groups =
                    groups.map(|(received, events)| Group { received, written: now, events });
                self.add(&mut ages, wrote.lane, groups, |group| group.written);
            }
            None => {
                let mut unconfirmed = Unconfirmed { mark, groups: Vec::new(), asked: false };
                groups.for_each(|group| unconfirmed.push(group, now));
                ages.unconfirmed.insert(key, unconfirmed);
            }
        }
    }

    /// Counts events that became visible when `at` says.
    fn add(
        &self,
        ages: &mut Ages,
        lane: &Lane,
        groups: impl Iterator<Item = Group>,
        at: impl Fn(&Group) -> ReceivedAt,
    ) {
        let over = self.over();
        let Ages { lanes, others, all, buckets, .. } = ages;
        if !lanes.contains_key(lane) && lanes.len() < LANES_MAX {
            lanes.insert(lane.clone(), LaneAges::default());
        }
        let own = lanes.get_mut(lane).unwrap_or(others);
        own.last = 0.0;
        for group in groups {
            let visible = at(&group);
            let seconds = age(visible, group.received.0);
            let aged = Aged { seconds, events: group.events, late: self.is_late(seconds) };
            own.total.add(aged);
            own.lately.add(visible.0, over, aged);
            own.last = own.last.max(seconds);
            all.add(visible.0, over, aged);
            let buckets = buckets.now(visible.0, over);
            if let Some(bucket) = buckets.get_mut(ages::bucket(seconds)) {
                *bucket += group.events;
            }
        }
    }

    /// What the destination is to be asked about, what it was not asked about first.
    pub fn marks(&self, most: usize) -> Vec<Mark> {
        let ages = self.ages();
        let mut all: Vec<_> = ages.unconfirmed.values().collect();
        all.sort_by_key(|unconfirmed| unconfirmed.asked);
        all.into_iter().take(most).map(|unconfirmed| unconfirmed.mark.clone()).collect()
    }

    /// The destination's answer: which of these rows can be read.
    pub fn answered(&self, marks: &[Mark], visible: &[bool], now: ReceivedAt) {
        let mut ages = self.ages();
        ages.error = None;
        for (mark, visible) in marks.iter().zip(visible) {
            let key = (mark.partition, mark.lane.clone());
            let Some(mut unconfirmed) = ages.unconfirmed.remove(&key) else { continue };
            let given_up = i64::try_from(GIVEN_UP.as_micros()).unwrap_or(i64::MAX);
            // What was written since the question waits for the next one.
            let (told, mut later): (Vec<_>, Vec<_>) = match (visible, unconfirmed.mark == *mark) {
                (true, true) => (std::mem::take(&mut unconfirmed.groups), Vec::new()),
                _ => (Vec::new(), std::mem::take(&mut unconfirmed.groups)),
            };
            let asked = std::mem::replace(&mut unconfirmed.asked, !visible);
            // The first question says yes: so it was when the write was answered.
            let at = |group: &Group| if asked { now } else { group.written };
            self.add(&mut ages, &mark.lane, told.into_iter(), at);
            let (gone, rest): (Vec<_>, Vec<_>) =
                later.drain(..).partition(|group| group.written.0 + given_up <= now.0);
            if !gone.is_empty() {
                self.add(&mut ages, &mark.lane, gone.into_iter(), |_| now);
            }
            if !rest.is_empty() {
                unconfirmed.groups = rest;
                ages.unconfirmed.insert(key, unconfirmed);
            }
        }
    }

    /// The destination could not be asked.
    pub fn not_answered(&self, error: String) {
        let mut ages = self.ages();
        ages.unconfirmed.values_mut().for_each(|unconfirmed| unconfirmed.asked = true);
        ages.error = Some(error);
    }

    /// What was measured lately; `waiting`: what is not written yet.
    pub fn status(&self, now: ReceivedAt, waiting: &[Waiting]) -> FreshnessStatus {
        let (ages, over) = (self.ages(), self.over());
        let mut all = ages.all.counted(now.0, over);
        let mut buckets = Buckets::default();
        for slot in ages.buckets.up_to(now.0, over) {
            buckets.iter_mut().zip(slot).for_each(|(sum, n)| *sum += n);
        }
        let quantile = self.objective.map_or(QUANTILE, |objective| objective.part());
        let measured = ages::quantile(&buckets, quantile, all.worst);
        let mut late: BTreeMap<&Lane, u64> = BTreeMap::new();
        for waiting in waiting.iter().filter(|w| self.is_late(age(now, w.oldest))) {
            (all.events, all.late) = (all.events + waiting.events, all.late + waiting.events);
            if let Some(lane) = &waiting.lane {
                *late.entry(lane).or_default() += waiting.events;
            }
        }
        let mut unconfirmed = 0;
        for group in
            ages.unconfirmed.values().flat_map(|u| u.groups.iter().map(|g| (&u.mark.lane, g)))
        {
            let (lane, group) = group;
            unconfirmed += group.events;
            if self.is_late(age(now, group.received.0)) {
                (all.events, all.late) = (all.events + group.events, all.late + group.events);
                *late.entry(lane).or_default() += group.events;
            }
        }
        let missed = self.missed(&ages, now, &late);
        FreshnessStatus {
            objective: self.objective,
            state: self.objective.map(|objective| match all {
                Counted { events: 0, .. } => Met::Idle,
                all if objective.is_met(all.events, all.late) => Met::Met,
                _ => Met::Missed,
            }),
            within_seconds: self.objective.map(|objective| objective.within.as_secs_f64()),
            over_seconds: over.as_secs_f64(),
            quantile,
            measured_seconds: measured,
            events: all.events,
            late: all.late,
            worst_seconds: all.worst,
            unconfirmed,
            error: ages.error.clone(),
            lanes_missed: missed.len() as u64,
            missed: missed.into_iter().take(MISSED_SHOWN).collect(),
        }
    }

    /// Lanes that miss the objective, those with most late events first.
    fn missed(&self, ages: &Ages, now: ReceivedAt, late: &BTreeMap<&Lane, u64>) -> Vec<MissedLane> {
        let Some(objective) = self.objective else { return Vec::new() };
        let none = LaneAges::default();
        let unknown = late.keys().filter(|lane| !ages.lanes.contains_key(**lane));
        let lanes = ages.lanes.iter().chain(unknown.map(|lane| (*lane, &none)));
        let mut missed: Vec<_> = lanes
            .filter_map(|(lane, own)| {
                let waiting = late.get(lane).copied().unwrap_or_default();
                let counted = own.lately.counted(now.0, objective.over);
                let (events, late) = (counted.events + waiting, counted.late + waiting);
                let (lane, worst_seconds) = (lane.clone(), counted.worst);
                let missed = MissedLane { lane, events, late, worst_seconds };
                (!objective.is_met(events, late)).then_some(missed)
            })
            .collect();
        missed.sort_by(|a, b| b.late.cmp(&a.late).then_with(|| a.lane.cmp(&b.lane)));
        missed
    }
}

impl Unconfirmed {
    /// Adds events; beyond the bound they count as old as the oldest beside them.
    fn push(&mut self, (received, events): (ReceivedAt, u64), written: ReceivedAt) {
        let is_full = GROUPS_MAX <= self.groups.len();
        match self.groups.last_mut() {
            Some(last) if is_full => {
                last.received = last.received.min(received);
                last.written = written;
                last.events += events;
            }
            _ => self.groups.push(Group { received, written, events }),
        }
    }
}

#[cfg(test)]
mod tests;
