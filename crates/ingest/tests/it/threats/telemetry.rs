//! What the server says of its clients: no new series, one line a record, no secret, no echo.

use std::io::Write;

use serde_json::{Value, json};

use super::{DEV, balances, connect, is_well, scale, statuses, tenant, until_closed};
use crate::server::{Answer, Server, request, wait_for};

/// A server that logs everything there is to log.
fn talkative(dir: &std::path::Path) -> Server {
    let data = dir.join("data").display().to_string();
    Server::start(&["--dev", "--data-dir", &data], &[("TIDEGATE_LOG_LEVEL", "trace")])
}

fn series(server: &Server) -> Vec<String> {
    let text = server.admin_get("/metrics").body;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut names: Vec<String> =
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
    names.sort();
    names
}

/// Sends requests one behind the other on few connections; each is answered.
fn send_all(server: &Server, requests: &[String]) {
    for part in requests.chunks(50) {
        for one in part {
            let answer = until_closed(server.public, one.as_bytes());
            assert_eq!(statuses(&answer).len(), 1, "{one}: {answer}");
        }
    }
}

fn strange(n: usize) -> Vec<String> {
    let end = "Connection: close\r\n";
    let body = format!("{{\"event_type\":\"type_{n}\",\"event_id\":\"{n}\",\"field_{n}\":1}}");
    vec![
        format!("METHOD{n} /v1/events HTTP/1.1\r\nHost: a\r\n{end}\r\n"),
        format!("GET /path/{n} HTTP/1.1\r\nHost: h{n}\r\n{end}User-Agent: agent/{n}\r\n\r\n"),
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: tgk_guess_{n}\r\n{end}Content-Type: application/x-{n}\r\n\
             Content-Length: 0\r\n\r\n"
        ),
        format!(
            "POST /v1/events?q{n}={n} HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\n{end}User-Agent: {n}\r\n\
             X-Custom-{n}: y\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\n{end}Content-Type: text/x-{n}\r\n\
             Content-Encoding: coding{n}\r\nContent-Length: 0\r\n\r\n"
        ),
    ]
}

#[test]
fn what_clients_make_up_makes_no_series() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    send_all(&server, &strange(0));
    server.settle();
    let settled = || {
        wait_for("the books in the metrics", || {
            server.admin_get("/metrics").body.contains("tidegate_books_events{")
        });
        series(&server)
    };
    // What one of each kind brings, whenever it is first seen, is what all of them bring.
    send_all(&server, &strange(1));
    server.settle();
    balances(&server);
    let before = settled();
    for n in 0..200 * scale() {
        send_all(&server, &strange(n + 2));
    }
    balances(&server);
    let after = settled();
    assert_eq!(after, before);
    assert!(
        after.iter().all(|name| !name.contains("type_1") && !name.contains("agent")),
        "{after:?}"
    );
}

/// What breaks lines, or moves a terminal's cursor, where it is printed as it came.
const BREAKS: &[&str] = &[
    "\\r\\n",
    "\\n",
    "\\u001b[31m",
    "\\u001b]0;x\\u0007",
    "\\u2028",
    "\\u2029",
    "\\u0085",
    "\\u009b2J",
    "\\u202e",
    "\\u0000",
    "\\u0008",
];

#[test]
fn nothing_a_client_sends_breaks_a_line_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let server = talkative(dir.path());
    for escaped in BREAKS {
        let plain: String = serde_json::from_str(&format!("\"{escaped}\"")).unwrap();
        let text = format!("canary{escaped}forged level=ERROR");
        for body in [
            format!("{{\"event_type\":\"{text}\"}}"),
            format!("{{\"event_type\":\"t\",\"event_id\":\"{text}\"}}"),
            format!("{{\"event_type\":\"t\",\"event_time\":\"{text}\"}}"),
            format!("{{\"event_type\":\"t\",\"{text}\":1,\"{text}\":2}}"),
            format!("{{\"event_type\":\"t\",\"v\":\"{text}\",\"x\":}}"),
            text.clone(),
        ] {
            server.post("/v1/events", DEV, "application/json", body.as_bytes());
        }
        let query: String =
            url::form_urlencoded::byte_serialize(format!("canary{plain}").as_bytes()).collect();
        server.post(&format!("/v1/events?event_type={query}"), DEV, "application/json", b"{}");
        server.post(&format!("/{query}"), DEV, "application/json", b"{}");
        for name in [
            "X-Request-Id",
            "User-Agent",
            "traceparent",
            "tracestate",
            "baggage",
            "X-Event-Type",
            "Idempotency-Key",
            "Content-Type",
            "Content-Encoding",
            "Authorization",
            "X-Api-Key",
            "ce-specversion",
            "ce-type",
            "Expect",
            "Origin",
            "Referer",
            "X-Forwarded-For",
        ] {
            let raw = format!(
                "POST /v1/events HTTP/1.1\r\nHost: a\r\n{name}: canary{plain}forged\r\nConnection: close\r\n\
                 Content-Length: 2\r\n\r\n{{}}"
            );
            until_closed(server.public, raw.as_bytes());
            server.admin_get(&format!("/api/v1/{query}"));
        }
    }
    is_well(&server);
    balances(&server);
    let log = server.log();
    assert!(log.lines().count() > 300, "it logs at trace");
    for line in log.split_terminator('\n') {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
        let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
        assert!(!line.contains(breaks), "{line:?}");
    }
}

