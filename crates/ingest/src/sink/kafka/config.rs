//! `[sink.options]` of a Kafka sink.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{
    super::{SinkConfig, SinkConfigError, names::Template},
    connection::Connection,
};
use crate::{
    config::{Size, Span},
    kafka::{Compression, Sasl, Tls},
};

/// What a topic is called where the configuration does not say.
pub const TOPIC: &str = "{tenant}.{event_type}";
/// The longest name of a topic.
const TOPIC_BYTES_MAX: usize = 249;

/// What `options` may hold.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    servers: String,
    topic: String,
    progress_topic: String,
    create_topics: Option<CreateTopics>,
    key: String,
    compression: Compression,
    linger: Span,
    timeout: Span,
    message_bytes: Size,
    queue_bytes: Size,
    tls: Option<Tls>,
    sasl: Option<Sasl>,
    options: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            servers: String::new(),
            topic: TOPIC.to_owned(),
            progress_topic: "tidegate.progress".to_owned(),
            create_topics: None,
            key: "event_id".to_owned(),
            compression: Compression::Lz4,
            linger: Span(Duration::from_millis(5)),
            timeout: Span::seconds(30),
            message_bytes: Size(1_000_000),
            queue_bytes: Size(16 << 20),
            tls: None,
            sasl: None,
            options: BTreeMap::new(),
        }
    }
}

/// How topics are made that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopics {
    /// Partitions of a topic of events.
    pub partitions: u16,
    /// Copies of each partition, also of the topic of progress.
    pub replication: u16,
}

/// What decides on a message's partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The event's id.
    EventId,
    /// The tenant.
    Tenant,
    /// A field of the event: a column of its schema, or one of `custom`.
    Field(String),
    /// Nothing: partitions by turns.
    None,
}

/// Where a Kafka sink writes to, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How brokers are reached.
    pub connection: Connection,
    /// The names of its topics.
    pub topic: Template,
    /// Where it keeps how far it is.
    pub progress_topic: String,
    /// How topics are made that are missing; `None`: they are not.
    pub create_topics: Option<CreateTopics>,
    /// What decides on a message's partition.
    pub key: Key,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long the first message of a batch waits for others.
    pub linger: Duration,
    /// How long a step may take: a message to be delivered, a transaction to be begun or ended.
    pub timeout: Duration,
    /// How large a message may be.
    pub message_bytes: u64,
    /// What librdkafka may hold of messages, for each partition of the log.
    pub queue_bytes: u64,
}

impl Settings {
    /// Reads the configuration of one sink; opens nothing.
    ///
    /// # Errors
    /// [`SinkConfigError`] for what is missing, unknown or of the wrong form.
    pub fn read(config: &SinkConfig) -> Result<Self, SinkConfigError> {
        let fault = |cause: String| SinkConfigError(format!("kafka: {cause}"));
        if !cfg!(feature = "kafka") {
            return Err(fault("this program was built without the feature `kafka`".to_owned()));
        }
        if config.url.is_some() {
            return Err(fault("url: brokers are given as options.servers".to_owned()));
        }
        let table = toml::Value::Table(config.options.clone());
        let options: Options =
            table.try_into().map_err(|e| fault(format!("options: {}", e.to_string().trim())))?;
        check(&options).map_err(|cause| fault(format!("options.{cause}")))?;
        let topic = Template::parse(&options.topic, is_legal)
            .map_err(|cause| fault(format!("options.topic: {cause}")))?;
        if TOPIC_BYTES_MAX < topic.bytes_max() {
            let most = topic.bytes_max();
            let cause = format!("options.topic: names of {most} bytes, and Kafka takes 249");
            return Err(fault(cause));
        }
        let Options { servers, tls, sasl, options: more, .. } = options;
        let connection = Connection { servers, tls, sasl, options: more };
        if let Some(cause) = connection.fault() {
            return Err(fault(format!("options.{cause}")));
        }
        Ok(Self {
            connection,
            topic,
            progress_topic: options.progress_topic,
            create_topics: options.create_topics,
            key: key(&options.key).map_err(|cause| fault(format!("options.{cause}")))?,
            compression: options.compression,
            linger: options.linger.0,
            timeout: options.timeout.0,
            message_bytes: options.message_bytes.0,
            queue_bytes: options.queue_bytes.0,
        })
    }
}

