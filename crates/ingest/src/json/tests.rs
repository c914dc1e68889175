//! The scanner against `serde_json`, on valid, damaged and arbitrary input.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;
use serde_json::{Map, Value, value::RawValue};
use tidegate_event::Code;

use super::*;

const WIDE: ScanLimits = ScanLimits { depth: usize::MAX, fields: usize::MAX };

fn scan(raw: &str) -> Result<Object, JsonError> {
    let mut object = Object::default();
    scan_object(raw.as_bytes(), &WIDE, &mut object).map(|_| object)
}

/// True where the bytes are JSON of any kind.
fn accepts(raw: &[u8]) -> bool {
    let scanned = scan_object(raw, &WIDE, &mut Object::default());
    matches!(scanned, Ok(_) | Err(JsonError::NotAnObject { .. }))
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", "[a-c]{0,2}", "[\"\\\\/\u{8}\n\u{1}é\u{10ffff}]{0,9}"]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((text(), inner), 0..20)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The value as text, with spaces and escapes that mean nothing where `odd` says so.
fn write(value: &Value, odd: u64, into: &mut String) {
    let space = [" ", "", "\n\t", ""][(odd % 4) as usize];
    let string = |text: &str, into: &mut String| {
        if odd.is_multiple_of(3) {
            into.push('"');
            for unit in text.encode_utf16() {
                into.push_str(&format!("\\u{unit:04X}"));
            }
            into.push('"');
        } else {
            quote(text, into);
        }
    };
    into.push_str(space);
    match value {
        Value::String(text) => string(text, into),
        Value::Array(items) => {
            into.push('[');
            for (i, item) in items.iter().enumerate() {
                into.push_str(if i > 0 { "," } else { "" });
                write(item, odd.rotate_right(3), into);
            }
            into.push(']');
        }
        Value::Object(members) => {
            into.push('{');
            for (i, (key, member)) in members.iter().enumerate() {
                into.push_str(if i > 0 { "," } else { "" });
                string(key, into);
                into.push_str(space);
                into.push(':');
                write(member, odd.rotate_right(5) ^ i as u64, into);
            }
            into.push('}');
        }
        other => into.push_str(&other.to_string()),
    }
    into.push_str(space);
}

proptest! {
    #[test]
    fn valid_json_is_accepted_and_its_fields_are_serde_jsons(
        members in proptest::collection::vec((text(), value()), 0..30), odd in any::<u64>()
    ) {
        let members: Map<String, Value> = members.into_iter().collect();
        let mut raw = String::new();
        write(&Value::Object(members), odd, &mut raw);
        let object = scan(&raw).unwrap();
        let expected: Map<String, Value> = serde_json::from_str(&raw).unwrap();
        prop_assert_eq!(object.fields().len(), expected.len());
        for (field, (key, value)) in object.fields().iter().zip(&expected) {
            prop_assert_eq!(field.name(&raw), key.as_str());
            let mine: Value = serde_json::from_str(field.value(&raw)).unwrap();
            prop_assert_eq!(&mine, value);
            let string = field.string(&raw);
            prop_assert_eq!(string.as_deref(), value.as_str());
            let kind = match value {
                Value::Null => matches!(field.kind, Kind::Null),
                Value::Bool(b) => field.kind == if *b { Kind::True } else { Kind::False },
                Value::Number(n) if n.is_f64() => matches!(field.kind, Kind::Number),
                Value::Number(_) => matches!(field.kind, Kind::Integer),
                Value::String(_) => matches!(field.kind, Kind::String { .. }),
                Value::Array(_) => matches!(field.kind, Kind::Array),
                Value::Object(_) => matches!(field.kind, Kind::Object),
            };
            prop_assert!(kind, "{:?} for {}", field.kind, value);
        }
        let nul = raw.contains("\\u0000");
        prop_assert_eq!(object.flaw().is_some(), nul, "{:?}", object.flaw());
    }

    #[test]
    fn damaged_json_is_accepted_exactly_when_serde_json_accepts_it(
        value in value(), odd in any::<u64>(),
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0..3u8, "[ \\[\\]{}:,\"\\\\0-9a-z.+\\-]"), 1..4)
    ) {
        let mut raw = String::new();
        write(&value, odd, &mut raw);
        let mut bytes = raw.into_bytes();
        for (at, edit, new) in &edits {
            let at = at.index(bytes.len() + 1);
            let new = new.as_bytes()[0];
            match edit {
                0 => bytes.insert(at, new),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                _ if at < bytes.len() => bytes[at] = new,
                _ => {}
            }
        }
        let serde = serde_json::from_slice::<&RawValue>(&bytes).is_ok();
        prop_assert_eq!(accepts(&bytes), serde, "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_bytes_are_accepted_exactly_when_serde_json_accepts_them(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[\\[\\]{}:,\"\\\\0-9eEtrufalsn.+\\- ]{0,12}".prop_map(String::into_bytes),
            "-?[0-9]{0,3}\\.?[0-9]{0,2}[eE]?[+-]?[0-9]{0,2}".prop_map(String::into_bytes),
        ]
    ) {
        let serde = serde_json::from_slice::<&RawValue>(&bytes).is_ok();
        prop_assert_eq!(accepts(&bytes), serde, "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_key_twice_is_found_at_any_depth_and_in_any_spelling(
        keys in proptest::collection::hash_set("[a-z]{1,12}", 1..60), at in any::<prop::sample::Index>(),
        escape in any::<bool>(), depth in 0..4usize
    ) {
        let keys: Vec<_> = keys.into_iter().collect();
        let twice = at.get(&keys);
        let spelled = if escape {
            twice.bytes().map(|b| format!("\\u{b:04x}")).collect()
        } else {
            twice.clone()
        };
        let once: Vec<_> = keys.iter().map(|k| format!("\"{k}\":1")).collect();
        let wrap = |inner: String| {
            let opened = "{\"x\":[0,".repeat(depth);
            format!("{opened}{inner}{}", "]}".repeat(depth))
        };
        let flawless = scan(&wrap(format!("{{{}}}", once.join(",")))).unwrap();
        prop_assert_eq!(flawless.flaw(), None);
        let object = scan(&wrap(format!("{{{},\"{spelled}\":2}}", once.join(",")))).unwrap();
        let pointer = format!("{}/{twice}", "/x/1".repeat(depth));
        prop_assert_eq!(object.flaw(), Some(&Flaw { code: Code::DuplicateKey, pointer }));
    }

    #[test]
    fn an_array_is_split_into_its_elements(
        items in proptest::collection::vec(value(), 0..8), odd in any::<u64>()
    ) {
        let mut body = String::new();
        write(&Value::Array(items.clone()), odd, &mut body);
        let split: Vec<_> = split_array(body.as_bytes()).map(Result::unwrap).collect();
        prop_assert_eq!(split.len(), items.len());
        for ((position, raw), item) in split.iter().zip(&items) {
            prop_assert_eq!(&body.as_bytes()[*position..position + raw.len()], *raw);
            prop_assert_eq!(&serde_json::from_slice::<Value>(raw).unwrap(), item);
        }
    }

    #[test]
    fn a_split_array_and_its_scanned_elements_accept_what_serde_json_accepts(
        body in "\\[[\\[\\]{}:,\"\\\\0-9a ]{0,12}\\]?"
    ) {
        let mine = split_array(body.as_bytes()).all(|e| e.is_ok_and(|(_, raw)| accepts(raw)));
        prop_assert_eq!(mine, serde_json::from_str::<&RawValue>(&body).is_ok(), "{}", body);
    }
}

