//! Our own protocol: JSON object, array or NDJSON on `POST /v1/events`.

use std::ops::ControlFlow;

use http::{Method, StatusCode, request::Parts};
use serde::Serialize;

use super::{
    Arrived, Call, DecodeFault, Found, OWN_LOGIN, Outcomes, Place, Protocol, Route, Tells,
};
use crate::{
    edge::{
        answer::{self, Answer, ItemError},
        head,
        problem::Problem,
    },
    json::trim,
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "events",
    routes: ROUTES,
    probes: &[],
    login: OWN_LOGIN,
    cors: None,
    media_types: "application/json, application/x-ndjson",
    takes: |parts| form(parts).is_some(),
    // X-Event-Type is for events that name no type themselves, so it settles nothing.
    only_type: |_| None,
    decode,
    tells: Tells::Reasons(ERRORS_MAX),
    encode,
    refuse: answer::refuse,
};

/// How many reasons an answer lists.
pub(super) const ERRORS_MAX: usize = 100;

pub(super) const ROUTES: &[Route] = &[Route { methods: &[Method::POST], path: "/v1/events" }];

/// The longest `Idempotency-Key`, so that an id made from it stays within 512 bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 500;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Lines,
}

fn form(parts: &Parts) -> Option<Form> {
    let plain = head::charset(&parts.headers).is_none_or(|c| c == "utf-8" || c == "us-ascii");
    match head::media_type(&parts.headers)?.as_str() {
        "application/json" if plain => Some(Form::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" if plain => {
            Some(Form::Lines)
        }
        _ => None,
    }
}

/// What the head says for events that do not say it themselves.
struct Defaults<'a> {
    event_type: Option<std::borrow::Cow<'a, str>>,
    idempotency_key: Option<&'a str>,
}

impl<'a> Defaults<'a> {
    fn read(parts: &'a Parts) -> Result<Self, String> {
        let query = head::query(parts, "event_type")?;
        let event_type = head::single(&parts.headers, "x-event-type")?.map(Into::into).or(query);
        let key = head::single(&parts.headers, "idempotency-key")?;
        // The draft has it in quotes, most clients do not.
        let key = key.map(|text| {
            text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text)
        });
        match key.map(str::len) {
            Some(0) => Err("Idempotency-Key is empty".to_owned()),
            Some(n) if IDEMPOTENCY_KEY_BYTES_MAX < n => Err(format!(
                "Idempotency-Key has {n} bytes; at most {IDEMPOTENCY_KEY_BYTES_MAX} are taken"
            )),
            _ => Ok(Self { event_type, idempotency_key: key }),
        }
    }
}

/// Hands out items with the head's defaults, counting them.
struct Feed<'a, 'f> {
    defaults: Defaults<'a>,
    index: usize,
    id: String,
    each: &'f mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
}

impl Feed<'_, '_> {
    fn item(&mut self, raw: &[u8], place: Place) -> ControlFlow<()> {
        use std::fmt::Write;
        self.id.clear();
        if let Some(key) = self.defaults.idempotency_key {
            // Writing to a String cannot fail.
            let _ = write!(self.id, "{key}/{}", self.index);
        }
        self.index += 1;
        let item = Item {
            raw,
            event_type: self.defaults.event_type.as_deref(),
            event_id: self.defaults.idempotency_key.map(|_| self.id.as_str()),
            event_time: ItemTime::None,
            reserved: true,
            source_name: None,
            map_names: false,
        };
        (self.each)(Arrived { place, found: Found::Item(item) })
    }
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let defaults =
        Defaults::read(parts).map_err(|text| DecodeFault::new(Problem::BAD_REQUEST, text))?;
    let mut feed = Feed { defaults, index: 0, id: String::new(), each };
    match form(parts) {
        Some(Form::Lines) => {
            lines(body, |line, place| feed.item(line, place));
            Ok(())
        }
        Some(Form::Json) | None => json(body, &mut feed),
    }
}

/// Each line that is not empty.
pub(super) fn lines(body: &[u8], mut each: impl FnMut(&[u8], Place) -> ControlFlow<()>) {
    let mut rest = body;
    let mut number = 0;
    while !rest.is_empty() {
        let (line, after) =
            match memchr::memchr(b'\n', rest).and_then(|at| rest.split_at_checked(at)) {
                Some((line, after)) => (line, after.get(1..).unwrap_or_default()),
                None => (rest, &[][..]),
            };
        rest = after;
        number += 1;
        let (_, line) = trim(line);
        if !line.is_empty() && each(line, Place::Line(number)).is_break() {
            return;
        }
    }
}

