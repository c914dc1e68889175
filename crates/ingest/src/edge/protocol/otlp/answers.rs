//! What OTLP's clients are answered: success, partial success, and `google.rpc.Status` for what is refused.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

use super::{super::protobuf::put, fields::Signal};
use crate::edge::{
    answer::{self, Answer, Kind, Refusal},
    grpc::{self, Told},
    protocol::Outcomes,
};

/// The longest text that an answer says of single items.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Success, and what is not as it should be: items that cannot be kept, which nobody is to send again, and
/// dead letters, which are durable.
pub(super) fn done(protobuf: bool, signal: &Signal, outcomes: &Outcomes) -> Answer {
    let message = message(outcomes);
    if protobuf {
        let mut body = Vec::new();
        if let Some(message) = &message {
            let mut partial = Vec::new();
            if outcomes.rejected != 0 {
                put::number(&mut partial, 1, outcomes.rejected);
            }
            put::bytes(&mut partial, 2, message.as_bytes());
            put::bytes(&mut body, 1, &partial);
        }
        return as_protobuf(StatusCode::OK, body);
    }
    let body = match message {
        None => json!({}),
        Some(message) if outcomes.rejected == 0 => {
            json!({ "partialSuccess": { "errorMessage": message } })
        }
        Some(message) => json!({ "partialSuccess": {
            // 64 bits are a text in proto3's JSON.
            signal.rejected: outcomes.rejected.to_string(),
            "errorMessage": message,
        } }),
    };
    answer::json(StatusCode::OK, "application/json", &body)
}

fn message(outcomes: &Outcomes) -> Option<String> {
    let (rejected, dead) = (outcomes.rejected, outcomes.dead_lettered);
    if rejected + dead == 0 {
        return None;
    }
    let mut message = match (rejected, dead) {
        (_, 0) => format!("{rejected} of {} items cannot be kept", outcomes.items()),
        (0, _) => format!("{dead} of {} items are kept as dead letters", outcomes.items()),
        _ => format!(
            "{rejected} of {} items cannot be kept, {dead} are kept as dead letters",
            outcomes.items()
        ),
    };
    for error in &outcomes.errors {
        let place = if error.field.is_empty() { "" } else { " at " };
        let next = format!(
            "; item {}: {}{place}{}: {}",
            error.index, error.code, error.field, error.message
        );
        if MESSAGE_BYTES_MAX < message.len() + next.len() {
            message.push_str("; …");
            break;
        }
        message.push_str(&next);
    }
    Some(message)
}

fn as_protobuf(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let media_type = HeaderValue::from_static("application/x-protobuf");
    answer.headers_mut().insert(header::CONTENT_TYPE, media_type);
    answer
}

/// A refusal as `google.rpc.Status`, with `RetryInfo` where it may be tried again: the same time that
/// `Retry-After` says.
pub(super) fn refused(protobuf: bool, refusal: &Refusal) -> Answer {
    let status = refusal.status_code();
    let code = grpc::code(status);
    let message = format!("{}: {}", refusal.code(), refusal.detail);
    let mut head = Response::new(Full::default());
    answer::describe(refusal, &mut head);
    let after = head.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let after = after.filter(|_| matches!(refusal.kind, Kind::Shed(..)));
    let retry = after.map(retry_info);
    let mut body = Vec::new();
    put::number(&mut body, 1, u64::from(code));
    put::bytes(&mut body, 2, message.as_bytes());
    if let Some(retry) = &retry {
        let mut any = Vec::new();
        put::bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
        put::bytes(&mut any, 2, retry);
        put::bytes(&mut body, 3, &any);
    }
    let told = Told { message: message.clone(), status: body.clone(), retry };
    let mut answer = match protobuf {
        true => as_protobuf(status, body),
        false => {
            let mut status_json = json!({ "code": code, "message": message });
            if let (Some(after), Some(members)) = (after, status_json.as_object_mut()) {
                let detail = json!({
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": format!("{}s", after.as_secs()),
                });
                members.insert("details".to_owned(), json!([detail]));
            }
            answer::json(status, "application/json", &status_json)
        }
    };
    answer.headers_mut().extend(std::mem::take(head.headers_mut()));
    answer.extensions_mut().insert(told);
    answer
}

/// `google.rpc.RetryInfo`: a duration, whole seconds of it.
fn retry_info(after: Duration) -> Vec<u8> {
    let (mut duration, mut info) = (Vec::new(), Vec::new());
    put::number(&mut duration, 1, after.as_secs());
    put::bytes(&mut info, 1, &duration);
    info
}
