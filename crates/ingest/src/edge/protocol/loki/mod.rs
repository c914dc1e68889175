//! Grafana Loki's push: `POST /loki/api/v1/push`, JSON, or protobuf in snappy's block format.
//!
//! By Loki's documentation "Loki HTTP API", Ingest logs, and `push.proto`. Each entry is an event: `line`, `labels`,
//! `timestamp_ns` and, where there is some, `structured_metadata`.

mod labels;
mod proto;

use std::{borrow::Cow, ops::ControlFlow};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use tidegate_event::{Code, Reason};

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Protocol, Route, Tells,
    members::{Members, push_member, unquoted},
    naming::named_by,
    whole::unkept,
};
use crate::{
    edge::{
        answer::{self, Answer, Refusal},
        coding::Coding,
        credentials::Carrier,
        problem::Problem,
    },
    json::split_array,
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "loki",
    routes: &[Route { methods: &[Method::POST], path: PATH }],
    probes: &[],
    login: Login {
        carriers: &[Carrier::BasicPassword, Carrier::Bearer, Carrier::ApiKeyHeader],
        in_body: None,
        may_be_open: false,
        challenge: "Basic realm=\"tidegate\"",
    },
    cors: None,
    media_types: "application/json, application/x-protobuf",
    takes: |_| true,
    only_type: |parts| named_by(parts, TYPE).is_none().then(|| TYPE.to_owned()),
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const PATH: &str = "/loki/api/v1/push";
/// The type of events that no label names.
const TYPE: &str = "loki";

/// A stream's labels, and the event type of its entries.
struct Stream<'a> {
    /// `labels`, or `labels_raw` where they are text that is none.
    name: &'static str,
    /// As JSON.
    labels: Cow<'a, str>,
    event_type: Option<String>,
}

impl<'a> Stream<'a> {
    fn new(name: &'static str, labels: Cow<'a, str>, by_label: Option<&str>) -> Self {
        let members = by_label.and_then(|_| Members::of(labels.as_bytes()));
        let named = members.zip(by_label).and_then(|(members, label)| members.text(label));
        let event_type = named.filter(|named| !named.is_empty());
        Self { name, labels, event_type }
    }
}

/// One line, all as JSON.
struct Entry<'a> {
    nanos: Option<Cow<'a, str>>,
    line: Cow<'a, str>,
    metadata: Option<Cow<'a, str>>,
}

fn is_protobuf(parts: &Parts) -> bool {
    let value = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let media_type = value.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case("application/x-protobuf")
    })
}

/// A push in protobuf is in snappy's block format without saying so, or saying `snappy`.
pub(super) fn coding(parts: &Parts) -> Option<Coding> {
    if parts.uri.path() != PATH || !is_protobuf(parts) {
        return None;
    }
    let mut named = parts.headers.get_all(header::CONTENT_ENCODING).iter();
    named.all(|name| name.as_bytes().eq_ignore_ascii_case(b"snappy")).then_some(Coding::Snappy)
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let by_label = named_by(parts, TYPE);
    if !is_protobuf(parts) {
        return json(body, by_label, each);
    }
    proto::entries(body, by_label, |at, stream, entry| {
        let place = Place::Byte(at);
        match entry {
            Ok(entry) => hand_over(place, stream, &entry, each),
            Err(message) => {
                let reason = Reason::new(Code::InvalidUtf8, "", message);
                each(Arrived { place, found: Found::Rejected(reason) })
            }
        }
    })
    .map_err(|error| {
        let detail = format!("the body is no push in protobuf and snappy's block format: {error}");
        DecodeFault::new(Problem::BODY_NOT_JSON, detail)
    })
}

