//! Splunk's HTTP Event Collector: stacked JSON objects, and raw lines.
//!
//! The event is the fields of `event` where that is an object, else `{"event": …}`, with one more field
//! `hec` that holds the rest: `time`, `host`, `source`, `sourcetype`, `index`, `fields`.

use std::ops::ControlFlow;

use http::{Method, StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use tidegate_event::{Code, Reason};
use url::form_urlencoded;

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Probe, Protocol, Route, Tells,
    events,
    members::{Members, begin_event, push_member, unquoted},
    naming::named_by,
    whole::unkept,
};
use crate::{
    edge::{
        answer::{self, Answer, Kind, Refusal},
        credentials::Carrier,
        problem::Problem,
    },
    json::{quote, trim},
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "hec",
    routes: ROUTES,
    probes: &[
        Probe { methods: LOOK, path: "/services/collector/health", answer: health },
        Probe { methods: LOOK, path: "/services/collector/health/1.0", answer: health },
    ],
    login: Login {
        carriers: &[Carrier::Splunk, Carrier::BasicPassword, Carrier::Bearer],
        in_body: None,
        may_be_open: false,
        challenge: "Splunk realm=\"tidegate\"",
    },
    cors: None,
    media_types: "any",
    takes: |_| true,
    only_type: |parts| named_by(parts, TYPE).is_none().then(|| TYPE.to_owned()),
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const POST: &[Method] = &[Method::POST];
const LOOK: &[Method] = &[Method::GET, Method::HEAD];
const ROUTES: &[Route] = &[
    Route { methods: POST, path: "/services/collector" },
    Route { methods: POST, path: "/services/collector/event" },
    Route { methods: POST, path: "/services/collector/event/1.0" },
    Route { methods: POST, path: "/services/collector/raw" },
    Route { methods: POST, path: "/services/collector/raw/1.0" },
];

/// The type of events that nothing else names.
const TYPE: &str = "hec";
/// What may name an event's type instead.
pub(super) const NAMES: &[&str] = &["host", "index", "source", "sourcetype"];
const BLANK: &str = "the member `event` is blank";

/// What the collector's clients know answers by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said(u8, &'static str);

const SUCCESS: Said = Said(0, "Success");
const TOKEN_REQUIRED: Said = Said(2, "Token is required");
const INVALID_AUTHORIZATION: Said = Said(3, "Invalid authorization");
const INVALID_TOKEN: Said = Said(4, "Invalid token");
const NO_DATA: Said = Said(5, "No data");
const INVALID_FORMAT: Said = Said(6, "Invalid data format");
const INCORRECT_INDEX: Said = Said(7, "Incorrect index");
const INTERNAL: Said = Said(8, "Internal server error");
const BUSY: Said = Said(9, "Server is busy");
const EVENT_REQUIRED: Said = Said(12, "Event field is required");
const EVENT_BLANK: Said = Said(13, "Event field cannot be blank");
const HEALTHY: Said = Said(17, "HEC is healthy");
const UNHEALTHY: Said = Said(18, "HEC is unhealthy, queues are full");
const TOO_LARGE: Said = Said(27, "Request entity too large");

#[derive(Serialize)]
struct Body<'a> {
    text: &'static str,
    code: u8,
    #[serde(rename = "invalid-event-number", skip_serializing_if = "Option::is_none")]
    invalid_event_number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl Said {
    fn body(self, invalid_event_number: Option<u32>, detail: Option<&str>) -> Body<'_> {
        Body { text: self.1, code: self.0, invalid_event_number, detail }
    }
}

fn health(_: &Parts, well: bool) -> Answer {
    let (status, said) = match well {
        true => (StatusCode::OK, HEALTHY),
        false => (StatusCode::SERVICE_UNAVAILABLE, UNHEALTHY),
    };
    answer::json(status, "application/json", &said.body(None, None))
}

fn encode(_: &Call<'_>, outcomes: &Outcomes) -> Answer {
    let Some(unkept) = unkept(outcomes) else {
        return answer::json(StatusCode::OK, "application/json", &SUCCESS.body(None, None));
    };
    let said = match unkept.first.code {
        code if code == Code::TypeForbidden.as_str() => INCORRECT_INDEX,
        code if code != Code::EnvelopeInvalid.as_str() => INVALID_FORMAT,
        _ if unkept.first.message == BLANK => EVENT_BLANK,
        _ => EVENT_REQUIRED,
    };
    let body = said.body(Some(unkept.first.index), Some(&unkept.message));
    answer::json(unkept.status, "application/json", &body)
}

