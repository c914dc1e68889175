//! What must not be kept is not kept, whatever else is wrong with the event.

use super::*;
use proptest::prelude::*;

fn rules() -> Value {
    json!({"properties": {
        "email": {"type": "string", "x-pii": "hash"},
        "name": {"type": ["string", "null"], "x-pii": "mask"},
        "card": {"type": "string", "x-pii": "drop"},
        "weight": {"type": "number", "x-unit": "g", "x-accept": {"weight_kg": "kg"}, "x-pii": "mask"},
        "user": {"type": "object", "properties": {"phone": {"x-pii": "drop"}, "city": {"type": "string"}}},
        "guests": {"type": "array", "items": {"properties": {"mail": {"x-pii": "mask"}}}},
        "n": {"type": "integer"}
    }})
}

/// What stays of an event and the fields that its note says were changed.
#[track_caller]
fn stays(raw: &str, expected: &str, fields: &[&str]) {
    let (normalizer, tenant) = (normalizer(Some(schema(rules())), UnknownTypes::Accept), tenant());
    let judged = judge(&normalizer, raw, &tenant);
    assert_eq!(std::str::from_utf8(&judged.raw).unwrap(), expected);
    let note: Value = serde_json::from_str(&judged.note).unwrap_or(json!({}));
    assert_eq!(note.get("pii").cloned().unwrap_or(json!([])), json!(fields), "{}", judged.note);
    assert_eq!(judged.pii_changed, !fields.is_empty());
}

fn hash_of(text: &str) -> String {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"secret of acme").unwrap();
    mac.update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[test]
