//! Pushes in JSON and in protobuf become the same events.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::{
    super::{naming::Naming, protobuf::put},
    *,
};

type Kept = Result<(String, Option<i64>, String), Code>;

fn decoded(protobuf: bool, label: Option<&str>, body: &[u8]) -> Result<Vec<Kept>, DecodeFault> {
    let kind = if protobuf { "application/x-protobuf" } else { "application/json" };
    let request = http::Request::post(PATH).header("content-type", kind);
    let mut parts = request.body(()).unwrap().into_parts().0;
    if let Some(label) = label {
        let names = BTreeMap::from([(TYPE.to_owned(), label.to_owned())]);
        parts.extensions.insert(Naming(Arc::new(names)));
    }
    let mut found = Vec::new();
    decode(&parts, body, &mut |arrived| {
        found.push(match arrived.found {
            Found::Rejected(reason) => Err(reason.code),
            Found::Item(item) => {
                let time = match item.event_time {
                    ItemTime::Micros(micros) => Some(micros),
                    ItemTime::Rfc3339(_) => Some(-1),
                    ItemTime::None => None,
                };
                let raw = String::from_utf8(item.raw.to_vec()).unwrap();
                Ok((item.event_type.unwrap().to_owned(), time, raw))
            }
        });
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    fields.iter().for_each(|(number, field)| put::bytes(&mut bytes, *number, field));
    bytes
}

fn time(seconds: i64, nanos: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put::number(&mut bytes, 1, seconds.cast_unsigned());
    put::number(&mut bytes, 2, nanos.cast_unsigned());
    bytes
}

const LINE: &str = r#"{"line":"a \"b\" é","labels":{"app":"shop","level":"info"},"timestamp_ns":"1772366400000000001","structured_metadata":{"trace":"7"}}"#;

#[test]
fn json_and_protobuf_of_one_push_are_the_same_event() {
    let body = r#"{"streams":[{"stream":{"app":"shop","level":"info"},
        "values":[["1772366400000000001","a \"b\" é",{"trace":"7"}]]}]}"#;
    let expected =
        |kind: &str| Ok(vec![Ok((kind.into(), Some(1_772_366_400_000_000), LINE.into()))]);
    assert_eq!(decoded(false, None, body.as_bytes()), expected("loki"));
    assert_eq!(decoded(false, Some("app"), body.as_bytes()), expected("shop"));
    assert_eq!(decoded(false, Some("job"), body.as_bytes()), expected("loki"));
    let metadata = message(&[(1, b"trace"), (2, b"7")]);
    let line = "a \"b\" é".as_bytes();
    let entry = message(&[(1, &time(1_772_366_400, 1)), (2, line), (3, &metadata)]);
    // Labels may stand behind the entries, and what is not known is read over.
    let labels = br#"{app="shop", level="info"}"#;
    let stream = message(&[(2, &entry), (9, b"x"), (1, labels)]);
    let push = message(&[(1, &stream)]);
    assert_eq!(decoded(true, None, &push), expected("loki"));
    assert_eq!(decoded(true, Some("app"), &push), expected("shop"));
}

#[test]
fn what_is_no_entry_is_rejected_alone() {
    let of = |streams: &str| {
        let all = decoded(false, None, format!(r#"{{"streams":[{streams}]}}"#).as_bytes());
        all.unwrap().into_iter().map(|item| item.err()).collect::<Vec<_>>()
    };
    let invalid = Some(Code::EnvelopeInvalid);
    let ok = r#"{"stream":{},"values":[["1","x"]]}"#;
    assert_eq!(of(&format!("7,{ok}")), [invalid, None]);
    assert_eq!(of(&format!(r#"{{"values":[]}},{{"stream":{{}}}},{ok}"#)), [invalid, invalid, None]);
    let values =
        r#"{"stream":{},"values":[7,[],["1"],["1",7],["1","x",{},1],["1","x",{}],["2","y",null]]}"#;
    assert_eq!(of(values), [invalid, invalid, invalid, invalid, invalid, None, None]);
    assert_eq!(of(r#"{"stream":{},"values":[]}"#), []);
    for broken in ["", "{}", "[]", r#"{"streams":{}}"#, "x"] {
        assert!(decoded(false, None, broken.as_bytes()).is_err(), "{broken}");
    }
    let time = |text: &str| {
        let body = format!(r#"{{"streams":[{{"stream":{{}},"values":[[{text},"x"]]}}]}}"#);
        decoded(false, None, body.as_bytes()).unwrap().remove(0).unwrap().1
    };
    assert_eq!(time("\"soon\""), Some(-1));
    assert_eq!(time("1772366400000000001"), Some(1_772_366_400_000_000));
    assert_eq!(time("\"99999999999999999999\""), Some(-1));
}

#[test]
fn protobuf_that_is_broken_or_odd_loses_nothing_it_does_not_say() {
    let entry = message(&[(1, &time(5, 0)), (2, b"\xff")]);
    let good = message(&[(2, b"x")]);
    let stream = message(&[(1, b"{a=x}"), (2, &entry), (2, &good)]);
    let found = decoded(true, Some("a"), &message(&[(1, &stream)])).unwrap();
    let kept = r#"{"line":"x","labels_raw":"{a=x}"}"#;
    assert_eq!(found, [Err(Code::InvalidUtf8), Ok(("loki".into(), None, kept.into()))]);
    assert!(decoded(true, None, b"\x0a\xff").is_err());
    assert_eq!(decoded(true, None, b""), Ok(vec![]));
}

#[test]
fn a_push_in_protobuf_is_snappy_unless_it_says_otherwise() {
    let of = |path: &str, kind: &str, coded: Option<&str>| {
        let mut request = http::Request::post(path).header("content-type", kind);
        if let Some(coded) = coded {
            request = request.header("content-encoding", coded);
        }
        coding(&request.body(()).unwrap().into_parts().0)
    };
    let proto = "application/x-protobuf";
    assert_eq!(of(PATH, proto, None), Some(Coding::Snappy));
    assert_eq!(of(PATH, "Application/X-Protobuf; proto=logproto", None), Some(Coding::Snappy));
    assert_eq!(of(PATH, proto, Some("snappy")), Some(Coding::Snappy));
    assert_eq!(of(PATH, proto, Some("gzip")), None);
    assert_eq!(of(PATH, "application/json", None), None);
    assert_eq!(of("/v1/events", proto, None), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(found) = decoded(true, None, &bytes) {
            for (_, _, raw) in found.into_iter().flatten() {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&raw).is_ok());
            }
        }
    }

    #[test]
    fn times_are_kept_to_the_nanosecond(seconds in -9_000_000_000i64..9_000_000_000, nanos in 0i64..1_000_000_000) {
        let entry = message(&[(1, &time(seconds, nanos)), (2, b"x")]);
        let push = message(&[(1, &message(&[(1, b"{}"), (2, &entry)]))]);
        let found = decoded(true, None, &push).unwrap().remove(0).unwrap();
        let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        prop_assert_eq!(found.1, Some(i64::try_from(whole.div_euclid(1000)).unwrap()));
        let kept = format!("\"timestamp_ns\":\"{whole}\"");
        prop_assert!(found.2.contains(&kept));
    }
}
