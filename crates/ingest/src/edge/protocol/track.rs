//! The tracking service: `POST /track` with one flat JSON object, `GET /health`.

use std::ops::ControlFlow;

use http::{Method, StatusCode, request::Parts};
use serde_json::json;

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Probe, Protocol, Route, Tells,
    whole::unkept,
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
    name: "track",
    routes: &[Route { methods: &[Method::POST], path: "/track" }],
    probes: &[Probe { methods: &[Method::GET, Method::HEAD], path: "/health", answer: health }],
    login: Login {
        carriers: &[Carrier::Bearer, Carrier::ApiKeyHeader, Carrier::BasicPassword],
        in_body: None,
        may_be_open: true,
        challenge: "Bearer realm=\"tidegate\"",
    },
    cors: Some(Cors { credentials: false }),
    media_types: "any",
    takes: |_| true,
    only_type: |_| None,
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

fn health(_: &Parts, well: bool) -> Answer {
    let (status, text) = match well {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    answer::json(status, "application/json", &json!({ "status": text }))
}

fn decode(
    _: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let (start, raw) = trim(body);
    if !raw.is_empty() {
        let item = Item {
            raw,
            event_type: None,
            event_id: None,
            event_time: ItemTime::None,
            reserved: true,
            source_name: None,
            map_names: true,
        };
        let _ = each(Arrived { place: Place::Byte(start), found: Found::Item(item) });
    }
    Ok(())
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        None => answer::json(StatusCode::OK, "application/json", &json!({ "message": "success" })),
        Some(unkept) => {
            let body = json!({ "message": unkept.message, "code": unkept.first.code });
            answer::json(unkept.status, "application/json", &body)
        }
    }
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let body = json!({
        "message": refusal.detail, "code": refusal.code(), "request_id": call.request_id,
    });
    answer::refuse_as(refusal, &body)
}
