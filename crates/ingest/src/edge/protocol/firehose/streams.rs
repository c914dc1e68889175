//! Firehose's operations on streams: here a stream is an event type, there is nothing to make or to wait for.

use http::StatusCode;
use serde_json::{Value, json};
use tidegate_event::EventType;

use super::{
    super::{Asked, members::Members},
    ACCESS_DENIED, INVALID_ARGUMENT, answered, error, operation, stream_name,
};
use crate::edge::answer::Answer;

/// No account has this number.
const ACCOUNT: &str = "000000000000";
/// How many names `ListDeliveryStreams` gives where it is not told, and at most.
const LIST: (usize, usize) = (10, 10_000);

/// Answers what brings no records.
pub(super) fn answer(asked: &Asked<'_>) -> Answer {
    let call = &asked.call;
    let operation = operation(call.parts).unwrap_or_default();
    let Some(members) = Members::of(asked.body) else {
        return error(call, (400, "SerializationException"), "the body is no JSON object");
    };
    match operation {
        "ListDeliveryStreams" => list(asked, &members),
        "CreateDeliveryStream" | "DescribeDeliveryStream" => {
            let name = match stream_name(&members) {
                Ok(name) => name,
                Err(fault) => return error(call, INVALID_ARGUMENT, &fault.detail),
            };
            match (operation, allows(asked, &name)) {
                ("CreateDeliveryStream", true) => {
                    let body = json!({ "DeliveryStreamARN": arn(asked, &name) });
                    answered(call, StatusCode::OK, &body)
                }
                ("CreateDeliveryStream", false) => {
                    let message = format!("this key may not send {name}; use another key");
                    error(call, ACCESS_DENIED, &message)
                }
                (_, true) => answered(call, StatusCode::OK, &description(asked, &name)),
                (_, false) => {
                    let message = format!("Firehose {name} under account {ACCOUNT} not found.");
                    error(call, (400, "ResourceNotFoundException"), &message)
                }
            }
        }
        _ => {
            let message = format!(
                "{operation:?} is not served here; PutRecord, PutRecordBatch, CreateDeliveryStream, \
                 DescribeDeliveryStream and ListDeliveryStreams are"
            );
            error(call, (400, "UnknownOperationException"), &message)
        }
    }
}

/// True where the key may send to a stream of that name.
fn allows(asked: &Asked<'_>, name: &str) -> bool {
    let mapped = EventType::mapped(name).map_or(name.to_owned(), |mapped| mapped.to_string());
    asked.allowed.is_none_or(|allowed| allowed.contains(&mapped))
}

fn arn(asked: &Asked<'_>, name: &str) -> String {
    let scope = asked.call.parts.headers.get(http::header::AUTHORIZATION);
    let scope = scope.and_then(|value| value.to_str().ok()).unwrap_or_default();
    // As the client claims it: Credential=<key id>/<day>/<region>/…
    let region = scope.split('/').nth(2).unwrap_or("us-east-1");
    format!("arn:aws:firehose:{region}:{ACCOUNT}:deliverystream/{name}")
}

fn description(asked: &Asked<'_>, name: &str) -> Value {
    json!({ "DeliveryStreamDescription": {
        "DeliveryStreamName": name,
        "DeliveryStreamARN": arn(asked, name),
        "DeliveryStreamStatus": "ACTIVE",
        "DeliveryStreamType": "DirectPut",
        "VersionId": "1",
        "Destinations": [],
        "HasMoreDestinations": false,
    }})
}

/// The types the key may send, or else those that the tenant has sent; by name, a page at a time.
fn list(asked: &Asked<'_>, members: &Members<'_>) -> Answer {
    let call = &asked.call;
    let (usual, most) = LIST;
    let limit = match members.get("Limit").filter(|value| *value != "null") {
        None => usual,
        Some(text) => match text.parse::<usize>() {
            Ok(limit) if (1..=most).contains(&limit) => limit,
            _ => return error(call, INVALID_ARGUMENT, &format!("Limit must be 1 to {most}")),
        },
    };
    let mut names: Vec<String> = match asked.allowed {
        Some(allowed) => allowed.to_vec(),
        None => asked.known.iter().map(ToString::to_string).collect(),
    };
    names.sort_unstable();
    names.dedup();
    let kind = members.text("DeliveryStreamType");
    if kind.is_some_and(|kind| kind != "DirectPut") {
        names.clear();
    }
    if let Some(after) = members.text("ExclusiveStartDeliveryStreamName") {
        names.retain(|name| after < *name);
    }
    let more = limit < names.len();
    names.truncate(limit);
    let body = json!({ "DeliveryStreamNames": names, "HasMoreDeliveryStreams": more });
    answered(call, StatusCode::OK, &body)
}
