//! `[hop]`: how roles reach each other, and who may speak to them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Role, Span};

/// `[hop]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HopConfig {
    /// Where a normalizer or a writer listens for the role before it.
    pub listen: String,
    /// `HOST:PORT` of the normalizers; each address that a name has is one of them.
    pub normalizers: Vec<String>,
    /// `HOST:PORT` of the writers, one each, the same list in every role: a tenant's writer follows
    /// from the names.
    pub writers: Vec<String>,
    /// What callers must present: `file:PATH`, `env:NAME`, or the text itself. Off loopback this or
    /// `[hop.tls]` is needed.
    pub token: Option<String>,
    /// How long an edge waits for a request's outcome; what is left of it goes with each call.
    pub timeout: Span,
    /// `[hop.tls]`; absent: no TLS.
    pub tls: Option<HopTlsConfig>,
}

impl Default for HopConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8082".to_owned(),
            normalizers: Vec::new(),
            writers: Vec::new(),
            token: None,
            timeout: Span::seconds(10),
            tls: None,
        }
    }
}

/// `[hop.tls]`: mutual TLS. PEM files, read again when they change.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HopTlsConfig {
    /// Certificate chain, leaf first; shown to callers and to whoever is called.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Who signs the others' certificates.
    pub ca: PathBuf,
}

impl HopConfig {
    /// What in it makes no sense, one sentence each without its section.
    #[must_use]
    pub fn faults(&self, role: Role) -> Vec<String> {
        let mut faults = Vec::new();
        if role == Role::Edge && self.normalizers.is_empty() {
            faults.push("normalizers: an edge needs one at least".to_owned());
        }
        if role == Role::Normalizer && self.writers.is_empty() {
            faults.push("writers: a normalizer needs one at least".to_owned());
        }
        let port =
            |text: &str| text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port(&self.listen).is_none() {
            faults.push(format!("listen: {:?} is no HOST:PORT", self.listen));
        }
        for (list, names) in [("normalizers", &self.normalizers), ("writers", &self.writers)] {
            for (place, name) in names.iter().enumerate() {
                if port(name).is_none_or(|port| port == 0) {
                    faults.push(format!("{list}: {name:?} is no HOST:PORT"));
                }
                if names.iter().take(place).any(|other| other == name) {
                    faults.push(format!("{list}: {name:?} stands twice"));
                }
            }
        }
        if self.timeout.0.is_zero() {
            faults.push("timeout: more than 0".to_owned());
        }
        faults
    }

    /// What callers must present.
    ///
    /// # Errors
    /// What is wrong with the file or variable it names.
    pub fn secret(&self) -> Result<Option<String>, String> {
        let Some(text) = &self.token else { return Ok(None) };
        let token = if let Some(path) = text.strip_prefix("file:") {
            std::fs::read_to_string(path).map_err(|e| format!("hop.token: {path}: {e}"))?
        } else if let Some(name) = text.strip_prefix("env:") {
            std::env::var(name).map_err(|e| format!("hop.token: {name}: {e}"))?
        } else {
            text.clone()
        };
        match token.trim() {
            "" => Err("hop.token: is empty".to_owned()),
            token if !token.bytes().all(|b| b.is_ascii_graphic()) => {
                Err("hop.token: only visible ASCII can be sent".to_owned())
            }
            token => Ok(Some(token.to_owned())),
        }
    }
}
