//! Which partitions are ours: given by Kafka's consumer group, taken over one by one, given back in time.
//!
//! The group only says who should have a partition; that nobody else has it any more, the partition's
//! state says (`state`). So whatever the group does, two owners never both go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
};
use tidegate_event::Partition;

use super::{
    client::Listener,
    cluster::{Cluster, number},
    duplicates::{self, Records},
    elsewhere::{Away, Elsewhere, LOOK_EVERY, Ours},
    ledger::{Ledger, Remembering},
    state::{Kept, Pulse, SinkStates},
    tenure::{IdsRoom, Tenure},
};
use crate::{
    clock::Clock,
    sink::{Sinks, source::LogSource},
    writer::{DedupStatus, KnownIds, WriterSettings},
};

/// How long the sinks may take to stop before a partition is given back all the same: what they still
/// write is what they had promised.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// When taking over is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// What was found to be there twice takes no more memory than this of one partition: four million runs.
const RECORD_BYTES_MAX: u64 = 16 << 20;
const TICK: Duration = Duration::from_millis(200);

/// The partitions that are ours.
pub(super) struct Ownership(Arc<Inner>);

struct Inner {
    cluster: Arc<Cluster>,
    state_topic: String,
    state_partitions: u32,
    sinks: Arc<Sinks>,
    wanted: Mutex<BTreeSet<Partition>>,
    changed: Condvar,
    owned: Mutex<BTreeMap<Partition, Arc<Tenure>>>,
    settings: WriterSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<IdsRoom>,
    problems: Mutex<BTreeMap<Partition, String>>,
    /// Partitions that another process took: not before this are they taken again, for by then the
    /// group has told whose they are.
    not_before: Mutex<BTreeMap<Partition, Instant>>,
    ending: AtomicBool,
    pulse: Arc<Pulse>,
    elsewhere: Elsewhere,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ownership {
    /// Joins the group, and starts the sinks of each partition that it is given.
    pub fn start(
        cluster: &Arc<Cluster>,
        state_partitions: u32,
        sinks: Arc<Sinks>,
        settings: &WriterSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, KafkaError> {
        let state_topic = cluster.clients.config.state_topic();
        let state_partitions = state_partitions.max(1);
        let elsewhere = Elsewhere::new(cluster, &state_topic, state_partitions, sinks.names());
        let inner = Arc::new(Inner {
            cluster: Arc::clone(cluster),
            state_topic,
            state_partitions,
            sinks,
            wanted: Mutex::default(),
            changed: Condvar::new(),
            owned: Mutex::default(),
            settings: settings.clone(),
            clock,
            ids: Arc::new(IdsRoom::new(settings)),
            problems: Mutex::default(),
            not_before: Mutex::default(),
            ending: AtomicBool::new(false),
            pulse: Arc::new(Pulse::new(cluster.clients.config.session_timeout.0)),
            elsewhere,
            threads: Mutex::default(),
        });
        let member = Member { inner: Arc::clone(&inner), listener: cluster.clients.listener() };
        let config = cluster.clients.sharing(&cluster.group());
        let consumer = BaseConsumer::from_config_and_context(&config, member)?;
        consumer.subscribe(&[&cluster.topic])?;
        let (polling, keeping) = (Arc::clone(&inner), Arc::clone(&inner));
        let started = [
            std::thread::Builder::new()
                .name("kafka-group".to_owned())
                .spawn(move || polling.poll(&consumer)),
            std::thread::Builder::new()
                .name("kafka-owner".to_owned())
                .spawn(move || keeping.keep()),
        ];
        for thread in started {
            let thread = thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
            lock(&inner.threads).push(thread);
        }
        // Nobody waits for this one at the end: it may be asking a broker that does not answer.
        let looking = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("kafka-elsewhere".to_owned())
            .spawn(move || look(&looking))
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self(inner))
    }

    /// The partitions that are ours.
    pub fn partitions(&self) -> Vec<Partition> {
        lock(&self.0.owned).keys().copied().collect()
    }

    /// The partitions that are not ours, and how far behind their sinks are.
    pub fn elsewhere(&self) -> Vec<Away> {
        self.0.elsewhere.found()
    }

    /// Why partitions that should be ours are not, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let told = |partition: &Partition, why: &str| format!("partition {partition}: {why}");
        let mut all: Vec<_> =
            lock(&self.0.problems).iter().map(|(partition, why)| told(partition, why)).collect();
        for (partition, tenure) in lock(&self.0.owned).iter() {
            all.extend(tenure.problem().map(|why| told(partition, &why)));
            if tenure.ledger.is_full() {
                let why = "more events came twice than can be written down: no more are dropped \
                           until retention has removed the old ones (docs/deduplication.md)";
                all.push(told(partition, why));
            }
        }
        all
    }