fn json(body: &[u8], feed: &mut Feed<'_, '_>) -> Result<(), DecodeFault> {
    let (start, raw) = trim(body);
    match raw.first() {
        Some(b'[') => {
            for element in crate::json::split_array(raw) {
                let (at, element) = element.map_err(|fault| not_json(start, &fault))?;
                if feed.item(element, Place::Byte(start + at)).is_break() {
                    return Ok(());
                }
            }
            Ok(())
        }
        Some(_) => {
            let _ = feed.item(raw, Place::Byte(start));
            Ok(())
        }
        None => Ok(()),
    }
}

fn not_json(start: usize, fault: &crate::json::JsonError) -> DecodeFault {
    let hint = "send one JSON object, an array of objects, or one object a line as \
                application/x-ndjson";
    let detail = format!("{fault} (counted from byte {start} of the body); {hint}");
    DecodeFault::new(Problem::BODY_NOT_JSON, detail)
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    request_id: &'a str,
    accepted: u64,
    dead_lettered: u64,
    deduplicated: u64,
    rejected: u64,
    errors: &'a [ItemError],
    errors_truncated: bool,
}

pub(super) fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    let body = AnswerJson {
        request_id: call.request_id,
        accepted: outcomes.accepted,
        dead_lettered: outcomes.dead_lettered,
        deduplicated: outcomes.deduplicated,
        rejected: outcomes.rejected,
        errors: &outcomes.errors,
        errors_truncated: outcomes.errors_truncated,
    };
    answer::json(StatusCode::OK, "application/json", &body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the body's items are and where they stand.
    fn items(media_type: &str, body: &[u8]) -> Result<Vec<(Place, Vec<u8>)>, DecodeFault> {
        let request = http::Request::post("/v1/events").header("content-type", media_type);
        let parts = request.body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body, &mut |arrived| {
            if let Found::Item(item) = arrived.found {
                found.push((arrived.place, item.raw.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    #[test]
    fn places_are_lines_and_bytes_of_the_body() {
        let lines = items("application/x-ndjson", b"\n{}\r\n \r\n\n{\"a\":1}").unwrap();
        let expected =
            vec![(Place::Line(2), b"{}".to_vec()), (Place::Line(5), b"{\"a\":1}".to_vec())];
        assert_eq!(lines, expected);
        let array = items("application/json", b"  [ {}, 1]\n").unwrap();
        assert_eq!(array, vec![(Place::Byte(4), b"{}".to_vec()), (Place::Byte(8), b"1".to_vec())]);
        let object = items("application/json", b"\n {\"a\":[]} ").unwrap();
        assert_eq!(object, vec![(Place::Byte(2), b"{\"a\":[]}".to_vec())]);
    }

    #[test]
    fn a_form_feed_is_no_white_space_of_json() {
        let check = |media_type: &str, body: &str, expected: &str| {
            let found = items(media_type, body.as_bytes()).unwrap();
            let raws: Vec<_> = found.iter().map(|(_, raw)| raw.as_slice()).collect();
            assert_eq!(raws, [expected.as_bytes()], "{body:?}");
        };
        check("application/x-ndjson", "\x0c", "\x0c");
        check("application/x-ndjson", " {}\x0c\n", "{}\x0c");
        check("application/json", " \x0c{} ", "\x0c{}");
        check("application/json", "[ 1\x0c ]", "1\x0c");
    }

    #[test]
    fn a_broken_array_is_refused_as_a_whole() {
        for body in ["[{}", "[{},]", "[{}] x", "[,{}]", "[\"a]"] {
            let fault = items("application/json", body.as_bytes()).unwrap_err();
            assert_eq!(fault.problem, Problem::BODY_NOT_JSON, "{body}");
        }
    }

    #[test]
    fn decoding_stops_when_told() {
        let request = http::Request::post("/").header("content-type", "application/x-ndjson");
        let parts = request.body(()).unwrap().into_parts().0;
        let mut seen = 0;
        decode(&parts, b"1\n2\n3\n", &mut |_| {
            seen += 1;
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(seen, 1);
    }

    proptest! {
        #[test]
        fn lines_come_back_in_order_whatever_ends_them(
            texts in prop::collection::vec("[!-~é]{1,20}", 0..20),
            end in prop::sample::select(vec!["\n", "\r\n", "\n\n", " \r\n \n"]),
        ) {
            let found = items("application/x-ndjson", texts.join(end).as_bytes()).unwrap();
            let found: Vec<_> = found.into_iter().map(|(_, raw)| raw).collect();
            prop_assert_eq!(found, texts.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>());
        }

        #[test]
        fn garbage_never_panics(body: Vec<u8>) {
            for media_type in ["application/json", "application/x-ndjson"] {
                let _ = items(media_type, &body);
            }
        }
    }
}
