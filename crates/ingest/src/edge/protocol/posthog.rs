//! PostHog's capture API: `/batch/`, `/capture/`, `/i/v0/e/`, the key in the body.

use std::{borrow::Cow, ops::ControlFlow};

use http::{Method, StatusCode, request::Parts};
use serde_json::json;

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Protocol, Route, Tells,
    members::{Members, without},
    whole::{batch, unkept},
};
use crate::{
    edge::{
        answer::{self, Answer, Refusal},
        cors::Cors,
        credentials::Carrier,
    },
    json::trim,
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "posthog",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::Bearer],
        in_body: Some(key),
        may_be_open: false,
        challenge: "Bearer realm=\"tidegate\"",
    },
    cors: Some(Cors { credentials: false }),
    media_types: "any",
    takes: |_| true,
    only_type: |_| Some(TYPE.to_owned()),
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const POST: &[Method] = &[Method::POST];
const ROUTES: &[Route] = &[
    Route { methods: POST, path: "/batch/" },
    Route { methods: POST, path: "/batch" },
    Route { methods: POST, path: "/capture/" },
    Route { methods: POST, path: "/capture" },
    Route { methods: POST, path: "/i/v0/e/" },
    Route { methods: POST, path: "/i/v0/e" },
];

/// The type of all events: their own names are as many as people think of.
const TYPE: &str = "posthog.capture";
/// Where clients have their key; never kept.
const KEYS: &[&str] = &["api_key", "token"];

fn key(body: &[u8]) -> Option<String> {
    let members = Members::of(body)?;
    KEYS.iter().find_map(|name| members.text(name))
}

fn decode(
    _: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    if Members::of(body).is_some_and(|members| members.get("batch").is_some()) {
        return batch(body, "batch", |raw, place| event(raw, place, each));
    }
    let (start, raw) = trim(body);
    if !raw.is_empty() {
        let _ = event(raw, Place::Byte(start), each);
    }
    Ok(())
}

fn event(
    raw: &[u8],
    place: Place,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let members = Members::of(raw);
    let text = |name: &str| members.as_ref().and_then(|members| members.text(name));
    let (id, time) = (text("uuid").filter(|id| !id.is_empty()), text("timestamp"));
    let own = match &members {
        Some(members) if KEYS.iter().any(|name| members.get(name).is_some()) => {
            Cow::Owned(without(members, KEYS).into_bytes())
        }
        _ => Cow::Borrowed(raw),
    };
    let item = Item {
        raw: &own,
        event_type: Some(TYPE),
        event_id: id.as_deref(),
        event_time: time.as_deref().map_or(ItemTime::None, ItemTime::Rfc3339),
        reserved: false,
        source_name: None,
        map_names: false,
    };
    each(Arrived { place, found: Found::Item(item) })
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        None => answer::json(StatusCode::OK, "application/json", &json!({ "status": 1 })),
        Some(unkept) => {
            let body = json!({
                "status": 0, "code": unkept.first.code, "detail": unkept.message,
            });
            answer::json(unkept.status, "application/json", &body)
        }
    }
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let body = json!({
        "status": 0,
        "type": "validation_error",
        "code": refusal.code(),
        "detail": refusal.detail,
        "request_id": call.request_id,
    });
    answer::refuse_as(refusal, &body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn items(body: &str) -> Vec<(Option<String>, String)> {
        let parts = http::Request::post("/batch/").body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            found.push((item.event_id.map(str::to_owned), raw));
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    #[test]
    fn a_batch_or_a_single_event_without_the_key() {
        let (a, b) = (r#"{"event":"a","uuid":"u-1","properties":{"n": 1.50}}"#, r#"{"event":"b"}"#);
        let body = format!(r#"{{"batch":[{a},{b}],"api_key":"k"}}"#);
        assert_eq!(items(&body), [(Some("u-1".into()), a.into()), (None, b.into())]);
        assert_eq!(key(body.as_bytes()).as_deref(), Some("k"));
        assert_eq!(items(r#"{"token":"k","event":"b"}"#), [(None, b.into())]);
        assert_eq!(key(br#"{"token":"k"}"#).as_deref(), Some("k"));
        assert_eq!(key(br#"{"token":7}"#), None);
        assert_eq!(items(" "), []);
    }
}
