//! `ingestctl send`: nothing is lost and nothing is sent twice under two names.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;

use super::stub::{Answer, Asked, Stub, all_accepted, answer, ingestctl_with_input, with_header};

const THREE: &[u8] = b"{\"n\":1}\n\n{\"n\":2}\n{\"n\":3}\n";

fn refused(status: u16, reason: &str, after: &str) -> Answer {
    let body = json!({"status": status, "code": reason, "detail": "not now"});
    with_header(answer(status, body), "retry-after", after)
}

fn same_request(requests: &[Asked]) {
    let keys: BTreeSet<_> = requests.iter().map(|r| r.header("idempotency-key")).collect();
    assert_eq!(keys.len(), 1, "one batch, one key: {keys:?}");
    assert!(!keys.first().unwrap().is_empty());
    assert!(requests.iter().all(|r| r.body == requests[0].body), "the same bytes each time");
}

#[test]
fn events_go_out_as_lines_with_key_type_and_coding() {
    let stub = Stub::start(|_, asked| {
        let lines = zstd::decode_all(asked.body.as_ref()).unwrap();
        assert_eq!(lines, b"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
        answer(200, json!({"accepted": 3}))
    });
    let line = ["send", "-", "--event-type", "order", "--compression", "zstd", "--json"];
    let done = ingestctl_with_input(&stub.url(), &line, THREE);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.json()["accepted"], 3);
    let asked = stub.asked().remove(0);
    assert_eq!(asked.line, "POST /v1/events");
    for (name, value) in [
        ("authorization", "Bearer tgk_test"),
        ("content-type", "application/x-ndjson"),
        ("content-encoding", "zstd"),
        ("x-event-type", "order"),
    ] {
        assert_eq!(asked.header(name), value);
    }
}

#[test]
fn a_lost_answer_is_sent_again_under_the_same_key_with_the_same_bytes() {
    let stub = Stub::start(|before, asked| if before == 0 { None } else { all_accepted(asked) });
    let done = ingestctl_with_input(&stub.url(), &["send", "-", "--json"], THREE);
    assert_eq!(done.status, 0, "{done:?}");
    let report = done.json();
    assert_eq!((&report["accepted"], &report["retries"]), (&json!(3), &json!(1)));
    assert_eq!(report["no_answer"], json!({"connection_cut": 1}));
    let asked = stub.asked();
    assert_eq!(asked.len(), 2);
    same_request(&asked);
}

#[test]
fn every_code_that_asks_for_it_is_sent_again_after_retry_after() {
    // Guarantees: never before the time the server asks for.
    let stub = Stub::start(|before, asked| match before {
        0 => refused(429, "quota_events", "1"),
        1 => refused(503, "log_full", "0"),
        2 => refused(408, "timeout", "0"),
        _ => all_accepted(asked),
    });
    let started = Instant::now();
    let done = ingestctl_with_input(&stub.url(), &["send", "-", "--json"], THREE);
    let waited = started.elapsed();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(waited > Duration::from_secs(1), "{waited:?} is less than Retry-After");
    assert_eq!(done.json()["codes"], json!({"200": 1, "408": 1, "429": 1, "503": 1}));
    same_request(&stub.asked());
}

#[test]
fn a_batch_that_is_refused_too_long_is_given_up_and_its_lines_named() {
    let stub = Stub::start(|_, _| refused(503, "log_full", "30"));
    let line = ["send", "-", "--retry-for", "1s", "--batch-events", "2"];
    let done = ingestctl_with_input(&stub.url(), &line, THREE);
    assert_eq!(done.status, 3, "{done:?}");
    assert!(
        done.err.contains("gave up on lines 1 to 3 after 1 tries: 503 log_full"),
        "{}",
        done.err
    );
    assert!(done.err.contains("--retry-for"), "{}", done.err);
    assert!(done.out.contains("not sent"), "{}", done.out);
}

#[test]
fn rejected_and_dead_lettered_lines_are_named_by_their_line_and_exit_is_1_only_for_rejected() {
    let dead = json!({"accepted": 2, "dead_lettered": 1, "errors": [{"index": 1, "code": "type_mismatch",
        "field": "/n", "message": "text"}]});
    let rejected = json!({"accepted": 2, "rejected": 1, "errors": [{"index": 2, "code": "not_an_object",
        "message": "a number"}]});
    for (body, status, named) in [
        (dead, 0, "line 3: dead letter: type_mismatch /n: text"),
        (rejected, 1, "line 4: rejected: not_an_object: a number"),
    ] {
        let stub = Stub::start(move |_, _| answer(200, &body));
        let done = ingestctl_with_input(&stub.url(), &["send", "-"], THREE);
        assert_eq!(done.status, status, "{done:?}");
        assert!(done.err.contains(named), "{}", done.err);
    }
}

