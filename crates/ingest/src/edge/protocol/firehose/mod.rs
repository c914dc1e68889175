//! Amazon's Firehose API as its SDKs speak it: JSON 1.1, signed (SigV4), the operation in a header.
//!
//! Limits and errors by the "Amazon Data Firehose API Reference". An error for a single record means "send
//! it again" there, so none is told that would be the same next time: a record that can be no event gets a
//! `RecordId` and is a dead letter ([`crate::normalize::unreadable`]).

pub(super) mod http_endpoint;
mod records;
mod streams;

use std::ops::ControlFlow;

use http::{HeaderName, HeaderValue, Method, StatusCode, request::Parts};
use serde_json::{Value, json};
use tidegate_event::Code;

use super::{
    Arrived, Call, DecodeFault, Login, Noted, Outcomes, Place, Protocol, Question, Route, Tells,
    members::Members, whole::unkept,
};
use crate::{
    edge::{
        answer::{self, Answer, Kind, Refusal},
        credentials::Carrier,
        problem::Problem,
    },
    json::split_array,
    shed::ShedReason,
};
use records::Common;

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "firehose",
    routes: &[Route { methods: &[Method::POST], path: "/" }],
    probes: &[],
    login: Login {
        carriers: &[Carrier::SigV4],
        in_body: None,
        may_be_open: false,
        challenge: "AWS4-HMAC-SHA256",
    },
    cors: None,
    media_types: MEDIA_TYPE,
    takes: |parts| operation(parts).is_some(),
    only_type: |_| None,
    decode,
    tells: Tells::EachItem,
    encode,
    refuse,
};

/// All operations but the two that bring records.
pub(super) const QUESTION: Question = Question {
    protocol: PROTOCOL.name,
    asked: |parts| !matches!(operation(parts), Some(PUT_RECORD | PUT_RECORD_BATCH)),
    answer: streams::answer,
};

const MEDIA_TYPE: &str = "application/x-amz-json-1.1";
const PUT_RECORD: &str = "PutRecord";
const PUT_RECORD_BATCH: &str = "PutRecordBatch";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// Records of one request.
const RECORDS_MAX: usize = 500;
/// Bytes of one record, before base64: 1,000 KiB.
const RECORD_BYTES_MAX: usize = 1_000 << 10;
/// Bytes of all records of a request.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// What is asked for, by `X-Amz-Target`.
pub(super) fn operation(parts: &Parts) -> Option<&str> {
    parts.headers.get("x-amz-target")?.to_str().ok()?.strip_prefix("Firehose_20150804.")
}

/// The stream's name in a body.
///
/// # Errors
/// It is missing, or no name.
pub(super) fn stream_name(members: &Members<'_>) -> Result<String, DecodeFault> {
    let name = members.text("DeliveryStreamName").unwrap_or_default();
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        true => Ok(name),
        false => Err(invalid("DeliveryStreamName must be 1 to 64 of A-Z a-z 0-9 _ . -")),
    }
}

fn invalid(detail: impl Into<String>) -> DecodeFault {
    DecodeFault::new(Problem::BAD_REQUEST, detail)
}

fn malformed(detail: impl Into<String>) -> DecodeFault {
    DecodeFault::new(Problem::BODY_NOT_JSON, detail)
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let members = Members::of(body).ok_or_else(|| malformed("the body is no JSON object"))?;
    let name = stream_name(&members)?;
    let common = Common { event_type: Some(&name), request: None, attributes: None };
    let mut taking = Taking { common, base: body.as_ptr() as usize, bytes: 0, groups: Vec::new() };
    if operation(parts) == Some(PUT_RECORD) {
        let record = members.get("Record").ok_or_else(|| malformed("Record is missing"))?;
        let _ = taking.record(record.as_bytes(), each)?;
    } else {
        let array = members.get("Records").ok_or_else(|| malformed("Records is missing"))?;
        for element in split_array(array.as_bytes()) {
            let (_, element) = element.map_err(|fault| malformed(format!("Records: {fault}")))?;
            if taking.record(element, each)?.is_break() {
                return Ok(());
            }
        }
    }
    match taking.groups.is_empty() {
        true => Err(invalid("Records must hold at least one")),
        false => {
            Noted::set_groups(parts, taking.groups);
            Ok(())
        }
    }
}

/// The records of a request, as they are taken.
struct Taking<'a> {
    common: Common<'a>,
    /// Where the body begins.
    base: usize,
    bytes: usize,
    /// Of how many items each record is.
    groups: Vec<u32>,
}

