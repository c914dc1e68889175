//! `[log.kafka]`: which topic, how it is reached, and what may not be configured away.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::reach;
use crate::config::Span;

/// `[log.kafka]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Some of the brokers, `host:port`, separated by commas: the others are found through them.
    pub servers: String,
    /// The topic that is the log; beside it `<topic>.state` holds cursors and intents.
    pub topic: String,
    /// Make the topics where they are missing, with the next two.
    pub create: bool,
    /// Partitions of a topic that is made here.
    pub partitions: u32,
    /// Copies of each partition of a topic that is made here.
    pub replication: u32,
    /// How many copies must have an event before it is answered: `min.insync.replicas` of the topic is
    /// at least this. Less than 2 is less than what is promised, and `status` says so.
    pub min_insync: u32,
    /// The operator has looked at the topics' settings: they are not asked for. For OAUTHBEARER, where this
    /// program cannot; `status` says so.
    pub unchecked: bool,
    /// Which partition a request goes to.
    pub partition_by: PartitionBy,
    /// How batches are compressed on their way and in the topic.
    pub compression: Compression,
    /// How long the first event of a batch waits for others.
    pub linger: Span,
    /// How long an append may take, all tries together; then its outcome is not known (503).
    pub delivery_timeout: Span,
    /// How long a process may be silent before others take its partitions.
    pub session_timeout: Span,
    /// Encrypted connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Who we are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// More settings of librdkafka by their names, except those that the promises rest on.
    pub options: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            servers: "127.0.0.1:9092".to_owned(),
            topic: "tidegate".to_owned(),
            create: false,
            partitions: 6,
            replication: 3,
            min_insync: 2,
            unchecked: false,
            partition_by: PartitionBy::Tenant,
            compression: Compression::Lz4,
            linger: Span(Duration::from_millis(5)),
            delivery_timeout: Span::seconds(30),
            session_timeout: Span::seconds(10),
            tls: None,
            sasl: None,
            options: BTreeMap::new(),
        }
    }
}

/// Which partition a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionBy {
    /// A tenant's requests always to the same one, in their order.
    Tenant,
    /// Each request to the next one: for tenants that are more than one partition can take.
    Request,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// As they are.
    None,
    /// The fastest.
    Lz4,
    /// The smallest.
    Zstd,
    /// What old clients read.
    Gzip,
    /// The same.
    Snappy,
}

impl Compression {
    /// As librdkafka names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
        }
    }
}

/// `[log.kafka.tls]`: the section alone turns it on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Certificates to trust (PEM); the machine's own if absent.
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), where the brokers ask for one.
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

/// `[log.kafka.sasl]`
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How.
    pub mechanism: Mechanism,
    /// Who; for `OAUTHBEARER` the client's id.
    pub user: String,
    /// The secret, or `file:PATH` or `env:NAME` that holds it.
    pub password: String,
    /// `OAUTHBEARER`: where tokens are given out for the client's id and secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// `OAUTHBEARER`: what the token is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Mechanism {
    /// The password as it is: over TLS only, by all means.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A proof of it.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A proof of it.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token that somebody else gives out.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    /// As Kafka names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Settings of librdkafka that are not for `options`: what begins like one of these is either what a
/// promise rests on, or has a setting of its own.
const NOT_FOR_OPTIONS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "compression.",
    "debug.",
    "delivery.",
    "dr_",
    "enable.",
    "fetch.queue.backoff.ms",
    "group.",
    "isolation.level",
    "linger.ms",
    "max.in.flight",
    "max.poll.interval.ms",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.",
    "queue.buffering.",
    "queued.",
    "request.required.acks",
    "retries",
    "sasl.mechanism",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "ssl.ca.",
    "ssl.certificate.",
    "ssl.key.",
    "statistics.interval.ms",
    "transaction",
];

