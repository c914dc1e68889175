//! A client that sends again: over real sockets, with answers that are lost and a server that is killed;
//! and what a start reads to know the ids.

use std::{
    io::{self, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tempfile::tempdir;
use tidegate_event::{
    BatchEncoder, EncodedBatch, EventTime, EventType, ReceivedAt, SchemaRef, TenantId,
    record::Record,
};
use tidegate_ingest::{
    books::Books,
    clock::ManualClock,
    config::Size,
    log::{self, LogConfig},
    storage::{Disk, LockGuard, Storage, StorageFile},
    writer::{self, Append, WriterHandle, WriterSettings},
};

use crate::{
    server::{Server, wait_for},
    tally::Tally,
};

const KEY: &str = "tgk_dev";
const NDJSON: &str = "application/x-ndjson";

fn lines(run: usize) -> String {
    let line = |n| format!("{{\"event_type\":\"order\",\"event_id\":\"{run}-{n}\",\"n\":{n}}}\n");
    (0..5).map(line).collect()
}

/// Sends and goes away without an answer.
fn send_and_hang_up(server: &Server, body: &str) {
    let mut stream = TcpStream::connect(server.public).unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: {NDJSON}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}

fn latest(server: &Server) -> u64 {
    server.admin_get("/api/v1/offsets").json()["partitions"][0]["latest"].as_u64().unwrap()
}

#[test]
fn a_resend_after_a_lost_answer_and_a_kill_is_told_and_leaves_one_copy() {
    let dir = tempdir().unwrap();
    let mut tally = Tally::new("dedup::lost_answer", "client duplicates", &["P2", "P5"]);
    for run in 0..6 {
        let server = Server::dev(dir.path());
        let body = lines(run);
        let before = latest(&server);
        send_and_hang_up(&server, &body);
        wait_for("the events to be durable", || latest(&server) == before + 5);
        if run % 3 == 2 {
            // Long enough for the index to be written.
            let index = dir.path().join("log/partition-0/dedup");
            let bytes = || {
                crate::server::files(&index, ".ids")
                    .iter()
                    .map(|f| f.metadata().unwrap().len())
                    .sum::<u64>()
            };
            let small = bytes();
            wait_for("the index to grow", || bytes() > small);
        }
        server.kill();
        let server = Server::dev(dir.path());
        for _ in 0..2 {
            let again = server.post("/v1/events", KEY, NDJSON, body.as_bytes()).json();
            assert_eq!(
                (&again["accepted"], &again["deduplicated"]),
                (&json!(0), &json!(5)),
                "{again}"
            );
            tally.survived(1);
        }
        assert_eq!(latest(&server), before + 5);
        server.settle();
        let audit = server.admin_get("/api/v1/audit").json();
        assert_eq!(audit["difference"], 0, "{audit:#}");
        let rows = audit["tenants"].as_array().unwrap();
        let row = rows.iter().find(|row| row["event_type"] == "order").unwrap();
        assert_eq!(row["sinks"]["lake"]["stored"], before + 5, "{row}");
        server.kill();
    }
}

#[test]
fn a_window_that_is_too_short_for_the_ids_that_come_is_in_status_and_metrics() {
    let dir = tempdir().unwrap();
    let config = "[log]\ndedup_ids = 4\n[log.dedup_windows]\nbeat = \"0s\"\n";
    let server = Server::configured(dir.path(), config);
    let added = server.admin_post("/api/v1/tenants", &json!({"tenant": "acme"})).json();
    let key = added["key"].as_str().unwrap_or_else(|| panic!("{added}"));
    for run in 0..2 {
        let sent = server.post("/v1/events", key, NDJSON, lines(run).as_bytes());
        assert_eq!(sent.json()["accepted"], 5, "{sent:?}");
    }
    let beat = b"{\"event_type\":\"beat\",\"event_id\":\"a\"}";
    for _ in 0..2 {
        assert_eq!(server.post("/v1/events", key, NDJSON, beat).json()["accepted"], 1, "it is off");
    }
    let dedup = || server.admin_get("/api/v1/status").json()["dedup"][0].clone();
    wait_for("the shortened window to be told", || {
        let window = dedup()["windows"][0].clone();
        window["window_seconds"] == 600 && window["kept_seconds"].as_u64().unwrap() < 600
    });
    assert_eq!(dedup()["ids_bound"], 4);
    assert!(dedup()["ids"].as_u64().unwrap() <= 4);
    let metrics = server.admin_get("/metrics").body;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0)
    };
    assert!(value("tidegate_dedup_evicted_ids_total{") >= 6, "{metrics}");
    assert!(value("tidegate_dedup_window_shortfall_seconds{") > 500, "{metrics}");
    wait_for("the log line", || {
        server.log().contains("ids are forgotten before their window ends")
    });
}