impl Taking<'_> {
    fn record(
        &mut self,
        record: &[u8],
        each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DecodeFault> {
        let number = self.groups.len();
        if number == RECORDS_MAX {
            return Err(invalid(format!("Records may hold {RECORDS_MAX}; send the others apart")));
        }
        let data = Members::of(record).and_then(|members| members.text("Data"));
        let bytes = data.and_then(|data| records::bytes(&data));
        let bytes = bytes
            .ok_or_else(|| malformed(format!("record {number} (from 0) has no base64 as Data")))?;
        if RECORD_BYTES_MAX < bytes.len() {
            let detail = format!(
                "record {number} (from 0) has {} bytes; it may have {RECORD_BYTES_MAX}",
                bytes.len()
            );
            return Err(invalid(detail));
        }
        self.bytes += bytes.len();
        if REQUEST_BYTES_MAX < self.bytes {
            let detail = format!("the records of one request may have {REQUEST_BYTES_MAX} bytes");
            return Err(invalid(detail));
        }
        let place = Place::Byte((record.as_ptr() as usize).saturating_sub(self.base));
        let (count, flow) = self.common.hand_over((number, place), &bytes, each);
        self.groups.push(count);
        Ok(flow)
    }
}

/// An answer as Amazon's services give it.
pub(super) fn answered(call: &Call<'_>, status: StatusCode, body: &Value) -> Answer {
    let mut answer = answer::json(status, MEDIA_TYPE, body);
    if let Ok(id) = HeaderValue::from_str(call.request_id) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// An error as Amazon's services give it.
pub(super) fn error(call: &Call<'_>, (status, kind): (u16, &str), message: &str) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answered(call, status, &json!({ "__type": kind, "message": message }))
}

pub(super) const INVALID_ARGUMENT: (u16, &str) = (400, "InvalidArgumentException");
pub(super) const ACCESS_DENIED: (u16, &str) = (400, "AccessDeniedException");
const SERIALIZATION: (u16, &str) = (400, "SerializationException");

fn encode(call: &Call<'_>, outcomes: &Outcomes) -> Answer {
    if let Some(unkept) = unkept(outcomes) {
        let kind = match unkept.first.code {
            code if code == Code::TypeForbidden.as_str() => ACCESS_DENIED,
            code if code == Code::TooManyTypes.as_str() => (400, "LimitExceededException"),
            _ => INVALID_ARGUMENT,
        };
        return error(call, kind, &unkept.message);
    }
    let id = |number: usize| format!("{}-{number}", call.request_id);
    if operation(call.parts) == Some(PUT_RECORD) {
        let body = json!({ "RecordId": id(0), "Encrypted": false });
        return answered(call, StatusCode::OK, &body);
    }
    let all: Vec<Value> = (0..count(call)).map(|n| json!({ "RecordId": id(n) })).collect();
    let body = json!({ "FailedPutCount": 0, "Encrypted": false, "RequestResponses": all });
    answered(call, StatusCode::OK, &body)
}

/// How many records the request has.
fn count(call: &Call<'_>) -> usize {
    let items = || call.items.and_then(|items| usize::try_from(items).ok()).unwrap_or(0);
    Noted::groups(call.parts).map_or_else(items, <[u32]>::len)
}

fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    let mut answer = match refusal.kind {
        Kind::Shed(reason, _) => shed(call, reason, &refusal.detail),
        Kind::Problem(problem) => error(call, kind_of(problem), &refusal.detail),
    };
    answer::describe(refusal, &mut answer);
    answer
}

/// Where the records are known each is told to be sent again: that is what `PutRecordBatch` has its
/// answer for. Where not, the SDK sends the whole request again.
fn shed(call: &Call<'_>, reason: ShedReason, detail: &str) -> Answer {
    let batch = operation(call.parts) == Some(PUT_RECORD_BATCH);
    if let Some(groups) = Noted::groups(call.parts).filter(|_| batch) {
        let one = json!({ "ErrorCode": "ServiceUnavailableException", "ErrorMessage": detail });
        let all = vec![one; groups.len()];
        let body = json!({
            "FailedPutCount": groups.len(), "Encrypted": false, "RequestResponses": all,
        });
        return answered(call, StatusCode::OK, &body);
    }
    let kind = match reason.status() {
        429 => "ThrottlingException",
        _ => "ServiceUnavailableException",
    };
    error(call, (reason.status(), kind), detail)
}

fn kind_of(problem: Problem) -> (u16, &'static str) {
    match problem {
        Problem::KEY_MISSING => (403, "MissingAuthenticationTokenException"),
        Problem::KEY_INVALID => (403, "UnrecognizedClientException"),
        Problem::SIGNATURE_INCOMPLETE | Problem::KEY_CONFLICT => {
            (403, "IncompleteSignatureException")
        }
        Problem::SIGNATURE_EXPIRED | Problem::SIGNATURE_WRONG => (403, "InvalidSignatureException"),
        Problem::TYPES_FORBIDDEN => ACCESS_DENIED,
        Problem::MEDIA_TYPE => (400, "UnknownOperationException"),
        Problem::BODY_SLOW => (408, "RequestTimeoutException"),
        Problem::BAD_REQUEST | Problem::TOO_MANY_EVENTS => INVALID_ARGUMENT,
        Problem::INTERNAL => (500, "InternalFailure"),
        problem if problem.status == 413 => (413, "RequestEntityTooLargeException"),
        problem => (problem.status, SERIALIZATION.1),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests;
