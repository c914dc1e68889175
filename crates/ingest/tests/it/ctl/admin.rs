//! Commands that talk to the admin address.

use serde_json::{Value, json};

use super::stub::{Stub, answer, ingestctl, ingestctl_with_input, nobody, with_header};

/// A path and what is answered there.
type Document = (&'static str, fn() -> Value);

/// Answers each path with its document.
fn serving(documents: &'static [Document]) -> Stub {
    Stub::start(move |_, asked| {
        let path = asked.line.split([' ', '?']).nth(1).unwrap();
        match documents.iter().find(|(known, _)| *known == path) {
            Some((_, document)) => answer(200, document()),
            None => {
                answer(404, json!({"status": 404, "code": "not_found", "title": "no such thing"}))
            }
        }
    })
}

const STATUS: &str = "/api/v1/status";
const OFFSETS: (&str, fn() -> Value) = (
    "/api/v1/offsets",
    || json!({"log_id": "abcdefgh", "partitions": [{"partition": 0, "earliest": 10, "latest": 1234}]}),
);

fn status_document(ready: bool) -> Value {
    json!({"ready": ready, "reasons": if ready { vec![] } else { vec!["the disk is full"] },
        "stages": [{"name": "writer", "bound_bytes": 1000, "held_bytes": 500, "drain_bytes_per_second": 2048}],
        "sinks": [{"name": "lake", "lag_events": 7, "freshness_seconds": 1.5, "held":
            [{"tenant": "acme", "event_type": "order", "error": "no \u{1b}[31mspace",
              "pending_events": 3, "pending_bytes": 2048}]}],
        "dedup": [{"partition": 0, "ids": 50, "ids_bound": 50, "windows":
            [{"window_seconds": 600, "kept_seconds": 600}, {"window_seconds": 86_400, "kept_seconds": 7_200}]}]})
}

#[test]
fn status_of_a_ready_server_is_0_and_shows_bars_and_held_lanes() {
    let stub = serving(&[(STATUS, || status_document(true)), OFFSETS]);
    let done = ingestctl(&stub.url(), &["status"]);
    assert_eq!(done.status, 0, "{done:?}");
    for part in [
        "READY",
        "[#####.....]  50 %",
        "500 B  1000 B  2.0 KiB/s  244 ms",
        "1,224",
        "7 events",
        "1.5 s",
    ] {
        assert!(done.out.contains(part), "{part} in {}", done.out);
    }
    assert!(
        done.out.contains("lake: acme/order is held (3 events, 2.0 KiB): no \\u{1b}[31mspace"),
        "{}",
        done.out
    );
    let shortened = done.out.matches("partition 0 remembers ids for").count();
    assert!(shortened == 1 && done.out.contains("log.dedup_ids (50)"), "{}", done.out);
    assert!(!done.out.contains('\u{1b}'), "foreign text reached the terminal");
    let as_json = ingestctl(&stub.url(), &["status", "--json"]);
    assert_eq!(as_json.json(), status_document(true));
}

#[test]
fn status_of_a_server_that_is_not_ready_is_1_and_says_why() {
    let stub = serving(&[(STATUS, || status_document(false)), OFFSETS]);
    let done = ingestctl(&stub.url(), &["status"]);
    assert_eq!(done.status, 1);
    assert!(done.out.contains("NOT READY\n  the disk is full"), "{}", done.out);
}

#[test]
fn a_server_that_cannot_be_reached_is_3_and_says_how_to_mend_it() {
    let commands: &[&[&str]] = &[
        &["status"],
        &["offsets"],
        &["tail"],
        &["audit"],
        &["reload"],
        &["drain"],
        &["tenant", "list"],
        &["dead-letters", "list"],
        &["send", "-"],
        &["load"],
    ];
    let url = nobody();
    for command in commands {
        let done = ingestctl(&url, command);
        assert_eq!(done.status, 3, "{command:?}: {done:?}");
        assert!(done.err.contains(&format!("cannot reach {url}")), "{done:?}");
        assert!(done.err.contains("to mend it: check that ingestd runs"), "{done:?}");
        assert_eq!(done.out, "", "{command:?}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_2() {
    let url = nobody();
    for command in [
        &["frobnicate"][..],
        &["--admin", "nowhere", "status"],
        &["dead-letters", "redrive"],
        &["status", "--every", "5s"],
        &["load", "--rate", "0"],
    ] {
        assert_eq!(ingestctl(&url, command).status, 2, "{command:?}");
    }
}

#[test]
fn the_token_is_presented_and_its_refusal_explained() {
    let stub = Stub::start(|_, asked| match asked.header("authorization") {
        "Bearer sesame" => answer(200, json!({"partitions": []})),
        _ => answer(401, json!({"status": 401, "code": "token_missing", "detail": "no token"})),
    });
    assert_eq!(ingestctl(&stub.url(), &["offsets", "--token", "sesame"]).status, 0);
    let done = ingestctl(&stub.url(), &["offsets"]);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("401 token_missing: no token"), "{}", done.err);
    assert!(done.err.contains("TIDEGATE_ADMIN_TOKEN"), "{}", done.err);
}

#[test]
fn an_address_that_is_no_admin_address_is_said_to_be_none() {
    let stub = Stub::start(|_, _| answer(200, "<html>hello</html>"));
    let done = ingestctl(&stub.url(), &["status"]);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("not JSON") && done.err.contains("8081"), "{}", done.err);
}

#[test]
fn offsets_print_what_the_server_says() {
    let stub = serving(&[OFFSETS]);
    let done = ingestctl(&stub.url(), &["offsets", "--json"]);
    assert_eq!(done.json()["partitions"][0]["latest"], 1234);
    let text = ingestctl(&stub.url(), &["offsets"]).out;
    assert_eq!(
        text,
        "log abcdefgh\nPARTITION  EARLIEST  LATEST  EVENTS\n        0        10   1,234   1,224\n"
    );
}

fn audit(balanced: bool) -> Value {
    json!({"balanced": balanced, "difference": if balanced { 0 } else { -2 }, "tenants": [
        {"tenant": "acme", "event_type": "order", "received": 10, "accepted": 8, "dead_lettered": 1,
         "deduplicated": 0, "rejected": 1, "shed": 0,
         "sinks": {"lake": {"stored": 8, "pending": 0, "quarantined": 0, "skipped": 0}}}]})
}

#[test]
fn audit_is_0_when_the_books_balance_and_1_when_not() {
    let good = serving(&[("/api/v1/audit", || audit(true))]);
    let done = ingestctl(&good.url(), &["audit"]);
    assert_eq!(done.status, 0);
    assert!(done.out.contains("the books balance"), "{}", done.out);
    let bad = serving(&[("/api/v1/audit", || audit(false))]);
    let done = ingestctl(&bad.url(), &["audit"]);
    assert_eq!(done.status, 1);
    assert!(done.out.contains("do NOT balance: difference -2"), "{}", done.out);
    assert_eq!(ingestctl(&bad.url(), &["audit", "--json"]).json()["difference"], -2);
}

#[test]
fn audit_with_a_journal_reports_what_is_missing() {
    let stub = Stub::start(|_, asked| {
        if asked.line.ends_with("/audit/ids") {
            if asked.body.len() > 2 << 20 {
                return answer(413, json!({"status": 413}));
            }
            let lines = asked.lines();
            let missing = asked.body.windows(4).filter(|w| w == b"gone").count();
            return answer(
                200,
                json!({"checked": lines, "missing": vec!["gone"; missing], "missing_count": missing}),
            );
        }
        answer(200, audit(true))
    });
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.ndjson");
    let path = journal.to_str().unwrap();
    let mut text = "{\"event_type\":\"t\",\"event_id\":\"x\"}\n".repeat(125_000);
    std::fs::write(&journal, &text).unwrap();
    let done = ingestctl(&stub.url(), &["audit", "--journal", path, "--json"]);
    assert_eq!((done.status, &done.json()["journal"]["checked"]), (0, &json!(125_000)));
    let posts = stub.asked().iter().filter(|a| a.line.starts_with("POST")).count();
    assert!(posts > 2, "ids go in smaller parts to a server that refuses many");
    text.push_str("{\"event_id\":\"gone\"}\n{\"event_id\":\"torn");
    std::fs::write(&journal, &text).unwrap();
    let done = ingestctl(&stub.url(), &["audit", "--journal", path]);
    assert_eq!(done.status, 1);
    assert!(done.out.contains("125,001 acknowledged events, 1 MISSING\n  gone"), "{}", done.out);
    assert!(done.err.contains("last line has no end"), "{}", done.err);
}

#[test]
fn tenant_add_prints_the_key_alone_and_sends_the_quota() {
    let stub = Stub::start(|_, _| answer(201, json!({"tenant": "acme", "key": "tgk_a_b"})));
    let line = ["tenant", "add", "acme", "--events-per-second", "10", "--bytes-per-second", "1MiB"];
    let done = ingestctl(&stub.url(), &line);
    assert_eq!((done.status, done.out.as_str()), (0, "tgk_a_b\n"));
    assert!(done.err.contains("shown this once only"));
    let asked = stub.asked().remove(0);
    assert_eq!(asked.line, "POST /api/v1/tenants");
    assert_eq!(asked.header("content-type"), "application/json");
    let body = json!({"tenant": "acme", "events_per_second": 10, "bytes_per_second": 1 << 20});
    assert_eq!(asked.json(), body);
}

#[test]
fn tenant_set_sends_what_changes_and_nothing_else() {
    let stub = Stub::start(|_, _| answer(200, json!({"tenant": "acme"})));
    let line = ["tenant", "set", "acme", "--events-per-day", "500", "--weight", "3"];
    let types = ["--type-quota", "a=5/10", "--type-quota", "b=7"];
    let done = ingestctl(&stub.url(), &[&line[..], &types[..]].concat());
    assert_eq!(done.status, 0, "{done:?}");
    let asked = stub.asked().remove(0);
    assert_eq!(asked.line, "POST /api/v1/tenants/acme/quota");
    let types = json!({"a": {"events_per_second": 5, "events_burst": 10},
        "b": {"events_per_second": 7}});
    assert_eq!(asked.json(), json!({"events_per_day": 500, "weight": 3, "types": types}));
    assert_eq!(ingestctl(&stub.url(), &["tenant", "set", "acme"]).status, 2);
    let wrong = ["tenant", "set", "acme", "--type-quota", "a=many"];
    assert_eq!(ingestctl(&stub.url(), &wrong).status, 2);
}

#[test]
fn tenants_are_rotated_disabled_and_listed() {
    let stub = Stub::start(|_, asked| match asked.line.as_str() {
        "GET /api/v1/tenants" => answer(
            200,
            json!({"tenants": [{"tenant": "acme", "enabled": false,
            "strict": true, "quota": {"events_per_second": 5000},
            "keys": [{"id": "k1", "not_after": "2026-12-01T00:00:00Z", "event_types": null}]}]}),
        ),
        line if line.ends_with("/rotate") => answer(
            200,
            json!({"tenant": "acme", "key": "new", "old_keys_expire_at": "2026-12-01T00:00:00Z"}),
        ),
        _ => answer(200, json!({"tenant": "acme", "enabled": false})),
    });
    let url = stub.url();
    let done = ingestctl(&url, &["tenant", "rotate", "acme", "--expire-old-after", "1d"]);
    assert_eq!(done.out, "new\n");
    assert!(done.err.contains("good until 2026-12-01T00:00:00Z"));
    assert_eq!(ingestctl(&url, &["tenant", "disable", "acme"]).out, "acme is disabled\n");
    let list = ingestctl(&url, &["tenant", "list"]).out;
    let words: Vec<_> = list.split_whitespace().collect();
    assert!(
        words.join(" ").contains("acme disabled 5,000 no limit no limit 1 strict k1 (until 2026"),
        "{list}"
    );
    let shown = ingestctl(&url, &["tenant", "show", "acme"]);
    assert!(shown.out.contains("events at once") && shown.out.contains("strict"), "{shown:?}");
    assert_eq!(ingestctl(&url, &["tenant", "show", "nobody"]).status, 3);
    let asked = stub.asked();
    assert_eq!(asked[0].line, "POST /api/v1/tenants/acme/rotate");
    assert_eq!(asked[0].json(), json!({"expire_old_after_seconds": 86_400}));
    assert_eq!(asked[1].line, "POST /api/v1/tenants/acme/disable");
}

#[test]
fn public_keys_are_made_shown_and_taken_back() {
    let stub = Stub::start(|_, asked| match asked.line.as_str() {
        "GET /api/v1/tenants" => answer(
            200,
            json!({"tenants": [{"tenant": "acme", "enabled": true, "strict": false, "quota": {},
            "keys": [{"id": "k1", "not_after": null, "event_types": ["t"], "public": true,
            "origins": ["https://a.example"]}]}]}),
        ),
        line if line.ends_with("/public_keys") => {
            answer(200, json!({"tenant": "acme", "id": "k1", "key": "tgp_k1_x"}))
        }
        _ => answer(200, json!({"tenant": "acme", "id": "k1", "revoked": true})),
    });
    let url = stub.url();
    let origin = ["--origin", "https://a.example", "--event-type", "t"];
    let made = ingestctl(&url, &[&["tenant", "public-key", "acme"], &origin[..]].concat());
    assert_eq!(made.out, "tgp_k1_x\n");
    assert!(made.err.contains("ingestctl tenant revoke acme k1"), "{}", made.err);
    let shown = ingestctl(&url, &["tenant", "show", "acme"]).out;
    assert!(shown.contains("k1 (public for https://a.example) (only t)"), "{shown}");
    let gone = ingestctl(&url, &["tenant", "revoke", "acme", "k1"]);
    assert_eq!(gone.out, "k1 of acme is refused from now on\n");
    assert_eq!(ingestctl(&url, &["tenant", "revoke", "acme", "../k1"]).status, 2);
    let asked = stub.asked();
    assert_eq!(asked[0].line, "POST /api/v1/tenants/acme/public_keys");
    assert_eq!(asked[0].json(), json!({"origins": ["https://a.example"], "event_types": ["t"]}));
    assert_eq!(asked[2].line, "POST /api/v1/tenants/acme/public_keys/k1/revoke");
    assert_eq!(asked.len(), 3);
}

#[test]
fn reload_that_is_refused_is_1_and_lists_every_fault() {
    let stub = Stub::start(|before, _| match before {
        0 => answer(
            200,
            json!({"generation": 4, "changed": ["schemas"], "needs_restart": ["log.dir"]}),
        ),
        _ => answer(
            422,
            json!({"status": 422, "code": "reload_refused", "detail": "2 faults",
            "errors": ["a.json: no type", "edge.limits"]}),
        ),
    });
    let done = ingestctl(&stub.url(), &["reload"]);
    assert_eq!(done.status, 0);
    assert!(done.out.starts_with("generation 4 is live\n"), "{}", done.out);
    assert!(done.out.contains("needs restart  log.dir"));
    let done = ingestctl(&stub.url(), &["reload"]);
    assert_eq!(done.status, 1);
    assert!(
        done.out.contains("nothing was changed") && done.out.contains("  a.json: no type\n"),
        "{done:?}"
    );
    assert_eq!(ingestctl(&stub.url(), &["reload", "--json"]).json()["errors"][1], "edge.limits");
}

#[test]
fn drain_asks_for_it() {
    let stub = Stub::start(|_, _| answer(202, json!({"draining": true})));
    assert_eq!(ingestctl(&stub.url(), &["drain", "--json"]).json(), json!({"draining": true}));
    assert_eq!(stub.asked()[0].line, "POST /api/v1/drain");
}

fn letter(offset: u64) -> Value {
    json!({"partition": 0, "offset": offset, "tenant": "acme", "event_type": "order", "event_id": "e",
        "received_at": "2026-11-21T00:00:00Z", "code": "type_mismatch", "field": "/n",
        "message": "text, not number", "redriven": false})
}

#[test]
fn dead_letters_are_listed_over_pages_up_to_the_limit() {
    let stub = Stub::start(|before, _| {
        let next = json!({"partition": 0, "from": before + 1});
        answer(200, json!({"dead_letters": [letter(before as u64)], "next": next}))
    });
    let line =
        ["dead-letters", "list", "--tenant", "acme", "--code", "type_mismatch", "--limit", "3"];
    let done = ingestctl(&stub.url(), &line);
    assert_eq!((done.status, done.out.lines().count()), (0, 4), "{done:?}");
    assert!(done.err.contains("go on with --from 0/3"), "{}", done.err);
    let asked = stub.asked();
    assert_eq!(asked[0].line, "GET /api/v1/dead-letters?tenant=acme&code=type_mismatch&limit=3");
    assert!(asked[1].line.ends_with("limit=2&partition=0&from=1"), "{}", asked[1].line);
}

#[test]
fn a_dead_letter_is_shown_with_what_was_sent() {
    let stub = Stub::start(|_, _| {
        let mut letter = letter(17);
        letter["raw"] = json!("{\"n\":\"\u{1b}[2J\"}");
        answer(200, letter)
    });
    let done = ingestctl(&stub.url(), &["dead-letters", "show", "17"]);
    assert_eq!(stub.asked()[0].line, "GET /api/v1/dead-letters/0/17");
    assert!(
        done.out.contains("type_mismatch") && done.out.contains("as it was sent:"),
        "{}",
        done.out
    );
    assert!(!done.out.contains('\u{1b}'));
}

#[test]
fn redrive_needs_yes_and_says_what_it_would_do() {
    let stub = Stub::start(|_, _| {
        answer(200, json!({"matched": 3, "accepted": 2, "dead_lettered": 1, "skipped": 0}))
    });
    let url = stub.url();
    let done = ingestctl(&url, &["dead-letters", "redrive", "--tenant", "acme"]);
    assert_eq!(done.status, 2);
    assert!(
        done.err.contains("3 dead letters: 3 to re-drive") && done.err.contains("--yes"),
        "{}",
        done.err
    );
    assert_eq!(stub.asked().len(), 1);
    assert_eq!(stub.asked()[0].json(), json!({"tenant": "acme", "dry_run": true}));
    let line = ["dead-letters", "redrive", "0/5", "7", "--yes", "--by", "ann"];
    let done = ingestctl(&url, &line);
    assert_eq!(
        (done.status, done.out.as_str()),
        (0, "3 dead letters: 2 accepted, 1 still invalid, 0 re-driven before\n")
    );
    let positions = json!([{"partition": 0, "offset": 5}, {"partition": 0, "offset": 7}]);
    assert_eq!(
        stub.asked()[1].json(),
        json!({"offsets": positions, "dry_run": false, "by": "ann"})
    );
}

#[test]
fn tail_shows_events_until_its_limit() {
    let stub = Stub::start(|_, _| {
        let event = |offset, verdict| {
            json!({"partition": 0, "offset": offset, "tenant": "acme", "event_type": "order",
            "event_id": "e", "received_at": "2026-11-21T00:00:00Z", "verdict": verdict,
            "event": {"n": 1}})
        };
        let lines = format!(
            "{}\n{}\n\n{}\n",
            event(1, "accepted"),
            event(2, "type_mismatch"),
            event(3, "accepted")
        );
        with_header(answer(200, lines), "content-type", "application/x-ndjson")
    });
    let url = stub.url();
    let done = ingestctl(&url, &["tail", "--tenant", "acme", "--limit", "2"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(
        done.out,
        "2026-11-21T00:00:00Z 0/1 acme/order accepted {\"n\":1}\n\
         2026-11-21T00:00:00Z 0/2 acme/order dead letter (type_mismatch) {\"n\":1}\n"
    );
    assert_eq!(stub.asked()[0].line, "GET /api/v1/tail?tenant=acme");
    let done = ingestctl(&url, &["tail", "--json"]);
    assert_eq!((done.status, done.out.lines().count()), (3, 3), "the stream ended: {done:?}");
}

#[test]
fn a_configuration_is_checked_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let line = [&["config", "check", file.to_str().unwrap()], more].concat();
        ingestctl_with_input("http://127.0.0.1:1", &line, b"")
    };
    let done = check("[admin]\ntoken = \"hunter2\"\n", &["--json"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.json()["config"]["admin"]["token"], "[secret]");
    assert_eq!(check("", &[]).out, format!("{}: valid\n", file.display()));
    let done = check("[edge]\nlisten = 5\n", &[]);
    assert_eq!(done.status, 1);
    assert!(done.err.contains("listen") && done.out.contains("not valid"), "{done:?}");
    let done = check("[nonsense]\n", &["--json"]);
    assert_eq!((done.status, &done.json()["valid"]), (1, &json!(false)));
    let done = ingestctl("http://127.0.0.1:1", &["config", "check", "/nowhere/at/all.toml"]);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("check the path"), "{}", done.err);
}

#[test]
fn https_is_spoken_to_whom_the_given_certificates_trust_and_nobody_else() {
    let (stub, certificate) = Stub::start_tls(|_, _| answer(200, json!({"partitions": []})));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, certificate).unwrap();
    let cacert = path.to_str().unwrap();
    let done = ingestctl(&stub.tls_url(), &["offsets", "--cacert", cacert]);
    assert_eq!(done.status, 0, "{done:?}");
    let (other, _) = Stub::start_tls(|_, _| answer(200, json!({"partitions": []})));
    let done = ingestctl(&other.tls_url(), &["offsets", "--cacert", cacert]);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("invalid peer certificate"), "{}", done.err);
    std::fs::write(&path, "nothing").unwrap();
    let done = ingestctl(&stub.tls_url(), &["offsets", "--cacert", cacert]);
    assert!(done.status == 3 && done.err.contains("--cacert"), "{done:?}");
    assert_eq!(other.asked().len(), 0);
}
