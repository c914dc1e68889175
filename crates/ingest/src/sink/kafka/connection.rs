//! How brokers are reached: encryption, who we are, and librdkafka's own settings. The same names as in `[log.kafka]`.

use std::collections::BTreeMap;

use super::super::secret;
use crate::kafka::{Mechanism, Sasl, Tls};

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
        let address = |server: &str| {
            server.trim().rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        if !self.servers.split(',').all(address) {
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
        let mut settings = self.options.clone();
        let mut set = |name: &str, value: String| settings.insert(name.to_owned(), value);
        set("bootstrap.servers", self.servers.clone());
        set("client.id", "tidegate".to_owned());
        set("allow.auto.create.topics", "false".to_owned());
        set("log.connection.close", "false".to_owned());
        set("reconnect.backoff.max.ms", "2000".to_owned());
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        set("security.protocol", protocol.to_owned());
        if let Some(tls) = &self.tls {
            let ca = tls.ca.as_ref().map_or("probe".to_owned(), |path| path.display().to_string());
            set("ssl.ca.location", ca);
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                set("ssl.certificate.location", certificate.display().to_string());
                set("ssl.key.location", key.display().to_string());
            }
        }
        if let Some(sasl) = &self.sasl {
            let password = secret::look_up(&sasl.password)
                .map_err(|cause| format!("options.sasl.password: {cause}"))?;
            set("sasl.mechanism", sasl.mechanism.name().to_owned());
            set("sasl.username", sasl.user.clone());
            set("sasl.password", password);
        }
        Ok(settings)
    }
}