fn json(
    body: &[u8],
    by_label: Option<&str>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    super::whole::batch(body, "streams", |raw, place| {
        let invalid = |field: &str, message: &str| {
            let reason = Reason::new(Code::EnvelopeInvalid, field, message);
            Arrived { place, found: Found::Rejected(reason) }
        };
        let Some(members) = Members::of(raw) else {
            return each(invalid("", "a stream is a JSON object"));
        };
        let labels = match members.get("stream") {
            Some(labels) if labels.starts_with('{') => labels,
            _ => return each(invalid("/stream", "a stream's labels are an object")),
        };
        let Some(values) = members.get("values").filter(|values| values.starts_with('[')) else {
            return each(invalid("/values", "a stream's entries are an array"));
        };
        let stream = Stream::new("labels", Cow::Borrowed(labels), by_label);
        // It is JSON: no element is an error.
        for (_, value) in split_array(values.as_bytes()).map_while(Result::ok) {
            let flow = match entry(value) {
                Some(entry) => hand_over(place, &stream, &entry, each),
                None => each(invalid("/values", "an entry is [\"<nanoseconds>\", \"<line>\"]")),
            };
            if flow.is_break() {
                return flow;
            }
        }
        ControlFlow::Continue(())
    })
}

/// `["<nanoseconds>", "<line>"]`, and structured metadata behind them.
fn entry(value: &[u8]) -> Option<Entry<'_>> {
    if value.first() != Some(&b'[') {
        return None;
    }
    let mut parts = split_array(value).map_while(Result::ok).map(|(_, part)| part);
    let mut next = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let (nanos, line, metadata, more) = (next()?, next()?, next(), next());
    let metadata = metadata.filter(|metadata| unquoted_is_some(metadata));
    (line.starts_with('"') && more.is_none()).then_some(Entry {
        nanos: Some(Cow::Borrowed(nanos)),
        line: Cow::Borrowed(line),
        metadata: metadata.map(Cow::Borrowed),
    })
}

/// False for metadata that says nothing: `{}` or `null`.
fn unquoted_is_some(metadata: &str) -> bool {
    !matches!(metadata.replace([' ', '\n', '\r', '\t'], "").as_str(), "{}" | "null")
}

fn hand_over(
    place: Place,
    stream: &Stream<'_>,
    entry: &Entry<'_>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut event = String::with_capacity(entry.line.len() + stream.labels.len() + 80);
    event.push('{');
    push_member(&mut event, "line", &entry.line);
    push_member(&mut event, stream.name, &stream.labels);
    let fields = [("timestamp_ns", &entry.nanos), ("structured_metadata", &entry.metadata)];
    for (name, value) in fields {
        if let Some(value) = value {
            push_member(&mut event, name, value);
        }
    }
    event.push('}');
    let nanos = entry.nanos.as_deref();
    let nanos = nanos.map(|text| unquoted(text).unwrap_or_else(|| text.to_owned()));
    let time = match nanos.as_deref().map(|text| (text, text.parse::<i64>())) {
        None => ItemTime::None,
        Some((_, Ok(nanos))) => ItemTime::Micros(nanos.div_euclid(1_000)),
        // What is no number makes a dead letter that says so.
        Some((text, Err(_))) => ItemTime::Rfc3339(text),
    };
    let item = Item {
        raw: event.as_bytes(),
        event_type: Some(stream.event_type.as_deref().unwrap_or(TYPE)),
        event_id: None,
        event_time: time,
        reserved: false,
        source_name: None,
        map_names: true,
    };
    each(Arrived { place, found: Found::Item(item) })
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    match unkept(outcomes) {
        // Its clients take nothing else for success.
        None => {
            let mut answer = Answer::default();
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        Some(unkept) => text(unkept.status, &unkept.message),
    }
}

fn refuse(_: &Call<'_>, refusal: &Refusal) -> Answer {
    let mut answer = text(refusal.status_code(), &refusal.detail);
    answer::describe(refusal, &mut answer);
    answer
}

/// Errors are plain text, as Loki's.
fn text(status: StatusCode, message: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{message}\n"))));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

#[cfg(test)]
mod tests;
