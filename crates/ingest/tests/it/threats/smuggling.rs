//! Bytes that one reader takes for one request and another for two: here they are one, or none.

use super::{DEV, balances, is_well, statuses, until_closed};
use crate::server::Server;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// One refusal (or none), and the end: the second request never was.
    Refused,
    /// One answer of any kind, and the end: the second request never was.
    Alone,
    /// As the standard has it: two requests, two answers.
    Two,
}

use Fate::{Alone, Refused, Two};

const EVENT: &str = "{\"event_type\":\"first\"}";

/// More than one length, or none that can be read.
const LENGTHS: &[&str] = &[
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 6\r\nContent-Length: 5",
    "Content-Length: 5, 6",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 5 5",
    "Content-Length: 0x5",
    "Content-Length: 5.0",
    "Content-Length: 5e0",
    "Content-Length: five",
    "Content-Length: ",
    "Content-Length: ,",
    "Content-Length: \"5\"",
    "Content-Length: 5;",
    "Content-Length: 18446744073709551616",
    "Content-Length: 99999999999999999999999999",
];

/// Transfer codings that are not simply chunked.
const CODINGS: &[&str] = &[
    "chunked, identity",
    "identity",
    "xchunked",
    "chunkedx",
    "x chunked",
    "gzip",
    "chunked\r\nTransfer-Encoding: identity",
    "\"chunked\"",
    "chunked;q=1",
    "",
];

/// Names and lines that some would read another way.
const LINES: &[&str] = &[
    "Transfer-Encoding : chunked",
    " Transfer-Encoding: chunked",
    "X: y\r\n Transfer-Encoding: chunked",
    "X: y\r\n\tContent-Length: 5",
    "Content-Length\t: 5",
    "Content-Length\u{b}: 5",
    "Content Length: 5",
    "Content-Length\0: 5",
    "X: a\rContent-Length: 5",
    "X: a\0b",
    ": empty",
    "no colon",
    "Transfer\u{2d}Encoding\u{a0}: chunked",
];

/// Chunks that are none.
const CHUNKS: &[&str] = &[
    "+16\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "-1\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "0x16\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "16 16\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "fffffffffffffffff\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "ffffffffffffffff\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "7fffffffffffffff\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "16\r\n{\"event_type\":\"first\"}0\r\n\r\n",
    "15\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "\r\n16\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    "g\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
    ";x\r\n{\"event_type\":\"first\"}\r\n0\r\n\r\n",
];

/// `(what stands between the first line and the body, the body as on the wire, what becomes of it)`
fn cases() -> Vec<(String, String, Fate)> {
    let chunked = "Transfer-Encoding: chunked";
    let whole = format!("{:x}\r\n{EVENT}\r\n0\r\n\r\n", EVENT.len());
    let length = EVENT.len();
    let mut cases: Vec<(String, String, Fate)> = Vec::new();
    let mut add = |headers: &str, body: &str, fate| {
        cases.push((headers.to_owned(), body.to_owned(), fate));
    };
    // Both lengths, in either order and spelling: read as chunked, answered once, closed.
    for both in [
        format!("Content-Length: {length}\r\n{chunked}"),
        format!("{chunked}\r\nContent-Length: {length}"),
        format!("{chunked}\r\nContent-Length: 5"),
        format!("content-length: 0\r\n{chunked}"),
        "CONTENT-LENGTH: 3\r\nTRANSFER-ENCODING: CHUNKED".to_owned(),
        format!("{chunked}\r\nX: y\r\nContent-Length: 5\r\nContent-Length: 5"),
    ] {
        add(&both, &whole, Alone);
    }
    add(&format!("{chunked}\r\nContent-Length: x"), &whole, Alone);
    for lengths in LENGTHS {
        add(lengths, EVENT, Refused);
    }
    for coding in CODINGS {
        add(&format!("Transfer-Encoding: {coding}"), &whole, Refused);
    }
    for line in LINES {
        add(line, EVENT, Refused);
    }
    for body in CHUNKS {
        add(chunked, body, Refused);
    }
    // Legal, if odd.
    add(&format!("{chunked}\r\nTE: trailers"), &whole, Two);
    add("Transfer-Encoding:chunked", &whole, Two);
    add("Transfer-Encoding: \t chunked \t", &whole, Two);
    add("Transfer-Encoding: Chunked", &whole, Two);
    add(chunked, &format!("{:x};a=b\r\n{EVENT}\r\n0\r\n\r\n", length), Two);
    add(chunked, &format!("000{:x}\r\n{EVENT}\r\n000\r\nX-Trailer: y\r\n\r\n", length), Two);
    add(&format!("Content-Length: {length}\r\nContent-Length: {length}"), EVENT, Two);
    add(&format!("Content-Length: 000{length}"), EVENT, Two);
    // RFC 9112, 2.2: a line feed alone may end a line.
    add(&format!("X: a\nContent-Length: {length}"), EVENT, Two);
    cases
}

#[test]
fn bytes_that_are_two_requests_for_some_are_one_answer_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut followers = 0;
    for (headers, body, fate) in &cases {
        let second = if *fate == Two { "follower" } else { "smuggled" };
        let payload = format!("{{\"event_type\":\"{second}\"}}");
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\nContent-Type: application/json\r\n\
             {headers}\r\n\r\n{body}POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\n\
             Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{payload}",
            payload.len()
        );
        let answers = until_closed(server.public, request.as_bytes());
        let found = statuses(&answers);
        let right = match fate {
            Refused => found.is_empty() || found.len() == 1 && (400..500).contains(&found[0]),
            Alone => found.len() == 1,
            Two => found == [200, 200],
        };
        assert!(right, "{headers:?} {body:?} should be {fate:?}: {answers}");
        followers += u64::from(*fate == Two);
    }
    is_well(&server);
    let audit = balances(&server);
    let rows = audit["tenants"].as_array().unwrap();
    let received = |name: &str| {
        let row = rows.iter().find(|row| row["event_type"] == name);
        row.map_or(0, |row| row["received"].as_u64().unwrap())
    };
    assert_eq!(received("smuggled"), 0, "{audit:#}");
    assert_eq!(received("follower"), followers, "{audit:#}");
}

#[test]
fn a_body_where_none_belongs_is_not_the_next_request() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let payload = String::from_utf8(super::post("", "{\"event_type\":\"smuggled\"}")).unwrap();
    for first in ["GET /healthz", "HEAD /readyz", "GET /v1/events", "OPTIONS /", "DELETE /x"] {
        let request = format!(
            "{first} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{payload}",
            payload.len()
        );
        let answers = until_closed(server.public, request.as_bytes());
        assert_eq!(statuses(&answers).len(), 1, "{first}: {answers}");
    }
    let audit = balances(&server);
    assert_eq!(audit["tenants"].as_array().unwrap().len(), 0, "{audit:#}");
}