#[test]
fn a_batch_of_which_nothing_can_be_kept_is_rejected_and_the_next_is_sent() {
    let stub = Stub::start(|before, asked| match before {
        0 => answer(
            400,
            json!({"status": 400, "code": "invalid_json", "detail": "byte 3: no value"}),
        ),
        _ => all_accepted(asked),
    });
    let line = ["send", "-", "--batch-events", "2", "--json"];
    let done = ingestctl_with_input(&stub.url(), &line, THREE);
    assert_eq!(done.status, 1, "{done:?}");
    let report = done.json();
    assert_eq!((&report["rejected"], &report["accepted"]), (&json!(2), &json!(1)));
    assert_eq!(
        (&report["problems"][0]["line"], &report["problems"][0]["last_line"]),
        (&json!(1), &json!(3))
    );
}

#[test]
fn a_batch_that_is_too_large_goes_in_halves_until_one_event_is_too_large() {
    let stub = Stub::start(|_, asked| match asked.lines() {
        1 if !asked.body.contains_str("\"n\":2") => all_accepted(asked),
        _ => answer(413, json!({"status": 413, "code": "body_too_large"})),
    });
    let done = ingestctl_with_input(&stub.url(), &["send", "-", "--json"], THREE);
    assert_eq!(done.status, 1, "{done:?}");
    let report = done.json();
    assert_eq!((&report["accepted"], &report["rejected"]), (&json!(2), &json!(1)));
    assert_eq!(report["problems"][0]["line"], 3);
    let keys: BTreeSet<_> =
        stub.asked().iter().map(|a| a.header("idempotency-key").to_owned()).collect();
    assert_eq!(keys.len(), stub.asked().len(), "other bytes, another key");
}

trait ContainsStr {
    fn contains_str(&self, text: &str) -> bool;
}

impl ContainsStr for bytes::Bytes {
    fn contains_str(&self, text: &str) -> bool {
        self.windows(text.len()).any(|w| w == text.as_bytes())
    }
}

#[test]
fn a_wrong_key_ends_it_at_once() {
    let stub = Stub::start(|_, _| {
        answer(401, json!({"status": 401, "code": "key_unknown", "detail": "no such key"}))
    });
    let done = ingestctl_with_input(&stub.url(), &["send", "-", "--batch-events", "1"], THREE);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("key_unknown") && done.err.contains("check --key"), "{}", done.err);
    assert_eq!(stub.asked().len(), 1);
}

#[test]
fn a_200_of_something_else_acknowledges_nothing() {
    let stub = Stub::start(|_, _| answer(200, "hello"));
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("j");
    let line = ["send", "-", "--journal", journal.to_str().unwrap()];
    let done = ingestctl_with_input(&stub.url(), &line, THREE);
    assert_eq!(done.status, 3, "{done:?}");
    assert_eq!(std::fs::read_to_string(journal).unwrap(), "");
}

#[test]
fn the_journal_holds_what_was_acknowledged_and_nothing_else() {
    let stub = Stub::start(|_, _| {
        answer(
            200,
            json!({"accepted": 2, "rejected": 1, "errors": [{"index": 1, "code": "not_an_object"}]}),
        )
    });
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("j");
    let input = b"{\"event_id\":\"mine\",\"event_type\":\"own\"}\n7\n{\"n\":3}\n";
    let line = [
        "send",
        "-",
        "--event-type",
        "order",
        "--idempotency-key",
        "again",
        "--journal",
        journal.to_str().unwrap(),
    ];
    let done = ingestctl_with_input(&stub.url(), &line, input);
    assert_eq!(done.status, 1, "{done:?}");
    assert_eq!(
        std::fs::read_to_string(journal).unwrap(),
        "{\"event_type\":\"own\",\"event_id\":\"mine\"}\n{\"event_type\":\"order\",\"event_id\":\"again-0/2\"}\n"
    );
}

#[test]
fn the_same_idempotency_key_makes_the_same_requests_again() {
    let stub = Stub::start(|_, asked| all_accepted(asked));
    for _ in 0..2 {
        let line = ["send", "-", "--idempotency-key", "import-7", "--batch-events", "1"];
        assert_eq!(ingestctl_with_input(&stub.url(), &line, THREE).status, 0);
    }
    let asked: Vec<_> = stub
        .asked()
        .iter()
        .map(|a| (a.header("idempotency-key").to_owned(), a.body.clone()))
        .collect();
    assert_eq!(asked[..3], asked[3..]);
    assert_eq!(asked[1].0, "import-7-1");
}

#[test]
fn many_at_once_still_send_every_line_once() {
    let stub = Stub::start(|_, asked| all_accepted(asked));
    let input: String = (0..1_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let line = ["send", "-", "--concurrency", "4", "--batch-events", "7", "--json"];
    let done = ingestctl_with_input(&stub.url(), &line, input.as_bytes());
    assert_eq!(done.json()["accepted"], 1_000, "{done:?}");
    let mut lines: Vec<String> = stub
        .asked()
        .iter()
        .flat_map(|a| {
            std::str::from_utf8(&a.body).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort();
    let mut expected: Vec<_> = input.lines().map(str::to_owned).collect();
    expected.sort();
    assert_eq!(lines, expected);
}