/// All that others may come to see of the server: what it says, and what it keeps.
fn everything_said(
    server: &Server,
    dir: &std::path::Path,
    ask: &dyn Fn(&str, &str, &[u8]) -> Answer,
) -> Vec<(String, String)> {
    let mut said: Vec<(String, String)> = vec![("log".to_owned(), server.log())];
    for path in [
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/v1/status",
        "/api/v1/offsets",
        "/api/v1/audit",
        "/api/v1/dead-letters",
        "/api/v1/dead-letters/0/1",
        "/api/v1/tenants",
        "/api/v1/schemas",
        "/api/v1/config",
        "/api/v1/nothing",
    ] {
        said.push((path.to_owned(), ask("GET", path, b"").body));
    }
    for name in ["cmdline", "environ", "status"] {
        let text = std::fs::read(format!("/proc/{}/{name}", server.pid())).unwrap();
        said.push((name.to_owned(), String::from_utf8_lossy(&text).into_owned()));
    }
    for file in crate::server::files(dir, "").into_iter().filter(|f| {
        // Where they must stand: the files that only the server's owner may read, and its configuration.
        !f.starts_with(dir.join("data/tenants"))
            && !f.ends_with("tidegate.toml")
            && !f.ends_with("token")
    }) {
        let text = std::fs::read(&file).unwrap();
        said.push((file.display().to_string(), String::from_utf8_lossy(&text).into_owned()));
    }
    said
}

/// Writes a configuration that holds secrets; where it stands.
fn secret_config(dir: &std::path::Path, token: &str, store: &str) -> std::path::PathBuf {
    std::fs::write(dir.join("token"), token).unwrap();
    let lake = dir.join("lake");
    let config = format!(
        "[admin]\ntoken = \"file:{}\"\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\n\
         flush = {{ age = \"50ms\" }}\noptions = {{ format = \"jsonl\" }}\n\
         [[sink]]\nname = \"cloud\"\nkind = \"lake\"\nurl = \"s3://canary/x\"\npolicy = \"expire\"\n\
         flush = {{ age = \"50ms\" }}\n[sink.options.store]\naws_endpoint = \"http://127.0.0.1:9\"\n\
         aws_allow_http = \"true\"\naws_region = \"x\"\naws_access_key_id = \"canary-id\"\n\
         aws_secret_access_key = \"{store}\"\n",
        dir.join("token").display(),
    );
    let path = dir.join("tidegate.toml");
    std::fs::write(&path, config).unwrap();
    path
}

