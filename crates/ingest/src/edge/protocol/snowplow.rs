//! Snowplow's tracker protocol: `POST …/tp2`, and the pixel `GET /i`.
//!
//! By Snowplow's documentation "Snowplow tracker protocol". The event is the parameters as they came, text all of them,
//! but that what is wrapped up is unwrapped: `ue_pr` and `ue_px` (base64) become `unstruct_event`, `co` and `cx`
//! (base64) become `contexts`, as Snowplow's own enriched events have them.

use std::{borrow::Cow, ops::ControlFlow};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::PAD},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use serde_json::json;
use url::form_urlencoded;

use super::{
    Arrived, Call, DecodeFault, Found, Login, Outcomes, Place, Protocol, Route, Tells,
    members::{Members, push_member, unquoted},
    whole::{batch, unkept},
};
use crate::{
    edge::{
        answer::{self, Answer, Refusal},
        cors::Cors,
        credentials::Carrier,
    },
    json::quote,
    normalize::{Item, ItemTime},
};

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "snowplow",
    routes: ROUTES,
    probes: &[],
    login: Login {
        carriers: &[Carrier::Bearer, Carrier::ApiKeyHeader, Carrier::BasicPassword],
        in_body: None,
        may_be_open: true,
        challenge: "Bearer realm=\"tidegate\"",
    },
    // The JavaScript tracker sends cookies along unless told otherwise.
    cors: Some(Cors { credentials: true }),
    media_types: "any",
    takes: |_| true,
    only_type: |_| None,
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

const ROUTES: &[Route] = &[
    Route { methods: &[Method::POST, Method::GET], path: "/com.snowplowanalytics.snowplow/tp2" },
    Route { methods: &[Method::GET], path: "/i" },
];

/// One transparent pixel.
const PIXEL: &[u8] =
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\
    \x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x01D\x00;";

const UNSTRUCT: &str = "unstruct_event";
const CONTEXTS: &str = "contexts";

/// Trackers pad or do not.
const LENIENT: GeneralPurposeConfig = PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    if parts.method == Method::GET {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes()).map(|(name, value)| {
            let mut text = String::with_capacity(value.len() + 2);
            quote(&value, &mut text);
            (name, Cow::Owned(text))
        });
        let pairs: Vec<_> = pairs.collect();
        // Without a parameter there is no event, and the answer says so.
        if !pairs.is_empty() {
            let _ = payload(&pairs, Place::Byte(0), each);
        }
        return Ok(());
    }
    batch(body, "data", |raw, place| match Members::of(raw) {
        Some(members) => {
            let pairs = members.0.into_iter().map(|(name, value)| (name, value.get().into()));
            payload(&pairs.collect::<Vec<_>>(), place, each)
        }
        // Whoever judges it says what is wrong.
        None => each(Arrived { place, found: Found::Item(item(raw, None, None, ItemTime::None)) }),
    })
}

/// One event's parameters, their values as JSON.
fn payload(
    pairs: &[(Cow<'_, str>, Cow<'_, str>)],
    place: Place,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let of = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted);
    let text = |wanted| {
        let (_, value) = of(wanted)?;
        let text = unquoted(value).unwrap_or_else(|| value.clone().into_owned());
        Some(text).filter(|text| !text.is_empty() && text != "null")
    };
    let mut event = String::from("{");
    let mut unstruct = None;
    for (name, value) in pairs {
        let (place, plain) = match &**name {
            "ue_pr" => (UNSTRUCT, unquoted(value)),
            "ue_px" => (UNSTRUCT, unquoted(value).and_then(|text| from_base64(&text))),
            "co" => (CONTEXTS, unquoted(value)),
            "cx" => (CONTEXTS, unquoted(value).and_then(|text| from_base64(&text))),
            name => (name, None),
        };
        match plain.filter(|text| is_object(text)) {
            Some(plain) => {
                push_member(&mut event, place, plain.trim_ascii());
                unstruct = unstruct.or((place == UNSTRUCT).then_some(plain));
            }
            // What cannot be unwrapped stays as it came.
            None => push_member(&mut event, name, value),
        }
    }
    event.push('}');
    let event_type = text("e").map(|kind| event_type(&kind, unstruct.as_deref()));
    let (id, time) = (text("eid"), text("ttm").or_else(|| text("dtm")));
    let time = match time.as_deref().map(|text| (text, micros(text))) {
        None => ItemTime::None,
        Some((_, Some(micros))) => ItemTime::Micros(micros),
        // What is no number makes a dead letter that says so.
        Some((text, None)) => ItemTime::Rfc3339(text),
    };
    let item = item(event.as_bytes(), event_type.as_deref(), id.as_deref(), time);
    each(Arrived { place, found: Found::Item(item) })
}

