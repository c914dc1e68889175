//! How a server is brought into each state of the table, and out of it again.

use super::*;

pub fn a_tenant_over_its_events_is_told(row: &Row) {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let key = with_quota(&server, "events_per_second", 1);
    let mut tally = Tally::new("shed", "tenant at 100x", &["P3", "P5"]);
    // A hundred at once pass while the bucket is full, and leave a debt of 99 s.
    let many = "{\"event_type\":\"shed\"}\n".repeat(100);
    let answer = server.post("/v1/events", &key, "application/x-ndjson", many.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    refuses(row, &server, "acme", &key, BODY);
    assert!(is_taken(&server, "tgk_dev"), "its neighbour is not concerned");
    tally.survived(1);
}

pub fn a_tenant_over_its_bytes_is_told(row: &Row) {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    let key = with_quota(&server, "bytes_per_second", 100);
    let mut tally = Tally::new("shed", "tenant at 100x", &["P3", "P5"]);
    let first = until_closed(server.public, &request(&key, 100 * BODY, true));
    assert!(first.starts_with("HTTP/1.1 200 "), "larger than the burst, but the bucket was full");
    refuses(row, &server, "acme", &key, BODY);
    assert!(is_taken(&server, "tgk_dev"), "its neighbour is not concerned");
    tally.survived(1);
}

pub fn a_tenant_whose_lane_is_full_is_told_and_no_other(row: &Row) {
    let dir = tempdir().unwrap();
    let server = with_lake(dir.path(), "", ", lane_bytes = 10000");
    let (acme, beta) = (tenant(&server, "acme"), tenant(&server, "beta"));
    let mut tally = Tally::new("shed", "sink down", &["P3", "P4", "P5"]);
    // A plain file where the lane's folder belongs.
    let lane = dir.path().join("lake/events/tenant=acme/event_type=shed");
    std::fs::create_dir_all(lane.parent().unwrap()).unwrap();
    std::fs::write(&lane, b"in the way").unwrap();
    wait_for("its lane to be full", || {
        !until_closed(server.public, &request(&acme, BODY, true)).starts_with("HTTP/1.1 200 ")
    });
    refuses(row, &server, "acme", &acme, BODY);
    assert!(is_taken(&server, &beta), "no other tenant is refused");
    std::fs::remove_file(&lane).unwrap();
    wait_for("it to be taken again, by itself", || is_taken(&server, &acme));
    server.settle();
    tally.survived(1);
}

pub fn a_tenant_that_holds_the_memory_is_told_and_no_other(row: &Row) {
    const HELD: usize = 600_000;
    let dir = tempdir().unwrap();
    let config = "[budget]\nbytes = \"2MiB\"\n[log]\ndedup_ids = 1000\n\
                  [edge.limits]\nbody_bytes = \"1MiB\"\ndecoded_bytes = \"1MiB\"\nevent_bytes = \"1MiB\"\n";
    let server = Server::configured(dir.path(), config);
    let mut tally = Tally::new("shed", "tenant at 100x", &["P3", "P4", "P5"]);
    let (first, second) = (tenant(&server, "first"), tenant(&server, "second"));
    let third = tenant(&server, "third");
    let hold = |key: &str| {
        let mut stream = connect(server.public);
        let body = request(key, HELD, true);
        stream.write_all(&body[..body.len() - 1]).unwrap();
        stream
    };
    let held = [hold(&first), hold(&second)];
    wait_for("two bodies to be held", || {
        let status = server.admin_get("/api/v1/status").json();
        2 * HELD as u64 - 2 <= status["stages"][0]["held_bytes"].as_u64().unwrap()
    });
    refuses(row, &server, "first", &first, HELD / 2);
    assert!(is_taken(&server, &third), "no other tenant is refused");
    drop(held);
    wait_for("it to be taken again, by itself", || is_taken(&server, &first));
    tally.survived(1);
}

pub fn a_body_without_memory_is_told(row: &Row) {
    const LARGE: usize = 16 << 20;
    let dir = tempdir().unwrap();
    let config = "[budget]\nbytes = \"64MiB\"\n[log]\ndedup_ids = 1000\n\
                  [edge.limits]\nbody_bytes = \"16MiB\"\ndecoded_bytes = \"16MiB\"\n";
    let server = Server::configured(dir.path(), config);
    let mut tally = Tally::new("shed", "partial network", &["P4", "P5"]);
    // Tenants whose bodies never end, until there is no memory for one more.
    let late = tenant(&server, "late");
    let mut holders: Vec<TcpStream> = Vec::new();
    wait_for("the memory to be taken", || {
        let key = tenant(&server, &format!("holder-{}", holders.len()));
        let mut holder = connect(server.public);
        let body = request(&key, LARGE, true);
        // A holder that is refused itself may see its connection end before all is written.
        let _ = holder.write_all(&body[..body.len() - 1]);
        holders.push(holder);
        let mut probe = connect(server.public);
        probe.write_all(&request(&late, LARGE, false)).unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        matches!(probe.read(&mut [0; 16]), Ok(read) if read > 0)
    });
    refuses(row, &server, "late", &late, LARGE);
    drop(holders);
    wait_for("memory to be free again", || {
        server.admin_get("/api/v1/status").json()["stages"][0]["held_bytes"] == 0
    });
    let answer = until_closed(server.public, &request(&late, 1 << 19, true));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    tally.survived(1);
}

pub fn a_full_queue_is_told(row: &Row) {
    let full = AppendError::Full { retry_after: Duration::from_secs(2) };
    the_log_refuses(row, full, ShedReason::LogFull);
}

pub fn a_failing_disk_is_told(row: &Row) {
    the_log_refuses(row, AppendError::Storage, ShedReason::Storage);
}

/// The edge over a log that takes nothing.
fn the_log_refuses(row: &Row, error: AppendError, reason: ShedReason) {
    assert_eq!((row.code.as_str(), row.before_body), (reason.as_str(), false));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = kit::start().await;
        *server.log.refuse.lock().unwrap() = Some(error);
        let reply = server.json(r#"{"event_type":"shed"}"#).await;
        reply.is_shed(reason);
        assert_eq!(server.kept(), [], "nothing of it is stored");
        let page = server.page();
        let shed = EventType::new("shed").unwrap();
        assert_eq!((page.types[&shed].received, page.types[&shed].shed), (1, 1));
        let reasons = serde_json::to_value(&page.reasons).unwrap();
        assert_eq!(reasons["shed"]["shed"][reason.as_str()], 1, "{reasons}");
        server.is_balanced().await;
        *server.log.refuse.lock().unwrap() = None;
        server.json(r#"{"event_type":"shed"}"#).await.counts(1, 0, 0);
    });
}

pub fn a_full_backlog_is_told(row: &Row) {
    let dir = tempdir().unwrap();
    let log = "segment_bytes = \"1MiB\"\nbacklog_bytes = \"2MiB\"";
    let server = with_lake(dir.path(), log, "");
    let key = tenant(&server, "acme");
    let mut tally = Tally::new("shed", "sink down", &["P3", "P4", "P5"]);
    let (lake, away) = (dir.path().join("lake"), dir.path().join("away"));
    std::fs::rename(&lake, &away).unwrap();
    std::fs::write(&lake, b"no folder").unwrap();
    wait_for("the backlog to be full", || {
        !until_closed(server.public, &request(&key, 200_000, true)).starts_with("HTTP/1.1 200 ")
    });
    refuses(row, &server, "acme", &key, BODY);
    assert_eq!(server.admin_get("/readyz").status, 503);
    std::fs::remove_file(&lake).unwrap();
    std::fs::rename(&away, &lake).unwrap();
    wait_for("it to take events again, by itself", || is_taken(&server, &key));
    server.settle();
    tally.survived(1);
}

pub fn a_server_that_drains_tells(row: &Row) {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    // A request under way keeps it from ending, and a connection it knows from being turned away.
    let mut busy = connect(server.public);
    let body = request("tgk_dev", BODY, true);
    busy.write_all(&body[..body.len() - 1]).unwrap();
    wait_for("the request to be under way", || {
        server.admin_get("/api/v1/status").json()["stages"][0]["held_bytes"] != 0
    });
    server.signal(rustix::process::Signal::TERM);
    wait_for("it to drain", || server.admin_get("/readyz").status == 503);
    wait_for("the edge to drain", || !is_taken(&server, "tgk_dev"));
    refuses(row, &server, "dev", "tgk_dev", BODY);
    busy.write_all(&body[body.len() - 1..]).unwrap();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "what was under way is finished: {answer}");
    assert_eq!(server.terminate(), Some(0));
}