#[test]
fn no_secret_stands_in_what_the_server_says_or_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let token = "canary-admin-token-5f1c";
    let store = "canary-store-secret-77aa";
    let path = secret_config(dir.path(), token, store);
    let data = dir.path().join("data");
    let arguments =
        ["--config", &path.display().to_string(), "--data-dir", &data.display().to_string()];
    let server = Server::start(&arguments, &[("TIDEGATE_LOG_LEVEL", "trace")]);
    let bearer = format!("Bearer {token}");
    let authorized = [("authorization", &*bearer), ("content-type", "application/json")];
    let ask = |method: &str, path: &str, body: &[u8]| {
        request(server.admin, method, path, &authorized, body)
    };
    let added = ask("POST", "/api/v1/tenants", b"{\"tenant\":\"acme\"}").json();
    let first = added["key"].as_str().unwrap().to_owned();
    let rotated = ask("POST", "/api/v1/tenants/acme/rotate", b"{}").json();
    let second = rotated["key"].as_str().unwrap().to_owned();
    for key in [&first, &second] {
        for body in [
            &b"{\"event_type\":\"x\"}"[..],
            b"{\"event_type\":1}",
            b"nonsense",
            b"{\"event_type\":\"x\",\"a\":\"canary-payload\",\"a\":2}",
        ] {
            server.post("/v1/events", key, "application/json", body);
        }
        let wrong = format!("{}x", &key[..key.len() - 1]);
        server.post("/v1/events", &wrong, "application/json", b"{}");
        let http2 = [("x-api-key", &**key), ("authorization", "Basic canary-basic")];
        request(server.public, "POST", "/v1/events", &http2, b"{}");
        http2_request(&server, key, "/v1/events");
    }
    let public = key_in_paths(&server, &ask);
    request(
        server.admin,
        "GET",
        "/api/v1/status",
        &[("authorization", "Bearer canary-wrong-token")],
        b"",
    );
    assert_eq!(ask("POST", "/api/v1/reload", b"{}").status, 200);
    wait_for("the lake to catch up", || {
        let status = ask("GET", "/api/v1/status", b"").json();
        // The other one cannot be reached, and says so in its own words.
        let tried = server.log().contains("s3://canary") || server.log().contains("127.0.0.1:9/");
        status["sinks"].as_array().unwrap().iter().any(|s| s["lag_events"] == 0) && tried
    });
    let tenant_file = std::fs::read_to_string(data.join("tenants/acme.toml")).unwrap();
    let table: toml::Table = toml::from_str(&tenant_file).unwrap();
    let pepper = std::fs::read_to_string(data.join("tenants/.pepper")).unwrap();
    let hash = table["key"][0]["hash"].as_str().unwrap().to_owned();
    let pii = table["pii_secret"].as_str().unwrap().to_owned();
    // A public one is no secret, but what stands in a path stands in nothing else either.
    let secrets =
        [&first[17..], &second[17..], &public[17..], token, store, pepper.trim(), &pii, &hash];
    let said = everything_said(&server, dir.path(), &ask);
    assert!(
        !said[0].1.contains("canary-payload"),
        "what clients send stays out of the server's log"
    );
    assert!(said[0].1.contains("\"TRACE\"") || said[0].1.contains("\"DEBUG\""), "it logs at trace");
    for (place, text) in &said {
        for secret in secrets {
            let at =
                text.find(secret).map(|at| &text[text[..at].rfind('\n').map_or(0, |n| n + 1)..]);
            assert!(at.is_none(), "{secret} stands in {place}: {:.400}", at.unwrap());
        }
    }
}

/// Requests with a public key in their paths, such as are taken and such as are not; returns the key.
fn key_in_paths(server: &Server, ask: &dyn Fn(&str, &str, &[u8]) -> Answer) -> String {
    let made = ask("POST", "/api/v1/tenants/acme/public_keys", b"{}").json();
    let key = made["key"].as_str().unwrap().to_owned();
    let status = |method: &str, rest: &str, body: &[u8]| {
        request(server.public, method, &format!("/k/{key}{rest}"), &[], body).status
    };
    assert_eq!(status("GET", "/i?e=pv", b""), 200);
    assert_eq!(status("POST", "/v1/batch", b"{\"batch\":[{\"type\":\"page\"}]}"), 200);
    assert_eq!(status("POST", "/v1/batch", b"nonsense"), 400);
    assert_eq!(status("POST", "/services/collector", b"{}"), 403);
    // Firehose's API, which knows no key but by a signature.
    assert_eq!(status("POST", "/", b"{}"), 403);
    for rest in ["", "/nowhere", "?a=/b", "//v1/batch"] {
        assert_eq!(status("POST", rest, b"{}"), 404, "{rest}");
    }
    http2_request(server, &key, &format!("/k/{key}/v3/send/x"));
    key
}

/// One request with `key` over HTTP/2.
fn http2_request(server: &Server, key: &str, path: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.public).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post(format!("http://{}{path}", server.public))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(http_body_util::Full::new(bytes::Bytes::from_static(b"{\"event_type\":\"x\"}")))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
}

#[test]
fn whatever_the_trace_context_says_the_request_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let good = format!("00-{trace}-{parent}-01");
    let mut corpus =
        vec![String::new(), good.clone(), "0".repeat(1000), "-".repeat(55), "é".repeat(55)];
    // Every character wrong in turn, every length, every version, and fields too many.
    for at in 0..good.len() {
        for wrong in ["G", " ", "\u{e9}"] {
            corpus.push(format!("{}{wrong}{}", &good[..at], &good[at + 1..]));
        }
        corpus.push(good[..at].to_owned());
    }
    for version in 0..=255u32 {
        corpus.push(format!("{version:02x}{}", &good[2..]));
    }
    for end in ["-", "-01", "-x-y", "\t", ","] {
        corpus.push(format!("{good}{end}"));
    }
    corpus.push(format!("00-{}-{parent}-01", "0".repeat(32)));
    corpus.push(format!("00-{trace}-{}-01", "0".repeat(16)));
    assert!(corpus.len() >= 300, "{}", corpus.len());
    let states = ["", "a=b", "a=b,a=c", &"k=v,".repeat(100), "=", ",,,", "a b c"];
    let mut ids = std::collections::BTreeSet::new();
    for (n, text) in corpus.iter().enumerate() {
        let state = states[n % states.len()];
        let headers =
            format!("traceparent: {text}\r\ntracestate: {state}\r\nConnection: close\r\n");
        let answer =
            until_closed(server.public, &super::post(&headers, "{\"event_type\":\"traced\"}"));
        assert_eq!(statuses(&answer), [200], "{text}: {answer}");
        let id =
            answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned();
        assert!(!id.contains(trace), "the request's id is our own");
        assert!(ids.insert(id));
    }
    for twice in [
        format!("traceparent: {good}\r\ntraceparent: {good}\r\n"),
        "tracestate: a=b\r\n".repeat(40),
    ] {
        let headers = format!("{twice}Connection: close\r\n");
        let answer =
            until_closed(server.public, &super::post(&headers, "{\"event_type\":\"traced\"}"));
        assert_eq!(statuses(&answer), [200], "{answer}");
    }
    let audit = balances(&server);
    assert_eq!(audit["tenants"][0]["accepted"], corpus.len() as u64 + 2, "{audit:#}");
}

