//! Who may speak on a hop's port, and what happens to all else that comes there.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use tempfile::tempdir;
use tidegate_ingest::hop::{HopConfig, outcome::Outcome};

use super::{Caller, batch, given};
use crate::{
    server::{Server, refused, wait_for},
    tally::Tally,
};

const LONG: Duration = Duration::from_secs(10);

fn with_token(token: Option<&str>) -> HopConfig {
    HopConfig { token: token.map(str::to_owned), ..HopConfig::default() }
}

#[test]
fn off_loopback_nothing_starts_without_a_token_or_certificates() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("tidegate.toml");
    std::fs::write(&path, "").unwrap();
    let (path, data) = (path.display().to_string(), dir.path().join("data").display().to_string());
    let arguments =
        ["--role", "writer", "--config", &path, "--data-dir", &data, "--hop", "0.0.0.0:0"];
    let (status, said) = refused(&arguments);
    assert_eq!(status, Some(3));
    assert!(said.contains("hop.token") && said.contains("[hop.tls]"), "{said}");
}

#[test]
fn a_caller_without_the_token_can_name_no_tenant_and_learns_nothing() {
    let dir = tempdir().unwrap();
    let writer = Server::role(dir.path(), "writer", "[hop]\ntoken = \"open-sesame\"\n");
    let mut tally = Tally::new("hop::callers", "partial network", &["P3", "P5"]);
    for token in [None, Some("open-sesam"), Some("open-sesame2")] {
        let stranger = Caller::of(writer.public, &with_token(token));
        let peer = stranger.peer();
        wait_for("the stranger to be refused", || {
            peer.why().contains("does not take our hop.token")
        });
        assert!(peer.state().is_none());
        tally.survived(1);
    }
    assert_eq!(given(&writer), 0);
    let known = Caller::of(writer.public, &with_token(Some("open-sesame")));
    let (status, kept) = known.append("acme", batch("acme").body.to_vec(), LONG);
    assert_eq!(status, 200);
    assert!(matches!(kept, Some(Outcome::Appended(_))), "{kept:?}");
    assert!(!writer.log().contains("open-sesame"), "the token is in no log");
    let shown = writer.admin_get("/api/v1/config").body;
    assert!(!shown.contains("open-sesame") && shown.contains("[secret]"), "{shown}");
}

#[test]
fn a_batch_of_another_tenant_than_its_call_names_is_refused() {
    let dir = tempdir().unwrap();
    let writer = Server::role(dir.path(), "writer", "");
    let caller = Caller::of(writer.public, &HopConfig::default());
    assert_eq!(caller.append("acme", batch("victim").body.to_vec(), LONG), (400, None));
    assert_eq!(given(&writer), 0);
}

#[test]
fn what_is_no_batch_or_too_large_is_refused_and_costs_nobody_else_anything() {
    let dir = tempdir().unwrap();
    let config = "[budget]\nbytes = \"2MiB\"\n[log]\ndedup_ids = 1000\n\
                  [edge.limits]\nbody_bytes = \"1MiB\"\ndecoded_bytes = \"1MiB\"\nevent_bytes = \"1MiB\"\n";
    let writer = Server::role(dir.path(), "writer", config);
    let caller = Caller::of(writer.public, &HopConfig::default());
    let whole = batch("acme").body.to_vec();
    for body in [Vec::new(), b"{}".to_vec(), vec![0; 4096], whole[..whole.len() - 1].to_vec()] {
        assert_eq!(caller.append("acme", body, LONG), (400, None));
    }
    let (status, large) = caller.append("acme", vec![1; 8 << 20], LONG);
    assert_eq!(status, 200);
    assert!(matches!(large, Some(Outcome::Refused(_))), "{large:?}");
    assert_eq!(given(&writer), 0);
    let (_, kept) = caller.append("acme", whole, LONG);
    assert!(matches!(kept, Some(Outcome::Appended(_))), "{kept:?}");
    wait_for("all memory to come back", || {
        let stages = writer.admin_get("/api/v1/status").json()["stages"].clone();
        stages.as_array().unwrap().iter().all(|stage| stage["held_bytes"] == 0)
    });
}

#[test]
fn garbage_on_the_port_ends_its_own_connection_and_nothing_else() {
    let dir = tempdir().unwrap();
    let writer = Server::role(dir.path(), "writer", "");
    let caller = Caller::of(writer.public, &HopConfig::default());
    caller.is_taken();
    let garbage: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nXX",
    ];
    let mut tally = Tally::new("hop::callers", "partial network", &["P4"]);
    for bytes in garbage {
        let mut stream = TcpStream::connect(writer.public).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Ended by the other side, in order or by a reset; what it says before is HTTP/2's.
        let _ = stream.read_to_end(&mut answer);
        tally.survived(1);
    }
    let (_, kept) = caller.append("acme", batch("acme").body.to_vec(), LONG);
    assert!(matches!(kept, Some(Outcome::Appended(_))), "{kept:?}");
}

#[test]
fn a_folder_of_a_log_is_no_edges() {
    let dir = tempdir().unwrap();
    let writer = Server::role(dir.path(), "writer", "");
    let data = dir.path().join("writer/data").display().to_string();
    let path = dir.path().join("edge.toml");
    std::fs::write(&path, "[hop]\nnormalizers = [\"127.0.0.1:1\"]\n").unwrap();
    let path = path.display().to_string();
    let edge = ["--role", "edge", "--config", &path, "--data-dir", &data];
    let (status, said) = refused(&edge);
    assert!(status == Some(3) && said.contains("in use"), "{said}");
    assert_eq!(writer.terminate(), Some(0));
    let (status, said) = refused(&edge);
    assert!(status == Some(3) && said.contains("holds a log"), "{said}");
}
