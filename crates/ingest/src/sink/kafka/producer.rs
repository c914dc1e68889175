//! A transactional producer: taking over what an earlier one left, and one transaction.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ThreadedProducer},
};

use super::{
    super::{
        LaneRows,
        lake::{self, Schemas, table},
    },
    client::{Clients, Listener},
    config::Settings,
    progress::Marker,
    record::{self, Message, Messages},
    topics::words,
};

/// All markers lie in one partition, so that the last of each lane is found whoever wrote it.
const PROGRESS_PARTITION: i32 = 0;
/// How many messages that a topic refuses are looked for at a time: each costs a taking over.
const GUILTY_MAX: usize = 20;
/// How long librdkafka is given to send something when its queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);
const WAIT: Duration = Duration::from_millis(1);
/// How long reading the markers may take, on top of a transaction's time: one that is open holds it up.
const READ: Duration = Duration::from_secs(60);

/// Why a write is not done.
#[derive(Debug)]
pub enum Fault {
    /// Nothing of it is committed.
    Undone(String),
    /// Nobody knows whether it is.
    Unknown(String),
    /// Another process has taken the partition over.
    Fenced(String),
    /// Other rows are committed in the place of these.
    Differs(String),
    /// These rows are no good, by their places; nothing is committed.
    Guilty(Vec<(usize, String)>),
    /// The topic takes no batch of this size; nothing is committed.
    BatchTooLarge,
}

/// A producer that has taken its partition over, and how far each lane was then and is now.
pub struct Open {
    id: String,
    clients: Clients,
    producer: ThreadedProducer<Listener>,
    markers: HashMap<String, Marker>,
    usable: bool,
}

impl Open {
    /// Takes over from whoever wrote under `id` before: what they left open is ended, and what they send
    /// from now on is refused. Then what they committed is read.
    ///
    /// # Errors
    /// [`Fault::Undone`].
    pub fn take_over(clients: &Clients, settings: &Settings, id: &str) -> Result<Self, Fault> {
        let undone = |e: &KafkaError| Fault::Undone(format!("taking over {id}: {}", words(e)));
        let made =
            ThreadedProducer::from_config_and_context(&clients.writing(id), clients.listener());
        let producer: ThreadedProducer<Listener> = made.map_err(|e| undone(&e))?;
        retried(settings.timeout * 2, || producer.init_transactions(settings.timeout))
            .map_err(|e| undone(&e))?;
        let mut open = Self {
            id: id.to_owned(),
            clients: clients.clone(),
            producer,
            markers: HashMap::new(),
            usable: true,
        };
        // Whatever was committed under this id lies before a mark of our own.
        let mark = (format!("{id}/owner"), uuid::Uuid::now_v7().to_string());
        open.begin()?;
        let record = BaseRecord::to(&settings.progress_topic)
            .partition(PROGRESS_PARTITION)
            .key(&mark.0)
            .payload(&mark.1);
        open.producer.send(record).map_err(|(e, _)| undone(&e))?;
        open.commit(settings)?;
        open.markers = read(clients, settings, id, &mark)?;
        tracing::info!(id, lanes = open.markers.len(), "the partition was taken over");
        Ok(open)
    }

    /// Under which it writes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// False after a fault that needs another producer.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// The last marker under `key`.
    pub fn marker(&self, key: &str) -> Option<&Marker> {
        self.markers.get(key)
    }

