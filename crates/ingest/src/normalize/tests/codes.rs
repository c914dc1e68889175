//! Every code this stage gives, and the order of the rules.

use super::*;
use proptest::prelude::*;
use tidegate_event::Code;

fn page() -> Value {
    json!({
        "properties": {
            "path": {"type": "string", "maxLength": 5},
            "n": {"type": "integer"},
            "x": {"type": "number"},
            "d": {"type": "number", "x-unit": "s", "x-accept": {"d_ms": "ms"}}
        },
        "required": ["path"], "x-unknown-fields": "reject"
    })
}

const DEEP: &str = r#"{"path":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}"#;

#[test]
fn each_code_of_this_stage_is_given() {
    let many = format!("{{{}}}", vec!["\"a\":1"; 600].join(","));
    let table = [
        (r#"{"path":"/","path":"/"}"#, "duplicate_key", "/path"),
        (r#"{"path":"\u0000"}"#, "nul_character", "/path"),
        (r#"{"path":"\ud800"}"#, "lone_surrogate", "/path"),
        (r#"{"path":"/","n":9223372036854775808}"#, "number_out_of_range", "/n"),
        (r#"{"path":"/","n":1e400}"#, "number_out_of_range", "/n"),
        (r#"{"path":"/","x":1e400}"#, "number_out_of_range", "/x"),
        (r#"{"path":"/","x":1234567890123456789}"#, "precision_loss", "/x"),
        (r#"{"path":"/","d":"1 m"}"#, "unit_mismatch", "/d"),
        (r#"{"path":"/","d":"1 x"}"#, "unit_unknown", "/d"),
        (r#"{"path":"/","event_time":"yesterday"}"#, "time_invalid", "/event_time"),
        (r#"{"path":"/","event_time":1.5}"#, "time_invalid", "/event_time"),
        (r#"{"path":"/","event_time":1772323200}"#, "time_implausible", "/event_time"),
        (r#"{"path":"/","event_id":7}"#, "id_invalid", "/event_id"),
        (r#"{"path":"/","event_type":"a b"}"#, "type_invalid", "/event_type"),
        (r#"{"path":"/","event_type":7}"#, "type_invalid", "/event_type"),
        (r#"{"path":"/","event_type":"other"}"#, "type_unknown", ""),
        (r#"{"path":7}"#, "type_mismatch", "/path"),
        (r#"{"n":7}"#, "field_missing", "/path"),
        (r#"{"path":"/","y":7}"#, "field_unknown", "/y"),
        (r#"{"path":"/a/b/c"}"#, "schema_violation", "/path"),
        (r#"{"path":"/","d":1,"d_ms":1}"#, "field_conflict", "/d_ms"),
        (r#"{"tidegate.unreadable":{"text":"x"}}"#, "unreadable", ""),
        (r#"{"path""#, "invalid_json", ""),
        ("[]", "not_an_object", ""),
        (DEEP, "too_deep", ""),
        (many.as_str(), "too_many_fields", ""),
    ];
    let (normalizer, tenant) = (normalizer(Some(schema(page())), UnknownTypes::Refuse), tenant());
    let mut given: Vec<Code> = Vec::new();
    for (raw, code, field) in table {
        let judged = judge(&normalizer, raw, &tenant);
        let reason = reason(&judged).unwrap_or_else(|| panic!("{raw} was accepted"));
        assert_eq!((reason.code.as_str(), reason.field.as_str()), (code, field), "{raw}");
        let rejected = matches!(judged.verdict, Verdict::Rejected(_));
        assert_eq!(rejected, reason.code.is_rejection(), "{raw}");
        if !rejected {
            let note: Value = serde_json::from_str(&judged.note).unwrap();
            assert_eq!((&note["field"], &note["message"]), (&json!(field), &json!(reason.message)));
        }
        given.push(reason.code);
    }
    // The three of other stages, and three with tests of their own below.
    let elsewhere = [
        Code::EventTooLarge,
        Code::EnvelopeInvalid,
        Code::TooManyTypes,
        Code::TypeMissing,
        Code::TypeForbidden,
        Code::InvalidUtf8,
    ];
    for code in Code::ALL {
        assert_ne!(given.contains(code), elsewhere.contains(code), "{code:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_rejected() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let item = Item { raw: b"{\"a\":\"\xff\"}", ..Item::default() };
    let judged = normalizer.judge(&context, &item, &mut Scratch::default());
    assert_eq!(reason(&judged).unwrap().code, Code::InvalidUtf8);
}

#[test]
fn an_event_without_a_type_is_a_dead_letter_of_none() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let item = Item { raw: br#"{"event_type":null}"#, reserved: true, ..Item::default() };
    let judged = normalizer.judge(&context, &item, &mut Scratch::default());
    assert_eq!(reason(&judged).unwrap().code, Code::TypeMissing);
    assert_eq!(judged.event_type, EventType::unnamed());
}

#[test]
fn a_type_the_key_may_not_send_is_rejected_whatever_else_is_wrong() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    let allowed = ["page".to_owned()];
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: Some(&allowed) };
    for (raw, code) in [
        (r#"{"event_type":"page"}"#, None),
        (r#"{"event_type":"other"}"#, Some(Code::TypeForbidden)),
        (r#"{"event_type":"other","event_id":""}"#, Some(Code::TypeForbidden)),
        (r#"{"event_type":"other","a":1,"a":1}"#, Some(Code::TypeForbidden)),
    ] {
        let judged = normalizer.judge(&context, &item(raw), &mut Scratch::default());
        assert_eq!(reason(&judged).map(|r| r.code), code, "{raw}");
    }
}

#[test]
fn strict_tenants_get_dead_letters_rejected() {
    let normalizer = normalizer(Some(schema(page())), UnknownTypes::Accept);
    let tenant = Tenant { strict: true, ..tenant() };
    let judged = judge(&normalizer, r#"{"path":7}"#, &tenant);
    assert!(matches!(&judged.verdict, Verdict::Rejected(r) if r.code == Code::TypeMismatch));
    assert_eq!(judged.note, "");
}

#[test]
fn foreign_names_are_mapped_and_kept_beside() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let item =
        Item { raw: b"{}", event_type: Some("com.x/y z"), map_names: true, ..Item::default() };
    let judged = normalizer.judge(&context, &item, &mut Scratch::default());
    assert_eq!(judged.verdict, Verdict::Accepted);
    assert_eq!(judged.event_type.as_str(), "com.x_y_z");
    assert_eq!(judged.note, r#"{"source_name":"com.x/y z"}"#);
}

#[test]
fn reserved_fields_are_ours_only_where_the_protocol_says_so() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let raw =
        r#"{"\u0065vent_type":"a","event_id":"i","event_time":"2026-02-28T12:00:00.5+01:00"}"#;
    let judged = normalizer.judge(&context, &item(raw), &mut Scratch::default());
    assert_eq!((judged.event_type.as_str(), judged.client_id.as_deref()), ("a", Some("i")));
    assert_eq!(judged.event_time.0, NOW.0 - 46_800_000_000 + 500_000);
    let own = Item { reserved: false, event_id: Some("x"), ..item(raw) };
    let judged = normalizer.judge(&context, &own, &mut Scratch::default());
    assert_eq!((judged.event_type.as_str(), judged.client_id.as_deref()), ("t", Some("x")));
    assert_eq!(judged.event_time.0, NOW.0);
}

#[test]
fn times_in_other_units_are_told_apart() {
    let (normalizer, tenant) = (normalizer(None, UnknownTypes::Accept), tenant());
    for (time, told) in [
        ("1772323200", "looks like seconds"),
        ("1772323200000000", "looks like microseconds"),
        ("1772323200000000000", "looks like nanoseconds"),
        ("\"1989-12-31T23:59:59Z\"", "before 1990"),
        ("\"2026-03-02T00:00:01Z\"", "more than a day ahead"),
    ] {
        let raw = format!("{{\"event_time\":{time}}}");
        let judged = judge(&normalizer, &raw, &tenant);
        let reason = reason(&judged).unwrap();
        assert_eq!(reason.code, Code::TimeImplausible, "{raw}");
        assert!(reason.message.contains(told), "{raw}: {}", reason.message);
        assert_eq!(judged.event_time.0, NOW.0);
    }
    for time in ["1772323200000", "631152000000", "\"2026-03-02T00:00:00Z\"", "null"] {
        let raw = format!("{{\"event_time\":{time}}}");
        assert_eq!(judge(&normalizer, &raw, &tenant).verdict, Verdict::Accepted, "{raw}");
    }
}

fn events() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("1.5".to_owned()),
        Just("\"x\"".to_owned()),
        Just("null".to_owned()),
        Just("\"1500 ms\"".to_owned()),
        Just("{\"value\":1,\"unit\":\"s\"}".to_owned()),
        Just("1e400".to_owned()),
        "[0-9]{1,20}",
        "\"[a-z\\u00e9]{0,8}\"",
        Just("[".to_owned()),
    ];
    let key =
        prop_oneof!["path", "n", "x", "d", "d_ms", "y", "event_id", "event_type", "event_time"];
    proptest::collection::vec((key, value), 0..6).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{{\"path\":\"/\",{}}}", members.join(", "))
    })
}

proptest! {
    #[test]
    fn the_verdict_is_pure_and_the_bytes_stay(raws in proptest::collection::vec(events(), 1..8)) {
        let (normalizer, tenant) =
            (normalizer(Some(schema(page())), UnknownTypes::Accept), tenant());
        let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
        let mut used = Scratch::default();
        for raw in &raws {
            let fresh = normalizer.judge(&context, &item(raw), &mut Scratch::default());
            let again = normalizer.judge(&context, &item(raw), &mut used);
            prop_assert_eq!(&fresh, &again);
            prop_assert_eq!(fresh.raw.as_ref(), raw.as_bytes());
        }
    }
}
