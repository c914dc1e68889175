//! Any record at all, and any bytes: both forms say the same, and nothing breaks.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    ConcatOne, One, attribute, envelope, fixed64, items, message, of_json, of_proto, varint,
};

/// A value of an attribute.
#[derive(Clone, Debug)]
enum Any {
    Nothing,
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
    List(Vec<Any>),
    Map(Vec<(String, Any)>),
}

fn any() -> impl Strategy<Value = Any> {
    let leaf = prop_oneof![
        Just(Any::Nothing),
        ".{0,12}".prop_map(Any::Text),
        prop::bool::ANY.prop_map(Any::Bool),
        any_int().prop_map(Any::Int),
        prop::num::f64::ANY.prop_map(Any::Double),
        prop::collection::vec(prop::num::u8::ANY, 0..9).prop_map(Any::Bytes),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Any::List),
            prop::collection::vec((".{0,6}", inner), 0..4).prop_map(Any::Map),
        ]
    })
}

fn any_int() -> impl Strategy<Value = i64> {
    prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), prop::num::i64::ANY]
}

impl Any {
    fn proto(&self) -> Vec<u8> {
        match self {
            Self::Nothing => vec![],
            Self::Text(text) => message(&[(1, text.as_bytes())]),
            Self::Bool(value) => varint(2, u64::from(*value)),
            Self::Int(value) => varint(3, value.cast_unsigned()),
            Self::Double(value) => fixed64(4, value.to_bits()),
            Self::Bytes(bytes) => message(&[(7, bytes)]),
            Self::List(values) => {
                let values: Vec<_> = values.iter().map(Self::proto).collect();
                let values: Vec<_> = values.iter().map(|value| (1, value.as_slice())).collect();
                message(&[(5, &message(&values))])
            }
            Self::Map(members) => message(&[(6, &message_of(1, members))]),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Nothing => json!({}),
            Self::Text(text) => json!({"stringValue": text}),
            Self::Bool(value) => json!({"boolValue": value}),
            Self::Int(value) => json!({"intValue": value.to_string()}),
            Self::Double(value) if value.is_nan() => json!({"doubleValue": "NaN"}),
            Self::Double(value) if value.is_infinite() => {
                json!({"doubleValue": if *value < 0.0 { "-Infinity" } else { "Infinity" }})
            }
            Self::Double(value) => json!({"doubleValue": value}),
            Self::Bytes(bytes) => {
                json!({"bytesValue": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)})
            }
            Self::List(values) => {
                json!({"arrayValue": {"values": values.iter().map(Self::json).collect::<Vec<_>>()}})
            }
            Self::Map(members) => json!({"kvlistValue": {"values": pairs(members)}}),
        }
    }
}

fn message_of(number: u64, members: &[(String, Any)]) -> Vec<u8> {
    let members: Vec<_> =
        members.iter().map(|(key, value)| attribute(key, &value.proto())).collect();
    let members: Vec<_> = members.iter().map(|member| (number, member.as_slice())).collect();
    message(&members)
}

fn pairs(members: &[(String, Any)]) -> Value {
    members.iter().map(|(key, value)| json!({"key": key, "value": value.json()})).collect()
}

proptest! {
    #[test]
    fn both_forms_of_any_record_are_the_same_event(
        body in any(), attributes in prop::collection::vec((".{0,8}", any()), 0..6),
        resource in prop::collection::vec((".{0,8}", any()), 0..4), nanos in prop::num::u64::ANY,
        severity in prop::num::i32::ANY, text in ".{0,12}", id in prop::collection::vec(prop::num::u8::ANY, 0..20),
    ) {
        let json = json!({"resourceLogs": [{"resource": {"attributes": pairs(&resource)}, "scopeLogs": [{"logRecords": [{
            "attributes": pairs(&attributes), "body": body.json(), "timeUnixNano": nanos.to_string(),
            "severityNumber": severity, "severityText": text, "traceId": hex::encode_upper(&id),
        }]}]}]});
        let mut record = message_of(6, &attributes);
        record.extend(message(&[(5, &body.proto()), (3, text.as_bytes()), (9, &id)]));
        record.extend(fixed64(1, nanos));
        record.extend(varint(2, i64::from(severity).cast_unsigned()));
        let part = message(&[(2, &record)]);
        let proto = message(&[(1, &message(&[(1, &message_of(1, &resource)), (2, &part)]))]);
        let value = |one: One| {
            let (kind, time, raw) = one.unwrap();
            (kind, time, serde_json::from_str::<Value>(&raw).unwrap())
        };
        let of_json = value(of_json("/v1/logs", &json).concat_one());
        let of_proto = value(of_proto("/v1/logs", &proto).concat_one());
        prop_assert_eq!(of_json, of_proto);
    }

    #[test]
    fn any_bytes_are_events_or_refused(mut bytes in prop::collection::vec(prop::num::u8::ANY, 0..200), at in 0usize..100, flip in prop::num::u8::ANY) {
        for path in ["/v1/logs", "/v1/traces", "/v1/metrics"] {
            let _ = items(path, "application/x-protobuf", &bytes);
            let _ = items(path, "application/json", &bytes);
        }
        // Damage in a message that holds something.
        let mut body = envelope(&[message(&[(6, &attribute("a", &message(&[(1, &bytes)]))), (5, &bytes)])]);
        let place = at % body.len();
        body[place] ^= flip;
        let _ = items("/v1/logs", "application/x-protobuf", &body);
        bytes.clear();
    }

    #[test]
    fn every_event_is_json(body in prop::collection::vec(prop::num::u8::ANY, 0..60)) {
        for path in ["/v1/logs", "/v1/traces", "/v1/metrics"] {
            for one in items(path, "application/x-protobuf", &envelope(std::slice::from_ref(&body))).into_iter().flatten().flatten() {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&one.2).is_ok(), "{}", one.2);
            }
        }
    }
}
