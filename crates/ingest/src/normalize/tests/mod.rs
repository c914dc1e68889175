//! The stage from outside: verdicts, units, personal data, rows, schemas on disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod codes;
mod differential;
mod files;
mod personal_data;
mod rows;
mod suite;
mod units;

use serde_json::{Value, json};
use tidegate_event::TenantId;

use super::*;
use crate::{
    storage::Disk,
    tenants::{Quota, Secret},
};

/// 2026-03-01T00:00:00Z.
pub(super) const NOW: ReceivedAt = ReceivedAt(1_772_323_200_000_000);

pub(super) fn tenant() -> Tenant {
    Tenant {
        id: TenantId::new("acme").unwrap(),
        enabled: true,
        strict: false,
        pii_secret: Secret(b"secret of acme".to_vec()),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    }
}

pub(super) fn schema(document: Value) -> Arc<Schema> {
    let mut document = document;
    document["x-version"] = json!(1);
    let parsed = Schema::parse("t.json", document.to_string().as_bytes());
    Arc::new(parsed.unwrap_or_else(|faults| panic!("{document}: {}", faults[0])))
}

pub(super) fn faults(document: Value) -> Vec<SchemaFault> {
    Schema::parse("t.json", document.to_string().as_bytes()).map(drop).unwrap_err()
}

/// A normalizer whose type `t` has this schema.
pub(super) fn normalizer(schema: Option<Arc<Schema>>, unknown: UnknownTypes) -> Normalizer {
    let dir = tempfile::tempdir().unwrap();
    let store = SchemaStore::open(Arc::new(Disk), dir.path().join("hashes")).unwrap();
    let event_type = EventType::new("t").unwrap();
    let entry = schema.map(|schema| SchemaEntry { tenant: None, event_type, schema });
    Normalizer {
        config: SchemasConfig::default(),
        store: Arc::new(store),
        limits: ScanLimits { depth: 32, fields: 512 },
        set: ArcSwap::from_pointee(SchemaSet::new(entry.into_iter().collect(), unknown, 1)),
    }
}

pub(super) fn item(raw: &str) -> Item<'_> {
    Item { raw: raw.as_bytes(), event_type: Some("t"), reserved: true, ..Item::default() }
}

pub(super) fn judge<'s>(normalizer: &Normalizer, raw: &'s str, tenant: &'s Tenant) -> Judged<'s> {
    let context = JudgeContext { tenant, received_at: NOW, key_types: None };
    normalizer.judge(&context, &item(raw), &mut Scratch::default())
}

/// The reason of a dead letter or rejection; `None` for an accepted event.
pub(super) fn reason(judged: &Judged<'_>) -> Option<Reason> {
    match &judged.verdict {
        Verdict::Accepted => None,
        Verdict::DeadLetter(reason) | Verdict::Rejected(reason) => Some(reason.clone()),
    }
}

/// Judges one event of type `t` by a schema: accepted (`""`), or code and field.
#[track_caller]
pub(super) fn check(document: &Value, raw: &str, expected: (&str, &str)) {
    let schema = schema(document.clone());
    let (normalizer, tenant) = (normalizer(Some(schema), UnknownTypes::Accept), tenant());
    let judged = judge(&normalizer, raw, &tenant);
    let found = reason(&judged).map_or((String::new(), String::new()), |reason| {
        (reason.code.as_str().to_owned(), reason.field)
    });
    assert_eq!((found.0.as_str(), found.1.as_str()), expected, "{raw}");
}

/// The row of an accepted event.
#[track_caller]
pub(super) fn row(document: &Value, raw: &str) -> (Vec<Cell<'static>>, Option<String>) {
    let schema = schema(document.clone());
    let normalizer = normalizer(Some(Arc::clone(&schema)), UnknownTypes::Accept);
    let tenant = tenant();
    let judged = judge(&normalizer, raw, &tenant);
    assert_eq!(judged.verdict, Verdict::Accepted, "{raw}");
    let mut scratch = ProjectScratch::default();
    let row = schema.project(&judged.raw, true, &mut scratch).unwrap();
    let owned = |cell: &Cell<'_>| match cell {
        Cell::Null => Cell::Null,
        Cell::Bool(b) => Cell::Bool(*b),
        Cell::I64(n) => Cell::I64(*n),
        Cell::F64(n) => Cell::F64(*n),
        Cell::Text(text) => Cell::Text(text.to_string().into()),
        Cell::Json(text) => Cell::Json(text.to_string().into()),
    };
    (row.cells.iter().map(owned).collect(), row.custom.map(str::to_owned))
}
