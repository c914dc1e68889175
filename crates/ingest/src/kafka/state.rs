//! What must outlive a process that shares the log: kept in `<topic>.state`, by one owner at a time.
//!
//! Each value is one message of a compacted topic, in the partition of the log's partition, under the
//! key `<what>/<name>/<partition>`. Whoever owns a partition writes in transactions under the id
//! `<log id>-<partition>`; taking over begins with that id anew, after which Kafka refuses whatever the
//! owner before would still write. Then it writes a mark of its own, and reads the state up to that
//! mark: all that was ever written before it. So what is read is what holds, and nobody else changes it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use tidegate_event::Partition;

use super::client::{Clients, Listener};
use crate::sink::state::{SaveError, StateStore, StateStores};

/// A state may be so large, as text: a few hundred thousand lanes.
pub(super) const VALUE_BYTES_MAX: u64 = 64 << 20;
/// How long Kafka may take for one step.
const STEP: Duration = Duration::from_secs(15);
/// How long one call of it waits. What the client has to tell counts as outstanding for it, and is
/// served between two calls alone.
const CALL: Duration = Duration::from_secs(1);
/// How long reading a partition's state may take.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// The state of one partition, ours until somebody takes it over.
pub(super) struct Kept {
    topic: String,
    number: i32,
    producer: Mutex<BaseProducer<Listener>>,
    values: Mutex<HashMap<String, Vec<u8>>>,
    fenced: AtomicBool,
    /// Its producer can write nothing any more; another one can.
    spent: AtomicBool,
    pulse: Arc<Pulse>,
}

/// Whether this process has been there without a break: one that was stopped and goes on must not begin
/// anything before it can have been told what became of its partitions.
pub(super) struct Pulse {
    longest: Duration,
    beats: Mutex<Beats>,
}

struct Beats {
    last: Instant,
    steady_since: Option<Instant>,
}

impl Pulse {
    /// `session`: after so long without a word others have our partitions.
    pub fn new(session: Duration) -> Self {
        let beats = Beats { last: Instant::now(), steady_since: None };
        Self { longest: session / 2, beats: Mutex::new(beats) }
    }

    /// The group was just asked for news.
    pub fn beat(&self) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        if self.longest < beats.last.elapsed() {
            beats.steady_since = Some(Instant::now());
        }
        beats.last = Instant::now();
    }

    pub fn is_steady(&self) -> bool {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.last.elapsed() <= self.longest
            && beats.steady_since.is_none_or(|since| self.longest <= since.elapsed())
    }
}

/// Why a partition's state is not ours.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Kafka did not let us begin.
    #[error("the state of the partition cannot be taken over: {0}")]
    Begin(KafkaError),
    /// It cannot be read.
    #[error("the state of the partition cannot be read: {0}")]
    Read(KafkaError),
    /// It did not come in time.
    #[error("the state of the partition does not come: Kafka is too slow, or away")]
    Slow,
}