/// The disk, counting the bytes that are read.
#[derive(Clone)]
struct Counting(Arc<AtomicU64>);

struct CountingFile(Arc<dyn StorageFile>, Arc<AtomicU64>);

impl StorageFile for CountingFile {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_vectored_at(buffers, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.0.read_at(buffer, offset)?;
        self.1.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.0.drop_cache()
    }
}

impl Counting {
    fn file(&self, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(CountingFile(file, Arc::clone(&self.0)))
    }
}

impl Storage for Counting {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(Disk.create_new(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(Disk.open(path)?))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let bytes = Disk.read(path)?;
        self.0.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(bytes)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Disk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        Disk.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<LockGuard>> {
        Disk.lock(path)
    }
}

const NOW: i64 = 1_795_255_200_000_000;

fn large(id: Option<&str>) -> EncodedBatch {
    let tenant = TenantId::new("acme").unwrap();
    let mut encoder = BatchEncoder::new(tenant, "events", ReceivedAt(NOW), [7; 16], 0);
    let raw = format!("{{\"text\":\"{}\"}}", "x".repeat(64 << 10));
    encoder.push(&Record {
        index: 0,
        event_type: &EventType::new("view").unwrap(),
        schema: SchemaRef::default(),
        client_id: id,
        event_time: EventTime(NOW),
        dead: None,
        pii_changed: false,
        note: "",
        raw: raw.as_bytes(),
    });
    encoder.finish()
}

/// A started writer, and the bytes that its start read, recovery of the log apart.
fn start(dir: &Path) -> (WriterHandle, Arc<Books>, u64) {
    let config = LogConfig { dir: dir.into(), segment_bytes: Size::mib(4), ..LogConfig::default() };
    let read = Counting(Arc::default());
    let clock = Arc::new(ManualClock::new(NOW));
    let mut opened =
        log::open(Arc::new(read.clone()), &config, Arc::<ManualClock>::clone(&clock)).unwrap();
    let settings = WriterSettings {
        housekeeping: Duration::from_millis(10),
        ..WriterSettings::new(&config, 64 << 20, Duration::from_secs(2))
    };
    let books = Arc::new(Books::default());
    let before = read.0.load(Ordering::SeqCst);
    let log = opened.partitions.remove(0);
    let writer = writer::start(log, Arc::clone(&books), clock, settings).unwrap();
    (writer, books, read.0.load(Ordering::SeqCst) - before)
}

async fn append(writer: &WriterHandle, books: &Books, batch: EncodedBatch) -> Vec<u32> {
    let received = batch.tallies.iter().map(|t| (t.event_type.clone(), t.accepted)).collect();
    let entry = books.open(&batch.tenant, batch.received_at, received);
    writer.append(batch, entry).await.unwrap().deduplicated
}

/// Scenario: 20 MiB of log within the window, in which three events have an id.
#[tokio::test]
async fn a_start_reads_the_index_and_not_the_log() {
    let dir = tempdir().unwrap();
    let (writer, books, _) = start(dir.path());
    for n in 0..320 {
        let id = (n % 100 == 0).then(|| n.to_string());
        append(&writer, &books, large(id.as_deref())).await;
    }
    writer.close();
    drop(writer);
    let (writer, books, read) = start(dir.path());
    assert!(read < 16 << 10, "a start read {read} bytes");
    for n in [0, 100, 200, 300] {
        let again = append(&writer, &books, large(Some(&n.to_string()))).await;
        assert_eq!(again.len(), 1, "{n}");
    }
    writer.close();
    drop(writer);
    std::fs::remove_dir_all(dir.path().join("log/partition-0/dedup")).unwrap();
    let (writer, books, read) = start(dir.path());
    assert!(read > 20 << 20, "without the index a start read only {read} bytes");
    assert_eq!(append(&writer, &books, large(Some("200"))).await.len(), 1);
}
