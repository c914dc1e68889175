//! Texts, numbers, names and shapes that something on the way might mangle: byte-equal in the lake, or
//! refused with a code.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{DEV, balances, is_well, lake_lines, resident_bytes, scale, tenant, with_lines};
use crate::{
    server::{Server, files, request},
    tally::Tally,
};

/// Texts between quotes, as they are written in an event.
const TEXTS: &[&str] = &[
    "\\ud83d\\ude00",
    "\\uD83D\\uDE00",
    "\\/",
    "/",
    "\\\\",
    "\\\"",
    "\\b\\f\\n\\r\\t",
    "e\u{301}",
    "é",
    "ﬁ",
    "Å",
    "ß",
    "İ",
    "ı",
    "\u{1d11e}",
    "👨‍👩‍👧‍👦",
    "🇩🇪",
    "Z̸a̷l̴g̵o̶",
    "العربية",
    "עברית",
    "漢字",
    "ไทย",
    "हिन्दी",
    "한국어",
    "=1+1",
    "@cmd",
    "+1",
    "-1",
    "\\t=1",
    "'; drop table events; --",
    "\u{1b}[31m",
    "\\u001b[31m",
    "%0d%0a",
    "%00",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "<script>",
    "../../etc/passwd",
    "NaN",
    "null",
    "true",
    "NULL",
    "undefined",
    "\\N",
    "0x1f",
    "1e400",
    "  ",
    "",
    "\\u0061",
    "\\u00e9",
    "\\x",
    "\\u12",
    "\\u{61}",
    "\\'",
    "\\",
    "\u{1f3f4}\u{e0067}\u{e007f}",
    "ẞ",
    "ǆ",
    "\u{1100}\u{1161}",
    "\\ufeff",
    "a\u{feff}",
    "\u{2000}",
];

/// JSON strings as they are written in an event.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    // Every control character escaped; what must not be raw, raw.
    for code in 0..0x20u32 {
        texts.push(format!("\"a\\u{code:04x}b\""));
        texts.push(format!("\"a{}b\"", char::from_u32(code).unwrap()));
    }
    for code in [
        0x7f, 0x80, 0x85, 0x9b, 0x9f, 0xa0, 0xad, 0x300, 0x61c, 0x200b, 0x200d, 0x200e, 0x200f,
        0x2028, 0x2029, 0x202a, 0x202e, 0x2060, 0x2066, 0x2069, 0xd7ff, 0xe000, 0xfdd0, 0xfeff,
        0xfffd, 0xfffe, 0xffff, 0x1f600, 0x1f468, 0xe0001, 0x10ffff,
    ] {
        texts.push(format!("\"a{}b\"", char::from_u32(code).unwrap()));
        texts.push(format!("\"{}\"", char::from_u32(code).unwrap()));
    }
    for code in ["d800", "dbff", "dc00", "dfff"] {
        texts.push(format!("\"\\u{code}\""));
        texts.push(format!("\"a\\u{code}b\""));
        texts.push(format!("\"\\u{code}\\u{code}\""));
        texts.push(format!("\"\\u{code}\\n\""));
    }
    for text in TEXTS {
        texts.push(format!("\"{text}\""));
    }
    texts.push(format!("\"{}\"", "x".repeat(100_000)));
    texts.push(format!("\"{}\"", "\u{10ffff}".repeat(10_000)));
    texts
}

const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "0.0",
    "-0.0",
    "1",
    "-1",
    "1.0",
    "1.50",
    "10",
    "1e0",
    "1E0",
    "1e+0",
    "1e-0",
    "1e2",
    "1E+2",
    "123456789012345678901234567890",
    "9007199254740991",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "0.1",
    "0.30000000000000004",
    "3.141592653589793238",
    "1e308",
    "1.7976931348623157e308",
    "1.8e308",
    "1e400",
    "-1e400",
    "5e-324",
    "1e-400",
    "2.5e-1",
    "00",
    "01",
    "-01",
    "+1",
    ".5",
    "5.",
    "1e",
    "0x10",
    "1_000",
    "NaN",
    "Infinity",
    "-Infinity",
    "1,5",
    "--1",
];

