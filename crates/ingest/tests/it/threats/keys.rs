//! Whose events they are: the key says so, and nothing else does. Keys that were guessed, copied or
//! taken back; requests that were captured and sent again.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{balances, lake_lines, scale, statuses, tenant, until_closed, with_lines};
use crate::{
    server::{Server, files, request, wait_for},
    tally::Tally,
};

/// Every way we know to name a tenant beside the key: `(headers, query, fields of the event)`.
fn ways(victim: &str, victim_id: &str) -> Vec<(String, String, String)> {
    let mut ways = Vec::new();
    for name in [
        "X-Scope-OrgID",
        "X-Tenant",
        "X-Tenant-Id",
        "X-Tidegate-Tenant",
        "Tenant",
        "X-Org-Id",
        "X-Account",
        "X-Forwarded-User",
        "X-Remote-User",
        "X-Original-Authorization",
        "Proxy-Authorization",
        "Cookie",
        "Forwarded",
        "X-Forwarded-Host",
        "Host",
        "From",
        "X-Real-Tenant",
        "THANOS-TENANT",
        "X-Namespace",
    ] {
        ways.push((format!("{name}: {victim}\r\n"), String::new(), String::new()));
    }
    ways.push((
        format!("Baggage: tenant={victim},tenant_id={victim}\r\n"),
        String::new(),
        String::new(),
    ));
    ways.push((format!("tracestate: tidegate=tenant:{victim}\r\n"), String::new(), String::new()));
    ways.push((format!("Authorization: Basic {victim}\r\n"), String::new(), String::new()));
    ways.push((format!("Idempotency-Key: {victim}\r\n"), String::new(), String::new()));
    for name in ["tenant", "tenant_id", "org", "key", "api_key", "x-api-key"] {
        ways.push((String::new(), format!("?{name}={victim}"), String::new()));
        ways.push((String::new(), format!("?{name}={victim_id}"), String::new()));
    }
    for field in [
        format!("\"tenant\":\"{victim}\""),
        format!("\"tenant_id\":\"{victim}\",\"_tenant\":\"{victim}\",\"org\":\"{victim}\""),
        format!("\"t\\u0065nant\":\"{victim}\""),
        format!("\"tidegate\":{{\"tenant\":\"{victim}\"}}"),
        format!("\"event_id\":\"{victim}/{victim_id}\""),
        format!("\"resource\":{{\"attributes\":{{\"tenant\":\"{victim}\"}}}}"),
    ] {
        ways.push((String::new(), String::new(), field));
    }
    ways
}

#[test]
fn every_way_to_name_a_tenant_with_every_other_key_writes_no_foreign_row() {
    let mut tally = Tally::new("threats::keys", "tenant at 100x", &["P3"]);
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let names = ["acme", "acme2", "victim", "zeta"];
    let keys: Vec<String> = names.iter().map(|name| tenant(&server, name)).collect();
    let mut sent = 0;
    for (sender, key) in names.iter().zip(&keys) {
        for (victim, victim_key) in names.iter().zip(&keys).filter(|(victim, _)| *victim != sender)
        {
            let victim_id = victim_key.split('_').nth(1).unwrap();
            for (headers, query, fields) in ways(victim, victim_id) {
                let comma = if fields.is_empty() { "" } else { "," };
                let body =
                    format!("{{\"event_type\":\"t\",\"sender\":\"{sender}\"{comma}{fields}}}");
                let host = if headers.starts_with("Host:") { "" } else { "Host: a\r\n" };
                let raw = format!(
                    "POST /v1/events{query} HTTP/1.1\r\n{host}X-Api-Key: {key}\r\n{headers}Connection: close\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let answer = until_closed(server.public, raw.as_bytes());
                assert_eq!(statuses(&answer), [200], "{raw}\n{answer}");
                sent += 1;
            }
        }
    }
    balances(&server);
    let lines = lake_lines(dir.path());
    assert_eq!(lines.len(), sent);
    for (path, line) in &lines {
        let owner = path.split('/').nth(1).unwrap().strip_prefix("tenant=").unwrap();
        assert!(line.contains(&format!("\"sender\":\"{owner}\"")), "{path}: {line}");
    }
    tally.survived(sent as u64);
}

#[test]
fn two_keys_or_parts_of_two_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let (a, b) = (tenant(&server, "a"), tenant(&server, "b"));
    let (front, back) = (&a[..17], &b[17..]);
    for headers in [
        format!("X-Api-Key: {a}\r\nX-Api-Key: {b}"),
        format!("Authorization: Bearer {a}\r\nX-Api-Key: {b}"),
        format!("Authorization: Bearer {a}\r\nAuthorization: Bearer {b}"),
        format!("X-Api-Key: {a}, {b}"),
        format!("Authorization: Bearer {a} {b}"),
        format!("Authorization: Bearer {a},{b}"),
        format!("X-Api-Key: {front}{back}"),
        format!("X-Api-Key: {}", a.to_lowercase()),
        format!("X-Api-Key: {}\u{a0}", a),
        format!("X-Api-Key: {}%00", a),
        format!("Authorization: {a}"),
        format!("Authorization: Token {a}"),
    ] {
        let raw = format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\n{headers}\r\nContent-Type: application/json\r\n\
             Content-Length: 18\r\n\r\n{{\"event_type\":\"x\"}}"
        );
        let answer = until_closed(server.public, raw.as_bytes());
        assert_eq!(statuses(&answer), [401], "{headers}: {answer}");
    }
    let audit = balances(&server);
    assert_eq!(audit["tenants"].as_array().unwrap().len(), 0, "{audit:#}");
}

/// One answer without what differs from one to the next.
fn plain(server: &Server, key: &str) -> Value {
    let headers = [("x-api-key", key), ("content-type", "application/json")];
    let answer = request(server.public, "POST", "/v1/events", &headers, b"{\"event_type\":\"x\"}");
    assert_eq!(answer.status, 401, "{key}: {answer:?}");
    let mut body = answer.json();
    body["request_id"] = json!("");
    body
}

#[test]
fn a_guess_learns_nothing_and_what_is_on_disk_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let key = tenant(&server, "acme");
    let refusal =
        plain(&server, "tgk_000000000000_0000000000000000000000000000000000000000000000000");
    let mut guesses: Vec<String> = Vec::new();
    for n in 0..200 * scale() {
        // A well-formed key of nobody; the right id with the wrong secret; the wrong last character.
        guesses.push(tidegate_ingest::tenants::generate().unwrap().text);
        let other = tidegate_ingest::tenants::generate().unwrap().text;
        guesses.push(format!("{}{}", &key[..17], &other[17..]));
        let mut wrong = key.clone().into_bytes();
        let at = wrong.len() - 1 - n % 40;
        wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
        guesses.push(String::from_utf8(wrong).unwrap());
    }
    for guess in &guesses {
        assert_eq!(plain(&server, guess), refusal, "{guess}");
    }
    // Whoever has read every file that the server keeps has no key.
    let mut words = BTreeSet::new();
    for file in files(&dir.path().join("data/tenants"), "") {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains(&key[17..60]), "the secret stands in a file");
        words.extend(
            text.split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|w| w.len() > 8)
                .map(str::to_owned),
        );
    }
    assert!(words.len() >= 4, "id, hash, secret of personal data, pepper: {words:?}");
    for word in &words {
        for guess in [word.clone(), format!("tgk_{word}"), format!("{}{word}", &key[..17])] {
            assert_eq!(plain(&server, &guess), refusal, "{guess}");
        }
    }
    assert_eq!(
        server.post("/v1/events", &key, "application/json", b"{\"event_type\":\"x\"}").status,
        200
    );
    balances(&server);
}