    /// What is remembered of the ids of our partitions.
    pub fn dedup(&self) -> Vec<DedupStatus> {
        lock(&self.0.owned).values().filter_map(|tenure| tenure.ledger.dedup()).collect()
    }

    /// The partition as its sinks read it; `None`: it is not ours.
    pub fn view(&self, partition: Partition) -> Option<Arc<dyn LogSource>> {
        lock(&self.0.owned).get(&partition).map(|tenure| tenure.view())
    }

    /// The books of our partitions, counted up to their ends.
    pub fn ledgers(&self) -> Vec<Arc<Ledger>> {
        lock(&self.0.owned).values().map(|tenure| Arc::clone(&tenure.ledger)).collect()
    }

    /// Stops the sinks of every partition, writes the books, leaves the group.
    pub fn end(&self) {
        self.0.ending.store(true, Ordering::Release);
        self.0.changed.notify_all();
        for thread in lock(&self.0.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of Kafka's group had panicked");
            }
        }
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        self.0.ending.store(true, Ordering::Release);
    }
}

impl Inner {
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Stays a member; until the end, when what we had is given back.
    fn poll(&self, consumer: &BaseConsumer<Member>) {
        while !self.is_ending() || !lock(&self.owned).is_empty() {
            self.pulse.beat();
            match consumer.poll(TICK) {
                // Its partitions are paused; what was on its way before is not needed.
                None | Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!(%error, "Kafka's group"),
            }
        }
        consumer.unsubscribe();
    }

    /// Makes what is ours what should be ours.
    fn keep(self: Arc<Self>) {
        let mut again = Instant::now();
        while !self.is_ending() {
            self.give_back_unwanted();
            if again <= Instant::now() {
                for partition in self.missing() {
                    if self.is_ending() || !self.take(partition) {
                        again = Instant::now() + AGAIN;
                    }
                }
            }
            let wanted = lock(&self.wanted);
            let _woken = self.changed.wait_timeout(wanted, TICK);
        }
        let all: Vec<_> = lock(&self.owned).keys().copied().collect();
        all.into_iter().for_each(|partition| self.give_back(partition));
    }

    fn missing(&self) -> Vec<Partition> {
        let owned = lock(&self.owned);
        let (wanted, mut not_before) = (lock(&self.wanted), lock(&self.not_before));
        not_before.retain(|_, at| Instant::now() < *at);
        let open = |p: &&Partition| !owned.contains_key(p) && !not_before.contains_key(p);
        wanted.iter().filter(open).copied().collect()
    }

    fn give_back_unwanted(&self) {
        let wanted = lock(&self.wanted).clone();
        let gone = |(partition, tenure): (&Partition, &Arc<Tenure>)| {
            (!wanted.contains(partition) || tenure.kept.is_fenced()).then_some(*partition)
        };
        let unwanted: Vec<_> = lock(&self.owned).iter().filter_map(gone).collect();
        unwanted.into_iter().for_each(|partition| self.give_back(partition));
    }

    /// True once the partition is ours.
    fn take(&self, partition: Partition) -> bool {
        match self.try_to_take(partition) {
            Ok(tenure) => {
                lock(&self.problems).remove(&partition);
                let mut owned = lock(&self.owned);
                owned.insert(partition, tenure);
                self.ids.shared_by(owned.len());
                drop(owned);
                tracing::info!(
                    partition = partition.0,
                    "the partition is ours: its sinks run here"
                );
                true
            }
            Err(error) => {
                tracing::error!(partition = partition.0, %error, "a partition's sinks cannot run; tried again");
                lock(&self.problems).insert(partition, error.to_string());
                false
            }
        }
    }

