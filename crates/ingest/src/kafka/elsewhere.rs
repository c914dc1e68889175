//! Partitions that are not ours: how far behind their sinks are, and whether anybody has them.
//!
//! Of a partition its owner tells; of one that nobody has, nobody would. So each process reads where the
//! sinks of the other partitions stand, from the state that owners write, and asks the group whose they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    groups::GroupInfo,
};
use serde::Serialize;
use tidegate_event::{Offset, Partition};

use super::{
    client::Listener,
    cluster::{Cluster, number},
};
use crate::{metrics, sink::state::State};

/// How often it looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long reading on may take each time.
const READ_FOR: Duration = Duration::from_secs(1);
/// How long the group may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A partition that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Away {
    partition: Partition,
    /// Whether anybody has it; `None`: it cannot be told at the moment.
    owned: Option<bool>,
    /// How far behind its sinks are.
    sinks: Vec<Behind>,
}

/// How far behind one sink is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Behind {
    sink: String,
    lag_events: u64,
}

/// What this process has, and should have.
#[derive(Clone, Debug, Default)]
pub(super) struct Ours {
    pub owned: BTreeSet<Partition>,
    pub wanted: BTreeSet<Partition>,
}

/// What was found out last.
pub(super) struct Elsewhere {
    cluster: Arc<Cluster>,
    state_topic: String,
    state_partitions: u32,
    sinks: Vec<String>,
    states: Mutex<Option<States>>,
    found: Mutex<Vec<Away>>,
}

/// The sinks' states as they are written.
struct States {
    consumer: BaseConsumer<Listener>,
    stands: BTreeMap<(String, Partition), Stand>,
    /// Read to its end at least once, by place.
    read: BTreeSet<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand {
    cursor: Offset,
    /// Events of lanes that are held back.
    pending: u64,
}

impl Elsewhere {
    pub fn new(
        cluster: &Arc<Cluster>,
        state_topic: &str,
        state_partitions: u32,
        sinks: Vec<String>,
    ) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            state_topic: state_topic.to_owned(),
            state_partitions,
            sinks,
            states: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// What was found out last.
    pub fn found(&self) -> Vec<Away> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds out anew. Where all partitions are ours there is nothing to ask.
    pub fn look(&self, ours: &Ours) {
        let away: Vec<_> = self.cluster.partitions().filter(|p| !ours.owned.contains(p)).collect();
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let found = if away.is_empty() {
            *states = None;
            Ok(Vec::new())
        } else {
            self.ask(&mut states, ours, &away)
        };
        drop(states);
        match found {
            Ok(found) => self.tell(found),
            Err(error) => {
                tracing::debug!(%error, "how far the partitions of others are cannot be asked");
            }
        }
    }

    fn ask(
        &self,
        states: &mut Option<States>,
        ours: &Ours,
        away: &[Partition],
    ) -> Result<Vec<Away>, KafkaError> {
        let states = match states {
            Some(states) => states,
            None => states.insert(self.open()?),
        };
        states.read_on();
        if !states.is_whole(self.state_partitions) {
            return Ok(self.found());
        }
        let group = self.cluster.group();
        // A broker that is gone may be the one to ask: then whose they are is not known.
        let list = states.consumer.fetch_group_list(Some(&group), ANSWER_WITHIN).ok();
        let group = list.as_ref().and_then(|l| l.groups().iter().find(|g| g.name() == group));
        let assigned = group.and_then(|group| assigned(group, &self.cluster.topic));
        let one = |partition: &Partition| Away {
            partition: *partition,
            owned: if ours.wanted.contains(partition) {
                // Who should have it is this process, and it has it not.
                Some(false)
            } else {
                assigned.as_ref().map(|assigned| assigned.contains(partition))
            },
            sinks: self.behind(states, *partition),
        };
        Ok(away.iter().map(one).collect())
    }

    fn open(&self) -> Result<States, KafkaError> {
        let clients = &self.cluster.clients;
        let name = format!("{}-read", self.state_topic);
        let consumer: BaseConsumer<Listener> =
            clients.make(&clients.reading(&name, "read_committed"))?;
        let mut from = TopicPartitionList::new();
        for place in 0..self.state_partitions {
            let place = number(Partition(place));
            from.add_partition_offset(&self.state_topic, place, KafkaOffset::Beginning)?;
        }
        consumer.assign(&from)?;
        Ok(States { consumer, stands: BTreeMap::new(), read: BTreeSet::new() })
    }

    fn behind(&self, states: &States, partition: Partition) -> Vec<Behind> {
        let (earliest, latest) = (self.cluster.earliest(partition), self.cluster.latest(partition));
        let one = |sink: &String| {
            let stand = states.stands.get(&(sink.clone(), partition));
            let cursor = stand.map_or(earliest, |stand| stand.cursor.max(earliest));
            let pending = stand.map_or(0, |stand| stand.pending);
            Behind { sink: sink.clone(), lag_events: latest.since(cursor) + pending }
        };
        self.sinks.iter().map(one).collect()
    }

