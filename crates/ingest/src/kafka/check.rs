//! At the start: can this topic keep what is promised? If not, why not, and how to mend it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
    producer::{BaseProducer, Producer},
};

use super::{
    client::{Clients, Listener},
    message::OVERHEAD_BYTES,
};

/// How long Kafka may take for one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a topic that was made may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Room for a client's id and for what is noted of an event, besides the event itself.
const NOTE_BYTES: u64 = 16 << 10;

/// What an event of ours needs of the log.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The largest event that is taken.
    pub event_bytes: u64,
    /// How long events are to be kept.
    pub retention: Duration,
}

/// The topics as they were found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub partitions: u32,
    pub state_partitions: u32,
    /// What a message of the log may take.
    pub message_bytes: u64,
    pub replication: u32,
    pub min_insync: u32,
    /// What an operator should know and need not mend at once.
    pub notes: Vec<String>,
}

/// Why the log on Kafka cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Nobody answers, or we are not let in.
    #[error("Kafka at {servers} cannot be asked: {cause}")]
    Unreachable {
        /// Whom was asked.
        servers: String,
        /// What was said.
        cause: String,
    },
    /// A topic is not there.
    #[error("topic {topic} is not there: make it ({how}), or set log.kafka.create = true")]
    Missing {
        /// Which.
        topic: String,
        /// With which settings.
        how: String,
    },
    /// A topic cannot be made.
    #[error("topic {topic} cannot be made: {cause}")]
    Make {
        /// Which.
        topic: String,
        /// What Kafka says.
        cause: String,
    },
    /// Its settings cannot be seen.
    #[error(
        "the settings of topic {topic} cannot be seen ({cause}): allow DescribeConfigs on it, for without \
         them nobody knows whether it keeps what is promised"
    )]
    Settings {
        /// Which.
        topic: String,
        /// What Kafka says.
        cause: String,
    },
    /// They do not keep what is promised.
    #[error("topic {topic} cannot keep what is promised:\n  {}", faults.join("\n  "))]
    Unsafe {
        /// Which.
        topic: String,
        /// What is wrong and how to mend it, one sentence each.
        faults: Vec<String>,
    },
}

/// What is known of one topic.
struct Topic {
    partitions: u32,
    replication: u32,
    settings: HashMap<String, String>,
}

/// Looks at both topics, makes them where they are missing and may be made.
///
/// # Errors
/// [`CheckError`]: the log must not be used.
pub(super) fn check(clients: &Clients, needs: Needs) -> Result<Found, CheckError> {
    let config = &clients.config;
    let unreachable =
        |cause: String| CheckError::Unreachable { servers: config.servers.clone(), cause };
    let asking: BaseProducer<Listener> =
        clients.make(&clients.asking()).map_err(|e| unreachable(e.to_string()))?;
    let admin: AdminClient<Listener> =
        clients.make(&clients.asking()).map_err(|e| unreachable(e.to_string()))?;
    let state = config.state_topic();
    let log_settings = log_settings(clients, needs);
    let log = find(clients, &asking, &admin, (&config.topic, config.partitions), &log_settings)?;
    let kept = find(clients, &asking, &admin, (&state, log.partitions), &state_settings(clients))?;

    let faults = log_faults(&log, clients, needs);
    if !faults.is_empty() {
        return Err(CheckError::Unsafe { topic: config.topic.clone(), faults });
    }
    let faults = state_faults(&kept, clients);
    if !faults.is_empty() {
        return Err(CheckError::Unsafe { topic: state, faults });
    }
    let number = |name: &str| log.settings.get(name).and_then(|text| text.parse().ok());
    let mut notes = Vec::new();
    if config.unchecked {
        notes.push(
            "log.kafka.unchecked: nobody but you has looked whether the topics keep what is promised"
                .to_owned(),
        );
    }
    if config.min_insync < 2 {
        notes.push(format!(
            "log.kafka.min_insync = {}: an event is answered once {} of its copies has it; a broker \
             that is lost may take answered events with it",
            config.min_insync, config.min_insync
        ));
    }
    if number("retention.bytes").is_some_and(|bytes: i64| 0 <= bytes) {
        notes.push(format!(
            "topic {} has retention.bytes: Kafka removes events by size, whoever has read them or not",
            config.topic
        ));
    }
    Ok(Found {
        partitions: log.partitions,
        state_partitions: kept.partitions,
        message_bytes: number("max.message.bytes")
            .map_or(message_bytes(needs), |n: i64| n.unsigned_abs()),
        replication: log.replication,
        min_insync: number("min.insync.replicas").map_or(1, |n: i64| u32::try_from(n).unwrap_or(1)),
        notes,
    })
}

fn message_bytes(needs: Needs) -> u64 {
    needs.event_bytes + NOTE_BYTES + OVERHEAD_BYTES as u64
}

/// What a log topic that is made here is made with.
fn log_settings(clients: &Clients, needs: Needs) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("min.insync.replicas", clients.config.min_insync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("retention.ms", needs.retention.as_millis().to_string()),
        ("max.message.bytes", message_bytes(needs).max(1_048_588).to_string()),
    ]
}

