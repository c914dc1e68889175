//! What is counted while two sides are held against each other, and what of it is kept: bounded.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_event::{Offset, Partition, ReceivedAt};

use super::report::{
    Difference, Differences, FieldChanges, FieldDifference, HourCompared, HourTotal, LaneCompared,
    Rows, Sample, SinkCompared, Unreadable,
};
use crate::sink::back::{BackRow, Owner};

/// Samples of one difference that are kept,
const SAMPLES_MAX: usize = 50;
/// and of one tenant and type of it.
const SAMPLES_OF_LANE_MAX: usize = 10;
/// Fields that are counted by their names.
const FIELDS_MAX: usize = 1_000;
/// Tenants and types that are told,
const LANES_MAX: usize = 5_000;
/// hours of them,
const HOURS_MAX: usize = 10_000;
/// and files that cannot be read.
const UNREADABLE_MAX: usize = 100;

/// A row that differs, and how.
pub struct Found<'r> {
    /// How.
    pub difference: Difference,
    /// The row that says whose and where: live's if it has one, of a dead letter that itself.
    pub row: &'r BackRow,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Rows of each side.
    pub rows: Rows,
    /// Differences.
    pub differences: Differences,
}

impl Counted {
    fn add(&mut self, other: &Self) {
        self.rows.add(&other.rows);
        self.differences.add(&other.differences);
    }
}

/// What was found of some tenants and types. One is begun for each that is read by itself, so that reading
/// it again after a fault counts nothing twice.
#[derive(Clone, Debug)]
pub struct Tally {
    /// False where rows are counted otherwise, and only differences here.
    pub counts_rows: bool,
    /// Of which partition rows are being counted: of its samples.
    pub partition: Partition,
    /// Of each owner and hour.
    pub counts: BTreeMap<(Arc<Owner>, i64), Counted>,
    /// What cannot be read.
    pub unreadable: Vec<Unreadable>,
    fields: BTreeMap<String, u64>,
    fields_left_out: u64,
    samples: BTreeMap<Difference, Vec<Sample>>,
    total: Differences,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            counts_rows: true,
            partition: Partition::default(),
            counts: BTreeMap::new(),
            unreadable: Vec::new(),
            fields: BTreeMap::new(),
            fields_left_out: 0,
            samples: BTreeMap::new(),
            total: Differences::default(),
        }
    }
}

impl Tally {
    /// All differences until now.
    #[must_use]
    pub fn differences(&self) -> &Differences {
        &self.total
    }

    fn counted(&mut self, row: &BackRow) -> &mut Counted {
        self.counts.entry((Arc::clone(&row.owner), row.hour)).or_default()
    }

    /// Counts the rows that both sides have of one offset.
    pub fn rows(&mut self, live: Option<&BackRow>, shadow: Option<&BackRow>) {
        let Some(row) = live.or(shadow).filter(|_| self.counts_rows) else { return };
        let rows = &mut self.counted(row).rows;
        match live {
            Some(row) if row.dead => rows.live_dead_letters += 1,
            Some(_) => rows.live_events += 1,
            None => {}
        }
        match shadow {
            Some(row) if row.dead => rows.shadow_dead_letters += 1,
            Some(_) => rows.shadow_events += 1,
            None => {}
        }
    }

    /// Counts a row of an offset beyond the first.
    pub fn doubled(&mut self, row: &BackRow, is_live: bool) {
        let one = match is_live {
            true => Differences { doubled_in_live: 1, ..Differences::default() },
            false => Differences { doubled_in_shadow: 1, ..Differences::default() },
        };
        if is_live {
            self.rows(Some(row), None);
        } else {
            self.rows(None, Some(row));
        }
        self.counted(row).differences.add(&one);
        self.total.add(&one);
    }

    /// Counts a difference; true where a sample of it is wanted.
    pub fn count(&mut self, found: &Found<'_>) -> bool {
        let mut one = Differences::default();
        *match found.difference {
            Difference::Missing => &mut one.missing,
            Difference::Extra => &mut one.extra,
            Difference::Changed => &mut one.changed,
            Difference::Healed => &mut one.healed,
            Difference::NewlyDead => &mut one.newly_dead,
        } = 1;
        self.counted(found.row).differences.add(&one);
        self.total.add(&one);
        let Some(kept) = self.samples.get(&found.difference) else { return true };
        let owner = &found.row.owner;
        let of_lane = |s: &&Sample| s.tenant == owner.tenant && s.event_type == owner.event_type;
        kept.len() < SAMPLES_MAX && kept.iter().filter(of_lane).count() < SAMPLES_OF_LANE_MAX
    }

    /// Counts a field of a changed event.
    pub fn field(&mut self, name: &str) {
        match self.fields.get_mut(name) {
            Some(changes) => *changes += 1,
            None => self.fields_of(name.to_owned(), 1),
        }
    }

    fn fields_of(&mut self, name: String, changes: u64) {
        if self.fields.len() < FIELDS_MAX || self.fields.contains_key(&name) {
            *self.fields.entry(name).or_default() += changes;
        } else {
            self.fields_left_out += changes;
        }
    }

