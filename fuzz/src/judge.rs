//! A tenant, and schemas that use every rule there is.

use std::sync::{Arc, LazyLock};

use tidegate_event::{EventType, ReceivedAt, TenantId};
use tidegate_ingest::{
    fuzzing::normalize::normalizer,
    json::ScanLimits,
    normalize::{Normalizer, Schema, SchemaEntry, SchemaStore, UnknownTypes},
    tenants::{Quota, Secret, Tenant},
};

use crate::disk::Memory;

/// 2026-03-01T00:00:00Z.
pub const NOW: ReceivedAt = ReceivedAt(1_772_323_200_000_000);
/// Deeper than an edge lets events be by default, and within what the reference can follow.
pub const LIMITS: ScanLimits = ScanLimits { depth: 100, fields: 10_000 };

/// Event types with their schemas; `free` has none.
pub const TYPES: [&str; 5] = ["free", "flat", "units", "personal", "whole"];

const SCHEMAS: [(&str, &str); 4] = [
    (
        "flat",
        r#"{"x-version":1,"properties":{
            "b":{"type":["boolean","null"]},"i":{"type":"integer","minimum":-5,"multipleOf":5},
            "f":{"type":"number","exclusiveMaximum":1e3},"t":{"type":"string","maxLength":4,"x-column":"words"},
            "o":{"type":"object"},"a":{"type":"array"},"m":{"type":["string","integer"]},
            "e":{"enum":["x",1,null,2.5]},"c":{"const":"yes"}},"required":["b"]}"#,
    ),
    (
        "units",
        r#"{"x-version":2,"x-unknown-fields":"reject","properties":{
            "duration":{"type":"number","x-unit":"s","x-accept":{"duration_ms":"ms","duration_h":"h"},"minimum":0},
            "size":{"type":["integer","null"],"x-unit":"By","x-accept":{"size_kib":"KiBy","bits":"bit"}},
            "heat":{"type":"number","x-unit":"Cel","x-accept":{"heat_f":"[degF]","heat_k":"K"}},
            "speed":{"type":"number","x-unit":"km/h","x-accept":{"mps":"m/s"}}}}"#,
    ),
    (
        "personal",
        r#"{"x-version":3,"properties":{
            "mail":{"type":"string","x-pii":"hash"},"card":{"type":"string","x-pii":"mask"},
            "note":{"x-pii":"drop"},"n":{"type":"integer","x-pii":"hash"},
            "user":{"type":"object","properties":{"name":{"type":"string","x-pii":"mask"},
              "tags":{"type":"array","items":{"type":"string","x-pii":"hash"}},"x":{"x-pii":"drop"}}},
            "list":{"type":"array","items":{"type":"object","properties":{"p":{"type":"string","x-pii":"drop"}}}}},
            "required":["mail"]}"#,
    ),
    (
        "whole",
        r#"{"x-version":4,"properties":{"k":{"type":"string","pattern":"^[a-z]+$"},
            "d":{"type":"number","x-unit":"s","not":{"const":1.5}},
            "l":{"type":"array","items":{"type":"integer"},"uniqueItems":true,"maxItems":4}},
            "minProperties":1,"maxProperties":3,"dependentRequired":{"k":["d"]},"additionalProperties":{"type":"string"}}"#,
    ),
];

/// The schemas by event type.
pub fn entries() -> Vec<SchemaEntry> {
    let entry = |(name, text): &(&str, &str)| SchemaEntry {
        tenant: None,
        event_type: EventType::new(name).unwrap(),
        schema: Arc::new(Schema::parse(name, text.as_bytes()).unwrap_or_else(|f| panic!("{f:?}"))),
    };
    SCHEMAS.iter().map(entry).collect()
}

/// A normalizer of these schemas.
pub fn of(entries: Vec<SchemaEntry>) -> Normalizer {
    let store = SchemaStore::open(Arc::new(Memory::default()), "schemas".into()).unwrap();
    normalizer(entries, UnknownTypes::Accept, Arc::new(store), LIMITS)
}

/// The normalizer of [`entries`].
pub static NORMALIZER: LazyLock<Arc<Normalizer>> = LazyLock::new(|| Arc::new(of(entries())));

/// A tenant.
pub fn tenant(strict: bool) -> Tenant {
    Tenant {
        id: TenantId::new("acme").unwrap(),
        enabled: true,
        strict,
        pii_secret: Secret(b"secret of acme".to_vec()),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    }
}
