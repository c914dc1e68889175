//! What the operations take, and what their answers say.

use http_body_util::BodyExt;
use tidegate_event::{EventType, Partition, ReceivedAt};

use super::*;
use crate::{
    edge::{
        answer::ItemError,
        protocol::{Asked, Found, Sorted, question},
    },
    writer::Appended,
};

fn parts(operation: &str) -> Parts {
    let target = format!("Firehose_20150804.{operation}");
    let scope = "AWS4-HMAC-SHA256 Credential=TGX/20260301/eu-west-1/firehose/aws4_request";
    let request = http::Request::post("/").header("x-amz-target", target);
    let request = request.header("authorization", HeaderValue::from_str(scope).unwrap());
    let mut parts = request.body(()).unwrap().into_parts().0;
    Noted::begin(&mut parts, ReceivedAt(1));
    parts
}

/// Each item's type and bytes.
fn items(parts: &Parts, body: &str) -> Result<Vec<(String, String)>, (u16, &'static str)> {
    let mut found = Vec::new();
    let result = decode(parts, body.as_bytes(), &mut |arrived| {
        let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
        let raw = String::from_utf8(item.raw.to_vec()).unwrap();
        found.push((item.event_type.unwrap().to_owned(), raw));
        ControlFlow::Continue(())
    });
    result.map(|()| found).map_err(|fault| kind_of(fault.problem))
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn batch(records: &[&[u8]]) -> String {
    let all: Vec<_> = records.iter().map(|record| json!({ "Data": base64(record) })).collect();
    json!({ "DeliveryStreamName": "clicks", "Records": all }).to_string()
}

#[test]
fn records_are_found_in_both_operations_and_counted_as_the_client_did() {
    let single = json!({ "DeliveryStreamName": "a.b-c", "Record": { "Data": base64(b"{}") } });
    let one = parts(PUT_RECORD);
    let found = items(&one, &single.to_string()).unwrap();
    assert_eq!(found, [("a.b-c".to_owned(), "{}".to_owned())]);
    assert_eq!(Noted::groups(&one), Some([1].as_slice()));
    let many = parts(PUT_RECORD_BATCH);
    let body = batch(&[b"{\"a\":1}", b"{\"b\":2}\n{\"c\":3}\n", b"", b"\xff"]);
    let decoded = {
        let mut raw = Vec::new();
        decode(&many, body.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            raw.push(item.raw.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        raw
    };
    let expected: [&[u8]; 5] = [b"{\"a\":1}", b"{\"b\":2}", b"{\"c\":3}", b"", b"\xff"];
    assert_eq!(decoded, expected);
    assert_eq!(Noted::groups(&many), Some([1, 2, 1, 1].as_slice()));
}

#[test]
fn the_documented_limits_hold() {
    let many = parts(PUT_RECORD_BATCH);
    let refused = |body: &str| items(&many, body).unwrap_err();
    let (full, over) = (vec![b'x'; RECORD_BYTES_MAX], vec![b'x'; RECORD_BYTES_MAX + 1]);
    assert_eq!(items(&many, &batch(&[full.as_slice(); 4])).unwrap().len(), 4);
    assert_eq!(refused(&batch(&[over.as_slice()])), INVALID_ARGUMENT);
    assert_eq!(refused(&batch(&[full.as_slice(); 5])), INVALID_ARGUMENT);
    assert_eq!(items(&many, &batch(&[b"{}".as_slice(); 500])).unwrap().len(), 500);
    assert_eq!(refused(&batch(&[b"{}".as_slice(); 501])), INVALID_ARGUMENT);
    assert_eq!(refused(&batch(&[])), INVALID_ARGUMENT);
    let name = |name: &str| batch(&[b"{}".as_slice()]).replace("clicks", name);
    assert!(items(&many, &name(&"n".repeat(64))).is_ok());
    for wrong in ["", "a/b", &"n".repeat(65)] {
        assert_eq!(refused(&name(wrong)), INVALID_ARGUMENT, "{wrong}");
    }
    for wrong in ["", "[]", r#"{"DeliveryStreamName":"a"}"#] {
        assert_eq!(refused(wrong).0, 400, "{wrong}");
    }
    let broken = r#"{"DeliveryStreamName":"a","Records":[{"Data":"?"}]}"#;
    assert_eq!(refused(broken), SERIALIZATION);
    assert_eq!(refused(&broken.replace("{\"Data\":\"?\"}", "{}")), SERIALIZATION);
}

async fn body(answer: Answer) -> (u16, Value) {
    assert_eq!(answer.headers()["content-type"], MEDIA_TYPE);
    assert_eq!(answer.headers()["x-amzn-requestid"], "r");
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

fn call(parts: &Parts) -> Call<'_> {
    Call { parts, request_id: "r", base_id: &[7; 16], items: None }
}

#[tokio::test]
async fn each_record_has_its_answer_and_overload_says_send_again() {
    let parts = parts(PUT_RECORD_BATCH);
    items(&parts, &batch(&[b"{}{}", b"{}"])).unwrap();
    let sorted =
        Sorted { kept: 3, rejected: 0, dead: vec![1], errors: vec![], errors_truncated: false };
    let appended = Appended { partition: Partition(0), range: None, deduplicated: vec![] };
    let (status, said) = body(encode(&call(&parts), &Outcomes::of(sorted, appended))).await;
    let expected = json!({ "FailedPutCount": 0, "Encrypted": false,
        "RequestResponses": [{"RecordId": "r-0"}, {"RecordId": "r-1"}] });
    assert_eq!((status, said), (200, expected));
    let refusal = Refusal::shed(ShedReason::LogFull, std::time::Duration::from_secs(3));
    let answer = refuse(&call(&parts), &refusal);
    assert!(answer.headers().contains_key("retry-after"));
    let (status, said) = body(answer).await;
    assert_eq!((status, &said["FailedPutCount"]), (200, &json!(2)));
    assert_eq!(said["RequestResponses"][1]["ErrorCode"], "ServiceUnavailableException");
    let unread = self::parts(PUT_RECORD_BATCH);
    let (status, said) = body(refuse(&call(&unread), &refusal)).await;
    assert_eq!((status, &said["__type"]), (503, &json!("ServiceUnavailableException")));
    let slow = Refusal::shed(ShedReason::QuotaEvents, std::time::Duration::from_secs(3));
    let (status, said) = body(refuse(&call(&unread), &slow)).await;
    assert_eq!((status, &said["__type"]), (429, &json!("ThrottlingException")));
}

#[tokio::test]
async fn what_cannot_be_kept_is_no_single_records_error() {
    let parts = parts(PUT_RECORD);
    for (code, kind) in [
        (Code::TypeForbidden, "AccessDeniedException"),
        (Code::TooManyTypes, "LimitExceededException"),
        (Code::Unreadable, "InvalidArgumentException"),
    ] {
        let error = ItemError {
            index: 0,
            event_id: None,
            code: code.as_str(),
            field: String::new(),
            message: "m".to_owned(),
        };
        let sorted = Sorted {
            kept: 1,
            rejected: 1,
            dead: vec![],
            errors: vec![error],
            errors_truncated: false,
        };
        let appended = Appended { partition: Partition(0), range: None, deduplicated: vec![] };
        let (status, said) = body(encode(&call(&parts), &Outcomes::of(sorted, appended))).await;
        assert_eq!((status, said["__type"].as_str()), (400, Some(kind)));
    }
}

#[tokio::test]
async fn streams_are_the_types_that_a_key_may_send() {
    let ask = async |operation: &str, body_text: &str, allowed: Option<&[String]>| {
        let parts = parts(operation);
        let asked = Asked {
            call: call(&parts),
            body: body_text.as_bytes(),
            allowed,
            known: ["b", "c", "a"].map(|name| EventType::new(name).unwrap()).to_vec(),
        };
        let question = question(&PROTOCOL, &parts).unwrap();
        body((question.answer)(&asked)).await
    };
    let named = r#"{"DeliveryStreamName":"a"}"#;
    let (status, said) = ask("DescribeDeliveryStream", named, None).await;
    let described = &said["DeliveryStreamDescription"];
    assert_eq!((status, &described["DeliveryStreamStatus"]), (200, &json!("ACTIVE")));
    let arn = "arn:aws:firehose:eu-west-1:000000000000:deliverystream/a";
    assert_eq!(described["DeliveryStreamARN"], arn);
    for _ in 0..2 {
        let (_, said) = ask("CreateDeliveryStream", named, None).await;
        assert_eq!(said, json!({ "DeliveryStreamARN": arn }));
    }
    let others = ["x".to_owned(), "b".to_owned()];
    let (status, said) = ask("DescribeDeliveryStream", named, Some(&others)).await;
    assert_eq!((status, &said["__type"]), (400, &json!("ResourceNotFoundException")));
    let (_, said) = ask("CreateDeliveryStream", named, Some(&others)).await;
    assert_eq!(said["__type"], "AccessDeniedException");
    let page = r#"{"Limit":2}"#;
    let (_, said) = ask("ListDeliveryStreams", page, None).await;
    assert_eq!(said, json!({"DeliveryStreamNames":["a","b"],"HasMoreDeliveryStreams":true}));
    let rest = r#"{"Limit":2,"ExclusiveStartDeliveryStreamName":"b"}"#;
    let (_, said) = ask("ListDeliveryStreams", rest, None).await;
    assert_eq!(said, json!({"DeliveryStreamNames":["c"],"HasMoreDeliveryStreams":false}));
    let (_, said) = ask("ListDeliveryStreams", "{}", Some(&others)).await;
    assert_eq!(said["DeliveryStreamNames"], json!(["b", "x"]));
    assert_eq!(ask("ListDeliveryStreams", r#"{"Limit":0}"#, None).await.0, 400);
    let (status, said) = ask("DeleteDeliveryStream", named, None).await;
    assert_eq!((status, &said["__type"]), (400, &json!("UnknownOperationException")));
    assert!(question(&PROTOCOL, &parts(PUT_RECORD)).is_none());
    assert_eq!(ask("ListDeliveryStreams", "[", None).await.0, 400);
}
