//! CloudEvents 1.0 over HTTP: structured, batched and binary, on `POST /v1/events`.
//!
//! The event is the fields of `data` where that is an object, else `{"data": …}` (or
//! `{"data_base64": …}`), with one more field `cloudevent` that holds the context attributes. Every
//! value stands in it byte for byte as it came.

use std::{borrow::Cow, collections::HashSet, ops::ControlFlow};

use http::{HeaderMap, request::Parts};
use serde_json::value::RawValue;
use tidegate_event::{Code, Reason};

use super::{
    Arrived, DecodeFault, Found, OWN_LOGIN, Place, Protocol, Tells, events, members::Members,
    path::percent_decoded,
};
use crate::{
    edge::{answer, head, problem::Problem},
    json::{split_array, trim},
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "cloudevents",
    routes: events::ROUTES,
    probes: &[],
    login: OWN_LOGIN,
    cors: None,
    media_types: "application/cloudevents+json, application/cloudevents-batch+json, or ce- headers",
    takes: |parts| mode(parts).is_some(),
    only_type,
    decode,
    tells: Tells::Reasons(events::ERRORS_MAX),
    encode: events::encode,
    refuse: answer::refuse,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Structured,
    Batched,
    Binary,
}

fn mode(parts: &Parts) -> Option<Mode> {
    match head::media_type(&parts.headers).as_deref() {
        Some("application/cloudevents+json") => Some(Mode::Structured),
        Some("application/cloudevents-batch+json") => Some(Mode::Batched),
        // Another event format (XML, Avro, protobuf) is not binary mode.
        Some(other) if other.starts_with("application/cloudevents") => None,
        _ => parts.headers.contains_key("ce-specversion").then_some(Mode::Binary),
    }
}

fn only_type(parts: &Parts) -> Option<String> {
    if mode(parts) != Some(Mode::Binary) {
        return None;
    }
    let name = header_text(&parts.headers, "ce-type").ok()??;
    Some(tidegate_event::EventType::mapped(&name).map_or(name, |mapped| mapped.to_string()))
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    match mode(parts) {
        Some(Mode::Batched) => batched(body, each),
        Some(Mode::Binary) => {
            let envelope = binary(&parts.headers, body);
            let _ = hand_over(Place::Byte(0), envelope, each);
            Ok(())
        }
        Some(Mode::Structured) | None => {
            let (start, raw) = trim(body);
            let _ = hand_over(Place::Byte(start), structured(raw), each);
            Ok(())
        }
    }
}