/// The watcher looks every second; the promise is five.
#[test]
fn a_key_taken_back_is_refused_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let send = |key: &str| {
        server.post("/v1/events", key, "application/json", b"{\"event_type\":\"x\"}").status
    };
    let key = tenant(&server, "acme");
    assert_eq!(send(&key), 200);
    let file = dir.path().join("data/tenants/acme.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (front, _) = text.split_once("[[key]]").unwrap();
    std::fs::write(&file, front).unwrap();
    wait_for("the key to be refused", || send(&key) == 401);
    std::fs::write(&file, &text).unwrap();
    wait_for("the key to be taken again", || send(&key) == 200);
    std::fs::remove_file(&file).unwrap();
    wait_for("the tenant's key to be refused", || send(&key) == 401);
    balances(&server);
}

/// A file copied under another name would give one tenant's key to another.
#[test]
fn a_key_that_stands_in_two_files_stays_with_its_tenant_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let key = tenant(&server, "victim");
    let tenants = dir.path().join("data/tenants");
    std::fs::copy(tenants.join("victim.toml"), tenants.join("attacker.toml")).unwrap();
    let reload = server.admin_post("/api/v1/reload", &json!({}));
    assert_eq!(reload.status, 422, "{reload:?}");
    assert!(reload.body.contains("attacker.toml") && reload.body.contains("victim"), "{reload:?}");
    assert!(!reload.body.contains(&key[17..]), "{reload:?}");
    for _ in 0..3 {
        let body = b"{\"event_type\":\"x\",\"of\":\"victim\"}";
        assert_eq!(server.post("/v1/events", &key, "application/json", body).status, 200);
    }
    balances(&server);
    let lines = lake_lines(dir.path());
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|(path, _)| path.contains("/tenant=victim/")), "{lines:?}");
    std::fs::remove_file(tenants.join("attacker.toml")).unwrap();
    let reload = server.admin_post("/api/v1/reload", &json!({}));
    assert_eq!(reload.status, 200, "{reload:?}");
}

#[test]
fn a_captured_request_sent_again_leaves_one_copy() {
    let mut tally = Tally::new("threats::keys", "client duplicates", &["P2", "P5"]);
    let dir = tempfile::tempdir().unwrap();
    let server = with_lines(dir.path(), "");
    let key = tenant(&server, "acme");
    let own = "{\"event_type\":\"x\",\"event_id\":\"own\"}";
    let keyed = "{\"event_type\":\"x\"}";
    let captured = |header: &str, body: &str| {
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n{header}Connection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for raw in [captured("", own), captured("Idempotency-Key: once\r\n", keyed)] {
        let replays: Vec<_> = (0..20 * scale())
            .map(|_| {
                let (address, raw) = (server.public, raw.clone());
                std::thread::spawn(move || until_closed(address, raw.as_bytes()))
            })
            .collect();
        let answers: Vec<String> = replays.into_iter().map(|r| r.join().unwrap()).collect();
        assert!(answers.iter().all(|a| statuses(a) == [200]), "{answers:?}");
        let accepted = answers.iter().filter(|a| a.contains("\"accepted\":1")).count();
        assert_eq!(accepted, 1, "{answers:?}");
        tally.survived(answers.len() as u64);
    }
    balances(&server);
    assert_eq!(lake_lines(dir.path()).len(), 2);
}
