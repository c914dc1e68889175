//! What was accepted becomes a row that holds all of it.

use super::*;
use proptest::prelude::*;

fn table() -> Value {
    json!({"properties": {
        "b": {"type": ["boolean", "null"]},
        "i": {"type": "integer", "minimum": -5},
        "f": {"type": "number"},
        "t": {"type": "string", "x-column": "words"},
        "o": {"type": "object"},
        "m": {"type": ["string", "integer"]},
        "h": {"type": "string", "x-pii": "hash"},
        "z": {"x-pii": "drop"}
    }})
}

#[test]
fn columns_follow_the_schemas_properties() {
    let schema = schema(table());
    let columns: Vec<_> =
        schema.columns().iter().map(|c| (c.name.as_str(), c.ty.as_str())).collect();
    assert_eq!(
        columns,
        [
            ("b", "boolean"),
            ("i", "integer"),
            ("f", "number"),
            ("words", "text"),
            ("o", "json"),
            ("m", "json"),
            ("h", "text"),
        ]
    );
}

#[test]
fn a_row_holds_each_value_in_its_columns_type_and_the_rest_as_sent() {
    let raw = r#"{"u": [1, 2.50], "t":"a\nb", "b":true,"i":1e2,"f":0.10,"o":{"x": 1},"m":"s","z":9,
        "event_id":"1","\u0076":"\u00e9" }"#;
    let (cells, custom) = row(&table(), raw);
    assert_eq!(
        cells,
        [
            Cell::Bool(true),
            Cell::I64(100),
            Cell::F64(0.1),
            Cell::Text("a\nb".into()),
            Cell::Json(r#"{"x": 1}"#.into()),
            Cell::Json("\"s\"".into()),
            Cell::Null,
        ]
    );
    assert_eq!(custom.as_deref(), Some(r#"{"u":[1, 2.50],"\u0076":"\u00e9"}"#));
}

#[test]
fn what_was_hashed_is_text_and_is_not_judged_again() {
    let (cells, _) = row(&table(), r#"{"h":"secret"}"#);
    assert!(matches!(&cells[6], Cell::Text(text) if text.len() == 64));
}

#[test]
fn without_a_schema_everything_is_custom() {
    let mut scratch = ProjectScratch::default();
    let raw = br#"{"event_type":"a", "x":1, "y":{"z": 2}}"#;
    let row = Schema::none().project(raw, true, &mut scratch).unwrap();
    assert_eq!((row.cells.len(), row.custom), (0, Some(r#"{"x":1,"y":{"z": 2}}"#)));
    let row = Schema::none().project(b"{}", true, &mut scratch).unwrap();
    assert_eq!(row.custom, None);
    let row = Schema::none().project(br#"{"event_id":1}"#, false, &mut scratch).unwrap();
    assert_eq!(row.custom, Some(r#"{"event_id":1}"#));
    assert!(Schema::none().project(b"{", true, &mut scratch).is_err());
}

#[test]
fn reserved_fields_are_known_by_protocol() {
    assert!(reserved_in("events") && reserved_in("track") && !reserved_in("cloudevents"));
}

proptest! {
    #[test]
    fn an_accepted_event_is_a_row_and_nothing_is_lost(
        members in proptest::collection::hash_map(
            "[bifmtouvw]",
            prop_oneof![
                any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from),
                any::<f64>().prop_map(Value::from), ".{0,8}".prop_map(Value::from),
                Just(json!({"a": [1]})), Just(Value::Null),
            ], 0..6)
    ) {
        let raw = serde_json::to_string(&members).unwrap();
        let schema = schema(table());
        let normalizer = normalizer(Some(Arc::clone(&schema)), UnknownTypes::Accept);
        let tenant = tenant();
        let judged = judge(&normalizer, &raw, &tenant);
        let mut scratch = ProjectScratch::default();
        let row = schema.project(&judged.raw, true, &mut scratch);
        if judged.verdict == Verdict::Accepted {
            let row = row.unwrap();
            let mut back: serde_json::Map<String, Value> =
                serde_json::from_str(row.custom.unwrap_or("{}")).unwrap();
            for (column, cell) in schema.columns().iter().zip(&row.cells) {
                let name = if column.name == "words" { "t" } else { &column.name };
                let value = match cell {
                    Cell::Null => continue,
                    Cell::Bool(b) => json!(b),
                    Cell::I64(n) => json!(n),
                    Cell::F64(n) => json!(n),
                    Cell::Text(text) => json!(text),
                    Cell::Json(text) => serde_json::from_str(text).unwrap(),
                };
                back.insert(name.to_owned(), value);
            }
            for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                let same = match (value.as_f64(), back[name].as_f64()) {
                    (Some(a), Some(b)) => a == b,
                    _ => &back[name] == value,
                };
                prop_assert!(same, "{} {}", name, raw);
            }
        }
    }
}