fn a_dropped_field_is_taken_out_with_one_comma() {
    stays(r#"{"a":1, "card":"4111", "b":2}"#, r#"{"a":1, "b":2}"#, &["/card"]);
    stays(r#"{ "card":"4111", "b":2}"#, r#"{ "b":2}"#, &["/card"]);
    stays(r#"{"b":2 , "card":"4111" }"#, r#"{"b":2 }"#, &["/card"]);
    stays(r#"{"card":"4111"}"#, "{}", &["/card"]);
    stays(r#"{"card":"1","card":"2","b":3,"card":"4"}"#, r#"{"b":3}"#, &["/card"]);
}

#[test]
fn a_hashed_field_holds_the_keyed_hash_of_its_value() {
    let hash = hash_of("a@b.c");
    stays(r#"{"email": "a@b.c" }"#, &format!(r#"{{"email": "{hash}" }}"#), &["/email"]);
    let escaped = r#"{"\u0065mail":"a\u0040b.c"}"#;
    stays(escaped, &format!(r#"{{"\u0065mail":"{hash}"}}"#), &["/email"]);
    stays(r#"{"email":12.50}"#, &format!(r#"{{"email":"{}"}}"#, hash_of("12.50")), &["/email"]);
}

#[test]
fn a_masked_field_holds_three_stars_and_null_stays() {
    stays(r#"{"name":"Ann"}"#, r#"{"name":"***"}"#, &["/name"]);
    stays(r#"{"name":{"first":"Ann"}}"#, r#"{"name":"***"}"#, &["/name"]);
    stays(r#"{"name":null}"#, r#"{"name":null}"#, &[]);
}

#[test]
fn other_names_inner_fields_and_elements_are_covered() {
    stays(r#"{"weight_kg":80.5}"#, r#"{"weight_kg":"***"}"#, &["/weight_kg"]);
    let user = r#"{"user":{"city":"Bonn", "phone":"0228"},"n":1}"#;
    stays(user, r#"{"user":{"city":"Bonn"},"n":1}"#, &["/user/phone"]);
    let guests = r#"{"guests":[{"mail":"a"}, 1, {"x":2, "mail":"b"}]}"#;
    let masked = r#"{"guests":[{"mail":"***"}, 1, {"x":2, "mail":"***"}]}"#;
    stays(guests, masked, &["/guests/0/mail", "/guests/2/mail"]);
}

#[test]
fn a_long_array_is_replaced_as_a_whole() {
    let document = json!({"properties": {"ips": {"items": {"x-pii": "mask"}}}});
    let (normalizer, tenant) = (normalizer(Some(schema(document)), UnknownTypes::Accept), tenant());
    let short = format!("{{\"ips\":[{}]}}", vec!["1"; 100].join(","));
    let judged = judge(&normalizer, &short, &tenant);
    assert_eq!(judged.raw.iter().filter(|b| **b == b'*').count(), 300);
    let long = format!("{{\"ips\":[{}]}}", vec!["1"; 101].join(","));
    let judged = judge(&normalizer, &long, &tenant);
    assert_eq!(judged.raw.as_ref(), br#"{"ips":"***"}"#);
    assert_eq!(judged.note, r#"{"pii":["/ips"]}"#);
}

#[test]
fn dead_letters_of_every_kind_are_covered_too() {
    for (raw, code) in [
        (r#"{"card":"S3CRET","n":"x"}"#, Code::TypeMismatch),
        (r#"{"card":"S3CRET","event_time":5}"#, Code::TimeImplausible),
        (r#"{"card":"S3CRET","event_id":""}"#, Code::IdInvalid),
        (r#"{"card":"S3CRET","card":"S3CRET"}"#, Code::DuplicateKey),
        (r#"{"card":"S3CRET","x":"\u0000"}"#, Code::NulCharacter),
        (r#"{"card":["S3CRET"]}"#, Code::TypeMismatch),
        (r#"{"weight":"5 S3CRET"}"#, Code::UnitUnknown),
        (r#"{"name":"S3CRET","weight":"5 s"}"#, Code::UnitMismatch),
    ] {
        let (normalizer, tenant) =
            (normalizer(Some(schema(rules())), UnknownTypes::Accept), tenant());
        let judged = judge(&normalizer, raw, &tenant);
        let reason = reason(&judged).unwrap();
        assert_eq!(reason.code, code, "{raw}");
        assert!(matches!(judged.verdict, Verdict::DeadLetter(_)));
        let kept = format!("{} {} {reason:?}", String::from_utf8_lossy(&judged.raw), judged.note);
        assert!(!kept.contains("S3CRET"), "{kept}");
    }
}

use tidegate_event::Code;

#[test]
fn messages_of_the_reference_hold_no_value() {
    let document = json!({
        "properties": {"mail": {"type": "string", "pattern": "^x", "x-pii": "hash"}},
        "dependentRequired": {"a": ["b"]}
    });
    let (normalizer, tenant) = (normalizer(Some(schema(document)), UnknownTypes::Accept), tenant());
    let judged = judge(&normalizer, r#"{"mail":"S3CRET"}"#, &tenant);
    let reason = reason(&judged).unwrap();
    assert_eq!((reason.code, reason.field.as_str()), (Code::SchemaViolation, "/mail"));
    assert!(!judged.note.contains("S3CRET") && judged.note.contains("pattern"), "{}", judged.note);
}

#[test]
fn a_rule_where_none_is_applied_is_a_fault() {
    for document in [
        json!({"x-version": 1, "allOf": [{"properties": {"a": {"x-pii": "drop"}}}]}),
        json!({"x-version": 1, "$defs": {"a": {"x-pii": "drop"}}}),
        json!({"x-version": 1, "properties": {"a": {"anyOf": [{"x-pii": "mask"}]}}}),
        json!({"x-version": 1, "patternProperties": {"^a": {"x-pii": "mask"}}}),
        json!({"x-version": 1, "properties": {"a": {"x-pii": "erase"}}}),
        json!({"x-version": 1, "properties": {"a": {"items": {"x-pii": "drop"}}}}),
        json!({"x-version": 1, "properties": {"event_id": {"x-pii": "drop", "x-column": "e"}}}),
        json!({"x-version": 1, "x-pii": "drop"}),
        json!({"x-version": 1, "properties": {"a": {"items": {"items": {"x-pii": "mask"}}}}}),
    ] {
        assert!(
            faults(document.clone()).iter().any(|f| f.pointer.contains("x-pii")
                || f.what.contains("x-pii")
                || f.what.contains("drop")),
            "{document}"
        );
    }
    schema(json!({"properties": {"x-pii": {"const": {"x-pii": "drop"}}}}));
}

#[test]
fn a_changed_event_is_judged_again_without_its_changed_fields() {
    let mut document = rules();
    document["required"] = json!(["card", "email"]);
    document["properties"]["email"]["maxLength"] = json!(10);
    let (normalizer, tenant) = (normalizer(Some(schema(document)), UnknownTypes::Accept), tenant());
    let first = r#"{"email":"a@b.c","card":"1","weight":"80 kg","user":{"phone":"1"}}"#;
    let judged = judge(&normalizer, first, &tenant);
    assert_eq!(judged.verdict, Verdict::Accepted);
    let raw = String::from_utf8(judged.raw.to_vec()).unwrap();
    let note: Value = serde_json::from_str(&judged.note).unwrap();
    let changed: Vec<String> = serde_json::from_value(note["pii"].clone()).unwrap();
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let again = normalizer.judge_again(&context, &item(&raw), &changed, &mut Scratch::default());
    assert_eq!(again.verdict, Verdict::Accepted);
    assert_eq!((&again.raw, &again.note), (&judged.raw, &judged.note));
}

proptest! {
    #[test]
    fn no_secret_stays_and_what_is_outside_does(
        members in proptest::collection::vec((0..8usize, 0..4u8), 0..12), space in "[ \n]{0,2}"
    ) {
        let names = ["email", "name", "card", "weight", "n", "x", "\\u0063ard", "weight_kg"];
        let values = ["\"S3CRET\"", "[\"S3CRET\"]", "{\"a\":\"S3CRET\"}", "null"];
        let kept = ["1", "[1]", "\"x\"", "null"];
        let text: Vec<String> = members.iter().map(|(name, value)| {
            let secret = !matches!(names[*name], "n" | "x");
            let value = if secret { values[usize::from(*value)] } else { kept[usize::from(*value)] };
            format!("\"{}\":{space}{value}", names[*name])
        }).collect();
        let raw = format!("{{{space}{}{space}}}", text.join(&format!(",{space}")));
        let (normalizer, tenant) =
            (normalizer(Some(schema(rules())), UnknownTypes::Accept), tenant());
        let judged = judge(&normalizer, &raw, &tenant);
        let after = String::from_utf8(judged.raw.to_vec()).unwrap();
        prop_assert!(!after.contains("S3CRET") && !judged.note.contains("S3CRET"), "{}", after);
        serde_json::from_str::<&serde_json::value::RawValue>(&after).unwrap();
        for (text, (name, _)) in text.iter().zip(&members) {
            if matches!(names[*name], "n" | "x") {
                prop_assert!(after.contains(text.as_str()));
            }
        }
    }
}