/// What scanners ask for.
const WORDS: &[&str] = &[
    "admin",
    "api",
    "api/v1",
    "api/v1/status",
    "api/v1/tenants",
    "api/v1/config",
    "api/v1/reload",
    "api/v1/drain",
    "metrics",
    "debug",
    "debug/pprof",
    "debug/vars",
    "actuator",
    "actuator/env",
    "actuator/heapdump",
    "console",
    "env",
    "config",
    "config.json",
    ".env",
    ".git/config",
    "server-status",
    "status",
    "health",
    "live",
    "ready",
    "info",
    "dump",
    "trace",
    "heapdump",
    "threads",
    "jolokia",
    "manager/html",
    "phpinfo.php",
    "wp-admin",
    "graphql",
    "swagger",
    "swagger.json",
    "openapi.json",
    "v1",
    "v1/",
    "v1/tenants",
    "v1/admin",
    "v2/events",
    "internal",
    "internal/metrics",
    "private",
    "system",
    "shutdown",
    "quit",
    "reload",
    "-/reload",
    "-/quit",
    "_cat/indices",
    "_cluster/health",
];

#[test]
fn the_public_side_has_no_other_door() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let key = tenant(&server, "acme");
    let shapes: [&dyn Fn(&str) -> String; 9] = [
        &|w| format!("/{w}"),
        &|w| format!("//{w}"),
        &|w| format!("/v1/events/../{w}"),
        &|w| format!("/v1/events/{w}"),
        &|w| format!("/%2e%2e/{w}"),
        &|w| format!("/{w}/"),
        &|w| format!("/{}", w.to_uppercase()),
        &|w| format!("/healthz/../{w}"),
        &|w| format!("/{w}%00"),
    ];
    let mut tried = 0;
    for word in WORDS {
        for shape in shapes {
            let path = shape(word);
            // The tracking service's own: whether the server is well, and nothing else.
            if path == "/health" {
                let answer = request(server.public, "GET", &path, &[], b"");
                assert_eq!((answer.status, answer.json()), (200, json!({"status": "ok"})));
                continue;
            }
            // What Elasticsearch's clients ask before they send: as little.
            if path == "/_cluster/health" {
                let answer = request(server.public, "GET", &path, &[], b"");
                assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("green")));
                let told = answer.json().to_string();
                assert!(!told.contains("acme") && !told.contains("127.0.0.1"), "{told}");
                continue;
            }
            for method in ["GET", "POST"] {
                let headers = [("x-api-key", &*key), ("content-type", "application/json")];
                let answer = request(server.public, method, &path, &headers, b"");
                assert_eq!(
                    (answer.status, &answer.json()["code"]),
                    (404, &json!("no_such_path")),
                    "{method} {path}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried >= 500, "{tried}");
    is_well(&server);
}

#[test]
fn the_operators_side_lets_in_no_web_page_and_nothing_that_is_not_json() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    let host = server.admin.to_string();
    let write = |headers: &[(&str, &str)]| {
        let mut stream = connect(server.admin);
        let mut head =
            "POST /api/v1/drain HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n".to_owned();
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n{{}}").as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        statuses(&answer)[0]
    };
    let (local, json) = (("Host", &*host), ("Content-Type", "application/json"));
    assert_eq!(write(&[("Host", "evil.example"), json]), 421);
    assert_eq!(write(&[("Host", "127.0.0.1.evil.example"), json]), 421);
    assert_eq!(write(&[local, json, ("Origin", "http://evil.example")]), 403);
    assert_eq!(write(&[local, json, ("Origin", "null")]), 403);
    for other in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
    ] {
        assert_eq!(write(&[local, ("Content-Type", other)]), 415);
    }
    assert_eq!(write(&[local]), 415);
    is_well(&server);
}