    fn try_to_take(&self, partition: Partition) -> Result<Arc<Tenure>, Box<dyn Error>> {
        let place = number(Partition(partition.0 % self.state_partitions));
        let id = format!("{}-{partition}", self.cluster.log_id);
        let pulse = Arc::clone(&self.pulse);
        let clients = &self.cluster.clients;
        let kept = Kept::take_over(clients, &self.state_topic, place, &id, pulse)?;
        // Behind the take-over: what the owner before wrote down is below this end.
        self.cluster.ask(partition)?;
        let log = self.cluster.source(partition);
        // What was found to be there twice may be much, and is of use to the partition's owner alone.
        kept.keep_only(|key| {
            !key.starts_with(duplicates::PREFIX) || Records::is_piece(partition, key)
        });
        let ids = Arc::clone(&self.ids);
        let remembering = Remembering {
            known: KnownIds::new(&self.settings, partition),
            ids_max: Arc::new(move || ids.share()),
            record_bytes: RECORD_BYTES_MAX,
        };
        let (store, clock) = (Arc::clone(&kept), Arc::clone(&self.clock));
        let ledger = Arc::new(Ledger::open(log, store, clock, remembering)?);
        let tenure = Arc::new(Tenure::begin(Arc::clone(&kept), ledger)?);
        let owned = self.sinks.own(&tenure.view(), &SinkStates { kept, partition });
        if owned.is_err() {
            tenure.end();
        }
        Ok(owned.map(|()| tenure)?)
    }

    fn give_back(&self, partition: Partition) {
        let Some(tenure) = lock(&self.owned).get(&partition).cloned() else { return };
        let stopped = self.sinks.disown(partition, STOP_WITHIN);
        tenure.end();
        if tenure.kept.is_spent() {
            lock(&self.not_before).insert(partition, Instant::now() + AGAIN);
        } else if tenure.kept.is_fenced() {
            tracing::warn!(partition = partition.0, "another process has taken the partition over");
            let at = Instant::now() + 2 * self.cluster.clients.config.session_timeout.0;
            lock(&self.not_before).insert(partition, at);
        } else if let Err(error) = tenure.ledger.save(true) {
            tracing::warn!(partition = partition.0, %error, "the books of a partition were not written; its next owner counts again");
        }
        let mut owned = lock(&self.owned);
        owned.remove(&partition);
        self.ids.shared_by(owned.len());
        drop(owned);
        self.changed.notify_all();
        tracing::info!(partition = partition.0, stopped, "the partition is not ours any more");
    }

    fn gained(&self, partitions: &[Partition]) {
        lock(&self.wanted).extend(partitions);
        lock(&self.not_before).retain(|partition, _| !partitions.contains(partition));
        self.changed.notify_all();
    }

    /// Waits until they are given back; not for ever, since the group waits too.
    fn lost(&self, partitions: &[Partition]) {
        {
            let mut wanted = lock(&self.wanted);
            wanted.retain(|partition| !partitions.contains(partition));
        }
        self.changed.notify_all();
        let until = Instant::now() + STOP_WITHIN + AGAIN;
        while Instant::now() < until {
            let owned = lock(&self.owned);
            if !partitions.iter().any(|partition| owned.contains_key(partition)) {
                return;
            }
            drop(owned);
            std::thread::sleep(Duration::from_millis(20));
        }
        tracing::warn!(?partitions, "partitions are given back while their sinks still stop");
    }
}

fn look(inner: &Weak<Inner>) {
    while let Some(inner) = inner.upgrade().filter(|inner| !inner.is_ending()) {
        let owned = lock(&inner.owned).keys().copied().collect();
        let wanted = lock(&inner.wanted).clone();
        inner.elsewhere.look(&Ours { owned, wanted });
        drop(inner);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The member of the group.
struct Member {
    inner: Arc<Inner>,
    listener: Listener,
}

impl ClientContext for Member {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.listener.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.listener.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.listener.generate_oauth_token(config)
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            self.inner.lost(&named(list));
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            // The sinks read by themselves, from their own cursors.
            if let Err(error) = consumer.pause(list) {
                tracing::warn!(%error, "a partition of the group could not be paused");
            }
            self.inner.gained(&named(list));
        }
    }
}

fn named(list: &TopicPartitionList) -> Vec<Partition> {
    let each = list.elements().into_iter().filter_map(|one| u32::try_from(one.partition()).ok());
    each.map(Partition).collect()
}
