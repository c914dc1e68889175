//! `ingestctl load`: what it sends and what it reports; how fast it is, a benchmark shows.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::stub::{Stub, all_accepted, answer, ingestctl, with_header};

#[test]
fn the_same_seed_sends_the_same_first_body() {
    let first = |seed: &str| {
        let stub = Stub::start(|_, asked| all_accepted(asked));
        let line = ["load", "--events", "20", "--batch", "20", "--seed", seed, "--json"];
        assert_eq!(ingestctl(&stub.url(), &line).status, 0);
        stub.asked().remove(0).body
    };
    assert_eq!(first("5"), first("5"));
    assert_ne!(first("5"), first("6"));
}

#[test]
fn so_many_events_are_sent_and_no_more() {
    for (events, batch, rate) in
        [("1050", "100", None), ("30", "500", None), ("300", "100", Some("10000"))]
    {
        let stub = Stub::start(|_, asked| all_accepted(asked));
        let mut line = vec!["load", "--events", events, "--batch", batch, "--json"];
        line.extend(rate.into_iter().flat_map(|rate| ["--rate", rate]));
        let done = ingestctl(&stub.url(), &line);
        assert_eq!(done.status, 0, "{done:?}");
        let report = done.json();
        let n: u64 = events.parse().unwrap();
        assert_eq!((&report["sent"], &report["accepted"]), (&json!(n), &json!(n)));
        assert_eq!(stub.asked().iter().map(super::stub::Asked::lines).sum::<u64>(), n);
        for name in ["p50", "p95", "p99", "p99.9", "max"] {
            assert!(report["latency_ms"][name].is_number(), "{name} in {report}");
        }
        assert!(report["events_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_journal_holds_ids_of_200s_alone_and_each_is_new() {
    let stub = Stub::start(|before, asked| match before % 3 {
        1 => with_header(
            answer(429, json!({"code": "quota_events"})),
            "x-shed-reason",
            "quota_events",
        ),
        2 => None,
        _ => all_accepted(asked),
    });
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("j");
    let line = [
        "load",
        "--events",
        "600",
        "--batch",
        "10",
        "--connections",
        "1",
        "--event-types",
        "2",
        "--key",
        "acme=k",
        "--journal",
        journal.to_str().unwrap(),
        "--json",
    ];
    let done = ingestctl(&stub.url(), &line);
    assert_eq!(done.status, 0, "{done:?}");
    let report = done.json();
    assert_eq!(report["codes"], json!({"200": 20, "429": 20}));
    assert_eq!(report["shed"], json!({"quota_events": 20}));
    assert_eq!(report["errors"], json!({"connection_cut": 20}));
    let entries: Vec<Value> = std::fs::read_to_string(&journal)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let journaled: BTreeSet<_> =
        entries.iter().map(|e| e["event_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((entries.len(), journaled.len()), (200, 200));
    assert_eq!(
        (&entries[1]["tenant"], &entries[1]["event_type"]),
        (&json!("acme"), &json!("load_1"))
    );
    let answered: BTreeSet<String> = stub
        .asked()
        .iter()
        .step_by(3)
        .flat_map(|a| {
            let lines = std::str::from_utf8(&a.body).unwrap().lines();
            let ids = lines.map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["event_id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            });
            ids.collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(journaled, answered);
}

#[test]
fn with_retry_the_same_bytes_are_sent_until_they_are_kept() {
    let stub = Stub::start(|before, asked| match before {
        0 => with_header(answer(503, json!({"code": "log_full"})), "retry-after", "0"),
        1 => None,
        _ => all_accepted(asked),
    });
    let line = ["load", "--events", "10", "--batch", "10", "--ids", "--retry", "--json"];
    let done = ingestctl(&stub.url(), &line);
    assert_eq!(done.json()["accepted"], 10, "{done:?}");
    assert_eq!(done.json()["retries"], 2);
    let asked = stub.asked();
    assert!(asked.iter().all(|a| a.body == asked[0].body));
}

#[test]
fn keys_are_used_in_turn_and_a_refused_key_ends_it() {
    let stub = Stub::start(|_, asked| all_accepted(asked));
    let line =
        ["load", "--events", "4", "--batch", "1", "--connections", "1", "--key", "a", "--key", "b"];
    assert_eq!(ingestctl(&stub.url(), &line).status, 0);
    let keys: Vec<_> = stub.asked().iter().map(|a| a.header("authorization").to_owned()).collect();
    assert_eq!(keys, ["Bearer a", "Bearer b", "Bearer a", "Bearer b"]);
    let stub = Stub::start(|_, _| answer(401, json!({"code": "key_unknown"})));
    let done = ingestctl(&stub.url(), &["load", "--duration", "30s"]);
    assert_eq!(done.status, 3);
    assert!(done.err.contains("key_unknown") && done.err.contains("--key"), "{}", done.err);
}

#[test]
fn packed_bodies_hold_the_events() {
    for (name, unpack) in [
        (
            "gzip",
            (|b: &[u8]| {
                let mut out = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(b), &mut out)
                    .map(|_| out)
            }) as fn(&[u8]) -> std::io::Result<Vec<u8>>,
        ),
        ("zstd", |b: &[u8]| zstd::decode_all(b)),
    ] {
        for ids in [&["--ids"][..], &[]] {
            let stub = Stub::start(|_, _| answer(200, json!({"accepted": 5})));
            let line = [&["load", "--events", "5", "--batch", "5", "--compression", name][..], ids]
                .concat();
            assert_eq!(ingestctl(&stub.url(), &line).status, 0);
            let asked = stub.asked().remove(0);
            assert_eq!(asked.header("content-encoding"), name);
            let body = unpack(&asked.body).unwrap();
            assert_eq!(body.iter().filter(|b| **b == b'\n').count(), 5);
        }
    }
}

#[test]
fn a_rate_that_cannot_be_kept_is_said_and_stays_in_the_latencies() {
    // One connection and a server that takes 50 ms: 20 requests a second of the 200 asked for.
    let stub = Stub::start(|_, asked| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        all_accepted(asked)
    });
    let line = [
        "load",
        "--rate",
        "200",
        "--batch",
        "1",
        "--connections",
        "1",
        "--duration",
        "1s",
        "--json",
    ];
    let report = ingestctl(&stub.url(), &line).json();
    let unsent = report["unsent_requests"].as_u64().unwrap();
    let requests = report["requests"].as_u64().unwrap();
    assert_eq!(unsent + requests, 200, "{report}");
    assert!(unsent > 100, "{report}");
    // Measured from when they were due: the median waited for hundreds of milliseconds.
    assert!(report["latency_ms"]["p50"].as_f64().unwrap() > 200.0, "{report}");
}

#[test]
fn http_2_is_spoken_with_and_without_tls() {
    let (secure, certificate) = Stub::start_tls(|_, asked| all_accepted(asked));
    let plain = Stub::start(|_, asked| all_accepted(asked));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, certificate).unwrap();
    let cacert = path.to_str().unwrap();
    for (stub, url) in [(&secure, secure.tls_url()), (&plain, plain.url())] {
        for (http2, version) in [(true, http::Version::HTTP_2), (false, http::Version::HTTP_11)] {
            let mut line =
                vec!["load", "--events", "100", "--batch", "10", "--json", "--cacert", cacert];
            line.extend(http2.then_some("--http2"));
            let done = ingestctl(&url, &line);
            assert_eq!(done.json()["accepted"], 100, "{url} {done:?}");
            assert_eq!(stub.asked().last().unwrap().version, version);
        }
    }
}

#[test]
fn scenarios_are_listed_and_a_name_that_is_none_is_a_usage_fault() {
    let listed = ingestctl("http://127.0.0.1:1", &["load", "--scenario", "list", "--json"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    let listed = listed.json();
    let names: Vec<_> =
        listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    for name in ["noisy-requests", "slow-sockets", "dead-sink", "recovery", "capacity"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let unknown = ingestctl("http://127.0.0.1:1", &["load", "--scenario", "noise"]);
    assert_eq!(unknown.status, 2, "{unknown:?}");
    assert!(unknown.err.contains("noisy-requests"), "{}", unknown.err);
}

#[test]
fn a_scenario_whose_server_does_not_start_could_not_be_run_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().to_str().unwrap();
    for (program, says) in [("/bin/false", "ended at its start"), ("/no/such/program", "ingestd")] {
        let line = [
            "load",
            "--scenario",
            "capacity",
            "--no-pin",
            "--data-dir",
            below,
            "--ingestd",
            program,
        ];
        let done = ingestctl("http://127.0.0.1:1", &line);
        assert_eq!(done.status, 3, "{done:?}");
        assert!(done.err.contains(says), "{}", done.err);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_scenario_measures_a_server_of_its_own_and_clears_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().to_str().unwrap();
    let line = [
        "load",
        "--scenario",
        "capacity",
        "--duration",
        "1s",
        "--victim-batch",
        "20",
        "--no-pin",
        "--data-dir",
        below,
        "--json",
    ];
    let done = ingestctl("http://127.0.0.1:1", &line);
    assert_eq!(done.status, 0, "{done:?}");
    let report = done.json();
    assert!(report["facts"]["capacity"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["holds"], true, "{report}");
    assert_eq!(report["parties"][0]["goodput"], 1.0, "{report}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