/// Sends one event for each value; the codes of those that were not accepted, by index.
fn send(server: &Server, event_type: &str, values: &[String]) -> BTreeMap<usize, String> {
    let mut refused = BTreeMap::new();
    for (part, chunk) in values.chunks(50).enumerate() {
        let mut body = String::new();
        for (n, value) in chunk.iter().enumerate() {
            // A raw line feed would end the line: such a value goes alone below.
            let value = if value.contains('\n') { "\"line feed\"" } else { value };
            let id = part * 50 + n;
            body.push_str(&format!(
                "{{\"event_type\":\"{event_type}\",\"event_id\":\"{id}\",\"v\":{value}}}\n"
            ));
        }
        let answer = server.post("/v1/events", DEV, "application/x-ndjson", body.as_bytes());
        assert!(matches!(answer.status, 200 | 400), "{answer:?}");
        for error in answer.json()["errors"].as_array().into_iter().flatten() {
            let index = usize::try_from(error["index"].as_u64().unwrap()).unwrap();
            refused.insert(part * 50 + index, error["code"].as_str().unwrap().to_owned());
        }
    }
    refused
}

/// Of a row, its id alone: its numbers may be larger than serde_json's.
#[derive(serde::Deserialize)]
struct Id {
    event_id: String,
}

/// Each accepted value stands in the lake as it was sent; each other one does not stand in its events.
fn check_lake(
    dir: &std::path::Path,
    event_type: &str,
    values: &[String],
    refused: &BTreeMap<usize, String>,
) {
    let mut found = BTreeMap::new();
    for (path, line) in lake_lines(dir) {
        if path.starts_with("events/") && path.contains(&format!("event_type={event_type}/")) {
            let id = serde_json::from_str::<Id>(&line).unwrap().event_id;
            assert!(
                found.insert(id.parse::<usize>().unwrap(), line).is_none(),
                "{id} stands twice"
            );
        }
    }
    for (index, value) in values.iter().enumerate() {
        match (found.get(&index), refused.get(&index)) {
            (Some(line), None) => {
                assert!(
                    value.contains('\n') || line.contains(&format!("\"v\":{value}")),
                    "{value:?}: {line}"
                );
            }
            (None, Some(_)) => {}
            both => panic!("{value:?}: {both:?}"),
        }
    }
}