/// What a state topic that is made here is made with.
fn state_settings(clients: &Clients) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "compact".to_owned()),
        ("min.insync.replicas", clients.config.min_insync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", (16u64 << 20).to_string()),
        // Small, so that compaction comes to what is old soon: it is read whole at each take-over.
        ("segment.bytes", (64u64 << 20).to_string()),
    ]
}

fn find(
    clients: &Clients,
    asking: &BaseProducer<Listener>,
    admin: &AdminClient<Listener>,
    (name, partitions): (&str, u32),
    settings: &[(&str, String)],
) -> Result<Topic, CheckError> {
    let found = match seen(clients, asking, name)? {
        Some(found) => found,
        None if clients.config.create => {
            make(clients, admin, (name, partitions), settings)?;
            wait_for(clients, asking, name)?
        }
        None => {
            let how: Vec<_> = settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let replication = clients.config.replication;
            return Err(CheckError::Missing {
                topic: name.to_owned(),
                how: format!("{partitions} partitions, {replication} copies, {}", how.join(" ")),
            });
        }
    };
    if clients.config.unchecked {
        return Ok(found);
    }
    // A broker that was not told yet of a topic made just now says nothing of it.
    let until = Instant::now() + SEEN_WITHIN;
    loop {
        match settings_of(clients, admin, name) {
            Ok(settings) if settings.contains_key("cleanup.policy") => {
                return Ok(Topic { settings, ..found });
            }
            Ok(_) | Err(_) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok(_) => {
                let cause = "Kafka tells none of them".to_owned();
                return Err(CheckError::Settings { topic: name.to_owned(), cause });
            }
            Err(cause) => return Err(CheckError::Settings { topic: name.to_owned(), cause }),
        }
    }
}

fn settings_of(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    name: &str,
) -> Result<HashMap<String, String>, String> {
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let wanted = [ResourceSpecifier::Topic(name)];
    let answer = clients.runtime().block_on(admin.describe_configs(&wanted, &options));
    let answer = answer.map_err(|e| e.to_string())?.into_iter().next();
    let resource = answer.ok_or("no answer")?.map_err(|e| e.to_string())?;
    let entry = |one: rdkafka::admin::ConfigEntry| Some((one.name, one.value?));
    Ok(resource.entries.into_iter().filter_map(entry).collect())
}

/// A topic that is there; `None` where it is not.
fn seen(
    clients: &Clients,
    asking: &BaseProducer<Listener>,
    name: &str,
) -> Result<Option<Topic>, CheckError> {
    // Serves what this client is told first: its token, where it needs one.
    asking.poll(Duration::from_millis(10));
    let answer = asking.client().fetch_metadata(Some(name), ANSWER);
    let answer = answer.map_err(|error| CheckError::Unreachable {
        servers: clients.config.servers.clone(),
        cause: said(clients, asking, &error),
    })?;
    topic_in(&answer, name).map_err(|code| CheckError::Unreachable {
        servers: clients.config.servers.clone(),
        cause: format!("topic {name}: {code}"),
    })
}

/// An error, and what was heard besides: why a connection failed is told there alone, and by clients
/// that append.
fn said(clients: &Clients, asking: &BaseProducer<Listener>, error: &KafkaError) -> String {
    asking.poll(Duration::from_millis(500));
    match clients.heard.error() {
        Some(heard) => format!("{error} ({heard})"),
        None => error.to_string(),
    }
}

fn topic_in(answer: &Metadata, name: &str) -> Result<Option<Topic>, RDKafkaErrorCode> {
    let Some(topic) = answer.topics().iter().find(|topic| topic.name() == name) else {
        return Ok(None);
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            return Ok(None);
        }
        // Being made just now.
        Some(RDKafkaErrorCode::LeaderNotAvailable) => return Ok(None),
        Some(code) => return Err(code),
        None => {}
    }
    let partitions = u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX);
    let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
    let replication = u32::try_from(copies.unwrap_or(0)).unwrap_or(u32::MAX);
    Ok((0 < partitions).then(|| Topic { partitions, replication, settings: HashMap::new() }))
}

fn make(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    (name, partitions): (&str, u32),
    settings: &[(&str, String)],
) -> Result<(), CheckError> {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let copies = TopicReplication::Fixed(number(clients.config.replication));
    let mut topic = NewTopic::new(name, number(partitions), copies);
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let fault = |cause: String| CheckError::Make { topic: name.to_owned(), cause };
    let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
    let made = clients.runtime().block_on(admin.create_topics([&topic], &options));
    match made.map_err(|e| fault(e.to_string()))?.into_iter().next() {
        // Another process was first: what it made is looked at as any other.
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) => Ok(()),
        Some(Err((_, code))) => Err(fault(code.to_string())),
        None => Err(fault("no answer".to_owned())),
    }
}