fn refuse(_: &Call<'_>, refusal: &Refusal) -> Answer {
    let problem = match refusal.kind {
        Kind::Shed(..) => None,
        Kind::Problem(problem) => Some(problem),
    };
    let said = match problem {
        None => BUSY,
        Some(Problem::KEY_MISSING) => TOKEN_REQUIRED,
        Some(Problem::KEY_CONFLICT) => INVALID_AUTHORIZATION,
        Some(Problem::KEY_INVALID) => INVALID_TOKEN,
        Some(Problem::TYPES_FORBIDDEN) => INCORRECT_INDEX,
        Some(Problem::BODY_EMPTY) => NO_DATA,
        Some(Problem::INTERNAL) => INTERNAL,
        Some(problem) if problem.status == 413 => TOO_LARGE,
        Some(_) => INVALID_FORMAT,
    };
    let mut answer = answer::refuse_as(refusal, &said.body(None, Some(&refusal.detail)));
    if problem == Some(Problem::KEY_INVALID) {
        // Of a token that is not known clients of the collector expect no 401.
        *answer.status_mut() = StatusCode::FORBIDDEN;
    }
    answer
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    if parts.uri.path().starts_with("/services/collector/raw") {
        raw_lines(parts, body, each);
    } else {
        stacked(body, named_by(parts, TYPE), each);
    }
    Ok(())
}

/// Objects one behind the other, with or without space between them. Behind one that is broken nobody
/// can tell where the next begins.
fn stacked(
    body: &[u8],
    named_by: Option<&str>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) {
    let (start, body) = trim(body);
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
    loop {
        let place = Place::Byte(start + values.byte_offset());
        let flow = match values.next() {
            None => return,
            Some(Ok(value)) => one(place, value.get(), named_by, each),
            Some(Err(error)) => {
                let message = format!("not JSON: {error}; what follows was not looked at");
                let reason = Reason::new(Code::InvalidJson, "", message);
                let _ = each(Arrived { place, found: Found::Rejected(reason) });
                return;
            }
        };
        if flow.is_break() {
            return;
        }
    }
}

fn one(
    place: Place,
    raw: &str,
    named_by: Option<&str>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let invalid = |code, message| {
        let field = if code == Code::EnvelopeInvalid { "/event" } else { "" };
        Found::Rejected(Reason::new(code, field, message))
    };
    let Some(members) = Members::of(raw.as_bytes()) else {
        let message = "the collector takes JSON objects";
        return each(Arrived { place, found: invalid(Code::NotAnObject, message) });
    };
    let found = match members.get("event") {
        None | Some("null") => invalid(Code::EnvelopeInvalid, "the member `event` is missing"),
        Some("\"\"") => invalid(Code::EnvelopeInvalid, BLANK),
        Some(value) => {
            let rest = members.0.iter().filter(|(name, _)| name != "event");
            let rest = rest.map(|(name, value)| (name.as_ref(), value.get()));
            let (event, time) = (event(value, rest), members.get("time"));
            let named = named_by.and_then(|member| members.text(member));
            return hand_over(place, &event, (time, named.as_deref()), each);
        }
    };
    each(Arrived { place, found })
}

fn event<'a>(value: &str, rest: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hec = String::from("{");
    rest.for_each(|(name, value)| push_member(&mut hec, name, value));
    hec.push('}');
    let mut event = begin_event(value, "event");
    push_member(&mut event, "hec", &hec);
    event.push('}');
    event
}

fn hand_over(
    place: Place,
    event: &str,
    (time, named): (Option<&str>, Option<&str>),
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let time = time.filter(|time| *time != "null");
    let plain = time.map(|time| unquoted(time).unwrap_or_else(|| time.to_owned()));
    let event_time = match plain.as_deref().map(|text| (text, micros(text))) {
        None => ItemTime::None,
        Some((_, Some(micros))) => ItemTime::Micros(micros),
        // What is no number of seconds may be RFC 3339, or makes a dead letter that says so.
        Some((text, None)) => ItemTime::Rfc3339(text),
    };
    let item = Item {
        raw: event.as_bytes(),
        event_type: Some(named.filter(|named| !named.is_empty()).unwrap_or(TYPE)),
        event_id: None,
        event_time,
        reserved: false,
        source_name: None,
        map_names: true,
    };
    each(Arrived { place, found: Found::Item(item) })
}

/// Microseconds of decimal seconds, without rounding; digits behind them are cut off.
fn micros(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all(whole) || !all(part) {
        return None;
    }
    let part = part.bytes().chain(std::iter::repeat(b'0')).take(6);
    let part = part.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(part).map(|sum| sign * sum)
}