impl KafkaConfig {
    /// What is wrong with it, as far as can be told without asking a broker; one sentence each, to go
    /// behind `log.kafka.`.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut need = |holds: bool, text: &str| {
            if !holds {
                faults.push(text.to_owned());
            }
        };
        need(reach::are_servers(&self.servers), "servers: write host:port, separated by commas");
        need(
            is_topic(&self.topic),
            "topic: 1 to 200 of A-Z, a-z, 0-9, '.', '_' and '-', and neither '.' nor '..'",
        );
        need((1..=1024).contains(&self.partitions), "partitions: 1 to 1024");
        need((1..=15).contains(&self.replication), "replication: 1 to 15");
        need(
            (1..=self.replication.max(1)).contains(&self.min_insync),
            "min_insync: 1 to replication; 2 keeps what is promised",
        );
        need(self.linger.0 <= Duration::from_secs(1), "linger: at most 1s");
        need(
            (1..=600).contains(&self.delivery_timeout.0.as_secs()),
            "delivery_timeout: 1s to 600s",
        );
        need(
            (1..=300).contains(&self.session_timeout.0.as_secs()),
            "session_timeout: 1s to 300s, and within what the brokers allow \
             (group.min.session.timeout.ms, 6s by default)",
        );
        if let Some(tls) = &self.tls {
            let both = tls.certificate.is_some() == tls.key.is_some();
            need(both, "tls: certificate and key go together");
        }
        if let Some(sasl) = &self.sasl {
            need(!sasl.user.is_empty(), "sasl.user is empty");
            let oauth = sasl.mechanism == Mechanism::OauthBearer;
            let url = sasl.token_url.as_deref();
            let reachable = url.is_some_and(|url| {
                url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
            });
            need(!oauth || reachable, "sasl.token_url: OAUTHBEARER needs the token endpoint's URL");
            // The library's administrative client is never asked for a token.
            need(
                !oauth || self.unchecked,
                "unchecked: with OAUTHBEARER this program cannot look at the topics' settings; look at them \
                 yourself (docs/kafka.md) and say so with unchecked = true",
            );
            need(!oauth || !self.create, "create: not with OAUTHBEARER; make the topics yourself");
            need(
                oauth || (url.is_none() && sasl.scope.is_none()),
                "sasl.token_url, sasl.scope: for OAUTHBEARER alone",
            );
        }
        for name in self.options.keys() {
            let own = NOT_FOR_OPTIONS.iter().any(|fixed| name.starts_with(fixed));
            need(
                !own,
                &format!(
                    "options.{name}: what is promised rests on it, or it has a setting of its own (docs/kafka.md)"
                ),
            );
        }
        faults
    }

    /// The topic beside the log: cursors, intents, counts, and the log's own id.
    #[must_use]
    pub fn state_topic(&self) -> String {
        format!("{}.state", self.topic)
    }
}

impl Sasl {
    /// The secret itself, looked up where it is a reference.
    ///
    /// # Errors
    /// One line for people that does not hold it.
    pub fn secret(&self) -> Result<String, String> {
        let fault = |what: &str, cause: String| format!("log.kafka.sasl.password: {what}: {cause}");
        let text = &self.password;
        let secret = if let Some(path) = text.strip_prefix("file:") {
            std::fs::read_to_string(path).map_err(|e| fault(path, e.to_string()))?
        } else if let Some(name) = text.strip_prefix("env:") {
            std::env::var(name).map_err(|e| fault(name, e.to_string()))?
        } else {
            text.clone()
        };
        Ok(secret.trim_end_matches(['\n', '\r']).to_owned())
    }
}

/// Room for `.state` behind it, within the 249 characters that Kafka takes.
fn is_topic(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=200).contains(&name.len()) && name.chars().all(plain) && !matches!(name, "." | "..")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        toml::from_str::<KafkaConfig>(text).unwrap().faults()
    }

    #[test]
    fn the_defaults_hold_together() {
        assert_eq!(KafkaConfig::default().faults(), Vec::<String>::new());
        assert_eq!(faults(""), Vec::<String>::new());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (text, why) in [
            ("servers = 'here'", "servers"),
            ("servers = 'a:1,:2'", "servers"),
            ("topic = 'a b'", "topic"),
            ("topic = '..'", "topic"),
            ("min_insync = 0", "min_insync"),
            ("replication = 1", "min_insync"),
            ("linger = '2s'", "linger"),
            ("delivery_timeout = '0s'", "delivery_timeout"),
            ("tls = { certificate = 'a.pem' }", "go together"),
            ("sasl = { mechanism = 'PLAIN', user = '', password = 'x' }", "sasl.user"),
            (
                "unchecked = true\nsasl = { mechanism = 'OAUTHBEARER', user = 'a', password = 'x' }",
                "token_url",
            ),
            (
                "sasl = { mechanism = 'OAUTHBEARER', user = 'a', password = 'x', token_url = 'http://a' }",
                "unchecked",
            ),
            (
                "create = true\nunchecked = true\nsasl = { mechanism = 'OAUTHBEARER', user = 'a', password = 'x', token_url = 'http://a' }",
                "create",
            ),
            ("sasl = { mechanism = 'PLAIN', user = 'a', password = 'x', scope = 's' }", "alone"),
        ] {
            let found = faults(text);
            assert!(found.len() == 1 && found.iter().all(|f| f.contains(why)), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_the_promises_rest_on_is_not_for_options() {
        for name in [
            "acks",
            "enable.idempotence",
            "transactional.id",
            "isolation.level",
            "group.id",
            "sasl.password",
            "max.in.flight.requests.per.connection",
            "request.required.acks",
        ] {
            let found = faults(&format!("options = {{ \"{name}\" = \"1\" }}"));
            assert!(found.len() == 1, "{name}: {found:?}");
        }
        assert!(faults("options = { \"socket.keepalive.enable\" = \"true\" }").is_empty());
        assert!(faults("options = { \"client.rack\" = \"a\" }").is_empty());
    }

    #[test]
    fn a_secret_is_looked_up_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "pass word\n").unwrap();
        let sasl = |password: String| Sasl {
            mechanism: Mechanism::Plain,
            user: "u".to_owned(),
            password,
            token_url: None,
            scope: None,
        };
        assert_eq!(sasl(format!("file:{}", path.display())).secret().unwrap(), "pass word");
        assert!(sasl("env:NO_SUCH_VARIABLE".to_owned()).secret().is_err());
        assert!(!format!("{:?}", sasl("secret-text".to_owned())).contains("secret-text"));
    }
}
