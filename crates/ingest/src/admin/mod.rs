//! The operators' side: health, metrics, and the JSON that `ingestctl` uses.

use serde::{Deserialize, Serialize};

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where to listen.
    pub listen: String,
    /// What operators must present (`Authorization: Bearer …`); needed off loopback.
    /// Text, `file:PATH` or `env:NAME`.
    pub token: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8081".to_owned(), token: None }
    }
}