/// One event a line; what belongs to all of them stands in the query.
fn raw_lines(parts: &Parts, body: &[u8], each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>) {
    let mut rest: Vec<(String, String)> = Vec::new();
    for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        if matches!(&*name, "time" | "host" | "source" | "sourcetype" | "index")
            && rest.iter().all(|(known, _)| *known != name)
        {
            let mut text = String::new();
            quote(&value, &mut text);
            rest.push((name.into_owned(), text));
        }
    }
    let of =
        |wanted: &str| rest.iter().find(|(name, _)| name == wanted).map(|(_, text)| text.as_str());
    let time = of("time");
    let named = named_by(parts, TYPE).and_then(of).and_then(unquoted);
    events::lines(body, |line, place| {
        let Ok(line) = std::str::from_utf8(line) else {
            let reason = Reason::new(Code::InvalidUtf8, "", "the line is no UTF-8");
            return each(Arrived { place, found: Found::Rejected(reason) });
        };
        let mut text = String::with_capacity(line.len() + 2);
        quote(line, &mut text);
        let rest = rest.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        hand_over(place, &event(&text, rest), (time, named.as_deref()), each)
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each item's time and bytes, or the code of what is wrong with it.
    fn items(uri: &str, body: &str) -> Vec<Result<(Option<i64>, String), Code>> {
        let parts = http::Request::post(uri).body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body.as_bytes(), &mut |arrived| {
            found.push(match arrived.found {
                Found::Rejected(reason) => Err(reason.code),
                Found::Item(item) => {
                    let time = match item.event_time {
                        ItemTime::Micros(micros) => Some(micros),
                        ItemTime::Rfc3339(_) => Some(-1),
                        ItemTime::None => None,
                    };
                    Ok((time, String::from_utf8(item.raw.to_vec()).unwrap()))
                }
            });
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    const EVENT: &str = "/services/collector/event";

    #[test]
    fn stacked_objects_are_taken_apart_with_and_without_space() {
        let body = r#"{"event":{"a": 1.50},"time":1772366400.25,"host":"h"}{"event":"x","time":"1772366400"}
            {"event":7, "fields":{"k":"v"}}"#;
        let expected = [
            (Some(1_772_366_400_250_000), r#"{"a": 1.50,"hec":{"time":1772366400.25,"host":"h"}}"#),
            (Some(1_772_366_400_000_000), r#"{"event":"x","hec":{"time":"1772366400"}}"#),
            (None, r#"{"event":7,"hec":{"fields":{"k":"v"}}}"#),
        ];
        let expected: Vec<_> = expected.map(|(time, raw)| Ok((time, raw.to_owned()))).into();
        assert_eq!(items(EVENT, body), expected);
    }

    #[test]
    fn what_is_no_event_is_rejected_and_a_time_that_is_none_stays_one() {
        let event =
            |text: &str| items(EVENT, text).into_iter().map(|item| item.err()).collect::<Vec<_>>();
        assert_eq!(event("{}"), [Some(Code::EnvelopeInvalid)]);
        assert_eq!(event(r#"{"event":""}"#), [Some(Code::EnvelopeInvalid)]);
        assert_eq!(event("[]"), [Some(Code::NotAnObject)]);
        assert_eq!(event(r#"{"event":1}{"event":2"#), [None, Some(Code::InvalidJson)]);
        assert_eq!(event("  "), []);
        let time = |text: &str| items(EVENT, &format!(r#"{{"event":1,"time":{text}}}"#));
        assert!(matches!(time("\"soon\"").as_slice(), [Ok((Some(-1), _))]));
        assert!(matches!(time("null").as_slice(), [Ok((None, _))]));
    }

    #[test]
    fn raw_lines_have_what_the_query_says() {
        let found = items("/services/collector/raw?host=a%20b&time=5.5&x=1", "one \"1\"\r\n\ntwo");
        let expected = |line: &str| {
            Ok((
                Some(5_500_000),
                format!(r#"{{"event":{line},"hec":{{"host":"a b","time":"5.5"}}}}"#),
            ))
        };
        assert_eq!(found, [expected(r#""one \"1\"""#), expected("\"two\"")]);
    }

    #[test]
    fn a_member_names_the_type_where_the_configuration_says_so() {
        use std::{collections::BTreeMap, sync::Arc};
        let types = |uri: &str, body: &str| {
            let mut parts = http::Request::post(uri).body(()).unwrap().into_parts().0;
            let names = BTreeMap::from([(TYPE.to_owned(), "sourcetype".to_owned())]);
            parts.extensions.insert(super::super::naming::Naming(Arc::new(names)));
            assert_eq!((PROTOCOL.only_type)(&parts), None);
            let mut found = Vec::new();
            decode(&parts, body.as_bytes(), &mut |arrived| {
                let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
                found.push(item.event_type.unwrap().to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
            found
        };
        let body = r#"{"event":1,"sourcetype":"access log"}{"event":2}{"event":3,"sourcetype":7}"#;
        assert_eq!(types(EVENT, body), ["access log", "hec", "hec"]);
        let raw = "/services/collector/raw?sourcetype=syslog&host=a";
        assert_eq!(types(raw, "one\ntwo"), ["syslog", "syslog"]);
        assert_eq!(types("/services/collector/raw", "one"), ["hec"]);
    }

    proptest! {
        #[test]
        fn seconds_are_read_without_rounding(micros_since in -1_000_000_000_000_000i64..4_000_000_000_000_000) {
            let (sign, size) = (if micros_since < 0 { "-" } else { "" }, micros_since.unsigned_abs());
            let text = format!("{sign}{}.{:06}", size / 1_000_000, size % 1_000_000);
            prop_assert_eq!(micros(&text), Some(micros_since));
            prop_assert_eq!(micros(&format!("{text}999")), Some(micros_since));
        }

        #[test]
        fn any_text_is_a_time_or_none(text in ".{0,30}") {
            let _ = micros(&text);
        }
    }
}