fn batched(
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let (start, raw) = trim(body);
    for element in split_array(raw) {
        let (at, element) = element.map_err(|fault| {
            let detail = format!(
                "{fault} (counted from byte {start} of the body); a batch is a JSON array of \
                 CloudEvents"
            );
            DecodeFault::new(Problem::BODY_NOT_JSON, detail)
        })?;
        if hand_over(Place::Byte(start + at), structured(element), each).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// A CloudEvent, taken apart: the event that is made of it, and what its context says.
struct Envelope {
    event: Vec<u8>,
    event_type: String,
    id: String,
    time: Option<String>,
}

fn hand_over(
    place: Place,
    envelope: Result<Envelope, Reason>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match envelope {
        Err(reason) => each(Arrived { place, found: Found::Rejected(reason) }),
        Ok(envelope) => each(Arrived {
            place,
            found: Found::Item(Item {
                raw: &envelope.event,
                event_type: Some(&envelope.event_type),
                event_id: Some(&envelope.id),
                event_time: envelope.time.as_deref().map_or(ItemTime::None, ItemTime::Rfc3339),
                reserved: false,
                source_name: None,
                map_names: true,
            }),
        }),
    }
}

fn invalid(field: &str, message: impl Into<String>) -> Reason {
    Reason::new(Code::EnvelopeInvalid, field, message)
}

/// What is required, from attributes whose values are text.
fn envelope(
    event: Vec<u8>,
    mut attribute: impl FnMut(&str) -> Result<Option<String>, Reason>,
) -> Result<Envelope, Reason> {
    let mut required = |name: &str| match attribute(name)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(invalid(
            &format!("/{name}"),
            format!("a CloudEvent needs the attribute {name}, a string that is not empty"),
        )),
    };
    let version = required("specversion")?;
    if version != "1.0" {
        let message = "only CloudEvents of specversion \"1.0\" are taken";
        return Err(invalid("/specversion", message));
    }
    let (event_type, source, id) = (required("type")?, required("source")?, required("id")?);
    let time = attribute("time")?;
    Ok(Envelope { event, event_type, id: format!("{source} {id}"), time })
}

fn structured(raw: &[u8]) -> Result<Envelope, Reason> {
    if std::str::from_utf8(raw).is_err() {
        return Err(Reason::new(Code::InvalidUtf8, "", "the CloudEvent is no UTF-8"));
    }
    let Members(members) = serde_json::from_slice(raw).map_err(|error| {
        let code = if error.is_data() { Code::NotAnObject } else { Code::InvalidJson };
        Reason::new(code, "", format!("a CloudEvent is a JSON object; {error}"))
    })?;
    let mut names = HashSet::with_capacity(members.len());
    if let Some((twice, _)) = members.iter().find(|(name, _)| !names.insert(name.as_ref())) {
        return Err(invalid(&format!("/{twice}"), "the attribute stands twice"));
    }
    let member = |name: &str| members.iter().find(|(n, _)| n == name).map(|(_, v)| v.get());
    let data = match (member("data"), member("data_base64")) {
        (Some(_), Some(_)) => {
            return Err(invalid("/data_base64", "data and data_base64 exclude each other"));
        }
        (Some(data), None) => Data::Json(data),
        (None, Some(text)) => Data::Base64(text),
        (None, None) => Data::None,
    };
    let context = members.iter().filter(|(name, _)| name != "data" && name != "data_base64");
    let event =
        event(&data, context.map(|(name, value)| (name.as_ref(), Cow::Borrowed(value.get()))));
    envelope(event, |name| match member(name) {
        None | Some("null") => Ok(None),
        Some(value) => serde_json::from_str(value).map(Some).map_err(|_| {
            invalid(&format!("/{name}"), format!("the attribute {name} must be a string"))
        }),
    })
}

fn binary(headers: &HeaderMap, body: &[u8]) -> Result<Envelope, Reason> {
    let mut context: Vec<(&str, String)> = Vec::new();
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        if let Some(text) = header_text(headers, name.as_str())? {
            context.push((attribute, text));
        }
    }
    let media_type = head::media_type(headers);
    if let Some(Ok(text)) = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::to_str) {
        context.push(("datacontenttype", text.to_owned()));
    }
    let is_json = media_type
        .as_deref()
        .is_none_or(|m| m == "application/json" || m == "text/json" || m.ends_with("+json"));
    let text = std::str::from_utf8(body).ok();
    let owned;
    let data = match (trim(body).1.is_empty(), is_json, text) {
        (true, _, _) => Data::None,
        (false, true, Some(text)) => {
            serde_json::from_str::<&RawValue>(text).map_err(|error| {
                Reason::new(Code::InvalidJson, "/data", format!("the data is no JSON: {error}"))
            })?;
            Data::Json(text.trim_ascii())
        }
        (false, true, None) => {
            return Err(Reason::new(Code::InvalidUtf8, "/data", "the data is no UTF-8"));
        }
        (false, false, Some(text)) if media_type.as_deref().is_some_and(is_text) => {
            owned = quoted(text);
            Data::Json(&owned)
        }
        (false, false, _) => {
            owned = format!("\"{}\"", base64(body));
            Data::Base64(&owned)
        }
    };
    let event = event(&data, context.iter().map(|(name, text)| (*name, Cow::Owned(quoted(text)))));
    envelope(event, |name| Ok(context.iter().find(|(n, _)| *n == name).map(|(_, t)| t.clone())))
}

fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/") || media_type.ends_with("/xml") || media_type.ends_with("+xml")
}

/// An attribute in a header: out of its double quotes, then percent-decoded once.
fn header_text(headers: &HeaderMap, name: &str) -> Result<Option<String>, Reason> {
    let field = || format!("/{}", name.trim_start_matches("ce-"));
    let text = head::single(headers, name).map_err(|message| invalid(&field(), message))?;
    let Some(text) = text else { return Ok(None) };
    let unquoted = match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => {
            let mut plain = String::with_capacity(inner.len());
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                plain.extend(if c == '\\' { chars.next() } else { Some(c) });
            }
            Cow::Owned(plain)
        }
        None => Cow::Borrowed(text),
    };
    let decoded = String::from_utf8(percent_decoded(&unquoted));
    let decoded =
        decoded.map_err(|_| invalid(&field(), "percent-decoded, the attribute is no UTF-8"))?;
    Ok(Some(decoded))
}

