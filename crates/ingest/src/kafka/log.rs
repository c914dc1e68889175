//! The log on Kafka as the rest of the program sees it: opened, appended to, asked.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::error::KafkaError;
use serde_json::{Value, json};
use tidegate_event::{EncodedBatch, TenantId};
use tokio::runtime::Handle;

use super::{
    KafkaConfig,
    check::{self, CheckError, Found, Needs},
    client::Clients,
    cluster::Cluster,
    group::Ownership,
    identity::{self, IdentityError},
    producer::Producer,
    schemas::TopicContents,
};
use crate::{
    books::Open,
    clock::Clock,
    normalize::SharedContents,
    sink::{Sinks, source::LogSource},
    storage::LockGuard,
    writer::{
        Append, AppendError, Appended, BoxFuture, DedupStatus, LedgerCopy, LogWriter,
        WriterSettings, WriterStats,
    },
};

/// Why the log on Kafka cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// The topics.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The log's id.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A client.
    #[error("Kafka: {0}")]
    Client(#[from] KafkaError),
}

/// A log on Kafka.
pub struct KafkaLog {
    cluster: Arc<Cluster>,
    found: Found,
    producer: Mutex<Option<Arc<Producer>>>,
    ownership: Mutex<Option<Ownership>>,
    remembers: AtomicBool,
    /// The data folder: this process alone has it.
    _folder: LockGuard,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks whether the topics keep what is promised, and opens the log on them. Blocks; not on a thread
/// of the runtime.
///
/// # Errors
/// [`OpenError`]: nothing must be accepted.
pub fn open(
    config: &KafkaConfig,
    needs: Needs,
    runtime: Handle,
    folder: LockGuard,
) -> Result<Arc<KafkaLog>, OpenError> {
    let clients = Clients::new(config, runtime).map_err(OpenError::Config)?;
    let found = check::check(&clients, needs)?;
    let log_id = identity::identify(&clients)?;
    let cluster = Cluster::open(clients, &log_id, found.partitions)?;
    let (producer, ownership) = (Mutex::default(), Mutex::default());
    let remembers = AtomicBool::new(false);
    Ok(Arc::new(KafkaLog { cluster, found, producer, ownership, remembers, _folder: folder }))
}

impl KafkaLog {
    /// The log's id, 8 characters.
    #[must_use]
    pub fn log_id(&self) -> &str {
        &self.cluster.log_id
    }

    /// Every partition, for readers.
    #[must_use]
    pub fn sources(&self) -> Vec<Arc<dyn LogSource>> {
        self.cluster.sources()
    }

    /// Where processes on this log share the schemas' contents.
    #[must_use]
    pub fn contents(&self) -> Arc<dyn SharedContents> {
        TopicContents::new(&self.cluster.clients)
    }

    /// What an operator should know.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.found.notes
    }

    /// Opens the way in.
    ///
    /// # Errors
    /// As librdkafka says it.
    pub fn begin_appending(&self, settings: &WriterSettings) -> Result<(), OpenError> {
        let cluster = Arc::clone(&self.cluster);
        let producer = Producer::open(cluster, settings, self.found.message_bytes)?;
        *lock(&self.producer) = Some(producer);
        Ok(())
    }

    /// Joins those who share the partitions; `sinks` are run on those that are given to us.
    ///
    /// # Errors
    /// As librdkafka says it.
    pub fn begin_owning(
        &self,
        sinks: Arc<Sinks>,
        settings: &WriterSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(), OpenError> {
        let partitions = self.found.state_partitions;
        let ownership = Ownership::start(&self.cluster, partitions, sinks, settings, clock)?;
        *lock(&self.ownership) = Some(ownership);
        self.remembers.store(settings.remembers(), Ordering::Relaxed);
        Ok(())
    }

    fn producer(&self) -> Result<Arc<Producer>, AppendError> {
        lock(&self.producer).clone().ok_or(AppendError::Draining)
    }
}

impl Append for KafkaLog {
    fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        // Sent at once, not when first polled: an answer nobody waits for is still settled.
        let sent = match self.producer() {
            Ok(producer) => producer.append(batch, entry),
            Err(error) => {
                entry.shed(error.reason());
                Err(error)
            }
        };
        Box::pin(async move {
            match sent {
                Ok(answer) => answer.await.unwrap_or(Err(AppendError::Storage)),
                Err(error) => Err(error),
            }
        })
    }

