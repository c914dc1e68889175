//! How brokers are reached: encryption, who we are, and librdkafka's own settings. The same names as in `[log.kafka]`.

use std::collections::BTreeMap;

use super::super::secret;
use crate::kafka::{Mechanism, Sasl, Tls, reach};

/// How brokers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Some of the brokers, `host:port`, separated by commas: the others are found through them.
    pub servers: String,
    /// Encrypted connections.
    pub tls: Option<Tls>,
    /// Who we are.
    pub sasl: Option<Sasl>,
    /// More settings of librdkafka by their names, except those that the promises rest on.
    pub options: BTreeMap<String, String>,
}

/// Settings of librdkafka that are not for `options`: what begins like one of these is either what a promise rests
/// on, or has a setting of its own.
const NOT_FOR_OPTIONS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "builtin.features",
    "check.crcs",
    "compression.",
    "delivery.",
    "dr_",
    "enable.",
    "group.",
    "isolation.level",
    "linger.ms",
    "max.in.flight",
    "message.",
    "metadata.broker.list",
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
    "ssl.ca.",
    "ssl.certificate.",
    "ssl.key.",
    "statistics.interval.ms",
    "transaction",
];

impl Connection {
    /// What is wrong with it, as far as can be told without asking a broker.
    pub fn fault(&self) -> Option<String> {
        if !reach::are_servers(&self.servers) {
            return Some("servers: write host:port, separated by commas".to_owned());
        }
        let tls = self.tls.as_ref();
        if tls.is_some_and(|tls| tls.certificate.is_some() != tls.key.is_some()) {
            return Some("tls: certificate and key go together".to_owned());
        }
        if self.sasl.as_ref().is_some_and(|sasl| sasl.user.is_empty()) {
            return Some("sasl.user is empty".to_owned());
        }
        let unknown = |sasl: &Sasl| {
            sasl.mechanism == Mechanism::OauthBearer
                || sasl.token_url.is_some()
                || sasl.scope.is_some()
        };
        if self.sasl.as_ref().is_some_and(unknown) {
            let known = "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";
            return Some(format!("sasl: a sink logs in by {known}, without token_url and scope"));
        }
        let fixed = |name: &&String| NOT_FOR_OPTIONS.iter().any(|fixed| name.starts_with(fixed));
        self.options.keys().find(fixed).map(|name| {
            format!("options.{name}: what is promised rests on it, or it has a setting of its own")
        })
    }

    /// librdkafka's settings by their names, secrets looked up.
    ///
    /// # Errors
    /// One line for people that holds no secret.
    pub fn settings(&self) -> Result<BTreeMap<String, String>, String> {
        let secret = |sasl: &Sasl| {
            secret::look_up(&sasl.password)
                .map_err(|cause| format!("options.sasl.password: {cause}"))
        };
        let (tls, sasl) = (self.tls.as_ref(), self.sasl.as_ref());
        let mut settings = self.options.clone();
        for (name, value) in reach::settings(&self.servers, tls, sasl, secret)? {
            settings.insert(name.to_owned(), value);
        }
        Ok(settings)
    }
}
