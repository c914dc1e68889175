//! The append: each event of a request a message, answered once Kafka has acknowledged all of them.

use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Statistics,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use tidegate_event::{
    BatchView, Code, EncodedBatch, EventType, Offset, OffsetRange, Partition, TenantId,
    record::TypeTally,
};
use tokio::sync::oneshot;

use super::{
    PartitionBy,
    client::Listener,
    cluster::{Cluster, number},
    message,
    room::{Meter, Room},
};
use crate::{
    books::{Open, Outcome},
    budget::{Budget, Full, Permit},
    metrics,
    writer::{AppendError, Appended, WriterSettings, WriterStats},
};

/// Memory that librdkafka takes for one message besides its value: its own bookkeeping, and headers.
const MESSAGE_BYTES: usize = 768;
/// How many headers events of one type and verdict share.
const SHARED_HEADERS: usize = 6;
/// How often it is looked at what is under way.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Appends batches to the topic.
pub(super) struct Producer {
    cluster: Arc<Cluster>,
    room: Arc<Room>,
    budget: Option<Arc<Budget>>,
    config: ClientConfig,
    client: RwLock<Arc<ThreadedProducer<Deliveries>>>,
    next: AtomicUsize,
    /// One request at a time into a partition, so that its events lie together.
    order: Vec<Mutex<()>>,
}

