//! The contract against Apache Kafka: one broker, a topic for each test.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tempfile::TempDir;
use tidegate_event::Offset;
use tidegate_ingest::{
    books::Books,
    config::Span,
    kafka::{self, KafkaConfig, Needs},
    log::{self, LogConfig},
    sink::source::SourceEntry,
    storage::Disk,
    writer::WriterSettings,
};

use super::{OpenLog, Place};

/// A broker that ends, and removes its folder, when this process ends and its input with it.
struct Broker {
    servers: String,
    _input: ChildStdin,
    _child: Child,
}

/// What keeps the tests from having one; `None` where nothing does.
fn missing() -> Option<&'static str> {
    let found = |program: &str| {
        let all = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&all).any(|dir| dir.join(program).is_file())
    };
    match (found("java") && found("mvn"), python().is_file()) {
        (true, true) => None,
        (false, _) => Some("java and mvn"),
        (_, false) => Some("the tests' Python in .venv"),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn python() -> PathBuf {
    root().join(".venv/bin/python")
}

fn start() -> Broker {
    let folder = TempDir::new().unwrap();
    let mut child = Command::new(python())
        .args(["-m", "brokers", "--remove"])
        .arg(folder.keep())
        .current_dir(root().join("tests"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    // The first line is the one: whatever else stands there must end the test, not have it wait for more.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value =
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no broker: {error}: {line:?}"));
    let servers = told["servers"].as_str().unwrap().to_owned();
    Broker { servers, _input: input, _child: child }
}

/// One broker for all of these tests.
fn servers() -> String {
    static BROKER: OnceLock<Mutex<Broker>> = OnceLock::new();
    let broker = BROKER.get_or_init(|| Mutex::new(start()));
    broker.lock().unwrap().servers.clone()
}

struct Topic {
    name: String,
    servers: String,
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

fn place(test: &str) -> Option<Topic> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if let Some(what) = missing() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}: missing");
        eprintln!("skipped: the log's contract on Kafka, {test}: {what} missing");
        return None;
    }
    let name = format!("contract-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Some(Topic { name, servers: servers(), dir: TempDir::new().unwrap(), runtime })
}

impl Topic {
    fn config(&self) -> KafkaConfig {
        KafkaConfig {
            servers: self.servers.clone(),
            topic: self.name.clone(),
            create: true,
            partitions: 1,
            replication: 1,
            min_insync: 1,
            ..KafkaConfig::default()
        }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers);
        config
    }

    fn end(&self, log: &OpenLog) -> Offset {
        log.source.latest()
    }
}

impl Place for Topic {
    fn open(&self, change: &dyn Fn(&mut WriterSettings)) -> OpenLog {
        let needs = Needs { event_bytes: 1 << 20, retention: Duration::from_secs(3_600) };
        let folder = log::lock(&Disk, self.dir.path()).unwrap();
        let opened = kafka::open(&self.config(), needs, self.runtime.handle().clone(), folder);
        let opened = opened.unwrap();
        let config = LogConfig { dedup_window: Span::seconds(0), ..LogConfig::default() };
        let mut settings = WriterSettings::new(&config, 64 << 20, Duration::from_secs(2));
        change(&mut settings);
        opened.begin_appending(&settings).unwrap();
        let source = opened.sources().into_iter().next().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        OpenLog { writer: opened, source, books: Arc::new(Books::default()), runtime }
    }

    fn trim(&self, log: OpenLog, to: Offset) -> OpenLog {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut below = TopicPartitionList::new();
        let offset = KafkaOffset::Offset(i64::try_from(to.0).unwrap());
        below.add_partition_offset(&self.name, 0, offset).unwrap();
        let done = admin.delete_records(&below, &AdminOptions::new());
        self.runtime.block_on(done).unwrap();
        let until = std::time::Instant::now() + super::SOON;
        while log.source.earliest() != to {
            assert!(std::time::Instant::now() < until, "nothing is removed");
            std::thread::sleep(Duration::from_millis(20));
        }
        log
    }
}

super::contract!(place);

/// Scenario: somebody else writes into the topic in transactions, one of them undone, between events of
/// ours.
/// Guarantees: our events come out whole and in order; offsets of no event are told as empty, messages
/// that are not ours as damaged; a reader gets over both, wherever it begins.
#[test]
fn marks_of_transactions_and_messages_of_others_are_told_apart_from_events() {
    let Some(topic) = place("marks_of_transactions") else { return };
    let log = topic.open(&super::same);
    log.appended(0, 3);
    let mut config = topic.client();
    config.set("transactional.id", "somebody-else");
    let other: BaseProducer = config.create().unwrap();
    other.init_transactions(super::SOON).unwrap();
    for undone in [false, true] {
        other.begin_transaction().unwrap();
        let message = BaseRecord::<str, str>::to(&topic.name).partition(0).payload("not ours");
        other.send(message).unwrap();
        other.flush(super::SOON).unwrap();
        match undone {
            false => other.commit_transaction(super::SOON).unwrap(),
            true => other.abort_transaction(super::SOON).unwrap(),
        }
    }
    // A mark is written some time after its transaction is over.
    log.wait_for(7);
    // Three of ours, theirs and its mark, one that was undone and its mark.
    assert_eq!(log.appended(1, 2).range.unwrap().from().0, 7);
    log.wait_for(9);
    for from in 0..9u64 {
        let mut reader = log.source.read_from(Offset(from)).unwrap();
        let (mut events, mut foreign, mut at) = (Vec::new(), Vec::new(), from);
        while at < 9 {
            match reader.next().unwrap().expect("it ends early") {
                SourceEntry::Frame(frame) => {
                    assert_eq!(frame.base.0, at, "offsets are left out without a word");
                    events.push(frame.base.0);
                    at = frame.end().0;
                }
                SourceEntry::Quarantined(range) => {
                    assert_eq!(range.from().0, at);
                    foreign.push(range.from().0);
                    at = range.to().0;
                }
                SourceEntry::Empty(range) => {
                    assert_eq!(range.from().0, at);
                    at = range.to().0;
                }
            }
        }
        let ours: Vec<u64> = [0, 1, 2, 7, 8].into_iter().filter(|at| from <= *at).collect();
        let theirs: Vec<u64> = [3].into_iter().filter(|at| from <= *at).collect();
        assert_eq!((events, foreign), (ours, theirs), "from {from}");
    }
    assert_eq!(topic.end(&log), Offset(9));
    log.close();
}