    /// Writes all rows, and the marker that says so.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn transaction(
        &mut self,
        schemas: &dyn Schemas,
        settings: &Settings,
        rows: &LaneRows<'_>,
        topic: &str,
        key: &str,
    ) -> Result<(), Fault> {
        let marker = Marker::of(rows);
        let sending = Sending { schemas, settings, rows, topic, key, marker: marker.encode() };
        self.producer.context().take_failures();
        let mut sent = self.together(&sending);
        if matches!(sent, Err(Fault::BatchTooLarge)) {
            // Which message, if any, is so by itself?
            tracing::warn!(
                topic,
                "the topic takes no batches of ours: messages are sent one by one"
            );
            self.renew(settings)?;
            sent = self.one_by_one(&sending);
        }
        sent?;
        self.markers.insert(key.to_owned(), marker);
        Ok(())
    }

    /// One transaction in batches, undone where it cannot be committed.
    fn together(&mut self, sending: &Sending<'_>) -> Result<(), Fault> {
        self.begin()?;
        match sending.send(&self.producer) {
            Ok(()) => self.commit(sending.settings),
            Err(fault) => Err(self.undo(sending.settings.timeout, fault)),
        }
    }

    /// One transaction of batches of one message each. A message that the topic refuses ends a transaction, so
    /// the next goes on in another, only to find more of them: nothing is committed then.
    fn one_by_one(&mut self, sending: &Sending<'_>) -> Result<(), Fault> {
        let timeout = sending.settings.timeout;
        self.begin()?;
        let mut guilty = Vec::new();
        let refused = sending.each(|message| {
            let sent = sending.one(&self.producer, message);
            let sent = sent.and_then(|large| match large {
                Some(cause) => Ok(Some(cause)),
                None => settle(&self.producer, timeout).map(|()| None),
            });
            match sent {
                Ok(None) => return Ok(()),
                Ok(Some(cause)) => guilty.push((message.row, cause)),
                Err(Fault::BatchTooLarge) => {
                    let cause = "the topic takes no message of this size (max.message.bytes)";
                    guilty.push((message.row, cause.to_owned()));
                    let large = self.undo(timeout, Fault::Guilty(std::mem::take(&mut guilty)));
                    let Fault::Guilty(found) = large else { return Err(large) };
                    if GUILTY_MAX <= found.len() {
                        return Err(Fault::Guilty(found));
                    }
                    guilty = found;
                    self.renew(sending.settings)?;
                    self.begin()?;
                }
                Err(fault) => return Err(fault),
            }
            Ok(())
        });
        match refused {
            Ok(refused) => guilty.extend(refused),
            // One that left no transaction open.
            Err(fault) if !self.usable => return Err(fault),
            Err(fault) => return Err(self.undo(timeout, fault)),
        }
        if !guilty.is_empty() {
            return Err(self.undo(timeout, Fault::Guilty(guilty)));
        }
        match sending.mark(&self.producer) {
            Ok(()) => self.commit(sending.settings),
            Err(fault) => Err(self.undo(timeout, fault)),
        }
    }

    fn begin(&mut self) -> Result<(), Fault> {
        self.producer.begin_transaction().map_err(|error| {
            self.usable = false;
            self.fenced().map_or_else(|| Fault::Undone(words(&error)), Fault::Fenced)
        })
    }

    /// Commits; asks again as long as it may still be told. After that only who takes over can know.
    fn commit(&mut self, settings: &Settings) -> Result<(), Fault> {
        // What is not delivered by then is told by the commit.
        delivered(&self.producer, settings.timeout * 2);
        let committed =
            retried(settings.timeout * 2, || self.producer.commit_transaction(settings.timeout));
        let Err(error) = committed else { return Ok(()) };
        if let Some(cause) = self.fenced() {
            self.usable = false;
            return Err(Fault::Fenced(cause));
        }
        let cause = format!("the transaction was not committed: {}", words(&error));
        if matches!(&error, KafkaError::Transaction(error) if error.txn_requires_abort()) {
            return Err(self.undo(settings.timeout, Fault::Undone(cause)));
        }
        self.usable = false;
        Err(Fault::Unknown(cause))
    }

    /// Undoes a transaction for the sake of `fault`; what is to be told. The producer is not used any more: one whose
    /// messages were refused does not count them as the broker does, and what is told of them late would be taken
    /// for the next transaction's. What is not undone here is by whoever takes over.
    fn undo(&mut self, timeout: Duration, fault: Fault) -> Fault {
        self.usable = false;
        if let Some(cause) = self.fenced() {
            return Fault::Fenced(cause);
        }
        if let Err(error) = self.producer.abort_transaction(timeout) {
            tracing::warn!(id = self.id, error = words(&error), "a transaction was left open");
        }
        fault
    }

    /// Takes over from itself.
    fn renew(&mut self, settings: &Settings) -> Result<(), Fault> {
        *self = Self::take_over(&self.clients.clone(), settings, &self.id.clone())?;
        Ok(())
    }

    /// Why this producer may not write any more, if it was told so.
    fn fenced(&self) -> Option<String> {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let (code, reason) = self.producer.client().fatal_error()?;
        matches!(code, Fenced | InvalidProducerEpoch | ProducerFenced).then_some(reason)
    }
}

/// What goes into one transaction.
struct Sending<'a> {
    schemas: &'a dyn Schemas,
    settings: &'a Settings,
    rows: &'a LaneRows<'a>,
    topic: &'a str,
    key: &'a str,
    marker: String,
}

