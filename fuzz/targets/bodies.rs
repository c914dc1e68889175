//! NDJSON, JSON arrays and CloudEvents: the same items as a plain reference finds, or the same refusal.

#![no_main]

use std::ops::ControlFlow;

use http::{HeaderName, HeaderValue, Request, request::Parts};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};
use tidegate_fuzz::{
    input::Input,
    json::{is_json, is_object, trim},
};
use tidegate_ingest::{
    edge::protocol::{Found, Place},
    fuzzing::edge::serving,
    json::split_array,
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 6 {
        0 => lines(input.0),
        1 => json(input.0),
        2 => array(input.0),
        3 => structured(input.0),
        4 => batched(input.0),
        _ => binary(input),
    }
});

/// One item: where it stands, its bytes, type and id; `None` for one that is rejected.
type Item = (Place, Option<(Vec<u8>, Option<String>, Option<String>)>);

fn head(headers: &[(&str, &[u8])]) -> Parts {
    let mut parts = Request::post("/v1/events").body(()).unwrap().into_parts().0;
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            parts.headers.append(name, value);
        }
    }
    parts
}

/// What the protocol that takes the request finds; `Err` where it refuses the body as a whole.
fn items(parts: &Parts, body: &[u8]) -> Result<Vec<Item>, ()> {
    let protocol = serving(parts).ok_or(())?;
    let _ = (protocol.only_type)(parts);
    let mut items = Vec::new();
    let all = (protocol.decode)(parts, body, &mut |arrived| {
        let found = match arrived.found {
            Found::Rejected(_) => None,
            Found::Item(item) => Some((
                item.raw.to_vec(),
                item.event_type.map(str::to_owned),
                item.event_id.map(str::to_owned),
            )),
        };
        items.push((arrived.place, found));
        ControlFlow::Continue(())
    });
    all.map(|()| items).map_err(|fault| assert!(!fault.detail.is_empty()))
}

fn raws(items: Vec<Item>) -> Vec<Vec<u8>> {
    items.into_iter().map(|(_, item)| item.expect("not rejected here").0).collect()
}

fn lines(body: &[u8]) {
    let items = items(&head(&[("content-type", b"application/x-ndjson")]), body).unwrap();
    let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
    for (place, item) in &items {
        let Place::Line(number) = *place else { panic!("{place}") };
        let raw = &item.as_ref().unwrap().0;
        assert_eq!(trim(lines[number - 1]), raw);
    }
    let expected = lines.iter().map(|line| trim(line)).filter(|line| !line.is_empty());
    assert!(raws(items).iter().map(Vec::as_slice).eq(expected));
}

fn json(body: &[u8]) {
    let found = items(&head(&[("content-type", b"application/json")]), body);
    if trim(body).starts_with(b"[") {
        return same(body, found.map(raws));
    }
    // A single item is whatever stands there: its scan decides.
    let found = raws(found.unwrap());
    assert!(found.len() <= 1);
    for raw in found {
        assert_eq!(is_json(&raw), is_json(body));
    }
}

fn array(body: &[u8]) {
    let mut at = 0;
    let found: Result<Vec<_>, _> = split_array(body)
        .map(|element| {
            let (from, raw) = element.map_err(|_| ())?;
            assert!(at <= from && body[from..].starts_with(raw) && !raw.is_empty());
            at = from + raw.len();
            Ok(raw.to_vec())
        })
        .collect();
    same(body, found);
}

/// The reference takes the array where, and only where, it is split and each element is JSON.
fn same(body: &[u8], found: Result<Vec<Vec<u8>>, ()>) {
    let text = std::str::from_utf8(body).ok();
    let reference = text.and_then(|text| serde_json::from_str::<Vec<&RawValue>>(text).ok());
    match (reference, found) {
        (Some(reference), Ok(found)) => {
            assert!(reference.iter().map(|item| item.get().as_bytes()).eq(found.iter()));
        }
        (Some(_), Err(())) => panic!("an array is refused"),
        (None, Ok(found)) => {
            assert!(found.iter().any(|item| !is_json(item)), "what is no array is taken");
        }
        (None, Err(())) => {}
    }
}

fn structured(body: &[u8]) {
    let items = items(&head(&[("content-type", b"application/cloudevents+json")]), body).unwrap();
    let [(_, item)] = items.as_slice() else { panic!("{} items", items.len()) };
    envelope(trim(body), item.as_ref());
}

fn batched(body: &[u8]) {
    let batch = head(&[("content-type", b"application/cloudevents-batch+json")]);
    let Ok(items) = items(&batch, body) else { return };
    for (place, item) in items {
        let Place::Byte(at) = place else { panic!("{place}") };
        // The element's end is not told: the reference finds it.
        let rest = std::str::from_utf8(&body[at..]);
        let mut from =
            rest.map(|rest| serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>());
        if let Ok(Some(Ok(element))) = from.as_mut().map(Iterator::next) {
            envelope(element.get().as_bytes(), item.as_ref());
        }
    }
}

/// What is made of a CloudEvent says what the CloudEvent says.
fn envelope(raw: &[u8], item: Option<&(Vec<u8>, Option<String>, Option<String>)>) {
    let Some((event, event_type, id)) = item else { return };
    assert!(is_object(raw) && is_object(event));
    let Ok(Value::Object(mut sent)) = serde_json::from_slice::<Value>(raw) else { return };
    let text = |name: &str| sent.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    assert_eq!(text("specversion"), "1.0");
    let (kind, source, own) = (text("type"), text("source"), text("id"));
    assert!(!kind.is_empty() && !source.is_empty() && !own.is_empty());
    assert_eq!(event_type.as_deref(), Some(kind.as_str()));
    assert_eq!(id.as_deref(), Some(format!("{source} {own}").as_str()));
    let Value::Object(mut made) = serde_json::from_slice(event).unwrap() else { unreachable!() };
    let (data, base64) = (sent.remove("data"), sent.remove("data_base64"));
    if data.as_ref().is_some_and(|data| data.get("cloudevent").is_some()) {
        // The name stands twice then, and makes a dead letter.
        return;
    }
    assert_eq!(made.remove("cloudevent"), Some(Value::Object(sent)));
    match (data, base64) {
        (Some(Value::Object(fields)), None) => assert_eq!(made, fields),
        (Some(data), None) => assert_eq!(made.remove("data"), Some(data)),
        (None, Some(text)) => assert_eq!(made.remove("data_base64"), Some(text)),
        (None, None) => assert!(made.is_empty()),
        (Some(_), Some(_)) => panic!("two kinds of data are taken"),
    }
}

fn binary(mut input: Input<'_>) {
    let mut headers: Vec<(&str, &[u8])> = Vec::new();
    for name in ["ce-specversion", "ce-type", "ce-source", "ce-id", "ce-time", "content-type"] {
        headers.push((name, input.until(b'\n')));
    }
    let extension = input.text(b'\n');
    headers.push((&extension, input.until(b'\n')));
    let parts = head(&headers);
    let Ok(items) = items(&parts, input.0) else { return };
    for (_, item) in items {
        let Some((raw, event_type, id)) = item else { continue };
        if parts.headers.contains_key("ce-specversion") {
            assert!(is_object(&raw), "{}", String::from_utf8_lossy(&raw));
            assert!(event_type.is_some_and(|t| !t.is_empty()) && id.is_some_and(|id| id.len() > 2));
        }
    }
}