/// The payload, as JSON text.
enum Data<'a> {
    None,
    Json(&'a str),
    Base64(&'a str),
}

/// Puts the event together.
fn event<'a>(data: &Data<'_>, context: impl Iterator<Item = (&'a str, Cow<'a, str>)>) -> Vec<u8> {
    let mut event = String::from("{");
    match data {
        Data::None => {}
        Data::Json(text) => {
            let fields = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            match fields {
                Some(fields) if fields.trim_ascii().is_empty() => {}
                Some(fields) => event.extend([fields, ","]),
                None => event.extend(["\"data\":", text, ","]),
            }
        }
        Data::Base64(text) => event.extend(["\"data_base64\":", text, ","]),
    }
    event.push_str("\"cloudevent\":{");
    for (at, (name, value)) in context.enumerate() {
        if at != 0 {
            event.push(',');
        }
        event.extend([quoted(name).as_str(), ":", &value]);
    }
    event.push_str("}}");
    event.into_bytes()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * place) & 63) as usize).copied();
            let digit = digit.filter(|_| place <= chunk.len());
            text.push(digit.map_or('=', char::from));
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(envelope: &Envelope) -> &str {
        std::str::from_utf8(&envelope.event).unwrap()
    }

    const CONTEXT: &str = r#""specversion":"1.0","id":"7","source":"/s","type":"com.x/y""#;

    #[test]
    fn the_fields_of_data_become_the_events_own() {
        let raw =
            format!(r#"{{{CONTEXT},"time":"2026-01-01T00:00:00Z","data":{{"a": 1.50 }},"ext":5}}"#);
        let envelope = structured(raw.as_bytes()).unwrap();
        let expected = format!(
            r#"{{"a": 1.50 ,"cloudevent":{{{CONTEXT},"time":"2026-01-01T00:00:00Z","ext":5}}}}"#
        );
        assert_eq!(text(&envelope), expected);
        assert_eq!(envelope.id, "/s 7");
        assert_eq!(envelope.event_type, "com.x/y");
        assert_eq!(envelope.time.as_deref(), Some("2026-01-01T00:00:00Z"));
    }

    #[test]
    fn data_that_is_no_object_keeps_its_name() {
        for (data, start) in [
            (r#","data":[1, 2]"#, r#"{"data":[1, 2],"#),
            (r#","data":"<x/>""#, r#"{"data":"<x/>","#),
            (r#","data_base64":"AAE=""#, r#"{"data_base64":"AAE=","#),
            (r#","data":{ }"#, "{"),
            ("", "{"),
        ] {
            let envelope = structured(format!("{{{CONTEXT}{data}}}").as_bytes()).unwrap();
            assert_eq!(text(&envelope), format!(r#"{start}"cloudevent":{{{CONTEXT}}}}}"#));
        }
    }

    #[test]
    fn a_cloudevent_without_what_it_needs_is_rejected() {
        let check = |raw: &str, code: Code, field: &str| {
            let reason = structured(raw.as_bytes()).err().unwrap();
            assert_eq!((reason.code, reason.field.as_str()), (code, field), "{raw}");
        };
        check(r#"{"specversion":"1.0","id":"1","source":"s"}"#, Code::EnvelopeInvalid, "/type");
        check(r#"{"specversion":"0.3","id":"1"}"#, Code::EnvelopeInvalid, "/specversion");
        check(&format!(r#"{{{CONTEXT},"id":"8"}}"#), Code::EnvelopeInvalid, "/id");
        check(
            &format!(r#"{{{CONTEXT},"data":1,"data_base64":""}}"#),
            Code::EnvelopeInvalid,
            "/data_base64",
        );
        check("[]", Code::NotAnObject, "");
        check("{", Code::InvalidJson, "");
    }

    #[test]
    fn attributes_in_headers_are_decoded_once() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-type", "t"),
            ("ce-source", "\"a \\\"b\\\"\""),
            ("ce-id", "Euro%20%E2%82%AC%2525"),
            ("content-type", "application/json; charset=utf-8"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let envelope = binary(&headers, br#" {"a":1} "#).unwrap();
        assert_eq!(envelope.id, "a \"b\" Euro \u{20ac}%25");
        assert!(text(&envelope).starts_with(r#"{"a":1,"cloudevent":{"specversion":"1.0","#));
        headers.insert("content-type", "text/plain".parse().unwrap());
        assert!(text(&binary(&headers, b"x\"y").unwrap()).starts_with(r#"{"data":"x\"y","#));
        headers.insert("content-type", "image/png".parse().unwrap());
        assert!(text(&binary(&headers, b"\x01").unwrap()).starts_with(r#"{"data_base64":"AQ==","#));
        headers.insert("ce-id", "%ff".parse().unwrap());
        assert_eq!(binary(&headers, b"").err().unwrap().field, "/id");
    }

    #[test]
    fn base64_is_as_rfc_4648_has_it() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
