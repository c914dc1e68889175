//! What Amazon Data Firehose sends to an HTTP endpoint as the destination of a delivery stream.
//!
//! By "HTTP endpoint delivery request and response specifications" in its developer guide. It sends a
//! request again, under the same id, after anything but a 200 whose body names that id; but for 413, of
//! which it hands the records to its backup. So 413 is said of a body that can never be taken, alone.

use std::{borrow::Cow, ops::ControlFlow};

use http::{Method, StatusCode, request::Parts};
use serde::Serialize;
use tidegate_event::EventType;

use super::super::{
    Arrived, Call, DecodeFault, Login, Noted, Outcomes, Protocol, Route, Tells,
    members::Members,
    path::place,
    whole::{batch, unkept},
};
use super::records::{self, Common};
use crate::edge::{
    answer::{self, Answer, Kind, Refusal},
    credentials::Carrier,
    problem::Problem,
};

pub(in super::super) const PROTOCOL: Protocol = Protocol {
    name: "firehose_http",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::FirehoseAccessKey, Carrier::Bearer],
        in_body: None,
        may_be_open: false,
        challenge: "Bearer realm=\"tidegate\"",
    },
    cors: None,
    media_types: "any",
    takes: |_| true,
    only_type: |parts| {
        let name = stream(parts)?;
        Some(EventType::mapped(&name).map_or(name.into_owned(), |mapped| mapped.to_string()))
    },
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const POST: &[Method] = &[Method::POST];
const ROUTES: &[Route] = &[
    Route { methods: POST, path: "/v1/firehose" },
    Route { methods: POST, path: "/v1/firehose/{event_type}" },
];

/// The value of one of Firehose's own headers.
fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    std::str::from_utf8(parts.headers.get(name)?.as_bytes()).ok().map(str::trim)
}

/// The event type: by the path, else the delivery stream that the source's ARN names.
fn stream(parts: &Parts) -> Option<Cow<'_, str>> {
    place(ROUTES, parts, "event_type").or_else(|| {
        let arn = header(parts, "x-amz-firehose-source-arn")?;
        let (_, name) = arn.split_once(":deliverystream/")?;
        (!name.is_empty()).then_some(Cow::Borrowed(name))
    })
}

/// The request's id: the same each time that it is sent.
fn request_id(parts: &Parts) -> Option<&str> {
    let id = header(parts, "x-amz-firehose-request-id")?;
    (!id.is_empty() && id.len() <= 256).then_some(id)
}

/// The members of `commonAttributes`, as the head has them.
fn attributes(parts: &Parts) -> Result<Option<&str>, DecodeFault> {
    const NAME: &str = "x-amz-firehose-common-attributes";
    let Some(value) = parts.headers.get(NAME) else { return Ok(None) };
    let wrong = || {
        let detail = "X-Amz-Firehose-Common-Attributes is not {\"commonAttributes\":{...}}";
        DecodeFault::new(Problem::BAD_REQUEST, detail)
    };
    let members = Members::of(value.as_bytes()).ok_or_else(wrong)?;
    let object = members.get("commonAttributes").filter(|object| object.starts_with('{'));
    let object = object.ok_or_else(wrong)?;
    Ok((object.len() != 2).then_some(object))
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let stream = stream(parts);
    let common = Common {
        event_type: stream.as_deref(),
        request: request_id(parts),
        attributes: attributes(parts)?,
    };
    let (mut number, mut fault) = (0, None);
    batch(body, "records", |record, place| {
        let data = Members::of(record).and_then(|members| members.text("data"));
        let Some(bytes) = data.and_then(|data| records::bytes(&data)) else {
            let detail = format!("record {number} (from 0) has no base64 as its `data`");
            fault = Some(DecodeFault::new(Problem::BODY_NOT_JSON, detail));
            return ControlFlow::Break(());
        };
        let (_, flow) = common.hand_over((number, place), &bytes, each);
        number += 1;
        flow
    })?;
    fault.map_or(Ok(()), Err)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    request_id: &'a str,
    /// Milliseconds since 1970.
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
}

