//! Hostile clients against the real server, one module per kind; docs/security.md names each test.
//!
//! The load is small by default. `THREAT_SCALE=50` multiplies it: thousands of sockets, a hundred
//! thousand requests.

mod bombs;
mod corpus;
mod floods;
mod http2;
mod keys;
mod network;
mod reload;
mod smuggling;
mod telemetry;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::server::{Server, files, wait_for};

pub const DEV: &str = "tgk_dev";

/// By how much more than usual.
pub fn scale() -> usize {
    let text = std::env::var("THREAT_SCALE").unwrap_or_else(|_| "1".to_owned());
    text.parse().expect("THREAT_SCALE is a whole number")
}

/// The bytes of memory the server holds resident.
pub fn resident_bytes(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// How many files and sockets the server has open.
pub fn open_sockets(server: &Server) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // Longer than `edge.timeouts.body`, for which a body is waited for that does not come.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends `bytes`; what comes back until the server closes. Panics where it does not.
pub fn until_closed(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The answer may come, and the connection end, before all is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!(
                "{error}: still open after {:?}\nsent: {:?}",
                String::from_utf8_lossy(&answer),
                String::from_utf8_lossy(bytes)
            ),
        }
    }
    drop(stream.shutdown(Shutdown::Both));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of each answer in what was read.
pub fn statuses(answers: &str) -> Vec<u16> {
    let starts = answers.match_indices("HTTP/1.");
    let status = |(at, _)| answers.get(at + 9..at + 12).and_then(|text| text.parse().ok());
    starts.filter_map(status).collect()
}

/// A whole request with the key of `--dev`.
pub fn post(headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/events HTTP/1.1\r\nHost: a\r\nX-Api-Key: {DEV}\r\nContent-Type: application/json\r\n\
         {headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// An honest client is served.
#[track_caller]
pub fn is_well(server: &Server) {
    let answer = server.post("/v1/events", DEV, "application/json", b"{\"event_type\":\"honest\"}");
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A server whose lake is written as JSON lines, often; `more` of configuration before that.
pub fn with_lines(dir: &Path, more: &str) -> Server {
    let lake = dir.join("lake");
    let config = format!(
        "{more}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\nflush = {{ age = \"50ms\" }}\n\
         options = {{ format = \"jsonl\" }}\n"
    );
    Server::configured(dir, &config)
}

/// Makes a tenant and returns its key.
pub fn tenant(server: &Server, name: &str) -> String {
    let added = server.admin_post("/api/v1/tenants", &json!({"tenant": name})).json();
    added["key"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned()
}

/// Every line of the lake: its path below the lake's root, and the text.
pub fn lake_lines(dir: &Path) -> Vec<(String, String)> {
    let root = dir.join("lake");
    let mut lines = Vec::new();
    for file in files(&root, ".jsonl") {
        let path = file.strip_prefix(&root).unwrap().display().to_string();
        let text = String::from_utf8(std::fs::read(&file).unwrap()).unwrap();
        lines.extend(text.split_terminator('\n').map(|line| (path.clone(), line.to_owned())));
    }
    lines
}

/// The books balance to the event, for every tenant and sink, once all is settled.
#[track_caller]
pub fn balances(server: &Server) -> Value {
    wait_for("no request in flight", || {
        server.admin_get("/api/v1/status").json()["stages"][0]["held_bytes"] == 0
    });
    server.settle();
    let audit = server.admin_get("/api/v1/audit").json();
    assert_eq!((&audit["balanced"], &audit["difference"]), (&json!(true), &json!(0)), "{audit:#}");
    audit
}
