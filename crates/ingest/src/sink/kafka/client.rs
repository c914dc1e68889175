//! Clients of librdkafka: how each is configured, and what all of them tell.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::ProducerContext,
};

use super::config::Settings;

/// What a reader of markers holds in advance, in KiB.
const READ_AHEAD_KIB: u64 = 4 << 10;
/// How many deliveries that failed are remembered of one transaction.
const FAILURES_MAX: usize = 1_000;

/// What clients are made from.
#[derive(Clone)]
pub struct Clients {
    base: ClientConfig,
    producer: ClientConfig,
    told: Arc<Mutex<Option<String>>>,
}

/// What a client does with what it is told.
#[derive(Clone)]
pub struct Listener {
    told: Arc<Mutex<Option<String>>>,
    failures: Arc<Mutex<Vec<RDKafkaErrorCode>>>,
}

impl Listener {
    /// Why messages were not delivered since this was asked last.
    pub fn take_failures(&self) -> Vec<RDKafkaErrorCode> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True where some were not.
    pub fn failed(&self) -> bool {
        !self.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "Kafka's client"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, message, "Kafka's client");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka's client");
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Listener {}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, _)) = result else { return };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_MAX {
            failures.push(code);
        }
    }
}

impl Clients {
    /// # Errors
    /// A secret that cannot be read: one line for people.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut base = ClientConfig::new();
        for (name, value) in settings.connection.settings()? {
            base.set(name, value);
        }
        let timeout = settings.timeout.as_millis();
        // librdkafka counts the bytes of values alone; a message costs it up to a KiB more.
        let messages = (settings.queue_bytes / 1024).max(1_000);
        let mut producer = base.clone();
        producer
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.codec", settings.compression.name())
            .set("linger.ms", settings.linger.as_millis().to_string())
            .set("batch.num.messages", "100000")
            .set("batch.size", "512000")
            // Of what arrived the commit tells.
            .set("delivery.report.only.error", "true")
            // As Java's clients have it: the same key, the same partition.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", settings.message_bytes.to_string())
            .set("queue.buffering.max.messages", messages.to_string())
            .set("queue.buffering.max.kbytes", settings.queue_bytes.div_ceil(1024).to_string())
            .set("message.timeout.ms", timeout.to_string())
            // Longer than a message takes: a transaction that its process left is undone after this.
            .set("transaction.timeout.ms", (timeout * 2).min(900_000).to_string());
        Ok(Self { base, producer, told: Arc::default() })
    }

    /// Who only asks.
    pub fn asking(&self) -> &ClientConfig {
        &self.base
    }

    /// Who writes under a transactional id.
    pub fn writing(&self, id: &str) -> ClientConfig {
        let mut config = self.producer.clone();
        config.set("transactional.id", id);
        config
    }

    /// Who reads what is committed, from the beginning.
    pub fn reading(&self) -> ClientConfig {
        let mut config = self.base.clone();
        config
            .set("group.id", "tidegate.progress")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            .set("queued.max.messages.kbytes", READ_AHEAD_KIB.to_string())
            .set("fetch.wait.max.ms", "50");
        config
    }

    /// What a new client tells.
    pub fn listener(&self) -> Listener {
        Listener { told: Arc::clone(&self.told), failures: Arc::default() }
    }

    /// The last error that is no one request's.
    pub fn told(&self) -> Option<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
