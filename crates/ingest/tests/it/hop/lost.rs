//! Replicas that are lost: before anything was sent another is asked, afterwards nobody is.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use tempfile::tempdir;
use tidegate_event::{Offset, OffsetRange, Partition};
use tidegate_ingest::{
    hop::{HopConfig, outcome::Outcome},
    writer::{AppendError, Appended},
};

use super::{Act, Caller, FakeWriter, Front, batch, given};
use crate::{
    server::{Server, wait_for},
    tally::Tally,
};

fn appended() -> Outcome {
    let range = OffsetRange::new(Offset(0), Offset(1));
    Outcome::Appended(Appended { partition: Partition(0), range, deduplicated: Vec::new() })
}

/// A port that nobody listens on.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_writer_lost_with_a_batch_is_an_unknown_outcome_and_no_other_is_asked() {
    let dir = tempdir().unwrap();
    let mut writers = [FakeWriter::new(), FakeWriter::new()];
    let front = Front::before(dir.path(), &[writers[0].address, writers[1].address], "");
    let mut tally = Tally::new("hop::lost", "partial network", &["P1", "P2", "P5"]);
    wait_for("both writers to be reached", || {
        let peers = front.normalizer.admin_get("/api/v1/status").json()["peers"].clone();
        peers.as_array().unwrap().iter().all(|peer| peer["reached"] == true)
    });
    writers.iter().for_each(|w| w.will(Act::IsSilent));
    let reply = std::thread::scope(|scope| {
        let sent = scope.spawn(|| front.send(r#"{"event_type":"view"}"#));
        wait_for("one of them to have the batch", || {
            writers.iter().map(FakeWriter::batches).sum::<usize>() == 1
        });
        let holder = usize::from(writers[0].batches() == 0);
        writers[holder].die();
        sent.join().unwrap()
    });
    assert_eq!(
        (reply.status, reply.body["code"].as_str()),
        (503, Some("outcome_unknown")),
        "{reply:?}"
    );
    assert_eq!(writers.iter().map(FakeWriter::batches).sum::<usize>(), 1, "nobody else was asked");
    assert_eq!(front.booked("outcome_unknown"), (0, 0, 1), "refused, in requests and bytes");
    // The other one is there for whoever comes again.
    let alive = writers.iter().find(|w| w.batches() == 0).unwrap();
    alive.acts.lock().unwrap().clear();
    alive.will(Act::Says(appended()));
    wait_for("the lost one to be known as such", || {
        let state = front.normalizer.admin_get("/api/v1/status").json();
        state["peers"].as_array().unwrap().iter().any(|peer| peer["reached"] == false)
    });
    assert_eq!(front.send(r#"{"event_type":"view"}"#).status, 200);
    tally.survived(1);
}

#[test]
fn a_writer_that_cannot_be_reached_is_passed_over() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let front = Front::before(dir.path(), &[nobody(), writer.address], "");
    let mut tally = Tally::new("hop::lost", "partial network", &["P1", "P2"]);
    for n in 1..=4 {
        writer.will(Act::Says(appended()));
        let reply = front.send(r#"{"event_type":"view"}"#);
        assert_eq!((reply.status, writer.batches()), (200, n), "{reply:?}");
        tally.survived(1);
    }
}

#[test]
fn a_writer_that_never_answers_is_an_unknown_outcome_once_the_time_is_over() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let front = Front::before(dir.path(), &[writer.address], "timeout = \"700ms\"");
    let mut tally = Tally::new("hop::lost", "process pause", &["P2", "P5"]);
    writer.will(Act::IsSilent);
    let reply = front.send(r#"{"event_type":"view"}"#);
    assert_eq!(
        (reply.status, reply.body["code"].as_str()),
        (503, Some("outcome_unknown")),
        "{reply:?}"
    );
    assert_eq!(front.booked("outcome_unknown"), (0, 0, 1));
    assert_eq!(writer.batches(), 1, "it was asked once");
    tally.survived(1);
}

#[test]
fn a_normalizer_that_says_nothing_is_passed_over_since_nothing_was_kept() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let writers = format!("[hop]\nwriters = [\"{}\"]\n", writer.address);
    let well = Server::role(dir.path(), "normalizer", &writers);
    let dir_of_paused = tempdir().unwrap();
    let paused = Server::role(dir_of_paused.path(), "normalizer", &writers);
    let config = format!(
        "[hop]\nnormalizers = [\"{}\", \"{}\"]\ntimeout = \"4s\"\n",
        well.public, paused.public
    );
    let edge = Server::role(dir.path(), "edge", &config);
    let added = edge.admin_post("/api/v1/tenants", &serde_json::json!({"tenant": "acme"})).json();
    let key = added["key"].as_str().unwrap().to_owned();
    wait_for("both normalizers to be reached", || {
        let peers = edge.admin_get("/api/v1/status").json()["peers"].clone();
        peers
            .as_array()
            .is_some_and(|all| all.len() == 2 && all.iter().all(|p| p["reached"] == true))
    });
    let mut tally = Tally::new("hop::lost", "process pause", &["P1", "P2"]);
    paused.signal(rustix::process::Signal::STOP);
    // At once, while the edge still believes that both are well: some of these go to the paused one first.
    for n in 1..=6 {
        writer.will(Act::Says(appended()));
        let answer = edge.post("/v1/events", &key, "application/json", br#"{"event_type":"view"}"#);
        assert_eq!((answer.status, writer.batches()), (200, n), "{answer:?}");
        tally.survived(1);
    }
    paused.signal(rustix::process::Signal::CONT);
    wait_for("the paused one to be asked for its state again", || {
        let peers = edge.admin_get("/api/v1/status").json()["peers"].clone();
        peers.as_array().unwrap().iter().all(|peer| peer["reached"] == true)
    });
    assert_eq!(writer.batches(), 6, "what it was asked while it was paused it never hands on");
}

#[test]
fn a_batch_that_nobody_waits_for_any_longer_is_not_begun() {
    let dir = tempdir().unwrap();
    let writer = Server::role(dir.path(), "writer", "");
    let caller = Caller::of(writer.public, &HopConfig::default());
    let body = batch("acme").body.to_vec();
    let (status, late) = caller.append("acme", body.clone(), Duration::ZERO);
    let refused = matches!(late, Some(Outcome::Refused(AppendError::Unreachable { .. })));
    assert!(refused || status == 408, "{status} {late:?}");
    assert_eq!(given(&writer), 0, "nothing of it is in the log");
    let (status, kept) = caller.append("acme", body, Duration::from_secs(10));
    assert_eq!(status, 200);
    assert!(matches!(kept, Some(Outcome::Appended(_))), "{kept:?}");
    assert_eq!(given(&writer), 1);
}

#[test]
fn a_role_that_shuts_down_sends_its_callers_elsewhere_and_ends_well() {
    let dir = tempdir().unwrap();
    // So long that a wait for idle callers would not end.
    let writer = Server::role(dir.path(), "writer", "[edge.timeouts]\ndrain = \"1h\"\n");
    let caller = Caller::of(writer.public, &HopConfig::default());
    let peer = caller.is_taken();
    writer.signal(rustix::process::Signal::TERM);
    wait_for("its callers to know", || peer.state().is_none_or(|state| state.draining));
    assert_eq!(writer.terminate(), Some(0));
    wait_for("it to be gone", || peer.state().is_none());
}