#[test]
fn a_million_brackets_do_not_overflow_the_stack() {
    let deep = "[".repeat(1_000_000);
    assert!(matches!(scan(&deep), Err(JsonError::InvalidJson { position: 1_000_000, .. })));
    let closed = format!("{{\"a\":{deep}{}}}", "]".repeat(1_000_000));
    assert_eq!(scan(&closed).unwrap().fields().len(), 1);
    let limits = ScanLimits { depth: 32, fields: 8 };
    let scanned = scan_object(closed.as_bytes(), &limits, &mut Object::default());
    assert_eq!(scanned, Err(JsonError::TooDeep { limit: 32 }));
}

#[test]
fn limits_hold_to_the_last_level_and_field() {
    let limits = ScanLimits { depth: 3, fields: 4 };
    let check = |raw: &str| scan_object(raw.as_bytes(), &limits, &mut Object::default()).map(drop);
    assert_eq!(check(r#"{"a":[[1]]}"#), Ok(()));
    assert_eq!(check(r#"{"a":[[[]]]}"#), Err(JsonError::TooDeep { limit: 3 }));
    assert_eq!(check(r#"{"a":{"b":1,"c":2},"d":3}"#), Ok(()));
    let many = r#"{"a":{"b":1,"c":2},"d":3,"e":4}"#;
    assert_eq!(check(many), Err(JsonError::TooManyFields { limit: 4 }));
}

#[test]
fn what_is_no_event_says_what_it_is() {
    let check = |raw: &[u8]| scan_object(raw, &WIDE, &mut Object::default()).unwrap_err();
    assert_eq!(check(b"[1]"), JsonError::NotAnObject { found: "an array" });
    assert_eq!(check(b" 12 "), JsonError::NotAnObject { found: "an integer" });
    assert_eq!(check(b"{\"a\":\"\xff\"}"), JsonError::InvalidUtf8 { position: 6 });
    for (raw, at) in [
        ("", 0),
        ("\u{feff}{}", 0),
        ("{} x", 3),
        ("{'a':1}", 1),
        ("{\"a\":1,}", 7),
        ("{\"a\":01}", 6),
        ("{\"a\":NaN}", 5),
        ("{\"a\" 1}", 5),
        ("{\"a\":\"\n\"}", 6),
        ("{\"a\":\"\\x\"}", 7),
        ("{\"a\":tru}", 5),
        ("{\"a\":1", 6),
    ] {
        let JsonError::InvalidJson { position, .. } = check(raw.as_bytes()) else {
            panic!("{raw} was told otherwise")
        };
        assert_eq!(position, at, "{raw}");
    }
}

#[test]
fn flaws_carry_their_code_and_place_and_the_first_is_kept() {
    for (raw, code, pointer) in [
        (r#"{"a":"x\u0000"}"#, Code::NulCharacter, "/a"),
        (r#"{"a":{"b":[1,"\ud800"]}}"#, Code::LoneSurrogate, "/a/b/1"),
        (r#"{"a":"\udc00\ud800"}"#, Code::LoneSurrogate, "/a"),
        (r#"{"a":"\ud800\ud800\udc00"}"#, Code::LoneSurrogate, "/a"),
        (r#"{"x":{"a\u0000":1}}"#, Code::NulCharacter, "/x"),
        (r#"{"x~/":1,"x~\/":2}"#, Code::DuplicateKey, "/x~0~1"),
        (r#"{"a":"\u0000","a":1}"#, Code::NulCharacter, "/a"),
    ] {
        let object = scan(raw).unwrap();
        assert_eq!(object.flaw(), Some(&Flaw { code, pointer: pointer.to_owned() }), "{raw}");
    }
    assert_eq!(scan(r#"{"a":"\ud83d\ude00"}"#).unwrap().flaw(), None);
}

#[test]
fn a_broken_array_ends_in_one_error_that_says_where() {
    for (body, elements, position) in [
        ("{}", 0, 0),
        ("[1,2", 1, 4),
        ("[1,,2]", 1, 3),
        ("[1,]", 1, 3),
        ("[1] x", 0, 4),
        ("[\"a", 0, 1),
        ("", 0, 0),
    ] {
        let split: Vec<_> = split_array(body.as_bytes()).collect();
        assert_eq!(split.len(), elements + 1, "{body}");
        let Some(Err(JsonError::InvalidJson { position: at, .. })) = split.last() else {
            panic!("{body} was split")
        };
        assert_eq!(*at, position, "{body}");
    }
    assert_eq!(split_array(b" [ ] ").count(), 0);
}

#[test]
fn long_values_and_names_are_cut() {
    assert_eq!(short(&"é".repeat(61)), format!("{}…", "é".repeat(60)));
    let mut pointer = String::new();
    push_pointer(&mut pointer, &"é".repeat(1000));
    assert!(pointer.len() < 140 && pointer.ends_with('…'));
}
