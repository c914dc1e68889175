//! Clients of librdkafka: how each is configured, and what all of them tell.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::runtime::Handle;

use super::{KafkaConfig, Sasl, config::Mechanism, oauth, reach};

/// Bytes that one reader fetches ahead at most.
const READ_AHEAD_KIB: u64 = 2 << 10;

/// What clients are made from.
#[derive(Clone)]
pub(super) struct Clients {
    pub config: KafkaConfig,
    base: ClientConfig,
    runtime: Handle,
    pub heard: Arc<Heard>,
}

/// What clients said of late.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The last error that is no one request's.
    error: Mutex<Option<String>>,
    /// For how long brokers made the producer wait of late because of a quota: milliseconds, at most.
    throttled_ms: AtomicU64,
}

impl Heard {
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_error(&self, error: Option<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub fn throttled(&self) -> Duration {
        Duration::from_millis(self.throttled_ms.load(Ordering::Relaxed))
    }
}

/// What every client of ours does with what it is told.
#[derive(Clone)]
pub(super) struct Listener {
    heard: Arc<Heard>,
    oauth: Option<oauth::Tokens>,
}

impl ClientContext for Listener {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(facility, "Kafka's client: {message}");
                // Why a connection failed is told here alone.
                let told = message.split_once("]: ").map_or(message, |(_, told)| told);
                self.heard.set_error(Some(told.to_owned()));
            }
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "Kafka's client: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, "Kafka's client: {message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let worst = |broker: &rdkafka::statistics::Broker| {
            broker.throttle.as_ref().map_or(0, |window| window.max)
        };
        let throttled = statistics.brokers.values().map(worst).max().unwrap_or(0);
        let throttled = u64::try_from(throttled).unwrap_or(0);
        self.heard.throttled_ms.store(throttled, Ordering::Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Readers want to be told where a partition ends; for them alone it is news, and no trouble.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(%error, reason, "Kafka");
        self.heard.set_error(Some(reason.to_owned()));
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.oauth.as_ref().ok_or("no OAUTHBEARER is configured")?;
        tokens.fetch().inspect_err(|error| {
            self.heard.set_error(Some(format!("no token for Kafka: {error}")));
        })
    }
}

impl ConsumerContext for Listener {}

impl Clients {
    /// # Errors
    /// A secret that cannot be read: one line for people.
    pub fn new(config: &KafkaConfig, runtime: Handle) -> Result<Self, String> {
        let mut base = ClientConfig::new();
        for (name, value) in &config.options {
            base.set(name, value);
        }
        let (tls, sasl) = (config.tls.as_ref(), config.sasl.as_ref());
        for (name, value) in reach::settings(&config.servers, tls, sasl, Sasl::secret)? {
            base.set(name, value);
        }
        base.set("topic.metadata.refresh.interval.ms", "30000");
        Ok(Self { config: config.clone(), base, runtime, heard: Arc::default() })
    }

    pub fn listener(&self) -> Listener {
        let oauth = self.config.sasl.as_ref().and_then(|sasl| {
            let wanted = sasl.mechanism == Mechanism::OauthBearer;
            wanted.then(|| oauth::Tokens::new(sasl.clone(), self.runtime.clone()))
        });
        Listener { heard: Arc::clone(&self.heard), oauth }
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Who only asks.
    pub fn asking(&self) -> ClientConfig {
        self.base.clone()
    }

    /// Who reads a partition from an offset: never in a group, only what is decided.
    pub fn reading(&self, group: &str, isolation: &str) -> ClientConfig {
        let mut config = self.base.clone();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", isolation)
            .set("check.crcs", "true")
            .set("queued.max.messages.kbytes", READ_AHEAD_KIB.to_string())
            .set("queued.min.messages", "100000")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.wait.max.ms", "100");
        config
    }

    /// Who shares the partitions.
    pub fn sharing(&self, group: &str) -> ClientConfig {
        let mut config = self.reading(group, "read_committed");
        let session = self.config.session_timeout.0.as_millis();
        config
            .set("auto.offset.reset", "latest")
            .set("enable.partition.eof", "false")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", (session / 3).max(1).to_string())
            .set("max.poll.interval.ms", (session * 6).max(60_000).to_string())
            // It reads nothing: its partitions are paused.
            .set("queued.min.messages", "1")
            .set("queued.max.messages.kbytes", "1")
            .set("fetch.message.max.bytes", "1024");
        config
    }

    /// Who appends events.
    pub fn appending(&self, message_bytes: u64, queue_bytes: u64) -> ClientConfig {
        let mut config = self.base.clone();
        let own = &self.config;
        // Ours is the bound that counts; this one only has to be behind it.
        let behind = (queue_bytes / 1024 * 2).clamp(64 << 10, 2_097_151);
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.codec", own.compression.name())
            .set("linger.ms", own.linger.0.as_millis().to_string())
            .set("batch.num.messages", "100000")
            .set("batch.size", "1000000")
            .set("message.max.bytes", message_bytes.to_string())
            .set("message.timeout.ms", own.delivery_timeout.0.as_millis().to_string())
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", behind.to_string())
            .set("statistics.interval.ms", "1000");
        config
    }

    /// Who keeps a partition's state: what an earlier one of this id had begun is over.
    pub fn keeping(&self, id: &str, message_bytes: u64) -> ClientConfig {
        let mut config = self.base.clone();
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", "10000")
            .set("message.timeout.ms", "10000")
            // Whatever `options` say for the others: here it may not be longer than a transaction.
            .set("socket.timeout.ms", "10000")
            .set("message.max.bytes", message_bytes.to_string())
            .set("compression.codec", "zstd")
            .set("linger.ms", "0");
        config
    }

    /// Makes a client.
    ///
    /// # Errors
    /// As librdkafka says it: a setting that it does not know, a certificate that cannot be read.
    pub fn make<T: FromClientConfigAndContext<Listener>>(
        &self,
        config: &ClientConfig,
    ) -> Result<T, KafkaError> {
        T::from_config_and_context(config, self.listener())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_partition_is_no_trouble_and_anything_else_is() {
        let listener = Listener { heard: Arc::default(), oauth: None };
        listener.error(KafkaError::Global(RDKafkaErrorCode::PartitionEOF), "at its end");
        assert_eq!(listener.heard.error(), None);
        listener.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "all are away");
        assert_eq!(listener.heard.error().as_deref(), Some("all are away"));
    }
}
