//! Segment's HTTP API, which RudderStack's SDKs speak too: `/v1/batch` and one path for each kind of call.

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
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "segment",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::BasicUser, Carrier::Bearer],
        in_body: Some(|body| Members::of(body)?.text(KEY)),
        may_be_open: false,
        challenge: "Basic realm=\"tidegate\"",
    },
    cors: Some(Cors { credentials: false }),
    media_types: "any",
    takes: |_| true,
    only_type: |parts| kind(parts).map(|kind| format!("segment.{kind}")),
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const POST: &[Method] = &[Method::POST];
const ROUTES: &[Route] = &[
    Route { methods: POST, path: "/v1/batch" },
    Route { methods: POST, path: "/v1/track" },
    Route { methods: POST, path: "/v1/identify" },
    Route { methods: POST, path: "/v1/page" },
    Route { methods: POST, path: "/v1/screen" },
    Route { methods: POST, path: "/v1/group" },
    Route { methods: POST, path: "/v1/alias" },
];
/// Where a client that sends no key in the head has it; never kept.
const KEY: &str = "writeKey";

/// The kind of call that the path says; `None` for a batch.
fn kind(parts: &Parts) -> Option<&str> {
    parts.uri.path().strip_prefix("/v1/").filter(|kind| *kind != "batch")
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    match kind(parts) {
        Some(kind) => {
            let _ = message(body, Place::Byte(0), Some(kind), each);
            Ok(())
        }
        None => batch(body, "batch", |raw, place| message(raw, place, None, each)),
    }
}

fn message(
    raw: &[u8],
    place: Place,
    kind: Option<&str>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let members = Members::of(raw);
    let text = |name: &str| members.as_ref().and_then(|members| members.text(name));
    let event_type = kind.map(str::to_owned).or_else(|| text("type"));
    let event_type = event_type.map(|kind| format!("segment.{kind}"));
    let (id, time) = (text("messageId").filter(|id| !id.is_empty()), text("timestamp"));
    let own = match &members {
        Some(members) if members.get(KEY).is_some() => {
            Cow::Owned(without(members, &[KEY]).into_bytes())
        }
        _ => Cow::Borrowed(raw),
    };
    let item = Item {
        raw: &own,
        event_type: event_type.as_deref(),
        event_id: id.as_deref(),
        event_time: time.as_deref().map_or(ItemTime::None, ItemTime::Rfc3339),
        reserved: false,
        source_name: None,
        map_names: true,
    };
    each(Arrived { place, found: Found::Item(item) })
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        None => answer::json(StatusCode::OK, "application/json", &json!({ "success": true })),
        Some(unkept) => {
            let body = json!({
                "success": false, "code": unkept.first.code, "message": unkept.message,
            });
            answer::json(unkept.status, "application/json", &body)
        }
    }
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let body = json!({
        "success": false,
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

    type Found4 = (Option<String>, Option<String>, bool, String);

    fn items(path: &str, body: &str) -> Result<Vec<Found4>, DecodeFault> {
        let parts = http::Request::post(path).body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let own = |text: Option<&str>| text.map(str::to_owned);
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            let timed = item.event_time != ItemTime::None;
            found.push((own(item.event_type), own(item.event_id), timed, raw));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_batch_is_its_messages_as_they_stand() {
        let track = r#"{"type":"track","messageId":"m-1","timestamp":"2026-03-01T12:00:00Z","properties":{"a": 1.50}}"#;
        let page = r#"{"type":"page"}"#;
        let body =
            format!(r#"{{"sentAt":"x","batch":[{track}, {page},{{"a":1}}],"writeKey":"k"}}"#);
        let found = items("/v1/batch", &body).unwrap();
        assert_eq!(
            found,
            [
                (Some("segment.track".into()), Some("m-1".into()), true, track.into()),
                (Some("segment.page".into()), None, false, page.into()),
                (None, None, false, r#"{"a":1}"#.into()),
            ]
        );
        assert_eq!((PROTOCOL.login.in_body.unwrap())(body.as_bytes()).as_deref(), Some("k"));
        for broken in ["{}", "[]", r#"{"batch":{}}"#, r#"{"batch":[1,]}"#, "x"] {
            assert!(items("/v1/batch", broken).is_err(), "{broken}");
        }
        assert_eq!(items("/v1/batch", r#"{"batch":[]}"#), Ok(vec![]));
    }

    #[test]
    fn a_single_call_has_its_kind_from_the_path_and_its_key_is_not_kept() {
        let found = items("/v1/identify", r#"{"type":"track","writeKey":"k","userId":"u"}"#);
        let kept = r#"{"type":"track","userId":"u"}"#;
        assert_eq!(found, Ok(vec![(Some("segment.identify".into()), None, false, kept.into())]));
    }
}
