//! OTLP in both forms: whatever comes in, what comes out are JSON objects, the same each time, and bounded.

#![no_main]

use std::ops::ControlFlow;

use http::{Request, request::Parts};
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::json::is_object;
use tidegate_ingest::{edge::protocol::Found, fuzzing::edge::serving};

const PATHS: &[&str] = &["/v1/logs", "/v1/traces", "/v1/metrics"];
const TYPES: &[&str] = &["application/x-protobuf", "application/json", ""];

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let which = usize::from(*first);
    let head = Request::post(PATHS[which % 3]).header("content-type", TYPES[which / 3 % 3]);
    let parts = head.body(()).unwrap().into_parts().0;
    let first = items(&parts, body, usize::MAX);
    assert_eq!(first, items(&parts, body, usize::MAX));
    let Some(items_found) = first else { return };
    // Stopped early, it stops.
    for most in [1, 2] {
        let stopped = items(&parts, body, most).unwrap();
        assert_eq!(stopped, items_found[..items_found.len().min(most)]);
    }
    // Each item stands somewhere in the body, if only as two bytes.
    assert!(items_found.len() <= body.len());
    for item in items_found.iter().flatten() {
        assert!(is_object(item), "{}", String::from_utf8_lossy(item));
    }
});

/// The events; `None` for what is rejected. `None` where the body is refused as a whole.
fn items(parts: &Parts, body: &[u8], most: usize) -> Option<Vec<Option<Vec<u8>>>> {
    let mut found = Vec::new();
    let decode = serving(parts).unwrap().decode;
    let all = decode(parts, body, &mut |arrived| {
        assert!(found.len() < most, "asked on");
        found.push(match arrived.found {
            Found::Rejected(reason) => {
                assert!(!reason.message.is_empty());
                None
            }
            Found::Item(item) => Some(item.raw.to_vec()),
        });
        if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    all.ok().map(|()| found)
}