fn wait_for(
    clients: &Clients,
    asking: &BaseProducer<Listener>,
    name: &str,
) -> Result<Topic, CheckError> {
    let until = Instant::now() + SEEN_WITHIN;
    loop {
        if let Some(topic) = seen(clients, asking, name)? {
            return Ok(topic);
        }
        if until < Instant::now() {
            let cause = "it was made, and is not there".to_owned();
            return Err(CheckError::Make { topic: name.to_owned(), cause });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Topic {
    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> i64 {
        self.setting(name).parse().unwrap_or(0)
    }

    /// What every topic of ours must be.
    fn common_faults(&self, clients: &Clients, faults: &mut Vec<String>) {
        let min_insync = self.number("min.insync.replicas");
        let wanted = i64::from(clients.config.min_insync);
        if min_insync < wanted && !clients.config.unchecked {
            faults.push(format!(
                "min.insync.replicas is {min_insync}: one lost broker may take answered events with it. \
                 Set it to {wanted} (kafka-configs --alter --add-config min.insync.replicas={wanted}), or \
                 give this up by name with log.kafka.min_insync = 1"
            ));
        }
        if 2 <= wanted && i64::from(self.replication) <= min_insync.max(wanted) {
            faults.push(format!(
                "each partition has {} copies, of which {} must be there: no broker could ever be away. \
                 Have one copy more (kafka-reassign-partitions), or give this up by name with \
                 log.kafka.min_insync = 1",
                self.replication,
                min_insync.max(wanted),
            ));
        }
        if self.setting("unclean.leader.election.enable") == "true" {
            faults.push(
                "unclean.leader.election.enable is true: a copy that lacks answered events may take \
                 over. Set it to false"
                    .to_owned(),
            );
        }
    }
}

fn log_faults(topic: &Topic, clients: &Clients, needs: Needs) -> Vec<String> {
    let mut faults = Vec::new();
    topic.common_faults(clients, &mut faults);
    if clients.config.unchecked {
        return faults;
    }
    let cleanup = topic.setting("cleanup.policy");
    if cleanup != "delete" {
        faults.push(format!(
            "cleanup.policy is {cleanup}: compaction removes events that sinks have not read. Set it to \
             delete"
        ));
    }
    let (takes, needed) = (topic.number("max.message.bytes"), message_bytes(needs));
    if takes.unsigned_abs() < needed {
        faults.push(format!(
            "max.message.bytes is {takes}, and an event may take {needed}. Set it to that, or \
             edge.limits.event_bytes lower"
        ));
    }
    let retention = topic.number("retention.ms");
    let wanted = i64::try_from(needs.retention.as_millis()).unwrap_or(i64::MAX);
    if 0 <= retention && retention < wanted {
        faults.push(format!(
            "retention.ms is {retention}, log.retention_age says {wanted}. Set it to that, or \
             log.retention_age to what the topic keeps"
        ));
    }
    faults
}

fn state_faults(topic: &Topic, clients: &Clients) -> Vec<String> {
    let mut faults = Vec::new();
    topic.common_faults(clients, &mut faults);
    let cleanup = topic.setting("cleanup.policy");
    if cleanup != "compact" && !clients.config.unchecked {
        faults.push(format!(
            "cleanup.policy is {cleanup}: the sinks' cursors would be removed one day. Set it to compact"
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::KafkaConfig;

    const NEEDS: Needs = Needs { event_bytes: 1 << 20, retention: Duration::from_secs(7 * 86_400) };

    fn topic(replication: u32, settings: &[(&str, &str)]) -> Topic {
        let good = [
            ("cleanup.policy", "delete"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("max.message.bytes", "2000000"),
            ("retention.ms", "604800000"),
        ];
        let all = good.iter().chain(settings);
        let settings = all.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Topic { partitions: 3, replication, settings }
    }

    fn faults(min_insync: u32, topic: &Topic) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let handle = runtime.as_ref().map(|runtime| runtime.handle().clone());
        let config = KafkaConfig { min_insync, ..KafkaConfig::default() };
        let clients = handle.ok().and_then(|handle| Clients::new(&config, handle).ok());
        clients.map(|clients| log_faults(topic, &clients, NEEDS)).unwrap_or_default()
    }

    #[test]
    fn a_topic_as_it_should_be_has_no_faults() {
        assert_eq!(faults(2, &topic(3, &[])), Vec::<String>::new());
        assert_eq!(faults(2, &topic(3, &[("retention.ms", "-1")])), Vec::<String>::new());
        assert_eq!(faults(1, &topic(1, &[("min.insync.replicas", "1")])), Vec::<String>::new());
    }

    #[test]
    fn each_setting_that_breaks_a_promise_is_named() {
        for (replication, setting, why) in [
            (3, ("min.insync.replicas", "1"), "min.insync.replicas is 1"),
            (2, ("retention.ms", "-1"), "2 copies"),
            (3, ("unclean.leader.election.enable", "true"), "unclean"),
            (3, ("cleanup.policy", "compact"), "cleanup.policy"),
            (3, ("cleanup.policy", "compact,delete"), "cleanup.policy"),
            (3, ("max.message.bytes", "1048588"), "max.message.bytes"),
            (3, ("retention.ms", "1000"), "retention.ms"),
        ] {
            let found = faults(2, &topic(replication, &[setting]));
            assert!(found.len() == 1 && found.iter().all(|f| f.contains(why)), "{found:?}");
        }
    }
}