fn check(options: &Options) -> Result<(), String> {
    let progress = &options.progress_topic;
    let legal = (1..=TOPIC_BYTES_MAX).contains(&progress.len()) && progress.chars().all(is_legal);
    if !legal || matches!(progress.as_str(), "." | "..") {
        return Err("progress_topic: 1 to 249 of A-Z, a-z, 0-9, '.', '_' and '-'".to_owned());
    }
    if Duration::from_secs(1) < options.linger.0 {
        return Err("linger: 1s at most".to_owned());
    }
    if !(1_000..=600_000).contains(&options.timeout.0.as_millis()) {
        return Err("timeout: 1s to 600s".to_owned());
    }
    if !(1_000..=100_000_000).contains(&options.message_bytes.0) {
        return Err("message_bytes: 1000 to 100000000".to_owned());
    }
    if options.queue_bytes.0 < options.message_bytes.0 || 1 << 30 < options.queue_bytes.0 {
        return Err("queue_bytes: message_bytes to 1GiB".to_owned());
    }
    if options.create_topics.is_some_and(|make| make.partitions == 0 || make.replication == 0) {
        return Err("create_topics: 1 partition and 1 copy at least".to_owned());
    }
    Ok(())
}

fn key(text: &str) -> Result<Key, String> {
    match text {
        "event_id" => Ok(Key::EventId),
        "tenant" => Ok(Key::Tenant),
        "none" => Ok(Key::None),
        _ => match text.strip_prefix("field:") {
            Some(name) if !name.is_empty() => Ok(Key::Field(name.to_owned())),
            _ => Err(format!("key {text:?} is none of event_id, tenant, none, field:NAME")),
        },
    }
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(all(test, feature = "kafka"))]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn read(options: &str) -> Result<Settings, SinkConfigError> {
        let text = format!("name='k'\nkind='kafka'\noptions={{{options}}}");
        Settings::read(&toml::from_str(&text).unwrap())
    }

    #[test]
    fn servers_are_all_that_is_needed() {
        let settings = read("servers='a:9092,b:9092'").unwrap();
        assert_eq!((settings.key, settings.create_topics), (Key::EventId, None));
        assert_eq!(settings.connection.settings().unwrap()["security.protocol"], "plaintext");
        let settings = read("servers='a:1',key='field:user'").unwrap();
        assert_eq!(settings.key, Key::Field("user".to_owned()));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (options, why) in [
            ("", "servers"),
            ("servers='a'", "servers"),
            ("servers='a:1',colour='red'", "colour"),
            ("servers='a:1',topic='{tenant}-{event_type}'", "one name"),
            ("servers='a:1',topic='é.{event_type}'", "may not stand there"),
            ("servers='a:1',progress_topic='a b'", "progress_topic"),
            ("servers='a:1',key='colour'", "field:NAME"),
            ("servers='a:1',key='field:'", "field:NAME"),
            ("servers='a:1',linger='2s'", "linger"),
            ("servers='a:1',timeout='1ms'", "timeout"),
            ("servers='a:1',message_bytes=1", "message_bytes"),
            ("servers='a:1',queue_bytes=1", "queue_bytes"),
            ("servers='a:1',create_topics={partitions=0,replication=1}", "create_topics"),
            ("servers='a:1',options={'transactional.id'='x'}", "transactional.id"),
            ("servers='a:1',tls={certificate='a'}", "go together"),
            ("servers='a:1',sasl={mechanism='PLAIN',user='',password=''}", "sasl.user"),
            ("servers='a:1',sasl={mechanism='OAUTHBEARER',user='u',password='p'}", "SCRAM-SHA-512"),
        ] {
            let fault = read(options).err().unwrap().to_string();
            assert!(fault.contains(why), "{options}: {fault}");
        }
        let long = format!("servers='a:1',topic='{}.{{tenant}}.{{event_type}}'", "x".repeat(60));
        assert!(read(&long).err().unwrap().to_string().contains("249"));
        let url = toml::from_str("name='k'\nkind='kafka'\nurl='a:1'").unwrap();
        assert!(Settings::read(&url).err().unwrap().to_string().contains("options.servers"));
    }

    #[test]
    fn a_login_is_looked_up_and_never_shown() {
        let settings = read(
            "servers='a:1',tls={ca='/ca.pem'},sasl={mechanism='SCRAM-SHA-512',user='u',password='s3cret'}",
        );
        let settings = settings.unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"));
        let given = settings.connection.settings().unwrap();
        assert_eq!(given["security.protocol"], "sasl_ssl");
        assert_eq!(
            (given["sasl.password"].as_str(), given["ssl.ca.location"].as_str()),
            ("s3cret", "/ca.pem")
        );
    }
}
