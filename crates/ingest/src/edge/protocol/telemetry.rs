//! The Telemetry API: `POST /v3/send/{channel}`, as Elastic's products and browsers send.
//!
//! The body is one JSON object, an array of them, one a line, or a JSON string that holds any of these.
//! The channel is the event type. What the head says of the product that sends is one more field of each
//! event, `request_headers`.

use std::ops::ControlFlow;

use http::{HeaderMap, Method, StatusCode, request::Parts};
use serde_json::json;
use tidegate_event::EventType;

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Protocol, Route, Tells,
    members::{Members, begin_event, push_member, unquoted},
    path::place,
    whole::{unkept, values},
};
use crate::{
    edge::{
        answer::{self, Answer, Refusal},
        cors::Cors,
        credentials::Carrier,
    },
    json::{quote, trim},
    normalize::{Item, ItemTime, is_rfc3339},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "telemetry",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::Bearer, Carrier::ApiKeyHeader, Carrier::BasicPassword],
        in_body: None,
        may_be_open: true,
        challenge: "Bearer realm=\"tidegate\"",
    },
    cors: Some(Cors { credentials: false }),
    media_types: "any",
    takes: |_| true,
    only_type: |parts| {
        let channel = place(ROUTES, parts, "channel")?;
        Some(EventType::mapped(&channel).map_or(channel.into_owned(), |mapped| mapped.to_string()))
    },
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const ROUTES: &[Route] = &[Route { methods: &[Method::POST], path: "/v3/send/{channel}" }];

/// The headers that are kept, under their names.
const KEPT: &[&str] = &[
    "x-elastic-product-origin",
    "x-elastic-cluster-id",
    "x-elastic-stack-version",
    "x-elastic-client-meta",
    "user-agent",
];
const HEADERS: &str = "request_headers";

/// The fields that say when an event happened, where they are RFC 3339.
const TIMES: &[&str] = &["@timestamp", "timestamp"];

/// What the head says of who sends, as a JSON object; `None` where it says nothing.
fn request_headers(headers: &HeaderMap) -> Option<String> {
    let mut object = String::from("{");
    for name in KEPT {
        let Some(value) = headers.get(*name) else { continue };
        let mut text = String::new();
        quote(&String::from_utf8_lossy(value.as_bytes()), &mut text);
        push_member(&mut object, name, &text);
    }
    object.push('}');
    (object.len() != 2).then_some(object)
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let channel = place(ROUTES, parts, "channel").unwrap_or_default();
    let headers = request_headers(&parts.headers);
    let mut hand_over = |raw: &[u8], place: Place| {
        let (event, time) = event(raw, headers.as_deref());
        let item = Item {
            raw: event.as_deref().map_or(raw, str::as_bytes),
            event_type: Some(&channel),
            event_id: None,
            event_time: time.as_deref().map_or(ItemTime::None, ItemTime::Rfc3339),
            reserved: false,
            source_name: None,
            map_names: true,
        };
        each(Arrived { place, found: Found::Item(item) })
    };
    values(body, |raw, place| match text(raw) {
        None => hand_over(raw, place),
        Some(inner) if matches!(trim(inner.as_bytes()).1.first(), Some(b'{' | b'[')) => {
            let mut last = ControlFlow::Continue(());
            values(inner.as_bytes(), |raw, _| {
                last = hand_over(raw, place);
                last
            });
            last
        }
        // A text that holds no JSON: the event is that text.
        Some(_) => {
            let mut event = begin_event(&String::from_utf8_lossy(raw), "payload");
            event.push('}');
            hand_over(event.as_bytes(), place)
        }
    });
    Ok(())
}

/// The content of a JSON string; `None` for any other value.
fn text(raw: &[u8]) -> Option<String> {
    let quoted = raw.first() == Some(&b'"');
    std::str::from_utf8(raw).ok().filter(|_| quoted).and_then(unquoted)
}

/// The event with what the head says of its sender, and when it happened. A field of that name that
/// the event has itself stays; what is no object is left to its scan.
fn event(raw: &[u8], headers: Option<&str>) -> (Option<String>, Option<String>) {
    let Some(members) = Members::of(raw) else { return (None, None) };
    let times = TIMES.iter().filter_map(|name| members.text(name));
    let time = times.into_iter().find(|text| is_rfc3339(text));
    let event = headers.filter(|_| members.get(HEADERS).is_none()).and_then(|headers| {
        let mut event = begin_event(std::str::from_utf8(trim(raw).1).ok()?, HEADERS);
        push_member(&mut event, HEADERS, headers);
        event.push('}');
        Some(event)
    });
    (event, time)
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        None => answer::json(StatusCode::OK, "application/json", &json!({ "status": "ok" })),
        Some(unkept) => {
            let body = json!({
                "status": "error", "code": unkept.first.code, "message": unkept.message,
            });
            answer::json(unkept.status, "application/json", &body)
        }
    }
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let body = json!({
        "status": "error",
        "code": refusal.code(),
        "message": refusal.detail,
        "request_id": call.request_id,
    });
    answer::refuse_as(refusal, &body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Each item's type, time and bytes.
    fn items(headers: &[(&str, &str)], body: &str) -> Vec<(String, Option<String>, String)> {
        let mut request = http::Request::post("/v3/send/kibana%20ui?debug=1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let time = match item.event_time {
                ItemTime::Rfc3339(text) => Some(text.to_owned()),
                _ => None,
            };
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            found.push((item.event_type.unwrap().to_owned(), time, raw));
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    fn raws(body: &str) -> Vec<String> {
        items(&[], body).into_iter().map(|(.., raw)| raw).collect()
    }

    #[test]
    fn an_object_lines_an_array_and_a_string_of_any_of_them_are_the_same_events() {
        let events = [r#"{"a": 1.50}"#, r#"{"b":"x"}"#];
        assert_eq!(raws(events[0]), [events[0]]);
        assert_eq!(raws(&events.join("\n")), events);
        assert_eq!(raws(&format!("[{}]", events.join(","))), events);
        for inner in [events.join("\n"), format!("[{}]", events.join(","))] {
            assert_eq!(raws(&serde_json::to_string(&inner).unwrap()), events);
        }
        assert_eq!(raws(r#""aGVsbG8=""#), [r#"{"payload":"aGVsbG8="}"#]);
        assert_eq!(raws("7"), ["7"]);
        assert_eq!(raws(""), [""; 0]);
    }

    #[test]
    fn the_channel_is_the_type_and_the_products_headers_are_a_field() {
        let headers = [
            ("user-agent", "kibana \"x\""),
            ("x-elastic-stack-version", "9.1"),
            ("authorization", "Bearer s"),
        ];
        let found = items(&headers, r#"{"timestamp":"2026-03-01T12:00:00Z"}"#);
        let expected = r#"{"timestamp":"2026-03-01T12:00:00Z","request_headers":{"x-elastic-stack-version":"9.1","user-agent":"kibana \"x\""}}"#;
        assert_eq!(
            found,
            [("kibana ui".into(), Some("2026-03-01T12:00:00Z".into()), expected.into())]
        );
        let own = r#"{"request_headers":1,"timestamp":"yesterday"}"#;
        assert_eq!(items(&headers, own), [("kibana ui".into(), None, own.into())]);
    }
}
