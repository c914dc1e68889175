//! OTLP: logs, spans and metrics over HTTP (protobuf, JSON) and gRPC, as the OpenTelemetry Protocol
//! Specification 1.x has them.
//!
//! Each log record, span and data point is one event of type `otel.log`, `otel.span` or `otel.metric`. The
//! protocol has no ids: what is sent again after a lost answer is there twice.
//!
//! | file | what |
//! | --- | --- |
//! | `fields` | the messages: numbers, names, kinds |
//! | `form`, `proto`, `json` | the two forms of a message, written as JSON |
//! | `events` | resource, scope, item: one event each |
//! | `answers` | partial success, status, when to come again |

mod answers;
mod events;
mod fields;
mod form;
mod json;
mod proto;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use http::{Method, request::Parts};
use serde_json::value::RawValue;

use self::{
    fields::{LOGS, METRICS, SPANS, Signal},
    json::Json,
    proto::Proto,
};
use super::{Arrived, Call, DecodeFault, Login, Outcomes, Protocol, Route, Tells};
use crate::{
    edge::{
        answer::{Answer, Kind, Refusal},
        cors::Cors,
        credentials::Carrier,
        grpc, head,
        problem::Problem,
    },
    json::trim,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "otlp",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::Bearer, Carrier::ApiKeyHeader, Carrier::BasicPassword],
        in_body: None,
        may_be_open: false,
        challenge: "Bearer realm=\"tidegate\"",
    },
    cors: Some(Cors { credentials: false }),
    media_types: "application/x-protobuf, application/json, application/grpc",
    takes: |parts| grpc::is_grpc(parts) == is_service(parts),
    only_type: |parts| Some(signal(parts).event_type.to_owned()),
    decode,
    tells: Tells::Reasons(10),
    encode,
    refuse,
};

const POST: &[Method] = &[Method::POST];
const ROUTES: &[Route] = &[
    Route { methods: POST, path: "/v1/logs" },
    Route { methods: POST, path: "/v1/traces" },
    Route { methods: POST, path: "/v1/metrics" },
    Route { methods: POST, path: "/opentelemetry.proto.collector.logs.v1.LogsService/Export" },
    Route { methods: POST, path: "/opentelemetry.proto.collector.trace.v1.TraceService/Export" },
    Route {
        methods: POST,
        path: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    },
];

/// True at the paths of gRPC.
fn is_service(parts: &Parts) -> bool {
    parts.uri.path().ends_with("/Export")
}

fn signal(parts: &Parts) -> &'static Signal {
    let path = parts.uri.path();
    if path.contains("logs") {
        &LOGS
    } else if path.contains("trace") {
        &SPANS
    } else {
        &METRICS
    }
}

/// True where the answer is protobuf, as the question is.
fn is_protobuf(parts: &Parts) -> bool {
    let media_type = head::media_type(&parts.headers);
    media_type.is_some_and(|media_type| {
        matches!(&*media_type, "application/x-protobuf" | "application/protobuf")
            || media_type.starts_with("application/grpc")
    })
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let signal = signal(parts);
    let media_type = head::media_type(&parts.headers);
    let says_json = media_type.is_some_and(|media_type| media_type == "application/json");
    let (_, inside) = trim(body);
    // Where nobody says it: no protobuf message of OTLP begins like this.
    let looks_json = !is_protobuf(parts) && inside.first() == Some(&b'{');
    if !says_json && !looks_json {
        return events::walk::<Proto>(signal, body, each);
    }
    let wrong = |detail: String| DecodeFault::new(Problem::BODY_NOT_JSON, detail);
    let raw: &RawValue =
        serde_json::from_slice(inside).map_err(|error| wrong(format!("not JSON: {error}")))?;
    let text = raw.get();
    if !text.starts_with('{') {
        return Err(wrong("the body is no JSON object".to_owned()));
    }
    let root = signal.resources.json;
    if json::lacks(text, root) {
        let detail =
            format!("there is no {root:?}, as this path takes it; names are in lowerCamelCase");
        return Err(wrong(detail));
    }
    events::walk::<Json>(signal, text, each)
}

fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    answers::done(is_protobuf(call.parts), signal(call.parts), outcomes)
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    // An envelope without items is a success, as the specification has it.
    if refusal.kind == Kind::Problem(Problem::BODY_EMPTY) {
        return encode(call, &Outcomes::default());
    }
    answers::refused(is_protobuf(call.parts), refusal)
}