fn item<'a>(
    raw: &'a [u8],
    event_type: Option<&'a str>,
    event_id: Option<&'a str>,
    event_time: ItemTime<'a>,
) -> Item<'a> {
    Item {
        raw,
        event_type,
        event_id,
        event_time,
        reserved: false,
        source_name: None,
        map_names: true,
    }
}

/// What an event of this kind (`e`) is called; a self-describing one as its schema is.
fn event_type(kind: &str, unstruct: Option<&str>) -> String {
    let name = match kind {
        "pv" => "page_view".into(),
        "pp" => "page_ping".into(),
        "se" => "struct".into(),
        "tr" => "transaction".into(),
        "ti" => "transaction_item".into(),
        "ue" => unstruct.and_then(schema_name).map_or(Cow::Borrowed("unstruct"), Cow::Owned),
        other => Cow::Borrowed(other),
    };
    format!("snowplow.{name}")
}

/// `link_click` of an event under `iglu:com.snowplowanalytics.snowplow/link_click/jsonschema/1-0-1`.
fn schema_name(unstruct: &str) -> Option<String> {
    let data = Members::of(unstruct.as_bytes())?.get("data")?;
    let schema = Members::of(data.as_bytes())?.text("schema")?;
    let name = schema.strip_prefix("iglu:")?.split('/').nth(1)?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn from_base64(text: &str) -> Option<String> {
    let bytes = URL_SAFE.decode(text).or_else(|_| STANDARD.decode(text)).ok()?;
    String::from_utf8(bytes).ok()
}

fn is_object(text: &str) -> bool {
    text.trim_ascii().starts_with('{')
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// Microseconds of whole milliseconds.
fn micros(text: &str) -> Option<i64> {
    text.parse::<i64>().ok()?.checked_mul(1_000)
}

fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    if let Some(unkept) = unkept(outcomes) {
        let body = json!({ "code": unkept.first.code, "message": unkept.message });
        return answer::json(unkept.status, "application/json", &body);
    }
    let (media_type, body) = match call.parts.method == Method::GET {
        true => ("image/gif", PIXEL),
        false => ("text/plain; charset=utf-8", b"ok".as_slice()),
    };
    let mut answer = Response::new(Full::new(Bytes::from_static(body)));
    *answer.status_mut() = StatusCode::OK;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    // A pixel that comes from a cache is an event that is lost.
    let never = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    headers.insert(header::CACHE_CONTROL, never);
    answer
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let body = json!({
        "code": refusal.code(),
        "message": refusal.detail,
        "request_id": call.request_id,
    });
    let mut answer = answer::refuse_as(refusal, &body);
    if answer.status() == StatusCode::PAYLOAD_TOO_LARGE {
        // Trackers send again after 413, the same for ever and before all others; not after 400.
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Found4 = (Option<String>, Option<String>, Option<i64>, String);

    fn decoded(request: http::request::Builder, body: &str) -> Result<Vec<Found4>, DecodeFault> {
        let parts = request.body(()).unwrap().into_parts().0;
        let mut found = Vec::new();
        decode(&parts, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let own = |text: Option<&str>| text.map(str::to_owned);
            let time = match item.event_time {
                ItemTime::Micros(micros) => Some(micros),
                ItemTime::Rfc3339(_) => Some(-1),
                ItemTime::None => None,
            };
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            found.push((own(item.event_type), own(item.event_id), time, raw));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn post(body: &str) -> Result<Vec<Found4>, DecodeFault> {
        decoded(http::Request::post("/com.snowplowanalytics.snowplow/tp2"), body)
    }

    fn get(query: &str) -> Vec<Found4> {
        decoded(http::Request::get(format!("/i?{query}")), "").unwrap()
    }

    const CLICK: &str = r#"{"schema":"iglu:com.snowplowanalytics.snowplow/unstruct_event/jsonschema/1-0-0","data":{"schema":"iglu:com.example/link_click/jsonschema/1-0-1","data":{"n": 1.50,"t":"é"}}}"#;

    #[test]
    fn a_post_is_its_payloads_with_what_is_wrapped_up_unwrapped() {
        let wrapped = URL_SAFE.encode(CLICK);
        let body = format!(
            r#"{{"schema":"iglu:x","data":[{{"e":"pv","eid":"e-1","dtm":"1772366400250","url":"http://a/"}},
                {{"e":"ue","ue_px":"{wrapped}","cx":"e30","dtm":"5","ttm":"1772366400000"}}, {{"a":"b"}},7]}}"#
        );
        let found = post(&body).unwrap();
        assert_eq!(
            found,
            [
                (
                    Some("snowplow.page_view".into()),
                    Some("e-1".into()),
                    Some(1_772_366_400_250_000),
                    r#"{"e":"pv","eid":"e-1","dtm":"1772366400250","url":"http://a/"}"#.into()
                ),
                (
                    Some("snowplow.link_click".into()),
                    None,
                    Some(1_772_366_400_000_000),
                    format!(
                        r#"{{"e":"ue","unstruct_event":{CLICK},"contexts":{{}},"dtm":"5","ttm":"1772366400000"}}"#
                    )
                ),
                (None, None, None, r#"{"a":"b"}"#.into()),
                (None, None, None, "7".into()),
            ]
        );
        for broken in ["{}", "[]", r#"{"data":{}}"#, r#"{"data":[1,]}"#, "x"] {
            assert!(post(broken).is_err(), "{broken}");
        }
        assert_eq!(post(r#"{"data":[]}"#), Ok(vec![]));
    }

    #[test]
    fn a_pixel_is_its_query() {
        let wrapped: String = form_urlencoded::byte_serialize(CLICK.as_bytes()).collect();
        let found = get(&format!("e=ue&ue_pr={wrapped}&co=%5B%5D&page=a%20%22b%22+c&dtm=soon"));
        let raw = format!(
            r#"{{"e":"ue","unstruct_event":{CLICK},"co":"[]","page":"a \"b\" c","dtm":"soon"}}"#
        );
        assert_eq!(found, [(Some("snowplow.link_click".into()), None, Some(-1), raw)]);
        assert_eq!(get(""), []);
        assert_eq!(PIXEL.len(), 42);
    }

    #[test]
    fn kinds_have_names_and_what_cannot_be_unwrapped_stays() {
        for (kind, unstruct, expected) in [
            ("pp", None, "snowplow.page_ping"),
            ("se", None, "snowplow.struct"),
            ("tr", None, "snowplow.transaction"),
            ("ti", None, "snowplow.transaction_item"),
            ("new", None, "snowplow.new"),
            ("ue", None, "snowplow.unstruct"),
            ("ue", Some(r#"{"data":{"schema":"iglu:a//b"}}"#), "snowplow.unstruct"),
            ("ue", Some(CLICK), "snowplow.link_click"),
        ] {
            assert_eq!(event_type(kind, unstruct), expected);
        }
        for broken in ["%21%21", "e30x", "W10", "eyJh"] {
            let found = get(&format!("e=ue&ue_px={broken}&cx={broken}"));
            let [(Some(name), None, None, raw)] = &found[..] else { panic!("{found:?}") };
            assert_eq!(name, "snowplow.unstruct");
            assert!(raw.contains(r#""ue_px":""#) && raw.contains(r#""cx":""#), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_an_event_that_is_json(query in "[ -~&&[^#<>\"{}|^`\\\\ ]]{1,60}") {
            for (.., raw) in get(&query) {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&raw).is_ok());
            }
        }

        #[test]
        fn any_object_comes_through_base64(text in ".{0,40}") {
            let object = json!({ "a": text }).to_string();
            let (padded, plain) = (STANDARD.encode(&object), URL_SAFE.encode(&object).replace('=', ""));
            prop_assert_eq!(from_base64(&padded), Some(object.clone()));
            prop_assert_eq!(from_base64(&plain), Some(object));
        }
    }
}