impl Producer {
    /// `message_bytes`: what the topic takes at most.
    pub fn open(
        cluster: Arc<Cluster>,
        settings: &WriterSettings,
        message_bytes: u64,
    ) -> Result<Arc<Self>, KafkaError> {
        let queue = settings.queue_bytes as u64;
        let room = Room::new(queue, settings.delay, Arc::clone(&settings.weight));
        let config = cluster.clients.appending(message_bytes, queue);
        let client = Deliveries::client(&cluster, &config)?;
        let order = cluster.partitions().map(|_| Mutex::default()).collect();
        let producer = Arc::new(Self {
            cluster,
            room: Arc::new(room),
            budget: settings.budget.clone(),
            config,
            client: RwLock::new(Arc::new(client)),
            next: AtomicUsize::new(0),
            order,
        });
        let watched = Arc::downgrade(&producer);
        std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || watch(&watched))
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(producer)
    }

    pub fn stats(&self) -> WriterStats {
        self.room.stats()
    }

    pub fn is_failed(&self) -> bool {
        self.room.is_failed()
    }

    pub fn room(&self, tenant: &TenantId, bytes: usize) -> Result<(), AppendError> {
        self.room.check(tenant, bytes as u64)
    }

    /// Takes nothing more, and waits for what is under way; no longer than a delivery may take.
    pub fn close(&self) {
        self.room.close();
        let until = Instant::now() + self.cluster.clients.config.delivery_timeout.0;
        while !self.room.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn client(&self) -> Arc<ThreadedProducer<Deliveries>> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn partition(&self, tenant: &TenantId) -> Partition {
        let chosen = match self.cluster.clients.config.partition_by {
            PartitionBy::Tenant => crc32c::crc32c(tenant.as_str().as_bytes()) as usize,
            PartitionBy::Request => self.next.fetch_add(1, Ordering::Relaxed),
        };
        let chosen = chosen % self.order.len().max(1);
        Partition(u32::try_from(chosen).unwrap_or(0))
    }

    /// Sends a batch; what it comes to is told once Kafka has said so of every message. The entry is
    /// settled in every case, also where nobody waits any more.
    pub fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        let bytes = batch.body.len() + MESSAGE_BYTES * batch.count as usize;
        let memory = match self.take(&batch.tenant, bytes as u64) {
            Ok(memory) => memory,
            Err(error) => {
                entry.shed(error.reason());
                return Err(error);
            }
        };
        let (reply, answer) = oneshot::channel();
        let partition = self.partition(&batch.tenant);
        let pending = Arc::new(Pending {
            cluster: Arc::clone(&self.cluster),
            room: Arc::clone(&self.room),
            tenant: batch.tenant.clone(),
            bytes: bytes as u64,
            partition,
            left: AtomicUsize::new(batch.count as usize + 1),
            state: Mutex::new(State {
                waiting: Some((entry, reply)),
                tallies: batch.tallies.clone(),
                first: u64::MAX,
                last: 0,
                lost: HashMap::new(),
                error: None,
                may_be_there: false,
                _memory: memory,
            }),
        });
        self.send(&batch, partition, &pending);
        pending.one_less();
        Ok(answer)
    }

    fn take(&self, tenant: &TenantId, bytes: u64) -> Result<Option<Permit>, AppendError> {
        self.room.take(tenant, bytes)?;
        let Some(budget) = &self.budget else { return Ok(None) };
        let share = budget.share(tenant, 1);
        let retry_after = share.wait();
        share.try_take(bytes).map(Some).map_err(|full| {
            self.room.give_back(tenant, bytes, false);
            match full {
                Full::Share => AppendError::Lane { retry_after },
                Full::Pool => AppendError::Full { retry_after },
            }
        })
    }

    fn send(&self, batch: &EncodedBatch, partition: Partition, pending: &Arc<Pending>) {
        let client = self.client();
        let order = usize::try_from(partition.0).ok().and_then(|p| self.order.get(p));
        let _in_order = order.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        let Ok(view) = BatchView::parse(&batch.body) else {
            (0..batch.count).for_each(|_| pending.unsent("a batch that is none", None));
            return;
        };
        let received_at = message::received_text(view.received_at);
        let timestamp = view.received_at.0.div_euclid(1_000);
        // Most events are of one type and verdict: what they share is put together once.
        let mut shared: Option<((usize, Option<Code>), OwnedHeaders)> = None;
        for record in view.records() {
            let Ok(record) = record else {
                pending.unsent("a record that is none", None);
                continue;
            };
            let of = (record.type_index, record.dead);
            let same = shared.take().filter(|(before, _)| *before == of);
            let (_, same) = shared.insert(same.unwrap_or_else(|| {
                let empty = OwnedHeaders::new_with_capacity(SHARED_HEADERS);
                let put = |put: &mut dyn FnMut(&str, &[u8])| {
                    message::shared_headers(&view, &record, &received_at, put);
                };
                (of, headers(empty, put))
            }));
            let own = |put: &mut dyn FnMut(&str, &[u8])| message::own_headers(&view, &record, put);
            let headers = headers(same.clone(), own);
            let message =
                BaseRecord::<(), [u8], _>::with_opaque_to(&self.cluster.topic, Arc::clone(pending))
                    .partition(number(partition))
                    .payload(record.raw)
                    .timestamp(timestamp)
                    .headers(headers);
            if let Err((error, _)) = client.send(message) {
                let kind = (record.kind.name, record.dead.is_some());
                pending.unsent(&error.to_string(), Some(kind));
            }
        }
    }

    /// A client that can do nothing any more is replaced: what it had under way has failed.
    fn mend(&self) {
        let fatal = self.client().client().fatal_error();
        let Some((code, reason)) = fatal else {
            self.room.set_failed(false);
            return;
        };
        tracing::error!(%code, reason, "Kafka's producer failed for good: another one takes its place");
        match Deliveries::client(&self.cluster, &self.config) {
            Ok(client) => {
                *self.client.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client);
                self.room.set_failed(false);
            }
            Err(error) => {
                tracing::error!(%error, "no producer can be made; tried again");
                self.room.set_failed(true);
            }
        }
    }
}

/// Headers with those that `fill` puts.
fn headers(begun: OwnedHeaders, fill: impl FnOnce(&mut dyn FnMut(&str, &[u8]))) -> OwnedHeaders {
    let mut all = Some(begun);
    fill(&mut |key, value| {
        let one = Header { key, value: Some(value) };
        all = all.take().map(|all| all.insert(one));
    });
    all.unwrap_or_default()
}