impl Sending<'_> {
    /// Sends the rows and their marker; committing waits for the marker.
    fn send(&self, producer: &ThreadedProducer<Listener>) -> Result<(), Fault> {
        let mut guilty = Vec::new();
        let sent = self.each(|message| {
            if producer.context().failed() {
                return Err(Fault::Undone("not delivered".to_owned()));
            }
            let large = self.one(producer, message)?;
            guilty.extend(large.map(|cause| (message.row, cause)));
            Ok(())
        });
        // What failed first says why, also where it was another message that could not be sent any more.
        settle(producer, self.settings.timeout)?;
        guilty.extend(sent?);
        if !guilty.is_empty() {
            return Err(Fault::Guilty(guilty));
        }
        self.mark(producer)
    }

    /// Makes the messages, one after the other; the rows that none can be made of.
    fn each(
        &self,
        mut act: impl FnMut(&Message) -> Result<(), Fault>,
    ) -> Result<Vec<(usize, String)>, Fault> {
        let mut guilty = Vec::new();
        for plan in record::plans(self.rows) {
            let schema = lake::splitter(self.schemas, self.rows, &plan)
                .map_err(|error| Fault::Undone(error.to_string()))?;
            let made = match table::build(self.rows, &plan, schema.as_deref()) {
                Ok(made) => made,
                Err(rows) => {
                    guilty.extend(rows);
                    continue;
                }
            };
            let mut messages = Messages::of(self.rows, &plan, &made.table, &self.settings.key);
            let fault = |e: std::io::Error| Fault::Undone(e.to_string());
            while let Some(message) = messages.message().map_err(fault)? {
                act(&message)?;
            }
        }
        Ok(guilty)
    }

    fn mark(&self, producer: &ThreadedProducer<Listener>) -> Result<(), Fault> {
        let record = BaseRecord::to(&self.settings.progress_topic)
            .partition(PROGRESS_PARTITION)
            .key(self.key)
            .payload(&self.marker);
        producer.send(record).map_err(|(error, _)| Fault::Undone(words(&error)))
    }

    /// Hands one message over; what is wrong with it, if it is too large.
    fn one(
        &self,
        producer: &ThreadedProducer<Listener>,
        message: &Message,
    ) -> Result<Option<String>, Fault> {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = BaseRecord::to(self.topic)
            .payload(&message.value)
            .timestamp(message.timestamp)
            .headers(headers);
        record.key = message.key.as_ref();
        let until = Instant::now() + self.settings.timeout;
        loop {
            let Err((error, again)) = producer.send(record) else { return Ok(None) };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) if Instant::now() < until => {
                    record = again;
                    thread::sleep(QUEUE_PAUSE);
                }
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    let most = self.settings.message_bytes;
                    let cause = format!("the message has more than options.message_bytes ({most})");
                    return Ok(Some(cause));
                }
                _ => return Err(Fault::Undone(words(&error))),
            }
        }
    }
}

/// Waits until all that was handed over is there.
fn settle(producer: &ThreadedProducer<Listener>, timeout: Duration) -> Result<(), Fault> {
    // A message that cannot be delivered ends by itself within the timeout.
    let all = delivered(producer, timeout * 2);
    let failures = producer.context().take_failures();
    if failures.contains(&RDKafkaErrorCode::MessageSizeTooLarge) {
        return Err(Fault::BatchTooLarge);
    }
    // Those that were purged were so because of another.
    let purged = |code: &&RDKafkaErrorCode| {
        matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
    };
    if let Some(code) = failures.iter().find(|code| !purged(code)).or_else(|| failures.first()) {
        return Err(Fault::Undone(format!("not delivered: {code}")));
    }
    if all { Ok(()) } else { Err(Fault::Undone("messages are not delivered in time".to_owned())) }
}

/// Waits until nothing is on its way; false where something still is. Not by `flush`: it waits for a tenth of a second
/// at a time for events that the producer's own thread takes.
fn delivered(producer: &ThreadedProducer<Listener>, within: Duration) -> bool {
    let until = Instant::now() + within;
    while 0 < producer.in_flight_count() {
        if until < Instant::now() {
            return false;
        }
        thread::sleep(WAIT);
    }
    true
}

/// Does something again as long as librdkafka says that it may be.
fn retried(
    within: Duration,
    mut act: impl FnMut() -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    let until = Instant::now() + within;
    loop {
        let Err(error) = act() else { return Ok(()) };
        let again = match &error {
            KafkaError::Transaction(error) => error.is_retriable() && !error.txn_requires_abort(),
            KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => true,
            _ => false,
        };
        if !again || until < Instant::now() {
            return Err(error);
        }
        thread::sleep(QUEUE_PAUSE);
    }
}

/// The last marker of every lane under `id`, up to the message `mark`.
fn read(
    clients: &Clients,
    settings: &Settings,
    id: &str,
    mark: &(String, String),
) -> Result<HashMap<String, Marker>, Fault> {
    let topic = &settings.progress_topic;
    let undone = |e: &KafkaError| Fault::Undone(format!("reading {topic}: {}", words(e)));
    let made = BaseConsumer::from_config_and_context(&clients.reading(), clients.listener());
    let consumer: BaseConsumer<Listener> = made.map_err(|e| undone(&e))?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, PROGRESS_PARTITION, Offset::Beginning)
        .and_then(|()| consumer.assign(&from))
        .map_err(|e| undone(&e))?;
    let until = Instant::now() + READ + settings.timeout * 2;
    let own = format!("{id}/");
    let mut markers = HashMap::new();
    while Instant::now() < until {
        let message = match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                tracing::debug!(error = words(&error), topic, "reading markers");
                continue;
            }
            None => continue,
        };
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
        let (Some(key), Some(value)) = (key.filter(|key| key.starts_with(&own)), message.payload())
        else {
            continue;
        };
        if key == mark.0 {
            if value == mark.1.as_bytes() {
                return Ok(markers);
            }
            continue;
        }
        let marker = serde_json::from_slice(value)
            .map_err(|e| Fault::Undone(format!("{topic}: no marker of ours under {key}: {e}")))?;
        markers.insert(key.to_owned(), marker);
    }
    Err(Fault::Undone(format!("{topic}: the markers do not come: Kafka is too slow, or away")))
}