    /// Keeps a sample that is wanted.
    pub fn sample(&mut self, found: &Found<'_>, fields: Vec<FieldDifference>, left_out: u64) {
        let row = found.row;
        let id = row.get("event_id").unwrap_or_default();
        let sample = Sample {
            difference: found.difference,
            partition: self.partition,
            offset: Offset(row.offset),
            tenant: row.owner.tenant.clone(),
            event_type: row.owner.event_type.clone(),
            event_id: serde_json::from_slice(id).unwrap_or_default(),
            dead_letter: row.dead,
            fields,
            fields_left_out: left_out,
        };
        self.samples.entry(found.difference).or_default().push(sample);
    }
}

/// What was found of one sink.
#[derive(Debug, Default)]
pub struct Total {
    /// All rows and differences.
    pub counted: Counted,
    by_hour: BTreeMap<i64, Counted>,
    lanes: Kept<LaneCompared>,
    hours: Kept<HourCompared>,
    rest: Tally,
    unreadable_left_out: u64,
}

/// Some of many: those that differ before those that do not.
#[derive(Debug)]
struct Kept<T> {
    differ: Vec<T>,
    same: Vec<T>,
    left_out: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { differ: Vec::new(), same: Vec::new(), left_out: 0 }
    }
}

impl<T> Kept<T> {
    fn push(&mut self, one: T, differs: bool, most: usize) {
        let full = most <= self.differ.len() + self.same.len();
        if full && (!differs || self.same.pop().is_none()) {
            self.left_out += 1;
            return;
        }
        self.left_out += u64::from(full);
        if differs { &mut self.differ } else { &mut self.same }.push(one);
    }

    fn into_sorted<K: Ord>(self, key: impl FnMut(&T) -> K) -> (Vec<T>, u64) {
        let mut all = self.differ;
        all.extend(self.same);
        all.sort_by_cached_key(key);
        (all, self.left_out)
    }
}

/// When an hour begins.
fn begin(hour: i64) -> String {
    let at = ReceivedAt(hour.saturating_mul(3_600_000_000));
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |at| at.to_string())
}

impl Total {
    /// Takes in what was found of tenants and types that are in no other tally.
    pub fn add(&mut self, tally: Tally) {
        let mut lanes: BTreeMap<&Owner, Counted> = BTreeMap::new();
        for ((owner, hour), counted) in &tally.counts {
            lanes.entry(owner).or_default().add(counted);
            self.by_hour.entry(*hour).or_default().add(counted);
            let compared = HourCompared {
                tenant: owner.tenant.clone(),
                event_type: owner.event_type.clone(),
                hour: begin(*hour),
                rows: counted.rows,
                differences: counted.differences,
            };
            self.hours.push(compared, !counted.differences.is_none(), HOURS_MAX);
        }
        for (owner, counted) in lanes {
            self.counted.add(&counted);
            let compared = LaneCompared {
                tenant: owner.tenant.clone(),
                event_type: owner.event_type.clone(),
                rows: counted.rows,
                differences: counted.differences,
            };
            self.lanes.push(compared, !counted.differences.is_none(), LANES_MAX);
        }
        for (name, changes) in tally.fields {
            self.rest.fields_of(name, changes);
        }
        self.rest.fields_left_out += tally.fields_left_out;
        for (difference, samples) in tally.samples {
            let kept = self.rest.samples.entry(difference).or_default();
            let room = SAMPLES_MAX.saturating_sub(kept.len());
            kept.extend(samples.into_iter().take(room));
        }
        for unreadable in tally.unreadable {
            if self.rest.unreadable.len() < UNREADABLE_MAX {
                self.rest.unreadable.push(unreadable);
            } else {
                self.unreadable_left_out += 1;
            }
        }
    }

    /// The report of the sink.
    #[must_use]
    pub fn report(self, sink: &str, kind: &str) -> SinkCompared {
        let (lanes, lanes_left_out) =
            self.lanes.into_sorted(|l| (l.tenant.clone(), l.event_type.clone()));
        let (hours, hours_left_out) =
            self.hours.into_sorted(|h| (h.tenant.clone(), h.event_type.clone(), h.hour.clone()));
        let by_hour = self.by_hour.into_iter().map(|(hour, counted)| HourTotal {
            hour: begin(hour),
            rows: counted.rows,
            differences: counted.differences,
        });
        let Tally { fields, fields_left_out, samples, unreadable, .. } = self.rest;
        SinkCompared {
            sink: sink.to_owned(),
            kind: kind.to_owned(),
            not_compared: None,
            identical: self.counted.differences.is_none() && unreadable.is_empty(),
            differences: self.counted.differences,
            rows: self.counted.rows,
            fields: most_frequent(fields),
            fields_left_out,
            lanes,
            lanes_left_out,
            hours,
            hours_left_out,
            by_hour: by_hour.collect(),
            samples: samples.into_values().flatten().collect(),
            unreadable,
            unreadable_left_out: self.unreadable_left_out,
            ..SinkCompared::default()
        }
    }
}

fn most_frequent(counts: BTreeMap<String, u64>) -> Vec<FieldChanges> {
    let mut fields: Vec<_> =
        counts.into_iter().map(|(field, changes)| FieldChanges { field, changes }).collect();
    fields.sort_by(|a, b| b.changes.cmp(&a.changes).then_with(|| a.field.cmp(&b.field)));
    fields
}
