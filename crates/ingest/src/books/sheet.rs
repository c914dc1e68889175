//! Totals and minutes of every tenant, and what was added to them since they were last written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

use super::{
    Counts,
    minutes::{Minute, Minutes, ROWS_MAX, rows_each},
};

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf<T> {
    /// All there ever was, per type.
    pub types: BTreeMap<EventType, T>,
    /// The last minutes of it.
    #[serde(bound(deserialize = "T: Deserialize<'de>"))]
    pub minutes: Minutes<T>,
}

impl<T> Default for Leaf<T> {
    fn default() -> Self {
        Self { types: BTreeMap::new(), minutes: Minutes::default() }
    }
}

/// Every tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sheet<T> {
    #[serde(bound(deserialize = "T: Deserialize<'de>"))]
    tenants: BTreeMap<TenantId, Leaf<T>>,
}

impl<T> Default for Sheet<T> {
    fn default() -> Self {
        Self { tenants: BTreeMap::new() }
    }
}

/// The one under `key` (a name: its clone shares it), made if need be.
fn entry<'a, K: Clone + Ord, V: Default>(map: &'a mut BTreeMap<K, V>, key: &K) -> &'a mut V {
    map.entry(key.clone()).or_default()
}

impl<T: Counts> Sheet<T> {
    /// Adds to a type's total, and to its minute where that is known and kept.
    pub fn add(&mut self, tenant: &TenantId, kind: &EventType, minute: Option<Minute>, more: &T) {
        let rows_max = rows_each(self.tenants.len());
        let leaf = entry(&mut self.tenants, tenant);
        entry(&mut leaf.types, kind).merge(more);
        if let Some(minute) = minute {
            leaf.minutes.change(minute, kind, rows_max, |row| row.merge(more));
        }
    }

    /// Keeps the rows of each tenant within its share, which shrinks as tenants come.
    pub fn trim(&mut self) {
        let rows_max = rows_each(self.tenants.len());
        self.tenants.values_mut().for_each(|leaf| leaf.minutes.trim(rows_max));
    }

    /// Adds what was written as added.
    pub fn apply(&mut self, added: &Added<T>) {
        for (tenant, leaf) in &added.tenants {
            for (minute, types) in &leaf.minutes {
                types.iter().for_each(|(kind, n)| self.add(tenant, kind, Some(*minute), n));
            }
            leaf.no_minute.iter().for_each(|(kind, n)| self.add(tenant, kind, None, n));
        }
    }

    /// Every tenant.
    pub fn iter(&self) -> impl Iterator<Item = (&TenantId, &Leaf<T>)> {
        self.tenants.iter()
    }
}

/// What one tenant got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedLeaf<T> {
    minutes: BTreeMap<Minute, BTreeMap<EventType, T>>,
    /// What is counted without its minute: no more rows than the bound wait to be written.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    no_minute: BTreeMap<EventType, T>,
}

impl<T> Default for AddedLeaf<T> {
    fn default() -> Self {
        Self { minutes: BTreeMap::new(), no_minute: BTreeMap::new() }
    }
}

/// What was added since the last time it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Added<T> {
    #[serde(bound(deserialize = "T: Deserialize<'de>"))]
    tenants: BTreeMap<TenantId, AddedLeaf<T>>,
    #[serde(skip)]
    rows: usize,
}

impl<T> Default for Added<T> {
    fn default() -> Self {
        Self { tenants: BTreeMap::new(), rows: 0 }
    }
}

impl<T: Counts> Added<T> {
    /// Adds to a type's minute, with no more than `rows_max` rows.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        kind: &EventType,
        minute: Minute,
        rows_max: usize,
        more: &T,
    ) {
        let leaf = entry(&mut self.tenants, tenant);
        if self.rows >= rows_max {
            return entry(&mut leaf.no_minute, kind).merge(more);
        }
        let types = leaf.minutes.entry(minute).or_default();
        if !types.contains_key(kind) {
            self.rows += 1;
        }
        entry(types, kind).merge(more);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        for (tenant, leaf) in &other.tenants {
            for (minute, types) in &leaf.minutes {
                types.iter().for_each(|(kind, n)| self.add(tenant, kind, *minute, ROWS_MAX, n));
            }
            for (kind, n) in &leaf.no_minute {
                entry(&mut entry(&mut self.tenants, tenant).no_minute, kind).merge(n);
            }
        }
    }

    /// True where nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}
