//! Answers as Elasticsearch's clients read them: one of each document, and what a refusal says.

use std::iter::once;

use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};
use serde::{Serialize, Serializer};
use serde_json::json;
use tidegate_event::{Code, record::generated_id};

use super::{Notes, Single, filter::Filter, is_bulk, lines::Op};
use crate::{
    edge::{
        answer::{self, Answer, ItemError, Kind, Refusal},
        problem::Problem,
        protocol::{Call, Outcomes, Slot},
    },
    shed::ShedReason,
};

const PRODUCT: HeaderName = HeaderName::from_static("x-elastic-product");
const REJECTED: &str = "es_rejected_execution_exception";

/// The version of the API that a client asks to be compatible with, 7, 8 or 9.
pub(super) fn compatible_with(parts: &Parts) -> Option<u8> {
    [header::ACCEPT, header::CONTENT_TYPE].iter().find_map(|name| {
        let text = parts.headers.get(name)?.to_str().ok()?;
        let (_, version) = text.split_once("compatible-with=")?;
        let version = version.trim_start_matches('"').bytes().next()?;
        (b'7'..=b'9').contains(&version).then(|| version - b'0')
    })
}

/// An answer under the name that the clients look for, in the media type that they asked for.
fn branded(parts: &Parts, mut answer: Answer) -> Answer {
    let media_type = match compatible_with(parts) {
        Some(7) => "application/vnd.elasticsearch+json;compatible-with=7",
        Some(8) => "application/vnd.elasticsearch+json;compatible-with=8",
        Some(_) => "application/vnd.elasticsearch+json;compatible-with=9",
        None => "application/json",
    };
    let headers = answer.headers_mut();
    headers.insert(PRODUCT, HeaderValue::from_static("Elasticsearch"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// `body`, or what the client wants of it.
pub(super) fn say(parts: &Parts, status: StatusCode, body: &impl Serialize) -> Answer {
    let filtered = Filter::of(parts).and_then(|filter| {
        let whole = serde_json::to_value(body).ok()?;
        Some(answer::json(status, "application/json", &filter.apply(&whole)))
    });
    let said = filtered.unwrap_or_else(|| answer::json(status, "application/json", body));
    branded(parts, said)
}

/// A text for people.
pub(super) fn plain(parts: &Parts, text: &'static str) -> Answer {
    let mut answer = branded(parts, Answer::new(bytes::Bytes::from_static(text.as_bytes()).into()));
    let media_type = HeaderValue::from_static("text/plain; charset=UTF-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, media_type);
    answer
}

/// An answer to a whole request that failed, with our own code beside Elasticsearch's words.
pub(super) fn failure(
    status: StatusCode,
    kind: &str,
    reason: &str,
    code: &str,
) -> serde_json::Value {
    let cause = json!({ "type": kind, "reason": reason });
    json!({
        "error": { "root_cause": [cause], "type": kind, "reason": reason },
        "status": status.as_u16(),
        "code": code,
    })
}

#[derive(Serialize)]
struct Shards {
    total: u8,
    successful: u8,
    failed: u8,
}

/// Durable on the log, which has no replicas of its own to tell of.
const SHARDS: Shards = Shards { total: 1, successful: 1, failed: 0 };

#[derive(Serialize)]
struct Error<'a> {
    r#type: &'static str,
    reason: String,
    index: &'a str,
}

/// What became of one document.
#[derive(Serialize)]
struct Result<'a> {
    #[serde(rename = "_index")]
    index: &'a str,
    #[serde(rename = "_id", skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_store: Option<&'static str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error<'a>>,
}

/// What clients want to read of a document that is there. Its version never changes, and there is no sequence to tell.
#[derive(Serialize)]
struct Written {
    #[serde(rename = "_version")]
    version: u8,
    result: &'static str,
    #[serde(rename = "_shards")]
    shards: Shards,
    #[serde(rename = "_seq_no")]
    seq_no: u8,
    #[serde(rename = "_primary_term")]
    primary_term: u8,
}

impl<'a> Result<'a> {
    fn of(op: Op, index: &'a str, id: Option<&'a str>, slot: Slot<'_>) -> Self {
        let written = |result| {
            Some(Written { version: 1, result, shards: SHARDS, seq_no: 0, primary_term: 1 })
        };
        let base = Self { index, id, written: None, failure_store: None, status: 201, error: None };
        match slot {
            Slot::Accepted => Self { written: written("created"), ..base },
            Slot::DeadLettered(_) => {
                Self { written: written("created"), failure_store: Some("used"), ..base }
            }
            Slot::Duplicate if op == Op::Create => {
                let reason = format!(
                    "[{}]: version conflict, document already exists (current version [1])",
                    id.unwrap_or_default()
                );
                let r#type = "version_conflict_engine_exception";
                Self { status: 409, error: Some(Error { r#type, reason, index }), ..base }
            }
            Slot::Duplicate => Self { status: 200, written: written("noop"), ..base },
            Slot::Rejected(error) => {
                let (status, r#type) = fault(error);
                let reason = format!("{}: {}", error.code, error.message);
                Self { status, error: Some(Error { r#type, reason, index }), ..base }
            }
        }
    }
}

/// Never one that clients take for overload: the same document would fail again.
fn fault(error: &ItemError) -> (u16, &'static str) {
    let is = |code: Code| error.code == code.as_str();
    if is(Code::TypeForbidden) {
        (403, "security_exception")
    } else if is(Code::EnvelopeInvalid) || is(Code::TooManyTypes) || is(Code::EventTooLarge) {
        (400, "illegal_argument_exception")
    } else {
        (400, "document_parsing_exception")
    }
}

/// An item under the name of its operation.
struct Named<'a>(Op, Result<'a>);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(once((self.0.as_str(), &self.1)))
    }
}

#[derive(Serialize)]
struct Bulk<'a> {
    errors: bool,
    took: u64,
    items: Vec<Named<'a>>,
}

pub(super) fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    if is_bulk(call.parts) { bulk(call, outcomes) } else { single(call, outcomes) }
}

fn bulk(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    let Some(noted) = Notes::get(call.parts) else {
        // Cannot be: what was decoded to its end is noted.
        let reason = "what became of the documents is not known any more; some may be kept";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return branded_failure(call, status, "exception", reason, Problem::INTERNAL.code);
    };
    let made: Vec<_> = (0..).zip(noted.iter()).map(|(at, (.., id))| made(call, at, id)).collect();
    let slots = outcomes.slots().zip(noted.iter()).zip(&made);
    let items: Vec<_> = slots
        .map(|((slot, (op, index, id)), made)| {
            let kept = !matches!(slot, Slot::Rejected(_));
            let id = id.or(made.as_deref().filter(|_| kept));
            Named(op, Result::of(op, index, id, slot))
        })
        .collect();
    let errors = items.iter().any(|Named(_, result)| result.error.is_some());
    say(call.parts, StatusCode::OK, &Bulk { errors, took: Notes::took(call.parts), items })
}

/// The id of an event that came without one.
fn made(call: &Call<'_>, at: u32, id: Option<&str>) -> Option<String> {
    id.is_none().then(|| generated_id(call.base_id, at))
}

fn single(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    let Single { op, index, id } = Single::of(call.parts);
    let made = made(call, 0, id.as_deref());
    let Some(slot) = outcomes.slots().next() else {
        // Cannot be: a body without a document is refused.
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return branded_failure(call, status, "exception", "no document", Problem::INTERNAL.code);
    };
    let result = Result::of(op, &index, id.as_deref().or(made.as_deref()), slot);
    let status = StatusCode::from_u16(result.status).unwrap_or(StatusCode::BAD_REQUEST);
    match (&result.error, slot) {
        (Some(error), slot) => {
            let code = match slot {
                Slot::Rejected(error) => error.code,
                Slot::Accepted | Slot::DeadLettered(_) | Slot::Duplicate => "duplicate",
            };
            branded_failure(call, status, error.r#type, &error.reason, code)
        }
        (None, _) => {
            // One document's answer has its status in the head alone.
            let mut body = json!(result);
            if let Some(members) = body.as_object_mut() {
                members.shift_remove("status");
            }
            say(call.parts, status, &body)
        }
    }
}

fn branded_failure(
    call: &Call<'_>,
    status: StatusCode,
    kind: &str,
    reason: &str,
    code: &str,
) -> Answer {
    let body = failure(status, kind, reason, code);
    branded(call.parts, answer::json(status, "application/json", &body))
}

/// Overload is told of each document, once they are known: only so do all clients wait and send again. Of a body that
/// was not read it is 503, since some take a 429 of the whole for the end.
pub(super) fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    if let Kind::Shed(reason, _) = refusal.kind
        && is_bulk(call.parts)
    {
        if let Some(answer) = each_refused(call, refusal, reason) {
            return answer;
        }
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return whole(call, refusal, status, REJECTED);
    }
    let status = refusal.status_code();
    let kind = match refusal.kind {
        Kind::Shed(..) => REJECTED,
        Kind::Problem(problem) => match problem.status {
            401 | 403 => "security_exception",
            413 => "content_too_long_exception",
            415 => "media_type_header_exception",
            500.. => "exception",
            _ if problem == Problem::BODY_EMPTY => "parse_exception",
            _ => "illegal_argument_exception",
        },
    };
    whole(call, refusal, status, kind)
}

fn whole(call: &Call<'_>, refusal: &Refusal, status: StatusCode, kind: &str) -> Answer {
    let mut answer = branded_failure(call, status, kind, &refusal.detail, refusal.code());
    answer::describe(refusal, &mut answer);
    answer
}

/// `None` where the documents are not known, or may have been kept.
fn each_refused(call: &Call<'_>, refusal: &Refusal, reason: ShedReason) -> Option<Answer> {
    let noted = Notes::get(call.parts)?;
    let items = call.items.filter(|_| reason != ShedReason::OutcomeUnknown)?;
    if u64::try_from(noted.len()) != Ok(items) {
        return None;
    }
    let items: Vec<_> = noted
        .iter()
        .map(|(op, index, id)| {
            let reason = format!("{}: {}", refusal.code(), refusal.detail);
            let error = Some(Error { r#type: REJECTED, reason, index });
            let none = Result { index, id, written: None, failure_store: None, status: 429, error };
            Named(op, none)
        })
        .collect();
    let body = Bulk { errors: true, took: Notes::took(call.parts), items };
    let mut answer = say(call.parts, StatusCode::OK, &body);
    answer::describe(refusal, &mut answer);
    Some(answer)
}