fn watch(producer: &Weak<Producer>) {
    let mut meter = Meter::new();
    while let Some(producer) = producer.upgrade() {
        meter.look(&producer.room);
        producer.mend();
        let stats = producer.stats();
        metrics::stage_held_bytes("writer", i64::try_from(stats.held_bytes).unwrap_or(i64::MAX));
        let throttled = producer.cluster.clients.heard.throttled().as_millis();
        metrics::kafka_throttled_milliseconds(i64::try_from(throttled).unwrap_or(i64::MAX));
        drop(producer);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A request under way.
pub(super) struct Pending {
    cluster: Arc<Cluster>,
    room: Arc<Room>,
    tenant: TenantId,
    bytes: u64,
    partition: Partition,
    /// Messages that nothing is known of, and one for who sends them.
    left: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    waiting: Option<(Open, oneshot::Sender<Result<Appended, AppendError>>)>,
    tallies: Vec<TypeTally>,
    first: u64,
    last: u64,
    /// What is not, or not known to be, in the topic: by type, accepted or dead.
    lost: HashMap<(String, bool), u64>,
    error: Option<String>,
    /// Some of what is not known to be in the topic may be.
    may_be_there: bool,
    _memory: Option<Permit>,
}

impl State {
    /// Of `events` those that are in the topic for certain.
    fn less_lost(&mut self, event_type: &EventType, dead: bool, events: u64) -> u64 {
        let Some(lost) = self.lost.get_mut(&(event_type.as_str().to_owned(), dead)) else {
            return events;
        };
        let gone = events.min(*lost);
        *lost -= gone;
        events - gone
    }
}

impl Pending {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsent(&self, error: &str, kind: Option<(&str, bool)>) {
        {
            let mut state = self.state();
            state.error.get_or_insert_with(|| error.to_owned());
            let (name, dead) = kind.unwrap_or(("", false));
            *state.lost.entry((name.to_owned(), dead)).or_default() += 1;
        }
        self.one_less();
    }

    fn delivered(&self, offset: i64) {
        let offset = u64::try_from(offset).unwrap_or(0);
        {
            let mut state = self.state();
            state.first = state.first.min(offset);
            state.last = state.last.max(offset);
        }
        self.one_less();
    }

    /// The last one settles and answers.
    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let mut state = self.state();
        let Some((mut entry, reply)) = state.waiting.take() else { return };
        let (first, last) = (state.first, state.last);
        if first <= last {
            self.cluster.reaches(self.partition, Offset(last + 1));
        }
        let durable = state.error.is_none();
        let unknown = state.lost.contains_key(&(String::new(), false));
        let tallies = std::mem::take(&mut state.tallies);
        for tally in tallies.iter().filter(|_| !unknown) {
            let accepted = state.less_lost(&tally.event_type, false, tally.accepted);
            let dead = state.less_lost(&tally.event_type, true, tally.dead_lettered);
            entry.settle(&tally.event_type, Outcome::Accepted, accepted);
            entry.settle(&tally.event_type, Outcome::DeadLettered, dead);
        }
        self.room.give_back(&self.tenant, self.bytes, durable);
        let answer = match state.error.take() {
            None => {
                entry.shed(AppendError::Storage.reason());
                let range = OffsetRange::new(Offset(first), Offset(last.saturating_add(1)));
                Ok(Appended { partition: self.partition, range, deduplicated: Vec::new() })
            }
            Some(error) => {
                let (partition, tenant) = (self.partition.0, &self.tenant);
                tracing::warn!(partition, %tenant, error, "Kafka did not acknowledge a request");
                metrics::kafka_unacknowledged_requests(1);
                let unknown = state.may_be_there || first <= last;
                let told = if unknown { AppendError::Unknown } else { AppendError::Storage };
                entry.shed(told.reason());
                Err(told)
            }
        };
        // The caller may have gone away: its events are accounted for all the same.
        let _ = reply.send(answer);
    }
}

/// Hears what became of messages.
pub(super) struct Deliveries(Listener);

impl Deliveries {
    fn client(
        cluster: &Cluster,
        config: &ClientConfig,
    ) -> Result<ThreadedProducer<Self>, KafkaError> {
        ThreadedProducer::from_config_and_context(config, Self(cluster.clients.listener()))
    }
}

impl ClientContext for Deliveries {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.0.generate_oauth_token(config)
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<Pending>) {
        match result {
            Ok(message) => pending.delivered(message.offset()),
            Err((error, message)) => {
                let (kind, dead) = kind_of(message);
                // Its time is over: whether the last try arrived, nobody knows.
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut) {
                    pending.state().may_be_there = true;
                }
                pending.unsent(&error.to_string(), Some((&kind, dead)));
            }
        }
    }
}

/// The type and verdict of a message that was not delivered, as its headers say.
fn kind_of(message: &impl Message) -> (String, bool) {
    use rdkafka::message::Headers;
    let (mut kind, mut dead) = (String::new(), false);
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        let value = header.value.unwrap_or_default();
        match header.key {
            "event_type" => kind = String::from_utf8_lossy(value).into_owned(),
            "verdict" => dead = value != b"accepted",
            _ => {}
        }
    }
    (kind, dead)
}
