//! The official JSON-Schema-Test-Suite's cases for the keywords that are compiled.

use std::collections::BTreeMap;

use super::*;

const KEYWORDS: [&str; 14] = [
    "type",
    "required",
    "enum",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "properties",
    "additionalProperties",
    "format",
];

/// How a case was run, or why it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Run {
    /// By compiled checks alone, on the event itself.
    CompiledEvent,
    /// By compiled checks alone, on a field of an event: the instance is no object or the schema
    /// says something of the whole that a field can say too.
    CompiledField,
    /// The schema needs the reference (arrays or objects in const and enum, patternProperties,
    /// nested properties, boolean schemas, …).
    Reference,
    /// Skipped: the number is one that JSON Schema takes and no column can hold.
    NoColumn,
    /// Skipped: the schema holds U+0000, which no event may.
    Nul,
}

fn parse(document: &Value) -> Result<Arc<Schema>, Vec<SchemaFault>> {
    let mut document = document.clone();
    document["x-version"] = json!(1);
    Schema::parse("t.json", document.to_string().as_bytes()).map(Arc::new)
}

fn is_compiled(schema: &Schema) -> bool {
    schema.whole.is_none() && schema.fields.iter().all(|field| field.reference.is_none())
}

fn run(group: &Value, case: &Value, compiled_event: bool) -> (Run, bool) {
    let (mut by, mut data) = (group["schema"].clone(), case["data"].clone());
    if !compiled_event {
        if let Some(keywords) = by.as_object_mut() {
            keywords.remove("$schema");
        }
        by = json!({"properties": {"value": by}});
        data = json!({"value": data});
    }
    let schema = match parse(&by) {
        Ok(schema) => schema,
        Err(faults) => {
            return (Run::Nul, faults.iter().all(|fault| fault.what.contains("nul_character")));
        }
    };
    let how = match (is_compiled(&schema), compiled_event) {
        (false, _) => Run::Reference,
        (true, true) => Run::CompiledEvent,
        (true, false) => Run::CompiledField,
    };
    let (normalizer, tenant) = (normalizer(Some(schema), UnknownTypes::Accept), tenant());
    let raw = data.to_string();
    let judged = judge(&normalizer, &raw, &tenant);
    let code = reason(&judged).map(|reason| reason.code.as_str());
    if matches!(code, Some("number_out_of_range" | "precision_loss")) {
        return (Run::NoColumn, true);
    }
    (how, code.is_none() == (case["valid"] == json!(true)))
}

#[test]
fn the_official_cases_hold() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/json-schema-test-suite");
    let mut counts: BTreeMap<Run, usize> = BTreeMap::new();
    for keyword in KEYWORDS {
        let text = std::fs::read_to_string(format!("{dir}/{keyword}.json")).unwrap();
        let groups: Vec<Value> = serde_json::from_str(&text).unwrap();
        for group in &groups {
            for case in group["tests"].as_array().unwrap() {
                let whole = case["data"].is_object()
                    && group["schema"].is_object()
                    && parse(&group["schema"]).is_ok_and(|schema| is_compiled(&schema));
                let (how, holds) = run(group, case, whole);
                let (about, what) = (&group["description"], &case["description"]);
                assert!(holds, "{keyword}: {about}: {what} ({how:?})");
                *counts.entry(how).or_default() += 1;
            }
        }
    }
    let total: usize = counts.values().sum();
    let expected = BTreeMap::from([
        (Run::CompiledEvent, 45),
        (Run::CompiledField, 290),
        (Run::Reference, 84),
        (Run::NoColumn, 1),
        (Run::Nul, 4),
    ]);
    assert_eq!(counts, expected, "{total} cases");
}
