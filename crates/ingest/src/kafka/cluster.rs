//! What is known of the topic: each partition's extent, asked for again and again; and readers to lend.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tidegate_event::{Offset, Partition, ReceivedAt};

use super::{
    client::{Clients, Listener},
    reader::Reader,
};
use crate::sink::source::{LogSource, SourceError, SourceHold, SourceReader};

/// How often the extents are asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After so long without an answer Kafka is said to be away.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// Readers kept for the next one who asks: making one means connections and threads.
const IDLE_READERS: usize = 4;
/// Bytes of a message before anybody has seen one.
const MEAN_BYTES_FIRST: u64 = 512;

/// The topic that is the log.
pub(super) struct Cluster {
    pub clients: Clients,
    pub topic: String,
    pub log_id: String,
    extents: Vec<Extent>,
    growing: Mutex<()>,
    grown: Condvar,
    asking: BaseConsumer<Listener>,
    answered: Mutex<Instant>,
    idle: Mutex<Vec<BaseConsumer<Listener>>>,
    mean_bytes: AtomicU64,
}

/// What is known of one partition.
#[derive(Debug, Default)]
struct Extent {
    earliest: AtomicU64,
    latest: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Asks for every partition's extent, and goes on asking as long as somebody holds it.
    ///
    /// # Errors
    /// As Kafka's client says it.
    pub fn open(clients: Clients, log_id: &str, partitions: u32) -> Result<Arc<Self>, KafkaError> {
        let mut config = clients.asking();
        config.set("isolation.level", "read_committed");
        let asking: BaseConsumer<Listener> = clients.make(&config)?;
        // Serves what this client is told first: its token, where it needs one.
        let _told = asking.poll(Duration::from_millis(10));
        let cluster = Arc::new(Self {
            topic: clients.config.topic.clone(),
            clients,
            log_id: log_id.to_owned(),
            extents: (0..partitions).map(|_| Extent::default()).collect(),
            growing: Mutex::default(),
            grown: Condvar::new(),
            asking,
            answered: Mutex::new(Instant::now()),
            idle: Mutex::default(),
            mean_bytes: AtomicU64::new(MEAN_BYTES_FIRST),
        });
        for partition in 0..partitions {
            cluster.ask(Partition(partition))?;
        }
        let watched = Arc::downgrade(&cluster);
        std::thread::Builder::new()
            .name("kafka-extents".to_owned())
            .spawn(move || watch(&watched))
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(cluster)
    }

    /// Each partition as sinks see it.
    pub fn sources(self: &Arc<Self>) -> Vec<Arc<dyn LogSource>> {
        self.partitions().map(|partition| self.source(partition)).collect()
    }

    /// One partition as sinks see it.
    pub fn source(self: &Arc<Self>, partition: Partition) -> Arc<dyn LogSource> {
        Arc::new(PartitionLog { cluster: Arc::clone(self), partition })
    }