impl TakeOverError {
    /// Somebody else took it over meanwhile.
    pub fn is_overtaken(&self) -> bool {
        matches!(self, Self::Begin(error) if is_fenced(error))
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

/// A partition's state as its books and what was decided of it need it.
pub(super) trait Store: Send + Sync {
    /// The names of all values.
    fn keys(&self) -> Vec<String>;
    /// One value.
    fn get(&self, key: &str) -> Option<Vec<u8>>;
    /// One value, which is not asked for again.
    fn take(&self, key: &str) -> Option<Vec<u8>>;
    /// Replaces values, or removes them, all or none; durable on return. They are not given by
    /// [`Store::get`]: who writes them has them.
    fn put_all(&self, values: &[(String, Option<Vec<u8>>)]) -> Result<(), SaveError>;
}

impl Store for Kept {
    fn keys(&self) -> Vec<String> {
        self.values().keys().cloned().collect()
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.values().get(key).cloned()
    }

    fn take(&self, key: &str) -> Option<Vec<u8>> {
        self.values().remove(key)
    }

    fn put_all(&self, values: &[(String, Option<Vec<u8>>)]) -> Result<(), SaveError> {
        let values: Vec<_> =
            values.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        self.write(&values)
    }
}

impl Kept {
    /// Takes `number` of `topic` over as `id`: who had it before writes nothing any more.
    pub fn take_over(
        clients: &Clients,
        topic: &str,
        number: i32,
        id: &str,
        pulse: Arc<Pulse>,
    ) -> Result<Arc<Self>, TakeOverError> {
        let config = clients.keeping(id, VALUE_BYTES_MAX);
        let producer: BaseProducer<Listener> =
            clients.make(&config).map_err(TakeOverError::Begin)?;
        // Serves what the client is told first: its token.
        producer.poll(Duration::from_millis(10));
        until_told(&producer, READ_WITHIN, || producer.init_transactions(STEP))
            .map_err(TakeOverError::Begin)?;
        let mark = (format!("owner/{id}"), uuid::Uuid::now_v7().to_string());
        write(&producer, topic, number, &[(&mark.0, Some(mark.1.as_bytes()))])
            .map_err(TakeOverError::Begin)?;
        let values = read(clients, topic, number, &mark)?;
        Ok(Arc::new(Self {
            topic: topic.to_owned(),
            number,
            producer: Mutex::new(producer),
            values: Mutex::new(values),
            fenced: AtomicBool::new(false),
            spent: AtomicBool::new(false),
            pulse,
        }))
    }

    fn values(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is of other partitions than this one, whose state lies in the same place.
    pub fn keep_only(&self, mut wanted: impl FnMut(&str) -> bool) {
        self.values().retain(|key, _| wanted(key));
    }

    /// Nothing is written here any more.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire) || self.is_spent()
    }

    /// Nobody has taken it over: it is to be taken anew.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Acquire)
    }

    /// Replaces one value; durable on return.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), SaveError> {
        self.write(&[(key, Some(value))])?;
        self.values().insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn write(&self, values: &[(&str, Option<&[u8]>)]) -> Result<(), SaveError> {
        let producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_fenced() {
            return Err(SaveError::Fenced);
        }
        let written = write(&producer, &self.topic, self.number, values);
        written.map_err(|error| self.give_up(&producer, &error))
    }

    /// A transaction that failed is undone, so that the next one can begin.
    fn give_up(&self, producer: &BaseProducer<Listener>, error: &KafkaError) -> SaveError {
        let fatal = producer.client().fatal_error();
        if is_fenced(error) || fatal.as_ref().is_some_and(|(code, _)| fences(*code)) {
            self.fenced.store(true, Ordering::Release);
            return SaveError::Fenced;
        }
        if let Some((_, reason)) = fatal {
            tracing::error!(reason, "Kafka's producer of a partition's state failed for good");
            self.spent.store(true, Ordering::Release);
            return SaveError::Fenced;
        }
        let undo = || producer.abort_transaction(CALL);
        if let Err(undone) = until_told(producer, STEP, undo) {
            if is_fenced(&undone) {
                self.fenced.store(true, Ordering::Release);
                return SaveError::Fenced;
            }
            // Whether it is committed may not be known. With this producer that stays so: it takes no other
            // transaction before. One that begins anew ends it, and reads what is so.
            tracing::warn!(%error, %undone, "a transaction of a partition's state was neither committed nor undone in time: it is taken anew");
            self.spent.store(true, Ordering::Release);
            return SaveError::Fenced;
        }
        SaveError::Io(std::io::Error::other(format!("{}: {error}", self.topic)))
    }
}

/// Some values, in a transaction of their own; `None` removes one.
fn write(
    producer: &BaseProducer<Listener>,
    topic: &str,
    number: i32,
    values: &[(&str, Option<&[u8]>)],
) -> Result<(), KafkaError> {
    producer.begin_transaction()?;
    for (key, value) in values {
        let mut message = BaseRecord::<str, [u8]>::to(topic).partition(number).key(key);
        if let Some(value) = value {
            message = message.payload(value);
        }
        producer.send(message).map_err(|(error, _)| error)?;
    }
    until_told(producer, 2 * STEP, || producer.commit_transaction(CALL))
}

/// Asks again as long as it is not known whether it is done.
fn until_told(
    producer: &BaseProducer<Listener>,
    within: Duration,
    call: impl Fn() -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    let until = Instant::now() + within;
    loop {
        match call() {
            Err(error) if is_worth_a_try(&error) && Instant::now() < until => {
                producer.poll(Duration::from_millis(50));
            }
            done => return done,
        }
    }
}

fn is_worth_a_try(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable() && !error.txn_requires_abort(),
        KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => true,
        _ => false,
    }
}

fn is_fenced(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(fences)
}

fn fences(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
    )
}

/// The last value of every key of one partition of `topic`, up to the message `mark`.
fn read(
    clients: &Clients,
    topic: &str,
    number: i32,
    mark: &(String, String),
) -> Result<HashMap<String, Vec<u8>>, TakeOverError> {
    let fault = TakeOverError::Read;
    let config = clients.reading(&format!("{topic}-read"), "read_committed");
    let consumer: BaseConsumer<Listener> = clients.make(&config).map_err(fault)?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, number, KafkaOffset::Beginning).map_err(fault)?;
    consumer.assign(&from).map_err(fault)?;
    let until = Instant::now() + READ_WITHIN;
    let mut values = HashMap::new();
    while Instant::now() < until {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                let key = message.key().map(String::from_utf8_lossy).unwrap_or_default();
                if key == mark.0 && message.payload() == Some(mark.1.as_bytes()) {
                    return Ok(values);
                }
                match message.payload() {
                    Some(value) => values.insert(key.into_owned(), value.to_owned()),
                    None => values.remove(&*key),
                };
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => tracing::debug!(%error, "reading the state of a partition"),
        }
    }
    Err(TakeOverError::Slow)
}

/// A partition of the log as its sinks keep their state.
pub(super) struct SinkStates {
    pub kept: Arc<Kept>,
    pub partition: Partition,
}

impl StateStores for SinkStates {
    fn of(&self, sink: &str) -> Box<dyn StateStore> {
        let key = format!("sink/{sink}/{}", self.partition);
        Box::new(Key { kept: Arc::clone(&self.kept), key })
    }
}

struct Key {
    kept: Arc<Kept>,
    key: String,
}

impl StateStore for Key {
    fn place(&self) -> String {
        format!("{} of topic {}", self.key, self.kept.topic)
    }

    fn load(&self) -> std::io::Result<Option<Vec<u8>>> {
        Ok(Store::get(&*self.kept, &self.key))
    }

    fn save(&self, bytes: &[u8]) -> Result<(), SaveError> {
        self.kept.put(&self.key, bytes)
    }

    fn may_write(&self) -> bool {
        !self.kept.is_fenced() && self.kept.pulse.is_steady()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_stopped_begins_nothing_until_it_can_have_been_told() {
        let pulse = Pulse::new(Duration::from_millis(400));
        pulse.beat();
        assert!(pulse.is_steady());
        std::thread::sleep(Duration::from_millis(250));
        assert!(!pulse.is_steady(), "nobody was asked for too long");
        pulse.beat();
        assert!(!pulse.is_steady(), "the answer cannot be there yet");
        let until = Instant::now() + Duration::from_secs(20);
        while !pulse.is_steady() {
            assert!(Instant::now() < until, "it never goes on");
            std::thread::sleep(Duration::from_millis(20));
            pulse.beat();
        }
    }
}
