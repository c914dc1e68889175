//! Schemas: refused with faults that name their place, or compiled; then events judged by them.

#![no_main]

use std::{collections::HashSet, sync::Arc};

use libfuzzer_sys::fuzz_target;
use tidegate_event::EventType;
use tidegate_fuzz::{
    input::Input,
    judge::{NOW, of, tenant},
};
use tidegate_ingest::normalize::{
    Item, JudgeContext, OWN_COLUMNS, ProjectScratch, Schema, SchemaEntry, Scratch, Verdict,
    check_evolution, evolution_notes,
};

// The schema, then events, each ended by a NUL.
fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let text = input.until(0);
    let schema = match Schema::parse("fuzz.json", text) {
        Ok(schema) => schema,
        Err(faults) => {
            assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty()));
            return;
        }
    };
    compiled(&schema);
    let (schema, event_type) = (Arc::new(schema), EventType::new("t").unwrap());
    let entry = SchemaEntry { tenant: None, event_type, schema: Arc::clone(&schema) };
    let (normalizer, tenant) = (of(vec![entry]), tenant(false));
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let mut used = Scratch::default();
    for _ in 0..8 {
        let raw = input.until(0);
        if raw.is_empty() {
            return;
        }
        let item = Item { raw, event_type: Some("t"), reserved: true, ..Item::default() };
        let judged = normalizer.judge(&context, &item, &mut used);
        assert_eq!(normalizer.judge(&context, &item, &mut Scratch::default()), judged);
        // The event may name another type itself, which has no schema here.
        if judged.verdict == Verdict::Accepted && judged.schema == schema.reference() {
            let row = schema.project(&judged.raw, true, &mut ProjectScratch::default()).map(drop);
            assert_eq!(row, Ok(()), "accepted, and no row");
        }
    }
});

fn compiled(schema: &Schema) {
    let again = Schema::parse("again.json", schema.canonical().as_bytes());
    let again = again.unwrap_or_else(|faults| panic!("its own text is refused: {}", faults[0]));
    assert_eq!((again.hash(), again.version()), (schema.hash(), schema.version()));
    assert_eq!((again.columns(), again.canonical()), (schema.columns(), schema.canonical()));
    assert!(
        check_evolution(schema, &again).is_empty() && evolution_notes(schema, &again).is_empty()
    );
    let mut names = HashSet::new();
    for column in schema.columns() {
        assert!(!OWN_COLUMNS.contains(&column.name.as_str()), "{}", column.name);
        assert!(names.insert(column.name.to_ascii_lowercase()), "two columns {}", column.name);
    }
}