fn body<'a>(call: &Call<'a>, error_message: Option<&'a str>) -> Body<'a> {
    let request_id = header(call.parts, "x-amz-firehose-request-id").unwrap_or(call.request_id);
    Body { request_id, timestamp: Noted::millis(call.parts), error_message }
}

fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        None => answer::json(StatusCode::OK, "application/json", &body(call, None)),
        Some(unkept) => {
            let body = body(call, Some(&unkept.message));
            answer::json(unkept.status, "application/json", &body)
        }
    }
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    // A delivery without records is delivered.
    if refusal.kind == Kind::Problem(Problem::BODY_EMPTY) {
        return answer::json(StatusCode::OK, "application/json", &body(call, None));
    }
    let said = format!("{}: {}", refusal.code(), refusal.detail);
    answer::refuse_as(refusal, &body(call, Some(&said)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::edge::protocol::Found;

    fn parts(path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const ARN: (&str, &str) = (
        "x-amz-firehose-source-arn",
        "arn:aws:firehose:us-east-1:123456789012:deliverystream/page.views",
    );
    const ID: (&str, &str) = ("x-amz-firehose-request-id", "ed4acda5-034f-9f42-bba1-f29aea6d7d8f");

    /// An item's type, id and bytes.
    type Seen = (Option<String>, Option<String>, String);

    fn items(parts: &Parts, body: &str) -> Result<Vec<Seen>, Problem> {
        let mut found = Vec::new();
        let result = decode(parts, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            let id = item.event_id.map(str::to_owned);
            found.push((item.event_type.map(str::to_owned), id, raw));
            ControlFlow::Continue(())
        });
        result.map(|()| found).map_err(|fault| fault.problem)
    }

    #[test]
    fn the_type_is_the_paths_or_the_streams_and_the_id_is_the_requests() {
        // `{"a":1}` and `{"b":2}{"c":3}`.
        let body = r#"{"requestId":"x","timestamp":1,"records":[{"data":"eyJhIjoxfQ=="},{"data":"eyJiIjoyfXsiYyI6M30="}]}"#;
        let found = items(&parts("/v1/firehose", &[ARN, ID]), body).unwrap();
        let is = |at: usize, id: &str, raw: &str| {
            let id = Some(format!("{}/{id}", ID.1));
            assert_eq!(found[at], (Some("page.views".to_owned()), id, raw.to_owned()));
        };
        is(0, "0", r#"{"a":1}"#);
        is(1, "1", r#"{"b":2}"#);
        is(2, "1/1", r#"{"c":3}"#);
        let by_path = parts("/v1/firehose/clicks", &[ARN]);
        assert_eq!((PROTOCOL.only_type)(&by_path).as_deref(), Some("clicks"));
        let found = items(&by_path, body).unwrap();
        assert_eq!((found[0].0.as_deref(), found[0].1.as_deref()), (Some("clicks"), None));
        assert_eq!((PROTOCOL.only_type)(&parts("/v1/firehose", &[])), None);
    }

    #[test]
    fn attributes_come_with_each_event_and_what_breaks_the_contract_is_refused() {
        let common = ("x-amz-firehose-common-attributes", r#"{"commonAttributes":{"env":"test"}}"#);
        let body = r#"{"records":[{"data":"e30="}]}"#;
        let found = items(&parts("/v1/firehose/a", &[common]), body).unwrap();
        assert_eq!(found[0].2, r#"{"common_attributes":{"env":"test"}}"#);
        let broken = ("x-amz-firehose-common-attributes", "env=test");
        let refused = items(&parts("/v1/firehose/a", &[broken]), body);
        assert_eq!(refused, Err(Problem::BAD_REQUEST));
        let plain = parts("/v1/firehose/a", &[]);
        for body in ["{", "[]", r#"{"records":[{"data":"?"}]}"#, r#"{"records":[{}]}"#] {
            assert_eq!(items(&plain, body), Err(Problem::BODY_NOT_JSON), "{body}");
        }
        assert_eq!(items(&plain, r#"{"records":[]}"#), Ok(Vec::new()));
    }
}