    pub fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..u32::try_from(self.extents.len()).unwrap_or(u32::MAX)).map(Partition)
    }

    /// Consumers of this name share the partitions.
    pub fn group(&self) -> String {
        format!("tidegate-{}", self.log_id)
    }

    fn extent(&self, partition: Partition) -> Option<&Extent> {
        self.extents.get(usize::try_from(partition.0).ok()?)
    }

    pub fn earliest(&self, partition: Partition) -> Offset {
        Offset(self.extent(partition).map_or(0, |e| e.earliest.load(Ordering::Acquire)))
    }

    pub fn latest(&self, partition: Partition) -> Offset {
        Offset(self.extent(partition).map_or(0, |e| e.latest.load(Ordering::Acquire)))
    }

    /// All below `end` is in the partition and acknowledged, or was read.
    pub fn reaches(&self, partition: Partition, end: Offset) {
        let Some(extent) = self.extent(partition) else { return };
        if extent.latest.fetch_max(end.0, Ordering::AcqRel) < end.0 {
            drop(lock(&self.growing));
            self.grown.notify_all();
        }
    }

    /// Asks for one partition's extent now. Below the end that it returns all is decided: what comes
    /// no more of it, never will.
    pub fn ask(&self, partition: Partition) -> Result<Offset, KafkaError> {
        let number = number(partition);
        let (low, high) = self.asking.fetch_watermarks(&self.topic, number, ANSWER_WITHIN)?;
        let (low, high) = (u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0));
        if let Some(extent) = self.extent(partition) {
            extent.earliest.fetch_max(low, Ordering::AcqRel);
        }
        self.reaches(partition, Offset(high));
        *lock(&self.answered) = Instant::now();
        Ok(Offset(high))
    }

    /// For how long Kafka has not answered, once that is long.
    pub fn away(&self) -> Option<Duration> {
        let away = lock(&self.answered).elapsed();
        (AWAY_AFTER < away).then_some(away)
    }

    fn ask_all(&self) {
        // Serves what this client is told: its tokens, its errors.
        if let Some(Err(error)) = self.asking.poll(Duration::ZERO) {
            tracing::debug!(%error, "Kafka");
        }
        for partition in self.partitions() {
            if let Err(error) = self.ask(partition) {
                self.clients.heard.set_error(Some(error.to_string()));
                tracing::debug!(%error, partition = partition.0, "Kafka does not say how far a partition goes");
                return;
            }
        }
        self.clients.heard.set_error(None);
    }

    /// A message took so many bytes.
    pub fn saw(&self, bytes: u64) {
        let before = self.mean_bytes.load(Ordering::Relaxed);
        let after = (before * 63 + bytes.max(1)).div_ceil(64);
        self.mean_bytes.store(after.max(1), Ordering::Relaxed);
    }

    /// A consumer to read with; give it back with [`Cluster::give_back`].
    pub fn borrow(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        if let Some(idle) = lock(&self.idle).pop() {
            return Ok(idle);
        }
        self.clients.make(&self.clients.reading(&self.group(), "read_committed"))
    }

    pub fn give_back(&self, consumer: BaseConsumer<Listener>) {
        // What was assigned goes; what was fetched of it is never shown to the next one.
        let clean = consumer.unassign();
        let mut idle = lock(&self.idle);
        if clean.is_ok() && idle.len() < IDLE_READERS {
            idle.push(consumer);
        }
    }

    /// Where the first event of `since` or later may be.
    fn offset_at(&self, partition: Partition, since: ReceivedAt) -> Option<Offset> {
        let mut wanted = TopicPartitionList::new();
        let milliseconds = KafkaOffset::Offset(since.0.div_euclid(1_000));
        wanted.add_partition_offset(&self.topic, number(partition), milliseconds).ok()?;
        let found = self.asking.offsets_for_times(wanted, ANSWER_WITHIN).ok()?;
        let found = found.find_partition(&self.topic, number(partition))?;
        match found.offset() {
            KafkaOffset::Offset(offset) => u64::try_from(offset).ok().map(Offset),
            // Nothing is that late.
            _ => Some(self.latest(partition)),
        }
    }
}

/// A partition as Kafka counts it.
pub(super) fn number(partition: Partition) -> i32 {
    i32::try_from(partition.0).unwrap_or(i32::MAX)
}

fn watch(cluster: &Weak<Cluster>) {
    while let Some(cluster) = cluster.upgrade() {
        cluster.ask_all();
        drop(cluster);
        std::thread::sleep(ASK_EVERY);
    }
}

/// One partition of the topic.
struct PartitionLog {
    cluster: Arc<Cluster>,
    partition: Partition,
}

/// Kafka's retention waits for nobody.
struct NoHold;

impl SourceHold for NoHold {
    fn advance(&mut self, _: Offset) {}
}

impl LogSource for PartitionLog {
    fn log_id(&self) -> &str {
        &self.cluster.log_id
    }

    fn partition(&self) -> Partition {
        self.partition
    }

    fn earliest(&self) -> Offset {
        self.cluster.earliest(self.partition)
    }

    fn latest(&self) -> Offset {
        self.cluster.latest(self.partition)
    }

    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        let reader = Reader::open(Arc::clone(&self.cluster), self.partition, from)?;
        Ok(Box::new(reader))
    }

    fn offset_at(&self, since: ReceivedAt) -> Offset {
        let found = self.cluster.offset_at(self.partition, since);
        found.map_or_else(|| self.earliest(), |offset| offset.max(self.earliest()))
    }

    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        let growing = lock(&self.cluster.growing);
        let waiting = |(): &mut ()| self.latest() <= seen;
        let waited = self.cluster.grown.wait_timeout_while(growing, timeout, waiting);
        drop(waited);
        seen < self.latest()
    }

    fn bytes_since(&self, offset: Offset) -> u64 {
        let events = self.latest().since(offset.max(self.earliest()));
        events.saturating_mul(self.cluster.mean_bytes.load(Ordering::Relaxed))
    }

    fn hold(&self, _: &str) -> Box<dyn SourceHold> {
        Box::new(NoHold)
    }
}