#[test]
fn each_text_arrives_byte_for_byte_or_is_refused() {
    let mut tally = Tally::new("threats::corpus", "poison event", &["P2", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines_dev(dir.path());
    let texts = texts();
    assert!(texts.len() >= 200, "{}", texts.len());
    let refused = send(&server, "text", &texts);
    balances(&server);
    check_lake(dir.path(), "text", &texts, &refused);
    let of = |code: &str| refused.values().filter(|c| *c == code).count();
    // The escaped NUL; lone surrogates in all spellings; raw controls (but for line feed) and bad escapes.
    assert_eq!((of("nul_character"), of("lone_surrogate")), (1, 16), "{refused:?}");
    assert_eq!(of("invalid_json"), 31 + 7, "{refused:?}");
    assert_eq!(refused.len(), 1 + 16 + 38, "{refused:?}");
    tally.survived(texts.len() as u64);
}

/// `--dev` with JSON lines.
fn with_lines_dev(dir: &std::path::Path) -> Server {
    let lake = dir.join("lake");
    let path = dir.join("tidegate.toml");
    let sink = format!(
        "[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\nflush = {{ age = \"50ms\" }}\n\
         options = {{ format = \"jsonl\" }}\n"
    );
    std::fs::write(&path, sink).unwrap();
    let (path, data) = (path.display().to_string(), dir.join("data").display().to_string());
    Server::start(&["--dev", "--config", &path, "--data-dir", &data], &[])
}

#[test]
fn bytes_that_are_no_text_are_rejected_alone() {
    let mut tally = Tally::new("threats::corpus", "poison event", &["P2", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines_dev(dir.path());
    let bad: &[&[u8]] = &[
        b"\xff",
        b"\xfe\xff",
        b"\xc3\x28",
        b"\xc0\xaf",
        b"\xc0\x80",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\x80",
        b"\xbf",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
    ];
    for (n, bytes) in bad.iter().enumerate() {
        for place in [
            "{\"event_type\":\"t\",\"v\":\"@\"}",
            "{\"event_type\":\"t\",\"@\":1}",
            "{\"event_type\":\"@\"}",
        ] {
            let (front, back) = place.split_once('@').unwrap();
            let good = format!("{{\"event_type\":\"t\",\"event_id\":\"{n}{}\"}}\n", front.len());
            let body = [good.as_bytes(), front.as_bytes(), bytes, back.as_bytes(), b"\n"].concat();
            let answer = server.post("/v1/events", DEV, "application/x-ndjson", &body).json();
            assert_eq!(
                (&answer["accepted"], &answer["rejected"]),
                (&json!(1), &json!(1)),
                "{answer}"
            );
            assert_eq!(answer["errors"][0]["code"], "invalid_utf8", "{bytes:?} {answer}");
            tally.survived(1);
        }
    }
    let audit = balances(&server);
    let accepted: u64 =
        audit["tenants"].as_array().unwrap().iter().map(|r| r["accepted"].as_u64().unwrap()).sum();
    assert_eq!(accepted, bad.len() as u64 * 3, "{audit:#}");
}

#[test]
fn each_number_arrives_digit_for_digit_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines_dev(dir.path());
    let numbers: Vec<String> = NUMBERS.iter().map(|n| (*n).to_owned()).collect();
    let refused = send(&server, "number", &numbers);
    balances(&server);
    check_lake(dir.path(), "number", &numbers, &refused);
    let is_json = |n: &String| serde_json::from_str::<Box<serde_json::value::RawValue>>(n).is_ok();
    for (index, number) in numbers.iter().enumerate() {
        assert_eq!(
            !refused.contains_key(&index),
            is_json(number),
            "{number}: {:?}",
            refused.get(&index)
        );
    }
}

#[test]
fn a_key_that_stands_twice_is_a_dead_letter_at_every_depth_and_in_every_spelling() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines_dev(dir.path());
    let twice = [
        r#"{"event_type":"t","tenant":"a","tenant":"b"}"#,
        r#"{"event_type":"t","tenant":"a","t\u0065nant":"b"}"#,
        r#"{"event_type":"t","\u0074enant":1,"ten\u0061nt":2}"#,
        r#"{"event_type":"t","x":{"a":1,"a":1}}"#,
        r#"{"event_type":"t","x":[{"a":{"b":1,"\u0062":2}}]}"#,
        r#"{"event_type":"t","":1,"":2}"#,
        r#"{"event_type":"t","event_type":"u"}"#,
        r#"{"event_type":"t","event\u005ftype":"u"}"#,
        r#"{"event_type":"t","event_id":"1","event_id":"2"}"#,
        r#"{"event_type":"t","\ud83d\ude00":1,"😀":2}"#,
        r#"{"event_type":"t","a\/b":1,"a/b":2}"#,
    ];
    let once = [
        r#"{"event_type":"t","a":{"a":1},"b":[{"a":1},{"a":2}]}"#,
        r#"{"event_type":"t","A":1,"a":2,"é":1,"e\u0301":2}"#,
    ];
    for event in twice {
        let answer = server.post("/v1/events", DEV, "application/json", event.as_bytes()).json();
        assert_eq!(answer["errors"][0]["code"], "duplicate_key", "{event}: {answer}");
    }
    for event in once {
        let answer = server.post("/v1/events", DEV, "application/json", event.as_bytes()).json();
        assert_eq!(answer["accepted"], 1, "{event}: {answer}");
    }
    balances(&server);
}

#[test]
fn depth_and_breadth_without_end_are_refused_and_cost_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    is_well(&server);
    let before = resident_bytes(&server);
    let fields = |count: usize, name: &dyn Fn(usize) -> String| {
        let list: Vec<String> = (0..count).map(|n| format!("\"{}\":{n}", name(n))).collect();
        format!("{{\"event_type\":\"t\",{}}}", list.join(","))
    };
    let mut shapes = vec![
        "[".repeat(1_000_000),
        "{\"a\":".repeat(200_000),
        format!("{{\"event_type\":\"t\",\"a\":{}", "[".repeat(900_000)),
        format!("{{\"event_type\":\"t\",\"a\":{}1{}}}", "[".repeat(100), "]".repeat(100)),
        fields(513, &|n| format!("f{n}")),
        fields(50_000, &|n| format!("f{n}")),
        // Names alike but for their end, and of one length: whatever hashes badly, hashes badly here.
        fields(30_000, &|n| format!("{}{n:08}", "aaaaaaaa")),
    ];
    shapes.push(format!("[{}", shapes[3]));
    for shape in &shapes {
        for _ in 0..scale() {
            let answer = server.post("/v1/events", DEV, "application/json", shape.as_bytes());
            assert_eq!(answer.status, 400, "{answer:?}");
        }
    }
    // As many types as events: each would cost a place in the books, so there is a bound.
    let types: String = (0..5000).map(|n| format!("{{\"event_type\":\"type{n}\"}}\n")).collect();
    let answer = server.post("/v1/events", DEV, "application/x-ndjson", types.as_bytes());
    let answer = answer.json();
    let kept = (answer["accepted"].as_u64(), answer["rejected"].as_u64());
    // A thousand, of which `is_well` has named one.
    assert_eq!(kept, (Some(999), Some(4001)), "{}", answer["errors"][0]);
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < 192 << 20, "{grown} bytes more than before");
    is_well(&server);
}