pub fn an_edge_without_normalizers_tells(row: &Row) {
    let dir = tempdir().unwrap();
    // A port that nobody listens on: it is ours, and gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!("role = \"edge\"\n[hop]\nnormalizers = [\"{gone}\"]\n");
    let server = Server::configured(dir.path(), &config);
    let mut tally = Tally::new("shed", "partial network", &["P4", "P5"]);
    let key = tenant(&server, "acme");
    wait_for("it to know that nobody is there", || {
        server.admin_get("/readyz").body.contains("Connection refused")
    });
    refuses(row, &server, "acme", &key, BODY);
    assert_eq!(server.admin_get("/readyz").status, 503);
    tally.survived(1);
}

pub fn an_outcome_that_nobody_knows_is_told(row: &Row) {
    the_log_refuses(row, AppendError::Unknown, ShedReason::OutcomeUnknown);
}

pub fn a_slow_body_is_told(row: &Row) {
    assert!(!row.before_body);
    let dir = tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let short = [("TIDEGATE_EDGE__TIMEOUTS__BODY_IDLE", "200ms")];
    let server = Server::start(&["--dev", "--data-dir", &data], &short);
    let mut tally = Tally::new("shed", "partial network", &["P4", "P5"]);
    let latest = given(&server);
    let body = request("tgk_dev", BODY, true);
    is_told(row, &until_closed(server.public, &body[..body.len() - 1]));
    wait_for("the books to have it", || booked(&server, "dev", "").1 == 1);
    assert_eq!(given(&server), latest, "nothing of it is stored");
    tally.survived(1);
}

pub fn a_large_body_is_told(row: &Row) {
    let dir = tempdir().unwrap();
    let server = Server::dev(dir.path());
    refuses(row, &server, "dev", "tgk_dev", (16 << 20) + 1);
}
