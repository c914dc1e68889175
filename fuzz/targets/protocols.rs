//! The protocols of other systems: the items are those that a plain reference finds, keys are not among them.

#![no_main]

use std::ops::ControlFlow;

use http::{Request, request::Parts};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, value::RawValue};
use tidegate_fuzz::json::{is_flawed, is_object};
use tidegate_ingest::{
    edge::protocol::Found,
    fuzzing::edge::{is_signed, serving},
};

const PATHS: &[&str] = &[
    "/v3/send/kibana%20ui",
    "/track",
    "/services/collector/event",
    "/services/collector/raw?host=a&time=1.5",
    "/v1/batch",
    "/v1/identify",
    "/batch/",
    "/capture/",
    "/v1/firehose/views",
    "/",
    "/logs/_bulk",
    "/logs/_doc/7",
];

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*first & 0x7f) % PATHS.len()];
    let mut head = Request::post(path);
    if first & 0x80 != 0 {
        head = head.header("user-agent", "fuzz \"1\"");
    }
    if path == "/" {
        let operation = if first & 0x80 != 0 { "PutRecord" } else { "PutRecordBatch" };
        head = head.header("x-amz-target", format!("Firehose_20150804.{operation}"));
        signature(body);
    }
    let parts = head.body(()).unwrap().into_parts().0;
    let login = &serving(&parts).unwrap().login;
    if let Some(find) = login.in_body {
        let _ = find(body);
    }
    let Some(items) = items(&parts, body) else { return };
    match path {
        "/services/collector/event" => collector(body, &items),
        "/v1/batch" => batch(body, &items),
        "/v1/identify" => single(&items, &["writeKey"]),
        "/capture/" if object(body).is_none_or(|body| !body.contains_key("batch")) => {
            single(&items, &["api_key", "token"]);
        }
        "/logs/_bulk" => bulk(body, &items),
        "/logs/_doc/7" => assert!(items.len() <= 1),
        "/v3/send/kibana%20ui" => telemetry(body, &items, first & 0x80 != 0),
        _ => {}
    }
});

/// The same bytes as a signature's claims, its date and what is signed: nobody's secret makes them true.
fn signature(body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    let mut lines = text.splitn(3, '\n');
    let (claims, date, target) = (lines.next(), lines.next(), lines.next());
    let request = Request::post(target.unwrap_or("/")).header("host", "x");
    let Ok(request) = request.header("x-amz-date", date.unwrap_or_default()).body(()) else { return };
    let parts = request.into_parts().0;
    assert!(!is_signed(&parts, claims.unwrap_or_default(), b"secret"));
}

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
    // Stopped early, it stops.
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

fn collector(body: &[u8], items: &[Option<Vec<u8>>]) {
    let values = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
    let mut items = items.iter();
    for value in values {
        let Some(item) = items.next() else { panic!("an object is missing") };
        let Ok(value) = value else {
            assert!(item.is_none());
            break;
        };
        let Some(item) = item else { continue };
        assert!(is_object(value.get().as_bytes()));
        let (Some(mut sent), Some(mut made)) = (object(value.get().as_bytes()), object(item))
        else {
            continue;
        };
        if unsure(value.get().as_bytes()) || unsure(item) {
            continue;
        }
        let event = sent.remove("event").unwrap();
        assert_eq!(made.remove("hec"), Some(Value::Object(sent)));
        match event {
            Value::Object(fields) => assert_eq!(made, fields),
            other => assert_eq!(made, Map::from_iter([("event".to_owned(), other)])),
        }
    }
    assert!(items.next().is_none(), "more than was sent");
}

fn batch(body: &[u8], items: &[Option<Vec<u8>>]) {
    let Some(all) = object(body) else { return };
    if unsure(body) {
        return;
    }
    let Some(Value::Array(messages)) = all.get("batch") else { panic!("no batch was taken") };
    assert_eq!(messages.len(), items.len());
    for (message, item) in messages.iter().zip(items) {
        let mut message = message.clone();
        if let Value::Object(members) = &mut message {
            members.shift_remove("writeKey");
        }
        assert_eq!(serde_json::from_slice::<Value>(item.as_ref().unwrap()).unwrap(), message);
    }
}

fn single(items: &[Option<Vec<u8>>], keys: &[&str]) {
    for item in items.iter().flatten() {
        if let Some(members) = object(item) {
            assert!(keys.iter().all(|key| !members.contains_key(*key)), "a key is kept");
        }
    }
}

/// Lines and their documents: a body that was taken is nothing else, and each document is a line.
fn bulk(body: &[u8], items: &[Option<Vec<u8>>]) {
    assert!(body.is_empty() || body.ends_with(b"\n"));
    let mut lines = body.split(|byte| *byte == b'\n');
    let mut items = items.iter();
    while let Some(line) = lines.next() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        // A number that no `Value` can hold is none of the action's business.
        let Some(action) = object(line) else { return };
        let Some(item) = items.next() else { panic!("a document is missing") };
        if action.contains_key("delete") {
            assert!(item.is_none());
            continue;
        }
        let document = lines.next().unwrap();
        if let Some(item) = item {
            assert_eq!(item, document.trim_ascii());
        }
    }
    assert!(items.next().is_none(), "more than was sent");
}

fn telemetry(body: &[u8], items: &[Option<Vec<u8>>], headed: bool) {
    let Some(sent) = object(body) else { return };
    let [Some(item)] = items else { panic!("{} items of one object", items.len()) };
    let mut made = object(item).unwrap();
    if !unsure(body) && !sent.contains_key("request_headers") && headed {
        assert!(made.shift_remove("request_headers").is_some());
    }
    if !unsure(body) {
        assert_eq!(made, sent);
    }
}
