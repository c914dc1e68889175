//! Snowplow's trackers and Loki's push: the items are those that a plain reference finds, values unchanged.

#![no_main]

use std::ops::ControlFlow;

use http::{Request, request::Parts};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use tidegate_fuzz::json::is_flawed;
use tidegate_ingest::{
    budget::Budget,
    edge::protocol::Found,
    fuzzing::edge::{serving, unsnap},
};

const TP2: &str = "/com.snowplowanalytics.snowplow/tp2";
const PUSH: &str = "/loki/api/v1/push";
const WRAPPED: &[&str] = &["ue_pr", "ue_px", "co", "cx"];

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    match first % 5 {
        0 => tracked(body),
        1 => pixel(body),
        2 => pushed(body),
        3 => protobuf(body),
        _ => snappy(body),
    }
});

/// The items' bytes; `None` for one that is rejected. `None` where the body is refused as a whole.
fn items(parts: &Parts, body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (mut found, mut once) = (Vec::new(), 0);
    let decode = serving(parts).unwrap().decode;
    let all = decode(parts, body, &mut |arrived| {
        found.push(match arrived.found {
            Found::Rejected(reason) => {
                assert!(!reason.message.is_empty());
                None
            }
            Found::Item(item) => Some(item.raw.to_vec()),
        });
        ControlFlow::Continue(())
    });
    let stopped = decode(parts, body, &mut |_| {
        once += 1;
        ControlFlow::Break(())
    });
    assert!(once <= 1);
    if all.is_ok() {
        assert!(stopped.is_ok() && once == found.len().min(1));
    }
    all.ok().map(|()| found)
}

fn object(raw: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(raw).ok()
}

/// True where a name stands twice: which of the two counts nobody can say.
fn unsure(raw: &[u8]) -> bool {
    std::str::from_utf8(raw).map_or(true, |text| is_flawed(text) != Some(false))
}

fn tracked(body: &[u8]) {
    let parts = Request::post(TP2).body(()).unwrap().into_parts().0;
    let (Some(items), Some(all)) = (items(&parts, body), object(body)) else { return };
    if unsure(body) {
        return;
    }
    let Some(Value::Array(sent)) = all.get("data") else { panic!("no data was taken") };
    assert_eq!(sent.len(), items.len());
    for (sent, item) in sent.iter().zip(&items) {
        let item = item.as_ref().unwrap();
        let Value::Object(sent) = sent else {
            assert_eq!(serde_json::from_slice::<Value>(item).unwrap(), *sent);
            continue;
        };
        if unsure(item) {
            continue;
        }
        let made = object(item).unwrap();
        assert_eq!(made.len(), sent.len());
        for (name, value) in sent.iter().filter(|(name, _)| !WRAPPED.contains(&name.as_str())) {
            assert_eq!(made.get(name), Some(value), "{name}");
        }
    }
}

fn pixel(query: &[u8]) {
    let Ok(query) = std::str::from_utf8(query) else { return };
    let Ok(request) = Request::get(format!("/i?{query}")).body(()) else { return };
    let parts = request.into_parts().0;
    let items = items(&parts, b"").unwrap();
    assert!(items.len() <= 1);
    for item in items {
        object(&item.unwrap()).unwrap();
    }
}

fn pushed(body: &[u8]) {
    let head = Request::post(PUSH).header("content-type", "application/json");
    let parts = head.body(()).unwrap().into_parts().0;
    let (Some(items), Some(all)) = (items(&parts, body), object(body)) else { return };
    if unsure(body) {
        return;
    }
    let Some(Value::Array(streams)) = all.get("streams") else { panic!("no streams were taken") };
    let mut items = items.iter();
    for stream in streams {
        let (Some(Value::Object(labels)), Some(Value::Array(values))) =
            (stream.get("stream"), stream.get("values"))
        else {
            assert_eq!(items.next(), Some(&None));
            continue;
        };
        for value in values {
            let item = items.next().expect("an entry is missing");
            let entry = value.as_array().filter(|entry| matches!(entry.len(), 2 | 3));
            let Some(entry) = entry.filter(|entry| entry[1].is_string()) else {
                assert!(item.is_none());
                continue;
            };
            let made = object(item.as_ref().unwrap()).unwrap();
            assert_eq!(made.get("line"), Some(&entry[1]));
            assert_eq!(made.get("labels").and_then(Value::as_object), Some(labels));
            assert_eq!(made.get("timestamp_ns"), Some(&entry[0]));
        }
    }
    assert!(items.next().is_none(), "more than was sent");
}

fn protobuf(body: &[u8]) {
    let head = Request::post(PUSH).header("content-type", "application/x-protobuf");
    let parts = head.body(()).unwrap().into_parts().0;
    for item in items(&parts, body).into_iter().flatten().flatten() {
        let made = object(&item).unwrap();
        assert!(made.get("line").is_some_and(Value::is_string));
        assert!(made.contains_key("labels") != made.contains_key("labels_raw"));
    }
}

/// Whatever the bytes are: no more than the bounds comes out, and what is held is paid for.
fn snappy(raw: &[u8]) {
    let budget = Budget::new(1 << 20);
    let mut permit = budget.unshared().try_take(0).unwrap();
    if let Ok(decoded) = unsnap(raw, (1 << 16, 100), &mut permit) {
        assert!(decoded.len() <= 1 << 16 && decoded.len() as u64 <= permit.bytes());
    }
    assert!(permit.bytes() <= 1 << 16);
    drop(permit);
    assert_eq!(budget.held(), 0);
}
