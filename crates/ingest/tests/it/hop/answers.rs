//! What a writer says is what the client is told, as in one process.

use std::time::Duration;

use tempfile::tempdir;
use tidegate_event::{Offset, OffsetRange, Partition};
use tidegate_ingest::{
    hop::outcome::Outcome,
    writer::{AppendError, Appended},
};

use super::{Act, FakeWriter, Front};
use crate::server::{Answer, request};

fn retry_after(front: &Front, body: &str) -> (Answer, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(front.edge.public).unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        front.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (Answer { status, body: body.to_owned() }, head.to_lowercase())
}

#[test]
fn each_refusal_of_a_writer_reaches_the_client_with_its_code_and_its_time() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let front = Front::before(dir.path(), &[writer.address], "");
    let retry_after_of = |seconds| Duration::from_secs(seconds);
    let cases = [
        (AppendError::Full { retry_after: retry_after_of(7) }, 503, "log_full", 7),
        (AppendError::Lane { retry_after: retry_after_of(9) }, 429, "tenant_lane", 9),
        (AppendError::Memory { retry_after: retry_after_of(3) }, 503, "edge_full", 3),
        (AppendError::Storage, 503, "storage", 5),
        (AppendError::Unreachable { retry_after: retry_after_of(4) }, 503, "unreachable", 4),
    ];
    for (count, (error, status, code, least)) in (1..).zip(cases) {
        writer.will(Act::Says(Outcome::Refused(error)));
        let (answer, head) = retry_after(&front, r#"{"event_type":"view"}"#);
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (status, Some(code)),
            "{answer:?}"
        );
        assert!(head.contains(&format!("x-shed-reason: {code}")), "{head}");
        let told = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
        assert!((least..=least * 2).contains(&told.parse::<u64>().unwrap()), "{head}");
        assert_eq!(front.booked(code), (count, 1, 0), "the edge told the client, so it counts it");
    }
    assert_eq!(writer.batches(), 5, "each was asked once");
}

#[test]
fn what_a_writer_appended_or_knew_is_told_and_leaves_the_edges_books() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let front = Front::before(dir.path(), &[writer.address], "");
    let range = OffsetRange::new(Offset(5), Offset(6));
    let appended = Appended { partition: Partition(0), range, deduplicated: vec![0] };
    writer.will(Act::Says(Outcome::Appended(appended)));
    let reply = front.send(r#"[{"event_type":"view"},{"event_type":"view"},7]"#);
    assert_eq!(reply.status, 200, "{reply:?}");
    let counts = ["accepted", "deduplicated", "rejected"].map(|name| reply.body[name].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(1)], "{reply:?}");
    assert_eq!(front.booked(""), (1, 0, 0), "what is rejected stays, the rest is the writer's");
}

#[test]
fn a_writer_that_shut_down_before_it_took_a_batch_is_passed_over() {
    let dir = tempdir().unwrap();
    let writers = [FakeWriter::new(), FakeWriter::new()];
    let front = Front::before(dir.path(), &[writers[0].address, writers[1].address], "");
    let ok = || {
        let range = OffsetRange::new(Offset(0), Offset(1));
        Outcome::Appended(Appended { partition: Partition(0), range, deduplicated: Vec::new() })
    };
    super::wait_for("both writers to be reached", || {
        let peers = front.normalizer.admin_get("/api/v1/status").json()["peers"].clone();
        peers.as_array().unwrap().iter().all(|peer| peer["reached"] == true)
    });
    // Whichever is asked first says that it shuts down, the other appends.
    writers.iter().for_each(|w| w.will(Act::Says(Outcome::Refused(AppendError::Draining))));
    let reply = front.send(r#"{"event_type":"view"}"#);
    assert_eq!(
        (reply.status, reply.body["code"].as_str()),
        (503, Some("unreachable")),
        "{reply:?}"
    );
    assert_eq!((writers[0].batches(), writers[1].batches()), (1, 1), "both were asked, once");
    writers.iter().for_each(|w| w.will(Act::Says(ok())));
    assert_eq!(front.send(r#"{"event_type":"view"}"#).status, 200);
    assert_eq!(writers[0].batches() + writers[1].batches(), 3, "one is enough");
}

#[test]
fn an_edge_without_a_normalizer_is_not_ready_and_says_why() {
    let dir = tempdir().unwrap();
    let mut writer = FakeWriter::new();
    let front = Front::before(dir.path(), &[writer.address], "");
    let ready = |server: &crate::server::Server| server.admin_get("/readyz");
    assert_eq!(ready(&front.normalizer).status, 200);
    writer.die();
    super::wait_for("the normalizer and the edge to know", || {
        ready(&front.normalizer).status == 503 && ready(&front.edge).status == 503
    });
    let why = ready(&front.edge).body;
    assert!(why.contains("unreachable") && why.contains("reaches no writer"), "{why}");
    let public = request(front.edge.public, "GET", "/readyz", &[], b"");
    assert_eq!(public.status, 503, "{public:?}");
}

#[test]
fn a_valid_traceparent_goes_through_to_the_writer_and_another_is_ignored() {
    let (dir, writer) = (tempdir().unwrap(), FakeWriter::new());
    let front = Front::before(dir.path(), &[writer.address], "");
    let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (sent, arrives) in [(valid, Some(valid)), ("00-0-0-01", None), ("", None)] {
        let range = OffsetRange::new(Offset(0), Offset(1));
        let appended = Appended { partition: Partition(0), range, deduplicated: Vec::new() };
        writer.will(Act::Says(Outcome::Appended(appended)));
        let reply = front.send_with(("traceparent", sent), r#"{"event_type":"view"}"#);
        assert_eq!(reply.status, 200, "{reply:?}");
        let last = writer.traces.lock().unwrap().last().cloned().unwrap();
        assert_eq!(last.as_deref(), arrives, "sent {sent:?}");
    }
}