    fn tell(&self, found: Vec<Away>) {
        let signed = |n| i64::try_from(n).unwrap_or(i64::MAX);
        for partition in self.cluster.partitions() {
            let away = found.iter().find(|away| away.partition == partition);
            for sink in &self.sinks {
                let behind = away.and_then(|a| a.sinks.iter().find(|one| one.sink == *sink));
                let lag = behind.map_or(0, |behind| behind.lag_events);
                metrics::kafka_elsewhere_lag_events(&partition.to_string(), sink, signed(lag));
            }
        }
        let unowned = found.iter().filter(|away| away.owned == Some(false)).count();
        metrics::kafka_unowned_partitions(i64::try_from(unowned).unwrap_or(i64::MAX));
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

impl States {
    fn is_whole(&self, places: u32) -> bool {
        u32::try_from(self.read.len()).is_ok_and(|read| places <= read)
    }

    /// Reads what was written since, as far as it is there.
    fn read_on(&mut self) {
        let until = Instant::now() + READ_FOR;
        while Instant::now() < until {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => return,
                Some(Err(KafkaError::PartitionEOF(place))) => {
                    self.read.insert(place);
                }
                Some(Err(error)) => tracing::debug!(%error, "reading the state of others"),
                Some(Ok(message)) => {
                    let Some((sink, partition)) = message.key().and_then(named) else { continue };
                    let state = message.payload().map(State::decode);
                    match state {
                        // What is damaged its owner tells; here it stands where it stood.
                        Some(Err(_)) => {}
                        Some(Ok(state)) => {
                            let pending = state.held.iter().map(|held| held.pending_rows).sum();
                            let stand = Stand { cursor: state.cursor, pending };
                            self.stands.insert((sink, partition), stand);
                        }
                        None => {
                            self.stands.remove(&(sink, partition));
                        }
                    }
                }
            }
        }
    }
}

/// `sink/<name>/<partition>`; `None`: it is no sink's state.
fn named(key: &[u8]) -> Option<(String, Partition)> {
    let (sink, partition) =
        std::str::from_utf8(key).ok()?.strip_prefix("sink/")?.rsplit_once('/')?;
    Some((sink.to_owned(), Partition(partition.parse().ok()?)))
}

/// The partitions of `topic` that members of the group have; `None` while it shares them out anew.
fn assigned(group: &GroupInfo, topic: &str) -> Option<BTreeSet<Partition>> {
    match group.state() {
        "Stable" => {
            let each = group.members().iter().filter_map(|member| member.assignment());
            Some(each.flat_map(|bytes| partitions_of(bytes, topic).unwrap_or_default()).collect())
        }
        "Empty" | "Dead" => Some(BTreeSet::new()),
        _ => None,
    }
}

/// What a member was given, as Kafka's consumers write it: `version, [topic, [partition]]`.
fn partitions_of(bytes: &[u8], topic: &str) -> Option<Vec<Partition>> {
    let mut rest = bytes;
    let mut found = Vec::new();
    let _version = take(&mut rest, 2)?;
    for _ in 0..length(take(&mut rest, 4)?)? {
        let name = length(take(&mut rest, 2)?)?;
        let ours = take(&mut rest, name)? == topic.as_bytes();
        for _ in 0..length(take(&mut rest, 4)?)? {
            let partition = length(take(&mut rest, 4)?)?;
            if ours {
                found.push(Partition(u32::try_from(partition).ok()?));
            }
        }
    }
    Some(found)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// A number that is not negative, of two bytes or four.
fn length(bytes: &[u8]) -> Option<usize> {
    let number = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let most = (1_u64 << (8 * bytes.len() - 1)) - 1;
    usize::try_from(number).ok().filter(|_| number <= most)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a client writes it.
    fn written(topics: &[(String, Vec<u32>)]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        bytes.extend(u32::try_from(topics.len()).unwrap().to_be_bytes());
        for (name, partitions) in topics {
            bytes.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(u32::try_from(partitions.len()).unwrap().to_be_bytes());
            partitions.iter().for_each(|partition| bytes.extend(partition.to_be_bytes()));
        }
        // What the client keeps there for itself.
        bytes.extend(b"\0\0\0\x04abcd");
        bytes
    }

    #[test]
    fn a_key_of_another_kind_is_no_sinks_state() {
        assert_eq!(named(b"sink/a/b/12"), Some(("a/b".to_owned(), Partition(12))));
        assert_eq!(named(b"owner/8a3f-1"), None);
        assert_eq!(named(b"sink/lake/x"), None);
        assert_eq!(named(b"sink/\xff/1"), None);
    }

    proptest! {
        #[test]
        fn what_a_member_was_given_is_read_back(
            topics in prop::collection::vec(("[a-z]{0,9}", prop::collection::vec(0..9_999_u32, 0..5)), 0..4),
        ) {
            let all = topics.iter().filter(|(name, _)| name == "events").flat_map(|(_, p)| p);
            let wanted: Vec<_> = all.copied().map(Partition).collect();
            prop_assert_eq!(partitions_of(&written(&topics), "events"), Some(wanted));
            let mut topics = topics;
            topics.push(("events".to_owned(), vec![3, 5]));
            let found = partitions_of(&written(&topics), "events").unwrap();
            prop_assert!(found.ends_with(&[Partition(3), Partition(5)]));
        }

        #[test]
        fn what_nobody_wrote_so_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let read = partitions_of(&bytes, "events");
            prop_assert!(read.is_none_or(|found| found.len() <= bytes.len() / 4));
        }
    }
}