const NAMES: &[&str] = &[
    "..",
    ".",
    "../x",
    "../../etc/passwd",
    "..\\\\x",
    "a/b",
    "a//b",
    "/etc",
    "a\\\\b",
    "%2e%2e",
    "%2e%2e%2f",
    "%252e%252e",
    "a/../b",
    "a..b",
    "a\\u0000b",
    "a\\nb",
    "a\\rb",
    "a=b",
    "tenant=x",
    "a b",
    " a",
    "a ",
    "~",
    "~root",
    "-x",
    "_x",
    ".x",
    "CON\\u002fx",
    "a:b",
    "a*b",
    "a?b",
    "a|b",
    "a<b",
    "a&async_insert=1",
    "a`;DROP TABLE x",
    "a'||'",
    "é",
    "\\u202ea",
    "🙂",
    "",
    "a;b",
    "$(id)",
    "`id`",
    "{a}",
    "a\\u2028b",
    "1a",
    "a,b",
    "\\u001b[31m",
];

#[test]
fn names_that_are_paths_never_reach_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines_dev(dir.path());
    let long = "a".repeat(300);
    let names: Vec<&str> = NAMES.iter().copied().chain([&*long]).collect();
    for name in &names {
        let body = format!("{{\"event_type\":\"{name}\",\"n\":1}}");
        let answer = server.post("/v1/events", DEV, "application/json", body.as_bytes()).json();
        assert_eq!(answer["dead_lettered"], 1, "{name:?}: {answer}");
        // The same from the query and from a header, as they would be written there.
        let plain: String = serde_json::from_str(&format!("\"{name}\"")).unwrap();
        let query: String = url::form_urlencoded::byte_serialize(plain.as_bytes()).collect();
        let path = format!("/v1/events?event_type={query}");
        let answer = server.post(&path, DEV, "application/json", b"{}");
        assert!(
            answer.status == 400 || answer.json()["dead_lettered"] == 1,
            "{name:?}: {answer:?}"
        );
        if !plain.chars().any(char::is_control) {
            let authorization = format!("Bearer {DEV}");
            let headers = [
                ("authorization", &*authorization),
                ("content-type", "application/json"),
                ("x-event-type", &plain),
            ];
            let answer = request(server.public, "POST", "/v1/events", &headers, b"{}");
            // Blanks around a header's value are no part of it.
            let trimmed = plain.trim() != plain;
            assert!(
                trimmed || answer.status == 400 || answer.json()["dead_lettered"] == 1,
                "{name:?}: {answer:?}"
            );
        }
        // And as a tenant, which is a file's name.
        let added = server.admin_post("/api/v1/tenants", &json!({"tenant": plain}));
        assert!((400..500).contains(&added.status), "{name:?}: {added:?}");
        let changed = server.admin_post(
            &format!("/api/v1/tenants/{}/rotate", query.replace('+', "%20")),
            &json!({}),
        );
        assert!((400..500).contains(&changed.status), "{name:?}: {changed:?}");
    }
    balances(&server);
    let segment = |text: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-=".contains(&b))
            && !text.contains("..")
    };
    let (data, lake) = (dir.path().join("data"), dir.path().join("lake"));
    let mut kinds = BTreeSet::new();
    for file in files(dir.path(), "") {
        let below = file.strip_prefix(dir.path()).unwrap();
        assert!(
            file.starts_with(&data)
                || file.starts_with(&lake)
                || below.as_os_str() == "tidegate.toml",
            "{below:?}"
        );
        assert!(below.iter().all(|part| segment(&part.to_string_lossy())), "{below:?}");
        kinds.insert(below.iter().take(3).collect::<std::path::PathBuf>());
    }
    assert!(kinds.iter().any(|kind| kind.starts_with("lake/dead_letters")), "{kinds:?}");
    assert!(
        std::fs::read_dir(data.join("tenants"))
            .unwrap()
            .all(|e| e.unwrap().file_name() == ".pepper")
    );
}

#[test]
fn a_tenants_name_is_no_others_prefix_in_the_lake() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    for name in ["a", "aa", "a-b", "a_b"] {
        let key = tenant(&server, name);
        for event_type in ["t", "T", "t.x", "t-x"] {
            let body =
                format!("{{\"event_type\":\"{event_type}\",\"of\":\"{name} {event_type}\"}}");
            assert_eq!(
                server.post("/v1/events", &key, "application/json", body.as_bytes()).status,
                200
            );
        }
    }
    balances(&server);
    let lines = lake_lines(dir.path());
    assert_eq!(lines.len(), 16);
    for (path, line) in lines {
        let parts: Vec<&str> = path.split('/').collect();
        let name = parts[1].strip_prefix("tenant=").unwrap();
        let event_type = parts[2].strip_prefix("event_type=").unwrap();
        assert!(line.contains(&format!("\"of\":\"{name} {event_type}\"")), "{path}: {line}");
    }
}
