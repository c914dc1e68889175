//! Two random sides against a model that looks at each offset by itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidegate_event::{EventType, TenantId};

use super::*;
use crate::{
    replay::compare::{Differences, SinkCompared, tally::Total},
    sink::back::Owner,
};

/// A row of a test: its values by their columns.
#[derive(Clone, Debug, PartialEq)]
struct Made {
    offset: u64,
    dead: bool,
    values: BTreeMap<&'static str, String>,
}

fn owner() -> Arc<Owner> {
    let (tenant, event_type) = (TenantId::new("acme").unwrap(), EventType::new("view").unwrap());
    Arc::new(Owner { tenant, event_type })
}

impl Made {
    fn fill(&self, row: &mut BackRow, turned: bool) {
        let mut names: Vec<String> = self.values.keys().map(|name| (*name).to_owned()).collect();
        if turned {
            names.reverse();
        }
        row.clear(&names.iter().cloned().collect());
        for name in &names {
            let value = &self.values[name.as_str()];
            row.push(|text| {
                text.extend_from_slice(value.as_bytes());
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap();
        }
        (row.offset, row.dead, row.hour) = (self.offset, self.dead, self.offset as i64 / 10);
    }

    /// What its columns hold; one that holds nothing is as one that is not there.
    fn held(&self) -> BTreeMap<&'static str, &str> {
        let held = self.values.iter().filter(|(_, value)| !value.is_empty());
        held.map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// Rows in order of offset, their columns in one order or the other.
struct Given<'r>(std::vec::Drain<'r, Made>, bool);

impl Source for Given<'_> {
    fn next(&mut self, used: Option<BackRow>) -> Result<Option<BackRow>, CompareError> {
        let Some(made) = self.0.next() else { return Ok(None) };
        let mut row = used.unwrap_or_else(|| BackRow::new(owner()));
        made.fill(&mut row, self.1);
        Ok(Some(row))
    }
}

fn compared(live: &[Made], shadow: &[Made], dead_only: bool) -> SinkCompared {
    let (mut tally, mut read, mut total) = (Tally::default(), 0, Total::default());
    let (mut a, mut b) = (live.to_vec(), shadow.to_vec());
    let (mut a, mut b) = (Given(a.drain(..), false), Given(b.drain(..), true));
    let mut tell = |rows, _: &Tally| {
        read += rows;
        Ok(())
    };
    merge((&mut a, &mut b), dead_only, &mut tally, &mut tell).unwrap();
    assert_eq!(read, (live.len() + shadow.len()) as u64);
    total.add(tally);
    total.report("lake", "lake")
}

/// What each offset comes to, looked at by itself.
fn model(live: &[Made], shadow: &[Made], dead_only: bool) -> (Differences, BTreeMap<String, u64>) {
    let (mut found, mut fields) = (Differences::default(), BTreeMap::new());
    let offsets: BTreeSet<u64> = live.iter().chain(shadow).map(|made| made.offset).collect();
    for offset in offsets {
        let of = |side: &[Made]| -> Vec<Made> {
            side.iter().filter(|made| made.offset == offset).cloned().collect()
        };
        let (a, b) = (of(live), of(shadow));
        let again = |side: &[Made]| (side.len() as u64).saturating_sub(1);
        found.doubled_in_live += again(&a);
        found.doubled_in_shadow += again(&b);
        match (a.first(), b.first()) {
            (Some(a), None) if dead_only && !a.dead => {}
            (Some(_), None) => found.missing += 1,
            (None, Some(_)) => found.extra += 1,
            (Some(a), Some(b)) if a.dead && !b.dead => found.healed += 1,
            (Some(a), Some(b)) if !a.dead && b.dead => found.newly_dead += 1,
            (Some(a), Some(b)) => {
                let (a, b) = (a.held(), b.held());
                let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
                let differ: Vec<_> = names.into_iter().filter(|n| a.get(*n) != b.get(*n)).collect();
                found.changed += u64::from(!differ.is_empty());
                for name in differ {
                    *fields.entry((*name).to_owned()).or_default() += 1;
                }
            }
            (None, None) => unreachable!(),
        }
    }
    (found, fields)
}

fn side() -> impl Strategy<Value = Vec<Made>> {
    let values = prop::collection::btree_map(
        prop::sample::select(vec!["a", "b", "event_id", "schema_version"]),
        prop::sample::select(vec!["", "1", "\"x\""]).prop_map(str::to_owned),
        0..4,
    );
    let row = (0u64..40, prop::bool::weighted(0.2), values);
    prop::collection::vec(row, 0..40).prop_map(|rows| {
        let made = |(offset, dead, values)| Made { offset, dead, values };
        let mut rows: Vec<_> = rows.into_iter().map(made).collect();
        rows.sort_by_key(|row| (row.offset, row.dead));
        rows
    })
}

/// Two sides of which most rows are the same, as they are after a replay.
fn sides() -> impl Strategy<Value = (Vec<Made>, Vec<Made>)> {
    let alike =
        (side(), side(), prop::collection::vec(any::<bool>(), 40)).prop_map(|(a, b, keep)| {
            let kept = |made: &Made| keep[made.offset as usize];
            let mut shadow: Vec<_> = a.iter().filter(|made| kept(made)).cloned().collect();
            shadow.extend(b.into_iter().filter(|made| !kept(made)));
            shadow.sort_by_key(|row| (row.offset, row.dead));
            (a, shadow)
        });
    prop_oneof![(side(), side()), alike]
}

proptest! {
    #[test]
    fn every_offset_comes_to_what_it_comes_to_by_itself(
        (live, shadow) in sides(), dead_only in any::<bool>(),
    ) {
        let report = compared(&live, &shadow, dead_only);
        let (found, fields) = model(&live, &shadow, dead_only);
        // A row of an offset that was passed over counts in none.
        let passed: BTreeSet<u64> = live.iter()
            .filter(|made| dead_only && !made.dead && shadow.iter().all(|s| s.offset != made.offset))
            .map(|made| made.offset)
            .collect();
        prop_assert_eq!(report.differences, found);
        let told: BTreeMap<_, _> =
            report.fields.iter().map(|f| (f.field.clone(), f.changes)).collect();
        prop_assert_eq!(told, fields);
        prop_assert_eq!(report.identical, found.is_none());
        let first_passed = passed.len() as u64;
        prop_assert_eq!(report.rows.live(), live.len() as u64 - first_passed);
        prop_assert_eq!(report.rows.shadow(), shadow.len() as u64);
        let by_hour: u64 = report.by_hour.iter().map(|h| h.rows.live() + h.rows.shadow()).sum();
        prop_assert_eq!(by_hour, report.rows.live() + report.rows.shadow());
        let hours: u64 = report.hours.iter().map(|h| h.differences.total()).sum();
        prop_assert_eq!(hours, found.total());
    }

    #[test]
    fn a_side_is_identical_to_itself_once_each_offset_is_there_once(mut live in side()) {
        live.dedup_by_key(|row| row.offset);
        prop_assert!(compared(&live, &live, false).identical);
    }
}

fn made(offset: u64, dead: bool, values: &[(&'static str, &str)]) -> Made {
    let values = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Made { offset, dead, values }
}

#[test]
fn samples_say_which_event_and_what_differs() {
    let id = ("event_id", "\"e1\"");
    let why = ("reason", "\"type_mismatch\"");
    let live = [
        made(1, false, &[id, ("a", "1"), ("schema_version", "1")]),
        made(2, true, &[id, why]),
        made(3, false, &[id]),
        made(4, false, &[id]),
    ];
    let shadow = [
        made(1, false, &[id, ("b", "2"), ("schema_version", "2")]),
        made(2, false, &[id]),
        made(3, true, &[id, why]),
        made(9, false, &[id]),
    ];
    let report = compared(&live, &shadow, false);
    let told: Vec<_> = report
        .samples
        .iter()
        .map(|s| (s.difference, s.offset.0, s.event_id.as_str(), s.dead_letter, s.fields.clone()))
        .collect();
    let field = |name: &str, live: Option<&str>, shadow: Option<&str>| FieldDifference {
        field: name.to_owned(),
        live: live.map(str::to_owned),
        shadow: shadow.map(str::to_owned),
    };
    let changed = vec![
        field("a", Some("1"), None),
        field("schema_version", Some("1"), Some("2")),
        field("b", None, Some("2")),
    ];
    let reason = "\"type_mismatch\"";
    assert_eq!(
        told,
        [
            (Difference::Missing, 4, "e1", false, vec![]),
            (Difference::Extra, 9, "e1", false, vec![]),
            (Difference::Changed, 1, "e1", false, changed),
            (Difference::Healed, 2, "e1", true, vec![field("reason", Some(reason), None)]),
            (Difference::NewlyDead, 3, "e1", true, vec![field("reason", None, Some(reason))]),
        ]
    );
}

#[test]
fn what_is_kept_is_bounded_and_what_is_counted_is_not() {
    let values: Vec<String> =
        (0..2_000).map(|n| format!("\"{}\"", "é".repeat(500 + n % 2))).collect();
    let row = |n: usize| made(n as u64, false, &[("event_id", "\"e\""), ("a", &values[n])]);
    let live: Vec<_> = (0..2_000).map(row).collect();
    let shadow: Vec<_> = live
        .iter()
        .map(|made| {
            let mut made = made.clone();
            made.values.insert("a", "\"x\"".to_owned());
            made
        })
        .collect();
    let report = compared(&live, &shadow, false);
    assert_eq!((report.differences.changed, report.samples.len()), (2_000, 10));
    let value = report.samples[0].fields[0].live.as_ref().unwrap();
    assert_eq!((value.chars().count(), value.ends_with('…')), (VALUE_CHARS + 1, true));
}

#[test]
fn a_long_value_is_cut_about_where_it_differs() {
    let (a, b) = ("x".repeat(1_000) + "1", "x".repeat(1_000) + "2");
    let told = shown("a", Some(a.as_bytes()), Some(b.as_bytes()));
    assert!(told.live.unwrap().ends_with("x1") && told.shadow.unwrap().ends_with("x2"));
}