    fn room(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        self.producer()?.room(tenant, bytes)
    }
}

impl LogWriter for KafkaLog {
    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let Ok(producer) = self.producer() else { return reasons };
        let stats = producer.stats();
        if producer.is_failed() {
            reasons.push("storage: Kafka's producer failed; another one cannot be made".to_owned());
        } else if let Some(away) = self.cluster.away() {
            let why = self.cluster.clients.heard.error().unwrap_or_default();
            let seconds = away.as_secs();
            reasons.push(format!("storage: Kafka has not answered for {seconds} s; {why}"));
        } else if stats.bound_bytes <= stats.held_bytes {
            reasons.push("log_full: as much is on its way to Kafka as may be".to_owned());
        }
        reasons
    }

    fn stats(&self) -> WriterStats {
        self.producer().map(|producer| producer.stats()).unwrap_or_default()
    }

    fn ledgers(&self) -> Result<Vec<LedgerCopy>, String> {
        let ledgers = lock(&self.ownership).as_ref().map(Ownership::ledgers).unwrap_or_default();
        let mut copies = Vec::new();
        for ledger in ledgers {
            let end = ledger.log().latest();
            ledger.count_up_to(end, None, || true).map_err(|error| error.to_string())?;
            copies.push(ledger.copy());
        }
        Ok(copies)
    }

    fn dedup(&self) -> Vec<DedupStatus> {
        lock(&self.ownership).as_ref().map(Ownership::dedup).unwrap_or_default()
    }

    fn as_read(&self, log: &Arc<dyn LogSource>) -> Arc<dyn LogSource> {
        let ownership = lock(&self.ownership);
        let view = ownership.as_ref().and_then(|ownership| ownership.view(log.partition()));
        view.unwrap_or_else(|| Arc::clone(log))
    }

    fn to_replay(&self, log: &Arc<dyn LogSource>) -> Result<Arc<dyn LogSource>, String> {
        let ownership = lock(&self.ownership);
        let view = ownership.as_ref().and_then(|ownership| ownership.view(log.partition()));
        view.ok_or_else(|| {
            let partition = log.partition();
            format!(
                "partition {partition} is another server's at the moment, which knows what came twice in it: \
                 ask that one (`ingestctl status`, partitions_owned), with --partition {partition}"
            )
        })
    }

    fn about(&self) -> Value {
        let config = &self.cluster.clients.config;
        let ownership = lock(&self.ownership);
        let owned = ownership.as_ref().map(Ownership::partitions).unwrap_or_default();
        let problems = ownership.as_ref().map(Ownership::problems).unwrap_or_default();
        let elsewhere = ownership.as_ref().map(Ownership::elsewhere).unwrap_or_default();
        json!({
            "kind": "kafka",
            "servers": config.servers,
            "topic": config.topic,
            "state_topic": config.state_topic(),
            "group": self.cluster.group(),
            "replication": self.found.replication,
            "min_insync": config.min_insync,
            "min_insync_replicas": self.found.min_insync,
            "promise_kept": 2 <= config.min_insync && !config.unchecked,
            "notes": self.found.notes,
            "partitions_owned": owned,
            "partitions_elsewhere": elsewhere,
            "problems": problems,
            "throttled_milliseconds": millis(self.cluster.clients.heard.throttled()),
            "away_seconds": self.cluster.away().map(|away| away.as_secs()),
            "error": self.cluster.clients.heard.error(),
            "deduplication": if self.remembers.load(Ordering::Relaxed) { "on" } else { "off" },
        })
    }

    fn close(&self) {
        if let Ok(producer) = self.producer() {
            producer.close();
        }
    }

    fn leave(&self) {
        if let Some(ownership) = lock(&self.ownership).as_ref() {
            ownership.end();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
