//! Units in each of their spellings, exact and refused.

use super::*;

fn seconds() -> Value {
    json!({"properties": {"duration": {
        "type": "number", "x-unit": "s", "x-accept": {"duration_ms": "ms", "duration_h": "h"},
        "minimum": 0
    }}})
}

fn whole_seconds() -> Value {
    json!({"properties": {"duration": {
        "type": ["integer", "null"], "x-unit": "s", "x-accept": {"duration_ms": "ms"}
    }}})
}

#[track_caller]
fn becomes(document: &Value, raw: &str, expected: Cell<'_>) {
    assert_eq!(row(document, raw), (vec![expected], None), "{raw}");
}

#[test]
fn a_name_that_says_the_unit_is_converted_exactly() {
    becomes(&seconds(), r#"{"duration_ms":1500}"#, Cell::F64(1.5));
    becomes(&seconds(), r#"{"duration_ms":0.1}"#, Cell::F64(0.0001));
    becomes(&seconds(), r#"{"duration_h":1e-2}"#, Cell::F64(36.0));
    becomes(&whole_seconds(), r#"{"duration_ms":3000.0}"#, Cell::I64(3));
    becomes(&whole_seconds(), r#"{"duration_ms":null}"#, Cell::Null);
}

#[test]
fn an_object_of_value_and_unit_is_converted_exactly() {
    becomes(&seconds(), r#"{"duration":{"value":1.5,"unit":"s"}}"#, Cell::F64(1.5));
    becomes(&seconds(), r#"{"duration":{"unit":"us","value":1}}"#, Cell::F64(0.000_001));
    becomes(&seconds(), r#"{"duration":{"value":2,"unit":"\u0064"}}"#, Cell::F64(172_800.0));
}

#[test]
fn a_text_of_value_and_unit_is_converted_exactly() {
    becomes(&seconds(), r#"{"duration":"1500 ms"}"#, Cell::F64(1.5));
    becomes(&seconds(), r#"{"duration":"1.5e3ms"}"#, Cell::F64(1.5));
    becomes(&whole_seconds(), r#"{"duration":" 2 min "}"#, Cell::I64(120));
}

#[test]
fn a_plain_number_is_in_the_columns_unit() {
    becomes(&seconds(), r#"{"duration":1.5}"#, Cell::F64(1.5));
    becomes(&whole_seconds(), r#"{"duration":1e1}"#, Cell::I64(10));
}

#[test]
fn a_ratio_without_a_finite_decimal_is_rounded_correctly() {
    let hours = json!({"properties": {"t": {"type": "number", "x-unit": "h"}}});
    becomes(&hours, r#"{"t":"1 min"}"#, Cell::F64(1.0 / 60.0));
    becomes(&hours, r#"{"t":"7 s"}"#, Cell::F64(7.0 / 3600.0));
}

#[test]
fn other_dimensions_and_no_units_are_refused() {
    let s = seconds();
    check(&s, r#"{"duration":"3 m"}"#, ("unit_mismatch", "/duration"));
    check(&s, r#"{"duration":{"value":3,"unit":"By"}}"#, ("unit_mismatch", "/duration"));
    check(&s, r#"{"duration":"3 sec"}"#, ("unit_unknown", "/duration"));
    check(&s, r#"{"duration":{"value":3,"unit":"dB"}}"#, ("unit_unknown", "/duration"));
    for raw in [
        r#"{"duration":"3"}"#,
        r#"{"duration":"ms"}"#,
        r#"{"duration":{"value":3}}"#,
        r#"{"duration":{"value":"3","unit":"s"}}"#,
        r#"{"duration":{"value":3,"unit":"s","x":1}}"#,
        r#"{"duration":[3,"s"]}"#,
        r#"{"duration":null}"#,
    ] {
        check(&s, raw, ("type_mismatch", "/duration"));
    }
    check(&s, r#"{"duration_ms":"3"}"#, ("type_mismatch", "/duration_ms"));
}

#[test]
fn what_would_lose_digits_is_refused() {
    let (s, whole) = (seconds(), whole_seconds());
    check(&whole, r#"{"duration_ms":1500}"#, ("precision_loss", "/duration_ms"));
    check(&whole, r#"{"duration":"1500 ms"}"#, ("precision_loss", "/duration"));
    check(&s, r#"{"duration_ms":12345678901234567890123}"#, ("precision_loss", "/duration_ms"));
    check(&s, r#"{"duration":1234567890123456789}"#, ("precision_loss", "/duration"));
    check(&s, r#"{"duration":"1e309 s"}"#, ("number_out_of_range", "/duration"));
    check(&whole, r#"{"duration":"1e30 s"}"#, ("number_out_of_range", "/duration"));
}

#[test]
fn two_spellings_of_one_field_conflict() {
    let s = seconds();
    check(&s, r#"{"duration":1,"duration_ms":1000}"#, ("field_conflict", "/duration_ms"));
    check(&s, r#"{"duration_h":1,"duration_ms":1000}"#, ("field_conflict", "/duration_ms"));
}

#[test]
fn keywords_are_checked_in_the_columns_unit() {
    check(&seconds(), r#"{"duration_ms":-1}"#, ("schema_violation", "/duration_ms"));
    let by_reference = json!({
        "properties": {"d": {"type": "number", "x-unit": "s", "not": {"const": 1.5}}}
    });
    check(&by_reference, r#"{"d":"1500 ms"}"#, ("schema_violation", "/d"));
    check(&by_reference, r#"{"d":"1501 ms"}"#, ("", ""));
    let as_a_whole = json!({
        "properties": {"d": {"type": "number", "x-unit": "s", "x-accept": {"d_ms": "ms"}}},
        "required": ["d"], "additionalProperties": false, "maxProperties": 1
    });
    check(&as_a_whole, r#"{"d_ms":1500}"#, ("", ""));
    check(&as_a_whole, r#"{"d":"1 m"}"#, ("unit_mismatch", "/d"));
}

#[test]
fn a_required_field_may_arrive_under_another_name() {
    let mut required = seconds();
    required["required"] = json!(["duration"]);
    required["x-unknown-fields"] = json!("reject");
    check(&required, r#"{"duration_ms":1}"#, ("", ""));
    check(&required, r#"{}"#, ("field_missing", "/duration"));
}
